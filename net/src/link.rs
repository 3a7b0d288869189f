//! The outgoing half of a pair of replicas: dial, greet, be up, back off, dial again.
//!
//! Each replica dials every other. What it has to say goes out on the connection it dialed; the other side only answers
//! the greeting there. So each direction has one owner who decides when to dial, and two replicas never argue over
//! which of two connections is the one.
//!
//! The driver owns sockets and clock. It tells what happened, and carries out the [`Action`] it gets back: dial, or
//! close. Every dial has an [`Attempt`], and what is told of an earlier attempt changes nothing: completions may come
//! late.
//!
//! Frames are queued while the link is up. While it is down, and when the queue is at its bound, they are dropped and
//! counted: the protocol repeats what matters, a lagging peer catches up, and nobody else waits for it.
//!
//! Invariants:
//!   - nothing but the hello is sent before the other side accepted it;
//!   - two dials in a row are at least half of `backoff_min` apart, however the first one ended, unless the link was
//!     stopped and started in between;
//!   - `deadline` is set in every state in which only time could bring us further.

use std::time::Duration;

use bytes::{Bytes, BytesMut};

use crate::connection::{Inbound, InboundSizes, Outbound};
use crate::frame::{FrameId, FrameLimits, HEADER_BYTES, SharedFrame};
use crate::hello::{HELLO_ANSWER_BYTES_MAX, Hello, HelloAnswer};
use crate::moment::Moment;

/// The first wait after a loss, at most (half of it at least).
pub const BACKOFF_MIN: Duration = Duration::from_millis(20);
/// The longest wait: a peer that comes back is found within this.
pub const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// A dial that takes longer is given up. More than one lost SYN (the kernel repeats it after one second).
pub const CONNECT_TIME_MAX: Duration = Duration::from_secs(3);
/// A peer that does not answer a hello in this time is not well; dial again.
pub const GREET_TIME_MAX: Duration = Duration::from_secs(3);
/// What may wait for one peer. A follower that stalls costs this much memory, and then its messages.
pub const QUEUE_BYTES_MAX: usize = 64 << 20;

/// The bounds of one link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkOptions {
    /// See [`BACKOFF_MIN`].
    pub backoff_min: Duration,
    /// See [`BACKOFF_MAX`]. A link that was up for this long has no failures behind it.
    pub backoff_max: Duration,
    /// See [`CONNECT_TIME_MAX`].
    pub connect_time_max: Duration,
    /// See [`GREET_TIME_MAX`].
    pub greet_time_max: Duration,
    /// See [`QUEUE_BYTES_MAX`].
    pub queue_bytes_max: usize,
}

impl Default for LinkOptions {
    fn default() -> Self {
        LinkOptions {
            backoff_min: BACKOFF_MIN,
            backoff_max: BACKOFF_MAX,
            connect_time_max: CONNECT_TIME_MAX,
            greet_time_max: GREET_TIME_MAX,
            queue_bytes_max: QUEUE_BYTES_MAX,
        }
    }
}

/// The number of a dial on one link. Tells what happened to this connection from what happened to an earlier one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Attempt(pub u64);

/// Where a link is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkState {
    /// Not wanted: before the start, or after the peer left the configuration.
    Idle,
    /// The last attempt failed; the next is made at this moment.
    Waiting {
        /// When.
        until: Moment,
    },
    /// Dialing.
    Connecting {
        /// Given up then.
        until: Moment,
    },
    /// Connected; our hello is on its way, or its answer is.
    Greeting {
        /// Given up then.
        until: Moment,
    },
    /// Accepted: messages flow.
    Up {
        /// Since when. One that breaks at once does not make its failures forgotten.
        since: Moment,
    },
}

/// Everything that can happen to a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Event {
    /// The peer is wanted.
    Start,
    /// The peer is not wanted any more.
    Stop,
    /// The dial went through.
    Connected,
    /// The peer accepted our hello.
    Accepted,
    /// The peer refused it.
    Refused,
    /// The dial failed, or the connection ended or was found broken.
    Lost,
    /// Time passed.
    Tick,
}

/// What the driver is to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum Action {
    /// Nothing; but something may wait to be sent ([`PeerLink::take`]).
    Nothing,
    /// Dial the peer, and tell what comes of it under this attempt.
    Dial(Attempt),
    /// Close this attempt's connection if it is not closed yet, or stop dialing. Nothing more need be told of it.
    Close(Attempt),
}

/// What became of a frame that was handed to a link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Queued {
    /// It will be sent, unless the connection breaks first.
    Queued,
    /// Dropped: there is no connection.
    Down,
    /// Dropped: the peer reads too slowly.
    Full,
}

/// What a link has done so far, for metrics.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LinkCounts {
    /// Dials.
    pub dials: u64,
    /// Dials that ended in an accepted greeting.
    pub ups: u64,
    /// Greetings refused.
    pub refusals: u64,
    /// Frames dropped because the link was down.
    pub dropped_down: u64,
    /// Frames dropped because the queue was full.
    pub dropped_full: u64,
    /// The bytes of those.
    pub dropped_full_bytes: u64,
}

/// The outgoing half of a pair of replicas.
#[derive(Debug)]
pub struct PeerLink {
    hello: Hello,
    options: LinkOptions,
    random: fastrand::Rng,
    state: LinkState,
    attempt: Attempt,
    /// Since the link was last up for a while. Sets how long to wait.
    failures: u32,
    outbound: Outbound,
    /// Holds the answer to the greeting, and nothing else ever.
    inbound: Inbound,
    last_failure: Option<String>,
    counts: LinkCounts,
}

impl PeerLink {
    /// A link that is not started. `seed` sets the jitter of its waits.
    #[must_use]
    pub fn new(hello: Hello, options: LinkOptions, seed: u64) -> PeerLink {
        assert!(!options.backoff_min.is_zero());
        assert!(options.backoff_min <= options.backoff_max);
        PeerLink {
            hello,
            options,
            random: fastrand::Rng::with_seed(seed),
            state: LinkState::Idle,
            attempt: Attempt(0),
            failures: 0,
            outbound: Outbound::new(options.queue_bytes_max),
            inbound: Inbound::new(ANSWER_SIZES),
            last_failure: None,
            counts: LinkCounts::default(),
        }
    }

    /// The peer is wanted: dial.
    pub fn start(&mut self, now: Moment) -> Action {
        self.step(now, Event::Start)
    }

    /// The peer is not wanted any more.
    pub fn stop(&mut self, now: Moment) -> Action {
        self.step(now, Event::Stop)
    }

    /// Time passed. To be called at [`PeerLink::deadline`] or later; earlier does no harm.
    pub fn tick(&mut self, now: Moment) -> Action {
        self.step(now, Event::Tick)
    }

    /// The dial went through. The hello is queued: [`PeerLink::take`] has it.
    pub fn connected(&mut self, now: Moment, attempt: Attempt) -> Action {
        if attempt != self.attempt {
            return Action::Close(attempt);
        }
        self.step(now, Event::Connected)
    }

    /// The dial failed, or the connection ended, for this reason.
    pub fn lost(&mut self, now: Moment, attempt: Attempt, why: impl Into<String>) -> Action {
        if attempt != self.attempt {
            return Action::Nothing;
        }
        self.last_failure = Some(why.into());
        self.step(now, Event::Lost)
    }

    /// Bytes came from the peer: the answer to our hello.
    pub fn received(&mut self, now: Moment, attempt: Attempt, bytes: &[u8]) -> Action {
        if attempt != self.attempt {
            return Action::Nothing;
        }
        let mut answers = Vec::new();
        let result = self.inbound.visit(bytes, |frame| answers.push(HelloAnswer::decode(frame)));
        let mut action = Action::Nothing;
        for answer in answers {
            action = match answer {
                Ok(HelloAnswer::Accepted) => self.step(now, Event::Accepted),
                Ok(HelloAnswer::Refused(why)) => {
                    self.last_failure = Some(format!("refused: {why}"));
                    self.step(now, Event::Refused)
                }
                Err(not_an_answer) => self.lost(now, attempt, not_an_answer.to_string()),
            };
            if action != Action::Nothing {
                return action;
            }
        }
        if let Err(error) = result {
            action = self.lost(now, attempt, error.to_string());
        }
        action
    }

    /// When [`PeerLink::tick`] is due, if time alone can bring the link further.
    #[must_use]
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            LinkState::Waiting { until } | LinkState::Connecting { until } | LinkState::Greeting { until } => {
                Some(until)
            }
            LinkState::Idle | LinkState::Up { .. } => None,
        }
    }

    /// Queues a frame whose payload is these parts, copied.
    pub fn send(&mut self, kind: u8, id: FrameId, payload: &[&[u8]]) -> Queued {
        let bytes = HEADER_BYTES + payload.iter().map(|part| part.len()).sum::<usize>();
        self.queue(bytes, |outbound| outbound.append(kind, id, payload).is_ok())
    }

    /// Queues a frame whose payload is written in its final place. If the link is down, `encode` is not called.
    pub fn write(&mut self, kind: u8, id: FrameId, encode: impl FnOnce(&mut BytesMut)) -> Queued {
        let mut bytes = HEADER_BYTES;
        // How long a refused frame would have been is known only once it was written.
        let counted = &mut bytes;
        let is_up = self.is_up();
        let queued = is_up
            && self
                .outbound
                .write(kind, id, |out| {
                    let before = out.len();
                    encode(out);
                    *counted += out.len() - before;
                })
                .is_ok();
        self.queue(bytes, |_| queued)
    }

    /// Queues a frame whose payload is `front`, copied, and then `body`, sent from where it is if it is long.
    pub fn send_with_body(&mut self, kind: u8, id: FrameId, front: &[u8], body: &Bytes) -> Queued {
        let bytes = HEADER_BYTES + front.len() + body.len();
        self.queue(bytes, |outbound| outbound.append_with_body(kind, id, front, body).is_ok())
    }

    /// Queues a frame that other peers are sent too.
    pub fn send_shared(&mut self, frame: &SharedFrame) -> Queued {
        self.queue(frame.frame_bytes(), |outbound| outbound.append_shared(frame).is_ok())
    }

    /// What to send now on this attempt's connection, as one vectored send; `None` if nothing waits or a send is under
    /// way. Once a turn.
    #[must_use]
    pub fn take(&mut self) -> Option<(Attempt, Vec<Bytes>)> {
        self.outbound.take().map(|pieces| (self.attempt, pieces))
    }

    /// That send has ended; the kernel took the first `bytes`. A send that failed is [`PeerLink::lost`] instead.
    pub fn sent(&mut self, attempt: Attempt, pieces: Vec<Bytes>, bytes: usize) {
        // After a loss the queue was reset, and the old connection's pieces are nobody's any more.
        if attempt == self.attempt && self.outbound.is_sending() {
            self.outbound.sent(pieces, bytes);
        }
    }

    /// Messages flow.
    #[must_use]
    pub fn is_up(&self) -> bool {
        matches!(self.state, LinkState::Up { .. })
    }

    /// Where the link is.
    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// Whom it dials, and as whom.
    #[must_use]
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// What the next hello says of our configuration.
    pub fn set_configuration(&mut self, checksum: u64) {
        self.hello.configuration = checksum;
    }

    /// Why the link was last lost, for status and log.
    #[must_use]
    pub fn last_failure(&self) -> Option<&str> {
        self.last_failure.as_deref()
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> LinkCounts {
        self.counts
    }

    /// What waits for the peer or is being sent.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.outbound.queued_bytes()
    }

    /// The one place that decides. Every pair of state and event has its arm or is refused by name.
    fn step(&mut self, now: Moment, event: Event) -> Action {
        use {Event as E, LinkState as S};
        match (self.state, event) {
            (S::Idle, E::Start) => self.dial(now),
            // After a stop the driver may still report what was under way; the attempt is the same, so it comes here.
            (S::Idle, E::Connected) => Action::Close(self.attempt),
            (S::Idle, E::Stop | E::Accepted | E::Refused | E::Lost | E::Tick) => Action::Nothing,

            (S::Waiting { until }, E::Tick) if now >= until => self.dial(now),
            // A dial that was given up went through after all.
            (S::Waiting { .. }, E::Connected) => Action::Close(self.attempt),
            (S::Waiting { .. }, E::Stop) => self.rest(Action::Nothing),
            (S::Waiting { .. }, E::Start | E::Accepted | E::Refused | E::Lost | E::Tick) => Action::Nothing,

            (S::Connecting { .. }, E::Connected) => self.greet(now),
            (S::Connecting { .. }, E::Lost) => self.wait(now, Action::Nothing),
            (S::Connecting { until }, E::Tick) if now >= until => {
                self.last_failure = Some(format!("no connection within {:?}", self.options.connect_time_max));
                self.wait(now, Action::Close(self.attempt))
            }
            (S::Connecting { .. }, E::Stop) => self.rest(Action::Close(self.attempt)),
            (S::Connecting { .. }, E::Start | E::Tick) => Action::Nothing,
            // An answer before the connection: the driver mixed two connections up.
            (S::Connecting { .. }, E::Accepted | E::Refused) => self.wait(now, Action::Close(self.attempt)),

            (S::Greeting { .. }, E::Accepted) => {
                self.counts.ups += 1;
                self.state = S::Up { since: now };
                Action::Nothing
            }
            (S::Greeting { .. }, E::Refused) => {
                self.counts.refusals += 1;
                // A person has to change something, or a configuration has to arrive: not a matter of milliseconds.
                self.failures = u32::MAX;
                self.wait(now, Action::Close(self.attempt))
            }
            (S::Greeting { .. }, E::Lost) => self.wait(now, Action::Close(self.attempt)),
            (S::Greeting { until }, E::Tick) if now >= until => {
                self.last_failure = Some(format!("no answer to the hello within {:?}", self.options.greet_time_max));
                self.wait(now, Action::Close(self.attempt))
            }
            (S::Greeting { .. }, E::Stop) => self.rest(Action::Close(self.attempt)),
            (S::Greeting { .. }, E::Start | E::Connected | E::Tick) => Action::Nothing,

            (S::Up { since }, E::Lost) => {
                // A peer that accepts and hangs up at once must not be dialed fifty times a second.
                if now.since(since) >= self.options.backoff_max {
                    self.failures = 0;
                }
                self.wait(now, Action::Close(self.attempt))
            }
            // The other side has one thing to say on this connection, and has said it.
            (S::Up { .. }, E::Accepted | E::Refused) => {
                self.last_failure = Some("a second answer to the hello".into());
                self.wait(now, Action::Close(self.attempt))
            }
            (S::Up { .. }, E::Stop) => self.rest(Action::Close(self.attempt)),
            (S::Up { .. }, E::Start | E::Connected | E::Tick) => Action::Nothing,
        }
    }

    fn dial(&mut self, now: Moment) -> Action {
        self.attempt = Attempt(self.attempt.0 + 1);
        self.counts.dials += 1;
        self.state = LinkState::Connecting { until: now.after(self.options.connect_time_max) };
        Action::Dial(self.attempt)
    }

    fn greet(&mut self, now: Moment) -> Action {
        self.state = LinkState::Greeting { until: now.after(self.options.greet_time_max) };
        self.inbound = Inbound::new(ANSWER_SIZES);
        assert_eq!(self.outbound.queued_bytes(), 0, "nothing is queued while the link is down");
        // A whole frame of its own; raw, so that it has no second encoding.
        let hello = SharedFrame::whole(self.hello.encode().freeze());
        self.outbound.append_shared(&hello).expect("a hello is far below the queue's bound");
        Action::Nothing
    }

    fn wait(&mut self, now: Moment, action: Action) -> Action {
        let longest = self.options.backoff_max;
        let full = 2_u32.checked_pow(self.failures).map_or(longest, |factor| {
            self.options.backoff_min.checked_mul(factor).map_or(longest, |wait| wait.min(longest))
        });
        self.failures = self.failures.saturating_add(1);
        // Half is certain, half at random: replicas that lost each other at one moment do not dial at one moment.
        let wait = full.mul_f64(0.5 + self.random.f64() / 2.0);
        self.outbound.reset();
        self.state = LinkState::Waiting { until: now.after(wait) };
        action
    }

    fn rest(&mut self, action: Action) -> Action {
        self.outbound.reset();
        self.failures = 0;
        self.state = LinkState::Idle;
        action
    }

    fn queue(&mut self, bytes: usize, append: impl FnOnce(&mut Outbound) -> bool) -> Queued {
        if !self.is_up() {
            self.counts.dropped_down += 1;
            Queued::Down
        } else if append(&mut self.outbound) {
            Queued::Queued
        } else {
            self.counts.dropped_full += 1;
            self.counts.dropped_full_bytes += bytes as u64;
            Queued::Full
        }
    }
}

const ANSWER_SIZES: InboundSizes = InboundSizes {
    start_bytes: 64,
    keep_bytes: 2048,
    limits: FrameLimits { payload_bytes_max: HELLO_ANSWER_BYTES_MAX },
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{self, MAGIC};
    use crate::hello::HELLO_VERSION;
    use expect_test::{Expect, expect};

    const HELLO: Hello = Hello { version: HELLO_VERSION, cell: 7, from: 1, to: 2, configuration: 3 };

    fn link() -> PeerLink {
        PeerLink::new(HELLO, LinkOptions::default(), 1)
    }

    fn accepted() -> Vec<u8> {
        HelloAnswer::Accepted.encode().to_vec()
    }

    fn refused() -> Vec<u8> {
        HelloAnswer::Refused("you are not from here".into()).encode().to_vec()
    }

    /// Walks a link through a script of `<millisecond> <event>` and prints a line each.
    fn check(script: &str, expect: Expect) {
        let mut link = link();
        let mut out = String::new();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (at, event) = line.split_once(' ').unwrap();
            let now = Moment(at.parse::<u64>().unwrap() * 1_000_000);
            let attempt = link.attempt;
            let action = match event {
                "start" => link.start(now),
                "stop" => link.stop(now),
                "tick" => link.tick(now),
                "connected" => link.connected(now, attempt),
                "connected-earlier" => link.connected(now, Attempt(attempt.0 - 1)),
                "lost" => link.lost(now, attempt, "reset"),
                "lost-earlier" => link.lost(now, Attempt(attempt.0 - 1), "reset"),
                "accepted" => link.received(now, attempt, &accepted()),
                "refused" => link.received(now, attempt, &refused()),
                "junk" => link.received(now, attempt, b"HTTP/1.1 400 Bad Request"),
                other => panic!("{other}"),
            };
            let state = match link.state {
                LinkState::Idle => "idle".to_owned(),
                LinkState::Waiting { until } => {
                    format!("waiting {:?}", Duration::from_micros(until.since(now).as_micros() as u64))
                }
                LinkState::Connecting { until } => format!("connecting {:?}", until.since(now)),
                LinkState::Greeting { until } => format!("greeting {:?}", until.since(now)),
                LinkState::Up { .. } => "up".to_owned(),
            };
            let action = if action == Action::Nothing { String::new() } else { format!(", {action:?}") };
            out += &format!("{at} {event}: {state}{action}\n");
            if let Some((attempt, pieces)) = link.take() {
                let bytes = pieces.concat();
                out += &format!("    sends {} bytes\n", bytes.len());
                link.sent(attempt, pieces, bytes.len());
            }
        }
        if let Some(why) = link.last_failure() {
            out += &format!("last failure: {why}\n");
        }
        expect.assert_eq(&out);
    }

    #[test]
    fn up_lost_and_up_again() {
        check(
            "0 tick
             0 start
             1 connected
             2 accepted
             2000 lost
             2001 tick
             2020 tick
             2021 connected
             2022 accepted
             2023 tick",
            expect![[r#"
                0 tick: idle
                0 start: connecting 3s, Dial(Attempt(1))
                1 connected: greeting 3s
                    sends 54 bytes
                2 accepted: up
                2000 lost: waiting 16.57ms, Close(Attempt(1))
                2001 tick: waiting 15.57ms
                2020 tick: connecting 3s, Dial(Attempt(2))
                2021 connected: greeting 3s
                    sends 54 bytes
                2022 accepted: up
                2023 tick: up
                last failure: reset
            "#]],
        );
    }

    #[test]
    fn waits_grow_while_it_fails_and_a_short_life_does_not_reset_them() {
        check(
            "0 start
             0 lost
             20 tick
             20 lost
             60 tick
             60 lost
             140 tick
             140 connected
             140 accepted
             141 lost
             300 tick
             300 connected
             300 accepted
             1300 lost",
            expect![[r#"
                0 start: connecting 3s, Dial(Attempt(1))
                0 lost: waiting 16.57ms
                20 tick: connecting 3s, Dial(Attempt(2))
                20 lost: waiting 30.692ms
                60 tick: connecting 3s, Dial(Attempt(3))
                60 lost: waiting 49.585ms
                140 tick: connecting 3s, Dial(Attempt(4))
                140 connected: greeting 3s
                    sends 54 bytes
                140 accepted: up
                141 lost: waiting 142.309ms, Close(Attempt(4))
                300 tick: connecting 3s, Dial(Attempt(5))
                300 connected: greeting 3s
                    sends 54 bytes
                300 accepted: up
                1300 lost: waiting 10.096ms, Close(Attempt(5))
                last failure: reset
            "#]],
        );
    }

    #[test]
    fn a_refusal_waits_long_and_is_told() {
        check(
            "0 start
             1 connected
             2 refused
             1002 tick
             1003 lost
             2003 tick",
            expect![[r#"
                0 start: connecting 3s, Dial(Attempt(1))
                1 connected: greeting 3s
                    sends 54 bytes
                2 refused: waiting 828.519ms, Close(Attempt(1))
                1002 tick: connecting 3s, Dial(Attempt(2))
                1003 lost: waiting 767.307ms
                2003 tick: connecting 3s, Dial(Attempt(3))
                last failure: reset
            "#]],
        );
    }

    #[test]
    fn dials_and_greetings_are_given_up_in_time() {
        check(
            "0 start
             2999 tick
             3000 tick
             3001 connected
             3020 tick
             3021 connected
             6020 tick
             6021 tick
             6022 accepted
             6100 tick",
            expect![[r#"
                0 start: connecting 3s, Dial(Attempt(1))
                2999 tick: connecting 1ms
                3000 tick: waiting 16.57ms, Close(Attempt(1))
                3001 connected: waiting 15.57ms, Close(Attempt(1))
                3020 tick: connecting 3s, Dial(Attempt(2))
                3021 connected: greeting 3s
                    sends 54 bytes
                6020 tick: greeting 1ms
                6021 tick: waiting 30.692ms, Close(Attempt(2))
                6022 accepted: waiting 29.692ms
                6100 tick: connecting 3s, Dial(Attempt(3))
                last failure: no answer to the hello within 3s
            "#]],
        );
    }

    #[test]
    fn what_is_told_of_an_earlier_attempt_changes_nothing() {
        check(
            "0 start
             0 lost
             20 tick
             20 connected-earlier
             20 lost-earlier
             21 connected
             22 lost-earlier
             22 accepted",
            expect![[r#"
                0 start: connecting 3s, Dial(Attempt(1))
                0 lost: waiting 16.57ms
                20 tick: connecting 3s, Dial(Attempt(2))
                20 connected-earlier: connecting 3s, Close(Attempt(1))
                20 lost-earlier: connecting 3s
                21 connected: greeting 3s
                    sends 54 bytes
                22 lost-earlier: greeting 2.999s
                22 accepted: up
                last failure: reset
            "#]],
        );
    }

    #[test]
    fn junk_and_chatter_close_the_link() {
        check(
            "0 start
             1 connected
             2 junk
             30 tick
             31 connected
             32 accepted
             33 accepted",
            expect![[r#"
                0 start: connecting 3s, Dial(Attempt(1))
                1 connected: greeting 3s
                    sends 54 bytes
                2 junk: waiting 16.57ms, Close(Attempt(1))
                30 tick: connecting 3s, Dial(Attempt(2))
                31 connected: greeting 3s
                    sends 54 bytes
                32 accepted: up
                33 accepted: waiting 30.692ms, Close(Attempt(2))
                last failure: a second answer to the hello
            "#]],
        );
    }

    #[test]
    fn a_stop_ends_whatever_is_under_way() {
        check(
            "0 start
             0 stop
             1 connected
             1 start
             2 connected
             2 stop
             3 start
             4 connected
             4 accepted
             4 stop
             5 lost
             6 start
             6 lost
             6 stop
             9 tick",
            expect![[r#"
                0 start: connecting 3s, Dial(Attempt(1))
                0 stop: idle, Close(Attempt(1))
                1 connected: idle, Close(Attempt(1))
                1 start: connecting 3s, Dial(Attempt(2))
                2 connected: greeting 3s
                    sends 54 bytes
                2 stop: idle, Close(Attempt(2))
                3 start: connecting 3s, Dial(Attempt(3))
                4 connected: greeting 3s
                    sends 54 bytes
                4 accepted: up
                4 stop: idle, Close(Attempt(3))
                5 lost: idle
                6 start: connecting 3s, Dial(Attempt(4))
                6 lost: waiting 16.57ms
                6 stop: idle
                9 tick: idle
                last failure: reset
            "#]],
        );
    }

    fn up() -> (PeerLink, Attempt) {
        let mut link = PeerLink::new(HELLO, LinkOptions { queue_bytes_max: 100, ..LinkOptions::default() }, 1);
        let Action::Dial(attempt) = link.start(Moment(0)) else { panic!() };
        assert_eq!(link.connected(Moment(1), attempt), Action::Nothing);
        let (_, pieces) = link.take().unwrap();
        let bytes = pieces.concat().len();
        link.sent(attempt, pieces, bytes);
        // However the answer is cut.
        for byte in accepted() {
            assert_eq!(link.received(Moment(2), attempt, &[byte]), Action::Nothing);
        }
        assert!(link.is_up());
        (link, attempt)
    }

    #[test]
    fn the_hello_is_what_the_other_side_can_check() {
        let mut link = link();
        let Action::Dial(attempt) = link.start(Moment(0)) else { panic!() };
        assert_eq!(link.connected(Moment(1), attempt), Action::Nothing);
        assert_eq!(link.send(1, FrameId(1), &[b"too early"]), Queued::Down);
        let (_, pieces) = link.take().unwrap();
        assert_eq!(pieces.concat(), HELLO.encode());
        assert_eq!(pieces.concat()[..2], MAGIC);
    }

    #[test]
    fn over_the_bound_frames_are_dropped_and_counted() {
        let (mut link, attempt) = up();
        assert_eq!(link.send(1, FrameId(1), &[&[0; 50]]), Queued::Queued);
        assert_eq!(link.send(1, FrameId(2), &[&[0; 50]]), Queued::Full);
        assert_eq!(link.write(1, FrameId(3), |out| out.extend_from_slice(&[0; 60])), Queued::Full);
        assert_eq!(link.send_with_body(1, FrameId(4), b"", &Bytes::from(vec![0; 5000])), Queued::Full);
        assert_eq!(link.counts().dropped_full, 3);
        assert_eq!(link.counts().dropped_full_bytes, 74 + 84 + 5024);
        let (_, pieces) = link.take().unwrap();
        let mut expected = Vec::new();
        frame::append_frame(&mut expected, 1, FrameId(1), &[&[0; 50]]);
        assert_eq!(pieces.concat(), expected);
        link.sent(attempt, pieces, expected.len());
        assert_eq!(link.write(1, FrameId(3), |out| out.extend_from_slice(&[0; 60])), Queued::Queued);
    }

    #[test]
    fn a_lost_connection_takes_its_queue_along() {
        let (mut link, attempt) = up();
        assert_eq!(link.send(1, FrameId(1), &[b"a"]), Queued::Queued);
        let (_, pieces) = link.take().unwrap();
        assert_eq!(link.send(1, FrameId(2), &[b"b"]), Queued::Queued);
        assert_eq!(link.lost(Moment(3), attempt, "reset"), Action::Close(attempt));
        assert_eq!(link.queued_bytes(), 0);
        // The kernel gives the pieces back only now.
        link.sent(attempt, pieces, 3);
        assert!(link.take().is_none());
        assert_eq!(link.send(1, FrameId(3), &[b"c"]), Queued::Down);
        assert_eq!(link.counts().dropped_down, 1);
    }
}
