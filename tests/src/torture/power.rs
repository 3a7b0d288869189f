//! `synod-torture power`: the power is cut from file systems under load. (`faults.md` 2.2.)

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};

use super::attack::{self, Attack, Blow, REPLICAS, SERVE_FLAGS, Until};
use super::cell::{Common, Place, TortureCell};
use super::durability::EXIT_UNAVAILABLE;
use super::loop_device::{FileSystem, LoopDevice, check_available, within_own_mounts};
use super::stop::Stop;

/// Room for a log at its bound and the database; the file below it is sparse.
const DEVICE_BYTES: u64 = 1 << 30;
/// Between the cut and the kill: a replica sees its disk fail and may do what it likes, but tell nobody that a write is durable.
const DYING_MS: u64 = 30;

/// Which file systems.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Which {
    /// All three on ext4
    Ext4,
    /// All three on xfs
    Xfs,
    /// First the one, then the other, with half of the cuts each
    Both,
}

/// Cut the power from the replicas' file systems under load; each must open again, and nothing acknowledged may be lost.
///
/// Each replica's directory is a file system of its own, on a loop device over a file below --dir. A cut is
/// `xfs_io -x -c shutdown` there, on ext4 too: the file system stops at once, without flushing its log, so what was not synced is
/// gone and everything fails until it is mounted again. The replica is killed then, the file system unmounted and
/// mounted (which replays its journal), and the replica started: it must open. The cuts come at the moments that `synod-torture
/// snapshots` kills at, and the same is checked; its --help says what.
///
/// It shows that whatever a replica tells was synced. It does not tear blocks, and what reached the device past the cache
/// (O_DIRECT) stays even if no flush followed: `synod-torture durability` watches the flushes.
///
/// It runs in a mount namespace of its own, so that nothing stays mounted, however it ends.
///
/// It needs root, loop devices, and the programs that it names if they are missing (exit status 69: nothing was tested).
#[derive(Args, Clone, Debug)]
pub struct PowerOptions {
    /// How many power cuts: one for each replica whose file system stops
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    pub cuts: u32,
    /// On what the replicas' directories are
    #[arg(long, value_enum, default_value = "both")]
    pub file_system: Which,
    /// What decides whose power is cut and when [default: random]
    #[arg(long)]
    pub seed: Option<u64>,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

impl Which {
    /// Which, one after the other.
    pub(super) fn all(self) -> &'static [FileSystem] {
        match self {
            Which::Ext4 => &[FileSystem::Ext4],
            Which::Xfs => &[FileSystem::Xfs],
            Which::Both => &[FileSystem::Ext4, FileSystem::Xfs],
        }
    }
}

/// Runs the command.
pub fn main(options: &PowerOptions) -> anyhow::Result<ExitCode> {
    let file_systems = options.file_system.all();
    if let Err(error) = check_available(file_systems) {
        eprintln!("synod-torture: {error}");
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    within_own_mounts()?;
    let stop = Stop::on_signals()?;
    let seed = attack::seed(options.seed);
    let cuts = u64::from(options.cuts).div_ceil(file_systems.len() as u64);
    for &file_system in file_systems {
        let run = |place: &Place| {
            let cell_dir = place.path().join("cell");
            let mount = |id| LoopDevice::start(place.path(), file_system, DEVICE_BYTES, &cell_dir.join(replica(id)));
            let devices = (1..=REPLICAS).map(mount).collect::<anyhow::Result<_>>()?;
            let blow = PowerCut { devices, random: fastrand::Rng::with_seed(seed) };
            // From here on the devices outlive the cell, however this ends.
            let cell = TortureCell::start(REPLICAS, cell_dir, &SERVE_FLAGS, &stop)?;
            Attack::start(cell, blow, &format!("power cuts on {file_system}"), seed)?.all(Until::Struck(cuts))
        };
        let report = options.common.within("power", run).with_context(|| format!("{file_system}, seed {seed}"))?;
        attack::conclude(&report, &options.common)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn replica(id: u16) -> String {
    format!("replica-{id}")
}

/// Stops file systems, then kills who was on them.
struct PowerCut {
    /// By replica, from 1.
    devices: Vec<LoopDevice>,
    random: fastrand::Rng,
}

impl PowerCut {
    fn device(&mut self, id: u16) -> &mut LoopDevice {
        &mut self.devices[usize::from(id) - 1]
    }
}

impl Blow for PowerCut {
    fn strike(&mut self, cell: &mut TortureCell, victims: &[u16]) -> anyhow::Result<()> {
        victims.iter().try_for_each(|&id| self.device(id).cut_power())?;
        std::thread::sleep(Duration::from_millis(self.random.u64(..DYING_MS)));
        cell.kill(victims)
    }

    fn mend(&mut self, victims: &[u16]) -> anyhow::Result<()> {
        victims.iter().try_for_each(|&id| self.device(id).mount_again())
    }
}
