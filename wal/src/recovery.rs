//! Reading a log back: every record in order, and the judgement of where and why it ends.
//!
//! What a crash can leave behind follows from how the log is written. Flushes are serial, so only the last frame can be
//! incomplete. That torn frame was never told to anyone; it is cut off by the next life writing over it, or, if its
//! first frame goes to the next segment, by leaving it behind for good. So behind the last sound frame there may be:
//! nothing; a torn frame; or, behind a shorter frame of a later life, the remains of a longer torn one. Remains hold no
//! header, for the only header of a torn frame is at its start, where every later life has written its own. **A sound
//! header further on is therefore proof that the frames before it were durable**, and that what is missing is lost, not
//! torn (rule L4).
//!
//! **A hole is stepped over** (rule L5). The log goes on at the next frame that is whole and in its place: of this log (cell,
//! replica, origin), of this use of the segment (ids are never used twice), at the offset that it names, with a later number. It
//! cannot be checked against the frame before it, which is missing; the ones after it can. What is missing is told to the visitor,
//! who knows what slots mean; whoever must not start without it learns that the end is lost from an error. A frame whose
//! payload is damaged is lost as a whole: records in it may be sound, but then the next frame's header says what they were, and
//! one request to a peer brings them all.
//!
//! A segment that was recycled holds the frames of its earlier uses wherever it has not been written again. Their
//! segment was cut off, their numbers are long past, and so they are evidence of nothing; only what is torn there cannot
//! always be told from what was never begun, and makes no difference: the log continues in the same place.
//!
//! **Where the log begins** every frame says, the last one what counts. The segments before are not needed and may be there or
//! not; that one, and all that follow, should be there.
//!
//! The remains do hold what clients sent, at any alignment. A client could send the image of a header; but a header
//! counts only with the log's *origin*, a random number that no client is ever told. And a true frame of this log, sent
//! back as a value, has a number that is long past.
//!
//! The last frame may have been read from a device's volatile cache after a mere restart of the process; its segment is
//! synced before anyone builds on what was read.

mod decide;
mod disk;
mod error;
mod lost;

use std::collections::VecDeque;

use self::decide::{Evidence, Verdict, decide};
pub use self::disk::Storage;
use self::disk::{Disk, Found, Later, Sight};
pub use self::error::{OpenError, Proof};
pub use self::lost::{Lost, LostSlots};
use crate::frame::{Begin, FLAG_MARK, FLAG_OPENING, FRAME_HEADER_BYTES, FrameHeader, Link, Summary};
use crate::index::SlotIndex;
use crate::record::{self, RecordDamage, RecordKind, RecordRef};
use crate::settings::Settings;
use crate::types::{FrameNumber, Identity, Incarnation, SegmentId, Slot};
use crate::writer::{Live, Log, Place, Segments};

/// How a log that opened had ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tail {
    /// Behind the last frame there is nothing, or, in a segment that was recycled, nothing of this use.
    Clean,
    /// Behind the last frame there is one that was being written when the process or the machine stopped.
    Torn {
        /// Its segment.
        segment: SegmentId,
        /// Where in the segment.
        offset: u64,
    },
}

/// A log that opened.
pub struct Recovered {
    /// Continues behind the last frame, under the new start.
    pub log: Log,
    /// How it had ended.
    pub tail: Tail,
    /// Slots below it are in snapshots, and the log may have nothing of them. Zero if it was never cut. What comes from
    /// snapshots must reach up to here.
    pub cut: Slot,
    /// How many frames were read. None: an empty log, and whether it may be is for the caller to know (rule P12).
    pub frames: u64,
    /// How many records were handed out, repeated hard states included.
    pub records: u64,
    /// The frames' length.
    pub bytes: u64,
    /// How many holes were stepped over.
    pub holes: u64,
    /// Whether the last frame was followed by a mark: then nothing can have been lost unseen (rule L4).
    pub ended_with_mark: bool,
}

/// Who is told what recovery reads, as it reads it: that it all belongs to a log that opens is known at the end only.
pub trait Visitor {
    /// The next frame; its records follow.
    fn frame(&mut self, header: &FrameHeader);
    /// The next record, whose header is at `offset` of the segment.
    fn record(&mut self, record: RecordRef<'_>, offset: u64);
    /// Frames are missing here. Gives the slots that they may have held records of: the log locates none of them at an older
    /// record, and its segments are kept until the log is cut above them, so that the next start finds the hole again.
    fn lost(&mut self, lost: &Lost) -> LostSlots {
        lost.known_slots().unwrap_or(LostSlots::ANY)
    }
}

struct Records<'a>(&'a mut dyn FnMut(RecordRef<'_>));

impl Visitor for Records<'_> {
    fn frame(&mut self, _: &FrameHeader) {}

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        (self.0)(record);
    }
}

/// Reads the log in `storage`, hands every record to `on_record` in the order in which it was appended (the hard state
/// again at the start of each segment), and gives the log that continues it. No segments at all is an empty log.
///
/// It reads all that was written, and what is behind it: a header there decides between torn and damaged.
pub fn recover(
    storage: &mut dyn Storage,
    settings: Settings,
    identity: &Identity,
    on_record: &mut dyn FnMut(RecordRef<'_>),
) -> Result<Recovered, OpenError> {
    inspect(storage, settings, identity, &mut Records(on_record))
}

/// As [`recover`], for who wants to see the frames, too.
pub fn inspect(
    storage: &mut dyn Storage,
    settings: Settings,
    identity: &Identity,
    visitor: &mut dyn Visitor,
) -> Result<Recovered, OpenError> {
    let mut disk = Disk::open(storage, settings, identity)?;
    let mut read = Reading {
        place: disk.beginning()?,
        incarnation: identity.incarnation,
        hard_state: Vec::new(),
        index: SlotIndex::default(),
        live: VecDeque::new(),
        frames: 0,
        records: 0,
        bytes: 0,
        holes: 0,
        hole: None,
    };
    let tail = loop {
        let Place { segment, offset, last, .. } = read.place;
        let is_full = offset == settings.segment_bytes;
        // If there was no room here, frame `k` can only have been there.
        let (at, at_offset) = if is_full { (segment.next(), 0) } else { (segment, offset) };
        let end_lost = |proof| Err(OpenError::EndLost { frame: last.next(), segment: at, offset: at_offset, proof });
        match decide(&mut AtEnd { disk: &mut disk, place: read.place })? {
            Verdict::Take => read.take_frame(&mut disk, visitor)?,
            Verdict::RollOver => (read.place.segment, read.place.offset) = (segment.next(), 0),
            Verdict::Hole(found) => read.step_over(&mut disk, found, visitor)?,
            Verdict::Clean => break Tail::Clean,
            Verdict::TornHere => break Tail::Torn { segment, offset },
            Verdict::TornNext => {
                // The next life's first frame goes there, over the torn one.
                read.place.offset = settings.segment_bytes;
                break Tail::Torn { segment: segment.next(), offset: 0 };
            }
            Verdict::EndLost(later) => return end_lost(Proof::Frame(later)),
            Verdict::EndUnknown => return end_lost(Proof::File),
            Verdict::Contradicted => return end_lost(Proof::Order),
        }
    };
    if let Some(gone) = disk.first_gone_behind(read.place.segment) {
        let frame = read.place.last.next();
        return Err(OpenError::EndLost { frame, segment: gone, offset: 0, proof: Proof::File });
    }
    if disk.is_cut_short(read.place.segment) {
        // What is written behind its end would make it look cut short there, for ever.
        read.place.offset = settings.segment_bytes;
    }
    let Reading { place, incarnation, hard_state, mut index, live, frames, records, bytes, holes, hole } = read;
    let segments = Segments { hole, ..disk.sort_segments(live, &place)? };
    index.forget_below(place.cut);
    if frames > 0 {
        disk.sync(place.segment)?;
    }
    let identity = Identity { incarnation, ..*identity };
    let ended_with_mark = place.last_flags & (FLAG_MARK | FLAG_OPENING) != 0;
    let origin = disk.origin.unwrap_or(identity.start);
    let log = Log::resume(settings, identity, origin, place, segments, hard_state, index);
    Ok(Recovered { log, tail, cut: place.cut, frames, records, bytes, holes, ended_with_mark })
}

/// What has been read so far.
struct Reading {
    place: Place,
    incarnation: Incarnation,
    hard_state: Vec<u8>,
    index: SlotIndex,
    live: VecDeque<Live>,
    frames: u64,
    records: u64,
    bytes: u64,
    holes: u64,
    /// See [`crate::writer::Segments`].
    hole: Option<(Begin, Slot)>,
}

impl Reading {
    /// Tells what is missing before the frame that was found, and moves right before it.
    fn step_over(&mut self, disk: &mut Disk<'_>, found: Found, visitor: &mut dyn Visitor) -> Result<(), OpenError> {
        let Place { segment, offset, last, .. } = self.place;
        let segment_bytes = disk.segment_bytes();
        let Found { segment: found_in, offset: found_at, .. } = found;
        let (header, _) = disk.header(found_in, found_at)?.expect("it was found with its header");
        // One frame is missing, and the next is not the first of its segment: then that one was.
        let is_one = header.number == last.next().next();
        let is_opening = is_one && found_in > segment && found_at > 0;
        let place = match (segment, offset) {
            _ if is_opening => (found_in, 0),
            (segment, offset) if offset == segment_bytes => (segment.next(), 0),
            place => place,
        };
        let lost = Lost {
            first: last.next(),
            last: FrameNumber(header.number.0 - 1),
            segment: place.0,
            offset: place.1,
            incarnation: header.incarnation,
            cut: header.cut,
            summary: header.previous.summary,
        };
        let slots = visitor.lost(&lost);
        self.index.forget(slots.first, slots.last);
        // The hole is to be found again, as it is now, until the log is cut above what it may have held: the log does not begin
        // behind the segment before it.
        let upto = if slots.first <= slots.last { slots.last } else { Slot(0) };
        match self.live.back_mut() {
            Some(live) => live.last_slot = live.last_slot.max(upto),
            None => self.hole = Some((Begin { segment: segment.next(), frame: lost.first }, upto)),
        }
        if self.live.back().is_none_or(|live| live.segment != found_in) {
            let (generation, opening) = (header.generation, lost.first);
            self.live.push_back(Live { segment: found_in, generation, opening, last_slot: Slot(0) });
        }
        self.place = Place {
            segment: found_in,
            offset: found_at,
            last: lost.last,
            last_flags: 0,
            link: header.previous,
            generation: header.generation,
            ..self.place
        };
        self.holes += 1;
        Ok(())
    }

    /// Hands out the records of the whole frame that was found at the place, and moves behind it.
    fn take_frame(&mut self, disk: &mut Disk<'_>, visitor: &mut dyn Visitor) -> Result<(), OpenError> {
        let Place { segment, offset, .. } = self.place;
        let (header, checksum) = disk.header(segment, offset)?.expect("a whole frame has a header");
        let frame = &disk.bytes(segment, offset, header.frame_bytes())?;
        let payload = &frame[FRAME_HEADER_BYTES..][..header.payload_bytes as usize];
        let malformed = |what| OpenError::Malformed { frame: header.number, segment, offset, what };
        if (offset == 0) != (header.flags & FLAG_OPENING != 0) {
            return Err(malformed("a segment begins with an opening frame, and has no other"));
        }
        if self.live.back().is_none_or(|live| live.segment != segment) {
            let opening = header.number;
            self.live.push_back(Live { segment, generation: header.generation, opening, last_slot: Slot(0) });
        }
        visitor.frame(&header);
        let mut summary = Summary { promised: self.place.link.summary.promised, ..Summary::default() };
        let mut at = 0;
        while at < payload.len() {
            let (record, taken) = record::decode(&payload[at..]).map_err(|damage| match damage {
                RecordDamage::UnknownKind { .. } => malformed("a record is of an unknown kind"),
                _ => malformed("a record's own checksum or length is wrong"),
            })?;
            if record.kind == RecordKind::HardState {
                self.hard_state.clear();
                self.hard_state.extend_from_slice(&payload[at..at + taken]);
                summary.add_hard_state(record.ballot);
            } else {
                summary.add(record.slot, record.ballot);
            }
            visitor.record(record, offset + (FRAME_HEADER_BYTES + at) as u64);
            at += taken;
        }
        summary.follow(&self.place.link.summary);
        if summary.records != header.records {
            return Err(malformed("it holds another number of records than it says"));
        }
        self.index.note(segment, offset + FRAME_HEADER_BYTES as u64, record::outlines(payload));
        self.incarnation = header.incarnation;
        let live = self.live.back_mut().expect("a segment's first frame opens it");
        live.last_slot = live.last_slot.max(summary.last_slot);
        self.frames += 1;
        self.records += u64::from(header.records);
        self.bytes += header.frame_bytes() as u64;
        self.place.offset += header.frame_bytes() as u64;
        self.place.last = header.number;
        self.place.last_flags = header.flags;
        self.place.link = Link { checksum, summary };
        (self.place.generation, self.place.begin, self.place.cut) = (header.generation, header.begin, header.cut);
        Ok(())
    }
}

/// The evidence about the place behind the last frame taken.
struct AtEnd<'a, 'b> {
    disk: &'a mut Disk<'b>,
    place: Place,
}

impl Evidence for AtEnd<'_, '_> {
    fn here(&mut self) -> Result<Sight, OpenError> {
        self.disk.look(self.place.segment, self.place.offset, &self.place)
    }

    fn next(&mut self) -> Result<Sight, OpenError> {
        self.disk.look(self.place.segment.next(), 0, &self.place)
    }

    fn later(&mut self) -> Result<Later, OpenError> {
        self.disk.search(&self.place)
    }
}
