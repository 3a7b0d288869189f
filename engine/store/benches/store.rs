//! The database beside redb, LMDB and a map in memory, on the same work (rule M1).
//!
//! All rows are loaded, in random order, then random ones are written again, read, and scanned a thousand at a time. The sides
//! (`sides/mod.rs`) take turns in one run; a figure is the median of the turns. `rows.rs` does the same for criterion, which cannot
//! take turns. Memory is what the process has grown by in the load: files that are mapped are in it, files that are read and written
//! (redb's, but for its own cache) are not.
//!
//! `cargo bench -p synod-store --bench store`; `STORE_BENCH_BYTES` says how much is loaded (100 MB), `STORE_BENCH_VALUE` (bytes) and
//! `STORE_BENCH_SIDE` (names, with commas between) choose rows of the table.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

mod sides;

use std::time::Instant;

use sides::{BATCH, Key, SCAN};

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
    let keys = sides::keys(bytes, value_bytes, &mut random);
    let count = keys.len();
    let mut sides = sides::chosen(directory.path());
    let mut figures: Vec<[Vec<f64>; 4]> = sides.iter().map(|_| Default::default()).collect();
    let value = vec![7; value_bytes];
    let mut memory = Vec::new();
    for (side, figures) in sides.iter_mut().zip(&mut figures) {
        let before = resident_bytes();
        let (ns, _) = time(|| {
            keys.chunks(BATCH).for_each(|batch| side.put(batch, &value));
            0
        });
        figures[0].push(ns / count as f64);
        eprintln!("{}: {count} rows loaded in {:.0} s", side.name(), ns / 1e9);
        memory.push(resident_bytes().saturating_sub(before) >> 20);
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
    println!("| | load | put | get | scan | memory, MiB |\n|---|---|---|---|---|---|");
    for ((side, figures), memory) in sides.iter().zip(&mut figures).zip(memory) {
        let [load, put, get, scan] = figures;
        let (load, put, get, scan) = (median(load), median(put), median(get), median(scan));
        println!("| {} | {load:.0} | {put:.0} | {get:.0} | {scan:.1} | {memory} |", side.name());
    }
}

/// What of the process is in memory, mapped files included.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

fn main() {
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    for value_bytes in sides::value_lengths() {
        compare(sides::bytes(), value_bytes, if is_bench { 5 } else { 1 });
    }
}
