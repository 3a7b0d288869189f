//! A damaged log of a real replica: what was in it comes back from the others, while one good copy is left (rules L4, L5).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Running, segments, synod, wait_for};
use serde_json::Value;

const KEYS: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];
/// In the middle of what the keys above take.
const SLOT: &str = "6";

fn records(dir: &Path) -> Vec<Value> {
    let ended = synod(["wal", "dump", dir.to_str().unwrap(), "--json", "--slot", SLOT]);
    let lines = String::from_utf8(ended.stdout).unwrap();
    let records = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    records.filter(|record| record["slot"].is_u64()).collect()
}

/// A bit of what a replica that is stopped has accepted at the slot falls over.
fn damage(dir: &Path) {
    let held = records(dir);
    assert_eq!(held.len(), 1, "{held:?}");
    let at = held[0]["offset"].as_u64().unwrap() + 40;
    let file = fs::File::options().read(true).write(true).open(&segments(dir)[0]).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    synod(["wal", "verify", dir.to_str().unwrap()]).says(1, &[]);
}

/// A cell with the keys, stopped and started again with the slot damaged on so many.
fn started_with_damage(on: usize) -> Running {
    let mut cell = Running::start(3, 3, &[]);
    cell.serves(&KEYS);
    (1..=3).for_each(|id| drop(cell.stop(id)));
    (1..=on).for_each(|id| damage(&cell.members.dir(id)));
    (1..=3).for_each(|id| cell.launch(id, &[]));
    cell
}

#[test]
fn what_one_or_two_have_lost_comes_back_from_the_others() {
    for on in [1, 2] {
        let mut cell = started_with_damage(on);
        for id in 1..=on {
            let status = cell.wait_until(id, "it is whole again and votes", |status| {
                let damage = &status.log.damage;
                damage.holes == 1 && damage.slots_lost == damage.slots_repaired && status.voting == "voting"
            });
            assert!(status.log.damage.slots_lost >= 1 && status.log.damage.held_up.is_none());
            assert!(cell.said(id).contains("the log is damaged in 1 places: frame "), "{}", cell.said(id));
        }
        cell.members.has(&KEYS);
        cell.serves(&["more"]);
        // The next start finds it in the own log, and needs nobody.
        (1..=3).for_each(|id| drop(cell.stop(id)));
        assert!(
            records(&cell.members.dir(1))
                .iter()
                .any(|record| ["chosen", "accepted"].contains(&record["kind"].as_str().unwrap()))
        );
        [1, 2].into_iter().for_each(|id| cell.launch(id, &[]));
        cell.members.has(&KEYS);
        let status = cell.status(1).unwrap();
        assert_eq!(status.log.damage.slots_lost, 0, "{:?}", status.log.damage);
    }
}

#[test]
fn what_all_have_lost_stops_the_cell_and_is_named() {
    let cell = started_with_damage(3);
    let why = wait_for("somebody says why it does not lead", || {
        (1..=3).filter_map(|id| cell.status(id)).find_map(|status| status.log.damage.held_up)
    });
    assert!(why.contains("has lost it, and nobody else who answered has it"), "{why}");
    assert!((1..=3).filter_map(|id| cell.status(id)).all(|status| !status.is_master));
}

#[test]
fn rot_in_the_log_of_a_running_replica_is_found_and_cut_off() {
    let mut cell = Running::start(3, 3, &["--segment-mb", "4"]);
    let value = "v".repeat(100_000);
    let keys: Vec<String> = (0..50).map(|at| format!("key-{at}")).collect();
    for key in &keys {
        cell.members.ask(&["put", key, &value]).says(0, &[]);
    }
    let rotten = (1..=3).find(|id| *id != cell.master()).unwrap();
    let at_all = ["scrub", "--endpoints", &cell.members.endpoints()];
    let ended = synod(at_all);
    assert_eq!(ended.output().matches("of log are sound").count(), 3, "{ended:?}");

    let dir = cell.members.dir(rotten);
    let file = fs::File::options().read(true).write(true).open(&segments(&dir)[0]).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 1 << 20).unwrap();
    file.write_all_at(&[byte[0] ^ 4], 1 << 20).unwrap();
    file.sync_all().unwrap();
    let ended = synod(at_all);
    ended.says(1, &[]);
    let told = String::from_utf8(ended.stdout).unwrap();
    assert!(told.contains(&format!("replica {rotten}: 1 segments of the log are damaged")), "{told}");
    assert_eq!(cell.status(rotten).unwrap().scrub.log_damaged, 1);
    assert!(cell.said(rotten).contains("the log is damaged: frame "), "{}", cell.said(rotten));

    // Nothing is written meanwhile, and two snapshots come all the same.
    wait_for("the log to be cut behind it", || synod(at_all).status.success().then_some(()));
    assert_eq!(cell.status(rotten).unwrap().counters.engine.snapshots, 2);
    let others = (1..=3).filter(|id| *id != rotten);
    others.for_each(|id| assert_eq!(cell.status(id).unwrap().counters.engine.snapshots, 0));
    cell.stop(rotten);
    cell.launch(rotten, &[]);
    let status = cell.wait_until(rotten, "it votes again", |status| status.voting == "voting");
    assert_eq!((status.log.damage.holes, status.voting.as_str()), (0, "voting"));
    let ended = cell.members.ask(&["get", &keys[0]]);
    assert_eq!(ended.output().trim(), value);
}
