//! The accepted connections: clients, and replicas that dialed us.
//!
//! Each has one receive and at most one send in flight. A connection that is to go is shut down first; its place is
//! used again only when the kernel has given both back (rule R1).

use bytes::BytesMut;
use synod_net::connection::InboundSizes;
use synod_net::{Inbound, Outbound};
use synod_paxos::ReplicaId;
use synod_ring::Handle;

/// How many connections there may be at once; one more is told so and closed.
pub(crate) const CONNECTIONS_MAX: usize = 4096;
/// Of these, so many are never given to clients.
const REPLICAS_RESERVE: usize = 64;
/// What may wait for one client to read it. A client that is slower than this is closed, and finds out by asking again.
const CLIENT_QUEUE_BYTES_MAX: usize = 32 << 20;
/// On a connection that another replica dialed only greetings are answered.
const REPLICA_QUEUE_BYTES_MAX: usize = 64 << 10;

/// Where a connection came in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Door {
    Clients,
    Replicas,
}

/// Who is on the other side.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Role {
    Client,
    /// Came in by the replicas' door and has not greeted.
    Stranger,
    Peer(ReplicaId),
}

/// A place in the table, and which of its successive connections is meant.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ConnectionId {
    index: u32,
    generation: u32,
}

impl ConnectionId {
    pub(crate) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(crate) fn from_bits(bits: u64) -> Self {
        Self { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Open,
    /// To be closed once what is queued was sent.
    ClosingWhenSent,
    /// Shut down; the kernel still has a buffer.
    Closing,
}

struct Connection {
    handle: Handle,
    role: Role,
    phase: Phase,
    /// Away while its frames are being looked at.
    inbound: Option<Inbound>,
    receiving: bool,
    outbound: Outbound,
    /// Whether it is in the list of those that have something to send.
    listed: bool,
}

#[derive(Default)]
struct Place {
    generation: u32,
    connection: Option<Connection>,
}

/// All accepted connections.
#[derive(Default)]
pub(crate) struct Connections {
    places: Vec<Place>,
    free: Vec<u32>,
    /// Those with something to send this turn.
    listed: Vec<ConnectionId>,
    clients: usize,
}

impl Connections {
    /// Takes a new connection in, or gives it back when the table is full.
    pub(crate) fn insert(&mut self, door: Door, handle: Handle, sizes: InboundSizes) -> Result<ConnectionId, Handle> {
        // Clients, however many, never keep another replica out.
        if door == Door::Clients && self.clients >= CONNECTIONS_MAX - REPLICAS_RESERVE {
            return Err(handle);
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.places.len() < CONNECTIONS_MAX => {
                self.places.push(Place::default());
                (self.places.len() - 1) as u32
            }
            None => return Err(handle),
        };
        let (role, queue_bytes_max) = match door {
            Door::Clients => (Role::Client, CLIENT_QUEUE_BYTES_MAX),
            Door::Replicas => (Role::Stranger, REPLICA_QUEUE_BYTES_MAX),
        };
        self.clients += usize::from(role == Role::Client);
        let place = &mut self.places[index as usize];
        place.connection = Some(Connection {
            handle,
            role,
            phase: Phase::Open,
            inbound: Some(Inbound::new(sizes)),
            receiving: false,
            outbound: Outbound::new(queue_bytes_max),
            listed: false,
        });
        Ok(ConnectionId { index, generation: place.generation })
    }

    /// The port at the other end; 0 if the connection is gone.
    pub(crate) fn port(&mut self, id: ConnectionId) -> u16 {
        let handle = self.get(id).map(|connection| &connection.handle);
        let address = handle.and_then(|handle| socket2::SockRef::from(handle).peer_addr().ok());
        address.and_then(|address| address.as_socket()).map_or(0, |address| address.port())
    }

    fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let place = self.places.get_mut(id.index as usize)?;
        if place.generation != id.generation {
            return None;
        }
        place.connection.as_mut()
    }

    /// One that must be there: the kernel still holds something of it.
    fn expect(&mut self, id: ConnectionId) -> &mut Connection {
        self.get(id).expect("a connection stays while the kernel holds a buffer of it")
    }

    /// The socket and a buffer to receive into next, unless the connection is going.
    pub(crate) fn start_receive(&mut self, id: ConnectionId) -> Option<(Handle, BytesMut)> {
        let connection = self.get(id)?;
        if connection.phase == Phase::Closing {
            self.remove_if_idle(id);
            return None;
        }
        assert!(!connection.receiving, "one receive at a time");
        connection.receiving = true;
        let inbound = connection.inbound.as_mut().expect("no frames are being looked at");
        Some((connection.handle.clone(), inbound.buffer_for_recv()))
    }

    /// A receive has ended: the bytes so far, to be looked at; none if the connection has ended or is going.
    pub(crate) fn take_inbound(
        &mut self,
        id: ConnectionId,
        buffer: BytesMut,
        result: &std::io::Result<usize>,
    ) -> Option<Inbound> {
        let connection = self.expect(id);
        connection.receiving = false;
        let received = *result.as_ref().unwrap_or(&0);
        if received == 0 {
            self.close(id);
            return None;
        }
        let inbound = connection.inbound.as_mut().expect("no frames are being looked at");
        inbound.received(buffer, received);
        match connection.phase {
            Phase::Open => connection.inbound.take(),
            Phase::ClosingWhenSent => {
                // Read on and throw away: a socket closed with bytes unread would take our last words with it.
                connection.inbound = Some(Inbound::new(InboundSizes::client(0)));
                None
            }
            Phase::Closing => {
                self.remove_if_idle(id);
                None
            }
        }
    }

    pub(crate) fn put_inbound(&mut self, id: ConnectionId, inbound: Inbound) {
        self.expect(id).inbound = Some(inbound);
    }

    pub(crate) fn role(&mut self, id: ConnectionId) -> Role {
        self.expect(id).role
    }

    pub(crate) fn is_closing(&mut self, id: ConnectionId) -> bool {
        self.get(id).is_none_or(|connection| connection.phase != Phase::Open)
    }

    /// Queues bytes for a connection; a queue over its bound closes it. One that has gone costs nothing.
    pub(crate) fn queue(
        &mut self,
        id: ConnectionId,
        append: impl FnOnce(&mut Outbound) -> Result<(), synod_net::Full>,
    ) {
        let Some(connection) = self.get(id) else { return };
        if connection.phase != Phase::Open {
            return;
        }
        match append(&mut connection.outbound) {
            Ok(()) if !connection.listed => {
                connection.listed = true;
                self.listed.push(id);
            }
            Ok(()) => {}
            Err(full) => {
                eprintln!("synod: closing a connection: {full}");
                self.close(id);
            }
        }
    }

    /// The next connection that has something to send and no send under way.
    pub(crate) fn next_send(&mut self) -> Option<(ConnectionId, Handle, Vec<bytes::Bytes>)> {
        while let Some(id) = self.listed.pop() {
            let Some(connection) = self.get(id) else { continue };
            connection.listed = false;
            if connection.phase == Phase::Closing {
                continue;
            }
            if let Some(pieces) = connection.outbound.take() {
                return Some((id, connection.handle.clone(), pieces));
            }
        }
        None
    }

    /// A send has ended. What was queued meanwhile goes next.
    pub(crate) fn sent(&mut self, id: ConnectionId, pieces: Vec<bytes::Bytes>, result: std::io::Result<usize>) {
        let connection = self.expect(id);
        match result {
            Ok(bytes) => {
                connection.outbound.sent(pieces, bytes);
                let done = connection.outbound.queued_bytes() == 0;
                match connection.phase {
                    Phase::Closing => self.remove_if_idle(id),
                    Phase::ClosingWhenSent if done => self.close(id),
                    Phase::Open | Phase::ClosingWhenSent if !done && !connection.listed => {
                        connection.listed = true;
                        self.listed.push(id);
                    }
                    Phase::Open | Phase::ClosingWhenSent => {}
                }
            }
            Err(_) => {
                connection.outbound.reset();
                self.close(id);
            }
        }
    }

    pub(crate) fn greeted(&mut self, id: ConnectionId, from: ReplicaId) {
        // The other side dialed anew, so its earlier connection is dead even if our kernel has not noticed.
        let is_earlier =
            |other: &ConnectionId| *other != id && self.peek(*other).is_some_and(|c| c.role == Role::Peer(from));
        let earlier: Vec<_> = self.ids().filter(is_earlier).collect();
        self.expect(id).role = Role::Peer(from);
        for earlier in earlier {
            self.close(earlier);
        }
    }

    /// Closes the connections of other replicas than these.
    pub(crate) fn close_peers_but(&mut self, members: &[u16]) {
        let is_gone = |connection: &Connection| match connection.role {
            Role::Peer(id) => !members.contains(&id.0),
            Role::Client | Role::Stranger => false,
        };
        let gone: Vec<_> = self.ids().filter(|id| self.peek(*id).is_some_and(is_gone)).collect();
        for id in gone {
            self.close(id);
        }
    }

    /// Whether this replica has a connection from `peer`.
    pub(crate) fn has_peer(&self, peer: ReplicaId) -> bool {
        self.ids().any(|id| {
            self.peek(id)
                .is_some_and(|connection| connection.role == Role::Peer(peer) && connection.phase == Phase::Open)
        })
    }

    pub(crate) fn clients(&self) -> usize {
        self.clients
    }

    fn ids(&self) -> impl Iterator<Item = ConnectionId> {
        let id = |(index, place): (usize, &Place)| ConnectionId { index: index as u32, generation: place.generation };
        self.places.iter().enumerate().map(id)
    }

    fn peek(&self, id: ConnectionId) -> Option<&Connection> {
        self.places[id.index as usize].connection.as_ref()
    }

    /// Closes once what is queued was sent.
    pub(crate) fn close_when_sent(&mut self, id: ConnectionId) {
        let Some(connection) = self.get(id) else { return };
        if connection.phase == Phase::Open {
            connection.phase = Phase::ClosingWhenSent;
            if connection.outbound.queued_bytes() == 0 {
                self.close(id);
            }
        }
    }

    pub(crate) fn close(&mut self, id: ConnectionId) {
        let Some(connection) = self.get(id) else { return };
        connection.phase = Phase::Closing;
        // Ends what the kernel still has under way; the place is free once it has given that back.
        connection.handle.shutdown();
        self.remove_if_idle(id);
    }

    fn remove_if_idle(&mut self, id: ConnectionId) {
        let connection = self.expect(id);
        // With its inbound away, its frames are being looked at right now.
        if connection.receiving || connection.outbound.is_sending() || connection.inbound.is_none() {
            return;
        }
        self.clients -= usize::from(connection.role == Role::Client);
        let place = &mut self.places[id.index as usize];
        place.connection = None;
        place.generation = place.generation.wrapping_add(1);
        self.free.push(id.index);
    }
}
