use super::*;
use synod_api::{Operation, Sequence, SessionId};
use synod_paxos::{Incarnation, LogPosition};

/// A snapshot comes after so much log.
const SNAPSHOT_LOG_BYTES: u64 = 1 << 20;

/// A world in which a flush ends when the test says so.
#[derive(Default)]
struct Bench {
    now: u64,
    /// A cell of one sends nothing.
    has_others: bool,
    flush: Option<synod_wal::Flush>,
    answers: Vec<Vec<u8>>,
    /// How often something was to be begun before the turn ended.
    hurries: usize,
    /// The snapshot that is being written.
    writing: Option<Slot>,
}

impl Outlet for Bench {
    fn now(&mut self) -> Instant {
        Instant(self.now)
    }
    fn send(&mut self, to: ReplicaId, _: Message) {
        assert!(self.has_others, "a cell of one has no replica {to}");
    }
    fn answer(&mut self, _: Caller, answer: &[u8]) {
        self.answers.push(answer.to_vec());
    }
    fn flush(&mut self, flush: synod_wal::Flush) {
        assert!(self.flush.replace(flush).is_none(), "one flush at a time");
    }
    fn hurry(&mut self) {
        assert!(self.flush.is_some(), "there is no hurry but for a flush");
        self.hurries += 1;
    }
    fn read_log(&mut self, _: LogRead) {
        assert!(self.has_others, "nobody lags behind in a cell of one");
    }
    fn reconfigure(&mut self, configurations: &Configurations) {
        unreachable!("nobody changes the members: {configurations:?}");
    }
    fn send_snapshot(&mut self, _: ReplicaId, _: SnapshotMessage) {}
    fn send_room(&mut self, _: ReplicaId, _: RoomMessage) {}
    fn keep_snapshot(&mut self, handle: &SnapshotHandle, _: &mut Cell) {
        assert!(self.writing.replace(handle.slot).is_none(), "one snapshot at a time");
    }
    fn make_database(&mut self) {
        unreachable!("nobody lags behind in a cell of one");
    }
    fn import(&mut self, _: Import) {
        unreachable!("nobody lags behind in a cell of one");
    }
    fn keep_incoming(&mut self, _: &SnapshotHandle, _: &mut Cell) {
        unreachable!("nobody lags behind in a cell of one");
    }
    fn replace_database(&mut self, _: Cell) {
        unreachable!("nobody lags behind in a cell of one");
    }
    fn drop_database(&mut self, _: Option<Cell>) {
        unreachable!("nobody lags behind in a cell of one");
    }
    fn note_quarantine(&mut self, _: &Evidence) {
        unreachable!("a cell of one compares with nobody");
    }
    fn end_quarantine(&mut self) {}
}

fn turn(engine: &mut Engine, world: &mut Bench) {
    while let Some(upkeep) = engine.log_upkeep(Instant(world.now)) {
        engine.log_upkeep_done(upkeep);
    }
    engine.end_turn(Instant(world.now), world);
}

fn finish_flush(engine: &mut Engine, world: &mut Bench) -> bool {
    let Some(flush) = world.flush.take() else { return false };
    engine.flushed(Instant(world.now), flush.buffer, world);
    true
}

/// A cell of one that coordinates and has a session open.
fn coordinating() -> (Engine, Bench) {
    coordinating_with(synod_wal::Settings::default())
}

fn coordinating_with(log: synod_wal::Settings) -> (Engine, Bench) {
    let mut world = Bench::default();
    let mut engine = beginning(Configuration::of(&[1]), log);
    while engine.replica.role() != Role::Coordinating {
        world.now = engine.deadline().0;
        engine.tick(Instant(world.now), &mut world);
        settle(&mut engine, &mut world);
    }
    command(&mut engine, &mut world, 0, Operation::OpenSession);
    settle(&mut engine, &mut world);
    (engine, world)
}

fn beginning(configuration: Configuration, log: synod_wal::Settings) -> Engine {
    let mut settings = Settings::new(ReplicaId(1), Incarnation(1), 1);
    settings.window = 1;
    let identity = synod_wal::Identity {
        cell: synod_wal::CellId(1),
        replica: synod_wal::ReplicaId(1),
        incarnation: synod_wal::Incarnation(1),
        start: synod_wal::StartId(1),
    };
    let start = Start {
        settings,
        recovered: Recovered::nothing(configuration),
        log: synod_wal::create(log, identity),
        cell: Cell::new(),
        client_addresses: BTreeMap::new(),
        gather_time_max: Duration::from_micros(120),
        retention: Retention { snapshot_log_bytes: SNAPSHOT_LOG_BYTES, ..Retention::default() },
        quarantined: None,
    };
    Engine::new(start, Instant(0))
}

fn settle(engine: &mut Engine, world: &mut Bench) {
    loop {
        // Longer than any gather.
        world.now += 1_000_000;
        turn(engine, world);
        if !finish_flush(engine, world) {
            break;
        }
    }
}

fn command(engine: &mut Engine, world: &mut Bench, sequence: u64, operation: Operation<'_>) {
    let session = SessionId(u64::from(sequence > 0));
    let sequence = Sequence(sequence);
    let mut bytes = Vec::new();
    Command { session, sequence, unanswered_from: sequence, operation }.encode(&mut bytes);
    engine.command(Instant(world.now), Caller { connection: 1, request: sequence.0 }, &bytes, world);
}

/// Others wait for what a follower accepts to be durable there, nobody for what it applies.
#[test]
fn a_follower_flushes_while_it_applies() {
    let mut engine = beginning(Configuration::of(&[1, 2, 3]), synod_wal::Settings::default());
    let mut world = Bench { has_others: true, ..Bench::default() };
    // It takes nothing before another has told it that it has lost nothing.
    let nothing = LogPosition { incarnation: Incarnation(1), frame: 0 };
    let position = Message::Position { durable: nothing, known: nothing, asks: false };
    engine.message(Instant(world.now), ReplicaId(2), position, &mut world);
    settle(&mut engine, &mut world);
    let ballot = Ballot { round: 1, replica: ReplicaId(2), incarnation: Incarnation(1) };
    let mut accept = |slot, chosen, commands| {
        let mut builder = BatchBuilder::default();
        for _ in 0..commands {
            builder.push(&Mastership::Stamp(Epoch::default()).encode());
        }
        let message = Message::Accept { ballot, slot: Slot(slot), batch: builder.take(), chosen: Slot(chosen) };
        engine.message(Instant(world.now), ReplicaId(2), message, &mut world);
        let begun = (world.flush.is_some(), std::mem::take(&mut world.hurries));
        settle(&mut engine, &mut world);
        begun
    };
    let many = HURRY_BYTES_MIN;
    assert_eq!(accept(1, 0, many), (false, 0), "nothing to apply: the flush begins when the turn ends");
    assert_eq!(accept(2, 1, 1), (true, many.div_ceil(HURRY_EVERY)), "before the first batch is applied");
    assert_eq!(accept(3, 2, 1), (false, 0), "there is little to apply: when the turn ends");
}

/// The gather's deadline once stood in the past while the window was closed and a full batch waited in front: the
/// hot core then spun until the flush was done.
#[test]
fn a_gather_that_holds_nothing_asks_for_no_wake_up() {
    let (mut engine, mut world) = coordinating();
    let value = vec![7; limits::VALUE_BYTES_MAX];
    for sequence in 1..=8 {
        command(&mut engine, &mut world, sequence, Operation::Put { key: b"large", value: &value });
    }
    // The first batch leaves, is flushed and answered; the second leaves in the same turn, others wait behind it.
    turn(&mut engine, &mut world);
    while world.answers.len() < 3 {
        assert!(finish_flush(&mut engine, &mut world), "a flush is under way");
        turn(&mut engine, &mut world);
    }
    assert!(!engine.sealed.is_empty() && !engine.pending.builder.is_empty(), "more than a batch waits");
    assert!(!engine.replica.can_submit(), "the window is closed");
    world.now += 1_000_000;
    turn(&mut engine, &mut world);
    assert!(engine.deadline() > Instant(world.now), "nothing is to be done before the flush ends");
    settle(&mut engine, &mut world);
    assert_eq!(world.answers.len(), 1 + 8, "every command is answered once");
}

/// Commands that were taken before the log became full once waited for ever.
#[test]
fn a_full_log_answers_what_waits() {
    let (mut engine, mut world) = coordinating();
    command(&mut engine, &mut world, 1, Operation::Put { key: b"k", value: b"v" });
    engine.step(Instant(world.now), Event::LogFull, &mut world);
    turn(&mut engine, &mut world);
    let answer = Answer::decode(Bytes::from(world.answers.pop().unwrap())).unwrap();
    assert_eq!(answer, Answer::Refused(Refusal::LogFull));
}

/// Rules S1 and P2: the log is cut at the older of two snapshots, and not before the hard state that says so is durable.
#[test]
fn the_log_is_cut_at_the_older_of_two_snapshots() {
    let (mut engine, mut world) = coordinating();
    let mut sequence = 0;
    let mut snapshots = Vec::new();
    while engine.replica.cut() == Slot::NONE {
        sequence += 1;
        command(&mut engine, &mut world, sequence, Operation::Put { key: b"k", value: &[7; 4000] });
        settle(&mut engine, &mut world);
        if let Some(slot) = world.writing.take() {
            assert_eq!(slot, engine.replica.chosen(), "a snapshot is of what is applied");
            snapshots.push(slot);
            assert!(snapshots.len() <= 2, "one was enough to cut the log");
            // The first try fails, and costs nothing but another.
            if snapshots.len() == 1 && engine.counters.snapshots_failed == 0 {
                snapshots.clear();
                engine.snapshot_kept(Instant(world.now), false);
            } else {
                engine.snapshot_kept(Instant(world.now), true);
            }
        }
    }
    assert_eq!((engine.replica.cut(), engine.counters.snapshots), (snapshots[0], 2));
    settle(&mut engine, &mut world);
    assert!(engine.log.locate(synod_wal::Slot(snapshots[0].0)).is_none(), "the log's index ends where it was cut");
    assert!(engine.log.locate(synod_wal::Slot(snapshots[0].next().0)).is_some());
}

/// A crash between the replica's word that its log is cut and the cut itself once left a laggard without an answer until the next
/// snapshot: what had been read for it was thrown away, though the log still had it (the simulator's seed 8698).
#[test]
fn what_the_log_still_has_is_sent() {
    let (mut engine, mut world) = coordinating();
    command(&mut engine, &mut world, 1, Operation::Put { key: b"k", value: b"v" });
    turn(&mut engine, &mut world);
    let flush = world.flush.as_ref().unwrap();
    let bytes = flush.buffer[..flush.length].to_vec();
    settle(&mut engine, &mut world);
    let upto = engine.replica.chosen();
    let read = engine.plan_read(ReplicaId(2), upto, upto).unwrap();
    engine.step(Instant(world.now), Event::Cut { upto }, &mut world);
    let sent = engine.counters.entries_sent;
    world.has_others = true;
    engine.log_read(read, Ok(&bytes), &mut world);
    assert_eq!(engine.counters.entries_sent, sent + 1);
}

/// Found by `synod-torture snapshots`: a laggard that was sent a snapshot, and went away or was done, kept the log for ten
/// more seconds; it became full, and nobody could write.
#[test]
fn a_catch_up_does_not_make_the_log_full() {
    let (mut engine, mut world) = coordinating_with(log_of(8));
    let laggard = ReplicaId(2);
    engine.offer_snapshot(laggard, &mut world);
    let offered = engine.catch_up.pinned(Instant(world.now)).unwrap();
    let mut was_kept = false;
    for sequence in 1..=400 {
        write(sequence, &mut engine, &mut world);
        was_kept |= engine.counters.snapshots > 2 && engine.replica.cut() <= offered;
    }
    assert!(was_kept, "while there is room the log is kept for the laggard");
    assert!(engine.replica.cut() > offered);
    assert!(engine.catch_up.pinned(Instant(world.now)).is_none(), "it would be sent what it could not go on from");
}

fn log_of(segments: u64) -> synod_wal::Settings {
    let segment_bytes = 4 << 20;
    let frame_bytes_max = (segment_bytes as usize - synod_wal::OPENING_BYTES_MAX) / 2 / 4096 * 4096;
    let log = synod_wal::Settings { segment_bytes, log_bytes_max: segments * segment_bytes, frame_bytes_max };
    log.validate().unwrap()
}

/// Writes 100 KiB, for which there is room, and makes the snapshot that is due.
fn write(sequence: u64, engine: &mut Engine, world: &mut Bench) {
    command(engine, world, sequence, Operation::Put { key: b"k", value: &[7; 100 << 10] });
    settle(engine, world);
    assert!(!engine.refuses_writes(), "after {sequence} writes");
    if world.writing.take().is_some() {
        engine.snapshot_kept(Instant(world.now), true);
    }
}

/// Writes, while another replica asks for these entries with each.
fn write_for(
    reader: Option<(ReplicaId, Slot)>,
    sequences: std::ops::RangeInclusive<u64>,
    engine: &mut Engine,
    world: &mut Bench,
) {
    for sequence in sequences {
        write(sequence, engine, world);
        if let Some((to, from)) = reader {
            engine.send_entries(to, from, engine.replica.chosen(), world);
        }
    }
}

/// A large state was taken back after 20 minutes, done or not: no laggard could ever fetch it.
#[test]
fn a_large_state_is_kept_as_long_as_it_takes() {
    let (mut engine, mut world) = coordinating();
    write(1, &mut engine, &mut world);
    let (bytes, bytes_per_second) = (100 << 10, 64);
    engine.catch_up = CatchUp::new(1, Pace::new(bytes_per_second, Instant(world.now)));
    engine.offer_snapshot(ReplicaId(2), &mut world);
    let (slot, offered) = (engine.replica.chosen(), world.now);
    while engine.catch_up.pinned(Instant(world.now)).is_some() {
        world.now += Duration::from_secs(5).as_nanos() as u64;
        let want = SnapshotMessage::Want { slot, from: None };
        engine.snapshot_message(Instant(world.now), ReplicaId(2), want, &mut world);
    }
    let kept = Duration::from_nanos(world.now - offered);
    let fetching = Duration::from_secs(bytes / bytes_per_second);
    assert!(kept > 2 * fetching && kept < 8 * fetching, "kept for {kept:?} where fetching it takes {fetching:?}");
}

/// A laggard that had taken a snapshot, and had more to read from the log than the two snapshots after it left there, would be
/// sent another one, again and again.
#[test]
fn the_log_is_kept_for_who_reads_it() {
    let (mut engine, mut world) = coordinating_with(log_of(64));
    world.has_others = true;
    let from = engine.replica.chosen().next();
    write_for(Some((ReplicaId(2), from)), 1..=400, &mut engine, &mut world);
    assert!(engine.counters.snapshots > 2);
    assert_eq!(engine.replica.cut().next(), from, "all below is cut");
    assert!(engine.plan_read(ReplicaId(2), from, engine.replica.chosen()).is_some());
    world.now += entries::READER_IDLE_MAX.as_nanos() as u64;
    write_for(None, 401..=440, &mut engine, &mut world);
    assert!(engine.replica.cut() > from, "it has asked no more");
}

#[test]
fn who_reads_the_log_does_not_make_it_full() {
    let (mut engine, mut world) = coordinating_with(log_of(8));
    world.has_others = true;
    let from = engine.replica.chosen().next();
    write_for(Some((ReplicaId(2), from)), 1..=400, &mut engine, &mut world);
    assert!(engine.replica.cut() > from, "those who write come first");
}
