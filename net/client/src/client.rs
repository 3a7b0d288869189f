//! The blocking client: [`ClientCore`] with a socket and a clock.
//!
//! All work is done in the calls themselves; there is no thread behind them. So between calls nothing is sent, received
//! or retried, and a request that was submitted and is never waited for may stay where it is.

use std::collections::HashMap;
use std::io::{self, IoSlice, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use synod_api::limits::{ANSWER_BYTES_MAX, UNANSWERED_MAX};
use synod_api::{Answer, Consistency, Expected, Found, FrameKind, Operation, Revision, Version};
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

/// What a read at any replica saw.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Seen {
    /// The revision of the database that it saw. [`Consistency::AtLeast`] it, the next read sees nothing older, at whichever replica.
    pub revision: Revision,
    /// What was there; `None` for nothing.
    pub found: Option<Value>,
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

    /// Reads a key at the replica that this client is connected to, whichever that is: as new as `consistency` says.
    pub fn get_at(&mut self, key: &[u8], consistency: Consistency) -> Result<Seen, Error> {
        self.seen(Operation::Get { key }, consistency)
    }

    /// Reads a file in the same way.
    pub fn read_file_at(&mut self, path: &[u8], consistency: Consistency) -> Result<Seen, Error> {
        self.seen(Operation::ReadFile { path }, consistency)
    }

    fn seen(&mut self, operation: Operation<'_>, consistency: Consistency) -> Result<Seen, Error> {
        let ticket = self.submit_read(operation, consistency)?;
        match self.wait(ticket)? {
            Answer::Read { revision, found } => {
                let found = found.map(|Found { value, create_revision, modify_revision, version }| Value {
                    value,
                    create_revision,
                    modify_revision,
                    version,
                });
                Ok(Seen { revision, found })
            }
            other => Err(nonsense(operation.name(), &other)),
        }
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

    /// Submits a request under the options' deadline. It leaves with the next wait or [`Client::flush`], together with
    /// all that were submitted before: one write for many. The master answers reads at once, so one may overtake writes
    /// that were submitted before it and are not answered yet. Up to `UNANSWERED_MAX` may be in flight or not waited for
    /// yet.
    pub fn submit(&mut self, operation: Operation<'_>) -> Result<Ticket, Error> {
        self.submit_as(operation, None)
    }

    /// Likewise a read for any replica: [`Client::get_at`] for many at once.
    ///
    /// # Panics
    ///
    /// If the operation is not a read.
    pub fn submit_read(&mut self, operation: Operation<'_>, consistency: Consistency) -> Result<Ticket, Error> {
        self.submit_as(operation, Some(consistency))
    }

    fn submit_as(&mut self, operation: Operation<'_>, consistency: Option<Consistency>) -> Result<Ticket, Error> {
        let name = operation.name();
        if (self.results.len() + self.core.in_flight()) as u64 >= UNANSWERED_MAX {
            return Err(Error::not_tried(name, Cause::Submit(SubmitError::TooMany)));
        }
        let now = self.now();
        let deadline = now.after(self.core.options().deadline);
        let submitted = match consistency {
            None => self.core.submit(now, operation, deadline),
            Some(consistency) => self.core.submit_read(now, operation, consistency, deadline),
        };
        match submitted {
            Ok(id) => Ok(Ticket(id)),
            Err(SubmitError::Limit(limit)) => Err(Error::not_tried(name, Cause::Limit(limit))),
            Err(error) => Err(Error::not_tried(name, Cause::Submit(error))),
        }
    }

    /// Sends what was submitted, as far as the connection takes it now; without a connection it waits for nothing.
    pub fn flush(&mut self) {
        self.core.tick(self.now());
        if self.socket.is_some() {
            self.write();
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
        let acted = self.carry_out();
        let stuck = self.write();
        if self.collect() || acted {
            // The caller may wait for just that.
            return;
        }
        let due = self.core.next_deadline().map_or(until, |due| due.min(until));
        let wait = due.since(self.now());
        match &self.socket {
            // Bytes that could not be written are tried again soon.
            Some(_) => self.read(if stuck { wait.min(WRITE_TIME_MAX) } else { wait }),
            None => thread::sleep(wait.min(self.core.options().backoff_max)),
        }
        self.collect();
    }

    /// Dials and closes as the core asks. Whether it asked for anything.
    fn carry_out(&mut self) -> bool {
        let mut acted = false;
        while let Some(action) = self.core.poll_action() {
            acted = true;
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
        acted
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
    /// Tells the cell that the session is over, if that takes no waiting to speak of. Otherwise it ends as the oldest
    /// one.
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
    ask(endpoint, (FrameKind::StatusRequest, &[]), FrameKind::Status, start, deadline)
        .map_err(|why| Error::DidNotHappen(failure_at("status", endpoint, &why, start)))
}

/// Asks the replica at this endpoint for something that only an operator does; request and answer are JSON text. Without an
/// answer the outcome is unknown: it may have been done.
pub fn operate(endpoint: &str, request: &str, deadline: Duration) -> Result<String, Error> {
    let start = Instant::now();
    ask(endpoint, (FrameKind::OperatorRequest, request.as_bytes()), FrameKind::OperatorAnswer, start, deadline)
        .map_err(|why| Error::Unknown(failure_at("the operation", endpoint, &why, start)))
}

fn failure_at(operation: &'static str, endpoint: &str, why: &str, start: Instant) -> Box<Failure> {
    let cause = Cause::Endpoint(format!("{endpoint}: {why}"));
    Box::new(Failure { operation, cause, attempts: 1, lasted: start.elapsed(), endpoints: Vec::new() })
}

/// One question, one answer, one connection.
fn ask(
    endpoint: &str,
    (kind, question): (FrameKind, &[u8]),
    wanted: FrameKind,
    start: Instant,
    deadline: Duration,
) -> Result<String, String> {
    let mut stream = dial(endpoint, deadline).map_err(|error| format!("connecting: {error}"))?;
    let mut request = Vec::new();
    frame::append_frame(&mut request, kind.into(), FrameId(1), &[question]);
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
                Ok(kind) if kind == wanted => Ok(text),
                Ok(FrameKind::Error) => Err(format!("the other side says: {text}")),
                _ => Err(format!("a frame of kind {}, not {wanted:?}", frame.kind)),
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

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::{Arc, Mutex};

    use expect_test::expect;
    use synod_api::limits::COMMAND_BYTES_MAX;
    use synod_api::{Command, Refusal, SessionId};
    use synod_net::FrameLimits;

    use super::*;
    use crate::error::Outcome;

    /// How a replica behaves.
    #[derive(Clone, Debug)]
    enum Role {
        Master,
        /// Sends clients there.
        Redirects(String),
        /// Hangs up on the connection after so many commands, having done the last without an answer; then as a master.
        HangsUpAfter(usize),
        /// Never says anything.
        Silent,
    }

    /// The cell's part: a map and what rule P10 asks for, shared by all replicas.
    #[derive(Default)]
    struct Database {
        rows: BTreeMap<Vec<u8>, Vec<u8>>,
        revision: u64,
        sessions: BTreeSet<u64>,
        results: BTreeMap<(u64, u64), Vec<u8>>,
        closed: usize,
    }

    impl Database {
        fn apply(&mut self, command: &Command<'_>) -> Vec<u8> {
            let mut out = Vec::new();
            let answer = |answer: Answer<&[u8]>| {
                let mut out = Vec::new();
                answer.encode(&mut out);
                out
            };
            match command.operation {
                Operation::OpenSession => {
                    self.revision += 1;
                    self.sessions.insert(self.revision);
                    return answer(Answer::SessionOpened(SessionId(self.revision)));
                }
                Operation::Get { key } => {
                    return answer(self.rows.get(key).map_or(Answer::Absent, |value| Answer::Value {
                        value,
                        create_revision: Revision(1),
                        modify_revision: Revision(1),
                        version: Version(1),
                    }));
                }
                _ => {}
            }
            if !self.sessions.contains(&command.session.0) {
                return answer(Answer::Refused(Refusal::SessionUnknown));
            }
            let stamp = (command.session.0, command.sequence.0);
            if let Some(result) = self.results.get(&stamp) {
                return result.clone();
            }
            self.results.retain(|&(session, sequence), _| {
                session != command.session.0 || sequence >= command.unanswered_from.0
            });
            self.revision += 1;
            let revision = Revision(self.revision);
            match command.operation {
                Operation::Put { key, value } => {
                    self.rows.insert(key.to_vec(), value.to_vec());
                    Answer::<&[u8]>::Written { revision }.encode(&mut out);
                }
                Operation::Delete { key } => {
                    let there = self.rows.remove(key).is_some();
                    let done = if there { Answer::<&[u8]>::Deleted { revision } } else { Answer::NotThere };
                    done.encode(&mut out);
                }
                Operation::CompareAndSwap { key, expected, value } => {
                    let current = self.rows.get(key).cloned();
                    let equal = match expected {
                        Expected::Absent => current.is_none(),
                        Expected::Value(expected) => current.as_deref() == Some(expected),
                    };
                    if equal {
                        self.rows.insert(key.to_vec(), value.to_vec());
                        Answer::<&[u8]>::Swapped { revision }.encode(&mut out);
                    } else {
                        Answer::Unequal { current }.encode(&mut out);
                    }
                }
                Operation::CloseSession => {
                    self.sessions.remove(&command.session.0);
                    self.closed += 1;
                    Answer::<&[u8]>::SessionClosed.encode(&mut out);
                }
                _ => Answer::<&[u8]>::Refused(Refusal::Malformed("not in this test".into())).encode(&mut out),
            }
            self.results.insert(stamp, out.clone());
            out
        }
    }

    /// A replica that speaks the frames, in a thread that ends with the test process.
    fn replica(role: Role, database: &Arc<Mutex<Database>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let database = Arc::clone(database);
        let hang_ups = Arc::new(Mutex::new(match role {
            Role::HangsUpAfter(commands) => Some(commands),
            _ => None,
        }));
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (role, database, hang_ups) = (role.clone(), Arc::clone(&database), Arc::clone(&hang_ups));
                thread::spawn(move || serve(stream.unwrap(), &role, &database, &hang_ups));
            }
        });
        address
    }

    fn serve(mut stream: TcpStream, role: &Role, database: &Mutex<Database>, hang_ups: &Mutex<Option<usize>>) {
        let limits = FrameLimits { payload_bytes_max: COMMAND_BYTES_MAX as u32 };
        let mut inbound = Inbound::new(InboundSizes { start_bytes: 4096, keep_bytes: 4096, limits });
        let mut buffer = [0; 4096];
        loop {
            let Ok(bytes @ 1..) = stream.read(&mut buffer) else { return };
            let mut out = Vec::new();
            let mut hang_up = false;
            let result = inbound.visit(&buffer[..bytes], |request| {
                if request.kind == u8::from(FrameKind::StatusRequest) {
                    frame::append_frame(&mut out, FrameKind::Status.into(), request.id, &[b"{\"role\":\"master\"}"]);
                    return;
                }
                let command = Command::decode(request.payload).unwrap();
                let answer = match role {
                    Role::Silent => return,
                    Role::Redirects(to) => {
                        let mut answer = Vec::new();
                        let refusal = Refusal::NotMaster { master: Some(to.clone()) };
                        Answer::<&[u8]>::Refused(refusal).encode(&mut answer);
                        answer
                    }
                    Role::Master | Role::HangsUpAfter(_) => database.lock().unwrap().apply(&command),
                };
                let mut left = hang_ups.lock().unwrap();
                *left = match *left {
                    Some(1) => {
                        hang_up = true;
                        None
                    }
                    left => left.map(|commands| commands - 1),
                };
                if !hang_up {
                    frame::append_frame(&mut out, FrameKind::Answer.into(), request.id, &[&answer]);
                }
            });
            result.unwrap();
            if stream.write_all(&out).is_err() || hang_up {
                return;
            }
        }
    }

    fn connect(addresses: &[SocketAddr], options: Options) -> Result<Client, Error> {
        let endpoints: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        Client::connect(&endpoints.iter().map(String::as_str).collect::<Vec<_>>(), options)
    }

    fn quick() -> Options {
        Options {
            deadline: Duration::from_millis(300),
            silence_time_max: Duration::from_millis(100),
            ..Options::default()
        }
    }

    /// Small requests, one after the other: whether anything on the way waits for a timeout.
    #[test]
    fn a_call_waits_for_nothing_but_its_answer() {
        let database = Arc::default();
        let start = Instant::now();
        let mut client = connect(&[replica(Role::Master, &database)], Options::default()).unwrap();
        for n in 0..1000_u32 {
            client.put(&n.to_be_bytes(), b"value").unwrap();
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    }

    #[test]
    fn calls_do_what_they_say() {
        let database = Arc::default();
        let mut client = connect(&[replica(Role::Master, &database)], Options::default()).unwrap();
        assert_eq!(client.get(b"key"), Ok(None));
        assert_eq!(client.put(b"key", b"one"), Ok(Revision(2)));
        assert_eq!(client.get(b"key").unwrap().unwrap().value, "one");
        assert_eq!(client.compare_and_swap(b"key", Some(b"one"), b"two"), Ok(Swap::Swapped(Revision(3))));
        assert_eq!(client.compare_and_swap(b"key", None, b"three"), Ok(Swap::Unequal(Some("two".into()))));
        assert_eq!(client.delete(b"key"), Ok(Some(Revision(5))));
        assert_eq!(client.delete(b"key"), Ok(None));
        let large = vec![7; synod_api::limits::VALUE_BYTES_MAX];
        client.put(b"large", &large).unwrap();
        assert_eq!(client.get(b"large").unwrap().unwrap().value, large);
        let error = client.put(b"", b"value").unwrap_err();
        assert_eq!(error.outcome(), Outcome::DidNotHappen);
        expect!["put did not happen: the key is empty: it needs at least 1 byte (sent 0 times in 0.0ns)"]
            .assert_eq(&error.to_string());
        assert_eq!(client.create_file(b"/f", b"").unwrap_err().outcome(), Outcome::DidNotHappen);
    }

    #[test]
    fn many_requests_in_flight_at_once() {
        let database = Arc::default();
        let mut client = connect(&[replica(Role::Master, &database)], Options::default()).unwrap();
        for round in 0..20_u32 {
            let value = vec![0; 3000];
            let keys: Vec<[u8; 4]> = (0..1000_u32).map(|n| (round * 1000 + n).to_be_bytes()).collect();
            let tickets: Vec<Ticket> =
                keys.iter().map(|key| client.submit(Operation::Put { key, value: &value }).unwrap()).collect();
            for result in client.wait_all(tickets) {
                assert!(matches!(result, Ok(Answer::Written { .. })));
            }
        }
        assert_eq!(database.lock().unwrap().rows.len(), 20_000);
        let tickets: Vec<Ticket> =
            (0..UNANSWERED_MAX).map(|_| client.submit(Operation::Get { key: b"key" }).unwrap()).collect();
        let error = client.submit(Operation::Get { key: b"key" }).unwrap_err();
        assert!(matches!(error.failure().cause, Cause::Submit(SubmitError::TooMany)));
        client.flush();
        assert_eq!(client.wait_all(tickets).len() as u64, UNANSWERED_MAX);
    }

    #[test]
    fn the_master_is_found_by_redirect() {
        let database = Arc::default();
        let master = replica(Role::Master, &database);
        let other = replica(Role::Redirects(master.to_string()), &database);
        let mut client = connect(&[other], Options::default()).unwrap();
        client.put(b"key", b"value").unwrap();
        assert_eq!(client.connected_endpoint(), Some(master.to_string().as_str()));
        assert_eq!(client.counts().not_master, 1);
    }

    #[test]
    fn a_write_that_was_done_without_an_answer_is_done_once() {
        let database = Arc::<Mutex<Database>>::default();
        // The session, a put, and the swap.
        let mut client = connect(&[replica(Role::HangsUpAfter(3), &database)], Options::default()).unwrap();
        client.put(b"key", b"one").unwrap();
        // Done anew it would find "two" and fail.
        assert_eq!(client.compare_and_swap(b"key", Some(b"one"), b"two"), Ok(Swap::Swapped(Revision(3))));
        assert_eq!(client.counts().lost, 1);
    }

    #[test]
    fn a_silent_replica_is_left_for_one_that_speaks() {
        let database = Arc::default();
        let addresses = [replica(Role::Silent, &database), replica(Role::Master, &database)];
        let options = Options { silence_time_max: Duration::from_millis(50), ..Options::default() };
        for seed in 1..4 {
            let mut client = connect(&addresses, Options { seed, ..options }).unwrap();
            client.put(b"key", b"value").unwrap();
        }
    }

    #[test]
    fn nobody_there_is_told_by_the_deadline() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let start = Instant::now();
        let error = connect(&[gone], quick()).unwrap_err();
        assert!(start.elapsed() >= Duration::from_millis(300));
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(error.outcome(), Outcome::DidNotHappen);
        assert!(error.to_string().contains("refused"), "{error}");
    }

    #[test]
    fn nobody_speaking_is_told_by_the_deadline() {
        let database = Arc::default();
        let mut client = connect(&[replica(Role::Silent, &database)], quick()).unwrap();
        let start = Instant::now();
        let error = client.get(b"key").unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(error.outcome(), Outcome::DidNotHappen);
        assert!(error.to_string().contains("no answer within 100ms"), "{error}");
    }

    #[test]
    fn dropped_it_ends_its_session() {
        let database = Arc::<Mutex<Database>>::default();
        let mut client = connect(&[replica(Role::Master, &database)], Options::default()).unwrap();
        client.put(b"key", b"value").unwrap();
        drop(client);
        let start = Instant::now();
        while database.lock().unwrap().closed == 0 {
            assert!(start.elapsed() < Duration::from_secs(5));
            thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn the_status_of_any_replica() {
        let database = Arc::default();
        let master = replica(Role::Master, &database);
        assert_eq!(fetch_status(&master.to_string(), Duration::from_secs(5)).unwrap(), "{\"role\":\"master\"}");
        let client = connect(&[master], Options::default()).unwrap();
        assert_eq!(client.status(&master.to_string()).unwrap(), "{\"role\":\"master\"}");
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        assert_eq!(client.status(&gone.to_string()).unwrap_err().outcome(), Outcome::DidNotHappen);
    }
}
