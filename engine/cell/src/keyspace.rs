//! Which rows are where.
//!
//! | key | row |
//! |---|---|
//! | 1 | plain: the session counters |
//! | 2, session | plain: an open session |
//! | 2, session, index | plain: a result kept for a retry, right behind its session |
//! | 3, key | versioned: a user's key |
//! | 4, depth, path | versioned: a file |
//! | 5 | plain: the epoch |
//!
//! Sessions are u64 and indexes and depths u16, all big-endian, so that the order of rows is the order of numbers: the
//! first row of keyspace 2 is the oldest session. Files are ordered by their number of components first, as Chubby has
//! them, so that the files of a directory are neighbours.

use synod_api::SessionId;

const COUNTERS: u8 = 1;
const SESSIONS: u8 = 2;
const KEYS: u8 = 3;
const FILES: u8 = 4;
const EPOCH: u8 = 5;

/// The session counters' row.
pub(crate) const COUNTERS_KEY: &[u8] = &[COUNTERS];

/// The epoch's row.
pub(crate) const EPOCH_KEY: &[u8] = &[EPOCH];

/// Before every session's rows.
pub(crate) const SESSIONS_PREFIX: &[u8] = &[SESSIONS];

const SESSION_KEY_BYTES: usize = 1 + 8;

/// A session's row, and the prefix of its results' rows.
pub(crate) fn session(id: SessionId) -> [u8; SESSION_KEY_BYTES] {
    let mut key = [SESSIONS; SESSION_KEY_BYTES];
    key[1..].copy_from_slice(&id.0.to_be_bytes());
    key
}

/// Whose row of the sessions' keyspace it is.
pub(crate) fn session_of(key: &[u8]) -> SessionId {
    let id = key[1..SESSION_KEY_BYTES].try_into().expect("a session's rows begin with its id");
    SessionId(u64::from_be_bytes(id))
}

/// The row of a result kept for a retry.
pub(crate) fn result(id: SessionId, index: u16) -> [u8; SESSION_KEY_BYTES + 2] {
    let mut key = [0; SESSION_KEY_BYTES + 2];
    key[..SESSION_KEY_BYTES].copy_from_slice(&session(id));
    key[SESSION_KEY_BYTES..].copy_from_slice(&index.to_be_bytes());
    key
}

/// Where users' keys are put together, one after the other, without an allocation for each.
#[derive(Debug, Default)]
pub(crate) struct KeyBuffer(Vec<u8>);

impl KeyBuffer {
    /// The row of a user's key.
    pub(crate) fn key(&mut self, key: &[u8]) -> &[u8] {
        self.0.clear();
        self.0.push(KEYS);
        self.0.extend_from_slice(key);
        &self.0
    }

    /// The row of a file.
    pub(crate) fn file(&mut self, path: &[u8]) -> &[u8] {
        let depth = path.iter().filter(|&&byte| byte == b'/').count();
        let depth = u16::try_from(depth).expect("a path has at most 1024 bytes");
        self.0.clear();
        self.0.push(FILES);
        self.0.extend_from_slice(&depth.to_be_bytes());
        self.0.extend_from_slice(path);
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_in_order() {
        let mut buffer = KeyBuffer::default();
        let mut rows = vec![COUNTERS_KEY.to_vec()];
        rows.push(session(SessionId(1)).to_vec());
        rows.push(result(SessionId(1), 0).to_vec());
        rows.push(result(SessionId(1), 256).to_vec());
        rows.push(session(SessionId(2)).to_vec());
        rows.push(session(SessionId(256)).to_vec());
        rows.push(buffer.key(b"").to_vec());
        rows.push(buffer.key(b"\xff").to_vec());
        for path in ["/a", "/c", "/a/b", "/a/z", "/b/a", "/a/b/c"] {
            rows.push(buffer.file(path.as_bytes()).to_vec());
        }
        rows.push(EPOCH_KEY.to_vec());
        assert!(rows.is_sorted());
        assert_eq!(session_of(&rows[3]), SessionId(1));
        assert_eq!(session_of(&rows[5]), SessionId(256));
    }
}
