//! `synod-torture kill`: replicas are killed under load, and every acknowledged write must be there, once.
//!
//! A round: load, SIGKILL to one replica (the master more often than not), to a majority or to all, a while without
//! them, their restart, and load until writes flow again. Then the load rests and everything of the round is read back.
//! At the end the whole cell is killed once more, and all of it is read back. (`faults.md` 2.2.)

use std::time::Duration;

use super::cell::{Common, Place, TortureCell};
use super::client::Shared;
use super::load::Load;
use super::pulse::{Durations, milliseconds};
use super::stop::Stop;
use super::{Report, print};
use anyhow::Context;
use clap::Args;
use serde::Serialize;

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
    load: Load,
    field: Field,
}

/// All but the load, so that it can be acted on while the clients are busy.
struct Field {
    random: fastrand::Rng,
    // Before the place that its directories are in, which outlives this.
    cell: TortureCell,
    kills: u64,
    whole_cell_kills: u64,
    majority_kills: u64,
    without_service: Durations,
    comes_back: Durations,
}

impl Torture {
    fn start(options: &KillOptions, seed: u64, place: &Place, stop: &Stop) -> anyhow::Result<Self> {
        let cell = TortureCell::start(options.replicas, place.path().join("cell"), &SERVE_FLAGS, stop)?;
        let load = Load::connect(&cell, options.clients, 0, seed)?;
        let field = Field {
            random: fastrand::Rng::with_seed(seed),
            cell,
            kills: 0,
            whole_cell_kills: 0,
            majority_kills: 0,
            without_service: Durations::default(),
            comes_back: Durations::default(),
        };
        Ok(Self { options: options.clone(), seed, load, field })
    }

    fn all(&mut self) -> anyhow::Result<KillReport> {
        let Self { options, load, field, .. } = self;
        for round in 1..=options.rounds {
            let files = load.recent_files();
            let what = load.run(|shared| field.kill_and_bring_back(round, shared));
            let what = what.with_context(|| format!("round {round}"))?;
            load.read_back(&mut field.cell, &files).with_context(|| format!("after round {round}: {what}"))?;
            let tally = load.tally();
            eprintln!(
                "round {round}/{}: {what}, {} ms without service; {} acknowledged, {} unknown so far, 0 lost",
                options.rounds,
                field.without_service.milliseconds().last().copied().unwrap_or_default(),
                tally.acknowledged,
                tally.unknown,
            );
        }
        // Nothing may live in memory alone.
        let all = field.cell.ids();
        field.kill(&all)?;
        field.bring_back(&all)?;
        let files = load.all_files();
        let slots = load.read_back(&mut field.cell, &files).context("after the last kill of the whole cell")?;
        field.cell.stop()?;
        Ok(self.report(slots))
    }

    fn report(&self, slots: u64) -> KillReport {
        let tally = self.load.tally();
        let field = &self.field;
        KillReport {
            seed: self.seed,
            rounds: self.options.rounds,
            kills: field.kills,
            whole_cell_kills: field.whole_cell_kills,
            majority_kills: field.majority_kills,
            acknowledged: tally.acknowledged,
            increments: tally.increments,
            files: tally.files,
            unknown: tally.unknown,
            did_not_happen: tally.did_not_happen,
            unequal: tally.unequal,
            reads: tally.reads,
            read_backs: self.load.read_backs(),
            without_service_ms: field.without_service.milliseconds(),
            without_service_p50_ms: milliseconds(field.without_service.quantile(0.5)),
            without_service_max_ms: milliseconds(field.without_service.quantile(1.0)),
            comes_back_max_ms: milliseconds(field.comes_back.quantile(1.0)),
            slots,
            lost: 0,
        }
    }
}

impl Field {
    /// Kills and restarts, under load; says who was killed.
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
}
