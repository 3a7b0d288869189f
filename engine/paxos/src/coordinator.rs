//! The coordinator: elections, and each slot's way from proposal to choice.
//!
//! One propose covers all slots that are not chosen; while the coordinator stays, a slot needs phase 2 alone (PML §4.2).
//! Slots may be chosen out of order; the learner applies them in order.
//!
//! Invariants:
//!   - nothing is proposed before a majority, this replica's durable promise included or not, has promised (PML §4.1);
//!   - nothing is proposed at a slot that somebody in that majority knows to be chosen (P3);
//!   - one ballot proposes one value at one slot: a candidacy starts only under a round never used before (P1);
//!   - no slot is open beyond the chosen one plus the horizon (P5);
//!   - every ticket taken ends in exactly one of apply, refuse and abandon.

use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};

use crate::acceptor::{self, Acceptor};
use crate::batch::Batch;
use crate::configuration::{Configuration, Settings};
use crate::effect::Effect;
use crate::learner::{self, Learner};
use crate::message::{AcceptedSlot, Message};
use crate::types::{Ballot, Instant, ReplicaId, Slot, Ticket};
use crate::world::World;

/// What a replica is to the others right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It obeys the coordinator named here, if it knows of one.
    Following(Option<ReplicaId>),
    /// It asks for promises, or catches up on what they showed before it leads.
    Campaigning,
    /// A majority has promised to it: it proposes.
    Coordinating,
}

/// The coordinator's state.
#[derive(Clone)]
enum State {
    /// Somebody else coordinates, as far as we know; campaigns at the deadline.
    Following { coordinator: Option<ReplicaId>, deadline: Instant },
    /// Asked for promises; campaigns anew at the deadline.
    Proposing { candidacy: Candidacy, deadline: Instant },
    /// Promised by a majority that knows more slots to be chosen than we do: fetches them first (rule P3).
    CatchingUp { candidacy: Candidacy, deadline: Instant },
    /// Proposes.
    Leading(Leadership),
}

/// What can happen to a coordinator.
pub(crate) enum Event<'a> {
    Ticked,
    /// The own acceptor promised to this ballot, which may be the own.
    Promised {
        ballot: Ballot,
    },
    /// The own acceptor heard from whoever coordinates under this ballot, which may be this replica.
    Obeyed {
        ballot: Ballot,
    },
    Promise {
        from: ReplicaId,
        ballot: Ballot,
        chosen: Slot,
        accepted: Vec<AcceptedSlot>,
    },
    Acknowledge {
        from: ReplicaId,
        ballot: Ballot,
        slot: Slot,
    },
    Rejected {
        promised: Ballot,
    },
    Submitted {
        ticket: Ticket,
        batch: Batch,
    },
    /// Another replica tells what is chosen from a slot on.
    Told {
        first: Slot,
        batches: &'a [Batch],
    },
    /// More slots are chosen and applied than before.
    Progressed,
    /// The own disk is too far behind (rule P7).
    BackedUp,
}

/// A try at becoming coordinator.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Candidacy {
    ballot: Ballot,
    promised_by: Votes,
    /// The highest ballot's value per slot, of all that the promises reported.
    adopt: BTreeMap<Slot, (Ballot, Batch)>,
    /// The highest slot that a promiser knows to be chosen, and who that is.
    chosen: Slot,
    chosen_at: ReplicaId,
}

/// The time as coordinator.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Leadership {
    ballot: Ballot,
    /// The slot the next value goes to.
    next: Slot,
    /// Values that somebody may have got chosen, still to be proposed again.
    adopt: BTreeMap<Slot, (Ballot, Batch)>,
    /// All up to here is adopted or, where nobody in the quorum had accepted anything, filled with no-ops.
    adopt_upto: Slot,
    open: BTreeMap<Slot, Open>,
    last_sent: Instant,
}

/// A slot that is proposed and not yet chosen.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Open {
    batch: Batch,
    ticket: Option<Ticket>,
    votes: Votes,
    proposed_at: Instant,
    sent_at: Instant,
}

/// A set of members.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Votes(u64);

const _: () = assert!(Configuration::MEMBERS_MAX <= u64::BITS as usize);

impl Votes {
    /// Counts `from`; a stranger's vote is not one.
    fn add(&mut self, from: ReplicaId, configuration: &Configuration) {
        if let Ok(place) = configuration.members().binary_search(&from) {
            self.0 |= 1 << place;
        }
    }

    fn has(self, member: ReplicaId, configuration: &Configuration) -> bool {
        configuration.members().binary_search(&member).is_ok_and(|place| self.0 & (1 << place) != 0)
    }

    fn is_majority(self, configuration: &Configuration) -> bool {
        self.0.count_ones() as usize >= configuration.majority()
    }
}

/// Elections and proposals of one replica.
#[derive(Clone)]
pub struct Coordinator {
    state: State,
    /// The highest round heard of: the next candidacy goes above it.
    round: u64,
    random: fastrand::Rng,
}

/// Whatever the random generator will draw: how long an election waits says nothing of what may come of it.
#[derive(PartialEq, Eq, Hash)]
enum Essence<'a> {
    Following(Instant),
    Campaigning(bool, &'a Candidacy, Instant),
    Leading(&'a Leadership),
}

impl State {
    fn essence(&self) -> Essence<'_> {
        match self {
            State::Following { deadline, .. } => Essence::Following(*deadline),
            State::Proposing { candidacy, deadline } => Essence::Campaigning(false, candidacy, *deadline),
            State::CatchingUp { candidacy, deadline } => Essence::Campaigning(true, candidacy, *deadline),
            State::Leading(leadership) => Essence::Leading(leadership),
        }
    }
}

impl PartialEq for Coordinator {
    fn eq(&self, other: &Self) -> bool {
        (self.state.essence(), self.round) == (other.state.essence(), other.round)
    }
}

impl Eq for Coordinator {}

impl Hash for Coordinator {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.state.essence(), self.round).hash(hasher);
    }
}

impl Coordinator {
    pub(crate) fn new(settings: &Settings, promised: Ballot, now: Instant) -> Self {
        let mut random = fastrand::Rng::with_seed(settings.seed);
        let deadline = election_deadline(&mut random, settings, now);
        Self { state: State::Following { coordinator: None, deadline }, round: promised.round, random }
    }

    pub(crate) fn role(&self) -> Role {
        match &self.state {
            State::Following { coordinator, .. } => Role::Following(*coordinator),
            State::Proposing { .. } | State::CatchingUp { .. } => Role::Campaigning,
            State::Leading(_) => Role::Coordinating,
        }
    }

    pub(crate) fn deadline(&self, settings: &Settings) -> Instant {
        match &self.state {
            State::Following { deadline, .. }
            | State::Proposing { deadline, .. }
            | State::CatchingUp { deadline, .. } => *deadline,
            State::Leading(leadership) => leadership.deadline(settings),
        }
    }

    pub(crate) fn open_slots(&self) -> usize {
        match &self.state {
            State::Following { .. } | State::Proposing { .. } | State::CatchingUp { .. } => 0,
            State::Leading(leadership) => leadership.open.len(),
        }
    }

    pub(crate) fn has_room(&self, settings: &Settings, chosen: Slot) -> bool {
        match &self.state {
            State::Following { .. } | State::Proposing { .. } | State::CatchingUp { .. } => false,
            State::Leading(leadership) => leadership.has_room(settings, chosen),
        }
    }

    pub(crate) fn step(&mut self, event: Event, acceptor: &mut Acceptor, learner: &mut Learner, world: &mut World<'_>) {
        let vacant = State::Following { coordinator: None, deadline: world.now };
        self.state = match (std::mem::replace(&mut self.state, vacant), event) {
            (State::Following { deadline, coordinator }, Event::Ticked) => {
                if world.now < deadline {
                    State::Following { coordinator, deadline }
                } else {
                    self.campaign(acceptor, learner, world)
                }
            }
            (State::Proposing { candidacy, deadline }, Event::Ticked) => {
                if world.now < deadline {
                    State::Proposing { candidacy, deadline }
                } else {
                    self.campaign(acceptor, learner, world)
                }
            }
            (State::CatchingUp { candidacy, deadline }, Event::Ticked) => {
                if world.now < deadline {
                    State::CatchingUp { candidacy, deadline }
                } else {
                    // Whoever knows more did not help in time; anybody may try, ourselves included.
                    self.follow(None, world)
                }
            }
            (State::Leading(leadership), Event::Ticked) => {
                if leadership.is_stuck(world) {
                    self.step_down(leadership, world)
                } else {
                    State::Leading(leadership.keep_alive(learner.chosen(), world))
                }
            }

            (state, Event::Promised { ballot }) => self.yield_to(state, ballot, None, world),
            (state, Event::Obeyed { ballot }) => self.yield_to(state, ballot, Some(ballot.replica), world),
            (state @ State::Following { .. }, Event::Rejected { promised }) => {
                self.round = self.round.max(promised.round);
                state
            }
            (
                state @ (State::Proposing { .. } | State::CatchingUp { .. } | State::Leading(_)),
                Event::Rejected { promised },
            ) => self.yield_to(state, promised, None, world),

            (State::Proposing { mut candidacy, deadline }, Event::Promise { from, ballot, chosen, accepted }) => {
                candidacy.count(from, ballot, chosen, accepted, world);
                if candidacy.promised_by.is_majority(&world.settings.configuration) {
                    self.lead_when_caught_up(candidacy, acceptor, learner, world)
                } else {
                    State::Proposing { candidacy, deadline }
                }
            }
            (State::CatchingUp { mut candidacy, deadline }, Event::Promise { from, ballot, chosen, accepted }) => {
                candidacy.count(from, ballot, chosen, accepted, world);
                // It may know more than the majority did, and may be the one to ask.
                learner.step(candidacy.outrun(), acceptor, world);
                State::CatchingUp { candidacy, deadline }
            }
            // Late: the majority stood without it, or the candidacy is over.
            (state @ (State::Following { .. } | State::Leading(_)), Event::Promise { .. }) => state,

            (State::Leading(leadership), Event::Told { first, batches }) => {
                if leadership.is_contradicted(first, batches, learner.chosen()) {
                    self.step_down(leadership, world)
                } else {
                    State::Leading(leadership.agree(first, batches, acceptor, learner, world))
                }
            }
            (
                state @ (State::Following { .. } | State::Proposing { .. } | State::CatchingUp { .. }),
                Event::Told { .. },
            ) => state,

            (State::CatchingUp { candidacy, deadline }, Event::Progressed) => {
                if learner.chosen() >= candidacy.chosen {
                    State::Leading(self.lead(candidacy, acceptor, learner, world))
                } else {
                    State::CatchingUp { candidacy, deadline }
                }
            }
            (State::Leading(leadership), Event::Progressed) => {
                State::Leading(leadership.adopt_some(acceptor, learner, world))
            }
            (state @ (State::Following { .. } | State::Proposing { .. }), Event::Progressed) => state,

            (State::Leading(leadership), Event::Acknowledge { from, ballot, slot }) => {
                State::Leading(leadership.count(from, ballot, slot, acceptor, learner, world))
            }
            // Of a ballot that is over.
            (
                state @ (State::Following { .. } | State::Proposing { .. } | State::CatchingUp { .. }),
                Event::Acknowledge { .. },
            ) => state,

            (State::Leading(mut leadership), Event::Submitted { ticket, batch }) => {
                assert!(leadership.has_room(world.settings, learner.chosen()), "can_submit was not asked");
                leadership.propose(batch, Some(ticket), acceptor, learner, world);
                State::Leading(leadership)
            }
            (
                state @ (State::Following { .. } | State::Proposing { .. } | State::CatchingUp { .. }),
                Event::Submitted { ticket, .. },
            ) => {
                world.effects.push(Effect::Refuse { ticket });
                state
            }

            (State::Leading(leadership), Event::BackedUp) => self.step_down(leadership, world),
            (
                state @ (State::Following { .. } | State::Proposing { .. } | State::CatchingUp { .. }),
                Event::BackedUp,
            ) => state,
        };
    }

    fn election_deadline(&mut self, world: &World<'_>) -> Instant {
        election_deadline(&mut self.random, world.settings, world.now)
    }

    fn follow(&mut self, coordinator: Option<ReplicaId>, world: &World<'_>) -> State {
        State::Following { coordinator, deadline: self.election_deadline(world) }
    }

    /// Asks everyone, ourselves first, for a promise under a ballot never used before. A replica whose log has no room, or
    /// whose disk is far behind, could not finish what it would adopt: it waits.
    fn campaign(&mut self, acceptor: &mut Acceptor, learner: &Learner, world: &mut World<'_>) -> State {
        if acceptor.is_full() || world.journal.is_backed_up(world.settings) {
            return self.follow(None, world);
        }
        self.round = self.round.max(acceptor.promised().round).checked_add(1).expect("fewer than 2^64 elections");
        let Settings { me, incarnation, .. } = *world.settings;
        let ballot = Ballot { round: self.round, replica: me, incarnation };
        assert!(ballot > acceptor.promised(), "a candidacy under an old ballot could choose a second value");
        // The acceptor sends the propose on once this promise is durable (rule P1).
        acceptor.step(acceptor::Event::Proposed { from: me, ballot }, learner.chosen(), world);
        let candidacy = Candidacy {
            ballot,
            promised_by: Votes::default(),
            adopt: BTreeMap::new(),
            chosen: learner.chosen(),
            chosen_at: me,
        };
        State::Proposing { candidacy, deadline: self.election_deadline(world) }
    }

    /// Somebody's ballot is obeyed here, or promised elsewhere: if it is above ours, ours is over.
    fn yield_to(&mut self, state: State, ballot: Ballot, leader: Option<ReplicaId>, world: &mut World<'_>) -> State {
        self.round = self.round.max(ballot.round);
        match state {
            State::Following { .. } => self.follow(leader, world),
            State::Proposing { ref candidacy, .. } | State::CatchingUp { ref candidacy, .. } => {
                if ballot > candidacy.ballot { self.follow(leader, world) } else { state }
            }
            State::Leading(leadership) => {
                if ballot > leadership.ballot {
                    abandon(leadership, world);
                    self.follow(leader, world)
                } else {
                    State::Leading(leadership)
                }
            }
        }
    }

    fn lead_when_caught_up(
        &mut self,
        candidacy: Candidacy,
        acceptor: &mut Acceptor,
        learner: &mut Learner,
        world: &mut World<'_>,
    ) -> State {
        if learner.chosen() >= candidacy.chosen {
            return State::Leading(self.lead(candidacy, acceptor, learner, world));
        }
        learner.step(candidacy.outrun(), acceptor, world);
        State::CatchingUp { candidacy, deadline: self.election_deadline(world) }
    }

    /// A majority has promised and nothing chosen is missing here: from now on, phase 2 alone.
    fn lead(
        &mut self,
        candidacy: Candidacy,
        acceptor: &mut Acceptor,
        learner: &mut Learner,
        world: &mut World<'_>,
    ) -> Leadership {
        let chosen = learner.chosen();
        let mut adopt = candidacy.adopt;
        adopt.retain(|slot, _| *slot > chosen);
        let leadership = Leadership {
            ballot: candidacy.ballot,
            next: chosen.next(),
            adopt_upto: adopt.last_key_value().map_or(chosen, |(slot, _)| *slot),
            adopt,
            open: BTreeMap::new(),
            last_sent: world.now,
        };
        // At once, so that nobody else campaigns, and clients learn where to go.
        leadership.adopt_some(acceptor, learner, world).commit(learner.chosen(), world)
    }

    fn step_down(&mut self, leadership: Leadership, world: &mut World<'_>) -> State {
        abandon(leadership, world);
        self.follow(None, world)
    }
}

/// Mastership is over. What was open may still be chosen, by whoever adopts it.
fn abandon(leadership: Leadership, world: &mut World<'_>) {
    for ticket in leadership.open.into_values().filter_map(|open| open.ticket) {
        world.effects.push(Effect::Abandon { ticket });
    }
}

fn election_deadline(random: &mut fastrand::Rng, settings: &Settings, now: Instant) -> Instant {
    // Spread over as long again, so that two replicas that lost the same coordinator seldom campaign at once.
    let spread = u64::try_from(settings.election_timeout.as_nanos()).unwrap_or(u64::MAX).max(1);
    now.after(settings.election_timeout).after(std::time::Duration::from_nanos(random.u64(..spread)))
}

impl Candidacy {
    fn outrun(&self) -> learner::Event {
        learner::Event::Outrun { from: self.chosen_at, upto: self.chosen }
    }

    /// Counts a promise, and keeps of each slot the value with the highest ballot.
    fn count(&mut self, from: ReplicaId, ballot: Ballot, chosen: Slot, accepted: Vec<AcceptedSlot>, world: &World<'_>) {
        // No acceptor of ours holds more than this (rule P5), or anything under a ballot that it promises only now.
        let bound = chosen.max(self.chosen).plus(2 * world.settings.configuration.horizon());
        let sound = |reported: &AcceptedSlot| reported.slot <= bound && reported.ballot < ballot;
        if ballot != self.ballot || !accepted.iter().all(sound) {
            return;
        }
        self.promised_by.add(from, &world.settings.configuration);
        if chosen > self.chosen {
            self.chosen = chosen;
            self.chosen_at = from;
        }
        for AcceptedSlot { slot, ballot, batch } in accepted {
            let higher = self.adopt.get(&slot).is_none_or(|(known, _)| ballot > *known);
            if higher {
                self.adopt.insert(slot, (ballot, batch));
            }
        }
    }
}

impl Leadership {
    fn has_room(&self, settings: &Settings, chosen: Slot) -> bool {
        let adopted_all = self.next > self.adopt_upto;
        let window_open = (self.open.len() as u64) < settings.window;
        adopted_all && window_open && self.next <= chosen.plus(settings.configuration.horizon())
    }

    fn deadline(&self, settings: &Settings) -> Instant {
        let heartbeat = self.last_sent.after(settings.heartbeat);
        self.open.values().map(|open| open.sent_at.after(settings.resend())).fold(heartbeat, Instant::min)
    }

    /// Proposes a value at the next slot: the accepts leave now, beside our own disk's work (PML §4.2).
    fn propose(
        &mut self,
        batch: Batch,
        ticket: Option<Ticket>,
        acceptor: &mut Acceptor,
        learner: &Learner,
        world: &mut World<'_>,
    ) {
        let slot = self.next;
        self.next = slot.next();
        let chosen = learner.chosen();
        for to in world.settings.others() {
            world.send(to, Message::Accept { ballot: self.ballot, slot, batch: batch.clone(), chosen });
        }
        let me = world.settings.me;
        let event = acceptor::Event::Asked { from: me, ballot: self.ballot, slot, batch: batch.clone() };
        acceptor.step(event, chosen, world);
        let open = Open { batch, ticket, votes: Votes::default(), proposed_at: world.now, sent_at: world.now };
        self.open.insert(slot, open);
        self.last_sent = world.now;
    }

    /// Proposes again, in order and within the horizon, what the promises reported; no-ops where they reported nothing.
    fn adopt_some(mut self, acceptor: &mut Acceptor, learner: &Learner, world: &mut World<'_>) -> Self {
        let bound = learner.chosen().plus(world.settings.configuration.horizon());
        while self.next <= self.adopt_upto && self.next <= bound {
            let batch = self.adopt.remove(&self.next).map_or(Batch::NO_OP, |(_, batch)| batch);
            self.propose(batch, None, acceptor, learner, world);
        }
        self
    }

    /// Counts a vote; a majority makes the slot chosen.
    fn count(
        mut self,
        from: ReplicaId,
        ballot: Ballot,
        slot: Slot,
        acceptor: &mut Acceptor,
        learner: &mut Learner,
        world: &mut World<'_>,
    ) -> Self {
        if ballot != self.ballot {
            return self;
        }
        let Some(open) = self.open.get_mut(&slot) else { return self };
        open.votes.add(from, &world.settings.configuration);
        if open.votes.is_majority(&world.settings.configuration) {
            let open = self.open.remove(&slot).expect("it was found above");
            learner.decide(slot, open.batch, open.ticket, acceptor, world);
        }
        self
    }

    /// Whether somebody chose what we did not propose: then a higher ballot has been at work, and we are superseded. To
    /// go on would be wrong, not only useless: our commit slot would cover a value that we never proposed, and prove to
    /// a follower that what it accepted from us is chosen (rule P4).
    fn is_contradicted(&self, first: Slot, batches: &[Batch], chosen: Slot) -> bool {
        (first.0..).map(Slot).zip(batches).any(|(slot, batch)| {
            slot > chosen && self.open.get(&slot).is_none_or(|open| open.batch != *batch) && !self.is_decided(slot)
        })
    }

    /// Whether a majority has been counted for a slot that waits behind a gap.
    fn is_decided(&self, slot: Slot) -> bool {
        slot < self.next && !self.open.contains_key(&slot)
    }

    /// What we proposed is chosen, says somebody who knows: no more votes are needed.
    fn agree(
        mut self,
        first: Slot,
        batches: &[Batch],
        acceptor: &mut Acceptor,
        learner: &mut Learner,
        world: &mut World<'_>,
    ) -> Self {
        for slot in (first.0..).map(Slot).take(batches.len()) {
            if let Some(open) = self.open.remove(&slot) {
                learner.decide(slot, open.batch, open.ticket, acceptor, world);
            }
        }
        self
    }

    fn is_stuck(&self, world: &World<'_>) -> bool {
        self.open.values().any(|open| world.now.since(open.proposed_at) > world.settings.stuck())
    }

    /// Sends again what was not acknowledged, and tells that we live if nothing else did.
    fn keep_alive(mut self, chosen: Slot, world: &mut World<'_>) -> Self {
        for (slot, open) in &mut self.open {
            if world.now < open.sent_at.after(world.settings.resend()) {
                continue;
            }
            // No heartbeat to those who need not be sent this again.
            open.sent_at = world.now;
            for to in world.settings.others() {
                if !open.votes.has(to, &world.settings.configuration) {
                    let message =
                        Message::Accept { ballot: self.ballot, slot: *slot, batch: open.batch.clone(), chosen };
                    world.send(to, message);
                }
            }
        }
        if world.now >= self.last_sent.after(world.settings.heartbeat) {
            self = self.commit(chosen, world);
        }
        self
    }

    fn commit(mut self, chosen: Slot, world: &mut World<'_>) -> Self {
        for to in world.settings.others() {
            world.send(to, Message::Commit { ballot: self.ballot, chosen });
        }
        self.last_sent = world.now;
        self
    }
}
