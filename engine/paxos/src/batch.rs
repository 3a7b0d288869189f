//! A batch: what one slot carries, a sequence of commands (PML §4.2).
//!
//! The bytes are built once by the master, and the same bytes travel to the log and the peers. Each command is a
//! little-endian `u32` length and then its bytes. An empty batch is the no-op that fills a gap. A batch that begins with
//! the length `u32::MAX`, which no command has, is the log's own: a change of configuration (rule P6).

use std::fmt;

use bytes::{BufMut, Bytes, BytesMut};

use crate::configuration::Configuration;
use crate::types::Slot;

const LENGTH_BYTES: usize = size_of::<u32>();
/// In the place of a first command's length: what follows is a configuration.
const CHANGE: [u8; LENGTH_BYTES] = u32::MAX.to_le_bytes();

/// A sequence of commands, opaque to the protocol. Cheap to clone: the bytes are shared.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Batch(Bytes);

/// These bytes are not a sequence of commands.
#[derive(Debug, PartialEq, Eq)]
pub struct MalformedBatch {
    /// Where the broken command begins, in bytes.
    pub offset: usize,
}

impl fmt::Display for MalformedBatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the batch's command at byte {} is longer than what is left of the batch", self.offset)
    }
}

impl std::error::Error for MalformedBatch {}

impl Batch {
    /// The batch without commands, which fills a slot for which nobody may have proposed anything.
    pub const NO_OP: Batch = Batch(Bytes::new());

    /// Bytes that came from a disk or a socket, checked here to be a sequence of commands.
    pub fn from_bytes(bytes: Bytes) -> Result<Batch, MalformedBatch> {
        if bytes.starts_with(&CHANGE) {
            return if decode_change(&bytes).is_some() { Ok(Batch(bytes)) } else { Err(MalformedBatch { offset: 0 }) };
        }
        let mut offset = 0;
        while offset < bytes.len() {
            offset = command_end(&bytes, offset).ok_or(MalformedBatch { offset })?;
        }
        Ok(Batch(bytes))
    }

    /// The batch that changes the configuration to this one, if the one in force is still that whose first slot is `base`.
    pub fn change(base: Slot, configuration: &Configuration) -> Batch {
        let mut bytes = CHANGE.to_vec();
        bytes.extend(base.0.to_le_bytes());
        configuration.encode(&mut bytes);
        Batch(bytes.into())
    }

    /// The base and the configuration of [`Batch::change`], if this is a change.
    pub fn as_change(&self) -> Option<(Slot, Configuration)> {
        self.is_change().then(|| decode_change(&self.0).expect("a batch was checked when it was made"))
    }

    fn is_change(&self) -> bool {
        self.0.starts_with(&CHANGE)
    }

    /// The bytes as they travel and are stored.
    pub fn as_bytes(&self) -> &Bytes {
        &self.0
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether this is the no-op.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The commands, in order. A change of configuration has none.
    pub fn commands(&self) -> impl Iterator<Item = &[u8]> {
        let mut offset = if self.is_change() { self.0.len() } else { 0 };
        std::iter::from_fn(move || {
            if offset == self.0.len() {
                return None;
            }
            let end = command_end(&self.0, offset).expect("a batch was checked when it was made");
            let command = &self.0[offset + LENGTH_BYTES..end];
            offset = end;
            Some(command)
        })
    }
}

fn decode_change(bytes: &[u8]) -> Option<(Slot, Configuration)> {
    let (base, configuration) = bytes.strip_prefix(&CHANGE)?.split_first_chunk()?;
    Some((Slot(u64::from_le_bytes(*base)), Configuration::decode(configuration).ok()?))
}

/// Where the command that begins at `offset` ends, if it ends within `bytes`.
fn command_end(bytes: &[u8], offset: usize) -> Option<usize> {
    let length: [u8; LENGTH_BYTES] = bytes.get(offset..offset + LENGTH_BYTES)?.try_into().ok()?;
    let end = (offset + LENGTH_BYTES).checked_add(u32::from_le_bytes(length) as usize)?;
    (end <= bytes.len()).then_some(end)
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return write!(f, "no-op");
        }
        if let Some((_, configuration)) = self.as_change() {
            return write!(f, "<{configuration}>");
        }
        let commands: Vec<_> = self.commands().map(|command| command.escape_ascii().to_string()).collect();
        write!(f, "{}", commands.join("+"))
    }
}

/// Collects commands until a batch leaves.
#[derive(Default)]
pub struct BatchBuilder {
    bytes: BytesMut,
    commands: usize,
}

impl BatchBuilder {
    /// What `command` adds to a batch, in bytes.
    pub fn bytes_with(&self, command: &[u8]) -> usize {
        self.bytes.len() + LENGTH_BYTES + command.len()
    }

    /// Adds one command. This is the one copy of a payload on its way from the socket.
    pub fn push(&mut self, command: &[u8]) {
        let length = u32::try_from(command.len()).expect("a command is far smaller than 4 GiB");
        self.bytes.reserve(LENGTH_BYTES + command.len());
        self.bytes.put_u32_le(length);
        self.bytes.put_slice(command);
        self.commands += 1;
    }

    /// Replaces the first command by another of the same length.
    ///
    /// # Panics
    ///
    /// If there is none, or it has another length.
    pub fn replace_first(&mut self, command: &[u8]) {
        let end = command_end(&self.bytes, 0).expect("there is a first command");
        self.bytes[LENGTH_BYTES..end].copy_from_slice(command);
    }

    /// How many commands wait.
    pub fn commands(&self) -> usize {
        self.commands
    }

    /// How many bytes wait.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes what has been collected; the builder is empty again.
    pub fn take(&mut self) -> Batch {
        self.commands = 0;
        Batch(self.bytes.split().freeze())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_come_back_in_order() {
        let mut builder = BatchBuilder::default();
        for command in [&b"a"[..], b"", b"ccc"] {
            builder.push(command);
        }
        assert_eq!(builder.commands(), 3);
        let batch = builder.take();
        assert!(builder.is_empty());
        assert_eq!(batch.commands().collect::<Vec<_>>(), [&b"a"[..], b"", b"ccc"]);
        assert_eq!(Batch::from_bytes(batch.as_bytes().clone()), Ok(batch));
    }

    #[test]
    fn bytes_cut_short_are_refused_where_they_break() {
        let mut builder = BatchBuilder::default();
        builder.push(b"first");
        builder.push(b"second");
        let bytes = builder.take().as_bytes().clone();
        for cut in 1..bytes.len() {
            let first_ends = LENGTH_BYTES + 5;
            let outcome = Batch::from_bytes(bytes.slice(..cut));
            match cut {
                _ if cut == first_ends => assert!(outcome.is_ok()),
                _ if cut < first_ends => assert_eq!(outcome, Err(MalformedBatch { offset: 0 })),
                _ => assert_eq!(outcome, Err(MalformedBatch { offset: first_ends })),
            }
        }
        assert!(Batch::from_bytes(Bytes::from_static(&[0xff; 8])).is_err());
    }

    #[test]
    fn a_change_of_configuration_is_a_batch_without_commands() {
        let configuration = Configuration::of(&[1, 2, 3]);
        let batch = Batch::change(Slot(7), &configuration);
        assert_eq!(batch.as_change(), Some((Slot(7), configuration)));
        assert_eq!(batch.commands().count(), 0);
        assert_eq!(Batch::from_bytes(batch.as_bytes().clone()), Ok(batch));
        assert_eq!(Batch::NO_OP.as_change(), None);
    }
}
