//! What the people do who run the cell: the right things at bad moments, and the wrong things.
//!
//! Operations are planned with the faults, so that the minimiser can leave them out too. A new one is a variant here, an
//! arm in [`World::operate`], and a kind in `faults`; one that lasts is undone in [`World::end_operation`].

use synod_node::engine::Engine;
use synod_paxos::{Change, Instant, LogPosition, ReplicaId};

use super::node::{Input, Node, OldCopy, Wishes};
use super::swarm::{MILLISECOND, SECOND};
use super::world::{Event, World};

/// Something that an operator does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operation {
    /// Empties a replica's directory and starts it. It knows what that means, and rejoins (rules P11, P12).
    Wipe { replica: usize },
    /// Copies a replica's directory while it is stopped, and puts the copy back later (rule P13).
    RollBack { replica: usize },
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

/// A new member starts at the latest so long after it was added.
const LATE_MAX: u64 = 4 * SECOND;

impl World {
    /// Does it. Says whether it could be done.
    pub(crate) fn operate(&mut self, operation: Operation, seed: u64) -> bool {
        match operation {
            Operation::Wipe { replica } => {
                if !self.has_own_directory(replica) || !self.may_lose(replica) {
                    return false;
                }
                self.stop(replica, seed);
                self.nodes[replica].disk.wipe();
                self.nodes[replica].copy = None;
                self.oracle.acceptors.loses(self.nodes[replica].id, None);
                self.schedule_in(MILLISECOND, Event::Start { node: replica });
                true
            }
            Operation::RollBack { replica } => {
                let node = &self.nodes[replica];
                let is_new = node.copy.is_none() && node.engine.is_some();
                if !is_new || !self.has_own_directory(replica) || !self.may_lose(replica) {
                    return false;
                }
                let Some(position) = node.engine.as_ref().map(|engine| furthest(engine)) else { return false };
                self.stop(replica, seed);
                let node = &mut self.nodes[replica];
                let (disk, acceptor) = (node.disk.copy(), self.oracle.acceptors.copy(node.id));
                node.copy = Some(OldCopy { disk, acceptor, position });
                self.schedule_in(MILLISECOND, Event::Start { node: replica });
                true
            }
            Operation::SwapDirectories { one, other } => {
                if !self.has_own_directory(one) || !self.has_own_directory(other) || self.is_rolled_back() {
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
        match wish {
            Wish::Add { node } if outcome.is_ok() => {
                self.nodes[node].is_spare = false;
                // Half of the people start it before they ask for it, and half go and look for the machine.
                let late = if self.random.replicas.bool() { self.random.replicas.u64(..LATE_MAX) } else { 0 };
                self.schedule_in(MILLISECOND + late, Event::Start { node });
            }
            Wish::Transfer { .. } if outcome.is_ok() => self.begins_round(index),
            Wish::Add { .. } | Wish::Remove { .. } | Wish::Transfer { .. } => {}
        }
        self.counts.wishes_granted += u64::from(outcome.is_ok());
        self.trace.turn(self.now, || format!("replica {} is asked for {wish:?}: {outcome:?}", index + 1));
    }

    /// Puts it right again, where that can be done.
    pub(crate) fn end_operation(&mut self, operation: Operation) {
        match operation {
            Operation::RollBack { replica } => self.put_back(replica),
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

    /// Whether the atlas lets this replica lose its state now: those that keep theirs must be a majority without it.
    fn may_lose(&self, replica: usize) -> bool {
        let is_lost = |node: &&Node| self.oracle.acceptors.is_lost(node.id) && node.id != self.nodes[replica].id;
        let lost = self.nodes.iter().filter(is_lost).count() + 1;
        // A full log takes nothing that is to be learned again.
        let has_room = self.swarm.segments_max.is_none();
        has_room && lost <= (usize::from(self.swarm.replicas) - 1) / 2 && !self.is_rolled_back()
    }

    /// Whether some replica runs on an older copy of its directory and has not rejoined. What the others remember of it, in memory
    /// alone, is all that tells it: until it has rejoined nobody else ends (the atlas: P13 finds most, not all).
    pub(crate) fn is_rolled_back(&self) -> bool {
        self.rolled_back.is_some_and(|replica| self.oracle.acceptors.is_lost(self.nodes[replica].id))
    }

    /// Puts the copy back, if enough others know better for P13 to find it: of every majority with this replica one.
    fn put_back(&mut self, replica: usize) {
        let Some(copy) = self.nodes[replica].copy.take() else { return };
        let id = self.nodes[replica].id;
        // Where another one's directory is meanwhile there is nothing to put it back over (seed 1370).
        let is_there = self.has_own_directory(replica);
        if self.must_end.is_some() || !is_there || !self.may_lose(replica) || self.oracle.acceptors.is_lost(id) {
            return;
        }
        let others = self.nodes.iter().filter(|node| node.id != id && !node.is_spare);
        let voters = self.oracle.governing(self.oracle.upto().next()).voters();
        let knows = |node: &&Node| {
            let position = node.engine.as_ref().map(|engine| engine.replica().position_of(id));
            !self.oracle.acceptors.is_lost(node.id) && position.is_some_and(|position| position > copy.position)
        };
        let knowing = others.filter(knows).count();
        // So few others may know nothing that with this replica they are no majority.
        if voters.len() - 1 - knowing + 1 > voters.len() / 2 {
            return;
        }
        self.stop(replica, 0);
        self.nodes[replica].disk = copy.disk;
        self.oracle.acceptors.loses(id, Some(copy.acceptor));
        self.rolled_back = Some(replica);
        for node in &mut self.nodes {
            (node.doomed, node.flush_fails, node.flushes_fail_until) = (None, None, 0);
        }
        self.injected.count("roll-back put back");
        self.trace.turn(self.now, || format!("the directory of replica {id} is put back to an older copy"));
        self.schedule_in(MILLISECOND, Event::Start { node: replica });
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

/// How far a log may go that is copied now: what is being flushed may be in it.
fn furthest(engine: &Engine) -> LogPosition {
    let (incarnation, durable) = (engine.replica().incarnation(), engine.log().durable_frame().0);
    LogPosition { incarnation, frame: durable + 2 }
}

/// Whether a replica may start on a disk: on its own, that is, and not on an empty one.
pub(crate) fn may_start(replica: ReplicaId, owner: Option<ReplicaId>) -> bool {
    owner == Some(replica)
}
