//! A disk without room: what the log still has is used, and the rest is tried again until there is room.
//!
//! Nothing ends with it. The log is as long as its files are (rule L7), which are zeroed ahead of need, so no flush meets a full disk.
//! The last segment before that is kept for promises and for the renewal of the lease: reads go on. Whoever has come as far tells
//! the others: a master without a majority that has room refuses writes, before a follower that is full refuses it the lease. A
//! master that is full itself looks for one that is not, and hands over to it.

use super::*;
use crate::codec::RoomMessage;
use synod_wal::Upkeep;

/// What found no room is tried again after this time, then after twice as long each time, up to the second.
pub const RETRY_MIN: Duration = Duration::from_millis(100);
/// So writes are back so soon after there is room.
pub const RETRY_MAX: Duration = Duration::from_secs(1);
/// A master without room asks the others so often whether they have some.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// Who is full says so this often.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Who has not said so for this time has room again, or is away.
const TOLD_LIVES: Duration = Duration::from_millis(500);
const _: () = assert!(TELL_EVERY.as_millis() * 3 < TOLD_LIVES.as_millis());

/// Waits longer each time, within bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct BackOff {
    wait: Duration,
    pub(super) again: Instant,
}

impl BackOff {
    /// The first wait, from now on; longer than `before` was.
    pub(super) fn after(before: Option<Self>, now: Instant) -> Self {
        let wait = before.map_or(RETRY_MIN, |before| (before.wait * 2).min(RETRY_MAX));
        Self { wait, again: now.after(wait) }
    }
}

/// The disk had no room for a segment.
#[derive(Clone, Debug)]
struct Full {
    since: Instant,
    why: String,
    wanted: Upkeep,
    back_off: BackOff,
    /// It is being tried again.
    is_trying: bool,
}

/// What is known about the room on the disk.
#[derive(Default)]
pub(super) struct Room {
    full: Option<Full>,
    ask_at: Instant,
    tell_at: Instant,
    /// Who else is full, why, and when it said so.
    short: BTreeMap<ReplicaId, (Instant, String)>,
}

impl Room {
    pub(super) fn deadline(&self) -> Option<Instant> {
        let told = self.short.values().map(|(told, _)| told.after(TOLD_LIVES));
        let again = self.full.as_ref().filter(|full| !full.is_trying).map(|full| full.back_off.again);
        told.chain(again).min()
    }
}

impl Engine {
    /// What is to be done to the log's files next, ahead of need and beside everything else. What found no room waits for a
    /// while; a segment that was cut off and can be used again does not.
    pub fn log_upkeep(&mut self, now: Instant) -> Option<Upkeep> {
        let wanted = self.log.upkeep()?;
        if let Some(full) = self.room.full.as_mut().filter(|full| full.wanted == wanted) {
            full.is_trying |= now >= full.back_off.again;
            return full.is_trying.then_some(wanted);
        }
        Some(wanted)
    }

    /// It is done, durably.
    pub fn log_upkeep_done(&mut self, upkeep: Upkeep) {
        self.log.upkeep_done(upkeep);
        self.counters.segments_recycled += u64::from(matches!(upkeep, Upkeep::Recycle { .. }));
        // Also if there are enough segments by now that were cut off: then it is not known any more, and is seen with the next.
        let is_over = matches!(upkeep, Upkeep::Make(_)) || !matches!(self.log.upkeep(), Some(Upkeep::Make(_)));
        if is_over && self.room.full.take().is_some() {
            self.log.set_can_grow(true);
        }
    }

    /// The disk has no room for it, and nothing was done. It is tried again.
    pub fn log_upkeep_refused(&mut self, now: Instant, upkeep: Upkeep, why: String) {
        let before = self.room.full.take();
        self.counters.disk_full += u64::from(before.is_none());
        self.counters.disk_full_tries += 1;
        let since = before.as_ref().map_or(now, |before| before.since);
        let mut back_off = BackOff::after(before.map(|before| before.back_off), now);
        if synod_paxos::planted!(L7NeverTriesAgain) {
            back_off.again = Instant(u64::MAX);
        }
        self.room.full = Some(Full { since, why, wanted: upkeep, back_off, is_trying: false });
        self.log.set_can_grow(false);
    }

    /// Since when the disk has had no room for a segment of the log, and what the kernel said.
    pub fn disk_full(&self) -> Option<(Instant, &str)> {
        self.room.full.as_ref().map(|full| (full.since, full.why.as_str()))
    }

    /// Why a log that is full takes nothing: the own one, or else others'.
    pub(super) fn full(&self) -> Refusal {
        let own = self.room.full.as_ref().filter(|_| self.refuses_writes).map(|full| &full.why);
        let short = || self.room.short.values().map(|(_, why)| why).next().filter(|_| !self.refuses_writes);
        own.or_else(short).map_or(Refusal::LogFull, |why| Refusal::DiskFull(why.clone()))
    }

    /// Whether so many voters are full that what is proposed would stay undecided, and nothing behind it could renew the lease.
    pub(super) fn is_majority_short(&self) -> bool {
        if self.room.short.is_empty() {
            return false;
        }
        let voters = self.replica.configurations().current.voters();
        let have_room = voters.iter().filter(|id| !self.room.short.contains_key(id)).count();
        have_room <= voters.len() / 2
    }

    /// Tells the others that there is no room here; and asks them, if this is the master, who has some. Once a turn.
    pub(super) fn tend_room(&mut self, now: Instant, outlet: &mut impl Outlet) {
        self.room.short.retain(|_, (told, _)| now.since(*told) < TOLD_LIVES);
        let Some(full) = self.room.full.as_ref().filter(|_| self.refuses_writes) else { return };
        let others = || self.members.iter().copied().filter(|id| *id != self.me);
        if now >= self.room.tell_at {
            self.room.tell_at = now.after(TELL_EVERY);
            others().for_each(|to| outlet.send_room(to, RoomMessage::Short { why: full.why.clone() }));
        }
        if self.replica.mastership().is_some() && now >= self.room.ask_at {
            self.room.ask_at = now.after(ASK_EVERY);
            others().for_each(|to| outlet.send_room(to, RoomMessage::Ask));
        }
    }

    fn needs_successor(&self) -> bool {
        self.refuses_writes && self.room.full.is_some() && self.replica.mastership().is_some()
    }

    /// Another replica asks whether it could hand over to this one, or answers.
    pub fn room_message(&mut self, now: Instant, from: ReplicaId, message: RoomMessage, outlet: &mut impl Outlet) {
        match message {
            RoomMessage::Ask => {
                // More than a master keeps free: mastership must not go to and fro.
                let has_room = !self.log.is_full_within(2 * self.log.settings().segment_bytes);
                outlet.send_room(from, RoomMessage::Have { has_room });
            }
            RoomMessage::Have { has_room: true } if self.needs_successor() => {
                if self.replica.check_transfer(from, now).is_ok() {
                    self.counters.handed_over_full += 1;
                    self.step(now, Event::TransferAsked { to: from }, outlet);
                }
            }
            RoomMessage::Have { .. } => {}
            RoomMessage::Short { why } => {
                self.room.short.insert(from, (now, why));
            }
        }
    }
}
