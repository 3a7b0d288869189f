//! `synod-torture stall`: the master's disk stands still for half a minute. (`faults.md` 2.2.)

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use serde::Serialize;
use synod_client::{Client, Options};
use synod_node::status::Status;

use super::Report;
use super::attack::REPLICAS;
use super::cell::{Common, Place, TortureCell};
use super::durability::EXIT_UNAVAILABLE;
use super::eio::check_available;
use super::faulty_disk::FaultyDisk;
use super::loop_device::within_own_mounts;
use super::mounted_disk::MountedDisk;
use super::profile::Profile;
use super::pulse::{Durations, milliseconds};
use super::stop::Stop;

const CLIENTS: u32 = 4;
/// As large as the log grows in the runs, for no more than a snapshot now and then: it is sparse.
const DEVICE_BYTES: u64 = 16 << 30;
/// For so long writes are measured before the disk hangs, and again after it.
const MEASURED: Duration = Duration::from_secs(5);
/// Between two writes of a client: latency is asked for, not throughput.
const PAUSE: Duration = Duration::from_millis(5);
/// A master is looked for this often.
const LOOK: Duration = Duration::from_millis(5);

/// Let the master's disk stand still: another master within two leases, and the cell's writes as fast as before.
///
/// Each replica is on a disk of its own: ext4 on a loop device on nbdfuse on an NBD server that does nothing while it is told to hang.
/// Four clients write all the time. In each run the disk of whoever is master hangs for --seconds. Within two leases from the
/// beginning there must be another master; the p99 of writes that began outside those two leases, during the hang and after it, must
/// be within 1.5 times that before it. Then the disk goes on, and the replica with it, in the same process: it must catch up.
///
/// It prints a line for each run. It needs root, loop devices, FUSE, and the programs that it names if they are missing (exit status
/// 69: nothing was tested).
#[derive(Args, Clone, Debug)]
pub struct StallOptions {
    /// How many runs
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// For how long the disk hangs
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(2..))]
    pub seconds: u64,
    /// How much longer the p99 may be, against before
    #[arg(long, default_value_t = 1.5)]
    pub p99_ratio_max: f64,
    /// The cell's and the clients' settings
    #[arg(long, value_enum, default_value = "default")]
    pub profile: Profile,
    /// Where it runs, and what becomes of its report
    #[command(flatten)]
    pub common: Common,
}

/// What happened.
#[derive(Clone, Debug, Default, Serialize)]
pub struct StallReport {
    /// Runs.
    pub runs: u32,
    /// For how long the disk hung, in seconds.
    pub seconds: u64,
    /// From the beginning of the hang to another master, each run, in milliseconds.
    pub masters_ms: Vec<u64>,
    /// The longest.
    pub master_max_ms: u64,
    /// The p99 before, and outside the two leases, each run, in microseconds.
    pub p99_us: Vec<(u64, u64)>,
    /// The largest ratio of the two.
    pub ratio_max: f64,
    /// Runs whose ratio was above the bound.
    pub slow_runs: u32,
    /// Writes that were acknowledged.
    pub acknowledged: u64,
    /// Stalls that the replicas counted.
    pub stalls_counted: u64,
}

impl Report for StallReport {
    fn text(&self) -> String {
        format!(
            "stall: {} runs of {} s, another master within {} ms, p99 outside at most {:.2} times that before ({} runs too slow), \
             {} acknowledged writes, {} stalls counted",
            self.runs,
            self.seconds,
            self.master_max_ms,
            self.ratio_max,
            self.slow_runs,
            self.acknowledged,
            self.stalls_counted
        )
    }
}

/// Runs the command.
pub fn main(options: &StallOptions) -> anyhow::Result<ExitCode> {
    if let Err(error) = check_available() {
        eprintln!("synod-torture: {error}");
        return Ok(ExitCode::from(EXIT_UNAVAILABLE));
    }
    within_own_mounts()?;
    let stop = Stop::on_signals()?;
    let report = options.common.within("stall", |place: &Place| Stall::start(place, options, &stop)?.all(options))?;
    super::print(&report, options.common.json)?;
    ensure!(report.slow_runs == 0, "{} runs were too slow", report.slow_runs);
    Ok(ExitCode::SUCCESS)
}

/// A write: when it began, and how long it took.
type Sample = (Instant, Duration);

/// A cell on disks that can hang. The cell goes before the disks, and those before their servers.
struct Stall {
    cell: TortureCell,
    mounted: Vec<MountedDisk>,
    disks: Vec<FaultyDisk>,
}

impl Stall {
    fn start(place: &Place, options: &StallOptions, stop: &Stop) -> anyhow::Result<Self> {
        let cell_dir = place.path().join("cell");
        let (mut mounted, mut disks) = (Vec::new(), Vec::new());
        for id in 1..=REPLICAS {
            let dir = place.path().join(format!("disk-{id}"));
            std::fs::create_dir(&dir).context("cannot make a directory")?;
            let socket = dir.join("nbd.sock");
            disks.push(FaultyDisk::start(&dir.join("backing"), DEVICE_BYTES, &socket)?);
            mounted.push(MountedDisk::start(&dir, &socket, &cell_dir.join(format!("replica-{id}")))?);
        }
        let cell = TortureCell::start(REPLICAS, cell_dir, options.profile.serve_flags(), stop)?;
        Ok(Self { cell, mounted, disks })
    }

    fn all(mut self, options: &StallOptions) -> anyhow::Result<StallReport> {
        let mut report = StallReport { seconds: options.seconds, ..StallReport::default() };
        for run in 1..=options.runs {
            let (master_after, before, outside, acknowledged) = self.one(options)?;
            let ratio = outside.as_secs_f64() / before.as_secs_f64().max(1e-9);
            println!(
                "stall {run:>3}: another master after {} ms, p99 before {} us, outside {} us, ratio {ratio:.2}",
                milliseconds(master_after),
                before.as_micros(),
                outside.as_micros()
            );
            report.runs += 1;
            report.masters_ms.push(milliseconds(master_after));
            report.master_max_ms = report.master_max_ms.max(milliseconds(master_after));
            report.p99_us.push((before.as_micros() as u64, outside.as_micros() as u64));
            report.ratio_max = report.ratio_max.max(ratio);
            report.slow_runs += u32::from(ratio > options.p99_ratio_max);
            report.acknowledged += acknowledged;
        }
        for id in self.cell.ids() {
            let status = self.cell.status(id).context("a replica does not answer")?;
            report.stalls_counted += status.counters.engine.flush_stalls;
        }
        ensure!(
            report.stalls_counted >= u64::from(report.runs),
            "the replicas counted {} stalls",
            report.stalls_counted
        );
        self.cell.stop()?;
        drop(self.mounted);
        Ok(report)
    }

    /// One stall: when there was another master, the p99 before and outside, and how many writes were acknowledged.
    fn one(&mut self, options: &StallOptions) -> anyhow::Result<(Duration, Duration, Duration, u64)> {
        let master = self.cell.master()?;
        let (done, samples) = (AtomicBool::new(false), Mutex::new(Vec::new()));
        let endpoints = self.cell.endpoints();
        let (hung_at, master_after) = std::thread::scope(|scope| -> anyhow::Result<_> {
            let writing: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let (endpoints, done, samples) = (&endpoints, &done, &samples);
                    scope.spawn(move || write(client, endpoints, options.profile.options(), done, samples))
                })
                .collect();
            let stalled = self.stall(options, master);
            done.store(true, Ordering::Relaxed);
            for client in writing {
                client.join().expect("a client returns what it finds")?;
            }
            stalled
        })?;
        let window = 2 * options.profile.lease();
        let samples: Vec<Sample> = samples.into_inner().expect("nobody panics with the samples in hand");
        let [mut before, mut outside] = [Durations::default(), Durations::default()];
        for &(began, took) in &samples {
            if began + took < hung_at {
                before.push(took);
            } else if began >= hung_at + window {
                outside.push(took);
            }
        }
        ensure!(before.count() >= 1000 && outside.count() >= 1000, "too few writes to tell: {}", samples.len());
        ensure!(master_after <= window, "another master only after {master_after:?}; two leases are {window:?}");
        self.cell.wait_until_alike()?;
        Ok((master_after, before.quantile(0.99), outside.quantile(0.99), samples.len() as u64))
    }

    fn stall(&mut self, options: &StallOptions, master: u16) -> anyhow::Result<(Instant, Duration)> {
        std::thread::sleep(MEASURED);
        let faults = self.disks[usize::from(master) - 1].faults().clone();
        let others = self.cell.others(master);
        let protocol = |cell: &TortureCell| cell.ids().into_iter().map(|id| (id, cell.status(id))).collect::<Vec<_>>();
        let before = protocol(&self.cell);
        faults.hang();
        let hung_at = Instant::now();
        let until = hung_at + Duration::from_secs(options.seconds);
        let found = self.cell.look_for(Duration::from_secs(options.seconds), LOOK, |cell| cell.master_among(&others));
        let master_after = hung_at.elapsed();
        if master_after > 2 * options.profile.lease() {
            tell_what_happened(&before, &protocol(&self.cell));
        }
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        faults.go_on();
        ensure!(found?.is_some(), "nobody else became the master while the master's disk hung");
        std::thread::sleep(MEASURED);
        self.cell.check()?;
        Ok((hung_at, master_after))
    }
}

/// What the replicas did between two looks at them: the rows of the protocol's tables, and how often each was taken.
fn tell_what_happened(before: &[(u16, Option<Status>)], after: &[(u16, Option<Status>)]) {
    for ((id, before), (_, after)) in before.iter().zip(after) {
        let (Some(before), Some(after)) = (before, after) else { continue };
        eprintln!("replica {id}: {}, promised {}, chosen {}", after.role, after.promised, after.chosen);
        for (row, count) in &after.protocol {
            let taken = count - before.protocol.get(row).unwrap_or(&0);
            if taken > 0 {
                eprintln!("    {taken:>6} {row}");
            }
        }
    }
}

/// Writes one value after the other, and takes the times.
fn write(
    client: u32,
    endpoints: &[String],
    options: Options,
    done: &AtomicBool,
    samples: &Mutex<Vec<Sample>>,
) -> anyhow::Result<()> {
    let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
    let mut connection = Client::connect(&endpoints, options).context("a client cannot connect")?;
    let mut own = Vec::new();
    let mut number = 0_u64;
    while !done.load(Ordering::Relaxed) {
        let began = Instant::now();
        number += 1;
        connection.put(format!("stall/{client}").as_bytes(), &number.to_le_bytes()).context("a write")?;
        own.push((began, began.elapsed()));
        std::thread::sleep(PAUSE);
    }
    samples.lock().expect("nobody panics with the samples in hand").append(&mut own);
    Ok(())
}
