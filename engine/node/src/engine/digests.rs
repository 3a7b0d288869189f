//! Whether the replicas' databases are equal, and what becomes of one that is not (rule P14).
//!
//! After every applied slot the digest of the database is kept, for the last [`DIGESTS_MAX`] slots. About once a heartbeat each
//! replica reports its last slot and the digest there to all others, and whoever has applied that slot compares. Two that
//! differ say nothing about who is right: each asks everybody for the digest of that very slot, and counts.
//!
//! | what the voters say of the slot | then |
//! |---|---|
//! | a majority is equal, and this replica with it | whoever differs is noted, and said to be apart |
//! | a majority is equal, and this replica differs | quarantine, with the evidence |
//! | a majority spoke, none of it is one, for [`PATIENCE`] | nothing is written or read here: an operator has to see to it |
//! | too few spoke | they are asked again |
//!
//! *Quarantine* is of the database alone. The replica leads nobody, applies nothing, offers its database to nobody and makes
//! no snapshot of it; it goes on promising and accepting, and keeps its log uncut: none of that depends on the database. It
//! asks the others for theirs in turn, and takes one over as in any catch-up, if its rows have the digest that its sender
//! told, and the voters do not speak against it (`vouching`). A restart meanwhile stays in quarantine.

use super::*;
use crate::codec::{DIGESTS_MAX, DigestMessage};
use synod_paxos::ReplicaSet;
use synod_store::Digest;

/// Slots that others ask for again and again, because of a database they are offered: one handout a replica, and some to spare.
const ASKED_MAX: usize = 16;
/// After this long without a majority of equal digests, nothing is written or read.
const PATIENCE: Duration = Duration::from_secs(2);
/// A database in quarantine asks the next replica for its own after this.
const REBUILD_PATIENCE: Duration = Duration::from_millis(500);

/// What one replica said of a slot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Said {
    /// Which.
    pub replica: u16,
    /// Its digest, in hex.
    pub digest: String,
}

/// Why a database was put in quarantine: the content of `quarantine-<slot>.toml`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Evidence {
    /// Of which replica.
    pub replica: u16,
    /// The slot that was compared, or the last one applied.
    pub slot: u64,
    /// In words: what was found, and how.
    pub found: String,
    /// The own digest at the slot, in hex, if digests were compared.
    pub own: Option<String>,
    /// That of the majority.
    pub majority: Option<String>,
    /// The first slot whose digest differs from the majority's, as far as it is known.
    pub first_apart: Option<u64>,
    /// Whether the one before it was equal: else it may have been earlier.
    pub first_is_certain: bool,
    /// Who said what.
    pub said: Vec<Said>,
}

impl Evidence {
    /// Of a database that cannot be read, or was found damaged.
    pub fn of_damage(replica: ReplicaId, slot: Slot, found: String) -> Self {
        let (replica, slot) = (replica.0, slot.0);
        Self {
            replica,
            slot,
            found,
            own: None,
            majority: None,
            first_apart: None,
            first_is_certain: false,
            said: Vec::new(),
        }
    }
}

/// What `synod status` says of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DigestStatus {
    /// Of the database now, in hex; none in quarantine.
    pub digest: Option<String>,
    /// The last slot at which another replica's digest was found equal.
    pub compared: u64,
    /// Why the own database is in quarantine, if it is.
    pub quarantine: Option<String>,
    /// The replicas that are: they said so, or a majority found them apart.
    pub apart: Vec<u16>,
    /// Replicas differ at this slot, and no majority of them is equal: nothing is written or read.
    pub halted: Option<u64>,
}

/// The digests of the last applied slots.
struct Ring {
    first: Slot,
    digests: VecDeque<Digest>,
}

impl Ring {
    fn get(&self, slot: Slot) -> Option<Digest> {
        let at = slot.0.checked_sub(self.first.0)?;
        self.digests.get(usize::try_from(at).ok()?).copied()
    }

    fn last(&self) -> Option<(Slot, Digest)> {
        let digest = *self.digests.back()?;
        Some((Slot(self.first.0 + self.digests.len() as u64 - 1), digest))
    }
}

/// Replicas differ: who said what of one slot.
struct Question {
    slot: Slot,
    since: Instant,
    said: BTreeMap<ReplicaId, Digest>,
}

struct Quarantine {
    evidence: Evidence,
    /// Who is asked for digests, until it is known where they went apart.
    trace: Option<ReplicaId>,
    /// Who was asked for its database last, and when the next is.
    asked: ReplicaId,
    ask_at: Instant,
}

/// See the module.
pub(super) struct Digests {
    ring: Ring,
    /// Of slots that others have asked for; `None`: not applied yet.
    asked: BTreeMap<Slot, Option<Digest>>,
    every: Duration,
    due: Instant,
    question: Option<Question>,
    /// Others that are in quarantine, or should be.
    apart: BTreeSet<ReplicaId>,
    halted: Option<Slot>,
    compared: Slot,
    quarantine: Option<Quarantine>,
}

impl Digests {
    pub(super) fn new(every: Duration, now: Instant) -> Self {
        let ring = Ring { first: Slot::NONE, digests: VecDeque::new() };
        let due = now.after(every);
        Self {
            ring,
            asked: BTreeMap::new(),
            every,
            due,
            question: None,
            apart: BTreeSet::new(),
            halted: None,
            compared: Slot::NONE,
            quarantine: None,
        }
    }

    /// The database is that of this slot, whatever was before.
    pub(super) fn restart(&mut self, slot: Slot, digest: Digest) {
        self.asked.clear();
        self.ring = Ring { first: slot, digests: VecDeque::from([digest]) };
    }

    /// A slot was applied.
    pub(super) fn push(&mut self, slot: Slot, digest: Digest) {
        if self.ring.last().is_none_or(|(last, _)| last.next() != slot) {
            return self.restart(slot, digest);
        }
        if let Some(asked) = self.asked.get_mut(&slot) {
            *asked = Some(digest);
        }
        if self.ring.digests.len() == DIGESTS_MAX {
            self.ring.digests.pop_front();
            self.ring.first = self.ring.first.next();
        }
        self.ring.digests.push_back(digest);
    }

    /// What the database was at this slot, or will be: it is remembered, as whoever asks this once asks again.
    pub(super) fn recall(&mut self, slot: Slot) -> Option<Digest> {
        let digest = self.ring.get(slot);
        let kept = self.asked.entry(slot).or_default();
        *kept = kept.or(digest);
        let kept = *kept;
        while self.asked.len() > ASKED_MAX {
            self.asked.pop_first();
        }
        kept
    }

    /// Replicas differ, and nobody knows who is right.
    pub(super) fn is_halted(&self) -> bool {
        self.halted.is_some()
    }

    /// Alone there is nobody to compare with.
    pub(super) fn deadline(&self, members: usize) -> Option<Instant> {
        (members > 1).then_some(self.due)
    }
}

impl Engine {
    /// It is time for a report; what is open is asked again.
    pub(super) fn tend_digests(&mut self, now: Instant, outlet: &mut impl Outlet) {
        if now < self.digests.due {
            return;
        }
        self.digests.due = now.after(self.digests.every);
        if self.replica.is_quarantined() {
            self.send_digest_to_all(&DigestMessage::Report { slot: self.replica.chosen(), digest: None }, outlet);
            return self.tend_quarantine(now, outlet);
        }
        let Some((slot, digest)) = self.digests.ring.last() else { return };
        self.send_digest_to_all(&DigestMessage::Report { slot, digest: Some(digest) }, outlet);
        if self.digests.is_halted() && self.digests.question.is_none() {
            // Perhaps those who can tell have come back.
            return self.ask_digests(now, slot, outlet);
        }
        if let Some(question) = &self.digests.question {
            let (slot, is_over) = (question.slot, now.since(question.since) > PATIENCE);
            if is_over {
                self.give_up_question(outlet);
            } else if let Some(digest) = self.digests.ring.get(slot) {
                self.send_digest_to_all(&DigestMessage::Query { slot, digest }, outlet);
            }
        }
    }

    fn send_digest_to_all(&self, message: &DigestMessage, outlet: &mut impl Outlet) {
        for to in self.members.iter().filter(|id| **id != self.me) {
            outlet.send_snapshot(*to, SnapshotMessage::Digest(message.clone()));
        }
    }

    /// Another replica speaks of digests.
    pub(super) fn digest_message(
        &mut self,
        now: Instant,
        from: ReplicaId,
        message: DigestMessage,
        outlet: &mut impl Outlet,
    ) {
        let mut answer = |message| outlet.send_snapshot(from, SnapshotMessage::Digest(message));
        let is_quarantined = self.replica.is_quarantined();
        match message {
            DigestMessage::Report { digest: None, .. } => {
                // What it said before it knew better is no opinion any more.
                if let Some(question) = &mut self.digests.question {
                    question.said.remove(&from);
                }
                self.note_apart(from, true);
            }
            DigestMessage::Rebuild { from: slot } => {
                self.note_apart(from, true);
                self.catch_up.take_back_older(slot);
                self.offer_snapshot(from, outlet);
            }
            DigestMessage::Traced { first, digests } => self.traced(from, first, &digests, outlet),
            // What a database in quarantine has says nothing of the others.
            DigestMessage::Query { slot, .. } if is_quarantined => answer(DigestMessage::Answer { slot, digest: None }),
            DigestMessage::Vouch { slot } => {
                let digest = if is_quarantined { None } else { self.digests.recall(slot) };
                answer(DigestMessage::Vouched { slot, digest });
            }
            DigestMessage::Vouched { slot, digest } => {
                if let Some(vouching) = self.catch_up.vouching() {
                    vouching.take(from, slot, digest);
                    self.judge_incoming(now, outlet);
                }
            }
            // Nobody compares it here: it may be asked for its database again. Before that is taken over the others are asked.
            DigestMessage::Report { .. } if is_quarantined => self.note_apart(from, false),
            _ if is_quarantined => {}
            DigestMessage::Report { slot, digest: Some(digest) } => self.compare(now, from, (slot, digest), outlet),
            DigestMessage::Query { slot, digest } => {
                answer(DigestMessage::Answer { slot, digest: self.digests.ring.get(slot) });
                self.compare(now, from, (slot, digest), outlet);
            }
            DigestMessage::Answer { slot, digest } => {
                let question = self.digests.question.as_mut().filter(|question| question.slot == slot);
                if let (Some(question), Some(digest)) = (question, digest) {
                    question.said.insert(from, digest);
                    self.count_digests(outlet);
                }
            }
            DigestMessage::Trace => {
                let (first, digests) = (self.digests.ring.first, self.digests.ring.digests.iter().copied().collect());
                answer(DigestMessage::Traced { first, digests });
            }
        }
    }

    /// Compares what another one has at a slot with what this one had there, if it is known.
    fn compare(&mut self, now: Instant, from: ReplicaId, (slot, digest): (Slot, Digest), outlet: &mut impl Outlet) {
        let Some(own) = self.digests.ring.get(slot) else { return };
        self.counters.digests_compared += 1;
        if own == digest {
            self.digests.compared = self.digests.compared.max(slot);
            return self.note_apart(from, false);
        }
        self.counters.digests_apart += 1;
        if self.digests.question.is_none() && !self.digests.apart.contains(&from) {
            eprintln!(
                "synod: replica {from} has digest {digest} at slot {slot}, and this one {own}: asking the others"
            );
            self.ask_digests(now, slot, outlet);
        }
        if let Some(question) = self.digests.question.as_mut().filter(|question| question.slot == slot) {
            question.said.insert(from, digest);
            self.count_digests(outlet);
        }
    }

    fn note_apart(&mut self, replica: ReplicaId, is_apart: bool) {
        let apart = &mut self.digests.apart;
        if is_apart && apart.insert(replica) {
            eprintln!(
                "synod: replica {replica}'s database differs from a majority's, or is damaged: it has to rebuild it"
            );
        } else if !is_apart && apart.remove(&replica) {
            eprintln!("synod: replica {replica}'s database is equal again");
        }
    }

    fn ask_digests(&mut self, now: Instant, slot: Slot, outlet: &mut impl Outlet) {
        let Some(digest) = self.digests.ring.get(slot) else { return };
        let said = BTreeMap::from([(self.me, digest)]);
        self.digests.question = Some(Question { slot, since: now, said });
        self.send_digest_to_all(&DigestMessage::Query { slot, digest }, outlet);
    }

    /// The digest that a majority of the voters has, if one has.
    fn majority_of(&self, said: &BTreeMap<ReplicaId, Digest>) -> Option<Digest> {
        let configuration = &self.replica.configurations().current;
        said.values().copied().find(|digest| configuration.is_majority(who_said(said, |said| said == *digest)))
    }

    fn count_digests(&mut self, outlet: &mut impl Outlet) {
        let Some(question) = &self.digests.question else { return };
        let Some(majority) = self.majority_of(&question.said) else { return };
        let Question { slot, said, .. } = self.digests.question.take().expect("it was just seen");
        let own = said[&self.me];
        if own != majority && !synod_paxos::planted!(P14OddOneOutGoesOn) {
            return self.odd_one_out(slot, (own, majority), &said, outlet);
        }
        if let Some(since) = self.digests.halted.take() {
            eprintln!("synod: a majority is equal at slot {slot}: what was stopped at slot {since} goes on");
        }
        for (replica, digest) in said {
            self.note_apart(replica, digest != majority);
        }
    }

    /// Whoever could tell does not, or cannot.
    fn give_up_question(&mut self, outlet: &mut impl Outlet) {
        let Question { slot, said, .. } = self.digests.question.take().expect("its time is over");
        let is_asked_of_enough = self.replica.configurations().current.is_majority(who_said(&said, |_| true));
        let is_of_two_minds = said.values().any(|digest| *digest != said[&self.me]);
        if !is_asked_of_enough || !is_of_two_minds || self.digests.halted.is_some() {
            return;
        }
        self.digests.halted = Some(slot);
        let said: Vec<String> = said.iter().map(|(replica, digest)| format!("{replica}: {digest}")).collect();
        eprintln!(
            "synod: the databases differ at slot {slot} ({}), and no majority is equal: nothing is written or read until an \
             operator has decided which is right, and restarted the others with --rebuild",
            said.join(", ")
        );
        self.refuse_pending(&Refusal::Diverged, outlet);
    }

    fn odd_one_out(
        &mut self,
        slot: Slot,
        (own, majority): (Digest, Digest),
        said: &BTreeMap<ReplicaId, Digest>,
        outlet: &mut impl Outlet,
    ) {
        let trace = said.iter().find(|(_, digest)| **digest == majority).map(|(replica, _)| *replica);
        let said = said.iter().map(|(replica, digest)| Said { replica: replica.0, digest: digest.to_string() });
        let evidence = Evidence {
            own: Some(own.to_string()),
            majority: Some(majority.to_string()),
            said: said.collect(),
            ..Evidence::of_damage(self.me, slot, format!("digest {own}, and a majority has {majority}"))
        };
        self.begin_quarantine(evidence, trace, outlet);
    }

    /// The own database was found damaged by whoever looked through it.
    pub fn database_damaged(&mut self, found: String, outlet: &mut impl Outlet) {
        if !self.replica.is_quarantined() {
            let evidence = Evidence::of_damage(self.me, self.replica.chosen(), found);
            self.begin_quarantine(evidence, None, outlet);
        }
    }

    fn begin_quarantine(&mut self, evidence: Evidence, trace: Option<ReplicaId>, outlet: &mut impl Outlet) {
        eprintln!("synod: this replica's database is in quarantine from slot {} on: {}", evidence.slot, evidence.found);
        outlet.note_quarantine(&evidence);
        self.counters.quarantines += 1;
        if !synod_paxos::planted!(P14SeedsFromQuarantine) {
            self.catch_up.take_back();
        }
        let now = outlet.now();
        if let Some(of) = trace {
            outlet.send_snapshot(of, SnapshotMessage::Digest(DigestMessage::Trace));
        }
        self.digests.question = None;
        self.digests.halted = None;
        self.digests.quarantine = Some(Quarantine { evidence, trace, asked: self.me, ask_at: now });
        self.step(now, Event::Quarantined, outlet);
    }

    pub(super) fn begin_in_quarantine(&mut self, evidence: Evidence, now: Instant) {
        self.digests.quarantine = Some(Quarantine { evidence, trace: None, asked: self.me, ask_at: now });
        self.replica.step(now, Event::Quarantined, &mut self.effects);
    }

    /// Asks one replica after the other for its database.
    fn tend_quarantine(&mut self, now: Instant, outlet: &mut impl Outlet) {
        let is_coming = self.catch_up.is_under_way();
        let Some(quarantine) = self.digests.quarantine.as_mut().filter(|quarantine| now >= quarantine.ask_at) else {
            return;
        };
        quarantine.ask_at = now.after(REBUILD_PATIENCE);
        if let Some(of) = quarantine.trace {
            outlet.send_snapshot(of, SnapshotMessage::Digest(DigestMessage::Trace));
        }
        let apart = &self.digests.apart;
        let others = || self.members.iter().copied().filter(|id| *id != self.me && !apart.contains(id));
        if let Some(next) = others().find(|id| *id > quarantine.asked).or(others().next()).filter(|_| !is_coming) {
            quarantine.asked = next;
            let from = self.replica.chosen();
            outlet.send_snapshot(next, SnapshotMessage::Digest(DigestMessage::Rebuild { from }));
        }
    }

    /// One of the majority told its digests: the first that differs says which slot's batch, or when, made the difference.
    fn traced(&mut self, from: ReplicaId, first: Slot, digests: &[Digest], outlet: &mut impl Outlet) {
        let ring = &self.digests.ring;
        let Some(quarantine) = self.digests.quarantine.as_mut().filter(|quarantine| quarantine.trace == Some(from))
        else {
            return;
        };
        quarantine.trace = None;
        let mut slot = first;
        let mut is_certain = false;
        for digest in digests {
            match ring.get(slot) {
                Some(own) if own != *digest => {
                    quarantine.evidence.first_apart = Some(slot.0);
                    quarantine.evidence.first_is_certain = is_certain;
                    outlet.note_quarantine(&quarantine.evidence);
                    let least = if is_certain { "" } else { " at the latest" };
                    return eprintln!("synod: this replica's database went apart at slot {slot}{least}");
                }
                known => is_certain = known.is_some(),
            }
            slot = slot.next();
        }
    }

    /// Another replica's database, which has the digest that its sender told, has taken the place of the own one.
    pub(super) fn end_quarantine(&mut self, slot: Slot, outlet: &mut impl Outlet) {
        if self.digests.quarantine.take().is_some() {
            self.counters.rebuilds += 1;
            outlet.end_quarantine();
            eprintln!("synod: this replica's database is another replica's of slot {slot} now, and out of quarantine");
        }
    }

    /// What there is to say of it.
    pub fn digest_status(&self) -> DigestStatus {
        let Digests { compared, quarantine, apart, halted, .. } = &self.digests;
        let is_sound = !self.replica.is_quarantined();
        DigestStatus {
            digest: is_sound.then(|| self.cell.store().digest().to_string()),
            compared: compared.0,
            quarantine: quarantine.as_ref().map(|quarantine| quarantine.evidence.found.clone()),
            apart: apart.iter().map(|replica| replica.0).collect(),
            halted: halted.map(|slot| slot.0),
        }
    }
}

fn who_said(said: &BTreeMap<ReplicaId, Digest>, is_meant: impl Fn(Digest) -> bool) -> ReplicaSet {
    let mut who = ReplicaSet::default();
    for (replica, _) in said.iter().filter(|(_, digest)| is_meant(**digest)) {
        who.insert(*replica);
    }
    who
}
