//! Where a command's time goes, stage by stage, on the master. Everything about speed is argued with these figures.
//!
//! | stage | from | to |
//! |---|---|---|
//! | decode | the turn began in which its bytes came | its connection's commands are checked and queued (part of queue) |
//! | queue | the turn began in which its bytes came | its batch is sealed |
//! | batch | sealed | its accepts are on their way and its record is in the log's frame (part of quorum) |
//! | flush | sealed | the record is durable here (beside quorum, not before it) |
//! | quorum | sealed | a majority has it durable |
//! | apply | chosen | its batch is applied |
//! | reply | applied | the answers are handed to the kernel |
//!
//! A command's whole time here is queue + quorum + apply + reply. These times are taken once a batch and weighed by its commands.
//!
//! Beside them single commands can be *traced*: one in so many, chosen by the number of the request ([`is_traced`]), so that the
//! client that sent it can choose the same and put its own moments beside ours. `synod-bench profile` does. All moments of a
//! trace are of one command, so its stages add up to the whole. Traces that nobody takes are bounded ([`TRACES_MAX`]); what
//! comes above that is counted and dropped.

use std::collections::VecDeque;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use synod_paxos::Instant;

/// One part of a command's way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Received to queued: the first part of queue.
    Decode,
    /// Received to sealed.
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

/// What is taken of the stages.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StageSettings {
    /// The times of all commands.
    pub times: bool,
    /// One command in so many is traced; 0: none.
    pub trace_every: u64,
}

impl Default for StageSettings {
    fn default() -> Self {
        Self { times: true, trace_every: 0 }
    }
}

/// Whether the request of this number is traced, if one in so many is.
pub fn is_traced(request: u64, every: u64) -> bool {
    // Numbers come in steps of the client's; scattered, each step has its share.
    every > 0 && (request.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(every)
}

/// The moments of one command, in nanoseconds since the replica's start, each at or after the one before it but for `durable`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Trace {
    /// On which connection it came, as the node numbers them; when told to others: the port at the client's end.
    pub connection: u64,
    /// The request's number there.
    pub request: u64,
    /// The turn began in which its bytes came.
    pub received: u64,
    /// It was checked and queued.
    pub queued: u64,
    /// Its batch was sealed.
    pub sealed: u64,
    /// Its accepts were on their way, and its record in the log's frame.
    pub proposed: u64,
    /// Its record was durable here; 0 if a majority had it before.
    pub durable: u64,
    /// A majority had it.
    pub chosen: u64,
    /// Its batch was applied.
    pub applied: u64,
    /// The turn's answers were handed to the kernel.
    pub answered: u64,
}

/// Traces that were taken.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traces {
    /// When the replica started, in nanoseconds since the machine's boot.
    pub started: u64,
    /// At most [`TRACES_TAKEN_MAX`]: if so many, there may be more.
    pub traces: Vec<Trace>,
    /// How many were dropped since the settings were made.
    pub dropped: u64,
}

/// So many traces are kept until they are taken: 2.6 MB.
pub const TRACES_MAX: usize = 1 << 15;
/// So many are taken at once: as JSON they fit a frame.
pub const TRACES_TAKEN_MAX: usize = 1 << 10;

/// The stage times, and the traces on their way.
#[derive(Default)]
pub struct Stages {
    settings: StageSettings,
    times: StageTimes,
    /// Their answers wait for the end of the turn: when they were applied, and how many commands.
    unsent: Vec<(Instant, u64)>,
    unsent_traces: Vec<Trace>,
    finished: VecDeque<Trace>,
    dropped: u64,
}

impl Stages {
    /// Takes these from now on, and forgets the traces so far.
    pub fn set(&mut self, settings: StageSettings) {
        *self = Self { settings, times: std::mem::take(&mut self.times), ..Self::default() };
    }

    /// Whether times are taken: if not, the clock need not be looked at for them.
    pub fn is_timing(&self) -> bool {
        self.settings.times
    }

    /// Whether this request is traced.
    pub fn is_traced(&self, request: u64) -> bool {
        is_traced(request, self.settings.trace_every)
    }

    /// So many commands spent the time from `start` to `end` in a stage.
    pub fn record(&mut self, stage: Stage, start: Instant, end: Instant, commands: u64) {
        if self.settings.times && commands > 0 {
            self.times.record(stage, start, end, commands);
        }
    }

    /// A batch was applied; its answers leave at the end of the turn.
    pub fn applied(&mut self, chosen: Instant, applied: Instant, commands: u64, traces: Vec<Trace>) {
        self.record(Stage::Apply, chosen, applied, commands);
        if self.settings.times {
            self.unsent.push((applied, commands));
        }
        let moments = |trace| Trace { chosen: chosen.0, applied: applied.0, ..trace };
        self.unsent_traces.extend(traces.into_iter().map(moments));
    }

    /// The turn's answers are with the kernel.
    pub fn sent(&mut self, now: Instant) {
        for (applied, commands) in self.unsent.drain(..) {
            self.times.record(Stage::Reply, applied, now, commands);
        }
        for trace in self.unsent_traces.drain(..) {
            if self.settings.trace_every == 0 || self.finished.len() >= TRACES_MAX {
                self.dropped += 1;
            } else {
                self.finished.push_back(Trace { answered: now.0, ..trace });
            }
        }
    }

    /// The oldest traces, which are forgotten here.
    pub fn take(&mut self, started: u64) -> Traces {
        let count = self.finished.len().min(TRACES_TAKEN_MAX);
        Traces { started, traces: self.finished.drain(..count).collect(), dropped: self.dropped }
    }

    /// All stages' figures.
    pub fn figures(&self) -> Vec<StageFigures> {
        self.times.figures()
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

    #[test]
    fn one_in_so_many_is_traced_whatever_the_numbers_steps() {
        for step in [1, 64, 1024] {
            let traced = (0..100_000).filter(|at| is_traced(at * step, 10)).count();
            assert!((9_000..11_000).contains(&traced), "{traced} of 100000 in steps of {step}");
        }
        assert!(!is_traced(0, 0));
    }

    #[test]
    fn traces_are_bounded_and_taken_in_pieces() {
        let mut stages = Stages::default();
        stages.set(StageSettings { times: false, trace_every: 1 });
        let trace = Trace { connection: 1, received: 5, ..Trace::default() };
        stages.applied(Instant(10), Instant(20), 1, vec![trace; TRACES_MAX + 7]);
        stages.sent(Instant(30));
        let taken = stages.take(99);
        assert_eq!((taken.traces.len(), taken.dropped, taken.started), (TRACES_TAKEN_MAX, 7, 99));
        assert_eq!(taken.traces[0], Trace { chosen: 10, applied: 20, answered: 30, ..trace });
        let mut rest = 0;
        while let Traces { traces, .. } = stages.take(99)
            && !traces.is_empty()
        {
            rest += traces.len();
        }
        assert_eq!(rest, TRACES_MAX - TRACES_TAKEN_MAX);
        assert!(stages.figures().iter().all(|figures| figures.commands == 0), "times are off");
    }
}
