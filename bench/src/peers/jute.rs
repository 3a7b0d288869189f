//! ZooKeeper's client protocol, as much of it as a write needs.
//!
//! Every message is a length (4 bytes) and a body; all numbers are big-endian, and strings and buffers are a length and
//! bytes. The first message opens a session; after its answer any number of requests may be under way, and they are
//! answered in order.
//!
//! | message | body |
//! |---|---|
//! | connect | protocol version (int), last zxid seen (long), timeout in ms (int), session (long), password (buffer), read-only (byte) |
//! | connected | protocol version (int), timeout in ms (int), session (long), password (buffer), read-only (byte) |
//! | create | xid (int), 1 (int), path, data, access list, flags (int) |
//! | setData | xid (int), 5 (int), path, data, version (int; -1: any) |
//! | closeSession | xid (int), -11 (int) |
//! | answer | xid (int), zxid (long), error (int), and what was asked for |

use std::collections::VecDeque;
use std::fmt::Write;

use anyhow::{bail, ensure};
use bytes::{Buf, BufMut, BytesMut};

use super::connections::{Answer, Protocol};

const CREATE: i32 = 1;
const SET_DATA: i32 = 5;
const CLOSE_SESSION: i32 = -11;
/// The longest that a server grants by default: twenty ticks.
const SESSION_MS: i32 = 40_000;
const PASSWORD_BYTES: usize = 16;
const ANY_VERSION: i32 = -1;
const ALL_PERMISSIONS: i32 = 31;
/// Longer than any answer to a write, and than what a server sends by default.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

/// One session.
pub(super) struct Session {
    connected: bool,
    next_xid: i32,
    /// The requests under way, in the order in which they are answered, and whose they are.
    waiting: VecDeque<(i32, usize)>,
    path: String,
}

impl Session {
    /// A session, and the message that opens it.
    pub(super) fn open(output: &mut BytesMut) -> Self {
        message(output, |body| {
            body.put_i32(0);
            body.put_i64(0);
            body.put_i32(SESSION_MS);
            body.put_i64(0);
            put_buffer(body, &[0; PASSWORD_BYTES]);
            body.put_u8(0);
        });
        Self { connected: false, next_xid: 1, waiting: VecDeque::new(), path: String::new() }
    }

    /// Makes the worker's node, which must not exist.
    pub(super) fn create(&mut self, worker: usize, output: &mut BytesMut) {
        self.request(worker, CREATE, output, |path, body| {
            put_buffer(body, path);
            put_buffer(body, b"");
            body.put_i32(1);
            body.put_i32(ALL_PERMISSIONS);
            put_buffer(body, b"world");
            put_buffer(body, b"anyone");
            body.put_i32(0);
        });
    }

    fn request(&mut self, worker: usize, kind: i32, output: &mut BytesMut, rest: impl FnOnce(&[u8], &mut BytesMut)) {
        let xid = self.next_xid;
        // Servers keep the negative ones to themselves.
        self.next_xid = self.next_xid.checked_add(1).unwrap_or(1);
        self.path.clear();
        write!(self.path, "/load-{worker:08}").expect("a string takes everything");
        message(output, |body| {
            body.put_i32(xid);
            body.put_i32(kind);
            rest(self.path.as_bytes(), body);
        });
        self.waiting.push_back((xid, worker));
    }

    fn answer(&mut self, mut body: BytesMut) -> anyhow::Result<Option<Answer>> {
        if !self.connected {
            ensure!(body.len() >= 4 + 4 + 8, "the answer to connect has {} bytes", body.len());
            let (_version, timeout, session) = (body.get_i32(), body.get_i32(), body.get_i64());
            ensure!(timeout > 0 && session != 0, "the server grants no session");
            self.connected = true;
            return Ok(None);
        }
        ensure!(body.len() >= 4 + 8 + 4, "an answer of {} bytes", body.len());
        let (xid, _zxid, error) = (body.get_i32(), body.get_i64(), body.get_i32());
        match self.waiting.pop_front() {
            Some((expected, worker)) if expected == xid => {
                let result = if error == 0 { Ok(()) } else { Err(format!("ZooKeeper's error {error}")) };
                Ok(Some(Answer { worker, result }))
            }
            expected => bail!("the answer has xid {xid}, expected is {expected:?}"),
        }
    }
}

impl Protocol for Session {
    fn is_ready(&self) -> bool {
        self.connected
    }

    fn put(&mut self, worker: usize, value: &[u8], output: &mut BytesMut) {
        self.request(worker, SET_DATA, output, |path, body| {
            put_buffer(body, path);
            put_buffer(body, value);
            body.put_i32(ANY_VERSION);
        });
    }

    fn receive(
        &mut self,
        input: &mut BytesMut,
        _output: &mut BytesMut,
        answers: &mut Vec<Answer>,
    ) -> anyhow::Result<()> {
        while let Some(&length) = input.first_chunk::<4>() {
            let length = usize::try_from(i32::from_be_bytes(length)).unwrap_or(usize::MAX);
            ensure!(length <= MESSAGE_BYTES_MAX, "an answer with a wrong length");
            if input.len() < 4 + length {
                break;
            }
            input.advance(4);
            let body = input.split_to(length);
            answers.extend(self.answer(body)?);
        }
        Ok(())
    }

    fn close(&mut self, output: &mut BytesMut) {
        message(output, |body| {
            body.put_i32(self.next_xid);
            body.put_i32(CLOSE_SESSION);
        });
    }
}

/// Writes a message: its length, which is known last, comes first.
fn message(output: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = output.len();
    output.put_i32(0);
    body(output);
    let length = i32::try_from(output.len() - start - 4).expect("a message is far shorter");
    output[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

fn put_buffer(body: &mut BytesMut, bytes: &[u8]) {
    body.put_i32(i32::try_from(bytes.len()).expect("a value is far shorter"));
    body.put_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// What a server of version 3.8 answers to connect: 40 s, a session, its password, not read-only.
    fn connected() -> BytesMut {
        let mut answer = BytesMut::new();
        message(&mut answer, |body| {
            body.put_i32(0);
            body.put_i32(SESSION_MS);
            body.put_i64(0x0100_0000_0000_0001);
            put_buffer(body, &[7; PASSWORD_BYTES]);
            body.put_u8(0);
        });
        answer
    }

    fn answer(xid: i32, error: i32) -> BytesMut {
        let mut answer = BytesMut::new();
        message(&mut answer, |body| {
            body.put_i32(xid);
            body.put_i64(9);
            body.put_i32(error);
        });
        answer
    }

    #[test]
    fn requests_are_these_bytes() {
        let mut output = BytesMut::new();
        let mut session = Session::open(&mut output);
        let connect = "0000002d 00000000 0000000000000000 00009c40 0000000000000000 \
                       00000010 00000000000000000000000000000000 00";
        assert_eq!(hex(&output.split()), connect.replace(' ', ""));
        session.create(7, &mut output);
        let create = "0000003d 00000001 00000001 0000000e 2f6c6f61642d3030303030303037 00000000 \
                      00000001 0000001f 00000005 776f726c64 00000006 616e796f6e65 00000000";
        assert_eq!(hex(&output.split()), create.replace(' ', ""));
        session.put(7, b"hello", &mut output);
        let set = "00000027 00000002 00000005 0000000e 2f6c6f61642d3030303030303037 00000005 68656c6c6f ffffffff";
        assert_eq!(hex(&output.split()), set.replace(' ', ""));
        session.close(&mut output);
        assert_eq!(hex(&output), "0000000800000003fffffff5");
    }

    #[test]
    fn answers_come_back_in_order_however_they_are_cut() -> anyhow::Result<()> {
        let mut output = BytesMut::new();
        let mut session = Session::open(&mut output);
        session.put(4, b"a", &mut output);
        session.put(5, b"b", &mut output);
        let mut all = connected();
        all.extend_from_slice(&answer(1, 0));
        all.extend_from_slice(&answer(2, -101));
        let (mut input, mut answers) = (BytesMut::new(), Vec::new());
        for byte in all {
            input.put_u8(byte);
            session.receive(&mut input, &mut output, &mut answers)?;
        }
        assert!(session.is_ready() && input.is_empty());
        assert_eq!(
            answers,
            [
                Answer { worker: 4, result: Ok(()) },
                Answer { worker: 5, result: Err("ZooKeeper's error -101".to_owned()) }
            ]
        );
        Ok(())
    }

    #[test]
    fn a_wrong_answer_is_an_error() {
        let mut output = BytesMut::new();
        let mut ask = |input: &mut BytesMut| {
            let mut session = Session::open(&mut output);
            session.put(0, b"a", &mut output);
            session.receive(input, &mut output, &mut Vec::new()).map_err(|error| error.to_string())
        };
        let mut wrong = connected();
        wrong.extend_from_slice(&answer(2, 0));
        assert_eq!(ask(&mut wrong), Err("the answer has xid 2, expected is Some((1, 0))".to_owned()));
        let mut refused = connected();
        refused[8..12].fill(0);
        assert_eq!(ask(&mut refused), Err("the server grants no session".to_owned()));
        assert_eq!(ask(&mut BytesMut::from(&[0xff; 4][..])), Err("an answer with a wrong length".to_owned()));
    }
}
