//! A replicated sequencer: three processes that hand out numbers, each once, whoever of them is killed.
//!
//! An application on the log alone, and how to run one: `sequencer` is the application, a [`synod_paxos::StateMachine`];
//! `replica` drives [`synod_paxos::Replica`] with sockets, clock and file; `log` is that file, and recovery from it; `wire`
//! makes bytes of messages and records. Here is the demonstration: it starts three replicas (this very executable
//! again), has a few clients take numbers all along, kills whoever leads, twice, and checks what was handed out.
//!
//! ```text
//! cargo run -p synod-paxos --example sequencer
//! ```

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use synod_paxos::ReplicaId;

mod log;
mod replica;
mod sequencer;
mod wire;

const NAMES: [&str; 4] = ["alice", "bob", "carol", "dave"];
/// After this long a client asks another replica.
const ANSWER_WITHIN: Duration = Duration::from_millis(150);
/// After this long something is wrong.
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().collect();
    let outcome = match arguments.get(1).map(String::as_str) {
        Some("--replica") => run_replica(&arguments[2..]),
        _ => demonstrate(),
    };
    if let Err(error) = outcome {
        eprintln!("sequencer: {error}");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// `--replica <its number> <its log> <the launcher's process> <all ports>`, and its socket as standard input.
fn run_replica(arguments: &[String]) -> io::Result<()> {
    let [me, log, launcher, ports @ ..] = arguments else { return Err(io::Error::other("too few arguments")) };
    let number = |word: &String| word.parse().map_err(io::Error::other);
    let mut addresses = BTreeMap::new();
    for (port, id) in ports.iter().zip(1..) {
        addresses.insert(ReplicaId(id), SocketAddr::from((Ipv4Addr::LOCALHOST, number(port)?)));
    }
    let socket = UdpSocket::from(io::stdin().as_fd().try_clone_to_owned()?);
    let launcher = launcher.parse().map_err(io::Error::other)?;
    let log = Path::new(log);
    replica::run(replica::Place { me: ReplicaId(number(me)?), log, socket, addresses, launcher })?;
    // The launcher is gone, and could not clean up if it was killed. Whoever is first here does; then there is nothing left.
    for id in 1..=ports.len() {
        let _ = fs::remove_file(log.with_file_name(log_name(id)));
    }
    let _ = log.parent().map(fs::remove_dir);
    Ok(())
}

fn demonstrate() -> io::Result<()> {
    let mut cell = Cell::start()?;
    let addresses = cell.addresses()?;
    let (taken, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    let takes = thread::scope(|scope| {
        let clients = NAMES.map(|name| scope.spawn(|| take_numbers(name, &addresses, &taken, &is_over)));
        let story = (0..2).try_for_each(|_| kill_and_restart(&mut cell, &taken));
        is_over.store(true, Relaxed);
        let mut takes = Vec::new();
        for client in clients {
            takes.extend(client.join().map_err(|_| io::Error::other("a client panicked"))??);
        }
        story.map(|()| takes)
    })?;
    check(&cell, takes)
}

/// Kills whoever leads, and waits until another has taken over and the killed one, started again, has caught up.
fn kill_and_restart(cell: &mut Cell, taken: &AtomicU64) -> io::Result<()> {
    let go_on = |phase: &str| {
        let enough = taken.load(Relaxed) + 200;
        wait_for(phase, || (taken.load(Relaxed) >= enough).then_some(()))
    };
    go_on("numbers")?;
    let leader = wait_for("a leader", || cell.leader())?;
    let killed = Instant::now();
    cell.kill(leader)?;
    println!("replica {leader} is killed, with {} numbers taken", taken.load(Relaxed));
    let next = wait_for("another leader", || cell.leader())?;
    println!("replica {next} has taken over, {} ms later", killed.elapsed().as_millis());
    go_on("numbers of the next leader")?;
    let goal = wait_for("the new leader's view", || cell.look(next))?.chosen;
    cell.run(leader)?;
    wait_for("a replica that catches up", || cell.look(leader).filter(|look| look.chosen >= goal))?;
    println!("replica {leader} has caught up: it was to know {goal} slots");
    // The next round kills the new leader. Then it takes the one that has just come back to go on.
    Ok(())
}

/// Numbers that somebody got.
struct Taken {
    name: &'static str,
    first: u64,
    count: u64,
}

/// A client: takes numbers, a few at a time, until it is over. Whatever it asked for it asks again until it has it.
fn take_numbers(
    name: &'static str,
    replicas: &[SocketAddr],
    taken: &AtomicU64,
    is_over: &AtomicBool,
) -> io::Result<Vec<Taken>> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    let mut takes = Vec::new();
    let mut at = 0;
    for request in 1_u64.. {
        if is_over.load(Relaxed) {
            break;
        }
        let count = fastrand::u64(1..=5);
        let command = format!("{name} {request} {count}");
        let first = wait_for(&command, || {
            let answer = ask(&socket, replicas[at], command.as_bytes(), |answer| !is_late(answer, request));
            match answer.as_deref().and_then(|answer| answer.split_once(' ')) {
                Some(("elsewhere", id)) => at = id.parse::<usize>().ok()?.checked_sub(1)?,
                Some((_, first)) => return first.parse().ok(),
                None => at = (at + 1) % replicas.len(),
            }
            None
        })?;
        if request <= 2 {
            println!("{name} takes {count} from {first} on");
        }
        taken.fetch_add(count, Relaxed);
        takes.push(Taken { name, first, count });
    }
    Ok(takes)
}

/// Whether this answers an earlier request, which was sent twice.
fn is_late(answer: &str, request: u64) -> bool {
    let answered = answer.split(' ').next().and_then(|word| word.parse::<u64>().ok());
    answered.is_some_and(|answered| answered != request)
}

/// Asks, and waits a while for an answer that will do.
fn ask(socket: &UdpSocket, replica: SocketAddr, question: &[u8], will_do: impl Fn(&str) -> bool) -> Option<String> {
    socket.set_read_timeout(Some(ANSWER_WITHIN)).ok()?;
    socket.send_to(question, replica).ok()?;
    let mut bytes = [0; 1024];
    loop {
        let (length, from) = socket.recv_from(&mut bytes).ok()?;
        let answer = std::str::from_utf8(&bytes[..length]).ok()?;
        if from == replica && will_do(answer) {
            return Some(answer.to_owned());
        }
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> io::Result<T> {
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        if let Some(found) = look() {
            return Ok(found);
        }
        thread::sleep(Duration::from_millis(10));
    }
    Err(io::Error::other(format!("waited {PATIENCE:?} in vain for {what}")))
}

/// No number twice, none skipped, and the replicas agree on everything.
fn check(cell: &Cell, mut takes: Vec<Taken>) -> io::Result<()> {
    takes.sort_unstable_by_key(|take| take.first);
    let mut next = 1;
    for Taken { name, first, count } in &takes {
        if *first != next {
            let what = if *first < next { "handed out twice" } else { "skipped" };
            return Err(io::Error::other(format!("{name} got {first} where {next} was next: some were {what}")));
        }
        next += count;
    }
    let agreed = wait_for("replicas that agree", || {
        let first = cell.look(ReplicaId(1))?;
        let agrees = |id| cell.look(id).is_some_and(|other| other.chosen == first.chosen && other.state == first.state);
        [ReplicaId(2), ReplicaId(3)].into_iter().all(agrees).then_some(first)
    })?;
    let last = next - 1;
    if !agreed.state.starts_with(&format!("{last} ")) {
        return Err(io::Error::other(format!("the clients have {last} numbers, the replicas say {}", agreed.state)));
    }
    println!("all three replicas, at slot {}: {}", agreed.chosen, agreed.state);
    println!("checked {} takes: 1 to {last}, no number twice, none skipped", takes.len());
    Ok(())
}

/// The three processes, and what they leave behind: nothing.
struct Cell {
    directory: PathBuf,
    sockets: BTreeMap<ReplicaId, UdpSocket>,
    running: BTreeMap<ReplicaId, Child>,
    /// To look at replicas with.
    socket: UdpSocket,
}

fn log_name(id: impl Display) -> String {
    format!("{id}.log")
}

/// What a replica says of itself.
struct Look {
    leads: bool,
    chosen: u64,
    state: String,
}

impl Cell {
    fn start() -> io::Result<Self> {
        let local = || UdpSocket::bind((Ipv4Addr::LOCALHOST, 0));
        let directory = env::temp_dir().join(format!("synod-sequencer-{:016x}", fastrand::u64(..)));
        fs::create_dir(&directory)?;
        let mut cell = Self { directory, sockets: BTreeMap::new(), running: BTreeMap::new(), socket: local()? };
        for id in [1, 2, 3].map(ReplicaId) {
            File::create_new(cell.log(id))?;
            cell.sockets.insert(id, local()?);
        }
        // A log is there, durably, before its replica ever starts; so one that is missing is lost.
        File::open(&cell.directory)?.sync_all()?;
        cell.sockets.keys().copied().collect::<Vec<_>>().into_iter().try_for_each(|id| cell.run(id))?;
        Ok(cell)
    }

    fn log(&self, id: ReplicaId) -> PathBuf {
        self.directory.join(log_name(id))
    }

    fn addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.sockets.values().map(UdpSocket::local_addr).collect()
    }

    fn run(&mut self, id: ReplicaId) -> io::Result<()> {
        let mut command = Command::new(env::current_exe()?);
        command.arg("--replica").arg(id.to_string()).arg(self.log(id)).arg(std::process::id().to_string());
        command.args(self.addresses()?.iter().map(|address| address.port().to_string()));
        command.stdin(OwnedFd::from(self.sockets[&id].try_clone()?));
        // Out of reach of a Ctrl-C that means the launcher: see `run_replica`.
        command.process_group(0);
        self.running.insert(id, command.spawn()?);
        Ok(())
    }

    fn kill(&mut self, id: ReplicaId) -> io::Result<()> {
        let Some(mut child) = self.running.remove(&id) else { return Ok(()) };
        child.kill()?;
        child.wait().map(drop)
    }

    fn leader(&self) -> Option<ReplicaId> {
        self.running.keys().copied().find(|id| self.look(*id).is_some_and(|look| look.leads))
    }

    fn look(&self, id: ReplicaId) -> Option<Look> {
        let answer = ask(&self.socket, self.sockets[&id].local_addr().ok()?, b"look", |_| true)?;
        let (leads, rest) = answer.split_once(' ')?;
        let (chosen, state) = rest.split_once(' ')?;
        Some(Look { leads: leads == "leads", chosen: chosen.parse().ok()?, state: state.to_owned() })
    }
}

impl Drop for Cell {
    fn drop(&mut self) {
        for child in self.running.values_mut() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}
