//! What recovery tells of a hole in the log.

use crate::frame::Summary;
use crate::types::{FrameNumber, Incarnation, SegmentId, Slot};

/// Frames that were durable and are not there any more, with a sound frame right behind them. That one says what the last of
/// them held; of those before nothing is known but that no slot was above the highest one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lost {
    /// The first frame that is missing.
    pub first: FrameNumber,
    /// The last.
    pub last: FrameNumber,
    /// Where the first should be, at the earliest: one that did not fit there opened the next segment.
    pub segment: SegmentId,
    /// Where in the segment.
    pub offset: u64,
    /// What the last one held; what was promised at its end: ballots promised only rise, so nothing that is missing holds a
    /// higher one; and the highest slot up to there.
    pub summary: Summary,
    /// The incarnation at the end of the frame behind; zero: none, the replica rejoins.
    pub incarnation: Incarnation,
    /// Slots below are in snapshots, as the frame behind says: a hard state that said so may be missing.
    pub cut: Slot,
}

/// Slots that a hole may have held records of: all of `first..=last`. None if `last` is below `first`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostSlots {
    /// The lowest.
    pub first: Slot,
    /// The highest.
    pub last: Slot,
}

impl LostSlots {
    /// No slot at all.
    pub const NONE: Self = Self { first: Slot(1), last: Slot(0) };
    /// Any slot.
    pub const ANY: Self = Self { first: Slot(1), last: Slot(u64::MAX) };
}

impl Lost {
    /// Which slots may be lost, if the next frame tells: it does when one frame is missing.
    pub fn known_slots(&self) -> Option<LostSlots> {
        match self.summary {
            _ if self.first != self.last => None,
            Summary { first_slot: Slot(0), .. } => Some(LostSlots::NONE),
            Summary { first_slot: first, last_slot: last, .. } => Some(LostSlots { first, last }),
        }
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { first, last, segment, offset, .. } = self;
        match self.known_slots() {
            None => write!(f, "frames {first} to {last} are lost")?,
            Some(LostSlots::NONE) => write!(f, "frame {first}, which had no slots, is lost")?,
            Some(slots) => write!(f, "frame {first}, which had slots {} to {}, is lost", slots.first, slots.last)?,
        }
        write!(f, " (segment {segment}, offset {offset})")
    }
}
