//! The simulator in small: seeds without a violation, the same twice, faults that can be left out, planted bugs found.

use std::collections::BTreeSet;

use synod_tests::sim::{self, Bug, Kind, Mask, Options, Sweep, Words};

const SEEDS: u64 = 60;

fn sweep(threads: usize) -> sim::Summary {
    sim::sweep(&Sweep { seeds: 0..SEEDS, threads, twice_every: 20, failures_max: 3 }, |_, _| ())
}

fn story() -> Options {
    Options { words: Words::Story, ..Options::default() }
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
    let void = summary.void.len() as u64;
    assert!(void * 50 <= SEEDS, "{void} of {SEEDS} seeds did too little to count");
    // There was something to survive.
    for (name, count) in summary.counts.named() {
        assert!(count > 0, "no {name} in {SEEDS} seeds");
    }
    for kind in Kind::ALL {
        assert!(summary.injected.of(kind.name()) > 0, "no {} in {SEEDS} seeds", kind.name());
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let (first, second) = (sim::run(7, &Options::default()), sim::run(7, &story()));
    assert_eq!((first.hash, first.events), (second.hash, second.events));
    assert!(first.lines.is_empty());
    assert!(second.lines.iter().any(|line| line.contains("FAULT")), "{:?}", second.lines);
    let other = sim::run(8, &Options::default());
    assert_ne!(first.hash, other.hash);
}

#[test]
fn what_comes_out_does_not_depend_on_the_number_of_threads() {
    let few = |threads| sim::sweep(&Sweep { seeds: 100..108, threads, twice_every: 0, failures_max: 3 }, |_, _| ());
    let (one, three) = (few(1), few(3));
    assert_eq!((one.hash, one.events, one.counts), (three.hash, three.events, three.counts));
}

#[test]
fn faults_can_be_left_out() {
    let none = sim::run(7, &Options { faults: Mask::Only(BTreeSet::new()), ..story() });
    assert!(none.violation.is_none());
    assert_eq!(none.injected.total(), 0);
    assert!(none.counts.operations > sim::OPERATIONS_MIN);
    let all = sim::run(7, &Options::default());
    let few = BTreeSet::from([0, 3, 5]);
    let few = sim::run(7, &Options { faults: Mask::Only(few), ..story() });
    assert!(few.violation.is_none());
    assert!((1..=3).contains(&few.injected.total()), "{:?}", few.injected);
    assert!(all.injected.total() > 3);
}

/// All of them are found, in more seeds, by `synod-sim --planted`.
#[test]
fn planted_bugs_are_caught() {
    for bug in [Bug::P15AcknowledgesBeforeDurable, Bug::P3PromiseOmitsChosen, Bug::P2RestartForgetsPromise] {
        caught(bug);
    }
}

fn caught(bug: Bug) {
    let caught = sim::catch(bug, 0..200).unwrap_or_else(|| panic!("{} was missed", bug.name()));
    assert_eq!(caught.violation.checker, bug.checker(), "{}: {:?}", bug.name(), caught.violation);
}

/// Those inside the protocol. What ends in a broken assertion would end this process too.
#[cfg(feature = "planted")]
#[test]
fn planted_bugs_of_the_protocol_are_caught() {
    let inside = Bug::all().into_iter().filter(|bug| matches!(bug, Bug::Core(_)));
    inside.filter(|bug| bug.checker() != sim::Checker::Assertion).for_each(caught);
}

#[test]
fn every_planted_bug_breaks_a_rule_by_its_number_and_is_in_the_docs() {
    let docs = include_str!("../docs/planted.md");
    for bug in Bug::all() {
        let (name, rule) = (bug.name(), bug.rule());
        assert!(name.starts_with(rule) || bug == Bug::RunReadsOutsideTime, "{name} has no rule");
        assert!(
            docs.contains(&format!("| {rule} | `{name}` | {} |", bug.breaks())),
            "{name} is not in docs/planted.md"
        );
    }
}
