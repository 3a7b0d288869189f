//! The database: ordered rows of bytes, revisions, frozen views, snapshots.
//!
//! A [`Store`] is an ordered map from keys to rows, both plain bytes, with the version numbers of etcd's model: the
//! database has a [`Revision`], one more for each command that changes it; a row knows the revision that created it,
//! the one that last wrote it, and how often it was written since. It knows no cell, no log and no protocol.
//!
//! There are two kinds of rows. *Versioned* rows are what users see; they are written within a [`Change`], and making
//! one is the only way to raise the revision, so a versioned row cannot be written under a revision that others were
//! told of before. *Plain* rows are the caller's bookkeeping (results kept for retries, counters): rows of the same
//! database, in the same snapshots, but no part of its history.
//!
//! The inside is a copy-on-write B+tree in pages that are mapped from a file, or from nothing ([`Store::new`]):
//!
//! - [`Store::freeze`] gives a [`ReadView`]: the database as it is now, for as long as the view lives. The first change
//!   of a page afterwards copies that page, and nothing else.
//! - [`Store::freeze_snapshot`] freezes it for a snapshot, which another thread writes out; [`Store::open`] begins from
//!   there.
//! - Rows of the past are kept until [`Store::compact`] lets go of them: [`Store::get_at`], [`Store::changes_since`].
//!
//! The bytes of the file are in `docs/format.md`, figures in `docs/performance.md`.
//!
//! | module | owns |
//! |---|---|
//! | `store`, `view` | the owner's face, and the readers' |
//! | `image` | three trees and their numbers |
//! | `history` | the past: what rows were, and in which order they changed |
//! | `digest` | one number of all rows, kept by every change (rule P14) |
//! | `row` | what is kept for one key |
//! | `overflow` | values in pages of their own |
//! | `tree` | a B+tree, copy on write |
//! | `finger` | finding a row again without a way down the tree |
//! | `page` | one page: header, slots, cells |
//! | `space` | which places are free (rule S1) |
//! | `bitmap` | sets of pages |
//! | `mapping` | the pages in memory: all of this crate's unsafe code |
//! | `open`, `meta` | opening from a snapshot, and the block that makes one |
//! | `snapshot`, `device` | freezing, writing out, verifying (rule S2) |
//! | `audit` | what can be reached is what is in use |
//! | `self_test` | does the file system do what this leans on? (rule S5) |
//! | `transfer` | a frozen database in pieces, for another replica |
//! | `chore` | what a helper does ahead of need (rule S4) |
//! | `scrub` | looking for rot before somebody needs the page |
//! | `rot` | a row that rots in memory, on purpose, for tests |
//! | `damage` | what happens when a page is not what was written |

mod audit;
mod bitmap;
mod chore;
mod damage;
mod device;
mod digest;
mod finger;
mod history;
mod image;
mod mapping;
mod meta;
mod open;
mod overflow;
mod page;
#[cfg(any(test, feature = "rot"))]
mod rot;
mod row;
mod scrub;
mod self_test;
mod snapshot;
mod space;
mod store;
mod transfer;
mod tree;
mod view;

use std::fmt;

pub use chore::Chore;
pub use damage::{DAMAGED_EXIT_STATUS, Damage, end_on_own_panics};
pub use device::Device;
pub use digest::{Digest, RecomputeError};
pub use finger::Finger;
pub use history::{Changed, Changes, Compacted, RangeAt};
pub use image::{ChangeKind, Range};
pub use mapping::end_on_unreadable_pages;
pub use meta::{HANDLE_BYTES_MAX, IDENTITY_BYTES_MAX};
pub use open::{OpenError, OpenOptions, Opened};
pub use page::{PAGE_BYTES, PageNumber};
#[cfg(feature = "planted")]
pub use rot::plant_forgiving_digest;
pub use row::{KEY_BYTES_MAX, Row, VALUE_BYTES_MAX, Version};
pub use scrub::{Scrub, ScrubError};
pub use self_test::SelfTestError;
pub use snapshot::{Durable, Frozen, Pacing, SnapshotError};
pub use space::ViewEnded;
pub use store::{Change, Store};
pub use transfer::{Chunk, ImportError};
pub use view::{PastError, ReadView};

/// The database's version: one more for each command that changes it. The empty database is [`Revision::FIRST`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision(pub u64);

impl Revision {
    /// No revision: what a plain row has.
    pub const NONE: Revision = Revision(0);
    /// The empty database's, as in etcd: the first change makes 2.
    pub const FIRST: Revision = Revision(1);
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a store is to do, and within which bounds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Whether rows of the past can be read, and changes be asked for. Without, every revision is compacted at once.
    pub keep_history: bool,
    /// How large the database may become: so many addresses are reserved, and no memory.
    pub database_bytes_max: usize,
    /// How much views may keep from being used again, before the oldest are ended.
    pub pinned_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Options {
        Options { keep_history: true, database_bytes_max: 16 << 30, pinned_bytes_max: 4 << 30 }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::ops::Bound;

    use proptest::prelude::*;

    use super::*;

    /// Rows as (key, created, modified, version, value).
    type Rows = Vec<(Vec<u8>, u64, u64, u64, Vec<u8>)>;

    fn rows(range: Range<'_>) -> Rows {
        range
            .map(|(key, row)| {
                (key.to_vec(), row.create_revision.0, row.modify_revision.0, row.version.0, row.value.to_vec())
            })
            .collect()
    }

    fn all(store: &Store) -> Rows {
        rows(store.range(Bound::Unbounded, Bound::Unbounded))
    }

    #[test]
    fn an_empty_database_has_the_first_revision() {
        let store = Store::new();
        assert_eq!((store.revision(), store.len(), store.bytes()), (Revision(1), 0, 0));
        assert_eq!(store.get(b"a"), None);
    }

    #[test]
    fn a_row_knows_its_revisions() {
        let mut store = Store::new();
        let mut change = store.change();
        assert_eq!(change.revision(), Revision(2));
        assert_eq!(change.put(b"a", b"1"), Version(1));
        assert_eq!(change.put(b"b", b"1"), Version(1));
        assert_eq!(store.change().put(b"a", b"22"), Version(2));
        assert_eq!(all(&store), [(b"a".to_vec(), 2, 3, 2, b"22".to_vec()), (b"b".to_vec(), 2, 2, 1, b"1".to_vec())]);
        assert_eq!(store.bytes(), 5);

        // A row that comes back is a new one.
        assert!(store.change().delete(b"a"));
        assert!(!store.change().delete(b"a"));
        store.change().put(b"a", b"3");
        assert_eq!(store.get(b"a").map(|row| (row.create_revision.0, row.version.0)), Some((6, 1)));
    }

    #[test]
    fn plain_rows_are_no_history() {
        let mut store = Store::new();
        store.put_plain(b"p", b"1");
        store.put_plain(b"p", b"2");
        assert_eq!(store.revision(), Revision::FIRST);
        assert_eq!(all(&store), [(b"p".to_vec(), 0, 0, 0, b"2".to_vec())]);
        assert!(store.delete_plain(b"p"));
        assert!(!store.delete_plain(b"p"));
        assert_eq!((store.revision(), store.len(), store.bytes()), (Revision::FIRST, 0, 0));
    }

    #[test]
    #[should_panic(expected = "has a plain row")]
    fn the_two_kinds_do_not_mix() {
        let mut store = Store::new();
        store.put_plain(b"p", b"1");
        store.change().put(b"p", b"2");
    }

    #[test]
    fn ranges_from_both_ends() {
        let mut store = Store::new();
        for key in ["a", "b", "ba", "b\u{7f}", "c"] {
            store.change().put(key.as_bytes(), b"");
        }
        let keys = |range: Range<'_>| {
            range.map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>().join(" ")
        };
        let range = |start, end| store.range(start, end);
        assert_eq!(keys(range(Bound::Included(b"b"), Bound::Excluded(b"c"))), "b ba b\u{7f}");
        assert_eq!(keys(range(Bound::Excluded(b"b"), Bound::Unbounded)), "ba b\u{7f} c");
        assert_eq!(keys(store.prefix(b"b")), "b ba b\u{7f}");
        assert_eq!(keys(store.prefix(b"")), "a b ba b\u{7f} c");
        assert_eq!(keys(store.prefix(b"\xff\xff")), "");
        let last = store.prefix(b"b").next_back().map(|(key, _)| key.to_vec());
        assert_eq!(last, Some("b\u{7f}".into()));
        // Crossed or empty bounds are an answer, not a fault.
        assert_eq!(keys(range(Bound::Included(b"c"), Bound::Excluded(b"a"))), "");
        assert_eq!(keys(range(Bound::Excluded(b"a"), Bound::Excluded(b"a"))), "");
        assert_eq!(keys(range(Bound::Included(b"a"), Bound::Excluded(b"a"))), "");
        assert_eq!(keys(range(Bound::Included(b"a"), Bound::Included(b"a"))), "a");
    }

    #[test]
    fn what_goes_to_other_threads_may() {
        fn goes<T: Send>() {}
        fn is_shared<T: Sync>() {}
        goes::<Store>();
        goes::<Frozen>();
        goes::<Durable>();
        goes::<Chore>();
        goes::<Scrub>();
        goes::<ReadView>();
        is_shared::<ReadView>();
    }

    #[test]
    fn a_view_stays_as_it_was() {
        let mut store = Store::new();
        store.change().put(b"a", b"1");
        let view = store.freeze();
        store.change().put(b"a", b"2");
        store.put_plain(b"p", b"");
        assert_eq!((view.revision(), view.len(), view.bytes()), (Revision(2), 1, 2));
        assert_eq!(view.get(b"a").unwrap().map(|row| row.value), Some(&b"1"[..]));
        assert_eq!(store.get(b"a").map(|row| row.value), Some(&b"2"[..]));
        std::thread::spawn(move || assert_eq!(view.prefix(b"").unwrap().count(), 1)).join().unwrap();
    }

    #[derive(Clone, Debug)]
    enum Step {
        Change(Vec<(Vec<u8>, Option<Vec<u8>>)>),
        Plain(Vec<u8>, Option<Vec<u8>>),
        Freeze,
        Drop,
    }

    /// Few keys, so that steps meet; lengths on both sides of what is kept without an allocation.
    fn step() -> impl Strategy<Value = Step> {
        let key = |kind: u8| {
            (0..6u8, prop_oneof![Just(0usize), Just(20), Just(21), Just(40)])
                .prop_map(move |(name, pad)| [vec![kind, name], vec![b'x'; pad]].concat())
        };
        let value = proptest::option::of(
            (prop_oneof![0..4usize, 20..25usize, Just(300)], any::<u8>()).prop_map(|(len, byte)| vec![byte; len]),
        );
        prop_oneof![
            4 => proptest::collection::vec((key(b'v'), value.clone()), 0..4).prop_map(Step::Change),
            4 => (key(b'p'), value).prop_map(|(key, value)| Step::Plain(key, value)),
            1 => Just(Step::Freeze),
            1 => Just(Step::Drop),
        ]
    }

    proptest! {
        #[test]
        fn like_a_map(steps in proptest::collection::vec(step(), 0..60), from in 0..8u8, to in 0..8u8) {
            let mut store = Store::new();
            let mut model: BTreeMap<Vec<u8>, (u64, u64, u64, Vec<u8>)> = BTreeMap::new();
            let mut revision = 1;
            let mut views: Vec<(ReadView, Rows, u64)> = Vec::new();
            let flat = |model: &BTreeMap<Vec<u8>, (u64, u64, u64, Vec<u8>)>| -> Rows {
                model.iter().map(|(k, (c, m, v, value))| (k.clone(), *c, *m, *v, value.clone())).collect()
            };
            for step in steps {
                match step {
                    Step::Change(writes) => {
                        revision += 1;
                        let mut change = store.change();
                        for (key, value) in writes {
                            match value {
                                Some(value) => {
                                    let row = model.entry(key.clone()).or_insert((revision, 0, 0, Vec::new()));
                                    *row = (row.0, revision, row.2 + 1, value.clone());
                                    prop_assert_eq!(change.put(&key, &value), Version(row.2));
                                }
                                None => prop_assert_eq!(change.delete(&key), model.remove(&key).is_some()),
                            }
                        }
                        prop_assert_eq!(change.revision(), Revision(revision));
                    }
                    Step::Plain(key, Some(value)) => {
                        store.put_plain(&key, &value);
                        model.insert(key, (0, 0, 0, value));
                    }
                    Step::Plain(key, None) => {
                        prop_assert_eq!(store.delete_plain(&key), model.remove(&key).is_some());
                    }
                    Step::Freeze => views.push((store.freeze(), flat(&model), revision)),
                    Step::Drop => drop(views.pop()),
                }
                prop_assert_eq!(all(&store), flat(&model));
                prop_assert_eq!(store.revision(), Revision(revision));
                prop_assert_eq!(store.len(), model.len());
                let bytes: usize = model.iter().map(|(key, row)| key.len() + row.3.len()).sum();
                prop_assert_eq!(store.bytes(), bytes as u64);
                for (key, row) in &model {
                    prop_assert_eq!(store.get(key).map(|row| row.value), Some(&row.3[..]));
                }
            }
            for (view, rows_then, revision_then) in &views {
                prop_assert_eq!(&rows(view.prefix(b"").unwrap()), rows_then);
                prop_assert_eq!(view.revision(), Revision(*revision_then));
            }
            let (from, to) = (vec![b'v', from], vec![b'v', to]);
            let expected: Rows = flat(&model).into_iter().filter(|row| from <= row.0 && row.0 < to).collect();
            let mut found = rows(store.range(Bound::Included(&from), Bound::Excluded(&to)));
            prop_assert_eq!(&found, &expected);
            found.reverse();
            let backwards: Vec<_> =
                store.range(Bound::Included(&from), Bound::Excluded(&to)).rev().map(|(key, _)| key.to_vec()).collect();
            prop_assert_eq!(found.into_iter().map(|row| row.0).collect::<Vec<_>>(), backwards);
        }
    }
}
