//! Who votes, and the settings of one replica.

use std::time::Duration;

use crate::types::{Incarnation, ReplicaId};

/// Who keeps the cell, and the constant that membership changes will count in (rules P5, P6). Part of the hard state.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Configuration {
    members: Vec<ReplicaId>,
    horizon: u64,
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
    /// Ids start at 1.
    Zero,
    /// The horizon is 0 or above [`Configuration::HORIZON_MAX`].
    Horizon(u64),
}

impl std::fmt::Display for ConfigurationError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Empty => write!(f, "a cell needs at least one member"),
            Self::TooMany(count) => {
                write!(f, "a cell of {count} members: at most {} are supported", Configuration::MEMBERS_MAX)
            }
            Self::Duplicate(id) => write!(f, "member {id} is named twice"),
            Self::Zero => write!(f, "member ids start at 1"),
            Self::Horizon(horizon) => {
                write!(f, "a horizon of {horizon} slots: it must be 1 to {}", Configuration::HORIZON_MAX)
            }
        }
    }
}

impl std::error::Error for ConfigurationError {}

impl Configuration {
    /// The most members a cell may have. Votes are kept in a bit set of 64, and nobody runs nine.
    pub const MEMBERS_MAX: usize = 9;
    /// The largest horizon: a promise reports up to twice as many accepted batches and must fit one frame.
    pub const HORIZON_MAX: u64 = 32;
    /// The horizon of a new cell, in slots.
    pub const HORIZON_DEFAULT: u64 = 16;

    /// A configuration of `members` (kept sorted) with a horizon of so many slots.
    pub fn new(mut members: Vec<ReplicaId>, horizon: u64) -> Result<Self, ConfigurationError> {
        members.sort_unstable();
        if members.is_empty() {
            return Err(ConfigurationError::Empty);
        }
        if members.len() > Self::MEMBERS_MAX {
            return Err(ConfigurationError::TooMany(members.len()));
        }
        if members[0].0 == 0 {
            return Err(ConfigurationError::Zero);
        }
        if let Some(pair) = members.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(ConfigurationError::Duplicate(pair[0]));
        }
        if horizon == 0 || horizon > Self::HORIZON_MAX {
            return Err(ConfigurationError::Horizon(horizon));
        }
        Ok(Self { members, horizon })
    }

    /// The members, in ascending order.
    pub fn members(&self) -> &[ReplicaId] {
        &self.members
    }

    /// Slot j may be proposed only when all up to j - horizon are chosen and applied.
    pub fn horizon(&self) -> u64 {
        self.horizon
    }

    /// How many members decide.
    pub fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Whether `replica` is a member.
    pub fn contains(&self, replica: ReplicaId) -> bool {
        self.members.binary_search(&replica).is_ok()
    }
}

/// What one replica is told when it starts. None of it changes while it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which member this is.
    pub me: ReplicaId,
    /// Which life of its durable state.
    pub incarnation: Incarnation,
    /// Who votes.
    pub configuration: Configuration,
    /// How many slots may be open at once, at most the horizon. A local setting.
    pub window: u64,
    /// A coordinator that sent nothing else tells the others this often that it lives.
    pub heartbeat: Duration,
    /// A replica that heard from no coordinator for this long, and up to as long again at random, campaigns.
    pub election_timeout: Duration,
    /// The own unflushed backlog, in bytes, above which mastership is given up and accepts are left to catch-up (P7).
    pub backlog_bytes_max: u64,
    /// Where the randomness of elections starts from.
    pub seed: u64,
}

impl Settings {
    /// The defaults for one member of a cell: timeouts of about a second, because disks stall for a few hundred
    /// milliseconds now and then and an election then would only add to it.
    pub fn new(me: ReplicaId, incarnation: Incarnation, configuration: Configuration, seed: u64) -> Self {
        assert!(configuration.contains(me), "replica {me} is not a member");
        Self {
            me,
            incarnation,
            window: 4.min(configuration.horizon()),
            configuration,
            heartbeat: Duration::from_millis(200),
            election_timeout: Duration::from_millis(900),
            backlog_bytes_max: 64 << 20,
            seed,
        }
    }

    /// After this long an accept that is not acknowledged is sent again, and an unanswered question asked again.
    pub fn resend(&self) -> Duration {
        self.heartbeat * 2
    }

    /// A coordinator whose oldest open slot is older than this cannot reach a majority, and gives up.
    pub fn stuck(&self) -> Duration {
        self.election_timeout * 2
    }

    /// The other members.
    pub fn others(&self) -> impl Iterator<Item = ReplicaId> {
        self.configuration.members().iter().copied().filter(|id| *id != self.me)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_vote() {
        let new = |ids: &[u16], horizon| Configuration::new(ids.iter().map(|id| ReplicaId(*id)).collect(), horizon);
        assert_eq!(new(&[], 8), Err(ConfigurationError::Empty));
        assert_eq!(new(&[1, 2, 1], 8), Err(ConfigurationError::Duplicate(ReplicaId(1))));
        assert_eq!(new(&[0, 1], 8), Err(ConfigurationError::Zero));
        assert_eq!(new(&[1], 0), Err(ConfigurationError::Horizon(0)));
        assert_eq!(new(&[1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 8), Err(ConfigurationError::TooMany(10)));
        assert_eq!(new(&[3, 1, 2], 8).map(|c| c.majority()), Ok(2));
        assert_eq!(new(&[1, 2, 3, 4], 8).map(|c| c.majority()), Ok(3));
    }
}
