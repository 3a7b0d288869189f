//! What runs came to, for people and for programs.

use std::time::Duration;

use serde_json::{Map, Value, json};
use synod_tests::sim::{self, Bug, Coverage, Kind, Outcome, REASONS, Summary, Tally, Violation};

/// What happened, in order.
pub(crate) fn story(lines: &[String]) {
    for line in lines {
        println!("  {line}");
    }
}

/// The violation in a line. Its beginning is read by `children`.
pub(crate) fn violation(violation: &Violation) -> String {
    format!("violation of {}: {}", violation.checker.name(), violation.what)
}

/// How to run a seed again.
pub(crate) fn command(flag: &str, seed: u64, bug: Option<Bug>) -> String {
    let plant = bug.map(|bug| format!(" --plant {}", bug.name())).unwrap_or_default();
    format!("cargo run -p synod-tests --bin synod-sim -- {flag} {seed}{plant}")
}

/// Before the number of the last fault: read by `children`.
pub(crate) const LAST_FAULT: &str = "  the last fault:       number ";

/// What to do about the seed that has failed on this thread just now.
pub(crate) fn commands(seed: u64, bug: Option<Bug>) {
    println!("{LAST_FAULT}{}", sim::last_fault_on_this_thread());
    println!("  again, every event:   {} --trace", command("--seed", seed, bug));
    println!("  with fewer faults:    {}", command("--minimise", seed, bug));
}

/// One seed.
pub(crate) fn one(outcome: &Outcome, json: bool) {
    let simulated = Duration::from_nanos(outcome.simulated_ns).as_secs_f64();
    let (seed, hash, events) = (outcome.seed, outcome.hash, outcome.events);
    if json {
        let value = json!({
            "seed": seed,
            "hash": format!("{hash:016x}"),
            "events": events,
            "simulated_s": simulated,
            "void": outcome.is_void(),
            "violations": u8::from(outcome.violation.is_some()),
            "counts": object(&outcome.counts.named()),
            "faults": object(&outcome.injected.named()),
            "checked": object(&outcome.checked.named()),
        });
        return println!("{value}");
    }
    println!("seed {seed}: hash {hash:016x}, {events} events, {simulated:.1} s simulated");
    println!("{}", words(&outcome.counts.named()));
    println!("faults: {}", words(&outcome.injected.named()));
    if outcome.is_void() {
        println!("void: fewer than {} operations or {} faults", sim::OPERATIONS_MIN, sim::FAULTS_MIN);
    }
}

/// So many void seeds are named.
const VOID_SHOWN: usize = 20;

/// A sweep.
pub(crate) fn many(summary: &Summary, threads: usize, json: bool) {
    let (simulated, wall) = (summary.simulated.as_secs_f64(), summary.wall.as_secs_f64());
    let per_core = simulated / summary.busy.as_secs_f64();
    let transitions = summary.coverage.taken();
    if json {
        let value = json!({
            "seeds": summary.seeds,
            "void": summary.void.len(),
            "repeated": summary.repeated,
            "violations": summary.failures.len(),
            "hash": format!("{:016x}", summary.hash),
            "simulated_s": simulated,
            "wall_s": wall,
            "threads": threads,
            "real_time_factor": simulated / wall,
            "real_time_factor_per_core": per_core,
            "events": summary.events,
            "events_per_s": summary.events as f64 / wall,
            "counts": object(&summary.counts.named()),
            "faults": object(&faults(&summary.injected)),
            "checked": object(&summary.checked.named()),
            "transitions": { "known": transitions.0, "taken": transitions.1 },
        });
        return println!("{value}");
    }
    println!(
        "{} seeds, {} violations, {} void (fewer than {} operations or {} faults), {} run twice and equal, hash {:016x}",
        summary.seeds,
        summary.failures.len(),
        summary.void.len(),
        sim::OPERATIONS_MIN,
        sim::FAULTS_MIN,
        summary.repeated,
        summary.hash
    );
    println!(
        "{simulated:.0} s simulated in {wall:.1} s on {threads} threads: {:.0} times real time, {per_core:.0} times on \
         one core; {} events, {:.0} a second",
        simulated / wall,
        summary.events,
        summary.events as f64 / wall
    );
    if !summary.void.is_empty() {
        let first: Vec<String> = summary.void.iter().take(VOID_SHOWN).map(u64::to_string).collect();
        println!("void seeds: {}{}", first.join(", "), if summary.void.len() > VOID_SHOWN { ", .." } else { "" });
    }
    println!("\nfaults:");
    table(&faults(&summary.injected));
    println!("\noperations checked:");
    table(&summary.checked.named());
    coverage(&summary.coverage);
    println!("\nand: {}", words(&summary.counts.named()));
}

/// Every kind, so that one that never happened shows.
fn faults(injected: &Tally) -> Vec<(&'static str, u64)> {
    Kind::ALL.iter().map(|kind| (kind.name(), injected.of(kind.name()))).collect()
}

fn table(rows: &[(&str, u64)]) {
    for (name, count) in rows {
        println!("  {name:<24}{count:>12}");
    }
    println!("  {:<24}{:>12}", "all", rows.iter().map(|(_, count)| count).sum::<u64>());
}

/// Machines that count no transitions have nothing to show.
fn coverage(coverage: &Coverage) {
    let (known, taken) = coverage.taken();
    if known == 0 {
        return;
    }
    println!("\ntransitions: {taken} of {known} taken, {:.1}%; never:", 100.0 * taken as f64 / known as f64);
    for (name, reason) in coverage.never(REASONS) {
        println!("  {name}: {}", reason.unwrap_or("NO REASON KNOWN"));
    }
    for name in coverage.stale(REASONS) {
        println!("  {name}: a reason is given, but it was taken or does not exist");
    }
}

fn words(counts: &[(&str, u64)]) -> String {
    let words: Vec<String> = counts.iter().map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    words.join(", ")
}

fn object(counts: &[(&str, u64)]) -> Value {
    Value::Object(counts.iter().map(|(name, count)| ((*name).to_owned(), json!(count))).collect::<Map<_, _>>())
}
