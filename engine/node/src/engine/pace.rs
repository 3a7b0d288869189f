//! How fast a laggard may be helped: whoever serves needs the same disk, and often the same cores.

use super::*;

/// What may be read from the log for those who lag behind: so many bytes a second, and five for each four that the log
/// grows by, so that catching up ends however much is written meanwhile.
pub(super) struct Pace {
    bytes_per_second: u64,
    /// What may be taken now; below zero, what was taken ahead of time.
    allowed: i128,
    since: Instant,
}

const NANOSECONDS: u128 = 1_000_000_000;
/// What was not used is kept, up to what this part of a second brings.
const UNUSED_PART: u64 = 128;

impl Pace {
    pub(super) fn new(bytes_per_second: u64, now: Instant) -> Self {
        Self { bytes_per_second, allowed: 0, since: now }
    }

    /// The log grew.
    pub(super) fn grew(&mut self, bytes: u64) {
        self.allow(i128::from(bytes) * 5 / 4);
    }

    fn allow(&mut self, bytes: i128) {
        let most = i128::from(self.bytes_per_second / UNUSED_PART);
        self.allowed = (self.allowed + bytes).min(most);
    }

    /// How long so many bytes take while the log does not grow.
    pub(super) fn time_of(&self, bytes: u64) -> Duration {
        Duration::from_millis((u128::from(bytes) * 1000 / u128::from(self.bytes_per_second)) as u64)
    }

    /// So many bytes are taken now; says when the next may be, if the log does not grow.
    pub(super) fn take(&mut self, bytes: usize, now: Instant) -> Instant {
        let passed = now.since(self.since).as_nanos();
        self.since = now;
        self.allow((passed * u128::from(self.bytes_per_second) / NANOSECONDS) as i128);
        self.allow(-(bytes as i128));
        let ahead = self.allowed.min(0).unsigned_abs();
        now.after(Duration::from_nanos((ahead * NANOSECONDS / u128::from(self.bytes_per_second)) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = NANOSECONDS as u64;

    #[test]
    fn a_second_brings_its_bytes_and_growth_brings_more_than_its_own() {
        let mut pace = Pace::new(1000, Instant(0));
        assert_eq!(pace.take(1500, Instant(0)), Instant(SECOND * 3 / 2));
        pace.grew(200);
        assert_eq!(pace.take(700, Instant(SECOND)), Instant(SECOND + SECOND * 95 / 100));
        assert_eq!(pace.time_of(2500), Duration::from_millis(2500));
    }

    #[test]
    fn without_a_limit_it_never_waits() {
        let mut pace = Pace::new(u64::MAX, Instant(0));
        for at in 1..100 {
            assert_eq!(pace.take(1 << 30, Instant(at)), Instant(at));
        }
    }
}
