//! What clients asked and were told, held against what the log says.
//!
//! Every change has a revision, which is its place in the one order, and every value that is written is written by one
//! operation only. So the check needs no search (`machine.md`, section 10): a write took effect at its revision, exactly
//! as asked; no operation that ended before another began has the higher revision; and what a read saw was there at
//! some revision between the last one known when it began and the last one there when it ended. Known is what an ended
//! operation did, or the earliest revision that fits what it saw: so a read that saw a key gone, or a state since
//! overwritten, binds all that begin later too, whoever answered it and by whatever means.
//!
//! A read for any replica says which revision it saw: the key must have been so at exactly that one. If it was to be linearizable,
//! the revision must be none below what was known when it was asked, and is known from then on; else it must be as it was named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use synod_api::{Answer, Consistency, Found, Revision};

use super::oracle::{Change, Oracle};
use super::tally::Tally;
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
    Bounded { key: Vec<u8>, consistency: Consistency },
}

impl Ask {
    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Ask::Get { key }
            | Ask::Put { key, .. }
            | Ask::Delete { key }
            | Ask::Swap { key, .. }
            | Ask::Bounded { key, .. } => key,
            Ask::Create { path, .. } | Ask::Write { path, .. } | Ask::Read { path } => path,
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Ask::Get { .. } => "get",
            Ask::Put { .. } => "put",
            Ask::Delete { .. } => "delete",
            Ask::Swap { .. } => "compare and swap",
            Ask::Create { .. } => "create file",
            Ask::Write { .. } => "write file",
            Ask::Read { .. } => "read file",
            Ask::Bounded { consistency: Consistency::Linearizable, .. } => "read anywhere, linearizable",
            Ask::Bounded { consistency: Consistency::AtLeast(_), .. } => "read anywhere, at least a revision",
            Ask::Bounded { consistency: Consistency::At(_), .. } => "read anywhere, at a revision",
        }
    }

    pub(crate) fn value(&self) -> Option<&[u8]> {
        match self {
            Ask::Put { value, .. } | Ask::Swap { value, .. } => Some(value),
            Ask::Create { contents, .. } | Ask::Write { contents, .. } => Some(contents),
            Ask::Get { .. } | Ask::Delete { .. } | Ask::Read { .. } | Ask::Bounded { .. } => None,
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
            Ask::Bounded { consistency, .. } => write!(f, "read {key} anywhere, {consistency:?}"),
        }
    }
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
    /// Answers that were checked, by kind of operation.
    pub(crate) checked: Tally,
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
        self.catch_up(changes)?;
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
                self.saw(ask, floor, answer, seen)
            }
            (
                Ask::Get { .. } | Ask::Read { .. } | Ask::Delete { .. } | Ask::Write { .. },
                Answer::Absent | Answer::NotThere,
            )
            | (Ask::Swap { expected: Some(_), .. }, Answer::Unequal { current: None }) => {
                self.saw(ask, floor, answer, |_, state| state.is_none())
            }
            (Ask::Swap { expected, .. }, Answer::Unequal { current: Some(current) }) => {
                if expected.as_deref() == Some(&current[..]) {
                    return violation(
                        Checker::Linearizability,
                        format!("{ask:?} found what it expected, and did not swap: {answer:?}"),
                    );
                }
                self.saw(ask, floor, answer, |_, state| state.as_deref() == Some(&current[..]))
            }
            (Ask::Swap { expected, .. }, Answer::UnequalNotKept) => {
                self.saw(ask, floor, answer, |_, state| state != expected)
            }
            (Ask::Create { .. }, Answer::Exists { .. }) => self.saw(ask, floor, answer, |_, state| state.is_some()),
            (Ask::Bounded { consistency, .. }, Answer::Read { revision, found }) => {
                self.saw_at(ask, *consistency, floor, (*revision, found.as_ref()), changes)
            }
            _ => violation(Checker::Answers, format!("{ask:?} was answered by {answer:?}")),
        }?;
        self.known = self.known.max(told);
        self.checked.count(ask.kind());
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

    /// What was seen was there at some moment between `floor` and now. Says from when on, at the earliest.
    fn saw(
        &self,
        ask: &Ask,
        floor: u64,
        answer: &Answer,
        seen: impl Fn(u64, &Option<Vec<u8>>) -> bool,
    ) -> Result<u64, Violation> {
        let states = self.keys.get(ask.key()).map_or(&[][..], Vec::as_slice);
        let first = (0, None);
        let all = || std::iter::once(&first).chain(states);
        // Each lasts until the next.
        let ends = all().skip(1).map(|(revision, _)| *revision).chain([u64::MAX]);
        let fits = all().zip(ends).find(|((begin, state), end)| *end > floor && seen(*begin, state));
        if let Some(((begin, _), _)) = fits {
            return Ok(*begin);
        }
        violation(
            Checker::Linearizability,
            format!(
                "{ask:?}, asked when revision {floor} was known, was answered by {answer:?}, which was not so then"
            ),
        )
    }

    /// A read says which revision it saw. Says up to where later ones are bound by it.
    fn saw_at(
        &self,
        ask: &Ask,
        consistency: Consistency,
        floor: u64,
        (revision, found): (Revision, Option<&Found<Bytes>>),
        changes: &[Change],
    ) -> Result<u64, Violation> {
        let Revision(seen) = revision;
        let (checker, is_new_enough, binds) = match consistency {
            Consistency::Linearizable => (Checker::Linearizability, seen >= floor, seen),
            Consistency::AtLeast(wanted) => (Checker::BoundedReads, revision >= wanted, 0),
            Consistency::At(wanted) => (Checker::BoundedReads, revision == wanted, 0),
        };
        let states = self.keys.get(ask.key()).map_or(&[][..], Vec::as_slice);
        let first = (0, None);
        let (modified, state) = states.iter().rev().find(|(from, _)| *from <= seen).unwrap_or(&first);
        let is_so = match (found, state) {
            (None, None) => true,
            (Some(found), Some(value)) => found.value == *value && found.modify_revision.0 == *modified,
            (None, Some(_)) | (Some(_), None) => false,
        };
        let is_there = seen <= changes.last().map_or(1, |last| last.revision);
        if is_new_enough && is_so && is_there {
            return Ok(binds);
        }
        let what = format!(
            "{ask:?}, asked when revision {floor} was known, saw {found:?} at revision {seen}, right is {state:?}"
        );
        violation(checker, what)
    }

    /// An operation was refused for certain: what it would have written must never be there.
    pub(crate) fn did_not_happen(&mut self, ask: &Ask, oracle: &Oracle) -> Verdict {
        let Some(value) = ask.value() else { return Ok(()) };
        if oracle.was_written(value) {
            return violation(
                Checker::AcknowledgedWrites,
                format!("{ask:?} happened, and its client is told that not"),
            );
        }
        self.refused.insert(value.to_vec());
        Ok(())
    }

    /// The log has grown.
    pub(crate) fn catch_up(&mut self, changes: &[Change]) -> Verdict {
        for change in &changes[self.read..] {
            if let Some(value) = &change.value
                && self.refused.contains(value)
            {
                let (value, revision) = (value.escape_ascii(), change.revision);
                let what =
                    format!("the write of {value} happened at revision {revision}, its client was told that not");
                return violation(Checker::AcknowledgedWrites, what);
            }
            self.keys.entry(change.key.clone()).or_default().push((change.revision, change.value.clone()));
        }
        self.read = changes.len();
        Ok(())
    }

    /// How many writes were acknowledged.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.len() as u64
    }
}
