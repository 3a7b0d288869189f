//! One client under load: writes, swaps, files, reads; and its read-back.
//!
//! It asks for a few things at once, waits for all, and keeps what it was told. Its own keys are written one write after
//! the other; the shared counters are raised by compare-and-swap, in a race with the other clients; every file has a
//! fresh name. Reads of its own keys go on under load too: a stale one is a violation (design, invariant 4).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use synod_api::{Answer, Expected, Operation, Refusal};
use synod_client::{Cause, Client, Error, Options, Outcome, Ticket};

use super::history::{Counter, Fate, Found, Increment, NewFile, OwnKey, Violation, WriteId, check_chain};
use super::pulse::Pulse;

/// Keys that each client has for itself.
const OWN_KEYS: usize = 8;
/// Counters that all share.
pub const SHARED_COUNTERS: usize = 3;
/// Requests at once.
const AT_ONCE_MAX: usize = 4;
/// The longest pause between two goes. It keeps the log, and so the time that a restart takes, within bounds.
const PAUSE_MAX: Duration = Duration::from_millis(10);
/// Of so many files one is made when values are large.
const FILES_RARE: u32 = 8;
/// Reads at once in a read-back.
const READ_BACK_AT_ONCE: usize = 256;
/// A read-back may have to wait for an election.
const READ_BACK_DEADLINE: Duration = Duration::from_secs(30);

/// What all clients of a run share.
#[derive(Debug, Default)]
pub struct Shared {
    /// Beats with every acknowledged write.
    pub pulse: Pulse,
    /// The highest revision that anybody was told.
    revision_max: AtomicU64,
    stopping: AtomicBool,
}

impl Shared {
    /// Load may run.
    pub fn go(&self) {
        self.stopping.store(false, Ordering::SeqCst);
    }

    /// Every client ends after what it has under way.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    /// Whether load is to end, or a client has found a violation.
    pub fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::SeqCst)
    }
}

/// What clients did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Of these, increments of shared counters.
    pub increments: u64,
    /// Of these, files made.
    pub files: u64,
    /// Writes of which nobody knows.
    pub unknown: u64,
    /// Writes that did not happen, by error.
    pub did_not_happen: u64,
    /// Swaps that found another value.
    pub unequal: u64,
    /// Reads under load that were answered, and checked.
    pub reads: u64,
    /// Reads that were not answered.
    pub failed_reads: u64,
    /// The longest that a caller waited.
    pub longest_wait: Duration,
    /// The last error that a caller saw.
    pub last_error: Option<String>,
}

impl Tally {
    /// Calls that ended in an error.
    #[must_use]
    pub fn errors(&self) -> u64 {
        self.unknown + self.did_not_happen + self.failed_reads
    }

    /// Both together.
    pub fn add(&mut self, other: &Tally) {
        self.acknowledged += other.acknowledged;
        self.increments += other.increments;
        self.files += other.files;
        self.unknown += other.unknown;
        self.did_not_happen += other.did_not_happen;
        self.unequal += other.unequal;
        self.reads += other.reads;
        self.failed_reads += other.failed_reads;
        self.longest_wait = self.longest_wait.max(other.longest_wait);
        self.last_error = other.last_error.clone().or_else(|| self.last_error.take());
    }
}

/// What was asked for and is not answered yet.
enum Asked {
    Put { key: usize, write: WriteId },
    Swap { counter: usize, write: WriteId, expected: Option<Counter> },
    Create { write: WriteId },
    Read { key: usize },
}

/// One client with its history.
pub struct LoadClient {
    id: u32,
    client: Client,
    random: fastrand::Rng,
    /// What own keys are given has up to so many bytes more than files and counters have.
    bulk_bytes_max: usize,
    writes: u64,
    own: Vec<OwnKey>,
    files: Vec<NewFile>,
    /// By counter.
    increments: Vec<Vec<Increment>>,
    /// The counters as last seen.
    counters: Vec<Option<Counter>>,
    revisions: Vec<u64>,
    tally: Tally,
}

impl LoadClient {
    /// A client of the cell; its id, from 1, is nobody else's.
    pub fn connect(id: u32, endpoints: &[String], options: Options, seed: u64) -> anyhow::Result<Self> {
        Ok(Self {
            id,
            client: connect(endpoints, options)?,
            random: fastrand::Rng::with_seed(seed ^ u64::from(id) << 32),
            bulk_bytes_max: 0,
            writes: 0,
            own: vec![OwnKey::default(); OWN_KEYS],
            files: Vec::new(),
            increments: vec![Vec::new(); SHARED_COUNTERS],
            counters: vec![None; SHARED_COUNTERS],
            revisions: Vec::new(),
            tally: Tally::default(),
        })
    }

    /// Its own keys are given values of up to so many bytes, so that the log moves fast.
    #[must_use]
    pub fn with_bulk(self, bulk_bytes_max: usize) -> Self {
        Self { bulk_bytes_max, ..self }
    }

    /// Puts load on the cell until it is told to stop, or finds a violation.
    pub fn run(&mut self, shared: &Shared) -> Result<(), Violation> {
        while !shared.is_stopping() {
            self.go(shared).inspect_err(|_| shared.stop())?;
            std::thread::sleep(PAUSE_MAX.mul_f64(self.random.f64()));
        }
        Ok(())
    }

    /// A few requests at once.
    fn go(&mut self, shared: &Shared) -> Result<(), Violation> {
        let floor = shared.revision_max.load(Ordering::SeqCst);
        let start = Instant::now();
        let mut asked = Vec::with_capacity(AT_ONCE_MAX);
        // Different keys, so that no two requests of a go are for one key: their order would not be known.
        let first_key = self.random.usize(..OWN_KEYS);
        let mut swaps = false;
        for at in 0..self.random.usize(1..=AT_ONCE_MAX) {
            let key = (first_key + at) % OWN_KEYS;
            let request = match self.random.u32(..10) {
                0..4 => Asked::Put { key, write: self.next_write() },
                4..6 if !swaps => {
                    swaps = true;
                    let counter = self.random.usize(..SHARED_COUNTERS);
                    Asked::Swap { counter, write: self.next_write(), expected: self.counters[counter] }
                }
                // Files stay. With large values few are made, or the database would outgrow what moves through the log.
                6..8 if self.bulk_bytes_max == 0 || self.random.u32(..FILES_RARE) == 0 => {
                    Asked::Create { write: self.next_write() }
                }
                6..8 => Asked::Put { key, write: self.next_write() },
                _ => Asked::Read { key },
            };
            let ticket = self.submit(&request);
            asked.push((request, ticket));
        }
        for (request, ticket) in asked {
            let result = ticket.and_then(|ticket| self.client.wait(ticket));
            self.ended(shared, floor, request, result)?;
        }
        self.tally.longest_wait = self.tally.longest_wait.max(start.elapsed());
        Ok(())
    }

    fn submit(&mut self, request: &Asked) -> Result<Ticket, Error> {
        match request {
            Asked::Put { key, write } => {
                let name = own_key(self.id, *key);
                let value = match self.bulk_bytes_max {
                    0 => write.value(),
                    bytes => write.value_of(self.random.usize(..bytes)),
                };
                self.client.submit(Operation::Put { key: name.as_bytes(), value: &value })
            }
            Asked::Swap { counter, write, expected } => {
                let value = Counter::after(*expected, *write).value();
                let expected = expected.map(Counter::value);
                self.client.submit(Operation::CompareAndSwap {
                    key: shared_counter(*counter).as_bytes(),
                    expected: expected.as_deref().map_or(Expected::Absent, Expected::Value),
                    value: &value,
                })
            }
            Asked::Create { write } => {
                let path = file_path(*write);
                self.client.submit(Operation::CreateFile { path: path.as_bytes(), contents: &write.value() })
            }
            Asked::Read { key } => self.client.submit(Operation::Get { key: own_key(self.id, *key).as_bytes() }),
        }
    }

    fn ended(
        &mut self,
        shared: &Shared,
        floor: u64,
        request: Asked,
        result: Result<Answer, Error>,
    ) -> Result<(), Violation> {
        match request {
            Asked::Read { key } => {
                let name = own_key(self.id, key);
                let found = match result {
                    Ok(answer) => found(&name, answer)?,
                    Err(error) => {
                        self.tally.failed_reads += 1;
                        self.tally.last_error = Some(error.to_string());
                        return Ok(());
                    }
                };
                self.tally.reads += 1;
                self.own[key].check(&name, found.as_ref())
            }
            Asked::Put { key, write } => {
                let fate = match result {
                    Ok(Answer::Written { revision }) => self.acknowledged(shared, floor, write, revision.0)?,
                    Ok(other) => return Err(nonsense(&own_key(self.id, key), &other)),
                    Err(error) => self.failed(&error),
                };
                self.own[key].record(write, fate);
                Ok(())
            }
            Asked::Create { write } => {
                let fate = match result {
                    Ok(Answer::Created { revision }) => {
                        self.tally.files += 1;
                        self.acknowledged(shared, floor, write, revision.0)?
                    }
                    // A name that nobody has used: if the file was there, then because we made it and were not told.
                    Ok(other) => return Err(nonsense(&file_path(write), &other)),
                    Err(error) => self.failed(&error),
                };
                self.files.push(NewFile { write, fate });
                Ok(())
            }
            Asked::Swap { counter, write, expected } => {
                let name = shared_counter(counter);
                let fate = match result {
                    Ok(Answer::Swapped { revision }) => {
                        self.tally.increments += 1;
                        self.counters[counter] = Some(Counter::after(expected, write));
                        self.acknowledged(shared, floor, write, revision.0)?
                    }
                    Ok(Answer::Unequal { current }) => {
                        self.tally.unequal += 1;
                        let current = current.map(|value| {
                            Counter::of_value(&value).ok_or_else(|| nonsense(&name, &"a value that is no counter"))
                        });
                        self.counters[counter] = current.transpose()?;
                        Fate::DidNotHappen
                    }
                    Ok(other) => return Err(nonsense(&name, &other)),
                    Err(error) => self.failed(&error),
                };
                self.increments[counter].push(Increment { write, expected, fate });
                Ok(())
            }
        }
    }

    fn acknowledged(&mut self, shared: &Shared, floor: u64, write: WriteId, revision: u64) -> Result<Fate, Violation> {
        // Whoever was acknowledged before we asked, this client or another, has a lower revision.
        if revision <= floor {
            return Err(Violation::OutOfOrder { write, revision, floor });
        }
        shared.revision_max.fetch_max(revision, Ordering::SeqCst);
        shared.pulse.beat();
        self.tally.acknowledged += 1;
        self.revisions.push(revision);
        Ok(Fate::Acknowledged(revision))
    }

    fn failed(&mut self, error: &Error) -> Fate {
        self.tally.last_error = Some(error.to_string());
        match error.outcome() {
            Outcome::Unknown => {
                self.tally.unknown += 1;
                Fate::Unknown
            }
            Outcome::DidNotHappen => {
                self.tally.did_not_happen += 1;
                Fate::DidNotHappen
            }
        }
    }

    fn next_write(&mut self) -> WriteId {
        self.writes += 1;
        WriteId { client: self.id, number: self.writes }
    }

    /// What it did so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// How many files it has asked for.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files.len()
    }

    /// The revisions it was told since the last time.
    pub fn take_revisions(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.revisions)
    }

    /// Reads back, through a client of its own, all own keys and the files from this one on; says how many that were.
    pub fn read_back(&mut self, endpoints: &[String], files_from: usize) -> anyhow::Result<u64> {
        let mut client = connect(endpoints, read_back_options())?;
        for key in 0..OWN_KEYS {
            let name = own_key(self.id, key);
            let found = read(&mut client, Operation::Get { key: name.as_bytes() })?;
            self.own[key].check(&name, found.as_ref())?;
        }
        let files = &self.files[files_from..];
        for some in files.chunks(READ_BACK_AT_ONCE) {
            let mut tickets = Vec::with_capacity(some.len());
            for file in some {
                tickets.push(client.submit(Operation::ReadFile { path: file_path(file.write).as_bytes() })?);
            }
            for (file, ticket) in some.iter().zip(tickets) {
                let name = file_path(file.write);
                let there = match client.wait(ticket) {
                    Err(error) if is_log_full(&error) => {
                        read(&mut client, Operation::ReadFile { path: name.as_bytes() })?
                    }
                    answer => found(&name, answer.with_context(|| format!("reading back {name}"))?)?,
                };
                file.check(&name, there.as_ref())?;
            }
        }
        Ok((OWN_KEYS + files.len()) as u64)
    }
}

/// Does something while all clients put load on the cell: what it gave, and whether all clients found what they should.
pub fn under_load<T>(
    clients: &mut [LoadClient],
    shared: &Shared,
    act: impl FnOnce() -> T,
) -> (T, Result<(), Violation>) {
    shared.go();
    std::thread::scope(|scope| {
        let running: Vec<_> = clients.iter_mut().map(|client| scope.spawn(|| client.run(shared))).collect();
        let acted = act();
        shared.stop();
        let ends = running.into_iter().map(|client| client.join().expect("a client returns what it finds"));
        // All are waited for, whatever the first one says.
        let ends: Vec<_> = ends.collect();
        (acted, ends.into_iter().collect())
    })
}

/// Reads back the shared counters, against what all clients were told.
pub fn read_back_counters(endpoints: &[String], clients: &[LoadClient]) -> anyhow::Result<u64> {
    let mut client = connect(endpoints, read_back_options())?;
    for counter in 0..SHARED_COUNTERS {
        let name = shared_counter(counter);
        let found = read(&mut client, Operation::Get { key: name.as_bytes() })?;
        let increments: Vec<_> = clients.iter().flat_map(|client| &client.increments[counter]).copied().collect();
        check_chain(&name, &increments, found.as_ref())?;
    }
    Ok(SHARED_COUNTERS as u64)
}

fn connect(endpoints: &[String], options: Options) -> anyhow::Result<Client> {
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    // Connecting is not what is tested: it may take as long as it takes.
    Client::connect(&endpoints, options).context("a client cannot connect")
}

fn read_back_options() -> Options {
    Options { deadline: READ_BACK_DEADLINE, ..Options::default() }
}

fn read(client: &mut Client, operation: Operation<'_>) -> anyhow::Result<Option<Found>> {
    let give_up = Instant::now() + READ_BACK_DEADLINE;
    loop {
        match client.call(operation) {
            // A new master without a lease yet reads by way of the log, which the next snapshot frees.
            Err(error) if is_log_full(&error) && Instant::now() < give_up => std::thread::sleep(PAUSE_MAX),
            answer => return Ok(found("a read-back", answer.context("reading back")?)?),
        }
    }
}

fn is_log_full(error: &Error) -> bool {
    matches!(&error.failure().cause, Cause::Refused(Refusal::LogFull | Refusal::DiskFull(_)))
}

fn found(name: &str, answer: Answer) -> Result<Option<Found>, Violation> {
    match answer {
        Answer::Absent => Ok(None),
        Answer::Value { value, create_revision, modify_revision, version } => Ok(Some(Found {
            value: value.to_vec(),
            create_revision: create_revision.0,
            modify_revision: modify_revision.0,
            version: version.0,
        })),
        other => Err(nonsense(name, &other)),
    }
}

fn nonsense(name: &str, answer: &dyn std::fmt::Debug) -> Violation {
    Violation::Wrong { name: name.to_owned(), what: format!("the answer makes no sense: {answer:?}") }
}

fn own_key(client: u32, key: usize) -> String {
    format!("torture/{client}/{key}")
}

fn shared_counter(counter: usize) -> String {
    format!("torture/shared/{counter}")
}

fn file_path(write: WriteId) -> String {
    format!("/torture/{}/{}", write.client, write.number)
}
