//! The application: hands out numbers, each once, in order.

use std::collections::BTreeMap;
use std::fmt;

use synod_paxos::{Slot, StateMachine};

/// A command: these many numbers for this name. As text, `alice 7 3`.
pub(crate) struct Take<'a> {
    pub(crate) name: &'a str,
    /// Counts the takes of this name, from 1. Whoever gets no answer asks again under the same number, and gets the same
    /// numbers, however often the log has the command.
    pub(crate) request: u64,
    pub(crate) count: u64,
}

impl<'a> Take<'a> {
    pub(crate) const BYTES_MAX: usize = 256;
    const COUNT_MAX: u64 = 1_000_000;

    pub(crate) fn parse(command: &'a [u8]) -> Option<Self> {
        let mut words = std::str::from_utf8(command).ok()?.split(' ');
        let name = words.next().filter(|name| !name.is_empty())?;
        let (request, count) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        let is_sound = command.len() <= Self::BYTES_MAX && (1..=Self::COUNT_MAX).contains(&count);
        (is_sound && words.next().is_none()).then_some(Self { name, request, count })
    }
}

/// What the log makes of its commands: the same at every replica that has applied as many slots.
#[derive(Default)]
pub(crate) struct Sequencer {
    handed_out: u64,
    /// Each name's last request, and the first number of its answer.
    last: BTreeMap<String, (u64, u64)>,
}

impl StateMachine for Sequencer {
    /// Answers the number of the request and the first number taken, as text.
    fn apply(&mut self, _: Slot, command: &[u8], answer: &mut Vec<u8>) {
        // What is malformed is not proposed. But the log is what counts, and from it every replica must make the same.
        let Some(Take { name, request, count }) = Take::parse(command) else { return };
        let (last, first) = self.last.entry(name.to_owned()).or_default();
        if request > *last {
            (*last, *first) = (request, self.handed_out + 1);
            self.handed_out += count;
        }
        answer.extend(format!("{last} {first}").bytes());
    }
}

/// All of the state, to compare replicas by.
impl fmt::Display for Sequencer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} numbers handed out", self.handed_out)?;
        self.last.iter().try_for_each(|(name, (request, first))| write!(f, ", {name}'s take {request} from {first} on"))
    }
}
