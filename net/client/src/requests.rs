//! What was asked and is not answered yet, and the session it is asked in.
//!
//! A request is in one of two phases: *ready*, waiting to be sent (again), or *outstanding*, sent on the current
//! connection and unanswered. Apart from that it is *doubtful* once an attempt's answer can no longer come: the
//! connection broke, or mastership was lost under it. A refusal is certain of the attempt it answers and says nothing
//! of an earlier one, so a doubtful request stays so until a real answer comes (rule P10). At its end a request that is
//! doubtful or outstanding is *unknown*; any other did not happen.
//!
//! A write gets its sequence when it is first sent, and keeps it for every retry. It may be given another one, in a new
//! session, only while it is not doubtful.
//!
//! Invariants:
//!   - `unanswered_from` is not above the sequence of any request that is still here;
//!   - of the requests here, sequences of the open session lie within `UNANSWERED_MAX` of `unanswered_from`;
//!   - a doubtful request is never stamped anew.

use std::collections::VecDeque;

use bytes::Bytes;
use synod_api::limits::UNANSWERED_MAX;
use synod_api::{Answer, BoundedRead, Command, Consistency, FrameKind, Operation, Refusal, Sequence, SessionId};
use synod_net::{FrameId, FrameRef, Moment, Outbound};

use crate::endpoints::Endpoints;
use crate::error::{Cause, Error, Failure, SubmitError};

/// A request of one client; never used twice by it. Also the id of its frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(u64);

impl RequestId {
    /// Above the place in the slab stands a serial number, so that ids are in the order of submission and a late answer
    /// to an earlier request in the same place is not taken for one to this.
    fn new(serial: u64, slot: usize) -> RequestId {
        RequestId(serial * UNANSWERED_MAX + slot as u64)
    }

    /// Below `UNANSWERED_MAX`, and no other request in flight has the same: for tables beside this one.
    #[must_use]
    pub fn slot(self) -> usize {
        (self.0 % UNANSWERED_MAX) as usize
    }

    /// As a bare number, for logs.
    #[must_use]
    pub fn number(self) -> u64 {
        self.0
    }
}

/// All bytes of requests that are kept for retries. Over it, submitting is refused.
pub(crate) const IN_FLIGHT_BYTES_MAX: usize = 64 << 20;
/// A place whose buffer grew above this gives it back.
const KEPT_BUFFER_BYTES_MAX: usize = 16 << 10;
/// Frame ids from here on are the client's own: the session's opening and closing.
const OWN_ID_MIN: u64 = 1 << 63;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Free,
    Ready,
    Outstanding,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Stamp {
    session: SessionId,
    sequence: Sequence,
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    phase: Phase,
    operation: &'static str,
    changes: bool,
    /// It is a read for any replica, which must be as new as this.
    consistency: Option<Consistency>,
    /// The encoded command; its stamp is replaced each time it is sent.
    command: Vec<u8>,
    stamp: Option<Stamp>,
    doubtful: bool,
    attempts: u32,
    submitted: Moment,
    deadline: Moment,
    last_refusal: Option<Refusal>,
}

impl Request {
    /// It is under way.
    fn is_sent(&mut self, outstanding: &mut usize) -> bool {
        self.phase = Phase::Outstanding;
        self.attempts += 1;
        *outstanding += 1;
        true
    }
}

#[derive(Debug)]
enum Session {
    Absent,
    /// Asked for on this connection.
    Opening(FrameId),
    Open {
        id: SessionId,
        next: Sequence,
        unanswered_from: Sequence,
    },
}

/// What the frames of one read said about the connection, for `core` to act on after all of them are read.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// A real answer came: this is the master, and it works.
    pub(crate) progress: bool,
    /// This is not the master; and who is, if it knows.
    pub(crate) not_master: Option<Refusal>,
    /// A queue is full there.
    pub(crate) busy: bool,
    /// The stream is of no more use.
    pub(crate) broken: Option<String>,
}

/// Why sending stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Pumped {
    /// All that may be sent was.
    All,
    /// The connection's queue is full.
    Full,
}

#[derive(Debug)]
pub(crate) struct Requests {
    /// By slot; as long as there have ever been requests at once.
    slab: Vec<Request>,
    free: Vec<usize>,
    serial: u64,
    in_flight_bytes: usize,
    /// How many are outstanding, the session's opening included.
    outstanding: usize,
    /// Not later than any deadline here; may be earlier, when the request it belonged to is gone.
    earliest_deadline: Option<Moment>,
    /// Writes with a stamp, to be sent again. First, so that the window can move.
    retries: VecDeque<RequestId>,
    /// Writes without a stamp.
    fresh: VecDeque<RequestId>,
    reads: VecDeque<RequestId>,
    completed: VecDeque<(RequestId, Result<Answer, Error>)>,
    session: Session,
    /// By sequence modulo its length: answered, though `unanswered_from` has not come so far.
    answered: Vec<bool>,
    own_id: u64,
    sessions_opened: u64,
    /// Since the last real answer. A cell that forgets session after session is not asked without a pause.
    sessions_lost: u32,
}

impl Requests {
    pub(crate) fn new() -> Requests {
        Requests {
            slab: Vec::new(),
            free: Vec::new(),
            serial: 0,
            in_flight_bytes: 0,
            outstanding: 0,
            earliest_deadline: None,
            retries: VecDeque::new(),
            fresh: VecDeque::new(),
            reads: VecDeque::new(),
            completed: VecDeque::new(),
            session: Session::Absent,
            answered: vec![false; UNANSWERED_MAX as usize],
            own_id: OWN_ID_MIN,
            sessions_opened: 0,
            sessions_lost: 0,
        }
    }

    pub(crate) fn submit(
        &mut self,
        now: Moment,
        operation: Operation<'_>,
        consistency: Option<Consistency>,
        deadline: Moment,
    ) -> Result<RequestId, SubmitError> {
        assert!(consistency.is_none() || !operation.changes(), "{} is no read", operation.name());
        match operation {
            Operation::OpenSession | Operation::CloseSession => return Err(SubmitError::SessionOperation),
            Operation::Get { .. }
            | Operation::Put { .. }
            | Operation::Delete { .. }
            | Operation::CompareAndSwap { .. }
            | Operation::CreateFile { .. }
            | Operation::WriteFile { .. }
            | Operation::ReadFile { .. } => {}
        }
        let command = Command::without_session(operation);
        command.check_limits()?;
        let bytes = command.encoded_len();
        if self.in_flight_bytes + bytes > IN_FLIGHT_BYTES_MAX {
            return Err(SubmitError::TooManyBytes { in_flight: self.in_flight_bytes });
        }
        let slot = self.place()?;
        self.serial += 1;
        let id = RequestId::new(self.serial, slot);
        let request = &mut self.slab[slot];
        assert_eq!(request.phase, Phase::Free);
        request.id = id;
        request.phase = Phase::Ready;
        request.operation = operation.name();
        request.changes = operation.changes();
        request.consistency = consistency;
        request.command.clear();
        command.encode(&mut request.command);
        request.stamp = None;
        request.doubtful = false;
        request.attempts = 0;
        request.submitted = now;
        request.deadline = deadline;
        request.last_refusal = None;
        self.in_flight_bytes += bytes;
        self.earliest_deadline = Some(self.earliest_deadline.map_or(deadline, |earliest| earliest.min(deadline)));
        if request.changes { &mut self.fresh } else { &mut self.reads }.push_back(id);
        Ok(id)
    }

    /// Sends what is ready, as far as session, window and queue allow, and until so much is outstanding.
    pub(crate) fn pump(
        &mut self,
        endpoints: &Endpoints,
        now: Moment,
        outbound: &mut Outbound,
        outstanding_max: usize,
    ) -> Pumped {
        while let Some(&id) = self.reads.front() {
            if self.outstanding >= outstanding_max {
                return Pumped::All;
            }
            if self.is_ready(id) && !self.transmit(id, None, outbound) {
                return Pumped::Full;
            }
            self.reads.pop_front();
        }
        while let Some(&id) = self.retries.front() {
            if self.outstanding >= outstanding_max {
                return Pumped::All;
            }
            if let Some(stamp) = self.ready_stamp(id) {
                match self.session {
                    Session::Open { id: session, unanswered_from, .. } if session == stamp.session => {
                        if !self.transmit(id, Some((stamp, unanswered_from)), outbound) {
                            return Pumped::Full;
                        }
                    }
                    // The session was lost before this one came back from its connection.
                    Session::Open { .. } | Session::Opening(_) | Session::Absent => {
                        self.without_session(endpoints, now, id);
                    }
                }
            }
            self.retries.pop_front();
        }
        while let Some(&id) = self.fresh.front() {
            if self.outstanding >= outstanding_max {
                return Pumped::All;
            }
            if self.is_ready(id) && self.slab[id.slot()].stamp.is_none() {
                match self.session {
                    Session::Absent => return self.open_session(outbound),
                    Session::Opening(_) => return Pumped::All,
                    Session::Open { id: session, next, unanswered_from } => {
                        if next.0 - unanswered_from.0 >= UNANSWERED_MAX {
                            return Pumped::All;
                        }
                        let stamp = Stamp { session, sequence: next };
                        if !self.transmit(id, Some((stamp, unanswered_from)), outbound) {
                            return Pumped::Full;
                        }
                        self.slab[id.slot()].stamp = Some(stamp);
                        self.session = Session::Open { id: session, next: next.next(), unanswered_from };
                        self.answered[(next.0 % UNANSWERED_MAX) as usize] = false;
                    }
                }
            }
            self.fresh.pop_front();
        }
        Pumped::All
    }

    /// Takes one frame of the master's. What it says about the connection goes to `signals`.
    pub(crate) fn on_frame(&mut self, endpoints: &Endpoints, now: Moment, frame: FrameRef<'_>, signals: &mut Signals) {
        match FrameKind::try_from(frame.kind) {
            Ok(FrameKind::Answer) => match Answer::decode_borrowed(frame.payload) {
                Ok(answer) => self.on_answer(endpoints, now, frame.id, answer, signals),
                Err(error) => signals.broken = Some(format!("an answer that is none: {error}")),
            },
            Ok(FrameKind::Error) => {
                signals.broken = Some(format!("the other side says: {}", String::from_utf8_lossy(frame.payload)));
            }
            Ok(
                FrameKind::Request
                | FrameKind::ReadRequest
                | FrameKind::StatusRequest
                | FrameKind::Status
                | FrameKind::OperatorRequest
                | FrameKind::OperatorAnswer,
            )
            | Err(_) => {
                signals.broken = Some(format!("a frame of kind {}, not an answer", frame.kind));
            }
        }
    }

    /// The connection is gone: what was outstanding on it may or may not have been done.
    pub(crate) fn on_disconnect(&mut self) {
        if let Session::Opening(_) = self.session {
            // A session that was opened after all is nobody's, and ends as the oldest one some day.
            self.session = Session::Absent;
        }
        let mut again: Vec<RequestId> = Vec::new();
        for request in &mut self.slab {
            if request.phase == Phase::Outstanding {
                request.phase = Phase::Ready;
                request.doubtful = true;
                again.push(request.id);
            }
        }
        self.outstanding = 0;
        // In the order they were asked in, and before those that were never sent.
        again.sort_unstable_by(|a, b| b.cmp(a));
        for id in again {
            if self.slab[id.slot()].changes { &mut self.retries } else { &mut self.reads }.push_front(id);
        }
    }

    /// Ends what has passed its deadline.
    pub(crate) fn expire(&mut self, endpoints: &Endpoints, now: Moment) {
        if self.earliest_deadline.is_none_or(|earliest| now < earliest) {
            return;
        }
        self.earliest_deadline = None;
        for slot in 0..self.slab.len() {
            let request = &mut self.slab[slot];
            if request.phase == Phase::Free {
                continue;
            }
            let deadline = request.deadline;
            if deadline > now {
                self.earliest_deadline = Some(self.earliest_deadline.map_or(deadline, |e| e.min(deadline)));
                continue;
            }
            let cause = request.last_refusal.take().map_or(Cause::Deadline, Cause::DeadlineRefused);
            self.fail(endpoints, now, slot, cause);
        }
    }

    /// Ends the session, without waiting for what the cell says. Whether there was anything to send.
    pub(crate) fn close_session(&mut self, outbound: &mut Outbound) -> bool {
        let Session::Open { id, next, unanswered_from } = self.session else { return false };
        let command = Command { session: id, sequence: next, unanswered_from, operation: Operation::CloseSession };
        self.session = Session::Absent;
        let id = self.next_own_id();
        outbound.write(FrameKind::Request.into(), id, |out| command.encode(out)).is_ok()
    }

    pub(crate) fn poll_completed(&mut self) -> Option<(RequestId, Result<Answer, Error>)> {
        self.completed.pop_front()
    }

    pub(crate) fn is_in_flight(&self, id: RequestId) -> bool {
        self.slab.get(id.slot()).is_some_and(|request| request.id == id && request.phase != Phase::Free)
    }

    /// Requests that have not completed.
    pub(crate) fn in_flight(&self) -> usize {
        self.slab.len() - self.free.len()
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.outstanding
    }

    pub(crate) fn has_ready(&self) -> bool {
        !(self.retries.is_empty() && self.fresh.is_empty() && self.reads.is_empty())
    }

    pub(crate) fn earliest_deadline(&self) -> Option<Moment> {
        if self.in_flight() == 0 { None } else { self.earliest_deadline }
    }

    pub(crate) fn sessions_opened(&self) -> u64 {
        self.sessions_opened
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        match self.session {
            Session::Open { id, .. } => Some(id),
            Session::Absent | Session::Opening(_) => None,
        }
    }

    /// A free place in the slab.
    fn place(&mut self) -> Result<usize, SubmitError> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        let slot = self.slab.len();
        if slot as u64 == UNANSWERED_MAX {
            return Err(SubmitError::TooMany);
        }
        self.slab.push(Request {
            id: RequestId(0),
            phase: Phase::Free,
            operation: "",
            changes: false,
            consistency: None,
            command: Vec::new(),
            stamp: None,
            doubtful: false,
            attempts: 0,
            submitted: Moment(0),
            deadline: Moment(0),
            last_refusal: None,
        });
        Ok(slot)
    }

    fn is_ready(&self, id: RequestId) -> bool {
        let request = &self.slab[id.slot()];
        request.id == id && request.phase == Phase::Ready
    }

    fn ready_stamp(&self, id: RequestId) -> Option<Stamp> {
        if self.is_ready(id) { self.slab[id.slot()].stamp } else { None }
    }

    /// Sends the command, a write under this stamp and with the `unanswered_from` of now. Whether there was room.
    fn transmit(&mut self, id: RequestId, stamp: Option<(Stamp, Sequence)>, outbound: &mut Outbound) -> bool {
        let request = &mut self.slab[id.slot()];
        let operation = Command::decode(&request.command).expect("we encoded it ourselves").operation;
        let id = FrameId(id.0);
        if let Some(consistency) = request.consistency {
            let read = BoundedRead { consistency, operation };
            if outbound.write(FrameKind::ReadRequest.into(), id, |out| read.encode(out)).is_err() {
                return false;
            }
            return request.is_sent(&mut self.outstanding);
        }
        let command = match stamp {
            None => Command::without_session(operation),
            Some((Stamp { session, sequence }, unanswered_from)) => {
                Command { session, sequence, unanswered_from, operation }
            }
        };
        if outbound.write(FrameKind::Request.into(), id, |out| command.encode(out)).is_err() {
            return false;
        }
        request.is_sent(&mut self.outstanding)
    }

    fn open_session(&mut self, outbound: &mut Outbound) -> Pumped {
        let id = self.next_own_id();
        let command = Command::without_session(Operation::OpenSession);
        if outbound.write(FrameKind::Request.into(), id, |out| command.encode(out)).is_err() {
            return Pumped::Full;
        }
        self.session = Session::Opening(id);
        self.outstanding += 1;
        Pumped::All
    }

    fn next_own_id(&mut self) -> FrameId {
        self.own_id += 1;
        FrameId(self.own_id)
    }

    fn on_answer(
        &mut self,
        endpoints: &Endpoints,
        now: Moment,
        id: FrameId,
        answer: Answer<&[u8]>,
        signals: &mut Signals,
    ) {
        if id.0 >= OWN_ID_MIN {
            return self.on_session_answer(id, answer, signals);
        }
        let id = RequestId(id.0);
        // An answer to a request whose deadline has passed: it was told unknown, and stays so.
        let Some(request) = self.slab.get_mut(id.slot()) else { return };
        if request.id != id || request.phase != Phase::Outstanding {
            return;
        }
        self.outstanding -= 1;
        let refusal = match answer {
            Answer::Refused(refusal) => refusal,
            answer => {
                signals.progress = true;
                self.sessions_lost = 0;
                let answer = answer.map(Bytes::copy_from_slice);
                return self.complete(id.slot(), Ok(answer));
            }
        };
        request.phase = Phase::Ready;
        request.doubtful |= !refusal.certain();
        match refusal {
            Refusal::NotMaster { .. }
            | Refusal::LogFailed
            | Refusal::Unknown
            // Another replica may be further on, or hear from the master.
            | Refusal::Behind { .. }
            | Refusal::Unconfirmed { .. }
            | Refusal::Untrusted => {
                signals.not_master = Some(refusal.clone());
                request.last_refusal = Some(refusal);
                self.queue_again(id);
            }
            // Whoever says that the master changed has applied so much, and is the master again or names the new one next time.
            Refusal::Busy | Refusal::UnansweredLimit | Refusal::MasterChanged => {
                signals.busy = true;
                request.last_refusal = Some(refusal);
                self.queue_again(id);
            }
            Refusal::SessionUnknown => match request.stamp {
                Some(stamp) => {
                    request.last_refusal = Some(refusal);
                    self.without_session(endpoints, now, id);
                    self.session_lost(endpoints, now, stamp.session, signals);
                }
                // It was asked without one.
                None => self.fail(endpoints, now, id.slot(), Cause::Refused(refusal)),
            },
            Refusal::LogFull
            | Refusal::DatabaseFull
            | Refusal::Diverged
            | Refusal::DiskFull(_)
            | Refusal::AlreadyAnswered
            | Refusal::Compacted { .. }
            | Refusal::Limit(_)
            | Refusal::Malformed(_) => {
                self.fail(endpoints, now, id.slot(), Cause::Refused(refusal));
            }
        }
    }

    fn on_session_answer(&mut self, id: FrameId, answer: Answer<&[u8]>, signals: &mut Signals) {
        let Session::Opening(opening) = self.session else { return };
        if opening != id {
            return;
        }
        self.outstanding -= 1;
        self.session = match answer {
            Answer::SessionOpened(id) => {
                self.sessions_opened += 1;
                // Only the master opens sessions; but one that forgets them at once makes no progress.
                signals.progress |= self.sessions_lost == 0;
                self.answered.fill(false);
                Session::Open { id, next: Sequence::FIRST, unanswered_from: Sequence::FIRST }
            }
            Answer::Refused(refusal @ (Refusal::NotMaster { .. } | Refusal::LogFailed | Refusal::Unknown)) => {
                signals.not_master = Some(refusal);
                Session::Absent
            }
            // The writes that wait for it have deadlines of their own; then they can say why.
            Answer::Refused(refusal) => {
                for id in &self.fresh {
                    let request = &mut self.slab[id.slot()];
                    if request.id == *id && request.phase == Phase::Ready {
                        request.last_refusal = Some(refusal.clone());
                    }
                }
                signals.busy = true;
                Session::Absent
            }
            other => {
                signals.broken = Some(format!("asked for a session, was answered {other:?}"));
                Session::Absent
            }
        };
    }

    /// The cell no longer knows this session.
    fn session_lost(&mut self, endpoints: &Endpoints, now: Moment, lost: SessionId, signals: &mut Signals) {
        match self.session {
            Session::Open { id, .. } if id == lost => self.session = Session::Absent,
            // Its successor is on the way or here already.
            Session::Open { .. } | Session::Opening(_) | Session::Absent => return,
        }
        self.sessions_lost += 1;
        signals.busy |= self.sessions_lost > 1;
        for slot in 0..self.slab.len() {
            let request = &self.slab[slot];
            // Those still outstanding have answers of their own to come.
            if request.phase == Phase::Ready && request.stamp.is_some_and(|stamp| stamp.session == lost) {
                self.without_session(endpoints, now, request.id);
            }
        }
    }

    /// A ready write whose session is gone: begin anew if no attempt of it can have been done.
    fn without_session(&mut self, endpoints: &Endpoints, now: Moment, id: RequestId) {
        let request = &mut self.slab[id.slot()];
        if request.doubtful {
            return self.fail(endpoints, now, id.slot(), Cause::SessionLost);
        }
        request.stamp = None;
        self.fresh.push_back(id);
    }

    fn queue_again(&mut self, id: RequestId) {
        let request = &self.slab[id.slot()];
        match (request.changes, request.stamp) {
            (false, _) => self.reads.push_back(id),
            (true, Some(_)) => self.retries.push_back(id),
            (true, None) => self.fresh.push_back(id),
        }
    }

    fn fail(&mut self, endpoints: &Endpoints, now: Moment, slot: usize, cause: Cause) {
        let request = &self.slab[slot];
        let outstanding = request.phase == Phase::Outstanding;
        let unknown = request.changes && (request.doubtful || outstanding);
        let failure = Box::new(Failure {
            operation: request.operation,
            cause,
            attempts: request.attempts,
            lasted: now.since(request.submitted),
            endpoints: endpoints.failures(),
        });
        if outstanding {
            self.outstanding -= 1;
        }
        self.complete(slot, Err(if unknown { Error::Unknown(failure) } else { Error::DidNotHappen(failure) }));
    }

    fn complete(&mut self, slot: usize, result: Result<Answer, Error>) {
        let request = &mut self.slab[slot];
        assert_ne!(request.phase, Phase::Free);
        request.phase = Phase::Free;
        self.in_flight_bytes -= request.command.len();
        if request.command.capacity() > KEPT_BUFFER_BYTES_MAX {
            request.command = Vec::new();
        }
        let (id, stamp) = (request.id, request.stamp);
        self.free.push(slot);
        self.completed.push_back((id, result));
        if let Some(stamp) = stamp {
            self.retire(stamp);
        }
    }

    /// Nobody waits for this sequence any more; the cell may forget its result.
    fn retire(&mut self, stamp: Stamp) {
        let Session::Open { id, next, unanswered_from } = &mut self.session else { return };
        if *id != stamp.session {
            return;
        }
        assert!(*unanswered_from <= stamp.sequence);
        assert!(stamp.sequence < *next);
        self.answered[(stamp.sequence.0 % UNANSWERED_MAX) as usize] = true;
        while *unanswered_from < *next && self.answered[(unanswered_from.0 % UNANSWERED_MAX) as usize] {
            self.answered[(unanswered_from.0 % UNANSWERED_MAX) as usize] = false;
            *unanswered_from = unanswered_from.next();
        }
    }
}
