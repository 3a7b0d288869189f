//! The log beside bare writes, run small, so that it cannot rot.

use std::path::PathBuf;

use synod_bench::wal::{WalOptions, describe, run};

#[test]
fn the_log_and_the_probe_both_do_their_work() -> anyhow::Result<()> {
    let dir = Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    // Whether the bars are held is the machine's affair: it may be busy with other tests.
    let report = run(&WalOptions { seconds: 0.1, pairs: 1, dir, json: None })?;
    assert_eq!(report.sizes.iter().map(|size| size.bytes >> 10).collect::<Vec<_>>(), [4, 64, 256, 1024]);
    for size in &report.sizes {
        assert!(size.log.flushes > 5 && size.probe.flushes > 5, "{size:?}");
    }
    assert!(report.appends >= 1_000_000 && report.append_ns > 0.0);
    assert!(describe(&report).lines().last().is_some_and(|line| line.starts_with("wal: ")));
    Ok(())
}
