//! Simulated clients: the real client core, each on a connection of its own.
//!
//! A connection keeps the order of bytes and loses none while it lives, as TCP does; it breaks when its replica crashes,
//! when something is sent over a link that is cut (silently), and at random.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use synod_api::{Consistency, Expected, Operation, Revision};
use synod_client::{ClientCore, Moment, Options, RequestId};
use synod_net::Inbound;
use synod_net::connection::InboundSizes;
use synod_paxos::ReplicaId;

use super::history::Ask;
use super::node::address;
use super::swarm::Swarm;

/// One attempt of a client to speak to a replica.
pub(crate) struct Connection {
    pub(crate) client: usize,
    pub(crate) attempt: synod_client::Attempt,
    pub(crate) replica: usize,
    /// Which life of the replica it speaks to, once it is accepted.
    pub(crate) life: Option<u64>,
    pub(crate) open_at_client: bool,
    /// Nothing passes any more, and nobody says so.
    pub(crate) broken: bool,
    pub(crate) inbound: Inbound,
    pub(crate) outbound: Vec<u8>,
    /// When the last bytes arrive, by direction: to the replica, to the client.
    pub(crate) last: [u64; 2],
}

impl Connection {
    pub(crate) fn new(client: usize, attempt: synod_client::Attempt, replica: usize) -> Connection {
        let sizes = InboundSizes::client(synod_api::limits::COMMAND_BYTES_MAX as u32);
        let inbound = Inbound::new(InboundSizes { start_bytes: 512, keep_bytes: 4096, ..sizes });
        Connection {
            client,
            attempt,
            replica,
            life: None,
            open_at_client: true,
            broken: false,
            inbound,
            outbound: Vec::new(),
            last: [0; 2],
        }
    }
}

/// An operation under way.
pub(crate) struct Pending {
    pub(crate) ask: Ask,
    /// The highest revision known when it began.
    pub(crate) floor: u64,
    /// It must succeed: faults are over.
    pub(crate) last: bool,
}

/// One client.
pub(crate) struct Client {
    pub(crate) core: ClientCore,
    pub(crate) connection: Option<usize>,
    pub(crate) pending: BTreeMap<RequestId, Pending>,
    pub(crate) wake_at: u64,
    /// It only reads, at whichever replica it is connected to.
    pub(crate) only_reads: bool,
    /// The highest revision that it was shown.
    pub(crate) shown: u64,
    /// How many of the final operations are still to be asked.
    pub(crate) last_left: u32,
    written: u64,
}

impl Client {
    pub(crate) fn new(swarm: &Swarm, only_reads: bool, seed: u64) -> Client {
        let endpoints: Vec<String> = (1..=swarm.machines).map(|id| address(ReplicaId(id))).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        let election = swarm.election_timeout;
        let trip = Duration::from_nanos(2 * (swarm.delay_min + swarm.delay_mean));
        let options = Options {
            deadline: Duration::from_nanos(swarm.patience),
            connect_time_max: (trip * 5).max(election / 2),
            attempt_time_max: (trip * 5).max(election / 2),
            probe_time_max: (trip * 3).max(Duration::from_millis(10)),
            silence_time_max: (trip * 10).max(election),
            drain_time_max: (trip * 3).max(Duration::from_millis(10)),
            backoff_min: Duration::from_millis(5),
            backoff_max: (election / 2).max(Duration::from_millis(50)),
            busy_pause_min: Duration::from_millis(1),
            seed,
        };
        Client {
            core: ClientCore::new(&endpoints, options),
            connection: None,
            pending: BTreeMap::new(),
            wake_at: u64::MAX,
            only_reads,
            shown: 0,
            last_left: 0,
            written: 0,
        }
    }

    /// Asks for something. The request ends by `deadline` at the latest.
    pub(crate) fn ask(&mut self, now: u64, ask: Ask, floor: u64, last: bool, deadline: u64) {
        let operation = match &ask {
            Ask::Get { key } => Operation::Get { key },
            Ask::Put { key, value } => Operation::Put { key, value },
            Ask::Delete { key } => Operation::Delete { key },
            Ask::Swap { key, expected, value } => {
                let expected = expected.as_deref().map_or(Expected::Absent, Expected::Value);
                Operation::CompareAndSwap { key, expected, value }
            }
            Ask::Create { path, contents } => Operation::CreateFile { path, contents },
            Ask::Write { path, contents } => Operation::WriteFile { path, contents },
            Ask::Read { path } => Operation::ReadFile { path },
            Ask::Bounded { key, .. } => Operation::Get { key },
        };
        let (now, deadline) = (Moment(now), Moment(deadline));
        let id = match &ask {
            Ask::Bounded { consistency, .. } => self.core.submit_read(now, operation, *consistency, deadline),
            _ => self.core.submit(now, operation, deadline),
        };
        let id = id.expect("few are under way");
        self.pending.insert(id, Pending { ask, floor, last });
    }

    /// A value that nobody else ever writes.
    fn value(&mut self, number: usize, swarm: &Swarm, random: &mut Rng) -> Vec<u8> {
        self.written += 1;
        let mut value = format!("{number}:{}:", self.written).into_bytes();
        // The lengths differ, so that a value in a wrong place shows in the sizes alone.
        value.resize(random.usize(8..=swarm.value_bytes_max).max(value.len()), b'.');
        value
    }

    /// Draws a read for whichever replica it is connected to. `known` is the highest revision that anybody was told. One that
    /// must succeed asks for nothing that may be forgotten.
    pub(crate) fn draw_read(&self, swarm: &Swarm, known: u64, must_succeed: bool, random: &mut Rng) -> Ask {
        let key = format!("k{}", random.u64(..swarm.keys)).into_bytes();
        let consistency = match random.u8(..10) {
            0..=4 => Consistency::Linearizable,
            5 => Consistency::AtLeast(Revision::NONE),
            6 => Consistency::AtLeast(Revision(self.shown)),
            9 if !must_succeed => Consistency::At(Revision(known.saturating_sub(random.u64(..3)))),
            _ => Consistency::AtLeast(Revision(known)),
        };
        Ask::Bounded { key, consistency }
    }

    /// Draws something to ask. `seen` is what keys held when somebody last saw them.
    pub(crate) fn draw(
        &mut self,
        number: usize,
        swarm: &Swarm,
        seen: &BTreeMap<Vec<u8>, Vec<u8>>,
        random: &mut Rng,
    ) -> Ask {
        let key = format!("k{}", random.u64(..swarm.keys)).into_bytes();
        match random.u8(..20) {
            0..=6 => Ask::Put { key, value: self.value(number, swarm, random) },
            7..=10 => {
                let expected = if random.u8(..8) == 0 { None } else { seen.get(&key).cloned() };
                Ask::Swap { key, expected, value: self.value(number, swarm, random) }
            }
            11 => Ask::Delete { key },
            12..=15 => Ask::Get { key },
            16 | 17 => {
                // Some collide with those of others, and some are never asked for again.
                let path = match random.bool() {
                    true => format!("/f/{}", random.u64(..2 * swarm.keys)),
                    false => format!("/f/{number}/{}", self.written),
                };
                Ask::Create { path: path.into_bytes(), contents: self.value(number, swarm, random) }
            }
            18 => {
                let path = format!("/f/{}", random.u64(..2 * swarm.keys)).into_bytes();
                Ask::Write { path, contents: self.value(number, swarm, random) }
            }
            _ => Ask::Read { path: format!("/f/{}", random.u64(..2 * swarm.keys)).into_bytes() },
        }
    }
}
