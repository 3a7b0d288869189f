//! Reads that any replica answers from its own database: linearizable, at least as new as a revision, at exactly one. Real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use common::{PATIENCE, Running, synod, wait_for};
use synod_api::{Answer, Consistency, Operation, Refusal, Revision};
use synod_client::{Cause, Client, Options};

/// A client of these replicas alone.
fn client(cell: &Running, ids: &[usize], deadline: Duration) -> Client {
    let endpoints: Vec<String> = ids.iter().map(|id| cell.members.client(*id).to_string()).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    Client::connect(&endpoints, Options { deadline, ..Options::default() }).unwrap()
}

fn refusal(error: &synod_client::Error) -> Refusal {
    match &error.failure().cause {
        Cause::Refused(refusal) | Cause::DeadlineRefused(refusal) => refusal.clone(),
        other => panic!("{other}"),
    }
}

#[test]
fn every_replica_reads_what_was_acknowledged_before() {
    // A lease that a stalled disk does not end.
    let cell = Running::start(3, 3, &["--lease-ms", "3000"]);
    let ids = cell.running();
    let mut writer = client(&cell, &ids, PATIENCE);
    let mut readers: Vec<Client> = ids.iter().map(|id| client(&cell, &[*id], PATIENCE)).collect();
    for number in 0..100_u32 {
        let written = writer.put(b"k", &number.to_le_bytes()).unwrap();
        for reader in &mut readers {
            let seen = reader.get_at(b"k", Consistency::Linearizable).unwrap();
            assert_eq!(&seen.found.unwrap().value[..], &number.to_le_bytes());
            assert_eq!(seen.revision, written, "nobody else writes");
        }
    }
    let master = cell.master();
    for id in ids.into_iter().filter(|id| *id != master) {
        let counters = cell.status(id).unwrap().counters.engine;
        assert!(counters.local_reads >= 100, "{counters:?}");
        assert!((1..=counters.local_reads + 1).contains(&counters.index_rounds), "{counters:?}");
        assert_eq!(counters.lease_reads, 0);
    }
}

#[test]
fn many_reads_share_a_round() {
    const READS: u64 = 1000;
    let cell = Running::start(3, 3, &[]);
    cell.serves(&["a"]);
    let follower = *cell.running().iter().find(|id| **id != cell.master()).unwrap();
    let mut reader = client(&cell, &[follower], PATIENCE);
    let before = cell.status(follower).unwrap().counters.engine;
    let get = || Operation::Get { key: b"a" };
    let tickets: Vec<_> = (0..READS).map(|_| reader.submit_read(get(), Consistency::Linearizable).unwrap()).collect();
    let answers = reader.wait_all(tickets);
    assert!(answers.iter().all(|answer| matches!(answer, Ok(Answer::Read { found: Some(_), .. }))), "{answers:?}");
    let after = cell.status(follower).unwrap().counters.engine;
    assert!(after.local_reads - before.local_reads >= READS, "a read that is asked again is answered again");
    assert!(after.index_rounds - before.index_rounds < READS / 4, "{before:?}, {after:?}");
}

#[test]
fn a_named_revision_is_waited_for_and_what_is_older_or_too_new_is_refused() {
    let cell = Running::start(3, 3, &[]);
    let ids = cell.running();
    let mut writer = client(&cell, &ids, PATIENCE);
    let first = writer.put(b"k", b"one").unwrap();
    let other = writer.put(b"other", b"x").unwrap();
    let last = writer.put(b"k", b"two").unwrap();
    for id in ids {
        let mut reader = client(&cell, &[id], PATIENCE);
        let seen = reader.get_at(b"k", Consistency::AtLeast(last)).unwrap();
        assert_eq!((seen.revision, &seen.found.unwrap().value[..]), (last, &b"two"[..]));
        let seen = reader.get_at(b"k", Consistency::At(last)).unwrap();
        assert_eq!((seen.revision, &seen.found.unwrap().value[..]), (last, &b"two"[..]));
        let seen = reader.get_at(b"other", Consistency::At(other)).unwrap();
        assert_eq!((seen.revision, &seen.found.unwrap().value[..]), (other, &b"x"[..]));
        let gone = reader.get_at(b"k", Consistency::At(first)).unwrap_err();
        assert_eq!(refusal(&gone), Refusal::Compacted { has: last, wanted: first });
        let mut reader = client(&cell, &[id], Duration::from_millis(700));
        let wanted = Revision(last.0 + 1);
        let behind = reader.get_at(b"k", Consistency::AtLeast(wanted)).unwrap_err();
        assert_eq!(refusal(&behind), Refusal::Behind { has: last, wanted });
    }
}

#[test]
fn a_replica_that_reaches_no_master_refuses_a_linearizable_read_and_answers_others() {
    let cell = Running::start(3, 3, &[]);
    cell.serves(&["a"]);
    let master = cell.master();
    let survivor = *cell.running().iter().find(|id| **id != master).unwrap();
    let mut reader = client(&cell, &[survivor], PATIENCE);
    let revision = reader.get_at(b"a", Consistency::Linearizable).unwrap().revision;
    let others: Vec<usize> = cell.running().into_iter().filter(|id| *id != survivor).collect();
    let mut cell = cell;
    others.into_iter().for_each(|id| cell.kill(id));
    wait_for("it to know of no master", || {
        let mut reader = client(&cell, &[survivor], Duration::from_millis(700));
        let refused = reader.get_at(b"a", Consistency::Linearizable).err()?;
        assert_eq!(refusal(&refused), Refusal::Unconfirmed { has: revision });
        Some(())
    });
    for consistency in [Consistency::AtLeast(Revision::NONE), Consistency::AtLeast(revision), Consistency::At(revision)]
    {
        assert_eq!(reader.get_at(b"a", consistency).unwrap().revision, revision);
    }
}

#[test]
fn the_command_says_how_new_a_read_must_be() {
    let mut cell = Running::start(1, 1, &[]);
    cell.serves(&["a"]);
    let endpoints = cell.members.endpoints();
    let get = |more: &[&str]| synod([&["get", "a", "--deadline-ms", "1000", "--endpoints", &endpoints], more].concat());
    let line: serde_json::Value =
        serde_json::from_str(get(&["--json", "--consistency", "linearizable"]).output()).unwrap();
    let revision = line["revision"].as_u64().unwrap();
    let (now, next) = (revision.to_string(), (revision + 1).to_string());
    assert_eq!(get(&["--consistency", "serializable"]).output(), "a\n");
    assert_eq!(get(&["--at-least", &now]).output(), "a\n");
    assert_eq!(get(&["--at", &now]).output(), "a\n");
    let behind = get(&["--at-least", &next]);
    assert!(!behind.status.success());
    assert!(behind.stderr.contains(&format!("applied up to revision {now}, not up to revision {next}")), "{behind:?}");
    get(&["--at", &now, "--at-least", &now]).says(2, &["cannot be used with"]);
    cell.stop(1);
}
