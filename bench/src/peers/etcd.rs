//! etcd on this machine. Its defaults, but for the size that its database may have.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use super::RowSpec;
use super::connections::PeerLoad;
use super::http2::Connection;
use super::processes::{Processes, free_addresses};
use super::turn::{Servers, Workers};

const PATIENCE: Duration = Duration::from_secs(5);
/// It keeps every version of a value. The default of 2 GB could be reached by a long run of large values.
const QUOTA_BYTES: u64 = 8 << 30;

/// Running servers.
pub(super) struct Etcd {
    processes: Processes,
    program: PathBuf,
    clients: Vec<SocketAddr>,
}

impl Etcd {
    /// Starts so many, each with a directory of its own.
    pub(super) fn start(program: &Path, replicas: u16, dir: &Path) -> anyhow::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let addresses = free_addresses(2 * usize::from(replicas))?;
        let (clients, peers) = addresses.split_at(usize::from(replicas));
        let member = |(index, peer)| format!("server-{}=http://{peer}", index + 1);
        let members: Vec<_> = peers.iter().enumerate().map(member).collect();
        let mut processes = Processes::default();
        for (index, (client, peer)) in clients.iter().zip(peers).enumerate() {
            let name = format!("server-{}", index + 1);
            let arguments = [
                ("name", name.clone()),
                ("data-dir", dir.join(&name).display().to_string()),
                ("listen-client-urls", format!("http://{client}")),
                ("advertise-client-urls", format!("http://{client}")),
                ("listen-peer-urls", format!("http://{peer}")),
                ("initial-advertise-peer-urls", format!("http://{peer}")),
                ("initial-cluster", members.join(",")),
                ("quota-backend-bytes", QUOTA_BYTES.to_string()),
            ];
            let arguments = arguments.map(|(name, value)| format!("--{name}={value}"));
            processes.start(program, &arguments, dir.join(format!("{name}.log")))?;
        }
        Ok(Self { processes, program: program.to_owned(), clients: clients.to_vec() })
    }
}

impl Servers for Etcd {
    fn version(&self) -> anyhow::Result<String> {
        let output = Command::new(&self.program).arg("--version").output().context("cannot ask for etcd's version")?;
        let said = String::from_utf8_lossy(&output.stdout);
        Ok(said.lines().find_map(|line| line.strip_prefix("etcd Version: ")).unwrap_or("?").to_owned())
    }

    fn processes(&self) -> Vec<u32> {
        self.processes.ids()
    }

    fn leader(&mut self) -> anyhow::Result<Option<SocketAddr>> {
        self.processes.check()?;
        let metrics = self.clients.iter().map(|client| metrics(*client).ok()).collect::<Option<Vec<_>>>();
        // Who does not answer yet has no leader.
        let Some(metrics) = metrics else { return Ok(None) };
        let says = |metrics: &String, line: &str| metrics.lines().any(|said| said == line);
        if !metrics.iter().all(|metrics| says(metrics, "etcd_server_has_leader 1")) {
            return Ok(None);
        }
        let leader = metrics.iter().position(|metrics| says(metrics, "etcd_server_is_leader 1"));
        Ok(leader.map(|leader| self.clients[leader]))
    }

    fn workers(&self, leader: SocketAddr, row: RowSpec) -> anyhow::Result<Box<dyn Workers>> {
        let authority = leader.to_string();
        Ok(Box::new(PeerLoad::connect(leader, row, |output| Connection::open(&authority, output))?))
    }
}

/// A server's own figures.
fn metrics(server: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n")?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}
