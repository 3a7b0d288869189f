//! What has been found out so far: every node, every message, and what comes of each input at each node.
//!
//! A cell's state is its nodes and its messages, and there are far more combinations than there are parts. So parts are
//! kept once, for good, and known by place; and the production code runs once for each input at each node, although
//! that input may happen there in millions of states. This leans on `step` being a function of what it was told: the
//! simulator, which runs everything twice, is the judge of that.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, RwLock};

use synod_paxos::{Ballot, Batch, Message, Record, ReplicaId, Role, Slot};

use super::node::{Input, Node, Outcome, value};
use super::system::REPLICAS;
use super::{Planted, Scope};

/// The most different messages to one replica. A power of two; more is a scope that is too large.
pub(crate) const INBOX_MAX: usize = 512;

/// Messages to one replica, by place.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(crate) struct Inbox([u64; INBOX_MAX / 64]);

impl Inbox {
    pub(crate) fn add(&mut self, place: u16) {
        self.0[usize::from(place) / 64] |= 1 << (place % 64);
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = u16> {
        (0..).zip(self.0).flat_map(|(word, bits)| {
            let rest = |bits: &u64| Some(*bits & (*bits - 1)).filter(|bits| *bits != 0);
            std::iter::successors(Some(bits).filter(|bits| *bits != 0), rest)
                .map(move |bits| word * 64 + bits.trailing_zeros() as u16)
        })
    }
}

/// Something that can happen to a node, with messages by place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Tick,
    Flush,
    Submit,
    Crash,
    /// Time, everywhere.
    Pass,
    Message(u16),
}

impl Kind {
    fn place(self) -> usize {
        match self {
            Kind::Tick => 0,
            Kind::Flush => 1,
            Kind::Submit => 2,
            Kind::Crash => 3,
            Kind::Pass => 4,
            Kind::Message(place) => 5 + usize::from(place),
        }
    }
}

/// A node that is known, and what is asked of it often.
pub(crate) struct Known {
    pub(crate) id: u32,
    pub(crate) node: Node,
    /// A hash of all that can be seen of it: every property looks at this alone.
    pub(crate) seen: u64,
    /// Durable acceptances.
    pub(crate) votes: Vec<(Slot, Ballot, Batch)>,
    /// One of them is of a value that was submitted under another ballot,
    pub(crate) has_adopted: bool,
    /// or is a no-op.
    pub(crate) has_filled: bool,
    /// A value was told by another replica.
    pub(crate) has_learned: bool,
    steps: RwLock<Vec<Explored>>,
    /// Of the messages to it by place: which were judged, and which of them are dead.
    judged: [AtomicU64; INBOX_MAX / 64],
    dead: [AtomicU64; INBOX_MAX / 64],
}

#[derive(Clone, Copy)]
enum Explored {
    NotYet,
    Impossible,
    Leads(&'static Step),
}

/// Where an input leads.
pub(crate) struct Step {
    pub(crate) node: &'static Known,
    /// To which replica (from 0), and by place.
    pub(crate) sends: Vec<(usize, u16)>,
    pub(crate) candidacy: bool,
}

pub(crate) type Letter = (ReplicaId, Message);

#[derive(Default)]
struct Letters {
    places: HashMap<&'static Letter, u16>,
    letters: Vec<&'static Letter>,
}

impl Known {
    pub(crate) fn has_proposed(&self) -> bool {
        self.node.facts.has_proposed()
    }

    pub(crate) fn coordinates(&self) -> bool {
        self.node.replica.role() == Role::Coordinating
    }
}

/// All that is known of one model.
pub(crate) struct Atlas {
    pub(crate) scope: Scope,
    pub(crate) planted: Option<Planted>,
    nodes: Mutex<HashMap<&'static Node, &'static Known>>,
    letters: Vec<RwLock<Letters>>,
}

impl Atlas {
    pub(crate) fn new(scope: Scope, planted: Option<Planted>) -> Atlas {
        let letters = (0..REPLICAS).map(|_| RwLock::default()).collect();
        Atlas { scope, planted, nodes: Mutex::default(), letters }
    }

    /// How many nodes and messages are known.
    pub(crate) fn size(&self) -> (usize, usize) {
        let messages = self.letters.iter().map(|letters| letters.read().expect("no panic").letters.len()).sum();
        (self.nodes.lock().expect("no panic").len(), messages)
    }

    /// The message at a place.
    pub(crate) fn letter(&self, to: usize, place: u16) -> &'static Letter {
        self.letters[to].read().expect("no panic").letters[usize::from(place)]
    }

    fn place(&self, to: usize, letter: Letter) -> u16 {
        let mut letters = self.letters[to].write().expect("no panic");
        if let Some(place) = letters.places.get(&letter) {
            return *place;
        }
        let place = letters.letters.len();
        assert!(place < INBOX_MAX, "more than {INBOX_MAX} messages to one replica: the scope is too large");
        let letter: &'static Letter = Box::leak(Box::new(letter));
        letters.letters.push(letter);
        letters.places.insert(letter, place as u16);
        place as u16
    }

    /// Keeps a node, for good: models live as long as the process does.
    pub(crate) fn know(&self, node: Node) -> &'static Known {
        let mut nodes = self.nodes.lock().expect("no panic");
        if let Some(known) = nodes.get(&node) {
            return known;
        }
        let votes: Vec<_> = node
            .facts
            .log
            .iter()
            .filter_map(|record| match record {
                Record::Accepted { slot, ballot, batch, .. } => Some((*slot, *ballot, batch.clone())),
                _ => None,
            })
            .collect();
        let is_own = |ballot: Ballot, batch: &Batch| {
            (1..=self.scope.slots as usize).any(|number| value(ballot, number) == *batch)
        };
        let known: &'static Known = Box::leak(Box::new(Known {
            id: u32::try_from(nodes.len()).expect("fewer nodes than states"),
            has_adopted: votes.iter().any(|(_, ballot, batch)| !batch.is_empty() && !is_own(*ballot, batch)),
            has_filled: votes.iter().any(|(.., batch)| batch.is_empty()),
            has_learned: node.facts.log.iter().any(|record| matches!(record, Record::Chosen { .. })),
            seen: {
                let replica = &node.replica;
                let state = (replica.chosen(), replica.promised(), replica.role() == Role::Coordinating);
                // (Without keys: the same in every run.)
                let mut hasher = DefaultHasher::new();
                (&node.facts, state).hash(&mut hasher);
                hasher.finish()
            },
            votes,
            node,
            steps: RwLock::default(),
            judged: std::array::from_fn(|_| AtomicU64::new(0)),
            dead: std::array::from_fn(|_| AtomicU64::new(0)),
        }));
        nodes.insert(&known.node, known);
        known
    }

    /// Takes out of an inbox what can have no effect at its node any more.
    pub(crate) fn prune(&self, to: usize, at: &'static Known, inbox: &mut Inbox) {
        for (word, bits) in inbox.0.iter_mut().enumerate() {
            let mut new = *bits & !at.judged[word].load(Ordering::Acquire);
            while new != 0 {
                let bit = new.trailing_zeros();
                new &= new - 1;
                let (_, message) = self.letter(to, (word * 64) as u16 + bit as u16);
                if at.node.is_dead(message, &self.scope) {
                    at.dead[word].fetch_or(1 << bit, Ordering::Release);
                }
                at.judged[word].fetch_or(1 << bit, Ordering::Release);
            }
            *bits &= !at.dead[word].load(Ordering::Acquire);
        }
    }

    /// Where `kind` leads at a node. `None`: nowhere.
    pub(crate) fn step(&self, to: usize, at: &'static Known, kind: Kind) -> Option<&'static Step> {
        let place = kind.place();
        match at.steps.read().expect("no panic").get(place).copied().unwrap_or(Explored::NotYet) {
            Explored::Leads(step) => return Some(step),
            Explored::Impossible => return None,
            Explored::NotYet => {}
        }
        let input = match kind {
            Kind::Tick => Input::Tick,
            Kind::Flush => Input::Flush,
            Kind::Submit => Input::Submit,
            Kind::Crash => Input::Crash,
            Kind::Pass => Input::Pass,
            Kind::Message(place) => {
                let (from, message) = self.letter(to, place);
                Input::Message(*from, message)
            }
        };
        let explored = match at.node.take(input, &self.scope, self.planted) {
            None => Explored::Impossible,
            Some(outcome) => Explored::Leads(self.keep(at, outcome)),
        };
        let mut steps = at.steps.write().expect("no panic");
        if steps.len() <= place {
            steps.resize(place + 1, Explored::NotYet);
        }
        steps[place] = explored;
        match explored {
            Explored::Leads(step) => Some(step),
            Explored::Impossible | Explored::NotYet => None,
        }
    }

    fn keep(&self, at: &'static Known, outcome: Outcome) -> &'static Step {
        let Outcome { node, sends, candidacy } = outcome;
        let from = at.node.facts.me;
        let sends = sends.into_iter().map(|(to, message)| {
            let to = usize::from(to.0) - 1;
            (to, self.place(to, (from, message)))
        });
        let sends = sends.collect();
        Box::leak(Box::new(Step { node: self.know(node), sends, candidacy }))
    }
}
