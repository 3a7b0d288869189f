//! From a directory to a replica that is ready to run: the first start of a cell, or recovery after any other.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use synod_cell::Cell;
use synod_paxos::{
    Ballot, Configuration, Configurations, CrashVector, HardState, Incarnation, Loss, Record, Recovered, Recovery,
    RecoveryError, ReplicaId, Settings, Slot, SnapshotHandle, StateMachine,
};
use synod_ring::BLOCK_BYTES;
use synod_store::Digest;
use synod_wal::directory::{DirectoryStorage, carry_out};
use synod_wal::frame::FrameHeader;
use synod_wal::{CellId, Log, Lost, LostSlots, OpenError, RecordKind, RecordRef, SegmentId, StartId, Visitor};

use crate::cli::chain;
use crate::codec::{self, CodecError};
use crate::config::{Config, ConfigError};
use crate::databases;
use crate::directory::{Directory, DirectoryError, Identity};
use crate::engine::{self, Retention};
use crate::introduction::{self, IntroductionError};
use crate::quarantine;

/// Why a replica does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The cell's id could not be learned.
    #[error(transparent)]
    Introduction(#[from] IntroductionError),
    /// The log does not open.
    #[error("the log in {dir} does not open: {source}{}", what_to_do(source))]
    Log {
        /// The directory.
        dir: std::path::PathBuf,
        /// Why.
        source: synod_wal::OpenError,
    },
    /// The database.
    #[error("the database does not open: {0}")]
    Database(#[from] synod_store::OpenError),
    /// Sizes that make no log.
    #[error("the log's settings: {0}")]
    LogSettings(#[from] synod_wal::SettingsError),
    /// A record whose checksum holds and that still makes no sense.
    #[error("the log holds a record that this build cannot read: {0}")]
    Record(#[from] CodecError),
    /// What this replica has promised and accepted cannot be told from what is left (rule P11).
    #[error(
        "in {dir} {what}: its state is lost. It must not vote as if it had promised nothing{}",
        source.as_ref().map(|source| format!(", and it cannot rejoin; nothing was changed: {source}")).unwrap_or_default()
    )]
    StateLost {
        /// The directory.
        dir: std::path::PathBuf,
        /// What is lost.
        what: StateLoss,
        /// Why the others did not tell it that they know it.
        source: Option<Box<IntroductionError>>,
    },
    /// Its records make no state of a replica: the snapshot that they need is missing.
    #[error("the log cannot be recovered: {0}")]
    Recovery(#[from] RecoveryError),
    /// An operation failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

/// What is lost when a replica does not know any more what it has promised and accepted.
#[derive(Debug, thiserror::Error)]
pub enum StateLoss {
    /// The identity says that this replica has started before, and the log has nothing.
    #[error("the log is empty, yet this replica has started before")]
    All,
    /// The end of the log, or all of it: what is there is another replica's.
    #[error(transparent)]
    End(synod_wal::OpenError),
    /// Records without which the others mean nothing.
    #[error(transparent)]
    Records(RecoveryError),
}

impl StateLoss {
    /// What is lost, if that is why a log does not open; else the reason again.
    pub fn of_log(why: OpenError) -> Result<Self, OpenError> {
        match why {
            // Where all that is left is another replica's of this cell, the own log is lost.
            OpenError::EndLost { .. } | OpenError::OtherReplica { .. } => Ok(Self::End(why)),
            why => Err(why),
        }
    }

    /// What is lost, if that is why a log's records make no state; else the reason again.
    pub fn of_records(why: StartError) -> Result<Self, StartError> {
        match why {
            StartError::Recovery(what @ (RecoveryError::NoHardState | RecoveryError::Gap { .. })) => {
                Ok(Self::Records(what))
            }
            why => Err(why),
        }
    }
}

/// A replica that is ready to run.
pub struct Opened {
    /// Its directory, locked.
    pub directory: Directory,
    /// Whose it is.
    pub identity: Identity,
    /// Where its databases are.
    pub databases: databases::Place,
    /// What the engine starts from.
    pub start: engine::Start,
    /// What recovery found, for the log line.
    pub report: RecoveryReport,
}

/// What recovery found.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// Frames read.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Whether a flush was cut short by the crash: never acknowledged, cut off.
    pub torn_tail: bool,
    /// Parts of the log that are lost; the first [`LOST_TOLD_MAX`] of them.
    pub lost: Vec<Lost>,
    /// How many there are.
    pub holes: u64,
    /// All up to here came from the snapshot, and the rest from the log.
    pub snapshot: Slot,
}

/// How many lost parts of a log are told one by one.
pub const LOST_TOLD_MAX: usize = 8;

/// What an empty directory means (rule P12).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FirstStart {
    /// A loss, if the cell knows this replica: then it rejoins. Else the wrong directory, which is refused.
    Refused,
    /// The first start of the whole cell, of which this is a member.
    Bootstrap,
    /// A new member of a cell that runs and knows it.
    Join,
}

/// Asks the members named whether they know this replica, and of which cell: [`introduction::recall`], or another way to them.
pub type Recall<'a> = &'a dyn Fn(&Config) -> Result<(u128, Configuration), IntroductionError>;

/// Opens the replica's directory: recovers it, or, if it is empty and that is meant, begins it.
pub fn open(config: &Config, first_start: FirstStart) -> Result<Opened, StartError> {
    open_asking(config, first_start, &introduction::recall)
}

/// As [`open`], for whoever reaches the members in another way than by their addresses.
pub fn open_asking(config: &Config, first_start: FirstStart, recall: Recall<'_>) -> Result<Opened, StartError> {
    config.validate()?;
    let directory = Directory::open(&config.dir, config.volatile)?;
    let identity = match directory.identity()? {
        Some(identity) => identity,
        None => begin(config, &directory, first_start, recall)?,
    };
    directory.expect_replica(&identity, config.id)?;
    let recovered = match directory.has_segments()? {
        true => recover(config, &directory, &identity),
        false => Err(state_lost(config, StateLoss::All)),
    };
    let (identity, recovered) = match recovered {
        Err(StartError::StateLost { what, .. }) => {
            let identity = begin_after_loss(config, &directory, &identity, (what, recall))?;
            let recovered = recover(config, &directory, &identity)?;
            (identity, recovered)
        }
        recovered => (identity, recovered?),
    };
    let (databases, start, report) = recovered;
    Ok(Opened { directory, identity, databases, start, report })
}

/// What a directory that has begun holds.
fn recover(
    config: &Config,
    directory: &Directory,
    identity: &Identity,
) -> Result<(databases::Place, engine::Start, RecoveryReport), StartError> {
    let databases = databases::Place::new(config, identity);
    databases
        .drop_incoming()
        .map_err(|source| StartError::Io { doing: "cannot remove a database half taken over", source })?;
    let mut quarantined = quarantined(config, directory.path())?;
    let ((store, opened, fresh), damage) = match databases.open() {
        Err(error) if databases.is_damage(&error) => (databases.make_fresh()?, Some(error)),
        found => (found?, None),
    };
    let handle = if opened.handle.is_empty() { None } else { Some(codec::decode_handle(&opened.handle)?) };
    let own_log = OwnLog { config, directory, identity };
    let mut replay = Replay::new(handle, Cell::of(store));
    replay.is_quarantined = quarantined.is_some();
    let read = match own_log.read(replay) {
        Err(StartError::Recovery(behind @ RecoveryError::Cut { .. })) => {
            let Some(handle) = own_log.end_of_what_is_cut(behind)? else {
                return Err(damage.map_or(behind.into(), StartError::from));
            };
            let why = damage.as_ref().map_or(behind.to_string(), |damage| chain(damage));
            let mut replay = Replay::new(Some(handle), Cell::default());
            replay.is_quarantined = true;
            let read = own_log.read(replay)?;
            let aside = set_database_aside(directory, damage)?;
            let note = || {
                let me = ReplicaId(config.id);
                let evidence = engine::Evidence::of_damage(me, read.protocol.chosen, format!("{why}{aside}"));
                note_quarantine(directory.path(), &evidence).map(|()| evidence)
            };
            // An earlier note says more: what was found first.
            quarantined = Some(quarantined.map_or_else(note, Ok)?);
            read
        }
        read => {
            let read = read?;
            if let Some(why) = damage.as_ref().map(|damage| chain(damage)) {
                let aside = set_database_aside(directory, damage)?;
                eprintln!("synod: {why}{aside}: it is made again, for the log has everything from the first slot on");
            }
            if let Some(fresh) = fresh {
                fresh.keep().map_err(|source| StartError::Io { doing: "cannot name the database", source })?;
            }
            read
        }
    };
    let Read { log: recovered, lost, bytes, snapshot, incarnation, mut protocol, cell } = read;
    let report = RecoveryReport {
        frames: recovered.frames,
        records: recovered.records,
        bytes: recovered.bytes,
        torn_tail: recovered.tail != synod_wal::Tail::Clean,
        lost,
        holes: recovered.holes,
        snapshot,
    };
    protocol.frame = recovered.log.durable_frame().0;
    notice_other_members(config, &protocol.configurations);
    let seed = random_u64()?;
    let mut settings = Settings::new(ReplicaId(config.id), incarnation, seed);
    settings.window = config.window.min(protocol.configurations.current.horizon());
    settings.heartbeat = config.heartbeat();
    settings.election_timeout = config.election_timeout();
    let client_addresses: BTreeMap<_, _> =
        config.members.iter().map(|member| (ReplicaId(member.id), member.client.to_string())).collect();
    let start = engine::Start {
        settings,
        recovered: protocol,
        log: recovered.log,
        cell,
        client_addresses,
        gather_time_max: config.gather(),
        retention: Retention {
            snapshot,
            snapshot_log_bytes: config.snapshot_log_mb() * MIB,
            log_bytes_since_snapshot: bytes,
            catch_up_bytes_per_second: config.catch_up_mb_per_s * MIB,
            ..Retention::default()
        },
        quarantined,
    };
    Ok((databases, start, report))
}

/// The one place where a replica that has lost its state ends up.
fn state_lost(config: &Config, what: StateLoss) -> StartError {
    StartError::StateLost { dir: config.dir.clone(), what, source: None }
}

/// A database that does not open goes out of the way. Gives the words that say where it is.
fn set_database_aside(directory: &Directory, damage: Option<synod_store::OpenError>) -> Result<String, StartError> {
    let aside = damage.map(|_| directory.set_database_aside()).transpose()?;
    Ok(aside.map_or(String::new(), |aside| format!(" (what was there is in {})", aside.display())))
}

/// Why the database is not to be used as it is, if it is not: noted once more, should only a damaged page or the operator have
/// said so.
fn quarantined(config: &Config, dir: &Path) -> Result<Option<engine::Evidence>, StartError> {
    let me = ReplicaId(config.id);
    let noted = quarantine::noted(dir, me).map_err(no_note)?;
    let asked = || engine::Evidence::of_damage(me, Slot::NONE, "an operator wants it rebuilt".to_owned());
    let evidence = noted.or_else(|| config.rebuild.then(asked));
    evidence.as_ref().map_or(Ok(()), |evidence| note_quarantine(dir, evidence))?;
    Ok(evidence)
}

fn note_quarantine(dir: &Path, evidence: &engine::Evidence) -> Result<(), StartError> {
    quarantine::note(dir, evidence).map_err(no_note)?;
    eprintln!("synod: the database is in quarantine, and will be rebuilt from another replica's: {}", evidence.found);
    Ok(())
}

fn no_note(source: io::Error) -> StartError {
    StartError::Io { doing: "cannot read or note why the database is in quarantine", source }
}

/// The sizes of the log. A segment must hold its opening and two of the longest frames, so small segments have shorter
/// ones; the smallest still takes a full batch.
fn log_settings(config: &Config) -> Result<synod_wal::Settings, StartError> {
    let segment_bytes = config.segment_mb * MIB;
    let settings = synod_wal::Settings {
        segment_bytes,
        log_bytes_max: config.log_mb_max * MIB,
        frame_bytes_max: synod_wal::Settings::default().frame_bytes_max.min(frame_bytes_that_fit(segment_bytes)),
    };
    Ok(settings.validate()?)
}

const MIB: u64 = 1 << 20;
/// What a frame needs beside its batch: headers, and the few numbers that go with a batch.
const FRAME_SPARE_BYTES: usize = 64 << 10;
const _: () = assert!(
    frame_bytes_that_fit(Config::SEGMENT_MB_MIN * MIB) >= synod_api::limits::BATCH_BYTES_MAX + FRAME_SPARE_BYTES
);

const fn frame_bytes_that_fit(segment_bytes: u64) -> usize {
    (segment_bytes as usize - synod_wal::OPENING_BYTES_MAX) / 2 / BLOCK_BYTES * BLOCK_BYTES
}

/// A log that does not open needs a person; this is what they can do.
pub fn what_to_do(error: &synod_wal::OpenError) -> &'static str {
    match error {
        OpenError::EndLost { .. } | OpenError::OtherReplica { .. } => {
            ". What is lost may have been acknowledged, so this replica must not vote without it. `synod serve` on this \
             directory sets what is left aside and rejoins, if a majority of the others says that it knows this replica"
        }
        OpenError::Malformed { .. } => {
            ". A faulty program wrote it: nothing of it can be trusted. Nothing was changed: keep the directory as it is, and \
             let the cell go on without this replica"
        }
        OpenError::Misplaced { .. } | OpenError::OtherCell { .. } | OpenError::OtherLog { .. } => {
            ". The file is not of this directory's log. Nothing was changed: put the right file back"
        }
        OpenError::WrongSize { .. } => {
            ". Say the --segment-mb that the log was made with; if you did, the file was cut short or replaced"
        }
        OpenError::OtherVersion { .. } => ". Use a build of the version that wrote it",
        // Reading and listing: the operating system's own words follow, and say more than we could.
        _ => "",
    }
}

fn log_identity(identity: &Identity) -> Result<synod_wal::Identity, StartError> {
    Ok(synod_wal::Identity {
        cell: CellId(identity.cell),
        replica: synod_wal::ReplicaId(identity.replica),
        incarnation: synod_wal::Incarnation(identity.incarnation),
        start: StartId(random_u64()?),
    })
}

/// Who the members are is in the log; flags that say otherwise may be out of date, or be meant for another cell.
fn notice_other_members(config: &Config, configurations: &Configurations) {
    let mut stored: Vec<u16> = configurations.members().map(|member| member.id.0).collect();
    stored.sort_unstable();
    stored.dedup();
    let mut configured: Vec<u16> = config.members.iter().map(|member| member.id).collect();
    configured.sort_unstable();
    if stored != configured {
        eprintln!(
            "synod: the configuration names members {configured:?}, the log says {stored:?}: what the log says counts, \
             and `synod member list` shows it"
        );
    }
}

/// The first start of this member: a log with the first hard state, and then the identity. In this order, so that an
/// identity always stands for a log that has begun.
fn begin(
    config: &Config,
    directory: &Directory,
    first_start: FirstStart,
    recall: Recall<'_>,
) -> Result<Identity, StartError> {
    let (cell, configuration) = match first_start {
        FirstStart::Refused => {
            let (cell, configuration) = recall(config)?;
            return begin_rejoining(config, directory, cell, configuration);
        }
        // Only its first member makes a cell's id: one that others have is one that it made before.
        FirstStart::Bootstrap if introduction::makes_the_id(config) && introduction::is_known_to_any(config) => {
            return Err(IntroductionError::BegunBefore(config.dir.clone()).into());
        }
        // Until the log tells it better, a replica that joins knows the members without itself.
        FirstStart::Join => {
            let (cell, configuration) = introduction::join(config)?;
            (cell, configuration.without(ReplicaId(config.id)))
        }
        _ if introduction::makes_the_id(config) => (random_u128()?, config.configuration()),
        _ => (introduction::ask(config)?, config.configuration()),
    };
    let identity = Identity { cell, replica: config.id, incarnation: 1, introduced: Vec::new() };
    let hard_state = HardState {
        promised: Ballot::NONE,
        incarnation: Incarnation::FIRST,
        vector: CrashVector::default(),
        configurations: Configurations::first(configuration.map_err(ConfigError::from)?),
        cut: Slot::NONE,
    };
    begin_log(config, directory, &identity, hard_state)?;
    directory.write_identity(&identity)?;
    Ok(identity)
}

/// What this replica promised and accepted is lost: what is left of its log is set aside, and it rejoins (rule P11).
fn begin_after_loss(
    config: &Config,
    directory: &Directory,
    identity: &Identity,
    (what, recall): (StateLoss, Recall<'_>),
) -> Result<Identity, StartError> {
    eprintln!("synod: in {} {what}: it asks the others whether they know it", config.dir.display());
    let (cell, configuration) = match recall(config) {
        Ok(known) => known,
        Err(source) => {
            return Err(StartError::StateLost { dir: config.dir.clone(), what, source: Some(Box::new(source)) });
        }
    };
    if cell != identity.cell {
        return Err(DirectoryError::OtherReplica {
            path: config.dir.clone(),
            theirs: identity.replica,
            ours: config.id,
            cell: identity.cell,
        }
        .into());
    }
    let aside = directory.set_aside()?;
    eprintln!("synod: what was left of the log in {} is in {}", config.dir.display(), aside.display());
    begin_rejoining(config, directory, cell, configuration)
}

/// This replica lost its disk (rules P11, P12): a log that says so, and then the identity.
fn begin_rejoining(
    config: &Config,
    directory: &Directory,
    cell: u128,
    configuration: Configuration,
) -> Result<Identity, StartError> {
    eprintln!(
        "synod: replica {} LOST ITS STATE: cell {cell:032x} knows it as a voting member, and {} has no log of it. It begins a new log, \
         learns what is chosen, and votes again once a majority has told it what it may have promised",
        config.id,
        config.dir.display()
    );
    // All of them have begun: were one told the cell's id again by us, it would vote as if it had promised nothing.
    let introduced = configuration.members().iter().map(|member| member.id.0).filter(|id| *id != config.id).collect();
    let identity = Identity { cell, replica: config.id, incarnation: Incarnation::FIRST.0, introduced };
    let hard_state = HardState {
        promised: Ballot::NONE,
        incarnation: Incarnation::NONE,
        vector: CrashVector::default(),
        configurations: Configurations::first(configuration),
        cut: Slot::NONE,
    };
    begin_log(config, directory, &identity, hard_state)?;
    directory.write_identity(&identity)?;
    Ok(identity)
}

/// Makes the first segment of a log, which says this and nothing else, durably.
pub fn begin_log(
    config: &Config,
    directory: &Directory,
    identity: &Identity,
    hard_state: HardState,
) -> Result<(), StartError> {
    let settings = log_settings(config)?;
    let mut log = synod_wal::create(settings, log_identity(identity)?);
    let first = log.upkeep().expect("an empty log wants its first segment");
    let file = carry_out(directory.path(), first, settings.segment_bytes)
        .map_err(io_error("cannot make the first segment"))?
        .expect("a segment was made");
    log.upkeep_done(first);
    codec::append_record(&mut log, &Record::HardState(hard_state));
    flush_all(&mut log, &file).map_err(|source| StartError::Io { doing: "cannot write the first frame", source })
}

/// Writes all that is queued to the first segment, blocking. Before the hot core runs there is no ring.
fn flush_all(log: &mut Log, file: &File) -> io::Result<()> {
    while let Some(flush) = log.seal() {
        assert_eq!(flush.segment, SegmentId(1), "the first frames fit the first segment");
        file.write_all_at(&flush.buffer[..flush.length], flush.offset)?;
        file.sync_data()?;
        log.flushed(flush.buffer);
    }
    Ok(())
}

fn io_error(doing: &'static str) -> impl Fn(synod_wal::directory::DirectoryError) -> StartError {
    move |source| StartError::Io { doing, source: source.into() }
}

fn random_u64() -> Result<u64, StartError> {
    getrandom::u64()
        .map_err(|error| StartError::Io { doing: "cannot draw a random number", source: io::Error::other(error) })
}

pub(crate) fn random_u128() -> Result<u128, StartError> {
    Ok(u128::from(random_u64()?) << 64 | u128::from(random_u64()?))
}

/// The log of this very directory.
struct OwnLog<'a> {
    config: &'a Config,
    directory: &'a Directory,
    identity: &'a Identity,
}

/// What was in it.
struct Read {
    log: synod_wal::Recovered,
    lost: Vec<Lost>,
    /// Of records behind the snapshot.
    bytes: u64,
    /// All up to here is in the database that was opened.
    snapshot: Slot,
    incarnation: Incarnation,
    protocol: Recovered,
    cell: Cell,
}

impl OwnLog<'_> {
    fn inspect(&self, visitor: &mut dyn Visitor) -> Result<synod_wal::Recovered, StartError> {
        let mut storage =
            DirectoryStorage::open(self.directory.path()).map_err(io_error("cannot open the log's directory"))?;
        let read = synod_wal::inspect(&mut storage, log_settings(self.config)?, &log_identity(self.identity)?, visitor);
        read.map_err(|why| match StateLoss::of_log(why) {
            Ok(loss) => state_lost(self.config, loss),
            Err(source) => StartError::Log { dir: self.config.dir.clone(), source },
        })
    }

    /// Goes on from what the replay begins with. [`RecoveryError::Cut`]: that does not reach up to where the log begins.
    fn read(&self, mut replay: Replay) -> Result<Read, StartError> {
        let log = self.inspect(&mut replay)?;
        let (lost, bytes, snapshot) = (std::mem::take(&mut replay.lost), replay.bytes, replay.snapshot);
        let finished = replay.finish().map_err(|why| match StateLoss::of_records(why) {
            Ok(loss) => state_lost(self.config, loss),
            Err(error) => error,
        })?;
        let Some((incarnation, protocol, cell)) = finished else {
            return Err(state_lost(self.config, StateLoss::All));
        };
        // The hard state says so too, a moment earlier; whoever took the log's last segments away took that with them.
        if log.cut.0 > snapshot.next().0 {
            return Err(RecoveryError::Cut { cut: Slot(log.cut.0).before(), snapshot }.into());
        }
        Ok(Read { log, lost, bytes, snapshot, incarnation, protocol, cell })
    }

    /// Where to begin without a database, as the last hard state says. `None`: there is nobody to have another one from.
    ///
    /// # Errors
    ///
    /// If a hole has taken that hard state too: then who votes is not known any more.
    fn end_of_what_is_cut(&self, behind: RecoveryError) -> Result<Option<SnapshotHandle>, StartError> {
        let mut last = LastHardState(Ok(None));
        let cut = Slot(self.inspect(&mut last)?.cut.0).before();
        let Some(state) = last.0?.filter(|state| state.cut >= cut) else {
            return Err(state_lost(self.config, StateLoss::Records(behind)));
        };
        let is_alone = state.configurations.members().all(|member| member.id.0 == self.config.id);
        Ok((!is_alone).then(|| SnapshotHandle::of_lost(&state)))
    }
}

struct LastHardState(Result<Option<HardState>, CodecError>);

impl Visitor for LastHardState {
    fn frame(&mut self, _: &FrameHeader) {}

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        if record.kind == RecordKind::HardState
            && let Ok(last) = &mut self.0
        {
            match codec::decode_record(record.kind, record.slot, record.ballot, record.payload) {
                Ok(Record::HardState(state)) => *last = Some(state),
                Ok(Record::Accepted { .. } | Record::Chosen { .. }) => unreachable!("its kind says what it is"),
                Err(error) => self.0 = Err(error),
            }
        }
    }
}

/// Rebuilds protocol state and database from the log's records, in the order in which they were appended.
pub struct Replay {
    recovery: Recovery,
    snapshot: Slot,
    /// Of records behind the snapshot.
    bytes: u64,
    /// Parts of the log that are missing: the first of them.
    lost: Vec<Lost>,
    cell: Cell,
    /// Nothing is applied to it: it is to be replaced, and its pages may be damaged.
    is_quarantined: bool,
    /// After each slot, if somebody wants them.
    digests: Option<Vec<(Slot, Digest)>>,
    answer: Vec<u8>,
    error: Option<StartError>,
}

impl Replay {
    /// Goes on from the snapshot that this database was opened from; or both are empty.
    pub fn new(snapshot: Option<SnapshotHandle>, cell: Cell) -> Self {
        let slot = snapshot.as_ref().map_or(Slot::NONE, |snapshot| snapshot.slot);
        Self {
            recovery: Recovery::new(snapshot),
            snapshot: slot,
            bytes: 0,
            lost: Vec::new(),
            cell,
            is_quarantined: false,
            digests: None,
            answer: Vec::new(),
            error: None,
        }
    }

    /// From here on the database's digest after each slot is kept.
    pub fn keep_digests(&mut self) {
        self.digests = Some(Vec::new());
    }

    /// The digests that were kept.
    pub fn take_digests(&mut self) -> Vec<(Slot, Digest)> {
        self.digests.take().unwrap_or_default()
    }

    /// Takes a record as the log hands it out; the first error is kept for [`Replay::finish`].
    pub fn take_raw(&mut self, record: &synod_wal::RecordRef<'_>) {
        if self.error.is_some() {
            return;
        }
        if record.slot.0 > self.snapshot.0 {
            self.bytes += record.payload.len() as u64;
        }
        let decoded = codec::decode_record(record.kind, record.slot, record.ballot, record.payload);
        self.error = decoded.map_err(StartError::from).and_then(|record| self.take(record)).err();
    }

    /// Takes note of a part of the log that is missing; gives the slots that it may have been about.
    pub fn lose(&mut self, lost: &Lost) -> LostSlots {
        if self.lost.len() < LOST_TOLD_MAX {
            self.lost.push(*lost);
        }
        let slots = lost.known_slots().map(|slots| (Slot(slots.first.0), Slot(slots.last.0)));
        let loss = Loss {
            slots,
            ballot: codec::unpack_ballot(lost.summary.ballot),
            promised: codec::unpack_ballot(lost.summary.promised),
            highest: Slot(lost.summary.highest.0),
            incarnation: Incarnation(lost.incarnation.0),
            cut: Slot(lost.cut.0).before(),
        };
        match self.recovery.lose(loss) {
            Ok((first, last)) => LostSlots { first: synod_wal::Slot(first.0), last: synod_wal::Slot(last.0) },
            Err(error) => {
                self.error.get_or_insert(error.into());
                LostSlots::ANY
            }
        }
    }

    /// Takes the next record.
    pub fn take(&mut self, record: Record) -> Result<(), StartError> {
        let Self { recovery, cell, answer, is_quarantined, digests, .. } = self;
        recovery.take(record, |slot, batch| {
            for command in batch.commands().filter(|_| !*is_quarantined) {
                answer.clear();
                cell.apply(slot, command, answer);
            }
            if let Some(digests) = digests {
                digests.push((slot, cell.store().digest()));
            }
        })?;
        Ok(())
    }

    /// Which life it is, the protocol's state, and the database; `None`: the log never began.
    pub fn finish(self) -> Result<Option<(Incarnation, Recovered, Cell)>, StartError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(self.recovery.finish().map(|(incarnation, recovered)| (incarnation, recovered, self.cell))),
        }
    }
}

impl Visitor for Replay {
    fn frame(&mut self, _: &FrameHeader) {}

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        self.take_raw(&record);
    }

    fn lost(&mut self, lost: &Lost) -> LostSlots {
        self.lose(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_segment_size_that_the_configuration_allows_makes_a_log() {
        for segment_mb in Config::SEGMENT_MB_MIN..=Config::SEGMENT_MB_MAX {
            let mut config = Config::new(1, "d".into(), Vec::new());
            config.segment_mb = segment_mb;
            config.log_mb_max = Config::LOG_SEGMENTS_MIN * segment_mb;
            let settings = log_settings(&config).unwrap();
            let identity = Identity { cell: 1, replica: 1, incarnation: 1, introduced: Vec::new() };
            let log = synod_wal::create(settings, log_identity(&identity).unwrap());
            assert!(!log.is_full_within(settings.segment_bytes), "an empty log takes writes: {settings:?}");
            assert!(settings.payload_bytes_max() > synod_api::limits::BATCH_BYTES_MAX, "{settings:?}");
        }
    }
}
