//! What happened, as a hash to compare two runs by, and as words when somebody wants to read it.

use std::cell::RefCell;
use std::collections::VecDeque;

/// What becomes of the words.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Words {
    /// They are not even put together.
    #[default]
    Silent,
    /// The last few are kept, and before them the turning points: faults, starts, elections.
    Story,
    /// They go to standard output as they come.
    Print,
}

/// The hash of all events in order, and the words.
pub(crate) struct Trace {
    words: Words,
    hash: u64,
    pub(crate) events: u64,
}

/// What is kept of a run to be read. It belongs to the thread, so that a broken assertion, which ends the process, can
/// still tell it.
#[derive(Default)]
struct Story {
    turning_points: VecDeque<(u64, String)>,
    /// Turning points that were too many.
    left_out: u64,
    last: VecDeque<(u64, String)>,
    told: u64,
}

/// A story has so many turning points and so many last lines at the most.
const TURNING_POINTS: usize = 100;
const LAST_LINES: usize = 40;

thread_local! {
    static STORY: RefCell<Story> = RefCell::default();
}

impl Story {
    fn tell(&mut self, line: String, turning_point: bool) {
        self.told += 1;
        if turning_point {
            if self.turning_points.len() == TURNING_POINTS {
                self.turning_points.pop_front();
                self.left_out += 1;
            }
            self.turning_points.push_back((self.told, line.clone()));
        }
        if self.last.len() == LAST_LINES {
            self.last.pop_front();
        }
        self.last.push_back((self.told, line));
    }

    fn lines(self) -> Vec<String> {
        let first = self.last.front().map_or(0, |(number, _)| *number);
        let mut lines = Vec::new();
        if self.left_out > 0 {
            lines.push(format!("             ({} more before)", self.left_out));
        }
        lines.extend(self.turning_points.into_iter().filter(|(number, _)| *number < first).map(|(_, line)| line));
        if !lines.is_empty() {
            lines.push(format!("             the last {} lines:", self.last.len()));
        }
        lines.extend(self.last.into_iter().map(|(_, line)| line));
        lines
    }
}

/// The story of the run on this thread so far; the next run begins its own.
pub fn take_story() -> Vec<String> {
    STORY.take().lines()
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
        STORY.take();
        Trace { words, hash: 0, events: 0 }
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
        self.tell(now, false, line);
    }

    /// Words for what turns a run: a fault, a start, an election.
    pub(crate) fn turn(&mut self, now: u64, line: impl FnOnce() -> String) {
        self.tell(now, true, line);
    }

    fn tell(&mut self, now: u64, turning_point: bool, line: impl FnOnce() -> String) {
        match self.words {
            Words::Silent => {}
            Words::Story => {
                let line = stamped(now, shortened(&readable(&line()), KEPT_BYTES));
                STORY.with_borrow_mut(|story| story.tell(line, turning_point));
            }
            Words::Print => println!("{}", stamped(now, &readable(&line()))),
        }
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash
    }
}

/// Kept lines are for reading; whoever wants all of a batch prints the run.
const KEPT_BYTES: usize = 220;

/// The first `bytes` of it, about.
pub(crate) fn shortened(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The same, without what `Debug` says too much of: ballots as "3.1", slots as numbers, rows of zeros as dots.
fn readable(text: &str) -> String {
    let mut short = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, ballot)) = rest.split_once("Ballot { round: ") {
        short.push_str(before);
        let Some((inside, after)) = ballot.split_once(" }") else { break };
        let mut numbers = inside.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
        let (round, replica) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
        short.push_str(&format!("{round}.{replica}"));
        rest = after;
    }
    short.push_str(rest);
    let mut rest = std::mem::take(&mut short);
    while let Some((before, slot)) = rest.split_once("Slot(") {
        short.push_str(before);
        let (number, after) = slot.split_once(')').unwrap_or((slot, ""));
        short.push_str(number);
        rest = after.to_owned();
    }
    short.push_str(&rest);
    short.replace("\\x00", "\u{b7}")
}

fn stamped(now: u64, line: &str) -> String {
    format!("{:>12.6} {line}", now as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_made_readable() {
        let ballot = "Ballot { round: 12, replica: ReplicaId(3), incarnation: Incarnation(1) }";
        let line =
            format!("2 <- 3: Accept {{ ballot: {ballot}, slot: Slot(515), batch: \\x01\\x00\\x00k }} Some({ballot})");
        assert_eq!(readable(&line), "2 <- 3: Accept { ballot: 12.3, slot: 515, batch: \\x01\u{b7}\u{b7}k } Some(12.3)");
        assert_eq!(readable("AcceptedSlot { slot: Slot(7"), "AcceptedSlot { slot: 7");
    }

    #[test]
    fn a_story_keeps_turning_points_and_the_last_lines() {
        let mut trace = Trace::new(Words::Story);
        trace.turn(0, || "begins".to_owned());
        for at in 1..=200 {
            trace.say(at, || format!("line {at}"));
        }
        trace.turn(201, || "ends".to_owned());
        let lines = take_story();
        assert_eq!(lines.len(), 2 + LAST_LINES);
        assert!(lines[0].ends_with("begins") && lines[2].ends_with("line 162"), "{lines:?}");
        assert!(lines.last().is_some_and(|line| line.ends_with("ends")), "{lines:?}");
        assert!(take_story().is_empty());
    }
}
