//! The greeting: the first words on a connection between replicas.
//!
//! Each replica dials every other, so a pair has two connections, one a direction. The one that dialed says hello and
//! then sends its messages; the one that accepted answers the hello and then only reads. Nothing is believed of a
//! connection before that: an address may lead to another cell's machine, or to another replica of this one, and
//! messages of a stranger must never reach the protocol.
//!
//! Hello (kind `F0`), little-endian, 30 bytes:
//!
//! | at | bytes | field |
//! |---|---|---|
//! | 0 | 2 | version of what the messages mean |
//! | 2 | 16 | cell |
//! | 18 | 2 | from: the replica that dialed |
//! | 20 | 2 | to: the replica it means to reach |
//! | 22 | 8 | checksum of the dialing side's configuration |
//!
//! Answer (kind `F1`): one byte, 0 for accepted, 1 for refused; then, if refused, why, as UTF-8 for a person.

use bytes::{BufMut, BytesMut};

use crate::frame::{self, FrameId, FrameRef, HEADER_BYTES, KIND_RESERVED_MIN};

/// The kind of the frame that holds a [`Hello`].
pub const KIND_HELLO: u8 = KIND_RESERVED_MIN;
/// The kind of the frame that holds a [`HelloAnswer`].
pub const KIND_HELLO_ANSWER: u8 = KIND_RESERVED_MIN + 1;
/// The version of what peers' messages mean. Raised when the meaning changes while frames stay the same.
pub const HELLO_VERSION: u16 = 1;
/// The longest payload of an answer. A longer reason is cut.
pub const HELLO_ANSWER_BYTES_MAX: u32 = 1024;

const HELLO_BYTES: usize = 30;
const ACCEPTED: u8 = 0;
const REFUSED: u8 = 1;

/// Who dials, and whom it means to reach.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hello {
    /// What the dialing side's messages mean: [`HELLO_VERSION`].
    pub version: u16,
    /// The cell it belongs to.
    pub cell: u128,
    /// The replica that dials.
    pub from: u16,
    /// The replica it means to reach.
    pub to: u16,
    /// Of its configuration. That it differs is no reason to refuse (a change of the configuration reaches the replicas
    /// one after the other), but it explains a refusal.
    pub configuration: u64,
}

/// The accepting side's view, to hold a hello against.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    /// Our cell.
    pub cell: u128,
    /// Our number in it.
    pub me: u16,
    /// Whom we know: members of the current and of a pending configuration, learners included.
    pub members: &'a [u16],
    /// The checksum of our configuration.
    pub configuration: u64,
}

/// Why a hello is refused. The text goes to the other side and into both logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// The first frame was something else.
    #[error(
        "expected a hello, got a frame of kind {kind:02x} with {length} bytes: is this a client on the peers' port?"
    )]
    NotHello {
        /// Its kind.
        kind: u8,
        /// Its payload's length.
        length: usize,
    },
    /// Another release, whose messages mean something else.
    #[error("your messages are of version {theirs}, mine of {ours}: upgrade the older replica")]
    Version {
        /// Theirs.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The address leads out of the cell.
    #[error("you are of cell {theirs:032x}, I am of cell {ours:032x}: check the addresses in your configuration")]
    OtherCell {
        /// Theirs.
        theirs: u128,
        /// Ours.
        ours: u128,
    },
    /// The address leads to another replica of the cell.
    #[error("you are looking for replica {wanted}, I am replica {me}: check the addresses in your configuration")]
    WrongReplica {
        /// Whom they mean to reach.
        wanted: u16,
        /// Who we are.
        me: u16,
    },
    /// Two processes run as one replica, or a replica dials itself.
    #[error("you say you are replica {me}, but that is me: is a second process running with my configuration?")]
    Myself {
        /// Who we are.
        me: u16,
    },
    /// Not of the configuration we know.
    #[error(
        "replica {from} is not a member of my configuration ({}); a change that adds you may not have reached me yet",
        if *.configurations_agree { "and our configurations agree" } else { "yours differs from mine" }
    )]
    NotAMember {
        /// Who dials.
        from: u16,
        /// Whether the checksums are equal.
        configurations_agree: bool,
    },
}

/// A hello that was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Greeted {
    /// Whose messages this connection carries.
    pub from: u16,
    /// Whether both sides know the same configuration. If not, one lags behind; worth a line in the log if it lasts.
    pub configurations_agree: bool,
}

/// What the accepting side says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HelloAnswer {
    /// Messages may follow.
    Accepted,
    /// The connection will be closed; this is why.
    Refused(String),
}

/// An answer that is none.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "expected the answer to a hello, got a frame of kind {kind:02x} with {length} bytes: is this a replica's address?"
)]
pub struct NotAnAnswer {
    /// Its kind.
    pub kind: u8,
    /// Its payload's length.
    pub length: usize,
}

impl Hello {
    /// The whole frame.
    #[must_use]
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::with_capacity(HEADER_BYTES + HELLO_BYTES);
        frame::write_frame(&mut out, KIND_HELLO, FrameId(0), |out| {
            out.put_u16_le(self.version);
            out.put_u128_le(self.cell);
            out.put_u16_le(self.from);
            out.put_u16_le(self.to);
            out.put_u64_le(self.configuration);
        });
        out
    }

    /// Reads a frame as a hello of our version.
    pub fn decode(frame: FrameRef<'_>) -> Result<Hello, Refusal> {
        let refusal = Refusal::NotHello { kind: frame.kind, length: frame.payload.len() };
        if frame.kind != KIND_HELLO {
            return Err(refusal);
        }
        let (version, rest) = frame.payload.split_first_chunk().ok_or(refusal)?;
        let version = u16::from_le_bytes(*version);
        // Before the length: another version's hello may have more in it.
        if version != HELLO_VERSION {
            return Err(Refusal::Version { theirs: version, ours: HELLO_VERSION });
        }
        let (cell, rest) = rest.split_first_chunk().ok_or(refusal)?;
        let (from, rest) = rest.split_first_chunk().ok_or(refusal)?;
        let (to, rest) = rest.split_first_chunk().ok_or(refusal)?;
        let configuration = rest.try_into().map_err(|_| refusal)?;
        Ok(Hello {
            version,
            cell: u128::from_le_bytes(*cell),
            from: u16::from_le_bytes(*from),
            to: u16::from_le_bytes(*to),
            configuration: u64::from_le_bytes(configuration),
        })
    }

    /// The accepting side's check of what arrived first on a connection. Whatever it says, the other side should be
    /// told: [`HelloAnswer::of`].
    pub fn check(&self, local: Local<'_>) -> Result<Greeted, Refusal> {
        let configurations_agree = self.configuration == local.configuration;
        if self.version != HELLO_VERSION {
            return Err(Refusal::Version { theirs: self.version, ours: HELLO_VERSION });
        }
        if self.cell != local.cell {
            return Err(Refusal::OtherCell { theirs: self.cell, ours: local.cell });
        }
        if self.to != local.me {
            return Err(Refusal::WrongReplica { wanted: self.to, me: local.me });
        }
        if self.from == local.me {
            return Err(Refusal::Myself { me: local.me });
        }
        if !local.members.contains(&self.from) {
            return Err(Refusal::NotAMember { from: self.from, configurations_agree });
        }
        Ok(Greeted { from: self.from, configurations_agree })
    }
}

impl HelloAnswer {
    /// What to tell the other side about the outcome of the check.
    #[must_use]
    pub fn of(outcome: &Result<Greeted, Refusal>) -> HelloAnswer {
        match outcome {
            Ok(_) => HelloAnswer::Accepted,
            Err(refusal) => HelloAnswer::Refused(refusal.to_string()),
        }
    }

    /// The whole frame.
    #[must_use]
    pub fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        frame::write_frame(&mut out, KIND_HELLO_ANSWER, FrameId(0), |out| match self {
            HelloAnswer::Accepted => out.put_u8(ACCEPTED),
            HelloAnswer::Refused(why) => {
                out.put_u8(REFUSED);
                let cut = why.floor_char_boundary(HELLO_ANSWER_BYTES_MAX as usize - 1);
                out.put_slice(&why.as_bytes()[..cut]);
            }
        });
        out
    }

    /// Reads a frame as an answer.
    pub fn decode(frame: FrameRef<'_>) -> Result<HelloAnswer, NotAnAnswer> {
        match (frame.kind, frame.payload) {
            (KIND_HELLO_ANSWER, [ACCEPTED]) => Ok(HelloAnswer::Accepted),
            (KIND_HELLO_ANSWER, [REFUSED, why @ ..]) => {
                Ok(HelloAnswer::Refused(String::from_utf8_lossy(why).into_owned()))
            }
            (kind, payload) => Err(NotAnAnswer { kind, length: payload.len() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::FrameLimits;
    use expect_test::expect;
    use proptest::prelude::*;

    const HELLO: Hello = Hello { version: HELLO_VERSION, cell: 0xCE11, from: 2, to: 1, configuration: 0xC0 };
    const LOCAL: Local<'static> = Local { cell: 0xCE11, me: 1, members: &[1, 2, 3], configuration: 0xC0 };
    const LIMITS: FrameLimits = FrameLimits { payload_bytes_max: HELLO_ANSWER_BYTES_MAX };

    fn with_frame<R>(bytes: &[u8], read: impl FnOnce(FrameRef<'_>) -> R) -> R {
        let mut read = Some(read);
        let mut result = None;
        let (visited, ended) = frame::visit_frames(bytes, LIMITS, |frame| result = Some((read.take().unwrap())(frame)));
        assert_eq!((visited, ended), (bytes.len(), Ok(())));
        result.unwrap()
    }

    #[test]
    fn golden_bytes() {
        expect!["010011ce000000000000000000000000000002000100c000000000000000"]
            .assert_eq(&with_frame(&HELLO.encode(), |frame| {
                frame.payload.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            }));
    }

    #[test]
    fn what_is_said_is_heard() {
        assert_eq!(with_frame(&HELLO.encode(), Hello::decode), Ok(HELLO));
        for answer in [HelloAnswer::Accepted, HelloAnswer::Refused("no".into()), HelloAnswer::Refused(String::new())] {
            assert_eq!(with_frame(&answer.encode(), HelloAnswer::decode), Ok(answer));
        }
        let endless = HelloAnswer::Refused("é".repeat(5000));
        let Ok(HelloAnswer::Refused(cut)) = with_frame(&endless.encode(), HelloAnswer::decode) else { panic!() };
        assert!(cut.len() < HELLO_ANSWER_BYTES_MAX as usize);
        assert!(cut.chars().all(|c| c == 'é'));
    }

    #[test]
    fn a_hello_is_accepted_or_refused_with_a_reason() {
        let check = |change: fn(&mut Hello), expect: expect_test::Expect| {
            let mut hello = HELLO;
            change(&mut hello);
            let outcome = hello.check(LOCAL);
            expect.assert_eq(&match HelloAnswer::of(&outcome) {
                HelloAnswer::Accepted => format!("{:?}", outcome.unwrap()),
                HelloAnswer::Refused(why) => why,
            });
        };
        check(|_| (), expect!["Greeted { from: 2, configurations_agree: true }"]);
        check(|hello| hello.configuration = 9, expect!["Greeted { from: 2, configurations_agree: false }"]);
        check(
            |hello| hello.version = 9,
            expect!["your messages are of version 9, mine of 1: upgrade the older replica"],
        );
        check(
            |hello| hello.cell = 9,
            expect![
                "you are of cell 00000000000000000000000000000009, I am of cell 0000000000000000000000000000ce11: check the addresses in your configuration"
            ],
        );
        check(
            |hello| hello.to = 3,
            expect!["you are looking for replica 3, I am replica 1: check the addresses in your configuration"],
        );
        check(
            |hello| hello.from = 1,
            expect!["you say you are replica 1, but that is me: is a second process running with my configuration?"],
        );
        check(
            |hello| hello.from = 4,
            expect![
                "replica 4 is not a member of my configuration (and our configurations agree); a change that adds you may not have reached me yet"
            ],
        );
    }

    #[test]
    fn another_version_is_named_whatever_its_length() {
        let mut out = BytesMut::new();
        frame::append_frame(&mut out, KIND_HELLO, FrameId(0), &[&[2, 0, 1, 2, 3]]);
        assert_eq!(with_frame(&out, Hello::decode), Err(Refusal::Version { theirs: 2, ours: HELLO_VERSION }));
    }

    proptest! {
        #[test]
        fn junk_never_panics(kind in 0xEF_u8..0xF3, payload in proptest::collection::vec(any::<u8>(), 0..40)) {
            let frame = FrameRef { kind, id: FrameId(0), payload: &payload };
            let _ = Hello::decode(frame);
            let _ = HelloAnswer::decode(frame);
        }
    }
}
