//! A small safe face over io_uring: files, sockets, timeouts, wake-ups, for one thread that does everything in one loop.
//!
//! # How a hot loop uses it
//!
//! One [`Ring`] a thread, one [`Ring::enter`] a turn. Everything pushed since the last turn is submitted by that same
//! system call, which also waits; then all that completed is handed out at once, so that batching falls out of the
//! loop's own pace. Nothing spins and nothing else in the loop enters the kernel (rule R2), but for [`Ring::nudge`] in a
//! turn that takes long: it never waits.
//!
//! ```
//! use std::io::Write;
//! use std::time::Duration;
//! use synod_ring::{Completion, Handle, Options, Outcome, Ring};
//!
//! /// The loop's own name for what it asked: comes back, typed, with the completion (rule R3).
//! enum Token {
//!     Peer(usize),
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let (mut other, socket) = std::os::unix::net::UnixStream::pair()?;
//! let mut ring = Ring::new(Options::default())?;
//! let peers = [Handle::from(socket)];
//! ring.recv(Token::Peer(0), &peers[0], bytes::BytesMut::with_capacity(64 << 10));
//! other.write_all(b"accept")?;
//!
//! let mut completions: Vec<Completion<Token>> = Vec::new();
//! 'turns: loop {
//!     let deadline = Duration::from_millis(100); // the nearest timer of the machines
//!     ring.enter(Some(deadline), &mut completions)?;
//!     for Completion { token: Token::Peer(peer), outcome } in completions.drain(..) {
//!         let Outcome::Received { mut buffer, result } = outcome else { unreachable!("only receives were asked for") };
//!         if result? == 0 {
//!             break 'turns; // end of stream
//!         }
//!         let message = buffer.split().freeze(); // decoded, stepped, answered with `send` in this same turn
//!         # assert_eq!(&message[..], b"accept");
//!         buffer.reserve(64 << 10); // reuses the memory once nobody holds a piece of it
//!         ring.recv(Token::Peer(peer), &peers[peer], buffer);
//!         # drop(message);
//!         # break 'turns;
//!     }
//! }
//! # Ok(())
//! # }
//! ```
//!
//! Rules of thumb, each measured on the development machine: one `send` per connection and turn, with all its pieces;
//! one `write_durably` for all records of the turn; no deadline shorter than the machines need.
//!
//! # The invariants that the unsafe code leans on
//!
//!   - What the kernel may read or write (a buffer, an iovec, a socket address) lives on the heap, behind a slot of the
//!     ring, from the moment its entry is pushed until its completion is reaped (rule R1). Slots may move; what they
//!     own does not. Nobody outside can reach it meanwhile: the caller has given it away.
//!   - A ring that is dropped cancels what is in flight and awaits every completion. If the kernel does not give one
//!     back in time, all that memory is leaked: a leak is sound, memory that the kernel still writes is not.
//!   - The ring holds its own clone of each [`Handle`] in use, so that a descriptor's number is not reused under it.
//!   - `user_data` names a slot and its generation: a completion that fits no operation in flight stops the process.
//!   - A flush whose two halves were parted (rule L2) stops the process before anyone can believe it.

mod aligned;
mod handle;
mod outcome;
mod ring;
mod setup;
mod slots;
mod waker;

pub use aligned::{AlignedBuffer, BLOCK_BYTES};
pub use handle::Handle;
pub use outcome::{Completion, FlushError, Outcome};
pub use ring::Ring;
pub use setup::{BlockedBy, OPERATIONS_MAX, Options, SetupError};
pub use waker::Waker;
