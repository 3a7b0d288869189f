#![doc = include_str!("../docs/language.md")]

use proc_macro::TokenStream;

mod check;
#[cfg(test)]
mod cost;
mod generate;
mod parse;
mod table;

/// Declares one state machine: see the [crate]'s page for the language.
#[proc_macro]
pub fn machine(input: TokenStream) -> TokenStream {
    compile(input.into()).unwrap_or_else(syn::Error::into_compile_error).into()
}

fn compile(input: proc_macro2::TokenStream) -> syn::Result<proc_macro2::TokenStream> {
    let machine = syn::parse2(input)?;
    check::check(&machine)?;
    Ok(generate::generate(&machine))
}
