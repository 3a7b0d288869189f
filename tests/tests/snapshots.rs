//! Cells of real processes whose logs are cut: snapshots are made, segments used again, and who was away for longer than the log
//! reaches back is caught up by another replica's snapshot.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::Command;

use common::{TestCell, program, temp_dir, torture, wait_for};
use synod_client::Client;
use synod_node::status::Status;

/// A log of 64 MiB, and a snapshot after each four.
const CUT: [&str; 6] = ["--segment-mb", "4", "--log-mb-max", "64", "--snapshot-log-mb", "4"];
const VALUE_BYTES: usize = 100 << 10;

fn value(number: usize) -> Vec<u8> {
    (0..VALUE_BYTES).map(|at| (at / 7 + number * 13) as u8).collect()
}

/// Keys are written again and again: the database stays small, the log does not.
const KEYS: usize = 30;

#[track_caller]
fn put(client: &mut Client, numbers: std::ops::Range<usize>) {
    for number in numbers {
        client.put(format!("key/{}", number % KEYS).as_bytes(), &value(number)).unwrap();
    }
}

#[track_caller]
fn has(client: &mut Client, upto: usize) {
    for number in upto - KEYS..upto {
        let found = client.get(format!("key/{}", number % KEYS).as_bytes()).unwrap().map(|found| found.value);
        assert!(found.is_some_and(|found| found == value(number)), "key/{}", number % KEYS);
    }
}

fn status(cell: &TestCell, id: u16) -> Status {
    cell.cell.status(id).unwrap()
}

#[test]
fn a_log_many_times_its_bound_is_written_and_survives_restarts() {
    let mut cell = TestCell::start(3, &CUT);
    let mut client = cell.client();
    // 100 MiB through a log of 64.
    put(&mut client, 0..1000);
    for id in cell.cell.ids() {
        let seen = status(&cell, id);
        assert!(seen.counters.engine.snapshots >= 3 && seen.log.cut > 0, "{seen:?}");
        assert!(seen.log.segments <= 16, "{seen:?}");
    }
    for id in cell.cell.ids() {
        cell.cell.kill_replica(id).unwrap();
    }
    for id in cell.cell.ids() {
        cell.cell.start_replica(id).unwrap();
    }
    cell.master();
    let mut client = cell.client();
    has(&mut client, 1000);
    // From the snapshot, and not from the first slot on.
    let seen = status(&cell, 1);
    assert!(seen.database.snapshot > 0 && seen.log.cut > 0, "{seen:?}");
    put(&mut client, 1000..1100);
    has(&mut client, 1100);
}

#[test]
fn who_was_away_for_longer_than_the_log_reaches_back_is_given_a_snapshot() {
    let mut cell = TestCell::start(3, &CUT);
    let mut client = cell.client();
    put(&mut client, 0..50);
    let before = cell.wait_until_alike(&cell.cell.ids());
    let master = cell.master();
    let [away, stays] = cell.others(master)[..] else { panic!("three replicas") };
    cell.cell.kill_replica(away).unwrap();
    put(&mut client, 50..800);
    assert!(status(&cell, master).log.cut > before.chosen);
    cell.restart(away);
    let seen = wait_for("the snapshot to be installed", || {
        let seen = cell.cell.status(away)?;
        (seen.counters.engine.snapshots_installed > 0).then_some(seen)
    });
    assert!(seen.log.cut > before.chosen, "{seen:?}");
    cell.wait_until_alike(&cell.cell.ids());
    // It votes, and serves: with the other follower gone, it is half of the majority.
    cell.cell.kill_replica(stays).unwrap();
    put(&mut client, 800..850);
    // And it finds all of it again, after a restart.
    cell.cell.kill_replica(away).unwrap();
    cell.restart(away);
    put(&mut client, 850..900);
    has(&mut client, 900);
    cell.restart(stays);
    cell.wait_until_alike(&cell.cell.ids());
}

#[test]
fn kills_while_snapshots_are_written_and_sent_lose_nothing() {
    // One round for each moment. Whether all are hit depends on what else the machine does: that is for the command to judge.
    let (_, text) = torture(&["snapshots", "--rounds", "5"]);
    assert!(text.contains("files at the end      ") && text.contains(" acknowledged writes: 0 lost"), "{text}");
}

#[test]
fn who_cannot_cut_the_power_is_told_what_is_missing() {
    let dir = temp_dir();
    let mut command = Command::new(program());
    // Where no program is, but for those that are always found.
    command.args(["power", "--cuts", "1", "--dir"]).arg(dir.path()).env("PATH", dir.path());
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(69) => assert!(
            ["apt-get install", "root", "modprobe", "--file-system"].iter().any(|what| text.contains(what)),
            "{text}"
        ),
        // A machine that has all of it there.
        code => assert_eq!(code, Some(0), "{text}"),
    }
}
