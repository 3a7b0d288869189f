//! The kinds of frames a client and a node exchange. The frames themselves (length, checksum, request id, version) are
//! `synod-net`'s; it carries a kind as one byte and does not know what it means.

use thiserror::Error;

/// What a frame between client and node carries.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[repr(u8)]
pub enum FrameKind {
    /// Client to node: one encoded [`Command`](crate::Command).
    Request = 1,
    /// Node to client: one encoded [`Answer`](crate::Answer), under its request's id.
    Answer = 2,
    /// Client to node: tell me how you are. Empty.
    StatusRequest = 3,
    /// Node to client: how it is, as JSON text.
    Status = 4,
    /// Node to client: why the connection is closed right after this frame, as text.
    Error = 5,
    /// Operator to node: change something about the cell, as JSON text.
    OperatorRequest = 6,
    /// Node to operator: what became of it, as JSON text.
    OperatorAnswer = 7,
    /// Client to node: one encoded [`BoundedRead`](crate::BoundedRead). Answered as a request is.
    ReadRequest = 8,
}

/// A frame of a kind that this version does not know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Error)]
#[error("no frame is of kind {0}")]
pub struct UnknownFrameKind(pub u8);

impl From<FrameKind> for u8 {
    fn from(kind: FrameKind) -> u8 {
        kind as u8
    }
}

impl TryFrom<u8> for FrameKind {
    type Error = UnknownFrameKind;

    fn try_from(kind: u8) -> Result<FrameKind, UnknownFrameKind> {
        Ok(match kind {
            1 => FrameKind::Request,
            2 => FrameKind::Answer,
            3 => FrameKind::StatusRequest,
            4 => FrameKind::Status,
            5 => FrameKind::Error,
            6 => FrameKind::OperatorRequest,
            7 => FrameKind::OperatorAnswer,
            8 => FrameKind::ReadRequest,
            unknown => return Err(UnknownFrameKind(unknown)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_one_kind_or_none() {
        let known: Vec<u8> = (0..=u8::MAX).filter(|&byte| FrameKind::try_from(byte).is_ok()).collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7, 8]);
        for byte in known {
            assert_eq!(u8::from(FrameKind::try_from(byte).unwrap()), byte);
        }
    }
}
