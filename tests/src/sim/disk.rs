//! A disk in memory that can stop at any moment.
//!
//! A flush has two steps, as on a device with a volatile cache: it is *written*, and may be lost with the power, and it
//! is *synced*, and stays. A crash in between, or before, leaves any part of it, in sectors of 512 bytes. What a mere
//! end of the process leaves in the cache is read back by the next life, and can still be lost until that life syncs it.
//!
//! Three more things that disks do, each placed by the atlas: frames rot; a write that was acknowledged is not there, or is in
//! another frame's place, and the block is as it was before; a read fails. Never the last frame: that nobody would see. But a write
//! that hits the start of a segment can make the end of the log pass for lost, and then the replica rejoins.

use std::collections::{BTreeMap, VecDeque};
use std::io;

use fastrand::Rng;
use synod_paxos::ReplicaId;
use synod_ring::BLOCK_BYTES;
use synod_wal::frame::FrameHeader;
use synod_wal::{
    Flush, FrameNumber, Identity, Lost, LostSlots, RecordRef, SegmentId, Settings, Storage, Upkeep, Visitor, inspect,
};

use super::snapshots::Databases;
use super::swarm::Tearing;

const SECTOR_BYTES: usize = 512;

/// What lies in the device's cache only.
struct Cached {
    segment: SegmentId,
    offset: usize,
    /// What is on the platter instead.
    before: Vec<u8>,
}

/// How a write that was acknowledged is not where it should be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Astray {
    /// It is nowhere.
    Lost,
    /// It is in an older frame's place, or at the start of a segment that has not begun.
    Misdirected,
}

/// One replica's disk.
pub(crate) struct Disk {
    /// Whose directory is on it; `None`: it was wiped.
    owner: Option<ReplicaId>,
    segment_bytes: u64,
    segments: BTreeMap<SegmentId, Vec<u8>>,
    /// Flushes under way, oldest first; one, unless the log was lied to.
    under_way: VecDeque<Flush>,
    /// The first of them is in the cache.
    written: bool,
    cached: Vec<Cached>,
    /// Where the last synced flush is.
    last: Option<(SegmentId, usize, usize)>,
    /// The last synced flush, if it went astray: no later frame proves yet that it was there.
    unproven: Option<(SegmentId, usize, Vec<u8>)>,
    /// A write has hit the start of a segment: while that is the next to be used, it may have begun, for all that can be seen (seed 334).
    has_hit_start: bool,
    /// After so many reads more all of them fail.
    reads_left: Option<u32>,
    /// A planted bug: what cannot be read is taken for zeros.
    hides_errors: bool,
    pub(crate) databases: Databases,
}

impl Disk {
    pub(crate) fn new(owner: ReplicaId, segment_bytes: u64) -> Disk {
        let (segments, under_way) = (BTreeMap::new(), VecDeque::new());
        Disk {
            owner: Some(owner),
            segment_bytes,
            segments,
            under_way,
            written: false,
            cached: Vec::new(),
            last: None,
            unproven: None,
            has_hit_start: false,
            reads_left: None,
            hides_errors: false,
            databases: Databases::default(),
        }
    }

    pub(crate) fn owner(&self) -> Option<ReplicaId> {
        self.owner
    }

    /// An operator has emptied it.
    pub(crate) fn wipe(&mut self) {
        self.owner = None;
        self.segments.clear();
        self.cached.clear();
        self.unproven = None;
        self.has_hit_start = false;
        self.databases = Databases::default();
    }

    /// Whether the end of its log may seem to be lost, although the disk has all that was durable but what went astray.
    pub(crate) fn may_have_lost_its_end(&self) -> bool {
        self.has_hit_start
    }

    /// From now on reads succeed, or fail after so many more; `hidden`: and nobody is told.
    pub(crate) fn set_reads_left(&mut self, left: Option<u32>, hidden: bool) {
        (self.reads_left, self.hides_errors) = (left, hidden);
    }

    /// Whether a read has failed.
    pub(crate) fn cannot_be_read(&self) -> bool {
        self.reads_left == Some(0)
    }

    /// What a person copies while the process is stopped.
    pub(crate) fn copy(&self) -> Disk {
        assert!(self.under_way.is_empty(), "nothing writes to it");
        let Disk { owner, segment_bytes, .. } = *self;
        let (segments, databases) = (self.segments.clone(), self.databases.clone());
        Disk { segments, databases, owner, ..Disk::new(ReplicaId(0), segment_bytes) }
    }

    /// A segment of zeros, durable at once.
    fn make_segment(&mut self, segment: SegmentId) {
        let bytes = usize::try_from(self.segment_bytes).expect("simulated segments are small");
        let before = self.segments.insert(segment, vec![0; bytes]);
        assert!(before.is_none(), "no segment is made twice");
    }

    /// Changes the files, durably at once. A recycled segment keeps its old bytes under its new name.
    pub(crate) fn carry_out(&mut self, upkeep: Upkeep) {
        match upkeep {
            Upkeep::Make(segment) => self.make_segment(segment),
            Upkeep::Recycle { from, to } => {
                let bytes = self.segments.remove(&from).expect("what is recycled is there");
                let before = self.segments.insert(to, bytes);
                assert!(before.is_none(), "no segment is recycled over another");
                // A device that lied about a sync may still lose what it held.
                self.cached.iter_mut().filter(|cached| cached.segment == from).for_each(|cached| cached.segment = to);
            }
            Upkeep::Remove(segment) => {
                self.segments.remove(&segment).expect("what is removed is there");
                self.cached.retain(|cached| cached.segment != segment);
            }
        }
    }

    pub(crate) fn has_segment(&self, segment: SegmentId) -> bool {
        self.segments.contains_key(&segment)
    }

    /// Whether what is to be done to the files has not been done.
    pub(crate) fn can_carry_out(&self, upkeep: Upkeep) -> bool {
        let has_source = match upkeep {
            Upkeep::Make(_) => true,
            Upkeep::Recycle { from, .. } | Upkeep::Remove(from) => self.has_segment(from),
        };
        has_source && upkeep.readies().is_none_or(|segment| !self.has_segment(segment))
    }

    /// Takes a flush to carry out. Whether it is the only one: else its turn comes later.
    pub(crate) fn begin(&mut self, flush: Flush) -> bool {
        self.under_way.push_back(flush);
        self.under_way.len() == 1
    }

    /// The first flush is in the cache: all of it, unless the write is short and nobody looks.
    pub(crate) fn write(&mut self, short: bool) {
        let flush = self.under_way.front().expect("something is being flushed");
        let segment = self.segments.get_mut(&flush.segment).expect("a flush goes to a segment that is ready");
        let (offset, length) = (flush.offset as usize, if short { flush.length / 2 } else { flush.length });
        let place = &mut segment[offset..offset + length];
        self.cached.push(Cached { segment: flush.segment, offset, before: place.to_vec() });
        place.copy_from_slice(&flush.buffer[..length]);
        self.written = true;
    }

    /// What the first flush, which is written, has taken the place of.
    pub(crate) fn before_written(&self) -> Vec<u8> {
        assert!(self.written, "there is one that was written");
        self.cached.last().expect("it was written last").before.clone()
    }

    /// A flush that was synced is not in its place, which is as it was before. `seen`: the log's frames. Says whether there was a
    /// place for it.
    pub(crate) fn lead_astray(
        &mut self,
        flush: &Flush,
        before: &[u8],
        how: Astray,
        (seen, may_hit_starts): (Seen, bool),
        random: &mut Rng,
    ) -> bool {
        let (offset, length) = (flush.offset as usize, before.len());
        let mut older = seen.frames;
        older.retain(|header| (header.segment, header.offset) != (flush.segment, flush.offset));
        // What is the last one now stays, and so do the first two, which say whose cell it is.
        older.pop();
        older.retain(|header| header.number.0 > 2);
        // Not beyond the frame that it hits: what follows may be the last one.
        let frames = older.iter().map(|header| (header.segment, header.offset as usize, header.frame_bytes()));
        let spare = self.segments.keys().filter(|id| **id > flush.segment).map(|id| (*id, 0, length));
        // Most happens where segments begin, and there are few of those.
        let (starts, inner): (Vec<_>, Vec<_>) = frames.chain(spare).partition(|(_, at, _)| *at == 0);
        let aims_at_start = may_hit_starts && random.bool();
        let target = random.choice(if aims_at_start { &starts } else { &inner });
        let bytes = flush.buffer[..length].to_vec();
        if how == Astray::Misdirected {
            let Some(&(segment, at, room)) = target else { return false };
            self.has_hit_start |= at == 0;
            let segment = self.segments.get_mut(&segment).expect("it was seen there");
            let hit = length.min(room);
            segment[at..at + hit].copy_from_slice(&bytes[..hit]);
        }
        let segment = self.segments.get_mut(&flush.segment).expect("it was written there");
        segment[offset..offset + length].copy_from_slice(before);
        self.unproven = Some((flush.segment, offset, bytes));
        true
    }

    /// The first flush, and all else in its segment, is durable, unless the device lies.
    pub(crate) fn sync_written(&mut self, lies: bool) -> Flush {
        assert!(self.written, "a flush is synced after it was written");
        self.written = false;
        self.unproven = None;
        let flush = self.under_way.pop_front().expect("it was written");
        if !lies {
            self.cached.retain(|cached| cached.segment != flush.segment);
        }
        self.last = Some((flush.segment, flush.offset as usize, flush.length));
        flush
    }

    /// The sync of the first flush failed: any part of what is in the cache of its segment is dropped, and the rest stays.
    pub(crate) fn fail_written(&mut self, random: &mut Rng) -> Flush {
        assert!(self.written, "a flush is synced after it was written");
        self.written = false;
        let flush = self.under_way.pop_front().expect("it was written");
        let of_segment = |cached: &Cached| cached.segment == flush.segment;
        let (dropped, kept) = std::mem::take(&mut self.cached).into_iter().partition(of_segment);
        self.cached = kept;
        self.drop_cached(dropped, Tearing::Sectors, random);
        flush
    }

    /// A flush whose sync failed is synced again, and not written again.
    pub(crate) fn sync_again(&mut self, flush: Flush) {
        self.under_way.push_front(flush);
        self.written = true;
    }

    /// Of what was in the cache some sectors are lost, and some have reached the platter. Says how many bytes were torn.
    fn drop_cached(&mut self, cached: Vec<Cached>, tearing: Tearing, random: &mut Rng) -> usize {
        let mut torn = 0;
        // The last written first, so that what was written twice goes back to what it was before both.
        for Cached { segment, offset, before } in cached.into_iter().rev() {
            let segment = self.segments.get_mut(&segment).expect("segments stay");
            let mut survives = survivors(tearing, before.len() / SECTOR_BYTES, random);
            torn += tear(&survives);
            let place = &mut segment[offset..offset + before.len()];
            for (to, from) in place.chunks_mut(SECTOR_BYTES).zip(before.chunks(SECTOR_BYTES)) {
                if !survives.pop().expect("one for each sector") {
                    to.copy_from_slice(from);
                }
            }
        }
        torn
    }

    /// Takes what was durable last for a torn write, and cuts it off.
    pub(crate) fn lose_last_frame(&mut self) {
        if let Some((segment, offset, length)) = self.last.take()
            && let Some(segment) = self.segments.get_mut(&segment)
        {
            segment[offset..offset + length].fill(0);
        }
    }

    /// Some frames turn into something else: never the last one, which proves the others, nor the first two, which say whose cell
    /// it is. Gives their numbers.
    pub(crate) fn rot(&mut self, seen: Seen, frames: usize, late: bool, random: &mut Rng) -> Vec<u64> {
        const LATE: usize = 8;
        let mut places = seen.frames;
        places.pop();
        places.retain(|header| header.number.0 > 2);
        let from = if late { places.len().saturating_sub(LATE) } else { 0 };
        let mut rotten = Vec::new();
        for _ in 0..frames.min(places.len()) {
            let header = places[random.usize(from..places.len())];
            let block = header.offset as usize + random.usize(..header.frame_bytes() / BLOCK_BYTES) * BLOCK_BYTES;
            let segment = self.segments.get_mut(&header.segment).expect("it was seen there");
            let bytes = &mut segment[block..block + BLOCK_BYTES];
            match random.u8(..3) {
                0 => bytes.fill(0),
                1 => bytes.iter_mut().for_each(|byte| *byte = random.u8(..)),
                _ => bytes[random.usize(..200)] ^= 1 << random.u8(..8),
            }
            rotten.push(header.number.0);
        }
        rotten
    }

    /// What a log holds, without anybody's starting from it.
    pub(crate) fn look(&mut self, settings: Settings, identity: &Identity) -> Seen {
        let mut seen = Seen::default();
        // A log that does not open is what the start will speak of.
        let _ = inspect(self, settings, identity, &mut seen);
        seen
    }

    /// Takes a hole for the end of the log, and throws away what is behind it.
    pub(crate) fn cut_at_first_hole(&mut self, seen: Seen) {
        let Some(first) = seen.first_lost else { return };
        for header in seen.frames.iter().filter(|header| header.number >= first) {
            let segment = self.segments.get_mut(&header.segment).expect("it was seen there");
            segment[header.offset as usize..][..header.frame_bytes()].fill(0);
        }
    }

    /// Whether a flush is under way.
    pub(crate) fn is_flushing(&self) -> bool {
        !self.under_way.is_empty()
    }

    /// The process ends, and with it the machine if `power` is lost. Says how many bytes were torn: part of a flush is
    /// there and part is not.
    pub(crate) fn crash(&mut self, power: bool, tearing: Tearing, random: &mut Rng) -> usize {
        let mut torn = 0;
        if let Some((segment, offset, bytes)) = self.unproven.take()
            && let Some(segment) = self.segments.get_mut(&segment)
        {
            // The atlas promises nothing of a last frame that was said to be there: it is there after all.
            segment[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        let under_way = std::mem::take(&mut self.under_way);
        for flush in under_way.iter().skip(usize::from(self.written)) {
            let segment = self.segments.get_mut(&flush.segment).expect("a flush goes to a segment that is ready");
            let mut survives = survivors(tearing, flush.length / SECTOR_BYTES, random);
            torn += tear(&survives);
            let offset = flush.offset as usize;
            let place = &mut segment[offset..offset + flush.length];
            for (to, from) in place.chunks_mut(SECTOR_BYTES).zip(flush.buffer[..flush.length].chunks(SECTOR_BYTES)) {
                if survives.pop().expect("one for each sector") {
                    to.copy_from_slice(from);
                }
            }
        }
        self.written = false;
        if power {
            let cached = std::mem::take(&mut self.cached);
            torn += self.drop_cached(cached, tearing, random);
        }
        torn
    }

    /// A part of a segment that is there, as it is read now.
    pub(crate) fn bytes(&self, segment: SegmentId, offset: u64, length: usize) -> &[u8] {
        let offset = offset as usize;
        &self.segments[&segment][offset..offset + length]
    }

    /// How many segments there are.
    pub(crate) fn segments(&self) -> usize {
        self.segments.len()
    }
}

/// EIO.
pub(crate) fn read_error() -> io::Error {
    rustix::io::Errno::IO.into()
}

/// Which sectors survive, last one first.
fn survivors(tearing: Tearing, sectors: usize, random: &mut Rng) -> Vec<bool> {
    match tearing {
        Tearing::Whole => vec![random.bool(); sectors],
        Tearing::Prefix => {
            let lost = random.usize(..=sectors);
            (0..sectors).map(|sector| sector >= lost).collect()
        }
        Tearing::Sectors => {
            // Nearly all, nearly none, or anything between.
            let chance = random.f64();
            (0..sectors).map(|_| random.f64() < chance).collect()
        }
    }
}

fn tear(survives: &[bool]) -> usize {
    let kept = survives.iter().filter(|kept| **kept).count();
    if kept == 0 || kept == survives.len() { 0 } else { (survives.len() - kept) * SECTOR_BYTES }
}

/// The whole frames of a log, in order, and the first one that is missing.
#[derive(Default)]
pub(crate) struct Seen {
    frames: Vec<FrameHeader>,
    first_lost: Option<FrameNumber>,
}

impl Visitor for Seen {
    fn frame(&mut self, header: &FrameHeader) {
        self.frames.push(*header);
    }

    fn record(&mut self, _: RecordRef<'_>, _: u64) {}

    fn lost(&mut self, lost: &Lost) -> LostSlots {
        self.first_lost.get_or_insert(lost.first);
        LostSlots::ANY
    }
}

impl Storage for Disk {
    fn segments(&mut self) -> io::Result<Vec<SegmentId>> {
        Ok(self.segments.keys().copied().collect())
    }

    fn segment_bytes(&mut self, segment: SegmentId) -> io::Result<u64> {
        Ok(self.segments[&segment].len() as u64)
    }

    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        match &mut self.reads_left {
            Some(0) if self.hides_errors => {
                into.fill(0);
                return Ok(());
            }
            Some(0) => return Err(read_error()),
            Some(left) => *left -= 1,
            None => {}
        }
        into.copy_from_slice(self.bytes(segment, offset, into.len()));
        Ok(())
    }

    fn sync(&mut self, segment: SegmentId) -> io::Result<()> {
        self.cached.retain(|cached| cached.segment != segment);
        Ok(())
    }
}
