//! A frozen database in pieces, for a replica that lags behind.
//!
//! A view is exported in chunks, in order; whoever imports them asks for each by where the last one ended. So a transfer can
//! stop and go on, and any replica that froze the same state can go on with it: the same state has the same rows everywhere,
//! whatever its pages look like. How long a chunk is, is for whoever asks to say, and changes nothing else.
//!
//! | bytes | of a chunk's head | what it catches |
//! |---|---|---|
//! | 8 | the revision | chunks of two states in one transfer |
//! | 8 | the revision below which the past is compacted | likewise |
//! | 8 | how many rows there are | a transfer that ended early, or skipped some |
//! | 8 | the lengths of all keys and values | likewise |
//!
//! Then entries: the tree it is of (1 byte: 0 present, 1 history, 2 changes) with 128 for a tombstone and 64 for a plain row,
//! the length of the key (2), of the value (4), create and modify revision, version (8 each), key, value. All numbers are
//! little-endian. What has no numbers has zeros.

use std::borrow::Cow;
use std::ops::Bound;

use crate::history;
use crate::image::Image;
use crate::row::{Kept, New, Numbers, Row, TOMBSTONE_PAYLOAD, is_tombstone};
use crate::space::Space;
use crate::tree::{Cells, Tree};
use crate::{KEY_BYTES_MAX, ReadView, Revision, Store, VALUE_BYTES_MAX, Version, ViewEnded};

const HEAD_BYTES: usize = 32;
const ENTRY_HEAD_BYTES: usize = 31;
const TOMBSTONE: u8 = 128;
const PLAIN: u8 = 64;
/// The keys of history are longer than those of rows: see there.
const ENTRY_KEY_BYTES_MAX: usize = 2 * KEY_BYTES_MAX;

/// A piece of a frozen database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Chunk {
    /// Its bytes, to be imported.
    pub bytes: Vec<u8>,
    /// Where the next one begins; `None`: this was the last.
    pub next: Option<Vec<u8>>,
}

/// Why a chunk is not imported. What was imported before is no database: drop it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImportError {
    /// It ends in the middle of an entry, or of its head.
    #[error("a chunk that ends in the middle of an entry")]
    Cut,
    /// It is of another state than the ones before.
    #[error("chunks of two states of the database")]
    OtherState,
    /// Its entries do not come behind those before.
    #[error("entries that are not in order")]
    OutOfOrder,
    /// An entry that no database has.
    #[error("an entry that no database has")]
    Malformed,
    /// The last chunk was imported, and there are not as many rows as there should be, or not as long ones.
    #[error("some rows are missing, or are not as they were")]
    Incomplete,
}

/// The trees, in the order in which they are sent.
fn trees(image: &mut Image) -> [&mut Tree; 3] {
    [&mut image.present, &mut image.history, &mut image.changes]
}

const CHANGES: u8 = 2;

impl ReadView {
    /// The entries from here on (`None`: from the first), about so many bytes of them and one at least.
    ///
    /// # Errors
    ///
    /// If the view was ended.
    pub fn export(&self, from: Option<&[u8]>, bytes_max: usize) -> Result<Chunk, ViewEnded> {
        let (mapping, mut image) = self.parts()?;
        let mut bytes = Vec::with_capacity(bytes_max + bytes_max / 4);
        for number in [image.revision.0, image.compacted.0, image.rows, image.bytes] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        let (first, start) = match from.and_then(<[u8]>::split_first) {
            Some((tree, key)) => (*tree, Bound::Included(key)),
            None => (0, Bound::Unbounded),
        };
        let all = trees(&mut image).into_iter().zip(0_u8..).skip(usize::from(first));
        for (tree, number) in all {
            let start = if number == first { start } else { Bound::Unbounded };
            for (key, payload) in Cells::new(*tree, mapping, start, Bound::Unbounded) {
                if bytes.len() >= bytes_max.max(HEAD_BYTES + 1) {
                    return Ok(Chunk { bytes, next: Some([&[number], key].concat()) });
                }
                let none = Row {
                    create_revision: Revision::NONE,
                    modify_revision: Revision::NONE,
                    version: Version(0),
                    value: &[],
                };
                let (flags, row) = match number {
                    CHANGES => (0, Row { value: payload, ..none }),
                    _ if is_tombstone(payload) => (TOMBSTONE, none),
                    _ => {
                        let row = Kept::read(mapping, payload);
                        (if row.create_revision == Revision::NONE { PLAIN } else { 0 }, row)
                    }
                };
                put_entry(&mut bytes, number | flags, key, row);
            }
        }
        Ok(Chunk { bytes, next: None })
    }
}

fn put_entry(out: &mut Vec<u8>, kind: u8, key: &[u8], row: Row<'_>) {
    out.push(kind);
    out.extend_from_slice(&u16::try_from(key.len()).expect("keys are short").to_le_bytes());
    out.extend_from_slice(&u32::try_from(row.value.len()).expect("values are bounded").to_le_bytes());
    for number in [row.create_revision.0, row.modify_revision.0, row.version.0] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(key);
    out.extend_from_slice(row.value);
}

/// One entry of a chunk.
struct Entry<'a> {
    kind: u8,
    key: &'a [u8],
    numbers: Numbers,
    value: &'a [u8],
}

impl Entry<'_> {
    fn tree(&self) -> u8 {
        self.kind & !(TOMBSTONE | PLAIN)
    }
}

/// Takes an entry off the front.
fn take_entry<'a>(bytes: &mut &'a [u8]) -> Result<Entry<'a>, ImportError> {
    let (head, rest) = bytes.split_at_checked(ENTRY_HEAD_BYTES).ok_or(ImportError::Cut)?;
    let key_bytes = usize::from(u16::from_le_bytes([head[1], head[2]]));
    let value_bytes = u32::from_le_bytes([head[3], head[4], head[5], head[6]]) as usize;
    if key_bytes > ENTRY_KEY_BYTES_MAX || value_bytes > VALUE_BYTES_MAX {
        return Err(ImportError::Malformed);
    }
    let (key, rest) = rest.split_at_checked(key_bytes).ok_or(ImportError::Cut)?;
    let (value, rest) = rest.split_at_checked(value_bytes).ok_or(ImportError::Cut)?;
    *bytes = rest;
    let numbers = Numbers {
        create: Revision(number(&head[7..15])),
        modify: Revision(number(&head[15..23])),
        version: Version(number(&head[23..])),
    };
    Ok(Entry { kind: head[0], key, numbers, value })
}

impl Store {
    /// Adds a chunk's entries to a database that has nothing but the chunks before; `last`: it is whole now. A store that keeps
    /// no history takes the present alone.
    ///
    /// # Errors
    ///
    /// If this is no chunk, or not the next one, or some are missing.
    pub fn import(&mut self, chunk: &[u8], last: bool) -> Result<(), ImportError> {
        let (head, mut entries) = chunk.split_at_checked(HEAD_BYTES).ok_or(ImportError::Cut)?;
        let [revision, compacted, rows, bytes] = [0, 8, 16, 24].map(|at| number(&head[at..at + 8]));
        let compacted = if self.options.keep_history { Revision(compacted) } else { Revision(revision) };
        if !self.is_empty() && (self.image.revision, self.image.compacted) != (Revision(revision), compacted) {
            return Err(ImportError::OtherState);
        }
        (self.image.revision, self.image.compacted) = (Revision(revision), compacted);
        // Which tree, and where in it: entries come behind those of this chunk, and the first behind all that is there.
        let mut before = None;
        while !entries.is_empty() {
            let entry = take_entry(&mut entries)?;
            let tree = entry.tree();
            let is_behind = match before {
                Some((same, key)) if same == tree => key < entry.key,
                Some((later, _)) if later > tree => false,
                _ => self.is_behind(tree, entry.key)?,
            };
            if !is_behind {
                return Err(ImportError::OutOfOrder);
            }
            before = Some((tree, entry.key));
            if tree > 0 && !self.options.keep_history {
                continue;
            }
            self.import_entry(&entry)?;
        }
        if last && (self.image.rows, self.image.bytes) != (rows, bytes) {
            return Err(ImportError::Incomplete);
        }
        Ok(())
    }

    /// Whether this key comes behind all that are in a tree.
    fn is_behind(&mut self, tree: u8, key: &[u8]) -> Result<bool, ImportError> {
        let tree = trees(&mut self.image).into_iter().nth(usize::from(tree)).ok_or(ImportError::Malformed)?;
        let last = Cells::new(*tree, self.space.mapping(), Bound::Unbounded, Bound::Unbounded).next_back();
        Ok(last.is_none_or(|(last, _)| last < key))
    }

    fn import_entry(&mut self, entry: &Entry<'_>) -> Result<(), ImportError> {
        let Entry { kind, key, numbers, value } = *entry;
        let tree = entry.tree();
        let is_sound = match tree {
            0 => key.len() <= KEY_BYTES_MAX && kind & TOMBSTONE == 0,
            1 => kind & PLAIN == 0,
            _ => kind == CHANGES && history::is_change(key, value),
        };
        if !is_sound {
            return Err(ImportError::Malformed);
        }
        let numbers = (kind & PLAIN == 0).then_some(numbers);
        if tree == 0 {
            self.image.count(key, numbers.unwrap_or(Numbers::NONE).row(value));
        }
        let space = &mut self.space;
        let into = trees(&mut self.image).into_iter().nth(usize::from(tree)).ok_or(ImportError::Malformed)?;
        if kind & TOMBSTONE > 0 {
            append(into, space, key, TOMBSTONE_PAYLOAD.len()).copy_from_slice(TOMBSTONE_PAYLOAD);
            return Ok(());
        }
        if tree == CHANGES {
            append(into, space, key, value.len()).copy_from_slice(value);
            return Ok(());
        }
        let row_key = if tree == 0 { Some(Cow::Borrowed(key)) } else { history::key_of(key).map(Cow::Owned) };
        let row_key = row_key.ok_or(ImportError::Malformed)?;
        let new = New::place(space, &row_key, numbers, value, None);
        new.encode(append(into, space, key, new.payload_bytes()));
        Ok(())
    }
}

/// Adds a cell behind all others; gives the place of its payload.
fn append<'a>(tree: &mut Tree, space: &'a mut Space, key: &[u8], payload_bytes: usize) -> &'a mut [u8] {
    let (path, _) = tree.find(space, key);
    tree.insert(space, &path, key, payload_bytes)
}

fn number(field: &[u8]) -> u64 {
    u64::from_le_bytes(field.try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;

    fn store(keep_history: bool) -> Store {
        let mut store = Store::in_memory(Options { keep_history, ..Options::default() });
        store.put_plain(b"\x01", b"plain");
        for at in 0..100_u32 {
            let mut change = store.change();
            change.put(&at.to_be_bytes(), &vec![7; 30 * at as usize]);
            change.put(b"again", b"and again");
        }
        store.change().delete(&5_u32.to_be_bytes());
        store.compact(Revision(20));
        store
    }

    fn chunks(store: &mut Store, bytes_max: usize) -> Vec<Chunk> {
        let view = store.freeze();
        let mut chunks = vec![view.export(None, bytes_max).unwrap()];
        while let Some(next) = chunks.last().unwrap().next.clone() {
            chunks.push(view.export(Some(&next), bytes_max).unwrap());
        }
        chunks
    }

    fn import(chunks: &[Chunk], keep_history: bool) -> Result<Store, ImportError> {
        let mut store = Store::in_memory(Options { keep_history, ..Options::default() });
        for (at, chunk) in chunks.iter().enumerate() {
            store.import(&chunk.bytes, at + 1 == chunks.len())?;
        }
        Ok(store)
    }

    const ALL: (Bound<&[u8]>, Bound<&[u8]>) = (Bound::Unbounded, Bound::Unbounded);

    #[test]
    fn what_is_imported_is_what_was_frozen() {
        for bytes_max in [1, 100, 10_000, 1 << 20] {
            let mut store = store(true);
            let chunks = chunks(&mut store, bytes_max);
            assert_eq!(chunks.len() > 1, bytes_max < 1 << 20);
            let imported = import(&chunks, true).unwrap();
            let numbers =
                |store: &Store| (store.revision(), store.compacted(), store.digest(), store.len(), store.bytes());
            assert_eq!(numbers(&imported), numbers(&store));
            assert!(imported.range(ALL.0, ALL.1).eq(store.range(ALL.0, ALL.1)));
            let changes =
                |store: &Store| format!("{:?}", store.changes_since(Revision(20)).unwrap().collect::<Vec<_>>());
            assert_eq!(changes(&imported), changes(&store));
            let past = Revision(50);
            assert!(imported.range_at(ALL.0, ALL.1, past).unwrap().eq(store.range_at(ALL.0, ALL.1, past).unwrap()));
        }
    }

    #[test]
    fn who_keeps_no_history_takes_the_present() {
        let mut store = store(true);
        let imported = import(&chunks(&mut store, 1000), false).unwrap();
        assert_eq!(imported.compacted(), store.revision());
        assert!(imported.range(ALL.0, ALL.1).eq(store.range(ALL.0, ALL.1)));
    }

    #[test]
    fn what_is_missing_twice_there_or_cut_is_refused() {
        let chunks = chunks(&mut store(false), 2000);
        let mut missing = chunks.clone();
        missing.remove(3);
        assert_eq!(import(&missing, false).unwrap_err(), ImportError::Incomplete);
        let mut twice = chunks.clone();
        twice.insert(3, chunks[2].clone());
        assert_eq!(import(&twice, false).unwrap_err(), ImportError::OutOfOrder);
        let mut cut = chunks.clone();
        cut[1].bytes.pop();
        assert_eq!(import(&cut, false).unwrap_err(), ImportError::Cut);
        let mut other = store(false);
        other.change().put(b"x", b"y");
        let mut mixed = chunks.clone();
        mixed[2] = other.freeze().export(chunks[1].next.as_deref(), 500).unwrap();
        assert_eq!(import(&mixed, false).unwrap_err(), ImportError::OtherState);
        let mut malformed = chunks;
        malformed[0].bytes[HEAD_BYTES] = 3;
        assert_eq!(import(&malformed, true).unwrap_err(), ImportError::Malformed);
        // A change has a key of its own length, and says what was done.
        let numbers =
            Row { create_revision: Revision(1), modify_revision: Revision(1), version: Version(0), value: b"" };
        let mut short = malformed[1].bytes[..HEAD_BYTES].to_vec();
        put_entry(&mut short, CHANGES, b"short", numbers);
        let mut store = Store::in_memory(Options::default());
        assert_eq!(store.import(&short, false).unwrap_err(), ImportError::Malformed);
    }
}
