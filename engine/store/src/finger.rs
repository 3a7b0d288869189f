//! A finger on a row: where it was found, so that it, or the row behind it, is found again without a way down the tree.
//!
//! A finger is a guess that is checked each time, so it can be wrong and never misleads: the leaf must still be one of the
//! tree, which it is as long as no page was freed since (a page that is copied or merged away is freed, one that is split
//! keeps its number), and the key in that place of the leaf must be the one that is looked for. It is of use to the store
//! that it came from alone.

use crate::page::PageNumber;
use crate::space::Space;

/// Where a row was found. See the module.
#[derive(Clone, Copy, Debug)]
pub struct Finger {
    leaf: PageNumber,
    index: u16,
    /// How many pages had been freed by then.
    freed: u64,
}

impl Finger {
    /// On nothing.
    #[must_use]
    pub const fn none() -> Finger {
        Finger { leaf: PageNumber::NONE, index: 0, freed: 0 }
    }

    /// Moved on by so many rows, as far as they are in the same leaf.
    #[must_use]
    pub fn behind(self, rows: u16) -> Finger {
        Finger { index: self.index.saturating_add(rows), ..self }
    }
}

impl Space {
    /// A finger on this cell of a leaf.
    pub(crate) fn finger(&self, leaf: PageNumber, index: usize) -> Finger {
        Finger { leaf, index: index as u16, freed: self.freed() }
    }

    /// The leaf that the finger is on, and which of its cells, if that one has this key.
    pub(crate) fn under(&self, finger: Finger, key: &[u8]) -> Option<(PageNumber, usize)> {
        if finger.leaf == PageNumber::NONE || finger.freed != self.freed() {
            return None;
        }
        let (page, index) = (self.page(finger.leaf), usize::from(finger.index));
        (index < page.count() && page.key(index) == key).then_some((finger.leaf, index))
    }
}
