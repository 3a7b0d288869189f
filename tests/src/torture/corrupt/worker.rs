//! Runs cases, one after the other, in a process of its own: a damaged page of a database ends the process that meets it, as it
//! ends a replica's, and what the next start makes of it is a part of the case.
//!
//! It reads a line for each case, its number, and `again` if the one before was ended by it; and writes one with what became
//! of it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};
use synod_api::{Answer, Command, Operation, Sequence, SessionId};
use synod_node::introduction::IntroductionError;
use synod_node::start::{self, FirstStart, StartError};
use synod_node::status::DamageStatus;
use synod_paxos::{Slot, VotingStatus};
use synod_wal::directory::segment_path;

use super::damage::{Case, Kind, Scope, cases, damage};
use super::in_process::{InProcess, Running, Written, config, database_at_work, replica_dir};
use super::sample::{BLOCK_BYTES, Plan, REPLICAS, before_dir};

/// Simulated: enough for leases, elections, repairs, and a database to be rebuilt.
const HEALS_TIME_MAX: u64 = 60_000_000_000;
/// A cell that does not heal says why by then.
const SAYS_WHY_TIME_MAX: u64 = 10_000_000_000;
/// How often whoever could not start tries again, as a supervisor would have it.
const STARTS_MAX: u32 = 2;

const WRONG_DATA: &str = "WRONG DATA";

/// What the parent tells a worker.
#[derive(Args, Clone, Debug)]
pub struct WorkerOptions {
    /// The sample
    #[arg(long)]
    pub sample: PathBuf,
    /// Where to break a copy of it
    #[arg(long)]
    pub work: PathBuf,
    /// What decides the bytes of damage
    #[arg(long)]
    pub seed: u64,
}

/// How a case ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub enum Ending {
    /// Nobody lost anything.
    Harmless,
    /// What the log lost, if anything that counts, came back from the others.
    Repaired,
    /// The database is another replica's now, or was made again from the own log.
    Rebuilt,
    /// Who lost the end of its log rejoined.
    Rejoined,
    /// No good copy was left, and that was said.
    Stopped,
}

impl Ending {
    /// All of them.
    pub const ALL: [Ending; 5] =
        [Ending::Harmless, Ending::Repaired, Ending::Rebuilt, Ending::Rejoined, Ending::Stopped];

    /// In the report.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Ending::Harmless => "harmless",
            Ending::Repaired => "repaired",
            Ending::Rebuilt => "rebuilt",
            Ending::Rejoined => "rejoined",
            Ending::Stopped => "stopped",
        }
    }
}

/// What a worker says of a case.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Verdict {
    pub(super) ending: Option<Ending>,
    /// What must not be.
    pub(super) violation: Option<String>,
    /// Why it stopped.
    pub(super) why: Option<String>,
}

/// Runs cases until standard input ends.
pub fn main(options: &WorkerOptions) -> anyhow::Result<()> {
    // As `synod serve` has it.
    synod_store::end_on_own_panics(database_at_work);
    synod_node::serve::abort_on_panics();
    let plan = Plan::read(&options.sample)?;
    let cases = cases(&plan);
    let mut bench = Bench::new(options, plan)?;
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (number, again) = line.split_once(' ').map_or((line.as_str(), false), |(number, _)| (number, true));
        let number: usize = number.parse().context("the number of a case")?;
        let case = cases.get(number).with_context(|| format!("there is no case {number}"))?;
        let verdict = match bench.run(*case, number as u64, again) {
            Ok((ending, why)) => Verdict { ending: Some(ending), violation: None, why },
            Err(error) => Verdict { ending: None, violation: Some(format!("{error:#}")), why: None },
        };
        writeln!(out, "{}", serde_json::to_string(&verdict)?)?;
        out.flush()?;
    }
    Ok(())
}

/// A file as it was.
struct Original {
    /// Up to the last byte that is not zero.
    bytes: Vec<u8>,
    length: u64,
    /// Of the copy, when it was put there.
    inode: u64,
}

/// A copy of the sample, which is as the sample at the beginning of each case.
struct Bench {
    sample: PathBuf,
    work: PathBuf,
    seed: u64,
    plan: Plan,
    originals: BTreeMap<u16, BTreeMap<String, Original>>,
}

impl Bench {
    fn new(options: &WorkerOptions, plan: Plan) -> anyhow::Result<Self> {
        let WorkerOptions { sample, work, seed } = options.clone();
        let mut originals = BTreeMap::new();
        for id in 1..=REPLICAS {
            let mut of_one = BTreeMap::new();
            for entry in fs::read_dir(replica_dir(&sample, id))? {
                let entry = entry?;
                let name = entry.file_name().into_string().ok().context("our own names are text")?;
                let mut bytes = fs::read(entry.path())?;
                let length = bytes.len() as u64;
                bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1));
                of_one.insert(name, Original { bytes, length, inode: 0 });
            }
            originals.insert(id, of_one);
        }
        Ok(Self { sample, work, seed, plan, originals })
    }

    /// Puts files of one replica's directory back that are others than they were; what was written into them is undone.
    fn put_back(&mut self, id: u16) -> anyhow::Result<()> {
        let dir = replica_dir(&self.work, id);
        fs::create_dir_all(&dir)?;
        let originals = self.originals.get_mut(&id).expect("it has a directory");
        for entry in fs::read_dir(&dir)? {
            let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
            match name.to_str().is_some_and(|name| originals.contains_key(name)) {
                true => {}
                false if path.is_dir() => fs::remove_dir_all(path)?,
                false => fs::remove_file(path)?,
            }
        }
        for (name, original) in originals {
            let path = dir.join(name);
            let now = fs::metadata(&path).ok();
            let is_there = now.is_some_and(|now| now.ino() == original.inode && now.len() == original.length);
            if is_there {
                continue;
            }
            let _ = fs::remove_file(&path);
            let file = File::options().create_new(true).write(true).open(&path)?;
            file.write_all_at(&original.bytes, 0)?;
            file.set_len(original.length)?;
            original.inode = file.metadata()?.ino();
        }
        Ok(())
    }

    fn run(&mut self, case: Case, number: u64, again: bool) -> anyhow::Result<(Ending, Option<String>)> {
        if !again {
            for id in 1..=REPLICAS {
                self.put_back(id)?;
            }
            self.damage(case, number)?;
        }
        let cell = InProcess::new(&self.work, REPLICAS);
        let mut trial = Trial { case, plan: &self.plan, cell, lost: BTreeMap::new() };
        let ending = trial.run();
        let why = trial.why();
        let written = trial.cell.running.iter_mut().map(|(id, running)| (*id, running.take_written()));
        let written: Vec<_> = written.collect();
        drop(trial);
        let outcome = ending.and_then(|ending| {
            if ending != Ending::Stopped && case.scope == Scope::One {
                self.starts_alone(1)?;
            }
            Ok((ending, (ending == Ending::Stopped).then_some(why)))
        });
        if again || outcome.is_err() {
            self.distrust_all();
        } else {
            self.undo(case, written)?;
        }
        outcome
    }

    fn damage(&self, case: Case, number: u64) -> anyhow::Result<()> {
        for id in case.scope.victims() {
            let dir = replica_dir(&self.work, id);
            // The next one may be a victim too: its file as it was.
            let next = replica_dir(&self.sample, id % REPLICAS + 1);
            let mut random = fastrand::Rng::with_seed(self.seed ^ number << 8 ^ u64::from(id));
            let place = case.place(&self.plan, &dir, id);
            damage(&place, case.kind, (&before_dir(&self.sample, id), &next), &mut random)?;
        }
        Ok(())
    }

    /// What was flushed, and what was damaged, is as it was.
    fn undo(&mut self, case: Case, written: Vec<(u16, Vec<Written>)>) -> anyhow::Result<()> {
        for (id, written) in written {
            let dir = replica_dir(&self.work, id);
            for Written { segment, offset, before } in written.into_iter().rev() {
                match File::options().write(true).open(segment_path(&dir, segment)) {
                    Ok(file) => file.write_all_at(&before, offset)?,
                    // Set aside with a log that was lost.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        for id in case.scope.victims() {
            let place = case.place(&self.plan, &replica_dir(&self.work, id), id);
            let name = place.path.file_name().and_then(|name| name.to_str()).context("our own names are text")?;
            let original = self.originals.get_mut(&id).and_then(|files| files.get_mut(name));
            let original = original.with_context(|| format!("{name} is none of the sample's"))?;
            if Kind::OF_FILES.contains(&case.kind) || case.kind == Kind::Truncated || !place.path.exists() {
                original.inode = 0;
                continue;
            }
            let file = File::options().write(true).open(&place.path)?;
            for offset in place.offsets {
                let mut block = vec![0; BLOCK_BYTES as usize];
                let from = original.bytes.len().min(offset as usize);
                let to = original.bytes.len().min(from + block.len());
                block[..to - from].copy_from_slice(&original.bytes[from..to]);
                file.write_all_at(&block, offset)?;
            }
        }
        Ok(())
    }

    fn distrust_all(&mut self) {
        self.originals.values_mut().flat_map(BTreeMap::values_mut).for_each(|original| original.inode = 0);
    }

    /// What was healed is whole: the next start needs nobody.
    fn starts_alone(&self, id: u16) -> anyhow::Result<()> {
        let config = config(&self.work, id, REPLICAS);
        let nobody = |_: &synod_node::config::Config| {
            Err(IntroductionError::NotKnown { dir: PathBuf::new(), last: "nobody is asked".to_owned() })
        };
        let opened = start::open_asking(&config, FirstStart::Refused, &nobody).context("the start after it")?;
        ensure!(opened.start.quarantined.is_none(), "the next start is in quarantine again");
        // The last ones need not be known to be chosen: whoever was rebuilt may have heard so, and not have written it down yet.
        let recovered = &opened.start.recovered;
        let has = (recovered.chosen.0 + 1..).take_while(|slot| recovered.accepted.contains_key(&Slot(*slot))).last();
        let has = has.unwrap_or(recovered.chosen.0);
        ensure!(has >= self.plan.chosen, "the next start has lost it again: {:?}", recovered.lost);
        Ok(())
    }
}

struct Trial<'a> {
    case: Case,
    plan: &'a Plan,
    cell: InProcess,
    /// Those that do not start, and why.
    lost: BTreeMap<u16, StartError>,
}

impl Trial<'_> {
    fn run(&mut self) -> anyhow::Result<Ending> {
        for _ in 0..STARTS_MAX {
            // Those who suffered nothing first: they are up when the others ask.
            for id in self.cell.ids().collect::<Vec<_>>().into_iter().rev() {
                if self.cell.running.contains_key(&id) {
                    continue;
                }
                match self.cell.start(id) {
                    Ok(()) => drop(self.lost.remove(&id)),
                    Err(error) => drop(self.lost.insert(id, error)),
                }
            }
            if self.lost.is_empty() {
                break;
            }
        }
        if let Some((id, error)) = self.lost.iter().find(|(_, error)| !is_state_lost(error)) {
            bail!("replica {id} does not start: {error}");
        }
        if self.may_stop() {
            return self.stopped_or_healed();
        }
        if let Some((id, error)) = self.lost.iter().next() {
            bail!("replica {id} does not start, though a majority kept its state: {error}");
        }
        self.healed(HEALS_TIME_MAX)
    }

    /// Whether there may be no good copy left: of what was promised by too many, or of what was accepted by all.
    fn may_stop(&self) -> bool {
        let f = usize::from(REPLICAS / 2);
        let lost_state = self.lost.len() + self.cell.running.values().filter(|running| running.rejoins).count();
        lost_state > f || self.case.scope == Scope::All || self.is_end_in_doubt()
    }

    /// Whether a majority may have accepted something behind the last slot, and has lost it: several frames in a row, so near the
    /// end of the log that nothing behind them says that there was nothing. No copy can be good of what nobody knows to be.
    fn is_end_in_doubt(&self) -> bool {
        let in_doubt = |running: &&Running| running.engine.replica().lost_slots() > 0 && running.report.holes > 0;
        let behind = |running: &&Running| {
            let lost = &running.report.lost;
            lost.iter().any(|lost| lost.known_slots().is_none())
        };
        let count = self.cell.running.values().filter(in_doubt).filter(behind).count();
        count > usize::from(REPLICAS / 2)
    }

    fn stopped_or_healed(&mut self) -> anyhow::Result<Ending> {
        let patience = if self.lost.is_empty() { HEALS_TIME_MAX } else { SAYS_WHY_TIME_MAX };
        let healed = if self.lost.is_empty() { self.healed(patience) } else { self.stands_still(patience) };
        let Err(error) = healed else { return healed };
        let why = self.why();
        ensure!(!why.is_empty() && !format!("{error:#}").contains(WRONG_DATA), "it does not say why: {error:#}");
        self.serves_nothing_else()?;
        Ok(Ending::Stopped)
    }

    fn stands_still(&mut self, patience: u64) -> anyhow::Result<Ending> {
        self.cell.turn_until(patience, |_| None::<()>);
        bail!("too many have lost their state")
    }

    /// Why it stopped, in its own words.
    fn why(&self) -> String {
        let starts = self.lost.iter().map(|(id, error)| format!("replica {id} does not start: {error}"));
        let running = self.cell.running.iter().filter_map(|(id, running)| {
            let held_up = DamageStatus::of(&running.engine).held_up;
            let why = held_up.or(running.engine.digest_status().quarantine)?;
            Some(format!("replica {id}: {why}"))
        });
        starts.chain(running).collect::<Vec<_>>().join("; ")
    }

    /// Whoever answers reads has what was acknowledged.
    fn serves_nothing_else(&mut self) -> anyhow::Result<()> {
        if let Some(master) = self.cell.master() {
            has(self.plan, self.cell.running.get_mut(&master).expect("it runs"), None)
                .with_context(|| format!("replica {master}, the master"))?;
        }
        Ok(())
    }

    /// All are whole, equal and right, and do what they are asked.
    fn healed(&mut self, patience: u64) -> anyhow::Result<Ending> {
        let (key, value) = (&b"after/it"[..], &b"it heals"[..]);
        let sequence = Sequence(self.plan.sequence);
        let command = Command {
            session: SessionId(self.plan.session),
            sequence,
            unanswered_from: sequence,
            operation: Operation::Put { key, value },
        };
        let answer =
            self.cell.done(patience, &command).with_context(|| format!("nobody serves: {}", self.account()))?;
        ensure!(matches!(answer, Answer::Written { .. }), "a write is answered {answer:?}");
        self.cell
            .turn_until(patience, |cell| are_whole(cell).then_some(()))
            .with_context(|| format!("it does not heal: {}", self.account()))?;
        for (id, running) in &mut self.cell.running {
            has(self.plan, running, Some((key, value))).with_context(|| format!("replica {id}"))?;
        }
        Ok(self.ending())
    }

    fn ending(&self) -> Ending {
        let of = |running: &Running| {
            let counters = running.engine.counters();
            let is_rebuilt = running.began_in_quarantine || counters.rebuilds > 0 || counters.snapshots_installed > 0;
            match () {
                () if running.rejoins => Ending::Rejoined,
                () if is_rebuilt => Ending::Rebuilt,
                () if running.report.holes > 0 => Ending::Repaired,
                () => Ending::Harmless,
            }
        };
        self.cell.running.values().map(of).max().expect("somebody runs")
    }

    /// How far everybody is, for whoever has to find out why.
    fn account(&self) -> String {
        let of = |(id, running): (&u16, &Running)| {
            let replica = running.engine.replica();
            let digests = running.engine.digest_status();
            format!(
                "replica {id}: {:?}, {:?}, chosen {}, lost slots {}, held up {:?}, quarantine {:?}, digest {:?}",
                replica.role(),
                replica.voting_status(),
                replica.chosen(),
                replica.lost_slots(),
                replica.held_up(),
                digests.quarantine,
                digests.digest
            )
        };
        self.cell.running.iter().map(of).collect::<Vec<_>>().join("; ")
    }
}

fn is_state_lost(error: &StartError) -> bool {
    matches!(error, StartError::StateLost { .. })
}

/// Everybody votes, has lost nothing, and has the same.
fn are_whole(cell: &InProcess) -> bool {
    let all = cell.running.values();
    let views: Vec<_> = all
        .map(|running| {
            let (engine, replica) = (&running.engine, running.engine.replica());
            // Slots that it may have lost are above what is chosen: values of no slot that there is.
            let is_whole = replica.voting_status() == VotingStatus::Voting && !replica.is_quarantined();
            (is_whole, replica.chosen(), engine.digest_status().digest)
        })
        .collect();
    views.len() == usize::from(REPLICAS) && views[0].0 && views.windows(2).all(|pair| pair[0] == pair[1])
}

/// All that was acknowledged, and nothing else under these names.
fn has(plan: &Plan, running: &mut Running, more: Option<(&[u8], &[u8])>) -> anyhow::Result<()> {
    let acknowledged = plan.keys.iter().map(|(key, value)| (key.as_bytes(), &value[..]));
    for (key, expected) in acknowledged.chain(more) {
        let found = running.read(key);
        let is_right = matches!(&found, Answer::Value { value, .. } if value[..] == *expected);
        ensure!(is_right, "{WRONG_DATA}: {} holds {found:?}", String::from_utf8_lossy(key));
    }
    Ok(())
}
