//! Chosen batches for replicas that lag behind: from memory if they are recent, else from the log; if they are gone from there,
//! a snapshot instead (`catch_up`). What somebody reads is not cut from the log, while there is room: else who comes from a snapshot,
//! slower than the cell's own snapshots follow each other, would be sent the next one again and again.

use super::*;

/// A part of one segment that holds chosen batches for a lagging replica.
#[derive(Debug)]
pub struct LogRead {
    /// Who lacks them.
    pub to: ReplicaId,
    /// The segment.
    pub segment: synod_wal::SegmentId,
    /// Where to begin, in bytes, block-aligned.
    pub offset: u64,
    /// How many bytes, block-aligned.
    pub length: usize,
    first: Slot,
    chosen: Slot,
    locations: Vec<synod_wal::Location>,
}

/// One message of entries carries about this much, in bytes (and at least one batch): what a laggard does with it keeps others from
/// a processor, and its flush from the disk, for a fraction of a millisecond.
const ENTRIES_BYTES_MAX: usize = 64 << 10;
/// One read of the log for a lagging replica, in bytes: one message takes all that it brings, so that nothing is read twice.
const LOG_READ_BYTES_MAX: u64 = ENTRIES_BYTES_MAX as u64;
/// Applied batches that are kept in memory for replicas that lag a little: how many bytes.
pub(super) const RECENT_BYTES_MAX: usize = 16 << 20;
/// And how many batches.
const RECENT_BATCHES_MAX: usize = 16 << 10;

/// The log is kept for who reads it until it has not asked for so long.
pub(super) const READER_IDLE_MAX: Duration = Duration::from_secs(10);

/// How far a replica that reads the log has come.
struct Reader {
    /// What it asked for last: it has what is below.
    from: Slot,
    asked: Instant,
}

/// The reads of the log for those who lag behind: one for each of them at a time.
pub(super) struct LogReads {
    pace: Pace,
    of: BTreeSet<ReplicaId>,
    /// One for each member at most.
    readers: BTreeMap<ReplicaId, Reader>,
    /// Not begun yet, because of the pace.
    waiting: VecDeque<LogRead>,
    /// When the next may begin.
    due: Instant,
}

impl LogReads {
    pub(super) fn new(pace: Pace) -> Self {
        Self { pace, of: BTreeSet::new(), readers: BTreeMap::new(), waiting: VecDeque::new(), due: Instant(0) }
    }

    /// The log grew: for each who reads it.
    pub(super) fn flushed(&mut self, bytes: u64, now: Instant) {
        self.forget_idle(now);
        self.pace.grew(bytes * self.readers.len().max(1) as u64);
    }

    fn came_to(&mut self, from: Slot, reader: ReplicaId, now: Instant) {
        self.readers.insert(reader, Reader { from, asked: now });
    }

    /// The log is kept from behind this slot on: somebody reads it there, or will, when it is not in memory any more.
    pub(super) fn pinned(&mut self, now: Instant) -> Option<Slot> {
        self.forget_idle(now);
        self.readers.values().map(|reader| Slot(reader.from.0.saturating_sub(1))).min()
    }

    fn forget_idle(&mut self, now: Instant) {
        self.readers.retain(|_, reader| now.since(reader.asked) <= READER_IDLE_MAX);
    }

    /// Nobody keeps the log from being cut any more.
    pub(super) fn forget_readers(&mut self) {
        self.readers.clear();
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.waiting.is_empty()).then_some(self.due)
    }

    fn begin(&mut self, outlet: &mut impl Outlet) {
        let now = outlet.now();
        while now >= self.due
            && let Some(read) = self.waiting.pop_front()
        {
            self.due = self.pace.take(read.length, now);
            outlet.read_log(read);
        }
    }
}

impl Engine {
    /// Begins what has waited for its time.
    pub(super) fn tend_log_reads(&mut self, outlet: &mut impl Outlet) {
        self.log_reads.begin(outlet);
    }

    /// Sends chosen batches to a replica that lacks them: from memory if they are recent, else from the log.
    pub(super) fn send_entries(&mut self, to: ReplicaId, from: Slot, chosen: Slot, outlet: &mut impl Outlet) {
        if let Some(batches) = self.recent.from(from) {
            self.log_reads.came_to(from, to, outlet.now());
            self.send_batches(to, from, batches, chosen, outlet);
        } else if let Some(read) = self.plan_read(to, from, chosen) {
            self.log_reads.came_to(from, to, outlet.now());
            if self.log_reads.of.insert(to) {
                self.log_reads.waiting.push_back(read);
                self.log_reads.begin(outlet);
            }
        } else if from <= self.replica.cut() {
            self.offer_snapshot(to, outlet);
        }
        // Otherwise it asks again after a while.
    }

    fn send_batches(
        &mut self,
        to: ReplicaId,
        first: Slot,
        batches: Vec<Batch>,
        chosen: Slot,
        outlet: &mut impl Outlet,
    ) {
        self.counters.entries_sent += batches.len() as u64;
        outlet.send(to, Message::Entries { first, batches, chosen });
    }

    /// The longest run of slots from `from` on whose records one read of one segment can bring.
    pub(super) fn plan_read(&self, to: ReplicaId, from: Slot, chosen: Slot) -> Option<LogRead> {
        let first = self.log.locate(synod_wal::Slot(from.0))?;
        let (offset, mut length) = first.blocks();
        let mut locations = vec![first];
        let mut slot = from;
        while slot < chosen {
            slot = slot.next();
            let Some(location) = self.log.locate(synod_wal::Slot(slot.0)) else { break };
            let (begin, bytes) = location.blocks();
            let end = begin + bytes as u64;
            if location.segment != first.segment || begin < offset || end - offset > LOG_READ_BYTES_MAX {
                break;
            }
            length = length.max((end - offset) as usize);
            locations.push(location);
        }
        Some(LogRead { to, segment: first.segment, offset, length, first: from, chosen, locations })
    }

    /// A read that the outlet was asked for has ended.
    pub fn log_read(&mut self, read: LogRead, outcome: Result<&[u8], std::io::Error>, outlet: &mut impl Outlet) {
        self.log_reads.of.remove(&read.to);
        if read.first.0 < self.log.cut_slot().0 {
            // Cut meanwhile: what was read may be of the segment's next use. Who asks again gets a snapshot. What counts is where the
            // log is cut: that follows the replica's own word, and after a crash in between not before its next one.
            return;
        }
        let mut batches = Vec::new();
        match outcome {
            Ok(bytes) => {
                for (location, slot) in read.locations.iter().zip(read.first.0..) {
                    match batch_at(bytes, read.offset, *location, Slot(slot)) {
                        Ok(batch) => batches.push(batch),
                        Err(reason) => {
                            self.counters.log_read_failures += 1;
                            eprintln!("synod: slot {slot} cannot be read back from the log: {reason}");
                            break;
                        }
                    }
                }
            }
            Err(error) => {
                self.counters.log_read_failures += 1;
                eprintln!("synod: the log's segment {:?} cannot be read for catch-up: {error}", read.segment);
            }
        }
        if !batches.is_empty() {
            self.send_batches(read.to, read.first, batches, read.chosen, outlet);
        }
    }

    /// A member has left. What makes it know so is the slot chosen last, and nobody would tell it of that any more.
    pub(super) fn tell_leaver(&mut self, leaver: ReplicaId, outlet: &mut impl Outlet) {
        let chosen = self.replica.chosen();
        let mut from = Slot(chosen.0.saturating_sub(Configuration::HORIZON_MAX)).max(self.recent.first);
        while from <= chosen
            && let Some(batches) = self.recent.from(from)
        {
            let next = from.plus(batches.len() as u64);
            self.send_batches(leaver, from, batches, chosen, outlet);
            from = next;
        }
    }
}

/// The chosen batch in a record read back from the log.
fn batch_at(bytes: &[u8], offset: u64, location: synod_wal::Location, slot: Slot) -> Result<Batch, String> {
    let (begin, length) = location.blocks();
    let begin = usize::try_from(begin - offset).map_err(|_| "the read began behind the record".to_owned())?;
    let blocks = bytes.get(begin..begin + length).ok_or("the read ended before the record")?;
    let record = match synod_wal::read_record(blocks, location, synod_wal::Slot(slot.0)) {
        Err(synod_wal::RecordDamage::Other { slot, checksum }) if synod_paxos::planted!(L5ServesWhatIsThere) => {
            synod_wal::read_record(blocks, synod_wal::Location { checksum, ..location }, slot)
        }
        record => record,
    };
    let record = record.map_err(|damage| damage.to_string())?;
    match codec::decode_record(record.kind, record.slot, record.ballot, record.payload) {
        Ok(synod_paxos::Record::Accepted { batch, .. } | synod_paxos::Record::Chosen { batch, .. }) => Ok(batch),
        Ok(synod_paxos::Record::HardState(_)) => Err("the record is a hard state".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The last applied batches, in memory.
pub(super) struct Recent {
    /// The slot of the first one.
    first: Slot,
    batches: VecDeque<Batch>,
    bytes: usize,
    bytes_max: usize,
}

impl Recent {
    pub(super) fn new(chosen: Slot, bytes_max: usize) -> Self {
        Self { first: chosen.next(), batches: VecDeque::new(), bytes: 0, bytes_max }
    }

    /// Nothing is kept any more; what comes next follows this slot.
    pub(super) fn restart(&mut self, chosen: Slot) {
        *self = Self::new(chosen, self.bytes_max);
    }

    pub(super) fn push(&mut self, slot: Slot, batch: Batch) {
        assert_eq!(slot.0, self.first.0 + self.batches.len() as u64, "slots are applied in order, each once");
        self.bytes += batch.len();
        self.batches.push_back(batch);
        while self.bytes > self.bytes_max || self.batches.len() > RECENT_BATCHES_MAX {
            let dropped = self.batches.pop_front().expect("there is one while a bound is exceeded");
            self.bytes -= dropped.len();
            self.first = self.first.next();
        }
    }

    /// Batches from `slot` on, as many as one message carries.
    fn from(&self, slot: Slot) -> Option<Vec<Batch>> {
        let skip = usize::try_from(slot.0.checked_sub(self.first.0)?).ok()?;
        let mut bytes = 0;
        let batches: Vec<_> = self
            .batches
            .iter()
            .skip(skip)
            .take_while(|batch| {
                let before = bytes;
                bytes += batch.len();
                before < ENTRIES_BYTES_MAX
            })
            .cloned()
            .collect();
        (!batches.is_empty()).then_some(batches)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two of five that lag behind shared what one needs: under load neither came nearer.
    #[test]
    fn each_of_two_readers_gains_on_the_log() {
        let mut reads = LogReads::new(Pace::new(1000, Instant(0)));
        for reader in [2, 3] {
            reads.came_to(Slot(1), ReplicaId(reader), Instant(0));
        }
        reads.pace.take(2000, Instant(0));
        reads.flushed(800, Instant(0));
        assert_eq!(reads.pace.take(0, Instant(0)), Instant(0));
        reads.flushed(800, Instant(0).after(READER_IDLE_MAX + Duration::from_nanos(1)));
        assert!(reads.readers.is_empty(), "who asks no more has no share");
    }
}
