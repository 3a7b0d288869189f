//! The log on real files, past the page cache.

mod common;

use std::os::unix::fs::FileExt;
use std::path::Path;

use common::{Item, SETTINGS, identity, without_repeats};
use synod_wal::directory::{DirectoryError, DirectoryStorage, open_segment, prepare_segment, segment_path};
use synod_wal::{Log, RecordKind, SegmentId, Slot, Tail, read_record, recover};

/// The target directory is on a file system that has O_DIRECT, which the temporary one need not be.
fn temporary() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory can be made")
}

fn flush_all(directory: &Path, log: &mut Log) {
    loop {
        while let Some(segment) = log.wants_segment() {
            prepare_segment(directory, segment, SETTINGS.segment_bytes).expect("a segment can be made");
            log.segment_ready(segment);
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
