//! `synod wal` on the directories of real replicas: what it says of sound and of damaged logs, and that it changes nothing.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Ended, Members, contents, segments, synod};
use rustix::process::Signal;
use serde_json::Value;

const KEYS: [&str; 4] = ["a", "b", "c", "d"];

fn wal(command: &str, dir: &Path, more: &[&str]) -> Ended {
    let before = contents(dir);
    let ended = synod(["wal", command, dir.to_str().unwrap()].iter().chain(more).copied());
    assert!(contents(dir) == before, "whoever looks changes nothing");
    ended
}

/// Checks the exit status, and the standard output for these texts.
#[track_caller]
fn tells(ended: &Ended, code: i32, texts: &[&str]) -> String {
    ended.says(code, &[]);
    let told = String::from_utf8(ended.stdout.clone()).unwrap();
    for text in texts {
        assert!(told.contains(text), "no {text:?} in:\n{told}");
    }
    told
}

fn json(ended: &Ended) -> Vec<Value> {
    std::str::from_utf8(&ended.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Where frames begin in the first segment.
fn frames(dir: &Path) -> Vec<usize> {
    let bytes = fs::read(&segments(dir)[0]).unwrap();
    (0..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(b"SYNODWAL")).collect()
}

fn write(dir: &Path, at: usize, bytes: &[u8]) {
    fs::File::options().write(true).open(&segments(dir)[0]).unwrap().write_all_at(bytes, at as u64).unwrap();
}

#[test]
fn a_log_that_was_stopped_is_sound_and_its_records_are_told() {
    let members = Members::stopped_with(&KEYS);
    let dir = members.dir(1);
    tells(&wal("verify", &dir, &[]), 0, &["sound: ", "segments", "slots 1 to ", "ends cleanly, with a mark"]);
    let verdict = json(&wal("verify", &dir, &["--json"])).remove(0);
    assert_eq!((verdict["sound"].as_bool(), verdict["end"].as_str()), (Some(true), Some("marked")));

    let stat = json(&wal("stat", &dir, &["--json"])).remove(0);
    let records = json(&wal("dump", &dir, &["--json"]));
    assert_eq!(stat["records"].as_u64().unwrap() as usize, records.len());
    assert!(stat["last_slot"].as_u64().unwrap() > KEYS.len() as u64);
    assert_eq!(stat["first_slot"], 1);
    assert_eq!(stat["starts"].as_array().unwrap().len(), 2, "the log was made in one start of it and written in two");
    tells(&wal("stat", &dir, &[]), 0, &["the log begins at segment 1, cut below slot 0", "records", "promised"]);
    let of = |kind: &str| records.iter().filter(|record| record["kind"] == kind).count() as u64;
    assert_eq!(Some(of("accepted")), stat["records_accepted"].as_u64());
    assert_eq!(Some(of("hard-state")), stat["records_hard_state"].as_u64());
    let some = json(&wal("dump", &dir, &["--json", "--slot", "2..3"]));
    assert!(!some.is_empty() && some.iter().all(|record| [2, 3].contains(&record["slot"].as_u64().unwrap())));
    tells(&wal("dump", &dir, &["--slot", "2"]), 0, &["slot 2 ", "ballot ", "accepted", "bytes", "frame", "segment 1"]);
    wal("dump", &dir, &["--slot", "3..2"]).says(2, &["3..2 is empty"]);
}

#[test]
fn a_directory_in_use_or_without_a_log_is_refused() {
    let (members, process) = Members::single_with(&["a"]);
    let dir = members.dir(1);
    // Its files change while it runs, so they are not compared.
    for command in ["verify", "dump", "stat"] {
        synod(["wal", command, dir.to_str().unwrap()]).says(2, &["a replica runs on", "stop it first"]);
    }
    process.stop(Signal::KILL);
    // Killed while idle: that is an end like any other.
    tells(&wal("verify", &dir, &[]), 0, &["sound: "]);
    let empty = common::temp_dir();
    wal("verify", empty.path(), &[]).says(2, &["is empty: no replica was ever started there"]);
    synod(["wal", "verify", "/nowhere/at/all"]).says(2, &["cannot look into /nowhere/at/all"]);
    for file in segments(&dir) {
        fs::remove_file(file).unwrap();
    }
    wal("verify", &dir, &[]).says(2, &["no log at all", "its state is lost"]);
}

#[test]
fn damage_is_named_with_what_is_lost_and_a_torn_tail_is_none() {
    let members = Members::stopped_with(&KEYS);
    let dir = members.dir(1);
    let frames = frames(&dir);
    let sound = fs::read(&segments(&dir)[0]).unwrap();

    // The last accepted value: a frame is damaged that others follow.
    let records = json(&wal("dump", &dir, &["--json", "--slot", "3"]));
    let offset = records[0]["offset"].as_u64().unwrap() as usize;
    write(&dir, offset + 33, &[sound[offset + 33] ^ 1]);
    let frame = records[0]["frame"].to_string();
    let ended = wal("verify", &dir, &[]);
    tells(
        &ended,
        1,
        &[&format!("damaged in 1 places: frame {frame}, which had slots "), "(segment 1", "from the others"],
    );
    let verdict = json(&wal("verify", &dir, &["--json"])).remove(0);
    assert_eq!((verdict["sound"].as_bool(), verdict["end"].as_str()), (Some(false), Some("damaged")));
    assert!(verdict["lost_first_slot"].as_u64().unwrap() <= 3 && verdict["lost_last_slot"].as_u64().unwrap() >= 3);
    wal("stat", &dir, &[]).says(1, &["`synod wal verify` says more"]);
    wal("dump", &dir, &[]).says(1, &["`synod wal verify` says more"]);
    write(&dir, offset + 33, &sound[offset + 33..offset + 34]);
    tells(&wal("verify", &dir, &[]), 0, &["sound: "]);

    // The last mark away, and the frame before it torn: as a crash leaves it.
    let [.., torn, mark] = frames[..] else { panic!("a log has frames") };
    write(&dir, mark, &[0; 4096]);
    write(&dir, torn + 300, &[0x55; 100]);
    let ended = wal("verify", &dir, &[]);
    if tells(&ended, 0, &["sound: "]).contains("torn") {
        tells(&ended, 0, &[&format!("torn (segment 1, offset {torn})"), "never acknowledged", "cuts it off"]);
    }

    // A newer format, whatever else it says.
    let mut newer = sound[..16].to_vec();
    newer[8] = 9;
    let prelude = crc32c::crc32c(&newer[..12]);
    newer[12..16].copy_from_slice(&prelude.to_le_bytes());
    write(&dir, 0, &newer);
    tells(
        &wal("verify", &dir, &[]),
        1,
        &["format version 9, and this program reads version 2", "Use a build of the version"],
    );
    write(&dir, 0, &sound[..16]);

    // The segment of another replica.
    let other = Members::stopped_with(&["x"]);
    fs::copy(&segments(&other.dir(1))[0], &segments(&dir)[0]).unwrap();
    tells(&wal("verify", &dir, &[]), 1, &["segment 1 belongs to cell", "put the right file back"]);
}

#[test]
fn help_teaches() {
    tells(&synod(["wal", "--help"]), 0, &["verify", "dump", "stat", "must be stopped"]);
    tells(&synod(["wal", "verify", "--help"]), 0, &["Exit status 0: sound", "torn tail"]);
    tells(&synod(["wal", "dump", "--help"]), 0, &["--slot", "columns"]);
}
