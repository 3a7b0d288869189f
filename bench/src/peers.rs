//! `synod-bench peers`: ZooKeeper and etcd beside Synod, on the same machine, in one run.
//!
//! All sides have as many replicas, each a process with a directory of its own on the same disk, on loopback, durable: a
//! write is answered when a majority has synced it. The load is the same: workers in a closed loop, each with one write in
//! flight to its own key, over as many connections, at most 100, to the leader; the client is one thread on one ring.
//! Programs and settings are the packages' defaults (`zookeeper` and `etcd` say where not, and why).
//!
//! The sides take turns (rule M1): Synod on all rows, ZooKeeper on all rows, etcd on all rows, and the same again, as many
//! rounds as are asked for. Only the side whose turn it is runs: it begins anew, with no data, and is warmed up. A ratio is
//! one of two turns of the same round, so that a disk that drifts drifts for both. Windows in which the disk stalled are
//! left out (M2). The CPU time is user and system time of the servers' processes, all replicas together, for a write.
//!
//! ZooKeeper's protocol is in `jute`, etcd's in `http2`: both by hand, as little as a write needs, so that nothing is
//! built or fetched for the comparison by those who do not make it.

use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;

pub use self::packages::Packages;
use self::report::{Report, RowReport};
use self::turn::Measured;
use crate::progress;

mod connections;
mod etcd;
mod http2;
mod jute;
pub mod packages;
mod processes;
pub mod report;
mod synod;
pub mod turn;
mod zookeeper;

/// Measure ZooKeeper and etcd on the same rows, in turn with Synod.
#[derive(Args, Clone, Debug)]
pub struct PeersOptions {
    /// How many replicas each side has
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub replicas: u16,
    /// How often each side has its turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// How many seconds each row runs in a turn
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    pub seconds: u32,
    /// How many seconds the servers are under load before the first row of a turn
    #[arg(long, default_value_t = 30)]
    pub warm_up: u32,
    /// Only these peers [default: all]
    #[arg(long, value_delimiter = ',')]
    pub only: Vec<Peer>,
    /// The rows: workers, and the bytes that each writes
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "WORKERSxBYTES",
        default_value = "1x5,10x5,20x5,100x5,1000x5,1x8192,4x8192,1x32768"
    )]
    pub rows: Vec<RowSpec>,
    /// First fetch the peers' Debian packages and unpack them (see --packages); nothing is installed on the system
    #[arg(long)]
    pub install: bool,
    /// Where packages are unpacked [default: synod-peers in the user's cache directory]
    #[arg(long)]
    pub packages: Option<PathBuf>,
    /// Where the servers keep their files meanwhile: on the disk to be measured [default: the temporary directory]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Print one line of JSON instead of the table
    #[arg(long)]
    pub json: bool,
}

/// What Synod is compared with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, clap::ValueEnum)]
pub enum Peer {
    /// Apache ZooKeeper.
    #[serde(rename = "ZooKeeper")]
    Zookeeper,
    /// etcd.
    #[serde(rename = "etcd")]
    Etcd,
}

impl Peer {
    /// As it calls itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Zookeeper => "ZooKeeper",
            Self::Etcd => "etcd",
        }
    }
}

/// Whose turn it can be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// Ours.
    Synod,
    /// A peer's.
    Peer(Peer),
}

impl Side {
    /// As it calls itself.
    pub fn name(self) -> &'static str {
        match self {
            Self::Synod => "Synod",
            Self::Peer(peer) => peer.name(),
        }
    }
}

impl Serialize for Side {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// One row: so many workers, each writing so many bytes over and over.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct RowSpec {
    /// How many workers.
    pub workers: usize,
    /// The size of a value.
    pub bytes: usize,
}

impl fmt::Display for RowSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}", self.workers, self.bytes)
    }
}

impl FromStr for RowSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WORKERS_MAX: usize = 100_000;
        let wrong = || {
            let bytes = http2::VALUE_BYTES_MAX;
            format!("a row is WORKERSxBYTES, 1 to {WORKERS_MAX} of the one and 1 to {bytes} of the other")
        };
        let (workers, bytes) = text.split_once('x').ok_or_else(wrong)?;
        let parse =
            |number: &str, max| number.parse().ok().filter(|number| (1..=max).contains(number)).ok_or_else(wrong);
        Ok(Self { workers: parse(workers, WORKERS_MAX)?, bytes: parse(bytes, http2::VALUE_BYTES_MAX)? })
    }
}

/// Compares and prints. Fails if a bar is missed or a row is void.
pub fn main(options: &PeersOptions) -> anyhow::Result<ExitCode> {
    let report = run(options)?;
    let mut out = std::io::stdout().lock();
    if options.json {
        writeln!(out, "{}", serde_json::to_string(&report)?)?;
    } else {
        write!(out, "{}", report.describe())?;
    }
    Ok(if report.holds() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Compares. Every side must be able to run before any does.
pub fn run(options: &PeersOptions) -> anyhow::Result<Report> {
    ensure!(!options.rows.is_empty(), "no row is asked for");
    let packages = Packages::new(
        &options.packages.clone().map_or_else(cache, Ok)?,
        "/".as_ref(),
        &std::env::var_os("PATH").unwrap_or_default(),
    );
    let asked = |peer: &Peer| options.only.is_empty() || options.only.contains(peer);
    let peers: Vec<Peer> = [Peer::Zookeeper, Peer::Etcd].into_iter().filter(asked).collect();
    for peer in &peers {
        if options.install && packages.check(*peer).is_err() {
            packages.install(*peer)?;
        }
        packages.check(*peer)?;
    }
    let sides: Vec<Side> = std::iter::once(Side::Synod).chain(peers.into_iter().map(Side::Peer)).collect();
    let parent = options.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&parent).with_context(|| format!("cannot make {}", parent.display()))?;

    let mut versions = vec![String::new(); sides.len()];
    // By row, round, side.
    let mut measured = vec![Vec::new(); options.rows.len()];
    let bar = progress::bar(u64::from(options.rounds) * sides.len() as u64, "peers");
    for round in 1..=options.rounds {
        let mut by_side = Vec::new();
        for (index, side) in sides.iter().enumerate() {
            bar.set_message(format!("round {round}, {}", side.name()));
            let dir = tempfile::Builder::new().prefix("synod-peers-").tempdir_in(&parent)?;
            let taken = turn::take(*side, options, &packages, dir.path())
                .with_context(|| format!("the turn of {} in round {round}", side.name()));
            let rows = match taken {
                Ok((version, rows)) => {
                    versions[index] = version;
                    rows
                }
                // What the rounds before measured is not lost.
                Err(error) if round > 1 => vec![Measured::void(format!("{error:#}")); options.rows.len()],
                Err(error) => return Err(error),
            };
            by_side.push(rows.into_iter());
            bar.inc(1);
        }
        for rounds in &mut measured {
            rounds.push(by_side.iter_mut().map(|rows| rows.next().expect("a turn goes through all rows")).collect());
        }
    }
    bar.finish_and_clear();
    let row = |(row, rounds): (&RowSpec, _)| RowReport::new(options.replicas, *row, &sides, rounds);
    let rows = options.rows.iter().zip(measured).map(row).collect();
    let sides = sides.iter().copied().zip(versions).collect();
    Ok(Report { replicas: options.replicas, seconds: options.seconds, sides, rows })
}

/// Where a user's programs keep what can be fetched again.
fn cache() -> anyhow::Result<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    Ok(cache.context("there is no home directory: say --packages")?.join("synod-peers"))
}
