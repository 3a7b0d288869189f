//! A disk that an NBD server serves, formatted and mounted: nbdfuse, which shows it as a file; a loop device on that, with
//! direct I/O, so that a write and a flush of the kernel's is a write and a flush at the server; ext4.
//!
//! All of it is taken down in the reverse order when it is dropped, however far it had come.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Child;

use anyhow::{Context, ensure};

use super::device::{command, end, run, run_again, spawn, wait_for};

/// See the module.
pub struct MountedDisk {
    /// Where its helpers have their files.
    dir: PathBuf,
    mount: PathBuf,
    nbdfuse: Option<Child>,
    loop_device: Option<String>,
    mounted: bool,
}

impl MountedDisk {
    /// Nothing yet.
    pub(super) fn new(dir: &Path, mount: &Path) -> Self {
        Self { dir: dir.to_owned(), mount: mount.to_owned(), nbdfuse: None, loop_device: None, mounted: false }
    }

    /// Formats and mounts what is served on this socket.
    pub fn start(dir: &Path, socket: &Path, mount: &Path) -> anyhow::Result<Self> {
        let mut disk = Self::new(dir, mount);
        // What was begun is taken down again when this fails: `disk` is dropped.
        disk.attach(socket).with_context(|| format!("making a block device in {}", dir.display()))?;
        Ok(disk)
    }

    pub(super) fn attach(&mut self, socket: &Path) -> anyhow::Result<()> {
        let fuse = self.fuse();
        for dir in [&fuse, &self.mount] {
            fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
        }
        let disk = fuse.join("disk");
        let mut nbdfuse = command("nbdfuse")?;
        nbdfuse.arg(&disk).arg("--unix").arg(socket);
        self.nbdfuse = Some(spawn(&mut nbdfuse, &self.dir.join("nbdfuse.err"))?);
        wait_for("nbdfuse to mount", || Ok(disk.exists()), &mut self.nbdfuse)?;

        let output = run(command("losetup")?.args(["--direct-io=on", "--show", "--find"]).arg(&disk))?;
        let loop_device = output.trim().to_owned();
        self.loop_device = Some(loop_device.clone());
        let direct = run(command("losetup")?.args(["--noheadings", "--output", "DIO"]).arg(&loop_device))?;
        ensure!(direct.trim() == "1", "{loop_device} does no direct I/O, so its server would hear of the page cache");

        // Blocks as large as the log's, and nothing that the file system would write later by itself.
        let mut mkfs = command("mkfs.ext4")?;
        mkfs.args(["-q", "-F", "-b", "4096", "-E", "lazy_itable_init=0,lazy_journal_init=0"]).arg(&loop_device);
        run(&mut mkfs)?;
        self.mount()
    }

    fn mount(&mut self) -> anyhow::Result<()> {
        let loop_device = self.loop_device.as_ref().context("it was taken down")?;
        run(command("mount")?.args(["-o", "errors=remount-ro"]).arg(loop_device).arg(&self.mount))?;
        self.mounted = true;
        Ok(())
    }

    /// Whether a file can be made on it: after an error the file system may only be read.
    #[must_use]
    pub fn takes_files(&self) -> bool {
        let probe = self.mount.join("probe");
        let made = File::create(&probe).and_then(|file| file.sync_all());
        let removed = fs::remove_file(&probe);
        made.is_ok() && removed.is_ok()
    }

    /// Unmounted and mounted again, which is when the file system recovers. Nobody may use it.
    pub fn mount_again(&mut self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()?;
        ensure!(self.takes_files(), "{} does not work after it was mounted again", self.mount.display());
        Ok(())
    }

    fn unmount(&mut self) -> anyhow::Result<()> {
        if self.mounted {
            run_again(|| run(command("umount")?.arg(&self.mount)))?;
            self.mounted = false;
        }
        Ok(())
    }

    /// What has been taken down is not taken down again: after a failure the next call goes on.
    pub(super) fn take_down(&mut self) -> anyhow::Result<()> {
        self.unmount()?;
        if let Some(loop_device) = &self.loop_device {
            run(command("losetup")?.arg("--detach").arg(loop_device))?;
            // It is detached once its last user is gone, a moment later.
            let device = loop_device.clone();
            wait_for("the loop device to go", || Ok(!is_attached(&device)?), &mut None)?;
            self.loop_device = None;
        }
        let fuse = self.fuse();
        if let Some(nbdfuse) = &mut self.nbdfuse {
            if nbdfuse.try_wait()?.is_none() && is_mount_point(&fuse)? {
                run_again(|| run(command("umount")?.arg(&fuse)))?;
            }
            end(nbdfuse)?;
            self.nbdfuse = None;
        }
        Ok(())
    }

    /// Whatever holds on to it: nothing may stay. What cannot be done any more was done.
    pub(super) fn tear_down(&mut self) {
        if self.mounted {
            let _ = command("umount").and_then(|mut umount| run(umount.arg("--lazy").arg(&self.mount)));
        }
        if let Some(loop_device) = &self.loop_device {
            let _ = command("losetup").and_then(|mut losetup| run(losetup.arg("--detach").arg(loop_device)));
        }
        let _ = command("umount").and_then(|mut umount| run(umount.arg("--lazy").arg(self.fuse())));
        if let Some(child) = &mut self.nbdfuse {
            let _ = child.kill();
            let _ = child.wait();
        }
        (self.mounted, self.loop_device, self.nbdfuse) = (false, None, None);
    }

    fn fuse(&self) -> PathBuf {
        self.dir.join("fuse")
    }
}

impl Drop for MountedDisk {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("synod-torture: taking down the disk in {}: {error:#}", self.dir.display());
            self.tear_down();
        }
    }
}

fn is_attached(loop_device: &str) -> anyhow::Result<bool> {
    let name = loop_device.strip_prefix("/dev/").context("not a device")?;
    Ok(Path::new("/sys/block").join(name).join("loop/backing_file").exists())
}

fn is_mount_point(path: &Path) -> anyhow::Result<bool> {
    let mut mounts = String::new();
    File::open("/proc/self/mounts")?.read_to_string(&mut mounts)?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == path.to_str()))
}
