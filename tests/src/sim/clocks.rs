//! Each replica's own clock.
//!
//! The world alone knows the true time. A replica's clock has an arbitrary beginning and runs a little fast or slow, at
//! most by [`DRIFT_PPM_MAX`], as CLOCK_BOOTTIME does: it goes on while a process stands still or a machine is suspended.
//! There is no wall clock in a replica, so nothing can set one.

/// How far a clock's rate may be from the true one, in millionths: the bound that leases lean on (rule P8).
pub(crate) const DRIFT_PPM_MAX: i64 = 50_000;

const MILLION: i64 = 1_000_000;

/// A clock, read and asked in true time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// From here on it runs at the present rate: the true time, and what it showed.
    since: u64,
    shown: u64,
    ppm: i64,
}

impl Clock {
    /// A clock that shows `shown` at the true time `now`.
    pub(crate) fn new(now: u64, shown: u64) -> Clock {
        Clock { since: now, shown, ppm: 0 }
    }

    /// What it shows at the true time `now`.
    pub(crate) fn at(&self, now: u64) -> u64 {
        let passed = u128::from(now - self.since) * self.rate() / MILLION as u128;
        self.shown + u64::try_from(passed).expect("simulated times are short")
    }

    /// The first true time at which it shows `shown`, or that at which it was last changed. `u64::MAX` is never.
    pub(crate) fn when(&self, shown: u64) -> u64 {
        if shown == u64::MAX {
            return u64::MAX;
        }
        let wait = u128::from(shown.saturating_sub(self.shown)) * MILLION as u128;
        let wait = u64::try_from(wait.div_ceil(self.rate())).unwrap_or(u64::MAX);
        self.since.saturating_add(wait)
    }

    /// From `now` on it runs so many millionths fast (or slow).
    pub(crate) fn set_rate(&mut self, now: u64, ppm: i64) {
        assert!(ppm.abs() <= DRIFT_PPM_MAX, "beyond the bound nothing is promised");
        *self = Clock { since: now, shown: self.at(now), ppm };
    }

    /// The machine has started again, and its clock with it.
    pub(crate) fn reboot(&mut self, now: u64, shown: u64) {
        *self = Clock { since: now, shown, ppm: self.ppm };
    }

    fn rate(&self) -> u128 {
        u128::try_from(MILLION + self.ppm).expect("no clock runs backwards")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_reached_when_the_clock_shows_it_and_not_before() {
        for ppm in [-DRIFT_PPM_MAX, -33, 0, 7, DRIFT_PPM_MAX] {
            let mut clock = Clock::new(1_000, 77);
            clock.set_rate(5_000, ppm);
            for shown in [4_077, 4_078, 5_000, 123_456_789, 9_876_543_210] {
                let when = clock.when(shown);
                assert!(clock.at(when) >= shown, "{shown} at {ppm}");
                assert!(when == 5_000 || clock.at(when - 1) < shown, "{shown} at {ppm}");
            }
        }
    }

    #[test]
    fn it_never_steps_back_and_never_means_never() {
        let mut clock = Clock::new(0, 5);
        clock.set_rate(10, -DRIFT_PPM_MAX);
        assert_eq!((clock.at(10), clock.at(1_010)), (15, 965));
        clock.set_rate(1_010, DRIFT_PPM_MAX);
        assert_eq!((clock.at(1_010), clock.at(2_010)), (965, 2_015));
        assert_eq!(clock.when(u64::MAX), u64::MAX);
    }
}
