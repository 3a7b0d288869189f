//! `synod-bench load`: a closed loop against any cell, its latencies in HDR histograms.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use synod_api::{Consistency, Revision};

use crate::measure::{Measurement, measure};
use crate::probe::DiskProbe;
use crate::workload::{Plan, Work, Workload};

/// Load a running cell: so many workers, each with one operation in flight on a key of its own.
#[derive(Args, Clone, Debug)]
pub struct LoadOptions {
    /// Client addresses of the cell's replicas
    #[arg(long, value_delimiter = ',', required = true, env = "SYNOD_ENDPOINTS", value_name = "A,B,C")]
    pub endpoints: Vec<String>,
    /// How many workers
    #[arg(long, default_value_t = 100)]
    pub workers: usize,
    /// Over how many connections [default: one a worker, at most 100]
    #[arg(long)]
    pub connections: Option<usize>,
    /// The size of a value, in bytes
    #[arg(long, default_value_t = 5)]
    pub size: usize,
    /// For how many seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// Reads in a hundred operations
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=100))]
    pub read_share: u8,
    /// Ask whichever replica a connection comes to for reads as new as this, not the master; with --read-share 100 the connections
    /// stay there (the keys are those of an earlier run)
    #[arg(long, value_enum)]
    pub consistency: Option<ReadConsistency>,
    /// First fill the database with so many MB of 1 KB files
    #[arg(long, default_value_t = 0)]
    pub fill_mb: u64,
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

/// Connections for so many workers, as in the comparison with the peers.
pub fn connections_for(workers: usize) -> usize {
    workers.min(100)
}

/// Runs the load and prints its row. Fails if the run is void.
pub fn main(options: &LoadOptions) -> anyhow::Result<ExitCode> {
    let plan = Plan {
        endpoints: options.endpoints.clone(),
        workers: options.workers,
        connections: options.connections.unwrap_or(connections_for(options.workers)),
        value_bytes: options.size,
        work: Work::OwnKey { reads_percent: options.read_share, anywhere: options.consistency.map(Consistency::from) },
    };
    crate::fill::fill(&options.endpoints, options.fill_mb)?;
    let probe_dir = tempfile::Builder::new()
        .prefix("synod-load-")
        .tempdir_in(options.probe_dir.clone().unwrap_or_else(std::env::temp_dir))?;
    let probe = DiskProbe::start(probe_dir.path())?;
    let mut workload = Workload::new(plan)?;
    let bar = crate::progress::bar(u64::from(options.seconds), "load");
    let measurement = measure(&mut workload, &probe, options.seconds, |window| {
        bar.inc(1);
        bar.set_message(format!("{:.0} ops/s", window.per_second()));
    })?;
    bar.finish_and_clear();
    workload.finish()?;
    let row = Row::new("ops", options.workers, options.size, &measurement);
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&row)?)?;
    } else {
        writeln!(
            out,
            "{} workers, {} connections, {} bytes, {}% reads: {:.0} ops/s ({:.0} to {:.0} a window), {:.1} KB/s\n\
             latency p50 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, max {:.0} us; {} operations, {} failed, {} windows void",
            row.workers,
            options.connections.unwrap_or(connections_for(options.workers)),
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
