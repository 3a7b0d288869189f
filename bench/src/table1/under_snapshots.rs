//! Rows 5 and 6 also while snapshots are taken. In the paper those two rows have ranges: their lower ends were seen when a
//! snapshot was taken meanwhile, which the others were too short for.
//!
//! Parts without and with snapshots come in turn (rule M1). In a part with them there is always one replica that makes one, one
//! after the other, as their schedules are apart: each writes what changed since its last one, reads it back, and cuts its log.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::Serialize;
use synod_node::local_cell::LocalCell;
use synod_node::operator::OperatorRequest;
use synod_node::status::Status;

use super::{PaperRow, workload};
use crate::load::stalls;
use crate::measure::{Second, measure};
use crate::plot::{self, Mark, Panel, Point};
use crate::probe::DiskProbe;

/// Parts without and with snapshots, in turn.
const PAIRS: u32 = 5;
/// A snapshot under way is looked at so often.
const POLL: Duration = Duration::from_millis(20);
const PATIENCE: Duration = Duration::from_secs(60);

/// A row of the table without and with snapshots.
#[derive(Clone, Debug, Serialize)]
pub(super) struct SnapshotRow {
    /// The row's workers.
    pub workers: usize,
    /// The row's size of a file.
    pub bytes: usize,
    /// What the paper has: a range.
    pub paper: &'static str,
    /// KB a second, median of the parts.
    pub without_kb_per_s: f64,
    /// The same while snapshots are taken.
    pub with_kb_per_s: f64,
    /// With over without: the lowest, the median and the highest of the pairs.
    pub ratio: [f64; 3],
    /// The worst p99 of a part's seconds, in microseconds, without and with.
    pub p99_us: [f64; 2],
    /// How many snapshots were finished meanwhile.
    pub snapshots: usize,
    /// Why the row says nothing, if it does not.
    pub void: Option<String>,
    /// All seconds of all parts.
    pub series: Vec<Second>,
    /// When snapshots were taken.
    #[serde(skip)]
    pub marks: Vec<Mark>,
}

/// Measures a row. The seconds of its series count from `began`.
pub(super) fn run(
    cell: &LocalCell,
    probe: &DiskProbe,
    paper: &PaperRow,
    seconds: u32,
    began: Instant,
) -> anyhow::Result<SnapshotRow> {
    let mut workload = workload(cell, paper, "snapshots")?;
    let (mut series, mut marks, mut snapshots, mut void) = (Vec::new(), Vec::new(), 0, None);
    // KB a second and p99 of each pair's parts, without and with.
    let mut pairs: Vec<[(f64, f64); 2]> = Vec::new();
    for _ in 0..PAIRS {
        let mut pair = [(0.0, 0.0); 2];
        for with in [false, true] {
            let maker = with.then(|| SnapshotMaker::start(cell, began)).transpose()?;
            let from_s = began.elapsed().as_secs_f64();
            let part = measure(&mut workload, probe, seconds.div_ceil(PAIRS), |_| ())?;
            if let Some(maker) = maker {
                let made = maker.finish()?;
                snapshots += made.len();
                marks.extend(made);
            }
            let rate = if part.figures.operations() == 0 { 0.0 } else { part.figures.per_second() };
            pair[usize::from(with)] = (rate * paper.bytes as f64 / 1024.0, part.figures.quantile_us(0.99));
            // The warm-up comes before a part's first second.
            series
                .extend(part.series.iter().map(|second| Second { at_s: from_s + WARM_UP_S + second.at_s, ..*second }));
            void = void.or(part.void);
        }
        // Of a part in which the disk stalled all the time there is nothing to compare.
        if pair.iter().all(|(rate, _)| *rate > 0.0) {
            pairs.push(pair);
        }
    }
    workload.finish()?;
    if snapshots == 0 {
        void = Some("no snapshot was finished".to_owned());
    }
    anyhow::ensure!(!pairs.is_empty(), "the disk stalled in each of {PAIRS} pairs of parts");
    let rates = |with: usize| sorted(pairs.iter().map(|pair| pair[with].0));
    let ratios = sorted(pairs.iter().map(|[(without, _), (with, _)]| with / without));
    let worst = |with: usize| pairs.iter().map(|pair| pair[with].1).fold(0.0, f64::max);
    let middle = |values: Vec<f64>| values[values.len() / 2];
    Ok(SnapshotRow {
        workers: paper.workers,
        bytes: paper.bytes,
        paper: paper.paxos_chubby,
        without_kb_per_s: middle(rates(0)),
        with_kb_per_s: middle(rates(1)),
        ratio: [ratios[0], ratios[ratios.len() / 2], ratios[ratios.len() - 1]],
        p99_us: [worst(0), worst(1)],
        snapshots,
        void,
        series,
        marks,
    })
}

/// Seconds further apart than this are of parts with a pause between them.
const GAP_S: f64 = 2.5;
const WARM_UP_S: f64 = crate::measure::WARM_UP.as_millis() as f64 / 1000.0;

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values
}

/// Lets one replica after the other make a snapshot, on a thread of its own: it asks and waits, while the load goes on.
struct SnapshotMaker {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Vec<Mark>>>,
}

impl SnapshotMaker {
    fn start(cell: &LocalCell, began: Instant) -> anyhow::Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let (own, endpoints) = (Arc::clone(&stop), cell.endpoints());
        let make_all = move || {
            let mut marks = Vec::new();
            for endpoint in endpoints.iter().cycle() {
                // At least one each: a part of a second may be shorter than a snapshot.
                if own.load(Ordering::Relaxed) && !marks.is_empty() {
                    break;
                }
                marks.push(make_one(endpoint, began)?);
            }
            Ok(marks)
        };
        let thread = std::thread::Builder::new().name("snapshots".to_owned()).spawn(make_all)?;
        Ok(Self { stop, thread })
    }

    /// The last one is waited for, so that the next part has none.
    fn finish(self) -> anyhow::Result<Vec<Mark>> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the thread that asks for snapshots panicked"))?
    }
}

fn make_one(endpoint: &str, began: Instant) -> anyhow::Result<Mark> {
    let before = status(endpoint)?.counters.engine.snapshots;
    let from_s = began.elapsed().as_secs_f64();
    let request = serde_json::to_string(&OperatorRequest::Snapshot)?;
    synod_client::operate(endpoint, &request, PATIENCE).map_err(|error| anyhow::anyhow!("{error}"))?;
    let give_up = Instant::now() + PATIENCE;
    while status(endpoint)?.counters.engine.snapshots == before {
        anyhow::ensure!(Instant::now() < give_up, "{endpoint} makes no snapshot within {PATIENCE:?}");
        std::thread::sleep(POLL);
    }
    Ok(Mark { label: "a replica takes a snapshot".to_owned(), from_s, to_s: began.elapsed().as_secs_f64() })
}

fn status(endpoint: &str) -> anyhow::Result<Status> {
    let text = synod_client::fetch_status(endpoint, PATIENCE).map_err(|error| anyhow::anyhow!("{error}"))?;
    serde_json::from_str(&text).with_context(|| format!("the status of {endpoint}"))
}

/// The rows for a reader.
pub(super) fn describe(rows: &[SnapshotRow]) -> String {
    use std::fmt::Write;
    let mut text = format!(
        "\nThe same while snapshots are taken, in turn with parts without\n\n{:<8}{:>8}{:>8} |{:>12} |{:>12}{:>12}{:>22} |{:>10}{:>10}{:>12}\n",
        "test", "workers", "bytes", "paper", "without", "with", "with / without", "p99 us", "p99 with", "snapshots"
    );
    for row in rows {
        let [low, median, high] = row.ratio;
        writeln!(
            text,
            "{:<8}{:>8}{:>8} |{:>12} |{:>12.0}{:>12.0}{:>22} |{:>10.0}{:>10.0}{:>12}{}",
            "KB/s",
            row.workers,
            row.bytes,
            row.paper,
            row.without_kb_per_s,
            row.with_kb_per_s,
            format!("{median:.2} ({low:.2}-{high:.2})"),
            row.p99_us[0],
            row.p99_us[1],
            row.snapshots,
            if row.void.is_some() { "  VOID" } else { "" }
        )
        .expect("a string grows");
    }
    text
}

/// Throughput and latency over time, with the snapshots marked.
pub(super) fn draw(path: &Path, rows: &[SnapshotRow]) -> anyhow::Result<()> {
    let lines = |value: &dyn Fn(&SnapshotRow, &Second) -> f64| {
        let line = |row: &SnapshotRow| {
            let mut points: Vec<Point> = Vec::new();
            for second in &row.series {
                // The last snapshot of a part is waited for: nothing was asked meanwhile.
                if points.last().is_some_and(|(at, _)| second.at_s - at > GAP_S) {
                    points.push((second.at_s, None));
                }
                points.push((second.at_s, Some(value(row, second))));
            }
            (format!("{} x {} KB", row.workers, row.bytes >> 10), points)
        };
        rows.iter().map(line).collect::<Vec<_>>()
    };
    let rate = |row: &SnapshotRow, second: &Second| second.ops_per_s * row.bytes as f64 / 1024.0;
    let panels = [
        Panel { label: "KB a second".to_owned(), lines: lines(&rate) },
        Panel { label: "p99, us".to_owned(), lines: lines(&|_, second| second.p99_us) },
    ];
    let mut marks: Vec<Mark> = rows.iter().flat_map(|row| row.marks.clone()).collect();
    marks.extend(rows.iter().flat_map(|row| stalls(&row.series)));
    plot::write(path, &plot::over_time("Rows 5 and 6 of Table 1 while snapshots are taken", &panels, &marks))
}
