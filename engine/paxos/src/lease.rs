//! The lease as its holder sees it (rule P8): while it runs, no other replica can become coordinator.
//!
//! It is renewed only through the log: each slot chosen under the own ballot renews it, counted from before the slot's
//! first accept left. A majority granted it with its acknowledgements, from its receipts on; the holder's is the shorter
//! by a tenth, so that two clocks may run apart by that much. An instant at which it does not hold ends it for good: the
//! coordinator steps down.

use crate::machine::Row;
use crate::types::{Instant, Slot};
use crate::world::World;

/// A lease, and the last slot that renewed it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Held {
    pub(crate) until: Instant,
    pub(crate) slot: Slot,
}

/// A slot was chosen under the own ballot; its first accept left then.
#[derive(Clone, Copy)]
pub(crate) struct Confirmed {
    pub(crate) slot: Slot,
    pub(crate) proposed_at: Instant,
}

synod_spec::machine! {
    /// Lease, holder: until when this replica alone can be the master.
    machine lease(World<'_>) rows Row;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    states {
        /// There is none.
        Without,
        /// A majority is bound until then.
        Held(Held),
    }

    events {
        /// A majority acknowledged a slot of the own ballot.
        Confirmed(Confirmed),
        /// Mastership is given up, or lost.
        GivenUp,
    }

    on Confirmed {
        in Without: when is_over refuse "it took longer than the lease";
                    do take goto Held;
        in Held: when has_run_out refuse "it has run out, for good: the coordinator steps down";
                 do extend stay;
    }

    on GivenUp {
        in Without: refuse "there is none";
        in Held: goto Without;
    }
}

crate::machine::counted!(lease);

fn until(confirmed: &Confirmed, world: &World<'_>) -> Instant {
    let lease = world.core.membership.lease_of_holder();
    if crate::planted!(P8HolderLongerThanGranters) {
        return confirmed.proposed_at.after(lease * 2);
    }
    if crate::planted!(P8CountsFromAcknowledgement) {
        return world.now.after(lease);
    }
    confirmed.proposed_at.after(lease)
}

fn is_over(confirmed: &Confirmed, world: &World<'_>) -> bool {
    until(confirmed, world) <= world.now
}

fn take(confirmed: Confirmed, world: &mut World<'_>) -> Held {
    Held { until: until(&confirmed, world), slot: confirmed.slot }
}

/// An instant without it was an instant in which somebody else could begin.
fn has_run_out(held: &Held, _: &Confirmed, world: &World<'_>) -> bool {
    world.now >= held.until
}

fn extend(held: &mut Held, confirmed: Confirmed, world: &mut World<'_>) {
    // Slots come in order, and were proposed in order.
    *held = Held { until: until(&confirmed, world).max(held.until), slot: held.slot.max(confirmed.slot) };
}

impl State {
    /// Until when it runs, if there is one.
    pub(crate) fn until(&self) -> Option<Instant> {
        match self {
            State::Held(held) => Some(held.until),
            State::Without => None,
        }
    }

    /// Whether it runs at this moment.
    pub(crate) fn holds(&self, now: Instant) -> bool {
        matches!(self, State::Held(held) if now < held.until)
    }
}

pub(crate) fn tell(event: Event, world: &mut World<'_>) {
    let mut state = world.core.lease;
    step(&mut state, event, world);
    world.core.lease = state;
}
