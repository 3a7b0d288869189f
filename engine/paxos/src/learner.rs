//! The learner: which slots are chosen, applying them in order, and fetching what is missing.
//!
//! A slot is known to be chosen in one of three ways: the own coordinator counted a majority; a coordinator's commit
//! slot covers it and it was accepted here under that very ballot (rule P4); another replica sent it as an entry.
//!
//! Invariants:
//!   - slots are applied in order, each once, none with a gap below it;
//!   - for every slot up to `chosen` the own log holds, or is about to hold before anything later, a record with the
//!     chosen value: recovery and catch-up read it there. So an entry from another replica is persisted first.

use std::collections::BTreeMap;

use crate::acceptor::Acceptor;
use crate::batch::Batch;
use crate::effect::{Effect, Record};
use crate::message::Message;
use crate::types::{Ballot, Instant, ReplicaId, Slot, Ticket};
use crate::world::World;

/// Whether this replica is missing chosen slots.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum State {
    /// Nobody we heard of knows more.
    Current,
    /// Asked a replica for entries; asked again, of the next one, when no answer helped until then.
    Fetching { of: ReplicaId, until: Instant },
}

/// What can happen to a learner, coordinator's decisions aside.
pub(crate) enum Event {
    /// A coordinator says that all up to here is chosen.
    Committed {
        from: ReplicaId,
        ballot: Ballot,
        upto: Slot,
    },
    /// Another replica knows more than this one, and it matters now.
    Outrun {
        from: ReplicaId,
        upto: Slot,
    },
    /// Chosen batches, and how far the sender could go on.
    Entries {
        from: ReplicaId,
        first: Slot,
        batches: Vec<Batch>,
        upto: Slot,
    },
    Ticked,
}

/// What this replica knows to be chosen.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Learner {
    state: State,
    chosen: Slot,
    /// Chosen, with a gap below. Bounded by the coordinator's window.
    early: BTreeMap<Slot, (Batch, Option<Ticket>)>,
    /// The highest slot that anyone said is chosen.
    heard_of: Slot,
}

impl Learner {
    pub(crate) fn new(chosen: Slot) -> Self {
        Self { state: State::Current, chosen, early: BTreeMap::new(), heard_of: chosen }
    }

    /// All up to here is chosen, and applied.
    pub fn chosen(&self) -> Slot {
        self.chosen
    }

    /// Whether a chosen slot is being fetched from another replica.
    pub fn is_fetching(&self) -> bool {
        self.state != State::Current
    }

    /// When the learner wants to be ticked.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Current => None,
            State::Fetching { until, .. } => Some(until),
        }
    }

    /// The own coordinator counted a majority for this slot.
    pub(crate) fn decide(
        &mut self,
        slot: Slot,
        batch: Batch,
        ticket: Option<Ticket>,
        acceptor: &mut Acceptor,
        world: &mut World<'_>,
    ) {
        if slot > self.chosen {
            self.note(slot, batch, ticket);
            self.advance(acceptor, world);
        }
    }

    /// Keeps a chosen batch until all below it is there. A slot may be found chosen more than once, by one ballot after
    /// another, and a ticket that it had is kept: its submitter still waits.
    fn note(&mut self, slot: Slot, batch: Batch, ticket: Option<Ticket>) {
        let (known, waiting) = self.early.entry(slot).or_insert_with(|| (batch.clone(), ticket));
        assert!(*known == batch, "two values chosen at slot {slot}");
        *waiting = waiting.or(ticket);
    }

    pub(crate) fn step(&mut self, event: Event, acceptor: &mut Acceptor, world: &mut World<'_>) {
        match (self.state, event) {
            (State::Current | State::Fetching { .. }, Event::Committed { from, ballot, upto }) => {
                self.commit(ballot, upto, acceptor, world);
                self.chase(from, upto, acceptor.is_full(), world);
            }
            (State::Current | State::Fetching { .. }, Event::Outrun { from, upto }) => {
                self.chase(from, upto, acceptor.is_full(), world)
            }
            (State::Current | State::Fetching { .. }, Event::Entries { from, first, batches, upto }) => {
                let before = self.chosen;
                self.take_entries(first, batches, acceptor, world);
                if self.chosen > before {
                    // It helped: go on with the same replica at once.
                    self.state = State::Current;
                }
                self.chase(from, upto, acceptor.is_full(), world);
            }
            (State::Current, Event::Ticked) => {}
            (State::Fetching { of, until }, Event::Ticked) => {
                if world.now >= until {
                    self.fetch(next_after(of, world), world);
                }
            }
        }
    }

    /// Walks over what was accepted here under this very ballot; another ballot's value need not be the chosen one (P4).
    fn commit(&mut self, ballot: Ballot, upto: Slot, acceptor: &mut Acceptor, world: &mut World<'_>) {
        while self.chosen < upto {
            let slot = self.chosen.next();
            let batch = match acceptor.accepted_at(slot) {
                Some((accepted, batch)) if *accepted == ballot => batch.clone(),
                Some(_) | None => break,
            };
            self.note(slot, batch, None);
            self.advance(acceptor, world);
        }
    }

    /// Notes that `from` knows all up to `upto`, and fetches what is missing here: of it, if it knows more than we do.
    fn chase(&mut self, from: ReplicaId, upto: Slot, is_full: bool, world: &mut World<'_>) {
        self.heard_of = self.heard_of.max(upto);
        // A full log could not take what it would be sent.
        if self.heard_of <= self.chosen || is_full {
            self.state = State::Current;
        } else if self.state == State::Current {
            self.fetch(if upto > self.chosen { from } else { next_after(from, world) }, world);
        }
    }

    fn fetch(&mut self, of: ReplicaId, world: &mut World<'_>) {
        world.send(of, Message::Fetch { from: self.chosen.next() });
        self.state = State::Fetching { of, until: world.now.after(world.settings.resend()) };
    }

    fn take_entries(&mut self, first: Slot, batches: Vec<Batch>, acceptor: &mut Acceptor, world: &mut World<'_>) {
        if first > self.chosen.next() || world.journal.is_backed_up(world.settings) || acceptor.is_full() {
            // A gap below, or no room in the log: asked again later, when it can be used.
            return;
        }
        let mut slot = first;
        for batch in batches {
            if slot > self.chosen {
                world.persist(Record::Chosen { slot, batch: batch.clone() });
                self.note(slot, batch, None);
                self.advance(acceptor, world);
            }
            slot = slot.next();
        }
    }

    /// Applies what is next in order.
    fn advance(&mut self, acceptor: &mut Acceptor, world: &mut World<'_>) {
        while let Some((batch, ticket)) = self.early.remove(&self.chosen.next()) {
            self.chosen = self.chosen.next();
            acceptor.forget(self.chosen);
            world.effects.push(Effect::Apply { slot: self.chosen, batch, ticket });
        }
    }
}

/// The member after `of`, ourselves left out: whoever was asked in vain is asked last.
fn next_after(of: ReplicaId, world: &World<'_>) -> ReplicaId {
    let others = || world.settings.others();
    others().find(|id| *id > of).or_else(|| others().next()).expect("somebody else told us of what we miss")
}
