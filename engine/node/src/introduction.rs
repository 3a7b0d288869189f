//! How the members of a new cell come to know its random id (rule P12).
//!
//! On the first start of the whole cell every member is given `--bootstrap`. The member with the lowest id makes the
//! cell's id; the others ask it, and it tells each of them once, noting so durably before it answers. A member that
//! comes back later with an empty directory is therefore refused: it may have forgotten what it promised (P11).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use synod_net::connection::InboundSizes;
use synod_net::frame::append_frame;
use synod_net::{FrameId, FrameLimits, Inbound};

use crate::config::Config;

/// Asks for the cell's id: the asking member's id, u16.
pub const KIND_ASK: u8 = 1;
/// Answers with it: u128.
pub const KIND_TELL: u8 = 2;
/// Answers with the reason why not, as text.
pub const KIND_REFUSE: u8 = 3;

/// How long a member waits for the first one to come up before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_millis(50);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(2);

/// Why a member of a new cell did not learn the cell's id.
#[derive(Debug, thiserror::Error)]
pub enum IntroductionError {
    /// The first member said no.
    #[error("member {first} at {address} refuses to introduce this replica to the cell: {reason}")]
    Refused {
        /// Who was asked.
        first: u16,
        /// Where.
        address: SocketAddr,
        /// What it said.
        reason: String,
    },
    /// Nobody answered in time.
    #[error(
        "member {first} at {address}, which makes the new cell's id, did not answer within {PATIENCE:?} ({last}); \
         is it started, with --bootstrap too?"
    )]
    Silent {
        /// Who was asked.
        first: u16,
        /// Where.
        address: SocketAddr,
        /// The last failure.
        last: io::Error,
    },
}

/// Whether this member is the one that makes a new cell's id.
pub fn makes_the_id(config: &Config) -> bool {
    config.members.iter().all(|member| member.id >= config.id)
}

/// Asks the first member for the new cell's id, until it answers. Blocks: nothing else runs yet.
pub fn ask(config: &Config) -> Result<u128, IntroductionError> {
    let first = config.members.iter().min_by_key(|member| member.id).expect("the configuration was validated");
    let (first, address) = (first.id, first.peer);
    let give_up = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        let last = match ask_once(address, config.id) {
            Ok(Ok(cell)) => return Ok(cell),
            Ok(Err(reason)) => return Err(IntroductionError::Refused { first, address, reason }),
            Err(error) => error,
        };
        if Instant::now() >= give_up {
            return Err(IntroductionError::Silent { first, address, last });
        }
        if !std::mem::replace(&mut told, true) {
            eprintln!(
                "synod: waiting for member {first} at {address}, which makes the new cell's id ({last}); it is to be \
                 started with --bootstrap too"
            );
        }
        std::thread::sleep(RETRY);
    }
}

fn ask_once(address: SocketAddr, me: u16) -> io::Result<Result<u128, String>> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIME_MAX)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    let mut question = Vec::new();
    append_frame(&mut question, KIND_ASK, FrameId(0), &[&me.to_le_bytes()]);
    stream.write_all(&question)?;
    let limits = FrameLimits { payload_bytes_max: 4096 };
    let mut inbound = Inbound::new(InboundSizes { start_bytes: 4096, keep_bytes: 4096, limits });
    let mut bytes = [0; 4096];
    loop {
        let received = stream.read(&mut bytes)?;
        if received == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        inbound.feed(&bytes[..received]);
        let frame = inbound.next_frame().map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
        let Some(frame) = frame else { continue };
        return match (frame.kind, <[u8; 16]>::try_from(&frame.payload[..])) {
            (KIND_TELL, Ok(cell)) => Ok(Ok(u128::from_le_bytes(cell))),
            (KIND_REFUSE, _) => Ok(Err(String::from_utf8_lossy(&frame.payload).into_owned())),
            (kind, _) => {
                let text = format!("a frame of kind {kind} instead of the cell's id");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        };
    }
}
