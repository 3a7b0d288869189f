//! A file system of its own for a replica, on a loop device over a sparse file, from which the power can be cut.
//!
//! It is unmounted when it is dropped, however far it had come, and its device goes with the last mount. That is so for a
//! process that is killed, too: it has a mount table of its own ([`within_own_mounts`]), and that goes with it.

use std::fmt;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::device::{Unavailable, command, require, run, run_again};

/// Set in the environment of a process that has a mount table of its own.
const OWN_MOUNTS: &str = "SYNOD_TORTURE_OWN_MOUNTS";

/// Goes on only with a mount table that dies with this process and its children: if it is not so yet, the program is run
/// again that way, in this very process.
pub fn within_own_mounts() -> anyhow::Result<()> {
    if std::env::var_os(OWN_MOUNTS).is_some() {
        return Ok(());
    }
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut unshare = command("unshare")?;
    // What others unmount is to go here, too: a file system that is mounted anywhere stays as it is, and one that was stopped
    // stays stopped.
    unshare.args(["--mount", "--propagation", "slave", "--"]).arg(program).args(std::env::args_os().skip(1));
    Err(unshare.env(OWN_MOUNTS, "1").exec()).context("cannot run unshare")
}

/// A file system that stops at FS_IOC_SHUTDOWN.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileSystem {
    /// ext4.
    Ext4,
    /// xfs.
    Xfs,
}

impl FileSystem {
    fn maker(self) -> (&'static str, &'static str) {
        match self {
            FileSystem::Ext4 => ("mkfs.ext4", "e2fsprogs"),
            FileSystem::Xfs => ("mkfs.xfs", "xfsprogs"),
        }
    }

    fn maker_arguments(self) -> &'static [&'static str] {
        match self {
            // Nothing that the file system would write later by itself.
            FileSystem::Ext4 => &["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
            FileSystem::Xfs => &["-q", "-f"],
        }
    }
}

impl fmt::Display for FileSystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FileSystem::Ext4 => "ext4",
            FileSystem::Xfs => "xfs",
        })
    }
}

/// Whether the power can be cut from such file systems here; if not, what to do about it.
pub fn check_available(file_systems: &[FileSystem]) -> Result<(), Unavailable> {
    let mut tools = vec![("mount", "mount"), ("umount", "mount"), ("unshare", "util-linux"), ("xfs_io", "xfsprogs")];
    tools.extend(file_systems.iter().map(|file_system| file_system.maker()));
    require(&tools, &[("/dev/loop-control", "loop")])?;
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    for file_system in file_systems {
        // A module may be loaded by the first mount; then this says nothing, and the mount does.
        let name = file_system.to_string();
        let is_known = known.lines().any(|line| line.split_whitespace().last() == Some(&name));
        if !is_known && !Path::new("/lib/modules").exists() {
            return Err(Unavailable::new(format!("this kernel has no {name}; say another --file-system")));
        }
    }
    Ok(())
}

/// A loop device, formatted and mounted.
pub struct LoopDevice {
    backing: PathBuf,
    mount: PathBuf,
    is_mounted: bool,
}

impl LoopDevice {
    /// Makes one of this size over a file in `dir`, and mounts it at `mount`.
    pub fn start(dir: &Path, file_system: FileSystem, bytes: u64, mount: &Path) -> anyhow::Result<Self> {
        let name = mount.file_name().context("a mount point has a name")?;
        let backing = dir.join(name).with_extension("disk");
        let mut device = Self { backing, mount: mount.to_owned(), is_mounted: false };
        // What was begun is taken down again when this fails: `device` is dropped.
        let made = device.bring_up(file_system, bytes);
        made.with_context(|| format!("making a file system on {}", device.backing.display()))?;
        Ok(device)
    }

    fn bring_up(&mut self, file_system: FileSystem, bytes: u64) -> anyhow::Result<()> {
        fs::create_dir_all(&self.mount).with_context(|| format!("cannot make {}", self.mount.display()))?;
        File::create(&self.backing).and_then(|file| file.set_len(bytes)).context("cannot make the file below it")?;
        let (maker, _) = file_system.maker();
        run(command(maker)?.args(file_system.maker_arguments()).arg(&self.backing))?;
        self.mount()
    }

    fn mount(&mut self) -> anyhow::Result<()> {
        // The device is detached by the kernel when this is unmounted.
        run(command("mount")?.args(["-o", "loop"]).arg(&self.backing).arg(&self.mount))?;
        self.is_mounted = true;
        Ok(())
    }

    /// The file system stops as it is, without writing its log: what was not synced is gone, and everything fails.
    pub fn cut_power(&self) -> anyhow::Result<()> {
        run(command("xfs_io")?.args(["-x", "-c", "shutdown"]).arg(&self.mount)).map(drop)
    }

    /// After a cut: unmounted and mounted again, which is when the file system recovers. Nobody may use it.
    pub fn mount_again(&mut self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()?;
        let probe = self.mount.join("probe");
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).with_context(|| {
            let mount = self.mount.display();
            format!("{mount} does not work after it was mounted again; is it still mounted in another mount namespace?")
        })
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        if self.is_mounted {
            run_again(|| run(command("umount")?.arg(&self.mount)))?;
            self.is_mounted = false;
        }
        Ok(())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = self.unmount() {
            eprintln!("synod-torture: unmounting {}: {error:#}", self.mount.display());
            // Whatever holds on to it: nothing may stay.
            let _ = command("umount").and_then(|mut umount| run(umount.arg("--lazy").arg(&self.mount)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_its_package() {
        let tools = [("no-such-program", "a-package"), ("nor-this-one", "another")];
        let why = require(&tools, &[]).expect_err("there are no such programs").to_string();
        assert!(why.contains("no-such-program, nor-this-one not found"), "{why}");
        assert!(why.contains("apt-get install a-package another"), "{why}");
    }
}
