//! `synod-torture kill`: replicas are killed under load, and every acknowledged write must be there, once.
//!
//! A round: load, SIGKILL to one replica (the master more often than not), to a majority or to all, a while without
//! them, their restart, and load until writes flow again. Then the load rests and everything of the round is read back.
//! At the end the whole cell is killed once more, and all of it is read back. (`faults.md` 2.2.)

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use synod_client::Options;

use super::cell::{Common, Place, TortureCell};
use super::client::{LoadClient, Shared, Tally, read_back_counters, under_load};
use super::history::Revisions;
use super::pulse::{Durations, milliseconds};
use super::stop::Stop;
use super::{Report, print};

/// Every so many rounds the whole cell is killed.
const WHOLE_CELL_EVERY: u32 = 7;
/// Every so many rounds a majority is.
const MAJORITY_EVERY: u32 = 5;
/// Of a hundred kills of one replica, so many hit the master.
const MASTER_PERCENT: u32 = 60;
/// Load before a kill.
const LOAD_TIME: std::ops::RangeInclusive<u64> = 200..=700;
/// Without the killed ones: shorter and longer than an election takes.
const AWAY_TIME: std::ops::RangeInclusive<u64> = 0..=2_000;
/// Writes flow again once so many were acknowledged after the last restart.
const WRITES_AGAIN: u64 = 50;
/// Old files that are read back after each round, besides the new ones.
const OLD_FILES: usize = 200;
/// Every other client gives up early, so that there are outcomes that nobody knows.
const IMPATIENT_DEADLINE: Duration = Duration::from_millis(400);
/// Small segments, so that kills hit the change from one to the next too; and a log that does not fill up.
const SERVE_FLAGS: [&str; 4] = ["--segment-mb", "4", "--log-mb-max", "16384"];

/// Kill replicas under load; nothing acknowledged may be lost or happen twice.
#[derive(Args, Clone, Debug)]
pub struct KillOptions {
    /// How many rounds
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How many replicas the cell has
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub replicas: u16,
    /// How many clients put load on it
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub clients: u32,
    /// What decides who is killed and when [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// What was done, and checked.
#[derive(Clone, Debug, Serialize)]
pub struct KillReport {
    /// What decided who was killed.
    pub seed: u64,
    /// Rounds.
    pub rounds: u32,
    /// Replicas killed.
    pub kills: u64,
    /// Rounds in which all were killed at once, the last one after the rounds included.
    pub whole_cell_kills: u64,
    /// Rounds in which a majority was, but not all.
    pub majority_kills: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Of these, increments of shared counters by compare-and-swap.
    pub increments: u64,
    /// Of these, files created.
    pub files: u64,
    /// Writes whose outcome nobody knows.
    pub unknown: u64,
    /// Writes that did not happen.
    pub did_not_happen: u64,
    /// Swaps that found another value.
    pub unequal: u64,
    /// Reads under load, each checked.
    pub reads: u64,
    /// Reads after rounds, each checked.
    pub read_backs: u64,
    /// Milliseconds without an acknowledged write, each round.
    pub without_service_ms: Vec<u64>,
    /// The median of these.
    pub without_service_p50_ms: u64,
    /// The longest.
    pub without_service_max_ms: u64,
    /// The longest that a restarted replica took to answer, in milliseconds.
    pub comes_back_max_ms: u64,
    /// Slots chosen.
    pub slots: u64,
    /// Acknowledged writes that were lost. Any number but 0 ends the command before there is a report.
    pub lost: u64,
}

impl Report for KillReport {
    fn text(&self) -> String {
        format!(
            "seed                  {}\n\
             rounds                {}\n\
             kills                 {} ({} times the whole cell, {} times a majority)\n\
             acknowledged writes   {} ({} increments by compare-and-swap, {} files)\n\
             unknown               {}\n\
             did not happen        {} by error, {} swaps found another value\n\
             reads checked         {} under load, {} read back\n\
             revisions             all unique, none out of order, {} slots chosen\n\
             without service       p50 {} ms, max {} ms\n\
             a replica came back   within {} ms\n\
             {} rounds, {} kills, {} acknowledged writes: {} lost",
            self.seed,
            self.rounds,
            self.kills,
            self.whole_cell_kills,
            self.majority_kills,
            self.acknowledged,
            self.increments,
            self.files,
            self.unknown,
            self.did_not_happen,
            self.unequal,
            self.reads,
            self.read_backs,
            self.slots,
            self.without_service_p50_ms,
            self.without_service_max_ms,
            self.comes_back_max_ms,
            self.rounds,
            self.kills,
            self.acknowledged,
            self.lost
        )
    }
}

/// Runs the command.
pub fn main(options: &KillOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("synod-torture: seed {seed}");
    let run = |place: &Place| Torture::start(options, seed, place, &stop)?.all();
    let report = options.common.within("kill", run).with_context(|| format!("seed {seed}"))?;
    print(&report, options.common.json)
}

struct Torture {
    options: KillOptions,
    seed: u64,
    random: fastrand::Rng,
    // Before the place that its directories are in, which outlives this.
    cell: TortureCell,
    clients: Vec<LoadClient>,
    shared: Arc<Shared>,
    revisions: Revisions,
    kills: u64,
    whole_cell_kills: u64,
    majority_kills: u64,
    read_backs: u64,
    without_service: Durations,
    comes_back: Durations,
}

impl Torture {
    fn start(options: &KillOptions, seed: u64, place: &Place, stop: &Stop) -> anyhow::Result<Self> {
        let cell = TortureCell::start(options.replicas, place.path().join("cell"), &SERVE_FLAGS, stop)?;
        let endpoints = cell.endpoints();
        let client = |id: u32| {
            let patient = Options::default();
            let deadline = if id.is_multiple_of(2) { IMPATIENT_DEADLINE } else { patient.deadline };
            LoadClient::connect(id, &endpoints, Options { deadline, ..patient }, seed)
        };
        Ok(Self {
            options: options.clone(),
            seed,
            random: fastrand::Rng::with_seed(seed),
            clients: (1..=options.clients).map(client).collect::<anyhow::Result<_>>()?,
            cell,
            shared: Arc::default(),
            revisions: Revisions::default(),
            kills: 0,
            whole_cell_kills: 0,
            majority_kills: 0,
            read_backs: 0,
            without_service: Durations::default(),
            comes_back: Durations::default(),
        })
    }

    fn all(&mut self) -> anyhow::Result<KillReport> {
        for round in 1..=self.options.rounds {
            let files_before: Vec<usize> = self.clients.iter().map(LoadClient::files).collect();
            let what = self.round(round).with_context(|| format!("round {round}"))?;
            let files_from: Vec<usize> = files_before.iter().map(|files| files.saturating_sub(OLD_FILES)).collect();
            self.read_back(&files_from).with_context(|| format!("after round {round}: {what}"))?;
            let tally = self.tally();
            eprintln!(
                "round {round}/{}: {what}, {} ms without service; {} acknowledged, {} unknown so far, 0 lost",
                self.options.rounds,
                self.without_service.milliseconds().last().copied().unwrap_or_default(),
                tally.acknowledged,
                tally.unknown,
            );
        }
        // Nothing may live in memory alone.
        let all = self.cell.ids();
        self.kill(&all)?;
        self.bring_back(&all)?;
        let slots = self.read_back(&vec![0; self.clients.len()]).context("after the last kill of the whole cell")?;
        self.cell.stop()?;
        Ok(self.report(slots))
    }

    /// Load, kills and restarts; says who was killed.
    fn round(&mut self, round: u32) -> anyhow::Result<String> {
        // The clients are away while they run, so that the rest of this is free to act on the cell.
        let mut clients = std::mem::take(&mut self.clients);
        let shared = Arc::clone(&self.shared);
        let (acted, ran) = under_load(&mut clients, &shared, || self.kill_and_bring_back(round, &shared));
        self.clients = clients;
        // What a client found says more than that the round was cut short.
        ran?;
        acted
    }

    fn kill_and_bring_back(&mut self, round: u32, shared: &Shared) -> anyhow::Result<String> {
        std::thread::sleep(Duration::from_millis(self.random.u64(LOAD_TIME)));
        let master = self.cell.master()?;
        let mut victims = self.cell.ids();
        self.random.shuffle(&mut victims);
        let majority = victims.len() / 2 + 1;
        let what = if round.is_multiple_of(WHOLE_CELL_EVERY) || victims.len() == 1 {
            "killed the whole cell".to_owned()
        } else if round.is_multiple_of(MAJORITY_EVERY) {
            victims.truncate(majority);
            format!("killed replicas {victims:?}")
        } else if self.random.u32(..100) < MASTER_PERCENT {
            victims = vec![master];
            format!("killed the master, replica {master}")
        } else {
            victims.truncate(1);
            let master = if victims == [master] { ", the master" } else { "" };
            format!("killed replica {}{master}", victims[0])
        };
        shared.pulse.reset();
        self.kill(&victims)?;
        std::thread::sleep(Duration::from_millis(self.random.u64(AWAY_TIME)));
        self.bring_back(&victims)?;
        let (_, writes) = shared.pulse.longest();
        let ids = self.cell.ids();
        self.cell.wait_for("writes do not flow again", &ids, |_| {
            (shared.is_stopping() || shared.pulse.longest().1 >= writes + WRITES_AGAIN).then_some(())
        })?;
        self.without_service.push(shared.pulse.longest().0);
        Ok(what)
    }

    fn kill(&mut self, victims: &[u16]) -> anyhow::Result<()> {
        let replicas = self.cell.ids().len();
        self.kills += victims.len() as u64;
        self.whole_cell_kills += u64::from(victims.len() == replicas);
        self.majority_kills += u64::from((replicas / 2 + 1..replicas).contains(&victims.len()));
        self.cell.kill(victims)
    }

    fn bring_back(&mut self, victims: &[u16]) -> anyhow::Result<()> {
        let took = self.cell.bring_back(victims)?;
        self.comes_back.push(took);
        Ok(())
    }

    /// Reads back what clients were told, each its files from these on; says how many slots are chosen.
    fn read_back(&mut self, files_from: &[usize]) -> anyhow::Result<u64> {
        for client in &mut self.clients {
            client.take_revisions().into_iter().try_for_each(|revision| self.revisions.take(revision))?;
        }
        let endpoints = self.cell.endpoints();
        let endpoints = &endpoints;
        let read: anyhow::Result<Vec<u64>> = std::thread::scope(|scope| {
            let reading: Vec<_> = self
                .clients
                .iter_mut()
                .zip(files_from)
                .map(|(client, &files)| scope.spawn(move || client.read_back(endpoints, files)))
                .collect();
            reading.into_iter().map(|reading| reading.join().expect("a client returns its violation")).collect()
        });
        self.read_backs += read?.iter().sum::<u64>() + read_back_counters(endpoints, &self.clients)?;
        let status = self.cell.wait_until_alike()?;
        Ok(status.chosen)
    }

    fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.clients.iter().for_each(|client| tally.add(client.tally()));
        tally
    }

    fn report(&self, slots: u64) -> KillReport {
        let tally = self.tally();
        KillReport {
            seed: self.seed,
            rounds: self.options.rounds,
            kills: self.kills,
            whole_cell_kills: self.whole_cell_kills,
            majority_kills: self.majority_kills,
            acknowledged: tally.acknowledged,
            increments: tally.increments,
            files: tally.files,
            unknown: tally.unknown,
            did_not_happen: tally.did_not_happen,
            unequal: tally.unequal,
            reads: tally.reads,
            read_backs: self.read_backs,
            without_service_ms: self.without_service.milliseconds(),
            without_service_p50_ms: milliseconds(self.without_service.quantile(0.5)),
            without_service_max_ms: milliseconds(self.without_service.quantile(1.0)),
            comes_back_max_ms: milliseconds(self.comes_back.quantile(1.0)),
            slots,
            lost: 0,
        }
    }
}
