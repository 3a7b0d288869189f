//! ZooKeeper on this machine. Its defaults, but for what the comparison needs, see [`configuration`].

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::BytesMut;

use super::RowSpec;
use super::connections::{PeerLoad, Protocol};
use super::jute::Session;
use super::packages::ZookeeperPrograms;
use super::processes::{Processes, free_addresses};
use super::turn::{Servers, Workers};

const PATIENCE: Duration = Duration::from_secs(5);

/// The heap that ZooKeeper's own start script gives it.
const HEAP: &str = "-Xmx1000m";

/// Running servers.
pub(super) struct Zookeeper {
    processes: Processes,
    servers: Vec<Server>,
}

struct Server {
    client: SocketAddr,
    quorum: SocketAddr,
    election: SocketAddr,
}

impl Zookeeper {
    /// Starts so many, each with a directory of its own.
    pub(super) fn start(programs: &ZookeeperPrograms, replicas: u16, dir: &Path) -> anyhow::Result<Self> {
        let addresses = free_addresses(3 * usize::from(replicas))?;
        let server = |three: &[SocketAddr]| Server { client: three[0], quorum: three[1], election: three[2] };
        let servers: Vec<_> = addresses.chunks_exact(3).map(server).collect();
        let mut processes = Processes::default();
        for (index, server) in servers.iter().enumerate() {
            let number = index + 1;
            let data = dir.join(format!("server-{number}"));
            fs::create_dir_all(&data)?;
            fs::write(data.join("myid"), number.to_string())?;
            let file = dir.join(format!("server-{number}.cfg"));
            fs::write(&file, configuration(&servers, server, &data))?;
            let mut arguments = [HEAP, "-classpath", &programs.class_path].map(str::to_owned).to_vec();
            arguments.push("org.apache.zookeeper.server.quorum.QuorumPeerMain".to_owned());
            arguments.push(file.display().to_string());
            processes.start(&programs.java, &arguments, dir.join(format!("server-{number}.log")))?;
        }
        Ok(Self { processes, servers })
    }
}

impl Servers for Zookeeper {
    fn version(&self) -> anyhow::Result<String> {
        let version = ask(self.servers[0].client, "Zookeeper version: ")?;
        Ok(version.split(['-', ',']).next().unwrap_or_default().to_owned())
    }

    fn processes(&self) -> Vec<u32> {
        self.processes.ids()
    }

    fn leader(&mut self) -> anyhow::Result<Option<SocketAddr>> {
        self.processes.check()?;
        // Who is not in the quorum yet, or any more, gives no mode.
        let mode = |server: &Server| ask(server.client, "Mode: ").ok();
        let Some(modes) = self.servers.iter().map(mode).collect::<Option<Vec<_>>>() else { return Ok(None) };
        Ok(modes.iter().position(|mode| mode == "leader").map(|leader| self.servers[leader].client))
    }

    /// Makes a node for each worker: writes change one that is there.
    fn prepare(&mut self, leader: SocketAddr, workers: usize) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(leader)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let (mut output, mut input, mut answers) = (BytesMut::new(), BytesMut::new(), Vec::new());
        let mut session = Session::open(&mut output);
        stream.write_all(&output.split())?;
        while answers.len() < workers {
            let mut bytes = [0; 4096];
            let length = stream.read(&mut bytes)?;
            ensure!(length > 0, "ZooKeeper closed the connection");
            let was_ready = session.is_ready();
            input.extend_from_slice(&bytes[..length]);
            session.receive(&mut input, &mut output, &mut answers)?;
            if session.is_ready() && !was_ready {
                (0..workers).for_each(|worker| session.create(worker, &mut output));
                stream.write_all(&output.split())?;
            }
        }
        session.close(&mut output);
        stream.write_all(&output)?;
        let made = answers.into_iter().try_for_each(|answer| answer.result);
        made.map_err(anyhow::Error::msg).context("a node was not made")
    }

    fn workers(&self, leader: SocketAddr, row: RowSpec) -> anyhow::Result<Box<dyn Workers>> {
        Ok(Box::new(PeerLoad::connect(leader, row, Session::open)?))
    }
}

/// What is not a default: 100 connections from one address (60 are the limit), no web console, and the question which
/// server leads. The three times are those of every example, and must be said. Every write is synced before it is
/// answered, by default.
fn configuration(servers: &[Server], server: &Server, data: &Path) -> String {
    let mut file = format!(
        "tickTime=2000\ninitLimit=10\nsyncLimit=5\ndataDir={}\nclientPort={}\nclientPortAddress={}\n\
         maxClientCnxns=0\nadmin.enableServer=false\n4lw.commands.whitelist=srvr\n",
        data.display(),
        server.client.port(),
        server.client.ip(),
    );
    for (index, Server { quorum, election, .. }) in servers.iter().enumerate() {
        let (number, ip) = (index + 1, quorum.ip());
        writeln!(file, "server.{number}={ip}:{}:{}", quorum.port(), election.port()).expect("a string takes it");
    }
    file
}

/// The rest of the line that begins so, in a server's answer to `srvr`.
fn ask(server: SocketAddr, line: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"srvr")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    let found = said.lines().find_map(|said| said.strip_prefix(line));
    Ok(found.with_context(|| format!("no line {line:?} in {said:?}"))?.to_owned())
}
