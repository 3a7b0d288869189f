//! Runs that may end their process: a broken assertion aborts, so they are run by processes of their own.

use std::collections::BTreeSet;
use std::io;
use std::process::{Command, ExitCode, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::json;
use synod_tests::sim::{self, Bug, Checker};

use crate::report;

/// What the panic hook says, and what is looked for in the output of a process that has died.
pub(crate) fn broken_assertion(seed: u64) -> String {
    format!("seed {seed}: violation of {}", Checker::Assertion.name())
}

const VIOLATION: &str = "violation of ";

fn again(arguments: &[&str]) -> io::Result<Output> {
    Command::new(std::env::current_exe()?).args(arguments).output()
}

/// Which checker a run's output names.
fn checker_in(output: &Output) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find_map(|line| line.split_once(VIOLATION))?.1;
    Some(line.split(':').next()?.to_owned())
}

fn last_fault_in(output: &Output) -> usize {
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.lines().find_map(|line| line.strip_prefix(report::LAST_FAULT)?.parse().ok());
    number.unwrap_or(0)
}

/// Finds the faults that a seed's violation needs.
pub(crate) fn minimise(seed: u64, bug: Option<Bug>) -> ExitCode {
    let run = |faults: Option<&BTreeSet<usize>>| {
        let mut arguments = vec!["--seed".to_owned(), seed.to_string()];
        if let Some(faults) = faults {
            arguments.extend(["--only-faults".to_owned(), listed(faults)]);
        }
        if let Some(bug) = bug {
            arguments.extend(["--plant".to_owned(), bug.name().to_owned()]);
        }
        again(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let first = match run(None) {
        Ok(output) => output,
        Err(error) => {
            eprintln!("synod-sim: cannot run itself: {error}");
            return ExitCode::from(2);
        }
    };
    let Some(checker) = checker_in(&first) else {
        println!("seed {seed} has no violation");
        return ExitCode::SUCCESS;
    };
    let begun = Instant::now();
    let all: BTreeSet<usize> = (0..=last_fault_in(&first)).collect();
    let minimised = sim::minimise(all.clone(), |faults| {
        // Another checker's violation would be another story.
        run(Some(faults)).is_ok_and(|output| checker_in(&output).as_deref() == Some(&checker))
    });
    if let Ok(output) = run(Some(&minimised.faults)) {
        print!("{}", String::from_utf8_lossy(&output.stdout));
    }
    println!(
        "\n{} of {} faults are needed for this violation of {checker} ({} runs, {:.1} s):\n  {} --only-faults {}",
        minimised.faults.len(),
        all.len(),
        minimised.trials,
        begun.elapsed().as_secs_f64(),
        report::command("--seed", seed, bug),
        listed(&minimised.faults)
    );
    ExitCode::from(1)
}

fn listed(faults: &BTreeSet<usize>) -> String {
    match faults.is_empty() {
        true => "none".to_owned(),
        false => faults.iter().map(usize::to_string).collect::<Vec<_>>().join(","),
    }
}

/// Runs seeds until one catches the bug, and says which.
pub(crate) fn catch(bug: Bug) -> ExitCode {
    match sim::catch(bug, 0..Bug::SEEDS_MAX) {
        Some(caught) => {
            println!("seed {}: {}", caught.seed, report::violation(&caught.violation));
            ExitCode::from(1)
        }
        None => ExitCode::SUCCESS,
    }
}

/// Each of the planted bugs, on so many threads.
pub(crate) fn catch_all(threads: usize, json: bool) -> ExitCode {
    let begun = Instant::now();
    let (next, missed) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let printing = Mutex::new(());
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let outcome = again(&["--catch", bug.name()]);
                    let _one = printing.lock().expect("no thread panics here");
                    if !said(*bug, outcome, json) {
                        missed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let (all, missed) = (Bug::ALL.len(), missed.into_inner());
    let seconds = begun.elapsed().as_secs_f64();
    if json {
        println!("{}", json!({ "planted": all, "caught": all - missed, "seconds": seconds }));
    } else {
        println!("{} of {all} planted bugs were found, in {seconds:.1} s", all - missed);
    }
    ExitCode::from(u8::from(missed > 0))
}

/// Says what became of a bug, and whether it was caught.
fn said(bug: Bug, outcome: io::Result<Output>, json: bool) -> bool {
    let name = bug.name();
    let found = outcome.as_ref().ok().and_then(|output| {
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find(|line| line.starts_with("seed ") && line.contains(VIOLATION))?;
        let seed: u64 = line.strip_prefix("seed ")?.split(':').next()?.parse().ok()?;
        Some((seed, checker_in(output)?, line.split_once(VIOLATION)?.1.to_owned()))
    });
    let Some((seed, checker, what)) = found else {
        let why = outcome.err().map(|error| format!(" ({error})")).unwrap_or_default();
        let seeds = Bug::SEEDS_MAX;
        match json {
            true => println!("{}", json!({ "planted": name, "caught": false, "seeds": seeds })),
            false => println!("{name}: MISSED in {seeds} seeds{why}: {}", bug.breaks()),
        }
        return false;
    };
    let seeds = seed + 1;
    if json {
        println!("{}", json!({ "planted": name, "caught": true, "checker": checker, "seeds": seeds }));
    } else {
        let what: String = what.chars().take(WHAT_CHARS).collect();
        let meant = bug.checker().name();
        let meant = if meant == checker { String::new() } else { format!(" (meant for {meant})") };
        println!("{name} ({}): caught after {seeds} seeds by {what}{meant}", bug.breaks());
    }
    true
}

/// So much of a violation fits on a line.
const WHAT_CHARS: usize = 160;
