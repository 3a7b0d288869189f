//! What comes back: one completion for each operation, with everything that was given away for it.

use std::io;

use bytes::{Bytes, BytesMut};

use crate::aligned::AlignedBuffer;
use crate::handle::Handle;

/// One finished operation. Each operation pushed gives exactly one.
#[derive(Debug)]
pub struct Completion<T> {
    /// What the caller called the operation when pushing it.
    pub token: T,
    /// How it ended.
    pub outcome: Outcome,
}

/// How an operation ended, and the memory it was given, whether it failed or not.
#[derive(Debug)]
pub enum Outcome {
    /// Of [`Ring::accept`](crate::Ring::accept): the new connection, closed on exec, in blocking mode.
    Accepted(io::Result<Handle>),
    /// Of [`Ring::connect`](crate::Ring::connect).
    Connected(io::Result<()>),
    /// Of [`Ring::recv`](crate::Ring::recv).
    Received {
        /// Longer by the bytes received; as it was given otherwise.
        buffer: BytesMut,
        /// How many bytes; 0 is the end of the stream.
        result: io::Result<usize>,
    },
    /// Of [`Ring::send`](crate::Ring::send).
    Sent {
        /// The vector that was given, emptied, for reuse.
        pieces: Vec<Bytes>,
        /// All of it (the count is the total), or an error: how much the peer got is then unknown.
        result: io::Result<usize>,
    },
    /// Of [`Ring::write_durably`](crate::Ring::write_durably).
    Flushed {
        /// The buffer that was given, unchanged.
        buffer: AlignedBuffer,
        /// `Ok` only if every byte is on stable storage.
        result: Result<(), FlushError>,
    },
    /// Of [`Ring::read`](crate::Ring::read).
    Read {
        /// Holds what was read at its start; the rest is as it was.
        buffer: AlignedBuffer,
        /// How many bytes; fewer than asked for at the end of the file.
        result: io::Result<usize>,
    },
}

/// Why a durable write is not known to be durable. Never to be retried on the same blocks (rule L2): after a failed
/// flush the kernel may believe pages clean that never reached the disk.
#[derive(Debug, thiserror::Error)]
pub enum FlushError {
    /// The write failed; nothing was synced.
    #[error("writing {length} bytes at {offset}")]
    Write {
        /// How much was to be written.
        length: usize,
        /// Where in the file.
        offset: u64,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Only a part was written, and nothing was synced: a short write breaks the link.
    #[error("only {written} of {length} bytes at {offset} were written")]
    Short {
        /// How much was written.
        written: usize,
        /// How much was to be written.
        length: usize,
        /// Where in the file.
        offset: u64,
    },
    /// All was written, but the sync failed: what the disk holds is unknown.
    #[error("syncing {length} bytes written at {offset}")]
    Sync {
        /// How much was written.
        length: usize,
        /// Where in the file.
        offset: u64,
        /// The kernel's answer.
        source: io::Error,
    },
}
