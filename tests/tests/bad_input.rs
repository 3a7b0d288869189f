//! What must not disturb a live cell: bytes that are no frames, frames that are no messages, replicas that are none.
//! Each gets a clear word or a closed door, and everybody else is served.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs};
use std::time::Duration;

use common::{PATIENCE, SMALL, TestCell, wait_for};
use synod_api::limits::{COMMAND_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX};
use synod_api::{Answer, Command, FrameKind, Operation, Refusal, Sequence, SessionId};
use synod_client::{Cause, Outcome, fetch_status};
use synod_net::frame::append_frame;
use synod_net::hello::{HELLO_VERSION, KIND_HELLO_ANSWER};
use synod_net::{Frame, FrameId, FrameLimits, Hello, HelloAnswer, Inbound, InboundSizes};
use synod_node::introduction::{KIND_ASK, KIND_REFUSE};
use synod_paxos::{Configuration, ReplicaId};

const REQUEST: u8 = FrameKind::Request as u8;
const ERROR: u8 = FrameKind::Error as u8;

fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    append_frame(&mut out, kind, FrameId(7), &[payload]);
    out
}

/// A command that is sound.
fn get() -> Vec<u8> {
    let mut command = Vec::new();
    Command::without_session(Operation::Get { key: b"k" }).encode(&mut command);
    command
}

fn with(mut bytes: Vec<u8>, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    change(&mut bytes);
    bytes
}

/// Bytes that are no frames, whatever the port; and what they are answered with. The longest frame is the port's.
fn no_frames(longest: usize) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut random = fastrand::Rng::with_seed(42);
    let mut noise: Vec<u8> = (0..10_000).map(|_| random.u8(..)).collect();
    noise[0] = 0;
    let sound = frame(REQUEST, &get());
    let last = sound.len() - 1;
    vec![
        ("noise", noise, "not the Synod protocol"),
        ("zeros", vec![0; 100_000], "not the Synod protocol"),
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), "this looks like an HTTP request"),
        ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(), "this looks like TLS"),
        ("another version", with(sound.clone(), |frame| frame[2] = 9), "they speak protocol version 9, we speak 1"),
        ("a damaged header", with(sound.clone(), |frame| frame[9] ^= 1), "a frame's header is damaged"),
        ("a damaged header checksum", with(sound.clone(), |frame| frame[20] ^= 0x80), "a frame's header is damaged"),
        ("a damaged length", with(sound.clone(), |frame| frame[7] ^= 0x10), "a frame's header is damaged"),
        ("a damaged payload", with(sound.clone(), |frame| frame[last] ^= 1), "a frame's payload is damaged"),
        ("a damaged payload checksum", with(sound, |frame| frame[16] ^= 1), "damaged"),
        // The header alone must do: nothing may wait for the rest.
        ("an oversized frame", frame(REQUEST, &vec![0; longest + 1])[..24].to_vec(), "are allowed here"),
    ]
}

/// A connection that says what a client would not.
struct Wire {
    stream: TcpStream,
    inbound: Inbound,
}

impl Wire {
    #[track_caller]
    fn dial(address: impl ToSocketAddrs) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let limits = FrameLimits { payload_bytes_max: 1 << 20 };
        Self { stream, inbound: Inbound::new(InboundSizes { start_bytes: 4096, keep_bytes: 4096, limits }) }
    }

    /// Sends; the other side may hang up in the middle of it.
    fn send(&mut self, bytes: &[u8]) {
        match self.stream.write_all(bytes) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {}
            Err(error) => panic!("sending: {error}"),
        }
    }

    /// The next frame; `None` once the other side has closed.
    #[track_caller]
    fn receive(&mut self) -> Option<Frame> {
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.inbound.next_frame().unwrap() {
                return Some(frame);
            }
            match self.stream.read(&mut bytes) {
                Ok(0) => return None,
                Ok(received) => self.inbound.feed(&bytes[..received]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("neither an answer nor an end: {error}"),
            }
        }
    }

    /// An error frame with this text comes, and then the end.
    #[track_caller]
    fn expect_error(mut self, case: &str, text: &str) {
        let frame = self.receive().unwrap_or_else(|| panic!("{case}: closed without a word"));
        self.is_error(&frame, case, text);
    }

    /// This is an error frame with this text, and the end comes after it.
    #[track_caller]
    fn is_error(&mut self, frame: &Frame, case: &str, text: &str) {
        let told = String::from_utf8_lossy(&frame.payload).into_owned();
        assert_eq!(frame.kind, ERROR, "{case}: {told}");
        assert!(told.contains(text), "{case}: {told}");
        assert_eq!(self.receive(), None, "{case}");
    }

    /// The hello is refused with this text, and then the end.
    #[track_caller]
    fn expect_refusal(mut self, case: &str, text: &str) {
        let frame = self.receive().unwrap_or_else(|| panic!("{case}: closed without a word"));
        assert_eq!(frame.kind, KIND_HELLO_ANSWER, "{case}");
        let answer =
            HelloAnswer::decode(synod_net::FrameRef { kind: frame.kind, id: frame.id, payload: &frame.payload });
        let Ok(HelloAnswer::Refused(why)) = answer else { panic!("{case}: {answer:?}") };
        assert!(why.contains(text), "{case}: {why}");
        assert_eq!(self.receive(), None, "{case}");
    }
}

/// A live cell that counts what it was asked.
struct Live {
    cell: TestCell,
    client: synod_client::Client,
    writes: u64,
    master: u16,
    elections: u64,
}

impl Live {
    #[track_caller]
    fn start() -> Self {
        // An election of its own accord would tell nothing.
        let mut cell = TestCell::start(3, &[&SMALL[..6], &["--election-timeout-ms", "2000"]].concat());
        let client = cell.client();
        let master = cell.master();
        let mut live = Self { cell, client, writes: 0, master, elections: 0 };
        live.serves("the beginning");
        live.elections = live.elections_won();
        live
    }

    /// Writes and reads go on, with the same client, and nobody has ended.
    #[track_caller]
    fn serves(&mut self, case: &str) {
        self.writes += 1;
        let value = self.writes.to_string();
        if let Err(error) = self.client.put(b"live", value.as_bytes()) {
            panic!("after {case}: {error}");
        }
        let found = self.client.get(b"live").unwrap().unwrap();
        assert_eq!((&found.value[..], found.version.0), (value.as_bytes(), self.writes), "after {case}");
        self.cell.cell.check().unwrap();
    }

    fn elections_won(&self) -> u64 {
        let ids = self.cell.cell.ids();
        ids.into_iter().map(|id| self.cell.cell.status(id).unwrap().counters.engine.elections_won).sum()
    }

    /// Nobody had to be elected anew, no client's connection was lost, and all are alike.
    #[track_caller]
    fn was_not_disturbed(mut self) {
        assert_eq!(self.elections_won(), self.elections);
        assert_eq!(self.client.counts().lost, 0);
        self.cell.wait_until_alike(&self.cell.cell.ids());
        // Connections that were closed are gone, here too: what is left are our client's, and the question for the status.
        let master = self.master;
        wait_for("closed connections to go", || (self.cell.cell.status(master)?.clients <= 2).then_some(()));
    }

    fn hello(&self) -> Hello {
        let cell = u128::from_str_radix(&self.cell.cell.status(1).unwrap().cell, 16).unwrap();
        Hello { version: HELLO_VERSION, cell, from: 2, to: 1, configuration: 0 }
    }
}

#[test]
fn a_clients_port_tells_what_is_wrong_and_goes_on() {
    let mut live = Live::start();
    for id in live.cell.cell.ids() {
        let endpoint = live.cell.cell.endpoint(id);
        let before = live.cell.cell.status(id).unwrap().counters.bad_connections;
        let mut cases = no_frames(COMMAND_BYTES_MAX);
        cases.push(("an unknown kind", frame(77, b""), "no frame is of kind 77"));
        cases.push(("an answer", frame(FrameKind::Answer.into(), b""), "a client does not send frames of kind Answer"));
        // What came before is answered; what comes after is not looked at.
        for (case, bytes, text) in &cases {
            let mut wire = Wire::dial(&endpoint);
            wire.send(bytes);
            wire.expect_error(case, text);

            let mut wire = Wire::dial(&endpoint);
            wire.send(&[&frame(FrameKind::StatusRequest.into(), b""), &bytes[..]].concat());
            let status = wire.receive().unwrap();
            assert_eq!(status.kind, u8::from(FrameKind::Status), "{case}");
            wire.expect_error(case, text);
            live.serves(case);
        }
        let bad = live.cell.cell.status(id).unwrap().counters.bad_connections - before;
        assert_eq!(bad, 2 * cases.len() as u64);
    }
    live.was_not_disturbed();
}

#[test]
fn truncated_frames_hold_up_nobody() {
    let mut live = Live::start();
    let sound = frame(REQUEST, &get());
    let long = frame(REQUEST, &vec![0; COMMAND_BYTES_MAX]);
    let mut open = Vec::new();
    for id in live.cell.cell.ids() {
        for address in [live.cell.cell.endpoint(id), live.cell.cell.peer_address(id).to_string()] {
            for part in [&[][..], &sound[..1], &sound[..23], &sound[..24], &sound[..sound.len() - 1], &long[..300_000]]
            {
                // Left in the middle: by an end, by half of one, and not at all.
                let mut wire = Wire::dial(&address);
                wire.send(part);
                drop(wire);
                let mut wire = Wire::dial(&address);
                wire.send(part);
                // Where the frame is too long for a stranger, the other side has hung up already.
                let _ = wire.stream.shutdown(Shutdown::Write);
                open.push(wire);
                let mut wire = Wire::dial(&address);
                wire.send(part);
                open.push(wire);
            }
            live.serves("truncated frames");
        }
    }
    // With all of them still open, and not waiting for anything.
    live.serves("open connections");
    drop(open);
    live.was_not_disturbed();
}

#[test]
fn a_frame_in_single_bytes_is_a_frame() {
    let mut live = Live::start();
    let mut wire = Wire::dial(live.cell.cell.endpoint(live.master));
    for byte in frame(REQUEST, &get()) {
        wire.send(&[byte]);
        std::thread::sleep(Duration::from_millis(1));
    }
    let answer = wire.receive().unwrap();
    assert_eq!((answer.kind, answer.id), (u8::from(FrameKind::Answer), FrameId(7)));
    assert_eq!(Answer::decode(answer.payload), Ok(Answer::Absent));
    live.serves("single bytes");
    drop(wire);
    live.was_not_disturbed();
}

#[test]
fn a_frame_that_is_no_command_is_refused_and_its_connection_stays() {
    let mut live = Live::start();
    let mut wire = Wire::dial(live.cell.cell.endpoint(live.master));
    let mut ask = |payload: &[u8]| {
        wire.send(&frame(REQUEST, payload));
        let frame = wire.receive().expect("the connection stays");
        assert_eq!((frame.kind, frame.id), (u8::from(FrameKind::Answer), FrameId(7)));
        Answer::decode(frame.payload).unwrap()
    };
    let mut random = fastrand::Rng::with_seed(1);
    let noise: Vec<u8> = (0..1000).map(|_| random.u8(..)).collect();
    let sound = get();
    let malformed = [&b""[..], b"x", &noise, &sound[..sound.len() - 1], &[&sound[..], b"x"].concat()];
    for payload in malformed {
        assert!(matches!(ask(payload), Answer::Refused(Refusal::Malformed(_))), "{payload:?}");
    }
    let long_key = vec![b'k'; KEY_BYTES_MAX + 1];
    for operation in [
        Operation::Get { key: b"" },
        Operation::Get { key: &long_key },
        Operation::ReadFile { path: b"relative" },
        Operation::ReadFile { path: b"/a//b" },
    ] {
        let mut command = Vec::new();
        Command::without_session(operation).encode(&mut command);
        assert!(matches!(ask(&command), Answer::Refused(Refusal::Limit(_))), "{operation:?}");
    }
    // A session that nobody opened, and a write without any.
    for (session, sequence) in [(SessionId(u64::MAX), Sequence(1)), (SessionId::NONE, Sequence(1))] {
        let operation = Operation::Put { key: b"k", value: b"v" };
        let mut command = Vec::new();
        Command { session, sequence, unanswered_from: Sequence(1), operation }.encode(&mut command);
        assert_eq!(ask(&command), Answer::Refused(Refusal::SessionUnknown), "{session}");
    }
    assert_eq!(ask(&sound), Answer::Absent);
    drop(wire);
    live.serves("commands that are none");
    live.was_not_disturbed();
}

#[test]
fn the_replicas_port_tells_what_is_wrong_and_goes_on() {
    let mut live = Live::start();
    for id in live.cell.cell.ids() {
        let address = live.cell.cell.peer_address(id);
        for (case, bytes, text) in no_frames(256) {
            let mut wire = Wire::dial(address);
            wire.send(&bytes);
            wire.expect_error(case, text);
        }
        // A client that has lost its way.
        let mut wire = Wire::dial(address);
        wire.send(&frame(REQUEST, &get()[..2]));
        let frame = wire.receive().unwrap();
        assert_eq!(frame.kind, KIND_REFUSE, "a request has the kind of a question for the cell's id");
        live.serves("what is no hello");
    }
    live.was_not_disturbed();
}

#[test]
fn strangers_are_not_let_in() {
    let mut live = Live::start();
    let hello = live.hello();
    let address = live.cell.cell.peer_address(1);
    for (case, hello, text) in [
        ("another cell", Hello { cell: 0xbad, ..hello }, "you are of cell 00000000000000000000000000000bad, I am of"),
        ("another replica", Hello { to: 3, ..hello }, "you are looking for replica 3, I am replica 1"),
        ("no member", Hello { from: 9, ..hello }, "replica 9 is not a member of my configuration"),
        ("itself", Hello { from: 1, ..hello }, "you say you are replica 1, but that is me"),
        ("another version", Hello { version: 99, ..hello }, "your messages are of version 99, mine of 1"),
    ] {
        let mut wire = Wire::dial(address);
        wire.send(&hello.encode());
        wire.expect_refusal(case, text);
    }
    let mut wire = Wire::dial(address);
    wire.send(&frame(10, b"a message, without a greeting"));
    wire.expect_refusal("no greeting", "expected a hello, got a frame of kind 0a");
    // Who would join a cell that it has joined, or is no member of.
    let mut ours = Vec::new();
    let (members, lease) = ([1, 2, 3].map(ReplicaId), Configuration::LEASE_DEFAULT);
    Configuration::of_voters(members, Configuration::HORIZON_DEFAULT, lease).unwrap().encode(&mut ours);
    let mut theirs = Vec::new();
    Configuration::of_voters(members, Configuration::HORIZON_DEFAULT, 9 * lease).unwrap().encode(&mut theirs);
    for (asking, configuration, text) in [
        (2_u16, &ours, "has joined this cell before"),
        (2, &theirs, "members and --lease-ms have to be the same"),
        (2, &Vec::new(), "no configuration"),
        (9, &ours, "not another member"),
        (1, &ours, "not another member"),
    ] {
        let mut wire = Wire::dial(address);
        wire.send(&frame(KIND_ASK, &[&asking.to_le_bytes(), &configuration[..]].concat()));
        let frame = wire.receive().unwrap();
        let told = String::from_utf8_lossy(&frame.payload).into_owned();
        assert_eq!(frame.kind, KIND_REFUSE, "{told}");
        assert!(told.contains(text), "{told}");
        assert_eq!(wire.receive(), None);
    }
    live.serves("strangers");
    live.was_not_disturbed();
}

#[test]
fn an_impostors_messages_close_its_connection_alone() {
    let mut live = Live::start();
    let sound = frame(15, b"short");
    let last = sound.len() - 1;
    for (case, bytes, text) in [
        ("an unknown kind", frame(99, b"x"), "a peer message of unknown kind 99"),
        ("a malformed message", sound.clone(), "does not have the length its kind asks for"),
        ("a ballot out of bounds", frame(15, b"not a commit"), "a commit: a ballot's round is out of its bounds"),
        ("an empty message", frame(10, b""), "does not have the length its kind asks for"),
        ("a damaged message", with(sound.clone(), |frame| frame[last] ^= 1), "a frame's payload is damaged"),
        ("noise", vec![0xff; 5000], "not the Synod protocol"),
        ("an oversized message", oversized(&sound), "a payload of 4294967295 bytes"),
    ] {
        // The real replica 2 dials again at once, and who greeted last is believed: it may have its place back before our
        // bytes are read, and then the impostor is hung up on without a word.
        let (told, mut wire) = wait_for("an answer to the impostor", || {
            let mut wire = Wire::dial(live.cell.cell.peer_address(1));
            wire.send(&live.hello().encode());
            let answer = wire.receive()?;
            assert_eq!((answer.kind, &answer.payload[..]), (KIND_HELLO_ANSWER, &[0][..]), "{case}");
            wire.send(&bytes);
            wire.receive().map(|told| (told, wire))
        });
        wire.is_error(&told, case, text);
        live.serves(case);
    }
    // Whose connection the impostor took is back.
    wait_for("replica 2 to be heard again", || {
        let status = live.cell.cell.status(1)?;
        status.peers.iter().all(|peer| peer.connected && peer.heard).then_some(())
    });
    // Replica 2 may have been silent for a moment, and replica 1 may be the master: no more is promised than service.
    live.serves("the impostor");
    live.cell.wait_until_alike(&live.cell.cell.ids());
}

/// The header of a frame of the longest length there is.
fn oversized(sound: &[u8]) -> Vec<u8> {
    let mut header = sound[..24].to_vec();
    header[4..8].fill(0xff);
    let checksum = crc32c::crc32c(&header[..20]);
    header[20..].copy_from_slice(&checksum.to_le_bytes());
    header
}

#[test]
fn limits_hold_through_the_client() {
    let mut live = Live::start();
    let long_key = vec![b'k'; KEY_BYTES_MAX + 1];
    let long_value = vec![b'v'; VALUE_BYTES_MAX + 1];
    let client = &mut live.client;
    for (error, text) in [
        (client.put(&long_key, b"v").unwrap_err(), "the key has 1025 bytes, of at most 1024"),
        (client.put(b"k", &long_value).unwrap_err(), "the value has 524289 bytes, of at most 524288"),
        (client.put(b"", b"v").unwrap_err(), "the key is empty"),
        (client.get(&long_key).unwrap_err(), "the key has 1025 bytes"),
        (client.delete(&long_key).unwrap_err(), "the key has 1025 bytes"),
        (client.create_file(b"relative", b"v").unwrap_err(), "does not begin with '/'"),
        (client.create_file(b"/f", &long_value).unwrap_err(), "the value has 524289 bytes"),
        (client.compare_and_swap(b"k", Some(&long_value), b"v").unwrap_err(), "the value has 524289 bytes"),
    ] {
        assert_eq!(error.outcome(), Outcome::DidNotHappen, "{error}");
        assert!(matches!(error.failure().cause, Cause::Limit(_)), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    // At the limits.
    client.put(&long_key[1..], &long_value[1..]).unwrap();
    assert_eq!(client.get(&long_key[1..]).unwrap().unwrap().value.len(), VALUE_BYTES_MAX);
    live.serves("limits");
    live.was_not_disturbed();
}

#[test]
fn a_status_is_asked_for_where_nobody_listens() {
    let port = synod_node::local_cell::free_ports(1).unwrap()[0];
    let endpoint = format!("127.0.0.1:{port}");
    let error = fetch_status(&endpoint, Duration::from_secs(5)).unwrap_err();
    assert_eq!(error.outcome(), Outcome::DidNotHappen);
    let text = error.to_string();
    assert!(text.contains(&endpoint) && text.contains("connecting: Connection refused"), "{text}");
}
