//! Torture: cells of real processes under load that are killed, and a log of what their disks were really told.
//!
//! | module | what it is |
//! |---|---|
//! | `kill` | `synod-torture kill`: replicas are killed under load; every acknowledged write must be there, once |
//! | `rejoin` | `synod-torture rejoin`: directories are emptied, or older copies put back, under load; the replica must rejoin |
//! | `corrupt` | `synod-torture corrupt`: every kind of damage at every block of a log and a database |
//! | `snapshots` | `synod-torture snapshots`: killed while snapshots are written, logs cut and laggards caught up |
//! | `power` | `synod-torture power`: the power is cut from the replicas' file systems |
//! | `full` | `synod-torture full`: the replicas' disks are filled, and emptied again |
//! | `eio` | `synod-torture eio`: one I/O after the other of a replica's disk fails |
//! | `stall` | `synod-torture stall`: the master's disk stands still for half a minute |
//! | `attack` | what `snapshots` and `power` share: moments, checks, report |
//! | `load` | the load of a command that breaks a cell: all its clients |
//! | `failover` | `synod-torture failover`: the master is killed, or paused; how long writes stop, as callers see it |
//! | `linearize` | `synod-torture linearize`: replicas are killed and paused; the whole history must be linearizable |
//! | `linear` | the checker behind it |
//! | `stale` | `synod-torture stale`: a master that was paused and is back answers no stale read |
//! | `transfer` | `synod-torture transfer`: the master is asked to hand over; how long writes take in that second |
//! | `lease_reads` | `synod-torture lease-reads`: reads under the lease take no disk and no network, by counters |
//! | `durability` | `synod-torture durability`: each acknowledged write against the logs of the block devices |
//! | `history` | what clients were told, and what may be true after that |
//! | `client` | one client under load: writes, swaps, files, reads; and its read-back |
//! | `pulse` | when writes were acknowledged, so when they were not |
//! | `profile` | the cell's flags and the clients' options, by name |
//! | `wire` | a connection to one given replica |
//! | `cell` | what the commands do with a cell of real processes |
//! | `device`, `device_log` | a block device that logs every write and flush; what such a log proves |
//! | `mounted_disk` | a file system on what an NBD server serves, nbdkit or `faulty_disk` |
//! | `faulty_disk` | a disk that fails at its k-th request, or stands still, when it is told to |
//! | `loop_device` | a file system of its own, from which the power can be cut |
//! | `stop` | a signal ends a command in order, so that nothing is left behind |

pub mod attack;
pub mod cell;
pub mod client;
pub mod corrupt;
pub mod device;
pub mod device_log;
pub mod durability;
pub mod eio;
pub mod failover;
pub mod faulty_disk;
pub mod full;
pub mod history;
pub mod kill;
pub mod lease_reads;
pub mod linear;
pub mod linearize;
pub mod load;
pub mod loop_device;
pub mod mounted_disk;
pub mod power;
pub mod profile;
pub mod pulse;
pub mod rejoin;
pub mod snapshots;
pub mod stale;
pub mod stall;
pub mod stop;
pub mod transfer;
pub mod wire;

use anyhow::Context;
use serde::Serialize;

/// What a command found, for people and for programs.
pub trait Report: Serialize {
    /// The text, several lines; the last one sums up.
    fn text(&self) -> String;
}

/// Prints a report, as text or as JSON.
pub fn print(report: &impl Report, json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(report).context("a report is valid JSON")?);
    } else {
        println!("{}", report.text());
    }
    Ok(())
}
