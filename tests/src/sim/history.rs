//! What clients asked and were told, held against what the log says.
//!
//! Every change has a revision, which is its place in the one order, and every value that is written is written by one
//! operation only. So the check needs no search (`machine.md`, section 10): a write took effect at its revision, exactly
//! as asked; no operation that ended before another began has the higher revision; and what a read saw was there at
//! some revision between the last one known when it began and the last one there when it ended.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use synod_api::{Answer, Revision};

use super::oracle::Change;
use super::verdict::{Checker, Verdict, Violation, violation};

/// What a client asked for, owned.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    Get { key: Vec<u8> },
    Put { key: Vec<u8>, value: Vec<u8> },
    Delete { key: Vec<u8> },
    Swap { key: Vec<u8>, expected: Option<Vec<u8>>, value: Vec<u8> },
    Create { path: Vec<u8>, contents: Vec<u8> },
    Write { path: Vec<u8>, contents: Vec<u8> },
    Read { path: Vec<u8> },
}

impl Ask {
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Ask::Get { key } | Ask::Put { key, .. } | Ask::Delete { key } | Ask::Swap { key, .. } => key,
            Ask::Create { path, .. } | Ask::Write { path, .. } | Ask::Read { path } => path,
        }
    }

    fn value(&self) -> Option<&[u8]> {
        match self {
            Ask::Put { value, .. } | Ask::Swap { value, .. } => Some(value),
            Ask::Create { contents, .. } | Ask::Write { contents, .. } => Some(contents),
            Ask::Get { .. } | Ask::Delete { .. } | Ask::Read { .. } => None,
        }
    }
}

impl fmt::Debug for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key().escape_ascii();
        let value = |value: &[u8]| format!("{} ({} bytes)", without_filling(value).escape_ascii(), value.len());
        match self {
            Ask::Get { .. } => write!(f, "get {key}"),
            Ask::Put { value: new, .. } => write!(f, "put {key} = {}", value(new)),
            Ask::Delete { .. } => write!(f, "delete {key}"),
            Ask::Swap { expected, value: new, .. } => {
                write!(f, "swap {key} from {:?} to {}", expected.as_deref().map(value), value(new))
            }
            Ask::Create { contents, .. } => write!(f, "create {key} = {}", value(contents)),
            Ask::Write { contents, .. } => write!(f, "write {key} = {}", value(contents)),
            Ask::Read { .. } => write!(f, "read {key}"),
        }
    }
}

/// How it ended, if not by an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Ending {
    DidNotHappen,
    Unknown,
}

/// A value's first part, which is all that tells it from others.
fn without_filling(value: &[u8]) -> &[u8] {
    let length = value.iter().rposition(|byte| *byte != b'.').map_or(0, |last| last + 1);
    &value[..length]
}

/// What a key held, from a revision on; `None`: nothing.
type State = (u64, Option<Vec<u8>>);

/// All that was asked.
#[derive(Default)]
pub(crate) struct History {
    /// The highest revision that anybody was told.
    known: u64,
    /// Revisions acknowledged, each once.
    acknowledged: BTreeSet<u64>,
    /// Values of writes that did not happen.
    refused: BTreeSet<Vec<u8>>,
    /// How far `changes` was read into `keys`.
    read: usize,
    keys: BTreeMap<Vec<u8>, Vec<State>>,
}

impl History {
    /// An operation begins now: nothing older than this may be shown to it.
    pub(crate) fn begin(&self) -> u64 {
        self.known
    }

    /// An operation that began at `floor` was answered.
    pub(crate) fn answered(&mut self, ask: &Ask, floor: u64, answer: &Answer, changes: &[Change]) -> Verdict {
        self.catch_up(changes);
        let told = match (ask, answer) {
            (Ask::Put { .. } | Ask::Write { .. }, Answer::Written { revision })
            | (Ask::Swap { .. }, Answer::Swapped { revision })
            | (Ask::Create { .. }, Answer::Created { revision })
            | (Ask::Delete { .. }, Answer::Deleted { revision }) => self.changed(ask, floor, *revision, changes),
            (
                Ask::Get { .. } | Ask::Read { .. },
                Answer::Value {
                    value, modify_revision: Revision(modified), create_revision: Revision(created), ..
                },
            ) => {
                let seen = |revision, state: &Option<Vec<u8>>| {
                    revision == *modified && state.as_deref() == Some(&value[..]) && created <= modified
                };
                self.saw(ask, floor, answer, seen).map(|()| *modified)
            }
            (
                Ask::Get { .. } | Ask::Read { .. } | Ask::Delete { .. } | Ask::Write { .. },
                Answer::Absent | Answer::NotThere,
            )
            | (Ask::Swap { expected: Some(_), .. }, Answer::Unequal { current: None }) => {
                self.saw(ask, floor, answer, |_, state| state.is_none()).map(|()| 0)
            }
            (Ask::Swap { expected, .. }, Answer::Unequal { current: Some(current) }) => {
                if expected.as_deref() == Some(&current[..]) {
                    return violation(
                        Checker::Linearizability,
                        format!("{ask:?} found what it expected, and did not swap: {answer:?}"),
                    );
                }
                self.saw(ask, floor, answer, |_, state| state.as_deref() == Some(&current[..])).map(|()| 0)
            }
            (Ask::Swap { expected, .. }, Answer::UnequalNotKept) => {
                self.saw(ask, floor, answer, |_, state| state != expected).map(|()| 0)
            }
            (Ask::Create { .. }, Answer::Exists { .. }) => {
                self.saw(ask, floor, answer, |_, state| state.is_some()).map(|()| 0)
            }
            _ => violation(Checker::Answers, format!("{ask:?} was answered by {answer:?}")),
        }?;
        self.known = self.known.max(told);
        Ok(())
    }

    /// A change was acknowledged: it is at its revision, as asked, told once, and after all that was known before.
    fn changed(&mut self, ask: &Ask, floor: u64, revision: Revision, changes: &[Change]) -> Result<u64, Violation> {
        let Revision(revision) = revision;
        let change = changes.binary_search_by_key(&revision, |change| change.revision).map(|place| &changes[place]);
        let right = change.is_ok_and(|change| change.key == ask.key() && change.value.as_deref() == ask.value());
        if !right {
            let what = format!("{ask:?} was acknowledged with revision {revision}, where the log has something else");
            return violation(Checker::AcknowledgedWrites, what);
        }
        if !self.acknowledged.insert(revision) {
            let what = format!("{ask:?} was acknowledged with revision {revision}, as was another before");
            return violation(Checker::AcknowledgedWrites, what);
        }
        if revision <= floor {
            let what = format!("{ask:?} took revision {revision}, though {floor} was known before it was asked");
            return violation(Checker::Linearizability, what);
        }
        Ok(revision)
    }

    /// What was seen was there at some moment between `floor` and now.
    fn saw(&self, ask: &Ask, floor: u64, answer: &Answer, seen: impl Fn(u64, &Option<Vec<u8>>) -> bool) -> Verdict {
        let states = self.keys.get(ask.key()).map_or(&[][..], Vec::as_slice);
        let first = (0, None);
        let all = || std::iter::once(&first).chain(states);
        // Each lasts until the next.
        let ends = all().skip(1).map(|(revision, _)| *revision).chain([u64::MAX]);
        if all().zip(ends).any(|((begin, state), end)| end > floor && seen(*begin, state)) {
            return Ok(());
        }
        violation(
            Checker::Linearizability,
            format!(
                "{ask:?}, asked when revision {floor} was known, was answered by {answer:?}, which was not so then"
            ),
        )
    }

    /// An operation ended without an answer.
    pub(crate) fn ended(&mut self, ask: &Ask, ending: Ending) {
        if let (Ending::DidNotHappen, Some(value)) = (ending, ask.value()) {
            self.refused.insert(value.to_vec());
        }
    }

    fn catch_up(&mut self, changes: &[Change]) {
        for change in &changes[self.read..] {
            self.keys.entry(change.key.clone()).or_default().push((change.revision, change.value.clone()));
        }
        self.read = changes.len();
    }

    /// At the end: nothing happened twice, and nothing that was told not to have happened did.
    pub(crate) fn check_all(&self, changes: &[Change]) -> Verdict {
        let mut values = BTreeSet::new();
        for change in changes {
            let Some(value) = &change.value else { continue };
            let revision = change.revision;
            if !values.insert(value) {
                let what =
                    format!("the write of {:?} happened twice, again at {revision}", value.escape_ascii().to_string());
                return violation(Checker::AcknowledgedWrites, what);
            }
            if self.refused.contains(value) {
                let what = format!(
                    "the write of {:?} happened at revision {revision}, and its client was told that it did not",
                    value.escape_ascii().to_string()
                );
                return violation(Checker::AcknowledgedWrites, what);
            }
        }
        Ok(())
    }

    /// How many writes were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.len() as u64
    }
}
