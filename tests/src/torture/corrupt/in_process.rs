//! A cell in one process: the node's own start on real directories, real engines, and what they ask for done at once.
//!
//! Messages, records and answers go through the real codecs, flushes and snapshots to real files. Simulated is the time, so that
//! leases cost nothing, and nothing else goes wrong here than what was done to the files before.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use synod_api::{Answer, Command, Operation, Sequence, SessionId};
use synod_cell::Cell;
use synod_node::codec::{self, EncodedMessage, PeerMessage, RoomMessage, SnapshotMessage};
use synod_node::config::{Config, Member};
use synod_node::databases::{Fresh, Place};
use synod_node::directory::Directory;
use synod_node::engine::{Caller, Engine, Evidence, Import, Imported, LogRead, Outlet};
use synod_node::introduction::IntroductionError;
use synod_node::quarantine;
use synod_node::scrub::{Round, look_through};
use synod_node::start::{self, FirstStart, Opened, RecoveryReport, StartError};
use synod_paxos::{Configuration, Configurations, Instant, Message, ReplicaId, SnapshotHandle};
use synod_ring::AlignedBuffer;
use synod_store::{Durable, Pacing, Store};
use synod_wal::directory::{carry_out, open_segment};
use synod_wal::{Flush, SegmentId};

/// The smallest there are: a log of a thousand entries has several.
pub(super) const SEGMENT_BYTES: u64 = Config::SEGMENT_MB_MIN << 20;
/// What a message takes from one replica to another, in nanoseconds.
const LATENCY: u64 = 100_000;
/// What a replica does in a turn leads to more to do so many times at the most.
const ROUNDS_MAX: u32 = 10_000;
/// Of the first replica; nobody listens there.
const FIRST_PORT: u16 = 10_001;

/// What is said of a replica of this cell; its directory is below `dir`.
pub(super) fn config(dir: &Path, id: u16, replicas: u16) -> Config {
    let address = |port: u16| ([127, 0, 0, 1], port).into();
    let members = (1..=replicas)
        .map(|id| Member { id, peer: address(FIRST_PORT + 2 * id), client: address(FIRST_PORT + 2 * id + 1) })
        .collect();
    let mut config = Config::new(id, replica_dir(dir, id), members);
    config.segment_mb = Config::SEGMENT_MB_MIN;
    // In memory, if there is such a place: nobody cuts the power here.
    config.volatile = true;
    config.database_gb_max = 1;
    config
}

/// Where a replica of the cell in this place has its files.
pub(super) fn replica_dir(dir: &Path, id: u16) -> PathBuf {
    dir.join(format!("replica-{id}"))
}

thread_local! {
    /// Whose directory is at work: a database that makes no sense ends the process, and it must be known which.
    static AT_WORK: RefCell<PathBuf> = const { RefCell::new(PathBuf::new()) };
}

fn note_at_work(dir: &Path) {
    AT_WORK.with_borrow_mut(|at_work| dir.clone_into(at_work));
}

/// The database of whoever is at work on this thread.
pub(super) fn database_at_work() -> PathBuf {
    AT_WORK.with_borrow(|at_work| at_work.join("database"))
}

/// What was asked for and is done.
enum Done {
    Flushed(AlignedBuffer),
    Read(LogRead, io::Result<Vec<u8>>),
    Kept(Durable),
    Made(Box<Store>),
    Imported(Imported),
    IncomingKept(Durable),
}

/// A flush, and what was in its place before.
pub(super) struct Written {
    pub(super) segment: SegmentId,
    pub(super) offset: u64,
    pub(super) before: Vec<u8>,
}

/// Does what an engine asks for.
struct Desk {
    now: u64,
    place: Place,
    sent: Vec<(ReplicaId, EncodedMessage)>,
    answers: BTreeMap<u64, Vec<u8>>,
    done: VecDeque<Done>,
    incoming: Option<Fresh>,
    written: Vec<Written>,
}

fn must<T>(result: Result<T, impl std::fmt::Display>, what: &str) -> T {
    result.unwrap_or_else(|error| panic!("{what}: {error}"))
}

impl Outlet for Desk {
    fn now(&mut self) -> Instant {
        Instant(self.now)
    }

    fn send(&mut self, to: ReplicaId, message: Message) {
        self.sent.push((to, codec::encode_message(&message)));
    }

    fn answer(&mut self, caller: Caller, answer: &[u8]) {
        self.answers.insert(caller.request, answer.to_vec());
    }

    fn flush(&mut self, flush: Flush) {
        let Flush { segment, offset, buffer, length } = flush;
        let file = must(open_segment(self.place.dir(), segment), "opening a segment");
        let mut before = AlignedBuffer::zeroed(length);
        must(file.read_exact_at(&mut before[..length], offset), "reading a segment");
        must(file.write_all_at(&buffer[..length], offset), "writing a segment");
        self.written.push(Written { segment, offset, before: before[..length].to_vec() });
        self.done.push_back(Done::Flushed(buffer));
    }

    fn read_log(&mut self, read: LogRead) {
        let bytes = open_segment(self.place.dir(), read.segment).map_err(io::Error::from).and_then(|file| {
            let mut bytes = AlignedBuffer::zeroed(read.length);
            file.read_exact_at(&mut bytes[..read.length], read.offset)?;
            Ok(bytes[..read.length].to_vec())
        });
        self.done.push_back(Done::Read(read, bytes));
    }

    /// Everybody here is reached by number.
    fn reconfigure(&mut self, _: &Configurations) {}

    fn send_snapshot(&mut self, to: ReplicaId, message: SnapshotMessage) {
        self.sent.push((to, codec::encode_snapshot_message(&message)));
    }

    fn send_room(&mut self, to: ReplicaId, message: RoomMessage) {
        self.sent.push((to, codec::encode_room_message(&message)));
    }

    fn keep_snapshot(&mut self, handle: &SnapshotHandle, cell: &mut Cell) {
        let frozen = cell.store_mut().freeze_snapshot(&codec::encode_handle(handle));
        self.done.push_back(Done::Kept(must(frozen.write_out(&Pacing::default()), "writing a snapshot")));
    }

    fn make_database(&mut self) {
        self.incoming = None;
        let (store, _, fresh) = must(self.place.make_fresh(), "making a database");
        self.incoming = fresh;
        self.done.push_back(Done::Made(Box::new(store)));
    }

    fn import(&mut self, import: Import) {
        self.done.push_back(Done::Imported(import.run()));
    }

    fn keep_incoming(&mut self, handle: &SnapshotHandle, cell: &mut Cell) {
        let frozen = cell.store_mut().freeze_snapshot(&codec::encode_handle(handle));
        self.done.push_back(Done::IncomingKept(must(frozen.write_out(&Pacing::default()), "writing a snapshot")));
    }

    fn replace_database(&mut self, _: Cell) {
        let fresh = self.incoming.take().expect("it was made before");
        must(fresh.keep(), "putting another replica's database in place");
    }

    fn drop_database(&mut self, incoming: Option<Cell>) {
        drop(incoming);
        self.incoming = None;
    }

    fn note_quarantine(&mut self, evidence: &Evidence) {
        must(quarantine::note(self.place.dir(), evidence), "noting a quarantine");
    }

    fn end_quarantine(&mut self) {
        must(quarantine::end(self.place.dir()), "ending a quarantine");
    }
}

/// A replica that runs.
pub(super) struct Running {
    pub(super) engine: Engine,
    /// What its start found.
    pub(super) report: RecoveryReport,
    /// It had lost its state, or its database.
    pub(super) rejoins: bool,
    pub(super) began_in_quarantine: bool,
    desk: Desk,
    _directory: Directory,
}

impl Running {
    fn of(opened: Opened, now: u64) -> Self {
        let Opened { directory, databases, start, report, .. } = opened;
        let (rejoins, began_in_quarantine) = (start.recovered.lost_state, start.quarantined.is_some());
        let desk = Desk {
            now,
            place: databases,
            sent: Vec::new(),
            answers: BTreeMap::new(),
            done: VecDeque::new(),
            incoming: None,
            written: Vec::new(),
        };
        let engine = Engine::new(start, Instant(now));
        Self { engine, report, rejoins, began_in_quarantine, desk, _directory: directory }
    }

    /// As the node's scrubber does at once after a start.
    fn look_through(&mut self) {
        if self.began_in_quarantine {
            return;
        }
        note_at_work(self.desk.place.dir());
        let store = self.engine.cell_mut().store_mut();
        let (scrub, view) = (store.scrub(), store.freeze());
        if let Round::Damaged(found) = look_through(scrub, &view, &Pacing::default()) {
            self.engine.database_damaged(found, &mut self.desk);
        }
    }

    fn take(&mut self, from: ReplicaId, kind: u8, bytes: Bytes) {
        let (now, desk) = (Instant(self.desk.now), &mut self.desk);
        match must(codec::decode_peer_message(kind, bytes), "decoding what was encoded") {
            PeerMessage::Protocol(message) => self.engine.message(now, from, message, desk),
            PeerMessage::Room(message) => self.engine.room_message(now, from, message, desk),
            PeerMessage::Snapshot(message) => self.engine.snapshot_message(now, from, message, desk),
        }
    }

    /// All that is due and all that follows from it here.
    fn turn(&mut self, now: u64) {
        note_at_work(self.desk.place.dir());
        self.desk.now = now;
        let now = Instant(now);
        if now >= self.engine.deadline() {
            self.engine.tick(now, &mut self.desk);
        }
        for _ in 0..ROUNDS_MAX {
            self.engine.end_turn(now, &mut self.desk);
            if let Some(upkeep) = self.engine.log_upkeep(now) {
                must(carry_out(self.desk.place.dir(), upkeep, SEGMENT_BYTES), "the log's files");
                self.engine.log_upkeep_done(upkeep);
            }
            let Some(done) = self.desk.done.pop_front() else { return };
            let (engine, desk) = (&mut self.engine, &mut self.desk);
            match done {
                Done::Flushed(buffer) => engine.flushed(now, buffer, desk),
                Done::Read(read, Ok(bytes)) => engine.log_read(read, Ok(&bytes), desk),
                Done::Read(read, Err(error)) => engine.log_read(read, Err(error), desk),
                Done::Kept(durable) => {
                    engine.cell_mut().store_mut().snapshot_done(durable);
                    engine.snapshot_kept(now, true);
                }
                Done::Made(store) => engine.database_made(now, Some(*store), desk),
                Done::Imported(imported) => engine.imported(now, imported, desk),
                Done::IncomingKept(durable) => {
                    let cell = engine.incoming_cell().expect("it is being kept");
                    cell.store_mut().snapshot_done(durable);
                    engine.incoming_kept(now, true, desk);
                }
            }
        }
        panic!("a turn has no end");
    }

    /// The log gets its mark, as when a replica is stopped in order.
    pub(super) fn mark(&mut self, now: u64) {
        self.engine.mark();
        self.turn(now);
    }

    pub(super) fn take_written(&mut self) -> Vec<Written> {
        std::mem::take(&mut self.desk.written)
    }

    /// What a read of this database gives, whoever may answer it.
    pub(super) fn read(&mut self, key: &[u8]) -> Answer {
        note_at_work(self.desk.place.dir());
        let mut answer = Vec::new();
        let operation = Operation::Get { key };
        let (session, sequence) = (SessionId::NONE, Sequence::NONE);
        let command = Command { session, sequence, unanswered_from: sequence, operation };
        self.engine.cell_mut().read(&command, &mut answer);
        must(Answer::decode(answer.into()), "decoding an answer")
    }
}

struct Mail {
    from: ReplicaId,
    kind: u8,
    bytes: Bytes,
}

/// See the module.
pub(super) struct InProcess {
    dir: PathBuf,
    replicas: u16,
    pub(super) now: u64,
    pub(super) running: BTreeMap<u16, Running>,
    mail: BTreeMap<u16, Vec<Mail>>,
    requests: u64,
}

impl InProcess {
    /// Nobody runs yet.
    pub(super) fn new(dir: &Path, replicas: u16) -> Self {
        // Later than any lease before.
        let now = 1 << 40;
        Self { dir: dir.to_owned(), replicas, now, running: BTreeMap::new(), mail: BTreeMap::new(), requests: 0 }
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = u16> + use<> {
        1..=self.replicas
    }

    /// Starts a replica as `synod serve` does. Whoever runs already says whether it knows it.
    pub(super) fn start(&mut self, id: u16) -> Result<(), StartError> {
        let config = config(&self.dir, id, self.replicas);
        note_at_work(&config.dir);
        let opened = start::open_asking(&config, FirstStart::Refused, &|config| self.recall(config))?;
        let mut running = Running::of(opened, self.now);
        running.look_through();
        self.running.insert(id, running);
        Ok(())
    }

    fn recall(&self, config: &Config) -> Result<(u128, Configuration), IntroductionError> {
        let knows = |running: &&Running| {
            let configurations = running.engine.replica().configurations();
            let mut members = configurations.members();
            members.any(|member| member.id.0 == config.id && member.voter)
        };
        let told: Vec<&Running> = self.running.values().filter(knows).collect();
        if told.len() <= config.members.len() / 2 {
            let last = format!("{} of them run", self.running.len());
            return Err(IntroductionError::NotKnown { dir: config.dir.clone(), last });
        }
        Ok((super::sample::CELL, told[0].engine.replica().configurations().current.clone()))
    }

    /// One turn of each; then the time of the next.
    pub(super) fn turn(&mut self) {
        let mail = std::mem::take(&mut self.mail);
        for (to, mail) in mail {
            let Some(running) = self.running.get_mut(&to) else { continue };
            note_at_work(running.desk.place.dir());
            running.desk.now = self.now;
            mail.into_iter().for_each(|Mail { from, kind, bytes }| running.take(from, kind, bytes));
        }
        let mut deadline = u64::MAX;
        for (id, running) in &mut self.running {
            running.turn(self.now);
            deadline = deadline.min(running.engine.deadline().0);
            for (to, EncodedMessage { kind, mut head, body }) in running.desk.sent.drain(..) {
                head.extend_from_slice(&body);
                let from = ReplicaId(*id);
                self.mail.entry(to.0).or_default().push(Mail { from, kind, bytes: head.freeze() });
            }
        }
        self.now = if self.mail.is_empty() { deadline.max(self.now + 1) } else { self.now + LATENCY };
    }

    /// Turns until there is something to see, for so many simulated nanoseconds.
    pub(super) fn turn_until<T>(&mut self, patience: u64, mut look: impl FnMut(&mut Self) -> Option<T>) -> Option<T> {
        let give_up = self.now + patience;
        while self.now < give_up {
            if let Some(seen) = look(self) {
                return Some(seen);
            }
            self.turn();
        }
        None
    }

    /// Who would answer a read now.
    pub(super) fn master(&self) -> Option<u16> {
        let may_read = |running: &&Running| running.engine.replica().may_read(Instant(self.now));
        self.running.iter().find(|(_, running)| may_read(running)).map(|(id, _)| *id)
    }

    /// Puts a command to a replica; what it is answered comes under the number that this gives.
    pub(super) fn ask(&mut self, of: u16, command: &Command<'_>) -> u64 {
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        self.requests += 1;
        let caller = Caller { connection: 0, request: self.requests };
        let running = self.running.get_mut(&of).expect("it runs");
        note_at_work(running.desk.place.dir());
        running.desk.now = self.now;
        running.engine.command(Instant(self.now), caller, &bytes, &mut running.desk);
        self.requests
    }

    /// What a replica answered.
    pub(super) fn answer(&mut self, of: u16, request: u64) -> Option<Answer> {
        let answer = self.running.get_mut(&of)?.desk.answers.remove(&request)?;
        Some(must(Answer::decode(answer.into()), "decoding an answer"))
    }

    /// Has a command done by whoever is master, within so many simulated nanoseconds.
    pub(super) fn done(&mut self, patience: u64, command: &Command<'_>) -> Option<Answer> {
        let mut asked: Option<(u16, u64)> = None;
        self.turn_until(patience, |cell| {
            let (of, request) = match asked {
                Some(asked) => asked,
                None => {
                    let master = cell.master()?;
                    *asked.insert((master, cell.ask(master, command)))
                }
            };
            let answer = cell.answer(of, request)?;
            // Safe to ask again: the session knows what it has done.
            if matches!(answer, Answer::Refused(_)) {
                asked = None;
            }
            (!matches!(answer, Answer::Refused(_))).then_some(answer)
        })
    }
}
