//! Every kind of damage at every block of a log of more than a thousand entries, in recycled segments (rules L4, L5, L6):
//! whatever is sound is handed out, whatever is not is told as lost, nothing else is ever said; and the log goes on behind it.

mod common;

use std::collections::{BTreeMap, BTreeSet};

use common::{Disk, Item, SETTINGS, Seen, identity};
use fastrand::Rng;
use synod_wal::{FrameNumber, Identity, OpenError, RecordKind, ReplicaId, SegmentId, Slot, create};

const BLOCK: usize = 4096;
const CUT: u64 = 1001;
const ENTRIES: u64 = 2200;

/// What one flush wrote.
struct Frame {
    segment: SegmentId,
    offset: usize,
    length: usize,
    /// Without padding: what is behind it nobody reads.
    used: usize,
    items: Vec<Item>,
}

/// A log whose segments were used before, that ends with a mark.
struct Sample {
    disk: Disk,
    frames: Vec<Frame>,
    /// What was in a block before it was written last.
    before: BTreeMap<(SegmentId, usize), Vec<u8>>,
}

fn sample() -> Sample {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    let (mut frames, mut before) = (Vec::new(), BTreeMap::new());
    let mut random = Rng::with_seed(1);
    let mut slot = 0;
    let mut is_marked = false;
    while !is_marked {
        let mut items = Vec::new();
        if slot < ENTRIES {
            if slot % 97 == 0 {
                items.push(Item::new(RecordKind::HardState, 0, 100, slot + 1));
            }
            for _ in 0..random.u64(3..=7) {
                slot += 1;
                // Slots are accepted in any order within a window.
                let kind = if slot % 11 == 0 { RecordKind::Chosen } else { RecordKind::Accepted };
                items.push(Item::new(kind, (slot + 1) ^ 1, random.usize(10..900), slot));
            }
            items.iter().for_each(|item| item.append(&mut log));
            if slot > CUT {
                log.cut(Slot(CUT));
            }
        } else {
            log.mark();
            is_marked = true;
        }
        loop {
            disk.prepare(&mut log);
            let Some(flush) = log.seal() else { break };
            let (segment, offset, length) = (flush.segment, flush.offset as usize, flush.length);
            for block in (offset..offset + length).step_by(BLOCK) {
                before.insert((segment, block), disk.segments[&segment][block..block + BLOCK].to_vec());
            }
            let used = flush.buffer[..length].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            let is_opening = offset == 0;
            let items = if is_opening { Vec::new() } else { std::mem::take(&mut items) };
            frames.push(Frame { segment, offset, length, used: used.next_multiple_of(32), items });
            disk.write(&flush);
            disk.sync_all();
            log.flushed(flush.buffer);
        }
    }
    let (begin, _) = disk.clone().recover_around(2).map(|(recovered, seen)| (recovered.frames, seen)).expect("sound");
    let skip = frames.len() - begin as usize;
    let first = frames[skip].segment;
    assert!(first > SegmentId(1) && before.values().any(|block| block.iter().any(|byte| *byte != 0)), "recycled");
    // Numbers stay: frames that were cut off have nothing to lose.
    frames[..skip].iter_mut().for_each(|frame| frame.items.clear());
    let entries: usize = frames.iter().map(|frame| frame.items.len()).sum();
    assert!(entries > 1000, "{entries}");
    Sample { disk, frames, before }
}

fn needed(items: &[Item]) -> Vec<Item> {
    items.iter().filter(|item| item.kind != RecordKind::HardState).cloned().collect()
}

impl Sample {
    fn live(&self) -> impl Iterator<Item = (usize, &Frame)> {
        let first = self.frames.iter().position(|frame| !frame.items.is_empty()).expect("there are some");
        let begin = self.frames[first].segment;
        self.frames.iter().enumerate().filter(move |(_, frame)| frame.segment >= begin)
    }

    /// Recovers a changed disk, and says what became of it: `Err`, the end is lost.
    fn check(&self, what: &str, disk: &mut Disk) -> Result<Seen, ()> {
        let damaged: BTreeSet<usize> =
            self.live().filter(|(_, frame)| !is_there(frame, disk, &self.disk)).map(|(at, _)| at).collect();
        let last = self.frames.len() - 1;
        let (mut recovered, seen) = match disk.recover_around(9) {
            Ok(done) => done,
            Err(OpenError::EndLost { frame, .. }) => {
                // Only ever with damage up to the very end, or to the file that held it.
                assert!(damaged.contains(&(frame.0 as usize - 1)), "{what}: {frame}");
                assert!((frame.0 as usize - 1..=last).all(|at| damaged.contains(&at)), "{what}: {frame}");
                return Err(());
            }
            Err(error) => panic!("{what}: {error}"),
        };
        let sound = self.live().filter(|(at, _)| !damaged.contains(at));
        let expected: Vec<Item> = sound.flat_map(|(_, frame)| needed(&frame.items)).collect();
        assert!(needed(&seen.items) == expected, "{what}: something is missing, or wrong");
        // What is damaged up to the very end passes for torn, unless a header tells: that is outside.
        let end = (0..=last).rev().find(|at| !damaged.contains(at)).expect("something is sound");
        for at in damaged.iter().filter(|at| **at < end) {
            let number = FrameNumber(*at as u64 + 1);
            let lost = seen.lost.iter().find(|lost| lost.first <= number && number <= lost.last);
            let lost = lost.unwrap_or_else(|| panic!("{what}: frame {number} is missing, and nobody says so"));
            let items = needed(&self.frames[*at].items);
            assert!(
                items.iter().all(|item| item.ballot <= lost.summary.ballot.max(lost.summary.promised))
                    || lost.first < lost.last
            );
            if let Some(slots) = lost.known_slots() {
                assert!(items.iter().all(|item| slots.first <= item.slot && item.slot <= slots.last), "{what}");
            }
            assert!(items.iter().all(|item| item.slot <= lost.summary.highest), "{what}");
        }
        let missing = |number: &u64| damaged.contains(&(*number as usize - 1));
        assert!(seen.lost.iter().all(|lost| (lost.first.0..=lost.last.0).all(|number| missing(&number))), "{what}");
        self.check_index(what, disk, &recovered.log, &seen);
        // The log goes on, and the hole is found again by the next start.
        let again = Item::new(RecordKind::Chosen, ENTRIES + 50, 3000, 1);
        again.append(&mut recovered.log);
        disk.flush_all(&mut recovered.log);
        let (after, second) = disk.recover_around(10).unwrap_or_else(|error| panic!("{what}, then: {error}"));
        assert_eq!(second.lost, seen.lost, "{what}");
        assert!(needed(&second.items) == [expected, vec![again]].concat(), "{what}");
        self.check_index(what, disk, &after.log, &seen);
        Ok(seen)
    }

    /// Catch-up finds the last record of a slot, or nothing.
    fn check_index(&self, what: &str, disk: &Disk, log: &synod_wal::Log, seen: &Seen) {
        let last: BTreeMap<Slot, &Item> =
            self.live().flat_map(|(_, frame)| &frame.items).map(|item| (item.slot, item)).collect();
        for (slot, item) in last.range(Slot(CUT)..) {
            let located = disk.locate(log, *slot);
            assert!(located.as_ref().is_none_or(|located| located == *item), "{what}: slot {slot}");
            let is_whole = seen.lost.iter().all(|lost| lost.first == lost.last);
            assert!(
                located.is_some() || !is_whole || !seen.items.contains(item) || is_in_doubt(*slot, seen),
                "{what}: {slot}"
            );
        }
    }
}

fn is_in_doubt(slot: Slot, seen: &Seen) -> bool {
    let slots = seen.lost.iter().filter_map(synod_wal::Lost::known_slots);
    slots.into_iter().any(|slots| slots.first <= slot && slot <= slots.last)
}

/// Whether all that counts of a frame is as it was written.
fn is_there(frame: &Frame, disk: &Disk, original: &Disk) -> bool {
    let range = frame.offset..frame.offset + frame.used;
    let Some(now) = disk.segments.get(&frame.segment) else { return false };
    // Whole blocks are read.
    now.len() >= frame.offset + frame.length && now[range.clone()] == original.segments[&frame.segment][range]
}

fn stranger_s_segment() -> Vec<u8> {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, Identity { replica: ReplicaId(8), ..identity(1) });
    (1..60).for_each(|slot| Item::new(RecordKind::Accepted, slot, 600, slot).append(&mut log));
    disk.flush_all(&mut log);
    disk.segments.remove(&SegmentId(1)).expect("it is there")
}

#[test]
fn every_kind_of_damage_at_every_block() {
    let sample = sample();
    let mut random = Rng::with_seed(2);
    let blocks: Vec<(SegmentId, usize)> = sample
        .live()
        .flat_map(|(_, frame)| {
            (frame.offset..frame.offset + frame.length).step_by(BLOCK).map(|block| (frame.segment, block))
        })
        .collect();
    let at = |(segment, block): (SegmentId, usize)| &sample.disk.segments[&segment][block..block + BLOCK];
    let mut outcomes = BTreeMap::<&str, (u64, u64, u64)>::new();
    let mut tell = |kind, disk: &mut Disk, place: (SegmentId, usize)| {
        let outcome = sample.check(&format!("{kind} at {place:?}"), disk);
        let counts = outcomes.entry(kind).or_default();
        match outcome {
            Ok(seen) if seen.lost.is_empty() => counts.0 += 1,
            Ok(_) => counts.1 += 1,
            Err(()) => counts.2 += 1,
        }
    };
    let mut segments = BTreeSet::new();
    for &place in &blocks {
        let (segment, block) = place;
        let now = at(place).to_vec();
        let old = &sample.before[&place];
        let used = now.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1);
        let mut flipped = now.clone();
        flipped[random.usize(..used)] ^= 1 << random.u8(..8);
        let torn =
            if random.bool() { [&now[..BLOCK / 2], &old[BLOCK / 2..]] } else { [&old[..BLOCK / 2], &now[BLOCK / 2..]] };
        let half_zero = [&now[..512], &[0; BLOCK - 512][..]].concat();
        let junk: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(BLOCK).collect();
        let other = at(blocks[random.usize(..blocks.len())]).to_vec();
        let ways = [
            ("bit flip", flipped),
            ("torn, old", torn.concat()),
            ("torn, zeros", half_zero),
            ("zeroed", vec![0; BLOCK]),
            ("junk", junk),
            ("misdirected", other),
            ("stale", old.clone()),
        ];
        for (kind, bytes) in ways {
            let mut disk = sample.disk.clone();
            disk.segments.get_mut(&segment).expect("it is there")[block..block + BLOCK].copy_from_slice(&bytes);
            tell(kind, &mut disk, place);
        }
        let mut disk = sample.disk.clone();
        disk.segments.get_mut(&segment).expect("it is there").truncate(block);
        tell("cut short", &mut disk, place);
        if segments.insert(segment) {
            let mut disk = sample.disk.clone();
            disk.segments.remove(&segment);
            tell("file missing", &mut disk, place);
            let mut disk = sample.disk.clone();
            disk.segments.insert(segment, stranger_s_segment());
            tell("another replica's file", &mut disk, place);
        }
    }
    for (kind, (harmless, holes, ends)) in &outcomes {
        println!("{kind}: {harmless} harmless, {holes} holes told, {ends} ends lost and told");
        assert!(holes + ends > 0, "{kind}");
    }
    let cases: u64 = outcomes.values().map(|(harmless, holes, ends)| harmless + holes + ends).sum();
    println!("{cases} cases over {} blocks in {} segments", blocks.len(), segments.len());
    assert!(cases > 2000 && segments.len() >= 5, "{cases} cases");
}

#[test]
fn several_places_at_once() {
    let sample = sample();
    let mut random = Rng::with_seed(3);
    let frames: Vec<&Frame> = sample.live().map(|(_, frame)| frame).collect();
    let mut holes = 0;
    for case in 0..250 {
        let mut disk = sample.disk.clone();
        for _ in 0..random.usize(2..9) {
            let at = random.usize(..frames.len());
            // Neighbours, too: then nobody says what the first of them held.
            for frame in &frames[at..(at + random.usize(1..4)).min(frames.len())] {
                let block = frame.offset + random.usize(..frame.length / BLOCK) * BLOCK;
                let bytes = disk.segments.get_mut(&frame.segment).expect("it is there");
                bytes[block..block + BLOCK].fill(if random.bool() { 0 } else { 7 });
            }
        }
        holes += sample.check(&format!("case {case}"), &mut disk).map_or(0, |seen| seen.lost.len());
    }
    assert!(holes > 500, "{holes}");
}
