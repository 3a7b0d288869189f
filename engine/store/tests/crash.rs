//! A crash at every moment of a snapshot: the database opens as the one before or as the new one, and as nothing
//! between.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use common::Model;
use fastrand::Rng;
use synod_store::{Device, OpenOptions, PAGE_BYTES, Pacing, SnapshotError, Store};

#[derive(Clone)]
enum Done {
    Write { offset: usize, bytes: Vec<u8> },
    Sync,
}

/// Remembers what was asked of it, over the bytes that a file has.
struct Recorder {
    state: Mutex<(Vec<u8>, Vec<Done>)>,
    /// This read gives a wrong byte.
    lies_at: Option<u64>,
}

impl Recorder {
    fn new(bytes: Vec<u8>) -> Recorder {
        Recorder { state: Mutex::new((bytes, Vec::new())), lies_at: None }
    }
}

impl Device for Recorder {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        let offset = offset as usize;
        assert_eq!((bytes.len() % PAGE_BYTES, offset % PAGE_BYTES, bytes.as_ptr().align_offset(PAGE_BYTES)), (0, 0, 0));
        state.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        state.1.push(Done::Write { offset, bytes: bytes.to_vec() });
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.state.lock().unwrap().1.push(Done::Sync);
        Ok(())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let state = self.state.lock().unwrap();
        buffer.copy_from_slice(&state.0[offset as usize..offset as usize + buffer.len()]);
        if self.lies_at.is_some_and(|at| (offset..offset + buffer.len() as u64).contains(&at)) {
            buffer[9] ^= 1;
        }
        Ok(())
    }
}

fn options() -> OpenOptions {
    OpenOptions { identity: b"cell 1".to_vec(), ..OpenOptions::default() }
}

fn change(random: &mut Rng, store: &mut Store, model: &mut Model, writes: usize) {
    for _ in 0..writes {
        let key = format!("v{:03}", random.u16(..400)).into_bytes();
        let length = if random.u8(..10) == 0 { random.usize(..20_000) } else { random.usize(..60) };
        let value = vec![random.u8(..); length];
        let mut change = store.change();
        model.revision += 1;
        let mut index = 0;
        if random.u8(..4) == 0 {
            change.delete(&key);
            model.delete(&mut index, &key);
        } else {
            change.put(&key, &value);
            model.put(&mut index, &key, &value);
        }
    }
}

fn snapshot(store: &mut Store) {
    let durable = store.freeze_snapshot(b"").write_out(&Pacing::default()).unwrap();
    store.snapshot_done(durable);
}

/// What the device has if it stops after so many requests: all that was synced, and of the rest what happened to
/// arrive.
fn left_after(random: &mut Rng, before: &[u8], done: &[Done]) -> Vec<u8> {
    let mut bytes = before.to_vec();
    let synced = done.iter().rposition(|done| matches!(done, Done::Sync)).unwrap_or(0);
    for (number, done) in done.iter().enumerate() {
        let Done::Write { offset, bytes: written } = done else { continue };
        for (page, content) in written.chunks(PAGE_BYTES).enumerate() {
            let at = offset + page * PAGE_BYTES;
            match if number < synced { 0 } else { random.u8(..4) } {
                // Torn within the page, as a device with smaller blocks may have it.
                1 => {
                    let torn = random.usize(..8) * 512;
                    bytes[at..at + torn].copy_from_slice(&content[..torn]);
                }
                2 => {}
                _ => bytes[at..at + PAGE_BYTES].copy_from_slice(content),
            }
        }
    }
    bytes
}

fn opens_as_one_of(path: &Path, models: [&Model; 2]) -> usize {
    let (store, opened) = Store::open(path, &options()).unwrap();
    let which = usize::from(opened.revision.0 == models[1].revision);
    models[which].check(&store);
    models[which].check_at(&store, models[which].revision / 2 + 1);
    store.audit();
    which
}

#[test]
fn a_crash_while_a_snapshot_is_written() {
    let mut counts = [0; 2];
    for seed in 0..4 {
        let directory = tempfile::tempdir().unwrap();
        let (path, torn) = (directory.path().join("db"), directory.path().join("torn"));
        let mut random = Rng::with_seed(seed);
        let mut model = Model::default();
        Store::create(&path, b"cell 1").unwrap();
        let (mut store, _) = Store::open(&path, &options()).unwrap();
        // Far enough that places have been used before.
        for _ in 0..4 {
            change(&mut random, &mut store, &mut model, 200);
            snapshot(&mut store);
        }
        let before = (fs::read(&path).unwrap(), model.clone());
        change(&mut random, &mut store, &mut model, 300);
        let recorder = Recorder::new(before.0.clone());
        let durable = store.freeze_snapshot(b"").write_out_to(&recorder, &Pacing::default()).unwrap();
        store.snapshot_done(durable);
        let (_, done) = recorder.state.into_inner().unwrap();
        assert!(done.len() > 5, "{} requests", done.len());
        for length in 0..=done.len() {
            for _ in 0..3 {
                let left = left_after(&mut random, &before.0, &done[..length]);
                // The rest is a hole, there as here.
                let used = left.iter().rposition(|byte| *byte != 0).unwrap_or(0);
                fs::write(&torn, &left[..=used]).unwrap();
                fs::File::options().write(true).open(&torn).unwrap().set_len(left.len() as u64).unwrap();
                let which = opens_as_one_of(&torn, [&before.1, &model]);
                counts[which] += 1;
                assert!(which == 1 || length < done.len(), "a snapshot that was finished is there");
            }
        }
    }
    assert!(counts[0] > 20 && counts[1] > 5, "{counts:?}");
}

#[test]
fn what_was_not_written_as_it_was_told_is_no_snapshot() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    Store::create(&path, b"cell 1").unwrap();
    let (mut store, _) = Store::open(&path, &options()).unwrap();
    change(&mut Rng::with_seed(1), &mut store, &mut Model::default(), 50);
    let mut recorder = Recorder::new(fs::read(&path).unwrap());
    recorder.lies_at = Some(3 * PAGE_BYTES as u64);
    let written = store.freeze_snapshot(b"").write_out_to(&recorder, &Pacing::default());
    assert!(matches!(written, Err(SnapshotError::Unverified { .. })), "{written:?}");
    let (_, done) = recorder.state.into_inner().unwrap();
    let meta_written = done.iter().any(|done| matches!(done, Done::Write { offset, .. } if *offset < 2 * PAGE_BYTES));
    assert!(!meta_written, "the meta block comes after the pages are verified");
    store.snapshot_failed();
    snapshot(&mut store);
}
