//! Puts, gets and scans of the database beside redb, LMDB and a map, in criterion: a thousand rows an iteration, the same for each side.
//!
//! `cargo bench -p synod-store --bench rows`, with the settings of `store.rs`, which has the sides take turns and so compares them
//! more fairly where other work comes and goes.
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on ends")]

mod sides;

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use sides::{BATCH, Key};

fn rows(c: &mut Criterion) {
    for value_bytes in sides::value_lengths() {
        let directory = tempfile::tempdir().unwrap();
        let keys = sides::keys(sides::bytes(), value_bytes, &mut fastrand::Rng::with_seed(7));
        let mut sides = sides::chosen(directory.path());
        let value = vec![7; value_bytes];
        for side in &mut sides {
            keys.chunks(BATCH).for_each(|batch| side.put(batch, &value));
        }
        for work in ["put", "get", "scan"] {
            let mut group = c.benchmark_group(format!("{work} of 16 + {value_bytes} bytes"));
            group.throughput(Throughput::Elements(BATCH as u64)).sample_size(10);
            group.warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
            for side in &mut sides {
                // The same rows for each side.
                let mut random = fastrand::Rng::with_seed(8);
                group.bench_function(BenchmarkId::from_parameter(side.name()), |bencher| {
                    bencher.iter_custom(|rounds| {
                        let mut spent = Duration::ZERO;
                        for _ in 0..rounds {
                            let some: Vec<Key> = (0..BATCH).map(|_| keys[random.usize(..keys.len())]).collect();
                            let start = Instant::now();
                            match work {
                                "put" => side.put(&some, &value),
                                "get" => _ = std::hint::black_box(side.get(&some)),
                                _ => _ = std::hint::black_box(side.scan(&some[0])),
                            }
                            spent += start.elapsed();
                        }
                        spent
                    });
                });
            }
            group.finish();
        }
    }
}

criterion_group!(benches, rows);
criterion_main!(benches);
