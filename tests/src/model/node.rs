//! One replica of the model: the production machines on a disk that is a list of records.
//!
//! A node is a value, and [`Node::take`] a pure function of it: the same node and the same input give the same node and
//! the same messages. Effects are carried out as in `synod_node::engine`: messages of a replica to itself are taken in
//! the same turn, those that wait for a record go through the [`DurableQueue`], a restart goes through the node's own
//! [`Replay`].
//!
//! Beside what a replica has, a node remembers what it did in all its lives, to be held to it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use synod_paxos::durable::DurableQueue;
use synod_paxos::{
    Ballot, Batch, BatchBuilder, Configuration, Configurations, CrashVector, Effect, Effects, Event, HardState,
    Incarnation, Instant, LogPosition, Message, PersistId, Record, Recovered, Recovery, Replica, ReplicaId, Role,
    Settings, Slot, Ticket, VotingStatus,
};

use super::system::REPLICAS;
use super::{Planted, Scope};

/// From one moment to the next, where there is more than one; and so long is a lease then. Within a moment time stands
/// still: with timeouts of zero whatever waits for its time may happen at any time. (Ten, because a holder counts on nine
/// tenths.)
const MOMENT: Duration = Duration::from_nanos(10);
const INCARNATION: Incarnation = Incarnation(1);

/// When a record becomes durable.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Disk {
    /// In the step that asks for it. Enough where nothing crashes: see [`super`].
    AtOnce,
    /// At any later time, or never.
    AnyTime,
}

/// What a node did that it must not do.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Breach {
    /// A promise or an acknowledgement left, and the disk does not have it.
    ToldBeforeDurable,
    /// It promised more than it keeps.
    PromiseBroken,
    /// It asked for two values at one slot under one ballot.
    TwoValuesUnderOneBallot,
    /// It applied something else at a slot in an earlier life, or out of order.
    AppliedOtherwise,
    /// Its log does not have what it applied as the last record of the slot.
    LogWithoutChosen,
    /// A batch that it took ended twice.
    TicketEndedTwice,
    /// It does not start from its own log.
    NoRecovery,
    /// It promised although it had granted a lease to another.
    PromisedAgainstGrant,
    /// An assertion of the machines.
    Assertion,
}

/// What can happen to a node.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Input<'a> {
    Tick,
    /// The first record that is not yet durable becomes so.
    Flush,
    /// A client's value.
    Submit,
    /// It loses what is not durable, and starts again.
    Crash,
    /// A moment later.
    Pass,
    Message(ReplicaId, &'a Message),
}

/// What came of an input.
pub(crate) struct Outcome {
    pub(crate) node: Node,
    pub(crate) sends: Vec<(ReplicaId, Message)>,
    /// It became a candidate, under a new ballot.
    pub(crate) candidacy: bool,
}

/// A replica, its disk, and its past. Nodes are equal when nothing that may yet happen can tell them apart.
#[derive(Clone)]
pub(crate) struct Node {
    pub(crate) replica: Replica,
    pub(crate) facts: Facts,
    queue: DurableQueue,
    appended: PersistId,
    durable: PersistId,
    /// For each of the volatile records, up to which number it stands.
    upto: VecDeque<PersistId>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Facts {
    pub(crate) me: ReplicaId,
    pub(crate) disk: Disk,
    /// The time: all clocks are equal.
    pub(crate) now: Instant,
    /// To whom it granted a lease in this life or an earlier one, until when.
    granted: Option<(ReplicaId, Instant)>,
    /// The highest ballot that gave its lease back, as far as is known here: it holds none again.
    released: Ballot,
    /// What is durable, each record once: see [`Turn::persist`].
    pub(crate) log: Vec<Record>,
    /// What is not, in order.
    pub(crate) volatile: VecDeque<Record>,
    /// What the queue holds, and for which of the volatile records: the queue itself does not show it.
    held: Vec<(usize, ReplicaId, Message)>,
    /// The value of each slot that is applied in this life.
    pub(crate) applied: Vec<Batch>,
    tickets: BTreeSet<Ticket>,
    /// In any life: what was applied,
    pub(crate) ever_applied: Vec<Batch>,
    /// what others were asked to accept,
    proposed: BTreeMap<(Ballot, Slot), Batch>,
    /// what clients submitted here,
    pub(crate) submitted: BTreeSet<(Ballot, usize)>,
    /// and the highest promise that left.
    promised: Ballot,
    pub(crate) breach: Option<Breach>,
}

impl Facts {
    pub(crate) fn has_proposed(&self) -> bool {
        !self.proposed.is_empty()
    }

    /// A ballot gives its lease back; it names whose it is.
    fn release(&mut self, ballot: Ballot) {
        self.granted = self.granted.filter(|(holder, _)| *holder != ballot.replica);
        self.released = self.released.max(ballot);
    }
}

impl PartialEq for Node {
    fn eq(&self, other: &Self) -> bool {
        self.facts == other.facts && self.replica == other.replica
    }
}

impl Eq for Node {}

impl Hash for Node {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        self.facts.hash(hasher);
        self.replica.hash(hasher);
    }
}

impl Node {
    /// A replica that has never run: its log has its first hard state.
    pub(crate) fn new(me: ReplicaId, disk: Disk, scope: &Scope) -> Node {
        let log = vec![Record::HardState(HardState {
            promised: Ballot::NONE,
            incarnation: INCARNATION,
            vector: CrashVector::default(),
            configurations: Configurations::first(configuration(scope)),
            cut: Slot::NONE,
        })];
        let facts = Facts {
            me,
            disk,
            now: Instant(0),
            granted: None,
            released: Ballot::NONE,
            log,
            volatile: VecDeque::new(),
            held: Vec::new(),
            applied: Vec::new(),
            tickets: BTreeSet::new(),
            ever_applied: Vec::new(),
            proposed: BTreeMap::new(),
            submitted: BTreeSet::new(),
            promised: Ballot::NONE,
            breach: None,
        };
        let mut node = Node::start(facts, None, scope).expect("a log that has begun can be read");
        // It has waited as long as a start has to.
        node.facts.now = node.facts.now.after(lease(scope));
        node.wake(scope);
        node
    }

    /// Starts from the records of `facts`.
    fn start(facts: Facts, planted: Option<Planted>, scope: &Scope) -> Option<Node> {
        let (incarnation, mut recovered) = recover(&facts.log)?;
        match planted {
            Some(Planted::P2ForgottenPromise) => {
                let accepted = recovered.accepted.values().map(|(ballot, _)| *ballot).max();
                recovered.promised = accepted.unwrap_or(Ballot::NONE);
            }
            Some(Planted::P11LostLogVotes) => (_, recovered) = recover(&facts.log[..1])?,
            _ => {}
        }
        let mut settings = Settings::new(facts.me, incarnation, 0);
        settings.window = scope.slots;
        settings.heartbeat = Duration::ZERO;
        settings.election_timeout = Duration::ZERO;
        // Not even slots in their number are a reason for a higher ballot.
        settings.boost_slots_min = u64::MAX;
        let mut replica = Replica::new(settings, &recovered, facts.now);
        // Nobody knows more of its log than it has (P13): roll-backs are the simulator's.
        for from in (1..=REPLICAS as u16).map(ReplicaId).filter(|id| *id != facts.me) {
            let (durable, known) = (LogPosition::default(), replica.position());
            let message = Message::Position { durable, known, asks: false };
            replica.step(facts.now, Event::Received { from, message }, &mut Effects::new());
        }
        let upto = VecDeque::new();
        let (appended, durable) = (PersistId(0), PersistId(0));
        let mut node = Node { replica, facts, queue: DurableQueue::default(), appended, durable, upto };
        node.wake(scope);
        Some(node)
    }

    /// A replica that has just started votes as soon as no lease can be left that it granted. The probe that comes with the
    /// same tick is given up: see `Turn::carry_out`.
    fn wake(&mut self, scope: &Scope) {
        if !scope.probes && self.replica.voting_status() == VotingStatus::Waiting {
            (0..2).for_each(|_| self.replica.step(self.facts.now, Event::Ticked, &mut Effects::new()));
            assert!(matches!(self.replica.role(), Role::Following(_)), "nobody has answered");
        }
        self.replica = self.replica.clone().essence();
    }

    pub(crate) fn holds_lease(&self) -> bool {
        self.replica.holds_lease(self.facts.now)
    }

    /// Whether a message can have no effect here any more, whatever happens; or what it asks was answered, and a scope
    /// without duplication ends there.
    pub(crate) fn is_dead(&self, message: &Message, scope: &Scope) -> bool {
        let promised = self.replica.promised();
        match message {
            Message::Promise { ballot, .. } => {
                // A master with a lease may ask for promises, too.
                let has_lead = scope.moments == 1 || self.replica.role() != Role::Coordinating;
                promised != *ballot || self.replica.role() != Role::Campaigning && has_lead
            }
            Message::Acknowledge { ballot, slot, .. } => {
                promised != *ballot || self.replica.role() != Role::Coordinating || *slot <= self.replica.chosen()
            }
            Message::Reject { promised } => *promised <= promised_in(&self.facts.log),
            Message::Entries { first, batches, chosen } => {
                let upto = first.0 + batches.len() as u64 - 1;
                let known = upto.max(chosen.0) <= self.replica.chosen().0;
                self.facts.disk == Disk::AtOnce && known && !self.replica.is_fetching()
            }
            Message::Propose { ballot, .. } => !scope.duplication && promised_in(&self.facts.log) == *ballot,
            Message::Accept { ballot, slot, .. } => !scope.duplication && accepted_in(&self.facts.log, *slot, *ballot),
            Message::Commit { ballot, chosen, .. } => {
                let known = promised == *ballot && *chosen <= self.replica.chosen();
                !scope.duplication && known && self.facts.disk == Disk::AtOnce
            }
            // Without a lease there is nothing to give back.
            Message::Release { .. } => scope.moments == 1,
            _ => false,
        }
    }

    /// What comes of `input`. `None`: it cannot happen here, or leads beyond the scope.
    pub(crate) fn take(&self, input: Input<'_>, scope: &Scope, planted: Option<Planted>) -> Option<Outcome> {
        let mut turn =
            Turn { node: self.clone(), sends: Vec::new(), inbox: VecDeque::new(), beyond: false, scope, planted };
        Planted::plant(planted);
        let promised = self.replica.promised();
        let sound = catch_unwind(AssertUnwindSafe(|| turn.take(input)));
        if sound.is_err() {
            // (Where a panic ends the process, the panic hook tells the story.)
            turn.breach(Breach::Assertion);
        }
        let Turn { mut node, sends, beyond, .. } = turn;
        node.replica = node.replica.essence();
        let now = node.replica.promised();
        let candidacy = now > promised && now.replica == node.facts.me;
        (!beyond).then_some(Outcome { node, sends, candidacy })
    }
}

/// What a log says.
fn recover(log: &[Record]) -> Option<(Incarnation, Recovered)> {
    let mut recovery = Recovery::new(None);
    log.iter().try_for_each(|record| recovery.take(record.clone(), |_, _| {})).ok()?;
    recovery.finish()
}

fn lease(scope: &Scope) -> Duration {
    if scope.moments > 1 { MOMENT } else { Duration::ZERO }
}

fn configuration(scope: &Scope) -> Configuration {
    let members = (1..=REPLICAS as u16).map(ReplicaId);
    Configuration::of_voters(members, scope.slots, lease(scope)).expect("a sound configuration")
}

/// A value that a client submits: named after the ballot under which it is proposed first, and which one it is of those.
pub(crate) fn value(ballot: Ballot, number: usize) -> Batch {
    let mut builder = BatchBuilder::default();
    builder.push(format!("{ballot}#{number}").as_bytes());
    builder.take()
}

/// The work of one input.
struct Turn<'a> {
    node: Node,
    sends: Vec<(ReplicaId, Message)>,
    /// Messages that come in the same turn: the replica's to itself, and answers to its probes.
    inbox: VecDeque<(ReplicaId, Message)>,
    /// It went beyond the scope.
    beyond: bool,
    scope: &'a Scope,
    planted: Option<Planted>,
}

impl Turn<'_> {
    fn take(&mut self, input: Input<'_>) {
        match input {
            Input::Tick => self.step(Event::Ticked),
            Input::Pass => {
                self.node.facts.now = self.node.facts.now.after(MOMENT);
                self.node.wake(self.scope);
            }
            Input::Message(from, message) => {
                if let Message::Release { ballot } | Message::Propose { released: ballot, .. } = message
                    && self.scope.moments > 1
                {
                    self.node.facts.release(*ballot);
                }
                self.step(Event::Received { from, message: message.clone() });
            }
            Input::Flush if self.node.facts.volatile.is_empty() => self.beyond = true,
            Input::Flush => self.flush(),
            Input::Submit if !self.node.replica.can_submit() => self.beyond = true,
            Input::Submit => self.submit(),
            Input::Crash => self.crash(),
        }
        if self.node.facts.disk == Disk::AtOnce {
            while !self.node.facts.volatile.is_empty() {
                self.flush();
            }
        }
        while self.node.facts.volatile.is_empty() && self.node.durable < self.node.appended {
            // Only copies of what is durable anyway.
            self.persisted(self.node.appended);
        }
    }

    fn breach(&mut self, breach: Breach) {
        self.node.facts.breach.get_or_insert(breach);
    }

    fn submit(&mut self) {
        let ballot = self.node.replica.promised();
        let facts = &mut self.node.facts;
        let number = 1 + facts.submitted.iter().filter(|(under, _)| *under == ballot).count();
        facts.submitted.insert((ballot, number));
        let ticket = Ticket(ballot.round * 100 + number as u64);
        facts.tickets.insert(ticket);
        self.step(Event::Submitted { ticket, batch: value(ballot, number) });
    }

    fn crash(&mut self) {
        let mut facts = self.node.facts.clone();
        facts.volatile.clear();
        facts.held.clear();
        facts.tickets.clear();
        // It crashes once: from now on see `Disk`.
        facts.disk = Disk::AtOnce;
        let Some(mut node) = Node::start(facts, self.planted, self.scope) else {
            return self.breach(Breach::NoRecovery);
        };
        node.facts.applied = (1..=node.replica.chosen().0)
            .map(|slot| last_at(&node.facts.log, Slot(slot)).expect("recovery applied it").clone())
            .collect();
        self.node = node;
        if self.node.replica.promised() < self.node.facts.promised {
            self.breach(Breach::PromiseBroken);
        }
        if self.node.facts.applied.iter().zip(&self.node.facts.ever_applied).any(|(now, before)| now != before) {
            self.breach(Breach::AppliedOtherwise);
        }
    }

    fn flush(&mut self) {
        let facts = &mut self.node.facts;
        let record = facts.volatile.pop_front().expect("there is one");
        facts.log.push(record);
        facts.held.retain_mut(|(place, ..)| {
            let stays = *place > 0;
            *place -= usize::from(stays);
            stays
        });
        let upto = self.node.upto.pop_front().expect("each record has its number");
        self.persisted(upto);
    }

    fn persisted(&mut self, upto: PersistId) {
        self.node.durable = upto;
        self.step(Event::Persisted { upto, frame: 0 });
        while let Some((to, message)) = self.node.queue.release(upto) {
            self.leave(to, message);
        }
        self.drain_inbox();
    }

    fn step(&mut self, event: Event) {
        self.step_alone(event);
        self.drain_inbox();
    }

    fn drain_inbox(&mut self) {
        while let Some((from, message)) = self.inbox.pop_front() {
            self.step_alone(Event::Received { from, message });
        }
    }

    fn step_alone(&mut self, event: Event) {
        let mut effects = Effects::new();
        self.node.replica.step(self.node.facts.now, event, &mut effects);
        for effect in effects {
            self.watch_grants(&effect);
            self.carry_out(effect);
        }
    }

    /// Accepting grants; promising must wait until what was granted is over, or given back (P8).
    fn watch_grants(&mut self, effect: &Effect) {
        if self.scope.moments == 1 {
            return;
        }
        let facts = &mut self.node.facts;
        match effect {
            Effect::Persist { record: Record::Accepted { ballot, .. }, .. }
                if (*ballot > facts.released || ballot.replica != facts.released.replica) =>
            {
                facts.granted = Some((ballot.replica, facts.now.after(MOMENT)));
            }
            Effect::Send { message: Message::Release { ballot }, .. } => facts.release(*ballot),
            Effect::SendOnceDurable { to, message: Message::Promise { .. }, .. }
                if facts.granted.is_some_and(|(holder, until)| holder != *to && facts.now < until) =>
            {
                self.breach(Breach::PromisedAgainstGrant);
            }
            _ => {}
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist { id, record } => self.persist(id, record),
            Effect::Send { to, message: Message::Probe { .. } } if !self.scope.probes => {
                // What each replica answers to who asks in the beginning, and that answer may come at any time. (Before
                // whatever the turn itself still has to say: a tick says nothing.)
                let answer = Message::ProbeAnswer { would: true, round: 0, chosen: Slot::NONE };
                self.inbox.push_back((to, answer));
            }
            Effect::Send { to, message } => self.leave(to, message),
            Effect::SendOnceDurable { to, message, .. } if self.planted == Some(Planted::P15ToldBeforeDurable) => {
                self.leave(to, message);
            }
            // (Only under a planted bug.)
            Effect::SendOnceDurable { to, message, upto } if upto <= self.node.durable => self.leave(to, message),
            Effect::SendOnceDurable { to, message, upto } => self.hold(to, message, upto),
            Effect::SendEntries { to, from, chosen } => {
                let batches: Vec<Batch> = (from.0..=chosen.0)
                    .map_while(|slot| self.node.facts.applied.get(usize::try_from(slot - 1).ok()?).cloned())
                    .collect();
                if !batches.is_empty() {
                    self.leave(to, Message::Entries { first: from, batches, chosen });
                }
            }
            Effect::Apply { slot, batch, ticket } => {
                ticket.into_iter().for_each(|ticket| self.end(ticket));
                self.apply(slot, batch);
            }
            Effect::Refuse { ticket } | Effect::Abandon { ticket } => self.end(ticket),
            Effect::Index { .. } => unreachable!("nobody reads"),
            Effect::Reconfigured { .. } => unreachable!("nobody asks for other members"),
        }
    }

    /// A record that the log has, or is about to have, is not kept again: no record between the two could have changed
    /// what it says, or it would not have been asked for again. It is durable when all before it is.
    fn persist(&mut self, id: PersistId, record: Record) {
        if let Record::Accepted { slot, .. } | Record::Chosen { slot, .. } = &record
            && slot.0 > self.scope.slots
        {
            self.beyond = true;
        }
        self.node.appended = id;
        let facts = &mut self.node.facts;
        if facts.log.contains(&record) || facts.volatile.contains(&record) {
            if let Some(last) = self.node.upto.back_mut() {
                *last = id;
            }
        } else {
            facts.volatile.push_back(record);
            self.node.upto.push_back(id);
        }
    }

    fn hold(&mut self, to: ReplicaId, message: Message, upto: PersistId) {
        if let Some(place) = self.node.upto.iter().position(|last| upto <= *last) {
            let held = (place, to, message.clone());
            if !self.node.facts.held.contains(&held) {
                self.node.facts.held.push(held);
            }
        }
        self.node.queue.hold(upto, to, message);
    }

    fn apply(&mut self, slot: Slot, batch: Batch) {
        let facts = &mut self.node.facts;
        let place = facts.applied.len();
        let in_order = slot.0 == place as u64 + 1;
        let as_ever = facts.ever_applied.get(place).is_none_or(|before| *before == batch);
        let kept = last_at(&facts.volatile, slot).or_else(|| last_at(&facts.log, slot)) == Some(&batch);
        if facts.ever_applied.len() == place {
            facts.ever_applied.push(batch.clone());
        }
        facts.applied.push(batch);
        if !in_order || !as_ever {
            self.breach(Breach::AppliedOtherwise);
        }
        if !kept {
            self.breach(Breach::LogWithoutChosen);
        }
    }

    fn end(&mut self, ticket: Ticket) {
        if !self.node.facts.tickets.remove(&ticket) {
            self.breach(Breach::TicketEndedTwice);
        }
    }

    /// A message leaves: what it claims must be on the disk.
    fn leave(&mut self, to: ReplicaId, mut message: Message) {
        match &mut message {
            Message::Promise { ballot, chosen, accepted, .. } => {
                let promised = promised_in(&self.node.facts.log) >= *ballot;
                let has = |slot, ballot| accepted_in(&self.node.facts.log, slot, ballot);
                let reported = accepted.iter().all(|reported| has(reported.slot, reported.ballot));
                if !promised || !reported {
                    self.breach(Breach::ToldBeforeDurable);
                }
                self.node.facts.promised = self.node.facts.promised.max(*ballot);
                if self.planted == Some(Planted::P3ChosenNotTold) {
                    *chosen = Slot::NONE;
                }
            }
            Message::Acknowledge { ballot, slot, .. } => {
                if *ballot < self.node.facts.promised {
                    self.breach(Breach::PromiseBroken);
                }
                if !accepted_in(&self.node.facts.log, *slot, *ballot) {
                    self.breach(Breach::ToldBeforeDurable);
                }
            }
            Message::Accept { ballot, slot, batch, .. } => {
                let first = self.node.facts.proposed.entry((*ballot, *slot)).or_insert_with(|| batch.clone());
                if first != batch {
                    self.breach(Breach::TwoValuesUnderOneBallot);
                }
            }
            // For operators: it says who acknowledged lately.
            Message::Commit { tolerance, .. } => *tolerance = 0,
            _ => {}
        }
        if to == self.node.facts.me {
            self.inbox.push_back((to, message));
        } else {
            self.sends.push((to, message));
        }
    }
}

/// The value in the last record of a slot.
fn last_at<'a>(
    records: impl IntoIterator<Item = &'a Record, IntoIter: DoubleEndedIterator>,
    slot: Slot,
) -> Option<&'a Batch> {
    records.into_iter().rev().find_map(|record| match record {
        Record::Accepted { slot: at, batch, .. } | Record::Chosen { slot: at, batch } if *at == slot => Some(batch),
        _ => None,
    })
}

fn promised_in(log: &[Record]) -> Ballot {
    let promise = |record: &Record| match record {
        Record::HardState(state) => state.promised,
        _ => Ballot::NONE,
    };
    log.iter().map(promise).max().unwrap_or(Ballot::NONE)
}

fn accepted_in(log: &[Record], slot: Slot, ballot: Ballot) -> bool {
    log.iter().any(
        |record| matches!(record, Record::Accepted { slot: at, ballot: under, .. } if (*at, *under) == (slot, ballot)),
    )
}
