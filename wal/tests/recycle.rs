//! Segments that were cut off are used again, with all that they held.

mod common;

use std::collections::BTreeSet;

use common::{Disk, Item, SECTOR_BYTES, SETTINGS, identity, without_repeats};
use synod_wal::frame::{FrameHeader, GENERATION_FIRST};
use synod_wal::{
    FREE_SEGMENTS_MAX, Flush, FrameNumber, Log, LostSlots, OpenError, RecordKind, SegmentId, Settings, Slot, Upkeep,
    create, recover,
};

/// Appends the next slots, each flushed by itself.
fn write_slots(disk: &mut Disk, log: &mut Log, slots: std::ops::Range<u64>) -> Vec<Item> {
    let mut items = Vec::new();
    for slot in slots {
        if slot % 5 == 0 {
            Item::new(RecordKind::HardState, 0, 300, slot).append(log);
        }
        items.push(Item::new(RecordKind::Accepted, slot, 9000 + slot as usize % 7 * 1000, slot));
        items[items.len() - 1].append(log);
        disk.flush_all(log);
    }
    items
}

/// A log whose files have each been used several times; it was cut at slot 190 and ends with slot 199.
fn recycled() -> (Disk, Log, Vec<Item>) {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    let mut items = Vec::new();
    for round in 0..10_u64 {
        items.extend(write_slots(&mut disk, &mut log, round * 20 + 1..round * 20 + 20));
        log.cut(Slot(round * 20 + 10));
        disk.flush_all(&mut log);
    }
    items.retain(|item| item.slot >= Slot(190));
    (disk, log, items)
}

/// The first block of each segment: what it holds.
fn openings(disk: &Disk) -> Vec<(SegmentId, Option<FrameHeader>)> {
    let header = |bytes: &Vec<u8>| FrameHeader::decode(&bytes[..4096]).ok().map(|(header, _)| header);
    disk.segments.iter().map(|(segment, bytes)| (*segment, header(bytes))).collect()
}

fn needed(items: Vec<Item>, cut: Slot) -> Vec<Item> {
    items.into_iter().filter(|item| item.kind == RecordKind::Accepted && item.slot >= cut).collect()
}

#[test]
fn files_go_around_and_their_number_stays() {
    let (mut disk, log, expected) = recycled();
    let newest = disk.segments.keys().next_back().expect("there are segments").0;
    assert!(newest > 25, "200 slots fill many segments: {newest}");
    assert!(disk.segments.len() <= 12, "{} files", disk.segments.len());
    let generations: BTreeSet<_> =
        openings(&disk).iter().filter_map(|(_, header)| Some(header.as_ref()?.generation)).collect();
    assert!(generations.iter().any(|generation| generation.0 >= 3), "{generations:?}");
    let (live, spares, free) = log.segment_counts();
    assert_eq!(live + spares + free, disk.segments.len());
    let (recovered, items) = disk.recover(2).expect("sound");
    assert_eq!(recovered.cut, Slot(190));
    assert_eq!(recovered.log.segment_counts(), (live, spares, free), "recovery sorts the files as the writer did");
    assert_eq!(needed(items, recovered.cut), expected);
    assert_eq!(disk.locate(&recovered.log, Slot(189)), None);
    assert_eq!(disk.locate(&recovered.log, Slot(199)).as_ref(), expected.last());
}

#[test]
fn nothing_is_free_before_the_cut_is_durable() {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    write_slots(&mut disk, &mut log, 1..40);
    let (live, ..) = log.segment_counts();
    log.cut(Slot(30));
    assert_eq!(log.segment_counts().2, 0);
    let flush = log.seal().expect("an idle log says by itself where it begins");
    assert_eq!((log.segment_counts().0, log.segment_counts().2), (live, 0), "written is not durable");
    // Power is lost: all that was there before is still there.
    let (recovered, items) = disk.recover(2).expect("sound");
    assert_eq!(recovered.cut, Slot(0));
    assert_eq!(needed(items, Slot(0)).len(), 39);
    disk.write(&flush);
    disk.sync_all();
    log.flushed(flush.buffer);
    assert!(log.segment_counts().2 > 0);
    assert_eq!(log.seal().map(|flush| flush.length), None, "and says it once");
    // What was decided and not done is done by the next life.
    let (recovered, items) = disk.recover(3).expect("sound");
    assert_eq!(recovered.log.segment_counts().2, log.segment_counts().2);
    assert_eq!(needed(items, Slot(30)).len(), 10);
}

#[test]
fn too_many_free_segments_are_removed() {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    write_slots(&mut disk, &mut log, 1..200);
    assert!(disk.segments.len() > FREE_SEGMENTS_MAX + 10);
    log.cut(Slot(200));
    disk.flush_all(&mut log);
    assert_eq!(log.segment_counts().2, FREE_SEGMENTS_MAX);
    assert_eq!(log.segment_counts().0, 1, "only the segment in use is left");
    assert_eq!(disk.segments.len(), FREE_SEGMENTS_MAX + log.segment_counts().0 + log.segment_counts().1);
}

#[test]
fn a_full_log_takes_writes_again_after_a_cut() {
    let settings = Settings { log_bytes_max: 6 * SETTINGS.segment_bytes, ..SETTINGS };
    let mut disk = Disk::default();
    let mut log = create(settings, identity(1));
    let mut slot = 0;
    for _ in 0..5 {
        while !log.is_full() {
            slot += 1;
            write_slots(&mut disk, &mut log, slot..slot + 1);
        }
        assert!(disk.segments.len() <= 6, "the bound is on the files that there are: {}", disk.segments.len());
        log.cut(Slot(slot));
        assert!(log.is_full(), "a cut that is not durable frees nothing");
        disk.flush_all(&mut log);
        assert!(!log.is_full());
    }
    let recovered = recover(&mut disk, settings, &identity(2), &mut |_| {}).expect("sound");
    assert_eq!(recovered.cut, Slot(slot));
}

#[test]
fn a_needed_segment_that_is_missing_is_a_hole_and_one_cut_off_is_not() {
    let (disk, log, expected) = recycled();
    let begin = first_needed(&disk);
    let (live, spares, _) = log.segment_counts();
    let newest = SegmentId(begin.0 + live as u64 - 1);
    for (segment, _) in openings(&disk) {
        let mut damaged = disk.clone();
        damaged.segments.remove(&segment);
        let outcome = damaged.recover_around(9).map(|(_, seen)| seen);
        if segment < begin {
            let seen = outcome.expect("it was cut off");
            assert_eq!((seen.lost.len(), needed(seen.items, Slot(190))), (0, expected.clone()));
        } else if segment < newest {
            let seen = outcome.expect("it goes on behind it");
            let [lost] = seen.lost[..] else { panic!("{segment}: {:?}", seen.lost) };
            assert!([segment.0 - 1, segment.0].contains(&lost.segment.0), "{lost}");
        } else if segment.0 < newest.0 + spares as u64 {
            let error = outcome.map(|_| ()).expect_err("it may have been the last that had begun");
            assert!(matches!(error, OpenError::EndLost { segment: gone, .. } if gone == segment), "{segment}: {error}");
        }
    }
}

/// Where the log begins, by its newest opening frame. The sample's frames after that one name no other beginning.
fn first_needed(disk: &Disk) -> SegmentId {
    let own = |(segment, header): (SegmentId, Option<FrameHeader>)| header.filter(|header| header.segment == segment);
    let mut disk = disk.clone();
    let newest = openings(&disk).into_iter().filter_map(own).next_back().expect("there are frames").segment;
    // The cut was said by the last frame of all; recovery found it.
    let free = disk.recover(99).expect("sound").0.log.segment_counts().2;
    let first = *disk.segments.keys().nth(free).expect("there are more than the free ones");
    assert!(first <= newest);
    first
}

#[test]
fn a_damaged_opening_is_a_hole_where_it_is_needed() {
    let (disk, _, expected) = recycled();
    let begin = first_needed(&disk);
    for (segment, header) in openings(&disk) {
        for at in [10, 190, 400] {
            let mut damaged = disk.clone();
            damaged.segments.get_mut(&segment).expect("it is there")[at] ^= 4;
            let is_own = header.is_some_and(|header| header.segment == segment);
            match damaged.recover_around(9) {
                Ok((_, seen)) => {
                    // What it repeats is repeated later, or was said before.
                    let is_needed = segment >= begin && is_own;
                    let named: Vec<_> = seen.lost.iter().map(|lost| (lost.segment, lost.known_slots())).collect();
                    let hole = (segment, Some(LostSlots::NONE));
                    assert_eq!(
                        named,
                        if is_needed { vec![hole] } else { vec![] },
                        "segment {segment} of {begin}.. {at}"
                    );
                    assert_eq!(needed(seen.items, Slot(190)), expected);
                }
                Err(error) => panic!("segment {segment}: {error}"),
            }
        }
    }
}

/// The next frame of a recycled segment, torn in every way that a prefix or a suffix of it survives: the stale frames
/// under and behind it are perfectly sound for their own time, and are never taken for the log's.
#[test]
fn a_frame_torn_over_stale_frames_is_cut_off() {
    let (mut disk, mut log, _) = recycled();
    let mut tears = 0;
    for slot in 300..330_u64 {
        let (_, before) = disk.recover(1000 + slot).expect("sound");
        Item::new(RecordKind::Accepted, slot, 9000 + slot as usize % 9 * 1500, slot).append(&mut log);
        loop {
            disk.prepare(&mut log);
            let Some(flush) = log.seal() else { break };
            tears += tear_each_way(&disk, &flush, &before);
            disk.write(&flush);
            disk.sync_all();
            log.flushed(flush.buffer);
        }
        if slot % 10 == 0 {
            log.cut(Slot(slot - 3));
        }
    }
    assert!(tears > 1000, "{tears}");
}

fn tear_each_way(disk: &Disk, flush: &Flush, before: &[Item]) -> usize {
    let sectors = flush.length / SECTOR_BYTES;
    for kept in 0..sectors {
        for is_prefix in [true, false] {
            let mut torn = disk.clone();
            torn.write(flush);
            let mut sector = 0;
            torn.lose_power(|| {
                sector += 1;
                if is_prefix { sector <= kept } else { sector > sectors - kept }
            });
            let (_, items) = torn.recover(77).expect("a torn frame is no damage");
            let (mut items, before) = (without_repeats(items), without_repeats(before.to_vec()));
            if items != before {
                // An opening frame is whole without its padding; then only the hard state is there once more, or
                // what it has cut off is not.
                items.retain(|item| item.kind == RecordKind::Accepted);
                assert!(items.iter().all(|item| before.contains(item) || is_whole(&torn, flush)));
            }
        }
    }
    2 * sectors
}

/// Whether what survived is all of the frame but for its padding.
fn is_whole(disk: &Disk, flush: &Flush) -> bool {
    let frame = &disk.segments[&flush.segment][flush.offset as usize..][..flush.length];
    let used = flush.buffer[..flush.length].iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    frame[..used] == flush.buffer[..used]
}

#[test]
fn an_old_copy_of_a_segment_is_no_recycled_one() {
    // Of a log that was never cut, no file holds another segment than its name says.
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    write_slots(&mut disk, &mut log, 1..40);
    let (old, newest) = (SegmentId(1), openings(&disk).iter().filter(|(_, header)| header.is_some()).count() as u64);
    for segment in 2..=newest {
        let mut damaged = disk.clone();
        let copy = damaged.segments[&old].clone();
        damaged.segments.insert(SegmentId(segment), copy);
        match damaged.recover_around(9).map(|(_, seen)| seen) {
            Ok(seen) => {
                assert!(segment < newest && seen.lost.len() == 1, "{segment}: {:?}", seen.lost);
                // If there was room left at the end of the one before, it may have begun there.
                assert!([segment - 1, segment].contains(&seen.lost[0].segment.0));
            }
            Err(error) => {
                assert!(segment == newest && matches!(error, OpenError::EndLost { .. }), "{segment}: {error}");
            }
        }
    }
    // A copy of one that was cut off, in the place of one that is needed and not the last.
    let (disk, ..) = recycled();
    let begin = first_needed(&disk);
    let stale = disk.segments[&SegmentId(begin.0 - 1)].clone();
    let mut damaged = disk.clone();
    damaged.segments.insert(begin, stale);
    let (_, seen) = damaged.recover_around(9).expect("it goes on behind it");
    assert_eq!((seen.lost.len(), seen.lost[0].segment), (1, begin), "nothing before it is looked at");
}

#[test]
fn the_frames_of_an_uncut_log_say_nothing_of_a_cut() {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    write_slots(&mut disk, &mut log, 1..3);
    let block = &disk.segments[&SegmentId(1)][..4096];
    assert_eq!(block[168..188], [0; 20], "as a version that knew no cut wrote it");
    let (header, _) = FrameHeader::decode(block).expect("sound");
    assert_eq!((header.number, header.generation), (FrameNumber(1), GENERATION_FIRST));
    assert_eq!(log.upkeep(), None::<Upkeep>);
}
