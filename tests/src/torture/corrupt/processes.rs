//! A sample of the cases on a cell of real processes: stopped in order, damaged, started again.
//!
//! A round damages two replicas of five, each at a place of its own: what one has lost the others have. Every fourth round damages
//! the same slot of the log on four, so that one good copy remains. The cell is the same in all rounds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use synod_client::{Client, Options};
use synod_node::operator::OperatorRequest;
use synod_node::serve::exit;
use synod_node::status::Status;

use super::CorruptReport;
use super::damage::{Case, Kind, Place as Spot, Scope, Target, damage};
use super::sample::{BLOCK_BYTES, LogBlock, REPLICAS, log_blocks, pages};
use super::worker::Ending;
use crate::torture::cell::{Place, TortureCell};
use crate::torture::stop::Stop;

const KEYS: u32 = 96;
/// Entries of the log before the first round, and more before each.
const ENTRIES: u32 = 1_000;
const ENTRIES_A_ROUND: u32 = 20;
const VALUE_BYTES: std::ops::Range<usize> = 20..700;
/// The log is cut now and then, so that its segments are used again.
const SNAPSHOT_EVERY: u32 = 8;
/// The same slot on four.
const SAME_SLOT_EVERY: u32 = 4;
const HEALS_TIME_MAX: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(20);
const OPERATOR_TIME_MAX: Duration = Duration::from_secs(5);
/// The database is looked through at the start, at once and fast: a page that nobody needs is found, too.
const FLAGS: [&str; 4] = ["--segment-mb", "4", "--scrub-mb-per-s", "1024"];

/// Runs so many rounds.
pub(super) fn run(
    rounds: u32,
    seed: u64,
    place: &Place,
    report: &mut CorruptReport,
    stop: &Stop,
) -> anyhow::Result<()> {
    let cell = TortureCell::start(REPLICAS, place.path().join("cell"), &FLAGS, stop)?;
    let before = place.path().join("before");
    let random = fastrand::Rng::with_seed(seed ^ 1);
    let mut field = Field { cell, before, random, keys: BTreeMap::new(), written: 0 };
    field.write(ENTRIES)?;
    field.keep_copies()?;
    let began = Instant::now();
    for round in 1..=rounds {
        let (cases, same) = field.round(round).with_context(|| format!("round {round}"))?;
        let told: Vec<String> = cases.iter().map(|(case, ending)| format!("{case}: {}", ending.name())).collect();
        let seconds = began.elapsed().as_secs();
        eprintln!("round {round}/{rounds}, {seconds} s: {}", told.join("; "));
        for (case, ending) in cases.into_iter().take(if same { 1 } else { usize::MAX }) {
            report.count_on_processes(case, ending);
        }
    }
    field.cell.stop()
}

struct Field {
    cell: TortureCell,
    /// Copies of the directories as they were before the first round: what blocks held earlier.
    before: PathBuf,
    random: fastrand::Rng,
    /// What was acknowledged.
    keys: BTreeMap<String, Vec<u8>>,
    written: u64,
}

impl Field {
    fn client(&self) -> anyhow::Result<Client> {
        let endpoints = self.cell.endpoints();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        Ok(Client::connect(&endpoints, Options::default())?)
    }

    fn write(&mut self, entries: u32) -> anyhow::Result<()> {
        let mut client = self.client()?;
        for _ in 0..entries {
            self.written += 1;
            let key = format!("key/{:03}", self.random.u32(..KEYS));
            let mut value = format!("{key} {} ", self.written).into_bytes();
            let length = self.random.usize(VALUE_BYTES);
            value.extend(std::iter::repeat_with(|| self.random.alphanumeric() as u8).take(length));
            client.put(key.as_bytes(), &value).context("a write")?;
            self.keys.insert(key, value);
        }
        Ok(())
    }

    /// Everything that was acknowledged is there.
    fn read_back(&mut self) -> anyhow::Result<()> {
        let mut client = self.client()?;
        for (key, expected) in &self.keys {
            let found = client.get(key.as_bytes()).context("a read")?;
            let found = found.map(|found| found.value.to_vec());
            ensure!(found.as_ref() == Some(expected), "WRONG DATA: {key} holds {found:?}");
        }
        Ok(())
    }

    fn keep_copies(&self) -> anyhow::Result<()> {
        for id in self.cell.ids() {
            let to = self.before.join(id.to_string());
            fs::create_dir_all(&to)?;
            for entry in fs::read_dir(self.cell.replica_dir(id))? {
                let entry = entry?;
                if entry.file_name().to_string_lossy().starts_with("wal-") || entry.file_name() == "database" {
                    fs::copy(entry.path(), to.join(entry.file_name()))?;
                }
            }
        }
        Ok(())
    }

    /// One of every replica, of all that is there.
    fn snapshots(&mut self) -> anyhow::Result<()> {
        let request = serde_json::to_string(&OperatorRequest::Snapshot)?;
        for id in self.cell.ids() {
            let count = |cell: &TortureCell| cell.status(id).map(|status| status.counters.engine.snapshots);
            let before = count(&self.cell).context("a replica does not answer")?;
            let endpoint = self.cell.endpoint(id);
            self.cell.wait_for("no snapshot", &[id], |cell| {
                let _ = synod_client::operate(&endpoint, &request, OPERATOR_TIME_MAX);
                (count(cell)? > before).then_some(())
            })?;
        }
        Ok(())
    }

    /// Damages some, and waits until all is well; says which cases that were, and whether they are one.
    fn round(&mut self, round: u32) -> anyhow::Result<(Vec<(Case, Ending)>, bool)> {
        self.write(ENTRIES_A_ROUND)?;
        if round % SNAPSHOT_EVERY == 1 {
            self.snapshots()?;
            self.write(ENTRIES_A_ROUND)?;
        }
        let is_same = round.is_multiple_of(SAME_SLOT_EVERY);
        let mut victims = self.cell.ids();
        self.random.shuffle(&mut victims);
        victims.truncate(Scope::Minority.victims().count());
        if is_same {
            victims = self.cell.ids();
            self.random.shuffle(&mut victims);
            victims.truncate(Scope::Majority.victims().count());
        }
        let mut lives = BTreeMap::new();
        for id in &victims {
            lives.insert(*id, self.cell.status(*id).context("it does not answer")?.life);
            self.cell.stop_replica(*id)?;
        }
        let kind = Kind::OF_BLOCKS[self.random.usize(..Kind::OF_BLOCKS.len() - 1)];
        let slot = if is_same { Some(self.shared_slot(&victims)?) } else { None };
        let mut cases = Vec::new();
        for id in &victims {
            let (spot, case) = match slot {
                Some(slot) => {
                    let (spot, target) = self.at_slot(*id, slot)?;
                    (spot, Case { target, kind, scope: Scope::Majority })
                }
                None => self.anywhere(*id)?,
            };
            cases.push((*id, case));
            self.damage(*id, &spot, case.kind)?;
        }
        for id in &victims {
            self.cell.start_replica(*id)?;
        }
        let statuses = self.heal().with_context(|| {
            cases.iter().map(|(id, case)| format!("replica {id}: {case}")).collect::<Vec<_>>().join("; ")
        })?;
        self.read_back().context("after it healed")?;
        self.tidy(&victims)?;
        let ended = cases.into_iter().map(|(id, case)| (case, ending(&statuses[&id], lives[&id])));
        Ok((ended.collect(), is_same))
    }

    fn damage(&mut self, id: u16, spot: &Spot, kind: Kind) -> anyhow::Result<()> {
        let next = self.cell.replica_dir(id % REPLICAS + 1);
        let before = self.before.join(id.to_string());
        damage(spot, kind, (&before, &next), &mut self.random)
    }

    /// A slot that all of these have in their logs.
    fn shared_slot(&mut self, ids: &[u16]) -> anyhow::Result<u64> {
        let mut shared: Option<Vec<u64>> = None;
        for id in ids {
            let (blocks, _) = log_blocks(&self.cell.replica_dir(*id), 0)?;
            let mut own: Vec<u64> = blocks.iter().filter_map(|block| block.slot).collect();
            if let Some(shared) = &shared {
                own.retain(|slot| shared.contains(slot));
            }
            shared = Some(own);
        }
        let shared = shared.filter(|shared| !shared.is_empty()).context("they share no slot")?;
        Ok(shared[self.random.usize(..shared.len())])
    }

    fn at_slot(&self, id: u16, slot: u64) -> anyhow::Result<(Spot, Target)> {
        let dir = self.cell.replica_dir(id);
        let (blocks, _) = log_blocks(&dir, 0)?;
        let number = blocks.iter().position(|block| block.slot == Some(slot)).context("it has the slot")?;
        Ok((spot(&dir, blocks[number]), Target::Log(number)))
    }

    /// Any place, and what happens there.
    fn anywhere(&mut self, id: u16) -> anyhow::Result<(Spot, Case)> {
        let dir = self.cell.replica_dir(id);
        let database = dir.join("database");
        let random = &mut self.random;
        let kind = Kind::OF_BLOCKS[random.usize(..Kind::OF_BLOCKS.len())];
        let of_file = Kind::OF_FILES[random.usize(..Kind::OF_FILES.len())];
        let (blocks, _) = log_blocks(&dir, 0)?;
        let (spot, target, kind) = match random.u8(..20) {
            0 => {
                let block = blocks[random.usize(..blocks.len())];
                (spot(&dir, LogBlock { offset: 0, ..block }), Target::Segment(block.segment), of_file)
            }
            1 | 2 => (Spot { path: database, offsets: vec![0] }, Target::Database, of_file),
            3 => (Spot { path: database, offsets: vec![0, BLOCK_BYTES] }, Target::Meta([true, true]), kind),
            4 => {
                let first = random.bool();
                let offset = if first { 0 } else { BLOCK_BYTES };
                (Spot { path: database, offsets: vec![offset] }, Target::Meta([first, !first]), kind)
            }
            5..8 => {
                let page = random.u64(2..pages(&dir)?.max(3));
                (Spot { path: database, offsets: vec![page * BLOCK_BYTES] }, Target::Page(page), kind)
            }
            _ => {
                let number = random.usize(..blocks.len());
                (spot(&dir, blocks[number]), Target::Log(number), kind)
            }
        };
        Ok((spot, Case { target, kind, scope: Scope::One }))
    }

    /// Waits until everybody is whole, votes, and has the same. Who met a damaged page is started again, as a supervisor would.
    fn heal(&mut self) -> anyhow::Result<BTreeMap<u16, Status>> {
        let give_up = Instant::now() + HEALS_TIME_MAX;
        loop {
            if let Some((id, status, last)) = self.cell.ended()? {
                if status != Some(exit::DATABASE_DAMAGED.into()) {
                    bail!("replica {id} ended with {status:?}, saying:\n{last}");
                }
                self.cell.start_replica(id)?;
            }
            let statuses: BTreeMap<u16, Status> =
                self.cell.ids().into_iter().filter_map(|id| Some((id, self.cell.status(id)?))).collect();
            if are_whole(&statuses) {
                return Ok(statuses);
            }
            if Instant::now() > give_up {
                let account: Vec<String> = statuses.values().map(account).collect();
                bail!("it does not heal within {HEALS_TIME_MAX:?}: {}", account.join("; "));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// What was set aside is for a person, who has seen it now.
    fn tidy(&self, victims: &[u16]) -> anyhow::Result<()> {
        for id in victims {
            for entry in fs::read_dir(self.cell.replica_dir(*id))? {
                let (path, name) = entry.map(|entry| (entry.path(), entry.file_name()))?;
                let name = name.to_string_lossy();
                if name.starts_with("lost-") {
                    fs::remove_dir_all(path)?;
                } else if name.starts_with("database.lost-") || name.starts_with("quarantine-") {
                    fs::remove_file(path)?;
                }
            }
        }
        Ok(())
    }
}

fn spot(dir: &Path, block: LogBlock) -> Spot {
    let path = synod_wal::directory::segment_path(dir, synod_wal::SegmentId(block.segment));
    Spot { path, offsets: vec![block.offset] }
}

fn ending(status: &Status, life_before: u64) -> Ending {
    let counters = &status.counters.engine;
    match () {
        () if status.life > life_before => Ending::Rejoined,
        () if counters.rebuilds > 0 || counters.snapshots_installed > 0 => Ending::Rebuilt,
        () if status.log.damage.holes > 0 => Ending::Repaired,
        () => Ending::Harmless,
    }
}

fn are_whole(statuses: &BTreeMap<u16, Status>) -> bool {
    let is_whole = |status: &Status| {
        let damage = &status.log.damage;
        status.voting == "voting"
            && status.digests.quarantine.is_none()
            && damage.slots_lost == damage.slots_repaired
            // The database was looked through, or is another replica's.
            && (status.scrub.rounds > 0 || status.counters.engine.snapshots_installed > 0)
    };
    let level: Vec<_> = statuses.values().map(|status| (status.chosen, status.digests.digest.clone())).collect();
    statuses.len() == usize::from(REPLICAS)
        && statuses.values().all(is_whole)
        && level[0].1.is_some()
        && level.windows(2).all(|pair| pair[0] == pair[1])
        && statuses.values().any(|status| status.is_master)
}

fn account(status: &Status) -> String {
    format!(
        "replica {}: {} in life {}, chosen {}, quarantine {:?}, {:?}, scrub {:?}",
        status.replica,
        status.voting,
        status.life,
        status.chosen,
        status.digests.quarantine,
        status.log.damage,
        status.scrub
    )
}
