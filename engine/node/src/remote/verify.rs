//! Reading a copy back, every byte of it, before a word of it is believed.

use synod_store::{ImportError, Options, Store};

use super::manifest::{ChunkFields, Manifest, ManifestError, Name};
use super::{Remote, RemoteError, manifest};

/// Room for what a row takes beside its key and value, when a database is built in memory to see whether it can be.
const MEMORY_FACTOR: u64 = 4;

/// Why a copy is none, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The place.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Chunks without a manifest, or nothing at all.
    #[error("there is no whole copy {name} in {url}: `synod snapshot list {url}` says which there are")]
    None {
        /// What was asked for.
        name: Name,
        /// Where.
        url: String,
    },
    /// Its manifest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Chunks that are not what was written.
    #[error("{name} is damaged: {}", .chunks.join("; "))]
    Damaged {
        /// Which copy.
        name: Name,
        /// Which chunks, and what is wrong with each.
        chunks: Vec<String>,
    },
    /// The chunks are as they were written, and still make no database: a bug of whoever wrote them.
    #[error("the chunks of {name} are as they were written, and make no database: {reason}")]
    NoDatabase {
        /// Which copy.
        name: Name,
        /// Why.
        reason: String,
    },
}

impl CopyError {
    /// Whether the copy is bad, and not the way to it.
    pub fn is_damage(&self) -> bool {
        !matches!(
            self,
            CopyError::Remote(_) | CopyError::None { .. } | CopyError::Manifest(ManifestError::Newer { .. })
        )
    }
}

impl Remote {
    /// The manifest of a copy that is whole.
    pub fn whole(&self, name: Name) -> Result<Manifest, CopyError> {
        let none = || CopyError::None { name, url: self.url().to_owned() };
        Ok(self.manifest(name)?.ok_or_else(none)??)
    }

    /// One chunk, checked; or what is wrong with it.
    pub(super) fn chunk(&self, name: Name, index: usize, expected: ChunkFields) -> Result<Checked, RemoteError> {
        let file = manifest::chunk_file(index);
        let Some(bytes) = self.get(&self.chunk_path(name, index))? else {
            return Ok(Err(format!("chunk {file} is missing")));
        };
        let found = ChunkFields::of(&bytes);
        Ok(if found.bytes != expected.bytes {
            Err(format!("chunk {file} has {} bytes, not {}", found.bytes, expected.bytes))
        } else if found.crc32c != expected.crc32c {
            Err(format!(
                "chunk {file} is not what was written: its checksum is {:08x}, not {:08x}",
                found.crc32c, expected.crc32c
            ))
        } else {
            Ok(bytes)
        })
    }
}

pub(super) type Checked = Result<bytes::Bytes, String>;

/// Reads all of a copy, and builds its database in memory. Every chunk that is damaged is named.
pub fn verify(remote: &Remote, name: Name, mut progress: impl FnMut(u64)) -> Result<Manifest, CopyError> {
    let manifest = remote.whole(name)?;
    let bytes_max = (16 << 30).max(manifest.bytes.saturating_mul(MEMORY_FACTOR));
    let options = Options {
        keep_history: false,
        database_bytes_max: usize::try_from(bytes_max).unwrap_or(usize::MAX),
        ..Options::default()
    };
    let mut store = Store::in_memory(options);
    let (mut damaged, mut done) = (Vec::new(), 0);
    for (index, chunk) in manifest.chunks.iter().enumerate() {
        match remote.chunk(name, index, *chunk)? {
            Ok(bytes) if damaged.is_empty() => {
                let is_last = index + 1 == manifest.chunks.len();
                store.import(&bytes, is_last).map_err(|error| no_database(name, error))?;
            }
            Ok(_) => {}
            Err(reason) => damaged.push(reason),
        }
        done += chunk.bytes;
        progress(done);
    }
    if !damaged.is_empty() {
        return Err(CopyError::Damaged { name, chunks: damaged });
    }
    check_counts(name, &manifest, &store)?;
    Ok(manifest)
}

pub(super) fn no_database(name: Name, error: ImportError) -> CopyError {
    CopyError::NoDatabase { name, reason: error.to_string() }
}

/// What was imported is as much as the manifest says.
pub(super) fn check_counts(name: Name, manifest: &Manifest, store: &Store) -> Result<(), CopyError> {
    let found = (store.revision(), store.len() as u64, store.bytes());
    if found == (name.revision, manifest.rows, manifest.bytes) {
        return Ok(());
    }
    let (revision, rows, bytes) = found;
    let reason = format!(
        "they have revision {revision}, {rows} rows and {bytes} bytes, the manifest says {}, {} and {}",
        name.revision, manifest.rows, manifest.bytes
    );
    Err(CopyError::NoDatabase { name, reason })
}
