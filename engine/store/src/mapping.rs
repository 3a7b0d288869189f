//! The island: the pages in memory, and the one place of this crate with unsafe code.
//!
//! A [`Mapping`] is a private mapping of the snapshots' part of the file and of nothing behind it, or of nothing at
//! all: `database_bytes_max` of addresses, of which only what is touched takes memory. Its pages are read through
//! `&Mapping`, by the owner and by every view, in any thread. They are written through [`Pages`] alone, of which there
//! is one for a mapping, and only through `&mut`.
//!
//! What the unsafe code leans on:
//!
//!   1. [`Pages::page_mut`] and [`Pages::run_mut`] give out only pages of the current generation: it is asserted.
//!   2. A view reaches, from the roots it was given by [`Pages::freeze`], only pages of generations before the current
//!      one: freezing raises the generation, and a page refers to none that is newer than itself.
//!   3. A page gets the current generation in [`Pages::claim`] alone, which [`space`](crate::space) calls for places
//!      that no view uses (rule S1).
//!   4. The owner's own reads borrow [`Pages`], so none of them is alive when it is borrowed mutably.
//!   5. Of the file only what is a snapshot's is mapped: it is never shorter than that. It is written beneath the
//!      mapping only at places that no page of a view or of the owner is read from: each was written in memory first,
//!      or is the snapshot's own set, which is not read through the mapping (rule S5).
//!
//! From 1 to 4: memory that is written is not being read. So a `&[u8]` into a page stays what it was for as long as the
//! borrow of the view, or of the owner, that it came from. Within the crate these are promises of one module to
//! another; none of the types here is public.

#![allow(unsafe_code, reason = "the island")]

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::fs::File;
use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions, MmapRaw, UncheckedAdvice};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use crate::bitmap::Bitmap;
use crate::damage::{self, Damage};
use crate::page::{Kind, PAGE_BYTES, Page, PageNumber};

/// The pages in memory. See the module.
#[derive(Debug)]
pub(crate) struct Mapping {
    memory: MmapRaw,
    path: Option<PathBuf>,
    /// One bit a page: it came from the file, and nobody has looked at its checksum yet (rule S3). Empty in memory.
    unchecked: Box<[AtomicU64]>,
}

impl Mapping {
    /// The page of this number, as whoever asks may see it: see the module.
    pub(crate) fn page(&self, number: PageNumber) -> &Page {
        if self.is_unchecked(number) {
            self.check(number).unwrap_or_else(|found| damage::end(&found));
        }
        let page = self.page_as_it_is(number);
        fetch_slots(page);
        page
    }

    fn page_as_it_is(&self, number: PageNumber) -> &Page {
        let offset = number.offset();
        assert!(offset < self.memory.len());
        // SAFETY: within the mapping (a whole number of pages), aligned because the mapping is, and any bytes are a
        // `Page`. Nobody writes to it meanwhile: see the module, 1 to 4.
        unsafe { &*self.memory.as_ptr().add(offset).cast::<Page>() }
    }

    /// The bytes of pages that lie next to each other.
    pub(crate) fn run(&self, first: PageNumber, pages: u32) -> &[u8] {
        if self.is_unchecked(first) {
            self.check(first).unwrap_or_else(|found| damage::end(&found));
        }
        self.run_as_it_is(first, pages)
    }

    fn run_as_it_is(&self, first: PageNumber, pages: u32) -> &[u8] {
        let (offset, bytes) = (first.offset(), pages as usize * PAGE_BYTES);
        assert!(offset + bytes <= self.memory.len());
        // SAFETY: as in `page`.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr().add(offset), bytes) }
    }

    fn is_unchecked(&self, number: PageNumber) -> bool {
        let (word, bit) = (number.0 as usize / 64, number.0 % 64);
        self.unchecked.get(word).is_some_and(|word| word.load(Ordering::Relaxed) & (1 << bit) != 0)
    }

    /// Two threads may both find a page unchecked, and both look: the answer is the same.
    fn check(&self, number: PageNumber) -> Result<(), Damage> {
        let page = self.page_as_it_is(number);
        let pages =
            damage::pages_of(page).filter(|&pages| number.offset() + pages as usize * PAGE_BYTES <= self.memory.len());
        let file = || self.path.clone().unwrap_or_default();
        let Some(pages) = pages else {
            return Err(Damage { page: number, file: file(), expected: None, found: None });
        };
        damage::check(number, self.run_as_it_is(number, pages)).map_err(|(expected, found)| Damage {
            page: number,
            file: file(),
            expected,
            found,
        })?;
        self.set_unchecked(number, pages, false);
        Ok(())
    }

    fn set_unchecked(&self, first: PageNumber, pages: u32, unchecked: bool) {
        for number in first.0..first.0 + pages {
            let Some(word) = self.unchecked.get(number as usize / 64) else { return };
            let bit = 1 << (number % 64);
            match unchecked {
                true => word.fetch_or(bit, Ordering::Relaxed),
                false if word.load(Ordering::Relaxed) & bit == 0 => continue,
                false => word.fetch_and(!bit, Ordering::Relaxed),
            };
        }
    }

    /// Has the kernel find memory for these pages now, in the caller's time. Changes no byte of them.
    pub(crate) fn prefault(&self, pages: Range<u32>) -> io::Result<()> {
        let range = PageNumber(pages.start).offset()..PageNumber(pages.end).offset();
        self.memory.advise_range(Advice::PopulateWrite, range.start, range.len())
    }
}

/// Has the processor fetch the first slots while the header is still on its way: a search wants both, and finds neither
/// in the cache when the database is larger than that.
#[inline]
fn fetch_slots(page: &Page) {
    #[cfg(target_arch = "x86_64")]
    for line in 1..=FETCHED_LINES {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: a hint, which reads nothing as far as the program can see; the address is within the page.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(page).cast::<i8>().add(64 * line)) }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = page;
}

/// 40 slots' worth: of most pages half, or all.
const FETCHED_LINES: usize = 5;

/// The right to write pages. See the module.
#[derive(Debug)]
pub(crate) struct Pages {
    mapping: Arc<Mapping>,
    generation: u64,
    /// Below it pages are those of the file, unless they were written since. Above, where they were given back.
    backed: PageNumber,
}

impl Pages {
    /// Pages that are in no file. Takes addresses, and memory only where something is written.
    pub(crate) fn anonymous(bytes_max: usize) -> io::Result<Pages> {
        let memory = MmapOptions::new().len(bytes_max).no_reserve_swap().map_anon()?;
        Ok(Pages::new(memory, None, 1))
    }

    /// The pages of this file up to `backed`, and memory of no file behind them. Whoever opened it holds its lock:
    /// nobody else writes to it.
    ///
    /// What is behind is new: it will be in the file, but need not be read from there. A page of a hole of the file
    /// would be, by way of the kernel's cache, and that takes ten times as long as one of no file.
    pub(crate) fn of_file(
        file: &File,
        path: &Path,
        bytes_max: usize,
        generation: u64,
        backed: PageNumber,
    ) -> io::Result<Pages> {
        // SAFETY: the mapping is private, and the file beneath is written only by this process: see the module, 5.
        let memory = unsafe { MmapOptions::new().len(bytes_max).no_reserve_swap().map_copy(file)? };
        // Pages are needed one by one, in no order that the kernel could guess: what it read ahead would be in vain.
        memory.advise(Advice::Random)?;
        let rest = memory.len().saturating_sub(backed.offset());
        if rest > 0 {
            let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
            // SAFETY: the range is the end of the mapping that was made just now, and nobody has seen that yet.
            unsafe {
                let start = memory.as_ptr().cast_mut().add(backed.offset());
                mmap_anonymous(start.cast(), rest, ProtFlags::READ | ProtFlags::WRITE, flags)?;
            }
        }
        let mut pages = Pages::new(memory, Some(path), generation);
        pages.backed = backed;
        Ok(pages)
    }

    fn new(memory: MmapMut, path: Option<&Path>, generation: u64) -> Pages {
        let words = if path.is_some() { memory.len() / PAGE_BYTES / 64 + 1 } else { 0 };
        let unchecked = (0..words).map(|_| AtomicU64::new(0)).collect();
        let mapping = Mapping { memory: memory.into(), path: path.map(Path::to_owned), unchecked };
        Pages { mapping: Arc::new(mapping), generation, backed: PageNumber::NONE }
    }

    /// For readers.
    pub(crate) fn mapping(&self) -> &Mapping {
        &self.mapping
    }

    pub(crate) fn share(&self) -> Arc<Mapping> {
        Arc::clone(&self.mapping)
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn page_count_max(&self) -> u32 {
        u32::try_from(self.mapping.memory.len() / PAGE_BYTES).unwrap_or(u32::MAX)
    }

    /// Ends the generation, and returns it: none of its pages is written from here on.
    pub(crate) fn freeze(&mut self) -> u64 {
        self.generation += 1;
        self.generation - 1
    }

    /// Whether the page may be written in place.
    pub(crate) fn is_current(&self, number: PageNumber) -> bool {
        self.mapping.page(number).generation() == self.generation
    }

    pub(crate) fn page_mut(&mut self, number: PageNumber) -> &mut Page {
        assert!(self.is_current(number), "a frozen page was to be written");
        self.page_to_write(number)
    }

    fn page_to_write(&mut self, number: PageNumber) -> &mut Page {
        let offset = number.offset();
        assert!(offset < self.mapping.memory.len());
        // SAFETY: within the mapping and aligned, as in `Mapping::page`. It is of the current generation, so no view
        // has it, and `&mut self` makes this the owner's only borrow: see the module, 1 to 4.
        unsafe { &mut *self.mapping.memory.as_mut_ptr().add(offset).cast::<Page>() }
    }

    /// The bytes of pages that lie next to each other, claimed together.
    pub(crate) fn run_mut(&mut self, first: PageNumber, pages: u32) -> &mut [u8] {
        assert!(self.is_current(first), "a frozen page was to be written");
        let (offset, bytes) = (first.offset(), pages as usize * PAGE_BYTES);
        assert!(offset + bytes <= self.mapping.memory.len());
        // SAFETY: as in `page_to_write`; pages of one run are claimed, frozen and freed together.
        unsafe { std::slice::from_raw_parts_mut(self.mapping.memory.as_mut_ptr().add(offset), bytes) }
    }

    /// Makes these places the current generation's: an empty page at the first.
    ///
    /// Nobody may be using them (rule S1): it is on the caller, `space`, to know.
    pub(crate) fn claim(&mut self, first: PageNumber, pages: u32, kind: Kind) {
        self.mapping.set_unchecked(first, pages, false);
        let generation = self.generation;
        let page = self.page_to_write(first);
        // What was here before must not reach the file with it: the same history makes the same bytes.
        page.0.fill(0);
        page.clear(kind, generation);
    }

    /// Makes this place the current generation's copy of another page.
    pub(crate) fn claim_copy(&mut self, number: PageNumber, of: PageNumber) {
        assert_ne!(number, of);
        self.mapping.set_unchecked(number, 1, false);
        let generation = self.generation;
        let from = std::ptr::from_ref(self.mapping.page(of));
        let to = self.page_to_write(number);
        // SAFETY: two different pages of the mapping; `from` is one that may be read, `to` is the caller's.
        unsafe { std::ptr::copy_nonoverlapping(from, to, 1) };
        to.set_generation(generation);
    }

    /// From here on these pages are checked at their first touch.
    pub(crate) fn distrust(&mut self, pages: &Bitmap) {
        let words = pages.chunks().flatten();
        self.mapping.unchecked.iter().zip(words).for_each(|(bits, word)| bits.store(*word, Ordering::Relaxed));
    }

    /// This page may be anything: the self-test's.
    pub(crate) fn trust(&mut self, number: PageNumber) {
        self.mapping.set_unchecked(number, 1, false);
    }

    /// Whether a view, a snapshot or a chore has the mapping too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.mapping) > 1
    }

    /// Below it pages are the file's; a run behind it that is given back becomes a mapping of its own.
    pub(crate) fn backed(&self) -> PageNumber {
        self.backed
    }

    /// Gives the memory of these pages back to the kernel. They are in the file, durable and verified, and nobody but
    /// the owner reads this mapping now: views would see the checksum, which memory did not have, appear under them.
    ///
    /// # Panics
    ///
    /// If somebody else has the mapping.
    pub(crate) fn give_back(&mut self, file: &File, pages: Range<u32>) -> io::Result<()> {
        let mapping = Arc::get_mut(&mut self.mapping).expect("nobody reads what is given back");
        let (offset, bytes) = (PageNumber(pages.start).offset(), pages.len() * PAGE_BYTES);
        assert!(offset + bytes <= mapping.memory.len());
        mapping.set_unchecked(PageNumber(pages.start), pages.len() as u32, true);
        if pages.end <= self.backed.0 {
            // SAFETY: `Arc::get_mut` shows that no other borrow of this memory exists. The private copy is dropped, and
            // the file, which is as long as that, shows: the same page, with its checksum.
            return unsafe { mapping.memory.unchecked_advise_range(UncheckedAdvice::DontNeed, offset, bytes) };
        }
        let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
        // SAFETY: as above, and the range is within the mapping: memory of no file is replaced by the file.
        unsafe {
            let start = mapping.memory.as_mut_ptr().add(offset);
            mmap(start.cast(), bytes, ProtFlags::READ | ProtFlags::WRITE, flags, file, offset as u64)?;
        }
        Ok(())
    }
}

/// From here on the process ends with this status when a page of a mapped file cannot be read (SIGBUS), and says so. A change of the
/// tree cannot be half done, so there is nothing else to do. `file` says which database it is; there is one in a process.
pub fn end_on_unreadable_pages(file: &Path, status: i32) -> io::Result<()> {
    let words = format!(
        "synod-store: a page of {} cannot be read: its file was cut short, or its disk fails. If the disk is sound, start again: \
         the database is made anew\n",
        file.display()
    );
    let end = move || {
        // Who cannot be told is not told: the status says it too.
        let _ = rustix::io::write(rustix::stdio::stderr(), words.as_bytes());
        signal_hook::low_level::exit(status)
    };
    // SAFETY: a handler may write and end the process, and does nothing else: it allocates nothing and takes no lock.
    unsafe { signal_hook::low_level::register(signal_hook::consts::SIGBUS, end) }.map(drop)
}

/// Memory that O_DIRECT accepts: whole pages at a page's boundary. Zeroed; freed when dropped.
pub(crate) struct AlignedBuffer {
    start: NonNull<u8>,
    bytes: usize,
}

impl AlignedBuffer {
    pub(crate) fn zeroed(bytes: usize) -> AlignedBuffer {
        let bytes = bytes.max(1).next_multiple_of(PAGE_BYTES);
        let layout = AlignedBuffer::layout(bytes);
        // SAFETY: the layout is never of size zero: it has at least one page.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        AlignedBuffer { start, bytes }
    }

    fn layout(bytes: usize) -> Layout {
        Layout::from_size_align(bytes, PAGE_BYTES).expect("a buffer is far smaller than isize::MAX")
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` was allocated with this many bytes, zeroed, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), AlignedBuffer::layout(self.bytes)) }
    }
}

// SAFETY: the memory is owned, and reached only through `&self` or `&mut self`.
unsafe impl Send for AlignedBuffer {}
