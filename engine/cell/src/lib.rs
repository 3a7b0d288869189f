//! The replicated state machine: keys, small files, sessions.
//!
//! [`Cell`] is what the log is kept for: every replica applies the same commands in the same order and comes to the same
//! database and the same answers. So nothing here may depend on anything but the commands: no clock, no randomness, no
//! map without an order. The limits are constants for the same reason.
//!
//! All it knows is rows of the [`Store`], the results kept for retries included (rule P10): a snapshot of the store is a
//! snapshot of the cell. Its few other fields are buffers, and where rows were found last.
//!
//! | module | owns |
//! |---|---|
//! | `keyspace` | which rows are where: no other module spells a row's key |
//! | `sessions` | sessions, and that a command is applied at most once |
//! | `epoch` | which mastership is the current one, and that commands of an earlier one are refused |
//! | `operations` | what the operations on keys and files do |
//! | `hash` | a fingerprint of all rows, to compare replicas by |

mod epoch;
mod hash;
mod keyspace;
mod operations;
mod sessions;
#[cfg(test)]
mod tests;

use synod_api::{Answer, Command, Epoch, Mastership, Operation, Refusal, Revision};
use synod_paxos::{Slot, StateMachine};
use synod_store::Store;

use keyspace::KeyBuffer;
use sessions::{Admission, Fingers};

/// An answer as the cell makes it: what it tells of the database is still in the database.
type Told<'a> = Answer<&'a [u8]>;

/// The longest answer that is kept for retries as it is. Only that to a compare-and-swap that found a large value is
/// longer: then what is kept is that it was unequal, not the value ([`Answer::UnequalNotKept`]). Evaluating it again
/// instead could swap, after the client was told that it did not; keeping the value would let the results of a session
/// take half a gigabyte.
const KEPT_ANSWER_BYTES_MAX: usize = 64;

/// The database as a state machine: see the crate.
#[derive(Debug, Default)]
pub struct Cell {
    store: Store,
    fingers: Fingers,
    key: KeyBuffer,
    kept: Vec<u8>,
    /// The slot whose batch was stamped in an epoch that is over.
    outdated: Option<Slot>,
}

/// How much the cell holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Status {
    /// The database's version.
    pub revision: Revision,
    /// All rows, the cell's own bookkeeping included.
    pub rows: u64,
    /// The lengths of all their keys and values.
    pub bytes: u64,
    /// The open sessions.
    pub sessions: u64,
}

impl Cell {
    /// A cell to which nothing was applied.
    #[must_use]
    pub fn new() -> Cell {
        Cell::default()
    }

    /// The cell whose rows these are: of a snapshot, this replica's or another's.
    #[must_use]
    pub fn of(store: Store) -> Cell {
        Cell { store, ..Cell::default() }
    }

    /// Answers a read from the database as it is now, and appends the answer's bytes. Whether it is new enough to be told
    /// is the caller's to know: a master reads under its lease (rule P8).
    ///
    /// # Panics
    ///
    /// If the command is not a read: what changes the database goes through the log.
    pub fn read(&mut self, command: &Command<'_>, answer: &mut Vec<u8>) {
        assert!(!command.operation.changes(), "{} went past the log", command.operation.name());
        if let Err(error) = command.check_limits() {
            return refuse(error.into(), answer);
        }
        operations::perform(&mut self.store, &mut self.key, command.operation, answer);
    }

    /// Answers a [bounded read](synod_api::BoundedRead) from the database as it is now, or as it was at a revision that is not
    /// above its own, and appends the answer's bytes. Whether it is new enough is the caller's to know.
    ///
    /// # Panics
    ///
    /// If the operation is not a read, or the revision is yet to come.
    pub fn read_at(&mut self, operation: Operation<'_>, at: Option<Revision>, answer: &mut Vec<u8>) {
        assert!(at.is_none_or(|at| at <= self.revision()), "it is yet to come");
        operations::read_at(&self.store, &mut self.key, operation, at, answer);
    }

    /// The database's version.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision(self.store.revision().0)
    }

    /// The epoch of the master that began last.
    #[must_use]
    pub fn epoch(&self) -> Epoch {
        epoch::current(&self.store)
    }

    /// The database.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The database, to keep a snapshot of it.
    pub fn store_mut(&mut self) -> &mut Store {
        &mut self.store
    }

    /// How much it holds.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            revision: Revision(self.store.revision().0),
            rows: self.store.len() as u64,
            bytes: self.store.bytes(),
            sessions: sessions::open_now(&self.store),
        }
    }

    /// A fingerprint of the revision and of all rows. Reads every one: for tests, to compare replicas at the same slot.
    #[must_use]
    pub fn contents_hash(&self) -> u64 {
        hash::contents(&self.store)
    }

    fn apply_command(&mut self, command: &Command<'_>, answer: &mut Vec<u8>) {
        // Again, although the master has checked: the bounds must hold whoever proposed this.
        if let Err(error) = command.check_limits() {
            return refuse(error.into(), answer);
        }
        match command.operation {
            Operation::OpenSession => Told::SessionOpened(sessions::open(&mut self.store)).encode(answer),
            Operation::CloseSession => match sessions::close(&mut self.store, command.session) {
                true => Told::SessionClosed.encode(answer),
                false => refuse(Refusal::SessionUnknown, answer),
            },
            operation if operation.deduplicated() => self.apply_once(command, answer),
            read => operations::perform(&mut self.store, &mut self.key, read, answer),
        }
    }

    fn apply_once(&mut self, command: &Command<'_>, answer: &mut Vec<u8>) {
        match sessions::admit(&mut self.store, &mut self.fingers, command) {
            Admission::Answered { kept } => answer.extend_from_slice(kept),
            Admission::Refused(refusal) => refuse(refusal, answer),
            Admission::Apply(place) => {
                let from = answer.len();
                operations::perform(&mut self.store, &mut self.key, command.operation, answer);
                self.kept.clear();
                let told = &answer[from..];
                if told.len() <= KEPT_ANSWER_BYTES_MAX {
                    place.record(&mut self.store, told, &mut self.kept);
                } else {
                    assert!(matches!(command.operation, Operation::CompareAndSwap { .. }), "only a swap tells a value");
                    let mut told = Vec::new();
                    Told::UnequalNotKept.encode(&mut told);
                    place.record(&mut self.store, &told, &mut self.kept);
                }
            }
        }
    }
}

impl StateMachine for Cell {
    /// A command that came to a master whose mastership was over by this slot is refused (rule P9). The master's own words
    /// have no answer.
    fn apply(&mut self, slot: Slot, command: &[u8], answer: &mut Vec<u8>) {
        match Mastership::decode(command) {
            Some(Mastership::Begins) if synod_paxos::planted!(P9KeepsEpoch) => {}
            Some(Mastership::Begins) => epoch::raise(&mut self.store),
            Some(Mastership::Stamp(epoch)) => {
                let is_current = epoch == self.epoch();
                self.outdated = (!is_current).then_some(slot);
            }
            None if self.outdated == Some(slot) => refuse(Refusal::MasterChanged, answer),
            None => match Command::decode(command) {
                Ok(command) => self.apply_command(&command, answer),
                // Not a fault of this replica: it was chosen, so every replica answers so.
                Err(error) => refuse(Refusal::Malformed(error.to_string()), answer),
            },
        }
    }
}

fn refuse(refusal: Refusal, answer: &mut Vec<u8>) {
    Told::Refused(refusal).encode(answer);
}
