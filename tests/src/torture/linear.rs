//! The linearizability checker for histories of single keys.
//!
//! Linearizability is local: a history is linearizable if that of each key is, so each key is checked on its own. A
//! general search (Wing, Gong, Lowe) does not end on a hot key. This one hardly searches, because answers carry
//! revisions: of the writes to a key whose revision is known (it was acknowledged, or a read showed it) the order is
//! fixed. Time is walked from event to event, and the key's state is moved on only when an answer *needs* it: a write
//! must have happened when it is acknowledged, what a read saw must have been there at some moment of the read. Moving
//! on later than need be never hurts: whatever was asked meanwhile can see more states then, not fewer.
//!
//! What is left to search is *hidden* writes: of unknown outcome, and no answer tells their revision. Each may happen
//! at any moment after it was asked, or never. One is tried only where something needs it (an absence, a presence, its
//! very value), and those that nobody could tell apart are taken in the order in which they were asked. All the ways
//! that are open are followed at once; if they become too many the checker says that it does not know, which is a
//! failure, not a success.
//!
//! It does not matter how a read was served: through the log, or by a master alone under its lease.
//!
//! Beside that, over all keys: a revision is given once, and an operation gets a higher one than any that was told to
//! somebody before it was asked; what did not happen is never seen; a value is seen at one revision only (a second
//! application of one write has another); and versions count every write once.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;

use super::history::WriteId;

/// Of one key, so many ways to explain what was seen so far are followed at once.
const WAYS_MAX: usize = 2_000;
/// So many states are looked at for one event of one key.
const STEPS_MAX: usize = 100_000;
/// So many operations of the key are shown with a violation.
const SHOWN: usize = 12;

/// What was asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// A key's value, or a file's contents.
    Get,
    /// A put.
    Put(WriteId),
    /// A compare-and-swap: from, to.
    Swap(Option<WriteId>, WriteId),
    /// A delete.
    Delete,
    /// A file's creation.
    Create(WriteId),
}

impl Asked {
    /// What it would leave, if it leaves a value.
    #[must_use]
    pub fn write(&self) -> Option<WriteId> {
        match *self {
            Asked::Put(write) | Asked::Swap(_, write) | Asked::Create(write) => Some(write),
            Asked::Get | Asked::Delete => None,
        }
    }

    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Asked::Get => "get",
            Asked::Put(_) => "put",
            Asked::Swap(..) => "cas",
            Asked::Delete => "delete",
            Asked::Create(_) => "create",
        }
    }
}

/// What was told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Told {
    /// The read found this.
    Found {
        /// The write that made the value.
        write: WriteId,
        /// The revision that created the key.
        created: u64,
        /// The revision of that write.
        modified: u64,
        /// How often it was written since it was created.
        version: u64,
    },
    /// Nothing was there, and so nothing was done.
    Absent,
    /// It was done, by this revision.
    Done(u64),
    /// A compare-and-swap found this instead.
    Unequal(Option<WriteId>),
    /// A compare-and-swap found something else, and what is not known any more. Of the key's state that says next to
    /// nothing, and is not checked.
    UnequalNotKept,
    /// A file was there, made by this revision.
    Exists(u64),
    /// It did not happen and will not.
    DidNotHappen,
    /// It happened once, perhaps only now, or never.
    Unknown,
}

impl Told {
    /// Its name in reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Told::Found { .. } => "found",
            Told::Absent => "absent",
            Told::Done(_) => "done",
            Told::Unequal(_) => "unequal",
            Told::UnequalNotKept => "unequal, not kept",
            Told::Exists(_) => "exists",
            Told::DidNotHappen => "did not happen",
            Told::Unknown => "unknown",
        }
    }

    /// The highest revision that it tells of.
    fn revision(&self) -> Option<u64> {
        match *self {
            Told::Found { modified, .. } => Some(modified),
            Told::Done(revision) | Told::Exists(revision) => Some(revision),
            Told::Absent | Told::Unequal(_) | Told::UnequalNotKept | Told::DidNotHappen | Told::Unknown => None,
        }
    }
}

/// One operation, from question to answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// Who asked.
    pub client: u32,
    /// Which key or file.
    pub key: u32,
    /// What was asked.
    pub asked: Asked,
    /// When, in nanoseconds since some moment.
    pub begin: u64,
    /// When the answer was there.
    pub end: u64,
    /// What was told.
    pub told: Told,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = |nanoseconds: u64| nanoseconds as f64 / 1e6;
        write!(f, "{:.3} to {:.3} ms, client {}: ", ms(self.begin), ms(self.end), self.client)?;
        match self.asked {
            Asked::Get => write!(f, "get")?,
            Asked::Put(write) => write!(f, "put [{write}]")?,
            Asked::Swap(None, write) => write!(f, "swap from nothing to [{write}]")?,
            Asked::Swap(Some(from), write) => write!(f, "swap from [{from}] to [{write}]")?,
            Asked::Delete => write!(f, "delete")?,
            Asked::Create(write) => write!(f, "create [{write}]")?,
        }
        match self.told {
            Told::Found { write, created, modified, version } => {
                write!(f, ": [{write}] at revision {modified}, created at {created}, version {version}")
            }
            Told::Absent => write!(f, ": nothing there"),
            Told::Done(revision) => write!(f, ": done at revision {revision}"),
            Told::Unequal(None) => write!(f, ": found nothing"),
            Told::Unequal(Some(write)) => write!(f, ": found [{write}]"),
            Told::UnequalNotKept => write!(f, ": found something else"),
            Told::Exists(revision) => write!(f, ": there since revision {revision}"),
            Told::DidNotHappen => write!(f, ": did not happen"),
            Told::Unknown => write!(f, ": unknown"),
        }
    }
}

/// What the checker found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is an order.
    Linearizable(Figures),
    /// There is none, and why.
    Violation(String),
    /// It gave up, and where. Not a success.
    Unknown(String),
}

/// How hard it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Figures {
    /// Keys.
    pub keys: usize,
    /// Operations.
    pub operations: usize,
    /// Writes of unknown outcome of which a read told the revision.
    pub revealed: usize,
    /// Writes of unknown outcome of which none did.
    pub hidden: usize,
    /// The most ways that were open at once for one key.
    pub ways: usize,
}

enum Stop {
    Violation(String),
    GaveUp(String),
}

/// Checks a whole history, in any order; `name` gives a key's name for the report.
#[must_use]
pub fn check(history: &[Operation], name: impl Fn(u32) -> String) -> Verdict {
    let mut figures = Figures { operations: history.len(), ..Figures::default() };
    match check_all(history, &name, &mut figures) {
        Ok(()) => Verdict::Linearizable(figures),
        Err(Stop::Violation(why)) => Verdict::Violation(why),
        Err(Stop::GaveUp(why)) => Verdict::Unknown(why),
    }
}

fn check_all(history: &[Operation], name: &impl Fn(u32) -> String, figures: &mut Figures) -> Result<(), Stop> {
    check_revisions(history, name)?;
    let mut keys: BTreeMap<u32, Vec<Operation>> = BTreeMap::new();
    for operation in history {
        keys.entry(operation.key).or_default().push(*operation);
    }
    figures.keys = keys.len();
    for (key, mut operations) in keys {
        operations.sort_by_key(|operation| (operation.begin, operation.end));
        let told = |(why, at): (String, usize)| Stop::Violation(story(&name(key), &why, &operations, at));
        let known = Known::read(&operations).map_err(told)?;
        figures.revealed += known.revealed;
        figures.hidden += known.hidden;
        known.check_counts(&operations).map_err(told)?;
        let ways = Walk::new(&operations, &known).all(&name(key)).map_err(|stop| match stop {
            Halt::Violation(at) => told(("no order of the writes explains it".to_owned(), at)),
            Halt::GaveUp(why) => Stop::GaveUp(why),
        })?;
        figures.ways = figures.ways.max(ways);
    }
    Ok(())
}

/// The violation, and what happened to the key around it.
fn story(name: &str, why: &str, operations: &[Operation], at: usize) -> String {
    let wrong = &operations[at];
    let mut text = format!("{name}: {why}:\n  {wrong}\nbefore and beside it:");
    // The last changes that ended before, and what overlapped.
    let near = |other: &&Operation| *other != wrong && other.begin < wrong.end;
    let mut others: Vec<&Operation> = operations.iter().filter(near).collect();
    others.sort_by_key(|other| (matches!(other.asked, Asked::Get), other.end));
    let writes = others.iter().rev().filter(|other| !matches!(other.asked, Asked::Get)).take(SHOWN);
    let mut shown: Vec<&&Operation> = writes.collect();
    shown.sort_by_key(|other| other.begin);
    for other in shown {
        text.push_str(&format!("\n  {other}"));
    }
    text
}

/// Over all keys: revisions are given once, and none is below one that was told before it was asked for.
fn check_revisions(history: &[Operation], name: &impl Fn(u32) -> String) -> Result<(), Stop> {
    let show = |operation: &Operation| format!("{}: {operation}", name(operation.key));
    let mut given: HashMap<u64, &Operation> = HashMap::new();
    for operation in history {
        if let Told::Done(revision) = operation.told
            && let Some(other) = given.insert(revision, operation)
        {
            let (one, other) = (show(operation), show(other));
            return Err(Stop::Violation(format!("revision {revision} was given twice:\n  {other}\n  {one}")));
        }
    }
    let mut by_end: Vec<&Operation> = history.iter().filter(|operation| operation.told.revision().is_some()).collect();
    let mut by_begin = by_end.clone();
    by_end.sort_by_key(|operation| operation.end);
    by_begin.sort_by_key(|operation| operation.begin);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<&Operation> = None;
    for operation in by_begin {
        while let Some(earlier) = ended.next_if(|earlier| earlier.end < operation.begin) {
            if highest.is_none_or(|highest| highest.told.revision() < earlier.told.revision()) {
                highest = Some(earlier);
            }
        }
        if let (Told::Done(revision), Some(highest)) = (operation.told, highest)
            && highest.told.revision().is_some_and(|told| told >= revision)
        {
            let (one, other) = (show(operation), show(highest));
            return Err(Stop::Violation(format!("a revision is out of order:\n  {other}\nand later:\n  {one}")));
        }
    }
    Ok(())
}

/// A write whose place among the others is known.
#[derive(Clone, Copy, Debug)]
struct Placed {
    revision: u64,
    /// Which operation it is.
    at: usize,
}

/// What can be said of one key's writes without an order.
struct Known {
    /// By revision.
    placed: Vec<Placed>,
    /// Their operations, to places in `placed`.
    place: HashMap<usize, usize>,
    /// Unknown puts that nobody could tell from one another, when they were asked.
    puts: Vec<u64>,
    /// The same for writes that need an absence.
    creates: Vec<u64>,
    /// The same for deletes.
    deletes: Vec<u64>,
    /// Hidden writes whose value was seen or expected: their operations.
    seen: Vec<usize>,
    revealed: usize,
    hidden: usize,
}

type Wrong = (String, usize);

impl Known {
    fn read(operations: &[Operation]) -> Result<Known, Wrong> {
        let mut writers: HashMap<WriteId, usize> = HashMap::new();
        for (at, operation) in operations.iter().enumerate() {
            if let Some(write) = operation.asked.write()
                && writers.insert(write, at).is_some()
            {
                return Err(("this value was written by two operations".to_owned(), at));
            }
        }
        let mut revisions: BTreeMap<u64, usize> = BTreeMap::new();
        let mut revision_of: HashMap<usize, u64> = HashMap::new();
        for (at, operation) in operations.iter().enumerate() {
            if let Told::Done(revision) = operation.told {
                revisions.insert(revision, at);
                revision_of.insert(at, revision);
            }
        }
        // What answers show of other writes.
        let mut shown: HashSet<WriteId> = HashSet::new();
        let mut revealed = 0;
        for (at, operation) in operations.iter().enumerate() {
            if let Asked::Swap(Some(expected), _) = operation.asked {
                shown.insert(expected);
            }
            if let (Asked::Swap(expected, _), Told::Unequal(found)) = (operation.asked, operation.told)
                && expected == found
            {
                return Err(("it found what it expected, and did nothing".to_owned(), at));
            }
            let write = match (operation.asked, operation.told) {
                (_, Told::Found { write, .. } | Told::Unequal(Some(write))) => write,
                _ => continue,
            };
            let Some(&writer) = writers.get(&write) else {
                return Err(("nobody wrote what it shows".to_owned(), at));
            };
            shown.insert(write);
            if let Told::DidNotHappen = operations[writer].told {
                return Err((format!("what it shows did not happen, as client {} was told", write.client), at));
            }
            if !matches!(operations[writer].told, Told::Done(_) | Told::Unknown) {
                return Err(("what it shows was not done, as its client was told".to_owned(), at));
            }
            if operations[writer].begin > operation.end {
                return Err(("what it shows was asked for only later".to_owned(), at));
            }
            let Told::Found { modified, .. } = operation.told else { continue };
            match (revision_of.get(&writer), revisions.get(&modified)) {
                (Some(&revision), _) if revision == modified => {}
                (Some(&revision), _) => {
                    return Err((format!("it shows a write that was done at revision {revision}"), at));
                }
                (None, Some(_)) => return Err(("another write has that revision".to_owned(), at)),
                (None, None) => {
                    revealed += 1;
                    revisions.insert(modified, writer);
                    revision_of.insert(writer, modified);
                }
            }
        }
        // Who made a file that nobody has read: one of those that were not told.
        for (at, operation) in operations.iter().enumerate() {
            let Told::Exists(revision) = operation.told else { continue };
            if revisions.contains_key(&revision) {
                continue;
            }
            let unknown = |(_, other): &(usize, &Operation)| {
                matches!((other.asked, other.told), (Asked::Create(_), Told::Unknown)) && other.begin <= operation.end
            };
            let maker = operations.iter().enumerate().filter(unknown).find(|(at, _)| !revision_of.contains_key(at));
            let Some((maker, _)) = maker else { return Err(("nobody made that file".to_owned(), at)) };
            revealed += 1;
            revisions.insert(revision, maker);
            revision_of.insert(maker, revision);
        }
        let mut known = Known {
            placed: revisions.into_iter().map(|(revision, at)| Placed { revision, at }).collect(),
            place: HashMap::new(),
            puts: Vec::new(),
            creates: Vec::new(),
            deletes: Vec::new(),
            seen: Vec::new(),
            revealed,
            hidden: 0,
        };
        known.place = known.placed.iter().enumerate().map(|(place, placed)| (placed.at, place)).collect();
        for (at, operation) in operations.iter().enumerate() {
            if operation.told != Told::Unknown || revision_of.contains_key(&at) || operation.asked == Asked::Get {
                continue;
            }
            known.hidden += 1;
            match operation.asked {
                Asked::Delete => known.deletes.push(operation.begin),
                Asked::Put(write) | Asked::Swap(_, write) | Asked::Create(write) if shown.contains(&write) => {
                    known.seen.push(at);
                }
                Asked::Put(_) => known.puts.push(operation.begin),
                Asked::Swap(None, _) | Asked::Create(_) => known.creates.push(operation.begin),
                // From one value to one that nobody saw: nothing can need that.
                Asked::Swap(Some(_), _) | Asked::Get => {}
            }
        }
        Ok(known)
    }

    /// Creations and versions: every write counts once.
    fn check_counts(&self, operations: &[Operation]) -> Result<(), Wrong> {
        // For each placed write: where it says that its key was created, and which deletion came before, if no hidden
        // write is in between.
        let mut counts: HashMap<u64, (u64, u64, u64)> = HashMap::new();
        let (mut created, mut deleted, mut count) = (None, 0, 0);
        for Placed { revision, at } in &self.placed {
            if operations[*at].asked == Asked::Delete {
                (created, deleted, count) = (None, *revision, 0);
            } else {
                count += 1;
                counts.insert(*revision, (*created.get_or_insert(*revision), deleted, count));
            }
        }
        for (at, operation) in operations.iter().enumerate() {
            let Told::Found { created, modified, version, .. } = operation.told else { continue };
            let Some(&(known_created, deleted, count)) = counts.get(&modified) else {
                return Err(("a deletion has that revision".to_owned(), at));
            };
            if self.hidden == 0 {
                if (created, version) != (known_created, count) {
                    let what = format!("it was created at revision {known_created} and written {count} times since");
                    return Err((what, at));
                }
                continue;
            }
            let range = self.placed.partition_point(|placed| placed.revision < created)
                ..self.placed.partition_point(|placed| placed.revision <= modified);
            let count = range.len() as u64;
            if created <= deleted || created > modified || !(count..=count + self.hidden as u64).contains(&version) {
                let what = format!(
                    "{count} known writes and at most {} unknown ones were done since, and it was last deleted at revision {deleted}",
                    self.hidden
                );
                return Err((what, at));
            }
        }
        Ok(())
    }
}

/// What a key holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
enum Content {
    Absent,
    Value(WriteId),
    /// A value that nobody saw.
    Unseen,
}

impl Content {
    fn of(value: Option<WriteId>) -> Content {
        value.map_or(Content::Absent, Content::Value)
    }
}

/// One way to explain everything that was answered so far.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Way {
    content: Content,
    /// How many of the placed writes have happened.
    placed: usize,
    /// How many of the hidden ones of each sort.
    puts: usize,
    creates: usize,
    deletes: usize,
    seen: BTreeSet<usize>,
    /// Of the observations under way, those that have seen what they are going to show.
    satisfied: BTreeSet<usize>,
}

enum Halt {
    Violation(usize),
    GaveUp(String),
}

struct Walk<'a> {
    operations: &'a [Operation],
    known: &'a Known,
    ways: Vec<Way>,
    /// Observations under way, and what each needs.
    under_way: BTreeMap<usize, Content>,
    now: u64,
}

impl<'a> Walk<'a> {
    fn new(operations: &'a [Operation], known: &'a Known) -> Self {
        let way = Way {
            content: Content::Absent,
            placed: 0,
            puts: 0,
            creates: 0,
            deletes: 0,
            seen: BTreeSet::new(),
            satisfied: BTreeSet::new(),
        };
        Walk { operations, known, ways: vec![way], under_way: BTreeMap::new(), now: 0 }
    }

    /// Walks through all of it; says how many ways were open at once.
    fn all(mut self, name: &str) -> Result<usize, Halt> {
        // At the same moment, what begins comes first: then they overlap.
        let mut events: Vec<(u64, bool, usize)> = Vec::with_capacity(2 * self.operations.len());
        for (at, operation) in self.operations.iter().enumerate() {
            events.push((operation.begin, false, at));
            if !matches!(operation.told, Told::Unknown | Told::DidNotHappen | Told::UnequalNotKept) {
                events.push((operation.end, true, at));
            }
        }
        events.sort_unstable();
        let mut most = 1;
        for (now, is_end, at) in events {
            self.now = now;
            let need = self.need(at);
            match (is_end, need) {
                (false, Some(need)) => {
                    self.under_way.insert(at, need);
                    for way in &mut self.ways {
                        if way.content == need {
                            way.satisfied.insert(at);
                        }
                    }
                }
                (false, None) => {}
                (true, Some(_)) => {
                    self.go_on(at, name, |way| way.satisfied.contains(&at))?;
                    self.under_way.remove(&at);
                    for way in &mut self.ways {
                        way.satisfied.remove(&at);
                    }
                    self.merge();
                }
                (true, None) => {
                    let place = self.known.place[&at];
                    self.go_on(at, name, |way| way.placed > place)?;
                }
            }
            most = most.max(self.ways.len());
        }
        Ok(most)
    }

    /// What an answered observation needs; `None` for writes that were done.
    fn need(&self, at: usize) -> Option<Content> {
        match self.operations[at].told {
            Told::Found { write, .. } => Some(Content::Value(write)),
            Told::Absent => Some(Content::Absent),
            Told::Unequal(found) => Some(Content::of(found)),
            Told::Exists(revision) => {
                let place = self.known.placed.binary_search_by_key(&revision, |placed| placed.revision);
                let maker = place.ok().map(|place| &self.operations[self.known.placed[place].at]);
                // Nothing needs what nobody wrote.
                Some(maker.and_then(|maker| maker.asked.write()).map_or(Content::Unseen, Content::Value))
            }
            Told::Done(_) | Told::UnequalNotKept | Told::DidNotHappen | Told::Unknown => None,
        }
    }

    /// Moves every way on until the operation that is answered now has its due.
    fn go_on(&mut self, at: usize, name: &str, done: impl Fn(&Way) -> bool) -> Result<(), Halt> {
        if self.ways.iter().all(&done) {
            return Ok(());
        }
        let mut reached = HashSet::new();
        let mut visited: HashSet<Way> = HashSet::new();
        let mut open: Vec<Way> = std::mem::take(&mut self.ways);
        while let Some(mut way) = open.pop() {
            for (&observation, &need) in &self.under_way {
                if way.content == need {
                    way.satisfied.insert(observation);
                }
            }
            if done(&way) {
                reached.insert(way);
                continue;
            }
            if visited.insert(way.clone()) {
                self.moves(&way, &mut open);
            }
            if visited.len() > STEPS_MAX || reached.len() > WAYS_MAX {
                let what = &self.operations[at];
                return Err(Halt::GaveUp(format!("{name}: too many ways to explain it:\n  {what}")));
            }
        }
        if reached.is_empty() {
            return Err(Halt::Violation(at));
        }
        self.ways = reached.into_iter().collect();
        Ok(())
    }

    fn merge(&mut self) {
        if self.ways.len() > 1 {
            let ways: HashSet<Way> = std::mem::take(&mut self.ways).into_iter().collect();
            self.ways = ways.into_iter().collect();
        }
    }

    /// What could happen next to the key, as far as anything could need it.
    fn moves(&self, way: &Way, open: &mut Vec<Way>) {
        let next = self.known.placed.get(way.placed).map(|placed| &self.operations[placed.at]);
        let next = next.filter(|next| next.begin <= self.now);
        let wanted = |content: Content| {
            self.under_way.iter().any(|(at, need)| *need == content && !way.satisfied.contains(at))
                || next.is_some_and(|next| match next.asked {
                    Asked::Swap(expected, _) => Content::of(expected) == content,
                    Asked::Create(_) => content == Content::Absent,
                    Asked::Put(_) | Asked::Delete | Asked::Get => false,
                })
                || self.unused(way).any(|hidden| match hidden.1.asked {
                    Asked::Swap(expected, _) => Content::of(expected) == content,
                    Asked::Create(_) => content == Content::Absent,
                    Asked::Put(_) | Asked::Delete | Asked::Get => false,
                })
        };
        if let Some(next) = next {
            let after = match next.asked {
                Asked::Put(write) => Some(Content::Value(write)),
                Asked::Swap(expected, write) => (way.content == Content::of(expected)).then_some(Content::Value(write)),
                Asked::Create(write) => (way.content == Content::Absent).then_some(Content::Value(write)),
                Asked::Delete => (way.content != Content::Absent).then_some(Content::Absent),
                Asked::Get => None,
            };
            if let Some(content) = after {
                open.push(Way { content, placed: way.placed + 1, ..way.clone() });
            }
        }
        let asked = |hidden: &[u64], used: usize| hidden.get(used).is_some_and(|begin| *begin <= self.now);
        if way.content == Content::Absent {
            // Only for something to be there.
            if next.is_some_and(|next| next.asked == Asked::Delete) {
                if asked(&self.known.puts, way.puts) {
                    open.push(Way { content: Content::Unseen, puts: way.puts + 1, ..way.clone() });
                }
                if asked(&self.known.creates, way.creates) {
                    open.push(Way { content: Content::Unseen, creates: way.creates + 1, ..way.clone() });
                }
            }
        } else if asked(&self.known.deletes, way.deletes) && wanted(Content::Absent) {
            open.push(Way { content: Content::Absent, deletes: way.deletes + 1, ..way.clone() });
        }
        for (at, hidden) in self.unused(way) {
            let (possible, write) = match hidden.asked {
                Asked::Put(write) => (true, write),
                Asked::Swap(expected, write) => (way.content == Content::of(expected), write),
                Asked::Create(write) => (way.content == Content::Absent, write),
                Asked::Delete | Asked::Get => continue,
            };
            let for_presence = way.content == Content::Absent && next.is_some_and(|next| next.asked == Asked::Delete);
            if possible && (for_presence || wanted(Content::Value(write))) {
                let mut seen = way.seen.clone();
                seen.insert(at);
                open.push(Way { content: Content::Value(write), seen, ..way.clone() });
            }
        }
    }

    /// Hidden writes, of those whose value was seen, that have been asked and have not happened.
    fn unused(&self, way: &Way) -> impl Iterator<Item = (usize, &'a Operation)> {
        let (operations, now) = (self.operations, self.now);
        let seen = way.seen.clone();
        self.known
            .seen
            .iter()
            .map(move |&at| (at, &operations[at]))
            .filter(move |(at, hidden)| hidden.begin <= now && !seen.contains(at))
    }
}

#[cfg(test)]
mod tests;
