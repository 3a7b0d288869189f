//! Many seeds on many threads, and planted bugs.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Checker, Counts, Outcome, Planted, Violation, Words, run};

/// What to sweep.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The seeds.
    pub seeds: Range<u64>,
    /// How many threads; what comes out does not depend on it.
    pub threads: usize,
    /// A bug to find, if any.
    pub planted: Option<Planted>,
    /// Every so many seeds one is run twice, and must come out the same; 0: none.
    pub twice_every: u64,
    /// The sweep ends early once so many seeds have failed.
    pub failures_max: usize,
}

/// A seed with a violation.
#[derive(Debug)]
pub struct Failure {
    /// Which seed.
    pub seed: u64,
    /// What was seen.
    pub violation: Violation,
    /// The last words of the run.
    pub lines: Vec<String>,
}

/// What a sweep came to.
#[derive(Debug, Default)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Of these, such that did too little to count.
    pub void: u64,
    /// Run twice, and equal.
    pub repeated: u64,
    /// Events in all.
    pub events: u64,
    /// Simulated time in all.
    pub simulated: Duration,
    /// Time that it took.
    pub wall: Duration,
    /// What happened.
    pub counts: Counts,
    /// The seeds that failed, in order.
    pub failures: Vec<Failure>,
    /// Of all hashes, in any order: says whether two sweeps were the same.
    pub hash: u64,
}

/// How many words of a failed run are kept.
const LINES: usize = 40;

/// Runs all seeds. `progress` is called now and then with the number of seeds done and the failures so far.
pub fn sweep(options: &Sweep, progress: impl Fn(u64, usize) + Sync) -> Summary {
    let begun = Instant::now();
    let next = AtomicU64::new(options.seeds.start);
    let summary = Mutex::new(Summary::default());
    std::thread::scope(|scope| {
        for _ in 0..options.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= options.seeds.end {
                        return;
                    }
                    let outcome = run(seed, options.planted, Words::Silent);
                    let again = (options.twice_every > 0 && seed.is_multiple_of(options.twice_every))
                        .then(|| run(seed, options.planted, Words::Silent));
                    let mut summary = summary.lock().expect("no thread panics here");
                    summary.take(options, outcome, again);
                    progress(summary.seeds, summary.failures.len());
                    if summary.failures.len() >= options.failures_max {
                        next.store(options.seeds.end, Ordering::Relaxed);
                        return;
                    }
                }
            });
        }
    });
    let mut summary = summary.into_inner().expect("no thread panics here");
    summary.failures.sort_by_key(|failure| failure.seed);
    for failure in &mut summary.failures {
        // The same again, this time with words.
        failure.lines = run(failure.seed, options.planted, Words::KeepLast(LINES)).lines;
    }
    summary.wall = begun.elapsed();
    summary
}

impl Summary {
    fn take(&mut self, options: &Sweep, outcome: Outcome, again: Option<Outcome>) {
        self.seeds += 1;
        self.void += u64::from(outcome.is_void());
        self.events += outcome.events;
        self.simulated += Duration::from_nanos(outcome.simulated_ns);
        self.counts.add(&outcome.counts);
        self.hash = self.hash.wrapping_add(outcome.hash);
        let seed = outcome.seed;
        let different = again.as_ref().filter(|again| (again.hash, again.events) != (outcome.hash, outcome.events));
        let different = different.map(|again| Violation {
            checker: Checker::Determinism,
            what: format!("hash {:016x} the first time, {:016x} the second", outcome.hash, again.hash),
        });
        self.repeated += u64::from(again.is_some() && different.is_none());
        debug_assert!(options.seeds.contains(&seed));
        if let Some(violation) = outcome.violation.or(different) {
            self.failures.push(Failure { seed, violation, lines: Vec::new() });
        }
    }
}

/// A planted bug that was found.
#[derive(Debug)]
pub struct Caught {
    /// Which checker found it.
    pub violation: Violation,
    /// In which seed, the first that did.
    pub seed: u64,
    /// How many seeds that took.
    pub seeds: u64,
}

/// Runs seeds one by one until the planted bug is found.
pub fn catch(planted: Planted, seeds: Range<u64>) -> Option<Caught> {
    let first = seeds.start;
    seeds.into_iter().find_map(|seed| {
        let violation = run(seed, Some(planted), Words::Silent).violation?;
        Some(Caught { violation, seed, seeds: seed - first + 1 })
    })
}
