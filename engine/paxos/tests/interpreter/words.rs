//! Messages, records and values in the paper's words.

use synod_paxos::{
    AcceptedSlot, Ballot, Batch, Configurations, Incarnation, Message, Record, Recovered, ReplicaId, Slot, Voter,
    VotingStatus,
};

/// A message, as in "1 -> 2: accept 1.1 slot 7 a, chosen 6".
pub(crate) fn message(message: &Message) -> String {
    match message {
        Message::Probe { chosen } => format!("probe, chosen {chosen}"),
        Message::ProbeAnswer { would, round, chosen } => {
            format!("answer {}, round {round}, chosen {chosen}", if *would { "yes" } else { "no" })
        }
        Message::Propose { ballot, released: Ballot::NONE } => format!("propose {ballot}"),
        Message::Propose { ballot, released } => format!("propose {ballot}, {released} released"),
        Message::Promise { ballot, cut: _, chosen, accepted, lost, voter } => {
            let mut words = format!("promise {ballot}, chosen {chosen}{}", reported(accepted));
            for one in lost {
                words += &format!(", lost {} to {} at {}", one.first, one.last, one.ballot);
            }
            words + &life_of(voter)
        }
        Message::Accept { ballot, slot, batch, chosen } => {
            format!("accept {ballot} slot {slot} {batch:?}, chosen {chosen}")
        }
        Message::Acknowledge { ballot, slot, voter } => format!("acknowledge {ballot} slot {slot}{}", life_of(voter)),
        Message::Reject { promised } => format!("reject, promised {promised}"),
        Message::Commit { ballot, chosen, tolerance: _ } => format!("commit {ballot}, chosen {chosen}"),
        Message::Release { ballot } => format!("release {ballot}"),
        Message::TakeOver { ballot } => format!("take over from {ballot}"),
        Message::Position { durable, known, asks } => {
            let asks = if *asks { ", and yours?" } else { "" };
            format!("position {}, yours was {}{asks}", durable.frame, known.frame)
        }
        Message::Rejoin { incarnation: Incarnation::NONE } => "rejoin, in which life?".to_owned(),
        Message::Rejoin { incarnation } => format!("rejoin in life {}", incarnation.life()),
        Message::RejoinAnswer { is_lost: true, .. } => "rejoin answer: lost as well".to_owned(),
        Message::RejoinAnswer { asked: Incarnation::NONE, known, .. } => {
            format!("rejoin answer: life {} is known", known.life())
        }
        Message::RejoinAnswer { asked, known, .. } if asked < known => {
            format!("rejoin answer: life {} is known already", known.life())
        }
        Message::RejoinAnswer { known, promised, chosen, accepted, .. } => {
            let accepted = reported(accepted);
            format!("rejoin answer: life {} noted, promised {promised}, chosen {chosen}{accepted}", known.life())
        }
        Message::AskIndex { .. } => "ask for the read index".to_owned(),
        Message::TellIndex { ballot, slot, .. } => format!("read index {slot}, by {ballot}"),
        Message::Fetch { from } => format!("fetch from slot {from}"),
        Message::Entries { first, batches, chosen } => {
            let batches: Vec<_> =
                batches.iter().zip(first.0..).map(|(batch, slot)| format!("{slot} {batch:?}")).collect();
            format!("entries {}, chosen {chosen}", batches.join(", "))
        }
    }
}

fn reported(accepted: &[AcceptedSlot]) -> String {
    accepted.iter().map(|one| format!(", accepted {} at {} {:?}", one.slot, one.ballot, one.batch)).collect()
}

/// Nothing where nothing was ever lost.
fn life_of(voter: &Voter) -> String {
    let own = if voter.incarnation == Incarnation::FIRST {
        String::new()
    } else {
        format!(", in life {}", voter.incarnation.life())
    };
    let others =
        voter.vector.iter().map(|(replica, incarnation)| format!(", knows life {} of {replica}", incarnation.life()));
    own + &others.collect::<String>()
}

/// What kind of message it is, as scripts select it.
pub(crate) fn kind(message: &Message) -> &'static str {
    match message {
        Message::Probe { .. } => "probe",
        Message::ProbeAnswer { .. } => "answer",
        Message::Propose { .. } => "propose",
        Message::Promise { .. } => "promise",
        Message::Accept { .. } => "accept",
        Message::Acknowledge { .. } => "acknowledge",
        Message::Reject { .. } => "reject",
        Message::Commit { .. } => "commit",
        Message::Release { .. } => "release",
        Message::TakeOver { .. } => "takeover",
        Message::Position { .. } => "position",
        Message::Rejoin { .. } => "rejoin",
        Message::RejoinAnswer { .. } => "rejoined",
        Message::AskIndex { .. } => "askindex",
        Message::TellIndex { .. } => "tellindex",
        Message::Fetch { .. } => "fetch",
        Message::Entries { .. } => "entries",
    }
}

/// A record, as in "accepted 7 at 1.1 a".
pub(crate) fn record(record: &Record) -> String {
    match record {
        Record::HardState(state) => {
            let voter = Voter { incarnation: state.incarnation, vector: state.vector.clone() };
            let mut words = format!("promise {}", state.promised);
            if !is_first(&state.configurations) {
                words += &format!(", {}", configurations(&state.configurations));
            }
            words + &life_of(&voter)
        }
        Record::Accepted { slot, ballot, chosen: _, batch } => format!("accepted {slot} at {ballot} {batch:?}"),
        Record::Chosen { slot, batch } => format!("chosen {slot} {batch:?}"),
    }
}

/// Whether nothing has changed since the cell began.
fn is_first(configurations: &Configurations) -> bool {
    configurations.since == Slot::NONE.next() && configurations.pending.is_none()
}

/// Who keeps the cell, as in "members 1,2,3 from slot 1, members 1,2,3,4? from slot 9": 4 does not vote.
pub(crate) fn configurations(configurations: &Configurations) -> String {
    let Configurations { current, since, pending } = configurations;
    let mut words = format!("{current} from slot {since}");
    if let Some((from, pending)) = pending {
        words += &format!(", {pending} from slot {from}");
    }
    words
}

/// Whether a replica votes.
pub(crate) fn status(status: VotingStatus) -> &'static str {
    match status {
        VotingStatus::Waiting => "waits for leases to run out",
        VotingStatus::Voting => "votes",
        VotingStatus::Learning => "learns",
        VotingStatus::Outside => "is no member",
        VotingStatus::Rejoining => "rejoins",
    }
}

/// Records, one after the other.
pub(crate) fn records(records: &[Record]) -> String {
    if records.is_empty() {
        return "nothing".to_owned();
    }
    records.iter().map(record).collect::<Vec<_>>().join(", ")
}

/// What a replica starts from.
pub(crate) fn recovered(recovered: &Recovered) -> String {
    let mut words = format!("promised {}, chosen {}", recovered.promised, recovered.chosen);
    if !is_first(&recovered.configurations) {
        words += &format!(", {}", configurations(&recovered.configurations));
    }
    for (slot, (ballot, batch)) in &recovered.accepted {
        words += &format!(", accepted {slot} at {ballot} {batch:?}");
    }
    words
}

/// "1,2,3".
pub(crate) fn replicas(ids: impl IntoIterator<Item = ReplicaId>) -> String {
    ids.into_iter().map(|id| id.to_string()).collect::<Vec<_>>().join(",")
}

/// The batch that a script writes as "a", or "a+b" for two commands in one.
pub(crate) fn batch(words: &str) -> Batch {
    let mut builder = synod_paxos::BatchBuilder::default();
    for command in words.split('+') {
        builder.push(command.as_bytes());
    }
    builder.take()
}
