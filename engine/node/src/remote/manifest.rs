//! What a copy says of itself. Written last, so that a manifest stands for a whole copy.
//!
//! Every field, and what it catches, is in `docs/remote.md`.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use synod_paxos::{Ballot, Configuration, Configurations, Slot};
use synod_store::Revision;

/// The version of the format that this build writes, and the newest that it reads.
pub const FORMAT: u32 = 1;
pub(super) const FILE: &str = "manifest.json";

pub(super) fn chunk_file(index: usize) -> String {
    format!("{index:06}.chunk")
}

pub(super) fn cell_text(cell: u128) -> String {
    format!("{cell:032x}")
}

/// A cell's id as it is written everywhere: 32 lower-case hex digits.
pub fn parse_cell(text: &str) -> Option<u128> {
    u128::from_str_radix(text, 16).ok().filter(|cell| cell_text(*cell) == text)
}

/// Which state of which cell a copy is of, `CELL/SLOT-REVISION`. Its order is a cell's own, the oldest state first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Name {
    /// The cell's id.
    pub cell: u128,
    /// All up to here is in it.
    pub slot: Slot,
    /// The database's version then.
    pub revision: Revision,
}

impl Name {
    /// Reads `CELL/SLOT-REVISION`, and nothing else that looks like it.
    pub fn parse(text: &str) -> Option<Self> {
        let (cell, folder) = text.split_once('/')?;
        let (slot, revision) = folder.split_once('-')?;
        let name = Self {
            cell: parse_cell(cell)?,
            slot: Slot(slot.parse().ok()?),
            revision: Revision(revision.parse().ok()?),
        };
        (name.to_string() == text).then_some(name)
    }

    /// The part that names the state.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.slot, self.revision)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", cell_text(self.cell), self.folder())
    }
}

/// Who made a copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MadeBy {
    /// Somebody who asked for it: nobody else removes it.
    Operator,
    /// A replica's schedule, which removes it again.
    Schedule,
}

/// A ballot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BallotFields {
    round: u64,
    replica: u16,
    incarnation: u64,
}

impl From<Ballot> for BallotFields {
    fn from(ballot: Ballot) -> Self {
        Self { round: ballot.round, replica: ballot.replica.0, incarnation: ballot.incarnation.0 }
    }
}

/// A member of the cell that was copied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberFields {
    /// Its id.
    pub replica: u16,
    /// Or it learned.
    pub voter: bool,
    /// Where it was, if the log says it.
    pub address: String,
}

/// A configuration of the cell that was copied.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConfigurationFields {
    /// The first slot that it governs.
    pub since: u64,
    /// Rule P5.
    pub horizon: u64,
    /// Rule P8.
    pub lease_ms: u64,
    /// Its members.
    pub members: Vec<MemberFields>,
}

impl ConfigurationFields {
    fn of(since: Slot, configuration: &Configuration) -> Self {
        let member = |member: &synod_paxos::Member| MemberFields {
            replica: member.id.0,
            voter: member.voter,
            address: member.address.clone(),
        };
        Self {
            since: since.0,
            horizon: configuration.horizon(),
            lease_ms: u64::try_from(configuration.lease().as_millis()).expect("a lease is at most a minute"),
            members: configuration.members().iter().map(member).collect(),
        }
    }

    /// The current one, and the one that is to follow it.
    pub fn all(configurations: &Configurations) -> Vec<Self> {
        let pending = configurations.pending.iter().map(|(since, pending)| Self::of(*since, pending));
        std::iter::once(Self::of(configurations.since, &configurations.current)).chain(pending).collect()
    }
}

/// A chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChunkFields {
    /// Its length.
    pub bytes: u64,
    /// Of all of it.
    pub crc32c: u32,
}

impl ChunkFields {
    /// What a manifest says of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self { bytes: bytes.len() as u64, crc32c: crc32c::crc32c(bytes) }
    }
}

/// What a copy says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    format: u32,
    /// The build that wrote it.
    pub version: String,
    cell: String,
    /// Who wrote it.
    pub replica: u16,
    /// In which of its lives.
    pub incarnation: u64,
    slot: u64,
    ballot: BallotFields,
    /// The current configuration then, and a pending one.
    pub configurations: Vec<ConfigurationFields>,
    revision: u64,
    /// Rows, the sessions' own included.
    pub rows: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
    /// When the database was frozen, in milliseconds since 1970, by that machine's clock.
    pub taken_ms: u64,
    /// Who wanted it.
    pub made_by: MadeBy,
    /// In order.
    pub chunks: Vec<ChunkFields>,
    /// crc32c of all the above, as `serde_json` writes it in one line.
    checksum: u32,
}

/// What a manifest says of where its state comes from.
pub struct Origin<'a> {
    /// Who writes it.
    pub replica: u16,
    /// In which of its lives.
    pub incarnation: u64,
    /// The ballot of the last slot.
    pub ballot: Ballot,
    /// Who the members are.
    pub configurations: &'a Configurations,
    /// When it was frozen.
    pub taken_ms: u64,
    /// Who wants it.
    pub made_by: MadeBy,
}

/// Why bytes are no manifest of the copy that they stand for.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Cut short, or changed.
    #[error("the manifest of {name} is damaged: {reason}")]
    Damaged {
        /// Of which copy.
        name: Name,
        /// What is wrong.
        reason: String,
    },
    /// A newer build's.
    #[error(
        "the manifest of {name} has format {theirs}, this build knows {FORMAT}: use the build that wrote it, or a newer one"
    )]
    Newer {
        /// Of which copy.
        name: Name,
        /// Its format.
        theirs: u32,
    },
    /// A sound one, in the wrong place.
    #[error("{name} holds the manifest of {theirs}: it was moved or renamed")]
    Misplaced {
        /// Where it was found.
        name: Name,
        /// Whose it is.
        theirs: String,
    },
}

impl Manifest {
    /// The manifest of a copy with these chunks.
    pub fn new(name: Name, origin: &Origin<'_>, (rows, bytes): (u64, u64), chunks: Vec<ChunkFields>) -> Self {
        let mut manifest = Self {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            cell: cell_text(name.cell),
            replica: origin.replica,
            incarnation: origin.incarnation,
            slot: name.slot.0,
            ballot: origin.ballot.into(),
            configurations: ConfigurationFields::all(origin.configurations),
            revision: name.revision.0,
            rows,
            bytes,
            taken_ms: origin.taken_ms,
            made_by: origin.made_by,
            chunks,
            checksum: 0,
        };
        manifest.checksum = manifest.sum();
        manifest
    }

    fn sum(&self) -> u32 {
        let text = serde_json::to_string(&Self { checksum: 0, ..self.clone() }).expect("a manifest is valid JSON");
        crc32c::crc32c(text.as_bytes())
    }

    /// In the bytes that a copy keeps it in.
    pub fn encode(&self) -> Vec<u8> {
        let mut text = serde_json::to_vec_pretty(self).expect("a manifest is valid JSON");
        text.push(b'\n');
        text
    }

    /// As a copy of this name kept it.
    pub fn decode(bytes: &[u8], name: Name) -> Result<Self, ManifestError> {
        /// Read first: a newer format may have keys that this build does not know.
        #[derive(Deserialize)]
        struct JustFormat {
            format: u32,
        }
        let damaged = |reason: String| ManifestError::Damaged { name, reason };
        let JustFormat { format } = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if format != FORMAT {
            return Err(ManifestError::Newer { name, theirs: format });
        }
        let manifest: Self = serde_json::from_slice(bytes).map_err(|error| damaged(error.to_string()))?;
        if manifest.sum() != manifest.checksum {
            return Err(damaged("its checksum does not match".to_owned()));
        }
        let theirs = format!("{}/{}-{}", manifest.cell, manifest.slot, manifest.revision);
        if theirs != name.to_string() {
            return Err(ManifestError::Misplaced { name, theirs });
        }
        Ok(manifest)
    }

    /// The configuration that governs last: a new cell has its lease and its horizon, unless it is told otherwise.
    pub fn latest(&self) -> Option<&ConfigurationFields> {
        self.configurations.last()
    }

    /// What all chunks are long.
    pub fn chunk_bytes(&self) -> u64 {
        self.chunks.iter().map(|chunk| chunk.bytes).sum()
    }

    /// When its database was frozen.
    pub fn taken(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(self.taken_ms)
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// A time as people write it: 2026-11-21 16:30:34 UTC.
pub fn time_text(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1000 % 86_400);
    // Years that begin in March have their leap day last; 400 of them are always as long. 719468 days lie before 1970.
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use synod_paxos::{Incarnation, ReplicaId};

    pub(in crate::remote) fn example(name: Name, taken_ms: u64, made_by: MadeBy, chunks: &[&[u8]]) -> Manifest {
        let mut configurations = Configurations::first(Configuration::of(&[1, 2, 3]));
        configurations.pending = Some((Slot(20), Configuration::of(&[1, 2])));
        let ballot = Ballot { round: 7, replica: ReplicaId(2), incarnation: Incarnation(1) };
        let origin = Origin { replica: 3, incarnation: 1, ballot, configurations: &configurations, taken_ms, made_by };
        Manifest::new(name, &origin, (5, 40), chunks.iter().map(|chunk| ChunkFields::of(chunk)).collect())
    }

    const NAME: Name = Name { cell: 0xabc, slot: Slot(12), revision: Revision(9) };

    #[test]
    fn names_are_read_as_they_are_written_and_not_otherwise() {
        let text = "00000000000000000000000000000abc/12-9";
        assert_eq!((NAME.to_string().as_str(), Name::parse(text)), (text, Some(NAME)));
        for not in ["abc/12-9", "00000000000000000000000000000ABC/12-9", &text.replace("12-9", "012-9"), "x", "a/b-c"] {
            assert_eq!(Name::parse(not), None, "{not}");
        }
        assert!(NAME < Name { slot: Slot(100), ..NAME });
    }

    #[test]
    fn a_manifest_comes_back_and_no_part_of_it_does() {
        let manifest = example(NAME, 1_000, MadeBy::Operator, &[b"one", b"two"]);
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes, NAME).unwrap(), manifest);
        // The last byte is a newline, which says nothing.
        for length in 0..bytes.len() - 1 {
            assert!(matches!(Manifest::decode(&bytes[..length], NAME), Err(ManifestError::Damaged { .. })), "{length}");
        }
    }

    #[test]
    fn what_was_changed_is_refused_with_what_is_wrong() {
        let text = String::from_utf8(example(NAME, 1_000, MadeBy::Operator, &[b"one"]).encode()).unwrap();
        for (from, to, says) in [
            ("\"format\": 1", "\"format\": 2", "format 2, this build knows 1"),
            ("\"rows\": 5", "\"rows\": 6", "checksum"),
            ("\"taken_ms\": 1000", "\"taken_ms\": 2000", "checksum"),
            ("\"rows\": 5,", "\"rows\": 5, \"more\": 1,", "unknown field"),
            ("\"rows\": 5,", "", "missing field"),
        ] {
            assert!(text.contains(from), "{text}");
            let error = Manifest::decode(text.replace(from, to).as_bytes(), NAME).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        let elsewhere = Name { slot: Slot(13), ..NAME };
        let error = Manifest::decode(text.as_bytes(), elsewhere).unwrap_err().to_string();
        assert!(error.contains("moved or renamed"), "{error}");
    }

    #[test]
    fn times_are_written_as_people_do() {
        assert_eq!(time_text(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(time_text(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(time_text(1_795_278_634_999), "2026-11-21 16:30:34 UTC");
    }
}
