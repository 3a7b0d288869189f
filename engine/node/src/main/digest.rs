//! `synod digest`: replays the log of a replica that does not run, and says what its database's digest was after each slot.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::Args;
use synod_cell::Cell;
use synod_node::codec::decode_handle;
use synod_node::config::defaults;
use synod_node::databases::Place;
use synod_node::engine::Evidence;
use synod_node::start::Replay;
use synod_store::{Digest, Options, Store};
use synod_wal::frame::FrameHeader;
use synod_wal::{RecordRef, Visitor};

use crate::wal::Stopped;

/// A piece of the snapshot on its way into memory.
const CHUNK_BYTES: usize = 1 << 20;

#[derive(Args)]
pub(crate) struct DigestArgs {
    /// The directory that was given to `synod serve --dir`
    dir: PathBuf,
    /// A line of JSON for each slot
    #[arg(long)]
    json: bool,
    /// From this slot on
    #[arg(long, value_name = "SLOT", default_value_t = 0)]
    from: u64,
    /// Up to this slot
    #[arg(long, value_name = "SLOT", default_value_t = u64::MAX)]
    to: u64,
    /// Compare with another stopped replica's directory, and name the first slot that differs; or with a file
    /// quarantine-SLOT.toml. Exit status 1: they differ
    #[arg(long, value_name = "DIR_OR_FILE")]
    against: Option<PathBuf>,
}

pub(crate) fn main(args: &DigestArgs) -> anyhow::Result<ExitCode> {
    let digests = replay(&args.dir)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let outcome = match &args.against {
        Some(other) if other.is_dir() => against_replica(&digests, &replay(other)?, &mut out),
        Some(file) => against_evidence(&digests, file, &mut out),
        None => print(args, &digests, &mut out).map(|()| ExitCode::SUCCESS),
    };
    out.flush()?;
    outcome
}

fn print(args: &DigestArgs, digests: &BTreeMap<u64, Digest>, out: &mut impl Write) -> anyhow::Result<()> {
    for (slot, digest) in digests.iter().filter(|(slot, _)| (args.from..=args.to).contains(*slot)) {
        if args.json {
            writeln!(out, "{}", serde_json::json!({"slot": slot, "digest": digest.to_string()}))?;
        } else {
            writeln!(out, "slot {slot:<10} digest {digest}")?;
        }
    }
    Ok(())
}

fn against_replica(
    ours: &BTreeMap<u64, Digest>,
    theirs: &BTreeMap<u64, Digest>,
    out: &mut impl Write,
) -> anyhow::Result<ExitCode> {
    let both: Vec<_> = ours.iter().filter_map(|(slot, own)| Some((*slot, *own, *theirs.get(slot)?))).collect();
    let (Some((first, ..)), Some((last, ..))) = (both.first(), both.last()) else {
        bail!("there is no slot that both have: one's log begins behind the other's end");
    };
    match both.iter().find(|(_, own, other)| own != other) {
        None => {
            writeln!(out, "equal at all slots that both have, {first} to {last}")?;
            Ok(ExitCode::SUCCESS)
        }
        Some((slot, own, other)) => {
            let least = if slot == first { " at the latest: both logs begin there" } else { "" };
            writeln!(out, "they went apart at slot {slot}{least}: digest {own}, and the other has {other}")?;
            Ok(ExitCode::from(1))
        }
    }
}

fn against_evidence(digests: &BTreeMap<u64, Digest>, file: &Path, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let evidence: Evidence = toml::from_str(&text).with_context(|| format!("{} is no evidence", file.display()))?;
    let slot = evidence.slot;
    let Some(digest) = digests.get(&slot).map(Digest::to_string) else {
        bail!("what this directory has does not reach slot {slot}");
    };
    if let Some(first) = evidence.first_apart {
        let least = if evidence.first_is_certain { "" } else { " at the latest" };
        writeln!(out, "replica {} went apart at slot {first}{least}", evidence.replica)?;
    }
    if Some(&digest) == evidence.majority.as_ref() {
        writeln!(
            out,
            "replayed here, slot {slot} has digest {digest}, the majority's: the log is sound, the database was not"
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    let whose = if Some(&digest) == evidence.own.as_ref() { "the odd one's" } else { "nobody's" };
    writeln!(out, "replayed here, slot {slot} has digest {digest}, {whose}")?;
    Ok(ExitCode::from(1))
}

/// The digests of the oldest snapshot that opens, and after each slot behind it that the log has and knows to be chosen.
fn replay(dir: &Path) -> anyhow::Result<BTreeMap<u64, Digest>> {
    let mut stopped = Stopped::open(dir)?;
    let identity = stopped.directory.identity()?.context("it was there a moment ago")?;
    let place = Place::at(dir, &identity, defaults::database_gb_max() << 30);
    let (handle, cell) = match place.clone().older().open_existing().or_else(|_| place.open_existing()) {
        Ok((store, opened)) if opened.handle.is_empty() => (None, Cell::of(in_memory(store)?)),
        Ok((store, opened)) => {
            let handle = decode_handle(&opened.handle).context("the snapshot's handle")?;
            (Some(handle), Cell::of(in_memory(store)?))
        }
        Err(error) => return Err(error).context("the database does not open"),
    };
    let first = (handle.as_ref().map_or(0, |handle| handle.slot.0), cell.store().digest());
    let mut replay = Replay::new(handle, cell);
    replay.keep_digests();
    let recovered = stopped.read(&mut Feed(&mut replay));
    recovered.with_context(|| format!("the log in {} does not open; `synod wal verify` says more", dir.display()))?;
    let mut digests = BTreeMap::from([first]);
    digests.extend(replay.take_digests().into_iter().map(|(slot, digest)| (slot.0, digest)));
    Ok(digests)
}

/// A copy in memory: the file stays as it is, whatever is applied.
fn in_memory(mut store: Store) -> anyhow::Result<Store> {
    let view = store.freeze();
    let bytes_max = usize::try_from(defaults::database_gb_max() << 30).context("more than there are addresses")?;
    let options = Options { keep_history: false, database_bytes_max: bytes_max, ..Options::default() };
    let mut copy = Store::in_memory(options);
    let mut next = None;
    loop {
        let chunk = view.export(next.as_deref(), CHUNK_BYTES)?;
        copy.import(&chunk.bytes, chunk.next.is_none())?;
        next = chunk.next;
        if next.is_none() {
            return Ok(copy);
        }
    }
}

struct Feed<'a>(&'a mut Replay);

impl Visitor for Feed<'_> {
    fn frame(&mut self, _: &FrameHeader) {}

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        self.0.take_raw(&record);
    }
}
