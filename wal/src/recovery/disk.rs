//! What recovery sees of a disk: segments it may trust to be ours, and at each place a frame, a part of one, or none.
//!
//! Nothing is believed here before its checksum, its owner and its place have been checked; what it means for the log
//! is decided by the table of the module above.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use synod_ring::{AlignedBuffer, BLOCK_BYTES};

use super::OpenError;
use crate::frame::{Begin, FRAME_BYTES_LIMIT, FRAME_HEADER_BYTES, FrameHeader, GENERATION_FIRST, HeaderError, MAGIC};
use crate::settings::Settings;
use crate::types::{CellId, FrameNumber, Identity, ReplicaId, SegmentId, StartId};
use crate::writer::{Live, Place, Segments};

/// How much is read at once. Frames are small; reading each by itself would take the disk's latency for each.
const WINDOW_BYTES: usize = 1 << 20;

const BLANK: [u8; BLOCK_BYTES] = [0; BLOCK_BYTES];

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
    /// No room, or no such segment yet.
    Absent,
    /// There should be something: the segment is missing though a later one is there, or it is a stranger's, or cut short.
    Gone,
    /// A block of zeros.
    Blank,
    /// Neither zeros nor a header of this log for this place.
    Garbage,
    /// What an earlier use of these blocks has left, or may have left: all sorts of things lie behind the last frame of a
    /// segment that was recycled, and a segment that was recycled and has not begun holds the frames of one cut off.
    Remains,
    /// A sound header of a frame before `k`, that no recycling explains.
    Earlier,
    /// The sound header of frame `k`, but its payload is not what it says.
    Torn,
    /// Frame `k`, whole, and the one that followed frame `k - 1`.
    Whole,
    /// The header of frame `k`, in its place, that followed another frame `k - 1` than the one read.
    Unfit,
    /// A sound header of a frame after `k`, or of a `k` that belongs elsewhere.
    Later,
}

/// A frame to go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) segment: SegmentId,
    pub(super) offset: u64,
    pub(super) number: FrameNumber,
}

/// What there is further on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Later {
    Nothing,
    /// A whole frame in its place, behind the one that is looked for.
    Frame(Found),
    /// Only a header, in the wrong place or without its payload: that the frame was durable, and nothing more.
    Header(FrameNumber),
}

/// A segment of this log, or one that nothing is known of.
#[derive(Clone, Copy)]
pub(super) struct Present {
    /// What its first block holds, if that is sound.
    header: Option<FrameHeader>,
    /// How much of it can be read, in whole blocks.
    bytes: u64,
}

/// The segments, read through a window.
pub(super) struct Disk<'a> {
    storage: &'a mut dyn Storage,
    settings: Settings,
    cell: CellId,
    replica: ReplicaId,
    /// Known from the first sound header; without one there is nothing to be taken for it either.
    pub(super) origin: Option<StartId>,
    /// The segments there are, strangers' left out.
    present: BTreeMap<SegmentId, Present>,
    /// The last of all.
    end: SegmentId,
    window: AlignedBuffer,
    window_segment: SegmentId,
    window_start: u64,
    window_bytes: usize,
}

impl<'a> Disk<'a> {
    /// Checks what can be told of each segment by itself: that it is there, how long it is, and whose. One that is not this
    /// log's counts as missing, unless none is.
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
            present: BTreeMap::new(),
            end: ids.last().copied().unwrap_or(SegmentId(0)),
            window: AlignedBuffer::zeroed(WINDOW_BYTES),
            window_segment: SegmentId(0),
            window_start: 0,
            window_bytes: 0,
        };
        disk.measure(&ids)?;
        let mut headers = Vec::with_capacity(ids.len());
        for &segment in &ids {
            let header = disk.first_header(segment)?;
            disk.present.get_mut(&segment).expect("it was measured").header = header;
            headers.extend(header.map(|header| (segment, header)));
        }
        disk.origin = disk.find_origin(&headers)?;
        disk.present.retain(|_, present| {
            present.header.is_none_or(|header| {
                (header.cell, header.replica, Some(header.origin)) == (disk.cell, disk.replica, disk.origin)
            })
        });
        Ok(disk)
    }

    /// A file that is shorter than a segment was cut short; if all are of another size, the settings are wrong.
    fn measure(&mut self, ids: &[SegmentId]) -> Result<(), OpenError> {
        let expected = self.settings.segment_bytes;
        let mut wrong = None;
        for &segment in ids {
            let found =
                self.storage.segment_bytes(segment).map_err(|source| OpenError::Read { segment, offset: 0, source })?;
            if found > expected {
                return Err(OpenError::WrongSize { segment, found, expected });
            }
            if found < expected {
                wrong.get_or_insert(OpenError::WrongSize { segment, found, expected });
            }
            let bytes = found / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
            self.present.insert(segment, Present { header: None, bytes });
        }
        match wrong {
            Some(error) if self.present.values().all(|present| present.bytes != expected) => Err(error),
            _ => Ok(()),
        }
    }

    /// The origin of most segments: a stranger's is seldom in the majority, and a tie is for a person to decide.
    fn find_origin(&self, headers: &[(SegmentId, FrameHeader)]) -> Result<Option<StartId>, OpenError> {
        let mut counts = BTreeMap::<u64, (usize, SegmentId)>::new();
        for (segment, header) in headers {
            if (header.cell, header.replica) == (self.cell, self.replica) {
                counts.entry(header.origin.0).or_insert((0, *segment)).0 += 1;
            }
        }
        let most = counts.values().map(|(count, _)| *count).max().unwrap_or(0);
        let mut leading = counts.iter().filter(|(_, (count, _))| *count == most);
        match (leading.next(), leading.next(), headers.first()) {
            (Some((origin, _)), None, _) => Ok(Some(StartId(*origin))),
            (Some(_), Some((_, (_, segment))), _) => Err(OpenError::OtherLog { segment: *segment }),
            (None, _, Some((segment, header))) if header.cell != self.cell => {
                Err(OpenError::OtherCell { segment: *segment, cell: header.cell })
            }
            (None, _, Some((segment, header))) => {
                Err(OpenError::OtherReplica { segment: *segment, replica: header.replica })
            }
            (None, _, None) => Ok(None),
        }
    }

    pub(super) fn segment_bytes(&self) -> u64 {
        self.settings.segment_bytes
    }

    /// Where to begin to read: right before the first frame that is needed, as the last frame that can be found says.
    pub(super) fn beginning(&mut self) -> Result<Place, OpenError> {
        let empty = Place::empty(&self.settings);
        let Some(newest) = self.newest()? else { return Ok(empty) };
        let Begin { segment, frame } = newest.begin;
        if newest.begin == Begin::UNCUT {
            return Ok(empty);
        }
        let opening = if self.is_gone(segment, 0) { None } else { self.header(segment, 0)? };
        let link = opening.filter(|(opening, _)| opening.number == frame).map(|(opening, _)| opening.previous);
        Ok(Place {
            segment: SegmentId(segment.0 - 1),
            last: FrameNumber(frame.0 - 1),
            link: link.unwrap_or_default(),
            begin: newest.begin,
            cut: newest.cut,
            ..empty
        })
    }

    /// The last whole frame in its place: what it says of the log's beginning, no later frame takes back.
    fn newest(&mut self) -> Result<Option<FrameHeader>, OpenError> {
        let segments: Vec<_> = self.present.iter().map(|(segment, present)| (*segment, present.bytes)).collect();
        for (segment, bytes) in segments.into_iter().rev() {
            let (mut newest, mut offset) = (None, 0);
            while offset < bytes {
                let frame = self.frame(segment, offset)?;
                offset += frame.map_or(BLOCK_BYTES, |header| header.frame_bytes()) as u64;
                newest = frame.or(newest);
            }
            if newest.is_some() {
                return Ok(newest);
            }
        }
        Ok(None)
    }

    /// The frame at a place, if it is whole and was written for this place and this use of the segment: no id is used twice.
    fn frame(&mut self, segment: SegmentId, offset: u64) -> Result<Option<FrameHeader>, OpenError> {
        let Some((header, _)) = self.header(segment, offset)? else { return Ok(None) };
        let is_in_place = (header.segment, header.offset) == (segment, offset);
        Ok(if is_in_place && self.is_whole(&header)? { Some(header) } else { None })
    }

    /// Whether all of a frame is there, by its header.
    fn is_whole(&mut self, header: &FrameHeader) -> Result<bool, OpenError> {
        let length = header.frame_bytes();
        if length > FRAME_BYTES_LIMIT || header.offset + length as u64 > self.settings.segment_bytes {
            return Ok(false);
        }
        let frame = self.bytes(header.segment, header.offset, length)?;
        let payload = &frame[FRAME_HEADER_BYTES..][..header.payload_bytes as usize];
        Ok(crc32c::crc32c(payload) == header.payload_crc)
    }

    /// Whether there should be something at a place of a segment that is not there any more.
    fn is_gone(&self, segment: SegmentId, offset: u64) -> bool {
        segment <= self.end && self.present.get(&segment).is_none_or(|present| offset >= present.bytes)
    }

    pub(super) fn is_cut_short(&self, segment: SegmentId) -> bool {
        self.present.get(&segment).is_some_and(|present| present.bytes < self.settings.segment_bytes)
    }

    /// The first segment behind this one that should be there and is not, or not as a whole.
    pub(super) fn first_gone_behind(&self, segment: SegmentId) -> Option<SegmentId> {
        (segment.0 + 1..=self.end.0)
            .map(SegmentId)
            .find(|segment| !self.present.contains_key(segment) || self.is_cut_short(*segment))
    }

    /// The headers of the segments that have begun under their present ids, in order.
    fn openings(&self) -> impl Iterator<Item = FrameHeader> {
        let own =
            |(segment, present): (&SegmentId, &Present)| present.header.filter(|header| header.segment == *segment);
        self.present.iter().filter_map(own)
    }

    /// What each segment is for: those behind the log's end are spare, those before its beginning free.
    pub(super) fn sort_segments(&mut self, live: VecDeque<Live>, end: &Place) -> Result<Segments, OpenError> {
        let mut segments = Segments { live, ..Segments::default() };
        segments.live.retain(|live| live.segment >= end.begin.segment);
        // Of what holds no sound header nothing is known, except whether it is blank.
        let unknown = self.openings().map(|header| header.generation).max().unwrap_or(GENERATION_FIRST).next();
        for (segment, Present { header, .. }) in self.present.clone() {
            let generation = header.map_or(unknown, |header| header.generation);
            if segment < end.begin.segment {
                segments.free.push_back((segment, generation));
            } else if segment > end.segment {
                // Where that one is there, too, it is a copy, or a write went astray: nothing is missing, and this one is spare.
                if let Some(header) = header.filter(|header| header.segment != segment)
                    && header.segment >= end.begin.segment
                    && !self.present.contains_key(&header.segment)
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
    fn first_header(&mut self, segment: SegmentId) -> Result<Option<FrameHeader>, OpenError> {
        if self.is_gone(segment, 0) {
            return Ok(None);
        }
        self.fill(segment, 0, BLOCK_BYTES)?;
        match FrameHeader::decode(&self.window[..BLOCK_BYTES]) {
            Ok((header, _)) => Ok(Some(header)),
            Err(HeaderError::Unsound) => Ok(None),
            Err(HeaderError::OtherVersion { version }) => Err(OpenError::OtherVersion { segment, version }),
        }
    }

    /// What is to be seen at a place where the frame behind `end` could begin.
    pub(super) fn look(&mut self, segment: SegmentId, offset: u64, end: &Place) -> Result<Sight, OpenError> {
        if segment == SegmentId(0) || segment > self.end || offset + BLOCK_BYTES as u64 > self.settings.segment_bytes {
            return Ok(Sight::Absent);
        }
        if self.is_gone(segment, offset) {
            return Ok(Sight::Gone);
        }
        if self.bytes(segment, offset, BLOCK_BYTES)? == BLANK {
            return Ok(Sight::Blank);
        }
        let is_recycled = offset > 0 && end.generation > GENERATION_FIRST;
        let Some((header, _)) = self.header(segment, offset)? else {
            return Ok(if is_recycled { Sight::Remains } else { Sight::Garbage });
        };
        if header.number <= end.last {
            // Of a segment that was cut off: no frame could name that beginning before it was free for reuse.
            let is_cut_off = header.segment < end.begin.segment && header.segment < segment;
            return Ok(if is_cut_off { Sight::Remains } else { Sight::Earlier });
        }
        let has_generation = offset == 0 || header.generation == end.generation;
        let belongs = (header.segment, header.offset) == (segment, offset) && has_generation;
        if header.number != end.last.next() || !belongs {
            return Ok(Sight::Later);
        }
        let length = header.frame_bytes();
        if length > FRAME_BYTES_LIMIT || offset + length as u64 > self.settings.segment_bytes {
            let what = "it says that it is longer than a frame can be";
            return Err(OpenError::Malformed { frame: header.number, segment, offset, what });
        }
        Ok(match (header.previous == end.link, self.is_whole(&header)?) {
            (false, _) => Sight::Unfit,
            (true, false) => Sight::Torn,
            (true, true) => Sight::Whole,
        })
    }

    /// The first frame to go on with behind the one after `end`, or else the first header that proves that there was one.
    pub(super) fn search(&mut self, end: &Place) -> Result<Later, OpenError> {
        let mut proof = Later::Nothing;
        let segments = self.present.range(end.segment..).map(|(segment, present)| (*segment, present.bytes));
        for (segment, bytes) in segments.collect::<Vec<_>>() {
            let mut offset = if segment == end.segment { end.offset } else { 0 };
            while offset < bytes {
                if let Some((header, _)) = self.header(segment, offset)?
                    && header.number > end.last
                {
                    let number = header.number;
                    let is_next = number == end.last.next();
                    if !is_next && self.frame(segment, offset)?.is_some() {
                        return Ok(Later::Frame(Found { segment, offset, number }));
                    }
                    // The very next frame may be torn, in either of the two places where it can be.
                    let is_first =
                        (segment, offset) == (end.segment, end.offset) || (segment, offset) == (end.segment.next(), 0);
                    let may_be_torn = is_next && is_first && (header.segment, header.offset) == (segment, offset);
                    if !may_be_torn && proof == Later::Nothing {
                        proof = Later::Header(number);
                    }
                }
                offset += BLOCK_BYTES as u64;
            }
        }
        Ok(proof)
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
        // What a file that was cut short does not have reads as zeros, which are no frame.
        let there = self.present.get(&segment).map_or(0, |present| present.bytes).saturating_sub(offset);
        let there = usize::try_from(there).map_or(length, |there| there.min(length));
        self.window[there..length].fill(0);
        self.storage.read(segment, offset, &mut self.window[..there]).map_err(|source| OpenError::Read {
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
