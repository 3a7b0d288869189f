//! What a log says: the protocol's state, and the batches to apply again.
//!
//! What is known to be chosen is in the records themselves. Each acceptance says how far its writer knew then, and by then
//! the log held every value up to there; a chosen record is of a slot all of whose predecessors were known; and a hard state
//! was written when the change of the members that it knows of had been applied. So batches are handed out as soon as a
//! later record covers them, and what is left at the end is undecided.
//!
//! The last record of a slot is the one that counts: ballots at a slot only rise, and a chosen value is final.
//!
//! A snapshot comes first, if there is one: what it holds is applied, and records of its slots are passed over. The log may end
//! below it (rule L6), because what is chosen may run ahead of the own disk, or because the snapshot is another replica's and was
//! installed. It may not begin above it: then something is missing that was acknowledged.

use crate::batch::Batch;
use crate::effect::{HardState, Record, Recovered, SnapshotHandle};
use crate::types::{Ballot, Incarnation, Slot};

/// Rebuilds a replica's state from its records, in the order in which they were appended.
#[derive(Debug)]
pub struct Recovery {
    snapshot: Option<SnapshotHandle>,
    snapshot_slot: Slot,
    /// From the first hard state on.
    found: Option<(Incarnation, Recovered)>,
    /// All up to here the records themselves know to be chosen.
    known: Slot,
}

/// Why records are no log of a replica's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecoveryError {
    /// A record came before the first hard state.
    NoHardState,
    /// All up to `chosen` is said to be chosen, and there is nothing for `missing`.
    Gap {
        /// What should be there.
        chosen: Slot,
        /// What is not.
        missing: Slot,
    },
    /// The log was cut above what the snapshot holds.
    Cut {
        /// All up to here may be gone from the log.
        cut: Slot,
        /// All up to here is in the snapshot; [`Slot::NONE`] without one.
        snapshot: Slot,
    },
}

impl std::fmt::Display for RecoveryError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoHardState => write!(f, "the log does not begin with a hard state"),
            Self::Gap { chosen, missing } => {
                write!(f, "the log says that all up to slot {chosen} is chosen, but holds nothing for slot {missing}")
            }
            Self::Cut { cut, snapshot: Slot::NONE } => {
                write!(
                    f,
                    "the log was cut at slot {cut}, because a snapshot held what came before, and there is no snapshot"
                )
            }
            Self::Cut { cut, snapshot } => {
                write!(f, "the log was cut at slot {cut}, and the snapshot is older: it ends at slot {snapshot}")
            }
        }
    }
}

impl std::error::Error for RecoveryError {}

impl Recovery {
    /// Goes on from this snapshot, or from the empty state.
    pub fn new(snapshot: Option<SnapshotHandle>) -> Self {
        let snapshot_slot = snapshot.as_ref().map_or(Slot::NONE, |snapshot| snapshot.slot);
        Self { snapshot, snapshot_slot, found: None, known: Slot::NONE }
    }

    /// Takes the next record. `apply` is given the batches that are chosen for certain, in order, each once.
    pub fn take(&mut self, record: Record, mut apply: impl FnMut(Slot, &Batch)) -> Result<(), RecoveryError> {
        let Some((incarnation, recovered)) = &mut self.found else {
            let Record::HardState(first) = record else { return Err(RecoveryError::NoHardState) };
            let HardState { promised, incarnation, vector, configurations, cut } = first;
            let mut recovered = match self.snapshot.take() {
                None => Recovered::of(configurations),
                Some(SnapshotHandle { slot, ballot: _, configurations }) => {
                    Recovered { chosen: slot, ..Recovered::of(configurations) }
                }
            };
            recovered.promised = promised;
            recovered.vector = vector;
            recovered.cut_at(cut)?;
            self.found = Some((incarnation, recovered));
            return Ok(());
        };
        self.known = self.known.max(match &record {
            Record::HardState(state) => state.configurations.known_chosen(),
            Record::Accepted { chosen, .. } => *chosen,
            Record::Chosen { slot, .. } => *slot,
        });
        match record {
            Record::HardState(state) => {
                recovered.promised = recovered.promised.max(state.promised);
                recovered.cut_at(state.cut)?;
                advance(recovered, state.configurations.known_chosen(), &mut apply)?;
                *incarnation = state.incarnation;
                recovered.vector = state.vector;
            }
            Record::Accepted { slot, ballot, chosen, batch } => {
                recovered.promised = recovered.promised.max(ballot);
                // First: `chosen` was known when this was written, so it speaks of the records before.
                advance(recovered, chosen, &mut apply)?;
                note(recovered, slot, ballot, batch);
            }
            Record::Chosen { slot, batch } => {
                note(recovered, slot, Ballot::NONE, batch);
                advance(recovered, slot, &mut apply)?;
            }
        }
        Ok(())
    }

    /// Which life of the durable state it is, and what a replica starts from. `None`: the log never began.
    pub fn finish(self) -> Option<(Incarnation, Recovered)> {
        let (incarnation, mut recovered) = self.found?;
        recovered.lost_state |= incarnation == Incarnation::NONE;
        // A log that ends below the snapshot (L6) may have values that were accepted and not chosen, where it would otherwise
        // have what was chosen last. Whether it has cannot be told from a snapshot that was installed a moment before the crash.
        recovered.passed_by = if self.known < self.snapshot_slot { self.snapshot_slot } else { recovered.cut };
        Some((incarnation, recovered))
    }
}

impl Recovered {
    /// A snapshot has all up to here, says the log. Ours has, or what came before is lost.
    fn cut_at(&mut self, cut: Slot) -> Result<(), RecoveryError> {
        self.cut = self.cut.max(cut);
        if cut > self.chosen { Err(RecoveryError::Cut { cut, snapshot: self.chosen }) } else { Ok(()) }
    }
}

fn note(recovered: &mut Recovered, slot: Slot, ballot: Ballot, batch: Batch) {
    if slot > recovered.chosen {
        recovered.accepted.insert(slot, (ballot, batch));
    }
}

fn advance(recovered: &mut Recovered, chosen: Slot, apply: &mut impl FnMut(Slot, &Batch)) -> Result<(), RecoveryError> {
    while recovered.chosen < chosen {
        let slot = recovered.chosen.next();
        let (_, batch) = recovered.accepted.remove(&slot).ok_or(RecoveryError::Gap { chosen, missing: slot })?;
        apply(slot, &batch);
        recovered.configurations.applied(slot, &batch);
        recovered.chosen = slot;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::configuration::Configuration;
    use crate::effect::Configurations;
    use crate::types::ReplicaId;

    const BALLOT: Ballot = Ballot { round: 1, replica: ReplicaId(1), incarnation: Incarnation(1) };

    fn hard_state(configurations: &Configurations) -> Record {
        let (incarnation, configurations) = (Incarnation(1), configurations.clone());
        let vector = crate::lives::CrashVector::default();
        Record::HardState(HardState { promised: BALLOT, incarnation, vector, configurations, cut: Slot::NONE })
    }

    fn accepted(slot: Slot, batch: &Batch) -> Record {
        Record::Accepted { slot, ballot: BALLOT, chosen: Slot::NONE, batch: batch.clone() }
    }

    fn recovered(records: Vec<Record>) -> Recovered {
        let mut recovery = Recovery::new(None);
        for record in records {
            recovery.take(record, |_, _| {}).unwrap();
        }
        recovery.finish().unwrap().1
    }

    fn change() -> (Configurations, Configurations, Batch) {
        let first = Configurations::first(Configuration::of(&[1]));
        let changed = Configuration::of(&[1, 2]);
        let batch = Batch::change(first.since, &changed);
        let mut pending = first.clone();
        pending.applied(Slot(1), &batch);
        (first, pending, batch)
    }

    /// A crash between a change's record and the hard state that it makes once lost the change.
    #[test]
    fn a_change_is_known_by_its_own_record() {
        let (first, pending, batch) = change();
        let after = recovered(vec![hard_state(&first), Record::Chosen { slot: Slot(1), batch }]);
        assert_eq!(after.configurations, pending);
    }

    /// Simulator seed 450 of the planted P8ReadsBeforeOwnSlot: a voter of before knew of the change, and lacked its slot. It
    /// asked the new one for its promise, which did not know yet that it votes, and neither could tell the other.
    #[test]
    fn a_change_that_the_hard_state_knows_of_is_applied() {
        let (first, pending, batch) = change();
        let after = recovered(vec![hard_state(&first), accepted(Slot(1), &batch), hard_state(&pending)]);
        assert_eq!((after.chosen, &after.configurations), (Slot(1), &pending));
    }

    /// Simulator seeds 1051 and 4318: the last slot of the members of before was proposed again with the promises of those
    /// after (P6).
    #[test]
    fn what_governed_before_a_change_came_into_force_is_chosen() {
        let (first, pending, batch) = change();
        let (from, _) = pending.pending.clone().unwrap();
        let mut in_force = pending.clone();
        in_force.applied(from.before(), &Batch::NO_OP);
        let mut records = vec![hard_state(&first), accepted(Slot(1), &batch)];
        records.extend((2..from.0).map(|slot| accepted(Slot(slot), &Batch::NO_OP)));
        records.push(hard_state(&in_force));
        let after = recovered(records);
        assert_eq!((after.chosen, &after.configurations), (from.before(), &in_force));
    }

    #[test]
    fn what_is_missing_is_named() {
        let (first, _, batch) = change();
        let mut recovery = Recovery::new(None);
        assert_eq!(recovery.take(accepted(Slot(1), &batch), |_, _| {}), Err(RecoveryError::NoHardState));
        recovery.take(hard_state(&first), |_, _| {}).unwrap();
        let error = recovery.take(Record::Chosen { slot: Slot(3), batch }, |_, _| {});
        assert_eq!(error, Err(RecoveryError::Gap { chosen: Slot(3), missing: Slot(1) }));
    }
}
