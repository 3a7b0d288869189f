//! `synod cell`, and the verbs that talk to one: what they print, the exit statuses that scripts lean on, and that
//! nothing of a local cell stays behind, however its parent ended.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Ended, Members, Process, SMALL, command, run, status, synod, temp_dir, wait_for};
use rustix::process::{Pid, Signal, kill_process};
use synod_node::local_cell::free_ports;

/// A running `synod cell`.
struct Cell {
    process: Process,
    endpoints: Vec<String>,
}

impl Cell {
    fn command(dir: &Path, more: &[&str]) -> std::process::Command {
        let mut command = command(["cell", "--dir"]);
        command.arg(dir).args(more).arg("--").args(SMALL);
        command
    }

    /// Starts it with three replicas, and waits for its endpoints.
    #[track_caller]
    fn start(dir: &Path, more: &[&str]) -> Self {
        let mut process = Process::start(Self::command(dir, &[&["--replicas", "3"], more].concat()));
        let endpoints = wait_for("the endpoints", || {
            process.must_run();
            let lines = process.stdout();
            let endpoints: Vec<_> = lines.lines().map(str::to_owned).collect();
            (lines.ends_with('\n') && endpoints.len() >= 3).then_some(endpoints)
        });
        Self { process, endpoints }
    }

    fn endpoints(&self) -> String {
        self.endpoints.join(",")
    }

    /// Runs a verb of the client against it.
    fn ask(&self, arguments: &[&str]) -> Ended {
        synod([&["--endpoints", &self.endpoints(), "--deadline-ms", "30000"], arguments].concat())
    }

    #[track_caller]
    fn has(&self, key: &str, value: &str) {
        assert_eq!(self.ask(&["get", key]).output(), format!("{value}\n"));
    }

    /// Stops it as a person does.
    #[track_caller]
    fn stop(self, signal: Signal) {
        self.process.stop(signal).says(0, &["synod: stopping the cell"]);
    }

    /// Its replicas' processes.
    #[track_caller]
    fn replicas(&self) -> Vec<Seen> {
        let children = processes().into_values().filter(|seen| seen.parent == self.process.id());
        let children: Vec<_> = children.collect();
        assert_eq!(children.len(), 3, "{children:?}");
        children
    }
}

/// A process as /proc shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Seen {
    id: u32,
    parent: u32,
    /// With the id it names one process for good: ids are used again.
    started: u64,
}

impl Seen {
    fn runs(&self) -> bool {
        processes().get(&self.id).is_some_and(|seen| seen.started == self.started)
    }
}

/// All that run. One that has ended and waits to be reaped does not.
fn processes() -> BTreeMap<u32, Seen> {
    let ids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let seen = ids.filter_map(|id: u32| {
        // The name is in parentheses and may hold anything; what follows is numbers, from field 3.
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let (state, parent, started) = (fields[0], fields[1].parse().unwrap(), fields[19].parse().unwrap());
        (!["Z", "X"].contains(&state)).then_some((id, Seen { id, parent, started }))
    });
    seen.collect()
}

#[track_caller]
fn wait_until_gone(replicas: &[Seen]) {
    wait_for("the replicas to end", || replicas.iter().all(|replica| !replica.runs()).then_some(()));
}

#[test]
fn put_get_and_del_do_what_they_say() {
    let dir = temp_dir();
    let cell = Cell::start(dir.path(), &[]);
    let endpoints = cell.endpoints();

    // Endpoints before the verb, after it, and from the environment.
    assert_eq!(synod(["--endpoints", &endpoints, "put", "a", "one"]).output(), "");
    assert_eq!(synod(["put", "--endpoints", &endpoints, "a", "two"]).output(), "");
    assert_eq!(synod(["put", "b", "three", "--endpoints", &endpoints]).output(), "");
    let mut from_environment = command(["get", "a"]);
    from_environment.env("SYNOD_ENDPOINTS", &endpoints);
    assert_eq!(run(from_environment, b"").output(), "two\n");
    // What is said counts more than what is in the environment.
    let mut said = command(["get", "a", "--endpoints", &endpoints]);
    said.env("SYNOD_ENDPOINTS", "127.0.0.1:1");
    assert_eq!(run(said, b"").output(), "two\n");
    // One endpoint is enough, whoever is master.
    for endpoint in &cell.endpoints {
        assert_eq!(synod(["get", "b", "--endpoints", endpoint]).output(), "three\n");
    }

    let ended = cell.ask(&["get", "none"]);
    ended.says(1, &["there is no key \"none\""]);
    assert_eq!(ended.stdout, b"");
    assert_eq!(cell.ask(&["del", "b"]).output(), "");
    cell.ask(&["get", "b"]).says(1, &["there is no key \"b\""]);
    cell.ask(&["del", "b"]).says(1, &["there is no key \"b\""]);

    // A value from standard input, as it is: bytes, none at all.
    let put = |key, value: &[u8]| run(command(["put", "--endpoints", &endpoints, key]), value).output().to_owned();
    assert_eq!(put("bytes", b"\xff\0\n"), "");
    assert_eq!(cell.ask(&["get", "bytes"]).stdout, b"\xff\0\n\n");
    assert_eq!(put("empty", b""), "");
    cell.has("empty", "");
    assert_eq!(cell.ask(&["put", "empty too", ""]).output(), "");
    cell.has("empty too", "");

    let json = |key| -> serde_json::Value { serde_json::from_str(cell.ask(&["get", key, "--json"]).output()).unwrap() };
    let a = json("a");
    assert_eq!((&a["key"], &a["value"], &a["version"]), (&"a".into(), &"two".into(), &2.into()), "{a}");
    assert!(a["modify_revision"].as_u64() > a["create_revision"].as_u64(), "{a}");
    let bytes = json("bytes");
    assert_eq!((&bytes["value_hex"], bytes.get("value")), (&"ff000a".into(), None), "{bytes}");
    cell.ask(&["get", "none", "--json"]).says(1, &["there is no key"]);
    cell.stop(Signal::TERM);
}

#[test]
fn status_says_how_every_replica_is() {
    const STAGES: [&str; 7] = ["decode", "queue", "batch", "flush", "quorum", "apply", "reply"];
    let dir = temp_dir();
    let cell = Cell::start(dir.path(), &[]);
    assert_eq!(cell.ask(&["put", "a", "one"]).output(), "");

    // Whoever cannot be reached yet has a line of its own.
    let ended = wait_for("links of all to all", || {
        let ended = cell.ask(&["status"]);
        (ended.output().matches("2 of 2 peers connected").count() == 3).then_some(ended)
    });
    let lines: Vec<&str> = ended.output().lines().collect();
    assert_eq!(lines.len(), 3, "{lines:?}");
    for ((line, endpoint), id) in lines.iter().zip(&cell.endpoints).zip(1..) {
        assert!(line.starts_with(&format!("{endpoint}  replica {id} ")), "{line}");
        for word in ["coordinates", "ballot", "chosen", "revision", "rows", "of 2 peers connected"] {
            assert!(line.contains(word), "no {word:?} in {line}");
        }
    }

    let ended = cell.ask(&["status", "--stages"]);
    let table: Vec<&str> = ended.output().lines().filter(|line| line.starts_with("    ")).collect();
    assert_eq!(table[0].split_whitespace().next(), Some("stage"), "{table:?}");
    assert!(table[0].contains("p99 us"), "{table:?}");
    let names = table[1..].iter().map(|line| line.split_whitespace().next().unwrap());
    assert!(names.eq(STAGES), "{table:?}");

    let ended = cell.ask(&["status", "--json"]);
    let statuses = ended.output().lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let statuses: Vec<_> = statuses.collect();
    assert_eq!(statuses.len(), 3);
    for (status, id) in statuses.iter().zip(1..) {
        assert_eq!(status["replica"], id, "{status}");
        assert_eq!(status["cell"], statuses[0]["cell"], "{status}");
        assert_eq!(status["stages"].as_array().unwrap().len(), STAGES.len(), "{status}");
    }

    // A replica dies: the others are still told of, the cell reports it and goes on.
    let lost = cell.replicas()[1];
    kill_process(Pid::from_raw(lost.id as i32).unwrap(), Signal::KILL).unwrap();
    wait_for("the report of its end", || cell.process.stderr().contains("signal: 9").then_some(()));
    let gone = cell.endpoints.iter().find(|endpoint| status(endpoint).is_none()).unwrap();
    let ended = cell.ask(&["status"]);
    ended.says(1, &["status did not happen", gone, "Connection refused"]);
    assert!(String::from_utf8(ended.stdout).unwrap().lines().filter(|line| !line.starts_with(' ')).count() == 2);
    assert!(!ended.stderr.contains(&format!("{gone}: status")), "said twice: {}", ended.stderr);
    assert_eq!(cell.ask(&["put", "b", "two"]).output(), "");
    cell.has("a", "one");
    cell.stop(Signal::TERM);
}

#[test]
fn what_cannot_be_reached_is_said_within_the_deadline() {
    let ports = free_ports(2).unwrap();
    let endpoints = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>();
    let both = endpoints.join(",");
    // The deadline, and what a busy machine adds; the default of five seconds would show.
    let soon = |ended: &Ended| assert!(ended.lasted < Duration::from_secs(4), "{ended:?}");
    for verb in [&["get", "a"][..], &["put", "a", "one"], &["del", "a"]] {
        let ended = synod([&["--endpoints", &both, "--deadline-ms", "700"], verb].concat());
        ended.says(
            2,
            &["did not happen", "no answer by the deadline", &endpoints[0], &endpoints[1], "Connection refused"],
        );
        assert!(ended.lasted >= Duration::from_millis(600), "gave up before its time: {ended:?}");
        soon(&ended);
    }
    let ended = synod(["status", "--endpoints", &both, "--deadline-ms", "700"]);
    ended.says(2, &["did not happen", &endpoints[0], &endpoints[1], "Connection refused"]);
    soon(&ended);

    // Somebody who listens and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    for verb in [&["get", "a"][..], &["put", "a", "one"], &["status"]] {
        let ended = synod([&["--endpoints", &endpoint, "--deadline-ms", "700"], verb].concat());
        ended.says(2, &["did not happen", "no answer", &endpoint[..]]);
        soon(&ended);
    }
}

#[test]
fn a_silent_endpoint_leaves_time_for_the_others() {
    let (members, process) = Members::single_with(&["a"]);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoints = format!("{},{}", silent.local_addr().unwrap(), members.endpoints());
    // Below the usual patience with one silent replica; and whichever is asked first.
    for _ in 0..4 {
        assert_eq!(synod(["get", "a", "--endpoints", &endpoints, "--deadline-ms", "1990"]).output(), "a\n");
    }
    process.stop(Signal::TERM).says(0, &[]);
}

#[test]
fn endpoints_that_are_none_are_refused_at_once() {
    let at_once = |ended: &Ended| assert!(ended.lasted < Duration::from_secs(4), "{ended:?}");
    for verb in [&["get", "a"][..], &["put", "a", "one"], &["del", "a"], &["status"]] {
        let ended = synod(verb);
        ended.says(2, &["--endpoints A,B,C", "SYNOD_ENDPOINTS"]);
        for wrong in ["127.0.0.1", ":7001", "127.0.0.1:70000", "127.0.0.1:7001;127.0.0.1:7002", "http://127.0.0.1:7001"]
        {
            let ended = synod([&["--endpoints", wrong], verb].concat());
            ended.says(2, &["is no endpoint: write HOST:PORT", &format!("{wrong:?}")]);
            at_once(&ended);
        }
        let mut empty = command(verb);
        empty.env("SYNOD_ENDPOINTS", "");
        assert_eq!(run(empty, b"").status.code(), Some(2));
    }
}

#[test]
fn what_is_over_a_limit_is_refused_with_the_limit() {
    let (members, process) = Members::single_with(&[]);
    let endpoints = members.endpoints();
    let longest = "k".repeat(1024);
    let put = |key: &str, value: &[u8]| run(command(["put", "--endpoints", &endpoints, key]), value);
    assert_eq!(put(&longest, b"v").output(), "");
    assert_eq!(members.ask(&["get", &longest]).output(), "v\n");
    let over = format!("{longest}k");
    put(&over, b"v").says(2, &["put did not happen", "the key has 1025 bytes, of at most 1024"]);
    members.ask(&["get", &over]).says(2, &["get did not happen", "the key has 1025 bytes, of at most 1024"]);
    members.ask(&["del", &over]).says(2, &["of at most 1024"]);
    let over = vec![b'v'; (512 << 10) + 1];
    put("a", &over).says(2, &["put did not happen", "the value has 524289 bytes, of at most 524288"]);
    members.ask(&["get", "a"]).says(1, &["there is no key"]);
    process.stop(Signal::TERM).says(0, &[]);
}

/// The answer to a write gets lost on its way: nobody can say that it did not happen, and here it did.
#[test]
fn a_write_without_an_answer_is_unknown() {
    // With something in it, so that it is sure to coordinate, and its first words are not a refusal.
    let (members, process) = Members::single_with(&["before"]);
    let proxy = Proxy::start(&members.endpoints());
    let put = ["put", "a", "a", "--endpoints", &proxy.endpoint, "--deadline-ms", "1500"];
    let ended = synod(put);
    ended.says(3, &["it is unknown whether put happened", "no answer by the deadline", "sent ", &proxy.endpoint]);
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &[]);
}

/// Stands between a client and a replica: everything goes through to the replica; back come its first words (the
/// session is open), and nothing after them.
struct Proxy {
    endpoint: String,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Proxy {
    fn start(replica: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (stop, replica) = (Arc::new(AtomicBool::new(false)), replica.to_owned());
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut pairs, mut said) = (Vec::new(), false);
            while !stopped.load(Ordering::Acquire) {
                if let Ok((client, _)) = listener.accept() {
                    let replica = TcpStream::connect(&replica).unwrap();
                    for stream in [&client, &replica] {
                        stream.set_nonblocking(true).unwrap();
                    }
                    pairs.push((client, replica));
                }
                pairs.retain_mut(|(client, replica)| {
                    let up = pass(client, |bytes| replica.write_all(bytes).is_ok());
                    let down = pass(replica, |bytes| {
                        let pass = !std::mem::replace(&mut said, true);
                        !pass || client.write_all(bytes).is_ok()
                    });
                    let open = up && down;
                    if !open {
                        // So that both sides learn of it.
                        let _ = (client.shutdown(Shutdown::Both), replica.shutdown(Shutdown::Both));
                    }
                    open
                });
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        Self { endpoint, stop, thread: Some(thread) }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Hands on what has come; whether both sides are still there.
fn pass(from: &mut TcpStream, to: impl FnOnce(&[u8]) -> bool) -> bool {
    let mut bytes = [0; 16 << 10];
    match from.read(&mut bytes) {
        Ok(0) => false,
        Ok(length) => to(&bytes[..length]),
        Err(error) => error.kind() == ErrorKind::WouldBlock,
    }
}

#[test]
fn a_cell_prints_its_endpoints_stops_with_its_replicas_and_goes_on_later() {
    let dir = temp_dir();
    let cell = Cell::start(dir.path(), &[]);
    assert_eq!(cell.endpoints.len(), 3);
    for (endpoint, id) in cell.endpoints.iter().zip(1..) {
        assert_eq!(status(endpoint).unwrap().replica, id, "one endpoint a line, in the order of the ids");
    }
    assert_eq!(cell.ask(&["put", "a", "one"]).output(), "");
    let name = status(&cell.endpoints[0]).unwrap().cell;
    let replicas = cell.replicas();
    cell.stop(Signal::INT);
    // It waited for them, so they are gone already, and each said goodbye.
    assert!(replicas.iter().all(|replica| !replica.runs()), "{replicas:?}");
    for id in 1..=3 {
        let log = fs::read_to_string(dir.path().join(format!("replica-{id}.log"))).unwrap();
        assert!(log.ends_with("synod: stopped\n"), "replica {id}:\n{log}");
    }

    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = (free_ports(1).unwrap()[0]..).find(|&first| (first..first + 3).all(is_free)).unwrap();
    let cell = Cell::start(dir.path(), &["--first-port", &first.to_string()]);
    let expected: Vec<String> = (first..first + 3).map(|port| format!("127.0.0.1:{port}")).collect();
    assert_eq!(cell.endpoints, expected);
    assert_eq!(status(&cell.endpoints[0]).unwrap().cell, name);
    cell.has("a", "one");
    cell.stop(Signal::TERM);
}

#[test]
fn a_cell_that_is_killed_leaves_no_replica_behind() {
    let dir = temp_dir();
    let cell = Cell::start(dir.path(), &[]);
    assert_eq!(cell.ask(&["put", "a", "one"]).output(), "");
    let (replicas, endpoints) = (cell.replicas(), cell.endpoints.clone());
    assert_eq!(cell.process.stop(Signal::KILL).status.code(), None);
    wait_until_gone(&replicas);
    assert!(endpoints.iter().all(|endpoint| status(endpoint).is_none()));

    let cell = Cell::start(dir.path(), &[]);
    cell.has("a", "one");
    cell.stop(Signal::INT);
}

#[test]
fn a_cell_is_stopped_before_it_serves() {
    let dir = temp_dir();
    let mut command = command(["cell", "--dir"]);
    // Nobody campaigns for ten minutes.
    command.arg(dir.path()).args(["--", "--segment-mb", "4", "--log-mb-max", "64", "--election-timeout-ms", "600000"]);
    let mut process = Process::start(command);
    let log = dir.path().join("replica-3.log");
    wait_for("the replicas to start", || {
        process.must_run();
        fs::read_to_string(&log).is_ok_and(|log| log.contains("serving clients on")).then_some(())
    });
    let ended = process.stop(Signal::TERM);
    ended.says(0, &["stopping the cell before it served"]);
    assert_eq!(ended.stdout, b"");
    assert!(ended.lasted < Duration::from_secs(20), "{ended:?}");
}

#[test]
fn a_cell_that_cannot_be_says_why() {
    let dir = temp_dir();
    let cell = Cell::start(dir.path(), &[]);
    // The same directories twice.
    run(Cell::command(dir.path(), &[]), b"").says(2, &["ended with exit status: 78", "in use by another process"]);
    cell.stop(Signal::TERM);
    run(Cell::command(dir.path(), &["--replicas", "1"]), b"")
        .says(2, &["holds a cell of 3 replicas, not of 1", "name another directory, or say --replicas 3"]);
    run(Cell::command(dir.path(), &["--first-port", "65535"]), b"")
        .says(2, &["3 client ports from 65535 on", "start lower"]);
    run(Cell::command(dir.path(), &["--first-port", "0"]), b"").says(2, &["3 client ports from 0 on"]);
    synod(["cell", "--replicas", "0", "--dir", "d"]).says(2, &["--replicas", "1..=9"]);
    synod(["cell"]).says(2, &["--dir"]);
    let mut wrong = Cell::command(&dir.path().join("new"), &["--replicas", "1"]);
    wrong.args(["--window", "17"]);
    run(wrong, b"").says(2, &["replica 1 ended with exit status: 78", "window = 17 is out of its bounds"]);
    let file = tempfile::NamedTempFile::new().unwrap();
    run(Cell::command(file.path(), &[]), b"").says(2, &["cannot make", file.path().to_str().unwrap()]);
}

#[test]
fn help_tells_what_is_needed() {
    let help = |arguments: &[&str], words: &[&str]| {
        let ended = synod([arguments, &["--help"]].concat());
        let text = ended.output();
        for word in words {
            assert!(text.contains(word), "no {word:?} in the help of {arguments:?}:\n{text}");
        }
    };
    let verbs = ["serve", "cell", "put", "get", "del", "status", "transfer", "member"];
    help(&[], &[&verbs[..], &["--endpoints", "synod cell --replicas 3 --dir"]].concat());
    let client = ["--endpoints", "A,B,C", "SYNOD_ENDPOINTS", "--deadline-ms", "5000"];
    let with = |words: &[&'static str]| [&client[..], words].concat();
    help(&["put"], &with(&["KEY", "VALUE", "standard input"]));
    help(&["get"], &with(&["KEY", "--json", "exit status 1"]));
    help(&["del"], &with(&["KEY", "exit status 1"]));
    help(&["status"], &with(&["--json", "--stages", "exit status 1"]));
    help(&["transfer"], &with(&["--to", "none fails"]));
    help(&["member"], &with(&["list", "add", "remove", "replace"]));
    help(&["member", "list"], &with(&["--json", "who votes"]));
    help(&["member", "add"], &with(&["ID", "--peer", "--client", "--no-wait", "synod serve --join"]));
    help(&["member", "remove"], &with(&["ID", "--force", "synod transfer"]));
    help(&["member", "replace"], &with(&["ID", "--with", "--peer", "--client"]));
    help(&["cell"], &["--replicas", "--dir", "--first-port", "SERVE_FLAGS", "synod serve"]);
    let serve =
        ["--config", "--id", "--dir", "--member", "ID=PEER_ADDRESS,CLIENT_ADDRESS", "--bootstrap", "--insecure"];
    help(&["serve"], &serve);
    let bounds = ["--volatile", "--segment-mb", "--log-mb-max", "--window", "--heartbeat-ms", "--election-timeout-ms"];
    help(&["serve"], &bounds);
    help(&["serve"], &["--join", "synod member add", "--lease-ms", "[default: 1000]"]);
    help(&["serve"], &["TOML", "first start of the whole cell", "[default: 64]"]);
    assert!(synod(["--version"]).output().starts_with("synod "));
    synod([] as [&str; 0]).says(2, &["Usage", "serve"]);
    synod(["put"]).says(2, &["KEY"]);
}
