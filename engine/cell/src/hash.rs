//! A fingerprint of all rows, to compare replicas by.
//!
//! FNV-1a over everything, in order: slow, simple, and the same on every machine. The running digest of rule P14, which
//! is kept by every change instead of read from every row, is another thing.

use std::ops::Bound;

use synod_store::Store;

const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

pub(crate) fn contents(store: &Store) -> u64 {
    let mut hash = BASIS;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
    };
    add(&store.revision().0.to_le_bytes());
    for (key, row) in store.range(Bound::Unbounded, Bound::Unbounded) {
        // Lengths first: without them a byte could move from a key into its value unseen.
        for number in
            [key.len() as u64, row.value.len() as u64, row.create_revision.0, row.modify_revision.0, row.version.0]
        {
            add(&number.to_le_bytes());
        }
        add(key);
        add(row.value);
    }
    hash
}
