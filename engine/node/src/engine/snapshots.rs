//! Snapshots of this replica's database: when one is kept, and what of the log goes then (PML §5.5).
//!
//! The application decides when: after so many bytes of log. The replicas of a cell begin at different times, so that they do
//! not all write at the same moment. Two snapshots are kept, and the log is cut at the older one (rule S1), once the hard state
//! that says so is durable (P2). A snapshot that fails costs nothing but another try.

use super::room::BackOff;
use super::*;
use synod_paxos::SnapshotHandle;
use synod_store::ReadView;

/// After a failed snapshot the next one is tried when the log has grown by this part of what there usually is between two.
const RETRY_PART: u64 = 4;
/// Nobody's catch-up keeps the log from being cut when there is no more room than this. One more than the margin at which a
/// master refuses writes: what is freed takes a flush or two until it can be used.
const PIN_MARGIN_SEGMENTS: u64 = 2;

/// What is kept, and what is to be.
pub(super) struct Snapshots {
    /// A snapshot is due after so many bytes of log.
    log_bytes: u64,
    /// As many have been written since the last one was begun.
    log_bytes_since: u64,
    /// The next one waits for so many more, to come at another moment than the other replicas'.
    offset: u64,
    /// The snapshot that is being written.
    writing: Option<Slot>,
    /// The last two that are durable and verified, the older one first.
    kept: VecDeque<Slot>,
    /// The log is to be cut there when this record is durable.
    cutting: Option<(PersistId, Slot)>,
    /// The last one failed: until then none is begun, whatever it would free.
    back_off: Option<BackOff>,
    is_waiting: bool,
    /// The log is damaged below: two snapshots from there on, and it is cut behind that.
    damaged_upto: Option<Slot>,
}

impl Snapshots {
    /// `rank`: which of how many replicas this is.
    pub(super) fn new(retention: Retention, (rank, replicas): (u64, u64)) -> Self {
        let Retention { snapshot, snapshot_log_bytes: log_bytes, log_bytes_since_snapshot: log_bytes_since, .. } =
            retention;
        let kept = (snapshot > Slot::NONE).then_some(snapshot).into_iter().collect();
        let offset = log_bytes / replicas.max(1) * rank;
        let (back_off, is_waiting, damaged_upto) = (None, false, None);
        Self {
            log_bytes,
            log_bytes_since,
            offset,
            writing: None,
            kept,
            cutting: None,
            back_off,
            is_waiting,
            damaged_upto,
        }
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.back_off.filter(|_| self.is_waiting).map(|back_off| back_off.again)
    }

    pub(super) fn is_writing(&self) -> bool {
        self.writing.is_some()
    }

    /// The log grew.
    pub(super) fn flushed(&mut self, bytes: u64) {
        self.log_bytes_since = self.log_bytes_since.saturating_add(bytes);
    }
}

impl Engine {
    /// Begins a snapshot if one is due, and cuts the log as far as may be. Once a turn.
    pub(super) fn tend_snapshots(&mut self, now: Instant, outlet: &mut impl Outlet) {
        self.begin_snapshot(now, outlet);
        self.cut_log(now, outlet);
        if self.replica.is_full() && !self.log.is_full_within(self.log.settings().segment_bytes) {
            self.step(now, Event::LogRoom, outlet);
            // A full log renewed no lease: a master whose lease ran out meanwhile is none any more.
            self.step(now, Event::Ticked, outlet);
        }
    }

    fn begin_snapshot(&mut self, now: Instant, outlet: &mut impl Outlet) {
        let applied = self.replica.chosen();
        let snapshots = &mut self.snapshots;
        snapshots.is_waiting &= snapshots.back_off.is_some_and(|back_off| now < back_off.again);
        if snapshots.is_waiting {
            return;
        }
        let is_due = snapshots.log_bytes_since >= snapshots.log_bytes.saturating_add(snapshots.offset);
        let is_news = snapshots.kept.back().is_none_or(|last| applied > *last);
        // With a full log nothing new is applied: what frees it may be a second snapshot of the same state.
        let may_free = self.refuses_writes && self.log.segment_counts().0 > 1;
        let would_free = may_free && snapshots.kept.front().is_none_or(|older| applied > *older);
        let is_cut_behind = |upto: &Slot| self.log.cut_slot().0 > upto.0;
        snapshots.damaged_upto.take_if(|upto| is_cut_behind(upto));
        // What the log has lost must be in both snapshots.
        let lacks = |upto: Slot| snapshots.kept.len() < 2 || snapshots.kept.front().is_some_and(|older| *older < upto);
        let would_heal = snapshots.damaged_upto.is_some_and(|upto| applied >= upto && lacks(upto));
        let is_wanted = applied > Slot::NONE && (is_due && is_news || would_free || would_heal);
        let is_trusted = !self.replica.is_quarantined();
        if !is_wanted || !is_trusted || snapshots.writing.is_some() || self.catch_up.is_keeping() {
            return;
        }
        snapshots.log_bytes_since = 0;
        // Only the first time: from then on each keeps its own pace.
        snapshots.offset = 0;
        snapshots.writing = Some(applied);
        outlet.keep_snapshot(&self.replica.snapshot_handle(), &mut self.cell);
    }

    /// A closed segment of the log is not what was written. Its values are in the database, or will be: once two snapshots have
    /// them the log is cut behind it, and until then a start, or a laggard, asks the others (rules L4, L5). False if the log needs it
    /// no more.
    pub fn log_damaged(&mut self, closed: &synod_wal::Closed) -> bool {
        let is_held = self.log.holds(closed);
        if is_held {
            let upto = Slot(closed.last_slot.0);
            self.snapshots.damaged_upto = self.snapshots.damaged_upto.max(Some(upto));
        }
        is_held
    }

    /// An operator wants a snapshot now. It begins with the next turn, unless one is under way or nothing has changed.
    pub fn snapshot_now(&mut self) {
        self.snapshots.log_bytes_since = u64::MAX;
    }

    /// The snapshot that the outlet was asked to keep is durable and verified, or was given up.
    pub fn snapshot_kept(&mut self, now: Instant, kept: bool) {
        let snapshots = &mut self.snapshots;
        let slot = snapshots.writing.take().expect("a snapshot was being written");
        if kept {
            self.counters.snapshots += 1;
            snapshots.back_off = None;
            snapshots.kept.push_back(slot);
            if snapshots.kept.len() > 2 {
                snapshots.kept.pop_front();
            }
        } else {
            self.counters.snapshots_failed += 1;
            snapshots.back_off = Some(BackOff::after(snapshots.back_off, now));
            snapshots.is_waiting = true;
            snapshots.log_bytes_since = snapshots.log_bytes - snapshots.log_bytes / RETRY_PART;
        }
    }

    /// The database is another replica's snapshot now: the one kept of it is the first of its file.
    pub(super) fn snapshot_installed(&mut self, slot: Slot) {
        self.snapshots.kept = VecDeque::from([slot]);
        self.snapshots.log_bytes_since = 0;
    }

    fn cut_log(&mut self, now: Instant, outlet: &mut impl Outlet) {
        if let Some((_, upto)) = self.snapshots.cutting.take_if(|(record, _)| *record <= self.durable) {
            self.log.cut(synod_wal::Slot(upto.next().0));
        }
        if self.snapshots.cutting.is_some() || self.snapshots.kept.len() < 2 || self.replica.is_quarantined() {
            return;
        }
        let older = if synod_paxos::planted!(S1CutsAtTheNewer) { 1 } else { 0 };
        let older = self.snapshots.kept[older];
        // A log that is nearly full is cut all the same: a laggard begins again, but writes go on.
        let is_in_the_way = self.pinned(now).is_some_and(|pinned| pinned < older);
        if is_in_the_way && self.log.is_full_within(PIN_MARGIN_SEGMENTS * self.log.settings().segment_bytes) {
            self.catch_up.take_back();
            self.log_reads.forget_readers();
        }
        let upto = older.min(self.pinned(now).unwrap_or(Slot(u64::MAX)));
        if upto > self.replica.cut() {
            self.step(now, Event::Cut { upto }, outlet);
            self.snapshots.cutting = Some((PersistId(self.log.appended().0), upto));
        }
    }

    /// The log is kept from behind this slot on, for those who catch up: with a state of this replica, or by the log.
    fn pinned(&mut self, now: Instant) -> Option<Slot> {
        self.catch_up.pinned(now).into_iter().chain(self.log_reads.pinned(now)).min()
    }

    /// The database as it is now, to be read by another thread, and which state that is.
    pub fn freeze(&mut self) -> (SnapshotHandle, ReadView) {
        (self.replica.snapshot_handle(), self.cell.store_mut().freeze())
    }

    /// The snapshot that is kept of the database, and whether another one is being written.
    pub fn snapshot(&self) -> (Option<Slot>, bool) {
        (self.snapshots.kept.back().copied(), self.snapshots.writing.is_some())
    }
}
