//! Making room, splitting.

use super::{Path, Tree};
use crate::page::{self, CELL_BYTES_MAX, Kind, Page, PageNumber, SLOT_BYTES, shared_bytes};
use crate::space::Space;

/// What a page that was split tells its parent.
struct Split {
    separator: Vec<u8>,
    right: PageNumber,
    /// Keys come in rising order, it seems: what is at the left stays full.
    rising: bool,
}

impl Tree {
    /// Makes room for the payload of a key that is not in the tree, where `path` leads, and returns where it is to be
    /// written. The path is of no use afterwards.
    pub(crate) fn insert<'a>(
        &mut self,
        space: &'a mut Space,
        path: &Path,
        key: &[u8],
        payload_bytes: usize,
    ) -> &'a mut [u8] {
        let cell_bytes = page::leaf_cell_bytes(key, payload_bytes);
        assert!(cell_bytes <= CELL_BYTES_MAX, "a key of {} and a payload of {payload_bytes} bytes", key.len());
        if path.height == 0 {
            self.root = space.allocate(Kind::Leaf);
            return space.page_mut(self.root).insert_leaf(0, key, payload_bytes);
        }
        let (leaf, index) = path.place();
        if space.page(leaf).fits(cell_bytes) {
            return space.page_mut(leaf).insert_leaf(index, key, payload_bytes);
        }
        let (split, page, index) = split_leaf(space, path, key, cell_bytes);
        self.raise(space, path, split);
        space.page_mut(page).insert_leaf(index, key, payload_bytes)
    }

    /// Gives the payload at `path` another length, and returns where it is to be written.
    pub(crate) fn replace<'a>(
        &mut self,
        space: &'a mut Space,
        path: &Path,
        key: &[u8],
        payload_bytes: usize,
    ) -> &'a mut [u8] {
        let (leaf, index) = path.place();
        if space.page(leaf).payload(index).len() != payload_bytes {
            space.page_mut(leaf).remove(index);
            return self.insert(space, path, key, payload_bytes);
        }
        space.page_mut(leaf).payload_mut(index)
    }

    /// Tells the parents, from the leaf's up.
    fn raise(&mut self, space: &mut Space, path: &Path, split: Split) {
        let mut split = split;
        for depth in (0..path.height - 1).rev() {
            let (branch, index) = path.step(depth);
            if space.page(branch).fits(page::branch_cell_bytes(&split.separator)) {
                return space.page_mut(branch).insert_branch(index, &split.separator, split.right);
            }
            split = split_branch(space, branch, index, &split);
        }
        let root = space.allocate(Kind::Branch);
        let left = self.root;
        let page = space.page_mut(root);
        page.set_child(0, left);
        page.insert_branch(0, &split.separator, split.right);
        self.root = root;
    }
}

/// The cells of a full page and the one that is to come among them, in order.
struct Lineup<'a> {
    page: &'a Page,
    /// Where the new one belongs.
    index: usize,
    /// What it takes, its slot included.
    bytes: usize,
    key: &'a [u8],
}

impl Lineup<'_> {
    fn bytes(&self, at: usize) -> usize {
        if at == self.index { self.bytes } else { self.page.cell_bytes(at - usize::from(at > self.index)) }
    }

    fn key(&self, at: usize) -> &[u8] {
        if at == self.index { self.key } else { self.page.key(at - usize::from(at > self.index)) }
    }

    /// How many come to the left so that both sides have about as much.
    ///
    /// Neither is too full then: both have together less than a page and a half, since a cell takes at most half a
    /// page, and some cut is within half a cell of the middle.
    fn middle(&self) -> usize {
        let total = self.page.used() + self.bytes;
        let mut left = 0;
        for at in 0..self.page.count() {
            let bytes = self.bytes(at);
            if 2 * left + bytes > total && at > 0 {
                return at;
            }
            left += bytes;
        }
        self.page.count()
    }
}

/// Splits the leaf so that a cell of this key fits, and says in which page, and where.
fn split_leaf(space: &mut Space, path: &Path, key: &[u8], cell_bytes: usize) -> (Split, PageNumber, usize) {
    let (left, index) = path.place();
    let right = space.allocate(Kind::Leaf);
    let before = space.page(left).clone();
    let count = before.count();
    let lineup = Lineup { page: &before, index, bytes: cell_bytes + SLOT_BYTES, key };
    let is_rightmost = (0..path.height - 1).all(|depth| {
        let (branch, index) = path.step(depth);
        index == space.page(branch).count()
    });
    let rising = is_rightmost && index == count;
    let cut = if rising { count } else { lineup.middle() };
    // A branch needs no more of a key than tells the two sides apart.
    let (last, first) = (lineup.key(cut - 1), lineup.key(cut));
    let separator = first[..shared_bytes(last, first) + 1].to_vec();

    let goes_left = index < cut;
    let at = cut - usize::from(goes_left);
    let generation = space.generation();
    let page = space.page_mut(right);
    page.append(&before, at..count);
    page.finish();
    if at < count {
        let page = space.page_mut(left);
        page.clear(Kind::Leaf, generation);
        page.append(&before, 0..at);
        page.finish();
    }
    let (page, index) = if goes_left { (left, index) } else { (right, index - at) };
    (Split { separator, right, rising }, page, index)
}

/// Splits the branch, and puts the key that a split child sent up, and its new sibling, where they belong.
fn split_branch(space: &mut Space, left: PageNumber, index: usize, sent: &Split) -> Split {
    let right = space.allocate(Kind::Branch);
    let before = space.page(left).clone();
    let count = before.count();
    let bytes = page::branch_cell_bytes(&sent.separator) + SLOT_BYTES;
    let lineup = Lineup { page: &before, index, bytes, key: &sent.separator };
    let child = |at: usize| if at == index { sent.right } else { before.child(at + usize::from(at < index)) };
    let rising = sent.rising && index == count;
    // This key goes up, and what is right of it becomes the leftmost of the right page, which needs a key of its own.
    let up = if rising { count - 1 } else { lineup.middle().min(count - 1) };
    let generation = space.generation();
    let page = space.page_mut(right);
    page.set_child(0, child(up));
    for at in up + 1..=count {
        page.insert_branch(at - up - 1, lineup.key(at), child(at));
    }
    page.finish();
    let page = space.page_mut(left);
    page.clear(Kind::Branch, generation);
    page.set_child(0, before.child(0));
    for at in 0..up {
        page.insert_branch(at, lineup.key(at), child(at));
    }
    page.finish();
    Split { separator: lineup.key(up).to_vec(), right, rising }
}
