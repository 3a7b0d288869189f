//! The floor, run small, so that it cannot rot.

use std::path::PathBuf;

use synod_bench::floor::{FloorOptions, run};

#[test]
fn the_floor_does_its_work_for_one_three_and_five() -> anyhow::Result<()> {
    for replicas in [1, 3, 5] {
        let options = FloorOptions {
            replicas,
            seconds: 0.2,
            dir: Some(PathBuf::from(env!("CARGO_TARGET_TMPDIR"))),
            executable: Some(PathBuf::from(env!("CARGO_BIN_EXE_synod-bench"))),
            ..FloorOptions::default()
        };
        // Whether the run is void is the machine's affair: it may be busy with other tests.
        let floor = run(&options)?;
        assert!(floor.ops > 10, "{floor:?}");
        assert!(floor.p50_us > floor.round_trip_p50_us, "{floor:?}");
        assert_eq!(floor.calibration.len(), 6);
    }
    Ok(())
}
