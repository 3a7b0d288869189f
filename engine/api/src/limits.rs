//! How large, how long, how many.
//!
//! Clients check before they send; the cell checks again when it applies, because the bound that protects it must not
//! depend on what clients do. They are constants, not settings: replicas that disagreed about one would diverge.

use thiserror::Error;

use crate::answer::Refusal;
use crate::command::{Command, Expected, Operation};
use crate::words::{Sequence, SessionId};

/// The longest key or path.
pub const KEY_BYTES_MAX: usize = 1024;

/// The longest value of a key, or contents of a file.
pub const VALUE_BYTES_MAX: usize = 512 << 10;

/// What one slot of the log carries at most, the batch's and the record's own words included.
pub const BATCH_BYTES_MAX: usize = 1 << 20;

/// Left of a batch for words that are not the command's: its length in the batch, the record's and the frame's headers.
const BATCH_SPARE_BYTES: usize = 4 << 10;

/// The longest encoded command, so that any command fits a batch of its own. For a compare-and-swap this bounds the
/// expected and the new value together: somewhat below twice [`VALUE_BYTES_MAX`].
pub const COMMAND_BYTES_MAX: usize = BATCH_BYTES_MAX - BATCH_SPARE_BYTES;

/// The longest text within a refusal. Longer ones are cut when they are encoded.
pub const TEXT_BYTES_MAX: usize = 1024;

/// The longest encoded answer.
pub const ANSWER_BYTES_MAX: usize = ANSWER_OVERHEAD_BYTES_MAX + VALUE_BYTES_MAX;

/// What an answer has besides a value at most: its tag, three revisions and a length; or a refusal's text.
const ANSWER_OVERHEAD_BYTES_MAX: usize = 2 * TEXT_BYTES_MAX;

/// How many commands of one session may be unanswered at once, so how many results the cell keeps for it (rule P10).
pub const UNANSWERED_MAX: u64 = 1024;

/// How many sessions may be open at once. One more ends the oldest.
pub const SESSIONS_MAX: u64 = 4096;

// Every value that may be stored can be written by one command, whatever the key.
const _: () = assert!(Command::OVERHEAD_BYTES_MAX + KEY_BYTES_MAX + VALUE_BYTES_MAX <= COMMAND_BYTES_MAX);
// A key's length travels as a u16, a value's as a u32.
const _: () = assert!(KEY_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(TEXT_BYTES_MAX <= u16::MAX as usize);
const _: () = assert!(BATCH_BYTES_MAX <= u32::MAX as usize);

/// A bound that a command does not keep: the limit, what was given, and the bound.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum LimitError {
    /// The key or path is empty.
    #[error("the key is empty: it needs at least 1 byte")]
    KeyEmpty,
    /// The key or path is too long.
    #[error("the key has {bytes} bytes, of at most {KEY_BYTES_MAX}")]
    KeyBytes {
        /// Its length.
        bytes: usize,
    },
    /// A value, expected value or contents is too long.
    #[error("the value has {bytes} bytes, of at most {VALUE_BYTES_MAX}")]
    ValueBytes {
        /// Its length.
        bytes: usize,
    },
    /// The command as a whole is too long: only a compare-and-swap of two large values can be.
    #[error("the command has {bytes} bytes, of at most {COMMAND_BYTES_MAX}")]
    CommandBytes {
        /// Its encoded length.
        bytes: usize,
    },
    /// The path is not one.
    #[error("the path {0}")]
    Path(#[from] PathFault),
    /// A command that changes something carries no sequence, or waits for a command that comes after it.
    #[error("sequence {sequence} with {unanswered_from} unanswered: of 1 <= unanswered <= sequence")]
    Sequence {
        /// The command's sequence.
        sequence: Sequence,
        /// The lowest sequence its client still waits for.
        unanswered_from: Sequence,
    },
    /// The session has more commands under way than the cell keeps results for.
    #[error("sequence {sequence} with {unanswered_from} unanswered is over {UNANSWERED_MAX} commands at once")]
    Unanswered {
        /// The command's sequence.
        sequence: Sequence,
        /// The lowest sequence its client still waits for.
        unanswered_from: Sequence,
    },
}

/// What is wrong with a path.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
pub enum PathFault {
    /// It does not begin with a slash.
    #[error("does not begin with '/'")]
    Relative,
    /// Two slashes follow each other, or it ends with one.
    #[error("has an empty component")]
    EmptyComponent,
}

impl From<LimitError> for Refusal {
    /// An unanswered command too many has a refusal of its own: the client should wait, then try again.
    fn from(error: LimitError) -> Refusal {
        match error {
            LimitError::Unanswered { .. } => Refusal::UnansweredLimit,
            error => Refusal::Limit(error.to_string()),
        }
    }
}

impl Command<'_> {
    /// Whether the command keeps every bound that can be checked without the database.
    pub fn check_limits(&self) -> Result<(), LimitError> {
        match self.operation {
            Operation::OpenSession | Operation::CloseSession => {}
            Operation::Get { key } | Operation::Delete { key } => check_key(key)?,
            Operation::Put { key, value } => {
                check_key(key)?;
                check_value(value)?;
            }
            Operation::CompareAndSwap { key, expected, value } => {
                check_key(key)?;
                if let Expected::Value(expected) = expected {
                    check_value(expected)?;
                }
                check_value(value)?;
            }
            Operation::CreateFile { path, contents } | Operation::WriteFile { path, contents } => {
                check_path(path)?;
                check_value(contents)?;
            }
            Operation::ReadFile { path } => check_path(path)?,
        }
        let bytes = self.encoded_len();
        if bytes > COMMAND_BYTES_MAX {
            return Err(LimitError::CommandBytes { bytes });
        }
        // Without a session there is nothing to compare a sequence with: the cell says so in its own words.
        if self.operation.deduplicated() && self.session != SessionId::NONE {
            self.check_sequence()?;
        }
        Ok(())
    }

    fn check_sequence(&self) -> Result<(), LimitError> {
        let Command { sequence, unanswered_from, .. } = *self;
        if unanswered_from < Sequence::FIRST || unanswered_from > sequence {
            return Err(LimitError::Sequence { sequence, unanswered_from });
        }
        if sequence.0 - unanswered_from.0 >= UNANSWERED_MAX {
            return Err(LimitError::Unanswered { sequence, unanswered_from });
        }
        Ok(())
    }
}

fn check_key(key: &[u8]) -> Result<(), LimitError> {
    match key.len() {
        0 => Err(LimitError::KeyEmpty),
        1..=KEY_BYTES_MAX => Ok(()),
        bytes => Err(LimitError::KeyBytes { bytes }),
    }
}

fn check_value(value: &[u8]) -> Result<(), LimitError> {
    if value.len() > VALUE_BYTES_MAX {
        return Err(LimitError::ValueBytes { bytes: value.len() });
    }
    Ok(())
}

/// Absolute, without empty components, any bytes within one. The root is a directory, so not a path of a file.
fn check_path(path: &[u8]) -> Result<(), LimitError> {
    check_key(path)?;
    let Some(components) = path.strip_prefix(b"/") else {
        return Err(PathFault::Relative.into());
    };
    if components.split(|&byte| byte == b'/').any(<[u8]>::is_empty) {
        return Err(PathFault::EmptyComponent.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(operation: Operation<'_>) -> Command<'_> {
        Command { session: SessionId(1), sequence: Sequence(1), unanswered_from: Sequence(1), operation }
    }

    fn check(operation: Operation<'_>) -> Result<(), LimitError> {
        command(operation).check_limits()
    }

    #[test]
    fn keys() {
        assert_eq!(check(Operation::Get { key: b"" }), Err(LimitError::KeyEmpty));
        assert_eq!(check(Operation::Get { key: b"k" }), Ok(()));
        assert_eq!(check(Operation::Delete { key: &[0; KEY_BYTES_MAX] }), Ok(()));
        assert_eq!(
            check(Operation::Delete { key: &[0; KEY_BYTES_MAX + 1] }),
            Err(LimitError::KeyBytes { bytes: 1025 })
        );
    }

    #[test]
    fn values() {
        let largest = vec![0; VALUE_BYTES_MAX];
        let larger = vec![0; VALUE_BYTES_MAX + 1];
        let key = &[7; KEY_BYTES_MAX];
        let over = Err(LimitError::ValueBytes { bytes: VALUE_BYTES_MAX + 1 });
        assert_eq!(check(Operation::Put { key, value: b"" }), Ok(()));
        assert_eq!(check(Operation::Put { key, value: &largest }), Ok(()));
        assert_eq!(check(Operation::Put { key, value: &larger }), over);
        assert_eq!(check(Operation::CreateFile { path: b"/f", contents: &larger }), over);
        assert_eq!(check(Operation::WriteFile { path: b"/f", contents: &larger }), over);
        assert_eq!(check(Operation::CompareAndSwap { key, expected: Expected::Value(&larger), value: b"" }), over);
        assert_eq!(check(Operation::CompareAndSwap { key, expected: Expected::Absent, value: &larger }), over);
        assert_eq!(check(Operation::CompareAndSwap { key, expected: Expected::Absent, value: &largest }), Ok(()));
    }

    #[test]
    fn a_swap_of_two_large_values_is_bounded_by_the_whole() {
        let largest = vec![0; VALUE_BYTES_MAX];
        let swap = Operation::CompareAndSwap { key: b"k", expected: Expected::Value(&largest), value: &largest };
        let bytes = command(swap).encoded_len();
        assert_eq!(check(swap), Err(LimitError::CommandBytes { bytes }));
        let value = &largest[..VALUE_BYTES_MAX - (bytes - COMMAND_BYTES_MAX)];
        assert_eq!(check(Operation::CompareAndSwap { key: b"k", expected: Expected::Value(&largest), value }), Ok(()));
    }

    #[test]
    fn paths() {
        for path in [&b"/a"[..], b"/a/b", b"/ls/cell/\xff\x00", b"/."] {
            assert_eq!(check(Operation::ReadFile { path }), Ok(()), "{path:?}");
        }
        let relative = Err(LimitError::Path(PathFault::Relative));
        let empty = Err(LimitError::Path(PathFault::EmptyComponent));
        assert_eq!(check(Operation::ReadFile { path: b"" }), Err(LimitError::KeyEmpty));
        assert_eq!(check(Operation::ReadFile { path: b"a" }), relative);
        assert_eq!(check(Operation::ReadFile { path: b"a/b" }), relative);
        for path in [&b"/"[..], b"//", b"//a", b"/a//b", b"/a/"] {
            assert_eq!(check(Operation::ReadFile { path }), empty, "{path:?}");
        }
    }

    #[test]
    fn sequences() {
        let check = |sequence, unanswered_from| {
            Command {
                session: SessionId(1),
                sequence: Sequence(sequence),
                unanswered_from: Sequence(unanswered_from),
                operation: Operation::Delete { key: b"k" },
            }
            .check_limits()
        };
        assert_eq!(check(1, 1), Ok(()));
        assert_eq!(check(1024, 1), Ok(()));
        assert_eq!(check(u64::MAX, u64::MAX), Ok(()));
        assert!(matches!(check(1025, 1), Err(LimitError::Unanswered { .. })));
        assert!(matches!(check(u64::MAX, 1), Err(LimitError::Unanswered { .. })));
        assert!(matches!(check(0, 0), Err(LimitError::Sequence { .. })));
        assert!(matches!(check(1, 0), Err(LimitError::Sequence { .. })));
        assert!(matches!(check(1, 2), Err(LimitError::Sequence { .. })));
    }

    #[test]
    fn a_refusal_names_limit_size_and_bound() {
        let refusal = Refusal::from(check(Operation::Get { key: &[0; 2000] }).unwrap_err());
        assert_eq!(refusal, Refusal::Limit("the key has 2000 bytes, of at most 1024".to_owned()));
        let refusal = Refusal::from(check(Operation::ReadFile { path: b"a" }).unwrap_err());
        assert_eq!(refusal, Refusal::Limit("the path does not begin with '/'".to_owned()));
    }
}
