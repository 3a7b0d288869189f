//! The one place where protocol messages and records become bytes, and back.
//!
//! `paxos` knows no bytes, `net` and `wal` know nothing else; this module stands between. All numbers are
//! little-endian. What comes in has passed a checksum already (invariant 7), so anything malformed here was written by
//! another version or a bug: it is refused by name, never guessed at.

mod digests;
mod room;
mod snapshots;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use synod_api::limits::BATCH_BYTES_MAX;
use synod_paxos::{
    AcceptedSlot, Ballot, Batch, Configuration, Configurations, CrashVector, HardState, Incarnation, LogPosition,
    LostSlots, MalformedBatch, Message, Record, Recovered, ReplicaId, Slot, Voter,
};

pub use digests::{DIGESTS_MAX, DigestMessage};
pub use room::{RoomMessage, encode as encode_room_message};
pub use snapshots::{CHUNK_BYTES, SnapshotMessage, decode_handle, encode as encode_snapshot_message, encode_handle};

/// Frame kinds between replicas. The greeting's own kinds are below 10 (`synod_net`).
mod kind {
    pub(super) const PROPOSE: u8 = 10;
    pub(super) const PROMISE: u8 = 11;
    pub(super) const ACCEPT: u8 = 12;
    pub(super) const ACKNOWLEDGE: u8 = 13;
    pub(super) const REJECT: u8 = 14;
    pub(super) const COMMIT: u8 = 15;
    pub(super) const FETCH: u8 = 16;
    pub(super) const ENTRIES: u8 = 17;
    pub(super) const PROBE: u8 = 18;
    pub(super) const PROBE_ANSWER: u8 = 19;
    pub(super) const RELEASE: u8 = 20;
    pub(super) const TAKE_OVER: u8 = 21;
    pub(super) const POSITION: u8 = 22;
    pub(super) const REJOIN: u8 = 23;
    pub(super) const REJOIN_ANSWER: u8 = 24;
    pub(super) const ASK_INDEX: u8 = 25;
    pub(super) const TELL_INDEX: u8 = 26;
}

/// Bytes that are no message or record of ours.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// Shorter or longer than its kind says.
    #[error("{what} of {length} bytes does not have the length its kind asks for")]
    Length {
        /// What was being read.
        what: &'static str,
        /// How long it is.
        length: usize,
    },
    /// A kind that this version does not know.
    #[error("a peer message of unknown kind {0}")]
    Kind(u8),
    /// A batch that is no sequence of commands.
    #[error("{what}: {source}")]
    Batch {
        /// What was being read.
        what: &'static str,
        /// What is wrong with it.
        source: MalformedBatch,
    },
    /// A number that no replica of ours ever sends: taken at its word it could end this one, for good.
    #[error("{what}: {field} is out of its bounds")]
    Bounds {
        /// What was being read.
        what: &'static str,
        /// Which number.
        field: &'static str,
    },
    /// A configuration that cannot be.
    #[error("hard state: {0}")]
    Configuration(#[from] synod_paxos::ConfigurationError),
}

/// A message as frame kind, small copied head and shared body: the body of an accept is the batch itself, which goes
/// to every peer from the same memory.
pub struct EncodedMessage {
    /// The frame's kind.
    pub kind: u8,
    /// The fields.
    pub head: BytesMut,
    /// What follows them in the frame; may be empty.
    pub body: Bytes,
}

/// Rounds and slots above this are refused: what is counted on from them must not run over.
const NUMBER_MAX: u64 = 1 << 62;
const BALLOT_BYTES: usize = 18;
const SLOT_BYTES: usize = 8;

/// A range of lost slots in a promise.
const LOST_BYTES: usize = 2 * SLOT_BYTES + BALLOT_BYTES;

/// How many bytes a peer frame may carry: a promise that reports twice the horizon of full batches, and what it has lost.
pub const fn peer_payload_bytes_max(horizon: u64, batch_bytes_max: usize) -> usize {
    let per_slot = SLOT_BYTES + BALLOT_BYTES + 4 + batch_bytes_max;
    64 + VOTER_BYTES_MAX + Recovered::LOST_MAX * LOST_BYTES + 2 * horizon as usize * per_slot
}

/// An incarnation, a count, and of every id there is an id and an incarnation.
const VOTER_BYTES_MAX: usize = 10 + ReplicaId::MAX.0 as usize * 10;

fn put_ballot(out: &mut impl BufMut, ballot: Ballot) {
    out.put_u64_le(ballot.round);
    out.put_u16_le(ballot.replica.0);
    out.put_u64_le(ballot.incarnation.0);
}

fn put_vector(out: &mut impl BufMut, vector: &CrashVector) {
    out.put_u16_le(u16::try_from(vector.len()).expect("one for each id at most"));
    for (replica, incarnation) in vector.iter() {
        out.put_u16_le(replica.0);
        out.put_u64_le(incarnation.0);
    }
}

/// Where nothing was ever lost: ten bytes.
fn put_voter(out: &mut impl BufMut, voter: &Voter) {
    out.put_u64_le(voter.incarnation.0);
    put_vector(out, &voter.vector);
}

fn put_position(out: &mut impl BufMut, position: LogPosition) {
    out.put_u64_le(position.incarnation.0);
    out.put_u64_le(position.frame);
}

fn put_accepted(out: &mut impl BufMut, accepted: &[AcceptedSlot]) {
    for AcceptedSlot { slot, ballot, batch } in accepted {
        out.put_u64_le(slot.0);
        put_ballot(out, *ballot);
        put_batch(out, batch);
    }
}

fn put_batch(out: &mut impl BufMut, batch: &Batch) {
    out.put_u32_le(u32::try_from(batch.len()).expect("a batch is bounded far below 4 GiB"));
    out.put_slice(batch.as_bytes());
}

/// A message in the bytes that peers exchange.
pub fn encode_message(message: &Message) -> EncodedMessage {
    let mut head = BytesMut::with_capacity(48);
    let mut body = Bytes::new();
    let kind = match message {
        Message::Probe { chosen } => {
            head.put_u64_le(chosen.0);
            kind::PROBE
        }
        Message::ProbeAnswer { would, round, chosen } => {
            head.put_u8(u8::from(*would));
            head.put_u64_le(*round);
            head.put_u64_le(chosen.0);
            kind::PROBE_ANSWER
        }
        Message::Propose { ballot, released } => {
            put_ballot(&mut head, *ballot);
            put_ballot(&mut head, *released);
            kind::PROPOSE
        }
        Message::Promise { ballot, cut, chosen, accepted, lost, voter } => {
            put_ballot(&mut head, *ballot);
            head.put_u64_le(cut.0);
            head.put_u64_le(chosen.0);
            put_voter(&mut head, voter);
            head.put_u8(u8::try_from(lost.len()).expect("recovery makes no more ranges than Recovered::LOST_MAX"));
            for LostSlots { first, last, ballot } in lost {
                head.put_u64_le(first.0);
                head.put_u64_le(last.0);
                put_ballot(&mut head, *ballot);
            }
            put_accepted(&mut head, accepted);
            kind::PROMISE
        }
        Message::Accept { ballot, slot, batch, chosen } => {
            put_ballot(&mut head, *ballot);
            head.put_u64_le(slot.0);
            head.put_u64_le(chosen.0);
            body = batch.as_bytes().clone();
            kind::ACCEPT
        }
        Message::Acknowledge { ballot, slot, voter } => {
            put_ballot(&mut head, *ballot);
            head.put_u64_le(slot.0);
            put_voter(&mut head, voter);
            kind::ACKNOWLEDGE
        }
        Message::Reject { promised } => {
            put_ballot(&mut head, *promised);
            kind::REJECT
        }
        Message::Commit { ballot, chosen, tolerance } => {
            put_ballot(&mut head, *ballot);
            head.put_u64_le(chosen.0);
            head.put_i8(*tolerance);
            kind::COMMIT
        }
        Message::Release { ballot } => {
            put_ballot(&mut head, *ballot);
            kind::RELEASE
        }
        Message::TakeOver { ballot } => {
            put_ballot(&mut head, *ballot);
            kind::TAKE_OVER
        }
        Message::Position { durable, known, asks } => {
            put_position(&mut head, *durable);
            put_position(&mut head, *known);
            head.put_u8(u8::from(*asks));
            kind::POSITION
        }
        Message::Rejoin { incarnation } => {
            head.put_u64_le(incarnation.0);
            kind::REJOIN
        }
        Message::RejoinAnswer { asked, known, is_lost, promised, chosen, accepted, voter } => {
            head.put_u64_le(asked.0);
            head.put_u64_le(known.0);
            head.put_u8(u8::from(*is_lost));
            put_ballot(&mut head, *promised);
            head.put_u64_le(chosen.0);
            put_voter(&mut head, voter);
            put_accepted(&mut head, accepted);
            kind::REJOIN_ANSWER
        }
        Message::AskIndex { name } => {
            head.put_u64_le(*name);
            kind::ASK_INDEX
        }
        Message::TellIndex { ballot, name, slot } => {
            put_ballot(&mut head, *ballot);
            head.put_u64_le(*name);
            head.put_u64_le(slot.0);
            kind::TELL_INDEX
        }
        Message::Fetch { from } => {
            head.put_u64_le(from.0);
            kind::FETCH
        }
        Message::Entries { first, batches, chosen } => {
            head.put_u64_le(first.0);
            head.put_u64_le(chosen.0);
            for batch in batches {
                put_batch(&mut head, batch);
            }
            kind::ENTRIES
        }
    };
    EncodedMessage { kind, head, body }
}

/// Reads fields off the front of bytes; whatever is missing is an error that names what was being read.
struct Reader {
    what: &'static str,
    length: usize,
    bytes: Bytes,
}

impl Reader {
    fn new(what: &'static str, bytes: Bytes) -> Self {
        Self { what, length: bytes.len(), bytes }
    }

    fn error(&self) -> CodecError {
        CodecError::Length { what: self.what, length: self.length }
    }

    fn need(&self, bytes: usize) -> Result<(), CodecError> {
        if self.bytes.len() < bytes { Err(self.error()) } else { Ok(()) }
    }

    fn u8(&mut self) -> Result<u8, CodecError> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    fn u16(&mut self) -> Result<u16, CodecError> {
        self.need(2)?;
        Ok(self.bytes.get_u16_le())
    }

    fn u64(&mut self) -> Result<u64, CodecError> {
        self.need(8)?;
        Ok(self.bytes.get_u64_le())
    }

    fn within(&self, field: &'static str, holds: bool) -> Result<(), CodecError> {
        if holds { Ok(()) } else { Err(CodecError::Bounds { what: self.what, field }) }
    }

    fn slot(&mut self) -> Result<Slot, CodecError> {
        let slot = self.u64()?;
        self.within("a slot", slot <= NUMBER_MAX)?;
        Ok(Slot(slot))
    }

    fn round(&mut self) -> Result<u64, CodecError> {
        let round = self.u64()?;
        self.within("a ballot's round", round <= NUMBER_MAX)?;
        Ok(round)
    }

    fn flag(&mut self, field: &'static str) -> Result<bool, CodecError> {
        let flag = self.u8()?;
        self.within(field, flag <= 1)?;
        Ok(flag == 1)
    }

    fn ballot(&mut self) -> Result<Ballot, CodecError> {
        let round = self.round()?;
        let replica = ReplicaId(self.u16()?);
        let incarnation = self.incarnation()?;
        Ok(Ballot { round, replica, incarnation })
    }

    fn incarnation(&mut self) -> Result<Incarnation, CodecError> {
        let incarnation = self.u64()?;
        self.within("an incarnation", incarnation < 1 << Incarnation::BITS)?;
        Ok(Incarnation(incarnation))
    }

    fn vector(&mut self) -> Result<CrashVector, CodecError> {
        let lives = self.u16()?;
        self.within("a crash vector's length", lives <= ReplicaId::MAX.0)?;
        let mut vector = CrashVector::default();
        for _ in 0..lives {
            let replica = ReplicaId(self.u16()?);
            self.within("a replica's id", replica <= ReplicaId::MAX)?;
            let incarnation = self.incarnation()?;
            vector.note(replica, incarnation);
        }
        Ok(vector)
    }

    fn voter(&mut self) -> Result<Voter, CodecError> {
        Ok(Voter { incarnation: self.incarnation()?, vector: self.vector()? })
    }

    fn position(&mut self) -> Result<LogPosition, CodecError> {
        Ok(LogPosition { incarnation: self.incarnation()?, frame: self.u64()? })
    }

    /// All the rest.
    fn accepted(mut self) -> Result<Vec<AcceptedSlot>, CodecError> {
        let mut accepted = Vec::new();
        while !self.is_empty() {
            let (slot, ballot) = (self.slot()?, self.ballot()?);
            accepted.push(AcceptedSlot { slot, ballot, batch: self.batch()? });
        }
        Ok(accepted)
    }

    fn batch(&mut self) -> Result<Batch, CodecError> {
        self.need(4)?;
        let length = self.bytes.get_u32_le() as usize;
        self.need(length)?;
        let bytes = self.bytes.split_to(length);
        self.checked(bytes)
    }

    fn configuration(&mut self) -> Result<Configuration, CodecError> {
        self.need(4)?;
        let length = self.bytes.get_u32_le() as usize;
        self.need(length)?;
        Ok(Configuration::decode(&self.bytes.split_to(length))?)
    }

    fn configurations(&mut self) -> Result<Configurations, CodecError> {
        let since = self.slot()?;
        let current = self.configuration()?;
        let from = self.slot()?;
        let pending = if from == Slot::NONE { None } else { Some((from, self.configuration()?)) };
        Ok(Configurations { current, since, pending })
    }

    fn take(&mut self, length: usize) -> Result<Bytes, CodecError> {
        self.need(length)?;
        Ok(self.bytes.split_to(length))
    }

    fn rest(mut self) -> Bytes {
        self.bytes.split_off(0)
    }

    fn rest_as_batch(mut self) -> Result<Batch, CodecError> {
        let bytes = self.bytes.split_off(0);
        self.checked(bytes)
    }

    fn checked(&self, bytes: Bytes) -> Result<Batch, CodecError> {
        self.within("a batch's length", bytes.len() <= BATCH_BYTES_MAX)?;
        Batch::from_bytes(bytes).map_err(|source| CodecError::Batch { what: self.what, source })
    }

    fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn end(self) -> Result<(), CodecError> {
        if self.is_empty() { Ok(()) } else { Err(self.error()) }
    }
}

/// What replicas send each other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerMessage {
    /// The protocol's own.
    Protocol(Message),
    /// Catch-up by snapshot, and whether databases are equal.
    Snapshot(SnapshotMessage),
    /// Who has room for writes.
    Room(RoomMessage),
}

/// Whatever came in a peer's frame.
pub fn decode_peer_message(kind: u8, payload: Bytes) -> Result<PeerMessage, CodecError> {
    if let Some(message) = snapshots::decode(kind, &payload) {
        return message.map(PeerMessage::Snapshot);
    }
    match room::decode(kind, &payload) {
        Some(message) => message.map(PeerMessage::Room),
        None => decode_message(kind, payload).map(PeerMessage::Protocol),
    }
}

/// A message of the protocol's from a peer's frame.
pub fn decode_message(kind: u8, payload: Bytes) -> Result<Message, CodecError> {
    match kind {
        kind::PROPOSE => {
            let mut reader = Reader::new("a propose", payload);
            let message = Message::Propose { ballot: reader.ballot()?, released: reader.ballot()? };
            reader.end().map(|()| message)
        }
        kind::PROBE => {
            let mut reader = Reader::new("a probe", payload);
            let message = Message::Probe { chosen: reader.slot()? };
            reader.end().map(|()| message)
        }
        kind::PROBE_ANSWER => {
            let mut reader = Reader::new("a probe answer", payload);
            let would = reader.flag("its answer")?;
            let message = Message::ProbeAnswer { would, round: reader.round()?, chosen: reader.slot()? };
            reader.end().map(|()| message)
        }
        kind::RELEASE => {
            let mut reader = Reader::new("a release", payload);
            let message = Message::Release { ballot: reader.ballot()? };
            reader.end().map(|()| message)
        }
        kind::TAKE_OVER => {
            let mut reader = Reader::new("a take over", payload);
            let message = Message::TakeOver { ballot: reader.ballot()? };
            reader.end().map(|()| message)
        }
        kind::PROMISE => {
            let mut reader = Reader::new("a promise", payload);
            let (ballot, cut, chosen) = (reader.ballot()?, reader.slot()?, reader.slot()?);
            reader.within("the cut", cut <= chosen)?;
            let voter = reader.voter()?;
            let ranges = usize::from(reader.u8()?);
            reader.within("the number of lost ranges", ranges <= Recovered::LOST_MAX)?;
            let mut lost = Vec::with_capacity(ranges);
            for _ in 0..ranges {
                let one = LostSlots { first: reader.slot()?, last: reader.slot()?, ballot: reader.ballot()? };
                reader.within("a lost range", one.first <= one.last)?;
                lost.push(one);
            }
            Ok(Message::Promise { ballot, cut, chosen, accepted: reader.accepted()?, lost, voter })
        }
        kind::ACCEPT => {
            let mut reader = Reader::new("an accept", payload);
            let (ballot, slot, chosen) = (reader.ballot()?, reader.slot()?, reader.slot()?);
            Ok(Message::Accept { ballot, slot, chosen, batch: reader.rest_as_batch()? })
        }
        kind::ACKNOWLEDGE => {
            let mut reader = Reader::new("an acknowledge", payload);
            let (ballot, slot) = (reader.ballot()?, reader.slot()?);
            let message = Message::Acknowledge { ballot, slot, voter: reader.voter()? };
            reader.end().map(|()| message)
        }
        kind::POSITION => {
            let mut reader = Reader::new("a position", payload);
            let (durable, known) = (reader.position()?, reader.position()?);
            let message = Message::Position { durable, known, asks: reader.flag("its question")? };
            reader.end().map(|()| message)
        }
        kind::REJOIN => {
            let mut reader = Reader::new("a rejoin", payload);
            let message = Message::Rejoin { incarnation: reader.incarnation()? };
            reader.end().map(|()| message)
        }
        kind::REJOIN_ANSWER => {
            let mut reader = Reader::new("an answer to a rejoin", payload);
            let (asked, known, is_lost) = (reader.incarnation()?, reader.incarnation()?, reader.flag("its loss")?);
            let (promised, chosen, voter) = (reader.ballot()?, reader.slot()?, reader.voter()?);
            let accepted = reader.accepted()?;
            Ok(Message::RejoinAnswer { asked, known, is_lost, promised, chosen, accepted, voter })
        }
        kind::REJECT => {
            let mut reader = Reader::new("a reject", payload);
            let message = Message::Reject { promised: reader.ballot()? };
            reader.end().map(|()| message)
        }
        kind::COMMIT => {
            let mut reader = Reader::new("a commit", payload);
            let (ballot, chosen) = (reader.ballot()?, reader.slot()?);
            let message = Message::Commit { ballot, chosen, tolerance: reader.u8()?.cast_signed() };
            reader.end().map(|()| message)
        }
        kind::ASK_INDEX => {
            let mut reader = Reader::new("a question for the read index", payload);
            let message = Message::AskIndex { name: reader.u64()? };
            reader.end().map(|()| message)
        }
        kind::TELL_INDEX => {
            let mut reader = Reader::new("a read index", payload);
            let (ballot, name) = (reader.ballot()?, reader.u64()?);
            let message = Message::TellIndex { ballot, name, slot: reader.slot()? };
            reader.end().map(|()| message)
        }
        kind::FETCH => {
            let mut reader = Reader::new("a fetch", payload);
            let message = Message::Fetch { from: reader.slot()? };
            reader.end().map(|()| message)
        }
        kind::ENTRIES => {
            let mut reader = Reader::new("entries", payload);
            let (first, chosen) = (reader.slot()?, reader.slot()?);
            let mut batches = Vec::new();
            while !reader.is_empty() {
                batches.push(reader.batch()?);
            }
            Ok(Message::Entries { first, batches, chosen })
        }
        unknown => Err(CodecError::Kind(unknown)),
    }
}

/// Appends a record to the log: the slot and the ballot go into the log's own record header, the rest is its payload.
///
/// | kind | slot, ballot | payload |
/// |---|---|---|
/// | hard state | none, promised | promised, incarnation u64 (0: lost), lives u16 and of each an id u16 and an incarnation u64, cut u64, since u64, configuration, pending from u64 (0: none), pending |
/// | accepted | slot, ballot | chosen u64, batch |
/// | chosen | slot, none | batch |
pub fn append_record(log: &mut synod_wal::Log, record: &Record) -> synod_wal::RecordNumber {
    match record {
        Record::HardState(state) => {
            let incarnation = synod_wal::Incarnation(state.incarnation.0);
            log.append_hard_state(pack_ballot(state.promised), incarnation, &encode_hard_state(state))
        }
        Record::Accepted { slot, ballot, chosen, batch } => log.append(
            synod_wal::RecordKind::Accepted,
            synod_wal::Slot(slot.0),
            pack_ballot(*ballot),
            &[&chosen.0.to_le_bytes(), batch.as_bytes()],
        ),
        Record::Chosen { slot, batch } => log.append(
            synod_wal::RecordKind::Chosen,
            synod_wal::Slot(slot.0),
            pack_ballot(Ballot::NONE),
            &[batch.as_bytes()],
        ),
    }
}

/// Right after a start: what openings are to repeat instead of the last hard state that was read, which later ones may have
/// followed that are lost.
pub fn repeat_hard_state(log: &mut synod_wal::Log, state: &HardState) {
    log.repeat_hard_state(pack_ballot(state.promised), &encode_hard_state(state));
}

/// A record as the log gave it back.
pub fn decode_record(
    kind: synod_wal::RecordKind,
    slot: synod_wal::Slot,
    ballot: synod_wal::Ballot,
    payload: &[u8],
) -> Result<Record, CodecError> {
    let slot = Slot(slot.0);
    match kind {
        synod_wal::RecordKind::HardState => decode_hard_state(payload).map(Record::HardState),
        synod_wal::RecordKind::Accepted => {
            let mut reader = Reader::new("an accepted record", Bytes::copy_from_slice(payload));
            let chosen = reader.slot()?;
            Ok(Record::Accepted { slot, ballot: unpack_ballot(ballot), chosen, batch: reader.rest_as_batch()? })
        }
        synod_wal::RecordKind::Chosen => {
            let reader = Reader::new("a chosen record", Bytes::copy_from_slice(payload));
            Ok(Record::Chosen { slot, batch: reader.rest_as_batch()? })
        }
    }
}

/// What an accepted record's payload has before its batch: the chosen slot.
pub(crate) const ACCEPTED_HEAD_BYTES: usize = 8;

fn encode_hard_state(state: &HardState) -> BytesMut {
    let mut out = BytesMut::with_capacity(64);
    put_ballot(&mut out, state.promised);
    out.put_u64_le(state.incarnation.0);
    put_vector(&mut out, &state.vector);
    out.put_u64_le(state.cut.0);
    put_configurations(&mut out, &state.configurations);
    out
}

fn put_configurations(out: &mut BytesMut, configurations: &Configurations) {
    let Configurations { current, since, pending } = configurations;
    out.put_u64_le(since.0);
    put_configuration(out, current);
    out.put_u64_le(pending.as_ref().map_or(0, |(from, _)| from.0));
    if let Some((_, pending)) = pending {
        put_configuration(out, pending);
    }
}

/// A configuration in its own bytes, after their length.
fn put_configuration(out: &mut BytesMut, configuration: &Configuration) {
    let mut bytes = Vec::new();
    configuration.encode(&mut bytes);
    out.put_u32_le(u32::try_from(bytes.len()).expect("nine addresses of a kilobyte"));
    out.put_slice(&bytes);
}

fn decode_hard_state(payload: &[u8]) -> Result<HardState, CodecError> {
    let mut reader = Reader::new("hard state", Bytes::copy_from_slice(payload));
    let promised = reader.ballot()?;
    let incarnation = reader.incarnation()?;
    let vector = reader.vector()?;
    let cut = reader.slot()?;
    let configurations = reader.configurations()?;
    reader.end()?;
    Ok(HardState { promised, incarnation, vector, cut, configurations })
}

const INCARNATION_BITS: u32 = Incarnation::BITS;

/// A ballot as the log orders it: round, replica, incarnation, from the highest bits down.
fn pack_ballot(ballot: Ballot) -> synod_wal::Ballot {
    assert!(ballot.incarnation.0 < 1 << INCARNATION_BITS, "fewer than 2^48 lives");
    let low = u64::from(ballot.replica.0) << INCARNATION_BITS | ballot.incarnation.0;
    synod_wal::Ballot(u128::from(ballot.round) << 64 | u128::from(low))
}

/// The ballot that the log keeps as one number.
pub fn unpack_ballot(packed: synod_wal::Ballot) -> Ballot {
    let low = packed.0 as u64;
    Ballot {
        round: (packed.0 >> 64) as u64,
        replica: ReplicaId((low >> INCARNATION_BITS) as u16),
        incarnation: Incarnation(low & ((1 << INCARNATION_BITS) - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ballot(round: u64) -> Ballot {
        Ballot { round, replica: ReplicaId(3), incarnation: Incarnation(7) }
    }

    fn batch(commands: &[&[u8]]) -> Batch {
        let mut builder = synod_paxos::BatchBuilder::default();
        for command in commands {
            builder.push(command);
        }
        builder.take()
    }

    fn voter() -> Voter {
        let second = Incarnation::FIRST.after(9);
        Voter {
            incarnation: second,
            vector: [(ReplicaId(2), second), (ReplicaId(63), second.after(1))].into_iter().collect(),
        }
    }

    fn position(frame: u64) -> LogPosition {
        LogPosition { incarnation: Incarnation(7), frame }
    }

    fn messages() -> Vec<Message> {
        let accepted = |slot| AcceptedSlot { slot: Slot(slot), ballot: ballot(slot), batch: batch(&[b"v"]) };
        vec![
            Message::Probe { chosen: Slot(3) },
            Message::ProbeAnswer { would: true, round: 4, chosen: Slot(3) },
            Message::Propose { ballot: ballot(9), released: ballot(8) },
            Message::Promise {
                ballot: ballot(9),
                cut: Slot(4),
                chosen: Slot(4),
                accepted: vec![],
                lost: vec![],
                voter: voter(),
            },
            Message::Promise {
                ballot: ballot(9),
                cut: Slot(0),
                chosen: Slot(4),
                accepted: vec![accepted(5), accepted(7)],
                lost: vec![LostSlots { first: Slot(6), last: Slot(8), ballot: ballot(8) }],
                voter: Voter::default(),
            },
            Message::Accept { ballot: ballot(1), slot: Slot(8), batch: batch(&[b"x", b"", b"yz"]), chosen: Slot(7) },
            Message::Accept { ballot: ballot(1), slot: Slot(8), batch: Batch::NO_OP, chosen: Slot(7) },
            Message::Acknowledge { ballot: ballot(1), slot: Slot(8), voter: Voter::default() },
            Message::Acknowledge { ballot: ballot(1), slot: Slot(8), voter: voter() },
            Message::Position { durable: position(9), known: position(8), asks: true },
            Message::Rejoin { incarnation: Incarnation(7) },
            Message::RejoinAnswer {
                asked: Incarnation(7),
                known: Incarnation(8),
                is_lost: false,
                promised: ballot(3),
                chosen: Slot(4),
                accepted: vec![accepted(5)],
                voter: voter(),
            },
            Message::Reject { promised: ballot(NUMBER_MAX) },
            Message::Commit { ballot: ballot(1), chosen: Slot(8), tolerance: -1 },
            Message::Release { ballot: ballot(1) },
            Message::TakeOver { ballot: ballot(1) },
            Message::AskIndex { name: u64::MAX },
            Message::TellIndex { ballot: ballot(1), name: u64::MAX, slot: Slot(8) },
            Message::Fetch { from: Slot(1) },
            Message::Entries { first: Slot(1), batches: vec![batch(&[b"a"]), Batch::NO_OP], chosen: Slot(20) },
        ]
    }

    fn bytes_of(message: &Message) -> (u8, Bytes) {
        let EncodedMessage { kind, mut head, body } = encode_message(message);
        head.extend_from_slice(&body);
        (kind, head.freeze())
    }

    #[test]
    fn every_message_comes_back() {
        for message in messages() {
            let (kind, bytes) = bytes_of(&message);
            assert_eq!(decode_message(kind, bytes), Ok(message));
        }
    }

    #[test]
    fn messages_cut_short_are_errors_or_shorter_messages_never_panics() {
        for message in messages() {
            let (kind, bytes) = bytes_of(&message);
            for cut in 0..bytes.len() {
                assert_ne!(decode_message(kind, bytes.slice(..cut)).ok(), Some(message.clone()));
            }
        }
        assert_eq!(decode_message(99, Bytes::new()), Err(CodecError::Kind(99)));
    }

    /// Each of these, taken at its word, would have ended the process, some of them at every start from then on.
    #[test]
    fn numbers_that_nobody_sends_are_refused() {
        let far = Ballot { round: u64::MAX, ..ballot(1) };
        let strange = Ballot { incarnation: Incarnation(1 << 48), ..ballot(1) };
        let mut builder = synod_paxos::BatchBuilder::default();
        builder.push(&vec![0; BATCH_BYTES_MAX]);
        let large = builder.take();
        let none = Slot(0);
        for message in [
            Message::Propose { ballot: far, released: Ballot::NONE },
            Message::Propose { ballot: strange, released: Ballot::NONE },
            Message::Reject { promised: far },
            Message::Commit { ballot: ballot(1), chosen: Slot(u64::MAX), tolerance: 0 },
            Message::TellIndex { ballot: ballot(1), name: 0, slot: Slot(u64::MAX) },
            Message::Promise {
                ballot: ballot(1),
                cut: Slot(3),
                chosen: none,
                accepted: vec![],
                lost: vec![],
                voter: voter(),
            },
            Message::Promise {
                ballot: ballot(1),
                cut: none,
                chosen: none,
                accepted: vec![],
                lost: vec![LostSlots { first: Slot(9), last: Slot(8), ballot: ballot(1) }],
                voter: voter(),
            },
            Message::Accept { ballot: ballot(1), slot: Slot(1), batch: large.clone(), chosen: none },
            Message::Entries { first: Slot(1), batches: vec![large], chosen: Slot(1) },
        ] {
            let (kind, bytes) = bytes_of(&message);
            assert!(matches!(decode_message(kind, bytes), Err(CodecError::Bounds { .. })), "kind {kind}");
        }
    }

    #[test]
    fn a_promise_of_a_replica_that_has_lost_something_has_these_bytes() {
        let lost = vec![LostSlots { first: Slot(6), last: Slot(8), ballot: ballot(2) }];
        let message = Message::Promise {
            ballot: ballot(1),
            cut: Slot(4),
            chosen: Slot(5),
            accepted: vec![],
            lost,
            voter: voter(),
        };
        let (kind, bytes) = bytes_of(&message);
        assert_eq!(kind, 11);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "0100000000000000\
             0300\
             0700000000000000\
             0400000000000000\
             0500000000000000\
             09000001000000000200\
             02000900000100000000\
             3f000100000200000000\
             01\
             0600000000000000\
             0800000000000000\
             0200000000000000\
             0300\
             0700000000000000"
        );
    }

    /// The bytes between replicas of different builds: a change here is a change of the wire's version.
    #[test]
    fn an_accept_has_these_bytes() {
        let message = Message::Accept { ballot: ballot(1), slot: Slot(8), batch: batch(&[b"hi"]), chosen: Slot(7) };
        let (kind, bytes) = bytes_of(&message);
        assert_eq!(kind, 12);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            "0100000000000000\
             0300\
             0700000000000000\
             0800000000000000\
             0700000000000000\
             02000000\
             6869"
        );
    }

    #[test]
    fn hard_state_comes_back() {
        let first = Configurations::first(Configuration::of(&[1, 2, 3]));
        let changing = Configurations { pending: Some((Slot(30), Configuration::of(&[1, 2]))), ..first.clone() };
        for configurations in [first, changing] {
            let (promised, incarnation, cut) = (ballot(5), Incarnation(2), Slot(0));
            let state = HardState { promised, incarnation, vector: voter().vector, cut, configurations };
            assert_eq!(decode_hard_state(&encode_hard_state(&state)), Ok(state));
        }
    }

    #[test]
    fn packed_ballots_keep_their_order() {
        let low = Ballot { round: 1, replica: ReplicaId(9), incarnation: Incarnation(9) };
        let high = Ballot { round: 2, replica: ReplicaId(1), incarnation: Incarnation(1) };
        assert!(pack_ballot(low).0 < pack_ballot(high).0);
        for ballot in [low, high, Ballot::NONE] {
            assert_eq!(unpack_ballot(pack_ballot(ballot)), ballot);
        }
    }
}
