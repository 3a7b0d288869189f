//! Measuring a workload in windows, those left out in which the disk stalled (rules M2, M5).

use std::time::Duration;

use crate::probe::{DiskProbe, STALL};
use crate::workload::{Figures, Workload};

/// One window.
const WINDOW: Duration = Duration::from_secs(1);
/// Before the first: connections are made, sessions opened, buffers grown.
const WARM_UP: Duration = Duration::from_millis(700);
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

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measurement {
    /// The good windows together.
    pub figures: Figures,
    /// Operations a second in the slowest and the fastest good window.
    pub window_min_per_second: f64,
    /// See there.
    pub window_max_per_second: f64,
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
    // More than one void window in five: the run is void (M2).
    let void_max = (seconds / 4).max(1);
    while good < seconds && void_windows <= void_max {
        let window = workload.run(WINDOW, u64::MAX)?;
        progress(&window);
        // A failed operation is in no latency, so it must not go unseen, whatever the disk did.
        failures += window.failures;
        if probe.slowest() > STALL {
            void_windows += 1;
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
    } else {
        None
    };
    Ok(Measurement {
        figures: total,
        window_min_per_second: if good == 0 { 0.0 } else { slowest },
        window_max_per_second: fastest,
        void_windows,
        void,
    })
}
