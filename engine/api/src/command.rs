//! What a client asks of the cell, and the bytes it asks with.
//!
//! | field | bytes |
//! |---|---|
//! | session | u64; 0 for none |
//! | sequence | u64 |
//! | unanswered from | u64 |
//! | operation | u8, see the constants |
//! | key or path | u16 length, then the bytes; not for the two session operations |
//! | expected | compare-and-swap only: u8 0 for absent; or 1, u32 length, the bytes |
//! | value or contents | u32 length, then the bytes; only for operations that write one |
//!
//! There is one encoding of a command and no slack in it: bytes after the last field are an error.

use bytes::BufMut;

use crate::read::{DecodeError, Reader};
use crate::words::{Sequence, SessionId};

const OPEN_SESSION: u8 = 1;
const CLOSE_SESSION: u8 = 2;
const GET: u8 = 3;
const PUT: u8 = 4;
const DELETE: u8 = 5;
const COMPARE_AND_SWAP: u8 = 6;
const CREATE_FILE: u8 = 7;
const WRITE_FILE: u8 = 8;
const READ_FILE: u8 = 9;

const EXPECTED_ABSENT: u8 = 0;
const EXPECTED_VALUE: u8 = 1;

/// One client operation with its at-most-once stamp (rule P10). Borrows from the bytes it was decoded from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Command<'a> {
    /// Whose command it is. [`SessionId::NONE`] for [`Operation::OpenSession`], and allowed for reads.
    pub session: SessionId,
    /// Which of the session's commands it is: the same in every retry.
    pub sequence: Sequence,
    /// The lowest sequence whose answer the client still waits for, at most `sequence`. Results below it are forgotten.
    /// A retry may carry a newer one than the first attempt did.
    pub unanswered_from: Sequence,
    /// What is asked.
    pub operation: Operation<'a>,
}

/// What a command asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation<'a> {
    /// Allot a session. A retry may leave a session nobody knows of, which ends as the oldest one some day.
    OpenSession,
    /// End the session, and forget its results: no command of it is ever applied again, delayed ones included. A retry
    /// finds the session unknown.
    CloseSession,
    /// Read a key.
    Get {
        /// Which.
        key: &'a [u8],
    },
    /// Set a key, there or not.
    Put {
        /// Which.
        key: &'a [u8],
        /// To what.
        value: &'a [u8],
    },
    /// Remove a key.
    Delete {
        /// Which.
        key: &'a [u8],
    },
    /// Set a key if it is as expected.
    CompareAndSwap {
        /// Which.
        key: &'a [u8],
        /// What must be there.
        expected: Expected<'a>,
        /// What shall be there.
        value: &'a [u8],
    },
    /// Make a file, if there is none.
    CreateFile {
        /// Where.
        path: &'a [u8],
        /// All of it.
        contents: &'a [u8],
    },
    /// Replace the whole contents of a file, if there is one.
    WriteFile {
        /// Where.
        path: &'a [u8],
        /// All of it.
        contents: &'a [u8],
    },
    /// Read a whole file.
    ReadFile {
        /// Where.
        path: &'a [u8],
    },
}

/// What a compare-and-swap must find.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Expected<'a> {
    /// No such key.
    Absent,
    /// The key with this value.
    Value(&'a [u8]),
}

impl Operation<'_> {
    /// Whether it may change the database. What does goes through the log, and nearly all of it is
    /// [`deduplicated`](Self::deduplicated); what does
    /// not may be sent without a session, and be answered from a lease.
    #[must_use]
    pub fn changes(&self) -> bool {
        match self {
            Operation::Get { .. } | Operation::ReadFile { .. } => false,
            Operation::OpenSession
            | Operation::CloseSession
            | Operation::Put { .. }
            | Operation::Delete { .. }
            | Operation::CompareAndSwap { .. }
            | Operation::CreateFile { .. }
            | Operation::WriteFile { .. } => true,
        }
    }

    /// Whether the cell applies it at most once however often it arrives, by its session and sequence (rule P10). The
    /// two session operations change something but are not: the one has no session yet, the other none any more.
    #[must_use]
    pub fn deduplicated(&self) -> bool {
        self.changes() && !matches!(self, Operation::OpenSession | Operation::CloseSession)
    }

    /// Its name, for logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Operation::OpenSession => "open_session",
            Operation::CloseSession => "close_session",
            Operation::Get { .. } => "get",
            Operation::Put { .. } => "put",
            Operation::Delete { .. } => "delete",
            Operation::CompareAndSwap { .. } => "compare_and_swap",
            Operation::CreateFile { .. } => "create_file",
            Operation::WriteFile { .. } => "write_file",
            Operation::ReadFile { .. } => "read_file",
        }
    }
}

impl<'a> Command<'a> {
    /// What an encoded command has besides keys and values at most: stamp, operation, lengths, a byte for `expected`.
    pub(crate) const OVERHEAD_BYTES_MAX: usize = 3 * 8 + 1 + 2 + 1 + 4 + 4;

    /// A command outside any session: a read, or the opening of a session.
    #[must_use]
    pub fn without_session(operation: Operation<'a>) -> Command<'a> {
        Command { session: SessionId::NONE, sequence: Sequence::NONE, unanswered_from: Sequence::NONE, operation }
    }

    /// How many bytes [`encode`](Self::encode) appends.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        let operation = match self.operation {
            Operation::OpenSession | Operation::CloseSession => 0,
            Operation::Get { key } | Operation::Delete { key } | Operation::ReadFile { path: key } => 2 + key.len(),
            Operation::Put { key, value }
            | Operation::CreateFile { path: key, contents: value }
            | Operation::WriteFile { path: key, contents: value } => 2 + key.len() + 4 + value.len(),
            Operation::CompareAndSwap { key, expected, value } => {
                let expected = match expected {
                    Expected::Absent => 1,
                    Expected::Value(expected) => 1 + 4 + expected.len(),
                };
                2 + key.len() + expected + 4 + value.len()
            }
        };
        3 * 8 + 1 + operation
    }

    /// Appends the command's bytes.
    ///
    /// # Panics
    ///
    /// If a key or a value is too long for its length field: the caller has not looked at
    /// [`check_limits`](Self::check_limits).
    pub fn encode(&self, out: &mut impl BufMut) {
        out.put_u64_le(self.session.0);
        out.put_u64_le(self.sequence.0);
        out.put_u64_le(self.unanswered_from.0);
        match self.operation {
            Operation::OpenSession => out.put_u8(OPEN_SESSION),
            Operation::CloseSession => out.put_u8(CLOSE_SESSION),
            Operation::Get { key } => {
                out.put_u8(GET);
                put_short(out, key);
            }
            Operation::Put { key, value } => {
                out.put_u8(PUT);
                put_short(out, key);
                put_long(out, value);
            }
            Operation::Delete { key } => {
                out.put_u8(DELETE);
                put_short(out, key);
            }
            Operation::CompareAndSwap { key, expected, value } => {
                out.put_u8(COMPARE_AND_SWAP);
                put_short(out, key);
                match expected {
                    Expected::Absent => out.put_u8(EXPECTED_ABSENT),
                    Expected::Value(expected) => {
                        out.put_u8(EXPECTED_VALUE);
                        put_long(out, expected);
                    }
                }
                put_long(out, value);
            }
            Operation::CreateFile { path, contents } => {
                out.put_u8(CREATE_FILE);
                put_short(out, path);
                put_long(out, contents);
            }
            Operation::WriteFile { path, contents } => {
                out.put_u8(WRITE_FILE);
                put_short(out, path);
                put_long(out, contents);
            }
            Operation::ReadFile { path } => {
                out.put_u8(READ_FILE);
                put_short(out, path);
            }
        }
    }

    /// The command that these bytes are, all of them. Copies nothing; says nothing of limits.
    pub fn decode(bytes: &'a [u8]) -> Result<Command<'a>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let session = SessionId(reader.u64()?);
        let sequence = Sequence(reader.u64()?);
        let unanswered_from = Sequence(reader.u64()?);
        let operation = match reader.u8()? {
            OPEN_SESSION => Operation::OpenSession,
            CLOSE_SESSION => Operation::CloseSession,
            GET => Operation::Get { key: reader.short()? },
            PUT => Operation::Put { key: reader.short()?, value: reader.long()? },
            DELETE => Operation::Delete { key: reader.short()? },
            COMPARE_AND_SWAP => {
                let key = reader.short()?;
                let expected = match reader.u8()? {
                    EXPECTED_ABSENT => Expected::Absent,
                    EXPECTED_VALUE => Expected::Value(reader.long()?),
                    unknown => return Err(reader.unknown("expectation", unknown)),
                };
                Operation::CompareAndSwap { key, expected, value: reader.long()? }
            }
            CREATE_FILE => Operation::CreateFile { path: reader.short()?, contents: reader.long()? },
            WRITE_FILE => Operation::WriteFile { path: reader.short()?, contents: reader.long()? },
            READ_FILE => Operation::ReadFile { path: reader.short()? },
            unknown => return Err(reader.unknown("operation", unknown)),
        };
        reader.end()?;
        Ok(Command { session, sequence, unanswered_from, operation })
    }
}

/// Bytes after their length as a `u16`.
pub(crate) fn put_short(out: &mut impl BufMut, bytes: &[u8]) {
    out.put_u16_le(bytes.len().try_into().expect("keys, paths and texts are bounded far below 64 KiB"));
    out.put_slice(bytes);
}

/// Bytes after their length as a `u32`.
pub(crate) fn put_long(out: &mut impl BufMut, bytes: &[u8]) {
    out.put_u32_le(bytes.len().try_into().expect("values are bounded far below 4 GiB"));
    out.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::read::tests::{hex, unhex};

    /// Encodes to exactly these bytes, decodes from them, and from no part of them and nothing longer.
    fn check(operation: Operation<'_>, golden: Expect) {
        let command =
            Command { session: SessionId(0x0102), sequence: Sequence(9), unanswered_from: Sequence(7), operation };
        let mut bytes = Vec::new();
        command.encode(&mut bytes);
        golden.assert_eq(&hex(&bytes));
        assert_eq!(bytes.len(), command.encoded_len());
        assert_eq!(Command::decode(&bytes), Ok(command));
        for end in 0..bytes.len() {
            let cut = Command::decode(&bytes[..end]);
            assert!(matches!(cut, Err(DecodeError::Truncated { length, .. }) if length == end), "{end}: {cut:?}");
        }
        let length = bytes.len();
        bytes.push(0);
        assert_eq!(Command::decode(&bytes), Err(DecodeError::Trailing { end: length, length: length + 1 }));
    }

    #[test]
    fn golden() {
        check(Operation::OpenSession, expect!["02010000000000000900000000000000070000000000000001"]);
        check(Operation::CloseSession, expect!["02010000000000000900000000000000070000000000000002"]);
        check(Operation::Get { key: b"key" }, expect!["0201000000000000090000000000000007000000000000000303006b6579"]);
        check(
            Operation::Put { key: b"key", value: b"value" },
            expect!["0201000000000000090000000000000007000000000000000403006b65790500000076616c7565"],
        );
        check(
            Operation::Delete { key: b"key" },
            expect!["0201000000000000090000000000000007000000000000000503006b6579"],
        );
        check(
            Operation::CompareAndSwap { key: b"key", expected: Expected::Absent, value: b"new" },
            expect!["0201000000000000090000000000000007000000000000000603006b657900030000006e6577"],
        );
        check(
            Operation::CompareAndSwap { key: b"key", expected: Expected::Value(b"old!"), value: b"new" },
            expect!["0201000000000000090000000000000007000000000000000603006b657901040000006f6c6421030000006e6577"],
        );
        check(
            Operation::CreateFile { path: b"/a/b", contents: b"" },
            expect!["0201000000000000090000000000000007000000000000000704002f612f6200000000"],
        );
        check(
            Operation::WriteFile { path: b"/a/b", contents: b"text" },
            expect!["0201000000000000090000000000000007000000000000000804002f612f620400000074657874"],
        );
        check(
            Operation::ReadFile { path: b"/a/b" },
            expect!["0201000000000000090000000000000007000000000000000904002f612f62"],
        );
    }

    #[test]
    fn bytes_that_select_nothing() {
        let stamp = "00".repeat(24);
        let decode = |tail: &str| Command::decode(&unhex(&format!("{stamp}{tail}"))).map(|_| ()).unwrap_err();
        assert_eq!(decode("00"), DecodeError::Unknown { what: "operation", offset: 24, found: 0 });
        assert_eq!(decode("0a"), DecodeError::Unknown { what: "operation", offset: 24, found: 10 });
        assert_eq!(decode("06000002"), DecodeError::Unknown { what: "expectation", offset: 27, found: 2 });
        assert_eq!(decode("040000ffffffff"), DecodeError::Truncated { offset: 31, length: 31 });
    }

    #[test]
    fn the_longest_overhead_is_that_of_a_swap() {
        let swap = Operation::CompareAndSwap { key: b"", expected: Expected::Value(b""), value: b"" };
        assert_eq!(Command::without_session(swap).encoded_len(), Command::OVERHEAD_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn junk_is_refused_or_is_the_one_encoding_of_a_command(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..80),
            operation in 0..11u8,
            lengths in any::<[u8; 4]>(),
        ) {
            // Steered towards plausible headers: pure noise would nearly always stop at the operation's byte.
            if bytes.len() > 40 {
                bytes[24] = operation;
                bytes[25] = lengths[0] % 16;
                bytes[26] = 0;
                let at = 27 + usize::from(bytes[25]);
                if at + 8 < bytes.len() {
                    bytes[at] = lengths[1] % 40;
                    bytes[at + 1..at + 4].fill(0);
                }
            }
            if let Ok(command) = Command::decode(&bytes) {
                let mut again = Vec::new();
                command.encode(&mut again);
                prop_assert_eq!(bytes, again);
            }
        }
    }
}
