//! The database's file over a replica's life: whose it is, and what happens when it is damaged, cut short, lost or put back.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Members, Process, REFUSED, Running, status, wait_for};
use rustix::process::Signal;
use synod_node::operator::OperatorRequest;
use synod_node::serve::exit;
use synod_store::PAGE_BYTES;

/// Makes a snapshot of what is there, and waits until it is durable.
fn snapshot(members: &Members) {
    let endpoint = members.client(1).to_string();
    let before = status(&endpoint).unwrap().counters.engine.snapshots;
    let request = serde_json::to_string(&OperatorRequest::Snapshot).unwrap();
    // Once: asked again while it is being written, there would be another one behind it, and the log cut.
    synod_client::operate(&endpoint, &request, Duration::from_secs(5)).unwrap();
    wait_for("the snapshot", || (status(&endpoint)?.counters.engine.snapshots > before).then_some(()));
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
    // Both meta blocks stay as they are, and the sets of pages, without which it does not open; whatever else there is is needed
    // at once.
    const SET_OF_PAGES: u8 = 4;
    let pages = file.metadata().unwrap().len() / PAGE_BYTES as u64;
    for page in 2..pages.min(40) {
        let mut bytes = [0; PAGE_BYTES];
        file.read_exact_at(&mut bytes, page * PAGE_BYTES as u64).unwrap();
        if bytes[4] != SET_OF_PAGES {
            file.write_all_at(&[bytes[1000] ^ 1], page * PAGE_BYTES as u64 + 1000).unwrap();
        }
    }
    file.sync_all().unwrap();
    // As the master it raises the epoch, a row; the scrubber would be quicker, and put it in quarantine before.
    let ended = Process::start(common::command(members.arguments(1, &["--scrub-mb-per-s", "0"]))).desert();
    ended.says(exit::DATABASE_DAMAGED.into(), &["page", "database", "is damaged"]);
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
    process.desert().says(exit::DATABASE_UNREADABLE.into(), &["cannot be read"]);
}

#[test]
fn a_database_of_another_cell_is_refused() {
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

/// What was set aside.
fn set_aside(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with("database.lost-")).collect()
}

fn change(path: &Path, at: u64, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all_at(bytes, at).unwrap();
}

#[test]
fn a_database_that_does_not_open_is_set_aside_and_made_again_from_a_whole_log() {
    let (members, process) = with_snapshots(1);
    process.stop(Signal::TERM).says(0, &[]);
    for (at, damage) in [0, 1, 2, 3, 4].into_iter().zip([
        (|path: &Path| change(path, 0, &[7; 2 * PAGE_BYTES])) as fn(&Path),
        |path| change(path, 0, &[0; 2 * PAGE_BYTES]),
        |path| File::options().write(true).open(path).unwrap().set_len(2 * PAGE_BYTES as u64).unwrap(),
        |path| fs::write(path, "").unwrap(),
        |path| change(path, 100, &[7; 2 * PAGE_BYTES]),
    ]) {
        damage(&database(&members));
        if at == LOST_MAX {
            // Somebody should look at that disk.
            return members.refuses(1, &[], REFUSED, &["4 lost databases (files database.lost-N)", "See to it"]);
        }
        let process = members.serve(1, &[]);
        members.has(&KEYS);
        assert_eq!(set_aside(&members.dir(1)).len(), at + 1);
        snapshot(&members);
        process.stop(Signal::TERM).says(0, &["database.lost-", "it is made again"]);
    }
    unreachable!("the last is refused");
}

const LOST_MAX: usize = 4;

/// Three replicas whose logs are cut; the databases end there.
fn cut_cell() -> Running {
    let mut cell = Running::start(3, 3, &[]);
    cell.serves(&KEYS);
    let request = serde_json::to_string(&OperatorRequest::Snapshot).unwrap();
    for id in 1..=3 {
        for number in ["x", "y", "z"] {
            cell.members.ask(&["put", "number", number]).says(0, &[]);
            let before = cell.status(id).unwrap().counters.engine.snapshots;
            cell.operate(id, &request);
            cell.wait_until(id, "a snapshot", |status| status.counters.engine.snapshots > before);
        }
        cell.wait_until(id, "the cut", |status| status.log.cut > 0);
    }
    cell
}

/// It has taken another one's database by itself, and can lead.
fn is_rebuilt(cell: &mut Running, id: usize) {
    cell.wait_until(id, "it to be rebuilt", |status| {
        status.counters.engine.rebuilds == 1 && status.digests.quarantine.is_none() && status.digests.compared > 0
    });
    assert!(cell.said(id).contains("in quarantine, and will be rebuilt"), "{}", cell.said(id));
    // It never forgot a promise, and so never rejoined.
    assert_eq!(cell.status(id).unwrap().life, 1);
    cell.transfer(id);
    cell.members.has(&KEYS);
    assert!(!cell.members.dir(id).join("quarantine.toml").exists());
}

#[test]
fn a_lost_database_comes_from_another_replica_though_the_log_is_cut() {
    let mut cell = cut_cell();
    let path = |cell: &Running, id: usize| cell.members.dir(id).join("database");
    type Damage = fn(&Path, &Path);
    let damages: [(Damage, usize); 4] = [
        (|own, _| change(own, 0, &[7; 2 * PAGE_BYTES]), 1),
        (|own, _| fs::remove_file(own).unwrap(), 0),
        (|own, _| File::options().write(true).open(own).unwrap().set_len(100).unwrap(), 1),
        (|own, other| fs::copy(other, own).map(drop).unwrap(), 1),
    ];
    for (damage, aside) in damages {
        for id in 1..=3 {
            cell.stop(id);
        }
        let before = set_aside(&cell.members.dir(1)).len();
        let (own, other) = (path(&cell, 1), path(&cell, 2));
        damage(&own, &other);
        for id in 1..=3 {
            cell.launch(id, &[]);
        }
        is_rebuilt(&mut cell, 1);
        assert_eq!(set_aside(&cell.members.dir(1)).len(), before + aside);
    }
}

#[test]
fn an_older_copy_of_a_database_and_a_restart_meanwhile_lead_to_the_same() {
    let mut cell = cut_cell();
    cell.stop(1);
    let copy = cell.members.dir(1).join("../older");
    let database = cell.members.dir(1).join("database");
    fs::copy(&database, &copy).unwrap();
    cell.launch(1, &[]);
    let request = serde_json::to_string(&OperatorRequest::Snapshot).unwrap();
    for number in ["1", "2", "3"] {
        cell.members.ask(&["put", "number", number]).says(0, &[]);
        let status = cell.wait_until(1, "it to be up", |_| true);
        cell.operate(1, &request);
        cell.wait_until(1, "a snapshot", |now| now.counters.engine.snapshots > status.counters.engine.snapshots);
    }
    for id in 1..=3 {
        cell.stop(id);
    }
    fs::rename(&copy, &database).unwrap();
    // Alone it has nobody to ask: it waits in quarantine, over a restart.
    for _ in 0..2 {
        cell.launch(1, &[]);
        let status = cell.wait_until(1, "it to answer", |_| true);
        assert!(status.digests.quarantine.is_some_and(|why| why.contains("the log was cut at slot")));
        cell.stop(1);
    }
    (1..=3).for_each(|id| cell.launch(id, &[]));
    is_rebuilt(&mut cell, 1);
}
