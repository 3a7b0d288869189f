//! Segments as files of a real directory, read and written past the page cache.
//!
//! A segment is made ahead of need: zeros under a temporary name, synced, then renamed, and the directory synced
//! (rule L1). So a file under a segment's name is always whole, and a flush into it changes no file metadata. All of it
//! blocks for as long as the disk takes: it is for a helper thread, and for the time before the node serves.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use synod_ring::AlignedBuffer;

use crate::recovery::Storage;
use crate::types::SegmentId;

const PREFIX: &str = "wal-";
const SUFFIX: &str = ".log";
const TEMPORARY_SUFFIX: &str = ".log.new";

/// How much is zeroed at once.
const ZERO_BYTES: usize = 1 << 20;
/// How much is zeroed between syncs: what the device is given to do is what a log flush may have to wait for.
const ZERO_SYNC_BYTES: u64 = 4 << 20;

/// What went wrong with a log's directory.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The file system has no direct I/O (tmpfs, some network and overlay file systems).
    #[error("the file system of {} refuses O_DIRECT; the log needs a directory on one that has it, like ext4 or xfs", path.display())]
    NoDirect {
        /// The file.
        path: PathBuf,
    },
    /// Anything else.
    #[error("{doing} {}", path.display())]
    Io {
        /// What we were doing.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
}

impl From<DirectoryError> for io::Error {
    fn from(error: DirectoryError) -> Self {
        let kind = match &error {
            DirectoryError::NoDirect { .. } => io::ErrorKind::Unsupported,
            DirectoryError::Io { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}

/// The path of a segment.
pub fn segment_path(directory: &Path, segment: SegmentId) -> PathBuf {
    directory.join(format!("{PREFIX}{:010}{SUFFIX}", segment.0))
}

/// Opens a segment for direct reading and writing.
pub fn open_segment(directory: &Path, segment: SegmentId) -> Result<File, DirectoryError> {
    open_direct(segment_path(directory, segment), OpenOptions::new().read(true).write(true))
}

/// Makes a segment of zeros, durably. Blocks; when it is done, the log may be told `segment_ready`.
pub fn prepare_segment(directory: &Path, segment: SegmentId, segment_bytes: u64) -> Result<(), DirectoryError> {
    let path = segment_path(directory, segment);
    let temporary = directory.join(format!("{PREFIX}{:010}{TEMPORARY_SUFFIX}", segment.0));
    // A rename would silently replace a segment that is in use, and with it the log.
    if path.try_exists().map_err(io_error("looking for", &path))? {
        return Err(io_error("making", &path)(io::ErrorKind::AlreadyExists.into()));
    }
    let file = open_direct(temporary.clone(), OpenOptions::new().write(true).create(true).truncate(true))?;
    let zeros = AlignedBuffer::zeroed(ZERO_BYTES);
    let mut offset = 0;
    while offset < segment_bytes {
        let length = (segment_bytes - offset).min(zeros.len() as u64);
        file.write_all_at(&zeros[..length as usize], offset).map_err(io_error("zeroing", &temporary))?;
        offset += length;
        if offset.is_multiple_of(ZERO_SYNC_BYTES) {
            file.sync_data().map_err(io_error("syncing", &temporary))?;
        }
    }
    file.sync_all().map_err(io_error("syncing", &temporary))?;
    fs::rename(&temporary, &path).map_err(io_error("renaming", &temporary))?;
    sync_directory(directory)
}

/// A log's directory as recovery reads it.
pub struct DirectoryStorage {
    directory: PathBuf,
    /// The one read last; recovery goes through them one by one.
    open: Option<(SegmentId, File)>,
}

impl DirectoryStorage {
    /// Opens an existing directory, and removes what a crash has left of a segment being made.
    pub fn open(directory: &Path) -> Result<Self, DirectoryError> {
        for (path, name) in entries(directory)? {
            if name.starts_with(PREFIX) && name.ends_with(TEMPORARY_SUFFIX) {
                fs::remove_file(&path).map_err(io_error("removing", &path))?;
            }
        }
        // A process may have died between renaming and syncing: what we are about to see must also be what stays.
        sync_directory(directory)?;
        Ok(Self { directory: directory.to_owned(), open: None })
    }

    fn file(&mut self, segment: SegmentId) -> Result<&File, DirectoryError> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.open = None;
        }
        let (_, file) = match self.open.take() {
            Some(open) => self.open.insert(open),
            None => self.open.insert((segment, open_segment(&self.directory, segment)?)),
        };
        Ok(file)
    }
}

impl Storage for DirectoryStorage {
    fn segments(&mut self) -> io::Result<Vec<SegmentId>> {
        let number = |name: &str| name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok().map(SegmentId);
        Ok(entries(&self.directory)?.iter().filter_map(|(_, name)| number(name)).collect())
    }

    fn segment_bytes(&mut self, segment: SegmentId) -> io::Result<u64> {
        Ok(self.file(segment)?.metadata()?.len())
    }

    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file(segment)?.read_exact_at(into, offset)
    }

    fn sync(&mut self, segment: SegmentId) -> io::Result<()> {
        self.file(segment)?.sync_all()
    }
}

fn open_direct(path: PathBuf, options: &mut OpenOptions) -> Result<File, DirectoryError> {
    match options.custom_flags(libc::O_DIRECT).open(&path) {
        Ok(file) => Ok(file),
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(DirectoryError::NoDirect { path }),
        Err(source) => Err(DirectoryError::Io { doing: "opening", path, source }),
    }
}

fn sync_directory(directory: &Path) -> Result<(), DirectoryError> {
    File::open(directory).and_then(|file| file.sync_all()).map_err(io_error("syncing", directory))
}

/// The files with names that could be ours; other names are not our business.
fn entries(directory: &Path) -> Result<Vec<(PathBuf, String)>, DirectoryError> {
    let failed = || io_error("listing", directory);
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed())? {
        let entry = entry.map_err(failed())?;
        if let Ok(name) = entry.file_name().into_string() {
            found.push((entry.path(), name));
        }
    }
    Ok(found)
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DirectoryError {
    let path = path.to_owned();
    move |source| DirectoryError::Io { doing, path, source }
}
