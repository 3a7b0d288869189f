//! Damage to what was durable: refused by name where it can be known, and never wrong data.

mod common;

use std::collections::BTreeMap;

use common::{Disk, Item, SETTINGS, identity, without_repeats};
use synod_wal::{
    Ballot, CellId, FrameNumber, Identity, Log, OpenError, RecordKind, ReplicaId, SegmentId, Settings, Slot, StartId,
    Tail, create, recover,
};

const BLOCK: usize = 4096;

/// A log of frames of one to five blocks over several segments, of two lives; each frame's place.
struct Sample {
    disk: Disk,
    items: Vec<Item>,
    frames: Vec<(SegmentId, u64, usize)>,
}

fn sample(marked: bool) -> Sample {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    let (mut items, mut frames) = (Vec::new(), Vec::new());
    let lengths = [100, 9000, 50, 18_000, 4000, 7000, 12_000, 300, 15_000, 20, 8000, 16_000, 40];
    for (i, length) in lengths.iter().cycle().take(30).enumerate() {
        let seed = i as u64 + 1;
        if i % 4 == 1 {
            items.push(Item::new(RecordKind::HardState, 0, 5000, 100 + seed));
        } else {
            items.push(Item::new(RecordKind::Accepted, seed, *length, seed));
        }
        items[i].append(&mut log);
        frames.extend(disk.flush_all(&mut log));
        if i == 6 {
            log = disk.recover(2).expect("sound so far").0.log;
        }
    }
    if marked {
        log.mark();
        frames.extend(disk.flush_all(&mut log));
    }
    assert!(frames.last().expect("there are frames").0 >= SegmentId(3), "several segments");
    Sample { disk, items, frames }
}

/// Damages each block in several ways and hands each outcome to `check`, with the index of the frame it was in.
fn damage_each_block(sample: &Sample, mut check: impl FnMut(usize, bool, Result<Vec<Item>, OpenError>)) {
    for (number, &(segment, offset, length)) in sample.frames.iter().enumerate() {
        for block in (offset as usize..offset as usize + length).step_by(BLOCK) {
            let original = sample.disk.segments[&segment][block..block + BLOCK].to_vec();
            let mut ways = vec![vec![0; BLOCK]];
            for at in [0, 9, 20, 100, 189, 200, 1000, 2047, 4095] {
                let mut flipped = original.clone();
                flipped[at] ^= 0x10;
                ways.push(flipped);
            }
            for way in ways {
                // A flip in the padding changes nothing that anyone reads.
                let used =
                    original.iter().rposition(|byte| *byte != 0).map_or(0, |last| (last + 1).next_multiple_of(32));
                let harmless = way[..used] == original[..used];
                let mut disk = sample.disk.clone();
                disk.segments.get_mut(&segment).expect("it is there")[block..block + BLOCK].copy_from_slice(&way);
                check(number, harmless, disk.recover(9).map(|(_, items)| without_repeats(items)));
            }
        }
    }
}

#[test]
fn damage_before_a_later_frame_is_refused_and_named() {
    let sample = sample(true);
    let last = sample.frames.len() - 1;
    damage_each_block(&sample, |frame, harmless, outcome| match outcome {
        Err(OpenError::Damaged { frame: number, segment, offset, later }) => {
            assert!(!harmless && frame < last);
            assert_eq!(number, FrameNumber(frame as u64 + 1));
            assert_eq!((segment, offset), (sample.frames[frame].0, sample.frames[frame].1));
            assert!(later > number);
        }
        Err(error) => panic!("frame {frame}: {error}"),
        // Nothing is lost with the mark itself.
        Ok(items) => {
            assert!(harmless || frame == last, "frame {frame}");
            assert_eq!(items, sample.items);
        }
    });
}

#[test]
fn without_a_mark_the_last_frame_alone_is_taken_for_torn() {
    let sample = sample(false);
    let last = sample.frames.len() - 1;
    damage_each_block(&sample, |frame, harmless, outcome| match outcome {
        Ok(items) if harmless => assert_eq!(items, sample.items),
        Ok(items) => {
            assert_eq!(frame, last);
            assert_eq!(items, sample.items[..sample.items.len() - 1]);
        }
        Err(error) => assert!(frame < last && matches!(error, OpenError::Damaged { .. }), "frame {frame}: {error}"),
    });
}

fn error(disk: &mut Disk) -> OpenError {
    match disk.recover(9) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

#[test]
fn a_missing_segment_is_named() {
    for segment in 1..=3 {
        let mut disk = sample(true).disk;
        disk.segments.remove(&SegmentId(segment));
        let OpenError::Missing { segment: missing, later } = error(&mut disk) else { panic!("another error") };
        assert_eq!((missing, later), (SegmentId(segment), SegmentId(segment + 1)));
    }
}

#[test]
fn a_lost_segment_under_a_blank_one_is_damage() {
    let mut disk = sample(true).disk;
    disk.segments.get_mut(&SegmentId(2)).expect("it is there").fill(0);
    assert!(matches!(error(&mut disk), OpenError::Damaged { segment: SegmentId(1 | 2), .. }));
}

#[test]
fn segments_in_the_wrong_place_are_told_apart() {
    let swapped = |from: u64, to: u64| {
        let mut disk = sample(true).disk;
        let bytes = disk.segments[&SegmentId(from)].clone();
        disk.segments.insert(SegmentId(to), bytes);
        disk
    };
    let OpenError::Misplaced { segment, holds, .. } = error(&mut swapped(1, 2)) else { panic!("another error") };
    assert_eq!((segment, holds), (SegmentId(2), SegmentId(1)));

    // The same segment, of the same log in an earlier state: a file that a restored backup has brought back.
    let old = {
        let mut disk = Disk::default();
        let mut log = create(SETTINGS, identity(1));
        for seed in 1..9 {
            Item::new(RecordKind::Accepted, seed, 20_000, 50 + seed).append(&mut log);
        }
        disk.flush_all(&mut log);
        disk.segments.remove(&SegmentId(2)).expect("it is there")
    };
    let mut disk = sample(true).disk;
    disk.segments.insert(SegmentId(2), old);
    assert!(matches!(error(&mut disk), OpenError::Stale { segment: SegmentId(2), .. } | OpenError::Damaged { .. }));
}

fn segment_of(identity: Identity) -> Vec<u8> {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity);
    Item::new(RecordKind::Accepted, 1, 100, 1).append(&mut log);
    disk.flush_all(&mut log);
    disk.segments.remove(&SegmentId(1)).expect("it is there")
}

#[test]
fn a_stranger_s_segment_is_named() {
    let with = |identity| {
        let mut disk = sample(true).disk;
        disk.segments.insert(SegmentId(1), segment_of(identity));
        error(&mut disk)
    };
    let ours = identity(1);
    assert!(matches!(with(Identity { cell: CellId(8), ..ours }), OpenError::OtherCell { cell: CellId(8), .. }));
    let replica = ReplicaId(8);
    assert!(matches!(with(Identity { replica, ..ours }), OpenError::OtherReplica { replica: ReplicaId(8), .. }));
    assert!(matches!(with(Identity { start: StartId(8), ..ours }), OpenError::OtherLog { segment: SegmentId(2) }));
}

#[test]
fn a_newer_version_and_a_wrong_size_are_named() {
    let mut disk = sample(true).disk;
    let block = disk.segments.get_mut(&SegmentId(2)).expect("it is there");
    block[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let prelude = crc32c::crc32c(&block[..12]);
    block[12..16].copy_from_slice(&prelude.to_le_bytes());
    assert!(matches!(error(&mut disk), OpenError::NewerVersion { segment: SegmentId(2), version: 2 }));

    let mut disk = sample(true).disk;
    disk.segments.get_mut(&SegmentId(2)).expect("it is there").truncate(BLOCK);
    assert!(matches!(error(&mut disk), OpenError::WrongSize { segment: SegmentId(2), found: 4096, expected: 73_728 }));
}

/// A disk with an unreadable spot.
struct Unreadable(Disk, SegmentId);

impl synod_wal::Storage for Unreadable {
    fn segments(&mut self) -> std::io::Result<Vec<SegmentId>> {
        self.0.segments()
    }
    fn segment_bytes(&mut self, segment: SegmentId) -> std::io::Result<u64> {
        self.0.segment_bytes(segment)
    }
    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> std::io::Result<()> {
        match segment == self.1 {
            true => Err(std::io::Error::other("bad sector")),
            false => self.0.read(segment, offset, into),
        }
    }
    fn sync(&mut self, segment: SegmentId) -> std::io::Result<()> {
        self.0.sync(segment)
    }
}

#[test]
fn an_unreadable_segment_is_neither_empty_nor_torn() {
    let mut disk = Unreadable(sample(true).disk, SegmentId(2));
    let outcome = recover(&mut disk, SETTINGS, &identity(9), &mut |_| {});
    let Err(OpenError::Read { segment: SegmentId(2), source, .. }) = outcome else { panic!("another outcome") };
    assert_eq!(source.to_string(), "bad sector");
}

#[test]
fn an_empty_directory_and_blank_segments_are_an_empty_log() {
    let mut disk = Disk::default();
    for _ in 0..2 {
        let (mut recovered, items) = disk.recover(5).expect("an empty log opens");
        assert_eq!((recovered.frames, recovered.tail, items), (0, Tail::Clean, Vec::new()));
        disk.prepare(&mut recovered.log);
    }
}

/// A client sends, as a value, the blocks of a log that equals this one but for its origin, to the very places where
/// they would be believed; then power fails, and of the frame that carries them the true header alone is lost.
fn open_with_forged_value(origin: u64) -> (Item, Result<Vec<Item>, OpenError>) {
    let forged = {
        let mut disk = Disk::default();
        let mut log = create(SETTINGS, identity(origin));
        for seed in 1..40 {
            Item::new(RecordKind::Accepted, seed, 50, seed).append(&mut log);
            disk.flush_all(&mut log);
        }
        disk.segments.remove(&SegmentId(1)).expect("it is there")
    };
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    let honest = Item::new(RecordKind::Accepted, 1, 10, 1);
    honest.append(&mut log);
    disk.flush_all(&mut log);
    // The value begins behind frame header and record header, in the log's third block.
    let value = &forged[2 * BLOCK + 192 + 32..7 * BLOCK];
    log.append(RecordKind::Accepted, Slot(2), Ballot(1), &[value]);
    let flush = log.seal().expect("a frame is queued");
    assert_eq!((flush.segment, flush.offset), (SegmentId(1), 2 * BLOCK as u64));
    disk.write(&flush);
    let mut sectors = 0;
    disk.lose_power(|| {
        sectors += 1;
        sectors > 1
    });
    assert_eq!(disk.segments[&SegmentId(1)][3 * BLOCK..7 * BLOCK], forged[3 * BLOCK..7 * BLOCK]);
    (honest, disk.recover(2).map(|(_, items)| items))
}

#[test]
fn a_client_cannot_send_what_is_taken_for_a_frame() {
    let (honest, outcome) = open_with_forged_value(666);
    assert_eq!(outcome.expect("a torn tail"), [honest]);
    // With the origin known it could keep this replica from opening: this is what the origin is for.
    let (_, outcome) = open_with_forged_value(1);
    assert!(matches!(outcome, Err(OpenError::Damaged { frame: FrameNumber(3), later: FrameNumber(4), .. })));
}

#[test]
fn a_later_frame_in_the_wrong_order_is_refused() {
    // The device has lost one write of a block wholly, and shows what was there before: zeros.
    let sample = sample(true);
    let by_segment = sample.frames.iter().fold(BTreeMap::<_, Vec<_>>::new(), |mut map, frame| {
        map.entry(frame.0).or_default().push(*frame);
        map
    });
    for frames in by_segment.values() {
        for &(segment, offset, length) in &frames[..frames.len() - 1] {
            let mut disk = sample.disk.clone();
            let bytes = disk.segments.get_mut(&segment).expect("it is there");
            bytes[offset as usize..offset as usize + length].fill(0);
            let OpenError::Damaged { segment: at, offset: o, .. } = error(&mut disk) else { panic!("another error") };
            assert_eq!((at, o), (segment, offset));
        }
    }
}

#[test]
fn a_write_that_went_astray_is_refused() {
    let mut sample = sample(false);
    let &(segment, offset, length) = sample.frames.last().expect("there are frames");
    let bytes = sample.disk.segments.get_mut(&segment).expect("it is there");
    let (start, end) = (offset as usize, offset as usize + length);
    bytes.copy_within(start..end, end + BLOCK);
    bytes[start..end].fill(0);
    let OpenError::Damaged { frame, later, offset: at, .. } = error(&mut sample.disk) else { panic!("another error") };
    assert_eq!((frame, later, at), (frame, frame, offset));
}

#[test]
fn a_sound_frame_that_another_one_should_follow_is_refused() {
    // Two histories that differ in their second record; the device shows that block of the other one.
    let history = |seed| {
        let mut disk = Disk::default();
        let mut log = create(SETTINGS, identity(1));
        for (slot, seed) in [(1, 1), (2, seed), (3, 3)] {
            Item::new(RecordKind::Accepted, slot, 10, seed).append(&mut log);
            disk.flush_all(&mut log);
        }
        disk
    };
    let (mut disk, other) = (history(2), history(9));
    let place = 2 * BLOCK..3 * BLOCK;
    let bytes = disk.segments.get_mut(&SegmentId(1)).expect("it is there");
    bytes[place.clone()].copy_from_slice(&other.segments[&SegmentId(1)][place]);
    assert!(matches!(error(&mut disk), OpenError::Damaged { frame: FrameNumber(4), later: FrameNumber(4), .. }));
}

#[test]
fn frames_longer_than_what_is_read_at_once() {
    let settings = Settings { segment_bytes: 5 << 20, log_bytes_max: 1 << 30, frame_bytes_max: 2 << 20 };
    let mut disk = Disk::default();
    let mut log = create(settings, identity(1));
    let mut items = Vec::new();
    for (slot, length) in
        (1..).zip([1_900_000, 100, 5000, 1_200_000, 300, 900_000, 20, 2_000_000, 400_000, 9].repeat(3))
    {
        items.push(Item::new(RecordKind::Accepted, slot, length, slot));
        items[items.len() - 1].append(&mut log);
        disk.flush_all(&mut log);
    }
    let mut found = Vec::new();
    recover(&mut disk, settings, &identity(2), &mut |record| found.push(Item::from(record))).expect("it opens");
    assert!(found == items);
}

#[test]
fn a_lowered_frame_limit_loses_nothing() {
    let larger = Settings { frame_bytes_max: 26 << 10, ..SETTINGS };
    let larger = Settings { frame_bytes_max: larger.frame_bytes_max / BLOCK * BLOCK, ..larger };
    let mut log: Log = create(larger, identity(1));
    let mut disk = Disk::default();
    let item = Item::new(RecordKind::Accepted, 1, larger.payload_bytes_max() - 64, 1);
    item.append(&mut log);
    disk.flush_all(&mut log);
    let lower = Settings { frame_bytes_max: 20 << 10, ..SETTINGS };
    let mut items = Vec::new();
    recover(&mut disk, lower, &identity(2), &mut |record| items.push(Item::from(record))).expect("it opens");
    assert_eq!(items, [item]);
}
