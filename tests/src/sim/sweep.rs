//! Many seeds on many threads, and planted bugs.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use super::{Bug, Checker, Counts, Coverage, Options, Outcome, Tally, Violation, Words, run};

/// What to sweep.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// The seeds.
    pub seeds: Range<u64>,
    /// How many threads; what comes out does not depend on it.
    pub threads: usize,
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
    /// Those that did too little to count, in order.
    pub void: Vec<u64>,
    /// Run twice, and equal.
    pub repeated: u64,
    /// Events in all.
    pub events: u64,
    /// Simulated time in all.
    pub simulated: Duration,
    /// Time that it took.
    pub wall: Duration,
    /// What the runs that are counted in `simulated` took of a core: others may be using it too.
    pub busy: Duration,
    /// What happened.
    pub counts: Counts,
    /// Faults, by kind.
    pub injected: Tally,
    /// Answers that were checked, by kind of operation.
    pub checked: Tally,
    /// Transitions of the protocol's machines.
    pub coverage: Coverage,
    /// The seeds that failed, in order.
    pub failures: Vec<Failure>,
    /// Of all hashes, in any order: says whether two sweeps were the same.
    pub hash: u64,
}

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
                    let silent = Options::default();
                    let before = core_time();
                    let outcome = run(seed, &silent);
                    let busy = core_time().saturating_sub(before);
                    let twice = options.twice_every > 0 && seed.is_multiple_of(options.twice_every);
                    let again = twice.then(|| run(seed, &silent));
                    let mut summary = summary.lock().expect("no thread panics here");
                    summary.busy += busy;
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
    summary.void.sort_unstable();
    summary.failures.sort_by_key(|failure| failure.seed);
    for failure in &mut summary.failures {
        // The same again, this time with words.
        failure.lines = run(failure.seed, &Options { words: Words::Story, ..Options::default() }).lines;
    }
    summary.wall = begun.elapsed();
    summary
}

/// What this thread has had of a core.
fn core_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("it is never negative")
}

impl Summary {
    fn take(&mut self, options: &Sweep, outcome: Outcome, again: Option<Outcome>) {
        self.seeds += 1;
        if outcome.is_void() {
            self.void.push(outcome.seed);
        }
        self.events += outcome.events;
        self.simulated += Duration::from_nanos(outcome.simulated_ns);
        self.counts.add(&outcome.counts);
        self.injected.add(&outcome.injected);
        self.checked.add(&outcome.checked);
        self.coverage.add(outcome.coverage.clone());
        self.hash = self.hash.wrapping_add(outcome.hash);
        let seed = outcome.seed;
        let different = again.as_ref().and_then(|again| difference(&outcome, again));
        self.repeated += u64::from(again.is_some() && different.is_none());
        debug_assert!(options.seeds.contains(&seed));
        if let Some(violation) = outcome.violation.or(different) {
            self.failures.push(Failure { seed, violation, lines: Vec::new() });
        }
    }
}

/// Two runs of one seed must not differ.
fn difference(one: &Outcome, other: &Outcome) -> Option<Violation> {
    let differ = (one.hash, one.events) != (other.hash, other.events);
    let what = || format!("hash {:016x} the first time, {:016x} the second", one.hash, other.hash);
    differ.then(|| Violation { checker: Checker::Determinism, what: what() })
}

/// A planted bug that was found.
#[derive(Debug)]
pub struct Caught {
    /// Which checker found it.
    pub violation: Violation,
    /// In which seed, the first that did.
    pub seed: u64,
}

/// Runs seeds one by one until the planted bug is found.
pub fn catch(bug: Bug, mut seeds: Range<u64>) -> Option<Caught> {
    let options = Options { bug: Some(bug), ..Options::default() };
    seeds.find_map(|seed| {
        let outcome = run(seed, &options);
        let different = || bug.needs_a_second_run().then(|| difference(&outcome, &run(seed, &options))).flatten();
        let violation = outcome.violation.clone().or_else(different)?;
        Some(Caught { violation, seed })
    })
}
