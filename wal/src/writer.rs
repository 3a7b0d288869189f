//! The log's writer: records in, frames out, and the knowledge of what is durable.
//!
//! It does no I/O. Records are copied once, into the frame being filled; [`Log::seal`] hands out one frame at a time as
//! a [`Flush`] for the caller to carry out, and [`Log::flushed`] takes it back. That is serial group commit: while a
//! flush is under way the next frame fills, and what is beyond one frame queues in further ones. A flush that failed is
//! not taken back: the log then hands out nothing more, and the replica stops voting (rule L2).
//!
//! Invariants:
//!   - one frame in flight at most, so after a crash at most one frame is torn (recovery leans on it);
//!   - a frame is written right behind the last one, or at the start of the next segment: never onto blocks that hold
//!     a sound frame (rule L1);
//!   - every segment begins with a frame that repeats the hard state as of all frames before (rule P2);
//!   - `durable <= sealed <= appended`.

use std::collections::VecDeque;
use std::ops::Range;

use synod_ring::{AlignedBuffer, BLOCK_BYTES};

use crate::frame::{FLAG_MARK, FLAG_OPENING, FRAME_HEADER_BYTES, FrameHeader, GENERATION_FIRST, Link, Summary};
use crate::index::SlotIndex;
use crate::record::{self, Location, RecordKind};
use crate::settings::{HARD_STATE_BYTES_MAX, OPENING_BYTES_MAX, RESERVE_SEGMENTS, Settings};
use crate::types::{Ballot, FrameNumber, Identity, Incarnation, RecordNumber, SegmentId, Slot, StartId};

/// How many segments are kept ready beyond the one in use. One would do, were it not for a disk that stalls while the
/// next is being made.
pub const SPARE_SEGMENTS: u64 = 2;

/// How many frame buffers are kept for reuse: one in flight, one filling, and some for a backlog. More are made when a
/// backlog needs them, and given back after it.
const POOL_BUFFERS: usize = 4;

/// One write to carry out: `buffer[..length]` to `offset` of `segment`, and then a sync. All are whole blocks.
#[derive(Debug)]
pub struct Flush {
    /// Where to.
    pub segment: SegmentId,
    /// Where in the segment.
    pub offset: u64,
    /// What: its first `length` bytes. Goes back to [`Log::flushed`].
    pub buffer: AlignedBuffer,
    /// How much.
    pub length: usize,
}

/// The log's writer. The module's page tells how it works.
pub struct Log {
    settings: Settings,
    identity: Identity,
    origin: StartId,
    place: Place,
    /// Segments up to this one exist; those after `place.segment` are blank.
    ready: SegmentId,
    queue: VecDeque<Filling>,
    in_flight: Option<InFlight>,
    pool: Vec<AlignedBuffer>,
    /// The last hard state sealed, as the encoded record; empty if there is none. One still queued is not repeated: it
    /// would overtake what was appended before it.
    hard_state: Vec<u8>,
    mark_wanted: bool,
    appended: RecordNumber,
    sealed: RecordNumber,
    durable: RecordNumber,
    durable_frame: FrameNumber,
    index: SlotIndex,
}

/// Where the log ends: what the next frame follows, and where it goes if it fits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    /// Zero before the first segment has begun.
    pub(crate) segment: SegmentId,
    /// The segment's size where the next frame is to begin the next segment in any case.
    pub(crate) offset: u64,
    pub(crate) last: FrameNumber,
    pub(crate) last_flags: u16,
    pub(crate) link: Link,
}

impl Place {
    /// The place before the first frame of an empty log.
    pub(crate) fn empty(settings: &Settings) -> Self {
        let link = Link::default();
        Self { segment: SegmentId(0), offset: settings.segment_bytes, last: FrameNumber(0), last_flags: 0, link }
    }
}

/// A frame being filled.
struct Filling {
    buffer: AlignedBuffer,
    used: usize,
    upto: RecordNumber,
    summary: Summary,
    /// The last hard state in it.
    hard_state: Option<Range<usize>>,
}

impl Filling {
    fn new(buffer: AlignedBuffer) -> Self {
        let upto = RecordNumber(0);
        Self { buffer, used: FRAME_HEADER_BYTES, upto, summary: Summary::default(), hard_state: None }
    }

    fn frame_bytes(&self) -> usize {
        self.used.next_multiple_of(BLOCK_BYTES)
    }
}

struct InFlight {
    segment: SegmentId,
    offset: u64,
    used: usize,
    number: FrameNumber,
    upto: RecordNumber,
    /// To see that it is this very buffer that comes back: the index is read from it.
    address: usize,
}

/// An empty log, for a directory without segments. Its first segment is wanted at once.
pub fn create(settings: Settings, identity: Identity) -> Log {
    let place = Place::empty(&settings);
    Log::resume(settings, identity, identity.start, place, SegmentId(0), Vec::new(), SlotIndex::default())
}

impl Log {
    pub(crate) fn resume(
        settings: Settings,
        identity: Identity,
        origin: StartId,
        place: Place,
        ready: SegmentId,
        hard_state: Vec<u8>,
        index: SlotIndex,
    ) -> Self {
        assert_eq!(settings.validate(), Ok(settings), "a log is made with settings that were validated");
        let zero = RecordNumber(0);
        Self {
            settings,
            identity,
            origin,
            place,
            ready,
            queue: VecDeque::new(),
            in_flight: None,
            pool: Vec::with_capacity(POOL_BUFFERS),
            hard_state,
            mark_wanted: false,
            appended: zero,
            sealed: zero,
            durable: zero,
            durable_frame: place.last,
            index,
        }
    }

    /// Appends a record about a slot; `payload_parts` are put together on the way. It is durable once `durable()` has
    /// reached the number given.
    ///
    /// What queues is bounded by the caller, who sees it grow in `unflushed_bytes()` (rule P7): here there is no one to
    /// refuse it to.
    pub fn append(&mut self, kind: RecordKind, slot: Slot, ballot: Ballot, payload_parts: &[&[u8]]) -> RecordNumber {
        assert!(kind != RecordKind::HardState, "hard state has its own way in: it is repeated in each segment");
        assert!(slot != Slot(0), "slots are counted from 1");
        let filling = self.push(kind, slot, ballot, payload_parts);
        filling.summary.add(slot, ballot);
        filling.upto
    }

    /// Appends the hard state. The last one is repeated at the start of each segment (rule P2).
    pub fn append_hard_state(&mut self, promised: Ballot, payload: &[u8]) -> RecordNumber {
        assert!(payload.len() <= HARD_STATE_BYTES_MAX, "a hard state fits in the frame that opens a segment");
        let filling = self.push(RecordKind::HardState, Slot(0), promised, &[payload]);
        filling.summary.add_hard_state(promised);
        filling.hard_state = Some(filling.used - record::padded_bytes(payload.len())..filling.used);
        filling.upto
    }

    /// Copies a record into the frame being filled, or into a new one if it does not fit there.
    fn push(&mut self, kind: RecordKind, slot: Slot, ballot: Ballot, parts: &[&[u8]]) -> &mut Filling {
        let payload_bytes = parts.iter().map(|part| part.len()).sum();
        let record_bytes = record::padded_bytes(payload_bytes);
        assert!(payload_bytes <= self.settings.payload_bytes_max(), "a record fits in a frame");
        let frame_bytes_max = self.settings.frame_bytes_max;
        if self.queue.back().is_none_or(|filling| filling.used + record_bytes > frame_bytes_max) {
            let filling = Filling::new(self.take_buffer());
            self.queue.push_back(filling);
        }
        self.appended.0 += 1;
        let filling = self.queue.back_mut().expect("there is a frame being filled");
        filling.used += record::encode(&mut filling.buffer[filling.used..], kind, slot, ballot, parts);
        filling.upto = self.appended;
        filling
    }

    /// Hands out the next frame to write, if it is time for one: no flush is under way, something is queued, and the
    /// segment it goes to is ready. Never waits: call again after `flushed` and `segment_ready`.
    ///
    /// It may be a frame that only opens the next segment; the queued records then follow with the next call.
    pub fn seal(&mut self) -> Option<Flush> {
        if self.in_flight.is_some() {
            return None;
        }
        let length = match self.queue.front() {
            Some(filling) => filling.frame_bytes(),
            None if self.mark_wanted => BLOCK_BYTES,
            None => return None,
        };
        if self.place.offset + length as u64 > self.settings.segment_bytes {
            return self.open_next_segment();
        }
        // Whatever is written now follows the last frame, as a mark would.
        self.mark_wanted = false;
        let filling = self.queue.pop_front();
        let flags = if filling.is_some() { 0 } else { FLAG_MARK };
        let filling = filling.unwrap_or_else(|| self.empty_frame());
        Some(self.hand_out(filling, flags))
    }

    /// A frame of its own, so that the rule holds whatever the next frame is and however full.
    fn open_next_segment(&mut self) -> Option<Flush> {
        let next = self.place.segment.next();
        if next > self.ready {
            return None;
        }
        (self.place.segment, self.place.offset) = (next, 0);
        if self.queue.is_empty() {
            self.mark_wanted = false;
        }
        let mut filling = self.empty_frame();
        if !self.hard_state.is_empty() {
            let end = filling.used + self.hard_state.len();
            filling.buffer[filling.used..end].copy_from_slice(&self.hard_state);
            filling.used = end;
            filling.summary.records = 1;
        }
        Some(self.hand_out(filling, FLAG_OPENING))
    }

    fn empty_frame(&mut self) -> Filling {
        let mut filling = Filling::new(self.take_buffer());
        filling.upto = self.sealed;
        filling
    }

    /// Completes the frame with padding and header, and moves the log's end behind it.
    fn hand_out(&mut self, mut filling: Filling, flags: u16) -> Flush {
        let length = filling.frame_bytes();
        let used = filling.used;
        // The buffer has been used before; a reader of padding should find nothing there.
        filling.buffer[used..length].fill(0);
        let payload = &filling.buffer[FRAME_HEADER_BYTES..used];
        let mut summary = filling.summary;
        match &filling.hard_state {
            Some(range) => {
                self.hard_state.clear();
                self.hard_state.extend_from_slice(&filling.buffer[range.clone()]);
            }
            None => summary.promised = self.place.link.summary.promised,
        }
        let header = FrameHeader {
            cell: self.identity.cell,
            replica: self.identity.replica,
            flags,
            records: summary.records,
            incarnation: self.identity.incarnation,
            start: self.identity.start,
            origin: self.origin,
            segment: self.place.segment,
            generation: GENERATION_FIRST,
            offset: self.place.offset,
            number: self.place.last.next(),
            durable: self.durable_frame,
            payload_bytes: u32::try_from(payload.len()).expect("a frame is shorter than 4 GiB"),
            payload_crc: crc32c::crc32c(payload),
            previous: self.place.link,
        };
        let checksum = header.encode(&mut filling.buffer);
        assert_eq!(header.durable, self.place.last, "serial: a frame is sealed when the one before is durable");
        let (segment, offset) = (self.place.segment, self.place.offset);
        self.place.offset += length as u64;
        self.place.last = header.number;
        self.place.last_flags = flags;
        self.place.link = Link { checksum, summary };
        assert!(self.place.offset <= self.settings.segment_bytes);
        self.sealed = filling.upto;
        let address = filling.buffer.as_ptr().addr();
        self.in_flight = Some(InFlight { segment, offset, used, number: header.number, upto: filling.upto, address });
        Flush { segment, offset, buffer: filling.buffer, length }
    }

    /// The flush under way has succeeded as a whole, write and sync (rule L2). Gives what is durable by now.
    pub fn flushed(&mut self, buffer: AlignedBuffer) -> RecordNumber {
        let flight = self.in_flight.take().expect("a flush is under way");
        assert_eq!(buffer.as_ptr().addr(), flight.address, "the buffer is the one handed out");
        let payload = &buffer[FRAME_HEADER_BYTES..flight.used];
        let base = flight.offset + FRAME_HEADER_BYTES as u64;
        self.index.note(flight.segment, base, record::outlines(payload));
        self.durable = flight.upto;
        self.durable_frame = flight.number;
        if self.pool.len() < POOL_BUFFERS {
            self.pool.push(buffer);
        }
        self.durable
    }

    /// Asks for an empty frame behind the last one, so that later damage to that one can be told from a torn tail
    /// (rule L4): for when the log is idle, and before a clean stop. Does nothing when it would prove nothing.
    pub fn mark(&mut self) {
        let proves_something = self.place.last_flags & (FLAG_MARK | FLAG_OPENING) == 0;
        if proves_something && self.place.last != FrameNumber(0) && self.queue.is_empty() {
            self.mark_wanted = true;
        }
    }

    /// The segment to prepare next, one at a time and in this order: recovery takes a gap for a loss.
    pub fn wants_segment(&self) -> Option<SegmentId> {
        let next = self.ready.next();
        let spare = self.ready.0 - self.place.segment.0;
        (spare < SPARE_SEGMENTS && next.0 <= self.settings.segments_max()).then_some(next)
    }

    /// The wanted segment exists, durably: zeros all over, and its name synced in its directory.
    pub fn segment_ready(&mut self, segment: SegmentId) {
        assert_eq!(segment, self.ready.next(), "segments are prepared in order");
        assert!(segment.0 <= self.settings.segments_max(), "no more than the bound allows");
        self.ready = segment;
    }

    /// Whether ordinary records are to be refused: "log full" (rule L7). Hard state may still be appended, in what is
    /// reserved for it, and so may what was on its way when the log became full.
    pub fn is_full(&self) -> bool {
        self.is_full_within(0)
    }

    /// Whether the log would be full if its bound were so much lower. A master stops before it is full, so that the
    /// others, whose logs differ a little from its own, still have room for what it has proposed.
    pub fn is_full_within(&self, margin_bytes: u64) -> bool {
        let ordinary = self.settings.segments_max() - RESERVE_SEGMENTS;
        let frame_bytes_max = self.settings.frame_bytes_max as u64;
        // At worst a segment loses its opening, and at its end what the next frame did not fit into.
        let worst = self.settings.segment_bytes - OPENING_BYTES_MAX as u64 - frame_bytes_max;
        let rest = match self.place.segment.0 {
            0 => 0,
            segment if segment > ordinary => 0,
            _ => (self.settings.segment_bytes - self.place.offset).saturating_sub(frame_bytes_max),
        };
        let room = rest + ordinary.saturating_sub(self.place.segment.0) * worst;
        // One frame more than what is queued, for what the caller is about to append.
        self.unflushed_bytes() + frame_bytes_max + margin_bytes > room
    }

    /// Whether even the reserve is used up: nothing that is queued will ever become durable, so the replica stops voting.
    pub fn is_exhausted(&self) -> bool {
        let length = self.queue.front().map_or(0, Filling::frame_bytes) as u64;
        self.place.segment.0 >= self.settings.segments_max() && self.place.offset + length > self.settings.segment_bytes
    }

    /// What is queued and in flight: for the caller to bound (rule P7), and about the memory it takes.
    pub fn unflushed_bytes(&self) -> u64 {
        let in_flight = self.in_flight.as_ref().map_or(0, |flight| flight.used.next_multiple_of(BLOCK_BYTES));
        let queued: usize = self.queue.iter().map(Filling::frame_bytes).sum();
        (in_flight + queued) as u64
    }

    /// The last record appended since this start.
    pub fn appended(&self) -> RecordNumber {
        self.appended
    }

    /// All records up to this one, of this start, are durable.
    pub fn durable(&self) -> RecordNumber {
        self.durable
    }

    /// The last durable frame: what acknowledgements carry to be remembered by the others (rule P13).
    pub fn durable_frame(&self) -> FrameNumber {
        self.durable_frame
    }

    /// Where the last record of `slot` lies. `None` while that may be one that is not durable yet (the protocol still has
    /// it in memory; an older record of the slot may hold another value), for one below `forget_below`, and for one that
    /// an installed snapshot has left far behind.
    pub fn locate(&self, slot: Slot) -> Option<Location> {
        let flying = self.in_flight.is_some().then_some(&self.place.link.summary);
        let volatile = flying.into_iter().chain(self.queue.iter().map(|filling| &filling.summary));
        // By range, which may say too much and never too little: a slot in doubt is read a little later.
        let in_doubt = |summary: &Summary| summary.first_slot <= slot && slot <= summary.last_slot;
        if volatile.into_iter().any(in_doubt) { None } else { self.index.get(slot) }
    }

    /// The log was cut: slots below are in a snapshot and need no longer be located.
    pub fn forget_below(&mut self, slot: Slot) {
        self.index.forget_below(slot);
    }

    /// Writes under a new incarnation from the next frame on (rule P11).
    pub fn adopt_incarnation(&mut self, incarnation: Incarnation) {
        assert!(incarnation >= self.identity.incarnation, "incarnations never fall");
        self.identity.incarnation = incarnation;
    }

    /// Whose log it is, and in which life.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// The settings it was made or opened with.
    pub fn settings(&self) -> Settings {
        self.settings
    }

    fn take_buffer(&mut self) -> AlignedBuffer {
        self.pool.pop().unwrap_or_else(|| AlignedBuffer::zeroed(self.settings.frame_bytes_max))
    }
}
