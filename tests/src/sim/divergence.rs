//! Databases that go apart, and how that is found (rule P14).
//!
//! A database goes apart in two ways: a row is there that no command has written, as if a command had been applied differently; or
//! a row rots in memory, which nobody sees before the row is changed or the scrubber reads it. From then on, until another
//! replica's database has taken its place or a start has read a sound one, nobody holds it against the log; but it has to be found:
//! a run does not end before. What such a replica tells clients before it is found does not arrive (the atlas promises nothing
//! of it: a diverged master may read wrong); what it tells the other replicas does.
//!
//! The atlas places them: one database at a time, and none that is the only one to hold what its log is cut of (seeds 15160 and
//! 16442 of an earlier placing: nobody could serve any more, or knew better). The first kind also spreads, to whoever takes the
//! database over; so it comes only while enough sound ones are there to speak against it, and until it is found nothing else happens to them.
//! Where nobody can know who is right, an operator can.

use synod_api::Answer;
use synod_node::codec::SnapshotMessage;
use synod_node::engine::{Engine, Evidence};
use synod_store::Pacing;

use super::faults::{self, What};
use super::node::{Input, Node, Wishes};
use super::oracle::Oracle;
use super::planted::Bug;
use super::swarm::{MILLISECOND, SECOND};
use super::verdict::{Checker, Verdict, violation};
use super::world::{Event, World};

/// How a database is not what the log made of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Apart {
    /// It has a row too many.
    Row,
    /// A row is rotten.
    Rot,
}

/// So often each database is looked through, and the operators look at each replica.
pub(crate) const SCRUB_EVERY: u64 = 4 * SECOND;
/// A row that no command ever writes.
const NOBODYS_ROW: &[u8] = b"\xff\xffapart";
/// Rows of users begin with this.
const USERS: &[u8] = &[3];

impl World {
    /// Makes a replica's database another one, if the atlas lets it.
    pub(crate) fn go_apart(&mut self, index: usize, how: Apart, seed: u64) -> bool {
        if self.nodes.iter().any(|node| node.apart.is_some()) || !self.may_go_apart(index, how) {
            return false;
        }
        let engine = self.nodes[index].engine.as_mut().expect("it may go apart, so it is up");
        let store = engine.cell_mut().store_mut();
        let is_done = match how {
            Apart::Row => {
                store.put_plain(NOBODYS_ROW, &seed.to_le_bytes());
                true
            }
            Apart::Rot => {
                let rows: Vec<Vec<u8>> = store.prefix(USERS).map(|(key, _)| key.to_vec()).collect();
                rows.get(seed as usize % rows.len().max(1)).is_some_and(|key| store.rot(key))
            }
        };
        if is_done {
            self.nodes[index].apart = Some(how);
        }
        is_done
    }

    fn may_go_apart(&self, index: usize, how: Apart) -> bool {
        let node = &self.nodes[index];
        let Some(engine) = &node.engine else { return false };
        if engine.replica().is_quarantined() || self.oracle.acceptors.is_lost(node.id) {
            return false;
        }
        // What its log is cut of, its database may be the only one to hold: then nobody could speak against it, nor stand in for it.
        // Who is to do that has a log that does not rot.
        let stands_in = |(at, other): (usize, &Node)| {
            let chosen = other.engine.as_ref().map(|engine| engine.replica().chosen());
            at != index && at != faults::rotten(&self.swarm) && chosen >= Some(engine.replica().cut())
        };
        if !self.nodes.iter().enumerate().any(stands_in) {
            return false;
        }
        let is_cut = |number: &usize| matches!(self.faults[*number].what, What::Cut(_) | What::Flapping { .. });
        let others = self.nodes.iter().filter(|other| other.id != node.id && is_well(other, self.now));
        how == Apart::Rot || !self.lasting.iter().any(is_cut) && others.count() >= usize::from(self.swarm.replicas) / 2
    }

    /// Whether some database differs in a way that spreads, and has not been found.
    pub(crate) fn may_spread(&self) -> bool {
        let is_open = |node: &Node| {
            let is_found = node.engine.as_ref().is_some_and(|engine| engine.replica().is_quarantined());
            node.apart == Some(Apart::Row) && !is_found
        };
        self.nodes.iter().any(is_open)
    }

    /// It is time for the scrubbers, and for a look at what stands still.
    pub(crate) fn scrub_all(&mut self) {
        self.schedule_in(SCRUB_EVERY, Event::Scrub);
        let is_halted = |node: &Node| {
            let status = node.engine.as_ref().map(|engine| engine.digest_status());
            status.is_some_and(|status| status.halted.is_some())
        };
        if self.nodes.iter().any(is_halted) {
            self.decide();
        }
        for index in 0..self.nodes.len() {
            if self.nodes[index].engine.is_some() {
                self.input(index, Input::Scrub);
            }
        }
    }

    /// Nothing is written or read, as nobody knows whose database is right: the operators know, and start the other replica again
    /// with `--rebuild`.
    fn decide(&mut self) {
        for index in 0..self.nodes.len() {
            let node = &self.nodes[index];
            let is_up = node.engine.as_ref().filter(|engine| !engine.replica().is_quarantined());
            let (Some(_), Some(engine)) = (node.apart, is_up) else { continue };
            let evidence = Evidence::of_damage(node.id, engine.replica().chosen(), "an operator said so".to_owned());
            self.injected.count("rebuild by an operator");
            self.trace.turn(self.now, || format!("an operator has the database of replica {} rebuilt", index + 1));
            self.stop(index, 0);
            self.nodes[index].disk.databases.note_quarantine(Some(evidence));
            self.schedule_in(MILLISECOND, Event::Start { node: index });
        }
    }

    /// What leaves a replica while its database is in quarantine: nothing of it.
    pub(crate) fn check_quarantine(&self, index: usize, engine: &Engine, wishes: &Wishes) -> Verdict {
        let id = self.nodes[index].id;
        if !engine.replica().is_quarantined() {
            return Ok(());
        }
        if self.nodes[index].apart.is_none() {
            let found = engine.digest_status().quarantine.unwrap_or_default();
            let what = format!("the database of replica {id} is in quarantine, and nobody has touched it: {found}");
            return violation(Checker::Divergence, what);
        }
        let is_of_database = |message: &SnapshotMessage| {
            matches!(message, SnapshotMessage::Offer { .. } | SnapshotMessage::Chunk { .. })
        };
        if let Some((to, message)) = wishes.snapshot_sends.iter().find(|(_, message)| is_of_database(message)) {
            let slot = match message {
                SnapshotMessage::Offer { handle, .. } => handle.slot,
                SnapshotMessage::Chunk { slot, .. } => *slot,
                _ => unreachable!("one of the two was found"),
            };
            let what = format!("replica {id}, in quarantine, gives its database of slot {slot} to replica {to}");
            return violation(Checker::Divergence, what);
        }
        match wishes.answers.iter().find(|(_, answer)| !is_refusal(answer)) {
            None => Ok(()),
            Some(_) => violation(Checker::Divergence, format!("replica {id} answers from a database in quarantine")),
        }
    }
}

impl Node {
    /// The scrubber has read its database through, as in the node.
    pub(crate) fn scrub(engine: &mut Engine, wishes: &mut Wishes) {
        if engine.replica().is_quarantined() {
            return;
        }
        let view = engine.cell_mut().store_mut().freeze();
        let (kept, found) = (view.digest(), view.recompute_digest(&Pacing::default()));
        let found = found.expect("nobody ends views of a small database");
        if found != kept {
            engine.database_damaged(format!("its rows have digest {found}, and every change kept {kept}"), wishes);
        }
    }

    /// Another replica's database, or what a start has read, is held against the log again; the former must be right.
    pub(crate) fn is_whole_again(&mut self, engine: &Engine, oracle: &Oracle) -> Verdict {
        self.apart = None;
        self.applied = engine.replica().chosen();
        oracle.applied(self.id, self.applied, engine.cell())
    }
}

/// Whether it takes part, and will: it can tell others what it has.
fn is_well(node: &Node, now: u64) -> bool {
    let stands = [node.paused_until, node.suspended_until, node.stalled_until].into_iter().any(|until| until > now);
    let will_stand = node.pause_in_turn.is_some() || node.in_round.any();
    let will_end = node.doomed.is_some() || node.flush_fails.is_some() || node.flushes_fail_until > now;
    node.engine.is_some() && !stands && !will_stand && !will_end
}

pub(crate) fn is_refusal(answer: &[u8]) -> bool {
    matches!(Answer::decode_borrowed(answer), Ok(Answer::Refused(_)))
}

/// Whether the judges leave the databases to the replicas: where a planted bug is theirs to find.
pub(crate) fn is_left_to_replicas(bug: Option<Bug>) -> bool {
    #[cfg(feature = "planted")]
    {
        bug == Some(Bug::Core(synod_paxos::planted::Bug::P14AppliesDifferently))
    }
    #[cfg(not(feature = "planted"))]
    {
        let _ = bug;
        false
    }
}
