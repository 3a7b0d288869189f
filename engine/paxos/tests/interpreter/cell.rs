//! A cell on one thread: replicas, their disks, and the network between them. Nothing moves unless it is told to.
//!
//! A record is volatile until its disk is flushed, and a crash loses it. What is flushed comes back as a replica's own
//! recovery brings it back. What must hold whatever happens is checked all
//! along: a slot has one value everywhere, a ballot proposes one value at a slot, a ticket ends exactly once, no two
//! replicas hold a lease at once, and whoever may answer reads has applied all that was acknowledged.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use synod_paxos::durable::DurableQueue;
use synod_paxos::{
    AcceptedSlot, Ballot, Batch, Change, Configuration, Configurations, CrashVector, Effect, Effects, Event, HardState,
    Incarnation, Instant, LogPosition, Member, Message, PersistId, Record, Recovered, Recovery, Replica, ReplicaId,
    Role, Settings, Slot, SnapshotHandle, Ticket, VotingStatus,
};

use super::words;

/// What a script says of the cell when it makes it.
pub(crate) struct Shape {
    pub(crate) replicas: u16,
    pub(crate) learners: Vec<ReplicaId>,
    pub(crate) horizon: u64,
    pub(crate) window: u64,
    pub(crate) backlog_bytes_max: u64,
    /// None (zero) unless a script is about leases: then time matters to nothing else.
    pub(crate) lease: Duration,
    pub(crate) heartbeat: Option<Duration>,
    pub(crate) election_timeout: Option<Duration>,
    pub(crate) boost_slots_min: Option<u64>,
    pub(crate) boost_time_min: Option<Duration>,
    /// Logs have frames, one a record: replicas know how far the others' go (P13), and ask after a start.
    pub(crate) frames: bool,
}

impl Shape {
    fn configuration(&self) -> Result<Configuration, String> {
        let voters = (1..=self.replicas).map(|id| (ReplicaId(id), true));
        let all = voters.chain(self.learners.iter().map(|id| (*id, false)));
        let members = all.map(|(id, voter)| Member { id, voter, address: String::new() });
        Configuration::new(members.collect(), self.horizon, self.lease).map_err(|error| error.to_string())
    }

    fn settings(&self, id: ReplicaId) -> Settings {
        let mut settings = Settings::new(id, Incarnation(1), u64::from(id.0));
        settings.window = self.window;
        settings.backlog_bytes_max = self.backlog_bytes_max;
        settings.heartbeat = self.heartbeat.unwrap_or(settings.heartbeat);
        settings.election_timeout = self.election_timeout.unwrap_or(settings.election_timeout);
        settings.boost_slots_min = self.boost_slots_min.unwrap_or(settings.boost_slots_min);
        settings.boost_time_min = self.boost_time_min.unwrap_or(settings.boost_time_min);
        settings
    }
}

/// A message on its way.
#[derive(Clone)]
pub(crate) struct InFlight {
    pub(crate) from: ReplicaId,
    pub(crate) to: ReplicaId,
    pub(crate) message: Message,
}

/// Something to tell.
pub(crate) enum Line {
    Send {
        from: ReplicaId,
        to: Vec<ReplicaId>,
        what: String,
    },
    Persist {
        who: ReplicaId,
        what: String,
    },
    /// What a story is made of: leads, applies, gives up. The aside is left out of stories.
    Deed {
        who: ReplicaId,
        what: String,
        aside: String,
    },
    /// How the interpreter's own doing went.
    Note {
        what: String,
    },
}

/// One replica's machine.
struct Node {
    settings: Settings,
    clock: Clock,
    /// All records, the volatile ones last.
    log: Vec<Record>,
    /// How many of them are durable.
    durable: usize,
    /// What it has kept of its state, or been given, in order.
    snapshots: Vec<SnapshotHandle>,
    /// Records of slots up to here are gone from the log.
    cut: Slot,
    flushes_at_once: bool,
    /// The life with which its log begins.
    begins_as: Incarnation,
    /// An older copy of the disk.
    copy: Option<(Vec<Record>, Vec<SnapshotHandle>, Slot)>,
    running: Option<Running>,
}

/// A replica's own clock, which may run a little faster or slower than the cell's.
#[derive(Clone, Copy)]
struct Clock {
    since: Instant,
    showed: Instant,
    percent: u64,
}

impl Clock {
    const RIGHT: Clock = Clock { since: Instant(0), showed: Instant(0), percent: 100 };

    fn shows(self, now: Instant) -> Instant {
        Instant(self.showed.0 + (now.0 - self.since.0) * self.percent / 100)
    }

    /// The first moment at which it shows this.
    fn when(self, shows: Instant) -> Instant {
        Instant(self.since.0 + (shows.0.saturating_sub(self.showed.0) * 100).div_ceil(self.percent))
    }
}

/// The process on it.
struct Running {
    replica: Replica,
    /// It is told the time when its wait after the start is over, as the node would: nothing else moves by itself.
    waits_until: Instant,
    /// The ballot it last said it leads with.
    leads_with: Ballot,
    waiting: DurableQueue,
    inbox: VecDeque<Message>,
    /// Records of earlier starts: the protocol numbers its own from 1.
    log_before: usize,
    /// What was applied since the start: catch-up is answered from memory as far as it reaches.
    applied: BTreeMap<Slot, Batch>,
}

struct Asked {
    at: ReplicaId,
    batch: Batch,
    slot: Option<Slot>,
    ends: u32,
}

/// How often each row of the machines' tables was taken, in their order.
pub(crate) type Taken = Vec<u64>;

/// The cell.
pub(crate) struct Cell {
    now: Instant,
    shape: Shape,
    nodes: BTreeMap<ReplicaId, Node>,
    isolated: BTreeSet<ReplicaId>,
    /// Links that lose everything, both ways.
    cut: BTreeSet<(ReplicaId, ReplicaId)>,
    /// All up to here has been acknowledged to somebody.
    acknowledged: Slot,
    /// What had been when each last asked for a read index.
    index_wanted: BTreeMap<ReplicaId, Slot>,
    /// By replicas that run no more.
    taken: Taken,
    tickets: BTreeMap<Ticket, Asked>,
    /// Promises delivered to the candidate of this ballot.
    promises: BTreeMap<Ballot, BTreeMap<ReplicaId, Vec<AcceptedSlot>>>,
    applied: BTreeMap<Slot, (ReplicaId, Batch)>,
    proposed: BTreeMap<(Ballot, Slot), Batch>,
    broken: Vec<String>,
    pub(crate) network: VecDeque<InFlight>,
    pub(crate) held: VecDeque<InFlight>,
    pub(crate) lines: Vec<Line>,
}

/// One message of entries carries this many batches.
const ENTRIES_MAX: usize = 8;

impl Cell {
    pub(crate) fn new(shape: Shape) -> Result<Self, String> {
        let configuration = shape.configuration()?;
        let mut cell = Self {
            now: Instant(0),
            shape,
            nodes: BTreeMap::new(),
            isolated: BTreeSet::new(),
            cut: BTreeSet::new(),
            acknowledged: Slot::NONE,
            index_wanted: BTreeMap::new(),
            taken: Vec::new(),
            tickets: BTreeMap::new(),
            promises: BTreeMap::new(),
            applied: BTreeMap::new(),
            proposed: BTreeMap::new(),
            broken: Vec::new(),
            network: VecDeque::new(),
            held: VecDeque::new(),
            lines: Vec::new(),
        };
        for member in configuration.members() {
            cell.start(member.id)?;
        }
        Ok(cell)
    }

    /// A machine that is new: its replica starts with the cell's first configuration and an empty log.
    pub(crate) fn start(&mut self, id: ReplicaId) -> Result<(), String> {
        if self.nodes.contains_key(&id) {
            return Err(format!("there is a replica {id} already"));
        }
        let settings = self.shape.settings(id);
        let node = Node {
            settings,
            clock: Clock::RIGHT,
            log: Vec::new(),
            durable: 0,
            snapshots: Vec::new(),
            cut: Slot::NONE,
            flushes_at_once: true,
            begins_as: Incarnation::FIRST,
            copy: None,
            running: None,
        };
        self.nodes.insert(id, node);
        self.run(id, &Recovered::nothing(self.shape.configuration()?))?;
        if self.shape.frames {
            self.know_nothing_of(id)?;
            self.event(id, Event::Ticked)?;
        }
        Ok(())
    }

    /// All the others say that they know of nothing that is not in this replica's log, as in the beginning nobody does.
    fn know_nothing_of(&mut self, id: ReplicaId) -> Result<(), String> {
        let (durable, known) = (LogPosition::default(), self.replica(id)?.position());
        for member in self.shape.configuration()?.members() {
            if member.id != id {
                let message = Message::Position { durable, known, asks: false };
                self.step(id, Event::Received { from: member.id, message });
            }
        }
        Ok(())
    }

    fn run(&mut self, id: ReplicaId, recovered: &Recovered) -> Result<(), String> {
        let lease = self.shape.lease;
        let now = self.now;
        let node = self.node(id);
        let clock = node.clock;
        let waits_until = clock.when(clock.shows(now).after(lease));
        node.running = Some(Running {
            replica: Replica::new(node.settings.clone(), recovered, clock.shows(now)),
            waits_until,
            leads_with: Ballot::NONE,
            waiting: DurableQueue::default(),
            inbox: VecDeque::new(),
            log_before: node.log.len(),
            applied: BTreeMap::new(),
        });
        if !self.shape.frames {
            self.know_nothing_of(id)?;
        }
        if lease.is_zero() { self.event(id, Event::Ticked) } else { Ok(()) }
    }

    pub(crate) fn ids(&self) -> Vec<ReplicaId> {
        self.nodes.keys().copied().collect()
    }

    pub(crate) fn replica(&self, id: ReplicaId) -> Result<&Replica, String> {
        let node = self.nodes.get(&id).ok_or_else(|| format!("there is no replica {id}"))?;
        node.running.as_ref().map(|running| &running.replica).ok_or_else(|| format!("replica {id} is down"))
    }

    fn node(&mut self, id: ReplicaId) -> &mut Node {
        self.nodes.get_mut(&id).expect("only what was started is asked for")
    }

    // Time.

    pub(crate) fn pass(&mut self, time: Duration) {
        self.move_to(self.now.after(time));
    }

    /// Time passes. Whose wait after the start ends meanwhile is told so.
    fn move_to(&mut self, then: Instant) {
        let until = |node: &Node| node.running.as_ref().map(|running| running.waits_until);
        let now = self.now;
        let mut waiting: Vec<_> = self.nodes.iter().filter_map(|(id, node)| Some((until(node)?, *id))).collect();
        waiting.retain(|(until, _)| now < *until && *until <= then);
        waiting.sort_unstable();
        for (until, id) in waiting {
            self.now = until;
            self.event(id, Event::Ticked).expect("it runs");
        }
        self.now = then;
    }

    pub(crate) fn run_clock(&mut self, id: ReplicaId, percent: u64) -> Result<(), String> {
        let now = self.now;
        let node = self.nodes.get_mut(&id).ok_or_else(|| format!("there is no replica {id}"))?;
        node.clock = Clock { since: now, showed: node.clock.shows(now), percent };
        Ok(())
    }

    /// What a replica's clock shows.
    fn clock(&self, id: ReplicaId) -> Instant {
        self.nodes[&id].clock.shows(self.now)
    }

    /// Ticks a replica, at its deadline if that is still to come.
    pub(crate) fn tick_when_due(&mut self, id: ReplicaId) -> Result<(), String> {
        let due = self.replica(id)?.deadline();
        self.move_to(self.now.max(self.nodes[&id].clock.when(due)));
        self.event(id, Event::Ticked)
    }

    // Events.

    /// One thing happens to a replica, and, unless the script runs its disk, the disk keeps up.
    pub(crate) fn event(&mut self, id: ReplicaId, event: Event) -> Result<(), String> {
        self.replica(id)?;
        self.step(id, event);
        self.keep_up(id)
    }

    pub(crate) fn snapshot(&mut self, id: ReplicaId) -> Result<(), String> {
        let handle = self.replica(id)?.snapshot_handle();
        self.note(format!("{id}: keeps a snapshot of slot {}", handle.slot));
        self.node(id).snapshots.push(handle);
        Ok(())
    }

    pub(crate) fn trim(&mut self, id: ReplicaId) -> Result<(), String> {
        let [.., older, _] = &self.node(id).snapshots[..] else { return Err("there are no two snapshots".to_owned()) };
        let upto = older.slot;
        self.event(id, Event::Cut { upto })?;
        let node = self.node(id);
        if node.durable < node.log.len() {
            return Err("the hard state that says so is not durable".to_owned());
        }
        node.cut = upto;
        self.note(format!("{id}: the log is gone up to slot {upto}"));
        Ok(())
    }

    pub(crate) fn install(&mut self, id: ReplicaId, from: ReplicaId) -> Result<(), String> {
        let handle = self.node(from).snapshots.last().cloned().ok_or("it has no snapshot")?;
        let slot = handle.slot;
        if !self.replica(id)?.can_install(slot) {
            self.note(format!("{id}: has no use for a snapshot of slot {slot}"));
            return Ok(());
        }
        self.note(format!("{id}: is given {from}'s snapshot of slot {slot}"));
        let node = self.node(id);
        node.snapshots.push(handle.clone());
        node.cut = slot;
        self.event(id, Event::Installed { handle })
    }

    pub(crate) fn submit(&mut self, id: ReplicaId, batch: Batch) -> Result<(), String> {
        let replica = self.replica(id)?;
        if replica.role() == Role::Coordinating && !replica.can_submit() {
            let why = if replica.is_full() { "is refused, the log is full" } else { "waits" };
            self.note(format!("{id}: {batch:?} {why}"));
            return Ok(());
        }
        let ticket = Ticket(self.tickets.len() as u64 + 1);
        self.tickets.insert(ticket, Asked { at: id, batch: batch.clone(), slot: None, ends: 0 });
        self.event(id, Event::Submitted { ticket, batch })
    }

    fn step(&mut self, id: ReplicaId, event: Event) {
        let now = self.clock(id);
        let running = self.node(id).running.as_mut().expect("only what runs is stepped");
        let (role, promised, chases) = running.looks();
        let status = running.replica.voting_status();
        let is_told = matches!(event, Event::Ticked);
        let ticket = if let Event::Submitted { ticket, .. } = event { Some(ticket) } else { None };
        let promise = matches!(event, Event::Received { message: Message::Promise { .. }, .. });
        let mut effects = Effects::new();
        running.replica.step(now, event, &mut effects);
        let (role_now, promised_now, chases_now) = running.looks();
        match (role, role_now) {
            (Role::Following(_), Role::Campaigning) => self.deed(id, format!("campaigns with {promised_now}")),
            (Role::Campaigning, Role::Campaigning) if promised_now > promised => {
                self.deed(id, format!("campaigns with {promised_now}"));
            }
            (Role::Campaigning, Role::Campaigning) if chases_now > chases => {
                let by = self.promised_by(promised_now);
                self.deed(id, format!("promised {promised_now} by {by}, catches up first"));
            }
            (Role::Campaigning, Role::Coordinating) => self.tell_of_leading(id, "leads", promised_now, &effects),
            (Role::Coordinating, Role::Coordinating) if promised_now > promised => {
                self.deed(id, format!("takes a higher ballot, {promised_now}"));
            }
            (Role::Coordinating, Role::Coordinating) if promise && self.leads_anew(id, promised_now, &effects) => {
                self.tell_of_leading(id, "leads on with", promised_now, &effects);
            }
            _ => {}
        }
        let status_now = self.replica(id).expect("it runs").voting_status();
        if status_now != status && !(is_told && self.shape.lease.is_zero()) {
            self.deed(id, words::status(status_now).to_owned());
        }
        // An end is told where it comes: before what it leaves open, after what was still done.
        let mut end = match (role, role_now) {
            (Role::Campaigning | Role::Coordinating, Role::Following(Some(other))) => Some(format!("follows {other}")),
            (Role::Campaigning | Role::Coordinating, Role::Following(None)) => Some("gives up".to_owned()),
            _ => None,
        };
        for effect in effects {
            if let Some(end) = end.take_if(|_| matches!(effect, Effect::Abandon { .. })) {
                self.deed(id, end);
            }
            self.carry_out(id, effect, ticket);
        }
        if let Some(end) = end {
            self.deed(id, end);
        }
        self.check();
        self.drain_inbox(id);
    }

    fn leads_anew(&self, id: ReplicaId, promised: Ballot, effects: &Effects) -> bool {
        let leads_with = self.nodes[&id].running.as_ref().expect("it runs").leads_with;
        let is_new = |effect: &Effect| matches!(effect, Effect::Send { message: Message::Commit { ballot, .. }, .. } if *ballot == promised);
        promised != leads_with && effects.iter().any(is_new)
    }

    /// What must hold at every moment, of leases and of reads.
    fn check(&mut self) {
        let holders = self.holders();
        if holders.len() > 1 {
            self.broken.push(format!("two leases at once: {} hold one", words::replicas(holders)));
        }
        for (id, node) in &self.nodes {
            let Some(running) = &node.running else { continue };
            let chosen = running.replica.chosen();
            if running.replica.may_read(node.clock.shows(self.now)) && chosen < self.acknowledged {
                let acknowledged = self.acknowledged;
                self.broken.push(format!("{id} may read at {chosen}, and {acknowledged} has been acknowledged"));
            }
        }
    }

    /// Reads come that need a read index.
    pub(crate) fn want_index(&mut self, id: ReplicaId) -> Result<(), String> {
        self.index_wanted.insert(id, self.acknowledged);
        self.event(id, Event::IndexWanted)
    }

    /// Who holds a lease right now.
    pub(crate) fn holders(&self) -> Vec<ReplicaId> {
        let holds = |(id, node): (&ReplicaId, &Node)| {
            let running = node.running.as_ref()?;
            running.replica.holds_lease(node.clock.shows(self.now)).then_some(*id)
        };
        self.nodes.iter().filter_map(holds).collect()
    }

    fn drain_inbox(&mut self, id: ReplicaId) {
        while let Some(message) = self.node(id).running.as_mut().and_then(|running| running.inbox.pop_front()) {
            self.receive(id, id, message);
        }
    }

    fn receive(&mut self, from: ReplicaId, to: ReplicaId, message: Message) {
        if let Message::Promise { ballot, accepted, .. } = &message {
            self.promises.entry(*ballot).or_default().insert(from, accepted.clone());
        }
        self.step(to, Event::Received { from, message });
    }

    fn carry_out(&mut self, id: ReplicaId, effect: Effect, submitted: Option<Ticket>) {
        match effect {
            Effect::Persist { id: number, record } => {
                let node = self.node(id);
                node.log.push(record.clone());
                let running = node.running.as_ref().expect("only what runs asks for anything");
                assert_eq!(running.log_before as u64 + number.0, node.log.len() as u64, "records are numbered densely");
                if let (Some(ticket), Record::Accepted { slot, .. }) = (submitted, &record) {
                    self.tickets.get_mut(&ticket).expect("it was submitted").slot = Some(*slot);
                }
                self.lines.push(Line::Persist { who: id, what: format!("persist {}", words::record(&record)) });
            }
            Effect::Send { to, message } => self.send(id, to, message),
            Effect::SendOnceDurable { to, message, upto } => {
                let running = self.node(id).running.as_mut().expect("only what runs asks for anything");
                running.waiting.hold(upto, to, message);
            }
            Effect::SendEntries { to, from, chosen } => {
                let batches = self.read_chosen(id, from, chosen);
                if !batches.is_empty() {
                    self.send(id, to, Message::Entries { first: from, batches, chosen });
                }
            }
            Effect::Apply { slot, batch, ticket } => {
                let aside = ticket.map_or_else(String::new, |ticket| format!(" for ticket {}", ticket.0));
                self.lines.push(Line::Deed { who: id, what: format!("applies {slot} {batch:?}"), aside });
                let running = self.node(id).running.as_mut().expect("only what runs asks for anything");
                running.applied.insert(slot, batch.clone());
                let (first, value) = self.applied.entry(slot).or_insert((id, batch.clone()));
                if *value != batch {
                    self.broken.push(format!("slot {slot} is {value:?} at {first} and {batch:?} at {id}"));
                }
                if let Some(ticket) = ticket {
                    self.acknowledged = self.acknowledged.max(slot);
                    self.end(ticket);
                }
            }
            Effect::Index { slot } => {
                let asked = self.index_wanted[&id];
                if slot < asked {
                    self.broken.push(format!("{id}'s read index is {slot}, and {asked} was acknowledged before"));
                }
                self.deed(id, format!("may answer what waits once it has applied {slot}"));
            }
            Effect::Reconfigured { configurations } => self.deed(id, words::configurations(&configurations)),
            Effect::Refuse { ticket } => {
                let batch = self.end(ticket);
                self.deed(id, format!("refuses ticket {} ({batch:?})", ticket.0));
            }
            Effect::Abandon { ticket } => {
                let batch = self.end(ticket);
                self.deed(id, format!("abandons ticket {} ({batch:?})", ticket.0));
            }
        }
    }

    fn end(&mut self, ticket: Ticket) -> Batch {
        let asked = self.tickets.get_mut(&ticket).expect("only tickets that were submitted end");
        asked.ends += 1;
        if asked.ends > 1 {
            self.broken.push(format!("ticket {} ends a second time", ticket.0));
        }
        asked.batch.clone()
    }

    /// Chosen batches as the node finds them: in memory if they are recent, else the slot's last durable record.
    fn read_chosen(&self, id: ReplicaId, from: Slot, chosen: Slot) -> Vec<Batch> {
        let node = &self.nodes[&id];
        let recent = node.running.as_ref().map(|running| &running.applied);
        let in_log = |slot: Slot| {
            node.log[..node.durable].iter().rev().filter(|_| slot > node.cut).find_map(|record| match record {
                Record::Accepted { slot: at, batch, .. } | Record::Chosen { slot: at, batch } if *at == slot => {
                    Some(batch)
                }
                Record::Accepted { .. } | Record::Chosen { .. } | Record::HardState(_) => None,
            })
        };
        (from.0..=chosen.0)
            .map(Slot)
            .map_while(|slot| recent.and_then(|recent| recent.get(&slot)).or_else(|| in_log(slot)))
            .take(ENTRIES_MAX)
            .cloned()
            .collect()
    }

    // The network.

    fn send(&mut self, from: ReplicaId, to: ReplicaId, message: Message) {
        if let Message::Accept { ballot, slot, batch, .. } = &message {
            let value = self.proposed.entry((*ballot, *slot)).or_insert_with(|| batch.clone());
            if value != batch {
                self.broken.push(format!("{ballot} proposes both {value:?} and {batch:?} at slot {slot}"));
            }
        }
        let what = words::message(&message);
        match self.lines.last_mut() {
            Some(Line::Send { from: before, to: all, what: same })
                if *before == from && *same == what && !all.contains(&to) =>
            {
                all.push(to);
            }
            _ => self.lines.push(Line::Send { from, to: vec![to], what }),
        }
        if from == to {
            self.node(to).running.as_mut().expect("only what runs sends").inbox.push_back(message);
        } else if self.reaches(from, to) {
            self.network.push_back(InFlight { from, to, message });
        }
    }

    fn reaches(&self, from: ReplicaId, to: ReplicaId) -> bool {
        let is_up = self.nodes.get(&to).is_some_and(|node| node.running.is_some());
        let is_cut = self.cut.contains(&(from.min(to), from.max(to)));
        is_up && !is_cut && !self.isolated.contains(&from) && !self.isolated.contains(&to)
    }

    /// Delivers a message that is no longer in flight.
    pub(crate) fn deliver(&mut self, in_flight: InFlight) -> Result<(), String> {
        let InFlight { from, to, message } = in_flight;
        if self.nodes[&to].running.is_none() {
            return Ok(());
        }
        if let Message::Promise { ballot, accepted, .. } = &message {
            self.promises.entry(*ballot).or_default().insert(from, accepted.clone());
        }
        self.event(to, Event::Received { from, message })
    }

    pub(crate) fn isolate(&mut self, id: ReplicaId) {
        self.isolated.insert(id);
    }

    pub(crate) fn reconnect(&mut self, id: ReplicaId) {
        self.isolated.remove(&id);
    }

    pub(crate) fn cut(&mut self, one: ReplicaId, other: ReplicaId) {
        self.cut.insert((one.min(other), one.max(other)));
    }

    pub(crate) fn join(&mut self, one: ReplicaId, other: ReplicaId) {
        self.cut.remove(&(one.min(other), one.max(other)));
    }

    // The operator.

    pub(crate) fn transfer(&mut self, id: ReplicaId, to: ReplicaId) -> Result<(), String> {
        match self.replica(id)?.check_transfer(to, self.clock(id)) {
            Ok(()) => self.event(id, Event::TransferAsked { to }),
            Err(error) => {
                self.note(format!("{id}: refused: {error}"));
                Ok(())
            }
        }
    }

    /// Asks whoever leads.
    pub(crate) fn change(&mut self, change: Change) -> Result<(), String> {
        let leads = |id: &ReplicaId| self.replica(*id).is_ok_and(|replica| replica.role() == Role::Coordinating);
        let leaders: Vec<_> = self.ids().into_iter().filter(leads).collect();
        let [id] = leaders[..] else { return Err("not exactly one leads".to_owned()) };
        self.change_at(id, change)
    }

    pub(crate) fn change_at(&mut self, id: ReplicaId, change: Change) -> Result<(), String> {
        match self.replica(id)?.check_change(&change, self.clock(id)) {
            Ok(()) => self.event(id, Event::ChangeAsked { change }),
            Err(error) => {
                self.note(format!("{id}: refused: {error}"));
                Ok(())
            }
        }
    }

    // The disks.

    pub(crate) fn run_disk(&mut self, id: ReplicaId, flushes_at_once: bool) -> Result<(), String> {
        let node = self.nodes.get_mut(&id).ok_or_else(|| format!("there is no replica {id}"))?;
        node.flushes_at_once = flushes_at_once;
        self.keep_up(id)
    }

    /// A disk that is not slow has flushed by the time anybody looks.
    fn keep_up(&mut self, id: ReplicaId) -> Result<(), String> {
        while self.nodes[&id].flushes_at_once && self.nodes[&id].durable < self.nodes[&id].log.len() {
            self.flush(id)?;
        }
        Ok(())
    }

    /// All records asked for so far become durable.
    pub(crate) fn flush(&mut self, id: ReplicaId) -> Result<(), String> {
        self.flush_some(id, usize::MAX)
    }

    /// The next few records become durable: a frame ended there.
    pub(crate) fn flush_some(&mut self, id: ReplicaId, records: usize) -> Result<(), String> {
        self.replica(id)?;
        let node = self.node(id);
        node.durable = node.log.len().min(node.durable.saturating_add(records));
        let running = node.running.as_ref().expect("it was just looked at");
        let upto = PersistId((node.durable - running.log_before) as u64);
        let frame = node.durable as u64;
        let frame = if self.shape.frames { frame } else { 0 };
        self.step(id, Event::Persisted { upto, frame });
        self.release(id);
        self.drain_inbox(id);
        Ok(())
    }

    /// What waited for records that are durable now leaves.
    fn release(&mut self, id: ReplicaId) {
        let node = self.node(id);
        let running = node.running.as_ref().expect("only what runs is stepped");
        let upto = PersistId(node.durable.saturating_sub(running.log_before) as u64);
        while let Some((to, message)) = self.node(id).running.as_mut().and_then(|r| r.waiting.release(upto)) {
            self.send(id, to, message);
        }
    }

    pub(crate) fn tell_log(&mut self, id: ReplicaId) {
        let node = &self.nodes[&id];
        let (durable, volatile) = node.log.split_at(node.durable);
        let durable = format!("{id}: durable: {}", words::records(durable));
        let volatile = format!("{id}: volatile: {}", words::records(volatile));
        self.note(durable);
        self.note(volatile);
    }

    // Crashes.

    pub(crate) fn crash(&mut self, id: ReplicaId) -> Result<(), String> {
        self.replica(id)?;
        let node = self.node(id);
        let lost = node.log.split_off(node.durable);
        let counts = node.running.take().map(|running| counts(&running.replica));
        add(&mut self.taken, &counts.unwrap_or_default());
        // Whoever asked sees a broken connection: the outcome is unknown, as it should be.
        self.tickets.values_mut().filter(|asked| asked.at == id && asked.ends == 0).for_each(|asked| asked.ends = 1);
        self.note(format!("{id}: crashes, losing {}", words::records(&lost)));
        Ok(())
    }

    pub(crate) fn restart(&mut self, id: ReplicaId) -> Result<(), String> {
        if self.replica(id).is_ok() {
            return Err(format!("replica {id} runs"));
        }
        let (first, frames) = (self.shape.configuration()?, self.shape.frames);
        let node = self.node(id);
        let (incarnation, mut recovered) = recover(node, first);
        recovered.frame = if frames { node.durable as u64 } else { 0 };
        node.settings.incarnation = incarnation;
        self.note(format!("{id}: restarts, {}", words::recovered(&recovered)));
        self.run(id, &recovered)
    }

    /// Its disk is empty, and it knows that it was not.
    pub(crate) fn wipe(&mut self, id: ReplicaId) -> Result<(), String> {
        if self.replica(id).is_ok() {
            return Err(format!("replica {id} runs"));
        }
        let node = self.node(id);
        (node.log, node.durable, node.snapshots, node.cut) = (Vec::new(), 0, Vec::new(), Slot::NONE);
        node.begins_as = Incarnation::NONE;
        Ok(())
    }

    pub(crate) fn keep_copy(&mut self, id: ReplicaId) -> Result<(), String> {
        self.replica(id)?;
        let node = self.node(id);
        node.copy = Some((node.log[..node.durable].to_vec(), node.snapshots.clone(), node.cut));
        Ok(())
    }

    pub(crate) fn put_back(&mut self, id: ReplicaId) -> Result<(), String> {
        if self.replica(id).is_ok() {
            return Err(format!("replica {id} runs"));
        }
        let node = self.node(id);
        (node.log, node.snapshots, node.cut) = node.copy.clone().ok_or("there is no copy")?;
        node.durable = node.log.len();
        Ok(())
    }

    // Telling.

    fn deed(&mut self, who: ReplicaId, what: String) {
        self.lines.push(Line::Deed { who, what, aside: String::new() });
    }

    pub(crate) fn note(&mut self, what: String) {
        self.lines.push(Line::Note { what });
    }

    pub(crate) fn tell_state(&mut self, id: ReplicaId) {
        let Ok(replica) = self.replica(id) else { return self.note(format!("{id}: down")) };
        let role = match replica.role() {
            Role::Following(None) => "follows nobody".to_owned(),
            Role::Following(Some(other)) => format!("follows {other}"),
            Role::Campaigning => "campaigns".to_owned(),
            Role::Coordinating => format!("leads, {} open", replica.open_slots()),
        };
        let status = match replica.voting_status() {
            VotingStatus::Voting => String::new(),
            status => format!(", {}", words::status(status)),
        };
        let told = format!("{id}: {role}, promised {}, chosen {}{status}", replica.promised(), replica.chosen());
        self.note(told);
    }

    pub(crate) fn tell_read(&mut self, id: ReplicaId) -> Result<(), String> {
        let replica = self.replica(id)?;
        let may = if replica.may_read(self.clock(id)) { "may" } else { "may not" };
        let told = format!("{id}: {may} read, chosen {}", replica.chosen());
        self.note(told);
        Ok(())
    }

    pub(crate) fn tell_lease(&mut self) {
        let holders = self.holders();
        let told = if holders.is_empty() { "nobody".to_owned() } else { words::replicas(holders) };
        self.note(format!("lease: {told}"));
    }

    pub(crate) fn tell_tolerance(&mut self) {
        for id in self.ids() {
            let Ok(replica) = self.replica(id) else { continue };
            let told = match replica.tolerance(self.clock(id)) {
                Some(tolerance) => format!("{id}: tolerates {tolerance}"),
                None => format!("{id}: does not know"),
            };
            self.note(told);
        }
    }

    pub(crate) fn tell_members(&mut self) {
        for id in self.ids() {
            let Ok(replica) = self.replica(id) else { continue };
            let told = format!("{id}: {}", words::configurations(replica.configurations()));
            self.note(told);
        }
    }

    /// How often each row of the machines' tables was taken here.
    pub(crate) fn taken(&self) -> Taken {
        let mut taken = self.taken.clone();
        for running in self.nodes.values().filter_map(|node| node.running.as_ref()) {
            add(&mut taken, &counts(&running.replica));
        }
        taken
    }

    fn promised_by(&self, ballot: Ballot) -> String {
        self.promises.get(&ballot).map_or_else(String::new, |promises| words::replicas(promises.keys().copied()))
    }

    /// Who promised, and what the coordinator makes of what they reported: seen from the accepts that it sends.
    fn tell_of_leading(&mut self, id: ReplicaId, leads: &str, ballot: Ballot, effects: &Effects) {
        self.node(id).running.as_mut().expect("it runs").leads_with = ballot;
        let mut what = format!("{leads} {ballot}, promised by {}", self.promised_by(ballot));
        let mut last = Slot::NONE;
        for effect in effects {
            let Effect::Send { message: Message::Accept { slot, batch, .. }, .. } = effect else { continue };
            if *slot == last {
                continue;
            }
            last = *slot;
            let reported = self.promises.get(&ballot).into_iter().flatten();
            let source = reported
                .flat_map(|(by, accepted)| accepted.iter().map(move |one| (one.ballot, *by, one)))
                .filter(|(_, _, one)| one.slot == *slot)
                .max_by_key(|(at, by, _)| (*at, std::cmp::Reverse(*by)));
            what += &match source {
                Some((at, by, _)) => format!("; slot {slot}: adopts {batch:?} (accepted at {at} by {by})"),
                None => format!("; slot {slot}: {batch:?}"),
            };
        }
        self.deed(id, what);
    }

    /// What turned out to be broken since the last time.
    pub(crate) fn take_broken(&mut self) -> Vec<String> {
        self.check();
        for (ticket, asked) in &mut self.tickets {
            let Some(slot) = asked.slot else { continue };
            let Some(running) = &self.nodes[&asked.at].running else { continue };
            if asked.ends == 0 && running.replica.chosen() >= slot && running.replica.open_slots() == 0 {
                asked.ends = 1;
                let batch = &asked.batch;
                self.broken.push(format!("ticket {} ({batch:?}) never ends: slot {slot} is applied", ticket.0));
            }
        }
        std::mem::take(&mut self.broken)
    }
}

impl Running {
    /// Its role, its promise, and how often it had its promises and had to catch up.
    fn looks(&self) -> (Role, Ballot, u64) {
        let chases = self.replica.counts().rows().find(|(row, _)| row.action == "count_and_chase");
        (self.replica.role(), self.replica.promised(), chases.map_or(0, |(_, count)| count))
    }
}

/// How often each row was taken, in the order of the tables.
fn counts(replica: &Replica) -> Taken {
    replica.counts().rows().map(|(_, count)| count).collect()
}

pub(crate) fn add(taken: &mut Taken, more: &[u64]) {
    taken.resize(taken.len().max(more.len()), 0);
    taken.iter_mut().zip(more).for_each(|(taken, more)| *taken += more);
}

/// What a log says.
fn recover(node: &Node, first: Configuration) -> (Incarnation, Recovered) {
    let (log, cut) = (&node.log, node.cut);
    let mut recovery = Recovery::new(node.snapshots.last().cloned());
    let begins = HardState {
        promised: Ballot::NONE,
        incarnation: node.begins_as,
        vector: CrashVector::default(),
        configurations: Configurations::first(first),
        cut: Slot::NONE,
    };
    let is_there = |record: &&Record| match record {
        Record::HardState(_) => true,
        Record::Accepted { slot, .. } | Record::Chosen { slot, .. } => *slot > cut,
    };
    for record in std::iter::once(Record::HardState(begins)).chain(log.iter().filter(is_there).cloned()) {
        recovery.take(record, |_, _| {}).expect("a replica's own log can be recovered");
    }
    recovery.finish().expect("it began")
}
