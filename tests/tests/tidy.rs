//! House rules as ordinary tests: who may know whom, where unsafe code may live, and that pages do not point nowhere.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The arrows of ARCHITECTURE.md: crate directory, and the workspace crates it may depend on. `None`: all.
const ARROWS: &[(&str, Option<&[&str]>)] = &[
    ("engine/spec", Some(&[])),
    ("engine/paxos", Some(&["synod-spec"])),
    ("engine/api", Some(&[])),
    ("engine/store", Some(&[])),
    ("engine/ring", Some(&[])),
    ("net", Some(&[])),
    ("wal", Some(&["synod-ring"])),
    ("engine/cell", Some(&["synod-api", "synod-paxos", "synod-store"])),
    ("net/client", Some(&["synod-api", "synod-net"])),
    (
        "engine/node",
        Some(&[
            "synod-api",
            "synod-cell",
            "synod-client",
            "synod-net",
            "synod-paxos",
            "synod-ring",
            "synod-store",
            "synod-wal",
        ]),
    ),
    ("bench", None),
    ("tests", None),
];

/// The crates that may have unsafe code; every other inherits the workspace's `forbid`.
const ISLANDS: &[&str] = &["engine/ring", "engine/store"];

/// Of an island that is one file, that file. (The bench beside it opens LMDB.)
const ONE_FILE_ISLANDS: &[(&str, &[&str])] = &[("engine/store", &["src/mapping.rs", "benches/sides/mod.rs"])];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this crate is in the workspace").to_owned()
}

fn manifest(directory: &str) -> String {
    fs::read_to_string(root().join(directory).join("Cargo.toml")).unwrap()
}

/// The workspace crates named under `[dependencies]`.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let section = manifest.split("\n[dependencies]\n").nth(1).unwrap_or("");
    let section = section.split("\n[").next().unwrap_or("");
    section
        .lines()
        .filter_map(|line| line.split(['.', ' ', '=']).next())
        .filter(|name| name.starts_with("synod-"))
        .map(str::to_owned)
        .collect()
}

/// All files with this ending, tracked or about to be: everything but build output and hidden directories.
fn files(ending: &str) -> Vec<PathBuf> {
    fn walk(directory: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "target" && !name.starts_with('.') {
                walk(&path, ending, found);
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root(), ending, &mut found);
    found
}

#[test]
fn dependencies_follow_the_arrows() {
    for (directory, allowed) in ARROWS {
        let Some(allowed) = allowed else { continue };
        for dependency in dependencies(&manifest(directory)) {
            assert!(allowed.contains(&dependency.as_str()), "{directory} may not depend on {dependency}");
        }
    }
}

#[test]
fn every_crate_has_its_arrows_and_the_lints() {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.split("members = [").nth(1).unwrap().split(']').next().unwrap();
    for member in members.split(',').map(|member| member.trim().trim_matches('"')).filter(|member| !member.is_empty()) {
        assert!(ARROWS.iter().any(|(directory, _)| *directory == member), "{member} has no arrows in this test");
        if !ISLANDS.contains(&member) {
            let inherits = manifest(member).contains("[lints]\nworkspace = true");
            assert!(inherits, "{member} does not inherit the workspace's lints, unsafe_code = forbid among them");
        }
    }
}

#[test]
fn an_island_of_one_file_stays_one() {
    for (directory, islands) in ONE_FILE_ISLANDS {
        assert!(manifest(directory).contains("unsafe_code = \"deny\""), "{directory} does not deny unsafe code");
        for path in files(".rs").iter().filter_map(|path| path.strip_prefix(root().join(directory)).ok()) {
            let text = fs::read_to_string(root().join(directory).join(path)).unwrap();
            let is_island = islands.iter().any(|island| path == Path::new(island));
            assert!(is_island || !text.contains("allow(unsafe_code"), "{directory}/{} has unsafe code", path.display());
        }
    }
}

#[test]
fn no_source_file_leaves_a_note_to_itself() {
    for path in files(".rs") {
        if path.ends_with("tidy.rs") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for mark in ["TODO", "FIXME", "XXX", "dbg!("] {
            assert!(!text.contains(mark), "{} has a {mark}", path.display());
        }
    }
}

#[test]
fn pages_point_at_what_exists() {
    for page in files(".md") {
        let text = fs::read_to_string(&page).unwrap();
        for target in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let path = target.split('#').next().unwrap();
            if path.is_empty() || path.contains("://") {
                continue;
            }
            assert!(page.parent().unwrap().join(path).exists(), "{} points at {path}", page.display());
        }
    }
    // Paths in the two pages' prose and tables, in back quotes.
    for page in ["README.md", "ARCHITECTURE.md"] {
        let text = fs::read_to_string(root().join(page)).unwrap();
        for name in text.split('`').skip(1).step_by(2) {
            let is_path = name.contains('/') && !name.contains([' ', '*', '<']) && !name.starts_with('/');
            let first = name.split('/').next().unwrap();
            if is_path && root().join(first).is_dir() && !first.is_empty() && first != "target" {
                assert!(root().join(name).exists(), "{page} names {name}");
            }
        }
    }
}

/// Each line of a manifest that has to do with planted bugs, without its comment.
fn planted_lines(manifest: &str) -> Vec<&str> {
    let lines = manifest.lines().map(|line| line.split('#').next().unwrap_or(""));
    lines.filter(|line| line.contains("planted")).map(str::trim).collect()
}

#[test]
fn only_the_simulators_crate_can_plant_bugs_and_only_when_asked() {
    for path in files("Cargo.toml") {
        let directory = path.parent().unwrap().strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        let allowed: &[&str] = match directory.as_str() {
            "engine/paxos" => &["planted = []"],
            "engine/store" => &[r#"planted = ["rot"]"#],
            "tests" => &[
                r#"planted = ["synod-paxos/planted", "synod-store/planted"]"#,
                r#"name = "planted""#,
                r#"required-features = ["planted"]"#,
            ],
            _ => &[],
        };
        // No `default`, no dependency with the feature, no feature that brings it along.
        assert_eq!(planted_lines(&fs::read_to_string(&path).unwrap()), allowed, "{directory}/Cargo.toml");
    }
}

/// In such a build each place that could bite is the constant `false`, and the names are nowhere.
#[cfg(not(feature = "planted"))]
#[test]
fn what_serves_has_no_planted_bugs() {
    const { assert!(!synod_paxos::planted!(P1PromisesToOlder)) };
    let declared = fs::read_to_string(root().join("engine/paxos/src/planted.rs")).unwrap();
    let declared = declared.split("\nbugs! {\n").nth(1).unwrap().split("\n}").next().unwrap();
    let names: Vec<&str> =
        declared.lines().filter_map(|line| line.trim().split_once(": ")).map(|(name, _)| name).collect();
    assert!(names.len() >= 24 && names.contains(&"P1PromisesToOlder"), "{names:?}");
    let torture = Path::new(env!("CARGO_BIN_EXE_synod-torture"));
    // Cargo puts the server beside it, if it was built.
    for program in [torture.to_owned(), torture.with_file_name("synod")].iter().filter(|program| program.exists()) {
        let bytes = fs::read(program).unwrap();
        for name in &names {
            let has = bytes.windows(name.len()).any(|window| window == name.as_bytes());
            assert!(!has, "{} knows of {name}", program.display());
        }
    }
}
