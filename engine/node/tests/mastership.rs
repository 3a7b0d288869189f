//! Who is master: transfer on request, fail-over, epochs, reads under the lease; and what another replica's messages cannot
//! do to it. Real processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::{PATIENCE, Running, taken, wait_for};
use synod_client::{Client, Options};
use synod_net::frame::append_frame;
use synod_net::hello::{HELLO_VERSION, KIND_HELLO_ANSWER};
use synod_net::{FrameId, FrameLimits, Hello, HelloAnswer, Inbound, connection::InboundSizes};
use synod_node::codec::{EncodedMessage, encode_message};
use synod_node::status::Status;
use synod_paxos::{Ballot, Batch, BatchBuilder, Incarnation, Message, ReplicaId, Slot};

fn client(cell: &Running) -> Client {
    let endpoints = cell.members.endpoints();
    let endpoints: Vec<&str> = endpoints.split(',').collect();
    // Far more than a transfer, an election or a stalled disk takes.
    Client::connect(&endpoints, Options { deadline: PATIENCE, ..Options::default() }).unwrap()
}

/// A client that writes all the time, each key once, and stops at the first write that fails.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<Result<(), synod_client::Error>>>,
}

impl Writer {
    fn start(cell: &Running) -> Self {
        let (stop, written) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let mut client = client(cell);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                let number = count.load(Ordering::Acquire);
                client.put(format!("written-{number}").as_bytes(), b"v")?;
                count.store(number + 1, Ordering::Release);
            }
            Ok(())
        });
        Self { stop, written, thread: Some(thread) }
    }

    /// Waits until so many more are written.
    #[track_caller]
    fn goes_on(&self, more: u64) {
        let upto = self.written.load(Ordering::Acquire) + more;
        wait_for("writes to go on", || {
            let failed = self.thread.as_ref().is_some_and(std::thread::JoinHandle::is_finished);
            assert!(!failed, "a write failed");
            (self.written.load(Ordering::Acquire) >= upto).then_some(())
        });
    }

    /// How many were written; none has failed, and each is there.
    #[track_caller]
    fn stop(mut self, cell: &Running) -> u64 {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap().unwrap();
        let written = self.written.load(Ordering::Acquire);
        let mut client = client(cell);
        for number in 0..written {
            let key = format!("written-{number}");
            let found = client.get(key.as_bytes()).unwrap().unwrap_or_else(|| panic!("{key} is lost"));
            assert_eq!(found.version.0, 1, "{key} was written more than once");
        }
        written
    }
}

#[test]
fn mastership_goes_where_it_is_told_and_no_write_fails() {
    let mut cell = Running::start(3, 3, &[]);
    cell.serves(&["a"]);
    cell.survives(1);
    let writer = Writer::start(&cell);
    writer.goes_on(10);
    // Each of them once, wherever it begins.
    let first = cell.master();
    for to in [first % 3 + 1, (first + 1) % 3 + 1, first] {
        let before = cell.master_status();
        // Again, should there have been an election just then.
        let ended = wait_for("the transfer", || {
            let ended = cell.members.ask(&["transfer", "--to", &to.to_string()]);
            let is_there = ended.stderr.contains("is the master already");
            (ended.status.success() || is_there).then_some(ended)
        });
        if ended.status.success() {
            let text = String::from_utf8(ended.stdout).unwrap();
            assert!(text.starts_with(&format!("replica {to} is the master, in epoch ")), "{text}");
        }
        writer.goes_on(10);
        let after = cell.wait_until(to, "its epoch", |status| status.epoch > before.epoch);
        assert!(after.counters.engine.elections_won > 0, "{after:?}");
    }

    // To whom it cannot go: nothing happens.
    let refused = |to: &str, text: &str| {
        let ended = cell.members.ask(&["transfer", "--to", to]);
        ended.says(2, &[text]);
    };
    refused("9", "replica 9 is not a voting member");
    refused("0", "replica 0 is not a voting member");
    wait_for("the refusal to hand over to itself", || {
        let ended = cell.members.ask(&["transfer", "--to", &cell.master().to_string()]);
        ended.stderr.contains("this replica is the master already").then_some(())
    });
    let stopped = (1..=3).find(|id| *id != cell.master()).unwrap();
    cell.stop(stopped);
    cell.survives(0);
    let is_down = format!("replica {stopped} has not acknowledged anything lately: is it running?");
    cell.members.ask(&["transfer", "--to", &stopped.to_string()]).says(2, &[&is_down]);
    writer.goes_on(10);
    writer.stop(&cell);
    cell.serves(&["b"]);
}

#[test]
fn a_learner_is_not_made_master() {
    let mut cell = Running::start(1, 2, &[]);
    cell.serves(&["a"]);
    assert!(cell.add(2, &["--no-wait"]).status.success());
    cell.members.ask(&["transfer", "--to", "2"]).says(2, &["replica 2 is not a voting member"]);
    cell.join(2);
    cell.survives(0);
    wait_for("the transfer", || cell.members.ask(&["transfer", "--to", "2"]).status.success().then_some(()));
    cell.members.has(&["a"]);
}

#[test]
fn a_killed_master_is_followed_by_another_with_a_higher_epoch() {
    let mut cell = Running::start(3, 3, &[]);
    cell.serves(&["a"]);
    let writer = Writer::start(&cell);
    let mut epoch = 0;
    for _ in 0..3 {
        writer.goes_on(5);
        let before = cell.master_status();
        assert!(before.epoch > epoch, "{} after {epoch}", before.epoch);
        epoch = before.epoch;
        let killed = usize::from(before.replica);
        cell.kill(killed);
        writer.goes_on(5);
        let after = cell.master_status();
        assert!(after.replica != before.replica && after.epoch > epoch, "{after:?}");
        epoch = after.epoch;
        // The followers learn the epoch, and who the master is.
        let follower = cell.running().into_iter().find(|id| *id != usize::from(after.replica)).unwrap();
        cell.wait_until(follower, "the epoch to reach the follower", |status| status.epoch >= after.epoch);
        cell.launch(killed, &[]);
        cell.survives(1);
        // It may be the same one again, later.
        epoch -= 1;
    }
    assert!(writer.stop(&cell) >= 30);
}

#[test]
fn a_read_under_the_lease_takes_no_slot_and_no_disk() {
    const READS: u64 = 1000;
    // A lease that a stalled disk does not end: each time it does, the count begins anew.
    let cell = Running::start(3, 3, &["--lease-ms", "3000"]);
    cell.serves(&["a"]);
    let mut client = client(&cell);
    let (before, after) = wait_for("a thousand reads under one lease", || {
        let before = cell.master_status();
        for _ in 0..READS {
            assert_eq!(&client.get(b"a").unwrap().unwrap().value[..], b"a");
        }
        let after = cell.status(usize::from(before.replica))?;
        let counters = (before.counters.engine, after.counters.engine);
        let same = before.epoch == after.epoch && before.promised == after.promised;
        let undisturbed = same && counters.0.commands == counters.1.commands;
        (undisturbed && after.is_master).then_some((before, after))
    });
    let grown = |of: &dyn Fn(&Status) -> u64| of(&after) - of(&before);
    assert_eq!(grown(&|status| status.counters.engine.lease_reads), READS);
    assert_eq!(grown(&|status| status.counters.engine.batches), 0);
    // What the log got is what keeps the lease: one record for each slot, and as many slots as no-ops were proposed for it.
    let slots = grown(&|status| status.chosen) + after.open_slots as u64;
    let appended = grown(&|status| status.log.appended);
    assert!(appended <= slots + before.open_slots as u64, "{appended} records for {slots} slots");
    // A flush for each at most, and a mark behind it.
    let flushes = grown(&|status| status.counters.engine.flushes);
    assert!(flushes <= 2 * appended + 2, "{flushes} flushes for {appended} records");
    // The lease is renewed three times while it lasts, whoever reads: that is time, and has nothing to do with how many.
    let seconds = after.uptime_s - before.uptime_s + 1;
    assert!(appended <= 2 * seconds + 2, "{appended} records within {seconds} s");
    // Nor do the others hear of it.
    for id in cell.running() {
        let status = cell.status(id).unwrap();
        assert_eq!(status.counters.engine.log_read_failures, 0);
        assert!(id == usize::from(after.replica) || status.counters.engine.lease_reads == 0, "{status:?}");
    }
}

/// A connection to a replica's port for other replicas.
struct Wire {
    stream: TcpStream,
    inbound: Inbound,
}

impl Wire {
    fn dial(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let limits = FrameLimits { payload_bytes_max: 4096 };
        Self { stream, inbound: Inbound::new(InboundSizes { start_bytes: 4096, keep_bytes: 4096, limits }) }
    }

    /// Says hello, and gives the answer.
    fn greet(&mut self, hello: Hello) -> HelloAnswer {
        self.stream.write_all(&hello.encode()).unwrap();
        let mut bytes = [0; 4096];
        loop {
            if let Some(frame) = self.inbound.next_frame().unwrap() {
                assert_eq!(frame.kind, KIND_HELLO_ANSWER);
                let frame = synod_net::FrameRef { kind: frame.kind, id: frame.id, payload: &frame.payload };
                return HelloAnswer::decode(frame).unwrap();
            }
            let received = self.stream.read(&mut bytes).unwrap();
            assert!(received > 0, "closed without a word");
            self.inbound.feed(&bytes[..received]);
        }
    }

    fn say(&mut self, message: &Message) {
        let EncodedMessage { kind, head, body } = encode_message(message);
        let mut frame = Vec::new();
        append_frame(&mut frame, kind, FrameId(0), &[&head, &body]);
        self.stream.write_all(&frame).unwrap();
    }
}

fn hello(cell: &Running, from: usize, to: usize) -> Hello {
    let cell = u128::from_str_radix(&cell.master_status().cell, 16).unwrap();
    Hello { version: HELLO_VERSION, cell, from: from as u16, to: to as u16, configuration: 1 }
}

#[test]
fn strangers_are_refused_counted_and_told_why() {
    let mut cell = Running::start(3, 3, &[]);
    cell.serves(&["a"]);
    let sound = hello(&cell, 2, 1);
    let before = cell.status(1).unwrap().counters;
    let cases = [
        (Hello { cell: 0xbad, ..sound }, "you are of cell 00000000000000000000000000000bad, I am of cell"),
        (Hello { from: 9, ..sound }, "replica 9 is not a member of my configuration"),
        (Hello { to: 3, ..sound }, "you are looking for replica 3, I am replica 1"),
        (Hello { from: 1, ..sound }, "you say you are replica 1, but that is me"),
        (Hello { version: 99, ..sound }, "your messages are of version 99"),
    ];
    for (hello, text) in cases {
        let answer = Wire::dial(cell.members.peer(1)).greet(hello);
        let HelloAnswer::Refused(why) = answer else { panic!("{hello:?} was let in") };
        assert!(why.contains(text), "{why}");
        wait_for("its own log to say so", || cell.said(1).contains(text).then_some(()));
    }
    let all = cases.len() as u64;
    let after =
        cell.wait_until(1, "the counts", |status| status.counters.refused_hellos >= before.refused_hellos + all);
    assert_eq!(after.counters.refused_hellos, before.refused_hellos + all);
    assert_eq!(after.counters.bad_connections, before.bad_connections);
    cell.serves(&["b"]);
}

/// A member of this cell, gone mad: it asks for what lies far beyond anything that can be open (rule P5).
#[test]
fn a_slot_far_beyond_the_horizon_is_not_accepted() {
    const FAR: u64 = 1 << 40;
    const ROW: &str = "acceptor: Asked in Open, is_too_far";
    let mut cell = Running::start(3, 3, &[]);
    cell.serves(&["a", "b"]);
    let mad = (1..=3).rev().find(|id| *id != cell.master()).unwrap();
    cell.stop(mad);
    let mut batch = BatchBuilder::default();
    batch.push(b"not what anybody asked for");
    let batch: Batch = batch.take();
    for target in cell.running() {
        let before = cell.status(target).unwrap();
        let mut wire = Wire::dial(cell.members.peer(target));
        assert_eq!(wire.greet(hello(&cell, mad, target)), HelloAnswer::Accepted);
        let status = wait_for("the refusal", || {
            // Above whatever is promised right now; elections go on rising, so again until it is not too low.
            let now = cell.status(target)?;
            let round: u64 = now.promised.split('.').next().unwrap().parse().unwrap();
            let ballot = Ballot { round: round + 1, replica: ReplicaId(mad as u16), incarnation: Incarnation(1) };
            wire.say(&Message::Accept { ballot, slot: Slot(FAR), batch: batch.clone(), chosen: Slot(0) });
            std::thread::sleep(Duration::from_millis(20));
            cell.status(target).filter(|status| taken(status, ROW) > taken(&before, ROW))
        });
        assert!(status.chosen < FAR && status.database.revision >= before.database.revision, "{status:?}");
        assert_eq!(status.counters.bad_connections, before.counters.bad_connections);
    }
    cell.serves(&["c"]);
    cell.members.has(&["a", "b", "c"]);
    assert!(cell.master_status().chosen < FAR);
    // Nor is anything of it in anybody's log, or in the way of the member itself.
    let ids = cell.running();
    for id in &ids {
        cell.stop(*id);
    }
    for id in ids.into_iter().chain([mad]) {
        cell.launch(id, &[]);
    }
    cell.survives(1);
    cell.members.has(&["a", "b", "c"]);
    assert!(cell.master_status().chosen < FAR);
}
