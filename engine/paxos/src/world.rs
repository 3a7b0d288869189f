//! What the machines see of everything else during one step: the time, the settings, the records, the effects.

use std::collections::VecDeque;

use crate::configuration::Settings;
use crate::effect::{Effect, Effects, Record};
use crate::message::Message;
use crate::types::{Instant, PersistId, ReplicaId};

/// What the machines see of everything else during one step.
pub(crate) struct World<'a> {
    pub(crate) now: Instant,
    pub(crate) settings: &'a Settings,
    pub(crate) journal: &'a mut Journal,
    pub(crate) effects: &'a mut Effects,
}

impl World<'_> {
    pub(crate) fn send(&mut self, to: ReplicaId, message: Message) {
        self.effects.push(Effect::Send { to, message });
    }

    pub(crate) fn persist(&mut self, record: Record) -> PersistId {
        let id = self.journal.append(&record);
        self.effects.push(Effect::Persist { id, record });
        id
    }
}

/// Numbers the records that leave for the log, and knows which are not durable yet.
#[derive(Clone)]
pub(crate) struct Journal {
    last: PersistId,
    unflushed: VecDeque<(PersistId, u64)>,
    unflushed_bytes: u64,
}

impl Journal {
    pub(crate) fn new() -> Self {
        Self { last: PersistId(0), unflushed: VecDeque::new(), unflushed_bytes: 0 }
    }

    fn append(&mut self, record: &Record) -> PersistId {
        /// What a record takes beside its batch, roughly: enough to bound a backlog of no-ops.
        const RECORD_BYTES: u64 = 64;
        let bytes = RECORD_BYTES
            + match record {
                Record::HardState(_) => 0,
                Record::Accepted { batch, .. } | Record::Chosen { batch, .. } => batch.len() as u64,
            };
        self.last = PersistId(self.last.0 + 1);
        self.unflushed.push_back((self.last, bytes));
        self.unflushed_bytes += bytes;
        self.last
    }

    pub(crate) fn persisted(&mut self, upto: PersistId) {
        assert!(upto <= self.last, "nothing is durable that was never asked for");
        while let Some((id, bytes)) = self.unflushed.front() {
            if *id > upto {
                break;
            }
            self.unflushed_bytes -= bytes;
            self.unflushed.pop_front();
        }
    }

    /// Whether the own disk is further behind than the settings allow (rule P7).
    pub(crate) fn is_backed_up(&self, settings: &Settings) -> bool {
        self.unflushed_bytes > settings.backlog_bytes_max
    }
}
