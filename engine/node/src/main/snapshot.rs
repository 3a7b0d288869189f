//! `synod snapshot`: copies of the database in another place, and new cells of such copies.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use synod_node::cli::chain;
use synod_node::codec::decode_handle;
use synod_node::config::{self, defaults};
use synod_node::databases::Place;
use synod_node::directory::{Directory, DirectoryError};
use synod_node::operator::{OperatorAnswer, OperatorRequest};
use synod_node::remote::manifest::{MadeBy, now_ms, parse_cell, time_text};
use synod_node::remote::restore::{Newer, Wish, newer_copy, restore};
use synod_node::remote::save::{Pace, Source, save as save_source};
use synod_node::remote::verify::verify as verify_copy;
use synod_node::remote::{Manifest, Name, Remote};
use synod_node::status::{RemoteCopyStatus, Status};

use crate::{ClientArgs, endpoints};

/// How often a copy under way is asked how far it is.
const POLL: Duration = Duration::from_millis(200);
/// How often that is told.
const TELL_EVERY: Duration = Duration::from_secs(2);
/// A replica that runs answers at once; one that does not, for so long, is not asked again.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What can be done with copies.
#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    /// Have every replica of these endpoints make a snapshot of its own, on its own disk, now: one after the other
    ///
    /// They do so by themselves as the log grows. Before a planned stop it shortens the next start.
    Now,
    /// Copy the database of a running replica (with --endpoints; a follower if there is one), or of a stopped one (--from-dir)
    ///
    /// A running replica freezes its database, which costs it nothing but memory for what is changed meanwhile, and writes
    /// the copy itself, no faster than its --snapshot-mb-per-s. So --to is as that replica's machine sees it. The copy has
    /// every write that was acknowledged before the replica froze, as far as it had applied them.
    ///
    /// A stopped replica's directory gives its newest snapshot; what its log has beyond is not in the copy. Start the
    /// replica and save from it, if it starts.
    Save {
        /// The place; a running replica's own snapshot_to if it is left out
        #[arg(long, value_name = "URL")]
        to: Option<String>,
        /// The directory that was given to `synod serve --dir`; the replica must be stopped
        #[arg(long, value_name = "DIR", requires = "to")]
        from_dir: Option<PathBuf>,
        /// Ask this replica, and no other
        #[arg(long, value_name = "ID", conflicts_with = "from_dir")]
        replica: Option<u16>,
    },
    /// Say which copies there are, the oldest first
    List {
        /// The place
        url: String,
        /// A line of JSON for each copy
        #[arg(long)]
        json: bool,
    },
    /// Read all of a copy, check every checksum, and build its database in memory
    ///
    /// Exit status 0: sound. 1: damaged, and the line says which chunks. 2: it cannot be read, or there is none.
    Verify {
        /// The place
        url: String,
        /// Which copy
        name: String,
    },
    /// Make the directories of a whole new cell, which begins where a copy ends
    ///
    /// The new cell has a new id: the old one's replicas and it refuse each other. Rows, revisions and sessions are as they
    /// were; what was written after the copy is not there. Start each replica with the `synod serve` that is printed, or all
    /// of them on this machine with `synod cell --dir DIR`. Verify the copy first.
    ///
    /// For members on several machines: restore a cell of one member, start it, and add the others with `synod member add` and
    /// `synod serve --join`. Or restore on each machine with --id, and --cell-id from the first one's output; then restore
    /// each member once, before any of them is started. A member restored again under the same id has forgotten what it
    /// promised: that can lose acknowledged writes.
    Restore(Box<RestoreArgs>),
}

#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// The place
    url: String,
    /// Which copy
    name: String,
    /// Where `replica-1` and so on are made; they must not exist, or be empty
    #[arg(long)]
    dir: PathBuf,
    /// One member of the new cell; say it once for each
    #[arg(long = "member", value_name = "ID=PEER_ADDRESS,CLIENT_ADDRESS", required = true)]
    members: Vec<String>,
    /// Make this member's directory only
    #[arg(long, value_name = "ID")]
    id: Option<u16>,
    /// The new cell's id, as the restore of its first member printed it
    #[arg(long, value_name = "HEX", requires = "id", value_parser = cell_id)]
    cell_id: Option<u128>,
    /// Size of one log segment, in MiB: say the same to `synod serve`
    #[arg(long, value_name = "MIB", default_value_t = defaults::segment_mb())]
    segment_mb: u64,
    /// The lease of the new cell's master [default: as it was]
    #[arg(long, value_name = "MS")]
    lease_ms: Option<u64>,
    /// The members listen beyond loopback
    #[arg(long)]
    insecure: bool,
    /// Restore to tmpfs
    #[arg(long)]
    volatile: bool,
    /// Restore this copy although there is a newer state, which is lost to the new cell. Say how many slots, too
    #[arg(long, requires = "yes_lose_slots")]
    lose_newer: bool,
    /// How many slots may be lost: the refusal says how many there are
    #[arg(long, value_name = "SLOTS", requires = "lose_newer")]
    yes_lose_slots: Option<u64>,
}

fn cell_id(text: &str) -> Result<u128, String> {
    parse_cell(text).ok_or_else(|| format!("{text:?} is no cell id: that is 32 hex digits"))
}

pub(crate) fn main(client: &ClientArgs, command: &SnapshotCommand) -> anyhow::Result<ExitCode> {
    match command {
        SnapshotCommand::Save { to: Some(to), from_dir: Some(dir), .. } => save_stopped(dir, to),
        SnapshotCommand::Now => snapshot_now(client),
        SnapshotCommand::Save { to, replica, .. } => save_running(client, to.as_deref(), *replica),
        SnapshotCommand::List { url, json } => list(url, *json),
        SnapshotCommand::Verify { url, name } => verify(url, name),
        SnapshotCommand::Restore(args) => restore_cell(client, args),
    }
}

/// Which copy is meant.
fn find(remote: &Remote, text: &str) -> anyhow::Result<Name> {
    if let Some(name) = Name::parse(text) {
        return Ok(name);
    }
    let names = remote.names(None)?;
    let mut whole = Vec::new();
    for name in names.iter().filter(|name| text == "newest" || text == name.folder()) {
        if text != "newest" || remote.manifest(*name)?.is_some() {
            whole.push(*name);
        }
    }
    let Some(&last) = whole.last() else {
        bail!("there is no copy {text} in {url}: `synod snapshot list {url}` says which there are", url = remote.url());
    };
    if whole.iter().any(|name| name.cell != last.cell) {
        bail!("{} has copies of several cells: name one in full, as `synod snapshot list` does", remote.url());
    }
    Ok(last)
}

fn verify(url: &str, name: &str) -> anyhow::Result<ExitCode> {
    let remote = Remote::open(url)?;
    let name = find(&remote, name)?;
    match verify_copy(&remote, name, |_| {}) {
        Ok(manifest) => {
            println!(
                "sound: {name}, {} rows, {} bytes in {} chunks, taken {}",
                manifest.rows,
                manifest.bytes,
                manifest.chunks.len(),
                time_text(manifest.taken_ms)
            );
            Ok(ExitCode::SUCCESS)
        }
        Err(error) if error.is_damage() => {
            println!("damaged: {}", chain(&error));
            Ok(ExitCode::from(1))
        }
        Err(error) => Err(error.into()),
    }
}

fn list(url: &str, json: bool) -> anyhow::Result<ExitCode> {
    let remote = Remote::open(url)?;
    let mut out = std::io::stdout().lock();
    if !json {
        writeln!(
            out,
            "{:<64}  {:<23}  {:>12}  {:>12}  {:>10}  {:>7}  made by",
            "name", "taken", "rows", "bytes", "written", "chunks"
        )?;
    }
    for name in remote.names(None)? {
        match (remote.manifest(name)?, json) {
            (Some(Ok(manifest)), true) => {
                let mut line = serde_json::to_value(&manifest)?;
                line["name"] = name.to_string().into();
                line["whole"] = true.into();
                line["chunks"] = manifest.chunks.len().into();
                line["chunk_bytes"] = manifest.chunk_bytes().into();
                writeln!(out, "{line}")?;
            }
            (Some(Ok(manifest)), false) => {
                let by = match manifest.made_by {
                    MadeBy::Operator => "operator",
                    MadeBy::Schedule => "schedule",
                };
                writeln!(
                    out,
                    "{:<64}  {:<23}  {:>12}  {:>12}  {:>10}  {:>7}  {by} (replica {})",
                    name.to_string(),
                    time_text(manifest.taken_ms),
                    manifest.rows,
                    manifest.bytes,
                    manifest.chunk_bytes(),
                    manifest.chunks.len(),
                    manifest.replica
                )?;
            }
            (found, _) => {
                let why = match found {
                    Some(Err(error)) => error.to_string(),
                    _ => "not whole: it is being made, or was given up".to_owned(),
                };
                if json {
                    writeln!(out, "{}", serde_json::json!({"name": name.to_string(), "whole": false, "why": why}))?;
                } else {
                    writeln!(out, "{:<64}  {why}", name.to_string())?;
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn save_stopped(dir: &Path, to: &str) -> anyhow::Result<ExitCode> {
    let directory = match Directory::open_to_look(dir) {
        Err(DirectoryError::InUse(_)) => {
            bail!("a replica runs on {}: ask it, with --endpoints, instead of --from-dir", dir.display())
        }
        opened => opened?,
    };
    let Some(identity) = directory.identity()? else {
        bail!("{} is empty: no replica was ever started there", dir.display());
    };
    let remote = Remote::open(to)?;
    let place = Place::at(dir, &identity, defaults::database_gb_max() << 30);
    let (mut store, opened) = place.open_existing().context("the database does not open")?;
    if opened.handle.is_empty() {
        bail!(
            "{} has no snapshot yet: all is in its log. Start the replica, and save from it with --endpoints",
            dir.display()
        );
    }
    let handle = decode_handle(&opened.handle).context("the snapshot's handle")?;
    let taken = std::fs::metadata(dir.join("database")).and_then(|file| file.modified()).ok();
    let taken_ms = taken.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    let source = Source {
        view: store.freeze(),
        handle,
        cell: identity.cell,
        replica: identity.replica,
        incarnation: identity.incarnation,
        // The file was last written when the snapshot was.
        taken_ms: taken_ms.map_or_else(now_ms, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        made_by: MadeBy::Operator,
    };
    let saved = save_source(&remote, &source, &Pace::default())?;
    eprintln!("synod: this is the snapshot at slot {}; what the log has beyond it is not in the copy", saved.name.slot);
    tell_saved(&saved.name.to_string(), saved.bytes, saved.was_there);
    Ok(ExitCode::SUCCESS)
}

fn tell_saved(name: &str, bytes: u64, was_there: bool) {
    if was_there {
        eprintln!("synod: there was a whole copy of this state already; nothing was written");
    } else {
        eprintln!("synod: wrote {bytes} bytes");
    }
    println!("{name}");
}

/// Who answered, and how it is; then why the last of the others did not.
type Statuses<'a> = (Vec<(&'a str, Status)>, Option<synod_client::Error>);

fn statuses(args: &ClientArgs) -> anyhow::Result<Statuses<'_>> {
    let (mut found, mut last) = (Vec::new(), None);
    for endpoint in endpoints(args)? {
        match synod_client::fetch_status(endpoint, Duration::from_millis(args.deadline_ms.min(2000))) {
            Ok(text) => {
                let status =
                    serde_json::from_str(&text).with_context(|| format!("{endpoint} said what is no status"))?;
                found.push((endpoint, status));
            }
            Err(error) => last = Some(error),
        }
    }
    Ok((found, last))
}

fn snapshot_now(args: &ClientArgs) -> anyhow::Result<ExitCode> {
    let (found, error) = statuses(args)?;
    let request = serde_json::to_string(&OperatorRequest::Snapshot)?;
    for (endpoint, before) in &found {
        synod_client::operate(endpoint, &request, Duration::from_millis(args.deadline_ms))?;
        let mut heard = Instant::now();
        loop {
            match synod_client::fetch_status(endpoint, SILENCE_MAX) {
                Ok(text) => {
                    heard = Instant::now();
                    let status: Status = serde_json::from_str(&text).context("the replica said what is no status")?;
                    if status.database.snapshot >= before.chosen && !status.database.snapshot_under_way {
                        println!("replica {}: all up to slot {} is kept", status.replica, status.database.snapshot);
                        break;
                    }
                }
                Err(error) if heard.elapsed() > SILENCE_MAX => {
                    return Err(error).context(format!("{endpoint} does not answer any more"));
                }
                Err(_) => {}
            }
            std::thread::sleep(POLL);
        }
    }
    // Whoever does not answer makes none: said, and shown by the exit status.
    error.map_or(Ok(ExitCode::SUCCESS), |error| Err(error.into()))
}

fn save_running(args: &ClientArgs, to: Option<&str>, replica: Option<u16>) -> anyhow::Result<ExitCode> {
    let (mut found, error) = statuses(args)?;
    found.retain(|(_, status)| replica.is_none_or(|replica| replica == status.replica));
    // A follower that has kept up; the further on, the better. The master, if there is nobody else.
    let fitness = |status: &Status| (!status.catching_up, status.role != "coordinating", status.chosen);
    let Some((endpoint, status)) = found.into_iter().max_by_key(|(_, status)| fitness(status)) else {
        let nobody = match replica {
            Some(id) => anyhow::anyhow!("replica {id} does not answer at these endpoints"),
            None => anyhow::anyhow!("none of these replicas answers"),
        };
        return Err(error.map_or(nobody, Into::into));
    };
    let before = status.database.remote_copy.map_or(0, |copy| copy.number);
    let request = serde_json::to_string(&OperatorRequest::SaveSnapshot { to: to.map(str::to_owned) })?;
    let answer = synod_client::operate(endpoint, &request, Duration::from_millis(args.deadline_ms))?;
    match serde_json::from_str(&answer).with_context(|| format!("{endpoint} said {answer}"))? {
        OperatorAnswer::Accepted => {}
        OperatorAnswer::Refused { reason, .. } => bail!("{reason}"),
        OperatorAnswer::NotMaster { .. } => bail!("{endpoint} is of another version: it passes this on to the master"),
        OperatorAnswer::Traces(_) => bail!("{endpoint} answered what was not asked"),
    }
    let copy = follow(endpoint, before)?;
    if let Some(error) = copy.error {
        bail!("replica {} gave the copy {} up: {error}", status.replica, copy.name);
    }
    tell_saved(&copy.name, copy.bytes, copy.was_there);
    Ok(ExitCode::SUCCESS)
}

/// Waits until the copy is made or given up, and tells how far it is.
fn follow(endpoint: &str, before: u64) -> anyhow::Result<RemoteCopyStatus> {
    let (mut heard, mut told) = (Instant::now(), Instant::now());
    loop {
        std::thread::sleep(POLL);
        let copy = match synod_client::fetch_status(endpoint, SILENCE_MAX) {
            Ok(text) => {
                heard = Instant::now();
                let status: Status = serde_json::from_str(&text).context("the replica said what is no status")?;
                let copy = status.database.remote_copy.filter(|copy| copy.number > before);
                copy.context("the replica was started again meanwhile: the copy is given up")?
            }
            Err(error) if heard.elapsed() > SILENCE_MAX => {
                return Err(error).context("the replica that makes the copy does not answer any more");
            }
            Err(_) => continue,
        };
        if copy.done {
            return Ok(copy);
        }
        if told.elapsed() >= TELL_EVERY {
            told = Instant::now();
            let part = (100 * copy.bytes).checked_div(copy.bytes_total).unwrap_or(0).min(99);
            eprintln!("synod: {} to {}: {} bytes, about {part} %", copy.name, copy.to, copy.bytes);
        }
    }
}

fn duration_text(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours} h {minutes} min"),
        (days, hours, _) => format!("{days} d {hours} h"),
    }
}

/// What would be gone: the newest state that the place has, and the one that the old cell has, if it runs.
fn newer_states(client: &ClientArgs, remote: &Remote, name: Name, manifest: &Manifest) -> anyhow::Result<Vec<Newer>> {
    let mut newer = Vec::from_iter(newer_copy(remote, manifest, name)?);
    if client.endpoints.iter().all(|endpoint| endpoint.trim().is_empty()) {
        eprintln!("synod: no --endpoints of the old cell: only the copies in {} are compared", remote.url());
        return Ok(newer);
    }
    let (found, error) = statuses(client)?;
    if found.is_empty() {
        let why = error.map_or_else(String::new, |error| format!(" ({})", chain(&error)));
        eprintln!("synod: none of the old cell's endpoints answers{why}: only the copies are compared");
    }
    let cell = format!("{:032x}", name.cell);
    let furthest = found.into_iter().filter(|(_, status)| status.cell == cell).max_by_key(|(_, status)| status.chosen);
    if let Some((endpoint, status)) = furthest
        && status.database.revision > name.revision.0
    {
        newer.push(Newer {
            of: format!("the cell itself, which runs (replica {} at {endpoint})", status.replica),
            slots: status.chosen.saturating_sub(name.slot.0),
            revisions: status.database.revision - name.revision.0,
            later: SystemTime::now().duration_since(manifest.taken()).unwrap_or_default(),
        });
    }
    Ok(newer)
}

fn restore_cell(client: &ClientArgs, args: &RestoreArgs) -> anyhow::Result<ExitCode> {
    let remote = Remote::open(&args.url)?;
    let name = find(&remote, &args.name)?;
    let manifest = remote.whole(name)?;
    let newer = newer_states(client, &remote, name, &manifest)?;
    if let Some(most) = newer.iter().max_by_key(|newer| newer.slots) {
        let allowed = args.yes_lose_slots.filter(|_| args.lose_newer).unwrap_or(0);
        for newer in &newer {
            eprintln!(
                "synod: {} has {} slots and {} revisions more than {name}, and is {} later",
                newer.of,
                newer.slots,
                newer.revisions,
                duration_text(newer.later)
            );
        }
        if allowed < most.slots {
            bail!(
                "this would go back in time: what the new cell lacks is lost to it. Restore the newer state. If losing it is meant, \
                 say --lose-newer --yes-lose-slots {}",
                most.slots
            );
        }
    }
    let members = args.members.iter().map(|text| config::parse_member(text)).collect::<Result<Vec<_>, _>>()?;
    let wish = Wish {
        dir: std::path::absolute(&args.dir)?,
        members: members.clone(),
        only: args.id,
        cell: args.cell_id,
        segment_mb: args.segment_mb,
        lease_ms: args.lease_ms,
        insecure: args.insecure,
        volatile: args.volatile,
    };
    let restored = restore(&remote, (name, &manifest), &wish, |_| {})?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "cell {:032x}", restored.cell)?;
    eprintln!(
        "synod: {name} is restored, taken {}: {} rows, revision {}. Its cell was {:032x}; the new one is {:032x}",
        time_text(manifest.taken_ms),
        manifest.rows,
        name.revision,
        name.cell,
        restored.cell
    );
    if args.id.is_some() && args.cell_id.is_none() && members.len() > 1 {
        eprintln!("synod: restore the other members with --cell-id {:032x}, before any is started", restored.cell);
    }
    for (id, directory) in restored.directories {
        let mut line = format!("synod serve --id {id} --dir {}", directory.display());
        for member in &members {
            let [peer, client]: [SocketAddr; 2] = [member.peer, member.client];
            line = format!("{line} --member {}={peer},{client}", member.id);
        }
        for (flag, is_said) in [
            (format!(" --segment-mb {}", args.segment_mb), args.segment_mb != defaults::segment_mb()),
            (" --insecure".to_owned(), args.insecure),
            (" --volatile".to_owned(), args.volatile),
        ] {
            line += if is_said { &flag } else { "" };
        }
        writeln!(out, "{line}")?;
    }
    Ok(ExitCode::SUCCESS)
}
