//! How large the log's parts are, and which sizes make sense together.

use synod_ring::BLOCK_BYTES;

use crate::frame::{FRAME_BYTES_LIMIT, FRAME_HEADER_BYTES};
use crate::record::{RECORD_ALIGN, RECORD_HEADER_BYTES};

/// The longest hard state that can be repeated at a segment's start. Ballots, a crash vector and two configurations
/// are some hundred bytes a replica, so this is room for cells far larger than anyone runs.
pub const HARD_STATE_BYTES_MAX: usize = 16 << 10;

/// The longest frame that opens a segment: a header and the hard state, in whole blocks.
pub const OPENING_BYTES_MAX: usize =
    (FRAME_HEADER_BYTES + RECORD_HEADER_BYTES + HARD_STATE_BYTES_MAX).next_multiple_of(BLOCK_BYTES);

/// How many of the log's segments ordinary records may not use (rule L7): a full log refuses writes, but a promise or
/// a configuration must still find room, or the replica could not even tell a new coordinator what it knows.
pub const RESERVE_SEGMENTS: u64 = 1;

/// Segment sizes above this have no use, and offsets fit in 32 bits in the index.
const SEGMENT_BYTES_LIMIT: u64 = 1 << 30;

/// The sizes of a log. A log is opened with the segment size that it was made with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The size of one segment file.
    pub segment_bytes: u64,
    /// All segments together never exceed this; what is beyond the reserve is refused as "log full" (rule L7).
    pub log_bytes_max: u64,
    /// The most that one flush writes.
    pub frame_bytes_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self { segment_bytes: 64 << 20, log_bytes_max: 16 << 30, frame_bytes_max: 2 << 20 }
    }
}

/// Why settings make no log.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// O_DIRECT moves whole blocks only.
    #[error("{name} = {bytes} is not a multiple of the block of {BLOCK_BYTES} bytes")]
    Unaligned {
        /// The setting.
        name: &'static str,
        /// Its value.
        bytes: u64,
    },
    /// A value outside what the log can work with.
    #[error("{name} = {bytes} is not within {min} and {max}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// Its value.
        bytes: u64,
        /// The least possible, given the other settings.
        min: u64,
        /// The most possible.
        max: u64,
    },
}

impl Settings {
    /// The same settings, if the log can work with them.
    pub fn validate(self) -> Result<Self, SettingsError> {
        let frame_bytes = self.frame_bytes_max as u64;
        for (name, bytes) in [("frame_bytes_max", frame_bytes), ("segment_bytes", self.segment_bytes)] {
            if !bytes.is_multiple_of(BLOCK_BYTES as u64) {
                return Err(SettingsError::Unaligned { name, bytes });
            }
        }
        let within = |name, bytes, min, max| match min <= bytes && bytes <= max {
            true => Ok(()),
            false => Err(SettingsError::OutOfRange { name, bytes, min, max }),
        };
        // A frame must be able to carry the hard state, too.
        within("frame_bytes_max", frame_bytes, OPENING_BYTES_MAX as u64, FRAME_BYTES_LIMIT as u64)?;
        // Room for the opening, and for more than the frame that may not fit behind what is there already.
        let segment_min = OPENING_BYTES_MAX as u64 + 2 * frame_bytes;
        within("segment_bytes", self.segment_bytes, segment_min, SEGMENT_BYTES_LIMIT)?;
        let log_min = (RESERVE_SEGMENTS + 2) * self.segment_bytes;
        // The index counts segments in 32 bits.
        within("log_bytes_max", self.log_bytes_max, log_min, self.segment_bytes * u64::from(u32::MAX))?;
        Ok(self)
    }

    /// The longest payload that one record can carry.
    pub fn payload_bytes_max(&self) -> usize {
        (self.frame_bytes_max - FRAME_HEADER_BYTES - RECORD_HEADER_BYTES) / RECORD_ALIGN * RECORD_ALIGN
    }

    /// How many segments there may be at a time, the reserve included.
    pub(crate) fn segments_max(&self) -> u64 {
        self.log_bytes_max / self.segment_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_what_cannot_work_and_says_why() {
        let sound = Settings::default();
        assert_eq!(sound.validate(), Ok(sound));
        let refused = |settings: Settings| settings.validate().unwrap_err().to_string();
        assert!(
            refused(Settings { frame_bytes_max: 5000, ..sound }).contains("frame_bytes_max = 5000 is not a multiple")
        );
        assert!(refused(Settings { frame_bytes_max: 4096, ..sound }).contains("frame_bytes_max = 4096 is not within"));
        assert!(refused(Settings { frame_bytes_max: 32 << 20, ..sound }).contains("frame_bytes_max"));
        assert!(refused(Settings { segment_bytes: 2 << 20, ..sound }).contains("segment_bytes"));
        assert!(refused(Settings { segment_bytes: 4 << 30, ..sound }).contains("segment_bytes"));
        assert!(refused(Settings { log_bytes_max: 128 << 20, ..sound }).contains("log_bytes_max"));
    }
}
