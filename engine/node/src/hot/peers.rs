//! The links to the other replicas, as the hot core carries them out: each replica dials every other.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use socket2::{Domain, Protocol, Socket, Type};
use synod_net::link::Queued;
use synod_net::{Action, Attempt, Hello, LinkOptions, Moment, PeerLink, SharedFrame};
use synod_paxos::{Instant, ReplicaId};
use synod_ring::{Handle, Ring};

use super::token::Token;
use crate::status::PeerStatus;

/// What the kernel buffers of a link, in bytes, if it lets us: batches should not wait for acknowledgements of TCP's.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// A machine that vanished without a word acknowledges nothing: after so long the link is given up and dialed anew.
const UNACKNOWLEDGED_TIME_MAX: Duration = Duration::from_secs(10);
/// The answer to our greeting is all that is ever received on a link.
const ANSWER_BYTES: usize = 4 << 10;

/// The link to one other replica.
pub(crate) struct Peer {
    pub(crate) id: ReplicaId,
    address: SocketAddr,
    link: PeerLink,
    socket: Option<(Attempt, Handle)>,
    /// No member any more: nothing is dialed.
    is_retired: bool,
}

fn moment(now: Instant) -> Moment {
    Moment(now.0)
}

impl Peer {
    pub(crate) fn new(id: ReplicaId, address: SocketAddr, hello: Hello, seed: u64) -> Self {
        Self { id, address, link: PeerLink::new(hello, LinkOptions::default(), seed), socket: None, is_retired: false }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.link.deadline().filter(|_| !self.is_retired).map(|moment| Instant(moment.0))
    }

    pub(crate) fn start(&mut self, now: Instant, ring: &mut Ring<Token>) {
        let action = self.link.start(moment(now));
        self.carry_out(now, action, ring);
    }

    /// The members have changed: the checksum of their configurations, and whether this one is still among them.
    pub(crate) fn reconfigure(&mut self, checksum: u64, is_member: bool) {
        self.link.set_configuration(checksum);
        self.is_retired = !is_member;
    }

    /// The log says where it is.
    pub(crate) fn moved(&mut self, address: SocketAddr) {
        if address != self.address {
            self.address = address;
            self.hang_up();
        }
    }

    pub(crate) fn is_retired(&self) -> bool {
        self.is_retired
    }

    pub(crate) fn tick(&mut self, now: Instant, ring: &mut Ring<Token>) {
        let action = self.link.tick(moment(now));
        self.carry_out(now, action, ring);
    }

    /// Queues a frame. A link that is down or full drops it: the protocol repeats what matters.
    pub(crate) fn queue(&mut self, frame: &SharedFrame) -> Queued {
        self.link.send_shared(frame)
    }

    /// One send for all that was queued this turn. Who is no member any more gets our last words first: by them it knows.
    pub(crate) fn send(&mut self, ring: &mut Ring<Token>) {
        let Some((current, socket)) = &self.socket else { return };
        if let Some((attempt, pieces)) = self.link.take() {
            assert_eq!(attempt, *current, "a link sends on the connection it has");
            ring.send(Token::LinkSend(self.id, attempt), socket, pieces);
        } else if self.is_retired && self.link.queued_bytes() == 0 {
            self.hang_up();
        }
    }

    pub(crate) fn dialed(&mut self, now: Instant, attempt: Attempt, result: io::Result<()>, ring: &mut Ring<Token>) {
        match result {
            Ok(()) => {
                let action = self.link.connected(moment(now), attempt);
                self.carry_out(now, action, ring);
                self.receive(attempt, BytesMut::with_capacity(ANSWER_BYTES), ring);
            }
            Err(error) => self.lost(now, attempt, error.to_string(), ring),
        }
    }

    pub(crate) fn received(
        &mut self,
        now: Instant,
        attempt: Attempt,
        mut buffer: BytesMut,
        result: io::Result<usize>,
        ring: &mut Ring<Token>,
    ) {
        match result {
            Ok(0) => self.lost(now, attempt, "the other side closed the connection".to_owned(), ring),
            Ok(_) => {
                let action = self.link.received(moment(now), attempt, &buffer);
                self.carry_out(now, action, ring);
                buffer.clear();
                self.receive(attempt, buffer, ring);
            }
            Err(error) => self.lost(now, attempt, error.to_string(), ring),
        }
    }

    pub(crate) fn sent(
        &mut self,
        now: Instant,
        attempt: Attempt,
        pieces: Vec<Bytes>,
        result: io::Result<usize>,
        ring: &mut Ring<Token>,
    ) {
        match result {
            Ok(bytes) => self.link.sent(attempt, pieces, bytes),
            Err(error) => self.lost(now, attempt, error.to_string(), ring),
        }
    }

    pub(crate) fn status(&self, heard: bool) -> PeerStatus {
        let counts = self.link.counts();
        PeerStatus {
            replica: self.id.0,
            address: self.address.to_string(),
            connected: self.link.is_up(),
            heard,
            last_failure: self.link.last_failure().map(str::to_owned),
            dropped: counts.dropped_down + counts.dropped_full,
        }
    }

    fn receive(&mut self, attempt: Attempt, buffer: BytesMut, ring: &mut Ring<Token>) {
        if let Some((current, socket)) = &self.socket
            && *current == attempt
        {
            ring.recv(Token::LinkReceive(self.id, attempt), socket, buffer);
        }
    }

    fn lost(&mut self, now: Instant, attempt: Attempt, why: String, ring: &mut Ring<Token>) {
        let action = self.link.lost(moment(now), attempt, why);
        self.carry_out(now, action, ring);
    }

    fn carry_out(&mut self, now: Instant, action: Action, ring: &mut Ring<Token>) {
        match action {
            Action::Nothing => {}
            Action::Dial(_) if self.is_retired => {}
            Action::Dial(attempt) => {
                self.hang_up();
                match socket(self.address) {
                    Ok(socket) => {
                        ring.connect(Token::Dial(self.id, attempt), &socket, self.address);
                        self.socket = Some((attempt, socket));
                    }
                    // The link waits before it dials again, so this ends.
                    Err(error) => self.lost(now, attempt, error.to_string(), ring),
                }
            }
            Action::Close(attempt) => {
                if self.socket.as_ref().is_some_and(|(current, _)| *current == attempt) {
                    self.hang_up();
                }
            }
        }
    }

    fn hang_up(&mut self) {
        if let Some((_, socket)) = self.socket.take() {
            socket.shutdown();
        }
    }
}

fn socket(address: SocketAddr) -> io::Result<Handle> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_TIME_MAX))?;
    // As much as the system allows; less is slower, not wrong.
    let _ = socket.set_send_buffer_size(SOCKET_BUFFER_BYTES);
    Ok(Handle::from(std::os::fd::OwnedFd::from(socket)))
}
