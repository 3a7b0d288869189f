//! What a replica says of itself: the JSON behind `synod status` and the client protocol's status frame.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use synod_paxos::Rejoining;

use crate::engine::{Counters, DigestStatus, Engine};
use crate::remote::manifest::MadeBy;
use crate::scrub::ScrubStatus;
use crate::stages::StageFigures;
use crate::trouble::TroubleStatus;

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
    /// Whether this replica holds the master's lease: it alone answers reads from what it has applied.
    pub is_master: bool,
    /// The epoch: one more with each new master, as far as this replica has applied.
    pub epoch: u64,
    /// "waiting" (just started), "voting", "learning", "outside" (no member) or "rejoining" (it lost state).
    pub voting: String,
    /// In which of its lives it is: one more after each loss of state (rule P11); 0 while it rejoins.
    pub life: u64,
    /// How far it has come, if it lost state.
    pub rejoining: Option<RejoinStatus>,
    /// How many more failures the cell survives right now, as the coordinator counts: negative when it cannot go on, none
    /// when this replica has heard from no coordinator lately.
    pub tolerance: Option<i8>,
    /// The members, as decided so far.
    pub members: Vec<MemberStatus>,
    /// The highest ballot promised, as round.replica.
    pub promised: String,
    /// All slots up to here are chosen and applied.
    pub chosen: u64,
    /// Slots proposed here and not yet chosen.
    pub open_slots: usize,
    /// Whether chosen slots are being fetched from another replica.
    pub catching_up: bool,
    /// Whether the database is equal to the others' (rule P14).
    #[serde(default)]
    pub digests: DigestStatus,
    /// The look for rot before somebody needs the page.
    #[serde(default)]
    pub scrub: ScrubStatus,
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
    /// The rows of the protocol's tables that were taken since the start, and how often: what was refused too.
    pub protocol: BTreeMap<String, u64>,
    /// Where the time of this replica's own batches went.
    pub stages: Vec<StageFigures>,
}

/// How far a replica that lost state has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RejoinStatus {
    /// The life that it means to take; 0: it asks which there have been.
    pub life: u64,
    /// Who has told it what it may have promised.
    pub answered: Vec<u16>,
    /// Who has lost its own state and cannot tell.
    pub lost: Vec<u16>,
    /// All up to here is chosen, and is learned first.
    pub upto: u64,
    /// A majority of the cell lost its state: it stops here.
    pub is_hopeless: bool,
}

impl RejoinStatus {
    /// As the protocol has it.
    pub fn of(rejoining: &Rejoining) -> Self {
        Self {
            life: rejoining.incarnation.life(),
            answered: rejoining.answered.iter().map(|id| id.0).collect(),
            lost: rejoining.lost.iter().map(|id| id.0).collect(),
            upto: rejoining.upto.0,
            is_hopeless: rejoining.is_hopeless,
        }
    }

    /// What it does, and what only a person can do.
    pub fn in_words(&self) -> String {
        let Self { life, answered, lost, is_hopeless, .. } = self;
        if *is_hopeless {
            return format!(
                "CANNOT REJOIN: replicas {lost:?} lost theirs as well, and what is left is no majority, so nobody knows what was \
                 promised. The cell stops here. How a person can go on: engine/node/docs/loss.md"
            );
        }
        match life {
            0 => format!("does not vote: it asks the others which lives it has had (answered: {answered:?})"),
            life => format!(
                "does not vote: it rejoins in life {life} (told by {answered:?}, lost theirs as well: {lost:?})"
            ),
        }
    }
}

/// A member, as the configuration says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberStatus {
    /// Its id.
    pub replica: u16,
    /// Whether it votes on the slots of now.
    pub votes: bool,
    /// Whether it votes once the last change is in force.
    pub will_vote: bool,
    /// Its peer and client address, if it was added to a running cell.
    pub address: String,
    /// Whether it takes part: it acknowledged lately. Only the coordinator knows.
    pub is_alive: Option<bool>,
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
    /// All up to this slot is in the newest snapshot; 0: there is none yet.
    pub snapshot: u64,
    /// Whether another one is being written.
    pub snapshot_under_way: bool,
    /// Since when no snapshot could be kept, and why: each is tried again.
    #[serde(default)]
    pub snapshot_trouble: Option<TroubleStatus>,
    /// The same of a database that another replica sends.
    #[serde(default)]
    pub incoming_trouble: Option<TroubleStatus>,
    /// The last copy that this replica made in a remote place since its start, or is making.
    pub remote_copy: Option<RemoteCopyStatus>,
    /// By which copies are made, if this replica has one.
    pub remote_schedule: Option<RemoteScheduleStatus>,
}

/// The schedule of remote copies.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoteScheduleStatus {
    /// Where they go.
    pub to: String,
    /// How often.
    pub every_minutes: u64,
    /// How many of them stay.
    pub kept: u64,
    /// Why it cannot be kept at present.
    pub trouble: Option<String>,
}

/// A copy of a snapshot in a remote place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RemoteCopyStatus {
    /// The how manieth since the start.
    pub number: u64,
    /// What it is called.
    pub name: String,
    /// Where it goes.
    pub to: String,
    /// Who wanted it.
    pub made_by: MadeBy,
    /// Bytes written so far.
    pub bytes: u64,
    /// Bytes of keys and values: the copy is somewhat longer.
    pub bytes_total: u64,
    /// It is made, or was given up.
    pub done: bool,
    /// There was a whole copy of this state already, and nothing was written.
    pub was_there: bool,
    /// Why it was given up.
    pub error: Option<String>,
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
    /// All up to this slot may be gone from it: two snapshots have it.
    pub cut: u64,
    /// Segments in use.
    pub segments: usize,
    /// The log is at its bound: writes are refused.
    pub full: bool,
    /// Since when the disk has had no room for another segment, and which file was to be how long.
    #[serde(default)]
    pub disk_full: Option<TroubleStatus>,
    /// How long the flush that is under way has lasted.
    #[serde(default)]
    pub flush_under_way_ms: u64,
    /// What it had lost at the start.
    #[serde(default)]
    pub damage: DamageStatus,
}

/// What the log had lost when the replica started, and what became of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct DamageStatus {
    /// In how many places.
    pub holes: u64,
    /// How many slots that may have been, at the most.
    pub slots_lost: u64,
    /// Of these, known again: fetched from others, or accepted anew.
    pub slots_repaired: u64,
    /// Why this replica, promised by a majority, does not lead: nobody who answered has what was lost.
    pub held_up: Option<String>,
}

impl DamageStatus {
    /// Of this replica.
    pub fn of(engine: &Engine) -> Self {
        let (holes, slots_lost, slots_open) = engine.losses();
        let held_up = engine.replica().held_up().map(|lost| {
            format!(
                "a replica may have accepted something for slots {} to {} at ballot {} or below and has lost it, and nobody else \
                 who answered has it: start the replicas that are away",
                lost.first, lost.last, lost.ballot
            )
        });
        Self { holes, slots_lost, slots_repaired: slots_lost.saturating_sub(slots_open), held_up }
    }
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
    /// Greetings refused on the replicas' port: of another cell, of a member that was removed, of a stranger.
    pub refused_hellos: u64,
    /// Bytes that snapshots of the own database wrote: the pages changed since the one before.
    #[serde(default)]
    pub snapshot_bytes: u64,
}
