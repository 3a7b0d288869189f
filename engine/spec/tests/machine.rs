//! The language as its users meet it: machines that compile, what they do, and what they say of themselves.

use expect_test::expect;

/// What every machine here tells its table as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Row {
    machine: &'static str,
    event: &'static str,
    state: &'static str,
    guard: &'static str,
    action: &'static str,
    next: &'static str,
    refusal: &'static str,
}

/// A toy of an acceptor, with everything the language has: payloads and none, guards, refusals, a borrowing event.
mod acceptor {
    use super::Row;

    pub(crate) struct Voting {
        pub(crate) promised: u64,
        pub(crate) accepted: Vec<String>,
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Proposed {
        pub(crate) ballot: u64,
    }

    #[derive(Clone, Copy)]
    pub(crate) struct Asked<'a> {
        pub(crate) ballot: u64,
        pub(crate) value: &'a str,
    }

    /// Lent to guards and actions.
    pub(crate) struct Context<'a> {
        pub(crate) is_leased: bool,
        pub(crate) own: u64,
        pub(crate) said: &'a mut Vec<String>,
        pub(crate) rows: Vec<usize>,
    }

    impl Context<'_> {
        fn taken(&mut self, row: usize) {
            self.said.push(format!("row {row}"));
            self.rows.push(row);
        }
    }

    synod_spec::machine! {
        /// What a replica does with proposals and accepts.
        ///
        /// It never votes twice.
        machine acceptor(Context<'_>) rows Row;

        states {
            /// It promises and accepts.
            Voting(Voting),
            /// Its log is at its bound,
            /// a | or more.
            Full,
        }

        #[derive(Clone, Copy)]
        events<'a> {
            /// A would-be coordinator asks us to ignore everyone older.
            Proposed(Proposed),
            /// A coordinator asks for our vote.
            Asked(Asked<'a>),
            LogFull,
            LogCut(u64),
        }

        on Proposed {
            in Voting: when is_outbid do reject stay;
                       when bare is_leased refuse "a lease is out: it would be broken";
                       do promise stay;
            in Full: stay;
        }
        on Asked {
            in Voting: do self::accept stay;
            in Full: when is_own do accept_own goto Voting;
                     refuse "the log {has} | no room";
        }
        on LogFull {
            in Voting: goto Full;
            in Full: never "it is told {once}";
        }
        on LogCut {
            in Full: do reopen goto Voting;
            in Voting: do bare cut stay;
        }
    }

    fn is_outbid(voting: &Voting, proposed: &Proposed, _: &Context<'_>) -> bool {
        proposed.ballot < voting.promised
    }

    fn is_leased(_: &Proposed, cx: &Context<'_>) -> bool {
        cx.is_leased
    }

    fn reject(voting: &mut Voting, _: Proposed, cx: &mut Context<'_>) {
        cx.said.push(format!("reject: promised {}", voting.promised));
    }

    fn promise(voting: &mut Voting, proposed: Proposed, cx: &mut Context<'_>) {
        voting.promised = proposed.ballot;
        cx.said.push(format!("promise {}", proposed.ballot));
    }

    fn accept(voting: &mut Voting, asked: Asked<'_>, cx: &mut Context<'_>) {
        voting.accepted.push(asked.value.to_owned());
        cx.said.push(format!("accept {} {}", asked.ballot, asked.value));
    }

    fn is_own(asked: &Asked<'_>, cx: &Context<'_>) -> bool {
        asked.ballot == cx.own
    }

    fn accept_own(asked: Asked<'_>, cx: &mut Context<'_>) -> Voting {
        cx.said.push(format!("accept own {}", asked.value));
        Voting { promised: asked.ballot, accepted: vec![asked.value.to_owned()] }
    }

    fn cut(upto: u64, cx: &mut Context<'_>) {
        cx.said.push(format!("cut {upto}"));
    }

    fn reopen(upto: u64, cx: &mut Context<'_>) -> Voting {
        cut(upto, cx);
        Voting { promised: upto, accepted: Vec::new() }
    }
}

/// What one row may say of several states, and names that the macro must not trip over.
mod link {
    pub(crate) trait Timed {
        fn since(&self) -> u64;
        fn touch(&mut self, now: u64);
    }

    #[derive(Debug, PartialEq)]
    pub(crate) struct Connecting(pub(crate) u64);

    #[derive(Debug, PartialEq)]
    pub(crate) struct Open {
        pub(crate) since: u64,
        pub(crate) queue: Vec<String>,
    }

    impl Timed for Connecting {
        fn since(&self) -> u64 {
            self.0
        }

        fn touch(&mut self, now: u64) {
            self.0 = now;
        }
    }

    impl Timed for Open {
        fn since(&self) -> u64 {
            self.since
        }

        fn touch(&mut self, now: u64) {
            self.since = now;
        }
    }

    #[derive(Default)]
    pub(crate) struct Counters {
        pub(crate) taken: [u32; ROWS.len()],
    }

    impl Counters {
        fn taken(&mut self, row: usize) {
            self.taken[row] += 1;
        }
    }

    synod_spec::machine! {
        machine link(Counters) rows super::Row;

        #[derive(Debug, PartialEq)]
        states {
            Connecting(Connecting),
            Open(Open),
            Closed,
        }

        events<T: Into<String>> {
            Tick(u64),
            Connected,
            Send(Vec<T>),
            Close,
        }

        on Tick {
            in Connecting, Open: when is_late do touch stay;
                                 when bare data refuse "an odd tick";
                                 stay;
            in Closed: stay;
        }
        on Connected {
            in Connecting: when is_doomed do bare event goto Closed;
                           do cx goto Open;
            in Open, Closed: never "once";
        }
        on Send {
            in Connecting, Closed: refuse "not connected";
            in Open: do next stay;
        }
        on Close {
            in Connecting: do state goto Closed;
            in Open: goto Closed;
            in Closed: do bare event stay;
        }
    }

    fn is_late<S: Timed>(timed: &S, now: &u64, _: &Counters) -> bool {
        *now > timed.since() + 10
    }

    fn touch<S: Timed>(timed: &mut S, now: u64, _: &mut Counters) {
        timed.touch(now);
    }

    fn data(now: &u64, _: &Counters) -> bool {
        now % 2 == 1
    }

    fn is_doomed(connecting: &Connecting, _: &Counters) -> bool {
        connecting.0 == 13
    }

    fn event(_: &mut Counters) {}

    fn cx(connecting: &mut Connecting, _: &mut Counters) -> Open {
        Open { since: connecting.0, queue: Vec::new() }
    }

    fn next<T: Into<String>>(open: &mut Open, lines: Vec<T>, _: &mut Counters) {
        open.queue.extend(lines.into_iter().map(Into::into));
    }

    fn state(connecting: &mut Connecting, _: &mut Counters) {
        connecting.0 = 0;
    }
}

use acceptor::{Asked, Context, Event, Proposed, State, Voting};

/// Plays events to a new acceptor; says what it did, and the state after each.
fn play(events: &[Event<'_>], is_leased: bool) -> String {
    let mut said = Vec::new();
    let mut state = State::Voting(Voting { promised: 5, accepted: Vec::new() });
    for &event in events {
        said.push(format!("{} in {}", event.name(), state.name()));
        let mut cx = Context { is_leased, own: 9, said: &mut said, rows: Vec::new() };
        acceptor::step(&mut state, event, &mut cx);
        assert_eq!(cx.rows.len(), 1, "an event takes exactly one row");
    }
    if let State::Voting(voting) = state {
        said.push(format!("voting: promised {}, accepted {:?}", voting.promised, voting.accepted));
    }
    said.join("\n")
}

#[test]
fn clauses_are_tried_in_order() {
    let events = [Event::Proposed(Proposed { ballot: 4 }), Event::Proposed(Proposed { ballot: 6 })];
    expect![[r#"
        Proposed in Voting
        row 0
        reject: promised 5
        Proposed in Voting
        row 2
        promise 6
        voting: promised 6, accepted []"#]]
    .assert_eq(&play(&events, false));
    expect![[r#"
        Proposed in Voting
        row 0
        reject: promised 5
        Proposed in Voting
        row 1
        voting: promised 5, accepted []"#]]
    .assert_eq(&play(&events, true));
}

#[test]
fn an_action_builds_the_next_state() {
    let events = [
        Event::Asked(Asked { ballot: 5, value: "a" }),
        Event::LogFull,
        Event::Proposed(Proposed { ballot: 6 }),
        Event::Asked(Asked { ballot: 8, value: "b" }),
        Event::Asked(Asked { ballot: 9, value: "c" }),
        Event::LogCut(7),
        Event::LogFull,
        Event::LogCut(7),
    ];
    expect![[r#"
        Asked in Voting
        row 4
        accept 5 a
        LogFull in Voting
        row 7
        Proposed in Full
        row 3
        Asked in Full
        row 6
        Asked in Full
        row 5
        accept own c
        LogCut in Voting
        row 10
        cut 7
        LogFull in Voting
        row 7
        LogCut in Full
        row 9
        cut 7
        voting: promised 7, accepted []"#]]
    .assert_eq(&play(&events, false));
}

#[test]
#[should_panic(expected = "acceptor: `LogFull` in state `Full`: it is told {once}")]
fn what_must_not_happen_panics_with_its_reason() {
    play(&[Event::LogFull, Event::LogFull], false);
}

#[test]
fn the_row_is_told_before_the_action_runs() {
    let told = play(&[Event::Asked(Asked { ballot: 5, value: "a" })], false);
    expect![[r#"
        Asked in Voting
        row 4
        accept 5 a
        voting: promised 5, accepted ["a"]"#]]
    .assert_eq(&told);
}

#[test]
fn every_clause_of_every_state_is_a_row() {
    let rows: Vec<_> = acceptor::ROWS
        .iter()
        .enumerate()
        .map(|(index, Row { machine, event, state, guard, action, next, refusal })| {
            format!("{index} {machine}: {event} {state} [{guard}] [{action}] -> {next} [{refusal}]\n")
        })
        .collect();
    expect![[r#"
        0 acceptor: Proposed Voting [is_outbid] [reject] -> Voting []
        1 acceptor: Proposed Voting [is_leased] [] -> Voting [refuse: a lease is out: it would be broken]
        2 acceptor: Proposed Voting [] [promise] -> Voting []
        3 acceptor: Proposed Full [] [] -> Full []
        4 acceptor: Asked Voting [] [self::accept] -> Voting []
        5 acceptor: Asked Full [is_own] [accept_own] -> Voting []
        6 acceptor: Asked Full [] [] -> Full [refuse: the log {has} | no room]
        7 acceptor: LogFull Voting [] [] -> Full []
        8 acceptor: LogFull Full [] [] -> Full [never: it is told {once}]
        9 acceptor: LogCut Full [] [reopen] -> Voting []
        10 acceptor: LogCut Voting [] [cut] -> Voting []
    "#]]
    .assert_eq(&rows.concat());
}

#[test]
fn the_table_is_a_page() {
    expect![[r#"
        # acceptor

        What a replica does with proposals and accepts.

        It never votes twice.

        | state | |
        |---|---|
        | Voting (initial) | It promises and accepts. |
        | Full | Its log is at its bound, a \| or more. |

        | event | |
        |---|---|
        | Proposed | A would-be coordinator asks us to ignore everyone older. |
        | Asked | A coordinator asks for our vote. |
        | LogFull |  |
        | LogCut |  |

        | event | state | when | does | next |
        |---|---|---|---|---|
        | Proposed | Voting | is_outbid | reject | stay |
        | Proposed | Voting | is_leased |  | *refuse: a lease is out: it would be broken* |
        | Proposed | Voting |  | promise | stay |
        | Proposed | Full |  |  | stay |
        | Asked | Voting |  | self::accept | stay |
        | Asked | Full | is_own | accept_own | Voting |
        | Asked | Full |  |  | *refuse: the log {has} \| no room* |
        | LogFull | Voting |  |  | Full |
        | LogFull | Full |  |  | *never: it is told {once}* |
        | LogCut | Full |  | reopen | Voting |
        | LogCut | Voting |  | cut | stay |
    "#]]
    .assert_eq(acceptor::TABLE);
}

#[test]
fn one_row_serves_several_states() {
    use link::{Connecting, Counters, Event, Open, State};
    let mut cx = Counters::default();
    let mut state = State::Connecting(Connecting(0));
    let mut step = |state: &mut State, event: Event<&str>| link::step(state, event, &mut cx);

    step(&mut state, Event::Tick(12));
    step(&mut state, Event::Tick(13));
    step(&mut state, Event::Send(vec!["lost"]));
    assert_eq!(state, State::Connecting(Connecting(12)));

    step(&mut state, Event::Connected);
    step(&mut state, Event::Tick(14));
    step(&mut state, Event::Tick(15));
    step(&mut state, Event::Tick(30));
    step(&mut state, Event::Send(vec!["a", "b"]));
    assert_eq!(state, State::Open(Open { since: 30, queue: vec!["a".to_owned(), "b".to_owned()] }));

    step(&mut state, Event::Close);
    step(&mut state, Event::Close);
    step(&mut state, Event::Tick(90));
    assert_eq!(state, State::Closed);

    let mut doomed = State::Connecting(Connecting(13));
    step(&mut doomed, Event::Connected);
    assert_eq!(doomed, State::Closed);
    let mut early = State::Connecting(Connecting(14));
    step(&mut early, Event::Close);
    assert_eq!(early, State::Closed);

    let told: Vec<_> = (link::ROWS.iter().zip(cx.taken))
        .map(|(Row { event, state, guard, action, next, refusal, .. }, taken)| {
            format!("{taken} {event} {state} [{guard}] [{action}] -> {next} [{refusal}]\n")
        })
        .collect();
    expect![[r#"
        1 Tick Connecting [is_late] [touch] -> Connecting []
        1 Tick Connecting [data] [] -> Connecting [refuse: an odd tick]
        0 Tick Connecting [] [] -> Connecting []
        1 Tick Open [is_late] [touch] -> Open []
        1 Tick Open [data] [] -> Open [refuse: an odd tick]
        1 Tick Open [] [] -> Open []
        1 Tick Closed [] [] -> Closed []
        1 Connected Connecting [is_doomed] [event] -> Closed []
        1 Connected Connecting [] [cx] -> Open []
        0 Connected Open [] [] -> Open [never: once]
        0 Connected Closed [] [] -> Closed [never: once]
        1 Send Connecting [] [] -> Connecting [refuse: not connected]
        0 Send Closed [] [] -> Closed [refuse: not connected]
        1 Send Open [] [next] -> Open []
        1 Close Connecting [] [state] -> Closed []
        1 Close Open [] [] -> Closed []
        1 Close Closed [] [event] -> Closed []
    "#]]
    .assert_eq(&told.concat());
}

#[test]
#[should_panic(expected = "link: `Connected` in state `Closed`: once")]
fn a_shared_row_panics_with_the_state_it_is_in() {
    link::step(&mut link::State::Closed, link::Event::<String>::Connected, &mut link::Counters::default());
}
