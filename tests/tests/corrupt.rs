//! A few cases of `synod-torture corrupt`: the command itself runs all of them.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

#[test]
fn damage_heals_or_is_told() {
    let arguments = ["corrupt", "--cases", "120", "--rounds", "2", "--seed", "1", "--json"];
    let ended = Command::new(env!("CARGO_BIN_EXE_synod-torture")).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success(), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((report["cases"].as_u64(), report["violations"].as_array().map(Vec::len)), (Some(120), Some(0)));
    assert!(report["process_cases"].as_u64() >= Some(4), "{report}");
}
