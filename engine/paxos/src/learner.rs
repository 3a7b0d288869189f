//! The learner: which slots are chosen, applying them in order, and fetching what is missing.
//!
//! A slot is known to be chosen in one of three ways: the own coordinator counted a majority; a coordinator's commit
//! slot covers it and it was accepted here under that very ballot (rule P4); another replica sent it as an entry.
//!
//! Invariants:
//!   - slots are applied in order, each once, none with a gap below it;
//!   - for every slot above `cut` and up to `chosen` the own log holds, or is about to hold before anything later, a record with the
//!     chosen value: recovery and catch-up read it there. So an entry from another replica is persisted first;
//!   - a change of the members is persisted before any record that tells recovery that its slot is chosen (P6).

use std::collections::BTreeMap;

use crate::batch::Batch;
use crate::effect::{Effect, Record, SnapshotHandle};
use crate::machine::Row;
use crate::membership;
use crate::message::Message;
use crate::types::{Ballot, Instant, ReplicaId, Slot, Ticket};
use crate::world::World;

/// Asked a replica for entries; the next one is asked when no answer helped until then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Fetching {
    of: ReplicaId,
    until: Instant,
}

/// A coordinator says that all up to here is chosen.
pub(crate) struct Committed {
    pub(crate) ballot: Ballot,
    pub(crate) upto: Slot,
}

/// Another replica says that all up to here is chosen.
#[derive(Clone, Copy)]
pub(crate) struct Outrun {
    pub(crate) from: ReplicaId,
    pub(crate) upto: Slot,
    /// It coordinates, and did not say so in answer to a question.
    pub(crate) is_busy: bool,
}

/// A replica further behind than so many windows does not ask the coordinator first: what it lacks has to be read from a disk, or is
/// in a snapshot, and clients wait for the coordinator alone.
const FAR_WINDOWS: u64 = 16;

/// Chosen batches of consecutive slots.
pub(crate) struct Entries {
    pub(crate) first: Slot,
    pub(crate) batches: Vec<Batch>,
}

synod_spec::machine! {
    /// Learner and catch-up: what is chosen, and from whom to fetch what is missing.
    machine learner(World<'_>) rows Row;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    states {
        /// Nobody it heard of knows more.
        Current,
        /// It asked another replica for what it lacks.
        Fetching(Fetching),
    }

    events {
        /// A coordinator it obeys says how far the log is chosen.
        Committed(Committed),
        /// Another replica says how far it knows the log to be chosen.
        Outrun(Outrun),
        /// Chosen batches came.
        Entries(Entries),
        /// The application's state was replaced by another replica's snapshot.
        Installed(SnapshotHandle),
        /// Time passed.
        Ticked,
    }

    on Committed {
        in Current: do walk stay;
        in Fetching: do bare walk stay;
    }

    on Outrun {
        in Current: when knows_all stay;
                    when has_no_use refuse "a full log could not take what it would be sent, nor would a state in quarantine";
                    do fetch goto Fetching;
        in Fetching: when bare knows_all goto Current;
                     when bare has_no_use goto Current;
                     stay;
    }

    on Entries {
        in Current: do take stay;
        in Fetching: when bare helps do bare take goto Current;
                     do bare take stay;
    }

    on Installed {
        in Current: do install stay;
        in Fetching: do bare install goto Current;
    }

    on Ticked {
        in Current: stay;
        in Fetching: when is_waiting stay;
                     do ask_next stay;
    }
}

crate::machine::counted!(learner);

/// Walks over what was accepted here under this very ballot; another ballot's value need not be the chosen one (P4).
fn walk(committed: Committed, world: &mut World<'_>) {
    while world.chosen() < committed.upto && !world.core.quarantined {
        let slot = world.chosen().next();
        let batch = match world.core.acceptor.accepted_at(slot) {
            Some((_, batch)) if crate::planted!(P4CommitsOtherBallots) => batch.clone(),
            Some((accepted, batch)) if *accepted == committed.ballot => batch.clone(),
            Some(_) | None => break,
        };
        note(slot, batch, None, world);
        advance(world);
    }
}

fn knows_all(_: &Outrun, world: &World<'_>) -> bool {
    world.core.learner.heard_of <= world.chosen()
}

fn has_no_use(_: &Outrun, world: &World<'_>) -> bool {
    world.core.acceptor.is_full() || world.core.quarantined
}

/// Of whoever spoke, if it knows more than we do and has time for us; else of another: somebody told us of it.
fn fetch(outrun: Outrun, world: &mut World<'_>) -> Fetching {
    // This replica itself knows more than it has where its log has lost values (L5).
    let knows_more = outrun.upto > world.chosen() && outrun.from != world.me();
    let far = world.chosen().plus(FAR_WINDOWS * world.core.settings.window);
    let is_spared = outrun.is_busy && outrun.upto > far;
    let of = if knows_more && !is_spared { outrun.from } else { next_after(outrun.from, world) };
    ask(of, world)
}

fn ask(of: ReplicaId, world: &mut World<'_>) -> Fetching {
    let from = world.chosen().next();
    world.send(of, Message::Fetch { from });
    Fetching { of, until: world.now.after(world.core.settings.resend()) }
}

fn is_waiting(fetching: &Fetching, world: &World<'_>) -> bool {
    world.now < fetching.until
}

fn ask_next(fetching: &mut Fetching, world: &mut World<'_>) {
    *fetching = ask(next_after(fetching.of, world), world);
}

/// The member after `of`, ourselves left out: whoever was asked in vain is asked last.
fn next_after(of: ReplicaId, world: &World<'_>) -> ReplicaId {
    let others = world.core.membership.others();
    *others.iter().find(|id| **id > of).or(others.first()).unwrap_or(&of)
}

/// Whether these entries bring us on. If not, because of a gap below or no room in the log, they are asked for again later,
/// when they can be used.
fn helps(entries: &Entries, world: &World<'_>) -> bool {
    let next = world.chosen().next();
    let is_next_in = entries.first <= next && next < entries.first.plus(entries.batches.len() as u64);
    is_next_in && !world.is_backed_up() && !world.core.acceptor.is_full() && !world.core.quarantined
}

fn take(entries: Entries, world: &mut World<'_>) {
    if !helps(&entries, world) {
        return;
    }
    let mut slot = entries.first;
    for batch in entries.batches {
        if slot > world.chosen() {
            world.persist(Record::Chosen { slot, batch: batch.clone() });
            note(slot, batch, None, world);
            advance(world);
        }
        slot = slot.next();
    }
}

/// Goes on from the snapshot's slot. The hard state, which the members' part of it makes durable, tells recovery that the log
/// holds nothing below; should it be lost, the snapshot tells it.
fn install(handle: SnapshotHandle, world: &mut World<'_>) {
    let SnapshotHandle { slot, ballot, configurations } = handle;
    let learner = &mut world.core.learner;
    assert!(slot > learner.chosen || world.core.quarantined && slot == learner.chosen, "it brings something");
    world.core.quarantined = false;
    learner.chosen = slot;
    learner.cut = slot;
    let later = learner.early.split_off(&slot.next());
    let passed_by = std::mem::replace(&mut learner.early, later);
    // It was chosen, and is in the snapshot, where nobody sees what came of it: its submitter must not wait for ever.
    for ticket in passed_by.into_values().filter_map(|(_, ticket)| ticket) {
        world.effects.push(Effect::Abandon { ticket });
    }
    world.core.acceptor.forget_upto(slot, ballot);
    membership::install(configurations, world);
    advance(world);
}

/// The own coordinator counted a majority for this slot.
pub(crate) fn decide(slot: Slot, batch: Batch, ticket: Option<Ticket>, world: &mut World<'_>) {
    if slot > world.chosen() && !world.core.quarantined {
        note(slot, batch, ticket, world);
        advance(world);
    }
}

/// Keeps a chosen batch until all below it is there. A slot may be found chosen more than once, by one ballot after
/// another, and a ticket that it had is kept: its submitter still waits.
fn note(slot: Slot, batch: Batch, ticket: Option<Ticket>, world: &mut World<'_>) {
    let early = &mut world.core.learner.early;
    let (known, waiting) = early.entry(slot).or_insert_with(|| (batch.clone(), ticket));
    assert!(*known == batch, "two values chosen at slot {slot}");
    *waiting = waiting.or(ticket);
}

/// Applies what is next in order.
fn advance(world: &mut World<'_>) {
    while let Some((slot, batch, ticket)) = world.core.learner.next_in_order() {
        world.core.learner.chosen = slot;
        world.core.acceptor.forget(slot);
        world.effects.push(Effect::Apply { slot, batch: batch.clone(), ticket });
        membership::applied(slot, &batch, world);
    }
}

/// What this replica knows to be chosen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Learner {
    state: State,
    chosen: Slot,
    /// All up to here was known to be chosen at the start; values above `chosen` were lost with parts of the log.
    known: Slot,
    /// All up to here may be gone from the own log.
    cut: Slot,
    /// Chosen, with a gap below. Bounded by the coordinator's window.
    early: BTreeMap<Slot, (Batch, Option<Ticket>)>,
    /// The highest slot that anyone said is chosen.
    heard_of: Slot,
}

impl Learner {
    pub(crate) fn new(chosen: Slot, known: Slot, cut: Slot) -> Self {
        assert!(cut <= chosen, "nothing is cut from the log that is not applied");
        assert!(chosen <= known, "what is applied is known");
        Self { state: State::Current, chosen, known, cut, early: BTreeMap::new(), heard_of: known }
    }

    /// All up to here is chosen, and applied.
    pub fn chosen(&self) -> Slot {
        self.chosen
    }

    pub(crate) fn known(&self) -> Slot {
        self.known.max(self.chosen)
    }

    /// All up to here may be gone from the own log.
    pub fn cut(&self) -> Slot {
        self.cut
    }

    /// Whether a chosen slot is being fetched from another replica.
    pub fn is_fetching(&self) -> bool {
        self.state != State::Current
    }

    /// The highest slot that anyone said is chosen.
    pub(crate) fn heard_of(&self) -> Slot {
        self.heard_of.max(self.chosen)
    }

    /// When the learner wants to be ticked.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Current => None,
            State::Fetching(Fetching { until, .. }) => Some(until),
        }
    }

    /// Whether a change of the members is chosen and waits for a slot below it.
    pub(crate) fn has_early_change(&self) -> bool {
        self.early.values().any(|(batch, _)| batch.as_change().is_some())
    }

    fn next_in_order(&mut self) -> Option<(Slot, Batch, Option<Ticket>)> {
        if crate::planted!(P5AppliesOutOfOrder) {
            return self.early.pop_first().map(|(slot, (batch, ticket))| (slot, batch, ticket));
        }
        let slot = self.chosen.next();
        self.early.remove(&slot).map(|(batch, ticket)| (slot, batch, ticket))
    }
}

pub(crate) fn tell(event: Event, world: &mut World<'_>) {
    let mut state = world.core.learner.state;
    step(&mut state, event, world);
    world.core.learner.state = state;
}

/// All up to here is in two snapshots. The log is cut when the hard state that says so is durable (P2).
pub(crate) fn cut(upto: Slot, world: &mut World<'_>) {
    let learner = &mut world.core.learner;
    assert!(upto <= learner.chosen, "a snapshot holds what is applied");
    if upto > learner.cut {
        learner.cut = upto;
        world.persist_hard_state();
    }
}

/// `from` knows all up to `upto` to be chosen: fetches what is missing here.
pub(crate) fn outrun(from: ReplicaId, upto: Slot, world: &mut World<'_>) {
    hear(Outrun { from, upto, is_busy: false }, world);
}

/// The same, of whoever coordinates and was not asked.
pub(crate) fn outrun_by_coordinator(from: ReplicaId, upto: Slot, world: &mut World<'_>) {
    hear(Outrun { from, upto, is_busy: true }, world);
}

fn hear(outrun: Outrun, world: &mut World<'_>) {
    let heard_of = &mut world.core.learner.heard_of;
    *heard_of = outrun.upto.max(*heard_of);
    tell(Event::Outrun(outrun), world);
}
