//! The hot core: one thread, one ring, one entry to the kernel a turn, for the log, the peers and the clients.
//!
//! A turn: enter the kernel once; take every completion; let the engine propose, apply and seal one frame; then one send
//! for every connection that has something to say. Only where a follower has much to apply does it enter the kernel meanwhile, without
//! waiting, so that the flush that others wait for goes on. The loop runs at its own pace and batching falls out of it. Idle, it
//! sleeps in the kernel until the nearest deadline.
//!
//! Invariants:
//!   - nothing here waits but the one entry to the kernel; what else enters it is short and rare (making, opening and
//!     closing sockets and files, a line on standard error), but for one sync when a new cell's member is told its id;
//!   - a connection's memory is bounded: one receive buffer, one outbound queue (R1), and a full queue closes it;
//!   - a failed flush ends the process: nothing is retried on those blocks, and nobody gets another vote (L2).

mod connections;
mod copying;
mod outlet;
mod peers;
mod scrubbing;
mod token;

use std::error::Error;
use std::net::{SocketAddr, TcpListener};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use synod_api::FrameKind;
use synod_cell::Cell;
use synod_net::hello::{HELLO_VERSION, KIND_HELLO, Local};
use synod_net::{FrameError, FrameId, FrameRef, Hello, HelloAnswer};
use synod_paxos::{Configuration, Configurations, Instant, Member, ReplicaId, Role, Slot, VotingStatus};
use synod_ring::{Completion, FlushError, Handle, Options, Outcome, Ring, SetupError, Waker};
use synod_store::{Durable, SnapshotError};

use crate::cli::chain;
use crate::codec::{self, PeerMessage};
use crate::config::{self, Config};
use crate::databases::{Databases, Done};
use crate::directory::{Directory, Identity};
use crate::engine::{Caller, Engine, Outlet, member_addresses};
use crate::introduction;
use crate::operator::{self, OperatorAnswer, OperatorRequest};
use crate::remote::copies::{BOUND_EVERY, Copies, Schedule};
use crate::scrub::Scrubber;
use crate::segments::SegmentMaker;
use crate::start::Opened;
use crate::status::{CountersStatus, DamageStatus, DatabaseStatus, LogStatus, MemberStatus, RejoinStatus, Status};
use crate::trouble::Trouble;
use connections::{ConnectionId, Door, Role as ConnectionRole};
use outlet::World;
use token::Token;

/// After this long without a flush, an empty mark frame follows the last one (rule L4). Longer than a third of the default
/// lease: while an idle master renews its lease, the next frame is the mark.
const IDLE_BEAT: Duration = Duration::from_millis(400);
/// How late a timeout may be, in nanoseconds.
const TIMER_SLACK_NS: u64 = 1_000;
/// A stopping replica waits this long for its last flush.
const STOP_TIME_MAX: Duration = Duration::from_secs(2);

/// A port that is in use is asked for again for so long, this often.
const LISTEN_TIME_MAX: Duration = Duration::from_secs(2);
const LISTEN_RETRY: Duration = Duration::from_millis(20);

/// What is pushed between two entries to the kernel without an extra one.
const RING_ENTRIES: u32 = 1024;
/// A receive and a send for each connection, and room for links, flush, reads and doors.
const OPERATIONS_MAX: u32 = 2 * connections::CONNECTIONS_MAX as u32 + 256;
const _: () = assert!(OPERATIONS_MAX <= synod_ring::OPERATIONS_MAX);

/// Why the hot core ended, or never began.
#[derive(Debug, thiserror::Error)]
pub enum HotError {
    /// No ring.
    #[error(transparent)]
    Ring(#[from] SetupError),
    /// An address that cannot be listened on.
    #[error("cannot listen for {door} on {address}: {source}")]
    Listen {
        /// "clients" or "replicas".
        door: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The log's disk failed. The process ends: this replica's vote counts for nothing any more.
    #[error(
        "the log's disk failed while {source}, in {}: {}; nothing acknowledged is lost while a majority has it, but this \
         replica stops here and must not vote again before the disk has been seen to",
        file.display(), source.source().map_or_else(String::new, ToString::to_string)
    )]
    LogFailed {
        /// The log's segment.
        file: PathBuf,
        /// What failed.
        source: FlushError,
    },
    /// A file of the replica's could not be made, opened or put in place, and it was not for want of room.
    #[error("the disk failed: {doing}: {source}; see to the disk, and start the replica again")]
    DiskFailed {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// Even the log's reserve is used up.
    #[error("the log is full to its last block: not even a promise can be made durable")]
    LogExhausted,
    /// The kernel refused to be entered.
    #[error("entering the kernel: {0}")]
    Enter(std::io::Error),
    /// Something else of the system's.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// The hot core of one replica.
pub struct HotCore {
    engine: Engine,
    world: World,
    directory: Directory,
    identity: Identity,
    segments: SegmentMaker,
    copies: Copies,
    /// None: it is turned off.
    scrubber: Option<Scrubber>,
    /// When the next round begins.
    scrub_at: Option<Instant>,
    /// How many snapshots had been installed when the round began.
    scrubbed: u64,
    /// When views are next held to their bound, while one is copied (rule S6).
    bound_views_at: Option<Instant>,
    stop: Arc<AtomicBool>,
    /// Where the members are that the flags name: of those of the first start the log does not say it.
    flags: Vec<config::Member>,
    is_insecure: bool,
    /// When the log has been idle long enough for a mark.
    mark_at: Option<Instant>,
    /// What was last said of a loss of state, while there is one.
    loss_told: Option<String>,
    /// What snapshots of the own database wrote.
    snapshot_bytes: u64,
    /// Making segments for want of room, and snapshots for whatever reason.
    troubles: Troubles,
}

/// What does not work at present.
struct Troubles {
    segments: Trouble,
    snapshots: Trouble,
    incoming: Trouble,
}

impl Default for Troubles {
    fn default() -> Self {
        Self {
            segments: Trouble::new("making a segment of the log"),
            snapshots: Trouble::new("a snapshot of the database"),
            incoming: Trouble::new("taking over another replica's database"),
        }
    }
}

impl HotCore {
    /// Binds the ports and sets up the ring; [`HotCore::run`] then serves. To be called on the thread that will run it.
    pub fn new(config: &Config, opened: Opened, stop: Arc<AtomicBool>) -> Result<Self, HotError> {
        let Opened { directory, identity, databases, start, .. } = opened;
        raise_open_files_limit();
        let ring = Ring::new(Options { entries: RING_ENTRIES, operations_max: OPERATIONS_MAX })?;
        let me = config.me();
        let doors = [(Door::Clients, listen("clients", me.client)?), (Door::Replicas, listen("replicas", me.peer)?)];
        let segment_bytes = start.log.settings().segment_bytes;
        let segments = SegmentMaker::start(directory.path().to_owned(), segment_bytes, ring.waker())
            .map_err(|source| HotError::System { doing: "cannot start the segment thread", source })?;
        let waker = ring.waker();
        let databases = Databases::start(databases, config.snapshot_mb_per_s << 20, waker)
            .map_err(|source| HotError::System { doing: "cannot start the snapshot thread", source })?;
        let schedule = Schedule::new(config, identity.cell);
        let copies = Copies::start(schedule, config.snapshot_mb_per_s << 20, ring.waker())
            .map_err(|source| HotError::System { doing: "cannot start the thread of remote copies", source })?;
        let scrub_rate = Some(config.scrub_mb_per_s << 20).filter(|rate| *rate > 0);
        let scrubber = scrub_rate.map(|rate| Scrubber::start(rate, ring.waker())).transpose();
        let scrubber =
            scrubber.map_err(|source| HotError::System { doing: "cannot start the scrubber's thread", source })?;
        let hello = Hello {
            version: HELLO_VERSION,
            cell: identity.cell,
            from: config.id,
            to: config.id,
            configuration: outlet::fingerprint(&start.recovered.configurations),
        };
        let configurations = start.recovered.configurations.clone();
        let mut world = World::new(ring, directory.path().to_owned(), databases, doors, hello, start.settings.seed);
        for member in config.members.iter().filter(|member| member.id != config.id) {
            world.add_peer(ReplicaId(member.id), member.peer);
        }
        let world_now = world.clock.now();
        let engine = Engine::new(start, world_now);
        // The log knows the members; what the flags say is at most where those of the first start are.
        world.reconfigure(&configurations);
        let (flags, is_insecure) = (config.members.clone(), config.insecure);
        Ok(Self {
            engine,
            world,
            directory,
            identity,
            segments,
            copies,
            scrub_at: scrubber.is_some().then_some(world_now),
            scrubber,
            scrubbed: 0,
            bound_views_at: None,
            stop,
            flags,
            is_insecure,
            mark_at: None,
            loss_told: None,
            snapshot_bytes: 0,
            troubles: Troubles::default(),
        })
    }

    /// Wakes the loop from another thread.
    pub fn waker(&self) -> Waker {
        self.world.ring.waker()
    }

    /// Serves until it is told to stop.
    pub fn run(&mut self) -> Result<(), HotError> {
        // The kernel rounds a thread's timeouts up by 50 us; the gather's are about as long as that.
        if let Err(error) = rustix::thread::set_current_timer_slack(NonZeroU64::new(TIMER_SLACK_NS)) {
            eprintln!("synod: cannot ask for precise timeouts: {error}");
        }
        self.world.open_doors();
        self.world.start_links();
        self.want_segment(self.world.clock.now());
        let mut completions = Vec::new();
        while !self.stop.load(Ordering::Acquire) {
            self.turn(&mut completions)?;
        }
        self.wind_down(&mut completions)
    }

    fn turn(&mut self, completions: &mut Vec<Completion<Token>>) -> Result<(), HotError> {
        let now = self.world.clock.now();
        let timeout = self.deadline().since(now);
        self.world.ring.enter(Some(timeout), completions).map_err(HotError::Enter)?;
        let now = self.world.clock.now();
        for Completion { token, outcome } in completions.drain(..) {
            self.completed(now, token, outcome)?;
        }
        if self.world.ring.take_woken() {
            self.take_finished_segment(now)?;
            self.take_finished_snapshots(now);
            self.take_news_of_copies(now);
            self.take_scrubbed(now);
        }
        self.tend_scrub(now);
        self.bound_views(now);
        if now >= self.engine.deadline() {
            self.engine.tick(now, &mut self.world);
        }
        if self.mark_at.is_some_and(|at| now >= at) {
            self.mark_at = None;
            self.engine.mark();
        }
        self.world.tick_links(now);
        self.world.reopen_doors(now);
        self.engine.end_turn(now, &mut self.world);
        while let Some((read, error)) = self.world.take_failed_read() {
            self.engine.log_read(read, Err(error), &mut self.world);
        }
        self.want_segment(now);
        self.world.databases.tend(self.engine.cell_mut().store_mut());
        if let Some((doing, source)) = self.world.failure.take() {
            return Err(HotError::DiskFailed { doing, source });
        }
        if self.engine.log().is_exhausted() {
            return Err(HotError::LogExhausted);
        }
        self.world.send_all();
        self.engine.turn_sent(self.world.clock.now());
        self.tell_of_a_loss();
        Ok(())
    }

    /// A loss of state, how it goes on, and its end are told once each (rules P11, P13).
    fn tell_of_a_loss(&mut self) {
        let rejoining = self.engine.replica().rejoining().map(|rejoining| RejoinStatus::of(&rejoining).in_words());
        if rejoining == self.loss_told {
            return;
        }
        match &rejoining {
            Some(words) => eprintln!("synod: replica {} lost state and {words}", self.identity.replica),
            None => eprintln!(
                "synod: replica {} has been told all that it may have promised: it votes again in life {}, a lease from now",
                self.identity.replica,
                self.engine.replica().incarnation().life()
            ),
        }
        self.loss_told = rejoining;
    }

    fn deadline(&self) -> Instant {
        let mut deadline = self.engine.deadline();
        let (links, doors) = (self.world.links_deadline(), self.world.doors_deadline());
        for other in [self.mark_at, self.bound_views_at, self.scrub_at, links, doors].into_iter().flatten() {
            deadline = deadline.min(other);
        }
        deadline
    }

    /// Stops cleanly: nothing new is taken, what is in the log's frames becomes durable, and a mark says that this is
    /// where the log ends.
    fn wind_down(&mut self, completions: &mut Vec<Completion<Token>>) -> Result<(), HotError> {
        let give_up = self.world.clock.now().after(STOP_TIME_MAX);
        self.world.close_doors();
        loop {
            let now = self.world.clock.now();
            self.engine.mark();
            self.engine.end_turn(now, &mut self.world);
            if let Some((doing, source)) = self.world.failure.take() {
                return Err(HotError::DiskFailed { doing, source });
            }
            self.world.send_all();
            if !self.world.is_flushing() || now >= give_up {
                return Ok(());
            }
            self.world.ring.enter(Some(give_up.since(now)), completions).map_err(HotError::Enter)?;
            let now = self.world.clock.now();
            for Completion { token, outcome } in completions.drain(..) {
                self.completed(now, token, outcome)?;
            }
        }
    }

    /// Every completion is matched to what was asked for, by its token (rule R3).
    fn completed(&mut self, now: Instant, token: Token, outcome: Outcome) -> Result<(), HotError> {
        match (token, outcome) {
            (Token::Accept(door), Outcome::Accepted(result)) => self.world.accepted(now, door, result),
            (Token::Receive(id), Outcome::Received { buffer, result }) => self.received(now, id, buffer, result),
            (Token::Send(id), Outcome::Sent { pieces, result }) => self.world.sent(id, pieces, result),
            (Token::Dial(peer, attempt), Outcome::Connected(result)) => self.world.dialed(now, peer, attempt, result),
            (Token::LinkReceive(peer, attempt), Outcome::Received { buffer, result }) => {
                self.world.link_received(now, peer, attempt, buffer, result);
            }
            (Token::LinkSend(peer, attempt), Outcome::Sent { pieces, result }) => {
                self.world.link_sent(now, peer, attempt, pieces, result);
            }
            (Token::Flush, Outcome::Flushed { buffer, result }) => {
                let file = self.world.flush_ended();
                result.map_err(|source| HotError::LogFailed { file, source })?;
                self.engine.flushed(now, buffer, &mut self.world);
                self.mark_at = Some(now.after(IDLE_BEAT));
            }
            (Token::LogRead(to), Outcome::Read { buffer, result }) => {
                let read = self.world.take_log_read(to);
                let outcome = match result {
                    Ok(length) if length == read.length => Ok(&buffer[..length]),
                    Ok(length) => {
                        Err(std::io::Error::other(format!("only {length} bytes of {} were read", read.length)))
                    }
                    Err(error) => Err(error),
                };
                self.engine.log_read(read, outcome, &mut self.world);
            }
            (token, outcome) => panic!("the ring answered {token:?} with {outcome:?}"),
        }
        Ok(())
    }

    /// Bytes came on an accepted connection.
    fn received(&mut self, now: Instant, id: ConnectionId, buffer: bytes::BytesMut, result: std::io::Result<usize>) {
        let Some(mut inbound) = self.world.connections.take_inbound(id, buffer, &result) else {
            // Gone, or to be gone once our last words are out: until then what comes is read and thrown away.
            self.world.receive_again(id);
            return;
        };
        let outcome = match self.world.connections.role(id) {
            ConnectionRole::Client => {
                let mut commands = 0;
                let outcome = inbound.for_each_frame(|frame| {
                    commands += u64::from(frame.kind == u8::from(FrameKind::Request));
                    self.client_frame(now, id, frame);
                });
                if commands > 0 && self.engine.stages().is_timing() {
                    self.engine.record_decode(now, self.world.clock.now(), commands);
                }
                outcome
            }
            ConnectionRole::Stranger | ConnectionRole::Peer(_) => self.peer_frames(now, id, &mut inbound),
        };
        self.world.connections.put_inbound(id, inbound);
        if let Err(error) = outcome {
            self.bad_input(id, &error.to_string());
        }
        self.world.receive_again(id);
    }

    fn client_frame(&mut self, now: Instant, id: ConnectionId, frame: FrameRef<'_>) {
        if self.world.connections.is_closing(id) {
            return;
        }
        match FrameKind::try_from(frame.kind) {
            Ok(FrameKind::Request) => {
                let caller = Caller { connection: id.to_bits(), request: frame.id.0 };
                self.engine.command(now, caller, frame.payload, &mut self.world);
            }
            Ok(FrameKind::ReadRequest) => {
                let caller = Caller { connection: id.to_bits(), request: frame.id.0 };
                self.engine.read(now, caller, frame.payload, &mut self.world);
            }
            Ok(FrameKind::StatusRequest) => {
                let status = serde_json::to_vec(&self.status()).expect("a status is valid JSON");
                self.world.append(id, FrameKind::Status.into(), frame.id, &status);
            }
            Ok(FrameKind::OperatorRequest) => {
                let answer = self.operate(now, frame.payload);
                let answer = serde_json::to_vec(&answer).expect("an answer is valid JSON");
                self.world.append(id, FrameKind::OperatorAnswer.into(), frame.id, &answer);
            }
            Ok(kind @ (FrameKind::Answer | FrameKind::Status | FrameKind::Error | FrameKind::OperatorAnswer)) => {
                self.bad_input(id, &format!("a client does not send frames of kind {kind:?}"));
            }
            Err(unknown) => self.bad_input(id, &unknown.to_string()),
        }
    }

    /// Carries out an operator's wish, or says why not.
    fn operate(&mut self, now: Instant, request: &[u8]) -> OperatorAnswer {
        let request: OperatorRequest = match serde_json::from_slice(request) {
            Ok(request) => request,
            Err(error) => return OperatorAnswer::Refused { reason: format!("not a request: {error}"), retry: false },
        };
        let answer = match (&request, request.change()) {
            (OperatorRequest::AddMember { id, peer, client }, _)
                if let Some(reason) = self.refuse_addresses(*id, *peer, *client) =>
            {
                OperatorAnswer::Refused { reason, retry: false }
            }
            (_, Some(change)) => {
                let outcome = self.engine.change(now, change, &mut self.world);
                OperatorAnswer::of_change(outcome, self.engine.coordinator_address())
            }
            (OperatorRequest::Transfer { to }, None) => {
                let outcome = self.engine.transfer(now, ReplicaId(*to), &mut self.world);
                OperatorAnswer::of_transfer(outcome, self.engine.coordinator_address())
            }
            (OperatorRequest::SaveSnapshot { to }, None) => self.copy_asked(now, to.as_deref()),
            (OperatorRequest::Snapshot, None) => {
                self.engine.snapshot_now();
                OperatorAnswer::Accepted
            }
            (OperatorRequest::Scrub, None) => self.scrub_asked(now),
            (OperatorRequest::Stages { settings }, None) => {
                self.engine.stages_mut().set(*settings);
                OperatorAnswer::Accepted
            }
            // Often, and long: not told on standard error.
            (OperatorRequest::TakeTraces, None) => return self.take_traces(),
            (OperatorRequest::AddMember { .. } | OperatorRequest::RemoveMember { .. }, None) => {
                unreachable!("these are changes")
            }
        };
        eprintln!("synod: an operator asked for {request:?}: {answer:?}");
        answer
    }

    fn take_traces(&mut self) -> OperatorAnswer {
        let mut taken = self.engine.stages_mut().take(self.world.clock.start_ns());
        for trace in &mut taken.traces {
            trace.connection = self.world.connections.port(ConnectionId::from_bits(trace.connection)).into();
        }
        OperatorAnswer::Traces(taken)
    }

    /// Why a new member must not have these addresses, if this is the master's to say.
    fn refuse_addresses(&self, id: u16, peer: SocketAddr, client: SocketAddr) -> Option<String> {
        let configurations = self.engine.replica().configurations();
        let is_known = configurations.members().any(|member| member.id.0 == id);
        if is_known || self.engine.replica().role() != Role::Coordinating {
            return None;
        }
        let addresses_of = |member: &Member| -> Vec<(u16, SocketAddr)> {
            let id = member.id.0;
            let logged =
                member_addresses(&member.address).map(|(peer, client)| [peer.parse().ok(), client.parse().ok()]);
            let flags = self.flags.iter().find(|flags| flags.id == id);
            let known = logged.or_else(|| flags.map(|flags| [Some(flags.peer), Some(flags.client)]));
            known.into_iter().flatten().flatten().map(|address| (id, address)).collect()
        };
        operator::refuse_addresses(peer, client, self.is_insecure, configurations.members().flat_map(addresses_of))
    }

    /// Frames between replicas own their payload: a batch lives on in the log, the database and the recent batches.
    fn peer_frames(
        &mut self,
        now: Instant,
        id: ConnectionId,
        inbound: &mut synod_net::Inbound,
    ) -> Result<(), FrameError> {
        while let Some(frame) = inbound.next_frame()? {
            if self.world.connections.is_closing(id) {
                break;
            }
            match self.world.connections.role(id) {
                ConnectionRole::Peer(from) => match codec::decode_peer_message(frame.kind, frame.payload) {
                    Ok(PeerMessage::Protocol(message)) if message.acting().is_some_and(|acting| acting != from) => {
                        self.bad_input(id, &format!("replica {from} acts under another replica's ballot"));
                    }
                    Ok(PeerMessage::Protocol(message)) => self.engine.message(now, from, message, &mut self.world),
                    Ok(PeerMessage::Room(message)) => {
                        self.engine.room_message(now, from, message, &mut self.world);
                    }
                    Ok(PeerMessage::Snapshot(message)) => {
                        self.engine.snapshot_message(now, from, message, &mut self.world);
                    }
                    Err(error) => self.bad_input(id, &error.to_string()),
                },
                ConnectionRole::Stranger if frame.kind == introduction::KIND_ASK => {
                    self.introduce(id, &frame.payload, false);
                }
                ConnectionRole::Stranger if frame.kind == introduction::KIND_JOIN => {
                    self.introduce(id, &frame.payload, true);
                }
                ConnectionRole::Stranger if frame.kind == introduction::KIND_RECALL => self.recall(id, &frame.payload),
                ConnectionRole::Stranger => {
                    self.greet(id, FrameRef { kind: frame.kind, id: frame.id, payload: &frame.payload });
                    if inbound.held_bytes() > 0 {
                        // A replica waits for our answer before it goes on.
                        self.bad_input(id, "bytes before the greeting was answered");
                    } else {
                        *inbound = World::peer_inbound();
                    }
                }
                ConnectionRole::Client => unreachable!("a client does not become a replica"),
            }
        }
        Ok(())
    }

    /// The first words of another replica (or of somebody who is lost).
    fn greet(&mut self, id: ConnectionId, frame: FrameRef<'_>) {
        let (members, configuration) = self.world.members();
        let local = Local { cell: self.identity.cell, me: self.identity.replica, members, configuration };
        let outcome = Hello::decode(frame).and_then(|hello| hello.check(local));
        let answer = HelloAnswer::of(&outcome).encode();
        self.world.append_raw(id, &answer);
        match outcome {
            Ok(greeted) => self.world.connections.greeted(id, ReplicaId(greeted.from)),
            Err(refusal) => {
                let what = if frame.kind == KIND_HELLO { "a hello" } else { "a stranger" };
                eprintln!("synod: refused {what} on the replicas' port: {refusal}");
                self.world.refused_hellos += 1;
                self.world.connections.close_when_sent(id);
            }
        }
    }

    /// A member of this new cell asks for the cell's id. Each is told once, and the note is durable first: the one
    /// place where the hot core waits for a file, a few times in the life of a cell.
    fn introduce(&mut self, id: ConnectionId, question: &[u8], joins: bool) {
        let Some((asking, words)) = question.split_first_chunk() else {
            return self.bad_input(id, "the question is not a replica's id");
        };
        let asking = u16::from_le_bytes(*asking);
        let outcome = if joins { self.may_join(asking) } else { self.may_begin(asking, words) };
        match outcome.and_then(|()| self.note_introduction(asking, joins)) {
            Ok(()) => {
                let mut told = self.identity.cell.to_le_bytes().to_vec();
                self.engine.replica().configurations().current.encode(&mut told);
                self.world.append(id, introduction::KIND_TELL, FrameId(0), &told);
            }
            Err(NotIntroduced::Yet(reason)) => {
                self.world.append(id, introduction::KIND_LATER, FrameId(0), reason.as_bytes());
            }
            Err(NotIntroduced::Ever(reason)) => {
                eprintln!("synod: refused to introduce a replica: {reason}");
                self.world.append(id, introduction::KIND_REFUSE, FrameId(0), reason.as_bytes());
            }
        }
        self.world.connections.close_when_sent(id);
    }

    /// A replica with an empty directory asks whether its cell knows it: then it lost its state, and rejoins (P11, P12). Being told
    /// so lets nobody vote, so it is told as often as it asks.
    fn recall(&mut self, id: ConnectionId, question: &[u8]) {
        let Some((asking, _)) = question.split_first_chunk() else {
            return self.bad_input(id, "the question is not a replica's id");
        };
        let asking = u16::from_le_bytes(*asking);
        let configurations = self.engine.replica().configurations();
        let mut members = configurations.members();
        if members.any(|member| member.id.0 == asking && member.voter) && asking != self.identity.replica {
            let mut told = self.identity.cell.to_le_bytes().to_vec();
            configurations.current.encode(&mut told);
            self.world.append(id, introduction::KIND_TELL, FrameId(0), &told);
        } else {
            let reason = format!("replica {asking} is no voting member of this cell");
            self.world.append(id, introduction::KIND_REFUSE, FrameId(0), reason.as_bytes());
        }
        self.world.connections.close_when_sent(id);
    }

    /// Whether this replica may be told the id as a new member of a cell that runs: it is a learner, which has promised
    /// nothing yet.
    fn may_join(&self, asking: u16) -> Result<(), NotIntroduced> {
        match self.engine.replica().configurations().members().find(|member| member.id.0 == asking) {
            Some(member) if !member.voter => Ok(()),
            Some(_) => Err(NotIntroduced::Ever(format!(
                "replica {asking} is a voting member of this cell already, so its state is lost: it may have forgotten \
                 what it promised. Start it without --join, and it rejoins"
            ))),
            None => Err(NotIntroduced::Yet(format!("replica {asking} is no member of this cell yet"))),
        }
    }

    /// Whether this replica may be told the id as a member of the first start: we made the id, the members are still those,
    /// and its flags make the same configuration as ours.
    fn may_begin(&self, asking: u16, configuration: &[u8]) -> Result<(), NotIntroduced> {
        let Configurations { current, since, pending } = self.engine.replica().configurations();
        let makes_the_id = current.members().iter().all(|member| member.id.0 >= self.identity.replica);
        let never = |reason| Err(NotIntroduced::Ever(reason));
        if *since > Slot(1) || pending.is_some() || !makes_the_id {
            return never(format!(
                "this cell has begun long ago: replica {asking} cannot be bootstrapped into it. If it has run before, its \
                 state is lost: start it without --bootstrap, and it rejoins"
            ));
        }
        match Configuration::decode(configuration) {
            Ok(theirs) if theirs == *current => Ok(()),
            Ok(theirs) => never(format!(
                "this cell begins with {}, replica {asking} was told of {}: members and --lease-ms have to be the same on \
                 every member's first start",
                current.in_full(),
                theirs.in_full()
            )),
            Err(error) => never(format!("replica {asking} asks with what is no configuration: {error}")),
        }
    }

    fn note_introduction(&mut self, asking: u16, joins: bool) -> Result<(), NotIntroduced> {
        let never = |reason| Err(NotIntroduced::Ever(reason));
        let (members, _) = self.world.members();
        if asking == self.identity.replica || !members.contains(&asking) {
            return never(format!("replica {asking} is not another member of this cell"));
        }
        if self.identity.introduced.contains(&asking) {
            return never(if joins {
                format!(
                    "replica {asking} has begun to join this cell before, so its state may be lost, and with it what it \
                     promised. Remove it, and add a new member under an id never used before"
                )
            } else {
                format!(
                    "replica {asking} has joined this cell before, so its state is lost: it may have forgotten what it \
                     promised, and must not be bootstrapped again. Start it without --bootstrap, and it rejoins. (If this cell has never served anything, empty all \
                     members' directories and bootstrap anew)"
                )
            });
        }
        let mut identity = self.identity.clone();
        identity.introduced.push(asking);
        // A full disk, say: whoever asks comes again.
        self.directory.write_identity(&identity).map_err(|error| NotIntroduced::Yet(chain(&error)))?;
        self.identity = identity;
        Ok(())
    }

    /// What came on this connection is not ours to understand: say so, and close it. Nothing else is affected.
    fn bad_input(&mut self, id: ConnectionId, why: &str) {
        eprintln!("synod: closing a connection: {why}");
        self.world.bad_connections += 1;
        self.world.append(id, FrameKind::Error.into(), FrameId(0), why.as_bytes());
        self.world.connections.close_when_sent(id);
    }

    fn want_segment(&mut self, now: Instant) {
        if let Some(upkeep) = self.engine.log_upkeep(now) {
            self.segments.request(upkeep);
        }
    }

    fn take_finished_segment(&mut self, now: Instant) -> Result<(), HotError> {
        let Some((upkeep, file)) = self.segments.take_finished() else { return Ok(()) };
        let file = match file {
            Ok(file) => file,
            // Nothing is broken: the log goes on with what it has, and it is tried again.
            Err(error) if synod_wal::directory::is_full(&error) => {
                self.troubles.segments.failed(now, error.to_string());
                self.engine.log_upkeep_refused(now, upkeep, error.to_string());
                return Ok(());
            }
            Err(source) => {
                return Err(HotError::DiskFailed { doing: "cannot make the next log segment".to_owned(), source });
            }
        };
        if let (Some(segment), Some(file)) = (upkeep.readies(), file) {
            self.world.keep_segment(segment, Handle::from(file));
        }
        self.engine.log_upkeep_done(upkeep);
        if self.engine.disk_full().is_none() {
            self.troubles.segments.worked(now);
        }
        Ok(())
    }

    fn take_finished_snapshots(&mut self, now: Instant) {
        while let Some(done) = self.world.databases.take_done() {
            match done {
                Done::Kept(outcome) => {
                    self.snapshot_bytes += outcome.as_ref().map_or(0, |durable| durable.bytes);
                    let kept = tell_store(now, self.engine.cell_mut(), outcome, &mut self.troubles.snapshots);
                    self.engine.snapshot_kept(now, kept);
                }
                Done::Made(outcome) => {
                    let made = outcome.map_err(|error| self.troubles.incoming.failed(now, chain(&error)));
                    self.engine.database_made(now, made.ok(), &mut self.world);
                }
                Done::Imported(imported) => self.engine.imported(now, imported, &mut self.world),
                Done::IncomingKept(outcome) => {
                    let cell = self.engine.incoming_cell().expect("it is being kept");
                    let kept = tell_store(now, cell, outcome, &mut self.troubles.incoming);
                    self.engine.incoming_kept(now, kept, &mut self.world);
                }
            }
        }
    }

    fn members(&self) -> Vec<MemberStatus> {
        let configurations = self.engine.replica().configurations();
        let alive = self.engine.replica().alive(self.world.clock.now());
        let latest = configurations.pending.as_ref().map_or(&configurations.current, |(_, pending)| pending);
        let of = |member: &Member| MemberStatus {
            replica: member.id.0,
            votes: configurations.current.voters().contains(member.id),
            will_vote: member.voter,
            address: member.address.clone(),
            is_alive: alive.map(|alive| alive.contains(member.id)),
        };
        latest.members().iter().map(of).collect()
    }

    fn status(&self) -> Status {
        let replica = self.engine.replica();
        let (role, coordinator) = match replica.role() {
            Role::Following(coordinator) => ("following", coordinator.map(|id| id.0)),
            Role::Campaigning => ("campaigning", None),
            Role::Coordinating => ("coordinating", Some(self.identity.replica)),
        };
        let now = self.world.clock.now();
        let cell = self.engine.cell_status();
        let log = self.engine.log();
        Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cell: format!("{:032x}", self.identity.cell),
            replica: self.identity.replica,
            role: role.to_owned(),
            coordinator,
            is_master: replica.holds_lease(self.world.clock.now()),
            epoch: self.engine.epoch().0,
            voting: match replica.voting_status() {
                VotingStatus::Waiting => "waiting",
                VotingStatus::Voting => "voting",
                VotingStatus::Learning => "learning",
                VotingStatus::Outside => "outside",
                VotingStatus::Rejoining => "rejoining",
            }
            .to_owned(),
            life: replica.incarnation().life(),
            rejoining: replica.rejoining().map(|rejoining| RejoinStatus::of(&rejoining)),
            tolerance: replica.tolerance(self.world.clock.now()),
            members: self.members(),
            promised: replica.promised().to_string(),
            chosen: replica.chosen().0,
            open_slots: replica.open_slots(),
            catching_up: replica.is_fetching(),
            digests: self.engine.digest_status(),
            scrub: self.scrubber.as_ref().map(Scrubber::status).unwrap_or_default(),
            uptime_s: self.world.clock.now().0 / 1_000_000_000,
            database: DatabaseStatus {
                revision: cell.map_or(0, |cell| cell.revision.0),
                rows: cell.map_or(0, |cell| cell.rows),
                bytes: cell.map_or(0, |cell| cell.bytes),
                sessions: cell.map_or(0, |cell| cell.sessions),
                snapshot: self.engine.snapshot().0.map_or(0, |slot| slot.0),
                snapshot_under_way: self.engine.snapshot().1,
                snapshot_trouble: self.troubles.snapshots.status(now),
                incoming_trouble: self.troubles.incoming.status(now),
                remote_copy: self.copies.status(),
                remote_schedule: self.copies.schedule_status(),
            },
            log: LogStatus {
                appended: log.appended().0,
                durable: log.durable().0,
                unflushed_bytes: log.unflushed_bytes(),
                cut: replica.cut().0,
                segments: log.segment_counts().0,
                full: self.engine.refuses_writes(),
                disk_full: self.troubles.segments.status(now),
                flush_under_way_ms: self.engine.flush_under_way(now).as_millis() as u64,
                damage: DamageStatus::of(&self.engine),
            },
            peers: self.world.peer_statuses().collect(),
            clients: self.world.connections.clients(),
            counters: CountersStatus {
                engine: self.engine.counters(),
                kernel_entries: self.world.ring.enters(),
                bad_connections: self.world.bad_connections,
                refused_hellos: self.world.refused_hellos,
                snapshot_bytes: self.snapshot_bytes,
            },
            protocol: {
                let taken = replica.counts().rows().filter(|(_, count)| *count > 0);
                taken.map(|(row, count)| (row.to_string(), count)).collect()
            },
            stages: self.engine.stages().figures(),
        }
    }
}

/// Tells a database what became of its snapshot, and says whether it is kept.
fn tell_store(now: Instant, cell: &mut Cell, outcome: Result<Durable, SnapshotError>, trouble: &mut Trouble) -> bool {
    match outcome {
        Ok(durable) => {
            cell.store_mut().snapshot_done(durable);
            trouble.worked(now);
            true
        }
        Err(error) => {
            trouble.failed(now, chain(&error));
            cell.store_mut().snapshot_failed();
            false
        }
    }
}

/// Why a replica is not told the cell's id.
enum NotIntroduced {
    /// It may be a moment later.
    Yet(String),
    /// It must not be.
    Ever(String),
}

/// As many open files as we may have: a connection each. What is refused here shows when a connection is.
fn raise_open_files_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        eprintln!("synod: cannot raise the limit of open files: {error}");
    }
}

fn listen(door: &'static str, address: SocketAddr) -> Result<TcpListener, HotError> {
    // The standard library sets SO_REUSEADDR, so connections that linger do no harm. But the kernel takes a ring down after
    // its process has been reaped, and until then a killed replica's accept keeps the port.
    let give_up = std::time::Instant::now() + LISTEN_TIME_MAX;
    loop {
        match TcpListener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && std::time::Instant::now() < give_up => {
                std::thread::sleep(LISTEN_RETRY);
            }
            outcome => return outcome.map_err(|source| HotError::Listen { door, address, source }),
        }
    }
}
