//! Whole cells of real processes for the tests beside this folder. Loopback only; nothing stays behind, however a test
//! ends.
#![allow(dead_code, reason = "each test file is a crate of its own and uses its own part")]

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use synod_client::{Client, Options};
use synod_node::local_cell::{LocalCell, LocalCellOptions};
use synod_node::status::Status;
use tempfile::TempDir;

/// Far more than anything here takes, even where disk and processors are shared with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);

/// Little disk, quick elections.
pub(crate) const SMALL: [&str; 10] = [
    "--segment-mb",
    "4",
    "--log-mb-max",
    "512",
    "--heartbeat-ms",
    "50",
    "--lease-ms",
    "300",
    "--election-timeout-ms",
    "300",
];

/// The program whose `serve` is a replica.
pub(crate) fn program() -> PathBuf {
    env!("CARGO_BIN_EXE_synod-torture").into()
}

/// A directory for logs: below cargo's, which is on a disk, as the default place for temporary files may not be.
pub(crate) fn temp_dir() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Runs a torture command, small; whether it says that all is well, and what it printed.
#[track_caller]
pub(crate) fn torture(arguments: &[&str]) -> (bool, String) {
    let dir = temp_dir();
    let output = Command::new(program()).args(arguments).arg("--dir").arg(dir.path()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.success(), text(&output.stdout) + &text(&output.stderr))
}

/// A cell, and the directory that it is in.
pub(crate) struct TestCell {
    // In this order: the processes end before their directories go.
    pub(crate) cell: LocalCell,
    dir: TempDir,
}

impl TestCell {
    /// Starts a cell and waits for a master.
    #[track_caller]
    pub(crate) fn start(replicas: u16, serve_flags: &[&str]) -> Self {
        Self::start_in(temp_dir(), replicas, serve_flags)
    }

    /// Ends the cell, and starts it again in the same directories, with other flags (and other ports).
    #[track_caller]
    pub(crate) fn start_again(self, serve_flags: &[&str]) -> Self {
        let Self { cell, dir } = self;
        let replicas = cell.ids().len() as u16;
        drop(cell);
        Self::start_in(dir, replicas, serve_flags)
    }

    #[track_caller]
    fn start_in(dir: TempDir, replicas: u16, serve_flags: &[&str]) -> Self {
        let cell = LocalCell::start(LocalCellOptions {
            replicas,
            dir: dir.path().join("cell"),
            first_port: None,
            serve_flags: serve_flags.iter().map(|&flag| flag.to_owned()).collect(),
            program: Some(program()),
        })
        .unwrap();
        let mut cell = Self { cell, dir };
        for id in cell.cell.ids() {
            cell.wait_until_it_answers(id);
        }
        cell.master();
        cell
    }

    /// Who is master, once there is one.
    #[track_caller]
    pub(crate) fn master(&mut self) -> u16 {
        self.cell.wait_for_master(PATIENCE).unwrap()
    }

    /// All but this one.
    pub(crate) fn others(&self, than: u16) -> Vec<u16> {
        self.cell.ids().into_iter().filter(|&id| id != than).collect()
    }

    /// A client that waits as long as an election on a slow machine may take.
    #[track_caller]
    pub(crate) fn client(&self) -> Client {
        let endpoints = self.cell.endpoints();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        Client::connect(&endpoints, Options { deadline: PATIENCE, ..Options::default() }).unwrap()
    }

    /// Starts a replica that was ended, and waits until it answers.
    #[track_caller]
    pub(crate) fn restart(&mut self, id: u16) {
        self.cell.start_replica(id).unwrap();
        self.wait_until_it_answers(id);
    }

    #[track_caller]
    pub(crate) fn wait_until_it_answers(&mut self, id: u16) -> Status {
        wait_for("a replica to answer", || {
            self.cell.check().unwrap();
            self.cell.status(id)
        })
    }

    /// Waits until these replicas have applied the same slots, and gives what they have.
    #[track_caller]
    pub(crate) fn wait_until_alike(&mut self, ids: &[u16]) -> Status {
        wait_for("the replicas to be alike", || {
            self.cell.check().unwrap();
            let statuses: Option<Vec<Status>> = ids.iter().map(|&id| self.cell.status(id)).collect();
            let statuses = statuses?;
            let view = |status: &Status| {
                let database = &status.database;
                (status.chosen, database.revision, database.rows, database.bytes, database.sessions)
            };
            statuses.windows(2).all(|pair| view(&pair[0]) == view(&pair[1])).then(|| statuses[0].clone())
        })
    }

    /// Everything that a replica has printed so far.
    pub(crate) fn messages(&self, id: u16) -> String {
        std::fs::read_to_string(self.cell.replica_log(id)).unwrap()
    }
}

/// Asks until the answer is there.
#[track_caller]
pub(crate) fn wait_for<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(LOOK);
    }
}

/// A process that is killed and reaped when the test is done with it.
pub(crate) struct Guard(pub(crate) Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only for a child that has been reaped, and then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a process that should end by itself; gives how it ended, and what it printed.
#[track_caller]
pub(crate) fn run(command: &mut Command) -> (ExitStatus, String) {
    let dir = temp_dir();
    let path = dir.path().join("stderr");
    let stderr = std::fs::File::create(&path).unwrap();
    let child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(stderr).spawn().unwrap();
    let mut child = Guard(child);
    let status = wait_for("a process to end", || child.0.try_wait().unwrap());
    (status, std::fs::read_to_string(path).unwrap())
}
