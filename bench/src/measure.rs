//! Measuring a workload in windows, those left out in which the disk stalled (rules M2, M5).

use std::time::{Duration, Instant};

use serde::Serialize;

use crate::probe::{DiskProbe, STALL};
use crate::workload::{Figures, Workload};

/// One window.
const WINDOW: Duration = Duration::from_secs(1);
/// Before the first, connections are made, sessions opened, buffers grown; and after one that is left out.
pub(crate) const WARM_UP: Duration = Duration::from_millis(700);
/// Below this many operations a run says nothing and is void.
const OPERATIONS_MIN: u64 = 200;

/// Workers that can be kept busy for a while: Synod's, or those of a peer it is compared with.
pub trait Load {
    /// Keeps them busy for so long, or until so many operations have been done.
    fn run(&mut self, time: Duration, operations_max: u64) -> anyhow::Result<Figures>;
}

impl Load for Workload {
    fn run(&mut self, time: Duration, operations_max: u64) -> anyhow::Result<Figures> {
        Workload::run(self, time, operations_max)
    }
}

/// What one window had.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Second {
    /// When it ended, in seconds since the first one began.
    pub at_s: f64,
    /// Operations a second.
    pub ops_per_s: f64,
    /// Half of them took at most this long, in microseconds.
    pub p50_us: f64,
    /// 99 in 100.
    pub p99_us: f64,
    /// The disk stalled: it is in no sum.
    pub void: bool,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The good windows together.
    pub figures: Figures,
    /// Operations a second in the slowest and the fastest good window.
    pub window_min_per_second: f64,
    /// See there.
    pub window_max_per_second: f64,
    /// All windows in their order, those left out too.
    pub series: Vec<Second>,
    /// Windows left out, because the disk stalled.
    pub void_windows: u32,
    /// Why all of it is to be left out, if it is.
    pub void: Option<String>,
}

/// Runs the workload for so many good windows of a second; `progress` is told after each of the windows.
pub fn measure(
    workload: &mut impl Load,
    probe: &DiskProbe,
    seconds: u32,
    mut progress: impl FnMut(&Figures),
) -> anyhow::Result<Measurement> {
    workload.run(WARM_UP, u64::MAX)?;
    probe.slowest();
    let mut total = Figures::default();
    let (mut slowest, mut fastest) = (f64::INFINITY, 0.0_f64);
    let (mut good, mut void_windows, mut failures) = (0, 0, 0);
    let mut series = Vec::new();
    let began = Instant::now();
    // More than one void window in five: the run is void (M2).
    let void_max = (seconds / 4).max(1);
    while good < seconds && void_windows <= void_max {
        let window = workload.run(WINDOW, u64::MAX)?;
        progress(&window);
        // A failed operation is in no latency, so it must not go unseen, whatever the disk did.
        failures += window.failures;
        let void = probe.slowest() > STALL;
        series.push(Second {
            at_s: began.elapsed().as_secs_f64(),
            ops_per_s: window.per_second(),
            p50_us: window.quantile_us(0.50),
            p99_us: window.quantile_us(0.99),
            void,
        });
        if void {
            void_windows += 1;
            // What it left waiting is done before the next.
            failures += workload.run(WARM_UP, u64::MAX)?.failures;
            probe.slowest();
            continue;
        }
        good += 1;
        slowest = slowest.min(window.per_second());
        fastest = fastest.max(window.per_second());
        total += window;
    }
    let void = if void_windows > void_max {
        Some(format!("the disk stalled over {STALL:?} in {void_windows} windows of {}", void_windows + good))
    } else if total.operations() < OPERATIONS_MIN {
        let last = total.last_failure.as_deref().unwrap_or("no operation failed");
        Some(format!("only {} operations, at least {OPERATIONS_MIN} are needed; {last}", total.operations()))
    } else if failures > 0 {
        let last = total.last_failure.as_deref().unwrap_or("in a window left out");
        Some(format!("{failures} operations failed; the last: {last}"))
    } else if total.not_begun > 0 {
        let not_begun = total.not_begun;
        Some(format!("{not_begun} operations could not even begin: the cell does not keep up with this rate"))
    } else {
        None
    };
    Ok(Measurement {
        figures: total,
        window_min_per_second: if good == 0 { 0.0 } else { slowest },
        window_max_per_second: fastest,
        series,
        void_windows,
        void,
    })
}
