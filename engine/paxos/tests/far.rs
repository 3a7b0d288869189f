//! Numbers that no sound replica sends: a slot, a round or a chosen slot far beyond anything. They are dropped or waited
//! for, nothing is lost, and nothing stops. (Issue B, bad input; rule P5)

use synod_paxos::{
    AcceptedSlot, Ballot, Batch, Configuration, Effect, Effects, Event, Incarnation, Instant, LogPosition, Message,
    Recovered, Replica, ReplicaId, Role, Settings, Slot, Voter,
};

const FAR: Slot = Slot(u64::MAX);

fn replica(me: u16) -> Replica {
    let configuration =
        Configuration::of_voters([1, 2, 3].map(ReplicaId), 4, std::time::Duration::ZERO).expect("three voters");
    let settings = Settings::new(ReplicaId(me), Incarnation(1), 1);
    let mut replica = Replica::new(settings, &Recovered::nothing(configuration), Instant(0));
    // Nobody knows more of its log than it does (P13).
    for from in [1, 2, 3].map(ReplicaId).into_iter().filter(|id| id.0 != me) {
        let (durable, known) = (LogPosition::default(), replica.position());
        let message = Message::Position { durable, known, asks: false };
        replica.step(Instant(0), Event::Received { from, message }, &mut Effects::new());
    }
    replica.step(Instant(0), Event::Ticked, &mut Effects::new());
    replica
}

fn told(replica: &mut Replica, from: u16, message: Message) -> Effects {
    let mut effects = Effects::new();
    let now = replica.deadline().min(Instant(1));
    replica.step(now, Event::Received { from: ReplicaId(from), message }, &mut effects);
    effects
}

fn ballot(round: u64, replica: u16) -> Ballot {
    Ballot { round, replica: ReplicaId(replica), incarnation: Incarnation(1) }
}

/// A replica that leads, promised by 2.
fn leader() -> Replica {
    let mut replica = replica(1);
    let mut effects = Effects::new();
    let now = replica.deadline();
    replica.step(now, Event::Ticked, &mut effects);
    told(&mut replica, 2, Message::ProbeAnswer { would: true, round: 0, chosen: Slot::NONE });
    let ballot = replica.promised();
    for from in [1, 2] {
        let promise = Message::Promise {
            ballot,
            cut: Slot::NONE,
            chosen: Slot::NONE,
            accepted: Vec::new(),
            lost: Vec::new(),
            voter: Voter::default(),
        };
        told(&mut replica, from, promise);
    }
    assert_eq!(replica.role(), Role::Coordinating);
    replica
}

#[test]
fn a_value_for_a_slot_far_beyond_the_horizon_is_not_accepted() {
    let mut replica = replica(2);
    let accept = Message::Accept { ballot: ballot(1, 1), slot: FAR, batch: Batch::NO_OP, chosen: Slot::NONE };
    assert_eq!(told(&mut replica, 1, accept), []);
    assert!(replica.acceptor().accepted_at(FAR).is_none());
    // The next one is.
    let accept = Message::Accept { ballot: ballot(1, 1), slot: Slot(1), batch: Batch::NO_OP, chosen: Slot::NONE };
    assert!(told(&mut replica, 1, accept).iter().any(|effect| matches!(effect, Effect::SendOnceDurable { .. })));
}

#[test]
fn entries_far_beyond_what_is_known_change_nothing() {
    for mut replica in [replica(2), leader()] {
        let batches = vec![Batch::NO_OP; 2];
        let effects = told(&mut replica, 3, Message::Entries { first: FAR, batches, chosen: FAR });
        assert!(!effects.iter().any(|effect| matches!(effect, Effect::Persist { .. } | Effect::Apply { .. })));
        assert_eq!(replica.chosen(), Slot::NONE);
    }
}

#[test]
fn a_promise_that_reports_what_no_acceptor_can_hold_does_not_count() {
    let mut replica = replica(1);
    let now = replica.deadline();
    replica.step(now, Event::Ticked, &mut Effects::new());
    told(&mut replica, 2, Message::ProbeAnswer { would: true, round: 0, chosen: Slot::NONE });
    assert_eq!(replica.role(), Role::Campaigning);
    let ballot = replica.promised();
    let accepted = vec![AcceptedSlot { slot: FAR, ballot: Ballot::NONE, batch: Batch::NO_OP }];
    told(
        &mut replica,
        1,
        Message::Promise {
            ballot,
            cut: Slot::NONE,
            chosen: Slot::NONE,
            accepted: Vec::new(),
            lost: Vec::new(),
            voter: Voter::default(),
        },
    );
    told(
        &mut replica,
        2,
        Message::Promise {
            ballot,
            cut: Slot::NONE,
            chosen: Slot::NONE,
            accepted,
            lost: Vec::new(),
            voter: Voter::default(),
        },
    );
    assert_eq!(replica.role(), Role::Campaigning);
    // One that knows everything to be chosen is chased, in vain.
    told(
        &mut replica,
        2,
        Message::Promise {
            ballot,
            cut: Slot::NONE,
            chosen: FAR,
            accepted: Vec::new(),
            lost: Vec::new(),
            voter: Voter::default(),
        },
    );
    assert_eq!(replica.role(), Role::Campaigning);
    assert!(replica.is_fetching());
}

/// Whom it asks for slots when replica 1, which coordinates, says how far the log is chosen.
fn asked(replica: &mut Replica, chosen: u64) -> Vec<u16> {
    let commit = Message::Commit { ballot: ballot(1, 1), chosen: Slot(chosen), tolerance: 1 };
    fetched(told(replica, 1, commit))
}

fn fetched(effects: Effects) -> Vec<u16> {
    let asks = |effect| match effect {
        Effect::Send { to, message: Message::Fetch { .. } } => Some(to.0),
        _ => None,
    };
    effects.into_iter().filter_map(asks).collect()
}

#[test]
fn who_is_far_behind_does_not_ask_the_coordinator_first() {
    assert_eq!(asked(&mut replica(2), 10), [1], "it has it in memory, and may be the only one who knows");
    let mut laggard = replica(2);
    assert_eq!(asked(&mut laggard, 10_000), [3]);
    // No answer: then the coordinator, which is not left as long as it helps.
    let mut effects = Effects::new();
    laggard.step(Instant(10_000_000_000), Event::Ticked, &mut effects);
    assert_eq!(fetched(effects), [1]);
    let entries = Message::Entries { first: Slot(1), batches: vec![Batch::NO_OP], chosen: Slot(10_000) };
    assert_eq!(fetched(told(&mut laggard, 1, entries)), [1]);
}
