//! The thread that looks for rot before somebody needs the page (rule P14): paced, and behind everybody else.
//!
//! A round: the pages of the newest durable snapshot are read from the disk, and their checksums checked; then all rows of a
//! frozen view are read, and their digest is compared with the one that every change kept. What is found puts the database in
//! quarantine. A page in memory that the disk no longer has is found by the second alone, rot that memory hides by the first.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use synod_ring::Waker;
use synod_store::{Pacing, ReadView, RecomputeError, Scrub, ScrubError, Store};

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
}

struct Job {
    scrub: Scrub,
    view: ReadView,
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
    ended: mpsc::Receiver<Round>,
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
                if tell.send(look_through(job.scrub, &job.view, &pacing)).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        let thread = std::thread::Builder::new().name("scrub".to_owned()).spawn(look)?;
        Ok(Self { jobs: Some(jobs), ended, cancel, thread: Some(thread), status: ScrubStatus::default() })
    }

    /// Begins a round, unless one is under way.
    pub fn begin(&mut self, store: &mut Store) {
        if !self.status.under_way {
            let jobs = self.jobs.as_ref().expect("it is there until drop");
            jobs.try_send(Job { scrub: store.scrub(), view: store.freeze() }).expect("one round at a time");
            self.status.under_way = true;
        }
    }

    /// How the round ended, if it did.
    pub fn take_ended(&mut self) -> Option<Round> {
        let round = self.ended.try_recv().ok()?;
        self.status.under_way = false;
        match &round {
            Round::Sound(pages) => {
                self.status.rounds += 1;
                self.status.pages += pages;
            }
            Round::Damaged(_) => self.status.damaged += 1,
            Round::GivenUp(_) => self.status.given_up += 1,
        }
        Some(round)
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

impl Drop for Scrubber {
    fn drop(&mut self) {
        self.cancel.store(true, Ordering::Relaxed);
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already ended the process (panic = "abort").
            let _ = thread.join();
        }
    }
}
