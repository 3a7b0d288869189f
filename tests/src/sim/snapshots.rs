//! Snapshots on a simulated disk, and what of them survives.
//!
//! What is written out is what the real thing would send to a laggard: chunks of a frozen view, and a start imports them again.
//! How pages become durable is the store's own business, and tested there; here it takes time, fails now and then, and a crash
//! meanwhile leaves what was there before.

use std::collections::VecDeque;

use synod_cell::Cell;
use synod_node::codec::SnapshotMessage;
use synod_node::engine::{Evidence, Import};
use synod_paxos::{Recovered, ReplicaId, Slot, SnapshotHandle};
use synod_store::{Digest, ReadView, Store};

use super::node::Input;
use super::planted::Bug;
use super::swarm::around;
use super::world::{Event, World};

/// A chunk of a snapshot on the disk.
const CHUNK_BYTES: usize = 4096;

/// A snapshot as it lies on the disk.
#[derive(Clone)]
struct Kept {
    handle: SnapshotHandle,
    chunks: Vec<Vec<u8>>,
    /// What its meta block says: an import would make one of what rot has left, and forget it (seed 3613).
    digest: Digest,
}

impl Kept {
    fn of(handle: SnapshotHandle, view: &ReadView) -> Kept {
        let mut chunks = Vec::new();
        let mut next = None;
        loop {
            let chunk = view.export(next.as_deref(), CHUNK_BYTES).expect("nobody ends views of a small database");
            chunks.push(chunk.bytes);
            next = chunk.next;
            if next.is_none() {
                return Kept { handle, chunks, digest: view.digest() };
            }
        }
    }

    /// And whether a row in it is rotten, as its scrubber will find.
    fn open(&self) -> (Cell, bool) {
        let mut store = Store::new();
        for (at, chunk) in self.chunks.iter().enumerate() {
            store.import(chunk, at + 1 == self.chunks.len()).expect("a snapshot is read back as it was written");
        }
        let is_rotten = store.digest() != self.digest;
        store.go_on_with_digest(self.digest);
        (Cell::of(store), is_rotten)
    }
}

/// The snapshots on one disk.
#[derive(Clone, Default)]
pub(crate) struct Databases {
    /// Of the own database, the newest last: two at the most.
    kept: VecDeque<Kept>,
    /// Another replica's, beside it.
    incoming: Option<Kept>,
    /// A start found the log to end below the newest, and went on from that alone.
    passed_by: Slot,
    /// Why the own one is not to be trusted, if it is not (rule P14).
    quarantine: Option<Evidence>,
    is_rotten: bool,
}

impl Databases {
    pub(crate) fn quarantine(&self) -> Option<&Evidence> {
        self.quarantine.as_ref()
    }

    pub(crate) fn note_quarantine(&mut self, evidence: Option<Evidence>) {
        self.quarantine = evidence;
    }

    /// What a start goes on from.
    pub(crate) fn open(&mut self) -> Option<(SnapshotHandle, Cell)> {
        (self.incoming, self.is_rotten) = (None, false);
        let kept = self.kept.back()?;
        let (cell, is_rotten) = kept.open();
        self.is_rotten = is_rotten;
        Some((kept.handle.clone(), cell))
    }

    /// Whether a row was rotten in what the last start went on from.
    pub(crate) fn is_rotten(&self) -> bool {
        self.is_rotten
    }

    /// The log may be cut there: all up to here is in the older snapshot that is kept, or the log was no use.
    pub(crate) fn older(&self) -> Slot {
        self.kept.front().map_or(Slot::NONE, |kept| kept.handle.slot).max(self.passed_by)
    }

    /// What a start made of log and snapshot.
    pub(crate) fn started(&mut self, recovered: &Recovered) {
        if recovered.passed_by > recovered.cut {
            self.passed_by = recovered.passed_by;
        }
    }
}

/// What an engine asks of the databases beside its log.
pub(crate) enum DatabaseWish {
    Keep(SnapshotHandle, ReadView),
    Make,
    Import(Import),
    KeepIncoming(SnapshotHandle, ReadView),
    /// The own one is not to be trusted; or it is again.
    Quarantine(Option<Evidence>),
    Replace,
    Drop,
}

/// What is being written out.
pub(crate) struct Writing {
    incoming: bool,
    kept: Kept,
}

impl World {
    pub(crate) fn grant_database_wish(&mut self, index: usize, wish: DatabaseWish) {
        match wish {
            DatabaseWish::Keep(handle, view) => self.write_out(index, false, Kept::of(handle, &view)),
            DatabaseWish::KeepIncoming(handle, view) => self.write_out(index, true, Kept::of(handle, &view)),
            DatabaseWish::Make => self.input(index, Input::DatabaseMade),
            DatabaseWish::Import(import) => self.input(index, Input::Import(import)),
            DatabaseWish::Replace => {
                let databases = &mut self.nodes[index].disk.databases;
                let incoming = databases.incoming.take().expect("it was kept before");
                let slot = incoming.handle.slot;
                databases.kept = VecDeque::from([incoming]);
                self.trace.turn(self.now, || format!("replica {} installs a snapshot of slot {slot}", index + 1));
            }
            DatabaseWish::Quarantine(evidence) => self.nodes[index].disk.databases.note_quarantine(evidence),
            DatabaseWish::Drop => self.nodes[index].disk.databases.incoming = None,
        }
    }

    fn write_out(&mut self, index: usize, incoming: bool, kept: Kept) {
        if !incoming && self.has(Bug::S2KeptBeforeDurable) {
            // The engine is told at once, and not again when it is true.
            self.input(index, Input::SnapshotKept(true));
        }
        let node = &mut self.nodes[index];
        node.writing.push_back(Writing { incoming, kept });
        if node.writing.len() == 1 {
            self.kept_soon(index);
        }
    }

    fn kept_soon(&mut self, index: usize) {
        let life = self.nodes[index].life;
        let delay = around(&mut self.random.disks, self.swarm.snapshot_mean);
        self.schedule_in(delay, Event::Kept { node: index, life });
    }

    /// A snapshot is durable, unless the disk refused it.
    pub(crate) fn kept(&mut self, index: usize, life: u64) {
        if !self.is_alive(index, life) || self.is_stalled(index, || Event::Kept { node: index, life }) {
            return;
        }
        let faults_go_on = self.must_end.is_none();
        let fails = faults_go_on && self.random.disks.u8(..10) == 0;
        let node = &mut self.nodes[index];
        let done = !fails && node.no_room.is_empty();
        let Writing { incoming, kept } = node.writing.pop_front().expect("it was being written");
        let databases = &mut node.disk.databases;
        if done && incoming {
            databases.incoming = Some(kept);
        } else if done {
            databases.kept.push_back(kept);
            if databases.kept.len() > 2 {
                databases.kept.pop_front();
            }
        }
        if incoming {
            self.input(index, Input::IncomingKept(done));
        } else if !self.has(Bug::S2KeptBeforeDurable) {
            self.input(index, Input::SnapshotKept(done));
        }
        if !self.nodes[index].writing.is_empty() {
            self.kept_soon(index);
        }
    }

    /// What is said about snapshots goes the way of every message.
    pub(crate) fn send_snapshot(&mut self, index: usize, to: ReplicaId, message: &SnapshotMessage) {
        let encoded = synod_node::codec::encode_snapshot_message(message);
        self.send_message(index, to, encoded, false);
    }
}
