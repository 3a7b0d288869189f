//! Copies of snapshots in another place: a directory (of another disk, or a mounted share), or an S3-compatible bucket.
//!
//! | module | what it is |
//! |---|---|
//! | [`manifest`] | what a copy says of itself; written last, so that it stands for a whole one |
//! | [`save`] | from a frozen database to a copy |
//! | [`verify`] | reading a copy back, every byte of it |
//! | [`restore`] | from a copy to the directories of a whole new cell, under an identity of its own |
//! | [`copies`] | the thread of a replica that makes copies: when it is asked to, and by its schedule |
//!
//! The library behind this is asynchronous; each [`Remote`] has a small runtime of its own, for the thread that owns it and
//! nobody else. None of this is the hot core's.
//!
#![doc = include_str!("../docs/remote.md")]

pub mod copies;
pub mod manifest;
pub mod restore;
pub mod save;
pub mod verify;

use std::path::{Path as FilePath, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};

pub use manifest::{Manifest, ManifestError, Name};

/// Why the place of the copies did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// It is no URL of a place.
    #[error("{url:?} is no place for copies: {reason}")]
    Url {
        /// What was said.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A directory that is not there.
    #[error(
        "there is no directory {}: make it first. (It is not made here, so that a disk that is not mounted is noticed)",
        .0.display()
    )]
    NoDirectory(PathBuf),
    /// The place exists and failed.
    #[error("{doing} {what}: {source}")]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// To what.
        what: String,
        /// Why it failed.
        source: object_store::Error,
    },
    /// The runtime.
    #[error("cannot set up what talks to {url}: {source}")]
    Runtime {
        /// Which place.
        url: String,
        /// Why.
        source: std::io::Error,
    },
}

/// The kinds of places, by how they are written.
enum Place<'a> {
    Directory(&'a FilePath),
    Bucket(&'a str),
}

/// What a URL names, without touching it.
fn place(url: &str) -> Result<Place<'_>, RemoteError> {
    let error = |reason: &str| Err(RemoteError::Url { url: url.to_owned(), reason: reason.to_owned() });
    match url.split_once("://") {
        Some(("file", path)) if path.starts_with('/') => Ok(Place::Directory(FilePath::new(path))),
        Some(("file", _)) => error("after file:// comes an absolute path, as in file:///mnt/copies"),
        Some(("s3", rest)) if rest.is_empty() || rest.starts_with('/') => error("after s3:// comes a bucket"),
        Some(("s3", _)) if !cfg!(feature = "s3") => {
            error("this build knows directories only; build synod with `--features s3` for buckets")
        }
        Some(("s3", rest)) => Ok(Place::Bucket(rest)),
        Some((scheme, _)) => error(&format!("{scheme} is not known; say a path, file:///a/path or s3://bucket/prefix")),
        None if FilePath::new(url).is_absolute() => Ok(Place::Directory(FilePath::new(url))),
        None => error("a path has to be absolute: whoever writes there may run somewhere else than you"),
    }
}

/// Says what is wrong with a URL, as far as that can be seen without touching the place.
pub fn check_url(url: &str) -> Result<(), RemoteError> {
    place(url).map(|_| ())
}

/// A place where copies are kept, and this thread's way to it.
pub struct Remote {
    url: String,
    store: Arc<dyn ObjectStore>,
    /// Below this part of the bucket; empty for a directory, which is all of its store.
    prefix: Path,
    runtime: tokio::runtime::Runtime,
}

/// What is directly below a part of the place.
struct Listing {
    parts: Vec<Path>,
    objects: Vec<Path>,
    /// When the last of the objects was written, in milliseconds since 1970; 0 without any.
    written_ms: u64,
}

impl Remote {
    /// The place that a URL names: an absolute path, `file:///a/path`, or `s3://bucket/prefix` (whose credentials, region and
    /// endpoint are in the environment's `AWS_*`).
    pub fn open(url: &str) -> Result<Self, RemoteError> {
        let (store, prefix): (Arc<dyn ObjectStore>, Path) = match place(url)? {
            Place::Directory(path) => {
                if !path.is_dir() {
                    return Err(RemoteError::NoDirectory(path.to_owned()));
                }
                let failed = |source| RemoteError::Failed { doing: "opening", what: url.to_owned(), source };
                let store = LocalFileSystem::new_with_prefix(path).map_err(failed)?;
                // A manifest says that the chunks are there: after a power cut, too.
                (Arc::new(store.with_fsync(true).with_automatic_cleanup(true)), Path::default())
            }
            Place::Bucket(rest) => bucket(url, rest)?,
        };
        // A directory's files are written by a thread of the runtime's; one is enough, as chunk follows chunk.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(1)
            .build()
            .map_err(|source| RemoteError::Runtime { url: url.to_owned(), source })?;
        Ok(Self { url: url.to_owned(), store, prefix, runtime })
    }

    /// As it was said.
    pub fn url(&self) -> &str {
        &self.url
    }

    fn path(&self, parts: &[&str]) -> Path {
        parts.iter().fold(self.prefix.clone(), |path, part| path.join(*part))
    }

    fn failed(&self, doing: &'static str, path: &Path) -> impl FnOnce(object_store::Error) -> RemoteError {
        let what = format!("{path} in {}", self.url);
        move |source| RemoteError::Failed { doing, what, source }
    }

    fn put(&self, path: &Path, bytes: Vec<u8>) -> Result<(), RemoteError> {
        let put = self.store.put(path, bytes.into());
        self.runtime.block_on(put).map(|_| ()).map_err(self.failed("writing", path))
    }

    /// What it holds; `None`: there is no such object.
    fn get(&self, path: &Path) -> Result<Option<Bytes>, RemoteError> {
        let get = async { self.store.get(path).await?.bytes().await };
        match self.runtime.block_on(get) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(self.failed("reading", path)(error)),
        }
    }

    fn delete(&self, path: &Path) -> Result<(), RemoteError> {
        match self.runtime.block_on(self.store.delete(path)) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.failed("removing", path)(error)),
        }
    }

    fn list(&self, path: &Path) -> Result<Listing, RemoteError> {
        let prefix = (!path.as_ref().is_empty()).then_some(path);
        let listed = self.runtime.block_on(self.store.list_with_delimiter(prefix));
        let listed = listed.map_err(self.failed("listing", path))?;
        let written = listed.objects.iter().map(|object| object.last_modified.timestamp_millis()).max();
        let written_ms = written.and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0);
        let objects = listed.objects.into_iter().map(|object| object.location).collect();
        Ok(Listing { parts: listed.common_prefixes, objects, written_ms })
    }

    /// The names of all copies of this cell (or of every one) that were begun, by cell, the oldest first. What others keep in the
    /// same place is passed over.
    pub fn names(&self, cell: Option<u128>) -> Result<Vec<Name>, RemoteError> {
        let cells = match cell {
            Some(cell) => vec![self.path(&[&manifest::cell_text(cell)])],
            None => self.list(&self.prefix)?.parts,
        };
        let mut names = Vec::new();
        for cell in cells.iter().filter(|path| path.filename().is_some_and(|name| manifest::parse_cell(name).is_some()))
        {
            for copy in self.list(cell)?.parts {
                let parts = (cell.filename().unwrap_or_default(), copy.filename().unwrap_or_default());
                names.extend(Name::parse(&format!("{}/{}", parts.0, parts.1)));
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// What a copy says of itself; `None`: it is not whole, because it is being made or was given up.
    pub fn manifest(&self, name: Name) -> Result<Option<Result<Manifest, ManifestError>>, RemoteError> {
        let bytes = self.get(&self.manifest_path(name))?;
        Ok(bytes.map(|bytes| Manifest::decode(&bytes, name)))
    }

    /// When the last part of a copy was written, in milliseconds since 1970, by the place's clock.
    pub fn last_written_ms(&self, name: Name) -> Result<u64, RemoteError> {
        Ok(self.list(&self.folder(name))?.written_ms)
    }

    fn folder(&self, name: Name) -> Path {
        self.path(&[&manifest::cell_text(name.cell), &name.folder()])
    }

    fn manifest_path(&self, name: Name) -> Path {
        self.folder(name).join(manifest::FILE)
    }

    fn chunk_path(&self, name: Name, index: usize) -> Path {
        self.folder(name).join(manifest::chunk_file(index))
    }

    /// Removes a copy, what stands for all of it first: cut short, this leaves none that looks whole.
    pub fn remove(&self, name: Name) -> Result<(), RemoteError> {
        self.delete(&self.manifest_path(name))?;
        for object in self.list(&self.folder(name))?.objects {
            self.delete(&object)?;
        }
        Ok(())
    }
}

#[cfg(feature = "s3")]
fn bucket(url: &str, rest: &str) -> Result<(Arc<dyn ObjectStore>, Path), RemoteError> {
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    let prefix = Path::parse(prefix.trim_end_matches('/'))
        .map_err(|error| RemoteError::Url { url: url.to_owned(), reason: error.to_string() })?;
    let store = object_store::aws::AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .build()
        .map_err(|source| RemoteError::Failed { doing: "opening", what: url.to_owned(), source })?;
    Ok((Arc::new(store), prefix))
}

#[cfg(not(feature = "s3"))]
fn bucket(_: &str, _: &str) -> Result<(Arc<dyn ObjectStore>, Path), RemoteError> {
    unreachable!("a build without buckets refuses their URLs")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_name_no_place_are_refused_with_what_to_say() {
        for (url, says) in [
            ("copies", "absolute"),
            ("file://copies", "file:///mnt"),
            ("ftp://host/x", "ftp is not known"),
            ("s3:///x", "bucket"),
        ] {
            let error = check_url(url).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
        check_url("/mnt/copies").unwrap();
        check_url("file:///mnt/copies").unwrap();
        assert_eq!(check_url("s3://bucket/a/b").is_ok(), cfg!(feature = "s3"));
        let missing = Remote::open("/no/such/directory").map(|_| ()).unwrap_err().to_string();
        assert!(missing.contains("make it first"), "{missing}");
    }
}
