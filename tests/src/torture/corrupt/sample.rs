//! What is damaged: the directories of a cell that has run for a while and was stopped in order.
//!
//! The log of each replica has more than a thousand entries that no snapshot has, in segments that were used before; its
//! database is a small tree with two snapshots. What each block held before it was written last is kept beside it, for writes that are lost.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::{Deserialize, Serialize};
use synod_api::{Answer, Command, Operation, Sequence, SessionId};
use synod_node::config::defaults;
use synod_node::directory::{Directory, Identity};
use synod_node::start::{self, FirstStart};
use synod_paxos::{Ballot, Configurations, CrashVector, HardState, Incarnation, Slot};
use synod_wal::directory::segment_path;
use synod_wal::frame::FrameHeader;
use synod_wal::{Lost, LostSlots, RecordRef, SegmentId, Visitor};

use super::in_process::{InProcess, SEGMENT_BYTES, config, replica_dir};

/// Its id: nobody else's.
pub(super) const CELL: u128 = 0x0c0f_fee0_5a3b_1e00;
/// A minority of it is two, and one good copy may remain of five.
pub(super) const REPLICAS: u16 = 5;
/// Where all of it is said, in the sample's directory.
const PLAN_FILE: &str = "plan.json";

/// Entries that no snapshot has.
const ENTRIES: u64 = 1_100;
/// Before them so many, twice: then the log is cut, and its segments are used again.
const ENTRIES_BEFORE: u64 = 2_100;
/// Between the two snapshots.
const ENTRIES_BETWEEN: u64 = 10;
const KEYS: u64 = 96;
/// Values that have pages of their own, by the number of their key.
const LARGE_EVERY: u64 = 32;
const LARGE_BYTES: usize = 6_000;
const SMALL_BYTES: std::ops::Range<usize> = 20..700;
/// Simulated nanoseconds in which anything must be done.
const PATIENCE: u64 = 60_000_000_000;

/// How large a sample is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub(super) entries: u64,
    pub(super) entries_before: u64,
}

impl Size {
    /// What the command is for.
    pub(super) const WHOLE: Size = Size { entries: ENTRIES, entries_before: ENTRIES_BEFORE };
}

/// A block of a log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub(super) struct LogBlock {
    pub(super) segment: u64,
    pub(super) offset: u64,
    /// The first slot that its frame has a record of.
    pub(super) slot: Option<u64>,
}

/// What is known of the sample.
#[derive(Clone, Default, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    pub(super) keys: BTreeMap<String, Vec<u8>>,
    pub(super) session: u64,
    /// The next of the session's commands.
    pub(super) sequence: u64,
    /// By replica: every block that the log's reader needs, and what is right behind its end.
    pub(super) blocks: BTreeMap<u16, Vec<LogBlock>>,
    /// One past the last page of the database that anything was written to.
    pub(super) pages: BTreeMap<u16, u64>,
    /// Slots that only the log has.
    pub(super) entries: u64,
    /// The last slot.
    pub(super) chosen: u64,
}

impl Plan {
    /// As it was written beside the sample.
    pub(super) fn read(dir: &Path) -> anyhow::Result<Plan> {
        let path = dir.join(PLAN_FILE);
        let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        Ok(serde_json::from_slice(&text)?)
    }
}

/// Where it is kept what a replica's blocks held before.
pub(super) fn before_dir(dir: &Path, id: u16) -> PathBuf {
    dir.join(format!("before-{id}"))
}

struct Maker {
    cell: InProcess,
    plan: Plan,
    random: fastrand::Rng,
    puts: u64,
}

/// Makes the sample in this directory.
pub(super) fn make(dir: &Path, size: Size, seed: u64) -> anyhow::Result<Plan> {
    for id in 1..=REPLICAS {
        begin(dir, id)?;
        fs::create_dir_all(before_dir(dir, id))?;
    }
    let mut cell = InProcess::new(dir, REPLICAS);
    for id in cell.ids() {
        cell.start(id)?;
    }
    let mut maker = Maker { cell, plan: Plan::default(), random: fastrand::Rng::with_seed(seed), puts: 0 };
    maker.open_session()?;
    for _ in 0..2 {
        maker.put(size.entries_before)?;
        maker.snapshot()?;
        maker.put(ENTRIES_BETWEEN)?;
        for id in 1..=REPLICAS {
            fs::copy(replica_dir(dir, id).join("database"), before_dir(dir, id).join("database"))?;
        }
        maker.snapshot()?;
    }
    maker.cell.running.values_mut().for_each(|running| drop(running.take_written()));
    maker.put(size.entries)?;
    let mut plan = maker.stop(dir)?;
    for id in 1..=REPLICAS {
        let opened = start::open(&config(dir, id, REPLICAS), FirstStart::Refused)?;
        let snapshot = opened.report.snapshot.0;
        drop(opened);
        let (blocks, entries) = log_blocks(&replica_dir(dir, id), snapshot)?;
        ensure!(entries >= size.entries, "the log of replica {id} has {entries} entries");
        plan.entries = entries;
        plan.blocks.insert(id, blocks);
        plan.pages.insert(id, pages(&replica_dir(dir, id))?);
    }
    fs::write(dir.join(PLAN_FILE), serde_json::to_vec(&plan)?)?;
    Ok(plan)
}

/// The directory of a replica that has not run yet.
fn begin(dir: &Path, id: u16) -> anyhow::Result<()> {
    let config = config(dir, id, REPLICAS);
    let directory = Directory::open(&config.dir, config.volatile)?;
    let identity = Identity { cell: CELL, replica: id, incarnation: 1, introduced: Vec::new() };
    let hard_state = HardState {
        promised: Ballot::NONE,
        incarnation: Incarnation::FIRST,
        vector: CrashVector::default(),
        configurations: Configurations::first(config.configuration()?),
        cut: Slot::NONE,
    };
    start::begin_log(&config, &directory, &identity, hard_state)?;
    Ok(directory.write_identity(&identity)?)
}

impl Maker {
    fn command(&mut self, operation: Operation<'_>) -> anyhow::Result<Answer> {
        let sequence = Sequence(self.plan.sequence);
        self.plan.sequence += 1;
        let command = Command { session: SessionId(self.plan.session), sequence, unanswered_from: sequence, operation };
        self.cell.done(PATIENCE, &command).context("nobody does it")
    }

    fn open_session(&mut self) -> anyhow::Result<()> {
        let Answer::SessionOpened(session) = self.command(Operation::OpenSession)? else { bail!("no session") };
        (self.plan.session, self.plan.sequence) = (session.0, 1);
        Ok(())
    }

    fn put(&mut self, count: u64) -> anyhow::Result<()> {
        for _ in 0..count {
            self.puts += 1;
            let number = self.random.u64(..KEYS);
            let is_large = number.is_multiple_of(LARGE_EVERY) && self.random.u8(..8) == 0;
            let length = if is_large { LARGE_BYTES } else { self.random.usize(SMALL_BYTES) };
            let key = format!("key/{number:03}");
            // No two are alike.
            let mut value = format!("{key} {} ", self.puts).into_bytes();
            value.extend(std::iter::repeat_with(|| self.random.alphanumeric() as u8).take(length));
            let answer = self.command(Operation::Put { key: key.as_bytes(), value: &value })?;
            ensure!(matches!(answer, Answer::Written { .. }), "{answer:?}");
            self.plan.keys.insert(key, value);
        }
        Ok(())
    }

    /// One of each replica, and the log cut as far as may be.
    fn snapshot(&mut self) -> anyhow::Result<()> {
        self.level()?;
        let count = |cell: &InProcess| -> Vec<u64> {
            cell.running.values().map(|running| running.engine.counters().snapshots).collect()
        };
        let before = count(&self.cell);
        self.cell.running.values_mut().for_each(|running| running.engine.snapshot_now());
        let are_made =
            |cell: &mut InProcess| count(cell).iter().zip(&before).all(|(now, before)| now > before).then_some(());
        self.cell.turn_until(PATIENCE, are_made).context("no snapshots")
    }

    /// Waits until all have applied the same.
    fn level(&mut self) -> anyhow::Result<()> {
        let is_level = |cell: &mut InProcess| {
            let mut chosen = cell.running.values().map(|running| running.engine.replica().chosen());
            let first = chosen.next()?;
            chosen.all(|other| other == first).then_some(())
        };
        self.cell.turn_until(PATIENCE, is_level).context("they do not get level")
    }

    /// In order, with a mark behind each log.
    fn stop(mut self, dir: &Path) -> anyhow::Result<Plan> {
        self.level()?;
        let now = self.cell.now;
        self.plan.chosen = self.cell.running[&1].engine.replica().chosen().0;
        for (id, running) in &mut self.cell.running {
            running.mark(now);
            for written in running.take_written() {
                let path = segment_path(&before_dir(dir, *id), written.segment);
                let file = File::options().create(true).truncate(false).write(true).open(&path)?;
                file.set_len(SEGMENT_BYTES)?;
                file.write_all_at(&written.before, written.offset)?;
            }
        }
        Ok(self.plan)
    }
}

/// Where the frames are.
#[derive(Default)]
struct Frames {
    /// Segment, offset, length, and the first slot that it has a record of.
    found: Vec<(u64, u64, u64, Option<u64>)>,
}

impl Visitor for Frames {
    fn frame(&mut self, header: &FrameHeader) {
        self.found.push((header.segment.0, header.offset, header.frame_bytes() as u64, None));
    }

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        let (.., slot) = self.found.last_mut().expect("a record is in a frame");
        if record.slot.0 > 0 {
            slot.get_or_insert(record.slot.0);
        }
    }

    fn lost(&mut self, _: &Lost) -> LostSlots {
        LostSlots::ANY
    }
}

/// Of what is behind the end of the log, so much: what is there now means nothing, and what gets there must not.
const BEHIND_THE_END: u64 = 4;

/// The blocks of the log in a directory that nobody uses, and how many slots of it are above this one.
pub(super) fn log_blocks(dir: &Path, snapshot: u64) -> anyhow::Result<(Vec<LogBlock>, u64)> {
    let identity = Directory::open_to_look(dir)?.identity()?.context("a directory that has begun")?;
    let mut storage = synod_wal::directory::DirectoryStorage::open_read_only(dir)?;
    let identity = synod_wal::Identity {
        cell: synod_wal::CellId(identity.cell),
        replica: synod_wal::ReplicaId(identity.replica),
        incarnation: synod_wal::Incarnation(identity.incarnation),
        start: synod_wal::StartId(0),
    };
    let settings = synod_wal::Settings {
        segment_bytes: SEGMENT_BYTES,
        log_bytes_max: defaults::log_mb_max() << 20,
        frame_bytes_max: FRAME_BYTES_MAX,
    };
    let mut frames = Frames::default();
    let recovered = synod_wal::inspect(&mut storage, settings, &identity, &mut frames)?;
    ensure!(recovered.ended_with_mark, "{} was not stopped in order", dir.display());
    let mut blocks = Vec::new();
    for (segment, offset, bytes, slot) in &frames.found {
        for offset in (*offset..offset + bytes).step_by(BLOCK_BYTES as usize) {
            blocks.push(LogBlock { segment: *segment, offset, slot: *slot });
        }
    }
    let last = *blocks.last().context("the log is empty")?;
    for number in 1..=BEHIND_THE_END {
        let offset = last.offset + number * BLOCK_BYTES;
        if offset < SEGMENT_BYTES {
            blocks.push(LogBlock { segment: last.segment, offset, slot: None });
        }
    }
    // The next one, which was made ahead of need.
    if segment_path(dir, SegmentId(last.segment + 1)).exists() {
        blocks.push(LogBlock { segment: last.segment + 1, offset: 0, slot: None });
    }
    let slots = frames.found.iter().filter_map(|(.., slot)| *slot);
    Ok((blocks, slots.filter(|slot| *slot > snapshot).count() as u64))
}

pub(super) const BLOCK_BYTES: u64 = synod_ring::BLOCK_BYTES as u64;
/// As large as the smallest segments allow; what reads the sample needs it for its bounds alone.
const FRAME_BYTES_MAX: usize = 1 << 20;

/// One past the last page of a database that anything was written to.
pub(super) fn pages(dir: &Path) -> anyhow::Result<u64> {
    let bytes = fs::read(dir.join("database"))?;
    let last = bytes.iter().rposition(|byte| *byte != 0).context("the database is empty")?;
    Ok(last as u64 / BLOCK_BYTES + 1)
}
