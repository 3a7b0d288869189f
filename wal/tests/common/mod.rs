//! A disk in memory that can lose power: what was written but not synced may be there afterwards or not, sector by
//! sector.

// Each test binary uses its own part of this.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::io;

use synod_wal::frame::FrameHeader;
use synod_wal::{
    Ballot, CellId, Flush, Identity, Incarnation, Log, Lost, OpenError, RecordKind, RecordRef, Recovered, ReplicaId,
    SegmentId, Settings, Slot, StartId, Storage, Upkeep, Visitor, inspect, read_record, recover,
};

pub(crate) const SECTOR_BYTES: usize = 512;

/// Segments of a few frames, frames of a few blocks: every boundary is met soon.
pub(crate) const SETTINGS: Settings =
    Settings { segment_bytes: 72 << 10, log_bytes_max: 72 << 20, frame_bytes_max: 24 << 10 };

pub(crate) fn identity(start: u64) -> Identity {
    Identity { cell: CellId(77), replica: ReplicaId(3), incarnation: Incarnation(1), start: StartId(start) }
}

#[derive(Clone, Default)]
pub(crate) struct Disk {
    pub(crate) segments: BTreeMap<SegmentId, Vec<u8>>,
    /// What the platter holds of sectors that were written since the last sync.
    unsynced: BTreeMap<(SegmentId, usize), Vec<u8>>,
}

impl Disk {
    /// Puts a written buffer into the device's cache.
    pub(crate) fn write(&mut self, flush: &Flush) {
        let segment = self.segments.get_mut(&flush.segment).expect("a flush goes to a segment that was made ready");
        assert!(flush.length.is_multiple_of(4096) && flush.offset.is_multiple_of(4096));
        for (i, sector) in flush.buffer[..flush.length].chunks(SECTOR_BYTES).enumerate() {
            let at = flush.offset as usize + i * SECTOR_BYTES;
            let old = segment[at..at + SECTOR_BYTES].to_vec();
            self.unsynced.entry((flush.segment, at)).or_insert(old);
            segment[at..at + SECTOR_BYTES].copy_from_slice(sector);
        }
    }

    pub(crate) fn sync_all(&mut self) {
        self.unsynced.clear();
    }

    /// Each unsynced sector survives or not, as `survives` says.
    pub(crate) fn lose_power(&mut self, mut survives: impl FnMut() -> bool) {
        for ((segment, at), old) in std::mem::take(&mut self.unsynced) {
            if !survives() {
                let bytes = self.segments.get_mut(&segment).expect("segments stay");
                bytes[at..at + SECTOR_BYTES].copy_from_slice(&old);
            }
        }
    }

    pub(crate) fn prepare(&mut self, log: &mut Log) {
        while let Some(upkeep) = log.upkeep() {
            self.carry_out(upkeep, log.settings().segment_bytes as usize);
            log.upkeep_done(upkeep);
        }
    }

    /// Changes the files. What a recycled segment held it still holds.
    pub(crate) fn carry_out(&mut self, upkeep: Upkeep, segment_bytes: usize) {
        let replaced = match upkeep {
            Upkeep::Make(segment) => self.segments.insert(segment, vec![0; segment_bytes]),
            Upkeep::Recycle { from, to } => {
                assert!(self.unsynced.keys().all(|(segment, _)| *segment != from), "what is cut off is durable");
                let mut bytes = self.segments.remove(&from).expect("only what is there is recycled");
                bytes.resize(segment_bytes, 0);
                self.segments.insert(to, bytes)
            }
            Upkeep::Remove(segment) => {
                self.segments.remove(&segment).expect("only what is there is removed");
                None
            }
        };
        assert!(replaced.is_none(), "no segment is made over another");
    }

    /// Flushes all that is queued; gives where each flush went: segment, offset, length.
    pub(crate) fn flush_all(&mut self, log: &mut Log) -> Vec<(SegmentId, u64, usize)> {
        let mut places = Vec::new();
        loop {
            self.prepare(log);
            let Some(flush) = log.seal() else { return places };
            places.push((flush.segment, flush.offset, flush.length));
            self.write(&flush);
            self.sync_all();
            log.flushed(flush.buffer);
        }
    }

    pub(crate) fn recover(&mut self, start: u64) -> Result<(Recovered, Vec<Item>), OpenError> {
        let mut items = Vec::new();
        let recovered = recover(self, SETTINGS, &identity(start), &mut |record| items.push(Item::from(record)))?;
        Ok((recovered, items))
    }

    /// As `recover`, with what is lost.
    pub(crate) fn recover_around(&mut self, start: u64) -> Result<(Recovered, Seen), OpenError> {
        let mut seen = Seen::default();
        let recovered = inspect(self, SETTINGS, &identity(start), &mut seen)?;
        assert_eq!(recovered.holes, seen.lost.len() as u64);
        Ok((recovered, seen))
    }

    /// Reads the record of a slot as catch-up does.
    pub(crate) fn locate(&self, log: &Log, slot: Slot) -> Option<Item> {
        let location = log.locate(slot)?;
        let (offset, length) = location.blocks();
        let blocks = &self.segments[&location.segment][offset as usize..offset as usize + length];
        Some(read_record(blocks, location, slot).expect("what is located is sound").into())
    }
}

/// What recovery has told.
#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) items: Vec<Item>,
    pub(crate) lost: Vec<Lost>,
}

impl Visitor for Seen {
    fn frame(&mut self, _: &FrameHeader) {}

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        self.items.push(Item::from(record));
    }

    fn lost(&mut self, lost: &Lost) -> synod_wal::LostSlots {
        self.lost.push(*lost);
        lost.known_slots().unwrap_or(synod_wal::LostSlots::ANY)
    }
}

impl Storage for Disk {
    fn segments(&mut self) -> io::Result<Vec<SegmentId>> {
        Ok(self.segments.keys().rev().copied().collect())
    }

    fn segment_bytes(&mut self, segment: SegmentId) -> io::Result<u64> {
        Ok(self.segments[&segment].len() as u64)
    }

    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        assert_eq!(into.as_ptr().align_offset(4096), 0);
        assert!(into.len().is_multiple_of(4096) && offset.is_multiple_of(4096));
        into.copy_from_slice(&self.segments[&segment][offset as usize..offset as usize + into.len()]);
        Ok(())
    }

    fn sync(&mut self, _segment: SegmentId) -> io::Result<()> {
        self.sync_all();
        Ok(())
    }
}

/// A record as it was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) kind: RecordKind,
    pub(crate) slot: Slot,
    pub(crate) ballot: Ballot,
    pub(crate) payload: Vec<u8>,
}

impl From<RecordRef<'_>> for Item {
    fn from(record: RecordRef<'_>) -> Self {
        Self { kind: record.kind, slot: record.slot, ballot: record.ballot, payload: record.payload.to_vec() }
    }
}

impl Item {
    /// An item whose payload no other `seed` has, and without a zero byte, so that losing any of it shows.
    pub(crate) fn new(kind: RecordKind, slot: u64, length: usize, seed: u64) -> Self {
        let mut payload: Vec<u8> = (0..length).map(|i| ((i as u64 * 31 + seed * 7) % 255 + 1) as u8).collect();
        payload.extend(seed.to_le_bytes().map(|byte| byte | 0x80));
        payload.extend((seed ^ u64::MAX).to_le_bytes().map(|byte| byte | 0x01));
        payload.extend(format!("#{seed}").bytes());
        Self { kind, slot: Slot(slot), ballot: Ballot(u128::from(seed) << 64 | 1), payload }
    }

    pub(crate) fn append(&self, log: &mut Log) {
        match self.kind {
            RecordKind::HardState => log.append_hard_state(self.ballot, log.identity().incarnation, &self.payload),
            kind => {
                let (head, tail) = self.payload.split_at(self.payload.len() / 3);
                log.append(kind, self.slot, self.ballot, &[head, tail])
            }
        };
    }
}

/// Takes out the hard states that were only repeated, having checked that they repeat the last one.
pub(crate) fn without_repeats(items: Vec<Item>) -> Vec<Item> {
    let mut kept: Vec<Item> = Vec::new();
    let mut last: Option<Item> = None;
    for item in items {
        if item.kind == RecordKind::HardState {
            if last.as_ref() == Some(&item) {
                continue;
            }
            last = Some(item.clone());
        }
        kept.push(item);
    }
    kept
}
