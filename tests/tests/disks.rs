//! Cells of real processes whose disks are full, fail, or stand still. `engine/node/docs/disks.md` says what must happen.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::{Command, Output};

use common::{TestCell, program, temp_dir, wait_for};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use synod_api::Refusal;
use synod_client::{Cause, Outcome};

/// Segments may just be made; the database may not become longer than one.
const FILE_BYTES_MAX: u64 = 4 << 20;
const FLAGS: [&str; 6] = ["--segment-mb", "4", "--log-mb-max", "64", "--snapshot-log-mb", "4"];
const VALUE_BYTES: usize = 100 << 10;

fn value(number: usize) -> Vec<u8> {
    (0..VALUE_BYTES).map(|at| (at / 7 + number * 13) as u8).collect()
}

fn key(number: usize) -> String {
    format!("key/{number}")
}

/// How long the files of a process may become, from now on.
fn limit_files(pid: u32, bytes: Option<u64>) {
    let pid = Pid::from_raw(pid as i32).unwrap();
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None }).unwrap();
}

/// No room for snapshots: nothing ends, the log fills, reads go on, and with room all is as before. Needs no root.
#[test]
fn a_database_that_may_not_grow_ends_nothing_and_room_brings_writes_back() {
    let cell = TestCell::start(1, &FLAGS);
    let mut client = cell.client();
    let pid = cell.cell.pid(1).unwrap();
    client.put(key(0).as_bytes(), &value(0)).unwrap();
    limit_files(pid, Some(FILE_BYTES_MAX));
    let mut written = 1;
    let error = loop {
        assert!(written * VALUE_BYTES < 200 << 20, "the log never fills");
        match client.put(key(written).as_bytes(), &value(written)) {
            Ok(_) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.outcome(), Outcome::DidNotHappen, "{error}");
    assert_eq!(error.failure().cause, Cause::Refused(Refusal::LogFull), "{error}");
    for number in (0..written).step_by(10) {
        let found = client.get(key(number).as_bytes()).unwrap().unwrap();
        assert!(found.value == value(number), "{} is another one", key(number));
    }
    let status = cell.cell.status(1).unwrap();
    let trouble = status.database.snapshot_trouble.unwrap();
    assert!(trouble.why.contains("File too large"), "{trouble:?}");
    assert!(status.counters.engine.snapshots_failed > 0);

    limit_files(pid, None);
    wait_for("a write to be taken again", || client.put(key(written).as_bytes(), &value(written)).ok());
    wait_for("a snapshot", || cell.cell.status(1).unwrap().database.snapshot_trouble.is_none().then_some(()));
    assert_eq!(cell.cell.pid(1), Some(pid), "the same process");
    for number in 0..=written {
        let found = client.get(key(number).as_bytes()).unwrap().unwrap();
        assert!(found.value == value(number), "{} is another one", key(number));
    }
    let messages = cell.messages(1);
    assert_eq!(messages.matches("a snapshot of the database failed").count(), 1, "{messages}");
    assert_eq!(messages.matches("a snapshot of the database works again").count(), 1, "{messages}");
}

/// Runs a torture command that needs root and more: it did what it is for, or says what the machine lacks.
fn torture_or_told(arguments: &[&str], says: &str) {
    let dir = temp_dir();
    let Output { status, stdout, stderr } =
        Command::new(program()).args(arguments).arg("--dir").arg(dir.path()).output().unwrap();
    let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
    match status.code() {
        Some(69) => assert!(["apt-get install", "root", "modprobe"].iter().any(|what| text.contains(what)), "{text}"),
        code => assert!(code == Some(0) && text.contains(says), "{text}"),
    }
}

#[test]
fn full_disks_refuse_writes_and_lose_none() {
    torture_or_told(&["full", "--cycles", "3", "--file-system", "ext4"], " 0 lost");
}

#[test]
fn failing_ios_end_one_replica_and_lose_nothing() {
    torture_or_told(&["eio", "--first", "3"], "eio at a laggard: 3 runs");
}

/// How much slower writes are depends on what else the machine does: that is for the command to judge.
#[test]
fn a_disk_that_stands_still_costs_mastership_and_no_process() {
    torture_or_told(&["stall", "--runs", "1", "--seconds", "4", "--p99-ratio-max", "1000"], "stall: 1 runs of 4 s");
}
