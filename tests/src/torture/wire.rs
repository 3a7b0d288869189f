//! A connection to one given replica: it follows no redirect and retries nothing.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Context;
use synod_api::limits::ANSWER_BYTES_MAX;
use synod_api::{Answer, Command, FrameKind, Operation};
use synod_net::frame::append_frame;
use synod_net::{FrameId, Inbound, InboundSizes};

/// The connection.
#[derive(Debug)]
pub struct Wire {
    stream: TcpStream,
    inbound: Inbound,
    asked: u64,
}

/// What came of a question.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reply {
    /// This.
    Answer(Answer),
    /// The connection was closed, by an error frame or without a word.
    Closed,
    /// Nothing within the time.
    Silence,
}

impl Wire {
    /// Connects.
    pub fn dial(address: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("cannot connect to {address}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, inbound: Inbound::new(InboundSizes::client(ANSWER_BYTES_MAX as u32)), asked: 0 })
    }

    /// Asks for a key, outside any session. Whether the connection took it.
    pub fn ask(&mut self, key: &[u8]) -> bool {
        let mut command = Vec::new();
        Command::without_session(Operation::Get { key }).encode(&mut command);
        self.asked += 1;
        let mut frame = Vec::new();
        append_frame(&mut frame, FrameKind::Request.into(), FrameId(self.asked), &[&command]);
        self.stream.write_all(&frame).is_ok()
    }

    /// What comes of the last question.
    pub fn reply(&mut self, patience: Duration) -> anyhow::Result<Reply> {
        let until = Instant::now() + patience;
        let mut bytes = [0; 4096];
        loop {
            while let Some(frame) = self.inbound.next_frame().context("what the replica sent is no frame")? {
                match FrameKind::try_from(frame.kind) {
                    Ok(FrameKind::Answer) if frame.id == FrameId(self.asked) => {
                        let answer = Answer::decode_borrowed(&frame.payload).context("an answer that is none")?;
                        return Ok(Reply::Answer(answer.map(bytes::Bytes::copy_from_slice)));
                    }
                    // To an earlier question, which was not waited for any longer.
                    Ok(FrameKind::Answer) => {}
                    _ => return Ok(Reply::Closed),
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(Reply::Silence);
            }
            self.stream.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
            match self.stream.read(&mut bytes) {
                Ok(0) => return Ok(Reply::Closed),
                Ok(count) => self.inbound.feed(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Reply::Closed),
                Err(error) => return Err(error).context("reading"),
            }
        }
    }
}
