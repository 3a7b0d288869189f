//! One turn: one side's servers started, warmed up, measured on every row, and ended. Nothing else runs meanwhile.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Serialize;

use super::etcd::Etcd;
use super::packages::Packages;
use super::processes::cpu_time;
use super::synod::Synod;
use super::zookeeper::Zookeeper;
use super::{Peer, PeersOptions, RowSpec, Side};
use crate::measure::{Load, measure};
use crate::probe::DiskProbe;
use crate::workload::Figures;

const ELECTION_TIME_MAX: Duration = Duration::from_secs(60);
/// What warms up: enough workers to go through all of a server's code often, too few to fill its queues.
const WARM_UP_ROW: RowSpec = RowSpec { workers: 100, bytes: 5 };

/// One side's running servers. Dropping them ends them.
pub(super) trait Servers {
    /// As they say themselves.
    fn version(&self) -> anyhow::Result<String>;
    /// Their ids.
    fn processes(&self) -> Vec<u32>;
    /// Who leads, once all others follow. Fails if one of them has ended.
    fn leader(&mut self) -> anyhow::Result<Option<SocketAddr>>;
    /// Does what has to be done once before so many workers write.
    fn prepare(&mut self, _leader: SocketAddr, _workers: usize) -> anyhow::Result<()> {
        Ok(())
    }
    /// Workers, connected to the leader.
    fn workers(&self, leader: SocketAddr, row: RowSpec) -> anyhow::Result<Box<dyn Workers>>;
}

/// Workers that can be sent home.
pub(super) trait Workers: Load {
    /// Lets what is in flight end.
    fn finish(self: Box<Self>) -> anyhow::Result<()>;
}

/// What one side did on one row in one round.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Measured {
    /// Writes a second.
    pub ops_per_s: f64,
    /// Latencies in microseconds.
    pub p50_us: f64,
    /// See there.
    pub p99_us: f64,
    /// User and system time of all servers for a write, in microseconds.
    pub servers_cpu_us: f64,
    /// The same of this process.
    pub client_cpu_us: f64,
    /// How many writes were measured.
    pub operations: u64,
    /// Windows left out because the disk stalled.
    pub void_windows: u32,
    /// Why this says nothing, if it does not.
    pub void: Option<String>,
}

impl Measured {
    /// Nothing, because of that.
    pub(super) fn void(why: String) -> Self {
        Self { void: Some(why), ..Self::default() }
    }
}

/// Starts the servers in the directory, measures the rows, and gives these back with the servers' version.
pub(super) fn take(
    side: Side,
    options: &PeersOptions,
    packages: &Packages,
    dir: &Path,
) -> anyhow::Result<(String, Vec<Measured>)> {
    let probe = DiskProbe::start(dir)?;
    let data = dir.join("servers");
    let mut servers: Box<dyn Servers> = match side {
        Side::Synod => Box::new(Synod::start(options.replicas, &data)?),
        Side::Peer(Peer::Zookeeper) => Box::new(Zookeeper::start(&packages.zookeeper()?, options.replicas, &data)?),
        Side::Peer(Peer::Etcd) => Box::new(Etcd::start(&packages.etcd()?, options.replicas, &data)?),
    };
    let leader = await_leader(&mut *servers)?;
    let version = servers.version()?;
    let workers_max = options.rows.iter().map(|row| row.workers).max().unwrap_or(0);
    servers.prepare(leader, workers_max.max(WARM_UP_ROW.workers))?;
    warm_up(&mut *servers, options)?;
    let mut measured = Vec::new();
    for row in &options.rows {
        // A leader that loses its place closes its connections: that row is lost, the others are not.
        let result = measure_row(&mut *servers, &probe, *row, options.seconds);
        measured.push(result.unwrap_or_else(|error| Measured::void(format!("{error:#}"))));
    }
    Ok((version, measured))
}

/// Half of the time is for all of a server's code. The other half goes to the rows: a Java virtual machine compiles once
/// more what it had compiled for batches and now sees one write at a time.
fn warm_up(servers: &mut dyn Servers, options: &PeersOptions) -> anyhow::Result<()> {
    let half = Duration::from_secs(options.warm_up.into()) / 2;
    let each = half.div_f64(options.rows.len() as f64);
    for (row, time) in std::iter::once((&WARM_UP_ROW, half)).chain(options.rows.iter().map(|row| (row, each))) {
        let leader = await_leader(servers)?;
        // What is lost here is not measured: the leader may lose its place now, too.
        if let Err(error) = run_once(servers, leader, *row, time) {
            eprintln!("synod-bench: warming up with {row}: {error:#}");
        }
    }
    Ok(())
}

fn run_once(servers: &dyn Servers, leader: SocketAddr, row: RowSpec, time: Duration) -> anyhow::Result<()> {
    let mut workers = servers.workers(leader, row)?;
    workers.run(time, u64::MAX)?;
    workers.finish()
}

fn await_leader(servers: &mut dyn Servers) -> anyhow::Result<SocketAddr> {
    let end = Instant::now() + ELECTION_TIME_MAX;
    while Instant::now() < end {
        if let Some(leader) = servers.leader()? {
            return Ok(leader);
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    bail!("no server leads all the others within {ELECTION_TIME_MAX:?}")
}

fn measure_row(servers: &mut dyn Servers, probe: &DiskProbe, row: RowSpec, seconds: u32) -> anyhow::Result<Measured> {
    let leader = await_leader(servers)?;
    let mut workers = servers.workers(leader, row)?;
    let mut metered = Metered { workers: &mut *workers, servers: servers.processes(), warm: None, operations: 0 };
    let measurement = measure(&mut metered, probe, seconds, |_| ())?;
    let (servers_cpu_us, client_cpu_us) = metered.cpu_us()?;
    workers.finish()?;
    let mut void = measurement.void;
    if await_leader(servers)? != leader {
        void = void.or_else(|| Some("the leader has changed".to_owned()));
    }
    Ok(Measured {
        ops_per_s: measurement.figures.per_second(),
        p50_us: measurement.figures.quantile_us(0.50),
        p99_us: measurement.figures.quantile_us(0.99),
        servers_cpu_us,
        client_cpu_us,
        operations: measurement.figures.operations(),
        void_windows: measurement.void_windows,
        void,
    })
}

/// Workers, and what they and the servers cost from the first run's end on: `measure` begins with one to warm up.
struct Metered<'a> {
    workers: &'a mut dyn Workers,
    servers: Vec<u32>,
    /// The CPU time of servers and client when it was warm.
    warm: Option<[Duration; 2]>,
    operations: u64,
}

impl Metered<'_> {
    fn cpu(&self) -> anyhow::Result<[Duration; 2]> {
        Ok([cpu_time(&self.servers)?, cpu_time(&[std::process::id()])?])
    }

    /// Microseconds for an operation, of servers and client.
    fn cpu_us(&self) -> anyhow::Result<(f64, f64)> {
        let warm = self.warm.context("nothing was measured")?;
        let now = self.cpu()?;
        let each = |index: usize| (now[index] - warm[index]).as_secs_f64() * 1e6 / self.operations as f64;
        Ok((each(0), each(1)))
    }
}

impl Load for Metered<'_> {
    fn run(&mut self, time: Duration, operations_max: u64) -> anyhow::Result<Figures> {
        let figures = self.workers.run(time, operations_max)?;
        match self.warm {
            None => self.warm = Some(self.cpu()?),
            Some(_) => self.operations += figures.operations(),
        }
        Ok(figures)
    }
}
