//! When writes were acknowledged, so when they were not.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Beats with every acknowledged write, whoever was told; remembers the longest pause.
#[derive(Debug)]
pub struct Pulse(Mutex<Beats>);

#[derive(Debug)]
struct Beats {
    last: Instant,
    longest: Duration,
    count: u64,
}

impl Default for Pulse {
    fn default() -> Self {
        Self(Mutex::new(Beats { last: Instant::now(), longest: Duration::ZERO, count: 0 }))
    }
}

impl Pulse {
    /// A write was just acknowledged.
    pub fn beat(&self) {
        let mut beats = self.beats();
        let now = Instant::now();
        beats.longest = beats.longest.max(now.duration_since(beats.last));
        beats.last = now;
        beats.count += 1;
    }

    /// From here on pauses count anew.
    pub fn reset(&self) {
        let mut beats = self.beats();
        *beats = Beats { last: Instant::now(), longest: Duration::ZERO, count: 0 };
    }

    /// The longest pause since the reset, the one that still lasts included; and how many beats there were.
    pub fn longest(&self) -> (Duration, u64) {
        let beats = self.beats();
        (beats.longest.max(beats.last.elapsed()), beats.count)
    }

    fn beats(&self) -> std::sync::MutexGuard<'_, Beats> {
        self.0.lock().expect("nobody panics with the pulse in hand")
    }
}

/// Durations, to be told as a distribution.
#[derive(Clone, Debug, Default)]
pub struct Durations(Vec<Duration>);

impl Durations {
    /// One more.
    pub fn push(&mut self, duration: Duration) {
        self.0.push(duration);
    }

    /// So large a part of them is at most this long; 1.0 gives the longest. Zero when there are none.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or_default()
    }

    /// How many.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// For people: the quantiles, and a line for each step of their range with a mark for each of them.
    #[must_use]
    pub fn histogram(&self, step: Duration) -> String {
        let [min, p50, p90, max] = [0.0, 0.5, 0.9, 1.0].map(|part| milliseconds(self.quantile(part)));
        let mut text = format!("min {min} ms, p50 {p50} ms, p90 {p90} ms, max {max} ms");
        let step = milliseconds(step).max(1);
        for from in (min / step * step..=max).step_by(step as usize) {
            let count = self.0.iter().filter(|one| (from..from + step).contains(&milliseconds(**one))).count();
            text.push_str(&format!("\n  {from:>6} ms |{}", "#".repeat(count)));
        }
        text
    }

    /// In whole milliseconds, in the order in which they came.
    #[must_use]
    pub fn milliseconds(&self) -> Vec<u64> {
        self.0.iter().map(|duration| milliseconds(*duration)).collect()
    }
}

/// A duration in whole milliseconds.
#[must_use]
pub fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_pause_is_kept_and_one_that_lasts_counts() {
        let pulse = Pulse::default();
        pulse.reset();
        std::thread::sleep(Duration::from_millis(20));
        pulse.beat();
        pulse.beat();
        let (longest, beats) = pulse.longest();
        assert!(longest >= Duration::from_millis(20));
        assert_eq!(beats, 2);
        pulse.reset();
        assert_eq!(pulse.longest().1, 0);
        std::thread::sleep(Duration::from_millis(20));
        assert!(pulse.longest().0 >= Duration::from_millis(20));
    }

    #[test]
    fn quantiles() {
        let mut durations = Durations::default();
        assert_eq!(durations.quantile(0.5), Duration::ZERO);
        for ms in [5, 1, 4, 2, 3] {
            durations.push(Duration::from_millis(ms));
        }
        let quantiles = [0.0, 0.2, 0.5, 0.9, 1.0].map(|part| durations.quantile(part).as_millis());
        assert_eq!(quantiles, [1, 1, 3, 5, 5]);
        let histogram = "min 1 ms, p50 3 ms, p90 5 ms, max 5 ms\n       0 ms |#\n       2 ms |##\n       4 ms |##";
        assert_eq!(durations.histogram(Duration::from_millis(2)), histogram);
    }
}
