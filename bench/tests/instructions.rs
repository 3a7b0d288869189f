//! No part of a command's path takes over 5 % more instructions than `docs/instructions.md` keeps.

use std::path::Path;

use synod_bench::instructions::{build, count_all, has_valgrind, kept, rises};

#[test]
fn no_part_takes_more_instructions_than_are_kept() -> anyhow::Result<()> {
    if !has_valgrind() {
        eprintln!("SKIPPED: valgrind is not installed, so no instructions were counted");
        return Ok(());
    }
    if option_env!("CARGO_INCREMENTAL") != Some("0") {
        eprintln!(
            "SKIPPED: built incrementally, which inlines less; the figures kept are of CARGO_INCREMENTAL=0, as .ci/run builds"
        );
        return Ok(());
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/instructions.md");
    let build = build()?;
    let Some(kept) = kept(&std::fs::read_to_string(&path)?, &build) else {
        eprintln!("SKIPPED: {} keeps no figures of this build ({build})", path.display());
        return Ok(());
    };
    let counts = count_all(Path::new(env!("CARGO_BIN_EXE_synod-bench")))?;
    let rises = rises(&kept, &counts);
    assert!(rises.is_empty(), "{}", rises.join("\n"));
    Ok(())
}
