//! The floor's processes: a leader, its followers, and what measures the relay's two parts.
//!
//! Each is one thread with one ring, beside a thread that sleeps until the bench is gone and then ends the process.

use std::io::{BufRead, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::time::Duration;
use std::{io, process, thread};

use anyhow::{Context, bail};
use bytes::{Bytes, BytesMut};
use synod_ring::{Completion, Handle, Outcome, Ring};

use super::MESSAGE_BYTES;
use super::disk::{Form, Log};
use super::ping::{Message, Style, last_message, message, number, ring};

/// One process of the floor.
#[derive(Clone, Debug, clap::Args)]
pub struct ReplicaOptions {
    #[command(subcommand)]
    role: Role,
    /// Its log, if it keeps one.
    #[arg(long, global = true)]
    file: Option<PathBuf>,
    /// How it makes a block durable.
    #[arg(long, global = true, value_enum, default_value = "linked")]
    form: Form,
    /// How it uses its socket, if it has one peer.
    #[arg(long, global = true, value_enum, default_value = "ring")]
    style: Style,
    /// Where a leader's followers listen.
    #[arg(long = "follower", global = true)]
    followers: Vec<SocketAddr>,
}

/// What a process does.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Role {
    /// Relays a client's requests to its followers, and answers when a majority has a durable block.
    Leader,
    /// Makes a block durable for each request, and says so.
    Follower,
    /// Makes blocks durable, one after the other, and prints how long each took.
    Writer {
        /// For so long.
        #[arg(value_parser = |text: &str| text.parse().map(Duration::from_micros))]
        window: Duration,
    },
    /// Sends back what comes.
    Echo,
}

impl Role {
    /// As on the command line.
    pub(crate) fn arguments(self) -> Vec<String> {
        match self {
            Self::Leader => vec!["leader".into()],
            Self::Follower => vec!["follower".into()],
            Self::Writer { window } => vec!["writer".into(), window.as_micros().to_string()],
            Self::Echo => vec!["echo".into()],
        }
    }
}

/// What a writer prints when its file is prepared.
pub(crate) const READY: &str = "ready";

/// Runs one process of the floor until its peers hang up, or the bench is gone.
pub fn main(options: &ReplicaOptions) -> anyhow::Result<()> {
    let lines = watch_the_parent();
    let ReplicaOptions { role, file, form, style, followers } = options;
    let log = || Log::create(file.as_deref().context("--file is missing")?, *form);
    match role {
        Role::Leader => {
            let log = log()?;
            let mut links = Vec::new();
            for follower in followers {
                let stream = TcpStream::connect(follower).with_context(|| format!("connecting to {follower}"))?;
                stream.set_nodelay(true)?;
                links.push(Link::new(stream));
            }
            Leader::new(ring()?, log, Link::new(accept_one()?), links).run()
        }
        Role::Follower => {
            let log = log()?;
            let stream = accept_one()?;
            match style {
                Style::Ring => follow(ring()?, log, stream),
                Style::Blocking => follow_blocking(ring()?, log, stream),
            }
        }
        Role::Writer { window } => {
            let mut log = log()?;
            say(READY)?;
            lines.recv().context("waiting for the others")?;
            let latencies = log.flush_for(&mut ring()?, *window)?;
            let counted: Vec<(u64, u64)> =
                latencies.iter_recorded().map(|step| (step.value_iterated_to(), step.count_at_value())).collect();
            say(&serde_json::to_string(&counted)?)
        }
        Role::Echo => echo(ring()?, accept_one()?),
    }
}

/// The bench holds the other end of this process's input. When it is gone, so is the bench, and so must we be.
fn watch_the_parent() -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::sync_channel(1);
    thread::spawn(move || {
        for line in io::stdin().lock().lines() {
            match line {
                // Nobody may be listening any more: then there is nothing to wait for either.
                Ok(line) => drop(sender.try_send(line)),
                Err(_) => break,
            }
        }
        process::exit(EXIT_ORPHANED);
    });
    receiver
}

fn say(line: &str) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    writeln!(output, "{line}")?;
    Ok(output.flush()?)
}

/// Says where it listens, and accepts the one peer that comes.
fn accept_one() -> anyhow::Result<TcpStream> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    say(&listener.local_addr()?.to_string())?;
    let (stream, _) = listener.accept()?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A connection on the ring: one receive always in flight, and at most one send.
struct Link {
    socket: Handle,
    sending: bool,
    /// To be sent when the send in flight is done. Only the last: answers are cumulative.
    owed: Option<Message>,
    /// How far the peer has answered.
    answered: u64,
}

impl Link {
    fn new(stream: TcpStream) -> Self {
        Self { socket: Handle::from(stream), sending: false, owed: None, answered: 0 }
    }

    fn receive<T>(&self, ring: &mut Ring<T>, token: T, mut buffer: BytesMut) {
        buffer.reserve(RECEIVE_BYTES);
        ring.recv(token, &self.socket, buffer);
    }

    fn send<T>(&mut self, ring: &mut Ring<T>, token: T, message: Message) {
        if self.sending {
            self.owed = Some(message);
            return;
        }
        self.sending = true;
        ring.send(token, &self.socket, vec![Bytes::copy_from_slice(&message)]);
    }

    fn sent<T>(&mut self, ring: &mut Ring<T>, token: T) {
        self.sending = false;
        if let Some(message) = self.owed.take() {
            self.send(ring, token, message);
        }
    }
}

/// Which link, or the log.
#[derive(Clone, Copy)]
enum Token {
    Client,
    Follower(usize),
    Log,
}

struct Leader {
    ring: Ring<Token>,
    log: Log,
    client: Link,
    followers: Vec<Link>,
    asked: u64,
    answered: u64,
    /// The request that the flush under way is for.
    flushing: Option<u64>,
    durable: u64,
    client_left: bool,
}

impl Leader {
    fn new(ring: Ring<Token>, log: Log, client: Link, followers: Vec<Link>) -> Self {
        Self { ring, log, client, followers, asked: 0, answered: 0, flushing: None, durable: 0, client_left: false }
    }

    fn run(mut self) -> anyhow::Result<()> {
        self.client.receive(&mut self.ring, Token::Client, BytesMut::new());
        for (number, follower) in self.followers.iter().enumerate() {
            follower.receive(&mut self.ring, Token::Follower(number), BytesMut::new());
        }
        let mut completions = Vec::new();
        loop {
            self.ring.enter(None, &mut completions)?;
            // Again if a blocking flush, which submits first, came upon more.
            while !completions.is_empty() {
                for Completion { token, outcome } in completions.drain(..) {
                    self.take(token, outcome)?;
                }
                self.flush(&mut completions)?;
                self.answer();
            }
            // Not before the slowest follower is heard out: hanging up on its answer would be a reset to it.
            if self.client_left && self.settled() {
                return Ok(());
            }
        }
    }

    fn settled(&self) -> bool {
        self.flushing.is_none() && self.followers.iter().all(|follower| follower.answered == self.asked)
    }

    fn take(&mut self, token: Token, outcome: Outcome) -> anyhow::Result<()> {
        match (token, outcome) {
            (Token::Client, Outcome::Received { mut buffer, result }) => {
                if result? == 0 {
                    self.client_left = true;
                    return Ok(());
                }
                if let Some(request) = last_message(&mut buffer) {
                    self.asked = number(&request);
                    for (number, follower) in self.followers.iter_mut().enumerate() {
                        follower.send(&mut self.ring, Token::Follower(number), request);
                    }
                }
                self.client.receive(&mut self.ring, token, buffer);
            }
            (Token::Client, Outcome::Sent { result, .. }) => {
                result?;
                self.client.sent(&mut self.ring, token);
            }
            (Token::Follower(follower), Outcome::Received { mut buffer, result }) => {
                if result? == 0 {
                    bail!("follower {follower} is gone");
                }
                let link = &mut self.followers[follower];
                if let Some(answer) = last_message(&mut buffer) {
                    link.answered = number(&answer);
                }
                link.receive(&mut self.ring, token, buffer);
            }
            (Token::Follower(follower), Outcome::Sent { result, .. }) => {
                result?;
                self.followers[follower].sent(&mut self.ring, token);
            }
            (Token::Log, outcome) => {
                self.log.flushed(outcome)?;
                self.durable = self.flushing.take().context("no flush under way")?;
            }
            (_, outcome) => bail!("not asked for: {outcome:?}"),
        }
        Ok(())
    }

    /// Our own block, while the followers make theirs durable.
    fn flush(&mut self, completions: &mut Vec<Completion<Token>>) -> anyhow::Result<()> {
        if self.flushing.is_some() || self.durable == self.asked {
            return Ok(());
        }
        if self.log.blocks() {
            // The followers must hear of the request before we block.
            self.ring.enter(Some(Duration::ZERO), completions)?;
        }
        if self.log.flush(&mut self.ring, Token::Log)? {
            self.durable = self.asked;
        } else {
            self.flushing = Some(self.asked);
        }
        Ok(())
    }

    fn answer(&mut self) {
        if self.answered == self.asked {
            return;
        }
        let answered = self.followers.iter().filter(|follower| follower.answered == self.asked).count();
        let durable = answered + usize::from(self.durable == self.asked);
        let majority = self.followers.len().div_ceil(2) + 1;
        if durable >= majority {
            self.answered = self.asked;
            self.client.send(&mut self.ring, Token::Client, message(self.asked));
        }
    }
}

/// A follower in the ring's style.
fn follow(mut ring: Ring<Token>, mut log: Log, stream: TcpStream) -> anyhow::Result<()> {
    let mut leader = Link::new(stream);
    leader.receive(&mut ring, Token::Client, BytesMut::new());
    let mut completions = Vec::new();
    let mut waiting = None;
    let mut flushing = None;
    loop {
        ring.enter(None, &mut completions)?;
        for Completion { token, outcome } in completions.drain(..) {
            match (token, outcome) {
                (Token::Log, outcome) => {
                    log.flushed(outcome)?;
                    let request = flushing.take().context("no flush under way")?;
                    leader.send(&mut ring, Token::Client, request);
                }
                (_, Outcome::Received { mut buffer, result }) => {
                    if result? == 0 {
                        return Ok(());
                    }
                    waiting = last_message(&mut buffer).or(waiting);
                    leader.receive(&mut ring, token, buffer);
                }
                (_, Outcome::Sent { result, .. }) => {
                    result?;
                    leader.sent(&mut ring, token);
                }
                (_, outcome) => bail!("not asked for: {outcome:?}"),
            }
        }
        if flushing.is_none()
            && let Some(request) = waiting.take()
        {
            if log.flush(&mut ring, Token::Log)? {
                leader.send(&mut ring, Token::Client, request);
            } else {
                flushing = Some(request);
            }
        }
    }
}

/// A follower with one peer and nothing else to do may as well block.
fn follow_blocking(mut ring: Ring<()>, mut log: Log, mut stream: TcpStream) -> anyhow::Result<()> {
    let mut received = [0; RECEIVE_BYTES];
    let mut length = 0;
    let mut completions = Vec::new();
    loop {
        let count = stream.read(&mut received[length..])?;
        if count == 0 {
            return Ok(());
        }
        length += count;
        let Some(request) = received[..length].chunks_exact(MESSAGE_BYTES).next_back() else { continue };
        let request: Message = request.try_into().expect("chunks of this length");
        let whole = length / MESSAGE_BYTES * MESSAGE_BYTES;
        received.copy_within(whole..length, 0);
        length -= whole;
        log.flush_and_wait(&mut ring, &mut completions)?;
        stream.write_all(&request)?;
    }
}

/// The leader's side of a round trip, without anything in it.
fn echo(mut ring: Ring<()>, stream: TcpStream) -> anyhow::Result<()> {
    let mut link = Link::new(stream);
    link.receive(&mut ring, (), BytesMut::new());
    let mut completions = Vec::new();
    loop {
        ring.enter(None, &mut completions)?;
        for Completion { outcome, .. } in completions.drain(..) {
            match outcome {
                Outcome::Received { mut buffer, result } => {
                    if result? == 0 {
                        return Ok(());
                    }
                    if let Some(request) = last_message(&mut buffer) {
                        link.send(&mut ring, (), request);
                    }
                    link.receive(&mut ring, (), buffer);
                }
                Outcome::Sent { result, .. } => {
                    result?;
                    link.sent(&mut ring, ());
                }
                outcome => bail!("not asked for: {outcome:?}"),
            }
        }
    }
}

/// More than is ever under way.
const RECEIVE_BYTES: usize = 64 * MESSAGE_BYTES;

/// The bench died: nobody reads this, but a process list shows it.
const EXIT_ORPHANED: i32 = 3;
