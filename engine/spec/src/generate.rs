//! From a checked [`Machine`] to Rust: the enums, the match, and the table as rows and as a page.

use proc_macro2::{Ident, Span, TokenStream};
use quote::{quote, quote_spanned};
use syn::Type;
use syn::spanned::Spanned;

use crate::parse::{Call, Clause, Handler, Machine, Outcome, Variant};
use crate::table;

/// What stands in place of the invocation.
pub(crate) fn generate(machine: &Machine) -> TokenStream {
    let enums = enums(machine);
    let step = step(machine);
    let table = table(machine);
    quote! { #enums #step #table }
}

fn enums(machine: &Machine) -> TokenStream {
    let states = machine.states.iter().map(variant);
    let state_names = names(&machine.states);
    let state_attributes = &machine.state_attributes;

    let events = machine.events.iter().map(variant);
    let event_names = names(&machine.events);
    let event_attributes = &machine.event_attributes;
    let generics = &machine.event_generics;
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();

    // Not every user asks for names, and where they do it may be in a test only.
    quote! {
        #(#state_attributes)*
        pub(crate) enum State { #(#states),* }

        #[allow(dead_code)]
        impl State {
            /// As the table calls it.
            pub(crate) const fn name(&self) -> &'static str {
                match self { #(#state_names),* }
            }
        }

        #(#event_attributes)*
        pub(crate) enum Event #impl_generics #where_clause { #(#events),* }

        #[allow(dead_code)]
        impl #impl_generics Event #type_generics #where_clause {
            /// As the table calls it.
            pub(crate) const fn name(&self) -> &'static str {
                match self { #(#event_names),* }
            }
        }
    }
}

fn variant(Variant { attributes, name, payload }: &Variant) -> TokenStream {
    let payload = payload.iter();
    quote! { #(#attributes)* #name #((#payload))* }
}

fn names(variants: &[Variant]) -> impl Iterator<Item = TokenStream> {
    variants.iter().map(|Variant { name, .. }| {
        let text = name.to_string();
        quote! { Self::#name { .. } => #text }
    })
}

/// The variables of `step`. They belong to the macro: no guard or action can be mistaken for them.
struct Variables {
    state: Ident,
    data: Ident,
    event: Ident,
    cx: Ident,
    next: Ident,
}

impl Variables {
    fn new() -> Self {
        let new = |name| Ident::new(name, Span::mixed_site());
        Self { state: new("state"), data: new("data"), event: new("event"), cx: new("cx"), next: new("next") }
    }
}

fn step(machine: &Machine) -> TokenStream {
    let variables = Variables::new();
    let Variables { state, event, cx, .. } = &variables;
    let docs = &machine.docs;
    let context = &machine.context;
    let (impl_generics, type_generics, where_clause) = machine.event_generics.split_for_impl();
    let arms = arms(machine, &variables);
    // A tuple rather than a match in a match: a payload is then touched by the arm that wants it, and by no other.
    quote! {
        #(#docs)*
        pub(crate) fn step #impl_generics (
            #state: &mut State,
            #event: Event #type_generics,
            #cx: &mut #context,
        ) #where_clause {
            match (&mut *#state, #event) { #(#arms)* }
        }
    }
}

/// One for each event and state, in the order of the table.
fn arms(machine: &Machine, variables: &Variables) -> Vec<TokenStream> {
    let mut arms = Vec::new();
    let mut index = 0;
    for Handler { event, rows } in &machine.handlers {
        for row in rows {
            for state in &row.states {
                let has_event = payload_of(&machine.events, event).is_some();
                let has_data = payload_of(&machine.states, state).is_some();
                let place = Place { machine, event, state, has_event, has_data, variables };
                arms.push(place.arm(&row.clauses, index));
                index += row.clauses.len();
            }
        }
    }
    arms
}

fn payload_of<'m>(variants: &'m [Variant], name: &Ident) -> Option<&'m Type> {
    variants.iter().find(|variant| variant.name == *name)?.payload.as_ref()
}

fn payload_pattern(has_payload: bool, is_used: bool, variable: &Ident) -> TokenStream {
    match (has_payload, is_used) {
        (false, _) => quote! {},
        (true, false) => quote! { (_) },
        (true, true) => quote! { (#variable) },
    }
}

/// One pair of the table, and what is at hand there.
struct Place<'m> {
    machine: &'m Machine,
    event: &'m Ident,
    state: &'m Ident,
    has_event: bool,
    has_data: bool,
    variables: &'m Variables,
}

impl Place<'_> {
    /// `index` is where the first of the clauses stands in `ROWS`.
    fn arm(&self, clauses: &[Clause], index: usize) -> TokenStream {
        let Self { event, state, has_event, has_data, variables, .. } = self;
        let calls = || clauses.iter().flat_map(Clause::calls);
        let data = payload_pattern(*has_data, calls().any(|call| !call.bare), &variables.data);
        let payload = payload_pattern(*has_event, calls().next().is_some(), &variables.event);
        let clauses = (index..).zip(clauses).map(|(index, clause)| self.clause(clause, index));
        quote! { (State::#state #data, Event::#event #payload) => #(#clauses)*, }
    }

    /// `if guard { .. } else` or, for the last one, `{ .. }`: written one behind the other they are an expression.
    fn clause(&self, clause: &Clause, index: usize) -> TokenStream {
        let body = self.body(clause, index);
        match &clause.guard {
            Some(guard) => {
                let guard = self.guard(guard);
                quote! { if #guard { #body } else }
            }
            None => quote! { { #body } },
        }
    }

    fn body(&self, clause: &Clause, index: usize) -> TokenStream {
        let Variables { state, cx, next: built, .. } = self.variables;
        let taken = quote! { #cx.taken(#index); };
        let rest = match &clause.outcome {
            Outcome::Refuse { .. } | Outcome::Stay { action: None } => quote! {},
            Outcome::Stay { action: Some(action) } => self.action(action),
            Outcome::Goto { action, next } => {
                let action = action.as_ref().map(|action| self.action(action));
                // What the action has to give is said where it is called: there, and not at the state, is the error.
                match payload_of(&self.machine.states, next) {
                    Some(payload) => quote! { let #built: #payload = #action; *#state = State::#next(#built); },
                    None => quote! { { #action } *#state = State::#next; },
                }
            }
            Outcome::Never { reason } => {
                let Self { machine, event, state: current, .. } = self;
                let message = format!("{}: `{event}` in state `{current}`: {}", machine.name, reason.value());
                // A plain text, where `panic!("{}", ..)` would set up formatting in every step's frame.
                let message = message.replace('{', "{{").replace('}', "}}");
                quote! { ::core::panic!(#message) }
            }
        };
        quote! { #taken #rest }
    }

    fn guard(&self, Call { path, bare }: &Call) -> TokenStream {
        let Variables { data, event, cx, .. } = self.variables;
        let data = (self.has_data && !bare).then(|| quote! { &*#data, });
        let event = self.has_event.then(|| quote! { &#event, });
        // The span of the table's own word: a function of another type is an error there.
        quote_spanned! { path.span()=> #path(#data #event &*#cx) }
    }

    fn action(&self, Call { path, bare }: &Call) -> TokenStream {
        let Variables { data, event, cx, .. } = self.variables;
        let data = (self.has_data && !bare).then(|| quote! { #data, });
        let event = self.has_event.then(|| quote! { #event, });
        quote_spanned! { path.span()=> #path(#data #event #cx) }
    }
}

/// `ROWS` and `TABLE`.
fn table(machine: &Machine) -> TokenStream {
    let row_type = &machine.row;
    let rows = table::rows(machine);
    let count = rows.len();
    let name = machine.name.to_string();
    let rows = rows.iter().map(|row| {
        let table::Row { event, state, guard, action, next, refusal } = row;
        quote! {
            #row_type {
                machine: #name,
                event: #event,
                state: #state,
                guard: #guard,
                action: #action,
                next: #next,
                refusal: #refusal,
            }
        }
    });
    let page = table::page(machine);
    quote! {
        /// Every clause for every state it stands for, in the order of the table.
        #[allow(dead_code)]
        pub(crate) const ROWS: [#row_type; #count] = [#(#rows),*];

        /// The machine as a page of Markdown.
        #[allow(dead_code)]
        pub(crate) const TABLE: &str = #page;
    }
}
