//! Segments as files of a real directory, read and written past the page cache.
//!
//! A segment is made ahead of need: zeros under a temporary name, synced, then renamed, and the directory synced
//! (rule L1). So a file under a segment's name is always whole, and a flush into it changes no file metadata. A segment
//! that was cut off is renamed to the next one as it is, and the directory synced. All of it
//! blocks for as long as the disk takes: it is for a helper thread, and for the time before the node serves.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use synod_ring::AlignedBuffer;

use crate::recovery::Storage;
use crate::types::SegmentId;
use crate::writer::Upkeep;

const PREFIX: &str = "wal-";
const SUFFIX: &str = ".log";
const TEMPORARY_SUFFIX: &str = ".log.new";

/// How much is zeroed at once: a log flush may have to wait for that. Then the disk is left alone for as long as it took.
const ZERO_BYTES: usize = 128 << 10;
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
    /// The disk is full, or the quota, or a file may not be that long.
    #[error("no room for {bytes} bytes at {}: {source}", path.display())]
    Full {
        /// The file.
        path: PathBuf,
        /// How long it was to be.
        bytes: u64,
        /// The kernel's answer.
        source: io::Error,
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
            DirectoryError::Full { source, .. } | DirectoryError::Io { source, .. } => source.kind(),
        };
        io::Error::new(kind, error)
    }
}

/// Whether there was no room: nothing is broken, and what was tried may succeed later.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge)
}

/// The path of a segment.
pub fn segment_path(directory: &Path, segment: SegmentId) -> PathBuf {
    directory.join(format!("{PREFIX}{:010}{SUFFIX}", segment.0))
}

/// Opens a segment for direct reading and writing.
pub fn open_segment(directory: &Path, segment: SegmentId) -> Result<File, DirectoryError> {
    open_direct(segment_path(directory, segment), OpenOptions::new().read(true).write(true))
}

/// Does what the log wants done to its files, durably; gives the segment that is ready for flushes now. Blocks.
pub fn carry_out(directory: &Path, upkeep: Upkeep, segment_bytes: u64) -> Result<Option<File>, DirectoryError> {
    match upkeep {
        Upkeep::Make(segment) => prepare_segment(directory, segment, segment_bytes)?,
        Upkeep::Recycle { from, to } => {
            make_whole(directory, from, segment_bytes)?;
            recycle_segment(directory, from, to)?;
        }
        Upkeep::Remove(segment) => {
            let path = segment_path(directory, segment);
            fs::remove_file(&path).map_err(io_error("removing", &path))?;
            sync_directory(directory)?;
        }
    }
    upkeep.readies().map(|segment| open_segment(directory, segment)).transpose()
}

/// A file that somebody has cut short gets its length back before it is used again; recovery would take it for damaged.
fn make_whole(directory: &Path, segment: SegmentId, segment_bytes: u64) -> Result<(), DirectoryError> {
    let path = segment_path(directory, segment);
    let length = fs::metadata(&path).map_err(io_error("looking at", &path))?.len();
    if length < segment_bytes {
        let file = open_segment(directory, segment)?;
        file.set_len(segment_bytes).and_then(|()| file.sync_all()).map_err(io_error("making whole", &path))?;
    }
    Ok(())
}

/// Gives a segment that was cut off the name of the next, durably.
pub fn recycle_segment(directory: &Path, from: SegmentId, to: SegmentId) -> Result<(), DirectoryError> {
    let (old, new) = (segment_path(directory, from), segment_path(directory, to));
    if new.try_exists().map_err(io_error("looking for", &new))? {
        return Err(io_error("recycling to", &new)(io::ErrorKind::AlreadyExists.into()));
    }
    fs::rename(&old, &new).map_err(io_error("renaming", &old))?;
    sync_directory(directory)
}

/// Makes a segment of zeros, durably, or leaves nothing. Blocks.
pub fn prepare_segment(directory: &Path, segment: SegmentId, segment_bytes: u64) -> Result<(), DirectoryError> {
    let path = segment_path(directory, segment);
    let temporary = directory.join(format!("{PREFIX}{:010}{TEMPORARY_SUFFIX}", segment.0));
    // A rename would silently replace a segment that is in use, and with it the log.
    if path.try_exists().map_err(io_error("looking for", &path))? {
        return Err(io_error("making", &path)(io::ErrorKind::AlreadyExists.into()));
    }
    let made = make_zeros(&temporary, segment_bytes);
    if made.is_err() {
        // What there is of it takes the room that others need. It may not even be there.
        let _ = fs::remove_file(&temporary);
    }
    made.map_err(|error| match error {
        DirectoryError::Io { path, source, .. } if is_full(&source) => {
            DirectoryError::Full { path, bytes: segment_bytes, source }
        }
        error => error,
    })?;
    fs::rename(&temporary, &path).map_err(io_error("renaming", &temporary))?;
    sync_directory(directory)
}

fn make_zeros(temporary: &Path, segment_bytes: u64) -> Result<(), DirectoryError> {
    let file = open_direct(temporary.to_owned(), OpenOptions::new().write(true).create(true).truncate(true))?;
    // A full disk says so here, before megabytes were written to it in vain.
    match rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, segment_bytes) {
        Ok(()) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => {}
        Err(error) => return Err(io_error("allocating", temporary)(error.into())),
    }
    let zeros = AlignedBuffer::zeroed(ZERO_BYTES);
    let mut offset = 0;
    while offset < segment_bytes {
        let (length, began) = ((segment_bytes - offset).min(zeros.len() as u64), Instant::now());
        file.write_all_at(&zeros[..length as usize], offset).map_err(io_error("zeroing", temporary))?;
        offset += length;
        std::thread::sleep(began.elapsed());
        if offset.is_multiple_of(ZERO_SYNC_BYTES) {
            file.sync_data().map_err(io_error("syncing", temporary))?;
        }
    }
    file.sync_all().map_err(io_error("syncing", temporary))
}

/// A log's directory as recovery reads it.
pub struct DirectoryStorage {
    directory: PathBuf,
    /// The one read last; recovery goes through them one by one.
    open: Option<(SegmentId, File)>,
    is_read_only: bool,
}

impl DirectoryStorage {
    /// Opens an existing directory, and removes what a crash has left of a segment being made.
    pub fn open(directory: &Path) -> Result<Self, DirectoryError> {
        for (path, name) in entries(directory)? {
            if name.starts_with(PREFIX) && name.ends_with(TEMPORARY_SUFFIX) {
                fs::remove_file(&path).map_err(io_error("removing", &path))?;
            }
        }
        remove_second_names(directory)?;
        // A process may have died between renaming and syncing: what we are about to see must also be what stays.
        sync_directory(directory)?;
        Ok(Self { directory: directory.to_owned(), open: None, is_read_only: false })
    }

    /// To look only: nothing is removed, and [`Storage::sync`] does nothing.
    pub fn open_read_only(directory: &Path) -> Result<Self, DirectoryError> {
        entries(directory)?;
        Ok(Self { directory: directory.to_owned(), open: None, is_read_only: true })
    }

    fn file(&mut self, segment: SegmentId) -> Result<&File, DirectoryError> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != segment) {
            self.open = None;
        }
        let (_, file) = match self.open.take() {
            Some(open) => self.open.insert(open),
            None if self.is_read_only => {
                let path = segment_path(&self.directory, segment);
                self.open.insert((segment, open_direct(path, OpenOptions::new().read(true))?))
            }
            None => self.open.insert((segment, open_segment(&self.directory, segment)?)),
        };
        Ok(file)
    }
}

impl Storage for DirectoryStorage {
    fn segments(&mut self) -> io::Result<Vec<SegmentId>> {
        Ok(entries(&self.directory)?.iter().filter_map(|(_, name)| segment_named(name)).collect())
    }

    fn segment_bytes(&mut self, segment: SegmentId) -> io::Result<u64> {
        Ok(self.file(segment)?.metadata()?.len())
    }

    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.file(segment)?.read_exact_at(into, offset)
    }

    fn sync(&mut self, segment: SegmentId) -> io::Result<()> {
        if self.is_read_only {
            return Ok(());
        }
        self.file(segment)?.sync_all()
    }
}

fn segment_named(name: &str) -> Option<SegmentId> {
    name.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?.parse().ok().map(SegmentId)
}

/// A power failure within a rename can leave both names where the file system has no journal. The file was cut off then
/// and is in use under neither; under two it would be recycled twice, and hold two segments at once.
fn remove_second_names(directory: &Path) -> Result<(), DirectoryError> {
    let mut seen = BTreeMap::new();
    let mut segments: Vec<_> =
        entries(directory)?.into_iter().filter_map(|(path, name)| Some((segment_named(&name)?, path))).collect();
    segments.sort_unstable();
    for (_, path) in segments {
        let metadata = fs::metadata(&path).map_err(io_error("looking at", &path))?;
        if let Some(other) = seen.insert((metadata.dev(), metadata.ino()), path) {
            fs::remove_file(&other).map_err(io_error("removing", &other))?;
        }
    }
    Ok(())
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
