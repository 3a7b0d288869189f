//! What the hot core has to do with scrubbing: it freezes the database now and then, or when an operator says so, and hears what
//! was found.

use super::*;
use crate::scrub::{LogFound, LogJob, REST, Round};

impl HotCore {
    /// Begins a round, if it is time. A database in quarantine is not looked through: what is wrong with it is known.
    pub(super) fn tend_scrub(&mut self, now: Instant) {
        let Some(scrubber) = self.scrubber.as_mut().filter(|_| self.scrub_at.is_some_and(|at| now >= at)) else {
            return;
        };
        self.scrub_at = Some(now.after(REST));
        if !self.engine.replica().is_quarantined() {
            self.scrubbed = self.engine.counters().snapshots_installed;
            let log = LogJob::of(self.engine.log(), self.world.dir());
            scrubber.begin(self.engine.cell_mut().store_mut(), log);
            self.bound_views_at.get_or_insert(now.after(BOUND_EVERY));
        }
    }

    /// An operator wants a round now.
    pub(super) fn scrub_asked(&mut self, now: Instant) -> OperatorAnswer {
        let refused = |reason: &str, retry| OperatorAnswer::Refused { reason: reason.to_owned(), retry };
        let Some(scrubber) = &self.scrubber else {
            return refused("this replica runs with --scrub-mb-per-s 0: it has no scrubber", false);
        };
        if scrubber.status().under_way {
            return refused("a round is under way already", true);
        }
        if self.engine.replica().is_quarantined() {
            return refused("this replica's database is in quarantine: what is wrong with it is known", false);
        }
        self.scrub_at = Some(now);
        OperatorAnswer::Accepted
    }

    pub(super) fn take_scrubbed(&mut self, now: Instant) {
        let Some((round, log)) = self.scrubber.as_mut().and_then(Scrubber::take_ended) else { return };
        self.scrub_at = Some(now.after(REST));
        if !self.copies.is_copying() {
            self.bound_views_at = None;
        }
        match round {
            Round::Sound(_) => {}
            Round::GivenUp(why) => eprintln!("synod: a look through the database was given up: {why}"),
            // Of the database that was looked through, another one may have taken the place.
            Round::Damaged(_) if self.scrubbed != self.engine.counters().snapshots_installed => {}
            Round::Damaged(found) => self.engine.database_damaged(found, &mut self.world),
        }
        self.take_log_found(log);
    }

    fn take_log_found(&mut self, found: LogFound) {
        for (closed, what) in found.damaged {
            // Of a segment that was cut off meanwhile the file is another one's, or gone.
            if self.engine.log_damaged(&closed) {
                eprintln!("synod: the log is damaged: {what}; it is cut behind that after two snapshots");
                self.scrubber.iter_mut().for_each(Scrubber::count_log_damage);
            }
        }
    }
}
