//! What the people do who run the cell: the right things at bad moments, and the wrong things.
//!
//! Operations are planned with the faults, so that the minimiser can leave them out too. A new one is a variant here, an
//! arm in [`World::operate`], and a kind in `faults`; one that lasts is undone in [`World::end_operation`].

use synod_paxos::ReplicaId;

use super::swarm::MILLISECOND;
use super::world::{Event, World};

/// Something that an operator does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// Empties a replica's directory and starts it. It is refused, and stays down (rule P12).
    Wipe { replica: usize },
    /// Starts two replicas on each other's directories. Both are refused, until the mistake is seen.
    SwapDirectories { one: usize, other: usize },
}

impl World {
    /// Does it. Says whether it could be done.
    pub(crate) fn operate(&mut self, operation: Operation, seed: u64) -> bool {
        match operation {
            Operation::Wipe { replica } => {
                if !self.has_own_directory(replica) {
                    return false;
                }
                self.stop(replica, seed);
                self.nodes[replica].disk.wipe();
                self.schedule_in(MILLISECOND, Event::Start { node: replica });
                true
            }
            Operation::SwapDirectories { one, other } => {
                if !self.has_own_directory(one) || !self.has_own_directory(other) {
                    return false;
                }
                for replica in [one, other] {
                    self.stop(replica, seed);
                    self.schedule_in(MILLISECOND, Event::Start { node: replica });
                }
                self.swap_directories(one, other);
                true
            }
        }
    }

    /// Puts it right again, where that can be done.
    pub(crate) fn end_operation(&mut self, operation: Operation) {
        match operation {
            Operation::Wipe { .. } => {}
            Operation::SwapDirectories { one, other } => {
                for replica in [one, other] {
                    // Only a planted bug lets it run on this directory.
                    self.stop(replica, 0);
                    self.schedule_in(MILLISECOND, Event::Start { node: replica });
                }
                self.swap_directories(one, other);
            }
        }
    }

    fn has_own_directory(&self, replica: usize) -> bool {
        let node = &self.nodes[replica];
        node.disk.owner() == Some(node.id)
    }

    fn swap_directories(&mut self, one: usize, other: usize) {
        let (low, high) = (one.min(other), one.max(other));
        let (left, right) = self.nodes.split_at_mut(high);
        std::mem::swap(&mut left[low].disk, &mut right[0].disk);
    }
}

/// Whether a replica may start on a disk: on its own, that is, and not on an empty one.
pub(crate) fn may_start(replica: ReplicaId, owner: Option<ReplicaId>) -> bool {
    owner == Some(replica)
}
