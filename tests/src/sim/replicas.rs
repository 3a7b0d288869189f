//! What happens to replicas: messages, turns, flushes.

use std::borrow::Cow;

use bytes::Bytes;
use fastrand::Rng;
use synod_api::{FrameKind, limits};
use synod_net::FrameId;
use synod_net::frame::append_frame;
use synod_node::codec::{self, EncodedMessage, PeerMessage};
use synod_node::engine::{Caller, Engine, LogRead};
use synod_paxos::{Instant, Message, ReplicaId, Role};
use synod_ring::AlignedBuffer;
use synod_store::Store;
use synod_wal::{Flush, Upkeep};

use super::disk::read_error;
use super::divergence::is_refusal;
use super::faults::Kind;
use super::leases;
use super::node::{Crash, InRound, Input, Node, Wishes, records_in};
use super::oracle::Asked;
use super::planted::Bug;
use super::sabotage;
use super::snapshots::DatabaseWish;
use super::swarm::{MILLISECOND, Tearing, around};
use super::verdict::Verdict;
use super::world::{Event, World};

/// As in the node: after this long without a flush the log gets its mark (rule L4).
const IDLE_BEAT: u64 = 400 * MILLISECOND;

/// What is said once in a mastership: of such a message few would ever come twice, or late.
fn is_rare(message: &Message) -> bool {
    matches!(message, Message::TakeOver { .. } | Message::Release { .. })
}

impl World {
    /// A message arrives.
    pub(crate) fn message(&mut self, from: usize, to: usize, kind: u8, bytes: Bytes) {
        if self.nodes[to].suspended_until > self.now {
            self.counts.messages_lost += 1;
        } else if self.nodes[to].engine.is_some() {
            let from = self.nodes[from].id;
            self.input(to, Input::Message { from, kind, bytes });
        }
    }

    pub(crate) fn input(&mut self, node: usize, input: Input) {
        self.nodes[node].inbox.push(input);
        self.due(node);
    }

    /// The replica has something to do: at its next turn.
    pub(crate) fn due(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.turn_due || node.engine.is_none() {
            return;
        }
        node.turn_due = true;
        let at = (self.now + 1 + around(&mut self.random.replicas, self.swarm.turn_mean)).max(node.paused_until);
        let life = node.life;
        self.schedule(at, Event::Turn { node: index, life });
    }

    pub(crate) fn is_alive(&self, node: usize, life: u64) -> bool {
        self.nodes[node].life == life && self.nodes[node].engine.is_some()
    }

    pub(crate) fn wake(&mut self, index: usize, life: u64) {
        if !self.is_alive(index, life) {
            return;
        }
        let node = &mut self.nodes[index];
        if node.wake_at == self.now {
            node.wake_at = u64::MAX;
        }
        let deadline = node.deadline().expect("it is alive");
        if self.now >= deadline {
            self.due(index);
        } else {
            self.wake_by(index, deadline);
        }
    }

    fn wake_by(&mut self, index: usize, deadline: u64) {
        let node = &mut self.nodes[index];
        if deadline < node.wake_at {
            node.wake_at = deadline.max(self.now);
            let (at, life) = (node.wake_at, node.life);
            self.schedule(at, Event::Wake { node: index, life });
        }
    }

    /// A turn of the hot core: all that has come, then what follows from it.
    pub(crate) fn turn(&mut self, index: usize, life: u64) -> Verdict {
        if !self.is_alive(index, life) {
            return Ok(());
        }
        let node = &mut self.nodes[index];
        node.turn_due = false;
        if node.paused_until > self.now {
            self.due(index);
            return Ok(());
        }
        if let Some(length) = node.pause_in_turn.take() {
            // It has read its clock and taken what had come. All that follows, it does later.
            node.caught = Some((node.clock.at(self.now), node.inbox.len()));
            node.paused_until = self.now + length;
            self.due(index);
            return Ok(());
        }
        let mut engine = node.engine.take().expect("it is alive");
        let verdict = self.turn_of(index, &mut engine);
        let (full, exhausted) = (engine.refuses_writes(), engine.log().is_exhausted());
        let node = &mut self.nodes[index];
        node.engine = Some(engine);
        let deadline = node.deadline().expect("it was put back");
        if !node.inbox.is_empty() {
            self.due(index);
        }
        self.wake_by(index, deadline);
        verdict?;
        let up = self.nodes.iter().filter_map(|node| Some((node.id, &node.clock, node.engine.as_deref()?)));
        leases::disjoint(self.now, up)?;
        if full && self.swarm.segments_max.is_some() && self.injected.of(Kind::FullDisk.name()) == 0 {
            self.injected.count(Kind::FullDisk.name());
            self.trace.turn(self.now, || format!("the log of replica {} is full", index + 1));
        }
        if exhausted {
            // As in the node: without room for as much as a promise the process ends. It would do so again.
            assert!(self.swarm.segments_max.is_some(), "this log was meant to have room");
            self.stop(index, 0);
        }
        Ok(())
    }

    fn turn_of(&mut self, index: usize, engine: &mut Engine) -> Verdict {
        let node = &mut self.nodes[index];
        // What the outlet is asked shows the clock as it is now; the turn's own moment may be older.
        let mut wishes = Wishes { now: node.clock.at(self.now), ..Wishes::default() };
        let (now, taken) = node.caught.take().unwrap_or((wishes.now, node.inbox.len()));
        let now = Instant(now);
        let rest = node.inbox.split_off(taken);
        for input in std::mem::replace(&mut node.inbox, rest) {
            match input {
                Input::Message { from, kind, bytes } => {
                    let message = codec::decode_peer_message(kind, bytes).expect("what was encoded can be decoded");
                    self.trace.say(self.now, || format!("{} <- {from}: {message:?}", index + 1));
                    match message {
                        PeerMessage::Protocol(message) => engine.message(now, from, message, &mut wishes),
                        PeerMessage::Room(message) => engine.room_message(now, from, message, &mut wishes),
                        PeerMessage::Snapshot(message) => engine.snapshot_message(now, from, message, &mut wishes),
                    }
                }
                Input::Client { connection, bytes } => {
                    self.commands(now, index, connection, &bytes, engine, &mut wishes);
                }
                Input::Flushed(flush) => {
                    engine.flushed(now, flush.buffer, &mut wishes);
                    self.nodes[index].mark_at = Some(now.0 + IDLE_BEAT);
                }
                Input::Wish(wish) => self.grant_wish(index, wish, now, engine, &mut wishes),
                Input::UpkeepDone(upkeep) => {
                    self.nodes[index].upkeep = None;
                    engine.log_upkeep_done(upkeep);
                }
                Input::UpkeepRefused(upkeep) => {
                    self.nodes[index].upkeep = None;
                    engine.log_upkeep_refused(now, upkeep, "no room".to_owned());
                    self.counts.segments_refused += 1;
                }
                Input::Scrub => Node::scrub(engine, &mut wishes),
                Input::SnapshotKept(kept) => engine.snapshot_kept(now, kept),
                Input::DatabaseMade => engine.database_made(now, Some(Store::new()), &mut wishes),
                Input::Import(import) => engine.imported(now, import.run(), &mut wishes),
                Input::IncomingKept(kept) => engine.incoming_kept(now, kept, &mut wishes),
                Input::LogRead(read) => {
                    let disk = &self.nodes[index].disk;
                    if self.nodes[index].reads_fail_until > self.now {
                        engine.log_read(read, Err(read_error()), &mut wishes);
                    } else if disk.has_segment(read.segment) {
                        let bytes = disk.bytes(read.segment, read.offset, read.length).to_vec();
                        engine.log_read(read, Ok(&bytes), &mut wishes);
                    } else {
                        engine.log_read(read, Err(std::io::ErrorKind::NotFound.into()), &mut wishes);
                    }
                }
            }
            self.carry_out(index, engine, &mut wishes)?;
        }
        if now >= engine.deadline() {
            engine.tick(now, &mut wishes);
            self.carry_out(index, engine, &mut wishes)?;
        }
        if self.nodes[index].mark_at.is_some_and(|at| now.0 >= at) {
            self.nodes[index].mark_at = None;
            engine.mark();
        }
        engine.end_turn(now, &mut wishes);
        self.carry_out(index, engine, &mut wishes)?;
        let node = &mut self.nodes[index];
        if let (Some(upkeep), None) = (engine.log_upkeep(now), node.upkeep) {
            node.upkeep = Some(upkeep);
            let life = node.life;
            let delay = around(&mut self.random.disks, self.swarm.segment_mean);
            self.schedule_in(delay, Event::UpkeepDone { node: index, life, upkeep });
        }
        self.send_answers();
        engine.turn_sent(now);
        let leads = engine.replica().role() == Role::Coordinating;
        if leads != std::mem::replace(&mut self.nodes[index].leads, leads) {
            let ballot = engine.replica().promised();
            self.nodes[index].leads_since = now;
            let what = if leads { "coordinates" } else { "coordinates no more, having promised" };
            self.trace.turn(self.now, || format!("replica {} {what} {ballot}", index + 1));
        }
        let node = &self.nodes[index];
        leases::gives_up(engine.replica(), node.id, node.leads_since, now, self.swarm.lease)
    }

    /// Bytes of a client: commands.
    fn commands(
        &mut self,
        now: Instant,
        index: usize,
        connection: usize,
        bytes: &[u8],
        engine: &mut Engine,
        wishes: &mut Wishes,
    ) {
        let (bug, stamps) = (self.options.bug, &mut self.stamps);
        let node = &mut self.nodes[index];
        let attempt = &mut self.connections[connection];
        if attempt.life != Some(node.life) {
            return;
        }
        let visited = attempt.inbound.visit(bytes, |frame| {
            let caller = Caller { connection: connection as u64, request: frame.id.0 };
            if frame.kind == u8::from(FrameKind::ReadRequest) {
                let before = node.asked.insert((caller.connection, caller.request), Asked::Read);
                assert!(before.is_none(), "a client does not repeat a question that is open on the same connection");
                return engine.read(now, caller, frame.payload, wishes);
            }
            assert_eq!(frame.kind, u8::from(FrameKind::Request), "clients send requests");
            let command = match bug {
                Some(Bug::P10RetryIsNew) => Cow::Owned(sabotage::restamped(frame.payload, stamps)),
                _ => Cow::Borrowed(frame.payload),
            };
            let before = node.asked.insert((caller.connection, caller.request), Asked::of(&command));
            assert!(before.is_none(), "a client does not repeat a question that is open on the same connection");
            if bug != Some(Bug::P16ReadsLocally) || !sabotage::answer_locally(engine, caller, &command, wishes) {
                engine.command(now, caller, &command, wishes);
            }
        });
        visited.expect("clients send sound frames");
    }

    /// What the engine asked for, held against all that is known at this moment.
    fn carry_out(&mut self, index: usize, engine: &Engine, wishes: &mut Wishes) -> Verdict {
        if wishes.databases.iter().any(|wish| matches!(wish, DatabaseWish::Replace)) {
            self.nodes[index].is_whole_again(engine, &self.oracle)?;
        }
        self.nodes[index].check(engine, &self.oracle)?;
        self.check_quarantine(index, engine, wishes)?;
        let (id, life) = (self.nodes[index].id, self.nodes[index].life);
        if let Some(bug) = self.options.bug {
            sabotage::answers(bug, &mut wishes.answers);
        }
        for (to, mut message) in wishes.sends.drain(..) {
            self.oracle.sent(id, life, &message)?;
            if matches!(message, Message::Propose { .. }) {
                self.begins_round(index);
            }
            if let Some(bug) = self.options.bug {
                sabotage::message(bug, &mut message, &mut self.random.bug);
            }
            self.send_message(index, to, codec::encode_message(&message), is_rare(&message));
            if self.has(Bug::P6CountsAVoteTwice) && matches!(message, Message::Acknowledge { .. }) {
                let other = (0..self.nodes.len()).find(|other| *other != index && *other + 1 != usize::from(to.0));
                let from = other.expect("a cell has three replicas");
                self.send_message(from, to, codec::encode_message(&message), false);
            }
        }
        for (to, message) in wishes.snapshot_sends.drain(..) {
            self.send_snapshot(index, to, &message);
        }
        for (to, message) in wishes.room_sends.drain(..) {
            self.send_message(index, to, codec::encode_room_message(&message), false);
        }
        for wish in wishes.databases.drain(..) {
            self.grant_database_wish(index, wish);
        }
        for (caller, answer) in wishes.answers.drain(..) {
            let asked = self.nodes[index].asked.remove(&(caller.connection, caller.request));
            let asked = asked.expect("every command that was taken gets exactly one answer");
            let connection = usize::try_from(caller.connection).expect("it was an index");
            if self.nodes[index].apart.is_some() && !is_refusal(&answer) {
                self.reset(connection);
                continue;
            }
            self.oracle.answered(id, asked, &answer)?;
            let attempt = &mut self.connections[connection];
            if attempt.outbound.is_empty() {
                self.answering.push(connection);
            }
            append_frame(&mut attempt.outbound, FrameKind::Answer.into(), FrameId(caller.request), &[&answer]);
        }
        if let Some(flush) = wishes.flush.take() {
            self.begin_flush(index, flush);
        }
        for read in wishes.reads.drain(..) {
            self.counts.log_reads += 1;
            let delay = around(&mut self.random.disks, self.swarm.write_mean);
            self.schedule_in(delay, Event::LogRead { node: index, life, read });
        }
        Ok(())
    }

    /// A message leaves for another replica.
    pub(crate) fn send_message(&mut self, index: usize, to: ReplicaId, encoded: EncodedMessage, is_rare: bool) {
        let EncodedMessage { kind, mut head, body } = encoded;
        head.extend_from_slice(&body);
        let bytes = head.freeze();
        assert!(bytes.len() <= codec::peer_payload_bytes_max(self.swarm.horizon, limits::BATCH_BYTES_MAX));
        let to = usize::from(to.0) - 1;
        let fate = self.network.send(self.now, index, to, &self.swarm, is_rare, &mut self.random.network);
        self.counts.messages += 1;
        self.counts.messages_lost += u64::from(fate.lost);
        self.counts.messages_doubled += u64::from(fate.duplicated);
        for at in fate.arrivals {
            self.schedule(at, Event::Message { from: index, to, kind, bytes: bytes.clone() });
        }
    }

    /// A replica asks for promises, or begins to hand over: it may be stopped with that.
    pub(crate) fn begins_round(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let InRound { pause, stall, suspend } = std::mem::take(&mut node.in_round);
        pause.into_iter().for_each(|length| node.pause(self.now + length));
        stall.into_iter().for_each(|length| node.stall(self.now + length));
        suspend.into_iter().for_each(|length| node.suspend(self.now + length));
    }

    // The disk.

    fn begin_flush(&mut self, index: usize, flush: Flush) {
        let flush = if self.has(Bug::P15AcknowledgesBeforeDurable) {
            // The planted disk says "durable" before it has done anything.
            let mut copy = AlignedBuffer::zeroed(flush.length);
            copy[..flush.length].copy_from_slice(&flush.buffer[..flush.length]);
            let copy = Flush { buffer: copy, ..flush };
            self.input(index, Input::Flushed(flush));
            copy
        } else {
            flush
        };
        self.counts.flushes += 1;
        self.trace.say(self.now, || {
            format!("{} flushes {} bytes to {}:{}", index + 1, flush.length, flush.segment, flush.offset)
        });
        if self.nodes[index].disk.begin(flush) {
            self.write_soon(index);
        }
    }

    fn write_soon(&mut self, index: usize) {
        let life = self.nodes[index].life;
        let delay = self.disk_delay(index, self.swarm.write_mean);
        self.schedule_in(delay, Event::Written { node: index, life });
    }

    fn disk_delay(&mut self, index: usize, mean: u64) -> u64 {
        let slower = self.nodes[index].slow.values().copied().max().unwrap_or(1);
        let mean = mean * slower;
        mean / 4 + around(&mut self.random.disks, mean)
    }

    /// Whether the disk stands still: then the event comes when it no longer does.
    pub(crate) fn is_stalled(&mut self, index: usize, again: impl FnOnce() -> Event) -> bool {
        let until = self.nodes[index].stalled_until;
        if until > self.now {
            self.schedule(until, again());
        }
        until > self.now
    }

    pub(crate) fn written(&mut self, index: usize, life: u64) {
        if !self.is_alive(index, life) || self.is_stalled(index, || Event::Written { node: index, life }) {
            return;
        }
        if let Some(mut crash) = self.nodes[index].doomed.clone()
            && crash.random.bool()
        {
            return self.crash(index, crash);
        }
        let short = self.has(Bug::L2ShortWrite) && self.random.bug.u8(..50) == 0;
        self.nodes[index].disk.write(short);
        let delay = self.disk_delay(index, self.swarm.sync_mean);
        self.schedule_in(delay, Event::Synced { node: index, life });
    }

    pub(crate) fn synced(&mut self, index: usize, life: u64) -> Verdict {
        if !self.is_alive(index, life) || self.is_stalled(index, || Event::Synced { node: index, life }) {
            return Ok(());
        }
        if let Some(crash) = self.nodes[index].doomed.clone() {
            self.crash(index, crash);
            return Ok(());
        }
        if let Some(crash) = self.nodes[index].flush_fails.take() {
            self.flush_failed(index, crash);
            return Ok(());
        }
        if self.nodes[index].flushes_fail_until > self.now {
            let random = Rng::with_seed(self.random.disks.u64(..));
            let down = Some(MILLISECOND + around(&mut self.random.disks, 100 * MILLISECOND));
            self.flush_failed(index, Crash { power: false, tearing: Tearing::Sectors, down, random });
            return Ok(());
        }
        let lies = self.has(Bug::L2SyncLies);
        let node = &mut self.nodes[index];
        let astray = node.astray.take().map(|astray| (astray, node.disk.before_written()));
        let flush = node.disk.sync_written(lies);
        // What counts is what the disk has, not what it was given.
        let bytes = node.disk.bytes(flush.segment, flush.offset, flush.length);
        for record in records_in(bytes, flush.segment, flush.offset) {
            self.oracle.durable(node.id, record)?;
        }
        if let Some(((how, mut random), before)) = astray {
            let is_astray = node.lead_astray(&self.swarm, &flush, &before, how, &mut random);
            self.trace.turn(self.now, || format!("a write of replica {} is {how:?}: {is_astray}", index + 1));
        }
        self.history.catch_up(&self.oracle.changes)?;
        let dropped = self.has(Bug::R3LostCompletion) && self.random.bug.u16(..500) == 0;
        if !self.has(Bug::P15AcknowledgesBeforeDurable) && !dropped {
            self.input(index, Input::Flushed(flush));
        }
        if self.nodes[index].disk.is_flushing() {
            self.write_soon(index);
        }
        Ok(())
    }

    /// What was written may be gone, and no later sync brings it back. The process ends: the flush is not tried again, and nobody
    /// gets another vote (rule L2).
    fn flush_failed(&mut self, index: usize, mut crash: Crash) {
        let flush = self.nodes[index].disk.fail_written(&mut crash.random);
        if self.has(Bug::L2VotesAfterFailedFlush) {
            self.input(index, Input::Flushed(flush));
        } else if self.has(Bug::L2RetriesFailedFlush) {
            // A sync again, which finds nothing to do, and succeeds.
            self.nodes[index].disk.sync_again(flush);
            let (life, delay) = (self.nodes[index].life, self.disk_delay(index, self.swarm.sync_mean));
            self.schedule_in(delay, Event::Synced { node: index, life });
        } else {
            self.crash(index, crash);
        }
    }

    pub(crate) fn upkeep_done(&mut self, index: usize, life: u64, upkeep: Upkeep) {
        if self.is_alive(index, life) && !self.is_stalled(index, || Event::UpkeepDone { node: index, life, upkeep }) {
            let node = &mut self.nodes[index];
            if matches!(upkeep, Upkeep::Make(_)) && !node.no_room.is_empty() {
                return self.input(index, Input::UpkeepRefused(upkeep));
            }
            node.disk.carry_out(upkeep);
            self.input(index, Input::UpkeepDone(upkeep));
        }
    }

    pub(crate) fn log_read(&mut self, index: usize, life: u64, read: LogRead) {
        if !self.is_alive(index, life) {
            return;
        }
        let until = self.nodes[index].stalled_until;
        if until > self.now {
            return self.schedule(until, Event::LogRead { node: index, life, read });
        }
        self.input(index, Input::LogRead(read));
    }
}
