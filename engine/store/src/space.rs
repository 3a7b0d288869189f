//! Which places are free: rule S1, in one place.
//!
//! A place may be written when none of these uses it: the live roots, either of the two snapshots that the meta blocks
//! name, a snapshot on its way there, a view. Each of them has the set of its pages, so what is free is found by
//! joining sets, and not by remembering who let go of what, when. The sets share what has not changed; joining those of
//! a database of 2 GB takes microseconds.
//!
//! Invariants:
//!   - `taken` has every page of `live`, of both kept snapshots, of the one in flight and of every view;
//!   - `spare` are places in `taken` that nobody uses: freed in the generation that made them;
//!   - `fresh` has the live pages made since the last snapshot began, and none that are not live.

use std::io;
use std::ops::Range;
use std::sync::{Arc, OnceLock, Weak};

use crate::bitmap::Bitmap;
use crate::device::{DirectFile, GROW_PAGES};
use crate::mapping::{Mapping, Pages};
use crate::page::{Kind, PAGE_BYTES, Page, PageNumber};

/// Something that was frozen, as long as it lives: a view, or a snapshot on its way to the file.
#[derive(Debug)]
pub(crate) struct Pin {
    pub(crate) generation: u64,
    pub(crate) pages: Bitmap,
    /// What ended the view. A snapshot is never ended.
    ended: OnceLock<ViewEnded>,
    is_view: bool,
}

impl Pin {
    pub(crate) fn check(&self) -> Result<(), ViewEnded> {
        self.ended.get().map_or(Ok(()), |ended| Err(*ended))
    }

    /// What ended it first is what its readers are told.
    fn end(&self, why: ViewEnded) {
        self.ended.get_or_init(|| why);
    }
}

/// The view was ended, and says by which bound (rule S6). It keeps its pages until its last clone is dropped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ViewEnded {
    /// The oldest views went, so that what all of them keep is within the bound.
    #[error("the view was ended: views kept {bytes} bytes of pages, of at most {bytes_max}")]
    PinnedBytes {
        /// What views kept.
        bytes: u64,
        /// The bound.
        bytes_max: u64,
    },
    /// The owner ended those that were older than it allows.
    #[error("the view was ended: it was too old")]
    Age,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Space {
    pages: Pages,
    live: Bitmap,
    taken: Bitmap,
    fresh: Bitmap,
    spare: Vec<PageNumber>,
    /// Where to look next: below, a single page was not free when last seen.
    hint: PageNumber,
    /// The same for runs.
    run_hint: PageNumber,
    /// One past the highest place that was ever taken.
    end: PageNumber,
    /// How many pages were freed that somebody may still be using, since that was last looked at.
    released: u64,
    /// How many pages of trees were freed, ever: what a finger goes by.
    freed: u64,
    /// The pages of the newest durable snapshot, and of the one before.
    kept: [Bitmap; 2],
    pins: Vec<Weak<Pin>>,
    /// None in memory.
    file: Option<Arc<DirectFile>>,
    /// Pages that have memory of their own: made here, not read from the file.
    private: Bitmap,
    /// Free places below this one were handed to a helper, to be touched before they are taken.
    prefaulted: PageNumber,
}

/// How many free places are touched ahead of need: 8 MiB.
const PREFAULTED_PAGES: u32 = 2048;

/// A run that becomes a mapping of its own must be worth one: a process may have 65530.
const MAPPED_PAGES_MIN: u32 = 64;

/// Fewer freed pages than this are not worth looking who uses them.
const RELEASED_MIN: u64 = 256;

impl Space {
    pub(crate) fn in_memory(pages: Pages) -> Space {
        Space::new(pages, Bitmap::default(), [Bitmap::default(), Bitmap::default()], None)
    }

    /// With the pages of the snapshot that was opened, among them those where its own set is, and those of the other.
    pub(crate) fn of_file(
        pages: Pages,
        opened: Bitmap,
        other: Bitmap,
        own_set: (PageNumber, u32),
        file: Arc<DirectFile>,
    ) -> Space {
        let mut live = opened.clone();
        (own_set.0.0..own_set.0.0 + own_set.1).for_each(|number| live.remove(PageNumber(number)));
        Space::new(pages, live, [opened, other], Some(file))
    }

    fn new(pages: Pages, live: Bitmap, kept: [Bitmap; 2], file: Option<Arc<DirectFile>>) -> Space {
        let mut taken = live.clone();
        kept.iter().for_each(|kept| taken.insert_all(kept));
        // The meta slots.
        (0..PageNumber::FIRST.0).for_each(|number| taken.insert(PageNumber(number)));
        Space {
            pages,
            live,
            end: taken.end(),
            taken,
            fresh: Bitmap::default(),
            spare: Vec::new(),
            hint: PageNumber::FIRST,
            run_hint: PageNumber::FIRST,
            released: 0,
            freed: 0,
            kept,
            pins: Vec::new(),
            file,
            private: Bitmap::default(),
            prefaulted: PageNumber::FIRST,
        }
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        self.pages.mapping()
    }

    pub(crate) fn share(&self) -> Arc<Mapping> {
        self.pages.share()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.pages.generation()
    }

    pub(crate) fn page(&self, number: PageNumber) -> &Page {
        self.pages.mapping().page(number)
    }

    pub(crate) fn page_mut(&mut self, number: PageNumber) -> &mut Page {
        self.pages.page_mut(number)
    }

    pub(crate) fn run_mut(&mut self, first: PageNumber, pages: u32) -> &mut [u8] {
        self.pages.run_mut(first, pages)
    }

    pub(crate) fn is_current(&self, number: PageNumber) -> bool {
        self.pages.is_current(number)
    }

    /// An empty page.
    pub(crate) fn allocate(&mut self, kind: Kind) -> PageNumber {
        let number = self.take();
        self.pages.claim(number, 1, kind);
        number
    }

    /// The page itself if it may be written, else a copy that may: once a generation.
    pub(crate) fn writable(&mut self, number: PageNumber) -> PageNumber {
        if self.pages.is_current(number) {
            return number;
        }
        let copy = self.take();
        self.pages.claim_copy(copy, number);
        self.free(number);
        copy
    }

    /// Pages next to each other. The first is empty; the others are as they happen to be.
    pub(crate) fn allocate_run(&mut self, pages: u32, kind: Kind) -> PageNumber {
        let first = self.take_run(pages);
        self.pages.claim(first, pages, kind);
        first
    }

    /// Places for a snapshot's own sets: used by that snapshot, not by the live roots, and never seen in memory.
    pub(crate) fn reserve_run(&mut self, pages: u32) -> PageNumber {
        let first = self.take_run(pages);
        for number in first.0..first.0 + pages {
            self.live.remove(PageNumber(number));
            self.fresh.remove(PageNumber(number));
            self.private.remove(PageNumber(number));
        }
        first
    }

    fn take(&mut self) -> PageNumber {
        let number = match self.spare.pop() {
            Some(spare) => spare,
            None => {
                let mut free = self.taken.next_absent(self.hint);
                if free >= self.end && self.reclaim_if_worth_it() {
                    free = self.taken.next_absent(self.hint);
                }
                self.hint = PageNumber(free.0 + 1);
                free
            }
        };
        self.enter(number, 1);
        number
    }

    fn take_run(&mut self, pages: u32) -> PageNumber {
        let mut first = self.taken.absent_run(self.run_hint, pages);
        if first.0 + pages > self.end.0 && self.reclaim_if_worth_it() {
            first = self.taken.absent_run(self.run_hint, pages);
        }
        self.run_hint = PageNumber(first.0 + pages);
        self.enter(first, pages);
        first
    }

    fn enter(&mut self, first: PageNumber, pages: u32) {
        let end = PageNumber(first.0 + pages);
        assert!(end.0 <= self.pages.page_count_max(), "the database is full: whoever writes asks for room before");
        self.end = self.end.max(end);
        if self.file.as_ref().is_some_and(|file| end > file.end()) {
            // The helper is late; it costs a system call, not the change. If it fails, too: behind `backed` memory is of no file, and the
            // snapshot's own writes make the file longer, or fail, and are tried again.
            let _ = self.grow(end);
        }
        for number in first.0..end.0 {
            self.taken.insert(PageNumber(number));
            self.live.insert(PageNumber(number));
            self.fresh.insert(PageNumber(number));
            self.private.insert(PageNumber(number));
        }
    }

    /// Makes the file long enough, and then some.
    fn grow(&self, end: PageNumber) -> io::Result<()> {
        let most = PageNumber(self.pages.page_count_max());
        let end = PageNumber(end.0.saturating_add(GROW_PAGES)).min(most);
        self.file.as_ref().map_or(Ok(()), |file| file.grow(end))
    }

    /// How far the file should grow, and which free places to touch, if it is time for either.
    #[expect(clippy::type_complexity, reason = "it has one caller")]
    pub(crate) fn chore(&mut self) -> Option<(Option<(Arc<DirectFile>, PageNumber)>, Vec<Range<u32>>)> {
        let file = self.file.clone()?;
        let end = PageNumber((self.end.0 + GROW_PAGES).min(self.pages.page_count_max()));
        let is_short = file.end().0 < (self.end.0 + GROW_PAGES / 2).min(end.0);
        let grown = if is_short { end } else { file.end() };
        let mut places = Vec::new();
        let mut from = self.prefaulted.max(self.hint);
        // Only when half of what was touched ahead has been taken.
        if from.0 < self.hint.0 + PREFAULTED_PAGES / 2 {
            let mut left = PREFAULTED_PAGES;
            while left > 0 {
                let first = self.taken.next_absent(from);
                let end = self.taken.next(first).unwrap_or(grown).0.min(first.0 + left).min(grown.0);
                if end <= first.0 {
                    break;
                }
                // Freed places have memory already.
                let mut run = (first.0..end).filter(|&number| !self.private.contains(PageNumber(number)));
                if let Some(start) = run.next() {
                    places.push(start..end);
                }
                left -= end - first.0;
                from = PageNumber(end);
            }
            self.prefaulted = from;
        }
        (is_short || !places.is_empty()).then(|| (is_short.then_some((file, end)), places))
    }

    /// One past the highest place that was ever taken.
    pub(crate) fn end(&self) -> PageNumber {
        self.end
    }

    /// What is beyond the highest place that was ever taken.
    pub(crate) fn room_bytes(&self) -> u64 {
        u64::from(self.pages.page_count_max() - self.end.0) * PAGE_BYTES as u64
    }

    pub(crate) fn file(&self) -> Option<Arc<DirectFile>> {
        self.file.clone()
    }

    pub(crate) fn live(&self) -> &Bitmap {
        &self.live
    }

    /// The pages made since this was last called.
    pub(crate) fn take_fresh(&mut self) -> Bitmap {
        std::mem::take(&mut self.fresh)
    }

    /// A snapshot of these was not made. Some may have been freed since, and even made again.
    pub(crate) fn put_fresh_back(&mut self, fresh: &Bitmap) {
        let mut fresh = fresh.clone();
        fresh.keep_only(&self.live);
        self.fresh.insert_all(&fresh);
    }

    /// A snapshot of these pages is durable: it takes the place of the older of the two.
    pub(crate) fn keep(&mut self, used: Bitmap) {
        let newest = std::mem::replace(&mut self.kept[0], used);
        self.kept[1] = newest;
        self.reclaim();
    }

    pub(crate) fn freed(&self) -> u64 {
        self.freed
    }

    pub(crate) fn free(&mut self, number: PageNumber) {
        self.freed += 1;
        self.live.remove(number);
        if self.pages.is_current(number) {
            self.fresh.remove(number);
            self.spare.push(number);
        } else {
            self.fresh.remove(number);
            self.released += 1;
        }
    }

    /// Not of a tree's pages, and so nothing to a finger.
    pub(crate) fn free_run(&mut self, first: PageNumber, pages: u32) {
        let is_current = self.pages.is_current(first);
        for number in (first.0..first.0 + pages).map(PageNumber) {
            self.live.remove(number);
            self.fresh.remove(number);
            if is_current {
                self.taken.remove(number);
            }
        }
        if is_current {
            // No spare places: those are used one by one, and this run is worth more whole.
            self.run_hint = self.run_hint.min(first);
            self.hint = self.hint.min(first);
        } else {
            self.released += u64::from(pages);
        }
    }

    fn pins(&self) -> impl Iterator<Item = Arc<Pin>> {
        self.pins.iter().filter_map(Weak::upgrade)
    }

    /// Before the file grows: some of what was freed may be in nobody's use by now.
    fn reclaim_if_worth_it(&mut self) -> bool {
        // Looking takes time with the file's size; so does freeing this much.
        let is_worth_it = self.released >= RELEASED_MIN.max(u64::from(self.end.0) / 16);
        if is_worth_it {
            self.reclaim();
        }
        is_worth_it
    }

    /// Finds out what is free: rule S1.
    pub(crate) fn reclaim(&mut self) {
        let mut taken = self.live.clone();
        (0..PageNumber::FIRST.0).for_each(|number| taken.insert(PageNumber(number)));
        self.kept.iter().for_each(|kept| taken.insert_all(kept));
        self.pins.retain(|pin| pin.strong_count() > 0);
        self.pins().for_each(|pin| taken.insert_all(&pin.pages));
        self.taken = taken;
        // They are free places like any other from here on.
        self.spare.clear();
        (self.hint, self.run_hint) = (PageNumber::FIRST, PageNumber::FIRST);
        self.prefaulted = PageNumber::FIRST;
        self.released = 0;
    }

    /// Ends the generation, and keeps its pages for as long as somebody has the pin.
    pub(crate) fn freeze(&mut self) -> Arc<Pin> {
        self.pin(self.live.clone(), true)
    }

    /// The same for a snapshot, and keeps the places that were reserved for its own set.
    pub(crate) fn freeze_snapshot(&mut self, reserved: Range<u32>) -> Arc<Pin> {
        let mut pages = self.live.clone();
        reserved.for_each(|number| pages.insert(PageNumber(number)));
        self.pin(pages, false)
    }

    /// Keeps the places of the newest durable snapshot, which is frozen already.
    pub(crate) fn pin_newest(&mut self) -> Arc<Pin> {
        let generation = self.pages.generation();
        self.enroll(Pin { generation, pages: self.kept[0].clone(), ended: OnceLock::new(), is_view: false })
    }

    fn pin(&mut self, pages: Bitmap, is_view: bool) -> Arc<Pin> {
        let generation = self.pages.freeze();
        self.enroll(Pin { generation, pages, ended: OnceLock::new(), is_view })
    }

    fn enroll(&mut self, pin: Pin) -> Arc<Pin> {
        let pin = Arc::new(pin);
        self.pins.retain(|pin| pin.strong_count() > 0);
        self.pins.push(Arc::downgrade(&pin));
        pin
    }

    fn views(&self) -> impl Iterator<Item = Arc<Pin>> {
        self.pins().filter(|pin| pin.is_view)
    }

    /// The generation of the oldest view.
    pub(crate) fn oldest_view(&self) -> Option<u64> {
        self.views().map(|view| view.generation).min()
    }

    /// Ends the views of this generation and of those before.
    pub(crate) fn end_views(&self, upto: u64) {
        self.views().filter(|view| view.generation <= upto).for_each(|view| view.end(ViewEnded::Age));
    }

    /// Ends views, the oldest first, until those that go on keep no more than this.
    pub(crate) fn bound_views(&self, bytes_max: u64) {
        let mut views: Vec<Arc<Pin>> = self.views().filter(|view| view.check().is_ok()).collect();
        views.sort_by_key(|view| view.generation);
        for oldest in 0..views.len() {
            let bytes = self.kept_for(&views[oldest..]);
            if bytes <= bytes_max {
                return;
            }
            views[oldest].end(ViewEnded::PinnedBytes { bytes, bytes_max });
        }
    }

    /// How many bytes of pages are kept for nothing but views.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.kept_for(&self.views().collect::<Vec<_>>())
    }

    fn kept_for(&self, views: &[Arc<Pin>]) -> u64 {
        let mut pinned = Bitmap::default();
        views.iter().for_each(|pin| pinned.insert_all(&pin.pages));
        pinned.remove_all(&self.live);
        self.kept.iter().for_each(|kept| pinned.remove_all(kept));
        pinned.count() * PAGE_BYTES as u64
    }

    /// Gives memory back to the kernel: pages that both are in the newest durable snapshot, and so in the file, and
    /// have memory of their own. They are read again, and checked, when they are next needed.
    ///
    /// Nothing while something is frozen: whoever reads that must not see a page's checksum appear.
    pub(crate) fn give_back(&mut self, bytes_max: u64) -> io::Result<u64> {
        if self.pages.is_shared() || self.pins().next().is_some() {
            return Ok(0);
        }
        let mut pages = self.private.clone();
        pages.keep_only(&self.live);
        pages.keep_only(&self.kept[0]);
        let mut left = bytes_max / PAGE_BYTES as u64;
        let mut given = 0;
        let Some(file) = self.file.clone() else { return Ok(0) };
        let backed = self.pages.backed();
        let mut next = pages.next(PageNumber::FIRST);
        while let Some(first) = next.filter(|_| left > 0) {
            // Whole runs: the pages of a value must go together. One that lies across is left for another time.
            let end = pages.next_absent(first);
            next = pages.next(end);
            if end > backed && (first < backed || end.0 - first.0 < MAPPED_PAGES_MIN) {
                continue;
            }
            self.pages.give_back(&file.file, first.0..end.0)?;
            (first.0..end.0).for_each(|number| self.private.remove(PageNumber(number)));
            let count = u64::from(end.0 - first.0);
            given += count;
            left = left.saturating_sub(count);
        }
        Ok(given * PAGE_BYTES as u64)
    }
}
