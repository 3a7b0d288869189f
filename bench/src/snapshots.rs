//! `synod-bench snapshots`: what snapshots cost those who write meanwhile, and what they save at a start and for a laggard.
//!
//! | row | what | bar |
//! |---|---|---|
//! | pause | p99 of writes all over the database at about half of the peak, while one replica after the other writes a snapshot, as their schedules are apart, over p99 without; windows in turn | 1.25 |
//! | memory | how much the private memory of all replicas grew meanwhile, over the pages that were changed: what their snapshots wrote, the one behind the last write included | 1.05 |
//! | faults | major page faults of the hot cores meanwhile | 0 |
//! | incremental | bytes written when one page in a hundred has changed, over the database | 3 % |
//! | opening | to the mapped database, whatever its size | 50 ms |
//! | replay | commands a second from the log, the files cached | 300,000 |
//! | laggard | p99 of the writes while a replica that missed a cut log is caught up, over p99 afterwards | 1.5 |

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use synod_node::config::{Config, Member};
use synod_node::local_cell::{LocalCell, LocalCellOptions};
use synod_node::operator::OperatorRequest;
use synod_node::start::{self, FirstStart};
use synod_store::{OpenOptions, Options, PAGE_BYTES, Pacing, Store};

use crate::probe::{DiskProbe, STALL};
use crate::workload::{Figures, Plan, Work, Workload};

const VALUE_BYTES: usize = 1024;
const REPLICAS: u16 = 3;
const PATIENCE: Duration = Duration::from_secs(120);
const WINDOW: Duration = Duration::from_secs(1);
/// At half of peak all pages have been copied after that.
const COPIED: Duration = Duration::from_secs(15);
/// Workers for the peak, and those of which the one nearest to half of it is taken.
const PEAK_WORKERS: usize = 1000;
const HALF_WORKERS: [usize; 8] = [5, 10, 20, 40, 80, 150, 300, 500];
/// Commands that the replay has to go through.
const REPLAYED: u64 = 2_000_000;
/// How many windows the other side of a laggard's catching up has.
const AFTER_WINDOWS: usize = 30;
/// Fewer good windows on either side say nothing (M5).
const WINDOWS_MIN: usize = 5;

/// Measure snapshots on a cell of real processes on this machine.
#[derive(Args, Clone, Debug)]
pub struct SnapshotsOptions {
    /// The size of the database, in MB (1024 * 1024 bytes)
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u64).range(16..))]
    pub db_mb: u64,
    /// How many snapshots are made while writes go on
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..))]
    pub snapshots: u32,
    /// The sizes at which opening is measured, in MB
    #[arg(long, value_delimiter = ',', default_value = "100,2048", value_name = "MB,MB")]
    pub open_mb: Vec<u64>,
    /// Only these rows
    #[arg(long, value_delimiter = ',', default_value = "pause,incremental,opening,replay,laggard")]
    pub rows: Vec<String>,
    /// How many workers write in the row laggard [default: those that make about half of the peak]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub laggard_workers: Option<u32>,
    /// Where the files are meanwhile: on the disk to be measured [default: the temporary directory]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of the table
    #[arg(long)]
    pub json: bool,
}

/// One row of the report.
#[derive(Clone, Debug, Serialize)]
struct Row {
    row: &'static str,
    what: String,
    figure: f64,
    bar: f64,
    /// Whether it held, or why it says nothing.
    verdict: String,
}

impl Row {
    fn at_most(row: &'static str, figure: f64, bar: f64, what: String) -> Self {
        Self { row, what, figure, bar, verdict: if figure <= bar { "held" } else { "MISSED" }.to_owned() }
    }

    fn void(mut self, why: Option<String>) -> Self {
        if let Some(why) = why {
            self.verdict = format!("void: {why}");
        }
        self
    }
}

/// Runs the rows that are asked for. Fails if a bar is missed or a row is void.
pub fn main(options: &SnapshotsOptions) -> anyhow::Result<ExitCode> {
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    let mut rows = Vec::new();
    for row in &options.rows {
        let dir = tempfile::Builder::new().prefix("synod-snapshots-").tempdir_in(&parent)?;
        eprintln!("synod-bench: {row}");
        match row.as_str() {
            "pause" => rows.extend(pause(options, dir.path())?),
            "incremental" => rows.push(incremental(options, dir.path())?),
            "opening" => rows.extend(opening(options, dir.path())?),
            "replay" => rows.push(replay(dir.path())?),
            "laggard" => rows.push(laggard(options, dir.path())?),
            other => anyhow::bail!("there is no row {other:?}: pause, incremental, opening, replay, laggard"),
        }
    }
    let held = rows.iter().all(|row| row.verdict == "held");
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&rows)?)?;
    } else {
        for Row { row, what, figure, bar, verdict } in &rows {
            writeln!(out, "{row:<12} {figure:>12.2}  bar {bar:>9.2}  {verdict:<8} {what}")?;
        }
        writeln!(out, "{}", if held { "all bars held" } else { "NOT all bars held" })?;
    }
    Ok(if held { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// A cell that makes snapshots only when it is asked to: no log gets as long as a third of that, where the first replica would.
fn cell(dir: &Path, replicas: u16) -> anyhow::Result<LocalCell> {
    let flags = ["--log-mb-max", "1048576", "--snapshot-log-mb", "300000"];
    let mut cell = LocalCell::start(LocalCellOptions {
        replicas,
        dir: dir.join("cell"),
        first_port: None,
        serve_flags: flags.map(str::to_owned).to_vec(),
        program: None,
    })?;
    cell.wait_for_master(PATIENCE)?;
    Ok(cell)
}

fn workload(cell: &LocalCell, workers: usize, value_bytes: usize, work: Work) -> anyhow::Result<Workload> {
    let connections = crate::load::connections_for(workers);
    Workload::new(Plan { endpoints: cell.endpoints(), workers, connections, value_bytes, work })
}

/// Writes every key once.
fn fill(cell: &LocalCell, keys: u64) -> anyhow::Result<()> {
    let mut workload = workload(cell, 500, VALUE_BYTES, Work::AnyKey { keys })?;
    let bar = crate::progress::bar(keys, "database");
    let mut done = 0;
    while done < keys {
        done += workload.run(Duration::from_millis(500), keys - done)?.operations();
        bar.set_position(done);
    }
    bar.finish_and_clear();
    workload.finish()
}

/// How many workers write, and how many writes a second they and many make.
struct Load {
    workers: usize,
    rate: f64,
    peak: f64,
}

impl Load {
    fn of(cell: &LocalCell, keys: u64, workers: usize) -> anyhow::Result<Self> {
        Ok(Self { workers, peak: rate(cell, keys, PEAK_WORKERS)?, rate: rate(cell, keys, workers)? })
    }

    /// As many workers as make about half of what many make.
    fn half_of_peak(cell: &LocalCell, keys: u64) -> anyhow::Result<Self> {
        let peak = rate(cell, keys, PEAK_WORKERS)?;
        let mut best = Self { workers: HALF_WORKERS[0], rate: f64::INFINITY, peak };
        for workers in HALF_WORKERS {
            let rate = rate(cell, keys, workers)?;
            if (rate - peak / 2.0).abs() < (best.rate - peak / 2.0).abs() {
                best = Self { workers, rate, peak };
            }
        }
        Ok(best)
    }
}

fn rate(cell: &LocalCell, keys: u64, workers: usize) -> anyhow::Result<f64> {
    let mut workload = workload(cell, workers, VALUE_BYTES, Work::AnyKey { keys })?;
    workload.run(Duration::from_millis(500), u64::MAX)?;
    let rate = workload.run(2 * WINDOW, u64::MAX)?.per_second();
    workload.finish()?;
    Ok(rate)
}

/// Of those among them that run.
fn ask_for_snapshots(cell: &LocalCell, ids: Vec<u16>) -> anyhow::Result<()> {
    let request = serde_json::to_string(&OperatorRequest::Snapshot)?;
    for id in ids.into_iter().filter(|id| cell.pid(*id).is_some()) {
        synod_client::operate(&cell.endpoint(id), &request, Duration::from_secs(5))
            .map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    Ok(())
}

/// How many replicas are writing a snapshot.
fn writing(cell: &LocalCell) -> usize {
    let statuses = cell.ids().into_iter().filter_map(|id| cell.status(id));
    statuses.filter(|status| status.database.snapshot_under_way).count()
}

/// Private memory of all replicas, in bytes.
fn private_memory(cell: &LocalCell) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
        line.split_whitespace().next()?.parse().ok()
    };
    cell.ids().into_iter().filter_map(|id| of(cell.pid(id)?)).map(|kib| kib << 10).sum()
}

fn snapshot_bytes(cell: &LocalCell) -> u64 {
    cell.ids().into_iter().filter_map(|id| cell.status(id)).map(|status| status.counters.snapshot_bytes).sum()
}

/// Major faults of the threads that serve: the first of each process.
fn major_faults(cell: &LocalCell) -> u64 {
    let of = |pid: u32| -> Option<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/stat")).ok()?;
        // The name before it may hold anything but a closing parenthesis at its end.
        stat.rsplit_once(')')?.1.split_whitespace().nth(9)?.parse().ok()
    };
    cell.ids().into_iter().filter_map(|id| of(cell.pid(id)?)).sum()
}

/// Windows in which the disk did not stall.
#[derive(Default)]
struct Windows {
    figures: Figures,
    good: usize,
    void: usize,
}

impl Windows {
    /// Whether it was good: the disk did not stall.
    fn take(&mut self, window: Figures, probe: &DiskProbe) -> bool {
        let is_good = probe.slowest() <= STALL;
        if is_good {
            self.good += 1;
            self.figures += window;
        } else {
            self.void += 1;
        }
        is_good
    }

    fn p99(&self) -> f64 {
        self.figures.quantile_us(0.99)
    }

    /// Why these say nothing, if so.
    fn why_void(&self) -> Option<String> {
        if self.good < WINDOWS_MIN {
            return Some(format!("only {} good windows, {WINDOWS_MIN} are needed", self.good));
        }
        let all = self.good + self.void;
        (self.void * 5 > all).then(|| format!("the disk stalled in {} windows of {all}", self.void))
    }
}

fn pause(options: &SnapshotsOptions, dir: &Path) -> anyhow::Result<Vec<Row>> {
    let keys = (options.db_mb << 20) / VALUE_BYTES as u64;
    let cell = cell(dir, REPLICAS)?;
    fill(&cell, keys)?;
    let Load { workers, rate, peak } = Load::half_of_peak(&cell, keys)?;
    // The first snapshot has everything to write; what is measured is those that follow.
    ask_for_snapshots(&cell, cell.ids())?;
    wait_for_no_snapshot(&cell)?;
    let probe = DiskProbe::start(dir)?;
    let mut workload = workload(&cell, workers, VALUE_BYTES, Work::AnyKey { keys })?;
    workload.run(2 * WINDOW, u64::MAX)?;
    let (mut without, mut with) = (Windows::default(), Windows::default());
    let faults_before = major_faults(&cell);
    let (memory_before, bytes_before) = (private_memory(&cell), snapshot_bytes(&cell));
    let mut longest = 0;
    for (_, id) in (0..options.snapshots).zip(cell.ids().into_iter().cycle()) {
        probe.slowest();
        for _ in 0..4 {
            without.take(workload.run(WINDOW, u64::MAX)?, &probe);
        }
        ask_for_snapshots(&cell, vec![id])?;
        probe.slowest();
        let mut windows = 0;
        loop {
            let window = workload.run(WINDOW, u64::MAX)?;
            if writing(&cell) == 0 {
                break;
            }
            with.take(window, &probe);
            windows += 1;
        }
        longest = longest.max(windows);
    }
    let faults = major_faults(&cell) - faults_before;
    let grown = private_memory(&cell).saturating_sub(memory_before);
    workload.finish()?;
    // What was changed since the last freeze is in memory too.
    ask_for_snapshots(&cell, cell.ids())?;
    wait_for_no_snapshot(&cell)?;
    let changed = snapshot_bytes(&cell) - bytes_before;
    let ratio = with.p99() / without.p99();
    let what = format!(
        "p99 {:.0} us with, {:.0} us without; p50 {:.0} and {:.0} us; {workers} workers, {rate:.0} of {peak:.0} writes/s of 1 KB all \
         over {} MB; {} windows with (up to {longest} s a snapshot), {} without",
        with.p99(),
        without.p99(),
        with.figures.quantile_us(0.5),
        without.figures.quantile_us(0.5),
        options.db_mb,
        with.good,
        without.good,
    );
    let void = with.why_void().or(without.why_void());
    let pause = Row::at_most("pause", ratio, 1.25, what).void(void);
    let what = "major page faults of the three hot cores meanwhile".to_owned();
    let grew = format!("private memory grew by {} MiB, {} MiB of pages were changed", grown >> 20, changed >> 20);
    let memory = Row::at_most("memory", grown as f64 / changed as f64, 1.05, grew);
    Ok(vec![pause, memory, Row::at_most("faults", faults as f64, 0.0, what)])
}

fn wait_for_no_snapshot(cell: &LocalCell) -> anyhow::Result<()> {
    let end = Instant::now() + PATIENCE;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        if writing(cell) == 0 {
            return Ok(());
        }
        anyhow::ensure!(Instant::now() < end, "a snapshot takes over {PATIENCE:?}");
    }
}

fn open_options() -> OpenOptions {
    let store = Options { keep_history: false, database_bytes_max: 64 << 30, ..Options::default() };
    OpenOptions { store, identity: b"bench".to_vec(), older: false }
}

/// A database file of so many MB, with a snapshot; gives the store and how many bytes that one had.
fn database(path: &Path, mb: u64) -> anyhow::Result<(Store, u64)> {
    Store::create(path, b"bench")?;
    let (mut store, _) = Store::open(path, &open_options())?;
    let value = [7; VALUE_BYTES];
    for key in 0..(mb << 20) / VALUE_BYTES as u64 {
        store.change().put(&key.to_be_bytes(), &value);
    }
    let bytes = keep(&mut store)?;
    Ok((store, bytes))
}

fn keep(store: &mut Store) -> anyhow::Result<u64> {
    let durable = store.freeze_snapshot(b"").write_out(&Pacing::default())?;
    let bytes = durable.bytes;
    store.snapshot_done(durable);
    Ok(bytes)
}

fn incremental(options: &SnapshotsOptions, dir: &Path) -> anyhow::Result<Row> {
    let (mut store, all) = database(&dir.join("database"), options.db_mb)?;
    let keys = (options.db_mb << 20) / VALUE_BYTES as u64;
    // Each on another page.
    let changed = all / PAGE_BYTES as u64 / 100;
    for at in 0..changed {
        store.change().put(&(at * (keys / changed)).to_be_bytes(), &[8; VALUE_BYTES]);
    }
    let bytes = keep(&mut store)?;
    let what = format!("per cent: {} KiB written for {changed} changed pages of {} MiB", bytes >> 10, all >> 20);
    Ok(Row::at_most("incremental", bytes as f64 / all as f64 * 100.0, 3.0, what))
}

fn opening(options: &SnapshotsOptions, dir: &Path) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::new();
    for mb in &options.open_mb {
        let path = dir.join(format!("database-{mb}"));
        drop(database(&path, *mb)?);
        let took = |cold: bool| -> anyhow::Result<f64> {
            if cold {
                forget_cached(&path)?;
            }
            let began = Instant::now();
            let (store, _) = Store::open(&path, &open_options())?;
            let took = began.elapsed();
            anyhow::ensure!(!store.is_empty());
            Ok(took.as_secs_f64() * 1e3)
        };
        let (cold, warm) = (took(true)?, took(false)?);
        let what = format!("ms to the mapped database of {mb} MB; {cold:.1} ms with nothing of the file in memory");
        rows.push(Row::at_most("opening", warm, 50.0, what));
        std::fs::remove_file(&path)?;
    }
    Ok(rows)
}

fn forget_cached(path: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    Ok(())
}

fn replay(dir: &Path) -> anyhow::Result<Row> {
    let mut cell = cell(dir, 1)?;
    let mut workload = workload(&cell, PEAK_WORKERS, 5, Work::AnyKey { keys: 1_000_000 })?;
    let bar = crate::progress::bar(REPLAYED, "log");
    let mut done = 0;
    while done < REPLAYED {
        done += workload.run(Duration::from_millis(500), REPLAYED - done)?.operations();
        bar.set_position(done);
    }
    bar.finish_and_clear();
    workload.finish()?;
    let directory = cell.replica_dir(1);
    cell.stop_replica(1)?;
    let address = |port| std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut config = Config::new(1, directory.clone(), vec![Member { id: 1, peer: address(1), client: address(2) }]);
    config.log_mb_max = 65536;
    let took = |cold: bool| -> anyhow::Result<f64> {
        if cold {
            for entry in std::fs::read_dir(&directory)? {
                forget_cached(&entry?.path())?;
            }
        }
        let began = Instant::now();
        let opened = start::open(&config, FirstStart::Refused)?;
        let took = began.elapsed().as_secs_f64();
        let rows = opened.start.cell.status().rows;
        anyhow::ensure!(rows >= 1_000_000, "only {rows} rows were found");
        Ok(done as f64 / took)
    };
    let (cold, warm) = (took(true)?, took(false)?);
    let what = format!("commands a second from a log of {done}; {cold:.0} with nothing of it in memory");
    Ok(Row {
        verdict: if warm >= 300_000.0 { "held" } else { "MISSED" }.to_owned(),
        row: "replay",
        what,
        figure: warm,
        bar: 300_000.0,
    })
}

fn part(name: &str, figures: &Figures) -> String {
    format!("{name} {:.0} us in {:.0} s", figures.quantile_us(0.99), figures.elapsed.as_secs_f64())
}

fn laggard(options: &SnapshotsOptions, dir: &Path) -> anyhow::Result<Row> {
    let keys = (options.db_mb << 20) / VALUE_BYTES as u64;
    let mut cell = cell(dir, REPLICAS)?;
    fill(&cell, keys / 2)?;
    let Load { workers, rate, peak } = match options.laggard_workers {
        Some(workers) => Load::of(&cell, keys, workers as usize)?,
        None => Load::half_of_peak(&cell, keys)?,
    };
    let master = cell.wait_for_master(PATIENCE)?;
    let away = cell.ids().into_iter().find(|id| *id != master).context("a cell of three")?;
    cell.kill_replica(away)?;
    // As much log as the database is large goes by, and two snapshots, so that it is cut.
    fill(&cell, keys)?;
    for _ in 0..2 {
        ask_for_snapshots(&cell, cell.ids())?;
        let mut some = workload(&cell, 10, VALUE_BYTES, Work::AnyKey { keys })?;
        some.run(WINDOW, u64::MAX)?;
        some.finish()?;
        wait_for_no_snapshot(&cell)?;
    }
    let probe = DiskProbe::start(dir)?;
    let mut workload = workload(&cell, workers, VALUE_BYTES, Work::AnyKey { keys })?;
    // The first write of each page after a snapshot copies it, laggard or not.
    workload.run(COPIED, u64::MAX)?;
    // Its start is no catch-up: both sides are measured with three processes.
    cell.start_replica(away)?;
    let (mut after, mut meanwhile) = (Windows::default(), Windows::default());
    let (mut rows, mut kept, mut log, mut chunks) = (Figures::default(), Figures::default(), Figures::default(), 0);
    let began = Instant::now();
    let caught_up = loop {
        let window = workload.run(WINDOW, u64::MAX)?;
        anyhow::ensure!(began.elapsed() < 5 * PATIENCE, "it is not caught up after {:?}", began.elapsed());
        let Some(status) = cell.status(away) else { continue };
        let engine = status.counters.engine;
        if engine.snapshots_installed > 0 && !status.catching_up {
            break began.elapsed();
        }
        if meanwhile.take(window.clone(), &probe) {
            match (engine.snapshots_installed, engine.chunks_taken > chunks) {
                (0, true) => rows += window,
                (0, false) => kept += window,
                (_, _) => log += window,
            }
        }
        chunks = engine.chunks_taken;
    };
    for _ in 0..AFTER_WINDOWS {
        after.take(workload.run(WINDOW, u64::MAX)?, &probe);
    }
    workload.finish()?;
    let ratio = meanwhile.p99() / after.p99();
    let what = format!(
        "p99 {:.0} us meanwhile, {:.0} us when it was done, after {:.1} s ({}; {}; {}); {workers} workers, {rate:.0} of {peak:.0} \
         writes/s of 1 KB; {} MB",
        meanwhile.p99(),
        after.p99(),
        caught_up.as_secs_f64(),
        part("rows", &rows),
        part("until they are durable", &kept),
        part("the log since", &log),
        options.db_mb
    );
    Ok(Row::at_most("laggard", ratio, 1.5, what).void(meanwhile.why_void().or(after.why_void())))
}
