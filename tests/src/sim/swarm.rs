//! What one seed's world is like: how large, how fast, how hostile.
//!
//! Every seed draws its own mixture, and leaves most kinds of faults out or in as a whole: a world with a little of
//! everything meets fewer corners than many worlds with much of something ("swarm testing", `faults.md` section 1).

use std::time::Duration;

use fastrand::Rng;

pub(crate) const MICROSECOND: u64 = 1_000;
pub(crate) const MILLISECOND: u64 = 1_000_000;
pub(crate) const SECOND: u64 = 1_000_000_000;

/// What a crash does to the sectors that were being written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Tearing {
    /// All of them arrive, or none.
    Whole,
    /// The first few arrive.
    Prefix,
    /// Each arrives or not.
    Sectors,
    /// One of the above, drawn for each crash.
    Any,
}

/// One seed's world. All times are in nanoseconds, all chances within 0 and 1.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    pub(crate) replicas: u16,
    pub(crate) horizon: u64,
    pub(crate) window: u64,
    pub(crate) heartbeat: Duration,
    pub(crate) election_timeout: Duration,

    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) delay_min: u64,
    pub(crate) delay_mean: u64,
    /// How often a message takes up to `delay_long` more.
    pub(crate) delay_long_chance: f64,
    pub(crate) delay_long: u64,
    /// Whether messages of a link keep their order, as they do on one TCP connection.
    pub(crate) fifo: bool,
    /// How often a piece of a client's connection resets it.
    pub(crate) reset: f64,

    /// Mean time between two faults of a kind in the whole cell; `None`: never.
    pub(crate) partition_every: Option<u64>,
    pub(crate) partition_mean: u64,
    pub(crate) crash_every: Option<u64>,
    pub(crate) down_mean: u64,
    /// How many crashes are power cuts, and how many take all replicas at once.
    pub(crate) power_share: f64,
    pub(crate) all_down_share: f64,
    pub(crate) tearing: Tearing,
    /// A replica's process stands still for a while.
    pub(crate) pause_every: Option<u64>,
    pub(crate) pause_mean: u64,

    pub(crate) write_mean: u64,
    pub(crate) sync_mean: u64,
    pub(crate) stall_chance: f64,
    pub(crate) stall: u64,
    /// One replica's disk takes so many times as long; 1: none is slow.
    pub(crate) slow_disk_factor: u64,
    pub(crate) slow_disk: usize,
    /// How long the making of a segment takes.
    pub(crate) segment_mean: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) frame_bytes_max: usize,
    /// How long a turn of the hot core takes: what comes meanwhile is one batch.
    pub(crate) turn_mean: u64,

    /// How long a master waits for more commands after a commit.
    pub(crate) gather_max: Duration,
    pub(crate) clients: usize,
    /// How many requests a client has under way at once.
    pub(crate) outstanding: usize,
    pub(crate) keys: u64,
    pub(crate) value_bytes_max: usize,
    /// Between an answer and the next question.
    pub(crate) think_mean: u64,
    /// How long a client waits for an answer before it gives up.
    pub(crate) patience: u64,
    /// How long faults last, before all must come right.
    pub(crate) safety: u64,
}

fn within(random: &mut Rng, least: u64, most: u64) -> u64 {
    random.u64(least..=most)
}

/// Spread over orders of magnitude evenly.
fn scale(random: &mut Rng, least: u64, most: u64) -> u64 {
    let (least, most) = (least as f64, most as f64);
    (least * (most / least).powf(random.f64())) as u64
}

fn often(random: &mut Rng, chance: f64, least: u64, most: u64) -> Option<u64> {
    let drawn = scale(random, least, most);
    (random.f64() < chance).then_some(drawn)
}

impl Swarm {
    /// The world of this seed.
    pub(crate) fn draw(random: &mut Rng) -> Swarm {
        let replicas = if random.u8(..10) < 7 { 3 } else { 5 };
        let horizon = *random.choice(&[4, 8, 16, 32]).expect("there are four");
        let window = within(random, 1, 8).min(horizon);
        let delay_min = scale(random, 20 * MICROSECOND, 2 * MILLISECOND);
        let delay_mean = scale(random, 50 * MICROSECOND, 15 * MILLISECOND);
        let write_mean = scale(random, 30 * MICROSECOND, 4 * MILLISECOND);
        let sync_mean = scale(random, 30 * MICROSECOND, 4 * MILLISECOND);
        // Long against a round trip and two flushes, or nobody could ever stay elected.
        let trip = 2 * (delay_min + delay_mean) + write_mean + sync_mean;
        let election_timeout = scale(random, 80 * MILLISECOND, 900 * MILLISECOND).max(8 * trip);
        let heartbeat = election_timeout / within(random, 3, 6);
        let clients = within(random, 1, 8) as usize;
        let outstanding = within(random, 1, 3) as usize;
        let frame_blocks = *random.choice(&[6_u64, 8, 16]).expect("there are three");
        let segment_blocks = 5 + frame_blocks * within(random, 2, 4);
        // All that may be asked at once, several times over for retries, fits one frame, as in production.
        let room = frame_blocks as usize * 4096 / (clients * outstanding * 8);
        let safety = within(random, 15, 30) * SECOND;
        let quiet = random.u8(..20) == 0;
        Swarm {
            replicas,
            horizon,
            window,
            heartbeat: Duration::from_nanos(heartbeat),
            election_timeout: Duration::from_nanos(election_timeout),
            loss: if random.u8(..10) < 6 { random.f64() * random.f64() * 0.3 } else { 0.0 },
            duplication: if random.u8(..10) < 5 { random.f64() * 0.3 } else { 0.0 },
            delay_min,
            delay_mean,
            delay_long_chance: if random.u8(..10) < 5 { random.f64() * 0.02 } else { 0.0 },
            delay_long: scale(random, 50 * MILLISECOND, 3 * SECOND),
            fifo: random.bool(),
            reset: if random.u8(..10) < 5 { random.f64() * 0.02 } else { 0.0 },
            partition_every: often(random, 0.6, 300 * MILLISECOND, 8 * SECOND).filter(|_| !quiet),
            partition_mean: scale(random, 100 * MILLISECOND, 3 * SECOND),
            crash_every: often(random, 0.75, 300 * MILLISECOND, 8 * SECOND).filter(|_| !quiet),
            down_mean: scale(random, 10 * MILLISECOND, 3 * SECOND),
            power_share: random.f64(),
            all_down_share: random.f64() * 0.6,
            tearing: *random
                .choice(&[Tearing::Whole, Tearing::Prefix, Tearing::Sectors, Tearing::Any])
                .expect("there are four"),
            pause_every: often(random, 0.4, SECOND, 10 * SECOND).filter(|_| !quiet),
            pause_mean: scale(random, 20 * MILLISECOND, 2 * SECOND),
            write_mean,
            sync_mean,
            stall_chance: if random.u8(..10) < 5 { random.f64() * random.f64() * 0.2 } else { 0.0 },
            stall: scale(random, 20 * MILLISECOND, 2 * SECOND),
            slow_disk_factor: if random.u8(..10) < 4 { scale(random, 4, 100) } else { 1 },
            slow_disk: random.usize(..usize::from(replicas)),
            segment_mean: scale(random, MILLISECOND, 300 * MILLISECOND),
            segment_bytes: segment_blocks * 4096,
            frame_bytes_max: frame_blocks as usize * 4096,
            turn_mean: scale(random, MICROSECOND, 200 * MICROSECOND),
            gather_max: Duration::from_nanos(if random.bool() {
                scale(random, MICROSECOND, 5 * MILLISECOND)
            } else {
                0
            }),
            clients,
            outstanding,
            keys: within(random, 1, 12),
            value_bytes_max: (room.saturating_sub(120) / 2).clamp(16, 3000),
            think_mean: safety / 700 * (clients * outstanding) as u64,
            patience: (4 * election_timeout).max(within(random, SECOND, 8 * SECOND)),
            safety,
        }
    }

    /// No more faults from now on. What was drawn of speeds and sizes stays.
    pub(crate) fn stop_faults(&mut self) {
        self.loss = 0.0;
        self.duplication = 0.0;
        self.delay_long_chance = 0.0;
        self.reset = 0.0;
        self.stall_chance = 0.0;
        self.slow_disk_factor = 1;
        self.partition_every = None;
        self.crash_every = None;
        self.pause_every = None;
    }
}

/// A time around `mean`: mostly shorter, now and then several times as long.
pub(crate) fn around(random: &mut Rng, mean: u64) -> u64 {
    let uniform = random.f64().max(1e-9);
    (-(uniform.ln()) * mean as f64) as u64
}
