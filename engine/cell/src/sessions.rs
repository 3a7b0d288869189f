//! Sessions, and that a command is applied at most once (rule P10).
//!
//! # Rows
//!
//! | row | value |
//! |---|---|
//! | the counters | u64 the next session's id, u64 how many are open |
//! | a session | u16 its width, u64 its floor |
//! | a result | u64 the command's sequence, then the answer's bytes |
//!
//! A session has `width` places for results, a power of two; the result of sequence *q* is at index *q mod width*, and is
//! overwritten in place by a later command of that index. In steady state a command so touches one row besides those it
//! is about, and inserts and deletes none. A session begins with a width of 1, all that a client needs which waits for
//! each answer, and is widened, up to [`UNANSWERED_MAX`], by the first command whose *span* (how far its sequence is above
//! the lowest unanswered one) does not fit. Most sessions so keep a handful of results and not a thousand.
//!
//! # Why no command is applied twice
//!
//! While a session is open, for every sequence *q* applied in it: *q* is below the floor, or the row at *q mod width* is
//! there and holds a sequence of *q* or more. A duplicate of *q* therefore meets the floor, its own result, or a later
//! command's, and is not applied. This holds because:
//!
//! - applying *q* puts *q* there, and is done only where nothing or a lower sequence was: rows only rise;
//! - widening from *w* with highest kept sequence *r* raises the floor to *r - w + 1*. Every applied *q* from there on is
//!   at most *r* (what was applied is at most what its row holds, so at most *r*), and its row holds a sequence that
//!   equals it mod *w* and lies in the same *w* numbers: *q* itself. These rows move to their new indexes, distinct
//!   because the numbers are within *w* of each other; the rest is below the floor and is removed;
//! - when a session ends, closed or evicted, all its rows go, but its id is never allotted again, and without a
//!   session's row nothing is applied.
//!
//! The client's word (the lowest unanswered sequence) is not used, so no delayed, repeated or lying stamp can break it.
//!
//! # Why a client never misses a result it waits for
//!
//! A command *r* is applied only if its span is below the width, so its client waited for nothing at or below
//! *r - width* by then (and the width only grows). What *r* overwrites, and what widening removes, is at or below that.
//! So too for "already answered": *q* gets it under the floor or from a row *r* with *q <= r - width*.
//!
//! It does not suffice that the one result to be overwritten is answered: with sequence 1 unanswered, 1026 could take the
//! row of a sequence 2 that has not arrived, and 2 would be refused for good. Hence the bound on the span alone.
//!
//! # What is not promised
//!
//! A client that gives a command up without an answer (moves its lowest unanswered sequence past it) does not keep it
//! from being applied later, once: it may still be on its way. Keeping it out would mean to write the session's row with
//! every command. A client that must be certain closes the session: after that nothing of it is ever applied.

use std::cmp::Ordering;

use synod_api::limits::{SESSIONS_MAX, UNANSWERED_MAX};
use synod_api::{Command, Refusal, Sequence, SessionId};
use synod_store::{Finger, Store};

use crate::keyspace;

/// What is to become of a command that is applied at most once.
#[derive(Debug)]
pub(crate) enum Admission<'a> {
    /// It is new: apply it, and record its answer there.
    Apply(Place),
    /// It was applied before, and this is what was answered.
    Answered { kept: &'a [u8] },
    /// It must not be applied.
    Refused(Refusal),
}

/// Where sessions were found last. Two that share a place push each other out, which costs a search.
#[derive(Debug)]
pub(crate) struct Fingers(Box<[Finger; FINGERS]>);

/// 16 bytes each.
const FINGERS: usize = 1024;

impl Default for Fingers {
    fn default() -> Fingers {
        Fingers(Box::new([Finger::none(); FINGERS]))
    }
}

impl Fingers {
    fn of(&mut self, id: SessionId) -> &mut Finger {
        &mut self.0[id.0 as usize % FINGERS]
    }
}

/// Where the result of a command belongs.
#[derive(Debug)]
pub(crate) struct Place {
    session: SessionId,
    index: u16,
    sequence: Sequence,
    /// Where the result is now that it takes the place of.
    finger: Finger,
}

impl Place {
    /// Keeps the answer for a retry. `buffer` is empty, and left to be used again.
    pub(crate) fn record(&self, store: &mut Store, answer: &[u8], buffer: &mut Vec<u8>) {
        buffer.extend_from_slice(&self.sequence.0.to_le_bytes());
        buffer.extend_from_slice(answer);
        store.put_plain_near(&keyspace::result(self.session, self.index), buffer, self.finger);
    }
}

/// Says what is to become of the command. Its stamp keeps the limits: that was checked before.
pub(crate) fn admit<'a>(store: &'a mut Store, fingers: &mut Fingers, command: &Command<'_>) -> Admission<'a> {
    let Command { session: id, sequence, unanswered_from, .. } = *command;
    let finger = fingers.of(id);
    let Some(mut session) = Session::load(store, id, finger) else {
        return Admission::Refused(Refusal::SessionUnknown);
    };
    if sequence < session.floor {
        return Admission::Refused(Refusal::AlreadyAnswered);
    }
    let row = keyspace::result(id, session.index(sequence));
    // There if the session has all its results, and they are in one leaf with it.
    let mut finger = finger.behind(1 + session.index(sequence));
    match store.get_near(&row, &mut finger).map(|row| sequence_of(row.value).cmp(&sequence)) {
        None | Some(Ordering::Less) => {}
        Some(Ordering::Greater) => return Admission::Refused(Refusal::AlreadyAnswered),
        Some(Ordering::Equal) if synod_paxos::planted!(P10ForgetsResults) => {}
        Some(Ordering::Equal) => {
            let row = store.get(&row).expect("it was there a moment ago");
            return Admission::Answered { kept: &row.value[SEQUENCE_BYTES..] };
        }
    }
    let span = sequence.0 - unanswered_from.0;
    if span >= session.width {
        session.widen(store, id, span);
        // The client of this one has since said, by a later command, that it does not wait for it.
        if sequence < session.floor {
            return Admission::Refused(Refusal::AlreadyAnswered);
        }
    }
    Admission::Apply(Place { session: id, index: session.index(sequence), sequence, finger })
}

/// Allots a session. If too many are open, the oldest ends: a bound must hold whoever opens them, and of an order that
/// is the same everywhere the oldest is the likeliest to have been forgotten.
pub(crate) fn open(store: &mut Store) -> SessionId {
    let mut counters = Counters::load(store);
    assert!(counters.open <= SESSIONS_MAX);
    if counters.open == SESSIONS_MAX {
        let (row, _) = store.prefix(keyspace::SESSIONS_PREFIX).next().expect("as many sessions as are counted");
        end(store, keyspace::session_of(row));
        counters.open -= 1;
    }
    let id = SessionId(counters.next);
    counters.next = counters.next.checked_add(1).expect("fewer than 2^64 sessions");
    counters.open += 1;
    counters.save(store);
    Session { width: 1, floor: Sequence::FIRST }.save(store, id);
    id
}

/// Ends a session, and says whether there was one.
pub(crate) fn close(store: &mut Store, id: SessionId) -> bool {
    if Session::load(store, id, &mut Finger::none()).is_none() {
        return false;
    }
    end(store, id);
    let mut counters = Counters::load(store);
    counters.open -= 1;
    counters.save(store);
    true
}

/// How many sessions are open.
pub(crate) fn open_now(store: &Store) -> u64 {
    Counters::load(store).open
}

/// At most [`UNANSWERED_MAX`] rows and one: bounded, if not small.
fn end(store: &mut Store, id: SessionId) {
    let rows: Vec<Vec<u8>> = store.prefix(&keyspace::session(id)).map(|(row, _)| row.to_vec()).collect();
    for row in rows {
        store.delete_plain(&row);
    }
}

struct Counters {
    next: u64,
    open: u64,
}

impl Counters {
    fn load(store: &Store) -> Counters {
        let Some(row) = store.get(keyspace::COUNTERS_KEY) else {
            return Counters { next: SessionId::NONE.0 + 1, open: 0 };
        };
        let (next, open) = row.value.split_at(8);
        Counters { next: number(next), open: number(open) }
    }

    fn save(&self, store: &mut Store) {
        let mut value = [0; 16];
        value[..8].copy_from_slice(&self.next.to_le_bytes());
        value[8..].copy_from_slice(&self.open.to_le_bytes());
        store.put_plain(keyspace::COUNTERS_KEY, &value);
    }
}

/// An open session.
struct Session {
    /// How many places for results it has: a power of two, up to [`UNANSWERED_MAX`]; it never falls.
    width: u64,
    /// Every sequence below is answered; it never falls.
    floor: Sequence,
}

const _: () = assert!(UNANSWERED_MAX.is_power_of_two());
const _: () = assert!(UNANSWERED_MAX <= u16::MAX as u64);

impl Session {
    fn load(store: &Store, id: SessionId, finger: &mut Finger) -> Option<Session> {
        let row = store.get_near(&keyspace::session(id), finger)?;
        let (width, floor) = row.value.split_at(2);
        let width = u16::from_le_bytes(width.try_into().expect("split after two bytes"));
        Some(Session { width: width.into(), floor: Sequence(number(floor)) })
    }

    fn save(&self, store: &mut Store, id: SessionId) {
        let width = u16::try_from(self.width).expect("a session is never wider than UNANSWERED_MAX");
        let mut value = [0; 10];
        value[..2].copy_from_slice(&width.to_le_bytes());
        value[2..].copy_from_slice(&self.floor.0.to_le_bytes());
        store.put_plain(&keyspace::session(id), &value);
    }

    fn index(&self, sequence: Sequence) -> u16 {
        // A power of two: the remainder is the low bits, which spares a division per command.
        (sequence.0 & (self.width - 1)) as u16
    }

    /// Makes room for commands of this span. At most ten times in a session's life.
    fn widen(&mut self, store: &mut Store, id: SessionId, span: u64) {
        assert!(span < UNANSWERED_MAX);
        assert!(span >= self.width);
        let results: Vec<(Vec<u8>, Vec<u8>)> = store
            .prefix(&keyspace::session(id))
            .skip(1) // the session's own row
            .map(|(row, result)| (row.to_vec(), result.value.to_vec()))
            .collect();
        if let Some(newest) = results.iter().map(|(_, result)| sequence_of(result)).max() {
            let floor = Sequence((newest.0 + 1).saturating_sub(self.width));
            self.floor = self.floor.max(floor);
        }
        self.width = (span + 1).next_power_of_two();
        for (row, _) in &results {
            store.delete_plain(row);
        }
        for (_, result) in &results {
            let sequence = sequence_of(result);
            if sequence >= self.floor {
                store.put_plain(&keyspace::result(id, self.index(sequence)), result);
            }
        }
        self.save(store, id);
    }
}

const SEQUENCE_BYTES: usize = size_of::<u64>();

fn sequence_of(result: &[u8]) -> Sequence {
    Sequence(number(&result[..SEQUENCE_BYTES]))
}

fn number(field: &[u8]) -> u64 {
    u64::from_le_bytes(field.try_into().expect("the cell's own rows have the lengths it gave them"))
}
