//! The log beside the disk's own limit: what it takes on top of the bare writes that it asks for.
//!
//! Both sides do the same writes, of the same length, one at a time, through a ring of the same kind, into files that were
//! made by the same code: the *log* appends records, seals a frame, flushes it and takes it back; the *probe* writes one of
//! two buffers and fills the other meanwhile. (A probe that writes the same bytes again and again is a little faster, and no log's bytes
//! are like that: `docs/performance.md`.) They take turns, many pairs of short windows for each size (rule M1), in three places on the
//! disk, and a window in which the disk stalled is void and run again (rule M2). The log's segments go around as in a replica: cut off,
//! and recycled by a thread of their own while flushes run. What an append costs of the processor is measured without a disk, with frames
//! filled to the brim.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;
use synod_ring::{AlignedBuffer, Handle, Outcome, Ring};
use synod_wal::frame::FRAME_HEADER_BYTES;
use synod_wal::record::RECORD_HEADER_BYTES;
use synod_wal::{
    Ballot, CellId, Identity, Incarnation, Log, RecordKind, RecordNumber, ReplicaId, SegmentId, Settings, Slot,
    StartId, Upkeep, directory,
};

use crate::floor::{directory_on_disk, histogram, nanoseconds};
use crate::probe::{DiskProbe, STALL};
use crate::progress;

/// The log's flush against the bare write and sync of the same size, at the median.
const LATENCY_MAX: f64 = 1.10;
/// The log's bytes a second against those of the bare writes.
const BANDWIDTH_MIN: f64 = 0.90;
/// What a 64-byte record may cost from append to taken back, the disk's work left out.
const APPEND_NS_MAX: f64 = 150.0;

const LATENCY_BYTES: usize = 4 << 10;
const BANDWIDTH_BYTES: [usize; 3] = [64 << 10, 256 << 10, 1 << 20];
/// So often all files and buffers are made anew: else a run's ratio stays to one side by up to a tenth.
const PLACES: u32 = 3;
/// As many files as a log that is cut at once needs: in use, ready, and one to be recycled.
const FILES: u64 = 4;
/// Below this many flushes a window says nothing (rule M5).
const FLUSHES_MIN: u64 = 50;
const RECORD_BYTES: usize = 64;
/// The longest record that frames are filled with, header and all: about the middle one of the values in the paper's Table 1.
const LARGE_RECORD_BYTES: usize = 8 << 10;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct WalOptions {
    /// How long one window takes; there are two in each pair, for each of four sizes
    #[arg(long, default_value_t = 0.12)]
    pub seconds: f64,
    /// Pairs of windows, log and probe in turn, in each of three places on the disk
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub pairs: u32,
    /// Where the files go, for a while: a directory on the disk to be measured. Default: the temporary directory, or the
    /// current one if that is in memory
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Write the result as JSON to this file, or to the standard output for `-`
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What was measured.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// One for each size.
    pub sizes: Vec<SizeReport>,
    /// The processor's time for one 64-byte record.
    pub append_ns: f64,
    /// How many were appended to know that.
    pub appends: u64,
    /// Windows left out because the disk stalled.
    pub void_windows: usize,
    /// Why all of it is to be left out, if it is.
    pub void: Option<String>,
    /// What was missed; empty if every bar was held.
    pub missed: Vec<String>,
}

/// One size.
#[derive(Clone, Debug, Serialize)]
pub struct SizeReport {
    /// What one flush writes.
    pub bytes: usize,
    /// The log's side, all windows together.
    pub log: Side,
    /// The bare writes' side.
    pub probe: Side,
    /// Log by probe at the median, pair by pair: the median of these, the least, the most.
    pub latency_ratio: [f64; 3],
    /// The same for bytes a second.
    pub bandwidth_ratio: [f64; 3],
    /// What fio says of such writes, where it is installed: the mean of a write with its sync.
    pub fio_us: Option<f64>,
}

/// One side's figures.
#[derive(Clone, Debug, Serialize)]
pub struct Side {
    /// Half of the flushes took at most this.
    pub p50_us: f64,
    /// All but a hundredth did.
    pub p99_us: f64,
    /// Bytes a second.
    pub mb_per_s: f64,
    /// How many flushes.
    pub flushes: u64,
}

/// Measures and prints. The exit status: 0, every bar was held; 1, one was missed; 2, the run is void.
pub fn main(options: &WalOptions) -> anyhow::Result<ExitCode> {
    let report = run(options)?;
    let on_stdout = options.json.as_deref() == Some(Path::new("-"));
    let text = describe(&report);
    if on_stdout {
        eprint!("{text}");
    } else {
        print!("{text}");
    }
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&report)? + "\n";
        if on_stdout {
            std::io::stdout().write_all(json.as_bytes())?;
        } else {
            fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(match (&report.void, report.missed.is_empty()) {
        (Some(_), _) => ExitCode::from(2),
        (None, false) => ExitCode::from(1),
        (None, true) => ExitCode::SUCCESS,
    })
}

/// The report for a reader; the last line sums it up.
pub fn describe(report: &Report) -> String {
    use std::fmt::Write;
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| writeln!(text, "{arguments}").expect("a string grows");
    line(format_args!(
        "{:>9}{:>24}{:>24}{:>20}{:>20}{:>12}",
        "flush", "log p50 / p99 us", "probe p50 / p99 us", "p50 ratio", "MB/s ratio", "fio mean us"
    ));
    for size in &report.sizes {
        let side = |side: &Side| format!("{:.1} / {:.1}", side.p50_us, side.p99_us);
        let ratio = |[median, least, most]: [f64; 3]| format!("{median:.2} ({least:.2}-{most:.2})");
        line(format_args!(
            "{:>5} KiB{:>24}{:>24}{:>20}{:>20}{:>12}",
            size.bytes >> 10,
            side(&size.log),
            side(&size.probe),
            ratio(size.latency_ratio),
            ratio(size.bandwidth_ratio),
            size.fio_us.map_or("-".to_owned(), |us| format!("{us:.1}")),
        ));
        line(format_args!(
            "{:>9}{:>19.0} MB/s{:>19.0} MB/s   {} and {} flushes",
            "", size.log.mb_per_s, size.probe.mb_per_s, size.log.flushes, size.probe.flushes
        ));
    }
    line(format_args!(
        "an append of {RECORD_BYTES} bytes: {:.1} ns of the processor, sealing included ({} appends)",
        report.append_ns, report.appends
    ));
    let first = &report.sizes[0];
    let bandwidths: Vec<String> = report.sizes[1..]
        .iter()
        .map(|size| format!("{} KiB {:.2}x", size.bytes >> 10, size.bandwidth_ratio[0]))
        .collect();
    let verdict = match (&report.void, report.missed.is_empty()) {
        (Some(why), _) => format!("VOID ({why})"),
        (None, true) => "HELD".to_owned(),
        (None, false) => format!("MISSED ({})", report.missed.join(", ")),
    };
    line(format_args!(
        "wal: {verdict}: flush p50 {:.2}x of the probe (bar {LATENCY_MAX:.2}); bandwidth {} (bar {BANDWIDTH_MIN:.2}); {:.0} ns an \
         append (bar {APPEND_NS_MAX:.0}); {} windows void",
        first.latency_ratio[0],
        bandwidths.join(", "),
        report.append_ns,
        report.void_windows
    ));
    text
}

/// Measures all sizes, then the appends.
pub fn run(options: &WalOptions) -> anyhow::Result<Report> {
    ensure!(options.seconds > 0.0, "no time to measure in");
    let base = match &options.dir {
        Some(directory) => directory.clone(),
        None => directory_on_disk()?,
    };
    let directory = tempfile::Builder::new()
        .prefix("synod-wal-")
        .tempdir_in(&base)
        .with_context(|| format!("making a directory in {}", base.display()))?;
    let window = Duration::from_secs_f64(options.seconds);
    let watch = DiskProbe::start(directory.path())?;
    let sizes: Vec<usize> = [LATENCY_BYTES].into_iter().chain(BANDWIDTH_BYTES).collect();
    let pairs_wanted = (PLACES * options.pairs) as usize * sizes.len();
    let bar = progress::bar(pairs_wanted as u64, "wal");
    let mut pairs: Vec<Vec<(Window, Window)>> = sizes.iter().map(|_| Vec::new()).collect();
    let mut void_windows = 0;
    for place in 0..PLACES {
        let mut log = LogSide::start(&directory.path().join(format!("log-{place}")))?;
        let mut raw = RawSide::start(&directory.path().join(format!("probe-{place}")))?;
        for (pairs, &bytes) in pairs.iter_mut().zip(&sizes) {
            bar.set_message(format!("{} KiB", bytes >> 10));
            // Caches, clocks and the first segments.
            log.run(bytes, window / 5)?;
            raw.run(bytes, window / 5)?;
            watch.slowest();
            // More than one void window in five: the run is void, and need not go on for ever.
            while pairs.len() < ((place + 1) * options.pairs) as usize && void_windows <= pairs_wanted {
                // Whoever is first has a disk that rested: they take turns in that, too.
                let is_log_first = pairs.len().is_multiple_of(2);
                let first = if is_log_first { log.run(bytes, window)? } else { raw.run(bytes, window)? };
                let second = if is_log_first { raw.run(bytes, window)? } else { log.run(bytes, window)? };
                if watch.slowest() > STALL {
                    void_windows += 1;
                    continue;
                }
                pairs.push(if is_log_first { (first, second) } else { (second, first) });
                bar.inc(1);
            }
        }
    }
    let mut report_sizes = Vec::new();
    for (pairs, bytes) in pairs.iter().zip(sizes) {
        ensure!(
            !pairs.is_empty(),
            "the disk stalled in each of {void_windows} windows: nothing can be measured on it now"
        );
        report_sizes.push(size_report(bytes, pairs, fio_us(directory.path(), bytes, window))?);
    }
    bar.finish_and_clear();
    drop(watch);
    let (append_ns, appends) = append_cost();
    let mut report = Report { sizes: report_sizes, append_ns, appends, void_windows, void: None, missed: Vec::new() };
    let fewest = report.sizes.iter().map(|size| size.log.flushes.min(size.probe.flushes)).min().unwrap_or(0);
    if void_windows * 4 > pairs_wanted {
        report.void = Some(format!(
            "the disk stalled over {STALL:?} in {void_windows} windows of {}",
            pairs_wanted + void_windows
        ));
    } else if fewest < FLUSHES_MIN {
        report.void = Some(format!("only {fewest} flushes of a size, at least {FLUSHES_MIN} are needed"));
    }
    if report.sizes[0].latency_ratio[0] > LATENCY_MAX {
        report.missed.push("flush p50".to_owned());
    }
    for size in report.sizes[1..].iter().filter(|size| size.bandwidth_ratio[0] < BANDWIDTH_MIN) {
        report.missed.push(format!("bandwidth at {} KiB", size.bytes >> 10));
    }
    if report.append_ns > APPEND_NS_MAX {
        report.missed.push("an append's cost".to_owned());
    }
    Ok(report)
}

/// A window of one side.
struct Window {
    latencies: Histogram<u64>,
    bytes: u64,
    elapsed: Duration,
}

impl Window {
    fn mb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.elapsed.as_secs_f64()
    }
}

fn size_report(bytes: usize, pairs: &[(Window, Window)], fio_us: Option<f64>) -> anyhow::Result<SizeReport> {
    let side = |windows: Vec<&Window>| -> anyhow::Result<Side> {
        let mut all = histogram();
        for window in &windows {
            all.add(&window.latencies)?;
        }
        let us = |quantile| all.value_at_quantile(quantile) as f64 / 1000.0;
        let total: u64 = windows.iter().map(|window| window.bytes).sum();
        let elapsed: Duration = windows.iter().map(|window| window.elapsed).sum();
        let mb_per_s = total as f64 / 1e6 / elapsed.as_secs_f64();
        Ok(Side { p50_us: us(0.5), p99_us: us(0.99), mb_per_s, flushes: all.len() })
    };
    let ratios = |ratio: fn(&(Window, Window)) -> f64| {
        let mut all: Vec<f64> = pairs.iter().map(ratio).collect();
        all.sort_unstable_by(f64::total_cmp);
        [all[all.len() / 2], all[0], all[all.len() - 1]]
    };
    Ok(SizeReport {
        bytes,
        log: side(pairs.iter().map(|(log, _)| log).collect())?,
        probe: side(pairs.iter().map(|(_, raw)| raw).collect())?,
        latency_ratio: ratios(|(log, raw)| {
            log.latencies.value_at_quantile(0.5) as f64 / raw.latencies.value_at_quantile(0.5) as f64
        }),
        bandwidth_ratio: ratios(|(log, raw)| log.mb_per_s() / raw.mb_per_s()),
        fio_us,
    })
}

fn new_ring() -> anyhow::Result<Ring<()>> {
    Ok(Ring::new(synod_ring::Options::default())?)
}

/// One flush, waited for; what is to be done meanwhile is done once the kernel has it.
fn flush(
    meanwhile: impl FnOnce(&mut Ring<()>),
    ring: &mut Ring<()>,
    file: &Handle,
    offset: u64,
    buffer: AlignedBuffer,
    length: usize,
) -> anyhow::Result<AlignedBuffer> {
    ring.write_durably((), file, offset, buffer, length);
    let mut completions = Vec::with_capacity(1);
    ring.enter(Some(Duration::ZERO), &mut completions)?;
    meanwhile(ring);
    while completions.is_empty() {
        ring.enter(None, &mut completions)?;
    }
    let outcome = completions.pop().map(|completion| completion.outcome);
    let Some(Outcome::Flushed { buffer, result }) = outcome else { bail!("the ring completed what nobody asked for") };
    result?;
    Ok(buffer)
}

/// Bare writes, around and around over a few files.
struct RawSide {
    ring: Ring<()>,
    files: Vec<Handle>,
    segment_bytes: u64,
    file: usize,
    offset: u64,
    /// The one to be written, and the one that is filled meanwhile.
    buffers: Option<[AlignedBuffer; 2]>,
    /// What it is filled with.
    fill: u8,
}

impl RawSide {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir(dir)?;
        let segment_bytes = Settings::default().segment_bytes;
        let mut files = Vec::new();
        for segment in (1..=FILES).map(SegmentId) {
            let file = directory::carry_out(dir, Upkeep::Make(segment), segment_bytes)?;
            files.push(Handle::from(file.context("a segment was made")?));
        }
        let buffers = [(); 2].map(|()| AlignedBuffer::zeroed(Settings::default().frame_bytes_max));
        Ok(Self { ring: new_ring()?, files, segment_bytes, file: 0, offset: 0, buffers: Some(buffers), fill: 0 })
    }

    fn run(&mut self, bytes: usize, window: Duration) -> anyhow::Result<Window> {
        let (mut latencies, mut total) = (histogram(), 0);
        let start = Instant::now();
        let mut now = start;
        while now - start < window {
            if self.offset + bytes as u64 > self.segment_bytes {
                (self.file, self.offset) = ((self.file + 1) % self.files.len(), 0);
            }
            let [buffer, mut next] = self.buffers.take().context("one flush at a time")?;
            self.fill = self.fill.wrapping_add(1);
            let fill_next = |_: &mut Ring<()>| next[..bytes].fill(self.fill);
            let buffer = flush(fill_next, &mut self.ring, &self.files[self.file], self.offset, buffer, bytes)?;
            self.buffers = Some([next, buffer]);
            self.offset += bytes as u64;
            total += bytes as u64;
            let ended = Instant::now();
            latencies.record(nanoseconds(ended - now))?;
            now = ended;
        }
        Ok(Window { latencies, bytes: total, elapsed: now - start })
    }
}

type Made = (Upkeep, Result<Option<File>, directory::DirectoryError>);

/// A log, cut right behind its end, and the thread that looks after its files.
struct LogSide {
    ring: Option<Ring<()>>,
    log: Log,
    segments: BTreeMap<SegmentId, Handle>,
    slot: u64,
    value: Vec<u8>,
    requests: mpsc::Sender<Upkeep>,
    finished: mpsc::Receiver<Made>,
    is_under_way: bool,
}

impl LogSide {
    fn start(dir: &Path) -> anyhow::Result<Self> {
        fs::create_dir(dir)?;
        let settings = Settings::default();
        let (requests, to_do) = mpsc::channel();
        let (done, finished) = mpsc::channel();
        let (dir, segment_bytes) = (dir.to_owned(), settings.segment_bytes);
        let work = move || {
            while let Ok(upkeep) = to_do.recv() {
                if done.send((upkeep, directory::carry_out(&dir, upkeep, segment_bytes))).is_err() {
                    return;
                }
            }
        };
        // It ends with its requests, and is then at most busy with one file of a directory that goes away.
        std::thread::Builder::new().name("segments".to_owned()).spawn(work)?;
        let log = synod_wal::create(settings, identity());
        let value = vec![0x5a; LARGE_RECORD_BYTES];
        let mut side = Self {
            ring: Some(new_ring()?),
            log,
            segments: BTreeMap::new(),
            slot: 0,
            value,
            requests,
            finished,
            is_under_way: false,
        };
        // All the files there will be are made, and used once, before anything is measured.
        while side.segments.keys().next_back().is_none_or(|newest| newest.0 <= 2 * FILES) {
            side.flush_one(1 << 20, true)?;
        }
        Ok(side)
    }

    fn run(&mut self, bytes: usize, window: Duration) -> anyhow::Result<Window> {
        let (mut latencies, mut total) = (histogram(), 0);
        let start = Instant::now();
        let mut now = start;
        while now - start < window {
            total += self.flush_one(bytes, false)?;
            let ended = Instant::now();
            latencies.record(nanoseconds(ended - now))?;
            now = ended;
        }
        // The next window's records may have another length.
        self.flush_one(bytes, true)?;
        Ok(Window { latencies, bytes: total, elapsed: now - start })
    }

    /// Records that fill a frame of this length, durable; the segment's opening too, when it is time for one.
    fn flush_one(&mut self, bytes: usize, may_wait: bool) -> anyhow::Result<u64> {
        // The first of a window; every other was appended while the one before was flushed, as in a busy replica.
        let queued = self.log.appended();
        let upto = if queued > self.log.durable() { queued } else { self.append(bytes, || ()) };
        let mut total = 0;
        while self.log.durable() < upto {
            self.look_after(false)?;
            let Some(wanted) = self.log.seal() else {
                // The next segment is not ready: as in a replica, that is waited for, and it counts.
                self.look_after(true)?;
                continue;
            };
            let file = self.segments.get(&wanted.segment).context("a flush goes to a segment that is ready")?;
            let file = file.clone();
            let mut ring = self.ring.take().context("one flush at a time")?;
            let is_last = wanted.length == bytes && self.log.appended() == upto;
            // As a replica does in a long turn: the sync behind a write that is over does not wait until all is appended.
            let next = |ring: &mut Ring<()>| {
                if is_last && !may_wait {
                    self.append(bytes, || ring.nudge());
                }
            };
            let buffer = flush(next, &mut ring, &file, wanted.offset, wanted.buffer, wanted.length)?;
            self.ring = Some(ring);
            total += wanted.length as u64;
            self.log.flushed(buffer);
            self.segments.retain(|segment, _| *segment >= wanted.segment);
        }
        self.look_after(may_wait)?;
        Ok(total)
    }

    /// The records of one frame, and what is done behind each.
    fn append(&mut self, bytes: usize, mut behind: impl FnMut()) -> RecordNumber {
        let mut rest = bytes - FRAME_HEADER_BYTES;
        loop {
            let record = rest.min(LARGE_RECORD_BYTES);
            rest -= record;
            self.slot += 1;
            let value = &self.value[..record - RECORD_HEADER_BYTES];
            let number = self.log.append(RecordKind::Accepted, Slot(self.slot), Ballot(1), &[value]);
            behind();
            if rest == 0 {
                self.log.cut(Slot(self.slot));
                return number;
            }
        }
    }

    fn look_after(&mut self, may_wait: bool) -> anyhow::Result<()> {
        loop {
            if !self.is_under_way
                && let Some(upkeep) = self.log.upkeep()
            {
                self.requests.send(upkeep).context("the segment thread has ended")?;
                self.is_under_way = true;
            }
            if !self.is_under_way {
                return Ok(());
            }
            let made = if may_wait { self.finished.recv().ok() } else { self.finished.try_recv().ok() };
            let Some((upkeep, file)) = made else { return Ok(()) };
            self.is_under_way = false;
            if let (Some(segment), Some(file)) = (upkeep.readies(), file?) {
                self.segments.insert(segment, Handle::from(file));
            }
            self.log.upkeep_done(upkeep);
        }
    }
}

fn identity() -> Identity {
    Identity { cell: CellId(1), replica: ReplicaId(1), incarnation: Incarnation(1), start: StartId(1) }
}

/// The processor's time for one record, from append to taken back, with frames filled to the brim: and how many were
/// appended. The best of five rounds: what else runs here can only add.
fn append_cost() -> (f64, u64) {
    const ROUNDS: u32 = 5;
    const RECORDS: u64 = 2_000_000;
    let value = [0x5a; RECORD_BYTES];
    let (head, tail) = value.split_at(20);
    let mut best = f64::INFINITY;
    let mut slot = 0;
    for _ in 0..ROUNDS {
        let mut log = synod_wal::create(Settings::default(), identity());
        let full = Settings::default().frame_bytes_max as u64;
        let start = cpu_time();
        for _ in 0..RECORDS {
            slot += 1;
            log.append(RecordKind::Accepted, Slot(slot), Ballot(1), &[head, tail]);
            if slot % 1024 == 0 && log.unflushed_bytes() > full {
                take_all(&mut log, slot);
            }
        }
        take_all(&mut log, slot);
        best = best.min((cpu_time() - start).as_nanos() as f64 / RECORDS as f64);
    }
    (best, u64::from(ROUNDS) * RECORDS)
}

/// A disk that takes no time.
fn take_all(log: &mut Log, slot: u64) {
    log.cut(Slot(slot));
    loop {
        while let Some(upkeep) = log.upkeep() {
            log.upkeep_done(upkeep);
        }
        let Some(flush) = log.seal() else { return };
        log.flushed(flush.buffer);
    }
}

fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("the processor's time is not negative")
}

/// What fio needs for a write with its sync, on a file prepared by itself; `None` where there is no fio.
fn fio_us(dir: &Path, bytes: usize, window: Duration) -> Option<f64> {
    let mut fio = Command::new("fio");
    fio.args(["--name=wal", "--ioengine=io_uring", "--direct=1", "--rw=write", "--overwrite=1", "--iodepth=1"]);
    fio.args(["--fdatasync=1", "--size=64m", "--time_based", "--output-format=json"]);
    fio.arg(format!("--bs={bytes}")).arg(format!("--runtime={}", window.as_secs().max(1))).arg("--directory").arg(dir);
    let output = fio.output().ok().filter(|output| output.status.success())?;
    let result: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
    let per_second = result["jobs"][0]["write"]["iops"].as_f64().filter(|iops| *iops > 0.0)?;
    // Its latencies leave the sync out; its rate does not.
    Some(1e6 / per_second)
}
