//! What a well-written machine may still get wrong. Everything that is wrong is reported at once, each where it is.

use std::collections::{BTreeMap, BTreeSet};

use syn::{Error, Ident, Result};

use crate::parse::{Clause, Handler, Machine, Outcome, Row, Variant};

/// Says yes only to a machine that knows, in every state, what to do about every event.
pub(crate) fn check(machine: &Machine) -> Result<()> {
    let mut check = Check { states: BTreeMap::new(), events: BTreeMap::new(), errors: None, unknown_states: false };
    check.not_empty(machine);
    check.declarations(machine);
    check.pairs(machine);
    for row in machine.handlers.iter().flat_map(|handler| &handler.rows) {
        check.order(row);
        for clause in &row.clauses {
            check.target(clause, row);
        }
    }
    // A misspelt name makes a state look unreachable that is not: one mistake, one error.
    if !check.unknown_states {
        check.reachable(machine);
    }
    check.errors.map_or(Ok(()), Err)
}

struct Check<'m> {
    states: BTreeMap<&'m Ident, &'m Variant>,
    events: BTreeMap<&'m Ident, &'m Variant>,
    errors: Option<Error>,
    /// Some row or clause names a state that is not declared.
    unknown_states: bool,
}

impl<'m> Check<'m> {
    fn error(&mut self, error: Error) {
        match &mut self.errors {
            Some(errors) => errors.combine(error),
            None => self.errors = Some(error),
        }
    }

    fn error_at(&mut self, name: &Ident, message: String) {
        self.error(Error::new(name.span(), message));
    }

    fn not_empty(&mut self, machine: &Machine) {
        let name = &machine.name;
        for (what, is_empty) in [
            ("states", machine.states.is_empty()),
            ("events", machine.events.is_empty()),
            ("`on` blocks", machine.handlers.is_empty()),
        ] {
            if is_empty {
                self.error_at(name, format!("`{name}` has no {what}"));
            }
        }
    }

    fn declarations(&mut self, machine: &'m Machine) {
        for state in &machine.states {
            if self.states.insert(&state.name, state).is_some() {
                self.error_at(&state.name, format!("there already is a state `{}`", state.name));
            }
        }
        for event in &machine.events {
            if self.events.insert(&event.name, event).is_some() {
                self.error_at(&event.name, format!("there already is an event `{}`", event.name));
            }
        }
    }

    /// Every state meets every event, once.
    fn pairs(&mut self, machine: &'m Machine) {
        let mut handled: BTreeMap<&Ident, (&Handler, BTreeSet<&Ident>)> = BTreeMap::new();
        for handler in &machine.handlers {
            let event = &handler.event;
            if !self.events.contains_key(event) {
                self.error_at(event, format!("no event is called `{event}`"));
            }
            let is_second = handled.contains_key(event);
            if is_second {
                self.error_at(event, format!("there already is an `on {event}`"));
            }
            let (_, met) = handled.entry(event).or_insert((handler, BTreeSet::new()));
            for state in handler.rows.iter().flat_map(|row| &row.states) {
                if !self.states.contains_key(state) {
                    self.unknown_state(state);
                } else if !met.insert(state) && !is_second {
                    self.error_at(state, format!("`{state}` already has a row for `{event}`"));
                }
            }
        }
        for event in &machine.events {
            let handler = handled.get(&event.name);
            let missing: Vec<_> = machine
                .states
                .iter()
                .filter(|state| handler.is_none_or(|(_, met)| !met.contains(&state.name)))
                .map(|state| format!("`{}`", state.name))
                .collect();
            if !missing.is_empty() {
                let place = handler.map_or(&event.name, |(handler, _)| &handler.event);
                let have = if missing.len() == 1 { "has" } else { "have" };
                self.error_at(place, format!("{} {have} no row for `{}`", missing.join(", "), event.name));
            }
        }
    }

    /// Clauses are tried in order, and the last one takes what is left.
    fn order(&mut self, row: &Row) {
        let Some((last, before)) = row.clauses.split_last() else { return };
        if let Some(guard) = &last.guard {
            let guard = guard.name();
            self.error(Error::new(last.span, format!("the last clause must have no `when`: what if not `{guard}`?")));
        }
        if let Some(unguarded) = before.iter().position(|clause| clause.guard.is_none()) {
            for clause in &row.clauses[unguarded + 1..] {
                self.error(Error::new(clause.span, "never tried: a clause before it has no `when`"));
            }
        }
    }

    fn target(&mut self, clause: &Clause, row: &Row) {
        let Outcome::Goto { action, next } = &clause.outcome else { return };
        let Some(state) = self.states.get(next) else {
            self.unknown_state(next);
            return;
        };
        let needs_action = state.payload.is_some() && action.is_none();
        if row.states.contains(next) {
            self.error_at(next, format!("`{next}` is the state it is in: write `stay`"));
        } else if needs_action {
            self.error_at(next, format!("`{next}` holds data: write `do` and an action that returns it"));
        }
    }

    /// Follows every `goto` from the initial state, taking each guard to be true some day.
    fn reachable(&mut self, machine: &'m Machine) {
        let Some(initial) = machine.states.first().map(|state| &state.name) else { return };
        let mut reached = BTreeSet::from([initial]);
        loop {
            let before = reached.len();
            for row in machine.handlers.iter().flat_map(|handler| &handler.rows) {
                if row.states.iter().any(|state| reached.contains(state)) {
                    reached.extend(row.clauses.iter().filter_map(Clause::next));
                }
            }
            if reached.len() == before {
                break;
            }
        }
        for state in &machine.states {
            if !reached.contains(&state.name) {
                self.error_at(
                    &state.name,
                    format!("`{}` is unreachable: no way leads there from `{initial}`", state.name),
                );
            }
        }
    }

    fn unknown_state(&mut self, name: &Ident) {
        self.unknown_states = true;
        self.error_at(name, format!("no state is called `{name}`"));
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr;

    use expect_test::{Expect, expect};
    use proc_macro2::TokenStream;

    /// What is said of a machine: the line, what stands there, and the complaint.
    fn check(source: &str, expected: Expect) {
        let machine = TokenStream::from_str(source).expect("these are tokens");
        let said = match crate::compile(machine) {
            Ok(_) => "compiles".to_owned(),
            Err(errors) => {
                let tell = |error: syn::Error| {
                    let span = error.span();
                    let place = span.source_text().unwrap_or_default();
                    format!("{} {place}: {error}", span.start().line)
                };
                errors.into_iter().map(tell).collect::<Vec<_>>().join("\n")
            }
        };
        expected.assert_eq(&said);
    }

    #[test]
    fn a_whole_machine_compiles() {
        check(
            "machine m(Context) rows Row;
            states { A(Data), B, }
            events { X(u64), Y, }
            on X {
                in A: when f refuse \"no\"; when bare g do bare h goto B; do a::b stay;
                in B: never \"no\";
            }
            on Y { in A: goto B; in B: do c goto A; }",
            expect!["compiles"],
        );
    }

    #[test]
    fn every_state_meets_every_event() {
        check(
            "machine m(Context) rows Row;
            states { A, B, C, }
            events {
                X,
                Y,
                Z,
            }
            on X { in A: goto B; in B, C: stay; }
            on Y {
                in A: goto C;
                in B: stay;
            }",
            expect![[r#"
                9 Y: `C` has no row for `Y`
                6 Z: `A`, `B`, `C` have no row for `Z`"#]],
        );
    }

    #[test]
    fn names_are_declared() {
        check(
            "machine m(Context) rows Row;
            states { A, B, }
            events { X, }
            on X {
                in A: goto Bee;
                in B: stay;
                in Cee: stay;
            }
            on Wye { in A, B: stay; }",
            expect![[r#"
                7 Cee: no state is called `Cee`
                9 Wye: no event is called `Wye`
                5 Bee: no state is called `Bee`"#]],
        );
    }

    #[test]
    fn names_are_declared_once() {
        check(
            "machine m(Context) rows Row;
            states { A, B,
                A, }
            events { X,
                X(u64), }
            on X { in A: goto B; in B: stay; }",
            expect![[r#"
                3 A: there already is a state `A`
                5 X: there already is an event `X`"#]],
        );
    }

    #[test]
    fn a_pair_is_written_once() {
        check(
            "machine m(Context) rows Row;
            states { A, B, }
            events { X, Y, }
            on X {
                in A: goto B;
                in B,
                   A: stay;
                in B: stay;
            }
            on Y { in A, B: stay; }
            on X {
                in A: stay;
            }",
            expect![[r#"
                7 A: `A` already has a row for `X`
                8 B: `B` already has a row for `X`
                11 X: there already is an `on X`"#]],
        );
    }

    #[test]
    fn no_clause_stands_behind_an_unguarded_one() {
        check(
            "machine m(Context) rows Row;
            states { A, }
            events { X, }
            on X {
                in A:
                    do f stay;
                    when g stay;
                    do h stay;
            }",
            expect![[r#"
                7 when: never tried: a clause before it has no `when`
                8 do: never tried: a clause before it has no `when`"#]],
        );
    }

    #[test]
    fn the_last_clause_takes_what_is_left() {
        check(
            "machine m(Context) rows Row;
            states { A, }
            events { X, Y, }
            on X {
                in A: when f stay;
                      when a::g do h stay;
            }
            on Y {
                in A: when f refuse \"no\";
            }",
            expect![[r#"
                6 when: the last clause must have no `when`: what if not `a::g`?
                9 when: the last clause must have no `when`: what if not `f`?"#]],
        );
    }

    #[test]
    fn every_state_can_be_reached() {
        check(
            "machine m(Context) rows Row;
            states {
                A,
                B,
                C,
                /// Only from D, and D only from here.
                D,
                E,
            }
            events { X, }
            on X {
                in A: when f goto B; stay;
                in B: goto A;
                in C: goto A;
                in D: goto E;
                in E: goto D;
            }",
            expect![[r#"
                5 C: `C` is unreachable: no way leads there from `A`
                7 D: `D` is unreachable: no way leads there from `A`
                8 E: `E` is unreachable: no way leads there from `A`"#]],
        );
    }

    #[test]
    fn nothing_goes_where_it_is() {
        check(
            "machine m(Context) rows Row;
            states { A, B, C, }
            events { X, Y, }
            on X {
                in A: when f goto B; when g do h goto C;
                      goto A;
                in B, C:
                      goto C;
            }
            on Y { in A, B, C: stay; }",
            expect![[r#"
                6 A: `A` is the state it is in: write `stay`
                8 C: `C` is the state it is in: write `stay`"#]],
        );
    }

    #[test]
    fn a_state_with_data_is_built_by_an_action() {
        check(
            "machine m(Context) rows Row;
            states { A, B(Data), }
            events { X, }
            on X {
                in A:
                    goto B;
                in B: goto A;
            }",
            expect!["6 B: `B` holds data: write `do` and an action that returns it"],
        );
    }

    #[test]
    fn a_machine_is_not_empty() {
        check(
            "\nmachine m(Context) rows Row; states {} events {}",
            expect![[r#"
            2 m: `m` has no states
            2 m: `m` has no events
            2 m: `m` has no `on` blocks"#]],
        );
        check(
            "machine
            m(Context) rows Row; states { A, } events { X, }",
            expect![[r#"
                2 m: `m` has no `on` blocks
                2 X: `A` has no row for `X`"#]],
        );
    }

    #[test]
    fn what_does_not_read_ends_the_reading() {
        let clause = |clause: &str| {
            format!("machine m(Context) rows Row;\nstates {{ A, }}\nevents {{ X, }}\non X {{ in A:\n{clause}\n}}")
        };
        check(&clause("when f;"), expect!["5 ;: expected one of: `do`, `stay`, `goto`, `refuse`, `never`"]);
        check(&clause("do f;"), expect!["5 ;: expected `stay` or `goto`"]);
        check(&clause("do f refuse \"no\";"), expect!["5 refuse: expected `stay` or `goto`"]);
        check(&clause("refuse;"), expect!["5 ;: expected string literal"]);
        check(&clause("go B;"), expect!["5 go: expected one of: `when`, `do`, `stay`, `goto`, `refuse`, `never`"]);
        check(&clause("stay"), expect!["6 }: expected `;`"]);
        check(
            &clause(""),
            expect!["6 }: unexpected end of input, expected one of: `when`, `do`, `stay`, `goto`, `refuse`, `never`"],
        );
        check("machine m(Context);\nstates { A, }", expect!["1 ;: expected `rows`"]);
        check("machine m(Context) rows Row;\nevents { X, }", expect!["2 events: expected `states`"]);
        check("machine m(Context) rows Row; states {\nA { data: Data }, }", expect!["2 {: expected `,`"]);
        check("machine m(Context) rows Row; states { A(\nData, Data), }", expect!["2 ,: one type, no more"]);
        check(
            "#[derive(Clone)]\nmachine m(Context) rows Row;",
            expect!["1 #[derive(Clone)]: a machine has a doc comment and no other attributes"],
        );
    }
}
