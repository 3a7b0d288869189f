//! Guards and actions from the moment a majority has promised, to the end of mastership.

use std::collections::BTreeMap;

use super::election::{
    Candidacy, Idle, ask_soon, ask_the_others, campaign, completes, follow, is_unsound, make_way, note_round,
};
use super::{Acknowledge, IndexAsked, Promise, Submitted, Told};
use crate::batch::Batch;
use crate::effect::Effect;
use crate::lease::{self, Confirmed};
use crate::membership::{Change, ChangeError};
use crate::message::Message;
use crate::types::{Ballot, Instant, ReplicaId, ReplicaSet, Slot, Ticket};
use crate::world::{Core, World};
use crate::{acceptor, grant, learner};

/// The time as coordinator.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Leadership {
    ballot: Ballot,
    /// The ballot it began with: boosts change the ballot, not the mastership.
    began_as: Ballot,
    began_at: Instant,
    promised_by: ReplicaSet,
    /// The slot the next value goes to.
    next: Slot,
    /// Values that somebody may have got chosen, still to be proposed again.
    adopt: BTreeMap<Slot, (Ballot, Batch)>,
    /// All up to here is adopted or, where nobody in the quorum had accepted anything, filled with no-ops.
    adopt_upto: Slot,
    /// The first slot that is this mastership's own: until it is applied, something acknowledged by an earlier one may be
    /// missing here, and no read is answered (P8).
    own_from: Slot,
    open: BTreeMap<Slot, Open>,
    last_proposed: Instant,
    next_heartbeat: Instant,
    /// When each other member last acknowledged or promised.
    acknowledged: BTreeMap<ReplicaId, Instant>,
    /// When each last acknowledged, and which slot was the next to be proposed then.
    accepted: BTreeMap<ReplicaId, (Instant, Slot)>,
    /// Takes nothing new until it has a higher ballot.
    boost_wanted: bool,
    boosted_at: Instant,
    boosted_from: Slot,
    /// The round for the higher ballot, while it runs.
    boost: Candidacy,
    /// Who waits for the read index: the latest question of each, and when it came.
    index_asked: BTreeMap<ReplicaId, (u64, Instant)>,
    /// Who is to be master next.
    successor: Option<ReplicaId>,
}

/// A slot that is proposed and not yet chosen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Open {
    batch: Batch,
    ticket: Option<Ticket>,
    votes: ReplicaSet,
    proposed_at: Instant,
    sent_at: Instant,
}

impl Leadership {
    /// A majority has promised and nothing chosen is missing here: from now on, phase 2 alone.
    pub(super) fn begin(candidacy: Candidacy, world: &mut World<'_>) -> Self {
        let chosen = world.chosen();
        let clear = candidacy.clear(chosen);
        world.core.held_up = None;
        let mut adopt = candidacy.adopt;
        adopt.retain(|slot, _| *slot > chosen);
        let adopt_upto = adopt.last_key_value().map_or(chosen, |(slot, _)| *slot);
        let promised = candidacy.promised_by.iter().filter(|id| *id != world.me());
        let mut leadership = Leadership {
            ballot: candidacy.ballot,
            began_as: candidacy.ballot,
            began_at: world.now,
            acknowledged: promised.map(|id| (id, world.now)).collect(),
            promised_by: clear,
            next: chosen.next(),
            adopt_upto,
            own_from: adopt_upto.next(),
            adopt,
            boosted_at: world.now,
            boosted_from: chosen,
            ..Leadership::default()
        };
        leadership.adopt_some(world);
        // At once, so that nobody else campaigns, and clients learn where to go.
        leadership.commit(world);
        leadership
    }

    pub(crate) fn open_slots(&self) -> usize {
        self.open.len()
    }

    /// Whether values that others may have got chosen are still to be proposed again.
    pub(crate) fn is_adopting(&self) -> bool {
        self.next <= self.adopt_upto
    }

    /// The ballot that this mastership began with.
    pub(crate) fn mastership(&self) -> Ballot {
        self.began_as
    }

    /// Whether everything that was acknowledged before this mastership is applied here.
    pub(crate) fn is_caught_up(&self, chosen: Slot) -> bool {
        chosen >= self.own_from || crate::planted!(P8ReadsBeforeOwnSlot)
    }

    pub(crate) fn has_room(&self, core: &Core) -> bool {
        let window_open = (self.open.len() as u64) < core.settings.window;
        let within_horizon = self.next <= core.learner.chosen().plus(core.membership.horizon());
        self.next > self.adopt_upto && window_open && within_horizon && !self.boost_wanted && self.successor.is_none()
    }

    /// Who really takes part: acknowledged or promised within the last lease, or few heartbeats.
    pub(crate) fn alive(&self, core: &Core, now: Instant) -> ReplicaSet {
        let lately = core.membership.lease().max(core.settings.heartbeat * 4);
        let recent = self.acknowledged.iter().filter(|(_, at)| now.since(**at) <= lately);
        recent.map(|(id, _)| *id).chain(std::iter::once(core.settings.me)).collect()
    }

    /// Whether it would not take what is proposed now: it has let more slots go by than an acceptor takes at once (P5), and
    /// acknowledged nothing for long enough that it is not merely slow.
    fn is_far_behind(&self, member: ReplicaId, core: &Core, now: Instant) -> bool {
        let (at, next) = self.accepted.get(&member).copied().unwrap_or((self.began_at, self.own_from));
        self.next > next.plus(2 * core.membership.horizon()) && now.since(at) > core.settings.election_timeout
    }

    /// How many more failures the cell survives right now.
    pub(crate) fn tolerance(&self, core: &Core, now: Instant) -> i8 {
        core.membership.tolerance(self.alive(core, now), is_confirmed(core))
    }

    /// Whether a change of the members may be proposed now (P6).
    pub(crate) fn check_change(&self, change: &Change, core: &Core, now: Instant) -> Result<(), ChangeError> {
        core.membership.change(change, self.alive(core, now))?;
        if self.is_changing() || core.learner.has_early_change() || !may_change(core) {
            return Err(ChangeError::UnderWay);
        }
        if self.has_room(core) { Ok(()) } else { Err(ChangeError::Busy) }
    }

    /// Whether a change of the members is proposed and not chosen yet.
    fn is_changing(&self) -> bool {
        self.open.values().any(|open| open.batch.as_change().is_some())
    }

    pub(super) fn forget_acknowledged(&mut self) {
        self.acknowledged.clear();
        self.accepted.clear();
    }

    /// When time alone will bring something.
    pub(super) fn deadline(&self, core: &Core) -> Instant {
        if self.can_boost(core) && self.successor.is_none() {
            return Instant(0);
        }
        let resend = core.settings.resend();
        let resends = self.open.values().map(|open| open.sent_at.after(resend));
        let next = resends.fold(self.next_heartbeat, Instant::min);
        let renewal = self.renewal(core).unwrap_or(next);
        next.min(renewal).min(self.lapse(core).unwrap_or(next))
    }

    pub(super) fn boost_deadline(&self, core: &Core) -> Instant {
        self.lapse(core).map_or(self.boost.deadline, |lapse| lapse.min(self.boost.deadline))
    }

    /// When mastership lapses, unless the lease is taken or renewed by then. A full log cannot renew it, and without a
    /// lease there is nothing to lapse: then a slot that stays open tells that no majority is reached.
    fn lapse(&self, core: &Core) -> Option<Instant> {
        let lease = core.membership.lease_of_holder();
        if lease.is_zero() || core.acceptor.is_full() {
            let oldest = self.open.values().map(|open| open.proposed_at).min();
            return oldest.map(|at| at.after(core.settings.election_timeout * 2));
        }
        match core.lease {
            lease::State::Held(held) => Some(held.until),
            lease::State::Without => Some(self.began_at.after(lease)),
        }
    }

    /// When an idle master proposes a no-op, so that its lease is renewed through the log. A new one soon, unless its
    /// application has something of its own to begin with: it answers no read before its first own slot is applied.
    fn renewal(&self, core: &Core) -> Option<Instant> {
        let lease = core.membership.lease();
        let is_due = !lease.is_zero() && self.open.is_empty() && self.has_room(core) && !core.acceptor.is_full();
        let is_new = self.next == self.own_from;
        is_due.then(|| {
            if is_new { self.began_at.after(core.settings.heartbeat / 4) } else { self.last_proposed.after(lease / 3) }
        })
    }

    /// Nothing is open, and nothing is left to adopt.
    fn is_drained(&self) -> bool {
        self.open.is_empty() && self.next > self.adopt_upto
    }

    /// A change of the members may leave slots to adopt that the promises do not cover: the round brings them.
    fn can_boost(&self, core: &Core) -> bool {
        let is_held_up = self.open.is_empty() && !self.covers(self.next, core);
        self.boost_wanted && (self.is_drained() || is_held_up)
    }

    /// Proposes a value at the next slot: the accepts leave now, beside our own disk's work (PML §4.2). A member that is far behind
    /// gets one with each heartbeat, which it acknowledges when it has caught up, and the others' bandwidth meanwhile.
    fn propose(&mut self, batch: Batch, ticket: Option<Ticket>, world: &mut World<'_>) {
        let slot = self.next;
        self.next = slot.next();
        let chosen = world.chosen();
        let is_first_since_heartbeat = self.last_proposed.after(world.core.settings.heartbeat) <= self.next_heartbeat;
        for to in world.core.membership.others() {
            if is_first_since_heartbeat || !self.is_far_behind(*to, world.core, world.now) {
                let message = Message::Accept { ballot: self.ballot, slot, batch: batch.clone(), chosen };
                world.effects.push(Effect::Send { to: *to, message });
            }
        }
        let asked = acceptor::Asked { from: world.me(), ballot: self.ballot, slot, batch: batch.clone() };
        acceptor::tell(acceptor::Event::Asked(asked), world);
        let open = Open { batch, ticket, votes: ReplicaSet::default(), proposed_at: world.now, sent_at: world.now };
        self.open.insert(slot, open);
        self.last_proposed = world.now;
    }

    /// Proposes again, in order and within the horizon, what the promises reported; no-ops where they reported nothing.
    fn adopt_some(&mut self, world: &mut World<'_>) {
        let bound = world.chosen().plus(world.core.membership.horizon());
        while self.next <= self.adopt_upto && self.next <= bound && self.covers(self.next, world.core) {
            let batch = self.adopt.remove(&self.next).map_or(Batch::NO_OP, |(_, batch)| batch);
            self.propose(batch, None, world);
        }
    }

    /// Whether enough have promised for this slot: the members may have changed since (P6).
    fn covers(&self, slot: Slot, core: &Core) -> bool {
        core.membership.governing(slot).is_majority(self.promised_by) || crate::planted!(P6OldMajorityLeads)
    }

    fn commit(&mut self, world: &mut World<'_>) {
        let (chosen, tolerance) = (world.chosen(), self.tolerance(world.core, world.now));
        world.send_all(&Message::Commit { ballot: self.ballot, chosen, tolerance });
        self.next_heartbeat = world.now.after(world.core.settings.heartbeat);
    }

    /// A slot was chosen that was proposed then: who had asked before is told (P16).
    fn tell_indexes(&mut self, proposed_at: Instant, world: &mut World<'_>) {
        let (ballot, slot) = (self.ballot, world.chosen());
        self.index_asked.retain(|from, (name, asked_at)| {
            let is_open = *asked_at > proposed_at;
            if !is_open {
                world
                    .effects
                    .push(Effect::Send { to: *from, message: Message::TellIndex { ballot, name: *name, slot } });
            }
            is_open
        });
    }

    /// Without a lease a slot tells that nobody else has been master: a no-op, unless others wait for theirs anyway. With one, its
    /// renewal does.
    fn propose_for_indexes(&mut self, world: &mut World<'_>) {
        let has_lease = !world.core.membership.lease().is_zero();
        let is_due = !self.index_asked.is_empty() && self.open.is_empty();
        if is_due && !has_lease && self.has_room(world.core) && !world.core.acceptor.is_full() {
            self.propose(Batch::NO_OP, None, world);
        }
    }

    /// Mastership is over. What was open may still be chosen, by whoever adopts it.
    fn end(&mut self, world: &mut World<'_>) {
        lease::tell(lease::Event::GivenUp, world);
        for ticket in std::mem::take(&mut self.open).into_values().filter_map(|open| open.ticket) {
            world.effects.push(Effect::Abandon { ticket });
        }
    }

    /// Nobody needs to wait for our lease: it is over, and this ballot never holds one again (P8).
    fn release(&mut self, world: &mut World<'_>) {
        grant::tell(grant::Event::Released(self.ballot), world);
        world.send_all(&Message::Release { ballot: self.ballot });
    }
}

/// The last change has come into force, and a majority of what it made has renewed the lease (P6).
fn may_change(core: &Core) -> bool {
    is_confirmed(core) && !core.membership.is_changing()
}

/// A majority of the members in force has renewed the lease under their configuration, and so knows of it.
fn is_confirmed(core: &Core) -> bool {
    let membership = &core.membership;
    let since = membership.configurations().since;
    match core.lease {
        lease::State::Held(held) => held.slot >= since,
        lease::State::Without => membership.lease().is_zero() && core.learner.chosen() >= since,
    }
}

// Time.

/// Its lease has run out: it cannot reach a majority, or its loop has starved, or somebody else may lead already.
pub(super) fn has_lapsed(leadership: &Leadership, world: &World<'_>) -> bool {
    leadership.lapse(world.core).is_some_and(|lapse| world.now >= lapse) && !crate::planted!(P7NeverGivesUp)
}

/// Sends again what was not acknowledged, tells that we live, and keeps the lease alive when nobody asks for anything.
pub(super) fn keep_alive(leadership: &mut Leadership, world: &mut World<'_>) {
    let chosen = world.chosen();
    for (slot, open) in &mut leadership.open {
        if world.now < open.sent_at.after(world.core.settings.resend()) {
            continue;
        }
        open.sent_at = world.now;
        for to in world.core.membership.others() {
            if !open.votes.contains(*to) {
                let batch = open.batch.clone();
                let message = Message::Accept { ballot: leadership.ballot, slot: *slot, batch, chosen };
                world.effects.push(Effect::Send { to: *to, message });
            }
        }
    }
    if world.now >= leadership.next_heartbeat {
        leadership.commit(world);
    }
    if leadership.renewal(world.core).is_some_and(|due| world.now >= due) {
        leadership.propose(Batch::NO_OP, None, world);
    }
    let slots = leadership.next.0 - leadership.boosted_from.0;
    let settings = &world.core.settings;
    let is_due = slots >= settings.boost_slots_min && world.now.since(leadership.boosted_at) >= settings.boost_time_min;
    leadership.boost_wanted |= is_due && !world.core.acceptor.is_full();
}

/// Votes of a life that is over count no more, nor does its promise: what the members' next change needs is asked for anew (P11).
pub(super) fn forget_votes(leadership: &mut Leadership, superseded: ReplicaId, world: &mut World<'_>) {
    leadership.open.values_mut().for_each(|open| open.votes.remove(superseded));
    leadership.promised_by.remove(superseded);
    leadership.boost.promised_by.remove(superseded);
    leadership.boost_wanted |= !world.core.membership.is_majority_of_all(leadership.promised_by);
}

// Slots.

pub(super) fn take_batch(leadership: &mut Leadership, submitted: Submitted, world: &mut World<'_>) {
    assert!(leadership.has_room(world.core), "can_submit was not asked");
    leadership.propose(submitted.batch, Some(submitted.ticket), world);
}

pub(super) fn is_of_another(leadership: &Leadership, acknowledge: &Acknowledge, _: &World<'_>) -> bool {
    acknowledge.ballot != leadership.ballot
}

/// Counts a vote; a majority of the configuration that governs the slot makes it chosen.
pub(super) fn count(leadership: &mut Leadership, acknowledge: Acknowledge, world: &mut World<'_>) {
    let Acknowledge { from, slot, .. } = acknowledge;
    if from != world.me() {
        leadership.acknowledged.insert(from, world.now);
        leadership.accepted.insert(from, (world.now, leadership.next));
    }
    let Some(open) = leadership.open.get_mut(&slot) else { return };
    open.votes.insert(from);
    if world.core.membership.is_majority_at(slot, open.votes) {
        let open = leadership.open.remove(&slot).expect("it was found above");
        learner::decide(slot, open.batch, open.ticket, world);
        // Slots that were adopted may be governed by an older configuration: only the mastership's own carry its lease. So may
        // one that is chosen before a slot below it: it renews nothing before those who granted know what that one holds.
        let is_own = slot >= leadership.own_from || crate::planted!(P8ReadsBeforeOwnSlot);
        if is_own && world.chosen() >= slot {
            lease::tell(lease::Event::Confirmed(Confirmed { slot, proposed_at: open.proposed_at }), world);
            leadership.tell_indexes(open.proposed_at, world);
        }
        leadership.propose_for_indexes(world);
    }
}

/// A learner that accepts what we propose now is near enough: it can vote.
pub(super) fn is_learner_current(leadership: &Leadership, acknowledge: &Acknowledge, world: &World<'_>) -> bool {
    world.core.membership.is_learner(acknowledge.from)
        && may_change(world.core)
        && leadership.has_room(world.core)
        && !leadership.is_changing()
}

pub(super) fn count_and_promote(leadership: &mut Leadership, acknowledge: Acknowledge, world: &mut World<'_>) {
    count(leadership, acknowledge, world);
    // Counting may have chosen a slot, and with it a change.
    if may_change(world.core) && leadership.has_room(world.core) {
        let batch = world.core.membership.promotion(acknowledge.from);
        leadership.propose(batch, None, world);
    }
}

pub(super) fn propose_change(leadership: &mut Leadership, change: Change, world: &mut World<'_>) {
    let alive = leadership.alive(world.core, world.now);
    let batch = world.core.membership.change(&change, alive).expect("check_change was asked");
    leadership.propose(batch, None, world);
}

// The read index.

/// Whether all that was acknowledged, by whomever, is applied here at this moment (P8), which is after the question came.
pub(super) fn may_tell_index(leadership: &Leadership, _: &IndexAsked, world: &World<'_>) -> bool {
    if crate::planted!(P8TellsIndexWithoutLease) {
        return true;
    }
    leadership.is_caught_up(world.chosen()) && world.core.lease.holds(world.now)
}

pub(super) fn tell_index(leadership: &mut Leadership, asked: IndexAsked, world: &mut World<'_>) {
    let slot = world.chosen();
    world.send(asked.from, Message::TellIndex { ballot: leadership.ballot, name: asked.name, slot });
}

/// It is told with the next own slot that is proposed from now on and chosen (P16). A replica has one question open, its latest.
pub(super) fn note_question(leadership: &mut Leadership, asked: IndexAsked, world: &mut World<'_>) {
    let IndexAsked { from, name } = asked;
    match leadership.index_asked.get(&from) {
        // Asked again: the first time counts.
        Some((noted, _)) if *noted == name => {}
        _ => {
            leadership.index_asked.insert(from, (name, world.now));
        }
    }
    leadership.propose_for_indexes(world);
}

/// More is applied: there is room for more, and the members may have changed.
pub(super) fn go_on(leadership: &mut Leadership, world: &mut World<'_>) {
    leadership.boost_wanted |= !world.core.membership.is_majority_of_all(leadership.promised_by);
    leadership.adopt_some(world);
    // A change comes into force some slots on: nobody should have to wait for others' commands to fill them (P6).
    if world.core.membership.is_changing() && leadership.open.is_empty() && leadership.has_room(world.core) {
        leadership.propose(Batch::NO_OP, None, world);
    }
}

/// Whether somebody chose what we did not propose: then a higher ballot has been at work, and we are superseded. To
/// go on would be wrong, not only useless: our commit slot would cover a value that we never proposed, and prove to
/// a follower that what it accepted from us is chosen (rule P4).
pub(super) fn is_contradicted(leadership: &Leadership, told: &Told<'_>, world: &World<'_>) -> bool {
    let is_decided = |slot| slot < leadership.next && !leadership.open.contains_key(&slot);
    (told.first.0..=u64::MAX).map(Slot).zip(told.batches).any(|(slot, batch)| {
        let differs = leadership.open.get(&slot).is_none_or(|open| open.batch != *batch);
        slot > world.chosen() && differs && !is_decided(slot)
    })
}

/// What we proposed is chosen, says somebody who knows: no more votes are needed.
pub(super) fn agree(leadership: &mut Leadership, told: Told<'_>, world: &mut World<'_>) {
    for slot in (told.first.0..=u64::MAX).map(Slot).take(told.batches.len()) {
        if let Some(open) = leadership.open.remove(&slot) {
            learner::decide(slot, open.batch, open.ticket, world);
        }
    }
}

// A higher ballot (PML §5.2).

pub(super) fn is_drained(leadership: &Leadership, _: &ReplicaId, _: &World<'_>) -> bool {
    leadership.is_drained()
}

pub(super) fn has_drained(leadership: &Leadership, _: &World<'_>) -> bool {
    leadership.is_drained()
}

pub(super) fn can_boost(leadership: &Leadership, world: &World<'_>) -> bool {
    leadership.can_boost(world.core)
}

/// Somebody promised more than our ballot, and nobody else can lead: we go above it rather than give way.
pub(super) fn holds_lease(_: &Ballot, world: &World<'_>) -> bool {
    world.core.lease.holds(world.now)
}

pub(super) fn is_old(leadership: &Leadership, promised: &Ballot, _: &World<'_>) -> bool {
    *promised <= leadership.ballot.max(leadership.boost.ballot)
}

pub(super) fn want_boost(leadership: &mut Leadership, promised: Ballot, world: &mut World<'_>) {
    world.core.round = world.core.round.max(promised.round);
    leadership.boost_wanted = true;
}

pub(super) fn begin_boost(leadership: &mut Leadership, world: &mut World<'_>) -> Leadership {
    // What was chosen under the old ballot is proved by the old ballot (P4).
    leadership.commit(world);
    let mut boost = campaign(world);
    boost.deadline = world.now.after(world.core.settings.resend());
    // What nobody covered yet is adopted again, with what the round brings.
    boost.adopt = std::mem::take(&mut leadership.adopt);
    Leadership { boost, ..std::mem::take(leadership) }
}

pub(super) fn ask_again(leadership: &mut Leadership, world: &mut World<'_>) {
    if world.now >= leadership.boost.deadline {
        leadership.boost.deadline = world.now.after(world.core.settings.resend());
        ask_the_others(&leadership.boost, world);
    }
}

pub(super) fn is_unsound_boost(leadership: &Leadership, promise: &Promise, world: &World<'_>) -> bool {
    is_unsound(&leadership.boost, promise, world)
}

pub(super) fn shows_more(_: &Leadership, promise: &Promise, world: &World<'_>) -> bool {
    promise.chosen > world.chosen()
}

pub(super) fn completes_boost(leadership: &Leadership, promise: &Promise, world: &World<'_>) -> bool {
    completes(&leadership.boost, promise, world)
}

pub(super) fn count_boost(leadership: &mut Leadership, promise: Promise, world: &mut World<'_>) {
    leadership.acknowledged.insert(promise.from, world.now);
    leadership.boost.count(promise);
}

pub(super) fn finish_boost(leadership: &mut Leadership, promise: Promise, world: &mut World<'_>) -> Leadership {
    count_boost(leadership, promise, world);
    let old = std::mem::take(leadership);
    let new = Leadership::begin(old.boost, world);
    let own_from = if old.own_from <= world.chosen() { old.own_from } else { new.own_from };
    Leadership {
        began_as: old.began_as,
        began_at: old.began_at,
        own_from,
        last_proposed: new.last_proposed.max(old.last_proposed),
        acknowledged: old.acknowledged,
        accepted: old.accepted,
        ..new
    }
}

// The end.

pub(super) fn yield_to(leadership: &mut Leadership, ballot: Ballot, world: &mut World<'_>) -> Idle {
    leadership.end(world);
    follow(ballot, world)
}

pub(super) fn yield_way(leadership: &mut Leadership, ballot: Ballot, world: &mut World<'_>) -> Idle {
    leadership.end(world);
    make_way(ballot, world)
}

/// Who rejects may be all there is above us: see [`ask_soon`].
pub(super) fn yield_and_ask(leadership: &mut Leadership, promised: Ballot, world: &mut World<'_>) -> Idle {
    leadership.end(world);
    ask_soon(promised, world)
}

pub(super) fn step_down(leadership: &mut Leadership, world: &mut World<'_>) -> Idle {
    leadership.end(world);
    leadership.release(world);
    make_way(leadership.ballot, world)
}

/// Its own removal, begun by another master, has come into force: it may not even promise to itself any more.
pub(super) fn is_no_voter(world: &World<'_>) -> bool {
    !world.core.membership.is_voter(world.me())
}

/// Steps down, and tells first how far the log is chosen: those that stay cannot ask it later.
pub(super) fn retire(leadership: &mut Leadership, world: &mut World<'_>) -> Idle {
    leadership.commit(world);
    step_down(leadership, world)
}

/// Nobody needs to wait for a lease that is given up.
pub(super) fn step_down_outbid(leadership: &mut Leadership, promised: Ballot, world: &mut World<'_>) -> Idle {
    note_round(promised, world);
    step_down(leadership, world)
}

pub(super) fn step_down_told(leadership: &mut Leadership, _: Promise, world: &mut World<'_>) -> Idle {
    step_down(leadership, world)
}

pub(super) fn step_down_at(leadership: &mut Leadership, _: Told<'_>, world: &mut World<'_>) -> Idle {
    step_down(leadership, world)
}

pub(super) fn begin_handover(leadership: &mut Leadership, to: ReplicaId, _: &mut World<'_>) -> Leadership {
    Leadership { successor: Some(to), ..std::mem::take(leadership) }
}

pub(super) fn hand_over(leadership: &mut Leadership, world: &mut World<'_>) -> Idle {
    let to = leadership.successor.expect("a handover has a successor");
    hand_over_to(leadership, to, world)
}

/// Steps aside: the successor need not wait for the lease, and carries its release to those that have not heard of it.
pub(super) fn hand_over_to(leadership: &mut Leadership, to: ReplicaId, world: &mut World<'_>) -> Idle {
    leadership.commit(world);
    leadership.end(world);
    leadership.release(world);
    world.send(to, Message::TakeOver { ballot: leadership.ballot });
    // Clients are sent there already.
    follow(Ballot { replica: to, ..leadership.ballot }, world)
}
