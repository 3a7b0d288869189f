//! From a copy to the directories of a whole new cell.
//!
//! The new cell has a random id of its own: no replica of the old one can join it, no peer of the old one is listened to, and what
//! the old one's members promised binds nobody. Its log begins behind the copy's slot, with the new members' configuration; its
//! database is the copy's, rows, revisions and sessions alike.
//!
//! In each directory the database is made first, then the log, and the identity last, so that it stands for a finished one.
//! What fails leaves no directory that would start.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use synod_paxos::{
    Ballot, Configuration, ConfigurationError, Configurations, CrashVector, HardState, Incarnation, ReplicaId, Slot,
    SnapshotHandle,
};
use synod_store::{OpenError, SnapshotError, Store};

use super::manifest::{ConfigurationFields, Manifest, Name};
use super::verify::{CopyError, check_counts, no_database};
use super::{Remote, RemoteError};
use crate::config::{Config, ConfigError, Member};
use crate::databases::{Fresh, Place};
use crate::directory::{Directory, DirectoryError, Identity};
use crate::{codec, start};

/// Beside each new replica's log: when, and of which copy of which cell, its cell was made. Nothing reads it.
pub const ORIGIN_FILE: &str = "origin.txt";

/// What the new cell is to be.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Its directories are made here: `replica-1` and so on.
    pub dir: PathBuf,
    /// All its members.
    pub members: Vec<Member>,
    /// Make this member's directory only.
    pub only: Option<u16>,
    /// The id that an earlier restore of other members drew; `None`: draw one.
    pub cell: Option<u128>,
    /// As for `serve`.
    pub segment_mb: u64,
    /// `None`: as it was.
    pub lease_ms: Option<u64>,
    /// As for `serve`.
    pub insecure: bool,
    /// As for `serve`.
    pub volatile: bool,
}

/// Why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// The copy.
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// The new members, or a size.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// There is something in a directory that is to be made.
    #[error("{} is not empty: a restore makes new directories only, and writes over nothing", .0.display())]
    NotEmpty(PathBuf),
    /// The id of the cell that was copied.
    #[error(
        "{0:032x} is the id of the cell that was copied. Its replicas may still run, or come back: the new cell needs an id of \
         its own. Leave --cell-id out, or say what the first restore of the new cell printed"
    )]
    SameCell(u128),
    /// A member that is none.
    #[error("--id {0} is not among the members")]
    NotAMember(u16),
    /// The database.
    #[error("cannot make the database: {0}")]
    Database(#[from] OpenError),
    /// Its snapshot.
    #[error("cannot make the database: {0}")]
    Snapshot(#[from] SnapshotError),
    /// The log.
    #[error(transparent)]
    Log(#[from] start::StartError),
    /// Something of the system's.
    #[error("{doing} {}: {source}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl From<RemoteError> for RestoreError {
    fn from(error: RemoteError) -> Self {
        Self::Copy(error.into())
    }
}

impl From<ConfigurationError> for RestoreError {
    fn from(error: ConfigurationError) -> Self {
        Self::Config(error.into())
    }
}

/// What was made.
#[derive(Debug)]
pub struct Restored {
    /// The new cell's id.
    pub cell: u128,
    /// The directories, by member.
    pub directories: Vec<(u16, PathBuf)>,
}

/// A newer state than the one that is to be restored: what would be gone.
#[derive(Clone, Debug)]
pub struct Newer {
    /// Where it is.
    pub of: String,
    /// How many slots it has more.
    pub slots: u64,
    /// How many revisions.
    pub revisions: u64,
    /// How much later it is.
    pub later: Duration,
}

/// The newest whole copy of the same cell, if more was written by then. One that cannot be read stands for its name alone.
///
/// A copy with more slots and the same revision is not newer: an idle master's no-ops fill slots, and nobody misses them.
pub fn newer_copy(remote: &Remote, manifest: &Manifest, name: Name) -> Result<Option<Newer>, RemoteError> {
    for newer in remote.names(Some(name.cell))?.into_iter().rev().take_while(|other| other.revision > name.revision) {
        let Some(found) = remote.manifest(newer)? else { continue };
        let later_ms = found.map_or(0, |found| found.taken_ms.saturating_sub(manifest.taken_ms));
        return Ok(Some(Newer {
            of: format!("the copy {newer}"),
            slots: newer.slot.0 - name.slot.0,
            revisions: newer.revision.0.saturating_sub(name.revision.0),
            later: Duration::from_millis(later_ms),
        }));
    }
    Ok(None)
}

/// A directory on its way. Unless it is finished, it goes.
struct Making {
    directory: Directory,
    identity: Identity,
    config: Config,
    place: Place,
    store: Store,
    /// The database has not its name yet.
    fresh: Option<Fresh>,
    finished: bool,
}

impl Drop for Making {
    fn drop(&mut self) {
        // It was empty before, and is locked: all that is in it is ours. What cannot be removed has no identity, and is refused.
        if !self.finished {
            let _ = fs::remove_dir_all(self.directory.path());
        }
    }
}

impl Making {
    fn begin(config: Config, cell: u128) -> Result<Self, RestoreError> {
        let dir = &config.dir;
        if !is_empty(dir).map_err(|source| RestoreError::Io { doing: "looking into", path: dir.clone(), source })? {
            return Err(RestoreError::NotEmpty(dir.clone()));
        }
        let identity = Identity { cell, replica: config.id, incarnation: 1, introduced: Vec::new() };
        let directory = Directory::open(dir, config.volatile)?;
        let place = Place::new(&config, &identity);
        let made = place.open();
        match made {
            Ok((store, _, fresh)) => Ok(Self { directory, identity, config, place, store, fresh, finished: false }),
            Err(error) => {
                let _ = fs::remove_dir_all(dir);
                Err(error.into())
            }
        }
    }

    /// `origin`: where the cell comes from, for whoever asks later.
    fn finish(&mut self, slot: Slot, configurations: &Configurations, origin: &str) -> Result<(), RestoreError> {
        let handle = SnapshotHandle { slot, ballot: Ballot::NONE, configurations: configurations.clone() };
        // Twice, so that both of the database's meta blocks name it: the log is cut there, and only the older of two kept
        // snapshots allows that (rule S1).
        for _ in 0..2 {
            let frozen = self.store.freeze_snapshot(&codec::encode_handle(&handle));
            let durable = frozen.write_out(&synod_store::Pacing::default())?;
            self.store.snapshot_done(durable);
        }
        if let Some(fresh) = self.fresh.take() {
            let failed = |source| RestoreError::Io {
                doing: "naming the database in",
                path: self.place.dir().to_owned(),
                source,
            };
            fresh.keep().map_err(failed)?;
        }
        let hard_state = HardState {
            promised: Ballot::NONE,
            incarnation: Incarnation::FIRST,
            vector: CrashVector::default(),
            configurations: configurations.clone(),
            cut: slot,
        };
        let path = self.directory.path().join(ORIGIN_FILE);
        let written = File::create(&path).and_then(|mut file| {
            file.write_all(origin.as_bytes())?;
            file.sync_all()
        });
        written.map_err(|source| RestoreError::Io { doing: "writing", path, source })?;
        start::begin_log(&self.config, &self.directory, &self.identity, hard_state)?;
        self.directory.write_identity(&self.identity)?;
        self.finished = true;
        Ok(())
    }
}

fn is_empty(dir: &Path) -> io::Result<bool> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(error),
    }
}

/// Makes the directories of a new cell that begins where the copy ends.
pub fn restore(
    remote: &Remote,
    (name, manifest): (Name, &Manifest),
    wish: &Wish,
    mut progress: impl FnMut(u64),
) -> Result<Restored, RestoreError> {
    let cell = match wish.cell {
        Some(cell) if cell == name.cell => return Err(RestoreError::SameCell(cell)),
        Some(cell) => cell,
        None => start::random_u128()?,
    };
    let configs = configs(manifest, wish)?;
    let configurations = configurations(manifest, name, &configs[0])?;
    let configs = configs.into_iter().filter(|config| wish.only.is_none_or(|only| only == config.id));
    let mut making = configs.map(|config| Making::begin(config, cell)).collect::<Result<Vec<_>, _>>()?;

    let mut done = 0;
    for (index, chunk) in manifest.chunks.iter().enumerate() {
        let damaged = |reason| CopyError::Damaged { name, chunks: vec![reason] };
        let bytes = remote.chunk(name, index, *chunk)?.map_err(damaged)?;
        let is_last = index + 1 == manifest.chunks.len();
        for each in &mut making {
            each.store.import(&bytes, is_last).map_err(|error| no_database(name, error))?;
        }
        done += chunk.bytes;
        progress(done);
    }
    let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    let origin = format!(
        "{since_1970} seconds after 1970 (UTC) cell {cell:032x} was made of the copy {name}: all up to slot {} of cell {:032x}. What \
         that cell acknowledged later is not in it.\n",
        name.slot, name.cell
    );
    for each in &mut making {
        check_counts(name, manifest, &each.store)?;
        each.finish(name.slot, &configurations, &origin)?;
    }
    let directories = making.iter().map(|each| (each.identity.replica, each.place.dir().to_owned())).collect();
    Ok(Restored { cell, directories })
}

/// What each member's `serve` will be told, checked.
fn configs(manifest: &Manifest, wish: &Wish) -> Result<Vec<Config>, RestoreError> {
    if let Some(only) = wish.only
        && !wish.members.iter().any(|member| member.id == only)
    {
        return Err(RestoreError::NotAMember(only));
    }
    let lease_ms = wish.lease_ms.or(manifest.latest().map(|latest| latest.lease_ms));
    let config = |member: &Member| {
        let mut config = Config::new(member.id, wish.dir.join(format!("replica-{}", member.id)), wish.members.clone());
        config.segment_mb = wish.segment_mb;
        config.log_mb_max = config.log_mb_max.max(Config::LOG_SEGMENTS_MIN * wish.segment_mb);
        config.lease_ms = lease_ms.unwrap_or(config.lease_ms);
        config.heartbeat_ms = config.heartbeat_ms.min(config.lease_ms / 2);
        (config.insecure, config.volatile) = (wish.insecure, wish.volatile);
        config.validate().map(|()| config)
    };
    let configs: Vec<Config> = wish.members.iter().map(config).collect::<Result<_, _>>()?;
    if configs.is_empty() {
        // Says what is missing.
        Config::new(1, wish.dir.clone(), Vec::new()).validate()?;
    }
    Ok(configs)
}

/// Those of the new cell, from the slot behind the copy's on. That it is not slot 1 keeps an empty directory from being
/// bootstrapped into it: such a member would know nothing of what the copy holds, and could help to choose it anew (rule P12).
fn configurations(manifest: &Manifest, name: Name, config: &Config) -> Result<Configurations, RestoreError> {
    let horizon =
        manifest.latest().map_or(Configuration::HORIZON_DEFAULT, |latest: &ConfigurationFields| latest.horizon);
    let ids = config.members.iter().map(|member| ReplicaId(member.id));
    let current = Configuration::of_voters(ids, horizon, Duration::from_millis(config.lease_ms))?;
    Ok(Configurations { current, since: name.slot.next(), pending: None })
}
