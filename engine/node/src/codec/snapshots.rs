//! What replicas say to each other about snapshots, in bytes.

use bytes::{BufMut, Bytes, BytesMut};
use synod_paxos::{Configurations, Slot, SnapshotHandle};
use synod_store::Digest;

use super::digests::{self, DigestMessage};
use super::{CodecError, EncodedMessage, Reader, put_ballot, put_configurations};

/// Frame kinds, above those of the protocol's messages.
mod kind {
    pub(super) const OFFER: u8 = 32;
    pub(super) const WANT: u8 = 33;
    pub(super) const CHUNK: u8 = 34;
    pub(super) const GONE: u8 = 35;
}

/// A chunk carries about this many bytes of rows, and at least one row: whoever exports one, or imports it, keeps others from a
/// processor for a fraction of a millisecond.
pub const CHUNK_BYTES: usize = 32 << 10;

/// Catch-up by snapshot: a replica that lacks what is gone from everybody's log asks for one piece after the other.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotMessage {
    /// What you asked for is gone from the log; there is a snapshot instead.
    Offer {
        /// Of which state.
        handle: SnapshotHandle,
        /// The digest of its rows: whoever imports other ones refuses them (rule P14).
        digest: Digest,
    },
    /// Send me a piece of it.
    Want {
        /// Of which snapshot.
        slot: Slot,
        /// Where the piece before ended; `None`: the first.
        from: Option<Bytes>,
    },
    /// A piece.
    Chunk {
        /// Of which snapshot.
        slot: Slot,
        /// As it was asked for.
        from: Option<Bytes>,
        /// Where it ends; `None`: it is the last one.
        next: Option<Bytes>,
        /// Its rows.
        rows: Bytes,
    },
    /// There is no such snapshot here, or not any more.
    Gone {
        /// Which.
        slot: Slot,
    },
    /// Whether databases are equal at all.
    Digest(DigestMessage),
}

/// A handle in the bytes that a snapshot keeps it in: slot, ballot, configurations.
pub fn encode_handle(handle: &SnapshotHandle) -> BytesMut {
    let mut out = BytesMut::with_capacity(128);
    put_handle(&mut out, handle);
    out
}

/// A handle as a snapshot kept it.
pub fn decode_handle(bytes: &[u8]) -> Result<SnapshotHandle, CodecError> {
    let mut reader = Reader::new("a snapshot's handle", Bytes::copy_from_slice(bytes));
    let handle = handle(&mut reader)?;
    reader.end().map(|()| handle)
}

fn put_handle(out: &mut BytesMut, handle: &SnapshotHandle) {
    out.put_u64_le(handle.slot.0);
    put_ballot(out, handle.ballot);
    put_configurations(out, &handle.configurations);
}

fn handle(reader: &mut Reader) -> Result<SnapshotHandle, CodecError> {
    let (slot, ballot) = (reader.slot()?, reader.ballot()?);
    let configurations: Configurations = reader.configurations()?;
    reader.within("what governs then", configurations.since <= slot.next())?;
    Ok(SnapshotHandle { slot, ballot, configurations })
}

/// A message in the bytes that peers exchange.
pub fn encode(message: &SnapshotMessage) -> EncodedMessage {
    let mut head = BytesMut::with_capacity(64);
    let mut body = Bytes::new();
    let kind = match message {
        SnapshotMessage::Digest(message) => return digests::encode(message),
        SnapshotMessage::Offer { handle, digest } => {
            head.put_u64_le(digest.0);
            put_handle(&mut head, handle);
            kind::OFFER
        }
        SnapshotMessage::Want { slot, from } => {
            head.put_u64_le(slot.0);
            put_place(&mut head, from.as_ref());
            kind::WANT
        }
        SnapshotMessage::Chunk { slot, from, next, rows } => {
            head.put_u64_le(slot.0);
            put_place(&mut head, from.as_ref());
            put_place(&mut head, next.as_ref());
            body = rows.clone();
            kind::CHUNK
        }
        SnapshotMessage::Gone { slot } => {
            head.put_u64_le(slot.0);
            kind::GONE
        }
    };
    EncodedMessage { kind, head, body }
}

fn put_place(out: &mut BytesMut, place: Option<&Bytes>) {
    out.put_u8(u8::from(place.is_some()));
    if let Some(place) = place {
        out.put_u16_le(u16::try_from(place.len()).expect("a row's key is short"));
        out.put_slice(place);
    }
}

fn place(reader: &mut Reader) -> Result<Option<Bytes>, CodecError> {
    if !reader.flag("whether it has a place")? {
        return Ok(None);
    }
    let length = usize::from(reader.u16()?);
    reader.take(length).map(Some)
}

/// A message from a peer's frame; `None`: the kind is not one of these.
pub(super) fn decode(kind: u8, payload: &Bytes) -> Option<Result<SnapshotMessage, CodecError>> {
    let what = match kind {
        kind::OFFER => "an offer of a snapshot",
        kind::WANT => "a wish for a chunk",
        kind::CHUNK => "a chunk",
        kind::GONE => "the news that a snapshot is gone",
        _ => return digests::decode(kind, payload).map(|message| message.map(SnapshotMessage::Digest)),
    };
    Some(fields(kind, Reader::new(what, payload.clone())))
}

fn fields(kind: u8, mut reader: Reader) -> Result<SnapshotMessage, CodecError> {
    if kind == kind::OFFER {
        let digest = Digest(reader.u64()?);
        let handle = handle(&mut reader)?;
        return reader.end().map(|()| SnapshotMessage::Offer { handle, digest });
    }
    let slot = reader.slot()?;
    match kind {
        kind::WANT => {
            let from = place(&mut reader)?;
            reader.end().map(|()| SnapshotMessage::Want { slot, from })
        }
        kind::CHUNK => {
            let (from, next) = (place(&mut reader)?, place(&mut reader)?);
            Ok(SnapshotMessage::Chunk { slot, from, next, rows: reader.rest() })
        }
        _ => reader.end().map(|()| SnapshotMessage::Gone { slot }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use synod_paxos::{Ballot, Configuration, Incarnation, ReplicaId};

    #[test]
    fn what_is_said_is_heard() {
        let mut configurations = Configurations::first(Configuration::of(&[1, 2, 3]));
        let ballot = Ballot { round: 7, replica: ReplicaId(2), incarnation: Incarnation(1) };
        let mut messages = Vec::new();
        for pending in [None, Some((Slot(20), Configuration::of(&[1, 2])))] {
            configurations.pending = pending;
            let handle = SnapshotHandle { slot: Slot(9), ballot, configurations: configurations.clone() };
            assert_eq!(decode_handle(&encode_handle(&handle)), Ok(handle.clone()));
            messages.push(SnapshotMessage::Offer { handle, digest: Digest(11) });
        }
        let slot = Slot(9);
        for from in [None, Some(Bytes::new()), Some(Bytes::from_static(b"\x03key"))] {
            messages.push(SnapshotMessage::Want { slot, from: from.clone() });
            let rows = Bytes::from_static(b"rows");
            messages.push(SnapshotMessage::Chunk { slot, next: from.clone(), from, rows });
        }
        messages.push(SnapshotMessage::Gone { slot });
        for message in messages {
            let EncodedMessage { kind, mut head, body } = encode(&message);
            head.extend_from_slice(&body);
            let bytes = head.freeze();
            assert_eq!(decode(kind, &bytes), Some(Ok(message.clone())));
            for cut in 0..bytes.len() {
                assert_ne!(decode(kind, &bytes.slice(..cut)).unwrap().ok(), Some(message.clone()));
            }
        }
        assert_eq!(decode(31, &Bytes::new()), None);
    }
}
