//! A frozen database, for readers in any thread.

use std::ops::Bound;
use std::sync::Arc;

use crate::history::{Changes, Compacted, RangeAt};
use crate::image::{Image, Range};
use crate::mapping::Mapping;
use crate::row::Row;
use crate::space::{Pin, ViewEnded};
use crate::{Revision, Store};

/// The database as it was when it was frozen. Cheap to clone, and readable from any thread.
///
/// It keeps its pages from being used again for as long as it lives, so the store may end it ([`ViewEnded`]): reads
/// that have begun go on, and the next one is refused. Then drop it.
#[derive(Clone, Debug)]
pub struct ReadView {
    mapping: Arc<Mapping>,
    image: Image,
    pin: Arc<Pin>,
}

/// Why a read of the past from a view failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PastError {
    /// That revision is not kept.
    #[error(transparent)]
    Compacted(#[from] Compacted),
    /// The view was ended.
    #[error(transparent)]
    Ended(#[from] ViewEnded),
}

impl Store {
    /// The database as it is now, to be read from any thread while this one goes on changing. Takes constant time.
    ///
    /// A page is copied when it is first changed afterwards, once. What was replaced is kept while the view lives: when
    /// all views together keep more than [`Options::pinned_bytes_max`](crate::Options), the oldest are ended here.
    #[must_use]
    pub fn freeze(&mut self) -> ReadView {
        self.space.bound_views(self.options.pinned_bytes_max);
        ReadView { mapping: self.space.share(), image: self.image, pin: self.space.freeze() }
    }

    /// Ends the oldest views, if all of them together keep more than [`Options::pinned_bytes_max`](crate::Options): for whoever
    /// freezes seldom, and changes much meanwhile. Takes a time that grows with the database, a bit a page.
    pub fn bound_views(&mut self) {
        self.space.bound_views(self.options.pinned_bytes_max);
    }

    /// How many bytes of pages are kept for nothing but views.
    #[must_use]
    pub fn pinned_bytes(&self) -> u64 {
        self.space.pinned_bytes()
    }

    /// The generation of the oldest view that still lives.
    #[must_use]
    pub fn oldest_view(&self) -> Option<u64> {
        self.space.oldest_view()
    }

    /// Ends all views of this [generation](ReadView::generation) and of those before. The store knows no clock: whoever
    /// bounds their age notes when each was made.
    pub fn end_views(&mut self, upto: u64) {
        self.space.end_views(upto);
    }
}

impl ReadView {
    /// What it reads from, if it was not ended.
    pub(crate) fn parts(&self) -> Result<(&Mapping, Image), ViewEnded> {
        self.pin.check()?;
        Ok((&self.mapping, self.image))
    }

    /// Its trees and numbers, which stay whether or not it was ended.
    pub(crate) fn image(&self) -> &Image {
        &self.image
    }

    /// The revision of the last change before the freeze.
    #[must_use]
    pub fn revision(&self) -> Revision {
        self.image.revision
    }

    /// Which freeze made it: later ones have higher numbers.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.pin.generation
    }

    /// How many rows there were, plain ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.image.rows as usize
    }

    /// Whether there was no row.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The lengths of all keys and values together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.image.bytes
    }

    /// The row of this key.
    ///
    /// # Errors
    ///
    /// If the view was ended.
    pub fn get(&self, key: &[u8]) -> Result<Option<Row<'_>>, ViewEnded> {
        self.pin.check()?;
        Ok(self.image.get(&self.mapping, key))
    }

    /// The rows between two keys, in order; from the other end with [`rev`](Iterator::rev). Empty when the bounds
    /// cross.
    ///
    /// # Errors
    ///
    /// If the view was ended.
    pub fn range(&self, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Result<Range<'_>, ViewEnded> {
        self.pin.check()?;
        Ok(self.image.range(&self.mapping, start, end))
    }

    /// The rows whose keys begin so, in order.
    ///
    /// # Errors
    ///
    /// If the view was ended.
    pub fn prefix(&self, prefix: &[u8]) -> Result<Range<'_>, ViewEnded> {
        self.pin.check()?;
        Ok(self.image.prefix(&self.mapping, prefix))
    }

    /// The versioned row of this key as it was at a revision.
    ///
    /// # Errors
    ///
    /// If that is not kept, or the view was ended.
    pub fn get_at(&self, key: &[u8], revision: Revision) -> Result<Option<Row<'_>>, PastError> {
        self.pin.check()?;
        Ok(self.image.get_at(&self.mapping, key, revision)?)
    }

    /// The versioned rows between two keys as they were at a revision.
    ///
    /// # Errors
    ///
    /// If that is not kept, or the view was ended.
    pub fn range_at(
        &self,
        start: Bound<&[u8]>,
        end: Bound<&[u8]>,
        revision: Revision,
    ) -> Result<RangeAt<'_>, PastError> {
        self.pin.check()?;
        Ok(self.image.range_at(&self.mapping, start, end, revision)?)
    }

    /// What changed, from this revision on, itself included.
    ///
    /// # Errors
    ///
    /// If that is not kept, or the view was ended.
    pub fn changes_since(&self, from: Revision) -> Result<Changes<'_>, PastError> {
        self.pin.check()?;
        Ok(self.image.changes_since(&self.mapping, from)?)
    }
}
