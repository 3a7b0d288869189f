//! What the commands do with a cell of real processes: start it, kill in it, wait for it, and clean up after it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use synod_node::local_cell::{LocalCell, LocalCellError, LocalCellOptions};
use synod_node::status::Status;
use tempfile::TempDir;

use super::stop::Stop;

/// A replica that was started must answer within this time, however much log it has to read.
pub const COMES_BACK_TIME_MAX: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(10);
/// So much of a replica's messages goes into an error.
const TAIL_LINES: usize = 20;

/// What every command takes.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// Where to make the directories, on a disk [default: the place for temporary files]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Leave the directories there when it fails
    #[arg(long)]
    pub keep: bool,
    /// Print the report as JSON
    #[arg(long)]
    pub json: bool,
}

impl Common {
    /// Runs it in a fresh directory, which is gone afterwards, unless it fails and is to be kept.
    pub fn within<R>(&self, command: &str, run: impl FnOnce(&Place) -> anyhow::Result<R>) -> anyhow::Result<R> {
        let mut place = Place::new(self.dir.as_deref(), command)?;
        run(&place).inspect_err(|_| {
            if self.keep {
                place.keep();
            }
        })
    }
}

/// Where a cell's directories are made.
pub struct Place {
    dir: Option<TempDir>,
    path: PathBuf,
}

impl Place {
    /// A fresh directory below this one, or below the default place for temporary files.
    fn new(parent: Option<&Path>, command: &str) -> anyhow::Result<Self> {
        let parent = parent.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = tempfile::Builder::new()
            .prefix(&format!("synod-{command}-"))
            .tempdir_in(&parent)
            .with_context(|| format!("cannot make a directory in {}", parent.display()))?;
        Ok(Self { path: dir.path().to_owned(), dir: Some(dir) })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Leaves it where it is, for a look at what went wrong.
    fn keep(&mut self) {
        if let Some(dir) = self.dir.take() {
            eprintln!("synod-torture: the replicas' directories stay: {}", dir.keep().display());
        }
    }
}

/// A cell of real processes, and what a test does to it.
pub struct TortureCell {
    cell: LocalCell,
    stop: Stop,
}

impl TortureCell {
    /// Starts the cell, with this very program's `serve`, and waits for a master.
    pub fn start(replicas: u16, dir: PathBuf, serve_flags: &[&str], stop: &Stop) -> anyhow::Result<Self> {
        let cell = LocalCell::start(LocalCellOptions {
            replicas,
            dir,
            first_port: None,
            serve_flags: serve_flags.iter().map(|&flag| flag.to_owned()).collect(),
            program: None,
        })?;
        let mut cell = Self { cell, stop: stop.clone() };
        for id in cell.ids() {
            cell.wait_until_it_answers(id)?;
        }
        cell.master()?;
        Ok(cell)
    }

    /// The replicas' ids.
    #[must_use]
    pub fn ids(&self) -> Vec<u16> {
        self.cell.ids()
    }

    /// Where clients reach them.
    #[must_use]
    pub fn endpoints(&self) -> Vec<String> {
        self.cell.endpoints()
    }

    /// Who is master, once there is one. None may be paused: it would be waited for.
    pub fn master(&mut self) -> anyhow::Result<u16> {
        let ids = self.ids();
        self.wait_for("no replica holds the lease", &ids, |cell| cell.master_among(&ids))
    }

    /// A replica's own view, if it answers.
    #[must_use]
    pub fn status(&self, id: u16) -> Option<Status> {
        self.cell.status(id)
    }

    /// Kills replicas with SIGKILL.
    pub fn kill(&mut self, ids: &[u16]) -> anyhow::Result<()> {
        ids.iter().try_for_each(|&id| self.cell.kill_replica(id)).context("killing a replica")
    }

    /// Stops one replica in order.
    pub fn stop_replica(&mut self, id: u16) -> anyhow::Result<()> {
        self.cell.stop_replica(id).with_context(|| format!("stopping replica {id}"))
    }

    /// Pauses a replica with SIGSTOP: its connections stay open, and its kernel goes on taking new ones.
    pub fn pause(&self, id: u16) -> anyhow::Result<()> {
        self.signal(id, Signal::STOP).with_context(|| format!("pausing replica {id}"))
    }

    /// Lets a paused replica go on.
    pub fn resume(&self, id: u16) -> anyhow::Result<()> {
        self.signal(id, Signal::CONT).with_context(|| format!("resuming replica {id}"))
    }

    fn signal(&self, id: u16, signal: Signal) -> anyhow::Result<()> {
        let pid = self.cell.pid(id).and_then(|pid| Pid::from_raw(pid as i32)).context("it does not run")?;
        Ok(kill_process(pid, signal)?)
    }

    /// Who of these holds the master's lease. A paused one must not be among them: it would be waited for.
    #[must_use]
    pub fn master_among(&self, ids: &[u16]) -> Option<u16> {
        ids.iter().copied().find(|&id| self.cell.status(id).is_some_and(|status| status.is_master))
    }

    /// Where one replica keeps its files.
    #[must_use]
    pub fn replica_dir(&self, id: u16) -> PathBuf {
        self.cell.replica_dir(id)
    }

    /// One replica's client address.
    #[must_use]
    pub fn endpoint(&self, id: u16) -> String {
        self.cell.endpoint(id)
    }

    /// All but this one.
    #[must_use]
    pub fn others(&self, than: u16) -> Vec<u16> {
        self.ids().into_iter().filter(|&id| id != than).collect()
    }

    /// Starts a replica that was killed, and waits until it answers; says how long that took.
    pub fn bring_back(&mut self, ids: &[u16]) -> anyhow::Result<Duration> {
        let start = Instant::now();
        for &id in ids {
            self.cell.start_replica(id)?;
        }
        for &id in ids {
            self.wait_until_it_answers(id)?;
        }
        Ok(start.elapsed())
    }

    /// Starts a replica, and does not wait: it may have to ask others first.
    pub fn start_again(&mut self, id: u16) -> anyhow::Result<()> {
        Ok(self.cell.start_replica(id)?)
    }

    fn wait_until_it_answers(&mut self, id: u16) -> anyhow::Result<()> {
        let what = format!("replica {id} does not answer");
        self.wait_for(&what, &[id], |cell| cell.cell.status(id).map(|_| ()))
    }

    /// Looks until there is something to see. A replica that ends by itself, or the end of patience, is an error, with
    /// the last words of these replicas.
    pub fn wait_for<T>(
        &mut self,
        what: &str,
        ids: &[u16],
        look: impl FnMut(&mut Self) -> Option<T>,
    ) -> anyhow::Result<T> {
        let seen = self.look_for(COMES_BACK_TIME_MAX, LOOK, look)?;
        seen.ok_or_else(|| self.with_tails(&anyhow::anyhow!("{what} within {COMES_BACK_TIME_MAX:?}"), ids))
    }

    /// Looks every so often until there is something to see; nothing if there is not within this time. A replica that ends
    /// by itself is an error.
    pub fn look_for<T>(
        &mut self,
        patience: Duration,
        every: Duration,
        mut look: impl FnMut(&mut Self) -> Option<T>,
    ) -> anyhow::Result<Option<T>> {
        let give_up = Instant::now() + patience;
        loop {
            if let Some(seen) = look(self) {
                return Ok(Some(seen));
            }
            self.stop.check()?;
            self.check()?;
            if Instant::now() >= give_up {
                return Ok(None);
            }
            std::thread::sleep(every);
        }
    }

    /// An error if a replica has ended by itself.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.cell.check().map_err(|error| self.with_tails(&error.into(), &self.ids()))
    }

    /// The replica that has ended by itself, with its status and last words, if one has: it is not running any more.
    pub fn ended(&mut self) -> anyhow::Result<Option<(u16, Option<i32>, String)>> {
        match self.cell.check() {
            Ok(()) => Ok(None),
            Err(LocalCellError::Ended { id, status, last }) => Ok(Some((id, status.code(), last))),
            Err(error) => Err(error.into()),
        }
    }

    /// Starts a replica that does not run, and does not wait for it.
    pub fn start_replica(&mut self, id: u16) -> anyhow::Result<()> {
        Ok(self.cell.start_replica(id)?)
    }

    /// Waits until all replicas have applied the same slots and have databases of the same size. Nothing may be written
    /// meanwhile.
    pub fn wait_until_alike(&mut self) -> anyhow::Result<Status> {
        let ids = self.ids();
        self.wait_for("the replicas are not alike", &ids, |cell| {
            let statuses: Option<Vec<Status>> = cell.ids().into_iter().map(|id| cell.cell.status(id)).collect();
            let statuses = statuses?;
            let view = |status: &Status| {
                let database = &status.database;
                (status.chosen, database.revision, database.rows, database.bytes, database.sessions)
            };
            let alike = statuses.windows(2).all(|pair| view(&pair[0]) == view(&pair[1]));
            alike.then(|| statuses.into_iter().next().expect("a cell has a replica"))
        })
    }

    /// Stops all replicas in order.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        Ok(self.cell.stop()?)
    }

    /// The error, then the replicas' last words.
    fn with_tails(&self, error: &anyhow::Error, ids: &[u16]) -> anyhow::Error {
        let tails: Vec<String> = ids.iter().map(|&id| self.tail(id)).collect();
        anyhow::anyhow!("the cell did not come back: {error:#}\n{}", tails.join("\n"))
    }

    fn tail(&self, id: u16) -> String {
        let text = match std::fs::read_to_string(self.cell.replica_log(id)) {
            Ok(text) => text,
            Err(error) => format!("(its messages cannot be read: {error})"),
        };
        let lines: Vec<&str> = text.lines().collect();
        let last = lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n");
        format!("-- replica {id} said, last:\n{last}")
    }
}
