//! Why a log would not open.

use std::io;

use crate::types::{CellId, FrameNumber, Generation, ReplicaId, SegmentId};

/// Why a log would not open. A torn tail is not listed: that is how a crash normally ends; nor is a hole in the middle, which
/// is stepped over. After an error, what was already handed to `on_record` is to be thrown away.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The end of the log is gone, and with it what nothing else repeats: what was promised and accepted last is not known any
    /// more. Whoever has lost that must not vote (rule P11).
    #[error("the end of the log is lost, from frame {frame} on (segment {segment}, offset {offset}): {proof}")]
    EndLost {
        /// The first frame that is lost.
        frame: FrameNumber,
        /// Where it should be.
        segment: SegmentId,
        /// Where in the segment.
        offset: u64,
        /// How that is known.
        proof: Proof,
    },
    /// A segment under another one's name, and none under its own.
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
    /// Written by another version of the log.
    #[error(
        "segment {segment} is of format version {version}, and this program reads version {}",
        crate::frame::VERSION
    )]
    OtherVersion {
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

/// How it is known that the end of a log is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Proof {
    /// A header of this frame was found, and not in its place or without what belongs to it.
    #[error("frame {0} was written after it, and is not in its place")]
    Frame(FrameNumber),
    /// A file that may have held it is missing, cut short, or not this log's.
    #[error("the file is missing, cut short, stale, or of another log")]
    File,
    /// The frame there followed another frame than the one that is before it now.
    #[error("the frame there did not follow the one before it")]
    Order,
}
