//! Why a log would not open.

use std::io;

use crate::types::{CellId, FrameNumber, Generation, ReplicaId, SegmentId};

/// Why a log would not open. A torn tail is not listed: that is how a crash normally ends. After an error, what was
/// already handed to `on_record` is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// A frame that was durable is gone, or not what it was. The others may have what it held; do not vote meanwhile.
    #[error("frame {frame} is damaged (segment {segment}, offset {offset}), yet frame {later} was written after it")]
    Damaged {
        /// The first frame that is lost.
        frame: FrameNumber,
        /// Where it should be.
        segment: SegmentId,
        /// Where in the segment.
        offset: u64,
        /// The frame that proves it. The same number if that frame is sound itself, but lies elsewhere than it says, or
        /// followed another frame than the one that is before it now.
        later: FrameNumber,
    },
    /// A segment between others is gone.
    #[error("segment {segment} is missing, yet there is segment {later}")]
    Missing {
        /// The first that is missing.
        segment: SegmentId,
        /// The one that proves it.
        later: SegmentId,
    },
    /// A segment holds older frames than those that should follow here.
    #[error("segment {segment} is stale: it begins with frame {frame} where frame {expected} should follow")]
    Stale {
        /// The segment.
        segment: SegmentId,
        /// The number of its first frame.
        frame: FrameNumber,
        /// The number that is next in the log.
        expected: FrameNumber,
    },
    /// A segment under another one's name, or of another generation.
    #[error("segment {segment} holds what was written to segment {holds}, generation {generation}")]
    Misplaced {
        /// The segment by its name.
        segment: SegmentId,
        /// The segment by its header.
        holds: SegmentId,
        /// The generation by its header.
        generation: Generation,
    },
    /// A segment of another cell.
    #[error("segment {segment} belongs to cell {cell:032x}", cell = cell.0)]
    OtherCell {
        /// The segment.
        segment: SegmentId,
        /// The cell it belongs to.
        cell: CellId,
    },
    /// A segment of another replica.
    #[error("segment {segment} belongs to replica {replica}")]
    OtherReplica {
        /// The segment.
        segment: SegmentId,
        /// The replica it belongs to.
        replica: ReplicaId,
    },
    /// A segment of another log of this replica.
    #[error("segment {segment} belongs to another log of this replica")]
    OtherLog {
        /// The segment.
        segment: SegmentId,
    },
    /// Written by a newer version of the log.
    #[error("segment {segment} is of format version {version}, newer than this program's")]
    NewerVersion {
        /// The segment.
        segment: SegmentId,
        /// Its version.
        version: u32,
    },
    /// A segment of another size than the settings say.
    #[error("segment {segment} has {found} bytes where the settings say {expected}")]
    WrongSize {
        /// The segment.
        segment: SegmentId,
        /// Its size.
        found: u64,
        /// The size by the settings.
        expected: u64,
    },
    /// The checksums hold, but what they cover makes no sense: written by a faulty program.
    #[error("frame {frame} (segment {segment}, offset {offset}) is sound, but makes no sense: {what}")]
    Malformed {
        /// The frame.
        frame: FrameNumber,
        /// Its segment.
        segment: SegmentId,
        /// Where in the segment.
        offset: u64,
        /// What makes no sense.
        what: &'static str,
    },
    /// The segments could not be listed.
    #[error("listing the segments")]
    List {
        /// Why.
        source: io::Error,
    },
    /// A segment could not be read, or synced.
    #[error("reading segment {segment} at {offset}")]
    Read {
        /// The segment.
        segment: SegmentId,
        /// Where in the segment.
        offset: u64,
        /// Why.
        source: io::Error,
    },
}
