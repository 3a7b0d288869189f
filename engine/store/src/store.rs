//! The owner's face: reads of now and of the past, and changes.

use std::ops::Bound;

use crate::finger::Finger;
use crate::history::{Changes, Compacted, RangeAt};
use crate::image::{Image, Range};
use crate::mapping::Pages;
use crate::meta::Slot;
use crate::row::{Row, Version};
use crate::snapshot::InFlight;
use crate::space::Space;
use crate::{Options, Revision};

/// The database. One owner changes it; frozen views of it may be read from any thread.
#[derive(Debug)]
pub struct Store {
    pub(crate) space: Space,
    pub(crate) image: Image,
    pub(crate) options: Options,
    /// What was removed up to this mark by [`Store::compact_some`].
    pub(crate) removed: Option<Revision>,
    /// Whose it is, as every meta block has it.
    pub(crate) identity: Vec<u8>,
    /// The place of the newest durable snapshot's meta block.
    pub(crate) slot: Slot,
    pub(crate) in_flight: Option<InFlight>,
}

impl Default for Store {
    fn default() -> Store {
        Store::new()
    }
}

impl Store {
    /// An empty database in memory, at [`Revision::FIRST`], without a history.
    #[must_use]
    pub fn new() -> Store {
        Store::in_memory(Options { keep_history: false, ..Options::default() })
    }

    /// An empty database in memory. It takes addresses for as much as it may hold, and memory for what it holds.
    ///
    /// # Panics
    ///
    /// If the process has no addresses left.
    #[must_use]
    pub fn in_memory(options: Options) -> Store {
        let pages = Pages::anonymous(options.database_bytes_max).expect("a process has 128 TiB of addresses");
        Store {
            space: Space::in_memory(pages),
            image: Image::EMPTY,
            options,
            removed: None,
            identity: Vec::new(),
            slot: Slot::Second,
            in_flight: None,
        }
    }

    /// The revision of the last change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.image.revision
    }

    /// How many rows there are, plain ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.image.rows as usize
    }

    /// Whether there is no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lengths of all keys and values together. What they take in memory is more.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.image.bytes
    }

    /// How much the database may still grow, in bytes of pages; what is free within it is not counted. A batch may take
    /// several times its own bytes: refuse writes well before none is left, because a change that finds none panics.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.space.room_bytes()
    }

    /// The row of this key.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Row<'_>> {
        self.image.get(self.space.mapping(), key)
    }

    /// The row of this key. Looks first where the finger is, and leaves it on the row if there is one.
    #[must_use]
    pub fn get_near(&self, key: &[u8], finger: &mut Finger) -> Option<Row<'_>> {
        self.image.get_near(&self.space, key, finger)
    }

    /// The rows between two keys, in order; from the other end with [`rev`](Iterator::rev). Empty when the bounds
    /// cross.
    pub fn range(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Range<'_> {
        self.image.range(self.space.mapping(), start, end)
    }

    /// The rows whose keys begin so, in order.
    pub fn prefix(&self, prefix: &[u8]) -> Range<'_> {
        self.image.prefix(self.space.mapping(), prefix)
    }

    /// The lowest revision that can be read.
    #[must_use]
    pub fn compacted(&self) -> Revision {
        self.image.compacted
    }

    /// The versioned row of this key as it was at a revision. One that is yet to come has the rows of now.
    ///
    /// # Errors
    ///
    /// If that revision is not kept.
    pub fn get_at(&self, key: &[u8], revision: Revision) -> Result<Option<Row<'_>>, Compacted> {
        self.image.get_at(self.space.mapping(), key, revision)
    }

    /// The versioned rows between two keys as they were at a revision.
    ///
    /// # Errors
    ///
    /// If that revision is not kept.
    pub fn range_at(
        &self,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        revision: Revision,
    ) -> Result<RangeAt<'_>, Compacted> {
        self.image.range_at(self.space.mapping(), start, end, revision)
    }

    /// What changed, from this revision on, itself included; oldest first.
    ///
    /// # Errors
    ///
    /// If that revision is not kept.
    pub fn changes_since(&self, from: Revision) -> Result<Changes<'_>, Compacted> {
        self.image.changes_since(self.space.mapping(), from)
    }

    /// Refuses reads below this revision from here on. Removes nothing yet, and so takes constant time: every replica
    /// refuses the same reads, whenever it finds the time for [`compact_some`](Store::compact_some).
    ///
    /// # Panics
    ///
    /// If the revision is yet to come.
    pub fn compact(&mut self, below: Revision) {
        assert!(below <= self.image.revision);
        self.image.compacted = self.image.compacted.max(below);
    }

    /// Removes what nobody can read any more, at most what this many changes superseded. Whether nothing is left to do.
    pub fn compact_some(&mut self, changes_max: usize) -> bool {
        self.image.compact_some(&mut self.space, &mut self.removed, changes_max)
    }

    /// Begins the changes of one command: the revision is one more from here on.
    ///
    /// Decide first: a change that then writes nothing has raised the revision all the same.
    pub fn change(&mut self) -> Change<'_> {
        self.image.advance(self.options.keep_history);
        Change { store: self, writes: 0 }
    }

    /// Sets a plain row: bookkeeping, which is no change of the revision's. Replacing a value by one of the same length
    /// is done in place.
    ///
    /// # Panics
    ///
    /// If the key has a versioned row: keys of the two kinds must not mix. If key or value are longer than
    /// [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX) and [`VALUE_BYTES_MAX`](crate::VALUE_BYTES_MAX).
    pub fn put_plain(&mut self, key: &[u8], value: &[u8]) {
        self.put_plain_near(key, value, Finger::none());
    }

    /// The same, and looks first where the finger is.
    ///
    /// # Panics
    ///
    /// As [`put_plain`](Store::put_plain).
    pub fn put_plain_near(&mut self, key: &[u8], value: &[u8], finger: Finger) {
        self.image.put_plain(&mut self.space, key, value, finger);
    }

    /// Removes a plain row, and says whether there was one.
    ///
    /// # Panics
    ///
    /// If the key has a versioned row.
    pub fn delete_plain(&mut self, key: &[u8]) -> bool {
        self.image.delete_plain(&mut self.space, key)
    }
}

/// The changes of one command, all under one new revision. Nobody sees the database between two of them: whoever holds
/// the change holds the store.
#[derive(Debug)]
pub struct Change<'a> {
    store: &'a mut Store,
    writes: u32,
}

impl Change<'_> {
    /// The revision of this change.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.store.image.revision
    }

    /// Which write of the change this is, if there is a history to note it in.
    fn index(&self) -> Option<u32> {
        self.store.options.keep_history.then_some(self.writes)
    }

    /// Sets a versioned row, and says which version of the key it is: 1 if it is new. Replacing a value by one of the
    /// same length is done in place.
    ///
    /// # Panics
    ///
    /// If the key has a plain row: keys of the two kinds must not mix. If key or value are longer than
    /// [`KEY_BYTES_MAX`](crate::KEY_BYTES_MAX) and [`VALUE_BYTES_MAX`](crate::VALUE_BYTES_MAX).
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Version {
        let index = self.index();
        let version = self.store.image.put(&mut self.store.space, key, value, index);
        self.writes += 1;
        version
    }

    /// Removes a versioned row, and says whether there was one.
    ///
    /// # Panics
    ///
    /// If the key has a plain row.
    pub fn delete(&mut self, key: &[u8]) -> bool {
        let index = self.index();
        let deleted = self.store.image.delete(&mut self.store.space, key, index);
        self.writes += u32::from(deleted);
        deleted
    }
}
