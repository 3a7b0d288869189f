//! The ring: operations in, one entry to the kernel a turn, completions out.
//!
//! It owns the kernel's queues and, in its slots, all that operations in flight use. See the crate's page for the
//! invariants that the unsafe blocks below cite.

use std::marker::PhantomData;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, mem, ptr};

use bytes::{Bytes, BytesMut};
use io_uring::types::{Fd, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};

use crate::aligned::AlignedBuffer;
use crate::handle::Handle;
use crate::outcome::{Completion, FlushError, Outcome};
use crate::setup::{self, Options, SetupError};
use crate::slots::{Address, Flushing, Gather, Key, Operation, Sending, Slots, Ticket};
use crate::waker::{Wake, Waker};

/// An io_uring for one thread. `T` is the caller's name for an operation; it comes back with the completion.
///
/// Every push returns at once and asks nothing of the kernel; [`Ring::enter`] submits what was pushed and waits. The
/// number of operations in flight is bounded by [`Options::operations_max`]: pushing beyond panics.
///
/// Dropping a ring cancels what is in flight and waits for it to end (at most some seconds; then it leaks the memory).
pub struct Ring<T> {
    uring: IoUring,
    slots: Slots<T>,
    wake: Arc<Wake>,
    /// The read on `wake` is in flight, into the spare capacity of `counter`.
    wake_armed: bool,
    counter: BytesMut,
    woken: bool,
    /// For sends of several pieces; as many as were ever in flight at once.
    #[expect(clippy::vec_box, reason = "their addresses are the kernel's while a send is in flight")]
    gathers: Vec<Box<Gather>>,
    /// Completion entries taken off the queue and not yet looked at; empty between turns, kept for its memory.
    reaped: Vec<cqueue::Entry>,
    /// Submission entries pushed since the beginning; those still in the queue are the last of them.
    pushed: u64,
    enters: u64,
    /// What went wrong in a nudge: the next `enter` says so.
    nudge_failed: Option<io::Error>,
    /// Being dropped: nothing is sent on, the waker is not armed again.
    closing: bool,
    cancels_in_flight: u32,
    /// The kernel may hold memory of operations that will not complete: never free any.
    abandoned: bool,
    drop_patience: Duration,
    /// Not `Send`: the kernel takes submissions from the thread that made the ring alone (SINGLE_ISSUER).
    _one_thread: PhantomData<*const ()>,
}

impl<T> Ring<T> {
    /// A ring for this thread, in the best mode this kernel has.
    pub fn new(options: Options) -> Result<Self, SetupError> {
        let uring = setup::ring(options)?;
        Self::over(uring, options).map_err(SetupError::Other)
    }

    fn over(uring: IoUring, options: Options) -> io::Result<Self> {
        Ok(Self {
            uring,
            slots: Slots::new(options.operations_max),
            wake: Wake::new()?,
            wake_armed: false,
            counter: BytesMut::with_capacity(COUNTER_BYTES),
            woken: false,
            gathers: Vec::new(),
            reaped: Vec::new(),
            pushed: 0,
            enters: 0,
            nudge_failed: None,
            closing: false,
            cancels_in_flight: 0,
            abandoned: false,
            drop_patience: DROP_PATIENCE,
            _one_thread: PhantomData,
        })
    }

    /// Something to wake this ring with from other threads. A wake makes [`Ring::enter`] return, perhaps without a
    /// completion; [`Ring::take_woken`] tells.
    pub fn waker(&self) -> Waker {
        self.wake.waker()
    }

    /// Whether a [`Waker`] has woken this ring since this was last asked.
    pub fn take_woken(&mut self) -> bool {
        mem::take(&mut self.woken)
    }

    /// How many operations are in flight: pushed, and not handed out as completions.
    pub fn in_flight(&self) -> usize {
        self.slots.len()
    }

    /// How many system calls the ring has made, for metrics: about one a turn.
    pub fn enters(&self) -> u64 {
        self.enters
    }

    /// Accepts one connection; ends with [`Outcome::Accepted`].
    pub fn accept(&mut self, token: T, listener: &Handle) {
        let key = self.slots.insert(token, Operation::Accept { listener: listener.clone() });
        let entry = opcode::Accept::new(Fd(listener.raw()), ptr::null_mut(), ptr::null_mut()).flags(libc::SOCK_CLOEXEC);
        // SAFETY: no memory is passed, and the slot keeps the listener open.
        unsafe { self.push(&entry.build().user_data(Ticket::Last(key).encode())) }
    }

    /// Connects a socket; ends with [`Outcome::Connected`].
    pub fn connect(&mut self, token: T, socket: &Handle, address: SocketAddr) {
        let (address, length) = raw_address(address);
        let operation = Operation::Connect { socket: socket.clone(), address: Box::new(address) };
        let key = self.slots.insert(token, operation);
        let Some(Operation::Connect { address, .. }) = self.slots.get_mut(key) else { unreachable!("just inserted") };
        let entry = opcode::Connect::new(Fd(socket.raw()), ptr::from_ref(&**address).cast(), length);
        // SAFETY: the slot keeps the address, which is on the heap and as long as `length` says, and the socket.
        unsafe { self.push(&entry.build().user_data(Ticket::Last(key).encode())) }
    }

    /// Receives what there is, at least a byte, into the buffer's spare capacity; ends with [`Outcome::Received`].
    ///
    /// # Panics
    ///
    /// If the buffer has no spare capacity: 0 bytes received would look like the end of the stream.
    pub fn recv(&mut self, token: T, socket: &Handle, buffer: BytesMut) {
        assert!(buffer.capacity() > buffer.len(), "a receive needs room in its buffer");
        let key = self.slots.insert(token, Operation::Recv { socket: socket.clone(), buffer });
        let Some(Operation::Recv { buffer, .. }) = self.slots.get_mut(key) else { unreachable!("just inserted") };
        let room = buffer.spare_capacity_mut();
        let entry = opcode::Recv::new(Fd(socket.raw()), room.as_mut_ptr().cast(), clamped(room.len()));
        // SAFETY: the slot keeps the buffer, whose spare capacity is its own alone, on the heap and not moved by
        // anything that happens to a `BytesMut` in a slot; and the socket.
        unsafe { self.push(&entry.build().user_data(Ticket::Last(key).encode())) }
    }

    /// Sends all the pieces in order; ends with [`Outcome::Sent`], once, when the socket has taken everything.
    ///
    /// One send per connection may be in flight: the kernel does not order two.
    ///
    /// # Panics
    ///
    /// If there is not a single byte to send: the caller has nothing to say and should not.
    pub fn send(&mut self, token: T, socket: &Handle, data: Vec<Bytes>) {
        let total = data.iter().map(Bytes::len).sum();
        assert!(total > 0, "a send of nothing");
        let mut sending =
            Sending { socket: socket.clone(), pieces: data, total, sent: 0, first: 0, offset: 0, gather: None };
        sending.advance(0);
        let key = self.slots.insert(token, Operation::Send(sending));
        self.send_rest(key);
    }

    /// Sends what is left of a send, as much as one entry can carry.
    fn send_rest(&mut self, key: Key) {
        let Some(Operation::Send(sending)) = self.slots.get_mut(key) else { unreachable!("a send in flight") };
        assert!(sending.sent < sending.total);
        let descriptor = Fd(sending.socket.raw());
        // Wait for all: a full socket buffer is the kernel's to wait for, without a turn of ours.
        let flags = libc::MSG_NOSIGNAL | libc::MSG_WAITALL;
        let entry = if let [piece] = &sending.pieces[sending.first..] {
            let rest = &piece[sending.offset..];
            opcode::Send::new(descriptor, rest.as_ptr(), clamped(rest.len())).flags(flags).build()
        } else {
            let gather =
                sending.gather.get_or_insert_with(|| self.gathers.pop().unwrap_or_else(|| Box::new(Gather::new())));
            gather.aim(&sending.pieces[sending.first..], sending.offset);
            opcode::SendMsg::new(descriptor, ptr::from_ref(&gather.header)).flags(flags as u32).build()
        };
        // SAFETY: the slot keeps the pieces (whose bytes nobody can change while one clone of them lives), and the
        // header and vectors on the heap, untouched until the completion; and the socket.
        unsafe { self.push(&entry.user_data(Ticket::Last(key).encode())) }
    }

    /// Writes the first `length` bytes of the buffer at `offset` and syncs them to stable storage; ends with
    /// [`Outcome::Flushed`], once, when both are done.
    ///
    /// Two linked entries in one submission (rule L2). The link makes the sync wait for the write, and cancels it if
    /// the write fails or is short.
    ///
    /// # Panics
    ///
    /// If `length` is 0 or more than the buffer has.
    pub fn write_durably(&mut self, token: T, file: &Handle, offset: u64, buffer: AlignedBuffer, length: usize) {
        assert!(length > 0, "a flush of nothing");
        assert!(length <= buffer.len(), "a flush of {length} bytes from a buffer of {}", buffer.len());
        let length = transfer_length(length);
        // Both or neither: were the queue submitted between the two, the sync would not wait for the write.
        self.make_room(2);
        let sync_at = self.pushed + 1;
        let flushing = Flushing { file: file.clone(), buffer, offset, length, sync_at };
        let key = self.slots.insert(token, Operation::Flush(flushing));
        let Some(Operation::Flush(Flushing { buffer, .. })) = self.slots.get_mut(key) else {
            unreachable!("just inserted")
        };
        // The write completes silently unless it fails, and then the sync does: one completion, so one wake-up, either
        // way. IO_LINK and never HARDLINK: a short write must break the chain.
        let write = opcode::Write::new(Fd(file.raw()), buffer.as_ptr(), length)
            .offset(offset)
            .build()
            .flags(squeue::Flags::IO_LINK | squeue::Flags::SKIP_SUCCESS)
            .user_data(Ticket::FlushWrite(key).encode());
        let sync = opcode::Fsync::new(Fd(file.raw()))
            .flags(FsyncFlags::DATASYNC)
            .build()
            .user_data(Ticket::Last(key).encode());
        // SAFETY: the slot keeps the buffer (on the heap, `length` bytes of it checked above) and the file until the
        // one completion of the pair, which comes after the write is over, as the link says: `check_pairs` stops the
        // process if the kernel parts them.
        unsafe { self.push(&write) };
        // SAFETY: no memory is passed; the slot keeps the file.
        unsafe { self.push(&sync) };
        assert_eq!(self.pushed, sync_at + 1);
    }

    /// Reads up to `length` bytes at `offset` into the start of the buffer; ends with [`Outcome::Read`].
    ///
    /// # Panics
    ///
    /// If `length` is 0 or more than the buffer has.
    pub fn read(&mut self, token: T, file: &Handle, offset: u64, buffer: AlignedBuffer, length: usize) {
        assert!(length > 0, "a read of nothing");
        assert!(length <= buffer.len(), "a read of {length} bytes into a buffer of {}", buffer.len());
        let length = transfer_length(length);
        let key = self.slots.insert(token, Operation::Read { file: file.clone(), buffer });
        let Some(Operation::Read { buffer, .. }) = self.slots.get_mut(key) else { unreachable!("just inserted") };
        let entry = opcode::Read::new(Fd(file.raw()), buffer.as_mut_ptr(), length).offset(offset);
        // SAFETY: the slot keeps the buffer (on the heap, `length` bytes of it checked above) and the file.
        unsafe { self.push(&entry.build().user_data(Ticket::Last(key).encode())) }
    }

    /// The one entry to the kernel of a turn: submits what was pushed, waits for something to complete or for the
    /// timeout, and appends all that completed.
    ///
    /// `None` waits for ever; a timeout of zero does not wait, but still lets the kernel finish what it can. With
    /// completions at hand it does not wait either. It may return early with none: after a signal, a wake, or a part
    /// of a send that goes on.
    ///
    /// # Errors
    ///
    /// Only those that leave the ring of no use, or the machine without memory; the completions there were are handed out.
    ///
    /// # Panics
    ///
    /// If the kernel completes what nobody asked for (rule R3), or parts a linked pair (rule L2).
    pub fn enter(&mut self, timeout: Option<Duration>, completions: &mut Vec<Completion<T>>) -> io::Result<()> {
        self.arm_wake();
        let ready = !self.uring.completion().is_empty();
        let wait = !ready && timeout != Some(Duration::ZERO);
        let entered = self.submit_and_wait(wait, timeout);
        self.reap(completions);
        self.nudge_failed.take().map_or(entered, Err)
    }

    /// In the middle of a long turn: submits what was pushed, and lets the kernel go on where it waits for this thread, as with the
    /// sync behind a write that is done. Makes no system call if there is neither, and does not wait. What has completed is handed
    /// out by [`Ring::enter`], and so is an error.
    pub fn nudge(&mut self) {
        let queue = self.uring.submission();
        let is_due = !queue.is_empty() || queue.taskrun();
        drop(queue);
        if is_due && let Err(error) = self.submit_and_wait(false, None) {
            self.nudge_failed = Some(error);
        }
    }

    fn arm_wake(&mut self) {
        if self.wake_armed || self.closing {
            return;
        }
        let room = self.counter.spare_capacity_mut();
        assert!(room.len() >= COUNTER_BYTES);
        let entry = opcode::Read::new(Fd(self.wake.raw()), room.as_mut_ptr().cast(), COUNTER_BYTES as u32);
        self.wake_armed = true;
        // SAFETY: `counter` is on the heap, nothing else touches it, and it is freed only when `wake_armed` is false,
        // as is `wake`, which keeps the descriptor open.
        unsafe { self.push(&entry.build().user_data(Ticket::Wake.encode())) }
    }

    /// # Safety
    ///
    /// What the entry points to stays valid, and is the kernel's alone to write, until the entry's completion is reaped.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        self.make_room(1);
        // SAFETY: exactly what this function asks of its caller.
        let pushed = unsafe { self.uring.submission().push(entry) };
        pushed.expect("there is room");
        self.pushed += 1;
    }

    /// Room for so many entries in the submission queue, if need be by submitting what is there.
    fn make_room(&mut self, entries: usize) {
        let queue = self.uring.submission();
        if queue.capacity() - queue.len() >= entries {
            return;
        }
        drop(queue);
        // A turn that pushes more than the queue holds. The kernel takes at least one entry each time, or says why not.
        loop {
            self.enters += 1;
            let submitted = self.uring.submit();
            self.check_pairs();
            match submitted {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // No way to say "not now" in a push, and no sense in going on: the caller bounds what it pushes, so
                // this is a kernel out of memory.
                Err(error) => panic!("the kernel takes no more submissions: {error}"),
            }
            let queue = self.uring.submission();
            if queue.capacity() - queue.len() >= entries {
                return;
            }
        }
    }

    fn submit_and_wait(&mut self, wait: bool, timeout: Option<Duration>) -> io::Result<()> {
        let submissions = self.uring.submission().len() as u32;
        let timespec = timeout.map(|timeout| Timespec::from(timeout.min(TIMEOUT_MAX)));
        let arguments = match &timespec {
            Some(timespec) => SubmitArgs::new().timespec(timespec),
            None => SubmitArgs::new(),
        };
        // GETEVENTS even without waiting: with DEFER_TASKRUN nothing completes outside such a call.
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        self.enters += 1;
        // SAFETY: `arguments` is what EXT_ARG announces, and it and the timespec it points to outlive the call. What
        // the entries point to was promised when they were pushed.
        let entered =
            unsafe { self.uring.submitter().enter(submissions, u32::from(wait), flags.bits(), Some(&arguments)) };
        self.check_pairs();
        match entered {
            Ok(_) => Ok(()),
            Err(error) => match error.raw_os_error() {
                // The timeout; a signal; completions that must be reaped first. Entries left over go with the next call.
                Some(libc::ETIME | libc::EINTR | libc::EBUSY) => Ok(()),
                _ => Err(error),
            },
        }
    }

    /// Rule L2: if the kernel took less than it was offered, the cut must not be between a write and its sync. They
    /// are linked only within one submission, and this sync would report a write that it did not wait for.
    fn check_pairs(&mut self) {
        let left = self.uring.submission().len() as u64;
        if left == 0 {
            return;
        }
        let next = self.pushed - left;
        let parted = self
            .slots
            .iter()
            .any(|(_, operation)| matches!(operation, Operation::Flush(Flushing { sync_at, .. }) if *sync_at == next));
        if parted {
            // The write completes silently: its buffer can never be known to be free.
            self.abandoned = true;
            panic!(
                "the kernel took a write without the sync linked to it: it is out of memory, and durability with it"
            );
        }
    }

    fn reap(&mut self, completions: &mut Vec<Completion<T>>) {
        let mut reaped = mem::take(&mut self.reaped);
        reaped.extend(self.uring.completion());
        for entry in reaped.drain(..) {
            self.complete(entry.user_data(), entry.result(), completions);
        }
        self.reaped = reaped;
    }

    fn complete(&mut self, user_data: u64, result: i32, completions: &mut Vec<Completion<T>>) {
        match Ticket::decode(user_data) {
            Some(Ticket::Wake) => {
                assert!(self.wake_armed, "the waker's read completed twice");
                self.wake_armed = false;
                if result == COUNTER_BYTES as i32 {
                    self.wake.seen();
                    self.woken = true;
                } else {
                    assert!(matches!(-result, libc::ECANCELED | libc::EINTR), "the waker's read gave {result}");
                }
                return;
            }
            Some(Ticket::Cancel) => {
                // Whatever the answer: what counts is the completion of what was cancelled.
                self.cancels_in_flight -= 1;
                return;
            }
            Some(Ticket::Last(key)) => {
                if self.sends_on(key, result) {
                    return;
                }
                if let Some((token, operation)) = self.slots.remove(key) {
                    let outcome = self.outcome(operation, result);
                    completions.push(Completion { token, outcome });
                    return;
                }
            }
            Some(Ticket::FlushWrite(key)) => {
                if let Some((token, Operation::Flush(flushing))) = self.slots.remove(key) {
                    completions.push(Completion { token, outcome: write_failed(flushing, result) });
                    return;
                }
            }
            None => {}
        }
        panic!("io_uring completed an operation that nobody asked for: user_data {user_data:#x}, result {result}");
    }

    /// Whether this was a part of a send and the rest is on its way.
    fn sends_on(&mut self, key: Key, result: i32) -> bool {
        let Some(Operation::Send(sending)) = self.slots.get_mut(key) else { return false };
        if result <= 0 {
            return false;
        }
        sending.advance(result as usize);
        if sending.sent == sending.total || self.closing {
            return false;
        }
        self.send_rest(key);
        true
    }

    fn outcome(&mut self, operation: Operation, result: i32) -> Outcome {
        let count = if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(result as usize) };
        match operation {
            Operation::Accept { .. } => Outcome::Accepted(count.map(|_| {
                // SAFETY: an accept's result is a new descriptor, and this is the only place that hears of it.
                unsafe { Handle::adopt(result) }
            })),
            Operation::Connect { .. } => Outcome::Connected(count.map(|_| ())),
            Operation::Recv { mut buffer, .. } => {
                if let Ok(count) = count {
                    assert!(
                        count <= buffer.capacity() - buffer.len(),
                        "the kernel received more than there was room for"
                    );
                    // SAFETY: the kernel has written `count` bytes from the old length on, all within the capacity.
                    unsafe { buffer.set_len(buffer.len() + count) };
                }
                Outcome::Received { buffer, result: count }
            }
            Operation::Send(Sending { mut pieces, total, sent, gather, .. }) => {
                if let Some(gather) = gather {
                    self.gathers.push(gather);
                }
                pieces.clear();
                let result = match count {
                    Err(error) => Err(error),
                    Ok(_) if sent == total => Ok(total),
                    Ok(_) => Err(io::Error::from(io::ErrorKind::WriteZero)),
                };
                Outcome::Sent { pieces, result }
            }
            // The sync's own completion, and none of the write's: the write is done, to the last byte.
            Operation::Flush(Flushing { buffer, offset, length, .. }) => {
                let result = match count {
                    Ok(_) => Ok(()),
                    Err(source) => Err(FlushError::Sync { length: length as usize, offset, source }),
                };
                Outcome::Flushed { buffer, result }
            }
            Operation::Read { buffer, .. } => Outcome::Read { buffer, result: count },
        }
    }

    /// Ends everything in flight. False if the kernel did not give everything back in time.
    fn close(&mut self) -> bool {
        self.closing = true;
        let deadline = Instant::now() + self.drop_patience;
        let mut targets: Vec<u64> = self.slots.iter().map(|(key, operation)| first_entry(key, operation)).collect();
        if self.wake_armed {
            targets.push(Ticket::Wake.encode());
        }
        for target in targets {
            let entry = opcode::AsyncCancel::new(target).build().user_data(Ticket::Cancel.encode());
            self.cancels_in_flight += 1;
            // SAFETY: no memory is passed; the target is a number.
            unsafe { self.push(&entry) };
        }
        let mut ended = Vec::new();
        while self.slots.len() > 0 || self.wake_armed || self.cancels_in_flight > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.enter(Some(left), &mut ended).is_err() {
                return false;
            }
            ended.clear();
        }
        true
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let idle = self.slots.len() == 0 && !self.wake_armed;
        if !self.abandoned && (idle || self.close()) {
            return;
        }
        // Leaked, and for good: the kernel may still read and write it. Closing the ring ends the operations some time
        // later, but tells nobody when.
        mem::forget(mem::replace(&mut self.slots, Slots::new(0)));
        mem::forget(mem::take(&mut self.counter));
        mem::forget(Arc::clone(&self.wake));
    }
}

impl<T> std::fmt::Debug for Ring<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("in_flight", &self.in_flight())
            .field("enters", &self.enters)
            .finish_non_exhaustive()
    }
}

impl Gather {
    fn new() -> Self {
        Self {
            // SAFETY: numbers and pointers, for all of which zero is a value: no name, no vectors, no control data.
            header: unsafe { mem::zeroed() },
            vectors: Vec::new(),
        }
    }

    /// Points at the pieces, the first without its first `offset` bytes, as many as one call takes.
    fn aim(&mut self, pieces: &[Bytes], offset: usize) {
        self.vectors.clear();
        let mut skip = offset;
        for piece in pieces.iter().filter(|piece| !piece.is_empty()).take(VECTORS_MAX) {
            let rest = &piece[mem::take(&mut skip)..];
            self.vectors.push(libc::iovec { iov_base: rest.as_ptr().cast_mut().cast(), iov_len: rest.len() });
        }
        self.header.msg_iov = self.vectors.as_mut_ptr();
        self.header.msg_iovlen = self.vectors.len();
    }
}

/// The write of a linked pair completed, which it does only when it failed; the sync, cancelled, stays silent.
fn write_failed(flushing: Flushing, result: i32) -> Outcome {
    let Flushing { buffer, offset, length, .. } = flushing;
    let length = length as usize;
    let error = if result < 0 {
        FlushError::Write { length, offset, source: io::Error::from_raw_os_error(-result) }
    } else {
        assert_ne!(result as usize, length, "a write that succeeded completed aloud");
        FlushError::Short { written: result as usize, length, offset }
    };
    Outcome::Flushed { buffer, result: Err(error) }
}

/// What to cancel to end an operation: of a linked pair, the write. If that is over, the sync is not waiting for
/// anything but the disk.
fn first_entry(key: Key, operation: &Operation) -> u64 {
    match operation {
        Operation::Flush(_) => Ticket::FlushWrite(key).encode(),
        _ => Ticket::Last(key).encode(),
    }
}

fn raw_address(address: SocketAddr) -> (Address, libc::socklen_t) {
    match address {
        SocketAddr::V4(address) => {
            let v4 = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: address.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
                sin_zero: [0; 8],
            };
            (Address { v4 }, size_of::<libc::sockaddr_in>() as libc::socklen_t)
        }
        SocketAddr::V6(address) => {
            let v6 = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: address.port().to_be(),
                sin6_flowinfo: address.flowinfo(),
                sin6_addr: libc::in6_addr { s6_addr: address.ip().octets() },
                sin6_scope_id: address.scope_id(),
            };
            (Address { v6 }, size_of::<libc::sockaddr_in6>() as libc::socklen_t)
        }
    }
}

/// A stream's transfer may be shorter than asked for: what one entry cannot carry, the next does.
fn clamped(bytes: usize) -> u32 {
    bytes.min(TRANSFER_BYTES_MAX) as u32
}

/// A file's transfer must not be shorter.
fn transfer_length(bytes: usize) -> u32 {
    assert!(bytes <= TRANSFER_BYTES_MAX, "{bytes} bytes in one transfer");
    bytes as u32
}

/// An eventfd's counter.
const COUNTER_BYTES: usize = 8;

/// IOV_MAX: what one sendmsg takes.
const VECTORS_MAX: usize = 1024;

/// Below the kernel's own bound for a single transfer, 2 GiB less a page, and a multiple of any block.
const TRANSFER_BYTES_MAX: usize = 1 << 30;

/// Longer than anyone waits, shorter than the kernel's clock overflows: ten years.
const TIMEOUT_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// How long a dropped ring waits for the kernel. Sockets let go at once; a disk may stall for a while.
const DROP_PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::OpenOptionsExt;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::setup::{Level, Sizes};

    const OPTIONS: Options = Options { entries: 8, operations_max: 64 };

    /// Every level that this kernel has: what older kernels would give us.
    fn rings() -> Vec<(Level, Ring<u32>)> {
        let ring = |level| match setup::ring_at(Sizes::of(OPTIONS), level) {
            Ok(uring) => Some((level, Ring::over(uring, OPTIONS).unwrap())),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
            Err(error) => panic!("{error}"),
        };
        Level::ALL.into_iter().filter_map(ring).collect()
    }

    fn until(ring: &mut Ring<u32>, count: usize) -> Vec<Completion<u32>> {
        let mut completions = Vec::new();
        while completions.len() < count {
            ring.enter(Some(Duration::from_secs(10)), &mut completions).unwrap();
        }
        completions
    }

    #[test]
    fn every_level_sends_receives_and_flushes() {
        for (level, mut ring) in rings() {
            let (here, mut there) = UnixStream::pair().unwrap();
            let socket = Handle::from(here);
            let file = Handle::from(tempfile::tempfile().unwrap());
            ring.write_durably(1, &file, 0, AlignedBuffer::zeroed(4096), 4096);
            ring.recv(2, &socket, BytesMut::with_capacity(16));
            there.write_all(b"ping").unwrap();
            ring.send(3, &socket, vec![Bytes::from_static(b"po"), Bytes::from_static(b"ng")]);
            let mut tokens: Vec<_> = until(&mut ring, 3).into_iter().map(|completion| completion.token).collect();
            tokens.sort();
            assert_eq!(tokens, [1, 2, 3], "{level:?}");
            let mut answer = [0; 4];
            there.read_exact(&mut answer).unwrap();
            assert_eq!(&answer, b"pong", "{level:?}");
            assert_eq!(ring.in_flight(), 0);
        }
    }

    #[test]
    fn every_level_syncs_in_the_middle_of_a_turn() {
        let directory = tempfile::tempdir().unwrap();
        for (level, mut ring) in rings() {
            // Without the page cache, so that the write is over some time after it was submitted.
            let mut options = std::fs::File::options();
            options.create(true).truncate(true).write(true).custom_flags(libc::O_DIRECT);
            let file = Handle::from(options.open(directory.path().join("file")).unwrap());
            ring.write_durably(1, &file, 0, AlignedBuffer::zeroed(4096), 4096);
            let started = Instant::now();
            while ring.uring.completion().is_empty() {
                ring.nudge();
                assert!(started.elapsed() < Duration::from_secs(20), "{level:?}: nothing goes on");
            }
            let flushed = until(&mut ring, 1).pop().map(|completion| completion.outcome);
            assert!(matches!(flushed, Some(Outcome::Flushed { result: Ok(()), .. })), "{level:?}");
            let enters = ring.enters();
            ring.nudge();
            assert_eq!(ring.enters(), enters, "{level:?}: there is nothing to go on with");
        }
    }

    #[test]
    fn every_level_reports_a_failed_flush_once() {
        for (level, mut ring) in rings() {
            // A write that fails at once; more than once, to see that nothing of a failed pair comes late.
            let full = Handle::from(std::fs::File::options().write(true).open("/dev/full").unwrap());
            let file = Handle::from(tempfile::tempfile().unwrap());
            for round in 0..10 {
                ring.write_durably(round, &full, 0, AlignedBuffer::zeroed(4096), 4096);
                ring.write_durably(round, &file, 0, AlignedBuffer::zeroed(4096), 4096);
                let mut good = 0;
                for completion in until(&mut ring, 2) {
                    let Outcome::Flushed { result, .. } = completion.outcome else { panic!("{completion:?}") };
                    match result {
                        Ok(()) => good += 1,
                        Err(FlushError::Write { source, .. }) => assert_eq!(source.raw_os_error(), Some(libc::ENOSPC)),
                        Err(error) => panic!("{level:?}: {error}"),
                    }
                }
                assert_eq!(good, 1);
            }
            assert_eq!(ring.in_flight(), 0);
        }
    }

    #[test]
    fn every_level_gives_everything_back_when_dropped() {
        for (level, mut ring) in rings() {
            let (here, _there) = UnixStream::pair().unwrap();
            let socket = Handle::from(here);
            for token in 0..60 {
                ring.recv(token, &socket, BytesMut::with_capacity(64));
            }
            ring.enter(Some(Duration::ZERO), &mut Vec::new()).unwrap();
            ring.recv(61, &socket, BytesMut::with_capacity(64)); // pushed, never submitted by us
            assert!(ring.close(), "{level:?}");
            assert_eq!(ring.in_flight(), 0);
        }
    }

    #[test]
    fn what_the_kernel_keeps_is_leaked() {
        let (here, mut there) = UnixStream::pair().unwrap();
        let socket = Handle::from(here);
        let mut ring = Ring::new(OPTIONS).unwrap();
        ring.recv(0, &socket, BytesMut::with_capacity(64));
        ring.enter(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        ring.drop_patience = Duration::ZERO;
        drop(ring);
        let _ = there.write_all(b"late");
        // The leaked slot still holds its clone.
        there.set_nonblocking(true).unwrap();
        assert!(matches!(there.read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock));
    }

    #[test]
    #[should_panic(expected = "nobody asked for")]
    fn an_unknown_completion_stops_the_process() {
        let mut ring: Ring<u32> = Ring::new(OPTIONS).unwrap();
        let entry = opcode::Nop::new().build().user_data(7);
        // SAFETY: a no-op uses no memory.
        unsafe { ring.push(&entry) };
        ring.enter(None, &mut Vec::new()).unwrap();
    }

    #[test]
    #[should_panic(expected = "without the sync")]
    fn a_parted_pair_stops_the_process() {
        let mut ring: Ring<u32> = Ring::new(OPTIONS).unwrap();
        let file = Handle::from(tempfile::tempfile().unwrap());
        ring.write_durably(0, &file, 0, AlignedBuffer::zeroed(1), 4096);
        // What a kernel without memory for the second half does.
        // SAFETY: as in `submit_and_wait`; no arguments are announced.
        unsafe { ring.uring.submitter().enter::<libc::sigset_t>(1, 0, 0, None) }.unwrap();
        ring.check_pairs();
    }

    #[test]
    fn pairs_stay_together_however_full_the_queue_is() {
        let mut ring: Ring<u32> = Ring::new(OPTIONS).unwrap();
        let file = Handle::from(tempfile::tempfile().unwrap());
        // A queue of eight, an odd entry first (the waker's read is another): each pair meets every place in the queue.
        for round in 0..20 {
            let (here, mut there) = UnixStream::pair().unwrap();
            there.write_all(b"x").unwrap();
            for _ in 0..round % 3 {
                ring.read(0, &file, 0, AlignedBuffer::zeroed(1), 1);
            }
            for token in 0..20 {
                ring.write_durably(token, &file, 0, AlignedBuffer::zeroed(1), 4096);
            }
            ring.recv(0, &Handle::from(here), BytesMut::with_capacity(1));
            for completion in until(&mut ring, 21 + round % 3) {
                if let Outcome::Flushed { result, .. } = completion.outcome {
                    result.unwrap();
                }
            }
        }
        assert_eq!(ring.in_flight(), 0);
    }
}
