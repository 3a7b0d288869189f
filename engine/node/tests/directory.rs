//! A replica's directory over its life: made by `--bootstrap` and by nothing else, found again, and refused when it is
//! somebody else's, in use, damaged or lost (rules P11, P12, L4). A refusal changes nothing, so that whatever is still
//! there can be saved.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Members, REFUSED, Running, contents, segments, status, synod, temp_dir, wait_for};
use rustix::process::Signal;

#[test]
fn an_empty_directory_needs_bootstrap() {
    let members = Members::new(1);
    let dir = members.dir(1);
    let text = dir.to_str().unwrap();
    // One that is not there, and one that is.
    for _ in 0..2 {
        synod(members.arguments(1, &[]))
            .says(REFUSED, &[text, "is empty", "--bootstrap", "first start of the whole cell"]);
        assert!(contents(&dir).keys().eq(["lock"]), "{:?}", contents(&dir).keys());
    }
}

#[test]
fn a_bootstrapped_replica_serves_stops_cleanly_and_finds_its_data_again() {
    let keys = ["a", "b", "c"];
    let (members, process) = Members::single_with(&keys);
    let cell = status(&members.client(1).to_string()).unwrap().cell;
    process.stop(Signal::TERM).says(0, &[&cell, "serving clients on", "synod: stopped"]);
    for signal in [Signal::INT, Signal::TERM] {
        let process = members.serve(1, &[]);
        members.has(&keys);
        assert_eq!(status(&members.client(1).to_string()).unwrap().cell, cell);
        process.stop(signal).says(0, &["recovered", "synod: stopped"]);
    }
    // After the first time it means nothing: a supervisor may say it always.
    let process = members.serve(1, &["--bootstrap"]);
    members.has(&keys);
    assert_eq!(status(&members.client(1).to_string()).unwrap().cell, cell);
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn a_killed_replica_finds_its_data_again() {
    let (members, process) = Members::single_with(&["a", "b"]);
    let ended = process.stop(Signal::KILL);
    assert_eq!(ended.status.code(), None);
    let process = members.serve(1, &[]);
    members.has(&["a", "b"]);
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn another_replicas_directory_is_refused() {
    let members = Members::new(2);
    let processes = [1, 2].map(|id| members.start(id, &["--bootstrap"]));
    members.wait_for_coordinator();
    for process in processes {
        process.stop(Signal::TERM).says(0, &[]);
    }
    let before = contents(&members.dir(1));
    synod(members.arguments_in(2, &members.dir(1), &["--bootstrap"])).says(
        REFUSED,
        &[
            members.dir(1).to_str().unwrap(),
            "belongs to replica 1 of cell",
            "this is replica 2",
            "wrong directory, or wrong id",
        ],
    );
    assert!(before == contents(&members.dir(1)), "the refusal changed something");
}

/// Whoever the flags name: who votes is in the log, and a member more in one replica's flags does not make a cell of two.
#[test]
fn the_log_counts_where_flags_name_other_members() {
    let members = Members::stopped_with(&["a"]);
    let mut process = members.serve(1, &["--member", "2=127.0.0.1:15003,127.0.0.1:15004"]);
    members.has(&["a"]);
    assert_eq!(members.ask(&["put", "b", "b"]).output(), "");
    let status = status(&members.client(1).to_string()).unwrap();
    assert!(status.members.iter().map(|member| member.replica).eq([1]), "{:?}", status.members);
    assert!(status.peers.is_empty(), "{:?}", status.peers);
    process.must_run();
    let texts = ["names members [1, 2], the log says [1]", "what the log says counts", "synod member list"];
    process.stop(Signal::TERM).says(0, &texts);
    let process = members.serve(1, &[]);
    members.has(&["a", "b"]);
    let ended = process.stop(Signal::TERM);
    assert!(!ended.says(0, &[]).contains("what the log says counts"), "{ended:?}");
}

#[test]
fn a_directory_in_use_is_refused() {
    let (members, process) = Members::single_with(&["a"]);
    let dir = members.dir(1);
    synod(members.arguments(1, &["--bootstrap"])).says(REFUSED, &[dir.to_str().unwrap(), "in use by another process"]);
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn a_segment_of_another_cell_is_refused() {
    let ours = Members::stopped_with(&["a"]);
    let theirs = Members::stopped_with(&["a"]);
    let (ours_first, theirs_first) = (&segments(&ours.dir(1))[0], &segments(&theirs.dir(1))[0]);
    let right = fs::read(ours_first).unwrap();
    fs::copy(theirs_first, ours_first).unwrap();
    let identity = fs::read_to_string(theirs.dir(1).join("identity.toml")).unwrap();
    let cell = identity.lines().find_map(|line| line.strip_prefix("cell = ")).unwrap().trim_matches('"');
    ours.refuses(
        1,
        &["--bootstrap"],
        REFUSED,
        &[
            ours.dir(1).to_str().unwrap(),
            &format!("segment 1 belongs to cell {cell}"),
            "Nothing was changed",
            "put the right file back",
        ],
    );
    fs::write(ours_first, right).unwrap();
    let process = ours.serve(1, &[]);
    ours.has(&["a"]);
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn a_log_of_another_replica_of_the_cell_is_a_loss_and_the_replica_rejoins() {
    let mut cell = Running::start(3, 3, &[]);
    cell.serves(&["a"]);
    [2, 3].into_iter().for_each(|id| drop(cell.stop(id)));
    fs::copy(&segments(&cell.members.dir(2))[0], &segments(&cell.members.dir(3))[0]).unwrap();
    [2, 3].into_iter().for_each(|id| cell.launch(id, &[]));
    cell.wait_until(3, "it votes in another life", |status| status.voting == "voting" && status.life > 1);
    assert!(cell.said(3).contains("segment 1 belongs to replica 2"), "{}", cell.said(3));
    cell.members.has(&["a"]);
}

#[test]
fn another_segment_size_is_refused() {
    let members = Members::stopped_with(&["a"]);
    for segment in segments(&members.dir(1)) {
        let file = fs::File::options().write(true).open(segment).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
    let texts = ["segment 1 has 2097152 bytes where the settings say 4194304", "--segment-mb", "cut short"];
    members.refuses(1, &[], REFUSED, &texts);
}

#[test]
fn a_log_cut_short_is_refused() {
    let members = Members::stopped_with(&["a"]);
    let file = fs::File::options().write(true).open(&segments(&members.dir(1))[0]).unwrap();
    file.set_len(8192).unwrap();
    let texts =
        ["the end of the log is lost, from frame 3 on (segment 1, offset 8192)", "cut short", "its state is lost"];
    members.refuses(1, &[], REFUSED, &texts);
}

#[test]
fn a_member_that_waits_for_the_first_one_says_so() {
    let members = Members::new(2);
    let first = members.peer(1).to_string();
    let wait = || {
        let mut process = members.start(2, &["--bootstrap"]);
        wait_for("a word about the waiting", || {
            process.must_run();
            process.stderr().contains("waiting for member 1").then_some(())
        });
        process
    };
    // Stopped while it waits, or left alone by who started it: it has not become anything yet.
    let ended = wait().stop(Signal::TERM);
    assert!(ended.stderr.contains(&first) && ended.stderr.contains("started with --bootstrap too"), "{ended:?}");
    assert_ne!(ended.status.code(), Some(REFUSED), "{ended:?}");
    wait().desert().says(0, &["waiting for member 1"]);
    assert!(contents(&members.dir(2)).keys().eq(["lock"]), "{:?}", contents(&members.dir(2)).keys());

    let second = wait();
    let first = members.serve(1, &["--bootstrap"]);
    members.wait_for_coordinator();
    assert_eq!(members.ask(&["put", "a", "a"]).output(), "");
    first.desert().says(0, &["synod: stopped"]);
    second.stop(Signal::TERM).says(0, &["synod: stopped"]);
}

/// The members of a cell that has served lose their directories one by one, by an operator's mistake, and are
/// bootstrapped again: neither may vote as if it had promised nothing.
#[test]
fn a_wiped_replica_is_not_bootstrapped_into_its_cell_again() {
    let members = Members::new(3);
    let mut processes = [1, 2, 3].map(|id| Some(members.start(id, &["--bootstrap"])));
    members.wait_for_coordinator();
    assert_eq!(members.ask(&["put", "a", "a"]).output(), "");
    let cell = status(&members.client(1).to_string()).unwrap().cell;
    let aside = temp_dir();

    // Replica 2 was introduced by replica 1, which remembers.
    let kept = aside.path().join("replica-2");
    processes[1].take().unwrap().stop(Signal::TERM).says(0, &[]);
    rename(&members.dir(2), &kept);
    let address = members.peer(1).to_string();
    let texts = ["member 1", &address, "refuses to introduce", "its state is lost", "must not be bootstrapped again"];
    synod(members.arguments(2, &["--bootstrap"])).says(REFUSED, &texts);
    // Again, and after a restart of the one that remembers.
    synod(members.arguments(2, &["--bootstrap"])).says(REFUSED, &texts);
    processes[0].take().unwrap().stop(Signal::TERM).says(0, &[]);
    processes[0] = Some(members.serve(1, &[]));
    synod(members.arguments(2, &["--bootstrap"])).says(REFUSED, &texts);
    assert!(contents(&members.dir(2)).keys().eq(["lock"]), "a refused introduction left something");
    members.has(&["a"]);
    fs::remove_dir_all(members.dir(2)).unwrap();
    rename(&kept, &members.dir(2));
    processes[1] = Some(members.serve(2, &[]));

    // Replica 1 made the id, and must not make another.
    processes[0].take().unwrap().stop(Signal::TERM).says(0, &[]);
    rename(&members.dir(1), &aside.path().join("replica-1"));
    let texts = ["is empty", "a cell that has begun", "Start it without --bootstrap"];
    synod(members.arguments(1, &["--bootstrap"])).says(REFUSED, &texts);
    members.has(&["a"]);

    // It rejoins, and is told all; then the cell lives on it and one more.
    processes[0] = Some(members.serve(1, &[]));
    rejoins(&members, 1);
    assert_eq!(status(&members.client(1).to_string()).unwrap().cell, cell);
    processes[1].take().unwrap().stop(Signal::TERM).says(0, &[]);
    assert_eq!(members.ask(&["put", "b", "b"]).output(), "");
    members.has(&["a", "b"]);
    processes[1] = Some(members.serve(2, &[]));

    // So does one of which nothing but the identity is left.
    processes[2].take().unwrap().stop(Signal::TERM).says(0, &[]);
    segments(&members.dir(3)).iter().for_each(|segment| fs::remove_file(segment).unwrap());
    processes[2] = Some(members.serve(3, &[]));
    rejoins(&members, 3);
    assert!(members.dir(3).join("lost-1/identity.toml").exists(), "what was left is kept");

    // What is put back of before the loss is of a life that is over: it learns so, and rejoins once more.
    processes[0].take().unwrap().stop(Signal::TERM).says(0, &[]);
    fs::remove_dir_all(members.dir(1)).unwrap();
    rename(&aside.path().join("replica-1"), &members.dir(1));
    processes[0] = Some(members.serve(1, &[]));
    let status = wait_for("it to vote in its third life", || {
        status(&members.client(1).to_string()).filter(|status| status.voting == "voting" && status.life == 3)
    });
    assert!(status.rejoining.is_none());
    members.has(&["a", "b"]);
    processes.into_iter().flatten().for_each(|process| drop(process.stop(Signal::TERM)));
}

/// Waits until a replica that lost its state votes again, in its second life.
fn rejoins(members: &Members, id: usize) {
    wait_for("it to vote again", || {
        status(&members.client(id).to_string()).filter(|status| status.voting == "voting" && status.life == 2)
    });
}

#[test]
fn a_lost_log_is_refused() {
    let members = Members::stopped_with(&["a"]);
    let dir = members.dir(1);
    let all = segments(&dir);
    let kept = fs::read(&all[0]).unwrap();

    fs::remove_file(&all[0]).unwrap();
    let missing =
        ["from frame 1 on (segment 1, offset 0)", "is missing", "its state is lost", "must not vote", "nothing was"];
    members.refuses(1, &["--bootstrap"], REFUSED, &missing);

    all[1..].iter().for_each(|segment| fs::remove_file(segment).unwrap());
    let lost = [dir.to_str().unwrap(), "the log is empty, yet this replica has started before", "its state is lost"];
    members.refuses(1, &[], REFUSED, &lost);
    members.refuses(1, &["--bootstrap"], REFUSED, &lost);

    // A disk that reads as zeros.
    fs::write(&all[0], vec![0; kept.len()]).unwrap();
    members.refuses(1, &["--bootstrap"], REFUSED, &lost);

    // The spare segments hold nothing: with the first one all is there.
    fs::write(&all[0], kept).unwrap();
    let process = members.serve(1, &[]);
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn a_lost_identity_is_refused() {
    let members = Members::stopped_with(&["a"]);
    let path = members.dir(1).join("identity.toml");
    let identity = fs::read(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let dir = members.dir(1);
    let texts = [dir.to_str().unwrap(), "holds log segments but no identity.toml", "Only in the second case"];
    members.refuses(1, &[], REFUSED, &texts);
    members.refuses(1, &["--bootstrap"], REFUSED, &texts);
    fs::write(&path, identity).unwrap();
    let process = members.serve(1, &[]);
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn a_damaged_identity_is_refused() {
    let members = Members::stopped_with(&["a"]);
    let path = members.dir(1).join("identity.toml");
    let identity = fs::read_to_string(&path).unwrap();
    let refuses = |bytes: &[u8], texts: &[&str]| {
        fs::write(&path, bytes).unwrap();
        members.refuses(1, &["--bootstrap"], REFUSED, &[&[path.to_str().unwrap()], texts].concat());
    };
    let damaged = "can be trusted without it";
    refuses(b"", &["is damaged", damaged]);
    refuses(&[0; 200], &["is damaged", damaged]);
    refuses(b"\xff\xfe", &["is damaged (it is not text)", damaged]);
    refuses(identity.replace("replica = 1", "replica = 2").as_bytes(), &["its checksum does not match", damaged]);
    refuses(identity.replace("incarnation = 1", "incarnation = 2").as_bytes(), &["its checksum does not match"]);
    refuses(identity.replace("introduced", "introducde").as_bytes(), &["is damaged", "introducde"]);
    refuses(
        identity.replace("format = 1", "format = 2").as_bytes(),
        &["has format 2, this build knows 1", "newer one"],
    );
    fs::write(&path, &identity).unwrap();
    let process = members.serve(1, &[]);
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &[]);
}

/// Who has nobody to ask.
#[test]
fn damage_in_the_middle_of_the_log_of_a_cell_of_one_is_told_and_nobody_leads() {
    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).collect();
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let members = Members::stopped_with(&keys);
    let segment = &segments(&members.dir(1))[0];
    let frames = frames(segment);
    // Frames without records (marks) are there too; the middle one with some is meant.
    let middle = frames.iter().skip(frames.len() / 2).find(|frame| frame.payload_bytes > 0).unwrap();
    let Frame { number, offset, .. } = *middle;
    assert!(number < frames.last().unwrap().number);
    let file = fs::File::options().read(true).write(true).open(segment).unwrap();
    // In its header, and in its records.
    for byte in [offset + 20, offset + HEADER_BYTES + 3] {
        let mut was = [0];
        file.read_exact_at(&mut was, byte).unwrap();
        file.write_all_at(&[was[0] ^ 0x10], byte).unwrap();
        let process = members.start(1, &[]);
        let why = wait_for("it says what it lacks", || {
            status(&members.client(1).to_string()).and_then(|status| status.log.damage.held_up)
        });
        assert!(why.contains("has lost it"), "{why}");
        assert!(process.stderr().contains(&format!("frame {number}, which had slots ")), "{}", process.stderr());
        process.stop(Signal::TERM).says(0, &["synod: stopped"]);
        file.write_all_at(&was, byte).unwrap();
    }
    // Nothing was cut off: what is whole again is all there.
    let process = members.serve(1, &[]);
    members.has(&keys);
    process.stop(Signal::TERM).says(0, &[]);
}

fn rename(from: &Path, to: &Path) {
    fs::rename(from, to).unwrap();
}

const BLOCK_BYTES: usize = 4096;
const HEADER_BYTES: u64 = 192;

/// A frame of a segment, as far as the tests look at it.
#[derive(Clone, Copy, Debug)]
struct Frame {
    number: u64,
    offset: u64,
    payload_bytes: u32,
}

/// The frames of a segment, by the layout in `synod-wal`'s `frame`: read apart from the
/// code that wrote them.
fn frames(segment: &Path) -> Vec<Frame> {
    let bytes = fs::read(segment).unwrap();
    let blocks = bytes.chunks(BLOCK_BYTES).enumerate().filter(|(_, block)| block.starts_with(b"SYNODWAL"));
    let frames: Vec<Frame> = blocks
        .map(|(index, block)| Frame {
            number: u64::from_le_bytes(block[88..96].try_into().unwrap()),
            offset: (index * BLOCK_BYTES) as u64,
            payload_bytes: u32::from_le_bytes(block[104..108].try_into().unwrap()),
        })
        .collect();
    assert!(frames.len() > 10, "{frames:?}");
    frames
}
