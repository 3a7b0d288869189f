//! What the hot core has to do with scrubbing: it freezes the database now and then, and hears what was found.

use super::*;
use crate::scrub::{REST, Round};

impl HotCore {
    /// Begins a round, if it is time. A database in quarantine is not looked through: what is wrong with it is known.
    pub(super) fn tend_scrub(&mut self, now: Instant) {
        let Some(scrubber) = self.scrubber.as_mut().filter(|_| self.scrub_at.is_some_and(|at| now >= at)) else {
            return;
        };
        self.scrub_at = Some(now.after(REST));
        if !self.engine.replica().is_quarantined() {
            self.scrubbed = self.engine.counters().snapshots_installed;
            scrubber.begin(self.engine.cell_mut().store_mut());
            self.bound_views_at.get_or_insert(now.after(BOUND_EVERY));
        }
    }

    pub(super) fn take_scrubbed(&mut self, now: Instant) {
        let Some(round) = self.scrubber.as_mut().and_then(crate::scrub::Scrubber::take_ended) else { return };
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
    }
}
