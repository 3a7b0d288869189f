//! The read index: up to which slot a replica has to have applied before it answers a linearizable read (rule P16).
//!
//! It asks whoever coordinates, in a round with a name of its own. The coordinator answers at once if its lease runs and its
//! first own slot is applied; else when a slot is chosen that it proposed after the question came, which is a round to a majority.
//! At either moment nobody else can have had a value chosen since the question that the coordinator does not have applied: so
//! whatever was acknowledged before the question is at or below its chosen slot, and that is what it tells.
//!
//! An answer is good for the reads that came before its round began, and for no other: what was acknowledged since may be above
//! it. So a read that comes while a round is under way waits for the next one. There is one round at a time, however many
//! reads wait; it is asked again, under the same name and of whoever coordinates by then, until it is answered or nobody waits any
//! more.
//!
//! The names are drawn at random: what was told to an earlier life of this replica must not pass for an answer to this one.

use std::time::Duration;

use crate::effect::Effect;
use crate::machine::Row;
use crate::message::Message;
use crate::types::{Instant, ReplicaId, Slot};
use crate::world::World;

/// A question that is open.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Round {
    name: u64,
    /// When it is asked again.
    ask_at: Instant,
}

/// Who coordinates, as far as is known here; this replica itself, perhaps.
pub(crate) type Coordinator = Option<ReplicaId>;

/// A coordinator answered.
#[derive(Clone, Copy)]
pub(crate) struct Told {
    pub(crate) name: u64,
    pub(crate) slot: Slot,
}

synod_spec::machine! {
    /// Read index: up to which slot this replica has to have applied before it answers the reads that wait.
    machine index(World<'_>) rows Row;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    states {
        /// Nobody waits for an answer.
        Quiet,
        /// The coordinator was asked, if one was known.
        Asking(Round),
    }

    events {
        /// Reads came that no round covers. Whom to ask.
        Wanted(Coordinator),
        /// Nobody waits any more.
        Unwanted,
        /// A coordinator told.
        Told(Told),
        /// Time passed. Whom to ask.
        Ticked(Coordinator),
    }

    on Wanted {
        in Quiet: do begin goto Asking;
        in Asking: do begin_anew stay;
    }

    on Unwanted {
        in Quiet: refuse "nobody waited";
        in Asking: goto Quiet;
    }

    on Told {
        in Quiet: refuse "late: the round is over";
        in Asking: when is_of_another refuse "of another round: it may be too old";
                   do bare take goto Quiet;
    }

    on Ticked {
        in Quiet: stay;
        in Asking: when is_early stay;
                   do ask_again stay;
    }
}

crate::machine::counted!(index);

/// A lost question, and one to a coordinator that is none any more, cost so much: the few bytes are asked often.
fn ask_every(world: &World<'_>) -> Duration {
    world.core.settings.heartbeat / 4
}

fn begin(coordinator: Coordinator, world: &mut World<'_>) -> Round {
    let mut round = Round { name: world.core.random.0.u64(..), ask_at: world.now };
    ask(&mut round, coordinator, world);
    round
}

fn begin_anew(round: &mut Round, coordinator: Coordinator, world: &mut World<'_>) {
    *round = begin(coordinator, world);
}

fn ask(round: &mut Round, coordinator: Coordinator, world: &mut World<'_>) {
    round.ask_at = world.now.after(ask_every(world));
    if let Some(to) = coordinator {
        world.send(to, Message::AskIndex { name: round.name });
    }
}

fn is_early(round: &Round, _: &Coordinator, world: &World<'_>) -> bool {
    world.now < round.ask_at
}

fn ask_again(round: &mut Round, coordinator: Coordinator, world: &mut World<'_>) {
    ask(round, coordinator, world);
}

fn is_of_another(round: &Round, told: &Told, _: &World<'_>) -> bool {
    told.name != round.name
}

fn take(told: Told, world: &mut World<'_>) {
    world.effects.push(Effect::Index { slot: told.slot });
}

impl State {
    /// When it wants to be ticked.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        match self {
            State::Quiet => None,
            State::Asking(round) => Some(round.ask_at),
        }
    }
}

pub(crate) fn tell(event: Event, world: &mut World<'_>) {
    let mut state = world.core.index;
    step(&mut state, event, world);
    world.core.index = state;
}
