//! `synod`: run replicas, run a local cell, and talk to one.

#[path = "main/digest.rs"]
mod digest;
#[path = "main/operate.rs"]
mod operate;
#[path = "main/reading.rs"]
mod reading;
#[path = "main/scrub.rs"]
mod scrub;
#[path = "main/snapshot.rs"]
mod snapshot;
#[path = "main/wal.rs"]
mod wal;

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::{Args, Parser, Subcommand};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use synod_client::{Client, Options, Outcome};
use synod_node::cli::{ServeArgs, chain};
use synod_node::engine::DigestStatus;
use synod_node::local_cell::{LocalCell, LocalCellError, LocalCellOptions};
use synod_node::scrub::ScrubStatus;
use synod_node::status::Status;

/// A replicated, durable, linearizable database for bare-metal Linux, after "Paxos Made Live".
///
/// Try it: `synod cell --replicas 3 --dir /tmp/cell` prints three endpoints; then, elsewhere,
/// `synod put --endpoints A,B,C greeting hello` and `synod get --endpoints A,B,C greeting`.
#[derive(Parser)]
#[command(name = "synod", version)]
struct Cli {
    #[command(flatten)]
    client: ClientArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Args, Clone)]
struct ClientArgs {
    /// Client addresses of the cell's replicas, any of them, separated by commas
    #[arg(long, global = true, env = "SYNOD_ENDPOINTS", value_delimiter = ',', value_name = "A,B,C")]
    endpoints: Vec<String>,
    /// Give up after so many milliseconds; what is not known to have happened is then reported as unknown
    #[arg(long, global = true, default_value_t = 5000, value_name = "MS")]
    deadline_ms: u64,
}

#[derive(Subcommand)]
enum Command {
    /// Run one replica of a cell
    Serve(Box<ServeArgs>),
    /// Run a whole cell on this machine, one process a replica, until ctrl-C
    Cell(CellArgs),
    /// Write a key
    Put {
        /// The key
        key: String,
        /// The value; from standard input if it is left out
        value: Option<String>,
    },
    /// Read a key; the value goes to standard output with a newline after it, exit status 1 if there is none
    Get {
        /// The key
        key: String,
        /// Print revision and version too, as one line of JSON (a value that is not UTF-8 as value_hex)
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        freshness: reading::Freshness,
    },
    /// Delete a key; exit status 1 if there was none
    Del {
        /// The key
        key: String,
    },
    /// Ask every endpoint how it is; exit status 1 if not all answer, 2 if none does
    Status {
        /// Print all that the replicas say, as one line of JSON each
        #[arg(long)]
        json: bool,
        /// Print where a command's time goes at the coordinator, stage by stage
        #[arg(long)]
        stages: bool,
    },
    /// Make another replica the master; writes under way wait a moment, none fails
    Transfer {
        /// Which replica
        #[arg(long)]
        to: u16,
    },
    /// Show or change the members of the cell
    Member {
        #[command(subcommand)]
        command: operate::MemberCommand,
    },
    /// Copy the database to another place, look at such copies, and make a new cell of one
    ///
    /// A place is an absolute path (a directory of another disk, or a mounted share: make it first), the same as
    /// file:///a/path, or s3://bucket/prefix (with credentials, region and endpoint in AWS_ACCESS_KEY_ID,
    /// AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT; for the replica's process, when it makes the copy). A copy is named
    /// CELL/SLOT-REVISION; where only one cell has copies, SLOT-REVISION is enough, and `newest` names the newest.
    ///
    /// The way to a copy that can be trusted: save, then verify, from another machine if there is one. A replica makes copies
    /// by itself with `synod serve --snapshot-to URL`.
    Snapshot {
        #[command(subcommand)]
        command: snapshot::SnapshotCommand,
    },
    /// Have each replica at --endpoints look through its database and its log for rot now, and say what it found
    ///
    /// Every replica does so by itself once an hour, at its --scrub-mb-per-s. What is damaged heals by itself: the database is
    /// rebuilt from another replica's, the log is cut behind two new snapshots. The exit status is 1 if
    /// anything was found, or a replica could not be asked.
    Scrub,
    /// Look at the log of a stopped replica: is it sound, what is in it
    ///
    /// The replica must be stopped: its directory is locked, shared, for as long as we look. Everything is read past the
    /// page cache, and every checksum is checked; nothing is written.
    Wal {
        #[command(subcommand)]
        command: wal::WalCommand,
    },
    /// Replay the log of a stopped replica, and print the database's digest after each slot
    ///
    /// It begins with the older of the replica's two snapshots. Replicas that are equal have the same digest at the same slot.
    /// Nothing is written. The whole database is in memory meanwhile.
    Digest(digest::DigestArgs),
}

#[derive(Args)]
struct CellArgs {
    /// How many replicas
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    replicas: u16,
    /// Where the replicas keep their directories; a cell that ran there before goes on
    #[arg(long)]
    dir: PathBuf,
    /// The first of as many client ports in a row; free ones if it is left out
    #[arg(long, value_name = "PORT")]
    first_port: Option<u16>,
    /// More flags for every replica, as for `synod serve`
    #[arg(last = true, value_name = "SERVE_FLAGS")]
    serve_flags: Vec<String>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Serve(args) => return args.run(),
        Command::Cell(args) => run_cell(args).map(|()| ExitCode::SUCCESS),
        Command::Put { key, value } => put(&cli.client, &key, value),
        Command::Get { key, json, freshness } => get(&cli.client, &key, json, &freshness),
        Command::Del { key } => del(&cli.client, &key),
        Command::Status { json, stages } => status(&cli.client, json, stages),
        Command::Transfer { to } => operate::transfer(&cli.client, to),
        Command::Scrub => scrub::main(&cli.client),
        Command::Snapshot { command } => snapshot::main(&cli.client, &command),
        Command::Wal { command } => wal::main(&command),
        Command::Digest(args) => digest::main(&args),
        Command::Member { command } => operate::member(&cli.client, &command),
    };
    outcome.unwrap_or_else(|error| {
        // Whoever read our output has seen enough of it (`synod status | head -1`).
        if error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe) {
            return ExitCode::SUCCESS;
        }
        eprintln!("synod: {}", chain(error.as_ref()));
        match error.downcast_ref::<synod_client::Error>().map(synod_client::Error::outcome) {
            // So that a script can tell "safe to try again" from "look first".
            Some(Outcome::Unknown) => ExitCode::from(3),
            Some(Outcome::DidNotHappen) | None => ExitCode::from(2),
        }
    })
}

fn run_cell(args: CellArgs) -> anyhow::Result<()> {
    let (tell, told) = mpsc::channel();
    // Before the replicas start, so that no signal finds them without their parent's care.
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("cannot watch signals")?;
    std::thread::spawn(move || {
        for signal in signals.forever() {
            if tell.send(signal).is_err() {
                return;
            }
        }
    });
    let mut cell = LocalCell::start(LocalCellOptions {
        replicas: args.replicas,
        dir: args.dir,
        first_port: args.first_port,
        serve_flags: args.serve_flags,
        program: None,
    })?;
    let give_up = Instant::now() + Duration::from_secs(60);
    loop {
        match cell.wait_for_master(Duration::from_millis(200)) {
            Ok(_) => break,
            // From a terminal the replicas get the signal too, and may have ended before we look.
            Err(_) if told.try_recv().is_ok() => {
                eprintln!("synod: stopping the cell before it served");
                return Ok(cell.stop()?);
            }
            Err(LocalCellError::NoMaster(_)) if Instant::now() < give_up => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut out = std::io::stdout().lock();
    for endpoint in cell.endpoints() {
        writeln!(out, "{endpoint}")?;
    }
    out.flush()?;
    loop {
        match told.recv_timeout(Duration::from_millis(200)) {
            Ok(_) => break,
            // A replica that ends is reported, and the others go on: that is what a cell is for.
            Err(mpsc::RecvTimeoutError::Timeout) => {
                if let Err(error) = cell.check() {
                    eprintln!("synod: {error}");
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => bail!("the thread that watches signals has ended"),
        }
    }
    eprintln!("synod: stopping the cell");
    cell.stop()?;
    Ok(())
}

/// The endpoints that were said. Not checked while the flags are read: a variable in the environment that is for
/// somebody else must not keep a replica from starting.
fn endpoints(args: &ClientArgs) -> anyhow::Result<Vec<&str>> {
    let endpoints: Vec<&str> =
        args.endpoints.iter().map(|endpoint| endpoint.trim()).filter(|text| !text.is_empty()).collect();
    if endpoints.is_empty() {
        bail!("which cell? Say --endpoints A,B,C (or set SYNOD_ENDPOINTS) with its replicas' client addresses");
    }
    for endpoint in &endpoints {
        let in_a_name = |letter: char| letter.is_ascii_alphanumeric() || ".-_:[]%".contains(letter);
        let is_name = |host: &str| !host.is_empty() && host.chars().all(in_a_name);
        if !endpoint.rsplit_once(':').is_some_and(|(host, port)| is_name(host) && port.parse::<u16>().is_ok()) {
            bail!("{endpoint:?} is no endpoint: write HOST:PORT, as in 127.0.0.1:7001, with commas between them");
        }
    }
    Ok(endpoints)
}

fn connect(args: &ClientArgs) -> anyhow::Result<Client> {
    let endpoints = endpoints(args)?;
    let (deadline, usual) = (Duration::from_millis(args.deadline_ms), Options::default());
    let options = Options {
        deadline,
        // Within a short deadline, too, a replica that says nothing must leave time to ask another.
        connect_time_max: usual.connect_time_max.min(deadline / 2),
        silence_time_max: usual.silence_time_max.min(deadline / 2),
        ..usual
    };
    Ok(Client::connect(&endpoints, options)?)
}

fn put(args: &ClientArgs, key: &str, value: Option<String>) -> anyhow::Result<ExitCode> {
    let value = match value {
        Some(value) => value.into_bytes(),
        None => {
            let mut bytes = Vec::new();
            std::io::stdin().read_to_end(&mut bytes).context("cannot read the value from standard input")?;
            bytes
        }
    };
    connect(args)?.put(key.as_bytes(), &value)?;
    Ok(ExitCode::SUCCESS)
}

fn get(args: &ClientArgs, key: &str, json: bool, freshness: &reading::Freshness) -> anyhow::Result<ExitCode> {
    let (revision, found) = freshness.get(&mut connect(args)?, key.as_bytes())?;
    let Some(value) = found else {
        eprintln!("synod: there is no key {key:?}");
        return Ok(ExitCode::from(1));
    };
    let mut out = std::io::stdout().lock();
    if json {
        let mut line = serde_json::json!({
            "key": key,
            "create_revision": value.create_revision.0,
            "modify_revision": value.modify_revision.0,
            "version": value.version.0,
        });
        if let Some(revision) = revision {
            line["revision"] = revision.0.into();
        }
        // JSON has text only, and a value is bytes: what is no text is not made to look like some.
        match std::str::from_utf8(&value.value) {
            Ok(text) => line["value"] = text.into(),
            Err(_) => {
                line["value_hex"] = value.value.iter().map(|byte| format!("{byte:02x}")).collect::<String>().into();
            }
        }
        writeln!(out, "{line}")?;
    } else {
        out.write_all(&value.value)?;
        writeln!(out)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn del(args: &ClientArgs, key: &str) -> anyhow::Result<ExitCode> {
    if connect(args)?.delete(key.as_bytes())?.is_none() {
        eprintln!("synod: there is no key {key:?}");
        return Ok(ExitCode::from(1));
    }
    Ok(ExitCode::SUCCESS)
}

fn status(args: &ClientArgs, json: bool, stages: bool) -> anyhow::Result<ExitCode> {
    let endpoints = endpoints(args)?;
    let mut out = std::io::stdout().lock();
    let mut silent = 0;
    let mut coordinated = false;
    for endpoint in &endpoints {
        let text = match synod_client::fetch_status(endpoint, Duration::from_millis(args.deadline_ms)) {
            Ok(text) => text,
            Err(error) => {
                silent += 1;
                eprintln!("synod: {}", chain(&error));
                continue;
            }
        };
        if json {
            writeln!(out, "{text}")?;
            continue;
        }
        let status: Status =
            serde_json::from_str(&text).with_context(|| format!("{endpoint} said what is no status"))?;
        print_status(&mut out, endpoint, &status)?;
        if status.role == "coordinating" {
            coordinated = true;
            if stages {
                print_stages(&mut out, &status)?;
            }
        }
    }
    if stages && !json && !coordinated {
        eprintln!("synod: none of these replicas coordinates, so there are no stages to show");
    }
    Ok(match silent {
        0 => ExitCode::SUCCESS,
        silent if silent < endpoints.len() => ExitCode::from(1),
        _ => ExitCode::from(2),
    })
}

/// A flush that has lasted so long is shown.
const FLUSH_SHOWN_MS: u64 = 100;

fn print_status(out: &mut impl Write, endpoint: &str, status: &Status) -> std::io::Result<()> {
    let connected = status.peers.iter().filter(|peer| peer.connected).count();
    let coordinator = status.coordinator.map_or("nobody".to_owned(), |id| format!("replica {id}"));
    writeln!(
        out,
        "{endpoint}  replica {} {}, {} ({coordinator} coordinates), {}, epoch {}, ballot {}, chosen {}, revision {}, \
         {} rows, {} of {} peers connected, {} clients{}{}",
        status.replica,
        if status.is_master { "master" } else { &status.role },
        status.voting,
        operate::tolerance(status.tolerance),
        status.epoch,
        status.promised,
        status.chosen,
        status.database.revision,
        status.database.rows,
        connected,
        status.peers.len(),
        status.clients,
        if status.catching_up { ", catching up" } else { "" },
        if status.log.full { ", LOG FULL: writes are refused" } else { "" },
    )?;
    let DigestStatus { quarantine, apart, halted, .. } = &status.digests;
    if let Some(why) = quarantine {
        writeln!(out, "    DATABASE IN QUARANTINE: {why}; it is rebuilt from another replica's")?;
    }
    if !apart.is_empty() {
        writeln!(out, "    in quarantine, or apart from a majority: replicas {apart:?}")?;
    }
    if let Some(slot) = halted {
        writeln!(
            out,
            "    HALTED: the databases differ at slot {slot}, and no majority is equal: nothing is written or read"
        )?;
    }
    let ScrubStatus { rounds, damaged, .. } = status.scrub;
    if damaged > 0 {
        writeln!(out, "    ROT: damage found {damaged} times, in {rounds} looks through the database")?;
    }
    let (log, database) = (&status.log, &status.database);
    for (what, trouble) in [
        ("DISK FULL: no segment can be made for the log", &log.disk_full),
        ("NO SNAPSHOT can be kept", &database.snapshot_trouble),
        ("another replica's database cannot be kept", &database.incoming_trouble),
    ] {
        if let Some(trouble) = trouble {
            writeln!(out, "    {what}, for {} s: {}", trouble.for_s, trouble.why)?;
        }
    }
    if log.flush_under_way_ms >= FLUSH_SHOWN_MS {
        writeln!(out, "    THE DISK STALLS: the log's flush has lasted {} ms", log.flush_under_way_ms)?;
    }
    let engine = &status.counters.engine;
    if engine.flush_stalls > 0 {
        let longest_ms = engine.flush_longest_us / 1000;
        writeln!(
            out,
            "    the disk stalled {} times since the start, for {longest_ms} ms at most",
            engine.flush_stalls
        )?;
    }
    if let Some(rejoining) = &status.rejoining {
        writeln!(out, "    LOST STATE: it {}", rejoining.in_words())?;
    } else if status.life > 1 {
        writeln!(out, "    in life {}: it lost its state {} time(s), and rejoined", status.life, status.life - 1)?;
    }
    let damage = &status.log.damage;
    if damage.holes > 0 {
        writeln!(
            out,
            "    its log was damaged in {} places: {} slots lost, {} of them repaired",
            damage.holes, damage.slots_lost, damage.slots_repaired
        )?;
    }
    if let Some(why) = &damage.held_up {
        writeln!(out, "    CANNOT LEAD: {why}")?;
    }
    let schedule = status.database.remote_schedule.as_ref();
    if let Some((schedule, why)) = schedule.and_then(|schedule| Some((schedule, schedule.trouble.as_ref()?))) {
        writeln!(out, "    CANNOT COPY SNAPSHOTS to {}: {why}", schedule.to)?;
    }
    if let Some((copy, why)) = status.database.remote_copy.as_ref().and_then(|copy| Some((copy, copy.error.as_ref()?)))
    {
        writeln!(out, "    the last copy of a snapshot, {}, failed: {why}", copy.name)?;
    }
    for peer in &status.peers {
        if let (false, Some(why)) = (peer.connected, &peer.last_failure) {
            writeln!(out, "    cannot reach replica {} at {}: {why}", peer.replica, peer.address)?;
        }
    }
    Ok(())
}

fn print_stages(out: &mut impl Write, status: &Status) -> std::io::Result<()> {
    let us = |ns: u64| ns as f64 / 1000.0;
    writeln!(
        out,
        "    {:<8}{:>12}{:>12}{:>12}{:>12}{:>14}",
        "stage", "p50 us", "p99 us", "p99.9 us", "max us", "commands"
    )?;
    for figures in &status.stages {
        writeln!(
            out,
            "    {:<8}{:>12.1}{:>12.1}{:>12.1}{:>12.1}{:>14}",
            figures.stage,
            us(figures.p50_ns),
            us(figures.p99_ns),
            us(figures.p999_ns),
            us(figures.max_ns),
            figures.commands
        )?;
    }
    Ok(())
}
