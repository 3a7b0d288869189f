//! The numbers that mean something, as types.

use std::fmt;

/// One client's session with the cell. Allotted by the cell, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SessionId(pub u64);

impl SessionId {
    /// No session: for reads, and for the command that opens one.
    pub const NONE: SessionId = SessionId(0);
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The number of a command within its session: from 1, one more for each new command, the same for each retry of it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Sequence(pub u64);

impl Sequence {
    /// No command: what a command outside any session carries.
    pub const NONE: Sequence = Sequence(0);
    /// The first command of a session.
    pub const FIRST: Sequence = Sequence(1);

    /// The number of the command after this one.
    #[must_use]
    pub fn next(self) -> Sequence {
        Sequence(self.0.checked_add(1).expect("a session has fewer than 2^64 commands"))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The database's version: one more for each command that changes it. The empty database is revision 1, as in etcd.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision(pub u64);

impl Revision {
    /// Before the empty database: everything is newer.
    pub const NONE: Revision = Revision(0);
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// How often a key or file has been written since it was created; 1 when it has just been. A file's *content
/// generation*, in Chubby's words.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}
