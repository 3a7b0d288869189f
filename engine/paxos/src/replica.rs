//! A replica: the machines together, and the one way in.

use std::hash::{Hash, Hasher};

use crate::acceptor::{self, Acceptor, Verdict};
use crate::configuration::Settings;
use crate::coordinator::{self, Coordinator, Role};
use crate::effect::{Effect, Effects, Event, Recovered};
use crate::learner::{self, Learner};
use crate::message::Message;
use crate::types::{Ballot, Instant, ReplicaId, Slot};
use crate::world::{Journal, World};

/// One replica of the fault-tolerant log.
#[derive(Clone)]
pub struct Replica {
    settings: Settings,
    journal: Journal,
    acceptor: Acceptor,
    learner: Learner,
    coordinator: Coordinator,
}

/// Replicas of one cell and one place in it are equal when the same events bring the same from both, by whatever numbers
/// they call their records. Left out is how far the disk is behind: so it holds while neither is backed up (rule P7).
impl PartialEq for Replica {
    fn eq(&self, other: &Self) -> bool {
        (&self.acceptor, &self.learner, &self.coordinator) == (&other.acceptor, &other.learner, &other.coordinator)
    }
}

impl Eq for Replica {}

impl Hash for Replica {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (&self.acceptor, &self.learner, &self.coordinator).hash(hasher);
    }
}

impl Replica {
    /// A replica that starts now from what its log held.
    pub fn new(settings: Settings, recovered: Recovered, now: Instant) -> Self {
        assert!(settings.window >= 1, "no slot could ever be open");
        assert!(settings.window <= settings.configuration.horizon(), "the window is never above the horizon (P5)");
        let learner = Learner::new(recovered.chosen);
        let acceptor = Acceptor::new(recovered);
        let coordinator = Coordinator::new(&settings, acceptor.promised(), now);
        Self { settings, journal: Journal::new(), acceptor, learner, coordinator }
    }

    /// Takes one event. Runs to its end, never waits, never fails.
    pub fn step(&mut self, now: Instant, event: Event, effects: &mut Effects) {
        let chosen_before = self.learner.chosen();
        let mut world = World { now, settings: &self.settings, journal: &mut self.journal, effects };
        match event {
            Event::Received { from, message } => {
                receive(from, message, &mut self.acceptor, &mut self.learner, &mut self.coordinator, &mut world);
            }
            Event::Persisted { upto } => world.journal.persisted(upto),
            Event::Submitted { ticket, batch } => {
                let event = coordinator::Event::Submitted { ticket, batch };
                self.coordinator.step(event, &mut self.acceptor, &mut self.learner, &mut world);
            }
            Event::Ticked => {
                self.learner.step(learner::Event::Ticked, &mut self.acceptor, &mut world);
                let event = coordinator::Event::Ticked;
                self.coordinator.step(event, &mut self.acceptor, &mut self.learner, &mut world);
            }
            Event::LogFull => {
                self.acceptor.step(acceptor::Event::LogFull, self.learner.chosen(), &mut world);
            }
        }
        if self.learner.chosen() > chosen_before {
            let event = coordinator::Event::Progressed;
            self.coordinator.step(event, &mut self.acceptor, &mut self.learner, &mut world);
        }
        if world.journal.is_backed_up(world.settings) {
            let event = coordinator::Event::BackedUp;
            self.coordinator.step(event, &mut self.acceptor, &mut self.learner, &mut world);
        }
        assert!(self.learner.chosen() >= chosen_before, "what is chosen stays chosen");
    }

    /// Whether a batch submitted now would be proposed at once: this replica coordinates, its window is open and its
    /// log has room.
    pub fn can_submit(&self) -> bool {
        !self.acceptor.is_full() && self.coordinator.has_room(&self.settings, self.learner.chosen())
    }

    /// When the replica wants an [`Event::Ticked`] at the latest.
    pub fn deadline(&self) -> Instant {
        let coordinator = self.coordinator.deadline(&self.settings);
        self.learner.deadline().map_or(coordinator, |deadline| deadline.min(coordinator))
    }

    /// What this replica is to the others.
    pub fn role(&self) -> Role {
        self.coordinator.role()
    }

    /// All up to here is chosen and applied.
    pub fn chosen(&self) -> Slot {
        self.learner.chosen()
    }

    /// The highest ballot this replica has promised to anyone.
    pub fn promised(&self) -> Ballot {
        self.acceptor.promised()
    }

    /// The acceptor, to look at.
    pub fn acceptor(&self) -> &Acceptor {
        &self.acceptor
    }

    /// How many slots are proposed here and not yet chosen.
    pub fn open_slots(&self) -> usize {
        self.coordinator.open_slots()
    }

    /// Whether the log is at its bound.
    pub fn is_full(&self) -> bool {
        self.acceptor.is_full()
    }

    /// Whether chosen slots are being fetched from another replica.
    pub fn is_fetching(&self) -> bool {
        self.learner.is_fetching()
    }
}

/// Hands a message to the machine that answers for it.
fn receive(
    from: ReplicaId,
    message: Message,
    acceptor: &mut Acceptor,
    learner: &mut Learner,
    coordinator: &mut Coordinator,
    world: &mut World<'_>,
) {
    let chosen = learner.chosen();
    match message {
        Message::Propose { ballot } => {
            if acceptor.step(acceptor::Event::Proposed { from, ballot }, chosen, world) == Verdict::Obeyed {
                coordinator.step(coordinator::Event::Promised { ballot }, acceptor, learner, world);
            }
        }
        Message::Promise { ballot, cut, chosen, accepted } => {
            assert_eq!(cut, Slot::NONE, "nothing cuts a log before snapshots exist");
            let event = coordinator::Event::Promise { from, ballot, chosen, accepted };
            coordinator.step(event, acceptor, learner, world);
        }
        Message::Accept { ballot, slot, batch, chosen: upto } => {
            let event = acceptor::Event::Asked { from, ballot, slot, batch };
            if acceptor.step(event, chosen, world) == Verdict::Obeyed {
                coordinator.step(coordinator::Event::Obeyed { ballot }, acceptor, learner, world);
                learner.step(learner::Event::Committed { from, ballot, upto }, acceptor, world);
            }
        }
        Message::Commit { ballot, chosen: upto } => {
            if acceptor.obey_or_reject(from, ballot, world) == Verdict::Obeyed {
                coordinator.step(coordinator::Event::Obeyed { ballot }, acceptor, learner, world);
                learner.step(learner::Event::Committed { from, ballot, upto }, acceptor, world);
            }
        }
        Message::Acknowledge { ballot, slot } => {
            coordinator.step(coordinator::Event::Acknowledge { from, ballot, slot }, acceptor, learner, world);
        }
        Message::Reject { promised } => {
            coordinator.step(coordinator::Event::Rejected { promised }, acceptor, learner, world);
        }
        Message::Fetch { from: first } => {
            if first <= chosen {
                world.effects.push(Effect::SendEntries { to: from, from: first, chosen });
            }
        }
        Message::Entries { first, batches, chosen: upto } => {
            let event = coordinator::Event::Told { first, batches: &batches };
            coordinator.step(event, acceptor, learner, world);
            learner.step(learner::Event::Entries { from, first, batches, upto }, acceptor, world);
        }
    }
}
