//! The runtime of a replica: the only place where time, files, sockets and threads meet.
//!
//! | module | what it is |
//! |---|---|
//! | [`engine`] | one whole replica without the world: what the hot core and the simulator both drive |
//! | [`hot`] | the hot core: one thread, one ring, one kernel entry a turn |
//! | [`codec`] | where protocol messages and records become bytes |
//! | [`start`] | from a directory to a replica that is ready to run |
//! | [`directory`], [`introduction`] | whose directory it is; how a new cell's members learn its id |
//! | [`config`] | flags and file, checked |
//! | [`databases`], [`remote`] | the database's files; copies of snapshots in another place |
//! | [`segments`] | the thread that makes log segments ahead of need |
//! | [`stages`], [`status`] | where the time goes; what a replica says of itself |
//! | [`cli`] | the flags of `serve`, shared by every binary that runs replicas |
//! | [`serve`] | a replica as a process: signals, exit statuses |
//! | [`local_cell`] | several such processes on one machine |

pub mod cli;
pub mod codec;
pub mod config;
pub mod databases;
pub mod directory;
pub mod engine;
pub mod hot;
pub mod introduction;
pub mod local_cell;
pub mod operator;
pub mod quarantine;
pub mod remote;
pub mod scrub;
pub mod segments;
pub mod serve;
pub mod stages;
pub mod start;
pub mod status;
pub mod trouble;
