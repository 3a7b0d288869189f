//! The protocol, told by scripts: `testdata/*.txt` are played on a little cell whose network, disks and clock move only
//! when the script says so, and what the replicas do is compared with what the script expects.
//!
//! `UPDATE_EXPECT=1 cargo test -p synod-paxos --test scripts` rewrites what is expected; the diff is read like code.
//! What commands there are, see `interpreter`. A script fails, whatever it expects, when a slot gets two values, a
//! ballot proposes two at one slot, a ticket does not end exactly once, two replicas hold a lease at once, or one may
//! answer reads that lacks what was acknowledged.
//!
//! What no script shows is kept as well: `testdata/rows_never_taken.txt` names the rows of the machines' tables that no
//! script takes, so that a new row shows up there.

mod interpreter;

use std::fs;
use std::path::{Path, PathBuf};

use interpreter::{Interpreter, Taken};
use synod_paxos::{Configuration, Incarnation, Instant, Recovered, Replica, ReplicaId, Row, Settings};

/// How a line of output begins that tells of a broken rule.
const BROKEN: &str = "BROKEN: ";

/// Not a script.
const NEVER_TAKEN: &str = "rows_never_taken.txt";

#[test]
fn scripts_tell_the_protocol() {
    let scripts = scripts_in("tests/testdata");
    assert!(!scripts.is_empty(), "there are scripts");
    let mut taken = Taken::new();
    let mut broken = Vec::new();
    for path in &scripts {
        match play(path) {
            Ok((told, by_script)) => {
                if told.lines().any(|line| line.starts_with(BROKEN)) {
                    broken.push(format!("{}: a rule is broken:\n{told}", path.display()));
                }
                interpreter::add(&mut taken, &by_script);
                expect_test::expect_file![path].assert_eq(&told);
            }
            Err(error) => broken.push(error),
        }
    }
    assert!(broken.is_empty(), "{}", broken.join("\n"));
    expect_test::expect_file![format!("testdata/{NEVER_TAKEN}")].assert_eq(&never_taken(&taken));
}

/// The schedule of `paper.md` 4.2, under the rule that the paper has for a replica that lost its disk.
#[cfg(feature = "planted")]
#[test]
fn the_papers_own_rule_chooses_two_values() {
    synod_paxos::planted::plant(Some(synod_paxos::planted::Bug::P11VotesAfterOneInstance));
    let told = play(Path::new("tests/testdata/rejoin_counts_no_old_promise.txt"));
    synod_paxos::planted::plant(None);
    let (told, _) = told.expect("the script can be played");
    assert!(told.contains("BROKEN: slot 2 is b at 1 and w at 4"), "{told}");
}

/// The rows that no script takes.
fn never_taken(taken: &[u64]) -> String {
    let settings = Settings::new(ReplicaId(1), Incarnation(1), 1);
    let any = Replica::new(settings, &Recovered::nothing(Configuration::of(&[1])), Instant(0));
    let rows: Vec<&Row> = any.counts().rows().map(|(row, _)| row).collect();
    // What cannot happen is not missed.
    let missed: Vec<_> = rows.iter().zip(taken).filter(|(row, taken)| **taken == 0 && !is_never(row)).collect();
    let possible = rows.iter().filter(|row| !is_never(row)).count();
    let mut told = format!("{} of {possible} rows are taken by some script. Never:\n", possible - missed.len());
    for (row, _) in missed {
        told += &format!("{row}\n");
    }
    told
}

fn is_never(row: &Row) -> bool {
    row.refusal.starts_with("never: ")
}

fn scripts_in(folder: &str) -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut scripts: Vec<_> = entries
        .map(|entry| entry.expect("the folder can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt") && !path.ends_with(NEVER_TAKEN))
        .collect();
    scripts.sort();
    scripts
}

/// Plays a script; gives it back with what was told in place of what was expected, and the rows it took.
fn play(path: &Path) -> Result<(String, Taken), String> {
    let script = fs::read_to_string(path).expect("the script can be read");
    let mut interpreter = Interpreter::new();
    let mut told = String::new();
    let mut commands: Vec<&str> = Vec::new();
    let mut lines = script.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        if line == "----" {
            // What was expected so far, up to the blank line that ends it.
            lines.by_ref().map(|(_, line)| line).take_while(|line| !line.is_empty()).for_each(drop);
            let at = |error| format!("{}, line {}: {error}", path.display(), number + 1);
            let output = interpreter.run(&commands).map_err(at)?;
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
    Ok((told, interpreter.taken()))
}
