//! Freezing, writing out, and what then is durable.
//!
//! A frozen image is written by another thread while the owner goes on: only what is new since the last snapshot, to
//! places that neither kept snapshot uses, so that a crash at any moment leaves both (rule S1). In this order: pages
//! and the set of all pages; sync; read all of it back; the meta block; sync; read it back (rule S2). Nothing is told
//! before the end.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::Store;
use crate::bitmap::{Bitmap, CHUNK_PAGES};
use crate::damage;
use crate::device::{Device, DirectFile};
use crate::mapping::{AlignedBuffer, Mapping};
use crate::meta::{HANDLE_BYTES_MAX, Meta, Slot};
use crate::page::{HEADER_BYTES, Kind, PAGE_BYTES, Page, PageNumber};
use crate::space::Pin;

/// What is copied together, at most: more than any value takes.
const RUN_PAGES: u32 = (2 << 20) / PAGE_BYTES as u32;
const _: () = assert!(RUN_PAGES as usize * PAGE_BYTES >= crate::VALUE_BYTES_MAX + PAGE_BYTES);

/// What the device is given at once, at most, and what is copied before it is: whoever else needs the device, or the processor, waits
/// no longer than that takes. (A value is copied whole.)
const WRITE_BYTES_MAX: usize = 256 << 10;
const WRITE_PAGES: u32 = (WRITE_BYTES_MAX / PAGE_BYTES) as u32;

/// How fast the disk is used, reading back included, and whether to go on at all: the same disk takes the log.
#[derive(Clone, Debug, Default)]
pub struct Pacing {
    /// None: as fast as the device takes it.
    pub bytes_per_second: Option<u64>,
    /// Set it, and the work ends, undone, before it next touches the disk.
    pub cancel: Arc<AtomicBool>,
}

impl Pacing {
    /// Sleeps until so many bytes were due, or it is cancelled.
    pub fn sleep(&self, began: Instant, bytes: u64) {
        /// So that what is cancelled ends soon, however slow it was to be.
        const NAP: Duration = Duration::from_millis(50);
        let Some(rate) = self.bytes_per_second else { return };
        let due = Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64);
        while !self.cancel.load(Ordering::Relaxed) && began.elapsed() < due {
            std::thread::sleep(due.saturating_sub(began.elapsed()).min(NAP));
        }
    }
}

/// Why a snapshot was not made. The kept ones are as they were.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Its caller said so.
    #[error("the snapshot was cancelled")]
    Cancelled,
    /// The store is in memory: there is no file.
    #[error("a database in memory has no file for a snapshot")]
    NoFile,
    /// A write failed.
    #[error("writing {bytes} bytes of a snapshot at {offset}")]
    Write {
        /// Where.
        offset: u64,
        /// How much.
        bytes: usize,
        /// Why.
        source: io::Error,
    },
    /// A sync failed. What was written is never counted on.
    #[error("syncing a snapshot")]
    Sync(#[source] io::Error),
    /// Reading back failed.
    #[error("reading a snapshot back at {offset}")]
    ReadBack {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// What was read back is not what was written.
    #[error("what was read back at {offset} is not what was written there")]
    Unverified {
        /// Where.
        offset: u64,
    },
}

/// A database frozen for a snapshot. It goes to the thread that writes it out.
#[derive(Debug)]
pub struct Frozen {
    mapping: Arc<Mapping>,
    /// The set of its pages, those of the set itself included.
    pin: Arc<Pin>,
    meta: Meta,
    slot: Slot,
    fresh: Bitmap,
    device: Option<Arc<DirectFile>>,
}

/// A snapshot that is on the device, verified. Tell the store: [`Store::snapshot_done`].
#[derive(Debug)]
#[must_use]
pub struct Durable {
    generation: u64,
    /// How many bytes were written.
    pub bytes: u64,
}

/// What the store remembers of a snapshot on its way.
#[derive(Debug)]
pub(crate) struct InFlight {
    /// Until the store knows how it ended: even written out it is nothing yet, and its places must not be used again.
    pin: Arc<Pin>,
    fresh: Bitmap,
}

impl Store {
    /// Freezes the database for a snapshot. Takes constant time, or nearly.
    ///
    /// `handle` is for the caller: what ties the snapshot to its log. It comes back from [`Store::open`].
    ///
    /// # Panics
    ///
    /// If a snapshot is on its way, or the handle is longer than [`HANDLE_BYTES_MAX`].
    pub fn freeze_snapshot(&mut self, handle: &[u8]) -> Frozen {
        assert!(self.in_flight.is_none(), "one snapshot at a time");
        assert!(handle.len() <= HANDLE_BYTES_MAX, "a handle of {} bytes", handle.len());
        // Its own pages are among those that it speaks of, and may be the ones that need a chunk more.
        let pages = self.space.end().0 as usize / CHUNK_PAGES + 2;
        let bitmap = (self.space.reserve_run(pages as u32), pages as u32);
        let fresh = self.space.take_fresh();
        let pin = self.space.freeze_snapshot(bitmap.0.0..bitmap.0.0 + bitmap.1);
        assert!(pin.pages.chunks().count() <= pages);
        let meta = Meta {
            generation: pin.generation,
            image: self.image,
            end: pin.pages.end().max(PageNumber::FIRST),
            bitmap,
            identity: self.identity.clone(),
            handle: handle.to_vec(),
        };
        self.in_flight = Some(InFlight { pin: Arc::clone(&pin), fresh: fresh.clone() });
        let (mapping, device) = (self.space.share(), self.space.file());
        Frozen { mapping, pin, meta, slot: self.slot.other(), fresh, device }
    }

    /// Whether a snapshot is on its way.
    #[must_use]
    pub fn is_snapshot_in_flight(&self) -> bool {
        self.in_flight.is_some()
    }

    /// A snapshot is durable: it and the one before are kept from here on, and what only older ones used is free.
    ///
    /// # Panics
    ///
    /// If it is not the one on its way.
    #[expect(clippy::needless_pass_by_value, reason = "it can be told once")]
    pub fn snapshot_done(&mut self, durable: Durable) {
        let in_flight = self.in_flight.take().expect("a snapshot is on its way");
        assert_eq!(durable.generation, in_flight.pin.generation);
        self.slot = self.slot.other();
        let pages = in_flight.pin.pages.clone();
        drop(in_flight);
        self.space.keep(pages);
    }

    /// A snapshot was not made: the next one writes its pages too.
    ///
    /// # Panics
    ///
    /// If none is on its way.
    pub fn snapshot_failed(&mut self) {
        let in_flight = self.in_flight.take().expect("a snapshot is on its way");
        self.space.put_fresh_back(&in_flight.fresh);
    }

    /// Gives the memory of about so many bytes of pages back to the kernel, pages that the newest snapshot has in the
    /// file, and returns how many bytes that were. Nothing while a view lives or a snapshot is on its way.
    ///
    /// # Errors
    ///
    /// As the kernel has it.
    pub fn give_back(&mut self, bytes_max: u64) -> io::Result<u64> {
        self.space.give_back(bytes_max)
    }
}

impl Frozen {
    /// The revision of the last change in it.
    #[must_use]
    pub fn revision(&self) -> crate::Revision {
        self.meta.image.revision
    }

    /// Writes it to the store's file. Blocks: call it in a thread of its own.
    ///
    /// # Errors
    ///
    /// If it is not durable and verified at the end. Say so to the store: [`Store::snapshot_failed`].
    pub fn write_out(self, pacing: &Pacing) -> Result<Durable, SnapshotError> {
        let device = self.device.clone().ok_or(SnapshotError::NoFile)?;
        self.write_out_to(&*device, pacing)
    }

    /// Writes it to this device, as [`write_out`](Frozen::write_out) does to the file: for tests of devices that fail.
    ///
    /// # Errors
    ///
    /// As `write_out`.
    pub fn write_out_to(self, device: &dyn Device, pacing: &Pacing) -> Result<Durable, SnapshotError> {
        let mut writer = Writer::new(device, pacing);
        let mut pages = self.fresh.clone();
        pages.keep_only(&self.pin.pages);
        let mut next = pages.next(PageNumber(0));
        while let Some(first) = next {
            let page = self.mapping.page(first);
            let count = damage::pages_of(page).expect("a page of our own in memory");
            writer.push(first, self.mapping.run(first, count))?;
            next = pages.next(PageNumber(first.0 + count));
        }
        self.push_bitmap(&mut writer)?;
        writer.write()?;
        device.sync().map_err(SnapshotError::Sync)?;
        writer.verify()?;

        let meta = self.meta.encode(self.slot);
        writer.push_as_it_is(self.slot.page(), &meta.0)?;
        writer.write()?;
        device.sync().map_err(SnapshotError::Sync)?;
        writer.verify()?;
        Ok(Durable { generation: self.meta.generation, bytes: writer.bytes })
    }

    fn push_bitmap(&self, writer: &mut Writer<'_>) -> Result<(), SnapshotError> {
        let (first, count) = self.meta.bitmap;
        let mut chunks = self.pin.pages.chunks();
        for index in 0..count {
            let mut page = Page::empty(Kind::Bitmap, self.meta.generation);
            page.set_link(index);
            let words = page.0[HEADER_BYTES..].as_chunks_mut::<8>().0;
            for (to, word) in words.iter_mut().zip(chunks.next().into_iter().flatten()) {
                *to = word.to_le_bytes();
            }
            writer.push(PageNumber(first.0 + index), &page.0)?;
        }
        Ok(())
    }
}

/// A run that was written, to be read back.
struct Written {
    offset: u64,
    bytes: usize,
    checksum: u32,
}

/// Collects pages that lie next to each other, and writes them at once.
struct Writer<'a> {
    device: &'a dyn Device,
    pacing: &'a Pacing,
    began: Instant,
    /// Pages that were copied here, from this one on.
    buffer: AlignedBuffer,
    first: PageNumber,
    pages: u32,
    written: Vec<Written>,
    bytes: u64,
    /// Read back, too.
    moved: u64,
}

impl<'a> Writer<'a> {
    fn new(device: &'a dyn Device, pacing: &'a Pacing) -> Writer<'a> {
        Writer {
            device,
            pacing,
            began: Instant::now(),
            buffer: AlignedBuffer::zeroed(RUN_PAGES as usize * PAGE_BYTES),
            first: PageNumber::NONE,
            pages: 0,
            written: Vec::new(),
            bytes: 0,
            moved: 0,
        }
    }

    /// Copies a page, or a value's pages, and sets the checksum in the copy: memory stays as readers see it.
    fn push(&mut self, number: PageNumber, bytes: &[u8]) -> Result<(), SnapshotError> {
        let copy = self.push_as_it_is(number, bytes)?;
        let checksum = Page::checksum(number, copy);
        copy[..4].copy_from_slice(&checksum.to_le_bytes());
        Ok(())
    }

    fn push_as_it_is(&mut self, number: PageNumber, bytes: &[u8]) -> Result<&mut [u8], SnapshotError> {
        let pages = (bytes.len() / PAGE_BYTES) as u32;
        if number.0 != self.first.0 + self.pages || self.pages >= WRITE_PAGES || self.pages + pages > RUN_PAGES {
            self.write()?;
            self.first = number;
        }
        let copy = &mut self.buffer[self.pages as usize * PAGE_BYTES..][..bytes.len()];
        copy.copy_from_slice(bytes);
        self.pages += pages;
        Ok(copy)
    }

    fn write(&mut self) -> Result<(), SnapshotError> {
        if self.pages == 0 {
            return Ok(());
        }
        let bytes = &self.buffer[..self.pages as usize * PAGE_BYTES];
        let offset = self.first.offset() as u64;
        for (part, offset) in bytes.chunks(WRITE_BYTES_MAX).zip((offset..).step_by(WRITE_BYTES_MAX)) {
            self.pace()?;
            let bytes = part.len();
            let written = self.device.write_at(part, offset);
            written.map_err(|source| SnapshotError::Write { offset, bytes, source })?;
            self.written.push(Written { offset, bytes, checksum: crc32c::crc32c(part) });
            self.bytes += bytes as u64;
            self.moved += bytes as u64;
        }
        self.first = PageNumber(self.first.0 + self.pages);
        self.pages = 0;
        Ok(())
    }

    /// Reads back what was written since this was last called.
    fn verify(&mut self) -> Result<(), SnapshotError> {
        for Written { offset, bytes, checksum } in std::mem::take(&mut self.written) {
            let buffer = &mut self.buffer[..bytes];
            self.device.read_at(buffer, offset).map_err(|source| SnapshotError::ReadBack { offset, source })?;
            if crc32c::crc32c(buffer) != checksum {
                return Err(SnapshotError::Unverified { offset });
            }
            self.moved += bytes as u64;
            self.pace()?;
        }
        Ok(())
    }

    /// Sleeps until what was written so far was due.
    fn pace(&self) -> Result<(), SnapshotError> {
        self.pacing.sleep(self.began, self.moved);
        if self.pacing.cancel.load(Ordering::Relaxed) { Err(SnapshotError::Cancelled) } else { Ok(()) }
    }
}
