//! A look through the closed segments of a log in use: rot is found in every block of every frame, and nothing else is.

mod common;

use common::{Disk, Item, SETTINGS, identity};
use synod_wal::{CheckError, Closed, Log, RecordKind, Slot, create};

const BLOCK: usize = 4096;

fn check(disk: &Disk, closed: &Closed) -> Result<u64, CheckError> {
    let bytes = &disk.segments[&closed.segment];
    closed.check(bytes.len() as u64, &mut |offset, into| {
        into.copy_from_slice(&bytes[offset as usize..][..into.len()]);
        Ok(())
    })
}

/// Twenty slots in frames of one to five blocks, each flushed by itself.
fn write(disk: &mut Disk, log: &mut Log, first: u64) {
    for slot in first..first + 20 {
        Item::new(RecordKind::Accepted, slot, 100 + slot as usize % 5 * 4500, slot).append(log);
        disk.flush_all(log);
    }
}

#[test]
fn every_block_of_every_frame_is_looked_at() {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    assert_eq!(log.closed(), [], "nothing was written");
    // The segments' files have been used before.
    write(&mut disk, &mut log, 1);
    log.cut(Slot(20));
    write(&mut disk, &mut log, 21);
    write(&mut disk, &mut log, 41);
    log = disk.recover(2).expect("it is sound").0.log;
    write(&mut disk, &mut log, 61);

    let closed = log.closed();
    assert!(closed.len() >= 5 && closed.len() + 1 == log.segment_counts().0, "{closed:?}");
    for segment in closed {
        let length = check(&disk, &segment).expect("it is as it was written") as usize;
        assert!(length >= SETTINGS.segment_bytes as usize / 2);
        for at in (0..length).step_by(BLOCK) {
            let mut rotten = disk.clone();
            let bytes = rotten.segments.get_mut(&segment.segment).expect("it is there");
            bytes[at + 30] ^= 4;
            let found = check(&rotten, &segment);
            // Behind a frame's records are zeros that nobody reads.
            let is_padding =
                found.is_ok() && disk.segments[&segment.segment][at..at + BLOCK].iter().all(|byte| *byte == 0);
            let is_found = matches!(found, Err(CheckError::Damaged { offset, .. }) if offset as usize <= at);
            assert!(is_found || is_padding, "offset {at}: {found:?}");
        }
        // Nor is anything behind the frames.
        disk.segments.get_mut(&segment.segment).expect("it is there")[length..].fill(7);
        assert_eq!(check(&disk, &segment).expect("its frames are sound") as usize, length);
    }
}

#[test]
fn a_frame_of_elsewhere_is_found_and_a_segment_that_was_used_again_is_held_no_more() {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    write(&mut disk, &mut log, 1);
    let closed = log.closed();
    let (first, second) = (closed[0], closed[1]);
    let mut mixed = disk.clone();
    mixed.segments.insert(first.segment, disk.segments[&second.segment].clone());
    assert!(matches!(check(&mixed, &first), Err(CheckError::Damaged { offset: 0, .. })));
    // A read that fails says so.
    let failed = first.check(SETTINGS.segment_bytes, &mut |_, _| Err(std::io::ErrorKind::Other.into()));
    assert!(matches!(failed, Err(CheckError::Read { offset: 0, .. })), "{failed:?}");

    assert!(log.holds(&first));
    log.cut(Slot(20));
    write(&mut disk, &mut log, 21);
    assert!(!log.holds(&first), "it was cut off");
}

#[test]
fn a_segment_is_cut_off_with_all_that_is_before_it() {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    write(&mut disk, &mut log, 21);
    // Lower slots come later where another replica's values are adopted.
    write(&mut disk, &mut log, 1);
    let closed = log.closed();
    let last = closed[closed.len() - 1];
    assert_eq!(last.last_slot, Slot(40));
    log.cut(Slot(last.last_slot.0 + 1));
    write(&mut disk, &mut log, 41);
    assert!(!log.holds(&last), "{last:?}");
}
