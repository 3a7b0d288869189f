//! The closed loop against a peer: what `workload` is for Synod, with as little in it.
//!
//! The same ring, one thread, one send a connection and turn, so that the servers are measured and not a client: a good
//! user's would not be cheaper.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use bytes::BytesMut;
use synod_ring::{Completion, Handle, Options, Outcome, Ring};

use super::RowSpec;
use super::turn::Workers;
use crate::measure::Load;
use crate::workload::Figures;

/// How long a handshake, or the last operations of a run, may take.
const PATIENCE: Duration = Duration::from_secs(10);
const RECEIVE_BYTES: usize = 64 << 10;
/// A receive and a send each.
const CONNECTIONS_MAX: usize = 1000;

/// One connection's side of a peer's protocol: bytes in, bytes out. It does no I/O.
pub(super) trait Protocol {
    /// Whether the handshake is over, and puts are taken.
    fn is_ready(&self) -> bool;
    /// Writes the value under the worker's own key; [`Protocol::receive`] has the answer.
    fn put(&mut self, worker: usize, value: &[u8], output: &mut BytesMut);
    /// Takes what is whole from the input, and says what the protocol itself has to say to it. An error ends the
    /// connection.
    fn receive(&mut self, input: &mut BytesMut, output: &mut BytesMut, answers: &mut Vec<Answer>)
    -> anyhow::Result<()>;
    /// The last that is said.
    fn close(&mut self, output: &mut BytesMut);
}

/// How a worker's put ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Answer {
    /// Whose put.
    pub(super) worker: usize,
    /// Or why it failed.
    pub(super) result: Result<(), String>,
}

#[derive(Clone, Copy, Debug)]
enum Token {
    Receive(usize),
    Send(usize),
}

struct Connection<P> {
    socket: Handle,
    protocol: P,
    output: BytesMut,
    is_sending: bool,
}

/// Workers, each with one put in flight on its own key, over connections to one server.
pub(super) struct PeerLoad<P> {
    ring: Ring<Token>,
    connections: Vec<Connection<P>>,
    /// When each worker's put left.
    started: Vec<Instant>,
    value: Vec<u8>,
    idle: Vec<usize>,
    figures: Figures,
    completions: Vec<Completion<Token>>,
    answers: Vec<Answer>,
}

impl<P: Protocol> PeerLoad<P> {
    /// Connects, and waits for the end of the handshakes. `open` makes a connection's protocol, and its first words.
    pub(super) fn connect(
        server: SocketAddr,
        RowSpec { workers, bytes }: RowSpec,
        open: impl Fn(&mut BytesMut) -> P,
    ) -> anyhow::Result<Self> {
        let connections = crate::load::connections_for(workers);
        assert!((1..=CONNECTIONS_MAX).contains(&connections), "{connections} connections");
        let mut load = Self {
            ring: Ring::new(Options::default()).context("the load needs io_uring")?,
            connections: Vec::with_capacity(connections),
            started: vec![Instant::now(); workers],
            // The same as Synod's.
            value: (0..bytes).map(|at| (at * 31 % 251) as u8).collect(),
            idle: (0..workers).collect(),
            figures: Figures::default(),
            completions: Vec::new(),
            answers: Vec::new(),
        };
        for index in 0..connections {
            let stream = TcpStream::connect(server).with_context(|| format!("cannot connect to {server}"))?;
            stream.set_nodelay(true)?;
            let mut output = BytesMut::new();
            let protocol = open(&mut output);
            let socket = Handle::from(stream);
            load.ring.recv(Token::Receive(index), &socket, BytesMut::with_capacity(RECEIVE_BYTES));
            load.connections.push(Connection { socket, protocol, output, is_sending: false });
        }
        let ready = |load: &Self| load.connections.iter().all(|connection| connection.protocol.is_ready());
        ensure!(load.turn_until(ready)?, "{server} does not answer");
        Ok(load)
    }

    /// Whether it came to be in time.
    fn turn_until(&mut self, done: impl Fn(&Self) -> bool) -> anyhow::Result<bool> {
        let end = Instant::now() + PATIENCE;
        while !done(self) {
            if Instant::now() >= end {
                return Ok(false);
            }
            self.turn(end)?;
        }
        Ok(true)
    }

    fn turn(&mut self, end: Instant) -> anyhow::Result<()> {
        for (index, connection) in self.connections.iter_mut().enumerate() {
            if !connection.output.is_empty() && !connection.is_sending {
                connection.is_sending = true;
                let pieces = vec![connection.output.split().freeze()];
                self.ring.send(Token::Send(index), &connection.socket, pieces);
            }
        }
        let mut completions = std::mem::take(&mut self.completions);
        self.ring.enter(Some(end.saturating_duration_since(Instant::now())), &mut completions)?;
        let now = Instant::now();
        for Completion { token, outcome } in completions.drain(..) {
            self.completed(now, token, outcome)?;
        }
        self.completions = completions;
        Ok(())
    }

    fn completed(&mut self, now: Instant, token: Token, outcome: Outcome) -> anyhow::Result<()> {
        match (token, outcome) {
            (Token::Send(index), Outcome::Sent { result, .. }) => {
                result.context("sending to the server")?;
                self.connections[index].is_sending = false;
            }
            (Token::Receive(index), Outcome::Received { mut buffer, result }) => {
                ensure!(result.context("receiving from the server")? > 0, "the server closed the connection");
                let Connection { socket, protocol, output, .. } = &mut self.connections[index];
                protocol.receive(&mut buffer, output, &mut self.answers)?;
                buffer.reserve(RECEIVE_BYTES);
                self.ring.recv(Token::Receive(index), socket, buffer);
                for Answer { worker, result } in self.answers.drain(..) {
                    self.idle.push(worker);
                    match result {
                        Ok(()) => {
                            let ns = u64::try_from((now - self.started[worker]).as_nanos()).unwrap_or(u64::MAX);
                            self.figures.latencies.saturating_record(ns.max(1));
                        }
                        Err(error) => {
                            self.figures.failures += 1;
                            self.figures.last_failure = Some(error);
                        }
                    }
                }
            }
            (token, outcome) => panic!("the ring answered {token:?} with {outcome:?}"),
        }
        Ok(())
    }
}

impl<P: Protocol> Load for PeerLoad<P> {
    fn run(&mut self, time: Duration, operations_max: u64) -> anyhow::Result<Figures> {
        let start = Instant::now();
        let end = start + time;
        self.figures = Figures::default();
        while Instant::now() < end && self.figures.operations() < operations_max {
            let now = Instant::now();
            for worker in self.idle.drain(..) {
                self.started[worker] = now;
                let index = worker % self.connections.len();
                let Connection { protocol, output, .. } = &mut self.connections[index];
                protocol.put(worker, &self.value, output);
            }
            self.turn(end)?;
        }
        let mut figures = std::mem::take(&mut self.figures);
        figures.elapsed = start.elapsed();
        Ok(figures)
    }
}

impl<P: Protocol> Workers for PeerLoad<P> {
    fn finish(mut self: Box<Self>) -> anyhow::Result<()> {
        let all_idle = |load: &Self| load.idle.len() == load.started.len();
        ensure!(self.turn_until(all_idle)?, "the last puts took over {PATIENCE:?}");
        for connection in &mut self.connections {
            connection.protocol.close(&mut connection.output);
        }
        let all_said = |load: &Self| load.connections.iter().all(|it| it.output.is_empty() && !it.is_sending);
        ensure!(self.turn_until(all_said)?, "the server does not read");
        for connection in &self.connections {
            connection.socket.shutdown();
        }
        Ok(())
    }
}
