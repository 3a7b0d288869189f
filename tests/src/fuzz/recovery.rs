//! Recovery, fed with the files of a log that are nearly right: it must end, and hand out nothing that was not written.

use std::collections::HashSet;
use std::io;
use std::sync::OnceLock;

use synod_wal::frame::FrameHeader;
use synod_wal::{
    Ballot, CellId, Identity, Incarnation, Log, RecordKind, RecordRef, ReplicaId, SegmentId, Settings, Slot, StartId,
    Storage, Upkeep, Visitor, create, inspect,
};

use super::{Finding, Verdict};

/// Segments of a few frames.
const SETTINGS: Settings = Settings { segment_bytes: 72 << 10, log_bytes_max: 72 << 20, frame_bytes_max: 24 << 10 };
/// An input is one segment behind the other, the last one as far as it was written.
const SEGMENT_BYTES: usize = SETTINGS.segment_bytes as usize;
const BLOCK_BYTES: usize = 4096;
const RECORDS: u64 = 60;
const RECORD_BYTES: usize = 600;

/// A record as it was appended.
type Written = (u8, Slot, Ballot, Vec<u8>);

/// A log, and what is in it.
struct Sample {
    bytes: Vec<u8>,
    written: HashSet<Written>,
}

fn sample() -> &'static Sample {
    static SAMPLE: OnceLock<Sample> = OnceLock::new();
    SAMPLE.get_or_init(make)
}

fn identity() -> Identity {
    Identity { cell: CellId(7), replica: ReplicaId(1), incarnation: Incarnation(1), start: StartId(5) }
}

fn make() -> Sample {
    let (mut log, mut bytes, mut written) = (create(SETTINGS, identity()), Vec::new(), HashSet::new());
    for number in 1..=RECORDS {
        let payload: Vec<u8> = (0..RECORD_BYTES as u64).map(|at| (at * 31 + number * 7) as u8).collect();
        let ballot = Ballot(u128::from(number) << 64 | 1);
        let (kind, slot) = match number {
            _ if number % 20 == 1 => {
                log.append_hard_state(ballot, log.identity().incarnation, &payload);
                (RecordKind::HardState, Slot(0))
            }
            _ => {
                log.append(RecordKind::Accepted, Slot(number), ballot, &[&payload]);
                (RecordKind::Accepted, Slot(number))
            }
        };
        written.insert((kind as u8, slot, ballot, payload));
        if number.is_multiple_of(3) || number == RECORDS {
            flush(&mut log, &mut bytes);
        }
    }
    log.mark();
    flush(&mut log, &mut bytes);
    Sample { bytes, written }
}

fn flush(log: &mut Log, bytes: &mut Vec<u8>) {
    loop {
        while let Some(upkeep) = log.upkeep() {
            assert!(matches!(upkeep, Upkeep::Make(_)), "this log is never cut");
            log.upkeep_done(upkeep);
        }
        let Some(flush) = log.seal() else { return };
        let (segment, offset) = (flush.segment.0 as usize - 1, flush.offset as usize);
        let at = segment * SEGMENT_BYTES + offset;
        bytes.resize(bytes.len().max(at + flush.length), 0);
        bytes[at..at + flush.length].copy_from_slice(&flush.buffer[..flush.length]);
        log.flushed(flush.buffer);
    }
}

/// The log as it was written, and the beginning of it.
pub(super) fn logs() -> Vec<Vec<u8>> {
    let bytes = &sample().bytes;
    vec![bytes.clone(), bytes[..SEGMENT_BYTES].to_vec(), bytes[..3 * BLOCK_BYTES].to_vec()]
}

struct Files<'a>(&'a [u8]);

impl Storage for Files<'_> {
    fn segments(&mut self) -> io::Result<Vec<SegmentId>> {
        Ok((1..=self.0.len().div_ceil(SEGMENT_BYTES) as u64).map(SegmentId).collect())
    }

    fn segment_bytes(&mut self, _: SegmentId) -> io::Result<u64> {
        Ok(SETTINGS.segment_bytes)
    }

    fn read(&mut self, segment: SegmentId, offset: u64, into: &mut [u8]) -> io::Result<()> {
        assert!(into.len() as u64 + offset <= SETTINGS.segment_bytes, "within the segment");
        into.fill(0);
        let offset = offset as usize;
        let begin = (segment.0 as usize - 1) * SEGMENT_BYTES;
        let end = self.0.len().min(begin + SEGMENT_BYTES);
        let there = self.0.get(begin + offset.min(SEGMENT_BYTES)..end).unwrap_or_default();
        let length = there.len().min(into.len());
        into[..length].copy_from_slice(&there[..length]);
        Ok(())
    }

    fn sync(&mut self, _: SegmentId) -> io::Result<()> {
        Ok(())
    }
}

#[derive(Default)]
struct Judge {
    records: u64,
    invented: bool,
}

impl Visitor for Judge {
    fn frame(&mut self, _: &FrameHeader) {}

    fn record(&mut self, record: RecordRef<'_>, _: u64) {
        self.records += 1;
        let found = (record.kind as u8, record.slot, record.ballot, record.payload.to_vec());
        self.invented |= !sample().written.contains(&found);
    }
}

pub(super) fn feed(bytes: &[u8]) -> Result<Verdict, Finding> {
    let mut judge = Judge::default();
    let recovered = inspect(&mut Files(bytes), SETTINGS, &identity(), &mut judge);
    if judge.invented {
        return Err(Finding::new("a record that nobody wrote", bytes));
    }
    Ok(if recovered.is_ok() && judge.records > 0 { Verdict::Taken } else { Verdict::Refused })
}
