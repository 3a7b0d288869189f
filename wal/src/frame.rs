//! The frame: what one flush writes, and the header that says what it is.
//!
//! A frame starts at a block, and is a header, then records, then zeros up to a whole block. Everything is
//! little-endian. The zeros are covered by no checksum: nothing depends on them.

use synod_ring::BLOCK_BYTES;

use crate::record::RECORD_ALIGN;
use crate::types::{Ballot, CellId, FrameNumber, Generation, Incarnation, ReplicaId, SegmentId, Slot, StartId};

/// The first bytes of every frame.
pub const MAGIC: [u8; 8] = *b"SYNODWAL";

/// The version written, and the only one read: 1 had no highest slot. A writer of a newer version begins a new segment, so that the
/// first block of a segment tells.
pub const VERSION: u32 = 2;

/// The header's size.
pub const FRAME_HEADER_BYTES: usize = 224;

/// The longest frame of any settings: what recovery bounds a length by. The setting does not bound it, for a log must
/// still open when the setting has been lowered.
pub const FRAME_BYTES_LIMIT: usize = 16 << 20;

/// The generation of a segment whose file was made of zeros. Every reuse of the file counts one up.
pub const GENERATION_FIRST: Generation = Generation(1);

/// Flag: an empty frame, written so that damage to the one before it can be told from a torn tail (rule L4).
pub const FLAG_MARK: u16 = 1;
/// Flag: the first frame of a segment. Holds the hard state as of all frames before (rule P2), and no client's data.
pub const FLAG_OPENING: u16 = 2;

const PRELUDE_BYTES: usize = 12;
const CHECKSUM_AT: usize = FRAME_HEADER_BYTES - 4;
/// Zeros before the checksum, so that the header's length is a multiple of a record's.
const SPARE_BYTES: usize = 24;

const _: () = assert!(FRAME_HEADER_BYTES < BLOCK_BYTES); // a header is never torn across blocks
const _: () = assert!(FRAME_HEADER_BYTES <= 512); // nor across the smallest sector
const _: () = assert!(FRAME_HEADER_BYTES.is_multiple_of(RECORD_ALIGN)); // records stay aligned behind it
const _: () = assert!(FRAME_BYTES_LIMIT.is_multiple_of(BLOCK_BYTES));
const _: () = assert!(FRAME_BYTES_LIMIT < u32::MAX as usize); // lengths are 32 bits

/// What a frame's header says.
///
/// | at  | bytes | field                | what it catches                                                             |
/// |-----|-------|----------------------|-----------------------------------------------------------------------------|
/// | 0   | 8     | magic                | not a frame                                                                 |
/// | 8   | 4     | version              | a writer of another version                                                 |
/// | 12  | 4     | crc32c of the above  | rot that looks like another version: these 16 bytes are the same in all versions |
/// | 16  | 16    | cell                 | a disk of another cell                                                      |
/// | 32  | 2     | replica              | a disk in the wrong machine                                                 |
/// | 34  | 2     | flags                | a segment that does not begin with its hard state                           |
/// | 36  | 4     | records              | records lost or invented within the frame                                   |
/// | 40  | 8     | incarnation          | which life votes, behind a hole too; 0: none, it rejoins                    |
/// | 48  | 8     | start                | which life of the process wrote it                                          |
/// | 56  | 8     | origin               | a segment of another log of this replica; a client's bytes posing as a frame |
/// | 64  | 8     | segment              | a file under a wrong name; a stale frame from the file's earlier life       |
/// | 72  | 8     | generation           | whether older frames may lie behind the last: above 1 the file was recycled |
/// | 80  | 8     | offset               | a write that went to the wrong place                                        |
/// | 88  | 8     | number               | a frame missing or repeated                                                 |
/// | 96  | 8     | durable              | the last frame known synced when this was written: a torn tail or damage    |
/// | 104 | 4     | payload bytes        | bounded before it is believed                                               |
/// | 108 | 4     | crc32c of payload    | a torn write, rot                                                           |
/// | 112 | 4     | previous: checksum   | a frame sound in itself but not the one this one followed                   |
/// | 116 | 4     | previous: records    | the rest of "previous" says what is lost when that frame is (rule L5)       |
/// | 120 | 8     | previous: first slot |                                                                             |
/// | 128 | 8     | previous: last slot  |                                                                             |
/// | 136 | 16    | previous: ballot     |                                                                             |
/// | 152 | 16    | previous: promised   |                                                                             |
/// | 168 | 8     | previous: highest    | the highest slot up to that frame's end: no hole before this one hides a higher |
/// | 176 | 8     | cut                  | a snapshot that does not reach up to the log                                |
/// | 184 | 8     | begin: frame         | zeros until the log is cut; then its first frame, which nothing before      |
/// | 192 | 4     | begin: segment       | it is needed for: a segment missing that was not cut off                    |
/// | 196 | 24    | zeros                |                                                                             |
/// | 220 | 4     | crc32c of all above  | a torn write, rot; as the frame's checksum it is what the next frame repeats |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// The cell it was written for.
    pub cell: CellId,
    /// The replica it was written by.
    pub replica: ReplicaId,
    /// `FLAG_MARK`, `FLAG_OPENING`.
    pub flags: u16,
    /// How many records follow.
    pub records: u32,
    /// The incarnation it was written under.
    pub incarnation: Incarnation,
    /// The start of the process it was written in.
    pub start: StartId,
    /// The start of the process that made the log: the same in all its frames, and known to no client.
    pub origin: StartId,
    /// The segment it was written to.
    pub segment: SegmentId,
    /// The segment's generation then.
    pub generation: Generation,
    /// Where in the segment it was written to.
    pub offset: u64,
    /// Its number; one more than that of the frame before.
    pub number: FrameNumber,
    /// The highest frame known durable when it was written.
    pub durable: FrameNumber,
    /// The length of the records, without header and padding.
    pub payload_bytes: u32,
    /// crc32c of the records.
    pub payload_crc: u32,
    /// The frame before.
    pub previous: Link,
    /// Slots below are in durable snapshots.
    pub cut: Slot,
    /// Where the log began when this was written: nothing before is needed any more.
    pub begin: Begin,
}

/// Where a log begins. Segment ids and frame numbers are never used again, so what lies before was cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// The first segment that is needed.
    pub segment: SegmentId,
    /// The frame that opens it.
    pub frame: FrameNumber,
}

impl Begin {
    /// The beginning of a log that was never cut.
    pub const UNCUT: Self = Self { segment: SegmentId(1), frame: FrameNumber(1) };
}

/// What a frame repeats of the frame before it; all zeros in the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Its header's checksum, which covers its payload's.
    pub checksum: u32,
    /// What it held.
    pub summary: Summary,
}

/// What a frame holds, in short: what would be lost with it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many records.
    pub records: u32,
    /// The lowest slot of its records; zero if none has a slot.
    pub first_slot: Slot,
    /// The highest slot of its records; zero if none has a slot.
    pub last_slot: Slot,
    /// The highest ballot of its records with a slot.
    pub ballot: Ballot,
    /// The ballot promised by the last hard state up to the frame's end.
    pub promised: Ballot,
    /// The highest slot of all records of the log up to the frame's end.
    pub highest: Slot,
}

impl Summary {
    /// Counts one more record with a slot.
    pub(crate) fn add(&mut self, slot: Slot, ballot: Ballot) {
        self.first_slot = if self.first_slot == Slot(0) { slot } else { self.first_slot.min(slot) };
        self.last_slot = self.last_slot.max(slot);
        self.ballot = self.ballot.max(ballot);
        self.records += 1;
    }

    /// Adds what is as of the frame's end, given the frame before.
    pub(crate) fn follow(&mut self, before: &Summary) {
        self.highest = before.highest.max(self.last_slot);
    }

    /// Counts one more hard state.
    pub(crate) fn add_hard_state(&mut self, promised: Ballot) {
        self.promised = promised;
        self.records += 1;
    }
}

/// Why a block is not the start of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Zeros, a client's bytes, or a header whose checksum is wrong.
    #[error("no frame header, or a damaged one")]
    Unsound,
    /// Written by another version; the rest of the header was not read.
    #[error("format version {version}, not {VERSION}")]
    OtherVersion {
        /// The version found.
        version: u32,
    },
}

impl FrameHeader {
    /// Writes the header to the start of `block`; gives the frame's checksum.
    pub(crate) fn encode(&self, block: &mut [u8]) -> u32 {
        let bytes = &mut block[..FRAME_HEADER_BYTES];
        let mut put = Writer { bytes, at: 0 };
        put.bytes(&MAGIC);
        put.bytes(&VERSION.to_le_bytes());
        let prelude = crc32c::crc32c(&put.bytes[..PRELUDE_BYTES]);
        put.bytes(&prelude.to_le_bytes());
        put.bytes(&self.cell.0.to_le_bytes());
        put.bytes(&self.replica.0.to_le_bytes());
        put.bytes(&self.flags.to_le_bytes());
        put.bytes(&self.records.to_le_bytes());
        put.bytes(&self.incarnation.0.to_le_bytes());
        put.bytes(&self.start.0.to_le_bytes());
        put.bytes(&self.origin.0.to_le_bytes());
        put.bytes(&self.segment.0.to_le_bytes());
        put.bytes(&self.generation.0.to_le_bytes());
        put.bytes(&self.offset.to_le_bytes());
        put.bytes(&self.number.0.to_le_bytes());
        put.bytes(&self.durable.0.to_le_bytes());
        put.bytes(&self.payload_bytes.to_le_bytes());
        put.bytes(&self.payload_crc.to_le_bytes());
        put.bytes(&self.previous.checksum.to_le_bytes());
        put.bytes(&self.previous.summary.records.to_le_bytes());
        put.bytes(&self.previous.summary.first_slot.0.to_le_bytes());
        put.bytes(&self.previous.summary.last_slot.0.to_le_bytes());
        put.bytes(&self.previous.summary.ballot.0.to_le_bytes());
        put.bytes(&self.previous.summary.promised.0.to_le_bytes());
        put.bytes(&self.previous.summary.highest.0.to_le_bytes());
        let (frame, segment) =
            if self.begin == Begin::UNCUT { (0, 0) } else { (self.begin.frame.0, self.begin.segment.0) };
        put.bytes(&self.cut.0.to_le_bytes());
        put.bytes(&frame.to_le_bytes());
        put.bytes(&u32::try_from(segment).expect("fewer than 2^32 segments in a log's life").to_le_bytes());
        put.bytes(&[0; SPARE_BYTES]);
        assert_eq!(put.at, CHECKSUM_AT);
        let checksum = crc32c::crc32c(&bytes[..CHECKSUM_AT]);
        bytes[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        checksum
    }

    /// Reads the header at the start of `block`, with the frame's checksum. Says nothing about the payload.
    pub fn decode(block: &[u8]) -> Result<(Self, u32), HeaderError> {
        if block.len() < FRAME_HEADER_BYTES || block[..MAGIC.len()] != MAGIC {
            return Err(HeaderError::Unsound);
        }
        let mut take = Reader { bytes: block, at: MAGIC.len() };
        let version = u32::from_le_bytes(take.bytes());
        if u32::from_le_bytes(take.bytes()) != crc32c::crc32c(&block[..PRELUDE_BYTES]) {
            return Err(HeaderError::Unsound);
        }
        if version != VERSION {
            return Err(HeaderError::OtherVersion { version });
        }
        let checksum = u32::from_le_bytes(Reader { bytes: block, at: CHECKSUM_AT }.bytes());
        if checksum != crc32c::crc32c(&block[..CHECKSUM_AT]) {
            return Err(HeaderError::Unsound);
        }
        let header = Self {
            cell: CellId(u128::from_le_bytes(take.bytes())),
            replica: ReplicaId(u16::from_le_bytes(take.bytes())),
            flags: u16::from_le_bytes(take.bytes()),
            records: u32::from_le_bytes(take.bytes()),
            incarnation: Incarnation(u64::from_le_bytes(take.bytes())),
            start: StartId(u64::from_le_bytes(take.bytes())),
            origin: StartId(u64::from_le_bytes(take.bytes())),
            segment: SegmentId(u64::from_le_bytes(take.bytes())),
            generation: Generation(u64::from_le_bytes(take.bytes())),
            offset: u64::from_le_bytes(take.bytes()),
            number: FrameNumber(u64::from_le_bytes(take.bytes())),
            durable: FrameNumber(u64::from_le_bytes(take.bytes())),
            payload_bytes: u32::from_le_bytes(take.bytes()),
            payload_crc: u32::from_le_bytes(take.bytes()),
            previous: Link {
                checksum: u32::from_le_bytes(take.bytes()),
                summary: Summary {
                    records: u32::from_le_bytes(take.bytes()),
                    first_slot: Slot(u64::from_le_bytes(take.bytes())),
                    last_slot: Slot(u64::from_le_bytes(take.bytes())),
                    ballot: Ballot(u128::from_le_bytes(take.bytes())),
                    promised: Ballot(u128::from_le_bytes(take.bytes())),
                    highest: Slot(u64::from_le_bytes(take.bytes())),
                },
            },
            cut: Slot(u64::from_le_bytes(take.bytes())),
            begin: {
                let frame = FrameNumber(u64::from_le_bytes(take.bytes()));
                let segment = SegmentId(u64::from(u32::from_le_bytes(take.bytes())));
                if segment == SegmentId(0) { Begin::UNCUT } else { Begin { segment, frame } }
            },
        };
        Ok((header, checksum))
    }

    /// The whole frame's length on disk, padding included.
    pub fn frame_bytes(&self) -> usize {
        (FRAME_HEADER_BYTES + self.payload_bytes as usize).next_multiple_of(BLOCK_BYTES)
    }
}

struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

impl Writer<'_> {
    fn bytes(&mut self, field: &[u8]) {
        self.bytes[self.at..self.at + field.len()].copy_from_slice(field);
        self.at += field.len();
    }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut field = [0; N];
        field.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        field
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> FrameHeader {
        let summary = Summary {
            records: 19,
            first_slot: Slot(20),
            last_slot: Slot(21),
            ballot: Ballot(22 << 64),
            promised: Ballot(23),
            highest: Slot(24),
        };
        FrameHeader {
            cell: CellId(7 << 100),
            replica: ReplicaId(2),
            flags: FLAG_OPENING,
            records: 3,
            incarnation: Incarnation(4),
            start: StartId(5),
            origin: StartId(6),
            segment: SegmentId(7),
            generation: Generation(8),
            offset: 9 * 4096,
            number: FrameNumber(10),
            durable: FrameNumber(9),
            payload_bytes: 12_000,
            payload_crc: 13,
            previous: Link { checksum: 14, summary },
            cut: Slot(15),
            begin: Begin { segment: SegmentId(4), frame: FrameNumber(7) },
        }
    }

    #[test]
    fn reads_back_what_was_written() {
        let mut block = [0xff; BLOCK_BYTES];
        let checksum = header().encode(&mut block);
        assert_eq!(FrameHeader::decode(&block), Ok((header(), checksum)));
        let uncut = FrameHeader { begin: Begin::UNCUT, ..header() };
        let checksum = uncut.encode(&mut block);
        assert_eq!(FrameHeader::decode(&block), Ok((uncut, checksum)));
        assert_eq!(header().frame_bytes(), 3 * BLOCK_BYTES);
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut block = [0; BLOCK_BYTES];
        header().encode(&mut block);
        for bit in 0..FRAME_HEADER_BYTES * 8 {
            block[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FrameHeader::decode(&block), Err(HeaderError::Unsound), "bit {bit}");
            block[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn another_version_is_told_from_rot() {
        let mut block = [0; BLOCK_BYTES];
        block[..8].copy_from_slice(&MAGIC);
        block[8..12].copy_from_slice(&9u32.to_le_bytes());
        assert_eq!(FrameHeader::decode(&block), Err(HeaderError::Unsound));
        let prelude = crc32c::crc32c(&block[..12]);
        block[12..16].copy_from_slice(&prelude.to_le_bytes());
        assert_eq!(FrameHeader::decode(&block), Err(HeaderError::OtherVersion { version: 9 }));
    }

    #[test]
    fn neither_zeros_nor_a_short_block_is_a_header() {
        assert_eq!(FrameHeader::decode(&[0; BLOCK_BYTES]), Err(HeaderError::Unsound));
        assert_eq!(FrameHeader::decode(&MAGIC), Err(HeaderError::Unsound));
    }
}
