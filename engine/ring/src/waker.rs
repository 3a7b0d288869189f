//! Waking a ring's thread from another one.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Makes [`Ring::enter`](crate::Ring::enter) of the ring it came from return, now or the next time. From any thread.
///
/// Put the work where the ring's thread will look for it, then wake; the thread takes
/// [`Ring::take_woken`](crate::Ring::take_woken), then looks. Wakes that the ring has not seen yet are one wake, and only the
/// first of them is a system call.
#[derive(Clone, Debug)]
pub struct Waker(Arc<Wake>);

impl Waker {
    /// Wakes the ring. Harmless when the ring is gone.
    pub fn wake(&self) {
        // A wake that is under way will be seen after whatever the caller put down before this swap: the ring clears
        // the flag before its thread looks.
        if !self.0.signalled.swap(true, Ordering::AcqRel) {
            // The counter stays below its maximum (the flag lets one write through a reset), so this never waits.
            (&self.0.event).write_all(&1u64.to_ne_bytes()).expect("an eventfd takes a small number");
        }
    }
}

/// What a ring and its wakers share: an eventfd, which the ring reads from whenever it sleeps.
#[derive(Debug)]
pub(crate) struct Wake {
    event: File,
    /// Written to, and the ring has not seen it yet.
    signalled: AtomicBool,
}

impl Wake {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        // Blocking: with EFD_NONBLOCK the ring's read would answer EAGAIN instead of waiting.
        // SAFETY: a system call that takes two numbers.
        let descriptor = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
        if descriptor == -1 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: just made, and nobody else has heard of it.
        let event = unsafe { OwnedFd::from_raw_fd(descriptor) };
        Ok(Arc::new(Self { event: File::from(event), signalled: AtomicBool::new(false) }))
    }

    pub(crate) fn waker(self: &Arc<Self>) -> Waker {
        Waker(Arc::clone(self))
    }

    /// The ring has read the counter: the next wake is a new one.
    pub(crate) fn seen(&self) {
        self.signalled.swap(false, Ordering::AcqRel);
    }

    pub(crate) fn raw(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}
