//! A disk that fails, or stands still, when it is told to: an NBD server of our own over a file.
//!
//! nbdkit's filters fail at a rate or from a moment on; here it is the k-th request from now, once or from then on, and a
//! pause has no end until it is told. The protocol is the fixed newstyle handshake and simple replies, one request at a
//! time (<https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>). A flush does nothing: whoever cuts the power wants
//! another device.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use anyhow::Context;

const GREETING: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
const REQUEST: u32 = 0x2560_9513;
const REPLY: u32 = 0x6744_6698;

/// Fixed newstyle, and no zeros to fill up with.
const HANDSHAKE_FLAGS: u16 = 3;
/// It has flags, and takes flushes.
const EXPORT_FLAGS: u16 = 1 | 4;
const OPTION_ABORT: u32 = 2;
const OPTION_INFO: u32 = 6;
const OPTION_GO: u32 = 7;
const REPLY_ACK: u32 = 1;
const REPLY_INFO: u32 = 3;
const REPLY_UNSUPPORTED: u32 = 1 << 31 | 1;
const INFO_EXPORT: u16 = 0;

const READ: u16 = 0;
const WRITE: u16 = 1;
const DISCONNECT: u16 = 2;
const FLUSH: u16 = 3;

const EIO: u32 = 5;
const EINVAL: u32 = 22;

/// No request is longer.
const REQUEST_BYTES_MAX: usize = 32 << 20;

/// What a request wanted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Wish {
    /// Bytes.
    Read,
    /// To keep bytes.
    Write,
    /// To have kept them.
    Flush,
}

/// What is to happen, and what has.
#[derive(Default)]
struct Plan {
    /// The request before which so many more come fails.
    fails_in: Option<u64>,
    /// And all after it.
    is_sticky: bool,
    /// What the first request wanted that failed.
    failed: Option<Wish>,
    hangs: bool,
    /// Nobody waits any more.
    ended: bool,
}

/// The faults of a disk, to be told from outside.
#[derive(Clone, Default)]
pub struct Faults(Arc<(Mutex<Plan>, Condvar)>);

impl Faults {
    /// The k-th request from now on, counted from 1, fails with EIO; a sticky fault lasts until [`Faults::heal`].
    pub fn fail_at(&self, k: u64, is_sticky: bool) {
        let mut plan = self.plan();
        (plan.fails_in, plan.is_sticky, plan.failed) = (Some(k.saturating_sub(1)), is_sticky, None);
    }

    /// What the first request wanted that failed, once one has.
    #[must_use]
    pub fn failed(&self) -> Option<Wish> {
        self.plan().failed
    }

    /// It works from here on.
    pub fn heal(&self) {
        self.plan().fails_in = None;
    }

    /// It does nothing until it is told to go on.
    pub fn hang(&self) {
        self.plan().hangs = true;
    }

    /// It goes on with what waits.
    pub fn go_on(&self) {
        self.plan().hangs = false;
        self.0.1.notify_all();
    }

    fn end(&self) {
        self.plan().ended = true;
        self.0.1.notify_all();
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.0.lock().expect("nobody panics with the plan in hand")
    }

    /// A request has come: waits while the disk hangs, and says whether it fails.
    fn fails(&self, wish: Wish) -> bool {
        let mut plan = self.plan();
        while plan.hangs && !plan.ended {
            plan = self.0.1.wait(plan).expect("nobody panics with the plan in hand");
        }
        match plan.fails_in {
            None => false,
            Some(0) => {
                plan.failed.get_or_insert(wish);
                if !plan.is_sticky {
                    plan.fails_in = None;
                }
                true
            }
            Some(more) => {
                plan.fails_in = Some(more - 1);
                false
            }
        }
    }
}

/// The server. Dropped, it lets go whoever waits, and ends with its last client.
pub struct FaultyDisk {
    faults: Faults,
}

impl FaultyDisk {
    /// Serves a disk of this size, in a new file, on a socket.
    pub fn start(backing: &Path, bytes: u64, socket: &Path) -> anyhow::Result<Self> {
        let file = File::options().read(true).write(true).create_new(true).open(backing);
        let file = Arc::new(file.with_context(|| format!("cannot make {}", backing.display()))?);
        file.set_len(bytes).context("cannot size a disk")?;
        let listener = UnixListener::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
        let faults = Faults::default();
        let told = faults.clone();
        // They end with the process at the latest: a listener has no other end.
        std::thread::Builder::new().name("faulty-disk".to_owned()).spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                let (file, faults) = (Arc::clone(&file), told.clone());
                std::thread::spawn(move || {
                    if let Err(error) = serve(client, &file, bytes, &faults)
                        && error.kind() != io::ErrorKind::UnexpectedEof
                    {
                        eprintln!("synod-torture: a faulty disk's client: {error}");
                    }
                });
            }
        })?;
        Ok(Self { faults })
    }

    /// To make it fail.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.faults
    }
}

impl Drop for FaultyDisk {
    fn drop(&mut self) {
        self.faults.end();
    }
}

fn serve(mut client: UnixStream, file: &File, bytes: u64, faults: &Faults) -> io::Result<()> {
    if !greet(&mut client, bytes)? {
        return Ok(());
    }
    let mut data = Vec::new();
    loop {
        let mut head = [0; 28];
        client.read_exact(&mut head)?;
        if u32_at(&head, 0) != REQUEST {
            return Err(io::Error::other("not a request"));
        }
        let (kind, handle) = (u16::from_be_bytes([head[6], head[7]]), &head[8..16]);
        let (offset, length) = (u64_at(&head, 16), u32_at(&head, 24) as usize);
        if kind == DISCONNECT {
            return Ok(());
        }
        let is_within = offset.checked_add(length as u64).is_some_and(|end| end <= bytes);
        if length > REQUEST_BYTES_MAX {
            return Err(io::Error::other("a request that is too long"));
        }
        data.resize(if kind == FLUSH { 0 } else { length }, 0);
        if kind == WRITE {
            client.read_exact(&mut data)?;
        }
        let (wish, error) = match kind {
            READ | WRITE if !is_within => (Wish::Read, EINVAL),
            READ => (Wish::Read, 0),
            WRITE => (Wish::Write, 0),
            FLUSH => (Wish::Flush, 0),
            _ => (Wish::Read, EINVAL),
        };
        let error = if error == 0 && faults.fails(wish) { EIO } else { error };
        if error == 0 {
            match wish {
                Wish::Read => file.read_exact_at(&mut data, offset)?,
                Wish::Write => file.write_all_at(&data, offset)?,
                Wish::Flush => {}
            }
        }
        let mut reply = Vec::with_capacity(16 + data.len());
        reply.extend(REPLY.to_be_bytes());
        reply.extend(error.to_be_bytes());
        reply.extend(handle);
        if kind == READ && error == 0 {
            reply.extend(&data);
        }
        client.write_all(&reply)?;
    }
}

/// Whether the client wants the disk now.
fn greet(client: &mut UnixStream, bytes: u64) -> io::Result<bool> {
    client.write_all(&[&GREETING.to_be_bytes()[..], &OPTION.to_be_bytes(), &HANDSHAKE_FLAGS.to_be_bytes()].concat())?;
    client.read_exact(&mut [0; 4])?;
    loop {
        let mut head = [0; 16];
        client.read_exact(&mut head)?;
        if u64_at(&head, 0) != OPTION {
            return Err(io::Error::other("not an option"));
        }
        let (option, length) = (u32_at(&head, 8), u32_at(&head, 12));
        io::copy(&mut Read::by_ref(client).take(length.into()), &mut io::sink())?;
        let mut answer = |kind: u32, data: &[u8]| {
            let length = data.len() as u32;
            let head =
                [&OPTION_REPLY.to_be_bytes()[..], &option.to_be_bytes(), &kind.to_be_bytes(), &length.to_be_bytes()];
            client.write_all(&[&head.concat()[..], data].concat())
        };
        match option {
            OPTION_GO | OPTION_INFO => {
                let info = [&INFO_EXPORT.to_be_bytes()[..], &bytes.to_be_bytes(), &EXPORT_FLAGS.to_be_bytes()].concat();
                answer(REPLY_INFO, &info)?;
                answer(REPLY_ACK, &[])?;
                if option == OPTION_GO {
                    return Ok(true);
                }
            }
            OPTION_ABORT => return answer(REPLY_ACK, &[]).map(|()| false),
            _ => answer(REPLY_UNSUPPORTED, &[])?,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_be_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kth_request_fails_once_or_from_then_on() {
        for (is_sticky, expected) in [(false, [false, false, true, false]), (true, [false, false, true, true])] {
            let faults = Faults::default();
            faults.fail_at(3, is_sticky);
            assert_eq!([Wish::Read, Wish::Write, Wish::Flush, Wish::Read].map(|wish| faults.fails(wish)), expected);
            assert_eq!(faults.failed(), Some(Wish::Flush));
            faults.heal();
            assert!(!faults.fails(Wish::Write));
        }
    }

    #[test]
    fn what_hangs_goes_on_when_it_is_told() {
        let faults = Faults::default();
        faults.hang();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| faults.fails(Wish::Flush));
            std::thread::sleep(std::time::Duration::from_millis(20));
            assert!(!waits.is_finished());
            faults.go_on();
            assert!(!waits.join().expect("it does not panic"));
        });
    }
}
