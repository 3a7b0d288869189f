//! Frames, connections and peer links as state machines: bytes in, messages out, and back.
//!
//! Nothing here opens a socket, reads a clock or waits. Whoever has the socket (the ring, the simulator, the blocking
//! client, a test) hands in what arrived and what time it is, and is told what to send, when to dial and when to wake
//! up. So all of them run the code that is tested.
//!
//! | module | what it is |
//! |---|---|
//! | [`frame`] | the unit on the wire: 24 bytes of header, then opaque bytes, both checksummed |
//! | [`connection`] | one connection's bytes: what has arrived in part, what waits to leave |
//! | [`hello`] | the first words on a connection between replicas, and why they may be refused |
//! | [`link`] | the outgoing half of a pair of replicas: dial, greet, be up, back off |
//!
//! What a frame carries is its users' affair: a command's bytes are `synod-api`'s, a protocol message's the node's.
//! This crate owns the kinds from [`frame::KIND_RESERVED_MIN`] up, for the greeting.

pub mod connection;
pub mod frame;
pub mod hello;
pub mod link;
mod moment;

pub use connection::{Full, Inbound, InboundSizes, Outbound};
pub use frame::{Frame, FrameError, FrameId, FrameLimits, FrameRef, SharedFrame};
pub use hello::{Hello, HelloAnswer, Refusal};

pub use link::{Action, Attempt, LinkOptions, LinkState, PeerLink};
pub use moment::Moment;
