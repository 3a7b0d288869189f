//! The database beside redb, LMDB and a map in memory, on the same work (rule M1).
//!
//! Rows of a 16-byte random key; all are loaded, in random order, then random ones are written again, read, and scanned
//! a thousand at a time. Nobody syncs. A transaction is a thousand puts: redb and LMDB commit it, so that what it frees
//! can be used again; the store has none, so it is frozen for a view, which is dropped at the next: that too makes
//! every page be copied once. `in place` is the store without that, as a replica between two snapshots is. The sides
//! take turns in one run; a figure is the median of the turns.
//!
//! `cargo bench -p synod-store --bench store`; `STORE_BENCH_BYTES` says how much is loaded (100 MB),
//! `STORE_BENCH_VALUE` and `STORE_BENCH_SIDE` choose one row of the table.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::time::Instant;

use heed::types::Bytes;
use redb::{ReadableDatabase, TableDefinition};
use synod_store::{OpenOptions, Options, ReadView, Store};

const BATCH: usize = 1000;
const SCAN: usize = 1000;

type Key = [u8; 16];

trait Side {
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

fn time(work: impl FnOnce() -> usize) -> (f64, usize) {
    let began = Instant::now();
    let result = work();
    (began.elapsed().as_nanos() as f64, result)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn compare(bytes: usize, value_bytes: usize, turns: usize) {
    let directory = tempfile::tempdir().unwrap();
    let mut random = fastrand::Rng::with_seed(7);
    let count = (bytes / (16 + value_bytes)).next_multiple_of(BATCH);
    let keys: Vec<Key> = (0..count).map(|_| random.u128(..).to_be_bytes()).collect();
    let mut sides: Vec<Box<dyn Side>> = vec![
        Box::new(Ours::new("in place", directory.path(), false, false)),
        Box::new(Ours::new("frozen", directory.path(), false, true)),
        Box::new(Ours::new("with history", directory.path(), true, false)),
        Box::new(Redb(redb::Database::create(directory.path().join("redb")).unwrap())),
        Box::new(Lmdb::new(directory.path())),
        Box::new(Map(BTreeMap::new())),
    ];
    let chosen = std::env::var("STORE_BENCH_SIDE").ok();
    sides.retain(|side| chosen.as_deref().is_none_or(|chosen| side.name() == chosen));
    let mut figures: Vec<[Vec<f64>; 4]> = sides.iter().map(|_| Default::default()).collect();
    let value = vec![7; value_bytes];
    for (side, figures) in sides.iter_mut().zip(&mut figures) {
        let (ns, _) = time(|| {
            keys.chunks(BATCH).for_each(|batch| side.put(batch, &value));
            0
        });
        figures[0].push(ns / count as f64);
    }
    let mut hash = 0;
    for turn in 0..turns {
        let batches = (20_000_000 / (value_bytes + 200)).clamp(1, 50).min(count / BATCH).max(1);
        let some: Vec<Key> = (0..batches * BATCH).map(|_| keys[random.usize(..count)]).collect();
        let value = vec![turn as u8; value_bytes];
        let mut told: Option<usize> = None;
        for (side, figures) in sides.iter_mut().zip(&mut figures) {
            let (put, _) = time(|| {
                some.chunks(BATCH).for_each(|batch| side.put(batch, &value));
                0
            });
            let (get, bytes) = time(|| some.chunks(BATCH).map(|batch| side.get(batch)).sum());
            let (scan, scanned) = time(|| some.iter().take(40).map(|key| side.scan(key)).sum());
            assert_eq!(*told.get_or_insert(bytes + scanned), bytes + scanned, "{} told something else", side.name());
            figures[1].push(put / some.len() as f64);
            figures[2].push(get / some.len() as f64);
            figures[3].push(scan / 40.0 / SCAN as f64);
        }
        hash ^= told.unwrap_or(0).rotate_left(turn as u32);
    }
    println!("\n{count} rows of 16 + {value_bytes} bytes, {turns} turns, result {hash:x}; ns per row:");
    println!("| | load | put | get | scan |\n|---|---|---|---|---|");
    for (side, figures) in sides.iter().zip(&mut figures) {
        let [load, put, get, scan] = figures;
        let (load, put, get, scan) = (median(load), median(put), median(get), median(scan));
        println!("| {} | {load:.0} | {put:.0} | {get:.0} | {scan:.1} |", side.name());
    }
}

fn main() {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let bytes = std::env::var("STORE_BENCH_BYTES").map_or(100_000_000, |bytes| bytes.parse().unwrap());
    let only = std::env::var("STORE_BENCH_VALUE").ok().map(|bytes| bytes.parse::<usize>().unwrap());
    for value_bytes in [5, 100, 8192].into_iter().filter(|bytes| only.is_none_or(|only| only == *bytes)) {
        if is_bench {
            compare(bytes, value_bytes, 5);
        } else {
            compare(200_000, value_bytes, 1);
        }
    }
}
