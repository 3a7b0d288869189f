//! `synod-sim`: whole cells from seeds, or the bugs planted in them.

use std::io::IsTerminal;
use std::num::NonZero;
use std::ops::Range;
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use clap::Parser;
use synod_tests::sim::{self, Planted, Summary, Sweep, Words};

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
    /// Run seeds with each of the planted bugs until it is caught.
    #[arg(long)]
    planted: bool,
    /// With --seed: plant this bug, by the name that --planted prints.
    #[arg(long, requires = "seed", value_parser = planted)]
    plant: Option<Planted>,
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

fn planted(text: &str) -> Result<Planted, String> {
    let names = || Planted::ALL.map(Planted::name).join(", ");
    Planted::ALL.into_iter().find(|planted| planted.name() == text).ok_or_else(|| format!("it is one of: {}", names()))
}

/// A planted bug that takes more seeds than this to be caught counts as missed.
const PLANTED_SEEDS_MAX: u64 = 2_000;
/// After so many failed seeds there is enough to look at.
const FAILURES_MAX: usize = 10;
/// Each seed that is a multiple of this is run twice.
const TWICE_EVERY: u64 = 100;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.planted {
        return all_planted(arguments.json);
    }
    if let Some(seed) = arguments.seed {
        return one(seed, arguments.plant, arguments.trace, arguments.json);
    }
    let threads =
        arguments.threads.or_else(|| std::thread::available_parallelism().ok().map(NonZero::get)).unwrap_or(1);
    many(arguments.seeds, threads, arguments.json)
}

fn one(seed: u64, plant: Option<Planted>, trace: bool, json: bool) -> ExitCode {
    say_seed_on_panic();
    let outcome = sim::run(seed, plant, if trace { Words::Print } else { Words::KeepLast(40) });
    if let Some(violation) = &outcome.violation {
        for line in &outcome.lines {
            println!("{line}");
        }
        println!("violation of {}: {}", violation.checker.name(), violation.what);
    }
    let seconds = Duration::from_nanos(outcome.simulated_ns).as_secs_f64();
    if json {
        let counts = json_counts(&outcome.counts.named());
        println!(
            r#"{{"seed":{seed},"hash":"{:016x}","events":{},"simulated_s":{seconds:.3},"void":{},"violations":{},{counts}}}"#,
            outcome.hash,
            outcome.events,
            outcome.is_void(),
            u8::from(outcome.violation.is_some()),
        );
    } else {
        println!("seed {seed}: hash {:016x}, {} events, {seconds:.1} s simulated", outcome.hash, outcome.events);
        println!("{}", text_counts(&outcome.counts.named()));
        if outcome.is_void() {
            println!("void: fewer than {} operations were answered during faults", sim::OPERATIONS_MIN);
        }
    }
    ExitCode::from(u8::from(outcome.violation.is_some()))
}

fn many(seeds: Range<u64>, threads: usize, json: bool) -> ExitCode {
    say_seed_on_panic();
    let total = seeds.end.saturating_sub(seeds.start);
    let begun = Instant::now();
    let told = Mutex::new(begun);
    let every = Duration::from_secs(if std::io::stderr().is_terminal() { 1 } else { 10 });
    let options = Sweep { seeds, threads, planted: None, twice_every: TWICE_EVERY, failures_max: FAILURES_MAX };
    let summary = sim::sweep(&options, |done, failures| {
        let mut told = told.lock().expect("no thread panics here");
        if told.elapsed() >= every {
            *told = Instant::now();
            let speed = done as f64 / begun.elapsed().as_secs_f64();
            eprintln!("{done} of {total} seeds, {speed:.0} a second, {failures} with violations");
        }
    });
    for failure in &summary.failures {
        let seed = failure.seed;
        println!("seed {seed}: violation of {}: {}", failure.violation.checker.name(), failure.violation.what);
        for line in &failure.lines {
            println!("  {line}");
        }
        println!("  again: synod-sim --seed {seed} --trace\n");
    }
    if json {
        print_json(&summary)
    } else {
        print_text(&summary, threads)
    }
    ExitCode::from(u8::from(!summary.failures.is_empty()))
}

fn print_text(summary: &Summary, threads: usize) {
    let (simulated, wall) = (summary.simulated.as_secs_f64(), summary.wall.as_secs_f64());
    println!(
        "{} seeds ({} void, {} run twice and equal), {} violations, hash {:016x}",
        summary.seeds,
        summary.void,
        summary.repeated,
        summary.failures.len(),
        summary.hash
    );
    println!(
        "{simulated:.0} s simulated in {wall:.1} s on {threads} threads: {:.0} times real time, {:.0} seeds and {:.0} \
         events a second",
        simulated / wall,
        summary.seeds as f64 / wall,
        summary.events as f64 / wall
    );
    println!("{} events; {}", summary.events, text_counts(&summary.counts.named()));
}

fn print_json(summary: &Summary) {
    let (simulated, wall) = (summary.simulated.as_secs_f64(), summary.wall.as_secs_f64());
    println!(
        r#"{{"seeds":{},"void":{},"repeated":{},"violations":{},"hash":"{:016x}","simulated_s":{simulated:.3},"wall_s":{wall:.3},"ratio":{:.1},"events":{},{}}}"#,
        summary.seeds,
        summary.void,
        summary.repeated,
        summary.failures.len(),
        summary.hash,
        simulated / wall,
        summary.events,
        json_counts(&summary.counts.named())
    );
}

fn text_counts(counts: &[(&str, u64)]) -> String {
    let words: Vec<String> = counts.iter().map(|(name, count)| format!("{} {count}", name.replace('_', " "))).collect();
    words.join(", ")
}

fn json_counts(counts: &[(&str, u64)]) -> String {
    let fields: Vec<String> = counts.iter().map(|(name, count)| format!(r#""{name}":{count}"#)).collect();
    fields.join(",")
}

fn all_planted(json: bool) -> ExitCode {
    say_seed_on_panic();
    let mut missed = false;
    for planted in Planted::ALL {
        let name = planted.name();
        let caught = sim::catch(planted, 0..PLANTED_SEEDS_MAX);
        missed |= caught.is_none();
        match (caught, json) {
            (Some(caught), false) => println!(
                "{name}: caught by \"{}\" after {} seeds (seed {}): {}",
                caught.violation.checker.name(),
                caught.seeds,
                caught.seed,
                caught.violation.what
            ),
            (None, false) => println!("{name}: MISSED in {PLANTED_SEEDS_MAX} seeds"),
            (Some(caught), true) => println!(
                r#"{{"planted":"{name}","caught":true,"checker":"{}","seeds":{},"seed":{}}}"#,
                caught.violation.checker.name(),
                caught.seeds,
                caught.seed
            ),
            (None, true) => println!(r#"{{"planted":"{name}","caught":false,"seeds":{PLANTED_SEEDS_MAX}}}"#),
        }
    }
    ExitCode::from(u8::from(missed))
}

/// A broken assertion ends the process, as in production: then at least say which seed it was.
fn say_seed_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        if let Some(seed) = sim::seed_on_this_thread() {
            println!("seed {seed}: violation of an assertion: {info}");
            println!("  again: synod-sim --seed {seed} --trace");
        }
    }));
}
