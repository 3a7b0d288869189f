//! The log's own words for positions, ids and numbers.
//!
//! The log does not know the protocol: a slot and a ballot are to it numbers with an order, and the node translates
//! between these types and the protocol's. What they mean is the glossary's business; what the log does with them is
//! to keep them in the order given and to give them back.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number!(
    /// The cell this log belongs to; random, made when the cell is first started.
    CellId(u128)
);
number!(
    /// The replica this log belongs to.
    ReplicaId(u16)
);
number!(
    /// One life of the replica's durable state. Never falls along a log.
    Incarnation(u64)
);
number!(
    /// One start of the process: drawn at random by whoever opens the log, and never shown to a client. It is part of
    /// what keeps a client from writing a value that recovery could take for a frame (see [`crate::recovery`]).
    StartId(u64)
);
number!(
    /// The position of one Paxos instance, from 1. Zero stands for "no slot", as in a hard-state record.
    Slot(u64)
);
number!(
    /// A ballot as the protocol packed it, so that comparing the numbers compares the ballots.
    Ballot(u128)
);
number!(
    /// One segment, from 1, dense. The order of the ids is the order of the log. A file that is used again gets the next
    /// id, so an id is never used twice.
    SegmentId(u64)
);
number!(
    /// How often a segment's file has been put to use, from 1: above that its blocks may hold frames of earlier uses.
    Generation(u64)
);
number!(
    /// The number of a frame, from 1; dense over segments and over lives of the process.
    FrameNumber(u64)
);
number!(
    /// The how-manieth record since this start, from 1. "Durable up to n" always means all of the first n.
    RecordNumber(u64)
);

impl SegmentId {
    /// The segment after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl Generation {
    /// The generation after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl FrameNumber {
    /// The frame after this one.
    pub fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// Whose log this is, and which life of the process writes it. Repeated in every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cell.
    pub cell: CellId,
    /// The replica within the cell.
    pub replica: ReplicaId,
    /// The incarnation that an empty log begins under, until a hard state says another. A log that has frames continues under the last
    /// one's.
    pub incarnation: Incarnation,
    /// Random, fresh for every start of the process.
    pub start: StartId,
}
