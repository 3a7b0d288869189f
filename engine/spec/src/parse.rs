//! From tokens to a [`Machine`]: the grammar, and nothing about what a machine means.
//!
//! The first token that does not fit ends the reading, with one error. What reads well but means nothing is the
//! business of [`crate::check`], which reports all it finds.

use proc_macro2::Span;
use syn::parse::{Lookahead1, Parse, ParseStream, Result};
use syn::punctuated::Punctuated;
use syn::{Attribute, Error, Generics, Ident, LitStr, Path, Token, Type, braced, parenthesized};

mod keyword {
    syn::custom_keyword!(machine);
    syn::custom_keyword!(rows);
    syn::custom_keyword!(states);
    syn::custom_keyword!(events);
    syn::custom_keyword!(on);
    syn::custom_keyword!(when);
    syn::custom_keyword!(bare);
    syn::custom_keyword!(stay);
    syn::custom_keyword!(goto);
    syn::custom_keyword!(refuse);
    syn::custom_keyword!(never);
}

/// One machine, as it was written.
pub(crate) struct Machine {
    /// Its doc comment.
    pub docs: Vec<Attribute>,
    pub name: Ident,
    /// What guards and actions are lent: `&Context` and `&mut Context`.
    pub context: Type,
    /// The struct that a row of the table is told as.
    pub row: Path,
    /// Put on `enum State`.
    pub state_attributes: Vec<Attribute>,
    /// The first one is the initial state.
    pub states: Vec<Variant>,
    /// Put on `enum Event`.
    pub event_attributes: Vec<Attribute>,
    pub event_generics: Generics,
    pub events: Vec<Variant>,
    pub handlers: Vec<Handler>,
}

/// A state or an event.
pub(crate) struct Variant {
    pub attributes: Vec<Attribute>,
    pub name: Ident,
    pub payload: Option<Type>,
}

/// `on Event { .. }`
pub(crate) struct Handler {
    pub event: Ident,
    pub rows: Vec<Row>,
}

/// `in State, State: clause; clause;`
pub(crate) struct Row {
    pub states: Vec<Ident>,
    /// Never empty.
    pub clauses: Vec<Clause>,
}

/// `when guard do action goto State;`
pub(crate) struct Clause {
    /// Where it begins.
    pub span: Span,
    pub guard: Option<Call>,
    pub outcome: Outcome,
}

impl Clause {
    /// The state it leads to, if it leaves.
    pub(crate) fn next(&self) -> Option<&Ident> {
        match &self.outcome {
            Outcome::Goto { next, .. } => Some(next),
            Outcome::Stay { .. } | Outcome::Refuse { .. } | Outcome::Never { .. } => None,
        }
    }

    /// Its guard and its action.
    pub(crate) fn calls(&self) -> impl Iterator<Item = &Call> {
        self.guard.iter().chain(self.action())
    }

    /// What it does on the way.
    pub(crate) fn action(&self) -> Option<&Call> {
        match &self.outcome {
            Outcome::Stay { action } | Outcome::Goto { action, .. } => action.as_ref(),
            Outcome::Refuse { .. } | Outcome::Never { .. } => None,
        }
    }
}

/// What a clause does once it was picked.
pub(crate) enum Outcome {
    Stay { action: Option<Call> },
    Goto { action: Option<Call>, next: Ident },
    Refuse { reason: LitStr },
    Never { reason: LitStr },
}

/// A guard or an action, by name.
pub(crate) struct Call {
    pub path: Path,
    /// It is not shown the state's payload, so that it can serve states with different ones.
    pub bare: bool,
}

impl Call {
    /// As it was written, without `bare`.
    pub(crate) fn name(&self) -> String {
        let leading = if self.path.leading_colon.is_some() { "::" } else { "" };
        let segments: Vec<_> = self.path.segments.iter().map(|segment| segment.ident.to_string()).collect();
        format!("{leading}{}", segments.join("::"))
    }
}

impl Parse for Machine {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let docs = input.call(Attribute::parse_outer)?;
        if let Some(other) = docs.iter().find(|attribute| !attribute.path().is_ident("doc")) {
            return Err(Error::new_spanned(other, "a machine has a doc comment and no other attributes"));
        }
        input.parse::<keyword::machine>()?;
        let name = input.parse()?;
        let content;
        parenthesized!(content in input);
        let context = content.parse()?;
        end_of(&content)?;
        input.parse::<keyword::rows>()?;
        let row = input.call(Path::parse_mod_style)?;
        input.parse::<Token![;]>()?;

        let state_attributes = input.call(Attribute::parse_outer)?;
        input.parse::<keyword::states>()?;
        let states = variants(input)?;

        let event_attributes = input.call(Attribute::parse_outer)?;
        input.parse::<keyword::events>()?;
        let event_generics = input.parse()?;
        let events = variants(input)?;

        let mut handlers = Vec::new();
        while !input.is_empty() {
            handlers.push(input.parse()?);
        }
        Ok(Self {
            docs,
            name,
            context,
            row,
            state_attributes,
            states,
            event_attributes,
            event_generics,
            events,
            handlers,
        })
    }
}

fn variants(input: ParseStream<'_>) -> Result<Vec<Variant>> {
    let content;
    braced!(content in input);
    let variants = Punctuated::<Variant, Token![,]>::parse_terminated(&content)?;
    Ok(variants.into_iter().collect())
}

impl Parse for Variant {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let attributes = input.call(Attribute::parse_outer)?;
        let name = input.parse()?;
        let payload = if input.peek(syn::token::Paren) {
            let content;
            parenthesized!(content in input);
            let payload = content.parse()?;
            end_of(&content)?;
            Some(payload)
        } else {
            None
        };
        Ok(Self { attributes, name, payload })
    }
}

impl Parse for Handler {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        input.parse::<keyword::on>()?;
        let event = input.parse()?;
        let content;
        braced!(content in input);
        let mut rows = Vec::new();
        while !content.is_empty() {
            rows.push(content.parse()?);
        }
        Ok(Self { event, rows })
    }
}

impl Parse for Row {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        input.parse::<Token![in]>()?;
        let states = Punctuated::<Ident, Token![,]>::parse_separated_nonempty(input)?.into_iter().collect();
        input.parse::<Token![:]>()?;
        let mut clauses = vec![input.parse()?];
        while !input.is_empty() && !input.peek(Token![in]) {
            clauses.push(input.parse()?);
        }
        Ok(Self { states, clauses })
    }
}

impl Parse for Clause {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let span = input.span();
        let mut lookahead = input.lookahead1();
        let guard = if lookahead.peek(keyword::when) {
            input.parse::<keyword::when>()?;
            let guard = input.parse()?;
            lookahead = input.lookahead1();
            Some(guard)
        } else {
            None
        };
        let outcome = outcome(input, lookahead)?;
        input.parse::<Token![;]>()?;
        Ok(Self { span, guard, outcome })
    }
}

/// `lookahead` is at the outcome; it may know what else could have stood here, for the message.
fn outcome<'i>(input: ParseStream<'i>, mut lookahead: Lookahead1<'i>) -> Result<Outcome> {
    let action = if lookahead.peek(Token![do]) {
        input.parse::<Token![do]>()?;
        let action = input.parse()?;
        lookahead = input.lookahead1();
        Some(action)
    } else {
        None
    };
    if lookahead.peek(keyword::stay) {
        input.parse::<keyword::stay>()?;
        Ok(Outcome::Stay { action })
    } else if lookahead.peek(keyword::goto) {
        input.parse::<keyword::goto>()?;
        Ok(Outcome::Goto { action, next: input.parse()? })
    } else if action.is_some() {
        // To refuse is to do nothing: it takes no action.
        Err(lookahead.error())
    } else if lookahead.peek(keyword::refuse) {
        input.parse::<keyword::refuse>()?;
        Ok(Outcome::Refuse { reason: input.parse()? })
    } else if lookahead.peek(keyword::never) {
        input.parse::<keyword::never>()?;
        Ok(Outcome::Never { reason: input.parse()? })
    } else {
        Err(lookahead.error())
    }
}

impl Parse for Call {
    fn parse(input: ParseStream<'_>) -> Result<Self> {
        let bare = input.parse::<Option<keyword::bare>>()?.is_some();
        Ok(Self { path: input.call(Path::parse_mod_style)?, bare })
    }
}

/// There is nothing left within the parentheses.
fn end_of(content: ParseStream<'_>) -> Result<()> {
    if content.is_empty() { Ok(()) } else { Err(content.error("one type, no more")) }
}
