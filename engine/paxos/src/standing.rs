//! Whether this replica votes: right after a start, after a loss, as a learner and outside the cell it promises nothing to anyone.

use crate::lives;
use crate::machine::Row;
use crate::message::Message;
use crate::rejoin::{self, Answer};
use crate::types::{Instant, LogPosition, ReplicaId, ReplicaSet};
use crate::world::{Core, World};

/// Just started, until then.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Waiting {
    pub(crate) until: Instant,
    /// How far the own log went then: an answer is of who has been told that.
    pub(crate) from: LogPosition,
    /// Who said that it knows of nothing that is not in the own log (P13).
    pub(crate) heard: ReplicaSet,
    /// When the others are asked again.
    pub(crate) ask_at: Instant,
}

synod_spec::machine! {
    /// Voting status: whether this replica may promise anything to anyone.
    machine standing(World<'_>) rows Row;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    states {
        /// Just started. What it granted before is forgotten, so it promises nothing for the longest lease (P8); and it accepts
        /// nothing before a majority has said that its log is not an older one than theirs (P13).
        Waiting(Waiting),
        /// It promises, and its acknowledgements count.
        Voting,
        /// A member that catches up: it takes everything, and is not counted (P6).
        Learning,
        /// No member: not yet, or not any more. It only learns.
        Outside,
        /// It lost what it had promised or accepted: it only learns, until a majority has told it again (P11).
        Rejoining,
    }

    events {
        /// Time passed.
        Ticked,
        /// The configurations changed: one was decided, or came into force.
        Reconfigured,
        /// This replica knows of nothing that the own log does not have.
        Heard(ReplicaId),
        /// Somebody knows of more than the own log has.
        Lost,
        /// A member tells what a replica that lost its state has to know.
        Answered(Answer),
        /// More may be known than before.
        Progressed,
    }

    on Ticked {
        in Waiting: when is_early_and_unheard do ask_position stay;
                    when is_early stay;
                    when bare is_stranger goto Outside;
                    when should_ask do ask_position stay;
                    when is_unheard stay;
                    when bare is_voter goto Voting;
                    goto Learning;
        in Voting, Learning, Outside: stay;
        in Rejoining: when bare is_waiting_for_answers stay;
                      do bare ask_to_rejoin stay;
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
        in Rejoining: refuse "it is decided when the wait is over";
    }

    on Heard {
        in Waiting: do hear stay;
        in Voting, Learning, Outside: refuse "it is known already";
        in Rejoining: refuse "it knows better";
    }

    on Lost {
        in Waiting: do bare lose goto Rejoining;
        in Voting, Learning, Outside: do lose goto Rejoining;
        in Rejoining: refuse "it is known already";
    }

    on Answered {
        in Waiting: refuse "late: a majority answered without it";
        in Voting, Learning, Outside: refuse "late: a majority answered without it";
        in Rejoining: do note_answer stay;
    }

    on Progressed {
        in Waiting, Voting, Learning, Outside: never "it is told only while it rejoins";
        in Rejoining: when is_healed do adopt goto Waiting;
                      stay;
    }
}

crate::machine::counted!(standing);

fn is_early(waiting: &Waiting, world: &World<'_>) -> bool {
    world.now < waiting.until
}

fn is_unheard(waiting: &Waiting, world: &World<'_>) -> bool {
    !waiting.has_heard(world.core)
}

/// Of a cell that knows it no more nobody would ever answer; and ids are used once.
fn is_stranger(world: &World<'_>) -> bool {
    !is_member(world)
}

fn is_early_and_unheard(waiting: &Waiting, world: &World<'_>) -> bool {
    is_early(waiting, world) && should_ask(waiting, world)
}

fn should_ask(waiting: &Waiting, world: &World<'_>) -> bool {
    is_unheard(waiting, world) && world.now >= waiting.ask_at
}

/// Asks the others how far they know the own log to go. Often, because nothing is accepted before; each answer is a few bytes.
fn ask_position(waiting: &mut Waiting, world: &mut World<'_>) {
    waiting.ask_at = world.now.after(world.core.settings.heartbeat / 4);
    let durable = world.core.lives.position();
    for at in 0..world.core.membership.others().len() {
        let to = world.core.membership.others()[at];
        if !waiting.heard.contains(to) {
            let known = world.core.lives.position_of(to);
            world.send(to, Message::Position { durable, known, asks: true });
        }
    }
}

fn hear(waiting: &mut Waiting, from: ReplicaId, _: &mut World<'_>) {
    waiting.heard.insert(from);
}

fn is_voter(world: &World<'_>) -> bool {
    world.core.membership.is_voter(world.me())
}

fn is_member(world: &World<'_>) -> bool {
    world.core.membership.is_member(world.me())
}

fn lose(world: &mut World<'_>) {
    rejoin::begin(world);
}

fn is_waiting_for_answers(world: &World<'_>) -> bool {
    rejoin::is_waiting(world)
}

fn ask_to_rejoin(world: &mut World<'_>) {
    rejoin::ask(world);
}

fn note_answer(answer: Answer, world: &mut World<'_>) {
    rejoin::note(answer, world);
}

fn is_healed(world: &World<'_>) -> bool {
    rejoin::is_healed(world)
}

fn adopt(world: &mut World<'_>) -> Waiting {
    rejoin::adopt(world)
}

impl Waiting {
    /// Whether a majority, this replica among them, knows of nothing that its log does not have (P13).
    fn has_heard(&self, core: &Core) -> bool {
        let mut heard = self.heard;
        heard.insert(core.settings.me);
        core.membership.is_majority_of_all(heard) || crate::planted!(P13VotesAtOnce)
    }
}

impl State {
    /// Whether it accepts what a coordinator proposes, to be counted or, as a learner, not.
    pub(crate) fn may_accept(&self, core: &Core) -> bool {
        match self {
            State::Waiting(waiting) => waiting.has_heard(core),
            State::Voting | State::Learning => true,
            State::Outside | State::Rejoining => false,
        }
    }

    /// Whether who knows this much of the own log may have been asked since the start. Who knows less says so of its own accord, perhaps
    /// right after a start of its own, and what it says may have been on its way since before this replica's.
    fn is_answer(&self, known: LogPosition) -> bool {
        match self {
            State::Waiting(waiting) => known >= waiting.from,
            State::Voting | State::Learning | State::Outside | State::Rejoining => true,
        }
    }

    /// Whether another may rely on what this replica remembers.
    pub(crate) fn may_answer(&self, core: &Core) -> bool {
        *self == State::Outside || self.may_accept(core)
    }

    /// When it wants to be ticked.
    pub(crate) fn deadline(&self, core: &Core) -> Option<Instant> {
        match self {
            State::Waiting(waiting) if waiting.has_heard(core) => Some(waiting.until),
            State::Waiting(waiting) => Some(waiting.ask_at),
            State::Rejoining => Some(core.rejoin.ask_at),
            State::Voting | State::Learning | State::Outside => None,
        }
    }
}

/// Another replica says how far its log goes, and how far it knows the own one to go (P13).
pub(crate) fn position(from: ReplicaId, message: (LogPosition, LogPosition, bool), world: &mut World<'_>) {
    let (durable, known, asks) = message;
    world.core.lives.note_position(from, durable);
    if world.core.lives.is_lost() {
        return;
    }
    if asks {
        let known = world.core.lives.position_of(from);
        world.send(from, Message::Position { durable: world.core.lives.position(), known, asks: false });
    }
    if known > world.core.lives.position() && !crate::planted!(P13VotesAtOnce) {
        tell(Event::Lost, world);
    } else if !asks && world.core.standing.is_answer(known) {
        tell(Event::Heard(from), world);
    }
}

/// A vote names a later life of this replica than the own: it goes on from an older copy of its state.
pub(crate) fn superseded(voter: &lives::Voter, world: &mut World<'_>) {
    let own = world.core.lives.own;
    if !world.core.lives.is_lost() && voter.vector.of(world.me()) > own {
        tell(Event::Lost, world);
    }
}

pub(crate) fn tell(event: Event, world: &mut World<'_>) {
    let mut state = world.core.standing;
    step(&mut state, event, world);
    world.core.standing = state;
}
