//! How a replica that lost state votes again (rule P11).
//!
//! 1. It asks all members which of its lives they know of. With answers from a majority, itself not counted, it takes a higher one.
//! 2. It asks again, under that life. Each that answers has made it durable in its crash vector, and tells what it has promised and
//!    accepted, and how far it knows the log to be chosen.
//! 3. With such answers from a majority, itself not counted, and with all that they know to be chosen learned, it adopts the highest
//!    promise and of each slot the highest acceptance, durably and together with its new life, waits one lease, and votes.
//!
//! Two rounds, and not one: under a life that each of those asked would count up for itself no two of them might agree, and under
//! one that is guessed it might meet its own earlier try. `docs/rejoin.md` has the argument. Who is rejoining itself remembers
//! nothing that counts, and is not counted.

use std::collections::BTreeMap;

use crate::batch::Batch;
use crate::effect::Effect;
use crate::lives::{self, Voter};
use crate::message::{AcceptedSlot, Message};
use crate::types::{Ballot, Incarnation, Instant, ReplicaId, ReplicaSet, Slot};
use crate::world::World;
use crate::{acceptor, learner, standing};

/// What a member answers.
#[derive(Clone)]
pub(crate) struct Answer {
    pub(crate) from: ReplicaId,
    /// The life under which it was asked.
    pub(crate) asked: Incarnation,
    /// The highest life of the asker's that it knows of.
    pub(crate) known: Incarnation,
    pub(crate) is_lost: bool,
    pub(crate) promised: Ballot,
    pub(crate) chosen: Slot,
    pub(crate) accepted: Vec<AcceptedSlot>,
    pub(crate) voter: Voter,
}

/// A try at rejoining.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Rejoin {
    pub(crate) ask_at: Instant,
    /// Under this life; [`Incarnation::NONE`] while it asks which there have been.
    incarnation: Incarnation,
    /// The highest that anybody knows of.
    known: Incarnation,
    answered: ReplicaSet,
    /// Who has lost its own state and cannot help.
    lost: ReplicaSet,
    promised: Ballot,
    accepted: BTreeMap<Slot, (Ballot, Batch)>,
    /// All up to here is chosen, says somebody: it is learned first.
    chosen: Slot,
}

/// How far a replica that lost state has come.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejoining {
    /// The life that it has taken; [`Incarnation::NONE`] while it asks which there have been.
    pub incarnation: Incarnation,
    /// Who has answered, and made that life durable.
    pub answered: ReplicaSet,
    /// Who says that it has lost its own state.
    pub lost: ReplicaSet,
    /// All up to here is chosen, say those that answered: it is learned first.
    pub upto: Slot,
    /// So many have lost their state that the rest is no majority: the cell stops, and only a person can go on from here.
    pub is_hopeless: bool,
}

/// Begins, durably: whatever else is in the own log, it is not all that this replica has promised.
pub(crate) fn begin(world: &mut World<'_>) {
    world.core.lives.own = Incarnation::NONE;
    // What waited for the disk is a life's that is over; nobody counts it once there is another.
    world.core.rejoin = Rejoin { ask_at: world.now, chosen: world.chosen(), ..Rejoin::default() };
    world.persist_hard_state();
    ask(world);
}

pub(crate) fn is_waiting(world: &World<'_>) -> bool {
    world.now < world.core.rejoin.ask_at
}

/// Asks all that have not answered.
pub(crate) fn ask(world: &mut World<'_>) {
    if !world.core.lives.is_lost() {
        return begin(world);
    }
    world.core.rejoin.ask_at = world.now.after(world.core.settings.resend());
    for at in 0..world.core.membership.others().len() {
        let to = world.core.membership.others()[at];
        if !world.core.rejoin.answered.contains(to) {
            world.send(to, Message::Rejoin { incarnation: world.core.rejoin.incarnation });
        }
    }
}

/// Another replica lost its state: its new life is durable here before it is told what is known here.
pub(crate) fn answer(to: ReplicaId, asked: Incarnation, world: &mut World<'_>) {
    if !world.core.standing.may_answer(world.core) && !world.core.lives.is_lost() {
        return;
    }
    let chosen = world.known();
    if !world.core.acceptor.lost_above(chosen).is_empty() {
        // It may have accepted more than it could tell of (L5): it answers when that is chosen, or accepted again.
        return;
    }
    let is_lost = world.core.lives.is_lost();
    let mut known = world.core.lives.vector.of(to);
    let is_counted = !is_lost && asked > Incarnation::NONE;
    if is_counted && world.core.lives.vector.note(to, asked) {
        known = asked;
        world.persist_hard_state();
    }
    let is_told = is_counted && known == asked;
    let accepted = if is_told { world.core.acceptor.reported_above(chosen) } else { Vec::new() };
    let message = Message::RejoinAnswer {
        asked,
        known,
        is_lost,
        promised: world.core.acceptor.promised(),
        chosen: chosen.max(world.core.learner.heard_of()),
        accepted,
        voter: world.core.lives.voter(),
    };
    // All that it tells of, and the new life, is in records up to here.
    let upto = world.core.journal.last();
    world.effects.push(match world.core.journal.oldest() {
        None => Effect::Send { to, message },
        Some(_) => Effect::SendOnceDurable { to, message, upto },
    });
}

/// Counts an answer; in the first round a majority of them lets the second begin.
pub(crate) fn note(answer: Answer, world: &mut World<'_>) {
    let rejoin = &mut world.core.rejoin;
    if answer.is_lost {
        rejoin.lost.insert(answer.from);
        return;
    }
    rejoin.lost.remove(answer.from);
    if !crate::planted!(P11ForgetsLives) {
        // Nobody's votes are counted here, so none are to be dropped.
        lives::learn(answer.from, &answer.voter, world);
    }
    let rejoin = &mut world.core.rejoin;
    rejoin.known = rejoin.known.max(answer.known);
    if answer.asked != rejoin.incarnation {
        return;
    }
    let is_first_round = rejoin.incarnation == Incarnation::NONE;
    if !is_first_round && answer.known > rejoin.incarnation {
        // Somebody remembers a try of an earlier start that came further: above that one.
        return take_life(world);
    }
    rejoin.answered.insert(answer.from);
    if is_first_round {
        if crate::planted!(P11VotesAfterOneInstance) {
            rejoin.chosen = rejoin.chosen.max(answer.chosen);
        } else if has_majority(world) {
            take_life(world);
        }
        return;
    }
    rejoin.promised = rejoin.promised.max(answer.promised);
    let mut upto = answer.chosen;
    for AcceptedSlot { slot, ballot, batch } in answer.accepted {
        // Nobody was asked to accept it before all but a horizon below it was chosen (P5).
        upto = upto.max(Slot(slot.0.saturating_sub(world.core.membership.horizon())));
        if rejoin.accepted.get(&slot).is_none_or(|(known, _)| ballot > *known) {
            rejoin.accepted.insert(slot, (ballot, batch));
        }
    }
    rejoin.chosen = rejoin.chosen.max(upto);
    let upto = rejoin.chosen;
    learner::outrun(answer.from, upto, world);
}

/// The second round: a life above all that anybody knows of.
fn take_life(world: &mut World<'_>) {
    let nonce = world.core.random.0.u64(..);
    let rejoin = &mut world.core.rejoin;
    let known = rejoin.known.max(rejoin.incarnation);
    let incarnation = if crate::planted!(P11KeepsOldIncarnation) { known } else { known.after(nonce) };
    *rejoin = Rejoin { incarnation, known, lost: rejoin.lost, chosen: rejoin.chosen, ..Rejoin::default() };
    ask(world);
}

/// A majority of each configuration in question answered, this replica not among them.
fn has_majority(world: &World<'_>) -> bool {
    world.core.membership.is_majority_of_all(world.core.rejoin.answered)
}

/// Nothing is missing any more: a majority remembers the new life, and what they know to be chosen is learned.
pub(crate) fn is_healed(world: &World<'_>) -> bool {
    let rejoin = &world.core.rejoin;
    if crate::planted!(P11VotesAfterOneInstance) {
        // PML's own rule: one whole instance that began after the loss was noticed, whoever decided it.
        return !rejoin.answered.is_empty() && world.chosen() > rejoin.chosen;
    }
    rejoin.incarnation > Incarnation::NONE && has_majority(world) && world.chosen() >= rejoin.chosen
}

/// Adopts what the majority remembers, and is a voter's life again once the lease is over that it may have granted.
pub(crate) fn adopt(world: &mut World<'_>) -> standing::Waiting {
    let mut rejoin = std::mem::take(&mut world.core.rejoin);
    world.core.lives.own = rejoin.incarnation;
    if crate::planted!(P11VotesAfterOneInstance) {
        world.core.lives.own = Incarnation::FIRST;
        (rejoin.promised, rejoin.accepted) = (Ballot::NONE, BTreeMap::new());
    }
    acceptor::adopt(rejoin.promised, rejoin.accepted, world);
    let until = world.now.after(world.core.membership.lease());
    // Nobody can know more of a life that has only begun.
    standing::Waiting { until, from: world.core.lives.position(), heard: rejoin.answered, ask_at: until }
}

impl Rejoin {
    pub(crate) fn from(ask_at: Instant) -> Self {
        Self { ask_at, ..Self::default() }
    }

    /// How far it has come.
    pub(crate) fn progress(&self, world_members: &crate::membership::Membership, me: ReplicaId) -> Rejoining {
        let helpful = world_members.others().iter().copied().filter(|id| !self.lost.contains(*id) && *id != me);
        Rejoining {
            incarnation: self.incarnation,
            answered: self.answered,
            lost: self.lost,
            upto: self.chosen,
            is_hopeless: !world_members.is_majority_of_all(helpful.collect()),
        }
    }
}
