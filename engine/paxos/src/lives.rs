//! The lives of the replicas (rule P11), and how far their logs go (rule P13).
//!
//! A replica that lost state goes on under a new incarnation, and what its earlier life promised and accepted counts no more: a
//! quorum that rests on it might rest on what nobody remembers. Each vote names the life that gives it, and the lives that its
//! giver knows of, the *crash vector*; so whoever counts drops the votes of every life that one of the others knows to be over.
//! `docs/rejoin.md` argues that this is enough.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::message::Message;
use crate::types::{Incarnation, Instant, LogPosition, ReplicaId};
use crate::world::World;

/// Of each replica the highest incarnation known. Who is in its first life is left out: where nothing was ever lost it is empty,
/// takes a word in memory and two bytes on the wire, and costs no allocation. At most as many as there are ids; those of removed members
/// stay, because a laggard cannot tell one that was removed from one that it has not heard of.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct CrashVector(Option<Arc<BTreeMap<ReplicaId, Incarnation>>>);

impl CrashVector {
    /// The highest incarnation known of this replica.
    pub fn of(&self, replica: ReplicaId) -> Incarnation {
        let known = self.0.as_ref().and_then(|lives| lives.get(&replica));
        known.copied().unwrap_or(Incarnation::FIRST)
    }

    /// Those that lost state once, and the life they are in.
    pub fn iter(&self) -> impl Iterator<Item = (ReplicaId, Incarnation)> {
        self.0.iter().flat_map(|lives| lives.iter()).map(|(replica, incarnation)| (*replica, *incarnation))
    }

    /// How many lost state once.
    pub fn len(&self) -> usize {
        self.0.as_ref().map_or(0, |lives| lives.len())
    }

    /// Whether nobody ever lost anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Notes this life; says whether it was news.
    pub fn note(&mut self, replica: ReplicaId, incarnation: Incarnation) -> bool {
        let is_news = incarnation > self.of(replica);
        if is_news {
            Arc::make_mut(self.0.get_or_insert_default()).insert(replica, incarnation);
        }
        is_news
    }
}

impl FromIterator<(ReplicaId, Incarnation)> for CrashVector {
    fn from_iter<T: IntoIterator<Item = (ReplicaId, Incarnation)>>(lives: T) -> Self {
        let mut vector = Self::default();
        for (replica, incarnation) in lives {
            vector.note(replica, incarnation);
        }
        vector
    }
}

/// Who gives a vote: which life of it, and what it knows of the others'.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Voter {
    /// Its life.
    pub incarnation: Incarnation,
    /// The lives that it knows of, its own left out.
    pub vector: CrashVector,
}

impl Default for Voter {
    /// Of a cell that never lost anything.
    fn default() -> Self {
        Self { incarnation: Incarnation::FIRST, vector: CrashVector::default() }
    }
}

/// What this replica knows of its own life and the others'.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Lives {
    /// [`Incarnation::NONE`] from a loss until it has rejoined.
    pub(crate) own: Incarnation,
    /// Durable before it is answered (P11).
    pub(crate) vector: CrashVector,
    /// How far each of the others said that its log goes; in memory only (P13).
    positions: BTreeMap<ReplicaId, LogPosition>,
    /// The last frame of the own log that is durable.
    frame: u64,
    /// What the others were told of it, and when they are told next.
    told: u64,
    tell_at: Instant,
}

impl Lives {
    pub(crate) fn new(own: Incarnation, vector: CrashVector, frame: u64) -> Self {
        Self { own, vector, positions: BTreeMap::new(), frame, told: frame, tell_at: Instant(0) }
    }

    pub(crate) fn is_lost(&self) -> bool {
        self.own == Incarnation::NONE
    }

    pub(crate) fn voter(&self) -> Voter {
        Voter { incarnation: self.own, vector: self.vector.clone() }
    }

    /// How far the own log goes.
    pub(crate) fn position(&self) -> LogPosition {
        LogPosition { incarnation: self.own, frame: self.frame }
    }

    /// How far this replica's log goes, as far as is known here.
    pub(crate) fn position_of(&self, replica: ReplicaId) -> LogPosition {
        self.positions.get(&replica).copied().unwrap_or_default()
    }

    pub(crate) fn note_position(&mut self, replica: ReplicaId, position: LogPosition) {
        let known = self.positions.entry(replica).or_default();
        *known = position.max(*known);
    }

    pub(crate) fn durable(&mut self, frame: u64) {
        self.frame = self.frame.max(frame);
    }

    /// When the others are to be told how far the own log goes, if it goes further than they know.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        (self.frame > self.told && !self.is_lost()).then_some(self.tell_at)
    }
}

/// Tells the others how far the own log goes: not more often than once in a heartbeat, so an older copy of the directory is
/// recognised unless it is younger than that. Acknowledgements tell it to nobody but the coordinator, who may be the one that is
/// gone; so they do not carry it, and cost nothing.
pub(crate) fn tell_position(world: &mut World<'_>) {
    if world.core.lives.deadline().is_none_or(|at| world.now < at) {
        return;
    }
    let durable = world.core.lives.position();
    for at in 0..world.core.membership.others().len() {
        let to = world.core.membership.others()[at];
        let known = world.core.lives.position_of(to);
        world.send(to, Message::Position { durable, known, asks: false });
    }
    world.core.lives.told = durable.frame;
    world.core.lives.tell_at = world.now.after(world.core.settings.heartbeat);
}

/// What a vote tells of lives: says whose are over that were not known to be.
pub(crate) fn learn(from: ReplicaId, voter: &Voter, world: &mut World<'_>) -> Vec<ReplicaId> {
    let mut over = Vec::new();
    let (me, core) = (world.me(), &mut *world.core);
    for (replica, incarnation) in voter.vector.iter().chain(std::iter::once((from, voter.incarnation))) {
        // Of strangers too: one may turn out to be a member that is not known here yet.
        if replica != me && core.lives.vector.note(replica, incarnation) {
            over.push(replica);
        }
    }
    if !over.is_empty() {
        world.persist_hard_state();
    }
    over
}

/// Whether a vote of this life counts: it is not known to be over.
pub(crate) fn counts(from: ReplicaId, voter: &Voter, world: &World<'_>) -> bool {
    let lives = &world.core.lives;
    voter.incarnation == if from == world.me() { lives.own } else { lives.vector.of(from) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_keeps_the_highest_of_each_and_nothing_of_first_lives() {
        let mut vector = CrashVector::default();
        let second = Incarnation::FIRST.after(7);
        assert!(!vector.note(ReplicaId(1), Incarnation::FIRST));
        assert!(vector.is_empty());
        assert!(vector.note(ReplicaId(1), second));
        assert!(!vector.note(ReplicaId(1), second));
        assert_eq!((vector.of(ReplicaId(1)), vector.of(ReplicaId(2))), (second, Incarnation::FIRST));
    }
}
