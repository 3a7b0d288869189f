//! What the people do who run the cell: the right things at bad moments, and the wrong things.
//!
//! Operations are planned with the faults, so that the minimiser can leave them out too. A new one is a variant here, an
//! arm in [`World::operate`], and a kind in `faults`; one that lasts is undone in [`World::end_operation`].

use synod_node::engine::Engine;
use synod_paxos::{Change, Instant, ReplicaId};

use super::node::{Input, Wishes};
use super::swarm::MILLISECOND;
use super::world::{Event, World};

/// Something that an operator does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// Empties a replica's directory and starts it. It is refused, and stays down (rule P12).
    Wipe { replica: usize },
    /// Starts two replicas on each other's directories. Both are refused, until the mistake is seen.
    SwapDirectories { one: usize, other: usize },
    /// Asks the master to hand over.
    Transfer { to: usize },
    /// Adds the next machine that was never a member, and starts it.
    Add,
    /// Removes a member, if the cell survives a failure without it.
    Remove { replica: usize },
}

/// What a master is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Wish {
    Transfer { to: ReplicaId },
    Add { node: usize },
    Remove { id: ReplicaId },
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
            Operation::Transfer { to } => self.ask_master(Wish::Transfer { to: self.nodes[to].id }),
            Operation::Add => {
                let next = self.nodes.iter().position(|node| node.is_spare);
                next.is_some_and(|node| self.ask_master(Wish::Add { node }))
            }
            Operation::Remove { replica } => self.ask_master(Wish::Remove { id: self.nodes[replica].id }),
        }
    }

    /// At its next turn. Whether it is granted shows there.
    fn ask_master(&mut self, wish: Wish) -> bool {
        let Some(master) = self.nodes.iter().position(|node| node.leads && node.engine.is_some()) else { return false };
        self.input(master, Input::Wish(wish));
        true
    }

    /// What the master makes of it.
    pub(crate) fn grant_wish(
        &mut self,
        index: usize,
        wish: Wish,
        now: Instant,
        engine: &mut Engine,
        wishes: &mut Wishes,
    ) {
        let outcome = match wish {
            Wish::Transfer { to } => engine.transfer(now, to, wishes).map_err(|error| error.to_string()),
            Wish::Add { node } => {
                let id = self.nodes[node].id;
                let change = Change::Add { id, address: String::new() };
                engine.change(now, change, wishes).map_err(|error| error.to_string())
            }
            Wish::Remove { id } => {
                let change = Change::Remove { id, force: false };
                engine.change(now, change, wishes).map_err(|error| error.to_string())
            }
        };
        if let (Ok(()), Wish::Add { node }) = (&outcome, wish) {
            self.nodes[node].is_spare = false;
            self.schedule_in(MILLISECOND, Event::Start { node });
        }
        self.counts.wishes_granted += u64::from(outcome.is_ok());
        self.trace.turn(self.now, || format!("replica {} is asked for {wish:?}: {outcome:?}", index + 1));
    }

    /// Puts it right again, where that can be done.
    pub(crate) fn end_operation(&mut self, operation: Operation) {
        match operation {
            Operation::Wipe { .. } | Operation::Transfer { .. } | Operation::Add | Operation::Remove { .. } => {}
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
