//! What is fed: one target for each place at which bytes from a socket or a disk become something.

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use synod_api::{
    Answer, BoundedRead, Command, Consistency, Expected, Operation, Refusal, Revision, Sequence, SessionId, Version,
};
use synod_net::frame::{self, FrameId, FrameLimits, FrameRef};
use synod_net::{Hello, HelloAnswer};
use synod_node::codec::{self, DigestMessage, PeerMessage, RoomMessage, SnapshotMessage};
use synod_node::remote::manifest::{ChunkFields, MadeBy, Manifest, Name, Origin};
use synod_paxos::{
    Ballot, Batch, BatchBuilder, Configuration, Configurations, CrashVector, HardState, Incarnation, Message, Record,
    ReplicaId, Slot, SnapshotHandle,
};
use synod_store::{Digest, Options, Store};
use synod_wal::frame::{FRAME_HEADER_BYTES, FrameHeader};
use synod_wal::record::RECORD_HEADER_BYTES;

use super::{Finding, Verdict, recovery};

/// One decoder.
pub struct Target {
    /// Its name on the command line.
    pub name: &'static str,
    /// What it reads.
    pub about: &'static str,
    /// Sound inputs.
    pub samples: fn() -> Vec<Vec<u8>>,
    /// Puts checksums right again, now and then, so that what is behind them is reached.
    pub mend: fn(&mut Rng, &mut Vec<u8>),
    /// Feeds it.
    pub feed: fn(&[u8]) -> Result<Verdict, Finding>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "frames",
        about: "a stream of frames from any socket",
        samples: frames,
        mend: frame_again,
        feed: feed_frames,
    },
    Target { name: "hello", about: "the first frame of a peer", samples: hellos, mend: as_it_is, feed: feed_hello },
    Target { name: "command", about: "a client's command", samples: commands, mend: as_it_is, feed: feed_command },
    Target { name: "read", about: "a client's read for any replica", samples: reads, mend: as_it_is, feed: feed_read },
    Target { name: "answer", about: "an answer to a client", samples: answers, mend: as_it_is, feed: feed_answer },
    Target { name: "batch", about: "a batch of commands", samples: batches, mend: as_it_is, feed: feed_batch },
    Target {
        name: "configuration",
        about: "who the members are",
        samples: configurations,
        mend: as_it_is,
        feed: feed_configuration,
    },
    Target {
        name: "peer-message",
        about: "a replica's message: its kind, then its payload",
        samples: peer_messages,
        mend: as_it_is,
        feed: feed_peer_message,
    },
    Target {
        name: "record",
        about: "a record of the log: kind, then payload",
        samples: records,
        mend: as_it_is,
        feed: feed_record,
    },
    Target {
        name: "handle",
        about: "what ties a snapshot to the log",
        samples: handles,
        mend: as_it_is,
        feed: feed_handle,
    },
    Target { name: "chunk", about: "rows of another replica", samples: chunks, mend: as_it_is, feed: feed_chunk },
    Target {
        name: "wal-header",
        about: "the header of a frame of the log",
        samples: wal_headers,
        mend: wal_checksums,
        feed: feed_wal_header,
    },
    Target {
        name: "recovery",
        about: "the files of a log",
        samples: recovery::logs,
        mend: as_it_is,
        feed: recovery::feed,
    },
    Target {
        name: "manifest",
        about: "what a copy in another place says of itself",
        samples: manifests,
        mend: as_it_is,
        feed: feed_manifest,
    },
];

fn as_it_is(_: &mut Rng, _: &mut Vec<u8>) {}

fn same<T: PartialEq>(again: Option<T>, first: &T, bytes: &[u8]) -> Result<Verdict, Finding> {
    match again.as_ref() == Some(first) {
        true => Ok(Verdict::Taken),
        false => Err(Finding::new("encoded and decoded again it is something else", bytes)),
    }
}

const LIMITS: FrameLimits = FrameLimits { payload_bytes_max: 4096 };

fn frames() -> Vec<Vec<u8>> {
    let payloads: [&[u8]; 4] = [b"", b"x", &[7; 100], &[0; 4096]];
    let mut all = Vec::new();
    let singly = payloads.map(|payload| {
        let mut one = Vec::new();
        frame::append_frame(&mut one, 9, FrameId(1 << 40), &[payload]);
        all.extend_from_slice(&one);
        one
    });
    singly.into_iter().chain([all]).collect()
}

/// As the payload of a sound frame it passes the checksums.
fn frame_again(random: &mut Rng, bytes: &mut Vec<u8>) {
    if random.bool() {
        let payload = std::mem::take(bytes);
        frame::append_frame(bytes, random.u8(..), FrameId(random.u64(..)), &[&payload]);
    }
}

fn feed_frames(bytes: &[u8]) -> Result<Verdict, Finding> {
    let mut input = BytesMut::from(bytes);
    let mut again = Vec::new();
    let verdict = loop {
        match frame::decode(&mut input, LIMITS) {
            Ok(Some(frame)) => frame::append_frame(&mut again, frame.kind, frame.id, &[&frame.payload]),
            Ok(None) => break Verdict::Taken,
            Err(_) => break Verdict::Refused,
        }
    };
    if !bytes.starts_with(&again) {
        return Err(Finding::new("its frames, encoded again, are others", bytes));
    }
    Ok(if again.is_empty() { Verdict::Refused } else { verdict })
}

/// The payload of the first frame, with its kind before it.
fn kind_and_payload(frame: &[u8]) -> Vec<u8> {
    let mut input = BytesMut::from(frame);
    let frame = frame::decode(&mut input, FrameLimits { payload_bytes_max: u32::MAX }).expect("a sample is sound");
    let frame = frame.expect("a sample is whole");
    [&[frame.kind], &frame.payload[..]].concat()
}

fn hellos() -> Vec<Vec<u8>> {
    let hello = Hello { version: synod_net::hello::HELLO_VERSION, cell: 7, from: 1, to: 2, configuration: 3 };
    let answers = [HelloAnswer::Accepted, HelloAnswer::Refused("because".to_owned())];
    let answers = answers.iter().map(|answer| kind_and_payload(&answer.encode()));
    std::iter::once(kind_and_payload(&hello.encode())).chain(answers).collect()
}

fn feed_hello(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Some((&kind, payload)) = bytes.split_first() else { return Ok(Verdict::Refused) };
    let frame = FrameRef { kind, id: FrameId(0), payload };
    if let Ok(hello) = Hello::decode(frame) {
        let again = kind_and_payload(&hello.encode());
        let frame = FrameRef { kind: again[0], id: FrameId(0), payload: &again[1..] };
        return same(Hello::decode(frame).ok(), &hello, bytes);
    }
    Ok(if HelloAnswer::decode(frame).is_ok() { Verdict::Taken } else { Verdict::Refused })
}

fn commands() -> Vec<Vec<u8>> {
    let (key, value): (&[u8], &[u8]) = (b"key", b"value");
    let operations = [
        Operation::OpenSession,
        Operation::CloseSession,
        Operation::Get { key },
        Operation::Put { key, value },
        Operation::Delete { key },
        Operation::CompareAndSwap { key, expected: Expected::Absent, value },
        Operation::CompareAndSwap { key, expected: Expected::Value(b"old"), value },
        Operation::CreateFile { path: b"/a/path", contents: value },
        Operation::WriteFile { path: b"/a/path", contents: b"" },
        Operation::ReadFile { path: b"/a" },
    ];
    let command = |operation| {
        let command = Command { session: SessionId(5), sequence: Sequence(6), unanswered_from: Sequence(4), operation };
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        bytes
    };
    operations.map(command).into()
}

fn feed_command(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Ok(command) = Command::decode(bytes) else { return Ok(Verdict::Refused) };
    let mut again = Vec::new();
    command.encode(&mut again);
    same(Some(again), &bytes.to_vec(), bytes)
}

fn reads() -> Vec<Vec<u8>> {
    let get = Operation::Get { key: b"key" };
    let read = |(consistency, operation)| {
        let mut bytes = Vec::new();
        BoundedRead { consistency, operation }.encode(&mut bytes);
        bytes
    };
    let reads = [
        (Consistency::Linearizable, get),
        (Consistency::AtLeast(Revision(9)), get),
        (Consistency::At(Revision(9)), Operation::ReadFile { path: b"/a" }),
    ];
    reads.map(read).into()
}

fn feed_read(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Ok(read) = BoundedRead::decode(bytes) else { return Ok(Verdict::Refused) };
    let mut again = Vec::new();
    read.encode(&mut again);
    same(Some(again), &bytes.to_vec(), bytes)
}

fn answers() -> Vec<Vec<u8>> {
    let (value, revision) = (&b"value"[..], Revision(9));
    let answers = [
        Answer::SessionOpened(SessionId(3)),
        Answer::SessionClosed,
        Answer::Value { value, create_revision: Revision(2), modify_revision: revision, version: Version(3) },
        Answer::Absent,
        Answer::Read { revision, found: None },
        Answer::Refused(Refusal::Behind { has: revision, wanted: revision }),
        Answer::Written { revision },
        Answer::Unequal { current: Some(value) },
        Answer::Unequal { current: None },
        Answer::Exists { revision },
        Answer::Refused(Refusal::NotMaster { master: Some("127.0.0.1:7".to_owned()) }),
        Answer::Refused(Refusal::Limit("too long".to_owned())),
    ];
    let encoded = |answer: Answer<&[u8]>| {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        bytes
    };
    answers.map(encoded).into()
}

fn feed_answer(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Ok(answer) = Answer::decode(Bytes::copy_from_slice(bytes)) else { return Ok(Verdict::Refused) };
    let mut again = Vec::new();
    answer.encode(&mut again);
    same(Answer::decode(again.into()).ok(), &answer, bytes)
}

fn a_configuration() -> Configuration {
    Configuration::of(&[1, 2, 3])
}

fn a_batch() -> Batch {
    let mut builder = BatchBuilder::default();
    commands().iter().for_each(|command| builder.push(command));
    builder.take()
}

fn batches() -> Vec<Vec<u8>> {
    let change = Batch::change(Slot(4), &a_configuration());
    [a_batch(), Batch::NO_OP, change].iter().map(|batch| batch.as_bytes().to_vec()).collect()
}

fn feed_batch(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Ok(batch) = Batch::from_bytes(Bytes::copy_from_slice(bytes)) else { return Ok(Verdict::Refused) };
    if batch.as_change().is_some() && batch.commands().next().is_some() {
        return Err(Finding::new("a change of the members holds commands", bytes));
    }
    batch.commands().for_each(|command| assert!(command.len() <= bytes.len()));
    same(Some(batch.as_bytes().to_vec()), &bytes.to_vec(), bytes)
}

fn configurations() -> Vec<Vec<u8>> {
    let mut bytes = Vec::new();
    a_configuration().encode(&mut bytes);
    vec![bytes]
}

fn feed_configuration(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Ok(configuration) = Configuration::decode(bytes) else { return Ok(Verdict::Refused) };
    let mut again = Vec::new();
    configuration.encode(&mut again);
    same(Some(again), &bytes.to_vec(), bytes)
}

fn a_hard_state() -> HardState {
    let configurations = Configurations::first(a_configuration());
    HardState {
        promised: BALLOT,
        incarnation: Incarnation(1),
        vector: CrashVector::default(),
        configurations,
        cut: Slot(4),
    }
}

const BALLOT: Ballot = Ballot { round: 3, replica: ReplicaId(2), incarnation: Incarnation(1) };

fn a_handle() -> SnapshotHandle {
    SnapshotHandle { slot: Slot(77), ballot: BALLOT, configurations: Configurations::first(a_configuration()) }
}

fn bytes_of(message: &PeerMessage) -> Vec<u8> {
    let encoded = match message {
        PeerMessage::Protocol(message) => codec::encode_message(message),
        PeerMessage::Snapshot(message) => codec::encode_snapshot_message(message),
        PeerMessage::Room(message) => codec::encode_room_message(message),
    };
    [&[encoded.kind], &encoded.head[..], &encoded.body[..]].concat()
}

fn peer_messages() -> Vec<Vec<u8>> {
    let (slot, rows) = (Slot(77), Bytes::from_static(b"rows"));
    let protocol = [
        Message::Propose { ballot: BALLOT, released: Ballot::NONE },
        Message::Accept { ballot: BALLOT, slot, batch: a_batch(), chosen: Slot(70) },
        Message::Commit { ballot: BALLOT, chosen: Slot(70), tolerance: -1 },
        Message::AskIndex { name: 9 },
        Message::TellIndex { ballot: BALLOT, name: 9, slot: Slot(70) },
        Message::Fetch { from: slot },
        Message::Entries { first: slot, batches: vec![a_batch(), Batch::NO_OP], chosen: Slot(99) },
    ];
    let snapshots = [
        SnapshotMessage::Offer { handle: a_handle(), digest: Digest(11) },
        SnapshotMessage::Digest(DigestMessage::Report { slot, digest: Some(Digest(11)) }),
        SnapshotMessage::Digest(DigestMessage::Traced { first: slot, digests: vec![Digest(11), Digest(12)] }),
        SnapshotMessage::Want { slot, from: Some(rows.clone()) },
        SnapshotMessage::Chunk { slot, from: None, next: Some(rows.clone()), rows },
        SnapshotMessage::Gone { slot },
    ];
    let rooms =
        [RoomMessage::Ask, RoomMessage::Have { has_room: true }, RoomMessage::Short { why: "a file".to_owned() }];
    let others = snapshots.into_iter().map(PeerMessage::Snapshot).chain(rooms.into_iter().map(PeerMessage::Room));
    protocol.into_iter().map(PeerMessage::Protocol).chain(others).map(|message| bytes_of(&message)).collect()
}

fn peer_message(bytes: &[u8]) -> Option<PeerMessage> {
    let (&kind, payload) = bytes.split_first()?;
    codec::decode_peer_message(kind, Bytes::copy_from_slice(payload)).ok()
}

fn feed_peer_message(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Some(message) = peer_message(bytes) else { return Ok(Verdict::Refused) };
    same(peer_message(&bytes_of(&message)), &message, bytes)
}

const RECORD_KINDS: [synod_wal::RecordKind; 3] =
    [synod_wal::RecordKind::HardState, synod_wal::RecordKind::Accepted, synod_wal::RecordKind::Chosen];

fn records() -> Vec<Vec<u8>> {
    let batch = a_batch();
    let accepted = [&[1], &70_u64.to_le_bytes()[..], batch.as_bytes()].concat();
    let chosen = [&[2], &batch.as_bytes()[..]].concat();
    // The first record of a frame, behind its header and its own.
    let frame = a_frame();
    let record = &frame[FRAME_HEADER_BYTES..];
    let length = u32::from_le_bytes([record[4], record[5], record[6], 0]) as usize;
    let hard_state = [&[0], &record[RECORD_HEADER_BYTES..][..length]].concat();
    vec![accepted, chosen, hard_state]
}

fn feed_record(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Some((&kind, payload)) = bytes.split_first() else { return Ok(Verdict::Refused) };
    let kind = RECORD_KINDS[usize::from(kind) % RECORD_KINDS.len()];
    let record = codec::decode_record(kind, synod_wal::Slot(77), synod_wal::Ballot(1 << 64), payload);
    Ok(if record.is_ok() { Verdict::Taken } else { Verdict::Refused })
}

fn handles() -> Vec<Vec<u8>> {
    vec![codec::encode_handle(&a_handle()).to_vec()]
}

fn feed_handle(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Ok(handle) = codec::decode_handle(bytes) else { return Ok(Verdict::Refused) };
    same(codec::decode_handle(&codec::encode_handle(&handle)).ok(), &handle, bytes)
}

const STORE_BYTES_MAX: usize = 16 << 20;

fn a_store() -> Store {
    Store::in_memory(Options { keep_history: true, database_bytes_max: STORE_BYTES_MAX, ..Options::default() })
}

fn chunks() -> Vec<Vec<u8>> {
    let mut store = a_store();
    for at in 0..20_u8 {
        store.change().put(&[b'k', at % 7], &vec![at; usize::from(at) * 16]);
    }
    store.change().delete(b"k\x03");
    store.put_plain(b"p", b"plain");
    let whole = store.freeze().export(None, STORE_BYTES_MAX).expect("the view was made just now");
    let first = store.freeze().export(None, 300).expect("the view was made just now");
    vec![whole.bytes, first.bytes]
}

fn feed_chunk(bytes: &[u8]) -> Result<Verdict, Finding> {
    let mut store = a_store();
    if store.import(bytes, true).is_err() {
        return Ok(Verdict::Refused);
    }
    // What was taken can be read: all of it, from both ends.
    let (forwards, backwards) = (store.prefix(b"").count(), store.prefix(b"").rev().count());
    same(Some((forwards, backwards)), &(store.len(), store.len()), bytes)
}

/// A frame that the log writes.
fn a_frame() -> Vec<u8> {
    let identity = synod_wal::Identity {
        cell: synod_wal::CellId(7),
        replica: synod_wal::ReplicaId(1),
        incarnation: synod_wal::Incarnation(1),
        start: synod_wal::StartId(5),
    };
    let mut log = synod_wal::create(synod_wal::Settings::default(), identity);
    let first = log.upkeep().expect("an empty log wants a segment");
    log.upkeep_done(first);
    codec::append_record(&mut log, &Record::HardState(a_hard_state()));
    let flush = log.seal().expect("a record waits");
    flush.buffer[..flush.length].to_vec()
}

fn wal_headers() -> Vec<Vec<u8>> {
    let frame = a_frame();
    vec![frame[..FRAME_HEADER_BYTES].to_vec()]
}

/// Of the prelude, then of the header.
#[expect(clippy::ptr_arg, reason = "as the others have it")]
fn wal_checksums(random: &mut Rng, bytes: &mut Vec<u8>) {
    for end in [12, 188] {
        if bytes.len() >= end + 4 && random.u8(..8) > 0 {
            let checksum = crc32c::crc32c(&bytes[..end]);
            bytes[end..end + 4].copy_from_slice(&checksum.to_le_bytes());
        }
    }
}

fn feed_wal_header(bytes: &[u8]) -> Result<Verdict, Finding> {
    Ok(if FrameHeader::decode(bytes).is_ok() { Verdict::Taken } else { Verdict::Refused })
}

const COPY: Name = Name { cell: 7, slot: Slot(77), revision: synod_store::Revision(9) };

fn manifests() -> Vec<Vec<u8>> {
    let configurations = a_handle().configurations;
    let origin = Origin {
        replica: 1,
        incarnation: 1,
        ballot: BALLOT,
        configurations: &configurations,
        taken_ms: 5,
        made_by: MadeBy::Operator,
    };
    let chunks = [&b"one"[..], b"two"].map(ChunkFields::of);
    vec![Manifest::new(COPY, &origin, (5, 40), chunks.into()).encode()]
}

fn feed_manifest(bytes: &[u8]) -> Result<Verdict, Finding> {
    let Ok(manifest) = Manifest::decode(bytes, COPY) else { return Ok(Verdict::Refused) };
    same(Manifest::decode(&manifest.encode(), COPY).ok(), &manifest, bytes)
}
