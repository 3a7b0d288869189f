//! Guards and actions up to the moment a majority has promised.

use std::collections::BTreeMap;

use super::{Leadership, ProbeAnswer, Promise, State};
use crate::batch::Batch;
use crate::effect::Effect;
use crate::message::{AcceptedSlot, LostSlots, Message};
use crate::types::{Ballot, Instant, ReplicaId, ReplicaSet, Slot};
use crate::world::{Core, World};
use crate::{acceptor, grant, learner, standing};

/// Somebody else coordinates, or nobody does.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Idle {
    pub(crate) coordinator: Option<ReplicaId>,
    /// When the coordinator was last heard of.
    heard_at: Instant,
    /// Then we ask whether to campaign.
    pub(crate) deadline: Instant,
    /// Whether we stood back once already for somebody who knows more.
    deferred: bool,
}

/// Asks the voters whether they would promise.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Probing {
    would: ReplicaSet,
    pub(crate) deadline: Instant,
    deferred: bool,
}

/// A try at becoming coordinator.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Candidacy {
    pub(crate) ballot: Ballot,
    /// Whose lease was released to us, if any was.
    pub(crate) released: Ballot,
    pub(crate) promised_by: ReplicaSet,
    /// The highest ballot's value per slot, of all that the promises reported.
    pub(crate) adopt: BTreeMap<Slot, (Ballot, Batch)>,
    /// Where promisers may have accepted more than they report (L5).
    lost: Vec<(ReplicaId, LostSlots)>,
    /// The highest slot that a promiser knows to be chosen, and who that is.
    pub(crate) chosen: Slot,
    pub(crate) chosen_at: ReplicaId,
    pub(crate) deadline: Instant,
}

impl Idle {
    pub(crate) fn start(world: &mut World<'_>) -> Self {
        make_way(Ballot::NONE, world)
    }

    /// Whether the coordinator has been heard of so lately that nobody should campaign against it.
    fn is_content(&self, core: &Core, now: Instant) -> bool {
        self.coordinator.is_some() && now.since(self.heard_at) < core.settings.election_timeout
    }
}

impl State {
    /// Whether this replica would promise to `candidate` now, if it were asked to.
    pub(crate) fn would_promise(&self, candidate: ReplicaId, core: &Core, now: Instant) -> bool {
        let is_free = match self {
            // Who asks does not lead.
            State::Idle(idle) => idle.coordinator == Some(candidate) || !idle.is_content(core, now),
            State::Probing(_) => true,
            State::Proposing(_) | State::CatchingUp(_) => false,
            State::Leading(_) | State::Boosting(_) | State::HandingOver(_) => false,
        };
        // Who could not accept anything helps nobody to lead, nor does whose promise would not become durable; and each election takes
        // from what a full log keeps in reserve.
        is_free
            && !core.acceptor.is_full()
            && !core.is_backed_up()
            && !core.is_stalled(now)
            && core.standing == standing::State::Voting
            && core.membership.is_voter(candidate)
            && core.grant.binds_against(candidate, now).is_none()
    }
}

// Idle.

pub(super) fn is_early(idle: &Idle, world: &World<'_>) -> bool {
    world.now < idle.deadline
}

/// A replica that does not vote or has granted a lease must not; one whose log has no room, or whose disk is far behind,
/// could not finish what it would adopt; one whose state is not to be trusted must not answer from it (P14).
pub(super) fn may_not_campaign(world: &World<'_>) -> bool {
    is_unfit(world) || world.core.grant.binds_against(world.me(), world.now).is_some()
}

fn is_unfit(world: &World<'_>) -> bool {
    let core = &world.core;
    let votes = core.standing == standing::State::Voting && core.membership.is_voter(world.me());
    !votes || core.acceptor.is_full() || core.quarantined || world.is_backed_up() || world.is_stalled()
}

/// Until whatever keeps us from campaigning is over, if that is known.
pub(super) fn rest_on(idle: &mut Idle, world: &mut World<'_>) {
    let waiting = match world.core.standing {
        // Past the lease it may still have to hear from a majority.
        standing::State::Waiting(waiting) => Some(waiting.until.max(waiting.ask_at)),
        standing::State::Voting | standing::State::Learning | standing::State::Outside | standing::State::Rejoining => {
            None
        }
    };
    let until = waiting.or(world.core.grant.binds_against(world.me(), world.now));
    idle.coordinator = None;
    idle.deadline = match until {
        Some(until) => world.soon_after(until),
        None => world.after_about(world.core.settings.election_timeout),
    };
}

pub(super) fn is_alone(world: &World<'_>) -> bool {
    world.core.membership.is_majority_of_all(std::iter::once(world.me()).collect())
}

pub(super) fn probe(idle: &mut Idle, world: &mut World<'_>) -> Probing {
    let chosen = world.chosen();
    for at in 0..world.core.membership.others().len() {
        let to = world.core.membership.others()[at];
        if world.core.membership.is_voter(to) {
            world.send(to, Message::Probe { chosen });
        }
    }
    let deadline = world.after_about(world.core.settings.resend());
    Probing { would: std::iter::once(world.me()).collect(), deadline, deferred: idle.deferred }
}

pub(super) fn obey(idle: &mut Idle, ballot: Ballot, world: &mut World<'_>) {
    *idle = follow(ballot, world);
}

/// Somebody campaigns: it gets its time.
pub(super) fn expect_candidate(idle: &mut Idle, ballot: Ballot, world: &mut World<'_>) {
    *idle = make_way(ballot, world);
}

pub(super) fn is_whom_we_follow(idle: &Idle, released: &Ballot, _: &World<'_>) -> bool {
    idle.coordinator == Some(released.replica)
}

/// Nobody leads now, for certain: no need to wait for the silence.
pub(super) fn expect_vacancy(idle: &mut Idle, _: Ballot, world: &mut World<'_>) {
    idle.coordinator = None;
    idle.deadline = world.soon_after(world.now).min(idle.deadline);
}

/// The prober knows less than we do, and nobody leads: it will stand back for us.
pub(super) fn is_better_placed(idle: &Idle, chosen: &Slot, world: &World<'_>) -> bool {
    world.chosen() > *chosen && !idle.is_content(world.core, world.now) && !may_not_campaign(world)
}

pub(super) fn probe_too(idle: &mut Idle, _: Slot, world: &mut World<'_>) -> Probing {
    probe(idle, world)
}

pub(super) fn follow(ballot: Ballot, world: &mut World<'_>) -> Idle {
    note_round(ballot, world);
    world.core.held_up = None;
    let deadline = world.after_about(world.core.settings.election_timeout);
    Idle { coordinator: Some(ballot.replica), heard_at: world.now, deadline, deferred: false }
}

pub(super) fn make_way(ballot: Ballot, world: &mut World<'_>) -> Idle {
    note_round(ballot, world);
    let deadline = world.after_about(world.core.settings.election_timeout);
    Idle { deadline, ..Idle::default() }
}

pub(super) fn note_round(ballot: Ballot, world: &mut World<'_>) {
    world.core.round = world.core.round.max(ballot.round);
}

// Probing.

pub(super) fn is_asking(probing: &Probing, world: &World<'_>) -> bool {
    world.now < probing.deadline
}

pub(super) fn give_up_probe(_: &mut Probing, world: &mut World<'_>) -> Idle {
    let deadline = world.after_about(world.core.settings.heartbeat);
    Idle { deadline, ..Idle::default() }
}

pub(super) fn hear_answer(answer: ProbeAnswer, world: &mut World<'_>) {
    world.core.round = world.core.round.max(answer.round);
    learner::outrun(answer.from, answer.chosen, world);
}

pub(super) fn is_refused(_: &Probing, answer: &ProbeAnswer, _: &World<'_>) -> bool {
    !answer.would
}

pub(super) fn hear_and_count(answer: ProbeAnswer, world: &mut World<'_>) {
    hear_answer(answer, world);
}

/// The most caught-up is preferred, once: it heard our probe too, and may lead. If it does not, nobody is helped by waiting.
pub(super) fn should_defer(probing: &Probing, answer: &ProbeAnswer, world: &World<'_>) -> bool {
    answer.chosen > world.chosen() && !probing.deferred
}

pub(super) fn defer(_: &mut Probing, answer: ProbeAnswer, world: &mut World<'_>) -> Idle {
    hear_answer(answer, world);
    let deadline = world.after_about(world.core.settings.heartbeat);
    Idle { deadline, deferred: true, ..Idle::default() }
}

pub(super) fn completes_probe(probing: &Probing, answer: &ProbeAnswer, world: &World<'_>) -> bool {
    let mut would = probing.would;
    would.insert(answer.from);
    world.core.membership.is_majority_of_all(would) && !may_not_campaign(world)
}

pub(super) fn campaign_after(_: &mut Probing, answer: ProbeAnswer, world: &mut World<'_>) -> Candidacy {
    hear_answer(answer, world);
    campaign(world)
}

pub(super) fn count_answer(probing: &mut Probing, answer: ProbeAnswer, world: &mut World<'_>) {
    hear_answer(answer, world);
    probing.would.insert(answer.from);
}

// Proposing.

pub(super) fn campaign(world: &mut World<'_>) -> Candidacy {
    campaign_released(Ballot::NONE, world)
}

pub(super) fn is_not_for_us(ballot: &Ballot, world: &World<'_>) -> bool {
    let is_theirs = *ballot == world.core.acceptor.promised();
    !is_theirs || is_unfit(world) || world.core.grant.binds_against(ballot.replica, world.now).is_some()
}

pub(super) fn take_over(ballot: Ballot, world: &mut World<'_>) -> Candidacy {
    grant::tell(grant::Event::Released(ballot), world);
    campaign_released(ballot, world)
}

/// Asks everyone, ourselves first, for a promise under a ballot never used before. The propose leaves with the own promise
/// durable, so that no restart can make this replica use the ballot again (rule P1).
pub(super) fn campaign_released(released: Ballot, world: &mut World<'_>) -> Candidacy {
    let promised = world.core.acceptor.promised();
    let highest = world.core.round.max(promised.round);
    world.core.round = highest.checked_add(1).expect("fewer than 2^64 elections");
    if crate::planted!(P1ReusesBallot) && promised.replica == world.me() {
        world.core.round = promised.round;
    }
    let ballot = Ballot { round: world.core.round, replica: world.me(), incarnation: world.core.lives.own };
    assert!(ballot > promised || crate::planted!(P1ReusesBallot), "under an old ballot it could choose a second value");
    acceptor::tell(acceptor::Event::Proposed(acceptor::Proposed { from: world.me(), ballot }), world);
    assert!(world.core.acceptor.promised() == ballot, "nobody campaigns who may not promise to itself");
    let upto = world.core.journal.last();
    for to in world.core.membership.others() {
        let message = Message::Propose { ballot, released };
        let effect = if crate::planted!(P1ProposesBeforeOwnPromise) {
            Effect::Send { to: *to, message }
        } else {
            Effect::SendOnceDurable { to: *to, message, upto }
        };
        world.effects.push(effect);
    }
    let deadline = world.after_about(world.core.settings.election_timeout);
    let (chosen, chosen_at) = (world.chosen(), world.me());
    Candidacy { ballot, released, chosen, chosen_at, deadline, ..Candidacy::default() }
}

/// Asks those who have not promised yet again, or for the first time; once more not before the own promise is durable.
pub(super) fn ask_the_others(candidacy: &Candidacy, world: &mut World<'_>) {
    let upto = world.core.journal.last();
    // With nothing to flush no news of durability would come, and the question would wait for it.
    let is_durable = world.core.journal.oldest().is_none();
    for to in world.core.membership.others() {
        if !candidacy.promised_by.contains(*to) {
            let (to, message) = (*to, Message::Propose { ballot: candidacy.ballot, released: candidacy.released });
            world.effects.push(match is_durable {
                true => Effect::Send { to, message },
                false => Effect::SendOnceDurable { to, message, upto },
            });
        }
    }
}

pub(super) fn is_trying(candidacy: &Candidacy, world: &World<'_>) -> bool {
    world.now < candidacy.deadline
}

/// Whoever promised to us, or knows more, did not help in time; anybody may try, ourselves included.
pub(super) fn give_up(candidacy: &mut Candidacy, world: &mut World<'_>) -> Idle {
    if candidacy.chosen > world.chosen() {
        // What the own log has lost, and is known to be chosen, nobody has sent.
        let next = world.core.acceptor.lost_at(world.chosen().next());
        world.core.held_up = next.or(world.core.held_up);
    }
    let deadline = world.after_about(world.core.settings.heartbeat);
    Idle { deadline, ..Idle::default() }
}

pub(super) fn outbids_candidacy(candidacy: &Candidacy, ballot: &Ballot, _: &World<'_>) -> bool {
    *ballot > candidacy.ballot
}

/// Whoever rejects has promised more. To somebody who campaigns or leads, it may be; or to itself, in a boost that its silent disk
/// has kept it from finishing, and then nobody does. A probe tells, and disturbs nobody.
pub(super) fn ask_soon(promised: Ballot, world: &mut World<'_>) -> Idle {
    note_round(promised, world);
    let deadline = world.after_about(world.core.settings.heartbeat);
    Idle { deadline, ..Idle::default() }
}

pub(super) fn is_unsound(candidacy: &Candidacy, promise: &Promise, world: &World<'_>) -> bool {
    // No acceptor of ours holds more than this (rule P5), or anything under a ballot that it promises only now.
    let bound = promise.chosen.max(candidacy.chosen).plus(2 * world.core.membership.horizon());
    let is_sound = |reported: &AcceptedSlot| reported.slot <= bound && reported.ballot < promise.ballot;
    promise.ballot != candidacy.ballot || !promise.accepted.iter().all(is_sound)
}

pub(super) fn completes(candidacy: &Candidacy, promise: &Promise, world: &World<'_>) -> bool {
    if candidacy.lost.is_empty() && promise.lost.is_empty() {
        let mut promised_by = candidacy.promised_by;
        promised_by.insert(promise.from);
        return world.core.membership.is_majority_of_all(promised_by);
    }
    let mut counted = candidacy.clone();
    counted.count(promise.clone());
    world.core.membership.is_majority_of_all(counted.clear(world.chosen()))
}

pub(super) fn completes_behind(candidacy: &Candidacy, promise: &Promise, world: &World<'_>) -> bool {
    let is_behind = candidacy.chosen.max(promise.chosen) > world.chosen();
    completes(candidacy, promise, world) && is_behind && !crate::planted!(P3LeadsBehind)
}

pub(super) fn count_promise(candidacy: &mut Candidacy, promise: Promise, world: &mut World<'_>) {
    candidacy.count(promise);
    if world.core.membership.is_majority_of_all(candidacy.promised_by) {
        world.core.held_up = candidacy.blind(world.chosen()).next().map(|(_, lost)| lost);
    }
}

pub(super) fn count_and_lead(candidacy: &mut Candidacy, promise: Promise, world: &mut World<'_>) -> Leadership {
    candidacy.count(promise);
    lead(candidacy, world)
}

pub(super) fn count_and_chase(candidacy: &mut Candidacy, promise: Promise, world: &mut World<'_>) -> Candidacy {
    count_and_chase_more(candidacy, promise, world);
    candidacy.deadline = world.after_about(world.core.settings.election_timeout);
    std::mem::take(candidacy)
}

pub(super) fn count_and_chase_more(candidacy: &mut Candidacy, promise: Promise, world: &mut World<'_>) {
    candidacy.count(promise);
    learner::outrun(candidacy.chosen_at, candidacy.chosen, world);
}

pub(super) fn is_still_behind(candidacy: &Candidacy, world: &World<'_>) -> bool {
    world.chosen() < candidacy.chosen
}

/// What was fetched held a change of the members.
pub(super) fn lacks_promises(candidacy: &Candidacy, world: &World<'_>) -> bool {
    !world.core.membership.is_majority_of_all(candidacy.clear(world.chosen()))
}

pub(super) fn ask_more(candidacy: &mut Candidacy, world: &mut World<'_>) -> Candidacy {
    ask_the_others(candidacy, world);
    candidacy.deadline = world.after_about(world.core.settings.election_timeout);
    std::mem::take(candidacy)
}

pub(super) fn lead(candidacy: &mut Candidacy, world: &mut World<'_>) -> Leadership {
    Leadership::begin(std::mem::take(candidacy), world)
}

// Lives that are over (P11).

pub(super) fn forget_answer(probing: &mut Probing, superseded: ReplicaId, _: &mut World<'_>) {
    probing.would.remove(superseded);
}

/// What it reported stays: that was accepted, whoever remembers it.
pub(super) fn forget_promise(candidacy: &mut Candidacy, superseded: ReplicaId, _: &mut World<'_>) {
    candidacy.promised_by.remove(superseded);
}

impl Candidacy {
    /// Counts a promise, and keeps of each slot the value with the highest ballot.
    pub(super) fn count(&mut self, promise: Promise) {
        self.promised_by.insert(promise.from);
        self.lost.retain(|(of, _)| *of != promise.from);
        self.lost.extend(promise.lost.into_iter().map(|lost| (promise.from, lost)));
        if promise.chosen > self.chosen {
            self.chosen = promise.chosen;
            self.chosen_at = promise.from;
        }
        for AcceptedSlot { slot, ballot, batch } in promise.accepted {
            let known = self.adopt.get(&slot);
            let is_higher = known.is_none_or(|(known, _)| ballot > *known || crate::planted!(P3AdoptsLatestReport));
            if is_higher && !crate::planted!(P3AdoptsNothing) {
                self.adopt.insert(slot, (ballot, batch));
            }
        }
    }

    /// Those whose promise counts for every slot that is not chosen (rule L5).
    ///
    /// Phase 1 needs of each of a majority the highest ballot at which it accepted something, and the value. Where a promiser has
    /// lost that, it knows a bound of the ballot. If somebody reports a value at the bound or above, nothing that the promiser
    /// lost can be higher, and what is equal is equal: one ballot proposes one value at one slot. Then it is as if the promiser
    /// had told it. Else its silence is no answer: there may be a value that it helped to choose.
    pub(super) fn clear(&self, chosen: Slot) -> ReplicaSet {
        let blind: Vec<ReplicaId> = self.blind(chosen).map(|(of, _)| of).collect();
        self.promised_by.iter().filter(|id| !blind.contains(id)).collect()
    }

    /// Who has lost what nobody makes up for. What is chosen is fetched, not adopted.
    pub(super) fn blind(&self, chosen: Slot) -> impl Iterator<Item = (ReplicaId, LostSlots)> {
        let chosen = chosen.max(self.chosen);
        let is_open = move |(_, lost): &(ReplicaId, LostSlots)| !self.makes_up_for(lost, chosen);
        let counts = !crate::planted!(L5CountsLostAsNothing);
        self.lost.iter().copied().filter(move |lost| counts && is_open(lost))
    }

    fn makes_up_for(&self, lost: &LostSlots, chosen: Slot) -> bool {
        let mut next = lost.first.max(chosen.next());
        for (slot, (ballot, _)) in self.adopt.range(next..) {
            if *slot != next || next > lost.last || *ballot < lost.ballot {
                break;
            }
            next = next.next();
        }
        next > lost.last
    }
}
