//! Plays the commands of scripts on a [`Cell`].
//!
//! | command | what happens |
//! |---|---|
//! | `cell 3 horizon=8 window=4 backlog=1000` | a new cell; all but the number of replicas may be left out |
//! | `elect 1` | 1 campaigns, and everything is delivered; only what comes of it is told |
//! | `write 1 a b c` | likewise for three batches submitted at once, and 1's next heartbeat |
//! | `settle` | likewise for what is under way |
//! | `campaign 1` | 1's election deadline is reached |
//! | `tick 1` | time moves to 1's next deadline, and 1 is told; `tick 1 100ms` moves so far |
//! | `pass 500ms` | time moves, nobody is told |
//! | `submit 1 a b` | two batches are submitted, one after the other; `a+b` is one batch of two commands |
//! | `deliver`, `deliver SELECTION` | messages are delivered, and those sent because of it, until none is left |
//! | `deliver once SELECTION` | only what is in flight now |
//! | `drop`, `copy`, `hold`, `release` `SELECTION` | lose, duplicate, delay, stop delaying |
//! | `reverse` | the last message sent comes first |
//! | `isolate 2`, `reconnect 2` | what is sent to 2 or by 2 is lost |
//! | `disk 2 slow`, `disk 2 fast` | 2's records are volatile until `flush 2`; or durable at once, as in the beginning |
//! | `crash 2`, `restart 2` | what is volatile is lost; the replica is rebuilt from the rest |
//! | `full 2` | 2's log is at its bound |
//! | `show`, `log 2`, `network` | where everybody stands; 2's records; what is in flight |
//!
//! A selection is any of `accept`, `promise` and so on, `from=1`, `to=2,3`, `slot=7`, `ballot=1.1`; all must fit.

mod cell;
mod words;

use std::time::Duration;

use synod_paxos::{Configuration, Event, Message, ReplicaId, Role, Slot};

use cell::{Cell, InFlight, Line, Shape};

/// More messages than any script needs: whoever sends that many sends them for ever.
const DELIVERIES_MAX: usize = 10_000;

/// Plays one script.
pub(crate) struct Interpreter {
    cell: Option<Cell>,
}

impl Interpreter {
    pub(crate) fn new() -> Self {
        Self { cell: None }
    }

    /// Runs the commands of one block, and tells what came of them.
    pub(crate) fn run(&mut self, commands: &[&str]) -> Result<String, String> {
        let mut output = String::new();
        for command in commands {
            let mut words = command.split_whitespace();
            let verb = words.next().ok_or("an empty command")?;
            let words: Vec<_> = words.collect();
            if verb == "cell" {
                self.cell = Some(Cell::new(&shape(&words)?)?);
                continue;
            }
            let cell = self.cell.as_mut().ok_or("there is no cell yet")?;
            let is_story = carry_out(cell, verb, &words).map_err(|error| format!("`{command}`: {error}"))?;
            let lines = std::mem::take(&mut cell.lines);
            output += &if is_story { story(&lines) } else { in_full(&lines) };
            for broken in cell.take_broken() {
                output += &format!("{}{broken}\n", super::BROKEN);
            }
        }
        if output.is_empty() {
            output.push_str("(nothing)\n");
        }
        Ok(output)
    }
}

/// Runs one command; says whether only its outcome is worth telling.
fn carry_out(cell: &mut Cell, verb: &str, words: &[&str]) -> Result<bool, String> {
    match verb {
        "elect" => {
            campaign(cell, one_replica(words)?)?;
            settle(cell)?;
            return Ok(true);
        }
        "write" => {
            let (who, batches) = words.split_first().ok_or("who, and what?")?;
            let who = replica(who)?;
            for batch in batches {
                cell.submit(who, words::batch(batch))?;
            }
            settle(cell)?;
            // The heartbeat tells everyone what is chosen.
            cell.tick_when_due(who)?;
            settle(cell)?;
            return Ok(true);
        }
        "settle" => {
            settle(cell)?;
            return Ok(true);
        }
        "campaign" => campaign(cell, one_replica(words)?)?,
        "tick" => match words {
            [who] => cell.tick_when_due(replica(who)?)?,
            [who, time] => {
                cell.pass(duration(time)?);
                cell.event(replica(who)?, Event::Ticked)?;
            }
            _ => return Err("who, and how much later?".to_owned()),
        },
        "pass" => match words {
            [time] => cell.pass(duration(time)?),
            _ => return Err("how long?".to_owned()),
        },
        "submit" => {
            let (who, batches) = words.split_first().ok_or("who, and what?")?;
            for batch in batches {
                cell.submit(replica(who)?, words::batch(batch))?;
            }
        }
        "deliver" => deliver(cell, words)?,
        "drop" => {
            for InFlight { from, to, message } in take(&mut cell.network, &Selection::parse(words)?) {
                cell.note(format!("lost: {from} -> {to}: {}", words::message(&message)));
            }
        }
        "copy" => {
            let selection = Selection::parse(words)?;
            let copies: Vec<_> = cell.network.iter().filter(|one| selection.fits(one)).cloned().collect();
            cell.network.extend(copies);
        }
        "hold" => {
            let taken = take(&mut cell.network, &Selection::parse(words)?);
            cell.held.extend(taken);
        }
        "release" => {
            let taken = take(&mut cell.held, &Selection::parse(words)?);
            cell.network.extend(taken);
        }
        "reverse" => cell.network.make_contiguous().reverse(),
        "isolate" => replicas(words)?.into_iter().for_each(|who| cell.isolate(who)),
        "reconnect" => replicas(words)?.into_iter().for_each(|who| cell.reconnect(who)),
        "disk" => match words {
            [who, "slow"] => cell.run_disk(replica(who)?, false)?,
            [who, "fast"] => cell.run_disk(replica(who)?, true)?,
            _ => return Err("whose, slow or fast?".to_owned()),
        },
        "flush" => {
            for who in replicas(words)? {
                cell.flush(who)?;
            }
        }
        "crash" => {
            for who in replicas(words)? {
                cell.crash(who)?;
            }
        }
        "restart" => {
            for who in replicas(words)? {
                cell.restart(who)?;
            }
        }
        "full" => cell.event(one_replica(words)?, Event::LogFull)?,
        "show" => {
            let who = if words.is_empty() { cell.ids() } else { replicas(words)? };
            who.into_iter().for_each(|who| cell.tell_state(who));
        }
        "log" => cell.tell_log(one_replica(words)?),
        "network" => {
            let lines: Vec<_> = cell.network.iter().map(in_flight).collect();
            lines.into_iter().for_each(|line| cell.note(line));
        }
        _ => return Err("no such command".to_owned()),
    }
    Ok(false)
}

fn campaign(cell: &mut Cell, who: ReplicaId) -> Result<(), String> {
    if cell.replica(who)?.role() == Role::Coordinating {
        return Err("it leads already".to_owned());
    }
    cell.tick_when_due(who)
}

/// Delivers until nothing is left in flight.
fn settle(cell: &mut Cell) -> Result<(), String> {
    deliver(cell, &[])
}

fn deliver(cell: &mut Cell, words: &[&str]) -> Result<(), String> {
    if let Some(("once", words)) = words.split_first().map(|(first, rest)| (*first, rest)) {
        let taken = take(&mut cell.network, &Selection::parse(words)?);
        return taken.into_iter().try_for_each(|one| cell.deliver(one));
    }
    let selection = Selection::parse(words)?;
    for _ in 0..DELIVERIES_MAX {
        let Some(at) = cell.network.iter().position(|one| selection.fits(one)) else { return Ok(()) };
        let next = cell.network.remove(at).expect("it was just found there");
        cell.deliver(next)?;
    }
    Err("it never ends".to_owned())
}

fn take(messages: &mut std::collections::VecDeque<InFlight>, selection: &Selection<'_>) -> Vec<InFlight> {
    let (taken, left): (Vec<_>, Vec<_>) = std::mem::take(messages).into_iter().partition(|one| selection.fits(one));
    messages.extend(left);
    taken
}

/// Which messages a command means.
#[derive(Default)]
struct Selection<'a> {
    kind: Option<&'a str>,
    from: Option<Vec<ReplicaId>>,
    to: Option<Vec<ReplicaId>>,
    slot: Option<Slot>,
    ballot: Option<&'a str>,
}

impl<'a> Selection<'a> {
    fn parse(words: &[&'a str]) -> Result<Self, String> {
        const KINDS: [&str; 8] =
            ["propose", "promise", "accept", "acknowledge", "reject", "commit", "fetch", "entries"];
        let mut selection = Self::default();
        for word in words {
            match word.split_once('=') {
                None if KINDS.contains(word) => selection.kind = Some(word),
                Some(("from", ids)) => selection.from = Some(replicas(&[ids])?),
                Some(("to", ids)) => selection.to = Some(replicas(&[ids])?),
                Some(("slot", slot)) => selection.slot = Some(Slot(number(slot)?)),
                Some(("ballot", ballot)) => selection.ballot = Some(ballot),
                _ => return Err(format!("what is {word}?")),
            }
        }
        Ok(selection)
    }

    fn fits(&self, one: &InFlight) -> bool {
        let (slot, ballot) = match &one.message {
            Message::Accept { ballot, slot, .. } | Message::Acknowledge { ballot, slot } => {
                (Some(*slot), Some(*ballot))
            }
            Message::Propose { ballot } | Message::Promise { ballot, .. } | Message::Commit { ballot, .. } => {
                (None, Some(*ballot))
            }
            Message::Reject { .. } | Message::Fetch { .. } | Message::Entries { .. } => (None, None),
        };
        self.kind.is_none_or(|kind| kind == words::kind(&one.message))
            && self.from.as_ref().is_none_or(|from| from.contains(&one.from))
            && self.to.as_ref().is_none_or(|to| to.contains(&one.to))
            && self.slot.is_none_or(|wanted| slot == Some(wanted))
            && self.ballot.is_none_or(|wanted| ballot.is_some_and(|ballot| ballot.to_string() == wanted))
    }
}

fn in_flight(one: &InFlight) -> String {
    format!("in flight: {} -> {}: {}", one.from, one.to, words::message(&one.message))
}

/// Everything, in order.
fn in_full(lines: &[Line]) -> String {
    let line = |line: &Line| match line {
        Line::Send { from, to, what } => format!("{from} -> {}: {what}\n", words::replicas(to.iter().copied())),
        Line::Persist { who, what } => format!("{who}: {what}\n"),
        Line::Deed { who, what, aside } => format!("{who}: {what}{aside}\n"),
        Line::Note { what } => format!("{what}\n"),
    };
    lines.iter().map(line).collect()
}

/// What came of it: who leads, who applied what.
fn story(lines: &[Line]) -> String {
    let mut deeds: Vec<(Vec<ReplicaId>, &str)> = Vec::new();
    for line in lines {
        let Line::Deed { who, what, .. } = line else { continue };
        match deeds.iter_mut().find(|(_, same)| same == what) {
            Some((all, _)) => all.push(*who),
            None => deeds.push((vec![*who], what)),
        }
    }
    deeds
        .into_iter()
        .filter(|(_, what)| !what.starts_with("campaigns"))
        .map(|(mut who, what)| {
            who.sort_unstable();
            format!("{}: {what}\n", words::replicas(who))
        })
        .collect()
}

fn shape(words: &[&str]) -> Result<Shape, String> {
    let (replicas, rest) = words.split_first().ok_or("of how many?")?;
    let replicas = u16::try_from(number(replicas)?).map_err(|_| "too many replicas")?;
    let mut shape = Shape { replicas, horizon: Configuration::HORIZON_DEFAULT, window: 4, backlog_bytes_max: 64 << 20 };
    for word in rest {
        match word.split_once('=') {
            Some(("horizon", value)) => shape.horizon = number(value)?,
            Some(("window", value)) => shape.window = number(value)?,
            Some(("backlog", value)) => shape.backlog_bytes_max = number(value)?,
            _ => return Err(format!("what is {word}?")),
        }
    }
    Ok(shape)
}

fn number(word: &str) -> Result<u64, String> {
    word.parse().map_err(|_| format!("{word} is no number"))
}

fn duration(word: &str) -> Result<Duration, String> {
    let millis = word.strip_suffix("ms").ok_or("durations are in ms")?;
    Ok(Duration::from_millis(number(millis)?))
}

fn replica(word: &str) -> Result<ReplicaId, String> {
    word.parse().map(ReplicaId).map_err(|_| format!("{word} is no replica"))
}

/// "1,2 3" or "1 2 3".
fn replicas(words: &[&str]) -> Result<Vec<ReplicaId>, String> {
    words.iter().flat_map(|word| word.split(',')).map(replica).collect()
}

fn one_replica(words: &[&str]) -> Result<ReplicaId, String> {
    match words {
        [who] => replica(who),
        _ => Err("which one replica?".to_owned()),
    }
}
