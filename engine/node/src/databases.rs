//! A replica's database files, and the thread that writes snapshots out and takes another replica's rows: a gigabyte is not the hot
//! core's work.
//!
//! | file | what |
//! |---|---|
//! | `database` | the own database: the two newest snapshots, and between them what is not yet one |
//! | `database.incoming` | another replica's, while it is taken over: renamed to `database` when it is durable |
//! | `database.lost-N` | what did not open any more, and was set aside: for a person, who may remove it |
//!
//! One job after the other, so snapshots of the own database end before another one takes its place. Plain threads, as for the
//! log's segments: another one does the database's chores (rule S4), which must not wait for a snapshot.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use synod_cell::Cell;
use synod_ring::Waker;
use synod_store::{Chore, Durable, Frozen, OpenError, OpenOptions, Opened, Options, Pacing, SnapshotError, Store};

use crate::config::Config;
use crate::directory::Identity;
use crate::engine::{Import, Imported};

/// The own database.
pub(crate) const DATABASE_FILE: &str = "database";
const INCOMING_FILE: &str = "database.incoming";

/// How much the threads of snapshots and of the scrubber step back behind those that serve.
pub(crate) const NICE: i32 = 10;

/// Reads ahead by this much at once, in bytes.
const READ_AHEAD_BYTES: usize = 1 << 20;

/// After a chore that failed the next one waits so long.
const CHORE_RETRY: Duration = Duration::from_millis(500);

/// At most one of each.
const JOBS_MAX: usize = 6;

enum Job {
    Keep(Frozen),
    Make,
    Import(Import),
    KeepIncoming(Frozen),
    /// Whose file has been replaced.
    Retire(Cell),
    /// The one beside the own one, whose file goes with it.
    DropIncoming(Option<Cell>),
}

/// What the thread has done.
pub enum Done {
    /// A snapshot of the own database is durable.
    Kept(Result<Durable, SnapshotError>),
    /// An empty database is there.
    Made(Box<Result<Store, OpenError>>),
    /// A chunk's rows are in it.
    Imported(Imported),
    /// A snapshot of the database beside the own one is durable.
    IncomingKept(Result<Durable, SnapshotError>),
}

/// Where a replica's databases are, and how they are opened.
#[derive(Clone)]
pub struct Place {
    dir: PathBuf,
    options: OpenOptions,
}

impl Place {
    /// The place for this replica's.
    pub fn new(config: &Config, identity: &Identity) -> Self {
        Self::at(&config.dir, identity, config.database_gb_max << 30)
    }

    /// The same, for whoever has a directory and no configuration.
    pub fn at(dir: &Path, identity: &Identity, bytes_max: u64) -> Self {
        let Identity { cell, replica, incarnation, introduced: _ } = identity;
        let stamp = [&cell.to_le_bytes()[..], &replica.to_le_bytes(), &incarnation.to_le_bytes()].concat();
        let bytes_max = usize::try_from(bytes_max).expect("64-bit addresses");
        let store = Options { keep_history: false, database_bytes_max: bytes_max, ..Options::default() };
        Self { dir: dir.to_owned(), options: OpenOptions { store, identity: stamp, older: false } }
    }

    /// Opens the own database as its newest snapshot has it. If there is none, an empty one is made, and is the own one when
    /// [`Fresh::keep`] says so: a log that needs more than that must find the directory as it was.
    pub fn open(&self) -> Result<(Store, Opened, Option<Fresh>), OpenError> {
        let path = self.dir.join(DATABASE_FILE);
        if path.exists() {
            let (store, opened) = Store::open(&path, &self.options)?;
            return Ok((store, opened, None));
        }
        self.make_fresh()
    }

    /// Makes an empty one that is to be the own one, whatever is in its place.
    pub fn make_fresh(&self) -> Result<(Store, Opened, Option<Fresh>), OpenError> {
        let fresh = Fresh(self.clone());
        let (store, opened) = self.make()?;
        Ok((store, opened, Some(fresh)))
    }

    /// Whether the own database does not open because its file is not what was written there: then nothing is lost with it that
    /// the log or another replica has not. Anything else is for a person: a newer build's file, another cell's, a setting, or a
    /// disk that does not read. A file of another replica of this very cell is damage: no operator's command takes one there, the
    /// log beside it is this replica's own, and of what is in it nothing is used.
    pub fn is_damage(&self, error: &OpenError) -> bool {
        const CELL_BYTES: usize = size_of::<u128>();
        match error {
            OpenError::NotADatabase { .. }
            | OpenError::BothDamaged { .. }
            | OpenError::Truncated { .. }
            | OpenError::Damaged(_) => true,
            OpenError::Foreign { found, expected, .. } => {
                found.len() == expected.len() && found[..CELL_BYTES] == expected[..CELL_BYTES]
            }
            OpenError::File { .. }
            | OpenError::InUse { .. }
            | OpenError::Newer { .. }
            | OpenError::NoOlder { .. }
            | OpenError::TooLarge { .. }
            | OpenError::SelfTest(_) => false,
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Opens the own database as its newest snapshot has it.
    pub fn open_existing(&self) -> Result<(Store, Opened), OpenError> {
        Store::open(&self.dir.join(DATABASE_FILE), &self.options)
    }

    /// The same place, to open the older of the two snapshots.
    #[must_use]
    pub fn older(mut self) -> Self {
        self.options.older = true;
        self
    }

    fn make(&self) -> Result<(Store, Opened), OpenError> {
        let path = self.dir.join(INCOMING_FILE);
        remove(&path).map_err(|source| OpenError::File { doing: "removing", path: path.clone(), source })?;
        Store::create(&path, &self.options.identity)?;
        Store::open(&path, &self.options)
    }

    /// What a crash left of another one's is of no use.
    pub fn drop_incoming(&self) -> io::Result<()> {
        remove(&self.dir.join(INCOMING_FILE))
    }

    /// The other one's takes the place of the own one, durably.
    pub fn replace(&self) -> io::Result<()> {
        fs::rename(self.dir.join(INCOMING_FILE), self.dir.join(DATABASE_FILE))?;
        File::open(&self.dir)?.sync_all()
    }
}

/// A database that was made just now. Dropped, it is removed again.
pub struct Fresh(Place);

impl Fresh {
    /// It is the own database from here on.
    pub fn keep(self) -> io::Result<()> {
        self.0.replace()
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        if let Err(error) = self.0.drop_incoming() {
            eprintln!("synod: cannot remove a database that is not needed: {error}");
        }
    }
}

/// Reads the database through once, so that whoever serves finds it in memory and does not wait for the disk (rule S4). What does
/// not fit into memory is dropped again by the kernel as it sees fit.
fn read_ahead(path: &Path, pacing: &Pacing) -> io::Result<()> {
    let mut file = match File::open(path) {
        // It is lost, and another replica's will be put there.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    let mut buffer = vec![0; READ_AHEAD_BYTES];
    let (began, mut bytes) = (Instant::now(), 0);
    while !pacing.cancel.load(Ordering::Relaxed) {
        match file.read(&mut buffer)? {
            0 => break,
            read => bytes += read as u64,
        }
        pacing.sleep(began, bytes);
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The thread's two ends as the hot core sees them. Dropping it ends the thread, and what it is writing.
pub struct Databases {
    place: Place,
    jobs: Option<mpsc::SyncSender<Job>>,
    done: mpsc::Receiver<Done>,
    cancel: Arc<AtomicBool>,
    /// Set it, and the database is not read ahead any further.
    is_old: Arc<AtomicBool>,
    chores: Option<mpsc::SyncSender<Chore>>,
    /// A chore is under way.
    tidying: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Databases {
    /// Starts the thread; it writes so many bytes a second at most, because the log needs the same disk.
    pub fn start(place: Place, bytes_per_second: u64, waker: Waker) -> io::Result<Self> {
        let (jobs, to_do) = mpsc::sync_channel::<Job>(JOBS_MAX);
        let (tell, done) = mpsc::sync_channel(JOBS_MAX);
        let pacing = Pacing { bytes_per_second: Some(bytes_per_second), ..Pacing::default() };
        let cancel = Arc::clone(&pacing.cancel);
        let reading = Pacing { bytes_per_second: Some(bytes_per_second), ..Pacing::default() };
        let is_old = Arc::clone(&reading.cancel);
        let making = place.clone();
        let work = move || {
            while let Ok(job) = to_do.recv() {
                let done = match job {
                    Job::Keep(frozen) => Done::Kept(frozen.write_out(&pacing)),
                    Job::Make => Done::Made(Box::new(making.make().map(|(store, _)| store))),
                    Job::Import(import) => Done::Imported(import.run()),
                    Job::KeepIncoming(frozen) => Done::IncomingKept(frozen.write_out(&pacing)),
                    Job::Retire(old) => {
                        drop(old);
                        continue;
                    }
                    Job::DropIncoming(incoming) => {
                        drop(incoming);
                        if let Err(error) = making.drop_incoming() {
                            eprintln!("synod: cannot remove a database that was not taken over: {error}");
                        }
                        continue;
                    }
                };
                if tell.send(done).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        let (chores, to_do) = mpsc::sync_channel::<Chore>(1);
        let tidying = Arc::new(AtomicBool::new(false));
        let is_tidying = Arc::clone(&tidying);
        let tidy = move || {
            let mut fails = false;
            while let Ok(chore) = to_do.recv() {
                if let Err(error) = chore.run() {
                    // What was not done ahead is done when it is needed.
                    if !std::mem::replace(&mut fails, true) {
                        eprintln!("synod: the database's file could not be prepared ahead of need: {error}");
                    }
                    std::thread::sleep(CHORE_RETRY);
                } else {
                    fails = false;
                }
                is_tidying.store(false, Ordering::Release);
            }
        };
        let spawn = |name: &'static str, run: Box<dyn FnOnce() + Send>| {
            std::thread::Builder::new().name(name.to_owned()).spawn(move || {
                // Whoever serves comes first. Linux has this by thread.
                if let Err(error) = rustix::process::nice(NICE) {
                    eprintln!("synod: the thread of the {name} keeps its priority: {error}");
                }
                run();
            })
        };
        let path = place.dir.join(DATABASE_FILE);
        let ahead = move || {
            if let Err(error) = read_ahead(&path, &reading) {
                eprintln!("synod: the database cannot be read ahead: {error}");
            }
        };
        let threads = vec![
            spawn("snapshots", Box::new(work))?,
            spawn("chores", Box::new(tidy))?,
            spawn("read-ahead", Box::new(ahead))?,
        ];
        Ok(Self { place, jobs: Some(jobs), done, cancel, is_old, chores: Some(chores), tidying, threads })
    }

    /// Has the database's next chore done, unless one is being done.
    pub fn tend(&self, store: &mut Store) {
        if !self.tidying.load(Ordering::Acquire)
            && let Some(chore) = store.chore()
        {
            self.tidying.store(true, Ordering::Relaxed);
            let chores = self.chores.as_ref().expect("it is there until drop");
            chores.try_send(chore).expect("one chore at a time");
        }
    }

    fn ask(&self, job: Job) {
        let jobs = self.jobs.as_ref().expect("it is there until drop");
        jobs.try_send(job).expect("the engine asks for one of each at a time");
    }

    /// Writes out a snapshot of the own database.
    pub fn keep(&self, frozen: Frozen) {
        self.ask(Job::Keep(frozen));
    }

    /// Makes an empty database beside the own one, whose place it is to take.
    pub fn make(&self) {
        self.is_old.store(true, Ordering::Relaxed);
        self.ask(Job::Make);
    }

    /// Puts rows into it.
    pub fn import(&self, import: Import) {
        self.ask(Job::Import(import));
    }

    /// Writes out a snapshot of that one.
    pub fn keep_incoming(&self, frozen: Frozen) {
        self.ask(Job::KeepIncoming(frozen));
    }

    /// Gives back what a database has that is the own one no more.
    pub fn retire(&self, old: Cell) {
        self.ask(Job::Retire(old));
    }

    /// Gives back, and removes, the database beside the own one.
    pub fn drop_incoming(&self, incoming: Option<Cell>) {
        self.ask(Job::DropIncoming(incoming));
    }

    /// What is done since it was last asked.
    pub fn take_done(&mut self) -> Option<Done> {
        self.done.try_recv().ok()
    }

    /// Where the files are.
    pub fn place(&self) -> &Place {
        &self.place
    }
}

impl Drop for Databases {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.is_old.store(true, Ordering::Relaxed);
        (self.jobs, self.chores) = (None, None);
        for thread in self.threads.drain(..) {
            // A panic there has already ended the process (`serve::abort_on_panics`).
            let _ = thread.join();
        }
    }
}
