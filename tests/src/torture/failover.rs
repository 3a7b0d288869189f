//! `synod-torture failover`: the master is killed, or paused, and how long writes stop, as callers see it.
//!
//! A killed master's connections break; a paused one's stay open, so that its clients know it by its silence alone. Of
//! each fault three times are kept: the gap, from the last write acknowledged before to the first one after; when one of
//! the others became master; and how much later than that the clients had found it. Callers must see a wait, not an
//! error.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;

use super::cell::{Common, Place, TortureCell};
use super::client::{LoadClient, Shared, Tally, under_load};
use super::profile::Profile;
use super::pulse::{Durations, milliseconds};
use super::stop::Stop;
use super::{Report, print};

/// No gap may be longer.
pub const GAP_MAX: Duration = Duration::from_secs(3);
/// Load before the fault.
const LOAD_TIME: Duration = Duration::from_millis(500);
/// Load after a paused master is back.
const BACK_TIME: Duration = Duration::from_millis(200);
/// Writes flow again once so many were acknowledged: some from each client.
const WRITES_AGAIN: u64 = 200;
/// The histograms have so many lines.
const HISTOGRAM_LINES: u32 = 12;
const REPLICAS: u16 = 3;
const CLIENTS: u32 = 4;

/// Kill and pause the master under load, and measure how long writes stop.
#[derive(Args, Clone, Debug)]
pub struct FailoverOptions {
    /// How many times to kill it
    #[arg(long, default_value_t = 10)]
    pub kills: u32,
    /// How many times to pause it, until another is master
    #[arg(long, default_value_t = 10)]
    pub pauses: u32,
    /// The cell's and the clients' settings
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// The times of one kind of fault.
#[derive(Clone, Debug, Default)]
struct Times {
    gaps: Durations,
    elected: Durations,
    found: Durations,
}

/// The same, told.
#[derive(Clone, Debug, Serialize)]
pub struct Distribution {
    /// Faults.
    pub count: usize,
    /// Milliseconds without an acknowledged write after each, whoever the client.
    pub gaps_ms: Vec<u64>,
    /// The shortest gap.
    pub gap_min_ms: u64,
    /// The median.
    pub gap_p50_ms: u64,
    /// Nine of ten are not longer.
    pub gap_p90_ms: u64,
    /// The longest.
    pub gap_max_ms: u64,
    /// Milliseconds until another said that it is master: the median.
    pub elected_p50_ms: u64,
    /// The longest of these.
    pub elected_max_ms: u64,
    /// Milliseconds from then until a client's write was acknowledged: the median.
    pub found_p50_ms: u64,
    /// The longest of these.
    pub found_max_ms: u64,
    /// The gaps for people.
    #[serde(skip)]
    histogram: String,
}

impl Times {
    fn told(&self) -> Distribution {
        let of = |durations: &Durations, part| milliseconds(durations.quantile(part));
        let range = self.gaps.quantile(1.0) - self.gaps.quantile(0.0);
        Distribution {
            count: self.gaps.count(),
            gaps_ms: self.gaps.milliseconds(),
            gap_min_ms: of(&self.gaps, 0.0),
            gap_p50_ms: of(&self.gaps, 0.5),
            gap_p90_ms: of(&self.gaps, 0.9),
            gap_max_ms: of(&self.gaps, 1.0),
            elected_p50_ms: of(&self.elected, 0.5),
            elected_max_ms: of(&self.elected, 1.0),
            found_p50_ms: of(&self.found, 0.5),
            found_max_ms: of(&self.found, 1.0),
            histogram: self.gaps.histogram(range / HISTOGRAM_LINES),
        }
    }
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct FailoverReport {
    /// The settings.
    pub profile: Profile,
    /// Of masters killed.
    pub kills: Distribution,
    /// Of masters paused.
    pub pauses: Distribution,
    /// What a gap may be at most.
    pub gap_bound_ms: u64,
    /// What their median may be, of kills and of pauses.
    pub gap_p50_bound_ms: u64,
    /// The longest that one caller waited for a few requests at once.
    pub longest_wait_ms: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Errors that callers saw.
    pub errors: u64,
}

impl Report for FailoverReport {
    fn text(&self) -> String {
        let told = |name: &str, told: &Distribution| {
            if told.count == 0 {
                return String::new();
            }
            format!(
                "gaps after {:<10} {}\n  another was master    p50 {} ms, max {} ms after the fault\n  clients found it      p50 {} ms, max {} ms later\n",
                format!("{} {name}", told.count),
                told.histogram,
                told.elected_p50_ms,
                told.elected_max_ms,
                told.found_p50_ms,
                told.found_max_ms,
            )
        };
        let sum = |name: &str, told: &Distribution| {
            format!("{} {name}: p50 {} ms, max {} ms", told.count, told.gap_p50_ms, told.gap_max_ms)
        };
        format!(
            "{}{}\
             longest wait          {} ms\n\
             acknowledged writes   {}\n\
             reads                 {}\n\
             {}; {}; callers saw {} errors (bounds: p50 {} ms, max {} ms)",
            told("kills", &self.kills),
            told("pauses", &self.pauses),
            self.longest_wait_ms,
            self.acknowledged,
            self.reads,
            sum("kills", &self.kills),
            sum("pauses", &self.pauses),
            self.errors,
            self.gap_p50_bound_ms,
            self.gap_bound_ms,
        )
    }
}

/// Runs the command.
pub fn main(options: &FailoverOptions) -> anyhow::Result<()> {
    anyhow::ensure!(options.kills + options.pauses > 0, "nothing is to be done");
    let stop = Stop::on_signals()?;
    let (report, last_error) = options.common.within("failover", |place| measure(options, place, &stop))?;
    print(&report, options.common.json)?;
    let last_error = last_error.unwrap_or_default();
    anyhow::ensure!(report.errors == 0, "callers saw {} errors, the last: {last_error}", report.errors);
    for (name, told) in [("kills", &report.kills), ("pauses", &report.pauses)] {
        let (p50, max) = (told.gap_p50_ms, told.gap_max_ms);
        anyhow::ensure!(
            max <= report.gap_bound_ms && p50 <= report.gap_p50_bound_ms,
            "after {name} writes stopped for {p50} ms in the median and {max} ms at most, of {} and {}",
            report.gap_p50_bound_ms,
            report.gap_bound_ms
        );
    }
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Kill,
    Pause,
}

fn measure(options: &FailoverOptions, place: &Place, stop: &Stop) -> anyhow::Result<(FailoverReport, Option<String>)> {
    let profile = options.profile;
    let mut cell = TortureCell::start(REPLICAS, place.path().join("cell"), profile.serve_flags(), stop)?;
    let endpoints = cell.endpoints();
    let client = |id: u32| LoadClient::connect(id, &endpoints, profile.options(), 0);
    let mut clients: Vec<LoadClient> = (1..=CLIENTS).map(client).collect::<anyhow::Result<_>>()?;
    let shared = Arc::new(Shared::default());
    let (mut kills, mut pauses) = (Times::default(), Times::default());
    // In turn, as long as there are both.
    let rounds = options.kills.max(options.pauses);
    let faults = (0..rounds).flat_map(|round| {
        [(Fault::Kill, options.kills), (Fault::Pause, options.pauses)]
            .into_iter()
            .filter_map(move |(fault, count)| (round < count).then_some(fault))
    });
    for (round, fault) in faults.enumerate() {
        // A follower that lags would make the election another one.
        cell.wait_until_alike()?;
        let times = if fault == Fault::Kill { &mut kills } else { &mut pauses };
        let (acted, ran) = under_load(&mut clients, &shared, || strike(&mut cell, &shared, fault, times));
        ran?;
        let (master, gap) = acted.with_context(|| format!("round {}", round + 1))?;
        eprintln!(
            "{}/{}: {fault:?} of the master, replica {master}: a gap of {} ms",
            round + 1,
            options.kills + options.pauses,
            gap.as_millis()
        );
        if fault == Fault::Kill {
            cell.bring_back(&[master])?;
        }
    }
    for client in &mut clients {
        client.read_back(&endpoints, 0)?;
    }
    cell.stop()?;
    let mut tally = Tally::default();
    clients.iter().for_each(|client| tally.add(client.tally()));
    let report = FailoverReport {
        profile,
        kills: kills.told(),
        pauses: pauses.told(),
        gap_bound_ms: milliseconds(GAP_MAX),
        gap_p50_bound_ms: milliseconds(profile.median_max()),
        longest_wait_ms: milliseconds(tally.longest_wait),
        acknowledged: tally.acknowledged,
        reads: tally.reads,
        errors: tally.errors(),
    };
    Ok((report, tally.last_error))
}

/// One fault under load; says whom it hit, and how long writes stopped.
fn strike(cell: &mut TortureCell, shared: &Shared, fault: Fault, times: &mut Times) -> anyhow::Result<(u16, Duration)> {
    std::thread::sleep(LOAD_TIME);
    let master = cell.master()?;
    let others = cell.others(master);
    shared.pulse.reset();
    match fault {
        Fault::Kill => cell.kill(&[master])?,
        Fault::Pause => cell.pause(master)?,
    }
    let struck = Instant::now();
    let mut elected = None;
    // In the beginning answers may still be on their way: a gap is known once there are more than these.
    cell.wait_for("writes do not flow again", &others, |cell| {
        if elected.is_none() && cell.master_among(&others).is_some() {
            elected = Some(struck.elapsed());
        }
        let again = elected.is_some() && shared.pulse.longest().1 >= WRITES_AGAIN;
        (shared.is_stopping() || again).then_some(())
    })?;
    let (gap, _) = shared.pulse.longest();
    times.gaps.push(gap);
    if let Some(elected) = elected {
        times.elected.push(elected);
        times.found.push(gap.saturating_sub(elected));
    }
    if fault == Fault::Pause {
        cell.resume(master)?;
        std::thread::sleep(BACK_TIME);
    }
    Ok((master, gap))
}
