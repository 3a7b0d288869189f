//! `synod-torture lease-reads`: a read under the master's lease costs no disk and no network round, shown by counters.
//!
//! First all clients read only, on a cell where nothing else happens, then they write only. All counters of all replicas
//! are read before and after. Reads must have left the log as it was, but for the slots that renew the lease, three in
//! the time that it lasts, and must be counted as lease reads one by one.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use synod_client::Client;
use synod_node::status::Status;

use super::cell::{Common, Place, TortureCell};
use super::profile::Profile;
use super::stop::Stop;
use super::{Report, print};

/// An idle master renews its lease so many times while it lasts.
const RENEWALS_A_LEASE: f64 = 3.0;
/// What the clock's grain, and what was under way when the counters were read, may add to the renewals.
const RENEWALS_MORE: f64 = 3.0;
/// The log writes a slot, and when nothing follows it, that the slot is durable.
const FLUSHES_A_SLOT: u64 = 2;
/// Times that a part is measured again because mastership changed.
const TRIES: u32 = 3;
const REPLICAS: u16 = 3;

/// Read only, then write only, and show by counters that reads under the lease take no disk and no network round
#[derive(Args, Clone, Debug)]
pub struct LeaseReadsOptions {
    /// How long to read, and how long to write, in seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// How many clients, each asking for one thing at a time
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub clients: u32,
    /// The cell's and the clients' settings
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// What replicas have counted, in all or from one moment to another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Slots chosen.
    pub slots: u64,
    /// Records appended to the log.
    pub appended: u64,
    /// Flushes of the log.
    pub flushes: u64,
    /// Commands that took a slot, or part of one.
    pub commands: u64,
    /// Reads answered under the lease.
    pub lease_reads: u64,
    /// Steps of the protocol's machines: each message between replicas makes one at least.
    pub steps: u64,
    /// Entries to the kernel by the hot core.
    pub kernel_entries: u64,
}

impl Figures {
    fn of(status: &Status) -> Self {
        let engine = &status.counters.engine;
        Self {
            slots: status.chosen,
            appended: status.log.appended,
            flushes: engine.flushes,
            commands: engine.commands,
            lease_reads: engine.lease_reads,
            steps: status.protocol.values().sum(),
            kernel_entries: status.counters.kernel_entries,
        }
    }

    fn each(self, other: Self, both: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            slots: both(self.slots, other.slots),
            appended: both(self.appended, other.appended),
            flushes: both(self.flushes, other.flushes),
            commands: both(self.commands, other.commands),
            lease_reads: both(self.lease_reads, other.lease_reads),
            steps: both(self.steps, other.steps),
            kernel_entries: both(self.kernel_entries, other.kernel_entries),
        }
    }
}

/// Some seconds in which all clients did one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// How long, in seconds.
    pub seconds: f64,
    /// What clients were answered.
    pub answered: u64,
    /// The same, each second.
    pub per_s: u64,
    /// What the master counted before.
    pub master_before: Figures,
    /// What it counted after.
    pub master_after: Figures,
    /// By how much it counted more.
    pub master: Figures,
    /// By how much the others together counted more.
    pub others: Figures,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct LeaseReadsReport {
    /// The settings.
    pub profile: Profile,
    /// Clients.
    pub clients: u32,
    /// The lease, in milliseconds.
    pub lease_ms: u64,
    /// The slots that renewing it may have taken in the time of the reads.
    pub renewals_max: u64,
    /// Reads only.
    pub reads: Part,
    /// Writes only.
    pub writes: Part,
}

impl LeaseReadsReport {
    /// Whether reads took nothing: else what they took.
    fn judge(&self) -> anyhow::Result<()> {
        let Part { answered, master, others, .. } = &self.reads;
        anyhow::ensure!(*answered > 0, "void: nothing was read");
        let lease_reads = master.lease_reads + others.lease_reads;
        anyhow::ensure!(
            lease_reads >= *answered,
            "of {answered} reads only {lease_reads} were answered under the lease"
        );
        anyhow::ensure!(
            master.commands == 0 && others.commands == 0,
            "{} commands took a slot while clients only read",
            master.commands
        );
        anyhow::ensure!(
            master.slots <= self.renewals_max,
            "{} slots were chosen while clients only read; renewing the lease takes {} at most",
            master.slots,
            self.renewals_max
        );
        let flushes_max = FLUSHES_A_SLOT * self.renewals_max;
        anyhow::ensure!(
            master.flushes <= flushes_max,
            "the master's log was flushed {} times while clients only read; renewing the lease takes {flushes_max} at most",
            master.flushes
        );
        Ok(())
    }
}

impl Report for LeaseReadsReport {
    fn text(&self) -> String {
        let mut text = format!("{:<36}{:>14}{:>14}\n", "", "reads only", "writes only");
        let mut line = |name: &str, of: &dyn Fn(&Part) -> u64| {
            text.push_str(&format!("{name:<36}{:>14}{:>14}\n", of(&self.reads), of(&self.writes)));
        };
        line("answered", &|part| part.answered);
        line("answered a second", &|part| part.per_s);
        line("lease_reads", &|part| part.master.lease_reads + part.others.lease_reads);
        line("commands that took a slot", &|part| part.master.commands);
        line("slots chosen", &|part| part.master.slots);
        line("  counter before", &|part| part.master_before.slots);
        line("  counter after", &|part| part.master_after.slots);
        line("the master's log.appended", &|part| part.master.appended);
        line("the master's flushes", &|part| part.master.flushes);
        line("  counter before", &|part| part.master_before.flushes);
        line("  counter after", &|part| part.master_after.flushes);
        line("the master's kernel_entries", &|part| part.master.kernel_entries);
        line("the others' flushes", &|part| part.others.flushes);
        line("the others' protocol steps", &|part| part.others.steps);
        line("the others' kernel_entries", &|part| part.others.kernel_entries);
        let Self { reads, writes, lease_ms, renewals_max, clients, .. } = self;
        text.push_str(&format!(
            "{clients} clients, a lease of {lease_ms} ms: renewing it takes {renewals_max} slots at most in {:.1} s\n\
             {} reads/s beside {} writes/s; {} reads took {} slots and {} flushes, those of the lease",
            reads.seconds, reads.per_s, writes.per_s, reads.answered, reads.master.slots, reads.master.flushes,
        ));
        text
    }
}

/// Runs the command.
pub fn main(options: &LeaseReadsOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    options.common.within("lease-reads", |place| {
        let report = measure(options, place, &stop)?;
        print(&report, options.common.json)?;
        report.judge()
    })
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doing {
    Reads,
    Writes,
}

/// A client with a key of its own.
struct Caller {
    client: Client,
    key: String,
    value: u64,
}

impl Caller {
    /// Does one thing again and again until it is told to stop; says how often.
    fn run(&mut self, doing: Doing, stopping: &AtomicBool) -> anyhow::Result<u64> {
        let mut done = 0;
        while !stopping.load(Ordering::SeqCst) {
            match doing {
                Doing::Reads => self.read()?,
                Doing::Writes => self.write()?,
            }
            done += 1;
        }
        Ok(done)
    }

    fn read(&mut self) -> anyhow::Result<()> {
        let found = self.client.get(self.key.as_bytes()).context("a read")?;
        let value = found.as_ref().map(|found| &found.value[..]);
        anyhow::ensure!(value == Some(&self.value.to_le_bytes()), "STALE: {} was read as {value:?}", self.key);
        Ok(())
    }

    fn write(&mut self) -> anyhow::Result<()> {
        self.value += 1;
        self.client.put(self.key.as_bytes(), &self.value.to_le_bytes()).context("a write")?;
        Ok(())
    }
}

fn measure(options: &LeaseReadsOptions, place: &Place, stop: &Stop) -> anyhow::Result<LeaseReadsReport> {
    let profile = options.profile;
    let mut cell = TortureCell::start(REPLICAS, place.path().join("cell"), profile.serve_flags(), stop)?;
    let endpoints = cell.endpoints();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut callers = Vec::new();
    for id in 1..=options.clients {
        let client = Client::connect(&endpoints, profile.options()).context("a client cannot connect")?;
        let mut caller = Caller { client, key: format!("lease-reads/{id}"), value: 0 };
        // It has its session then, and its connection to the master.
        caller.write()?;
        callers.push(caller);
    }
    cell.wait_until_alike()?;
    let mut part = |doing| one_part(&mut cell, &mut callers, Duration::from_secs(options.seconds), doing);
    let reads = part(Doing::Reads)?;
    let writes = part(Doing::Writes)?;
    cell.stop()?;
    let lease = profile.lease();
    let renewals = RENEWALS_A_LEASE * reads.seconds / lease.as_secs_f64();
    Ok(LeaseReadsReport {
        profile,
        clients: options.clients,
        lease_ms: super::pulse::milliseconds(lease),
        renewals_max: (renewals + RENEWALS_MORE).ceil() as u64,
        reads,
        writes,
    })
}

/// Measures until mastership has not changed meanwhile: else the counters of two masters are mixed.
fn one_part(cell: &mut TortureCell, callers: &mut [Caller], time: Duration, doing: Doing) -> anyhow::Result<Part> {
    for _ in 0..TRIES {
        let master = cell.master()?;
        let start = Instant::now();
        let before = statuses(cell)?;
        let stopping = AtomicBool::new(false);
        let done = std::thread::scope(|scope| {
            let running: Vec<_> =
                callers.iter_mut().map(|caller| scope.spawn(|| caller.run(doing, &stopping))).collect();
            std::thread::sleep(time);
            stopping.store(true, Ordering::SeqCst);
            let done = running.into_iter().map(|caller| caller.join().expect("a caller returns its error"));
            done.collect::<Vec<_>>().into_iter().sum::<anyhow::Result<u64>>()
        });
        let after = statuses(cell)?;
        let (seconds, answered) = (start.elapsed().as_secs_f64(), done?);
        let is_master = |status: &Status| status.replica == master && status.is_master;
        let same = before.iter().chain(&after).filter(|status| is_master(status)).count() == 2
            && before.iter().zip(&after).all(|(before, after)| before.epoch == after.epoch);
        if !same {
            eprintln!("mastership changed while clients did {doing:?} only: once more");
            continue;
        }
        let mut part = Part {
            seconds,
            answered,
            per_s: (answered as f64 / seconds) as u64,
            master_before: Figures::default(),
            master_after: Figures::default(),
            master: Figures::default(),
            others: Figures::default(),
        };
        for (before, after) in before.iter().zip(&after) {
            let (figures_before, figures_after) = (Figures::of(before), Figures::of(after));
            let more = figures_after.each(figures_before, u64::saturating_sub);
            if before.replica == master {
                (part.master_before, part.master_after, part.master) = (figures_before, figures_after, more);
            } else {
                part.others = part.others.each(more, std::ops::Add::add);
            }
        }
        return Ok(part);
    }
    anyhow::bail!("void: mastership changed in each of {TRIES} tries")
}

fn statuses(cell: &TortureCell) -> anyhow::Result<Vec<Status>> {
    cell.ids().into_iter().map(|id| cell.status(id).with_context(|| format!("replica {id} does not answer"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(answered: u64, master: Figures) -> Part {
        let others = Figures::default();
        Part { seconds: 1.0, answered, per_s: answered, master_before: others, master_after: master, master, others }
    }

    #[test]
    fn reads_that_took_slots_are_seen() {
        let fine = Figures { slots: 3, flushes: 6, lease_reads: 100, ..Figures::default() };
        let report = |reads| LeaseReadsReport {
            profile: Profile::Default,
            clients: 1,
            lease_ms: 1000,
            renewals_max: 6,
            reads: part(100, reads),
            writes: part(10, Figures::default()),
        };
        report(fine).judge().unwrap();
        for (figures, text) in [
            (Figures { lease_reads: 99, ..fine }, "only 99 were answered under the lease"),
            (Figures { commands: 1, ..fine }, "1 commands took a slot"),
            (Figures { slots: 7, ..fine }, "7 slots were chosen"),
            (Figures { flushes: 13, ..fine }, "flushed 13 times"),
        ] {
            let error = report(figures).judge().unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }
}
