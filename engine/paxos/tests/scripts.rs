//! The protocol, told by scripts: `testdata/*.txt` are played on a little cell whose network, disks and clock move only
//! when the script says so, and what the replicas do is compared with what the script expects.
//!
//! `UPDATE_EXPECT=1 cargo test -p synod-paxos --test scripts` rewrites what is expected; the diff is read like code.
//! What commands there are, see `interpreter`. A script fails, whatever it expects, when a slot gets two values, a
//! ballot proposes two at one slot, or a ticket does not end exactly once.

mod interpreter;

use std::fs;
use std::path::{Path, PathBuf};

/// How a line of output begins that tells of a broken rule.
const BROKEN: &str = "BROKEN: ";

#[test]
fn scripts_tell_the_protocol() {
    let scripts = scripts_in("tests/testdata");
    assert!(!scripts.is_empty(), "there are scripts");
    for path in scripts {
        let told = play(&path);
        assert!(!told.lines().any(|line| line.starts_with(BROKEN)), "{}: a rule is broken:\n{told}", path.display());
        expect_test::expect_file![path].assert_eq(&told);
    }
}

fn scripts_in(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut scripts: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    scripts.sort();
    scripts
}

/// Plays a script; gives it back with what was told in place of what was expected.
fn play(path: &Path) -> String {
    let script = fs::read_to_string(path).expect("the script can be read");
    let mut interpreter = interpreter::Interpreter::new();
    let mut told = String::new();
    let mut commands: Vec<&str> = Vec::new();
    let mut lines = script.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line == "----" {
            // What was expected so far, up to the blank line that ends it.
            lines.by_ref().map(|(_, line)| line).take_while(|line| !line.is_empty()).for_each(drop);
            let output = interpreter
                .run(&commands)
                .unwrap_or_else(|error| panic!("{}, line {}: {error}", path.display(), number + 1));
            commands.clear();
            told.push_str("----\n");
            told.push_str(&output);
            told.push('\n');
        } else {
            if !line.is_empty() && !line.starts_with('#') {
                commands.push(line);
            }
            told.push_str(line);
            told.push('\n');
        }
    }
    assert!(commands.is_empty(), "{}: the last block has no ----", path.display());
    // One blank line ends every block, the last one is the end of the file.
    while told.ends_with("\n\n") {
        told.pop();
    }
    told
}
