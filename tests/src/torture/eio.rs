//! `synod-torture eio`: one I/O after the other of a replica's disk fails. (`faults.md` 2.2.)

use std::collections::BTreeMap;
use std::fmt;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use serde::Serialize;
use synod_node::serve::exit;

use super::Report;
use super::attack::{self, REPLICAS};
use super::cell::{Common, Place, TortureCell};
use super::client::Shared;
use super::device::require;
use super::durability::EXIT_UNAVAILABLE;
use super::faulty_disk::{FaultyDisk, Wish};
use super::load::Load;
use super::loop_device::within_own_mounts;
use super::mounted_disk::MountedDisk;
use super::stop::Stop;

/// Whose disk fails.
const VICTIM: u16 = 1;
const CLIENTS: u32 = 3;
const SERVE_FLAGS: [&str; 12] = [
    "--segment-mb",
    "4",
    "--log-mb-max",
    "64",
    "--snapshot-log-mb",
    "4",
    "--heartbeat-ms",
    "50",
    "--lease-ms",
    "300",
    "--election-timeout-ms",
    "300",
];
const BULK_BYTES_MAX: usize = 16 << 10;
const DEVICE_BYTES: u64 = 512 << 20;
/// After so many indexes everything written meanwhile is read back.
const READ_BACK_EVERY: u64 = 25;
/// The k-th I/O comes within this time: under load there are hundreds a second.
const COMES_WITHIN: Duration = Duration::from_secs(20);
/// So long after it a replica may go on as if nothing had happened; then it is taken to go on.
const ENDS_WITHIN: Duration = Duration::from_millis(700);
/// The others acknowledge so many writes within this time after the fault.
const WRITES_AGAIN: u64 = 20;
const WRITES_WITHIN: Duration = Duration::from_secs(5);
/// What a laggard missed.
const AWAY: Duration = Duration::from_millis(200);
const LOOK: Duration = Duration::from_millis(5);

/// The ends that a failing disk may have.
const STATUSES: [(u8, &str); 4] = [
    (exit::LOG_FAILED, "disk failed"),
    (exit::DATABASE_UNREADABLE, "page unreadable"),
    (exit::DATABASE_DAMAGED, "page damaged"),
    (exit::DISK_FULL, "disk full"),
];

/// What the replica whose disk fails is at that moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Role {
    /// The master
    Master,
    /// A follower
    Follower,
    /// A replica that starts, and lags behind
    Laggard,
    /// One after the other
    All,
}

impl Role {
    fn all(self) -> &'static [Role] {
        match self {
            Role::Master => &[Role::Master],
            Role::Follower => &[Role::Follower],
            Role::Laggard => &[Role::Laggard],
            Role::All => &[Role::Master, Role::Follower, Role::Laggard],
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Role::Master => "master",
            Role::Follower => "follower",
            Role::Laggard => "laggard",
            Role::All => "all",
        })
    }
}

/// Fail the k-th I/O of one replica's disk, for each k; the cell must go on, and the replica end for a reason, or go on.
///
/// One of three replicas is on a disk of the command's own: ext4 on a loop device on nbdfuse on an NBD server that fails the k-th
/// request from now with EIO, once (odd k) or from then on (even k). Read, write or flush, of the log, the database or the file
/// system's own blocks: whatever comes. The other two must go on acknowledging writes. The replica may go on, or must end with one of
/// the documented statuses and a reason on standard error; then the disk is whole again, the file system is mounted again, and the
/// replica must start, and catch up. Every 25 indexes, and at the end, what was acknowledged is read back.
///
/// It prints a line for each k: what failed, and what became of the replica. It needs root, loop devices, FUSE, and the programs that
/// it names if they are missing (exit status 69: nothing was tested).
#[derive(Args, Clone, Debug)]
pub struct EioOptions {
    /// The last k
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..))]
    pub first: u64,
    /// The first k, to go on where a run was ended
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    pub from: u64,
    /// What the replica is
    #[arg(long, value_enum, default_value = "all")]
    pub role: Role,
    /// What decides what is written [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// What happened in one role.
#[derive(Clone, Debug, Default, Serialize)]
pub struct EioReport {
    /// Which.
    pub role: String,
    /// What decided what was written.
    pub seed: u64,
    /// The first and the last k.
    pub indexes: (u64, u64),
    /// What the I/Os that failed wanted.
    pub failed: BTreeMap<String, u64>,
    /// What became of the replica, by exit status, or that it went on.
    pub ends: BTreeMap<String, u64>,
    /// Of those that went on, how many had a file system that could only be read afterwards.
    pub read_only: u64,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Read back, each checked.
    pub read_backs: u64,
    /// Acknowledged writes that were lost. Any number but 0 ends the command before there is a report.
    pub lost: u64,
}

impl Report for EioReport {
    fn text(&self) -> String {
        let counts = |counts: &BTreeMap<String, u64>| {
            counts.iter().map(|(what, count)| format!("{what} {count}")).collect::<Vec<_>>().join(", ")
        };
        let runs: u64 = self.ends.values().sum();
        format!(
            "failed                {}\nthen                  {}; {} read-only file systems\n\
             eio at a {}: {runs} runs (I/O {} to {}), seed {}, {} acknowledged writes, {} read back, {} lost",
            counts(&self.failed),
            counts(&self.ends),
            self.read_only,
            self.role,
            self.indexes.0,
            self.indexes.1,
            self.seed,
            self.acknowledged,
            self.read_backs,
            self.lost
        )
    }
}

/// Whether such disks can be made here.
pub(super) fn check_available() -> Result<(), super::device::Unavailable> {
    let tools = [
        ("nbdfuse", "libnbd-bin"),
        ("losetup", "mount"),
        ("mount", "mount"),
        ("umount", "mount"),
        ("unshare", "util-linux"),
        ("mkfs.ext4", "e2fsprogs"),
    ];
    require(&tools, &[("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")])
}

/// Runs the command.
pub fn main(options: &EioOptions) -> anyhow::Result<ExitCode> {
    if let Err(error) = check_available() {
        eprintln!("synod-torture: {error}");
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    ensure!(options.from <= options.first, "--from is behind --first");
    within_own_mounts()?;
    let stop = Stop::on_signals()?;
    let seed = attack::seed(options.seed);
    for &role in options.role.all() {
        let run = |place: &Place| Eio::start(place, role, seed, &stop)?.all(options.from, options.first);
        let report = options.common.within("eio", run).with_context(|| format!("at a {role}, seed {seed}"))?;
        super::print(&report, options.common.json)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// A cell, one of whose replicas has a disk that can fail. The cell goes before the disk, and that before its server.
struct Eio {
    role: Role,
    load: Load,
    cell: TortureCell,
    mounted: MountedDisk,
    disk: FaultyDisk,
    report: EioReport,
}

impl Eio {
    fn start(place: &Place, role: Role, seed: u64, stop: &Stop) -> anyhow::Result<Self> {
        let (dir, cell_dir) = (place.path().join("disk"), place.path().join("cell"));
        std::fs::create_dir(&dir).context("cannot make a directory")?;
        let socket = dir.join("nbd.sock");
        let disk = FaultyDisk::start(&dir.join("backing"), DEVICE_BYTES, &socket)?;
        let mounted = MountedDisk::start(&dir, &socket, &cell_dir.join(format!("replica-{VICTIM}")))?;
        for id in (1..=REPLICAS).filter(|id| *id != VICTIM) {
            std::fs::create_dir(cell_dir.join(format!("replica-{id}"))).context("cannot make a directory")?;
        }
        let cell = TortureCell::start(REPLICAS, cell_dir, &SERVE_FLAGS, stop)?;
        let load = Load::connect(&cell, CLIENTS, BULK_BYTES_MAX, seed)?;
        let report = EioReport { role: role.to_string(), seed, ..EioReport::default() };
        Ok(Self { role, load, cell, mounted, disk, report })
    }

    fn all(mut self, from: u64, upto: u64) -> anyhow::Result<EioReport> {
        self.report.indexes = (from, upto);
        let indexes: Vec<u64> = (from..=upto).collect();
        for some in indexes.chunks(READ_BACK_EVERY as usize) {
            let files_from = self.load.recent_files();
            let Self { role, load, cell, mounted, disk, report } = &mut self;
            let mut attempt = Attempt { role: *role, cell, mounted, disk, report };
            load.run(|shared| some.iter().try_for_each(|&k| attempt.run(k, shared).with_context(|| format!("k {k}"))))?;
            self.load.read_back(&mut self.cell, &files_from)?;
        }
        let files_from = self.load.all_files();
        self.load.read_back(&mut self.cell, &files_from)?;
        self.report.read_backs = self.load.read_backs();
        self.report.acknowledged = self.load.tally().acknowledged;
        self.cell.stop()?;
        Ok(self.report)
    }
}

/// One index, under load.
struct Attempt<'a> {
    role: Role,
    cell: &'a mut TortureCell,
    mounted: &'a mut MountedDisk,
    disk: &'a FaultyDisk,
    report: &'a mut EioReport,
}

impl Attempt<'_> {
    fn run(&mut self, k: u64, shared: &Shared) -> anyhow::Result<()> {
        let others = self.cell.others(VICTIM);
        let (faults, is_sticky) = (self.disk.faults(), k.is_multiple_of(2));
        match self.role {
            Role::Master => attack::hand_over(self.cell, VICTIM)?,
            Role::Follower => attack::hand_over(self.cell, others[0])?,
            Role::Laggard | Role::All => {
                attack::hand_over(self.cell, others[0])?;
                self.cell.kill(&[VICTIM])?;
                std::thread::sleep(AWAY);
            }
        }
        faults.fail_at(k, is_sticky);
        if self.role == Role::Laggard {
            self.cell.start_replica(VICTIM)?;
        }
        let wish = self.wait_for_fault()?;
        // Whoever was the master: the two others go on.
        shared.pulse.reset();
        let failed_at = Instant::now();
        let mut end = None;
        while failed_at.elapsed() < ENDS_WITHIN || shared.pulse.longest().1 < WRITES_AGAIN {
            if end.is_none() {
                end = self.cell.ended()?;
            }
            let writes = shared.pulse.longest().1;
            ensure!(
                failed_at.elapsed() < WRITES_WITHIN,
                "only {writes} writes in {WRITES_WITHIN:?} after {wish:?} failed"
            );
            if end.is_some() && writes >= WRITES_AGAIN {
                break;
            }
            std::thread::sleep(LOOK);
        }
        faults.heal();
        let end = self.judge(end)?;
        println!("eio {} {k:>4} {} {wish:?}: {end}", self.role, if is_sticky { "sticky" } else { "once  " });
        *self.report.failed.entry(format!("{wish:?}")).or_default() += 1;
        *self.report.ends.entry(end).or_default() += 1;
        self.cell.wait_for("a replica does not catch up", &[VICTIM], |cell| {
            let [victim, other] = [VICTIM, others[0]].map(|id| cell.status(id).map(|status| status.chosen));
            (victim? + CAUGHT_UP_SLOTS >= other?).then_some(())
        })
    }

    fn wait_for_fault(&mut self) -> anyhow::Result<Wish> {
        let began = Instant::now();
        loop {
            if let Some(wish) = self.disk.faults().failed() {
                return Ok(wish);
            }
            if let Some((id, status, last)) = self.cell.ended()? {
                anyhow::bail!("replica {id} ended with {status:?} although no I/O has failed: {last}");
            }
            ensure!(began.elapsed() < COMES_WITHIN, "there were not so many I/Os");
            std::thread::sleep(LOOK);
        }
    }

    /// What became of the replica; it runs again, on a sound disk.
    fn judge(&mut self, end: Option<(u16, Option<i32>, String)>) -> anyhow::Result<String> {
        let is_dead = end.is_some();
        let text = match end {
            None => "went on".to_owned(),
            Some((id, code, last)) => {
                ensure!(id == VICTIM, "replica {id} ended by itself, whose disk is sound: {code:?} {last}");
                let named = STATUSES.iter().find(|(status, _)| code == Some(i32::from(*status)));
                let (status, what) = named.with_context(|| format!("it ended with {code:?}: {last}"))?;
                // Where the file system's own journal met the error, it takes nothing any more.
                let reasons: &[&str] = match *status {
                    exit::DATABASE_UNREADABLE => &["cannot be read"],
                    _ => &["Input/output error", "Read-only file system"],
                };
                let says = |line: &str| reasons.iter().any(|reason| line.contains(reason));
                let has_reason = last.lines().last().is_some_and(says);
                ensure!(has_reason, "it ended with {status} and said: {last}");
                format!("ended with {status}, {what}")
            }
        };
        let takes_files = self.mounted.takes_files();
        self.report.read_only += u64::from(!is_dead && !takes_files);
        if !is_dead && !takes_files {
            self.cell.kill(&[VICTIM])?;
        }
        if is_dead || !takes_files {
            if !takes_files {
                self.mounted.mount_again()?;
            }
            self.cell.bring_back(&[VICTIM])?;
        }
        Ok(text)
    }
}

/// So near is as good as there, under load.
const CAUGHT_UP_SLOTS: u64 = 50;
