//! Memory that O_DIRECT accepts: aligned to the device's block, in whole blocks.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

/// What every O_DIRECT transfer is aligned to, in bytes: address, length and offset. Devices ask for 512 or 4096.
pub const BLOCK_BYTES: usize = 4096;

/// From this size on a buffer begins at a multiple of it, and the kernel is asked for pages as large: a transfer is then one piece of
/// memory to the device, where small pages are one each.
const HUGE_PAGE_BYTES: usize = 2 << 20;

/// A zeroed, block-aligned piece of memory of a fixed length. Moves without copying; freed when dropped.
pub struct AlignedBuffer {
    start: NonNull<u8>,
    length: usize,
}

impl AlignedBuffer {
    /// Zeroed memory of at least `bytes`, rounded up to whole blocks; never empty.
    pub fn zeroed(bytes: usize) -> Self {
        let length = bytes.max(1).next_multiple_of(BLOCK_BYTES);
        let layout = Self::layout(length);
        // SAFETY: the layout is never of size zero: `length` is at least one block.
        let start = unsafe { alloc(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        if length >= HUGE_PAGE_BYTES {
            // SAFETY: the range was allocated just now, and the advice changes nothing but the size of its pages. A kernel without
            // huge pages refuses it, and small ones do as well.
            unsafe { libc::madvise(start.as_ptr().cast(), length, libc::MADV_HUGEPAGE) };
        }
        // SAFETY: `start` was allocated with `length` bytes.
        unsafe { start.write_bytes(0, length) };
        Self { start, length }
    }

    fn layout(length: usize) -> Layout {
        let align = if length >= HUGE_PAGE_BYTES { HUGE_PAGE_BYTES } else { BLOCK_BYTES };
        Layout::from_size_align(length, align).expect("a buffer is far smaller than isize::MAX")
    }
}

impl Deref for AlignedBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` was allocated with `length` bytes, zeroed, and lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl DerefMut for AlignedBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes this the only reference.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for AlignedBuffer {
    fn drop(&mut self) {
        // SAFETY: allocated in `zeroed` with this very layout, and freed only here.
        unsafe { dealloc(self.start.as_ptr(), Self::layout(self.length)) }
    }
}

impl std::fmt::Debug for AlignedBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AlignedBuffer({} bytes)", self.length)
    }
}

// SAFETY: the memory is owned, and reached only through `&self` or `&mut self`.
unsafe impl Send for AlignedBuffer {}
// SAFETY: `&AlignedBuffer` gives shared reads only.
unsafe impl Sync for AlignedBuffer {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_aligned_zeroed_and_in_whole_blocks() {
        for bytes in [0, 1, 4096, 4097, 1 << 20, HUGE_PAGE_BYTES, HUGE_PAGE_BYTES + 1] {
            let mut buffer = AlignedBuffer::zeroed(bytes);
            assert_eq!(buffer.as_ptr().align_offset(BLOCK_BYTES), 0);
            assert!(bytes < HUGE_PAGE_BYTES || buffer.as_ptr().align_offset(HUGE_PAGE_BYTES) == 0);
            assert_eq!(buffer.len() % BLOCK_BYTES, 0);
            assert!(buffer.len() >= bytes.max(1));
            assert!(buffer.iter().all(|byte| *byte == 0));
            buffer[0] = 7;
            assert_eq!(buffer[0], 7);
        }
    }
}
