//! What checkers say: that all is well, or what is not.

use super::trace::shortened;

/// Which checker saw it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Checker {
    /// Two values at one slot, or what leads there.
    Agreement,
    /// A promise that was taken back.
    Promises,
    /// Told before it was durable.
    DurableBeforeTold,
    /// A client was told what the log does not say.
    Answers,
    /// Acknowledged and gone, or there though it did not happen.
    AcknowledgedWrites,
    /// One write, applied twice.
    AtMostOnce,
    /// A database that is not what the log makes of it, slot by slot.
    InOrderApply,
    /// A command of one mastership is applied in another.
    Epochs,
    /// A database that differs goes on, or one that does not is given up; one in quarantine is used.
    Divergence,
    /// Two replicas may answer alone.
    DisjointLeases,
    /// A replica coordinates on when its lease has run out.
    GivesUp,
    /// What clients saw fits no order.
    Linearizability,
    /// A read at a revision, or at least as new as one, that saw something else.
    BoundedReads,
    /// A crash after which the log does not open, or lacks what was durable; a start that should have been refused.
    Recovery,
    /// Faults have stopped, and still it does not go on.
    Liveness,
    /// Two runs of one seed differ.
    Determinism,
    /// The replica's own: an assertion was broken, and the process ended.
    Assertion,
}

impl Checker {
    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Checker::Agreement => "agreement",
            Checker::Promises => "promises",
            Checker::DurableBeforeTold => "durable before told",
            Checker::Answers => "answers",
            Checker::AcknowledgedWrites => "acknowledged writes",
            Checker::AtMostOnce => "at most once",
            Checker::InOrderApply => "in-order apply",
            Checker::Epochs => "epochs",
            Checker::Divergence => "divergence",
            Checker::DisjointLeases => "disjoint leases",
            Checker::GivesUp => "gives up in time",
            Checker::Linearizability => "linearizability",
            Checker::BoundedReads => "reads at a revision",
            Checker::Recovery => "recovery",
            Checker::Liveness => "liveness",
            Checker::Determinism => "determinism",
            Checker::Assertion => "assertion",
        }
    }
}

/// Something that must never happen, and did.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Who saw it.
    pub checker: Checker,
    /// What, in words.
    pub what: String,
}

/// What a checker makes of an event.
pub(crate) type Verdict = Result<(), Violation>;

pub(crate) fn violation<T>(checker: Checker, what: String) -> Result<T, Violation> {
    // Two whole batches may be part of it.
    Err(Violation { checker, what: shortened(&what, 800).to_owned() })
}
