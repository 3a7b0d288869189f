//! The checksummed O_DIRECT write-ahead log: segments, frames, records, recovery.
