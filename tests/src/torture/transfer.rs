//! `synod-torture transfer`: the master is asked to hand over under load, and how long writes take in that second.
//!
//! Each client writes by the clock, whether the cell keeps up or not, and a write that could not be asked for in time
//! because the one before it was still waited for counts from when it was due. So a pause is seen by all the writes that
//! fall into it, and not by one of each client alone. Callers must see a wait, not an error.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use synod_client::Client;
use synod_node::operator::{OperatorAnswer, OperatorRequest};

use super::cell::{Common, Place, TortureCell};
use super::profile::Profile;
use super::pulse::Durations;
use super::stop::Stop;
use super::{Report, print};

/// Of the writes in the second of a transfer, 99 in 100 are quicker.
pub const P99_MAX: Duration = Duration::from_millis(200);
/// What is looked at before a transfer, and from it on.
const WINDOW: Duration = Duration::from_secs(1);
/// Between two writes of one client.
const PACE: Duration = Duration::from_millis(10);
/// Load before the first second that counts.
const WARM_UP_TIME: Duration = Duration::from_millis(500);
/// Between two looks at whether the other one is master.
const LOOK: Duration = Duration::from_millis(2);
/// A transfer that takes longer has failed.
const TRANSFER_TIME_MAX: Duration = Duration::from_secs(5);
/// One question to the cell.
const ASK_TIME_MAX: Duration = Duration::from_secs(1);
const REPLICAS: u16 = 3;

/// Hand mastership over under load, and measure the writes of that second
#[derive(Args, Clone, Debug)]
pub struct TransferOptions {
    /// How often
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How many clients write, each 100 times a second
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub clients: u32,
    /// The cell's and the clients' settings
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// The writes that were due in some seconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latencies {
    /// How many.
    pub writes: usize,
    /// Their median, in milliseconds.
    pub p50_ms: f64,
    /// 99 in 100 are not longer.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

impl Latencies {
    fn of(writes: &[Write], is_due: impl Fn(Instant) -> bool) -> Self {
        let mut durations = Durations::default();
        writes.iter().filter(|write| is_due(write.due)).for_each(|write| durations.push(write.took));
        let ms = |part| fractional_ms(durations.quantile(part));
        Self { writes: durations.count(), p50_ms: ms(0.5), p99_ms: ms(0.99), max_ms: ms(1.0) }
    }
}

impl std::fmt::Display for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { writes, p50_ms, p99_ms, max_ms } = self;
        write!(f, "p50 {p50_ms:.1} ms, p99 {p99_ms:.1} ms, max {max_ms:.1} ms ({writes} writes)")
    }
}

fn fractional_ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

/// One transfer.
#[derive(Clone, Debug, Serialize)]
pub struct Round {
    /// Who was master.
    pub from: u16,
    /// Who became it.
    pub to: u16,
    /// From the request until that one held the lease, in milliseconds.
    pub handed_over_ms: f64,
    /// The writes of the second from the request on.
    pub second: Latencies,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct TransferReport {
    /// The settings.
    pub profile: Profile,
    /// Clients.
    pub clients: u32,
    /// Each transfer.
    pub rounds: Vec<Round>,
    /// From the request until another held the lease, in milliseconds: the median.
    pub handed_over_p50_ms: f64,
    /// The longest.
    pub handed_over_max_ms: f64,
    /// The writes of the seconds before the transfers.
    pub before: Latencies,
    /// The writes of all the seconds from the requests on.
    pub seconds: Latencies,
    /// What 99 in 100 of these may take at most, in milliseconds.
    pub p99_bound_ms: f64,
    /// Masters that were elected without having been asked for.
    pub other_masters: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Errors that callers saw.
    pub errors: u64,
}

impl Report for TransferReport {
    fn text(&self) -> String {
        let mut text = String::new();
        for (number, round) in self.rounds.iter().enumerate() {
            let Round { from, to, handed_over_ms, second } = round;
            text.push_str(&format!(
                "{:>3}: replica {from} to {to:<6} another held the lease after {handed_over_ms:.1} ms; {second}\n",
                number + 1
            ));
        }
        let Self { rounds, before, seconds, p99_bound_ms, other_masters, acknowledged, errors, .. } = self;
        text.push_str(&format!(
            "the seconds before    {before}\n\
             the transfers' own    {seconds}\n\
             handed over           p50 {:.1} ms, max {:.1} ms after the request; {other_masters} masters nobody asked for\n\
             acknowledged writes   {acknowledged}, by {} clients\n\
             {} transfers: p99 of the writes in that second {:.1} ms, max {:.1} ms; callers saw {errors} errors (bound: p99 {p99_bound_ms:.0} ms)",
            self.handed_over_p50_ms,
            self.handed_over_max_ms,
            self.clients,
            rounds.len(),
            seconds.p99_ms,
            seconds.max_ms,
        ));
        text
    }
}

/// Runs the command.
pub fn main(options: &TransferOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let (report, last_error) = options.common.within("transfer", |place| measure(options, place, &stop))?;
    print(&report, options.common.json)?;
    let last_error = last_error.unwrap_or_default();
    anyhow::ensure!(report.errors == 0, "callers saw {} errors, the last: {last_error}", report.errors);
    let p99 = report.seconds.p99_ms;
    anyhow::ensure!(
        p99 < report.p99_bound_ms,
        "p99 of the writes in the transfers' seconds was {p99:.1} ms, of {} ms",
        report.p99_bound_ms
    );
    Ok(())
}

/// A write that was acknowledged.
#[derive(Clone, Copy, Debug)]
struct Write {
    due: Instant,
    took: Duration,
}

/// A client that writes its own key by the clock.
struct Writer {
    client: Client,
    key: String,
    /// The last number that was acknowledged.
    last: Option<u64>,
    writes: Vec<Write>,
    errors: u64,
    last_error: Option<String>,
}

impl Writer {
    fn connect(id: u32, endpoints: &[&str], profile: Profile) -> anyhow::Result<Self> {
        Ok(Self {
            client: Client::connect(endpoints, profile.options()).context("a client cannot connect")?,
            key: format!("transfer/{id}"),
            last: None,
            writes: Vec::new(),
            errors: 0,
            last_error: None,
        })
    }

    fn run(&mut self, stopping: &AtomicBool) {
        // Not all at the same moment.
        let mut due = Instant::now() + PACE.mul_f64(fastrand::f64());
        for number in 0_u64.. {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            if stopping.load(Ordering::SeqCst) {
                return;
            }
            match self.client.put(self.key.as_bytes(), &number.to_le_bytes()) {
                Ok(_) => {
                    self.last = Some(number);
                    self.writes.push(Write { due, took: due.elapsed() });
                }
                Err(error) => {
                    self.errors += 1;
                    self.last_error = Some(error.to_string());
                }
            }
            due += PACE;
        }
    }

    /// What was acknowledged last is there; after an error nobody knows what should be.
    fn read_back(&mut self) -> anyhow::Result<()> {
        let found = self.client.get(self.key.as_bytes()).context("reading back")?;
        let wanted = self.last.map(u64::to_le_bytes);
        anyhow::ensure!(
            self.errors > 0 || found.as_ref().map(|found| &found.value[..]) == wanted.as_ref().map(|bytes| &bytes[..]),
            "LOST: {} should be {wanted:?}, and is {found:?}",
            self.key
        );
        Ok(())
    }
}

/// One transfer, as it was asked for and seen.
struct Asked {
    from: u16,
    to: u16,
    at: Instant,
    took: Duration,
}

fn measure(options: &TransferOptions, place: &Place, stop: &Stop) -> anyhow::Result<(TransferReport, Option<String>)> {
    let profile = options.profile;
    let mut cell = TortureCell::start(REPLICAS, place.path().join("cell"), profile.serve_flags(), stop)?;
    let endpoints = cell.endpoints();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut writers: Vec<Writer> =
        (1..=options.clients).map(|id| Writer::connect(id, &endpoints, profile)).collect::<anyhow::Result<_>>()?;
    let epoch_before = epoch(&mut cell)?;
    let stopping = AtomicBool::new(false);
    let asked = std::thread::scope(|scope| {
        for writer in &mut writers {
            scope.spawn(|| writer.run(&stopping));
        }
        let asked = all_rounds(&mut cell, options.rounds);
        stopping.store(true, Ordering::SeqCst);
        asked
    })?;
    let epochs = epoch(&mut cell)?.saturating_sub(epoch_before);
    for writer in &mut writers {
        writer.read_back()?;
    }
    cell.stop()?;

    let writes: Vec<Write> = writers.iter().flat_map(|writer| writer.writes.iter().copied()).collect();
    let from = |at: Instant| move |due: Instant| due >= at && due < at + WINDOW;
    let mut handed_over = Durations::default();
    asked.iter().for_each(|one| handed_over.push(one.took));
    let round = |one: &Asked| Round {
        from: one.from,
        to: one.to,
        handed_over_ms: fractional_ms(one.took),
        second: Latencies::of(&writes, from(one.at)),
    };
    let report = TransferReport {
        profile,
        clients: options.clients,
        rounds: asked.iter().map(round).collect(),
        handed_over_p50_ms: fractional_ms(handed_over.quantile(0.5)),
        handed_over_max_ms: fractional_ms(handed_over.quantile(1.0)),
        before: Latencies::of(&writes, |due| asked.iter().any(|one| from(one.at - WINDOW)(due))),
        seconds: Latencies::of(&writes, |due| asked.iter().any(|one| from(one.at)(due))),
        p99_bound_ms: fractional_ms(P99_MAX),
        other_masters: epochs.saturating_sub(asked.len() as u64),
        acknowledged: writes.len() as u64,
        errors: writers.iter().map(|writer| writer.errors).sum(),
    };
    Ok((report, writers.into_iter().find_map(|writer| writer.last_error)))
}

fn epoch(cell: &mut TortureCell) -> anyhow::Result<u64> {
    let master = cell.master()?;
    Ok(cell.status(master).context("the master does not answer")?.epoch)
}

fn all_rounds(cell: &mut TortureCell, rounds: u32) -> anyhow::Result<Vec<Asked>> {
    std::thread::sleep(WARM_UP_TIME);
    let mut done = Vec::new();
    for round in 1..=rounds {
        std::thread::sleep(WINDOW);
        let asked = hand_over(cell, round as usize).with_context(|| format!("round {round}"))?;
        std::thread::sleep((asked.at + WINDOW).saturating_duration_since(Instant::now()));
        eprintln!("{round}/{rounds}: replica {} to {} in {} ms", asked.from, asked.to, asked.took.as_millis());
        done.push(asked);
    }
    // Those that are on their way belong to the last second.
    std::thread::sleep(P99_MAX);
    Ok(done)
}

/// Asks the master to hand over to one of the others, and waits until that one holds the lease.
fn hand_over(cell: &mut TortureCell, turn: usize) -> anyhow::Result<Asked> {
    let from = cell.master()?;
    let others = cell.others(from);
    let to = others[turn % others.len()];
    let request = serde_json::to_string(&OperatorRequest::Transfer { to })?;
    let at = Instant::now();
    let text = synod_client::operate(&cell.endpoint(from), &request, ASK_TIME_MAX)?;
    let answer: OperatorAnswer = serde_json::from_str(&text).with_context(|| format!("replica {from} said {text}"))?;
    anyhow::ensure!(answer == OperatorAnswer::Accepted, "replica {from} was asked to hand over to {to}: {answer:?}");
    loop {
        if cell.master_among(&[to]).is_some() {
            return Ok(Asked { from, to, at, took: at.elapsed() });
        }
        cell.check()?;
        anyhow::ensure!(
            at.elapsed() < TRANSFER_TIME_MAX,
            "replica {to} was to take over from {from}, and is not the master after {TRANSFER_TIME_MAX:?}; that is {:?}",
            cell.master_among(&cell.ids())
        );
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_writes_that_were_due_then_count() {
        let start = Instant::now();
        let write = |due_ms, took_ms| Write {
            due: start + Duration::from_millis(due_ms),
            took: Duration::from_millis(took_ms),
        };
        let writes = [write(0, 500), write(1000, 1), write(1500, 3), write(1999, 2), write(2000, 700)];
        let second = start + WINDOW;
        let seen = Latencies::of(&writes, |due| due >= second && due < second + WINDOW);
        assert_eq!((seen.writes, seen.p50_ms, seen.p99_ms, seen.max_ms), (3, 2.0, 3.0, 3.0));
    }
}
