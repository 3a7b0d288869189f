//! The thread that looks for rot before somebody needs the page (rule P14): paced, and behind everybody else.
//!
//! A round: the pages of the newest durable snapshot are read from the disk, and their checksums checked; then all rows of a
//! frozen view are read, and their digest is compared with the one that every change kept. What is found puts the database in
//! quarantine. A page in memory that the disk no longer has is found by the second alone, rot that memory hides by the first.
//! Then the log's closed segments are read, frame by frame. What is found there is in the database too: two snapshots, and the
//! segment is needed no more.

use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use synod_ring::Waker;
use synod_store::{Pacing, ReadView, RecomputeError, Scrub, ScrubError, Store};
use synod_wal::directory::open_segment;
use synod_wal::{CheckError, Closed, Log};

use crate::cli::chain;
use crate::databases::NICE;

/// Between the end of one round and the beginning of the next. Each freezes the database, and the first write of each page behind a
/// freeze copies it: seldom, then.
pub const REST: Duration = Duration::from_secs(3600);

/// What `synod status` says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Whether a round is under way.
    pub under_way: bool,
    /// Rounds that came to their end and found nothing.
    pub rounds: u64,
    /// Pages that were read from the disk in them.
    pub pages: u64,
    /// Rounds that found damage.
    pub damaged: u64,
    /// Rounds that were given up: a view that kept too much was ended, or the disk would not read.
    pub given_up: u64,
    /// Bytes of the log that were read and found sound.
    pub log_bytes: u64,
    /// Segments of the log that were found damaged, each time they were.
    pub log_damaged: u64,
}

struct Job {
    scrub: Scrub,
    view: ReadView,
    log: LogJob,
}

/// What of the log is to be read.
#[derive(Clone, Debug)]
pub struct LogJob {
    /// Where its files are.
    pub directory: PathBuf,
    /// A segment's size.
    pub segment_bytes: u64,
    /// The segments.
    pub closed: Vec<Closed>,
}

impl LogJob {
    /// All that is written no more.
    pub fn of(log: &Log, directory: &Path) -> LogJob {
        let segment_bytes = log.settings().segment_bytes;
        LogJob { directory: directory.to_owned(), segment_bytes, closed: log.closed() }
    }
}

/// What there was in the log.
#[derive(Debug, Default)]
pub struct LogFound {
    /// How much of it is sound.
    pub bytes: u64,
    /// The segments that are not what was written, if they are the log's still; and what is wrong.
    pub damaged: Vec<(Closed, String)>,
}

/// How a round ended.
#[derive(Debug)]
pub enum Round {
    /// Nothing was found, on so many pages.
    Sound(u64),
    /// This is no more what was written.
    Damaged(String),
    /// It was not finished.
    GivenUp(String),
}

/// The thread's two ends as the hot core sees them. Dropping it ends the thread.
pub struct Scrubber {
    jobs: Option<mpsc::SyncSender<Job>>,
    ended: mpsc::Receiver<(Round, LogFound)>,
    cancel: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    status: ScrubStatus,
}

impl Scrubber {
    /// Starts the thread; it reads so many bytes a second at most.
    pub fn start(bytes_per_second: u64, waker: Waker) -> io::Result<Self> {
        // One round at a time, so neither channel ever holds more than one item.
        let (jobs, to_do) = mpsc::sync_channel::<Job>(1);
        let (tell, ended) = mpsc::sync_channel(1);
        let pacing = Pacing { bytes_per_second: Some(bytes_per_second), ..Pacing::default() };
        let cancel = Arc::clone(&pacing.cancel);
        let look = move || {
            if let Err(error) = rustix::process::nice(NICE) {
                eprintln!("synod: the thread of the scrubber keeps its priority: {error}");
            }
            while let Ok(job) = to_do.recv() {
                let round = look_through(job.scrub, &job.view, &pacing);
                // It keeps what is changed meanwhile twice.
                drop(job.view);
                if tell.send((round, look_through_log(&job.log, &pacing))).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        let thread = std::thread::Builder::new().name("scrub".to_owned()).spawn(look)?;
        Ok(Self { jobs: Some(jobs), ended, cancel, thread: Some(thread), status: ScrubStatus::default() })
    }

    /// Begins a round, unless one is under way.
    pub fn begin(&mut self, store: &mut Store, log: LogJob) {
        if !self.status.under_way {
            let jobs = self.jobs.as_ref().expect("it is there until drop");
            jobs.try_send(Job { scrub: store.scrub(), view: store.freeze(), log }).expect("one round at a time");
            self.status.under_way = true;
        }
    }

    /// How the round ended, if it did.
    pub fn take_ended(&mut self) -> Option<(Round, LogFound)> {
        let (round, log) = self.ended.try_recv().ok()?;
        self.status.under_way = false;
        self.status.log_bytes += log.bytes;
        match &round {
            Round::Sound(pages) => {
                self.status.rounds += 1;
                self.status.pages += pages;
            }
            Round::Damaged(_) => self.status.damaged += 1,
            Round::GivenUp(_) => self.status.given_up += 1,
        }
        Some((round, log))
    }

    /// A damaged segment is one that recovery would still read.
    pub fn count_log_damage(&mut self) {
        self.status.log_damaged += 1;
    }

    /// What there is to say of it.
    pub fn status(&self) -> ScrubStatus {
        self.status.clone()
    }
}

/// Looks through the pages of a snapshot and the rows of a view: a round.
pub fn look_through(scrub: Scrub, view: &ReadView, pacing: &Pacing) -> Round {
    let pages = match scrub.run(pacing) {
        Ok(pages) => pages,
        Err(ScrubError::Damaged(damage)) => return Round::Damaged(damage.to_string()),
        Err(error @ (ScrubError::Read { .. } | ScrubError::Cancelled)) => return Round::GivenUp(chain(&error)),
    };
    let kept = view.digest();
    match view.recompute_digest(pacing) {
        Ok(found) if found == kept => Round::Sound(pages),
        Ok(found) => Round::Damaged(format!("its rows have digest {found}, and every change kept {kept}")),
        Err(error @ (RecomputeError::Ended(_) | RecomputeError::Cancelled)) => Round::GivenUp(chain(&error)),
    }
}

/// Looks through the log's closed segments.
pub fn look_through_log(job: &LogJob, pacing: &Pacing) -> LogFound {
    let mut found = LogFound::default();
    let (began, mut bytes_read) = (Instant::now(), 0);
    for closed in &job.closed {
        let checked = match open_segment(&job.directory, closed.segment) {
            Ok(file) => closed.check(job.segment_bytes, &mut |offset, into| {
                pacing.sleep(began, bytes_read);
                bytes_read += into.len() as u64;
                file.read_exact_at(into, offset)
            }),
            Err(error) => {
                let (segment, source) = (closed.segment, io::Error::from(error));
                Err(CheckError::Read { segment, offset: 0, source })
            }
        };
        if pacing.cancel.load(Ordering::Relaxed) {
            break;
        }
        match checked {
            Ok(bytes) => found.bytes += bytes,
            Err(error) => found.damaged.push((*closed, chain(&error))),
        }
    }
    found
}

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already ended the process (`serve::abort_on_panics`).
            let _ = thread.join();
        }
    }
}
