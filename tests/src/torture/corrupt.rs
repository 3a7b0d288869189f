//! `synod-torture corrupt`: every kind of damage at every block of a log, of a database and of its meta blocks.
//!
//! Each case begins with the directories of a cell of five that was stopped in order, changes one place of one replica, of two, or the
//! same place of four (then one good copy remains) or of all, and starts the cell. Nearly all cases run in process, through the node's own start and the real engines
//! (`in_process`); a sample of them on real processes (`processes`). It must end with everybody whole, voting, equal, and with all that was acknowledged; or,
//! where no good copy is left, stopped, saying why. What is promised is in the atlas (`engine/node/docs/atlas.md`).
//!
//! | module | what it is |
//! |---|---|
//! | `damage` | places, kinds of damage, and all the cases |
//! | `sample` | the directories that are damaged |
//! | `in_process` | a cell of real engines on real directories, with simulated time |
//! | `worker` | runs cases, and judges them |
//! | `processes` | a sample of them on a cell of real processes |

mod damage;
mod in_process;
mod processes;
mod sample;
pub mod worker;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::Serialize;
use synod_store::DAMAGED_EXIT_STATUS;

use self::damage::{Case, Scope, cases};
use self::sample::{REPLICAS, Size};
use self::worker::{Ending, Verdict};
use super::cell::{Common, Place};
use super::stop::Stop;
use super::{Report, print};

/// Each of the four replicas that are damaged may meet its page once; and once more for one that was sent to it meanwhile.
const ENDS_MAX: u32 = 6;
const PROGRESS_EVERY: Duration = Duration::from_secs(10);
/// So many violations are told one by one.
const TOLD_MAX: usize = 20;
/// What a worker says.
const MESSAGES_FILE: &str = "messages.txt";
/// So much of it goes into an error.
const TAIL_LINES: usize = 10;
/// Where nothing is synced: in process nobody cuts the power, and a disk would only be waited for.
const MEMORY_DIR: &str = "/dev/shm";

/// Damage every block of a log, of a database and of its meta blocks in every way; it must heal, or stop and say why.
///
/// In process, with the real start, recovery, engines and stores; then a sample of the same on real processes.
#[derive(Args, Clone, Debug)]
pub struct CorruptOptions {
    /// How many of the cases in process, spread over all of them; 0: none [default: all]
    #[arg(long)]
    pub cases: Option<usize>,
    /// Of the cases in process a part alone, as 2/4: every fourth, from the second on
    #[arg(long, default_value = "1/1", value_parser = part)]
    pub part: (usize, usize),
    /// How many rounds on real processes, each of up to two cases
    #[arg(long, default_value_t = 30)]
    pub rounds: u32,
    /// Processes that run cases at the same time
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub workers: u16,
    /// Entries in the log
    #[arg(long, default_value_t = Size::WHOLE.entries, value_parser = clap::value_parser!(u64).range(1..=2_000))]
    pub entries: u64,
    /// What decides bytes and places [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where it runs, and what becomes of its report. In process: in memory, if no directory is said
    #[command(flatten)]
    pub common: Common,
}

/// What was done, and how it ended.
#[derive(Clone, Default, Debug, Serialize)]
pub struct CorruptReport {
    /// What decided it.
    pub seed: u64,
    /// Slots that only the log had.
    pub entries: u64,
    /// Blocks of the log, and of the database, that were damaged.
    pub blocks: usize,
    /// In process: by place and kind of damage, how many cases ended how.
    pub in_process: BTreeMap<String, BTreeMap<String, u64>>,
    /// In process: the same by who suffered it.
    pub by_scope: BTreeMap<String, BTreeMap<String, u64>>,
    /// Processes that met a damaged page and ended, to be started again.
    pub ended_by_a_page: u64,
    /// Cases in process.
    pub cases: u64,
    /// Cases on real processes, by place and kind.
    pub on_processes: BTreeMap<String, BTreeMap<String, u64>>,
    /// How many.
    pub process_cases: u64,
    /// Cases that must not end as they did. Any number but 0 ends the command with an error.
    pub violations: Vec<String>,
}

impl CorruptReport {
    fn count(&mut self, case: Case, ending: Ending) {
        let what = format!("{}, {}", case.target.name(), case.kind.name());
        for (table, row) in [(&mut self.in_process, what), (&mut self.by_scope, case.scope.name().to_owned())] {
            *table.entry(row).or_default().entry(ending.name().to_owned()).or_default() += 1;
        }
        self.cases += 1;
    }

    fn count_on_processes(&mut self, case: Case, ending: Ending) {
        let what = format!("{}, {}", case.target.name(), case.kind.name());
        *self.on_processes.entry(what).or_default().entry(ending.name().to_owned()).or_default() += 1;
        self.process_cases += 1;
    }
}

fn rows(table: &BTreeMap<String, BTreeMap<String, u64>>) -> String {
    let of_row = |(what, endings): (&String, &BTreeMap<String, u64>)| {
        let endings =
            Ending::ALL.iter().filter_map(|ending| Some(format!("{} {}", endings.get(ending.name())?, ending.name())));
        format!("  {what:<32} {}\n", endings.collect::<Vec<_>>().join(", "))
    };
    table.iter().map(of_row).collect()
}

fn sums(tables: [&BTreeMap<String, BTreeMap<String, u64>>; 2]) -> String {
    let of = |ending: &Ending| {
        let endings = tables.iter().flat_map(|table| table.values());
        let count: u64 = endings.filter_map(|endings| endings.get(ending.name())).sum();
        (count > 0).then(|| format!("{count} {}", ending.name()))
    };
    Ending::ALL.iter().filter_map(of).collect::<Vec<_>>().join(", ")
}

impl Report for CorruptReport {
    fn text(&self) -> String {
        format!(
            "seed                  {}\n\
             log                   {} entries that no snapshot has; {} blocks and pages damaged\n\
             in process, by what was damaged\n{}\
             in process, by who suffered it\n{}\
             processes ended by a damaged page, and started again: {}\n\
             on real processes\n{}\
             {} cases in process and {} on real processes: {}; {} violations",
            self.seed,
            self.entries,
            self.blocks,
            rows(&self.in_process),
            rows(&self.by_scope),
            self.ended_by_a_page,
            rows(&self.on_processes),
            self.cases,
            self.process_cases,
            sums([&self.in_process, &self.on_processes]),
            self.violations.len(),
        )
    }
}

/// Runs the command.
pub fn main(options: &CorruptOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("synod-torture: seed {seed}");
    let mut report = CorruptReport { seed, ..CorruptReport::default() };
    if options.cases != Some(0) {
        let memory = Path::new(MEMORY_DIR);
        let dir = options.common.dir.clone().or_else(|| memory.is_dir().then(|| memory.to_owned()));
        let common = Common { dir, ..options.common.clone() };
        let run = |place: &Place| in_workers(options, place, &mut report, &stop);
        common.within("corrupt", run).with_context(|| format!("seed {seed}"))?;
    }
    if options.rounds > 0 {
        let run = |place: &Place| processes::run(options.rounds, seed, place, &mut report, &stop);
        // What the cases in process have shown is told all the same.
        if let Err(error) = options.common.within("corrupt-cell", run) {
            stop.check()?;
            report.violations.push(format!("on real processes: {error:#}"));
        }
    }
    print(&report, options.common.json)?;
    let violations = report.violations.iter().take(TOLD_MAX).cloned().collect::<Vec<_>>().join("\n");
    ensure!(report.violations.is_empty(), "seed {seed}: {} violations:\n{violations}", report.violations.len());
    Ok(())
}

fn part(text: &str) -> Result<(usize, usize), String> {
    let numbers = text.split_once('/').and_then(|(part, of)| Some((part.parse().ok()?, of.parse().ok()?)));
    let is_one = |(part, of): &(usize, usize)| (1..=*of).contains(part);
    numbers.filter(is_one).ok_or_else(|| "as in 2/4".to_owned())
}

fn in_workers(options: &CorruptOptions, place: &Place, report: &mut CorruptReport, stop: &Stop) -> anyhow::Result<()> {
    let sample_dir = place.path().join("sample");
    let size = Size { entries: options.entries, ..Size::WHOLE };
    let plan = sample::make(&sample_dir, size, report.seed)?;
    let all = cases(&plan);
    report.entries = plan.entries;
    report.blocks = plan.blocks[&1].len() + plan.pages[&1] as usize;
    let count = options.cases.unwrap_or(all.len()).min(all.len());
    let (part, parts) = options.part;
    let numbers: Vec<usize> = (part - 1..count).step_by(parts).map(|at| at * all.len() / count).collect();
    let count = numbers.len();
    eprintln!("{count} of {} cases, {} entries in the log", all.len(), plan.entries);
    let next = AtomicUsize::new(0);
    let shared = Mutex::new(report);
    let began = Instant::now();
    let told = Mutex::new(began);
    let work = |worker: u16| -> anyhow::Result<()> {
        let mut bench = Worker::new(place, &sample_dir, worker, shared.lock().expect("nobody panics").seed);
        while let Some(number) = numbers.get(next.fetch_add(1, Ordering::Relaxed)) {
            stop.check()?;
            let (verdict, ends) = bench.run(*number)?;
            // A signal that ends the command ends its workers, too.
            stop.check()?;
            let case = all[*number];
            let mut report = shared.lock().expect("nobody panics");
            report.ended_by_a_page += u64::from(ends);
            match verdict {
                Verdict { ending: Some(ending), why, .. } => {
                    report.count(case, ending);
                    if ending == Ending::Stopped && case.scope < Scope::Majority {
                        let why = why.unwrap_or_default();
                        report.violations.push(format!("case {number}, {case}: stopped: {why}"));
                    }
                }
                Verdict { violation, .. } => {
                    let what = format!("case {number}, {case}: {}", violation.unwrap_or_default());
                    if report.violations.len() < TOLD_MAX {
                        eprintln!("VIOLATION: {what}");
                    }
                    report.cases += 1;
                    report.violations.push(what);
                }
            }
            let mut told = told.lock().expect("nobody panics");
            if told.elapsed() > PROGRESS_EVERY {
                *told = Instant::now();
                let seconds = began.elapsed().as_secs();
                eprintln!("{}/{count} cases, {} violations, {seconds} s", report.cases, report.violations.len());
            }
        }
        Ok(())
    };
    let work = &work;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..options.workers).map(|worker| scope.spawn(move || work(worker))).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("a worker's errors are told"))
    })
}

/// A process that runs cases.
struct Worker {
    sample: PathBuf,
    work: PathBuf,
    seed: u64,
    process: Option<(Child, ChildStdin, BufReader<ChildStdout>)>,
}

impl Worker {
    fn new(place: &Place, sample: &Path, number: u16, seed: u64) -> Self {
        let work = place.path().join(format!("work-{number}"));
        Self { sample: sample.to_owned(), work, seed, process: None }
    }

    /// Runs a case, over as many processes as it ends; says how many that were.
    fn run(&mut self, number: usize) -> anyhow::Result<(Verdict, u32)> {
        for ends in 0..ENDS_MAX {
            if let Some(verdict) = self.ask(number, ends > 0)? {
                return Ok((verdict, ends));
            }
            let (mut child, ..) = self.process.take().expect("it was asked just now");
            let status = child.wait().context("waiting for a worker")?;
            if status.code() != Some(DAMAGED_EXIT_STATUS) {
                let said = std::fs::read_to_string(self.work.join(MESSAGES_FILE)).unwrap_or_default();
                let last: Vec<&str> = said.lines().rev().take(TAIL_LINES).collect();
                let last = last.into_iter().rev().collect::<Vec<_>>().join("\n");
                let violation = Some(format!("the process ended with {status}, saying\n{last}"));
                return Ok((Verdict { ending: None, violation, why: None }, ends));
            }
        }
        let violation = Some("one damaged page after the other ends the process".to_owned());
        Ok((Verdict { ending: None, violation, why: None }, ENDS_MAX))
    }

    /// `None`: the process has ended.
    fn ask(&mut self, number: usize, again: bool) -> anyhow::Result<Option<Verdict>> {
        let (_, input, output) = match &mut self.process {
            Some(process) => process,
            None => self.process.insert(self.start()?),
        };
        writeln!(input, "{number}{}", if again { " again" } else { "" }).context("asking a worker")?;
        let mut line = String::new();
        if output.read_line(&mut line).context("listening to a worker")? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&line).with_context(|| format!("a worker says {line:?}"))?))
    }

    fn start(&self) -> anyhow::Result<(Child, ChildStdin, BufReader<ChildStdout>)> {
        std::fs::create_dir_all(&self.work)?;
        let messages = std::fs::File::create(self.work.join(MESSAGES_FILE))?;
        let mut child = Command::new(std::env::current_exe()?)
            .args(["corrupt-worker", "--seed", &self.seed.to_string()])
            .arg("--sample")
            .arg(&self.sample)
            .arg("--work")
            .arg(&self.work)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(messages)
            .spawn()
            .context("starting a worker")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a worker without pipes");
        };
        Ok((child, input, BufReader::new(output)))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some((mut child, input, _)) = self.process.take() {
            // It ends with its input.
            drop(input);
            let _ = child.wait();
        }
    }
}

const _: () = assert!(REPLICAS == 5);
