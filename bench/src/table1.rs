//! `synod-bench table1`: the table of *Paxos Made Live* section 6, on this machine, with the physical floor beside it.
//!
//! As the paper defines it: a worker is a loop that creates a small file, waits for the answer, and creates the next;
//! one creation in flight a worker; the whole path from client library to disk and back. Real replicas, one process
//! each, on loopback and a real file system, with a database of 100 MB. Where the paper is silent: every creation uses a
//! fresh name, and KB is 1024 bytes.

mod under_snapshots;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use synod_node::local_cell::{LocalCell, LocalCellOptions};

use crate::fill::fill;
use crate::floor::{self, Floor, FloorOptions};
use crate::load::{Row, connections_for};
use crate::measure::measure;
use crate::plot::{self, Column};
use crate::probe::DiskProbe;
use crate::progress;
use crate::workload::{Plan, Work, Workload};
use under_snapshots::SnapshotRow;

/// Run Table 1 of "Paxos Made Live" on a cell of real processes on this machine.
#[derive(Args, Clone, Debug)]
pub struct Table1Options {
    /// How many replicas; the paper had five
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub replicas: u16,
    /// How many seconds each row runs
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// The size of the database before the first row, in MB (1024 * 1024 bytes)
    #[arg(long, default_value_t = 100)]
    pub db_mb: u64,
    /// Rows 5 and 6 once more, with and without snapshots in turn: twice their time, and a little
    #[arg(long)]
    pub snapshots: bool,
    /// Draw the table, as SVG; with --snapshots FILE-snapshots.svg too, throughput over time
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Write the result as JSON to this file, or to standard output for `-`
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Where the replicas keep their files meanwhile: on the disk to be measured [default: the temporary directory]
    #[arg(long)]
    pub dir: Option<PathBuf>,
}

/// One row of the paper's table.
struct PaperRow {
    test: &'static str,
    workers: usize,
    bytes: usize,
    /// As printed: operations or KB a second; a range where snapshots lowered it.
    paxos_chubby: &'static str,
    three_db_chubby: &'static str,
    /// The high end of the paper's figure, to compare with.
    high: f64,
}

/// The six rows (PML section 6, Table 1).
const PAPER: [PaperRow; 6] = [
    PaperRow { test: "ops", workers: 1, bytes: 5, paxos_chubby: "91", three_db_chubby: "75", high: 91.0 },
    PaperRow { test: "ops", workers: 10, bytes: 5, paxos_chubby: "490", three_db_chubby: "134", high: 490.0 },
    PaperRow { test: "ops", workers: 20, bytes: 5, paxos_chubby: "640", three_db_chubby: "178", high: 640.0 },
    PaperRow { test: "kb", workers: 1, bytes: 8 << 10, paxos_chubby: "345", three_db_chubby: "172", high: 345.0 },
    PaperRow { test: "kb", workers: 4, bytes: 8 << 10, paxos_chubby: "777-949", three_db_chubby: "217", high: 949.0 },
    PaperRow { test: "kb", workers: 1, bytes: 32 << 10, paxos_chubby: "672-822", three_db_chubby: "338", high: 822.0 },
];

/// Which rows have ranges in the paper, for the snapshots that were taken meanwhile.
const SNAPSHOT_ROWS: std::ops::Range<usize> = 4..6;
/// What the rows write of log, twice, so that no snapshot is made that nobody asked for.
const SNAPSHOTS_WHEN_ASKED: [&str; 2] = ["--snapshot-log-mb", "4096"];

const ELECTION_TIME_MAX: Duration = Duration::from_secs(60);

/// The whole result, as written by `--json`.
#[derive(Serialize)]
struct Report {
    replicas: u16,
    db_mb: u64,
    seconds: u32,
    floor_p50_us: f64,
    floor_void: bool,
    rows: Vec<ReportRow>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    snapshots: Vec<SnapshotRow>,
}

#[derive(Serialize)]
struct ReportRow {
    #[serde(flatten)]
    row: Row,
    paper: &'static str,
    paper_3db: &'static str,
    /// Synod's rate over the paper's (over its high end).
    paper_ratio: f64,
    /// Synod's p50 over the floor's.
    floor_ratio: f64,
}

/// Runs the table and prints it. Fails if a row or the floor is void.
pub fn main(options: &Table1Options) -> anyhow::Result<ExitCode> {
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&parent)?;
    let dir = tempfile::Builder::new()
        .prefix("synod-table1-")
        .tempdir_in(&parent)
        .with_context(|| format!("cannot make a directory in {}", parent.display()))?;

    let floor = measure_floor(options, dir.path())?;
    let mut cell = LocalCell::start(LocalCellOptions {
        replicas: options.replicas,
        dir: dir.path().join("cell"),
        first_port: None,
        serve_flags: if options.snapshots { SNAPSHOTS_WHEN_ASKED.map(str::to_owned).to_vec() } else { Vec::new() },
        program: None,
    })?;
    cell.wait_for_master(ELECTION_TIME_MAX)?;
    fill(&cell.endpoints(), options.db_mb)?;
    check_size(&mut cell, options.db_mb)?;
    let probe = DiskProbe::start(dir.path())?;
    let mut rows = Vec::new();
    for paper in &PAPER {
        let row = run_row(&cell, &probe, paper, options.seconds)?;
        cell.check()?;
        let rate = if paper.test == "ops" { row.ops_per_s } else { row.kb_per_s };
        rows.push(ReportRow {
            paper: paper.paxos_chubby,
            paper_3db: paper.three_db_chubby,
            paper_ratio: rate / paper.high,
            floor_ratio: row.p50_us / floor.p50_us,
            row,
        });
    }
    let mut snapshots = Vec::new();
    if options.snapshots {
        let began = Instant::now();
        for paper in &PAPER[SNAPSHOT_ROWS] {
            snapshots.push(under_snapshots::run(&cell, &probe, paper, options.seconds, began)?);
            cell.check()?;
        }
    }
    cell.stop()?;

    let report = Report {
        replicas: options.replicas,
        db_mb: options.db_mb,
        seconds: options.seconds,
        floor_p50_us: floor.p50_us,
        floor_void: floor.void,
        rows,
        snapshots,
    };
    print(&report, &floor)?;
    if let Some(path) = &options.plot {
        plot::write(path, &draw(&report, &floor))?;
        if options.snapshots {
            let stem = path.with_extension("").to_string_lossy().into_owned();
            under_snapshots::draw(Path::new(&format!("{stem}-snapshots.svg")), &report.snapshots)?;
        }
    }
    if let Some(path) = &options.json {
        write_json(path, &report)?;
    }
    let void: Vec<_> = report.rows.iter().filter_map(|row| row.row.void.as_ref()).collect();
    let void = [void, report.snapshots.iter().filter_map(|row| row.void.as_ref()).collect()].concat();
    for reason in &void {
        eprintln!("synod-bench: a row is void: {reason}");
    }
    if report.floor_void {
        eprintln!("synod-bench: the floor is void, and with it the ratios to it: the machine was disturbed");
    }
    Ok(if void.is_empty() && !report.floor_void { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn measure_floor(options: &Table1Options, dir: &Path) -> anyhow::Result<Floor> {
    eprintln!("measuring the floor: {} processes, one durable write each, and nothing else", options.replicas);
    let floor_options = FloorOptions {
        replicas: u8::try_from(options.replicas).expect("at most nine"),
        seconds: 3.0,
        dir: Some(dir.to_owned()),
        ..FloorOptions::default()
    };
    floor::run(&floor_options)
}

/// The database must be as large as was asked for before anything is measured.
fn check_size(cell: &mut LocalCell, db_mb: u64) -> anyhow::Result<()> {
    let master = cell.wait_for_master(ELECTION_TIME_MAX)?;
    let bytes = cell.status(master).context("the coordinator does not answer")?.database.bytes;
    anyhow::ensure!(bytes >= db_mb << 20, "the database has {bytes} bytes, {db_mb} MB were asked for");
    Ok(())
}

fn run_row(cell: &LocalCell, probe: &DiskProbe, paper: &PaperRow, seconds: u32) -> anyhow::Result<Row> {
    let mut workload = workload(cell, paper, "table1")?;
    let bar = progress::bar(u64::from(seconds), "table 1");
    bar.set_message(format!("{} workers, {} bytes", paper.workers, paper.bytes));
    let measurement = measure(&mut workload, probe, seconds, |_| bar.inc(1))?;
    bar.finish_and_clear();
    workload.finish()?;
    let row = Row::new(paper.test, paper.workers, paper.bytes, &measurement);
    anyhow::ensure!(
        row.failures == 0,
        "{} of {} creations failed: {}",
        row.failures,
        row.operations,
        measurement.figures.last_failure.as_deref().unwrap_or("?")
    );
    Ok(row)
}

/// A row's workers. No two `run`s create files of the same name.
fn workload(cell: &LocalCell, paper: &PaperRow, run: &str) -> anyhow::Result<Workload> {
    Workload::new(Plan {
        endpoints: cell.endpoints(),
        workers: paper.workers,
        connections: connections_for(paper.workers),
        value_bytes: paper.bytes,
        work: Work::CreateFiles { prefix: format!("/{run}-{}-{}-{}", paper.test, paper.workers, paper.bytes) },
    })
}

/// The paper, this machine, and what so many workers would do if each had the latency of the bare relay.
fn draw(report: &Report, floor: &Floor) -> String {
    let column = |(row, paper): (&ReportRow, &PaperRow)| {
        let Row { workers, bytes, ops_per_s, kb_per_s, .. } = row.row;
        let floor = workers as f64 * 1e6 / floor.p50_us;
        let size = if bytes >= 1024 { format!("{} KB", bytes >> 10) } else { format!("{bytes} B") };
        let (unit, values) = match row.row.test {
            "ops" => ("ops/s", vec![paper.high, ops_per_s, floor]),
            _ => ("KB/s", vec![paper.high, kb_per_s, floor * bytes as f64 / 1024.0]),
        };
        Column { label: format!("{workers} x {size}, {unit}"), values }
    };
    let columns: Vec<Column> = report.rows.iter().zip(&PAPER).map(column).collect();
    let title = format!("Table 1 of \"Paxos Made Live\": {} replicas, {} MB", report.replicas, report.db_mb);
    let series = ["the paper (its high end)", "Synod on this machine", "each worker at the floor's p50"];
    plot::bars(&title, "operations or KB a second", &series, &columns)
}

fn print(report: &Report, floor: &Floor) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "\nTable 1 of \"Paxos Made Live\", {} replicas, {} MB database, {} s a row\n",
        report.replicas, report.db_mb, report.seconds
    )?;
    writeln!(
        out,
        "{:<8}{:>8}{:>8} |{:>12}{:>12} |{:>12}{:>10}{:>10} |{:>10}{:>10}",
        "test", "workers", "size", "Paxos-", "3DB-", "Synod", "p50", "p99", "to the", "to the"
    )?;
    writeln!(
        out,
        "{:<8}{:>8}{:>8} |{:>12}{:>12} |{:>12}{:>10}{:>10} |{:>10}{:>10}",
        "", "", "bytes", "Chubby", "Chubby", "", "us", "us", "paper", "floor"
    )?;
    writeln!(out, "{}", "-".repeat(108))?;
    for ReportRow { row, paper, paper_3db, paper_ratio, floor_ratio } in &report.rows {
        let (test, rate) = if row.test == "ops" { ("ops/s", row.ops_per_s) } else { ("KB/s", row.kb_per_s) };
        writeln!(
            out,
            "{test:<8}{:>8}{:>8} |{paper:>12}{paper_3db:>12} |{rate:>12.0}{:>10.0}{:>10.0} |{:>10}{:>10}{}",
            row.workers,
            row.bytes,
            row.p50_us,
            row.p99_us,
            format!("{paper_ratio:.1}x"),
            format!("{floor_ratio:.2}x"),
            if row.void.is_some() { "  VOID" } else { "" },
        )?;
    }
    writeln!(
        out,
        "\nThe floor: {:.0} us p50 for a bare relay ({}): one durable write of {:.0} us while {} processes write, and two \
         round trips of {:.0} us{}.\nThe ratio to the paper is of rates (rows 5 and 6: to its high end); the ratio to the \
         floor is of p50 latencies, in every row to the floor of one small write alone.",
        floor.p50_us,
        floor.form,
        floor.durable_write_p50_us,
        report.replicas,
        floor.round_trip_p50_us,
        if floor.void { "; VOID: the machine was disturbed" } else { "" },
    )?;
    if !report.snapshots.is_empty() {
        write!(out, "{}", under_snapshots::describe(&report.snapshots))?;
    }
    Ok(())
}

fn write_json(path: &Path, report: &Report) -> anyhow::Result<()> {
    let text = serde_json::to_string(report)?;
    if path == Path::new("-") {
        writeln!(std::io::stdout().lock(), "{text}")?;
        return Ok(());
    }
    std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}
