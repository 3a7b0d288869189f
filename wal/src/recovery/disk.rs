//! What recovery sees of a disk: segments it may trust to be ours, and at each place a frame, a part of one, or none.
//!
//! Nothing is believed here before its checksum, its owner and its place have been checked; what it means for the log
//! is decided by the table of the module above.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use synod_ring::{AlignedBuffer, BLOCK_BYTES};

use super::OpenError;
use crate::frame::{FRAME_BYTES_LIMIT, FRAME_HEADER_BYTES, FrameHeader, GENERATION_FIRST, HeaderError, MAGIC};
use crate::settings::Settings;
use crate::types::{CellId, FrameNumber, Identity, ReplicaId, SegmentId, StartId};
use crate::writer::{Live, Place, Segments};

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
    /// What an earlier use of these blocks has left, or may have left: all sorts of things lie behind the last frame of a
    /// segment that was recycled, and a segment that was recycled and has not begun holds the frames of one cut off.
    Remains,
    /// A sound header of a frame before `k`, that no recycling explains.
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
    /// The segments there are, and what their first blocks hold.
    pub(super) present: BTreeMap<SegmentId, Option<FrameHeader>>,
    /// The first of those without a gap behind it.
    pub(super) dense_from: SegmentId,
    /// The last.
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
        let last = ids.last().copied().unwrap_or(SegmentId(0));
        let mut disk = Self {
            storage,
            settings,
            cell: identity.cell,
            replica: identity.replica,
            origin: None,
            present: BTreeMap::new(),
            dense_from: last,
            segments: last.0,
            window: AlignedBuffer::zeroed(WINDOW_BYTES),
            window_segment: SegmentId(0),
            window_start: 0,
            window_bytes: 0,
        };
        for &segment in &ids {
            let found =
                disk.storage.segment_bytes(segment).map_err(|source| OpenError::Read { segment, offset: 0, source })?;
            if found != settings.segment_bytes {
                return Err(OpenError::WrongSize { segment, found, expected: settings.segment_bytes });
            }
            let header = disk.check_owner(segment)?;
            disk.present.insert(segment, header);
        }
        while disk.dense_from > SegmentId(1) && disk.present.contains_key(&SegmentId(disk.dense_from.0 - 1)) {
            disk.dense_from.0 -= 1;
        }
        Ok(disk)
    }

    /// Where to begin to read: right before the first frame that is needed, as far as the newest segment tells. That
    /// nothing needed is missing before it is known when all has been read.
    pub(super) fn beginning(&mut self) -> Result<Place, OpenError> {
        let empty = Place::empty(&self.settings);
        // An opening frame that is torn was never durable, and what it says of the log's beginning may not be so either.
        let own: Vec<FrameHeader> = self.openings().collect();
        let mut whole = Vec::with_capacity(own.len());
        for header in &own {
            if self.is_whole(header)? {
                whole.push(*header);
            }
        }
        let first_needed = match whole.last() {
            Some(newest) => self.last_begin_in(newest)?,
            None => SegmentId(1),
        };
        let from = first_needed.max(self.dense_from);
        let Some(start) = whole.iter().find(|header| header.segment >= from) else {
            // Not one segment of those that should be read has begun.
            if self.dense_from <= SegmentId(1) {
                return Ok(empty);
            }
            if let Some(torn) = own.iter().find(|header| header.segment >= from) {
                let FrameHeader { segment, number, .. } = *torn;
                return Err(OpenError::Damaged { frame: number, segment, offset: 0, later: number });
            }
            let last_begun = own.last().map_or(SegmentId(0), |header| header.segment);
            return Err(self.missing_from(last_begun.next(), self.dense_from));
        };
        if start.segment == SegmentId(1) {
            return Ok(empty);
        }
        Ok(Place {
            segment: SegmentId(start.segment.0 - 1),
            last: FrameNumber(start.number.0 - 1),
            link: start.previous,
            generation: start.generation,
            begin: start.begin,
            cut: start.cut,
            ..empty
        })
    }

    /// The beginning that the last frame of a segment names, as far as they are whole and follow each other: what is
    /// before is not read, so that damage there harms nobody.
    fn last_begin_in(&mut self, opening: &FrameHeader) -> Result<SegmentId, OpenError> {
        let segment = opening.segment;
        let (mut last, mut offset) = (*opening, 0);
        let mut checksum = None;
        while offset + BLOCK_BYTES as u64 <= self.settings.segment_bytes {
            let Some((header, found)) = self.header(segment, offset)? else { break };
            let length = header.frame_bytes();
            let belongs = (header.segment, header.generation) == (segment, opening.generation);
            let follows = checksum.is_none_or(|checksum| header.previous.checksum == checksum);
            if !belongs
                || !follows
                || length > FRAME_BYTES_LIMIT
                || offset + length as u64 > self.settings.segment_bytes
            {
                break;
            }
            let payload = &self.bytes(segment, offset, length)?[FRAME_HEADER_BYTES..][..header.payload_bytes as usize];
            if crc32c::crc32c(payload) != header.payload_crc {
                break;
            }
            (last, checksum) = (header, Some(found));
            offset += length as u64;
        }
        Ok(last.begin.segment)
    }

    /// The log was read from `start` on: whether it was cut there, or something is lost before.
    pub(super) fn check_beginning(&mut self, start: SegmentId, end: &Place) -> Result<(), OpenError> {
        let needed = end.begin.segment;
        if start <= needed {
            return Ok(());
        }
        if (needed.0..start.0).any(|segment| !self.present.contains_key(&SegmentId(segment))) {
            return Err(self.missing_from(needed, start));
        }
        if let Some(Some(header)) = self.present.get(&needed)
            && header.segment != needed
        {
            let (holds, generation) = (header.segment, header.generation);
            return Err(OpenError::Misplaced { segment: needed, holds, generation });
        }
        let frame = end.begin.frame;
        let later = self.scan(needed, BLOCK_BYTES as u64, frame)?.unwrap_or(end.last);
        Err(OpenError::Damaged { frame, segment: needed, offset: 0, later })
    }

    fn missing_from(&self, from: SegmentId, later: SegmentId) -> OpenError {
        let mut segment = from;
        while self.present.contains_key(&segment) {
            segment = segment.next();
        }
        OpenError::Missing { segment, later }
    }

    /// The headers of the segments that have begun under their present ids, in order.
    fn openings(&self) -> impl Iterator<Item = FrameHeader> {
        self.present.iter().filter_map(|(segment, header)| header.filter(|header| header.segment == *segment))
    }

    fn is_whole(&mut self, opening: &FrameHeader) -> Result<bool, OpenError> {
        let length = opening.frame_bytes();
        if length > FRAME_BYTES_LIMIT || length as u64 > self.settings.segment_bytes {
            return Ok(false);
        }
        // No more than the frame: there may be hundreds of segments.
        self.fill(opening.segment, 0, length)?;
        let payload = &self.window[FRAME_HEADER_BYTES..][..opening.payload_bytes as usize];
        Ok(crc32c::crc32c(payload) == opening.payload_crc)
    }

    /// What each segment is for: those behind the log's end are spare, those before its beginning free.
    pub(super) fn sort_segments(&mut self, live: VecDeque<Live>, end: &Place) -> Result<Segments, OpenError> {
        let mut segments = Segments { live, ..Segments::default() };
        segments.live.retain(|live| live.segment >= end.begin.segment);
        // Of what holds no sound header nothing is known, except whether it is blank.
        let unknown = self.openings().map(|header| header.generation).max().unwrap_or(GENERATION_FIRST).next();
        for (segment, header) in self.present.clone() {
            let generation = header.map_or(unknown, |header| header.generation);
            if segment < end.begin.segment {
                segments.free.push_back((segment, generation));
            } else if segment > end.segment {
                if let Some(header) = header.filter(|header| header.segment != segment)
                    && header.segment >= end.begin.segment
                {
                    return Err(OpenError::Misplaced { segment, holds: header.segment, generation });
                }
                let is_blank = self.bytes(segment, 0, BLOCK_BYTES)?.iter().all(|byte| *byte == 0);
                segments.spares.push_back(match header {
                    _ if is_blank => GENERATION_FIRST,
                    Some(_) => generation.next(),
                    None => generation,
                });
            }
        }
        Ok(segments)
    }

    /// Only a segment's first block is asked for its owner and version: no client's bytes ever get there.
    fn check_owner(&mut self, segment: SegmentId) -> Result<Option<FrameHeader>, OpenError> {
        self.fill(segment, 0, BLOCK_BYTES)?;
        let header = match FrameHeader::decode(&self.window[..BLOCK_BYTES]) {
            Ok((header, _)) => header,
            Err(HeaderError::Unsound) => return Ok(None),
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
        // A lower one is what a recycled file holds until it is written again; whether it is one is seen later.
        if header.segment > segment {
            return Err(OpenError::Misplaced { segment, holds: header.segment, generation });
        }
        Ok(Some(header))
    }

    /// What is to be seen at a place where the frame behind `end` could begin.
    pub(super) fn look(&mut self, segment: SegmentId, offset: u64, end: &Place) -> Result<Sight, OpenError> {
        let exists = self.dense_from <= segment && segment.0 <= self.segments;
        if segment == SegmentId(0) || !exists || offset + BLOCK_BYTES as u64 > self.settings.segment_bytes {
            return Ok(Sight::Absent);
        }
        if self.bytes(segment, offset, BLOCK_BYTES)?.iter().all(|byte| *byte == 0) {
            return Ok(Sight::Blank);
        }
        let is_recycled = offset > 0 && end.generation > GENERATION_FIRST;
        let Some((header, _)) = self.header(segment, offset)? else {
            return Ok(if is_recycled { Sight::Remains } else { Sight::Garbage });
        };
        if header.number <= end.last {
            // Of a segment that was cut off: no frame could name that beginning before it was free for reuse.
            let is_cut_off = header.segment < end.begin.segment && header.segment < segment;
            return Ok(if is_cut_off { Sight::Remains } else { Sight::Earlier(header.number) });
        }
        let follows = header.number == end.last.next() && header.previous == end.link;
        let has_generation = offset == 0 || header.generation == end.generation;
        let belongs = (header.segment, header.offset) == (segment, offset) && has_generation;
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
        if !self.present.contains_key(&segment) {
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
