//! Who keeps the cell, and the constants that all of them must share.

use std::fmt;
use std::time::Duration;

use crate::types::{ReplicaId, ReplicaSet};

/// One member of a cell.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Member {
    /// Its number.
    pub id: ReplicaId,
    /// Whether it votes. A learner gets everything, acknowledges it, and is not counted: so it catches up first (P6).
    pub voter: bool,
    /// What an application needs to reach it, in its own words; empty for those that the first start named.
    pub address: String,
}

/// Who keeps the cell, and the constants that all of them must share. Decided through the log (rules P5, P6, P8), and
/// part of the hard state.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Configuration {
    members: Vec<Member>,
    /// Every id that was ever a member's: a new member with an old id, and nothing on its disk, could use a ballot again
    /// that the old one used (P1).
    used: ReplicaSet,
    horizon: u64,
    lease: Duration,
}

/// Why a configuration is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum ConfigurationError {
    /// Nobody would vote.
    Empty,
    /// More members than [`Configuration::MEMBERS_MAX`].
    TooMany(usize),
    /// A member is named twice.
    Duplicate(ReplicaId),
    /// An id is 0 or above [`ReplicaId::MAX`].
    Id(ReplicaId),
    /// The horizon is 0 or above [`Configuration::HORIZON_MAX`].
    Horizon(u64),
    /// The lease is longer than [`Configuration::LEASE_MAX`].
    Lease(Duration),
    /// An address is longer than [`Configuration::ADDRESS_BYTES_MAX`].
    Address(usize),
    /// A member had this id before.
    Used(ReplicaId),
    /// These bytes are not a configuration.
    Malformed,
}

impl fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => write!(f, "a cell needs at least one member that votes"),
            Self::TooMany(count) => {
                write!(f, "a cell of {count} members: at most {} are supported", Configuration::MEMBERS_MAX)
            }
            Self::Duplicate(id) => write!(f, "member {id} is named twice"),
            Self::Id(id) => write!(f, "member {id}: ids go from 1 to {}", ReplicaId::MAX),
            Self::Horizon(horizon) => {
                write!(f, "a horizon of {horizon} slots: it must be 1 to {}", Configuration::HORIZON_MAX)
            }
            Self::Lease(lease) => {
                write!(f, "a lease of {} ms: at most {} ms", lease.as_millis(), Configuration::LEASE_MAX.as_millis())
            }
            Self::Address(bytes) => {
                write!(f, "an address of {bytes} bytes: at most {}", Configuration::ADDRESS_BYTES_MAX)
            }
            Self::Used(id) => write!(f, "id {id} was a member's before: a new member needs one that never was"),
            Self::Malformed => write!(f, "these bytes are not a configuration"),
        }
    }
}

impl std::error::Error for ConfigurationError {}

impl Configuration {
    /// The most members a cell may have, learners included: nobody runs nine.
    pub const MEMBERS_MAX: usize = 9;
    /// The largest horizon: a promise reports up to twice as many accepted batches and must fit one frame.
    pub const HORIZON_MAX: u64 = 32;
    /// The horizon of a new cell, in slots.
    pub const HORIZON_DEFAULT: u64 = 16;
    /// The lease of a new cell. Shorter lets a fail-over end sooner; longer lets a master live through stalls of the disks.
    pub const LEASE_DEFAULT: Duration = Duration::from_millis(1000);
    /// The longest lease: after a start a replica promises nothing for so long.
    pub const LEASE_MAX: Duration = Duration::from_secs(60);
    /// The longest address.
    pub const ADDRESS_BYTES_MAX: usize = 1024;

    /// A configuration of `members`, kept in the order of their ids.
    pub fn new(mut members: Vec<Member>, horizon: u64, lease: Duration) -> Result<Self, ConfigurationError> {
        members.sort_unstable_by_key(|member| member.id);
        if !members.iter().any(|member| member.voter) {
            return Err(ConfigurationError::Empty);
        }
        if members.len() > Self::MEMBERS_MAX {
            return Err(ConfigurationError::TooMany(members.len()));
        }
        for member in &members {
            if member.id == ReplicaId(0) || member.id > ReplicaId::MAX {
                return Err(ConfigurationError::Id(member.id));
            }
            if member.address.len() > Self::ADDRESS_BYTES_MAX {
                return Err(ConfigurationError::Address(member.address.len()));
            }
        }
        if let Some(pair) = members.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(ConfigurationError::Duplicate(pair[0].id));
        }
        if horizon == 0 || horizon > Self::HORIZON_MAX {
            return Err(ConfigurationError::Horizon(horizon));
        }
        if lease > Self::LEASE_MAX {
            return Err(ConfigurationError::Lease(lease));
        }
        let used = members.iter().map(|member| member.id).collect();
        Ok(Self { members, used, horizon, lease })
    }

    /// The configuration of a new cell: all of these vote.
    pub fn of_voters(
        ids: impl IntoIterator<Item = ReplicaId>,
        horizon: u64,
        lease: Duration,
    ) -> Result<Self, ConfigurationError> {
        let member = |id| Member { id, voter: true, address: String::new() };
        Self::new(ids.into_iter().map(member).collect(), horizon, lease)
    }

    /// A small configuration for tests and examples: these vote, the rest is as in a new cell.
    ///
    /// # Panics
    ///
    /// If these ids are not a configuration.
    pub fn of(ids: &[u16]) -> Self {
        Self::of_voters(ids.iter().map(|id| ReplicaId(*id)), Self::HORIZON_DEFAULT, Self::LEASE_DEFAULT)
            .expect("sound ids")
    }

    /// All of it, for people: what two who disagree have to compare.
    pub fn in_full(&self) -> String {
        format!("{self}, a lease of {} ms, a horizon of {} slots", self.lease.as_millis(), self.horizon)
    }

    /// The members, in ascending order, learners included.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member of this id.
    pub fn member(&self, id: ReplicaId) -> Option<&Member> {
        self.members.iter().find(|member| member.id == id)
    }

    /// Slot j may be proposed only when all up to j - horizon are chosen and applied; a change decided at slot i governs
    /// from i + horizon (rules P5, P6).
    pub fn horizon(&self) -> u64 {
        self.horizon
    }

    /// How long a voter that acknowledged promises nothing to another candidate (rule P8).
    pub fn lease(&self) -> Duration {
        self.lease
    }

    /// How long the master relies on it, counted from before its accept left. Two clocks may run apart by this tenth.
    pub fn lease_of_holder(&self) -> Duration {
        self.lease * 9 / 10
    }

    /// Who votes.
    pub fn voters(&self) -> ReplicaSet {
        self.members.iter().filter(|member| member.voter).map(|member| member.id).collect()
    }

    /// Whether these are a majority of the voters.
    pub fn is_majority(&self, votes: ReplicaSet) -> bool {
        let voters = self.voters();
        votes.count_of(voters) > voters.len() / 2
    }

    /// How many more voters may fail while these are alive: negative when even now there is no majority.
    pub fn tolerance(&self, alive: ReplicaSet) -> i8 {
        let voters = self.voters();
        let majority = voters.len() / 2 + 1;
        i8::try_from(alive.count_of(voters)).expect("at most nine") - i8::try_from(majority).expect("at most nine")
    }

    /// This configuration with one more member.
    pub fn with(&self, member: Member) -> Result<Self, ConfigurationError> {
        if self.used.contains(member.id) && self.member(member.id).is_none() {
            return Err(ConfigurationError::Used(member.id));
        }
        let mut members = self.members.clone();
        members.push(member);
        self.followed_by(members)
    }

    fn followed_by(&self, members: Vec<Member>) -> Result<Self, ConfigurationError> {
        let next = Self::new(members, self.horizon, self.lease)?;
        Ok(Self { used: self.used.union(next.used), ..next })
    }

    /// This configuration with a learner made a voter.
    pub fn with_voter(&self, id: ReplicaId) -> Self {
        let mut changed = self.clone();
        for member in &mut changed.members {
            member.voter |= member.id == id;
        }
        changed
    }

    /// This configuration without one of its members.
    pub fn without(&self, id: ReplicaId) -> Result<Self, ConfigurationError> {
        let members = self.members.iter().filter(|member| member.id != id).cloned().collect();
        self.followed_by(members)
    }

    /// Appends the bytes in which a configuration is kept in the log and in the hard state. All little-endian: horizon
    /// `u64`, lease in microseconds `u64`, ids ever used as bits `u64`, members `u16`, and for each its id `u16`, voter `u8`,
    /// address length `u16` and address.
    pub fn encode(&self, bytes: &mut Vec<u8>) {
        let count = |length: usize| u16::try_from(length).expect("bounded when it was made");
        bytes.extend(self.horizon.to_le_bytes());
        bytes.extend(u64::try_from(self.lease.as_micros()).expect("bounded when it was made").to_le_bytes());
        bytes.extend(self.used.to_bits().to_le_bytes());
        bytes.extend(count(self.members.len()).to_le_bytes());
        for member in &self.members {
            bytes.extend(member.id.0.to_le_bytes());
            bytes.push(u8::from(member.voter));
            bytes.extend(count(member.address.len()).to_le_bytes());
            bytes.extend(member.address.as_bytes());
        }
    }

    /// Reads what [`Configuration::encode`] wrote; nothing may follow.
    pub fn decode(mut bytes: &[u8]) -> Result<Self, ConfigurationError> {
        let horizon = u64::from_le_bytes(take(&mut bytes)?);
        let lease = Duration::from_micros(u64::from_le_bytes(take(&mut bytes)?));
        let used = ReplicaSet::from_bits(u64::from_le_bytes(take(&mut bytes)?));
        let count = usize::from(u16::from_le_bytes(take(&mut bytes)?));
        if count > Self::MEMBERS_MAX {
            return Err(ConfigurationError::TooMany(count));
        }
        let mut members = Vec::with_capacity(count);
        for _ in 0..count {
            let id = ReplicaId(u16::from_le_bytes(take(&mut bytes)?));
            let voter = match take(&mut bytes)? {
                [0] => false,
                [1] => true,
                _ => return Err(ConfigurationError::Malformed),
            };
            let length = usize::from(u16::from_le_bytes(take(&mut bytes)?));
            let (address, rest) = bytes.split_at_checked(length).ok_or(ConfigurationError::Malformed)?;
            bytes = rest;
            let address = String::from_utf8(address.to_vec()).map_err(|_| ConfigurationError::Malformed)?;
            members.push(Member { id, voter, address });
        }
        if !bytes.is_empty() || !members.is_sorted_by_key(|member| member.id) {
            return Err(ConfigurationError::Malformed);
        }
        let configuration = Self::new(members, horizon, lease)?;
        if configuration.used.union(used) != used {
            // A member's id has been used.
            return Err(ConfigurationError::Malformed);
        }
        Ok(Self { used, ..configuration })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Result<[u8; N], ConfigurationError> {
    let (first, rest) = bytes.split_first_chunk().ok_or(ConfigurationError::Malformed)?;
    *bytes = rest;
    Ok(*first)
}

impl fmt::Display for Configuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |member: &Member| format!("{}{}", member.id, if member.voter { "" } else { "?" });
        write!(f, "members {}", self.members.iter().map(name).collect::<Vec<_>>().join(","))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_vote() {
        let new = |ids: &[u16], horizon| {
            Configuration::of_voters(ids.iter().map(|id| ReplicaId(*id)), horizon, Duration::from_secs(1))
        };
        assert_eq!(new(&[], 8), Err(ConfigurationError::Empty));
        assert_eq!(new(&[1, 2, 1], 8), Err(ConfigurationError::Duplicate(ReplicaId(1))));
        assert_eq!(new(&[0, 1], 8), Err(ConfigurationError::Id(ReplicaId(0))));
        assert_eq!(new(&[1, 64], 8), Err(ConfigurationError::Id(ReplicaId(64))));
        assert_eq!(new(&[1], 0), Err(ConfigurationError::Horizon(0)));
        assert_eq!(new(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 8), Err(ConfigurationError::TooMany(10)));
        let long = Duration::from_secs(61);
        assert_eq!(Configuration::of_voters([ReplicaId(1)], 8, long), Err(ConfigurationError::Lease(long)));
        let learner = Member { id: ReplicaId(1), voter: false, address: String::new() };
        assert_eq!(Configuration::new(vec![learner], 8, Duration::ZERO), Err(ConfigurationError::Empty));
    }

    #[test]
    fn a_majority_is_of_the_voters() {
        let set = |ids: &[u16]| ids.iter().map(|id| ReplicaId(*id)).collect::<ReplicaSet>();
        let three = Configuration::of(&[1, 2, 3]);
        assert!(three.is_majority(set(&[1, 3])));
        assert!(!three.is_majority(set(&[1])));
        assert!(!three.is_majority(set(&[1, 4, 5])), "strangers do not count");
        assert!(!Configuration::of(&[1, 2, 3, 4]).is_majority(set(&[1, 2])));
        let learner = Member { id: ReplicaId(4), voter: false, address: "there".into() };
        let learning = three.with(learner).unwrap();
        assert!(!learning.is_majority(set(&[1, 4])), "nor do learners");
        assert!(learning.with_voter(ReplicaId(4)).is_majority(set(&[1, 3, 4])));
        assert_eq!(three.tolerance(set(&[1, 2, 3])), 1);
        assert_eq!(three.tolerance(set(&[1])), -1);
    }

    #[test]
    fn bytes_are_read_back_and_nothing_else_is() {
        let learner = Member { id: ReplicaId(9), voter: false, address: "127.0.0.1:7000".into() };
        let configuration = Configuration::of(&[1, 2, 3]).with(learner).unwrap();
        let mut bytes = Vec::new();
        configuration.encode(&mut bytes);
        assert_eq!(Configuration::decode(&bytes), Ok(configuration));
        for cut in 0..bytes.len() {
            assert!(Configuration::decode(&bytes[..cut]).is_err(), "cut to {cut} bytes");
        }
        bytes.push(0);
        assert_eq!(Configuration::decode(&bytes), Err(ConfigurationError::Malformed));
    }

    #[test]
    fn an_id_is_used_once() {
        let member = |id| Member { id: ReplicaId(id), voter: false, address: String::new() };
        let without = Configuration::of(&[1, 2, 3]).without(ReplicaId(2)).unwrap();
        assert_eq!(without.with(member(2)), Err(ConfigurationError::Used(ReplicaId(2))));
        assert_eq!(without.with(member(3)), Err(ConfigurationError::Duplicate(ReplicaId(3))));
        let mut bytes = Vec::new();
        without.with(member(4)).unwrap().encode(&mut bytes);
        let decoded = Configuration::decode(&bytes).unwrap();
        assert_eq!(decoded.with(member(2)), Err(ConfigurationError::Used(ReplicaId(2))));
    }
}
