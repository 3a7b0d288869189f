//! A file system of its own for a replica, on a loop device over a sparse file, from which the power can be cut.
//!
//! It is unmounted and its device detached when it is dropped, however far it had come.

use std::fmt;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::device::{Unavailable, command, is_attached, require, run, run_again, wait_for};

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
    let mut tools = vec![("losetup", "mount"), ("mount", "mount"), ("umount", "mount"), ("xfs_io", "xfsprogs")];
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
    mount: PathBuf,
    loop_device: Option<String>,
    is_mounted: bool,
}

impl LoopDevice {
    /// Makes one of this size over a file in `dir`, and mounts it at `mount`.
    pub fn start(dir: &Path, file_system: FileSystem, bytes: u64, mount: &Path) -> anyhow::Result<Self> {
        let mut device = Self { mount: mount.to_owned(), loop_device: None, is_mounted: false };
        // What was begun is taken down again when this fails: `device` is dropped.
        let name = mount.file_name().context("a mount point has a name")?;
        let backing = dir.join(name).with_extension("disk");
        device
            .bring_up(&backing, file_system, bytes)
            .with_context(|| format!("making a file system on {}", backing.display()))?;
        Ok(device)
    }

    fn bring_up(&mut self, backing: &Path, file_system: FileSystem, bytes: u64) -> anyhow::Result<()> {
        fs::create_dir_all(&self.mount).with_context(|| format!("cannot make {}", self.mount.display()))?;
        File::create(backing).and_then(|file| file.set_len(bytes)).context("cannot make the file below it")?;
        let output = run(command("losetup")?.args(["--show", "--find"]).arg(backing))?;
        let loop_device = self.loop_device.insert(output.trim().to_owned()).clone();
        let (maker, _) = file_system.maker();
        run(command(maker)?.args(file_system.maker_arguments()).arg(&loop_device))?;
        self.mount()
    }

    fn mount(&mut self) -> anyhow::Result<()> {
        let loop_device = self.loop_device.as_ref().context("it has no device")?;
        run(command("mount")?.arg(loop_device).arg(&self.mount))?;
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
        self.mount()
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        if self.is_mounted {
            run_again(|| run(command("umount")?.arg(&self.mount)))?;
            self.is_mounted = false;
        }
        Ok(())
    }

    fn take_down(&mut self) -> anyhow::Result<()> {
        self.unmount()?;
        if let Some(loop_device) = &self.loop_device {
            run(command("losetup")?.arg("--detach").arg(loop_device))?;
            let device = loop_device.clone();
            wait_for("the loop device to go", || Ok(!is_attached(&device)?), &mut None)?;
            self.loop_device = None;
        }
        Ok(())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("synod-torture: taking down {}: {error:#}", self.mount.display());
            // Whatever holds on to it: nothing may stay.
            if self.is_mounted {
                let _ = command("umount").and_then(|mut umount| run(umount.arg("--lazy").arg(&self.mount)));
            }
            if let Some(loop_device) = &self.loop_device {
                let _ = command("losetup").and_then(|mut losetup| run(losetup.arg("--detach").arg(loop_device)));
            }
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
