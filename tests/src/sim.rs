//! The simulator: a whole cell on one thread, from one seed.
//!
//! Each replica is the real [`Engine`] (protocol, log, state machine) with the real
//! recovery behind it, and each client the real client core; simulated are the clock, the disks, the network and the
//! process. Messages, records and answers go through the real codecs, so the bytes are tested too. The same seed gives
//! the same run, event for event: its hash says so.
//!
//! A run has two phases (PML §6.3). First *safety*: messages are lost, doubled, late and out of order, links break,
//! processes stop and stand still, power fails in the middle of writes; nothing wrong may ever happen, but nothing has
//! to. Then faults stop, and *liveness* is due: within a bounded time every open operation ends, every replica has
//! the same log and the same database. Checkers look at every message and every flush ([`Checker`] lists them).
//!
//! | module | owns |
//! |---|---|
//! | `swarm` | what a seed's world is like |
//! | `world` | the clock, the queue of events, the faults |
//! | `replicas`, `node`, `disk`, `network` | what replicas live in |
//! | `people`, `clients` | who asks them |
//! | `verdict` | what a checker says |
//! | `oracle` | what is chosen, promised and durable, judged from disks and messages alone |
//! | `history` | what clients were told, held against the log |
//! | `trace` | the hash, and the words |
//! | `sweep` | many seeds on many threads, planted bugs, the summary |

mod clients;
mod disk;
mod history;
mod network;
mod node;
mod oracle;
mod people;
mod replicas;
mod swarm;
mod sweep;
mod trace;
mod verdict;
mod world;

use synod_node::engine::Engine;

pub use sweep::{Caught, Failure, Summary, Sweep, catch, sweep};
pub use trace::Words;
pub use verdict::{Checker, Violation};

/// A bug that is built into the world on purpose: checkers that do not see it see nothing. Each is named after the rule
/// that it breaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// Disks say that a flush is durable before they have begun it: so promises and acknowledgements leave too early.
    P15AcknowledgeBeforeDurable,
    /// Promises do not tell what their sender knows to be chosen: so a candidate that lags takes those slots for free.
    P3NoOpOverChosenSlot,
    /// A replica that restarts has forgotten what it promised, and remembers only what it accepted.
    P2ForgottenPromise,
}

impl Planted {
    /// All of them.
    pub const ALL: [Planted; 3] =
        [Planted::P15AcknowledgeBeforeDurable, Planted::P3NoOpOverChosenSlot, Planted::P2ForgottenPromise];

    /// The rule it breaks, and how.
    pub fn name(self) -> &'static str {
        match self {
            Planted::P15AcknowledgeBeforeDurable => "P15_acknowledge_before_durable",
            Planted::P3NoOpOverChosenSlot => "P3_no_op_over_chosen_slot",
            Planted::P2ForgottenPromise => "P2_forgotten_promise",
        }
    }
}

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
    /// Times that links went down.
    partitions,
    /// Replicas that crashed.
    crashes,
    /// Of these, by loss of power.
    power_cuts,
    /// Crashes that left a part of a write.
    torn_writes,
    /// Replicas that started.
    starts,
    /// Of these, with a log whose last flush was cut short.
    torn_tails,
    /// Replicas that stood still for a while.
    pauses,
    /// Client connections reset.
    resets,
    /// Flushes of logs.
    flushes,
    /// Of these, much too slow.
    disk_stalls,
    /// Segments at the end.
    segments,
}

impl Counts {
    /// What an engine has counted in its life.
    fn take(&mut self, engine: &Engine) {
        let counters = engine.counters();
        self.elections += counters.elections_won;
        self.entries_sent += counters.entries_sent;
    }
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
    /// What must not have happened.
    pub violation: Option<Violation>,
    /// The last words, if they were to be kept.
    pub lines: Vec<String>,
}

/// A run in which fewer operations were answered during faults proves nothing (rule M5).
pub const OPERATIONS_MIN: u64 = 100;

impl Outcome {
    /// Whether it did too little to count.
    pub fn is_void(&self) -> bool {
        self.violation.is_none() && self.counts.safety_operations < OPERATIONS_MIN
    }
}

/// Runs one seed.
pub fn run(seed: u64, planted: Option<Planted>, words: Words) -> Outcome {
    SEED.set(Some(seed));
    let mut world = world::World::new(seed, planted, trace::Trace::new(words));
    let violation = world.run().err();
    SEED.set(None);
    Outcome {
        seed,
        hash: world.trace.hash(),
        events: world.trace.events,
        simulated_ns: world.now,
        counts: world.counts,
        violation,
        lines: world.trace.into_lines(),
    }
}

thread_local! {
    static SEED: std::cell::Cell<Option<u64>> = const { std::cell::Cell::new(None) };
}

/// The seed that runs on this thread: for a panic hook, since a broken assertion ends the process.
pub fn seed_on_this_thread() -> Option<u64> {
    SEED.get()
}
