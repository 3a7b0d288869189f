//! Whether this replica votes: right after a start, as a learner and outside the cell it promises nothing to anyone.

use crate::machine::Row;
use crate::types::Instant;
use crate::world::World;

/// Just started, until then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Waiting {
    pub(crate) until: Instant,
}

synod_spec::machine! {
    /// Voting status: whether this replica may promise anything to anyone.
    machine standing(World<'_>) rows Row;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    states {
        /// Just started. What it granted before is forgotten, so it promises nothing for the longest lease (P8).
        Waiting(Waiting),
        /// It promises, and its acknowledgements count.
        Voting,
        /// A member that catches up: it takes everything, and is not counted (P6).
        Learning,
        /// No member: not yet, or not any more. It only learns.
        Outside,
    }

    events {
        /// Time passed.
        Ticked,
        /// The configurations changed: one was decided, or came into force.
        Reconfigured,
    }

    on Ticked {
        in Waiting: when is_early stay;
                    when bare is_voter goto Voting;
                    when bare is_member goto Learning;
                    goto Outside;
        in Voting, Learning, Outside: stay;
    }

    on Reconfigured {
        in Waiting: refuse "it is decided when the wait is over";
        in Voting: when is_voter stay;
                   goto Outside;
        in Learning: when is_voter goto Voting;
                     when is_member stay;
                     goto Outside;
        in Outside: when is_member goto Learning;
                    stay;
    }
}

crate::machine::counted!(standing);

fn is_early(waiting: &Waiting, world: &World<'_>) -> bool {
    world.now < waiting.until
}

fn is_voter(world: &World<'_>) -> bool {
    world.core.membership.is_voter(world.me())
}

fn is_member(world: &World<'_>) -> bool {
    world.core.membership.is_member(world.me())
}

pub(crate) fn tell(event: Event, world: &mut World<'_>) {
    let mut state = world.core.standing;
    step(&mut state, event, world);
    world.core.standing = state;
}
