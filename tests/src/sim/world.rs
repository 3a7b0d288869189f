//! The world of one seed: its clock, its queue of events, and the faults.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use bytes::Bytes;
use fastrand::Rng;
use synod_node::engine::LogRead;
use synod_paxos::{ReplicaId, Slot};
use synod_wal::{SegmentId, StartId, Tail};

use super::clients::{Client, Connection};
use super::disk::Crash;
use super::history::History;
use super::network::{Network, delay};
use super::node::Node;
use super::oracle::Oracle;
use super::swarm::{MILLISECOND, SECOND, Swarm, around};
use super::trace::{Trace, hash_bytes};
use super::verdict::{Checker, Verdict, violation};
use super::{Counts, OPERATIONS_MIN, Planted};

/// Everything that can happen. What belongs to a life of a replica does not happen to the next.
#[derive(Debug)]
pub(crate) enum Event {
    Message { from: usize, to: usize, kind: u8, bytes: Bytes },
    Turn { node: usize, life: u64 },
    Wake { node: usize, life: u64 },
    Written { node: usize, life: u64 },
    Synced { node: usize, life: u64 },
    SegmentReady { node: usize, life: u64, segment: SegmentId },
    LogRead { node: usize, life: u64, read: LogRead },
    Start { node: usize },
    Dialed { connection: usize },
    Accepted { connection: usize },
    ToReplica { connection: usize, bytes: Vec<u8> },
    ToClient { connection: usize, bytes: Vec<u8> },
    Lost { connection: usize },
    ClientWake { client: usize },
    Ask { client: usize },
    Crash,
    Cut,
    Heal,
    Pause,
    FaultsStop,
    LookAround,
}

impl Event {
    /// For the hash: which kind, whose, and what.
    fn numbers(&self) -> [u64; 4] {
        let n = |index: &usize| *index as u64;
        match self {
            Event::Message { from, to, kind, bytes } => [1, n(from) << 32 | n(to), u64::from(*kind), hash_bytes(bytes)],
            Event::Turn { node, life } => [2, n(node), *life, 0],
            Event::Wake { node, life } => [3, n(node), *life, 0],
            Event::Written { node, life } => [4, n(node), *life, 0],
            Event::Synced { node, life } => [5, n(node), *life, 0],
            Event::SegmentReady { node, life, segment } => [6, n(node), *life, segment.0],
            Event::LogRead { node, life, read } => [7, n(node), *life, read.offset],
            Event::Start { node } => [8, n(node), 0, 0],
            Event::Dialed { connection } => [9, n(connection), 0, 0],
            Event::Accepted { connection } => [10, n(connection), 0, 0],
            Event::ToReplica { connection, bytes } => [11, n(connection), hash_bytes(bytes), 0],
            Event::ToClient { connection, bytes } => [12, n(connection), hash_bytes(bytes), 0],
            Event::Lost { connection } => [13, n(connection), 0, 0],
            Event::ClientWake { client } => [14, n(client), 0, 0],
            Event::Ask { client } => [15, n(client), 0, 0],
            Event::Crash => [16, 0, 0, 0],
            Event::Cut => [17, 0, 0, 0],
            Event::Heal => [18, 0, 0, 0],
            Event::Pause => [19, 0, 0, 0],
            Event::FaultsStop => [20, 0, 0, 0],
            Event::LookAround => [21, 0, 0, 0],
        }
    }
}

struct Scheduled {
    at: u64,
    /// Of two at one moment the one that was scheduled first comes first.
    number: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    /// The heap gives the greatest first; the earliest is wanted.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

/// Randomness, apart for each part of the world: a change in one leaves the others as they were.
pub(crate) struct Randoms {
    pub(crate) network: Rng,
    pub(crate) disks: Rng,
    pub(crate) people: Rng,
    pub(crate) faults: Rng,
    pub(crate) replicas: Rng,
}

/// See the module.
pub(crate) struct World {
    pub(crate) now: u64,
    scheduled: u64,
    queue: BinaryHeap<Scheduled>,
    pub(crate) swarm: Swarm,
    pub(crate) random: Randoms,
    pub(crate) trace: Trace,
    pub(crate) network: Network,
    pub(crate) nodes: Vec<Node>,
    pub(crate) connections: Vec<Connection>,
    /// Those that have answers to carry at the end of this turn.
    pub(crate) answering: Vec<usize>,
    pub(crate) clients: Vec<Client>,
    /// What keys held when a client last saw them.
    pub(crate) seen: BTreeMap<Vec<u8>, Vec<u8>>,
    pub(crate) oracle: Oracle,
    pub(crate) history: History,
    pub(crate) counts: Counts,
    pub(crate) planted: Option<Planted>,
    /// When all must have come right; `None` while faults go on.
    pub(crate) must_end: Option<u64>,
    partitioned: bool,
    finished: bool,
}

/// No seed needs so many; one that does turns in a circle.
const EVENTS_MAX: u64 = 20_000_000;
/// The most that the safety phase is extended to, as a multiple of what was drawn.
const EXTENSIONS_MAX: u64 = 10;
/// How often it is looked whether all has come right.
const LOOK_AROUND: u64 = 100 * MILLISECOND;
/// How many operations each client still asks for after faults have stopped; each must succeed.
const LAST_OPERATIONS: u32 = 5;

impl World {
    pub(crate) fn new(seed: u64, planted: Option<Planted>, trace: Trace) -> World {
        let mut random = Rng::with_seed(seed);
        let swarm = Swarm::draw(&mut random);
        let mut random = Randoms {
            network: random.fork(),
            disks: random.fork(),
            people: random.fork(),
            faults: random.fork(),
            replicas: random.fork(),
        };
        let ids = (1..=swarm.replicas).map(ReplicaId);
        let nodes = ids.map(|id| Node::new(id, &swarm, StartId(random.replicas.u64(..)))).collect();
        let clients = (0..swarm.clients).map(|_| Client::new(&swarm, random.people.u64(..))).collect();
        World {
            now: 0,
            scheduled: 0,
            queue: BinaryHeap::new(),
            network: Network::new(swarm.replicas),
            oracle: Oracle::new(swarm.replicas),
            swarm,
            random,
            trace,
            nodes,
            connections: Vec::new(),
            answering: Vec::new(),
            clients,
            seen: BTreeMap::new(),
            history: History::default(),
            counts: Counts::default(),
            planted,
            must_end: None,
            partitioned: false,
            finished: false,
        }
    }

    pub(crate) fn schedule(&mut self, at: u64, event: Event) {
        self.scheduled += 1;
        self.queue.push(Scheduled { at: at.max(self.now), number: self.scheduled, event });
    }

    pub(crate) fn schedule_in(&mut self, delay: u64, event: Event) {
        self.schedule(self.now + delay, event);
    }

    /// Runs to the end, or to the first violation.
    pub(crate) fn run(&mut self) -> Verdict {
        let swarm = self.swarm.clone();
        self.trace.say(0, || format!("{swarm:#?}"));
        for node in 0..self.nodes.len() {
            self.schedule(0, Event::Start { node });
        }
        for client in 0..self.clients.len() {
            for _ in 0..self.swarm.outstanding {
                let at = self.random.people.u64(..=self.swarm.think_mean);
                self.schedule(at, Event::Ask { client });
            }
        }
        for (every, fault) in [
            (self.swarm.crash_every, Event::Crash),
            (self.swarm.partition_every, Event::Cut),
            (self.swarm.pause_every, Event::Pause),
        ] {
            self.schedule_fault(every, fault);
        }
        self.schedule(self.swarm.safety, Event::FaultsStop);
        while !self.finished {
            let next = self.queue.pop().expect("somebody always looks around");
            assert!(next.at >= self.now, "time does not move back");
            self.now = next.at;
            self.trace.event(self.now, &next.event.numbers());
            self.happen(next.event)?;
            if self.trace.events > EVENTS_MAX {
                return violation(Checker::Liveness, format!("more than {EVENTS_MAX} events"));
            }
        }
        self.history.check_all(&self.oracle.changes)
    }

    fn happen(&mut self, event: Event) -> Verdict {
        match event {
            Event::Message { from, to, kind, bytes } => self.message(from, to, kind, bytes),
            Event::Turn { node, life } => return self.turn(node, life),
            Event::Wake { node, life } => self.wake(node, life),
            Event::Written { node, life } => self.written(node, life),
            Event::Synced { node, life } => return self.synced(node, life),
            Event::SegmentReady { node, life, segment } => self.segment_ready(node, life, segment),
            Event::LogRead { node, life, read } => self.log_read(node, life, read),
            Event::Start { node } => return self.start(node),
            Event::Dialed { connection } => self.dialed(connection),
            Event::Accepted { connection } => return self.accepted(connection),
            Event::ToReplica { connection, bytes } => self.arrived_at_replica(connection, bytes),
            Event::ToClient { connection, bytes } => return self.arrived_at_client(connection, &bytes),
            Event::Lost { connection } => return self.lost(connection),
            Event::ClientWake { client } => return self.client_wake(client),
            Event::Ask { client } => return self.ask(client),
            Event::Crash => self.crash_some(),
            Event::Cut => self.cut(),
            Event::Heal => self.heal(),
            Event::Pause => self.pause(),
            Event::FaultsStop => self.stop_faults(),
            Event::LookAround => return self.look_around(),
        }
        Ok(())
    }

    /// The next fault of a kind, if there is to be one.
    fn schedule_fault(&mut self, every: Option<u64>, fault: Event) {
        if let Some(every) = every {
            let delay = around(&mut self.random.faults, every);
            self.schedule_in(delay, fault);
        }
    }

    // Faults.

    fn crash_some(&mut self) {
        let Some(every) = self.swarm.crash_every else { return };
        let (power_share, all_down_share) = (self.swarm.power_share, self.swarm.all_down_share);
        let random = &mut self.random.faults;
        let crash = if random.f64() < power_share { Crash::Power } else { Crash::Process };
        let all = random.f64() < all_down_share;
        let one = random.usize(..self.nodes.len());
        for node in 0..self.nodes.len() {
            if (all || node == one) && self.nodes[node].engine.is_some() {
                // Half of them wait for the worst moment.
                if self.random.faults.bool() {
                    self.nodes[node].doomed = Some(crash);
                } else {
                    self.crash(node, crash);
                }
            }
        }
        self.schedule_fault(Some(every), Event::Crash);
    }

    pub(crate) fn crash(&mut self, index: usize, crash: Crash) {
        let down = MILLISECOND + around(&mut self.random.faults, self.swarm.down_mean);
        self.schedule_in(down, Event::Start { node: index });
        self.counts.crashes += 1;
        self.counts.power_cuts += u64::from(crash == Crash::Power);
        let node = &mut self.nodes[index];
        if let Some(engine) = node.engine.take() {
            self.counts.take(&engine);
        }
        node.inbox.clear();
        node.asked.clear();
        node.turn_due = false;
        node.doomed = None;
        node.mark_at = None;
        node.paused_until = 0;
        if let Some(segment) = node.preparing.take()
            && self.random.disks.bool()
        {
            // It has just got its name.
            node.disk.make_segment(segment);
        }
        let torn = node.disk.crash(crash, self.swarm.tearing, &mut self.random.disks);
        self.counts.torn_writes += u64::from(torn > 0);
        self.trace.note(torn as u64);
        self.trace.say(self.now, || format!("replica {} crashes ({crash:?}), {torn} bytes torn", index + 1));
        for connection in 0..self.connections.len() {
            let attempt = &mut self.connections[connection];
            if attempt.replica == index && attempt.life.take().is_some() && attempt.open_at_client && !attempt.broken {
                attempt.broken = true;
                if self.random.faults.u8(..4) > 0 {
                    let delay = delay(&self.swarm, &mut self.random.network);
                    self.schedule_in(delay, Event::Lost { connection });
                }
            }
        }
    }

    fn start(&mut self, index: usize) -> Verdict {
        let node = &mut self.nodes[index];
        if node.engine.is_some() {
            return Ok(());
        }
        let seeds = (self.random.replicas.u64(..), self.random.replicas.u64(..));
        let forget = self.planted == Some(Planted::P2ForgottenPromise);
        let tail = node.start(self.now, &self.swarm, seeds, forget, &mut self.oracle)?;
        self.counts.starts += 1;
        self.counts.torn_tails += u64::from(tail != Tail::Clean);
        let (life, promised, applied) = (node.life, node.promised, node.applied);
        self.trace.note(applied.0);
        self.trace.say(self.now, || {
            format!(
                "replica {} starts life {life}: promised {promised}, applied up to {applied}, its log's tail: {tail:?}",
                index + 1
            )
        });
        self.due(index);
        Ok(())
    }

    fn cut(&mut self) {
        let Some(every) = self.swarm.partition_every else { return };
        if self.partitioned {
            return self.schedule_fault(Some(every), Event::Cut);
        }
        self.partitioned = true;
        self.counts.partitions += 1;
        let words = self.network.cut(&mut self.random.faults);
        self.trace.say(self.now, || words);
        let length = around(&mut self.random.faults, self.swarm.partition_mean);
        self.schedule_in(length, Event::Heal);
        self.schedule_fault(Some(every), Event::Cut);
    }

    fn heal(&mut self) {
        self.partitioned = false;
        self.network.heal();
        self.trace.say(self.now, || "the network is whole".to_owned());
    }

    fn pause(&mut self) {
        let Some(every) = self.swarm.pause_every else { return };
        let node = self.random.faults.usize(..self.nodes.len());
        let length = around(&mut self.random.faults, self.swarm.pause_mean);
        self.counts.pauses += 1;
        self.nodes[node].paused_until = self.now + length;
        self.trace.say(self.now, || format!("replica {} stands still for {} ms", node + 1, length / MILLISECOND));
        self.schedule_fault(Some(every), Event::Pause);
    }

    // The end.

    /// From here on everything works, and so must the cell. A world that is too hostile to get anything done gets more
    /// time, within reason.
    fn stop_faults(&mut self) {
        if self.counts.operations < 2 * OPERATIONS_MIN && self.now < EXTENSIONS_MAX * self.swarm.safety {
            return self.schedule_in(self.swarm.safety / 2, Event::FaultsStop);
        }
        self.trace.say(self.now, || "faults stop".to_owned());
        self.counts.safety_operations = self.counts.operations;
        self.swarm.stop_faults();
        self.heal();
        for node in 0..self.nodes.len() {
            self.nodes[node].paused_until = 0;
            self.nodes[node].doomed = None;
            self.due(node);
            self.schedule_in(MILLISECOND, Event::Start { node });
        }
        for client in 0..self.clients.len() {
            self.clients[client].last_left = LAST_OPERATIONS;
        }
        let election = u64::try_from(self.swarm.election_timeout.as_nanos()).expect("seconds");
        self.must_end = Some(self.now + self.swarm.patience + 40 * election + 30 * SECOND);
        self.schedule_in(LOOK_AROUND, Event::LookAround);
    }

    fn look_around(&mut self) -> Verdict {
        let must_end = self.must_end.expect("it is set before the first look");
        let missing = self.missing();
        if missing.is_none() {
            self.finished = true;
            for node in &self.nodes {
                self.counts.take(node.engine.as_deref().expect("all are up"));
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
        let upto = self.oracle.upto();
        let contents = self.oracle.contents_hash();
        for node in &self.nodes {
            let Some(engine) = &node.engine else { return Some(format!("replica {} is down", node.id)) };
            let applied: Slot = engine.replica().chosen();
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
