//! The acceptor: what this replica has promised, and what it has accepted.
//!
//! All of it outlives a crash. This is the only module that asks for a promise or an acceptance to be persisted, and
//! recovery rebuilds it from those records alone. PML §4.1; §5.1 (a lost disk does not vote).
//!
//! Invariants:
//!   - `promised` never moves back, restarts included; nothing is accepted below it;
//!   - no slot up to the chosen one is held: its value is decided, and whoever needs it fetches it (rule P3);
//!   - no slot beyond the chosen one plus twice the horizon is held, so that a promise has a bounded size (rule P5).

use std::collections::BTreeMap;

use crate::batch::Batch;
use crate::effect::{Effect, HardState, Record, Recovered};
use crate::message::{AcceptedSlot, Message};
use crate::types::{Ballot, ReplicaId, Slot};
use crate::world::World;

/// Whether this replica takes new values.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum State {
    /// It promises and accepts.
    Voting,
    /// Its log is at its bound (rule L7): it still promises, which is small, and accepts from nobody else.
    Full,
}

/// What can happen to an acceptor.
pub(crate) enum Event {
    Proposed { from: ReplicaId, ballot: Ballot },
    Asked { from: ReplicaId, ballot: Ballot, slot: Slot, batch: Batch },
    LogFull,
}

/// What the acceptor made of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Its sender is the one to obey now.
    Obeyed,
    /// Its sender has been superseded, and was told so.
    Rejected,
}

/// What this replica has promised and accepted.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Acceptor {
    state: State,
    promised: Ballot,
    accepted: BTreeMap<Slot, (Ballot, Batch)>,
}

impl Acceptor {
    pub(crate) fn new(recovered: Recovered) -> Self {
        let Recovered { promised, chosen, accepted } = recovered;
        assert!(accepted.keys().all(|slot| *slot > chosen), "recovery keeps only what is not chosen");
        assert!(accepted.values().all(|(ballot, _)| *ballot <= promised), "an acceptance implies the promise");
        Self { state: State::Voting, promised, accepted }
    }

    /// The highest ballot promised to anyone.
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    /// Whether the log is at its bound.
    pub fn is_full(&self) -> bool {
        self.state == State::Full
    }

    /// What was last accepted at `slot`, if it is not yet known to be chosen.
    pub fn accepted_at(&self, slot: Slot) -> Option<&(Ballot, Batch)> {
        self.accepted.get(&slot)
    }

    /// The slot is chosen: its value is the learner's now.
    pub(crate) fn forget(&mut self, slot: Slot) {
        self.accepted.remove(&slot);
    }

    pub(crate) fn step(&mut self, event: Event, chosen: Slot, world: &mut World<'_>) -> Verdict {
        match (self.state, event) {
            (State::Voting | State::Full, Event::Proposed { from, ballot }) => {
                self.promise(from, ballot, chosen, world)
            }
            (State::Voting, Event::Asked { from, ballot, slot, batch }) => {
                self.accept(from, ballot, slot, batch, chosen, world)
            }
            (State::Full, Event::Asked { from, ballot, slot, batch }) => {
                // The own coordinator asks only to finish what others began, a horizon of slots at most; the log keeps
                // that much in reserve. It takes nothing new from clients.
                if from == world.settings.me {
                    return self.accept(from, ballot, slot, batch, chosen, world);
                }
                self.obey_or_reject(from, ballot, world)
            }
            (State::Voting | State::Full, Event::LogFull) => {
                self.state = State::Full;
                Verdict::Obeyed
            }
        }
    }

    /// Hears a coordinator without taking a value from it.
    pub(crate) fn obey_or_reject(&self, from: ReplicaId, ballot: Ballot, world: &mut World<'_>) -> Verdict {
        if ballot >= self.promised {
            return Verdict::Obeyed;
        }
        // An answer rather than silence: the older coordinator learns at once that it lost.
        world.send(from, Message::Reject { promised: self.promised });
        Verdict::Rejected
    }

    /// A would-be coordinator asks us to ignore everyone older.
    fn promise(&mut self, from: ReplicaId, ballot: Ballot, chosen: Slot, world: &mut World<'_>) -> Verdict {
        // Equal is repeated, not refused: the first answer may have been lost, and saying it again promises nothing new.
        if self.obey_or_reject(from, ballot, world) == Verdict::Rejected {
            return Verdict::Rejected;
        }
        let upto = self.raise(ballot, world);
        let accepted = self
            .accepted
            .iter()
            .map(|(slot, (ballot, batch))| AcceptedSlot { slot: *slot, ballot: *ballot, batch: batch.clone() })
            .collect();
        // Not a moment earlier: forgotten in a crash, it would let an older coordinator get a second value chosen.
        let message = Message::Promise { ballot, cut: Slot::NONE, chosen, accepted };
        world.effects.push(Effect::SendOnceDurable { to: from, message, upto });
        if from == world.settings.me {
            // The candidate is this replica: its propose leaves with its own promise durable, so that no restart can
            // make it use this ballot again (rule P1).
            for to in world.settings.others() {
                let message = Message::Propose { ballot };
                world.effects.push(Effect::SendOnceDurable { to, message, upto });
            }
        }
        Verdict::Obeyed
    }

    /// A coordinator asks us to accept a value.
    fn accept(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        slot: Slot,
        batch: Batch,
        chosen: Slot,
        world: &mut World<'_>,
    ) -> Verdict {
        if self.obey_or_reject(from, ballot, world) == Verdict::Rejected {
            return Verdict::Rejected;
        }
        if slot <= chosen {
            // What is chosen is told, not voted on again. A record of this acceptance would stand behind the chosen
            // value's in the log, and the sender may be long superseded, with another value.
            assert!(from != world.settings.me, "the own coordinator knows what is chosen here");
            world.effects.push(Effect::SendEntries { to: from, from: slot, chosen });
            return Verdict::Obeyed;
        }
        let bound = chosen.plus(2 * world.settings.configuration.horizon());
        if slot > bound || world.journal.is_backed_up(world.settings) {
            // Too far ahead of what we know, or of our disk. Not an error of the sender's: catch-up brings the value.
            return Verdict::Obeyed;
        }
        if ballot > self.promised {
            self.raise(ballot, world);
        }
        let record = Record::Accepted { slot, ballot, chosen, batch: batch.clone() };
        let upto = world.persist(record);
        self.accepted.insert(slot, (ballot, batch));
        world.effects.push(Effect::SendOnceDurable { to: from, message: Message::Acknowledge { ballot, slot }, upto });
        Verdict::Obeyed
    }

    /// Moves the promise up to `ballot` and asks for it to be persisted: the only place that does.
    fn raise(&mut self, ballot: Ballot, world: &mut World<'_>) -> crate::types::PersistId {
        assert!(ballot >= self.promised, "a promise never moves back");
        self.promised = ballot;
        world.persist(Record::HardState(HardState {
            promised: ballot,
            incarnation: world.settings.incarnation,
            configuration: world.settings.configuration.clone(),
            cut: Slot::NONE,
        }))
    }
}
