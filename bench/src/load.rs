//! `synod-bench load`: a closed or an open loop against any cell, its latencies in HDR histograms.
//!
//! In the closed loop each worker waits for its answer: a cell that stands still is asked nothing meanwhile, and few operations
//! show it. In the open loop (`--rate`) operations arrive at a constant rate, and the latency of each counts from the moment it
//! should have begun. When more than a second's arrivals wait for a free worker the oldest are left out, and the run is void:
//! the cell does not keep up.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use synod_api::{Consistency, Revision};

use crate::measure::{Measurement, Second, measure};
use crate::plot::{self, Mark, Panel};
use crate::probe::DiskProbe;
use crate::workload::{Plan, Work, Workload};

/// Load a running cell: so many workers, each with one operation in flight on a key of its own.
#[derive(Args, Clone, Debug)]
pub struct LoadOptions {
    /// Client addresses of the cell's replicas
    #[arg(long, value_delimiter = ',', required = true, env = "SYNOD_ENDPOINTS", value_name = "A,B,C")]
    pub endpoints: Vec<String>,
    /// How many workers, each with one operation in flight; with --rate: how many operations may be in flight [default: 100]
    #[arg(long)]
    pub workers: Option<usize>,
    /// Over how many connections [default: one a worker, at most 100; with --pipeline 4]
    #[arg(long)]
    pub connections: Option<usize>,
    /// So many operations in flight on each connection, in place of --workers
    #[arg(long, conflicts_with = "workers", value_name = "N")]
    pub pipeline: Option<usize>,
    /// An open loop: so many operations arrive a second, and a latency counts from when its operation should have begun
    #[arg(long, value_name = "OPS", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    pub rate: Option<u64>,
    /// The size of a value, in bytes
    #[arg(long, default_value_t = 5)]
    pub size: usize,
    /// For how many seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// Reads in a hundred operations
    #[arg(long, visible_alias = "reads", default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_share: u8,
    /// Ask whichever replica a connection comes to for reads as new as this, not the master; with --read-share 100 the connections
    /// stay there (the keys are those of an earlier run)
    #[arg(long, value_enum)]
    pub consistency: Option<ReadConsistency>,
    /// Write any of so many keys, all over the database, in place of one key a worker
    #[arg(long, conflicts_with_all = ["read_share", "consistency"], value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub keys: Option<u64>,
    /// First fill the database with so many MB of 1 KB files
    #[arg(long, default_value_t = 0)]
    pub fill_mb: u64,
    /// Print each second's rate and latencies too; with --json they are in it
    #[arg(long)]
    pub series: bool,
    /// Draw each second's rate and latencies, as SVG
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Print one line of JSON instead of the table
    #[arg(long)]
    pub json: bool,
    /// Where the disk probe writes: on the disk of the replicas [default: the temporary directory]
    #[arg(long)]
    pub probe_dir: Option<PathBuf>,
}

/// How new reads must be that any replica may answer.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum ReadConsistency {
    /// They see all that was acknowledged before.
    Linearizable,
    /// They see whatever the replica has.
    Serializable,
}

impl From<ReadConsistency> for Consistency {
    fn from(consistency: ReadConsistency) -> Self {
        match consistency {
            ReadConsistency::Linearizable => Consistency::Linearizable,
            ReadConsistency::Serializable => Consistency::AtLeast(Revision::NONE),
        }
    }
}

/// One row of figures, the same for `load` and `table1`.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// "ops" or "kb": which of the two rates the row is about.
    pub test: &'static str,
    /// Workers.
    pub workers: usize,
    /// The size of a value or file.
    pub bytes: usize,
    /// Operations a second.
    pub ops_per_s: f64,
    /// KB (1024 bytes) of payload a second.
    pub kb_per_s: f64,
    /// Latencies in microseconds.
    pub p50_us: f64,
    /// See there.
    pub p99_us: f64,
    /// See there.
    pub p999_us: f64,
    /// How many operations were measured.
    pub operations: u64,
    /// How many failed.
    pub failures: u64,
    /// Windows left out because the disk stalled.
    pub void_windows: u32,
    /// Why the row is to be left out, if it is.
    pub void: Option<String>,
}

impl Row {
    /// The row of a measurement.
    pub fn new(test: &'static str, workers: usize, bytes: usize, measurement: &Measurement) -> Self {
        let figures = &measurement.figures;
        let ops_per_s = figures.per_second();
        Self {
            test,
            workers,
            bytes,
            ops_per_s,
            kb_per_s: ops_per_s * bytes as f64 / 1024.0,
            p50_us: figures.quantile_us(0.50),
            p99_us: figures.quantile_us(0.99),
            p999_us: figures.quantile_us(0.999),
            operations: figures.operations(),
            failures: figures.failures,
            void_windows: measurement.void_windows,
            void: measurement.void.clone(),
        }
    }
}

/// The row of `load`, and what only it has.
#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    row: &'a Row,
    connections: usize,
    read_share: u8,
    /// Of an open loop: operations a second as asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
    /// Of these, how many never began.
    not_begun: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    series: Option<&'a [Second]>,
}

impl LoadOptions {
    /// Workers and connections.
    fn concurrency(&self) -> (usize, usize) {
        match self.pipeline {
            Some(in_flight) => {
                let connections = self.connections.unwrap_or(PIPELINED_CONNECTIONS);
                (connections * in_flight, connections)
            }
            None => {
                let workers = self.workers.unwrap_or(WORKERS);
                (workers, self.connections.unwrap_or(connections_for(workers)).min(workers))
            }
        }
    }
}

const WORKERS: usize = 100;
const PIPELINED_CONNECTIONS: usize = 4;

/// Connections for so many workers, as in the comparison with the peers.
pub fn connections_for(workers: usize) -> usize {
    workers.min(100)
}

/// Runs the load and prints its row. Fails if the run is void.
pub fn main(options: &LoadOptions) -> anyhow::Result<ExitCode> {
    let (workers, connections) = options.concurrency();
    let plan = Plan {
        endpoints: options.endpoints.clone(),
        workers,
        connections,
        value_bytes: options.size,
        work: match options.keys {
            Some(keys) => Work::AnyKey { keys },
            None => {
                Work::OwnKey { reads_percent: options.read_share, anywhere: options.consistency.map(Consistency::from) }
            }
        },
    };
    crate::fill::fill(&options.endpoints, options.fill_mb)?;
    let probe_dir = tempfile::Builder::new()
        .prefix("synod-load-")
        .tempdir_in(options.probe_dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let probe = DiskProbe::start(probe_dir.path())?;
    let mut workload = Workload::new(plan)?;
    if let Some(rate) = options.rate {
        workload.pace(rate);
    }
    let bar = crate::progress::bar(u64::from(options.seconds), "load");
    let measurement = measure(&mut workload, &probe, options.seconds, |window| {
        bar.inc(1);
        bar.set_message(format!("{:.0} ops/s", window.per_second()));
    })?;
    bar.finish_and_clear();
    workload.finish()?;
    let row = Row::new("ops", workers, options.size, &measurement);
    print(options, &row, connections, &measurement)?;
    if let Some(path) = &options.plot {
        draw(path, options, &row, &measurement.series)?;
    }
    if row.failures > 0 {
        eprintln!("synod-bench: the last failure: {}", measurement.figures.last_failure.as_deref().unwrap_or("?"));
    }
    match row.void {
        Some(reason) => {
            eprintln!("synod-bench: void: {reason}");
            Ok(ExitCode::from(1))
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

fn print(options: &LoadOptions, row: &Row, connections: usize, measurement: &Measurement) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if options.json {
        let report = Report {
            row,
            connections,
            read_share: options.read_share,
            rate: options.rate,
            not_begun: measurement.figures.not_begun,
            series: options.series.then_some(&measurement.series),
        };
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    if options.series {
        writeln!(out, "{:>8}{:>12}{:>10}{:>10}", "s", "ops/s", "p50 us", "p99 us")?;
        for Second { at_s, ops_per_s, p50_us, p99_us, void } in &measurement.series {
            let void = if *void { "  VOID" } else { "" };
            writeln!(out, "{at_s:>8.1}{ops_per_s:>12.0}{p50_us:>10.0}{p99_us:>10.0}{void}")?;
        }
    }
    let asked = options.rate.map_or(String::new(), |rate| format!(", {rate} a second asked for"));
    writeln!(
        out,
        "{} workers, {connections} connections, {} bytes, {}% reads{asked}: {:.0} ops/s ({:.0} to {:.0} a window), {:.1} KB/s\n\
         latency p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, max {:.0} us; {} operations, {} failed, {} windows void",
        row.workers,
        row.bytes,
        options.read_share,
        row.ops_per_s,
        measurement.window_min_per_second,
        measurement.window_max_per_second,
        row.kb_per_s,
        row.p50_us,
        row.p99_us,
        row.p999_us,
        measurement.figures.quantile_us(1.0),
        row.operations,
        row.failures,
        row.void_windows,
    )?;
    Ok(())
}

fn draw(path: &Path, options: &LoadOptions, row: &Row, series: &[Second]) -> anyhow::Result<()> {
    let loop_kind = match options.rate {
        Some(rate) => format!("open loop, {rate} ops/s asked for"),
        None => "closed loop".to_owned(),
    };
    let title = format!("{} workers, {} bytes, {}% reads, {loop_kind}", row.workers, row.bytes, options.read_share);
    plot::write(path, &plot::over_time(&title, &panels(series, 0.0), &stalls(series)))
}

/// The two panels of a series that began so late: rate, and latencies.
pub fn panels(series: &[Second], from_s: f64) -> Vec<Panel> {
    let line = |name: &str, value: fn(&Second) -> f64| {
        (name.to_owned(), series.iter().map(|second| (from_s + second.at_s, Some(value(second)))).collect())
    };
    vec![
        Panel { label: "operations a second".to_owned(), lines: vec![line("ops/s", |second| second.ops_per_s)] },
        Panel {
            label: "latency, us".to_owned(),
            lines: vec![line("p50", |second| second.p50_us), line("p99", |second| second.p99_us)],
        },
    ]
}

/// The windows that do not count, to be marked.
pub fn stalls(series: &[Second]) -> Vec<Mark> {
    let void = series.iter().filter(|second| second.void);
    void.map(|second| Mark {
        label: "the disk stalled".to_owned(),
        from_s: (second.at_s - 1.0).max(0.0),
        to_s: second.at_s,
    })
    .collect()
}
