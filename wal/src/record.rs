//! The record: one entry in a frame, with a checksum and an identity of its own.
//!
//! | at | bytes | field    | what it catches                                                                   |
//! |----|-------|----------|-----------------------------------------------------------------------------------|
//! | 0  | 4     | crc32c   | of the rest of the header and of the payload: rot, also when read alone (catch-up) |
//! | 4  | 3     | length   | of the payload; bounded before it is believed                                     |
//! | 7  | 1     | kind     | zero is none, so that zeros are no record                                         |
//! | 8  | 8     | slot     | a record read at a place that by now belongs to another                           |
//! | 16 | 16    | ballot   |                                                                                   |
//! | 32 | ...   | payload  | then zeros up to a multiple of 32                                                 |
//!
//! Records are aligned to the size of their header, so that no header straddles two blocks or sectors: whatever is
//! damaged, either a record's identity is lost or its value is, seldom both (rule L5).

use synod_ring::BLOCK_BYTES;

use crate::checksum;
use crate::frame::FRAME_BYTES_LIMIT;
use crate::types::{Ballot, SegmentId, Slot};

/// The size of a record's header.
pub const RECORD_HEADER_BYTES: usize = 32;

/// What records are aligned to.
pub const RECORD_ALIGN: usize = RECORD_HEADER_BYTES;

const _: () = assert!(BLOCK_BYTES.is_multiple_of(RECORD_HEADER_BYTES)); // no record header straddles two blocks
const _: () = assert!(512_usize.is_multiple_of(RECORD_HEADER_BYTES)); // nor two sectors
const _: () = assert!(FRAME_BYTES_LIMIT <= 1 << 24); // a payload's length fits in three bytes

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum RecordKind {
    /// The replica's hard state (rule P2). Its ballot is the promised one; it has no slot.
    HardState = 1,
    /// A value accepted for a slot under a ballot.
    Accepted = 2,
    /// What was chosen for a slot.
    Chosen = 3,
}

impl RecordKind {
    fn from_tag(tag: u8) -> Option<Self> {
        match tag {
            1 => Some(Self::HardState),
            2 => Some(Self::Accepted),
            3 => Some(Self::Chosen),
            _ => None,
        }
    }
}

/// A record as it was appended, read from the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordRef<'a> {
    /// What it says.
    pub kind: RecordKind,
    /// The slot it is about; zero for a hard state.
    pub slot: Slot,
    /// The ballot it was appended with.
    pub ballot: Ballot,
    /// The bytes it was appended with.
    pub payload: &'a [u8],
}

/// Where a record lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Location {
    /// The segment.
    pub segment: SegmentId,
    /// Where in the segment the record's header begins.
    pub offset: u64,
    /// The length of header and payload.
    pub length: u32,
    /// The record's checksum: what is there may be whole, of the same slot, and older, if a write went astray.
    pub checksum: u32,
}

impl Location {
    /// The blocks to read, as offset and length, so that [`read_record`] finds the record in what was read.
    pub fn blocks(&self) -> (u64, usize) {
        let start = self.offset / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let end = (self.offset + u64::from(self.length)).next_multiple_of(BLOCK_BYTES as u64);
        (start, (end - start) as usize)
    }
}

/// Why bytes are not the record looked for. Nothing of it may be used; the value is to be had from the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordDamage {
    /// The header or the payload would end beyond the bytes given.
    #[error("the record would end beyond the bytes read")]
    Short,
    /// Its checksum is wrong.
    #[error("the record's checksum is wrong")]
    Checksum,
    /// Sound, but of a kind that this version does not know.
    #[error("the record's kind {tag} is unknown")]
    UnknownKind {
        /// The kind found.
        tag: u8,
    },
    /// Sound, but not the one that was written there last.
    #[error("the record is another one, about slot {slot}")]
    Other {
        /// The slot it is about.
        slot: Slot,
        /// Its checksum.
        checksum: u32,
    },
}

/// Reads the record of `slot` at `location` from `blocks`, the bytes that were read from `location.blocks()`.
pub fn read_record(blocks: &[u8], location: Location, slot: Slot) -> Result<RecordRef<'_>, RecordDamage> {
    let start = (location.offset - location.blocks().0) as usize;
    let bytes = blocks.get(start..start + location.length as usize).ok_or(RecordDamage::Short)?;
    let (record, _) = decode(bytes)?;
    let checksum = checksum_of(bytes);
    if (record.slot, checksum) != (slot, location.checksum) {
        return Err(RecordDamage::Other { slot: record.slot, checksum });
    }
    Ok(record)
}

/// What a payload takes in a frame, header and padding included.
pub(crate) fn padded_bytes(payload_bytes: usize) -> usize {
    (RECORD_HEADER_BYTES + payload_bytes).next_multiple_of(RECORD_ALIGN)
}

/// Writes a record to the start of `bytes`, which has room for it; gives what it took, padding included.
pub(crate) fn encode(bytes: &mut [u8], kind: RecordKind, slot: Slot, ballot: Ballot, parts: &[&[u8]]) -> usize {
    let mut end = RECORD_HEADER_BYTES;
    for part in parts {
        bytes[end..end + part.len()].copy_from_slice(part);
        end += part.len();
    }
    let length = (end - RECORD_HEADER_BYTES) as u32;
    assert!(length < 1 << 24, "a record is shorter than a frame");
    let padded = end.next_multiple_of(RECORD_ALIGN);
    bytes[end..padded].fill(0);
    bytes[4..8].copy_from_slice(&(length | u32::from(kind as u8) << 24).to_le_bytes());
    bytes[8..16].copy_from_slice(&slot.0.to_le_bytes());
    bytes[16..32].copy_from_slice(&ballot.0.to_le_bytes());
    let crc = crc32c::crc32c(&bytes[4..end]);
    bytes[..4].copy_from_slice(&crc.to_le_bytes());
    padded
}

/// From so many bytes on it takes longer to sum a record once more than to compute with the checksum it has.
const JOIN_BYTES_MIN: usize = 2048;

/// Continues the checksum of what is before `bytes`, a record as it was encoded with its padding, over all of it.
pub(crate) fn checksum_append(before: u32, bytes: &[u8]) -> u32 {
    if bytes.len() < JOIN_BYTES_MIN {
        return crc32c::crc32c_append(before, bytes);
    }
    let own = checksum_of(bytes);
    let header = bytes.first_chunk::<RECORD_HEADER_BYTES>().expect("a record has a header");
    let end = RECORD_HEADER_BYTES + length_of(header);
    let with_own = crc32c::crc32c_append(before, &own.to_le_bytes());
    crc32c::crc32c_append(checksum::joined(with_own, own, end - 4), &bytes[end..])
}

/// Reads and checks the record at the start of `bytes`; gives it with what it takes, padding included.
pub(crate) fn decode(bytes: &[u8]) -> Result<(RecordRef<'_>, usize), RecordDamage> {
    let Some(header) = bytes.first_chunk::<RECORD_HEADER_BYTES>() else { return Err(RecordDamage::Short) };
    let end = RECORD_HEADER_BYTES + length_of(header);
    if end > bytes.len() {
        return Err(RecordDamage::Short);
    }
    if crc32c::crc32c(&bytes[4..end]).to_le_bytes() != header[..4] {
        return Err(RecordDamage::Checksum);
    }
    let kind = RecordKind::from_tag(header[7]).ok_or(RecordDamage::UnknownKind { tag: header[7] })?;
    let slot = slot_of(header);
    let mut ballot = [0; 16];
    ballot.copy_from_slice(&header[16..]);
    let ballot = Ballot(u128::from_le_bytes(ballot));
    Ok((
        RecordRef { kind, slot, ballot, payload: &bytes[RECORD_HEADER_BYTES..end] },
        end.next_multiple_of(RECORD_ALIGN),
    ))
}

fn length_of(header: &[u8; RECORD_HEADER_BYTES]) -> usize {
    usize::from(header[4]) | usize::from(header[5]) << 8 | usize::from(header[6]) << 16
}

/// What the record at the start of these bytes says its checksum is.
fn checksum_of(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn slot_of(header: &[u8; RECORD_HEADER_BYTES]) -> Slot {
    let mut slot = [0; 8];
    slot.copy_from_slice(&header[8..16]);
    Slot(u64::from_le_bytes(slot))
}

/// A record's outline, without its payload being looked at.
pub(crate) struct Outline {
    /// Where in the payload of the frame it begins.
    pub(crate) offset: usize,
    /// What it says.
    pub(crate) kind: RecordKind,
    /// What it is about.
    pub(crate) slot: Slot,
    /// Header and payload.
    pub(crate) length: u32,
    /// Of both.
    pub(crate) checksum: u32,
}

/// The outlines of the records of a frame's payload that we wrote, or have checked, ourselves.
pub(crate) fn outlines(payload: &[u8]) -> impl Iterator<Item = Outline> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let header = payload[offset..].first_chunk::<RECORD_HEADER_BYTES>()?;
        let kind = RecordKind::from_tag(header[7]).expect("the record was encoded or checked before");
        let length = RECORD_HEADER_BYTES + length_of(header);
        let (slot, checksum) = (slot_of(header), checksum_of(header));
        let outline = Outline { offset, kind, slot, length: length as u32, checksum };
        offset += length.next_multiple_of(RECORD_ALIGN);
        Some(outline)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0xee; padded_bytes(payload.len())];
        let (head, tail) = payload.split_at(payload.len() / 2);
        let written = encode(&mut bytes, RecordKind::Accepted, Slot(8), Ballot(9 << 80), &[head, tail]);
        assert_eq!(written, bytes.len());
        bytes
    }

    #[test]
    fn reads_back_what_was_written() {
        for length in [0, 1, 31, 32, 33, 5000] {
            let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
            let bytes = encoded(&payload);
            let expected =
                RecordRef { kind: RecordKind::Accepted, slot: Slot(8), ballot: Ballot(9 << 80), payload: &payload };
            assert_eq!(decode(&bytes), Ok((expected, bytes.len())));
        }
    }

    #[test]
    fn a_frames_checksum_is_continued_over_a_record_of_any_length() {
        for length in [0, 5, JOIN_BYTES_MIN - RECORD_HEADER_BYTES, 5000, 8192, 100_000] {
            let bytes = encoded(&vec![7; length]);
            assert_eq!(checksum_append(99, &bytes), crc32c::crc32c_append(99, &bytes), "{length} bytes");
        }
    }

    #[test]
    fn every_flipped_bit_is_seen() {
        let mut bytes = encoded(b"twenty bytes of value");
        let sound = bytes.clone();
        for bit in 0..(RECORD_HEADER_BYTES + 21) * 8 {
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bytes).is_err(), "bit {bit}");
            bytes[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(bytes, sound);
    }

    #[test]
    fn a_record_is_read_from_its_blocks_only_for_its_slot() {
        let mut blocks = vec![0; 2 * BLOCK_BYTES];
        let payload = [5; 200];
        encode(&mut blocks[4000..], RecordKind::Chosen, Slot(3), Ballot(1), &[&payload]);
        let checksum = checksum_of(&blocks[4000..]);
        let location = Location { segment: SegmentId(1), offset: 3 * BLOCK_BYTES as u64 + 4000, length: 232, checksum };
        assert_eq!(location.blocks(), (3 * BLOCK_BYTES as u64, 2 * BLOCK_BYTES));
        assert_eq!(read_record(&blocks, location, Slot(3)).map(|record| record.payload), Ok(&payload[..]));
        let other = Err(RecordDamage::Other { slot: Slot(3), checksum });
        assert_eq!(read_record(&blocks, location, Slot(4)), other, "of another slot");
        let older = Location { checksum: checksum ^ 1, ..location };
        assert_eq!(read_record(&blocks, older, Slot(3)), other, "of the slot, and not what was written last");
        assert_eq!(read_record(&blocks[..BLOCK_BYTES], location, Slot(3)), Err(RecordDamage::Short));
        blocks[4100] ^= 1;
        assert_eq!(read_record(&blocks, location, Slot(3)), Err(RecordDamage::Checksum));
    }

    #[test]
    fn an_unknown_kind_is_told_from_rot() {
        let mut bytes = encoded(b"value");
        bytes[7] = 77;
        let crc = crc32c::crc32c(&bytes[4..RECORD_HEADER_BYTES + 5]);
        bytes[..4].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode(&bytes), Err(RecordDamage::UnknownKind { tag: 77 }));
        assert_eq!(decode(&[0; RECORD_HEADER_BYTES]), Err(RecordDamage::Checksum));
    }
}
