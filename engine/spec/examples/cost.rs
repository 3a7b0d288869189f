//! What a machine costs: the same one written by hand, as one `match`, and as a table, driven by the same events.
//!
//! ```sh
//! cargo build --release -p synod-spec --example cost
//! for way in hand table; do
//!     valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect="*step_by_$way*" \
//!         target/release/examples/cost $way 1000000
//! done
//! ```
//!
//! What is collected is what the steps executed. Both ways print the same: how often each row was taken, and a digest
//! of the state they ended in. The test in `src/cost.rs` compiles this file and counts the instructions it became.

use std::env;
use std::process::ExitCode;

/// One clause of the table.
#[derive(Debug)]
pub struct Row {
    /// The machine.
    pub machine: &'static str,
    /// The event.
    pub event: &'static str,
    /// The state it is in.
    pub state: &'static str,
    /// The guard, if any.
    pub guard: &'static str,
    /// The action, if any.
    pub action: &'static str,
    /// The state it leads to.
    pub next: &'static str,
    /// Why nothing is done.
    pub refusal: &'static str,
}

/// The machine as a table.
mod table {
    use crate::parts::*;

    synod_spec::machine! {
        /// Who leads: a replica follows, campaigns and coordinates, until its log is full.
        machine role(Context) rows crate::Row;

        states {
            Following(Following),
            Campaigning(Campaigning),
            Coordinating(Coordinating),
            Full,
        }

        events {
            Tick(Tick),
            Heard(Heard),
            Promised(Promised),
            Submitted(Submitted),
            Chosen(Chosen),
            LogFull,
            LogCut(Chosen),
        }

        on Tick {
            in Following: when is_silent do campaign goto Campaigning;
                          stay;
            in Campaigning: when is_late do campaign_again stay;
                            stay;
            in Coordinating: do heartbeat stay;
            in Full: stay;
        }
        on Heard {
            in Following: when is_older refuse "an older coordinator: it will learn";
                          do follow stay;
            in Campaigning, Coordinating: when bare is_known stay;
                                          do bare yield_to goto Following;
            in Full: stay;
        }
        on Promised {
            in Campaigning: when is_stale refuse "a promise for an earlier ballot";
                            when is_majority do lead goto Coordinating;
                            do count stay;
            in Following, Coordinating, Full: stay;
        }
        on Submitted {
            in Following, Campaigning: refuse "somebody else leads";
            in Coordinating: when is_window_closed refuse "busy";
                             do propose stay;
            in Full: refuse "the log has no room";
        }
        on Chosen {
            in Coordinating: do close stay;
            in Following, Campaigning, Full: stay;
        }
        on LogFull {
            in Following, Campaigning, Coordinating: do bare fill goto Full;
            in Full: never "it is told once";
        }
        on LogCut {
            in Full: do bare reopen goto Following;
            in Following, Campaigning, Coordinating: never "only a full log is cut";
        }
    }
}

/// The machine as somebody would write it, who wants it fast and counted.
mod hand {
    use crate::parts::*;

    pub(crate) enum State {
        Following(Following),
        Campaigning(Campaigning),
        Coordinating(Coordinating),
        Full,
    }

    pub(crate) enum Event {
        Tick(Tick),
        Heard(Heard),
        Promised(Promised),
        Submitted(Submitted),
        Chosen(Chosen),
        LogFull,
        LogCut(Chosen),
    }

    pub(crate) fn step(state: &mut State, event: Event, cx: &mut Context) {
        match (&mut *state, event) {
            (State::Following(following), Event::Tick(tick)) => {
                if is_silent(following, &tick, cx) {
                    cx.taken(0);
                    *state = State::Campaigning(campaign(following, tick, cx));
                } else {
                    cx.taken(1);
                }
            }
            (State::Campaigning(campaigning), Event::Tick(tick)) => {
                if is_late(campaigning, &tick, cx) {
                    cx.taken(2);
                    campaign_again(campaigning, tick, cx);
                } else {
                    cx.taken(3);
                }
            }
            (State::Coordinating(coordinating), Event::Tick(tick)) => {
                cx.taken(4);
                heartbeat(coordinating, tick, cx);
            }
            (State::Full, Event::Tick(_)) => cx.taken(5),
            (State::Following(following), Event::Heard(heard)) => {
                if is_older(following, &heard, cx) {
                    cx.taken(6);
                } else {
                    cx.taken(7);
                    follow(following, heard, cx);
                }
            }
            (State::Campaigning(_), Event::Heard(heard)) => {
                if is_known(&heard, cx) {
                    cx.taken(8);
                } else {
                    cx.taken(9);
                    *state = State::Following(yield_to(heard, cx));
                }
            }
            (State::Coordinating(_), Event::Heard(heard)) => {
                if is_known(&heard, cx) {
                    cx.taken(10);
                } else {
                    cx.taken(11);
                    *state = State::Following(yield_to(heard, cx));
                }
            }
            (State::Full, Event::Heard(_)) => cx.taken(12),
            (State::Campaigning(campaigning), Event::Promised(promised)) => {
                if is_stale(campaigning, &promised, cx) {
                    cx.taken(13);
                } else if is_majority(campaigning, &promised, cx) {
                    cx.taken(14);
                    *state = State::Coordinating(lead(campaigning, promised, cx));
                } else {
                    cx.taken(15);
                    count(campaigning, promised, cx);
                }
            }
            (State::Following(_), Event::Promised(_)) => cx.taken(16),
            (State::Coordinating(_), Event::Promised(_)) => cx.taken(17),
            (State::Full, Event::Promised(_)) => cx.taken(18),
            (State::Following(_), Event::Submitted(_)) => cx.taken(19),
            (State::Campaigning(_), Event::Submitted(_)) => cx.taken(20),
            (State::Coordinating(coordinating), Event::Submitted(submitted)) => {
                if is_window_closed(coordinating, &submitted, cx) {
                    cx.taken(21);
                } else {
                    cx.taken(22);
                    propose(coordinating, submitted, cx);
                }
            }
            (State::Full, Event::Submitted(_)) => cx.taken(23),
            (State::Coordinating(coordinating), Event::Chosen(chosen)) => {
                cx.taken(24);
                close(coordinating, chosen, cx);
            }
            (State::Following(_), Event::Chosen(_)) => cx.taken(25),
            (State::Campaigning(_), Event::Chosen(_)) => cx.taken(26),
            (State::Full, Event::Chosen(_)) => cx.taken(27),
            (State::Following(_), Event::LogFull) => {
                cx.taken(28);
                fill(cx);
                *state = State::Full;
            }
            (State::Campaigning(_), Event::LogFull) => {
                cx.taken(29);
                fill(cx);
                *state = State::Full;
            }
            (State::Coordinating(_), Event::LogFull) => {
                cx.taken(30);
                fill(cx);
                *state = State::Full;
            }
            (State::Full, Event::LogFull) => {
                cx.taken(31);
                panic!("role: `LogFull` in state `Full`: it is told once");
            }
            (State::Full, Event::LogCut(chosen)) => {
                cx.taken(32);
                *state = State::Following(reopen(chosen, cx));
            }
            (State::Following(_), Event::LogCut(_)) => {
                cx.taken(33);
                panic!("role: `LogCut` in state `Following`: only a full log is cut");
            }
            (State::Campaigning(_), Event::LogCut(_)) => {
                cx.taken(34);
                panic!("role: `LogCut` in state `Campaigning`: only a full log is cut");
            }
            (State::Coordinating(_), Event::LogCut(_)) => {
                cx.taken(35);
                panic!("role: `LogCut` in state `Coordinating`: only a full log is cut");
            }
        }
    }
}

/// What both are made of.
mod parts {
    pub(crate) struct Following {
        pub(crate) heard_at: u64,
        pub(crate) ballot: u64,
    }

    pub(crate) struct Campaigning {
        pub(crate) since: u64,
        pub(crate) ballot: u64,
        pub(crate) promises: u64,
    }

    pub(crate) struct Coordinating {
        pub(crate) ballot: u64,
        pub(crate) slot_next: u64,
        pub(crate) open: u64,
    }

    pub(crate) struct Tick {
        pub(crate) now: u64,
    }

    pub(crate) struct Heard {
        pub(crate) now: u64,
        pub(crate) ballot: u64,
    }

    pub(crate) struct Promised {
        pub(crate) from: u64,
        pub(crate) ballot: u64,
        pub(crate) slot_next: u64,
    }

    pub(crate) struct Submitted {
        pub(crate) bytes: u64,
    }

    pub(crate) struct Chosen {
        pub(crate) slot: u64,
    }

    const WINDOW: u64 = 8;
    const MAJORITY: u32 = 2;
    const PATIENCE: u64 = 6;
    pub(crate) const ROWS: usize = 36;

    /// The rest of the replica, and the counters.
    pub(crate) struct Context {
        pub(crate) ballot_max: u64,
        pub(crate) bytes: u64,
        pub(crate) chosen: u64,
        pub(crate) sent: u64,
        pub(crate) is_full: bool,
        pub(crate) taken: [u64; ROWS],
    }

    impl Context {
        pub(crate) fn new() -> Self {
            Self { ballot_max: 0, bytes: 0, chosen: 0, sent: 0, is_full: false, taken: [0; ROWS] }
        }

        pub(crate) fn taken(&mut self, row: usize) {
            self.taken[row] += 1;
        }

        fn ballot_next(&mut self) -> u64 {
            self.ballot_max += 1;
            self.ballot_max
        }
    }

    pub(crate) fn is_silent(following: &Following, tick: &Tick, _: &Context) -> bool {
        tick.now.wrapping_sub(following.heard_at) > PATIENCE
    }

    pub(crate) fn campaign(_: &mut Following, tick: Tick, cx: &mut Context) -> Campaigning {
        cx.sent += 2;
        Campaigning { since: tick.now, ballot: cx.ballot_next(), promises: 0 }
    }

    pub(crate) fn is_late(campaigning: &Campaigning, tick: &Tick, _: &Context) -> bool {
        tick.now.wrapping_sub(campaigning.since) > PATIENCE
    }

    pub(crate) fn campaign_again(campaigning: &mut Campaigning, tick: Tick, cx: &mut Context) {
        cx.sent += 2;
        *campaigning = Campaigning { since: tick.now, ballot: cx.ballot_next(), promises: 0 };
    }

    pub(crate) fn heartbeat(coordinating: &mut Coordinating, tick: Tick, cx: &mut Context) {
        cx.sent += 2 + (tick.now ^ coordinating.slot_next) % 2;
    }

    pub(crate) fn is_older(following: &Following, heard: &Heard, _: &Context) -> bool {
        heard.ballot < following.ballot
    }

    pub(crate) fn follow(following: &mut Following, heard: Heard, cx: &mut Context) {
        *following = yield_to(heard, cx);
    }

    pub(crate) fn is_known(heard: &Heard, cx: &Context) -> bool {
        heard.ballot <= cx.ballot_max
    }

    pub(crate) fn yield_to(heard: Heard, cx: &mut Context) -> Following {
        cx.ballot_max = cx.ballot_max.max(heard.ballot);
        Following { heard_at: heard.now, ballot: heard.ballot }
    }

    pub(crate) fn is_stale(campaigning: &Campaigning, promised: &Promised, _: &Context) -> bool {
        promised.ballot < campaigning.ballot
    }

    pub(crate) fn is_majority(campaigning: &Campaigning, promised: &Promised, _: &Context) -> bool {
        (campaigning.promises | 1 << promised.from).count_ones() >= MAJORITY
    }

    pub(crate) fn lead(campaigning: &mut Campaigning, promised: Promised, cx: &mut Context) -> Coordinating {
        Coordinating { ballot: campaigning.ballot, slot_next: promised.slot_next.max(cx.chosen + 1), open: 0 }
    }

    pub(crate) fn count(campaigning: &mut Campaigning, promised: Promised, _: &mut Context) {
        campaigning.promises |= 1 << promised.from;
    }

    pub(crate) fn is_window_closed(coordinating: &Coordinating, _: &Submitted, _: &Context) -> bool {
        coordinating.open >= WINDOW
    }

    pub(crate) fn propose(coordinating: &mut Coordinating, submitted: Submitted, cx: &mut Context) {
        coordinating.slot_next += 1;
        coordinating.open += 1;
        cx.bytes += submitted.bytes;
        cx.sent += 2;
    }

    pub(crate) fn close(coordinating: &mut Coordinating, chosen: Chosen, cx: &mut Context) {
        coordinating.open = coordinating.open.saturating_sub(1);
        cx.chosen = cx.chosen.max(chosen.slot ^ coordinating.ballot);
    }

    pub(crate) fn fill(cx: &mut Context) {
        cx.is_full = true;
    }

    pub(crate) fn reopen(chosen: Chosen, cx: &mut Context) -> Following {
        cx.is_full = false;
        Following { heard_at: chosen.slot, ballot: cx.ballot_max }
    }
}

/// The same events for whoever asks, drawn from a xorshift generator.
macro_rules! drive {
    ($module:ident, $step:path, $events:expr) => {{
        use parts::*;
        use $module::{Event, State};
        let mut cx = Context::new();
        let mut state = State::Following(Following { heard_at: 0, ballot: 0 });
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for now in 0..$events {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let ballot = cx.ballot_max.wrapping_add(random >> 8 & 3).saturating_sub(2);
            let event = match random % 256 {
                0..64 => Event::Tick(Tick { now }),
                64..68 => Event::Heard(Heard { now, ballot }),
                68..92 => Event::Promised(Promised { from: random >> 16 & 3, ballot, slot_next: now }),
                92..172 => Event::Submitted(Submitted { bytes: random >> 48 }),
                172..252 => Event::Chosen(Chosen { slot: random >> 16 & 0xffff }),
                252.. if cx.is_full => Event::LogCut(Chosen { slot: now }),
                252..254 => Event::LogFull,
                254.. => Event::Tick(Tick { now }),
            };
            $step(&mut state, event, &mut cx);
        }
        let state = match state {
            State::Following(following) => following.heard_at ^ following.ballot,
            State::Campaigning(campaigning) => campaigning.since ^ campaigning.promises,
            State::Coordinating(coordinating) => coordinating.slot_next ^ coordinating.open,
            State::Full => 0,
        };
        (state ^ cx.bytes ^ cx.chosen ^ cx.sent, cx.taken)
    }};
}

// A call for each step: compiled into the drawing of events, a machine would be measured with half of itself foreseen.

#[inline(never)]
fn step_by_hand(state: &mut hand::State, event: hand::Event, cx: &mut parts::Context) {
    hand::step(state, event, cx);
}

#[inline(never)]
fn step_by_table(state: &mut table::State, event: table::Event, cx: &mut parts::Context) {
    table::step(state, event, cx);
}

fn drive_hand(events: u64) -> (u64, [u64; parts::ROWS]) {
    drive!(hand, step_by_hand, events)
}

fn drive_table(events: u64) -> (u64, [u64; parts::ROWS]) {
    drive!(table, step_by_table, events)
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [way, events] = &arguments[..] else {
        eprintln!("usage: cost hand|table <events>");
        return ExitCode::FAILURE;
    };
    let Ok(events) = events.parse() else {
        eprintln!("not a number of events: {events}");
        return ExitCode::FAILURE;
    };
    let (digest, taken) = match way.as_str() {
        "hand" => drive_hand(events),
        "table" => drive_table(events),
        _ => {
            eprintln!("neither hand nor table: {way}");
            return ExitCode::FAILURE;
        }
    };
    for (row, taken) in table::ROWS.iter().zip(taken) {
        let Row { machine, event, state, guard, action, next, refusal } = row;
        println!("{taken:>9} {machine}: {event} in {state} [{guard}] {action} -> {next} {refusal}");
    }
    println!("digest {digest:016x}");
    ExitCode::SUCCESS
}

#[test]
fn both_ways_do_the_same() {
    let (hand, table) = (drive_hand(100_000), drive_table(100_000));
    assert_eq!(hand, table);
    let untaken: Vec<_> =
        table::ROWS.iter().zip(table.1).filter(|(_, taken)| *taken == 0).map(|(row, _)| row).collect();
    assert!(untaken.iter().all(|row| row.refusal.starts_with("never: ")), "the events take every row: {untaken:?}");
}
