//! One replica: takes what its socket and its clock bring to [`Replica::step`], and carries out what that asks for.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::process::parent_id;
use std::path::Path;
use std::time::{Duration, Instant as Clock};

use synod_paxos::durable::DurableQueue;
use synod_paxos::{
    Batch, BatchBuilder, Configuration, Effect, Effects, Event, Incarnation, Instant, Message, Replica, ReplicaId,
    Role, Settings, Slot, StateMachine, Ticket,
};

use super::log::Log;
use super::sequencer::{Sequencer, Take};
use super::wire::Wire;

/// What the launcher tells a replica.
pub(crate) struct Place<'a> {
    pub(crate) me: ReplicaId,
    pub(crate) log: &'a Path,
    /// Inherited, so that the address stays ours while we are dead.
    pub(crate) socket: UdpSocket,
    pub(crate) addresses: BTreeMap<ReplicaId, SocketAddr>,
    /// Its process: we do not outlive it.
    pub(crate) launcher: u32,
}

/// A log that is lost is never begun again, so there is one life.
pub(crate) const INCARNATION: Incarnation = Incarnation(1);
/// Shorter than a new cell's, for a demonstration that does not take its time.
const LEASE: Duration = Duration::from_millis(400);
const HEARTBEAT: Duration = Duration::from_millis(50);
const ELECTION_TIMEOUT: Duration = Duration::from_millis(300);
/// The longest sleep: so soon we notice that the launcher is gone.
const SLEEP_MAX: Duration = Duration::from_millis(100);

/// What waits while the window is closed. Above it a command is dropped, and its client asks again.
const BATCH_BYTES_MAX: usize = 512;
/// Of one message of entries.
const ENTRIES_BYTES_MAX: usize = 32 << 10;
const DATAGRAM_BYTES_MAX: usize = 65_507;
// The longest message is a promise, with twice the horizon of batches.
const _: () = assert!(2 * Configuration::HORIZON_DEFAULT as usize * (BATCH_BYTES_MAX + 64) < DATAGRAM_BYTES_MAX);

struct Node<'a> {
    place: Place<'a>,
    start: Clock,
    replica: Replica,
    log: Log,
    sequencer: Sequencer,
    /// The batches chosen, from slot 1 on. All of them, in memory: a demonstration is short.
    chosen: Vec<Batch>,
    /// Messages to ourselves.
    inbox: VecDeque<Message>,
    waiting: DurableQueue,
    pending: BatchBuilder,
    /// Who sent the commands in `pending`.
    callers: Vec<SocketAddr>,
    in_flight: BTreeMap<Ticket, Vec<SocketAddr>>,
    tickets: u64,
    led: bool,
}

/// Runs until the launcher is gone, or an error.
pub(crate) fn run(place: Place<'_>) -> io::Result<()> {
    let ids = place.addresses.keys().copied();
    let configuration =
        Configuration::of_voters(ids, Configuration::HORIZON_DEFAULT, LEASE).map_err(io::Error::other)?;
    let (log, recovered, chosen) = Log::open(place.log, configuration)?;
    let mut sequencer = Sequencer::default();
    for (batch, slot) in chosen.iter().zip(1..) {
        batch.commands().for_each(|command| sequencer.apply(Slot(slot), command, &mut Vec::new()));
    }
    println!("replica {}: starts with {} slots in its log: {sequencer}", place.me, recovered.chosen);
    // The same life of the same durable state after each restart, for a log that is lost does not open.
    let mut settings = Settings::new(place.me, INCARNATION, fastrand::u64(..));
    settings.heartbeat = HEARTBEAT;
    settings.election_timeout = ELECTION_TIMEOUT;
    let mut node = Node {
        place,
        start: Clock::now(),
        replica: Replica::new(settings, &recovered, Instant(0)),
        log,
        sequencer,
        chosen,
        inbox: VecDeque::new(),
        waiting: DurableQueue::default(),
        pending: BatchBuilder::default(),
        callers: Vec::new(),
        in_flight: BTreeMap::new(),
        tickets: 0,
        led: false,
    };
    let mut datagram = [0; DATAGRAM_BYTES_MAX];
    while parent_id() == node.place.launcher {
        node.turn(&mut datagram)?;
    }
    Ok(())
}

impl Node<'_> {
    /// Takes the next datagram, or time as it passes; then all that follows from it.
    fn turn(&mut self, datagram: &mut [u8]) -> io::Result<()> {
        let sleep = self.replica.deadline().since(self.now()).clamp(Duration::from_millis(1), SLEEP_MAX);
        self.place.socket.set_read_timeout(Some(sleep))?;
        match self.place.socket.recv_from(datagram) {
            Ok((length, from)) => self.received(&datagram[..length], from),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
        if self.replica.deadline() <= self.now() {
            self.step(Event::Ticked);
        }
        self.propose();
        self.settle()?;
        let leads = self.replica.role() == Role::Coordinating;
        if leads && !self.led {
            println!("replica {}: leads from slot {} on", self.place.me, self.replica.chosen().next());
        }
        self.led = leads;
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant(0).after(self.start.elapsed())
    }

    fn step(&mut self, event: Event) {
        let mut effects = Effects::new();
        self.replica.step(self.now(), event, &mut effects);
        for effect in effects {
            self.carry_out(effect);
        }
    }

    fn carry_out(&mut self, effect: Effect) {
        match effect {
            Effect::Persist { id, record } => self.log.append(id, &record),
            Effect::Send { to, message } => self.send(to, message),
            Effect::SendOnceDurable { to, message, upto } => self.waiting.hold(upto, to, message),
            Effect::SendEntries { to, from, chosen } => {
                let batches = self.entries(from);
                self.send(to, Message::Entries { first: from, batches, chosen });
            }
            Effect::Apply { slot, batch, ticket } => self.apply(slot, batch, ticket),
            // Whether it is certain (refused) or not (abandoned) that nothing happened: the client asks again, and its
            // request's number makes that safe.
            Effect::Refuse { ticket } | Effect::Abandon { ticket } => drop(self.in_flight.remove(&ticket)),
            Effect::Index { .. } => unreachable!("every request changes something"),
            Effect::Reconfigured { .. } => unreachable!("nobody asks for other members here"),
        }
    }

    /// Our own messages, and then the disk, until neither has anything left. What may leave at once has left by now: while
    /// our disk works, so do the others'.
    fn settle(&mut self) -> io::Result<()> {
        loop {
            if let Some(message) = self.inbox.pop_front() {
                self.step(Event::Received { from: self.place.me, message });
            } else if let Some(upto) = self.log.sync()? {
                // No frame numbers: that its file is an older copy is not recognised here.
                self.step(Event::Persisted { upto, frame: 0 });
                while let Some((to, message)) = self.waiting.release(upto) {
                    self.send(to, message);
                }
            } else {
                return Ok(());
            }
        }
    }

    fn send(&mut self, to: ReplicaId, message: Message) {
        if to == self.place.me {
            return self.inbox.push_back(message);
        }
        let mut bytes = Vec::new();
        message.put(&mut bytes);
        self.answer(self.place.addresses[&to], &bytes);
    }

    /// What cannot leave is lost on the way, as far as anybody can tell. The protocol, or the client, sends it again.
    fn answer(&self, to: SocketAddr, bytes: &[u8]) {
        let _ = self.place.socket.send_to(bytes, to);
    }

    /// Chosen batches from this slot on, as many as one datagram takes.
    fn entries(&self, from: Slot) -> Vec<Batch> {
        let mut bytes = 0;
        let fits = |batch: &&Batch| {
            bytes += size_of::<u32>() + batch.len();
            bytes <= ENTRIES_BYTES_MAX
        };
        let skipped = usize::try_from(from.before().0).expect("they are all in memory");
        self.chosen.iter().skip(skipped).take_while(fits).cloned().collect()
    }

    fn apply(&mut self, slot: Slot, batch: Batch, ticket: Option<Ticket>) {
        let callers = ticket.and_then(|ticket| self.in_flight.remove(&ticket)).unwrap_or_default();
        let mut callers = callers.into_iter();
        for command in batch.commands() {
            let mut answer = Vec::new();
            self.sequencer.apply(slot, command, &mut answer);
            if let Some(caller) = callers.next() {
                self.answer(caller, &answer);
            }
        }
        self.chosen.push(batch);
    }

    fn received(&mut self, datagram: &[u8], from: SocketAddr) {
        let Some((id, _)) = self.place.addresses.iter().find(|(_, address)| **address == from) else {
            return self.asked(datagram, from);
        };
        let from = *id;
        let Some(message) = Message::from_bytes(datagram) else { return };
        // What the protocol leaves to whoever runs it: nobody acts for another, no log is cut, and slots begin at 1.
        let is_posed = message.acting().is_some_and(|acting| acting != from);
        let is_cut = matches!(message, Message::Promise { cut, .. } if cut != Slot::NONE);
        let is_before_all = matches!(message, Message::Fetch { from: Slot::NONE });
        if !(is_posed || is_cut || is_before_all) {
            self.step(Event::Received { from, message });
        }
    }

    /// A client wants numbers, or to look at this replica.
    fn asked(&mut self, command: &[u8], from: SocketAddr) {
        if command == b"look" {
            let leads = if self.replica.holds_lease(self.now()) { "leads" } else { "follows" };
            return self.answer(from, format!("{leads} {} {}", self.replica.chosen(), self.sequencer).as_bytes());
        }
        if Take::parse(command).is_none() {
            return self.answer(from, b"malformed");
        }
        match self.replica.role() {
            Role::Coordinating if self.pending.bytes_with(command) <= BATCH_BYTES_MAX => {
                self.pending.push(command);
                self.callers.push(from);
            }
            Role::Coordinating => {}
            Role::Following(Some(other)) => self.answer(from, format!("elsewhere {other}").as_bytes()),
            Role::Following(None) | Role::Campaigning => self.answer(from, b"nobody"),
        }
    }

    fn propose(&mut self) {
        if self.replica.role() != Role::Coordinating {
            self.pending.take();
            self.callers.clear();
        } else if !self.pending.is_empty() && self.replica.can_submit() {
            self.tickets += 1;
            let ticket = Ticket(self.tickets);
            self.in_flight.insert(ticket, std::mem::take(&mut self.callers));
            let batch = self.pending.take();
            self.step(Event::Submitted { ticket, batch });
        }
    }
}
