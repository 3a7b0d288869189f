//! A small safe face over io_uring: files, sockets, timeouts, wake-ups.

mod aligned;

pub use aligned::{AlignedBuffer, BLOCK_BYTES};
