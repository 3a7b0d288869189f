//! A block device that logs every write and flush, with a file system on it.
//!
//! From the bottom: a file; nbdkit, which serves it and keeps the log; and a [`MountedDisk`] on that.
//! It has a volatile cache in front of it, as a disk has: a write is durable once a flush that began after it has ended.
//!
//! All of it is taken down in the reverse order when the device is dropped, however far it had come.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::device_log::DeviceLog;
use super::mounted_disk::MountedDisk;

/// What is needed, and the Debian package that has it.
const TOOLS: [(&str, &str); 6] = [
    ("nbdkit", "nbdkit"),
    ("nbdfuse", "libnbd-bin"),
    ("losetup", "mount"),
    ("mount", "mount"),
    ("umount", "mount"),
    ("mkfs.ext4", "e2fsprogs"),
];
/// A helper comes up or goes away within this time.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(10);

/// The machine lacks something that such devices need: nothing was tested.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("this machine lacks what it takes: {0}")]
pub struct Unavailable(String);

impl Unavailable {
    /// This is why, and what to do.
    pub(super) fn new(why: String) -> Self {
        Self(why)
    }
}

/// Whether such devices can be made here; if not, what to do about it.
pub fn check_available() -> Result<(), Unavailable> {
    require(&TOOLS, &[("/dev/fuse", "fuse"), ("/dev/loop-control", "loop")])
}

/// These programs, each with its Debian package; root; and these devices, each with its kernel module.
pub(super) fn require(tools: &[(&str, &str)], devices: &[(&str, &str)]) -> Result<(), Unavailable> {
    let missing: Vec<_> = tools.iter().filter(|(program, _)| find(program).is_none()).collect();
    if !missing.is_empty() {
        let programs: Vec<&str> = missing.iter().map(|(program, _)| *program).collect();
        let mut packages: Vec<&str> = missing.iter().map(|(_, package)| *package).collect();
        packages.dedup();
        return Err(Unavailable(format!(
            "{} not found; on Debian: apt-get install {}",
            programs.join(", "),
            packages.join(" ")
        )));
    }
    if !rustix::process::geteuid().is_root() {
        return Err(Unavailable("mounting and loop devices need root: run it with sudo".to_owned()));
    }
    for (path, module) in devices {
        if !Path::new(path).exists() {
            return Err(Unavailable(format!("there is no {path}: modprobe {module}, or use a kernel that has it")));
        }
    }
    Ok(())
}

/// Where a program is: in the path, or where only root's path leads.
fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(more).map(|dir| dir.join(program)).find(|path| path.is_file())
}

/// A block device that logs, formatted and mounted.
pub struct LoggedDevice {
    dir: PathBuf,
    disk: MountedDisk,
    nbdkit: Option<Child>,
}

impl LoggedDevice {
    /// Makes a device of this size below `dir`, which must not exist, and mounts it at `mount`.
    pub fn start(dir: &Path, bytes: u64, mount: &Path) -> anyhow::Result<Self> {
        let mut device = Self { dir: dir.to_owned(), disk: MountedDisk::new(dir, mount), nbdkit: None };
        // What was begun is taken down again when this fails: `device` is dropped.
        device.bring_up(bytes).with_context(|| format!("making a block device in {}", dir.display()))?;
        Ok(device)
    }

    fn bring_up(&mut self, bytes: u64) -> anyhow::Result<()> {
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot make {}", self.dir.display()))?;
        let backing = File::create(self.backing_file()).context("cannot make the backing file")?;
        backing.set_len(bytes).context("cannot size the backing file")?;
        let socket = self.dir.join("nbd.sock");

        let mut nbdkit = command("nbdkit")?;
        nbdkit.args(["--foreground", "--exit-with-parent", "--filter=log", "--unix"]).arg(&socket).arg("file");
        nbdkit.arg(self.backing_file()).arg(assign("logfile=", &self.log_file()));
        // The log's times are local ones.
        self.nbdkit = Some(spawn(nbdkit.env("TZ", "UTC"), &self.dir.join("nbdkit.err"))?);
        wait_for("nbdkit to listen", || Ok(socket.exists()), &mut self.nbdkit)?;
        self.disk.attach(&socket)
    }

    /// Takes it down; then its log and its backing file are complete.
    pub fn finish(mut self) -> anyhow::Result<FinishedDevice> {
        self.take_down()?;
        let text = fs::read_to_string(self.log_file()).context("cannot read a device's log")?;
        Ok(FinishedDevice { log: DeviceLog::parse(&text)?, backing_file: self.backing_file() })
    }

    /// What has been taken down is not taken down again: after a failure the next call goes on.
    fn take_down(&mut self) -> anyhow::Result<()> {
        self.disk.take_down()?;
        if let Some(nbdkit) = &mut self.nbdkit {
            end(nbdkit)?;
            self.nbdkit = None;
        }
        Ok(())
    }

    fn backing_file(&self) -> PathBuf {
        self.dir.join("backing")
    }

    fn log_file(&self) -> PathBuf {
        self.dir.join("device.log")
    }
}

impl Drop for LoggedDevice {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("synod-torture: taking down the device in {}: {error:#}", self.dir.display());
            // Whatever holds on to it: nothing may stay. What cannot be done any more was done.
            self.disk.tear_down();
            if let Some(child) = &mut self.nbdkit {
                let _ = child.kill();
                let _ = child.wait();
            }
        }
    }
}

/// What a device leaves behind.
pub struct FinishedDevice {
    /// All that it was told.
    pub log: DeviceLog,
    /// What is on it: a place in this file is the same place on the device.
    pub backing_file: PathBuf,
}

pub(super) fn command(program: &str) -> anyhow::Result<Command> {
    Ok(Command::new(find(program).with_context(|| format!("{program} not found"))?))
}

fn assign(name: &str, path: &Path) -> std::ffi::OsString {
    let mut argument = std::ffi::OsString::from(name);
    argument.push(path);
    argument
}

/// A helper that runs until it is told to end. In a process group of its own: a signal from the terminal is for us, who
/// take the helpers down in order.
pub(super) fn spawn(command: &mut Command, messages: &Path) -> anyhow::Result<Child> {
    let messages = File::create(messages).context("cannot make a file for a helper's messages")?;
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(messages).process_group(0);
    command.spawn().with_context(|| format!("cannot start {command:?}"))
}

/// Runs a command to its end; gives what it printed.
pub(super) fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A file system may be busy for a moment after its last user has gone.
pub(super) fn run_again(mut act: impl FnMut() -> anyhow::Result<String>) -> anyhow::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match act() {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() >= give_up => return Err(error),
            Err(_) => std::thread::sleep(LOOK),
        }
    }
}

pub(super) fn wait_for(
    what: &str,
    mut is_there: impl FnMut() -> anyhow::Result<bool>,
    helper: &mut Option<Child>,
) -> anyhow::Result<()> {
    let give_up = Instant::now() + PATIENCE;
    while !is_there()? {
        if let Some(helper) = helper
            && let Some(status) = helper.try_wait()?
        {
            bail!("waited for {what}, but it ended with {status}");
        }
        ensure!(Instant::now() < give_up, "waited in vain for {what}");
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Waits for a helper that should end by itself now; then tells it to, then makes it.
pub(super) fn end(child: &mut Child) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut told = false;
    while child.try_wait()?.is_none() {
        if begin.elapsed() > PATIENCE {
            child.kill()?;
            child.wait()?;
            break;
        }
        if begin.elapsed() > 20 * LOOK && !told {
            told = true;
            kill_process(Pid::from_child(child), Signal::TERM)?;
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}
