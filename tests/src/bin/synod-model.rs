//! `synod-model`: every state of small cells, or the bugs planted in them.

use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::Parser;
use synod_node::serve::abort_on_panics;
use synod_tests::model::{self, Outcome, Planted, Scope};

/// Checks the protocol exhaustively within bounds: the production code, every order of events.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Only the scopes of these names; by default all but the smallest.
    #[arg(long, value_parser = scope)]
    scope: Vec<Scope>,
    /// Plant each of the bugs instead, and show how it leads to two values at one slot.
    #[arg(long, conflicts_with = "scope")]
    planted: bool,
    /// Plant this one.
    #[arg(long, conflicts_with_all = ["scope", "planted"], value_parser = planted)]
    plant: Option<Planted>,
    /// Look no further than so many steps from the start, in each scope.
    #[arg(long, conflicts_with = "planted")]
    steps: Option<usize>,
    /// How many threads search.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// The search of a scope that takes longer than this failed.
    #[arg(long, default_value_t = 1800)]
    seconds_max: u64,
    /// A process that is larger than this, in MiB, failed.
    #[arg(long, default_value_t = 16 << 10)]
    memory_mb_max: u64,
    /// Print paths to examples, too.
    #[arg(long)]
    examples: bool,
    /// One line of JSON for each scope or bug.
    #[arg(long)]
    json: bool,
}

fn scope(name: &str) -> Result<Scope, String> {
    let mut known: Vec<Scope> = Scope::DEFAULT.into();
    known.extend([Scope::SMALL]);
    let names: Vec<_> = known.iter().map(|scope| scope.name).collect();
    let names = names.join(", ");
    known.into_iter().find(|scope| scope.name == name).ok_or_else(|| format!("it is one of: {names}"))
}

fn planted(name: &str) -> Result<Planted, String> {
    let all = Planted::all();
    let names: Vec<_> = all.iter().map(|planted| planted.name()).collect();
    let names = names.join(", ");
    all.into_iter().find(|planted| planted.name() == name).ok_or_else(|| format!("this build has: {names}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    model::tell_on_panic();
    abort_on_panics();
    let sound = match arguments.plant {
        Some(planted) => one_planted(planted, &arguments),
        None if arguments.planted => all_planted(&arguments),
        None => all_scopes(&arguments),
    };
    ExitCode::from(u8::from(!sound))
}

fn all_scopes(arguments: &Arguments) -> bool {
    let scopes = if arguments.scope.is_empty() { Scope::DEFAULT.into() } else { arguments.scope.clone() };
    let mut sound = true;
    for mut scope in scopes {
        scope.steps = arguments.steps.or(scope.steps);
        if !arguments.json {
            println!("{}: {}", scope.name, scope.words());
        }
        let outcome = model::check(scope.clone(), arguments.threads, watch(arguments));
        sound &= outcome.is_sound();
        print(&scope, &outcome, arguments);
    }
    sound
}

/// Each in a process of its own: a broken assertion ends it.
fn all_planted(arguments: &Arguments) -> bool {
    let mut all = true;
    for planted in Planted::all() {
        let mut command = Command::new(std::env::current_exe().expect("this process was started from somewhere"));
        command.arg("--plant").arg(planted.name());
        command.arg("--seconds-max").arg(arguments.seconds_max.to_string());
        command.arg("--memory-mb-max").arg(arguments.memory_mb_max.to_string());
        command.args(arguments.json.then_some("--json"));
        let status = command.status().expect("this program can be run again");
        let asserts = status.signal().is_some();
        if asserts && arguments.json {
            println!(r#"{{"planted":"{}","caught":true,"by":"an assertion"}}"#, planted.name());
        } else if asserts {
            println!("{}: caught by the assertion above", planted.name());
        }
        all &= status.success() || asserts;
    }
    all
}

fn one_planted(planted: Planted, arguments: &Arguments) -> bool {
    let name = planted.name();
    let outcome = model::catch(planted, watch(arguments));
    let caught = outcome.findings.iter().find(|finding| model::DISASTERS.contains(&finding.name) && !finding.held);
    let (unique, seconds) = (outcome.unique, outcome.time.as_secs_f64());
    match (caught, arguments.json) {
        (_, true) => println!(
            r#"{{"planted":"{name}","caught":{},"states":{unique},"seconds":{seconds:.1},"steps":{}}}"#,
            caught.is_some(),
            caught.map_or(0, |finding| finding.path.len())
        ),
        (Some(finding), false) => {
            println!("{name}: caught after {unique} states, {seconds:.1} s; against \"{}\":", finding.name);
            finding.path.iter().for_each(|line| println!("{line}"));
        }
        (None, false) => println!("{name}: MISSED in {unique} states"),
    }
    caught.is_some()
}

/// Says how far it is, and ends the process when it takes too much.
fn watch(arguments: &Arguments) -> impl FnMut(usize, usize) + use<> {
    let (seconds_max, memory_mb_max) = (arguments.seconds_max, arguments.memory_mb_max);
    let begun = Instant::now();
    let mut told = begun;
    move |generated, unique| {
        if told.elapsed() < Duration::from_secs(10) {
            return;
        }
        told = Instant::now();
        let seconds = begun.elapsed().as_secs();
        eprintln!("{unique} states, {generated} generated, {seconds} s, {} MiB", peak_memory_mb());
        if seconds > seconds_max || peak_memory_mb() > memory_mb_max {
            println!("UNFINISHED after {unique} states: the bounds are {seconds_max} s and {memory_mb_max} MiB");
            std::process::exit(2);
        }
    }
}

fn print(scope: &Scope, outcome: &Outcome, arguments: &Arguments) {
    let (name, bounds) = (scope.name, scope.words());
    let Outcome { generated, unique, depth, parts: (nodes, messages), time, findings } = outcome;
    let (seconds, memory) = (time.as_secs_f64(), peak_memory_mb());
    if arguments.json {
        let broken: Vec<_> = findings.iter().filter(|finding| !finding.held).map(|finding| finding.name).collect();
        println!(
            r#"{{"scope":"{name}","bounds":"{bounds}","states":{unique},"generated":{generated},"depth":{depth},"nodes":{nodes},"messages":{messages},"seconds":{seconds:.1},"peak_mb":{memory},"properties":{},"broken":{broken:?}}}"#,
            findings.len(),
        );
        return;
    }
    let end = if scope.steps.is_some() { "to the bound" } else { "to the end" };
    println!(
        "  {end}: {unique} states ({generated} with repeats), depth {depth}, {nodes} different replicas, {messages} \
         messages; {seconds:.1} s, peak memory so far {memory} MiB"
    );
    for finding in findings {
        let kind = if finding.always { "always" } else { "sometimes" };
        let verdict = if finding.held { "holds" } else { "BROKEN" };
        println!("  {verdict}: {kind}: {}", finding.name);
        if finding.always && !finding.held || arguments.examples {
            finding.path.iter().for_each(|line| println!("  {line}"));
        }
    }
    let _ = std::io::stdout().flush();
}

/// The most memory that this process has had.
fn peak_memory_mb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse::<u64>().ok()).unwrap_or(0) / 1024
}
