//! `synod wal`: looks at the log of a replica that does not run, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde::Serialize;
use synod_node::codec::unpack_ballot;
use synod_node::directory::{Directory, DirectoryError};
use synod_node::start::what_to_do;
use synod_wal::directory::DirectoryStorage;
use synod_wal::frame::{FLAG_MARK, FLAG_OPENING, FrameHeader};
use synod_wal::{
    Ballot, CellId, FrameNumber, Identity, Incarnation, Lost, LostSlots, OpenError, RecordKind, RecordRef, Recovered,
    ReplicaId, SegmentId, Settings, Slot, StartId, Storage, Tail, Visitor, inspect,
};

#[derive(Subcommand)]
pub(crate) enum WalCommand {
    /// Say whether the log would open, and how it ends; if not, what is lost where and what to do
    ///
    /// Exit status 0: sound. A torn tail is sound: it is how a crash normally ends, was never acknowledged, and is cut off
    /// by the next start. 1: damaged, and the line says where; the next start goes on around it, unless the end is lost. 2: the directory cannot be looked at.
    Verify {
        #[command(flatten)]
        at: At,
        /// One line of JSON instead
        #[arg(long)]
        json: bool,
    },
    /// Print one line for each record, in the order in which they were appended
    ///
    /// The columns: slot (0 for a hard state), ballot, kind, bytes of the value, frame, segment, offset in the segment. Each
    /// segment repeats the hard state first. A slot appears once for each acceptance, and once more if it was learned.
    Dump {
        #[command(flatten)]
        at: At,
        /// Only records of these slots, both ends included: 7, 7..9 or 7..
        #[arg(long, value_name = "A..B", value_parser = slots)]
        slot: Option<(u64, u64)>,
        /// A line of JSON for each record
        #[arg(long)]
        json: bool,
    },
    /// Count what is in the log: segments, frames, records, slots, ballots, starts
    Stat {
        #[command(flatten)]
        at: At,
        /// One line of JSON instead
        #[arg(long)]
        json: bool,
    },
}

#[derive(Args)]
pub(crate) struct At {
    /// The directory that was given to `synod serve --dir`
    dir: PathBuf,
}

fn slots(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.parse::<u64>().map_err(|_| format!("{text:?} is no slot"));
    let (first, last) = match text.split_once("..") {
        Some((first, "")) => (number(first)?, u64::MAX),
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last { Err(format!("{text} is empty: the first slot is above the last")) } else { Ok((first, last)) }
}

pub(crate) fn main(command: &WalCommand) -> anyhow::Result<ExitCode> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let outcome = match command {
        WalCommand::Verify { at, json } => verify(&at.dir, *json, &mut out),
        WalCommand::Dump { at, slot, json } => dump(&at.dir, *slot, *json, &mut out),
        WalCommand::Stat { at, json } => stat(&at.dir, *json, &mut out),
    };
    out.flush()?;
    outcome
}

/// A log on disk that nobody writes.
pub(crate) struct Stopped {
    /// Held for the lock.
    pub(crate) directory: Directory,
    storage: DirectoryStorage,
    identity: Identity,
    settings: Settings,
    segments: Vec<SegmentId>,
}

impl Stopped {
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        let directory = match Directory::open_to_look(dir) {
            Err(DirectoryError::InUse(_)) => bail!("a replica runs on {}: stop it first", dir.display()),
            opened => opened?,
        };
        let Some(identity) = directory.identity()? else {
            bail!("{} is empty: no replica was ever started there", dir.display());
        };
        let identity = Identity {
            cell: CellId(identity.cell),
            replica: ReplicaId(identity.replica),
            incarnation: Incarnation(identity.incarnation),
            start: StartId(0),
        };
        let mut storage = DirectoryStorage::open_read_only(dir).context("cannot open the log's directory")?;
        let mut segments = storage.segments().with_context(|| format!("cannot list {}", dir.display()))?;
        segments.sort_unstable();
        // The log does not say its sizes. Most files have the right one; another is named when the log is read.
        let mut sizes = BTreeMap::<u64, usize>::new();
        for segment in &segments {
            let bytes = storage.segment_bytes(*segment).with_context(|| format!("cannot look at segment {segment}"))?;
            *sizes.entry(bytes).or_default() += 1;
        }
        let Some((&segment_bytes, _)) = sizes.iter().max_by_key(|(bytes, count)| (**count, **bytes)) else {
            bail!("{} has an identity and no log at all: its state is lost", dir.display());
        };
        let settings = Settings {
            segment_bytes,
            log_bytes_max: segment_bytes << 20,
            frame_bytes_max: synod_wal::OPENING_BYTES_MAX,
        };
        let settings = settings.validate().with_context(|| format!("segments of {segment_bytes} bytes make no log"))?;
        Ok(Self { directory, storage, identity, settings, segments })
    }

    pub(crate) fn read(&mut self, visitor: &mut dyn Visitor) -> Result<Recovered, OpenError> {
        inspect(&mut self.storage, self.settings, &self.identity, visitor)
    }
}

/// What was counted.
#[derive(Default)]
struct Counts {
    frame: Option<FrameHeader>,
    first_frame: FrameNumber,
    frames: u64,
    marks: u64,
    openings: u64,
    frame_bytes: u64,
    records_in_frame_max: u32,
    starts: BTreeSet<StartId>,
    hard_states: u64,
    accepted: u64,
    chosen: u64,
    value_bytes: u64,
    slots: Option<(Slot, Slot)>,
    ballots: Option<(Ballot, Ballot)>,
    promised: Ballot,
    lost: Vec<Lost>,
    holes: u64,
}

/// So many lost parts of a log are told one by one.
const LOST_TOLD_MAX: usize = 100;

impl Visitor for Counts {
    fn lost(&mut self, lost: &Lost) -> LostSlots {
        self.holes += 1;
        if self.lost.len() < LOST_TOLD_MAX {
            self.lost.push(*lost);
        }
        lost.known_slots().unwrap_or(LostSlots::ANY)
    }

    fn frame(&mut self, header: &FrameHeader) {
        if self.frame.is_none() {
            self.first_frame = header.number;
        }
        self.frames += 1;
        self.marks += u64::from(header.flags & FLAG_MARK != 0);
        self.openings += u64::from(header.flags & FLAG_OPENING != 0);
        self.frame_bytes += header.frame_bytes() as u64;
        self.records_in_frame_max = self.records_in_frame_max.max(header.records);
        self.starts.insert(header.start);
        self.frame = Some(*header);
    }

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        match record.kind {
            RecordKind::HardState => {
                self.hard_states += 1;
                self.promised = record.ballot;
                return;
            }
            RecordKind::Accepted => self.accepted += 1,
            RecordKind::Chosen => self.chosen += 1,
        }
        self.value_bytes += record.payload.len() as u64;
        let slot = record.slot;
        self.slots = Some(self.slots.map_or((slot, slot), |(first, last)| (first.min(slot), last.max(slot))));
        let ballot = record.ballot;
        self.ballots = Some(self.ballots.map_or((ballot, ballot), |(low, high)| (low.min(ballot), high.max(ballot))));
    }
}

#[derive(Serialize)]
struct Verdict {
    sound: bool,
    segments: usize,
    frames: u64,
    records: u64,
    first_slot: Option<u64>,
    last_slot: Option<u64>,
    cut: u64,
    /// `clean`, `marked`, `torn`; or what is wrong.
    end: &'static str,
    segment: Option<u64>,
    offset: Option<u64>,
    frame: Option<u64>,
    lost_first_slot: Option<u64>,
    lost_last_slot: Option<u64>,
    message: String,
}

fn verify(dir: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut stopped = Stopped::open(dir)?;
    let mut counts = Counts::default();
    let outcome = stopped.read(&mut counts);
    let (first_slot, last_slot) = counts.slots.map_or((None, None), |(first, last)| (Some(first.0), Some(last.0)));
    let mut verdict = Verdict {
        sound: true,
        segments: stopped.segments.len(),
        frames: counts.frames,
        records: counts.hard_states + counts.accepted + counts.chosen,
        first_slot,
        last_slot,
        cut: counts.frame.map_or(0, |frame| frame.cut.0),
        end: "clean",
        segment: None,
        offset: None,
        frame: None,
        lost_first_slot: None,
        lost_last_slot: None,
        message: String::new(),
    };
    match outcome {
        // Not a sound state: whoever has an identity has promised something.
        Ok(recovered) if recovered.frames == 0 => {
            (verdict.sound, verdict.end) = (false, "empty");
            verdict.message = format!(
                "the log in {} is empty, yet its replica has started before: its state is lost, and it will refuse to start",
                dir.display()
            );
        }
        Ok(recovered) => {
            let slots = match (first_slot, last_slot) {
                (Some(first), Some(last)) => format!("slots {first} to {last}"),
                _ => "no slots".to_owned(),
            };
            let cut = if verdict.cut == 0 { String::new() } else { format!(", cut below slot {}", verdict.cut) };
            let end = match recovered.tail {
                Tail::Torn { segment, offset } => {
                    (verdict.end, verdict.segment, verdict.offset) = ("torn", Some(segment.0), Some(offset));
                    format!(
                        "the last flush was torn (segment {segment}, offset {offset}): it was never acknowledged, and the \
                         next start cuts it off"
                    )
                }
                Tail::Clean if recovered.ended_with_mark => {
                    verdict.end = "marked";
                    "ends cleanly, with a mark".to_owned()
                }
                Tail::Clean => "ends cleanly, without a mark: stopped while it was busy".to_owned(),
            };
            let (read, what) = match &counts.lost[..] {
                [] => ("sound".to_owned(), String::new()),
                [first, ..] => {
                    verdict.sound = false;
                    (verdict.end, verdict.segment, verdict.offset) =
                        ("damaged", Some(first.segment.0), Some(first.offset));
                    verdict.frame = Some(first.first.0);
                    if let Some(slots) = first.known_slots().filter(|slots| *slots != LostSlots::NONE) {
                        (verdict.lost_first_slot, verdict.lost_last_slot) = (Some(slots.first.0), Some(slots.last.0));
                    }
                    let told: Vec<String> = counts.lost.iter().map(ToString::to_string).collect();
                    let more = if counts.holes > told.len() as u64 { "; and more" } else { "" };
                    let places = format!("damaged in {} places: {}{more}", counts.holes, told.join("; "));
                    (
                        places,
                        ". The next start goes on around that, and fetches what was chosen there from the others"
                            .to_owned(),
                    )
                }
            };
            verdict.message = format!(
                "{read}: {} segments, {} frames, {} records, {slots}{cut}; {end}{what}",
                verdict.segments, verdict.frames, verdict.records
            );
        }
        Err(error) => {
            verdict.sound = false;
            (verdict.end, verdict.segment) = place_of(&error);
            if let OpenError::EndLost { frame, offset, .. } = error {
                (verdict.frame, verdict.offset) = (Some(frame.0), Some(offset));
            }
            let read = match last_slot {
                Some(last) => format!(" Before that, {} frames up to slot {last} are sound.", counts.frames),
                None => String::new(),
            };
            verdict.message = format!("{}{}.{read}", synod_node::cli::chain(&error), what_to_do(&error));
        }
    }
    if json {
        writeln!(out, "{}", serde_json::to_string(&verdict)?)?;
    } else {
        writeln!(out, "{}", verdict.message)?;
    }
    Ok(if verdict.sound { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// A word for the error, and the segment that it is about.
fn place_of(error: &OpenError) -> (&'static str, Option<u64>) {
    match error {
        OpenError::EndLost { segment, .. } => ("end-lost", Some(segment.0)),
        OpenError::Misplaced { segment, .. } => ("misplaced", Some(segment.0)),
        OpenError::OtherCell { segment, .. } => ("other-cell", Some(segment.0)),
        OpenError::OtherReplica { segment, .. } => ("other-replica", Some(segment.0)),
        OpenError::OtherLog { segment } => ("other-log", Some(segment.0)),
        OpenError::OtherVersion { segment, .. } => ("other-version", Some(segment.0)),
        OpenError::WrongSize { segment, .. } => ("wrong-size", Some(segment.0)),
        OpenError::Malformed { segment, .. } => ("malformed", Some(segment.0)),
        OpenError::Read { segment, .. } => ("unreadable", Some(segment.0)),
        OpenError::List { .. } => ("unreadable", None),
    }
}

/// Prints the records as they are read.
struct Printer<'a, W> {
    out: &'a mut W,
    slots: Option<(u64, u64)>,
    json: bool,
    segment: SegmentId,
    frame: FrameNumber,
    holes: u64,
    failed: Option<std::io::Error>,
}

impl<W: Write> Visitor for Printer<'_, W> {
    fn lost(&mut self, lost: &Lost) -> LostSlots {
        self.holes += 1;
        let written = if self.json {
            let slots = lost.known_slots().filter(|slots| *slots != LostSlots::NONE);
            let line = serde_json::json!({
                "lost_first_frame": lost.first.0, "lost_last_frame": lost.last.0,
                "segment": lost.segment.0, "offset": lost.offset,
                "lost_first_slot": slots.map(|slots| slots.first.0), "lost_last_slot": slots.map(|slots| slots.last.0),
            });
            writeln!(self.out, "{line}")
        } else {
            writeln!(self.out, "{lost}")
        };
        self.failed = self.failed.take().or(written.err());
        LostSlots::ANY
    }

    fn frame(&mut self, header: &FrameHeader) {
        (self.segment, self.frame) = (header.segment, header.number);
    }

    fn record(&mut self, record: RecordRef<'_>, offset: u64) {
        let is_asked = self.slots.is_none_or(|(first, last)| first <= record.slot.0 && record.slot.0 <= last);
        if !is_asked || self.failed.is_some() {
            return;
        }
        let kind = match record.kind {
            RecordKind::HardState => "hard-state",
            RecordKind::Accepted => "accepted",
            RecordKind::Chosen => "chosen",
        };
        let (slot, ballot, bytes) = (record.slot.0, unpack_ballot(record.ballot).to_string(), record.payload.len());
        let written = if self.json {
            let line = serde_json::json!({
                "slot": slot, "ballot": ballot, "kind": kind, "bytes": bytes,
                "frame": self.frame.0, "segment": self.segment.0, "offset": offset,
            });
            writeln!(self.out, "{line}")
        } else {
            writeln!(
                self.out,
                "slot {slot:<8} ballot {ballot:<10} {kind:<10} {bytes:>8} bytes  frame {:<8} segment {:<5} offset {offset}",
                self.frame.0, self.segment.0
            )
        };
        self.failed = written.err();
    }
}

fn parts_lost(holes: u64) -> String {
    format!("{holes} parts of the log are lost; `synod wal verify` says more")
}

fn dump(dir: &Path, slots: Option<(u64, u64)>, json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut stopped = Stopped::open(dir)?;
    let mut printer =
        Printer { out, slots, json, segment: SegmentId(0), frame: FrameNumber(0), holes: 0, failed: None };
    let outcome = stopped.read(&mut printer);
    let holes = printer.holes;
    if let Some(error) = printer.failed {
        return Err(error.into());
    }
    Ok(match outcome {
        Ok(_) if holes > 0 => {
            out.flush()?;
            eprintln!("synod: {}", parts_lost(holes));
            ExitCode::from(1)
        }
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            out.flush()?;
            eprintln!("synod: {}; `synod wal verify` says more", synod_node::cli::chain(&error));
            ExitCode::from(1)
        }
    })
}

#[derive(Serialize)]
struct Stat {
    cell: String,
    replica: u16,
    incarnation: u64,
    segments: usize,
    segments_live: usize,
    segments_spare: usize,
    segments_free: usize,
    segment_bytes: u64,
    begin_segment: u64,
    cut: u64,
    first_frame: u64,
    last_frame: u64,
    last_frame_known_durable: u64,
    frames: u64,
    frames_opening: u64,
    frames_mark: u64,
    frame_bytes: u64,
    records: u64,
    records_hard_state: u64,
    records_accepted: u64,
    records_chosen: u64,
    records_a_frame: f64,
    records_a_frame_max: u32,
    value_bytes: u64,
    first_slot: Option<u64>,
    last_slot: Option<u64>,
    lowest_ballot: Option<String>,
    highest_ballot: Option<String>,
    promised: String,
    starts: Vec<String>,
    holes: u64,
}

fn stat(dir: &Path, json: bool, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let mut stopped = Stopped::open(dir)?;
    let mut counts = Counts::default();
    let recovered = match stopped.read(&mut counts) {
        Ok(recovered) => recovered,
        Err(error) => {
            eprintln!("synod: {}; `synod wal verify` says more", synod_node::cli::chain(&error));
            return Ok(ExitCode::from(1));
        }
    };
    let (live, spares, free) = recovered.log.segment_counts();
    let records = counts.hard_states + counts.accepted + counts.chosen;
    let filled = counts.frames - counts.marks - counts.openings;
    let ballot = |ballot: Ballot| unpack_ballot(ballot).to_string();
    let stat = Stat {
        cell: format!("{:032x}", stopped.identity.cell.0),
        replica: stopped.identity.replica.0,
        incarnation: recovered.log.identity().incarnation.0,
        segments: stopped.segments.len(),
        segments_live: live,
        segments_spare: spares,
        segments_free: free,
        segment_bytes: stopped.settings.segment_bytes,
        begin_segment: counts.frame.map_or(1, |frame| frame.begin.segment.0),
        cut: recovered.cut.0,
        first_frame: counts.first_frame.0,
        last_frame: counts.frame.map_or(0, |frame| frame.number.0),
        last_frame_known_durable: counts.frame.map_or(0, |frame| frame.durable.0),
        frames: counts.frames,
        frames_opening: counts.openings,
        frames_mark: counts.marks,
        frame_bytes: counts.frame_bytes,
        records,
        records_hard_state: counts.hard_states,
        records_accepted: counts.accepted,
        records_chosen: counts.chosen,
        records_a_frame: if filled == 0 { 0.0 } else { (records as f64 / filled as f64 * 100.0).round() / 100.0 },
        records_a_frame_max: counts.records_in_frame_max,
        value_bytes: counts.value_bytes,
        first_slot: counts.slots.map(|(first, _)| first.0),
        last_slot: counts.slots.map(|(_, last)| last.0),
        lowest_ballot: counts.ballots.map(|(low, _)| ballot(low)),
        highest_ballot: counts.ballots.map(|(_, high)| ballot(high)),
        promised: ballot(counts.promised),
        starts: counts.starts.iter().map(|start| format!("{:016x}", start.0)).collect(),
        holes: counts.holes,
    };
    let code = if stat.holes > 0 {
        eprintln!("synod: {}", parts_lost(stat.holes));
        ExitCode::from(1)
    } else {
        ExitCode::SUCCESS
    };
    if json {
        writeln!(out, "{}", serde_json::to_string(&stat)?)?;
        return Ok(code);
    }
    let or_none = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    writeln!(out, "cell      {}, replica {}, incarnation {}", stat.cell, stat.replica, stat.incarnation)?;
    writeln!(
        out,
        "segments  {} of {} MiB: {live} in use, {spares} ready, {free} free; the log begins at segment {}, cut below slot {}",
        stat.segments,
        stat.segment_bytes >> 20,
        stat.begin_segment,
        stat.cut
    )?;
    writeln!(
        out,
        "frames    {} ({} to {}, {} known durable by the last): {} open a segment, {} marks; {} bytes",
        stat.frames,
        stat.first_frame,
        stat.last_frame,
        stat.last_frame_known_durable,
        stat.frames_opening,
        stat.frames_mark,
        stat.frame_bytes
    )?;
    writeln!(
        out,
        "records   {records}: {} accepted, {} chosen, {} hard states; {:.2} a frame, at most {}; {} bytes of values",
        stat.records_accepted,
        stat.records_chosen,
        stat.records_hard_state,
        stat.records_a_frame,
        stat.records_a_frame_max,
        stat.value_bytes
    )?;
    let slot = |slot: Option<u64>| or_none(slot.map(|slot| slot.to_string()));
    writeln!(out, "slots     {} to {}", slot(stat.first_slot), slot(stat.last_slot))?;
    writeln!(
        out,
        "ballots   {} to {}, promised {}",
        or_none(stat.lowest_ballot),
        or_none(stat.highest_ballot),
        stat.promised
    )?;
    writeln!(out, "starts    {}: {}", stat.starts.len(), stat.starts.join(" "))?;
    Ok(code)
}
