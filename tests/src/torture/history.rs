//! What clients were told, and what may be true after that.
//!
//! A write ends in one of three ways, and each says something of the database: *acknowledged*, it happened, once;
//! *did not happen*, it did not and never will; *unknown*, it happened once or not at all. These histories hold one
//! client's words for one kind of write, and judge what is read back.
//!
//! Invariants:
//!   - every value that is ever written is unique, so that what is read names the write that made it;
//!   - one client has at most one write under way for each of its own keys, so their order is known.

use std::collections::HashMap;
use std::fmt;

/// What became of a write.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fate {
    /// It happened, as this revision.
    Acknowledged(u64),
    /// It happened once, or not at all.
    Unknown,
    /// It did not happen and will not.
    DidNotHappen,
}

/// Names a write: whose it is, and its number there. No two writes of a run have the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct WriteId {
    /// Which client, from 1.
    pub client: u32,
    /// Which of its writes, from 1.
    pub number: u64,
}

impl fmt::Display for WriteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "write {} of client {}", self.number, self.client)
    }
}

impl WriteId {
    /// Bytes that name the write, of a length that differs from write to write.
    #[must_use]
    pub fn value(self) -> Vec<u8> {
        self.value_of((self.number * 37 + u64::from(self.client) * 11) as usize % 200)
    }

    /// Bytes that name the write and tell their own length, with so many more behind them: no part of them can be another
    /// write's unseen.
    #[must_use]
    pub fn value_of(self, filled: usize) -> Vec<u8> {
        let length = VALUE_HEAD_BYTES + filled;
        let fill = |at: usize| (at * 31 + (at >> 8) * 7) as u8 ^ (self.number as u8).wrapping_add(self.client as u8);
        let mut value = Vec::with_capacity(length);
        value.extend(self.client.to_le_bytes());
        value.extend(self.number.to_le_bytes());
        value.extend(u32::try_from(length).expect("values are short").to_le_bytes());
        value.extend((VALUE_HEAD_BYTES..length).map(fill));
        value
    }

    /// The write that made these bytes; `None` if no write of ours can have.
    #[must_use]
    pub fn of_value(value: &[u8]) -> Option<Self> {
        let (client, rest) = value.split_first_chunk()?;
        let (number, _) = rest.split_first_chunk()?;
        let id = WriteId { client: u32::from_le_bytes(*client), number: u64::from_le_bytes(*number) };
        (id.value_of(value.len().checked_sub(VALUE_HEAD_BYTES)?) == value).then_some(id)
    }
}

/// Of a value that a write makes: whose it is, which, and its length.
const VALUE_HEAD_BYTES: usize = 4 + 8 + 4;

/// What is there, as read back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Found {
    /// The bytes.
    pub value: Vec<u8>,
    /// The revision that created it.
    pub create_revision: u64,
    /// The revision that last wrote it.
    pub modify_revision: u64,
    /// How often it was written.
    pub version: u64,
}

/// The database is not what clients were told.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    /// An acknowledged write is gone.
    #[error("LOST: {write} to {name}, acknowledged as revision {revision}; there is {found}")]
    Lost {
        /// Which write.
        write: WriteId,
        /// To what.
        name: String,
        /// As which revision it was acknowledged.
        revision: u64,
        /// What is there instead.
        found: String,
    },
    /// Something is there that must not be.
    #[error("{name}: {what}")]
    Wrong {
        /// Where.
        name: String,
        /// What is wrong with it.
        what: String,
    },
    /// Revisions do not tell the order of writes.
    #[error(
        "{write} was acknowledged as revision {revision}, yet {floor} had been acknowledged before it was asked for"
    )]
    OutOfOrder {
        /// Which write.
        write: WriteId,
        /// Its revision.
        revision: u64,
        /// The highest revision acknowledged before.
        floor: u64,
    },
    /// Two writes have one revision.
    #[error("revision {revision} was given to two writes")]
    RevisionTwice {
        /// Which.
        revision: u64,
    },
}

fn wrong(name: &str, what: impl Into<String>) -> Violation {
    Violation::Wrong { name: name.to_owned(), what: what.into() }
}

fn describe(found: Option<&Found>) -> String {
    match found {
        None => "nothing".to_owned(),
        Some(found) => match WriteId::of_value(&found.value) {
            Some(id) => format!("{id} (modified at revision {}, version {})", found.modify_revision, found.version),
            None => format!("a value of {} bytes that nobody wrote", found.value.len()),
        },
    }
}

/// A key that one client alone writes, one write after the other.
#[derive(Clone, Debug, Default)]
pub struct OwnKey {
    /// The last write known to have happened.
    last: Option<(WriteId, u64)>,
    /// Unknown writes after that one, in order.
    later_unknown: Vec<WriteId>,
    happened: u64,
    /// All unknown writes that were not seen to have happened, superseded ones too: they may count in the version.
    unknown: u64,
}

impl OwnKey {
    /// A write has ended.
    pub fn record(&mut self, write: WriteId, fate: Fate) {
        match fate {
            Fate::Acknowledged(revision) => {
                self.last = Some((write, revision));
                self.later_unknown.clear();
                self.happened += 1;
            }
            Fate::Unknown => {
                self.later_unknown.push(write);
                self.unknown += 1;
            }
            Fate::DidNotHappen => {}
        }
    }

    /// Judges what was read while no write of this key was under way. An unknown write that is seen is known from then
    /// on: what is read may not go back behind it.
    pub fn check(&mut self, name: &str, found: Option<&Found>) -> Result<(), Violation> {
        let id = found.and_then(|found| WriteId::of_value(&found.value));
        if let (Some(found), Some(id)) = (found, id)
            && self.later_unknown.contains(&id)
        {
            if self.last.is_some_and(|(_, revision)| found.modify_revision <= revision) {
                return Err(wrong(name, format!("{} is not above the write before it", describe(Some(found)))));
            }
            self.unknown -= 1;
            self.happened += 1;
            self.last = Some((id, found.modify_revision));
            self.later_unknown.retain(|later| *later > id);
        }
        match (self.last, found) {
            (None, None) => Ok(()),
            (None, Some(found)) => {
                Err(wrong(name, format!("no write happened, yet there is {}", describe(Some(found)))))
            }
            (Some((write, revision)), found) => {
                let there = found.filter(|found| id == Some(write) && found.modify_revision == revision);
                let Some(found) = there else {
                    return Err(Violation::Lost { write, name: name.to_owned(), revision, found: describe(found) });
                };
                if (self.happened..=self.happened + self.unknown).contains(&found.version) {
                    return Ok(());
                }
                let what = format!(
                    "{} writes happened and {} are unknown, but its version is {}: not each was applied once",
                    self.happened, self.unknown, found.version
                );
                Err(wrong(name, what))
            }
        }
    }
}

/// A file that one client made under a fresh name.
#[derive(Clone, Copy, Debug)]
pub struct NewFile {
    /// The write, which gives the contents.
    pub write: WriteId,
    /// What became of it.
    pub fate: Fate,
}

impl NewFile {
    /// Judges what was read.
    pub fn check(&self, name: &str, found: Option<&Found>) -> Result<(), Violation> {
        let right = |found: &Found| {
            WriteId::of_value(&found.value) == Some(self.write)
                && found.version == 1
                && found.create_revision == found.modify_revision
        };
        match (self.fate, found) {
            (Fate::Acknowledged(revision), Some(found)) if right(found) && found.create_revision == revision => Ok(()),
            (Fate::Acknowledged(revision), found) => {
                let found = describe(found);
                Err(Violation::Lost { write: self.write, name: name.to_owned(), revision, found })
            }
            (Fate::Unknown, Some(found)) if right(found) => Ok(()),
            (Fate::Unknown | Fate::DidNotHappen, None) => Ok(()),
            (Fate::Unknown, Some(found)) => Err(wrong(name, format!("there is {}", describe(Some(found))))),
            (Fate::DidNotHappen, Some(_)) => Err(wrong(
                name,
                format!("{} did not happen, as its client was told, yet the file is there", self.write),
            )),
        }
    }
}

/// One compare-and-swap of a shared counter: what it expected, and what it would leave.
#[derive(Clone, Copy, Debug)]
pub struct Increment {
    /// The write.
    pub write: WriteId,
    /// The counter it expected; `None` for no such key.
    pub expected: Option<Counter>,
    /// What became of it. One that found something else did not happen.
    pub fate: Fate,
}

/// A shared counter's value: how often it was incremented, and by whom last.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Counter {
    /// How often.
    pub count: u64,
    /// By whom last.
    pub last: WriteId,
}

impl Counter {
    /// The counter after one more increment.
    #[must_use]
    pub fn after(expected: Option<Counter>, write: WriteId) -> Counter {
        Counter { count: expected.map_or(0, |counter| counter.count) + 1, last: write }
    }

    /// As it stands in the database.
    #[must_use]
    pub fn value(self) -> Vec<u8> {
        let mut value = self.count.to_le_bytes().to_vec();
        value.extend(self.last.client.to_le_bytes());
        value.extend(self.last.number.to_le_bytes());
        value
    }

    /// Reads it back.
    #[must_use]
    pub fn of_value(value: &[u8]) -> Option<Counter> {
        let (count, rest) = value.split_first_chunk()?;
        let (client, number) = rest.split_first_chunk()?;
        let number = u64::from_le_bytes(number.try_into().ok()?);
        let last = WriteId { client: u32::from_le_bytes(*client), number };
        Some(Counter { count: u64::from_le_bytes(*count), last })
    }
}

/// Judges a shared counter. Each value names the increment that made it, and each increment the value it replaced, so
/// from the last value the whole chain can be walked: every acknowledged increment is a link of it, and no other is but
/// the unknown ones.
pub fn check_chain(name: &str, increments: &[Increment], found: Option<&Found>) -> Result<(), Violation> {
    let by_write: HashMap<WriteId, &Increment> =
        increments.iter().map(|increment| (increment.write, increment)).collect();
    let last = match found {
        None => None,
        Some(found) => {
            let counter = Counter::of_value(&found.value);
            Some(counter.ok_or_else(|| wrong(name, format!("{} bytes that are no counter", found.value.len())))?)
        }
    };
    let mut links = HashMap::new();
    let mut next = last;
    let mut above = found.map_or(u64::MAX, |found| found.modify_revision + 1);
    while let Some(counter) = next {
        let increment = by_write.get(&counter.last);
        let increment = increment.ok_or_else(|| wrong(name, format!("nobody made {counter:?}")))?;
        if Counter::after(increment.expected, increment.write) != counter {
            return Err(wrong(name, format!("{counter:?} is not what {} left", increment.write)));
        }
        match increment.fate {
            Fate::DidNotHappen => {
                let what = format!("{} did not happen, as its client was told, yet it counts", increment.write);
                return Err(wrong(name, what));
            }
            Fate::Acknowledged(revision) if revision >= above => {
                return Err(wrong(
                    name,
                    format!("{}, revision {revision}, is below revision {above}", increment.write),
                ));
            }
            Fate::Acknowledged(revision) => above = revision,
            Fate::Unknown => {}
        }
        links.insert(increment.write, ());
        // The count falls by one with each link, so this ends.
        next = increment.expected;
    }
    for increment in increments {
        if let Fate::Acknowledged(revision) = increment.fate
            && !links.contains_key(&increment.write)
        {
            let found =
                last.map_or("nothing".to_owned(), |last| format!("a counter at {} by {}", last.count, last.last));
            return Err(Violation::Lost { write: increment.write, name: name.to_owned(), revision, found });
        }
    }
    let version = found.map_or(0, |found| found.version);
    if version != links.len() as u64 {
        let what = format!("{} increments make its value, but it was written {version} times", links.len());
        return Err(wrong(name, what));
    }
    Ok(())
}

/// The revisions given so far: each once.
#[derive(Debug, Default)]
pub struct Revisions {
    /// A bit for each: they are dense.
    bits: Vec<u64>,
}

impl Revisions {
    /// One more write was acknowledged.
    pub fn take(&mut self, revision: u64) -> Result<(), Violation> {
        let (word, bit) = ((revision / 64) as usize, 1 << (revision % 64));
        if self.bits.len() <= word {
            self.bits.resize(word + 1, 0);
        }
        if self.bits[word] & bit != 0 {
            return Err(Violation::RevisionTwice { revision });
        }
        self.bits[word] |= bit;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn write(number: u64) -> WriteId {
        WriteId { client: 7, number }
    }

    fn found(value: Vec<u8>, modify_revision: u64, version: u64) -> Found {
        Found { value, create_revision: 1, modify_revision, version }
    }

    fn put(number: u64, modify_revision: u64, version: u64) -> Found {
        found(write(number).value(), modify_revision, version)
    }

    #[test]
    fn a_value_names_its_write() {
        for number in 1..500 {
            assert_eq!(WriteId::of_value(&write(number).value()), Some(write(number)));
        }
        let mut changed = write(3).value();
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(WriteId::of_value(&changed), None);
        assert_eq!(WriteId::of_value(b"short"), None);
        let counter = Counter::after(Some(Counter { count: 4, last: write(2) }), write(9));
        assert_eq!((counter.count, Counter::of_value(&counter.value())), (5, Some(counter)));
    }

    /// Three acknowledged writes, the second one unknown.
    fn own_key() -> OwnKey {
        let mut key = OwnKey::default();
        for (number, fate) in
            [(1, Fate::Acknowledged(10)), (2, Fate::Unknown), (3, Fate::Acknowledged(12)), (4, Fate::DidNotHappen)]
        {
            key.record(write(number), fate);
        }
        key
    }

    #[test]
    fn an_own_key_holds_the_last_write() {
        assert_eq!(OwnKey::default().check("k", None), Ok(()));
        assert_eq!(own_key().check("k", Some(&put(3, 12, 2))), Ok(()));
        assert_eq!(own_key().check("k", Some(&put(3, 12, 3))), Ok(()), "the unknown one happened before");
        for (case, found) in [
            ("gone", None),
            ("went back", Some(put(1, 10, 1))),
            ("an unknown write came late", Some(put(2, 13, 3))),
            ("what did not happen", Some(put(4, 13, 3))),
            ("moved", Some(put(3, 13, 3))),
        ] {
            let Err(violation) = own_key().check("k", found.as_ref()) else { panic!("{case}") };
            assert!(
                matches!(violation, Violation::Lost { write: WriteId { number: 3, .. }, .. }),
                "{case}: {violation}"
            );
        }
        assert!(own_key().check("k", Some(&put(3, 12, 4))).is_err(), "applied twice");
        assert!(own_key().check("k", Some(&put(3, 12, 1))).is_err(), "applied too seldom");
        assert!(OwnKey::default().check("k", Some(&put(1, 2, 1))).is_err(), "nobody wrote it");
    }

    #[test]
    fn an_unknown_write_that_was_seen_is_known() {
        let mut key = own_key();
        key.record(write(5), Fate::Unknown);
        key.record(write(6), Fate::Unknown);
        assert_eq!(key.clone().check("k", Some(&put(3, 12, 2))), Ok(()), "neither happened");
        assert!(key.clone().check("k", Some(&put(6, 12, 3))).is_err(), "not after the write before it");
        assert_eq!(key.check("k", Some(&put(6, 15, 3))), Ok(()));
        assert!(key.clone().check("k", Some(&put(3, 12, 2))).is_err(), "seen, and gone again");
        assert!(key.clone().check("k", Some(&put(5, 16, 4))).is_err(), "an earlier one came later");
        assert_eq!(key.check("k", Some(&put(6, 15, 5))), Ok(()), "both others may have happened before");
        assert!(key.check("k", Some(&put(6, 15, 6))).is_err(), "but each once");
    }

    #[test]
    fn files_are_there_when_and_only_when_they_may_be() {
        let file = |fate| NewFile { write: write(1), fate };
        let there = Found { value: write(1).value(), create_revision: 5, modify_revision: 5, version: 1 };
        let acknowledged = file(Fate::Acknowledged(5));
        assert_eq!(acknowledged.check("/f", Some(&there)), Ok(()));
        assert_eq!(file(Fate::Unknown).check("/f", Some(&there)), Ok(()));
        assert_eq!(file(Fate::Unknown).check("/f", None), Ok(()));
        assert_eq!(file(Fate::DidNotHappen).check("/f", None), Ok(()));
        assert!(matches!(acknowledged.check("/f", None), Err(Violation::Lost { .. })));
        assert!(file(Fate::DidNotHappen).check("/f", Some(&there)).is_err());
        for change in [
            |found: &mut Found| found.value = write(2).value(),
            |found: &mut Found| found.modify_revision = 6,
            |found: &mut Found| found.version = 2,
        ] {
            let mut there = there.clone();
            change(&mut there);
            assert!(acknowledged.check("/f", Some(&there)).is_err());
            assert!(file(Fate::Unknown).check("/f", Some(&there)).is_err());
        }
    }

    /// 1 to 4 in a chain, the third unknown; 5 lost the race for the place of 2.
    fn chain() -> Vec<Increment> {
        let mut increments = Vec::new();
        let mut expected = None;
        for (number, fate) in
            [(1, Fate::Acknowledged(10)), (2, Fate::Acknowledged(11)), (3, Fate::Unknown), (4, Fate::Acknowledged(13))]
        {
            increments.push(Increment { write: write(number), expected, fate });
            expected = Some(Counter::after(expected, write(number)));
        }
        let expected = increments[1].expected;
        increments.push(Increment { write: write(5), expected, fate: Fate::DidNotHappen });
        increments
    }

    fn counter(count: u64, number: u64, modify_revision: u64) -> Found {
        found(Counter { count, last: write(number) }.value(), modify_revision, count)
    }

    #[test]
    fn a_chain_has_every_acknowledged_link() {
        let check = |increments: &[Increment], found: Option<Found>| check_chain("c", increments, found.as_ref());
        assert_eq!(check(&[], None), Ok(()));
        assert_eq!(check(&chain(), Some(counter(4, 4, 13))), Ok(()));
        assert_eq!(check(&chain()[..3], Some(counter(2, 2, 11))), Ok(()), "the unknown one did not happen");
        assert_eq!(check(&chain()[..3], Some(counter(3, 3, 12))), Ok(()), "or it did");
        let lost = |result| matches!(result, Err(Violation::Lost { .. }));
        assert!(lost(check(&chain(), None)));
        assert!(lost(check(&chain(), Some(counter(3, 3, 12)))));
        assert!(check(&chain(), Some(counter(2, 5, 14))).is_err(), "what did not happen counts");
        assert!(check(&chain(), Some(counter(5, 4, 14))).is_err(), "one was applied twice");
        assert!(check(&chain(), Some(counter(5, 9, 14))).is_err(), "nobody's increment");
        assert!(check(&chain(), Some(found(vec![1, 2, 3], 14, 4))).is_err());
        let mut twice = counter(4, 4, 13);
        twice.version = 5;
        assert!(check(&chain(), Some(twice)).is_err(), "written more often than there are links");
        let mut swapped = chain();
        swapped[0].fate = Fate::Acknowledged(12);
        assert!(check(&swapped, Some(counter(4, 4, 13))).is_err(), "revisions against the order of the chain");
    }

    #[test]
    fn a_revision_is_given_once() {
        let mut revisions = Revisions::default();
        for revision in [5, 4, 64, 1000] {
            assert_eq!(revisions.take(revision), Ok(()));
        }
        assert_eq!(revisions.take(64), Err(Violation::RevisionTwice { revision: 64 }));
    }
}
