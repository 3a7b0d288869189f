//! `synod snapshot` with real cells: copies are made, looked at, damaged, refused, and become new cells.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Ended, Members, Process, command, contents, run, status, synod, temp_dir, wait_for};
use rustix::process::Signal;
use serde_json::Value;
use synod_client::{Client, Options};
use tempfile::TempDir;

/// A directory for copies.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(temp_dir())
    }

    fn url(&self) -> &str {
        self.0.path().to_str().unwrap()
    }

    fn folder(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    #[track_caller]
    fn save(&self, members: &Members) -> String {
        let ended = members.ask(&["snapshot", "save", "--to", self.url()]);
        ended.says(0, &["wrote"]);
        String::from_utf8(ended.stdout).unwrap().trim().to_owned()
    }

    fn verify(&self, name: &str) -> Ended {
        synod(["snapshot", "verify", self.url(), name])
    }

    fn list(&self) -> Vec<Value> {
        let ended = synod(["snapshot", "list", "--json", self.url()]);
        ended.output().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    fn restore(&self, name: &str, to: &Members, more: &[&str]) -> Ended {
        let dir = to.dir(1).parent().unwrap().to_owned();
        let mut arguments: Vec<String> =
            ["snapshot", "restore", self.url(), name, "--segment-mb", "4", "--dir", dir.to_str().unwrap()]
                .map(str::to_owned)
                .into();
        for id in 1..=to.endpoints().split(',').count() {
            arguments.extend(["--member".to_owned(), format!("{id}={},{}", to.peer(id), to.client(id))]);
        }
        arguments.extend(more.iter().map(|&flag| flag.to_owned()));
        synod(arguments)
    }
}

fn start_all(members: &Members, ids: &[usize], more: &[&str]) -> Vec<Process> {
    let processes = ids.iter().map(|id| members.start(*id, more)).collect();
    members.wait_for_coordinator();
    processes
}

fn stop_all(processes: Vec<Process>) {
    for process in processes {
        process.stop(Signal::TERM).says(0, &["synod: stopped"]);
    }
}

/// Standard output of an ended verb, with its exit status checked.
#[track_caller]
fn told(ended: &Ended, code: i32) -> &str {
    ended.says(code, &[]);
    std::str::from_utf8(&ended.stdout).unwrap()
}

fn put_bytes(members: &Members, key: &str, bytes: usize) {
    let value = vec![b'v'; bytes];
    run(command(["--endpoints", &members.endpoints(), "put", key]), &value).output();
}

fn json_of(members: &Members, key: &str) -> Value {
    serde_json::from_str(members.ask(&["get", "--json", key]).output()).unwrap()
}

#[test]
fn a_cell_is_copied_and_becomes_another_one() {
    let (old, place) = (Members::new(3), Place::new());
    let mut old_processes = start_all(&old, &[1, 2, 3], &["--bootstrap"]);
    for key in ["a", "b", "a", "c"] {
        old.ask(&["put", key, key]).output();
    }
    // Enough for several chunks.
    for index in 0..20 {
        put_bytes(&old, &format!("big-{index}"), 500_000);
    }
    old.ask(&["del", "c"]).output();
    let endpoints: Vec<String> = old.endpoints().split(',').map(str::to_owned).collect();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut client = Client::connect(&endpoints, Options::default()).unwrap();
    client.put(b"of a session", b"1").unwrap();
    let name = wait_for("a copy by a follower that has applied everything", || {
        let name = place.save(&old);
        name.ends_with(&format!("-{}", status(endpoints[0])?.database.revision)).then_some(name)
    });
    let then = [json_of(&old, "a"), json_of(&old, "b"), json_of(&old, "big-7")];
    let before = status(endpoints[0]).unwrap();
    assert!(before.database.sessions > 0);

    let listed = place.list();
    let copy = listed.last().unwrap();
    assert_eq!((copy["name"].as_str(), copy["whole"].as_bool()), (Some(name.as_str()), Some(true)));
    assert_eq!((copy["made_by"].as_str(), copy["rows"].as_u64()), (Some("operator"), Some(before.database.rows)));
    assert!(copy["chunks"].as_u64().unwrap() > 2);
    assert!(told(&place.verify(&name), 0).starts_with("sound: "));
    assert!(told(&synod(["snapshot", "list", place.url()]), 0).contains(&name));

    // The same state is not written twice.
    let again = old.ask(&["snapshot", "save", "--to", place.url()]);
    assert_eq!(again.status.code(), Some(0));

    let new = Members::new(3);
    let restored = place.restore(&name, &new, &[]);
    restored.says(0, &["is restored", &before.cell]);
    let new_cell = told(&restored, 0).lines().next().unwrap().strip_prefix("cell ").unwrap().to_owned();
    assert_ne!(new_cell, before.cell);
    place.restore(&name, &new, &[]).says(2, &["is not empty"]);
    drop(client);

    let mut new_processes = start_all(&new, &[1, 2], &[]);
    let after = status(&new.client(1).to_string()).unwrap();
    assert_eq!((&after.cell, after.database.sessions), (&new_cell, before.database.sessions));
    assert_eq!(then, [json_of(&new, "a"), json_of(&new, "b"), json_of(&new, "big-7")]);
    assert_eq!(new.ask(&["get", "c"]).status.code(), Some(1));
    new.ask(&["put", "d", "d"]).output();
    assert_eq!(json_of(&new, "d")["create_revision"].as_u64(), Some(before.database.revision + 1));

    // A replica of the old cell comes, in the place of the third.
    old_processes.pop().unwrap().stop(Signal::TERM).says(0, &[]);
    let stranger = Process::start({
        let mut command = command(new.arguments_in(3, &old.dir(3), &[]));
        command.arg("--stop-with-parent");
        command
    });
    wait_for("its greetings to be refused", || {
        (1..=2).find(|id| status(&new.client(*id).to_string()).is_some_and(|s| s.counters.refused_hellos > 0))
    });
    new.ask(&["put", "e", "e"]).output();
    let lost = status(&new.client(3).to_string()).unwrap();
    assert_eq!(lost.cell, before.cell);
    assert_ne!(lost.role, "coordinating");
    stranger.stop(Signal::TERM).says(0, &[]);
    // Nor is an empty directory let in: it would know nothing of what the copy holds.
    let empty = temp_dir();
    let refused = synod(new.arguments_in(3, &empty.path().join("x"), &["--bootstrap"]));
    assert!(refused.stderr.contains("has begun long ago"), "{}", refused.stderr);

    new_processes.push(new.serve(3, &[]));
    new.has(&["a", "b", "d", "e"]);
    stop_all(new_processes);
    // And once more from its own log.
    let processes = start_all(&new, &[1, 2, 3], &[]);
    new.has(&["a", "b", "d", "e"]);
    stop_all(processes);
    stop_all(old_processes);
}

#[test]
fn a_damaged_copy_is_refused_and_what_is_wrong_is_named() {
    let (members, process) = Members::single_with(&["a", "b"]);
    let place = Place::new();
    for index in 0..20 {
        put_bytes(&members, &format!("big-{index}"), 500_000);
    }
    let name = place.save(&members);
    let short = name.split('/').nth(1).unwrap();
    assert!(told(&place.verify(short), 0).contains(&name));
    assert!(told(&place.verify("newest"), 0).contains(&name));

    let restored_nothing = |ended: &Ended, to: &Members, text: &str| {
        ended.says(2, &[text]);
        assert!(!to.dir(1).exists() || fs::read_dir(to.dir(1)).unwrap().next().is_none());
    };
    let chunk = place.folder(&name).join("000001.chunk");
    let sound = fs::read(&chunk).unwrap();
    let mut rotten = sound.clone();
    rotten[1000] ^= 1;
    fs::write(&chunk, &rotten).unwrap();
    assert!(told(&place.verify(&name), 1).contains("chunk 000001.chunk is not what was written"));
    let to = Members::new(1);
    restored_nothing(&place.restore(&name, &to, &[]), &to, "chunk 000001.chunk");
    fs::write(&chunk, &sound[..500]).unwrap();
    assert!(told(&place.verify(&name), 1).contains("chunk 000001.chunk has 500 bytes"));
    fs::remove_file(&chunk).unwrap();
    assert!(told(&place.verify(&name), 1).contains("chunk 000001.chunk is missing"));
    fs::write(&chunk, &sound).unwrap();
    told(&place.verify(&name), 0);
    // Two chunks in each other's place.
    let other = place.folder(&name).join("000000.chunk");
    let first = fs::read(&other).unwrap();
    fs::write(&chunk, &first).unwrap();
    fs::write(&other, &sound).unwrap();
    assert!(told(&place.verify(&name), 1).contains("000000.chunk"));
    fs::write(&chunk, &sound).unwrap();
    fs::write(&other, &first).unwrap();

    let manifest = place.folder(&name).join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    for (changed, says) in [
        (text[..text.len() / 2].to_owned(), "is damaged"),
        (text.replace("\"replica\": 1", "\"replica\": 2"), "checksum"),
        (text.replace("\"format\": 1", "\"format\": 2"), "use the build that wrote it, or a newer one"),
    ] {
        fs::write(&manifest, changed).unwrap();
        let ended = place.verify(&name);
        let all = format!("{}{}", String::from_utf8_lossy(&ended.stdout), ended.stderr);
        assert!(all.contains(says) && ended.status.code() != Some(0), "{all}");
        restored_nothing(&place.restore(&name, &to, &[]), &to, says);
        assert_eq!(place.list()[0]["whole"], false);
    }
    fs::remove_file(&manifest).unwrap();
    place.verify(&name).says(2, &["no whole copy"]);
    // The next one writes over it.
    assert_eq!(place.save(&members).split('-').next_back(), name.split('-').next_back());
    told(&place.verify("newest"), 0);
    process.stop(Signal::TERM);
}

#[test]
fn going_back_in_time_has_to_be_said_twice() {
    let (members, process) = Members::single_with(&["a"]);
    let place = Place::new();
    let older = place.save(&members);
    for key in ["b", "c", "d"] {
        members.ask(&["put", key, key]).output();
    }
    let newer = place.save(&members);
    let slot = |name: &str| name.split(['/', '-']).nth(1).unwrap().parse::<u64>().unwrap();
    let lost = slot(&newer) - slot(&older);
    let to = Members::new(1);
    let refused = place.restore(&older, &to, &[]);
    refused.says(2, &["go back in time", "3 revisions more", &format!("--yes-lose-slots {lost}"), &newer]);
    assert!(!to.dir(1).exists());
    // Half of it is not enough, nor is a number that is too small.
    assert_ne!(place.restore(&older, &to, &["--lose-newer"]).status.code(), Some(0));
    let few = (lost - 1).to_string();
    place.restore(&older, &to, &["--lose-newer", "--yes-lose-slots", &few]).says(2, &["go back in time"]);

    // The cell itself has more than the newest copy.
    members.ask(&["put", "e", "e"]).output();
    let endpoints = members.endpoints();
    let refused = place.restore(&newer, &to, &["--endpoints", &endpoints]);
    refused.says(2, &["the cell itself, which runs", "1 revisions more"]);
    // Without being asked it cannot say.
    place.restore(&newer, &to, &[]).says(0, &["no --endpoints of the old cell"]);

    let back = Members::new(1);
    let lost = lost.to_string();
    place.restore(&older, &back, &["--lose-newer", "--yes-lose-slots", &lost]).says(0, &["is restored"]);
    let restored = back.serve(1, &[]);
    back.wait_for_coordinator();
    back.has(&["a"]);
    assert_eq!(back.ask(&["get", "b"]).status.code(), Some(1));
    // Its own id is not the old one's.
    let same = older.split('/').next().unwrap();
    let third = Members::new(1);
    place
        .restore(&newer, &third, &["--id", "1", "--cell-id", same])
        .says(2, &["is the id of the cell that was copied"]);
    restored.stop(Signal::TERM);
    process.stop(Signal::TERM);
}

#[test]
fn members_are_restored_one_by_one_under_one_id() {
    let (members, process) = Members::single_with(&["a"]);
    let (place, to) = (Place::new(), Members::new(3));
    let name = place.save(&members);
    process.stop(Signal::TERM);
    let first = place.restore(&name, &to, &["--id", "2"]);
    first.says(0, &["restore the other members with --cell-id"]);
    let cell = told(&first, 0).lines().next().unwrap().strip_prefix("cell ").unwrap().to_owned();
    for id in ["1", "3"] {
        let restored = place.restore(&name, &to, &["--id", id, "--cell-id", &cell]);
        assert!(told(&restored, 0).contains(&cell));
    }
    place.restore(&name, &to, &["--id", "4"]).says(2, &["not among the members"]);
    let processes = start_all(&to, &[1, 2, 3], &[]);
    to.has(&["a"]);
    stop_all(processes);
}

#[test]
fn a_stopped_replica_gives_its_newest_snapshot() {
    let (members, place) = (Members::new(1), Place::new());
    let process = members.serve(1, &["--bootstrap", "--snapshot-log-mb", "1"]);
    let dir = members.dir(1);
    let from_dir = |dir: &Path| synod(["snapshot", "save", "--to", place.url(), "--from-dir", dir.to_str().unwrap()]);
    members.ask(&["put", "a", "a"]).output();
    from_dir(&dir).says(2, &["a replica runs"]);
    for index in 0..4 {
        put_bytes(&members, &format!("big-{index}"), 500_000);
    }
    wait_for("a snapshot", || (status(&members.client(1).to_string())?.database.snapshot > 0).then_some(()));
    process.stop(Signal::TERM);
    let before = contents(&dir);
    let ended = from_dir(&dir);
    ended.says(0, &["what the log has beyond it"]);
    assert!(contents(&dir) == before, "whoever saves changes nothing");
    let name = String::from_utf8(ended.stdout).unwrap().trim().to_owned();
    told(&place.verify(&name), 0);
    let to = Members::new(1);
    place.restore(&name, &to, &[]).says(0, &[]);
    let restored = to.serve(1, &[]);
    to.wait_for_coordinator();
    to.has(&["a"]);
    restored.stop(Signal::TERM);
}

#[test]
fn what_cannot_be_saved_says_why() {
    let (members, process) = Members::single_with(&["a"]);
    let to_nowhere = |url: &str| members.ask(&["snapshot", "save", "--to", url]);
    to_nowhere("/no/such/place").says(2, &["make it first"]);
    to_nowhere("copies").says(2, &["absolute"]);
    to_nowhere("gopher://x").says(2, &["gopher is not known"]);
    members.ask(&["snapshot", "save"]).says(2, &["no snapshot_to of its own"]);
    members.ask(&["snapshot", "save", "--to", "/tmp", "--replica", "9"]).says(2, &["replica 9 does not answer"]);
    process.stop(Signal::TERM);
    let ended = synod(["snapshot", "save", "--to", "/tmp", "--from-dir", members.dir(1).to_str().unwrap()]);
    ended.says(2, &["has no snapshot yet"]);
}

#[test]
fn a_schedule_makes_copies_by_itself_and_one_replica_does() {
    let (members, place) = (Members::new(3), Place::new());
    let flags = ["--bootstrap", "--snapshot-to", place.url(), "--snapshot-every-minutes", "1", "--snapshots-kept", "2"];
    let processes = start_all(&members, &[1, 2, 3], &flags);
    members.ask(&["put", "a", "a"]).output();
    let copy = wait_for("the first copy", || place.list().into_iter().find(|copy| copy["whole"] == true));
    assert_eq!(copy["made_by"].as_str(), Some("schedule"));
    // The others have looked by now, and found it.
    std::thread::sleep(Duration::from_secs(8));
    assert_eq!(place.list().len(), 1);
    // The place goes away, and comes back: whoever looks at the cell sees it.
    let elsewhere = temp_dir();
    let away = elsewhere.path().join("copies");
    fs::rename(place.url(), &away).unwrap();
    wait_for("the trouble to show", || {
        let told = members.ask(&["status"]);
        String::from_utf8(told.stdout).unwrap().contains("CANNOT COPY SNAPSHOTS").then_some(())
    });
    fs::rename(&away, place.url()).unwrap();
    wait_for("the trouble to be over", || {
        let told = members.ask(&["status"]);
        (!String::from_utf8(told.stdout).unwrap().contains("CANNOT COPY SNAPSHOTS")).then_some(())
    });
    // A replica that has a schedule knows where to.
    members.ask(&["snapshot", "save"]).says(0, &[]);
    stop_all(processes);
}
