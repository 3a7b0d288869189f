//! Catch-up by snapshot: what a laggard lacks is gone from everybody's log.
//!
//! Whoever is asked for such a slot freezes its database and *offers* that state. The laggard builds a second database of it, chunk
//! by chunk, each asked for by where the one before ended; so it can go on after a lost message, and with whichever replica
//! has the same state. Another thread puts the rows there, one that steps back behind whoever serves. When it is whole, durable,
//! and not spoken against (`vouching`), it takes the place of the own one, and the log goes on from there: the holder keeps its log
//! from the offered state on, for a bounded time and while there is room, so that this ends. (A laggard that was gone once made the
//! log full, and nobody could write for ten seconds.)
//!
//! While it lasts the laggard goes on as it was, and votes; it asks nobody's log meanwhile. The chunks come at a bounded rate, and so do the
//! reads of the log that follow (`pace`): those who serve share the disk with it here and there, and the processor.

use super::vouching::{Vouched, Vouching};
use super::*;
use crate::codec::SnapshotMessage;
use synod_paxos::SnapshotHandle;
use synod_store::{Digest, ImportError, ReadView, Store};

/// A state that was offered is kept so long after it was last asked for.
const HANDOUT_IDLE_MAX: Duration = Duration::from_secs(10);
/// And so long in all, or as long as a large one takes: a laggard that is not done by then begins again, with a newer one (rule S6).
const HANDOUT_TIME_MIN: Duration = Duration::from_secs(1200);
/// It takes so many times as long as its keys and values alone: each row has numbers beside it, and the whole is made durable.
const HANDOUT_TIME_FACTOR: u32 = 4;
/// While the laggard does something else with what it has it asks now and then, so that the log behind that state stays.
const KEEP_ALIVE: Duration = Duration::from_secs(2);
const _: () = assert!(KEEP_ALIVE.as_secs() * 3 < HANDOUT_IDLE_MAX.as_secs());
/// A chunk that has not come after this is asked for again, from the next replica.
const CHUNK_PATIENCE: Duration = Duration::from_millis(500);
/// After so many of them in vain the transfer is given up; the next offer begins another.
const CHUNKS_IN_VAIN_MAX: u32 = 20;

/// A state of this replica's database that others may fetch.
struct Handout {
    handle: SnapshotHandle,
    view: ReadView,
    until: Instant,
    asked: Instant,
}

/// Another replica's database, on its way here.
struct Incoming {
    handle: SnapshotHandle,
    /// What its sender says its digest is, and what the others say of that.
    vouching: Vouching,
    /// Who is asked.
    of: ReplicaId,
    /// Where the next chunk begins.
    from: Option<Bytes>,
    /// Whether it has been asked for.
    asked: bool,
    /// When it is asked for, or asked for again.
    again: Instant,
    in_vain: u32,
    stage: Stage,
}

enum Stage {
    /// An empty database is being made.
    Waiting,
    /// Chunks come.
    Filling(Box<Cell>),
    /// One has come, and its rows are being put into the database, elsewhere; where the next one begins (`None`: it was the last).
    Importing { next: Option<Bytes> },
    /// It is whole, and nobody has vouched for it yet.
    Whole(Box<Cell>),
    /// It is being made durable beside the own one.
    Keeping(Box<Cell>),
}

/// A chunk's rows, and the database they go into.
#[derive(Debug)]
pub struct Import {
    cell: Box<Cell>,
    rows: Bytes,
    is_last: bool,
}

impl Import {
    /// Puts them there. Takes a processor's time, and the kernel's, which has memory to clear: not the hot core's work.
    pub fn run(mut self) -> Imported {
        let outcome = self.cell.store_mut().import(&self.rows, self.is_last);
        Imported { cell: self.cell, bytes: self.rows.len(), outcome }
    }
}

/// A database with a chunk more.
#[derive(Debug)]
pub struct Imported {
    cell: Box<Cell>,
    bytes: usize,
    outcome: Result<(), ImportError>,
}

/// Both sides of it.
pub(super) struct CatchUp {
    chunk_bytes: usize,
    pace: Pace,
    handout: Option<Handout>,
    incoming: Option<Incoming>,
}

impl CatchUp {
    pub(super) fn new(chunk_bytes: usize, pace: Pace) -> Self {
        Self { chunk_bytes, pace, handout: None, incoming: None }
    }

    /// What the log has not comes as a snapshot, and whoever were asked for it again would freeze a state of its own.
    pub(super) fn makes_needless(&self, message: &Message) -> bool {
        self.incoming.is_some() && matches!(message, Message::Fetch { .. })
    }

    /// Whether the next chunk of another database is wanted.
    fn is_filling(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| matches!(incoming.stage, Stage::Filling(_)))
    }

    /// Whether another database is about to take the place of this one.
    pub(super) fn is_keeping(&self) -> bool {
        self.incoming.as_ref().is_some_and(|incoming| matches!(incoming.stage, Stage::Keeping(_)))
    }

    /// Nobody may fetch the state that was offered any more.
    pub(super) fn take_back(&mut self) {
        self.handout = None;
    }

    /// A state from before this slot is of no use to whoever asks for one.
    pub(super) fn take_back_older(&mut self, than: Slot) {
        self.handout.take_if(|handout| handout.handle.slot < than);
    }

    /// The log is kept from behind this slot on: somebody fetches the state there.
    pub(super) fn pinned(&mut self, now: Instant) -> Option<Slot> {
        self.handout.take_if(|handout| now.since(handout.asked) > HANDOUT_IDLE_MAX || now > handout.until);
        self.handout.as_ref().map(|handout| handout.handle.slot)
    }

    /// Whether another replica's database is on its way here.
    pub(super) fn is_under_way(&self) -> bool {
        self.incoming.is_some()
    }

    /// Who vouches for it.
    pub(super) fn vouching(&mut self) -> Option<&mut Vouching> {
        self.incoming.as_mut().map(|incoming| &mut incoming.vouching)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let vouching = self.incoming.as_ref().map(|incoming| incoming.vouching.deadline());
        self.chunk_deadline().into_iter().chain(vouching).min()
    }

    fn chunk_deadline(&self) -> Option<Instant> {
        let asks = |incoming: &&Incoming| !matches!(incoming.stage, Stage::Waiting);
        self.incoming.as_ref().filter(asks).map(|incoming| incoming.again)
    }
}

impl Engine {
    /// What this replica wants is gone from the log here: there is the database instead.
    pub(super) fn offer_snapshot(&mut self, to: ReplicaId, outlet: &mut impl Outlet) {
        // It seeds nobody (P14).
        if self.replica.is_quarantined() && !synod_paxos::planted!(P14SeedsFromQuarantine) {
            return;
        }
        let now = outlet.now();
        self.catch_up.pinned(now);
        let handout = self.catch_up.handout.get_or_insert_with(|| {
            let (handle, view) = (self.replica.snapshot_handle(), self.cell.store_mut().freeze());
            let time = (self.catch_up.pace.time_of(view.bytes()) * HANDOUT_TIME_FACTOR).max(HANDOUT_TIME_MIN);
            Handout { handle, view, until: now.after(time), asked: now }
        });
        handout.asked = now;
        let (handle, digest) = (handout.handle.clone(), handout.view.digest());
        self.digests.recall(handle.slot);
        outlet.send_snapshot(to, SnapshotMessage::Offer { handle, digest });
    }

    /// Another replica speaks of a snapshot.
    pub fn snapshot_message(
        &mut self,
        now: Instant,
        from: ReplicaId,
        message: SnapshotMessage,
        outlet: &mut impl Outlet,
    ) {
        match message {
            SnapshotMessage::Digest(message) => self.digest_message(now, from, message, outlet),
            SnapshotMessage::Offer { handle, digest } => self.offered(now, from, (handle, digest), outlet),
            SnapshotMessage::Want { slot, from: place } => {
                let answer = self.chunk(now, slot, place);
                outlet.send_snapshot(from, answer);
            }
            SnapshotMessage::Chunk { slot, from: place, next, rows } => {
                self.fill(now, from, (slot, place), (next, rows), outlet);
            }
            SnapshotMessage::Gone { slot } => {
                if self.incoming_of(slot).is_some_and(|incoming| incoming.of == from) {
                    self.ask_next(now, outlet);
                }
            }
        }
    }

    fn chunk(&mut self, now: Instant, slot: Slot, from: Option<Bytes>) -> SnapshotMessage {
        self.catch_up.pinned(now);
        let chunk_bytes = self.catch_up.chunk_bytes;
        let Some(handout) = self.catch_up.handout.as_mut().filter(|handout| handout.handle.slot == slot) else {
            return SnapshotMessage::Gone { slot };
        };
        handout.asked = now;
        let Ok(chunk) = handout.view.export(from.as_deref(), chunk_bytes) else {
            // It kept too many pages from being used again.
            self.catch_up.handout = None;
            return SnapshotMessage::Gone { slot };
        };
        self.counters.chunks_sent += 1;
        SnapshotMessage::Chunk { slot, from, next: chunk.next.map(Bytes::from), rows: chunk.bytes.into() }
    }

    fn offered(
        &mut self,
        now: Instant,
        of: ReplicaId,
        (handle, digest): (SnapshotHandle, Digest),
        outlet: &mut impl Outlet,
    ) {
        if self.catch_up.incoming.is_some() || !self.replica.can_install(handle.slot) {
            return;
        }
        let again = now.after(CHUNK_PATIENCE);
        let vouching = Vouching::new(&handle, (of, digest), now);
        self.catch_up.incoming =
            Some(Incoming { handle, vouching, of, from: None, asked: false, again, in_vain: 0, stage: Stage::Waiting });
        outlet.make_database();
        self.ask_to_vouch(now, outlet);
    }

    /// The database that is being filled, or kept, if there is one: whoever keeps it says when it is done.
    pub fn incoming_cell(&mut self) -> Option<&mut Cell> {
        match &mut self.catch_up.incoming.as_mut()?.stage {
            Stage::Filling(cell) | Stage::Whole(cell) | Stage::Keeping(cell) => Some(cell),
            Stage::Waiting | Stage::Importing { .. } => None,
        }
    }

    /// The empty database that the outlet was asked for is there, or could not be made.
    pub fn database_made(&mut self, now: Instant, store: Option<Store>, outlet: &mut impl Outlet) {
        let incoming = self.catch_up.incoming.as_mut().expect("a database was asked for");
        match store {
            Some(store) => {
                incoming.stage = Stage::Filling(Box::new(Cell::of(store)));
                self.want(now, outlet);
            }
            None => self.catch_up.incoming = None,
        }
    }

    fn want(&mut self, now: Instant, outlet: &mut impl Outlet) {
        let Some(incoming) = &mut self.catch_up.incoming else { return };
        (incoming.asked, incoming.again) = (true, now.after(CHUNK_PATIENCE));
        let (slot, from) = (incoming.handle.slot, incoming.from.clone());
        outlet.send_snapshot(incoming.of, SnapshotMessage::Want { slot, from });
    }

    fn incoming_of(&mut self, slot: Slot) -> Option<&mut Incoming> {
        self.catch_up.incoming.as_mut().filter(|incoming| incoming.handle.slot == slot)
    }

    /// The chunk that was waited for came. What was asked for twice may come twice; what was asked for to keep the state alive is not
    /// needed.
    fn fill(
        &mut self,
        now: Instant,
        of: ReplicaId,
        (slot, from): (Slot, Option<Bytes>),
        (next, rows): (Option<Bytes>, Bytes),
        outlet: &mut impl Outlet,
    ) {
        let Some(incoming) = &mut self.catch_up.incoming else { return };
        if incoming.handle.slot != slot || incoming.from != from {
            return;
        }
        incoming.stage = match std::mem::replace(&mut incoming.stage, Stage::Waiting) {
            Stage::Filling(cell) => {
                (incoming.of, incoming.in_vain, incoming.asked) = (of, 0, false);
                incoming.again = now.after(KEEP_ALIVE);
                outlet.import(Import { cell, rows, is_last: next.is_none() });
                Stage::Importing { next }
            }
            other => other,
        };
    }

    /// A chunk's rows are where they were to be put.
    pub fn imported(&mut self, now: Instant, imported: Imported, outlet: &mut impl Outlet) {
        let Imported { cell, bytes, outcome } = imported;
        let incoming = self.catch_up.incoming.as_mut().expect("a chunk was being imported");
        let (slot, of) = (incoming.handle.slot, incoming.of);
        let (found, expected) = (cell.store().digest(), incoming.vouching.offered());
        let Stage::Importing { next } = std::mem::replace(&mut incoming.stage, Stage::Filling(cell)) else {
            unreachable!("a chunk was being imported")
        };
        if let Err(error) = outcome {
            eprintln!("synod: the snapshot of slot {slot} that replica {of} sends is no database: {error}");
            return self.give_up_incoming(outlet);
        }
        let is_last = next.is_none();
        if is_last && found != expected {
            eprintln!(
                "synod: the snapshot of slot {slot} that came has digest {found}, and was to have {expected}: refused"
            );
            self.counters.snapshots_refused += 1;
            return self.give_up_incoming(outlet);
        }
        incoming.from = next;
        self.counters.chunks_taken += 1;
        if is_last {
            let Stage::Filling(cell) = std::mem::replace(&mut incoming.stage, Stage::Waiting) else {
                unreachable!("it was filled just now")
            };
            incoming.stage = Stage::Whole(cell);
            incoming.again = now.after(KEEP_ALIVE);
            return self.judge_incoming(now, outlet);
        }
        incoming.again = self.catch_up.pace.take(bytes, now);
        self.tend_catch_up(now, outlet);
    }

    /// What the voters say of it is enough, or is not: it is kept once it is whole, or given up.
    pub(super) fn judge_incoming(&mut self, now: Instant, outlet: &mut impl Outlet) {
        let Some(incoming) = &self.catch_up.incoming else { return };
        match (incoming.vouching.verdict(now), &incoming.stage) {
            (Vouched::Refused, Stage::Filling(_) | Stage::Whole(_)) => {
                self.count_refusal(incoming.handle.slot);
                self.give_up_incoming(outlet);
            }
            (Vouched::Sound, Stage::Whole(_)) => self.keep_incoming(outlet),
            _ => {}
        }
    }

    fn count_refusal(&mut self, slot: Slot) {
        eprintln!("synod: the snapshot of slot {slot} is not what the voters had there, as far as they say: refused");
        self.counters.snapshots_refused += 1;
    }

    fn keep_incoming(&mut self, outlet: &mut impl Outlet) {
        let incoming = self.catch_up.incoming.as_mut().expect("it was just judged");
        let Stage::Whole(mut cell) = std::mem::replace(&mut incoming.stage, Stage::Waiting) else {
            unreachable!("it is whole")
        };
        incoming.again = outlet.now().after(KEEP_ALIVE);
        outlet.keep_incoming(&incoming.handle, &mut cell);
        incoming.stage = Stage::Keeping(cell);
    }

    /// The database that the outlet was asked to keep beside the own one is durable and verified: it takes its place, unless the
    /// log has brought this replica as far meanwhile.
    pub fn incoming_kept(&mut self, now: Instant, kept: bool, outlet: &mut impl Outlet) {
        let Some(Incoming { handle, vouching, stage: Stage::Keeping(cell), .. }) = self.catch_up.incoming.take() else {
            unreachable!("a database was being kept")
        };
        let is_refused = vouching.verdict(now) == Vouched::Refused;
        if is_refused {
            self.count_refusal(handle.slot);
        }
        if !kept || is_refused || !self.replica.can_install(handle.slot) {
            return outlet.drop_database(Some(*cell));
        }
        assert!(!self.snapshots.is_writing(), "the outlet ends one before it begins the next");
        self.catch_up.handout = None;
        outlet.replace_database(std::mem::replace(&mut self.cell, *cell));
        self.recent.restart(handle.slot);
        self.snapshot_installed(handle.slot);
        self.counters.snapshots_installed += 1;
        self.digests.restart(handle.slot, self.cell.store().digest());
        self.end_quarantine(handle.slot, outlet);
        let below = synod_wal::Slot(handle.slot.next().0);
        self.step(now, Event::Installed { handle }, outlet);
        // At once: it may hold values there that were accepted and not chosen, and would be read for others.
        self.log.cut(below);
    }

    /// It is time for the next chunk; or one has not come, and the next replica may have the same state.
    pub(super) fn tend_catch_up(&mut self, now: Instant, outlet: &mut impl Outlet) {
        self.ask_to_vouch(now, outlet);
        self.judge_incoming(now, outlet);
        if self.catch_up.chunk_deadline().is_none_or(|again| now < again) {
            return;
        }
        if !self.catch_up.is_filling() {
            self.want(now, outlet);
            let incoming = self.catch_up.incoming.as_mut().expect("it is here");
            incoming.again = now.after(KEEP_ALIVE);
        } else if self.catch_up.incoming.as_ref().is_some_and(|incoming| incoming.asked) {
            self.ask_next(now, outlet);
        } else {
            self.want(now, outlet);
        }
    }

    fn ask_next(&mut self, now: Instant, outlet: &mut impl Outlet) {
        if !self.catch_up.is_filling() {
            return;
        }
        let incoming = self.catch_up.incoming.as_mut().expect("it is being filled");
        incoming.in_vain += 1;
        if incoming.in_vain > CHUNKS_IN_VAIN_MAX || !self.replica.can_install(incoming.handle.slot) {
            return self.give_up_incoming(outlet);
        }
        let others = || self.members.iter().copied().filter(|id| *id != self.me);
        incoming.of = others().find(|id| *id > incoming.of).or(others().next()).unwrap_or(incoming.of);
        self.want(now, outlet);
    }

    fn give_up_incoming(&mut self, outlet: &mut impl Outlet) {
        let stage = self.catch_up.incoming.take().map(|incoming| incoming.stage);
        outlet.drop_database(match stage {
            Some(Stage::Filling(cell) | Stage::Whole(cell) | Stage::Keeping(cell)) => Some(*cell),
            Some(Stage::Waiting | Stage::Importing { .. }) | None => None,
        });
    }
}
