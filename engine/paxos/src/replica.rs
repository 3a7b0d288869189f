//! A replica: the machines together, and the one way in.

use crate::acceptor::{self, Acceptor};
use crate::coordinator::{self, Idle, Leadership, Role};
use crate::effect::{Configurations, Effect, Effects, Event, Recovered, SnapshotHandle};
use crate::learner::{self, Learner};
use crate::lives::{self, CrashVector, Lives};
use crate::machine::Counts;
use crate::membership::{Change, ChangeError, Membership};
use crate::message::{LostSlots, Message};
use crate::rejoin::{self, Rejoin, Rejoining};
use crate::settings::Settings;
use crate::types::{Ballot, Incarnation, Instant, LogPosition, ReplicaId, ReplicaSet, Slot};
use crate::world::{Core, Journal, Random, World};
use crate::{grant, index, lease, standing};

/// One replica of the fault-tolerant log.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Replica {
    core: Core,
    coordinator: coordinator::State,
    /// What the coordinator last said about it.
    tolerance_heard: Option<(Instant, i8)>,
}

/// Whether this replica's promises and acknowledgements count.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum VotingStatus {
    /// Just started: it promises nothing until no lease can be left that it granted before (P8).
    Waiting,
    /// It votes.
    Voting,
    /// A member that catches up, and is not counted yet (P6).
    Learning,
    /// No member: not yet, or not any more.
    Outside,
    /// It lost state, and does not vote before a majority has told it again (P11).
    Rejoining,
}

/// Why mastership is not transferred. Nothing has happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferError {
    /// Only the master hands over, and not while it is doing so already.
    NotMaster,
    /// It is the master already.
    Itself,
    /// It is no voting member.
    NotAVoter(ReplicaId),
    /// This mastership has only just begun, and still ends what others began.
    Beginning,
    /// It has not acknowledged anything lately.
    NotThere(ReplicaId),
}

impl std::fmt::Display for TransferError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotMaster => write!(f, "this replica is not the master, or is handing over already"),
            Self::Itself => write!(f, "this replica is the master already"),
            Self::NotAVoter(id) => write!(f, "replica {id} is not a voting member"),
            Self::Beginning => write!(f, "this replica has only just become the master: try again"),
            Self::NotThere(id) => write!(f, "replica {id} has not acknowledged anything lately: is it running?"),
        }
    }
}

impl std::error::Error for TransferError {}

impl Replica {
    /// A replica that starts now from what its log held.
    pub fn new(settings: Settings, recovered: &Recovered, now: Instant) -> Self {
        assert!(settings.window >= 1, "no slot could ever be open");
        let membership = Membership::new(settings.me, recovered.configurations.clone());
        // What was granted before this start is not known: nothing is promised until it is over (P8).
        let is_over = crate::planted!(P8NoWaitAfterStart);
        let until = if is_over { now } else { now.after(membership.lease()) };
        let lives = Lives::new(settings.incarnation, recovered.vector.clone(), recovered.frame);
        let from = lives.position();
        let waiting = standing::Waiting { until, from, heard: ReplicaSet::default(), ask_at: now };
        let random = Random(fastrand::Rng::with_seed(settings.seed));
        let acceptor = Acceptor::new(recovered);
        let mut core = Core {
            settings,
            membership,
            standing: match recovered.lost_state {
                true => standing::State::Rejoining,
                false => standing::State::Waiting(waiting),
            },
            lives,
            rejoin: Rejoin::from(now),
            grant: grant::State::Free,
            released: Ballot::NONE,
            round: acceptor.promised().round,
            acceptor,
            learner: Learner::new(recovered.chosen, recovered.known, recovered.cut),
            held_up: None,
            lease: lease::State::Without,
            index: index::State::Quiet,
            quarantined: false,
            journal: Journal::new(),
            random,
            counts: Counts::new(),
        };
        let idle = Idle::start(&mut World { now, core: &mut core, effects: &mut Effects::new() });
        Self { core, coordinator: coordinator::State::Idle(idle), tolerance_heard: None }
    }

    /// Takes one event. Runs to its end, never waits, never fails.
    ///
    /// `now` must have been read after the event came: a grant counts from an accept's receipt (P8), and one that counts from
    /// before it was even sent may end before the holder's lease does.
    pub fn step(&mut self, now: Instant, event: Event, effects: &mut Effects) {
        let (chosen_before, has_room, standing_before) = (self.chosen(), self.can_submit(), self.core.standing);
        let mut world = World { now, core: &mut self.core, effects };
        let coordinator = &mut self.coordinator;
        match event {
            Event::Received { from, message } => {
                if let Message::Commit { ballot, tolerance, .. } = message
                    && ballot >= world.core.acceptor.promised()
                {
                    self.tolerance_heard = Some((now, tolerance));
                }
                receive(from, message, coordinator, &mut world);
            }
            Event::Persisted { upto, frame } => {
                world.core.journal.persisted(upto);
                world.core.lives.durable(frame);
            }
            Event::Submitted { ticket, .. } if !has_room => world.effects.push(Effect::Refuse { ticket }),
            Event::Submitted { ticket, batch } => {
                let submitted = coordinator::Submitted { ticket, batch };
                coordinator::step(coordinator, coordinator::Event::Submitted(submitted), &mut world);
            }
            Event::TransferAsked { to } => {
                coordinator::step(coordinator, coordinator::Event::TransferAsked(to), &mut world);
            }
            Event::ChangeAsked { change } => {
                coordinator::step(coordinator, coordinator::Event::ChangeAsked(change), &mut world);
            }
            Event::Ticked => {
                standing::tell(standing::Event::Ticked, &mut world);
                grant::tell(grant::Event::Ticked, &mut world);
                learner::tell(learner::Event::Ticked, &mut world);
                index::tell(index::Event::Ticked(whom_to_ask(coordinator, &world)), &mut world);
                lives::tell_position(&mut world);
                coordinator::step(coordinator, coordinator::Event::Ticked, &mut world);
            }
            Event::IndexWanted => {
                index::tell(index::Event::Wanted(whom_to_ask(coordinator, &world)), &mut world);
            }
            Event::IndexUnwanted => index::tell(index::Event::Unwanted, &mut world),
            Event::LogFull => acceptor::tell(acceptor::Event::LogFull, &mut world),
            Event::LogRoom => acceptor::tell(acceptor::Event::LogRoom, &mut world),
            Event::Cut { upto } => learner::cut(upto, &mut world),
            Event::Quarantined => world.core.quarantined = true,
            Event::Installed { handle } => {
                assert!(coordinator.leadership().is_none(), "who leads has what it proposed, and nothing to install");
                learner::tell(learner::Event::Installed(handle), &mut world);
            }
        }
        if world.core.standing == standing::State::Rejoining {
            if standing_before != standing::State::Rejoining {
                coordinator::step(coordinator, coordinator::Event::Lost, &mut world);
            }
            standing::tell(standing::Event::Progressed, &mut world);
        }
        if world.chosen() > chosen_before {
            coordinator::step(coordinator, coordinator::Event::Progressed, &mut world);
        }
        if (world.is_backed_up() || world.is_stalled()) && !crate::planted!(P7NeverGivesUp) || world.core.quarantined {
            coordinator::step(coordinator, coordinator::Event::BackedUp, &mut world);
        }
        assert!(self.chosen() >= chosen_before, "what is chosen stays chosen");
    }

    /// Whether a batch submitted now would be proposed at once: this replica coordinates, its window is open and its
    /// log has room.
    pub fn can_submit(&self) -> bool {
        match &self.coordinator {
            coordinator::State::Leading(leadership) => !self.core.acceptor.is_full() && leadership.has_room(&self.core),
            _ => false,
        }
    }

    /// Whether this replica is the master at this moment: it coordinates and its lease runs.
    pub fn holds_lease(&self, now: Instant) -> bool {
        self.coordinator.leadership().is_some() && self.core.lease.holds(now)
    }

    /// Until when this replica is the master, if it is: on its own clock.
    pub fn lease_until(&self) -> Option<Instant> {
        self.coordinator.leadership().and_then(|_| self.core.lease.until())
    }

    /// Whether what is applied here reflects every write acknowledged until now, anywhere: a read needs no slot then. To be
    /// asked again, with a fresh clock, after the answer has been computed (P8).
    pub fn may_read(&self, now: Instant) -> bool {
        if crate::planted!(P16ReadsWithoutLease) {
            return true;
        }
        let leadership = self.coordinator.leadership();
        leadership.is_some_and(|leadership| leadership.is_caught_up(self.chosen())) && self.core.lease.holds(now)
    }

    /// The ballot with which the current mastership of this replica began, if it coordinates.
    pub fn mastership(&self) -> Option<Ballot> {
        self.coordinator.leadership().map(Leadership::mastership)
    }

    /// Whether mastership may be handed over to `to` now.
    pub fn check_transfer(&self, to: ReplicaId, now: Instant) -> Result<(), TransferError> {
        let coordinator::State::Leading(leadership) = &self.coordinator else { return Err(TransferError::NotMaster) };
        if to == self.core.settings.me {
            return Err(TransferError::Itself);
        }
        if leadership.is_adopting() {
            return Err(TransferError::Beginning);
        }
        if !self.core.membership.governing(self.chosen().next()).voters().contains(to) {
            return Err(TransferError::NotAVoter(to));
        }
        if leadership.alive(&self.core, now).contains(to) { Ok(()) } else { Err(TransferError::NotThere(to)) }
    }

    /// Whether the members may be changed so now.
    pub fn check_change(&self, change: &Change, now: Instant) -> Result<(), ChangeError> {
        let coordinator::State::Leading(leadership) = &self.coordinator else { return Err(ChangeError::NotMaster) };
        leadership.check_change(change, &self.core, now)
    }

    /// Whether a snapshot as of this slot would bring this replica on: it lags behind, or what it has is not to be trusted
    /// (P14), and it does not lead.
    pub fn can_install(&self, slot: Slot) -> bool {
        let is_news = slot > self.chosen() || self.core.quarantined && slot == self.chosen();
        is_news && self.coordinator.leadership().is_none()
    }

    /// What ties a snapshot of the application's state, as it is right now, to the log.
    pub fn snapshot_handle(&self) -> SnapshotHandle {
        let (slot, ballot) = (self.chosen(), self.promised());
        SnapshotHandle { slot, ballot, configurations: self.configurations().clone() }
    }

    /// Whether the application's state is not to be trusted (P14).
    pub fn is_quarantined(&self) -> bool {
        self.core.quarantined
    }

    /// All up to here may be gone from the own log.
    pub fn cut(&self) -> Slot {
        self.core.learner.cut()
    }

    /// When the replica wants an [`Event::Ticked`] at the latest.
    pub fn deadline(&self) -> Instant {
        let coordinator = self.coordinator.deadline(&self.core);
        let learner = self.core.learner.deadline().unwrap_or(coordinator);
        let standing = self.core.standing.deadline(&self.core).unwrap_or(coordinator);
        let is_alone = self.core.membership.others().is_empty();
        let lives = self.core.lives.deadline().filter(|_| !is_alone).unwrap_or(coordinator);
        let index = self.core.index.deadline().unwrap_or(coordinator);
        coordinator.min(learner).min(standing).min(lives).min(index)
    }

    /// What this replica is to the others.
    pub fn role(&self) -> Role {
        self.coordinator.role()
    }

    /// Whether this replica's promises and acknowledgements count.
    pub fn voting_status(&self) -> VotingStatus {
        match self.core.standing {
            standing::State::Waiting(_) => VotingStatus::Waiting,
            standing::State::Voting => VotingStatus::Voting,
            standing::State::Learning => VotingStatus::Learning,
            standing::State::Outside => VotingStatus::Outside,
            standing::State::Rejoining => VotingStatus::Rejoining,
        }
    }

    /// In which of its lives this replica is; [`Incarnation::NONE`] while it rejoins.
    pub fn incarnation(&self) -> Incarnation {
        self.core.lives.own
    }

    /// How far its log goes.
    pub fn position(&self) -> LogPosition {
        self.core.lives.position()
    }

    /// In which lives the others are, as far as is known here.
    pub fn crash_vector(&self) -> &CrashVector {
        &self.core.lives.vector
    }

    /// How far this replica knows another's log to go (P13).
    pub fn position_of(&self, replica: ReplicaId) -> LogPosition {
        self.core.lives.position_of(replica)
    }

    /// How far it has come, if it lost state.
    pub fn rejoining(&self) -> Option<Rejoining> {
        let is_rejoining = self.core.standing == standing::State::Rejoining;
        is_rejoining.then(|| self.core.rejoin.progress(&self.core.membership, self.core.settings.me))
    }

    /// How many more failures the cell survives right now: negative when it cannot go on, `None` when this replica does not
    /// know, because it has heard from no coordinator lately.
    pub fn tolerance(&self, now: Instant) -> Option<i8> {
        if let Some(leadership) = self.coordinator.leadership() {
            return Some(leadership.tolerance(&self.core, now));
        }
        let lately = self.core.settings.election_timeout;
        self.tolerance_heard.filter(|(at, _)| now.since(*at) <= lately).map(|(_, tolerance)| tolerance)
    }

    /// Who takes part right now, as the coordinator sees it: itself and whoever acknowledged lately.
    pub fn alive(&self, now: Instant) -> Option<ReplicaSet> {
        self.coordinator.leadership().map(|leadership| leadership.alive(&self.core, now))
    }

    /// The configuration in force, and the one to come.
    pub fn configurations(&self) -> &Configurations {
        self.core.membership.configurations()
    }

    /// All up to here is chosen and applied.
    pub fn chosen(&self) -> Slot {
        self.core.learner.chosen()
    }

    /// The highest ballot this replica has promised to anyone.
    pub fn promised(&self) -> Ballot {
        self.core.acceptor.promised()
    }

    /// The acceptor, to look at.
    pub fn acceptor(&self) -> &Acceptor {
        &self.core.acceptor
    }

    /// What keeps this replica, promised by a majority, from leading: nobody who answered has the value of these slots, and who
    /// may have accepted one has lost it (rule L5). Others are asked again and again; with all of them there, it is gone.
    pub fn held_up(&self) -> Option<LostSlots> {
        self.core.held_up
    }

    /// How many slots may have a value that was accepted here, lost, and is not known again by now.
    pub fn lost_slots(&self) -> u64 {
        self.core.acceptor.lost_slots()
    }

    /// How many slots are proposed here and not yet chosen.
    pub fn open_slots(&self) -> usize {
        self.coordinator.leadership().map_or(0, Leadership::open_slots)
    }

    /// Whether the log is at its bound.
    pub fn is_full(&self) -> bool {
        self.core.acceptor.is_full()
    }

    /// Whether chosen slots are being fetched from another replica.
    pub fn is_fetching(&self) -> bool {
        self.core.learner.is_fetching()
    }

    /// This replica without what has no effect where all timeouts are zero and nobody asks for a change or a transfer: for a
    /// model check, which then sees one state where it would see dozens.
    ///
    /// - Who has acknowledged lately: for changes, transfers and operators, and to spare who is far behind what it would refuse.
    /// - Without a lease, whom a follower obeys: to tell clients, and to wait for a time that is none.
    /// - Without a lease, what was granted and released: a grant of no length binds nobody.
    #[must_use]
    pub fn essence(mut self) -> Self {
        assert!(self.core.settings.election_timeout.is_zero(), "where timeouts pass, all of it counts");
        self.tolerance_heard = None;
        self.coordinator.forget_acknowledged();
        if self.core.membership.lease().is_zero() {
            self.coordinator.forget_obeyed();
            self.core.grant = grant::State::Free;
            self.core.released = Ballot::NONE;
        }
        self
    }

    /// How often each transition was taken.
    pub fn counts(&self) -> &Counts {
        &self.core.counts
    }
}

/// Hands a message to the machine that answers for it.
fn receive(from: ReplicaId, message: Message, coordinator: &mut coordinator::State, world: &mut World<'_>) {
    if let Message::Promise { voter, .. } | Message::Acknowledge { voter, .. } = &message {
        for over in lives::learn(from, voter, world) {
            supersede(over, coordinator, world);
        }
        standing::superseded(voter, world);
        if !lives::counts(from, voter, world) {
            return;
        }
    }
    // A coordinator is obeyed unless a higher ballot was promised.
    let obeys = |ballot: Ballot, world: &World<'_>| ballot >= world.core.acceptor.promised();
    match message {
        Message::Probe { chosen } => {
            let would = coordinator.would_promise(from, world.core, world.now);
            let round = world.core.acceptor.promised().round;
            world.send(from, Message::ProbeAnswer { would, round, chosen: world.chosen() });
            coordinator::step(coordinator, coordinator::Event::Probed(chosen), world);
            // Whoever does not know yet that it votes would not promise, and without its promise nobody may ever lead who
            // could tell it.
            learner::outrun(from, chosen, world);
        }
        Message::ProbeAnswer { would, round, chosen } => {
            let answer = coordinator::ProbeAnswer { from, would, round, chosen };
            coordinator::step(coordinator, coordinator::Event::ProbeAnswered(answer), world);
        }
        Message::Propose { ballot, released } => {
            grant::tell(grant::Event::Released(released), world);
            acceptor::tell(acceptor::Event::Proposed(acceptor::Proposed { from, ballot }), world);
            if world.core.acceptor.promised() == ballot && from != world.me() {
                coordinator::step(coordinator, coordinator::Event::Promised(ballot), world);
            }
        }
        Message::Promise { ballot, cut: _, chosen, accepted, lost, voter: _ } => {
            let promise = coordinator::Promise { from, ballot, chosen, accepted, lost };
            coordinator::step(coordinator, coordinator::Event::Promise(promise), world);
        }
        Message::Accept { ballot, slot, batch, chosen: upto } => {
            let is_obeyed = obeys(ballot, world);
            acceptor::tell(acceptor::Event::Asked(acceptor::Asked { from, ballot, slot, batch }), world);
            if is_obeyed {
                obey(from, ballot, upto, coordinator, world);
            }
        }
        Message::Commit { ballot, chosen: upto, tolerance: _ } => {
            if obeys(ballot, world) {
                obey(from, ballot, upto, coordinator, world);
            } else {
                world.core.acceptor.reject(from, world.effects);
            }
        }
        Message::Acknowledge { ballot, slot, voter: _ } => {
            let acknowledge = coordinator::Acknowledge { from, ballot, slot };
            coordinator::step(coordinator, coordinator::Event::Acknowledge(acknowledge), world);
        }
        Message::Reject { promised } => {
            coordinator::step(coordinator, coordinator::Event::Rejected(promised), world);
        }
        Message::Release { ballot } => {
            grant::tell(grant::Event::Released(ballot), world);
            coordinator::step(coordinator, coordinator::Event::Released(ballot), world);
        }
        Message::TakeOver { ballot } => {
            coordinator::step(coordinator, coordinator::Event::TakeOver(ballot), world);
        }
        Message::Position { durable, known, asks } => standing::position(from, (durable, known, asks), world),
        Message::Rejoin { incarnation } => {
            let before = world.core.lives.vector.of(from);
            rejoin::answer(from, incarnation, world);
            if world.core.lives.vector.of(from) > before {
                supersede(from, coordinator, world);
            }
        }
        Message::RejoinAnswer { asked, known, is_lost, promised, chosen, accepted, voter } => {
            let answer = rejoin::Answer { from, asked, known, is_lost, promised, chosen, accepted, voter };
            standing::tell(standing::Event::Answered(answer), world);
        }
        Message::AskIndex { name } => {
            let asked = coordinator::IndexAsked { from, name };
            coordinator::step(coordinator, coordinator::Event::IndexAsked(asked), world);
        }
        Message::TellIndex { ballot, name, slot } => {
            if obeys(ballot, world) {
                obey(from, ballot, slot, coordinator, world);
            }
            index::tell(index::Event::Told(index::Told { name, slot }), world);
        }
        Message::Fetch { from: first } => {
            let chosen = world.chosen();
            if first > Slot::NONE && first <= chosen {
                world.effects.push(Effect::SendEntries { to: from, from: first, chosen });
            }
        }
        Message::Entries { first, batches, chosen: upto } => {
            let told = coordinator::Told { first, batches: &batches };
            coordinator::step(coordinator, coordinator::Event::Told(told), world);
            learner::tell(learner::Event::Entries(learner::Entries { first, batches }), world);
            learner::outrun(from, upto, world);
        }
    }
}

/// Who tells the read index, as far as is known here.
fn whom_to_ask(coordinator: &coordinator::State, world: &World<'_>) -> Option<ReplicaId> {
    match coordinator.role() {
        Role::Following(coordinator) => coordinator,
        Role::Campaigning => None,
        Role::Coordinating => Some(world.me()),
    }
}

/// A life of this replica is over: its votes count no more, those that were counted among them (P11).
fn supersede(replica: ReplicaId, coordinator: &mut coordinator::State, world: &mut World<'_>) {
    if !crate::planted!(P11CountsSuperseded) {
        coordinator::step(coordinator, coordinator::Event::Superseded(replica), world);
    }
}

/// Somebody coordinates, and says how far the log is chosen.
fn obey(from: ReplicaId, ballot: Ballot, upto: Slot, coordinator: &mut coordinator::State, world: &mut World<'_>) {
    if from != world.me() {
        coordinator::step(coordinator, coordinator::Event::Heard(ballot), world);
    }
    learner::tell(learner::Event::Committed(learner::Committed { ballot, upto }), world);
    learner::outrun_by_coordinator(from, upto, world);
}
