//! One simulated replica: the real engine, on a simulated disk.

use std::collections::BTreeMap;

use bytes::Bytes;
use synod_cell::Cell;
use synod_node::codec;
use synod_node::engine::{Caller, Engine, LogRead, Outlet, Start};
use synod_node::start::Replay;
use synod_paxos::{
    Ballot, Configuration, HardState, Incarnation, Instant, Message, Record, Recovered, ReplicaId, Settings, Slot,
};
use synod_wal::frame::{FRAME_HEADER_BYTES, FrameHeader};
use synod_wal::record::RECORD_HEADER_BYTES;
use synod_wal::{CellId, Flush, Identity, Location, Log, SegmentId, StartId, read_record};

use super::disk::{Crash, Disk};
use super::oracle::{Asked, Oracle};
use super::swarm::Swarm;
use super::verdict::{Checker, Verdict, Violation, violation};

/// What waits for a replica's next turn.
#[derive(Debug)]
pub(crate) enum Input {
    /// A message of another replica, as bytes.
    Message {
        from: ReplicaId,
        kind: u8,
        bytes: Bytes,
    },
    /// Bytes of a client.
    Client {
        connection: usize,
        bytes: Vec<u8>,
    },
    /// The flush is durable (or said to be).
    Flushed(Flush),
    SegmentReady(SegmentId),
    LogRead(LogRead),
}

/// What an engine asked for during one call.
#[derive(Default)]
pub(crate) struct Wishes {
    pub(crate) now: u64,
    pub(crate) sends: Vec<(ReplicaId, Message)>,
    pub(crate) answers: Vec<(Caller, Vec<u8>)>,
    pub(crate) flush: Option<Flush>,
    pub(crate) reads: Vec<LogRead>,
}

impl Outlet for Wishes {
    fn now(&mut self) -> Instant {
        Instant(self.now)
    }

    fn send(&mut self, to: ReplicaId, message: Message) {
        self.sends.push((to, message));
    }

    fn answer(&mut self, caller: Caller, answer: &[u8]) {
        self.answers.push((caller, answer.to_vec()));
    }

    fn flush(&mut self, flush: Flush) {
        let before = self.flush.replace(flush);
        assert!(before.is_none(), "one flush at a time");
    }

    fn read_log(&mut self, read: LogRead) {
        self.reads.push(read);
    }
}

/// A replica and its machine.
pub(crate) struct Node {
    pub(crate) id: ReplicaId,
    /// Counts its starts.
    pub(crate) life: u64,
    /// `None` while it is down.
    pub(crate) engine: Option<Box<Engine>>,
    pub(crate) disk: Disk,
    pub(crate) inbox: Vec<Input>,
    pub(crate) turn_due: bool,
    /// The earliest wake-up that is under way.
    pub(crate) wake_at: u64,
    /// When the log gets its mark, if nothing else happens (rule L4).
    pub(crate) mark_at: Option<u64>,
    /// The process stands still until then.
    pub(crate) paused_until: u64,
    pub(crate) preparing: Option<SegmentId>,
    /// It crashes in the middle of its next flush.
    pub(crate) doomed: Option<Crash>,
    /// Questions that were put to this life of it, by connection and request.
    pub(crate) asked: BTreeMap<(u64, u64), Asked>,
    pub(crate) applied: Slot,
    pub(crate) promised: Ballot,
}

const INCARNATION: Incarnation = Incarnation(1);

impl Node {
    /// A replica that has never started: its log has its first hard state.
    pub(crate) fn new(id: ReplicaId, swarm: &Swarm, start: StartId) -> Node {
        let mut disk = Disk::new(swarm.segment_bytes);
        let mut log = synod_wal::create(log_settings(swarm), identity(id, start));
        let first = log.wants_segment().expect("an empty log wants its first segment");
        disk.make_segment(first);
        log.segment_ready(first);
        let hard_state = HardState {
            promised: Ballot::NONE,
            incarnation: INCARNATION,
            configuration: configuration(swarm),
            cut: Slot::NONE,
        };
        codec::append_record(&mut log, &Record::HardState(hard_state));
        flush_all(&mut log, &mut disk);
        Node {
            id,
            life: 0,
            engine: None,
            disk,
            inbox: Vec::new(),
            turn_due: false,
            wake_at: u64::MAX,
            mark_at: None,
            paused_until: 0,
            preparing: None,
            doomed: None,
            asked: BTreeMap::new(),
            applied: Slot::NONE,
            promised: Ballot::NONE,
        }
    }

    /// Starts the process: recovers the log, and makes an engine of what it says, as the real thing does.
    pub(crate) fn start(
        &mut self,
        now: u64,
        swarm: &Swarm,
        seeds: (u64, u64),
        forget_promise: bool,
        oracle: &mut Oracle,
    ) -> Result<synod_wal::Tail, Violation> {
        let (start, seed) = seeds;
        let mut replay = Replay::new();
        let mut found = Vec::new();
        let mut on_record = |record: synod_wal::RecordRef<'_>| {
            replay.take_raw(&record);
            found.push(codec::decode_record(record.kind, record.slot, record.ballot, record.payload));
        };
        let identity = identity(self.id, StartId(start));
        let recovered = synod_wal::recover(&mut self.disk, log_settings(swarm), &identity, &mut on_record);
        let failed = |why: String| {
            violation(Checker::Recovery, format!("after a mere crash replica {} does not start: {why}", self.id))
        };
        let recovered = match recovered {
            Ok(recovered) => recovered,
            Err(error) => return failed(error.to_string()),
        };
        for record in found {
            match record {
                Ok(record) => oracle.durable(self.id, record)?,
                Err(error) => return failed(error.to_string()),
            }
        }
        let (hard, mut protocol, cell) = match replay.finish() {
            Ok(finished) => finished,
            Err(error) => return failed(error.to_string()),
        };
        let Some(hard) = hard else { return failed("its log has no hard state".to_owned()) };
        if forget_promise {
            let accepted = protocol.accepted.values().map(|(ballot, _)| *ballot).max();
            protocol.promised = accepted.unwrap_or(Ballot::NONE);
        }
        self.check_recovered(&protocol, &cell, oracle)?;
        let mut settings = Settings::new(self.id, hard.incarnation, hard.configuration, seed);
        settings.window = swarm.window;
        settings.heartbeat = swarm.heartbeat;
        settings.election_timeout = swarm.election_timeout;
        let members = settings.configuration.members();
        let client_addresses = members.iter().map(|id| (*id, address(*id))).collect();
        let start = Start {
            settings,
            recovered: protocol,
            log: recovered.log,
            cell,
            client_addresses,
            gather_time_max: swarm.gather_max,
        };
        self.engine = Some(Box::new(Engine::new(start, Instant(now))));
        self.life += 1;
        self.wake_at = u64::MAX;
        Ok(recovered.tail)
    }

    fn check_recovered(&mut self, protocol: &Recovered, cell: &Cell, oracle: &Oracle) -> Verdict {
        oracle.holds(self.id, protocol.promised)?;
        oracle.applied(self.id, protocol.chosen, cell)?;
        (self.promised, self.applied) = (protocol.promised, protocol.chosen);
        Ok(())
    }

    /// After each call of the engine: what can be seen of it from outside.
    pub(crate) fn check(&mut self, engine: &Engine, oracle: &Oracle) -> Verdict {
        let (promised, chosen) = (engine.replica().promised(), engine.replica().chosen());
        if promised < self.promised {
            let what = format!("the promise of replica {} fell from {} to {promised}", self.id, self.promised);
            return violation(Checker::Promises, what);
        }
        self.promised = promised;
        if chosen > self.applied {
            self.applied = chosen;
            oracle.applied(self.id, chosen, engine.cell())?;
        }
        Ok(())
    }
}

pub(crate) fn address(replica: ReplicaId) -> String {
    format!("replica-{replica}")
}

fn configuration(swarm: &Swarm) -> Configuration {
    let members = (1..=swarm.replicas).map(ReplicaId).collect();
    Configuration::new(members, swarm.horizon).expect("a sound configuration")
}

fn identity(replica: ReplicaId, start: StartId) -> Identity {
    let incarnation = synod_wal::Incarnation(INCARNATION.0);
    Identity { cell: CellId(7), replica: synod_wal::ReplicaId(replica.0), incarnation, start }
}

fn log_settings(swarm: &Swarm) -> synod_wal::Settings {
    let segment_bytes = swarm.segment_bytes;
    // Nothing cuts a log before there are snapshots, so it must never be full.
    let log_bytes_max = segment_bytes << 20;
    let settings = synod_wal::Settings { segment_bytes, log_bytes_max, frame_bytes_max: swarm.frame_bytes_max };
    settings.validate().expect("the swarm draws sound sizes")
}

fn flush_all(log: &mut Log, disk: &mut Disk) {
    while let Some(flush) = log.seal() {
        disk.begin(flush);
        disk.write();
        log.flushed(disk.sync_written().buffer);
    }
}

/// The records in the bytes of one flush, read as a stranger would read them.
pub(crate) fn records_in(bytes: &[u8], segment: SegmentId, offset: u64) -> Vec<Record> {
    let (header, _) = FrameHeader::decode(bytes).expect("a flush begins with a frame's header");
    assert_eq!((header.segment, header.offset), (segment, offset), "a frame says where it is");
    let end = FRAME_HEADER_BYTES + header.payload_bytes as usize;
    let mut at = FRAME_HEADER_BYTES;
    let mut records = Vec::new();
    while at < end {
        let head = &bytes[at..at + RECORD_HEADER_BYTES];
        let payload = u32::from_le_bytes([head[4], head[5], head[6], 0]);
        let slot = synod_wal::Slot(u64::from_le_bytes(head[8..16].try_into().expect("eight bytes")));
        let length = RECORD_HEADER_BYTES as u32 + payload;
        // Offsets are taken within the flush: it begins at a block.
        let location = Location { segment, offset: at as u64, length };
        let blocks = &bytes[location.blocks().0 as usize..];
        let record = read_record(blocks, location, slot).expect("what was flushed is sound");
        let record = codec::decode_record(record.kind, record.slot, record.ballot, record.payload);
        records.push(record.expect("what was appended can be read"));
        at += (length as usize).next_multiple_of(RECORD_HEADER_BYTES);
    }
    records
}
