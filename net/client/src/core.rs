//! The client without sockets and clock: what to dial, what to send, whom to believe.
//!
//! | it is told | it tells |
//! |---|---|
//! | `submit`: a request and its deadline | `poll_completed`: a request and what became of it |
//! | `connected`, `lost`, of an attempt | `poll_action`: dial this endpoint; close that attempt |
//! | `received`: bytes; `sent`: how many left | `take`: what to send now |
//! | `tick`: time passed | `next_deadline`: when to call `tick` |
//!
//! There is one connection at a time, to the replica that is believed to be master. When it says that it is not, those
//! answers that are on their way are waited for (each is a certain refusal, while a closed connection would leave its
//! request doubtful), and then the one that it names is dialed, or the next in turn. A few moves are made at once; then
//! each waits a while, at random and longer the longer the search lasts, so that redirects in a circle and an election
//! cost little.
//!
//! A replica that was paused, or is cut off, is only known by its silence. So one that owes us answers and says nothing
//! for [`Options::attempt_time_max`] is *suspected*, and the others are asked in its place, with the same requests under
//! the same session and sequence. They may name it still, for want of a new master: a suspect that is named is asked
//! again, one request only, and listened to for [`Options::probe_time_max`]. So a new master is found soon after it is
//! elected, and an old one soon after it is back. One that is merely slow gets twice the time when the suspicion is
//! over, up to [`Options::silence_time_max`]: whoever answers at all within that is heard in the end.
//!
//! Invariants:
//!   - nothing is queued for a replica that has said that it is not the master;
//!   - something is in flight, so there is a deadline to wake up at;
//!   - what is told of an earlier attempt changes nothing.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use synod_api::limits::{ANSWER_BYTES_MAX, COMMAND_BYTES_MAX};
use synod_api::{Answer, Consistency, Operation, Refusal, SessionId};
use synod_net::{Attempt, FrameError, Inbound, InboundSizes, Moment, Outbound};

use crate::endpoints::{EndpointIndex, Endpoints};
use crate::error::{Error, SubmitError};
use crate::requests::{IN_FLIGHT_BYTES_MAX, Pumped, RequestId, Requests, Signals};

/// Redirects that are followed at once, before a wait. A true one needs one, a change of masters in that moment two.
const REDIRECTS_AT_ONCE_MAX: u32 = 3;
/// What may wait in the connection's queue. The rest waits as requests, which are bounded too.
const OUTBOUND_BYTES_MAX: usize = 8 << 20;
/// From dial to dial a search waits for this part of what it has lasted, within the backoff's bounds.
const SEARCH_WAIT_PART: u32 = 8;
const _: () = assert!(OUTBOUND_BYTES_MAX > 2 * COMMAND_BYTES_MAX);
const _: () = assert!(IN_FLIGHT_BYTES_MAX > COMMAND_BYTES_MAX);

/// The bounds of one client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// What a request may take if it says nothing else. All tries together.
    pub deadline: Duration,
    /// A dial that takes longer is given up, and the next endpoint tried.
    pub connect_time_max: Duration,
    /// A replica from which nothing at all comes for so long, though it owes us answers, is suspected, and the next one
    /// asked. Twice as long each time that it is silent again. Shorter finds a new master sooner after the old one was
    /// paused or cut off; much shorter than a disk's stall only moves requests about. With one endpoint it is not used.
    pub attempt_time_max: Duration,
    /// How long a suspected replica is listened to when others name it as the master: a round trip and a flush.
    pub probe_time_max: Duration,
    /// The longest that any silence is borne.
    pub silence_time_max: Duration,
    /// How long the answers still under way are waited for after a replica said that it is not the master.
    pub drain_time_max: Duration,
    /// The first wait before the next endpoint is tried, at most (half of it at least).
    pub backoff_min: Duration,
    /// The longest.
    pub backoff_max: Duration,
    /// The first pause after the cell said that it is busy, at most. Then it doubles, up to `backoff_max`.
    pub busy_pause_min: Duration,
    /// Sets the jitter, and which endpoint is tried first: so a thousand clients do not all begin with the same.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            deadline: Duration::from_secs(5),
            connect_time_max: Duration::from_secs(1),
            attempt_time_max: Duration::from_millis(400),
            probe_time_max: Duration::from_millis(50),
            silence_time_max: Duration::from_secs(2),
            drain_time_max: Duration::from_millis(100),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(500),
            busy_pause_min: Duration::from_millis(1),
            seed: 0,
        }
    }
}

/// What the driver is to do with its socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Connect to the endpoint, and tell what comes of it under this attempt.
    Dial {
        /// Which attempt it is.
        attempt: Attempt,
        /// Host and port, as given or as a redirect named it.
        endpoint: Arc<str>,
    },
    /// Close this attempt's connection, or stop dialing. Nothing more need be told of it.
    Close {
        /// Which attempt it was.
        attempt: Attempt,
    },
}

/// What a client has done so far, for metrics and tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CoreCounts {
    /// Dials.
    pub dials: u64,
    /// Replicas left because they said that they are not the master.
    pub not_master: u64,
    /// Connections that broke, or were given up.
    pub lost: u64,
    /// Of these, replicas given up because they said nothing.
    pub silent: u64,
    /// Pauses because the cell was busy.
    pub busy: u64,
    /// Sessions opened.
    pub sessions: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// No connection, and nothing to do with one.
    Idle,
    /// The next dial is made at this moment.
    Resting { until: Moment },
    /// On its way.
    Dialing { endpoint: EndpointIndex, until: Moment },
    /// Requests go out.
    Connected { endpoint: EndpointIndex },
    /// Not the master: only answers are still taken, until all are here or time is up. Then on, at once if it named
    /// another.
    Draining { endpoint: EndpointIndex, named: bool, until: Moment },
}

/// The client as a state machine.
#[derive(Debug)]
pub struct ClientCore {
    options: Options,
    random: fastrand::Rng,
    endpoints: Endpoints,
    state: State,
    attempt: Attempt,
    actions: VecDeque<Action>,
    inbound: Inbound,
    outbound: Outbound,
    requests: Requests,
    /// A connection is wanted though nothing is in flight.
    wanted: bool,
    /// Since when nothing has come although answers are owed.
    silent_since: Option<Moment>,
    /// How long the endpoint of this attempt is listened to.
    patience: Duration,
    /// It is a suspect, and has said nothing yet.
    probing: bool,
    /// Nothing is sent before; set when the cell is busy.
    paused_until: Option<Moment>,
    /// Pauses in a row.
    pauses: u32,
    /// Moves from endpoint to endpoint since the last real answer, and when the first of them was.
    moves: u32,
    searching_since: Option<Moment>,
    /// When the latest dial was made.
    dialed: Moment,
    /// Redirects followed since the last real answer or wait.
    redirects: u32,
    counts: CoreCounts,
}

impl ClientCore {
    /// A client of the cell at these endpoints, any of its replicas. It connects once there is something to ask.
    #[must_use]
    pub fn new(endpoints: &[&str], options: Options) -> ClientCore {
        assert!(!options.backoff_min.is_zero());
        assert!(options.backoff_min <= options.backoff_max);
        assert!(!options.busy_pause_min.is_zero());
        let mut random = fastrand::Rng::with_seed(options.seed);
        let first = random.usize(..endpoints.len().max(1));
        ClientCore {
            options,
            random,
            endpoints: Endpoints::new(endpoints, first),
            state: State::Idle,
            attempt: Attempt(0),
            actions: VecDeque::new(),
            inbound: Inbound::new(SIZES),
            outbound: Outbound::new(OUTBOUND_BYTES_MAX),
            requests: Requests::new(),
            wanted: false,
            silent_since: None,
            patience: options.silence_time_max,
            probing: false,
            paused_until: None,
            pauses: 0,
            moves: 0,
            searching_since: None,
            dialed: Moment(0),
            redirects: 0,
            counts: CoreCounts::default(),
        }
    }

    /// Takes a request. It completes by the deadline at the latest, given that `tick` is called.
    pub fn submit(
        &mut self,
        now: Moment,
        operation: Operation<'_>,
        deadline: Moment,
    ) -> Result<RequestId, SubmitError> {
        let id = self.requests.submit(now, operation, None, deadline)?;
        self.go_on(now);
        Ok(id)
    }

    /// Takes a read for any replica, which sees what is as new as it says; it is answered by [`Answer::Read`]. It goes to whichever
    /// replica the client is connected to, and to the next one if that cannot tell: so a client that asks for nothing else stays
    /// where it is, while one that also writes is sent to the master.
    ///
    /// # Panics
    ///
    /// If the operation is not a read.
    pub fn submit_read(
        &mut self,
        now: Moment,
        operation: Operation<'_>,
        consistency: Consistency,
        deadline: Moment,
    ) -> Result<RequestId, SubmitError> {
        let id = self.requests.submit(now, operation, Some(consistency), deadline)?;
        self.go_on(now);
        Ok(id)
    }

    /// Connects although there is nothing to ask yet.
    pub fn want_connection(&mut self, now: Moment) {
        self.wanted = true;
        self.go_on(now);
    }

    /// What the driver is to do next with its socket. To be asked until `None` after each call that tells something.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The next request that has ended. Each id comes once.
    pub fn poll_completed(&mut self) -> Option<(RequestId, Result<Answer, Error>)> {
        self.requests.poll_completed()
    }

    /// The dial went through.
    pub fn connected(&mut self, now: Moment, attempt: Attempt) {
        match self.state {
            State::Dialing { endpoint, .. } if attempt == self.attempt => {
                self.state = State::Connected { endpoint };
                self.wanted = false;
                self.go_on(now);
            }
            // Given up meanwhile: its close is among the actions already.
            State::Idle
            | State::Resting { .. }
            | State::Dialing { .. }
            | State::Connected { .. }
            | State::Draining { .. } => {}
        }
    }

    /// The dial failed or the connection ended, for this reason.
    pub fn lost(&mut self, now: Moment, attempt: Attempt, why: &str) {
        if attempt == self.attempt {
            self.leave(now, why, false);
        }
    }

    /// Bytes came. They are read in place; only a frame's torn end is copied.
    pub fn received(&mut self, now: Moment, attempt: Attempt, bytes: &[u8]) {
        if attempt != self.attempt {
            return;
        }
        let Self { inbound, requests, endpoints, .. } = self;
        let mut signals = Signals::default();
        let result = inbound.visit(bytes, |frame| requests.on_frame(endpoints, now, frame, &mut signals));
        self.act_on(now, signals, result);
    }

    /// For drivers that receive in place: the buffer for the next receive; see [`Inbound::buffer_for_recv`].
    pub fn buffer_for_recv(&mut self) -> BytesMut {
        self.inbound.buffer_for_recv()
    }

    /// The buffer is back, with `bytes` more in it.
    pub fn received_in(&mut self, now: Moment, attempt: Attempt, buffer: BytesMut, bytes: usize) {
        if attempt != self.attempt {
            return;
        }
        let Self { inbound, requests, endpoints, .. } = self;
        inbound.received(buffer, bytes);
        let mut signals = Signals::default();
        let result = inbound.for_each_frame(|frame| requests.on_frame(endpoints, now, frame, &mut signals));
        self.act_on(now, signals, result);
    }

    /// What to send now on this attempt's connection, as one vectored send; `None` if nothing waits or a send is under
    /// way. Once a turn.
    #[must_use]
    pub fn take(&mut self) -> Option<(Attempt, Vec<Bytes>)> {
        match self.state {
            State::Connected { .. } | State::Draining { .. } => {
                self.outbound.take().map(|pieces| (self.attempt, pieces))
            }
            State::Idle | State::Resting { .. } | State::Dialing { .. } => None,
        }
    }

    /// That send has ended; the kernel took the first `bytes`. A send that failed is [`ClientCore::lost`] instead.
    pub fn sent(&mut self, now: Moment, attempt: Attempt, pieces: Vec<Bytes>, bytes: usize) {
        // The pieces of a connection that was left are nobody's any more.
        if attempt == self.attempt && self.outbound.is_sending() {
            self.outbound.sent(pieces, bytes);
            self.go_on(now);
        }
    }

    /// Time passed. To be called at [`ClientCore::next_deadline`] or later; earlier does no harm.
    pub fn tick(&mut self, now: Moment) {
        self.requests.expire(&self.endpoints, now);
        if self.requests.outstanding() == 0 {
            self.silent_since = None;
        }
        if self.paused_until.is_some_and(|until| now >= until) {
            self.paused_until = None;
        }
        match self.state {
            State::Idle => {}
            State::Resting { until } => {
                if now >= until {
                    self.state = State::Idle;
                }
            }
            State::Dialing { endpoint, until } => {
                if now >= until {
                    return self.give_up(now, endpoint, "no connection", self.dial_time_max());
                }
            }
            State::Connected { endpoint } => {
                if self.silence_ends().is_some_and(|end| now >= end) {
                    return self.give_up(now, endpoint, "no answer", self.patience);
                }
            }
            State::Draining { named, until, .. } => {
                if now >= until || self.requests.outstanding() == 0 {
                    return self.close(now, "", named);
                }
            }
        }
        self.go_on(now);
    }

    /// When [`ClientCore::tick`] is due, if time alone can bring anything further.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Moment> {
        let state = match self.state {
            State::Idle => None,
            State::Resting { until } | State::Dialing { until, .. } | State::Draining { until, .. } => Some(until),
            State::Connected { .. } => {
                let pause = self.paused_until.filter(|_| self.requests.has_ready());
                [self.silence_ends(), pause].into_iter().flatten().min()
            }
        };
        [state, self.requests.earliest_deadline()].into_iter().flatten().min()
    }

    /// Ends the session as far as that takes no waiting: what [`ClientCore::take`] then gives holds the word. Whether
    /// there was a session and a connection to end it on. For a client that goes away.
    pub fn close_session(&mut self) -> bool {
        matches!(self.state, State::Connected { .. }) && self.requests.close_session(&mut self.outbound)
    }

    /// Whether the request has not completed yet.
    #[must_use]
    pub fn is_in_flight(&self, id: RequestId) -> bool {
        self.requests.is_in_flight(id)
    }

    /// Requests that have not completed.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.requests.in_flight()
    }

    /// The session that writes go through, once the first has opened one.
    #[must_use]
    pub fn session(&self) -> Option<SessionId> {
        self.requests.session()
    }

    /// Where requests go out, if anywhere.
    #[must_use]
    pub fn connected_endpoint(&self) -> Option<&str> {
        match self.state {
            State::Connected { endpoint } => Some(self.endpoints.address(endpoint)),
            State::Idle | State::Resting { .. } | State::Dialing { .. } | State::Draining { .. } => None,
        }
    }

    /// The last that went wrong with each endpoint, where something did.
    #[must_use]
    pub fn endpoint_failures(&self) -> Vec<(String, String)> {
        self.endpoints.failures()
    }

    /// The options it was made with.
    #[must_use]
    pub fn options(&self) -> &Options {
        &self.options
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> CoreCounts {
        CoreCounts { sessions: self.requests.sessions_opened(), ..self.counts }
    }

    /// Dials if there is a reason to, and sends what may be sent.
    fn go_on(&mut self, now: Moment) {
        match self.state {
            State::Idle => {
                if self.requests.in_flight() > 0 || self.wanted {
                    self.dial(now);
                }
            }
            State::Connected { .. } => {
                if self.paused_until.is_some_and(|until| now < until) {
                    return;
                }
                let silent = self.requests.outstanding() == 0;
                // A suspect is not given everything each time that it is asked.
                let outstanding_max = if self.probing { 1 } else { usize::MAX };
                match self.requests.pump(&self.endpoints, now, &mut self.outbound, outstanding_max) {
                    // The rest goes when the kernel has taken some.
                    Pumped::All | Pumped::Full => {}
                }
                if silent && self.requests.outstanding() > 0 {
                    self.silent_since = Some(now);
                }
            }
            State::Resting { .. } | State::Dialing { .. } | State::Draining { .. } => {}
        }
    }

    fn dial(&mut self, now: Moment) {
        let endpoint = self.endpoints.choose(now);
        self.probing = self.endpoints.is_suspect(endpoint, now);
        self.patience = if self.probing { self.options.probe_time_max } else { self.usual_patience(endpoint) };
        self.attempt = Attempt(self.attempt.0 + 1);
        self.dialed = now;
        self.counts.dials += 1;
        self.inbound = Inbound::new(SIZES);
        self.outbound.reset();
        self.silent_since = None;
        self.state = State::Dialing { endpoint, until: now.after(self.dial_time_max()) };
        let address = Arc::clone(self.endpoints.address(endpoint));
        self.actions.push_back(Action::Dial { attempt: self.attempt, endpoint: address });
    }

    /// After all frames of a read.
    fn act_on(&mut self, now: Moment, signals: Signals, result: Result<(), FrameError>) {
        let silent_since = self.silent_since;
        self.silent_since = if self.requests.outstanding() > 0 { Some(now) } else { None };
        let (State::Connected { endpoint } | State::Draining { endpoint, .. }) = self.state else { return };
        let Signals { progress, not_master, busy, broken } = signals;
        let prompt = silent_since.is_none_or(|since| now.since(since) < self.options.attempt_time_max);
        self.endpoints.spoke(endpoint, prompt);
        self.probing = false;
        self.patience = self.usual_patience(endpoint);
        if progress {
            self.moves = 0;
            self.searching_since = None;
            self.redirects = 0;
            if let State::Connected { .. } = self.state {
                self.endpoints.is_master(endpoint);
            }
            if !busy {
                self.pauses = 0;
            }
        }
        if let Some(why) = broken.or_else(|| result.err().map(|error| error.to_string())) {
            return self.close(now, &why, false);
        }
        if busy {
            self.pause(now);
        }
        if let (State::Connected { .. }, Some(refusal)) = (self.state, not_master) {
            self.counts.not_master += 1;
            let named = match &refusal {
                Refusal::NotMaster { master: Some(master) } => self.endpoints.redirected(master) != endpoint,
                _ => false,
            };
            // After the redirect, so that one who names himself is not believed.
            self.endpoints.failed(endpoint, refusal.to_string());
            self.state = State::Draining { endpoint, named, until: now.after(self.options.drain_time_max) };
        }
        if let (State::Draining { named, .. }, 0) = (self.state, self.requests.outstanding()) {
            return self.close(now, "", named);
        }
        self.go_on(now);
    }

    /// The cell is busy: nothing is sent for a while, and for longer if it says so again.
    fn pause(&mut self, now: Moment) {
        if self.paused_until.is_some_and(|until| now < until) {
            return;
        }
        self.counts.busy += 1;
        let wait = self.wait(self.options.busy_pause_min, self.pauses);
        self.pauses = self.pauses.saturating_add(1);
        self.paused_until = Some(now.after(wait));
    }

    /// The endpoint said nothing for so long: on to the next one. What was owed may have been done, and is asked again
    /// under its own sequence.
    fn give_up(&mut self, now: Moment, endpoint: EndpointIndex, what: &str, lasted: Duration) {
        self.counts.silent += 1;
        let why = match self.endpoints.last_failure(endpoint) {
            // How short a suspect was listened to says less than why it became one.
            Some(earlier) if self.probing => earlier.to_owned(),
            _ => format!("{what} within {lasted:?}"),
        };
        // With no other there is nobody to ask in its place. A suspect's silence is no news.
        if self.endpoints.count() > 1 && !self.probing {
            self.endpoints.silent(endpoint, now, lasted);
        }
        self.close(now, &why, false);
    }

    /// We end the connection.
    fn close(&mut self, now: Moment, why: &str, named: bool) {
        self.actions.push_back(Action::Close { attempt: self.attempt });
        self.leave(now, why, named);
    }

    /// The connection has ended, one way or the other. `named`: it told where to go instead. On to the next endpoint.
    fn leave(&mut self, now: Moment, why: &str, named: bool) {
        match self.state {
            State::Idle | State::Resting { .. } => return,
            State::Dialing { endpoint, .. } | State::Connected { endpoint } => {
                self.counts.lost += 1;
                self.endpoints.failed(endpoint, why.to_owned());
            }
            // Why we leave it was noted when it said that it is not the master.
            State::Draining { .. } => {}
        }
        self.requests.on_disconnect();
        self.outbound.reset();
        self.silent_since = None;
        self.moves = self.moves.saturating_add(1);
        let since = *self.searching_since.get_or_insert(now);
        let round = u32::try_from(self.endpoints.count()).unwrap_or(u32::MAX);
        let at_once = if named {
            self.redirects += 1;
            self.redirects <= REDIRECTS_AT_ONCE_MAX
        } else {
            self.moves <= round
        };
        if at_once {
            self.state = State::Idle;
        } else {
            // From now on one for each wait: to whom a replica names, and no further in a circle.
            self.redirects = REDIRECTS_AT_ONCE_MAX - 1;
            let lasted = now.since(since) / SEARCH_WAIT_PART;
            let wait = lasted.clamp(self.options.backoff_min, self.options.backoff_max);
            let wait = self.jittered(wait);
            // From dial to dial: time spent on listening is spent.
            self.state = State::Resting { until: self.dialed.after(wait).max(now) };
        }
        self.go_on(now);
    }

    /// Twice as long each time, up to the bound.
    fn wait(&mut self, first: Duration, times: u32) -> Duration {
        let longest = self.options.backoff_max;
        let full = 2_u32
            .checked_pow(times)
            .and_then(|factor| first.checked_mul(factor))
            .map_or(longest, |wait| wait.min(longest));
        self.jittered(full)
    }

    /// Half of it is certain, half at random.
    fn jittered(&mut self, full: Duration) -> Duration {
        full.mul_f64(0.5 + self.random.f64() / 2.0)
    }

    /// How long an endpoint that is not suspected is listened to: twice as long for each time that it was silent.
    fn usual_patience(&self, endpoint: EndpointIndex) -> Duration {
        let Options { attempt_time_max, silence_time_max, .. } = self.options;
        if self.endpoints.count() == 1 {
            return silence_time_max;
        }
        2_u32
            .checked_pow(self.endpoints.silences(endpoint))
            .and_then(|factor| attempt_time_max.checked_mul(factor))
            .map_or(silence_time_max, |patience| patience.min(silence_time_max))
    }

    /// A suspect's dial is not waited for longer than its answer.
    fn dial_time_max(&self) -> Duration {
        let connect_time_max = self.options.connect_time_max;
        if self.probing { connect_time_max.min(self.patience) } else { connect_time_max }
    }

    #[cfg(test)]
    fn outstanding_for_test(&self) -> usize {
        self.requests.outstanding()
    }

    fn silence_ends(&self) -> Option<Moment> {
        self.silent_since.map(|since| since.after(self.patience))
    }
}

const SIZES: InboundSizes = InboundSizes::client(ANSWER_BYTES_MAX as u32);

#[cfg(test)]
mod tests;
