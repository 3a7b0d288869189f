//! The load: so many workers, each with one operation in flight, over so many connections.
//!
//! In a closed loop a worker begins its next operation when the last one is answered. In an open loop ([`Workload::pace`])
//! operations arrive at a constant rate, whatever the cell does, and each is given to a worker that is idle. Its latency
//! counts from the moment it should have begun: one that waited because the cell stood still shows that it did.
//!
//! One thread drives them all on one ring, with the client library's own state machine per connection, so that what is
//! measured is the full client path (sessions, retries, redirects) and the client takes as little of the replicas' cores
//! as it can.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::ops::AddAssign;
use std::time::Duration;

use anyhow::Context;
use bytes::BytesMut;
use hdrhistogram::Histogram;
use synod_api::limits::UNANSWERED_MAX;
use synod_api::{Answer, Consistency, Operation};
use synod_client::{Action, Attempt, ClientCore, Options};
use synod_net::Moment;
use synod_node::stages::is_traced;
use synod_ring::{Completion, Handle, Outcome, Ring};

/// An operation that takes longer is counted as failed. Longer than an election.
const OPERATION_TIME_MAX: Duration = Duration::from_secs(10);
/// How often the clients' timers are looked at. They are about failures, not about speed.
const TICK: Duration = Duration::from_millis(20);
/// Latencies above this are recorded as this, in nanoseconds.
const LONGEST_NS: u64 = 60_000_000_000;
/// In an open loop the thread sleeps at least so long: arrivals of that time leave together, so much too late at most, which
/// their latency shows. At 10,000 a second or less each leaves alone.
const ARRIVALS_TOGETHER: Duration = Duration::from_micros(20);
/// The kernel rounds a thread's timeouts up by this, in nanoseconds: by 50 us if not told otherwise.
const TIMER_SLACK_NS: u64 = 1_000;

/// What each worker does over and over.
#[derive(Clone, Debug)]
pub enum Work {
    /// Creates a small file under a name never used before, as in the paper's benchmark.
    CreateFiles {
        /// The directory of this run.
        prefix: String,
    },
    /// Writes any of so many keys, all over the database.
    AnyKey {
        /// How many there are.
        keys: u64,
    },
    /// Writes its own key, or reads it, so many times in a hundred.
    OwnKey {
        /// Reads in a hundred operations.
        reads_percent: u8,
        /// Reads are asked of whichever replica a connection comes to, and must be as new as this; none: the master reads.
        anywhere: Option<Consistency>,
    },
}

/// A closed loop.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The cell's client addresses.
    pub endpoints: Vec<String>,
    /// How many workers.
    pub workers: usize,
    /// Over how many connections they are spread.
    pub connections: usize,
    /// The size of a value or file, in bytes.
    pub value_bytes: usize,
    /// What they do.
    pub work: Work,
}

/// What happened while it ran for a while.
#[derive(Clone, Debug)]
pub struct Figures {
    /// Latencies of operations that succeeded, in nanoseconds.
    pub latencies: Histogram<u64>,
    /// Operations that did not succeed, whatever the reason.
    pub failures: u64,
    /// Operations that should have begun in an open loop, and never did: a second's arrivals were waiting before them.
    pub not_begun: u64,
    /// For how long.
    pub elapsed: Duration,
    /// Why the last failure.
    pub last_failure: Option<String>,
}

impl Default for Figures {
    fn default() -> Self {
        let latencies = Histogram::new_with_bounds(1, LONGEST_NS, 3).expect("the bounds are valid");
        Self { latencies, failures: 0, not_begun: 0, elapsed: Duration::ZERO, last_failure: None }
    }
}

impl AddAssign for Figures {
    fn add_assign(&mut self, other: Self) {
        self.latencies += &other.latencies;
        self.failures += other.failures;
        self.not_begun += other.not_begun;
        self.elapsed += other.elapsed;
        self.last_failure = other.last_failure.or_else(|| self.last_failure.take());
    }
}

impl Figures {
    /// Operations that succeeded.
    pub fn operations(&self) -> u64 {
        self.latencies.len()
    }

    /// Operations a second.
    pub fn per_second(&self) -> f64 {
        self.operations() as f64 / self.elapsed.as_secs_f64()
    }

    /// A quantile of the latency, in microseconds.
    pub fn quantile_us(&self, quantile: f64) -> f64 {
        self.latencies.value_at_quantile(quantile) as f64 / 1000.0
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Token {
    Dial(usize, Attempt),
    Receive(usize, Attempt),
    Send(usize, Attempt),
}

struct Connection {
    core: ClientCore,
    socket: Option<(Attempt, Handle)>,
    /// Which worker waits for the request in this place of the client's table.
    owners: Vec<usize>,
    /// At our end, as the replica sees it.
    port: u16,
    /// Requests that are traced and not answered yet.
    traces: Vec<ClientTrace>,
    /// It may have something to send.
    touched: bool,
}

/// The moments of one request at the client, in nanoseconds since the machine's boot: see [`synod_node::stages`].
#[derive(Clone, Copy, Debug)]
pub struct ClientTrace {
    /// Of the connection, at our end.
    pub port: u16,
    /// The request's number on it.
    pub request: u64,
    /// The worker began.
    pub begun: u64,
    /// Its bytes were handed to the kernel.
    pub left: u64,
    /// The kernel gave us the answer's bytes.
    pub answered: u64,
}

/// Which requests are traced, and what became of them.
struct Tracing {
    every: u64,
    finished: Vec<ClientTrace>,
}

struct Worker {
    connection: usize,
    started: Moment,
    done: u64,
}

/// When operations arrive in an open loop: one every so often, from its start on.
struct Arrivals {
    per_second: u64,
    start: Moment,
    /// How many have begun, or were left out.
    taken: u64,
}

impl Arrivals {
    /// When an arrival is due.
    fn due(&self, arrival: u64) -> Moment {
        self.start
            .after(Duration::from_nanos((u128::from(arrival) * 1_000_000_000 / u128::from(self.per_second)) as u64))
    }

    /// How many are due by now and have not begun.
    fn waiting(&self, now: Moment) -> u64 {
        let ns = now.since(self.start).as_nanos();
        let due = (ns * u128::from(self.per_second) / 1_000_000_000) as u64 + 1;
        due.saturating_sub(self.taken)
    }
}

/// Workers and connections, between and during measurements.
pub struct Workload {
    plan: Plan,
    /// When our clock began, in nanoseconds since the machine's boot.
    start_ns: u64,
    tracing: Option<Tracing>,
    ring: Ring<Token>,
    connections: Vec<Connection>,
    workers: Vec<Worker>,
    value: Vec<u8>,
    name: String,
    idle: VecDeque<usize>,
    /// None: the loop is closed.
    arrivals: Option<Arrivals>,
    touched: Vec<usize>,
    /// Connections whose sends go to the kernel with the next entry, and that have traced requests.
    leaving: Vec<usize>,
    next_tick: Moment,
    in_flight: usize,
    figures: Figures,
    completions: Vec<Completion<Token>>,
}

/// Nanoseconds since the machine's boot: the clock that replicas trace by.
fn boot_time_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let since = Duration::try_from(time).expect("the time since boot is not negative");
    u64::try_from(since.as_nanos()).expect("the machine runs for less than 584 years")
}

impl Workload {
    /// Sets the workers up; nothing is sent before the first [`Workload::run`].
    pub fn new(plan: Plan) -> anyhow::Result<Self> {
        anyhow::ensure!(plan.workers >= 1, "at least one worker is needed");
        anyhow::ensure!(plan.connections >= 1, "at least one connection is needed");
        let connections = plan.connections.min(plan.workers);
        let per_connection = plan.workers.div_ceil(connections);
        anyhow::ensure!(
            per_connection <= UNANSWERED_MAX as usize,
            "{per_connection} workers a connection: a session has at most {UNANSWERED_MAX} commands in flight; \
             use more connections"
        );
        let endpoints: Vec<&str> = plan.endpoints.iter().map(String::as_str).collect();
        let connection = |index: usize| Connection {
            core: ClientCore::new(&endpoints, Options { seed: index as u64, ..Options::default() }),
            socket: None,
            owners: vec![0; UNANSWERED_MAX as usize],
            port: 0,
            traces: Vec::new(),
            touched: false,
        };
        let start_ns = boot_time_ns();
        let worker = |index: usize| Worker { connection: index % connections, started: Moment(0), done: 0 };
        Ok(Self {
            ring: Ring::new(synod_ring::Options::default()).context("the load needs io_uring")?,
            start_ns,
            tracing: None,
            connections: (0..connections).map(connection).collect(),
            workers: (0..plan.workers).map(worker).collect(),
            // Not all alike, so that nobody is tempted to compress it.
            value: (0..plan.value_bytes).map(|at| (at * 31 % 251) as u8).collect(),
            name: String::new(),
            idle: (0..plan.workers).collect(),
            arrivals: None,
            touched: Vec::new(),
            leaving: Vec::new(),
            next_tick: Moment(0),
            in_flight: 0,
            figures: Figures::default(),
            completions: Vec::new(),
            plan,
        })
    }

    /// From now on the loop is open: so many operations arrive a second, one after the other at equal distances. When a
    /// second's arrivals wait for an idle worker, the oldest is left out, and counted.
    pub fn pace(&mut self, per_second: u64) {
        assert!(per_second > 0, "a rate of nothing is no rate");
        // Who asks for it finds out in the latencies if it fails: arrivals leave a little later.
        if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS)) {
            eprintln!("synod-bench: cannot ask for precise timeouts: {error}");
        }
        self.arrivals = Some(Arrivals { per_second, start: self.now(), taken: 0 });
    }

    /// Operations of an open loop that should have begun by now and wait for an idle worker.
    pub fn waiting(&self) -> u64 {
        self.arrivals.as_ref().map_or(0, |arrivals| arrivals.waiting(self.now()))
    }

    /// Keeps all workers busy for so long, or until so many operations have been done; in an open loop, as busy as it says.
    pub fn run(&mut self, time: Duration, operations_max: u64) -> anyhow::Result<Figures> {
        let start = self.now();
        let end = start.after(time);
        self.figures = Figures::default();
        while self.now() < end && self.figures.operations() < operations_max {
            self.begin_all()?;
            self.turn(end)?;
        }
        let mut figures = std::mem::take(&mut self.figures);
        figures.elapsed = self.now().since(start);
        Ok(figures)
    }

    /// From now on one request in so many that begin is traced. The replica can be told to trace the same.
    pub fn trace(&mut self, every: u64) {
        self.tracing = Some(Tracing { every, finished: Vec::new() });
    }

    /// No more are traced. Lets what is in flight end, and gives what was traced.
    pub fn take_traces(&mut self) -> anyhow::Result<Vec<ClientTrace>> {
        if let Some(tracing) = &mut self.tracing {
            tracing.every = 0;
        }
        self.drain()?;
        Ok(self.tracing.take().map_or(Vec::new(), |tracing| tracing.finished))
    }

    /// Lets what is in flight end, and begins nothing.
    pub fn drain(&mut self) -> anyhow::Result<()> {
        let end = self.now().after(OPERATION_TIME_MAX);
        while self.in_flight > 0 && self.now() < end {
            self.turn(end)?;
        }
        Ok(())
    }

    /// Lets what is in flight end, and closes the sessions.
    pub fn finish(mut self) -> anyhow::Result<()> {
        self.drain()?;
        for index in 0..self.connections.len() {
            if self.connections[index].core.close_session() {
                self.touch(index);
            }
        }
        // The answers to that need not be awaited: the next turns send it.
        let end = self.now().after(TICK);
        while self.now() < end {
            self.turn(end)?;
        }
        Ok(())
    }

    fn now(&self) -> Moment {
        Moment(boot_time_ns().saturating_sub(self.start_ns))
    }

    /// Begins what is to begin now.
    fn begin_all(&mut self) -> anyhow::Result<()> {
        let now = self.now();
        let Some(arrivals) = &mut self.arrivals else {
            for _ in 0..self.idle.len() {
                let worker = self.idle.pop_front().expect("so many are idle");
                self.begin(worker, None)?;
            }
            return Ok(());
        };
        let left_out = arrivals.waiting(now).saturating_sub(arrivals.per_second);
        arrivals.taken += left_out;
        self.figures.not_begun += left_out;
        while let Some(arrivals) = self.arrivals.as_mut().filter(|arrivals| arrivals.waiting(now) > 0)
            && let Some(worker) = self.idle.pop_front()
        {
            let due = arrivals.due(arrivals.taken);
            arrivals.taken += 1;
            self.begin(worker, Some(due))?;
        }
        Ok(())
    }

    /// A worker's next operation, which counts from when it was due, or from now.
    fn begin(&mut self, index: usize, due: Option<Moment>) -> anyhow::Result<()> {
        use std::fmt::Write;
        let now = self.now();
        let worker = &mut self.workers[index];
        self.name.clear();
        let mut consistency = None;
        let operation = match &self.plan.work {
            Work::CreateFiles { prefix } => {
                write!(self.name, "{prefix}/{index}/{}", worker.done).expect("a string takes everything");
                Operation::CreateFile { path: self.name.as_bytes(), contents: &self.value }
            }
            Work::AnyKey { keys } => {
                // The workers together come by every key once before any comes again: so this fills a database, too.
                let turn = worker.done * self.plan.workers as u64 + index as u64;
                write!(self.name, "any/{:010}", scatter(turn, *keys)).expect("a string takes everything");
                Operation::Put { key: self.name.as_bytes(), value: &self.value }
            }
            Work::OwnKey { reads_percent, anywhere } => {
                write!(self.name, "load/{index:08}").expect("a string takes everything");
                // Spread evenly over time and workers, and the same in every run. What is read was written first, but where nothing
                // else is done: a write would take the connection to the master.
                let turn = (worker.done * 37 + index as u64 * 13) % 100;
                consistency = *anywhere;
                if (worker.done > 0 || *reads_percent == 100 && anywhere.is_some()) && turn < u64::from(*reads_percent)
                {
                    Operation::Get { key: self.name.as_bytes() }
                } else {
                    Operation::Put { key: self.name.as_bytes(), value: &self.value }
                }
            }
        };
        let started = due.unwrap_or(now);
        worker.started = started;
        worker.done += 1;
        let connection = &mut self.connections[worker.connection];
        let deadline = now.after(OPERATION_TIME_MAX);
        let id = match consistency.filter(|_| !operation.changes()) {
            Some(consistency) => connection.core.submit_read(now, operation, consistency, deadline),
            None => connection.core.submit(now, operation, deadline),
        }?;
        connection.owners[id.slot()] = index;
        if self.tracing.as_ref().is_some_and(|tracing| is_traced(id.number(), tracing.every)) {
            let begun = self.start_ns + started.0;
            connection.traces.push(ClientTrace { port: 0, request: id.number(), begun, left: 0, answered: 0 });
        }
        self.in_flight += 1;
        let connection = worker.connection;
        self.touch(connection);
        Ok(())
    }

    fn touch(&mut self, index: usize) {
        if !std::mem::replace(&mut self.connections[index].touched, true) {
            self.touched.push(index);
        }
    }

    fn turn(&mut self, end: Moment) -> anyhow::Result<()> {
        let now = self.now();
        if now >= self.next_tick {
            self.next_tick = now.after(TICK);
            for index in 0..self.connections.len() {
                self.connections[index].core.tick(now);
                self.touch(index);
            }
        }
        while let Some(index) = self.touched.pop() {
            self.connections[index].touched = false;
            self.serve(index);
        }
        let now = self.now();
        while let Some(index) = self.leaving.pop() {
            let connection = &mut self.connections[index];
            for trace in connection.traces.iter_mut().filter(|trace| trace.left == 0) {
                (trace.port, trace.left) = (connection.port, self.start_ns + now.0);
            }
        }
        let timeout = end.min(self.next_tick).min(self.next_arrival(now)).since(now);
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.enter(Some(timeout), &mut completions)?;
        let now = self.now();
        for Completion { token, outcome } in completions.drain(..) {
            self.completed(now, token, outcome);
        }
        self.completions = completions;
        Ok(())
    }

    /// When to begin something next, if not when an answer comes.
    fn next_arrival(&self, now: Moment) -> Moment {
        match &self.arrivals {
            // With nobody idle, time alone brings nothing.
            Some(arrivals) if !self.idle.is_empty() => arrivals.due(arrivals.taken).max(now.after(ARRIVALS_TOGETHER)),
            _ => Moment(u64::MAX),
        }
    }

    /// Does what a connection's client asks for, and sends what it has to say.
    fn serve(&mut self, index: usize) {
        let now = self.now();
        let connection = &mut self.connections[index];
        while let Some(action) = connection.core.poll_action() {
            match action {
                Action::Dial { attempt, endpoint } => match dial(&endpoint) {
                    Ok((socket, address)) => {
                        self.ring.connect(Token::Dial(index, attempt), &socket, address);
                        connection.socket = Some((attempt, socket));
                    }
                    Err(error) => connection.core.lost(now, attempt, &error.to_string()),
                },
                Action::Close { attempt } => {
                    if let Some((_, socket)) = connection.socket.take_if(|(current, _)| *current == attempt) {
                        socket.shutdown();
                    }
                }
            }
        }
        if let Some((current, socket)) = &connection.socket
            && let Some((attempt, pieces)) = connection.core.take()
        {
            assert_eq!(attempt, *current, "a client sends on the connection it has");
            self.ring.send(Token::Send(index, attempt), socket, pieces);
            if !connection.traces.is_empty() {
                self.leaving.push(index);
            }
        }
        self.collect(now, index);
    }

    /// Takes over what has ended on a connection; its workers are idle again.
    fn collect(&mut self, now: Moment, index: usize) {
        let connection = &mut self.connections[index];
        while let Some((id, result)) = connection.core.poll_completed() {
            let owner = connection.owners[id.slot()];
            self.in_flight -= 1;
            self.idle.push_back(owner);
            if let Some(at) = connection.traces.iter().position(|trace| trace.request == id.number()) {
                let trace = connection.traces.swap_remove(at);
                if let Some(tracing) = self.tracing.as_mut().filter(|_| result.is_ok() && trace.left > 0) {
                    tracing.finished.push(ClientTrace { answered: self.start_ns + now.0, ..trace });
                }
            }
            count(&mut self.figures, now.since(self.workers[owner].started), result);
        }
    }

    fn completed(&mut self, now: Moment, token: Token, outcome: Outcome) {
        let index = match (token, outcome) {
            (Token::Dial(index, attempt), Outcome::Connected(result)) => {
                let connection = &mut self.connections[index];
                match result {
                    Ok(()) => {
                        connection.port = connection.socket.as_ref().map_or(0, |(_, socket)| port(socket));
                        connection.core.connected(now, attempt);
                        self.receive(index, attempt, BytesMut::with_capacity(RECEIVE_BYTES));
                    }
                    Err(error) => connection.core.lost(now, attempt, &error.to_string()),
                }
                index
            }
            (Token::Receive(index, attempt), Outcome::Received { mut buffer, result }) => {
                let core = &mut self.connections[index].core;
                match result {
                    Ok(0) => core.lost(now, attempt, "the replica closed the connection"),
                    Ok(_) => {
                        core.received(now, attempt, &buffer);
                        buffer.clear();
                        self.receive(index, attempt, buffer);
                    }
                    Err(error) => core.lost(now, attempt, &error.to_string()),
                }
                index
            }
            (Token::Send(index, attempt), Outcome::Sent { pieces, result }) => {
                let core = &mut self.connections[index].core;
                match result {
                    Ok(bytes) => core.sent(now, attempt, pieces, bytes),
                    Err(error) => core.lost(now, attempt, &error.to_string()),
                }
                index
            }
            (token, outcome) => panic!("the ring answered {token:?} with {outcome:?}"),
        };
        self.touch(index);
        // At once, so that a worker's next operation leaves in this very turn.
        self.collect(now, index);
    }

    fn receive(&mut self, index: usize, attempt: Attempt, buffer: BytesMut) {
        if let Some((current, socket)) = &self.connections[index].socket
            && *current == attempt
        {
            self.ring.recv(Token::Receive(index, attempt), socket, buffer);
        }
    }
}

/// Steps through all numbers below `keys`, each once, far apart from one another.
fn scatter(turn: u64, keys: u64) -> u64 {
    // A prime far above any number of keys, so coprime to it.
    const STEP: u128 = 11_400_714_819_323_198_549;
    u64::try_from(u128::from(turn) * STEP % u128::from(keys)).expect("a remainder is below what divides")
}

const RECEIVE_BYTES: usize = 64 << 10;

fn count(figures: &mut Figures, latency: Duration, result: Result<Answer, synod_client::Error>) {
    match result {
        Ok(
            Answer::Created { .. }
            | Answer::Written { .. }
            | Answer::Value { .. }
            | Answer::Read { .. }
            | Answer::Absent,
        ) => {
            let ns = u64::try_from(latency.as_nanos()).unwrap_or(LONGEST_NS);
            figures.latencies.saturating_record(ns.max(1));
        }
        Ok(other) => {
            figures.failures += 1;
            figures.last_failure = Some(format!("unexpected answer {other:?}"));
        }
        Err(error) => {
            figures.failures += 1;
            figures.last_failure = Some(error.to_string());
        }
    }
}

/// The port at our end.
fn port(socket: &Handle) -> u16 {
    let address = socket2::SockRef::from(socket).local_addr().ok();
    address.and_then(|address| address.as_socket()).map_or(0, |address| address.port())
}

fn dial(endpoint: &str) -> anyhow::Result<(Handle, std::net::SocketAddr)> {
    use socket2::{Domain, Protocol, Socket, Type};
    let address: std::net::SocketAddr =
        endpoint.parse().with_context(|| format!("the endpoint {endpoint:?} is not IP:PORT"))?;
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    Ok((Handle::from(std::os::fd::OwnedFd::from(socket)), address))
}
