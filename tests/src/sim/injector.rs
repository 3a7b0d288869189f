//! Faults as they happen: who is hit, what stops, what ends with them, and how a replica starts again.

use std::cell::Cell;

use fastrand::Rng;
use synod_wal::Tail;

use super::coverage::Machines;
use super::faults::{Fault, Kind, What, When};
use super::network::delay;
use super::node::{Crash, InRound, Started};
use super::swarm::{MILLISECOND, SECOND, Tearing};
use super::verdict::Verdict;
use super::world::{Event, World};

/// Whose disk could not be read is started again after this.
const START_AGAIN: u64 = 50 * MILLISECOND;

thread_local! {
    static LAST_FAULT: Cell<usize> = const { Cell::new(0) };
}

/// The number of the last fault that came, in the run on this thread: later ones had no part in how it ended.
pub fn last_fault_on_this_thread() -> usize {
    LAST_FAULT.get()
}

impl World {
    /// The fault with this number is the next to come, if faults go on so long.
    pub(crate) fn schedule_fault(&mut self, number: usize) {
        if let Some(fault) = self.faults.get(number) {
            self.schedule(fault.at, Event::Fault { number });
        }
    }

    pub(crate) fn fault(&mut self, number: usize) {
        if self.must_end.is_some() {
            return;
        }
        self.schedule_fault(number + 1);
        LAST_FAULT.set(number);
        if !self.options.faults.lets(number) {
            return;
        }
        let fault = self.faults[number].clone();
        if !self.inject(number, &fault) {
            return;
        }
        self.injected.count(fault.kind.name());
        self.trace.turn(self.now, || {
            let lasts = fault.length as f64 / SECOND as f64;
            format!("FAULT {number}, {}: {:?}, {lasts:.3} s", fault.kind.name(), fault.what)
        });
    }

    /// Says whether it could be done: what is down cannot be hit.
    fn inject(&mut self, number: usize, fault: &Fault) -> bool {
        if self.may_spread() && !is_noise(&fault.what) {
            return false;
        }
        let until = self.now + fault.length;
        match fault.what {
            What::Loss { .. }
            | What::Duplication { .. }
            | What::Delay { .. }
            | What::Reordering { .. }
            | What::Reset { .. }
            | What::Cut(_) => {
                self.network.begin(number, &fault.what, fault.seed);
                self.lasts(number, until);
            }
            What::Flapping { period, .. } => {
                self.network.begin(number, &fault.what, fault.seed);
                self.schedule_in(period / 2, Event::Flap { number });
                self.lasts(number, until);
            }
            What::SlowDisk { replica, factor } => {
                self.nodes[replica].slow.insert(number, factor);
                self.lasts(number, until);
            }
            What::Stall { replica, when: When::InRound } => self.nodes[replica].in_round.stall = Some(fault.length),
            What::Stall { replica, .. } => self.nodes[replica].stall(until),
            What::NoRoom { replicas } => {
                for index in (0..self.nodes.len()).filter(|index| (replicas >> index) & 1 == 1) {
                    self.nodes[index].no_room.insert(number);
                }
                self.lasts(number, until);
            }
            What::FailedFlush { replica } => {
                let ends_nobody = self.is_rolled_back();
                let node = &mut self.nodes[replica];
                if node.engine.is_none() || ends_nobody {
                    return false;
                }
                let mut random = Rng::with_seed(fault.seed);
                let down = MILLISECOND + random.u64(..=fault.length);
                let (power, tearing) = (false, Tearing::Sectors);
                node.flush_fails = Some(Crash { power, tearing, down: Some(down), random });
            }
            // The bound was there from the beginning, and counts once it is reached.
            What::FullDisk { .. } => return false,
            What::Crash { replicas, power, tearing } => return self.crash_some(replicas, power, tearing, fault),
            What::Astray { replica, how } => {
                let node = &mut self.nodes[replica];
                if node.engine.is_none() || node.disk.owner() != Some(node.id) {
                    return false;
                }
                node.astray = Some((how, Rng::with_seed(fault.seed)));
            }
            What::ReadErrors { replica, ends } => {
                if ends && !self.crash_some(1 << replica, false, Tearing::Whole, fault) {
                    return false;
                }
                self.nodes[replica].reads_fail_until = until;
            }
            What::FailingDisk { replica } => {
                if self.nodes[replica].engine.is_none() || self.is_rolled_back() {
                    return false;
                }
                self.nodes[replica].flushes_fail_until = until;
            }
            What::Apart { replica, how } => return self.go_apart(replica, how, fault.seed),
            What::Rot { replica, frames, late } => return self.rot(replica, frames, late, fault),
            What::Pause { replica, when } => {
                let node = &mut self.nodes[replica];
                if node.engine.is_none() {
                    return false;
                }
                match when {
                    When::AtOnce => node.pause(until),
                    When::InTurn => {
                        node.pause_in_turn = Some(fault.length);
                        self.due(replica);
                    }
                    When::InRound => node.in_round.pause = Some(fault.length),
                }
            }
            What::Suspension { replica, when: When::InRound } => {
                self.nodes[replica].in_round.suspend = Some(fault.length);
            }
            What::Suspension { replica, .. } => self.nodes[replica].suspend(until),
            What::Drift { replica, ppm } => {
                self.nodes[replica].clock.set_rate(self.now, ppm);
                // What it waits for comes sooner now, or later.
                self.due(replica);
            }
            What::Operation(operation) => {
                if !self.operate(operation, fault.seed) {
                    return false;
                }
                self.lasts(number, until);
            }
        }
        true
    }

    fn lasts(&mut self, number: usize, until: u64) {
        self.lasting.insert(number);
        self.schedule(until, Event::FaultEnds { number });
    }

    pub(crate) fn flap(&mut self, number: usize) {
        if let Some(stays) = self.network.flap(number) {
            self.schedule_in(stays, Event::Flap { number });
        }
    }

    pub(crate) fn fault_ends(&mut self, number: usize) {
        if !self.lasting.remove(&number) {
            return;
        }
        let Fault { kind, what, .. } = self.faults[number].clone();
        if kind != Kind::Wiped {
            self.trace.turn(self.now, || format!("fault {number}, {}, is over", kind.name()));
        }
        match what {
            What::SlowDisk { replica, .. } => drop(self.nodes[replica].slow.remove(&number)),
            What::NoRoom { .. } => self.nodes.iter_mut().for_each(|node| node.no_room.retain(|fault| *fault != number)),
            What::Operation(operation) => self.end_operation(operation),
            _ => self.network.end(number),
        }
    }

    // Processes.

    fn crash_some(&mut self, replicas: u64, power: bool, tearing: Tearing, fault: &Fault) -> bool {
        let mut any = false;
        if self.is_rolled_back() {
            return false;
        }
        for index in (0..self.nodes.len()).filter(|index| (replicas >> index) & 1 == 1) {
            if self.nodes[index].engine.is_none() {
                continue;
            }
            any = true;
            let mut random = Rng::with_seed(fault.seed ^ index as u64);
            let down = MILLISECOND + random.u64(..=fault.length);
            // Half of them wait for the worst moment.
            let waits = random.bool();
            let crash = Crash { power, tearing, down: Some(down), random };
            if waits {
                self.nodes[index].doomed = Some(crash);
            } else {
                self.crash(index, crash);
            }
        }
        any
    }

    /// A process ends, and before it starts again parts of its log turn into something else.
    fn rot(&mut self, index: usize, frames: usize, late: bool, fault: &Fault) -> bool {
        if self.nodes[index].engine.is_none() || self.nodes[index].disk.owner() != Some(self.nodes[index].id) {
            return false;
        }
        let mut random = Rng::with_seed(fault.seed);
        let (down, tearing) = (Some(MILLISECOND + random.u64(..=fault.length)), Tearing::Whole);
        self.crash(index, Crash { power: false, tearing, down, random: random.fork() });
        let rotten = self.nodes[index].rot(&self.swarm, frames, late, &mut random);
        self.trace.turn(self.now, || format!("replica {}: frames {rotten:?} rot", index + 1));
        !rotten.is_empty()
    }

    /// An operator ends a process, if it runs.
    pub(crate) fn stop(&mut self, index: usize, seed: u64) {
        if self.nodes[index].engine.is_some() {
            let random = Rng::with_seed(seed);
            self.crash(index, Crash { power: false, tearing: Tearing::Whole, down: None, random });
        }
    }

    pub(crate) fn crash(&mut self, index: usize, crash: Crash) {
        let Crash { power, tearing, down, mut random } = crash;
        if let Some(down) = down {
            self.schedule_in(down, Event::Start { node: index });
        }
        self.counts.crashes += 1;
        let node = &mut self.nodes[index];
        if let Some(engine) = node.engine.take() {
            self.counts.take(&engine);
            self.coverage.merge(engine.transitions());
        }
        node.inbox.clear();
        node.asked.clear();
        node.turn_due = false;
        node.leads = false;
        (node.doomed, node.flush_fails, node.astray) = (None, None, None);
        node.mark_at = None;
        (node.pause_in_turn, node.in_round) = (None, InRound::default());
        node.caught = None;
        node.paused_until = node.suspended_until;
        if power {
            node.clock.reboot(self.now, random.u64(..10 * SECOND));
        }
        node.writing.clear();
        if let Some(upkeep) = node.upkeep.take()
            && random.bool()
            && node.disk.can_carry_out(upkeep)
        {
            // The directory has just been synced.
            node.disk.carry_out(upkeep);
        }
        let torn = node.disk.crash(power, tearing, &mut random);
        self.counts.torn_writes += u64::from(torn > 0);
        self.trace.note(torn as u64);
        let how = if power { "loses power" } else { "ends" };
        self.trace.turn(self.now, || format!("replica {} {how}, {torn} bytes torn", index + 1));
        for connection in 0..self.connections.len() {
            let attempt = &mut self.connections[connection];
            if attempt.replica == index && attempt.life.take().is_some() && attempt.open_at_client && !attempt.broken {
                attempt.broken = true;
                if random.u8(..4) > 0 {
                    let delay = delay(&self.swarm, &mut self.random.network);
                    self.schedule_in(delay, Event::Lost { connection });
                }
            }
        }
    }

    pub(crate) fn start(&mut self, index: usize) -> Verdict {
        let node = &mut self.nodes[index];
        if node.engine.is_some() {
            return Ok(());
        }
        if node.suspended_until > self.now {
            let at = node.suspended_until;
            self.schedule(at, Event::Start { node: index });
            return Ok(());
        }
        let seeds = (self.random.replicas.u64(..), self.random.replicas.u64(..));
        let started = node.start(self.now, &self.swarm, seeds, self.options.bug, &mut self.oracle)?;
        self.history.catch_up(&self.oracle.changes)?;
        let node = &self.nodes[index];
        let (life, promised, applied) = (node.life, node.promised, node.applied);
        let tail = match &started {
            Started::Up(tail) => tail,
            Started::Anew(what) => {
                self.counts.logs_set_aside += 1;
                self.trace.turn(self.now, || format!("replica {} sets its log aside, to rejoin: {what}", index + 1));
                &Tail::Clean
            }
            Started::Refused(why) => {
                self.counts.starts_refused += 1;
                if self.nodes[index].disk.cannot_be_read() {
                    self.schedule_in(START_AGAIN, Event::Start { node: index });
                }
                self.trace.turn(self.now, || format!("replica {} is refused its start: {why}", index + 1));
                return Ok(());
            }
        };
        self.counts.starts += 1;
        self.counts.torn_tails += u64::from(*tail != Tail::Clean);
        self.trace.note(applied.0);
        self.trace.turn(self.now, || {
            let index = index + 1;
            format!("replica {index} starts life {life}: promised {promised}, applied {applied}, tail {tail:?}")
        });
        self.due(index);
        Ok(())
    }
}

/// What only makes single messages, clocks or disks late, or hits clients alone.
fn is_noise(what: &What) -> bool {
    matches!(
        what,
        What::Loss { .. }
            | What::Duplication { .. }
            | What::Delay { .. }
            | What::Reordering { .. }
            | What::Reset { .. }
            | What::SlowDisk { .. }
            | What::Drift { .. }
            | What::NoRoom { .. }
    )
}
