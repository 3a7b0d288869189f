//! Membership: who keeps the cell, and how that changes (rules P5, P6; PML §5.4).
//!
//! A change is a batch in the log. Decided at slot i it governs from slot i + horizon on, at every replica alike, because
//! nothing is proposed that far ahead before i is applied. Changes add or remove one voter, so a majority before and a
//! majority after always share a replica: that is what lets a lease or a promise of the one bind the other.
//!
//! A change says which configuration it was made for. One that comes too late, from a master long superseded, is void.

use std::fmt;

use crate::batch::Batch;
use crate::configuration::{Configuration, ConfigurationError, Member};
use crate::effect::{Configurations, Effect};
use crate::machine::Row;
use crate::types::{ReplicaId, ReplicaSet, Slot};
use crate::world::World;

/// What an operator may ask for.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Change {
    /// A new member: a learner at once, a voter once it has caught up.
    Add {
        /// Its number, never used before.
        id: ReplicaId,
        /// What an application needs to reach it.
        address: String,
    },
    /// A member leaves.
    Remove {
        /// Which.
        id: ReplicaId,
        /// Even if the cell survives no failure afterwards.
        force: bool,
    },
}

/// Why a change of the members is refused. Nothing has happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangeError {
    /// Only the master changes the members.
    NotMaster,
    /// One at a time: a change is under way, or has only just come into force.
    UnderWay,
    /// There is such a member already.
    Exists(ReplicaId),
    /// A member has this address already.
    SameAddress(ReplicaId),
    /// There is no such member.
    Unknown(ReplicaId),
    /// The master does not remove itself.
    Itself,
    /// The voters left that answer would not be a majority: the cell would stop.
    WouldStop(ReplicaId),
    /// The cell would survive no failure afterwards, and `force` was not given.
    NoTolerance(ReplicaId),
    /// No slot is free right now.
    Busy,
    /// What would come out is not a configuration.
    Invalid(String),
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotMaster => write!(f, "this replica is not the master"),
            Self::UnderWay => write!(f, "another change of the members is under way: try again when it is done"),
            Self::Exists(id) => write!(f, "member {id} exists already"),
            Self::SameAddress(id) => write!(f, "member {id} has this address already"),
            Self::Unknown(id) => write!(f, "there is no member {id}"),
            Self::Itself => write!(f, "the master does not remove itself: transfer mastership first"),
            Self::WouldStop(id) => {
                write!(f, "without member {id} the voters that answer now would not be a majority: the cell would stop")
            }
            Self::NoTolerance(id) => {
                write!(f, "without member {id} the cell survives no failure: say so with --force if it is meant")
            }
            Self::Busy => write!(f, "no slot is free right now: try again"),
            Self::Invalid(why) => write!(f, "{why}"),
        }
    }
}

impl std::error::Error for ChangeError {}

impl From<ConfigurationError> for ChangeError {
    fn from(error: ConfigurationError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// A change was chosen.
pub(crate) struct Decided {
    /// Where.
    pub(crate) slot: Slot,
    /// The first slot of the configuration it was made for.
    pub(crate) base: Slot,
    pub(crate) configuration: Configuration,
}

synod_spec::machine! {
    /// Membership: the configuration in force, and the one to come.
    machine membership(World<'_>) rows Row;

    #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
    states {
        /// One configuration governs every slot.
        Settled,
        /// Another is decided, and governs from a slot on that is not reached yet.
        Changing,
    }

    events {
        /// A change was chosen and is being applied.
        Decided(Decided),
        /// One more slot is chosen and applied.
        Applied,
        /// A snapshot brought these: all that was decided until its slot.
        Installed(Configurations),
    }

    on Decided {
        in Settled: when is_for_another refuse "made for a configuration that is gone: void";
                    do expect goto Changing;
        in Changing: refuse "one change at a time: void";
    }

    on Applied {
        in Settled: stay;
        in Changing: when is_ahead stay;
                     do enact goto Settled;
    }

    on Installed {
        in Settled: when brings_a_change do adopt goto Changing;
                    do adopt stay;
        in Changing: when brings_a_change do adopt stay;
                     do adopt goto Settled;
    }
}

crate::machine::counted!(membership);

fn is_for_another(decided: &Decided, world: &World<'_>) -> bool {
    !world.core.membership.configurations.is_made_for(decided.base)
}

fn expect(decided: Decided, world: &mut World<'_>) {
    world.core.membership.configurations.decide(decided.slot, decided.configuration);
    reconfigured(world);
}

/// Whether the slots of the configuration to come are not reached yet.
fn is_ahead(world: &World<'_>) -> bool {
    !world.core.membership.configurations.is_due(world.chosen().next())
}

fn enact(world: &mut World<'_>) {
    let previous = world.core.membership.configurations.enact();
    world.core.membership.previous = Some(previous);
    reconfigured(world);
}

fn brings_a_change(installed: &Configurations, _: &World<'_>) -> bool {
    installed.pending.is_some()
}

/// What was in force before is not known: whoever installs does not lead, and only a master asks for it.
fn adopt(installed: Configurations, world: &mut World<'_>) {
    world.core.membership.previous = None;
    if !crate::planted!(P6InstallKeepsMembers) {
        world.core.membership.configurations = installed;
    }
    reconfigured(world);
}

fn reconfigured(world: &mut World<'_>) {
    world.core.membership.refresh();
    world.persist_hard_state();
    let configurations = world.core.membership.configurations.clone();
    world.effects.push(Effect::Reconfigured { configurations });
    crate::standing::tell(crate::standing::Event::Reconfigured, world);
}

/// One slot is applied: if its batch is a change, it is decided now.
pub(crate) fn applied(slot: Slot, batch: &Batch, world: &mut World<'_>) {
    let mut state = world.core.membership.state;
    step(&mut state, Event::Applied, world);
    if let Some((base, configuration)) = batch.as_change() {
        step(&mut state, Event::Decided(Decided { slot, base, configuration }), world);
    }
    world.core.membership.state = state;
}

/// The application's state is a snapshot's now, and so is who keeps the cell.
pub(crate) fn install(configurations: Configurations, world: &mut World<'_>) {
    let mut state = world.core.membership.state;
    step(&mut state, Event::Installed(configurations), world);
    world.core.membership.state = state;
}

/// Who keeps the cell.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Membership {
    state: State,
    me: ReplicaId,
    configurations: Configurations,
    /// What was in force before the last change since the start: others may not know of the change yet.
    previous: Option<Configuration>,
    /// Every member but this one, of both configurations.
    others: Vec<ReplicaId>,
}

impl Membership {
    pub(crate) fn new(me: ReplicaId, configurations: Configurations) -> Self {
        let state = if configurations.pending.is_some() { State::Changing } else { State::Settled };
        let mut membership = Self { state, me, configurations, previous: None, others: Vec::new() };
        membership.refresh();
        membership
    }

    fn refresh(&mut self) {
        let mut ids: Vec<ReplicaId> = self.all().flat_map(|c| c.members()).map(|member| member.id).collect();
        ids.retain(|id| *id != self.me);
        ids.sort_unstable();
        ids.dedup();
        self.others = ids;
    }

    /// The configurations that govern slots which are not chosen yet: one or two.
    fn all(&self) -> impl Iterator<Item = &Configuration> {
        let pending = self.configurations.pending.as_ref().map(|(_, configuration)| configuration);
        std::iter::once(&self.configurations.current).chain(pending)
    }

    pub(crate) fn configurations(&self) -> &Configurations {
        &self.configurations
    }

    pub(crate) fn others(&self) -> &[ReplicaId] {
        &self.others
    }

    pub(crate) fn is_changing(&self) -> bool {
        self.state == State::Changing
    }

    pub(crate) fn is_member(&self, id: ReplicaId) -> bool {
        self.all().any(|configuration| configuration.member(id).is_some())
    }

    pub(crate) fn is_voter(&self, id: ReplicaId) -> bool {
        self.all().any(|configuration| configuration.voters().contains(id))
    }

    pub(crate) fn horizon(&self) -> u64 {
        self.configurations.current.horizon()
    }

    /// The longest lease that any configuration in question grants.
    pub(crate) fn lease(&self) -> std::time::Duration {
        self.all().map(Configuration::lease).max().expect("there is a current one")
    }

    /// The shortest that a holder may rely on.
    pub(crate) fn lease_of_holder(&self) -> std::time::Duration {
        self.all().map(Configuration::lease_of_holder).min().expect("there is a current one")
    }

    /// The configuration that governs this slot (rule P6).
    pub(crate) fn governing(&self, slot: Slot) -> &Configuration {
        match &self.configurations.pending {
            Some((from, pending)) if slot >= *from => pending,
            Some(_) | None => &self.configurations.current,
        }
    }

    /// Whether these chose the slot.
    pub(crate) fn is_majority_at(&self, slot: Slot, votes: ReplicaSet) -> bool {
        if crate::planted!(P6MinorityDecides) {
            return votes.len() * 2 >= self.governing(slot).voters().len();
        }
        if crate::planted!(P6CountsLearners) {
            return votes.len() > self.governing(slot).voters().len() / 2;
        }
        self.governing(slot).is_majority(votes)
    }

    /// Whether these may let a candidate lead: a majority of each configuration that governs a slot not chosen yet.
    pub(crate) fn is_majority_of_all(&self, votes: ReplicaSet) -> bool {
        if crate::planted!(P6OldMajorityLeads) {
            return self.configurations.current.is_majority(votes);
        }
        self.all().all(|configuration| configuration.is_majority(votes))
    }

    /// How many more failures are survived while these are alive. `is_known`: a majority knows of the last change; until then
    /// a successor may still have to ask the members of before.
    pub(crate) fn tolerance(&self, alive: ReplicaSet, is_known: bool) -> i8 {
        let previous = self.previous.iter().filter(|_| !is_known);
        let tolerances = self.all().chain(previous).map(|configuration| configuration.tolerance(alive));
        tolerances.min().expect("there is a current one")
    }

    /// The batch that makes this change, if it may be made while these are alive.
    pub(crate) fn change(&self, change: &Change, alive: ReplicaSet) -> Result<Batch, ChangeError> {
        if self.is_changing() {
            return Err(ChangeError::UnderWay);
        }
        let current = &self.configurations.current;
        let changed = match change {
            Change::Add { id, address } => {
                if current.member(*id).is_some() {
                    return Err(ChangeError::Exists(*id));
                }
                let same = |member: &&Member| !address.is_empty() && member.address == *address;
                if let Some(member) = current.members().iter().find(same) {
                    return Err(ChangeError::SameAddress(member.id));
                }
                current.with(Member { id: *id, voter: false, address: address.clone() })?
            }
            Change::Remove { id, force } => {
                let Some(member) = current.member(*id) else { return Err(ChangeError::Unknown(*id)) };
                if *id == self.me {
                    return Err(ChangeError::Itself);
                }
                let changed = current.without(*id)?;
                match changed.tolerance(alive) {
                    _ if !member.voter => {}
                    ..0 => return Err(ChangeError::WouldStop(*id)),
                    0 if !force => return Err(ChangeError::NoTolerance(*id)),
                    _ => {}
                }
                changed
            }
        };
        Ok(self.change_to(&changed))
    }

    /// The batch that makes a learner a voter.
    pub(crate) fn promotion(&self, id: ReplicaId) -> Batch {
        self.change_to(&self.configurations.current.with_voter(id))
    }

    fn change_to(&self, configuration: &Configuration) -> Batch {
        Batch::change(self.configurations.since, configuration)
    }

    /// Whether this is a learner that could become a voter.
    pub(crate) fn is_learner(&self, id: ReplicaId) -> bool {
        self.configurations.current.member(id).is_some_and(|member| !member.voter) && !self.is_changing()
    }
}
