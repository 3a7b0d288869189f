//! A machine costs what the same `match` costs by hand: not one instruction more.
//!
//! `examples/cost.rs` holds both. Here it is compiled, with what [`crate::compile`] makes of its table in the place of
//! the table, and the two steps are counted in the assembly. Counting needs no tool but the compiler that is building
//! this, and gives the same each time; how many instructions a run executes is on the language's page.

use std::path::PathBuf;
use std::process::Command;
use std::str::FromStr;
use std::{env, fs, process, thread};

use proc_macro2::{Group, TokenStream, TokenTree};

const EXAMPLE: &str = include_str!("../examples/cost.rs");

#[test]
fn a_table_costs_what_its_match_costs() {
    let (by_hand, by_table) = compare(EXAMPLE);
    assert!(by_table <= by_hand, "{by_table} instructions, where {by_hand} do by hand");
}

#[test]
fn telling_nobody_which_row_was_taken_costs_nothing() {
    let counting = "self.taken[row] += 1;";
    assert!(EXAMPLE.contains(counting), "the example counts");
    let mut source = EXAMPLE.replace(counting, "");
    // By hand, not even the call is left.
    let mut row = 0;
    while source.contains(&format!("cx.taken({row})")) {
        source = source.replace(&format!("=> cx.taken({row}),"), "=> {}");
        source = source.replace(&format!("cx.taken({row});"), "");
        row += 1;
    }
    assert_eq!(row, 36, "every row was counted by hand");
    let (by_hand, by_table) = compare(&source);
    assert!(by_table <= by_hand, "{by_table} instructions, where {by_hand} do by hand");
}

/// The instructions of the machine by hand, and of the machine as a table.
fn compare(example: &str) -> (usize, usize) {
    let source = expand(TokenStream::from_str(example).expect("the example is Rust"));
    let assembly = assembly(&source.to_string());
    let by_hand = instructions(&assembly, "step_by_hand");
    let by_table = instructions(&assembly, "step_by_table");
    for count in [by_hand, by_table] {
        assert!(count > 100, "{count} instructions: that is not the whole machine");
    }
    (by_hand, by_table)
}

/// Puts Rust in the place of each machine, as the compiler would.
fn expand(tokens: TokenStream) -> TokenStream {
    let mut expanded: Vec<TokenTree> = Vec::new();
    for token in tokens {
        let TokenTree::Group(group) = token else {
            expanded.push(token);
            continue;
        };
        let path = [":", "machine", "!"];
        let is_machine = expanded.len() >= 5 && expanded[expanded.len() - 3..].iter().map(ToString::to_string).eq(path);
        if is_machine {
            // With `synod_spec::`.
            expanded.truncate(expanded.len() - 5);
            expanded.extend(crate::compile(group.stream()).expect("the example compiles"));
        } else {
            expanded.push(Group::new(group.delimiter(), expand(group.stream())).into());
        }
    }
    expanded.into_iter().collect()
}

fn assembly(source: &str) -> String {
    // Tests run beside each other, in one process or in several.
    let name = format!("synod-spec-cost-{}-{:?}", process::id(), thread::current().id());
    let directory = Directory(env::temp_dir().join(name));
    fs::create_dir_all(&directory.0).expect("there is room for temporary files");
    let input = directory.0.join("cost.rs");
    let output = directory.0.join("cost.s");
    fs::write(&input, source).expect("there is room for temporary files");
    let compiler = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let status = Command::new(compiler)
        .args([
            "--edition=2024",
            "--cap-lints=allow",
            "--emit=asm",
            "-Copt-level=3",
            "-Ccodegen-units=1",
            "-Cpanic=abort",
        ])
        .arg("-o")
        .arg(&output)
        .arg(&input)
        .status()
        .expect("the compiler that builds this can be run");
    assert!(status.success(), "the expanded example compiles");
    fs::read_to_string(output).expect("the compiler wrote its output")
}

/// Removed in the end.
struct Directory(PathBuf);

impl Drop for Directory {
    fn drop(&mut self) {
        // What is left of a failed removal is a few kilobytes in the system's folder for such.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// How many instructions a function has. The two are never merged into one: their panics name different lines.
fn instructions(assembly: &str, function: &str) -> usize {
    assembly
        .lines()
        .skip_while(|line| !(line.contains(function) && line.ends_with(':')))
        .take_while(|line| !line.contains(".cfi_endproc"))
        .filter(|line| line.starts_with('\t') && !line.trim_start().starts_with(['.', '#']))
        .count()
}
