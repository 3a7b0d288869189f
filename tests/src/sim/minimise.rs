//! Which of a failing seed's faults its violation needs.
//!
//! Delta debugging over the faults' numbers (Zeller's ddmin): ever smaller parts are left out, and stay out while the run
//! still fails the same way. Each trial is a run of its own, as deterministic as the first.

use std::collections::BTreeSet;

/// Trials are bounded: what is left then is still a failing set, only perhaps not the smallest.
const TRIALS_MAX: usize = 400;

/// The outcome of a minimisation.
#[derive(Debug, PartialEq, Eq)]
pub struct Minimised {
    /// The faults that are left: with any one of them gone the run does not fail so, unless trials ran out.
    pub faults: BTreeSet<usize>,
    /// How many runs it took.
    pub trials: usize,
}

/// Makes `faults`, with which the run fails, as few as possible. `fails` runs it with only these.
pub fn minimise(faults: BTreeSet<usize>, mut fails: impl FnMut(&BTreeSet<usize>) -> bool) -> Minimised {
    let mut left: Vec<usize> = faults.into_iter().collect();
    let mut trials = 0;
    // None at all is the most frequent answer for bugs that need no fault.
    let mut parts = 1;
    while !left.is_empty() && trials < TRIALS_MAX {
        let size = left.len().div_ceil(parts);
        let smaller = left.chunks(size).enumerate().find_map(|(part, _)| {
            if trials == TRIALS_MAX {
                return None;
            }
            trials += 1;
            let without = left.chunks(size).enumerate().filter(|(other, _)| *other != part);
            let without: BTreeSet<usize> = without.flat_map(|(_, chunk)| chunk.iter().copied()).collect();
            fails(&without).then_some(without)
        });
        match smaller {
            Some(without) => {
                left = without.into_iter().collect();
                parts = parts.saturating_sub(1).clamp(1, left.len().max(1));
            }
            None if size == 1 => break,
            None => parts = (parts * 2).min(left.len()),
        }
    }
    Minimised { faults: left.into_iter().collect(), trials }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_needed_goes() {
        let all: BTreeSet<usize> = (0..200).collect();
        for needed in [&[][..], &[7], &[3, 17, 40], &[0, 199], &[100, 101, 102, 103]] {
            let needed: BTreeSet<usize> = needed.iter().copied().collect();
            let minimised = minimise(all.clone(), |faults| needed.is_subset(faults));
            assert_eq!(minimised.faults, needed);
            assert!(minimised.trials < 100, "{} trials for {needed:?}", minimised.trials);
        }
    }

    #[test]
    fn it_comes_to_an_end_even_if_all_are_needed() {
        let all: BTreeSet<usize> = (0..1_000).collect();
        let minimised = minimise(all.clone(), |faults| faults.len() == all.len());
        assert_eq!(minimised, Minimised { faults: all, trials: TRIALS_MAX });
    }
}
