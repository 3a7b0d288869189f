//! Which transitions of the protocol's machines were ever taken.
//!
//! A machine counts each of its transitions under a name; the counts of all seeds are merged here. Names that no run has
//! taken are listed, each with the reason why that is right, or with none: then a fault is missing in the simulator.

use std::collections::BTreeMap;

use synod_node::engine::Engine;

/// Why a transition is not expected to be taken here.
pub const REASONS: &[(&str, &str)] = &[];

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

    /// How many transitions there are, and how many of them were taken.
    pub fn taken(&self) -> (usize, usize) {
        (self.0.len(), self.0.values().filter(|count| **count > 0).count())
    }

    /// Those never taken, each with its reason if it has one.
    pub fn never<'a>(
        &'a self,
        reasons: &'a [(&'a str, &'a str)],
    ) -> impl Iterator<Item = (&'a str, Option<&'a str>)> + 'a {
        self.0.iter().filter(|(_, count)| **count == 0).map(move |(name, _)| {
            let reason = reasons.iter().find(|(named, _)| named == name).map(|(_, reason)| *reason);
            (name.as_str(), reason)
        })
    }

    /// Reasons for transitions that were taken after all, or that do not exist: the table is to be mended.
    pub fn stale<'a>(&'a self, reasons: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a str> + 'a {
        let known = !self.0.is_empty();
        reasons.iter().map(|(name, _)| *name).filter(move |name| known && self.0.get(*name) != Some(&0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_never_taken_is_listed_with_its_reason() {
        let row = |name: &str, count| (name.to_owned(), count);
        let mut coverage = Coverage::default();
        coverage.merge([row("a", 0), row("b", 2), row("c", 0)]);
        let mut other = Coverage::default();
        other.merge([row("a", 1), row("c", 0), row("d", 0)]);
        coverage.add(other);
        assert_eq!(coverage.taken(), (4, 2));
        let reasons = [("c", "needs a snapshot"), ("b", "wrong"), ("gone", "renamed")];
        let never: Vec<_> = coverage.never(&reasons).collect();
        assert_eq!(never, [("c", Some("needs a snapshot")), ("d", None)]);
        assert_eq!(coverage.stale(&reasons).collect::<Vec<_>>(), ["b", "gone"]);
    }
}
