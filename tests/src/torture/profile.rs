//! The cell's flags and the clients' options, by name: the one place where the low-latency profile is defined.

use std::time::Duration;

use clap::ValueEnum;
use serde::Serialize;
use synod_client::Options;
use synod_node::config::defaults;

/// How a cell and its clients are set.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Profile {
    /// Nothing is said: the defaults of `serve` and of the client library
    #[default]
    Default,
    /// Quick to find that a master is gone: for replicas in one room, on disks that flush within a few milliseconds. A
    /// master that is not heard for a quarter of a second, or disks that stall for half of that, make an election.
    LowLatency,
}

/// `serve` flags of the low-latency profile. With 150 ms instead of 250 writes stop for 180 ms in the median instead of
/// 300, but any stall of 80 ms makes an election.
const LOW_LATENCY_FLAGS: [&str; 6] = ["--heartbeat-ms", "50", LEASE_FLAG, "250", "--election-timeout-ms", "250"];
const LEASE_FLAG: &str = "--lease-ms";

impl Profile {
    /// More flags for every replica's `serve`.
    #[must_use]
    pub fn serve_flags(self) -> &'static [&'static str] {
        match self {
            Profile::Default => &[],
            Profile::LowLatency => &LOW_LATENCY_FLAGS,
        }
    }

    /// How long a master's lease lasts.
    #[must_use]
    pub fn lease(self) -> Duration {
        let flags = self.serve_flags();
        let said = flags.iter().position(|&flag| flag == LEASE_FLAG).and_then(|at| flags[at + 1].parse().ok());
        Duration::from_millis(said.unwrap_or(defaults::lease_ms()))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lease_is_what_the_flags_say() {
        assert_eq!(Profile::Default.lease(), Duration::from_millis(1000));
        assert_eq!(Profile::LowLatency.lease(), Duration::from_millis(250));
    }
}
