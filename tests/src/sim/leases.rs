//! Two replicas never hold valid leases at one true time (rule P8).
//!
//! A replica holds a lease until a moment on its own clock; what counts is the true time at which its clock shows that
//! moment, whether it runs then or stands still: as soon as it goes on it may answer by what it believes. A lease can only
//! begin in a turn of its holder, so looking after each turn misses none.

use synod_node::engine::Engine;
use synod_paxos::{Instant, ReplicaId};

use super::clocks::Clock;
use super::verdict::{Checker, Verdict, violation};

/// What may hold a lease.
pub(crate) trait LeaseHolder {
    /// Until when, on its own clock, it may answer alone. `None`: it holds no lease.
    fn lease_until(&self) -> Option<Instant>;
}

impl LeaseHolder for Engine {
    fn lease_until(&self) -> Option<Instant> {
        self.replica().lease_until()
    }
}

/// Checks that of all these replicas (those that are up, each with its clock) one at most holds a lease now.
pub(crate) fn disjoint<'a, H: LeaseHolder + 'a>(
    now: u64,
    replicas: impl Iterator<Item = (ReplicaId, &'a Clock, &'a H)>,
) -> Verdict {
    let mut holder = None;
    for (id, clock, replica) in replicas {
        let Some(Instant(until)) = replica.lease_until().filter(|until| clock.at(now) < until.0) else { continue };
        let until = clock.when(until);
        if let Some((other, others)) = holder.replace((id, until)) {
            let what = format!(
                "replica {other} holds a lease for another {} ns of true time, and replica {id} for {} ns",
                others - now,
                until - now
            );
            return violation(Checker::DisjointLeases, what);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Holder(Option<u64>);

    impl LeaseHolder for Holder {
        fn lease_until(&self) -> Option<Instant> {
            self.0.map(Instant)
        }
    }

    #[test]
    fn a_slow_clock_keeps_a_lease_longer_than_it_says() {
        let mut slow = Clock::new(0, 1_000);
        slow.set_rate(0, -50_000);
        let right = Clock::new(0, 500_000);
        let check = |now, first: Option<u64>, second: Option<u64>| {
            let (first, second) = (Holder(first), Holder(second));
            disjoint(now, [(ReplicaId(1), &slow, &first), (ReplicaId(2), &right, &second)].into_iter())
        };
        // The slow clock shows 2000 only after 1053 ns.
        assert!(check(1_052, Some(2_000), Some(600_000)).is_err());
        assert!(check(1_053, Some(2_000), Some(600_000)).is_ok());
        assert!(check(1_052, Some(2_000), None).is_ok());
    }
}
