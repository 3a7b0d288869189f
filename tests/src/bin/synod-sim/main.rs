//! `synod-sim`: whole cells from seeds, or the bugs planted in them.

mod children;
mod report;

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::num::NonZero;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use synod_node::serve::abort_on_panics;
use synod_tests::sim::{self, Bug, Mask, Options, Sweep, Words};

/// Simulates whole cells, one a seed, under faults, and checks what must hold.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Run this seed alone, and print its hash.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run this many seeds from 0 on, or the seeds A..B.
    #[arg(long, default_value = "1000", value_parser = range)]
    seeds: Range<u64>,
    /// With --seed: print every event in words.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// With --seed: of its faults let only these happen, by number, as in 3,17,40; or none.
    #[arg(long, requires = "seed", value_parser = faults)]
    only_faults: Option<Mask>,
    /// Find the faults without which this seed does not fail, and print what is left of its story.
    #[arg(long, conflicts_with_all = ["seed", "seeds"])]
    minimise: Option<u64>,
    /// Run seeds with each of the planted bugs until it is caught. Needs the feature `planted`.
    #[arg(long)]
    planted: bool,
    /// With --planted: print the table of the docs.
    #[arg(long, requires = "planted")]
    markdown: bool,
    /// With --seed or --minimise: plant this bug, by the name that --planted prints.
    #[arg(long, value_parser = bug)]
    plant: Option<Bug>,
    /// For --planted, which runs one such process for each bug: print the first seed that catches it.
    #[arg(long, hide = true, value_parser = bug)]
    catch: Option<Bug>,
    /// How many threads; by default one for each CPU.
    #[arg(long)]
    threads: Option<usize>,
    /// Print the summary as JSON.
    #[arg(long)]
    json: bool,
}

fn range(text: &str) -> Result<Range<u64>, String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    match text.split_once("..") {
        None => Ok(0..number(text)?),
        Some((from, to)) => Ok(number(from)?..number(to)?),
    }
}

fn faults(text: &str) -> Result<Mask, String> {
    if text == "none" {
        return Ok(Mask::Only(BTreeSet::new()));
    }
    let number = |text: &str| text.parse::<usize>().map_err(|error| format!("{text:?}: {error}"));
    text.split(',').map(number).collect::<Result<_, _>>().map(Mask::Only)
}

fn bug(text: &str) -> Result<Bug, String> {
    let names = || Bug::all().into_iter().map(Bug::name).collect::<Vec<_>>().join(", ");
    Bug::named(text).ok_or_else(|| format!("it is one of: {}", names()))
}

/// After so many failed seeds there is enough to look at.
const FAILURES_MAX: usize = 10;
/// Each seed that is a multiple of this is run twice.
const TWICE_EVERY: u64 = 100;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let threads =
        arguments.threads.or_else(|| std::thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1);
    say_seed_on_panic(arguments.seed.is_some(), arguments.plant);
    abort_on_panics();
    if arguments.planted {
        let form = match (arguments.json, arguments.markdown) {
            (_, true) => children::Form::Markdown,
            (true, false) => children::Form::Json,
            (false, false) => children::Form::Lines,
        };
        return planted(threads, form);
    }
    if let Some(bug) = arguments.catch {
        return children::catch(bug);
    }
    if let Some(seed) = arguments.minimise {
        return children::minimise(seed, arguments.plant);
    }
    if let Some(seed) = arguments.seed {
        let words = if arguments.trace { Words::Print } else { Words::Story };
        let faults = arguments.only_faults.unwrap_or_default();
        return one(seed, &Options { words, bug: arguments.plant, faults }, arguments.json);
    }
    many(arguments.seeds, threads, arguments.json)
}

fn one(seed: u64, options: &Options, json: bool) -> ExitCode {
    let outcome = sim::run(seed, options);
    if let Some(violation) = &outcome.violation {
        report::story(&outcome.lines);
        println!("{}", report::violation(violation));
        report::commands(seed, options.bug);
    }
    report::one(&outcome, json);
    ExitCode::from(u8::from(outcome.violation.is_some()))
}

fn many(seeds: Range<u64>, threads: usize, json: bool) -> ExitCode {
    let total = seeds.end.saturating_sub(seeds.start);
    let begun = Instant::now();
    let told = Mutex::new(begun);
    let every = Duration::from_secs(if std::io::stderr().is_terminal() { 1 } else { 10 });
    let options = Sweep { seeds, threads, twice_every: TWICE_EVERY, failures_max: FAILURES_MAX };
    let summary = sim::sweep(&options, |done, failures| {
        let mut told = told.lock().expect("no thread panics here");
        if told.elapsed() >= every {
            *told = Instant::now();
            let speed = done as f64 / begun.elapsed().as_secs_f64();
            let left = (total - done) as f64 / speed;
            eprintln!(
                "{done} of {total} seeds, {speed:.0} a second, about {left:.0} s to go, {failures} with violations"
            );
        }
    });
    for failure in &summary.failures {
        println!("seed {}:", failure.seed);
        report::story(&failure.lines);
        println!("{}", report::violation(&failure.violation));
        println!("  again:                {}", report::command("--seed", failure.seed, None));
        println!("  with fewer faults:    {}\n", report::command("--minimise", failure.seed, None));
    }
    report::many(&summary, threads, json);
    ExitCode::from(u8::from(!summary.failures.is_empty()))
}

/// Without the feature some bugs are not there to be planted, and a part must not pass for the whole.
fn planted(threads: usize, form: children::Form) -> ExitCode {
    if cfg!(feature = "planted") {
        return children::catch_all(threads, form);
    }
    eprintln!(
        "synod-sim: this build has no bugs to plant. Run\n\n    \
         cargo run --locked -p synod-tests --features planted --bin synod-sim -- --planted\n"
    );
    ExitCode::from(2)
}

/// A broken assertion ends the process, as in production: then at least say which seed it was, and how it came to that.
fn say_seed_on_panic(has_story: bool, bug: Option<Bug>) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        if let Some(seed) = sim::seed_on_this_thread() {
            report::story(&sim::take_story());
            println!("{}: {info}", children::broken_assertion(seed));
            if !has_story {
                println!("its story: {}", report::command("--seed", seed, bug));
            }
            report::commands(seed, bug);
        }
    }));
}
