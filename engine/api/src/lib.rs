//! The words between client and cell: commands, answers, refusals, limits, and their encoding.
//!
//! A [`Command`] is encoded once, by the client; the same bytes travel to the master, the log, the peers and the state
//! machine. An [`Answer`] is encoded once, by the state machine or by whoever refuses, and travels back. Nothing
//! between the two ends needs to understand either.
//!
//! The encoding is written by hand, little-endian, and has no version of its own: the frame around it has one. Golden
//! bytes beside each type pin it. Decoding believes no length before it has compared it with the bytes that are there.
//!
//! | module | owns |
//! |---|---|
//! | `command` | what a client asks, and the at-most-once stamp it carries (rule P10) |
//! | `bounded` | reads that any replica may answer, and how new what they see must be |
//! | `answer` | what it is told, and the refusals |
//! | [`limits`] | how large, how long, how many; checked by the client and again by the cell |
//! | `frame` | the kinds of frames a client and a node exchange; the frames themselves are `synod-net`'s |
//! | `words` | the numbers that mean something, as types |
//! | `read` | taking fields off bytes that nobody vouches for |

mod answer;
mod bounded;
mod command;
mod frame;
pub mod limits;
mod mastership;
mod read;
mod words;

pub use answer::{Answer, Found, Refusal};
pub use bounded::{BoundedRead, Consistency};
pub use command::{Command, Expected, Operation};
pub use frame::{FrameKind, UnknownFrameKind};
pub use limits::{LimitError, PathFault};
pub use mastership::{Epoch, Mastership};
pub use read::DecodeError;
pub use words::{Revision, Sequence, SessionId, Version};
