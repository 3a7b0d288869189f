//! Reads that any replica may answer, and how new what they see must be.
//!
//! | field | bytes |
//! |---|---|
//! | consistency | u8, see the constants |
//! | revision | u64; not for a linearizable read |
//! | operation | u8: get 1, read file 2 |
//! | key or path | u16 length, then the bytes |
//!
//! Such a read never enters the log, so it has no session and no sequence: asked twice, it is answered twice.

use bytes::BufMut;

use crate::command::{Command, Operation, put_short};
use crate::limits::LimitError;
use crate::read::{DecodeError, Reader};
use crate::words::Revision;

const LINEARIZABLE: u8 = 1;
const AT_LEAST: u8 = 2;
const AT: u8 = 3;

const GET: u8 = 1;
const READ_FILE: u8 = 2;

/// How new what a read sees must be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Consistency {
    /// It sees every write that was acknowledged before it was asked, by whomever: etcd's linearizable read, ZooKeeper's `sync`
    /// and read. The replica asks the master, in one small round for all reads that wait, up to where it must have applied.
    Linearizable,
    /// It sees the database at this revision or a later one, and so no older than what its client has seen: the replica answers
    /// by itself, once it has applied as much. With [`Revision::NONE`] this is etcd's serializable read.
    AtLeast(Revision),
    /// It sees the database at exactly this revision, as far as the replica still knows it.
    At(Revision),
}

/// A read for any replica. Borrows from the bytes it was decoded from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BoundedRead<'a> {
    /// How new what it sees must be.
    pub consistency: Consistency,
    /// What is read: [`Operation::Get`] or [`Operation::ReadFile`].
    pub operation: Operation<'a>,
}

impl<'a> BoundedRead<'a> {
    /// Whether the key or path is within its limits.
    pub fn check_limits(&self) -> Result<(), LimitError> {
        Command::without_session(self.operation).check_limits()
    }

    /// Appends the read's bytes.
    ///
    /// # Panics
    ///
    /// If the operation is not a read, or the key too long for its length field: the caller has not looked at
    /// [`check_limits`](Self::check_limits).
    pub fn encode(&self, out: &mut impl BufMut) {
        let (tag, revision) = match self.consistency {
            Consistency::Linearizable => (LINEARIZABLE, None),
            Consistency::AtLeast(revision) => (AT_LEAST, Some(revision)),
            Consistency::At(revision) => (AT, Some(revision)),
        };
        out.put_u8(tag);
        if let Some(Revision(revision)) = revision {
            out.put_u64_le(revision);
        }
        let (tag, key) = match self.operation {
            Operation::Get { key } => (GET, key),
            Operation::ReadFile { path } => (READ_FILE, path),
            other => panic!("{} is not a read", other.name()),
        };
        out.put_u8(tag);
        put_short(out, key);
    }

    /// The read that these bytes are, all of them. Copies nothing; says nothing of limits.
    pub fn decode(bytes: &'a [u8]) -> Result<BoundedRead<'a>, DecodeError> {
        let mut reader = Reader::new(bytes);
        let consistency = match reader.u8()? {
            LINEARIZABLE => Consistency::Linearizable,
            AT_LEAST => Consistency::AtLeast(Revision(reader.u64()?)),
            AT => Consistency::At(Revision(reader.u64()?)),
            unknown => return Err(reader.unknown("consistency", unknown)),
        };
        let operation = match reader.u8()? {
            GET => Operation::Get { key: reader.short()? },
            READ_FILE => Operation::ReadFile { path: reader.short()? },
            unknown => return Err(reader.unknown("read", unknown)),
        };
        reader.end()?;
        Ok(BoundedRead { consistency, operation })
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;
    use crate::read::tests::{hex, unhex};

    fn check(consistency: Consistency, operation: Operation<'static>, golden: Expect) {
        let read = BoundedRead { consistency, operation };
        let mut bytes = Vec::new();
        read.encode(&mut bytes);
        golden.assert_eq(&hex(&bytes));
        assert_eq!(BoundedRead::decode(&bytes), Ok(read));
        for end in 0..bytes.len() {
            let cut = BoundedRead::decode(&bytes[..end]);
            assert!(matches!(cut, Err(DecodeError::Truncated { length, .. }) if length == end), "{end}: {cut:?}");
        }
        bytes.push(0);
        assert!(matches!(BoundedRead::decode(&bytes), Err(DecodeError::Trailing { .. })));
    }

    #[test]
    fn golden() {
        let (get, file) = (Operation::Get { key: b"key" }, Operation::ReadFile { path: b"/f" });
        check(Consistency::Linearizable, get, expect!["010103006b6579"]);
        check(Consistency::AtLeast(Revision(0x0102)), get, expect!["0202010000000000000103006b6579"]);
        check(Consistency::At(Revision(0x0102)), file, expect!["0302010000000000000202002f66"]);
    }

    #[test]
    fn bytes_that_select_nothing() {
        let decode = |bytes: &str| BoundedRead::decode(&unhex(bytes)).unwrap_err();
        assert_eq!(decode("00"), DecodeError::Unknown { what: "consistency", offset: 0, found: 0 });
        assert_eq!(decode("0103"), DecodeError::Unknown { what: "read", offset: 1, found: 3 });
    }

    #[test]
    #[should_panic(expected = "put is not a read")]
    fn a_write_is_not_asked_so() {
        let operation = Operation::Put { key: b"k", value: b"v" };
        BoundedRead { consistency: Consistency::Linearizable, operation }.encode(&mut Vec::new());
    }

    proptest! {
        #[test]
        fn junk_is_refused_or_is_the_one_encoding_of_a_read(
            tag in 0..5u8,
            rest in proptest::collection::vec(prop_oneof![Just(0u8), Just(1), Just(2), any::<u8>()], 0..32),
        ) {
            let mut bytes = vec![tag];
            bytes.extend(rest);
            if let Ok(read) = BoundedRead::decode(&bytes) {
                let mut again = Vec::new();
                read.encode(&mut again);
                prop_assert_eq!(bytes, again);
            }
        }
    }
}
