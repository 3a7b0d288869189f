//! Removing, merging.
//!
//! A page that has become a third full joins a neighbour if both fit one page; else it stays. So of two neighbours that
//! were thinned out one goes back to the space. A branch may be left with a single child, and no key, when the key
//! between it and a full neighbour is a long one; a leaf that has become empty goes at once, and such a branch with it.

use super::{Path, Tree};
use crate::page::{self, Kind, PageNumber, ROOM_BYTES, SLOT_BYTES};
use crate::space::Space;

/// Below it a page looks for a neighbour to join.
const USED_MIN: usize = ROOM_BYTES / 3;

impl Tree {
    /// Removes the cell to which `path` leads. The path is of no use afterwards.
    pub(crate) fn remove(&mut self, space: &mut Space, path: &Path) {
        let (leaf, index) = path.place();
        space.page_mut(leaf).remove(index);
        let mut is_void = space.page(leaf).count() == 0;
        for depth in (1..path.height).rev() {
            let (number, _) = path.step(depth);
            let (parent, index) = path.step(depth - 1);
            if is_void {
                space.free(number);
                is_void = space.page(parent).count() == 0;
                if !is_void {
                    unlink(space, parent, index);
                }
            } else if space.page(number).used() >= USED_MIN || !join(space, parent, index) {
                return;
            }
        }
        if is_void {
            space.free(self.root);
            self.root = PageNumber::NONE;
        } else {
            self.lower(space);
        }
    }

    /// Drops a root that leads to one place only.
    fn lower(&mut self, space: &mut Space) {
        loop {
            let page = space.page(self.root);
            if !page.is_branch() || page.count() > 0 {
                return;
            }
            let below = page.child(0);
            space.free(self.root);
            self.root = below;
        }
    }
}

/// Takes the child of this index out of a branch that has others.
fn unlink(space: &mut Space, parent: PageNumber, index: usize) {
    let page = space.page_mut(parent);
    if index == 0 {
        let second = page.child(1);
        page.set_child(0, second);
    }
    page.remove(index.saturating_sub(1));
}

/// Joins the child of this index with a neighbour, if one page holds both.
fn join(space: &mut Space, parent: PageNumber, index: usize) -> bool {
    let count = space.page(parent).count();
    let left_first = [index.checked_sub(1), (index < count).then_some(index)];
    for left in left_first.into_iter().flatten() {
        let page = space.page(parent);
        let (left_page, right_page) = (page.child(left), page.child(left + 1));
        let between = match space.page(left_page).is_branch() {
            true => page::branch_cell_bytes(page.key(left)) + SLOT_BYTES,
            false => 0,
        };
        if space.page(left_page).used() + space.page(right_page).used() + between <= ROOM_BYTES {
            join_two(space, parent, left);
            return true;
        }
    }
    false
}

/// Joins the child of this index with the one at its right.
fn join_two(space: &mut Space, parent: PageNumber, index: usize) {
    let page = space.page(parent);
    let (left, right) = (page.child(index), page.child(index + 1));
    let separator = page.key(index).to_vec();
    let own = space.writable(left);
    let first = space.page(own).clone();
    let second = space.page(right).clone();
    let generation = space.generation();
    let page = space.page_mut(own);
    let kind = if first.is_branch() { Kind::Branch } else { Kind::Leaf };
    page.clear(kind, generation);
    page.append(&first, 0..first.count());
    if first.is_branch() {
        page.set_child(0, first.child(0));
        page.finish();
        page.insert_branch(first.count(), &separator, second.child(0));
    }
    page.append(&second, 0..second.count());
    page.finish();
    space.free(right);
    let page = space.page_mut(parent);
    page.remove(index);
    page.set_child(index, own);
}
