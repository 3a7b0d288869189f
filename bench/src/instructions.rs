//! `synod-bench instructions`: how many instructions a command takes, part by part ([`crate::path`]).
//!
//! Counted by valgrind's callgrind, so the figures are the same on a noisy machine, to a hundredth. They say nothing of cache
//! misses and of the kernel, and are no times: they show that code became longer, which times on such a machine do not.
//!
//! Each part runs in a process of its own under valgrind, which collects only inside `counted`: what comes before it, the first
//! rounds among them, in which buffers grow, is not counted. The figures kept are in `docs/instructions.md`, a table for each
//! build: the one that `.ci/run` makes for the tests, and the release build. A test compares those of the first, and fails at a
//! rise of over 5 %; `--write` keeps new ones, so that the commit that raises them says so.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, ensure};
use clap::Args;

use crate::path::{PARTS, Part};

/// Count instructions.
#[derive(Args, Clone, Debug)]
pub struct InstructionsOptions {
    /// Keep the figures in this page, in the table of this build
    #[arg(long, value_name = "FILE", conflicts_with = "check")]
    pub write: Option<PathBuf>,
    /// Compare with the figures kept in this page; fail at a rise of over 5 %
    #[arg(long, value_name = "FILE")]
    pub check: Option<PathBuf>,
}

/// One part, to be counted.
#[derive(Args, Clone, Debug)]
pub struct PartOptions {
    /// Which.
    pub name: String,
    /// Commands in a batch.
    pub commands: u64,
    /// How many batches.
    pub rounds: u64,
}

/// Batches of so many commands: alone, and as under load.
pub const BATCHES: [u64; 2] = [1, 50];
/// Commands that are counted, and rounds before them that are not.
const COMMANDS: u64 = 2_000;
const ROUNDS_BEFORE: u64 = 20;
/// A part may take so much more than what is kept.
const RISE_MAX: f64 = 0.05;

/// Instructions a command, for a batch of each size.
#[derive(Clone, Debug, PartialEq)]
pub struct Count {
    /// The part.
    pub part: String,
    /// In the order of [`BATCHES`].
    pub per_command: [f64; BATCHES.len()],
}

/// Counts, prints, and keeps or compares.
pub fn main(options: &InstructionsOptions) -> anyhow::Result<ExitCode> {
    ensure!(has_valgrind(), "valgrind is not installed (apt-get install valgrind)");
    let counts = count_all(&std::env::current_exe().context("finding this binary")?)?;
    print!("{}", table(&counts));
    if let Some(path) = &options.write {
        let page = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let page = replaced(&page, &build()?, &counts);
        std::fs::write(path, page).with_context(|| format!("writing {}", path.display()))?;
    }
    let Some(path) = &options.check else { return Ok(ExitCode::SUCCESS) };
    let page = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let kept = kept(&page, &build()?).with_context(|| format!("{} has no table of this build", path.display()))?;
    let rises = rises(&kept, &counts);
    for rise in &rises {
        eprintln!("synod-bench: {rise}");
    }
    Ok(if rises.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Whether it can be counted here.
pub fn has_valgrind() -> bool {
    Command::new("valgrind").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// What the figures depend on beside our code: optimisation, and the compiler. To be found as a heading in the page.
pub fn build() -> anyhow::Result<String> {
    let output = Command::new("rustc").arg("--version").output().context("asking rustc for its version")?;
    let version = String::from_utf8(output.stdout)?;
    let version = version.split(' ').nth(1).context("the version of rustc")?;
    Ok(format!("{} build, rustc {version}", if cfg!(debug_assertions) { "Tests'" } else { "Release" }))
}

/// Counts every part. `bench` is this program.
pub fn count_all(bench: &Path) -> anyhow::Result<Vec<Count>> {
    let mut counts = Vec::new();
    for (part, _) in PARTS {
        let mut per_command = [0.0; BATCHES.len()];
        for (figure, commands) in per_command.iter_mut().zip(BATCHES) {
            let rounds = COMMANDS / commands;
            *figure = count(bench, part, commands, rounds)? as f64 / COMMANDS as f64;
        }
        counts.push(Count { part: part.to_owned(), per_command });
    }
    Ok(counts)
}

fn count(bench: &Path, part: &str, commands: u64, rounds: u64) -> anyhow::Result<u64> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--toggle-collect=*instructions*counted*"])
        .arg(bench)
        .args(["instructions-part", part, &commands.to_string(), &rounds.to_string()])
        .output()
        .context("starting valgrind")?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{part} under valgrind: {}: {said}", output.status);
    let collected = said.lines().find_map(|line| line.split("Collected :").nth(1));
    let collected: u64 = collected.context("valgrind says nothing of what it collected")?.trim().parse()?;
    // So that it cannot have counted nothing, or one round only.
    ensure!(collected > 10 * commands * rounds, "{part}: only {collected} instructions were counted: {said}");
    Ok(collected)
}

/// Runs one part so often, inside `counted`, which valgrind knows by its name.
pub fn run_part(options: &PartOptions) -> anyhow::Result<()> {
    let make = PARTS.iter().find(|(name, _)| *name == options.name).context("no such part")?.1;
    let mut part = make(options.commands);
    for _ in 0..ROUNDS_BEFORE {
        part.prepare();
        part.run();
    }
    for _ in 0..options.rounds {
        part.prepare();
        counted(part.as_mut());
    }
    Ok(())
}

/// What valgrind collects: it knows this function by its name.
#[inline(never)]
fn counted(part: &mut dyn Part) {
    part.run();
    // Something behind the call, so that it is not made a jump out of here.
    std::hint::black_box(());
}

/// The table of the page.
fn table(counts: &[Count]) -> String {
    let mut text = format!("| part | alone | of {} |\n|---|---:|---:|\n", BATCHES[1]);
    for Count { part, per_command: [alone, many] } in counts {
        writeln!(text, "| {part} | {alone:.0} | {many:.0} |").expect("a string grows");
    }
    text
}

/// The figures kept for a build.
pub fn kept(page: &str, build: &str) -> Option<Vec<Count>> {
    let section = page.split("\n## ").find(|section| section.lines().next() == Some(build))?;
    let rows = section.lines().filter_map(|line| {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, part, alone, many, _] = cells[..] else { return None };
        Some(Count { part: part.to_owned(), per_command: [alone.parse().ok()?, many.parse().ok()?] })
    });
    Some(rows.collect())
}

/// The page with other figures for a build: in place of those of the same kind, whatever the compiler, or at its end.
fn replaced(page: &str, build: &str, counts: &[Count]) -> String {
    let kind = build.split(',').next().unwrap_or(build);
    let section = format!("{build}\n\n{}", table(counts));
    let mut sections: Vec<String> =
        page.trim_end().split("\n## ").map(|section| format!("{}\n", section.trim_end())).collect();
    match sections.iter_mut().find(|section| section.starts_with(kind)) {
        Some(old) => *old = section,
        None => sections.push(section),
    }
    sections.join("\n## ")
}

/// What takes more than is kept, or is not kept at all.
pub fn rises(kept: &[Count], counts: &[Count]) -> Vec<String> {
    let mut rises = Vec::new();
    for Count { part, per_command } in counts {
        let Some(before) = kept.iter().find(|kept| kept.part == *part) else {
            rises.push(format!("{part}: not in the page; --write keeps it"));
            continue;
        };
        for ((now, before), batch) in per_command.iter().zip(before.per_command).zip(BATCHES) {
            if *now > before * (1.0 + RISE_MAX) {
                let rise = (now / before - 1.0) * 100.0;
                rises.push(format!(
                    "{part}, batches of {batch}: {now:.0} instructions a command, {before:.0} are kept: {rise:.1} % more. If that \
                     is meant, keep it with `synod-bench instructions --write bench/docs/instructions.md`, and say why in the commit"
                ));
            }
        }
    }
    rises
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_kept_for_each_build_and_a_rise_is_seen() {
        let count = |alone, many| vec![Count { part: "log".to_owned(), per_command: [alone, many] }];
        let page = replaced("# Page\n\nwords\n", "Tests' build, rustc 1.1", &count(1.0, 1.0));
        let page = replaced(&page, "Release build, rustc 1.2", &count(30.0, 20.0));
        let page = replaced(&page, "Tests' build, rustc 1.2", &count(100.0, 50.0));
        assert_eq!(kept(&page, "Tests' build, rustc 1.2"), Some(count(100.0, 50.0)), "{page}");
        assert_eq!(kept(&page, "Release build, rustc 1.2"), Some(count(30.0, 20.0)), "{page}");
        assert_eq!(kept(&page, "Release build, rustc 1.3"), None);
        assert!(page.starts_with("# Page\n\nwords\n\n## Tests' build") && !page.contains("rustc 1.1"), "{page}");
        assert!(rises(&count(100.0, 50.0), &count(104.9, 20.0)).is_empty());
        assert_eq!(rises(&count(100.0, 50.0), &count(105.1, 53.0)).len(), 2);
        assert_eq!(rises(&[], &count(1.0, 1.0)).len(), 1);
    }
}
