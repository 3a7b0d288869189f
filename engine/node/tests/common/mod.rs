//! Real `synod` processes for the tests beside this folder: started, waited for, ended and reaped, with nothing left
//! behind, however a test ends. Loopback only.
#![allow(dead_code, reason = "each test file is a crate of its own and uses its own part")]

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use synod_node::local_cell::free_ports;
use synod_node::status::Status;
use tempfile::TempDir;

/// Far more than anything here takes, even where disk and processors are shared with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// The exit statuses that README and `synod_node::serve::exit` promise.
pub(crate) const REFUSED: i32 = 78;
pub(crate) const SYSTEM: i32 = 71;

/// Little disk, quick elections.
pub(crate) const SMALL: [&str; 8] =
    ["--segment-mb", "4", "--log-mb-max", "64", "--heartbeat-ms", "50", "--election-timeout-ms", "300"];

pub(crate) fn program() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_synod"))
}

/// A directory for a log: the default place for temporary files, unless that is memory; then cargo's.
pub(crate) fn temp_dir() -> TempDir {
    let default = std::env::temp_dir();
    if is_tmpfs(&default) { tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")) } else { tempfile::tempdir() }.unwrap()
}

pub(crate) fn is_tmpfs(path: &Path) -> bool {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|stat| stat.f_type as u64 & 0xffff_ffff == TMPFS_MAGIC)
}

/// A process that ended.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    pub(crate) lasted: Duration,
}

impl Ended {
    /// Checks the exit status and that standard error has every one of these texts; gives what it has.
    #[track_caller]
    pub(crate) fn says(&self, code: i32, texts: &[&str]) -> &str {
        assert_eq!(self.status.code(), Some(code), "{self:?}");
        for text in texts {
            assert!(self.stderr.contains(text), "no {text:?} in:\n{}", self.stderr);
        }
        &self.stderr
    }

    /// What it printed, when it did what it was told and had nothing to complain about.
    #[track_caller]
    pub(crate) fn output(&self) -> &str {
        assert_eq!(self.status.code(), Some(0), "{self:?}");
        assert_eq!(self.stderr, "", "{self:?}");
        std::str::from_utf8(&self.stdout).unwrap()
    }
}

/// Runs `synod` with these arguments to its end.
pub(crate) fn synod<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Ended {
    run(command(arguments), b"")
}

/// `synod` with these arguments, and nothing of the tester's own settings.
pub(crate) fn command<I: AsRef<OsStr>>(arguments: impl IntoIterator<Item = I>) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).env_remove("SYNOD_ENDPOINTS");
    command
}

/// Runs a command to its end; kills it and panics when it does not end.
pub(crate) fn run(mut command: Command, stdin: &[u8]) -> Ended {
    // Files and not pipes: nobody has to read while it runs.
    let file = |bytes: &[u8]| {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
        file.rewind().unwrap();
        file
    };
    let (input, mut stdout, mut stderr) = (file(stdin), file(b""), file(b""));
    command.stdin(input).stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let start = Instant::now();
    let mut child = Guard(command.spawn().unwrap());
    let status = child.wait_at_most(PATIENCE);
    let lasted = start.elapsed();
    drop(child);
    let mut ended = Ended { status: status.unwrap_or_default(), stdout: Vec::new(), stderr: String::new(), lasted };
    stdout.rewind().unwrap();
    stdout.read_to_end(&mut ended.stdout).unwrap();
    stderr.rewind().unwrap();
    stderr.read_to_string(&mut ended.stderr).unwrap();
    assert!(status.is_some(), "did not end: {command:?}; {ended:?}");
    ended
}

/// A child that does not outlive us.
struct Guard(Child);

impl Guard {
    fn wait_at_most(&mut self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            match self.0.try_wait().unwrap() {
                Some(status) => return Some(status),
                None if start.elapsed() > patience => return None,
                None => std::thread::sleep(POLL),
            }
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only for a child that has been reaped, and then there is nothing to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process that runs until it is told to stop.
pub(crate) struct Process {
    child: Guard,
    /// What it prints: standard output, standard error.
    files: [PathBuf; 2],
    _dir: TempDir,
}

impl Process {
    pub(crate) fn start(mut command: Command) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = ["stdout", "stderr"].map(|name| dir.path().join(name));
        let [stdout, stderr] = files.each_ref().map(|path| File::create(path).unwrap());
        // An open standard input: when we are gone, however that went, it ends.
        let child = command.stdin(Stdio::piped()).stdout(stdout).stderr(stderr).spawn().unwrap();
        Self { child: Guard(child), files, _dir: dir }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.0.id()
    }

    pub(crate) fn stdout(&self) -> String {
        fs::read_to_string(&self.files[0]).unwrap()
    }

    pub(crate) fn stderr(&self) -> String {
        fs::read_to_string(&self.files[1]).unwrap()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child.0), signal).unwrap();
    }

    /// Panics, with what it printed, if it has ended.
    #[track_caller]
    pub(crate) fn must_run(&mut self) {
        if let Some(status) = self.child.0.try_wait().unwrap() {
            panic!("it ended with {status}:\n{}", self.stderr());
        }
    }

    /// Sends the signal, and waits for the end.
    #[track_caller]
    pub(crate) fn stop(self, signal: Signal) -> Ended {
        self.signal(signal);
        self.wait()
    }

    /// Does what our own end would do to it, and waits for the end.
    #[track_caller]
    pub(crate) fn desert(mut self) -> Ended {
        drop(self.child.0.stdin.take());
        self.wait()
    }

    #[track_caller]
    fn wait(mut self) -> Ended {
        let start = Instant::now();
        let status = self.child.wait_at_most(PATIENCE);
        let Some(status) = status else { panic!("it did not end:\n{}", self.stderr()) };
        let (stdout, stderr) = (self.stdout().into_bytes(), self.stderr());
        Ended { status, stdout, stderr, lasted: start.elapsed() }
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
        std::thread::sleep(POLL);
    }
}

/// How the replica at this endpoint is, if it answers.
pub(crate) fn status(endpoint: &str) -> Option<Status> {
    let text = synod_client::fetch_status(endpoint, Duration::from_secs(2)).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// The members of a cell, and where they keep their directories; their processes are the test's own.
pub(crate) struct Members {
    dir: TempDir,
    addresses: Vec<[SocketAddr; 2]>,
}

impl Members {
    pub(crate) fn new(count: usize) -> Self {
        let ports = free_ports(2 * count).unwrap();
        let addresses = ports.chunks(2).map(|pair| [pair[0], pair[1]].map(|port| ([127, 0, 0, 1], port).into()));
        Self { dir: temp_dir(), addresses: addresses.collect() }
    }

    pub(crate) fn dir(&self, id: usize) -> PathBuf {
        self.dir.path().join(format!("replica-{id}"))
    }

    pub(crate) fn peer(&self, id: usize) -> SocketAddr {
        self.addresses[id - 1][0]
    }

    pub(crate) fn client(&self, id: usize) -> SocketAddr {
        self.addresses[id - 1][1]
    }

    /// All client addresses, as `--endpoints` takes them.
    pub(crate) fn endpoints(&self) -> String {
        self.addresses.iter().map(|[_, client]| client.to_string()).collect::<Vec<_>>().join(",")
    }

    /// `serve` for one replica, in its own directory.
    pub(crate) fn arguments(&self, id: usize, more: &[&str]) -> Vec<String> {
        self.arguments_in(id, &self.dir(id), more)
    }

    /// `serve` for one replica, in this directory.
    pub(crate) fn arguments_in(&self, id: usize, dir: &Path, more: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = ["serve", "--id"].map(str::to_owned).into();
        arguments.extend([id.to_string(), "--dir".to_owned(), dir.to_str().unwrap().to_owned()]);
        for (index, [peer, client]) in self.addresses.iter().enumerate() {
            arguments.extend(["--member".to_owned(), format!("{}={peer},{client}", index + 1)]);
        }
        arguments.extend(SMALL.iter().chain(more).map(|&flag| flag.to_owned()));
        arguments
    }

    /// Starts one replica; it need not come to serve.
    pub(crate) fn start(&self, id: usize, more: &[&str]) -> Process {
        let mut command = command(self.arguments(id, more));
        command.arg("--stop-with-parent");
        Process::start(command)
    }

    /// Starts one replica and waits until it answers.
    #[track_caller]
    pub(crate) fn serve(&self, id: usize, more: &[&str]) -> Process {
        let mut process = self.start(id, more);
        wait_for("a replica to answer", || {
            process.must_run();
            status(&self.client(id).to_string())
        });
        process
    }

    /// Waits until one of the members coordinates; says which.
    #[track_caller]
    pub(crate) fn wait_for_coordinator(&self) -> usize {
        wait_for("a coordinator", || {
            (1..=self.addresses.len())
                .find(|&id| status(&self.client(id).to_string()).is_some_and(|status| status.role == "coordinating"))
        })
    }

    /// Runs a verb of the client against all members.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Ended {
        synod([&["--endpoints", &self.endpoints(), "--deadline-ms", "30000"], arguments].concat())
    }

    /// A cell of one, started for the first time, that has these keys, each with its own name as its value.
    #[track_caller]
    pub(crate) fn single_with(keys: &[&str]) -> (Self, Process) {
        let members = Self::new(1);
        let process = members.serve(1, &["--bootstrap"]);
        for key in keys {
            assert_eq!(members.ask(&["put", key, key]).output(), "");
        }
        (members, process)
    }

    /// The same, stopped again.
    #[track_caller]
    pub(crate) fn stopped_with(keys: &[&str]) -> Self {
        let (members, process) = Self::single_with(keys);
        process.stop(Signal::TERM).says(0, &["synod: stopped"]);
        members
    }

    /// Checks that every key is there.
    #[track_caller]
    pub(crate) fn has(&self, keys: &[&str]) {
        for key in keys {
            assert_eq!(self.ask(&["get", key]).output(), format!("{key}\n"));
        }
    }

    /// Checks that `serve` refuses with this exit status and these texts, and touches nothing in the directory.
    #[track_caller]
    pub(crate) fn refuses(&self, id: usize, more: &[&str], code: i32, texts: &[&str]) {
        let dir = self.dir(id);
        let before = contents(&dir);
        synod(self.arguments(id, more)).says(code, texts);
        let after = contents(&dir);
        assert!(before.keys().eq(after.keys()), "{:?} became {:?}", before.keys(), after.keys());
        for (name, bytes) in before {
            assert!(bytes == after[&name], "{name} was changed");
        }
    }
}

/// Every file of a directory.
pub(crate) fn contents(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    files.map(|file| (file.file_name().into_string().unwrap(), fs::read(file.path()).unwrap())).collect()
}

/// The paths of the log's segments.
pub(crate) fn segments(dir: &Path) -> Vec<PathBuf> {
    let names = contents(dir).into_keys().filter(|name| name.starts_with("wal-") && name.ends_with(".log"));
    let segments: Vec<_> = names.map(|name| dir.join(name)).collect();
    assert!(!segments.is_empty(), "no segments in {}", dir.display());
    segments
}
