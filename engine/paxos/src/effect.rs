//! What can happen to a replica, and what it may ask for. Both lists are closed: to know what wakes us, read them.

use std::collections::BTreeMap;

use crate::batch::Batch;
use crate::configuration::{Configuration, Member};
use crate::lives::CrashVector;
use crate::membership::Change;
use crate::message::{LostSlots, Message};
use crate::types::{Ballot, Incarnation, PersistId, ReplicaId, Slot, Ticket};

/// Everything that can happen to a replica.
#[derive(Clone, Debug)]
pub enum Event {
    /// A message came. From this replica itself too: its own vote takes the same road as everyone's. Whoever decodes it has
    /// checked that [`Message::acting`] is the sender, and that rounds and slots are far from their types' ends.
    Received {
        /// Who sent it.
        from: ReplicaId,
        /// What it says.
        message: Message,
    },
    /// Everything persisted up to and including this is on stable storage.
    Persisted {
        /// The last durable record.
        upto: PersistId,
        /// The log's own number of the last durable frame, which goes on over restarts (P13); 0 where the log has none.
        frame: u64,
    },
    /// A batch to propose, while [`crate::Replica::can_submit`] holds; else it is refused.
    Submitted {
        /// What the submitter calls it.
        ticket: Ticket,
        /// The commands.
        batch: Batch,
    },
    /// An operator wants this replica, the master, to hand over to another; [`crate::Replica::check_transfer`] holds.
    TransferAsked {
        /// To whom.
        to: ReplicaId,
    },
    /// An operator wants the members changed; [`crate::Replica::check_change`] holds.
    ChangeAsked {
        /// How.
        change: Change,
    },
    /// Linearizable reads wait that no round covers: the read index is asked for, for all of them. It ends with [`Effect::Index`], or
    /// with `IndexUnwanted`; another `IndexWanted` begins it anew, for the earlier reads too.
    IndexWanted,
    /// None of them waits any more.
    IndexUnwanted,
    /// Time passed: [`crate::Replica::deadline`] is reached, or just so.
    Ticked,
    /// The log is at its bound (rule L7): nothing more is accepted here, promises aside.
    LogFull,
    /// The log, which was at its bound, has room again.
    LogRoom,
    /// All up to here is in the older of the two snapshots that are kept, durable and verified: the log may be cut there, once
    /// the hard state that says so is durable (rule P2).
    Cut {
        /// The last slot that the log need not hold.
        upto: Slot,
    },
    /// The application's state here is not to be trusted (P14): until another replica's snapshot takes its place this replica
    /// applies nothing and leads nobody. It promises and accepts as before: that does not depend on the state.
    Quarantined,
    /// The application's state is that of another replica's snapshot now, and durable here; [`crate::Replica::can_install`]
    /// held when it was replaced, and holds.
    Installed {
        /// What ties it to the log.
        handle: SnapshotHandle,
    },
}

/// Everything a replica may ask for. The node carries it out; so does the simulator.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Append this to the log. Ids are dense and ascending, in the order of the effects.
    Persist {
        /// Its number.
        id: PersistId,
        /// What to persist.
        record: Record,
    },
    /// Send this now.
    Send {
        /// To whom.
        to: ReplicaId,
        /// What.
        message: Message,
    },
    /// Send this once all persists up to `upto` are durable (rule P15); [`crate::durable::DurableQueue`] holds it. They never
    /// all are when this is asked for: news of durability is still to come.
    SendOnceDurable {
        /// To whom; to this replica itself too.
        to: ReplicaId,
        /// What.
        message: Message,
        /// The record that must be durable first.
        upto: PersistId,
    },
    /// Read chosen batches from the log, from this slot on up to at most `chosen`, and send them as `Entries`.
    SendEntries {
        /// To whom.
        to: ReplicaId,
        /// The first slot wanted.
        from: Slot,
        /// The last that may be sent.
        chosen: Slot,
    },
    /// Apply the batch chosen at this slot. Slots come in order, each once.
    Apply {
        /// The slot.
        slot: Slot,
        /// The value.
        batch: Batch,
        /// The submitter's name for it, if this replica proposed it and counted its majority.
        ticket: Option<Ticket>,
    },
    /// The reads that waited when [`Event::IndexWanted`] was last told may be answered once all up to this slot is applied: they
    /// then see all that was acknowledged before that (rule P16). Those that came later may not.
    Index {
        /// The slot.
        slot: Slot,
    },
    /// The members are others than before: reach all of these. They were persisted before this effect.
    Reconfigured {
        /// The configuration in force, and the one to come.
        configurations: Configurations,
    },
    /// The batch was never proposed: for certain it did not happen.
    Refuse {
        /// Which.
        ticket: Ticket,
    },
    /// The batch was proposed, and mastership was lost before it was chosen: nobody here knows its outcome.
    Abandon {
        /// Which.
        ticket: Ticket,
    },
}

/// The effects of a step, in the order in which they are to be carried out.
pub type Effects = Vec<Effect>;

/// What a replica asks to persist.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Record {
    /// What has no slot.
    HardState(HardState),
    /// This replica accepted a value.
    Accepted {
        /// The slot.
        slot: Slot,
        /// Under which ballot.
        ballot: Ballot,
        /// What was known to be chosen then: recovery applies up to the highest of these.
        chosen: Slot,
        /// The value.
        batch: Batch,
    },
    /// This replica was told that a value is chosen.
    Chosen {
        /// The slot.
        slot: Slot,
        /// The value.
        batch: Batch,
    },
}

/// What outlives a crash and has no slot (rule P2).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct HardState {
    /// No lower ballot gets anything from this replica.
    pub promised: Ballot,
    /// Which life of the durable state this is; [`Incarnation::NONE`]: state was lost, and it has not rejoined (P11).
    pub incarnation: Incarnation,
    /// Which lives the others are in, as far as is known here (P11).
    pub vector: CrashVector,
    /// Who votes, and who will.
    pub configurations: Configurations,
    /// All up to here may be gone from the log: two snapshots have it.
    pub cut: Slot,
}

/// What ties a snapshot of the application's state to the log (PML §5.5).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct SnapshotHandle {
    /// All up to here is in it, and nothing else.
    pub slot: Slot,
    /// What its maker had promised then: whoever looks at a snapshot without a log learns from it which ballots are used up.
    pub ballot: Ballot,
    /// Who kept the cell after that slot, and who was to.
    pub configurations: Configurations,
}

/// The configuration in force, and the one that has been decided to follow it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Configurations {
    /// Governs now.
    pub current: Configuration,
    /// The first slot that `current` governs.
    pub since: Slot,
    /// Governs from this slot on (rule P6).
    pub pending: Option<(Slot, Configuration)>,
}

impl Configurations {
    /// Those of a new cell.
    pub fn first(configuration: Configuration) -> Self {
        Self { current: configuration, since: Slot::NONE.next(), pending: None }
    }

    /// A change that was made while the configuration governing from `base` on was the last one is decided at this slot: it
    /// governs from a horizon later on. Made for another, it is void.
    pub(crate) fn is_made_for(&self, base: Slot) -> bool {
        self.pending.is_none() && base == self.since
    }

    pub(crate) fn decide(&mut self, slot: Slot, configuration: Configuration) {
        let horizon = if crate::planted!(P6GovernsAtOnce) { 1 } else { self.current.horizon() };
        self.pending = Some((slot.plus(horizon), configuration));
    }

    /// Whether the next slot is one that the pending configuration governs.
    pub(crate) fn is_due(&self, next: Slot) -> bool {
        self.pending.as_ref().is_some_and(|(from, _)| next >= *from)
    }

    /// The pending configuration comes into force; gives the one before.
    pub(crate) fn enact(&mut self) -> Configuration {
        let (from, configuration) = self.pending.take().expect("there is one while it is changing");
        self.since = from;
        std::mem::replace(&mut self.current, configuration)
    }

    /// One more slot is applied; recovery's way to do what the membership machine does step by step.
    pub(crate) fn applied(&mut self, slot: Slot, batch: &Batch) {
        if self.is_due(slot.next()) {
            self.enact();
        }
        if let Some((base, configuration)) = batch.as_change()
            && self.is_made_for(base)
        {
            self.decide(slot, configuration);
        }
    }

    /// All up to here was chosen and applied when these were so.
    pub(crate) fn known_chosen(&self) -> Slot {
        match &self.pending {
            Some((from, _)) => Slot(from.0.saturating_sub(self.current.horizon())),
            None => self.since.before(),
        }
    }

    /// The members of both; who is in both comes twice.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        let pending = self.pending.iter().flat_map(|(_, configuration)| configuration.members());
        self.current.members().iter().chain(pending)
    }
}

/// What a replica starts from: the outcome of reading its log, which [`crate::Recovery`] does, or [`Recovered::nothing`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovered {
    /// Who votes, and who will, as of `chosen`.
    pub configurations: Configurations,
    /// The last durable promise, or a higher ballot under which something was accepted.
    pub promised: Ballot,
    /// All up to here is chosen, and already applied.
    pub chosen: Slot,
    /// All up to here is known to be chosen, though values above `chosen` are missing in the log: others have them.
    pub known: Slot,
    /// What was accepted above that, last ballot each.
    pub accepted: BTreeMap<Slot, (Ballot, Batch)>,
    /// Where more may have been accepted above `chosen`, and was lost with parts of the log (rule L5).
    pub lost: Vec<LostSlots>,
    /// In how many places the log has lost something. If any, its last hard state may be gone, too: what is said here is to be
    /// repeated in its place (P2).
    pub holes: u64,
    /// All up to here may be gone from the log.
    pub cut: Slot,
    /// What the log holds of slots up to here need not be what was chosen there: an installed snapshot passed it by. At or above
    /// the cut; where above, the log is to be cut here before it is read for others ([`Event::Cut`]).
    pub passed_by: Slot,
    /// Which lives the others are in.
    pub vector: CrashVector,
    /// The log is not all that this replica promised and accepted: it has to rejoin before it votes (P11).
    pub lost_state: bool,
    /// The last frame of the log, by its own numbers (P13); 0 where it has none. Whoever read the log fills it in.
    pub frame: u64,
}

impl Recovered {
    /// More ranges of lost slots are told as one that covers them: to have lost more is safe to say.
    pub const LOST_MAX: usize = 64;

    /// The start of a new replica of a cell that these keep.
    pub fn nothing(configuration: Configuration) -> Self {
        Self::of(Configurations::first(configuration))
    }

    /// Nothing but who the members are.
    pub(crate) fn of(configurations: Configurations) -> Self {
        Self {
            configurations,
            promised: Ballot::NONE,
            chosen: Slot::NONE,
            known: Slot::NONE,
            accepted: BTreeMap::new(),
            lost: Vec::new(),
            holes: 0,
            cut: Slot::NONE,
            passed_by: Slot::NONE,
            vector: CrashVector::default(),
            lost_state: false,
            frame: 0,
        }
    }
}
