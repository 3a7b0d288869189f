//! The table told to people and to counters: as rows, and as a page of Markdown.

use syn::{Attribute, Expr, Lit, Meta};

use crate::parse::{Call, Clause, Machine, Outcome, Variant};

/// One clause for one state: the fields of the user's row, without the machine's name.
pub(crate) struct Row {
    pub event: String,
    pub state: String,
    /// Empty: always.
    pub guard: String,
    /// Empty: nothing.
    pub action: String,
    /// The state itself, if it stays or refuses.
    pub next: String,
    /// Empty, or begins with `refuse: ` or `never: `.
    pub refusal: String,
}

/// In the order of the table, each row once for each of its states. [`crate::generate`] numbers clauses alike.
pub(crate) fn rows(machine: &Machine) -> Vec<Row> {
    let mut rows = Vec::new();
    for handler in &machine.handlers {
        for row in &handler.rows {
            for state in &row.states {
                for clause in &row.clauses {
                    rows.push(Row {
                        event: handler.event.to_string(),
                        state: state.to_string(),
                        guard: clause.guard.as_ref().map(Call::name).unwrap_or_default(),
                        action: clause.action().map(Call::name).unwrap_or_default(),
                        next: clause.next().unwrap_or(state).to_string(),
                        refusal: refusal(clause),
                    });
                }
            }
        }
    }
    rows
}

fn refusal(clause: &Clause) -> String {
    match &clause.outcome {
        Outcome::Stay { .. } | Outcome::Goto { .. } => String::new(),
        Outcome::Refuse { reason } => format!("refuse: {}", reason.value()),
        Outcome::Never { reason } => format!("never: {}", reason.value()),
    }
}

/// The machine's doc, its states, its events, its table.
pub(crate) fn page(machine: &Machine) -> String {
    let mut page = format!("# {}\n", machine.name);
    let docs = doc(&machine.docs);
    if !docs.is_empty() {
        page += &format!("\n{docs}\n");
    }
    page += "\n| state | |\n|---|---|\n";
    for (index, state) in machine.states.iter().enumerate() {
        page += &declaration(state, if index == 0 { " (initial)" } else { "" });
    }
    page += "\n| event | |\n|---|---|\n";
    for event in &machine.events {
        page += &declaration(event, "");
    }
    page += "\n| event | state | when | does | next |\n|---|---|---|---|---|\n";
    for Row { event, state, guard, action, next, refusal } in rows(machine) {
        let next = if !refusal.is_empty() {
            format!("*{}*", cell(&refusal))
        } else if next == state {
            "stay".to_owned()
        } else {
            next
        };
        page += &format!("| {event} | {state} | {guard} | {action} | {next} |\n");
    }
    page
}

fn declaration(Variant { attributes, name, .. }: &Variant, note: &str) -> String {
    format!("| {name}{note} | {} |\n", cell(&doc(attributes)))
}

/// A doc comment as text.
fn doc(attributes: &[Attribute]) -> String {
    let mut text = String::new();
    for attribute in attributes {
        if let Meta::NameValue(pair) = &attribute.meta
            && pair.path.is_ident("doc")
            && let Expr::Lit(literal) = &pair.value
            && let Lit::Str(line) = &literal.lit
        {
            text += line.value().trim();
            text.push('\n');
        }
    }
    text.trim().to_owned()
}

/// Text that keeps to one cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").lines().collect::<Vec<_>>().join(" ")
}
