//! Multi-Paxos as explicit state machines: no I/O, no clock, no thread.
//!
//! A [`Replica`] is a pure function of what it was told: [`Replica::step`] takes the time and one [`Event`] and says,
//! as [`Effect`]s, what must be done about it. Whatever runs it (the node, the simulator) carries the effects out.
//! The same events give the same effects, bit for bit.
//!
//! | module | owns |
//! |---|---|
//! | [`acceptor`] | what this replica has promised and accepted: the one place that persists either |
//! | [`coordinator`] | elections, and slots from proposal to choice; higher ballots, hand-over |
//! | [`learner`] | which slots are chosen, applying them in order, catching up |
//! | `lease`, `grant` | the master's lease: as its holder sees it, as its granters do |
//! | `membership` | the configuration in force, and the one to come |
//! | `standing` | whether this replica may promise anything to anyone |
//! | `index` | up to which slot must be applied before a linearizable read is answered |
//! | `lives`, `rejoin` | what a loss of state means for votes, and how a replica votes again after one |
//! | [`durable`] | the one mechanism for "send once durable" (rule P15) |
//!
//! Words and messages are those of *Paxos Made Live* (PML); [`words`] maps them to the literature's, [`Message`] lists who
//! sends what when, and what must be durable first. [`machines`] shows all tables: the whole of the control flow. Where
//! this crate leaves the paper, [`divergence`] says why.
//!
//! Another application uses the log by implementing [`StateMachine`], and by running a [`Replica`] with sockets, a clock and
//! a file of its own. `examples/sequencer` is one, whole: three processes that hand out numbers, each once, whoever of them
//! is killed (`cargo run -p synod-paxos --example sequencer`).

pub mod acceptor;
pub mod batch;
mod configuration;
#[doc = include_str!("../docs/divergence.md")]
pub mod divergence {}
#[doc = include_str!("../docs/machines.md")]
pub mod machines {}
#[doc = include_str!("../docs/rejoin.md")]
pub mod rejoining {}
#[doc = include_str!("../docs/words.md")]
pub mod words {}
pub mod coordinator;
pub mod durable;
mod effect;
mod grant;
mod index;
pub mod learner;
mod lease;
mod lives;
pub mod machine;
mod membership;
mod message;
pub mod planted;
mod recovery;
mod rejoin;
mod replica;
mod settings;
mod standing;
mod types;
mod world;

pub use batch::{Batch, BatchBuilder, MalformedBatch};
pub use configuration::{Configuration, ConfigurationError, Member};
pub use coordinator::Role;
pub use effect::{Configurations, Effect, Effects, Event, HardState, Record, Recovered, SnapshotHandle};
pub use lives::{CrashVector, Voter};
pub use machine::{Counts, Row};
pub use membership::{Change, ChangeError};
pub use message::{AcceptedSlot, LostSlots, Message};
pub use recovery::{Loss, Recovery, RecoveryError};
pub use rejoin::Rejoining;
pub use replica::{Replica, TransferError, VotingStatus};
pub use settings::Settings;
pub use types::{Ballot, Incarnation, Instant, LogPosition, PersistId, ReplicaId, ReplicaSet, Slot, Ticket};

/// The log's only view of an application (PML §2: the callback, fired at every replica with each value in order).
///
/// An application must be deterministic: the same commands in the same order give the same state and answers
/// everywhere. Time and randomness enter as commands. A command whose outcome its submitter does not know may be submitted
/// again and be applied twice: recognising that is the application's (rule P10).
pub trait StateMachine {
    /// Applies one command of the batch chosen at `slot`, and appends the answer's bytes to `answer`.
    fn apply(&mut self, slot: Slot, command: &[u8], answer: &mut Vec<u8>);
}
