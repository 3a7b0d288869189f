//! From a frozen database to a copy: chunk after chunk, and the manifest when all are there.
//!
//! Two replicas that copy the same state write the same bytes under the same name, so they do not disturb each other. What is
//! given up half-way leaves chunks without a manifest: no copy, and overwritten by the next one of this state.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use synod_paxos::SnapshotHandle;
use synod_store::{ReadView, ViewEnded};

use super::manifest::{ChunkFields, MadeBy, Manifest, Name, Origin};
use super::{Remote, RemoteError};

/// About so many bytes a chunk. Part of the format only in so far as two writers of one state should agree.
const CHUNK_BYTES: usize = 4 << 20;
/// A view that is copied keeps pages from being used again: this is the bound of its age (rule S6).
pub const COPY_TIME_MAX: Duration = Duration::from_secs(6 * 3600);
/// So that what is cancelled ends soon, however slow it was to be.
const NAP: Duration = Duration::from_millis(50);

/// A database that stands still, and what ties it to its log.
pub struct Source {
    /// Its rows.
    pub view: ReadView,
    /// Which state it is.
    pub handle: SnapshotHandle,
    /// Whose.
    pub cell: u128,
    /// Who writes it.
    pub replica: u16,
    /// In which of its lives.
    pub incarnation: u64,
    /// When it was frozen.
    pub taken_ms: u64,
    /// Who wants it.
    pub made_by: MadeBy,
}

impl Source {
    /// What its copy is called.
    pub fn name(&self) -> Name {
        Name { cell: self.cell, slot: self.handle.slot, revision: self.view.revision() }
    }
}

/// How fast, whether to go on, and how far it is.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    /// `None`: as fast as the place takes it.
    pub bytes_per_second: Option<u64>,
    /// Set it, and the work ends before the next chunk.
    pub cancel: Arc<AtomicBool>,
    /// Bytes written so far.
    pub bytes: Arc<AtomicU64>,
}

impl Pace {
    fn sleep(&self, began: Instant, bytes: u64) {
        let Some(rate) = self.bytes_per_second else { return };
        let due = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        while !self.cancel.load(Ordering::Relaxed) && began.elapsed() < due {
            std::thread::sleep(due.saturating_sub(began.elapsed()).min(NAP));
        }
    }
}

/// Why a copy was not made. There is none under its name, unless there was one before.
#[derive(Debug, thiserror::Error)]
pub enum SaveError {
    /// The place.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The view kept too much from being used again.
    #[error("{0}; the copy is given up. Copy faster (--snapshot-mb-per-s), or when less is written")]
    View(#[from] ViewEnded),
    /// It would have kept too much for too long.
    #[error("the copy took more than {COPY_TIME_MAX:?} and is given up: {bytes} bytes were written")]
    TooLong {
        /// How far it came.
        bytes: u64,
    },
    /// Its caller said so.
    #[error("the copy was cancelled")]
    Cancelled,
}

/// What was made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Saved {
    /// What it is called.
    pub name: Name,
    /// What all chunks are long.
    pub bytes: u64,
    /// The place had a whole copy of this state already, and nothing was written.
    pub was_there: bool,
}

/// Copies a frozen database.
pub fn save(remote: &Remote, source: &Source, pace: &Pace) -> Result<Saved, SaveError> {
    let (name, began) = (source.name(), Instant::now());
    pace.bytes.store(0, Ordering::Relaxed);
    if let Some(Ok(manifest)) = remote.manifest(name)? {
        return Ok(Saved { name, bytes: manifest.chunk_bytes(), was_there: true });
    }
    let (mut chunks, mut bytes, mut from) = (Vec::new(), 0, None);
    loop {
        if pace.cancel.load(Ordering::Relaxed) {
            return Err(SaveError::Cancelled);
        }
        if began.elapsed() > COPY_TIME_MAX {
            return Err(SaveError::TooLong { bytes });
        }
        let chunk = source.view.export(from.as_deref(), CHUNK_BYTES)?;
        bytes += chunk.bytes.len() as u64;
        let path = remote.chunk_path(name, chunks.len());
        chunks.push(ChunkFields::of(&chunk.bytes));
        remote.put(&path, chunk.bytes)?;
        pace.bytes.store(bytes, Ordering::Relaxed);
        pace.sleep(began, bytes);
        from = chunk.next;
        if from.is_none() {
            break;
        }
    }
    let Source { handle, replica, incarnation, taken_ms, made_by, view, .. } = source;
    let origin = Origin {
        replica: *replica,
        incarnation: *incarnation,
        ballot: handle.ballot,
        configurations: &handle.configurations,
        taken_ms: *taken_ms,
        made_by: *made_by,
    };
    let manifest = Manifest::new(name, &origin, (view.len() as u64, view.bytes()), chunks);
    remote.put(&remote.manifest_path(name), manifest.encode())?;
    Ok(Saved { name, bytes, was_there: false })
}

#[cfg(test)]
mod tests {
    use super::*;
    use synod_paxos::{Ballot, Configuration, Configurations, Slot};
    use synod_store::{Options, Store};

    fn source(store: &mut Store) -> Source {
        let configurations = Configurations::first(Configuration::of(&[1]));
        let handle = SnapshotHandle { slot: Slot(9), ballot: Ballot::NONE, configurations };
        let view = store.freeze();
        Source { view, handle, cell: 7, replica: 1, incarnation: 1, taken_ms: 1, made_by: MadeBy::Operator }
    }

    fn fill(store: &mut Store, byte: u8) {
        let mut change = store.change();
        for key in 0..2000_u32 {
            change.put(&key.to_be_bytes(), &[byte; 3000]);
        }
    }

    #[test]
    fn a_view_that_keeps_too_much_is_ended_and_so_is_its_copy() {
        let dir = tempfile::tempdir().unwrap();
        let remote = Remote::open(dir.path().to_str().unwrap()).unwrap();
        let mut store =
            Store::in_memory(Options { pinned_bytes_max: 1 << 20, keep_history: false, ..Options::default() });
        fill(&mut store, b'a');
        let source = source(&mut store);
        store.bound_views();
        let saved = save(&remote, &source, &Pace::default()).unwrap();
        assert!(!saved.was_there);
        assert!(save(&remote, &source, &Pace::default()).unwrap().was_there);
        remote.remove(source.name()).unwrap();

        fill(&mut store, b'b');
        store.bound_views();
        let error = save(&remote, &source, &Pace::default()).unwrap_err().to_string();
        assert!(error.contains("of at most 1048576; the copy is given up"), "{error}");
        assert!(remote.manifest(source.name()).unwrap().is_none());
    }

    #[test]
    fn what_is_cancelled_leaves_no_copy() {
        let dir = tempfile::tempdir().unwrap();
        let remote = Remote::open(dir.path().to_str().unwrap()).unwrap();
        let mut store = Store::new();
        fill(&mut store, b'a');
        let pace = Pace::default();
        pace.cancel.store(true, Ordering::Relaxed);
        assert!(matches!(save(&remote, &source(&mut store), &pace), Err(SaveError::Cancelled)));
        assert!(remote.names(None).unwrap().is_empty());
    }
}
