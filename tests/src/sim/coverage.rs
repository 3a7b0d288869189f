//! Which transitions of the protocol's machines were ever taken.
//!
//! A machine counts each of its transitions under a name; the counts of all seeds are merged here. Names that no run has
//! taken are listed, each with the reason why that is right, or with none: then a fault is missing in the simulator.

use std::collections::BTreeMap;

use synod_node::engine::Engine;

/// Why a transition is not expected to be taken here. What is only rare may be taken in a large run.
pub const REASONS: &[(&str, &str)] = &[
    (
        "acceptor: Proposed in Full, is_bound (refuse: a lease is granted to another)",
        "rare: candidates probe first, and who is bound says no; with TakeOver the lease is released",
    ),
    (
        "coordinator: BackedUp in CatchingUp (refuse: there is nothing to give up)",
        "rare: a candidate's disk has just answered, and while it is far behind it takes no entries",
    ),
    (
        "coordinator: Progressed in Boosting (refuse: nothing waits for it)",
        "nothing is open while it boosts, and who is told of more steps down first",
    ),
    (
        "coordinator: Progressed in CatchingUp, is_no_voter -> Idle",
        "rare: what a candidate catches up on holds its own removal, a horizon back",
    ),
    (
        "coordinator: Progressed in HandingOver, is_no_voter -> Idle",
        "rare: its own removal, begun by another, comes into force while it hands over",
    ),
    (
        "coordinator: Progressed in Proposing, is_no_voter -> Idle",
        "rare: its own removal, begun by another, comes by catch-up while it asks for promises",
    ),
    (
        "coordinator: Promise in Boosting, shows_more -> Idle",
        "rare: another has led, and its grants are over, before the propose of an older lease's holder arrives",
    ),
    (
        "coordinator: Rejected in Boosting -> Idle",
        "rare: who has promised more says so to the master's accepts and commits first, and the boost goes above it",
    ),
    (
        "coordinator: Told in Boosting, is_contradicted -> Idle",
        "rare: superseded, it hears of a chosen value before it hears of whoever chose it, or of the time",
    ),
    (
        "coordinator: Told in HandingOver, is_contradicted -> Idle",
        "rare: superseded, it hears of a chosen value before it hears of whoever chose it, or of the time",
    ),
    (
        "coordinator: Told in Leading, is_contradicted -> Idle",
        "rare: superseded, it hears of a chosen value before it hears of whoever chose it, or of the time",
    ),
    ("coordinator: Rejected in CatchingUp, outbids_candidacy -> Idle", "rare: a majority had just promised"),
    (
        "grant: Granted in Bound, is_released (refuse: that ballot gave its lease back, and never holds one again)",
        "rare: an accept that a release has overtaken, and the next master's accepts too",
    ),
    (
        "index: Wanted in Asking -> Asking",
        "the node begins a round when the last is over, or when nobody waits for it any more",
    ),
    (
        "membership: Decided in Settled, is_for_another (refuse: made for a configuration that is gone: void)",
        "whoever proposes a change has applied all but a horizon of slots (P5): the one that ended its configuration is pending still",
    ),
    (
        "coordinator: Heard in HandingOver -> Idle",
        "rare: superseded while it hands over, it hears of the next coordinator before anybody rejects it",
    ),
    (
        "coordinator: Lost in Boosting -> Idle",
        "rare: a majority told it after its start that it lacks nothing (P13), and one of the others, heard late, knows more",
    ),
    (
        "coordinator: Lost in CatchingUp -> Idle",
        "rare: a majority told it after its start that it lacks nothing (P13), and one of the others, heard late, knows more",
    ),
    (
        "coordinator: Lost in HandingOver -> Idle",
        "rare: a majority told it after its start that it lacks nothing (P13), and one of the others, heard late, knows more",
    ),
    (
        "coordinator: Lost in Leading -> Idle",
        "rare: a majority told it after its start that it lacks nothing (P13), and one of the others, heard late, knows more",
    ),
    (
        "coordinator: Lost in Probing -> Idle",
        "rare: a majority told it after its start that it lacks nothing (P13), and one of the others, heard late, knows more",
    ),
    (
        "coordinator: Lost in Proposing -> Idle",
        "rare: a majority told it after its start that it lacks nothing (P13), and one of the others, heard late, knows more",
    ),
    ("coordinator: Rejected in CatchingUp -> CatchingUp", "rare: a majority had just promised"),
    (
        "coordinator: Rejected in HandingOver, holds_lease -> HandingOver",
        "rare: who rejects has promised more, which it may not while the lease holds, or the accept is from before it rejoined",
    ),
    (
        "coordinator: Superseded in CatchingUp -> CatchingUp",
        "rare: it hears of another's new life in the moment between its promises and its first proposal",
    ),
    (
        "coordinator: Superseded in HandingOver -> HandingOver",
        "rare: it hears of another's new life in the moment of handing over",
    ),
    (
        "membership: Installed in Changing, brings_a_change -> Changing",
        "rare: a laggard for whom one change is under way is given a snapshot from the moments in which the next one is",
    ),
    (
        "standing: Answered in Learning (refuse: late: a majority answered without it)",
        "where directories are lost here the members stay: who has rejoined votes",
    ),
    (
        "standing: Answered in Outside (refuse: late: a majority answered without it)",
        "where directories are lost here the members stay: who has rejoined votes",
    ),
    (
        "standing: Heard in Rejoining (refuse: it knows better)",
        "rare: an answer that was on its way when another one knew more",
    ),
    (
        "standing: Lost in Learning -> Rejoining",
        "where older copies are put back here the members stay: who starts votes",
    ),
    (
        "standing: Lost in Outside -> Rejoining",
        "where older copies are put back here the members stay: who starts votes",
    ),
    (
        "standing: Lost in Rejoining (refuse: it is known already)",
        "rare: once it rejoins it asks for its position no more, and who had answered before would have been the one to tell it",
    ),
    (
        "standing: Lost in Voting -> Rejoining",
        "rare: a majority told it after its start that it lacks nothing (P13), and one of the others, heard late, knows more",
    ),
];

/// How the reason of a transition begins that can be taken.
const RARE: &str = "rare: ";

/// What counts its transitions.
pub(crate) trait Machines {
    /// Each transition that there is, as "machine: event in state, guard", and how often it was taken in this life.
    fn transitions(&self) -> Vec<(String, u64)>;
}

impl Machines for Engine {
    fn transitions(&self) -> Vec<(String, u64)> {
        self.replica().counts().rows().map(|(row, count)| (row.to_string(), count)).collect()
    }
}

/// Whether a row says that something must never happen.
fn is_assertion(name: &str) -> bool {
    name.contains("(never: ")
}

/// Counts of transitions, by name.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Coverage(BTreeMap<String, u64>);

impl Coverage {
    /// Adds what a machine has counted: all its transitions, those never taken too.
    pub fn merge(&mut self, rows: impl IntoIterator<Item = (String, u64)>) {
        for (name, count) in rows {
            *self.0.entry(name).or_default() += count;
        }
    }

    /// Adds those of another run.
    pub fn add(&mut self, other: Coverage) {
        self.merge(other.0);
    }

    /// How many transitions there are, and how many of them were taken. Assertions are none.
    pub fn taken(&self) -> (usize, usize) {
        let transitions = || self.0.iter().filter(|(name, _)| !is_assertion(name));
        (transitions().count(), transitions().filter(|(_, count)| **count > 0).count())
    }

    /// How many rows say that something must never happen. Had it happened, the process would have ended.
    pub fn assertions(&self) -> usize {
        self.0.keys().filter(|name| is_assertion(name)).count()
    }

    /// Those never taken, each with its reason if it has one.
    pub fn never<'a>(
        &'a self,
        reasons: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a str, Option<&'a str>)> + 'a {
        self.0.iter().filter(|(name, count)| **count == 0 && !is_assertion(name)).map(move |(name, _)| {
            let reason = reasons.iter().find(|(named, _)| named == name).map(|(_, reason)| *reason);
            (name.as_str(), reason)
        })
    }

    /// Reasons for transitions that were taken after all, or that do not exist: the table is to be mended.
    pub fn stale<'a>(&'a self, reasons: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a str> + 'a {
        let known = !self.0.is_empty();
        let is_stale = move |(name, reason): &(&str, &str)| match self.0.get(*name) {
            Some(0) => false,
            Some(_) => !reason.starts_with(RARE),
            None => known,
        };
        reasons.iter().copied().filter(is_stale).map(|(name, _)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_taken_is_listed_with_its_reason() {
        let row = |name: &str, count| (name.to_owned(), count);
        let mut coverage = Coverage::default();
        coverage.merge([row("a", 0), row("b", 2), row("c", 0), row("e in f (never: it would be wrong)", 0)]);
        let mut other = Coverage::default();
        other.merge([row("a", 1), row("c", 0), row("d", 0)]);
        coverage.add(other);
        assert_eq!((coverage.taken(), coverage.assertions()), ((4, 2), 1));
        let reasons = [("c", "needs a snapshot"), ("b", "wrong"), ("gone", "renamed"), ("a", "rare: b comes first")];
        let never: Vec<_> = coverage.never(&reasons).collect();
        assert_eq!(never, [("c", Some("needs a snapshot")), ("d", None)]);
        assert_eq!(coverage.stale(&reasons).collect::<Vec<_>>(), ["b", "gone"]);
    }
}
