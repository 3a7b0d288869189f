//! The world of one seed: the true time, the queue of events, and everybody in it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use bytes::Bytes;
use fastrand::Rng;
use synod_node::engine::LogRead;
use synod_paxos::ReplicaId;
use synod_wal::{StartId, Upkeep};

use super::clients::{Client, Connection};
use super::clocks::Clock;
use super::coverage::Coverage;
use super::divergence::{self, SCRUB_EVERY};
use super::faults::{self, Fault, What};
use super::history::History;
use super::network::Network;
use super::node::Node;
use super::oracle::Oracle;
use super::planted::Bug;
use super::sabotage;
use super::swarm::{SECOND, Swarm};
use super::tally::Tally;
use super::trace::{Trace, hash_bytes};
use super::verdict::{Checker, Verdict, violation};
use super::{Counts, Options};

/// Everything that can happen. What belongs to a life of a replica does not happen to the next.
#[derive(Debug)]
pub(crate) enum Event {
    Message { from: usize, to: usize, kind: u8, bytes: Bytes },
    Turn { node: usize, life: u64 },
    Wake { node: usize, life: u64 },
    Written { node: usize, life: u64 },
    Synced { node: usize, life: u64 },
    UpkeepDone { node: usize, life: u64, upkeep: Upkeep },
    LogRead { node: usize, life: u64, read: LogRead },
    Kept { node: usize, life: u64 },
    Start { node: usize },
    Dialed { connection: usize },
    Accepted { connection: usize },
    ToReplica { connection: usize, bytes: Vec<u8> },
    ToClient { connection: usize, bytes: Vec<u8> },
    Lost { connection: usize },
    ClientWake { client: usize },
    Ask { client: usize },
    Fault { number: usize },
    Flap { number: usize },
    FaultEnds { number: usize },
    FaultsStop,
    LookAround,
    Scrub,
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
            Event::UpkeepDone { node, life, upkeep } => {
                let (how, segment) = match upkeep {
                    Upkeep::Make(segment) => (0, segment),
                    Upkeep::Recycle { to, .. } => (1, to),
                    Upkeep::Remove(segment) => (2, segment),
                };
                [6, n(node), *life, segment.0 | how << 62]
            }
            Event::LogRead { node, life, read } => [7, n(node), *life, read.offset],
            Event::Start { node } => [8, n(node), 0, 0],
            Event::Dialed { connection } => [9, n(connection), 0, 0],
            Event::Accepted { connection } => [10, n(connection), 0, 0],
            Event::ToReplica { connection, bytes } => [11, n(connection), hash_bytes(bytes), 0],
            Event::ToClient { connection, bytes } => [12, n(connection), hash_bytes(bytes), 0],
            Event::Lost { connection } => [13, n(connection), 0, 0],
            Event::ClientWake { client } => [14, n(client), 0, 0],
            Event::Ask { client } => [15, n(client), 0, 0],
            Event::Fault { number } => [16, n(number), 0, 0],
            Event::Flap { number } => [17, n(number), 0, 0],
            Event::FaultEnds { number } => [18, n(number), 0, 0],
            Event::FaultsStop => [20, 0, 0, 0],
            Event::LookAround => [21, 0, 0, 0],
            Event::Kept { node, life } => [22, n(node), *life, 0],
            Event::Scrub => [23, 0, 0, 0],
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
    pub(crate) replicas: Rng,
    pub(crate) bug: Rng,
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
    pub(crate) coverage: Coverage,
    /// All that may go wrong, by number.
    pub(crate) faults: Vec<Fault>,
    /// Those that last and have not ended.
    pub(crate) lasting: BTreeSet<usize>,
    /// Faults that happened, by kind.
    pub(crate) injected: Tally,
    pub(crate) options: Options,
    /// Sessions and sequences of commands that came: for a planted bug.
    pub(crate) stamps: BTreeSet<(u64, u64)>,
    /// When all must have come right; `None` while faults go on.
    /// The last whose directory was put back to an older copy.
    pub(crate) rolled_back: Option<usize>,
    pub(crate) must_end: Option<u64>,
    pub(crate) finished: bool,
}

/// No seed needs so many; one that does turns in a circle.
const EVENTS_MAX: u64 = 20_000_000;
/// The most that the safety phase is extended to, as a multiple of what was drawn.
pub(crate) const EXTENSIONS_MAX: u64 = 6;

impl World {
    pub(crate) fn new(seed: u64, options: Options) -> World {
        let mut random = Rng::with_seed(seed);
        let mut swarm = Swarm::draw(&mut random);
        if let Some(bug) = options.bug {
            bug.arrange(&mut swarm);
        }
        let faults = faults::draw(&swarm, EXTENSIONS_MAX * swarm.safety, &mut random.fork());
        let mut random = Randoms {
            network: random.fork(),
            disks: random.fork(),
            people: random.fork(),
            replicas: random.fork(),
            bug: random.fork(),
        };
        if options.bug == Some(Bug::RunReadsOutsideTime) {
            random.network = Rng::with_seed(sabotage::outside());
        }
        for (number, fault) in faults.iter().enumerate() {
            // Every disk is as large, and logs differ a little: so they fill up about together.
            if let What::FullDisk { segments } = fault.what
                && options.faults.lets(number)
            {
                swarm.segments_max = Some(segments);
            }
        }
        let ids = (1..=swarm.machines).map(ReplicaId);
        let nodes = ids.map(|id| {
            let start = StartId(random.replicas.u64(..));
            Node::new(id, &swarm, start, Clock::new(0, random.replicas.u64(..UPTIME_MAX)))
        });
        let nodes = nodes.collect();
        let clients = (0..swarm.clients + swarm.readers)
            .map(|number| Client::new(&swarm, number >= swarm.clients, random.people.u64(..)))
            .collect();
        World {
            now: 0,
            scheduled: 0,
            queue: BinaryHeap::new(),
            network: Network::new(swarm.machines),
            oracle: Oracle::new(
                swarm.machines,
                super::node::configuration(&swarm),
                divergence::is_left_to_replicas(options.bug),
            ),
            swarm,
            random,
            trace: Trace::new(options.words),
            nodes,
            connections: Vec::new(),
            answering: Vec::new(),
            clients,
            seen: BTreeMap::new(),
            history: History::default(),
            counts: Counts::default(),
            coverage: Coverage::default(),
            faults,
            lasting: BTreeSet::new(),
            injected: Tally::default(),
            options,
            stamps: BTreeSet::new(),
            rolled_back: None,
            must_end: None,
            finished: false,
        }
    }

    /// Whether this bug is planted.
    pub(crate) fn has(&self, bug: Bug) -> bool {
        self.options.bug == Some(bug)
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
        for node in 0..usize::from(self.swarm.replicas) {
            self.schedule(0, Event::Start { node });
        }
        for client in 0..self.clients.len() {
            for _ in 0..self.swarm.outstanding {
                let at = self.random.people.u64(..=self.swarm.think_mean);
                self.schedule(at, Event::Ask { client });
            }
        }
        self.schedule_fault(0);
        self.schedule(SCRUB_EVERY, Event::Scrub);
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
        Ok(())
    }

    fn happen(&mut self, event: Event) -> Verdict {
        match event {
            Event::Message { from, to, kind, bytes } => self.message(from, to, kind, bytes),
            Event::Turn { node, life } => return self.turn(node, life),
            Event::Wake { node, life } => self.wake(node, life),
            Event::Written { node, life } => self.written(node, life),
            Event::Synced { node, life } => return self.synced(node, life),
            Event::UpkeepDone { node, life, upkeep } => self.upkeep_done(node, life, upkeep),
            Event::LogRead { node, life, read } => self.log_read(node, life, read),
            Event::Kept { node, life } => self.kept(node, life),
            Event::Start { node } => return self.start(node),
            Event::Dialed { connection } => self.dialed(connection),
            Event::Accepted { connection } => return self.accepted(connection),
            Event::ToReplica { connection, bytes } => self.arrived_at_replica(connection, bytes),
            Event::ToClient { connection, bytes } => return self.arrived_at_client(connection, &bytes),
            Event::Lost { connection } => return self.lost(connection),
            Event::ClientWake { client } => return self.client_wake(client),
            Event::Ask { client } => return self.ask(client),
            Event::Fault { number } => self.fault(number),
            Event::Flap { number } => self.flap(number),
            Event::FaultEnds { number } => self.fault_ends(number),
            Event::FaultsStop => self.stop_faults(),
            Event::Scrub => self.scrub_all(),
            Event::LookAround => return self.look_around(),
        }
        Ok(())
    }
}

/// A machine has been up for this long at the most when the world begins.
const UPTIME_MAX: u64 = 1_000_000 * SECOND;
