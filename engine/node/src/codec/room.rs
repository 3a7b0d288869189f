//! What replicas tell each other about room for writes, in bytes.

use bytes::{BufMut, Bytes, BytesMut};

use super::{CodecError, EncodedMessage, Reader};

/// Frame kinds, above those about snapshots.
mod kind {
    pub(super) const ASK: u8 = 40;
    pub(super) const HAVE: u8 = 41;
    pub(super) const SHORT: u8 = 42;
}

/// A reason longer than this is cut.
const WHY_BYTES_MAX: usize = 512;

/// Which replicas have room for writes on their disks. Nothing is promised by it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RoomMessage {
    /// Could you take writes as the master? My disk is full.
    Ask,
    /// Whether it could.
    Have {
        /// Its log has room for a segment more than a master keeps free.
        has_room: bool,
    },
    /// My disk is full, and what my log has left is for promises and leases. Said again and again while it is so.
    Short {
        /// Which file was to be how long.
        why: String,
    },
}

/// A message in the bytes that peers exchange.
pub fn encode(message: &RoomMessage) -> EncodedMessage {
    let mut head = BytesMut::new();
    let kind = match message {
        RoomMessage::Ask => kind::ASK,
        RoomMessage::Have { has_room } => {
            head.put_u8(u8::from(*has_room));
            kind::HAVE
        }
        RoomMessage::Short { why } => {
            head.put_slice(&why.as_bytes()[..why.floor_char_boundary(WHY_BYTES_MAX)]);
            kind::SHORT
        }
    };
    EncodedMessage { kind, head, body: Bytes::new() }
}

/// A message from a peer's frame; `None`: the kind is not one of these.
pub(super) fn decode(kind: u8, payload: &Bytes) -> Option<Result<RoomMessage, CodecError>> {
    let reader = |what| Reader::new(what, payload.clone());
    match kind {
        kind::ASK => Some(reader("a question about room").end().map(|()| RoomMessage::Ask)),
        kind::HAVE => {
            let mut reader = reader("an answer about room");
            let told = reader.flag("whether there is room").map(|has_room| RoomMessage::Have { has_room });
            Some(told.and_then(|message| reader.end().map(|()| message)))
        }
        kind::SHORT => {
            let reader = reader("the news of a full disk");
            let is_short = reader.within("its reason's length", payload.len() <= WHY_BYTES_MAX);
            let why = std::str::from_utf8(payload);
            let is_text = is_short.and_then(|()| reader.within("its reason's text", why.is_ok()));
            Some(is_text.map(|()| RoomMessage::Short { why: why.unwrap_or_default().to_owned() }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `synod-fuzz --target peer-message --seed 5976615935490383175`: what replaces a byte that is no text is longer than it.
    #[test]
    fn a_reason_that_is_no_text_is_refused() {
        let refused = CodecError::Bounds { what: "the news of a full disk", field: "its reason's text" };
        assert_eq!(decode(kind::SHORT, &Bytes::from_static(&[0xff; 400])), Some(Err(refused)));
    }

    #[test]
    fn what_is_said_is_heard() {
        let have = |has_room| RoomMessage::Have { has_room };
        for message in [RoomMessage::Ask, have(false), have(true)] {
            let EncodedMessage { kind, head, .. } = encode(&message);
            assert_eq!(decode(kind, &head.clone().freeze()), Some(Ok(message)));
            let longer = [&head[..], &[0]].concat();
            assert!(matches!(decode(kind, &longer.into()), Some(Err(_))));
        }
        assert!(matches!(decode(kind::HAVE, &Bytes::from_static(&[2])), Some(Err(_))));
        assert!(matches!(decode(kind::HAVE, &Bytes::new()), Some(Err(_))));
        assert_eq!(decode(39, &Bytes::new()), None);
    }

    #[test]
    fn a_long_reason_is_cut_and_a_longer_one_refused() {
        let EncodedMessage { kind, head, .. } = encode(&RoomMessage::Short { why: "é".repeat(WHY_BYTES_MAX) });
        assert_eq!(decode(kind, &head.freeze()), Some(Ok(RoomMessage::Short { why: "é".repeat(WHY_BYTES_MAX / 2) })));
        assert!(matches!(decode(kind, &vec![b'x'; WHY_BYTES_MAX + 1].into()), Some(Err(_))));
    }
}
