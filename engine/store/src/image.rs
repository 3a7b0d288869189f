//! Three trees and their numbers: what a freeze keeps, what a snapshot's meta block names, and what a change changes.
//!
//! | tree | key | payload |
//! |---|---|---|
//! | present | the row's key | the row |
//! | history | the row's key, encoded; the revision that wrote it | the row, or that it was deleted |
//! | changes | revision; index within it | put or deleted; the row's key |
//!
//! Invariants:
//!   - `revision` never falls, and no row's is above it; `compacted` never falls, and is not above it;
//!   - `rows` and `bytes` are those of `present`: all keys' and values' lengths; `sum` is that of its rows' hashes (P14);
//!   - a row is plain or versioned from its creation to its removal, and plain rows are in `present` alone.

use std::ops::Bound;

use crate::Revision;
use crate::digest::Sum;
use crate::finger::Finger;
use crate::history;
use crate::mapping::Mapping;
use crate::page::PageNumber;
use crate::row::{KEY_BYTES_MAX, Kept, New, Numbers, PAYLOAD_BYTES_MAX, Row, TOMBSTONE_PAYLOAD, Version};
use crate::space::Space;
use crate::tree::{Cells, Tree};

/// See the module.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Image {
    pub(crate) present: Tree,
    pub(crate) history: Tree,
    pub(crate) changes: Tree,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
    pub(crate) sum: Sum,
    pub(crate) revision: Revision,
    /// Reads below it are refused.
    pub(crate) compacted: Revision,
}

/// What a change did to a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChangeKind {
    /// The row was written.
    Put,
    /// The row was removed.
    Delete,
}

impl Image {
    pub(crate) const EMPTY: Image = Image {
        present: Tree::EMPTY,
        history: Tree::EMPTY,
        changes: Tree::EMPTY,
        rows: 0,
        bytes: 0,
        sum: Sum::EMPTY,
        revision: Revision::FIRST,
        compacted: Revision::FIRST,
    };

    pub(crate) fn get<'a>(&self, mapping: &'a Mapping, key: &[u8]) -> Option<Row<'a>> {
        self.present.get(mapping, key).map(|payload| Kept::read(mapping, payload))
    }

    /// Looks under the finger first, and leaves it on the row.
    pub(crate) fn get_near<'a>(&self, space: &'a Space, key: &[u8], finger: &mut Finger) -> Option<Row<'a>> {
        let payload = if let Some((leaf, index)) = space.under(*finger, key) {
            space.page(leaf).payload(index)
        } else {
            let (leaf, page, index) = self.present.locate(space.mapping(), key)?;
            *finger = space.finger(leaf, index);
            page.payload(index)
        };
        Some(Kept::read(space.mapping(), payload))
    }

    pub(crate) fn range<'a>(&self, mapping: &'a Mapping, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range<'a> {
        Range { cells: Cells::new(self.present, mapping, start, end), mapping }
    }

    pub(crate) fn prefix<'a>(&self, mapping: &'a Mapping, prefix: &[u8]) -> Range<'a> {
        match prefix_end(prefix) {
            Some(end) => self.range(mapping, Bound::Included(prefix), Bound::Excluded(&end)),
            None => self.range(mapping, Bound::Included(prefix), Bound::Unbounded),
        }
    }

    pub(crate) fn advance(&mut self, keep_history: bool) {
        let next = self.revision.0.checked_add(1).expect("fewer than 2^64 changes");
        self.revision = Revision(next);
        if !keep_history {
            self.compacted = self.revision;
        }
    }

    /// `index` counts the writes of one change, if there is to be a history of them.
    pub(crate) fn put(&mut self, space: &mut Space, key: &[u8], value: &[u8], index: Option<u32>) -> Version {
        check_key(key);
        let revision = self.revision;
        if let Some(index) = index {
            history::note(&mut self.changes, space, (revision, index), ChangeKind::Put, key);
        }
        let (path, found) = self.present.find(space, key);
        if !found {
            let numbers = Numbers { create: revision, modify: revision, version: Version(1) };
            let new = New::place(space, key, Some(numbers), value, None);
            new.encode(self.present.insert(space, &path, key, new.payload_bytes()));
            self.count(key, numbers.row(value));
            return Version(1);
        }
        let (leaf, at) = path.place();
        let payload = space.page(leaf).payload(at);
        let old = Kept::decode(payload);
        let Some(Numbers { create, modify, version }) = old.numbers else {
            panic!("a versioned row was put where the key has a plain row");
        };
        let numbers = Numbers { create, modify: revision, version: Version(version.0 + 1) };
        let stored = Kept::read(space.mapping(), payload);
        self.recount(key, stored, numbers.row(value));
        // What was written by this same change nobody has seen, and never will.
        let is_history = index.is_some() && modify < revision;
        if is_history {
            let payload = Copied::new(payload);
            history::keep(&mut self.history, space, key, modify, payload.bytes());
        }
        let new = New::place(space, key, Some(numbers), value, (!is_history).then_some(old));
        new.encode(self.present.replace(space, &path, key, new.payload_bytes()));
        numbers.version
    }

    pub(crate) fn put_plain(&mut self, space: &mut Space, key: &[u8], value: &[u8], finger: Finger) {
        check_key(key);
        // No way down: the leaf may be written, and the old value is as long, as a result kept for a retry nearly always is.
        if let Some((leaf, at)) = space.under(finger, key)
            && space.is_current(leaf)
            && Kept::decode(space.page(leaf).payload(at)).value_bytes() == value.len()
        {
            let new = self.renew_plain(space, (leaf, at), key, value);
            return new.encode(space.page_mut(leaf).payload_mut(at));
        }
        let (path, found) = self.present.find(space, key);
        if !found {
            let new = New::place(space, key, None, value, None);
            new.encode(self.present.insert(space, &path, key, new.payload_bytes()));
            self.count(key, Numbers::NONE.row(value));
            return;
        }
        let new = self.renew_plain(space, path.place(), key, value);
        new.encode(self.present.replace(space, &path, key, new.payload_bytes()));
    }

    /// What takes the place of the plain row that is there.
    fn renew_plain<'a>(
        &mut self,
        space: &mut Space,
        (leaf, at): (PageNumber, usize),
        key: &[u8],
        value: &'a [u8],
    ) -> New<'a> {
        let payload = space.page(leaf).payload(at);
        let old = Kept::decode(payload);
        assert!(old.numbers.is_none(), "a plain row was put where the key has a versioned row");
        let stored = Kept::read(space.mapping(), payload);
        self.recount(key, stored, Numbers::NONE.row(value));
        New::place(space, key, None, value, Some(old))
    }

    pub(crate) fn delete(&mut self, space: &mut Space, key: &[u8], index: Option<u32>) -> bool {
        let Some(payload) = self.present.get(space.mapping(), key) else { return false };
        let old = Kept::decode(payload);
        let numbers = old.numbers.expect("a plain row was deleted as a versioned one");
        self.discount(key, Kept::read(space.mapping(), payload));
        match index {
            None => old.free(space),
            Some(index) => {
                if numbers.modify < self.revision {
                    let payload = Copied::new(payload);
                    history::keep(&mut self.history, space, key, numbers.modify, payload.bytes());
                } else {
                    old.free(space);
                }
                history::keep(&mut self.history, space, key, self.revision, TOMBSTONE_PAYLOAD);
                history::note(&mut self.changes, space, (self.revision, index), ChangeKind::Delete, key);
            }
        }
        self.remove(space, key);
        true
    }

    pub(crate) fn delete_plain(&mut self, space: &mut Space, key: &[u8]) -> bool {
        let Some(payload) = self.present.get(space.mapping(), key) else { return false };
        let old = Kept::decode(payload);
        assert!(old.numbers.is_none(), "a versioned row was deleted as a plain one");
        self.discount(key, Kept::read(space.mapping(), payload));
        old.free(space);
        self.remove(space, key);
        true
    }

    /// A row is new.
    pub(crate) fn count(&mut self, key: &[u8], row: Row<'_>) {
        self.rows += 1;
        self.bytes += (key.len() + row.value.len()) as u64;
        self.sum.add(key, row);
    }

    /// A row takes the place of one that was read back from where it is stored: were it rotten there, the sum shows it.
    fn recount(&mut self, key: &[u8], stored: Row<'_>, new: Row<'_>) {
        self.bytes = self.bytes - stored.value.len() as u64 + new.value.len() as u64;
        self.subtract(key, stored);
        self.sum.add(key, new);
    }

    /// A row, read back likewise, goes.
    fn discount(&mut self, key: &[u8], stored: Row<'_>) {
        self.rows -= 1;
        self.bytes -= (key.len() + stored.value.len()) as u64;
        self.subtract(key, stored);
    }

    #[cfg(not(feature = "planted"))]
    fn subtract(&mut self, key: &[u8], stored: Row<'_>) {
        self.sum.subtract(key, stored);
    }

    #[cfg(feature = "planted")]
    fn subtract(&mut self, key: &[u8], stored: Row<'_>) {
        crate::rot::with_what_it_should_hold(stored.value, |value| self.sum.subtract(key, Row { value, ..stored }));
    }

    fn remove(&mut self, space: &mut Space, key: &[u8]) {
        let (path, found) = self.present.find(space, key);
        assert!(found);
        self.present.remove(space, &path);
    }
}

fn check_key(key: &[u8]) {
    assert!(key.len() <= KEY_BYTES_MAX, "a key of {} bytes", key.len());
}

/// A payload on its way from one page to another.
struct Copied {
    bytes: [u8; PAYLOAD_BYTES_MAX],
    length: usize,
}

impl Copied {
    fn new(payload: &[u8]) -> Copied {
        let mut bytes = [0; PAYLOAD_BYTES_MAX];
        bytes[..payload.len()].copy_from_slice(payload);
        Copied { bytes, length: payload.len() }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// The lowest key that is above every key with this prefix; `None` if no key is.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|&byte| byte != u8::MAX)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Rows in the order of their keys, from either end.
#[derive(Clone)]
pub struct Range<'a> {
    cells: Cells<'a>,
    mapping: &'a Mapping,
}

impl std::fmt::Debug for Range<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Range(..)")
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a [u8], Row<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        self.cells.next().map(|(key, payload)| (key, Kept::read(self.mapping, payload)))
    }
}

impl DoubleEndedIterator for Range<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.cells.next_back().map(|(key, payload)| (key, Kept::read(self.mapping, payload)))
    }
}
