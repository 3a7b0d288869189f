//! The flags of `serve`. Every binary that starts replicas re-executes itself with them: `synod`, the benchmark, the
//! torture commands and the tests.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::{self, Config, ConfigError, defaults};
use crate::serve::{self, ServeOptions, exit};
use crate::start::FirstStart;

/// Run one replica of a cell, from flags, or from a TOML file that flags override.
#[derive(Args, Debug, Clone)]
pub struct ServeArgs {
    /// A TOML file with the keys of these flags (id, dir, and a member table for each, with id, peer, client)
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Which member of the cell this replica is, from 1
    #[arg(long, required_unless_present = "config")]
    pub id: Option<u16>,
    /// The directory this replica keeps its log in; nothing else may use it
    #[arg(long, required_unless_present = "config")]
    pub dir: Option<PathBuf>,
    /// One member of the cell, this one included; say it once for each
    #[arg(long = "member", value_name = "ID=PEER_ADDRESS,CLIENT_ADDRESS")]
    pub members: Vec<String>,
    /// This is the first start of the whole cell: make it, on an empty directory. Say it on every member. On a directory
    /// that is not empty it means nothing
    #[arg(long)]
    pub bootstrap: bool,
    /// Join a running cell on an empty directory, after `synod member add` on it: name its members and this one. On a
    /// directory that is not empty it means nothing
    #[arg(long, conflicts_with = "bootstrap")]
    pub join: bool,
    /// Do not use this replica's database: rebuild it from another replica's. Promises and log stay. For one start, after the
    /// replicas differed and no majority was equal
    #[arg(long)]
    pub rebuild: bool,
    /// Listen beyond loopback although nothing is encrypted or authenticated yet
    #[arg(long)]
    pub insecure: bool,
    /// Run on tmpfs, which forgets everything when the machine stops
    #[arg(long)]
    pub volatile: bool,
    /// Size of one log segment, in MiB [default: 64]
    #[arg(long, value_name = "MIB")]
    pub segment_mb: Option<u64>,
    /// Refuse writes when the log has this size, in MiB [default: 16384]
    #[arg(long, value_name = "MIB")]
    pub log_mb_max: Option<u64>,
    /// Make a snapshot of the database after so much log, in MiB; the log is cut at the one before [default: a quarter of
    /// --log-mb-max, 1024 at most]
    #[arg(long, value_name = "MIB")]
    pub snapshot_log_mb: Option<u64>,
    /// Write snapshots, and read them back, at this rate at most, in MiB a second: the log needs the same disk [default: 128]
    #[arg(long, value_name = "MIB")]
    pub snapshot_mb_per_s: Option<u64>,
    /// Look through the database for rot at this rate at most, in MiB a second; 0: not at all [default: 8]
    #[arg(long, value_name = "MIB")]
    pub scrub_mb_per_s: Option<u64>,
    /// Fetch another replica's snapshot, and read the log for those who lag behind, at this rate at most, in MiB a second; the log
    /// a little faster while it grows, so that they catch up [default: 16]
    #[arg(long, value_name = "MIB")]
    pub catch_up_mb_per_s: Option<u64>,
    /// Let one replica of the cell copy the database there by itself: an absolute path that all replicas can write to, or
    /// s3://bucket/prefix. Say it on every member
    #[arg(long, value_name = "URL")]
    pub snapshot_to: Option<String>,
    /// So often [default: 60]
    #[arg(long, value_name = "MINUTES")]
    pub snapshot_every_minutes: Option<u64>,
    /// Keep so many of these copies; those that `synod snapshot save` made are not counted, and stay [default: 24]
    #[arg(long, value_name = "COPIES")]
    pub snapshots_kept: Option<u64>,
    /// How large the database may become, in GiB: so many addresses are reserved, and no memory [default: 256]
    #[arg(long, value_name = "GIB")]
    pub database_gb_max: Option<u64>,
    /// How many slots may be open at once [default: 1]
    #[arg(long, value_name = "SLOTS")]
    pub window: Option<u64>,
    /// Let a batch wait so long, right after a commit, for the clients just answered to ask again [default: 120; 0 = off]
    #[arg(long, value_name = "US")]
    pub gather_us: Option<u64>,
    /// How often an idle coordinator tells that it lives [default: 200]
    #[arg(long, value_name = "MS")]
    pub heartbeat_ms: Option<u64>,
    /// The lease of a new cell's master: shorter ends a fail-over sooner, longer lives through stalls of the disks. Decided at
    /// the first start of the cell, for good [default: 1000]
    #[arg(long, value_name = "MS")]
    pub lease_ms: Option<u64>,
    /// Ask to campaign after this long (and up to half as long again) without a coordinator [default: 1000]
    #[arg(long, value_name = "MS")]
    pub election_timeout_ms: Option<u64>,
    /// Pin the hot core to this processor
    #[arg(long, value_name = "CPU")]
    pub pin_to_cpu: Option<usize>,
    /// Stop when standard input ends, that is, when whoever started this process is gone
    #[arg(long, hide = true)]
    pub stop_with_parent: bool,
}

impl ServeArgs {
    /// The configuration that flags and file make together. Not validated yet.
    pub fn to_config(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::read(path)?,
            // Clap asked for both: without a file they are required.
            None => Config::new(self.id.unwrap_or_default(), self.dir.clone().unwrap_or_default(), Vec::new()),
        };
        if let Some(id) = self.id {
            config.id = id;
        }
        if let Some(dir) = &self.dir {
            config.dir.clone_from(dir);
        }
        if !self.members.is_empty() {
            config.members = self.members.iter().map(|text| config::parse_member(text)).collect::<Result<_, _>>()?;
        }
        config.insecure |= self.insecure;
        config.rebuild = self.rebuild;
        config.volatile |= self.volatile;
        let set = |value: &mut u64, flag: Option<u64>| *value = flag.unwrap_or(*value);
        set(&mut config.segment_mb, self.segment_mb);
        set(&mut config.log_mb_max, self.log_mb_max);
        config.snapshot_log_mb = self.snapshot_log_mb.or(config.snapshot_log_mb);
        set(&mut config.snapshot_mb_per_s, self.snapshot_mb_per_s);
        set(&mut config.scrub_mb_per_s, self.scrub_mb_per_s);
        set(&mut config.catch_up_mb_per_s, self.catch_up_mb_per_s);
        config.snapshot_to = self.snapshot_to.clone().or(config.snapshot_to);
        set(&mut config.snapshot_every_minutes, self.snapshot_every_minutes);
        set(&mut config.snapshots_kept, self.snapshots_kept);
        set(&mut config.database_gb_max, self.database_gb_max);
        set(&mut config.window, self.window);
        set(&mut config.gather_us, self.gather_us);
        set(&mut config.heartbeat_ms, self.heartbeat_ms);
        set(&mut config.lease_ms, self.lease_ms);
        set(&mut config.election_timeout_ms, self.election_timeout_ms);
        config.pin_to_cpu = self.pin_to_cpu.or(config.pin_to_cpu);
        Ok(config)
    }

    /// Runs the replica, and says why it ended if that was not asked for.
    pub fn run(&self) -> ExitCode {
        let config = match self.to_config() {
            Ok(config) => config,
            Err(error) => {
                eprintln!("synod: {error}");
                return ExitCode::from(exit::CONFIG);
            }
        };
        let first_start = match (self.bootstrap, self.join) {
            (true, _) => FirstStart::Bootstrap,
            (false, true) => FirstStart::Join,
            (false, false) => FirstStart::Refused,
        };
        let options = ServeOptions { first_start, stop_with_parent: self.stop_with_parent };
        match serve::serve(&config, options) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("synod: {}", chain(&error));
                ExitCode::from(error.exit_code())
            }
        }
    }
}

/// An error with its causes, those left out that it names itself.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

const _: () = {
    // The help texts above name the defaults; clap cannot compute them there.
    assert!(defaults::segment_mb() == 64);
    assert!(defaults::log_mb_max() == 16384);
    assert!(defaults::snapshot_log_mb() == 1024);
    assert!(defaults::snapshot_mb_per_s() == 128);
    assert!(defaults::scrub_mb_per_s() == 8);
    assert!(defaults::catch_up_mb_per_s() == 16);
    assert!(defaults::snapshot_every_minutes() == 60);
    assert!(defaults::snapshots_kept() == 24);
    assert!(defaults::database_gb_max() == 256);
    assert!(defaults::window() == 1);
    assert!(defaults::gather_us() == 120);
    assert!(defaults::heartbeat_ms() == 200);
    assert!(defaults::lease_ms() == 1000);
    assert!(defaults::election_timeout_ms() == 1000);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_that_cannot_be_made_is_told_with_its_cause() {
        let source = std::io::Error::from_raw_os_error(5);
        let error = synod_wal::directory::DirectoryError::Io { doing: "syncing", path: "d/wal".into(), source };
        let doing = "cannot make the next log segment".to_owned();
        let failed = crate::hot::HotError::DiskFailed { doing, source: error.into() };
        let text = chain(&crate::serve::ServeError::from(failed));
        assert_eq!(
            text,
            "the disk failed: cannot make the next log segment: syncing d/wal; see to the disk, and start the replica \
             again: Input/output error (os error 5)"
        );
    }
}
