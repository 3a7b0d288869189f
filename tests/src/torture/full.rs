//! `synod-torture full`: disks are filled under load, and emptied again. (`faults.md` 2.2.)

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use clap::Args;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;
use serde::Serialize;
use synod_api::Refusal;
use synod_client::{Cause, Client, Options};

use super::attack;
use super::cell::{Common, Place, TortureCell};
use super::client::Shared;
use super::durability::EXIT_UNAVAILABLE;
use super::load::Load;
use super::loop_device::{FileSystem, LoopDevice, check_available, within_own_mounts};
use super::power::Which;
use super::pulse::{Durations, milliseconds};
use super::stop::Stop;
use super::{Report, attack::REPLICAS};

const CLIENTS: u32 = 4;
/// Segments small enough to be filled soon, and large enough for a frame to be a small part of one: what is left of a segment is what
/// leases are renewed with. A lease short enough for many renewals on a full disk.
const SERVE_FLAGS: [&str; 12] = [
    "--segment-mb",
    "16",
    "--log-mb-max",
    "256",
    "--snapshot-log-mb",
    "16",
    "--heartbeat-ms",
    "50",
    "--lease-ms",
    "300",
    "--election-timeout-ms",
    "300",
];
const LEASE: Duration = Duration::from_millis(300);
/// The least that `mkfs.xfs` makes, and some; the file below it is sparse.
const DEVICE_BYTES: u64 = 448 << 20;
/// A cell lives so many cycles: each makes its database larger, by what its disk is full of.
const CYCLES_A_CELL: u32 = 3;
/// A new value of this size makes database and log grow.
const VALUE_BYTES: usize = 100 << 10;
/// What the others write meanwhile.
const BULK_BYTES_MAX: usize = 4 << 10;
/// A disk with no room for its log is full within this time under load.
const FULL_WITHIN: Duration = Duration::from_secs(60);
/// For so long it stays full, and reads are asked for.
const STAYS_FULL: Duration = Duration::from_secs(2);
const _: () = assert!(STAYS_FULL.as_millis() > 5 * LEASE.as_millis(), "leases run out, were they not renewed");
/// With room again a write is acknowledged within this time.
const BACK_WITHIN: Duration = Duration::from_secs(5);
const READ_EVERY: Duration = Duration::from_millis(20);
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

/// Fill the replicas' disks under load: writes must be refused for that reason, reads go on, and room bring writes back.
///
/// Each replica's directory is a small file system of its own, on a loop device over a file below --dir. In each cycle a file of the
/// command's own takes all the room there is on the disks of all three, of the master, or of a follower, in turn.
/// All three: writes must be refused with "the disk is full", the file and the bytes, reads be answered all the time, for many
/// leases; the file is removed, and writes must come back, in the same processes. The master: it must hand over to one with room, and
/// writes go on. A follower: writes go on, and with room again it must catch up. After each cycle what was acknowledged is read back,
/// and all three must be alike.
///
/// It runs in a mount namespace of its own. It needs root, loop devices, and the programs that it names if they are missing
/// (exit status 69: nothing was tested).
#[derive(Args, Clone, Debug)]
pub struct FullOptions {
    /// How many cycles, on each file system
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub cycles: u32,
    /// On what the replicas' directories are
    #[arg(long, value_enum, default_value = "both")]
    pub file_system: Which,
    /// What decides what is written [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// Whose disk is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Who {
    All,
    Master,
    Follower,
}

impl Who {
    const TURNS: [Who; 3] = [Who::All, Who::Master, Who::Follower];
}

/// What happened on one file system.
#[derive(Clone, Debug, Default, Serialize)]
pub struct FullReport {
    /// Which.
    pub file_system: String,
    /// What decided what was written.
    pub seed: u64,
    /// Cycles with all disks full, with the master's, with a follower's.
    pub cycles: [u32; 3],
    /// Writes that were refused because of it.
    pub refused: u64,
    /// Reads while disks were full; all were answered.
    pub reads: u64,
    /// Of the cell's writes, those that were acknowledged.
    pub acknowledged: u64,
    /// Read back, each checked.
    pub read_backs: u64,
    /// How often a full master handed over.
    pub handed_over: u64,
    /// The longest from room to an acknowledged write, in milliseconds.
    pub back_max_ms: u64,
    /// The median of it.
    pub back_p50_ms: u64,
    /// The longest pause of writes while only one disk was full, in milliseconds.
    pub pause_max_ms: u64,
    /// Acknowledged writes that were lost. Any number but 0 ends the command before there is a report.
    pub lost: u64,
}

impl Report for FullReport {
    fn text(&self) -> String {
        let [all, master, follower] = self.cycles;
        format!(
            "seed                  {}\ncycles                all full {all}, the master's {master}, a follower's {follower}\n\
             while full            {} writes refused, {} reads answered, {} masters handed over\n\
             writes back           p50 {} ms, max {} ms; with one disk full writes paused for {} ms at most\n\
             full on {}: {} cycles, {} acknowledged writes, {} read back, {} lost",
            self.seed,
            self.refused,
            self.reads,
            self.handed_over,
            self.back_p50_ms,
            self.back_max_ms,
            self.pause_max_ms,
            self.file_system,
            all + master + follower,
            self.acknowledged,
            self.read_backs,
            self.lost
        )
    }
}

/// Runs the command.
pub fn main(options: &FullOptions) -> anyhow::Result<ExitCode> {
    let file_systems = options.file_system.all();
    if let Err(error) = check_available(file_systems) {
        eprintln!("synod-torture: {error}");
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    within_own_mounts()?;
    let stop = Stop::on_signals()?;
    let seed = attack::seed(options.seed);
    for &file_system in file_systems {
        let mut report = FullReport { file_system: file_system.to_string(), seed, ..FullReport::default() };
        let mut back = Durations::default();
        let turns: Vec<Who> = Who::TURNS.into_iter().cycle().take(options.cycles as usize).collect();
        for (cell, turns) in turns.chunks(CYCLES_A_CELL as usize).enumerate() {
            let run = |place: &Place| {
                Full::start(place, file_system, &stop, seed ^ cell as u64)?.cycles(turns, &mut report, &mut back)
            };
            options.common.within("full", run).with_context(|| format!("{file_system}, seed {seed}"))?;
        }
        report.back_max_ms = milliseconds(back.quantile(1.0));
        report.back_p50_ms = milliseconds(back.quantile(0.5));
        super::print(&report, options.common.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Takes all the room that a file system has.
struct Ballast {
    file: File,
    bytes: u64,
    path: std::path::PathBuf,
}

impl Ballast {
    fn new(mount: &Path) -> anyhow::Result<Self> {
        let path = mount.join("ballast");
        let file = File::create(&path).context("cannot make a ballast")?;
        Ok(Self { file, bytes: 0, path })
    }

    /// All that there is by now.
    fn grow(&mut self) -> anyhow::Result<()> {
        for step in [64 << 20, 4 << 20, 256 << 10, 16 << 10, 4 << 10] {
            loop {
                match fallocate(&self.file, FallocateFlags::empty(), self.bytes, step) {
                    Ok(()) => self.bytes += step,
                    Err(Errno::NOSPC) => break,
                    Err(error) => bail!("growing the ballast: {error}"),
                }
            }
        }
        Ok(())
    }
}

impl Drop for Ballast {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            eprintln!("synod-torture: removing a ballast: {error}");
        }
    }
}

/// A cell on small disks. The cell goes before its disks.
struct Full {
    load: Load,
    client: Client,
    /// Values that were acknowledged, each under a key of its own.
    written: u64,
    cell: TortureCell,
    devices: Vec<LoopDevice>,
    mounts: Vec<std::path::PathBuf>,
}

impl Full {
    fn start(place: &Place, file_system: FileSystem, stop: &Stop, seed: u64) -> anyhow::Result<Self> {
        let cell_dir = place.path().join("cell");
        let mounts: Vec<_> = (1..=REPLICAS).map(|id| cell_dir.join(format!("replica-{id}"))).collect();
        let mount = |mount| LoopDevice::start(place.path(), file_system, DEVICE_BYTES, mount);
        let devices = mounts.iter().map(|path| mount(path)).collect::<anyhow::Result<_>>()?;
        let cell = TortureCell::start(REPLICAS, cell_dir, &SERVE_FLAGS, stop)?;
        let endpoints = cell.endpoints();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let options = Options { deadline: WRITE_DEADLINE, ..Options::default() };
        let client = Client::connect(&endpoints, options).context("the observer cannot connect")?;
        let load = Load::connect(&cell, CLIENTS, BULK_BYTES_MAX, seed)?;
        Ok(Self { load, client, written: 0, cell, devices, mounts })
    }

    fn cycles(mut self, turns: &[Who], report: &mut FullReport, back: &mut Durations) -> anyhow::Result<()> {
        for &who in turns {
            let files_from = self.load.recent_files();
            let Self { load, client, written, cell, mounts, .. } = &mut self;
            let mut cycle = Cycle { client, written, cell, mounts, report: &mut *report, back: &mut *back };
            load.run(|shared| cycle.run(who, shared)).with_context(|| format!("with the disk full of: {who:?}"))?;
            report.cycles[who as usize] += 1;
            self.load.read_back(&mut self.cell, &files_from)?;
            self.check_written()?;
        }
        let files_from = self.load.all_files();
        self.load.read_back(&mut self.cell, &files_from)?;
        report.read_backs += self.load.read_backs() + self.written;
        report.acknowledged += self.load.tally().acknowledged + self.written;
        self.cell.stop()?;
        drop(self.devices);
        Ok(())
    }

    fn check_written(&mut self) -> anyhow::Result<()> {
        for number in 0..self.written {
            let found = self.client.get(key(number).as_bytes()).context("reading back")?;
            let is_there = found.is_some_and(|found| *found.value == *value(number));
            ensure!(is_there, "LOST: {} is not what was written there", key(number));
        }
        Ok(())
    }
}

/// One cycle, under load.
struct Cycle<'a> {
    client: &'a mut Client,
    written: &'a mut u64,
    cell: &'a mut TortureCell,
    mounts: &'a [std::path::PathBuf],
    report: &'a mut FullReport,
    back: &'a mut Durations,
}

impl Cycle<'_> {
    fn run(&mut self, who: Who, shared: &Shared) -> anyhow::Result<()> {
        let master = self.cell.master()?;
        let victims = match who {
            Who::All => self.cell.ids(),
            Who::Master => vec![master],
            Who::Follower => vec![self.cell.others(master)[0]],
        };
        let mut ballasts = victims.iter().map(|&id| Ballast::new(&self.mounts[usize::from(id) - 1]));
        let mut ballasts = ballasts.by_ref().collect::<anyhow::Result<Vec<_>>>()?;
        shared.pulse.reset();
        self.fill(who, &victims, &mut ballasts)?;
        if who == Who::Master {
            self.cell.wait_for("no replica took over from the full master", &victims, |cell| {
                cell.master_among(&cell.others(victims[0]))
            })?;
            let status = self.cell.status(victims[0]).context("the master that was full does not answer")?;
            self.report.handed_over += status.counters.engine.handed_over_full;
        }
        self.stays_full(who, &mut ballasts)?;
        if who != Who::All {
            // One that is full keeps nobody from writing.
            let pause = shared.pulse.longest().0;
            self.report.pause_max_ms = self.report.pause_max_ms.max(milliseconds(pause));
            ensure!(pause < BACK_WITHIN, "with one disk full writes paused for {pause:?}");
        }
        let room_at = Instant::now();
        drop(ballasts);
        loop {
            match self.write() {
                Ok(()) => break,
                Err(error) if room_at.elapsed() < BACK_WITHIN => {
                    is_disk_full(&error).context("with room again")?;
                }
                Err(error) => bail!("with room again no write is taken after {:?}: {error}", room_at.elapsed()),
            }
        }
        if who == Who::All {
            self.back.push(room_at.elapsed());
        }
        self.cell.wait_for("a replica still says that its disk is full", &victims, |cell| {
            let is_over = |&id: &u16| cell.status(id).is_some_and(|status| status.log.disk_full.is_none());
            victims.iter().all(is_over).then_some(())
        })
    }

    /// Writes until the full disks are felt: by whoever writes, if all are full, else by the replica.
    fn fill(&mut self, who: Who, victims: &[u16], ballasts: &mut [Ballast]) -> anyhow::Result<()> {
        let give_up = Instant::now() + FULL_WITHIN;
        loop {
            ballasts.iter_mut().try_for_each(Ballast::grow)?;
            ensure!(Instant::now() < give_up, "the disk of {who:?} is full, and nobody says so");
            self.cell.check()?;
            match self.write() {
                Ok(()) => {}
                Err(error) => {
                    is_disk_full(&error)?;
                    self.report.refused += 1;
                    if who == Who::All {
                        return Ok(());
                    }
                }
            }
            let is_full = |&id: &u16| {
                let status = self.cell.status(id);
                status.is_some_and(|status| status.log.full && status.log.disk_full.is_some())
            };
            if who != Who::All && victims.iter().all(is_full) {
                return Ok(());
            }
        }
    }

    /// Reads, and writes, while it lasts.
    fn stays_full(&mut self, who: Who, ballasts: &mut [Ballast]) -> anyhow::Result<()> {
        let until = Instant::now() + STAYS_FULL;
        let mut at = 0;
        while Instant::now() < until {
            ballasts.iter_mut().try_for_each(Ballast::grow)?;
            self.cell.check()?;
            if *self.written > 0 {
                at = (at + 7) % *self.written;
                let found = self.client.get(key(at).as_bytes()).context("a read while disks are full")?;
                ensure!(found.is_some_and(|found| *found.value == *value(at)), "{} is another one", key(at));
                self.report.reads += 1;
            }
            match self.write() {
                Ok(()) => {}
                Err(error) if who == Who::All => {
                    is_disk_full(&error)?;
                    self.report.refused += 1;
                }
                // While mastership is on its way.
                Err(error) => is_disk_full(&error).context("with one disk full")?,
            }
            std::thread::sleep(READ_EVERY);
        }
        Ok(())
    }

    fn write(&mut self) -> Result<(), synod_client::Error> {
        let number = *self.written;
        self.client.put(key(number).as_bytes(), &value(number))?;
        *self.written += 1;
        Ok(())
    }
}

/// It says that it was the disk, and of which file.
fn is_disk_full(error: &synod_client::Error) -> anyhow::Result<()> {
    match &error.failure().cause {
        Cause::Refused(Refusal::DiskFull(why)) => {
            ensure!(why.contains("no room for") && why.contains("wal-"), "a refusal that says too little: {why}");
            Ok(())
        }
        _ => bail!("a write ended otherwise than with \"the disk is full\": {error}"),
    }
}

fn key(number: u64) -> String {
    format!("full/{number}")
}

fn value(number: u64) -> Vec<u8> {
    (0..VALUE_BYTES).map(|at| (at as u64 / 7 + number * 13) as u8).collect()
}
