//! `synod-torture durability`: each acknowledged write against the logs of the block devices.
//!
//! Three replicas, each on a block device of its own that logs every write and flush with its times. One client writes
//! values that are found nowhere else, one at a time, and notes when the answer came. Afterwards each value is looked up
//! on each device: the write that brought the block it lies in, and the first flush that began after that write had
//! ended. Both must have ended before the client was told, on a majority (design, invariant 2).
//!
//! The devices' log and the client use the same clock, that of the wall. A step of it during the run would spoil the
//! comparison, so the run is void if it moved against the monotonic one.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use synod_client::{Client, Options};
use synod_ring::BLOCK_BYTES;
use synod_wal::frame::MAGIC;

use super::cell::{Common, Place, TortureCell};
use super::device::{FinishedDevice, LoggedDevice, check_available};
use super::device_log::{DeviceWrite, Told, WallClock, judge};
use super::stop::Stop;
use super::{Report, print};

/// The exit status when the machine cannot make such devices: nothing was tested (EX_UNAVAILABLE of sysexits.h).
pub const EXIT_UNAVAILABLE: u8 = 69;

const REPLICAS: u16 = 3;
const DEVICE_BYTES: u64 = 256 << 20;
/// Small segments, so that the change from one to the next is part of it.
const SERVE_FLAGS: [&str; 4] = ["--segment-mb", "4", "--log-mb-max", "128"];
/// What one value has: the run's mark, its number, and some more.
const VALUE_BYTES: usize = 100;
const MARK_BYTES: usize = 16;
/// A value with its headers fits one block, so one write brings it.
const _: () = assert!(VALUE_BYTES < BLOCK_BYTES / 2);
/// The wall clock may drift against the monotonic one by so much during the run.
const CLOCK_STEP_MAX: Duration = Duration::from_micros(500);
/// So many failures are told one by one.
const FAILURES_TOLD: usize = 5;

/// Prove that each acknowledged write was durable on a majority before its client was told.
#[derive(Args, Clone, Debug)]
pub struct DurabilityOptions {
    /// How many writes, one at a time
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub writes: u32,
    /// How often, each time on new devices
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// What was proved.
#[derive(Clone, Debug, Serialize)]
pub struct DurabilityReport {
    /// Writes, all acknowledged.
    pub writes: u32,
    /// Of these, durable on a majority before the answer came.
    pub on_a_majority: u32,
    /// Of these, durable on all replicas by then.
    pub on_all: u32,
    /// Microseconds from the moment when a majority had a write to its answer: the least.
    pub margin_min_us: i64,
    /// The median.
    pub margin_p50_us: i64,
    /// The median time from the request to the answer.
    pub latency_p50_us: i64,
    /// Writes that each device was told.
    pub device_writes: Vec<usize>,
    /// Flushes that each device was told.
    pub device_flushes: Vec<usize>,
    /// Blocks of the log that hold a value, on each device.
    pub frames: Vec<usize>,
    /// How far the wall clock moved against the monotonic one, in microseconds.
    pub clock_moved_us: i64,
    /// Why others are not proved; told one by one, up to a few.
    pub failures: Vec<String>,
}

impl Report for DurabilityReport {
    fn text(&self) -> String {
        let row = |numbers: &[usize]| numbers.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
        format!(
            "acknowledged writes   {} (p50 {} us each)\n\
             device writes         {}\n\
             device flushes        {}\n\
             frames with a value   {}\n\
             clock                 moved {} us against the monotonic one\n\
             durable on all        {}\n\
             margin                min {} us, p50 {} us from a majority's flush to the answer\n\
             {} of {} acknowledged writes were written and flushed on a majority of {REPLICAS} devices before the answer",
            self.writes,
            self.latency_p50_us,
            row(&self.device_writes),
            row(&self.device_flushes),
            row(&self.frames),
            self.clock_moved_us,
            self.on_all,
            self.margin_min_us,
            self.margin_p50_us,
            self.on_a_majority,
            self.writes
        )
    }
}

/// Runs the command.
pub fn main(options: &DurabilityOptions) -> anyhow::Result<ExitCode> {
    if let Err(error) = check_available() {
        eprintln!("synod-torture: {error}");
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    let stop = Stop::on_signals()?;
    for _ in 0..options.rounds {
        prove(options, &stop)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// One round: fails if a write was answered too early.
fn prove(options: &DurabilityOptions, stop: &Stop) -> anyhow::Result<()> {
    options.common.within("durability", |place| {
        let report = measure(options, place, stop)?;
        print(&report, options.common.json)?;
        for failure in &report.failures {
            eprintln!("synod-torture: {failure}");
        }
        ensure!(
            report.on_a_majority == report.writes,
            "{} acknowledged writes are not proved durable",
            report.writes - report.on_a_majority
        );
        Ok(())
    })
}

fn measure(options: &DurabilityOptions, place: &Place, stop: &Stop) -> anyhow::Result<DurabilityReport> {
    let cell_dir = place.path().join("cell");
    let mut devices = Vec::new();
    for id in 1..=REPLICAS {
        stop.check()?;
        let dir = place.path().join(format!("device-{id}"));
        devices.push(LoggedDevice::start(&dir, DEVICE_BYTES, &cell_dir.join(format!("replica-{id}")))?);
    }
    eprintln!("{REPLICAS} devices that log are mounted; {} writes, one at a time", options.writes);
    // The cell goes before the devices that it is on, however this ends: it was made after them.
    let mut cell = TortureCell::start(REPLICAS, cell_dir, &SERVE_FLAGS, stop)?;
    let clocks = (WallClock::now(), Instant::now());
    let mark: [u8; MARK_BYTES] = std::array::from_fn(|_| fastrand::u8(..));
    let told = write(&mut cell, mark, options.writes, stop)?;
    let clock_moved_us = WallClock::now().since(clocks.0) - clocks.1.elapsed().as_micros() as i64;
    ensure!(
        clock_moved_us.unsigned_abs() < CLOCK_STEP_MAX.as_micros() as u64,
        "void: the wall clock moved by {clock_moved_us} us against the monotonic one; run it again"
    );
    cell.wait_until_alike()?;
    cell.stop()?;
    drop(cell);
    let devices: Vec<FinishedDevice> = devices.into_iter().map(LoggedDevice::finish).collect::<anyhow::Result<_>>()?;
    conclude(&told, mark, &devices, clock_moved_us)
}

/// Writes values that are found nowhere else, one at a time, and notes when their answers came.
fn write(cell: &mut TortureCell, mark: [u8; MARK_BYTES], writes: u32, stop: &Stop) -> anyhow::Result<Vec<Told>> {
    let endpoints = cell.endpoints();
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut client = Client::connect(&endpoints, Options::default())?;
    client.put(b"durability", b"begins").context("the first write")?;
    // A replica that comes late to the first writes gets them in larger frames, which are not looked through.
    cell.wait_until_alike()?;
    let mut told = Vec::with_capacity(writes as usize);
    for number in 0..writes {
        stop.check()?;
        let mut value = Vec::with_capacity(VALUE_BYTES);
        value.extend(mark);
        value.extend(number.to_le_bytes());
        value.resize(VALUE_BYTES, b'.');
        let key = format!("durability/{number}");
        let asked = WallClock::now();
        client.put(key.as_bytes(), &value).with_context(|| format!("write {number}"))?;
        told.push(Told { asked, answered: WallClock::now() });
        if (number + 1) % 250 == 0 {
            eprintln!("{} of {writes} writes acknowledged", number + 1);
        }
    }
    Ok(told)
}

fn conclude(
    told: &[Told],
    mark: [u8; MARK_BYTES],
    devices: &[FinishedDevice],
    clock_moved_us: i64,
) -> anyhow::Result<DurabilityReport> {
    let places: Vec<HashMap<u32, Vec<u64>>> =
        devices.iter().map(|device| find_values(&device.backing_file, mark)).collect::<anyhow::Result<_>>()?;
    let mut report = DurabilityReport {
        writes: told.len() as u32,
        on_a_majority: 0,
        on_all: 0,
        margin_min_us: 0,
        margin_p50_us: 0,
        latency_p50_us: median(told.iter().map(|told| told.answered.since(told.asked)).collect()),
        device_writes: devices.iter().map(|device| device.log.writes.len()).collect(),
        device_flushes: devices.iter().map(|device| device.log.flushes.len()).collect(),
        frames: places.iter().map(|places| places.values().map(Vec::len).sum()).collect(),
        clock_moved_us,
        failures: Vec::new(),
    };
    let mut margins = Vec::with_capacity(told.len());
    for (number, &told) in (0..).zip(told) {
        let durable = |(device, places): (&FinishedDevice, &HashMap<u32, Vec<u64>>)| {
            let blocks = places.get(&number).map_or(&[][..], Vec::as_slice);
            // More than one block only if it was accepted again, under another ballot: the first one counts.
            let durable = blocks.iter().filter_map(|&block| device.log.durable(block, BLOCK_BYTES as u64));
            durable.min_by_key(|(_, durable)| *durable)
        };
        let durable: Vec<Option<(DeviceWrite, WallClock)>> = devices.iter().zip(&places).map(durable).collect();
        match judge(told, &durable) {
            Ok(proved) => {
                report.on_a_majority += 1;
                report.on_all += u32::from(proved.devices == devices.len());
                margins.push(proved.margin_us);
            }
            Err(why) if report.failures.len() < FAILURES_TOLD => report.failures.push(format!("write {number}: {why}")),
            Err(_) => {}
        }
    }
    report.margin_min_us = margins.iter().copied().min().unwrap_or_default();
    report.margin_p50_us = median(margins);
    Ok(report)
}

/// Where the run's values lie on a device: for each number the blocks of the log that hold it.
fn find_values(backing_file: &Path, mark: [u8; MARK_BYTES]) -> anyhow::Result<HashMap<u32, Vec<u64>>> {
    let mut file = File::open(backing_file).context("cannot open a device's backing file")?;
    let mut found: HashMap<u32, Vec<u64>> = HashMap::new();
    let mut bytes = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let read = read_full(&mut file, &mut bytes).context("cannot read a device's backing file")?;
        for (block, index) in bytes[..read].chunks_exact(BLOCK_BYTES).zip(0..) {
            // One put's frame fits one block and begins it.
            if !block.starts_with(&MAGIC) {
                continue;
            }
            let marks = block.windows(MARK_BYTES + 4).filter(|window| window.starts_with(&mark));
            for window in marks {
                let number = u32::from_le_bytes(window[MARK_BYTES..].try_into().expect("four bytes"));
                found.entry(number).or_default().push(at + index * BLOCK_BYTES as u64);
            }
        }
        if read < bytes.len() {
            return Ok(found);
        }
        at += read as u64;
    }
}

fn read_full(file: &mut File, bytes: &mut [u8]) -> std::io::Result<usize> {
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read(&mut bytes[filled..])? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(filled)
}

fn median(mut numbers: Vec<i64>) -> i64 {
    numbers.sort_unstable();
    numbers.get(numbers.len() / 2).copied().unwrap_or_default()
}
