//! Any work, a crash at any point, several lives: what was durable is recovered, in order, but for what was cut; nothing
//! else but a prefix of what was appended; and a crash alone never keeps a log from opening. Segments are recycled with
//! all that they held, and a crash may come between the cut, the change of a file's name and the first frame in it.

mod common;

use common::{Disk, Item, SETTINGS, identity, without_repeats};
use proptest::prelude::*;
use synod_wal::{Flush, RecordKind, Slot, Tail, Upkeep, create};

#[derive(Clone, Debug)]
enum Step {
    Append {
        kind: RecordKind,
        back: u64,
        length: usize,
    },
    HardState {
        length: usize,
    },
    Mark,
    /// Says that slots up to so far behind the last are in a snapshot.
    Cut {
        back: u64,
    },
    /// Begins with a change of the files, and does not come to its end.
    BeginUpkeep,
    /// Ends it, and does all else that is wanted.
    Prepare,
    /// Seals and writes, without the sync.
    Write,
    /// Syncs, and tells the log.
    Complete,
    /// Power fails: of what is not synced, each sector survives by one bit of the pattern.
    Crash {
        pattern: u64,
    },
    /// The process dies: the device keeps all it was given.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    let kind = prop_oneof![Just(RecordKind::Accepted), Just(RecordKind::Chosen)];
    let length = prop_oneof![5 => 0..200_usize, 2 => 3000..9000_usize, 1 => 15_000..24_000_usize];
    prop_oneof![
        12 => (kind, 0..4_u64, length).prop_map(|(kind, back, length)| Step::Append { kind, back, length }),
        2 => (0..9000_usize).prop_map(|length| Step::HardState { length }),
        2 => Just(Step::Mark),
        3 => (0..12_u64).prop_map(|back| Step::Cut { back }),
        2 => Just(Step::BeginUpkeep),
        3 => Just(Step::Prepare),
        9 => Just(Step::Write),
        9 => Just(Step::Complete),
        2 => prop_oneof![any::<u64>(), Just(0), Just(1), Just(u64::MAX << 1)].prop_map(|pattern| Step::Crash { pattern }),
        1 => Just(Step::Kill),
    ]
}

fn run(steps: Vec<Step>) {
    let mut disk = Disk::default();
    let mut log = create(SETTINGS, identity(1));
    let mut history: Vec<Item> = Vec::new();
    // What of the history the earlier lives have left; the log's record numbers start behind it.
    let mut before = 0;
    let mut flying: Option<Flush> = None;
    let mut changing: Option<Upkeep> = None;
    let mut slot = 1;
    let mut life = 1;
    for (seed, step) in (1..).zip(steps.into_iter().chain([Step::Crash { pattern: 0x5a5a }])) {
        match step {
            Step::Append { kind, back, length } => {
                slot += 1;
                let length = length.min(SETTINGS.payload_bytes_max() - 64);
                history.push(Item::new(kind, slot - back.min(slot - 1), length, seed));
                history[history.len() - 1].append(&mut log);
            }
            Step::HardState { length } => {
                history.push(Item::new(RecordKind::HardState, 0, length, seed));
                history[history.len() - 1].append(&mut log);
            }
            Step::Mark => log.mark(),
            Step::Cut { back } => log.cut(Slot(slot.saturating_sub(back))),
            Step::BeginUpkeep => changing = changing.or(log.upkeep()),
            Step::Prepare => {
                if let Some(upkeep) = changing.take() {
                    disk.carry_out(upkeep, SETTINGS.segment_bytes as usize);
                    log.upkeep_done(upkeep);
                }
                disk.prepare(&mut log);
            }
            Step::Write => {
                if let Some(flush) = log.seal() {
                    assert!(flying.is_none(), "one flush at a time");
                    disk.write(&flush);
                    flying = Some(flush);
                }
            }
            Step::Complete => {
                if let Some(flush) = flying.take() {
                    disk.sync_all();
                    log.flushed(flush.buffer);
                }
            }
            Step::Crash { .. } | Step::Kill => {
                let mut bits = u64::MAX;
                if let Step::Crash { pattern } = step {
                    bits = pattern;
                    disk.lose_power(|| {
                        bits = bits.rotate_left(1);
                        bits & 1 == 1
                    });
                }
                if let Some(upkeep) = changing.take()
                    && bits & 2 == 2
                {
                    disk.carry_out(upkeep, SETTINGS.segment_bytes as usize);
                }
                let durable = before + log.durable().0 as usize;
                let written = flying.take().is_some();
                let cut_before = log.cut_slot();
                life += 1;
                let (recovered, items) = disk.recover(life).expect("a crash is no damage");
                assert!(recovered.cut <= cut_before);
                before = check_items(&history, &without_repeats(items), durable, written, recovered.cut);
                history.truncate(before);
                log = recovered.log;
                check_locations(&disk, &log, &history);
            }
        }
    }
    // And the log goes on as if nothing had been.
    for seed in 1_000_000..1_000_010 {
        history.push(Item::new(RecordKind::Accepted, slot + seed - 999_999, 10_000, seed));
        history[history.len() - 1].append(&mut log);
    }
    log.mark();
    disk.flush_all(&mut log);
    check_locations(&disk, &log, &history);
    log.mark();
    disk.flush_all(&mut log);
    let (recovered, items) = disk.recover(life + 1).expect("nothing happened");
    assert_eq!(recovered.tail, Tail::Clean);
    assert!(recovered.ended_with_mark);
    let count = check_items(&history, &without_repeats(items), history.len(), false, recovered.cut);
    assert_eq!(count, history.len());
}

/// Compares what was recovered with all that was ever appended; gives how much of that there still is, the cut included.
fn check_items(history: &[Item], items: &[Item], durable: usize, written: bool, cut: Slot) -> usize {
    let is_cut = |item: &Item| item.kind != RecordKind::HardState && item.slot < cut;
    let place =
        |item: &Item| history.iter().position(|old| old == item).expect("nothing is there that was not appended");
    let count = items.iter().map(|item| place(item) + 1).max().unwrap_or(0);
    if count < durable {
        assert!(history[count..durable].iter().all(is_cut), "{durable} records were durable, {count} were recovered");
    }
    let count = count.max(durable);
    assert!(written || count == durable, "what was not written cannot be there");
    let needed = |items: &[Item]| -> Vec<Item> {
        items.iter().filter(|item| item.kind != RecordKind::HardState && !is_cut(item)).cloned().collect()
    };
    assert_eq!(needed(items), needed(&history[..count]), "in order, and all of it");
    let hard_state = |items: &[Item]| items.iter().rfind(|item| item.kind == RecordKind::HardState).cloned();
    assert_eq!(hard_state(items), hard_state(&history[..count]), "a cut never forgets the hard state");
    // What is there beyond what is needed is in order, too, but for the hard state that a segment begins with.
    let mut rest = items.iter().map(place);
    if items.first().is_some_and(|item| item.kind == RecordKind::HardState) {
        rest.next();
    }
    assert!(rest.is_sorted());
    count
}

fn check_locations(disk: &Disk, log: &synod_wal::Log, history: &[Item]) {
    for slot in 1..=history.iter().map(|item| item.slot.0).max().unwrap_or(0) {
        let expected = history.iter().rfind(|item| item.slot == Slot(slot));
        let found = disk.locate(log, Slot(slot));
        if found.is_some() || Slot(slot) >= log.cut_slot() {
            assert_eq!(found.as_ref(), expected, "slot {slot}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_was_durable_is_recovered(steps in prop::collection::vec(step(), 1..150)) {
        run(steps);
    }
}
