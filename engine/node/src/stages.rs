//! Where a command's time goes, stage by stage, on the master. Everything about speed is argued with these figures.
//!
//! | stage | from | to |
//! |---|---|---|
//! | decode | its bytes were received | it is checked and queued |
//! | queue | queued | its batch is sealed |
//! | batch | sealed | its accepts are on their way and its record is in the log's frame |
//! | flush | sealed | the record is durable here (beside quorum, not before it) |
//! | quorum | sealed | a majority has it durable |
//! | apply | chosen | its batch is applied |
//! | reply | applied | the answers are handed to the kernel |
//!
//! A command's whole time here is decode + queue + batch + quorum + apply + reply; flush overlaps quorum and counts only
//! when the own vote is the one that makes the majority. Figures are taken once a batch and weighed by its commands.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use synod_paxos::Instant;

/// One part of a command's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Received to queued.
    Decode,
    /// Queued to sealed.
    Queue,
    /// Sealed to on its way.
    Batch,
    /// Sealed to durable here.
    Flush,
    /// Sealed to durable at a majority.
    Quorum,
    /// Chosen to applied.
    Apply,
    /// Applied to handed to the kernel.
    Reply,
}

impl Stage {
    /// All stages, in a command's order.
    pub const ALL: [Stage; 7] =
        [Stage::Decode, Stage::Queue, Stage::Batch, Stage::Flush, Stage::Quorum, Stage::Apply, Stage::Reply];

    /// The name in status and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Decode => "decode",
            Stage::Queue => "queue",
            Stage::Batch => "batch",
            Stage::Flush => "flush",
            Stage::Quorum => "quorum",
            Stage::Apply => "apply",
            Stage::Reply => "reply",
        }
    }
}

/// One stage's figures, in nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageFigures {
    /// Which stage.
    pub stage: String,
    /// How many commands went through it.
    pub commands: u64,
    /// Half of them took at most this long.
    pub p50_ns: u64,
    /// 99 in 100.
    pub p99_ns: u64,
    /// 999 in 1000.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// Longer than this is recorded as this: a minute in one stage is an outage, not a latency.
const LONGEST_NS: u64 = 60_000_000_000;

/// A histogram a stage.
pub struct StageTimes {
    histograms: [Histogram<u64>; Stage::ALL.len()],
}

impl Default for StageTimes {
    fn default() -> Self {
        let histogram = || Histogram::new_with_bounds(1, LONGEST_NS, 2).expect("the bounds are valid");
        Self { histograms: std::array::from_fn(|_| histogram()) }
    }
}

impl StageTimes {
    /// So many commands spent the time from `start` to `end` in a stage.
    pub fn record(&mut self, stage: Stage, start: Instant, end: Instant, commands: u64) {
        let ns = u64::try_from(end.since(start).as_nanos()).unwrap_or(LONGEST_NS);
        self.histograms[stage as usize].saturating_record_n(ns.max(1), commands);
    }

    /// All stages' figures.
    pub fn figures(&self) -> Vec<StageFigures> {
        let figures = |stage: Stage| {
            let histogram = &self.histograms[stage as usize];
            StageFigures {
                stage: stage.name().to_owned(),
                commands: histogram.len(),
                p50_ns: histogram.value_at_quantile(0.50),
                p99_ns: histogram.value_at_quantile(0.99),
                p999_ns: histogram.value_at_quantile(0.999),
                max_ns: histogram.max(),
            }
        };
        Stage::ALL.into_iter().map(figures).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_weigh_what_they_are() {
        let mut times = StageTimes::default();
        times.record(Stage::Quorum, Instant(1_000), Instant(201_000), 99);
        times.record(Stage::Quorum, Instant(1_000), Instant(9_001_000), 1);
        let quorum = times.figures().into_iter().find(|figures| figures.stage == "quorum").unwrap();
        assert_eq!(quorum.commands, 100);
        assert!((190_000..210_000).contains(&quorum.p50_ns), "{quorum:?}");
        assert!(quorum.max_ns >= 8_900_000, "{quorum:?}");
    }
}
