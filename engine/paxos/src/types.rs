//! Numbers that mean something: one type each, so that the compiler tells a slot from a round.

use std::fmt;
use std::time::Duration;

/// A member of a cell, by its number in the configuration. From 1.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ReplicaId(pub u16);

impl ReplicaId {
    /// The highest id: sets of replicas are sets of bits.
    pub const MAX: ReplicaId = ReplicaId(63);
}

/// A set of replicas: votes, promises, who is alive.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct ReplicaSet(u64);

const _: () = assert!(ReplicaId::MAX.0 < u64::BITS as u16);

impl ReplicaSet {
    /// As bits, the lowest for id 0.
    pub(crate) fn to_bits(self) -> u64 {
        self.0
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    /// Those in either.
    pub(crate) fn union(self, other: ReplicaSet) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it became a member just now. An id that no member can have is not taken in.
    pub fn insert(&mut self, replica: ReplicaId) -> bool {
        let before = self.0;
        if replica <= ReplicaId::MAX {
            self.0 |= 1 << replica.0;
        }
        self.0 != before
    }

    /// It is no member any more.
    pub fn remove(&mut self, replica: ReplicaId) {
        if replica <= ReplicaId::MAX {
            self.0 &= !(1 << replica.0);
        }
    }

    /// Whether `replica` is in it.
    pub fn contains(self, replica: ReplicaId) -> bool {
        replica <= ReplicaId::MAX && self.0 & (1 << replica.0) != 0
    }

    /// How many of `others` are in it.
    pub fn count_of(self, others: ReplicaSet) -> usize {
        (self.0 & others.0).count_ones() as usize
    }

    /// How many are in it.
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether nobody is in it.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Its members, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = ReplicaId> {
        (0..=ReplicaId::MAX.0).map(ReplicaId).filter(move |id| self.contains(*id))
    }
}

impl FromIterator<ReplicaId> for ReplicaSet {
    fn from_iter<T: IntoIterator<Item = ReplicaId>>(replicas: T) -> Self {
        let mut set = Self::default();
        for replica in replicas {
            set.insert(replica);
        }
        set
    }
}

impl fmt::Debug for ReplicaSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter().map(|id| id.0)).finish()
    }
}

/// One life of a replica's durable state; a new one after any loss (rule P11). From 1.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Incarnation(pub u64);

impl Incarnation {
    /// Of a replica that lost state and has not rejoined yet: its votes count nowhere.
    pub const NONE: Incarnation = Incarnation(0);
    /// Of a replica that never lost anything.
    pub const FIRST: Incarnation = Incarnation(1);
    /// A ballot keeps so many bits of it.
    pub const BITS: u32 = 48;
    /// The lower of them are drawn, so that two tries to take the next life differ.
    const NONCE_BITS: u32 = 24;

    /// A life after this one.
    #[must_use]
    pub fn after(self, nonce: u64) -> Incarnation {
        let next =
            Incarnation(((self.0 >> Self::NONCE_BITS) + 1) << Self::NONCE_BITS | nonce & ((1 << Self::NONCE_BITS) - 1));
        assert!(next.0 < 1 << Self::BITS, "fewer than 2^24 losses");
        next
    }

    /// Which life it is: 1 for the first, one more after each loss; 0 for none.
    pub fn life(self) -> u64 {
        if self == Self::NONE { 0 } else { (self.0 >> Self::NONCE_BITS) + 1 }
    }
}

/// How far a replica's log goes: the last frame that is durable, in which of its lives (rule P13). The order of the fields is the
/// comparison.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LogPosition {
    /// In which of its lives.
    pub incarnation: Incarnation,
    /// The number of the frame; 0: nothing is known.
    pub frame: u64,
}

/// Orders coordinators: PML's sequence number. Compared by round, then replica, then incarnation (the order of the
/// fields is the comparison), so that no two lives of any two replicas ever share one.
///
/// The paper's own `s mod n` is ambiguous once `n` changes with the membership; see `divergence.md`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ballot {
    /// Raised by each candidacy. 0 only in [`Ballot::NONE`].
    pub round: u64,
    /// Whose candidacy it is.
    pub replica: ReplicaId,
    /// In which of its lives.
    pub incarnation: Incarnation,
}

impl Ballot {
    /// Below every candidacy: what a replica that has promised nothing has promised.
    pub const NONE: Ballot = Ballot { round: 0, replica: ReplicaId(0), incarnation: Incarnation(0) };
}

/// The position of one Paxos instance in the log. Dense, from 1; 0 stands before the first.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u64);

impl Slot {
    /// Before the first slot: "nothing is chosen yet".
    pub const NONE: Slot = Slot(0);

    /// The slot after this one.
    #[must_use]
    pub fn next(self) -> Slot {
        self.plus(1)
    }

    /// The slot before this one; the first has [`Slot::NONE`] before it.
    #[must_use]
    pub fn before(self) -> Slot {
        Slot(self.0.saturating_sub(1))
    }

    /// The slot `distance` further on. Nobody gets as far as the last there is, but messages may name it.
    #[must_use]
    pub fn plus(self, distance: u64) -> Slot {
        Slot(self.0.saturating_add(distance))
    }
}

/// A moment on the clock of whatever runs the replica, in nanoseconds since some fixed start. Never moves back.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Instant(pub u64);

impl Instant {
    /// The moment `duration` later.
    #[must_use]
    pub fn after(self, duration: Duration) -> Instant {
        Instant(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is not earlier.
    #[must_use]
    pub fn since(self, earlier: Instant) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// The number of a persisted record since this start of the replica. Dense, from 1; durability is a prefix of it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PersistId(pub u64);

/// What the submitter calls a batch, to recognise it when it is applied, refused or abandoned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Ticket(pub u64);

impl fmt::Display for ReplicaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Ballot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Ballot::NONE { write!(f, "none") } else { write!(f, "{}.{}", self.round, self.replica) }
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ballots_compare_by_round_then_replica_then_incarnation() {
        let ballot = |round, replica, incarnation| Ballot {
            round,
            replica: ReplicaId(replica),
            incarnation: Incarnation(incarnation),
        };
        assert!(ballot(1, 3, 9) < ballot(2, 1, 1));
        assert!(ballot(2, 1, 9) < ballot(2, 2, 1));
        assert!(ballot(2, 2, 1) < ballot(2, 2, 2));
        assert!(Ballot::NONE < ballot(1, 0, 0));
    }
}
