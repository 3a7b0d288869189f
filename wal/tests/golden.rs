//! The bytes of a small log, kept: what is written today is what was written then, and is still read.

mod common;

use common::{Disk, Item, SETTINGS, identity};
use synod_wal::{Ballot, CellId, Identity, OpenError, RecordKind, ReplicaId, SegmentId, Slot, Tail, create, recover};

const GOLDEN: &str = include_str!("data/log.hex");

/// Two lives, a cut, a mark, records of every kind.
fn written() -> (Disk, Vec<Item>) {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    let item = |kind, slot, length, seed| Item::new(kind, slot, length, seed);
    let items = vec![
        item(RecordKind::HardState, 0, 40, 1),
        item(RecordKind::Accepted, 1, 100, 2),
        item(RecordKind::Chosen, 1, 0, 3),
        item(RecordKind::Accepted, 2, 5000, 4),
        item(RecordKind::HardState, 0, 64, 5),
    ];
    items[..3].iter().for_each(|item| item.append(&mut log));
    disk.flush_all(&mut log);
    let mut log = disk.recover(2).expect("sound").0.log;
    log.cut(Slot(2));
    items[3..].iter().for_each(|item| item.append(&mut log));
    disk.flush_all(&mut log);
    log.mark();
    disk.flush_all(&mut log);
    (disk, items)
}

/// Lines of 32 bytes with their offset; zeros are left out.
fn to_hex(bytes: &[u8]) -> String {
    let line = |(at, line): (usize, &[u8])| {
        let hex: String = line.iter().map(|byte| format!("{byte:02x}")).collect();
        line.iter().any(|byte| *byte != 0).then(|| format!("{:06x} {hex}\n", at * 32))
    };
    bytes.chunks(32).enumerate().filter_map(line).collect()
}

fn golden() -> Disk {
    let mut bytes = vec![0; SETTINGS.segment_bytes as usize];
    for line in GOLDEN.lines() {
        let (at, hex) = line.split_once(' ').expect("an offset and bytes");
        let at = usize::from_str_radix(at, 16).expect("an offset");
        for i in 0..hex.len() / 2 {
            bytes[at + i] = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("a byte");
        }
    }
    let mut disk = Disk::default();
    disk.segments.insert(SegmentId(1), bytes);
    disk
}

#[test]
fn what_is_written_today_is_what_was_written_then() {
    let (disk, _) = written();
    let hex = to_hex(&disk.segments[&SegmentId(1)]);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/log.hex"), &hex).expect("it can be written");
        return;
    }
    assert!(hex == GOLDEN, "the format changed: raise the version, keep reading this one, say so in docs/format.md");
}

#[test]
fn what_was_written_then_is_read_today() {
    let (recovered, items) = golden().recover(9).expect("sound");
    assert_eq!(items, written().1);
    assert_eq!((recovered.tail, recovered.ended_with_mark, recovered.cut), (Tail::Clean, true, Slot(2)));
    assert_eq!(items[0].ballot, Ballot(1 << 64 | 1));
}

#[test]
fn it_is_refused_by_a_stranger() {
    let open = |identity: &Identity| recover(&mut golden(), SETTINGS, identity, &mut |_| {}).map(|_| ());
    let other = Identity { cell: CellId(78), ..identity(9) };
    assert!(matches!(open(&other), Err(OpenError::OtherCell { cell: CellId(77), .. })));
    let other = Identity { replica: ReplicaId(4), ..identity(9) };
    assert!(matches!(open(&other), Err(OpenError::OtherReplica { replica: ReplicaId(3), .. })));
}
