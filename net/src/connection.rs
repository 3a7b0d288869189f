//! One connection's bytes, without the connection: what has arrived in part, and what waits to leave.
//!
//! [`Inbound`] owns the bytes of a frame that is not whole yet, and the buffer to receive the next ones into. Three
//! kinds of drivers use it: a ring that receives into a buffer the kernel owns meanwhile ([`Inbound::buffer_for_recv`]
//! and [`Inbound::received`]), a ring with a shared pool of buffers and a blocking reader, which have the bytes in a
//! place of their own ([`Inbound::visit`]: whole frames are read there, and only a torn one is kept).
//!
//! [`Outbound`] owns what waits to be sent, and what is being sent. One send a connection at a time, for two reasons:
//! the order of bytes, and that everything queued meanwhile goes in one system call (`ceiling.md`: a send an answer
//! costs three quarters of the throughput, or more).
//!
//! Invariants:
//!   - an inbound buffer never holds more than a frame within the limits and one receive;
//!   - an outbound queue never holds more than its bound, what is in flight included;
//!   - in steady state neither allocates: a buffer is used again once the frames or sends that share it are dropped.

use std::collections::VecDeque;

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::{self, Frame, FrameError, FrameId, FrameLimits, FrameRef, HEADER_BYTES, Look, SharedFrame};

/// How much a connection may hold of what arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InboundSizes {
    /// What a receive is given room for when no large frame is under way.
    pub start_bytes: usize,
    /// A buffer that grew above this for a large frame is given back once the frame is gone. Links that carry large
    /// frames all the time set it high; client connections, of which there are many, low.
    pub keep_bytes: usize,
    /// What a frame may be.
    pub limits: FrameLimits,
}

impl InboundSizes {
    /// For a client's connection: many of them, mostly small frames.
    #[must_use]
    pub const fn client(payload_bytes_max: u32) -> InboundSizes {
        InboundSizes { start_bytes: 16 << 10, keep_bytes: 64 << 10, limits: FrameLimits { payload_bytes_max } }
    }

    /// For a peer's connection: few of them, large batches.
    #[must_use]
    pub const fn peer(payload_bytes_max: u32) -> InboundSizes {
        InboundSizes { start_bytes: 256 << 10, keep_bytes: 4 << 20, limits: FrameLimits { payload_bytes_max } }
    }
}

/// What has arrived on a connection and is not a whole frame yet.
#[derive(Debug)]
pub struct Inbound {
    sizes: InboundSizes,
    buffer: BytesMut,
    /// The size of the allocation under `buffer`; its own capacity counts only what lies behind what was taken.
    allocated_bytes: usize,
    /// While the buffer is with the driver: how long it was when it left.
    lent: Option<usize>,
}

impl Inbound {
    /// Nothing has arrived, and nothing is allocated.
    #[must_use]
    pub fn new(sizes: InboundSizes) -> Inbound {
        assert!(sizes.start_bytes >= HEADER_BYTES);
        assert!(sizes.keep_bytes >= sizes.start_bytes);
        Inbound { sizes, buffer: BytesMut::new(), allocated_bytes: 0, lent: None }
    }

    /// The buffer to receive into, behind what it already holds. It comes back by [`Inbound::received`]; meanwhile the
    /// kernel may own it. Whole frames should have been taken before.
    ///
    /// Its spare room is what a frame under way still needs, or `start_bytes` if that is more: so a large frame is
    /// received into one piece of memory of its own size, and the length it claims was checked before.
    pub fn buffer_for_recv(&mut self) -> BytesMut {
        assert!(self.lent.is_none(), "one receive at a time");
        let held = self.buffer.len();
        let wanted = match frame::look(&self.buffer, self.sizes.limits) {
            Ok(Look::Incomplete { bytes_wanted }) => bytes_wanted,
            // A driver that holds frames back, or that has yet to see the error: a receive's worth and no more.
            Ok(Look::Whole { .. }) | Err(_) => held,
        };
        self.make_room(wanted, self.sizes.start_bytes / 4);
        self.lent = Some(held);
        std::mem::take(&mut self.buffer)
    }

    /// The buffer is back, with `bytes` more in it. None: the stream has ended, or the receive was cancelled.
    pub fn received(&mut self, buffer: BytesMut, bytes: usize) {
        let held = self.lent.take().expect("the buffer was lent by buffer_for_recv");
        assert_eq!(buffer.len(), held + bytes, "the driver adds what arrived to the buffer's length, and nothing else");
        self.buffer = buffer;
    }

    /// Copies bytes in. For drivers that cannot receive in place and want [`Inbound::next_frame`].
    pub fn feed(&mut self, arrived: &[u8]) {
        assert!(self.lent.is_none(), "the buffer is with the driver");
        self.make_room(self.buffer.len() + arrived.len(), 0);
        self.buffer.put_slice(arrived);
    }

    /// Takes the next whole frame; its payload shares the buffer.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        frame::decode(&mut self.buffer, self.sizes.limits)
    }

    /// Visits every whole frame in place and takes them all in one go. After an error the connection is to be closed.
    pub fn for_each_frame(&mut self, visit: impl FnMut(FrameRef<'_>)) -> Result<(), FrameError> {
        frame::for_each_frame(&mut self.buffer, self.sizes.limits, visit)
    }

    /// Visits every frame that `arrived` completes, where it lies; only a torn one at its end is copied and kept. After
    /// an error the connection is to be closed.
    pub fn visit(&mut self, mut arrived: &[u8], mut visit: impl FnMut(FrameRef<'_>)) -> Result<(), FrameError> {
        assert!(self.lent.is_none(), "the buffer is with the driver");
        // First the frame that an earlier read tore: its header, then just what it lacks, so that the frames behind it
        // are still read in place.
        while !self.buffer.is_empty() {
            match frame::look(&self.buffer, self.sizes.limits)? {
                Look::Whole { .. } => self.for_each_frame(&mut visit)?,
                Look::Incomplete { bytes_wanted } => {
                    let (lacking, rest) = arrived.split_at(arrived.len().min(bytes_wanted - self.buffer.len()));
                    if lacking.is_empty() {
                        return Ok(());
                    }
                    self.make_room(bytes_wanted, 0);
                    self.buffer.put_slice(lacking);
                    arrived = rest;
                }
            }
        }
        let (visited, result) = frame::visit_frames(arrived, self.sizes.limits, visit);
        let torn = &arrived[visited..];
        if !torn.is_empty() {
            // Also when it is damaged: so every later call says the same, and none takes up in the middle.
            self.make_room(torn.len(), 0);
            self.buffer.put_slice(torn);
        }
        result
    }

    /// How many bytes of an unfinished frame are held.
    #[must_use]
    pub fn held_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// How much memory is held for them.
    #[must_use]
    pub fn allocated_bytes(&self) -> usize {
        self.allocated_bytes
    }

    /// Room for `total` bytes counted from the first held, and for `spare_min` behind what is held.
    fn make_room(&mut self, total: usize, spare_min: usize) {
        let held = self.buffer.len();
        let spare_needed = spare_min.max(total - held);
        let shrink = held == 0 && self.allocated_bytes > self.sizes.keep_bytes;
        // `try_reclaim` moves back to the allocation's start if nobody shares it any more; it never allocates.
        if !shrink && self.buffer.try_reclaim(spare_needed) {
            return;
        }
        // Not `reserve`: it doubles, and a connection's memory is bounded by what its frames are.
        let room = total.max(held + self.sizes.start_bytes);
        let mut larger = BytesMut::with_capacity(room);
        larger.put_slice(&self.buffer);
        self.allocated_bytes = room;
        self.buffer = larger;
    }
}

/// The queue of a connection is full: its other side reads more slowly than we are told to write.
///
/// A server closes the connection then (the client learns from it that it was too slow, and asks again); a link between
/// replicas drops the frame and counts it. Nothing of the refused frame was queued.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("a slow reader: {queued_bytes} bytes wait for it, {bytes_max} may")]
pub struct Full {
    /// What waits or is being sent.
    pub queued_bytes: usize,
    /// The bound.
    pub bytes_max: usize,
}

/// Bodies up to here are copied behind their header; longer ones are sent from where they are. A copy this short costs
/// less than one more piece in the send and one more count of references.
pub const COPIED_BYTES_MAX: usize = 2048;
/// Pieces in one vectored send. The kernel takes 1024.
pub const PIECES_PER_SEND_MAX: usize = 256;
const TAIL_START_BYTES: usize = 4 << 10;
const TAIL_KEEP_BYTES: usize = 256 << 10;

/// What waits to be sent on a connection, and what is being sent.
#[derive(Debug)]
pub struct Outbound {
    /// Ready pieces, in order; `tail` comes after them.
    pieces: VecDeque<Bytes>,
    /// Small frames, one behind the other, as one piece.
    tail: BytesMut,
    /// All of `pieces` and `tail`, and what is in flight.
    queued_bytes: usize,
    /// `Some` while a send is under way.
    in_flight_bytes: Option<usize>,
    /// The vector of the last send, to be used by the next.
    spare: Vec<Bytes>,
    bytes_max: usize,
}

impl Outbound {
    /// An empty queue for at most `bytes_max` bytes, in flight included. That has to be more than the longest frame.
    #[must_use]
    pub fn new(bytes_max: usize) -> Outbound {
        Outbound {
            pieces: VecDeque::new(),
            tail: BytesMut::new(),
            queued_bytes: 0,
            in_flight_bytes: None,
            spare: Vec::new(),
            bytes_max,
        }
    }

    /// Queues a frame whose payload is these parts, copied.
    pub fn append(&mut self, kind: u8, id: FrameId, payload: &[&[u8]]) -> Result<(), Full> {
        let frame_bytes = HEADER_BYTES + payload.iter().map(|part| part.len()).sum::<usize>();
        self.check(frame_bytes)?;
        self.warm_tail();
        frame::append_frame(&mut self.tail, kind, id, payload);
        self.queued_bytes += frame_bytes;
        Ok(())
    }

    /// Queues a frame whose payload `encode` writes in its final place. `encode` may only append.
    pub fn write<R>(&mut self, kind: u8, id: FrameId, encode: impl FnOnce(&mut BytesMut) -> R) -> Result<R, Full> {
        self.check(HEADER_BYTES)?;
        self.warm_tail();
        let start = self.tail.len();
        let result = frame::write_frame(&mut self.tail, kind, id, encode);
        let frame_bytes = self.tail.len() - start;
        // How long it is shows only now.
        if let Err(full) = self.check(frame_bytes) {
            self.tail.truncate(start);
            return Err(full);
        }
        self.queued_bytes += frame_bytes;
        Ok(result)
    }

    /// Queues a frame whose payload is `front`, copied, and then `body`, which is sent from where it is if it is long.
    pub fn append_with_body(&mut self, kind: u8, id: FrameId, front: &[u8], body: &Bytes) -> Result<(), Full> {
        if body.len() <= COPIED_BYTES_MAX {
            return self.append(kind, id, &[front, body]);
        }
        let frame_bytes = HEADER_BYTES + front.len() + body.len();
        self.check(frame_bytes)?;
        self.warm_tail();
        self.tail.put_slice(&frame::encode_header(kind, id, &[front, body]));
        self.tail.put_slice(front);
        self.push_body(body);
        self.queued_bytes += frame_bytes;
        Ok(())
    }

    /// Queues a frame that is encoded already, copied.
    pub fn append_encoded(&mut self, frame: &[u8]) -> Result<(), Full> {
        self.check(frame.len())?;
        self.warm_tail();
        self.tail.put_slice(frame);
        self.queued_bytes += frame.len();
        Ok(())
    }

    /// Queues a frame that others are sent too.
    pub fn append_shared(&mut self, frame: &SharedFrame) -> Result<(), Full> {
        self.check(frame.frame_bytes())?;
        self.warm_tail();
        self.tail.put_slice(frame.head());
        if frame.body().len() <= COPIED_BYTES_MAX {
            self.tail.put_slice(frame.body());
        } else {
            self.push_body(frame.body());
        }
        self.queued_bytes += frame.frame_bytes();
        Ok(())
    }

    /// What to send now, as one vectored send, or `None` if a send is under way or nothing waits. Call it once a turn,
    /// after all of the turn's frames. The pieces come back by [`Outbound::sent`].
    #[must_use]
    pub fn take(&mut self) -> Option<Vec<Bytes>> {
        if self.in_flight_bytes.is_some() || self.queued_bytes == 0 {
            return None;
        }
        let mut pieces = std::mem::take(&mut self.spare);
        pieces.extend(self.pieces.drain(..self.pieces.len().min(PIECES_PER_SEND_MAX - 1)));
        if self.pieces.is_empty() && !self.tail.is_empty() {
            pieces.push(self.tail.split().freeze());
        }
        self.in_flight_bytes = Some(pieces.iter().map(Bytes::len).sum());
        Some(pieces)
    }

    /// The send has ended and the kernel took the first `bytes` of what [`Outbound::take`] gave; what it did not take
    /// goes first in the next send. Hand the vector back as it was given: it is used again.
    pub fn sent(&mut self, mut pieces: Vec<Bytes>, bytes: usize) {
        let in_flight = self.in_flight_bytes.take().expect("a send was under way");
        assert!(bytes <= in_flight, "the kernel takes no more than it was given");
        self.queued_bytes -= bytes;
        if bytes < in_flight {
            let mut taken = bytes;
            let mut left = VecDeque::with_capacity(pieces.len() + self.pieces.len());
            for mut piece in pieces.drain(..) {
                let skip = taken.min(piece.len());
                taken -= skip;
                piece.advance(skip);
                if !piece.is_empty() {
                    left.push_back(piece);
                }
            }
            left.append(&mut self.pieces);
            self.pieces = left;
        }
        // Now, not at the next send: the tail's buffer is free to be used again once these are gone.
        pieces.clear();
        self.spare = pieces;
        if self.queued_bytes == 0 && self.tail.capacity() > TAIL_KEEP_BYTES {
            self.tail = BytesMut::new();
        }
    }

    /// A send is under way: the pieces are the kernel's until it ends.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        self.in_flight_bytes.is_some()
    }

    /// What waits or is being sent.
    #[must_use]
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Forgets everything, for a new connection. What was in flight belongs to the old one, and its end is not to be
    /// reported here.
    pub fn reset(&mut self) {
        self.pieces.clear();
        self.tail.clear();
        self.queued_bytes = 0;
        self.in_flight_bytes = None;
    }

    fn check(&self, frame_bytes: usize) -> Result<(), Full> {
        if self.queued_bytes + frame_bytes > self.bytes_max {
            return Err(Full { queued_bytes: self.queued_bytes, bytes_max: self.bytes_max });
        }
        Ok(())
    }

    /// The first frame of a connection would otherwise grow the tail in many small steps.
    fn warm_tail(&mut self) {
        if self.tail.capacity() == 0 {
            self.tail.reserve(TAIL_START_BYTES);
        }
    }

    /// A long body goes between what the tail held before it and what comes after.
    fn push_body(&mut self, body: &Bytes) {
        self.pieces.push_back(self.tail.split().freeze());
        self.pieces.push_back(body.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZES: InboundSizes =
        InboundSizes { start_bytes: 64, keep_bytes: 256, limits: FrameLimits { payload_bytes_max: 10_000 } };

    fn frames(payloads: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for (n, payload) in payloads.iter().enumerate() {
            frame::append_frame(&mut out, 1, FrameId(n as u64), &[payload]);
        }
        out
    }

    /// What the ring does: the kernel fills spare room, never more than there is.
    fn receive(inbound: &mut Inbound, stream: &mut &[u8]) {
        let mut buffer = inbound.buffer_for_recv();
        let spare = buffer.capacity() - buffer.len();
        assert!(spare > 0);
        let (now, rest) = stream.split_at(spare.min(stream.len()));
        buffer.put_slice(now);
        *stream = rest;
        inbound.received(buffer, now.len());
    }

    #[test]
    fn split_at_each_byte_the_frames_are_the_same() {
        let stream = frames(&[b"one", b"", b"three", &[7; 100]]);
        for cut in 0..=stream.len() {
            let (mut visited, mut owned) = (Vec::new(), Vec::new());
            let mut inbound = Inbound::new(SIZES);
            for part in [&stream[..cut], &stream[cut..]] {
                inbound.visit(part, |frame| visited.push(frame.payload.to_vec())).unwrap();
            }
            assert_eq!(inbound.held_bytes(), 0, "cut at {cut}");
            for part in [&stream[..cut], &stream[cut..]] {
                inbound.feed(part);
                while let Some(frame) = inbound.next_frame().unwrap() {
                    owned.push(frame.payload.to_vec());
                }
            }
            assert_eq!(visited, [b"one".to_vec(), vec![], b"three".to_vec(), vec![7; 100]], "cut at {cut}");
            assert_eq!(owned, visited, "cut at {cut}");
        }
    }

    #[test]
    fn a_large_frame_gets_just_what_it_needs_and_gives_it_back() {
        let stream = frames(&[&[1; 5000]]);
        let mut inbound = Inbound::new(SIZES);
        let mut rest = &stream[..];
        receive(&mut inbound, &mut rest);
        assert_eq!(inbound.allocated_bytes(), 64);
        receive(&mut inbound, &mut rest);
        assert_eq!(inbound.allocated_bytes(), HEADER_BYTES + 5000);
        assert!(rest.is_empty());
        let mut lengths = Vec::new();
        inbound.for_each_frame(|frame| lengths.push(frame.payload.len())).unwrap();
        assert_eq!(lengths, [5000]);
        let buffer = inbound.buffer_for_recv();
        assert_eq!(buffer.capacity(), 64);
        inbound.received(buffer, 0);
        assert_eq!(inbound.allocated_bytes(), 64);
    }

    #[test]
    fn a_frame_over_the_limit_costs_no_memory() {
        let stream = frames(&[&[1; 10_001]]);
        let mut inbound = Inbound::new(SIZES);
        let mut rest = &stream[..];
        receive(&mut inbound, &mut rest);
        let expected = FrameError::TooLong { length: 10_001, max: 10_000 };
        assert_eq!(inbound.next_frame(), Err(expected));
        assert_eq!(inbound.for_each_frame(|_| panic!("visited")), Err(expected));
        drop(inbound.buffer_for_recv());
        assert!(inbound.allocated_bytes() <= 128);

        let mut inbound = Inbound::new(SIZES);
        assert_eq!(inbound.visit(&stream[..HEADER_BYTES], |_| panic!("visited")), Err(expected));
        assert_eq!(inbound.visit(b"more", |_| panic!("visited")), Err(expected));
        assert!(inbound.allocated_bytes() <= 64);
    }

    #[test]
    fn receiving_small_frames_uses_one_buffer_for_ever() {
        let stream = frames(&[b"a", b"b", b"c"]);
        let mut inbound = Inbound::new(InboundSizes { start_bytes: 1024, keep_bytes: 4096, ..SIZES });
        let mut addresses = std::collections::BTreeSet::new();
        for cut in 0..stream.len() {
            for mut part in [&stream[..cut], &stream[cut..]] {
                receive(&mut inbound, &mut part);
                addresses.insert(inbound.buffer.as_ptr() as usize / 2048);
                inbound.for_each_frame(|_| ()).unwrap();
            }
        }
        assert!(addresses.len() <= 2, "{addresses:?}");
        assert_eq!(inbound.allocated_bytes(), 1024);
    }

    fn drain(outbound: &mut Outbound, bytes_a_send: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(pieces) = outbound.take() {
            assert!(outbound.is_sending());
            assert!(outbound.take().is_none(), "one send at a time");
            assert!(pieces.len() <= PIECES_PER_SEND_MAX);
            let all = pieces.concat();
            let taken = all.len().min(bytes_a_send);
            out.extend_from_slice(&all[..taken]);
            outbound.sent(pieces, taken);
        }
        assert_eq!(outbound.queued_bytes(), 0);
        out
    }

    #[test]
    fn frames_leave_in_order_whole_or_in_parts() {
        let long = Bytes::from(vec![9; COPIED_BYTES_MAX + 1]);
        for bytes_a_send in [1, 7, 1000, usize::MAX] {
            let mut outbound = Outbound::new(1 << 20);
            let mut expected = Vec::new();
            for n in 0..300 {
                let id = FrameId(n);
                outbound.append(1, id, &[b"small"]).unwrap();
                frame::append_frame(&mut expected, 1, id, &[b"small"]);
                outbound.append_with_body(2, id, b"front", &long).unwrap();
                frame::append_frame(&mut expected, 2, id, &[b"front", &long]);
                outbound.write(3, id, |out| out.put_slice(b"written")).unwrap();
                frame::append_frame(&mut expected, 3, id, &[b"written"]);
                if bytes_a_send == 1 && n == 2 {
                    break;
                }
            }
            let shared = SharedFrame::new(4, FrameId(0), b"front", long.clone());
            outbound.append_shared(&shared).unwrap();
            frame::append_frame(&mut expected, 4, FrameId(0), &[b"front", &long]);
            assert_eq!(outbound.queued_bytes(), expected.len());
            assert_eq!(drain(&mut outbound, bytes_a_send), expected);
        }
    }

    #[test]
    fn a_full_queue_refuses_and_queues_nothing() {
        let mut outbound = Outbound::new(100);
        outbound.append(1, FrameId(1), &[&[0; 50]]).unwrap();
        let full = Full { queued_bytes: 74, bytes_max: 100 };
        assert_eq!(outbound.append(1, FrameId(2), &[&[0; 50]]), Err(full));
        assert_eq!(outbound.write(1, FrameId(2), |out| out.put_slice(&[0; 50])), Err(full));
        let long = Bytes::from(vec![0; 5000]);
        assert_eq!(outbound.append_with_body(1, FrameId(2), b"", &long), Err(full));
        assert_eq!(outbound.append_shared(&SharedFrame::new(1, FrameId(2), b"", long)), Err(full));
        assert_eq!(full.to_string(), "a slow reader: 74 bytes wait for it, 100 may");
        // What is in flight still counts: a reader that takes nothing cannot make us queue without end.
        let pieces = outbound.take().unwrap();
        assert_eq!(outbound.append(1, FrameId(2), &[&[0; 50]]), Err(full));
        outbound.sent(pieces, 74);
        outbound.append(1, FrameId(2), &[&[0; 50]]).unwrap();
        assert_eq!(drain(&mut outbound, usize::MAX).len(), 74);
    }

    #[test]
    fn sending_small_frames_uses_few_buffers_for_ever() {
        let mut outbound = Outbound::new(1 << 20);
        let mut addresses = std::collections::BTreeSet::new();
        for round in 0..10_000 {
            for _ in 0..10 {
                outbound.append(1, FrameId(round), &[b"small"]).unwrap();
            }
            let pieces = outbound.take().unwrap();
            addresses.insert(pieces[0].as_ptr() as usize / TAIL_START_BYTES);
            let bytes = pieces.iter().map(Bytes::len).sum();
            outbound.sent(pieces, bytes);
        }
        assert!(addresses.len() <= 2, "{addresses:?}");
    }

    proptest! {
        #[test]
        fn however_the_stream_is_cut_the_frames_are_the_same(
            payloads in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..500), 0..10),
            cuts in proptest::collection::vec(1_usize..200, 1..100),
        ) {
            let parts: Vec<&[u8]> = payloads.iter().map(Vec::as_slice).collect();
            let stream = frames(&parts);
            let (mut visited, mut received) = (Vec::new(), Vec::new());
            let (mut visiting, mut receiving) = (Inbound::new(SIZES), Inbound::new(SIZES));
            let mut rest = &stream[..];
            for cut in cuts.iter().cycle() {
                let (mut now, later) = rest.split_at((*cut).min(rest.len()));
                rest = later;
                visiting.visit(now, |frame| visited.push(frame.payload.to_vec())).unwrap();
                while !now.is_empty() {
                    receive(&mut receiving, &mut now);
                    receiving.for_each_frame(|frame| received.push(frame.payload.to_vec())).unwrap();
                }
                if rest.is_empty() {
                    break;
                }
            }
            prop_assert_eq!(&visited, &payloads);
            prop_assert_eq!(&received, &payloads);
        }
    }
}
