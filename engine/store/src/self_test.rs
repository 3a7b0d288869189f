//! Does this file system do what a mapped snapshot leans on? (Rule S5.)
//!
//! The file under a private mapping is written past the cache, at places whose pages are private. That such a page
//! stays as it is, and that a page which is not private shows what was written, is so on ext4 and is no promise of
//! POSIX. So it is tried, on a file of its own in the same directory, each time a database is opened there.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::device::{Device, DirectFile};
use crate::mapping::{AlignedBuffer, Pages};
use crate::page::{Kind, PAGE_BYTES, PageNumber};

/// The file system is none that this works on.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// It would not do what was asked.
    #[error("trying out a mapped file in {}", directory.display())]
    File {
        /// Where.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It did something else.
    #[error("the file system of {} does not keep mapped pages as a snapshot needs it: {what}", directory.display())]
    Incoherent {
        /// Where.
        directory: PathBuf,
        /// What went wrong.
        what: &'static str,
    },
}

const PRIVATE: PageNumber = PageNumber(0);
const CLEAN: PageNumber = PageNumber(1);
/// Where in a page to look: behind any header.
const AT: usize = 100;

pub(crate) fn run(directory: &Path) -> Result<(), SelfTestError> {
    static TRIED: AtomicU64 = AtomicU64::new(0);
    let name = format!(".synod-self-test-{}-{}", std::process::id(), TRIED.fetch_add(1, Ordering::Relaxed));
    let path = directory.join(name);
    let tried = DirectFile::open(&path, true).and_then(|file| {
        // The file lives as long as it is open.
        fs::remove_file(&path)?;
        try_out(&file, &path)
    });
    match tried {
        Ok(Ok(())) => Ok(()),
        Ok(Err(what)) => Err(SelfTestError::Incoherent { directory: directory.to_owned(), what }),
        Err(source) => Err(SelfTestError::File { directory: directory.to_owned(), source }),
    }
}

fn try_out(file: &DirectFile, path: &Path) -> io::Result<Result<(), &'static str>> {
    let mut buffer = AlignedBuffer::zeroed(2 * PAGE_BYTES);
    let mut write = |byte: u8| {
        buffer.fill(byte);
        file.write_at(&buffer, 0)
    };
    write(1)?;
    let mut pages = Pages::of_file(&file.file, path, 2 * PAGE_BYTES, 1, PageNumber(2))?;
    let at = |pages: &Pages, page: PageNumber| pages.mapping().page(page).0[AT];
    if (at(&pages, PRIVATE), at(&pages, CLEAN)) != (1, 1) {
        return Ok(Err("the mapping does not show what was written before"));
    }
    pages.claim(PRIVATE, 1, Kind::Leaf);
    pages.page_mut(PRIVATE).0[AT] = 9;
    write(2)?;
    if at(&pages, PRIVATE) != 9 {
        return Ok(Err("a page changed in memory lost the change when the file was written beneath it"));
    }
    if at(&pages, CLEAN) != 2 {
        return Ok(Err("a page not changed in memory does not show what was written to the file"));
    }
    pages.give_back(&file.file, PRIVATE.0..PRIVATE.0 + 1)?;
    pages.trust(PRIVATE);
    if at(&pages, PRIVATE) != 2 {
        return Ok(Err("a page given back does not show what is in the file"));
    }
    Ok(Ok(()))
}
