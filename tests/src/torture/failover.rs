//! `synod-torture failover`: the master is killed, and how long writes stop, as callers see it.
//!
//! Everything is at its default: the replicas' flags and the clients' options. Callers must see a wait, not an error.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use synod_client::Options;

use super::cell::{Place, TortureCell};
use super::client::{LoadClient, Shared, Tally, under_load};
use super::pulse::{Durations, milliseconds};
use super::stop::Stop;
use super::{Report, print};

/// No gap may be longer.
pub const GAP_MAX: Duration = Duration::from_secs(3);
/// Load before the kill.
const LOAD_TIME: Duration = Duration::from_millis(500);
/// Writes flow again once so many were acknowledged: some from each client.
const WRITES_AGAIN: u64 = 200;
const REPLICAS: u16 = 3;
const CLIENTS: u32 = 4;

/// Kill the master under load, and measure how long writes stop.
#[derive(Args, Clone, Debug)]
pub struct FailoverOptions {
    /// How many times
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Where to make the replicas' directories, on a disk [default: the place for temporary files]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Leave the directories there when it fails
    #[arg(long)]
    pub keep: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct FailoverReport {
    /// Masters killed.
    pub rounds: u32,
    /// Milliseconds without an acknowledged write after each kill, whoever the client.
    pub gaps_ms: Vec<u64>,
    /// The shortest gap.
    pub gap_min_ms: u64,
    /// The median.
    pub gap_p50_ms: u64,
    /// Nine of ten are not longer.
    pub gap_p90_ms: u64,
    /// The longest.
    pub gap_max_ms: u64,
    /// What a gap may be at most.
    pub gap_bound_ms: u64,
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
        let gaps: Vec<String> = self.gaps_ms.iter().map(u64::to_string).collect();
        format!(
            "masters killed        {}\n\
             gaps in order         {} ms\n\
             gap                   min {} ms, p50 {} ms, p90 {} ms, max {} ms (bound {} ms)\n\
             longest wait          {} ms\n\
             acknowledged writes   {}\n\
             reads                 {}\n\
             {} masters killed: writes stopped for {} ms at most, callers saw {} errors",
            self.rounds,
            gaps.join(" "),
            self.gap_min_ms,
            self.gap_p50_ms,
            self.gap_p90_ms,
            self.gap_max_ms,
            self.gap_bound_ms,
            self.longest_wait_ms,
            self.acknowledged,
            self.reads,
            self.rounds,
            self.gap_max_ms,
            self.errors
        )
    }
}

/// Runs the command.
pub fn main(options: &FailoverOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let mut place = Place::new(options.dir.as_deref(), "failover")?;
    let (report, last_error) = measure(options, &place, &stop).inspect_err(|_| {
        if options.keep {
            place.keep();
        }
    })?;
    print(&report, options.json)?;
    let last_error = last_error.unwrap_or_default();
    anyhow::ensure!(report.errors == 0, "callers saw {} errors, the last: {last_error}", report.errors);
    anyhow::ensure!(
        report.gap_max_ms <= report.gap_bound_ms,
        "writes stopped for {} ms, of at most {}",
        report.gap_max_ms,
        report.gap_bound_ms
    );
    Ok(())
}

fn measure(options: &FailoverOptions, place: &Place, stop: &Stop) -> anyhow::Result<(FailoverReport, Option<String>)> {
    let mut cell = TortureCell::start(REPLICAS, place.path().join("cell"), &[], stop)?;
    let endpoints = cell.endpoints();
    let client = |id: u32| LoadClient::connect(id, &endpoints, Options::default(), 0);
    let mut clients: Vec<LoadClient> = (1..=CLIENTS).map(client).collect::<anyhow::Result<_>>()?;
    let shared = Arc::new(Shared::default());
    let mut gaps = Durations::default();
    for round in 1..=options.rounds {
        // A follower that lags would make the election another one.
        cell.wait_until_alike()?;
        let (acted, ran) = under_load(&mut clients, &shared, || {
            std::thread::sleep(LOAD_TIME);
            let master = cell.master()?;
            shared.pulse.reset();
            cell.kill(&[master])?;
            let others: Vec<u16> = cell.ids().into_iter().filter(|&id| id != master).collect();
            // In the beginning answers may still be on their way: a gap is known once there are more than these.
            cell.wait_for("writes do not flow again", &others, |_| {
                (shared.is_stopping() || shared.pulse.longest().1 >= WRITES_AGAIN).then_some(())
            })?;
            let (gap, _) = shared.pulse.longest();
            anyhow::Ok((master, gap))
        });
        ran?;
        let (master, gap) = acted.with_context(|| format!("round {round}"))?;
        gaps.push(gap);
        eprintln!(
            "round {round}/{}: killed the master, replica {master}: a gap of {} ms",
            options.rounds,
            gap.as_millis()
        );
        cell.bring_back(&[master])?;
    }
    for client in &mut clients {
        client.read_back(&endpoints, 0)?;
    }
    cell.stop()?;
    let mut tally = Tally::default();
    clients.iter().for_each(|client| tally.add(client.tally()));
    let report = FailoverReport {
        rounds: options.rounds,
        gaps_ms: gaps.milliseconds(),
        gap_min_ms: milliseconds(gaps.quantile(0.0)),
        gap_p50_ms: milliseconds(gaps.quantile(0.5)),
        gap_p90_ms: milliseconds(gaps.quantile(0.9)),
        gap_max_ms: milliseconds(gaps.quantile(1.0)),
        gap_bound_ms: milliseconds(GAP_MAX),
        longest_wait_ms: milliseconds(tally.longest_wait),
        acknowledged: tally.acknowledged,
        reads: tally.reads,
        errors: tally.errors(),
    };
    Ok((report, tally.last_error))
}
