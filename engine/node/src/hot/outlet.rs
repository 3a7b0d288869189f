//! What the engine's wishes become: operations on the ring.

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use synod_api::{FrameKind, limits};
use synod_cell::Cell;
use synod_net::connection::InboundSizes;
use synod_net::{Attempt, FrameId, FrameLimits, Hello, Inbound, SharedFrame};
use synod_paxos::{Ballot, Configuration, Configurations, Instant, Message, ReplicaId, Slot, SnapshotHandle};
use synod_ring::{Handle, Ring};
use synod_wal::{SegmentId, directory};

use super::connections::{ConnectionId, Connections, Door};
use super::peers::Peer;
use super::token::Token;
use crate::codec;
use crate::databases::Databases;
use crate::engine::{Caller, Evidence, Import, LogRead, Outlet, member_addresses};
use crate::quarantine;
use crate::status::PeerStatus;

/// How long a frame from a client, and from another replica, may be.
const CLIENT_SIZES: InboundSizes = InboundSizes::client(limits::COMMAND_BYTES_MAX as u32);
/// A stranger on the replicas' port may say hello, and no more.
const STRANGER_SIZES: InboundSizes =
    InboundSizes { start_bytes: 1 << 10, keep_bytes: 1 << 10, limits: FrameLimits { payload_bytes_max: 256 } };
const PEER_SIZES: InboundSizes =
    InboundSizes::peer(codec::peer_payload_bytes_max(Configuration::HORIZON_DEFAULT, limits::BATCH_BYTES_MAX) as u32);

/// A door that could not let somebody in stays shut for so long.
const DOOR_PAUSE: Duration = Duration::from_millis(100);

/// After so long without a word the kernel asks whether the other side is still there.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Nanoseconds since the process started, on the clock that counts suspension too: a lease must not outlive a sleep of the
/// machine (rule P8). A hypervisor that stops this clock is outside what leases can stand.
pub(crate) struct Clock {
    start: Duration,
}

impl Clock {
    fn start() -> Self {
        Self { start: boot_time() }
    }

    /// When the process started, in nanoseconds since the machine's boot.
    pub(crate) fn start_ns(&self) -> u64 {
        u64::try_from(self.start.as_nanos()).expect("the machine runs for less than 584 years")
    }

    pub(crate) fn now(&self) -> Instant {
        let elapsed = boot_time().saturating_sub(self.start);
        Instant(u64::try_from(elapsed.as_nanos()).expect("the process runs for less than 584 years"))
    }
}

fn boot_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::try_from(time).expect("the time since boot is not negative")
}

/// Everything outside the engine.
pub(crate) struct World {
    pub(crate) ring: Ring<Token>,
    pub(crate) clock: Clock,
    pub(crate) connections: Connections,
    pub(crate) bad_connections: u64,
    pub(crate) refused_hellos: u64,
    /// What ends the process: set where there is nobody to return it to.
    pub(crate) failure: Option<(String, std::io::Error)>,
    dir: PathBuf,
    /// Who we say we are, to whom we dial; `to` is filled in for each.
    hello: Hello,
    /// Whom we know: members of the current and of a pending configuration, learners included.
    members: Vec<u16>,
    seed: u64,
    doors: Vec<(Door, Handle)>,
    /// Doors that failed to let somebody in, and when they are opened again.
    shut_doors: Vec<(Door, Instant)>,
    peers: Vec<Peer>,
    /// The log's segment in use and those ready for use.
    segments: BTreeMap<SegmentId, Handle>,
    pub(crate) databases: Databases,
    /// Which segment a flush is on its way to.
    flushing: Option<SegmentId>,
    log_reads: BTreeMap<ReplicaId, LogRead>,
    /// Reads that could not even begin.
    failed_reads: Vec<(LogRead, std::io::Error)>,
    /// The last accept, encoded: the same goes to every peer.
    last_accept: Option<((Ballot, Slot), SharedFrame)>,
}

impl World {
    pub(crate) fn new(
        ring: Ring<Token>,
        dir: PathBuf,
        databases: Databases,
        doors: [(Door, TcpListener); 2],
        hello: Hello,
        seed: u64,
    ) -> Self {
        Self {
            ring,
            hello,
            members: Vec::new(),
            seed,
            clock: Clock::start(),
            connections: Connections::default(),
            bad_connections: 0,
            refused_hellos: 0,
            failure: None,
            dir,
            doors: doors.into_iter().map(|(door, listener)| (door, Handle::from(listener))).collect(),
            shut_doors: Vec::new(),
            peers: Vec::new(),
            segments: BTreeMap::new(),
            databases,
            flushing: None,
            log_reads: BTreeMap::new(),
            failed_reads: Vec::new(),
            last_accept: None,
        }
    }

    // Connections.

    pub(crate) fn open_doors(&mut self) {
        for (door, listener) in &self.doors {
            self.ring.accept(Token::Accept(*door), listener);
        }
    }

    pub(crate) fn doors_deadline(&self) -> Option<Instant> {
        self.shut_doors.iter().map(|(_, until)| *until).min()
    }

    pub(crate) fn reopen_doors(&mut self, now: Instant) {
        while let Some(at) = self.shut_doors.iter().position(|(_, until)| now >= *until) {
            let (door, _) = self.shut_doors.swap_remove(at);
            if let Some((_, listener)) = self.doors.iter().find(|(own, _)| *own == door) {
                self.ring.accept(Token::Accept(door), listener);
            }
        }
    }

    pub(crate) fn close_doors(&mut self) {
        for (_, listener) in self.doors.drain(..) {
            listener.shutdown();
        }
    }

    pub(crate) fn accepted(&mut self, now: Instant, door: Door, result: std::io::Result<Handle>) {
        let Some((_, listener)) = self.doors.iter().find(|(own, _)| *own == door) else { return };
        let handle = match result {
            Ok(handle) => handle,
            Err(error) => {
                // Out of files, say. Asked again at once, the kernel would refuse again at once, and the loop would spin.
                eprintln!("synod: cannot accept a connection: {error}");
                self.shut_doors.push((door, now.after(DOOR_PAUSE)));
                return;
            }
        };
        self.ring.accept(Token::Accept(door), listener);
        let socket = socket2::SockRef::from(&handle);
        // A machine that vanished without a word must not hold its place for ever.
        let keepalive = socket2::TcpKeepalive::new().with_time(KEEPALIVE);
        if let Err(error) = socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_keepalive(&keepalive)) {
            // It has gone already.
            eprintln!("synod: a new connection failed at once: {error}");
            return;
        }
        let sizes = match door {
            Door::Clients => CLIENT_SIZES,
            Door::Replicas => STRANGER_SIZES,
        };
        match self.connections.insert(door, handle, sizes) {
            Ok(id) => self.receive_again(id),
            Err(handle) => {
                eprintln!("synod: refused a connection: there are {} already", super::connections::CONNECTIONS_MAX);
                handle.shutdown();
            }
        }
    }

    /// What a stranger's connection receives into once it is a replica's.
    pub(crate) fn peer_inbound() -> Inbound {
        Inbound::new(PEER_SIZES)
    }

    pub(crate) fn receive_again(&mut self, id: ConnectionId) {
        if let Some((handle, buffer)) = self.connections.start_receive(id) {
            self.ring.recv(Token::Receive(id), &handle, buffer);
        }
    }

    pub(crate) fn sent(&mut self, id: ConnectionId, pieces: Vec<Bytes>, result: std::io::Result<usize>) {
        self.connections.sent(id, pieces, result);
    }

    pub(crate) fn append(&mut self, id: ConnectionId, kind: u8, frame: FrameId, payload: &[u8]) {
        self.connections.queue(id, |outbound| outbound.append(kind, frame, &[payload]));
    }

    /// Queues a frame that is whole already.
    pub(crate) fn append_raw(&mut self, id: ConnectionId, frame: &[u8]) {
        self.connections.queue(id, |outbound| outbound.append_encoded(frame));
    }

    /// Where the log's files are.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// One send for every connection and link that has something to say.
    pub(crate) fn send_all(&mut self) {
        while let Some((id, handle, pieces)) = self.connections.next_send() {
            self.ring.send(Token::Send(id), &handle, pieces);
        }
        for peer in &mut self.peers {
            peer.send(&mut self.ring);
        }
    }

    // Links.

    /// Whom we know, and the checksum of the configurations that say so.
    pub(crate) fn members(&self) -> (&[u16], u64) {
        (&self.members, self.hello.configuration)
    }

    /// A member that is to be dialed.
    pub(crate) fn add_peer(&mut self, id: ReplicaId, address: SocketAddr) {
        let hello = Hello { to: id.0, ..self.hello };
        self.peers.push(Peer::new(id, address, hello, self.seed ^ u64::from(id.0)));
        self.members.push(id.0);
    }

    pub(crate) fn start_links(&mut self) {
        let now = self.clock.now();
        for peer in &mut self.peers {
            peer.start(now, &mut self.ring);
        }
    }

    pub(crate) fn links_deadline(&self) -> Option<Instant> {
        self.peers.iter().filter_map(Peer::deadline).min()
    }

    pub(crate) fn tick_links(&mut self, now: Instant) {
        for peer in &mut self.peers {
            if peer.deadline().is_some_and(|deadline| now >= deadline) {
                peer.tick(now, &mut self.ring);
            }
        }
    }

    pub(crate) fn dialed(&mut self, now: Instant, peer: ReplicaId, attempt: Attempt, result: std::io::Result<()>) {
        let (peer, ring) = self.peer(peer);
        peer.dialed(now, attempt, result, ring);
    }

    pub(crate) fn link_received(
        &mut self,
        now: Instant,
        peer: ReplicaId,
        attempt: Attempt,
        buffer: bytes::BytesMut,
        result: std::io::Result<usize>,
    ) {
        let (peer, ring) = self.peer(peer);
        peer.received(now, attempt, buffer, result, ring);
    }

    pub(crate) fn link_sent(
        &mut self,
        now: Instant,
        peer: ReplicaId,
        attempt: Attempt,
        pieces: Vec<Bytes>,
        result: std::io::Result<usize>,
    ) {
        let (peer, ring) = self.peer(peer);
        peer.sent(now, attempt, pieces, result, ring);
    }

    pub(crate) fn peer_statuses(&self) -> impl Iterator<Item = PeerStatus> {
        self.peers.iter().filter(|peer| !peer.is_retired()).map(|peer| peer.status(self.connections.has_peer(peer.id)))
    }

    fn peer(&mut self, id: ReplicaId) -> (&mut Peer, &mut Ring<Token>) {
        let peer = self.peers.iter_mut().find(|peer| peer.id == id).expect("who was a member once keeps its place");
        (peer, &mut self.ring)
    }

    // The log.

    pub(crate) fn keep_segment(&mut self, segment: SegmentId, file: Handle) {
        self.segments.insert(segment, file);
    }

    pub(crate) fn is_flushing(&self) -> bool {
        self.flushing.is_some()
    }

    /// The file that it went to.
    pub(crate) fn flush_ended(&mut self) -> PathBuf {
        let segment = self.flushing.take().expect("a flush ends that has begun");
        directory::segment_path(&self.dir, segment)
    }

    pub(crate) fn take_log_read(&mut self, to: ReplicaId) -> LogRead {
        self.log_reads.remove(&to).expect("one read a replica, until it ends")
    }

    pub(crate) fn take_failed_read(&mut self) -> Option<(LogRead, std::io::Error)> {
        self.failed_reads.pop()
    }

    /// Opens a segment of before this start. Metadata is in memory, so this does not wait for the disk in practice.
    fn open_segment(&self, segment: SegmentId) -> std::io::Result<Handle> {
        Ok(Handle::from(directory::open_segment(&self.dir, segment)?))
    }

    fn encode(&mut self, message: &Message) -> SharedFrame {
        let accept = match message {
            Message::Accept { ballot, slot, .. } => Some((*ballot, *slot)),
            _ => None,
        };
        if let (Some(accept), Some((last, frame))) = (accept, &self.last_accept)
            && accept == *last
        {
            return frame.clone();
        }
        let codec::EncodedMessage { kind, head, body } = codec::encode_message(message);
        let frame = SharedFrame::new(kind, FrameId(0), &head, body);
        if let Some(accept) = accept {
            self.last_accept = Some((accept, frame.clone()));
        }
        frame
    }
}

/// Explains a refused hello, and decides nothing: whether two replicas know the same members.
pub(crate) fn fingerprint(configurations: &Configurations) -> u64 {
    let mut bytes = Vec::new();
    configurations.current.encode(&mut bytes);
    if let Some((_, pending)) = &configurations.pending {
        pending.encode(&mut bytes);
    }
    u64::from(crc32c::crc32c(&bytes))
}

impl Outlet for World {
    fn now(&mut self) -> Instant {
        self.clock.now()
    }

    fn send(&mut self, to: ReplicaId, message: Message) {
        // To a member whose address nobody has told us: catch-up brings it, with the change that added the member.
        if !self.peers.iter().any(|peer| peer.id == to) {
            return;
        }
        let frame = self.encode(&message);
        // Dropped when the link is down or full; the link counts it.
        self.peer(to).0.queue(&frame);
    }

    fn answer(&mut self, caller: Caller, answer: &[u8]) {
        let id = ConnectionId::from_bits(caller.connection);
        self.append(id, FrameKind::Answer.into(), FrameId(caller.request), answer);
    }

    fn reconfigure(&mut self, configurations: &Configurations) {
        self.hello.configuration = fingerprint(configurations);
        self.members = configurations.members().map(|member| member.id.0).collect();
        for member in configurations.members() {
            let address = member_addresses(&member.address).and_then(|(peer, _)| peer.parse().ok());
            let Some(address) = address.filter(|_| member.id.0 != self.hello.from) else { continue };
            if let Some(peer) = self.peers.iter_mut().find(|peer| peer.id == member.id) {
                // What the log says counts, not what the flags say, nor where an earlier member of this number was.
                peer.moved(address);
                continue;
            }
            let now = self.clock.now();
            self.add_peer(member.id, address);
            let peer = self.peers.last_mut().expect("it was just added");
            peer.start(now, &mut self.ring);
        }
        for peer in &mut self.peers {
            peer.reconfigure(self.hello.configuration, self.members.contains(&peer.id.0));
        }
        // Who is no member any more is not listened to; dialing again, it is told so.
        self.connections.close_peers_but(&self.members);
    }

    fn send_snapshot(&mut self, to: ReplicaId, message: codec::SnapshotMessage) {
        if self.peers.iter().any(|peer| peer.id == to) {
            let codec::EncodedMessage { kind, head, body } = codec::encode_snapshot_message(&message);
            self.peer(to).0.queue(&SharedFrame::new(kind, FrameId(0), &head, body));
        }
    }

    fn send_room(&mut self, to: ReplicaId, message: codec::RoomMessage) {
        if self.peers.iter().any(|peer| peer.id == to) {
            let codec::EncodedMessage { kind, head, body } = codec::encode_room_message(&message);
            self.peer(to).0.queue(&SharedFrame::new(kind, FrameId(0), &head, body));
        }
    }

    fn keep_snapshot(&mut self, handle: &SnapshotHandle, cell: &mut Cell) {
        self.databases.keep(cell.store_mut().freeze_snapshot(&codec::encode_handle(handle)));
    }

    fn make_database(&mut self) {
        self.databases.make();
    }

    fn import(&mut self, import: Import) {
        self.databases.import(import);
    }

    fn keep_incoming(&mut self, handle: &SnapshotHandle, cell: &mut Cell) {
        self.databases.keep_incoming(cell.store_mut().freeze_snapshot(&codec::encode_handle(handle)));
    }

    /// The one rename and sync of a directory, once in a catch-up, is what this thread waits for: the replica could not go on
    /// before it is done. Gigabytes of memory are given back by another thread.
    fn replace_database(&mut self, old: Cell) {
        if let Err(error) = self.databases.place().replace() {
            self.failure = Some(("cannot put the database of another replica in place".to_owned(), error));
        }
        self.databases.retire(old);
    }

    fn drop_database(&mut self, incoming: Option<Cell>) {
        self.databases.drop_incoming(incoming);
    }

    /// A small file, once in a quarantine or twice: this thread waits for it, because what comes next must not be forgotten.
    fn note_quarantine(&mut self, evidence: &Evidence) {
        if let Err(error) = quarantine::note(&self.dir, evidence) {
            self.failure = Some(("cannot note that the database is in quarantine".to_owned(), error));
        }
    }

    fn end_quarantine(&mut self) {
        if let Err(error) = quarantine::end(&self.dir) {
            self.failure = Some(("cannot note that the quarantine is over".to_owned(), error));
        }
    }

    fn flush(&mut self, flush: synod_wal::Flush) {
        assert!(self.flushing.is_none(), "one flush at a time");
        let synod_wal::Flush { segment, offset, buffer, length } = flush;
        // Segments behind the one in use are not written any more.
        self.segments.retain(|kept, _| *kept >= segment);
        if !self.segments.contains_key(&segment) {
            match self.open_segment(segment) {
                Ok(file) => self.keep_segment(segment, file),
                Err(error) => {
                    self.failure = Some(("cannot open the log's segment".to_owned(), error));
                    return;
                }
            }
        }
        self.ring.write_durably(Token::Flush, &self.segments[&segment], offset, buffer, length);
        self.flushing = Some(segment);
    }

    fn hurry(&mut self) {
        self.send_all();
        self.ring.nudge();
    }

    fn read_log(&mut self, read: LogRead) {
        let file = match self.segments.get(&read.segment) {
            Some(file) => Ok(file.clone()),
            None => self.open_segment(read.segment),
        };
        match file {
            Ok(file) => {
                let buffer = synod_ring::AlignedBuffer::zeroed(read.length);
                self.ring.read(Token::LogRead(read.to), &file, read.offset, buffer, read.length);
                self.log_reads.insert(read.to, read);
            }
            Err(error) => self.failed_reads.push((read, error)),
        }
    }
}
