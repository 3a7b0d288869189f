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
//! A segment that was recycled holds the frames of its earlier uses wherever it has not been written again. Their
//! segment was cut off, their numbers are long past, and so they are evidence of nothing; only what is torn there cannot
//! always be told from what was never begun, and makes no difference: the log continues in the same place.
//!
//! **Where the log begins** every frame says. The segments before are not needed and may be there or not; that one, and
//! all that follow, must be there.
//!
//! The remains do hold what clients sent, at any alignment. A client could send the image of a header; but a header
//! counts only with the log's *origin*, a random number that no client is ever told. And a true frame of this log, sent
//! back as a value, has a number that is long past.
//!
//! The last frame may have been read from a device's volatile cache after a mere restart of the process; its segment is
//! synced before anyone builds on what was read.

mod disk;
mod error;

use std::collections::VecDeque;

use synod_ring::BLOCK_BYTES;

pub use self::disk::Storage;
use self::disk::{Disk, Sight};
pub use self::error::OpenError;
use crate::frame::{FLAG_MARK, FLAG_OPENING, FRAME_HEADER_BYTES, FrameHeader, Link, Summary};
use crate::index::SlotIndex;
use crate::record::{self, RecordDamage, RecordKind, RecordRef};
use crate::settings::Settings;
use crate::types::{FrameNumber, Identity, Incarnation, SegmentId, Slot};
use crate::writer::{Live, Log, Place};

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
    /// Whether the last frame was followed by a mark: then nothing can have been lost unseen (rule L4).
    pub ended_with_mark: bool,
}

/// Where recovery goes from the end of frame `k - 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Take,
    RollOver,
    Clean,
    TornHere,
    TornNext,
    DamagedHere(FrameNumber),
    DamagedNext(FrameNumber),
    Stale(FrameNumber),
}

/// What can be found out about the place behind frame `k - 1`; each costs more to ask than the one before.
trait Evidence {
    /// What is to be seen right behind frame `k - 1`.
    fn here(&mut self) -> Result<Sight, OpenError>;
    /// What is to be seen at the start of the next segment, where frame `k` is if it did not fit here.
    fn next(&mut self) -> Result<Sight, OpenError>;
    /// The first sound header anywhere behind those two that frame `k` or a later one has left.
    fn later(&mut self) -> Result<Option<Found>, OpenError>;
}

/// A sound header that was come across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Found {
    number: FrameNumber,
    same_segment: bool,
}

/// The decision table: all of what recovery decides about the log's end is decided here. First row that fits.
///
/// | here            | next segment's start | header further on | verdict                                                |
/// |-----------------|----------------------|-------------------|--------------------------------------------------------|
/// | whole           |                      |                   | take it                                                |
/// | later           |                      |                   | damaged here: that one was written after `k`           |
/// | anything else   | whole                |                   | roll over: numbers and checksums leave nothing between |
/// | anything else   | later                |                   | damaged here: the next segment began after `k`         |
/// | anything else   | earlier              |                   | stale segment                                          |
/// | anything else   | anything else        | in this segment   | damaged here                                           |
/// | anything else   | anything else        | beyond it         | damaged there: or that start would not be what it is   |
/// | anything else   | torn, garbage        | none              | torn there: the next segment has begun                 |
/// | blank, absent, remains | blank, absent, remains | none     | clean end                                              |
/// | torn, garbage, earlier | blank, absent, remains | none     | torn here                                              |
///
/// *Remains* are of an earlier use of the blocks, before they were recycled. In the third row what is here was torn in a life before the one that rolled over. In the last but two, too; the next
/// life must begin the next segment again and not continue here, or that segment's torn header would outlive frame `k`.
fn decide(evidence: &mut impl Evidence) -> Result<Verdict, OpenError> {
    let here = evidence.here()?;
    match here {
        Sight::Whole => return Ok(Verdict::Take),
        Sight::Later(later) => return Ok(Verdict::DamagedHere(later)),
        Sight::Absent | Sight::Blank | Sight::Remains | Sight::Garbage | Sight::Earlier(_) | Sight::Torn => {}
    }
    let next = evidence.next()?;
    match next {
        Sight::Whole => return Ok(Verdict::RollOver),
        Sight::Later(later) => return Ok(Verdict::DamagedHere(later)),
        Sight::Earlier(number) => return Ok(Verdict::Stale(number)),
        Sight::Absent | Sight::Blank | Sight::Remains | Sight::Garbage | Sight::Torn => {}
    }
    match evidence.later()? {
        Some(Found { number, same_segment: true }) => return Ok(Verdict::DamagedHere(number)),
        Some(Found { number, same_segment: false }) => return Ok(Verdict::DamagedNext(number)),
        None => {}
    }
    Ok(match (here, next) {
        (_, Sight::Torn | Sight::Garbage) => Verdict::TornNext,
        (Sight::Blank | Sight::Absent | Sight::Remains, _) => Verdict::Clean,
        _ => Verdict::TornHere,
    })
}

/// Who is told what recovery reads, as it reads it: that it all belongs to a log that opens is known at the end only.
pub trait Visitor {
    /// The next frame; its records follow.
    fn frame(&mut self, header: &FrameHeader);
    /// The next record, whose header is at `offset` of the segment.
    fn record(&mut self, record: RecordRef<'_>, offset: u64);
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
    };
    let start = read.place.segment.next();
    let tail = loop {
        let Place { segment, offset, last, .. } = read.place;
        let damaged = |segment, offset, later| OpenError::Damaged { frame: last.next(), segment, offset, later };
        match decide(&mut AtEnd { disk: &mut disk, place: read.place })? {
            Verdict::Take => read.take_frame(&mut disk, visitor)?,
            Verdict::RollOver => (read.place.segment, read.place.offset) = (segment.next(), 0),
            Verdict::Clean => break Tail::Clean,
            Verdict::TornHere => break Tail::Torn { segment, offset },
            Verdict::TornNext => {
                // The next life's first frame goes there, over the torn one.
                read.place.offset = settings.segment_bytes;
                break Tail::Torn { segment: segment.next(), offset: 0 };
            }
            // There was no room here, so it can only have been there.
            Verdict::DamagedHere(later) if offset == settings.segment_bytes => {
                return Err(damaged(segment.next(), 0, later));
            }
            Verdict::DamagedHere(later) => return Err(damaged(segment, offset, later)),
            Verdict::DamagedNext(later) => return Err(damaged(segment.next(), 0, later)),
            Verdict::Stale(frame) => {
                let segment = segment.next();
                return Err(match disk.present.get(&segment) {
                    Some(&Some(FrameHeader { segment: holds, generation, .. })) if holds != segment => {
                        OpenError::Misplaced { segment, holds, generation }
                    }
                    _ => OpenError::Stale { segment, frame, expected: last.next() },
                });
            }
        }
    };
    let Reading { place, incarnation, hard_state, mut index, live, frames, records, bytes } = read;
    disk.check_beginning(start, &place)?;
    let segments = disk.sort_segments(live, &place)?;
    index.forget_below(place.cut);
    if frames > 0 {
        disk.sync(place.segment)?;
    }
    let identity = Identity { incarnation, ..*identity };
    let ended_with_mark = place.last_flags & (FLAG_MARK | FLAG_OPENING) != 0;
    let origin = disk.origin.unwrap_or(identity.start);
    let log = Log::resume(settings, identity, origin, place, segments, hard_state, index);
    Ok(Recovered { log, tail, cut: place.cut, frames, records, bytes, ended_with_mark })
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
}

impl Reading {
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
        if offset == 0 {
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
        if summary.records != header.records {
            return Err(malformed("it holds another number of records than it says"));
        }
        self.index.note(segment, offset + FRAME_HEADER_BYTES as u64, record::outlines(payload));
        self.incarnation = self.incarnation.max(header.incarnation);
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

    fn later(&mut self) -> Result<Option<Found>, OpenError> {
        let Place { segment, offset, last, .. } = self.place;
        if let Some(number) = self.disk.scan(segment, offset + BLOCK_BYTES as u64, last)? {
            return Ok(Some(Found { number, same_segment: true }));
        }
        for further in segment.0 + 1..=self.disk.segments {
            // The next segment's first block is `next`, and was judged as that.
            let start = if further == segment.0 + 1 { BLOCK_BYTES as u64 } else { 0 };
            if let Some(number) = self.disk.scan(SegmentId(further), start, last)? {
                return Ok(Some(Found { number, same_segment: false }));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scene {
        here: Sight,
        next: Sight,
        later: Option<Found>,
    }

    impl Evidence for Scene {
        fn here(&mut self) -> Result<Sight, OpenError> {
            Ok(self.here)
        }
        fn next(&mut self) -> Result<Sight, OpenError> {
            Ok(self.next)
        }
        fn later(&mut self) -> Result<Option<Found>, OpenError> {
            Ok(self.later)
        }
    }

    #[test]
    fn every_row_of_the_table() {
        const K: FrameNumber = FrameNumber(9);
        let sights = [
            Sight::Absent,
            Sight::Blank,
            Sight::Remains,
            Sight::Garbage,
            Sight::Earlier(FrameNumber(2)),
            Sight::Torn,
            Sight::Whole,
            Sight::Later(K),
        ];
        let later = |same_segment| Some(Found { number: K, same_segment });
        for here in sights {
            for next in sights {
                for later in [None, later(true), later(false)] {
                    let expected = match (here, next, later.map(|found| found.same_segment)) {
                        (Sight::Whole, ..) => Verdict::Take,
                        (Sight::Later(_), ..) => Verdict::DamagedHere(K),
                        (_, Sight::Whole, _) => Verdict::RollOver,
                        (_, Sight::Later(_), _) => Verdict::DamagedHere(K),
                        (_, Sight::Earlier(number), _) => Verdict::Stale(number),
                        (_, _, Some(true)) => Verdict::DamagedHere(K),
                        (_, _, Some(false)) => Verdict::DamagedNext(K),
                        (_, Sight::Torn | Sight::Garbage, None) => Verdict::TornNext,
                        (Sight::Absent | Sight::Blank | Sight::Remains, _, None) => Verdict::Clean,
                        (Sight::Torn | Sight::Garbage | Sight::Earlier(_), _, None) => Verdict::TornHere,
                    };
                    let found = decide(&mut Scene { here, next, later }).expect("no I/O");
                    assert_eq!(found, expected, "{here:?} {next:?} {later:?}");
                }
            }
        }
    }
}
