//! The time of each part of a command's path, and of the whole path in one process: see [`synod_bench::path`].
//!
//! Figures are per batch, of one command, 50 and 1000.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use synod_bench::path::PARTS;

const SIZES: [u64; 3] = [1, 50, 1000];

fn path(c: &mut Criterion) {
    for (name, make) in PARTS {
        let mut group = c.benchmark_group(name);
        for commands in SIZES {
            let mut part = make(commands);
            group.throughput(Throughput::Elements(commands));
            group.bench_function(BenchmarkId::from_parameter(commands), |bencher| {
                bencher.iter_custom(|rounds| {
                    let mut spent = Duration::ZERO;
                    for _ in 0..rounds {
                        part.prepare();
                        let start = Instant::now();
                        part.run();
                        spent += start.elapsed();
                    }
                    spent
                });
            });
        }
        group.finish();
    }
}

criterion_group!(benches, path);
criterion_main!(benches);
