//! The log on real files, past the page cache.

mod common;

use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use common::{Item, SETTINGS, identity, without_repeats};
use synod_wal::directory::{DirectoryError, DirectoryStorage, carry_out, open_segment, prepare_segment, segment_path};
use synod_wal::{Log, RecordKind, SegmentId, Slot, Tail, read_record, recover};

/// The target directory is on a file system that has O_DIRECT, which the temporary one need not be.
fn temporary() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory can be made")
}

fn flush_all(directory: &Path, log: &mut Log) {
    loop {
        while let Some(upkeep) = log.upkeep() {
            carry_out(directory, upkeep, SETTINGS.segment_bytes).expect("it can be done");
            log.upkeep_done(upkeep);
        }
        let Some(flush) = log.seal() else { return };
        let file = open_segment(directory, flush.segment).expect("it was made");
        file.write_all_at(&flush.buffer[..flush.length], flush.offset).expect("it has room");
        file.sync_data().expect("the disk works");
        log.flushed(flush.buffer);
    }
}

#[test]
fn what_was_written_is_recovered_over_three_lives() {
    let directory = temporary();
    let directory = directory.path();
    let mut expected = Vec::new();
    for life in 1..=3 {
        // What a crash has left of a segment being made, and a file that is none of ours.
        std::fs::write(directory.join("wal-0000000099.log.new"), "half").expect("it can be written");
        std::fs::write(directory.join("wal-notes.txt"), "not ours").expect("it can be written");
        let mut storage = DirectoryStorage::open(directory).expect("it opens");
        assert!(!directory.join("wal-0000000099.log.new").exists());
        let mut items = Vec::new();
        let recovered = recover(&mut storage, SETTINGS, &identity(life), &mut |record| items.push(Item::from(record)));
        let recovered = recovered.expect("nothing is wrong");
        assert_eq!(recovered.tail, Tail::Clean);
        assert_eq!(recovered.ended_with_mark, life > 1);
        assert_eq!(without_repeats(items), expected);
        let mut log = recovered.log;
        for seed in life * 100..life * 100 + 12 {
            let kind = if seed % 5 == 0 { RecordKind::HardState } else { RecordKind::Accepted };
            let slot = if kind == RecordKind::HardState { 0 } else { seed };
            expected.push(Item::new(kind, slot, 9000, seed));
            expected[expected.len() - 1].append(&mut log);
            if seed % 3 == 0 {
                flush_all(directory, &mut log);
            }
        }
        flush_all(directory, &mut log);
        log.mark();
        flush_all(directory, &mut log);
        for item in expected.iter().filter(|item| item.kind == RecordKind::Accepted) {
            let location = log.locate(item.slot).expect("it is durable");
            let (offset, length) = location.blocks();
            let mut blocks = synod_ring::AlignedBuffer::zeroed(length);
            let file = open_segment(directory, location.segment).expect("it is there");
            file.read_exact_at(&mut blocks, offset).expect("it can be read");
            assert_eq!(Item::from(read_record(&blocks, location, item.slot).expect("it is sound")), *item);
        }
        assert_eq!(log.locate(Slot(life * 100 + 50)), None);
    }
}

#[test]
fn a_segment_in_use_is_never_made_anew() {
    let directory = temporary();
    prepare_segment(directory.path(), SegmentId(1), SETTINGS.segment_bytes).expect("it can be made");
    let path = segment_path(directory.path(), SegmentId(1));
    assert_eq!(std::fs::metadata(&path).expect("it is there").len(), SETTINGS.segment_bytes);
    assert!(prepare_segment(directory.path(), SegmentId(1), SETTINGS.segment_bytes).is_err());
}

#[test]
fn a_missing_segment_is_an_error_with_its_path() {
    let directory = temporary();
    let error = open_segment(directory.path(), SegmentId(7)).expect_err("there is none");
    assert!(error.to_string().ends_with("wal-0000000007.log"), "{error}");
    assert!(matches!(error, DirectoryError::Io { doing: "opening", .. }));
}

#[test]
fn real_files_go_around() {
    let directory = temporary();
    let directory = directory.path();
    let mut inodes = std::collections::BTreeSet::new();
    let mut log = synod_wal::create(SETTINGS, identity(1));
    for slot in 1..=200 {
        Item::new(RecordKind::Accepted, slot, 9000, slot).append(&mut log);
        log.cut(Slot(slot.saturating_sub(12)));
        flush_all(directory, &mut log);
        for entry in std::fs::read_dir(directory).expect("it can be listed") {
            inodes.insert(entry.expect("it can be listed").metadata().expect("it is there").ino());
        }
    }
    assert!(inodes.len() <= 10, "{} files in all", inodes.len());
    assert!(!segment_path(directory, SegmentId(1)).exists());
    let mut storage = DirectoryStorage::open(directory).expect("it opens");
    let mut items = Vec::new();
    let recovered = recover(&mut storage, SETTINGS, &identity(2), &mut |record| items.push(Item::from(record)));
    let recovered = recovered.expect("nothing is wrong");
    assert_eq!(recovered.cut, Slot(188));
    let slots: Vec<u64> = items.iter().map(|item| item.slot.0).filter(|slot| *slot >= 188).collect();
    assert_eq!(slots, (188..=200).collect::<Vec<_>>());
}

/// Without a journal in the file system a power failure within a rename may leave both names.
#[test]
fn a_file_with_two_names_is_no_two_segments() {
    let directory = temporary();
    let directory = directory.path();
    let mut log = synod_wal::create(SETTINGS, identity(1));
    for slot in 1..=30 {
        Item::new(RecordKind::Accepted, slot, 9000, slot).append(&mut log);
        flush_all(directory, &mut log);
    }
    log.cut(Slot(30));
    let flush = log.seal().expect("the cut is to be written");
    let file = open_segment(directory, flush.segment).expect("it was made");
    file.write_all_at(&flush.buffer[..flush.length], flush.offset).expect("it has room");
    log.flushed(flush.buffer);
    // The next spare is begun, so that one more is wanted.
    for slot in 31..=36 {
        Item::new(RecordKind::Accepted, slot, 20_000, slot).append(&mut log);
    }
    while !matches!(log.upkeep(), Some(synod_wal::Upkeep::Recycle { .. })) {
        let flush = log.seal().expect("there is more to write");
        let file = open_segment(directory, flush.segment).expect("it was made");
        file.write_all_at(&flush.buffer[..flush.length], flush.offset).expect("it has room");
        log.flushed(flush.buffer);
    }
    let Some(synod_wal::Upkeep::Recycle { from, to }) = log.upkeep() else { unreachable!("it was just seen") };
    std::fs::hard_link(segment_path(directory, from), segment_path(directory, to)).expect("it can be linked");
    let mut storage = DirectoryStorage::open(directory).expect("it opens");
    assert!(!segment_path(directory, from).exists() && segment_path(directory, to).exists());
    let recovered = recover(&mut storage, SETTINGS, &identity(2), &mut |_| {}).expect("nothing is wrong");
    assert_eq!(recovered.cut, Slot(30));
}
