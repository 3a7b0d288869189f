//! What did not happen, and what nobody knows.

use std::fmt;
use std::time::Duration;

use synod_api::{LimitError, Refusal, limits::UNANSWERED_MAX};

/// How a request failed. Success is the third outcome: it happened.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Error {
    /// It did not happen and will not: nothing reached the cell, or every attempt was answered by a refusal that is
    /// certain. A read that got no answer is also told so: it changes nothing.
    #[error("{} did not happen: {}", .0.operation, .0)]
    DidNotHappen(Box<Failure>),
    /// It may have happened, or may happen yet. To be sure, read what it would have changed.
    #[error("it is unknown whether {} happened: {}", .0.operation, .0)]
    Unknown(Box<Failure>),
}

/// What a failed request leaves behind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It did not happen and will not.
    DidNotHappen,
    /// It may have happened, or may happen yet.
    Unknown,
}

impl Error {
    /// What the failed request leaves behind.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Error::DidNotHappen(_) => Outcome::DidNotHappen,
            Error::Unknown(_) => Outcome::Unknown,
        }
    }

    /// Why, and what was tried.
    #[must_use]
    pub fn failure(&self) -> &Failure {
        match self {
            Error::DidNotHappen(failure) | Error::Unknown(failure) => failure,
        }
    }

    pub(crate) fn not_tried(operation: &'static str, cause: Cause) -> Error {
        let failure = Failure { operation, cause, attempts: 0, lasted: Duration::ZERO, endpoints: Vec::new() };
        Error::DidNotHappen(Box::new(failure))
    }
}

/// Why a request failed, and what was tried. Its text is one line for a log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failure {
    /// What was asked: `put`, `get`.
    pub operation: &'static str,
    /// Why it ended.
    pub cause: Cause,
    /// How often it was sent.
    pub attempts: u32,
    /// For how long it was tried.
    pub lasted: Duration,
    /// The last that went wrong with each endpoint, where something did.
    pub endpoints: Vec<(String, String)>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = if self.attempts == 1 { "time" } else { "times" };
        write!(f, "{} (sent {} {times} in {:.1?})", self.cause, self.attempts, self.lasted)?;
        for (at, (endpoint, why)) in self.endpoints.iter().enumerate() {
            write!(f, "{} {endpoint}: {why}", if at == 0 { ";" } else { "," })?;
        }
        Ok(())
    }
}

/// Why a request ended without an answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Cause {
    /// Its deadline passed while no master could be found or none answered.
    #[error("no answer by the deadline")]
    Deadline,
    /// Its deadline passed; this is the last that the cell said of it.
    #[error("no success by the deadline, last refusal: {0}")]
    DeadlineRefused(Refusal),
    /// The cell refused it, and asking again would not help.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The cell ended our session while an attempt was unanswered: its record of the attempt is gone.
    #[error("the session ended while an attempt was unanswered")]
    SessionLost,
    /// It is over a limit; nothing was sent.
    #[error("{0}")]
    Limit(LimitError),
    /// Too much is in flight; nothing was sent.
    #[error("{0}")]
    Submit(SubmitError),
    /// The cell's answer is not one to this question: a bug in it.
    #[error("the answer makes no sense: {0}")]
    Nonsense(String),
    /// Only for calls that speak to one endpoint.
    #[error("{0}")]
    Endpoint(String),
}

/// Why a request was not taken. It did not happen.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SubmitError {
    /// As many requests as the cell keeps results for are in flight: take some answers first.
    #[error("{UNANSWERED_MAX} requests are in flight already: wait for some answers first")]
    TooMany,
    /// As many bytes as the client holds for retries are in flight: take some answers first.
    #[error("{in_flight} bytes of requests are in flight already: wait for some answers first")]
    TooManyBytes {
        /// What is in flight.
        in_flight: usize,
    },
    /// It is over a limit of the cell's.
    #[error("{0}")]
    Limit(#[from] LimitError),
    /// Sessions are the client's own affair.
    #[error("the client opens and closes its session by itself")]
    SessionOperation,
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    #[test]
    fn texts_say_what_was_tried_for_how_long_and_what_each_endpoint_said() {
        let failure = Failure {
            operation: "put",
            cause: Cause::DeadlineRefused(Refusal::Busy),
            attempts: 3,
            lasted: Duration::from_millis(5012),
            endpoints: vec![
                ("a:1".into(), "connection refused".into()),
                ("b:1".into(), "this replica is not the master".into()),
            ],
        };
        expect!["put did not happen: no success by the deadline, last refusal: busy: a queue is full (sent 3 times in 5.0s); a:1: connection refused, b:1: this replica is not the master"]
            .assert_eq(&Error::DidNotHappen(Box::new(failure.clone())).to_string());
        let failure = Failure { cause: Cause::Deadline, attempts: 1, ..failure };
        expect!["it is unknown whether put happened: no answer by the deadline (sent 1 time in 5.0s); a:1: connection refused, b:1: this replica is not the master"]
            .assert_eq(&Error::Unknown(Box::new(failure)).to_string());
    }
}
