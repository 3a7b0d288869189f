//! What the writer hands out, when, and what it takes for durable.

mod common;

use common::{Disk, Item, SETTINGS, identity};
use expect_test::expect;
use synod_wal::frame::{FLAG_MARK, FLAG_OPENING, FrameHeader};
use synod_wal::{
    Ballot, FrameNumber, Incarnation, Log, RecordKind, RecordNumber, SPARE_SEGMENTS, SegmentId, Settings, Slot, Upkeep,
    create,
};

const LIFE: Incarnation = Incarnation(1);

fn append(log: &mut Log, slot: u64, length: usize) -> RecordNumber {
    log.append(RecordKind::Accepted, Slot(slot), Ballot(1), &[&vec![7; length]])
}

/// A log whose first segment is open, and its disk.
fn opened() -> (Disk, Log) {
    let (mut disk, mut log) = (Disk::default(), create(SETTINGS, identity(1)));
    log.append_hard_state(Ballot(5), LIFE, b"hard state");
    disk.flush_all(&mut log);
    (disk, log)
}

#[test]
fn one_flush_at_a_time_and_all_that_queued_goes_next() {
    let (_, mut log) = opened();
    assert_eq!(append(&mut log, 1, 10), RecordNumber(2));
    let first = log.seal().expect("a record is queued");
    append(&mut log, 2, 10);
    assert_eq!(append(&mut log, 3, 10), RecordNumber(4));
    assert!(log.seal().is_none(), "serial");
    assert_eq!((log.durable(), log.appended()), (RecordNumber(1), RecordNumber(4)));
    assert_eq!(log.unflushed_bytes(), 2 * 4096);
    assert_eq!(log.locate(Slot(1)), None, "not durable yet");
    assert_eq!(log.flushed(first.buffer), RecordNumber(2));
    assert!(log.locate(Slot(1)).is_some());
    let second = log.seal().expect("two records are queued");
    let (header, _) = FrameHeader::decode(&second.buffer).expect("it is a frame");
    assert_eq!((header.records, header.durable), (2, FrameNumber(3)));
    assert_eq!(log.flushed(second.buffer), RecordNumber(4));
    assert!(log.seal().is_none(), "nothing is queued");
    assert_eq!(log.durable_frame(), FrameNumber(4));
    assert_eq!(log.unflushed_bytes(), 0);
}

#[test]
fn a_backlog_of_many_frames_goes_in_order() {
    let (mut disk, mut log) = opened();
    for slot in 1..=20 {
        append(&mut log, slot, 10_000);
    }
    assert!(log.unflushed_bytes() > 200_000);
    let flushes = disk.flush_all(&mut log);
    assert!(flushes.len() >= 10, "a record never spans frames");
    assert_eq!(log.durable(), RecordNumber(21));
    let (_, items) = disk.recover(2).expect("it opens");
    let slots: Vec<u64> = items.iter().map(|item| item.slot.0).filter(|slot| *slot != 0).collect();
    assert_eq!(slots, (1..=20).collect::<Vec<_>>());
}

#[test]
fn every_segment_begins_with_the_hard_state_as_of_what_is_before_it() {
    let (mut disk, mut log) = opened();
    let mut seen = 0;
    for round in 0..40 {
        append(&mut log, round + 1, 20_000);
        // Queued behind the record: repeated only once it is sealed itself, never ahead of the record.
        log.append_hard_state(Ballot(u128::from(round) + 6), LIFE, format!("hard state {round}").as_bytes());
        for (segment, offset, _) in disk.flush_all(&mut log) {
            if offset == 0 && segment > SegmentId(1) {
                let block = &disk.segments[&segment][..4096];
                let (header, _) = FrameHeader::decode(block).expect("it is a frame");
                assert_eq!((header.flags, header.records), (FLAG_OPENING, 1));
                assert_eq!(header.previous.summary.promised, Ballot(u128::from(round) + 5));
                let repeated = format!("hard state {}", round - 1);
                assert!(block.windows(repeated.len()).any(|window| window == repeated.as_bytes()));
                seen += 1;
            }
        }
    }
    assert!(seen > 5);
}

#[test]
fn a_hard_state_from_before_a_restart_is_repeated_too() {
    let (mut disk, mut log) = opened();
    for life in 2..5 {
        append(&mut log, life, 10);
        disk.flush_all(&mut log);
        log = disk.recover(life).expect("it opens").0.log;
    }
    for slot in 10..20 {
        append(&mut log, slot, 20_000);
    }
    disk.flush_all(&mut log);
    for segment in 1..=3 {
        // In the first segment it came right after the opening.
        let bytes = &disk.segments[&SegmentId(segment)][..8192];
        assert!(bytes.windows(10).any(|window| window == b"hard state"), "segment {segment}");
    }
}

#[test]
fn the_next_segment_is_wanted_ahead_and_waited_for() {
    let mut log = create(SETTINGS, identity(1));
    append(&mut log, 1, 10);
    assert!(log.seal().is_none(), "no segment yet");
    for segment in 1..=SPARE_SEGMENTS {
        assert_eq!(log.upkeep(), Some(Upkeep::Make(SegmentId(segment))));
        log.upkeep_done(Upkeep::Make(SegmentId(segment)));
    }
    assert_eq!(log.upkeep(), None);
    let opening = log.seal().expect("segment 1 is ready");
    assert_eq!((opening.segment, opening.offset, opening.length), (SegmentId(1), 0, 4096));
    assert_eq!(log.flushed(opening.buffer), RecordNumber(0));
    assert_eq!(log.upkeep(), Some(Upkeep::Make(SegmentId(3))));
    for slot in 2..20 {
        append(&mut log, slot, 20_000);
    }
    let mut last = SegmentId(0);
    while let Some(flush) = log.seal() {
        last = flush.segment;
        log.flushed(flush.buffer);
    }
    assert_eq!(last, SegmentId(2));
    assert!(log.durable() < log.appended(), "the rest waits for segment 3");
    log.upkeep_done(Upkeep::Make(SegmentId(3)));
    assert_eq!(log.seal().map(|flush| flush.segment), Some(SegmentId(3)));
}

#[test]
fn a_mark_is_written_only_where_it_proves_something() {
    let flags = |log: &mut Log| {
        log.mark();
        let flush = log.seal()?;
        let (header, _) = FrameHeader::decode(&flush.buffer).expect("it is a frame");
        log.flushed(flush.buffer);
        Some(header.flags)
    };
    let mut empty = create(SETTINGS, identity(1));
    empty.upkeep_done(Upkeep::Make(SegmentId(1)));
    assert_eq!(flags(&mut empty), None, "nothing to prove in an empty log");
    let (_, mut log) = opened();
    assert_eq!(flags(&mut log), Some(FLAG_MARK));
    assert_eq!(flags(&mut log), None, "there is one already");
    append(&mut log, 1, 10);
    assert_eq!(flags(&mut log), Some(0), "a record proves as much");
    assert_eq!(flags(&mut log), Some(FLAG_MARK));
}

#[test]
fn a_full_log_keeps_room_for_what_is_queued_and_for_hard_state() {
    let settings = Settings { log_bytes_max: 6 * SETTINGS.segment_bytes, ..SETTINGS };
    for length in [10, 5000, 20_000, 24_000] {
        let (mut disk, mut log) = (Disk::default(), create(settings, identity(1)));
        let mut slot = 0;
        // What comes in while a flush is under way queues, up to four records at a time.
        while !log.is_full() {
            slot += 1;
            append(&mut log, slot, length);
            if slot % 4 == 0 {
                disk.flush_all(&mut log);
            }
        }
        disk.flush_all(&mut log);
        assert_eq!(log.durable(), log.appended());
        let used = disk.segments.range(..=SegmentId(5)).filter(|(_, bytes)| bytes[0] != 0).count();
        assert!(used >= 4, "with records of {length} bytes only {used} segments were used");
        assert_eq!(disk.segments.get(&SegmentId(6)).map(|bytes| bytes[0]), Some(0), "the reserve is untouched");
        // Promises go on: the reserve holds at least a dozen of them, each in a flush of its own.
        for ballot in 0..12 {
            log.append_hard_state(Ballot(ballot), LIFE, b"promised");
            disk.flush_all(&mut log);
        }
        assert_eq!(log.durable(), log.appended());
        assert!(!log.is_exhausted());
        while !log.is_exhausted() {
            log.append_hard_state(Ballot(99), LIFE, b"promised");
            disk.flush_all(&mut log);
        }
        assert_eq!(log.upkeep(), None);
        assert!(log.durable() < log.appended());
    }
}

/// As [`Disk::flush_all`], on a disk that has no room for another segment.
fn flush_without_new_segments(disk: &mut Disk, log: &mut Log) {
    while let Some(flush) = log.seal() {
        disk.write(&flush);
        disk.sync_all();
        log.flushed(flush.buffer);
    }
}

#[test]
fn on_a_full_disk_the_log_is_as_long_as_its_files_are_until_there_is_room_again() {
    let (mut disk, mut log) = (Disk::default(), create(SETTINGS, identity(1)));
    append(&mut log, 1, 20_000);
    disk.flush_all(&mut log);
    assert!(!log.is_full_within(SETTINGS.segment_bytes));
    log.set_can_grow(false);
    let mut slot = 1;
    while !log.is_full() {
        slot += 1;
        append(&mut log, slot, 20_000);
        flush_without_new_segments(&mut disk, &mut log);
    }
    assert_eq!(log.durable(), log.appended(), "what was taken has room");
    assert!(slot > 2, "the segments made ahead of need are used");
    // A promise still finds its reserve; and what finds none waits, it does not end the process.
    for ballot in 0..2000 {
        log.append_hard_state(Ballot(ballot), LIFE, b"promised");
        flush_without_new_segments(&mut disk, &mut log);
        assert!(ballot > 12 || log.durable() == log.appended());
    }
    assert!(log.durable() < log.appended());
    assert!(!log.is_exhausted());
    log.set_can_grow(true);
    assert!(!log.is_full());
    disk.flush_all(&mut log);
    assert_eq!(log.durable(), log.appended());
}

#[test]
fn an_incarnation_is_kept_over_a_restart() {
    let (mut disk, mut log) = opened();
    for incarnation in [Incarnation(4), Incarnation(0), Incarnation(5)] {
        append(&mut log, 1, 10);
        log.append_hard_state(Ballot(1), incarnation, b"state");
        append(&mut log, 2, 10);
        disk.flush_all(&mut log);
        // Nobody's frame says more than the hard states up to its end.
        log.append_hard_state(Ballot(1), Incarnation(9), b"never flushed");
        let recovered = disk.recover(2).expect("it opens").0;
        assert_eq!(recovered.log.identity().incarnation, incarnation);
        log = recovered.log;
    }
}

#[test]
#[should_panic(expected = "a record fits in a frame")]
fn a_record_longer_than_a_frame_is_our_bug() {
    let (_, mut log) = opened();
    append(&mut log, 1, SETTINGS.payload_bytes_max() + 1);
}

#[test]
fn a_record_may_fill_a_frame_to_the_last_byte() {
    let (mut disk, mut log) = opened();
    append(&mut log, 1, SETTINGS.payload_bytes_max());
    assert_eq!(disk.flush_all(&mut log), [(SegmentId(1), 8192, SETTINGS.frame_bytes_max)]);
}

#[test]
fn a_frame_in_golden_bytes() {
    let (_, mut log) = opened();
    log.append(RecordKind::Accepted, Slot(0x1234), Ballot(0xab << 64 | 0xcd), &[b"a value, ", b"in parts"]);
    log.append(RecordKind::Chosen, Slot(0x1233), Ballot(0x99), &[]);
    let flush = log.seal().expect("records are queued");
    let mut lines = String::new();
    for (i, line) in flush.buffer[..flush.length].chunks(16).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            let hex: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            lines += &format!("{:03x}  {}\n", i * 16, hex.join(" "));
        }
    }
    expect![[r#"
        000  53 59 4e 4f 44 57 41 4c 02 00 00 00 35 ba 10 f9
        010  4d 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        020  03 00 00 00 02 00 00 00 01 00 00 00 00 00 00 00
        030  01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00
        040  01 00 00 00 00 00 00 00 01 00 00 00 00 00 00 00
        050  00 20 00 00 00 00 00 00 03 00 00 00 00 00 00 00
        060  02 00 00 00 00 00 00 00 60 00 00 00 b1 9f c5 3f
        070  02 73 2b 9b 01 00 00 00 00 00 00 00 00 00 00 00
        090  00 00 00 00 00 00 00 00 05 00 00 00 00 00 00 00
        0d0  00 00 00 00 00 00 00 00 00 00 00 00 42 60 8a 76
        0e0  0a 61 2f b4 11 00 00 02 34 12 00 00 00 00 00 00
        0f0  cd 00 00 00 00 00 00 00 ab 00 00 00 00 00 00 00
        100  61 20 76 61 6c 75 65 2c 20 69 6e 20 70 61 72 74
        110  73 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
        120  68 3c 5a b6 00 00 00 03 33 12 00 00 00 00 00 00
        130  99 00 00 00 00 00 00 00 00 00 00 00 00 00 00 00
    "#]]
    .assert_eq(&lines);
}

/// Says what an append costs: `cargo test --release -p synod-wal append_cost -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn append_cost() {
    let settings = Settings::default();
    let mut log = create(settings, identity(1));
    let (mut appends, mut appending, mut sealing) = (0_u64, std::time::Duration::ZERO, std::time::Duration::ZERO);
    let item = Item::new(RecordKind::Accepted, 1, 27, 1);
    assert_eq!(item.payload.len(), 45);
    for turn in 0..20_000_u64 {
        while let Some(upkeep) = log.upkeep() {
            log.upkeep_done(upkeep);
        }
        let start = std::time::Instant::now();
        for slot in 0..100 {
            log.append(RecordKind::Accepted, Slot(turn * 100 + slot + 1), Ballot(1), &[&item.payload, &[7; 19]]);
        }
        appending += start.elapsed();
        appends += 100;
        let start = std::time::Instant::now();
        while let Some(flush) = log.seal() {
            log.flushed(flush.buffer);
        }
        sealing += start.elapsed();
    }
    let each = |time: std::time::Duration| time.as_nanos() as u64 / appends;
    println!("a 64-byte record: append {} ns, its part of seal and flushed {} ns", each(appending), each(sealing));
    assert_eq!(log.durable(), RecordNumber(appends));
}
