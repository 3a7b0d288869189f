//! The coordinator: elections, and each slot's way from proposal to choice.
//!
//! One propose covers all slots that are not chosen; while the coordinator stays, a slot needs phase 2 alone (PML §4.2).
//! Slots may be chosen out of order; the learner applies them in order.
//!
//! Invariants:
//!   - nobody's promise is asked for before a majority said that it would be given: a probe raises no number;
//!   - nothing is proposed before a majority of every configuration in question has promised (PML §4.1, rule P6);
//!   - nothing is proposed at a slot that somebody in that majority knows to be chosen (P3);
//!   - nobody is in that majority who may have accepted, and lost, what no other reports (L5);
//!   - one ballot proposes one value at one slot: a candidacy starts only under a round never used before (P1);
//!   - no slot is open beyond the chosen one plus the horizon (P5);
//!   - a coordinator whose lease has run out is none any more (P8): it steps down before it does anything else;
//!   - every ticket taken ends in exactly one of apply, refuse and abandon.

mod election;
mod leadership;

use election::*;
use leadership::*;

use crate::batch::Batch;
use crate::machine::Row;
use crate::membership::Change;
use crate::message::{AcceptedSlot, LostSlots};
use crate::types::{Ballot, Instant, ReplicaId, Slot, Ticket};
use crate::world::{Core, World};

pub(crate) use election::Idle;
pub(crate) use leadership::Leadership;

/// What a replica is to the others right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// It obeys the coordinator named here, if it knows of one.
    Following(Option<ReplicaId>),
    /// It asks for promises, or catches up on what they showed before it leads.
    Campaigning,
    /// A majority has promised to it: it proposes.
    Coordinating,
}

/// Somebody answered a probe.
#[derive(Clone, Copy)]
pub(crate) struct ProbeAnswer {
    pub(crate) from: ReplicaId,
    pub(crate) would: bool,
    pub(crate) round: u64,
    pub(crate) chosen: Slot,
}

/// An acceptor promised.
#[derive(Clone)]
pub(crate) struct Promise {
    pub(crate) from: ReplicaId,
    pub(crate) ballot: Ballot,
    pub(crate) chosen: Slot,
    pub(crate) accepted: Vec<AcceptedSlot>,
    pub(crate) lost: Vec<LostSlots>,
}

/// An acceptor accepted.
#[derive(Clone, Copy)]
pub(crate) struct Acknowledge {
    pub(crate) from: ReplicaId,
    pub(crate) ballot: Ballot,
    pub(crate) slot: Slot,
}

/// A batch wants a slot.
pub(crate) struct Submitted {
    pub(crate) ticket: Ticket,
    pub(crate) batch: Batch,
}

/// Another replica tells what is chosen from a slot on.
#[derive(Clone, Copy)]
pub(crate) struct Told<'a> {
    pub(crate) first: Slot,
    pub(crate) batches: &'a [Batch],
}

/// A replica asks for the read index.
#[derive(Clone, Copy)]
pub(crate) struct IndexAsked {
    pub(crate) from: ReplicaId,
    pub(crate) name: u64,
}

synod_spec::machine! {
    /// Coordinator: who proposes. "PML §4.1 and §5.2: coordinators are elected by promises; a master holds a lease beside."
    machine coordinator(World<'_>) rows Row;

    #[derive(Clone, PartialEq, Eq, Hash, Debug)]
    states {
        /// Somebody else coordinates, as far as is known here, or nobody does.
        Idle(Idle),
        /// Asks the voters whether they would promise. Nobody's number is raised yet.
        Probing(Probing),
        /// Asks for promises.
        Proposing(Candidacy),
        /// Promised by a majority that knows more slots to be chosen: fetches them before it proposes anything (P3).
        CatchingUp(Candidacy),
        /// Proposes.
        Leading(Leadership),
        /// Leads, and takes a higher ballot with a full round: against churn, or because the members change.
        Boosting(Leadership),
        /// Leads, takes nothing new, and steps aside for another once nothing is open.
        HandingOver(Leadership),
    }

    events<'a> {
        /// Time passed.
        Ticked,
        /// The own acceptor heard from another replica, which coordinates under this ballot: it is above any of ours, or the
        /// acceptor would not have obeyed.
        Heard(Ballot),
        /// The own acceptor promised to this ballot of another replica's, which therefore is above any of ours.
        Promised(Ballot),
        /// The master of this ballot gave up its lease.
        Released(Ballot),
        /// The master of this ballot asks this replica to take over.
        TakeOver(Ballot),
        /// A replica that knows the log to be chosen up to here asks whether it should campaign.
        Probed(Slot),
        /// A voter says whether it would promise.
        ProbeAnswered(ProbeAnswer),
        /// An acceptor promised to us.
        Promise(Promise),
        /// An acceptor refused, because it promised this ballot.
        Rejected(Ballot),
        /// An acceptor accepted from us.
        Acknowledge(Acknowledge),
        /// A batch wants a slot, and there is room.
        Submitted(Submitted),
        /// Another replica tells what is chosen.
        Told(Told<'a>),
        /// More slots are chosen and applied than before.
        Progressed,
        /// An operator wants another replica to be the master.
        TransferAsked(ReplicaId),
        /// An operator wants the members changed.
        ChangeAsked(Change),
        /// A replica, this one perhaps, asks up to where it must have applied to answer its reads.
        IndexAsked(IndexAsked),
        /// The own disk is too far behind, or silent (P7); or the own state is not to be trusted (P14).
        BackedUp,
        /// This replica lost state: the life of it that voted is over (P11).
        Superseded(ReplicaId),
        /// The own state is lost, or turned out to be older than what others heard of (P11, P13).
        Lost,
    }

    on Ticked {
        in Idle: when is_early stay;
                 when bare may_not_campaign do rest_on stay;
                 when bare is_alone do bare campaign goto Proposing;
                 do probe goto Probing;
        in Probing: when is_asking stay;
                    do give_up_probe goto Idle;
        in Proposing, CatchingUp: when is_trying stay;
                                  do give_up goto Idle;
        in Leading: when has_lapsed do step_down goto Idle;
                    when can_boost do begin_boost goto Boosting;
                    do keep_alive stay;
        in Boosting: when has_lapsed do step_down goto Idle;
                     do ask_again stay;
        in HandingOver: when has_lapsed do step_down goto Idle;
                        do keep_alive stay;
    }

    on Heard {
        in Idle: do obey stay;
        in Probing: do bare follow goto Idle;
        in Proposing, CatchingUp: do bare follow goto Idle;
        in Leading, Boosting, HandingOver: do yield_to goto Idle;
    }

    on Promised {
        in Idle: do expect_candidate stay;
        in Probing: do bare make_way goto Idle;
        in Proposing, CatchingUp: do bare make_way goto Idle;
        in Leading, Boosting, HandingOver: do yield_way goto Idle;
    }

    on Released {
        in Idle: when is_whom_we_follow do expect_vacancy stay;
                 refuse "of a mastership that is over";
        in Probing, Proposing, CatchingUp, Leading, Boosting, HandingOver: refuse "somebody campaigns or leads already";
    }

    on TakeOver {
        in Idle: when bare is_not_for_us refuse "not from the master we follow, or we could not lead";
                 do bare take_over goto Proposing;
        in Probing: when bare is_not_for_us refuse "not from the master we follow, or we could not lead";
                    do bare take_over goto Proposing;
        in Proposing, CatchingUp, Leading, Boosting, HandingOver: refuse "we campaign or lead already";
    }

    on Probed {
        in Idle: when is_better_placed do probe_too goto Probing;
                 refuse "the prober may go on";
        in Probing, Proposing, CatchingUp, Leading, Boosting, HandingOver: refuse "we campaign or lead already";
    }

    on ProbeAnswered {
        in Idle: do bare hear_answer stay;
        in Probing: when is_refused do bare hear_and_count stay;
                    when should_defer do defer goto Idle;
                    when completes_probe do campaign_after goto Proposing;
                    do count_answer stay;
        in Proposing, CatchingUp, Leading, Boosting, HandingOver: refuse "the probe is over";
    }

    on Promise {
        in Idle, Probing: refuse "the candidacy is over";
        in Proposing: when is_unsound refuse "of another ballot, or it reports what no acceptor can hold";
                      when completes_behind do count_and_chase goto CatchingUp;
                      when completes do count_and_lead goto Leading;
                      do count_promise stay;
        in CatchingUp: when is_unsound refuse "of another ballot, or it reports what no acceptor can hold";
                       do count_and_chase_more stay;
        in Leading, HandingOver: refuse "late: a majority stood without it";
        in Boosting: when is_unsound_boost refuse "of another ballot, or it reports what no acceptor can hold";
                     when shows_more do step_down_told goto Idle;
                     when completes_boost do finish_boost goto Leading;
                     do count_boost stay;
    }

    on Rejected {
        in Idle, Probing: do bare note_round stay;
        in Proposing, CatchingUp: when outbids_candidacy do bare ask_soon goto Idle;
                                  do bare note_round stay;
        in Leading, HandingOver: when is_old refuse "of an older ballot";
                                 when bare holds_lease do want_boost stay;
                                 do yield_and_ask goto Idle;
        in Boosting: when is_old refuse "of an older ballot";
                     do step_down_outbid goto Idle;
    }

    on Acknowledge {
        in Idle, Probing, Proposing, CatchingUp: refuse "of a ballot that is over";
        in Leading: when is_of_another refuse "of another ballot";
                    when is_learner_current do count_and_promote stay;
                    do count stay;
        in Boosting: refuse "nothing is open";
        in HandingOver: when is_of_another refuse "of another ballot";
                        do count stay;
    }

    on Submitted {
        in Leading: do take_batch stay;
        in Idle, Probing, Proposing, CatchingUp, Boosting, HandingOver: never "there is no room";
    }

    on Told {
        in Idle, Probing, Proposing, CatchingUp: refuse "nothing is proposed here: the learner takes it";
        in Leading, HandingOver: when is_contradicted do step_down_at goto Idle;
                                 do agree stay;
        in Boosting: when is_contradicted do step_down_at goto Idle;
                     refuse "nothing is open";
    }

    on Progressed {
        in Idle, Probing: refuse "nothing waits for it";
        in Proposing: when bare is_no_voter do give_up goto Idle;
                      stay;
        in CatchingUp: when is_still_behind stay;
                       when bare is_no_voter do give_up goto Idle;
                       when lacks_promises do ask_more goto Proposing;
                       do lead goto Leading;
        in Leading: when bare is_no_voter do retire goto Idle;
                    when can_boost do begin_boost goto Boosting;
                    do go_on stay;
        in Boosting: refuse "nothing waits for it";
        in HandingOver: when bare is_no_voter do retire goto Idle;
                        when has_drained do hand_over goto Idle;
                        do go_on stay;
    }

    on TransferAsked {
        in Leading: when is_drained do hand_over_to goto Idle;
                    do begin_handover goto HandingOver;
        in Idle, Probing, Proposing, CatchingUp, Boosting, HandingOver: never "check_transfer was not asked";
    }

    on ChangeAsked {
        in Leading: do propose_change stay;
        in Idle, Probing, Proposing, CatchingUp, Boosting, HandingOver: never "check_change was not asked";
    }

    on IndexAsked {
        in Idle, Probing, Proposing, CatchingUp: refuse "who leads is to be asked";
        in Leading, Boosting, HandingOver: when may_tell_index do tell_index stay;
                                           do note_question stay;
    }

    on BackedUp {
        in Idle, Probing, Proposing, CatchingUp: refuse "there is nothing to give up";
        in Leading, Boosting, HandingOver: do step_down goto Idle;
    }

    on Superseded {
        in Idle: refuse "nothing is counted";
        in Probing: do forget_answer stay;
        in Proposing, CatchingUp: do forget_promise stay;
        in Leading, Boosting, HandingOver: do forget_votes stay;
    }

    on Lost {
        in Idle: refuse "there is nothing to give up";
        in Probing: do give_up_probe goto Idle;
        in Proposing, CatchingUp: do give_up goto Idle;
        in Leading, Boosting, HandingOver: do step_down goto Idle;
    }
}

crate::machine::counted!(coordinator);

impl State {
    pub(crate) fn role(&self) -> Role {
        match self {
            State::Idle(idle) => Role::Following(idle.coordinator),
            State::Probing(_) => Role::Following(None),
            State::Proposing(_) | State::CatchingUp(_) => Role::Campaigning,
            State::Leading(_) | State::Boosting(_) | State::HandingOver(_) => Role::Coordinating,
        }
    }

    /// The time as coordinator, in whichever of its states.
    pub(crate) fn leadership(&self) -> Option<&Leadership> {
        match self {
            State::Leading(leadership) | State::Boosting(leadership) | State::HandingOver(leadership) => {
                Some(leadership)
            }
            State::Idle(_) | State::Probing(_) | State::Proposing(_) | State::CatchingUp(_) => None,
        }
    }

    /// For [`crate::Replica::essence`].
    pub(crate) fn forget_obeyed(&mut self) {
        if let State::Idle(idle) = self {
            idle.coordinator = None;
        }
    }

    /// For [`crate::Replica::essence`].
    pub(crate) fn forget_acknowledged(&mut self) {
        match self {
            State::Leading(leadership) | State::Boosting(leadership) | State::HandingOver(leadership) => {
                leadership.forget_acknowledged();
            }
            State::Idle(_) | State::Probing(_) | State::Proposing(_) | State::CatchingUp(_) => {}
        }
    }

    pub(crate) fn deadline(&self, core: &Core) -> Instant {
        match self {
            State::Idle(idle) => idle.deadline,
            State::Probing(probing) => probing.deadline,
            State::Proposing(candidacy) | State::CatchingUp(candidacy) => candidacy.deadline,
            State::Leading(leadership) | State::HandingOver(leadership) => leadership.deadline(core),
            State::Boosting(leadership) => leadership.boost_deadline(core),
        }
    }
}
