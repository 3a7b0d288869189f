//! The judge of the protocol: it sees every disk and every message, and believes no replica.
//!
//! What is *chosen* it decides by the definition alone: a value is chosen at a slot once a majority has it accepted
//! under one ballot **on its disk**, as read from the bytes that were flushed. A copy of the state machine follows these
//! values, and every replica is held against it. What single disks hold and single replicas have told is the business of
//! `acceptors`.
//!
//! | checker | what it says |
//! |---|---|
//! | agreement | one value a slot, one value a ballot and slot; proposals within the horizon, promised by a majority; later ballots propose what is chosen; replicas apply only what is chosen |
//! | in-order apply | a replica's database at a slot is what the log up to there makes of it |
//! | at most once | no write is applied twice |
//! | answers | what a client is told is what the state machine answers at the slot where its command is chosen, each time it is told |

use std::collections::{BTreeMap, BTreeSet};

use synod_api::{Answer, Command, Mastership, Operation, Refusal};
use synod_cell::Cell;
use synod_paxos::{
    AcceptedSlot, Ballot, Batch, Configuration, Message, Record, Recovered, ReplicaId, Slot, StateMachine, Voter,
};

use synod_store::Digest;

use super::acceptors::Acceptors;
use super::planted::soundly;
use super::verdict::{Checker, Verdict, violation};

/// What one change of the database did.
pub(crate) struct Change {
    /// Its place in the order; dense.
    pub(crate) revision: u64,
    /// Key or path; the two never look alike.
    pub(crate) key: Vec<u8>,
    /// The new value; `None`: removed.
    pub(crate) value: Option<Vec<u8>>,
}

/// A database in short.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Fingerprint {
    revision: u64,
    rows: u64,
    bytes: u64,
    sessions: u64,
    digest: Digest,
    /// Of all rows; taken at some slots only.
    contents: Option<u64>,
}

/// The whole contents are compared at each slot that is a multiple of this.
const CONTENTS_EVERY: u64 = 8;

impl Fingerprint {
    fn of(cell: &Cell, slot: Slot) -> Fingerprint {
        let status = cell.status();
        let contents = slot.0.is_multiple_of(CONTENTS_EVERY).then(|| cell.contents_hash());
        let (revision, digest) = (status.revision.0, cell.store().digest());
        Fingerprint { digest, revision, rows: status.rows, bytes: status.bytes, sessions: status.sessions, contents }
    }
}

struct Proposal {
    batch: Batch,
    /// Whose disks have it, and in which life they took it.
    accepted_by: Votes,
}

/// Who has voted for something, in which life, knowing of which lives (P11).
type Votes = Vec<(ReplicaId, Voter)>;

fn vote(votes: &mut Votes, replica: ReplicaId, voter: &Voter) {
    if !votes.iter().any(|(id, before)| *id == replica && before == voter) {
        votes.push((replica, voter.clone()));
    }
}

/// Whether a majority of the configuration voted, of whom nobody knew of a later life of another. Of each replica one vote is
/// enough, whichever goes with the others'.
fn is_majority(configuration: &Configuration, votes: &Votes) -> bool {
    let voters: Vec<_> = configuration.voters().iter().collect();
    extends_to_majority(configuration, votes, &voters, &mut Vec::new())
}

fn extends_to_majority<'a>(
    configuration: &Configuration,
    votes: &'a Votes,
    voters: &[ReplicaId],
    part: &mut Vec<&'a (ReplicaId, Voter)>,
) -> bool {
    if configuration.is_majority(part.iter().map(|(id, _)| *id).collect()) {
        return true;
    }
    let Some((voter, others)) = voters.split_first() else { return false };
    let agree = |(one, as_one): &(ReplicaId, Voter), (other, as_other): &(ReplicaId, Voter)| {
        as_one.vector.of(*other) <= as_other.incarnation && as_other.vector.of(*one) <= as_one.incarnation
    };
    for vote in votes.iter().filter(|(id, _)| id == voter) {
        if agree(vote, vote) && part.iter().all(|before| agree(vote, before)) {
            part.push(vote);
            let is_enough = extends_to_majority(configuration, votes, others, part);
            part.pop();
            if is_enough {
                return true;
            }
        }
    }
    extends_to_majority(configuration, votes, others, part)
}

struct Chosen {
    ballot: Ballot,
    batch: Batch,
}

/// What a client asked, as far as the answer can be checked by it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Stamp {
    session: u64,
    sequence: u64,
}

/// A question that was put to a replica.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Asked {
    Stamped(Stamp),
    Session,
    Read,
}

impl Asked {
    pub(crate) fn of(command: &[u8]) -> Asked {
        let command = Command::decode(command).expect("clients send sound commands");
        match command.operation {
            Operation::OpenSession | Operation::CloseSession => Asked::Session,
            operation if operation.changes() => {
                Asked::Stamped(Stamp { session: command.session.0, sequence: command.sequence.0 })
            }
            _ => Asked::Read,
        }
    }
}

/// See the module.
pub(crate) struct Oracle {
    /// The configurations so far, each with the first slot that it governs (P6).
    configurations: Vec<(Slot, Configuration)>,
    leaves_databases: bool,
    pub(crate) acceptors: Acceptors,
    /// By slot and ballot: all that was proposed.
    proposals: BTreeMap<(Slot, Ballot), Proposal>,
    /// Which life of which replica uses a ballot.
    coordinators: BTreeMap<Ballot, u64>,
    /// Who has promised to a ballot, the candidate itself among them.
    promised_by: BTreeMap<Ballot, Votes>,
    /// From slot 1 on, without a gap.
    chosen: Vec<Chosen>,
    /// Chosen, with a gap below.
    early: BTreeMap<Slot, Chosen>,
    cell: Cell,
    /// By slot, from 0 on.
    fingerprints: Vec<Fingerprint>,
    answers: BTreeMap<Stamp, Vec<u8>>,
    /// Sessions opened, and how many clients were told so.
    sessions: BTreeMap<u64, u32>,
    /// By revision.
    pub(crate) changes: Vec<Change>,
    /// Values that were written: each by one operation, so each once.
    written: BTreeSet<Vec<u8>>,
}

impl Oracle {
    /// `leaves_databases`: the replicas' are theirs to compare.
    pub(crate) fn new(replicas: u16, configuration: Configuration, leaves_databases: bool) -> Oracle {
        let cell = Cell::new();
        let fingerprints = vec![Fingerprint::of(&cell, Slot::NONE)];
        Oracle {
            configurations: vec![(Slot(1), configuration)],
            leaves_databases,
            acceptors: Acceptors::new(replicas),
            proposals: BTreeMap::new(),
            coordinators: BTreeMap::new(),
            promised_by: BTreeMap::new(),
            chosen: Vec::new(),
            early: BTreeMap::new(),
            cell,
            fingerprints,
            answers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            changes: Vec::new(),
            written: BTreeSet::new(),
        }
    }

    /// All up to here is chosen.
    pub(crate) fn upto(&self) -> Slot {
        Slot(self.chosen.len() as u64)
    }

    pub(crate) fn contents_hash(&self) -> u64 {
        self.cell.contents_hash()
    }

    fn chosen_at(&self, slot: Slot) -> Option<&Chosen> {
        let place = usize::try_from(slot.0).ok()?.checked_sub(1)?;
        self.chosen.get(place).or_else(|| self.early.get(&slot))
    }

    /// What a replica found on its disk after a crash: all that was durable, at the least.
    ///
    /// `older`: all up to here is in the older of the snapshots that it has, and may be gone from the log.
    pub(crate) fn recovered(
        &mut self,
        replica: ReplicaId,
        records: Vec<Record>,
        older: Slot,
        protocol: &Recovered,
    ) -> Verdict {
        self.acceptors.recovered(replica, &records, older, protocol)?;
        records.into_iter().try_for_each(|record| self.on_disk(replica, record))
    }

    /// A record has become durable.
    pub(crate) fn durable(&mut self, replica: ReplicaId, record: Record) -> Verdict {
        self.acceptors.durable(replica, &record)?;
        self.on_disk(replica, record)
    }

    fn on_disk(&mut self, replica: ReplicaId, record: Record) -> Verdict {
        match record {
            Record::HardState(_) => Ok(()),
            Record::Accepted { slot, ballot, chosen: _, batch } => {
                self.proposed(slot, ballot, &batch, &format!("the disk of replica {replica}"))?;
                let proposal = self.proposals.get_mut(&(slot, ballot)).expect("just noted");
                vote(&mut proposal.accepted_by, replica, self.acceptors.voter(replica));
                let accepted_by = &self.proposals[&(slot, ballot)].accepted_by;
                if is_majority(self.governing(slot), accepted_by) {
                    self.choose(slot, ballot, batch)?;
                }
                Ok(())
            }
            Record::Chosen { slot, batch } => self.told_chosen(slot, &batch, &format!("the disk of replica {replica}")),
        }
    }

    /// Somebody holds this value to be chosen.
    fn told_chosen(&self, slot: Slot, batch: &Batch, who: &str) -> Verdict {
        match self.chosen_at(slot) {
            Some(chosen) if chosen.batch == *batch => Ok(()),
            Some(chosen) => violation(
                Checker::Agreement,
                format!("{who} holds another value for chosen slot {slot}: {batch:?}, chosen is {:?}", chosen.batch),
            ),
            None => violation(
                Checker::Agreement,
                format!("{who} holds slot {slot} to be chosen, which no majority has on disk: {batch:?}"),
            ),
        }
    }

    /// Somebody proposes this value, or has accepted it.
    fn proposed(&mut self, slot: Slot, ballot: Ballot, batch: &Batch, who: &str) -> Verdict {
        if let Some(chosen) = self.chosen_at(slot)
            && ballot >= chosen.ballot
            && chosen.batch != *batch
        {
            return violation(
                Checker::Agreement,
                format!(
                    "{who} has for slot {slot} under ballot {ballot} {batch:?}, but chosen there under ballot {} is {:?}",
                    chosen.ballot, chosen.batch
                ),
            );
        }
        let noted = self
            .proposals
            .entry((slot, ballot))
            .or_insert_with(|| Proposal { batch: batch.clone(), accepted_by: Votes::new() });
        if noted.batch != *batch {
            return violation(
                Checker::Agreement,
                format!("two values under ballot {ballot} at slot {slot}: {:?}, and by {who} {batch:?}", noted.batch),
            );
        }
        Ok(())
    }

    fn choose(&mut self, slot: Slot, ballot: Ballot, batch: Batch) -> Verdict {
        if let Some(chosen) = self.chosen_at(slot) {
            if chosen.batch == batch {
                return Ok(());
            }
            return violation(
                Checker::Agreement,
                format!(
                    "two values are chosen at slot {slot}: {:?} under ballot {}, and {batch:?} under ballot {ballot}",
                    chosen.batch, chosen.ballot
                ),
            );
        }
        self.early.insert(slot, Chosen { ballot, batch });
        while let Some(next) = self.early.remove(&self.upto().next()) {
            let slot = self.upto().next();
            self.apply(slot, &next.batch)?;
            self.chosen.push(next);
            self.fingerprints.push(Fingerprint::of(&self.cell, slot));
        }
        Ok(())
    }

    /// Who decides on this slot: a change decided at slot i governs from i + horizon on (P6).
    pub(crate) fn governing(&self, slot: Slot) -> &Configuration {
        let (_, configuration) =
            self.configurations.iter().rev().find(|(from, _)| *from <= slot).expect("the first governs from slot 1");
        configuration
    }

    /// A change that was made for a configuration which is in force no more, or before the last change was, is void.
    fn reconfigure(&mut self, slot: Slot, batch: &Batch) {
        let (since, latest) = self.configurations.last().expect("there is the first");
        let Some((base, configuration)) = batch.as_change() else { return };
        if base == *since && slot.next() >= *since {
            let from = slot.plus(latest.horizon());
            self.configurations.push((from, configuration));
        }
    }

    fn apply(&mut self, slot: Slot, batch: &Batch) -> Verdict {
        self.reconfigure(slot, batch);
        let mut is_outdated = false;
        for bytes in batch.commands() {
            let mut told = Vec::new();
            let before = self.cell.store().revision();
            let epoch = self.cell.epoch();
            soundly(|| self.cell.apply(slot, bytes, &mut told));
            if let Some(word) = Mastership::decode(bytes) {
                is_outdated = matches!(word, Mastership::Stamp(stamped) if stamped != epoch);
                continue;
            }
            if is_outdated != (Answer::decode_borrowed(&told) == Ok(Answer::Refused(Refusal::MasterChanged))) {
                let what =
                    format!("at slot {slot}, in {epoch:?}, a command is applied that came to another mastership");
                return violation(Checker::Epochs, what);
            }
            if is_outdated {
                continue;
            }
            let command = Command::decode(bytes).expect("clients send sound commands");
            let revision = self.cell.store().revision();
            if revision > before {
                assert_eq!(revision.0, before.0 + 1, "one command is one change");
                let (key, value) = match command.operation {
                    Operation::Put { key, value } | Operation::CompareAndSwap { key, value, .. } => (key, Some(value)),
                    Operation::CreateFile { path, contents } | Operation::WriteFile { path, contents } => {
                        (path, Some(contents))
                    }
                    Operation::Delete { key } => (key, None),
                    Operation::OpenSession
                    | Operation::CloseSession
                    | Operation::Get { .. }
                    | Operation::ReadFile { .. } => unreachable!("these change no versioned row"),
                };
                let (key, value) = (key.to_vec(), value.map(<[u8]>::to_vec));
                if let Some(value) = &value
                    && !self.written.insert(value.clone())
                {
                    let value = value.escape_ascii();
                    let what = format!("the write of {value} is applied twice, again at slot {slot}, {revision:?}");
                    return violation(Checker::AtMostOnce, what);
                }
                self.changes.push(Change { revision: revision.0, key, value });
            }
            match Asked::of(bytes) {
                Asked::Stamped(stamp) => {
                    // A duplicate is answered alike or refused; a refusal comes first only where the session is gone.
                    self.answers.entry(stamp).or_insert(told);
                }
                Asked::Session => {
                    if let Ok(Answer::SessionOpened(session)) = Answer::decode_borrowed(&told) {
                        self.sessions.insert(session.0, 0);
                    }
                }
                Asked::Read => {}
            }
        }
        Ok(())
    }

    /// Whether this value is in the log.
    pub(crate) fn was_written(&self, value: &[u8]) -> bool {
        self.written.contains(value)
    }

    /// A message leaves a replica for another.
    pub(crate) fn sent(&mut self, from: ReplicaId, life: u64, message: &Message) -> Verdict {
        match message {
            Message::Propose { ballot, .. } => {
                self.own_ballot(from, life, *ballot)?;
                self.acceptors.proposes(from, *ballot)?;
                // Its own promise, which nobody is sent, is durable by now.
                vote(self.promised_by.entry(*ballot).or_default(), from, self.acceptors.voter(from));
                Ok(())
            }
            Message::Promise { ballot, chosen, accepted, lost, voter, .. } => {
                self.acceptors.promises(from, *ballot, *chosen, accepted, lost)?;
                self.promised(from, *chosen, accepted)?;
                vote(self.promised_by.entry(*ballot).or_default(), from, voter);
                Ok(())
            }
            Message::Accept { ballot, slot, batch, .. } => {
                self.own_ballot(from, life, *ballot)?;
                self.may_propose(from, *slot, *ballot)?;
                self.proposed(*slot, *ballot, batch, &format!("an accept of replica {from}"))
            }
            Message::Acknowledge { ballot, slot, .. } => self.acceptors.acknowledges(from, *ballot, *slot),
            Message::Entries { first, batches, .. } => {
                for (slot, batch) in (first.0..).zip(batches) {
                    self.told_chosen(Slot(slot), batch, &format!("an entry of replica {from}"))?;
                }
                Ok(())
            }
            Message::Commit { ballot, chosen, .. } => {
                self.own_ballot(from, life, *ballot)?;
                self.known_chosen(from, *chosen)
            }
            Message::Release { ballot } | Message::TakeOver { ballot } => self.own_ballot(from, life, *ballot),
            Message::Probe { chosen } | Message::ProbeAnswer { chosen, .. } => self.known_chosen(from, *chosen),
            Message::TellIndex { ballot, slot, .. } => {
                self.own_ballot(from, life, *ballot)?;
                self.known_chosen(from, *slot)
            }
            Message::AskIndex { .. }
            | Message::Reject { .. }
            | Message::Fetch { .. }
            | Message::Position { .. }
            | Message::Rejoin { .. } => Ok(()),
            Message::RejoinAnswer { chosen, accepted, .. } => {
                for AcceptedSlot { slot, ballot, batch } in accepted {
                    self.proposed(*slot, *ballot, batch, &format!("what replica {from} tells of itself"))?;
                }
                self.known_chosen(from, *chosen)
            }
        }
    }

    /// Ballots belong to one life of one replica (P1).
    fn own_ballot(&mut self, from: ReplicaId, life: u64, ballot: Ballot) -> Verdict {
        let used_by = *self.coordinators.entry(ballot).or_insert(life);
        if ballot.replica == from && used_by == life {
            return Ok(());
        }
        violation(
            Checker::Agreement,
            format!("replica {from} coordinates in life {life} under ballot {ballot}, which is life {used_by}'s (P1)"),
        )
    }

    /// A slot is proposed within the horizon only (P5), with the promises of a majority of those who decide on it (P6).
    fn may_propose(&self, from: ReplicaId, slot: Slot, ballot: Ballot) -> Verdict {
        let governing = self.governing(slot);
        let upto = self.upto();
        if slot > upto.plus(governing.horizon()) {
            let what = format!("replica {from} proposes at slot {slot}, chosen is {upto}: beyond the horizon (P5)");
            return violation(Checker::Agreement, what);
        }
        let mut promised_by = self.promised_by.get(&ballot).cloned().unwrap_or_default();
        if promised_by.is_empty() {
            // It is alone, and asked nobody.
            vote(&mut promised_by, from, self.acceptors.voter(from));
        }
        if !is_majority(governing, &promised_by) {
            let what = format!(
                "replica {from} proposes at slot {slot} under ballot {ballot}, promised by {promised_by:?} only: no majority of \
                 those who decide there (P6)"
            );
            return violation(Checker::Agreement, what);
        }
        Ok(())
    }

    fn promised(&mut self, from: ReplicaId, chosen: Slot, reported: &[AcceptedSlot]) -> Verdict {
        for AcceptedSlot { slot, ballot, batch } in reported {
            self.proposed(*slot, *ballot, batch, &format!("a promise of replica {from}"))?;
        }
        self.known_chosen(from, chosen)
    }

    fn known_chosen(&self, replica: ReplicaId, slot: Slot) -> Verdict {
        if slot > self.upto() {
            let what = format!(
                "replica {replica} takes all up to slot {slot} for chosen, but no majority has slot {} on disk",
                self.upto().next()
            );
            return violation(Checker::Agreement, what);
        }
        Ok(())
    }

    /// A replica has applied all up to `slot`, and this is its database.
    pub(crate) fn applied(&self, replica: ReplicaId, slot: Slot, cell: &Cell) -> Verdict {
        self.known_chosen(replica, slot)?;
        let place = usize::try_from(slot.0).expect("it was compared above");
        let (own, right) = (Fingerprint::of(cell, slot), self.fingerprints[place]);
        if own != right && !self.leaves_databases {
            let what = format!("at slot {slot} replica {replica} has another database: {own:?}, right is {right:?}");
            return violation(Checker::InOrderApply, what);
        }
        Ok(())
    }

    /// A replica answers a client.
    pub(crate) fn answered(&mut self, replica: ReplicaId, asked: Asked, told: &[u8]) -> Verdict {
        let answer = Answer::decode_borrowed(told).expect("replicas send sound answers");
        if let Answer::Refused(_) = answer {
            return Ok(());
        }
        match asked {
            // Whether it is right depends on when it was asked: the history's business.
            Asked::Read => Ok(()),
            Asked::Session => {
                let Answer::SessionOpened(session) = answer else {
                    return violation(Checker::Answers, format!("replica {replica} answers an opening by {answer:?}"));
                };
                match self.sessions.get_mut(&session.0) {
                    Some(told) => {
                        *told += 1;
                        if *told > 1 {
                            let what = format!("replica {replica} gives session {session}, which another client has");
                            return violation(Checker::Answers, what);
                        }
                        Ok(())
                    }
                    None => {
                        let what = format!("replica {replica} gives session {session}, which the log never opened");
                        violation(Checker::Answers, what)
                    }
                }
            }
            Asked::Stamped(stamp) => match self.answers.get(&stamp) {
                Some(right) if right == told => Ok(()),
                // A long answer is not kept for retries.
                Some(right)
                    if answer == Answer::UnequalNotKept
                        && matches!(Answer::decode_borrowed(right), Ok(Answer::Unequal { .. })) =>
                {
                    Ok(())
                }
                right => {
                    let right = right.map(|right| Answer::decode_borrowed(right));
                    let what = format!("replica {replica} answers {stamp:?} by {answer:?}, right is {right:?}");
                    violation(Checker::Answers, what)
                }
            },
        }
    }
}
