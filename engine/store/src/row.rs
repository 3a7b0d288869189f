//! What is kept for one key.
//!
//! | at | a payload |
//! |---|---|
//! | 0 | bits: 1 versioned, 2 the value is in pages of its own, 4 a tombstone |
//! | 1 | if versioned: create revision, modify revision, version, u64 each |
//! | then | the value; or the first page and the length of where it is, u32 each |

use std::fmt;

use crate::Revision;
use crate::history;
use crate::mapping::Mapping;
use crate::overflow;
use crate::page::{CELL_BYTES_MAX, PageNumber, leaf_cell_bytes};
use crate::space::Space;

/// The longest key.
pub const KEY_BYTES_MAX: usize = 1032;
/// The longest value. A result kept for a retry may be a little longer than what users may write.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Longer values of this key get pages of their own. Whether a row is one of now or has moved to the history, where its
/// key is longer, it fits a leaf: so it moves as it is.
pub(crate) fn inline_bytes_max(key: &[u8]) -> usize {
    CELL_BYTES_MAX - leaf_cell_bytes(&[], 1 + NUMBERS_BYTES) - history::entry_key_bytes(key)
}

/// The longest payload.
pub(crate) const PAYLOAD_BYTES_MAX: usize = CELL_BYTES_MAX;

const VERSIONED: u8 = 1;
const OVERFLOW: u8 = 2;
const TOMBSTONE: u8 = 4;

const NUMBERS_BYTES: usize = 3 * 8;
const PLACE_BYTES: usize = 2 * 4;

/// How often a row has been written since it was created: 1 when it has just been, 0 for a plain row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A row as readers see it. Of a plain row only the value means something; the rest is none and 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row<'a> {
    /// The revision that created it.
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub modify_revision: Revision,
    /// How often it has been written since.
    pub version: Version,
    /// Its bytes.
    pub value: &'a [u8],
}

/// The numbers of a row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Numbers {
    pub(crate) create: Revision,
    pub(crate) modify: Revision,
    pub(crate) version: Version,
}

impl Numbers {
    /// Of a plain row.
    pub(crate) const NONE: Numbers = Numbers { create: Revision::NONE, modify: Revision::NONE, version: Version(0) };

    pub(crate) fn row(self, value: &[u8]) -> Row<'_> {
        Row { create_revision: self.create, modify_revision: self.modify, version: self.version, value }
    }
}

/// Where the value is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Inline(usize),
    Overflow { first: PageNumber, bytes: u32 },
}

/// A row as it is kept: what its payload says before the value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Kept {
    /// None of a plain row.
    pub(crate) numbers: Option<Numbers>,
    place: Place,
}

fn u32_at(payload: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(payload[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(payload: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(payload[at..at + 8].try_into().expect("eight bytes"))
}

pub(crate) fn is_tombstone(payload: &[u8]) -> bool {
    payload[0] & TOMBSTONE != 0
}

/// The whole payload of "it was deleted".
pub(crate) const TOMBSTONE_PAYLOAD: &[u8] = &[TOMBSTONE];

impl Kept {
    #[inline]
    pub(crate) fn decode(payload: &[u8]) -> Kept {
        let numbers = (payload[0] & VERSIONED != 0).then(|| Numbers {
            create: Revision(u64_at(payload, 1)),
            modify: Revision(u64_at(payload, 9)),
            version: Version(u64_at(payload, 17)),
        });
        let at = 1 + if numbers.is_some() { NUMBERS_BYTES } else { 0 };
        let place = match payload[0] & OVERFLOW {
            0 => Place::Inline(payload.len() - at),
            _ => Place::Overflow { first: PageNumber(u32_at(payload, at)), bytes: u32_at(payload, at + 4) },
        };
        Kept { numbers, place }
    }

    pub(crate) fn value_bytes(&self) -> usize {
        match self.place {
            Place::Inline(bytes) => bytes,
            Place::Overflow { bytes, .. } => bytes as usize,
        }
    }

    /// The first of the pages that the value has for itself.
    pub(crate) fn overflow(&self) -> Option<PageNumber> {
        match self.place {
            Place::Inline(_) => None,
            Place::Overflow { first, .. } => Some(first),
        }
    }

    /// The row of this payload.
    #[inline]
    pub(crate) fn read<'a>(mapping: &'a Mapping, payload: &'a [u8]) -> Row<'a> {
        let kept = Kept::decode(payload);
        let value = match kept.place {
            Place::Inline(bytes) => &payload[payload.len() - bytes..],
            Place::Overflow { first, bytes } => overflow::read(mapping, first, bytes),
        };
        kept.numbers.unwrap_or(Numbers::NONE).row(value)
    }

    /// Gives the value's pages back, if it has any.
    pub(crate) fn free(&self, space: &mut Space) {
        if let Place::Overflow { first, bytes } = self.place {
            overflow::free(space, first, bytes);
        }
    }
}

/// A row on its way into the tree, its value already where it will stay.
pub(crate) struct New<'a> {
    numbers: Option<Numbers>,
    place: Place,
    /// Empty if it is in pages of its own.
    inline: &'a [u8],
}

impl<'a> New<'a> {
    /// Finds a place for the value. If it replaces one that nobody needs any more, that one's pages are used again, or
    /// given back.
    pub(crate) fn place(
        space: &mut Space,
        key: &[u8],
        numbers: Option<Numbers>,
        value: &'a [u8],
        replaces: Option<Kept>,
    ) -> New<'a> {
        assert!(value.len() <= VALUE_BYTES_MAX, "a value of {} bytes", value.len());
        let length = value.len() as u32;
        if let Some(Kept { place: Place::Overflow { first, bytes }, .. }) = replaces {
            if bytes == length && overflow::rewrite(space, first, value) {
                return New { numbers, place: Place::Overflow { first, bytes }, inline: &[] };
            }
            overflow::free(space, first, bytes);
        }
        if value.len() <= inline_bytes_max(key) {
            return New { numbers, place: Place::Inline(value.len()), inline: value };
        }
        let first = overflow::write(space, value);
        New { numbers, place: Place::Overflow { first, bytes: length }, inline: &[] }
    }

    pub(crate) fn payload_bytes(&self) -> usize {
        let numbers = if self.numbers.is_some() { NUMBERS_BYTES } else { 0 };
        1 + numbers
            + match self.place {
                Place::Inline(bytes) => bytes,
                Place::Overflow { .. } => PLACE_BYTES,
            }
    }

    pub(crate) fn encode(&self, payload: &mut [u8]) {
        payload[0] = 0;
        let mut rest = 1;
        if let Some(Numbers { create, modify, version }) = self.numbers {
            payload[0] |= VERSIONED;
            payload[1..9].copy_from_slice(&create.0.to_le_bytes());
            payload[9..17].copy_from_slice(&modify.0.to_le_bytes());
            payload[17..25].copy_from_slice(&version.0.to_le_bytes());
            rest += NUMBERS_BYTES;
        }
        match self.place {
            Place::Inline(_) => payload[rest..].copy_from_slice(self.inline),
            Place::Overflow { first, bytes } => {
                payload[0] |= OVERFLOW;
                payload[rest..rest + 4].copy_from_slice(&first.0.to_le_bytes());
                payload[rest + 4..].copy_from_slice(&bytes.to_le_bytes());
            }
        }
    }
}
