//! What each acceptor's disk holds, and what it has told others.
//!
//! A disk is known from the bytes that were flushed to it, so what it holds here is what a crash in this moment would
//! leave, at the least.
//!
//! | checker | what it says |
//! |---|---|
//! | promises | what a replica has promised, on its disk or to others, it never falls back behind, restarts included; a promise tells all that was accepted |
//! | durable before told | a promise, an acknowledgement, a propose leaves only when a crash would no longer forget it |
//! | recovery | what was durable is found again after a crash, or told as lost where the disk has lost it |

use std::collections::BTreeMap;

use synod_paxos::{AcceptedSlot, Ballot, Incarnation, LostSlots, Record, Recovered, ReplicaId, Slot, Voter};

use super::verdict::{Checker, Verdict, violation};

/// One acceptor.
#[derive(Clone, Default)]
pub(crate) struct Disk {
    /// Its state is lost, or older than what it told others, and no later life of it is on the disk yet (P11).
    lost: bool,
    /// The last hard state says that it rejoins.
    rejoins: bool,
    /// On whose behalf it votes, as of the last hard state.
    voter: Voter,
    /// The last life that it began, whatever it has lost since.
    last_life: Incarnation,
    promised: Option<Ballot>,
    /// The highest ballot accepted, a slot. Slots that are chosen stay: it must not vanish there either.
    accepted: BTreeMap<Slot, Ballot>,
    told: Option<Ballot>,
}

impl Disk {
    /// The next record of the log: it never goes back behind the promise of an earlier one.
    fn take(&mut self, replica: ReplicaId, record: &Record) -> Verdict {
        let (ballot, what) = match record {
            Record::HardState(state) => {
                if state.incarnation > self.voter.incarnation {
                    if state.incarnation <= self.last_life {
                        let (life, last) = (state.incarnation, self.last_life);
                        let what = format!("replica {replica} takes life {life:?}, and has had {last:?} (P11)");
                        return violation(Checker::Promises, what);
                    }
                    (self.lost, self.last_life) = (false, state.incarnation);
                }
                self.rejoins = state.incarnation == Incarnation::NONE;
                // (While it rejoins it keeps the number of the life that is over.)
                let incarnation = state.incarnation.max(self.voter.incarnation);
                self.voter = Voter { incarnation, vector: state.vector.clone() };
                (state.promised, "repeats a promise of")
            }
            // What it adopts may be older than what it promised, and is read again after a crash (seed 12).
            Record::Accepted { slot, ballot, .. } if self.lost || self.rejoins => {
                self.accepted.insert(*slot, *ballot);
                return Ok(());
            }
            Record::Accepted { ballot, .. } => (*ballot, "accepts"),
            Record::Chosen { .. } => return Ok(()),
        };
        if Some(ballot) < self.promised {
            let what = format!("the log of replica {replica} {what} {ballot} behind a promise of {:?}", self.promised);
            return violation(Checker::Promises, what);
        }
        self.promised = Some(ballot);
        if let Record::Accepted { slot, .. } = record {
            self.accepted.insert(*slot, ballot);
        }
        Ok(())
    }
}

/// Whether a loss that is told covers what was accepted there.
fn is_lost(lost: &[LostSlots], slot: Slot, ballot: Ballot) -> bool {
    lost.iter().any(|lost| lost.first <= slot && slot <= lost.last && ballot <= lost.ballot)
}

/// See the module.
pub(crate) struct Acceptors(Vec<Disk>);

impl Acceptors {
    pub(crate) fn new(replicas: u16) -> Acceptors {
        Acceptors((0..replicas).map(|_| Disk::default()).collect())
    }

    fn disk(&mut self, replica: ReplicaId) -> &mut Disk {
        &mut self.0[usize::from(replica.0) - 1]
    }

    /// A record has become durable.
    pub(crate) fn durable(&mut self, replica: ReplicaId, record: &Record) -> Verdict {
        self.disk(replica).take(replica, record)
    }

    /// What a replica found on its disk after a crash, from the first record on: all that was durable, and perhaps what
    /// was written last and not known to be.
    ///
    /// Slots up to `older` may be gone: the older snapshot has them.
    pub(crate) fn recovered(
        &mut self,
        replica: ReplicaId,
        records: &[Record],
        older: Slot,
        protocol: &Recovered,
    ) -> Verdict {
        let disk = self.disk(replica);
        // Only a later life than the one that was lost ends the loss.
        let (lost, voter, last_life) = (disk.lost, disk.voter.clone(), disk.last_life);
        let mut found = Disk { lost, voter, last_life, ..Disk::default() };
        records.iter().try_for_each(|record| found.take(replica, record))?;
        if found.promised.max((protocol.holes > 0).then_some(protocol.promised)) < disk.promised {
            let what = format!(
                "replica {replica} finds the promise {:?} on its disk, where {:?} was durable",
                found.promised, disk.promised
            );
            return violation(Checker::Recovery, what);
        }
        let is_told = |slot: Slot, ballot: Ballot| {
            protocol.holes > 0 && (slot <= protocol.known || is_lost(&protocol.lost, slot, ballot))
        };
        let missing = disk
            .accepted
            .range(older.next()..)
            .find(|(slot, ballot)| found.accepted.get(slot) < Some(*ballot) && !is_told(**slot, **ballot));
        if let Some((slot, ballot)) = missing {
            let what = format!("replica {replica} misses slot {slot}, accepted under {ballot}, which was durable");
            return violation(Checker::Recovery, what);
        }
        // What it has lost it has accepted all the same.
        disk.accepted.retain(|slot, ballot| protocol.holes > 0 && found.accepted.get(slot) < Some(ballot));
        disk.accepted.extend(
            found.accepted.into_iter().filter(|(slot, _)| !disk.accepted.contains_key(slot)).collect::<Vec<_>>(),
        );
        disk.promised = disk.promised.max(found.promised);
        (disk.voter, disk.lost, disk.last_life) = (found.voter, found.lost, found.last_life);
        Ok(())
    }

    /// What is on its disk, to be put back later.
    pub(crate) fn copy(&self, replica: ReplicaId) -> Disk {
        self.0[usize::from(replica.0) - 1].clone()
    }

    /// Its directory is emptied, or an older copy is put back: it must not vote before it has rejoined.
    pub(crate) fn loses(&mut self, replica: ReplicaId, copy: Option<Disk>) {
        let disk = self.disk(replica);
        let last_life = disk.last_life;
        *disk = Disk { lost: true, told: None, last_life, ..copy.unwrap_or_default() };
    }

    /// Whether it has lost state and not rejoined.
    pub(crate) fn is_lost(&self, replica: ReplicaId) -> bool {
        self.0[usize::from(replica.0) - 1].lost
    }

    /// On whose behalf it votes, as its disk has it.
    pub(crate) fn voter(&self, replica: ReplicaId) -> &Voter {
        &self.0[usize::from(replica.0) - 1].voter
    }

    /// What a replica starts from: all that it has told others, and all that it has accepted and must tell.
    pub(crate) fn holds(&self, replica: ReplicaId, recovered: &Recovered) -> Verdict {
        let disk = &self.0[usize::from(replica.0) - 1];
        if disk.told > Some(recovered.promised) {
            let promised = recovered.promised;
            let what = format!("replica {replica} has promised {promised}, and has told others of {:?}", disk.told);
            return violation(Checker::Promises, what);
        }
        for (slot, ballot) in disk.accepted.range(recovered.chosen.next()..) {
            let held = recovered.accepted.get(slot).map(|(ballot, _)| *ballot);
            if held < Some(*ballot) && *slot > recovered.known && !is_lost(&recovered.lost, *slot, *ballot) {
                let what = format!("replica {replica} starts with {held:?} at slot {slot}, and had accepted {ballot}");
                return violation(Checker::Promises, what);
            }
        }
        Ok(())
    }

    /// A propose leaves.
    pub(crate) fn proposes(&mut self, from: ReplicaId, ballot: Ballot) -> Verdict {
        let promised = self.disk(from).promised;
        if promised < Some(ballot) {
            let what = format!("replica {from} proposes ballot {ballot}, its disk has promised {promised:?} only (P1)");
            return violation(Checker::DurableBeforeTold, what);
        }
        Ok(())
    }

    /// An acknowledgement leaves.
    pub(crate) fn acknowledges(&mut self, from: ReplicaId, ballot: Ballot, slot: Slot) -> Verdict {
        let disk = self.disk(from);
        if disk.accepted.get(&slot) < Some(&ballot) {
            let what =
                format!("replica {from} acknowledges slot {slot} under ballot {ballot}, which its disk does not have");
            return violation(Checker::DurableBeforeTold, what);
        }
        self.tells(from, ballot, "acknowledges")
    }

    /// A promise leaves.
    pub(crate) fn promises(
        &mut self,
        from: ReplicaId,
        ballot: Ballot,
        chosen: Slot,
        reported: &[AcceptedSlot],
        lost: &[LostSlots],
    ) -> Verdict {
        let disk = self.disk(from);
        if disk.promised < Some(ballot) {
            let what = format!("replica {from} promises ballot {ballot}, its disk has promised {:?}", disk.promised);
            return violation(Checker::DurableBeforeTold, what);
        }
        for (slot, accepted) in disk.accepted.range(chosen.next()..).filter(|(_, accepted)| **accepted < ballot) {
            let told = reported.iter().find(|reported| reported.slot == *slot).map(|reported| reported.ballot);
            if told < Some(*accepted) && !is_lost(lost, *slot, *accepted) {
                let what = format!(
                    "replica {from} has accepted slot {slot} under ballot {accepted}, and promises ballot {ballot} \
                     telling of {told:?} there"
                );
                return violation(Checker::Promises, what);
            }
        }
        self.tells(from, ballot, "promises")
    }

    fn tells(&mut self, from: ReplicaId, ballot: Ballot, what: &str) -> Verdict {
        let disk = self.disk(from);
        if disk.lost {
            let what = format!("replica {from} {what} ballot {ballot}, has lost state and has not rejoined (P11, P13)");
            return violation(Checker::Promises, what);
        }
        if disk.told > Some(ballot) {
            let what = format!("replica {from} {what} ballot {ballot}, having told others of {:?}", disk.told);
            return violation(Checker::Promises, what);
        }
        disk.told = Some(ballot);
        Ok(())
    }
}
