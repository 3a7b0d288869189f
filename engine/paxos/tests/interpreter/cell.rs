//! A cell on one thread: replicas, their disks, and the network between them. Nothing moves unless it is told to.
//!
//! A record is volatile until its disk is flushed, and a crash loses it. What is flushed comes back as the node's own
//! recovery brings it back (`Replay` in engine/node/src/start.rs). What must hold whatever happens is checked all
//! along: a slot has one value everywhere, a ballot proposes one value at a slot, a ticket ends exactly once.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use synod_paxos::durable::DurableQueue;
use synod_paxos::{
    AcceptedSlot, Ballot, Batch, Configuration, Effect, Effects, Event, Incarnation, Instant, Message, PersistId,
    Record, Recovered, Replica, ReplicaId, Role, Settings, Slot, Ticket,
};

use super::words;

/// What a script says of the cell when it makes it.
pub(crate) struct Shape {
    pub(crate) replicas: u16,
    pub(crate) horizon: u64,
    pub(crate) window: u64,
    pub(crate) backlog_bytes_max: u64,
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
    /// All records, the volatile ones last.
    log: Vec<Record>,
    /// How many of them are durable.
    durable: usize,
    flushes_at_once: bool,
    running: Option<Running>,
}

/// The process on it.
struct Running {
    replica: Replica,
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

/// The cell.
pub(crate) struct Cell {
    now: Instant,
    nodes: BTreeMap<ReplicaId, Node>,
    isolated: BTreeSet<ReplicaId>,
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
    pub(crate) fn new(shape: &Shape) -> Result<Self, String> {
        let members = (1..=shape.replicas).map(ReplicaId).collect();
        let configuration = Configuration::new(members, shape.horizon).map_err(|error| error.to_string())?;
        let nodes = configuration.members().iter().map(|id| {
            let mut settings = Settings::new(*id, Incarnation(1), configuration.clone(), u64::from(id.0));
            settings.window = shape.window;
            settings.backlog_bytes_max = shape.backlog_bytes_max;
            let running = Running::start(&settings, Recovered::nothing(), 0, Instant(0));
            (*id, Node { settings, log: Vec::new(), durable: 0, flushes_at_once: true, running: Some(running) })
        });
        Ok(Self {
            now: Instant(0),
            nodes: nodes.collect(),
            isolated: BTreeSet::new(),
            tickets: BTreeMap::new(),
            promises: BTreeMap::new(),
            applied: BTreeMap::new(),
            proposed: BTreeMap::new(),
            broken: Vec::new(),
            network: VecDeque::new(),
            held: VecDeque::new(),
            lines: Vec::new(),
        })
    }

    pub(crate) fn ids(&self) -> Vec<ReplicaId> {
        self.nodes.keys().copied().collect()
    }

    pub(crate) fn replica(&self, id: ReplicaId) -> Result<&Replica, String> {
        let node = self.nodes.get(&id).ok_or_else(|| format!("there is no replica {id}"))?;
        node.running.as_ref().map(|running| &running.replica).ok_or_else(|| format!("replica {id} is down"))
    }

    fn node(&mut self, id: ReplicaId) -> &mut Node {
        self.nodes.get_mut(&id).expect("ids come from the configuration")
    }

    // Time.

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now.after(time);
    }

    /// Ticks a replica, at its deadline if that is still to come.
    pub(crate) fn tick_when_due(&mut self, id: ReplicaId) -> Result<(), String> {
        self.now = self.now.max(self.replica(id)?.deadline());
        self.event(id, Event::Ticked)
    }

    // Events.

    /// One thing happens to a replica, and, unless the script runs its disk, the disk keeps up.
    pub(crate) fn event(&mut self, id: ReplicaId, event: Event) -> Result<(), String> {
        self.replica(id)?;
        self.step(id, event);
        self.keep_up(id)
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
        let now = self.now;
        let running = self.node(id).running.as_mut().expect("only what runs is stepped");
        let (role, promised, fetching) = running.looks();
        let ticket = if let Event::Submitted { ticket, .. } = event { Some(ticket) } else { None };
        let promise = matches!(event, Event::Received { message: Message::Promise { .. }, .. });
        let mut effects = Effects::new();
        running.replica.step(now, event, &mut effects);
        let (role_now, promised_now, fetching_now) = running.looks();
        match (role, role_now) {
            (Role::Following(_), Role::Campaigning) => self.deed(id, format!("campaigns with {promised_now}")),
            (Role::Campaigning, Role::Campaigning) if promised_now > promised => {
                self.deed(id, format!("campaigns with {promised_now}"));
            }
            (Role::Campaigning, Role::Campaigning) if promise && fetching_now && !fetching => {
                let by = self.promised_by(promised_now);
                self.deed(id, format!("promised {promised_now} by {by}, catches up first"));
            }
            (Role::Campaigning, Role::Coordinating) => self.tell_of_leading(id, promised_now, &effects),
            _ => {}
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
        self.drain_inbox(id);
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
                    self.end(ticket);
                }
            }
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
            node.log[..node.durable].iter().rev().find_map(|record| match record {
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
        } else if !self.isolated.contains(&from) && !self.isolated.contains(&to) && self.nodes[&to].running.is_some() {
            self.network.push_back(InFlight { from, to, message });
        }
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
        self.replica(id)?;
        let node = self.node(id);
        node.durable = node.log.len();
        let running = node.running.as_ref().expect("it was just looked at");
        let upto = PersistId((node.durable - running.log_before) as u64);
        self.step(id, Event::Persisted { upto });
        while let Some((to, message)) = self.node(id).running.as_mut().and_then(|r| r.waiting.release(upto)) {
            self.send(id, to, message);
        }
        self.drain_inbox(id);
        Ok(())
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
        node.running = None;
        // Whoever asked sees a broken connection: the outcome is unknown, as it should be.
        self.tickets.values_mut().filter(|asked| asked.at == id && asked.ends == 0).for_each(|asked| asked.ends = 1);
        self.note(format!("{id}: crashes, losing {}", words::records(&lost)));
        Ok(())
    }

    pub(crate) fn restart(&mut self, id: ReplicaId) -> Result<(), String> {
        if self.replica(id).is_ok() {
            return Err(format!("replica {id} runs"));
        }
        let now = self.now;
        let node = self.node(id);
        let recovered = recover(&node.log);
        let told = format!("{id}: restarts, {}", words::recovered(&recovered));
        node.running = Some(Running::start(&node.settings, recovered, node.log.len(), now));
        self.note(told);
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
        let told = format!("{id}: {role}, promised {}, chosen {}", replica.promised(), replica.chosen());
        self.note(told);
    }

    fn promised_by(&self, ballot: Ballot) -> String {
        self.promises.get(&ballot).map_or_else(String::new, |promises| words::replicas(promises.keys().copied()))
    }

    /// Who promised, and what the coordinator makes of what they reported: seen from the accepts that it sends.
    fn tell_of_leading(&mut self, id: ReplicaId, ballot: Ballot, effects: &Effects) {
        let mut what = format!("leads {ballot}, promised by {}", self.promised_by(ballot));
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
    fn start(settings: &Settings, recovered: Recovered, log_before: usize, now: Instant) -> Self {
        Self {
            replica: Replica::new(settings.clone(), recovered, now),
            waiting: DurableQueue::default(),
            inbox: VecDeque::new(),
            log_before,
            applied: BTreeMap::new(),
        }
    }

    fn looks(&self) -> (Role, Ballot, bool) {
        (self.replica.role(), self.replica.promised(), self.replica.is_fetching())
    }
}

/// What a log says, as `Replay` in engine/node/src/start.rs reads it.
fn recover(log: &[Record]) -> Recovered {
    let mut recovered = Recovered::nothing();
    for record in log {
        match record {
            Record::HardState(state) => recovered.promised = recovered.promised.max(state.promised),
            Record::Accepted { slot, ballot, chosen, batch } => {
                recovered.promised = recovered.promised.max(*ballot);
                recover_upto(&mut recovered, *chosen);
                if *slot > recovered.chosen {
                    recovered.accepted.insert(*slot, (*ballot, batch.clone()));
                }
            }
            Record::Chosen { slot, batch } => {
                if *slot > recovered.chosen {
                    recovered.accepted.insert(*slot, (Ballot::NONE, batch.clone()));
                }
                recover_upto(&mut recovered, *slot);
            }
        }
    }
    recovered
}

fn recover_upto(recovered: &mut Recovered, chosen: Slot) {
    while recovered.chosen < chosen {
        recovered.chosen = recovered.chosen.next();
        let slot = recovered.chosen;
        assert!(recovered.accepted.remove(&slot).is_some(), "the log lacks slot {slot}, chosen up to {chosen}");
    }
}
