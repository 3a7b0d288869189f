//! Values too large for a leaf: each in pages of its own that lie next to each other.
//!
//! Only the first page has a header, and its checksum covers all of them, so a value is one slice of the mapping
//! however large it is, read and written without a copy in between. A chain of pages would never want neighbours, but
//! every read of a value would be put together in memory first.

use crate::mapping::Mapping;
use crate::page::{HEADER_BYTES, Kind, PAGE_BYTES, PageNumber};
use crate::row::VALUE_BYTES_MAX;
use crate::space::Space;

/// How many pages a value of this length takes.
pub(crate) fn pages(bytes: u32) -> u32 {
    (HEADER_BYTES + bytes as usize).div_ceil(PAGE_BYTES) as u32
}

/// As `pages`, of a length that comes from a disk.
pub(crate) fn checked_pages(bytes: u32) -> Option<u32> {
    (bytes as usize <= VALUE_BYTES_MAX).then(|| pages(bytes))
}

pub(crate) fn read(mapping: &Mapping, first: PageNumber, bytes: u32) -> &[u8] {
    &mapping.run(first, pages(bytes))[HEADER_BYTES..][..bytes as usize]
}

pub(crate) fn write(space: &mut Space, value: &[u8]) -> PageNumber {
    let bytes = value.len() as u32;
    let first = space.allocate_run(pages(bytes), Kind::Overflow);
    space.page_mut(first).set_link(bytes);
    fill(space, first, value);
    first
}

/// Replaces a value by one of the same length, if it is not frozen.
pub(crate) fn rewrite(space: &mut Space, first: PageNumber, value: &[u8]) -> bool {
    let is_current = space.is_current(first);
    if is_current {
        fill(space, first, value);
    }
    is_current
}

fn fill(space: &mut Space, first: PageNumber, value: &[u8]) {
    let run = space.run_mut(first, pages(value.len() as u32));
    let (content, rest) = run[HEADER_BYTES..].split_at_mut(value.len());
    content.copy_from_slice(value);
    // What was here before must not reach the file with it.
    rest.fill(0);
}

pub(crate) fn free(space: &mut Space, first: PageNumber, bytes: u32) {
    space.free_run(first, pages(bytes));
}
