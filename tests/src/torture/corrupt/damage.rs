//! What can happen to a block or a file, and how it is done.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use synod_wal::SegmentId;
use synod_wal::directory::segment_path;

use super::sample::{BLOCK_BYTES, LogBlock, Plan};

/// What becomes of a place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum Kind {
    /// One bit falls over.
    BitFlip,
    /// A part of it is as it was before it was written last.
    Torn,
    /// It is zeros.
    Zeroed,
    /// It is anything.
    Junk,
    /// Another block of the same file was written here.
    Misdirected,
    /// It is as it was before it was written last: the write was lost.
    Stale,
    /// The file ends here.
    Truncated,
    /// The file is gone.
    Missing,
    /// The file is that of the next replica.
    AnotherReplicas,
}

impl Kind {
    /// What happens to single blocks, and to a file from a block on.
    pub(super) const OF_BLOCKS: [Kind; 7] =
        [Kind::BitFlip, Kind::Torn, Kind::Zeroed, Kind::Junk, Kind::Misdirected, Kind::Stale, Kind::Truncated];
    /// What happens to whole files.
    pub(super) const OF_FILES: [Kind; 2] = [Kind::Missing, Kind::AnotherReplicas];

    /// In the report.
    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::BitFlip => "bit flip",
            Kind::Torn => "torn",
            Kind::Zeroed => "zeroed",
            Kind::Junk => "junk",
            Kind::Misdirected => "misdirected",
            Kind::Stale => "stale",
            Kind::Truncated => "truncated",
            Kind::Missing => "missing",
            Kind::AnotherReplicas => "another replica's",
        }
    }
}

/// Where it happens, said for any replica: logs differ a little, and "the same place" of a log is the same slot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum Target {
    /// A block of the log: its number in the log of the first replica.
    Log(usize),
    /// A segment, by its number.
    Segment(u64),
    /// One of the database's two meta blocks, or both.
    Meta([bool; 2]),
    /// A page of the database.
    Page(u64),
    /// The database's file.
    Database,
}

impl Target {
    /// In the report.
    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Target::Log(_) => "log block",
            Target::Segment(_) => "segment",
            Target::Meta(_) => "meta block",
            Target::Page(_) => "page",
            Target::Database => "database",
        }
    }
}

/// Who suffers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) enum Scope {
    /// One of five.
    One,
    /// Two of five.
    Minority,
    /// Four of five, at the same place: one good copy remains.
    Majority,
    /// All, at the same place: no good copy remains.
    All,
}

impl Scope {
    /// Those who suffer it.
    #[must_use]
    pub(super) fn victims(self) -> std::ops::RangeInclusive<u16> {
        1..=match self {
            Scope::One => 1,
            Scope::Minority => 2,
            Scope::Majority => 4,
            Scope::All => 5,
        }
    }

    /// In the report.
    #[must_use]
    pub(super) fn name(self) -> &'static str {
        match self {
            Scope::One => "one of five",
            Scope::Minority => "two of five",
            Scope::Majority => "four of five, same place",
            Scope::All => "all five, same place",
        }
    }
}

/// One case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub(super) struct Case {
    /// Where.
    pub(super) target: Target,
    /// What.
    pub(super) kind: Kind,
    /// To whom.
    pub(super) scope: Scope,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} at {:?} of {}", self.kind.name(), self.target, self.scope.name())
    }
}

/// Of damage to all, which leaves nothing to heal from, every so many places are enough.
const OF_ALL_EVERY: usize = 16;

/// All there are.
pub(super) fn cases(plan: &Plan) -> Vec<Case> {
    let blocks = &plan.blocks[&1];
    let mut targets: Vec<Target> = (0..blocks.len()).map(Target::Log).collect();
    targets.extend((2..plan.pages[&1]).map(Target::Page));
    targets.extend([[true, false], [false, true], [true, true]].map(Target::Meta));
    let mut segments: Vec<u64> = blocks.iter().map(|block| block.segment).collect();
    segments.dedup();
    let files: Vec<Target> = segments.into_iter().map(Target::Segment).chain([Target::Database]).collect();
    let mut cases = Vec::new();
    for scope in [Scope::One, Scope::Minority, Scope::Majority] {
        for target in &targets {
            cases.extend(Kind::OF_BLOCKS.map(|kind| Case { target: *target, kind, scope }));
        }
        for target in &files {
            cases.extend(Kind::OF_FILES.map(|kind| Case { target: *target, kind, scope }));
        }
    }
    let of_all = targets.iter().step_by(OF_ALL_EVERY).chain([&Target::Meta([true, true])]);
    cases.extend(of_all.map(|target| Case { target: *target, kind: Kind::Junk, scope: Scope::All }));
    cases
}

/// What of one replica's directory is to be changed.
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) offsets: Vec<u64>,
}

impl Case {
    /// Where it is in a replica's directory. A log that has not what the first one has there is damaged at its own like place.
    pub(super) fn place(&self, plan: &Plan, dir: &Path, id: u16) -> Place {
        let database = dir.join("database");
        match self.target {
            Target::Log(number) => {
                let LogBlock { segment, offset, .. } = same(plan, number, id);
                Place { path: segment_path(dir, SegmentId(segment)), offsets: vec![offset] }
            }
            Target::Segment(segment) => Place { path: segment_path(dir, SegmentId(segment)), offsets: vec![0] },
            Target::Page(page) => Place { path: database, offsets: vec![page * BLOCK_BYTES] },
            Target::Database => Place { path: database, offsets: vec![0] },
            Target::Meta(which) => {
                let both = (0..2).filter(|at| which[*at as usize]).map(|at| at * BLOCK_BYTES);
                Place { path: database, offsets: both.collect() }
            }
        }
    }
}

/// The block of this replica's log that has the slot which that block of the first one's has.
fn same(plan: &Plan, number: usize, id: u16) -> LogBlock {
    let first = &plan.blocks[&1];
    let block = first[number];
    let own = &plan.blocks[&id];
    let Some(slot) = block.slot else { return own[number.min(own.len() - 1)] };
    // A frame of several blocks: the same one of them.
    let begin = first.iter().position(|other| other.slot == Some(slot)).expect("it is itself there");
    let found = own.iter().position(|other| other.slot == Some(slot));
    let found = found.map_or(number, |found| found + (number - begin));
    own[found.min(own.len() - 1)]
}

/// Does it to one replica's directory. `before` holds what was there earlier, `next` is another replica's directory.
pub(super) fn damage(
    place: &Place,
    kind: Kind,
    (before, next): (&Path, &Path),
    random: &mut fastrand::Rng,
) -> anyhow::Result<()> {
    let Place { path, offsets } = place;
    let name = path.file_name().context("a file has a name")?;
    let all = offsets.iter().try_for_each(|offset| {
        let now = block(path, *offset)?;
        let earlier = || block(&before.join(name), *offset);
        let changed = match kind {
            Kind::BitFlip => {
                let used = now.iter().rposition(|byte| *byte != 0).map_or(now.len(), |last| last + 1);
                let mut flipped = now;
                flipped[random.usize(..used)] ^= 1 << random.u8(..8);
                flipped
            }
            Kind::Torn => {
                let (now, earlier, middle) = (now, earlier()?, BLOCK_BYTES as usize / 2);
                let (head, tail) = if random.bool() { (&now, &earlier) } else { (&earlier, &now) };
                [&head[..middle], &tail[middle..]].concat()
            }
            Kind::Zeroed => vec![0; BLOCK_BYTES as usize],
            Kind::Junk => std::iter::repeat_with(|| random.u8(..)).take(BLOCK_BYTES as usize).collect(),
            Kind::Misdirected => {
                // From nearby: most likely something that is in use.
                let from = (offset / BLOCK_BYTES).saturating_sub(random.u64(1..8)) * BLOCK_BYTES;
                block(path, if from == *offset { offset + BLOCK_BYTES } else { from })?
            }
            Kind::Stale => earlier()?,
            Kind::Truncated => return File::options().write(true).open(path)?.set_len(*offset),
            Kind::Missing => return fs::remove_file(path),
            Kind::AnotherReplicas => return fs::copy(next.join(name), path).map(drop),
        };
        File::options().write(true).open(path)?.write_all_at(&changed, *offset)
    });
    all.with_context(|| format!("damaging {}", path.display()))
}

/// A block of a file; zeros where it is too short, or was never written.
fn block(path: &Path, offset: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; BLOCK_BYTES as usize];
    match File::open(path) {
        Ok(file) => {
            let length = file.metadata()?.len().saturating_sub(offset).min(BLOCK_BYTES);
            file.read_exact_at(&mut bytes[..length as usize], offset)?;
            Ok(bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(bytes),
        Err(error) => Err(error),
    }
}
