//! The names of what the hot core asks of the ring (rule R3).

use synod_net::Attempt;
use synod_paxos::ReplicaId;

use super::connections::{ConnectionId, Door};

/// What the hot core calls its operations on the ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Token {
    Accept(Door),
    Receive(ConnectionId),
    Send(ConnectionId),
    Dial(ReplicaId, Attempt),
    LinkReceive(ReplicaId, Attempt),
    LinkSend(ReplicaId, Attempt),
    Flush,
    LogRead(ReplicaId),
}
