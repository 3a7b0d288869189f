//! What happens to replicas: messages, turns, flushes.

use bytes::Bytes;
use synod_api::{FrameKind, limits};
use synod_net::FrameId;
use synod_net::frame::append_frame;
use synod_node::codec::{self, EncodedMessage};
use synod_node::engine::{Caller, Engine, LogRead};
use synod_paxos::{Instant, Message, Slot};
use synod_ring::AlignedBuffer;
use synod_wal::{Flush, SegmentId};

use super::Planted;
use super::node::{Input, Wishes, records_in};
use super::oracle::Asked;
use super::swarm::{MILLISECOND, around};
use super::verdict::Verdict;
use super::world::{Event, World};

/// As in the node: after this long without a flush the log gets its mark (rule L4).
const IDLE_BEAT: u64 = 100 * MILLISECOND;

impl World {
    /// A message arrives.
    pub(crate) fn message(&mut self, from: usize, to: usize, kind: u8, bytes: Bytes) {
        if self.nodes[to].engine.is_some() {
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
        let deadline = node.engine.as_ref().expect("it is alive").deadline().0.min(node.mark_at.unwrap_or(u64::MAX));
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
        let mut engine = node.engine.take().expect("it is alive");
        let verdict = self.turn_of(index, &mut engine);
        self.nodes[index].engine = Some(engine);
        verdict
    }

    fn turn_of(&mut self, index: usize, engine: &mut Engine) -> Verdict {
        let now = Instant(self.now);
        let mut wishes = Wishes { now: self.now, ..Wishes::default() };
        for input in std::mem::take(&mut self.nodes[index].inbox) {
            match input {
                Input::Message { from, kind, bytes } => {
                    let message = codec::decode_message(kind, bytes).expect("what was encoded can be decoded");
                    self.trace.say(self.now, || format!("{} <- {from}: {message:?}", index + 1));
                    engine.message(now, from, message, &mut wishes);
                }
                Input::Client { connection, bytes } => self.commands(index, connection, &bytes, engine, &mut wishes),
                Input::Flushed(flush) => {
                    engine.flushed(now, flush.buffer, &mut wishes);
                    self.nodes[index].mark_at = Some(self.now + IDLE_BEAT);
                }
                Input::SegmentReady(segment) => engine.segment_ready(segment),
                Input::LogRead(read) => {
                    let bytes = self.nodes[index].disk.bytes(read.segment, read.offset, read.length).to_vec();
                    engine.log_read(read, Ok(&bytes), &mut wishes);
                }
            }
            self.carry_out(index, engine, &mut wishes)?;
        }
        if now >= engine.deadline() {
            engine.tick(now, &mut wishes);
            self.carry_out(index, engine, &mut wishes)?;
        }
        if self.nodes[index].mark_at.is_some_and(|at| self.now >= at) {
            self.nodes[index].mark_at = None;
            engine.mark();
        }
        engine.end_turn(now, &mut wishes);
        self.carry_out(index, engine, &mut wishes)?;
        let node = &mut self.nodes[index];
        if let (Some(segment), None) = (engine.wants_segment(), node.preparing) {
            node.preparing = Some(segment);
            let life = node.life;
            let delay = around(&mut self.random.disks, self.swarm.segment_mean);
            self.schedule_in(delay, Event::SegmentReady { node: index, life, segment });
        }
        self.send_answers();
        engine.turn_sent(now);
        let deadline = engine.deadline().0.min(self.nodes[index].mark_at.unwrap_or(u64::MAX));
        self.wake_by(index, deadline);
        Ok(())
    }

    /// Bytes of a client: commands.
    fn commands(&mut self, index: usize, connection: usize, bytes: &[u8], engine: &mut Engine, wishes: &mut Wishes) {
        let node = &mut self.nodes[index];
        let attempt = &mut self.connections[connection];
        if attempt.life != Some(node.life) {
            return;
        }
        let now = Instant(self.now);
        let visited = attempt.inbound.visit(bytes, |frame| {
            assert_eq!(frame.kind, u8::from(FrameKind::Request), "clients send requests");
            let caller = Caller { connection: connection as u64, request: frame.id.0 };
            let before = node.asked.insert((caller.connection, caller.request), Asked::of(frame.payload));
            assert!(before.is_none(), "a client does not repeat a question that is open on the same connection");
            engine.command(now, caller, frame.payload, wishes);
        });
        visited.expect("clients send sound frames");
    }

    /// What the engine asked for, held against all that is known at this moment.
    fn carry_out(&mut self, index: usize, engine: &Engine, wishes: &mut Wishes) -> Verdict {
        self.nodes[index].check(engine, &self.oracle)?;
        let (id, life) = (self.nodes[index].id, self.nodes[index].life);
        for (to, mut message) in wishes.sends.drain(..) {
            self.oracle.sent(id, life, &message)?;
            if let (Some(Planted::P3NoOpOverChosenSlot), Message::Promise { chosen, .. }) = (self.planted, &mut message)
            {
                *chosen = Slot::NONE;
            }
            let EncodedMessage { kind, mut head, body } = codec::encode_message(&message);
            head.extend_from_slice(&body);
            let bytes = head.freeze();
            assert!(bytes.len() <= codec::peer_payload_bytes_max(self.swarm.horizon, limits::BATCH_BYTES_MAX));
            let to = usize::from(to.0) - 1;
            let fate = self.network.send(self.now, index, to, &self.swarm, &mut self.random.network);
            self.counts.messages += 1;
            self.counts.messages_lost += u64::from(fate.lost);
            self.counts.messages_doubled += u64::from(fate.duplicated);
            for at in fate.arrivals {
                self.schedule(at, Event::Message { from: index, to, kind, bytes: bytes.clone() });
            }
        }
        for (caller, answer) in wishes.answers.drain(..) {
            let asked = self.nodes[index].asked.remove(&(caller.connection, caller.request));
            let asked = asked.expect("every command that was taken gets exactly one answer");
            self.oracle.answered(id, asked, &answer)?;
            let connection = usize::try_from(caller.connection).expect("it was an index");
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

    // The disk.

    fn begin_flush(&mut self, index: usize, flush: Flush) {
        let flush = if self.planted == Some(Planted::P15AcknowledgeBeforeDurable) {
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
        let mean = if index == self.swarm.slow_disk { mean * self.swarm.slow_disk_factor } else { mean };
        let random = &mut self.random.disks;
        let stall = if random.f64() < self.swarm.stall_chance {
            self.counts.disk_stalls += 1;
            random.u64(..self.swarm.stall)
        } else {
            0
        };
        mean / 4 + around(random, mean) + stall
    }

    pub(crate) fn written(&mut self, index: usize, life: u64) {
        if self.is_alive(index, life) {
            if let Some(crash) = self.nodes[index].doomed
                && self.random.faults.bool()
            {
                return self.crash(index, crash);
            }
            self.nodes[index].disk.write();
            let delay = self.disk_delay(index, self.swarm.sync_mean);
            self.schedule_in(delay, Event::Synced { node: index, life });
        }
    }

    pub(crate) fn synced(&mut self, index: usize, life: u64) -> Verdict {
        if !self.is_alive(index, life) {
            return Ok(());
        }
        if let Some(crash) = self.nodes[index].doomed {
            self.crash(index, crash);
            return Ok(());
        }
        let node = &mut self.nodes[index];
        let flush = node.disk.sync_written();
        for record in records_in(&flush.buffer[..flush.length], flush.segment, flush.offset) {
            self.oracle.durable(node.id, record)?;
        }
        if self.planted != Some(Planted::P15AcknowledgeBeforeDurable) {
            self.input(index, Input::Flushed(flush));
        }
        if self.nodes[index].disk.is_flushing() {
            self.write_soon(index);
        }
        Ok(())
    }

    pub(crate) fn segment_ready(&mut self, index: usize, life: u64, segment: SegmentId) {
        if self.is_alive(index, life) {
            let node = &mut self.nodes[index];
            node.preparing = None;
            node.disk.make_segment(segment);
            self.input(index, Input::SegmentReady(segment));
        }
    }

    pub(crate) fn log_read(&mut self, index: usize, life: u64, read: LogRead) {
        if self.is_alive(index, life) {
            self.input(index, Input::LogRead(read));
        }
    }
}
