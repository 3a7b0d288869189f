//! The acceptor: what this replica has promised, and what it has accepted.
//!
//! All of it outlives a crash. This is the only module that asks for a promise or an acceptance to be persisted, and
//! recovery rebuilds it from those records alone. PML §4.1; §5.1 (a lost disk does not vote).
//!
//! Invariants:
//!   - `promised` never moves back, restarts included; nothing is accepted below it;
//!   - nothing is promised against a lease that this replica granted, or may have granted before its start (rule P8);
//!   - no slot up to the chosen one is held: its value is decided, and whoever needs it fetches it (rule P3);
//!   - where its log has lost what it may have accepted, it says so until it knows the value again, or a later one (rule L5);
//!   - no slot beyond the chosen one plus twice the horizon is held, so that a promise has a bounded size (rule P5).

use std::collections::BTreeMap;

use crate::batch::Batch;
use crate::effect::{Effect, Record, Recovered};
use crate::machine::Row;
use crate::message::{AcceptedSlot, LostSlots, Message};
use crate::types::{Ballot, PersistId, ReplicaId, Slot};
use crate::world::World;
use crate::{grant, standing};

/// A candidate wants a promise.
#[derive(Clone, Copy)]
pub(crate) struct Proposed {
    pub(crate) from: ReplicaId,
    pub(crate) ballot: Ballot,
}

/// A coordinator wants a value accepted.
pub(crate) struct Asked {
    pub(crate) from: ReplicaId,
    pub(crate) ballot: Ballot,
    pub(crate) slot: Slot,
    pub(crate) batch: Batch,
}

synod_spec::machine! {
    /// Acceptor: what this replica promises and accepts. "PML §4.1: promise, then accept, unless a higher number was promised."
    machine acceptor(World<'_>) rows Row;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    states {
        /// Its log has room: it promises and accepts.
        Open,
        /// Its log is at its bound (L7): it still promises, which is small, and accepts from nobody else.
        Full,
    }

    events {
        /// A would-be coordinator asks us to ignore everyone older.
        Proposed(Proposed),
        /// A coordinator asks us to accept a value.
        Asked(Asked),
        /// The log has no room for values any more.
        LogFull,
        /// It has room again.
        LogRoom,
    }

    on Proposed {
        in Open, Full: when is_outbid do reject stay;
                       when does_not_vote refuse "it does not vote: a learner, no member, just started, or it lost state";
                       when is_bound refuse "a lease is granted to another";
                       do promise stay;
    }

    on Asked {
        in Open: when is_older do reject_value stay;
                 when takes_nothing refuse "no member, or not sure of its own state: what is chosen comes by catch-up";
                 when is_decided do tell_chosen stay;
                 when is_too_far refuse "too far ahead of what is known here, or of the disk: catch-up brings it";
                 do accept stay;
        in Full: when is_older do reject_value stay;
                 when is_not_own refuse "the log has no room";
                 do accept stay;
    }

    on LogFull {
        in Open: goto Full;
        in Full: never "it is said once";
    }

    on LogRoom {
        in Open: never "it is said once";
        in Full: goto Open;
    }
}

crate::machine::counted!(acceptor);

fn is_outbid(proposed: &Proposed, world: &World<'_>) -> bool {
    proposed.ballot < world.core.acceptor.promised && !crate::planted!(P1PromisesToOlder)
}

fn is_older(asked: &Asked, world: &World<'_>) -> bool {
    asked.ballot < world.core.acceptor.promised && !crate::planted!(P1AcceptsFromOlder)
}

fn does_not_vote(_: &Proposed, world: &World<'_>) -> bool {
    world.core.standing != standing::State::Voting
}

/// The own grant binds a master's replica as any other: it is over only after the lease it held.
fn is_bound(proposed: &Proposed, world: &World<'_>) -> bool {
    world.core.grant.binds_against(proposed.from, world.now).is_some()
}

fn takes_nothing(_: &Asked, world: &World<'_>) -> bool {
    !world.core.standing.may_accept(world.core)
}

fn is_decided(asked: &Asked, world: &World<'_>) -> bool {
    asked.slot <= world.chosen()
}

fn is_too_far(asked: &Asked, world: &World<'_>) -> bool {
    asked.slot > world.chosen().plus(2 * world.core.membership.horizon()) || world.is_backed_up()
}

fn is_not_own(asked: &Asked, world: &World<'_>) -> bool {
    // The own coordinator asks only to finish what others began, a horizon of slots at most; the log keeps that much in
    // reserve. It takes nothing new from clients.
    asked.from != world.me()
}

fn reject(proposed: Proposed, world: &mut World<'_>) {
    world.core.acceptor.reject(proposed.from, world.effects);
}

fn reject_value(asked: Asked, world: &mut World<'_>) {
    world.core.acceptor.reject(asked.from, world.effects);
}

fn promise(proposed: Proposed, world: &mut World<'_>) {
    let Proposed { from, ballot } = proposed;
    // Equal is repeated, not refused: the first answer may have been lost, and saying it again promises nothing new.
    let upto = raise(ballot, world);
    // Above what is applied it may know slots to be chosen whose values it has lost. Who asks is not to fill them; whether
    // it can get them from somebody else is its business.
    let chosen = world.known();
    let message = Message::Promise {
        ballot,
        cut: world.core.learner.cut(),
        chosen,
        accepted: world.core.acceptor.reported_above(chosen),
        lost: world.core.acceptor.lost_above(chosen),
        voter: world.core.lives.voter(),
    };
    // Not a moment earlier: forgotten in a crash, it would let an older coordinator get a second value chosen.
    world.effects.push(Effect::SendOnceDurable { to: from, message, upto });
}

/// What is chosen is told, not voted on again. A record of this acceptance would stand behind the chosen value's in the
/// log, and the sender may be long superseded, with another value.
fn tell_chosen(asked: Asked, world: &mut World<'_>) {
    assert!(asked.from != world.me(), "the own coordinator knows what is chosen here");
    let chosen = world.chosen();
    world.effects.push(Effect::SendEntries { to: asked.from, from: asked.slot, chosen });
}

fn accept(asked: Asked, world: &mut World<'_>) {
    let Asked { from, ballot, slot, batch } = asked;
    if ballot > world.core.acceptor.promised {
        raise(ballot, world);
    }
    let record = Record::Accepted { slot, ballot, chosen: world.chosen(), batch: batch.clone() };
    let upto = world.persist(record);
    world.core.acceptor.accepted.insert(slot, (ballot, batch));
    // From now on, and not from when it is durable: the holder began to count before this came.
    grant::tell(grant::Event::Granted(ballot), world);
    let message = Message::Acknowledge { ballot, slot, voter: world.core.lives.voter() };
    world.effects.push(Effect::SendOnceDurable { to: from, message, upto });
}

/// Takes over what the others remember of the promises and acceptances that were lost (P11). The hard state comes last: with it the
/// new life is durable, and nothing of this may be missing then. The lowest ballots first, so that the log's promises only rise.
pub(crate) fn adopt(promised: Ballot, accepted: BTreeMap<Slot, (Ballot, Batch)>, world: &mut World<'_>) {
    let chosen = world.chosen();
    let own = &world.core.acceptor.accepted;
    let is_more = |slot: &Slot, ballot: &Ballot| own.get(slot).is_none_or(|(own, _)| ballot > own);
    let mut accepted: Vec<_> = accepted
        .into_iter()
        .filter(|(slot, (ballot, _))| *slot > chosen && is_more(slot, ballot))
        .map(|(slot, (ballot, batch))| (ballot, slot, batch))
        .collect();
    accepted.sort_by_key(|(ballot, slot, _)| (*ballot, *slot));
    for (ballot, slot, batch) in accepted {
        world.persist(Record::Accepted { slot, ballot, chosen, batch: batch.clone() });
        let acceptor = &mut world.core.acceptor;
        acceptor.promised = acceptor.promised.max(ballot);
        acceptor.accepted.insert(slot, (ballot, batch));
    }
    raise(promised.max(world.core.acceptor.promised), world);
}

/// Moves the promise up to `ballot` and asks for it to be persisted: the only place that does.
fn raise(ballot: Ballot, world: &mut World<'_>) -> PersistId {
    let acceptor = &mut world.core.acceptor;
    assert!(ballot >= acceptor.promised || crate::planted!(P1PromisesToOlder), "a promise never moves back");
    if crate::planted!(P2ForgetsPromise) {
        let upto = world.persist_hard_state();
        world.core.acceptor.promised = ballot;
        return upto;
    }
    acceptor.promised = ballot;
    world.persist_hard_state()
}

/// What this replica has promised and accepted.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Acceptor {
    state: State,
    promised: Ballot,
    accepted: BTreeMap<Slot, (Ballot, Batch)>,
    /// Ranges that end above the chosen slot. An acceptance at their ballot or above is what was lost, or has replaced it.
    lost: Vec<LostSlots>,
}

impl Acceptor {
    pub(crate) fn new(recovered: &Recovered) -> Self {
        let Recovered { promised, chosen, accepted, lost, .. } = recovered;
        assert!(accepted.keys().all(|slot| slot > chosen), "recovery keeps only what is not chosen");
        assert!(accepted.values().all(|(ballot, _)| ballot <= promised), "an acceptance implies the promise");
        assert!(lost.iter().all(|lost| lost.ballot <= *promised), "so does one that was lost");
        Self { state: State::Open, promised: *promised, accepted: accepted.clone(), lost: lost.clone() }
    }

    /// The highest ballot promised to anyone.
    pub fn promised(&self) -> Ballot {
        self.promised
    }

    /// Whether the log is at its bound.
    pub fn is_full(&self) -> bool {
        self.state == State::Full
    }

    /// What was last accepted at `slot`, if it is not yet known to be chosen.
    pub fn accepted_at(&self, slot: Slot) -> Option<&(Ballot, Batch)> {
        self.accepted.get(&slot)
    }

    /// All that is accepted above this slot, as others are told of it.
    pub(crate) fn reported_above(&self, chosen: Slot) -> Vec<AcceptedSlot> {
        let accepted = self.accepted.range(chosen.next()..);
        accepted
            .map(|(slot, (ballot, batch))| AcceptedSlot { slot: *slot, ballot: *ballot, batch: batch.clone() })
            .collect()
    }

    /// The slot is chosen: its value is the learner's now.
    pub(crate) fn forget(&mut self, slot: Slot) {
        self.accepted.remove(&slot);
        self.forget_lost(slot);
    }

    /// What was lost up to here is known again.
    fn forget_lost(&mut self, upto: Slot) {
        self.lost.retain(|lost| lost.last > upto);
        self.lost.iter_mut().for_each(|lost| lost.first = lost.first.max(upto.next()));
    }

    /// What a promise tells of losses, beside all that is chosen up to `chosen`.
    pub(crate) fn lost_above(&self, chosen: Slot) -> Vec<LostSlots> {
        if crate::planted!(L5NoOpOverLost) {
            return Vec::new();
        }
        self.lost.iter().filter(|lost| lost.last > chosen).copied().collect()
    }

    /// Whether what was accepted at this slot is lost; with which others.
    pub(crate) fn lost_at(&self, slot: Slot) -> Option<LostSlots> {
        self.lost.iter().find(|lost| lost.first <= slot && slot <= lost.last).copied()
    }

    /// How many slots were lost and are not known again, at the most: ranges may overlap.
    pub(crate) fn lost_slots(&self) -> u64 {
        self.lost.iter().fold(0, |sum, lost| {
            let known = self.accepted.range(lost.first..=lost.last).filter(|(_, (ballot, _))| *ballot >= lost.ballot);
            sum.saturating_add((lost.last.0 - lost.first.0).saturating_add(1) - known.count() as u64)
        })
    }

    /// All up to here is chosen, and in a snapshot. What its maker had promised is not ours: the own promise stays (P2).
    pub(crate) fn forget_upto(&mut self, slot: Slot, promised_there: Ballot) {
        self.accepted = self.accepted.split_off(&slot.next());
        self.forget_lost(slot);
        if crate::planted!(P2InstallForgetsPromise) {
            self.promised = promised_there;
        }
    }

    /// An answer rather than silence: the older coordinator learns at once that it lost.
    pub(crate) fn reject(&self, from: ReplicaId, effects: &mut Vec<Effect>) {
        effects.push(Effect::Send { to: from, message: Message::Reject { promised: self.promised } });
    }
}

pub(crate) fn tell(event: Event, world: &mut World<'_>) {
    let mut state = world.core.acceptor.state;
    step(&mut state, event, world);
    world.core.acceptor.state = state;
}
