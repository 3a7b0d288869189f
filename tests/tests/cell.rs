//! Cells of real processes: what is written reaches every replica, and stays, whoever is killed, comes late or is full.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Guard, PATIENCE, SMALL, TestCell, program, run, temp_dir, torture, wait_for};
use synod_api::{Operation, Refusal};
use synod_client::{Cause, Client, Options, Outcome};
use synod_node::local_cell::free_ports;
use synod_node::serve::exit;
use synod_node::status::Status;
use synod_tests::torture::client::{LoadClient, Shared, under_load};
use synod_tests::torture::history::Violation;

fn name(number: usize) -> String {
    format!("key/{number}")
}

/// A value that is large, and another one for each number.
fn large(number: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at / 7 + number * 13) as u8).collect()
}

/// Writes values one at a time, so each has a slot of its own.
#[track_caller]
fn put_all(client: &mut Client, numbers: std::ops::Range<usize>) {
    for number in numbers {
        client.put(name(number).as_bytes(), format!("value {number}").as_bytes()).unwrap();
    }
}

#[track_caller]
fn has_all(client: &mut Client, numbers: std::ops::Range<usize>) {
    for number in numbers {
        let found = client.get(name(number).as_bytes()).unwrap().map(|found| found.value);
        assert_eq!(found, Some(format!("value {number}").into()), "{}", name(number));
    }
}

#[test]
fn what_is_written_reaches_every_replica() {
    let mut cell = TestCell::start(3, &SMALL);
    let mut client = cell.client();
    put_all(&mut client, 0..100);
    client.create_file(b"/file", b"contents").unwrap();
    client.delete(name(99).as_bytes()).unwrap();
    let seen = cell.wait_until_alike(&cell.cell.ids());
    // The session, the puts, the file and the deletion, one slot each; and what elections took.
    assert!(seen.chosen >= 103, "{}", seen.chosen);
    assert_eq!(seen.database.sessions, 1);
    // Whoever is master: on a machine that stands still for a second it may be another by now.
    let statuses = wait_for("two replicas to follow the third", || {
        let statuses: Option<Vec<_>> = cell.cell.ids().into_iter().map(|id| cell.cell.status(id)).collect();
        let statuses = statuses?;
        let master = statuses.iter().find(|status| status.role == "coordinating")?.replica;
        let follows = |status: &&Status| status.role == "following" && status.coordinator == Some(master);
        (statuses.iter().filter(follows).count() == 2).then_some(statuses)
    });
    for status in &statuses {
        assert_eq!((&status.cell, &status.version), (&seen.cell, &seen.version));
    }
    has_all(&mut client, 0..99);
    assert_eq!(client.get(name(99).as_bytes()).unwrap(), None);
}

#[test]
fn writes_go_on_when_the_master_is_killed() {
    let mut cell = TestCell::start(3, &SMALL);
    let mut client = cell.client();
    for round in 0..3 {
        let numbers = round * 100..(round + 1) * 100;
        let master = cell.master();
        put_all(&mut client, numbers.start..numbers.start + 50);
        cell.cell.kill_replica(master).unwrap();
        put_all(&mut client, numbers.start + 50..numbers.end);
        has_all(&mut client, 0..numbers.end);
        assert_ne!(cell.master(), master);
        cell.restart(master);
        cell.wait_until_alike(&cell.cell.ids());
    }
}

#[test]
fn all_are_killed_and_everything_is_there() {
    let mut cell = TestCell::start(3, &SMALL);
    let mut revisions = Vec::new();
    for round in 0..3 {
        let mut client = cell.client();
        put_all(&mut client, round * 100..(round + 1) * 100);
        revisions.push(client.put(b"last", format!("{round}").as_bytes()).unwrap());
        for id in cell.cell.ids() {
            cell.cell.kill_replica(id).unwrap();
        }
        for id in cell.cell.ids() {
            cell.cell.start_replica(id).unwrap();
        }
        cell.master();
        let mut client = cell.client();
        has_all(&mut client, 0..(round + 1) * 100);
        let last = client.get(b"last").unwrap().unwrap();
        assert_eq!((last.value, last.version.0), (format!("{round}").into(), round as u64 + 1));
        assert_eq!(last.modify_revision, revisions[round]);
    }
    assert!(revisions.is_sorted_by(|a, b| a < b));
}

#[test]
fn a_minority_serves_nobody_and_a_majority_everybody() {
    let mut cell = TestCell::start(3, &SMALL);
    let mut client = cell.client();
    put_all(&mut client, 0..10);
    let master = cell.master();
    let others = cell.others(master);
    for &id in &others {
        cell.cell.kill_replica(id).unwrap();
    }
    let endpoints = cell.cell.endpoints();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let options = Options { deadline: Duration::from_secs(5), ..Options::default() };
    let mut hasty = Client::connect(&endpoints, options).unwrap();
    hasty.put(b"alone", b"x").unwrap_err();
    // The write may be in the survivor's log, so it may yet happen; a read tells nothing without a majority.
    hasty.get(name(0).as_bytes()).unwrap_err();
    cell.restart(others[0]);
    put_all(&mut client, 10..20);
    has_all(&mut client, 0..20);
}

#[test]
fn a_replica_that_was_away_for_long_catches_up_from_the_log() {
    const SLOTS: usize = 3000;
    const LARGE: usize = 160;
    const LARGE_BYTES: usize = 200 << 10;
    // More than what replicas keep in memory for those that lag.
    const _: () = assert!(LARGE * LARGE_BYTES > 16 << 20);
    let mut cell = TestCell::start(3, &SMALL);
    let mut client = cell.client();
    put_all(&mut client, 0..10);
    let before = cell.wait_until_alike(&cell.cell.ids());
    let master = cell.master();
    let [away, stays] = cell.others(master)[..] else { panic!("three replicas") };
    cell.cell.kill_replica(away).unwrap();
    put_all(&mut client, 10..SLOTS);
    for number in 0..LARGE {
        let path = format!("/large/{number}");
        client.create_file(path.as_bytes(), &large(number, LARGE_BYTES)).unwrap();
    }
    let ahead = cell.wait_until_alike(&[master, stays]);
    assert!(ahead.chosen > before.chosen + SLOTS as u64, "{} to {}", before.chosen, ahead.chosen);
    cell.restart(away);
    let alike = cell.wait_until_alike(&cell.cell.ids());
    assert!(alike.chosen >= ahead.chosen);
    let statuses: Vec<_> = cell.cell.ids().into_iter().map(|id| cell.cell.status(id).unwrap()).collect();
    let sent: u64 = statuses.iter().map(|status| status.counters.engine.entries_sent).sum();
    assert!(sent > SLOTS as u64, "{sent} batches were sent");
    assert!(statuses.iter().all(|status| status.counters.engine.log_read_failures == 0));
    // What it has now counts: without another one it is half of the majority.
    cell.cell.kill_replica(stays).unwrap();
    put_all(&mut client, SLOTS..SLOTS + 10);
    // And it is the same, also when nobody else can tell: the log that it wrote while it caught up is read again.
    cell.cell.kill_replica(away).unwrap();
    cell.restart(stays);
    cell.restart(away);
    cell.wait_until_alike(&cell.cell.ids());
    cell.cell.kill_replica(master).unwrap();
    has_all(&mut client, 0..SLOTS + 10);
    for number in 0..LARGE {
        let found = client.read_file(format!("/large/{number}").as_bytes()).unwrap().unwrap();
        assert!(found.value == large(number, LARGE_BYTES), "file {number} is another one");
    }
}

#[test]
fn two_processes_on_one_directory_are_refused() {
    let mut cell = TestCell::start(3, &SMALL);
    let mut client = cell.client();
    put_all(&mut client, 0..5);
    for id in cell.cell.ids() {
        let (status, messages) = run(Command::new(program()).args(cell.cell.serve_arguments(id)));
        assert_eq!(status.code(), Some(exit::CONFIG.into()), "{messages}");
        assert!(messages.contains("is in use by another process"), "{messages}");
    }
    cell.cell.check().unwrap();
    put_all(&mut client, 5..10);
    has_all(&mut client, 0..10);
}

#[test]
fn a_wiped_replica_rejoins_and_is_needed_again() {
    let mut cell = TestCell::start(3, &SMALL);
    let mut client = cell.client();
    put_all(&mut client, 0..10);
    cell.wait_until_alike(&cell.cell.ids());
    // The last one, and the first, which made the cell's id.
    for wiped in [3, 1] {
        cell.cell.kill_replica(wiped).unwrap();
        fs::remove_dir_all(cell.cell.replica_dir(wiped)).unwrap();
        cell.restart(wiped);
        put_all(&mut client, 10..20);
        wait_for("it to vote again", || {
            cell.cell.status(wiped).filter(|status| status.voting == "voting" && status.life == 2)
        });
        assert!(cell.messages(wiped).contains("LOST ITS STATE"), "{}", cell.messages(wiped));
    }
    // Without the one that lost nothing the two that did are the majority.
    cell.cell.kill_replica(2).unwrap();
    put_all(&mut client, 20..30);
    has_all(&mut client, 0..30);
    cell.restart(2);
    cell.wait_until_alike(&cell.cell.ids());
}

#[test]
fn a_clean_stop_leaves_a_clean_log() {
    let mut cell = TestCell::start(3, &SMALL);
    let mut client = cell.client();
    for round in 0..3 {
        put_all(&mut client, round * 20..(round + 1) * 20);
        cell.cell.stop().unwrap();
        for id in cell.cell.ids() {
            let messages = cell.messages(id);
            assert!(messages.ends_with("synod: stopped\n"), "{messages}");
            cell.cell.start_replica(id).unwrap();
        }
        cell.master();
        has_all(&mut client, 0..(round + 1) * 20);
    }
    for id in cell.cell.ids() {
        let messages = cell.messages(id);
        assert_eq!(messages.matches("recovered").count(), 4, "{messages}");
        assert!(!messages.contains("torn tail"), "{messages}");
    }
}

#[test]
fn a_full_log_refuses_writes_and_loses_none() {
    const BYTES: usize = 60 << 10;
    /// As slots these would need more than is left of the log when it is full.
    const READS: usize = 1500;
    const _: () = assert!(READS * synod_ring::BLOCK_BYTES > 4 << 20);
    let flags = |log_mb_max| {
        // So slow that no snapshot is done before the test is: it would free the log.
        let more =
            ["--snapshot-mb-per-s", "1", "--heartbeat-ms", "50", "--lease-ms", "300", "--election-timeout-ms", "300"];
        [&["--segment-mb", "4", "--log-mb-max", log_mb_max], &more[..]].concat()
    };
    let mut cell = TestCell::start(3, &flags("32"));
    let mut client = cell.client();
    let path = |number: usize| format!("/full/{number}");
    let is_full = |error: &synod_client::Error| {
        assert_eq!(error.outcome(), Outcome::DidNotHappen, "{error}");
        assert!(error.to_string().contains("the log is full"), "{error}");
    };
    let mut next = 0;
    // Until it is refused: the logs differ a little, so a new master may have room for some more.
    let mut fill = |client: &mut Client, bytes: usize| loop {
        assert!(next * BYTES < 64 << 20, "the log never fills");
        match client.create_file(path(next).as_bytes(), &large(next, bytes)) {
            Ok(_) => next += 1,
            Err(error) => {
                is_full(&error);
                break (next, error);
            }
        }
    };
    let (filled, error) = fill(&mut client, BYTES);
    assert_eq!(error.failure().cause, Cause::Refused(Refusal::LogFull), "{error}");
    // The reserve, and what must still fit when the others' logs are longer than the master's, are part of the bound.
    assert!(filled * BYTES > 4 << 20, "only {filled} files of {BYTES} bytes fit");
    // Reads go on, under the lease: they take no slots (P8), so a full log has room for any number of them.
    for read in 0..READS {
        let number = [0, filled / 2, filled - 1][read % 3];
        let found = client.read_file(path(number).as_bytes()).unwrap().unwrap();
        assert!(found.value == large(number, BYTES), "file {number} is another one");
    }
    assert_eq!(client.read_file(path(filled).as_bytes()).unwrap(), None, "what was refused is there");
    let (mut written, _) = fill(&mut client, 1);
    let master = cell.master();
    assert!(cell.cell.status(master).unwrap().log.full);

    // A full log can still elect, and stays full.
    for round in 0..3 {
        for id in cell.cell.ids() {
            if round % 2 == 0 { cell.cell.kill_replica(id) } else { cell.cell.stop_replica(id) }.unwrap();
        }
        for id in cell.cell.ids() {
            cell.restart(id);
        }
        cell.master();
        // A new client may not even be able to open a session: it is told why at its deadline.
        let endpoints = cell.cell.endpoints();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let options = Options { deadline: Duration::from_secs(5), ..Options::default() };
        (written, _) = fill(&mut Client::connect(&endpoints, options).unwrap(), 1);
    }

    // With a higher bound everything that was acknowledged is there, what was refused is not, and writes go on.
    let cell = cell.start_again(&flags("64"));
    let mut client = cell.client();
    for number in 0..written {
        let found = client.read_file(path(number).as_bytes()).unwrap().unwrap();
        let bytes = if number < filled { BYTES } else { 1 };
        assert!(found.value == large(number, bytes), "file {number} is another one");
    }
    assert_eq!(client.read_file(path(written).as_bytes()).unwrap(), None, "what was refused is there");
    client.create_file(path(written).as_bytes(), b"small").unwrap();
}

/// The torture's own eyes: when acknowledged writes really are gone, its read-back says so.
#[test]
fn a_planted_loss_is_seen() {
    let mut cell = TestCell::start(1, &SMALL);
    let endpoints = cell.cell.endpoints();
    let mut clients = vec![LoadClient::connect(1, &endpoints, Options::default(), 1).unwrap()];
    let shared = Shared::default();
    let (killed, ran) = under_load(&mut clients, &shared, || {
        // Under load: a mark behind the last frame would tell that it was durable.
        wait_for("some writes", || (shared.pulse.longest().1 > 100).then_some(()));
        let killed = cell.cell.kill_replica(1);
        // Whoever has asked gets its connection broken, and an end.
        shared.stop();
        cell.cell.start_replica(1).unwrap();
        killed
    });
    killed.unwrap();
    ran.unwrap();
    cell.wait_until_it_answers(1);
    clients[0].read_back(&endpoints, 0).expect("nothing is lost yet");

    // The same again, but the disk forgets the last frames.
    let (emptied, ran) = under_load(&mut clients, &shared, || {
        wait_for("some writes", || (shared.pulse.longest().1 > 200).then_some(()));
        cell.cell.kill_replica(1).unwrap();
        let emptied = empty_last_frames(&cell.cell.replica_dir(1), 10);
        shared.stop();
        cell.cell.start_replica(1).unwrap();
        emptied
    });
    assert!(emptied > 0);
    let seen = ran.map_err(anyhow::Error::from).and_then(|()| clients[0].read_back(&endpoints, 0));
    let error = seen.expect_err("the planted loss was not seen");
    let violation = error.downcast_ref::<Violation>().unwrap_or_else(|| panic!("{error:#}"));
    assert!(matches!(violation, Violation::Lost { .. } | Violation::OutOfOrder { .. }), "{violation}");
}

/// Fills the last frames of a log with zeros, as if they had never been written; says how many.
fn empty_last_frames(dir: &std::path::Path, frames: usize) -> usize {
    const BLOCK: usize = synod_ring::BLOCK_BYTES;
    let mut found = Vec::new();
    let mut segments: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
    segments.sort();
    for path in segments {
        let bytes = fs::read(&path).unwrap();
        for (index, block) in bytes.chunks_exact(BLOCK).enumerate() {
            if block.starts_with(&synod_wal::frame::MAGIC) {
                found.push((path.clone(), (index * BLOCK) as u64, bytes.len() as u64));
            }
        }
    }
    let last = &found[found.len().saturating_sub(frames)..];
    let (segment, _, length) = last.last().expect("a log has frames").clone();
    // In one segment, so that none is left without its opening.
    let in_segment: Vec<u64> =
        last.iter().filter(|(path, ..)| *path == segment).map(|(_, offset, _)| *offset).collect();
    let first = in_segment[0].max(BLOCK as u64);
    let file = File::options().write(true).open(segment).unwrap();
    file.write_all_at(&vec![0; (length - first) as usize], first).unwrap();
    file.sync_all().unwrap();
    in_segment.len()
}

#[test]
fn a_replica_serves_as_an_ordinary_user() {
    // An ordinary shell's limit of locked memory, which on some kernels io_uring's rings are charged to.
    const MEMLOCK_BYTES: u64 = 8 << 20;
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        // Then every other test here has just shown it.
        eprintln!("skipped: not root, so all replicas of these tests serve as an ordinary user already");
        return;
    }
    for tool in ["/usr/bin/setpriv", "/usr/bin/prlimit"] {
        if !fs::exists(tool).unwrap() {
            eprintln!("skipped: there is no {tool} (Debian: apt-get install util-linux)");
            return;
        }
    }
    // Where anybody may go: cargo's directory may be below one of root's.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let own_program = dir.path().join("replica");
    fs::copy(program(), &own_program).unwrap();
    fs::set_permissions(&own_program, fs::Permissions::from_mode(0o755)).unwrap();
    let replica_dir = dir.path().join("replica-1");
    fs::create_dir(&replica_dir).unwrap();
    chown(&replica_dir, Some(NOBODY), Some(NOBODY)).unwrap();

    let ports = free_ports(2).unwrap();
    let endpoint = format!("127.0.0.1:{}", ports[1]);
    let messages = dir.path().join("messages");
    let mut command = Command::new("/usr/bin/setpriv");
    command.arg(format!("--reuid={NOBODY}")).arg(format!("--regid={NOBODY}")).arg("--clear-groups");
    // Nor may it raise the limit again.
    command.args(["--inh-caps=-all", "--bounding-set=-all", "--no-new-privs"]);
    command.args(["/usr/bin/prlimit", &format!("--memlock={MEMLOCK_BYTES}:{MEMLOCK_BYTES}")]).arg(&own_program);
    command.args(["serve", "--id", "1", "--bootstrap", "--stop-with-parent", "--dir"]).arg(&replica_dir);
    command.arg("--member").arg(format!("1=127.0.0.1:{},{endpoint}", ports[0])).args(SMALL);
    let mut replica = Guard(
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(File::create(&messages).unwrap()).spawn().unwrap(),
    );
    wait_for("the replica to serve", || {
        if let Some(status) = replica.0.try_wait().unwrap() {
            panic!("it ended with {status}:\n{}", fs::read_to_string(&messages).unwrap());
        }
        synod_client::fetch_status(&endpoint, Duration::from_secs(1)).ok()
    });
    let of_process = fs::read_to_string(format!("/proc/{}/status", replica.0.id())).unwrap();
    let uid = of_process.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    assert!(uid.split_whitespace().all(|id| id == NOBODY.to_string()), "{uid}");
    let limits = fs::read_to_string(format!("/proc/{}/limits", replica.0.id())).unwrap();
    let memlock = limits.lines().find_map(|line| line.strip_prefix("Max locked memory")).unwrap();
    assert!(memlock.trim_start().starts_with(&MEMLOCK_BYTES.to_string()), "{memlock}");

    let options = Options { deadline: PATIENCE, ..Options::default() };
    let mut clients: Vec<_> = (0..50).map(|_| Client::connect(&[&endpoint], options).unwrap()).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.put(name(number).as_bytes(), &large(number, 100 << 10)).unwrap();
    }
    for number in 0..clients.len() {
        let found = clients[0].call(Operation::Get { key: name(number).as_bytes() }).unwrap();
        assert!(matches!(found, synod_api::Answer::Value { value, .. } if value == large(number, 100 << 10)));
    }
}

#[test]
fn kills_and_pauses_leave_a_linearizable_history() {
    let small = ["linearize", "--operations", "3000", "--clients", "8", "--kills", "1", "--pauses", "1"];
    let (well, text) = torture(&small);
    assert!(well, "{text}");
    assert!(text.contains(" pauses: linearizable"), "{text}");
}

#[test]
fn a_planted_stale_read_in_a_history_is_caught() {
    let (well, text) =
        torture(&["linearize", "--operations", "3000", "--kills", "0", "--pauses", "0", "--plant-stale-read"]);
    assert!(well, "{text}");
    assert!(text.contains("planted stale read    caught: hot/"), "{text}");
    assert!(text.contains("NOT LINEARIZABLE"), "{text}");
}

#[test]
fn too_few_operations_are_void() {
    let (well, text) = torture(&["linearize", "--operations", "1000000000", "--seconds-max", "2", "--kills", "0"]);
    assert!(!well, "{text}");
    assert!(text.contains("void: after 2 s only"), "{text}");
}

#[test]
fn a_killed_and_a_paused_master_are_replaced() {
    // How fast depends on what else the machine does: that is for the command itself to judge.
    let (_, text) = torture(&["failover", "--kills", "1", "--pauses", "1", "--profile", "low-latency"]);
    assert!(text.contains("gaps after 1 kills") && text.contains("gaps after 1 pauses"), "{text}");
    assert!(text.contains("callers saw 0 errors"), "{text}");
}

#[test]
fn a_master_that_was_paused_answers_no_stale_read() {
    let (well, text) = torture(&["stale", "--pauses", "2", "--profile", "low-latency"]);
    assert!(well, "{text}");
    assert!(text.contains(" reads of the old master: 0 stale"), "{text}");
    let (well, text) = torture(&["stale", "--pauses", "1", "--profile", "low-latency", "--plant"]);
    assert!(well, "{text}");
    assert!(text.contains("planted: caught: "), "{text}");
}

#[test]
fn mastership_is_handed_over_under_load() {
    // How fast depends on what else the machine does: that is for the command itself to judge.
    let (_, text) = torture(&["transfer", "--rounds", "2", "--clients", "4"]);
    assert!(text.contains("2 transfers: p99 of the writes in that second "), "{text}");
    assert!(text.contains("callers saw 0 errors"), "{text}");
}

#[test]
fn reads_under_the_lease_take_neither_disk_nor_network() {
    let (well, text) = torture(&["lease-reads", "--seconds", "2", "--clients", "4"]);
    assert!(well, "{text}");
    assert!(text.contains("commands that took a slot                        0 "), "{text}");
}

#[test]
fn temporary_directories_can_hold_a_log() {
    // Else every test here would fail, and none would say why.
    let dir = temp_dir();
    synod_node::directory::Directory::open(&dir.path().join("d"), false).unwrap();
}
