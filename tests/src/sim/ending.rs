//! The end of a run: faults stop, and everything must come right.

use std::time::Duration;

use super::coverage::Machines;
use super::faults::Mask;
use super::node::InRound;
use super::swarm::{MILLISECOND, SECOND};
use super::verdict::{Checker, Verdict, violation};
use super::world::{EXTENSIONS_MAX, Event, World};
use super::{FAULTS_MIN, OPERATIONS_MIN};

/// How often it is looked whether all has come right.
const LOOK_AROUND: u64 = 100 * MILLISECOND;
/// How many operations each client still asks for after faults have stopped; each must succeed.
const LAST_OPERATIONS: u32 = 5;

/// How long faults are deferred from stopping after the last of a chosen few.
const AFTERMATH: u64 = 5 * SECOND;

impl World {
    /// From here on everything works, and so must the cell. A world that is too hostile to get anything done gets more
    /// time, within reason.
    pub(crate) fn stop_faults(&mut self) {
        let too_little = match self.options.faults {
            Mask::All => self.counts.operations < OPERATIONS_MIN || self.injected.total() < FAULTS_MIN,
            // Long enough for what they lead to; a minimiser has many such runs to wait for.
            Mask::Only(_) => self.last_fault().is_some_and(|last| self.now < last + AFTERMATH),
        };
        if too_little && self.now < EXTENSIONS_MAX * self.swarm.safety {
            return self.schedule_in(self.swarm.safety / 4, Event::FaultsStop);
        }
        let election = nanoseconds(self.swarm.election_timeout);
        self.must_end = Some(self.now + self.swarm.patience + 40 * election + 30 * SECOND);
        self.trace.turn(self.now, || "faults stop".to_owned());
        self.counts.safety_operations = self.counts.operations;
        for number in self.lasting.clone() {
            self.fault_ends(number);
        }
        for index in 0..self.nodes.len() {
            let node = &mut self.nodes[index];
            (node.paused_until, node.suspended_until, node.stalled_until) = (0, 0, 0);
            (node.doomed, node.flush_fails, node.astray) = (None, None, None);
            (node.flushes_fail_until, node.reads_fail_until) = (0, 0);
            (node.pause_in_turn, node.in_round) = (None, InRound::default());
            let now = self.now;
            node.clock.set_rate(now, 0);
            if self.nodes[index].is_spare {
                continue;
            }
            self.due(index);
            self.schedule_in(2 * MILLISECOND, Event::Start { node: index });
        }
        for client in 0..self.clients.len() {
            self.clients[client].last_left = LAST_OPERATIONS;
        }
        self.schedule_in(LOOK_AROUND, Event::LookAround);
    }

    /// When the last of the faults that happen is over.
    fn last_fault(&self) -> Option<u64> {
        let let_in = self.faults.iter().enumerate().filter(|(number, _)| self.options.faults.lets(*number));
        let_in.map(|(_, fault)| fault.at + fault.length).max()
    }

    pub(crate) fn look_around(&mut self) -> Verdict {
        let must_end = self.must_end.expect("it is set before the first look");
        let missing = self.missing();
        if missing.is_none() {
            self.finished = true;
            for node in &self.nodes {
                if let Some(engine) = &node.engine {
                    self.counts.take(engine);
                    self.coverage.merge(engine.transitions());
                }
                self.counts.segments += node.disk.segments() as u64;
            }
            self.counts.acknowledged = self.history.acknowledged();
            self.counts.slots = self.oracle.upto().0;
            return Ok(());
        }
        if self.now > must_end {
            let missing = missing.unwrap_or_default();
            return violation(Checker::Liveness, format!("long after faults have stopped, {missing}"));
        }
        self.schedule_in(LOOK_AROUND, Event::LookAround);
        Ok(())
    }

    /// What is still to come right, if anything.
    fn missing(&self) -> Option<String> {
        for (number, client) in self.clients.iter().enumerate() {
            let left = client.last_left as usize + client.pending.len();
            if left > 0 {
                return Some(format!("client {number} has {left} operations open"));
            }
        }
        if self.swarm.segments_max.is_some() {
            // Full logs take nothing more, so nobody need catch up. What is there was checked as it came.
            return None;
        }
        let upto = self.oracle.upto();
        let contents = self.oracle.contents_hash();
        for node in &self.nodes {
            if self.oracle.governing(upto.next()).member(node.id).is_none() {
                // Not a member, or not any more: nobody tells it anything.
                continue;
            }
            let Some(engine) = &node.engine else {
                return Some(format!("replica {} is down", node.id));
            };
            if self.oracle.acceptors.is_lost(node.id) {
                return Some(format!(
                    "replica {} lost state, and has not rejoined: {:?}",
                    node.id,
                    engine.replica().rejoining()
                ));
            }
            if node.apart.is_some() {
                return Some(format!(
                    "replica {} has a database that differs, and has not taken over another",
                    node.id
                ));
            }
            let applied = engine.replica().chosen();
            if applied != upto {
                return Some(format!("replica {} has applied up to slot {applied}, chosen is {upto}", node.id));
            }
            if engine.cell().contents_hash() != contents {
                return Some(format!("replica {} has another database at the same slot", node.id));
            }
            if engine.is_busy() {
                return Some(format!("replica {} waits for commands that nobody asks for any more", node.id));
            }
        }
        None
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).expect("a few seconds")
}
