//! The lease as its granters see it (rule P8): who accepted from a master promises nothing to anybody else for a while.
//!
//! Acknowledging grants; there is no message of its own. It counts from the accept's receipt, which is after the holder
//! began to count, on a clock that counts suspension too. A grant is not persisted: after a start a replica promises
//! nothing for the longest lease ([`crate::standing`]).
//!
//! Only promises are held back, never acceptances (decision 0005 says what this leans on while the members change): an accept under a higher ballot proves that a majority has promised
//! to it, one of every majority that granted to the older among them, and that one's grant was over by then.

use crate::machine::Row;
use crate::types::{Ballot, Instant, ReplicaId};
use crate::world::World;

/// What was granted, to whom, until when.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Grant {
    pub(crate) ballot: Ballot,
    pub(crate) until: Instant,
}

synod_spec::machine! {
    /// Lease, granter: to whom this replica has bound itself.
    machine grant(World<'_>) rows Row;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    states {
        /// It may promise to anybody.
        Free,
        /// It promises to nobody but the master it granted to, until the grant is over.
        Bound(Grant),
    }

    events {
        /// A value was accepted from the master of this ballot.
        Granted(Ballot),
        /// The master of this ballot gave its lease back.
        Released(Ballot),
        /// Time passed.
        Ticked,
    }

    on Granted {
        in Free: when is_released refuse "that ballot gave its lease back, and never holds one again";
                 do bind goto Bound;
        in Bound: when bare is_released refuse "that ballot gave its lease back, and never holds one again";
                  do extend stay;
    }

    on Released {
        in Free: do note stay;
        in Bound: when is_its_own do bare note goto Free;
                  do bare note stay;
    }

    on Ticked {
        in Free: stay;
        in Bound: when is_running stay;
                  goto Free;
    }
}

crate::machine::counted!(grant);

fn is_released(ballot: &Ballot, world: &World<'_>) -> bool {
    let released = world.core.released;
    *ballot <= released && ballot.replica == released.replica
}

fn bind(ballot: Ballot, world: &mut World<'_>) -> Grant {
    Grant { ballot, until: world.now.after(world.core.membership.lease()) }
}

fn extend(grant: &mut Grant, ballot: Ballot, world: &mut World<'_>) {
    *grant = bind(ballot, world);
}

/// A later ballot of the same master's, after a boost, releases what the earlier was granted.
fn is_its_own(grant: &Grant, released: &Ballot, _: &World<'_>) -> bool {
    grant.ballot <= *released && grant.ballot.replica == released.replica
}

fn note(released: Ballot, world: &mut World<'_>) {
    world.core.released = world.core.released.max(released);
}

fn is_running(grant: &Grant, world: &World<'_>) -> bool {
    world.now < grant.until
}

impl State {
    /// Until when a promise to `candidate` would break a grant, if it would.
    pub(crate) fn binds_against(&self, candidate: ReplicaId, now: Instant) -> Option<Instant> {
        match self {
            _ if crate::planted!(P8PromisesAgainstGrant) => None,
            State::Bound(grant) if grant.ballot.replica != candidate && now < grant.until => Some(grant.until),
            State::Bound(_) | State::Free => None,
        }
    }
}

pub(crate) fn tell(event: Event, world: &mut World<'_>) {
    let mut state = world.core.grant;
    step(&mut state, event, world);
    world.core.grant = state;
}
