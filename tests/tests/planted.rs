//! The simulator must catch every bug that is planted on purpose. Only with the feature `planted`:
//!
//!     cargo test --workspace --features synod-tests/planted --test planted
//!
//! As a test of the whole workspace, and not as a binary alone, because its dependencies are built then already.

use std::process::Command;

#[test]
fn every_planted_bug_is_caught() {
    let ended =
        Command::new(env!("CARGO_BIN_EXE_synod-sim")).arg("--planted").status().expect("the simulator can be run");
    assert!(ended.success(), "not every planted bug was caught, see above");
}
