//! A frozen database in pieces, for a replica that lags behind.
//!
//! A view is exported in chunks of rows, in order; whoever imports them asks for each by where the last one ended. So a
//! transfer can stop and go on, and any replica that froze the same state can go on with it: the same rows have the same
//! bytes everywhere. How long a chunk is, is for whoever asks first to say, and changes nothing.
//!
//! | bytes | of a chunk's head | what it catches |
//! |---|---|---|
//! | 8 | the revision | chunks of two states in one transfer |
//! | 8 | how many rows there are | a transfer that ended early, or skipped some |
//! | 8 | the lengths of all keys and values | likewise |
//!
//! Then rows: length of the key (2 bytes), of the value (4), create and modify revision, version (8 each), key, value. All
//! numbers are little-endian. A plain row has no revisions: zeros.

use std::ops::Bound;

use crate::row::Row;
use crate::{ReadView, Revision, Store, Version};

const HEAD_BYTES: usize = 24;
const ROW_HEAD_BYTES: usize = 30;

/// A piece of a frozen database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Its bytes, to be imported.
    pub bytes: Vec<u8>,
    /// Where the next one begins; `None`: this was the last.
    pub next: Option<Vec<u8>>,
}

/// Why a chunk is not imported. What was imported before is no database: drop it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImportError {
    /// It ends in the middle of a row, or of its head.
    Cut,
    /// It is of another state than the ones before.
    OtherState,
    /// Its rows do not come behind those before.
    OutOfOrder,
    /// The last chunk was imported, and there are not as many rows as there should be, or not as long ones.
    Incomplete,
}

impl std::fmt::Display for ImportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cut => "a chunk that ends in the middle of a row",
            Self::OtherState => "chunks of two states of the database",
            Self::OutOfOrder => "rows that are not in order",
            Self::Incomplete => "some rows are missing, or are not as they were",
        })
    }
}

impl std::error::Error for ImportError {}

impl ReadView {
    /// The rows from here on (`None`: from the first), about so many bytes of them and one at least.
    #[must_use]
    pub fn export(&self, from: Option<&[u8]>, bytes_max: usize) -> Chunk {
        let mut bytes = Vec::with_capacity(bytes_max + bytes_max / 4);
        for number in [self.revision().0, self.len() as u64, self.bytes()] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let start = from.map_or(Bound::Unbounded, Bound::Included);
        for (key, row) in self.range(start, Bound::Unbounded) {
            if bytes.len() >= bytes_max.max(HEAD_BYTES + 1) {
                return Chunk { bytes, next: Some(key.to_vec()) };
            }
            let Row { create_revision, modify_revision, version, value } = row;
            bytes.extend_from_slice(&u16::try_from(key.len()).expect("keys are short").to_le_bytes());
            bytes.extend_from_slice(&u32::try_from(value.len()).expect("values are bounded").to_le_bytes());
            for number in [create_revision.0, modify_revision.0, version.0] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(key);
            bytes.extend_from_slice(value);
        }
        Chunk { bytes, next: None }
    }
}

impl Store {
    /// Adds a chunk's rows to a database that has nothing but the chunks before; `last`: it is whole now.
    pub fn import(&mut self, chunk: &[u8], last: bool) -> Result<(), ImportError> {
        let (head, mut rows) = chunk.split_at_checked(HEAD_BYTES).ok_or(ImportError::Cut)?;
        let (revision, len, bytes) = (Revision(number(&head[..8])), number(&head[8..16]), number(&head[16..]));
        if !self.is_empty() && self.revision() != revision {
            return Err(ImportError::OtherState);
        }
        self.begin_import(revision);
        while !rows.is_empty() {
            let (head, rest) = rows.split_at_checked(ROW_HEAD_BYTES).ok_or(ImportError::Cut)?;
            let key_bytes = usize::from(u16::from_le_bytes([head[0], head[1]]));
            let value_bytes = u32::from_le_bytes([head[2], head[3], head[4], head[5]]) as usize;
            let (key, rest) = rest.split_at_checked(key_bytes).ok_or(ImportError::Cut)?;
            let (value, rest) = rest.split_at_checked(value_bytes).ok_or(ImportError::Cut)?;
            let row = Row {
                create_revision: Revision(number(&head[6..14])),
                modify_revision: Revision(number(&head[14..22])),
                version: Version(number(&head[22..])),
                value,
            };
            if !self.import_row(key, row) {
                return Err(ImportError::OutOfOrder);
            }
            rows = rest;
        }
        if last && (self.len() as u64, self.bytes()) != (len, bytes) {
            return Err(ImportError::Incomplete);
        }
        Ok(())
    }
}

fn number(field: &[u8]) -> u64 {
    u64::from_le_bytes(field.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store() -> Store {
        let mut store = Store::new();
        store.put_plain(b"\x01", b"plain");
        for at in 0..100_u32 {
            let mut change = store.change();
            change.put(&at.to_be_bytes(), &vec![7; at as usize]);
            change.put(b"again", b"and again");
        }
        store.change().delete(&5_u32.to_be_bytes());
        store
    }

    fn chunks(store: &Store, bytes_max: usize) -> Vec<Chunk> {
        let view = store.freeze();
        let mut chunks = vec![view.export(None, bytes_max)];
        while let Some(next) = chunks.last().unwrap().next.clone() {
            chunks.push(view.export(Some(&next), bytes_max));
        }
        chunks
    }

    fn import(chunks: &[Chunk]) -> Result<Store, ImportError> {
        let mut store = Store::new();
        for (at, chunk) in chunks.iter().enumerate() {
            store.import(&chunk.bytes, at + 1 == chunks.len())?;
        }
        Ok(store)
    }

    #[test]
    fn what_is_imported_is_what_was_frozen() {
        for bytes_max in [1, 100, 1000, 1 << 20] {
            let (store, chunks) = (store(), chunks(&store(), bytes_max));
            let imported = import(&chunks).unwrap();
            assert_eq!((imported.revision(), imported.len(), imported.bytes()), (store.revision(), 101, store.bytes()));
            let all = (Bound::Unbounded, Bound::Unbounded);
            assert!(imported.range(all.0, all.1).eq(store.range(all.0, all.1)));
            assert_eq!(chunks.len() > 1, bytes_max < 1 << 20);
        }
    }

    #[test]
    fn what_is_missing_twice_there_or_cut_is_refused() {
        let chunks = chunks(&store(), 500);
        let mut missing = chunks.clone();
        missing.remove(3);
        assert_eq!(import(&missing).unwrap_err(), ImportError::Incomplete);
        let mut twice = chunks.clone();
        twice.insert(3, chunks[2].clone());
        assert_eq!(import(&twice).unwrap_err(), ImportError::OutOfOrder);
        let mut cut = chunks.clone();
        cut[1].bytes.pop();
        assert_eq!(import(&cut).unwrap_err(), ImportError::Cut);
        let mut other = store();
        other.change().put(b"x", b"y");
        let mut mixed = chunks.clone();
        mixed[2] = other.freeze().export(chunks[1].next.as_deref(), 500);
        assert_eq!(import(&mixed).unwrap_err(), ImportError::OtherState);
    }
}
