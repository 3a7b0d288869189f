//! What `synod serve` says to a configuration that cannot be meant, before it touches anything: exit status 78, the key
//! or flag and its value, and what to write instead.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Members, Process, REFUSED, SMALL, command, status, synod, temp_dir, wait_for};
use rustix::process::Signal;

const ONE: &str = "1=127.0.0.1:15001,127.0.0.1:15002";

/// Runs `serve` with flags that are refused, and checks that the directory they name was not even made.
#[track_caller]
fn flags(flags: &[&str], texts: &[&str]) {
    let dir = temp_dir();
    let wanted = dir.path().join("replica");
    let wanted_text = wanted.to_str().unwrap();
    synod([&["serve", "--id", "1", "--bootstrap", "--dir", wanted_text], flags].concat()).says(REFUSED, texts);
    assert!(!wanted.exists(), "a refused configuration made the directory");
}

/// The same for a file, which may name the directory as `DIR`.
#[track_caller]
fn file(text: &str, texts: &[&str]) {
    let dir = temp_dir();
    let wanted = dir.path().join("replica");
    let path = dir.path().join("synod.toml");
    std::fs::write(&path, text.replace("DIR", wanted.to_str().unwrap())).unwrap();
    let path = path.to_str().unwrap();
    let ended = synod(["serve", "--bootstrap", "--config", path]);
    ended.says(REFUSED, &[&["synod: ", path], texts].concat());
    assert!(!wanted.exists(), "a refused configuration made the directory");
}

#[test]
fn an_unknown_key_is_named_with_its_line() {
    file("id = 1\ndir = \"DIR\"\nwidnow = 4\n", &["is not valid", "line 3", "widnow", "window"]);
    let member = "[[member]]\nid = 1\npeer = \"127.0.0.1:15001\"\nclient = \"127.0.0.1:15002\"\n";
    file(&format!("id = 1\ndir = \"DIR\"\n{member}port = 3\n"), &["line 7", "port"]);
}

#[test]
fn an_impossible_address_is_named_with_its_line() {
    for address in ["127.0.0.1", "127.0.0.1:99999", "localhost:7001", ""] {
        let member = format!("[[member]]\nid = 1\npeer = \"{address}\"\nclient = \"127.0.0.1:15002\"\n");
        file(&format!("id = 1\ndir = \"DIR\"\n{member}"), &["is not valid", "line 5", "address"]);
    }
}

#[test]
fn what_is_no_toml_is_named_with_its_line() {
    file("id = 1\ndir = \n", &["is not valid", "line 2"]);
    file("id = \"one\"\ndir = \"DIR\"\n", &["is not valid", "line 1", "u16"]);
    file("dir = \"DIR\"\n", &["is not valid", "missing field `id`"]);
}

#[test]
fn a_missing_file_is_named() {
    let dir = temp_dir();
    let path = dir.path().join("none.toml");
    let path = path.to_str().unwrap();
    synod(["serve", "--config", path]).says(REFUSED, &["cannot read the configuration file", path, "No such file"]);
}

#[test]
fn a_malformed_member_says_how_to_write_one() {
    const HOW: &str = "write ID=PEER_ADDRESS,CLIENT_ADDRESS, as in 1=127.0.0.1:7101,127.0.0.1:7001";
    flags(&["--member", "one"], &["--member \"one\"", "there is no '='", HOW]);
    flags(&["--member", "1=127.0.0.1:1"], &["there is no ','", HOW]);
    flags(&["--member", "x=127.0.0.1:1,127.0.0.1:2"], &["the id \"x\" is not a number", HOW]);
    flags(&["--member", "70000=127.0.0.1:1,127.0.0.1:2"], &["the id \"70000\" is not a number from 1 to 65535", HOW]);
    flags(
        &["--member", "1=127.0.0.1:99999,127.0.0.1:2"],
        &["the peer address \"127.0.0.1:99999\" is not IP:PORT", HOW],
    );
    flags(&["--member", "1=127.0.0.1:1,here:2"], &["the client address \"here:2\" is not IP:PORT", HOW]);
}

#[test]
fn members_that_are_no_cell_are_refused() {
    flags(&[], &["at least one member that votes"]);
    flags(&["--member", ONE, "--member", "1=127.0.0.1:15003,127.0.0.1:15004"], &["member 1 is named twice"]);
    flags(&["--member", "0=127.0.0.1:15003,127.0.0.1:15004", "--member", ONE], &["member 0: ids go from 1 to 63"]);
    flags(&["--member", "64=127.0.0.1:15003,127.0.0.1:15004", "--member", ONE], &["member 64: ids go from 1 to 63"]);
    flags(&["--member", ONE, "--member", "2=127.0.0.1:15002,127.0.0.1:15004"], &["127.0.0.1:15002 is listed twice"]);
    flags(&["--member", "2=127.0.0.1:15003,127.0.0.1:15004"], &["this replica's id is 1, but no member"]);
    flags(&["--member", "1=127.0.0.1:0,127.0.0.1:15002"], &["127.0.0.1:0 has port 0"]);
    let text = "id = 3\ndir = \"DIR\"\n[[member]]\nid = 1\npeer = \"127.0.0.1:15001\"\nclient = \"127.0.0.1:15002\"\n";
    let dir = temp_dir();
    let path = dir.path().join("synod.toml");
    std::fs::write(&path, text.replace("DIR", dir.path().join("replica").to_str().unwrap())).unwrap();
    synod(["serve", "--config", path.to_str().unwrap()]).says(REFUSED, &["id is 3, but no member"]);
}

#[test]
fn an_address_beyond_loopback_must_be_meant() {
    let beyond = "2=192.0.2.1:15003,127.0.0.1:15004";
    flags(
        &["--member", ONE, "--member", beyond],
        &["192.0.2.1:15003 is not on loopback", "--insecure", "insecure = true"],
    );
    flags(&["--member", "1=127.0.0.1:15001,0.0.0.0:15002"], &["0.0.0.0:15002 is not on loopback", "--insecure"]);
    // When it is meant, the next check speaks.
    flags(&["--insecure", "--window", "0", "--member", ONE, "--member", beyond], &["window = 0"]);
}

#[test]
fn numbers_out_of_their_bounds_name_the_bounds() {
    let one = |more: &[&str], texts: &[&str]| flags(&[&["--member", ONE], more].concat(), texts);
    one(&["--window", "0"], &["window = 0 is out of its bounds: 1 to the horizon of 16 slots"]);
    one(&["--window", "17"], &["window = 17 is out of its bounds"]);
    one(&["--segment-mb", "3"], &["segment_mb = 3 is out of its bounds: 4 to 1024 MiB"]);
    one(&["--segment-mb", "1025"], &["segment_mb = 1025 is out of its bounds"]);
    one(&["--segment-mb", "4", "--log-mb-max", "23"], &["log_mb_max = 23 is out of its bounds: at least six segments"]);
    one(&["--heartbeat-ms", "0"], &["heartbeat_ms = 0 is out of its bounds"]);
    one(&["--lease-ms", "60001"], &["lease_ms = 60001 is out of its bounds"]);
    one(&["--heartbeat-ms", "100", "--lease-ms", "199"], &["lease_ms = 199", "at least two heartbeats"]);
    one(&["--heartbeat-ms", "500", "--election-timeout-ms", "999"], &["election_timeout_ms = 999", "two heartbeats"]);
}

#[test]
fn flags_that_are_missing_or_unknown_are_named() {
    let usage = 2;
    synod(["serve", "--id", "1"]).says(usage, &["--dir"]);
    synod(["serve", "--dir", "d"]).says(usage, &["--id"]);
    synod(["serve", "--widnow", "4"]).says(usage, &["--widnow", "--window"]);
    synod(["serve", "--id", "one", "--dir", "d"]).says(usage, &["--id", "one"]);
}

#[test]
fn a_file_is_enough_and_flags_override_it() {
    let members = Members::new(1);
    let dir = temp_dir();
    let path = dir.path().join("synod.toml");
    let text = format!(
        "id = 1\ndir = {:?}\nsegment_mb = 4\nlog_mb_max = 64\nheartbeat_ms = 50\nlease_ms = 300\nelection_timeout_ms = 300\nwindow = 99\n\
         [[member]]\nid = 1\npeer = \"{}\"\nclient = \"{}\"\n",
        members.dir(1),
        members.peer(1),
        members.client(1)
    );
    std::fs::write(&path, text).unwrap();
    let serve = ["serve", "--bootstrap", "--config", path.to_str().unwrap()];
    synod(serve).says(REFUSED, &["window = 99"]);
    let process = Process::start(command([&serve[..], &["--window", "2", "--stop-with-parent"]].concat()));
    wait_for("the replica to serve", || status(&members.client(1).to_string()));
    members.wait_for_coordinator();
    assert_eq!(members.ask(&["put", "a", "a"]).output(), "");
    members.has(&["a"]);
    process.stop(Signal::TERM).says(0, &["synod: stopped"]);
}

#[test]
fn the_smallest_segment_takes_the_largest_value() {
    assert_eq!(SMALL[..2], ["--segment-mb", "4"]);
    let (members, process) = Members::single_with(&[]);
    let value = "v".repeat(synod_api::limits::VALUE_BYTES_MAX);
    let put = |key| {
        let command = command(["--endpoints", &members.endpoints(), "put", key]);
        assert_eq!(common::run(command, value.as_bytes()).output(), "");
    };
    // More than two segments, so that frames also meet their ends.
    let keys: Vec<String> = (0..20).map(|number| format!("key-{number}")).collect();
    keys.iter().for_each(|key| put(key));
    process.stop(Signal::TERM).says(0, &[]);
    let process = members.serve(1, &[]);
    for key in &keys {
        assert!(members.ask(&["get", key]).output() == format!("{value}\n"), "{key} has another value");
    }
    process.stop(Signal::TERM).says(0, &[]);
}
