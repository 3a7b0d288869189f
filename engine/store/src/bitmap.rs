//! A set of pages, cheap to clone: one bit each, in chunks that clones share until one of them changes.
//!
//! A chunk is what fits a page of the file, so it is also the unit in which a snapshot keeps its set.

use std::sync::Arc;

use crate::page::{PageNumber, ROOM_BYTES};

const WORDS: usize = ROOM_BYTES / 8;
/// How many pages one chunk speaks of: 127 MiB of them.
pub(crate) const CHUNK_PAGES: usize = WORDS * 64;

pub(crate) type Chunk = [u64; WORDS];

/// Pages that are in no chunk are not in the set.
#[derive(Clone, Default, Debug)]
pub(crate) struct Bitmap {
    chunks: Vec<Arc<Chunk>>,
}

fn place(page: PageNumber) -> (usize, usize, u64) {
    let page = page.0 as usize;
    (page / CHUNK_PAGES, page % CHUNK_PAGES / 64, 1 << (page % CHUNK_PAGES % 64))
}

fn number(chunk: usize, word: usize, bit: u32) -> PageNumber {
    PageNumber((chunk * CHUNK_PAGES + word * 64) as u32 + bit)
}

impl Bitmap {
    pub(crate) fn from_chunks(chunks: Vec<Chunk>) -> Bitmap {
        Bitmap { chunks: chunks.into_iter().map(Arc::new).collect() }
    }

    pub(crate) fn chunks(&self) -> impl Iterator<Item = &Chunk> {
        self.chunks.iter().map(|chunk| &**chunk)
    }

    pub(crate) fn contains(&self, page: PageNumber) -> bool {
        let (chunk, word, bit) = place(page);
        self.chunks.get(chunk).is_some_and(|chunk| chunk[word] & bit != 0)
    }

    pub(crate) fn insert(&mut self, page: PageNumber) {
        let (chunk, word, bit) = place(page);
        while self.chunks.len() <= chunk {
            self.chunks.push(Arc::new([0; WORDS]));
        }
        Arc::make_mut(&mut self.chunks[chunk])[word] |= bit;
    }

    pub(crate) fn remove(&mut self, page: PageNumber) {
        let (chunk, word, bit) = place(page);
        if let Some(chunk) = self.chunks.get_mut(chunk) {
            Arc::make_mut(chunk)[word] &= !bit;
        }
    }

    pub(crate) fn insert_all(&mut self, other: &Bitmap) {
        for (index, theirs) in other.chunks.iter().enumerate() {
            match self.chunks.get_mut(index) {
                None => self.chunks.push(Arc::clone(theirs)),
                // What clones still share needs no look: a quiet part of the file costs nothing.
                Some(ours) if Arc::ptr_eq(ours, theirs) => {}
                Some(ours) => {
                    let ours = Arc::make_mut(ours);
                    ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours |= theirs);
                }
            }
        }
    }

    pub(crate) fn remove_all(&mut self, other: &Bitmap) {
        for (ours, theirs) in self.chunks.iter_mut().zip(&other.chunks) {
            let ours = Arc::make_mut(ours);
            ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours &= !theirs);
        }
    }

    pub(crate) fn keep_only(&mut self, other: &Bitmap) {
        self.chunks.truncate(other.chunks.len());
        for (ours, theirs) in self.chunks.iter_mut().zip(&other.chunks) {
            let ours = Arc::make_mut(ours);
            ours.iter_mut().zip(theirs.iter()).for_each(|(ours, theirs)| *ours &= theirs);
        }
    }

    pub(crate) fn count(&self) -> u64 {
        self.chunks.iter().flat_map(|chunk| chunk.iter()).map(|word| u64::from(word.count_ones())).sum()
    }

    /// One past the last page in the set.
    pub(crate) fn end(&self) -> PageNumber {
        for (index, chunk) in self.chunks.iter().enumerate().rev() {
            if let Some(word) = chunk.iter().rposition(|&word| word != 0) {
                return number(index, word, 64 - chunk[word].leading_zeros());
            }
        }
        PageNumber(0)
    }

    /// The first page from here on that is in the set.
    pub(crate) fn next(&self, from: PageNumber) -> Option<PageNumber> {
        self.find(from, |word| word)
    }

    /// The first page from here on that is not in the set.
    pub(crate) fn next_absent(&self, from: PageNumber) -> PageNumber {
        let beyond = PageNumber((self.chunks.len() * CHUNK_PAGES) as u32);
        self.find(from, |word| !word).unwrap_or(beyond.max(from))
    }

    /// The first of this many pages from here on, all next to each other, none of them in the set.
    pub(crate) fn absent_run(&self, from: PageNumber, length: u32) -> PageNumber {
        let mut start = self.next_absent(from);
        loop {
            match self.next(start) {
                Some(taken) if taken.0 - start.0 < length => start = self.next_absent(taken),
                _ => return start,
            }
        }
    }

    fn find(&self, from: PageNumber, look: impl Fn(u64) -> u64) -> Option<PageNumber> {
        let (first, mut word, bit) = place(from);
        // Within the first word, only what is at or above the start.
        let mut mask = !(bit - 1);
        for (index, chunk) in self.chunks.iter().enumerate().skip(first) {
            while word < WORDS {
                let found = look(chunk[word]) & mask;
                if found != 0 {
                    return Some(number(index, word, found.trailing_zeros()));
                }
                mask = u64::MAX;
                word += 1;
            }
            word = 0;
        }
        None
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = PageNumber> {
        std::iter::successors(self.next(PageNumber(0)), |page| self.next(PageNumber(page.0 + 1)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(pages: &[u32]) -> Bitmap {
        let mut set = Bitmap::default();
        pages.iter().for_each(|&page| set.insert(PageNumber(page)));
        set
    }

    fn pages(set: &Bitmap) -> Vec<u32> {
        set.iter().map(|page| page.0).collect()
    }

    #[test]
    fn a_set_of_numbers() {
        let edge = CHUNK_PAGES as u32;
        let mut one = set(&[0, 63, 64, edge - 1, edge, 2 * edge + 5]);
        assert_eq!(pages(&one), [0, 63, 64, edge - 1, edge, 2 * edge + 5]);
        assert_eq!((one.count(), one.end()), (6, PageNumber(2 * edge + 6)));
        let before = one.clone();
        one.remove_all(&set(&[63, edge]));
        assert_eq!(pages(&one), [0, 64, edge - 1, 2 * edge + 5]);
        one.insert_all(&set(&[7]));
        one.keep_only(&set(&[7, 64, 65]));
        assert_eq!(pages(&one), [7, 64]);
        assert_eq!(before.count(), 6, "a clone stays as it was");
    }

    #[test]
    fn runs_of_what_is_absent() {
        let edge = CHUNK_PAGES as u32;
        let taken = set(&[0, 1, 5, 9, edge + 3]);
        assert_eq!(taken.next_absent(PageNumber(0)), PageNumber(2));
        assert_eq!(taken.absent_run(PageNumber(0), 3), PageNumber(2));
        assert_eq!(taken.absent_run(PageNumber(3), 3), PageNumber(6));
        assert_eq!(taken.absent_run(PageNumber(0), 4), PageNumber(10));
        assert_eq!(taken.absent_run(PageNumber(0), edge), PageNumber(edge + 4));
        assert_eq!(Bitmap::default().absent_run(PageNumber(2), 9), PageNumber(2));
    }
}
