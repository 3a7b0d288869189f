//! What a client is told, and the bytes it is told with.
//!
//! | first byte | what follows |
//! |---|---|
//! | session opened | session u64 |
//! | value | created u64, modified u64, version u64, value |
//! | written, deleted, swapped, created, exists | revision u64 |
//! | unequal | u8 0 for absent; or 1, value |
//! | read | revision u64; u8 0 for absent; or 1, created u64, modified u64, version u64, value |
//! | refused | refusal u8; for some a text; for "behind" and "compacted" two revisions u64; for "not master" u8 0, or 1 and a text |
//! | the others | nothing |
//!
//! A value is a u32 length and the bytes, a text a u16 length and UTF-8. Bytes after the last field are an error.

use bytes::{BufMut, Bytes};
use thiserror::Error;

use crate::command::{put_long, put_short};
use crate::limits::TEXT_BYTES_MAX;
use crate::read::{DecodeError, Reader};
use crate::words::{Revision, SessionId, Version};

const SESSION_OPENED: u8 = 1;
const SESSION_CLOSED: u8 = 2;
const VALUE: u8 = 3;
const ABSENT: u8 = 4;
const WRITTEN: u8 = 5;
const DELETED: u8 = 6;
const NOT_THERE: u8 = 7;
const SWAPPED: u8 = 8;
const UNEQUAL: u8 = 9;
const CREATED: u8 = 10;
const EXISTS: u8 = 11;
const REFUSED: u8 = 12;
const UNEQUAL_NOT_KEPT: u8 = 13;
const READ: u8 = 14;

const NOT_MASTER: u8 = 1;
const BUSY: u8 = 2;
const LOG_FULL: u8 = 3;
const LOG_FAILED: u8 = 4;
const SESSION_UNKNOWN: u8 = 5;
const UNANSWERED_LIMIT: u8 = 6;
const ALREADY_ANSWERED: u8 = 7;
const LIMIT: u8 = 8;
const MALFORMED: u8 = 9;
const UNKNOWN: u8 = 10;
const MASTER_CHANGED: u8 = 11;
const DATABASE_FULL: u8 = 12;
const DISK_FULL: u8 = 13;
const DIVERGED: u8 = 14;
const BEHIND: u8 = 15;
const COMPACTED: u8 = 16;
const UNCONFIRMED: u8 = 17;
const UNTRUSTED: u8 = 18;

const NOTHING: u8 = 0;
const SOMETHING: u8 = 1;

/// What a key or a file holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found<V> {
    /// Its bytes.
    pub value: V,
    /// The revision that created it.
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub modify_revision: Revision,
    /// How often it has been written since.
    pub version: Version,
}

impl<V> Found<V> {
    fn map<W>(self, convert: impl FnOnce(V) -> W) -> Found<W> {
        let Found { value, create_revision, modify_revision, version } = self;
        Found { value: convert(value), create_revision, modify_revision, version }
    }
}

/// What became of a command. `V` holds a value's bytes: [`Bytes`] at the client, which shares the received frame;
/// `&[u8]` at the cell, which answers from the database without a copy in between.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Answer<V = Bytes> {
    /// A session was allotted.
    SessionOpened(SessionId),
    /// The session is over.
    SessionClosed,
    /// What a key or a file holds.
    Value {
        /// Its bytes.
        value: V,
        /// The revision that created it. For a file this is its *instance number*: a later file of the same name has a
        /// higher one.
        create_revision: Revision,
        /// The revision that last wrote it.
        modify_revision: Revision,
        /// How often it has been written since. For a file, its *content generation*.
        version: Version,
    },
    /// A read found nothing.
    Absent,
    /// A put or a file's write was done.
    Written {
        /// By this revision.
        revision: Revision,
    },
    /// A delete was done.
    Deleted {
        /// By this revision.
        revision: Revision,
    },
    /// A delete or a file's write found nothing, and did nothing.
    NotThere,
    /// A compare-and-swap found what it expected, and was done.
    Swapped {
        /// By this revision.
        revision: Revision,
    },
    /// A compare-and-swap found something else, and did nothing.
    Unequal {
        /// What it found; `None` for no such key.
        current: Option<V>,
    },
    /// This answers a retry: when the compare-and-swap was first applied it found something else, and did nothing. What
    /// it found was too large to be kept for a retry.
    UnequalNotKept,
    /// A file was made.
    Created {
        /// By this revision: the file's instance number.
        revision: Revision,
    },
    /// A file was already there, and nothing was done.
    Exists {
        /// The revision that made it: the file's instance number.
        revision: Revision,
    },
    /// What a [`BoundedRead`](crate::BoundedRead) found.
    Read {
        /// The revision of the database that it saw: the one to ask for next time, to see nothing older.
        revision: Revision,
        /// What was there; `None` for nothing.
        found: Option<Found<V>>,
    },
    /// The command was not answered.
    Refused(Refusal),
}

/// Why a command was not answered.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Refusal {
    /// Only the master serves, and this replica is not it.
    #[error("this replica is not the master{}", master.as_ref().map(|m| format!(": try {m}")).unwrap_or_default())]
    NotMaster {
        /// The client address of the one it believes is; `None` if it knows of none.
        master: Option<String>,
    },
    /// A queue is full. Nothing was done; try again later.
    #[error("busy: a queue is full")]
    Busy,
    /// The log may not grow before a snapshot lets go of its oldest part (rule L7). Nothing was done.
    #[error("the log is full")]
    LogFull,
    /// The database may not grow any more (`--database-gb-max`). Nothing was done.
    #[error("the database is full")]
    DatabaseFull,
    /// The replicas' databases differ, and no majority of them is equal: nobody knows which is right, until an operator has seen to
    /// it (rule P14). Nothing was done.
    #[error(
        "the replicas' databases differ, and no majority of them is equal: an operator has to decide which is right"
    )]
    Diverged,
    /// The master's disk has no room: which file was to be how long. Nothing was done; with room again writes are taken again.
    #[error("the disk is full: {0}")]
    DiskFull(String),
    /// This replica's log has failed, and it takes no commands. Nothing was done.
    #[error("the log has failed")]
    LogFailed,
    /// The session was never opened, was closed, or was ended because too many were open. Nothing was done.
    #[error("the session is unknown")]
    SessionUnknown,
    /// The session has more commands unanswered than the cell keeps results for. Nothing was done; try again when the
    /// older ones are answered.
    #[error("busy: too many commands of the session are unanswered")]
    UnansweredLimit,
    /// The client has said that it no longer waits for this command, so its result is forgotten. Nothing was done now,
    /// and nothing ever will be; whether an earlier attempt was, the cell no longer knows.
    #[error("the command's result is no longer kept")]
    AlreadyAnswered,
    /// The command is over a limit: which one, the size given, the bound. Nothing was done.
    #[error("over a limit: {0}")]
    Limit(String),
    /// The bytes are no command. Nothing was done.
    #[error("not a command: {0}")]
    Malformed(String),
    /// Mastership changed between the command's arrival and its turn (rule P9). Nothing was done; try again.
    #[error("the master changed before the command's turn came")]
    MasterChanged,
    /// A read named a revision that this replica has not applied by the time that it waits at most.
    #[error("this replica has applied up to revision {has}, not up to revision {wanted} yet")]
    Behind {
        /// The one it has.
        has: Revision,
        /// The one that was named.
        wanted: Revision,
    },
    /// A read named a revision of the past, and what it asks for has changed since: that past is not kept.
    #[error("revision {wanted} is not kept any more for what was asked: this replica knows revision {has}")]
    Compacted {
        /// The one it has.
        has: Revision,
        /// The one that was named.
        wanted: Revision,
    },
    /// A linearizable read, and no master told in time up to where it must wait, or this replica has not applied as much.
    #[error("this replica, at revision {has}, did not learn from the master in time that it is up to date")]
    Unconfirmed {
        /// The revision it has.
        has: Revision,
    },
    /// This replica's database is in quarantine, or it rejoins, or it is no member: it answers no reads (rules P11, P14).
    #[error("this replica answers no reads: its database is not to be trusted, or it rejoins, or it is no member")]
    Untrusted,
    /// Mastership was lost while the command was under way: it may have been done, or be done yet.
    #[error("mastership was lost while the command was under way: its outcome is unknown")]
    Unknown,
}

impl Refusal {
    /// Whether the command certainly was not done *in the attempt* that this answers. Of an earlier attempt of the same
    /// command it says nothing (rule P10): a caller that has retried still does not know.
    #[must_use]
    pub fn certain(&self) -> bool {
        match self {
            Refusal::NotMaster { .. }
            | Refusal::Busy
            | Refusal::LogFull
            | Refusal::DatabaseFull
            | Refusal::Diverged
            | Refusal::DiskFull(_)
            | Refusal::LogFailed
            | Refusal::SessionUnknown
            | Refusal::UnansweredLimit
            | Refusal::AlreadyAnswered
            | Refusal::Limit(_)
            | Refusal::Malformed(_)
            | Refusal::MasterChanged
            | Refusal::Behind { .. }
            | Refusal::Compacted { .. }
            | Refusal::Unconfirmed { .. }
            | Refusal::Untrusted => true,
            Refusal::Unknown => false,
        }
    }

    /// Its name, for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Refusal::NotMaster { .. } => "not_master",
            Refusal::Busy => "busy",
            Refusal::LogFull => "log_full",
            Refusal::DatabaseFull => "database_full",
            Refusal::Diverged => "diverged",
            Refusal::DiskFull(_) => "disk_full",
            Refusal::LogFailed => "log_failed",
            Refusal::SessionUnknown => "session_unknown",
            Refusal::UnansweredLimit => "unanswered_limit",
            Refusal::AlreadyAnswered => "already_answered",
            Refusal::Limit(_) => "limit",
            Refusal::Malformed(_) => "malformed",
            Refusal::MasterChanged => "master_changed",
            Refusal::Behind { .. } => "behind",
            Refusal::Compacted { .. } => "compacted",
            Refusal::Unconfirmed { .. } => "unconfirmed",
            Refusal::Untrusted => "untrusted",
            Refusal::Unknown => "unknown",
        }
    }

    fn encode(&self, out: &mut impl BufMut) {
        match self {
            Refusal::NotMaster { master } => {
                out.put_u8(NOT_MASTER);
                match master {
                    None => out.put_u8(NOTHING),
                    Some(master) => {
                        out.put_u8(SOMETHING);
                        put_text(out, master);
                    }
                }
            }
            Refusal::Busy => out.put_u8(BUSY),
            Refusal::LogFull => out.put_u8(LOG_FULL),
            Refusal::DatabaseFull => out.put_u8(DATABASE_FULL),
            Refusal::Diverged => out.put_u8(DIVERGED),
            Refusal::DiskFull(text) => {
                out.put_u8(DISK_FULL);
                put_text(out, text);
            }
            Refusal::LogFailed => out.put_u8(LOG_FAILED),
            Refusal::SessionUnknown => out.put_u8(SESSION_UNKNOWN),
            Refusal::UnansweredLimit => out.put_u8(UNANSWERED_LIMIT),
            Refusal::AlreadyAnswered => out.put_u8(ALREADY_ANSWERED),
            Refusal::Limit(text) => {
                out.put_u8(LIMIT);
                put_text(out, text);
            }
            Refusal::Malformed(text) => {
                out.put_u8(MALFORMED);
                put_text(out, text);
            }
            Refusal::MasterChanged => out.put_u8(MASTER_CHANGED),
            Refusal::Behind { has, wanted } => {
                put_revision(out, BEHIND, *has);
                out.put_u64_le(wanted.0);
            }
            Refusal::Compacted { has, wanted } => {
                put_revision(out, COMPACTED, *has);
                out.put_u64_le(wanted.0);
            }
            Refusal::Unconfirmed { has } => put_revision(out, UNCONFIRMED, *has),
            Refusal::Untrusted => out.put_u8(UNTRUSTED),
            Refusal::Unknown => out.put_u8(UNKNOWN),
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Refusal, DecodeError> {
        Ok(match reader.u8()? {
            NOT_MASTER => {
                let master = match reader.u8()? {
                    NOTHING => None,
                    SOMETHING => Some(reader.text()?.to_owned()),
                    unknown => return Err(reader.unknown("option", unknown)),
                };
                Refusal::NotMaster { master }
            }
            BUSY => Refusal::Busy,
            LOG_FULL => Refusal::LogFull,
            DATABASE_FULL => Refusal::DatabaseFull,
            DIVERGED => Refusal::Diverged,
            DISK_FULL => Refusal::DiskFull(reader.text()?.to_owned()),
            LOG_FAILED => Refusal::LogFailed,
            SESSION_UNKNOWN => Refusal::SessionUnknown,
            UNANSWERED_LIMIT => Refusal::UnansweredLimit,
            ALREADY_ANSWERED => Refusal::AlreadyAnswered,
            LIMIT => Refusal::Limit(reader.text()?.to_owned()),
            MALFORMED => Refusal::Malformed(reader.text()?.to_owned()),
            MASTER_CHANGED => Refusal::MasterChanged,
            UNKNOWN => Refusal::Unknown,
            BEHIND => Refusal::Behind { has: Revision(reader.u64()?), wanted: Revision(reader.u64()?) },
            COMPACTED => Refusal::Compacted { has: Revision(reader.u64()?), wanted: Revision(reader.u64()?) },
            UNCONFIRMED => Refusal::Unconfirmed { has: Revision(reader.u64()?) },
            UNTRUSTED => Refusal::Untrusted,
            unknown => return Err(reader.unknown("refusal", unknown)),
        })
    }
}

impl<V: AsRef<[u8]>> Answer<V> {
    /// Appends the answer's bytes.
    pub fn encode(&self, out: &mut impl BufMut) {
        match self {
            Answer::SessionOpened(session) => {
                out.put_u8(SESSION_OPENED);
                out.put_u64_le(session.0);
            }
            Answer::SessionClosed => out.put_u8(SESSION_CLOSED),
            Answer::Value { value, create_revision, modify_revision, version } => {
                out.put_u8(VALUE);
                out.put_u64_le(create_revision.0);
                out.put_u64_le(modify_revision.0);
                out.put_u64_le(version.0);
                put_long(out, value.as_ref());
            }
            Answer::Absent => out.put_u8(ABSENT),
            Answer::Written { revision } => put_revision(out, WRITTEN, *revision),
            Answer::Deleted { revision } => put_revision(out, DELETED, *revision),
            Answer::NotThere => out.put_u8(NOT_THERE),
            Answer::Swapped { revision } => put_revision(out, SWAPPED, *revision),
            Answer::Unequal { current: None } => {
                out.put_u8(UNEQUAL);
                out.put_u8(NOTHING);
            }
            Answer::Unequal { current: Some(value) } => {
                out.put_u8(UNEQUAL);
                out.put_u8(SOMETHING);
                put_long(out, value.as_ref());
            }
            Answer::UnequalNotKept => out.put_u8(UNEQUAL_NOT_KEPT),
            Answer::Created { revision } => put_revision(out, CREATED, *revision),
            Answer::Exists { revision } => put_revision(out, EXISTS, *revision),
            Answer::Read { revision, found } => {
                put_revision(out, READ, *revision);
                match found {
                    None => out.put_u8(NOTHING),
                    Some(Found { value, create_revision, modify_revision, version }) => {
                        out.put_u8(SOMETHING);
                        out.put_u64_le(create_revision.0);
                        out.put_u64_le(modify_revision.0);
                        out.put_u64_le(version.0);
                        put_long(out, value.as_ref());
                    }
                }
            }
            Answer::Refused(refusal) => {
                out.put_u8(REFUSED);
                refusal.encode(out);
            }
        }
    }
}

impl Answer<Bytes> {
    /// The answer that these bytes are, all of them. A value shares them: nothing but a refusal's text is copied.
    pub fn decode(bytes: Bytes) -> Result<Answer<Bytes>, DecodeError> {
        Ok(Answer::<&[u8]>::decode_borrowed(&bytes)?.map(|value| bytes.slice_ref(value)))
    }
}

impl<'a> Answer<&'a [u8]> {
    /// The answer that these bytes are, all of them. A value borrows from them.
    pub fn decode_borrowed(bytes: &'a [u8]) -> Result<Answer<&'a [u8]>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let answer = match reader.u8()? {
            SESSION_OPENED => Answer::SessionOpened(SessionId(reader.u64()?)),
            SESSION_CLOSED => Answer::SessionClosed,
            VALUE => {
                let create_revision = Revision(reader.u64()?);
                let modify_revision = Revision(reader.u64()?);
                let version = Version(reader.u64()?);
                Answer::Value { value: reader.long()?, create_revision, modify_revision, version }
            }
            ABSENT => Answer::Absent,
            WRITTEN => Answer::Written { revision: Revision(reader.u64()?) },
            DELETED => Answer::Deleted { revision: Revision(reader.u64()?) },
            NOT_THERE => Answer::NotThere,
            SWAPPED => Answer::Swapped { revision: Revision(reader.u64()?) },
            UNEQUAL => {
                let current = match reader.u8()? {
                    NOTHING => None,
                    SOMETHING => Some(reader.long()?),
                    unknown => return Err(reader.unknown("option", unknown)),
                };
                Answer::Unequal { current }
            }
            UNEQUAL_NOT_KEPT => Answer::UnequalNotKept,
            CREATED => Answer::Created { revision: Revision(reader.u64()?) },
            EXISTS => Answer::Exists { revision: Revision(reader.u64()?) },
            READ => {
                let revision = Revision(reader.u64()?);
                let found = match reader.u8()? {
                    NOTHING => None,
                    SOMETHING => {
                        let create_revision = Revision(reader.u64()?);
                        let modify_revision = Revision(reader.u64()?);
                        let version = Version(reader.u64()?);
                        Some(Found { value: reader.long()?, create_revision, modify_revision, version })
                    }
                    unknown => return Err(reader.unknown("option", unknown)),
                };
                Answer::Read { revision, found }
            }
            REFUSED => Answer::Refused(Refusal::read(&mut reader)?),
            unknown => return Err(reader.unknown("answer", unknown)),
        };
        reader.end()?;
        Ok(answer)
    }
}

impl<V> Answer<V> {
    /// The same answer with its value held in another way.
    #[must_use]
    pub fn map<W>(self, convert: impl FnOnce(V) -> W) -> Answer<W> {
        match self {
            Answer::SessionOpened(session) => Answer::SessionOpened(session),
            Answer::SessionClosed => Answer::SessionClosed,
            Answer::Value { value, create_revision, modify_revision, version } => {
                Answer::Value { value: convert(value), create_revision, modify_revision, version }
            }
            Answer::Absent => Answer::Absent,
            Answer::Written { revision } => Answer::Written { revision },
            Answer::Deleted { revision } => Answer::Deleted { revision },
            Answer::NotThere => Answer::NotThere,
            Answer::Swapped { revision } => Answer::Swapped { revision },
            Answer::Unequal { current } => Answer::Unequal { current: current.map(convert) },
            Answer::UnequalNotKept => Answer::UnequalNotKept,
            Answer::Created { revision } => Answer::Created { revision },
            Answer::Exists { revision } => Answer::Exists { revision },
            Answer::Read { revision, found } => Answer::Read { revision, found: found.map(|found| found.map(convert)) },
            Answer::Refused(refusal) => Answer::Refused(refusal),
        }
    }
}

fn put_revision(out: &mut impl BufMut, tag: u8, revision: Revision) {
    out.put_u8(tag);
    out.put_u64_le(revision.0);
}

/// Cut rather than refused: the text is for people, and whoever writes it is already saying no.
fn put_text(out: &mut impl BufMut, text: &str) {
    put_short(out, &text.as_bytes()[..text.floor_char_boundary(TEXT_BYTES_MAX)]);
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::limits::{ANSWER_BYTES_MAX, VALUE_BYTES_MAX};
    use crate::read::tests::{hex, unhex};

    /// Encodes to exactly these bytes, decodes from them, and from no part of them and nothing longer.
    fn check(answer: Answer<&'static [u8]>, golden: Expect) {
        let mut bytes = Vec::new();
        answer.encode(&mut bytes);
        golden.assert_eq(&hex(&bytes));
        assert_eq!(Answer::decode_borrowed(&bytes).as_ref(), Ok(&answer));
        assert_eq!(Answer::decode(Bytes::from(bytes.clone())), Ok(answer.map(Bytes::from_static)));
        for end in 0..bytes.len() {
            let cut = Answer::decode_borrowed(&bytes[..end]);
            assert!(matches!(cut, Err(DecodeError::Truncated { length, .. }) if length == end), "{end}: {cut:?}");
        }
        let length = bytes.len();
        bytes.push(0);
        assert_eq!(Answer::decode_borrowed(&bytes), Err(DecodeError::Trailing { end: length, length: length + 1 }));
    }

    #[test]
    fn golden() {
        let revision = Revision(0x0102);
        check(Answer::SessionOpened(SessionId(3)), expect!["010300000000000000"]);
        check(Answer::SessionClosed, expect!["02"]);
        check(
            Answer::Value {
                value: b"val",
                create_revision: Revision(2),
                modify_revision: revision,
                version: Version(4),
            },
            expect!["030200000000000000020100000000000004000000000000000300000076616c"],
        );
        check(Answer::Absent, expect!["04"]);
        check(Answer::Written { revision }, expect!["050201000000000000"]);
        check(Answer::Deleted { revision }, expect!["060201000000000000"]);
        check(Answer::NotThere, expect!["07"]);
        check(Answer::Swapped { revision }, expect!["080201000000000000"]);
        check(Answer::Unequal { current: None }, expect!["0900"]);
        check(Answer::Unequal { current: Some(b"val") }, expect!["09010300000076616c"]);
        check(Answer::UnequalNotKept, expect!["0d"]);
        check(Answer::Created { revision }, expect!["0a0201000000000000"]);
        check(Answer::Exists { revision }, expect!["0b0201000000000000"]);
        check(Answer::Read { revision, found: None }, expect!["0e020100000000000000"]);
        let found = Found {
            value: &b"val"[..],
            create_revision: Revision(2),
            modify_revision: Revision(3),
            version: Version(4),
        };
        check(
            Answer::Read { revision, found: Some(found) },
            expect!["0e0201000000000000010200000000000000030000000000000004000000000000000300000076616c"],
        );
    }

    #[test]
    fn golden_refusals() {
        let check = |refusal, golden| check(Answer::Refused(refusal), golden);
        check(Refusal::NotMaster { master: None }, expect!["0c0100"]);
        check(Refusal::NotMaster { master: Some("a:1".to_owned()) }, expect!["0c01010300613a31"]);
        check(Refusal::Busy, expect!["0c02"]);
        check(Refusal::LogFull, expect!["0c03"]);
        check(Refusal::DatabaseFull, expect!["0c0c"]);
        check(Refusal::Diverged, expect!["0c0e"]);
        check(Refusal::DiskFull("why".to_owned()), expect!["0c0d0300776879"]);
        check(Refusal::LogFailed, expect!["0c04"]);
        check(Refusal::SessionUnknown, expect!["0c05"]);
        check(Refusal::UnansweredLimit, expect!["0c06"]);
        check(Refusal::AlreadyAnswered, expect!["0c07"]);
        check(Refusal::Limit("why".to_owned()), expect!["0c080300776879"]);
        check(Refusal::Malformed("why".to_owned()), expect!["0c090300776879"]);
        check(Refusal::Unknown, expect!["0c0a"]);
        let (has, wanted) = (Revision(5), Revision(0x0109));
        check(Refusal::Behind { has, wanted }, expect!["0c0f05000000000000000901000000000000"]);
        check(Refusal::Compacted { has, wanted }, expect!["0c1005000000000000000901000000000000"]);
        check(Refusal::Unconfirmed { has }, expect!["0c110500000000000000"]);
        check(Refusal::Untrusted, expect!["0c12"]);
    }

    #[test]
    fn bytes_that_select_nothing() {
        let decode = |bytes: &str| Answer::decode(Bytes::from(unhex(bytes))).unwrap_err();
        assert_eq!(decode("00"), DecodeError::Unknown { what: "answer", offset: 0, found: 0 });
        assert_eq!(decode("0f"), DecodeError::Unknown { what: "answer", offset: 0, found: 15 });
        assert_eq!(decode("0902"), DecodeError::Unknown { what: "option", offset: 1, found: 2 });
        assert_eq!(decode("0c00"), DecodeError::Unknown { what: "refusal", offset: 1, found: 0 });
        assert_eq!(decode("0c0102"), DecodeError::Unknown { what: "option", offset: 2, found: 2 });
        assert_eq!(decode("0c080100ff"), DecodeError::NotText { offset: 2 });
    }

    #[test]
    fn a_value_shares_the_frame() {
        let mut bytes = Vec::new();
        Answer::Unequal { current: Some(b"shared") }.encode(&mut bytes);
        let frame = Bytes::from(bytes);
        let Ok(Answer::Unequal { current: Some(value) }) = Answer::decode(frame.clone()) else { panic!() };
        assert!(frame.as_ptr_range().contains(&value.as_ptr()));
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let mut bytes = Vec::new();
        Answer::<&[u8]>::Refused(Refusal::Limit("é".repeat(TEXT_BYTES_MAX) + "x")).encode(&mut bytes);
        assert!(bytes.len() <= ANSWER_BYTES_MAX);
        let Ok(Answer::Refused(Refusal::Limit(text))) = Answer::decode_borrowed(&bytes) else { panic!() };
        assert_eq!(text, "é".repeat(TEXT_BYTES_MAX / 2));
    }

    #[test]
    fn the_longest_answer_keeps_its_bound() {
        let largest = vec![0; VALUE_BYTES_MAX];
        let mut bytes = Vec::new();
        let (revision, version) = (Revision(u64::MAX), Version(u64::MAX));
        Answer::Value { value: &largest, create_revision: revision, modify_revision: revision, version }
            .encode(&mut bytes);
        assert!(bytes.len() <= ANSWER_BYTES_MAX);
        let found = Found { value: &largest, create_revision: revision, modify_revision: revision, version };
        bytes.clear();
        Answer::Read { revision, found: Some(found) }.encode(&mut bytes);
        assert!(bytes.len() <= ANSWER_BYTES_MAX);
    }

    #[test]
    fn only_a_lost_mastership_leaves_the_outcome_open() {
        assert!(!Refusal::Unknown.certain());
        assert!(Refusal::Busy.certain());
        assert_eq!(Refusal::NotMaster { master: None }.to_string(), "this replica is not the master");
        assert_eq!(
            Refusal::NotMaster { master: Some("a:1".into()) }.to_string(),
            "this replica is not the master: try a:1"
        );
    }

    proptest! {
        #[test]
        fn junk_is_refused_or_is_the_one_encoding_of_an_answer(
            tag in 0..16u8,
            choice in 0..20u8,
            rest in proptest::collection::vec(prop_oneof![Just(0u8), any::<u8>()], 0..48),
        ) {
            let mut bytes = vec![tag, choice];
            bytes.extend(rest);
            if let Ok(answer) = Answer::decode(Bytes::from(bytes.clone())) {
                let mut again = Vec::new();
                answer.encode(&mut again);
                prop_assert_eq!(bytes, again);
            }
        }
    }
}
