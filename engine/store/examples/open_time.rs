//! How long a large database takes to open, and how long the owner is held up by a snapshot.
//!
//! `cargo run -p synod-store --release --example open_time -- DIRECTORY MEGABYTES`
#![allow(clippy::unwrap_used, reason = "an example that cannot go on ends")]

use std::path::PathBuf;
use std::time::Instant;

use synod_store::{OpenOptions, Options, Pacing, Store};

fn main() {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().expect("a directory"));
    let megabytes: u64 = arguments.next().expect("a size").parse().expect("a number");
    let path = directory.join("open_time.db");
    Store::create(&path, b"").unwrap();
    let options =
        OpenOptions { store: Options { keep_history: false, ..Options::default() }, ..OpenOptions::default() };
    let (mut store, _) = Store::open(&path, &options).unwrap();
    let mut random = fastrand::Rng::with_seed(1);
    while store.bytes() < megabytes << 20 {
        store.change().put(&random.u128(..).to_be_bytes(), &[7; 1000]);
    }
    for round in 0..3 {
        let began = Instant::now();
        let frozen = store.freeze_snapshot(b"");
        let freezing = began.elapsed();
        let began = Instant::now();
        let durable = frozen.write_out(&Pacing::default()).unwrap();
        let (writing, bytes) = (began.elapsed(), durable.bytes);
        let began = Instant::now();
        store.snapshot_done(durable);
        println!(
            "snapshot {round}: frozen in {freezing:?}, {} MiB written and read back in {writing:?}, done in {:?}",
            bytes >> 20,
            began.elapsed()
        );
        for _ in 0..1000 {
            store.change().put(&random.u128(..).to_be_bytes(), &[7; 1000]);
        }
    }
    drop(store);
    let began = Instant::now();
    let (store, opened) = Store::open(&path, &options).unwrap();
    println!("opened generation {}, {} rows, in {:?}", opened.generation, store.len(), began.elapsed());
    let began = Instant::now();
    let bytes: usize = store.prefix(b"").take(1000).map(|(_, row)| row.value.len()).sum();
    println!("the first 1000 rows, {bytes} bytes, read and checked in {:?}", began.elapsed());
    std::fs::remove_file(path).unwrap();
}
