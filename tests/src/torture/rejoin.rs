//! `synod-torture rejoin`: a replica's directory is emptied, or an older copy of it is put back, under load. It must be voting again
//! by itself, not before the others have told it what it promised, and nothing acknowledged may be lost (rules P11, P12, P13).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use synod_client::{Client, Options};
use synod_node::status::Status;

use super::cell::{Common, Place, TortureCell};
use super::client::Shared;
use super::load::Load;
use super::pulse::{Durations, milliseconds};
use super::stop::Stop;
use super::{Report, print};

/// So many clients put load on the cell.
const CLIENTS: u32 = 6;
/// Load before a copy is made, and before a directory is lost.
const LOAD_TIME: std::ops::RangeInclusive<u64> = 500..=1_500;
/// A large database takes a while to be sent.
const HEALS_TIME_MAX: Duration = Duration::from_mins(10);
const LOOK: Duration = Duration::from_millis(5);
/// Writes flow again once so many were acknowledged after it votes.
const WRITES_AGAIN: u64 = 50;
const PRELOADED_BYTES: usize = 64 << 10;
/// The rows of the acceptor's table that are votes: what a replica in doubt must not have taken since its start.
const VOTES: [&str; 3] =
    ["acceptor: Proposed in Open -> Open", "acceptor: Asked in Open -> Open", "acceptor: Asked in Full -> Full"];

/// Empty a replica's directory, or put an older copy back, under load; it must rejoin by itself, and nothing be lost.
#[derive(Args, Clone, Debug)]
pub struct RejoinOptions {
    /// How many losses
    #[arg(long, alias = "rounds", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// How many replicas the cell has
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(3..=9))]
    pub replicas: u16,
    /// How large the database is before the first loss, in MiB
    #[arg(long, default_value_t = 8)]
    pub db_mb: u64,
    /// What decides who loses what and when [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// What was done, and checked.
#[derive(Clone, Debug, Serialize)]
pub struct RejoinReport {
    /// What decided it.
    pub seed: u64,
    /// Losses.
    pub runs: u32,
    /// Of these, directories emptied.
    pub wiped: u32,
    /// Older copies put back.
    pub rolled_back: u32,
    /// Of all of them the master.
    pub of_the_master: u32,
    /// Looks at a replica in doubt, none of which saw a vote.
    pub looks: u64,
    /// From the start of its process until it voted, each.
    pub votes_again_ms: Vec<u64>,
    /// The median of these.
    pub votes_again_p50_ms: u64,
    /// The longest.
    pub votes_again_max_ms: u64,
    /// The longest without an acknowledged write.
    pub without_service_max_ms: u64,
    /// Bytes of keys and values at the end.
    pub database_bytes: u64,
    /// Snapshots that took the place of what was lost.
    pub snapshots_installed: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose outcome nobody knows.
    pub unknown: u64,
    /// Reads after runs, each checked.
    pub read_backs: u64,
    /// Acknowledged writes that were lost. Any number but 0 ends the command before there is a report.
    pub lost: u64,
}

impl Report for RejoinReport {
    fn text(&self) -> String {
        format!(
            "seed                  {}\n\
             losses                {}: {} directories emptied, {} older copies put back; {} times the master's\n\
             in doubt              looked at {} times: no promise given, nothing accepted\n\
             voting again          p50 {} ms, max {} ms after the start\n\
             without service       max {} ms\n\
             database              {} bytes of rows, {} snapshots installed\n\
             acknowledged writes   {}, {} unknown, {} read back\n\
             {} losses, {} rejoined by themselves, {} acknowledged writes: {} lost",
            self.seed,
            self.runs,
            self.wiped,
            self.rolled_back,
            self.of_the_master,
            self.looks,
            self.votes_again_p50_ms,
            self.votes_again_max_ms,
            self.without_service_max_ms,
            self.database_bytes,
            self.snapshots_installed,
            self.acknowledged,
            self.unknown,
            self.read_backs,
            self.runs,
            self.votes_again_ms.len(),
            self.acknowledged,
            self.lost
        )
    }
}

/// Runs the command.
pub fn main(options: &RejoinOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("synod-torture: seed {seed}");
    let run = |place: &Place| all(options, seed, place, &stop);
    let report = options.common.within("rejoin", run).with_context(|| format!("seed {seed}"))?;
    print(&report, options.common.json)
}

fn all(options: &RejoinOptions, seed: u64, place: &Place, stop: &Stop) -> anyhow::Result<RejoinReport> {
    let cell = TortureCell::start(options.replicas, place.path().join("cell"), &[], stop)?;
    preload(&cell, options.db_mb)?;
    let mut load = Load::connect(&cell, CLIENTS, 0, seed)?;
    let mut field = Field {
        random: fastrand::Rng::with_seed(seed),
        cell,
        copy: place.path().join("copy"),
        votes_again: Durations::default(),
        without_service: Durations::default(),
        looks: 0,
        of_the_master: 0,
        snapshots_installed: 0,
    };
    let (mut wiped, mut rolled_back) = (0, 0);
    for run in 1..=options.runs {
        let files = load.recent_files();
        // Each kind in turn, so that a few runs show both.
        let is_wiped = run % 2 == 1;
        (wiped, rolled_back) = (wiped + u32::from(is_wiped), rolled_back + u32::from(!is_wiped));
        let what = load.run(|shared| field.lose_and_heal(is_wiped, shared));
        let what = what.with_context(|| format!("run {run}"))?;
        load.read_back(&mut field.cell, &files).with_context(|| format!("after run {run}: {what}"))?;
        let acknowledged = load.tally().acknowledged;
        eprintln!("run {run}/{}: {what}; {acknowledged} acknowledged so far, 0 lost", options.runs);
    }
    let files = load.all_files();
    load.read_back(&mut field.cell, &files).context("at the end")?;
    let database_bytes = field.cell.wait_until_alike()?.database.bytes;
    field.cell.stop()?;
    let tally = load.tally();
    Ok(RejoinReport {
        seed,
        runs: options.runs,
        wiped,
        rolled_back,
        of_the_master: field.of_the_master,
        looks: field.looks,
        votes_again_ms: field.votes_again.milliseconds(),
        votes_again_p50_ms: milliseconds(field.votes_again.quantile(0.5)),
        votes_again_max_ms: milliseconds(field.votes_again.quantile(1.0)),
        without_service_max_ms: milliseconds(field.without_service.quantile(1.0)),
        database_bytes,
        snapshots_installed: field.snapshots_installed,
        acknowledged: tally.acknowledged,
        unknown: tally.unknown,
        read_backs: load.read_backs(),
        lost: 0,
    })
}

/// Rows that nothing else touches.
fn preload(cell: &TortureCell, mib: u64) -> anyhow::Result<()> {
    let endpoints = cell.endpoints();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut client = Client::connect(&endpoints, Options::default())?;
    let mut value = vec![0; PRELOADED_BYTES];
    for row in 0..(mib << 20) / PRELOADED_BYTES as u64 {
        value[..8].copy_from_slice(&row.to_le_bytes());
        client.put(format!("preloaded/{row:08}").as_bytes(), &value).context("filling the database")?;
    }
    Ok(())
}

struct Field {
    random: fastrand::Rng,
    cell: TortureCell,
    copy: PathBuf,
    votes_again: Durations,
    without_service: Durations,
    looks: u64,
    of_the_master: u32,
    snapshots_installed: u64,
}

impl Field {
    fn lose_and_heal(&mut self, is_wiped: bool, shared: &Shared) -> anyhow::Result<String> {
        let ids = self.cell.ids();
        let victim = ids[self.random.usize(..ids.len())];
        let dir = self.cell.replica_dir(victim);
        shared.pulse.reset();
        self.wait(shared)?;
        if !is_wiped {
            self.cell.kill(&[victim])?;
            copy_dir(&dir, &self.copy).context("copying a directory")?;
            self.cell.bring_back(&[victim])?;
            self.wait_until_voting(victim)?;
            self.wait(shared)?;
        }
        let before = self.cell.wait_for("it does not answer", &[victim], |cell| cell.status(victim))?;
        self.of_the_master += u32::from(before.is_master);
        self.cell.kill(&[victim])?;
        fs::remove_dir_all(&dir).context("emptying a directory")?;
        if !is_wiped {
            fs::rename(&self.copy, &dir).context("putting a copy back")?;
        }
        let start = Instant::now();
        // Without --bootstrap: it has to know by itself what an empty directory means.
        self.cell.start_again(victim)?;
        let healed = self.watch(victim, before.life)?;
        let took = start.elapsed();
        self.votes_again.push(took);
        self.snapshots_installed += healed.counters.engine.snapshots_installed;
        let (_, writes) = shared.pulse.longest();
        self.cell.wait_for("writes do not flow again", &ids, |_| {
            (shared.is_stopping() || shared.pulse.longest().1 >= writes + WRITES_AGAIN).then_some(())
        })?;
        self.without_service.push(shared.pulse.longest().0);
        let whose = if before.is_master { "the master, " } else { "" };
        let what = if is_wiped { "was emptied" } else { "was put back to an older copy" };
        let took = milliseconds(took);
        Ok(format!("{whose}replica {victim}, {what}: votes again in life {} after {took} ms", healed.life))
    }

    fn wait(&mut self, shared: &Shared) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_millis(self.random.u64(LOAD_TIME));
        let all = self.cell.ids();
        self.cell
            .wait_for("time does not pass", &all, |_| (shared.is_stopping() || Instant::now() >= until).then_some(()))
    }

    fn wait_until_voting(&mut self, id: u16) -> anyhow::Result<()> {
        self.cell.wait_for("it does not vote", &[id], |cell| {
            cell.status(id).filter(|status| status.voting == "voting").map(|_| ())
        })
    }

    /// Looks until it votes in a later life than before. Until that one has begun it must not have voted.
    fn watch(&mut self, id: u16, life_before: u64) -> anyhow::Result<Status> {
        let mut broken = None;
        let mut looks = 0;
        let seen = self.cell.look_for(HEALS_TIME_MAX, LOOK, |cell| {
            let status = cell.status(id)?;
            if status.life > life_before {
                return (status.voting == "voting").then_some(status);
            }
            looks += 1;
            let votes: u64 = VOTES.iter().filter_map(|row| status.protocol.get(*row)).sum();
            if votes > 0 || status.voting == "voting" {
                broken = Some(format!("it is {} in life {}, and has voted {votes} times", status.voting, status.life));
                return Some(status);
            }
            None
        })?;
        self.looks += looks;
        if let Some(broken) = broken {
            bail!("replica {id} votes before it has been told what it lost: {broken}");
        }
        let status = seen.with_context(|| format!("replica {id} does not vote again within {HEALS_TIME_MAX:?}"))?;
        ensure!(status.rejoining.is_none(), "replica {id} votes, and says that it rejoins");
        Ok(status)
    }
}

fn copy_dir(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
    }
    Ok(())
}
