//! `synod-bench profile`: where the microseconds of a write go, from the worker that wants it to its answer.
//!
//! Real replicas, one process each, and a closed loop. Of the requests one in so many is traced, at the client and at the
//! master, chosen by its number, so that both choose the same ([`synod_node::stages`]). All processes read one clock (the time
//! since the machine's boot), so the moments of a request stand in one row:
//!
//! | stage | from | to |
//! |---|---|---|
//! | client | the worker begins | its bytes are handed to the kernel |
//! | to master | | the master's turn begins in which they came |
//! | decode | | checked and queued |
//! | queue | | its batch is sealed |
//! | propose | | its accepts are on their way, its record in the log's frame |
//! | log | | its record is written and flushed here; cut short when a majority has it before |
//! | peers | | a majority has it: what is waited for the peers beyond the own log |
//! | apply | | its batch is applied |
//! | reply | | the turn's answers are handed to the kernel |
//! | to client | | the kernel gives the client the answer's bytes |
//!
//! The stages of one request add up to its latency by construction. Percentiles of stages would not add up: the request that
//! waited longest for the disk is not the one that waited longest in the queue. So what is shown for p50, p99 and p99.9 is the
//! mean of each stage over the *requests around* that percentile: those traced whose latency has a rank within
//! `min(2 %, a quarter of what is left above)` of it, so 48 to 52 %, 98.75 to 99.25 %, 99.875 to 99.925 %. Their sum is held against the
//! percentile of the latencies of *all* requests, traced or not, as the load measures it: within 10 %, or the profile failed.
//!
//! What the stage times themselves cost is measured in the same run: windows with all of it taken and with nothing of it in turn
//! (on, off, off, on), the median of the ratios of their rates, at most 2 %.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use synod_node::local_cell::{LocalCell, LocalCellOptions};
use synod_node::operator::{OperatorAnswer, OperatorRequest};
use synod_node::stages::{StageSettings, TRACES_TAKEN_MAX, Trace, Traces};

use crate::floor::{self, Floor, FloorOptions};
use crate::load::connections_for;
use crate::plot::{self, Column};
use crate::probe::{DiskProbe, STALL};
use crate::workload::{ClientTrace, Figures, Plan, Work, Workload};

/// Profile writes on a cell of real processes on this machine.
#[derive(Args, Clone, Debug)]
pub struct ProfileOptions {
    /// How many replicas
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub replicas: u16,
    /// How many workers: a profile for each
    #[arg(long, value_delimiter = ',', default_value = "1,1000", value_name = "N,N")]
    pub workers: Vec<usize>,
    /// The size of a value, in bytes
    #[arg(long, default_value_t = 5)]
    pub value_bytes: usize,
    /// How many seconds each profile takes, beside the floor and the cost
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// How many pairs of windows, with and without, the cost of the stage times is measured with; 0: it is not
    #[arg(long, default_value_t = 40, value_name = "N")]
    pub cost_pairs: u32,
    /// Draw each profile, as SVG: of FILE.svg and 10 workers, FILE-10.svg
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Write the result as JSON to this file, or to standard output for `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where the replicas keep their files meanwhile: on the disk to be measured [default: the temporary directory]
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// The stages' names, in a request's order.
pub const STAGES: [&str; 10] =
    ["client", "to master", "decode", "queue", "propose", "log", "peers", "apply", "reply", "to client"];
/// What the floor is made of: [`floor`] measures them.
const FLOOR: [&str; 3] = ["floor: durable write", "floor: two round trips", "floor: the rest"];
const QUANTILES: [(&str, f64); 3] = [("p50", 0.50), ("p99", 0.99), ("p99.9", 0.999)];

const PATIENCE: Duration = Duration::from_secs(60);
const WINDOW: Duration = Duration::from_secs(1);
/// Before each window, so that it begins with everything under way.
const SETTLE: Duration = Duration::from_millis(200);
/// A window for the cost: short, so that what drifts drifts for both of a pair.
const COST_WINDOW: Duration = Duration::from_millis(250);
/// About so many requests are traced in a window: well below what a replica keeps.
const TRACED_A_WINDOW: u64 = 8_000;
/// Fewer traced requests say nothing of a percentile of them (M5).
const TRACED_MIN: usize = 200;
/// The sum of the stages over the latency that was measured.
const RATIO_APART_MAX: f64 = 0.10;
/// What the stage times may cost.
const COST_MAX: f64 = 0.02;

/// What the master traced, by the client's port and the request's number.
type MastersTraces = HashMap<(u64, u64), Trace>;
/// One request's stages, in nanoseconds.
type Stages = [u64; STAGES.len()];

/// The requests around a percentile.
#[derive(Clone, Debug, Serialize)]
pub struct Around {
    /// "p50", and so on.
    pub percentile: &'static str,
    /// The mean of each stage over them, in microseconds.
    pub stages_us: Vec<f64>,
    /// Their sum.
    pub sum_us: f64,
    /// The percentile of all requests' latencies.
    pub measured_us: f64,
    /// The sum over that.
    pub ratio: f64,
    /// How many they are.
    pub requests: usize,
}

/// What the stage times cost, as a part of the rate.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// The median over the pairs.
    pub median: f64,
    /// Its lower quartile.
    pub low: f64,
    /// Its upper quartile.
    pub high: f64,
    /// How many pairs; those with a stall of the disk are left out.
    pub pairs: usize,
}

/// The profile of so many workers.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    /// How many.
    pub workers: usize,
    /// How many requests were measured.
    pub operations: u64,
    /// Operations a second.
    pub ops_per_s: f64,
    /// How many requests were traced, at both ends.
    pub traced: usize,
    /// One in so many.
    pub trace_every: u64,
    /// The percentiles.
    pub percentiles: Vec<Around>,
    /// What taking all this costs.
    pub cost: Option<Cost>,
    /// Windows left out, because the disk stalled.
    pub void_windows: u32,
    /// What did not hold, or why the profile says nothing.
    pub failures: Vec<String>,
}

#[derive(Serialize)]
struct Report<'a> {
    replicas: u16,
    value_bytes: usize,
    stages: [&'static str; STAGES.len()],
    floor: &'a Floor,
    profiles: &'a [Profile],
}

/// Profiles, prints and draws. Fails if the stages do not add up, cost too much, or the run is void.
pub fn main(options: &ProfileOptions) -> anyhow::Result<ExitCode> {
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let dir = tempfile::Builder::new().prefix("synod-profile-").tempdir_in(&parent)?;
    let floor = floor::run(&FloorOptions {
        replicas: u8::try_from(options.replicas)?,
        seconds: 3.0,
        dir: Some(dir.path().to_owned()),
        ..FloorOptions::default()
    })?;
    let profiles = run(options, dir.path(), None)?;
    print(options, &floor, &profiles)?;
    if let Some(path) = &options.json {
        let ProfileOptions { replicas, value_bytes, .. } = options;
        let report = Report {
            replicas: *replicas,
            value_bytes: *value_bytes,
            stages: STAGES,
            floor: &floor,
            profiles: &profiles,
        };
        let text = serde_json::to_string(&report)? + "\n";
        if path == Path::new("-") {
            std::io::stdout().write_all(text.as_bytes())?;
        } else {
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
    }
    if let Some(path) = &options.plot {
        for profile in &profiles {
            let stem = path.with_extension("").to_string_lossy().into_owned();
            plot::write(Path::new(&format!("{stem}-{}.svg", profile.workers)), &draw(options, &floor, profile))?;
        }
    }
    let failures = profiles.iter().flat_map(|profile| profile.failures.iter().map(move |why| (profile.workers, why)));
    let mut held = !floor.void;
    for (workers, why) in failures {
        eprintln!("synod-bench: {workers} workers: {why}");
        held = false;
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Profiles each number of workers on one cell. `program` is what runs with `serve`, this very one if it is not said.
pub fn run(options: &ProfileOptions, dir: &Path, program: Option<PathBuf>) -> anyhow::Result<Vec<Profile>> {
    let mut cell = LocalCell::start(LocalCellOptions {
        replicas: options.replicas,
        dir: dir.join("cell"),
        first_port: None,
        serve_flags: Vec::new(),
        program,
    })?;
    cell.wait_for_master(PATIENCE)?;
    let probe = DiskProbe::start(dir)?;
    let mut profiles = Vec::new();
    for workers in &options.workers {
        eprintln!("profiling {workers} workers");
        let master = cell.wait_for_master(PATIENCE)?;
        let workload = Workload::new(Plan {
            endpoints: cell.endpoints(),
            workers: *workers,
            connections: connections_for(*workers),
            value_bytes: options.value_bytes,
            work: Work::OwnKey { reads_percent: 0, anywhere: None },
        })?;
        let mut bench = Bench { master: cell.endpoint(master), workload, probe: &probe };
        profiles.push(bench.profile(options, *workers)?);
        bench.workload.finish()?;
        cell.check()?;
    }
    cell.stop()?;
    Ok(profiles)
}

struct Bench<'a> {
    master: String,
    workload: Workload,
    probe: &'a DiskProbe,
}

impl Bench<'_> {
    fn profile(&mut self, options: &ProfileOptions, workers: usize) -> anyhow::Result<Profile> {
        self.workload.run(WINDOW, u64::MAX)?;
        let rate = self.workload.run(WINDOW, u64::MAX)?.per_second();
        let trace_every = (rate as u64).div_ceil(TRACED_A_WINDOW).max(1);
        let (mut figures, mut rows) = (Figures::default(), Vec::new());
        let (mut good, mut void_windows) = (0, 0);
        // More than one void window in five: the run is void (M2).
        let void_max = (options.seconds / 4).max(1);
        while good < options.seconds && void_windows <= void_max {
            match self.traced_window(trace_every)? {
                Some((window, stages)) => {
                    figures += window;
                    rows.extend(stages);
                    good += 1;
                }
                None => void_windows += 1,
            }
        }
        let cost = self.cost(options.cost_pairs, trace_every)?;
        self.take(StageSettings::default())?;
        rows.sort_unstable_by_key(|stages| stages.iter().sum::<u64>());
        let percentiles = if rows.is_empty() { Vec::new() } else { around_all(&rows, &figures) };
        let mut profile = Profile {
            workers,
            operations: figures.operations(),
            ops_per_s: figures.per_second(),
            traced: rows.len(),
            trace_every,
            percentiles,
            cost,
            void_windows,
            failures: Vec::new(),
        };
        if void_windows > void_max {
            profile.failures.push(format!("void: the disk stalled over {STALL:?} in {void_windows} windows"));
        }
        if options.cost_pairs > 0 && profile.cost.is_none() {
            profile
                .failures
                .push(format!("void: the disk stalled over {STALL:?} in all pairs that were to show the cost"));
        }
        profile.failures.extend(failures(&profile, &figures));
        Ok(profile)
    }

    /// What the master is to take from now on. Nothing is in flight meanwhile.
    fn take(&mut self, settings: StageSettings) -> anyhow::Result<()> {
        self.workload.drain()?;
        match operate(&self.master, &OperatorRequest::Stages { settings })? {
            OperatorAnswer::Accepted => Ok(()),
            other => anyhow::bail!("the master answered {other:?}"),
        }
    }

    /// A window in which requests are traced; none, if the disk stalled meanwhile.
    fn traced_window(&mut self, every: u64) -> anyhow::Result<Option<(Figures, Vec<Stages>)>> {
        self.take(StageSettings { times: true, trace_every: every })?;
        self.workload.run(SETTLE, u64::MAX)?;
        self.probe.slowest();
        self.workload.trace(every);
        let figures = self.workload.run(WINDOW, u64::MAX)?;
        let ours = self.workload.take_traces()?;
        let stalled = self.probe.slowest() > STALL;
        let (theirs, started) = self.masters_traces()?;
        if stalled {
            return Ok(None);
        }
        let find = |trace: &ClientTrace| {
            let master = theirs.get(&(u64::from(trace.port), trace.request))?;
            Some(stages(trace, master, started).with_context(|| format!("moments out of order: {trace:?}, {master:?}")))
        };
        let rows = ours.iter().filter_map(find).collect::<anyhow::Result<Vec<Stages>>>()?;
        let matched = rows.len();
        ensure!(matched * 10 >= ours.len() * 9, "of {} traced requests the master knows {matched}", ours.len());
        Ok(Some((figures, rows)))
    }

    /// What it traced, and when it started.
    fn masters_traces(&self) -> anyhow::Result<(MastersTraces, u64)> {
        let mut all = HashMap::new();
        loop {
            let answer = operate(&self.master, &OperatorRequest::TakeTraces)?;
            let OperatorAnswer::Traces(Traces { started, traces, dropped }) = answer else {
                anyhow::bail!("the master answered {answer:?}");
            };
            ensure!(dropped == 0, "the master dropped {dropped} traces");
            let is_last = traces.len() < TRACES_TAKEN_MAX;
            all.extend(traces.into_iter().map(|trace| ((trace.connection, trace.request), trace)));
            if is_last {
                return Ok((all, started));
            }
        }
    }

    /// None: there are no pairs, or the disk stalled in all of them.
    fn cost(&mut self, pairs: u32, every: u64) -> anyhow::Result<Option<Cost>> {
        let mut costs = Vec::new();
        for pair in 0..pairs {
            let mut rates = [0.0; 2];
            self.probe.slowest();
            // On, off, off, on: what drifts drifts for both.
            for on in [pair % 2 == 0, pair % 2 == 1] {
                self.take(StageSettings { times: on, trace_every: if on { every } else { 0 } })?;
                self.workload.run(SETTLE, u64::MAX)?;
                rates[usize::from(on)] = self.workload.run(COST_WINDOW, u64::MAX)?.per_second();
            }
            if self.probe.slowest() <= STALL {
                costs.push(1.0 - rates[1] / rates[0]);
            }
        }
        if costs.is_empty() {
            return Ok(None);
        }
        costs.sort_unstable_by(f64::total_cmp);
        let at = |quantile: f64| costs[((costs.len() - 1) as f64 * quantile).round() as usize];
        Ok(Some(Cost { median: at(0.5), low: at(0.25), high: at(0.75), pairs: costs.len() }))
    }
}

fn operate(endpoint: &str, request: &OperatorRequest) -> anyhow::Result<OperatorAnswer> {
    let text = synod_client::operate(endpoint, &serde_json::to_string(request)?, PATIENCE)
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    serde_json::from_str(&text).with_context(|| format!("{endpoint} said {text}"))
}

/// A request's stages, from what both ends noted. None if the moments are not in their order.
fn stages(client: &ClientTrace, master: &Trace, started: u64) -> Option<Stages> {
    let durable = match master.durable {
        0 => master.chosen,
        durable => durable.min(master.chosen),
    };
    let ClientTrace { begun, left, answered, .. } = *client;
    let Trace { received, queued, sealed, proposed, chosen, applied, answered: replied, .. } = *master;
    // A record may be durable before its accepts have all been handed over.
    let durable = durable.max(proposed);
    // The master notes when its turn began: a request that comes while a turn runs has left after that.
    let received = received.max(left.saturating_sub(started));
    let at_master = [received, queued, sealed, proposed, durable, chosen, applied, replied];
    let mut last = left;
    let mut stages = [left.checked_sub(begun)?, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for (stage, moment) in
        stages[1..].iter_mut().zip(at_master.map(|moment| started + moment).into_iter().chain([answered]))
    {
        *stage = moment.checked_sub(last)?;
        last = moment;
    }
    Some(stages)
}

fn around_all(rows: &[Stages], figures: &Figures) -> Vec<Around> {
    let of = |(name, quantile)| around(rows, name, quantile, figures.quantile_us(quantile));
    QUANTILES.map(of).to_vec()
}

/// The requests around a percentile; `rows` are in the order of their sums.
fn around(rows: &[Stages], percentile: &'static str, quantile: f64, measured_us: f64) -> Around {
    let half = f64::min(0.02, (1.0 - quantile) / 4.0);
    let count = rows.len() as f64;
    let from = (((quantile - half) * count) as usize).min(rows.len() - 1);
    let to = (((quantile + half) * count).ceil() as usize).clamp(from + 1, rows.len());
    let rows = &rows[from..to];
    let mean = |stage: usize| rows.iter().map(|stages| stages[stage] as f64).sum::<f64>() / rows.len() as f64 / 1000.0;
    let stages_us: Vec<f64> = (0..STAGES.len()).map(mean).collect();
    let sum_us = stages_us.iter().sum::<f64>();
    Around { percentile, stages_us, sum_us, measured_us, ratio: sum_us / measured_us, requests: rows.len() }
}

fn failures(profile: &Profile, figures: &Figures) -> Vec<String> {
    let mut failures = Vec::new();
    if profile.traced < TRACED_MIN {
        failures.push(format!("void: only {} requests were traced, at least {TRACED_MIN} are needed", profile.traced));
    }
    if figures.failures > 0 {
        let last = figures.last_failure.as_deref().unwrap_or("?");
        failures.push(format!("void: {} operations failed; the last: {last}", figures.failures));
    }
    for around in profile.percentiles.iter().filter(|around| (around.ratio - 1.0).abs() > RATIO_APART_MAX) {
        let Around { percentile, sum_us, measured_us, .. } = around;
        failures.push(format!("{percentile}: the stages add up to {sum_us:.1} us, {measured_us:.1} us were measured"));
    }
    if let Some(cost) = profile.cost.as_ref().filter(|cost| cost.median > COST_MAX) {
        failures.push(format!("the stage times cost {:.1} % of the rate", cost.median * 100.0));
    }
    failures
}

fn print(options: &ProfileOptions, floor: &Floor, profiles: &[Profile]) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for profile in profiles {
        let Profile { workers, operations, ops_per_s, traced, .. } = profile;
        writeln!(
            out,
            "\n{} replicas, {workers} workers, {} bytes: {ops_per_s:.0} ops/s; {operations} requests, {traced} of them traced\n",
            options.replicas, options.value_bytes
        )?;
        let row = |name: &str, value: &dyn Fn(&Around) -> String| {
            let values = profile.percentiles.iter().map(|around| format!("{:>10}", value(around))).collect::<String>();
            format!("{name:<12}{values}")
        };
        writeln!(out, "{}", row("us", &|around| around.percentile.to_owned()))?;
        for (stage, name) in STAGES.iter().enumerate() {
            writeln!(out, "{}", row(name, &|around| format!("{:.1}", around.stages_us[stage])))?;
        }
        writeln!(out, "{}", row("sum", &|around| format!("{:.1}", around.sum_us)))?;
        writeln!(out, "{}", row("measured", &|around| format!("{:.1}", around.measured_us)))?;
        writeln!(out, "{}", row("ratio", &|around| format!("{:.3}", around.ratio)))?;
        writeln!(out, "{}", row("requests", &|around| around.requests.to_string()))?;
        if let Some(Cost { median, low, high, pairs }) = &profile.cost {
            let [median, low, high] = [median, low, high].map(|cost| cost * 100.0);
            writeln!(
                out,
                "the stage times cost {median:.1} % of the rate ({low:.1} to {high:.1} % the middle half of {pairs} pairs)"
            )?;
        }
    }
    write!(out, "\n{}", floor::describe(floor))?;
    Ok(())
}

fn draw(options: &ProfileOptions, floor: &Floor, profile: &Profile) -> String {
    let parts = [floor.durable_write_p50_us, 2.0 * floor.round_trip_p50_us];
    // The parts are measured apart, and may be more than the whole.
    let scale = f64::min(1.0, floor.p50_us / parts.iter().sum::<f64>());
    let parts = parts.map(|part| part * scale);
    let rest = (floor.p50_us - parts.iter().sum::<f64>()).max(0.0);
    let mut columns = vec![Column {
        label: "floor p50".to_owned(),
        values: [vec![0.0; STAGES.len()], vec![parts[0], parts[1], rest]].concat(),
    }];
    columns.extend(profile.percentiles.iter().map(|around| Column {
        label: around.percentile.to_owned(),
        values: [around.stages_us.clone(), vec![0.0; FLOOR.len()]].concat(),
    }));
    let title = format!(
        "Where a write's time goes: {} replicas, {} workers, {} bytes, {:.0} ops/s",
        options.replicas, profile.workers, options.value_bytes, profile.ops_per_s
    );
    let series = [&STAGES[..], &FLOOR[..]].concat();
    // The tail is far above the rest.
    let (most, tail) = columns.split_at(columns.len().min(2));
    plot::stacks(&title, "microseconds", &series, &[most, tail])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_of_a_request_add_up_to_its_latency() {
        let client = ClientTrace { port: 1, request: 1, begun: 1_000, left: 1_010, answered: 1_500 };
        let master = Trace {
            received: 50,
            queued: 60,
            sealed: 70,
            proposed: 80,
            durable: 200,
            chosen: 300,
            applied: 320,
            answered: 330,
            ..Trace::default()
        };
        let found = stages(&client, &master, 1_000).unwrap();
        assert_eq!(found, [10, 40, 10, 10, 10, 120, 100, 20, 10, 170]);
        assert_eq!(found.iter().sum::<u64>(), 500);
        // The others were faster: nothing is waited for beyond the own log, which is cut short.
        let found = stages(&client, &Trace { durable: 0, ..master }, 1_000).unwrap();
        assert_eq!(found, [10, 40, 10, 10, 10, 220, 0, 20, 10, 170]);
        let found = stages(&client, &Trace { received: 5, ..master }, 1_000).unwrap();
        assert_eq!(found[..3], [10, 0, 50], "it came while a turn ran");
        assert_eq!(stages(&client, &Trace { queued: 5, ..master }, 1_000), None, "queued before it left");
    }

    #[test]
    fn requests_around_a_percentile_have_its_latency() {
        let rows: Vec<Stages> = (1..=10_000).map(|at| [at * 100, 0, 0, at * 900, 0, 0, 0, 0, 0, 0]).collect();
        for (name, quantile) in QUANTILES {
            let around = around(&rows, name, quantile, quantile * 10_000.0);
            assert!((around.ratio - 1.0).abs() < 0.001, "{around:?}");
            assert!((around.stages_us[3] / around.stages_us[0] - 9.0).abs() < 0.001);
        }
        assert!((5..=6).contains(&around(&rows, "p99.9", 0.999, 1.0).requests));
        assert_eq!(around(&rows[..1], "p50", 0.5, 1.0).requests, 1);
    }
}
