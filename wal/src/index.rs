//! Where the last record of each slot lies: what catch-up reads a slot's value by.
//!
//! Slots are dense, so this is an array that moves along: its first slot falls off when the log is cut. It is a means
//! of reading faster, never a truth: a slot that it does not know is asked of another replica, or comes with a snapshot.

use std::collections::VecDeque;

use crate::record::{Location, Outline, RecordKind};
use crate::types::{SegmentId, Slot};

/// The largest gap that is bridged by empty entries. Slots in use lie within the protocol's horizon of each other;
/// only an installed snapshot jumps further, and then what was before the jump is of no use to anyone.
const GAP_MAX: u64 = 1 << 20;

/// Sixteen bytes a slot; a length of zero is an empty entry.
#[derive(Clone, Copy, Default)]
struct Entry {
    segment: u32,
    offset: u32,
    length: u32,
    checksum: u32,
}

/// The places of the last records of a dense range of slots.
#[derive(Default)]
pub(crate) struct SlotIndex {
    first: u64,
    entries: VecDeque<Entry>,
}

impl SlotIndex {
    /// Notes the records of a durable frame whose payload begins at `base` in `segment`.
    pub(crate) fn note(&mut self, segment: SegmentId, base: u64, outlines: impl Iterator<Item = Outline>) {
        for outline in outlines {
            let segment = u32::try_from(segment.0).expect("the settings bound the number of segments");
            let offset = u32::try_from(base + outline.offset as u64).expect("the settings bound a segment's size");
            let entry = Entry { segment, offset, length: outline.length, checksum: outline.checksum };
            match outline.kind {
                RecordKind::HardState => {}
                RecordKind::Accepted | RecordKind::Chosen => self.set(outline.slot, entry),
            }
        }
    }

    /// Where the last record of `slot` lies, if it is known.
    pub(crate) fn get(&self, slot: Slot) -> Option<Location> {
        let at = slot.0.checked_sub(self.first)?;
        let entry = self.entries.get(usize::try_from(at).ok()?)?;
        if entry.length == 0 {
            return None;
        }
        let (segment, offset) = (SegmentId(u64::from(entry.segment)), u64::from(entry.offset));
        Some(Location { segment, offset, length: entry.length, checksum: entry.checksum })
    }

    /// Forgets all slots below `slot`.
    pub(crate) fn forget_below(&mut self, slot: Slot) {
        let count = slot.0.saturating_sub(self.first).min(self.entries.len() as u64);
        self.entries.drain(..count as usize);
        self.first = self.first.max(slot.0);
    }

    /// Forgets the slots of a range: what is known of them need not be the last record.
    pub(crate) fn forget(&mut self, first: Slot, last: Slot) {
        let end = self.first + self.entries.len() as u64;
        for slot in first.0.max(self.first)..last.0.saturating_add(1).min(end) {
            self.entries[(slot - self.first) as usize] = Entry::default();
        }
    }

    fn set(&mut self, slot: Slot, entry: Entry) {
        let end = self.first + self.entries.len() as u64;
        if self.entries.is_empty() || slot.0 > end.saturating_add(GAP_MAX) {
            self.entries.clear();
            self.first = slot.0;
        }
        if slot.0 < self.first {
            if self.first - slot.0 > GAP_MAX {
                return;
            }
            while slot.0 < self.first {
                self.entries.push_front(Entry::default());
                self.first -= 1;
            }
        }
        let at = (slot.0 - self.first) as usize;
        if at >= self.entries.len() {
            self.entries.resize(at + 1, Entry::default());
        }
        self.entries[at] = entry;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(index: &mut SlotIndex, kind: RecordKind, slot: u64, offset: usize, length: u32) {
        index.note(SegmentId(1), 0, std::iter::once(Outline { offset, kind, slot: Slot(slot), length, checksum: 0 }));
    }

    fn offset(index: &SlotIndex, slot: u64) -> Option<u64> {
        index.get(Slot(slot)).map(|location| location.offset)
    }

    #[test]
    fn the_last_record_is_found() {
        let mut index = SlotIndex::default();
        note(&mut index, RecordKind::Accepted, 7, 64, 100);
        note(&mut index, RecordKind::Accepted, 5, 192, 100);
        note(&mut index, RecordKind::Accepted, 7, 320, 100);
        note(&mut index, RecordKind::HardState, 0, 480, 100);
        assert_eq!(offset(&index, 7), Some(320));
        assert_eq!(offset(&index, 5), Some(192));
        assert_eq!(
            (offset(&index, 0), offset(&index, 4), offset(&index, 6), offset(&index, 8)),
            (None, None, None, None)
        );
        note(&mut index, RecordKind::Chosen, 7, 512, 100);
        assert_eq!(offset(&index, 7), Some(512));
        index.forget_below(Slot(6));
        assert_eq!((offset(&index, 5), offset(&index, 7)), (None, Some(512)));
    }

    #[test]
    fn a_far_jump_starts_over_and_costs_no_memory() {
        let mut index = SlotIndex::default();
        note(&mut index, RecordKind::Accepted, 7, 64, 100);
        note(&mut index, RecordKind::Accepted, 1 << 60, 128, 100);
        note(&mut index, RecordKind::Accepted, 9, 192, 100);
        assert_eq!((offset(&index, 7), offset(&index, 9), offset(&index, 1 << 60)), (None, None, Some(128)));
        assert_eq!(index.entries.len(), 1);
    }
}
