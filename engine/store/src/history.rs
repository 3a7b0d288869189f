//! The past: what rows were, and in which order they changed.
//!
//! A row that is superseded moves from `present` to `history` as it is, a large value by its place; a row that is
//! deleted leaves a tombstone there too. `changes` says in which order. Both are written, and neither is read, by a
//! change; reads of the present touch neither.
//!
//! In `history` a key is followed by a revision, so the key must end where all agree that it ends: it is cut into
//! groups of eight bytes, the last one padded with zeros, each followed by how many of its bytes count, or by 9 if more
//! groups follow. That keeps the order of keys, and bounds the length, which escaping single bytes does not.
//!
//! *Compaction* at a revision refuses reads below it at once, and removes what only those would have read bit by bit:
//! what has been superseded by a change at or below it. `changes` says what that is, so the work is proportional to
//! what there is to remove, and needs no memory of how far it came: it begins at the first change that is left.

use std::borrow::Cow;
use std::iter::Peekable;
use std::ops::Bound;

use crate::Revision;
use crate::image::{ChangeKind, Image, Range};
use crate::mapping::Mapping;
use crate::row::{KEY_BYTES_MAX, Kept, Row, is_tombstone};
use crate::space::Space;
use crate::tree::{Cells, Tree};

/// The revision that was asked for is not kept any more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("what was before revision {compacted} has been compacted")]
pub struct Compacted {
    /// The lowest that can be read.
    pub compacted: Revision,
}

/// One write of one change.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Changed<'a> {
    /// The change.
    pub revision: Revision,
    /// Which of its writes, from 0.
    pub index: u32,
    /// The row's key.
    pub key: &'a [u8],
    /// What was done.
    pub kind: ChangeKind,
    /// The row as this change left it: none if it left none there.
    pub row: Option<Row<'a>>,
}

const GROUP_BYTES: usize = 8;
const MORE: u8 = GROUP_BYTES as u8 + 1;
const REVISION_BYTES: usize = 8;
const ENTRY_KEY_BYTES_MAX: usize = (KEY_BYTES_MAX / GROUP_BYTES) * (GROUP_BYTES + 1) + REVISION_BYTES;

/// How long this row's key is in `history`.
pub(crate) fn entry_key_bytes(key: &[u8]) -> usize {
    key.len().div_ceil(GROUP_BYTES).max(1) * (GROUP_BYTES + 1) + REVISION_BYTES
}
const _: () = assert!(KEY_BYTES_MAX.is_multiple_of(GROUP_BYTES));
const CHANGE_KEY_BYTES: usize = REVISION_BYTES + 4;

/// A key of `history`.
struct EntryKey {
    bytes: [u8; ENTRY_KEY_BYTES_MAX],
    length: usize,
}

impl EntryKey {
    fn new(key: &[u8], revision: Revision) -> EntryKey {
        let mut entry = EntryKey { bytes: [0; ENTRY_KEY_BYTES_MAX], length: 0 };
        let last = key.len().saturating_sub(1) / GROUP_BYTES;
        for group in 0..=last {
            let from = group * GROUP_BYTES;
            let part = &key[from..key.len().min(from + GROUP_BYTES)];
            entry.bytes[entry.length..entry.length + part.len()].copy_from_slice(part);
            entry.length += GROUP_BYTES;
            entry.bytes[entry.length] = if group < last { MORE } else { part.len() as u8 };
            entry.length += 1;
        }
        entry.bytes[entry.length..entry.length + REVISION_BYTES].copy_from_slice(&revision.0.to_be_bytes());
        entry.length += REVISION_BYTES;
        entry
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

/// The key and the revision of an entry.
fn decode(entry: &[u8]) -> (Vec<u8>, Revision) {
    let (groups, revision) = entry.split_at(entry.len() - REVISION_BYTES);
    let mut key = Vec::with_capacity(groups.len());
    for group in groups.chunks(GROUP_BYTES + 1) {
        let counts = usize::from(group[GROUP_BYTES]).min(GROUP_BYTES);
        key.extend_from_slice(&group[..counts]);
    }
    (key, Revision(number(revision)))
}

/// The row's key in an entry's key that came from elsewhere, if it is one.
pub(crate) fn key_of(entry: &[u8]) -> Option<Vec<u8>> {
    let groups = entry.len().checked_sub(REVISION_BYTES).filter(|groups| groups.is_multiple_of(GROUP_BYTES + 1))?;
    let (key, _) = (groups > 0).then(|| decode(entry))?;
    (key.len() <= KEY_BYTES_MAX).then_some(key)
}

/// Keeps what a row was.
pub(crate) fn keep(history: &mut Tree, space: &mut Space, key: &[u8], written: Revision, payload: &[u8]) {
    let entry = EntryKey::new(key, written);
    let (path, found) = history.find(space, entry.bytes());
    let place = if found {
        // Only a tombstone: the row came back in the change that had deleted it.
        history.replace(space, &path, entry.bytes(), payload.len())
    } else {
        history.insert(space, &path, entry.bytes(), payload.len())
    };
    place.copy_from_slice(payload);
}

fn change_key((revision, index): (Revision, u32)) -> [u8; CHANGE_KEY_BYTES] {
    let mut key = [0; CHANGE_KEY_BYTES];
    key[..REVISION_BYTES].copy_from_slice(&revision.0.to_be_bytes());
    key[REVISION_BYTES..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Whether this, which came from elsewhere, can be an entry of `changes`.
pub(crate) fn is_change(key: &[u8], payload: &[u8]) -> bool {
    let is_kind = |kind: &u8| *kind == ChangeKind::Put as u8 || *kind == ChangeKind::Delete as u8;
    key.len() == CHANGE_KEY_BYTES && payload.first().is_some_and(is_kind) && payload.len() <= 1 + KEY_BYTES_MAX
}

/// Notes that a key changed.
pub(crate) fn note(changes: &mut Tree, space: &mut Space, at: (Revision, u32), kind: ChangeKind, key: &[u8]) {
    let change = change_key(at);
    let (path, found) = changes.find(space, &change);
    assert!(!found);
    let payload = changes.insert(space, &path, &change, 1 + key.len());
    payload[0] = kind as u8;
    payload[1..].copy_from_slice(key);
}

impl Image {
    fn check_kept(&self, revision: Revision) -> Result<(), Compacted> {
        if revision < self.compacted { Err(Compacted { compacted: self.compacted }) } else { Ok(()) }
    }

    pub(crate) fn get_at<'a>(
        &self,
        mapping: &'a Mapping,
        key: &[u8],
        revision: Revision,
    ) -> Result<Option<Row<'a>>, Compacted> {
        self.check_kept(revision)?;
        Ok(self.row_at(mapping, key, revision))
    }

    fn row_at<'a>(&self, mapping: &'a Mapping, key: &[u8], revision: Revision) -> Option<Row<'a>> {
        if let Some(row) = self.get(mapping, key)
            && row.modify_revision <= revision
        {
            // A plain row has no revision, and was there at none.
            return (row.create_revision != Revision::NONE).then_some(row);
        }
        let (first, last) = (EntryKey::new(key, Revision::NONE), EntryKey::new(key, revision));
        let bounds = (Bound::Included(first.bytes()), Bound::Included(last.bytes()));
        let (_, payload) = Cells::new(self.history, mapping, bounds.0, bounds.1).next_back()?;
        (!is_tombstone(payload)).then(|| Kept::read(mapping, payload))
    }

    pub(crate) fn range_at<'a>(
        &self,
        mapping: &'a Mapping,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        revision: Revision,
    ) -> Result<RangeAt<'a>, Compacted> {
        self.check_kept(revision)?;
        // All revisions of a key are on the same side of a bound.
        let lowest = |key| EntryKey::new(key, Revision::NONE);
        let highest = |key| EntryKey::new(key, Revision(u64::MAX));
        let (first, last) = (
            match start {
                Bound::Included(key) => Some(lowest(key)),
                Bound::Excluded(key) => Some(highest(key)),
                Bound::Unbounded => None,
            },
            match end {
                Bound::Included(key) => Some(highest(key)),
                Bound::Excluded(key) => Some(lowest(key)),
                Bound::Unbounded => None,
            },
        );
        let first = first.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.bytes()));
        let last = last.as_ref().map_or(Bound::Unbounded, |key| Bound::Excluded(key.bytes()));
        Ok(RangeAt {
            present: self.range(mapping, start, end).peekable(),
            history: Cells::new(self.history, mapping, first, last).peekable(),
            past: None,
            mapping,
            revision,
        })
    }

    pub(crate) fn changes_since<'a>(&self, mapping: &'a Mapping, from: Revision) -> Result<Changes<'a>, Compacted> {
        self.check_kept(from)?;
        let first = change_key((from, 0));
        let cells = Cells::new(self.changes, mapping, Bound::Included(&first), Bound::Unbounded);
        Ok(Changes { cells, image: *self, mapping })
    }

    /// Removes what nobody can read any more, as many changes' worth at most. Whether there is nothing left to do.
    pub(crate) fn compact_some(&mut self, space: &mut Space, done: &mut Option<Revision>, changes_max: usize) -> bool {
        if *done == Some(self.compacted) {
            return true;
        }
        for left in (0..changes_max).rev() {
            let mut cells = Cells::new(self.changes, space.mapping(), Bound::Unbounded, Bound::Unbounded);
            let Some((change, payload)) = cells.next() else { break };
            let revision = Revision(number(&change[..REVISION_BYTES]));
            if revision > self.compacted {
                break;
            }
            let (change, key, kind) = (change.to_vec(), payload[1..].to_vec(), payload[0]);
            let deleted = kind == ChangeKind::Delete as u8;
            if revision == self.compacted {
                // The mark's own changes stay noted: they can still be asked for. Bounded by what one change wrote.
                let keys: Vec<(Vec<u8>, bool)> = std::iter::once((key, deleted))
                    .chain(
                        cells
                            .take_while(|(other, _)| other[..REVISION_BYTES] == change[..REVISION_BYTES])
                            .map(|(_, payload)| (payload[1..].to_vec(), payload[0] == ChangeKind::Delete as u8)),
                    )
                    .collect();
                keys.iter().for_each(|(key, deleted)| self.forget(space, key, revision, *deleted));
                break;
            }
            self.forget(space, &key, revision, deleted);
            let (path, found) = self.changes.find(space, &change);
            assert!(found);
            self.changes.remove(space, &path);
            if left == 0 {
                return false;
            }
        }
        *done = Some(self.compacted);
        true
    }

    /// Removes what this change superseded; if it deleted the row, the tombstone too.
    fn forget(&mut self, space: &mut Space, key: &[u8], revision: Revision, deleted: bool) {
        let first = EntryKey::new(key, Revision::NONE);
        let last = EntryKey::new(key, revision);
        loop {
            let end = if deleted { Bound::Included(last.bytes()) } else { Bound::Excluded(last.bytes()) };
            let mut cells = Cells::new(self.history, space.mapping(), Bound::Included(first.bytes()), end);
            let Some((entry, payload)) = cells.next() else { return };
            // The tombstone may have been replaced by a row that came back in the same change.
            if entry == last.bytes() && !is_tombstone(payload) {
                return;
            }
            let entry = entry.to_vec();
            if !is_tombstone(payload) {
                Kept::decode(payload).free(space);
            }
            let (path, found) = self.history.find(space, &entry);
            assert!(found);
            self.history.remove(space, &path);
        }
    }
}

/// Rows as they were at a revision, in the order of their keys.
#[derive(Clone)]
pub struct RangeAt<'a> {
    present: Peekable<Range<'a>>,
    history: Peekable<Cells<'a>>,
    /// The next key of `history`, and what it was at the revision.
    past: Option<(Vec<u8>, Option<&'a [u8]>)>,
    mapping: &'a Mapping,
    revision: Revision,
}

impl std::fmt::Debug for RangeAt<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RangeAt({}, ..)", self.revision)
    }
}

impl<'a> RangeAt<'a> {
    /// Goes through all entries of the next key.
    fn next_past(&mut self) -> Option<(Vec<u8>, Option<&'a [u8]>)> {
        let (entry, _) = self.history.peek()?;
        let groups = entry[..entry.len() - REVISION_BYTES].to_vec();
        let (key, _) = decode(entry);
        let mut was = None;
        while let Some((entry, payload)) = self
            .history
            .next_if(|(entry, _)| entry.len() == groups.len() + REVISION_BYTES && entry.starts_with(&groups))
        {
            if number(&entry[groups.len()..]) <= self.revision.0 {
                was = Some(payload);
            }
        }
        Some((key, was.filter(|payload| !is_tombstone(payload))))
    }
}

impl<'a> Iterator for RangeAt<'a> {
    type Item = (Cow<'a, [u8]>, Row<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if self.past.is_none() {
                self.past = self.next_past();
            }
            let now = self.present.peek().map(|(key, _)| *key);
            let past = self.past.as_ref().map(|(key, _)| key.as_slice());
            let (takes_now, takes_past) = match (now, past) {
                (None, None) => return None,
                (Some(_), None) => (true, false),
                (None, Some(_)) => (false, true),
                (Some(now), Some(past)) => (now <= past, past <= now),
            };
            let now = if takes_now { self.present.next() } else { None };
            let past = if takes_past { self.past.take() } else { None };
            let was_there =
                |row: &Row<'_>| row.create_revision != Revision::NONE && row.modify_revision <= self.revision;
            if let Some((key, row)) = now.filter(|(_, row)| was_there(row)) {
                return Some((Cow::Borrowed(key), row));
            }
            if let Some((key, Some(payload))) = past {
                return Some((Cow::Owned(key), Kept::read(self.mapping, payload)));
            }
        }
    }
}

/// Changes, oldest first.
#[derive(Clone)]
pub struct Changes<'a> {
    cells: Cells<'a>,
    image: Image,
    mapping: &'a Mapping,
}

impl std::fmt::Debug for Changes<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Changes(..)")
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = Changed<'a>;

    fn next(&mut self) -> Option<Changed<'a>> {
        let (change, payload) = self.cells.next()?;
        let (revision, index) = change.split_at(REVISION_BYTES);
        let revision = Revision(number(revision));
        let index = u32::from_be_bytes(index.try_into().expect("four bytes"));
        let kind = if payload[0] == ChangeKind::Put as u8 { ChangeKind::Put } else { ChangeKind::Delete };
        let key = &payload[1..];
        let row = self.image.row_at(self.mapping, key, revision).filter(|row| row.modify_revision == revision);
        Some(Changed { revision, index, key, kind, row })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_in_the_order_of_keys() {
        let mut keys: Vec<Vec<u8>> = Vec::new();
        for length in [0, 1, 7, 8, 9, 15, 16, 17, KEY_BYTES_MAX] {
            for byte in [0, 1, 255] {
                for last in [0, 8, 9, 255] {
                    let mut key = vec![byte; length];
                    key.pop();
                    if length > 0 {
                        key.push(last);
                    }
                    keys.push(key);
                }
            }
        }
        keys.sort();
        keys.dedup();
        for pair in keys.windows(2) {
            let (low, high) = (EntryKey::new(&pair[0], Revision(u64::MAX)), EntryKey::new(&pair[1], Revision(0)));
            assert!(low.bytes() < high.bytes(), "{:?} {:?}", pair[0], pair[1]);
            assert_eq!(decode(low.bytes()), (pair[0].clone(), Revision(u64::MAX)));
        }
    }
}
