//! What a replica says of itself: the JSON behind `synod status` and the client protocol's status frame.

use serde::{Deserialize, Serialize};

use crate::engine::Counters;
use crate::stages::StageFigures;

/// One replica's own view, at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// The build's version.
    pub version: String,
    /// The cell's id, in hex.
    pub cell: String,
    /// Which member this is.
    pub replica: u16,
    /// "following", "campaigning" or "coordinating".
    pub role: String,
    /// Who coordinates, as far as this replica knows.
    pub coordinator: Option<u16>,
    /// The highest ballot promised, as round.replica.
    pub promised: String,
    /// All slots up to here are chosen and applied.
    pub chosen: u64,
    /// Slots proposed here and not yet chosen.
    pub open_slots: usize,
    /// Whether chosen slots are being fetched from another replica.
    pub catching_up: bool,
    /// Seconds since the start.
    pub uptime_s: u64,
    /// The database.
    pub database: DatabaseStatus,
    /// The log.
    pub log: LogStatus,
    /// The other members, as seen from here.
    pub peers: Vec<PeerStatus>,
    /// Connections of clients.
    pub clients: usize,
    /// What was counted since the start.
    pub counters: CountersStatus,
    /// Where the time of this replica's own batches went.
    pub stages: Vec<StageFigures>,
}

/// The database's size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DatabaseStatus {
    /// Its revision: one more for each command that changed it.
    pub revision: u64,
    /// Rows, the sessions' own included.
    pub rows: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// Open sessions.
    pub sessions: u64,
}

/// The log's size.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LogStatus {
    /// Records appended since the start.
    pub appended: u64,
    /// Of these, durable.
    pub durable: u64,
    /// Bytes that wait for the disk.
    pub unflushed_bytes: u64,
    /// The log is at its bound: writes are refused.
    pub full: bool,
}

/// Another member, as seen from here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PeerStatus {
    /// Its id.
    pub replica: u16,
    /// Where it is dialed.
    pub address: String,
    /// Whether this replica can send to it.
    pub connected: bool,
    /// Whether it has a connection to this replica.
    pub heard: bool,
    /// Why the last dial failed, if it did.
    pub last_failure: Option<String>,
    /// Messages dropped because it was away or too slow.
    pub dropped: u64,
}

/// Numbers that only grow.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CountersStatus {
    /// What the engine counts.
    #[serde(flatten)]
    pub engine: Counters,
    /// Entries to the kernel by the hot core.
    pub kernel_entries: u64,
    /// Connections closed because of what they sent.
    pub bad_connections: u64,
}
