//! The thread of a replica that copies its database to a remote place: when an operator asks, and by the replica's schedule.
//!
//! The hot core freezes the database, which takes no time, and hands the view over; it hears of the end. How far a copy is, it
//! reads from a number that this thread raises. One copy at a time.
//!
//! **The schedule** needs no protocol: the place itself says when the last copy of this cell was made, and whoever has a schedule
//! looks. All members have one, and each waits a little longer than the one before it, so that normally the first to look makes the
//! copy, and the others find it. The coordinator passes its turn on; when nobody else has come forward it makes the copy itself.
//!
//! What a schedule made it removes, all but the newest so many; never the last one, and never what an operator asked for.

use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use synod_ring::Waker;

use super::manifest::{MadeBy, Manifest, Name, now_ms};
use super::save::{Pace, SaveError, Saved, Source, save};
use super::{Remote, RemoteError};
use crate::cli::chain;
use crate::config::Config;
use crate::status::{RemoteCopyStatus, RemoteScheduleStatus};

/// How often the place is looked at, as a part of the time between two copies; also what each member waits longer than the
/// one before it.
const LOOKS: u64 = 20;
/// But not more often than this.
const LOOK_TIME_MIN: Duration = Duration::from_secs(1);
/// A copy that is not whole is being made, if the last of its chunks is not older than this; else it was given up.
const CHUNK_TIME_MAX_MS: u64 = 5 * 60 * 1000;
/// How often the views are held to their bounds while a copy is being made.
pub(crate) const BOUND_EVERY: Duration = Duration::from_secs(5);

/// What a replica's schedule is.
#[derive(Clone, Debug)]
pub struct Schedule {
    url: String,
    cell: u128,
    every: Duration,
    kept: usize,
    /// How many members look before this one.
    rank: u32,
    members: u32,
}

impl Schedule {
    /// The one that the configuration has, if it has one.
    pub fn new(config: &Config, cell: u128) -> Option<Self> {
        let before = config.members.iter().filter(|member| member.id < config.id).count();
        Some(Self {
            url: config.snapshot_to.clone()?,
            cell,
            every: Duration::from_secs(60 * config.snapshot_every_minutes),
            kept: usize::try_from(config.snapshots_kept).expect("validated"),
            rank: u32::try_from(before).expect("members are few"),
            members: u32::try_from(config.members.len()).expect("members are few"),
        })
    }

    fn look_every(&self) -> Duration {
        (self.every / LOOKS as u32).max(LOOK_TIME_MIN)
    }

    /// Whether a copy is to be made, when one could have been made so long ago.
    fn due(&self, waited: Duration) -> Option<Due> {
        let turn = self.look_every() * self.rank;
        (waited >= turn).then_some(Due { overdue: waited >= self.look_every() * (self.members + 1) })
    }

    /// Which of these are to be removed: what schedules made, but for the newest so many.
    fn surplus(&self, copies: &[(Name, Manifest)]) -> Vec<Name> {
        let mut made: Vec<Name> =
            copies.iter().filter(|(_, copy)| copy.made_by == MadeBy::Schedule).map(|(name, _)| *name).collect();
        made.sort_unstable();
        made.truncate(made.len().saturating_sub(self.kept.max(1)));
        made
    }
}

/// It is this replica's turn to make a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Due {
    /// Everybody's turn has passed.
    pub overdue: bool,
}

struct Job {
    source: Source,
    url: String,
}

/// What the thread has to tell.
pub enum News {
    /// The schedule wants a copy.
    Due(Due),
    /// The schedule cannot be kept, for this reason; or again, after it could not.
    Trouble(Option<String>),
    /// A copy is made, or was given up.
    Ended(Result<Saved, SaveError>),
}

/// The thread's two ends as the hot core sees them.
///
/// Dropping it lets the thread end before its next chunk, and does not wait for it: a place that does not answer must not keep
/// a replica from stopping, and half a copy is none.
pub struct Copies {
    jobs: mpsc::SyncSender<Job>,
    news: mpsc::Receiver<News>,
    pace: Pace,
    schedule: Option<Schedule>,
    /// Why the schedule cannot be kept.
    trouble: Option<String>,
    /// The last copy, as the status has it.
    last: Option<RemoteCopyStatus>,
}

impl Drop for Copies {
    fn drop(&mut self) {
        self.pace.cancel.store(true, Ordering::Relaxed);
    }
}

impl Copies {
    /// Starts the thread; it reads and writes so many bytes a second at most.
    pub fn start(schedule: Option<Schedule>, bytes_per_second: u64, waker: Waker) -> std::io::Result<Self> {
        let (jobs, to_do) = mpsc::sync_channel::<Job>(1);
        let (tell, news) = mpsc::sync_channel::<News>(2);
        let pace = Pace { bytes_per_second: Some(bytes_per_second), ..Pace::default() };
        let mut worker = Worker { pace: pace.clone(), schedule: schedule.clone(), looks_without_any: 0, trouble: None };
        let work = move || {
            let mut wait = Duration::ZERO;
            loop {
                let mut all = Vec::new();
                match to_do.recv_timeout(wait) {
                    Ok(Job { source, url }) => all.push(News::Ended(worker.copy(&source, &url))),
                    Err(RecvTimeoutError::Timeout) => worker.look(&mut all),
                    Err(RecvTimeoutError::Disconnected) => return,
                }
                for news in all {
                    if tell.send(news).is_err() {
                        return;
                    }
                    waker.wake();
                }
                wait = worker.schedule.as_ref().map_or(Duration::MAX, Schedule::look_every);
            }
        };
        std::thread::Builder::new().name("copies".to_owned()).spawn(work)?;
        Ok(Self { jobs, news, pace, schedule, trouble: None, last: None })
    }

    /// Whether a copy is being made.
    pub fn is_copying(&self) -> bool {
        self.last.as_ref().is_some_and(|last| !last.done)
    }

    /// Where the schedule's copies go.
    pub fn scheduled_url(&self) -> Option<&str> {
        self.schedule.as_ref().map(|schedule| schedule.url.as_str())
    }

    /// Begins a copy. One at a time: see [`Copies::is_copying`].
    pub fn begin(&mut self, source: Source, url: String) {
        assert!(!self.is_copying(), "one copy at a time");
        self.last = Some(RemoteCopyStatus {
            number: self.last.as_ref().map_or(0, |last| last.number) + 1,
            name: source.name().to_string(),
            to: url.clone(),
            made_by: source.made_by,
            bytes: 0,
            bytes_total: source.view.bytes(),
            done: false,
            was_there: false,
            error: None,
        });
        self.pace.bytes.store(0, Ordering::Relaxed);
        self.jobs.try_send(Job { source, url }).expect("the thread has nothing else to do");
    }

    /// What the thread has to tell.
    pub fn take_news(&mut self) -> Option<News> {
        let news = self.news.try_recv().ok()?;
        if let News::Trouble(trouble) = &news {
            self.trouble.clone_from(trouble);
        }
        if let (News::Ended(outcome), Some(last)) = (&news, &mut self.last) {
            last.done = true;
            match outcome {
                Ok(saved) => (last.bytes, last.was_there) = (saved.bytes, saved.was_there),
                Err(error) => {
                    last.bytes = self.pace.bytes.load(Ordering::Relaxed);
                    last.error = Some(chain(error));
                }
            }
        }
        Some(news)
    }

    /// The schedule, if there is one.
    pub fn schedule_status(&self) -> Option<RemoteScheduleStatus> {
        let schedule = self.schedule.as_ref()?;
        Some(RemoteScheduleStatus {
            to: schedule.url.clone(),
            every_minutes: schedule.every.as_secs() / 60,
            kept: schedule.kept as u64,
            trouble: self.trouble.clone(),
        })
    }

    /// The last copy, or the one that is being made.
    pub fn status(&self) -> Option<RemoteCopyStatus> {
        let mut last = self.last.clone()?;
        if !last.done {
            last.bytes = self.pace.bytes.load(Ordering::Relaxed);
        }
        Some(last)
    }
}

/// The thread's own.
struct Worker {
    pace: Pace,
    schedule: Option<Schedule>,
    /// How often the place was found without any copy.
    looks_without_any: u32,
    /// What the last look failed for: said once, not every time.
    trouble: Option<String>,
}

impl Worker {
    fn copy(&mut self, source: &Source, url: &str) -> Result<Saved, SaveError> {
        let remote = Remote::open(url)?;
        let saved = save(&remote, source, &self.pace)?;
        if source.made_by == MadeBy::Schedule
            && let Some(schedule) = &self.schedule
            && let Err(error) = remove_surplus(&remote, schedule)
        {
            eprintln!("synod: older copies of snapshots could not be removed: {}", chain(&error));
        }
        Ok(saved)
    }

    fn look(&mut self, news: &mut Vec<News>) {
        let Some(schedule) = &self.schedule else { return };
        let found = newest(schedule);
        let trouble = found.as_ref().err().map(|error| chain(error));
        if self.trouble != trouble {
            self.trouble.clone_from(&trouble);
            news.push(News::Trouble(trouble));
        }
        let due = match found.unwrap_or(Newest::BeingMade) {
            Newest::Taken(taken_ms) => {
                let age = Duration::from_millis(now_ms().saturating_sub(taken_ms));
                age.checked_sub(schedule.every).and_then(|waited| schedule.due(waited))
            }
            Newest::BeingMade => None,
            // There is no time to count from: it is counted how often we have looked.
            Newest::None => {
                let looks = self.looks_without_any;
                self.looks_without_any += 1;
                schedule.due(schedule.look_every() * looks)
            }
        };
        news.extend(due.map(News::Due));
    }
}

/// What the place has of a cell's newest state.
enum Newest {
    /// A whole copy of then.
    Taken(u64),
    /// One that is not whole yet.
    BeingMade,
    None,
}

fn newest(schedule: &Schedule) -> Result<Newest, RemoteError> {
    let remote = Remote::open(&schedule.url)?;
    for name in remote.names(Some(schedule.cell))?.into_iter().rev() {
        // Whoever made it: a copy is a copy. One that cannot be read is none.
        match remote.manifest(name)? {
            Some(Ok(manifest)) => return Ok(Newest::Taken(manifest.taken_ms)),
            Some(Err(_)) => {}
            None if now_ms().saturating_sub(remote.last_written_ms(name)?) < CHUNK_TIME_MAX_MS => {
                return Ok(Newest::BeingMade);
            }
            None => {}
        }
    }
    Ok(Newest::None)
}

fn remove_surplus(remote: &Remote, schedule: &Schedule) -> Result<(), RemoteError> {
    let mut copies = Vec::new();
    for name in remote.names(Some(schedule.cell))? {
        if let Some(Ok(manifest)) = remote.manifest(name)? {
            copies.push((name, manifest));
        }
    }
    for name in schedule.surplus(&copies) {
        remote.remove(name)?;
        eprintln!("synod: removed the copy {name}: {} newer ones are kept", schedule.kept);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::remote::manifest::tests::example;
    use synod_paxos::Slot;
    use synod_store::Revision;

    fn schedule(rank: u32) -> Schedule {
        let every = Duration::from_secs(3600);
        Schedule { url: "/copies".to_owned(), cell: 7, every, kept: 2, rank, members: 3 }
    }

    #[test]
    fn each_member_waits_for_those_before_it() {
        let turn = schedule(0).look_every();
        assert_eq!(turn, Duration::from_secs(180));
        assert_eq!(schedule(0).due(Duration::ZERO), Some(Due { overdue: false }));
        assert_eq!(schedule(2).due(turn), None);
        assert_eq!(schedule(2).due(turn * 2), Some(Due { overdue: false }));
        // All had their turn, and the coordinator, whoever it is, had passed its own on.
        assert_eq!(schedule(0).due(turn * 3), Some(Due { overdue: false }));
        assert_eq!(schedule(0).due(turn * 4), Some(Due { overdue: true }));
    }

    #[test]
    fn what_operators_asked_for_stays_and_so_does_the_newest() {
        let name = |slot| Name { cell: 7, slot: Slot(slot), revision: Revision(slot) };
        let copy = |slot, made_by| (name(slot), example(name(slot), slot, made_by, &[]));
        let mut copies: Vec<_> = (1..=4).map(|slot| copy(slot, MadeBy::Schedule)).collect();
        copies.push(copy(5, MadeBy::Operator));
        assert_eq!(schedule(0).surplus(&copies), [name(1), name(2)]);
        assert_eq!(schedule(0).surplus(&copies[3..]), []);
        let none = Schedule { kept: 0, ..schedule(0) };
        assert_eq!(none.surplus(&copies), [name(1), name(2), name(3)]);
    }

    #[test]
    fn a_place_says_when_the_last_copy_was_made_and_whether_one_is_being_made() {
        let dir = tempfile::tempdir().unwrap();
        let schedule = Schedule { url: dir.path().to_str().unwrap().to_owned(), ..schedule(0) };
        assert!(matches!(newest(&schedule), Ok(Newest::None)));
        let remote = Remote::open(&schedule.url).unwrap();
        let name = |slot| Name { cell: 7, slot: Slot(slot), revision: Revision(slot) };
        let manifest = example(name(3), 1234, MadeBy::Schedule, &[b"one"]);
        remote.put(&remote.manifest_path(name(3)), manifest.encode()).unwrap();
        assert!(matches!(newest(&schedule), Ok(Newest::Taken(1234))));
        // Ten is more than three, though it sorts before it as a text.
        remote.put(&remote.chunk_path(name(10), 0), b"one".to_vec()).unwrap();
        assert!(matches!(newest(&schedule), Ok(Newest::BeingMade)));
        remote.remove(name(10)).unwrap();
        assert!(!dir.path().join(name(10).to_string()).exists());
        assert!(matches!(newest(&schedule), Ok(Newest::Taken(1234))));
        // What schedules made goes, but for the newest two; and the folders with it.
        for slot in [4, 5, 6] {
            remote.put(&remote.chunk_path(name(slot), 0), b"one".to_vec()).unwrap();
            let manifest = example(name(slot), slot, MadeBy::Schedule, &[b"one"]);
            remote.put(&remote.manifest_path(name(slot)), manifest.encode()).unwrap();
        }
        let by_operator = example(name(2), 1, MadeBy::Operator, &[]);
        remote.put(&remote.manifest_path(name(2)), by_operator.encode()).unwrap();
        remove_surplus(&remote, &schedule).unwrap();
        assert_eq!(remote.names(None).unwrap(), [name(2), name(5), name(6)]);
        assert_eq!(std::fs::read_dir(dir.path().join(name(5).to_string()).parent().unwrap()).unwrap().count(), 3);
        [2, 5, 6].into_iter().for_each(|slot| remote.remove(name(slot)).unwrap());
        remote.put(&remote.manifest_path(name(3)), manifest.encode()).unwrap();
        // What others keep there is none of ours.
        std::fs::create_dir_all(dir.path().join("photos/2026-1")).unwrap();
        assert_eq!(remote.names(None).unwrap(), [name(3)]);
    }
}
