//! The cell's flags and the clients' options, by name: the one place where the low-latency profile is defined.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use synod_client::Options;

/// How a cell and its clients are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Nothing is said: the defaults of `serve` and of the client library
    #[default]
    Default,
    /// Quick to find that a master is gone: for replicas in one room, on disks that flush within a few milliseconds. A
    /// pause of the master by a quarter of a second makes an election.
    LowLatency,
}

/// `serve` flags of the low-latency profile.
const LOW_LATENCY_FLAGS: [&str; 4] = ["--heartbeat-ms", "30", "--election-timeout-ms", "180"];

impl Profile {
    /// More flags for every replica's `serve`.
    #[must_use]
    pub fn serve_flags(self) -> &'static [&'static str] {
        match self {
            Profile::Default => &[],
            Profile::LowLatency => &LOW_LATENCY_FLAGS,
        }
    }

    /// The clients' options.
    #[must_use]
    pub fn options(self) -> Options {
        match self {
            Profile::Default => Options::default(),
            Profile::LowLatency => Options {
                attempt_time_max: Duration::from_millis(100),
                probe_time_max: Duration::from_millis(20),
                backoff_min: Duration::from_millis(5),
                backoff_max: Duration::from_millis(50),
                ..Options::default()
            },
        }
    }

    /// Half of all fail-overs must be shorter.
    #[must_use]
    pub fn median_max(self) -> Duration {
        match self {
            Profile::Default => Duration::from_millis(1500),
            Profile::LowLatency => Duration::from_millis(500),
        }
    }
}
