//! Real `synod` processes for the tests beside this folder: started, waited for, ended and reaped, with nothing left
//! behind, however a test ends. Loopback only.
#![allow(dead_code, reason = "each test file is a crate of its own and uses its own part")]

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use synod_node::local_cell::free_ports;
use synod_node::operator::OperatorAnswer;
use synod_node::status::{MemberStatus, Status};
use tempfile::TempDir;

/// Far more than anything here takes, even where disk and processors are shared with others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// The exit statuses that README and `synod_node::serve::exit` promise.
pub(crate) const REFUSED: i32 = 78;
pub(crate) const SYSTEM: i32 = 71;

/// Little disk, quick elections, and short waits after a start.
pub(crate) const SMALL: [&str; 10] = [
    "--segment-mb",
    "4",
    "--log-mb-max",
    "64",
    "--heartbeat-ms",
    "50",
    "--lease-ms",
    "300",
    "--election-timeout-ms",
    "300",
];

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
        let all: Vec<usize> = (1..=self.addresses.len()).collect();
        self.arguments_naming(&all, id, dir, more)
    }

    /// `serve` for one replica, in this directory, whose flags name these members only.
    pub(crate) fn arguments_naming(&self, named: &[usize], id: usize, dir: &Path, more: &[&str]) -> Vec<String> {
        let mut arguments: Vec<String> = ["serve", "--id"].map(str::to_owned).into();
        arguments.extend([id.to_string(), "--dir".to_owned(), dir.to_str().unwrap().to_owned()]);
        for id in named {
            arguments.extend(["--member".to_owned(), format!("{id}={},{}", self.peer(*id), self.client(*id))]);
        }
        let small = SMALL.chunks(2).filter(|flag| !more.contains(&flag[0])).flatten();
        arguments.extend(small.chain(more).map(|&flag| flag.to_owned()));
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

/// A cell of the first few of these members, running; the places behind them are for members that come later.
pub(crate) struct Running {
    pub(crate) members: Members,
    processes: BTreeMap<usize, Process>,
    /// Whom the flags of the first ones name.
    first: Vec<usize>,
}

impl Running {
    /// Starts a cell of `count` for the first time, with room for more, and waits for its master.
    #[track_caller]
    pub(crate) fn start(count: usize, places: usize, more: &[&str]) -> Self {
        let all: Vec<usize> = (1..=count).collect();
        Self::start_some(&all, places, &all, more)
    }

    /// The same, but only some of the first members are ever started.
    #[track_caller]
    pub(crate) fn start_some(first: &[usize], places: usize, started: &[usize], more: &[&str]) -> Self {
        let mut cell = Self { members: Members::new(places), processes: BTreeMap::new(), first: first.to_owned() };
        for id in started {
            cell.launch(*id, &[&["--bootstrap"], more].concat());
        }
        cell.master();
        cell
    }

    /// Starts one of them: the first ones' flags name each other only, those of the others also who runs.
    pub(crate) fn launch(&mut self, id: usize, more: &[&str]) {
        let mut named: BTreeSet<usize> = self.first.iter().copied().collect();
        if !named.contains(&id) {
            named.extend(self.running());
            named.insert(id);
        }
        let named: Vec<usize> = named.into_iter().collect();
        let arguments = self.members.arguments_naming(&named, id, &self.members.dir(id), more);
        let mut command = command(arguments);
        command.arg("--stop-with-parent");
        self.launch_with(id, command);
    }

    /// The same, with a command of the test's own.
    pub(crate) fn launch_with(&mut self, id: usize, command: Command) {
        assert!(self.processes.insert(id, Process::start(command)).is_none(), "replica {id} runs already");
    }

    /// Starts a new member, after `member add` on it or before.
    pub(crate) fn join(&mut self, id: usize) {
        self.launch(id, &["--join"]);
    }

    pub(crate) fn take(&mut self, id: usize) -> Process {
        self.processes.remove(&id).unwrap()
    }

    pub(crate) fn kill(&mut self, id: usize) {
        assert_eq!(self.take(id).stop(Signal::KILL).status.code(), None);
    }

    #[track_caller]
    pub(crate) fn stop(&mut self, id: usize) -> Ended {
        let ended = self.take(id).stop(Signal::TERM);
        ended.says(0, &["synod: stopped"]);
        ended
    }

    pub(crate) fn running(&self) -> Vec<usize> {
        self.processes.keys().copied().collect()
    }

    /// What a replica has printed so far.
    pub(crate) fn said(&self, id: usize) -> String {
        self.processes[&id].stderr()
    }

    pub(crate) fn status(&self, id: usize) -> Option<Status> {
        status(&self.members.client(id).to_string())
    }

    /// The status of a replica, once it is so.
    #[track_caller]
    pub(crate) fn wait_until(&mut self, id: usize, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        wait_for(what, || {
            self.processes.get_mut(&id).unwrap().must_run();
            self.status(id).filter(|status| is_so(status))
        })
    }

    /// The master's status, once there is one.
    #[track_caller]
    pub(crate) fn master_status(&self) -> Status {
        wait_for("a master", || {
            let statuses = self.processes.keys().filter_map(|id| self.status(*id));
            statuses.filter(|status| status.is_master).max_by_key(|status| status.epoch)
        })
    }

    #[track_caller]
    pub(crate) fn master(&self) -> usize {
        usize::from(self.master_status().replica)
    }

    /// Waits until the cell, as its master says, survives so many more failures.
    #[track_caller]
    pub(crate) fn survives(&self, failures: i8) {
        wait_for("the tolerance", || (self.master_status().tolerance == Some(failures)).then_some(()));
    }

    /// Runs `synod member`.
    pub(crate) fn member(&self, arguments: &[&str]) -> Ended {
        self.members.ask(&[&["member"], arguments].concat())
    }

    /// Runs `synod member add` for this place.
    pub(crate) fn add(&self, id: usize, more: &[&str]) -> Ended {
        let (id_text, peer, client) = self.place(id);
        self.member(&[&["add", &id_text, "--peer", &peer, "--client", &client], more].concat())
    }

    /// The id, the peer address and the client address, as flags take them.
    pub(crate) fn place(&self, id: usize) -> (String, String, String) {
        (id.to_string(), self.members.peer(id).to_string(), self.members.client(id).to_string())
    }

    /// What `synod member list --json` says: each member, whether it votes, whether it takes part.
    #[track_caller]
    pub(crate) fn list(&self) -> Vec<(u16, bool, bool)> {
        let listed = wait_for("the list of members", || {
            let ended = self.member(&["list", "--json"]);
            ended.status.success().then_some(ended.stdout)
        });
        let members: Vec<MemberStatus> = serde_json::from_slice(&listed).unwrap();
        members.iter().map(|member| (member.replica, member.votes, member.is_alive == Some(true))).collect()
    }

    /// Asks one replica for something that only an operator does.
    #[track_caller]
    pub(crate) fn operate(&self, id: usize, request: &str) -> OperatorAnswer {
        let endpoint = self.members.client(id).to_string();
        let answer = synod_client::operate(&endpoint, request, PATIENCE).unwrap();
        serde_json::from_str(&answer).unwrap()
    }

    /// Writes and reads go on.
    #[track_caller]
    pub(crate) fn serves(&self, keys: &[&str]) {
        for key in keys {
            assert_eq!(self.members.ask(&["put", key, key]).output(), "");
        }
        self.members.has(keys);
    }
}

/// How often the rows with this text were taken, of the protocol's tables.
pub(crate) fn taken(status: &Status, text: &str) -> u64 {
    status.protocol.iter().filter(|(row, _)| row.contains(text)).map(|(_, count)| count).sum()
}
