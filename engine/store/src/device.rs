//! The file as snapshots are written to it: past the kernel's cache (rule S2).

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::page::{PAGE_BYTES, PageNumber};

/// Where a snapshot is written to. Buffers, offsets and lengths are whole pages.
///
/// There is one in production. A test has one that forgets what was not synced.
pub trait Device: Send + Sync {
    /// Writes all of it.
    ///
    /// # Errors
    ///
    /// As the device has it.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Makes what was written durable.
    ///
    /// # Errors
    ///
    /// As the device has it. What was written before may or may not be there then.
    fn sync(&self) -> io::Result<()>;

    /// Fills the buffer with what is on the device, not in a cache.
    ///
    /// # Errors
    ///
    /// As the device has it; also if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// By how much the file grows at once.
pub(crate) const GROW_PAGES: u32 = (64 << 20) / PAGE_BYTES as u32;

/// The file, opened with O_DIRECT.
#[derive(Debug)]
pub(crate) struct DirectFile {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    /// Held while it grows: two that did so at once could make it shorter, under a mapping.
    growing: Mutex<()>,
    pages: AtomicU32,
}

impl DirectFile {
    pub(crate) fn open(path: &Path, create: bool) -> io::Result<DirectFile> {
        let direct = rustix::fs::OFlags::DIRECT.bits().cast_signed();
        let file = OpenOptions::new().read(true).write(true).create_new(create).custom_flags(direct).open(path)?;
        let pages = file.metadata()?.len() / PAGE_BYTES as u64;
        let pages = AtomicU32::new(u32::try_from(pages).unwrap_or(u32::MAX));
        Ok(DirectFile { file, path: path.to_owned(), growing: Mutex::new(()), pages })
    }

    /// One past the last place that the file has.
    pub(crate) fn end(&self) -> PageNumber {
        PageNumber(self.pages.load(Ordering::Acquire))
    }

    /// Makes it at least so long. It never becomes shorter: `end` is behind every place that was ever taken, so behind all that
    /// snapshots wrote. The new part is a hole: no block of the disk is taken yet, so a full disk is met by the snapshot, which may
    /// fail, and not by the change, which must not.
    pub(crate) fn grow(&self, end: PageNumber) -> io::Result<()> {
        let _growing = self.growing.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if self.end() < end {
            self.file.set_len(end.offset() as u64)?;
            self.pages.store(end.0, Ordering::Release);
        }
        Ok(())
    }
}

impl Device for DirectFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
}
