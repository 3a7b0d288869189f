//! Looking for rot before somebody needs the page.
//!
//! It reads the newest durable snapshot from the device, past memory: a page that is private in memory would hide what
//! has become of it in the file.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::Store;
use crate::damage::{self, Damage};
use crate::device::{Device, DirectFile};
use crate::mapping::AlignedBuffer;
use crate::page::{PAGE_BYTES, Page, PageNumber};
use crate::snapshot::Pacing;
use crate::space::Pin;

/// Why a scrub did not come to a good end.
#[derive(Debug, thiserror::Error)]
pub enum ScrubError {
    /// It found what it looked for.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// The device would not read.
    #[error("reading page {page} of {}", file.display())]
    Read {
        /// Which page.
        page: PageNumber,
        /// Of which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Its caller said so.
    #[error("the scrub was cancelled")]
    Cancelled,
}

/// The pages of the newest durable snapshot, to be looked at in another thread.
#[derive(Debug)]
pub struct Scrub {
    /// Their places are not used again meanwhile.
    pin: Arc<Pin>,
    file: Option<Arc<DirectFile>>,
}

impl Store {
    /// Prepares a look at every page of the newest durable snapshot.
    #[must_use]
    pub fn scrub(&mut self) -> Scrub {
        Scrub { pin: self.space.pin_newest(), file: self.space.file() }
    }
}

impl Scrub {
    /// Reads all of it from the device, and returns how many pages that were.
    ///
    /// # Errors
    ///
    /// At the first page that is damaged, or that cannot be read; or if it was cancelled.
    pub fn run(self, pacing: &Pacing) -> Result<u64, ScrubError> {
        let Some(file) = self.file else { return Ok(0) };
        let mut buffer = AlignedBuffer::zeroed(crate::VALUE_BYTES_MAX + PAGE_BYTES);
        let began = std::time::Instant::now();
        let mut count = 0;
        let mut next = self.pin.pages.next(PageNumber::FIRST);
        while let Some(first) = next {
            let read = |buffer: &mut [u8]| {
                file.read_at(buffer, first.offset() as u64).map_err(|source| ScrubError::Read {
                    page: first,
                    file: file.path.clone(),
                    source,
                })
            };
            read(&mut buffer[..PAGE_BYTES])?;
            let page = Page(buffer[..PAGE_BYTES].try_into().expect("a whole page"));
            let damaged = |(expected, found)| Damage { page: first, file: file.path.clone(), expected, found };
            let pages = damage::pages_of(&page).ok_or_else(|| damaged((None, None)))?;
            let bytes = &mut buffer[..pages as usize * PAGE_BYTES];
            if pages > 1 {
                read(bytes)?;
            }
            damage::check(first, bytes).map_err(damaged)?;
            count += u64::from(pages);
            if pacing.cancel.load(Ordering::Relaxed) {
                return Err(ScrubError::Cancelled);
            }
            pacing.sleep(began, count * PAGE_BYTES as u64);
            next = self.pin.pages.next(PageNumber(first.0 + pages));
        }
        Ok(count)
    }
}
