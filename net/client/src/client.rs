//! The blocking client: [`ClientCore`] with a socket and a clock.
//!
//! All work is done in the calls themselves; there is no thread behind them. So between calls nothing is sent, received or
//! retried, and a request that was submitted and is never waited for may stay where it is.

use std::collections::HashMap;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use synod_api::limits::{ANSWER_BYTES_MAX, UNANSWERED_MAX};
use synod_api::{Answer, Expected, FrameKind, Operation, Revision, Version};
use synod_net::{Attempt, FrameId, Inbound, InboundSizes, Moment, frame};

use crate::core::{Action, ClientCore, CoreCounts, Options};
use crate::error::{Cause, Error, Failure, SubmitError};
use crate::requests::RequestId;

/// What one read takes at most.
const READ_BYTES: usize = 64 << 10;
/// A write that the other side does not take in this time gives way to a read: both may be waiting for each other.
const WRITE_TIME_MAX: Duration = Duration::from_millis(10);
/// The shortest wait for bytes: a socket's timeout may not be zero.
const READ_TIME_MIN: Duration = Duration::from_micros(100);
/// What a client that goes away spends on telling the cell.
const GOODBYE_TIME_MAX: Duration = Duration::from_millis(100);

/// What a key or a file holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Value {
    /// Its bytes.
    pub value: Bytes,
    /// The revision that created it; a file's instance number.
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub modify_revision: Revision,
    /// How often it has been written since; a file's content generation.
    pub version: Version,
}

/// What a compare-and-swap found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Swap {
    /// What was expected: it was done by this revision.
    Swapped(Revision),
    /// Something else, this; `None` for no such key. Nothing was done.
    Unequal(Option<Bytes>),
}

/// What the creation of a file found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Created {
    /// Nothing: the file was made by this revision, its instance number.
    Created(Revision),
    /// A file that this revision made. Nothing was done.
    Exists(Revision),
}

/// A request that was submitted. To be waited for, once, by the client that gave it. One that is dropped instead keeps
/// its place among the requests that may be in flight.
#[derive(PartialEq, Eq, Hash, Debug)]
#[must_use]
pub struct Ticket(RequestId);

#[derive(Debug)]
struct Socket {
    attempt: Attempt,
    stream: TcpStream,
    /// What its read timeout is now: setting it again costs a system call.
    read_timeout: Option<Duration>,
}

/// A client of one cell, over TCP.
///
/// ```no_run
/// # fn main() -> Result<(), synod_client::Error> {
/// let mut client = synod_client::Client::connect(&["10.0.0.1:7000", "10.0.0.2:7000"], Default::default())?;
/// client.put(b"key", b"value")?;
/// assert_eq!(client.get(b"key")?.map(|found| found.value), Some("value".into()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Client {
    core: ClientCore,
    socket: Option<Socket>,
    start: Instant,
    results: HashMap<RequestId, Result<Answer, Error>>,
    read_buffer: Vec<u8>,
}

impl Client {
    /// Connects to one of the endpoints (host and port each), any that takes a connection within the options' deadline.
    /// The master is found with the first request. A `seed` of 0 is replaced by a random one.
    pub fn connect(endpoints: &[&str], options: Options) -> Result<Client, Error> {
        if endpoints.is_empty() {
            return Err(Error::not_tried("connect", Cause::Endpoint("no endpoints were given".into())));
        }
        let seed = if options.seed == 0 { fastrand::u64(1..) } else { options.seed };
        let mut client = Client {
            core: ClientCore::new(endpoints, Options { seed, ..options }),
            socket: None,
            start: Instant::now(),
            results: HashMap::new(),
            read_buffer: vec![0; READ_BYTES],
        };
        let until = client.now().after(options.deadline);
        client.core.want_connection(client.now());
        while client.core.connected_endpoint().is_none() {
            if client.now() >= until {
                return Err(Error::DidNotHappen(Box::new(Failure {
                    operation: "connect",
                    cause: Cause::Deadline,
                    attempts: 0,
                    lasted: client.start.elapsed(),
                    endpoints: client.core.endpoint_failures(),
                })));
            }
            client.turn(until);
        }
        Ok(client)
    }

    /// Sets a key, there or not.
    pub fn put(&mut self, key: &[u8], value: &[u8]) -> Result<Revision, Error> {
        match self.call(Operation::Put { key, value })? {
            Answer::Written { revision } => Ok(revision),
            other => Err(nonsense("put", &other)),
        }
    }

    /// Reads a key; `None` if there is none. The answer reflects every write that was acknowledged before the call.
    pub fn get(&mut self, key: &[u8]) -> Result<Option<Value>, Error> {
        value("get", self.call(Operation::Get { key })?)
    }

    /// Removes a key; `None` if there was none.
    pub fn delete(&mut self, key: &[u8]) -> Result<Option<Revision>, Error> {
        match self.call(Operation::Delete { key })? {
            Answer::Deleted { revision } => Ok(Some(revision)),
            Answer::NotThere => Ok(None),
            other => Err(nonsense("delete", &other)),
        }
    }

    /// Sets a key if it holds what is expected; `None` expects no such key.
    pub fn compare_and_swap(&mut self, key: &[u8], expected: Option<&[u8]>, value: &[u8]) -> Result<Swap, Error> {
        let expected = expected.map_or(Expected::Absent, Expected::Value);
        match self.call(Operation::CompareAndSwap { key, expected, value })? {
            Answer::Swapped { revision } => Ok(Swap::Swapped(revision)),
            Answer::Unequal { current } => Ok(Swap::Unequal(current)),
            other => Err(nonsense("compare_and_swap", &other)),
        }
    }

    /// Makes a file, if there is none.
    pub fn create_file(&mut self, path: &[u8], contents: &[u8]) -> Result<Created, Error> {
        match self.call(Operation::CreateFile { path, contents })? {
            Answer::Created { revision } => Ok(Created::Created(revision)),
            Answer::Exists { revision } => Ok(Created::Exists(revision)),
            other => Err(nonsense("create_file", &other)),
        }
    }

    /// Replaces the whole contents of a file; `None` if there is none.
    pub fn write_file(&mut self, path: &[u8], contents: &[u8]) -> Result<Option<Revision>, Error> {
        match self.call(Operation::WriteFile { path, contents })? {
            Answer::Written { revision } => Ok(Some(revision)),
            Answer::NotThere => Ok(None),
            other => Err(nonsense("write_file", &other)),
        }
    }

    /// Reads a whole file; `None` if there is none.
    pub fn read_file(&mut self, path: &[u8]) -> Result<Option<Value>, Error> {
        value("read_file", self.call(Operation::ReadFile { path })?)
    }

    /// How the replica at this endpoint is, master or not, as JSON text. On a connection of its own.
    pub fn status(&self, endpoint: &str) -> Result<String, Error> {
        fetch_status(endpoint, self.core.options().deadline)
    }

    /// Any operation, with the answer as the cell gave it; never a refusal.
    pub fn call(&mut self, operation: Operation<'_>) -> Result<Answer, Error> {
        let ticket = self.submit(operation)?;
        self.wait(ticket)
    }

    /// Submits a request under the options' deadline, and sends it if that takes no waiting. Up to `UNANSWERED_MAX` may be
    /// in flight or not waited for yet.
    pub fn submit(&mut self, operation: Operation<'_>) -> Result<Ticket, Error> {
        let name = operation.name();
        if (self.results.len() + self.core.in_flight()) as u64 >= UNANSWERED_MAX {
            return Err(Error::not_tried(name, Cause::Submit(SubmitError::TooMany)));
        }
        let now = self.now();
        let deadline = now.after(self.core.options().deadline);
        match self.core.submit(now, operation, deadline) {
            Ok(id) => Ok(Ticket(id)),
            Err(SubmitError::Limit(limit)) => Err(Error::not_tried(name, Cause::Limit(limit))),
            Err(error) => Err(Error::not_tried(name, Cause::Submit(error))),
        }
    }

    /// Waits for a request, and serves all others meanwhile.
    ///
    /// # Panics
    ///
    /// If the ticket is another client's.
    pub fn wait(&mut self, ticket: Ticket) -> Result<Answer, Error> {
        loop {
            if let Some(result) = self.results.remove(&ticket.0) {
                return result;
            }
            assert!(self.core.is_in_flight(ticket.0), "a ticket is waited for by the client that gave it");
            // The request's own deadline is among the core's.
            self.turn(Moment(u64::MAX));
        }
    }

    /// Waits for all of them; the results are in their order.
    pub fn wait_all(&mut self, tickets: impl IntoIterator<Item = Ticket>) -> Vec<Result<Answer, Error>> {
        tickets.into_iter().map(|ticket| self.wait(ticket)).collect()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> CoreCounts {
        self.core.counts()
    }

    /// The endpoint it is connected to, if any.
    #[must_use]
    pub fn connected_endpoint(&self) -> Option<&str> {
        self.core.connected_endpoint()
    }

    fn now(&self) -> Moment {
        Moment(0).after(self.start.elapsed())
    }

    /// Does what is to be done, then waits until something comes, the core has something due, or `until`.
    fn turn(&mut self, until: Moment) {
        self.core.tick(self.now());
        self.carry_out();
        let stuck = self.write();
        if self.collect() {
            return;
        }
        let due = self.core.next_deadline().map_or(until, |due| due.min(until));
        let wait = due.since(self.now());
        match &self.socket {
            // Bytes that could not be written are tried again soon.
            Some(_) => self.read(if stuck { wait.min(WRITE_TIME_MAX) } else { wait }),
            // Actions that came up meanwhile need no wait.
            None => {
                self.carry_out();
                if self.socket.is_none() && !wait.is_zero() {
                    thread::sleep(wait.min(self.core.options().backoff_max));
                }
            }
        }
        self.collect();
    }

    fn carry_out(&mut self) {
        while let Some(action) = self.core.poll_action() {
            match action {
                Action::Close { attempt } => {
                    if self.socket.as_ref().is_some_and(|socket| socket.attempt == attempt) {
                        self.socket = None;
                    }
                }
                Action::Dial { attempt, endpoint } => {
                    self.socket = None;
                    let patience = self
                        .core
                        .next_deadline()
                        .map_or(self.core.options().connect_time_max, |due| due.since(self.now()));
                    match dial(&endpoint, patience.min(self.core.options().connect_time_max)) {
                        Ok(stream) => {
                            self.socket = Some(Socket { attempt, stream, read_timeout: None });
                            self.core.connected(self.now(), attempt);
                        }
                        Err(error) => self.core.lost(self.now(), attempt, &format!("connecting: {error}")),
                    }
                }
            }
        }
    }

    /// Writes what waits. Whether the other side would not take all of it now.
    fn write(&mut self) -> bool {
        while let Some(socket) = &mut self.socket {
            let Some((attempt, pieces)) = self.core.take() else { return false };
            assert_eq!(attempt, socket.attempt, "the core sends on the connection it asked for");
            let slices: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
            let written = socket.stream.write_vectored(&slices);
            drop(slices);
            let now = self.now();
            match written {
                Ok(bytes) => self.core.sent(now, attempt, pieces, bytes),
                Err(error) if is_timeout(&error) => {
                    self.core.sent(now, attempt, pieces, 0);
                    return true;
                }
                Err(error) => {
                    self.socket = None;
                    self.core.lost(now, attempt, &format!("writing: {error}"));
                }
            }
        }
        false
    }

    fn read(&mut self, wait: Duration) {
        let Some(socket) = &mut self.socket else { return };
        let attempt = socket.attempt;
        let wait = wait.max(READ_TIME_MIN);
        // Nearly the same will do: the core is asked again anyway, and a system call a request is saved.
        let near_enough = |set: Duration| set <= wait && set >= wait / 2;
        let ready = if socket.read_timeout.is_some_and(near_enough) {
            Ok(())
        } else {
            let wait = wait.mul_f64(0.75).max(READ_TIME_MIN);
            socket.read_timeout = Some(wait);
            socket.stream.set_read_timeout(Some(wait))
        };
        let read = ready.and_then(|()| socket.stream.read(&mut self.read_buffer));
        let now = self.now();
        match read {
            Ok(0) => {
                self.socket = None;
                self.core.lost(now, attempt, "the other side closed the connection");
            }
            Ok(bytes) => self.core.received(now, attempt, &self.read_buffer[..bytes]),
            Err(error) if is_timeout(&error) => {}
            Err(error) => {
                self.socket = None;
                self.core.lost(now, attempt, &format!("reading: {error}"));
            }
        }
    }

    /// Takes over what has ended. Whether anything had.
    fn collect(&mut self) -> bool {
        let before = self.results.len();
        while let Some((id, result)) = self.core.poll_completed() {
            self.results.insert(id, result);
        }
        self.results.len() > before
    }
}

impl Drop for Client {
    /// Tells the cell that the session is over, if that takes no waiting to speak of. Otherwise it ends as the oldest one.
    fn drop(&mut self) {
        if !self.core.close_session() {
            return;
        }
        let until = self.now().after(GOODBYE_TIME_MAX);
        // Nobody is left to be told of an error.
        while self.write() && self.now() < until {}
    }
}

/// How the replica at this endpoint is, as JSON text. Needs no client and no master.
pub fn fetch_status(endpoint: &str, deadline: Duration) -> Result<String, Error> {
    let start = Instant::now();
    status(endpoint, start, deadline).map_err(|why| {
        Error::DidNotHappen(Box::new(Failure {
            operation: "status",
            cause: Cause::Endpoint(format!("{endpoint}: {why}")),
            attempts: 1,
            lasted: start.elapsed(),
            endpoints: Vec::new(),
        }))
    })
}

fn status(endpoint: &str, start: Instant, deadline: Duration) -> Result<String, String> {
    let mut stream = dial(endpoint, deadline).map_err(|error| format!("connecting: {error}"))?;
    let mut request = Vec::new();
    frame::append_frame(&mut request, FrameKind::StatusRequest.into(), FrameId(1), &[]);
    stream.write_all(&request).map_err(|error| format!("writing: {error}"))?;
    let mut inbound = Inbound::new(InboundSizes::client(ANSWER_BYTES_MAX as u32));
    let mut buffer = [0; 4096];
    loop {
        let left = deadline.saturating_sub(start.elapsed());
        if left.is_zero() {
            return Err(format!("no answer within {deadline:?}"));
        }
        stream.set_read_timeout(Some(left.max(READ_TIME_MIN))).map_err(|error| error.to_string())?;
        let bytes = match stream.read(&mut buffer) {
            Ok(0) => return Err("the other side closed the connection".into()),
            Ok(bytes) => bytes,
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(format!("reading: {error}")),
        };
        let mut answer = None;
        let result = inbound.visit(&buffer[..bytes], |frame| {
            let text = String::from_utf8_lossy(frame.payload).into_owned();
            answer = Some(match FrameKind::try_from(frame.kind) {
                Ok(FrameKind::Status) => Ok(text),
                Ok(FrameKind::Error) => Err(format!("the other side says: {text}")),
                _ => Err(format!("a frame of kind {}, not a status", frame.kind)),
            });
        });
        if let Some(answer) = answer {
            return answer;
        }
        result.map_err(|error| error.to_string())?;
    }
}

/// Tries each address that the name stands for.
fn dial(endpoint: &str, patience: Duration) -> io::Result<TcpStream> {
    let start = Instant::now();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in endpoint.to_socket_addrs()? {
        let left = patience.saturating_sub(start.elapsed()).max(Duration::from_millis(1));
        match TcpStream::connect_timeout(&address, left) {
            Ok(stream) => {
                // A request is small and waited for: it must not wait for a fuller packet.
                stream.set_nodelay(true)?;
                stream.set_write_timeout(Some(WRITE_TIME_MAX))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

fn value(operation: &'static str, answer: Answer) -> Result<Option<Value>, Error> {
    match answer {
        Answer::Value { value, create_revision, modify_revision, version } => {
            Ok(Some(Value { value, create_revision, modify_revision, version }))
        }
        Answer::Absent => Ok(None),
        other => Err(nonsense(operation, &other)),
    }
}

/// The cell answered another question than was asked.
fn nonsense(operation: &'static str, answer: &Answer) -> Error {
    let cause = Cause::Nonsense(format!("{answer:?}"));
    let failure = Failure { operation, cause, attempts: 1, lasted: Duration::ZERO, endpoints: Vec::new() };
    Error::Unknown(Box::new(failure))
}
