//! The simulator in small: seeds without a violation, the same twice, and planted bugs found.

use synod_tests::sim::{self, Checker, Planted, Sweep, Words};

const SEEDS: u64 = 60;

fn sweep(threads: usize) -> sim::Summary {
    sim::sweep(&Sweep { seeds: 0..SEEDS, threads, planted: None, twice_every: 20, failures_max: 3 }, |_, _| ())
}

#[test]
fn seeds_without_a_violation() {
    let summary = sweep(2);
    for failure in &summary.failures {
        for line in &failure.lines {
            println!("{line}");
        }
        println!("synod-sim --seed {} --trace: {:?}", failure.seed, failure.violation);
    }
    assert!(summary.failures.is_empty());
    assert_eq!(summary.seeds, SEEDS);
    assert_eq!(summary.repeated, SEEDS / 20);
    assert!(summary.void * 50 <= SEEDS, "{} of {SEEDS} seeds did too little to count", summary.void);
    // There was something to survive.
    for (name, count) in summary.counts.named() {
        assert!(count > 0, "no {name} in {SEEDS} seeds");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (first, second) = (sim::run(7, None, Words::Silent), sim::run(7, None, Words::KeepLast(10)));
    assert_eq!((first.hash, first.events), (second.hash, second.events));
    assert_eq!(second.lines.len(), 10);
    let other = sim::run(8, None, Words::Silent);
    assert_ne!(first.hash, other.hash);
}

#[test]
fn what_comes_out_does_not_depend_on_the_number_of_threads() {
    let few = |threads| {
        let seeds = 100..108;
        sim::sweep(&Sweep { seeds, threads, planted: None, twice_every: 0, failures_max: 3 }, |_, _| ())
    };
    let (one, three) = (few(1), few(3));
    assert_eq!((one.hash, one.events, one.counts), (three.hash, three.events, three.counts));
}

#[test]
fn planted_bugs_are_caught() {
    let caught = |planted: Planted| {
        let caught = sim::catch(planted, 0..200).unwrap_or_else(|| panic!("{} was missed", planted.name()));
        caught.violation.checker
    };
    assert_eq!(caught(Planted::P15AcknowledgeBeforeDurable), Checker::DurableBeforeTold);
    assert_eq!(caught(Planted::P3NoOpOverChosenSlot), Checker::Agreement);
    assert_eq!(caught(Planted::P2ForgottenPromise), Checker::Promises);
}
