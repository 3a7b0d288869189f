//! The core against scripted replicas: each test plays the cell's part by hand.

use expect_test::{Expect, expect};
use synod_api::limits::UNANSWERED_MAX;
use synod_api::{BoundedRead, Command, Consistency, FrameKind, Revision, Sequence};
use synod_net::{FrameId, FrameLimits, frame};

use super::*;
use crate::error::{Cause, Outcome};

const MS: u64 = 1_000_000;

/// A request as the replica sees it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    frame: FrameId,
    session: u64,
    sequence: u64,
    unanswered_from: u64,
    operation: &'static str,
}

/// A core, its clock, and the socket in between.
struct World {
    core: ClientCore,
    now: Moment,
    attempt: Attempt,
}

impl World {
    fn new(endpoints: &[&str]) -> World {
        let core = ClientCore::new(endpoints, Options::default());
        World { core, now: Moment(0), attempt: Attempt(0) }
    }

    /// One replica, connected, with session 7 open.
    fn with_session() -> World {
        let mut world = World::new(&["a"]);
        world.core.want_connection(world.now);
        world.connect();
        world.put("first");
        world.open_session(7);
        let first = world.seen();
        assert_eq!(first.len(), 1);
        world.written(&first[0]);
        assert_eq!(world.completed(), ["put: Written { revision: Revision(5) }"]);
        world
    }

    fn pass(&mut self, millis: u64) {
        self.now = Moment(self.now.0 + millis * MS);
        self.core.tick(self.now);
    }

    /// Sleeps as long as the core says.
    fn sleep(&mut self) {
        self.now = self.now.max(self.core.next_deadline().unwrap());
        self.core.tick(self.now);
    }

    fn put(&mut self, key: &str) -> RequestId {
        self.submit(Operation::Put { key: key.as_bytes(), value: b"value" }).unwrap()
    }

    fn get(&mut self, key: &str) -> RequestId {
        self.submit(Operation::Get { key: key.as_bytes() }).unwrap()
    }

    fn submit_until(&mut self, key: &str, millis: u64) {
        self.core.submit(self.now, Operation::Get { key: key.as_bytes() }, Moment(millis * MS)).unwrap();
    }

    fn submit(&mut self, operation: Operation<'_>) -> Result<RequestId, SubmitError> {
        self.core.submit(self.now, operation, self.now.after(Duration::from_secs(5)))
    }

    /// Expects the next action to be a dial, and to whom.
    fn dialed(&mut self) -> String {
        loop {
            match self.core.poll_action() {
                Some(Action::Dial { attempt, endpoint }) => {
                    self.attempt = attempt;
                    return endpoint.to_string();
                }
                Some(Action::Close { attempt }) => assert_eq!(attempt, self.attempt),
                None => panic!("no dial"),
            }
        }
    }

    fn connect(&mut self) -> String {
        let endpoint = self.dialed();
        self.core.connected(self.now, self.attempt);
        endpoint
    }

    fn disconnect(&mut self) {
        self.core.lost(self.now, self.attempt, "reset");
    }

    /// What the replica received since the last call.
    fn seen(&mut self) -> Vec<Seen> {
        let mut bytes = Vec::new();
        while let Some((attempt, pieces)) = self.core.take() {
            let sent = pieces.concat();
            bytes.extend_from_slice(&sent);
            self.core.sent(self.now, attempt, pieces, sent.len());
        }
        let mut seen = Vec::new();
        let limits = FrameLimits { payload_bytes_max: COMMAND_BYTES_MAX as u32 };
        let (visited, result) = frame::visit_frames(&bytes, limits, |frame| {
            if frame.kind == u8::from(FrameKind::ReadRequest) {
                let operation = BoundedRead::decode(frame.payload).unwrap().operation.name();
                seen.push(Seen { frame: frame.id, session: 0, sequence: 0, unanswered_from: 0, operation });
                return;
            }
            assert_eq!(frame.kind, u8::from(FrameKind::Request));
            let command = Command::decode(frame.payload).unwrap();
            command.check_limits().unwrap();
            seen.push(Seen {
                frame: frame.id,
                session: command.session.0,
                sequence: command.sequence.0,
                unanswered_from: command.unanswered_from.0,
                operation: command.operation.name(),
            });
        });
        assert_eq!((visited, result), (bytes.len(), Ok(())));
        seen
    }

    fn answers(&mut self, answers: &[(FrameId, Answer<&[u8]>)]) {
        let mut bytes = Vec::new();
        for (id, answer) in answers {
            frame::write_frame(&mut bytes, FrameKind::Answer.into(), *id, |out| answer.encode(out));
        }
        self.core.received(self.now, self.attempt, &bytes);
    }

    fn answer(&mut self, to: &Seen, answer: Answer<&[u8]>) {
        self.answers(&[(to.frame, answer)]);
    }

    fn refuse(&mut self, to: &Seen, refusal: Refusal) {
        self.answer(to, Answer::Refused(refusal));
    }

    fn written(&mut self, to: &Seen) {
        self.answer(to, Answer::Written { revision: Revision(5) });
    }

    fn open_session(&mut self, id: u64) {
        let seen = self.seen();
        let open = seen.iter().find(|seen| seen.operation == "open_session").expect("a session is asked for");
        self.answer(open, Answer::SessionOpened(SessionId(id)));
    }

    fn completed(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.core.poll_completed())
            .map(|(_, result)| match result {
                Ok(answer) => format!("put: {answer:?}").replace("put: Absent", "get: Absent"),
                Err(error) => error.to_string(),
            })
            .collect()
    }

    fn error(&mut self) -> Error {
        self.core.poll_completed().expect("something has ended").1.expect_err("it failed")
    }
}

fn not_master(master: Option<&str>) -> Refusal {
    Refusal::NotMaster { master: master.map(str::to_owned) }
}

fn check(actual: impl std::fmt::Debug, expect: Expect) {
    expect.assert_eq(&format!("{actual:?}"));
}

#[test]
fn a_session_is_opened_before_the_first_write_and_not_for_reads() {
    let mut world = World::new(&["a"]);
    assert_eq!(world.core.poll_action(), None);
    world.get("key");
    assert_eq!(world.connect(), "a");
    let read = world.seen();
    assert_eq!(read.len(), 1);
    assert_eq!((read[0].operation, read[0].session, read[0].sequence), ("get", 0, 0));
    world.put("one");
    world.put("two");
    // A read does not wait for the session.
    world.get("key");
    let seen = world.seen();
    assert_eq!(seen.iter().map(|seen| seen.operation).collect::<Vec<_>>(), ["open_session", "get"]);
    world.answer(&seen[0], Answer::SessionOpened(SessionId(7)));
    let writes = world.seen();
    check(
        writes.iter().map(|w| (w.operation, w.session, w.sequence, w.unanswered_from)).collect::<Vec<_>>(),
        expect![[r#"[("put", 7, 1, 1), ("put", 7, 2, 1)]"#]],
    );
    assert_eq!(world.core.session(), Some(SessionId(7)));
    assert_eq!(world.core.counts().sessions, 1);
}

#[test]
fn a_replica_that_is_behind_is_left_for_another_and_one_that_answers_is_not() {
    let mut world = World::new(&["a", "b"]);
    let read = |world: &mut World| {
        let (operation, until) = (Operation::Get { key: b"k" }, world.now.after(Duration::from_secs(5)));
        let consistency = Consistency::AtLeast(Revision(5));
        world.core.submit_read(world.now, operation, consistency, until).unwrap();
    };
    read(&mut world);
    let behind = world.connect();
    let asked = world.seen();
    world.refuse(&asked[0], Refusal::Behind { has: Revision(3), wanted: Revision(5) });
    assert_ne!(world.connect(), behind);
    let asked = world.seen();
    world.answer(&asked[0], Answer::Read { revision: Revision(5), found: None });
    let (_, answer) = world.core.poll_completed().unwrap();
    assert_eq!(answer, Ok(Answer::Read { revision: Revision(5), found: None }));
    // It stays there, and no session is opened for it.
    read(&mut world);
    assert_eq!(world.seen().len(), 1);
    assert_eq!(world.core.poll_action(), None);
}

#[test]
fn answers_may_come_in_any_order_and_the_window_follows_the_oldest() {
    let mut world = World::with_session();
    let ids: Vec<RequestId> = ["a", "b", "c"].map(|key| world.put(key)).to_vec();
    let seen = world.seen();
    assert_eq!(seen.iter().map(|seen| seen.sequence).collect::<Vec<_>>(), [2, 3, 4]);
    world.answers(&[
        (seen[2].frame, Answer::Written { revision: Revision(8) }),
        (seen[1].frame, Answer::Written { revision: Revision(9) }),
    ]);
    assert_eq!(world.core.poll_completed().unwrap(), (ids[2], Ok(Answer::Written { revision: Revision(8) })));
    assert_eq!(world.core.poll_completed().unwrap(), (ids[1], Ok(Answer::Written { revision: Revision(9) })));
    world.put("d");
    assert_eq!(world.seen()[0].unanswered_from, 2);
    world.written(&seen[0]);
    world.put("e");
    let last = world.seen();
    assert_eq!((last[0].sequence, last[0].unanswered_from), (6, 5));
}

#[test]
fn answers_may_come_in_any_pieces() {
    let mut world = World::with_session();
    world.get("key");
    let seen = world.seen();
    let mut bytes = Vec::new();
    let value = Answer::Value {
        value: &[9_u8; 100][..],
        create_revision: Revision(1),
        modify_revision: Revision(2),
        version: synod_api::Version(3),
    };
    frame::write_frame(&mut bytes, FrameKind::Answer.into(), seen[0].frame, |out| value.encode(out));
    for byte in bytes {
        assert_eq!(world.core.poll_completed(), None);
        world.core.received(world.now, world.attempt, &[byte]);
    }
    let (_, result) = world.core.poll_completed().unwrap();
    assert_eq!(result, Ok(value.map(Bytes::copy_from_slice)));
}

#[test]
fn a_redirect_is_followed_at_once_with_everything() {
    let mut world = World::new(&["a"]);
    world.put("one");
    world.put("two");
    world.get("key");
    assert_eq!(world.connect(), "a");
    let seen = world.seen();
    assert_eq!(seen.len(), 2, "the session and the read");
    world.refuse(&seen[0], not_master(Some("b")));
    // The read's answer is on its way: it is waited for, but nothing more is sent.
    assert_eq!(world.core.poll_action(), None);
    world.put("three");
    assert_eq!(world.seen(), []);
    world.refuse(&seen[1], not_master(Some("b")));
    assert_eq!(world.connect(), "b");
    world.open_session(9);
    let writes = world.seen();
    assert_eq!(writes.len(), 3);
    for write in &writes {
        assert_eq!(write.session, 9);
        world.written(write);
    }
    assert_eq!(world.completed().len(), 3);
    assert_eq!(world.core.connected_endpoint(), Some("b"));
}

#[test]
fn answers_that_do_not_come_after_a_redirect_are_not_waited_for_long() {
    let mut world = World::new(&["a"]);
    world.get("one");
    world.get("two");
    world.connect();
    let seen = world.seen();
    world.refuse(&seen[0], not_master(Some("b")));
    assert_eq!(world.core.poll_action(), None);
    world.sleep();
    assert_eq!(world.now, Moment(100 * MS));
    assert_eq!(world.connect(), "b");
    assert_eq!(world.seen().len(), 2);
}

#[test]
fn redirects_in_a_circle_cost_little() {
    let mut world = World::new(&["a", "b"]);
    world.get("key");
    let mut dials = 0;
    while world.now < Moment(5000 * MS) {
        let endpoint = world.connect();
        dials += 1;
        let other = if endpoint == "a" { "b" } else { "a" };
        let seen = world.seen();
        world.refuse(&seen[0], not_master(Some(other)));
        while world.core.connected_endpoint().is_none() && world.now < Moment(5000 * MS) {
            if let State::Dialing { .. } = world.core.state {
                break;
            }
            world.sleep();
        }
    }
    assert!(dials < 130, "{dials}");
    assert!(dials > 10, "{dials}");
    check(
        world.error().to_string().split_once(" (").unwrap().0,
        expect![[
            r#""get did not happen: no success by the deadline, last refusal: this replica is not the master: try b""#
        ]],
    );
}

#[test]
fn a_replica_that_names_itself_is_not_believed() {
    let mut world = World::new(&["a", "b"]);
    world.get("key");
    let first = world.connect();
    let seen = world.seen();
    world.refuse(&seen[0], not_master(Some(&first)));
    assert_ne!(world.connect(), first);
}

#[test]
fn without_a_master_the_endpoints_are_tried_in_turn_with_longer_and_longer_waits() {
    let mut world = World::new(&["a", "b", "c"]);
    world.put("key");
    let mut log = Vec::new();
    for _ in 0..10 {
        let endpoint = world.dialed();
        log.push(format!("{endpoint}@{}", world.now.0 / MS));
        world.core.lost(world.now, world.attempt, "connection refused");
        if let State::Resting { .. } = world.core.state {
            world.sleep();
        }
    }
    check(log.join(" "), expect![[r#""b@0 c@0 a@0 b@0 c@5 a@10 b@17 c@22 a@28 b@37""#]]);
    while world.core.in_flight() > 0 {
        if let State::Dialing { .. } = world.core.state {
            world.dialed();
            world.core.lost(world.now, world.attempt, "connection refused");
        }
        world.sleep();
    }
    let error = world.error();
    assert_eq!(error.outcome(), Outcome::DidNotHappen);
    check(
        error,
        expect![[
            r#"DidNotHappen(Failure { operation: "put", cause: Deadline, attempts: 0, lasted: 5s, endpoints: [("a", "connection refused"), ("b", "connection refused"), ("c", "connection refused")] })"#
        ]],
    );
    assert_eq!(world.now, Moment(5000 * MS));
    // With nothing left to ask, nobody is dialed any more.
    world.pass(10_000);
    assert_eq!(world.core.poll_action(), None);
    assert_eq!(world.core.next_deadline(), None);
}

#[test]
fn a_retry_after_a_disconnect_keeps_session_and_sequence() {
    let mut world = World::with_session();
    world.put("a");
    world.put("b");
    world.get("c");
    let before = world.seen();
    assert_eq!(before.len(), 3);
    world.answer(&before[2], Answer::Written { revision: Revision(6) });
    world.disconnect();
    assert_eq!(world.connect(), "a");
    world.put("d");
    let after = world.seen();
    check(
        after.iter().map(|s| (s.operation, s.session, s.sequence, s.unanswered_from)).collect::<Vec<_>>(),
        expect![[r#"[("put", 7, 2, 2), ("put", 7, 3, 2), ("put", 7, 4, 2)]"#]],
    );
    world.written(&after[1]);
    assert_eq!(world.completed().len(), 2);
}

#[test]
fn an_answer_to_a_retry_settles_an_attempt_that_was_in_doubt() {
    let mut world = World::with_session();
    world.put("a");
    world.seen();
    world.disconnect();
    world.connect();
    let retry = world.seen();
    world.written(&retry[0]);
    assert_eq!(world.completed(), ["put: Written { revision: Revision(5) }"]);
}

#[test]
fn busy_to_the_only_attempt_is_certain() {
    let mut world = World::with_session();
    world.put("a");
    for _ in 0..3 {
        let seen = world.seen();
        assert_eq!((seen.len(), seen[0].sequence), (1, 2));
        world.refuse(&seen[0], Refusal::Busy);
        assert_eq!(world.seen(), [], "after busy there is a pause");
        world.sleep();
    }
    let last = world.seen();
    world.refuse(&last[0], Refusal::Busy);
    // Its last attempt is never made.
    world.now = Moment(5000 * MS);
    world.core.tick(world.now);
    check(
        world.error(),
        expect![[
            r#"DidNotHappen(Failure { operation: "put", cause: DeadlineRefused(Busy), attempts: 4, lasted: 5s, endpoints: [] })"#
        ]],
    );
    assert_eq!(world.core.counts().busy, 4);
}

#[test]
fn busy_to_a_retry_says_nothing_of_the_attempt_before() {
    // P10.
    let mut world = World::with_session();
    world.put("a");
    world.seen();
    world.disconnect();
    world.connect();
    let retry = world.seen();
    world.refuse(&retry[0], Refusal::Busy);
    world.now = Moment(5000 * MS);
    world.core.tick(world.now);
    let error = world.error();
    assert_eq!(error.outcome(), Outcome::Unknown);
    check(
        error.failure().cause.to_string(),
        expect![[r#""no success by the deadline, last refusal: busy: a queue is full""#]],
    );
    assert_eq!(error.failure().attempts, 2);
}

#[test]
fn pauses_grow_while_the_cell_is_busy() {
    let mut world = World::with_session();
    world.put("a");
    let mut waits = Vec::new();
    for _ in 0..12 {
        let seen = world.seen();
        world.refuse(&seen[0], Refusal::Busy);
        let before = world.now;
        world.sleep();
        waits.push(world.now.since(before).as_millis());
    }
    check(waits, expect!["[0, 1, 2, 4, 10, 26, 42, 110, 219, 338, 456, 420]"]);
}

#[test]
fn a_refusal_that_asking_again_would_not_help_ends_it() {
    let mut world = World::with_session();
    for (refusal, expect) in [
        (Refusal::LogFull, expect!["put did not happen: refused: the log is full (sent 1 time in 0.0ns)"]),
        (
            Refusal::Malformed("why".into()),
            expect!["put did not happen: refused: not a command: why (sent 1 time in 0.0ns)"],
        ),
        (
            Refusal::Limit("why".into()),
            expect!["put did not happen: refused: over a limit: why (sent 1 time in 0.0ns)"],
        ),
        (
            Refusal::AlreadyAnswered,
            expect!["put did not happen: refused: the command's result is no longer kept (sent 1 time in 0.0ns)"],
        ),
    ] {
        world.put("a");
        let seen = world.seen();
        world.refuse(&seen[0], refusal);
        expect.assert_eq(&world.error().to_string());
    }
    // On a retry the same words leave it open.
    world.put("a");
    world.seen();
    world.disconnect();
    world.connect();
    let retry = world.seen();
    world.refuse(&retry[0], Refusal::LogFull);
    assert_eq!(world.error().outcome(), Outcome::Unknown);
}

#[test]
fn a_lost_mastership_leaves_a_doubt_until_a_retry_is_answered() {
    let mut world = World::with_session();
    world.put("a");
    let seen = world.seen();
    world.refuse(&seen[0], Refusal::Unknown);
    assert_eq!(world.completed(), [""; 0]);
    world.connect();
    let retry = world.seen();
    assert_eq!(retry[0].sequence, seen[0].sequence);
    world.now = Moment(5000 * MS);
    world.core.tick(world.now);
    assert_eq!(world.error().outcome(), Outcome::Unknown);
}

#[test]
fn after_a_lost_session_what_cannot_have_been_done_is_asked_anew() {
    let mut world = World::with_session();
    world.put("a");
    let seen = world.seen();
    world.refuse(&seen[0], Refusal::SessionUnknown);
    world.put("b");
    world.open_session(8);
    let again = world.seen();
    check(
        again.iter().map(|s| (s.session, s.sequence, s.unanswered_from)).collect::<Vec<_>>(),
        expect!["[(8, 1, 1), (8, 2, 1)]"],
    );
    for seen in &again {
        world.written(seen);
    }
    assert_eq!(world.completed().len(), 2);
    assert_eq!(world.core.counts().sessions, 2);
}

#[test]
fn after_a_lost_session_what_may_have_been_done_is_unknown() {
    let mut world = World::with_session();
    world.put("a");
    world.put("b");
    world.seen();
    world.disconnect();
    world.connect();
    let retries = world.seen();
    assert_eq!(retries.len(), 2);
    world.refuse(&retries[0], Refusal::SessionUnknown);
    let error = world.error();
    assert_eq!((error.outcome(), &error.failure().cause), (Outcome::Unknown, &Cause::SessionLost));
    // The other one has an answer of its own to come: it may be the real one.
    assert_eq!(world.completed(), [""; 0]);
    world.put("c");
    world.open_session(8);
    let fresh = world.seen();
    world.written(&retries[1]);
    world.written(&fresh[0]);
    assert_eq!(world.completed().len(), 2);
}

#[test]
fn a_cell_that_forgets_every_session_is_not_asked_without_a_pause() {
    let mut world = World::with_session();
    world.put("a");
    let mut opened = 0;
    while world.core.in_flight() > 0 {
        for seen in world.seen() {
            if seen.operation == "open_session" {
                opened += 1;
                world.answer(&seen, Answer::SessionOpened(SessionId(100 + opened)));
            } else {
                world.refuse(&seen, Refusal::SessionUnknown);
            }
        }
        if world.core.outstanding_for_test() == 0 {
            world.sleep();
        }
    }
    assert_eq!(world.error().outcome(), Outcome::DidNotHappen);
    assert!(opened < 40, "{opened}");
}

#[test]
fn at_its_deadline_what_was_never_sent_did_not_happen_and_what_was_is_unknown() {
    let mut world = World::new(&["a"]);
    world.put("never sent");
    world.dialed();
    world.now = Moment(5000 * MS);
    world.core.tick(world.now);
    assert_eq!(world.error().outcome(), Outcome::DidNotHappen);

    let mut world = World::with_session();
    world.put("sent");
    world.get("read");
    let seen = world.seen();
    assert_eq!(seen.len(), 2);
    world.now = Moment(5000 * MS);
    world.core.tick(world.now);
    check(
        (world.error(), world.error()),
        expect![[
            r#"(Unknown(Failure { operation: "put", cause: Deadline, attempts: 1, lasted: 5s, endpoints: [] }), DidNotHappen(Failure { operation: "get", cause: Deadline, attempts: 1, lasted: 5s, endpoints: [] }))"#
        ]],
    );
    // An answer now comes too late: the caller was told, and stays told.
    world.written(&seen[1]);
    assert_eq!(world.core.poll_completed(), None);
}

#[test]
fn a_replica_that_says_nothing_is_left() {
    let mut world = World::new(&["a", "b"]);
    world.get("one");
    let first = world.connect();
    world.seen();
    world.pass(300);
    world.get("two");
    world.seen();
    world.pass(99);
    assert_eq!(world.core.poll_action(), None);
    world.pass(1);
    assert_ne!(world.connect(), first);
    assert_eq!(world.seen().len(), 2);
    assert_eq!(world.core.counts().silent, 1);
    // Any answer shows life.
    world.pass(399);
    world.get("three");
    let seen = world.seen();
    world.answer(&seen[0], Answer::Absent);
    world.pass(1);
    assert_eq!(world.core.poll_action(), None);
}

/// A master is paused: its kernel goes on taking connections, and the others go on naming it until they elect another.
/// `elected` is when that is, in milliseconds; gives when the client is answered, and by how many dials and requests.
fn find_the_new_master(elected: u64, back: Option<u64>) -> (u64, u64, usize) {
    let mut world = World::new(&["a", "b", "c"]);
    world.core.want_connection(world.now);
    let old = world.connect();
    let new = if old == "b" { "c" } else { "b" };
    world.put("first");
    world.open_session(7);
    let first = world.seen();
    world.written(&first[0]);
    world.completed();
    for _ in 0..100 {
        world.put("key");
    }
    let mut sent = world.seen().len();
    let mut endpoint = old.clone();
    while world.core.in_flight() > 0 {
        let now = world.now.0 / MS;
        let is_master =
            if now >= elected { endpoint == new } else { back.is_some_and(|back| now >= back && endpoint == old) };
        match world.core.state {
            State::Dialing { .. } => {
                endpoint = world.connect();
                continue;
            }
            State::Connected { .. } | State::Draining { .. } => {
                let seen = world.seen();
                sent += seen.len();
                if is_master {
                    for seen in &seen {
                        // What was sent before is sent again as what it was.
                        assert_eq!(seen.session, 7);
                        world.written(seen);
                    }
                    if !seen.is_empty() {
                        continue;
                    }
                } else if endpoint != old {
                    let named = if now >= elected { new } else { &old };
                    for seen in &seen {
                        world.refuse(seen, not_master(Some(named)));
                    }
                    if !seen.is_empty() {
                        continue;
                    }
                }
            }
            State::Idle | State::Resting { .. } => {}
        }
        world.sleep();
    }
    assert!(world.completed().iter().all(|result| result.starts_with("put: Written")));
    (world.now.0 / MS, world.core.counts().dials, sent)
}

#[test]
fn a_new_master_is_found_soon_after_the_old_one_was_paused() {
    for elected in (0..3000).step_by(37) {
        let (answered, dials, sent) = find_the_new_master(elected, None);
        let late = answered.saturating_sub(elected.max(400));
        // The suspicion is over after two seconds; the old master is listened to for longer then.
        let bound = if elected < 1900 { 50 + elected / 8 } else { 800 + 500 };
        assert!(late <= bound, "elected at {elected}, answered at {answered}");
        assert!(dials < 70, "{dials} dials");
        // Those who name the old one are given everything, and refuse it; a suspect gets one at a time.
        assert!(sent < 100 * 60, "{sent} requests sent for 100");
    }
}

#[test]
fn an_old_master_that_is_back_is_found_too() {
    for back in (400..2000).step_by(41) {
        let (answered, ..) = find_the_new_master(u64::MAX, Some(back));
        assert!(answered <= back + 100 + back / 4, "back at {back}, answered at {answered}");
    }
}

#[test]
fn a_suspect_is_asked_one_thing_and_not_for_long() {
    let mut world = World::with_session();
    // A second replica, known from a redirect.
    world.put("a");
    let seen = world.seen();
    world.refuse(&seen[0], not_master(Some("b")));
    assert_eq!(world.connect(), "b");
    let seen = world.seen();
    world.written(&seen[0]);
    for _ in 0..10 {
        world.put("b");
    }
    assert_eq!(world.seen().len(), 10);
    world.pass(400);
    assert_eq!(world.connect(), "a");
    let retries = world.seen();
    assert_eq!(retries.len(), 10);
    for seen in &retries {
        world.refuse(seen, not_master(Some("b")));
    }
    assert_eq!(world.connect(), "b");
    let probe = world.seen();
    assert_eq!((probe.len(), probe[0].sequence), (1, retries[0].sequence));
    world.pass(49);
    assert_eq!(world.core.poll_action(), None);
    // It is back: everything goes there.
    world.written(&probe[0]);
    assert_eq!(world.seen().len(), 9);
    assert_eq!(world.completed().len(), 2);
    // Slow or not, a doubt is only ever ended by a real answer.
    world.pass(5000);
    assert_eq!(world.error().outcome(), Outcome::Unknown);
}

#[test]
fn one_that_is_merely_slow_is_heard_in_the_end() {
    let mut world = World::new(&["a", "b"]);
    world.submit_until("slow", 20_000);
    let slow = world.connect();
    let mut asked = Some(world.now);
    // It takes a second and a half for every answer, and is the master; the other one names it.
    while world.core.in_flight() > 0 {
        if let State::Dialing { .. } = world.core.state {
            asked = (world.connect() == slow).then_some(world.now);
            continue;
        }
        let due = world.core.next_deadline().unwrap();
        if let Some(asked) = asked {
            let answers = asked.after(Duration::from_millis(1500));
            if answers <= due && matches!(world.core.state, State::Connected { .. }) {
                world.now = answers;
                let seen = world.seen();
                world.answer(&seen[0], Answer::Absent);
                continue;
            }
        } else {
            let seen = world.seen();
            if !seen.is_empty() {
                world.refuse(&seen[0], not_master(Some(&slow)));
                continue;
            }
        }
        world.sleep();
    }
    assert_eq!(world.completed(), ["get: Absent"]);
    assert!(world.now < Moment(12_000 * MS), "{:?}", world.now);
    // What took long once is given as long again.
    world.get("next");
    world.seen();
    world.pass(1599);
    assert_eq!(world.core.poll_action(), None);
}

#[test]
fn the_only_replica_is_not_left_for_being_slow() {
    let mut world = World::with_session();
    world.put("a");
    world.seen();
    world.pass(1999);
    assert_eq!(world.core.poll_action(), None);
    world.pass(1);
    assert_eq!(world.connect(), "a");
    assert_eq!(world.seen().len(), 1);
}

#[test]
fn junk_ends_the_connection() {
    let mut world = World::new(&["a"]);
    world.get("key");
    world.connect();
    world.seen();
    world.core.received(world.now, world.attempt, b"HTTP/1.1 400 Bad Request\r\n");
    assert_eq!(world.connect(), "a");
    let mut refusal = Vec::new();
    frame::append_frame(&mut refusal, FrameKind::Error.into(), FrameId(0), &[b"too many connections"]);
    world.core.received(world.now, world.attempt, &refusal);
    world.now = Moment(5000 * MS);
    world.core.tick(world.now);
    check(
        world.error().to_string(),
        expect![[
            r#""get did not happen: no answer by the deadline (sent 2 times in 5.0s); a: the other side says: too many connections""#
        ]],
    );
}

#[test]
fn what_is_told_of_an_earlier_connection_changes_nothing() {
    let mut world = World::with_session();
    world.put("a");
    let (old, pieces) = world.core.take().unwrap();
    world.disconnect();
    world.connect();
    let retry = world.seen();
    world.core.sent(world.now, old, pieces, 10);
    world.core.lost(world.now, old, "reset");
    world.core.connected(world.now, old);
    world.core.received(world.now, old, b"junk");
    assert_eq!(world.core.poll_action(), None);
    world.written(&retry[0]);
    assert_eq!(world.completed().len(), 1);
}

#[test]
fn as_many_as_the_cell_keeps_results_for_may_be_in_flight() {
    let mut world = World::with_session();
    for _ in 0..UNANSWERED_MAX {
        world.put("key");
    }
    assert_eq!(world.submit(Operation::Get { key: b"key" }), Err(SubmitError::TooMany));
    let seen = world.seen();
    assert_eq!(seen.len() as u64, UNANSWERED_MAX);
    // The oldest stays unanswered: others may not run away from it, since the cell keeps only so many results.
    for write in &seen[1..] {
        world.written(write);
    }
    for _ in 1..UNANSWERED_MAX {
        world.put("key");
    }
    assert_eq!(world.seen(), []);
    world.written(&seen[0]);
    let next = world.seen();
    assert_eq!(next.len() as u64, UNANSWERED_MAX - 1);
    assert_eq!(next[0].unanswered_from, next[0].sequence);
}

#[test]
fn a_window_that_is_full_does_not_keep_the_oldest_from_being_retried() {
    let mut world = World::with_session();
    for _ in 0..UNANSWERED_MAX {
        world.put("key");
    }
    let seen = world.seen();
    for write in &seen[1..] {
        world.written(write);
    }
    for _ in 1..UNANSWERED_MAX {
        world.put("key");
    }
    world.refuse(&seen[0], Refusal::UnansweredLimit);
    world.sleep();
    let retry = world.seen();
    assert_eq!(retry.len(), 1);
    assert_eq!(Sequence(retry[0].sequence), Sequence(seen[0].sequence));
    world.written(&retry[0]);
    assert_eq!(world.seen().len() as u64, UNANSWERED_MAX - 1);
}

#[test]
fn more_than_the_connection_queue_holds_goes_in_parts() {
    let mut world = World::with_session();
    let value = vec![1; 500 << 10];
    let mut submitted = 0;
    while world.submit(Operation::Put { key: b"key", value: &value }).is_ok() {
        submitted += 1;
    }
    check(
        world.submit(Operation::Put { key: b"key", value: &value }),
        expect!["Err(TooManyBytes { in_flight: 67076454 })"],
    );
    assert_eq!(world.seen().len(), submitted);
}

#[test]
fn limits_and_session_operations_are_refused_before_anything_is_sent() {
    let mut world = World::new(&["a"]);
    assert_eq!(world.submit(Operation::OpenSession), Err(SubmitError::SessionOperation));
    assert!(matches!(world.submit(Operation::Get { key: b"" }), Err(SubmitError::Limit(_))));
    assert_eq!(world.core.poll_action(), None);
}

#[test]
fn a_client_that_goes_away_says_so() {
    let mut world = World::with_session();
    assert!(world.core.close_session());
    let seen = world.seen();
    assert_eq!((seen[0].operation, seen[0].session, seen[0].sequence), ("close_session", 7, 2));
    assert!(!world.core.close_session());
}

/// Not a benchmark, but a bound: 100 clients a core must not be what a benchmark measures.
#[test]
fn a_request_costs_little() {
    let mut world = World::with_session();
    let mut answers = Vec::new();
    let rounds = 1000;
    let start = std::time::Instant::now();
    let mut sequence_ids = Vec::new();
    for _ in 0..rounds {
        sequence_ids.clear();
        for _ in 0..100 {
            sequence_ids.push(world.put("some key of a row"));
        }
        let (attempt, pieces) = world.core.take().unwrap();
        let bytes = pieces.iter().map(Bytes::len).sum();
        world.core.sent(world.now, attempt, pieces, bytes);
        answers.clear();
        for id in &sequence_ids {
            let answer: Answer<&[u8]> = Answer::Written { revision: Revision(1) };
            frame::write_frame(&mut answers, FrameKind::Answer.into(), FrameId(id.number()), |out| answer.encode(out));
        }
        world.core.received(world.now, world.attempt, &answers);
        let mut ended = 0;
        while let Some((_, result)) = world.core.poll_completed() {
            assert_eq!(result, Ok(Answer::Written { revision: Revision(1) }));
            ended += 1;
        }
        assert_eq!(ended, 100);
    }
    let each = start.elapsed() / (rounds * 100);
    println!("{each:?} a request, its answer's encoding included");
    assert!(each < Duration::from_micros(20), "{each:?}");
}
