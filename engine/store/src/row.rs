//! What is kept for one key.

use std::fmt;

use crate::Revision;
use crate::short::Short;

/// How often a row has been written since it was created: 1 when it has just been, 0 for a plain row.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A row as readers see it. Of a plain row only the value means something; the rest is none and 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Row<'a> {
    /// The revision that created it.
    pub create_revision: Revision,
    /// The revision that last wrote it.
    pub modify_revision: Revision,
    /// How often it has been written since.
    pub version: Version,
    /// Its bytes.
    pub value: &'a [u8],
}

/// A row as it is kept.
#[derive(Clone)]
pub(crate) struct Kept {
    pub(crate) create_revision: Revision,
    pub(crate) modify_revision: Revision,
    pub(crate) version: Version,
    pub(crate) value: Short,
}

impl Kept {
    pub(crate) fn versioned(value: &[u8], revision: Revision) -> Kept {
        Kept { create_revision: revision, modify_revision: revision, version: Version(1), value: Short::new(value) }
    }

    pub(crate) fn plain(value: &[u8]) -> Kept {
        Kept {
            create_revision: Revision::NONE,
            modify_revision: Revision::NONE,
            version: Version(0),
            value: Short::new(value),
        }
    }

    pub(crate) fn of(row: Row<'_>) -> Kept {
        let Row { create_revision, modify_revision, version, value } = row;
        Kept { create_revision, modify_revision, version, value: Short::new(value) }
    }

    pub(crate) fn is_plain(&self) -> bool {
        self.create_revision == Revision::NONE
    }

    pub(crate) fn row(&self) -> Row<'_> {
        Row {
            create_revision: self.create_revision,
            modify_revision: self.modify_revision,
            version: self.version,
            value: self.value.as_slice(),
        }
    }
}
