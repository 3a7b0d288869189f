//! What the master itself puts into the log, among the clients' commands (rule P9; PML section 5.3).
//!
//! | field | bytes |
//! |---|---|
//! | marker | eight bytes of ff: a session that is never allotted |
//! | what | u8: 1 for "begins", 2 for "stamp" |
//! | epoch | u64; stamp only |
//!
//! A new master begins with a batch of its own that raises the epoch in the database. Every batch of commands after that
//! begins with a stamp: the epoch in which its commands arrived. Where the database's epoch is another by then, the batch
//! is refused whole: mastership changed in between. Shorter than any command, so no client can send one.

use bytes::BufMut;

/// The number of a mastership, kept in the database; one more with each new master. 0 before the first.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Epoch(pub u64);

/// One word of the master's own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mastership {
    /// A new master begins: the epoch is raised.
    Begins,
    /// What follows in this batch arrived in this epoch.
    Stamp(Epoch),
}

const MARKER: [u8; 8] = u64::MAX.to_le_bytes();
const BEGINS: u8 = 1;
const STAMP: u8 = 2;

impl Mastership {
    /// Its bytes. All stamps have the same length.
    #[must_use]
    pub fn encode(self) -> Vec<u8> {
        let mut out = MARKER.to_vec();
        match self {
            Mastership::Begins => out.put_u8(BEGINS),
            Mastership::Stamp(epoch) => {
                out.put_u8(STAMP);
                out.put_u64_le(epoch.0);
            }
        }
        out
    }

    /// What these bytes are, if they are the master's and not a client's.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Mastership> {
        match bytes.strip_prefix(&MARKER)? {
            [BEGINS] => Some(Mastership::Begins),
            [STAMP, epoch @ ..] => {
                epoch.try_into().ok().map(|epoch| Mastership::Stamp(Epoch(u64::from_le_bytes(epoch))))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;

    #[test]
    fn no_client_can_say_what_a_master_says() {
        for word in [Mastership::Begins, Mastership::Stamp(Epoch(0)), Mastership::Stamp(Epoch(u64::MAX))] {
            let bytes = word.encode();
            assert_eq!(Mastership::decode(&bytes), Some(word));
            assert!(Command::decode(&bytes).is_err());
            assert_eq!(Mastership::decode(&bytes[..bytes.len() - 1]), None);
        }
    }
}
