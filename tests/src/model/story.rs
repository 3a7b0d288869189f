//! A path through the model, in words.

use std::fmt::Write;

use synod_paxos::{Record, Role};

use super::atlas::{Atlas, Kind, Known};
use super::system::{Action, State};

/// One line for each step: what happened, and what came of it.
pub(crate) fn tell(atlas: &Atlas, path: &[(State, Option<Action>)]) -> Vec<String> {
    let steps = path.iter().filter_map(|(state, action)| Some((state, (*action)?)));
    steps.zip(1..).map(|((state, action), number)| format!("{number:3}. {}", step(atlas, state, action))).collect()
}

/// One step from a state.
pub(crate) fn step(atlas: &Atlas, state: &State, Action { at, kind }: Action) -> String {
    let me = at + 1;
    let mut words = match kind {
        Kind::Tick => format!("{me}: time passes"),
        Kind::Flush => format!("{me}: durable: {}", record(&state.nodes[at].node.facts.volatile[0])),
        Kind::Submit => format!("{me}: a client submits"),
        Kind::Crash => format!("{me}: crashes and restarts"),
        Kind::Pass => return "a moment passes, everywhere".to_owned(),
        Kind::Message(place) => {
            let (from, message) = atlas.letter(at, place);
            format!("{me} <- {from}: {}", brief(&format!("{message:?}")))
        }
    };
    let Some(step) = atlas.step(at, state.nodes[at], kind) else { return words };
    let (before, after) = (&state.nodes[at].node.facts, &step.node.node.facts);
    if kind == Kind::Crash {
        for lost in &before.volatile {
            let _ = write!(words, "; loses {}", record(lost));
        }
    } else {
        let known: Vec<_> = before.log.iter().chain(&before.volatile).collect();
        for new in after.log.iter().chain(&after.volatile).filter(|record| !known.contains(record)) {
            let verb = if after.volatile.contains(new) { "asks the disk for" } else { "persists" };
            let _ = write!(words, "; {verb} {}", record(new));
        }
    }
    for (slot, batch) in (1..).zip(&after.applied).skip(before.applied.len()) {
        let _ = write!(words, "; applies {batch:?} at {slot}");
    }
    let mut sent: Vec<_> = step
        .sends
        .iter()
        .map(|(to, place)| format!("-> {}: {}", to + 1, brief(&format!("{:?}", atlas.letter(*to, *place).1))))
        .collect();
    sent.dedup();
    for message in sent {
        let _ = write!(words, "; {message}");
    }
    let _ = write!(words, "  [{}]", summary(step.node));
    words
}

/// What a node is now.
pub(crate) fn summary(known: &Known) -> String {
    let replica = &known.node.replica;
    let role = match replica.role() {
        Role::Coordinating => "coordinates",
        Role::Campaigning => "campaigns",
        _ => "follows",
    };
    let mut words = format!("{role}, promised {}, chosen {}", replica.promised(), replica.chosen());
    if let Some(breach) = known.node.facts.breach {
        let _ = write!(words, ", {breach:?}");
    }
    words
}

fn record(record: &Record) -> String {
    match record {
        Record::HardState(state) => format!("promise {}", state.promised),
        other => brief(&format!("{other:?}")),
    }
}

/// The derived words without what they repeat: `Ballot { round: 1, replica: ReplicaId(2), .. }` is 1.2.
fn brief(words: &str) -> String {
    let mut rest = words;
    let mut out = String::new();
    while let Some((before, after)) = rest.split_once("Ballot { round: ") {
        out.push_str(before);
        let Some((ballot, tail)) = after.split_once(" }") else { break };
        let mut numbers = ballot.split(|c: char| !c.is_ascii_digit()).filter(|number| !number.is_empty());
        let (round, replica) = (numbers.next().unwrap_or("?"), numbers.next().unwrap_or("?"));
        let _ = write!(out, "{round}.{replica}");
        rest = tail;
    }
    out.push_str(rest);
    for wrapper in ["Slot(", "ReplicaId("] {
        while let Some(begin) = out.find(wrapper) {
            let inner = begin + wrapper.len();
            let Some(end) = out[inner..].find(')') else { break };
            out.replace_range(inner + end..=inner + end, "");
            out.replace_range(begin..inner, "");
        }
    }
    out
}
