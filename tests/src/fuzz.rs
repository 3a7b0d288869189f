//! `synod-fuzz`: everything that turns bytes into meaning, fed with bytes that nobody would send.
//!
//! An execution takes a sound example of its target and spoils it: bits, numbers at the edges, pieces doubled, left out and
//! put elsewhere, ends cut off; or it makes bytes up. Where a checksum stands before what is to be reached it is put right
//! again. Nothing may panic, and what is taken for sound must be the same after it was encoded and decoded once more. Each
//! run is told by its seed, and a run in which nothing was taken, or nothing refused, has shown nothing: it is void.

mod mutate;
mod recovery;
mod targets;

use std::time::{Duration, Instant};

use fastrand::Rng;

pub use targets::{TARGETS, Target};

/// What became of one execution's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// They were taken for sound.
    Taken,
    /// They were refused.
    Refused,
}

/// A finding, beside a panic: what was taken is not what it is after encoding and decoding it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what}: {bytes}")]
pub struct Finding {
    /// What does not hold.
    pub what: &'static str,
    /// Of which bytes, in hexadecimal; the first of them if there are many.
    pub bytes: String,
}

/// How many bytes of a finding are shown.
const SHOWN_BYTES_MAX: usize = 256;

impl Finding {
    pub(crate) fn new(what: &'static str, bytes: &[u8]) -> Finding {
        let shown = &bytes[..bytes.len().min(SHOWN_BYTES_MAX)];
        Finding { what, bytes: shown.iter().map(|byte| format!("{byte:02x}")).collect() }
    }
}

/// What a run did.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Report {
    /// Of which target.
    pub target: &'static str,
    /// What decided it.
    pub seed: u64,
    /// How many inputs it was fed.
    pub executions: u64,
    /// How many of them were taken for sound.
    pub taken: u64,
    /// How long it took, in seconds.
    pub seconds: f64,
}

impl Report {
    /// Why this run shows nothing, if so.
    pub fn why_void(&self) -> Option<&'static str> {
        match self.taken {
            0 => Some("nothing was taken for sound"),
            taken if taken == self.executions => Some("nothing was refused"),
            _ => None,
        }
    }
}

/// From one execution's seed to the next one's.
pub const SEED_STEP: u64 = 0x9e37_79b9_7f4a_7c15;
/// Progress is told after so many executions.
const TOLD_EVERY: u64 = 1 << 14;

/// Feeds a target so many inputs. `progress` is told how many were, now and then.
pub fn run(
    target: &Target,
    seed: u64,
    executions: u64,
    mut progress: impl FnMut(u64, Duration),
) -> Result<Report, Finding> {
    let samples = (target.samples)();
    let began = Instant::now();
    let (mut taken, mut bytes) = (0, Vec::new());
    for execution in 0..executions {
        // From the seed and the number: a finding is repeated without those before it.
        let mut random = Rng::with_seed(seed.wrapping_add(execution.wrapping_mul(SEED_STEP)));
        mutate::draw(&mut random, &samples, &mut bytes);
        (target.mend)(&mut random, &mut bytes);
        EXECUTION.set(execution);
        if (target.feed)(&bytes)? == Verdict::Taken {
            taken += 1;
        }
        if execution % TOLD_EVERY == 0 {
            progress(execution, began.elapsed());
        }
    }
    Ok(Report { target: target.name, seed, executions, taken, seconds: began.elapsed().as_secs_f64() })
}

std::thread_local! {
    static EXECUTION: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// Which execution of [`run`] this thread is at: for whoever has to tell of a panic.
pub fn execution() -> u64 {
    EXECUTION.get()
}
