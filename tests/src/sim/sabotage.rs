//! What the planted bugs do to messages, commands and answers on their way.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use fastrand::Rng;
use synod_api::{Answer, Command, Operation, Refusal, Revision, Sequence};
use synod_node::engine::{Caller, Engine, Outlet};
use synod_paxos::{Batch, Message, Slot};

use super::node::Wishes;
use super::planted::Bug;

/// A message leaves.
pub(crate) fn message(bug: Bug, message: &mut Message, random: &mut Rng) {
    match (bug, message) {
        (Bug::P3PromiseOmitsChosen, Message::Promise { chosen, cut, .. }) => (*chosen, *cut) = (Slot::NONE, Slot::NONE),
        (Bug::P3PromiseOmitsAccepted, Message::Promise { accepted, .. }) => accepted.clear(),
        (Bug::P4CommitSlotTooHigh, Message::Accept { slot, chosen, .. }) => *chosen = *slot,
        (Bug::P4CommitSlotTooHigh, Message::Commit { chosen, .. }) => *chosen = chosen.next(),
        // The last byte of a put is its value's.
        (Bug::I7UncheckedBytes, Message::Accept { batch, .. }) if !batch.is_empty() && random.u8(..50) == 0 => {
            let mut bytes = batch.as_bytes().to_vec();
            *bytes.last_mut().expect("it is not empty") ^= 1;
            *batch = Batch::from_bytes(Bytes::from(bytes)).expect("lengths are as they were");
        }
        _ => {}
    }
}

/// The answers of a moment leave.
pub(crate) fn answers(bug: Bug, answers: &mut [(Caller, Vec<u8>)]) {
    match (bug, answers) {
        (Bug::P10AnswersSwapped, [(_, first), (_, second), ..]) => std::mem::swap(first, second),
        (Bug::P10UnknownToldAsCertain, answers) => {
            for (_, answer) in answers {
                if let Ok(Answer::Refused(Refusal::Unknown)) = Answer::decode_borrowed(answer) {
                    answer.clear();
                    Answer::<&[u8]>::Refused(Refusal::Malformed("for certain".to_owned())).encode(answer);
                }
            }
        }
        _ => {}
    }
}

/// Answers a get from this replica's own copy. Says whether it was one.
pub(crate) fn answer_locally(engine: &Engine, caller: Caller, command: &[u8], outlet: &mut Wishes) -> bool {
    let command = Command::decode(command).expect("clients send sound commands");
    let Operation::Get { key } = command.operation else { return false };
    // Keyspace 3 of the cell has the users' keys.
    let row = [&[3], key].concat();
    let answer = match engine.cell().store().get(&row) {
        None => Answer::Absent,
        Some(row) => Answer::Value {
            value: row.value,
            create_revision: Revision(row.create_revision.0),
            modify_revision: Revision(row.modify_revision.0),
            version: synod_api::Version(row.version.0),
        },
    };
    let mut bytes = Vec::new();
    answer.encode(&mut bytes);
    outlet.answer(caller, &bytes);
    true
}

/// Far enough from the sequences that the client is using, and near enough to be taken.
const NEW_STAMP: u64 = 500;

/// The command, with another stamp if this one was seen before.
pub(crate) fn restamped(bytes: &[u8], seen: &mut BTreeSet<(u64, u64)>) -> Vec<u8> {
    let mut command = Command::decode(bytes).expect("clients send sound commands");
    if !command.operation.deduplicated() || seen.insert((command.session.0, command.sequence.0)) {
        return bytes.to_vec();
    }
    command.sequence = Sequence(command.sequence.0 + NEW_STAMP);
    let mut restamped = Vec::new();
    command.encode(&mut restamped);
    restamped
}

/// Another number for each run.
pub(crate) fn outside() -> u64 {
    static RUNS: AtomicU64 = AtomicU64::new(0);
    RUNS.fetch_add(1, Ordering::Relaxed)
}
