//! Replicas whose logs have lost what they accepted (rule L5): a candidate takes nobody's silence there for an answer.

use std::collections::BTreeMap;
use std::time::Duration;

use synod_paxos::{
    AcceptedSlot, Ballot, Batch, BatchBuilder, Configuration, Effect, Effects, Event, Incarnation, Instant,
    LogPosition, LostSlots, Message, Recovered, Replica, ReplicaId, Role, Settings, Slot, Voter,
};

fn ballot(round: u64) -> Ballot {
    Ballot { round, replica: ReplicaId(3), incarnation: Incarnation(1) }
}

fn value() -> Batch {
    let mut builder = BatchBuilder::default();
    builder.push(b"value");
    builder.take()
}

fn lost(first: u64, last: u64, round: u64) -> LostSlots {
    LostSlots { first: Slot(first), last: Slot(last), ballot: ballot(round) }
}

fn held(slot: u64, round: u64) -> AcceptedSlot {
    AcceptedSlot { slot: Slot(slot), ballot: ballot(round), batch: value() }
}

/// A replica that has applied four slots, and has lost this.
fn recovered(lost: Vec<LostSlots>) -> Recovered {
    let configuration = Configuration::of_voters([1, 2, 3].map(ReplicaId), 4, Duration::ZERO).expect("three voters");
    Recovered {
        promised: ballot(2),
        chosen: Slot(4),
        known: Slot(4),
        holes: lost.len() as u64,
        lost,
        ..Recovered::nothing(configuration)
    }
}

fn replica(me: u16, recovered: &Recovered) -> Replica {
    let settings = Settings::new(ReplicaId(me), Incarnation(1), 1);
    let mut replica = Replica::new(settings, recovered, Instant(0));
    // Nobody knows more of its log than it does (P13).
    for from in [1, 2, 3].map(ReplicaId).into_iter().filter(|id| id.0 != me) {
        let (durable, known) = (LogPosition::default(), replica.position());
        let message = Message::Position { durable, known, asks: false };
        replica.step(Instant(0), Event::Received { from, message }, &mut Effects::new());
    }
    replica.step(Instant(0), Event::Ticked, &mut Effects::new());
    replica
}

/// Replica 1, a candidate of three.
struct Candidate {
    replica: Replica,
    ballot: Ballot,
    proposed: BTreeMap<Slot, Batch>,
    /// Of whom it wants chosen slots.
    asked: Vec<ReplicaId>,
}

impl Candidate {
    fn new(own: Vec<LostSlots>) -> Self {
        Self::of(&recovered(own))
    }

    fn of(recovered: &Recovered) -> Self {
        let mut replica = replica(1, recovered);
        let now = replica.deadline();
        let mut effects = Effects::new();
        replica.step(now, Event::Ticked, &mut effects);
        let answer = Message::ProbeAnswer { would: true, round: 2, chosen: Slot(4) };
        replica.step(now, Event::Received { from: ReplicaId(2), message: answer }, &mut effects);
        let ballot = replica.promised();
        let mut candidate = Self { replica, ballot, proposed: BTreeMap::new(), asked: Vec::new() };
        let own = effects.iter().find_map(|effect| match effect {
            Effect::SendOnceDurable { to: ReplicaId(1), message, .. } => Some(message.clone()),
            _ => None,
        });
        candidate.note(effects);
        candidate.hear(1, own.expect("it promises to itself"));
        candidate
    }

    fn hear(&mut self, from: u16, message: Message) {
        let mut effects = Effects::new();
        let now = Instant(self.replica.deadline().0 - 1);
        self.replica.step(now, Event::Received { from: ReplicaId(from), message }, &mut effects);
        self.note(effects);
    }

    fn note(&mut self, effects: Effects) {
        for effect in effects {
            match effect {
                Effect::Send { message: Message::Accept { slot, batch, .. }, .. } => {
                    self.proposed.insert(slot, batch);
                }
                Effect::Send { message: Message::Fetch { .. }, to } => self.asked.push(to),
                _ => {}
            }
        }
    }

    fn promised_by(&mut self, from: u16, accepted: Vec<AcceptedSlot>, lost: Vec<LostSlots>) -> Role {
        let (cut, chosen) = (Slot::NONE, Slot(4));
        self.hear(from, Message::Promise { ballot: self.ballot, cut, chosen, accepted, lost, voter: Voter::default() });
        self.replica.role()
    }
}

#[test]
fn who_has_lost_a_value_is_not_counted_until_somebody_has_it() {
    let mut candidate = Candidate::new(vec![]);
    assert_eq!(candidate.promised_by(2, vec![], vec![lost(5, 5, 2)]), Role::Campaigning);
    assert_eq!(candidate.replica.held_up(), Some(lost(5, 5, 2)), "and it is said for what");
    assert_eq!(candidate.promised_by(3, vec![held(5, 2)], vec![]), Role::Coordinating);
    assert_eq!((candidate.proposed[&Slot(5)].clone(), candidate.replica.held_up()), (value(), None));
}

#[test]
fn an_older_value_does_not_make_up_for_a_loss_and_a_majority_without_losses_does() {
    let mut candidate = Candidate::new(vec![]);
    assert_eq!(candidate.promised_by(2, vec![held(5, 1)], vec![lost(5, 5, 2)]), Role::Campaigning);
    // One and three can tell for themselves: nothing newer was chosen, and the older value is adopted.
    assert_eq!(candidate.promised_by(3, vec![], vec![]), Role::Coordinating);
    assert_eq!(candidate.proposed[&Slot(5)], value());
}

#[test]
fn the_same_slot_lost_on_two_of_three_comes_from_the_third() {
    let mut candidate = Candidate::new(vec![lost(5, 6, 2)]);
    assert_eq!(candidate.promised_by(2, vec![], vec![lost(5, 5, 2)]), Role::Campaigning);
    // Two and three can tell for slot 6.
    assert_eq!(candidate.promised_by(3, vec![held(5, 2)], vec![]), Role::Coordinating);
    assert_eq!(candidate.proposed, [(Slot(5), value())].into());
    let mut candidate = Candidate::new(vec![lost(5, 6, 2)]);
    assert_eq!(candidate.promised_by(2, vec![], vec![lost(5, 6, 2)]), Role::Campaigning);
    assert_eq!(candidate.promised_by(3, vec![held(5, 2)], vec![]), Role::Campaigning, "slot 6 is lost on two");
    let mut candidate = Candidate::new(vec![lost(5, 6, 2)]);
    assert_eq!(candidate.promised_by(2, vec![], vec![lost(5, 6, 2)]), Role::Campaigning);
    assert_eq!(candidate.promised_by(3, vec![held(5, 2), held(6, 2)], vec![]), Role::Coordinating);
    assert_eq!(candidate.proposed.values().collect::<Vec<_>>(), [&value(), &value()]);
}

#[test]
fn what_is_lost_everywhere_holds_the_cell_up_and_is_named() {
    let mut candidate = Candidate::new(vec![lost(5, 5, 2)]);
    for from in [2, 3] {
        assert_eq!(candidate.promised_by(from, vec![], vec![lost(5, 5, 2)]), Role::Campaigning);
        assert_eq!(candidate.replica.held_up(), Some(lost(5, 5, 2)));
    }
    assert!(candidate.proposed.is_empty(), "nobody fills such a slot");
}

#[test]
fn a_loss_is_told_until_the_slot_is_accepted_again_or_chosen() {
    let mut damaged = replica(2, &recovered(vec![lost(5, 7, 2)]));
    let step = |damaged: &mut Replica, message| {
        let mut effects = Effects::new();
        damaged.step(Instant(1), Event::Received { from: ReplicaId(3), message }, &mut effects);
        effects
    };
    let told = |effects: Effects| {
        effects.into_iter().find_map(|effect| match effect {
            Effect::SendOnceDurable { message: Message::Promise { chosen, accepted, lost, .. }, .. } => {
                Some((chosen, accepted.len(), lost))
            }
            _ => None,
        })
    };
    let propose = |round| Message::Propose { ballot: ballot(round), released: Ballot::NONE };
    assert_eq!(told(step(&mut damaged, propose(3))), Some((Slot(4), 0, vec![lost(5, 7, 2)])));
    assert_eq!(damaged.lost_slots(), 3);
    let accept = Message::Accept { ballot: ballot(3), slot: Slot(6), batch: value(), chosen: Slot(4) };
    step(&mut damaged, accept);
    assert_eq!((damaged.lost_slots(), damaged.chosen()), (2, Slot(4)));
    // What is fetched is appended again, so that the next start finds it.
    let effects = step(&mut damaged, Message::Entries { first: Slot(5), batches: vec![value(); 2], chosen: Slot(6) });
    assert_eq!(effects.iter().filter(|effect| matches!(effect, Effect::Persist { .. })).count(), 2);
    assert_eq!(told(step(&mut damaged, propose(4))), Some((Slot(6), 0, vec![lost(7, 7, 2)])));
}

#[test]
fn what_is_known_to_be_chosen_and_lost_is_fetched_before_anybody_leads() {
    // It has lost slot 5, knows all up to 20 to be chosen, and keeps nothing of these.
    let damaged = Recovered { known: Slot(20), ..recovered(vec![lost(5, 5, 2)]) };
    let mut behind = replica(2, &damaged);
    let mut effects = Effects::new();
    let propose = Message::Propose { ballot: ballot(3), released: Ballot::NONE };
    behind.step(Instant(1), Event::Received { from: ReplicaId(3), message: propose }, &mut effects);
    let chosen = effects.iter().find_map(|effect| match effect {
        Effect::SendOnceDurable { message: Message::Promise { chosen, lost, .. }, .. } => Some((*chosen, lost.len())),
        _ => None,
    });
    assert_eq!(chosen, Some((Slot(20), 0)));
    // As a candidate it asks the others, not itself, and leads when it has what it lacked.
    let mut candidate = Candidate::of(&damaged);
    assert_eq!(candidate.promised_by(2, vec![], vec![]), Role::Campaigning);
    assert!(candidate.proposed.is_empty() && !candidate.asked.is_empty() && !candidate.asked.contains(&ReplicaId(1)));
    let mut in_vain = Candidate::of(&damaged);
    in_vain.promised_by(2, vec![], vec![]);
    (0..20).for_each(|_| in_vain.replica.step(in_vain.replica.deadline(), Event::Ticked, &mut Effects::new()));
    assert_eq!(in_vain.replica.held_up(), Some(lost(5, 5, 2)), "it says what it cannot get");
    candidate.hear(2, Message::Entries { first: Slot(5), batches: vec![value(); 16], chosen: Slot(20) });
    assert_eq!((candidate.replica.role(), candidate.replica.chosen()), (Role::Coordinating, Slot(20)));
}
