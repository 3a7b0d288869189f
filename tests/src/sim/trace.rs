//! What happened, as a hash to compare two runs by, and as words when somebody wants to read it.

use std::collections::VecDeque;

/// What becomes of the words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Words {
    /// They are not even put together.
    #[default]
    Silent,
    /// The last few are kept.
    KeepLast(usize),
    /// They go to standard output as they come.
    Print,
}

/// The hash of all events in order, and the words.
pub(crate) struct Trace {
    words: Words,
    lines: VecDeque<String>,
    hash: u64,
    pub(crate) events: u64,
}

/// From FxHash: fast, and good enough to tell two runs apart.
const FACTOR: u64 = 0x517c_c1b7_2722_0a95;

fn mix(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(5) ^ word).wrapping_mul(FACTOR)
}

/// A fingerprint of bytes.
pub(crate) fn hash_bytes(bytes: &[u8]) -> u64 {
    let (chunks, rest) = bytes.as_chunks::<8>();
    let hash = chunks.iter().fold(bytes.len() as u64, |hash, chunk| mix(hash, u64::from_le_bytes(*chunk)));
    rest.iter().fold(hash, |hash, byte| mix(hash, u64::from(*byte)))
}

impl Trace {
    pub(crate) fn new(words: Words) -> Trace {
        Trace { words, lines: VecDeque::new(), hash: 0, events: 0 }
    }

    /// An event happened; `numbers` say which.
    pub(crate) fn event(&mut self, now: u64, numbers: &[u64]) {
        self.events += 1;
        self.note(now);
        for number in numbers {
            self.note(*number);
        }
    }

    /// Something that follows from an event, to notice it early when it does not.
    pub(crate) fn note(&mut self, number: u64) {
        self.hash = mix(self.hash, number);
    }

    /// Words for it. Put together only when somebody reads them.
    pub(crate) fn say(&mut self, now: u64, line: impl FnOnce() -> String) {
        match self.words {
            Words::Silent => {}
            Words::KeepLast(lines) => {
                if self.lines.len() == lines {
                    self.lines.pop_front();
                }
                self.lines.push_back(stamped(now, shortened(&line(), KEPT_BYTES)));
            }
            Words::Print => println!("{}", stamped(now, &line())),
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines.into()
    }
}

/// Kept lines are for reading; whoever wants all of a batch prints the run.
const KEPT_BYTES: usize = 220;

/// The first `bytes` of it, about.
pub(crate) fn shortened(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

fn stamped(now: u64, line: &str) -> String {
    format!("{:>12.6} {line}", now as f64 / 1e9)
}
