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
//!   - a segment is free for reuse when all its slots are below the cut, a later one has begun, and a frame that names
//!     the log's new beginning, and so follows that one's opening, is durable (rules P2, L1);
//!   - `durable <= sealed <= appended`.

use std::collections::VecDeque;
use std::ops::Range;

use synod_ring::{AlignedBuffer, BLOCK_BYTES};

use crate::check::Closed;
use crate::frame::{Begin, FLAG_MARK, FLAG_OPENING, FRAME_HEADER_BYTES, FrameHeader, GENERATION_FIRST, Link, Summary};
use crate::index::SlotIndex;
use crate::record::{self, Location, RecordKind};
use crate::settings::{HARD_STATE_BYTES_MAX, OPENING_BYTES_MAX, RESERVE_SEGMENTS, Settings};
use crate::types::{Ballot, FrameNumber, Generation, Identity, Incarnation, RecordNumber, SegmentId, Slot, StartId};

/// How many segments are kept ready beyond the one in use. One would do, were it not for a disk that stalls while the
/// next is being made.
pub const SPARE_SEGMENTS: u64 = 2;

/// How many free segments are kept for reuse beyond those made ready; more are removed. After each snapshot as many are
/// free as were filled since the last, and will be filled until the next: removed, they would have to be zeroed again.
pub const FREE_SEGMENTS_MAX: usize = 8;

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

/// One change of the log's files, for the caller to carry out beside the log's flushes: the log knows no files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Upkeep {
    /// Make a segment of zeros. It must be durable, its name too.
    Make(SegmentId),
    /// Give the file of a segment that was cut off the name of the next one, durably. Its old contents stay: recovery
    /// tells them by their segment and number.
    Recycle {
        /// What it was.
        from: SegmentId,
        /// What it becomes.
        to: SegmentId,
    },
    /// Remove the file of a segment that was cut off.
    Remove(SegmentId),
}

impl Upkeep {
    /// The segment that is ready for flushes once this is done.
    pub fn readies(self) -> Option<SegmentId> {
        match self {
            Self::Make(segment) | Self::Recycle { to: segment, .. } => Some(segment),
            Self::Remove(_) => None,
        }
    }
}

/// The log's writer. The module's page tells how it works.
pub struct Log {
    settings: Settings,
    identity: Identity,
    origin: StartId,
    place: Place,
    segments: Segments,
    cut: Slot,
    queue: VecDeque<Filling>,
    in_flight: Option<InFlight>,
    pool: Vec<AlignedBuffer>,
    /// The disk has room for more segments than there are, as far as anybody knows.
    can_grow: bool,
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
    /// Of the segment.
    pub(crate) generation: Generation,
    /// What the last frame says of it.
    pub(crate) begin: Begin,
    /// What the last frame says of it.
    pub(crate) cut: Slot,
}

/// The segments there are, by what they are for.
#[derive(Default)]
pub(crate) struct Segments {
    /// From the log's durable beginning up to the one in use: what recovery would read.
    pub(crate) live: VecDeque<Live>,
    /// Made ready, to be used after the last of `live`.
    pub(crate) spares: VecDeque<Generation>,
    /// Cut off, to be reused, oldest first.
    pub(crate) free: VecDeque<(SegmentId, Generation)>,
    /// The log begins with a hole, there, that may have held slots up to this one.
    pub(crate) hole: Option<(Begin, Slot)>,
}

/// A segment that holds frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Live {
    pub(crate) segment: SegmentId,
    pub(crate) generation: Generation,
    /// The frame that opens it.
    pub(crate) opening: FrameNumber,
    /// The highest slot of its records.
    pub(crate) last_slot: Slot,
}

impl Place {
    /// The place before the first frame of an empty log.
    pub(crate) fn empty(settings: &Settings) -> Self {
        Self {
            segment: SegmentId(0),
            offset: settings.segment_bytes,
            last: FrameNumber(0),
            last_flags: 0,
            link: Link::default(),
            generation: GENERATION_FIRST,
            begin: Begin::UNCUT,
            cut: Slot(0),
        }
    }
}

/// A frame being filled.
struct Filling {
    buffer: AlignedBuffer,
    used: usize,
    /// crc32c of the records in it.
    payload_crc: u32,
    upto: RecordNumber,
    summary: Summary,
    /// The last hard state in it, and the incarnation that it says.
    hard_state: Option<(Range<usize>, Incarnation)>,
}

impl Filling {
    fn new(buffer: AlignedBuffer) -> Self {
        let upto = RecordNumber(0);
        let summary = Summary::default();
        Self { buffer, used: FRAME_HEADER_BYTES, payload_crc: 0, upto, summary, hard_state: None }
    }

    /// A record of so many bytes more is in the buffer: summed now, while the frame before is flushed, not when it is this one's turn.
    fn extend(&mut self, bytes: usize) {
        let end = self.used + bytes;
        self.payload_crc = record::checksum_append(self.payload_crc, &self.buffer[self.used..end]);
        self.used = end;
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
    begin: Begin,
    upto: RecordNumber,
    /// To see that it is this very buffer that comes back: the index is read from it.
    address: usize,
}

/// An empty log, for a directory without segments. Its first segment is wanted at once.
pub fn create(settings: Settings, identity: Identity) -> Log {
    let place = Place::empty(&settings);
    Log::resume(settings, identity, identity.start, place, Segments::default(), Vec::new(), SlotIndex::default())
}

impl Log {
    pub(crate) fn resume(
        settings: Settings,
        identity: Identity,
        origin: StartId,
        place: Place,
        segments: Segments,
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
            segments,
            cut: place.cut,
            queue: VecDeque::new(),
            in_flight: None,
            pool: Vec::with_capacity(POOL_BUFFERS),
            can_grow: true,
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

    /// Appends the hard state. The last one is repeated at the start of each segment (rule P2), and what it says of the incarnation in
    /// every header from its own frame on; zero: there is none, and the replica rejoins (rule P11).
    pub fn append_hard_state(&mut self, promised: Ballot, incarnation: Incarnation, payload: &[u8]) -> RecordNumber {
        assert!(payload.len() <= HARD_STATE_BYTES_MAX, "a hard state fits in the frame that opens a segment");
        let filling = self.push(RecordKind::HardState, Slot(0), promised, &[payload]);
        filling.summary.add_hard_state(promised);
        filling.hard_state = Some((filling.used - record::padded_bytes(payload.len())..filling.used, incarnation));
        filling.upto
    }

    /// Right after recovery: the next opening repeats this hard state, not the last one that was read. Behind a hole that one may
    /// be older than what the log has held since; the caller knows what has to be kept of all it was told.
    pub fn repeat_hard_state(&mut self, promised: Ballot, payload: &[u8]) {
        assert_eq!(self.appended, RecordNumber(0), "nothing is appended yet");
        assert!(payload.len() <= HARD_STATE_BYTES_MAX, "a hard state fits in the frame that opens a segment");
        self.hard_state.resize(record::padded_bytes(payload.len()), 0);
        record::encode(&mut self.hard_state, RecordKind::HardState, Slot(0), promised, &[payload]);
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
        let bytes = record::encode(&mut filling.buffer[filling.used..], kind, slot, ballot, parts);
        filling.extend(bytes);
        filling.upto = self.appended;
        filling
    }

    /// Hands out the next frame to write, if it is time for one: no flush is under way, something is queued, and the
    /// segment it goes to is ready. Never waits: call again after `flushed` and `upkeep_done`.
    ///
    /// It may be a frame that only opens the next segment; the queued records then follow with the next call.
    pub fn seal(&mut self) -> Option<Flush> {
        if self.in_flight.is_some() {
            return None;
        }
        let length = match self.queue.front() {
            Some(filling) => filling.frame_bytes(),
            None if self.mark_wanted || self.begin() != self.place.begin => BLOCK_BYTES,
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
        let generation = self.segments.spares.pop_front()?;
        let segment = self.place.segment.next();
        let opening = self.place.last.next();
        self.segments.live.push_back(Live { segment, generation, opening, last_slot: Slot(0) });
        (self.place.segment, self.place.offset, self.place.generation) = (segment, 0, generation);
        if self.queue.is_empty() {
            self.mark_wanted = false;
        }
        let mut filling = self.empty_frame();
        if !self.hard_state.is_empty() {
            let (record, _) = record::decode(&self.hard_state).expect("it is as it was appended, read or repeated");
            filling.summary.add_hard_state(record.ballot);
            let range = filling.used..filling.used + self.hard_state.len();
            filling.buffer[range.clone()].copy_from_slice(&self.hard_state);
            filling.extend(range.len());
            filling.hard_state = Some((range, self.identity.incarnation));
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
        let mut summary = filling.summary;
        match &filling.hard_state {
            Some((range, incarnation)) => {
                self.hard_state.clear();
                self.hard_state.extend_from_slice(&filling.buffer[range.clone()]);
                self.identity.incarnation = *incarnation;
            }
            None => summary.promised = self.place.link.summary.promised,
        }
        summary.follow(&self.place.link.summary);
        let header = FrameHeader {
            cell: self.identity.cell,
            replica: self.identity.replica,
            flags,
            records: summary.records,
            incarnation: self.identity.incarnation,
            start: self.identity.start,
            origin: self.origin,
            segment: self.place.segment,
            generation: self.place.generation,
            offset: self.place.offset,
            number: self.place.last.next(),
            durable: self.durable_frame,
            payload_bytes: u32::try_from(used - FRAME_HEADER_BYTES).expect("a frame is shorter than 4 GiB"),
            payload_crc: filling.payload_crc,
            previous: self.place.link,
            cut: self.cut,
            begin: self.begin(),
        };
        let checksum = header.encode(&mut filling.buffer);
        assert_eq!(header.durable, self.place.last, "serial: a frame is sealed when the one before is durable");
        let (segment, offset) = (self.place.segment, self.place.offset);
        self.place.offset += length as u64;
        self.place.last = header.number;
        self.place.last_flags = flags;
        self.place.link = Link { checksum, summary };
        (self.place.begin, self.place.cut) = (header.begin, header.cut);
        let live = self.segments.live.back_mut().expect("a frame goes to a segment that has begun");
        live.last_slot = live.last_slot.max(summary.last_slot);
        assert!(self.place.offset <= self.settings.segment_bytes);
        self.sealed = filling.upto;
        let address = filling.buffer.as_ptr().addr();
        let (number, begin, upto) = (header.number, header.begin, filling.upto);
        self.in_flight = Some(InFlight { segment, offset, used, number, begin, upto, address });
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
        while let Some(live) = self.segments.live.pop_front_if(|live| live.segment < flight.begin.segment) {
            self.segments.free.push_back((live.segment, live.generation));
        }
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

    /// Slots below `below` are in the older of two durable, verified snapshots: the caller answers for it. They are
    /// located no more, and segments that hold nothing else become free once a frame that says so is durable; an idle
    /// log writes one of its own. A cut never moves back.
    pub fn cut(&mut self, below: Slot) {
        self.cut = self.cut.max(below);
        self.index.forget_below(self.cut);
    }

    /// Below this slot the log is, or may be, gone.
    pub fn cut_slot(&self) -> Slot {
        self.cut
    }

    /// Where the log is to begin by now: at the first segment that holds a slot above the cut, or else the last one. What
    /// is before that one's opening is repeated there, or cut off.
    fn begin(&self) -> Begin {
        if let Some((begin, _)) = self.segments.hole.filter(|(_, upto)| *upto >= self.cut) {
            return begin;
        }
        let needed = |live: &&Live| live.segment == self.place.segment || live.last_slot >= self.cut;
        match self.segments.live.iter().find(needed) {
            Some(live) => Begin { segment: live.segment, frame: live.opening },
            None => Begin::UNCUT,
        }
    }

    /// What is to be done to the log's files next, one at a time and in this order: recovery takes a gap for a loss.
    pub fn upkeep(&self) -> Option<Upkeep> {
        let Segments { live, spares, free, hole: _ } = &self.segments;
        let is_within_bound = ((live.len() + spares.len()) as u64) < self.settings.segments_max();
        if (spares.len() as u64) < SPARE_SEGMENTS && is_within_bound {
            let to = self.ready().next();
            return Some(match free.front() {
                Some(&(from, _)) => Upkeep::Recycle { from, to },
                None => Upkeep::Make(to),
            });
        }
        let (last, _) = free.back()?;
        (free.len() > FREE_SEGMENTS_MAX).then_some(Upkeep::Remove(*last))
    }

    /// It is done, durably: see [`Upkeep`].
    pub fn upkeep_done(&mut self, upkeep: Upkeep) {
        if let Some(segment) = upkeep.readies() {
            assert_eq!(segment, self.ready().next(), "segments are made ready in order");
        }
        let Segments { spares, free, .. } = &mut self.segments;
        match upkeep {
            Upkeep::Make(_) => spares.push_back(GENERATION_FIRST),
            Upkeep::Recycle { from: gone, .. } | Upkeep::Remove(gone) => {
                let at = free.iter().position(|(segment, _)| *segment == gone).expect("only a free segment is reused");
                let generation = free.remove(at).map(|(_, generation)| generation.next());
                if let Upkeep::Recycle { .. } = upkeep {
                    spares.extend(generation);
                }
            }
        }
    }

    /// Whether the disk has room for another segment. While it has none, the log is as long as its files are (rule L7):
    /// with what is ready it goes on, and what is cut off is used again.
    pub fn set_can_grow(&mut self, can_grow: bool) {
        self.can_grow = can_grow;
    }

    /// How many segments there may be by now, the reserve included.
    fn segments_max(&self) -> u64 {
        let Segments { live, spares, free, hole: _ } = &self.segments;
        let there_are = (live.len() + spares.len() + free.len()) as u64;
        if self.can_grow { self.settings.segments_max() } else { self.settings.segments_max().min(there_are) }
    }

    /// Segments up to this one exist.
    fn ready(&self) -> SegmentId {
        SegmentId(self.place.segment.0 + self.segments.spares.len() as u64)
    }

    /// How many segments hold frames that recovery would read; how many are ready for more; how many are free.
    pub fn segment_counts(&self) -> (usize, usize, usize) {
        (self.segments.live.len(), self.segments.spares.len(), self.segments.free.len())
    }

    /// The segments that are written no more and that recovery would read.
    pub fn closed(&self) -> Vec<Closed> {
        let live = &self.segments.live;
        let mut last_slot = Slot(0);
        let closed = live.iter().zip(live.iter().skip(1)).map(|(live, next)| {
            let Live { segment, generation, opening, .. } = *live;
            last_slot = last_slot.max(live.last_slot);
            Closed { segment, last_slot, generation, opening, end: next.opening }
        });
        closed.collect()
    }

    /// Whether this segment is still what recovery would read.
    pub fn holds(&self, closed: &Closed) -> bool {
        self.segments.live.iter().any(|live| live.segment == closed.segment)
    }

    /// Whether ordinary records are to be refused: "log full" (rule L7). Hard state may still be appended, in what is
    /// reserved for it, and so may what was on its way when the log became full.
    pub fn is_full(&self) -> bool {
        self.is_full_within(0)
    }

    /// Whether the log would be full if its bound were so much lower. A master stops before it is full, so that the
    /// others, whose logs differ a little from its own, still have room for what it has proposed.
    pub fn is_full_within(&self, margin_bytes: u64) -> bool {
        let ordinary = self.segments_max().saturating_sub(RESERVE_SEGMENTS);
        let frame_bytes_max = self.settings.frame_bytes_max as u64;
        // At worst a segment loses its opening, and at its end what the next frame did not fit into.
        let worst = self.settings.segment_bytes - OPENING_BYTES_MAX as u64 - frame_bytes_max;
        let used = self.segments.live.len() as u64;
        let rest = match used {
            0 => 0,
            used if used > ordinary => 0,
            _ => (self.settings.segment_bytes - self.place.offset).saturating_sub(frame_bytes_max),
        };
        let room = rest + ordinary.saturating_sub(used) * worst;
        // One frame more than what is queued, for what the caller is about to append.
        self.unflushed_bytes() + frame_bytes_max + margin_bytes > room
    }

    /// Whether even the reserve is used up: nothing that is queued will ever become durable, so the replica stops voting.
    /// Not for want of room on the disk: that may come back.
    pub fn is_exhausted(&self) -> bool {
        let length = self.queue.front().map_or(0, Filling::frame_bytes) as u64;
        let used = self.segments.live.len() as u64;
        used >= self.settings.segments_max() && self.place.offset + length > self.settings.segment_bytes
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
    /// it in memory; an older record of the slot may hold another value), for one below the cut, and for one that
    /// an installed snapshot has left far behind.
    pub fn locate(&self, slot: Slot) -> Option<Location> {
        let flying = self.in_flight.is_some().then_some(&self.place.link.summary);
        let volatile = flying.into_iter().chain(self.queue.iter().map(|filling| &filling.summary));
        // By range, which may say too much and never too little: a slot in doubt is read a little later.
        let in_doubt = |summary: &Summary| summary.first_slot <= slot && slot <= summary.last_slot;
        if volatile.into_iter().any(in_doubt) { None } else { self.index.get(slot) }
    }

    /// Whose log it is, and in which life as of the last frame.
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
