//! Reads that any replica answers from its own database (rules P8, P16).
//!
//! | the read wants | it is answered |
//! |---|---|
//! | linearizable | at the master, under its lease, at once; elsewhere when all is applied up to the read index of a round that was begun after the read came |
//! | at least a revision, or exactly one | when so much is applied |
//!
//! All reads that come while a round is under way share the next one: the protocol's `index` machine asks, this queue waits. A read
//! that waits for [`READ_TIME_MAX`] is refused, and told how far this replica is. A database in quarantine, a cell that is
//! halted (P14), a replica that rejoins (P11) and one that is no member answer nothing.

use synod_api::{BoundedRead, Consistency, Revision};
use synod_paxos::VotingStatus;

use super::*;

/// Reads that wait. Above it a client is told "busy". Each takes the bytes of its key, and some more.
pub const READS_MAX: usize = 16 * 1024;
/// A read that waits longer is refused: before the client library takes this replica's silence for its end.
pub const READ_TIME_MAX: Duration = Duration::from_millis(300);

/// A read that waits.
struct Waiting {
    caller: Caller,
    /// As it came.
    read: Vec<u8>,
    until: Instant,
}

/// See the module.
#[derive(Default)]
pub(super) struct Reads {
    /// They came after the round that is under way was begun, or there is none.
    fresh: Vec<Waiting>,
    /// The round that is under way is theirs.
    asked: Vec<Waiting>,
    /// They wait until so much is applied.
    by_slot: BTreeMap<Slot, Vec<Waiting>>,
    by_revision: BTreeMap<Revision, Vec<Waiting>>,
    /// All of them together.
    count: usize,
    /// Nobody's time is over before.
    earliest: Option<Instant>,
}

impl Reads {
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.earliest
    }

    fn lists(&mut self) -> impl Iterator<Item = &mut Vec<Waiting>> {
        let Self { fresh, asked, by_slot, by_revision, .. } = self;
        [fresh, asked].into_iter().chain(by_slot.values_mut()).chain(by_revision.values_mut())
    }

    /// Takes out all whose time is over.
    fn expire(&mut self, now: Instant) -> Vec<Waiting> {
        let mut over = Vec::new();
        let mut earliest: Option<Instant> = None;
        for list in self.lists() {
            over.extend(list.extract_if(.., |one| one.until <= now));
            let first = list.iter().map(|one| one.until).min();
            earliest = earliest.into_iter().chain(first).min();
        }
        self.by_slot.retain(|_, list| !list.is_empty());
        self.by_revision.retain(|_, list| !list.is_empty());
        self.count -= over.len();
        self.earliest = earliest;
        over
    }
}

/// Takes out the first list, if it waits for no more than this.
fn due<K: Ord + Copy>(waiting: &mut BTreeMap<K, Vec<Waiting>>, upto: K) -> Option<Vec<Waiting>> {
    waiting.first_entry().filter(|first| *first.key() <= upto).map(|first| first.remove())
}

impl Engine {
    /// A client's read for any replica came. It gets one answer, by [`READ_TIME_MAX`] from now.
    pub fn read(&mut self, now: Instant, caller: Caller, read: &[u8], outlet: &mut impl Outlet) {
        let admitted = BoundedRead::decode(read)
            .map_err(|error| Refusal::Malformed(error.to_string()))
            .and_then(|asked| asked.check_limits().map(|()| asked).map_err(|error| Refusal::Limit(error.to_string())))
            .and_then(|asked| self.may_answer_reads().map(|()| asked));
        let BoundedRead { consistency, operation } = match admitted {
            Ok(asked) => asked,
            Err(refusal) => return self.refuse_callers(vec![caller], &refusal, outlet),
        };
        let wanted = match consistency {
            Consistency::Linearizable => None,
            Consistency::AtLeast(revision) | Consistency::At(revision) => Some(revision),
        };
        let is_answered = match wanted {
            None => self.answer_under_lease(now, caller, outlet, |cell, answer| cell.read_at(operation, None, answer)),
            Some(wanted) => {
                let is_due = self.cell.revision() >= wanted
                    || synod_paxos::planted!(P16ServesOlderThanAsked) && consistency == Consistency::AtLeast(wanted);
                if is_due {
                    self.answer_read(caller, read, outlet);
                }
                is_due
            }
        };
        if is_answered {
            return;
        }
        if self.reads.count >= READS_MAX {
            return self.refuse_callers(vec![caller], &Refusal::Busy, outlet);
        }
        let waiting = Waiting { caller, read: read.to_vec(), until: now.after(READ_TIME_MAX) };
        self.reads.count += 1;
        self.reads.earliest.get_or_insert(waiting.until);
        match wanted {
            Some(wanted) => self.reads.by_revision.entry(wanted).or_default().push(waiting),
            None if synod_paxos::planted!(P16SharesOlderRound) && !self.reads.asked.is_empty() => {
                self.reads.asked.push(waiting);
            }
            None => self.reads.fresh.push(waiting),
        }
    }

    /// Whether the own database is a prefix of what the cell has decided, as far as is known here.
    fn may_answer_reads(&self) -> Result<(), Refusal> {
        if self.digests.is_halted() {
            return Err(Refusal::Diverged);
        }
        let is_apart = matches!(self.replica.voting_status(), VotingStatus::Rejoining | VotingStatus::Outside);
        if is_apart || self.replica.is_quarantined() { Err(Refusal::Untrusted) } else { Ok(()) }
    }

    fn answer_read(&mut self, caller: Caller, read: &[u8], outlet: &mut impl Outlet) {
        let BoundedRead { consistency, operation } = BoundedRead::decode(read).expect("it was decoded as it came");
        let at = match consistency {
            Consistency::Linearizable | Consistency::AtLeast(_) => None,
            Consistency::At(revision) => Some(revision),
        };
        self.answer.clear();
        self.cell.read_at(operation, at, &mut self.answer);
        outlet.answer(caller, &self.answer);
        self.counters.local_reads += 1;
    }

    /// The protocol says up to where the reads of the round that is over must wait.
    pub(super) fn index_told(&mut self, slot: Slot) {
        let slot = if synod_paxos::planted!(P16AnswersBeforeIndex) { Slot::NONE } else { slot };
        let asked = std::mem::take(&mut self.reads.asked);
        self.reads.by_slot.entry(slot).or_default().extend(asked);
    }

    /// Begins a round for all that came, and answers all that need not wait any more. Once a turn.
    pub(super) fn tend_reads(&mut self, now: Instant, outlet: &mut impl Outlet) {
        if self.reads.count == 0 {
            return;
        }
        if let Err(refusal) = self.may_answer_reads() {
            let reads = std::mem::take(&mut self.reads).lists().flat_map(std::mem::take).collect::<Vec<_>>();
            self.step(now, Event::IndexUnwanted, outlet);
            return self.refuse_callers(reads.into_iter().map(|read| read.caller).collect(), &refusal, outlet);
        }
        if self.reads.earliest.is_some_and(|earliest| now >= earliest) {
            self.expire_reads(now, outlet);
        }
        if self.reads.asked.is_empty() && !self.reads.fresh.is_empty() {
            self.reads.asked = std::mem::take(&mut self.reads.fresh);
            self.counters.index_rounds += 1;
            self.step(now, Event::IndexWanted, outlet);
        }
        while let Some(reads) = due(&mut self.reads.by_slot, self.replica.chosen()) {
            self.answer_reads(reads, outlet);
        }
        while let Some(reads) = due(&mut self.reads.by_revision, self.cell.revision()) {
            self.answer_reads(reads, outlet);
        }
        if self.reads.count == 0 {
            self.reads.earliest = None;
        }
    }

    fn answer_reads(&mut self, reads: Vec<Waiting>, outlet: &mut impl Outlet) {
        self.reads.count -= reads.len();
        for Waiting { caller, read, .. } in reads {
            self.answer_read(caller, &read, outlet);
        }
    }

    fn expire_reads(&mut self, now: Instant, outlet: &mut impl Outlet) {
        let was_asking = !self.reads.asked.is_empty();
        let has = self.cell.revision();
        for Waiting { caller, read, .. } in self.reads.expire(now) {
            let asked = BoundedRead::decode(&read).expect("it was decoded as it came");
            let refusal = match asked.consistency {
                Consistency::Linearizable => Refusal::Unconfirmed { has },
                Consistency::AtLeast(wanted) | Consistency::At(wanted) => Refusal::Behind { has, wanted },
            };
            self.refuse_callers(vec![caller], &refusal, outlet);
        }
        if was_asking && self.reads.asked.is_empty() {
            self.step(now, Event::IndexUnwanted, outlet);
        }
    }
}
