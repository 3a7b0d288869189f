//! Looks through segments that are written no more, while the log is in use: rot is found before a start has to.
//!
//! A closed segment holds its frames one behind the other, from the one that opens it up to the one that opens the next segment.
//! Whoever looks reads the file in a thread of its own, so the segment may be cut off and used again meanwhile: what was found
//! counts only if the log still [holds](crate::Log::holds) it.

use std::io;

use synod_ring::{AlignedBuffer, BLOCK_BYTES};

use crate::frame::{FRAME_HEADER_BYTES, FrameHeader};
use crate::types::{FrameNumber, Generation, SegmentId, Slot};

/// What is read at once.
const WINDOW_BYTES: usize = 256 << 10;
const _: () = assert!(WINDOW_BYTES.is_multiple_of(BLOCK_BYTES));

/// A segment of the log that is written no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Which.
    pub segment: SegmentId,
    /// The highest slot of its records, and of those in the segments before it: cut above that, the log begins behind it.
    pub last_slot: Slot,
    pub(crate) generation: Generation,
    /// The frame that opens it.
    pub(crate) opening: FrameNumber,
    /// The frame that opens the next one.
    pub(crate) end: FrameNumber,
}

/// Why a closed segment is not what was written.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A frame is not there, or not whole.
    #[error("frame {frame} at offset {offset} of segment {segment} is damaged")]
    Damaged {
        /// The first such frame; those behind it were not looked at.
        frame: FrameNumber,
        /// Where it is.
        segment: SegmentId,
        /// Where in the segment.
        offset: u64,
    },
    /// It cannot be read.
    #[error("segment {segment} cannot be read at offset {offset}")]
    Read {
        /// Which segment.
        segment: SegmentId,
        /// Where in it, about.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}

/// Reads bytes of the segment's file, a whole number of blocks at a block's boundary.
pub type ReadSegment<'a> = dyn FnMut(u64, &mut [u8]) -> io::Result<()> + 'a;

impl Closed {
    /// Reads it all and checks that every frame is there, whole, and follows the one before. Gives the frames' length in bytes.
    pub fn check(&self, segment_bytes: u64, read: &mut ReadSegment<'_>) -> Result<u64, CheckError> {
        let segment = self.segment;
        let buffer = AlignedBuffer::zeroed(WINDOW_BYTES);
        let mut window = Window { buffer, from: 0, length: 0, segment_bytes, read };
        let mut offset = 0;
        let mut previous = None;
        for number in self.opening.0..self.end.0 {
            let found = self.frame(FrameNumber(number), offset, previous, &mut window);
            let found = found.map_err(|source| CheckError::Read { segment, offset, source })?;
            let Some((bytes, checksum)) = found else {
                return Err(CheckError::Damaged { frame: FrameNumber(number), segment, offset });
            };
            offset += bytes;
            previous = Some(checksum);
        }
        Ok(offset)
    }

    /// The length and the checksum of the frame of this number, if it is at the offset as it was written.
    fn frame(
        &self,
        number: FrameNumber,
        offset: u64,
        previous: Option<u32>,
        window: &mut Window<'_, '_>,
    ) -> io::Result<Option<(u64, u32)>> {
        if offset + BLOCK_BYTES as u64 > window.segment_bytes {
            return Ok(None);
        }
        let Ok((header, checksum)) = FrameHeader::decode(window.bytes(offset, FRAME_HEADER_BYTES)?) else {
            return Ok(None);
        };
        let is_in_place = (header.segment, header.offset) == (self.segment, offset)
            && (header.number, header.generation) == (number, self.generation)
            && previous.is_none_or(|previous| header.previous.checksum == previous);
        let length = header.frame_bytes() as u64;
        if !is_in_place || offset + length > window.segment_bytes {
            return Ok(None);
        }
        let (mut at, mut left, mut crc) = (offset + FRAME_HEADER_BYTES as u64, header.payload_bytes as usize, 0);
        while left > 0 {
            let bytes = window.bytes(at, left)?;
            crc = crc32c::crc32c_append(crc, bytes);
            (at, left) = (at + bytes.len() as u64, left - bytes.len());
        }
        Ok((crc == header.payload_crc).then_some((length, checksum)))
    }
}

/// The part of the file that was read last.
struct Window<'a, 'b> {
    buffer: AlignedBuffer,
    from: u64,
    length: usize,
    segment_bytes: u64,
    read: &'a mut ReadSegment<'b>,
}

impl Window<'_, '_> {
    /// The bytes from an offset on: some of them, so many at most. A header is never cut in two.
    fn bytes(&mut self, offset: u64, most: usize) -> io::Result<&[u8]> {
        if !(self.from..self.from + self.length as u64).contains(&offset) {
            let from = offset - offset % BLOCK_BYTES as u64;
            let length = WINDOW_BYTES.min((self.segment_bytes - from) as usize);
            // If the read fails the buffer holds nothing.
            self.length = 0;
            (self.read)(from, &mut self.buffer[..length])?;
            (self.from, self.length) = (from, length);
        }
        let at = (offset - self.from) as usize;
        Ok(&self.buffer[at..self.length.min(at + most)])
    }
}
