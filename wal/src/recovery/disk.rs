//! What recovery sees of a disk: segments it may trust to be ours, and at each place a frame, a part of one, or none.
//!
//! Nothing is believed here before its checksum, its owner and its place have been checked; what it means for the log
//! is decided by the table of the module above.

use std::io;

use synod_ring::{AlignedBuffer, BLOCK_BYTES};

use super::OpenError;
use crate::frame::{FRAME_BYTES_LIMIT, FRAME_HEADER_BYTES, FrameHeader, GENERATION_FIRST, HeaderError, MAGIC};
use crate::settings::Settings;
use crate::types::{CellId, FrameNumber, Identity, ReplicaId, SegmentId, StartId};
use crate::writer::Place;

/// How much is read at once. Frames are small; reading each by itself would take the disk's latency for each.
const WINDOW_BYTES: usize = 1 << 20;

/// What recovery needs of a disk. Segments are all of one size; what is read was written, or is zeros.
pub trait Storage {
    /// The segments there are, in any order.
    fn segments(&mut self) -> io::Result<Vec<SegmentId>>;

    /// The size of a segment.
    fn segment_bytes(&mut self, segment: SegmentId) -> io::Result<u64>;

    /// Fills all of `into` from `offset`. The memory, the length and the offset are in whole blocks, and within the
    /// segment.
    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Makes durable what was read, in case it was only in a cache.
    fn sync(&mut self, segment: SegmentId) -> io::Result<()>;
}

/// What is to be seen at a place where frame `k` could begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sight {
    /// No room, or no such segment.
    Absent,
    /// A block of zeros.
    Blank,
    /// Neither zeros nor a header of this log for this place.
    Garbage,
    /// A sound header of a frame before `k`.
    Earlier(FrameNumber),
    /// The sound header of frame `k`, but its payload is not what it says.
    Torn,
    /// Frame `k`, whole, and the one that followed frame `k - 1`.
    Whole,
    /// A sound header of a frame after `k`, or of a `k` that did not follow our `k - 1` or belongs elsewhere.
    Later(FrameNumber),
}

/// The segments, read through a window.
pub(super) struct Disk<'a> {
    storage: &'a mut dyn Storage,
    settings: Settings,
    cell: CellId,
    replica: ReplicaId,
    /// Known from the first sound header; without one there is nothing to be taken for it either.
    pub(super) origin: Option<StartId>,
    /// Segments 1 to this one exist.
    pub(super) segments: u64,
    window: AlignedBuffer,
    window_segment: SegmentId,
    window_start: u64,
    window_bytes: usize,
}

impl<'a> Disk<'a> {
    /// Checks what can be told of each segment by itself: that it is there, its size, and whose it is.
    pub(super) fn open(
        storage: &'a mut dyn Storage,
        settings: Settings,
        identity: &Identity,
    ) -> Result<Self, OpenError> {
        let mut ids = storage.segments().map_err(|source| OpenError::List { source })?;
        ids.sort_unstable();
        ids.dedup();
        let mut disk = Self {
            storage,
            settings,
            cell: identity.cell,
            replica: identity.replica,
            origin: None,
            segments: ids.len() as u64,
            window: AlignedBuffer::zeroed(WINDOW_BYTES),
            window_segment: SegmentId(0),
            window_start: 0,
            window_bytes: 0,
        };
        for (expected, &segment) in (1..).map(SegmentId).zip(&ids) {
            if segment != expected {
                return Err(OpenError::Missing { segment: expected, later: segment });
            }
            let found =
                disk.storage.segment_bytes(segment).map_err(|source| OpenError::Read { segment, offset: 0, source })?;
            if found != settings.segment_bytes {
                return Err(OpenError::WrongSize { segment, found, expected: settings.segment_bytes });
            }
            disk.check_owner(segment)?;
        }
        Ok(disk)
    }

    /// Only a segment's first block is asked for its owner and version: no client's bytes ever get there.
    fn check_owner(&mut self, segment: SegmentId) -> Result<(), OpenError> {
        self.fill(segment, 0, BLOCK_BYTES)?;
        let header = match FrameHeader::decode(&self.window[..BLOCK_BYTES]) {
            Ok((header, _)) => header,
            Err(HeaderError::Unsound) => return Ok(()),
            Err(HeaderError::Newer { version }) => return Err(OpenError::NewerVersion { segment, version }),
        };
        let FrameHeader { cell, replica, generation, .. } = header;
        if cell != self.cell {
            return Err(OpenError::OtherCell { segment, cell });
        }
        if replica != self.replica {
            return Err(OpenError::OtherReplica { segment, replica });
        }
        if *self.origin.get_or_insert(header.origin) != header.origin {
            return Err(OpenError::OtherLog { segment });
        }
        if header.segment != segment || generation != GENERATION_FIRST {
            return Err(OpenError::Misplaced { segment, holds: header.segment, generation });
        }
        Ok(())
    }

    /// What is to be seen at a place where the frame behind `end` could begin.
    pub(super) fn look(&mut self, segment: SegmentId, offset: u64, end: &Place) -> Result<Sight, OpenError> {
        let exists = (1..=self.segments).contains(&segment.0);
        if !exists || offset + BLOCK_BYTES as u64 > self.settings.segment_bytes {
            return Ok(Sight::Absent);
        }
        if self.bytes(segment, offset, BLOCK_BYTES)?.iter().all(|byte| *byte == 0) {
            return Ok(Sight::Blank);
        }
        let Some((header, _)) = self.header(segment, offset)? else { return Ok(Sight::Garbage) };
        if header.number <= end.last {
            return Ok(Sight::Earlier(header.number));
        }
        let follows = header.number == end.last.next() && header.previous == end.link;
        let belongs = (header.segment, header.generation, header.offset) == (segment, GENERATION_FIRST, offset);
        if !follows || !belongs {
            return Ok(Sight::Later(header.number));
        }
        let length = header.frame_bytes();
        if length > FRAME_BYTES_LIMIT || offset + length as u64 > self.settings.segment_bytes {
            let what = "it says that it is longer than a frame can be";
            return Err(OpenError::Malformed { frame: header.number, segment, offset, what });
        }
        let payload = &self.bytes(segment, offset, length)?[FRAME_HEADER_BYTES..][..header.payload_bytes as usize];
        Ok(if crc32c::crc32c(payload) == header.payload_crc { Sight::Whole } else { Sight::Torn })
    }

    /// The number of the first sound header after `last`, from `offset` to the end of the segment.
    pub(super) fn scan(
        &mut self,
        segment: SegmentId,
        offset: u64,
        last: FrameNumber,
    ) -> Result<Option<FrameNumber>, OpenError> {
        if segment == SegmentId(0) {
            return Ok(None);
        }
        let mut offset = offset;
        while offset < self.settings.segment_bytes {
            if let Some((header, _)) = self.header(segment, offset)?
                && header.number > last
            {
                return Ok(Some(header.number));
            }
            offset += BLOCK_BYTES as u64;
        }
        Ok(None)
    }

    /// The header of a frame of this log at a place, and its checksum. That it was meant for this place is not asked: a
    /// write that the device has sent astray was told to be durable, too.
    pub(super) fn header(&mut self, segment: SegmentId, offset: u64) -> Result<Option<(FrameHeader, u32)>, OpenError> {
        let block = self.bytes(segment, offset, BLOCK_BYTES)?;
        if block[..MAGIC.len()] != MAGIC {
            return Ok(None);
        }
        let Ok((header, checksum)) = FrameHeader::decode(block) else { return Ok(None) };
        let ours = header.cell == self.cell
            && header.replica == self.replica
            && self.origin.is_none_or(|origin| origin == header.origin);
        Ok(ours.then_some((header, checksum)))
    }

    /// `length` bytes of a segment, by way of the window.
    pub(super) fn bytes(&mut self, segment: SegmentId, offset: u64, length: usize) -> Result<&[u8], OpenError> {
        let end = offset + length as u64;
        let window_end = self.window_start + self.window_bytes as u64;
        if segment != self.window_segment || offset < self.window_start || end > window_end {
            let rest = usize::try_from(self.settings.segment_bytes - offset).expect("a segment fits in memory");
            self.fill(segment, offset, length.max(WINDOW_BYTES.min(rest)))?;
        }
        let start = (offset - self.window_start) as usize;
        Ok(&self.window[start..start + length])
    }

    fn fill(&mut self, segment: SegmentId, offset: u64, length: usize) -> Result<(), OpenError> {
        if self.window.len() < length {
            self.window = AlignedBuffer::zeroed(length);
        }
        self.window_segment = SegmentId(0);
        self.storage.read(segment, offset, &mut self.window[..length]).map_err(|source| OpenError::Read {
            segment,
            offset,
            source,
        })?;
        (self.window_segment, self.window_start, self.window_bytes) = (segment, offset, length);
        Ok(())
    }

    pub(super) fn sync(&mut self, segment: SegmentId) -> Result<(), OpenError> {
        self.storage.sync(segment).map_err(|source| OpenError::Read { segment, offset: 0, source })
    }
}
