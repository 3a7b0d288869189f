//! The meta block: what makes a set of pages a snapshot.
//!
//! There are two, in the first two pages of the file, and a new one is written over the one that is not in use: a torn
//! write of it leaves the other. `docs/format.md` has the layout.

use crate::Revision;
use crate::digest::Sum;
use crate::image::Image;
use crate::page::{PAGE_BYTES, Page, PageNumber};
use crate::tree::Tree;

/// The longest identity.
pub const IDENTITY_BYTES_MAX: usize = 128;
/// The longest handle.
pub const HANDLE_BYTES_MAX: usize = 2048;

const MAGIC: &[u8; 8] = b"synod-db";
/// The only one so far.
pub(crate) const FORMAT: u32 = 1;

const IDENTITY_AT: usize = 128;
const HANDLE_AT: usize = IDENTITY_AT + IDENTITY_BYTES_MAX;
const CHECKSUM_AT: usize = PAGE_BYTES - 4;
const _: () = assert!(HANDLE_AT + HANDLE_BYTES_MAX <= CHECKSUM_AT);

/// Which of the two places.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Slot {
    First,
    Second,
}

impl Slot {
    pub(crate) fn other(self) -> Slot {
        match self {
            Slot::First => Slot::Second,
            Slot::Second => Slot::First,
        }
    }

    pub(crate) fn page(self) -> PageNumber {
        PageNumber(self as u32)
    }
}

/// A snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Meta {
    pub(crate) generation: u64,
    pub(crate) image: Image,
    /// One past the last page that it uses.
    pub(crate) end: PageNumber,
    /// Where the set of its pages is, and in how many.
    pub(crate) bitmap: (PageNumber, u32),
    pub(crate) identity: Vec<u8>,
    pub(crate) handle: Vec<u8>,
}

/// What is in a place for a meta block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Found {
    Sound(Box<Meta>),
    /// Of a newer program.
    Newer(u32),
    /// Ours by its first bytes, but not what was written.
    Damaged,
    /// Never ours.
    Foreign,
}

impl Meta {
    pub(crate) fn encode(&self, slot: Slot) -> Page {
        assert!(self.identity.len() <= IDENTITY_BYTES_MAX);
        assert!(self.handle.len() <= HANDLE_BYTES_MAX);
        let mut page = Page([0; PAGE_BYTES]);
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            page.0[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        let Image { present, history, changes, rows, bytes, sum, revision, compacted } = self.image;
        put(MAGIC);
        put(&FORMAT.to_le_bytes());
        put(&[0; 4]);
        [self.generation, revision.0, compacted.0, rows, bytes].iter().for_each(|number| put(&number.to_le_bytes()));
        put(&sum.0.to_le_bytes());
        put(&[0; 8]);
        let (bitmap, bitmap_pages) = self.bitmap;
        [self.end.0, present.root.0, history.root.0, changes.root.0, bitmap.0, bitmap_pages]
            .iter()
            .for_each(|number| put(&number.to_le_bytes()));
        put(&(self.identity.len() as u16).to_le_bytes());
        put(&(self.handle.len() as u16).to_le_bytes());
        assert!(at <= IDENTITY_AT);
        page.0[IDENTITY_AT..IDENTITY_AT + self.identity.len()].copy_from_slice(&self.identity);
        page.0[HANDLE_AT..HANDLE_AT + self.handle.len()].copy_from_slice(&self.handle);
        let checksum = checksum(slot, &page);
        page.0[CHECKSUM_AT..].copy_from_slice(&checksum.to_le_bytes());
        page
    }

    pub(crate) fn decode(slot: Slot, bytes: &[u8]) -> Found {
        let page = Page(bytes.try_into().expect("a place for a meta block is a page"));
        let is_ours = page.0.starts_with(MAGIC);
        if page.0[CHECKSUM_AT..] != checksum(slot, &page).to_le_bytes() {
            return if is_ours { Found::Damaged } else { Found::Foreign };
        }
        if !is_ours {
            return Found::Foreign;
        }
        let u16 = |at: usize| usize::from(u16::from_le_bytes([page.0[at], page.0[at + 1]]));
        let u32 = |at: usize| u32::from_le_bytes(page.0[at..at + 4].try_into().expect("four bytes"));
        let u64 = |at: usize| u64::from_le_bytes(page.0[at..at + 8].try_into().expect("eight bytes"));
        let format = u32(8);
        if format > FORMAT {
            return Found::Newer(format);
        }
        let (identity_bytes, handle_bytes) = (u16(96), u16(98));
        if identity_bytes > IDENTITY_BYTES_MAX || handle_bytes > HANDLE_BYTES_MAX {
            return Found::Damaged;
        }
        let tree = |at| Tree { root: PageNumber(u32(at)) };
        Found::Sound(Box::new(Meta {
            generation: u64(16),
            image: Image {
                revision: Revision(u64(24)),
                compacted: Revision(u64(32)),
                rows: u64(40),
                bytes: u64(48),
                sum: Sum(u64(56)),
                present: tree(76),
                history: tree(80),
                changes: tree(84),
            },
            end: PageNumber(u32(72)),
            bitmap: (PageNumber(u32(88)), u32(92)),
            identity: page.0[IDENTITY_AT..IDENTITY_AT + identity_bytes].to_vec(),
            handle: page.0[HANDLE_AT..HANDLE_AT + handle_bytes].to_vec(),
        }))
    }
}

/// With the place in it: the block of one place, written to the other, is damage.
fn checksum(slot: Slot, page: &Page) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&slot.page().0.to_le_bytes()), &page.0[..CHECKSUM_AT])
}
