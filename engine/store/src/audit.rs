//! What can be reached is what is in use, no more and no less.

use crate::Store;
use crate::bitmap::Bitmap;
use crate::damage;
use crate::page::PageNumber;
use crate::row::Kept;
use crate::tree::Tree;

/// A tree's keys and payloads, one by one.
type Visit<'a> = &'a mut dyn FnMut(&[u8], &[u8]);

impl Store {
    /// Goes through every page, and panics if one is in use that no tree leads to, if one is led to twice or is free,
    /// or if rows and bytes are not as many as counted. Returns how many pages there are. For tests.
    pub fn audit(&self) -> u64 {
        let mut reached = Bitmap::default();
        let (mut rows, mut bytes) = (0, 0);
        let mut overflows = Vec::new();
        let mut present = |key: &[u8], payload: &[u8]| {
            let kept = Kept::decode(payload);
            rows += 1;
            bytes += (key.len() + kept.value_bytes()) as u64;
            overflows.extend(kept.overflow());
        };
        self.walk(self.image.present, &mut reached, &mut present);
        assert_eq!((rows, bytes), (self.image.rows, self.image.bytes));
        let mut past = |_: &[u8], payload: &[u8]| overflows.extend(Kept::decode(payload).overflow());
        self.walk(self.image.history, &mut reached, &mut past);
        self.walk(self.image.changes, &mut reached, &mut |_, _| {});
        for first in overflows {
            let pages = damage::pages_of(self.space.page(first)).expect("a value's first page");
            (first.0..first.0 + pages).for_each(|number| reach(&mut reached, PageNumber(number)));
        }
        let count = reached.count();
        for number in self.space.live().iter() {
            assert!(reached.contains(number), "page {number} is in use, and nothing leads to it");
        }
        assert_eq!(count, self.space.live().count(), "a page that something leads to is free");
        count
    }

    fn walk(&self, tree: Tree, reached: &mut Bitmap, visit: Visit<'_>) {
        let mut next = vec![tree.root];
        let mut last: Option<Vec<u8>> = None;
        while let Some(number) = next.pop().filter(|&number| number != PageNumber::NONE) {
            reach(reached, number);
            let page = self.space.page(number);
            if page.is_branch() {
                // The leftmost last, so that it is the next.
                next.extend((0..=page.count()).rev().map(|index| page.child(index)));
                continue;
            }
            assert!(page.count() > 0, "leaf {number} is empty");
            for index in 0..page.count() {
                let key = page.key(index);
                assert!(last.as_deref().is_none_or(|last| last < key), "keys are in order, within pages and across");
                visit(key, page.payload(index));
                last = Some(key.to_vec());
            }
        }
    }
}

fn reach(reached: &mut Bitmap, number: PageNumber) {
    assert!(!reached.contains(number), "two ways lead to page {number}");
    reached.insert(number);
}
