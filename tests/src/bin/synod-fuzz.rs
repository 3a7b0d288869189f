//! `synod-fuzz`: decoders, fed with bytes that nobody would send.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use synod_node::serve::abort_on_panics;
use synod_tests::fuzz::{self, TARGETS, Target};

/// Feeds everything that reads a socket or a disk with bytes that are nearly right: nothing may panic, and what is taken for
/// sound must stay the same when it is encoded and decoded again.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Only these targets; by default all [possible values: see --list]
    #[arg(long, value_parser = target)]
    target: Vec<&'static Target>,
    /// How many inputs each is fed.
    #[arg(long, default_value_t = 1_000_000)]
    executions: u64,
    /// What decides the inputs [default: random]
    #[arg(long)]
    seed: Option<u64>,
    /// Say which targets there are, and end.
    #[arg(long)]
    list: bool,
    /// One line of JSON for each target.
    #[arg(long)]
    json: bool,
}

fn target(name: &str) -> Result<&'static Target, String> {
    let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
    TARGETS.iter().find(|target| target.name == name).ok_or_else(|| format!("it is one of: {}", names.join(", ")))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.list {
        TARGETS.iter().for_each(|target| println!("{:14} {}", target.name, target.about));
        return ExitCode::SUCCESS;
    }
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..));
    let targets = if arguments.target.is_empty() { TARGETS.iter().collect() } else { arguments.target };
    // The process ends with a panic; what to do comes first.
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("a panic; {}", again(TARGET.get(), seed));
        usual(panic);
    }));
    abort_on_panics();
    let mut failed = 0;
    for target in &targets {
        TARGET.set(target.name);
        failed += usize::from(!passes(target, seed, arguments.executions, arguments.json));
    }
    let verdict = if failed == 0 { "no finding" } else { "NOT all passed" };
    if !arguments.json {
        println!("{} targets, {} executions each, seed {seed}: {verdict}", targets.len(), arguments.executions);
    }
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

std::thread_local! {
    static TARGET: std::cell::Cell<&'static str> = const { std::cell::Cell::new("") };
}

/// How the execution under way is repeated without those before it.
fn again(target: &str, seed: u64) -> String {
    let first = seed.wrapping_add(fuzz::execution().wrapping_mul(fuzz::SEED_STEP));
    format!("again: synod-fuzz --target {target} --seed {first} --executions 1")
}

fn passes(target: &'static Target, seed: u64, executions: u64, json: bool) -> bool {
    let is_watched = !json && std::io::stderr().is_terminal();
    let result = fuzz::run(target, seed, executions, |done, took| {
        if is_watched {
            eprint!("\r{:14} {done} of {executions}, {:.0} s ", target.name, took.as_secs_f64());
            let _ = std::io::stderr().flush();
        }
    });
    if is_watched {
        eprintln!();
    }
    match result {
        Ok(ref report) if json => println!("{}", serde_json::to_string(report).expect("a report is valid JSON")),
        Ok(ref report) => println!(
            "{:14} {} executions, {} taken for sound, {:.0} s{}",
            report.target,
            report.executions,
            report.taken,
            report.seconds,
            report.why_void().map(|why| format!(": VOID, {why}")).unwrap_or_default()
        ),
        Err(ref finding) => println!("{:14} {finding}; {}", target.name, again(target.name, seed)),
    }
    result.is_ok_and(|report| report.why_void().is_none() || report.executions == 1)
}
