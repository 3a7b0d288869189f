//! One whole replica without the world: the protocol, the log's logic and the state machine, wired together.
//!
//! The hot core drives it with a ring, the simulator with a simulated disk and network; both see every byte go through
//! this very code. It is told of messages, commands, finished flushes and time, and asks of its [`Outlet`] to send,
//! answer, flush and read.
//!
//! Invariants:
//!   - what waits for durability leaves through [`DurableQueue`] alone (rule P15);
//!   - the protocol's record numbers and the log's are the same numbers: every record goes through `append`;
//!   - every command that was taken gets exactly one answer.

mod catch_up;
mod digests;
mod entries;
mod pace;
mod reads;
mod room;
mod snapshots;
#[cfg(test)]
mod tests;
mod vouching;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use synod_api::{Answer, Command, Epoch, Mastership, Refusal, limits};
use synod_cell::Cell;
use synod_paxos::durable::DurableQueue;
use synod_paxos::{
    Ballot, Batch, BatchBuilder, Change, ChangeError, Configuration, Configurations, Effect, Effects, Event, HardState,
    Instant, Message, PersistId, Recovered, Replica, ReplicaId, Role, Settings, Slot, SnapshotHandle, StateMachine,
    Ticket, TransferError,
};
use synod_ring::AlignedBuffer;

use crate::codec::{self, RoomMessage, SnapshotMessage};
use crate::stages::{Stage, Stages, Trace};
use catch_up::CatchUp;
use digests::Digests;
use entries::{LogReads, Recent};
use pace::Pace;
use reads::Reads;
use room::Room;
use snapshots::Snapshots;

pub use catch_up::{Import, Imported};
pub use digests::{DigestStatus, Evidence, Said};
pub use entries::LogRead;
pub use reads::{READ_TIME_MAX, READS_MAX};
pub use room::{RETRY_MAX, RETRY_MIN};

/// The gather never waits for more commands than this: with so many on their way the batch is large enough.
const GATHER_COMMANDS_MAX: usize = 2048;

/// Who asked: a connection of the node's, and the id of the request on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    /// The node's number for the connection; the engine only hands it back.
    pub connection: u64,
    /// The request's id on that connection.
    pub request: u64,
}

/// What an engine asks of whatever runs it.
pub trait Outlet {
    /// The clock, for stage times. (The protocol is told the time with each event.)
    fn now(&mut self) -> Instant;
    /// Send a message to another replica, now. May be lost.
    fn send(&mut self, to: ReplicaId, message: Message);
    /// Answer a caller: `answer` is an encoded [`Answer`].
    fn answer(&mut self, caller: Caller, answer: &[u8]);
    /// Write this and make it durable, then call [`Engine::flushed`]. At most one at a time.
    fn flush(&mut self, flush: synod_wal::Flush);
    /// Long work goes on in this turn: what was asked for so far is to be begun now, not at its end. Called again and again while it
    /// lasts. Nothing to do for who begins everything at once.
    fn hurry(&mut self) {}
    /// Read this part of the log, then call [`Engine::log_read`].
    fn read_log(&mut self, read: LogRead);
    /// The members are others than before: reach all of these.
    fn reconfigure(&mut self, configurations: &Configurations);
    /// Send another replica this about a snapshot, now. May be lost.
    fn send_snapshot(&mut self, to: ReplicaId, message: SnapshotMessage);
    /// Send another replica this about room for writes, now. May be lost.
    fn send_room(&mut self, to: ReplicaId, message: RoomMessage);
    /// Freeze this database, write it out beside what is kept of it already, and call [`Engine::snapshot_kept`] when it is
    /// durable and verified. At most one at a time.
    fn keep_snapshot(&mut self, handle: &SnapshotHandle, cell: &mut Cell);
    /// Make an empty database beside the own one, and call [`Engine::database_made`]. At most one at a time.
    fn make_database(&mut self);
    /// Put a chunk's rows into that database ([`Import::run`]), in a thread of its own, and call [`Engine::imported`]. At most one at a
    /// time.
    fn import(&mut self, import: Import);
    /// That database is whole: write it out, and call [`Engine::incoming_kept`] when it is durable and verified. Snapshots
    /// of the own one, asked for before, are ended first.
    fn keep_incoming(&mut self, handle: &SnapshotHandle, cell: &mut Cell);
    /// It takes the place of the own one, durably, before this returns; `old` is to be dropped, which takes a while.
    fn replace_database(&mut self, old: Cell);
    /// It is not needed, as far as it was filled: to be dropped, and removed.
    fn drop_database(&mut self, incoming: Option<Cell>);
    /// The own database is not to be trusted (rule P14): note so, and why, durably, before this returns. May be told more later.
    fn note_quarantine(&mut self, evidence: &Evidence);
    /// It is whole again: take the note back. The evidence stays.
    fn end_quarantine(&mut self);
}

/// Commands that wait for their batch, in bytes. Above it a client is told "busy".
const QUEUED_BYTES_MAX: usize = 16 << 20;
/// A database with less room than this takes no writes from clients: what is under way, and the other replicas' files, which are
/// laid out otherwise, must still fit.
const DATABASE_RESERVE_BYTES: u64 = 256 << 20;

/// A follower begins a flush that others wait for before it applies so many bytes of commands, not after: some ten small ones. With
/// fewer, an entry to the kernel of its own would cost more.
const HURRY_BYTES_MIN: usize = 512;
/// So many commands are applied between two looks at whether that flush can go on.
const HURRY_EVERY: usize = 16;

/// A flush that takes longer is counted as a stall of the disk.
const FLUSH_STALL: Duration = Duration::from_millis(100);

/// Commands that wait for a slot.
#[derive(Default)]
struct Pending {
    /// The mastership in which they came.
    mastership: Option<Ballot>,
    /// A stamp, to be filled in, and then the commands.
    builder: BatchBuilder,
    callers: Vec<Caller>,
    /// When commands arrived, and how many at that moment.
    arrivals: Vec<(Instant, u64)>,
    /// Those of them that are traced.
    traces: Vec<Trace>,
}

/// A batch on its way.
struct InFlight {
    callers: Vec<Caller>,
    sealed: Instant,
    traces: Vec<Trace>,
}

/// This replica's time as master, as the database knows it (rule P9).
struct Reign {
    /// The ballot with which it began.
    mastership: Ballot,
    /// The batch that raises the epoch.
    begins: Ticket,
    /// The epoch, once that batch is applied: until then no command is proposed.
    epoch: Option<Epoch>,
}

/// Right after a commit its clients are about to ask again. Waiting a moment for them keeps them in one batch, where
/// otherwise those who were waiting leave at once and the two halves alternate, each waiting for the other
/// (`ceiling.md`: worth a quarter to a half at 10 to 20 clients).
struct Gather {
    /// How long to wait at most; zero: not at all.
    time_max: Duration,
    /// Until when, and for how many commands.
    waiting: Option<(Instant, usize)>,
}

impl Gather {
    /// So many commands were answered, and so many were waiting then. A lone client is never held up.
    fn after_commit(&mut self, now: Instant, answered: usize, waiting: usize) {
        let commands = answered + waiting;
        let pays = !self.time_max.is_zero() && (2..=GATHER_COMMANDS_MAX).contains(&commands);
        self.waiting = pays.then(|| (now.after(self.time_max), commands));
    }

    /// Whether a batch of so many commands should still wait.
    fn holds(&mut self, now: Instant, commands: usize) -> bool {
        self.waiting.take_if(|(until, wanted)| now >= *until || commands >= *wanted);
        self.waiting.is_some()
    }
}

/// Numbers that only grow, for status and metrics.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Commands answered from the state machine, reads under the lease left out.
    pub commands: u64,
    /// Reads answered from the state machine under the lease: no slot, no disk, no other replica.
    pub lease_reads: u64,
    /// Reads answered from what is applied here, once that was as new as they wanted: without a lease, at any replica.
    #[serde(default)]
    pub local_reads: u64,
    /// Rounds in which this replica asked for the read index.
    #[serde(default)]
    pub index_rounds: u64,
    /// Batches of this replica's that were applied.
    pub batches: u64,
    /// Commands refused before they were proposed.
    pub refused: u64,
    /// Commands whose outcome this replica does not know, because it lost mastership.
    pub abandoned: u64,
    /// Flushes of the log.
    pub flushes: u64,
    /// Elections won.
    pub elections_won: u64,
    /// Entries sent to lagging replicas, in batches.
    pub entries_sent: u64,
    /// Reads of the own log that failed or found damage.
    pub log_read_failures: u64,
    /// Snapshots of the own database that became durable.
    #[serde(default)]
    pub snapshots: u64,
    /// Snapshots of it that failed; each was tried again.
    #[serde(default)]
    pub snapshots_failed: u64,
    /// Snapshots of other replicas that took the place of the own database.
    #[serde(default)]
    pub snapshots_installed: u64,
    /// Pieces of snapshots sent to lagging replicas.
    #[serde(default)]
    pub chunks_sent: u64,
    /// Pieces of other replicas' snapshots taken in.
    #[serde(default)]
    pub chunks_taken: u64,
    /// Snapshots of other replicas that did not have the digest that was told with them, or that voters spoke against.
    #[serde(default)]
    pub snapshots_refused: u64,
    /// Digests of other replicas that were compared with the own one of the same slot.
    #[serde(default)]
    pub digests_compared: u64,
    /// Of these, those that differed.
    #[serde(default)]
    pub digests_apart: u64,
    /// How often the own database was put in quarantine.
    #[serde(default)]
    pub quarantines: u64,
    /// How often another replica's snapshot ended that.
    #[serde(default)]
    pub rebuilds: u64,
    /// Segments of the log that were cut off and are used again.
    #[serde(default)]
    pub segments_recycled: u64,
    /// How often the disk had no room for a segment of the log any more.
    #[serde(default)]
    pub disk_full: u64,
    /// And how often it was found so.
    #[serde(default)]
    pub disk_full_tries: u64,
    /// How often this replica handed mastership over because of that.
    #[serde(default)]
    pub handed_over_full: u64,
    /// The longest flush of the log, in microseconds.
    #[serde(default)]
    pub flush_longest_us: u64,
    /// Flushes that took longer than a tenth of a second.
    #[serde(default)]
    pub flush_stalls: u64,
}

/// One whole replica without the world.
pub struct Engine {
    me: ReplicaId,
    replica: Replica,
    log: synod_wal::Log,
    cell: Cell,
    client_addresses: BTreeMap<ReplicaId, String>,
    /// Of the configuration in force, and of the one to come.
    members: BTreeSet<ReplicaId>,
    awaiting_durability: DurableQueue,
    durable: PersistId,
    effects: Effects,
    /// Messages of this replica to itself.
    inbox: VecDeque<Message>,
    pending: Pending,
    /// Full batches, before `pending`.
    sealed: VecDeque<Pending>,
    queued_bytes: usize,
    in_flight: BTreeMap<Ticket, InFlight>,
    next_ticket: u64,
    reign: Option<Reign>,
    gather: Gather,
    recent: Recent,
    log_reads: LogReads,
    reads: Reads,
    snapshots: Snapshots,
    catch_up: CatchUp,
    digests: Digests,
    room: Room,
    /// When the flush that is under way began.
    flush_began: Option<Instant>,
    answer: Vec<u8>,
    was_coordinating: bool,
    /// The log is so nearly full that a master takes no more writes (rule L7), or not even a read that needs a slot, as without
    /// a lease it does. As of the last turn's end.
    refuses_writes: bool,
    refuses_reads: bool,
    counters: Counters,
    /// Where the log had lost something at the start, and how many slots at the most.
    holes: u64,
    slots_lost: u64,
    stages: Stages,
    /// Own batches whose record is not durable yet, for the flush stage.
    unflushed: VecDeque<(PersistId, Ticket, Instant, u64)>,
}

/// What an engine starts from.
pub struct Start {
    /// The protocol's settings.
    pub settings: Settings,
    /// What recovery found.
    pub recovered: Recovered,
    /// The log, ready to append.
    pub log: synod_wal::Log,
    /// The database as of `recovered.chosen`.
    pub cell: Cell,
    /// Where clients find each member.
    pub client_addresses: BTreeMap<ReplicaId, String>,
    /// How long a batch may wait, right after a commit, for the clients just answered to ask again. Zero: never.
    pub gather_time_max: Duration,
    /// What is kept beside the log, and for how long.
    pub retention: Retention,
    /// `cell` is not to be trusted: the last run noted so, or what there was cannot be read.
    pub quarantined: Option<Evidence>,
}

/// What is kept of the database and of the log, for this replica's own restart and for those that lag behind.
#[derive(Clone, Copy, Debug)]
pub struct Retention {
    /// So many bytes of applied batches are kept in memory for replicas that lag a little.
    pub recent_bytes_max: usize,
    /// All up to here is in the snapshot that the database was opened from.
    pub snapshot: Slot,
    /// The next one is due after so many bytes of log.
    pub snapshot_log_bytes: u64,
    /// As many of them are there already.
    pub log_bytes_since_snapshot: u64,
    /// How much of a snapshot a message to a laggard carries, in bytes: that, and one row more.
    pub chunk_bytes: usize,
    /// A laggard asks for so many bytes of a snapshot a second at most, and reads as many from the log for others, above
    /// what the log itself grows by.
    pub catch_up_bytes_per_second: u64,
}

impl Default for Retention {
    /// Of an empty database, of which no snapshot is ever made.
    fn default() -> Self {
        Self {
            recent_bytes_max: entries::RECENT_BYTES_MAX,
            snapshot: Slot::NONE,
            snapshot_log_bytes: u64::MAX,
            log_bytes_since_snapshot: 0,
            chunk_bytes: codec::CHUNK_BYTES,
            catch_up_bytes_per_second: u64::MAX,
        }
    }
}

impl Engine {
    /// A replica that starts now.
    pub fn new(start: Start, now: Instant) -> Self {
        let me = start.settings.me;
        let chosen = start.recovered.chosen;
        let configurations = start.recovered.configurations.clone();
        let voters: Vec<ReplicaId> = configurations.current.voters().iter().collect();
        let rank = voters.iter().position(|id| *id == me).unwrap_or(0);
        let retention = start.retention;
        let pace = || Pace::new(retention.catch_up_bytes_per_second, now);
        let incarnation = start.settings.incarnation;
        let snapshots = Snapshots::new(retention, (rank as u64, voters.len() as u64));
        let mut engine = Self {
            me,
            snapshots,
            catch_up: CatchUp::new(retention.chunk_bytes, pace()),
            digests: Digests::new(start.settings.heartbeat, now),
            room: Room::default(),
            flush_began: None,
            members: BTreeSet::new(),
            replica: Replica::new(start.settings, &start.recovered, now),
            log: start.log,
            cell: start.cell,
            client_addresses: start.client_addresses,
            awaiting_durability: DurableQueue::default(),
            durable: PersistId(0),
            effects: Effects::new(),
            inbox: VecDeque::new(),
            pending: Pending::default(),
            sealed: VecDeque::new(),
            queued_bytes: 0,
            in_flight: BTreeMap::new(),
            next_ticket: 1,
            reign: None,
            gather: Gather { time_max: start.gather_time_max, waiting: None },
            recent: Recent::new(chosen, retention.recent_bytes_max),
            log_reads: LogReads::new(pace()),
            reads: Reads::default(),
            answer: Vec::new(),
            was_coordinating: false,
            refuses_writes: false,
            refuses_reads: false,
            counters: Counters::default(),
            holes: start.recovered.holes,
            slots_lost: 0,
            stages: Stages::default(),
            unflushed: VecDeque::new(),
        };
        engine.note_members(&configurations);
        engine.slots_lost = engine.replica.lost_slots();
        if engine.holes > 0 {
            let promised = engine.replica.promised();
            let (vector, cut) = (start.recovered.vector, start.recovered.cut);
            let hard_state = HardState { promised, incarnation, vector, configurations, cut };
            codec::repeat_hard_state(&mut engine.log, &hard_state);
        }
        let passed_by = start.recovered.passed_by;
        if passed_by > start.recovered.cut {
            engine.log.cut(synod_wal::Slot(passed_by.next().0));
            engine.replica.step(now, Event::Cut { upto: passed_by }, &mut engine.effects);
        }
        match start.quarantined {
            Some(evidence) => engine.begin_in_quarantine(evidence, now),
            None => engine.digests.restart(chosen, engine.cell.store().digest()),
        }
        engine
    }

    /// In how many places the log had lost something at the start, how many slots that may have been, and how many of them are
    /// still lost.
    pub fn losses(&self) -> (u64, u64, u64) {
        (self.holes, self.slots_lost, self.replica.lost_slots())
    }

    /// A client's command came. Whatever becomes of it, the caller gets one answer.
    pub fn command(&mut self, now: Instant, caller: Caller, command: &[u8], outlet: &mut impl Outlet) {
        let admitted = match Command::decode(command) {
            Ok(decoded) if self.read_under_lease(now, caller, &decoded, outlet) => return,
            Ok(decoded) => self.admit(&decoded, command),
            Err(error) => Err(Refusal::Malformed(error.to_string())),
        };
        if let Err(refusal) = admitted {
            self.counters.refused += 1;
            return self.refuse(caller, refusal, outlet);
        }
        let bytes_before = self.pending.builder.len();
        self.pending.builder.push(command);
        self.queued_bytes += self.pending.builder.len() - bytes_before;
        self.pending.callers.push(caller);
        match self.pending.arrivals.last_mut() {
            Some((arrived, commands)) if *arrived == now => *commands += 1,
            _ => self.pending.arrivals.push((now, 1)),
        }
        if self.stages.is_traced(caller.request) {
            let Caller { connection, request } = caller;
            let (received, queued) = (now.0, outlet.now().0);
            self.pending.traces.push(Trace { connection, request, received, queued, ..Trace::default() });
        }
    }

    /// Answers a command that only reads, if this replica is the master.
    fn read_under_lease(
        &mut self,
        now: Instant,
        caller: Caller,
        command: &Command<'_>,
        outlet: &mut impl Outlet,
    ) -> bool {
        !command.operation.changes()
            && self.answer_under_lease(now, caller, outlet, |cell, answer| cell.read(command, answer))
    }

    /// Answers a read from the database as it is, if this replica is the master: no slot, no disk, no other replica. The
    /// lease is looked at again, with a fresh clock, when the answer has been made (rule P8).
    fn answer_under_lease(
        &mut self,
        now: Instant,
        caller: Caller,
        outlet: &mut impl Outlet,
        read: impl FnOnce(&mut Cell, &mut Vec<u8>),
    ) -> bool {
        if self.digests.is_halted() || !self.replica.may_read(now) {
            return false;
        }
        self.answer.clear();
        read(&mut self.cell, &mut self.answer);
        let told = outlet.now();
        if !self.replica.may_read(told) {
            return false;
        }
        outlet.answer(caller, &self.answer);
        self.counters.lease_reads += 1;
        true
    }

    /// Whether a command may be proposed here and now; makes room for it in the pending batch.
    fn admit(&mut self, decoded: &Command<'_>, command: &[u8]) -> Result<(), Refusal> {
        let changes = decoded.operation.changes();
        let Some(mastership) = self.replica.mastership() else {
            // Nobody leads for a moment, or for want of room: who reads asks again, who writes is told.
            let is_for_room = changes && self.refuses_reads && self.coordinator_address().is_none();
            return Err(if is_for_room { self.full() } else { self.not_master() });
        };
        // Checked before it costs a slot; every replica checks again when it applies, because the log is what counts.
        decoded.check_limits().map_err(|error| Refusal::Limit(error.to_string()))?;
        if self.digests.is_halted() {
            return Err(Refusal::Diverged);
        }
        let is_refused = self.refuses_writes || self.is_majority_short();
        if is_refused && changes {
            return Err(self.full());
        }
        let has_leases = !self.replica.configurations().current.lease().is_zero();
        if is_refused && has_leases {
            // A new master has its lease in a moment, and what is left of the log is for that; one whose log takes nothing at all is
            // none any more in a moment. Whoever has the lease then reads without a slot.
            return Err(Refusal::Busy);
        }
        if self.refuses_reads {
            return Err(self.full());
        }
        if changes && self.cell.store().room_bytes() < DATABASE_RESERVE_BYTES {
            return Err(Refusal::DatabaseFull);
        }
        if self.queued_bytes + command.len() > QUEUED_BYTES_MAX {
            return Err(Refusal::Busy);
        }
        let is_full = self.pending.builder.bytes_with(command) > self.batch_bytes_max();
        if is_full || self.pending.mastership.is_some_and(|began| began != mastership) {
            self.sealed.push_back(std::mem::take(&mut self.pending));
        }
        if self.pending.builder.is_empty() {
            self.pending.mastership = Some(mastership);
            self.pending.builder.push(&Mastership::Stamp(Epoch::default()).encode());
            self.queued_bytes += self.pending.builder.len();
        }
        Ok(())
    }

    /// What one batch may carry: its record has to fit a frame of the log, which is never the tighter bound in production.
    fn batch_bytes_max(&self) -> usize {
        limits::BATCH_BYTES_MAX.min(self.log.settings().payload_bytes_max() - codec::ACCEPTED_HEAD_BYTES)
    }

    fn not_master(&self) -> Refusal {
        Refusal::NotMaster { master: self.coordinator_address().map(str::to_owned) }
    }

    fn refuse(&mut self, caller: Caller, refusal: Refusal, outlet: &mut impl Outlet) {
        self.answer.clear();
        Answer::<Bytes>::Refused(refusal).encode(&mut self.answer);
        outlet.answer(caller, &self.answer);
    }

    /// A message came from another replica.
    pub fn message(&mut self, now: Instant, from: ReplicaId, message: Message, outlet: &mut impl Outlet) {
        // A cell that is halted answers no read, at no replica (P14).
        if self.digests.is_halted() && matches!(message, Message::AskIndex { .. }) {
            return;
        }
        self.step(now, Event::Received { from, message }, outlet);
    }

    /// Time passed.
    pub fn tick(&mut self, now: Instant, outlet: &mut impl Outlet) {
        self.step(now, Event::Ticked, outlet);
        self.tend_catch_up(now, outlet);
        self.tend_log_reads(outlet);
        self.tend_digests(now, outlet);
    }

    /// When the engine wants to be ticked at the latest.
    pub fn deadline(&self) -> Instant {
        let own = [
            self.catch_up.deadline(),
            self.log_reads.deadline(),
            self.reads.deadline(),
            self.room.deadline(),
            self.snapshots.deadline(),
            self.digests.deadline(self.members.len()),
        ];
        let protocol = own.into_iter().flatten().fold(self.replica.deadline(), Instant::min);
        match self.gather.waiting {
            // Only while it is the gather that holds the batch: with the window closed or a full batch in front, time alone
            // brings nothing, and a deadline that has passed would make the loop spin.
            Some((until, _)) if self.gather_may_hold() && !self.pending.builder.is_empty() => until.min(protocol),
            _ => protocol,
        }
    }

    /// The flush that the outlet was asked for is durable: the write had its full length, and the sync succeeded.
    pub fn flushed(&mut self, now: Instant, buffer: AlignedBuffer, outlet: &mut impl Outlet) {
        let upto = PersistId(self.log.flushed(buffer).0);
        assert!(upto >= self.durable, "durability is a prefix that only grows");
        self.durable = upto;
        self.counters.flushes += 1;
        let took = self.flush_began.take().map_or(Duration::ZERO, |began| now.since(began));
        self.counters.flush_longest_us = self.counters.flush_longest_us.max(took.as_micros() as u64);
        self.counters.flush_stalls += u64::from(took > FLUSH_STALL);
        while self.unflushed.front().is_some_and(|(id, ..)| *id <= upto) {
            let (_, ticket, sealed, commands) = self.unflushed.pop_front().expect("the front was just seen");
            self.stages.record(Stage::Flush, sealed, now, commands);
            if let Some(batch) = self.in_flight.get_mut(&ticket) {
                batch.traces.iter_mut().for_each(|trace| trace.durable = now.0);
            }
        }
        let frame = self.log.durable_frame().0;
        self.step(now, Event::Persisted { upto, frame }, outlet);
        while let Some((to, message)) = self.awaiting_durability.release(self.durable) {
            self.send(to, message, outlet);
        }
        self.drain_inbox(now, outlet);
    }

    /// How long the flush that is under way has lasted.
    pub fn flush_under_way(&self, now: Instant) -> Duration {
        self.flush_began.map_or(Duration::ZERO, |began| now.since(began))
    }

    /// All that arrived in this turn is in: propose what waits while the window is open, and hand the log's next frame
    /// to the outlet if no flush is under way.
    pub fn end_turn(&mut self, now: Instant, outlet: &mut impl Outlet) {
        // A segment early, and for reads half of that: the others' logs differ a little from this one.
        let segment_bytes = self.log.settings().segment_bytes;
        self.refuses_writes = self.log.is_full_within(segment_bytes);
        self.refuses_reads = self.log.is_full_within(segment_bytes / 2);
        if self.log.is_full() && !self.replica.is_full() {
            self.step(now, Event::LogFull, outlet);
        }
        self.begin_reign(outlet);
        while let Some(epoch) = self.reign.as_ref().and_then(|reign| reign.epoch)
            && self.replica.can_submit()
            && !self.is_majority_short()
        {
            if self.gather_may_hold() && self.gather.holds(now, self.pending.callers.len()) {
                break;
            }
            let Some(batch) = self.next_pending() else { break };
            self.submit(batch, epoch, outlet);
        }
        if self.replica.role() != Role::Coordinating {
            self.refuse_pending(&self.not_master(), outlet);
        } else if self.replica.is_full() || self.is_majority_short() {
            self.refuse_pending(&self.full(), outlet);
        }
        self.tend_reads(now, outlet);
        self.tend_snapshots(now, outlet);
        self.tend_room(now, outlet);
        self.begin_flush(now, outlet);
    }

    fn begin_flush(&mut self, now: Instant, outlet: &mut impl Outlet) {
        if let Some(flush) = self.log.seal() {
            self.snapshots.flushed(flush.length as u64);
            self.log_reads.flushed(flush.length as u64, now);
            self.flush_began = Some(now);
            outlet.flush(flush);
        }
    }

    /// A new mastership raises the epoch before it proposes anything for clients (rule P9).
    fn begin_reign(&mut self, outlet: &mut impl Outlet) {
        let mastership = self.replica.mastership();
        if self.reign.as_ref().map(|reign| reign.mastership) == mastership {
            return;
        }
        self.reign = None;
        self.gather.waiting = None;
        let Some(mastership) = mastership.filter(|_| self.replica.can_submit()) else { return };
        let mut builder = BatchBuilder::default();
        builder.push(&Mastership::Begins.encode());
        let begins = self.next_ticket();
        self.reign = Some(Reign { mastership, begins, epoch: None });
        self.in_flight.insert(begins, InFlight { callers: Vec::new(), sealed: outlet.now(), traces: Vec::new() });
        let event = Event::Submitted { ticket: begins, batch: builder.take() };
        self.step(outlet.now(), event, outlet);
    }

    fn next_ticket(&mut self) -> Ticket {
        let ticket = Ticket(self.next_ticket);
        self.next_ticket += 1;
        ticket
    }

    /// Whether the next batch is the pending one and may leave now, but for the gather.
    fn gather_may_hold(&self) -> bool {
        let has_begun = self.reign.as_ref().is_some_and(|reign| reign.epoch.is_some());
        has_begun && self.sealed.is_empty() && self.replica.can_submit()
    }

    /// The answers of this turn are with the kernel.
    pub fn turn_sent(&mut self, now: Instant) {
        self.stages.sent(now);
    }

    /// Nothing has happened for an idle beat, or the replica is about to stop: an empty mark frame behind the last one
    /// lets recovery tell a torn tail from damage (rule L4). The turn's end hands it out.
    pub fn mark(&mut self) {
        self.log.mark();
    }

    /// How long commands took to be decoded, from the turn's beginning on.
    pub fn record_decode(&mut self, start: Instant, end: Instant, commands: u64) {
        self.stages.record(Stage::Decode, start, end, commands);
    }

    fn next_pending(&mut self) -> Option<Pending> {
        let batch = match self.sealed.pop_front() {
            Some(batch) => batch,
            None if self.pending.builder.is_empty() => return None,
            None => std::mem::take(&mut self.pending),
        };
        self.queued_bytes -= batch.builder.len();
        Some(batch)
    }

    fn submit(&mut self, mut pending: Pending, epoch: Epoch, outlet: &mut impl Outlet) {
        if pending.mastership != self.replica.mastership() {
            // It came to an earlier mastership of this replica's, and must not slip into this one.
            return self.refuse_callers(pending.callers, &Refusal::MasterChanged, outlet);
        }
        let sealed = outlet.now();
        for (arrived, commands) in pending.arrivals.drain(..) {
            self.stages.record(Stage::Queue, arrived, sealed, commands);
        }
        let ticket = self.next_ticket();
        let commands = pending.callers.len() as u64;
        pending.builder.replace_first(&Mastership::Stamp(epoch).encode());
        let batch = pending.builder.take();
        self.in_flight.insert(ticket, InFlight { callers: pending.callers, sealed, traces: pending.traces });
        self.step(sealed, Event::Submitted { ticket, batch }, outlet);
        self.unflushed.push_back((PersistId(self.log.appended().0), ticket, sealed, commands));
        self.note_proposed(ticket, sealed, commands, outlet);
    }

    fn note_proposed(&mut self, ticket: Ticket, sealed: Instant, commands: u64, outlet: &mut impl Outlet) {
        // A cell of one may have chosen it already, and one that is no master any more refused it.
        let batch = self.in_flight.get_mut(&ticket).filter(|batch| !batch.traces.is_empty());
        if !self.stages.is_timing() && batch.is_none() {
            return;
        }
        let proposed = outlet.now();
        for trace in batch.into_iter().flat_map(|batch| &mut batch.traces) {
            (trace.sealed, trace.proposed) = (sealed.0, proposed.0);
        }
        self.stages.record(Stage::Batch, sealed, proposed, commands);
    }

    /// What waits will never be proposed: mastership went away, or the log is full.
    fn refuse_pending(&mut self, refusal: &Refusal, outlet: &mut impl Outlet) {
        while let Some(pending) = self.next_pending() {
            self.refuse_callers(pending.callers, refusal, outlet);
        }
    }

    fn refuse_callers(&mut self, callers: Vec<Caller>, refusal: &Refusal, outlet: &mut impl Outlet) {
        for caller in callers {
            self.counters.refused += 1;
            self.refuse(caller, refusal.clone(), outlet);
        }
    }

    fn step(&mut self, now: Instant, event: Event, outlet: &mut impl Outlet) {
        self.replica.step(now, event, &mut self.effects);
        self.carry_out(outlet);
        self.drain_inbox(now, outlet);
        let coordinating = self.replica.role() == Role::Coordinating;
        self.counters.elections_won += u64::from(coordinating && !self.was_coordinating);
        self.was_coordinating = coordinating;
    }

    fn drain_inbox(&mut self, now: Instant, outlet: &mut impl Outlet) {
        while let Some(message) = self.inbox.pop_front() {
            let event = Event::Received { from: self.me, message };
            self.replica.step(now, event, &mut self.effects);
            self.carry_out(outlet);
        }
    }

    fn carry_out(&mut self, outlet: &mut impl Outlet) {
        let mut effects = std::mem::take(&mut self.effects);
        for effect in effects.drain(..) {
            match effect {
                Effect::Persist { id, record } => {
                    let number = codec::append_record(&mut self.log, &record);
                    assert_eq!(number.0, id.0, "the protocol and the log number records alike");
                }
                Effect::Send { to, message } => self.send(to, message, outlet),
                Effect::SendOnceDurable { to, message, upto } => self.awaiting_durability.hold(upto, to, message),
                Effect::SendEntries { to, from, chosen } => self.send_entries(to, from, chosen, outlet),
                Effect::Apply { slot, batch, ticket } => self.apply(slot, batch, ticket, outlet),
                Effect::Index { slot } => self.index_told(slot),
                Effect::Reconfigured { configurations } => {
                    for leaver in self.note_members(&configurations) {
                        self.tell_leaver(leaver, outlet);
                    }
                    outlet.reconfigure(&configurations);
                }
                Effect::Refuse { ticket } => self.end_batch(ticket, &self.not_master(), outlet),
                Effect::Abandon { ticket } => self.end_batch(ticket, &Refusal::Unknown, outlet),
            }
        }
        self.effects = effects;
    }

    fn send(&mut self, to: ReplicaId, message: Message, outlet: &mut impl Outlet) {
        if to == self.me {
            self.inbox.push_back(message);
        } else if !self.catch_up.makes_needless(&message) {
            outlet.send(to, message);
        }
    }

    fn apply(&mut self, slot: Slot, batch: Batch, ticket: Option<Ticket>, outlet: &mut impl Outlet) {
        self.apply_batch(slot, batch, ticket, outlet);
        if synod_paxos::planted!(P14AppliesDifferently) {
            self.cell.store_mut().put_plain(b"\xff", &(self.me.0 % 2).to_le_bytes());
        }
        self.digests.push(slot, self.cell.store().digest());
    }

    fn apply_batch(&mut self, slot: Slot, batch: Batch, ticket: Option<Ticket>, outlet: &mut impl Outlet) {
        let own = ticket.and_then(|ticket| self.in_flight.remove(&ticket));
        let Some(own) = own else {
            // As with an accept that told of this batch: others wait for that to be durable, nobody for this to be applied.
            let is_awaited = !self.awaiting_durability.is_empty() && batch.len() >= HURRY_BYTES_MIN;
            if is_awaited {
                self.begin_flush(outlet.now(), outlet);
            }
            for (number, command) in batch.commands().enumerate() {
                if is_awaited && number % HURRY_EVERY == 0 {
                    outlet.hurry();
                }
                self.answer.clear();
                self.cell.apply(slot, command, &mut self.answer);
            }
            self.recent.push(slot, batch);
            return;
        };
        let chosen = outlet.now();
        if let Some(reign) = self.reign.as_mut().filter(|reign| Some(reign.begins) == ticket) {
            let begins = batch.commands().next().expect("the batch that begins has one command");
            self.cell.apply(slot, begins, &mut self.answer);
            reign.epoch = Some(self.cell.epoch());
            return self.recent.push(slot, batch);
        }
        let commands = own.callers.len() as u64;
        self.stages.record(Stage::Quorum, own.sealed, chosen, commands);
        let mut words = batch.commands();
        self.answer.clear();
        self.cell.apply(slot, words.next().expect("every batch of commands is stamped"), &mut self.answer);
        for (command, caller) in words.zip(&own.callers) {
            self.answer.clear();
            self.cell.apply(slot, command, &mut self.answer);
            outlet.answer(*caller, &self.answer);
        }
        let applied = outlet.now();
        self.gather.after_commit(applied, own.callers.len(), self.pending.callers.len());
        self.stages.applied(chosen, applied, commands, own.traces);
        self.counters.commands += commands;
        self.counters.batches += 1;
        self.recent.push(slot, batch);
    }

    fn end_batch(&mut self, ticket: Ticket, refusal: &Refusal, outlet: &mut impl Outlet) {
        let batch = self.in_flight.remove(&ticket).expect("a ticket ends once");
        for caller in batch.callers {
            match refusal {
                Refusal::Unknown => self.counters.abandoned += 1,
                _ => self.counters.refused += 1,
            }
            self.refuse(caller, refusal.clone(), outlet);
        }
    }

    /// An operator wants another replica to be the master. `Ok`: it will hand over as soon as nothing is open.
    pub fn transfer(&mut self, now: Instant, to: ReplicaId, outlet: &mut impl Outlet) -> Result<(), TransferError> {
        self.replica.check_transfer(to, now)?;
        self.step(now, Event::TransferAsked { to }, outlet);
        Ok(())
    }

    /// An operator wants the members changed. `Ok`: the change is proposed; it is decided when the configuration shows it.
    pub fn change(&mut self, now: Instant, change: Change, outlet: &mut impl Outlet) -> Result<(), ChangeError> {
        self.replica.check_change(&change, now)?;
        self.step(now, Event::ChangeAsked { change }, outlet);
        Ok(())
    }

    /// Members that came later brought their addresses with them. Gives the others that have left.
    fn note_members(&mut self, configurations: &Configurations) -> Vec<ReplicaId> {
        let members = configurations.members().map(|member| member.id).collect();
        let before = std::mem::replace(&mut self.members, members);
        for member in configurations.members() {
            if let Some((_, client)) = member_addresses(&member.address) {
                self.client_addresses.insert(member.id, client);
            }
        }
        before.into_iter().filter(|id| *id != self.me && !self.members.contains(id)).collect()
    }

    /// Where clients find the coordinator, if this replica follows one.
    pub fn coordinator_address(&self) -> Option<&str> {
        match self.replica.role() {
            Role::Following(Some(coordinator)) => self.client_addresses.get(&coordinator).map(String::as_str),
            Role::Following(None) | Role::Campaigning | Role::Coordinating => None,
        }
    }

    /// The epoch of the database: of the master that began last, as far as this replica has applied.
    pub fn epoch(&self) -> Epoch {
        // A database in quarantine is not looked into: its pages may be damaged.
        if self.replica.is_quarantined() { Epoch::default() } else { self.cell.epoch() }
    }

    /// How much the database holds; none, if it is in quarantine.
    pub fn cell_status(&self) -> Option<synod_cell::Status> {
        (!self.replica.is_quarantined()).then(|| self.cell.status())
    }

    /// The protocol, to look at.
    pub fn replica(&self) -> &Replica {
        &self.replica
    }

    /// The log, to look at.
    pub fn log(&self) -> &synod_wal::Log {
        &self.log
    }

    /// The database, to look at.
    pub fn cell(&self) -> &Cell {
        &self.cell
    }

    /// The database, to be told what became of its snapshots.
    pub fn cell_mut(&mut self) -> &mut Cell {
        &mut self.cell
    }

    /// What was counted since the start.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The stage times since the start.
    pub fn stages(&self) -> &Stages {
        &self.stages
    }

    /// The stage times, to be told what to take, and to be asked for traces.
    pub fn stages_mut(&mut self) -> &mut Stages {
        &mut self.stages
    }

    /// Whether commands wait for a slot or for their outcome.
    pub fn is_busy(&self) -> bool {
        !self.in_flight.is_empty() || !self.pending.builder.is_empty() || !self.sealed.is_empty()
    }

    /// Whether writes are refused because the log is at its bound (rule L7).
    pub fn refuses_writes(&self) -> bool {
        self.refuses_writes
    }
}

/// The peer and client address of a member that was added to a running cell: what its address in the configuration says.
/// `None` for those that the first start named, whose addresses are in everybody's flags.
pub fn member_addresses(address: &str) -> Option<(String, String)> {
    let (peer, client) = address.split_once(',')?;
    Some((peer.to_owned(), client.to_owned()))
}
