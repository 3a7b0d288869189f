//! The floor: the bare relay, the least that any replicated log must do on this machine (rule M3).
//!
//! The same processes and the same topology as a cell, and no protocol. A client sends 64 bytes to the leader, which
//! relays them to its followers; each process, the leader too and at the same time, makes one 4 KiB block durable with
//! O_DIRECT; when a majority has, the client is answered. One request is under way at a time. What Synod takes beyond
//! this is Synod's doing; what the floor takes is the machine's.
//!
//! The relay does whatever is fastest here and still honest: short runs try each durable form ([`Form`]) with each socket
//! style ([`Style`]), and the quickest pair is the floor. Its two parts are measured between the relay's windows, so that
//! a disk that drifts drifts for all of them: one durable write with as many files written at once, and one loopback
//! round trip. A relay that needs more than 1.3 times that write and two round trips was disturbed, and is void.
//!
//! Every window starts its processes anew (`floor-replica`, this same binary) and ends them; nothing spins.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, bail, ensure};
use hdrhistogram::Histogram;
use serde::Serialize;

use self::disk::Form;
use self::ping::Style;

pub mod disk;
pub mod ping;
pub mod replica;

/// What to measure.
#[derive(Clone, Debug, clap::Args)]
pub struct FloorOptions {
    /// How many processes keep the log.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub replicas: u8,
    /// How long the relay itself runs; calibration and the two parts take about as long again.
    #[arg(long, default_value_t = 5.0)]
    pub seconds: f64,
    /// Where the files go, for a while: a directory on the disk to be measured. Default: the temporary directory, or the
    /// current one if that is in memory.
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Write the result as JSON to this file, or to the standard output for `-`.
    #[arg(long)]
    pub json: Option<PathBuf>,
    /// The binary that has the `floor-replica` subcommand. Default: the one that is running.
    #[arg(skip)]
    pub executable: Option<PathBuf>,
}

impl Default for FloorOptions {
    fn default() -> Self {
        Self { replicas: 3, seconds: 5.0, dir: None, json: None, executable: None }
    }
}

/// The floor of this machine, now.
#[derive(Clone, Debug, Serialize)]
pub struct Floor {
    /// How many processes kept the log.
    pub replicas: u8,
    /// Half of the requests were answered within this.
    pub p50_us: f64,
    /// All but a hundredth were answered within this.
    pub p99_us: f64,
    /// Requests a second, one at a time.
    pub ops_per_s: f64,
    /// How many requests were measured.
    pub ops: u64,
    /// One durable 4 KiB write, while each of the other processes makes one too.
    pub durable_write_p50_us: f64,
    /// 64 bytes there and back between two processes, in the relay's socket style.
    pub round_trip_p50_us: f64,
    /// The relay against its parts: `p50 / (durable write + two round trips)`.
    pub ratio: f64,
    /// The durable form that calibration found fastest.
    pub form: Form,
    /// The socket style that calibration found fastest.
    pub style: Style,
    /// Everything calibration tried, in the order tried.
    pub calibration: Vec<Calibration>,
    /// Measured so many times until one was not void.
    pub attempts: u32,
    /// Disturbed: the relay is slower than its parts explain, or did too little. Not to be compared with.
    pub void: bool,
}

/// A short run of the relay in one form and style.
#[derive(Clone, Debug, Serialize)]
pub struct Calibration {
    /// How the blocks were made durable.
    pub form: Form,
    /// How the client and the followers used their sockets.
    pub style: Style,
    /// Half of the requests were answered within this.
    pub p50_us: f64,
}

/// Measures and prints. Fails, as a process, if the run is void.
pub fn main(options: &FloorOptions) -> anyhow::Result<ExitCode> {
    let floor = run(options)?;
    let on_stdout = options.json.as_deref() == Some(Path::new("-"));
    let text = describe(&floor);
    if on_stdout {
        eprint!("{text}");
    } else {
        print!("{text}");
    }
    if let Some(path) = &options.json {
        let json = serde_json::to_string_pretty(&floor)? + "\n";
        if on_stdout {
            std::io::stdout().write_all(json.as_bytes())?;
        } else {
            fs::write(path, json).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(if floor.void { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The floor for a reader.
pub fn describe(floor: &Floor) -> String {
    use std::fmt::Write;
    let Floor { replicas, p50_us, p99_us, ops_per_s, ops, durable_write_p50_us, round_trip_p50_us, ratio, .. } = floor;
    let Floor { form, style, attempts, void, .. } = floor;
    let mut text = String::new();
    let mut line = |arguments: std::fmt::Arguments<'_>| writeln!(text, "{arguments}").expect("a string grows");
    line(format_args!("floor, {replicas} replicas: {form}, {style}"));
    line(format_args!(
        "  relay          p50 {p50_us:7.1} us   p99 {p99_us:7.1} us   {ops_per_s:7.0} ops/s   ({ops} ops)"
    ));
    line(format_args!("  durable write  p50 {durable_write_p50_us:7.1} us   ({replicas} files at once)"));
    line(format_args!("  round trip     p50 {round_trip_p50_us:7.1} us"));
    line(format_args!("  relay / (write + 2 round trips) = {ratio:.2}   (void above {RATIO_MAX})"));
    for Calibration { form, style, p50_us } in &floor.calibration {
        line(format_args!("  tried          p50 {p50_us:7.1} us   {form}, {style}"));
    }
    line(format_args!("  {} after {attempts} of at most {ATTEMPTS_MAX} attempts", if *void { "VOID" } else { "good" }));
    text
}

/// Measures the floor; again if the run is void, up to three times.
pub fn run(options: &FloorOptions) -> anyhow::Result<Floor> {
    ensure!(options.seconds > 0.0, "no time to measure in");
    ensure!(options.replicas > 0, "no replicas to measure");
    let base = match &options.dir {
        Some(directory) => directory.clone(),
        None => directory_on_disk()?,
    };
    let directory = tempfile::Builder::new()
        .prefix("synod-floor-")
        .tempdir_in(&base)
        .with_context(|| format!("making a directory in {}", base.display()))?;
    let executable = match &options.executable {
        Some(executable) => executable.clone(),
        None => env::current_exe().context("finding this binary")?,
    };
    let bench = Bench { executable, directory: directory.path().to_owned(), replicas: usize::from(options.replicas) };
    let mut attempts = 0;
    loop {
        attempts += 1;
        let floor = bench.attempt(options.seconds, attempts)?;
        if !floor.void || attempts == ATTEMPTS_MAX {
            return Ok(floor);
        }
    }
}

struct Bench {
    executable: PathBuf,
    directory: PathBuf,
    replicas: usize,
}

impl Bench {
    fn attempt(&self, seconds: f64, attempts: u32) -> anyhow::Result<Floor> {
        let whole = Duration::try_from_secs_f64(seconds).context("--seconds")?;
        let calibration = self.calibrate(whole / 10)?;
        let best = calibration.iter().min_by(|one, other| one.p50_us.total_cmp(&other.p50_us));
        let Calibration { form, style, .. } = *best.context("nothing was tried")?;
        let (mut relay, mut write, mut trip) = (histogram(), histogram(), histogram());
        for _ in 0..ROUNDS {
            write.add(self.durable_write(form, whole / ROUNDS / 5)?)?;
            relay.add(self.relay(form, style, whole / ROUNDS)?)?;
            trip.add(self.round_trip(style, whole / ROUNDS / 5)?)?;
        }
        let expected = micros(&write, 0.5) + 2.0 * micros(&trip, 0.5);
        let ratio = micros(&relay, 0.5) / expected;
        let ops_per_s = relay.len() as f64 / seconds;
        Ok(Floor {
            replicas: self.replicas as u8,
            p50_us: micros(&relay, 0.5),
            p99_us: micros(&relay, 0.99),
            ops_per_s,
            ops: relay.len(),
            durable_write_p50_us: micros(&write, 0.5),
            round_trip_p50_us: micros(&trip, 0.5),
            ratio,
            form,
            style,
            calibration,
            attempts,
            void: ratio > RATIO_MAX || ops_per_s < OPS_PER_S_MIN,
        })
    }

    /// Tries every form with every style, all of them twice in turn: a disk that drifts drifts for all.
    fn calibrate(&self, window: Duration) -> anyhow::Result<Vec<Calibration>> {
        let mut tried = Vec::new();
        for form in Form::ALL {
            for style in Style::ALL {
                tried.push((form, style, histogram()));
            }
        }
        for _ in 0..2 {
            for (form, style, latencies) in &mut tried {
                latencies.add(self.relay(*form, *style, window / 2)?)?;
            }
        }
        let calibration = tried.into_iter().map(|(form, style, latencies)| Calibration {
            form,
            style,
            p50_us: micros(&latencies, 0.5),
        });
        Ok(calibration.collect())
    }

    /// The relay itself; this process is the client.
    fn relay(&self, form: Form, style: Style, window: Duration) -> anyhow::Result<Histogram<u64>> {
        let mut followers = Vec::new();
        let mut addresses = Vec::new();
        for number in 1..self.replicas {
            let mut follower = self.start(replica::Role::Follower, number, form, style, &[])?;
            addresses.push(follower.address()?);
            followers.push(follower);
        }
        let mut leader = self.start(replica::Role::Leader, 0, form, style, &addresses)?;
        let latencies = ping::client(style, connect(leader.address()?)?, window).context("asking the leader")?;
        // The leader leaves with its client, and the followers with their leader.
        leader.finish()?;
        for follower in followers {
            follower.finish()?;
        }
        Ok(latencies)
    }

    /// As many processes as the relay has, each making one block after the other durable.
    fn durable_write(&self, form: Form, window: Duration) -> anyhow::Result<Histogram<u64>> {
        let mut writers = Vec::new();
        for number in 0..self.replicas {
            let mut writer = self.start(replica::Role::Writer { window }, number, form, Style::Ring, &[])?;
            ensure!(writer.line()? == replica::READY, "a writer that is not ready");
            writers.push(writer);
        }
        for writer in &mut writers {
            writer.go()?;
        }
        let mut latencies = histogram();
        for mut writer in writers {
            let counted: Vec<(u64, u64)> = serde_json::from_str(&writer.line()?).context("a writer's latencies")?;
            for (nanoseconds, count) in counted {
                latencies.record_n(nanoseconds, count)?;
            }
            writer.finish()?;
        }
        Ok(latencies)
    }

    fn round_trip(&self, style: Style, window: Duration) -> anyhow::Result<Histogram<u64>> {
        let mut echo = self.start(replica::Role::Echo, 0, Form::Linked, style, &[])?;
        let latencies = ping::client(style, connect(echo.address()?)?, window).context("asking the echo")?;
        echo.finish()?;
        Ok(latencies)
    }

    fn start(
        &self,
        role: replica::Role,
        number: usize,
        form: Form,
        style: Style,
        followers: &[SocketAddr],
    ) -> anyhow::Result<Process> {
        let mut command = Command::new(&self.executable);
        command.arg("floor-replica").args(role.arguments());
        command.arg("--file").arg(self.directory.join(format!("log-{number}")));
        command.args(["--form", form.name(), "--style", style.name()]);
        for follower in followers {
            command.arg("--follower").arg(follower.to_string());
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("starting {}", self.executable.display()))?;
        let (input, output) = (child.stdin.take(), child.stdout.take());
        Ok(Process {
            role,
            child,
            input: input.context("a child's input")?,
            output: BufReader::new(output.context("a child's output")?),
        })
    }
}

/// A child process. It ends when its input does, so it cannot outlive this process, and it is always waited for.
struct Process {
    role: replica::Role,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        ensure!(line.ends_with('\n'), "the {:?} ended early", self.role);
        line.pop();
        Ok(line)
    }

    /// Where it listens.
    fn address(&mut self) -> anyhow::Result<SocketAddr> {
        let line = self.line()?;
        line.parse().with_context(|| format!("the {:?} listens at {line:?}", self.role))
    }

    fn go(&mut self) -> anyhow::Result<()> {
        Ok(self.input.write_all(b"go\n")?)
    }

    /// Waits for it to end by itself.
    fn finish(mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait()? {
                ensure!(status.success(), "the {:?} failed: {status}", self.role);
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        bail!("the {:?} does not end", self.role)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both do nothing to a process that was waited for already, and there is nobody to tell if they fail.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn connect(address: SocketAddr) -> anyhow::Result<TcpStream> {
    let stream = TcpStream::connect(address).with_context(|| format!("connecting to {address}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// The temporary directory, unless it is in memory, where nothing is durable.
pub(crate) fn directory_on_disk() -> anyhow::Result<PathBuf> {
    let temporary = env::temp_dir();
    let directory = File::open(&temporary).with_context(|| format!("opening {}", temporary.display()))?;
    let kind = rustix::fs::fstatfs(&directory)?.f_type;
    if kind == TMPFS_MAGIC || kind == RAMFS_MAGIC { Ok(env::current_dir()?) } else { Ok(temporary) }
}

/// Latencies in nanoseconds, to a minute, within a thousandth.
pub(crate) fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("sound bounds")
}

pub(crate) fn nanoseconds(duration: Duration) -> u64 {
    duration.as_nanos().clamp(1, 60_000_000_000) as u64
}

fn micros(latencies: &Histogram<u64>, quantile: f64) -> f64 {
    // To the tenth: the rest is noise.
    (latencies.value_at_quantile(quantile) as f64 / 100.0).round() / 10.0
}

/// The relay's bytes, one request.
const MESSAGE_BYTES: usize = 64;

/// Above this the relay's time is not explained by its parts (rule M3).
const RATIO_MAX: f64 = 1.3;

/// The least work for a run to count (rule M5): far below what a disk with a 5 ms flush does.
const OPS_PER_S_MIN: f64 = 50.0;

const ATTEMPTS_MAX: u32 = 3;

/// The relay's time is cut in so many windows, with the parts measured between them.
const ROUNDS: u32 = 4;

/// For anything that should take no time: more is a hang.
const PATIENCE: Duration = Duration::from_secs(20);

const TMPFS_MAGIC: rustix::fs::FsWord = 0x0102_1994;
const RAMFS_MAGIC: rustix::fs::FsWord = 0x8584_58f6;
