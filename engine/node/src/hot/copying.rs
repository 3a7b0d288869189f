//! What the hot core has to do with remote copies: it freezes the database, and hears of the end.

use super::*;
use crate::remote::copies::{Due, News};
use crate::remote::manifest::{MadeBy, now_ms};
use crate::remote::{self, save};

impl HotCore {
    /// An operator asks for a copy.
    pub(super) fn copy_asked(&mut self, now: Instant, to: Option<&str>) -> OperatorAnswer {
        let refused = |reason: String, retry| OperatorAnswer::Refused { reason, retry };
        let Some(to) = to.or(self.copies.scheduled_url()).map(str::to_owned) else {
            return refused("say where to: this replica has no snapshot_to of its own".to_owned(), false);
        };
        if let Err(error) = remote::check_url(&to) {
            return refused(error.to_string(), false);
        }
        if self.is_insecure && self.copies.scheduled_url() != Some(&to) {
            // Anybody may ask who reaches the port, and the replica's user may write in many places.
            return refused(
                "a replica that is reached from elsewhere copies to its own --snapshot-to alone".to_owned(),
                false,
            );
        }
        if self.copies.is_copying() {
            return refused("this replica is making another copy: one at a time".to_owned(), true);
        }
        if self.engine.replica().is_quarantined() {
            return refused("this replica's database is in quarantine: ask another one".to_owned(), false);
        }
        if self.engine.replica().chosen() == Slot::NONE {
            return refused("nothing has been written yet: there is nothing to copy".to_owned(), false);
        }
        self.begin_copy(now, to, MadeBy::Operator);
        OperatorAnswer::Accepted
    }

    fn begin_copy(&mut self, now: Instant, to: String, made_by: MadeBy) {
        let (handle, view) = self.engine.freeze();
        let Identity { cell, replica, incarnation, .. } = self.identity;
        let source = save::Source { view, handle, cell, replica, incarnation, taken_ms: now_ms(), made_by };
        self.copies.begin(source, to);
        self.bound_views_at = Some(now.after(BOUND_EVERY));
    }

    pub(super) fn take_news_of_copies(&mut self, now: Instant) {
        while let Some(news) = self.copies.take_news() {
            match news {
                News::Due(due) => self.copy_due(now, due),
                News::Trouble(Some(why)) => eprintln!("synod: the schedule of remote copies cannot be kept: {why}"),
                News::Trouble(None) => eprintln!("synod: the schedule of remote copies can be kept again"),
                News::Ended(outcome) => {
                    self.bound_views_at = None;
                    match outcome {
                        Ok(saved) if saved.was_there => eprintln!("synod: the copy {} was there already", saved.name),
                        Ok(saved) => eprintln!("synod: made the copy {}, {} bytes", saved.name, saved.bytes),
                        Err(error) => eprintln!("synod: a remote copy failed: {}", chain(&error)),
                    }
                }
            }
        }
    }

    /// The schedule wants a copy: not one of a replica that lags behind, or is alone. The coordinator has enough to do, unless
    /// there is nobody else.
    fn copy_due(&mut self, now: Instant, due: Due) {
        let replica = self.engine.replica();
        let may = match replica.role() {
            Role::Following(coordinator) => coordinator.is_some(),
            Role::Campaigning => false,
            Role::Coordinating => due.overdue,
        };
        let is_trusted = !replica.is_quarantined();
        if !may || !is_trusted || replica.is_fetching() || replica.chosen() == Slot::NONE || self.copies.is_copying() {
            return;
        }
        if let Some(to) = self.copies.scheduled_url().map(str::to_owned) {
            self.begin_copy(now, to, MadeBy::Schedule);
        }
    }

    /// Holds the view that is copied to its bound (rule S6).
    pub(super) fn bound_views(&mut self, now: Instant) {
        if self.bound_views_at.is_some_and(|at| now >= at) {
            self.engine.cell_mut().store_mut().bound_views();
            self.bound_views_at = Some(now.after(BOUND_EVERY));
        }
    }
}
