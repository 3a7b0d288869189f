//! Damage to what was durable: told by name, stepped over where the log goes on behind it, and never wrong data.

mod common;

use std::collections::BTreeMap;

use common::{Disk, Item, SETTINGS, Seen, identity};
use synod_wal::{
    Ballot, CellId, FrameNumber, Identity, Log, LostSlots, OpenError, Proof, RecordKind, ReplicaId, SegmentId,
    Settings, Slot, StartId, Tail, create, recover,
};

const BLOCK: usize = 4096;
/// A frame's header.
const HEADER: usize = 224;

/// A log of frames of one to five blocks over several segments, of two lives; each frame's place.
struct Sample {
    disk: Disk,
    items: Vec<Item>,
    frames: Vec<(SegmentId, u64, usize)>,
    /// Which item each frame has, if any: an opening repeats one, a mark has none.
    held: Vec<Option<usize>>,
}

fn sample(marked: bool) -> Sample {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    let (mut items, mut frames, mut held) = (Vec::new(), Vec::new(), Vec::new());
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
        held.resize(frames.len() - 1, None);
        held.push(Some(i));
        if i == 6 {
            log = disk.recover(2).expect("sound so far").0.log;
        }
    }
    if marked {
        log.mark();
        frames.extend(disk.flush_all(&mut log));
    }
    assert!(frames.last().expect("there are frames").0 >= SegmentId(3), "several segments");
    held.resize(frames.len(), None);
    Sample { disk, items, frames, held }
}

/// The accepted values, in order, but for those of one frame: hard states are repeated, so that none is lost for long.
fn accepted(items: &[Item], without: Option<usize>) -> Vec<Item> {
    let all = items.iter().enumerate().filter(|(at, item)| Some(*at) != without && item.kind == RecordKind::Accepted);
    all.map(|(_, item)| item.clone()).collect()
}

/// Damages each block in several ways: one frame is told as lost and all others are there, or, with nothing behind it, it passes
/// for torn.
fn damage_each_block(sample: &Sample, marked: bool) {
    let last = sample.frames.len() - 1;
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
                let (_, Seen { items, lost }) = disk.recover_around(9).expect("what is behind is sound");
                let gone = sample.held[number].filter(|_| !harmless);
                assert_eq!(accepted(&items, None), accepted(&sample.items, gone), "frame {number}");
                if harmless || number == last {
                    assert_eq!(lost, [], "frame {number}, marked: {marked}");
                    continue;
                }
                let [lost] = lost[..] else { panic!("frame {number}: {lost:?}") };
                let frame = FrameNumber(number as u64 + 1);
                assert_eq!((lost.first, lost.last, lost.segment, lost.offset), (frame, frame, segment, offset));
                let slots = match gone.map(|at| sample.items[at].slot) {
                    None | Some(Slot(0)) => LostSlots::NONE,
                    Some(slot) => LostSlots { first: slot, last: slot },
                };
                assert_eq!(lost.known_slots(), Some(slots));
                assert!(
                    gone.is_none_or(|at| sample.items[at].ballot <= lost.summary.ballot.max(lost.summary.promised))
                );
            }
        }
    }
}

#[test]
fn damage_before_a_later_frame_is_told_and_stepped_over() {
    damage_each_block(&sample(true), true);
}

#[test]
fn without_a_mark_the_last_frame_alone_is_taken_for_torn() {
    damage_each_block(&sample(false), false);
}

fn error(disk: &mut Disk) -> OpenError {
    match disk.recover(9) {
        Ok(_) => panic!("it opened"),
        Err(error) => error,
    }
}

/// What is left of the sample when a segment is changed: all that was in the others, and the rest told as lost; or the end is.
fn check_without_segment(sample: &Sample, segment: SegmentId, disk: &mut Disk) {
    let in_it = |frame: &(SegmentId, u64, usize)| frame.0 == segment;
    let outcome = disk.recover_around(9);
    let numbers = || (1..).zip(&sample.frames).filter(|(_, frame)| in_it(frame)).map(|(number, _)| FrameNumber(number));
    if in_it(sample.frames.last().expect("there are frames")) {
        let Err(OpenError::EndLost { frame, .. }) = outcome.map(|_| ()) else { panic!("segment {segment}") };
        return assert_eq!(Some(frame), numbers().next());
    }
    let (_, seen) = outcome.unwrap_or_else(|error| panic!("segment {segment}: {error}"));
    let [lost] = seen.lost[..] else { panic!("segment {segment}: {:?}", seen.lost) };
    assert_eq!((Some(lost.first), Some(lost.last)), (numbers().next(), numbers().last()));
    let held = sample.frames.iter().zip(&sample.held).filter(|(frame, _)| !in_it(frame));
    let expected: Vec<Item> = held.filter_map(|(_, item)| item.map(|at| sample.items[at].clone())).collect();
    assert_eq!(accepted(&seen.items, None), accepted(&expected, None), "segment {segment}");
}

#[test]
fn a_missing_blank_or_foreign_segment_is_a_hole_or_the_end() {
    let sample = sample(true);
    for segment in (1..=sample.frames.last().expect("there are frames").0.0).map(SegmentId) {
        let changed = |change: &dyn Fn(&mut Disk)| {
            let mut disk = sample.disk.clone();
            change(&mut disk);
            check_without_segment(&sample, segment, &mut disk);
        };
        changed(&|disk| drop(disk.segments.remove(&segment)));
        let stranger = Identity { replica: ReplicaId(8), ..identity(1) };
        changed(&|disk| drop(disk.segments.insert(segment, segment_of(stranger))));
        let another = Identity { start: StartId(8), ..identity(1) };
        changed(&|disk| drop(disk.segments.insert(segment, segment_of(another))));
        changed(&|disk| disk.segments.get_mut(&segment).expect("it is there").truncate(0));
        if segment < sample.frames.last().expect("there are frames").0 {
            changed(&|disk| disk.segments.get_mut(&segment).expect("it is there").fill(0));
        }
    }
}

#[test]
fn an_older_state_of_a_segment_is_never_believed() {
    // The same segment, of the same log in another state: a file that a restored backup has brought back.
    let old = {
        let mut disk = Disk::default();
        let mut log = create(SETTINGS, identity(1));
        for seed in 1..9 {
            Item::new(RecordKind::Accepted, seed, 20_000, 50 + seed).append(&mut log);
        }
        disk.flush_all(&mut log);
        disk.segments.remove(&SegmentId(2)).expect("it is there")
    };
    let sample = sample(true);
    let mut disk = sample.disk.clone();
    disk.segments.insert(SegmentId(2), old);
    match disk.recover_around(9) {
        Ok((_, seen)) => {
            assert!(!seen.lost.is_empty());
            assert!(seen.items.iter().all(|item| sample.items.contains(item)));
        }
        Err(error) => assert!(matches!(error, OpenError::EndLost { .. }), "{error}"),
    }
}

fn segment_of(identity: Identity) -> Vec<u8> {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity);
    Item::new(RecordKind::Accepted, 1, 100, 1).append(&mut log);
    disk.flush_all(&mut log);
    disk.segments.remove(&SegmentId(1)).expect("it is there")
}

#[test]
fn a_stranger_s_log_is_named() {
    let with = |identity| {
        let mut disk = Disk::default();
        disk.segments.insert(SegmentId(1), segment_of(identity));
        error(&mut disk)
    };
    let ours = identity(1);
    assert!(matches!(with(Identity { cell: CellId(8), ..ours }), OpenError::OtherCell { cell: CellId(8), .. }));
    let replica = ReplicaId(8);
    assert!(matches!(with(Identity { replica, ..ours }), OpenError::OtherReplica { replica: ReplicaId(8), .. }));
    // Which of two logs is ours nobody can tell who has one segment of each.
    let mut disk = Disk::default();
    disk.segments.insert(SegmentId(1), segment_of(ours));
    disk.segments.insert(SegmentId(2), segment_of(Identity { start: StartId(8), ..ours }));
    assert!(matches!(error(&mut disk), OpenError::OtherLog { .. }));
}

#[test]
fn another_version_and_a_wrong_size_are_named() {
    let mut disk = sample(true).disk;
    let block = disk.segments.get_mut(&SegmentId(2)).expect("it is there");
    block[8..12].copy_from_slice(&1_u32.to_le_bytes());
    let prelude = crc32c::crc32c(&block[..12]);
    block[12..16].copy_from_slice(&prelude.to_le_bytes());
    assert!(matches!(error(&mut disk), OpenError::OtherVersion { segment: SegmentId(2), version: 1 }));

    let mut disk = sample(true).disk;
    disk.segments.values_mut().for_each(|segment| segment.truncate(BLOCK));
    assert!(matches!(error(&mut disk), OpenError::WrongSize { segment: SegmentId(1), found: 4096, expected: 73_728 }));
    let mut disk = sample(true).disk;
    disk.segments.get_mut(&SegmentId(2)).expect("it is there").extend([0; BLOCK]);
    assert!(matches!(error(&mut disk), OpenError::WrongSize { segment: SegmentId(2), .. }));
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
    let value = &forged[2 * BLOCK + HEADER + 32..7 * BLOCK];
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
    // With the origin known it could write this replica's log for it: this is what the origin is for.
    let (_, outcome) = open_with_forged_value(1);
    assert!(outcome.expect("it looks like a hole").len() > 1);
}

#[test]
fn a_write_that_was_lost_is_a_hole() {
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
            let (_, seen) = disk.recover_around(9).expect("it goes on behind it");
            let [lost] = seen.lost[..] else { panic!("{:?}", seen.lost) };
            assert_eq!((lost.segment, lost.offset), (segment, offset));
        }
    }
}

#[test]
fn a_spare_segment_that_a_write_has_hit_is_spare_still_and_a_renamed_one_is_named() {
    // What the simulator's seed 2526 came to: once what was hit is used again, it shows the start of a segment that is needed.
    let Sample { mut disk, mut items, frames, .. } = sample(true);
    let end = frames.last().expect("there are frames").0;
    let (needed, spares) = (SegmentId(2), [end.next(), end.next().next()]);
    let blank = vec![0; disk.segments[&needed].len()];
    let mut hit = blank.clone();
    hit[..BLOCK].copy_from_slice(&disk.segments[&needed][..BLOCK]);
    disk.segments.extend([(spares[0], blank), (spares[1], hit)]);
    let mut renamed = disk.clone();
    let (recovered, seen) = disk.recover_around(9).expect("nothing is missing");
    assert_eq!((accepted(&seen.items, None), seen.lost), (accepted(&items, None), Vec::new()));
    let mut log = recovered.log;
    for slot in 100..120 {
        items.push(Item::new(RecordKind::Accepted, slot, 9000, slot));
        items.last().expect("just now").append(&mut log);
        disk.flush_all(&mut log);
    }
    let (_, seen) = disk.recover_around(10).expect("the spare was used");
    assert_eq!((accepted(&seen.items, None), seen.lost), (accepted(&items, None), Vec::new()));

    let file = renamed.segments.remove(&needed).expect("it is there");
    renamed.segments.insert(spares[1], file);
    let OpenError::Misplaced { segment, holds, .. } = error(&mut renamed) else { panic!("another error") };
    assert_eq!((segment, holds), (spares[1], needed));
}

#[test]
fn a_write_that_went_astray_is_refused() {
    let mut sample = sample(false);
    let &(segment, offset, length) = sample.frames.last().expect("there are frames");
    let bytes = sample.disk.segments.get_mut(&segment).expect("it is there");
    let (start, end) = (offset as usize, offset as usize + length);
    bytes.copy_within(start..end, end + BLOCK);
    bytes[start..end].fill(0);
    let OpenError::EndLost { frame, proof, offset: at, .. } = error(&mut sample.disk) else { panic!("another error") };
    assert_eq!((proof, at), (Proof::Frame(frame), offset));
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
    assert!(matches!(error(&mut disk), OpenError::EndLost { frame: FrameNumber(4), proof: Proof::Order, .. }));
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

#[test]
fn behind_a_hole_an_opening_repeats_what_its_reader_knows() {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    let mut places = Vec::new();
    for (kind, slot) in [(RecordKind::HardState, 0), (RecordKind::HardState, 0), (RecordKind::Accepted, 1)] {
        Item::new(kind, slot, 50, places.len() as u64 + 1).append(&mut log);
        places.extend(disk.flush_all(&mut log));
    }
    // The opening, the first hard state, and the second, which is lost.
    let offset = places[2].1 as usize;
    disk.segments.get_mut(&SegmentId(1)).expect("it is there")[offset..offset + BLOCK].fill(0);
    let (mut recovered, seen) = disk.recover_around(2).expect("it goes on behind it");
    let [lost] = seen.lost[..] else { panic!("{:?}", seen.lost) };
    assert_eq!((lost.known_slots(), lost.summary.promised), (Some(LostSlots::NONE), Ballot(3 << 64 | 1)));
    recovered.log.repeat_hard_state(lost.summary.promised, b"as far as is known");
    for slot in 2..9 {
        Item::new(RecordKind::Accepted, slot, 20_000, slot).append(&mut recovered.log);
    }
    disk.flush_all(&mut recovered.log);
    disk.segments.retain(|segment, _| *segment > SegmentId(1));
    let (_, seen) = disk.recover_around(3).expect("another hole");
    let first = seen.items.iter().find(|item| item.kind == RecordKind::HardState).expect("an opening has it");
    assert_eq!((first.ballot, &first.payload[..]), (lost.summary.promised, &b"as far as is known"[..]));
}
