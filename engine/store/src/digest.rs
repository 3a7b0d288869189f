//! The digest: one number of all rows, the same wherever the same rows are (rule P14).
//!
//! It is the wrapping sum of one hash a row, so a change of a row changes it by two hashes: that of the row *as it is
//! stored* is subtracted, that of the new one added. A row that rotted in memory takes away another number than it once
//! brought, and from then on the digest differs from everybody else's. `docs/format.md` has the hash, which is XXH3 and is
//! never to change: it is in the file, and replicas of different builds compare it.

use std::fmt;
use std::ops::Bound;
use std::sync::atomic::Ordering;
use std::time::Instant;

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::image::Image;
use crate::row::Row;
use crate::{Pacing, ReadView, Revision, Store, Version, ViewEnded};

/// See the module. Two databases with different rows have the same one once in 2^64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Digest(pub u64);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// Why a digest was not recomputed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RecomputeError {
    /// The view was ended.
    #[error(transparent)]
    Ended(#[from] ViewEnded),
    /// Its caller said so.
    #[error("the look at the rows was cancelled")]
    Cancelled,
}

/// A recomputation asks between so many rows whether it is to go on, and sleeps.
const ROWS_AT_ONCE: usize = 256;

/// The sum of the hashes of all rows of `present`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Sum(pub(crate) u64);

impl Sum {
    pub(crate) const EMPTY: Sum = Sum(0);

    pub(crate) fn add(&mut self, key: &[u8], row: Row<'_>) {
        self.0 = self.0.wrapping_add(row_hash(key, row));
    }

    pub(crate) fn subtract(&mut self, key: &[u8], row: Row<'_>) {
        self.0 = self.0.wrapping_sub(row_hash(key, row));
    }
}

/// Numbers, key and value, each hashed with the hash before as its seed: none can lend the next a byte unseen.
fn row_hash(key: &[u8], row: Row<'_>) -> u64 {
    let Row { create_revision, modify_revision, version: Version(version), value } = row;
    let mut numbers = [0; 24];
    numbers[..8].copy_from_slice(&create_revision.0.to_le_bytes());
    numbers[8..16].copy_from_slice(&modify_revision.0.to_le_bytes());
    numbers[16..].copy_from_slice(&version.to_le_bytes());
    xxh3_64_with_seed(value, xxh3_64_with_seed(key, xxh3_64(&numbers)))
}

/// With the revision, which a change raises even if it writes nothing. Not with how far the past is compacted: what is
/// kept of it is each replica's own affair.
fn digest(sum: Sum, revision: Revision) -> Digest {
    Digest(sum.0.wrapping_add(xxh3_64(&revision.0.to_le_bytes())))
}

impl Image {
    pub(crate) fn digest(&self) -> Digest {
        digest(self.sum, self.revision)
    }
}

impl Store {
    /// The digest of all rows and of the revision, as every change kept it: takes constant time.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.image.digest()
    }
}

impl ReadView {
    /// The digest as every change before the freeze kept it.
    #[must_use]
    pub fn digest(&self) -> Digest {
        self.image().digest()
    }

    /// The digest of the rows that are there, every one of them read: another one than [`digest`](ReadView::digest) says
    /// that a row is not what was written. Blocks, and reads at the rate of `pacing` at most.
    ///
    /// # Errors
    ///
    /// If the view was ended meanwhile, or `pacing` cancelled it.
    pub fn recompute_digest(&self, pacing: &Pacing) -> Result<Digest, RecomputeError> {
        let began = Instant::now();
        let (mut sum, mut bytes) = (Sum::EMPTY, 0);
        let mut rows = self.range(Bound::Unbounded, Bound::Unbounded)?;
        loop {
            let mut count = 0;
            for (key, row) in rows.by_ref().take(ROWS_AT_ONCE) {
                sum.add(key, row);
                bytes += (key.len() + row.value.len()) as u64;
                count += 1;
            }
            if count < ROWS_AT_ONCE {
                return Ok(digest(sum, self.revision()));
            }
            pacing.sleep(began, bytes);
            if pacing.cancel.load(Ordering::Relaxed) {
                return Err(RecomputeError::Cancelled);
            }
            self.parts()?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(numbers: (u64, u64, u64), value: &[u8]) -> Row<'_> {
        let (create, modify, version) = numbers;
        Row { create_revision: Revision(create), modify_revision: Revision(modify), version: Version(version), value }
    }

    #[test]
    fn every_part_of_a_row_counts() {
        let hashes = [
            row_hash(b"ab", row((1, 2, 3), b"c")),
            row_hash(b"a", row((1, 2, 3), b"bc")),
            row_hash(b"ab", row((2, 2, 3), b"c")),
            row_hash(b"ab", row((1, 3, 3), b"c")),
            row_hash(b"ab", row((1, 2, 4), b"c")),
            row_hash(b"ab", row((1, 2, 3), b"d")),
        ];
        assert_eq!(std::collections::BTreeSet::from(hashes).len(), hashes.len());
    }
}
