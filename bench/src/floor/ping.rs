//! 64 bytes there and back, again and again: the relay's client, and the round trip that is a part of its time.

use std::fmt;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{bail, ensure};
use bytes::{Buf, Bytes, BytesMut};
use hdrhistogram::Histogram;
use serde::Serialize;
use synod_ring::{Completion, Handle, Options, Outcome, Ring};

use super::{MESSAGE_BYTES, PATIENCE, histogram, nanoseconds};

/// How a process with a single peer (the client, a follower) uses its socket. The leader has several peers and a disk
/// to wait for at once, so it is on its ring in either style.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Style {
    /// Through the ring.
    Ring,
    /// Blocking reads and writes.
    Blocking,
}

impl Style {
    /// All of them.
    pub const ALL: [Style; 2] = [Style::Ring, Style::Blocking];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ring => "ring",
            Self::Blocking => "blocking",
        }
    }
}

impl fmt::Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ring => "ring sockets",
            Self::Blocking => "blocking sockets (the leader's on its ring)",
        })
    }
}

/// A request or its answer: a number, and filler.
pub(crate) type Message = [u8; MESSAGE_BYTES];

pub(crate) fn message(number: u64) -> Message {
    let mut message = [0; MESSAGE_BYTES];
    message[..8].copy_from_slice(&number.to_le_bytes());
    message
}

pub(crate) fn number(message: &Message) -> u64 {
    u64::from_le_bytes(message[..8].try_into().expect("eight bytes"))
}

/// The last whole message of what has come; the earlier ones are answered with it, and gone.
pub(crate) fn last_message(received: &mut BytesMut) -> Option<Message> {
    let whole = received.len() / MESSAGE_BYTES;
    let last = received.chunks_exact(MESSAGE_BYTES).next_back()?.try_into().expect("chunks of this length");
    received.advance(whole * MESSAGE_BYTES);
    Some(last)
}

/// A ring for a process with a few sockets and one file.
pub(crate) fn ring<T>() -> anyhow::Result<Ring<T>> {
    Ok(Ring::new(Options { entries: 64, operations_max: 64 })?)
}

/// Asks, waits for the answer, asks again, for some time.
pub(crate) fn client(style: Style, stream: TcpStream, window: Duration) -> anyhow::Result<Histogram<u64>> {
    let mut asker: Box<dyn Asker> = match style {
        Style::Blocking => {
            stream.set_read_timeout(Some(PATIENCE))?;
            Box::new(stream)
        }
        Style::Ring => {
            Box::new(OnRing { ring: ring()?, socket: Handle::from(stream), completions: Vec::new(), received: None })
        }
    };
    let mut next = 1;
    // The first requests find cold caches and sleeping cores.
    let warm = Instant::now() + (window / 10).min(Duration::from_millis(100));
    while Instant::now() < warm {
        asker.ask(next)?;
        next += 1;
    }
    let mut latencies = histogram();
    let end = Instant::now() + window;
    loop {
        let start = Instant::now();
        asker.ask(next)?;
        let now = Instant::now();
        latencies.record(nanoseconds(now - start))?;
        if now >= end {
            return Ok(latencies);
        }
        next += 1;
    }
}

trait Asker {
    /// Sends a request and waits for its answer.
    fn ask(&mut self, request: u64) -> anyhow::Result<()>;
}

impl Asker for TcpStream {
    fn ask(&mut self, request: u64) -> anyhow::Result<()> {
        self.write_all(&message(request))?;
        let mut answer = [0; MESSAGE_BYTES];
        self.read_exact(&mut answer)?;
        ensure!(number(&answer) == request, "an answer to another request");
        Ok(())
    }
}

struct OnRing {
    ring: Ring<()>,
    socket: Handle,
    completions: Vec<Completion<()>>,
    /// Away while a receive is in flight.
    received: Option<BytesMut>,
}

impl Asker for OnRing {
    fn ask(&mut self, request: u64) -> anyhow::Result<()> {
        self.ring.send((), &self.socket, vec![Bytes::copy_from_slice(&message(request))]);
        let received = self.received.take().unwrap_or_else(|| BytesMut::with_capacity(MESSAGE_BYTES));
        self.ring.recv((), &self.socket, received);
        let mut answer = None;
        while answer.is_none() || self.ring.in_flight() > 0 {
            self.ring.enter(Some(PATIENCE), &mut self.completions)?;
            ensure!(!self.completions.is_empty(), "no answer");
            for Completion { outcome, .. } in self.completions.drain(..) {
                match outcome {
                    Outcome::Sent { result, .. } => {
                        result?;
                    }
                    Outcome::Received { mut buffer, result } => {
                        ensure!(result? > 0, "hung up on");
                        answer = last_message(&mut buffer);
                        buffer.reserve(MESSAGE_BYTES);
                        match answer {
                            Some(_) => self.received = Some(buffer),
                            None => self.ring.recv((), &self.socket, buffer),
                        }
                    }
                    outcome => bail!("not asked for: {outcome:?}"),
                }
            }
        }
        ensure!(answer.is_some_and(|answer| number(&answer) == request), "an answer to another request");
        Ok(())
    }
}
