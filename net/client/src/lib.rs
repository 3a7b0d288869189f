//! The client library: finds the master, retries what is safe, says what is unknown.
//!
//! | module | what it is |
//! |---|---|
//! | `client` | [`Client`]: blocking, over a TCP connection, for programs |
//! | `core` | [`ClientCore`]: the same without the sockets and the clock, for who has its own (a benchmark) |
//! | `requests` | what was asked and not answered yet; the session (rule P10) |
//! | `endpoints` | where the cell may be reached, and how that went |
//! | `error` | [`Error`]: what did not happen, and what nobody knows |
//!
//! **Outcomes.** A call ends in one of three ways, and every caller should treat them as three. It succeeded: it
//! happened, once. [`Error::DidNotHappen`]: it did not and will not. [`Error::Unknown`]: an attempt reached the wire,
//! and nobody said what became of it; it may have happened or may happen yet. Writes are retried within their deadline
//! under the same session and sequence, which the cell answers from its records if an earlier attempt was done.
//!
//! **Order.** Requests of one client that are in flight together may be done in any order. Who needs an order waits for
//! the first answer before asking the second.

mod client;
mod core;
mod endpoints;
mod error;
mod requests;

pub use client::{Client, Created, Seen, Swap, Ticket, Value, fetch_status, operate};
pub use core::{Action, ClientCore, CoreCounts, Options};
pub use error::{Cause, Error, Failure, Outcome, SubmitError};
pub use requests::RequestId;
pub use synod_net::{Attempt, Moment};
