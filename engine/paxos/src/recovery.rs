//! What a log says: the protocol's state, and the batches to apply again.
//!
//! What is known to be chosen is in the records themselves. Each acceptance says how far its writer knew then, and by then
//! the log held every value up to there; a chosen record is of a slot all of whose predecessors were known; and a hard state
//! was written when the change of the members that it knows of had been applied. So batches are handed out as soon as a
//! later record covers them, and what is left at the end is undecided.
//!
//! The last record of a slot is the one that counts: ballots at a slot only rise, and a chosen value is final.
//!
//! **Parts of the log may be lost** (rule L5). What a hole says of itself is kept: its slots, the highest ballot, what was
//! promised. Of a hole of several frames that is not all known, but there are bounds:
//!   - a slot that is applied by then was chosen before, and nothing is accepted at it any more: the hole holds nothing new of it;
//!   - the frame behind it repeats the highest slot that the log had by then;
//!   - whoever accepts promises first, so no ballot is above what was promised at the hole's end, which the next frame repeats.
//!
//! A slot there that has a value at the hole's ballot or above has lost nothing: one ballot proposes one value, and what was
//! appended after the hole came after it. Any other is told as lost. Where such a slot is known to be chosen, applying stops: the
//! replica starts there, tells that more is chosen, and fetches it as any laggard does. The members are those of the last slot
//! applied; a change in the hole comes with what is fetched (P6).
//!
//! Values behind the hole are kept as far as a promise reports them, twice the horizon; those before are known to be chosen.
//!
//! A snapshot comes first, if there is one: what it holds is applied, and records of its slots are passed over. The log may end
//! below it (rule L6), because what is chosen may run ahead of the own disk, or because the snapshot is another replica's and was
//! installed. It may not begin above it: then something is missing that was acknowledged.

use std::collections::BTreeSet;

use crate::batch::Batch;
use crate::effect::{HardState, Record, Recovered, SnapshotHandle};
use crate::message::LostSlots;
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
    /// All up to here, above what is applied, is chosen and was passed over: its values are not kept.
    dropped: Slot,
    /// Slots whose value was read before a hole that may have held another one, chosen and told by others: a chosen record has no
    /// ballot that would show in what is known of the hole.
    doubtful: BTreeSet<Slot>,
    /// Holes before the first hard state.
    early: Vec<Loss>,
}

/// What is known of a part of the log that is lost, from what follows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Loss {
    /// The lowest and the highest slot of the records that are missing, if that is known; the second below the first if none
    /// had a slot.
    pub slots: Option<(Slot, Slot)>,
    /// Of records with a slot: the highest ballot.
    pub ballot: Ballot,
    /// What was promised at the end of the missing part.
    pub promised: Ballot,
    /// The highest slot of the log up to there: none that is missing is above it.
    pub highest: Slot,
    /// The incarnation as of the end of what follows; none: the replica rejoins.
    pub incarnation: Incarnation,
    /// All up to here may be gone from the log, says what follows.
    pub cut: Slot,
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
        Self {
            snapshot,
            snapshot_slot,
            found: None,
            known: Slot::NONE,
            dropped: Slot::NONE,
            doubtful: BTreeSet::new(),
            early: Vec::new(),
        }
    }

    /// Records are missing here. Gives the slots that they may have been about; none if the second is below the first. What the log
    /// has of these need not be what was chosen, whatever a snapshot holds.
    pub fn lose(&mut self, loss: Loss) -> Result<(Slot, Slot), RecoveryError> {
        if self.found.is_none() {
            match self.snapshot.take() {
                // Who the members were at first, a later hard state may say; until then there is nothing to apply.
                None => {
                    self.early.push(loss);
                    return Ok(loss.slots.unwrap_or((Slot::NONE.next(), loss.highest)));
                }
                Some(SnapshotHandle { slot, ballot: _, configurations }) => {
                    let recovered = Recovered { chosen: slot, ..Recovered::of(configurations) };
                    self.found = Some((loss.incarnation, recovered));
                }
            }
        }
        let (_, recovered) = self.found.as_ref().expect("it was made just now, or there before");
        let (first, last) = loss.slots.unwrap_or((Slot::NONE.next(), loss.highest));
        // What is applied was chosen before.
        let first = first.max(recovered.chosen.next());
        let (incarnation, recovered) = self.found.as_mut().expect("as before");
        recovered.holes += 1;
        // Not the highest one seen: whoever has begun to rejoin has none, whatever life was before (P11; seed 539).
        *incarnation = match crate::planted!(P11HoleEndsRejoin) {
            true => loss.incarnation.max(Incarnation::FIRST),
            false => loss.incarnation,
        };
        recovered.promised = recovered.promised.max(loss.promised).max(loss.ballot);
        recovered.cut_at(loss.cut)?;
        let is_in_it = |slot: &&Slot| first <= **slot && **slot <= last;
        self.doubtful.extend(recovered.accepted.keys().filter(is_in_it));
        if first <= last {
            let ballot = if loss.slots.is_some() { loss.ballot } else { loss.promised };
            recovered.lose(LostSlots { first, last, ballot });
        }
        Ok(loss.slots.unwrap_or((self.known.next(), last)))
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
            if !self.early.is_empty() && recovered.configurations.known_chosen() > recovered.chosen {
                // These are not the first members, and who those were is lost.
                return Err(RecoveryError::NoHardState);
            }
            self.found = Some((incarnation, recovered));
            return std::mem::take(&mut self.early).into_iter().try_for_each(|loss| self.lose(loss).map(|_| ()));
        };
        self.known = self.known.max(match &record {
            Record::HardState(state) => state.configurations.known_chosen(),
            Record::Accepted { chosen, .. } => *chosen,
            Record::Chosen { slot, .. } => *slot,
        });
        if let Record::Accepted { slot, .. } | Record::Chosen { slot, .. } = &record {
            self.doubtful.remove(slot);
        }
        let gone = Gone { dropped: self.dropped, doubtful: &self.doubtful };
        match record {
            Record::HardState(state) => {
                recovered.promised = recovered.promised.max(state.promised);
                recovered.cut_at(state.cut)?;
                advance(recovered, state.configurations.known_chosen(), &gone, &mut apply)?;
                *incarnation = state.incarnation;
                recovered.vector = state.vector;
            }
            Record::Accepted { slot, ballot, chosen, batch } => {
                recovered.promised = recovered.promised.max(ballot);
                // First: `chosen` was known when this was written, so it speaks of the records before.
                advance(recovered, chosen, &gone, &mut apply)?;
                note(recovered, slot, ballot, batch);
            }
            Record::Chosen { slot, batch } => {
                advance(recovered, slot.before(), &gone, &mut apply)?;
                if slot == recovered.chosen.next() {
                    recovered.accepted.remove(&slot);
                    take_chosen(recovered, slot, &batch, &mut apply);
                } else if slot > recovered.chosen {
                    // A hole keeps it from being applied, and it is no acceptance to tell of: that it is chosen is.
                    recovered.accepted = recovered.accepted.split_off(&slot.next());
                    self.dropped = self.dropped.max(slot);
                }
            }
        }
        self.drop_passed_over();
        Ok(())
    }

    /// Behind a hole at which applying has stopped, only what a promise reports is kept: what is further back is chosen, for
    /// nothing is accepted that far ahead of what is (P5).
    fn drop_passed_over(&mut self) {
        let Some((_, recovered)) = &mut self.found else { return };
        let window = 2 * recovered.configurations.current.horizon();
        let highest = recovered.accepted.last_key_value().map_or(0, |(slot, _)| slot.0);
        let upto = Slot(self.known.0.min(highest.saturating_sub(window)));
        if recovered.chosen < upto && self.dropped < upto {
            recovered.accepted = recovered.accepted.split_off(&upto.next());
            self.dropped = upto;
        }
    }

    /// Which life of the durable state it is, and what a replica starts from. `None`: the log never began.
    pub fn finish(self) -> Option<(Incarnation, Recovered)> {
        let (incarnation, mut recovered) = self.found?;
        recovered.lost_state |= incarnation == Incarnation::NONE;
        let chosen = recovered.chosen;
        recovered.known = chosen.max(self.dropped);
        recovered.lost.retain(|lost| lost.last > chosen);
        recovered.lost.iter_mut().for_each(|lost| lost.first = lost.first.max(chosen.next()));
        // A log that ends below the snapshot (L6) may have values that were accepted and not chosen, where it would otherwise
        // have what was chosen last. Whether it has cannot be told from a snapshot that was installed a moment before the crash.
        recovered.passed_by = if self.known < self.snapshot_slot { self.snapshot_slot } else { recovered.cut };
        Some((incarnation, recovered))
    }
}

impl SnapshotHandle {
    /// Where a replica goes on whose log is sound, and whose database is lost with all that the log was cut behind: all that its
    /// last hard state knows to be chosen is passed over, for a database of another replica's is to bring it. Whoever starts so
    /// must be in quarantine until then: it has applied nothing. Promises and acceptances are in the log, and stay what they are
    /// (P2: every segment repeats the hard state), so it votes as it would have.
    pub fn of_lost(last: &HardState) -> Self {
        let configurations = last.configurations.clone();
        Self { slot: last.cut.max(configurations.known_chosen()), ballot: Ballot::NONE, configurations }
    }
}

impl Recovered {
    /// A snapshot has all up to here, says the log. Ours has, or what came before is lost.
    fn cut_at(&mut self, cut: Slot) -> Result<(), RecoveryError> {
        self.cut = self.cut.max(cut);
        if cut > self.chosen { Err(RecoveryError::Cut { cut, snapshot: self.chosen }) } else { Ok(()) }
    }

    /// More may have been accepted than is here. Too many ranges become one.
    fn lose(&mut self, lost: LostSlots) {
        let chosen = self.chosen;
        self.lost.retain(|lost| lost.last > chosen);
        self.lost.push(lost);
        if self.lost.len() > Self::LOST_MAX {
            let all = self.lost.drain(..).reduce(|all, lost| LostSlots {
                first: all.first.min(lost.first),
                last: all.last.max(lost.last),
                ballot: all.ballot.max(lost.ballot),
            });
            self.lost.extend(all);
        }
    }

    /// Whether something may be missing at this slot beside a value at `ballot`.
    fn has_lost(&self, slot: Slot, ballot: Option<Ballot>) -> bool {
        self.lost.iter().any(|lost| lost.first <= slot && slot <= lost.last && Some(lost.ballot) > ballot)
    }
}

fn note(recovered: &mut Recovered, slot: Slot, ballot: Ballot, batch: Batch) {
    if slot > recovered.chosen {
        recovered.accepted.insert(slot, (ballot, batch));
    }
}

/// What is not to be had from this log, though it is chosen.
struct Gone<'a> {
    dropped: Slot,
    doubtful: &'a BTreeSet<Slot>,
}

impl Gone<'_> {
    fn has(&self, slot: Slot, held: Option<Ballot>) -> bool {
        (held.is_none() && slot <= self.dropped) || self.doubtful.contains(&slot)
    }
}

/// Applies up to what is chosen, or up to where a value is lost.
fn advance(
    recovered: &mut Recovered,
    chosen: Slot,
    gone: &Gone<'_>,
    apply: &mut impl FnMut(Slot, &Batch),
) -> Result<(), RecoveryError> {
    while recovered.chosen < chosen {
        let slot = recovered.chosen.next();
        let held = recovered.accepted.get(&slot).map(|(ballot, _)| *ballot);
        if recovered.has_lost(slot, held) || gone.has(slot, held) {
            return Ok(());
        }
        let (_, batch) = recovered.accepted.remove(&slot).ok_or(RecoveryError::Gap { chosen, missing: slot })?;
        take_chosen(recovered, slot, &batch, apply);
    }
    Ok(())
}

fn take_chosen(recovered: &mut Recovered, slot: Slot, batch: &Batch, apply: &mut impl FnMut(Slot, &Batch)) {
    apply(slot, batch);
    recovered.configurations.applied(slot, batch);
    recovered.chosen = slot;
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
        assert_eq!(error, Err(RecoveryError::Gap { chosen: Slot(2), missing: Slot(1) }));
    }

    const HIGHER: Ballot = Ballot { round: 2, ..BALLOT };

    fn value(slot: u64) -> Batch {
        let mut builder = crate::batch::BatchBuilder::default();
        builder.push(&slot.to_le_bytes());
        builder.take()
    }

    fn at(slot: u64, ballot: Ballot, chosen: u64) -> Record {
        Record::Accepted { slot: Slot(slot), ballot, chosen: Slot(chosen), batch: value(slot) }
    }

    fn loss(slots: Option<(u64, u64)>, ballot: Ballot) -> Loss {
        let slots = slots.map(|(first, last)| (Slot(first), Slot(last)));
        let (incarnation, cut) = (Incarnation(1), Slot::NONE);
        Loss { slots, ballot, promised: ballot, highest: Slot(7), incarnation, cut }
    }

    /// A cell of one member, a horizon of 16; the hole comes before the record with this place.
    fn with_hole(before: usize, loss: Loss, records: &[Record]) -> (Vec<u64>, Recovered) {
        let first = Configurations::first(Configuration::of(&[1]));
        let mut recovery = Recovery::new(None);
        recovery.take(hard_state(&first), |_, _| {}).unwrap();
        let mut applied = Vec::new();
        for (place, record) in records.iter().enumerate() {
            if place == before {
                recovery.lose(loss).unwrap();
            }
            recovery
                .take(record.clone(), |slot, batch| {
                    assert_eq!(*batch, value(slot.0), "never another value");
                    applied.push(slot.0);
                })
                .unwrap();
        }
        (applied, recovery.finish().unwrap().1)
    }

    #[test]
    fn a_chosen_slot_in_a_hole_stops_applying_and_the_rest_is_told() {
        let records: Vec<Record> = [1, 2, 4, 5].map(|slot| at(slot, BALLOT, slot - 1)).into();
        let (applied, after) = with_hole(2, loss(Some((3, 3)), BALLOT), &records);
        assert_eq!((applied, after.chosen, after.known), (vec![1, 2], Slot(2), Slot(2)));
        assert_eq!(after.accepted.keys().copied().collect::<Vec<_>>(), [Slot(4), Slot(5)]);
        assert_eq!(after.lost, [LostSlots { first: Slot(3), last: Slot(3), ballot: BALLOT }]);
        // It came back by catch-up, and was appended again.
        let again = [records, vec![Record::Chosen { slot: Slot(3), batch: value(3) }, at(6, BALLOT, 5)]].concat();
        let (applied, after) = with_hole(2, loss(Some((3, 3)), BALLOT), &again);
        assert_eq!((applied, after.chosen, after.lost), (vec![1, 2, 3, 4, 5], Slot(5), vec![]));
    }

    #[test]
    fn an_older_value_is_not_taken_for_the_one_that_was_lost() {
        let records = [at(1, BALLOT, 0), at(2, HIGHER, 1)];
        let (applied, after) = with_hole(1, loss(Some((1, 1)), HIGHER), &records);
        assert_eq!((applied, after.chosen), (vec![], Slot(0)));
        assert_eq!(after.accepted[&Slot(1)].0, BALLOT, "it may be told as it is, beside the loss");
        // What was accepted again under the same ballot, or a later one, is what was lost, or has replaced it.
        let (applied, _) =
            with_hole(1, loss(Some((1, 1)), HIGHER), &[at(1, BALLOT, 0), at(1, HIGHER, 0), at(2, HIGHER, 1)]);
        assert_eq!(applied, [1]);
    }

    #[test]
    fn what_nobody_describes_is_bounded_by_the_highest_slot_of_the_log() {
        let (applied, after) =
            with_hole(2, loss(None, HIGHER), &[at(1, BALLOT, 0), at(4, BALLOT, 1), at(5, HIGHER, 4)]);
        assert_eq!((applied, after.promised), (vec![1], HIGHER));
        assert_eq!(after.lost, [LostSlots { first: Slot(2), last: Slot(7), ballot: HIGHER }]);
    }

    /// Simulator seed 539: a hole in the log of a replica that rejoined ended that, and it voted as the life that had lost all.
    #[test]
    fn a_hole_does_not_end_a_rejoin() {
        let rejoins = |incarnation| {
            let mut recovery = Recovery::new(None);
            recovery.take(hard_state(&Configurations::first(Configuration::of(&[1]))), |_, _| {}).unwrap();
            recovery.lose(Loss { incarnation, ..loss(None, HIGHER) }).unwrap();
            let (found, after) = recovery.finish().unwrap();
            assert_eq!(found, incarnation);
            after.lost_state
        };
        assert!(rejoins(Incarnation::NONE));
        assert!(!rejoins(Incarnation(2)));
    }

    #[test]
    fn behind_a_deep_hole_only_a_window_is_kept() {
        let window = 2 * Configuration::of(&[1]).horizon();
        let records: Vec<Record> = (1..300).filter(|slot| *slot != 5).map(|slot| at(slot, BALLOT, slot - 1)).collect();
        let (applied, after) = with_hole(4, loss(Some((5, 5)), BALLOT), &records);
        assert_eq!((applied.len(), after.chosen, after.known), (4, Slot(4), Slot(299 - window)));
        assert_eq!(after.accepted.len() as u64, window);
    }

    #[test]
    fn the_first_hard_state_may_be_lost_while_another_names_the_first_members() {
        let (first, pending, _) = change();
        let start = |hard_state: Record| {
            let mut recovery = Recovery::new(None);
            recovery.lose(loss(Some((1, 0)), BALLOT)).unwrap();
            recovery.take(hard_state, |_, _| {})
        };
        assert_eq!(start(hard_state(&first)), Ok(()));
        assert_eq!(start(hard_state(&pending)), Err(RecoveryError::NoHardState));
    }

    /// Simulator seed 1896: the value that others had chosen was told here and lost, and what had been accepted before, at a lower
    /// ballot, was applied in its place.
    #[test]
    fn what_was_accepted_before_a_chosen_value_was_lost_is_not_applied() {
        let records = [at(1, BALLOT, 0), at(2, BALLOT, 1)];
        let (applied, after) = with_hole(1, loss(Some((1, 1)), Ballot::NONE), &records);
        assert_eq!((applied, after.chosen), (vec![], Slot(0)));
    }
}
