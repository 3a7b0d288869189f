//! Table 1 of Paxos Made Live, load, and what to hold them against: the physical floor, and the peers.
//!
//! One module for each subcommand of `synod-bench`; each has its options, a `run` that measures and gives back numbers,
//! and a `print`. Nothing but `run` is needed to put one measurement beside another.

pub mod fill;
pub mod floor;
pub mod instructions;
pub mod load;
pub mod measure;
pub mod path;
pub mod peers;
pub mod plot;
pub mod probe;
pub mod profile;
mod progress;
pub mod snapshots;
pub mod table1;
pub mod wal;
pub mod workload;
