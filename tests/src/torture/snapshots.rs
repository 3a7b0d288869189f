//! `synod-torture snapshots`: replicas are killed while snapshots are written, logs are cut, segments are used again and
//! laggards are caught up. They must open each time, and every acknowledged write must be there, once. (`faults.md` 2.1, 2.2.)

use anyhow::Context;
use clap::Args;

use super::attack::{self, Attack, Kill, REPLICAS, SERVE_FLAGS, Until};
use super::cell::{Common, Place, TortureCell};
use super::stop::Stop;

/// Kill replicas while snapshots are written, logs are cut and laggards are caught up; they must open, and nothing be lost.
///
/// The log's segments are the smallest there are, and a snapshot is made after each: all of it happens every second or so. Each
/// round kills one replica, two or all at a moment: while a snapshot is written, right after one is durable, while a
/// segment is made or gets its next name, while a replica whose slots are gone from the others' logs is sent a
/// snapshot (that one, its source, or both), or at any time. It is started again and must open; the round's writes are read back.
/// Every 25 rounds each replica is made the master and asked for everything; at the end the files are compared row by row.
///
/// The report says how many rounds hit their moment, by the replica's own status just before; if half of those of one moment
/// missed, the run is void. Refusals ("log full") are counted, and are no failure: snapshots may lag behind the load.
#[derive(Args, Clone, Debug)]
pub struct SnapshotsOptions {
    /// How many rounds
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// What decides who is killed and when [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// Runs the command.
pub fn main(options: &SnapshotsOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let seed = attack::seed(options.seed);
    let run = |place: &Place| {
        let cell = TortureCell::start(REPLICAS, place.path().join("cell"), &SERVE_FLAGS, &stop)?;
        Attack::start(cell, Kill, "kills", seed)?.all(Until::Rounds(options.rounds))
    };
    let report = options.common.within("snapshots", run).with_context(|| format!("seed {seed}"))?;
    attack::conclude(&report, &options.common)
}
