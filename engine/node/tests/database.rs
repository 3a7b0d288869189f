//! The database's file over a replica's life: whose it is, and what happens when it is damaged, cut short, lost or put back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use common::{Members, Process, REFUSED, status, wait_for};
use rustix::process::Signal;
use synod_node::operator::OperatorRequest;
use synod_node::serve::exit;
use synod_store::PAGE_BYTES;

/// Makes a snapshot of what is there, and waits until it is durable.
fn snapshot(members: &Members) {
    let endpoint = members.client(1).to_string();
    let before = status(&endpoint).unwrap().counters.engine.snapshots;
    let request = serde_json::to_string(&OperatorRequest::Snapshot).unwrap();
    wait_for("the snapshot", || {
        let now = status(&endpoint)?.counters.engine.snapshots;
        if now == before {
            synod_client::operate(&endpoint, &request, Duration::from_secs(5)).unwrap();
        }
        (now > before).then_some(())
    });
}

fn database(members: &Members) -> PathBuf {
    members.dir(1).join("database")
}

const KEYS: [&str; 3] = ["a", "b", "c"];

/// A replica that made so many snapshots, each of something new.
fn with_snapshots(count: usize) -> (Members, Process) {
    let (members, process) = Members::single_with(&KEYS);
    for number in 0..count {
        members.ask(&["put", "number", &number.to_string()]).says(0, &[]);
        snapshot(&members);
    }
    (members, process)
}

#[test]
fn a_start_goes_on_from_the_snapshot() {
    let (members, process) = with_snapshots(2);
    process.stop(Signal::KILL);
    let process = members.serve(1, &[]);
    members.has(&KEYS);
    assert!(status(&members.client(1).to_string()).unwrap().database.snapshot > 0);
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn a_damaged_page_is_named_and_never_served() {
    let (members, process) = with_snapshots(1);
    process.stop(Signal::TERM).says(0, &[]);
    let file = File::options().read(true).write(true).open(database(&members)).unwrap();
    // Both meta blocks stay as they are; whatever page is behind them is needed at once.
    let pages = file.metadata().unwrap().len() / PAGE_BYTES as u64;
    for page in 2..pages.min(40) {
        let at = page * PAGE_BYTES as u64 + 1000;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
    file.sync_all().unwrap();
    let ended = Process::start(common::command(members.arguments(1, &[]))).desert();
    let code = ended.status.code().unwrap();
    assert!([i32::from(exit::DATABASE_DAMAGED), i32::from(exit::CONFIG)].contains(&code), "{ended:?}");
    ended.says(code, &["page", "database"]);
}

#[test]
fn a_database_cut_short_under_a_replica_ends_it() {
    let (members, process) = with_snapshots(1);
    process.stop(Signal::TERM).says(0, &[]);
    let process = members.serve(1, &[]);
    File::options().write(true).open(database(&members)).unwrap().set_len(2 * PAGE_BYTES as u64).unwrap();
    wait_for("its end", || {
        members.ask(&["--deadline-ms", "300", "get", "a"]);
        status(&members.client(1).to_string()).is_none().then_some(())
    });
    process.desert().says(exit::DATABASE_UNREADABLE.into(), &[]);
}

#[test]
fn another_replicas_database_is_refused() {
    let (members, process) = with_snapshots(1);
    process.stop(Signal::TERM).says(0, &[]);
    let (others, process) = with_snapshots(1);
    process.stop(Signal::TERM).says(0, &[]);
    fs::copy(database(&others), database(&members)).unwrap();
    members.refuses(1, &[], REFUSED, &["is another one's"]);
}

#[test]
fn a_database_that_is_gone_is_made_again_from_a_whole_log_alone() {
    let (members, process) = with_snapshots(1);
    process.stop(Signal::TERM).says(0, &[]);
    fs::remove_file(database(&members)).unwrap();
    let process = members.serve(1, &[]);
    members.has(&KEYS);
    // Two more, and the log is cut.
    for number in ["x", "y"] {
        members.ask(&["put", "number", number]).says(0, &[]);
        snapshot(&members);
    }
    wait_for("the cut", || (status(&members.client(1).to_string())?.log.cut > 0).then_some(()));
    process.stop(Signal::TERM).says(0, &[]);
    fs::remove_file(database(&members)).unwrap();
    members.refuses(1, &[], REFUSED, &["the log was cut at slot", "there is no snapshot"]);
}

#[test]
fn a_database_put_back_to_an_older_copy_is_refused_once_the_log_is_cut_behind_it() {
    let (members, process) = with_snapshots(1);
    process.stop(Signal::TERM).says(0, &[]);
    let older = members.dir(1).join("../older");
    fs::copy(database(&members), &older).unwrap();
    let process = members.serve(1, &[]);
    for number in ["x", "y", "z"] {
        members.ask(&["put", "number", number]).says(0, &[]);
        snapshot(&members);
    }
    process.stop(Signal::TERM).says(0, &[]);
    fs::copy(&older, database(&members)).unwrap();
    members.refuses(1, &[], REFUSED, &["the log was cut at slot", "the snapshot is older"]);
}
