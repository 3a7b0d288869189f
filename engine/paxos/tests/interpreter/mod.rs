//! Plays the commands of scripts on a [`Cell`].
//!
//! | command | what happens |
//! |---|---|
//! | `cell 3 horizon=8 window=4 backlog=1000` | a new cell; all but the number of replicas may be left out |
//! | `cell 3 lease=1000ms heartbeat=200ms timeout=1000ms` | likewise, with leases: without, none is ever held or waited for |
//! | `cell 3 learners=4,5 boost=8 boost_time=1000ms` | likewise, with learners; a higher ballot after so much |
//! | `cell 3 frames` | likewise, with logs whose frames are counted: replicas tell each other how far theirs go, and ask after a start |
//! | `elect 1` | 1 campaigns, and everything is delivered; only what comes of it is told |
//! | `write 1 a b c` | likewise for three batches submitted at once, and 1's next heartbeat |
//! | `settle` | likewise for what is under way |
//! | `campaign 1` | 1's election deadline is reached, and its probes are answered by whoever it reaches: untold, until it campaigns |
//! | `probe 1` | 1's election deadline is reached, as often as it takes for its probes to leave |
//! | `tick 1` | time moves to 1's next deadline, and 1 is told; `tick 1 100ms` moves so far |
//! | `pass 500ms` | time moves, nobody is told |
//! | `submit 1 a b` | two batches are submitted, one after the other; `a+b` is one batch of two commands |
//! | `deliver`, `deliver SELECTION` | messages are delivered, and those sent because of it, until none is left |
//! | `deliver once SELECTION` | only what is in flight now |
//! | `drop`, `copy`, `hold`, `release` `SELECTION` | lose, duplicate, delay, stop delaying |
//! | `reverse` | the last message sent comes first |
//! | `isolate 2`, `reconnect 2` | what is sent to 2 or by 2 is lost |
//! | `cut 1 3`, `join 1 3` | what 1 and 3 send each other is lost |
//! | `clock 2 +5%` | 2's clock runs faster than the others' from now on |
//! | `disk 2 slow`, `disk 2 fast` | 2's records are volatile until `flush 2`; or durable at once, as in the beginning |
//! | `flush 2 records=1` | only the next record becomes durable: a frame ended there |
//! | `crash 2`, `restart 2` | what is volatile is lost; the replica is rebuilt from the rest |
//! | `wipe 2` | 2, which is down, loses its disk, and will know that it did |
//! | `copy_disk 2`, `put_back 2` | a copy of 2's durable log is made; 2, which is down, gets it back |
//! | `start 4` | a new machine, whose replica knows the cell's first configuration |
//! | `transfer 1 to=2` | an operator asks 1 to hand over to 2 |
//! | `add 4 at ADDRESS`, `remove 3`, `remove 3 force` | an operator asks whoever leads to change the members; `by=1`: asks 1 |
//! | `index 2`, `forget 2` | reads come to 2 that need a read index; none of them waits any more |
//! | `read 1`, `lease` | whether 1 may answer reads; who holds a lease |
//! | `tolerance`, `members` | how many more failures each believes are survived; who keeps the cell, as each knows |
//! | `full 2`, `room 2` | 2's log is at its bound; it has room again |
//! | `snapshot 2` | 2 keeps a snapshot of its state, durably, beside the one before |
//! | `trim 2` | 2's log is cut below the older of its last two snapshots, once that is durable |
//! | `install 2 from=1` | 1's last snapshot replaces 2's state |
//! | `show`, `log 2`, `network` | where everybody stands; 2's records; what is in flight |
//!
//! A selection is any of `accept`, `promise`, `answer` (to a probe), `takeover` and so on, `from=1`, `to=2,3`, `slot=7`, `ballot=1.1`; all must fit.

mod cell;
mod words;

use std::time::Duration;

use synod_paxos::{Change, Configuration, Event, Message, ReplicaId, Role, Slot};

pub(crate) use cell::{Taken, add};

use cell::{Cell, InFlight, Line, Shape};

/// More messages than any script needs: whoever sends that many sends them for ever.
const DELIVERIES_MAX: usize = 10_000;

/// Plays one script.
pub(crate) struct Interpreter {
    cell: Option<Cell>,
    taken: Taken,
}

impl Interpreter {
    pub(crate) fn new() -> Self {
        Self { cell: None, taken: Taken::new() }
    }

    /// How often the rows of the machines' tables were taken.
    pub(crate) fn taken(&self) -> Taken {
        let mut taken = self.taken.clone();
        if let Some(cell) = &self.cell {
            add(&mut taken, &cell.taken());
        }
        taken
    }

    /// Runs the commands of one block, and tells what came of them.
    pub(crate) fn run(&mut self, commands: &[&str]) -> Result<String, String> {
        let mut output = String::new();
        for command in commands {
            let mut words = command.split_whitespace();
            let verb = words.next().ok_or("an empty command")?;
            let words: Vec<_> = words.collect();
            if verb == "cell" {
                self.taken = self.taken();
                self.cell = Some(Cell::new(shape(&words)?)?);
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
        "probe" => probe(cell, one_replica(words)?)?,
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
        "cut" | "join" => match replicas(words)?[..] {
            [one, other] if verb == "cut" => cell.cut(one, other),
            [one, other] => cell.join(one, other),
            _ => return Err("which two?".to_owned()),
        },
        "clock" => match words {
            [who, percent] => cell.run_clock(replica(who)?, percentage(percent)?)?,
            _ => return Err("whose, and how much faster?".to_owned()),
        },
        "transfer" => match words {
            [who, to] => {
                let to = to.strip_prefix("to=").ok_or("to whom?")?;
                cell.transfer(replica(who)?, replica(to)?)?;
            }
            _ => return Err("from whom, to whom?".to_owned()),
        },
        "add" => match words {
            [who, "at", address] => {
                cell.change(Change::Add { id: replica(who)?, address: (*address).to_owned() })?;
            }
            _ => return Err("whom, at which address?".to_owned()),
        },
        "remove" => {
            let (who, rest) = words.split_first().ok_or("whom?")?;
            let change = Change::Remove { id: replica(who)?, force: rest.contains(&"force") };
            match rest.iter().find_map(|word| word.strip_prefix("by=")) {
                Some(by) => cell.change_at(replica(by)?, change)?,
                None => cell.change(change)?,
            }
        }
        "start" => cell.start(one_replica(words)?)?,
        "read" => {
            for who in replicas(words)? {
                cell.tell_read(who)?;
            }
        }
        "index" => {
            for who in replicas(words)? {
                cell.want_index(who)?;
            }
        }
        "forget" => cell.event(one_replica(words)?, Event::IndexUnwanted)?,
        "lease" => cell.tell_lease(),
        "tolerance" => cell.tell_tolerance(),
        "members" => cell.tell_members(),
        "flush" if words.len() == 2 && words[1].starts_with("records=") => {
            let records = number(&words[1]["records=".len()..])?;
            cell.flush_some(replica(words[0])?, usize::try_from(records).expect("a few"))?;
        }
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
        "wipe" => cell.wipe(one_replica(words)?)?,
        "copy_disk" => cell.keep_copy(one_replica(words)?)?,
        "put_back" => cell.put_back(one_replica(words)?)?,
        "full" => cell.event(one_replica(words)?, Event::LogFull)?,
        "room" => cell.event(one_replica(words)?, Event::LogRoom)?,
        "snapshot" => cell.snapshot(one_replica(words)?)?,
        "trim" => cell.trim(one_replica(words)?)?,
        "install" => match words {
            [who, from] => {
                let from = from.strip_prefix("from=").ok_or("from whom?")?;
                cell.install(replica(who)?, replica(from)?)?;
            }
            _ => return Err("where, from whom?".to_owned()),
        },
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

/// More rounds of probing than any script needs.
const PROBES_MAX: usize = 50;

/// Moves time on until `who` asks the others whether it should campaign, or campaigns without.
fn probe(cell: &mut Cell, who: ReplicaId) -> Result<(), String> {
    if cell.replica(who)?.role() == Role::Coordinating {
        return Err("it leads already".to_owned());
    }
    for _ in 0..PROBES_MAX {
        let before = cell.lines.len();
        cell.tick_when_due(who)?;
        let role = cell.replica(who)?.role();
        let is_probe =
            |line: &Line| matches!(line, Line::Send { from, what, .. } if *from == who && what.starts_with("probe"));
        if cell.lines[before..].iter().any(is_probe) || role == Role::Campaigning || role == Role::Coordinating {
            return Ok(());
        }
    }
    Err("it never probes".to_owned())
}

/// Lets `who` probe, and everyone it reaches answer, until it campaigns. None of that is told.
fn campaign(cell: &mut Cell, who: ReplicaId) -> Result<(), String> {
    let before = cell.lines.len();
    for _ in 0..PROBES_MAX {
        probe(cell, who)?;
        deliver_all(cell, &|one| words::kind(&one.message) == "probe" && one.from == who)?;
        deliver_all(cell, &|one| words::kind(&one.message) == "answer" && one.to == who)?;
        if cell.replica(who)?.role() != Role::Following(None) {
            // Whoever probed beside it comes too late.
            cell.network.retain(|one| !matches!(words::kind(&one.message), "probe" | "answer"));
            let mut kept = cell.lines.split_off(before);
            kept.retain(|line| !matches!(line, Line::Send { what, .. } if what.starts_with("probe,") || what.starts_with("answer ")));
            cell.lines.append(&mut kept);
            return Ok(());
        }
    }
    Err("nobody lets it campaign".to_owned())
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
    deliver_all(cell, &|one| selection.fits(one))
}

fn deliver_all(cell: &mut Cell, fits: &dyn Fn(&InFlight) -> bool) -> Result<(), String> {
    for _ in 0..DELIVERIES_MAX {
        let Some(at) = cell.network.iter().position(fits) else { return Ok(()) };
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
        const KINDS: [&str; 17] = [
            "probe",
            "answer",
            "propose",
            "promise",
            "accept",
            "acknowledge",
            "reject",
            "commit",
            "release",
            "takeover",
            "fetch",
            "entries",
            "position",
            "rejoin",
            "rejoined",
            "askindex",
            "tellindex",
        ];
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
            Message::Accept { ballot, slot, .. } | Message::Acknowledge { ballot, slot, .. } => {
                (Some(*slot), Some(*ballot))
            }
            Message::Propose { ballot, .. }
            | Message::Promise { ballot, .. }
            | Message::Commit { ballot, .. }
            | Message::TellIndex { ballot, .. }
            | Message::Release { ballot }
            | Message::TakeOver { ballot } => (None, Some(*ballot)),
            Message::Probe { .. }
            | Message::ProbeAnswer { .. }
            | Message::Reject { .. }
            | Message::Position { .. }
            | Message::Rejoin { .. }
            | Message::RejoinAnswer { .. }
            | Message::AskIndex { .. }
            | Message::Fetch { .. }
            | Message::Entries { .. } => (None, None),
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
    let (count, rest) = words.split_first().ok_or("of how many?")?;
    let count = u16::try_from(number(count)?).map_err(|_| "too many replicas")?;
    let mut shape = Shape {
        replicas: count,
        learners: Vec::new(),
        horizon: Configuration::HORIZON_DEFAULT,
        window: 4,
        backlog_bytes_max: 64 << 20,
        lease: Duration::ZERO,
        heartbeat: None,
        election_timeout: None,
        boost_slots_min: None,
        boost_time_min: None,
        frames: false,
    };
    for word in rest {
        match word.split_once('=') {
            None if *word == "frames" => shape.frames = true,
            Some(("horizon", value)) => shape.horizon = number(value)?,
            Some(("window", value)) => shape.window = number(value)?,
            Some(("backlog", value)) => shape.backlog_bytes_max = number(value)?,
            Some(("learners", value)) => shape.learners = replicas(&[value])?,
            Some(("lease", value)) => shape.lease = duration(value)?,
            Some(("heartbeat", value)) => shape.heartbeat = Some(duration(value)?),
            Some(("timeout", value)) => shape.election_timeout = Some(duration(value)?),
            Some(("boost", value)) => shape.boost_slots_min = Some(number(value)?),
            Some(("boost_time", value)) => shape.boost_time_min = Some(duration(value)?),
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

/// "+5%" of a clock that shows 105 ms after 100.
fn percentage(word: &str) -> Result<u64, String> {
    let (sign, percent) = word.strip_suffix('%').and_then(|word| word.split_at_checked(1)).ok_or("as in +5%")?;
    match sign {
        "+" => Ok(100 + number(percent)?),
        "-" => Ok(100 - number(percent)?),
        _ => Err("as in +5%".to_owned()),
    }
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
