//! The model: what the store must be, in maps and lists.
#![allow(dead_code, reason = "each test uses some of it")]

use std::collections::BTreeMap;
use std::ops::Bound;

use synod_store::{ChangeKind, Compacted, Digest, Revision, Row, Store};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(crate) type Key = Vec<u8>;

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ModelRow {
    pub(crate) create: u64,
    pub(crate) modify: u64,
    pub(crate) version: u64,
    pub(crate) value: Vec<u8>,
}

impl ModelRow {
    pub(crate) fn of(row: Row<'_>) -> ModelRow {
        ModelRow {
            create: row.create_revision.0,
            modify: row.modify_revision.0,
            version: row.version.0,
            value: row.value.to_vec(),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Model {
    pub(crate) present: BTreeMap<Key, ModelRow>,
    /// What each versioned key became, and in which revision.
    pub(crate) past: BTreeMap<Key, Vec<(u64, Option<ModelRow>)>>,
    pub(crate) changes: Vec<(u64, u32, Key, ChangeKind)>,
    pub(crate) revision: u64,
    pub(crate) compacted: u64,
}

impl Default for Model {
    fn default() -> Model {
        Model { present: BTreeMap::new(), past: BTreeMap::new(), changes: Vec::new(), revision: 1, compacted: 1 }
    }
}

impl Model {
    fn note(&mut self, index: &mut u32, key: &[u8], row: Option<ModelRow>) {
        let kind = if row.is_some() { ChangeKind::Put } else { ChangeKind::Delete };
        self.changes.push((self.revision, *index, key.to_vec(), kind));
        self.past.entry(key.to_vec()).or_default().push((self.revision, row));
        *index += 1;
    }

    pub(crate) fn put(&mut self, index: &mut u32, key: &[u8], value: &[u8]) -> u64 {
        let (create, version) = self.present.get(key).map_or((self.revision, 0), |row| (row.create, row.version));
        let row = ModelRow { create, modify: self.revision, version: version + 1, value: value.to_vec() };
        self.present.insert(key.to_vec(), row.clone());
        self.note(index, key, Some(row));
        version + 1
    }

    pub(crate) fn delete(&mut self, index: &mut u32, key: &[u8]) -> bool {
        let was = self.present.remove(key).is_some();
        if was {
            self.note(index, key, None);
        }
        was
    }

    pub(crate) fn put_plain(&mut self, key: &[u8], value: &[u8]) {
        self.present.insert(key.to_vec(), ModelRow { create: 0, modify: 0, version: 0, value: value.to_vec() });
    }

    pub(crate) fn row_at(&self, key: &[u8], revision: u64) -> Option<ModelRow> {
        let past = self.past.get(key)?;
        past.iter().rev().find(|(written, _)| *written <= revision).and_then(|(_, row)| row.clone())
    }

    /// Forgets what cannot be asked for, so that a long run stays small.
    pub(crate) fn forget(&mut self) {
        let compacted = self.compacted;
        self.changes.retain(|(revision, ..)| *revision >= compacted);
        for past in self.past.values_mut() {
            let visible = past.iter().rposition(|(written, _)| *written <= compacted).unwrap_or(0);
            past.drain(..visible);
        }
    }

    /// What the digest must be: docs/format.md, word for word.
    pub(crate) fn digest(&self) -> Digest {
        let of = |(key, row): (&Key, &ModelRow)| {
            let numbers = [row.create, row.modify, row.version].map(u64::to_le_bytes).concat();
            xxh3_64_with_seed(&row.value, xxh3_64_with_seed(key, xxh3_64(&numbers)))
        };
        Digest(self.present.iter().map(of).fold(xxh3_64(&self.revision.to_le_bytes()), u64::wrapping_add))
    }

    /// Everything that can be read now.
    pub(crate) fn check(&self, store: &Store) {
        assert_eq!(store.revision().0, self.revision);
        assert_eq!(store.compacted().0, self.compacted);
        assert_eq!(store.len(), self.present.len());
        let rows: Vec<(Key, ModelRow)> =
            store.prefix(b"").map(|(key, row)| (key.to_vec(), ModelRow::of(row))).collect();
        assert!(rows.iter().map(|(key, row)| (key, row)).eq(self.present.iter()), "rows differ");
        let bytes: usize = self.present.iter().map(|(key, row)| key.len() + row.value.len()).sum();
        assert_eq!(store.bytes(), bytes as u64);
        assert_eq!(store.digest(), self.digest());
    }

    /// What can be read of the past at one revision.
    pub(crate) fn check_at(&self, store: &Store, revision: u64) {
        let range = store.range_at(Bound::Unbounded, Bound::Unbounded, Revision(revision));
        if revision < self.compacted {
            let refused = Compacted { compacted: Revision(self.compacted) };
            assert_eq!(range.map(drop), Err(refused));
            assert_eq!(store.changes_since(Revision(revision)).map(drop), Err(refused));
            assert_eq!(store.get_at(b"v", Revision(revision)).map(drop), Err(refused));
            return;
        }
        let found: Vec<(Key, ModelRow)> = range.unwrap().map(|(key, row)| (key.to_vec(), ModelRow::of(row))).collect();
        let expected: Vec<(Key, ModelRow)> =
            self.past.keys().filter_map(|key| self.row_at(key, revision).map(|row| (key.clone(), row))).collect();
        assert!(found == expected, "at revision {revision} of {}", self.revision);
        for key in self.past.keys().step_by(7) {
            let row = store.get_at(key, Revision(revision)).unwrap().map(ModelRow::of);
            assert_eq!(row, self.row_at(key, revision));
        }
        let changes = store.changes_since(Revision(revision)).unwrap();
        let expected = self.changes.iter().filter(|(at, ..)| *at >= revision);
        let mut count = 0;
        for (changed, (at, index, key, kind)) in changes.zip(expected) {
            assert_eq!((changed.revision.0, changed.index, changed.key, changed.kind), (*at, *index, &key[..], *kind));
            let row = self.row_at(key, *at);
            assert_eq!(changed.row.map(ModelRow::of), row);
            count += 1;
        }
        assert_eq!(count, self.changes.iter().filter(|(at, ..)| *at >= revision).count());
        assert_eq!(count, store.changes_since(Revision(revision)).unwrap().count());
    }
}
