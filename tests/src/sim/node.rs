//! One simulated replica: the real engine, on a simulated disk.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use fastrand::Rng;
use synod_api::{Command, Operation, Sequence, SessionId};
use synod_cell::Cell;
use synod_node::codec::{self, RoomMessage, SnapshotMessage};
use synod_node::engine::{Caller, Engine, Evidence, Import, LogRead, Outlet, Retention, Start};
use synod_node::start::{Replay, StateLoss};
use synod_paxos::{
    Ballot, Configuration, Configurations, CrashVector, HardState, Incarnation, Instant, LogPosition, Message, Record,
    Recovered, ReplicaId, Settings, Slot, SnapshotHandle, StateMachine,
};
use synod_wal::frame::{FRAME_HEADER_BYTES, FrameHeader};
use synod_wal::record::RECORD_HEADER_BYTES;
use synod_wal::{
    CellId, Flush, Identity, Location, Log, Lost, LostSlots, RecordRef, SegmentId, StartId, Tail, Upkeep, Visitor,
    read_record,
};

use super::acceptors;
use super::clocks::Clock;
use super::disk::{Astray, Disk};
use super::divergence::Apart;
use super::operators::Wish;
use super::operators::may_start;
use super::oracle::{Asked, Oracle};
use super::planted::Bug;
use super::snapshots::{DatabaseWish, Writing};
use super::swarm::{Swarm, Tearing};
use super::verdict::{Checker, Verdict, Violation, violation};

/// What waits for a replica's next turn.
#[derive(Debug)]
pub(crate) enum Input {
    /// A message of another replica, as bytes.
    Message {
        from: ReplicaId,
        kind: u8,
        bytes: Bytes,
    },
    /// Bytes of a client.
    Client {
        connection: usize,
        bytes: Vec<u8>,
    },
    /// The flush is durable (or said to be).
    Flushed(Flush),
    UpkeepDone(Upkeep),
    /// There is no room for it.
    UpkeepRefused(Upkeep),
    LogRead(LogRead),
    SnapshotKept(bool),
    DatabaseMade,
    Import(Import),
    IncomingKept(bool),
    /// The scrubber's time has come.
    Scrub,
    /// An operator's.
    Wish(Wish),
}

/// What an engine asked for during one call.
#[derive(Default)]
pub(crate) struct Wishes {
    pub(crate) now: u64,
    pub(crate) sends: Vec<(ReplicaId, Message)>,
    pub(crate) answers: Vec<(Caller, Vec<u8>)>,
    pub(crate) flush: Option<Flush>,
    pub(crate) reads: Vec<LogRead>,
    pub(crate) snapshot_sends: Vec<(ReplicaId, SnapshotMessage)>,
    pub(crate) room_sends: Vec<(ReplicaId, RoomMessage)>,
    pub(crate) databases: Vec<DatabaseWish>,
}

impl Outlet for Wishes {
    fn now(&mut self) -> Instant {
        Instant(self.now)
    }

    fn send(&mut self, to: ReplicaId, message: Message) {
        self.sends.push((to, message));
    }

    fn answer(&mut self, caller: Caller, answer: &[u8]) {
        self.answers.push((caller, answer.to_vec()));
    }

    fn flush(&mut self, flush: Flush) {
        let before = self.flush.replace(flush);
        assert!(before.is_none(), "one flush at a time");
    }

    fn read_log(&mut self, read: LogRead) {
        self.reads.push(read);
    }

    fn send_snapshot(&mut self, to: ReplicaId, message: SnapshotMessage) {
        self.snapshot_sends.push((to, message));
    }

    fn send_room(&mut self, to: ReplicaId, message: RoomMessage) {
        self.room_sends.push((to, message));
    }

    fn keep_snapshot(&mut self, handle: &SnapshotHandle, cell: &mut Cell) {
        self.databases.push(DatabaseWish::Keep(handle.clone(), cell.store_mut().freeze()));
    }

    fn make_database(&mut self) {
        self.databases.push(DatabaseWish::Make);
    }

    fn import(&mut self, import: Import) {
        self.databases.push(DatabaseWish::Import(import));
    }

    fn keep_incoming(&mut self, handle: &SnapshotHandle, cell: &mut Cell) {
        self.databases.push(DatabaseWish::KeepIncoming(handle.clone(), cell.store_mut().freeze()));
    }

    fn replace_database(&mut self, _: Cell) {
        self.databases.push(DatabaseWish::Replace);
    }

    fn drop_database(&mut self, _: Option<Cell>) {
        self.databases.push(DatabaseWish::Drop);
    }

    fn note_quarantine(&mut self, evidence: &Evidence) {
        self.databases.push(DatabaseWish::Quarantine(Some(evidence.clone())));
    }

    fn end_quarantine(&mut self) {
        self.databases.push(DatabaseWish::Quarantine(None));
    }

    /// Everybody here is reached by number.
    fn reconfigure(&mut self, _: &Configurations) {}
}

/// How a replica's process ends.
#[derive(Clone, Debug)]
pub(crate) struct Crash {
    /// With its machine: the device's cache is lost.
    pub(crate) power: bool,
    pub(crate) tearing: Tearing,
    /// How long it stays down; `None`: somebody else starts it.
    pub(crate) down: Option<u64>,
    /// For what is torn, and what else is lost with it.
    pub(crate) random: Rng,
}

/// What is to stand still, and how long, once a replica has asked for promises or has begun to hand over.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct InRound {
    pub(crate) pause: Option<u64>,
    pub(crate) stall: Option<u64>,
    pub(crate) suspend: Option<u64>,
}

impl InRound {
    pub(crate) fn any(&self) -> bool {
        self.pause.or(self.stall).or(self.suspend).is_some()
    }
}

/// Who is told what recovery finds: the replica's own way to take it, and the judges.
struct Reading<'a> {
    replay: &'a mut Replay,
    found: &'a mut Vec<Result<Record, codec::CodecError>>,
}

impl Visitor for Reading<'_> {
    fn frame(&mut self, header: &FrameHeader) {
        self.replay.frame(header);
    }

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        self.replay.take_raw(&record);
        self.found.push(codec::decode_record(record.kind, record.slot, record.ballot, record.payload));
    }

    fn lost(&mut self, lost: &Lost) -> LostSlots {
        self.replay.lose(lost)
    }
}

/// What became of a start.
pub(crate) enum Started {
    Up(Tail),
    /// What was left of its log was set aside, and it rejoins.
    Anew(StateLoss),
    /// It must not run on this directory, and said why.
    Refused(String),
}

/// Why a replica does not start from what is on its disk.
enum NotStarted {
    Lost(StateLoss),
    Refused(String),
}

impl From<NotStarted> for Started {
    fn from(why: NotStarted) -> Self {
        match why {
            NotStarted::Lost(what) => Started::Refused(what.to_string()),
            NotStarted::Refused(why) => Started::Refused(why),
        }
    }
}

fn refused(why: impl ToString) -> NotStarted {
    NotStarted::Refused(why.to_string())
}

/// A copy of a replica's disk, and what the judge knows of it.
pub(crate) struct OldCopy {
    pub(crate) disk: Disk,
    pub(crate) acceptor: acceptors::Disk,
    /// The copy's log does not go further.
    pub(crate) position: LogPosition,
}

/// A replica and its machine.
pub(crate) struct Node {
    pub(crate) id: ReplicaId,
    pub(crate) clock: Clock,
    /// It was never a member, and never started.
    pub(crate) is_spare: bool,
    /// Counts its starts.
    pub(crate) life: u64,
    /// `None` while it is down.
    pub(crate) engine: Option<Box<Engine>>,
    pub(crate) disk: Disk,
    pub(crate) inbox: Vec<Input>,
    pub(crate) turn_due: bool,
    /// The earliest wake-up that is under way.
    pub(crate) wake_at: u64,
    /// When the log gets its mark, if nothing else happens (rule L4). On its own clock.
    pub(crate) mark_at: Option<u64>,
    /// The process stands still until then.
    pub(crate) paused_until: u64,
    /// It is to be stopped for so long in the middle of its next turn.
    pub(crate) pause_in_turn: Option<u64>,
    pub(crate) in_round: InRound,
    /// It was stopped in the middle of a turn: what its clock had shown, and how much of the inbox it had taken.
    pub(crate) caught: Option<(u64, usize)>,
    /// The whole machine stands still until then.
    pub(crate) suspended_until: u64,
    /// The disk does nothing until then.
    pub(crate) stalled_until: u64,
    /// By fault: how many times as long the disk takes.
    pub(crate) slow: BTreeMap<usize, u64>,
    /// By fault: the disk has no room for another file.
    pub(crate) no_room: BTreeSet<usize>,
    /// The next flush fails, and the process ends with it.
    pub(crate) flush_fails: Option<Crash>,
    /// Until then no flush succeeds, and each ends the process.
    pub(crate) flushes_fail_until: u64,
    /// Until then the disk cannot be read, or not all of it.
    pub(crate) reads_fail_until: u64,
    /// The next flush goes astray.
    pub(crate) astray: Option<(Astray, Rng)>,
    pub(crate) upkeep: Option<Upkeep>,
    /// Snapshots that are being written out, one after the other.
    pub(crate) writing: VecDeque<Writing>,
    /// It crashes in the middle of its next flush.
    pub(crate) doomed: Option<Crash>,
    /// Questions that were put to this life of it, by connection and request.
    pub(crate) asked: BTreeMap<(u64, u64), Asked>,
    /// An older copy of its disk, which somebody keeps to put it back.
    pub(crate) copy: Option<OldCopy>,
    /// Its database is not what the log has made of it.
    pub(crate) apart: Option<Apart>,
    pub(crate) applied: Slot,
    pub(crate) promised: Ballot,
    /// It was a coordinator after its last turn.
    pub(crate) leads: bool,
    /// When it was first seen to be, on its own clock.
    pub(crate) leads_since: Instant,
}

/// A disk that cannot be read fails within so many reads.
const READS_MAX: u64 = 64;
const INCARNATION: Incarnation = Incarnation(1);

impl Node {
    /// A replica that has never started: its log has its first hard state.
    pub(crate) fn new(id: ReplicaId, swarm: &Swarm, start: StartId, clock: Clock) -> Node {
        let disk = new_disk(id, swarm, start, INCARNATION);
        Node {
            id,
            clock,
            is_spare: id.0 > swarm.replicas,
            life: 0,
            engine: None,
            disk,
            inbox: Vec::new(),
            turn_due: false,
            wake_at: u64::MAX,
            mark_at: None,
            paused_until: 0,
            pause_in_turn: None,
            in_round: InRound::default(),
            caught: None,
            suspended_until: 0,
            stalled_until: 0,
            slow: BTreeMap::new(),
            no_room: BTreeSet::new(),
            flush_fails: None,
            flushes_fail_until: 0,
            reads_fail_until: 0,
            astray: None,
            upkeep: None,
            writing: VecDeque::new(),
            doomed: None,
            asked: BTreeMap::new(),
            copy: None,
            apart: None,
            applied: Slot::NONE,
            promised: Ballot::NONE,
            leads: false,
            leads_since: Instant(0),
        }
    }

    /// While it is down, some frames of its log turn into something else; gives their numbers.
    pub(crate) fn rot(&mut self, swarm: &Swarm, frames: usize, late: bool, random: &mut Rng) -> Vec<u64> {
        let seen = self.disk.look(log_settings(swarm), &identity(self.id, StartId(0)));
        self.disk.rot(seen, frames, late, random)
    }

    /// A flush that was synced is not where it should be. Says whether there was a place for it.
    pub(crate) fn lead_astray(
        &mut self,
        swarm: &Swarm,
        flush: &Flush,
        before: &[u8],
        how: Astray,
        random: &mut Rng,
    ) -> bool {
        let seen = self.disk.look(log_settings(swarm), &identity(self.id, StartId(0)));
        // A full log takes nothing that is to be learned again.
        let may_lose_all = swarm.segments_max.is_none();
        self.disk.lead_astray(flush, before, how, (seen, may_lose_all), random)
    }

    /// Starts the process: recovers the log, and makes an engine of what it says, as the real thing does.
    pub(crate) fn start(
        &mut self,
        now: u64,
        swarm: &Swarm,
        seeds: (u64, u64),
        bug: Option<Bug>,
        oracle: &mut Oracle,
    ) -> Result<Started, Violation> {
        if self.disk.owner().is_none() {
            // The others say that they know it: it lost its disk, and begins a log that says so (P11, P12).
            let votes = bug == Some(Bug::P12WipedReplicaVotes);
            let incarnation = if votes { INCARNATION } else { Incarnation::NONE };
            self.disk = new_disk(self.id, swarm, StartId(seeds.0), incarnation);
        }
        let right = may_start(self.id, self.disk.owner());
        let started = match self.try_start(now, swarm, seeds, bug, right.then_some(&mut *oracle))? {
            Ok(tail) => Started::Up(tail),
            Err(NotStarted::Lost(what)) if right && self.disk.may_have_lost_its_end() => {
                // Here, too, the others know it. What was left is of no use any more, its database neither (P11).
                self.disk = new_disk(self.id, swarm, StartId(seeds.0), Incarnation::NONE);
                self.apart = None;
                oracle.acceptors.loses(self.id, None);
                let again = self.try_start(now, swarm, seeds, bug, Some(oracle))?;
                again.map_or_else(Started::from, |_| Started::Anew(what))
            }
            Err(why) => Started::from(why),
        };
        match (&started, right, self.disk.owner()) {
            (Started::Up(_) | Started::Anew(_), true, _) | (Started::Refused(_), false, _) => Ok(started),
            // It says which read failed, and is started again (`disks.md`).
            (Started::Refused(_), true, _) if self.disk.cannot_be_read() => Ok(started),
            (Started::Refused(why), true, _) => {
                let what = format!("after a mere crash replica {} does not start: {why}", self.id);
                violation(Checker::Recovery, what)
            }
            (Started::Up(_) | Started::Anew(_), false, owner) => {
                let what = format!("replica {} runs on the directory of {owner:?}, not on its own", self.id);
                violation(Checker::Recovery, what)
            }
        }
    }

    /// `oracle` is told of what is found on the disk, if it is this replica's own.
    fn try_start(
        &mut self,
        now: u64,
        swarm: &Swarm,
        seeds: (u64, u64),
        bug: Option<Bug>,
        oracle: Option<&mut Oracle>,
    ) -> Result<Result<Tail, NotStarted>, Violation> {
        let (start, seed) = seeds;
        let (handle, cell) = self.disk.databases.open().unzip();
        let snapshot = handle.as_ref().map_or(Slot::NONE, |handle| handle.slot);
        let mut replay = Replay::new(handle, cell.unwrap_or_default());
        let mut found = Vec::new();
        let mut identity = identity(self.id, StartId(start));
        if let (Some(Bug::L1WrongDirectoryVotes), Some(owner)) = (bug, self.disk.owner()) {
            identity.replica = synod_wal::ReplicaId(owner.0);
        }
        if bug == Some(Bug::L5CutsDamagedMiddle) {
            self.disk.lose_last_frame();
        }
        if bug == Some(Bug::L4CutsTheMiddle) {
            let seen = self.disk.look(log_settings(swarm), &identity);
            self.disk.cut_at_first_hole(seen);
        }
        let mut reading = Reading { replay: &mut replay, found: &mut found };
        // Sooner or later: a log is not as many blocks long.
        let reads_left = (self.reads_fail_until > now).then_some((seed % READS_MAX) as u32);
        self.disk.set_reads_left(reads_left, bug == Some(Bug::L4UnreadableIsEmpty));
        let recovered = synod_wal::inspect(&mut self.disk, log_settings(swarm), &identity, &mut reading);
        if !self.disk.cannot_be_read() {
            self.disk.set_reads_left(None, false);
        }
        let recovered = match recovered {
            Ok(recovered) => recovered,
            Err(why) => return Ok(Err(StateLoss::of_log(why).map_or_else(refused, NotStarted::Lost))),
        };
        let found = match found.into_iter().collect::<Result<Vec<_>, _>>() {
            Ok(found) => found,
            Err(error) => return Ok(Err(refused(error))),
        };
        let (incarnation, mut protocol, mut cell) = match replay.finish() {
            Ok(Some(finished)) => finished,
            Ok(None) => return Ok(Err(NotStarted::Lost(StateLoss::All))),
            Err(why) => return Ok(Err(StateLoss::of_records(why).map_or_else(refused, NotStarted::Lost))),
        };
        match bug {
            Some(Bug::P2RestartForgetsPromise) => {
                let accepted = protocol.accepted.values().map(|(ballot, _)| *ballot).max();
                protocol.promised = accepted.unwrap_or(Ballot::NONE);
            }
            Some(Bug::P2ForgetsAcceptances) => protocol.accepted.clear(),
            Some(Bug::P14RottenRow) => cell.apply(protocol.chosen, &open_session(), &mut Vec::new()),
            _ => {}
        }
        protocol.frame = recovered.log.durable_frame().0;
        if let Some(oracle) = oracle {
            oracle.recovered(self.id, found, self.disk.databases.older(), &protocol)?;
            self.check_recovered(&protocol, &cell, oracle)?;
            self.disk.databases.started(&protocol);
        }
        let mut settings = Settings::new(self.id, incarnation, seed);
        settings.window = swarm.window;
        settings.heartbeat = swarm.heartbeat;
        settings.election_timeout = swarm.election_timeout;
        settings.backlog_bytes_max = swarm.backlog_bytes_max;
        settings.boost_slots_min = swarm.boost_slots_min;
        settings.boost_time_min = swarm.boost_time_min;
        let client_addresses = (1..=swarm.machines).map(|id| (ReplicaId(id), address(ReplicaId(id)))).collect();
        let start = Start {
            settings,
            recovered: protocol,
            log: recovered.log,
            cell,
            client_addresses,
            gather_time_max: swarm.gather_max,
            retention: Retention {
                recent_bytes_max: swarm.recent_bytes_max,
                snapshot,
                snapshot_log_bytes: swarm.snapshot_log_bytes,
                log_bytes_since_snapshot: 0,
                chunk_bytes: swarm.chunk_bytes,
                catch_up_bytes_per_second: swarm.catch_up_bytes_per_second,
            },
            quarantined: self.disk.databases.quarantine().cloned(),
        };
        self.engine = Some(Box::new(Engine::new(start, Instant(self.clock.at(now)))));
        self.life += 1;
        self.wake_at = u64::MAX;
        Ok(Ok(recovered.tail))
    }

    fn check_recovered(&mut self, protocol: &Recovered, cell: &Cell, oracle: &Oracle) -> Verdict {
        oracle.acceptors.holds(self.id, protocol)?;
        // What was made durable before it went apart may be sound.
        let databases = &self.disk.databases;
        let may_be_sound = databases.quarantine().is_none() && !databases.is_rotten();
        if may_be_sound && oracle.applied(self.id, protocol.chosen, cell).is_ok() {
            self.apart = None;
        }
        if self.apart.is_none() {
            oracle.applied(self.id, protocol.chosen, cell)?;
        }
        (self.promised, self.applied) = (protocol.promised, protocol.chosen);
        Ok(())
    }

    /// The process stands still until then.
    pub(crate) fn pause(&mut self, until: u64) {
        self.paused_until = self.paused_until.max(until);
    }

    /// The disk does nothing until then.
    pub(crate) fn stall(&mut self, until: u64) {
        self.stalled_until = self.stalled_until.max(until);
    }

    /// The whole machine stands still until then.
    pub(crate) fn suspend(&mut self, until: u64) {
        self.pause(until);
        self.stall(until);
        self.suspended_until = self.suspended_until.max(until);
    }

    /// When it wants to do something, in true time. `None`: it is down.
    pub(crate) fn deadline(&self) -> Option<u64> {
        let engine = self.engine.as_ref()?;
        Some(self.clock.when(engine.deadline().0.min(self.mark_at.unwrap_or(u64::MAX))))
    }

    /// After each call of the engine: what can be seen of it from outside.
    pub(crate) fn check(&mut self, engine: &Engine, oracle: &Oracle) -> Verdict {
        let (promised, chosen) = (engine.replica().promised(), engine.replica().chosen());
        if promised < self.promised {
            let what = format!("the promise of replica {} fell from {} to {promised}", self.id, self.promised);
            return violation(Checker::Promises, what);
        }
        self.promised = promised;
        if chosen < self.applied {
            let what = format!("replica {} had applied slot {}, and now says {chosen}", self.id, self.applied);
            return violation(Checker::InOrderApply, what);
        }
        if chosen > self.applied {
            self.applied = chosen;
            if self.apart.is_none() {
                oracle.applied(self.id, chosen, engine.cell())?;
            }
        }
        Ok(())
    }
}

pub(crate) fn address(replica: ReplicaId) -> String {
    format!("replica-{replica}")
}

/// A disk whose log has nothing but a first hard state.
fn new_disk(id: ReplicaId, swarm: &Swarm, start: StartId, incarnation: Incarnation) -> Disk {
    let mut disk = Disk::new(id, swarm.segment_bytes);
    let mut log = synod_wal::create(log_settings(swarm), identity(id, start));
    let first = log.upkeep().expect("an empty log wants its first segment");
    disk.carry_out(first);
    log.upkeep_done(first);
    codec::append_record(&mut log, &Record::HardState(HardState { incarnation, ..hard_state(swarm) }));
    flush_all(&mut log, &mut disk);
    disk
}

/// What a replica has before its first start.
fn hard_state(swarm: &Swarm) -> HardState {
    let configurations = Configurations::first(configuration(swarm));
    HardState {
        promised: Ballot::NONE,
        incarnation: INCARNATION,
        vector: CrashVector::default(),
        configurations,
        cut: Slot::NONE,
    }
}

/// Who keeps the cell in the beginning.
pub(crate) fn configuration(swarm: &Swarm) -> Configuration {
    let members = (1..=swarm.replicas).map(ReplicaId);
    Configuration::of_voters(members, swarm.horizon, swarm.lease).expect("a sound configuration")
}

/// A command that needs no session.
fn open_session() -> Vec<u8> {
    let mut bytes = Vec::new();
    let (session, sequence) = (SessionId::NONE, Sequence(0));
    Command { session, sequence, unanswered_from: sequence, operation: Operation::OpenSession }.encode(&mut bytes);
    bytes
}

fn identity(replica: ReplicaId, start: StartId) -> Identity {
    let incarnation = synod_wal::Incarnation(INCARNATION.0);
    Identity { cell: CellId(7), replica: synod_wal::ReplicaId(replica.0), incarnation, start }
}

fn log_settings(swarm: &Swarm) -> synod_wal::Settings {
    let segment_bytes = swarm.segment_bytes;
    // Nothing cuts a log before there are snapshots: where it is not meant to be full, it must never be.
    let log_bytes_max = swarm.segments_max.map_or(segment_bytes << 20, |segments| segments * segment_bytes);
    let settings = synod_wal::Settings { segment_bytes, log_bytes_max, frame_bytes_max: swarm.frame_bytes_max };
    settings.validate().expect("the swarm draws sound sizes")
}

fn flush_all(log: &mut Log, disk: &mut Disk) {
    while let Some(flush) = log.seal() {
        disk.begin(flush);
        disk.write(false);
        log.flushed(disk.sync_written(false).buffer);
    }
}

/// The records in the bytes that one flush has left on the disk, read as a stranger would read them: up to the first
/// that is damaged.
pub(crate) fn records_in(bytes: &[u8], segment: SegmentId, offset: u64) -> Vec<Record> {
    let mut records = Vec::new();
    let Ok((header, _)) = FrameHeader::decode(bytes) else { return records };
    if (header.segment, header.offset) != (segment, offset) {
        return records;
    }
    let end = FRAME_HEADER_BYTES + header.payload_bytes as usize;
    let mut at = FRAME_HEADER_BYTES;
    while at < end {
        let head = &bytes[at..at + RECORD_HEADER_BYTES];
        let payload = u32::from_le_bytes([head[4], head[5], head[6], 0]);
        let slot = synod_wal::Slot(u64::from_le_bytes(head[8..16].try_into().expect("eight bytes")));
        let length = RECORD_HEADER_BYTES as u32 + payload;
        // Offsets are taken within the flush: it begins at a block.
        let checksum = u32::from_le_bytes(head[..4].try_into().expect("four bytes"));
        let location = Location { segment, offset: at as u64, length, checksum };
        let (first, length) = (location.blocks().0 as usize, length as usize);
        let Some(blocks) = bytes.get(first..).filter(|_| at + length <= bytes.len()) else { break };
        let Ok(record) = read_record(blocks, location, slot) else { break };
        let record = codec::decode_record(record.kind, record.slot, record.ballot, record.payload);
        records.push(record.expect("what was appended can be read"));
        at += length.next_multiple_of(RECORD_HEADER_BYTES);
    }
    records
}
