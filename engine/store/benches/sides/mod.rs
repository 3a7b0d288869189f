//! The sides: this store in three ways, redb, LMDB and a map, behind one trait.
//!
//! Rows of a 16-byte random key. Nobody syncs. A transaction is a thousand puts: redb and LMDB commit it, so that what it frees can be
//! used again; the store has none, so it is frozen for a view, which is dropped at the next: that too makes every page be copied
//! once. `in place` is the store without that, as a replica between two snapshots is.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;

use heed::types::Bytes;
use redb::{ReadableDatabase, TableDefinition};
use synod_store::{OpenOptions, Options, ReadView, Store};

/// Rows of a transaction.
pub(crate) const BATCH: usize = 1000;
/// Rows of a scan.
pub(crate) const SCAN: usize = 1000;

pub(crate) type Key = [u8; 16];

/// A database, or a map, and the same work for each.
pub(crate) trait Side {
    fn name(&self) -> &'static str;
    fn put(&mut self, batch: &[Key], value: &[u8]);
    /// The sum of the values' lengths.
    fn get(&mut self, batch: &[Key]) -> usize;
    fn scan(&mut self, from: &Key) -> usize;
}

struct Ours {
    name: &'static str,
    store: Store,
    view: Option<ReadView>,
    freezes: bool,
}

impl Ours {
    fn new(name: &'static str, directory: &Path, keep_history: bool, freezes: bool) -> Ours {
        let path = directory.join(name.replace(' ', "-"));
        Store::create(&path, b"").unwrap();
        let store = Options { keep_history, ..Options::default() };
        let (store, _) = Store::open(&path, &OpenOptions { store, ..OpenOptions::default() }).unwrap();
        Ours { name, store, view: None, freezes }
    }
}

impl Side for Ours {
    fn name(&self) -> &'static str {
        self.name
    }

    fn put(&mut self, batch: &[Key], value: &[u8]) {
        for key in batch {
            self.store.change().put(key, value);
        }
        if self.freezes {
            self.view = None;
            self.view = Some(self.store.freeze());
        }
    }

    fn get(&mut self, batch: &[Key]) -> usize {
        batch.iter().map(|key| self.store.get(key).unwrap().value.len()).sum()
    }

    fn scan(&mut self, from: &Key) -> usize {
        let rows = self.store.range(Bound::Included(from), Bound::Unbounded).take(SCAN);
        rows.map(|(key, row)| key.len() + row.value.len()).sum()
    }
}

struct Map(BTreeMap<Key, Box<[u8]>>);

impl Side for Map {
    fn name(&self) -> &'static str {
        "BTreeMap"
    }

    fn put(&mut self, batch: &[Key], value: &[u8]) {
        for key in batch {
            self.0.insert(*key, value.into());
        }
    }

    fn get(&mut self, batch: &[Key]) -> usize {
        batch.iter().map(|key| self.0[key].len()).sum()
    }

    fn scan(&mut self, from: &Key) -> usize {
        self.0.range(*from..).take(SCAN).map(|(key, value)| key.len() + value.len()).sum()
    }
}

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("rows");

struct Redb(redb::Database);

impl Side for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn put(&mut self, batch: &[Key], value: &[u8]) {
        let mut transaction = self.0.begin_write().unwrap();
        transaction.set_durability(redb::Durability::None).unwrap();
        {
            let mut table = transaction.open_table(TABLE).unwrap();
            for key in batch {
                table.insert(&key[..], value).unwrap();
            }
        }
        transaction.commit().unwrap();
    }

    fn get(&mut self, batch: &[Key]) -> usize {
        let transaction = self.0.begin_read().unwrap();
        let table = transaction.open_table(TABLE).unwrap();
        batch.iter().map(|key| table.get(&key[..]).unwrap().unwrap().value().len()).sum()
    }

    fn scan(&mut self, from: &Key) -> usize {
        let transaction = self.0.begin_read().unwrap();
        let table = transaction.open_table(TABLE).unwrap();
        let rows = table.range(&from[..]..).unwrap().take(SCAN);
        rows.map(|row| row.map(|(key, value)| key.value().len() + value.value().len()).unwrap()).sum()
    }
}

struct Lmdb {
    env: heed::Env,
    rows: heed::Database<Bytes, Bytes>,
}

impl Lmdb {
    #[allow(unsafe_code, reason = "LMDB is opened so: nobody else has this file, and a lost one is lost")]
    fn new(directory: &Path) -> Lmdb {
        let path = directory.join("lmdb");
        std::fs::create_dir(&path).unwrap();
        let mut options = heed::EnvOpenOptions::new();
        options.map_size(16 << 30);
        // SAFETY: the file is this process's alone, and opened once.
        let env = unsafe {
            options.flags(heed::EnvFlags::NO_SYNC | heed::EnvFlags::NO_META_SYNC | heed::EnvFlags::WRITE_MAP);
            options.open(&path).unwrap()
        };
        let mut transaction = env.write_txn().unwrap();
        let rows = env.create_database(&mut transaction, None).unwrap();
        transaction.commit().unwrap();
        Lmdb { env, rows }
    }
}

impl Side for Lmdb {
    fn name(&self) -> &'static str {
        "LMDB"
    }

    fn put(&mut self, batch: &[Key], value: &[u8]) {
        let mut transaction = self.env.write_txn().unwrap();
        for key in batch {
            self.rows.put(&mut transaction, key, value).unwrap();
        }
        transaction.commit().unwrap();
    }

    fn get(&mut self, batch: &[Key]) -> usize {
        let transaction = self.env.read_txn().unwrap();
        batch.iter().map(|key| self.rows.get(&transaction, key).unwrap().unwrap().len()).sum()
    }

    fn scan(&mut self, from: &Key) -> usize {
        let transaction = self.env.read_txn().unwrap();
        let range = (Bound::Included(&from[..]), Bound::Unbounded);
        let rows = self.rows.range(&transaction, &range).unwrap().take(SCAN);
        rows.map(|row| row.map(|(key, value)| key.len() + value.len()).unwrap()).sum()
    }
}

/// All of them, or those that `STORE_BENCH_SIDE` names, empty, with their files in `directory`.
pub(crate) fn chosen(directory: &Path) -> Vec<Box<dyn Side>> {
    let mut sides: Vec<Box<dyn Side>> = vec![
        Box::new(Ours::new("in place", directory, false, false)),
        Box::new(Ours::new("frozen", directory, false, true)),
        Box::new(Ours::new("with history", directory, true, false)),
        Box::new(Redb(redb::Database::create(directory.join("redb")).unwrap())),
        Box::new(Lmdb::new(directory)),
        Box::new(Map(BTreeMap::new())),
    ];
    let names = std::env::var("STORE_BENCH_SIDE").ok();
    sides.retain(|side| names.as_deref().is_none_or(|names| names.split(',').any(|name| name == side.name())));
    sides
}

/// The lengths of the values to bench with: 5, 100 and 8192 bytes, or what `STORE_BENCH_VALUE` says.
pub(crate) fn value_lengths() -> Vec<usize> {
    match std::env::var("STORE_BENCH_VALUE") {
        Ok(bytes) => vec![bytes.parse().unwrap()],
        Err(_) => vec![5, 100, 8192],
    }
}

/// The keys of `bytes` of rows, in the order in which they are loaded: random, and the same each time.
pub(crate) fn keys(bytes: usize, value_bytes: usize, random: &mut fastrand::Rng) -> Vec<Key> {
    let count = (bytes / (16 + value_bytes)).next_multiple_of(BATCH);
    (0..count).map(|_| random.u128(..).to_be_bytes()).collect()
}

/// How much to load: 100 MB, or what `STORE_BENCH_BYTES` says; little when the bench is run as a test.
pub(crate) fn bytes() -> usize {
    if !std::env::args().any(|argument| argument == "--bench") {
        return 200_000;
    }
    std::env::var("STORE_BENCH_BYTES").map_or(100_000_000, |bytes| bytes.parse().unwrap())
}
