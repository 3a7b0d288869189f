//! What a replica says to a system that cannot carry it: memory that poses as a disk, no io_uring, a port that somebody
//! has. Each is named with what to change; and what was in the directory before is there after it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Members, Process, REFUSED, SYSTEM, command, contents, is_tmpfs, program, run, status, synod, wait_for};
use rustix::process::Signal;
use tempfile::TempDir;

/// A file system of its own, unmounted on drop.
struct Mounted {
    dir: TempDir,
}

impl Mounted {
    /// `None` where we may not mount: without root, and in most containers.
    fn new(kind: &str) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", kind, "-o", "size=64m", "none"]).arg(dir.path());
        mount.output().is_ok_and(|output| output.status.success()).then_some(Self { dir })
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.dir.path()).status();
        // Not a panic: the test may be in one already. The directory's own removal fails then, too.
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.dir.path().display());
        }
    }
}

#[test]
fn tmpfs_is_refused_by_name_unless_that_is_meant() {
    let mounted = Mounted::new("tmpfs");
    let directory = match &mounted {
        Some(mounted) => tempfile::tempdir_in(mounted.dir.path()).unwrap(),
        None => tempfile::tempdir_in("/dev/shm").unwrap(),
    };
    assert!(is_tmpfs(directory.path()), "{} should be tmpfs on any Linux", directory.path().display());
    let members = Members::new(1);
    let dir = directory.path().join("replica");
    synod(members.arguments_in(1, &dir, &["--bootstrap"])).says(
        REFUSED,
        &[
            dir.to_str().unwrap(),
            "is on tmpfs",
            "not durable",
            "everything acknowledged is lost",
            "Use a disk",
            "--volatile",
        ],
    );
    assert!(contents(&dir).keys().eq(["lock"]), "{:?}", contents(&dir).keys());

    let command = command(members.arguments_in(1, &dir, &["--bootstrap", "--volatile", "--stop-with-parent"]));
    if !has_direct_io(directory.path()) {
        // Linux has O_DIRECT on tmpfs since 6.6; before that not even --volatile helps, and it must say so.
        run(command, b"").says(REFUSED, &[dir.to_str().unwrap(), "does not support O_DIRECT", "ext4 or xfs"]);
        return;
    }
    let mut process = Process::start(command);
    wait_for("the replica to answer", || {
        process.must_run();
        status(&members.client(1).to_string())
    });
    assert_eq!(members.ask(&["put", "a", "a"]).output(), "");
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &["synod: stopped"]);
    // What is meant once must be meant again.
    synod(members.arguments_in(1, &dir, &[])).says(REFUSED, &["is on tmpfs", "--volatile"]);
}

fn has_direct_io(dir: &Path) -> bool {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = rustix::fs::OFlags::DIRECT.bits() as i32;
    fs::File::options().write(true).create(true).truncate(true).custom_flags(flags).open(dir.join("probe")).is_ok()
}

#[test]
fn a_file_system_without_direct_io_is_refused() {
    let Some(mounted) = Mounted::new("ramfs") else {
        // The one test that may not run: only root can mount a file system that is known to lack O_DIRECT.
        eprintln!("NOT RUN: mounting a ramfs needs root");
        return;
    };
    let members = Members::new(1);
    let dir = mounted.dir.path().join("replica");
    let texts = [dir.to_str().unwrap(), "is on ramfs", "does not support O_DIRECT", "stable storage", "ext4 or xfs"];
    synod(members.arguments_in(1, &dir, &["--bootstrap"])).says(REFUSED, &texts);
    // Not a matter of meaning it.
    synod(members.arguments_in(1, &dir, &["--bootstrap", "--volatile"])).says(REFUSED, &texts);
    assert!(contents(&dir).keys().eq(["lock"]), "{:?}", contents(&dir).keys());
}

#[test]
fn what_is_no_directory_is_refused() {
    let members = Members::new(1);
    let file = tempfile::NamedTempFile::new().unwrap();
    let dir = file.path().join("replica");
    synod(members.arguments_in(1, &dir, &["--bootstrap"]))
        .says(REFUSED, &["cannot make the directory", dir.to_str().unwrap(), "Not a directory"]);
    synod(members.arguments_in(1, file.path(), &["--bootstrap"]))
        .says(REFUSED, &["cannot make the directory", file.path().to_str().unwrap(), "exists"]);
}

/// Runs its further arguments where `io_uring_setup` (425, the same number on every architecture) fails with the error
/// number that is its first: what a container's seccomp profile does. In C, because the standard library cannot install
/// a filter, and the crate forbids the unsafe code that could.
const WITHOUT_IO_URING: &str = r#"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int count, char **arguments) {
    if (count < 3) return 100;
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 425, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)atoi(arguments[1])),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof filter / sizeof filter[0], filter};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("cannot install the filter");
        return 101;
    }
    execv(arguments[2], arguments + 2);
    perror(arguments[2]);
    return 102;
}
"#;

fn launcher(dir: &Path) -> PathBuf {
    let (source, program) = (dir.join("launcher.c"), dir.join("launcher"));
    fs::write(&source, WITHOUT_IO_URING).unwrap();
    let output = Command::new("cc").arg("-o").args([&program, &source]).output();
    let output = output.expect("a C compiler, cc, is needed to build and test Synod");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    program
}

#[test]
fn io_uring_that_is_blocked_is_explained() {
    const EPERM: &str = "1";
    const ENOSYS: &str = "38";
    let tools = tempfile::tempdir().unwrap();
    let launcher = launcher(tools.path());
    let members = Members::stopped_with(&["a"]);
    let without = |error: &str, more: &[&str]| {
        let mut command = Command::new(&launcher);
        command.arg(error).arg(program()).args(members.arguments(1, more));
        run(command, b"")
    };
    let disabled = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    assert!(
        ["", "0"].contains(&disabled.trim()),
        "io_uring is switched off on this machine: nothing here can be tested"
    );
    let blocked = ["io_uring is forbidden here", "a seccomp profile", "seccomp=unconfined", "io_uring_setup"];
    without(EPERM, &[]).says(SYSTEM, &blocked);
    let missing = ["there is no io_uring here", "older than 5.1", "CONFIG_IO_URING", "seccomp=unconfined"];
    without(ENOSYS, &[]).says(SYSTEM, &missing);
    let process = members.serve(1, &[]);
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &[]);
}

/// The very first start fails after the directory was made: the next one goes on from there.
#[test]
fn a_first_start_that_was_blocked_is_taken_up_again() {
    let tools = tempfile::tempdir().unwrap();
    let launcher = launcher(tools.path());
    let members = Members::new(1);
    let mut command = Command::new(&launcher);
    command.arg("1").arg(program()).args(members.arguments(1, &["--bootstrap"]));
    run(command, b"").says(SYSTEM, &["io_uring is forbidden here"]);
    let process = members.serve(1, &["--bootstrap"]);
    assert_eq!(members.ask(&["put", "a", "a"]).output(), "");
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn a_port_in_use_is_named() {
    let members = Members::stopped_with(&["a"]);
    let refused = |address: SocketAddr, door: &str| {
        let _taken = TcpListener::bind(address).unwrap();
        let texts = [&format!("cannot listen for {door} on {address}"), "Address already in use"];
        synod(members.arguments(1, &[])).says(SYSTEM, &texts);
    };
    refused(members.client(1), "clients");
    refused(members.peer(1), "replicas");
    let process = members.serve(1, &[]);
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &[]);
}
