//! The ring against the real kernel: real files, real sockets.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use synod_ring::{AlignedBuffer, BLOCK_BYTES, Completion, FlushError, Handle, Options, Outcome, Ring};

const PATIENCE: Duration = Duration::from_secs(10);

fn ring() -> Ring<&'static str> {
    Ring::new(Options::default()).unwrap()
}

/// The next completion; there must be exactly one.
fn one(ring: &mut Ring<&'static str>) -> (&'static str, Outcome) {
    let mut completions = Vec::new();
    let start = Instant::now();
    while completions.is_empty() {
        assert!(start.elapsed() < PATIENCE, "nothing completes");
        ring.enter(Some(PATIENCE), &mut completions).unwrap();
    }
    assert_eq!(completions.len(), 1, "{completions:?}");
    let Completion { token, outcome } = completions.remove(0);
    (token, outcome)
}

fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let here = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (here, listener.accept().unwrap().0)
}

fn filled(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|index| (index % 251) as u8).collect()
}

#[test]
fn a_durable_write_is_read_back_past_the_cache() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .custom_flags(libc::O_DIRECT)
        .open(directory.path().join("log"))
        .unwrap();
    let file = Handle::from(file);
    let mut ring = ring();
    let mut buffer = AlignedBuffer::zeroed(3 * BLOCK_BYTES);
    buffer.copy_from_slice(&filled(3 * BLOCK_BYTES));
    ring.write_durably("flush", &file, 4096, buffer, 2 * BLOCK_BYTES);
    assert_eq!(ring.in_flight(), 1);
    let ("flush", Outcome::Flushed { buffer, result: Ok(()) }) = one(&mut ring) else { panic!() };
    assert_eq!(&buffer[..], filled(3 * BLOCK_BYTES));
    assert_eq!(ring.in_flight(), 0);

    ring.read("read", &file, 4096, AlignedBuffer::zeroed(3 * BLOCK_BYTES), 3 * BLOCK_BYTES);
    let ("read", Outcome::Read { buffer, result: Ok(count) }) = one(&mut ring) else { panic!() };
    assert_eq!(count, 2 * BLOCK_BYTES, "the third block was never written");
    assert_eq!(&buffer[..count], &filled(3 * BLOCK_BYTES)[..count]);
}

#[test]
fn a_flush_says_which_part_failed() {
    let mut ring = ring();
    let reading_only = Handle::from(File::open("/dev/null").unwrap());
    ring.write_durably("flush", &reading_only, 0, AlignedBuffer::zeroed(1), 4096);
    let ("flush", Outcome::Flushed { result: Err(error), .. }) = one(&mut ring) else { panic!() };
    assert!(
        matches!(&error, FlushError::Write { source, .. } if source.raw_os_error() == Some(libc::EBADF)),
        "{error:?}"
    );

    let full = Handle::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    ring.write_durably("flush", &full, 0, AlignedBuffer::zeroed(1), 4096);
    let ("flush", Outcome::Flushed { result: Err(error), .. }) = one(&mut ring) else { panic!() };
    assert!(
        matches!(&error, FlushError::Write { source, .. } if source.raw_os_error() == Some(libc::ENOSPC)),
        "{error:?}"
    );

    // A device that takes the write and knows no sync.
    let null = Handle::from(OpenOptions::new().write(true).open("/dev/null").unwrap());
    ring.write_durably("flush", &null, 0, AlignedBuffer::zeroed(1), 4096);
    let ("flush", Outcome::Flushed { result: Err(error), .. }) = one(&mut ring) else { panic!() };
    assert!(matches!(&error, FlushError::Sync { .. }), "{error:?}");
    assert_eq!(error.to_string(), "syncing 4096 bytes written at 0");
}

#[test]
fn a_short_write_is_a_failed_flush() {
    // A file in memory that may not grow beyond its one page: of two pages, one is written.
    // SAFETY: a name that ends in zero; the descriptor is new and ours.
    let file = unsafe {
        let descriptor = libc::memfd_create(c"short".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC);
        assert!(descriptor >= 0);
        assert_eq!(libc::ftruncate(descriptor, 4096), 0);
        assert_eq!(libc::fcntl(descriptor, libc::F_ADD_SEALS, libc::F_SEAL_GROW), 0);
        Handle::from(OwnedFd::from_raw_fd(descriptor))
    };
    let mut ring = ring();
    for _ in 0..10 {
        ring.write_durably("flush", &file, 0, AlignedBuffer::zeroed(8192), 8192);
        let ("flush", Outcome::Flushed { result: Err(error), .. }) = one(&mut ring) else { panic!() };
        assert!(matches!(error, FlushError::Short { written: 4096, length: 8192, offset: 0 }), "{error:?}");
    }
    ring.write_durably("flush", &file, 0, AlignedBuffer::zeroed(4096), 4096);
    let ("flush", Outcome::Flushed { result: Ok(()), .. }) = one(&mut ring) else { panic!() };
}

#[test]
fn accepts_connects_and_talks() {
    for address in ["127.0.0.1:0", "[::1]:0"] {
        let listener = match TcpListener::bind(address) {
            Ok(listener) => listener,
            Err(error) if address.starts_with('[') => {
                eprintln!("no IPv6 here: {error}");
                continue;
            }
            Err(error) => panic!("{error}"),
        };
        let address = listener.local_addr().unwrap();
        let listener = Handle::from(listener);
        let mut ring = ring();
        ring.accept("accept", &listener);
        let domain = if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: a system call on numbers; the descriptor is new and ours.
        let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(domain, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0)) };
        let socket = Handle::from(socket);
        ring.connect("connect", &socket, address);
        let mut accepted = None;
        for _ in 0..2 {
            let mut completions = Vec::new();
            while completions.is_empty() {
                ring.enter(Some(PATIENCE), &mut completions).unwrap();
            }
            for completion in completions {
                match completion.outcome {
                    Outcome::Accepted(Ok(handle)) => accepted = Some(handle),
                    Outcome::Connected(Ok(())) => {}
                    outcome => panic!("{outcome:?}"),
                }
            }
            if accepted.is_some() && ring.in_flight() == 0 {
                break;
            }
        }
        let accepted = accepted.unwrap();
        ring.send("send", &accepted, vec![Bytes::from_static(b"hello")]);
        let ("send", Outcome::Sent { pieces, result: Ok(5) }) = one(&mut ring) else { panic!() };
        assert!(pieces.is_empty());
        let mut buffer = BytesMut::with_capacity(64);
        buffer.extend_from_slice(b"> ");
        ring.recv("recv", &socket, buffer);
        let ("recv", Outcome::Received { buffer, result: Ok(5) }) = one(&mut ring) else { panic!() };
        assert_eq!(&buffer[..], b"> hello");
        // The end of the stream.
        drop(accepted);
        ring.recv("recv", &socket, buffer);
        let ("recv", Outcome::Received { buffer, result: Ok(0) }) = one(&mut ring) else { panic!() };
        assert_eq!(&buffer[..], b"> hello");
    }
}

#[test]
fn a_refused_connection_is_an_error() {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    // SAFETY: a system call on numbers; the descriptor is new and ours.
    let socket = unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0)) };
    let mut ring = ring();
    ring.connect("connect", &Handle::from(socket), address);
    let ("connect", Outcome::Connected(Err(error))) = one(&mut ring) else { panic!() };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

#[test]
fn many_pieces_arrive_whole_and_in_order() {
    let whole = filled(9_000_000);
    // More pieces than one sendmsg takes, empty ones between them, far more bytes than a socket buffers.
    let many: Vec<Bytes> = whole.chunks(3000).flat_map(|piece| [Bytes::new(), Bytes::copy_from_slice(piece)]).collect();
    let few = vec![Bytes::copy_from_slice(&whole)];
    for pieces in [many, few] {
        let (here, mut there) = tcp_pair();
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            thread::sleep(Duration::from_millis(50)); // let the buffers fill first
            there.read_to_end(&mut all).unwrap();
            all
        });
        let socket = Handle::from(here);
        let mut ring = ring();
        ring.send("send", &socket, pieces);
        let ("send", Outcome::Sent { pieces, result: Ok(count) }) = one(&mut ring) else { panic!() };
        assert_eq!(count, whole.len());
        assert!(pieces.is_empty());
        assert!(pieces.capacity() > 0, "the vector comes back for reuse");
        socket.shutdown();
        assert!(reader.join().unwrap() == whole);
    }
}

#[test]
fn a_send_to_a_closed_peer_fails_without_a_signal() {
    let (here, there) = tcp_pair();
    let socket = Handle::from(here);
    drop(there);
    let mut ring = ring();
    let mut failed = false;
    // The first may still find room in the socket's buffer.
    for _ in 0..10 {
        ring.send("send", &socket, vec![Bytes::from_static(b"x"), Bytes::from_static(b"y")]);
        let ("send", Outcome::Sent { result, .. }) = one(&mut ring) else { panic!() };
        failed |= result.is_err();
    }
    assert!(failed);
}

#[test]
fn shutdown_ends_what_waits() {
    let (here, _there) = tcp_pair();
    let socket = Handle::from(here);
    let listener = Handle::from(TcpListener::bind("127.0.0.1:0").unwrap());
    let mut ring = ring();
    ring.recv("recv", &socket, BytesMut::with_capacity(64));
    ring.send("send", &socket, vec![Bytes::from(filled(50_000_000))]);
    ring.accept("accept", &listener);
    let mut completions = Vec::new();
    ring.enter(Some(Duration::from_millis(100)), &mut completions).unwrap();
    assert!(completions.is_empty(), "{completions:?}");
    socket.shutdown();
    listener.shutdown();
    socket.shutdown(); // again is harmless
    while completions.len() < 3 {
        ring.enter(Some(PATIENCE), &mut completions).unwrap();
    }
    for Completion { token, outcome } in completions {
        match outcome {
            Outcome::Received { result, .. } => assert_eq!(result.unwrap(), 0),
            Outcome::Sent { result, .. } => assert!(result.is_err()),
            Outcome::Accepted(result) => assert!(result.is_err()),
            outcome => panic!("{token}: {outcome:?}"),
        }
    }
}

#[test]
fn a_waker_wakes_from_another_thread() {
    let mut ring = ring();
    let waker = ring.waker();
    for _ in 0..100 {
        assert!(!ring.take_woken());
        let waker = waker.clone();
        let other = thread::spawn(move || {
            waker.wake();
            waker.wake();
        });
        let mut woken = false;
        let start = Instant::now();
        while !woken {
            ring.enter(None, &mut Vec::new()).unwrap();
            woken = ring.take_woken();
        }
        assert!(start.elapsed() < PATIENCE);
        other.join().unwrap();
        // The second wake may have come after the first was seen.
        ring.enter(Some(Duration::from_millis(1)), &mut Vec::new()).unwrap();
        ring.take_woken();
    }
    // Before the ring sleeps is as good as during.
    waker.wake();
    ring.enter(None, &mut Vec::new()).unwrap();
    assert!(ring.take_woken());
    drop(ring);
    waker.wake(); // nobody listens, nothing happens
}

#[test]
fn no_wake_is_lost() {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    const COUNT: u64 = 50_000;
    let mut ring = ring();
    let waker = ring.waker();
    let work = Arc::new(AtomicU64::new(0));
    let theirs = Arc::clone(&work);
    let other = thread::spawn(move || {
        for _ in 0..COUNT {
            theirs.fetch_add(1, Ordering::Release);
            waker.wake();
        }
    });
    let mut done = 0;
    while done < COUNT {
        ring.enter(None, &mut Vec::new()).unwrap();
        assert!(ring.take_woken());
        done = work.load(Ordering::Acquire);
    }
    other.join().unwrap();
}

#[test]
fn a_timeout_returns() {
    let (here, _there) = UnixStream::pair().unwrap();
    let socket = Handle::from(here);
    let mut ring = ring();
    ring.recv("recv", &socket, BytesMut::with_capacity(64));
    let mut completions = Vec::new();
    for milliseconds in [0, 1, 30] {
        let timeout = Duration::from_millis(milliseconds);
        let start = Instant::now();
        ring.enter(Some(timeout), &mut completions).unwrap();
        assert!(start.elapsed() >= timeout);
        assert!(start.elapsed() < timeout + Duration::from_secs(1));
        assert!(completions.is_empty());
    }
    assert_eq!(ring.enters(), 3);
    assert_eq!(ring.in_flight(), 1);
}

#[test]
fn zero_still_lets_the_kernel_finish() {
    let (here, mut there) = UnixStream::pair().unwrap();
    let socket = Handle::from(here);
    let mut ring = ring();
    let mut completions = Vec::new();
    ring.recv("recv", &socket, BytesMut::with_capacity(64));
    ring.enter(Some(Duration::ZERO), &mut completions).unwrap();
    assert!(completions.is_empty());
    there.write_all(b"x").unwrap();
    ring.enter(Some(Duration::ZERO), &mut completions).unwrap();
    assert_eq!(completions.len(), 1);
}

#[test]
fn the_longest_timeout_is_not_an_error() {
    let mut ring = ring();
    ring.waker().wake();
    ring.enter(Some(Duration::MAX), &mut Vec::new()).unwrap();
}

#[test]
fn more_than_the_queue_holds_goes_out_early() {
    let mut ring: Ring<usize> = Ring::new(Options { entries: 8, operations_max: 200 }).unwrap();
    let pairs: Vec<_> = (0..200).map(|_| UnixStream::pair().unwrap()).collect();
    let mut others = Vec::new();
    for (token, (here, there)) in pairs.into_iter().enumerate() {
        ring.recv(token, &Handle::from(here), BytesMut::with_capacity(8));
        others.push(there);
    }
    for other in &mut others {
        other.write_all(b"x").unwrap();
    }
    let mut completions = Vec::new();
    while completions.len() < 200 {
        ring.enter(Some(PATIENCE), &mut completions).unwrap();
    }
    let mut tokens: Vec<_> = completions.iter().map(|completion| completion.token).collect();
    tokens.sort();
    assert_eq!(tokens, (0..200).collect::<Vec<_>>());
}

#[test]
#[should_panic(expected = "operations in flight")]
fn more_in_flight_than_agreed_panics() {
    let (here, _there) = UnixStream::pair().unwrap();
    let socket = Handle::from(here);
    let mut ring: Ring<()> = Ring::new(Options { entries: 8, operations_max: 2 }).unwrap();
    for _ in 0..3 {
        ring.recv((), &socket, BytesMut::with_capacity(8));
    }
}

#[test]
fn dropped_with_everything_in_flight() {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for round in 0..20 {
        let (here, mut there) = tcp_pair();
        let socket = Handle::from(here);
        let listener = Handle::from(TcpListener::bind("127.0.0.1:0").unwrap());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_DIRECT)
            .open(directory.path().join("log"))
            .unwrap();
        let file = Handle::from(file);
        let mut ring = ring();
        ring.recv("recv", &socket, BytesMut::with_capacity(1 << 16));
        ring.send("send", &socket, vec![Bytes::from(filled(20_000_000)), Bytes::from_static(b"end")]);
        ring.accept("accept", &listener);
        for block in 0..8 {
            ring.write_durably("flush", &file, block * 65536, AlignedBuffer::zeroed(65536), 65536);
        }
        if round % 2 == 0 {
            // Otherwise all of it is still in the queue, never seen by the kernel.
            ring.enter(Some(Duration::ZERO), &mut Vec::new()).unwrap();
        }
        let start = Instant::now();
        drop(ring);
        assert!(start.elapsed() < Duration::from_secs(4), "it waited in vain");
        // Nobody is left to receive this, and no memory to receive it into.
        let _ = there.write_all(b"late");
        drop(socket);
        let mut rest = Vec::new();
        there.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = there.read_to_end(&mut rest);
    }
}
