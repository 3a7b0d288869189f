//! `synod-bench`: one subcommand a module, see the library.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use synod_bench::{floor, instructions, load, peers, profile, snapshots, table1, wal};
use synod_node::cli::ServeArgs;

/// Measures Synod, and the machine under it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Table 1 of "Paxos Made Live", on a cell of real processes on this machine
    Table1(table1::Table1Options),
    /// A closed or an open loop against any cell
    Load(load::LoadOptions),
    /// Where the microseconds of a write go, stage by stage, the floor beside them
    Profile(profile::ProfileOptions),
    /// How many instructions a command takes, part by part; needs valgrind
    Instructions(instructions::InstructionsOptions),
    /// One part, to be counted; the bench starts these itself, under valgrind
    #[command(hide = true)]
    InstructionsPart(instructions::PartOptions),
    /// ZooKeeper and etcd on the same rows, in turn with Synod
    Peers(peers::PeersOptions),
    /// One replica; the bench starts these itself
    #[command(hide = true)]
    Serve(Box<ServeArgs>),
    /// What snapshots cost those who write meanwhile, and what they save at a start and for a laggard
    Snapshots(snapshots::SnapshotsOptions),
    /// The log beside the disk's own limit: latency, bandwidth, and what an append costs
    Wal(wal::WalOptions),
    /// The least that any such system must do here: a bare relay with a durable write in each process.
    Floor(floor::FloorOptions),
    /// One process of the floor's relay; the bench starts these itself.
    #[command(hide = true)]
    FloorReplica(floor::replica::ReplicaOptions),
}

fn main() -> anyhow::Result<ExitCode> {
    match Arguments::parse().command {
        Command::Table1(options) => table1::main(&options),
        Command::Load(options) => load::main(&options),
        Command::Profile(options) => profile::main(&options),
        Command::Instructions(options) => instructions::main(&options),
        Command::InstructionsPart(options) => instructions::run_part(&options).map(|()| ExitCode::SUCCESS),
        Command::Peers(options) => peers::main(&options),
        Command::Serve(args) => Ok(args.run()),
        Command::Snapshots(options) => snapshots::main(&options),
        Command::Wal(options) => wal::main(&options),
        Command::Floor(options) => floor::main(&options),
        Command::FloorReplica(options) => floor::replica::main(&options).map(|()| ExitCode::SUCCESS),
    }
}
