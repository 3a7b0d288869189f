//! The path of a command inside one replica, part by part and whole, without disk and network: what our own code costs.
//!
//! | part | what it does with a batch |
//! |---|---|
//! | decode | the clients' frames are checked and taken apart, and the commands in them |
//! | propose | the protocol proposes, accepts and chooses it, in a cell of one |
//! | accept out | its accept, encoded for the peers |
//! | accept in | the same, decoded by one of them |
//! | log | its record goes into the log's frame, which is sealed, with its checksums |
//! | apply | the state machine applies its commands to the database |
//! | answer | its answers become frames of a connection, to be sent |
//! | whole | command to answer: all of it in one replica, but for frames and peers |
//!
//! A batch has so many puts of 5 bytes under 16-byte keys. `benches/path.rs` measures the time of each part, and `synod-bench
//! instructions` counts its instructions.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use synod_api::{Answer, Command, FrameKind, Operation, Revision, Sequence, SessionId, limits};
use synod_cell::Cell;
use synod_net::connection::InboundSizes;
use synod_net::{FrameId, Inbound, Outbound, frame};
use synod_node::codec::{self, EncodedMessage};
use synod_node::engine::{Caller, Engine, Evidence, Import, LogRead, Outlet, Retention, Start};
use synod_paxos::{
    Ballot, Batch, BatchBuilder, Configuration, Configurations, Effect, Effects, Event, Incarnation, Instant, Message,
    PersistId, Recovered, Replica, ReplicaId, Role, Settings, Slot, SnapshotHandle, StateMachine, Ticket,
};

/// One part of the path, over and over.
pub trait Part {
    /// Makes what the next run needs: not measured.
    fn prepare(&mut self);
    /// What is measured: one batch.
    fn run(&mut self);
}

/// Makes a part for batches of so many commands.
pub type Make = fn(u64) -> Box<dyn Part>;

/// All parts, in a command's order.
pub const PARTS: [(&str, Make); 8] = [
    ("decode", |commands| Box::new(Decode::new(commands))),
    ("propose", |commands| Box::new(Propose::new(commands))),
    ("accept out", |commands| Box::new(AcceptOut::new(commands))),
    ("accept in", |commands| Box::new(AcceptIn::new(commands))),
    ("log", |commands| Box::new(Logged::new(commands))),
    ("apply", |commands| Box::new(Apply::new(commands))),
    ("answer", |commands| Box::new(Answers::new(commands))),
    ("whole", |commands| Box::new(Whole::new(commands))),
];

fn put(session: SessionId, sequence: u64, key: u64) -> Vec<u8> {
    let key = format!("bench/{key:010}");
    let operation = Operation::Put { key: key.as_bytes(), value: b"value" };
    let unanswered_from = Sequence(sequence);
    let mut bytes = Vec::new();
    Command { session, sequence: Sequence(sequence), unanswered_from, operation }.encode(&mut bytes);
    bytes
}

fn batch(commands: u64) -> Batch {
    let mut builder = BatchBuilder::default();
    for key in 0..commands {
        builder.push(&put(SessionId(1), key + 1, key));
    }
    builder.take()
}

/// Frames as the clients send them, in one piece as the kernel gives it.
struct Decode {
    commands: u64,
    arrived: Vec<u8>,
    inbound: Inbound,
}

impl Decode {
    fn new(commands: u64) -> Self {
        let mut arrived = Vec::new();
        for key in 0..commands {
            frame::append_frame(
                &mut arrived,
                FrameKind::Request.into(),
                FrameId(key),
                &[&put(SessionId(1), key + 1, key)],
            );
        }
        Self { commands, arrived, inbound: Inbound::new(InboundSizes::client(limits::COMMAND_BYTES_MAX as u32)) }
    }
}

impl Part for Decode {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        let mut commands = 0;
        let visited = self.inbound.visit(&self.arrived, |frame| {
            let command = Command::decode(frame.payload).expect("it was encoded here");
            command.check_limits().expect("it is small");
            commands += 1;
        });
        visited.expect("the frames were encoded here");
        assert_eq!(commands, self.commands);
    }
}

/// One replica that makes up a cell of its own, and its log, which takes everything at once.
struct Propose {
    replica: Replica,
    effects: Effects,
    inbox: VecDeque<Message>,
    held: VecDeque<Message>,
    persisted: PersistId,
    durable: PersistId,
    applied: u64,
    ticket: u64,
    batch: Batch,
}

impl Propose {
    fn new(commands: u64) -> Self {
        let recovered = Recovered::nothing(configuration());
        let mut part = Self {
            replica: Replica::new(Settings::new(ReplicaId(1), Incarnation(1), 1), &recovered, Instant(0)),
            effects: Effects::new(),
            inbox: VecDeque::new(),
            held: VecDeque::new(),
            persisted: PersistId(0),
            durable: PersistId(0),
            applied: 0,
            ticket: 0,
            batch: batch(commands),
        };
        while part.replica.role() != Role::Coordinating || !part.replica.can_submit() {
            part.step(part.replica.deadline(), Event::Ticked);
        }
        part
    }

    /// A step and all that follows from it.
    fn step(&mut self, now: Instant, event: Event) {
        self.replica.step(now, event, &mut self.effects);
        loop {
            for effect in self.effects.drain(..) {
                match effect {
                    Effect::Persist { id, .. } => self.persisted = id,
                    Effect::Send { message, .. } => self.inbox.push_back(message),
                    Effect::SendOnceDurable { message, .. } => self.held.push_back(message),
                    Effect::Apply { .. } => self.applied += 1,
                    other => unreachable!("a cell of one that only proposes asks for {other:?}"),
                }
            }
            let event = match self.inbox.pop_front() {
                Some(message) => Event::Received { from: ReplicaId(1), message },
                None if self.persisted > self.durable => {
                    self.durable = self.persisted;
                    Event::Persisted { upto: self.durable, frame: 0 }
                }
                None => match self.held.pop_front() {
                    Some(message) => Event::Received { from: ReplicaId(1), message },
                    None => return,
                },
            };
            self.replica.step(now, event, &mut self.effects);
        }
    }
}

impl Part for Propose {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        self.ticket += 1;
        let before = self.applied;
        self.step(Instant(0), Event::Submitted { ticket: Ticket(self.ticket), batch: self.batch.clone() });
        assert_eq!(self.applied - before, 1, "it is chosen");
    }
}

fn accept(commands: u64) -> Message {
    let ballot = Ballot { round: 1, replica: ReplicaId(1), incarnation: Incarnation(1) };
    Message::Accept { ballot, slot: Slot(2), batch: batch(commands), chosen: Slot(1) }
}

struct AcceptOut {
    message: Message,
    outbound: Outbound,
}

impl AcceptOut {
    fn new(commands: u64) -> Self {
        Self { message: accept(commands), outbound: Outbound::new(1 << 24) }
    }
}

impl Part for AcceptOut {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        let EncodedMessage { kind, head, body } = codec::encode_message(&self.message);
        let frame = synod_net::SharedFrame::new(kind, FrameId(0), &head, body);
        self.outbound.append_shared(&frame).expect("there is room");
        send(&mut self.outbound);
    }
}

/// Takes all that waits, as the kernel would.
fn send(outbound: &mut Outbound) {
    let pieces = outbound.take().expect("something waits");
    let bytes = pieces.iter().map(Bytes::len).sum();
    outbound.sent(pieces, bytes);
}

struct AcceptIn {
    kind: u8,
    arrived: Bytes,
}

impl AcceptIn {
    fn new(commands: u64) -> Self {
        let EncodedMessage { kind, head, body } = codec::encode_message(&accept(commands));
        let mut arrived = BytesMut::from(&head[..]);
        arrived.extend_from_slice(&body);
        Self { kind, arrived: arrived.freeze() }
    }
}

impl Part for AcceptIn {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        let message = codec::decode_message(self.kind, self.arrived.clone());
        assert!(matches!(message, Ok(Message::Accept { .. })), "it was encoded here");
    }
}

fn identity() -> synod_wal::Identity {
    synod_wal::Identity {
        cell: synod_wal::CellId(1),
        replica: synod_wal::ReplicaId(1),
        incarnation: synod_wal::Incarnation(1),
        start: synod_wal::StartId(1),
    }
}

/// A log that never ends and forgets everything.
fn endless_log() -> synod_wal::Log {
    let settings = synod_wal::Settings { log_bytes_max: 1 << 46, ..synod_wal::Settings::default() };
    synod_wal::create(settings, identity())
}

/// Every segment is ready when it is wanted.
fn ready(log: &mut synod_wal::Log) {
    while let Some(upkeep) = log.upkeep() {
        log.upkeep_done(upkeep);
    }
}

struct Logged {
    log: synod_wal::Log,
    batch: Batch,
}

impl Logged {
    fn new(commands: u64) -> Self {
        let mut log = endless_log();
        ready(&mut log);
        Self { log, batch: batch(commands) }
    }
}

impl Part for Logged {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        // The index of a log that is never cut would grow; one slot does.
        let (kind, slot, ballot) = (synod_wal::RecordKind::Accepted, synod_wal::Slot(1), synod_wal::Ballot(1));
        self.log.append(kind, slot, ballot, &[self.batch.as_bytes()]);
        ready(&mut self.log);
        while let Some(flush) = self.log.seal() {
            self.log.flushed(flush.buffer);
            ready(&mut self.log);
        }
    }
}

struct Apply {
    cell: Cell,
    commands: u64,
    sequence: u64,
    batch: Vec<Vec<u8>>,
    answer: Vec<u8>,
}

impl Apply {
    fn new(commands: u64) -> Self {
        let (mut cell, mut answer, mut open) = (Cell::new(), Vec::new(), Vec::new());
        Command::without_session(Operation::OpenSession).encode(&mut open);
        cell.apply(Slot(1), &open, &mut answer);
        Self { cell, commands, sequence: 0, batch: Vec::new(), answer }
    }
}

impl Part for Apply {
    fn prepare(&mut self) {
        self.batch.clear();
        for key in 0..self.commands {
            self.sequence += 1;
            self.batch.push(put(SessionId(1), self.sequence, key));
        }
    }

    fn run(&mut self) {
        for command in &self.batch {
            self.answer.clear();
            self.cell.apply(Slot(2), command, &mut self.answer);
        }
        assert!(self.cell.status().rows > self.commands, "the puts are there");
    }
}

/// Answers of one turn, all on one connection.
struct Answers {
    commands: u64,
    answer: Vec<u8>,
    outbound: Outbound,
}

impl Answers {
    fn new(commands: u64) -> Self {
        Self { commands, answer: Vec::new(), outbound: Outbound::new(1 << 24) }
    }
}

impl Part for Answers {
    fn prepare(&mut self) {}

    fn run(&mut self) {
        for request in 0..self.commands {
            self.answer.clear();
            Answer::<Bytes>::Written { revision: Revision(request) }.encode(&mut self.answer);
            let queued = self.outbound.append(FrameKind::Answer.into(), FrameId(request), &[&self.answer]);
            queued.expect("there is room");
        }
        send(&mut self.outbound);
    }
}

fn configuration() -> Configuration {
    // Without a lease: no time passes here.
    Configuration::of_voters([ReplicaId(1)], 16, Duration::ZERO).expect("one member is a cell")
}

/// A world without distance: what is flushed is durable at the end of the turn, and answers are counted.
#[derive(Default)]
struct Nowhere {
    flushes: Vec<synod_wal::Flush>,
    answers: u64,
}

impl Outlet for Nowhere {
    fn now(&mut self) -> Instant {
        Instant(0)
    }

    fn send(&mut self, to: ReplicaId, _: Message) {
        unreachable!("a cell of one has no replica {to}");
    }

    fn answer(&mut self, _: Caller, _: &[u8]) {
        self.answers += 1;
    }

    fn flush(&mut self, flush: synod_wal::Flush) {
        self.flushes.push(flush);
    }

    fn read_log(&mut self, _: LogRead) {
        unreachable!("nobody lags behind in a cell of one");
    }

    fn reconfigure(&mut self, _: &Configurations) {
        unreachable!("nobody changes the members");
    }

    fn send_snapshot(&mut self, to: ReplicaId, _: codec::SnapshotMessage) {
        unreachable!("a cell of one has no replica {to}");
    }

    fn send_room(&mut self, to: ReplicaId, _: codec::RoomMessage) {
        unreachable!("a cell of one has no replica {to}");
    }

    fn keep_snapshot(&mut self, _: &SnapshotHandle, _: &mut Cell) {
        unreachable!("no snapshot is ever due");
    }

    fn make_database(&mut self) {
        unreachable!("nobody lags behind in a cell of one");
    }

    fn import(&mut self, _: Import) {
        unreachable!("nobody lags behind in a cell of one");
    }

    fn keep_incoming(&mut self, _: &SnapshotHandle, _: &mut Cell) {
        unreachable!("nobody lags behind in a cell of one");
    }

    fn replace_database(&mut self, _: Cell) {
        unreachable!("nobody lags behind in a cell of one");
    }

    fn drop_database(&mut self, _: Option<Cell>) {
        unreachable!("nobody lags behind in a cell of one");
    }

    fn note_quarantine(&mut self, _: &Evidence) {
        unreachable!("a cell of one compares with nobody");
    }

    fn end_quarantine(&mut self) {}
}

/// A cell of one replica that coordinates, with one session open.
struct Whole {
    engine: Engine,
    world: Nowhere,
    sequence: u64,
    commands: u64,
    batch: Vec<Bytes>,
}

impl Whole {
    fn new(commands: u64) -> Self {
        let configuration = configuration();
        let settings = Settings::new(ReplicaId(1), Incarnation(1), 1);
        let start = Start {
            settings,
            recovered: Recovered::nothing(configuration),
            log: endless_log(),
            cell: Cell::new(),
            client_addresses: BTreeMap::new(),
            gather_time_max: Duration::ZERO,
            retention: Retention::default(),
            quarantined: None,
        };
        let (engine, world) = (Engine::new(start, Instant(0)), Nowhere::default());
        let mut alone = Self { engine, world, sequence: 0, commands, batch: Vec::new() };
        while alone.engine.replica().role() != Role::Coordinating {
            let deadline = alone.engine.deadline();
            alone.engine.tick(deadline, &mut alone.world);
            alone.settle();
        }
        let mut open = Vec::new();
        Command::without_session(Operation::OpenSession).encode(&mut open);
        alone.engine.command(Instant(0), Caller { connection: 0, request: 0 }, &open, &mut alone.world);
        alone.settle();
        assert_eq!(alone.world.answers, 1, "the session is open");
        alone
    }

    /// Turns until nothing is under way.
    fn settle(&mut self) {
        loop {
            while let Some(upkeep) = self.engine.log_upkeep(Instant(0)) {
                self.engine.log_upkeep_done(upkeep);
            }
            self.engine.end_turn(Instant(0), &mut self.world);
            let Some(flush) = self.world.flushes.pop() else { break };
            self.engine.flushed(Instant(0), flush.buffer, &mut self.world);
        }
        self.engine.turn_sent(Instant(0));
    }
}

impl Part for Whole {
    fn prepare(&mut self) {
        self.batch.clear();
        for key in 0..self.commands {
            self.sequence += 1;
            self.batch.push(put(SessionId(1), self.sequence, key).into());
        }
    }

    fn run(&mut self) {
        let before = self.world.answers;
        for (request, command) in (0..).zip(&self.batch) {
            self.engine.command(Instant(0), Caller { connection: 1, request }, command, &mut self.world);
        }
        self.settle();
        assert_eq!(self.world.answers - before, self.commands, "every command is answered");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_does_its_work_again_and_again() {
        for (name, make) in PARTS {
            for commands in [1, 50] {
                let mut part = make(commands);
                for _ in 0..100 {
                    part.prepare();
                    part.run();
                }
                eprintln!("{name} of {commands}");
            }
        }
    }
}
