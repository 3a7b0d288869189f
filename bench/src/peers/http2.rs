//! etcd's client protocol, as much of it as a write needs: gRPC, which is HTTP/2.
//!
//! By hand, because it is so little: a put is one HEADERS and one DATA frame on a stream of its own, and a put that
//! succeeded is known by the message in the answer, which carries the store's revision. A put that failed has no message.
//! So no header of an answer is ever looked into, and with that goes the only large part of HTTP/2, the decoding of
//! compressed headers. What must be kept: the server's window for what we send, and answers to its pings and settings. A
//! crate for gRPC would add a hundred others and half a minute to every build, one for HTTP/2 alone a second runtime
//! beside the ring.

use std::collections::VecDeque;
use std::fmt::Write;

use anyhow::{bail, ensure};
use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::connections::{Answer, Protocol};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const PATH: &[u8] = b"/etcdserverpb.KV/Put";

/// The kinds of frames (RFC 9113, section 6).
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const RESET: u8 = 3;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GOAWAY: u8 = 7;
    pub(super) const WINDOW_UPDATE: u8 = 8;
}

/// The end of a stream, in DATA and HEADERS; an acknowledgement, in SETTINGS and PING.
const END_OR_ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;

const FRAME_HEADER_BYTES: usize = 9;
/// The largest frame that either side may send unless the other says otherwise; here nobody does.
const FRAME_BYTES_MAX: usize = 16 << 10;
/// The windows before anybody has said anything: of the connection, and of each stream.
const WINDOW: u32 = 65_535;
const WINDOW_MAX: u32 = (1 << 31) - 1;
const STREAM_MAX: u32 = (1 << 31) - 1;
const SETTING_PUSH: u16 = 2;
const SETTING_WINDOW: u16 = 4;
/// The largest value: with its key and frames a put fits into the first window of its stream, which so never matters.
pub(super) const VALUE_BYTES_MAX: usize = 60 << 10;

/// A put that is not answered yet.
struct Call {
    stream: u32,
    worker: usize,
    /// What has come of the answer's message.
    message: Vec<u8>,
}

/// One connection.
pub(super) struct Connection {
    authority: String,
    /// The server has said how it wants to be talked to.
    settled: bool,
    /// The names and values of the headers are in the server's table; from then on they are sent as numbers.
    headers_known: bool,
    next_stream: u32,
    calls: Vec<Call>,
    /// How much more the server takes, of all streams together.
    window: usize,
    /// What it did not take yet: the ends of puts, each with its stream.
    held: VecDeque<(u32, Bytes)>,
    /// How much we have taken since the server was last told that it may send as much again.
    taken: u32,
    key: String,
}

impl Connection {
    /// A connection to this address, and what it begins with.
    pub(super) fn open(authority: &str, output: &mut BytesMut) -> Self {
        output.put_slice(PREFACE);
        frame(output, kind::SETTINGS, 0, 0, 6);
        output.put_u16(SETTING_PUSH);
        output.put_u32(0);
        frame(output, kind::WINDOW_UPDATE, 0, 0, 4);
        output.put_u32(WINDOW_MAX - WINDOW);
        Self {
            authority: authority.to_owned(),
            settled: false,
            headers_known: false,
            next_stream: 1,
            calls: Vec::new(),
            window: WINDOW as usize,
            held: VecDeque::new(),
            taken: 0,
            key: String::new(),
        }
    }

    /// The headers of a put, compressed (RFC 7541): the first time with the order to remember them.
    fn put_headers(&mut self, output: &mut BytesMut) {
        /// In the table that both sides are born with: `:method: POST` and `:scheme: http`, whole; of others the name.
        const METHOD_AND_SCHEME: [u8; 2] = [0x80 | 3, 0x80 | 6];
        const AUTHORITY: u8 = 1;
        const NAME_OF_PATH: u8 = 4;
        const CONTENT_TYPE: u8 = 31;
        /// After those come the remembered ones, the youngest first.
        const REMEMBERED: [u8; 4] = [0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62];
        output.put_slice(&METHOD_AND_SCHEME);
        if std::mem::replace(&mut self.headers_known, true) {
            output.put_slice(&REMEMBERED);
            return;
        }
        let remember = 0x40;
        for (name, value) in
            [(NAME_OF_PATH, PATH), (AUTHORITY, self.authority.as_bytes()), (CONTENT_TYPE, b"application/grpc")]
        {
            output.put_u8(remember | name);
            put_string(output, value);
        }
        output.put_u8(remember);
        put_string(output, b"te");
        put_string(output, b"trailers");
    }

    /// Sends what is held, as far as the server's window goes.
    fn send_held(&mut self, output: &mut BytesMut) {
        while let Some((stream, rest)) = self.held.front_mut() {
            let length = rest.len().min(self.window).min(FRAME_BYTES_MAX);
            if length == 0 {
                return;
            }
            self.window -= length;
            let piece = rest.split_to(length);
            let flags = if rest.is_empty() { END_OR_ACK } else { 0 };
            frame(output, kind::DATA, flags, *stream, length);
            output.put_slice(&piece);
            if rest.is_empty() {
                self.held.pop_front();
            }
        }
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        mut payload: BytesMut,
        output: &mut BytesMut,
    ) -> anyhow::Result<Option<Answer>> {
        match kind {
            kind::DATA => {
                ensure!(flags & PADDED == 0, "etcd pads its answers: not expected");
                self.taken += u32::try_from(payload.len()).expect("a frame is far shorter");
                if self.taken > WINDOW_MAX / 2 {
                    frame(output, kind::WINDOW_UPDATE, 0, 0, 4);
                    output.put_u32(std::mem::take(&mut self.taken));
                }
                let call = self.calls.iter_mut().find(|call| call.stream == stream);
                let Some(call) = call else { bail!("data on stream {stream}, which has no put") };
                call.message.extend_from_slice(&payload);
                return Ok(self.ended(flags, stream));
            }
            // Of the answer, or behind it: whether there was a message says all that these could.
            kind::HEADERS => return Ok(self.ended(flags, stream)),
            kind::RESET => {
                ensure!(payload.len() == 4, "a reset of {} bytes", payload.len());
                let call = self.calls.iter_mut().find(|call| call.stream == stream);
                let Some(call) = call else { bail!("the reset of stream {stream}, which has no put") };
                call.message.clear();
                return Ok(self.ended(END_OR_ACK, stream));
            }
            kind::SETTINGS if flags & END_OR_ACK == 0 => {
                while payload.len() >= 6 {
                    let (name, value) = (payload.get_u16(), payload.get_u32());
                    ensure!(name != SETTING_WINDOW || value >= WINDOW, "etcd wants windows of {value} bytes");
                }
                self.settled = true;
                frame(output, kind::SETTINGS, END_OR_ACK, 0, 0);
            }
            kind::PING if flags & END_OR_ACK == 0 => {
                ensure!(payload.len() == 8, "a ping of {} bytes", payload.len());
                frame(output, kind::PING, END_OR_ACK, 0, 8);
                output.put_slice(&payload);
            }
            kind::GOAWAY => bail!("etcd ends the connection: {:?}", String::from_utf8_lossy(&payload)),
            kind::WINDOW_UPDATE => {
                ensure!(payload.len() == 4, "a window update of {} bytes", payload.len());
                // A stream's own window is never used up.
                if stream == 0 {
                    self.window += payload.get_u32() as usize;
                    self.send_held(output);
                }
            }
            // Acknowledgements, and what RFC 9113 tells to ignore.
            _ => {}
        }
        Ok(None)
    }

    /// The put of a stream, if the stream has ended.
    fn ended(&mut self, flags: u8, stream: u32) -> Option<Answer> {
        if flags & END_OR_ACK == 0 {
            return None;
        }
        let index = self.calls.iter().position(|call| call.stream == stream)?;
        let Call { worker, message, .. } = self.calls.swap_remove(index);
        let result = match revision(&message) {
            Some(_) => Ok(()),
            None => Err(format!("etcd refused: an answer of {} bytes, without a revision", message.len())),
        };
        Some(Answer { worker, result })
    }
}

impl Protocol for Connection {
    fn is_ready(&self) -> bool {
        self.settled
    }

    fn put(&mut self, worker: usize, value: &[u8], output: &mut BytesMut) {
        assert!(value.len() <= VALUE_BYTES_MAX, "a value of {} bytes", value.len());
        assert!(self.next_stream <= STREAM_MAX, "a billion puts on one connection");
        let stream = self.next_stream;
        self.next_stream += 2;
        let start = output.len();
        frame(output, kind::HEADERS, END_HEADERS, stream, 0);
        self.put_headers(output);
        set_length(output, start);
        self.key.clear();
        write!(self.key, "load/{worker:08}").expect("a string takes everything");
        self.held.push_back((stream, put_request(self.key.as_bytes(), value)));
        self.send_held(output);
        self.calls.push(Call { stream, worker, message: Vec::with_capacity(64) });
    }

    fn receive(
        &mut self,
        input: &mut BytesMut,
        output: &mut BytesMut,
        answers: &mut Vec<Answer>,
    ) -> anyhow::Result<()> {
        while let Some(&[a, b, c, kind, flags, s, t, u, v]) = input.first_chunk::<FRAME_HEADER_BYTES>() {
            let length = u32::from_be_bytes([0, a, b, c]) as usize;
            ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
            if input.len() < FRAME_HEADER_BYTES + length {
                break;
            }
            input.advance(FRAME_HEADER_BYTES);
            let payload = input.split_to(length);
            let stream = u32::from_be_bytes([s & 0x7f, t, u, v]);
            answers.extend(self.frame(kind, flags, stream, payload, output)?);
        }
        Ok(())
    }

    fn close(&mut self, output: &mut BytesMut) {
        frame(output, kind::GOAWAY, 0, 0, 8);
        output.put_u64(0);
    }
}

/// A frame's header, whose payload is to follow.
fn frame(output: &mut BytesMut, kind: u8, flags: u8, stream: u32, length: usize) {
    output.put_uint(length as u64, 3);
    output.put_u8(kind);
    output.put_u8(flags);
    output.put_u32(stream);
}

/// Gives the frame that begins at `start`, and ends the output, its length.
fn set_length(output: &mut BytesMut, start: usize) {
    let length = u32::try_from(output.len() - start - FRAME_HEADER_BYTES).expect("headers are far shorter");
    output[start..start + 3].copy_from_slice(&length.to_be_bytes()[1..]);
}

/// A string in compressed headers: as it is.
fn put_string(output: &mut BytesMut, string: &[u8]) {
    output.put_u8(u8::try_from(string.len()).ok().filter(|&length| length < 127).expect("our headers are short"));
    output.put_slice(string);
}

/// A `PutRequest` (1: key, 2: value) as gRPC frames it: not compressed (a byte), its length (4 bytes).
fn put_request(key: &[u8], value: &[u8]) -> Bytes {
    const PREFIX_BYTES: usize = 5;
    let mut request = BytesMut::with_capacity(PREFIX_BYTES + key.len() + value.len() + 8);
    request.put_bytes(0, PREFIX_BYTES);
    for (field, bytes) in [(1, key), (2, value)] {
        request.put_u8(field << 3 | 2);
        let mut length = bytes.len();
        while length >= 0x80 {
            request.put_u8(length as u8 | 0x80);
            length >>= 7;
        }
        request.put_u8(length as u8);
        request.put_slice(bytes);
    }
    let length = u32::try_from(request.len() - PREFIX_BYTES).expect("a value is far shorter");
    request[1..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    request.freeze()
}

/// The store's revision in a `PutResponse`: field 3 of field 1, the header. `None` if this is not a whole one.
fn revision(message: &[u8]) -> Option<u64> {
    let (&[compressed, a, b, c, d], response) = message.split_first_chunk::<5>()?;
    if compressed != 0 || response.len() != u32::from_be_bytes([a, b, c, d]) as usize {
        return None;
    }
    let Field::Bytes(header) = field(response, 1)? else { return None };
    let Field::Number(revision) = field(header, 3)? else { return None };
    Some(revision)
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The first field of this number. Those that etcd's answers consist of are numbers or bytes.
fn field(mut message: &[u8], number: u64) -> Option<Field<'_>> {
    while !message.is_empty() {
        let tag = varint(&mut message)?;
        let value = varint(&mut message)?;
        let found = match tag & 7 {
            0 => Field::Number(value),
            2 => {
                let (bytes, rest) = message.split_at_checked(usize::try_from(value).ok()?)?;
                message = rest;
                Field::Bytes(bytes)
            }
            _ => return None,
        };
        if tag >> 3 == number {
            return Some(found);
        }
    }
    None
}

fn varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests;
