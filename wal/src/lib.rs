//! The checksummed O_DIRECT write-ahead log: segments, frames, records, recovery.
//!
//! The log is a row of *segments*, zero-written files of a fixed size; in them *frames*, each written by one flush; in
//! those *records*. The logic is apart from what carries it out, so that a simulated disk runs the real thing:
//! - [`Log`] takes records and hands out [`Flush`]es; it does no I/O and knows no clock;
//! - [`recover`] reads a log through [`Storage`] and gives a [`Log`] that continues it;
//! - [`directory`] is where files come in: segments made ahead of need, and a [`Storage`] over a real directory.
//!
//! What it promises: after a crash, whatever [`Log::durable`] covered is recovered, in order; nothing is ever recovered
//! that was not appended; and where a disk has lost or changed what was durable, recovery says which frames, and goes on
//! behind them; if nothing is behind them, the log does not open. The exception is damage to the very last frame with no mark behind it, which cannot be told from
//! a torn write (rules L4, L5).

mod check;
mod checksum;
pub mod directory;
pub mod frame;
mod index;
pub mod record;
pub mod recovery;
mod settings;
mod types;
mod writer;

pub use check::{CheckError, Closed, ReadSegment};
pub use record::{Location, RecordDamage, RecordKind, RecordRef, read_record};
pub use recovery::{Lost, LostSlots, OpenError, Proof, Recovered, Storage, Tail, Visitor, inspect, recover};
pub use settings::{HARD_STATE_BYTES_MAX, OPENING_BYTES_MAX, RESERVE_SEGMENTS, Settings, SettingsError};
pub use types::{
    Ballot, CellId, FrameNumber, Generation, Identity, Incarnation, RecordNumber, ReplicaId, SegmentId, Slot, StartId,
};
pub use writer::{FREE_SEGMENTS_MAX, Flush, Log, SPARE_SEGMENTS, Upkeep, create};
