//! A cell on this machine: one real process a replica, on loopback. What `synod cell`, the benchmark and the tests run.

use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use crate::config::Member;
use crate::status::Status;

/// What a local cell is to be.
#[derive(Clone, Debug)]
pub struct LocalCellOptions {
    /// How many replicas.
    pub replicas: u16,
    /// Where they keep their directories, `replica-1` and so on, and their logs of what they print.
    pub dir: PathBuf,
    /// The first of as many client ports in a row; free ones if it is not said. Peers use free ones.
    pub first_port: Option<u16>,
    /// More flags for every replica's `serve`.
    pub serve_flags: Vec<String>,
    /// The program that is run with `serve`; this very one if it is not said. (A test is not one that serves.)
    pub program: Option<PathBuf>,
}

/// One replica of a local cell.
struct Process {
    member: Member,
    child: Option<Child>,
    has_started: bool,
}

/// A running local cell. Dropping it ends its processes; their directories stay.
pub struct LocalCell {
    options: LocalCellOptions,
    processes: Vec<Process>,
}

/// A local cell did not become what it should.
#[derive(Debug, thiserror::Error)]
pub enum LocalCellError {
    /// An operation of the system failed.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A replica ended by itself.
    #[error("replica {id} ended with {status}; it printed, last:\n{last}")]
    Ended {
        /// Which.
        id: u16,
        /// How.
        status: ExitStatus,
        /// The end of what it printed.
        last: String,
    },
    /// The client ports run past the last one.
    #[error("{count} client ports from {first} on: ports are 1 to 65535, so start lower")]
    Ports {
        /// The first.
        first: u16,
        /// How many.
        count: u16,
    },
    /// The directory holds another cell than the one asked for.
    #[error(
        "{dir} holds a cell of {there} replicas, not of {count}: name another directory, or say --replicas {there}"
    )]
    OtherSize {
        /// The directory.
        dir: PathBuf,
        /// How many replicas it has.
        there: u16,
        /// How many were asked for.
        count: u16,
    },
    /// Nobody became coordinator in time.
    #[error("no replica became coordinator within {0:?}")]
    NoMaster(Duration),
}

fn system(doing: impl Into<String>) -> impl FnOnce(io::Error) -> LocalCellError {
    let doing = doing.into();
    move |source| LocalCellError::System { doing, source }
}

impl LocalCell {
    /// Starts all replicas: the program, executed with `serve`. Directories that exist are used again.
    pub fn start(options: LocalCellOptions) -> Result<Self, LocalCellError> {
        let count = options.replicas;
        let wanted = match options.first_port {
            Some(first) if first == 0 || first.checked_add(count.saturating_sub(1)).is_none() => {
                return Err(LocalCellError::Ports { first, count });
            }
            Some(first) => (0..count).map(|index| first + index).collect(),
            None => Vec::new(),
        };
        std::fs::create_dir_all(&options.dir).map_err(system(format!("cannot make {}", options.dir.display())))?;
        let there = (1..=u16::MAX).take_while(|id| options.dir.join(format!("replica-{id}")).is_dir()).count();
        let there = u16::try_from(there).expect("the range has no more");
        if there != 0 && there != count {
            return Err(LocalCellError::OtherSize { dir: options.dir, there, count });
        }
        let mut free = free_ports(3 * usize::from(count)).map_err(system("cannot find free ports"))?;
        free.retain(|port| !wanted.contains(port));
        let mut free = free.into_iter().map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let mut next = || free.next().expect("two a replica are left, whatever was wanted");
        let process = |id| {
            let client = wanted.get(usize::from(id) - 1).map(|&port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
            Process {
                member: Member { id, peer: next(), client: client.unwrap_or_else(&mut next) },
                child: None,
                has_started: false,
            }
        };
        let processes = (1..=count).map(process).collect();
        let mut cell = Self { options, processes };
        for id in cell.ids() {
            cell.start_replica(id)?;
        }
        Ok(cell)
    }

    /// The replicas' ids.
    pub fn ids(&self) -> Vec<u16> {
        self.processes.iter().map(|process| process.member.id).collect()
    }

    /// Where clients reach the replicas.
    pub fn endpoints(&self) -> Vec<String> {
        self.processes.iter().map(|process| process.member.client.to_string()).collect()
    }

    /// One replica's client address.
    pub fn endpoint(&self, id: u16) -> String {
        self.process(id).member.client.to_string()
    }

    /// One replica's address for other replicas.
    pub fn peer_address(&self, id: u16) -> SocketAddr {
        self.process(id).member.peer
    }

    /// One replica's directory.
    pub fn replica_dir(&self, id: u16) -> PathBuf {
        self.options.dir.join(format!("replica-{id}"))
    }

    /// Where one replica's messages go.
    pub fn replica_log(&self, id: u16) -> PathBuf {
        self.options.dir.join(format!("replica-{id}.log"))
    }

    /// One replica's process id, while it runs.
    pub fn pid(&self, id: u16) -> Option<u32> {
        self.process(id).child.as_ref().map(Child::id)
    }

    /// The flags that one replica's `serve` is started with.
    pub fn serve_arguments(&self, id: u16) -> Vec<String> {
        let mut arguments = vec!["serve".to_owned(), "--stop-with-parent".to_owned()];
        // Once: a replica that comes back knows by itself whether it lost its directory.
        if !self.process(id).has_started {
            arguments.push("--bootstrap".to_owned());
        }
        arguments.extend(["--id".to_owned(), id.to_string(), "--dir".to_owned()]);
        arguments.push(self.replica_dir(id).display().to_string());
        for Process { member: Member { id, peer, client }, .. } in &self.processes {
            arguments.extend(["--member".to_owned(), format!("{id}={peer},{client}")]);
        }
        arguments.extend(self.options.serve_flags.iter().cloned());
        arguments
    }

    /// Starts one replica, which must not be running.
    pub fn start_replica(&mut self, id: u16) -> Result<(), LocalCellError> {
        assert!(self.process(id).child.is_none(), "replica {id} runs already");
        let program = match &self.options.program {
            Some(program) => program.clone(),
            None => std::env::current_exe().map_err(system("cannot find this program"))?,
        };
        let log_path = self.replica_log(id);
        let log = File::options()
            .create(true)
            .append(true)
            .open(&log_path)
            .map_err(system(format!("cannot open {}", log_path.display())))?;
        let child = Command::new(program)
            .args(self.serve_arguments(id))
            // Its end tells the replica that we are gone, however we went.
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(system(format!("cannot start replica {id}")))?;
        let process = self.process_mut(id);
        (process.child, process.has_started) = (Some(child), true);
        Ok(())
    }

    /// Kills one replica with SIGKILL and reaps it.
    pub fn kill_replica(&mut self, id: u16) -> Result<(), LocalCellError> {
        if let Some(mut child) = self.process_mut(id).child.take() {
            child.kill().map_err(system(format!("cannot kill replica {id}")))?;
            child.wait().map_err(system(format!("cannot reap replica {id}")))?;
        }
        Ok(())
    }

    /// Stops one replica cleanly (its standard input ends) and reaps it.
    pub fn stop_replica(&mut self, id: u16) -> Result<(), LocalCellError> {
        if let Some(mut child) = self.process_mut(id).child.take() {
            drop(child.stdin.take());
            child.wait().map_err(system(format!("cannot reap replica {id}")))?;
        }
        Ok(())
    }

    /// Whether every replica that should run does.
    pub fn check(&mut self) -> Result<(), LocalCellError> {
        for id in self.ids() {
            let log = self.replica_log(id);
            let Some(child) = &mut self.process_mut(id).child else { continue };
            if let Some(status) = child.try_wait().map_err(system(format!("cannot watch replica {id}")))? {
                self.process_mut(id).child = None;
                let last = std::fs::read_to_string(log).unwrap_or_default();
                let last =
                    last.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
                return Err(LocalCellError::Ended { id, status, last });
            }
        }
        Ok(())
    }

    /// One replica's own view, if it answers.
    pub fn status(&self, id: u16) -> Option<Status> {
        let text = synod_client::fetch_status(&self.endpoint(id), Duration::from_secs(1)).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// Waits until a replica coordinates; says which.
    pub fn wait_for_master(&mut self, patience: Duration) -> Result<u16, LocalCellError> {
        let give_up = Instant::now() + patience;
        loop {
            self.check()?;
            let running = |id: &u16| self.pid(*id).is_some();
            let coordinates = |id: &u16| self.status(*id).is_some_and(|status| status.role == "coordinating");
            if let Some(id) = self.ids().into_iter().filter(running).find(coordinates) {
                return Ok(id);
            }
            if Instant::now() >= give_up {
                return Err(LocalCellError::NoMaster(patience));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Stops all replicas cleanly.
    pub fn stop(&mut self) -> Result<(), LocalCellError> {
        // All at once, so that nobody campaigns because another has just left.
        for process in &mut self.processes {
            if let Some(child) = &mut process.child {
                drop(child.stdin.take());
            }
        }
        self.ids().into_iter().try_for_each(|id| self.stop_replica(id))
    }

    fn process(&self, id: u16) -> &Process {
        self.processes.iter().find(|process| process.member.id == id).expect("a replica of this cell")
    }

    fn process_mut(&mut self, id: u16) -> &mut Process {
        self.processes.iter_mut().find(|process| process.member.id == id).expect("a replica of this cell")
    }
}

impl Drop for LocalCell {
    fn drop(&mut self) {
        for id in self.ids() {
            if let Err(error) = self.kill_replica(id) {
                eprintln!("synod: {error}");
            }
        }
    }
}

/// Ports that are free now. Somebody may take one before it is used; the replica then says so and ends.
pub fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    // Not where the kernel takes the near ends of connections from: while a replica is down, its port must not become
    // somebody's near end, or it could not listen there again.
    let near_ends = near_ends();
    let usable: Vec<u16> = FREE_PORTS.filter(|port| !near_ends.contains(port)).collect();
    let enough = usable.len() > 100 * count;
    // All held at once, so that none is given twice.
    let mut listeners = Vec::with_capacity(count);
    let mut tries = 100 * count;
    while listeners.len() < count {
        let port = if enough && tries > 0 { usable[fastrand::usize(..usable.len())] } else { 0 };
        tries = tries.saturating_sub(1);
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(listener) => listeners.push(listener),
            Err(error) if port != 0 && error.kind() == io::ErrorKind::AddrInUse => {}
            Err(error) => return Err(error),
        }
    }
    listeners.iter().map(|listener| listener.local_addr().map(|address| address.port())).collect()
}

/// Where free ports are looked for: above those that well-known services have.
const FREE_PORTS: std::ops::RangeInclusive<u16> = 15_000..=65_535;

/// The ports that the kernel gives to whoever connects; its default when it does not say.
fn near_ends() -> std::ops::RangeInclusive<u16> {
    let said = std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let mut numbers = said.split_whitespace().map_while(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(low), Some(high)) => low..=high,
        _ => 32_768..=60_999,
    }
}
