//! The frame: the unit on the wire, around bytes that are none of its business.
//!
//! | at | bytes | field | what it catches |
//! |---|---|---|---|
//! | 0 | 2 | magic `53 D0` | not our protocol: a browser, a TLS client, a stream that lost its place |
//! | 2 | 1 | version | a peer from another release |
//! | 3 | 1 | kind | (the users': which message the payload is) |
//! | 4 | 4 | length of the payload | bounded before it is believed |
//! | 8 | 8 | id | (the users': an answer carries its request's) |
//! | 16 | 4 | crc32c of the payload | rot past TCP's own checksum |
//! | 20 | 4 | crc32c of bytes 0 to 19 | the same, in the header: above all in the length |
//!
//! All little-endian. Magic and version keep their places in every version to come, so that any two releases can tell
//! each other that they differ; the rest may change with the version.
//!
//! Invariants:
//!   - nothing of a frame is handed out before its payload's checksum was checked (design, invariant 7);
//!   - a payload costs memory only after the header's checksum held and the length was within the connection's bound;
//!   - after an error the stream has no place any more: the connection is to be closed, never resynchronised.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};

/// The length of a header.
pub const HEADER_BYTES: usize = 24;
/// The first bytes of every frame. `D0` is not ASCII and not how TLS begins, so nothing common looks like it.
pub const MAGIC: [u8; 2] = [0x53, 0xD0];
/// The version of the header's layout and of the greeting.
pub const VERSION: u8 = 1;
/// Kinds from here on belong to this crate (the greeting); users' kinds are below.
pub const KIND_RESERVED_MIN: u8 = 0xF0;

const LENGTH_AT: usize = 4;
const ID_AT: usize = 8;
const PAYLOAD_CRC_AT: usize = 16;
const HEADER_CRC_AT: usize = 20;
const _: () = assert!(HEADER_CRC_AT + 4 == HEADER_BYTES);

/// Ties an answer to its request; the requester's own numbering.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct FrameId(pub u64);

impl fmt::Display for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What this connection is willing to receive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameLimits {
    /// The longest payload. A longer one is refused on its header alone.
    pub payload_bytes_max: u32,
}

/// A frame that owns its payload: a slice of the buffer it arrived in. It pins that buffer, so what is kept for long
/// should be copied out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// Which message it is.
    pub kind: u8,
    /// Which request it is or answers.
    pub id: FrameId,
    /// The message.
    pub payload: Bytes,
}

/// A frame in the place where it arrived.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameRef<'a> {
    /// Which message it is.
    pub kind: u8,
    /// Which request it is or answers.
    pub id: FrameId,
    /// The message.
    pub payload: &'a [u8],
}

/// Why what arrived is not a frame. After any of these the connection is of no more use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FrameError {
    /// The stream does not begin like one of ours, or has lost its place.
    #[error("not the Synod protocol: begins with bytes {:02x} {:02x}{}", .0[0], .0[1], lookalike(.0))]
    NotSynod([u8; 2]),
    /// The other side runs a release whose frames we do not know.
    #[error("they speak protocol version {theirs}, we speak {ours}: upgrade the older side")]
    Version {
        /// What arrived.
        theirs: u8,
        /// What this build speaks.
        ours: u8,
    },
    /// The header was damaged on its way.
    #[error("a frame's header is damaged (checksum {computed:08x}, header says {stated:08x}): close and dial again")]
    HeaderChecksum {
        /// What the header says.
        stated: u32,
        /// What its bytes give.
        computed: u32,
    },
    /// The frame is sound so far, but longer than this connection may send.
    #[error("a payload of {length} bytes, at most {max} are allowed here: send it in parts or raise the limit")]
    TooLong {
        /// What the header says.
        length: u32,
        /// The bound of this connection.
        max: u32,
    },
    /// The payload was damaged on its way.
    #[error("a frame's payload is damaged (checksum {computed:08x}, header says {stated:08x}): close and dial again")]
    PayloadChecksum {
        /// What the header says.
        stated: u32,
        /// What its bytes give.
        computed: u32,
    },
}

/// The usual strangers on a port, so that the operator need not look bytes up.
fn lookalike(found: &[u8; 2]) -> &'static str {
    match found {
        b"GE" | b"PO" | b"PU" | b"HE" | b"DE" | b"OP" | b"PA" | b"CO" | b"TR" => {
            "; this looks like an HTTP request: status and metrics have a port of their own"
        }
        b"HT" => "; this looks like an HTTP answer: the address is a web server's",
        b"PR" => "; this looks like HTTP/2 (gRPC?): this port speaks Synod's own protocol only",
        [0x16, 0x03] => "; this looks like TLS: this port speaks plain TCP",
        b"SS" => "; this looks like SSH: the address is another service's",
        _ => "",
    }
}

/// What the bytes at the front of a buffer are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Look {
    /// Sound so far; not worth looking again before this many bytes are there, counted from the frame's first.
    Incomplete {
        /// How many.
        bytes_wanted: usize,
    },
    /// A whole, checked frame of this many bytes, header included.
    Whole {
        /// How many.
        frame_bytes: usize,
    },
}

/// Looks at the front of `input`, and takes nothing. A stranger is told from its first two bytes: a short request in
/// another protocol would never fill a header.
pub fn look(input: &[u8], limits: FrameLimits) -> Result<Look, FrameError> {
    if let Some(magic) = input.first_chunk::<2>()
        && *magic != MAGIC
    {
        return Err(FrameError::NotSynod(*magic));
    }
    // Before the checksum: where another version keeps its checksum is not known here.
    if let Some(&version) = input.get(2)
        && version != VERSION
    {
        return Err(FrameError::Version { theirs: version, ours: VERSION });
    }
    let Some(header) = input.first_chunk::<HEADER_BYTES>() else {
        return Ok(Look::Incomplete { bytes_wanted: HEADER_BYTES });
    };
    let (stated, computed) = (u32_at(header, HEADER_CRC_AT), crc32c::crc32c(&header[..HEADER_CRC_AT]));
    if stated != computed {
        return Err(FrameError::HeaderChecksum { stated, computed });
    }
    let length = u32_at(header, LENGTH_AT);
    if length > limits.payload_bytes_max {
        return Err(FrameError::TooLong { length, max: limits.payload_bytes_max });
    }
    let frame_bytes = HEADER_BYTES + length as usize;
    let Some(payload) = input.get(HEADER_BYTES..frame_bytes) else {
        return Ok(Look::Incomplete { bytes_wanted: frame_bytes });
    };
    let (stated, computed) = (u32_at(header, PAYLOAD_CRC_AT), crc32c::crc32c(payload));
    if stated != computed {
        return Err(FrameError::PayloadChecksum { stated, computed });
    }
    Ok(Look::Whole { frame_bytes })
}

/// Takes one frame off the front; its payload is a slice of the buffer, not a copy. `None`: more bytes are needed.
pub fn decode(input: &mut BytesMut, limits: FrameLimits) -> Result<Option<Frame>, FrameError> {
    match look(input, limits)? {
        Look::Incomplete { .. } => Ok(None),
        Look::Whole { frame_bytes } => {
            let (kind, id) = kind_and_id(input);
            let mut frame = input.split_to(frame_bytes);
            frame.advance(HEADER_BYTES);
            Ok(Some(Frame { kind, id, payload: frame.freeze() }))
        }
    }
}

/// Visits every whole frame of `input` in its place and returns how many bytes they were, and whether what follows them
/// is damaged. For connections that carry hundreds of small frames a read: nothing is split, counted or freed a frame.
pub fn visit_frames(
    input: &[u8],
    limits: FrameLimits,
    mut visit: impl FnMut(FrameRef<'_>),
) -> (usize, Result<(), FrameError>) {
    let mut visited = 0;
    loop {
        let rest = &input[visited..];
        match look(rest, limits) {
            Ok(Look::Whole { frame_bytes }) => {
                let (kind, id) = kind_and_id(rest);
                visit(FrameRef { kind, id, payload: &rest[HEADER_BYTES..frame_bytes] });
                visited += frame_bytes;
            }
            Ok(Look::Incomplete { .. }) => return (visited, Ok(())),
            Err(error) => return (visited, Err(error)),
        }
    }
}

/// As [`visit_frames`], and takes what was visited off the front. Frames before a damaged one are visited.
pub fn for_each_frame(
    input: &mut BytesMut,
    limits: FrameLimits,
    visit: impl FnMut(FrameRef<'_>),
) -> Result<(), FrameError> {
    let (visited, result) = visit_frames(input, limits, visit);
    input.advance(visited);
    result
}

/// A header alone, for a payload that is sent from where it lies (a scatter-gather send of these parts after it).
#[must_use]
pub fn encode_header(kind: u8, id: FrameId, payload: &[&[u8]]) -> [u8; HEADER_BYTES] {
    let length = payload.iter().map(|part| part.len()).sum();
    let crc = payload.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
    header(kind, id, length, crc)
}

/// Appends a frame whose payload is these parts, copied: for what is small.
pub fn append_frame<B: BufMut>(out: &mut B, kind: u8, id: FrameId, payload: &[&[u8]]) {
    out.put_slice(&encode_header(kind, id, payload));
    for part in payload {
        out.put_slice(part);
    }
}

/// Appends a frame whose payload `encode` writes straight behind the header, which is filled in afterwards: no copy in
/// between. `out` is a `Vec<u8>` or a `BytesMut`; `encode` may only append to it.
pub fn write_frame<B, R>(out: &mut B, kind: u8, id: FrameId, encode: impl FnOnce(&mut B) -> R) -> R
where
    B: BufMut + AsRef<[u8]> + AsMut<[u8]>,
{
    let start = out.as_ref().len();
    out.put_slice(&[0; HEADER_BYTES]);
    let result = encode(out);
    let written = &mut out.as_mut()[start..];
    let (head, payload) = written.split_at_mut(HEADER_BYTES);
    head.copy_from_slice(&header(kind, id, payload.len(), crc32c::crc32c(payload)));
    result
}

/// A frame that is made once and sent to several peers: its checksum is computed once and its body is shared, not
/// copied (a reference to the same memory goes into each connection's send).
#[derive(Clone, Debug)]
pub struct SharedFrame {
    /// The header and the payload's first part.
    head: Bytes,
    /// The rest of the payload.
    body: Bytes,
}

impl SharedFrame {
    /// A frame whose payload is `front` (small, copied) and then `body` (of any size, shared).
    #[must_use]
    pub fn new(kind: u8, id: FrameId, front: &[u8], body: Bytes) -> SharedFrame {
        let mut head = Vec::with_capacity(HEADER_BYTES + front.len());
        head.extend_from_slice(&encode_header(kind, id, &[front, &body]));
        head.extend_from_slice(front);
        SharedFrame { head: Bytes::from(head), body }
    }

    /// Bytes that are a frame already.
    pub(crate) fn whole(frame: Bytes) -> SharedFrame {
        SharedFrame { head: frame, body: Bytes::new() }
    }

    /// The header and the front of the payload.
    #[must_use]
    pub fn head(&self) -> &Bytes {
        &self.head
    }

    /// The rest of the payload.
    #[must_use]
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// All bytes of the frame.
    #[must_use]
    pub fn frame_bytes(&self) -> usize {
        self.head.len() + self.body.len()
    }
}

fn header(kind: u8, id: FrameId, length: usize, payload_crc: u32) -> [u8; HEADER_BYTES] {
    let length = u32::try_from(length).expect("a payload is far below 4 GiB: every queue's bound is");
    let mut header = [0; HEADER_BYTES];
    header[..2].copy_from_slice(&MAGIC);
    header[2] = VERSION;
    header[3] = kind;
    header[LENGTH_AT..ID_AT].copy_from_slice(&length.to_le_bytes());
    header[ID_AT..PAYLOAD_CRC_AT].copy_from_slice(&id.0.to_le_bytes());
    header[PAYLOAD_CRC_AT..HEADER_CRC_AT].copy_from_slice(&payload_crc.to_le_bytes());
    let crc = crc32c::crc32c(&header[..HEADER_CRC_AT]);
    header[HEADER_CRC_AT..].copy_from_slice(&crc.to_le_bytes());
    header
}

fn u32_at(header: &[u8; HEADER_BYTES], at: usize) -> u32 {
    u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
}

/// Of a frame that [`look`] has found whole.
fn kind_and_id(frame: &[u8]) -> (u8, FrameId) {
    let header = frame.first_chunk::<HEADER_BYTES>().expect("a whole frame has a header");
    let id = header[ID_AT..PAYLOAD_CRC_AT].first_chunk::<8>().expect("the id is eight bytes");
    (header[3], FrameId(u64::from_le_bytes(*id)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    const LIMITS: FrameLimits = FrameLimits { payload_bytes_max: 1000 };

    fn frame(kind: u8, id: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        append_frame(&mut out, kind, FrameId(id), &[payload]);
        out
    }

    fn decode_one(bytes: &[u8]) -> Result<Option<Frame>, FrameError> {
        decode(&mut BytesMut::from(bytes), LIMITS)
    }

    #[test]
    fn golden_bytes() {
        let bytes = frame(7, 0x0102_0304_0506_0708, b"paxos");
        let hex: Vec<String> = bytes.chunks(8).map(|line| format!("{line:02x?}")).collect();
        expect![[r#"
            [53, d0, 01, 07, 05, 00, 00, 00]
            [08, 07, 06, 05, 04, 03, 02, 01]
            [4b, 99, 90, 2c, 59, af, fb, 50]
            [70, 61, 78, 6f, 73]"#]]
        .assert_eq(&hex.join("\n"));
    }

    #[test]
    fn every_way_to_encode_gives_the_same_bytes() {
        let expected = frame(3, 9, b"one two");
        let mut parts = BytesMut::new();
        append_frame(&mut parts, 3, FrameId(9), &[b"one", b"", b" two"]);
        assert_eq!(parts, expected);

        let mut written = Vec::from(*b"before");
        write_frame(&mut written, 3, FrameId(9), |out| out.put_slice(b"one two"));
        assert_eq!(&written[6..], expected);

        let mut gathered = encode_header(3, FrameId(9), &[b"one ", b"two"]).to_vec();
        gathered.extend_from_slice(b"one two");
        assert_eq!(gathered, expected);

        let shared = SharedFrame::new(3, FrameId(9), b"one", Bytes::from_static(b" two"));
        assert_eq!([&shared.head()[..], &shared.body()[..]].concat(), expected);
        assert_eq!(shared.frame_bytes(), expected.len());
    }

    #[test]
    fn any_single_flipped_bit_is_refused() {
        let sound = frame(5, 77, b"the value of a row");
        for bit in 0..sound.len() * 8 {
            let mut damaged = sound.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            // A longer length is caught by the header's checksum, not by waiting for bytes that never come.
            decode_one(&damaged).expect_err(&format!("bit {bit}"));
        }
    }

    #[test]
    fn cut_off_anywhere_it_asks_for_more() {
        let sound = frame(5, 77, b"the value of a row");
        for length in 0..sound.len() {
            assert_eq!(decode_one(&sound[..length]), Ok(None), "{length} bytes");
        }
        assert!(decode_one(&sound).unwrap().is_some());
    }

    #[test]
    fn refusals_say_what_was_wrong_and_what_to_do() {
        let check = |bytes: &[u8], expect: expect_test::Expect| {
            expect.assert_eq(&decode_one(bytes).unwrap_err().to_string());
        };
        check(
            b"GET / HTTP/1.0\r\n",
            expect![
                "not the Synod protocol: begins with bytes 47 45; this looks like an HTTP request: status and metrics have a port of their own"
            ],
        );
        check(
            &[0x16, 0x03, 0x01],
            expect!["not the Synod protocol: begins with bytes 16 03; this looks like TLS: this port speaks plain TCP"],
        );
        check(&[0, 0], expect!["not the Synod protocol: begins with bytes 00 00"]);
        check(&[0x53, 0xD0, 9], expect!["they speak protocol version 9, we speak 1: upgrade the older side"]);
        check(
            &frame(1, 1, &[0; 1001])[..HEADER_BYTES],
            expect!["a payload of 1001 bytes, at most 1000 are allowed here: send it in parts or raise the limit"],
        );
        let mut damaged = frame(1, 1, b"x");
        damaged[HEADER_BYTES] ^= 1;
        check(
            &damaged,
            expect!["a frame's payload is damaged (checksum 5b57dc90, header says a93c5f93): close and dial again"],
        );
        damaged[10] ^= 1;
        check(
            &damaged,
            expect!["a frame's header is damaged (checksum b6309159, header says 7d66eafc): close and dial again"],
        );
    }

    #[test]
    fn frames_before_a_damaged_one_are_visited_and_taken() {
        let mut input = BytesMut::new();
        append_frame(&mut input, 1, FrameId(1), &[b"a"]);
        append_frame(&mut input, 1, FrameId(2), &[b"b"]);
        let sound = input.len();
        input.put_slice(b"junk");
        let mut ids = Vec::new();
        let result = for_each_frame(&mut input, LIMITS, |frame| ids.push(frame.id.0));
        assert_eq!(ids, [1, 2]);
        assert_eq!(result, Err(FrameError::NotSynod(*b"ju")));
        assert_eq!(&input[..], b"junk");
        assert!(sound > 0);
    }

    proptest! {
        #[test]
        fn junk_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_one(&bytes);
        }

        #[test]
        fn junk_behind_a_sound_start_never_panics(
            prefix in 0_usize..HEADER_BYTES, bytes in proptest::collection::vec(any::<u8>(), 0..200),
        ) {
            let mut input = frame(1, 2, b"payload")[..prefix].to_vec();
            input.extend_from_slice(&bytes);
            let _ = decode_one(&input);
        }

        #[test]
        fn what_is_encoded_is_decoded(
            frames in proptest::collection::vec(
                (any::<u8>(), any::<u64>(), proptest::collection::vec(any::<u8>(), 0..100)), 0..10),
        ) {
            let mut input = BytesMut::new();
            for (kind, id, payload) in &frames {
                append_frame(&mut input, *kind, FrameId(*id), &[payload]);
            }
            let mut again = input.clone();
            let mut visited = Vec::new();
            let visit = |frame: FrameRef<'_>| visited.push((frame.kind, frame.id.0, frame.payload.to_vec()));
            for_each_frame(&mut again, LIMITS, visit).unwrap();
            prop_assert_eq!(&visited, &frames);
            prop_assert!(again.is_empty());
            let mut decoded = Vec::new();
            while let Some(frame) = decode(&mut input, LIMITS).unwrap() {
                decoded.push((frame.kind, frame.id.0, frame.payload.to_vec()));
            }
            prop_assert_eq!(&decoded, &frames);
        }
    }
}
