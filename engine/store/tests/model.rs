//! The store against the model, through snapshots, crashes, compaction and views.
//!
//! A run is its seed. `STORE_OPERATIONS=1000000 cargo test -p synod-store --release --test model -- --ignored
//! --nocapture` makes a long one.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use common::{Key, Model, ModelRow};
use fastrand::Rng;
use synod_store::{Finger, OpenOptions, Options, Pacing, ReadView, Revision, Store, ViewEnded};

/// With more keys than this the digest is not recomputed after each step: that reads all of them.
const EACH_STEP_KEYS_MAX: usize = 200;

const FINGERS: usize = 4;

/// What happened in a run, so that it cannot have been nothing.
#[derive(Default, Debug)]
struct Tally {
    puts: u64,
    deletes: u64,
    plain: u64,
    near: u64,
    views: u64,
    views_ended: u64,
    snapshots: u64,
    snapshots_failed: u64,
    crashes: u64,
    compactions: u64,
    reads_of_the_past: u64,
    given_back: u64,
    chores: u64,
    pages_most: u64,
}

struct Run {
    random: Rng,
    keys: Vec<Key>,
    path: PathBuf,
    options: OpenOptions,
    store: Store,
    model: Model,
    durable: Model,
    views: Vec<(ReadView, Model)>,
    /// On rows that were there once.
    fingers: [Finger; FINGERS],
    tally: Tally,
}

fn keys(random: &mut Rng, count: usize) -> Vec<Key> {
    let mut keys: Vec<Key> = (0..count)
        .map(|_| {
            let length = match random.u8(..10) {
                0 => 1032,
                1 => random.usize(1..=1032),
                2 => random.usize(1..4),
                _ => random.usize(8..24),
            };
            let alphabet: &[u8] = if random.bool() { &[0, 1, 255] } else { b"abcdefghij" };
            let mut key: Key = (0..length).map(|_| alphabet[random.usize(..alphabet.len())]).collect();
            key[0] = if random.u8(..5) == 0 { b'p' } else { b'v' };
            key
        })
        .collect();
    keys.sort();
    keys.dedup();
    keys
}

fn value(random: &mut Rng) -> Vec<u8> {
    let length = match random.u8(..100) {
        0 => random.usize(50_000..300_000),
        1..=3 => random.usize(800..850),
        4 | 5 => random.usize(1940..2000),
        6..=12 => random.usize(1000..10_000),
        13 => 4096 - 32,
        14 => 4096 - 31,
        15..=40 => random.usize(20..400),
        41..=60 => 5,
        _ => random.usize(..24),
    };
    vec![random.u8(..); length]
}

impl Run {
    fn new(seed: u64, key_count: usize, directory: &tempfile::TempDir) -> Run {
        let mut random = Rng::with_seed(seed);
        let keys = keys(&mut random, key_count);
        let path = directory.path().join("db");
        Store::create(&path, b"cell 1").unwrap();
        let store = Options { pinned_bytes_max: 64 << 10, database_bytes_max: 4 << 30, ..Options::default() };
        let options = OpenOptions { store, identity: b"cell 1".to_vec(), older: false };
        let (store, _) = Store::open(&path, &options).unwrap();
        let (model, durable) = (Model::default(), Model::default());
        let (views, fingers, tally) = (Vec::new(), [Finger::none(); FINGERS], Tally::default());
        Run { random, keys, path, options, store, model, durable, views, fingers, tally }
    }

    fn key(&mut self, kind: u8) -> Key {
        loop {
            let key = self.random.choice(&self.keys).unwrap();
            if key[0] == kind {
                return key.clone();
            }
        }
    }

    fn change(&mut self) {
        let writes = if self.random.u8(..4) == 0 { self.random.usize(..5) } else { 1 };
        let mut keys: Vec<Key> = (0..writes).map(|_| self.key(b'v')).collect();
        if writes > 2 {
            // A key that is written more than once.
            keys[1] = keys[0].clone();
        }
        let mut change = self.store.change();
        self.model.revision += 1;
        let mut index = 0;
        for key in keys {
            if self.random.u8(..3) == 0 {
                assert_eq!(change.delete(&key), self.model.delete(&mut index, &key));
                self.tally.deletes += 1;
            } else {
                let value = value(&mut self.random);
                assert_eq!(change.put(&key, &value).0, self.model.put(&mut index, &key, &value));
                self.tally.puts += 1;
            }
        }
    }

    fn plain(&mut self) {
        let key = self.key(b'p');
        self.tally.plain += 1;
        if self.random.u8(..4) == 0 {
            assert_eq!(self.store.delete_plain(&key), self.model.present.remove(&key).is_some());
        } else {
            let finger = &mut self.fingers[self.random.usize(..FINGERS)];
            if self.random.bool() {
                let at = self.random.choice(&self.keys).unwrap();
                let found = self.store.get_near(at, finger).map(|row| row.value);
                assert_eq!(found, self.model.present.get(at).map(|row| &row.value[..]));
                self.tally.near += 1;
            }
            let mut finger = *finger;
            let value = match self.store.get_near(&key, &mut finger) {
                // In place, if it is in the leaf.
                Some(row) if self.random.bool() => vec![self.random.u8(..); row.value.len()],
                _ => value(&mut self.random),
            };
            if self.random.u8(..4) == 0 {
                // Somewhere else than where the key is.
                finger = finger.behind(1);
            }
            self.store.put_plain_near(&key, &value, finger);
            self.model.put_plain(&key, &value);
        }
    }

    fn snapshot(&mut self) {
        let frozen = self.store.freeze_snapshot(&self.model.revision.to_le_bytes());
        let before = self.model.clone();
        let pacing = Pacing::default();
        let fails = self.random.u8(..4) == 0;
        pacing.cancel.store(fails, Ordering::Relaxed);
        let writer = std::thread::spawn(move || frozen.write_out(&pacing));
        for _ in 0..self.random.usize(..20) {
            self.change();
        }
        let written = writer.join().unwrap();
        if self.random.u8(..5) == 0 {
            // Written, and the crash comes before anybody is told.
            drop(written.map(|_| self.durable = before));
            return self.crash();
        }
        match written {
            Ok(durable) => {
                self.store.snapshot_done(durable);
                self.durable = before;
                self.tally.snapshots += 1;
            }
            Err(_) => {
                assert!(fails);
                self.store.snapshot_failed();
                self.tally.snapshots_failed += 1;
            }
        }
    }

    fn crash(&mut self) {
        self.check_views();
        self.views.clear();
        self.tally.pages_most = self.tally.pages_most.max(self.store.audit());
        // The file's lock goes with the old store.
        self.store = Store::new();
        let (store, opened) = Store::open(&self.path, &self.options).unwrap();
        self.store = store;
        self.fingers = [Finger::none(); FINGERS];
        self.model = self.durable.clone();
        assert_eq!(opened.revision.0, self.model.revision);
        if self.model.revision > 1 {
            assert_eq!(opened.handle, self.model.revision.to_le_bytes());
            assert_eq!(opened.digest, self.model.digest());
        }
        self.model.check(&self.store);
        self.store.audit();
        self.tally.crashes += 1;
    }

    fn check_views(&mut self) {
        for (view, model) in &self.views {
            self.tally.views += 1;
            let rows = match view.prefix(b"") {
                Ok(rows) => rows,
                Err(ViewEnded::PinnedBytes { .. }) => {
                    self.tally.views_ended += 1;
                    continue;
                }
                Err(ViewEnded::Age) => panic!("nobody asked for that"),
            };
            let found: Vec<(Key, ModelRow)> = rows.map(|(key, row)| (key.to_vec(), ModelRow::of(row))).collect();
            assert!(found.iter().map(|(key, row)| (key, row)).eq(model.present.iter()));
            assert_eq!(view.revision().0, model.revision);
            assert_eq!(view.digest(), model.digest());
            assert_eq!(view.recompute_digest(&Pacing::default()), Ok(model.digest()));
        }
    }

    fn step(&mut self) {
        match self.random.u16(..1000) {
            0..600 => self.change(),
            600..900 => self.plain(),
            900..960 => {
                let key = self.random.choice(&self.keys).unwrap();
                assert_eq!(self.store.get(key).map(ModelRow::of).as_ref(), self.model.present.get(key));
            }
            960..975 => {
                let lowest = self.model.compacted.saturating_sub(2);
                let revision = self.random.u64(lowest..=self.model.revision + 1);
                self.model.check_at(&self.store, revision);
                self.tally.reads_of_the_past += 1;
            }
            975..980 => {
                let key = self.random.choice(&self.keys).unwrap();
                let now = self.store.range(std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded).rev();
                let keys: Vec<Key> = now.map(|(key, _)| key.to_vec()).collect();
                let model = self.model.present.range(key.clone()..).map(|(key, _)| key).filter(|found| *found != key);
                assert!(keys.iter().eq(model.rev()));
            }
            980..985 => {
                let below = self.random.u64(self.model.compacted..=self.model.revision);
                self.store.compact(Revision(below));
                self.model.compacted = below;
                self.model.forget();
                self.tally.compactions += 1;
            }
            985..990 => {
                let most = self.random.usize(1..200);
                self.store.compact_some(most);
            }
            990..994 => {
                if self.views.len() > 3 {
                    self.check_views();
                    self.views.remove(0);
                }
                self.views.push((self.store.freeze(), self.model.clone()));
            }
            994..997 => self.snapshot(),
            997 => {
                self.views.clear();
                self.tally.given_back += self.store.give_back(self.random.u64(..4 << 20)).unwrap();
            }
            998 if self.random.bool() => {
                if let Some(chore) = self.store.chore() {
                    std::thread::spawn(move || chore.run()).join().unwrap().unwrap();
                    self.tally.chores += 1;
                }
            }
            998 => self.model.check(&self.store),
            _ => self.crash(),
        }
        if self.keys.len() <= EACH_STEP_KEYS_MAX {
            assert_eq!(self.store.digest(), self.model.digest());
        }
    }
}

fn run(seed: u64, key_count: usize, operations: u64) -> Tally {
    let directory = tempfile::tempdir().unwrap();
    let mut run = Run::new(seed, key_count, &directory);
    for _ in 0..operations {
        run.step();
    }
    run.check_views();
    run.model.check(&run.store);
    // Without anything in it there is no page in use.
    run.views.clear();
    while !run.store.compact_some(100) {}
    run.tally.pages_most = run.tally.pages_most.max(run.store.audit());
    for key in run.keys.clone() {
        match key[0] {
            b'p' => run.store.delete_plain(&key),
            _ => run.store.change().delete(&key),
        };
    }
    run.store.compact(run.store.revision());
    run.store.change();
    run.store.compact(run.store.revision());
    while !run.store.compact_some(100) {}
    assert_eq!(run.store.audit(), 0);
    run.tally
}

#[test]
fn like_the_model() {
    let mut seen = [0; 7];
    for seed in 0..12 {
        let keys = [20, 200, 1500][seed as usize % 3];
        let tally = run(seed, keys, 2500);
        assert!(tally.puts > 1000 && tally.deletes > 200 && tally.crashes > 0 && tally.reads_of_the_past > 0);
        let Tally { near, views, views_ended, snapshots, snapshots_failed, given_back, chores, .. } = tally;
        let counts = [near, views, views_ended, snapshots, snapshots_failed, given_back, chores];
        seen.iter_mut().zip(counts).for_each(|(seen, count)| *seen += count);
    }
    println!("fingers, views, ended, snapshots, failed, bytes given back, chores: {seen:?}");
    assert!(seen.iter().all(|&count| count > 0), "{seen:?}");
}

#[test]
#[ignore = "long: asked for by STORE_OPERATIONS"]
fn like_the_model_for_long() {
    let operations = std::env::var("STORE_OPERATIONS").map_or(1_000_000, |count| count.parse().unwrap());
    let seed = std::env::var("STORE_SEED").map_or(4711, |seed| seed.parse().unwrap());
    println!("seed {seed}: {operations} operations: {:#?}", run(seed, 600, operations));
}
