//! What the machines see of everything else during one step: the time, each other, the records, the effects.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use crate::acceptor::Acceptor;
use crate::effect::{Effect, Effects, HardState, Record};
use crate::learner::Learner;
use crate::lives::Lives;
use crate::machine::Counts;
use crate::membership::Membership;
use crate::message::{LostSlots, Message};
use crate::rejoin::Rejoin;
use crate::settings::Settings;
use crate::types::{Ballot, Instant, PersistId, ReplicaId, Slot};
use crate::{grant, index, lease, standing};

/// Everything of a replica but its coordinator, which acts on it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Core {
    pub(crate) settings: Settings,
    pub(crate) membership: Membership,
    pub(crate) standing: standing::State,
    pub(crate) lives: Lives,
    pub(crate) rejoin: Rejoin,
    pub(crate) grant: grant::State,
    /// The highest ballot known to have given its lease back: it never holds one again (P8).
    pub(crate) released: Ballot,
    pub(crate) acceptor: Acceptor,
    pub(crate) learner: Learner,
    pub(crate) lease: lease::State,
    pub(crate) index: index::State,
    /// The application's state is not to be trusted (P14): see [`crate::Event::Quarantined`].
    pub(crate) quarantined: bool,
    pub(crate) journal: Journal,
    /// For which slots a candidacy of this replica's waits, though a majority has promised (L5).
    pub(crate) held_up: Option<LostSlots>,
    /// The highest round heard of: a candidacy goes above it.
    pub(crate) round: u64,
    pub(crate) random: Random,
    pub(crate) counts: Counts,
}

/// What the machines see of everything else during one step.
pub(crate) struct World<'a> {
    pub(crate) now: Instant,
    pub(crate) core: &'a mut Core,
    pub(crate) effects: &'a mut Effects,
}

impl World<'_> {
    pub(crate) fn me(&self) -> ReplicaId {
        self.core.settings.me
    }

    pub(crate) fn chosen(&self) -> Slot {
        self.core.learner.chosen()
    }

    /// All up to here is told to be chosen: where the own log has lost values, further than what is applied (L5).
    pub(crate) fn known(&self) -> Slot {
        self.core.learner.known()
    }

    pub(crate) fn send(&mut self, to: ReplicaId, message: Message) {
        self.effects.push(Effect::Send { to, message });
    }

    /// Sends to every other member, learners included.
    pub(crate) fn send_all(&mut self, message: &Message) {
        for to in self.core.membership.others() {
            self.effects.push(Effect::Send { to: *to, message: message.clone() });
        }
    }

    pub(crate) fn persist(&mut self, record: Record) -> PersistId {
        let id = self.core.journal.append(self.now, &record);
        self.effects.push(Effect::Persist { id, record });
        id
    }

    /// Persists what has no slot (rule P2).
    pub(crate) fn persist_hard_state(&mut self) -> PersistId {
        let record = Record::HardState(HardState {
            promised: self.core.acceptor.promised(),
            incarnation: self.core.lives.own,
            vector: self.core.lives.vector.clone(),
            configurations: self.core.membership.configurations().clone(),
            cut: self.core.learner.cut(),
        });
        self.persist(record)
    }

    pub(crate) fn is_backed_up(&self) -> bool {
        self.core.is_backed_up()
    }

    pub(crate) fn is_stalled(&self) -> bool {
        self.core.is_stalled(self.now)
    }

    /// A moment between `least` and half as much again from now, so that two replicas seldom act at once.
    pub(crate) fn after_about(&mut self, least: Duration) -> Instant {
        let least = u64::try_from(least.as_nanos()).unwrap_or(u64::MAX);
        let spread = self.core.random.0.u64(..(least / 2).max(1));
        self.now.after(Duration::from_nanos(least.saturating_add(spread)))
    }

    /// A moment within a heartbeat after `moment`, so that two replicas seldom act at once.
    pub(crate) fn soon_after(&mut self, moment: Instant) -> Instant {
        let heartbeat = u64::try_from(self.core.settings.heartbeat.as_nanos()).unwrap_or(u64::MAX);
        let spread = self.core.random.0.u64(..heartbeat.max(1));
        moment.after(Duration::from_nanos(spread))
    }
}

impl Core {
    pub(crate) fn is_backed_up(&self) -> bool {
        self.journal.unflushed_bytes > self.settings.backlog_bytes_max
    }

    /// Whether the own disk has been silent, with something to write, for as long as a lease (rule P7).
    pub(crate) fn is_stalled(&self, now: Instant) -> bool {
        let lease = self.membership.lease();
        !lease.is_zero() && self.journal.oldest().is_some_and(|asked| now.since(asked) > lease)
    }
}

/// Numbers the records that leave for the log, and knows which are not durable yet.
#[derive(Clone, Debug)]
pub(crate) struct Journal {
    last: PersistId,
    unflushed: VecDeque<(PersistId, u64, Instant)>,
    unflushed_bytes: u64,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self { last: PersistId(0), unflushed: VecDeque::new(), unflushed_bytes: 0 }
    }

    fn append(&mut self, now: Instant, record: &Record) -> PersistId {
        /// What a record takes beside its batch, roughly: enough to bound a backlog of no-ops.
        const RECORD_BYTES: u64 = 64;
        let bytes = RECORD_BYTES
            + match record {
                Record::HardState(_) => 0,
                Record::Accepted { batch, .. } | Record::Chosen { batch, .. } => batch.len() as u64,
            };
        self.last = PersistId(self.last.0 + 1);
        self.unflushed.push_back((self.last, bytes, now));
        self.unflushed_bytes += bytes;
        self.last
    }

    pub(crate) fn persisted(&mut self, upto: PersistId) {
        assert!(upto <= self.last, "nothing is durable that was never asked for");
        while let Some((id, bytes, _)) = self.unflushed.front() {
            if *id > upto {
                break;
            }
            self.unflushed_bytes -= bytes;
            self.unflushed.pop_front();
        }
    }

    /// The last record asked for.
    pub(crate) fn last(&self) -> PersistId {
        self.last
    }

    /// When the oldest record that is not durable yet was asked for.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.unflushed.front().map(|(.., asked)| *asked)
    }
}

/// What records are called is no part of what a replica is: nothing depends on it but which of them is meant. What they say
/// is known to whoever carries the effects out, and how many bytes they are counts only when they are far too many (P7).
impl PartialEq for Journal {
    fn eq(&self, other: &Self) -> bool {
        self.oldest() == other.oldest()
    }
}

impl Eq for Journal {}

impl Hash for Journal {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.oldest().hash(hasher);
    }
}

/// The randomness of elections. Not part of what a replica is: it decides when, never what.
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) fastrand::Rng);

impl PartialEq for Random {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Random {}

impl Hash for Random {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}
