//! A database that differs from the others', or is damaged, is found, put in quarantine, and rebuilt (rule P14): real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use common::{Running, wait_for};
use synod_node::databases::Place;
use synod_node::directory::Directory;
use synod_node::engine::Evidence;
use synod_node::operator::OperatorRequest;
use synod_node::serve::exit;
use synod_store::{PAGE_BYTES, Pacing};

const KEYS: [&str; 3] = ["a", "b", "c"];
const DATABASE_BYTES_MAX: u64 = 1 << 30;

/// A cell of three that has these keys, each replica with a snapshot.
fn cell() -> Running {
    let mut cell = Running::start(3, 3, &[]);
    for key in KEYS {
        cell.members.ask(&["put", key, key]).says(0, &[]);
    }
    let request = serde_json::to_string(&OperatorRequest::Snapshot).unwrap();
    for id in 1..=3 {
        cell.wait_until(id, "all to be applied", |status| status.database.rows > KEYS.len() as u64);
        cell.operate(id, &request);
        cell.wait_until(id, "a snapshot", |status| status.counters.engine.snapshots > 0);
    }
    // So that every log reaches beyond every snapshot, and no start needs another replica's.
    cell.serves(&KEYS);
    let chosen = cell.master_status().chosen;
    for id in 1..=3 {
        cell.wait_until(id, "all to be applied", |status| status.chosen >= chosen);
    }
    cell
}

/// Whoever is not the master.
fn follower(cell: &Running) -> usize {
    let master = cell.master();
    (1..=3).find(|id| *id != master).unwrap()
}

/// Adds a row to a stopped replica's database that no command has written: as if it had applied one differently.
fn plant(cell: &Running, id: usize, value: &[u8]) {
    let dir = cell.members.dir(id);
    let identity = Directory::open(&dir, false).unwrap().identity().unwrap().unwrap();
    let (mut store, opened) = Place::at(&dir, &identity, DATABASE_BYTES_MAX).open_existing().unwrap();
    store.put_plain(b"\xffplanted", value);
    // Both snapshots that are kept.
    for _ in 0..2 {
        let durable = store.freeze_snapshot(&opened.handle).write_out(&Pacing::default()).unwrap();
        store.snapshot_done(durable);
    }
}

/// Flips a byte in every leaf of a stopped replica's database.
fn flip_leaves(cell: &Running, id: usize) {
    let file = File::options().read(true).write(true).open(cell.members.dir(id).join("database")).unwrap();
    let pages = file.metadata().unwrap().len() / PAGE_BYTES as u64;
    let mut flipped = 0;
    for page in 2..pages {
        let mut bytes = [0; PAGE_BYTES];
        file.read_exact_at(&mut bytes, page * PAGE_BYTES as u64).unwrap();
        const LEAF: u8 = 1;
        if bytes[4] == LEAF {
            file.write_all_at(&[bytes[1000] ^ 1], page * PAGE_BYTES as u64 + 1000).unwrap();
            flipped += 1;
        }
    }
    assert!(flipped > 0);
}

fn evidence(cell: &Running, id: usize) -> Vec<PathBuf> {
    let names = fs::read_dir(cell.members.dir(id)).unwrap().map(|entry| entry.unwrap().path());
    let is_evidence = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with("quarantine-");
    names.filter(is_evidence).collect()
}

/// It is equal to the others, and can serve: it does as the master.
fn is_whole(cell: &mut Running, id: usize) {
    cell.wait_until(id, "it to be equal", |status| {
        let digests = &status.digests;
        digests.quarantine.is_none() && digests.digest.is_some() && digests.compared > 0
    });
    cell.transfer(id);
    cell.members.has(&KEYS);
}

#[test]
fn the_odd_one_out_is_found_named_and_rebuilt() {
    let mut cell = cell();
    let odd = follower(&cell);
    cell.stop(odd);
    plant(&cell, odd, b"1");
    cell.launch(odd, &[]);
    cell.wait_until(odd, "it to be rebuilt", |status| status.counters.engine.rebuilds == 1);
    assert!(cell.said(odd).contains("in quarantine from slot"), "{}", cell.said(odd));
    is_whole(&mut cell, odd);

    let files = evidence(&cell, odd);
    assert_eq!(files.len(), 1, "{files:?}");
    let evidence: Evidence = toml::from_str(&fs::read_to_string(&files[0]).unwrap()).unwrap();
    assert_eq!(usize::from(evidence.replica), odd);
    assert_ne!(evidence.own, evidence.majority);
    assert!(evidence.first_apart.is_some_and(|first| first <= evidence.slot), "{evidence:?}");
    let said =
        |digest: &Option<String>| evidence.said.iter().filter(|said| Some(&said.digest) == digest.as_ref()).count();
    assert_eq!((said(&evidence.own), said(&evidence.majority)), (1, 2), "{evidence:?}");
    assert!(!cell.members.dir(odd).join("quarantine.toml").exists());
    cell.stop(odd);
    let dir = cell.members.dir(odd);
    let arguments = ["digest".as_ref(), dir.as_os_str(), "--json".as_ref()];
    let before = common::contents(&dir);
    let printed = common::synod(arguments).output().to_owned();
    assert!(printed.lines().count() > 1 && printed.contains("\"digest\":"), "{printed}");
    assert!(common::contents(&dir) == before, "whoever looks changes nothing");
    // What was rebuilt is there after a restart.
    cell.launch(odd, &[]);
    is_whole(&mut cell, odd);
    assert_eq!(cell.status(odd).unwrap().counters.engine.quarantines, 0);
}

#[test]
fn a_damaged_page_is_rebuilt_by_the_next_start() {
    let mut cell = cell();
    let damaged = follower(&cell);
    cell.stop(damaged);
    flip_leaves(&cell, damaged);
    // It meets the page in its log, or in the next command.
    cell.launch(damaged, &["--scrub-mb-per-s", "0"]);
    wait_for("a command that needs the page", || {
        cell.members.ask(&["put", "d", "d"]);
        cell.members.dir(damaged).join("database.damaged").exists().then_some(())
    });
    let ended = cell.take(damaged).desert();
    ended.says(exit::DATABASE_DAMAGED.into(), &["is damaged"]);
    cell.launch(damaged, &[]);
    cell.wait_until(damaged, "it to be rebuilt", |status| status.counters.engine.rebuilds == 1);
    is_whole(&mut cell, damaged);
    assert!(!cell.members.dir(damaged).join("database.damaged").exists());
}

#[test]
fn a_byte_flipped_on_the_disk_is_found_by_the_scrubber_and_rebuilt() {
    let mut cell = cell();
    let rotten = follower(&cell);
    cell.stop(rotten);
    flip_leaves(&cell, rotten);
    cell.launch(rotten, &[]);
    wait_for("what the scrubber, or a command, found", || {
        let said = cell.said(rotten);
        said.contains("is damaged").then_some(())
    });
    if !cell.said(rotten).contains("in quarantine") {
        // A command was quicker, and met the page.
        cell.take(rotten).desert().says(exit::DATABASE_DAMAGED.into(), &["is damaged"]);
        cell.launch(rotten, &[]);
    }
    cell.wait_until(rotten, "it to be rebuilt", |status| status.counters.engine.rebuilds == 1);
    is_whole(&mut cell, rotten);
}

#[test]
fn three_different_databases_stop_the_cell_until_an_operator_decides() {
    let mut cell = cell();
    for id in 1..=3 {
        cell.stop(id);
    }
    plant(&cell, 1, b"1");
    plant(&cell, 2, b"2");
    for id in 1..=3 {
        cell.launch(id, &[]);
    }
    wait_for("the halt", || {
        let master = cell.master();
        cell.status(master)?.digests.halted
    });
    for command in [&["put", "a", "new"][..], &["get", "a"]] {
        let ended = cell.members.ask(command);
        assert!(!ended.status.success() && ended.stderr.contains("no majority of them is equal"), "{ended:?}");
    }

    // The operator says that replica 3 is right.
    cell.stop(1);
    cell.stop(2);
    cell.launch(1, &["--rebuild"]);
    cell.wait_until(1, "it to be rebuilt", |status| status.counters.engine.rebuilds == 1);
    wait_for("the end of the halt", || cell.master_status().digests.halted.is_none().then_some(()));
    cell.members.has(&KEYS);
    // Now the third can tell by itself. Or what it lacks is cut from the others' logs, and it takes over a database before it has
    // compared its own.
    let right = cell.status(3).unwrap().digests.digest;
    cell.launch(2, &[]);
    cell.wait_until(2, "it to be equal", |status| status.digests.digest == right);
    wait_for("the end of the halt", || cell.master_status().digests.halted.is_none().then_some(()));
    is_whole(&mut cell, 2);
}

#[test]
fn the_tool_names_the_first_slot_that_differs() {
    let mut cell = cell();
    for id in 1..=3 {
        cell.stop(id);
    }
    let digest = |other: usize| {
        let (dir, against) = (cell.members.dir(1), cell.members.dir(other));
        common::synod(["digest".as_ref(), dir.as_os_str(), "--against".as_ref(), against.as_os_str()])
    };
    let ended = digest(2);
    assert!(ended.output().starts_with("equal at all slots"), "{ended:?}");
    plant(&cell, 3, b"1");
    let ended = digest(3);
    ended.says(1, &[]);
    let printed = String::from_utf8(ended.stdout).unwrap();
    assert!(printed.starts_with("they went apart at slot "), "{printed}");
}
