//! The paper's five messages and the reject; the probe before them, the two that end a mastership, the two of catch-up, the two of reads.
//!
//! | message | who sends it, to whom | when | durable first |
//! |---|---|---|---|
//! | probe | a follower -> the voters | it has heard from no coordinator for a while and no lease binds it; or it was probed by one that knows less | nothing |
//! | probe answer | member -> who probes | asked; says whether it would promise now | nothing |
//! | propose | candidate -> the members | a majority would promise; or the master asked it to take over; or it is the master and wants a higher ballot; again after a while | its own promise (P1) |
//! | promise | acceptor -> candidate | it votes, the ballot is not below what it has promised, and no lease binds it to another | the promise |
//! | accept | coordinator -> the members | a batch, a change, an adopted value or a no-op has a slot; again to who has not acknowledged after a while; to who is far behind, one with each heartbeat | nothing: its own disk works in parallel |
//! | acknowledge | acceptor, learners too -> coordinator | the ballot is not below what it has promised | the acceptance, and the promise that comes with it |
//! | reject | acceptor -> sender of propose, accept or commit | the ballot is below what it has promised | nothing |
//! | commit | coordinator -> the members | every heartbeat; when it begins; before a higher ballot, a hand-over or its own removal | nothing |
//! | release | a master -> the members | it gives mastership up by itself | nothing: it holds no lease any more |
//! | take over | a master -> whom it hands over to | after its release, nothing open | nothing |
//! | position | who just started -> the members; everybody, once in a heartbeat | it asks how far its log is known to go; or its log goes further than they know | what it says of the own log |
//! | rejoin | who lost state -> the members | until enough have answered | nothing |
//! | rejoin answer | member -> who rejoins | asked, and sure of its own state | the asker's new life, and all that it tells of (P11) |
//! | fetch | laggard -> whoever knows more, then the next member | a chosen slot is missing here | nothing |
//! | ask index | who has linearizable reads waiting -> whoever coordinates, itself perhaps | no round is under way; again after a while | nothing |
//! | tell index | coordinator -> who asked | its lease runs; or a slot that it proposed since is chosen (P16) | nothing: what is chosen stays chosen |
//! | entries | whoever is asked -> laggard; acceptor -> coordinator | asked by fetch, or by an accept for a slot known to be chosen | nothing: what is chosen stays chosen |
//!
//! A promise, an acceptance and a propose wait for their record through one mechanism ([`crate::durable`], rule P15). Nothing
//! is answered to a propose that a lease or the voting status forbids: a reject would say that a higher ballot is promised.
//!
//! An acknowledgement also grants the lease (rule P8): there is no message for that.

use crate::batch::Batch;
use crate::lives::Voter;
use crate::types::{Ballot, Incarnation, LogPosition, ReplicaId, Slot};

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

/// Slots at which an acceptor may have accepted something that its log has lost since (rule L5).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LostSlots {
    /// The lowest.
    pub first: Slot,
    /// The highest.
    pub last: Slot,
    /// What was lost was accepted at this ballot, or a lower one.
    pub ballot: Ballot,
}

/// A message between replicas.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Message {
    /// Would you promise to me now? Raises nobody's number, so it disturbs nobody.
    Probe {
        /// All up to here the sender knows to be chosen.
        chosen: Slot,
    },
    /// The answer: binding to nothing.
    ProbeAnswer {
        /// Whether it would.
        would: bool,
        /// The highest round it has promised: a candidacy has to go above it.
        round: u64,
        /// All up to here the sender knows to be chosen.
        chosen: Slot,
    },
    /// Phase 1a: ignore everyone older than this ballot. Covers every slot that is not chosen (PML §4.2, Multi-Paxos).
    Propose {
        /// The candidate's ballot.
        ballot: Ballot,
        /// The ballot whose master released its lease to this candidate, or [`Ballot::NONE`].
        released: Ballot,
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
        /// Where it may have accepted more than it reports: there it counts only beside somebody who reports a value at the
        /// ballot named here or above (L5). At most [`crate::Recovered::LOST_MAX`] ranges.
        lost: Vec<LostSlots>,
        /// Which life of the acceptor promises (P11).
        voter: Voter,
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
    /// Phase 2b: accepted, and durable here. Grants the lease, from the accept's receipt on (P8).
    Acknowledge {
        /// The ballot accepted under.
        ballot: Ballot,
        /// The slot accepted.
        slot: Slot,
        /// Which life of the acceptor accepted (P11).
        voter: Voter,
    },
    /// The answer to a propose, an accept or a commit below what was promised: the sender has been superseded.
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
        /// How many more failures the cell survives right now, as the coordinator counts: negative when it cannot go on.
        tolerance: i8,
    },
    /// The lease of this ballot is over, and this ballot never holds one again (P8).
    Release {
        /// Whose.
        ballot: Ballot,
    },
    /// Campaign now: the lease of this ballot is over, and whoever held it will not.
    TakeOver {
        /// The ballot that ends here.
        ballot: Ballot,
    },
    /// How far the logs of the sender and of the receiver go (P13).
    Position {
        /// The sender's: durable.
        durable: LogPosition,
        /// The receiver's, as far as the sender ever heard.
        known: LogPosition,
        /// The sender wants to be told the same.
        asks: bool,
    },
    /// The sender lost state (P11).
    Rejoin {
        /// The life that it means to take; [`Incarnation::NONE`]: it asks which there have been.
        incarnation: Incarnation,
    },
    /// What one has to know who lost state. Its new life is durable at the sender (P11).
    RejoinAnswer {
        /// The life that was asked under.
        asked: Incarnation,
        /// The highest life of the receiver's that the sender knows of.
        known: Incarnation,
        /// The sender lost state itself: nothing else here counts.
        is_lost: bool,
        /// The highest ballot it has promised.
        promised: Ballot,
        /// All up to here it has heard to be chosen.
        chosen: Slot,
        /// What it has accepted above what it knows to be chosen: as in a promise.
        accepted: Vec<AcceptedSlot>,
        /// Which life of the sender answers, and which of the others' it knows: who lost state has forgotten them as well.
        voter: Voter,
    },
    /// Up to where must I have applied, to see all that was acknowledged until now?
    AskIndex {
        /// The round's name: no other has it, in no life of the sender's.
        name: u64,
    },
    /// Up to here.
    TellIndex {
        /// The coordinator's. To whoever obeys it this is a commit as well (P4), so that nobody waits for the next heartbeat.
        ballot: Ballot,
        /// Of the round that was asked about.
        name: u64,
        /// The slot.
        slot: Slot,
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
            Message::Propose { ballot, .. }
            | Message::Accept { ballot, .. }
            | Message::Commit { ballot, .. }
            | Message::TellIndex { ballot, .. }
            | Message::Release { ballot }
            | Message::TakeOver { ballot } => Some(ballot.replica),
            Message::Probe { .. }
            | Message::ProbeAnswer { .. }
            | Message::Promise { .. }
            | Message::Acknowledge { .. }
            | Message::Reject { .. }
            | Message::Position { .. }
            | Message::Rejoin { .. }
            | Message::RejoinAnswer { .. }
            | Message::AskIndex { .. }
            | Message::Fetch { .. }
            | Message::Entries { .. } => None,
        }
    }
}
