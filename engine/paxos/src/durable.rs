//! Send once durable: the one mechanism behind rule P15.
//!
//! Nothing that a quorum may count on leaves before it is durable at its sender. The node and the simulator both hold
//! such messages here, and hand it every news of durability; there is no other way out for them.

use std::collections::VecDeque;

use crate::message::Message;
use crate::types::{PersistId, ReplicaId};

/// Messages that wait for their records. Bounded by what makes them: one for each record of the unflushed backlog, and one
/// for each member when the record is a candidate's own promise.
#[derive(Clone, Default, PartialEq, Eq, Hash, Debug)]
pub struct DurableQueue {
    waiting: VecDeque<(PersistId, ReplicaId, Message)>,
}

impl DurableQueue {
    /// Holds `message` until everything up to `upto` is durable.
    pub fn hold(&mut self, upto: PersistId, to: ReplicaId, message: Message) {
        debug_assert!(self.waiting.back().is_none_or(|(last, ..)| *last <= upto), "records are numbered in order");
        self.waiting.push_back((upto, to, message));
    }

    /// The next message that may leave now that everything up to `durable` is on stable storage.
    pub fn release(&mut self, durable: PersistId) -> Option<(ReplicaId, Message)> {
        let (upto, ..) = self.waiting.front()?;
        if *upto > durable && !crate::planted!(P15TellsBeforeDurable) {
            return None;
        }
        self.waiting.pop_front().map(|(_, to, message)| (to, message))
    }

    /// How many messages wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Ballot, Slot};

    #[test]
    fn nothing_leaves_before_its_record() {
        let mut queue = DurableQueue::default();
        let message =
            |slot| Message::Acknowledge { ballot: Ballot::NONE, slot: Slot(slot), voter: crate::Voter::default() };
        queue.hold(PersistId(1), ReplicaId(2), message(1));
        queue.hold(PersistId(3), ReplicaId(2), message(2));
        assert_eq!(queue.release(PersistId(0)), None);
        assert_eq!(queue.release(PersistId(2)), Some((ReplicaId(2), message(1))));
        assert_eq!(queue.release(PersistId(2)), None);
        assert_eq!(queue.release(PersistId(3)), Some((ReplicaId(2), message(2))));
        assert!(queue.is_empty());
    }
}
