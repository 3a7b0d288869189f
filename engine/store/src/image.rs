//! The map and its numbers: everything that a freeze shares, and that a change under a live view copies.
//!
//! Invariants:
//!   - `revision` never falls, and no row's is above it;
//!   - `bytes` is the sum of all keys' and values' lengths;
//!   - a row is plain or versioned from its creation to its removal.

use std::collections::{BTreeMap, btree_map};
use std::fmt;
use std::ops::Bound;

use crate::Revision;
use crate::row::{Kept, Row, Version};
use crate::short::Short;

#[derive(Clone)]
pub(crate) struct Image {
    rows: BTreeMap<Short, Kept>,
    pub(crate) revision: Revision,
    pub(crate) bytes: u64,
}

impl Image {
    pub(crate) fn new() -> Image {
        Image { rows: BTreeMap::new(), revision: Revision::FIRST, bytes: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Row<'_>> {
        // A short key is looked up as the map has it, because that compares faster; a long one as it came, because making
        // a key of it is an allocation.
        let kept = if Short::is_inline(key.len()) { self.rows.get(&Short::new(key)) } else { self.rows.get(key) };
        kept.map(Kept::row)
    }

    pub(crate) fn range(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range<'_> {
        // The map takes crossed bounds for a bug of ours; here they are what a caller was asked for.
        let crossed = match (start, end) {
            (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
            (Bound::Included(start), Bound::Included(end)) => start > end,
            (Bound::Included(start) | Bound::Excluded(start), Bound::Included(end) | Bound::Excluded(end)) => {
                start >= end
            }
        };
        Range(if crossed { btree_map::Range::default() } else { self.rows.range::<[u8], _>((start, end)) })
    }

    pub(crate) fn prefix(&self, prefix: &[u8]) -> Range<'_> {
        match prefix_end(prefix) {
            Some(end) => self.range(Bound::Included(prefix), Bound::Excluded(&end)),
            None => self.range(Bound::Included(prefix), Bound::Unbounded),
        }
    }

    pub(crate) fn advance(&mut self) {
        let next = self.revision.0.checked_add(1).expect("fewer than 2^64 changes");
        self.revision = Revision(next);
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8]) -> Version {
        let Some(kept) = get_mut(&mut self.rows, key) else {
            self.insert(key, Kept::versioned(value, self.revision));
            return Version(1);
        };
        assert!(!kept.is_plain(), "a versioned row was put where the key has a plain row");
        kept.version = Version(kept.version.0 + 1);
        kept.modify_revision = self.revision;
        replace(&mut self.bytes, &mut kept.value, value);
        kept.version
    }

    pub(crate) fn put_plain(&mut self, key: &[u8], value: &[u8]) {
        let Some(kept) = get_mut(&mut self.rows, key) else {
            self.insert(key, Kept::plain(value));
            return;
        };
        assert!(kept.is_plain(), "a plain row was put where the key has a versioned row");
        replace(&mut self.bytes, &mut kept.value, value);
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> bool {
        let removed = self.remove(key);
        assert!(!removed.as_ref().is_some_and(Kept::is_plain), "a plain row was deleted as a versioned one");
        removed.is_some()
    }

    pub(crate) fn delete_plain(&mut self, key: &[u8]) -> bool {
        let removed = self.remove(key);
        assert!(removed.as_ref().is_none_or(Kept::is_plain), "a versioned row was deleted as a plain one");
        removed.is_some()
    }

    pub(crate) fn import(&mut self, key: &[u8], row: Row<'_>) -> bool {
        let is_behind = self.rows.last_key_value().is_none_or(|(last, _)| last.as_slice() < key);
        if is_behind {
            self.insert(key, Kept::of(row));
        }
        is_behind
    }

    /// A second way down the map, but only for a key that is new; the first found the rows that are written most
    /// without making a key of them, which for a long one is an allocation.
    fn insert(&mut self, key: &[u8], kept: Kept) {
        self.bytes += (key.len() + kept.value.as_slice().len()) as u64;
        self.rows.insert(Short::new(key), kept);
    }

    fn remove(&mut self, key: &[u8]) -> Option<Kept> {
        let removed = self.rows.remove(key)?;
        self.bytes -= (key.len() + removed.value.as_slice().len()) as u64;
        Some(removed)
    }
}

impl fmt::Debug for Image {
    /// The numbers, not millions of rows.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("revision", &self.revision)
            .field("rows", &self.rows.len())
            .field("bytes", &self.bytes)
            .finish()
    }
}

fn get_mut<'a>(rows: &'a mut BTreeMap<Short, Kept>, key: &[u8]) -> Option<&'a mut Kept> {
    if Short::is_inline(key.len()) { rows.get_mut(&Short::new(key)) } else { rows.get_mut(key) }
}

fn replace(bytes: &mut u64, old: &mut Short, new: &[u8]) {
    *bytes -= old.as_slice().len() as u64;
    *bytes += new.len() as u64;
    old.set(new);
}

/// The lowest key that is above every key with this prefix; `None` if no key is.
fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Rows in the order of their keys, from either end.
#[derive(Clone)]
pub struct Range<'a>(btree_map::Range<'a, Short, Kept>);

impl fmt::Debug for Range<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Range(..)")
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a [u8], Row<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next().map(|(key, kept)| (key.as_slice(), kept.row()))
    }
}

impl DoubleEndedIterator for Range<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.0.next_back().map(|(key, kept)| (key.as_slice(), kept.row()))
    }
}
