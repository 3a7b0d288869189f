//! Attacks on snapshots, on the log that they cut, and on catch-up: a cell under a load that moves the log fast, struck at
//! chosen moments.
//!
//! What a blow is, is for the command to say: SIGKILL (`snapshots`), or the power cut from a file system (`power`). After each
//! the struck replicas are started again, and must open. Then the load rests and the round's writes are read back; every so
//! often each replica in turn is made the master and asked for everything. At the end the files that the stopped replicas
//! left are opened and compared, row by row.
//!
//! That it sees what it should was tried: when a snapshot is not synced, `power` ends in its third round (a damaged page); when
//! it names a slot too many, `snapshots` ends in its first (replicas that are not alike).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use serde::Serialize;
use synod_api::{Answer, Operation};
use synod_client::{Client, Options};
use synod_node::codec::CHUNK_BYTES;
use synod_node::config::{Config, Member};
use synod_node::operator::{OperatorAnswer, OperatorRequest};
use synod_node::start::{self, FirstStart};
use synod_node::status::Status;

use super::Report;
use super::cell::{Common, TortureCell};
use super::client::Shared;
use super::load::Load;
use super::pulse::{Durations, milliseconds};

/// The cell's replicas.
pub const REPLICAS: u16 = 3;
/// Clients.
const CLIENTS: u32 = 6;
/// The smallest segments and a snapshot after each; these are written so slowly that there is a while to strike in.
pub const SERVE_FLAGS: [&str; 8] =
    ["--segment-mb", "4", "--log-mb-max", "64", "--snapshot-log-mb", "4", "--snapshot-mb-per-s", "6"];
const SEGMENT_MB: u64 = 4;
const LOG_MB_MAX: u64 = 64;
/// Own keys have values of up to so many bytes: about a segment a second.
const BULK_BYTES_MAX: usize = 48 << 10;
/// Keys that are written once and stay: a database whose transfer takes a while. Its pages are in each snapshot.
const BALLAST_KEYS: usize = 384;
const BALLAST_BYTES: usize = 25 << 10;
/// The ballast makes at least so many pieces of a snapshot that is sent: a piece ends with the first row beyond its length.
const CHUNKS: u64 = BALLAST_KEYS as u64 / 2;
const _: () = assert!(BALLAST_BYTES < CHUNK_BYTES && CHUNK_BYTES < 2 * BALLAST_BYTES);
/// Every so many rounds the whole cell is struck, or a majority; but not while somebody is caught up.
const WHOLE_CELL_EVERY: u32 = 7;
const MAJORITY_EVERY: u32 = 5;
/// Every so many rounds each replica is asked for everything.
const ASK_ALL_EVERY: u32 = 25;
/// At any time: within so many milliseconds.
const ANY_TIME_MS: u64 = 700;
/// Between a moment and its blow; less than a snapshot takes.
const PAUSE_MS: u64 = 120;
/// Without the struck ones.
const AWAY_MS: u64 = 600;
/// Writes flow again once so many were acknowledged after the last restart.
const WRITES_AGAIN: u64 = 50;
/// A moment that has not come within this time is missed.
const MOMENT_PATIENCE: Duration = Duration::from_secs(10);
/// The others have cut their logs beyond a laggard within this time, and have caught it up.
const LAG_PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(1);
/// Of all rounds of a moment so many in a hundred must hit it, or the run is void.
const HITS_PERCENT_MIN: u64 = 50;
const ASK_DEADLINE: Duration = Duration::from_secs(30);

/// When a replica is struck.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Moment {
    /// While it writes a snapshot.
    Writing,
    /// Right after a snapshot of its own became durable: the log is cut, and a segment is used again.
    Kept,
    /// While another replica's snapshot is being taken over by it, or from it.
    CatchUp,
    /// Right after its directory changed: a segment is being made, or was given its next name.
    Segment,
    /// Whenever.
    Any,
}

impl Moment {
    const ALL: [Moment; 5] = [Moment::Writing, Moment::Kept, Moment::CatchUp, Moment::Segment, Moment::Any];

    fn text(self) -> &'static str {
        match self {
            Moment::Writing => "while a snapshot was written",
            Moment::Kept => "right after one was durable",
            Moment::CatchUp => "while a replica was caught up by one",
            Moment::Segment => "while a segment was made or renamed",
            Moment::Any => "at any time",
        }
    }
}

/// What befalls replicas.
pub trait Blow {
    /// Falls on these at once; they do not run afterwards.
    fn strike(&mut self, cell: &mut TortureCell, victims: &[u16]) -> anyhow::Result<()>;

    /// Makes whole again what was struck, the replicas themselves left out.
    fn mend(&mut self, victims: &[u16]) -> anyhow::Result<()>;
}

/// SIGKILL.
pub struct Kill;

impl Blow for Kill {
    fn strike(&mut self, cell: &mut TortureCell, victims: &[u16]) -> anyhow::Result<()> {
        cell.kill(victims)
    }

    fn mend(&mut self, _: &[u16]) -> anyhow::Result<()> {
        Ok(())
    }
}

/// How often a moment was waited for, and how often it was hit.
#[derive(Clone, Debug, Serialize)]
pub struct MomentReport {
    /// Which.
    pub moment: &'static str,
    /// Rounds.
    pub rounds: u64,
    /// Rounds in which the blow fell at that moment, as the replica's own words just before it say.
    pub hits: u64,
}

/// What was done, and checked.
#[derive(Clone, Debug, Default, Serialize)]
pub struct AttackReport {
    /// What a blow was.
    pub blow: String,
    /// What decided who was struck and when.
    pub seed: u64,
    /// Rounds.
    pub rounds: u32,
    /// By moment.
    pub moments: Vec<MomentReport>,
    /// Replicas struck.
    pub struck: u64,
    /// Rounds in which all were struck at once.
    pub whole_cell: u64,
    /// Rounds in which a majority was, but not all.
    pub majority: u64,
    /// Replicas that were started on what a blow, or a plain kill before a catch-up, had left. All opened.
    pub opens: u64,
    /// Snapshots that became durable. This and the next five: as far as the replicas told before they were struck.
    pub snapshots: u64,
    /// Snapshots that failed.
    pub snapshots_failed: u64,
    /// Snapshots of others that were taken over.
    pub snapshots_installed: u64,
    /// Pieces of them.
    pub chunks_taken: u64,
    /// Segments used again.
    pub segments_recycled: u64,
    /// Reads of a log that failed.
    pub log_read_failures: u64,
    /// Catch-ups by snapshot that a blow fell into.
    pub catch_ups_interrupted: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Writes whose outcome nobody knows.
    pub unknown: u64,
    /// Writes that were refused, as by a full log.
    pub did_not_happen: u64,
    /// Reads under load, each checked.
    pub reads: u64,
    /// Reads after rounds, each checked.
    pub read_backs: u64,
    /// How often a replica was made the master and asked for everything.
    pub replicas_asked: u64,
    /// Rows in the files that were compared at the end, in each of so many replicas' files.
    pub files_alike: usize,
    /// The median of the milliseconds without an acknowledged write, each round.
    pub without_service_p50_ms: u64,
    /// The longest.
    pub without_service_max_ms: u64,
    /// The longest that struck replicas took to answer again, in milliseconds.
    pub comes_back_max_ms: u64,
    /// The longest that a laggard took to be where the others were when it was started for good, in milliseconds.
    pub caught_up_max_ms: u64,
    /// Slots chosen.
    pub slots: u64,
    /// Acknowledged writes that were lost. Any number but 0 ends the command before there is a report.
    pub lost: u64,
}

impl Report for AttackReport {
    fn text(&self) -> String {
        let mut text = format!("seed                  {}\n", self.seed);
        for MomentReport { moment, rounds, hits } in &self.moments {
            text.push_str(&format!("{hits:>5} of {rounds:>4} rounds   hit {moment}\n"));
        }
        text.push_str(&format!(
            "struck                {} replicas ({} times all three, {} times two)\n\
             opened again          {} times, each within {} ms\n\
             snapshots             {} made, {} failed, {} installed of others ({} chunks), {} catch-ups interrupted\n\
             segments              {} used again\n\
             log reads that failed {}\n\
             acknowledged writes   {}\n\
             unknown               {}\n\
             did not happen        {}\n\
             reads checked         {} under load, {} read back; {} times a replica was made master and asked for all\n\
             files at the end      {} of {REPLICAS} replicas' alike, row by row\n\
             without service       p50 {} ms, max {} ms\n\
             laggards caught up    within {} ms\n\
             slots                 {}\n\
             {} rounds, {} {}, {} opens, {} acknowledged writes: {} lost",
            self.struck,
            self.whole_cell,
            self.majority,
            self.opens,
            self.comes_back_max_ms,
            self.snapshots,
            self.snapshots_failed,
            self.snapshots_installed,
            self.chunks_taken,
            self.catch_ups_interrupted,
            self.segments_recycled,
            self.log_read_failures,
            self.acknowledged,
            self.unknown,
            self.did_not_happen,
            self.reads,
            self.read_backs,
            self.replicas_asked,
            self.files_alike,
            self.without_service_p50_ms,
            self.without_service_max_ms,
            self.caught_up_max_ms,
            self.slots,
            self.rounds,
            self.struck,
            self.blow,
            self.opens,
            self.acknowledged,
            self.lost
        ));
        text
    }
}

impl AttackReport {
    /// An error if some moment was hit too rarely: then nothing was shown.
    pub fn check_hits(&self) -> anyhow::Result<()> {
        for MomentReport { moment, rounds, hits } in &self.moments {
            ensure!(
                hits * 100 >= rounds * HITS_PERCENT_MIN,
                "void: of {rounds} rounds only {hits} hit {moment}, and {HITS_PERCENT_MIN} in 100 must"
            );
        }
        Ok(())
    }
}

/// When an attack ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many rounds.
    Rounds(u32),
    /// After so many replicas were struck.
    Struck(u64),
}

/// A cell under attack.
pub struct Attack<B> {
    load: Load,
    field: Field<B>,
}

/// All but the load, so that it can be acted on while the clients are busy.
struct Field<B> {
    random: fastrand::Rng,
    // Before what it stands on.
    cell: TortureCell,
    blow: B,
    ballast: Client,
    hits: BTreeMap<Moment, (u64, u64)>,
    without_service: Durations,
    comes_back: Durations,
    caught_up: Durations,
    report: AttackReport,
}

impl<B: Blow> Attack<B> {
    /// Puts load on a cell that was started with [`SERVE_FLAGS`].
    pub fn start(cell: TortureCell, blow: B, what: &str, seed: u64) -> anyhow::Result<Self> {
        let load = Load::connect(&cell, CLIENTS, BULK_BYTES_MAX, seed)?;
        let endpoints = cell.endpoints();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let options = Options { deadline: ASK_DEADLINE, ..Options::default() };
        let mut ballast = Client::connect(&endpoints, options).context("a client cannot connect")?;
        for key in 0..BALLAST_KEYS {
            ballast.put(ballast_key(key).as_bytes(), &ballast_value(key)).context("the first writes")?;
        }
        let field = Field {
            random: fastrand::Rng::with_seed(seed),
            cell,
            blow,
            ballast,
            hits: BTreeMap::new(),
            without_service: Durations::default(),
            comes_back: Durations::default(),
            caught_up: Durations::default(),
            report: AttackReport { seed, blow: what.to_owned(), ..AttackReport::default() },
        };
        Ok(Self { load, field })
    }

    /// All rounds, and the checks after them.
    pub fn all(mut self, until: Until) -> anyhow::Result<AttackReport> {
        let mut round = 0;
        loop {
            let (done, of) = match until {
                Until::Rounds(rounds) => (u64::from(round), u64::from(rounds)),
                Until::Struck(struck) => (self.field.report.struck, struck),
            };
            if done >= of {
                break;
            }
            round += 1;
            self.round(round, until).with_context(|| format!("round {round}"))?;
        }
        self.end(round)
    }

    fn round(&mut self, round: u32, until: Until) -> anyhow::Result<()> {
        let Self { load, field } = self;
        let files = load.recent_files();
        let what = load.run(|shared| field.round(round, shared))?;
        load.read_back(&mut field.cell, &files).with_context(|| format!("after this: {what}"))?;
        if round.is_multiple_of(ASK_ALL_EVERY) {
            let files = load.recent_files();
            self.ask_all(&files).with_context(|| format!("after this: {what}"))?;
        }
        let (field, tally) = (&self.field, self.load.tally());
        eprintln!(
            "round {round}{}: {what}, {} ms without service; {} {}, {} acknowledged, {} unknown so far, 0 lost",
            match until {
                Until::Rounds(rounds) => format!("/{rounds}"),
                Until::Struck(_) => String::new(),
            },
            field.without_service.milliseconds().last().copied().unwrap_or_default(),
            field.report.struck,
            field.report.blow,
            tally.acknowledged,
            tally.unknown
        );
        Ok(())
    }

    /// Makes each replica the master in turn, and reads from it what clients were told.
    fn ask_all(&mut self, files: &[usize]) -> anyhow::Result<u64> {
        let mut slots = 0;
        for id in self.field.cell.ids() {
            hand_over(&mut self.field.cell, id)?;
            slots = self.load.read_back(&mut self.field.cell, files).with_context(|| format!("asking replica {id}"))?;
            self.field.check_ballast().with_context(|| format!("asking replica {id}"))?;
            self.field.report.replicas_asked += 1;
        }
        Ok(slots)
    }

    fn end(mut self, rounds: u32) -> anyhow::Result<AttackReport> {
        // Nothing may live in memory alone.
        let all = self.field.cell.ids();
        self.field.strike(&all)?;
        self.field.bring_back(&all)?;
        let files = self.load.all_files();
        let slots = self.ask_all(&files).context("after the last blow, to the whole cell")?;
        self.field.cell.ids().into_iter().for_each(|id| self.field.harvest(id));
        self.field.cell.stop()?;
        self.field.report.files_alike = self.field.compare_files()?;
        let Self { load, field } = self;
        let tally = load.tally();
        let moments =
            field.hits.iter().map(|(moment, &(rounds, hits))| MomentReport { moment: moment.text(), rounds, hits });
        Ok(AttackReport {
            rounds,
            moments: moments.collect(),
            acknowledged: tally.acknowledged,
            unknown: tally.unknown,
            did_not_happen: tally.did_not_happen,
            reads: tally.reads,
            read_backs: load.read_backs(),
            without_service_p50_ms: milliseconds(field.without_service.quantile(0.5)),
            without_service_max_ms: milliseconds(field.without_service.quantile(1.0)),
            comes_back_max_ms: milliseconds(field.comes_back.quantile(1.0)),
            caught_up_max_ms: milliseconds(field.caught_up.quantile(1.0)),
            slots,
            ..field.report.clone()
        })
    }
}

impl<B: Blow> Field<B> {
    /// A blow at a moment, and the way back; says what it was.
    fn round(&mut self, round: u32, shared: &Shared) -> anyhow::Result<String> {
        let moment = Moment::ALL[round as usize % Moment::ALL.len()];
        shared.pulse.reset();
        let (victims, hit, laggard) = if moment == Moment::CatchUp {
            self.await_catch_up()?
        } else {
            // The moment is the first one's; the others happen to be struck with it.
            let mut victims = self.cell.ids();
            self.random.shuffle(&mut victims);
            if !round.is_multiple_of(WHOLE_CELL_EVERY) {
                let majority = round.is_multiple_of(MAJORITY_EVERY) || self.random.u32(..MAJORITY_EVERY) == 0;
                victims.truncate(if majority { 2 } else { 1 });
            }
            let hit = self.await_moment(moment, victims[0])?;
            (victims, hit, None)
        };
        let (rounds, hits) = self.hits.entry(moment).or_default();
        *rounds += 1;
        *hits += u64::from(hit);
        self.report.catch_ups_interrupted += u64::from(hit && moment == Moment::CatchUp);
        self.strike(&victims)?;
        std::thread::sleep(Duration::from_millis(self.random.u64(..AWAY_MS)));
        self.bring_back(&victims)?;
        let (_, writes) = shared.pulse.longest();
        let ids = self.cell.ids();
        self.cell.wait_for("writes do not flow again", &ids, |_| {
            (shared.is_stopping() || shared.pulse.longest().1 >= writes + WRITES_AGAIN).then_some(())
        })?;
        self.without_service.push(shared.pulse.longest().0);
        if let Some(laggard) = laggard {
            self.await_caught_up(laggard, shared)?;
        }
        let missed = if hit { "" } else { " (missed)" };
        Ok(format!("replicas {victims:?} {}{missed}", moment.text()))
    }

    /// Waits for a moment of this replica's; whether it came.
    fn await_moment(&mut self, moment: Moment, watched: u16) -> anyhow::Result<bool> {
        let pause = Duration::from_millis(self.random.u64(..PAUSE_MS));
        let patience = MOMENT_PATIENCE;
        let came = match moment {
            Moment::Any | Moment::CatchUp => {
                std::thread::sleep(Duration::from_millis(self.random.u64(..ANY_TIME_MS)));
                Some(())
            }
            Moment::Writing => {
                let is_writing = |cell: &mut TortureCell| {
                    cell.status(watched).filter(|status| status.database.snapshot_under_way).map(|_| ())
                };
                self.cell.look_for(patience, LOOK, |cell| {
                    is_writing(cell)?;
                    // Somewhere in it, not always at its begin.
                    std::thread::sleep(pause);
                    is_writing(cell)
                })?
            }
            Moment::Kept => {
                let mut before = None;
                self.cell.look_for(patience, LOOK, |cell| {
                    let now = cell.status(watched)?.database.snapshot;
                    (now != *before.get_or_insert(now)).then_some(())
                })?
            }
            Moment::Segment => {
                let mut before = None;
                self.cell.look_for(patience, LOOK, |cell| {
                    let now = segments(&cell.replica_dir(watched))?;
                    (now != *before.get_or_insert_with(|| now.clone())).then_some(())
                })?
            }
        };
        if matches!(moment, Moment::Kept | Moment::Segment) {
            // What follows from it takes a few milliseconds.
            std::thread::sleep(pause / 20);
        }
        Ok(came.is_some())
    }

    /// Keeps a replica down until the others have cut their logs beyond it, starts it, and waits for a moment of its catch-up.
    /// Who is to be struck, whether that moment came, and who lags.
    fn await_catch_up(&mut self) -> anyhow::Result<(Vec<u16>, bool, Option<u16>)> {
        let ids = self.cell.ids();
        let laggard = ids[self.random.usize(..ids.len())];
        let others = self.cell.others(laggard);
        let mut beyond = self.cell.status(laggard).context("a replica does not answer")?.chosen;
        self.harvest(laggard);
        self.cell.kill(&[laggard])?;
        // What is cut off is still in memory for a while: twice more as far, and it is not.
        let mut is_gone = true;
        for _ in 0..3 {
            let is_beyond = |cell: &TortureCell, id| cell.status(id).is_some_and(|status| status.log.cut > beyond);
            let cut = self
                .cell
                .look_for(LAG_PATIENCE, 20 * LOOK, |cell| others.iter().all(|&id| is_beyond(cell, id)).then_some(()))?;
            is_gone &= cut.is_some();
            beyond =
                others.iter().filter_map(|&id| self.cell.status(id)).map(|status| status.chosen).max().unwrap_or(0);
        }
        self.start_again(&[laggard])?;
        // Any piece of it, or while it is made durable, when all have come.
        let chunk = self.random.u64(1..=CHUNKS);
        let until_kept = self.random.u32(..3) == 0;
        let pause = Duration::from_millis(self.random.u64(..=6 * PAUSE_MS));
        let view = |status: &Status| (status.counters.engine.chunks_taken, status.counters.engine.snapshots_installed);
        self.cell.look_for(MOMENT_PATIENCE, LOOK, |cell| {
            let (taken, installed) = view(&cell.status(laggard)?);
            (taken >= chunk || installed > 0).then_some(())
        })?;
        if until_kept {
            std::thread::sleep(pause);
        }
        let now = self.cell.status(laggard);
        let hit = is_gone && now.is_some_and(|status| matches!(view(&status), (1.., 0)));
        let sent = |id: &u16| self.cell.status(*id).map_or(0, |status| status.counters.engine.chunks_sent);
        let source = others.iter().copied().max_by_key(sent).expect("there are others");
        let victims = match self.random.u32(..20) {
            0..12 => vec![laggard],
            12..17 => vec![source],
            _ => vec![laggard, source],
        };
        Ok((victims, hit, Some(laggard)))
    }

    /// The laggard is where the others are now.
    fn await_caught_up(&mut self, laggard: u16, shared: &Shared) -> anyhow::Result<()> {
        let start = Instant::now();
        let others = self.cell.others(laggard);
        let chosen = |cell: &TortureCell, id| cell.status(id).map(|status| status.chosen);
        let target = others.iter().filter_map(|&id| chosen(&self.cell, id)).max().unwrap_or(0);
        let there = self.cell.look_for(LAG_PATIENCE, 10 * LOOK, |cell| {
            (shared.is_stopping() || chosen(cell, laggard)? >= target).then_some(())
        })?;
        if there.is_none() {
            let status = self.cell.status(laggard);
            bail!("replica {laggard} is not caught up to slot {target} within {LAG_PATIENCE:?}: {status:?}");
        }
        self.caught_up.push(start.elapsed());
        Ok(())
    }

    fn strike(&mut self, victims: &[u16]) -> anyhow::Result<()> {
        victims.iter().for_each(|&id| self.harvest(id));
        let replicas = self.cell.ids().len();
        self.report.struck += victims.len() as u64;
        self.report.whole_cell += u64::from(victims.len() == replicas);
        self.report.majority += u64::from((replicas / 2 + 1..replicas).contains(&victims.len()));
        self.blow.strike(&mut self.cell, victims)
    }

    fn bring_back(&mut self, victims: &[u16]) -> anyhow::Result<()> {
        self.blow.mend(victims)?;
        self.start_again(victims)
    }

    fn start_again(&mut self, ids: &[u16]) -> anyhow::Result<()> {
        let took = self.cell.bring_back(ids)?;
        self.report.opens += ids.len() as u64;
        self.comes_back.push(took);
        Ok(())
    }

    /// Counts what a replica has counted, before it forgets it.
    fn harvest(&mut self, id: u16) {
        let Some(status) = self.cell.status(id) else { return };
        let (counters, report) = (status.counters.engine, &mut self.report);
        report.snapshots += counters.snapshots;
        report.snapshots_failed += counters.snapshots_failed;
        report.snapshots_installed += counters.snapshots_installed;
        report.chunks_taken += counters.chunks_taken;
        report.segments_recycled += counters.segments_recycled;
        report.log_read_failures += counters.log_read_failures;
    }

    fn check_ballast(&mut self) -> anyhow::Result<()> {
        for key in 0..BALLAST_KEYS {
            let name = ballast_key(key);
            let found = self.ballast.call(Operation::Get { key: name.as_bytes() })?;
            let is_there = matches!(&found, Answer::Value { value, .. } if **value == *ballast_value(key));
            ensure!(is_there, "LOST: {name} is not what was written there");
        }
        Ok(())
    }

    /// Opens what the stopped replicas left, as their next start would, and compares all rows of those that have the same
    /// revision; how many were alike. One may know a little less of what is chosen than the others.
    fn compare_files(&self) -> anyhow::Result<usize> {
        let member =
            |id: u16| Member { id, peer: ([127, 0, 0, 1], 2 * id).into(), client: ([127, 0, 0, 1], 2 * id + 1).into() };
        let mut databases = BTreeMap::<u64, Vec<(u16, Vec<u8>)>>::new();
        for id in self.cell.ids() {
            let members = self.cell.ids().into_iter().map(member).collect();
            let mut config = Config::new(id, self.cell.replica_dir(id), members);
            (config.segment_mb, config.log_mb_max) = (SEGMENT_MB, LOG_MB_MAX);
            let opened = start::open(&config, FirstStart::Refused);
            let mut opened = opened.with_context(|| format!("replica {id}'s directory does not open"))?;
            let store = opened.start.cell.store_mut();
            let (revision, view) = (store.revision().0, store.freeze());
            let (mut rows, mut from) = (Vec::new(), None);
            loop {
                let chunk = view.export(from.as_deref(), CHUNK_BYTES).context("reading all rows")?;
                rows.extend(chunk.bytes);
                from = chunk.next;
                if from.is_none() {
                    break;
                }
            }
            databases.entry(revision).or_default().push((id, rows));
        }
        for (revision, alike) in &databases {
            for pair in alike.windows(2) {
                ensure!(
                    pair[0].1 == pair[1].1,
                    "replicas {} and {} differ at revision {revision}",
                    pair[0].0,
                    pair[1].0
                );
            }
        }
        Ok(databases.values().map(Vec::len).max().unwrap_or(0))
    }
}

/// Asks for mastership to go to this replica until it has it.
pub(super) fn hand_over(cell: &mut TortureCell, to: u16) -> anyhow::Result<()> {
    let give_up = Instant::now() + ASK_DEADLINE;
    let request = serde_json::to_string(&OperatorRequest::Transfer { to })?;
    loop {
        let master = cell.master()?;
        if master == to {
            return Ok(());
        }
        let answer = synod_client::operate(&cell.endpoint(master), &request, ASK_DEADLINE)?;
        let answer: OperatorAnswer = serde_json::from_str(&answer)?;
        cell.look_for(ASK_DEADLINE / 20, 10 * LOOK, |cell| cell.master_among(&[to]))?;
        ensure!(Instant::now() < give_up, "replica {to} does not become the master: {answer:?}");
    }
}

/// The files of a replica's log; nothing if they cannot be listed.
fn segments(dir: &Path) -> Option<BTreeSet<OsString>> {
    let names = fs::read_dir(dir).ok()?.map_while(|entry| entry.ok().map(|entry| entry.file_name()));
    Some(names.filter(|name| name.to_string_lossy().starts_with("wal-")).collect())
}

fn ballast_key(key: usize) -> String {
    format!("ballast/{key}")
}

fn ballast_value(key: usize) -> Vec<u8> {
    (0..BALLAST_BYTES).map(|at| (at / 251 + at * 7 + key * 13) as u8).collect()
}

/// A seed, told at once so that a run can be repeated.
#[must_use]
pub fn seed(said: Option<u64>) -> u64 {
    let seed = said.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("synod-torture: seed {seed}");
    seed
}

/// Prints the report of an attack, which must have hit what it aimed at.
pub fn conclude(report: &AttackReport, common: &Common) -> anyhow::Result<()> {
    super::print(report, common.json)?;
    report.check_hits()
}
