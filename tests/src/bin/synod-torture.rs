//! `synod-torture`: one subcommand a module of `synod_tests::torture`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use synod_node::cli::ServeArgs;
use synod_tests::torture::{
    corrupt, durability, eio, failover, full, kill, lease_reads, linearize, power, rejoin, snapshots, stale, stall,
    transfer,
};

/// Breaks cells of real processes on this machine, and checks that what they promise holds.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Kill replicas under load; nothing acknowledged may be lost or happen twice
    Kill(kill::KillOptions),
    // What these two say of themselves is longer than a line.
    Snapshots(snapshots::SnapshotsOptions),
    Power(power::PowerOptions),
    Full(full::FullOptions),
    Eio(eio::EioOptions),
    Stall(stall::StallOptions),
    Corrupt(corrupt::CorruptOptions),
    /// Empty a replica's directory, or put an older copy back, under load; it must rejoin by itself
    Rejoin(rejoin::RejoinOptions),
    /// Kill and pause the master under load, and measure how long writes stop
    Failover(failover::FailoverOptions),
    /// Kill and pause replicas under load; there must be one order that explains every answer
    Linearize(linearize::LinearizeOptions),
    /// Pause the master until others have written, resume it, and ask it: no answer may be stale
    Stale(stale::StaleOptions),
    /// Hand mastership over under load, and measure the writes of that second
    Transfer(transfer::TransferOptions),
    /// Read only, then write only, and show by counters that reads under the lease take no disk and no network round
    LeaseReads(lease_reads::LeaseReadsOptions),
    /// Prove by the log of the block devices that what is acknowledged is durable on a majority
    Durability(durability::DurabilityOptions),
    /// Cases of `corrupt`, in a process that some of them end
    #[command(hide = true)]
    CorruptWorker(corrupt::worker::WorkerOptions),
    /// One replica; the commands start these themselves
    #[command(hide = true)]
    Serve(Box<ServeArgs>),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Kill(options) => kill::main(&options).map(|()| ExitCode::SUCCESS),
        Command::Snapshots(options) => snapshots::main(&options).map(|()| ExitCode::SUCCESS),
        Command::Power(options) => power::main(&options),
        Command::Full(options) => full::main(&options),
        Command::Eio(options) => eio::main(&options),
        Command::Stall(options) => stall::main(&options),
        Command::Corrupt(options) => corrupt::main(&options).map(|()| ExitCode::SUCCESS),
        Command::CorruptWorker(options) => corrupt::worker::main(&options).map(|()| ExitCode::SUCCESS),
        Command::Rejoin(options) => rejoin::main(&options).map(|()| ExitCode::SUCCESS),
        Command::Failover(options) => failover::main(&options).map(|()| ExitCode::SUCCESS),
        Command::Linearize(options) => linearize::main(&options).map(|()| ExitCode::SUCCESS),
        Command::Stale(options) => stale::main(&options).map(|()| ExitCode::SUCCESS),
        Command::Transfer(options) => transfer::main(&options).map(|()| ExitCode::SUCCESS),
        Command::LeaseReads(options) => lease_reads::main(&options).map(|()| ExitCode::SUCCESS),
        Command::Durability(options) => durability::main(&options),
        Command::Serve(args) => Ok(args.run()),
    };
    result.unwrap_or_else(|error| {
        eprintln!("synod-torture: {error:#}");
        ExitCode::from(1)
    })
}
