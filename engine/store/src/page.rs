//! One page of a tree: its header, its slots, its cells.
//!
//! Slots grow up from the header, cells down from the end; between them is what is free. A slot carries the *head* of
//! its key, so that a search stays within the slots' few cache lines and looks at a cell or two. All keys of a page
//! begin with the same [`skip`](Page::skip) bytes, and the head is what follows them: keys of one table would all have
//! the same head otherwise. Keys are kept whole all the same, because a reader is given them as slices of the page.
//!
//! Invariants:
//!   - slots are in the order of their keys, and no two keys are equal;
//!   - every key begins with the first `skip` bytes of the first one, and every head is its key's at that place;
//!   - header, slots, free bytes, dead bytes and cells make up the whole page.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

/// What is written, checked and copied at once.
pub const PAGE_BYTES: usize = 4096;

/// Where a page is: in the file and in the mapping, counted in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PageNumber(pub u32);

impl PageNumber {
    /// No page. Number 0 is a meta slot's, so no tree has it.
    pub(crate) const NONE: PageNumber = PageNumber(0);

    /// The first that is no meta slot.
    pub(crate) const FIRST: PageNumber = PageNumber(2);

    pub(crate) fn offset(self) -> usize {
        self.0 as usize * PAGE_BYTES
    }
}

impl fmt::Display for PageNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// What a page is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(crate) enum Kind {
    Leaf = 1,
    Branch = 2,
    /// The first of the pages that hold one large value: see `overflow`.
    Overflow = 3,
    Bitmap = 4,
}

/// | at | field | what it catches, or is for |
/// |---|---|---|
/// | 0 | checksum u32 | rot and misplaced writes; set when it is written to the file, meaningless before |
/// | 4 | kind u8, zero u8 | a page that belongs to another structure |
/// | 6 | count u16 | slots |
/// | 8 | generation u64 | in which it was made: may it be changed in place? |
/// | 16 | heap u16 | where the lowest cell begins |
/// | 18 | dead u16 | bytes of cells that no slot points at |
/// | 20 | skip u16, zero u16 | how many bytes all keys share |
/// | 24 | link u32 | a branch's leftmost child; an overflow value's length; a bitmap page's index |
/// | 28 | zero u32 | |
pub(crate) const HEADER_BYTES: usize = 32;
pub(crate) const SLOT_BYTES: usize = 8;
/// What slots and cells share.
pub(crate) const ROOM_BYTES: usize = PAGE_BYTES - HEADER_BYTES;
/// The largest cell with its slot: a page that is too full for one more is then always split into two that are not.
pub(crate) const CELL_BYTES_MAX: usize = ROOM_BYTES / 2 - SLOT_BYTES;

const LENGTH_BYTES: usize = 2;
const CHILD_BYTES: usize = 4;

/// The bytes of one page, wherever it lies.
#[derive(Clone)]
#[repr(C, align(4096))]
pub(crate) struct Page(pub(crate) [u8; PAGE_BYTES]);

const _: () = assert!(size_of::<Page>() == PAGE_BYTES);

/// head (32 bits), key length (16), offset (16).
#[derive(Clone, Copy)]
struct Slot(u64);

impl Slot {
    fn new(head: u32, key_bytes: usize, offset: usize) -> Slot {
        Slot(u64::from(head) << 32 | (key_bytes as u64) << 16 | offset as u64)
    }

    fn head(self) -> u32 {
        (self.0 >> 32) as u32
    }

    fn key_bytes(self) -> usize {
        usize::from((self.0 >> 16) as u16)
    }

    fn offset(self) -> usize {
        usize::from(self.0 as u16)
    }
}

impl Page {
    pub(crate) fn empty(kind: Kind, generation: u64) -> Page {
        let mut page = Page([0; PAGE_BYTES]);
        page.clear(kind, generation);
        page
    }

    /// Makes it an empty page. What is beyond the header is left, and means nothing.
    pub(crate) fn clear(&mut self, kind: Kind, generation: u64) {
        self.0[..HEADER_BYTES].fill(0);
        self.0[4] = kind as u8;
        self.0[8..16].copy_from_slice(&generation.to_le_bytes());
        self.set_u16(16, PAGE_BYTES);
    }

    fn u16(&self, at: usize) -> usize {
        usize::from(u16::from_le_bytes([self.0[at], self.0[at + 1]]))
    }

    fn set_u16(&mut self, at: usize, number: usize) {
        self.0[at..at + 2].copy_from_slice(&(number as u16).to_le_bytes());
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.0[at..at + 4].try_into().expect("four bytes"))
    }

    pub(crate) fn is_branch(&self) -> bool {
        self.0[4] == Kind::Branch as u8
    }

    pub(crate) fn is(&self, kind: Kind) -> bool {
        self.0[4] == kind as u8
    }

    pub(crate) fn count(&self) -> usize {
        self.u16(6)
    }

    pub(crate) fn generation(&self) -> u64 {
        u64::from_le_bytes(self.0[8..16].try_into().expect("eight bytes"))
    }

    pub(crate) fn set_generation(&mut self, generation: u64) {
        self.0[8..16].copy_from_slice(&generation.to_le_bytes());
    }

    fn heap(&self) -> usize {
        self.u16(16)
    }

    fn dead(&self) -> usize {
        self.u16(18)
    }

    /// How many bytes all keys share, at least.
    pub(crate) fn skip(&self) -> usize {
        self.u16(20)
    }

    pub(crate) fn link(&self) -> u32 {
        self.u32(24)
    }

    pub(crate) fn set_link(&mut self, link: u32) {
        self.0[24..28].copy_from_slice(&link.to_le_bytes());
    }

    /// Between the slots and the cells.
    fn gap(&self) -> usize {
        self.heap() - HEADER_BYTES - SLOT_BYTES * self.count()
    }

    /// What slots and cells take, without what is dead.
    pub(crate) fn used(&self) -> usize {
        ROOM_BYTES - self.gap() - self.dead()
    }

    fn slots(&self) -> &[[u8; SLOT_BYTES]] {
        let (slots, _) = self.0[HEADER_BYTES..].as_chunks::<SLOT_BYTES>();
        &slots[..self.count()]
    }

    fn slot(&self, index: usize) -> Slot {
        Slot(u64::from_le_bytes(self.slots()[index]))
    }

    fn set_slot(&mut self, index: usize, slot: Slot) {
        let at = HEADER_BYTES + SLOT_BYTES * index;
        self.0[at..at + SLOT_BYTES].copy_from_slice(&slot.0.to_le_bytes());
    }

    pub(crate) fn key(&self, index: usize) -> &[u8] {
        let slot = self.slot(index);
        &self.0[slot.offset()..slot.offset() + slot.key_bytes()]
    }

    /// Where a leaf's payload is.
    fn payload_range(&self, index: usize) -> Range<usize> {
        let slot = self.slot(index);
        let at = slot.offset() + slot.key_bytes();
        let bytes = self.u16(at);
        at + LENGTH_BYTES..at + LENGTH_BYTES + bytes
    }

    pub(crate) fn payload(&self, index: usize) -> &[u8] {
        &self.0[self.payload_range(index)]
    }

    pub(crate) fn payload_mut(&mut self, index: usize) -> &mut [u8] {
        let range = self.payload_range(index);
        &mut self.0[range]
    }

    /// A branch has one child more than keys: keys below the first are in child 0.
    pub(crate) fn child(&self, index: usize) -> PageNumber {
        let Some(index) = index.checked_sub(1) else { return PageNumber(self.link()) };
        let slot = self.slot(index);
        PageNumber(self.u32(slot.offset() + slot.key_bytes()))
    }

    pub(crate) fn set_child(&mut self, index: usize, child: PageNumber) {
        let Some(index) = index.checked_sub(1) else { return self.set_link(child.0) };
        let slot = self.slot(index);
        let at = slot.offset() + slot.key_bytes();
        self.0[at..at + CHILD_BYTES].copy_from_slice(&child.0.to_le_bytes());
    }

    /// Where the key is, or where it would be.
    pub(crate) fn search(&self, key: &[u8]) -> Result<usize, usize> {
        let skip = self.skip();
        let slots = self.slots();
        let Some(rest) = key.get(skip..) else { return Err(self.outside(key).unwrap_or(0)) };
        let head = head_of(rest);
        let head_at = |slot: &[u8; SLOT_BYTES]| Slot(u64::from_le_bytes(*slot)).head();
        let mut low = slots.partition_point(|slot| head_at(slot) < head);
        let mut high = low;
        if slots.get(low).is_some_and(|slot| head_at(slot) == head) {
            // Most often it is this one. If so, how the first key begins need not be fetched from its cell.
            if self.key(low) == key {
                return Ok(low);
            }
            high += 1;
            if slots.get(high).is_some_and(|slot| head_at(slot) == head) {
                high += slots[high..].partition_point(|slot| head_at(slot) == head);
            }
        }
        if skip > 0
            && let Some(outside) = self.outside(key)
        {
            return Err(outside);
        }
        while low < high {
            let middle = low.midpoint(high);
            match self.key(middle)[skip..].cmp(rest) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Ok(middle),
            }
        }
        Err(low)
    }

    /// Where a key belongs that does not begin as all keys here do: before all of them, or behind.
    fn outside(&self, key: &[u8]) -> Option<usize> {
        if self.count() == 0 {
            return None;
        }
        let shared = &self.key(0)[..self.skip()];
        match key[..shared.len().min(key.len())].cmp(shared) {
            Ordering::Less => Some(0),
            Ordering::Greater => Some(self.count()),
            Ordering::Equal => None,
        }
    }

    /// Which child has this key.
    pub(crate) fn child_index(&self, key: &[u8]) -> usize {
        match self.search(key) {
            Ok(index) => index + 1,
            Err(index) => index,
        }
    }

    pub(crate) fn fits(&self, cell_bytes: usize) -> bool {
        self.gap() + self.dead() >= cell_bytes + SLOT_BYTES
    }

    /// Makes room in a leaf, and returns where the payload is to be written.
    ///
    /// The caller has asked whether it fits.
    pub(crate) fn insert_leaf(&mut self, index: usize, key: &[u8], payload_bytes: usize) -> &mut [u8] {
        let body = self.insert_cell(index, key, LENGTH_BYTES + payload_bytes);
        let (length, payload) = body.split_at_mut(LENGTH_BYTES);
        length.copy_from_slice(&(payload_bytes as u16).to_le_bytes());
        payload
    }

    /// Puts a key of a branch, and the child at its right.
    pub(crate) fn insert_branch(&mut self, index: usize, key: &[u8], child: PageNumber) {
        self.insert_cell(index, key, CHILD_BYTES).copy_from_slice(&child.0.to_le_bytes());
    }

    fn insert_cell(&mut self, index: usize, key: &[u8], body_bytes: usize) -> &mut [u8] {
        let cell_bytes = key.len() + body_bytes;
        assert!(self.fits(cell_bytes));
        if self.gap() < cell_bytes + SLOT_BYTES {
            self.tidy();
        }
        let count = self.count();
        match count {
            // One key shares all of itself; the next ones lower that to what is so.
            0 => self.set_u16(20, key.len()),
            _ => self.lower_skip(key),
        }
        let offset = self.heap() - cell_bytes;
        self.0[offset..offset + key.len()].copy_from_slice(key);
        let at = HEADER_BYTES + SLOT_BYTES * index;
        self.0.copy_within(at..HEADER_BYTES + SLOT_BYTES * count, at + SLOT_BYTES);
        let head = head_of(&key[self.skip()..]);
        self.set_slot(index, Slot::new(head, key.len(), offset));
        self.set_u16(6, count + 1);
        self.set_u16(16, offset);
        &mut self.0[offset + key.len()..offset + cell_bytes]
    }

    fn lower_skip(&mut self, key: &[u8]) {
        let skip = self.skip();
        let first = &self.key(0)[..skip];
        if !key.starts_with(first) {
            let shared = shared_bytes(first, key);
            self.set_heads(shared);
        }
    }

    fn set_heads(&mut self, skip: usize) {
        self.set_u16(20, skip);
        for index in 0..self.count() {
            let slot = self.slot(index);
            let head = head_of(&self.key(index)[skip..]);
            self.set_slot(index, Slot::new(head, slot.key_bytes(), slot.offset()));
        }
    }

    fn body_bytes(&self, slot: Slot) -> usize {
        if self.is_branch() { CHILD_BYTES } else { LENGTH_BYTES + self.u16(slot.offset() + slot.key_bytes()) }
    }

    fn cell(&self, index: usize) -> &[u8] {
        let slot = self.slot(index);
        &self.0[slot.offset()..slot.offset() + slot.key_bytes() + self.body_bytes(slot)]
    }

    /// What a cell takes, its slot included.
    pub(crate) fn cell_bytes(&self, index: usize) -> usize {
        self.cell(index).len() + SLOT_BYTES
    }

    pub(crate) fn remove(&mut self, index: usize) {
        let bytes = self.cell(index).len();
        let (count, heap) = (self.count(), self.heap());
        let at = HEADER_BYTES + SLOT_BYTES * index;
        if self.slot(index).offset() == heap {
            self.set_u16(16, heap + bytes);
        } else {
            self.set_u16(18, self.dead() + bytes);
        }
        self.0.copy_within(at + SLOT_BYTES..HEADER_BYTES + SLOT_BYTES * count, at);
        self.set_u16(6, count - 1);
    }

    /// Appends these cells of another page. [`finish`](Page::finish) must follow.
    pub(crate) fn append(&mut self, from: &Page, cells: Range<usize>) {
        for index in cells {
            let cell = from.cell(index);
            let (count, offset) = (self.count(), self.heap() - cell.len());
            assert!(self.gap() >= cell.len() + SLOT_BYTES);
            self.0[offset..offset + cell.len()].copy_from_slice(cell);
            self.set_slot(count, Slot::new(0, from.slot(index).key_bytes(), offset));
            self.set_u16(6, count + 1);
            self.set_u16(16, offset);
        }
    }

    /// Sets `skip` and the heads, after cells were appended.
    pub(crate) fn finish(&mut self) {
        let Some(last) = self.count().checked_sub(1) else { return };
        let skip = shared_bytes(self.key(0), self.key(last));
        self.set_heads(skip);
    }

    /// Rewrites the page without what is dead.
    fn tidy(&mut self) {
        let before = self.clone();
        self.set_u16(6, 0);
        self.set_u16(16, PAGE_BYTES);
        self.set_u16(18, 0);
        self.append(&before, 0..before.count());
        self.finish();
    }

    /// The checksum that belongs into this page at this place. The number is part of it: a page that a device wrote to
    /// the wrong place is sound, but not here.
    pub(crate) fn checksum(number: PageNumber, bytes: &[u8]) -> u32 {
        crc32c::crc32c_append(crc32c::crc32c(&number.0.to_le_bytes()), &bytes[4..])
    }
}

pub(crate) fn leaf_cell_bytes(key: &[u8], payload_bytes: usize) -> usize {
    key.len() + LENGTH_BYTES + payload_bytes
}

pub(crate) fn branch_cell_bytes(key: &[u8]) -> usize {
    key.len() + CHILD_BYTES
}

/// The first four bytes as a number that compares as they do; what is missing is zero.
fn head_of(rest: &[u8]) -> u32 {
    if let Some(head) = rest.first_chunk::<4>() {
        return u32::from_be_bytes(*head);
    }
    let mut head = [0; 4];
    head[..rest.len()].copy_from_slice(rest);
    u32::from_be_bytes(head)
}

/// With how many equal bytes the two begin.
pub(crate) fn shared_bytes(one: &[u8], other: &[u8]) -> usize {
    one.iter().zip(other).take_while(|(one, other)| one == other).count()
}
