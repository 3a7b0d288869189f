//! The path of a command inside one replica, stage by stage and whole, without disk and network: what our own code costs.
//!
//! Each bench works on batches of so many puts of 5 bytes under 16-byte keys; figures are per batch.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use synod_api::{Command, Operation, Sequence, SessionId};
use synod_cell::Cell;
use synod_node::codec;
use synod_node::engine::{Caller, Engine, Evidence, LogRead, Outlet, Retention, Start};
use synod_paxos::{
    Ballot, Batch, BatchBuilder, Configuration, Configurations, Incarnation, Instant, Message, Recovered, ReplicaId,
    Role, Settings, Slot, SnapshotHandle, StateMachine,
};

const SIZES: [u64; 3] = [1, 50, 1000];

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

fn identity() -> synod_wal::Identity {
    synod_wal::Identity {
        cell: synod_wal::CellId(1),
        replica: synod_wal::ReplicaId(1),
        incarnation: synod_wal::Incarnation(1),
        start: synod_wal::StartId(1),
    }
}

/// A log that never ends and forgets everything: every segment is ready when it is wanted.
fn ready(log: &mut synod_wal::Log) {
    while let Some(upkeep) = log.upkeep() {
        log.upkeep_done(upkeep);
    }
}

fn wal(c: &mut Criterion) {
    let mut group = c.benchmark_group("append, seal, flushed");
    for commands in SIZES {
        let record = batch(commands);
        let settings = synod_wal::Settings { log_bytes_max: 1 << 46, ..synod_wal::Settings::default() };
        let mut log = synod_wal::create(settings, identity());
        let mut slot = 0;
        group.throughput(Throughput::Bytes(record.len() as u64));
        group.bench_function(BenchmarkId::from_parameter(commands), |bencher| {
            bencher.iter(|| {
                // The index of a log that is never cut would grow; one slot does.
                slot = 1;
                log.append(
                    synod_wal::RecordKind::Accepted,
                    synod_wal::Slot(slot),
                    synod_wal::Ballot(1),
                    &[record.as_bytes()],
                );
                ready(&mut log);
                while let Some(flush) = log.seal() {
                    log.flushed(flush.buffer);
                    ready(&mut log);
                }
            });
        });
        black_box(slot);
    }
    group.finish();
}

fn wire(c: &mut Criterion) {
    let mut group = c.benchmark_group("accept, encoded and decoded");
    let ballot = Ballot { round: 1, replica: ReplicaId(1), incarnation: Incarnation(1) };
    for commands in SIZES {
        let message = Message::Accept { ballot, slot: Slot(2), batch: batch(commands), chosen: Slot(1) };
        group.bench_function(BenchmarkId::from_parameter(commands), |bencher| {
            bencher.iter(|| {
                let codec::EncodedMessage { kind, mut head, body } = codec::encode_message(&message);
                head.extend_from_slice(&body);
                codec::decode_message(kind, head.freeze())
            });
        });
    }
    group.finish();
}

fn apply(c: &mut Criterion) {
    let mut group = c.benchmark_group("apply");
    for commands in SIZES {
        let mut cell = Cell::new();
        let mut answer = Vec::new();
        let open = Command::without_session(Operation::OpenSession);
        let mut bytes = Vec::new();
        open.encode(&mut bytes);
        cell.apply(Slot(1), &bytes, &mut answer);
        let mut sequence = 0;
        group.throughput(Throughput::Elements(commands));
        group.bench_function(BenchmarkId::from_parameter(commands), |bencher| {
            bencher.iter_batched(
                || {
                    (0..commands)
                        .map(|key| {
                            sequence += 1;
                            put(SessionId(1), sequence, key)
                        })
                        .collect::<Vec<_>>()
                },
                |batch| {
                    for command in &batch {
                        answer.clear();
                        cell.apply(Slot(2), command, &mut answer);
                    }
                    answer.len()
                },
                BatchSize::SmallInput,
            );
        });
        // So that it cannot have measured nothing.
        assert!(cell.status().rows > commands, "the puts are there");
    }
    group.finish();
}

/// A world without distance: what is flushed is durable at the end of the turn, and answers are counted.
#[derive(Default)]
struct Nowhere {
    flushes: Vec<synod_wal::Flush>,
    answers: u64,
    answer_bytes: u64,
}

impl Outlet for Nowhere {
    fn now(&mut self) -> Instant {
        Instant(0)
    }

    fn send(&mut self, to: ReplicaId, _: Message) {
        unreachable!("a cell of one has no replica {to}");
    }

    fn answer(&mut self, _: Caller, answer: &[u8]) {
        self.answers += 1;
        self.answer_bytes += answer.len() as u64;
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

struct Alone {
    engine: Engine,
    world: Nowhere,
    sequence: u64,
}

impl Alone {
    /// A cell of one replica that coordinates, with one session open.
    fn new() -> Self {
        // Without a lease: no time passes here.
        let configuration = Configuration::of_voters([ReplicaId(1)], 16, Duration::ZERO).expect("one member is a cell");
        let settings = Settings::new(ReplicaId(1), Incarnation(1), 1);
        let log_settings = synod_wal::Settings { log_bytes_max: 1 << 46, ..synod_wal::Settings::default() };
        let start = Start {
            settings,
            recovered: Recovered::nothing(configuration),
            log: synod_wal::create(log_settings, identity()),
            cell: Cell::new(),
            client_addresses: BTreeMap::new(),
            gather_time_max: std::time::Duration::ZERO,
            retention: Retention::default(),
            quarantined: None,
        };
        let mut alone = Self { engine: Engine::new(start, Instant(0)), world: Nowhere::default(), sequence: 0 };
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

    fn commands(&mut self, count: u64) -> Vec<Bytes> {
        (0..count)
            .map(|key| {
                self.sequence += 1;
                put(SessionId(1), self.sequence, key).into()
            })
            .collect()
    }
}

fn whole(c: &mut Criterion) {
    let mut group = c.benchmark_group("command to answer, one replica, no disk");
    for commands in SIZES {
        let mut alone = Alone::new();
        group.throughput(Throughput::Elements(commands));
        group.bench_function(BenchmarkId::from_parameter(commands), |bencher| {
            bencher.iter_custom(|rounds| {
                let mut spent = std::time::Duration::ZERO;
                for _ in 0..rounds {
                    let batch = alone.commands(commands);
                    let before = alone.world.answers;
                    let start = std::time::Instant::now();
                    for (request, command) in (0..).zip(&batch) {
                        alone.engine.command(Instant(0), Caller { connection: 1, request }, command, &mut alone.world);
                    }
                    alone.settle();
                    spent += start.elapsed();
                    assert_eq!(alone.world.answers - before, commands, "every command is answered");
                }
                spent
            });
        });
    }
    group.finish();
}

criterion_group!(benches, wal, wire, apply, whole);
criterion_main!(benches);
