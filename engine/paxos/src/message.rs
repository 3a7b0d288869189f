//! The paper's five messages and the reject, and the two of catch-up.
//!
//! | message | who sends it, to whom | when | durable first |
//! |---|---|---|---|
//! | propose | candidate -> all | it has heard from no coordinator for a while | its own promise (P1) |
//! | promise | acceptor -> candidate | the ballot is not below what it has promised | the promise |
//! | accept | coordinator -> all | a batch or an adopted value has a slot | nothing: its own disk works in parallel |
//! | acknowledge | acceptor -> coordinator | the ballot is not below what it has promised | the acceptance |
//! | reject | acceptor -> sender of propose or accept | the ballot is below | nothing |
//! | commit | coordinator -> all | nothing else was sent for a heartbeat | nothing |
//! | fetch | laggard -> whoever knows more | a chosen slot is missing here | nothing |
//! | entries | -> laggard | asked by fetch | nothing: what is chosen stays chosen |

use crate::batch::Batch;
use crate::types::{Ballot, ReplicaId, Slot};

/// What an acceptor reports of one slot in its promise.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct AcceptedSlot {
    /// The slot.
    pub slot: Slot,
    /// The ballot it was last accepted at.
    pub ballot: Ballot,
    /// The value.
    pub batch: Batch,
}

/// A message between replicas.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    /// Phase 1a: ignore everyone older than this ballot. Covers every slot that is not chosen (PML §4.2, Multi-Paxos).
    Propose {
        /// The candidate's ballot.
        ballot: Ballot,
    },
    /// Phase 1b: the answer, with all that the acceptor may have helped to choose.
    Promise {
        /// The ballot promised.
        ballot: Ballot,
        /// Below it the acceptor's log is gone (rule P3).
        cut: Slot,
        /// All up to here the acceptor knows to be chosen; the candidate fetches them before it proposes (P3).
        chosen: Slot,
        /// What it has accepted above `chosen`: at most twice the horizon of slots.
        accepted: Vec<AcceptedSlot>,
    },
    /// Phase 2a: accept this batch at this slot.
    Accept {
        /// The coordinator's ballot.
        ballot: Ballot,
        /// The slot.
        slot: Slot,
        /// The value.
        batch: Batch,
        /// The commit slot: what the acceptor accepted under this very ballot up to here is chosen (P4).
        chosen: Slot,
    },
    /// Phase 2b: accepted, and durable here.
    Acknowledge {
        /// The ballot accepted under.
        ballot: Ballot,
        /// The slot accepted.
        slot: Slot,
    },
    /// The answer to a propose or an accept below what was promised: the sender has been superseded.
    Reject {
        /// What the acceptor has promised.
        promised: Ballot,
    },
    /// The coordinator lives, and this much is chosen (P4 as in `Accept`).
    Commit {
        /// The coordinator's ballot.
        ballot: Ballot,
        /// The commit slot.
        chosen: Slot,
    },
    /// Send me what is chosen from this slot on.
    Fetch {
        /// The first slot wanted.
        from: Slot,
    },
    /// Chosen batches of consecutive slots.
    Entries {
        /// The slot of the first batch.
        first: Slot,
        /// The batches.
        batches: Vec<Batch>,
        /// All up to here is chosen at the sender: more may be had.
        chosen: Slot,
    },
}

impl Message {
    /// Whose ballot this message acts under, if it claims to act under one: then that is who must have sent it.
    pub fn acting(&self) -> Option<ReplicaId> {
        match self {
            Message::Propose { ballot } | Message::Accept { ballot, .. } | Message::Commit { ballot, .. } => {
                Some(ballot.replica)
            }
            Message::Promise { .. }
            | Message::Acknowledge { .. }
            | Message::Reject { .. }
            | Message::Fetch { .. }
            | Message::Entries { .. } => None,
        }
    }
}
