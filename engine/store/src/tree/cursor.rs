//! Positions, and ranges from both ends.

use std::cmp::Ordering;
use std::ops::Bound;

use super::{HEIGHT_MAX, Tree};
use crate::mapping::Mapping;
use crate::page::{Page, PageNumber};

/// A cell, and the way to it from the root.
#[derive(Clone)]
struct Position<'a> {
    mapping: &'a Mapping,
    leaf: &'a Page,
    /// Which of the leaf's cells. One past the last, or before the first, only while it moves.
    index: usize,
    /// The branches from the root down, and which of their children.
    steps: Vec<(&'a Page, u16)>,
}

impl<'a> Position<'a> {
    /// The first cell whose key is not below this one (or is above it).
    fn first(tree: Tree, mapping: &'a Mapping, start: Bound<&[u8]>) -> Option<Position<'a>> {
        let key = match start {
            Bound::Included(key) | Bound::Excluded(key) => Some(key),
            Bound::Unbounded => None,
        };
        let mut position = Position::descend(tree, mapping, |page| key.map_or(0, |key| page.child_index(key)))?;
        position.index = match (key.map(|key| position.leaf.search(key)), start) {
            (None, _) => 0,
            (Some(Ok(index)), Bound::Excluded(_)) => index + 1,
            (Some(Ok(index) | Err(index)), _) => index,
        };
        (position.index < position.leaf.count() || position.next_leaf()).then_some(position)
    }

    /// The last cell whose key is not above this one (or is below it).
    fn last(tree: Tree, mapping: &'a Mapping, end: Bound<&[u8]>) -> Option<Position<'a>> {
        let key = match end {
            Bound::Included(key) | Bound::Excluded(key) => Some(key),
            Bound::Unbounded => None,
        };
        let mut position =
            Position::descend(tree, mapping, |page| key.map_or(page.count(), |key| page.child_index(key)))?;
        // One past it.
        position.index = match (key.map(|key| position.leaf.search(key)), end) {
            (None, _) => position.leaf.count(),
            (Some(Ok(index)), Bound::Included(_)) => index + 1,
            (Some(Ok(index) | Err(index)), _) => index,
        };
        position.back().then_some(position)
    }

    fn descend(tree: Tree, mapping: &'a Mapping, child: impl Fn(&Page) -> usize) -> Option<Position<'a>> {
        if tree.root == PageNumber::NONE {
            return None;
        }
        let mut steps = Vec::new();
        let mut page = mapping.page(tree.root);
        while page.is_branch() {
            let index = child(page);
            steps.push((page, index as u16));
            assert!(steps.len() < HEIGHT_MAX);
            page = mapping.page(page.child(index));
        }
        Some(Position { mapping, leaf: page, index: 0, steps })
    }

    fn forward(&mut self) -> bool {
        self.index += 1;
        self.index < self.leaf.count() || self.next_leaf()
    }

    fn back(&mut self) -> bool {
        let Some(index) = self.index.checked_sub(1) else { return self.previous_leaf() };
        self.index = index;
        true
    }

    fn next_leaf(&mut self) -> bool {
        let Some(depth) = self.steps.iter().rposition(|(page, index)| usize::from(*index) < page.count()) else {
            return false;
        };
        self.steps[depth].1 += 1;
        self.down(depth, |_| 0);
        self.index = 0;
        true
    }

    fn previous_leaf(&mut self) -> bool {
        let Some(depth) = self.steps.iter().rposition(|(_, index)| *index > 0) else {
            return false;
        };
        self.steps[depth].1 -= 1;
        self.down(depth, Page::count);
        self.index = self.leaf.count() - 1;
        true
    }

    /// From the child of this branch, which has changed, to a leaf.
    fn down(&mut self, depth: usize, child: impl Fn(&Page) -> usize) {
        for depth in depth..self.steps.len() {
            let (page, index) = self.steps[depth];
            let below = self.mapping.page(page.child(usize::from(index)));
            match self.steps.get_mut(depth + 1) {
                Some(step) => *step = (below, child(below) as u16),
                None => self.leaf = below,
            }
        }
    }

    fn key(&self) -> &'a [u8] {
        self.leaf.key(self.index)
    }

    fn cell(&self) -> (&'a [u8], &'a [u8]) {
        (self.key(), self.leaf.payload(self.index))
    }

    fn is_at(&self, other: &Position<'_>) -> bool {
        std::ptr::eq(self.leaf, other.leaf) && self.index == other.index
    }
}

/// Keys and payloads in order, from either end.
#[derive(Clone)]
pub(crate) struct Cells<'a> {
    /// The next of each end. Not there when there is none between them.
    ends: Option<(Position<'a>, Position<'a>)>,
}

impl<'a> Cells<'a> {
    /// Empty if the bounds cross.
    pub(crate) fn new(tree: Tree, mapping: &'a Mapping, start: Bound<&[u8]>, end: Bound<&[u8]>) -> Cells<'a> {
        let ends = Position::first(tree, mapping, start).zip(Position::last(tree, mapping, end));
        Cells { ends: ends.filter(|(first, last)| first.key().cmp(last.key()) != Ordering::Greater) }
    }
}

impl<'a> Iterator for Cells<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (first, last) = self.ends.as_mut()?;
        let cell = first.cell();
        if first.is_at(last) || !first.forward() {
            self.ends = None;
        }
        Some(cell)
    }
}

impl DoubleEndedIterator for Cells<'_> {
    fn next_back(&mut self) -> Option<Self::Item> {
        let (first, last) = self.ends.as_mut()?;
        let cell = last.cell();
        if first.is_at(last) || !last.back() {
            self.ends = None;
        }
        Some(cell)
    }
}
