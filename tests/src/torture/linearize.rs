//! `synod-torture linearize`: replicas are killed and paused under load, and what all clients were told must have an
//! order (`faults.md` 2.3): reads under the master's lease included, and linearizable reads that other replicas answer.
//!
//! Every client asks for one thing at a time, most of them for a few hot keys, and writes down what it asked, when, and
//! what it was told. Meanwhile replicas are killed and started again, or paused for longer than a mastership lasts
//! without them, the master more often than not. At the end `linear` checks the whole history. A run with fewer
//! operations or faults than asked for is void, not passed.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use synod_api::{Answer, Consistency, Expected, Found, Operation as Request};
use synod_client::{Client, Error, Options, Outcome};

use super::cell::{Common, Place, TortureCell};
use super::history::WriteId;
use super::linear::{self, Asked, Operation, Told, Verdict};
use super::profile::Profile;
use super::stop::Stop;
use super::{Report, print};

const REPLICAS: u16 = 3;
/// Keys that everybody fights for.
const HOT_KEYS: u32 = 8;
/// Of a hundred operations on keys, so many are on those.
const HOT_PERCENT: u32 = 70;
/// The others.
const WIDE_KEYS: u32 = 2_000;
/// Files are numbered from here.
const FILES_FROM: u32 = 1 << 20;
/// So many creations in a row are of one file, by whomever.
const CREATIONS_A_FILE: u32 = 3;
/// Of a hundred reads so many are asked of whichever replica a client of their own is connected to.
const ANYWHERE_PERCENT: u32 = 50;
/// The longest pause between two operations of one client.
const THINK_TIME_MAX: Duration = Duration::from_millis(1);
/// Every other client gives up early, so that there are outcomes that nobody knows.
const IMPATIENT_DEADLINE: Duration = Duration::from_millis(600);
/// Load before a fault, in milliseconds.
const LOAD_TIME: std::ops::RangeInclusive<u64> = 100..=800;
/// Without a killed replica: shorter and longer than an election takes.
const AWAY_TIME: std::ops::RangeInclusive<u64> = 0..=2_000;
/// A pause: shorter than a mastership's end, and much longer.
const PAUSE_TIME: std::ops::RangeInclusive<u64> = 500..=5_000;
/// Of a hundred faults so many hit the master.
const MASTER_PERCENT: u32 = 75;
/// Small segments, so that kills hit the change from one to the next too; and a log that does not fill up.
const SERVE_FLAGS: [&str; 4] = ["--segment-mb", "16", "--log-mb-max", "16384"];

/// Kill and pause replicas under load; there must be one order that explains every answer
#[derive(Args, Clone, Debug)]
pub struct LinearizeOptions {
    /// At least so many operations
    #[arg(long, default_value_t = 200_000)]
    pub operations: u64,
    /// How many clients
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=200))]
    pub clients: u32,
    /// At least so many kills
    #[arg(long, default_value_t = 20)]
    pub kills: u64,
    /// At least so many pauses
    #[arg(long, default_value_t = 20)]
    pub pauses: u64,
    /// The run is void if it takes longer, in seconds
    #[arg(long, default_value_t = 1_800)]
    pub seconds_max: u64,
    /// The cell's and the clients' settings
    #[arg(long, value_enum, default_value_t)]
    pub profile: Profile,
    /// Rewrite one read of the history to what it could have been a while before; the checker must find it
    #[arg(long)]
    pub plant_stale_read: bool,
    /// What decides who is hit, when and how [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// What was done, and checked.
#[derive(Clone, Debug, Serialize)]
pub struct LinearizeReport {
    /// What decided who was hit.
    pub seed: u64,
    /// The settings.
    pub profile: Profile,
    /// Clients.
    pub clients: u32,
    /// Operations that ended, one way or another.
    pub operations: u64,
    /// The same by kind and outcome.
    pub outcomes: BTreeMap<&'static str, BTreeMap<&'static str, u64>>,
    /// Replicas killed.
    pub kills: u64,
    /// Replicas paused.
    pub pauses: u64,
    /// Of both, how often it was the master.
    pub masters_hit: u64,
    /// Elections won.
    pub elections: u64,
    /// Seconds under load.
    pub load_s: f64,
    /// Reads answered.
    pub reads: u64,
    /// Of these, at least so many by the master alone, under its lease. What a replica answered right before it was
    /// killed is not known.
    pub lease_reads: u64,
    /// And at least so many by whichever replica was asked, from its own database.
    pub local_reads: u64,
    /// Reads answered, each second of these.
    pub reads_per_s: u64,
    /// Writes acknowledged, each second of these.
    pub writes_per_s: u64,
    /// Keys and files.
    pub keys: usize,
    /// Writes of unknown outcome that a read showed to have happened.
    pub revealed: usize,
    /// Writes of unknown outcome of which nothing is known.
    pub hidden: usize,
    /// The most ways to explain one key that the checker had to follow at once.
    pub ways_max: usize,
    /// What the check took, in milliseconds.
    pub checker_ms: u64,
    /// The planted stale read, and the checker's word on it.
    pub planted: Option<String>,
    /// The checker's word.
    pub verdict: &'static str,
}

impl Report for LinearizeReport {
    fn text(&self) -> String {
        let mut text = format!("seed                  {}\n", self.seed);
        for (kind, outcomes) in &self.outcomes {
            let outcomes: Vec<String> = outcomes.iter().map(|(outcome, count)| format!("{outcome} {count}")).collect();
            text.push_str(&format!("{kind:<21} {}\n", outcomes.join(", ")));
        }
        text.push_str(&format!(
            "kills, pauses         {}, {} ({} of them of the master); {} elections\n\
             under load            {:.1} s: {} reads/s and {} writes/s, {} clients\n\
             lease reads           {} of {} reads at least: no slot, no disk, no other replica\n\
             at any replica        {} of these reads at least, up to the read index\n\
             checker               {} ms for {} keys; {} unknown writes happened, {} are unknown still, {} ways at most\n",
            self.kills,
            self.pauses,
            self.masters_hit,
            self.elections,
            self.load_s,
            self.reads_per_s,
            self.writes_per_s,
            self.clients,
            self.lease_reads,
            self.reads,
            self.local_reads,
            self.checker_ms,
            self.keys,
            self.revealed,
            self.hidden,
            self.ways_max,
        ));
        if let Some(planted) = &self.planted {
            text.push_str(&format!("planted stale read    {planted}\n"));
        }
        let (operations, kills, pauses) = (self.operations, self.kills, self.pauses);
        text.push_str(&format!("{operations} operations, {kills} kills, {pauses} pauses: {}", self.verdict));
        text
    }
}

/// Runs the command.
pub fn main(options: &LinearizeOptions) -> anyhow::Result<()> {
    let stop = Stop::on_signals()?;
    let seed = options.seed.unwrap_or_else(|| fastrand::u64(..));
    eprintln!("synod-torture: seed {seed}");
    let outcome = options.common.within("linearize", |place| {
        let (report, failure) = run(options, seed, place, &stop)?;
        print(&report, options.common.json)?;
        failure.map_or(Ok(()), |failure| Err(anyhow::anyhow!("{failure}")))
    });
    outcome.with_context(|| format!("seed {seed}"))
}

fn run(
    options: &LinearizeOptions,
    seed: u64,
    place: &Place,
    stop: &Stop,
) -> anyhow::Result<(LinearizeReport, Option<String>)> {
    let flags = [&SERVE_FLAGS[..], options.profile.serve_flags()].concat();
    let mut cell = TortureCell::start(REPLICAS, place.path().join("cell"), &flags, stop)?;
    let shared = Shared::default();
    let start = Instant::now();
    let mut clients = (1..=options.clients)
        .map(|id| Recorder::connect(id, &cell.endpoints(), options.profile.options(), seed, start))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let mut nemesis = Nemesis::new(seed);
    let (acted, ran) = std::thread::scope(|scope| {
        let running: Vec<_> = clients.iter_mut().map(|client| scope.spawn(|| client.run(&shared))).collect();
        let acted = nemesis.run(options, &mut cell, &shared);
        shared.stopping.store(true, Ordering::SeqCst);
        let ends: Vec<_> =
            running.into_iter().map(|client| client.join().expect("a client returns what it finds")).collect();
        (acted, ends.into_iter().collect::<anyhow::Result<()>>())
    });
    ran?;
    acted?;
    let load = start.elapsed();
    // What is there in the end belongs to the history.
    let mut last = Recorder::connect(options.clients + 1, &cell.endpoints(), Options::default(), seed, start)?;
    last.read_all(&shared)?;
    clients.push(last);
    cell.wait_until_alike()?;
    for id in cell.ids() {
        nemesis.life_ends(&cell, id);
    }
    cell.stop()?;

    let mut history: Vec<Operation> = clients.into_iter().flat_map(|client| client.history).collect();
    let planted = options.plant_stale_read.then(|| plant(&mut history, seed)).transpose()?;
    let check_start = Instant::now();
    let verdict = linear::check(&history, key_name);
    let checker = check_start.elapsed();
    let mut outcomes: BTreeMap<&str, BTreeMap<&str, u64>> = BTreeMap::new();
    for operation in &history {
        *outcomes.entry(operation.asked.name()).or_default().entry(operation.told.name()).or_default() += 1;
    }
    let answered = |operation: &&Operation| !matches!(operation.told, Told::DidNotHappen | Told::Unknown);
    let reads = history.iter().filter(answered).filter(|operation| operation.asked == Asked::Get).count();
    let writes = history.iter().filter(|operation| matches!(operation.told, Told::Done(_))).count();
    let (word, figures, failure) = match verdict {
        Verdict::Linearizable(figures) if nemesis.lease_reads == 0 => {
            ("void", figures, Some("void: no read was answered under a lease".to_owned()))
        }
        Verdict::Linearizable(figures) if nemesis.local_reads == 0 => {
            ("void", figures, Some("void: no replica answered a read up to the read index".to_owned()))
        }
        Verdict::Linearizable(figures) => ("linearizable", figures, None),
        Verdict::Violation(why) => ("NOT LINEARIZABLE", linear::Figures::default(), Some(why)),
        Verdict::Unknown(why) => ("unknown, the checker gave up", linear::Figures::default(), Some(why)),
    };
    let (planted, failure) = match (planted, word, failure) {
        (None, _, failure) => (None, failure),
        (Some(_), "NOT LINEARIZABLE", Some(why)) => (Some(format!("caught: {why}")), None),
        (Some(what), ..) => {
            (Some("NOT caught".to_owned()), Some(format!("the planted stale read was not found: {what}")))
        }
    };
    let per_s = |count: usize| (count as f64 / load.as_secs_f64()) as u64;
    let report = LinearizeReport {
        seed,
        profile: options.profile,
        clients: options.clients,
        operations: history.len() as u64,
        outcomes,
        kills: nemesis.kills,
        pauses: nemesis.pauses,
        masters_hit: nemesis.masters_hit,
        elections: nemesis.elections,
        load_s: load.as_secs_f64(),
        reads: reads as u64,
        lease_reads: nemesis.lease_reads,
        local_reads: nemesis.local_reads,
        reads_per_s: per_s(reads),
        writes_per_s: per_s(writes),
        keys: figures.keys,
        revealed: figures.revealed,
        hidden: figures.hidden,
        ways_max: figures.ways,
        checker_ms: super::pulse::milliseconds(checker),
        planted,
        verdict: word,
    };
    Ok((report, failure))
}

/// Rewrites a read to what an earlier one of the same key was told, though by then a later write had been acknowledged.
fn plant(history: &mut [Operation], seed: u64) -> anyhow::Result<String> {
    let mut random = fastrand::Rng::with_seed(seed);
    let modified = |operation: &Operation| match operation.told {
        Told::Found { modified, .. } if operation.key < HOT_KEYS => Some(modified),
        _ => None,
    };
    let reads: Vec<usize> = (0..history.len()).filter(|&at| modified(&history[at]).is_some()).collect();
    for _ in 0..10_000.min(reads.len() * 100) {
        let (at, earlier) = (reads[random.usize(..reads.len())], reads[random.usize(..reads.len())]);
        let (read, stale) = (history[at], history[earlier]);
        if read.key != stale.key {
            continue;
        }
        let revision = modified(&stale);
        let overwritten = history.iter().any(|write| {
            let Told::Done(done) = write.told else { return false };
            write.key == read.key && Some(done) > revision && write.end < read.begin
        });
        if overwritten {
            history[at].told = stale.told;
            return Ok(format!("{}: {}", key_name(read.key), history[at]));
        }
    }
    anyhow::bail!("there is no read that could be made stale: the history is too short")
}

fn key_name(key: u32) -> String {
    match key {
        0..HOT_KEYS => format!("hot/{key}"),
        HOT_KEYS..FILES_FROM => format!("wide/{key}"),
        FILES_FROM.. => format!("/linearize/{}", key - FILES_FROM),
    }
}

#[derive(Default)]
struct Shared {
    stopping: AtomicBool,
    /// Operations that ended.
    operations: AtomicU64,
    /// Creations asked for: they give the files' numbers.
    creations: AtomicU64,
}

/// A client that writes everything down.
struct Recorder {
    id: u32,
    client: Client,
    /// For linearizable reads at whichever replica it is connected to.
    reader: Client,
    random: fastrand::Rng,
    start: Instant,
    writes: u64,
    /// What it last saw.
    seen: HashMap<u32, Option<WriteId>>,
    history: Vec<Operation>,
}

impl Recorder {
    fn connect(id: u32, endpoints: &[String], options: Options, seed: u64, start: Instant) -> anyhow::Result<Self> {
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let deadline = if id.is_multiple_of(2) { IMPATIENT_DEADLINE } else { options.deadline };
        let connect =
            || Client::connect(&endpoints, Options { deadline, ..options }).context("a client cannot connect");
        Ok(Self {
            id,
            client: connect()?,
            reader: connect()?,
            random: fastrand::Rng::with_seed(seed ^ u64::from(id) << 32),
            start,
            writes: 0,
            seen: HashMap::new(),
            history: Vec::new(),
        })
    }

    fn run(&mut self, shared: &Shared) -> anyhow::Result<()> {
        while !shared.stopping.load(Ordering::SeqCst) {
            let (key, asked) = self.choose(shared);
            self.ask(shared, key, asked).inspect_err(|_| shared.stopping.store(true, Ordering::SeqCst))?;
            std::thread::sleep(THINK_TIME_MAX.mul_f64(self.random.f64()));
        }
        Ok(())
    }

    fn read_all(&mut self, shared: &Shared) -> anyhow::Result<()> {
        let files = shared.creations.load(Ordering::SeqCst) as u32 / CREATIONS_A_FILE;
        for key in (0..HOT_KEYS + WIDE_KEYS).chain((FILES_FROM..=FILES_FROM + files).rev().take(WIDE_KEYS as usize)) {
            self.ask(shared, key, Asked::Get)?;
        }
        Ok(())
    }

    fn choose(&mut self, shared: &Shared) -> (u32, Asked) {
        let key = if self.random.u32(..100) < HOT_PERCENT {
            self.random.u32(..HOT_KEYS)
        } else {
            HOT_KEYS + self.random.u32(..WIDE_KEYS)
        };
        let write = WriteId { client: self.id, number: self.writes + 1 };
        match self.random.u32(..100) {
            0..45 => (key, Asked::Get),
            45..65 => (key, Asked::Put(write)),
            65..80 => (key, Asked::Swap(self.seen.get(&key).copied().flatten(), write)),
            80..90 => (key, Asked::Delete),
            90..96 => {
                let creation = shared.creations.fetch_add(1, Ordering::SeqCst) as u32;
                (FILES_FROM + creation / CREATIONS_A_FILE, Asked::Create(write))
            }
            _ => {
                // One of the last.
                let files = shared.creations.load(Ordering::SeqCst) as u32 / CREATIONS_A_FILE;
                (FILES_FROM + files.saturating_sub(self.random.u32(..4)), Asked::Get)
            }
        }
    }

    fn ask(&mut self, shared: &Shared, key: u32, asked: Asked) -> anyhow::Result<()> {
        let name = key_name(key);
        let name = name.as_bytes();
        let value = asked.write().map(WriteId::value).unwrap_or_default();
        let expected = match asked {
            Asked::Swap(Some(expected), _) => Some(expected.value()),
            _ => None,
        };
        let request = match asked {
            Asked::Get if key >= FILES_FROM => Request::ReadFile { path: name },
            Asked::Get => Request::Get { key: name },
            Asked::Put(_) => Request::Put { key: name, value: &value },
            Asked::Swap(..) => Request::CompareAndSwap {
                key: name,
                expected: expected.as_deref().map_or(Expected::Absent, Expected::Value),
                value: &value,
            },
            Asked::Delete => Request::Delete { key: name },
            Asked::Create(_) => Request::CreateFile { path: name, contents: &value },
        };
        self.writes += u64::from(asked.write().is_some());
        let is_anywhere = asked == Asked::Get && self.random.u32(..100) < ANYWHERE_PERCENT;
        let begin = self.now();
        let result = if is_anywhere {
            let ticket = self.reader.submit_read(request, Consistency::Linearizable);
            ticket.and_then(|ticket| self.reader.wait(ticket))
        } else {
            self.client.call(request)
        };
        let end = self.now();
        let told = told(asked, result).with_context(|| format!("client {}, {}", self.id, key_name(key)))?;
        match told {
            Told::Found { write, .. } => self.see(key, Some(write)),
            Told::Absent => self.see(key, None),
            Told::Unequal(found) => self.see(key, found),
            Told::Done(_) => self.see(key, asked.write()),
            Told::UnequalNotKept | Told::Exists(_) | Told::DidNotHappen | Told::Unknown => {}
        }
        self.history.push(Operation { client: self.id, key, asked, begin, end, told });
        shared.operations.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn see(&mut self, key: u32, what: Option<WriteId>) {
        if key < FILES_FROM {
            self.seen.insert(key, what);
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).expect("less than centuries")
    }
}

/// The answer as the checker knows it.
fn told(asked: Asked, result: Result<Answer, Error>) -> anyhow::Result<Told> {
    let write = |value: &[u8]| WriteId::of_value(value).context("a value that no client wrote");
    Ok(match (asked, result) {
        (_, Err(error)) => match error.outcome() {
            Outcome::DidNotHappen => Told::DidNotHappen,
            Outcome::Unknown => Told::Unknown,
        },
        (Asked::Get, Ok(Answer::Value { value, create_revision, modify_revision, version })) => Told::Found {
            write: write(&value)?,
            created: create_revision.0,
            modified: modify_revision.0,
            version: version.0,
        },
        (Asked::Get, Ok(Answer::Read { found: Some(found), .. })) => {
            let Found { value, create_revision, modify_revision, version } = found;
            Told::Found {
                write: write(&value)?,
                created: create_revision.0,
                modified: modify_revision.0,
                version: version.0,
            }
        }
        (Asked::Get, Ok(Answer::Absent | Answer::Read { found: None, .. })) | (Asked::Delete, Ok(Answer::NotThere)) => {
            Told::Absent
        }
        (Asked::Put(_), Ok(Answer::Written { revision }))
        | (Asked::Swap(..), Ok(Answer::Swapped { revision }))
        | (Asked::Delete, Ok(Answer::Deleted { revision }))
        | (Asked::Create(_), Ok(Answer::Created { revision })) => Told::Done(revision.0),
        (Asked::Swap(..), Ok(Answer::Unequal { current })) => {
            Told::Unequal(current.map(|value| write(&value)).transpose()?)
        }
        (Asked::Swap(..), Ok(Answer::UnequalNotKept)) => Told::UnequalNotKept,
        (Asked::Create(_), Ok(Answer::Exists { revision })) => Told::Exists(revision.0),
        (asked, Ok(answer)) => anyhow::bail!("{asked:?} was answered by {answer:?}"),
    })
}

/// Kills and pauses.
struct Nemesis {
    random: fastrand::Rng,
    kills: u64,
    pauses: u64,
    masters_hit: u64,
    /// Won in the lives that have ended.
    elections: u64,
    /// Answered in these.
    lease_reads: u64,
    local_reads: u64,
}

impl Nemesis {
    fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            kills: 0,
            pauses: 0,
            masters_hit: 0,
            elections: 0,
            lease_reads: 0,
            local_reads: 0,
        }
    }

    /// Reads what a replica has counted, because it is about to be ended.
    fn life_ends(&mut self, cell: &TortureCell, id: u16) {
        if let Some(status) = cell.status(id) {
            self.elections += status.counters.engine.elections_won;
            self.lease_reads += status.counters.engine.lease_reads;
            self.local_reads += status.counters.engine.local_reads;
        }
    }

    fn run(&mut self, options: &LinearizeOptions, cell: &mut TortureCell, shared: &Shared) -> anyhow::Result<()> {
        let start = Instant::now();
        let mut told = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(self.random.u64(LOAD_TIME)));
            let operations = shared.operations.load(Ordering::SeqCst);
            let enough =
                operations >= options.operations && self.kills >= options.kills && self.pauses >= options.pauses;
            if enough || shared.stopping.load(Ordering::SeqCst) {
                return Ok(());
            }
            anyhow::ensure!(
                start.elapsed() < Duration::from_secs(options.seconds_max),
                "void: after {} s only {operations} operations, {} kills and {} pauses",
                options.seconds_max,
                self.kills,
                self.pauses
            );
            if told.elapsed() > Duration::from_secs(5) {
                told = Instant::now();
                eprintln!("{operations} operations, {} kills, {} pauses", self.kills, self.pauses);
            }
            self.strike(options, cell)?;
        }
    }

    fn strike(&mut self, options: &LinearizeOptions, cell: &mut TortureCell) -> anyhow::Result<()> {
        let master = cell.master()?;
        let victim = if self.random.u32(..100) < MASTER_PERCENT {
            master
        } else {
            let ids = cell.ids();
            ids[self.random.usize(..ids.len())]
        };
        self.masters_hit += u64::from(victim == master);
        // Whatever is owed more of.
        let owed = |done: u64, wanted: u64| wanted.saturating_sub(done);
        let kills = owed(self.kills, options.kills) + 1;
        let pauses = owed(self.pauses, options.pauses) + 1;
        if self.random.u64(..kills + pauses) < kills && options.kills > 0 {
            self.kills += 1;
            self.life_ends(cell, victim);
            cell.kill(&[victim])?;
            std::thread::sleep(Duration::from_millis(self.random.u64(AWAY_TIME)));
            cell.bring_back(&[victim])?;
        } else if options.pauses > 0 {
            self.pauses += 1;
            cell.pause(victim)?;
            std::thread::sleep(Duration::from_millis(self.random.u64(PAUSE_TIME)));
            cell.resume(victim)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_planted_stale_read_is_found() {
        let mut history = Vec::new();
        for number in 1..200_u64 {
            let write = WriteId { client: 1, number };
            let begin = number * 100;
            let key = number as u32 % 3;
            let created = if number <= 3 { number } else { u64::from(if key == 0 { 3 } else { key }) };
            let operation = |begin, asked, told| Operation { client: 1, key, asked, begin, end: begin + 10, told };
            history.push(operation(begin, Asked::Put(write), Told::Done(number)));
            let version = (number - created) / 3 + 1;
            let found = Told::Found { write, created, modified: number, version };
            history.push(operation(begin + 20, Asked::Get, found));
        }
        assert!(matches!(linear::check(&history, key_name), Verdict::Linearizable(_)));
        for seed in 0..50 {
            let mut history = history.clone();
            let what = plant(&mut history, seed).unwrap();
            let verdict = linear::check(&history, key_name);
            assert!(matches!(verdict, Verdict::Violation(_)), "{what}: {verdict:?}");
        }
    }
}
