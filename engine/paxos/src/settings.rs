//! What one replica is told when it starts. None of it changes while it runs, and none of it must be alike elsewhere.

use std::time::Duration;

use crate::types::{Incarnation, ReplicaId};

/// What one replica is told when it starts.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Settings {
    /// Which member this is.
    pub me: ReplicaId,
    /// Which life of its durable state; it changes only when that is lost while it runs.
    pub incarnation: Incarnation,
    /// How many slots may be open at once, at most the horizon.
    pub window: u64,
    /// A coordinator tells the others this often that it lives.
    pub heartbeat: Duration,
    /// A replica that heard from no coordinator for this long, and up to half as long again at random, asks the others
    /// whether it should campaign.
    pub election_timeout: Duration,
    /// The own unflushed backlog, in bytes, above which mastership is given up and accepts are left to catch-up (P7).
    pub backlog_bytes_max: u64,
    /// Where the randomness of elections starts from.
    pub seed: u64,
    /// Now and then the master takes a higher ballot (PML §5.2, against churn): not before so many slots ..
    pub boost_slots_min: u64,
    /// .. and so much time have passed since the last.
    pub boost_time_min: Duration,
}

impl Settings {
    /// The defaults: timeouts of about a second, because disks stall for a few hundred milliseconds now and then and an
    /// election then would only add to it.
    pub fn new(me: ReplicaId, incarnation: Incarnation, seed: u64) -> Self {
        Self {
            me,
            incarnation,
            window: 4,
            heartbeat: Duration::from_millis(200),
            election_timeout: Duration::from_millis(1000),
            backlog_bytes_max: 64 << 20,
            seed,
            // One round of each 256 slots at most: well below a hundredth of them.
            boost_slots_min: 256,
            boost_time_min: Duration::from_secs(10),
        }
    }

    /// After this long an accept that is not acknowledged is sent again, and an unanswered question asked again.
    pub fn resend(&self) -> Duration {
        self.heartbeat * 2
    }
}
