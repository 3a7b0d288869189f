//! The simulator: a whole cell on one thread, from one seed.
//!
//! Each replica is the real [`Engine`] (protocol, log, state machine) with the real
//! recovery behind it, and each client the real client core; simulated are the clock, the disks, the network and the
//! process. Messages, records and answers go through the real codecs, so the bytes are tested too. The same seed gives
//! the same run, event for event: its hash says so.
//!
//! A run has two phases (PML §6.3). First *safety*: networks, disks, clocks, processes and operators fail in all the ways
//! that [`Kind`] lists; nothing wrong may ever happen, but nothing has to. Then faults stop, and *liveness* is due: within
//! a bounded time every open operation ends, and every replica has the same log and the same database, those too that lost their
//! directory. Checkers look at every message and every flush ([`Checker`] lists them).
//!
//! That it sees what it should is shown by bugs put in on purpose: `docs/planted.md` of this crate has each with its rule,
//! the checker that caught it, and the seeds it took; `synod-sim --planted` catches them again.
//!
//! | module | owns |
//! |---|---|
//! | `swarm` | what a seed's world is like |
//! | `faults`, `operators` | what will go wrong in it, drawn before it begins |
//! | `divergence` | databases that differ from the others', and who finds them |
//! | `world`, `injector`, `ending` | the queue of events; faults as they happen; the end, when all must come right |
//! | `replicas`, `node`, `disk`, `network`, `clocks` | what replicas live in |
//! | `people`, `clients` | who asks them |
//! | `verdict` | what a checker says |
//! | `oracle`, `acceptors` | what is chosen, promised and durable, judged from disks and messages alone |
//! | `history` | what clients were told, held against the log |
//! | `leases` | that no two replicas may answer alone, and that a master without a lease is none |
//! | `trace` | the hash, and the story |
//! | `sweep`, `minimise` | many seeds on many threads; which faults a violation needs |
//! | `planted`, `sabotage` | bugs put in on purpose, and what they do |
//! | `coverage`, `tally` | what was ever taken, and how often |

mod acceptors;
mod clients;
mod clocks;
mod coverage;
mod disk;
mod divergence;
mod ending;
mod faults;
mod history;
mod injector;
mod leases;
mod minimise;
mod network;
mod node;
mod operators;
mod oracle;
mod people;
mod planted;
mod replicas;
mod sabotage;
mod snapshots;
mod swarm;
mod sweep;
mod tally;
mod trace;
mod verdict;
mod world;

use synod_node::engine::Engine;

pub use coverage::{Coverage, REASONS};
pub use faults::{Kind, Mask};
pub use injector::last_fault_on_this_thread;
pub use minimise::{Minimised, minimise};
pub use planted::Bug;
pub use sweep::{Caught, Failure, Summary, Sweep, catch, sweep};
pub use tally::Tally;
pub use trace::{Words, take_story};
pub use verdict::{Checker, Violation};

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What happened in one run or in many: to see that there was something to survive.
        #[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// Adds those of another run.
            pub fn add(&mut self, other: &Counts) {
                $(self.$name += other.$name;)*
            }

            /// All of them by name.
            pub fn named(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counts! {
    /// Operations that were answered.
    operations,
    /// Of these, while there were faults.
    safety_operations,
    /// Changes that were acknowledged.
    acknowledged,
    /// Operations that ended without an answer.
    failures,
    /// Of these, changes that may or may not have happened.
    unknown,
    /// Slots chosen.
    slots,
    /// Elections won.
    elections,
    /// What operators asked for and were granted: transfers, members added and removed.
    wishes_granted,
    /// Reads answered under a lease.
    lease_reads,
    /// Chosen batches that were sent to replicas that lacked them.
    entries_sent,
    /// Reads of a log, to send such batches.
    log_reads,
    /// Messages between replicas.
    messages,
    /// Of these, lost.
    messages_lost,
    /// Of these, delivered twice.
    messages_doubled,
    /// Processes that ended, with their machine or without.
    crashes,
    /// Crashes that left a part of a write.
    torn_writes,
    /// Replicas that started.
    starts,
    /// Of these, with a log whose last flush was cut short.
    torn_tails,
    /// Starts that were refused, as they must be: another replica's directory, or a disk that cannot be read.
    starts_refused,
    /// Logs whose end was lost, and that were set aside: their replicas rejoined.
    logs_set_aside,
    /// Client connections reset.
    resets,
    /// Flushes of logs.
    flushes,
    /// Segments at the end.
    segments,
    /// Segments that a disk had no room for; each was tried again.
    segments_refused,
    /// Databases that were put in quarantine.
    quarantines,
    /// Of these, those whose place another replica's has taken.
    rebuilds,
}

impl Counts {
    /// What an engine has counted in its life.
    fn take(&mut self, engine: &Engine) {
        let counters = engine.counters();
        self.elections += counters.elections_won;
        self.lease_reads += counters.lease_reads;
        self.entries_sent += counters.entries_sent;
        self.quarantines += counters.quarantines;
        self.rebuilds += counters.rebuilds;
    }
}

/// How a seed is run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What becomes of the words.
    pub words: Words,
    /// A bug that is planted.
    pub bug: Option<Bug>,
    /// Which of its faults happen.
    pub faults: Mask,
}

/// What became of one seed.
#[derive(Debug)]
pub struct Outcome {
    /// Which.
    pub seed: u64,
    /// The hash of all events in order.
    pub hash: u64,
    /// How many events.
    pub events: u64,
    /// How long it lasted, in simulated nanoseconds.
    pub simulated_ns: u64,
    /// What happened.
    pub counts: Counts,
    /// Faults, by kind.
    pub injected: Tally,
    /// Answers that were checked, by kind of operation.
    pub checked: Tally,
    /// Transitions of the protocol's machines.
    pub coverage: Coverage,
    /// What must not have happened.
    pub violation: Option<Violation>,
    /// The story, if it was to be kept.
    pub lines: Vec<String>,
}

/// A run in which fewer operations were answered proves nothing (rule M5), nor does one with fewer faults.
pub const OPERATIONS_MIN: u64 = 500;
/// See [`OPERATIONS_MIN`].
pub const FAULTS_MIN: u64 = 10;

impl Outcome {
    /// Whether it did too little to count.
    pub fn is_void(&self) -> bool {
        let too_little = self.counts.operations < OPERATIONS_MIN || self.injected.total() < FAULTS_MIN;
        self.violation.is_none() && too_little
    }
}

/// Runs one seed.
pub fn run(seed: u64, options: &Options) -> Outcome {
    SEED.set(Some(seed));
    let _planted = Bug::plant(options.bug);
    let mut world = world::World::new(seed, options.clone());
    let violation = world.run().err();
    SEED.set(None);
    Outcome {
        seed,
        hash: world.trace.hash(),
        events: world.trace.events,
        simulated_ns: world.now,
        counts: world.counts,
        injected: world.injected,
        checked: world.history.checked,
        coverage: world.coverage,
        violation,
        lines: take_story(),
    }
}

thread_local! {
    static SEED: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// The seed that runs on this thread: for a panic hook, since a broken assertion ends the process.
pub fn seed_on_this_thread() -> Option<u64> {
    SEED.get()
}
