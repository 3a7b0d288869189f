//! What a replica is told by its flags or its TOML file, checked before anything is touched.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use synod_paxos::{Configuration, ConfigurationError, ReplicaId};

use crate::remote::{self, RemoteError};

/// One member of the cell, as every replica of it must know it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Member {
    /// Its number, from 1.
    pub id: u16,
    /// Where the other replicas reach it.
    pub peer: SocketAddr,
    /// Where clients reach it.
    pub client: SocketAddr,
}

/// Everything `synod serve` needs to know.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Which member this replica is.
    pub id: u16,
    /// Where it keeps its log and its identity. Nothing else may live there.
    pub dir: PathBuf,
    /// All members, this one included.
    #[serde(default, rename = "member")]
    pub members: Vec<Member>,
    /// Listen beyond loopback although nothing is encrypted or authenticated yet.
    #[serde(default)]
    pub insecure: bool,
    /// Run on tmpfs, which forgets everything when the machine stops.
    #[serde(default)]
    pub volatile: bool,
    /// The size of one log segment, in MiB.
    #[serde(default = "defaults::segment_mb")]
    pub segment_mb: u64,
    /// Writes are refused when the log has this size, in MiB, until snapshots can shorten it.
    #[serde(default = "defaults::log_mb_max")]
    pub log_mb_max: u64,
    /// A snapshot of the database is made after so much log, in MiB; not said: a quarter of `log_mb_max`, 1024 at most.
    #[serde(default)]
    pub snapshot_log_mb: Option<u64>,
    /// Snapshots are written, and read back, at this rate at most, in MiB a second: the log needs the same disk.
    #[serde(default = "defaults::snapshot_mb_per_s")]
    pub snapshot_mb_per_s: u64,
    /// The database is looked through for rot at this rate at most, in MiB a second; 0: not at all.
    #[serde(default = "defaults::scrub_mb_per_s")]
    pub scrub_mb_per_s: u64,
    /// The database is not to be used: another replica's takes its place. For one start.
    #[serde(skip)]
    pub rebuild: bool,
    /// Another replica's snapshot is fetched, and the log read for those who lag behind, at this rate at most, in MiB a second;
    /// the log a little faster while it grows, so that they catch up.
    #[serde(default = "defaults::catch_up_mb_per_s")]
    pub catch_up_mb_per_s: u64,
    /// Copies of the database go there by themselves: an absolute path, `file:///a/path` or `s3://bucket/prefix`.
    #[serde(default)]
    pub snapshot_to: Option<String>,
    /// So often, in minutes; one replica does it for all.
    #[serde(default = "defaults::snapshot_every_minutes")]
    pub snapshot_every_minutes: u64,
    /// So many of these copies are kept. What an operator asked for is not counted, and stays.
    #[serde(default = "defaults::snapshots_kept")]
    pub snapshots_kept: u64,
    /// How large the database may become, in GiB: so many addresses are reserved, and no memory.
    #[serde(default = "defaults::database_gb_max")]
    pub database_gb_max: u64,
    /// How many slots may be open at once.
    #[serde(default = "defaults::window")]
    pub window: u64,
    /// How long a batch may wait, right after a commit, for the clients just answered to ask again, in microseconds.
    #[serde(default = "defaults::gather_us")]
    pub gather_us: u64,
    /// How often an idle coordinator tells that it lives, in milliseconds.
    #[serde(default = "defaults::heartbeat_ms")]
    pub heartbeat_ms: u64,
    /// The lease of a new cell's master, in milliseconds. It goes into the log at the first start and stays as it is there.
    #[serde(default = "defaults::lease_ms")]
    pub lease_ms: u64,
    /// How long a replica hears from no coordinator before it asks whether to campaign, in milliseconds (and up to half as
    /// long again).
    #[serde(default = "defaults::election_timeout_ms")]
    pub election_timeout_ms: u64,
    /// Pin the hot core's thread to this processor. Not pinned by default: on a shared machine that only hurts.
    #[serde(default)]
    pub pin_to_cpu: Option<usize>,
}

/// The defaults, in one place for flags and file alike.
pub mod defaults {
    /// MiB a segment.
    pub const fn segment_mb() -> u64 {
        64
    }
    /// MiB of log.
    pub const fn log_mb_max() -> u64 {
        16 * 1024
    }
    /// MiB of log between two snapshots, at most.
    pub const fn snapshot_log_mb() -> u64 {
        1024
    }
    /// MiB a second of a snapshot.
    pub const fn snapshot_mb_per_s() -> u64 {
        128
    }
    /// MiB a second of a look for rot.
    pub const fn scrub_mb_per_s() -> u64 {
        8
    }
    /// MiB a second for a replica that lags behind: two replicas work for it, one of them perhaps the master.
    pub const fn catch_up_mb_per_s() -> u64 {
        16
    }
    /// Minutes between two copies to a remote place.
    pub const fn snapshot_every_minutes() -> u64 {
        60
    }
    /// Copies kept there.
    pub const fn snapshots_kept() -> u64 {
        24
    }
    /// GiB of database.
    pub const fn database_gb_max() -> u64 {
        256
    }
    /// Slots open at once: one, because the log's flushes are serial and batching is nearly free (`ceiling.md`).
    pub const fn window() -> u64 {
        1
    }
    /// Microseconds a batch may wait for its clients: at 60 half of the deadlines fire before all have asked again.
    pub const fn gather_us() -> u64 {
        120
    }
    /// Milliseconds between heartbeats.
    pub const fn heartbeat_ms() -> u64 {
        200
    }
    /// Milliseconds that a master's lease lasts.
    pub const fn lease_ms() -> u64 {
        1000
    }
    /// Milliseconds without a coordinator.
    pub const fn election_timeout_ms() -> u64 {
        1000
    }
}

/// Why a configuration is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be; the source names the line.
    #[error("the configuration file {path} is not valid:\n{source}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A `--member` flag that cannot be read.
    #[error("--member {text:?}: {reason}; write ID=PEER_ADDRESS,CLIENT_ADDRESS, as in 1=127.0.0.1:7101,127.0.0.1:7001")]
    Member {
        /// The flag's value.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The members cannot be a cell.
    #[error("the members are not a cell: {0}")]
    Members(#[from] ConfigurationError),
    /// This replica is not among them.
    #[error("this replica's id is {0}, but no member with that id is listed")]
    NotAMember(u16),
    /// Two members, or two uses of one member, share an address.
    #[error("the address {0} is listed twice; every peer and client address must be its own")]
    DuplicateAddress(SocketAddr),
    /// Port 0: nobody could find it.
    #[error("the address {0} has port 0; a member needs a port that the others can know")]
    NoPort(SocketAddr),
    /// Beyond loopback without being told that it is meant.
    #[error(
        "the address {0} is not on loopback; there is no encryption or authentication yet, so say --insecure \
         (insecure = true) if the network between replicas and clients is trusted"
    )]
    BeyondLoopback(SocketAddr),
    /// Where copies are to go.
    #[error("snapshot_to: {0}")]
    SnapshotTo(#[from] RemoteError),
    /// A number out of its bounds.
    #[error("{name} = {value} is out of its bounds: {bounds}")]
    Bounds {
        /// The key.
        name: &'static str,
        /// What it was set to.
        value: u64,
        /// What it may be.
        bounds: &'static str,
    },
}

impl Config {
    /// The fewest segments that leave room for writes: one is kept for promises, one is the master's margin, and a part of
    /// each goes to frames that did not fit.
    pub const LOG_SEGMENTS_MIN: u64 = 6;
    /// The smallest segment, in MiB: it holds its opening and two frames with a full batch each.
    pub const SEGMENT_MB_MIN: u64 = 4;
    /// The largest.
    pub const SEGMENT_MB_MAX: u64 = 1024;

    /// A configuration with every default, for member `id` of `members`, kept in `dir`.
    pub fn new(id: u16, dir: PathBuf, members: Vec<Member>) -> Self {
        Self {
            id,
            dir,
            members,
            insecure: false,
            volatile: false,
            segment_mb: defaults::segment_mb(),
            log_mb_max: defaults::log_mb_max(),
            snapshot_log_mb: None,
            snapshot_mb_per_s: defaults::snapshot_mb_per_s(),
            scrub_mb_per_s: defaults::scrub_mb_per_s(),
            rebuild: false,
            catch_up_mb_per_s: defaults::catch_up_mb_per_s(),
            snapshot_to: None,
            snapshot_every_minutes: defaults::snapshot_every_minutes(),
            snapshots_kept: defaults::snapshots_kept(),
            database_gb_max: defaults::database_gb_max(),
            window: defaults::window(),
            gather_us: defaults::gather_us(),
            heartbeat_ms: defaults::heartbeat_ms(),
            lease_ms: defaults::lease_ms(),
            election_timeout_ms: defaults::election_timeout_ms(),
            pin_to_cpu: None,
        }
    }

    /// Reads a TOML file. It is not validated yet: flags may still override parts of it.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
    }

    /// Checks everything that can be checked without touching disk or network.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.configuration()?;
        if !self.members.iter().any(|member| member.id == self.id) {
            return Err(ConfigError::NotAMember(self.id));
        }
        let mut seen = HashSet::new();
        for address in self.members.iter().flat_map(|member| [member.peer, member.client]) {
            if !seen.insert(address) {
                return Err(ConfigError::DuplicateAddress(address));
            }
            if address.port() == 0 {
                return Err(ConfigError::NoPort(address));
            }
            if !address.ip().is_loopback() && !self.insecure {
                return Err(ConfigError::BeyondLoopback(address));
            }
        }
        let within = |name, value, low: u64, high: u64, bounds| {
            if (low..=high).contains(&value) { Ok(()) } else { Err(ConfigError::Bounds { name, value, bounds }) }
        };
        within("segment_mb", self.segment_mb, Self::SEGMENT_MB_MIN, Self::SEGMENT_MB_MAX, "4 to 1024 MiB")?;
        let log_min = Self::LOG_SEGMENTS_MIN * self.segment_mb;
        within("log_mb_max", self.log_mb_max, log_min, 1 << 24, "at least six segments, at most 16 TiB")?;
        // Two snapshots, the log behind them, and what is written while the next one is.
        let log_max = self.log_mb_max / 3;
        within("snapshot_log_mb", self.snapshot_log_mb(), 1, log_max, "1 to a third of log_mb_max")?;
        within("snapshot_mb_per_s", self.snapshot_mb_per_s, 1, 1 << 20, "1 to 1048576 MiB/s")?;
        within("scrub_mb_per_s", self.scrub_mb_per_s, 0, 1 << 20, "0 to 1048576 MiB/s")?;
        within("catch_up_mb_per_s", self.catch_up_mb_per_s, 1, 1 << 20, "1 to 1048576 MiB/s")?;
        if let Some(url) = &self.snapshot_to {
            remote::check_url(url)?;
        }
        within("snapshot_every_minutes", self.snapshot_every_minutes, 1, 60 * 24 * 31, "1 minute to 31 days")?;
        within("snapshots_kept", self.snapshots_kept, 1, 10_000, "1 to 10000")?;
        within("database_gb_max", self.database_gb_max, 1, 16 << 10, "1 to 16384 GiB")?;
        within("window", self.window, 1, Configuration::HORIZON_DEFAULT, "1 to the horizon of 16 slots")?;
        within("gather_us", self.gather_us, 0, 10_000, "0 (off) to 10000 us")?;
        within("heartbeat_ms", self.heartbeat_ms, 1, 10_000, "1 to 10000 ms")?;
        let low = 2 * self.heartbeat_ms;
        within("lease_ms", self.lease_ms, low, 60_000, "at least two heartbeats, at most 60000 ms")?;
        within("election_timeout_ms", self.election_timeout_ms, low, 600_000, "at least two heartbeats, at most 10 min")
    }

    /// The configuration of a new cell of these members.
    pub fn configuration(&self) -> Result<Configuration, ConfigurationError> {
        let ids = self.members.iter().map(|member| ReplicaId(member.id));
        Configuration::of_voters(ids, Configuration::HORIZON_DEFAULT, Duration::from_millis(self.lease_ms))
    }

    /// The member this replica is.
    pub fn me(&self) -> &Member {
        self.members.iter().find(|member| member.id == self.id).expect("validate found this replica among the members")
    }

    /// How much log there is between two snapshots, in MiB.
    pub fn snapshot_log_mb(&self) -> u64 {
        self.snapshot_log_mb.unwrap_or(defaults::snapshot_log_mb().min(self.log_mb_max / 4))
    }

    /// The gather as a duration.
    pub fn gather(&self) -> Duration {
        Duration::from_micros(self.gather_us)
    }

    /// The heartbeat as a duration.
    pub fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms)
    }

    /// The election timeout as a duration.
    pub fn election_timeout(&self) -> Duration {
        Duration::from_millis(self.election_timeout_ms)
    }
}

/// Parses the value of `--member`.
pub fn parse_member(text: &str) -> Result<Member, ConfigError> {
    let error = |reason: String| ConfigError::Member { text: text.to_owned(), reason };
    let (id, addresses) = text.split_once('=').ok_or_else(|| error("there is no '='".to_owned()))?;
    let (peer, client) =
        addresses.split_once(',').ok_or_else(|| error("there is no ',' between the two addresses".to_owned()))?;
    let address = |what: &str, text: &str| {
        text.parse::<SocketAddr>().map_err(|_| error(format!("the {what} address {text:?} is not IP:PORT")))
    };
    let id = id.parse().map_err(|_| error(format!("the id {id:?} is not a number from 1 to 65535")))?;
    Ok(Member { id, peer: address("peer", peer)?, client: address("client", client)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(members: &[&str]) -> Config {
        Config::new(1, PathBuf::from("d"), members.iter().map(|text| parse_member(text).unwrap()).collect())
    }

    fn refusal(config: &Config) -> String {
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn a_local_cell_is_fine() {
        config(&["1=127.0.0.1:1,127.0.0.1:2", "2=127.0.0.1:3,127.0.0.1:4"]).validate().unwrap();
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let one = "1=127.0.0.1:1,127.0.0.1:2";
        assert!(refusal(&config(&[one, "1=127.0.0.1:3,127.0.0.1:4"])).contains("member 1 is named twice"));
        assert!(refusal(&config(&[one, "2=127.0.0.1:2,127.0.0.1:4"])).contains("127.0.0.1:2 is listed twice"));
        assert!(refusal(&config(&["2=127.0.0.1:1,127.0.0.1:2"])).contains("id is 1, but no member"));
        assert!(refusal(&config(&["1=127.0.0.1:0,127.0.0.1:2"])).contains("port 0"));
        assert!(refusal(&config(&[one, "2=10.0.0.1:3,127.0.0.1:4"])).contains("--insecure"));
        assert!(refusal(&config(&[])).contains("at least one member"));
        let mut small = config(&[one]);
        small.log_mb_max = 10;
        assert!(refusal(&small).contains("log_mb_max = 10"));
    }

    #[test]
    fn member_flags_say_how_to_write_them() {
        for text in
            ["", "1", "1=127.0.0.1:1", "x=127.0.0.1:1,127.0.0.1:2", "1=127.0.0.1:99999,127.0.0.1:2", "1=here:1,there:2"]
        {
            let message = parse_member(text).unwrap_err().to_string();
            assert!(message.contains("ID=PEER_ADDRESS,CLIENT_ADDRESS"), "{message}");
        }
    }

    #[test]
    fn a_file_with_an_unknown_key_is_refused_with_its_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "id = 1\ndir = \"d\"\nwidnow = 4\n").unwrap();
        let message = Config::read(file.path()).unwrap_err().to_string();
        assert!(message.contains("widnow"), "{message}");
        assert!(message.contains("line 3"), "{message}");
        std::fs::write(
            file.path(),
            "id = 1\ndir = \"d\"\n[[member]]\nid = 1\npeer = \"127.0.0.1:1\"\nclient = \"127.0.0.1:2\"\n",
        )
        .unwrap();
        Config::read(file.path()).unwrap().validate().unwrap();
    }
}
