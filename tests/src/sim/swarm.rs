//! What one seed's world is like: how large, how fast, how hostile.
//!
//! Every seed draws its own mixture, here and in `faults`, and leaves most kinds of faults out or in as a whole: a world
//! with a little of everything meets fewer corners than many worlds with much of something ("swarm testing").

use std::time::Duration;

use fastrand::Rng;

use super::faults::Kind;

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
}

/// One seed's world. All times are in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Swarm {
    /// How many keep the cell in the beginning.
    pub(crate) replicas: u16,
    /// How many there are in all: those beyond are there to be added.
    pub(crate) machines: u16,
    pub(crate) horizon: u64,
    pub(crate) window: u64,
    pub(crate) heartbeat: Duration,
    pub(crate) election_timeout: Duration,
    /// The master's.
    pub(crate) lease: Duration,
    pub(crate) boost_slots_min: u64,
    pub(crate) boost_time_min: Duration,

    pub(crate) delay_min: u64,
    pub(crate) delay_mean: u64,
    /// Whether messages of a link keep their order, as they do on one TCP connection.
    pub(crate) fifo: bool,

    /// The kinds of faults that it has; `None`: they are drawn.
    pub(crate) kinds: Option<&'static [Kind]>,
    /// Kinds that it has besides.
    pub(crate) also: &'static [Kind],
    /// So many times as often as elsewhere operators do something.
    pub(crate) haste: u64,
    /// Of its own, unflushed, a replica bears so much (P7). Less than what a new master may have to propose again at once,
    /// a horizon of batches, would let nobody stay master.
    pub(crate) backlog_bytes_max: u64,
    /// This replica's directory is never wiped.
    pub(crate) spared: usize,

    pub(crate) write_mean: u64,
    pub(crate) sync_mean: u64,
    /// How long the making of a segment takes.
    pub(crate) segment_mean: u64,
    pub(crate) segment_bytes: u64,
    pub(crate) frame_bytes_max: usize,
    /// The most that a log may have; `None`: more than it ever needs.
    pub(crate) segments_max: Option<u64>,
    /// What is kept in memory for those that lag a little.
    pub(crate) recent_bytes_max: usize,
    /// A snapshot is due after so much log.
    pub(crate) snapshot_log_bytes: u64,
    /// How long it takes to write it out.
    pub(crate) snapshot_mean: u64,
    /// How much of one a message carries.
    pub(crate) chunk_bytes: usize,
    /// At which rate a laggard is helped.
    pub(crate) catch_up_bytes_per_second: u64,
    /// How long a turn of the hot core takes: what comes meanwhile is one batch.
    pub(crate) turn_mean: u64,

    /// How long a master waits for more commands after a commit.
    pub(crate) gather_max: Duration,
    pub(crate) clients: usize,
    /// How many beside them only read, at whichever replica.
    pub(crate) readers: usize,
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
pub(crate) fn scale(random: &mut Rng, least: u64, most: u64) -> u64 {
    let (least, most) = (least as f64, most as f64);
    (least * (most / least).powf(random.f64())) as u64
}

/// So many operations each seed would do, if nothing were in their way.
const OPERATIONS_WANTED: u64 = 1_400;

impl Swarm {
    /// The world of this seed.
    pub(crate) fn draw(random: &mut Rng) -> Swarm {
        let replicas = if random.u8(..10) < 7 { 3 } else { 5 };
        let machines = if random.u8(..10) < 4 { replicas + 2 } else { replicas };
        let horizon = *random.choice(&[4, 8, 16, 32]).expect("there are four");
        let window = within(random, 1, 8).min(horizon);
        let delay_min = scale(random, 20 * MICROSECOND, 2 * MILLISECOND);
        let delay_mean = scale(random, 50 * MICROSECOND, 8 * MILLISECOND);
        let write_mean = scale(random, 30 * MICROSECOND, 3 * MILLISECOND);
        let sync_mean = scale(random, 30 * MICROSECOND, 3 * MILLISECOND);
        // Long against a round trip and two flushes, or nobody could ever stay elected.
        let trip = 2 * (delay_min + delay_mean) + write_mean + sync_mean;
        let election_timeout = scale(random, 80 * MILLISECOND, 900 * MILLISECOND).max(8 * trip);
        let heartbeat = election_timeout / within(random, 3, 6);
        // Mostly as long as the silence before an election, as in production; shorter and longer must be as safe.
        let lease = scale(random, election_timeout / 2, 2 * election_timeout).max(8 * trip);
        let clients = within(random, 2, 8) as usize;
        let outstanding = within(random, 1, 3) as usize;
        let frame_blocks = *random.choice(&[6_u64, 8, 16]).expect("there are three");
        let segment_blocks = 5 + frame_blocks * within(random, 2, 4);
        // All that may be asked at once, several times over for retries, fits one frame, as in production.
        let room = frame_blocks as usize * 4096 / (clients * outstanding * 8);
        let safety = within(random, 20, 40) * SECOND;
        let mut swarm = Swarm {
            replicas,
            machines,
            horizon,
            window,
            heartbeat: Duration::from_nanos(heartbeat),
            election_timeout: Duration::from_nanos(election_timeout),
            lease: Duration::from_nanos(lease / 1000 * 1000),
            boost_slots_min: within(random, 20, 200),
            boost_time_min: Duration::from_nanos(scale(random, 100 * MILLISECOND, 10 * SECOND)),
            delay_min,
            delay_mean,
            fifo: random.bool(),
            kinds: None,
            also: &[],
            haste: 1,
            backlog_bytes_max: match random.u8(..4) {
                0 => horizon * frame_blocks * 4096 / 4 * scale(random, 1, 4),
                _ => 64 << 20,
            },
            spared: random.usize(..usize::from(replicas)),
            write_mean,
            sync_mean,
            segment_mean: scale(random, MILLISECOND, 300 * MILLISECOND),
            segment_bytes: segment_blocks * 4096,
            frame_bytes_max: frame_blocks as usize * 4096,
            segments_max: None,
            recent_bytes_max: scale(random, 1_000, 16_000_000) as usize,
            snapshot_log_bytes: match random.u8(..5) {
                0 => u64::MAX / 2,
                _ => segment_blocks * 4096 * scale(random, 1, 100),
            },
            snapshot_mean: scale(random, MILLISECOND, 2 * SECOND),
            chunk_bytes: scale(random, 100, 100_000) as usize,
            catch_up_bytes_per_second: 0,
            turn_mean: scale(random, MICROSECOND, 200 * MICROSECOND),
            gather_max: Duration::from_nanos(if random.bool() {
                scale(random, MICROSECOND, 5 * MILLISECOND)
            } else {
                0
            }),
            clients,
            readers: within(random, 1, 2) as usize,
            outstanding,
            keys: within(random, 1, 12),
            value_bytes_max: (room.saturating_sub(120) / 2).clamp(16, 3000),
            think_mean: safety / OPERATIONS_WANTED * (clients * outstanding) as u64,
            patience: (4 * election_timeout).max(within(random, SECOND, 5 * SECOND)),
            safety,
        };
        swarm.catch_up_bytes_per_second = (1 << 20) + 500 * swarm.chunk_bytes as u64;
        swarm.specialise(random);
        swarm
    }

    /// Snapshots come one after the other, whoever crashes meanwhile, and nobody remembers much beside them.
    pub(crate) fn keep_often(&mut self) {
        self.snapshot_log_bytes = 2 * self.segment_bytes;
        self.recent_bytes_max = 2_000;
        self.kinds = Some(&[Kind::Crash, Kind::PowerCut, Kind::Partition, Kind::Pause]);
    }

    /// Directories are lost, or databases go apart, in a cell whose members stay.
    pub(crate) fn lose_often(&mut self, kinds: &'static [Kind]) {
        (self.replicas, self.also, self.kinds) = (self.replicas.max(3), &[], Some(kinds));
        (self.machines, self.segments_max) = (self.replicas, None);
    }

    /// Each write takes so long, and each sync, and nobody is impatient.
    #[cfg(feature = "planted")]
    pub(crate) fn be_slow(&mut self, nanoseconds: u64) {
        (self.write_mean, self.sync_mean) = (nanoseconds, nanoseconds);
        self.election_timeout = Duration::from_nanos(40 * nanoseconds);
        (self.lease, self.heartbeat) = (self.election_timeout, self.election_timeout / 5);
        self.patience = 160 * nanoseconds;
    }

    /// A third of the worlds have much of something that is seldom met elsewhere.
    fn specialise(&mut self, random: &mut Rng) {
        match random.u8(..100) {
            // Masters change all the time, by wish and against it, and each takes a higher ballot again and again.
            0..14 => {
                self.also =
                    &[Kind::Transfer, Kind::Pause, Kind::Suspension, Kind::Stall, Kind::Loss, Kind::Duplication];
                self.haste = 6;
                self.boost_slots_min = within(random, 1, 10);
                self.boost_time_min = Duration::from_nanos(scale(random, 5 * MILLISECOND, 200 * MILLISECOND));
                self.window = within(random, 2, 8).min(self.horizon);
            }
            // Members come and go.
            14..24 => {
                // Links are bits of one word.
                self.machines = (self.replicas + 4).min(8);
                self.also = &[Kind::Added, Kind::Removed, Kind::Transfer, Kind::ReceiveOnly, Kind::Partition];
                self.haste = 4;
                self.horizon = *random.choice(&[4, 8]).expect("there are two");
                self.window = self.window.min(self.horizon);
            }
            // Logs fill up, and masters change meanwhile.
            24..30 => self.also = &[Kind::FullDisk, Kind::Crash, Kind::Transfer, Kind::Pause, Kind::Bridge],
            // One replica alone, in the beginning.
            30..34 => {
                (self.replicas, self.machines, self.spared) = (1, 3, 0);
                self.also = &[Kind::Added];
            }
            _ => {}
        }
    }
}

/// A time around `mean`: mostly shorter, now and then several times as long.
pub(crate) fn around(random: &mut Rng, mean: u64) -> u64 {
    let uniform = random.f64().max(1e-9);
    (-(uniform.ln()) * mean as f64) as u64
}
