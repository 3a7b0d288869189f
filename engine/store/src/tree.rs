//! A B+tree of byte strings: payloads in leaves, separators in branches, copy on write.
//!
//! A tree is the number of its root page; everything else is in the pages. Pages know their children and nobody else,
//! so a copied page changes its parent alone: a writer comes down from the root and makes every page on its way its own
//! ([`Space::writable`]), once a generation, and remembers the way as a [`Path`].
//!
//! Invariants:
//!   - all leaves are equally deep, and none is empty; a branch has one child more than keys, and the root at least one
//!     key;
//!   - a key that is not below a branch's separator, nor above the next, is in the child between them;
//!   - no page is of a newer generation than the page that refers to it.
//!
//! | module | owns |
//! |---|---|
//! | `insert` | making room, splitting |
//! | `delete` | removing, merging |
//! | `cursor` | positions, and ranges from both ends |

mod cursor;
mod delete;
mod insert;

pub(crate) use cursor::Cells;

use crate::mapping::Mapping;
use crate::page::{Page, PageNumber};
use crate::space::Space;

/// A root. The empty tree has no page.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Tree {
    pub(crate) root: PageNumber,
}

/// More than any tree can have: a branch has at least two children, and there are 2^32 pages.
const HEIGHT_MAX: usize = 33;

/// The way from the root to a place in a leaf. Every page on it may be written.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    height: usize,
    /// In a branch the index of a child, in the leaf, which is last, of a cell.
    steps: [(PageNumber, u16); HEIGHT_MAX],
}

impl Path {
    fn empty() -> Path {
        Path { height: 0, steps: [(PageNumber::NONE, 0); HEIGHT_MAX] }
    }

    fn push(&mut self, page: PageNumber, index: usize) {
        self.steps[self.height] = (page, index as u16);
        self.height += 1;
    }

    fn step(&self, depth: usize) -> (PageNumber, usize) {
        let (page, index) = self.steps[depth];
        (page, usize::from(index))
    }

    /// The leaf, and which of its cells.
    pub(crate) fn place(&self) -> (PageNumber, usize) {
        self.step(self.height - 1)
    }
}

impl Tree {
    pub(crate) const EMPTY: Tree = Tree { root: PageNumber::NONE };

    /// The payload of this key.
    pub(crate) fn get<'a>(&self, mapping: &'a Mapping, key: &[u8]) -> Option<&'a [u8]> {
        self.locate(mapping, key).map(|(_, page, index)| page.payload(index))
    }

    /// The leaf that has this key, and in which of its cells.
    pub(crate) fn locate<'a>(&self, mapping: &'a Mapping, key: &[u8]) -> Option<(PageNumber, &'a Page, usize)> {
        let mut number = self.root;
        if number == PageNumber::NONE {
            return None;
        }
        for _ in 0..HEIGHT_MAX {
            let page = mapping.page(number);
            if !page.is_branch() {
                return page.search(key).ok().map(|index| (number, page, index));
            }
            number = page.child(page.child_index(key));
        }
        // A page from an earlier time, sound in itself, may lead back to one above it.
        panic!("the way down from page {} does not end", self.root)
    }

    /// Goes to where the key is, or is to be, and makes the way there the writer's own. Whether it is there.
    pub(crate) fn find(&mut self, space: &mut Space, key: &[u8]) -> (Path, bool) {
        let mut path = Path::empty();
        if self.root == PageNumber::NONE {
            return (path, false);
        }
        self.root = space.writable(self.root);
        let mut number = self.root;
        loop {
            let page = space.page(number);
            if !page.is_branch() {
                let found = page.search(key);
                path.push(number, found.unwrap_or_else(|index| index));
                return (path, found.is_ok());
            }
            let index = page.child_index(key);
            let child = page.child(index);
            let own = space.writable(child);
            if own != child {
                space.page_mut(number).set_child(index, own);
            }
            path.push(number, index);
            number = own;
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Store;

    /// `synod-torture corrupt`: a page of an earlier time, its checksum sound, had a page above it for a child. Each read of a key
    /// there went round for ever, and the replica with it.
    #[test]
    #[should_panic(expected = "does not end")]
    fn a_way_that_leads_back_ends() {
        let mut store = Store::new();
        let mut change = store.change();
        for key in 0..1000_u32 {
            change.put(&key.to_be_bytes(), b"value");
        }
        let root = store.image.present.root;
        assert!(store.space.page(root).is_branch());
        store.space.page_mut(root).set_child(1, root);
        let below = store.space.page(root).key(0).to_vec();
        assert_eq!(store.get(&below), None, "it ends before");
    }
}
