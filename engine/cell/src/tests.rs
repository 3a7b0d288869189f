//! What a client sees of the cell, case by case; then every order of a few stamps; then random clients against a model.

use std::collections::BTreeMap;

use bytes::Bytes;
use proptest::prelude::*;
use synod_api::limits::{KEY_BYTES_MAX, SESSIONS_MAX, UNANSWERED_MAX, VALUE_BYTES_MAX};
use synod_api::{Answer, Command, Expected, Found, Operation, Refusal, Revision, Sequence, SessionId, Version};
use synod_paxos::{Slot, StateMachine};

use crate::{Cell, Status};

const UNKNOWN: Answer = Answer::Refused(Refusal::SessionUnknown);
const ANSWERED: Answer = Answer::Refused(Refusal::AlreadyAnswered);

fn written(revision: u64) -> Answer {
    Answer::Written { revision: Revision(revision) }
}

fn value(value: &'static [u8], created: u64, modified: u64, version: u64) -> Answer {
    Answer::Value {
        value: Bytes::from_static(value),
        create_revision: Revision(created),
        modify_revision: Revision(modified),
        version: Version(version),
    }
}

fn apply_bytes(cell: &mut Cell, command: &[u8]) -> Answer {
    // What the buffer already holds is another command's answer.
    let mut answer = b"before".to_vec();
    cell.apply(Slot(1), command, &mut answer);
    Answer::decode(Bytes::from(answer).split_off(6)).unwrap()
}

fn encode(command: &Command<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    command.encode(&mut bytes);
    bytes
}

fn apply(cell: &mut Cell, session: SessionId, sequence: u64, unanswered: u64, operation: Operation<'_>) -> Answer {
    let (sequence, unanswered_from) = (Sequence(sequence), Sequence(unanswered));
    apply_bytes(cell, &encode(&Command { session, sequence, unanswered_from, operation }))
}

fn open(cell: &mut Cell) -> SessionId {
    match apply_bytes(cell, &encode(&Command::without_session(Operation::OpenSession))) {
        Answer::SessionOpened(session) => session,
        other => panic!("{other:?}"),
    }
}

/// A client that waits for each answer.
struct Client {
    cell: Cell,
    session: SessionId,
    sequence: u64,
}

impl Client {
    fn new() -> Client {
        let mut cell = Cell::new();
        let session = open(&mut cell);
        Client { cell, session, sequence: 0 }
    }

    fn call(&mut self, operation: Operation<'_>) -> Answer {
        self.sequence += 1;
        self.again(operation)
    }

    fn again(&mut self, operation: Operation<'_>) -> Answer {
        apply(&mut self.cell, self.session, self.sequence, self.sequence, operation)
    }

    fn read(&mut self, operation: Operation<'_>) -> Answer {
        let command = Command::without_session(operation);
        let logged = apply_bytes(&mut self.cell, &encode(&command));
        let mut answer = Vec::new();
        self.cell.read(&command, &mut answer);
        assert_eq!(Answer::decode(answer.into()).as_ref(), Ok(&logged), "the two ways to read tell the same");
        logged
    }
}

#[test]
fn keys() {
    let mut client = Client::new();
    let key = b"k";
    assert_eq!(client.read(Operation::Get { key }), Answer::Absent);
    assert_eq!(client.call(Operation::Delete { key }), Answer::NotThere);
    assert_eq!(client.call(Operation::Put { key, value: b"one" }), written(2));
    assert_eq!(client.call(Operation::Put { key, value: b"two" }), written(3));
    assert_eq!(client.read(Operation::Get { key }), value(b"two", 2, 3, 2));
    assert_eq!(client.call(Operation::Delete { key }), Answer::Deleted { revision: Revision(4) });
    assert_eq!(client.read(Operation::Get { key }), Answer::Absent);
    assert_eq!(client.call(Operation::Put { key, value: b"" }), written(5));
    assert_eq!(client.read(Operation::Get { key }), value(b"", 5, 5, 1));
}

#[test]
fn reads_at_a_revision() {
    let mut client = Client::new();
    let (get, file) = (Operation::Get { key: b"k" }, Operation::ReadFile { path: b"/f" });
    client.call(Operation::Put { key: b"k", value: b"one" });
    client.call(Operation::Put { key: b"other", value: b"" });
    client.call(Operation::Put { key: b"k", value: b"two" });
    let mut read = |operation, at: Option<u64>| {
        let mut answer = Vec::new();
        client.cell.read_at(operation, at.map(Revision), &mut answer);
        Answer::decode(answer.into()).unwrap()
    };
    let seen = |revision, found| Answer::Read { revision: Revision(revision), found };
    let two = Found {
        value: Bytes::from_static(b"two"),
        create_revision: Revision(2),
        modify_revision: Revision(4),
        version: Version(2),
    };
    assert_eq!(read(get, None), seen(4, Some(two.clone())));
    assert_eq!(read(get, Some(4)), seen(4, Some(two)));
    let gone = |wanted| Answer::Refused(Refusal::Compacted { has: Revision(4), wanted: Revision(wanted) });
    assert_eq!(read(get, Some(3)), gone(3), "it has changed since, and no history is kept");
    assert_eq!(read(file, None), seen(4, None));
    assert_eq!(read(file, Some(3)), gone(3), "it may have been removed since");
    let other = Operation::Get { key: b"other" };
    assert!(
        matches!(read(other, Some(3)), Answer::Read { revision: Revision(3), found: Some(_) }),
        "it has not changed since"
    );
    assert_eq!(read(other, Some(2)), gone(2));
}

#[test]
fn swaps() {
    let mut client = Client::new();
    let swap = |expected, value| Operation::CompareAndSwap { key: b"k", expected, value };
    let unequal = |current: Option<&'static [u8]>| Answer::Unequal { current: current.map(Bytes::from_static) };
    let swapped = |revision| Answer::Swapped { revision: Revision(revision) };
    assert_eq!(client.call(swap(Expected::Value(b""), b"a")), unequal(None));
    assert_eq!(client.call(swap(Expected::Absent, b"a")), swapped(2));
    assert_eq!(client.call(swap(Expected::Absent, b"b")), unequal(Some(b"a")));
    assert_eq!(client.call(swap(Expected::Value(b"b"), b"c")), unequal(Some(b"a")));
    assert_eq!(client.call(swap(Expected::Value(b"a"), b"c")), swapped(3));
    assert_eq!(client.read(Operation::Get { key: b"k" }), value(b"c", 2, 3, 2));
    assert_eq!(client.cell.status().revision, Revision(3), "what was unequal changed nothing");
}

#[test]
fn files() {
    let mut client = Client::new();
    let path = b"/ls/cell/file";
    assert_eq!(client.read(Operation::ReadFile { path }), Answer::Absent);
    assert_eq!(client.call(Operation::WriteFile { path, contents: b"x" }), Answer::NotThere);
    assert_eq!(client.call(Operation::CreateFile { path, contents: b"1" }), Answer::Created { revision: Revision(2) });
    assert_eq!(client.call(Operation::WriteFile { path, contents: b"22" }), written(3));
    assert_eq!(client.call(Operation::CreateFile { path, contents: b"3" }), Answer::Exists { revision: Revision(2) });
    // The instance number is the revision that created it, the content generation its version.
    assert_eq!(client.read(Operation::ReadFile { path }), value(b"22", 2, 3, 2));
    assert_eq!(client.read(Operation::Get { key: path }), Answer::Absent, "a file is not a key of the same name");
}

#[test]
fn what_is_no_command_changes_nothing() {
    let mut client = Client::new();
    client.call(Operation::Put { key: b"k", value: b"v" });
    let before = client.cell.contents_hash();
    for junk in [&b""[..], b"junk", &[0; 25], &[255; 100]] {
        let answer = apply_bytes(&mut client.cell, junk);
        assert!(matches!(answer, Answer::Refused(Refusal::Malformed(_))), "{answer:?}");
    }
    let large = vec![0; VALUE_BYTES_MAX + 1];
    for operation in [
        Operation::Put { key: b"k", value: &large },
        Operation::Put { key: &[0; KEY_BYTES_MAX + 1], value: b"" },
        Operation::CreateFile { path: b"relative", contents: b"" },
        Operation::Get { key: b"" },
    ] {
        let answer = client.call(operation);
        assert!(matches!(answer, Answer::Refused(Refusal::Limit(_))), "{answer:?}");
    }
    assert_eq!(client.cell.contents_hash(), before);
}

#[test]
fn a_retry_is_answered_from_the_record() {
    let mut client = Client::new();
    let key = b"k";
    for operation in [
        Operation::Put { key, value: b"1" },
        Operation::CompareAndSwap { key, expected: Expected::Value(b"2"), value: b"3" },
        Operation::CompareAndSwap { key, expected: Expected::Value(b"1"), value: b"3" },
        Operation::Delete { key },
        Operation::Delete { key },
        Operation::CreateFile { path: b"/f", contents: b"" },
        Operation::CreateFile { path: b"/f", contents: b"" },
        Operation::WriteFile { path: b"/f", contents: b"" },
    ] {
        let first = client.call(operation);
        let after = client.cell.contents_hash();
        assert_eq!(client.again(operation), first);
        assert_eq!(client.again(operation), first);
        assert_eq!(client.cell.contents_hash(), after, "{operation:?}");
    }
}

#[test]
fn a_retry_of_a_failed_swap_does_not_swap() {
    let mut client = Client::new();
    let other = open(&mut client.cell);
    let (key, large) = (b"k", vec![7; VALUE_BYTES_MAX]);
    let swap = Operation::CompareAndSwap { key, expected: Expected::Value(b"want"), value: b"mine" };
    client.call(Operation::Put { key, value: &large });
    assert_eq!(client.call(swap), Answer::Unequal { current: Some(large.into()) });
    let rows = client.cell.status();
    // Now it would find what it wants. But it has already been told that it did not.
    apply(&mut client.cell, other, 1, 1, Operation::Put { key, value: b"want" });
    assert_eq!(client.again(swap), Answer::UnequalNotKept);
    assert_eq!(client.read(Operation::Get { key }), value(b"want", 2, 3, 2));
    assert!(rows.bytes < VALUE_BYTES_MAX as u64 + 200, "the value was not kept a second time: {rows:?}");
}

#[test]
fn a_delayed_duplicate_is_not_applied() {
    let mut client = Client::new();
    let put = |value| Operation::Put { key: b"k", value };
    client.call(put(b"1"));
    client.call(put(b"2"));
    client.call(put(b"3"));
    let before = client.cell.contents_hash();
    assert_eq!(apply(&mut client.cell, client.session, 1, 1, put(b"1")), ANSWERED);
    assert_eq!(apply(&mut client.cell, client.session, 2, 2, put(b"2")), ANSWERED);
    assert_eq!(apply(&mut client.cell, client.session, 3, 3, put(b"3")), written(4));
    assert_eq!(client.cell.contents_hash(), before);
}

#[test]
fn pipelined_commands_arrive_in_any_order() {
    let mut client = Client::new();
    let session = client.session;
    let mut send = |sequence: u64, unanswered: u64| {
        let operation = Operation::Put { key: b"k", value: &[sequence as u8] };
        apply(&mut client.cell, session, sequence, unanswered, operation)
    };
    assert_eq!(send(3, 1), written(2));
    assert_eq!(send(1, 1), written(3));
    assert_eq!(send(8, 1), written(4));
    assert_eq!(send(2, 1), written(5));
    // Retries of all, now that the session is wider, one with a newer stamp.
    assert_eq!(send(1, 1), written(3));
    assert_eq!(send(3, 1), written(2));
    assert_eq!(send(8, 4), written(4));
    assert_eq!(send(2, 2), written(5));
    // 9 takes the place of 1, as its stamp allows.
    assert_eq!(send(9, 4), written(6));
    assert_eq!(send(1, 1), ANSWERED);
    assert_eq!(send(4, 4), written(7));
    assert_eq!(client.cell.status().revision, Revision(7));
}

#[test]
fn too_many_unanswered_are_refused_until_the_oldest_is_answered() {
    let mut client = Client::new();
    let session = client.session;
    let mut send = |sequence: u64, unanswered: u64| {
        apply(&mut client.cell, session, sequence, unanswered, Operation::Put { key: b"k", value: b"v" })
    };
    for sequence in 2..=UNANSWERED_MAX {
        assert_eq!(send(sequence, 1), written(sequence));
    }
    let over = UNANSWERED_MAX + 1;
    assert_eq!(send(over, 1), Answer::Refused(Refusal::UnansweredLimit));
    assert_eq!(send(over + 1, 1), Answer::Refused(Refusal::UnansweredLimit));
    // The first was late, not lost: nothing has taken its place.
    assert_eq!(send(1, 1), written(over));
    assert_eq!(send(over, 2), written(over + 1));
    assert_eq!(send(1, 1), ANSWERED);
    for sequence in 2..=UNANSWERED_MAX {
        assert_eq!(send(sequence, 2), written(sequence), "still kept");
    }
    assert_eq!(client.cell.status().rows, UNANSWERED_MAX + 3, "results, one key, the session, the counters");
}

#[test]
fn a_client_that_waits_keeps_one_row() {
    let mut client = Client::new();
    for _ in 0..5000 {
        client.call(Operation::Put { key: b"k", value: b"v" });
    }
    assert_eq!(client.cell.status().rows, 4);
}

#[test]
fn no_session_no_change() {
    let mut client = Client::new();
    let put = Operation::Put { key: b"k", value: b"v" };
    let before = client.cell.contents_hash();
    assert_eq!(apply(&mut client.cell, SessionId::NONE, 1, 1, put), UNKNOWN);
    assert_eq!(apply(&mut client.cell, SessionId::NONE, 0, 0, put), UNKNOWN);
    assert_eq!(apply(&mut client.cell, SessionId(77), 1, 1, put), UNKNOWN);
    assert_eq!(apply(&mut client.cell, SessionId(77), 1, 1, Operation::CloseSession), UNKNOWN);
    assert_eq!(client.cell.contents_hash(), before);
}

#[test]
fn a_closed_session_leaves_nothing_and_does_not_come_back() {
    let mut client = Client::new();
    let put = Operation::Put { key: b"k", value: b"v" };
    for sequence in 1..=20 {
        apply(&mut client.cell, client.session, sequence, 1, put);
    }
    assert_eq!(apply(&mut client.cell, client.session, 21, 21, Operation::CloseSession), Answer::SessionClosed);
    assert_eq!(apply(&mut client.cell, client.session, 21, 21, Operation::CloseSession), UNKNOWN);
    assert_eq!(apply(&mut client.cell, client.session, 20, 1, put), UNKNOWN);
    let Status { rows, sessions, .. } = client.cell.status();
    assert_eq!((rows, sessions), (2, 0), "the key and the counters");
    // A new session has a new id, and begins from nothing.
    let reopened = open(&mut client.cell);
    assert_eq!(reopened, SessionId(2));
    assert_eq!(apply(&mut client.cell, client.session, 20, 1, put), UNKNOWN);
    assert_eq!(apply(&mut client.cell, reopened, 1, 1, put), written(22));
}

#[test]
fn one_session_too_many_ends_the_oldest() {
    let mut cell = Cell::new();
    let put = Operation::Put { key: b"k", value: b"v" };
    let sessions: Vec<SessionId> = (0..SESSIONS_MAX).map(|_| open(&mut cell)).collect();
    for &session in &sessions[..3] {
        apply(&mut cell, session, 1, 1, put);
    }
    assert_eq!(apply(&mut cell, sessions[1], 2, 2, Operation::CloseSession), Answer::SessionClosed);
    let room = open(&mut cell);
    assert_eq!(apply(&mut cell, sessions[0], 1, 1, put), written(2), "there was room");
    open(&mut cell);
    assert_eq!(apply(&mut cell, sessions[0], 1, 1, put), UNKNOWN);
    assert_eq!(apply(&mut cell, sessions[2], 1, 1, put), written(4));
    open(&mut cell);
    assert_eq!(apply(&mut cell, sessions[2], 1, 1, put), UNKNOWN);
    assert_eq!(apply(&mut cell, room, 1, 1, put), written(5));
    let Status { sessions, rows, .. } = cell.status();
    assert_eq!(sessions, SESSIONS_MAX);
    assert_eq!(rows, SESSIONS_MAX + 3, "a row for each, a result, the key, the counters");
}

#[test]
fn the_hash_sees_every_part_of_a_row() {
    let run = |writes: &[(&[u8], &[u8])]| {
        let mut client = Client::new();
        for &(key, value) in writes {
            client.call(Operation::Put { key, value });
        }
        client.call(Operation::Delete { key: b"gone" });
        client.cell.contents_hash()
    };
    let hash = run(&[(b"a", b"1"), (b"b", b"2")]);
    assert_eq!(hash, run(&[(b"a", b"1"), (b"b", b"2")]));
    assert_ne!(hash, run(&[(b"b", b"2"), (b"a", b"1")]), "revisions");
    assert_ne!(hash, run(&[(b"a", b"1"), (b"b", b"3")]), "values");
    assert_ne!(run(&[(b"a", b"12")]), run(&[(b"a1", b"2")]), "where a key ends");
}

/// Every order, with repetitions, of five out of all the stamps that four commands can carry: honest ones and others.
#[test]
fn every_order_of_a_few_stamps() {
    let stamps: Vec<(u64, u64)> =
        (1..=4).flat_map(|sequence| (1..=sequence).map(move |from| (sequence, from))).collect();
    const DEPTH: u32 = 5;
    let mut orders = 0u64;
    for order in 0..stamps.len().pow(DEPTH) {
        let history: Vec<(u64, u64)> =
            (0..DEPTH).map(|place| stamps[order / stamps.len().pow(place) % stamps.len()]).collect();
        let mut cell = Cell::new();
        let session = open(&mut cell);
        let mut applied: BTreeMap<u64, Answer> = BTreeMap::new();
        let mut told_below = 0;
        for &(sequence, from) in &history {
            let before = cell.status().revision;
            let answer = apply(&mut cell, session, sequence, from, Operation::Put { key: b"k", value: b"v" });
            let changed = cell.status().revision != before;
            match applied.get(&sequence) {
                Some(first) => {
                    assert!(!changed, "applied twice: {history:?}");
                    let forgotten = answer == ANSWERED && sequence < told_below;
                    assert!(forgotten || answer == *first, "a result was lost: {history:?}");
                }
                None if changed => {
                    assert_eq!(answer, written(before.0 + 1));
                    applied.insert(sequence, answer);
                    told_below = told_below.max(from);
                }
                None => assert!(answer == ANSWERED && sequence < told_below, "refused while waited for: {history:?}"),
            }
        }
        orders += 1;
    }
    assert_eq!(orders, 100_000);
}

/// What happens between clients and the cell. Numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Open,
    Close(usize),
    /// A client sends a new command, which is delivered by a later step, or never.
    Send(usize, Act),
    /// A command on its way arrives; it stays, to arrive again.
    Deliver(usize),
    /// A client sends what it waits for once more, with the stamp of now, and that arrives at once.
    Retry(usize),
    Junk(Vec<u8>),
}

#[derive(Clone, Debug)]
enum Act {
    Put(u8, u8),
    Delete(u8),
    Swap(u8, Option<u8>, u8),
    Create(u8, u8),
    Write(u8, u8),
}

fn act() -> impl Strategy<Value = Act> {
    let (key, value) = (0..3u8, 0..3u8);
    prop_oneof![
        (key.clone(), value.clone()).prop_map(|(k, v)| Act::Put(k, v)),
        key.clone().prop_map(Act::Delete),
        (key.clone(), proptest::option::of(value.clone()), value.clone()).prop_map(|(k, e, v)| Act::Swap(k, e, v)),
        (key.clone(), value.clone()).prop_map(|(k, v)| Act::Create(k, v)),
        (key, value).prop_map(|(k, v)| Act::Write(k, v)),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let number = any::<usize>;
    prop_oneof![
        1 => Just(Step::Open),
        1 => number().prop_map(Step::Close),
        12 => (number(), act()).prop_map(|(client, act)| Step::Send(client, act)),
        16 => number().prop_map(Step::Deliver),
        6 => number().prop_map(Step::Retry),
        1 => proptest::collection::vec(any::<u8>(), 0..24).prop_map(Step::Junk),
    ]
}

/// The same in a simpler world: named values, and a memory of everything that was ever applied.
#[derive(Default)]
struct Model {
    revision: u64,
    rows: BTreeMap<Vec<u8>, (u64, u64, u64, u8)>,
}

impl Model {
    fn perform(&mut self, act: &Act) -> Answer {
        let name = |kind: u8, key: u8| vec![kind, key];
        match *act {
            Act::Put(key, value) => written(self.write(name(b'k', key), value)),
            Act::Delete(key) => match self.rows.remove(&name(b'k', key)) {
                None => Answer::NotThere,
                Some(_) => {
                    self.revision += 1;
                    Answer::Deleted { revision: Revision(self.revision) }
                }
            },
            Act::Swap(key, expected, value) => {
                let current = self.rows.get(&name(b'k', key)).map(|row| row.3);
                match current == expected {
                    true => Answer::Swapped { revision: Revision(self.write(name(b'k', key), value)) },
                    false => Answer::Unequal { current: current.map(|value| Bytes::copy_from_slice(&[value])) },
                }
            }
            Act::Create(file, value) => match self.rows.get(&name(b'/', file)) {
                Some(row) => Answer::Exists { revision: Revision(row.0) },
                None => Answer::Created { revision: Revision(self.write(name(b'/', file), value)) },
            },
            Act::Write(file, value) => match self.rows.contains_key(&name(b'/', file)) {
                true => written(self.write(name(b'/', file), value)),
                false => Answer::NotThere,
            },
        }
    }

    fn write(&mut self, name: Vec<u8>, value: u8) -> u64 {
        self.revision += 1;
        let row = self.rows.entry(name).or_insert((self.revision, 0, 0, 0));
        *row = (row.0, self.revision, row.2 + 1, value);
        self.revision
    }
}

fn encode_act(session: SessionId, sequence: u64, unanswered: u64, act: &Act) -> Vec<u8> {
    let name = |kind: u8, key: u8| [kind, key + b'0'];
    let (k, v, e);
    let operation = match *act {
        Act::Put(key, value) => {
            (k, v) = (name(b'k', key), [value]);
            Operation::Put { key: &k, value: &v }
        }
        Act::Delete(key) => {
            k = name(b'k', key);
            Operation::Delete { key: &k }
        }
        Act::Swap(key, expected, value) => {
            (k, v, e) = (name(b'k', key), [value], [expected.unwrap_or(0)]);
            let expected = if expected.is_some() { Expected::Value(&e) } else { Expected::Absent };
            Operation::CompareAndSwap { key: &k, expected, value: &v }
        }
        Act::Create(file, value) => {
            (k, v) = (name(b'/', file), [value]);
            Operation::CreateFile { path: &k, contents: &v }
        }
        Act::Write(file, value) => {
            (k, v) = (name(b'/', file), [value]);
            Operation::WriteFile { path: &k, contents: &v }
        }
    };
    encode(&Command { session, sequence: Sequence(sequence), unanswered_from: Sequence(unanswered), operation })
}

struct ModelClient {
    session: SessionId,
    open: bool,
    acts: Vec<Act>,
    /// By sequence, what was answered first.
    applied: BTreeMap<u64, Answer>,
}

impl ModelClient {
    /// The lowest sequence without an answer, or the one after the last.
    fn unanswered(&self) -> u64 {
        (1..).find(|sequence| !self.applied.contains_key(sequence)).unwrap()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]
    #[test]
    fn honest_clients_over_a_bad_network(steps in proptest::collection::vec(step(), 0..150)) {
        let mut cell = Cell::new();
        let mut twin = Cell::new();
        let mut model = Model { revision: 1, ..Model::default() };
        let mut clients: Vec<ModelClient> = Vec::new();
        let mut network: Vec<(usize, u64, Vec<u8>)> = Vec::new();
        let mut both = |bytes: &[u8]| {
            let answer = apply_bytes(&mut cell, bytes);
            assert_eq!(apply_bytes(&mut twin, bytes), answer);
            assert_eq!(cell.contents_hash(), twin.contents_hash());
            (answer, cell.status())
        };
        for step in steps {
            let delivered = match step {
                Step::Open => {
                    let (answer, _) = both(&encode(&Command::without_session(Operation::OpenSession)));
                    let session = SessionId(clients.len() as u64 + 1);
                    prop_assert_eq!(answer, Answer::SessionOpened(session));
                    clients.push(ModelClient { session, open: true, acts: Vec::new(), applied: BTreeMap::new() });
                    None
                }
                Step::Junk(bytes) => {
                    // Too short for a stamp and an operation, so never a command by chance.
                    prop_assert!(matches!(both(&bytes).0, Answer::Refused(Refusal::Malformed(_))));
                    None
                }
                _ if clients.is_empty() => None,
                Step::Close(client) => {
                    let count = clients.len();
                    let client = &mut clients[client % count];
                    let (session, sequence) = (client.session, Sequence(1));
                    let operation = Operation::CloseSession;
                    let close = Command { session, sequence, unanswered_from: sequence, operation };
                    let expected = if client.open { Answer::SessionClosed } else { UNKNOWN };
                    prop_assert_eq!(both(&encode(&close)).0, expected);
                    client.open = false;
                    None
                }
                Step::Send(client, act) => {
                    let index = client % clients.len();
                    let client = &mut clients[index];
                    client.acts.push(act);
                    let sequence = client.acts.len() as u64;
                    let bytes = encode_act(client.session, sequence, client.unanswered(), &client.acts[client.acts.len() - 1]);
                    network.push((index, sequence, bytes));
                    None
                }
                Step::Deliver(_) if network.is_empty() => None,
                Step::Deliver(which) => Some(network[which % network.len()].clone()),
                Step::Retry(client) => {
                    let index = client % clients.len();
                    let client = &clients[index];
                    let sequence = client.unanswered();
                    client.acts.get(sequence as usize - 1).map(|act| {
                        (index, sequence, encode_act(client.session, sequence, sequence, act))
                    })
                }
            };
            let Some((index, sequence, bytes)) = delivered else { continue };
            let client = &mut clients[index];
            let (answer, _) = both(&bytes);
            if !client.open {
                prop_assert_eq!(answer, UNKNOWN);
            } else if let Some(first) = client.applied.get(&sequence) {
                let waits = sequence >= client.unanswered();
                prop_assert!(answer == *first || (answer == ANSWERED && !waits), "{:?}, not {:?}", answer, first);
            } else {
                prop_assert_eq!(&answer, &model.perform(&client.acts[sequence as usize - 1]));
                client.applied.insert(sequence, answer);
            }
        }
        let status = both(b"").1;
        prop_assert_eq!(status.revision, Revision(model.revision));
        prop_assert_eq!(status.sessions, clients.iter().filter(|client| client.open).count() as u64);
        for (name, row) in &model.rows {
            let key = [name[0], name[1] + b'0'];
            let operation = if name[0] == b'/' { Operation::ReadFile { path: &key } } else { Operation::Get { key: &key } };
            let expected = Answer::Value {
                value: Bytes::copy_from_slice(&[row.3]),
                create_revision: Revision(row.0),
                modify_revision: Revision(row.1),
                version: Version(row.2),
            };
            prop_assert_eq!(both(&encode(&Command::without_session(operation))).0, expected);
        }
    }
}
