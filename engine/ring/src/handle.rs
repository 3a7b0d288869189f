//! An open file or socket that the caller and the operations in flight own together.

use std::fs::File;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;

/// An open file or socket. Clones share it; it is closed with the last one, and the ring holds one for each operation
/// in flight.
///
/// Dropping a socket's handle therefore does not end a receive that is waiting on it: [`Handle::shutdown`] does.
///
/// Sockets stay in blocking mode, as `std` makes them: the ring waits inside the kernel, the thread does not. On a
/// non-blocking socket an operation that would wait completes with `WouldBlock` instead.
#[derive(Clone, Debug)]
pub struct Handle(Arc<OwnedFd>);

impl Handle {
    /// Ends both directions of a socket: what waits on it completes (receives with the end of the stream, sends and
    /// accepts with an error), and the peer sees the end. Nothing to do on a socket that is not connected.
    pub fn shutdown(&self) {
        // SAFETY: a system call on a descriptor that `self` keeps open; no memory is passed.
        let result = unsafe { libc::shutdown(self.0.as_raw_fd(), libc::SHUT_RDWR) };
        if result == -1 {
            let error = io::Error::last_os_error();
            // Not connected, never or no longer: there is nothing left to end. Anything else means not a socket.
            assert_eq!(error.raw_os_error(), Some(libc::ENOTCONN), "shutdown of {self:?}: {error}");
        }
    }

    /// For the submission entries; valid as long as this handle or a clone of it lives.
    pub(crate) fn raw(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// # Safety
    ///
    /// `descriptor` is open and nobody else owns it.
    pub(crate) unsafe fn adopt(descriptor: RawFd) -> Self {
        // SAFETY: exactly what this function asks of its caller.
        Self::from(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

impl AsFd for Handle {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Handle {
    fn from(descriptor: OwnedFd) -> Self {
        Self(Arc::new(descriptor))
    }
}

macro_rules! from_owned {
    ($($source:ty),*) => {
        $(impl From<$source> for Handle {
            fn from(source: $source) -> Self {
                Self::from(OwnedFd::from(source))
            }
        })*
    };
}

from_owned!(File, TcpListener, TcpStream, UnixListener, UnixStream);
