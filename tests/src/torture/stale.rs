//! `synod-torture stale`: a master that was paused for longer than its mastership lasts, and is back, answers no stale
//! read.
//!
//! The master is paused under load past its lease, and until the others have elected one of them and acknowledged newer
//! values of every key that is watched. Connections to it that were there before, and that follow no redirect, then ask for these keys:
//! first while it is still paused, so that the questions are the first thing that it finds, then again and again. What
//! it answers itself may not be older than what had been acknowledged when it was asked. And it may answer itself only
//! when it was elected again meanwhile: the lease from before its pause has run out.
//!
//! All the time every replica, the paused one too, is asked for linearizable reads of the watched keys (rule P16): what it answers, from its
//! own database, may not be older than what had been acknowledged when it was asked either.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use synod_api::{Answer, Consistency, Refusal};
use synod_client::Client;

use super::cell::{Common, Place, TortureCell};
use super::client::{LoadClient, Shared, under_load};
use super::profile::Profile;
use super::pulse::milliseconds;
use super::stop::Stop;
use super::wire::{Reply, Wire};
use super::{Report, print};

const REPLICAS: u16 = 3;
/// Clients with a load of their own, whose reads are checked too.
const CLIENTS: u32 = 3;
/// Keys that are written all the time, and asked for.
const WATCHED: usize = 4;
/// So many writes to these are acknowledged while the master is away: several to each.
const NEWER_WRITES: u64 = 40;
/// A pause lasts so much of the lease at least; its holder's own clock counts nine tenths of it.
const LEASES: f64 = 1.1;
/// Load before a pause, in milliseconds.
const LOAD_TIME: std::ops::RangeInclusive<u64> = 50..=250;
/// The questions are in its socket before it wakes.
const BEFORE_IT_WAKES: Duration = Duration::from_millis(10);
/// It is asked for so long after it woke.
const ASKED_FOR: Duration = Duration::from_millis(200);
/// One answer takes no longer, or counts as none.
const PATIENCE: Duration = Duration::from_secs(2);

/// Pause the master until others have written, resume it, and ask it: no answer may be stale
#[derive(Args, Clone, Debug)]
pub struct StaleOptions {
    /// How often
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub pauses: u32,
    /// The cell's and the clients' settings
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// Let the old master answer as it did before its pause; the command must see that this is stale
    #[arg(long)]
    pub plant: bool,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// What became of the questions to the old master.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Questions {
    /// Asked.
    pub asked: u64,
    /// Answered by itself though not elected again, so under the lease from before its pause. Not stale, but no such
    /// lease may be left: any number but 0 ends the command before there is a report.
    pub answered_by_old_lease: u64,
    /// Answered by itself when it had been elected again, and not stale.
    pub answered: u64,
    /// It named another.
    pub redirected: u64,
    /// It said that it cannot answer, and named nobody.
    pub refused: u64,
    /// It closed the connection.
    pub closed: u64,
    /// It said nothing for seconds.
    pub silent: u64,
}

impl Questions {
    fn add(&mut self, other: Questions) {
        self.asked += other.asked;
        self.answered_by_old_lease += other.answered_by_old_lease;
        self.answered += other.answered;
        self.redirected += other.redirected;
        self.refused += other.refused;
        self.closed += other.closed;
        self.silent += other.silent;
    }

    /// It was not elected again: what it answered itself, it did under the lease from before.
    fn by_old_lease(&mut self) {
        self.answered_by_old_lease += std::mem::take(&mut self.answered);
    }

    /// Judges a reply to a question that was asked when `floor` was acknowledged.
    fn take(&mut self, key: usize, floor: u64, reply: &Reply) -> anyhow::Result<()> {
        self.asked += 1;
        match reply {
            Reply::Answer(Answer::Value { modify_revision, .. }) => {
                anyhow::ensure!(
                    modify_revision.0 >= floor,
                    "STALE: {} was read at revision {}, though {floor} was acknowledged before",
                    watched(key),
                    modify_revision.0
                );
                self.answered += 1;
            }
            Reply::Answer(Answer::Refused(Refusal::NotMaster { master: Some(_) })) => self.redirected += 1,
            Reply::Answer(Answer::Refused(_)) => self.refused += 1,
            Reply::Answer(other) => anyhow::bail!("STALE: {} was read as {other:?}", watched(key)),
            Reply::Closed => self.closed += 1,
            Reply::Silence => self.silent += 1,
        }
        Ok(())
    }
}

/// What was done, and seen.
#[derive(Clone, Debug, Serialize)]
pub struct StaleReport {
    /// The settings.
    pub profile: Profile,
    /// The lease, in milliseconds.
    pub lease_ms: u64,
    /// Pauses.
    pub pauses: u32,
    /// The shortest of them, in milliseconds: longer than the lease.
    pub pause_min_ms: u64,
    /// The longest.
    pub pause_max_ms: u64,
    /// Those that it found when it woke.
    pub first: Questions,
    /// Those that came after.
    pub later: Questions,
    /// Writes acknowledged to the watched keys.
    pub writes: u64,
    /// Linearizable reads that were answered by the replica that was asked, each checked.
    pub replica_reads: u64,
    /// And those that none answered in time.
    pub replica_reads_failed: u64,
    /// Reads of the clients under load, each checked.
    pub load_reads: u64,
    /// Stale answers. Any number but 0 ends the command before there is a report.
    pub stale: u64,
}

impl Report for StaleReport {
    fn text(&self) -> String {
        let line = |questions: &Questions| {
            let Questions { asked, answered_by_old_lease, answered, redirected, refused, closed, silent } = questions;
            format!(
                "{asked} asked: {answered_by_old_lease} answered under the old lease, {answered} elected again, \
                 {redirected} redirected, {refused} refused, {closed} closed, {silent} silent"
            )
        };
        format!(
            "pauses                {} of {} to {} ms; the lease: {} ms\n\
             asked as it woke      {}\n\
             asked after           {}\n\
             watched writes        {}\n\
             at every replica      {} linearizable reads, each checked; {} not answered in time\n\
             reads under load      {}, each checked\n\
             {} pauses, {} reads of the old master: {} stale",
            self.pauses,
            self.pause_min_ms,
            self.pause_max_ms,
            self.lease_ms,
            line(&self.first),
            line(&self.later),
            self.writes,
            self.replica_reads,
            self.replica_reads_failed,
            self.load_reads,
            self.pauses,
            self.first.asked + self.later.asked,
            self.stale
        )
    }
}

/// Runs the command.
pub fn main(options: &StaleOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let result = options.common.within("stale", |place| run(options, place, &stop));
    match (result, options.plant) {
        (Ok(report), false) => print(&report, options.common.json),
        (Ok(_), true) => anyhow::bail!("the planted stale read was not seen"),
        (Err(error), true) if format!("{error:#}").contains("STALE") => {
            println!("planted: caught: {error:#}");
            Ok(())
        }
        (Err(error), _) => Err(error),
    }
}

/// What the writer of the watched keys shares with those who ask.
#[derive(Default)]
struct Watch {
    /// By key: the highest revision that was acknowledged.
    floors: [AtomicU64; WATCHED],
    writes: AtomicU64,
    reads: AtomicU64,
    reads_failed: AtomicU64,
    stopping: AtomicBool,
}

fn watched(key: usize) -> String {
    format!("stale/{key}")
}

impl Watch {
    /// Writes until it is told to stop.
    fn write(&self, client: &mut Client) -> anyhow::Result<()> {
        while !self.stopping.load(Ordering::SeqCst) {
            let number = self.writes.load(Ordering::SeqCst);
            let key = number as usize % WATCHED;
            let revision = client.put(watched(key).as_bytes(), &number.to_le_bytes()).context("a watched write")?;
            self.floors[key].fetch_max(revision.0, Ordering::SeqCst);
            self.writes.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Reads at one replica until it is told to stop.
    fn read(&self, client: &mut Client) -> anyhow::Result<()> {
        for key in (0..WATCHED).cycle() {
            if self.stopping.load(Ordering::SeqCst) {
                break;
            }
            let floor = self.floors[key].load(Ordering::SeqCst);
            match client.get_at(watched(key).as_bytes(), Consistency::Linearizable) {
                Ok(seen) => {
                    let modified = seen.found.map_or(0, |found| found.modify_revision.0);
                    anyhow::ensure!(
                        modified >= floor,
                        "STALE: a replica read {} at revision {modified}, though {floor} was acknowledged before",
                        watched(key)
                    );
                    self.reads.fetch_add(1, Ordering::SeqCst);
                }
                Err(_) => drop(self.reads_failed.fetch_add(1, Ordering::SeqCst)),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Asks the replica at the other end of the wire, from before it wakes until a while after.
    fn ask(&self, wire: &mut Wire, first_key: usize, woken: &AtomicBool) -> anyhow::Result<[Questions; 2]> {
        let [mut first, mut later] = [Questions::default(); 2];
        let mut until = None;
        for number in 0.. {
            let key = (first_key + number) % WATCHED;
            let floor = self.floors[key].load(Ordering::SeqCst);
            let reply = if wire.ask(watched(key).as_bytes()) { wire.reply(PATIENCE)? } else { Reply::Closed };
            if number == 0 { &mut first } else { &mut later }.take(key, floor, &reply)?;
            if woken.load(Ordering::SeqCst) && until.is_none() {
                until = Some(Instant::now() + ASKED_FOR);
            }
            if reply == Reply::Closed || until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok([first, later])
    }
}

fn run(options: &StaleOptions, place: &Place, stop: &Stop) -> anyhow::Result<StaleReport> {
    let profile = options.profile;
    let mut cell = TortureCell::start(REPLICAS, place.path().join("cell"), profile.serve_flags(), stop)?;
    let endpoints = cell.endpoints();
    let mut clients = (1..=CLIENTS)
        .map(|id| LoadClient::connect(id, &endpoints, profile.options(), 0))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let names: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut writer = Client::connect(&names, profile.options()).context("the writer cannot connect")?;
    let readers =
        names.iter().map(|name| Client::connect(&[*name], profile.options()).context("a reader cannot connect"));
    let mut readers = readers.collect::<anyhow::Result<Vec<_>>>()?;
    let (shared, watch) = (Shared::default(), Watch::default());
    let mut rounds = Rounds { options, pauses: Vec::new(), first: Questions::default(), later: Questions::default() };
    let (acted, ran) = under_load(&mut clients, &shared, || {
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| watch.write(&mut writer));
            let reading: Vec<_> = readers
                .iter_mut()
                .map(|reader| scope.spawn(|| watch.read(reader).inspect_err(|_| shared.stop())))
                .collect();
            let acted = rounds.all(&mut cell, &watch, &shared);
            watch.stopping.store(true, Ordering::SeqCst);
            // Why it stopped says more than that it did.
            let wrote = writing.join().expect("the writer returns its error");
            let mut read = reading.into_iter().map(|reader| reader.join().expect("a reader returns its error"));
            read.try_for_each(|read| read).and(wrote).and(acted)
        })
    });
    ran?;
    acted?;
    for client in &mut clients {
        client.read_back(&endpoints, 0)?;
    }
    cell.stop()?;
    Ok(StaleReport {
        profile,
        lease_ms: milliseconds(profile.lease()),
        pauses: options.pauses,
        pause_min_ms: rounds.pauses.iter().min().copied().unwrap_or_default(),
        pause_max_ms: rounds.pauses.iter().max().copied().unwrap_or_default(),
        first: rounds.first,
        later: rounds.later,
        writes: watch.writes.load(Ordering::SeqCst),
        replica_reads: watch.reads.load(Ordering::SeqCst),
        replica_reads_failed: watch.reads_failed.load(Ordering::SeqCst),
        load_reads: clients.iter().map(|client| client.tally().reads).sum(),
        stale: 0,
    })
}

struct Rounds<'a> {
    options: &'a StaleOptions,
    /// In milliseconds.
    pauses: Vec<u64>,
    first: Questions,
    later: Questions,
}

impl Rounds<'_> {
    fn all(&mut self, cell: &mut TortureCell, watch: &Watch, shared: &Shared) -> anyhow::Result<()> {
        cell.wait_for("the watched keys are not written", &cell.ids(), |_| {
            watch.floors.iter().all(|floor| floor.load(Ordering::SeqCst) > 0).then_some(())
        })?;
        for round in 1..=self.options.pauses {
            if shared.is_stopping() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(fastrand::u64(LOAD_TIME)));
            self.one(cell, watch).with_context(|| format!("pause {round}"))?;
            if round.is_multiple_of(20) {
                let (pauses, answered) = (self.options.pauses, self.first.answered + self.later.answered);
                eprintln!("{round}/{pauses} pauses, {answered} answered by the old master itself, 0 stale");
            }
        }
        Ok(())
    }

    fn one(&mut self, cell: &mut TortureCell, watch: &Watch) -> anyhow::Result<()> {
        let master = cell.master()?;
        let endpoint = cell.endpoint(master);
        let wires = (0..WATCHED).map(|key| {
            let mut wire = Wire::dial(&endpoint)?;
            // It has answered on this connection before.
            wire.ask(watched(key).as_bytes());
            let reply = wire.reply(PATIENCE)?;
            anyhow::Ok((wire, reply))
        });
        let wires: Vec<(Wire, Reply)> = wires.collect::<anyhow::Result<_>>()?;
        let (mut wires, before): (Vec<Wire>, Vec<Reply>) = wires.into_iter().unzip();
        let others = cell.others(master);
        let won = |cell: &mut TortureCell| {
            cell.wait_for("the old master does not answer", &[master], |cell| {
                cell.status(master).map(|status| status.counters.engine.elections_won)
            })
        };
        let won_before = won(cell)?;
        cell.pause(master)?;
        let paused = Instant::now();
        let written =
            cell.wait_for("the others elect nobody", &others, |cell| cell.master_among(&others)).and_then(|_| {
                let before = watch.writes.load(Ordering::SeqCst);
                cell.wait_for("the new master acknowledges nothing", &others, |_| {
                    (watch.writes.load(Ordering::SeqCst) >= before + NEWER_WRITES).then_some(())
                })
            });
        std::thread::sleep(self.options.profile.lease().mul_f64(LEASES).saturating_sub(paused.elapsed()));
        let woken = AtomicBool::new(false);
        let asked = std::thread::scope(|scope| {
            let woken = &woken;
            let asking: Vec<_> = wires
                .iter_mut()
                .enumerate()
                .map(|(key, wire)| scope.spawn(move || watch.ask(wire, key, woken)))
                .collect();
            std::thread::sleep(BEFORE_IT_WAKES);
            let resumed = cell.resume(master);
            self.pauses.push(milliseconds(paused.elapsed()));
            woken.store(true, Ordering::SeqCst);
            let asked: Vec<_> = asking.into_iter().map(|asking| asking.join().expect("it returns its error")).collect();
            resumed.and_then(|()| asked.into_iter().collect::<anyhow::Result<Vec<_>>>())
        });
        written?;
        if self.options.plant {
            for (key, reply) in before.iter().enumerate() {
                self.first.take(key, watch.floors[key].load(Ordering::SeqCst), reply)?;
            }
        }
        let was_elected_again = won(cell)? > won_before;
        for [mut first, mut later] in asked? {
            // There was no time for an election yet.
            first.by_old_lease();
            if !was_elected_again {
                later.by_old_lease();
            }
            let old = first.answered_by_old_lease + later.answered_by_old_lease;
            anyhow::ensure!(old == 0, "{old} reads were answered under a lease that had run out");
            self.first.add(first);
            self.later.add(later);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use synod_api::{Revision, Version};

    use super::*;

    #[test]
    fn an_older_answer_is_stale_and_a_refusal_is_not() {
        let value = |revision| {
            Reply::Answer(Answer::Value {
                value: Default::default(),
                create_revision: Revision(1),
                modify_revision: Revision(revision),
                version: Version(1),
            })
        };
        let mut questions = Questions::default();
        questions.take(0, 7, &value(7)).unwrap();
        questions.take(0, 7, &value(8)).unwrap();
        questions.take(0, 7, &Reply::Answer(Answer::Refused(Refusal::Unknown))).unwrap();
        let redirect = Refusal::NotMaster { master: Some("a".to_owned()) };
        questions.take(0, 7, &Reply::Answer(Answer::Refused(redirect))).unwrap();
        questions.take(0, 7, &Reply::Closed).unwrap();
        questions.take(0, 7, &Reply::Silence).unwrap();
        let right = Questions {
            asked: 6,
            answered_by_old_lease: 0,
            answered: 2,
            redirected: 1,
            refused: 1,
            closed: 1,
            silent: 1,
        };
        assert_eq!(questions, right);
        for stale in [value(6), Reply::Answer(Answer::Absent)] {
            let error = questions.take(0, 7, &stale).unwrap_err();
            assert!(error.to_string().contains("STALE"), "{error}");
        }
    }
}
