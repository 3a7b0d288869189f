//! How the members of a new cell come to know its random id (rule P12).
//!
//! On the first start of the whole cell every member is given `--bootstrap`. The member with the lowest id makes the
//! cell's id; the others ask it, and it tells each of them once, noting so durably before it answers. A member that
//! comes back later with an empty directory is therefore not told again: it may have forgotten what it promised. It asks whether
//! the cell knows it, and rejoins if a majority says so (P11).

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use synod_net::connection::InboundSizes;
use synod_net::frame::append_frame;
use synod_net::{FrameId, FrameLimits, Inbound};

use synod_paxos::Configuration;

use crate::config::Config;

/// Asks for the new cell's id: the asking member's id, u16, and the configuration that its flags make. The lease and the
/// quorums are only as good as everybody's agreement on them (rule P8): who was told of another one is refused.
pub const KIND_ASK: u8 = 1;
/// Asks for it on behalf of a new member of a running cell: the asking member's id, u16.
pub const KIND_JOIN: u8 = 4;
/// Asks whether this is a voting member of a cell that runs, because its directory is empty: the asking member's id, u16.
pub const KIND_RECALL: u8 = 6;
/// Answers that the asking member is not known yet, as text: it may be a moment later.
pub const KIND_LATER: u8 = 5;
/// Answers with it: u128, and the configuration in force, as `Configuration::encode` has it.
pub const KIND_TELL: u8 = 2;
/// Answers with the reason why not, as text.
pub const KIND_REFUSE: u8 = 3;

/// How long a member waits for the first one to come up before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long one that lost its directory asks members of which none answers that it knows it.
const RECALL_PATIENCE: Duration = Duration::from_secs(3);
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
    /// The members named are of different cells.
    #[error("members {one} and {other} are of different cells: check the addresses in your configuration")]
    TwoCells {
        /// One.
        one: u16,
        /// Another.
        other: u16,
    },
    /// An empty directory is not the first start of a cell that runs.
    #[error(
        "{0} is empty, and the other members are of a cell that has begun: this replica has run before, and its state is lost, or \
         this is the wrong directory. Start it without --bootstrap, and it rejoins"
    )]
    BegunBefore(PathBuf),
    /// It is not known that it was ever a member.
    #[error(
        "{dir} is empty, or its log is lost, and no majority of the members named says that its cell knows this replica ({last}). If this is the first \
         start of the whole cell, say --bootstrap on every member; if this replica is to be a new member, say --join; if it has \
         run before, its state is lost or this is the wrong directory: start the other members first, and it rejoins by itself"
    )]
    NotKnown {
        /// The directory.
        dir: PathBuf,
        /// What the last of them said.
        last: String,
    },
    /// Nobody to ask.
    #[error("a replica that joins a cell has to be told of its members: say --member for each")]
    Alone,
    /// Nobody answered in time.
    #[error("member {first} at {address} did not tell the cell's id within {PATIENCE:?} ({last})")]
    Silent {
        /// Who was asked.
        first: u16,
        /// Where.
        address: SocketAddr,
        /// The last failure.
        last: io::Error,
    },
}

/// Asks the members of a running cell for its id. A majority of those named must tell, and nobody may say no: each of them
/// tells a new member once, so whoever has been told before, and lost its directory, meets one that remembers (P11, P12).
pub fn join(config: &Config) -> Result<(u128, Configuration), IntroductionError> {
    let others: Vec<_> = config.members.iter().filter(|member| member.id != config.id).collect();
    let question = config.id.to_le_bytes();
    let give_up = Instant::now() + PATIENCE;
    let mut told: Vec<(u16, u128, Configuration)> = Vec::new();
    let mut noticed = false;
    loop {
        let mut last = None;
        for member in &others {
            if told.iter().any(|(id, ..)| *id == member.id) {
                continue;
            }
            match ask_once(KIND_JOIN, member.peer, &question) {
                Ok(Reply::Told(cell, configuration)) => told.push((member.id, cell, configuration)),
                Ok(Reply::Refused(reason)) => {
                    return Err(IntroductionError::Refused { first: member.id, address: member.peer, reason });
                }
                Ok(Reply::Later(reason)) => last = Some((member, io::Error::other(reason))),
                Err(error) => last = Some((member, error)),
            }
        }
        if let Some(pair) = told.windows(2).find(|pair| pair[0].1 != pair[1].1) {
            return Err(IntroductionError::TwoCells { one: pair[0].0, other: pair[1].0 });
        }
        if told.len() > others.len() / 2 {
            let (_, cell, configuration) = told.swap_remove(0);
            return Ok((cell, configuration));
        }
        let Some((member, last)) = last else {
            return Err(IntroductionError::Alone);
        };
        if Instant::now() >= give_up {
            return Err(IntroductionError::Silent { first: member.id, address: member.peer, last });
        }
        if !std::mem::replace(&mut noticed, true) {
            eprintln!("synod: waiting for the cell to know this replica ({last}): see `synod member add`");
        }
        std::thread::sleep(RETRY);
    }
}

/// Asks the members whether they know this replica, whose directory is empty, as a voting member of a cell that runs. A majority
/// of those named must say so, and of one cell (rule P12): then its state is lost.
pub fn recall(config: &Config) -> Result<(u128, Configuration), IntroductionError> {
    let question = config.id.to_le_bytes();
    let mut told: Vec<(u16, u128, Configuration)> = Vec::new();
    let mut give_up = Instant::now() + RECALL_PATIENCE;
    loop {
        let mut last = "there is nobody to ask".to_owned();
        for member in config.members.iter().filter(|member| member.id != config.id) {
            if told.iter().any(|(id, ..)| *id == member.id) {
                continue;
            }
            let says = |what: String| format!("member {} at {}: {what}", member.id, member.peer);
            match ask_once(KIND_RECALL, member.peer, &question) {
                Ok(Reply::Told(cell, configuration)) => {
                    // The others may only be starting.
                    give_up = give_up.max(Instant::now() + PATIENCE);
                    told.push((member.id, cell, configuration));
                }
                Ok(Reply::Refused(reason) | Reply::Later(reason)) => last = says(reason),
                Err(error) => last = says(error.to_string()),
            }
        }
        if let Some(pair) = told.windows(2).find(|pair| pair[0].1 != pair[1].1) {
            return Err(IntroductionError::TwoCells { one: pair[0].0, other: pair[1].0 });
        }
        if told.len() > config.members.len() / 2 {
            let (_, cell, configuration) = told.swap_remove(0);
            return Ok((cell, configuration));
        }
        if Instant::now() >= give_up || config.members.len() == 1 {
            return Err(IntroductionError::NotKnown { dir: config.dir.clone(), last });
        }
        std::thread::sleep(RETRY);
    }
}

/// Whether any of the others knows this replica: they have a cell's id, which only its first member can have made.
pub fn is_known_to_any(config: &Config) -> bool {
    let others = config.members.iter().filter(|member| member.id != config.id);
    let ask = |member: &crate::config::Member| ask_once(KIND_RECALL, member.peer, &config.id.to_le_bytes());
    others.map(ask).any(|reply| matches!(reply, Ok(Reply::Told(..))))
}

/// Whether this member is the one that makes a new cell's id.
pub fn makes_the_id(config: &Config) -> bool {
    config.members.iter().all(|member| member.id >= config.id)
}

/// Asks the first member for the new cell's id, until it answers. Blocks: nothing else runs yet.
pub fn ask(config: &Config) -> Result<u128, IntroductionError> {
    let first = config.members.iter().min_by_key(|member| member.id).expect("the configuration was validated");
    let (first, address) = (first.id, first.peer);
    let mut question = config.id.to_le_bytes().to_vec();
    config.configuration().expect("the configuration was validated").encode(&mut question);
    let give_up = Instant::now() + PATIENCE;
    let mut told = false;
    loop {
        let last = match ask_once(KIND_ASK, address, &question) {
            Ok(Reply::Told(cell, _)) => return Ok(cell),
            Ok(Reply::Refused(reason) | Reply::Later(reason)) => {
                return Err(IntroductionError::Refused { first, address, reason });
            }
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

/// What a member says to who asks.
enum Reply {
    Told(u128, Configuration),
    Refused(String),
    Later(String),
}

fn ask_once(question_kind: u8, address: SocketAddr, words: &[u8]) -> io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_TIME_MAX)?;
    stream.set_read_timeout(Some(ANSWER_TIME_MAX))?;
    let mut question = Vec::new();
    append_frame(&mut question, question_kind, FrameId(0), &[words]);
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
        let told = frame.payload.split_first_chunk().and_then(|(cell, configuration)| {
            Some(Reply::Told(u128::from_le_bytes(*cell), Configuration::decode(configuration).ok()?))
        });
        return match (frame.kind, told) {
            (KIND_TELL, Some(told)) => Ok(told),
            (KIND_REFUSE, _) => Ok(Reply::Refused(String::from_utf8_lossy(&frame.payload).into_owned())),
            (KIND_LATER, _) => Ok(Reply::Later(String::from_utf8_lossy(&frame.payload).into_owned())),
            (kind, _) => {
                let text = format!("a frame of kind {kind} instead of the cell's id");
                Err(io::Error::new(io::ErrorKind::InvalidData, text))
            }
        };
    }
}
