//! What replicas say to each other about their databases' digests, in bytes (rule P14).

use bytes::{BufMut, Bytes, BytesMut};
use synod_paxos::Slot;
use synod_store::Digest;

use super::{CodecError, EncodedMessage, Reader};

/// Frame kinds, above those of snapshots.
mod kind {
    pub(super) const REPORT: u8 = 48;
    pub(super) const QUERY: u8 = 49;
    pub(super) const ANSWER: u8 = 50;
    pub(super) const TRACE: u8 = 51;
    pub(super) const TRACED: u8 = 52;
    pub(super) const REBUILD: u8 = 53;
    pub(super) const VOUCH: u8 = 54;
    pub(super) const VOUCHED: u8 = 55;
}

/// A replica keeps the digests of so many applied slots, and tells so many at once: at most 32 KiB.
pub const DIGESTS_MAX: usize = 4096;

/// Digests of applied slots, reported and compared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum DigestMessage {
    /// What the sender's database is, about once a heartbeat.
    Report {
        /// The last slot that it has applied.
        slot: Slot,
        /// The digest then; `None`: it is in quarantine.
        digest: Option<Digest>,
    },
    /// What was your digest at this slot? Two replicas differ there.
    Query {
        /// Which.
        slot: Slot,
        /// What the sender's was.
        digest: Digest,
    },
    /// The answer.
    Answer {
        /// At which slot.
        slot: Slot,
        /// `None`: not applied yet, or not known any more.
        digest: Option<Digest>,
    },
    /// Tell me all the digests that you know: I am the odd one out, and want to know from which slot on.
    Trace,
    /// The answer, one digest a slot.
    Traced {
        /// The slot of the first.
        first: Slot,
        /// At most [`DIGESTS_MAX`].
        digests: Vec<Digest>,
    },
    /// Offer me your database: mine is of no use.
    Rebuild {
        /// As of this slot, or later: what was chosen before it I do not ask for again.
        from: Slot,
    },
    /// What was your digest at this slot? I am offered a database of then, and have no opinion.
    Vouch {
        /// Which.
        slot: Slot,
    },
    /// The answer.
    Vouched {
        /// At which slot.
        slot: Slot,
        /// `None`: not applied yet, not known any more, or its database is in quarantine.
        digest: Option<Digest>,
    },
}

/// A message in the bytes that peers exchange.
pub(super) fn encode(message: &DigestMessage) -> EncodedMessage {
    let mut head = BytesMut::with_capacity(32);
    let mut put_option = |slot: &Slot, digest: &Option<Digest>| {
        head.put_u64_le(slot.0);
        head.put_u8(u8::from(digest.is_some()));
        head.put_u64_le(digest.map_or(0, |digest| digest.0));
    };
    let kind = match message {
        DigestMessage::Report { slot, digest } => {
            put_option(slot, digest);
            kind::REPORT
        }
        DigestMessage::Answer { slot, digest } => {
            put_option(slot, digest);
            kind::ANSWER
        }
        DigestMessage::Vouched { slot, digest } => {
            put_option(slot, digest);
            kind::VOUCHED
        }
        DigestMessage::Query { slot, digest } => {
            head.put_u64_le(slot.0);
            head.put_u64_le(digest.0);
            kind::QUERY
        }
        DigestMessage::Traced { first, digests } => {
            head.put_u64_le(first.0);
            digests.iter().for_each(|digest| head.put_u64_le(digest.0));
            kind::TRACED
        }
        DigestMessage::Trace => kind::TRACE,
        DigestMessage::Rebuild { from } => {
            head.put_u64_le(from.0);
            kind::REBUILD
        }
        DigestMessage::Vouch { slot } => {
            head.put_u64_le(slot.0);
            kind::VOUCH
        }
    };
    EncodedMessage { kind, head, body: Bytes::new() }
}

/// A message from a peer's frame; `None`: the kind is not one of these.
pub(super) fn decode(kind: u8, payload: &Bytes) -> Option<Result<DigestMessage, CodecError>> {
    let what = match kind {
        kind::REPORT => "a report of a digest",
        kind::QUERY => "a question for a digest",
        kind::ANSWER => "an answer with a digest",
        kind::TRACE => "a question for digests",
        kind::TRACED => "digests",
        kind::REBUILD => "a wish for a database",
        kind::VOUCH => "a question of one that is offered a database",
        kind::VOUCHED => "what a voter says of a database",
        _ => return None,
    };
    Some(fields(kind, Reader::new(what, payload.clone())))
}

fn fields(kind: u8, mut reader: Reader) -> Result<DigestMessage, CodecError> {
    let message = match kind {
        kind::REPORT => {
            let (slot, digest) = option(&mut reader)?;
            DigestMessage::Report { slot, digest }
        }
        kind::ANSWER => {
            let (slot, digest) = option(&mut reader)?;
            DigestMessage::Answer { slot, digest }
        }
        kind::VOUCHED => {
            let (slot, digest) = option(&mut reader)?;
            DigestMessage::Vouched { slot, digest }
        }
        kind::VOUCH => DigestMessage::Vouch { slot: reader.slot()? },
        kind::QUERY => DigestMessage::Query { slot: reader.slot()?, digest: Digest(reader.u64()?) },
        kind::TRACED => {
            let first = reader.slot()?;
            let mut digests = Vec::new();
            while !reader.is_empty() {
                reader.within("how many digests", digests.len() < DIGESTS_MAX)?;
                digests.push(Digest(reader.u64()?));
            }
            DigestMessage::Traced { first, digests }
        }
        kind::TRACE => DigestMessage::Trace,
        _ => DigestMessage::Rebuild { from: reader.slot()? },
    };
    reader.end().map(|()| message)
}

fn option(reader: &mut Reader) -> Result<(Slot, Option<Digest>), CodecError> {
    let slot = reader.slot()?;
    let is_some = reader.flag("whether there is a digest")?;
    let digest = Digest(reader.u64()?);
    Ok((slot, is_some.then_some(digest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_heard() {
        let (slot, digest) = (Slot(9), Digest(0x0123_4567_89ab_cdef));
        let messages = [
            DigestMessage::Report { slot, digest: Some(digest) },
            DigestMessage::Report { slot, digest: None },
            DigestMessage::Query { slot, digest },
            DigestMessage::Answer { slot, digest: Some(digest) },
            DigestMessage::Answer { slot, digest: None },
            DigestMessage::Trace,
            DigestMessage::Traced { first: slot, digests: vec![digest, Digest(1)] },
            DigestMessage::Rebuild { from: slot },
            DigestMessage::Vouch { slot },
            DigestMessage::Vouched { slot, digest: Some(digest) },
            DigestMessage::Vouched { slot, digest: None },
        ];
        for message in messages {
            let EncodedMessage { kind, head, .. } = encode(&message);
            let bytes = head.freeze();
            assert_eq!(decode(kind, &bytes), Some(Ok(message.clone())));
            for cut in 0..bytes.len() {
                assert_ne!(decode(kind, &bytes.slice(..cut)).unwrap().ok(), Some(message.clone()));
            }
        }
        let long = DigestMessage::Traced { first: slot, digests: vec![digest; DIGESTS_MAX + 1] };
        let EncodedMessage { kind, head, .. } = encode(&long);
        assert!(decode(kind, &head.freeze()).unwrap().is_err(), "longer than anybody sends");
        assert_eq!(decode(31, &Bytes::new()), None);
    }
}
