//! The load against a cell of one real process, run small.

use std::path::PathBuf;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use synod_bench::workload::{Figures, Plan, Work, Workload};
use synod_node::local_cell::{LocalCell, LocalCellOptions};

fn cell(dir: &tempfile::TempDir) -> anyhow::Result<LocalCell> {
    let mut cell = LocalCell::start(LocalCellOptions {
        replicas: 1,
        dir: dir.path().join("cell"),
        first_port: None,
        serve_flags: Vec::new(),
        program: Some(PathBuf::from(env!("CARGO_BIN_EXE_synod-bench"))),
    })?;
    cell.wait_for_master(Duration::from_secs(30))?;
    Ok(cell)
}

fn workload(cell: &LocalCell, workers: usize) -> anyhow::Result<Workload> {
    let work = Work::OwnKey { reads_percent: 0, anywhere: None };
    Workload::new(Plan { endpoints: cell.endpoints(), workers, connections: 2, value_bytes: 5, work })
}

/// Runs for 1.5 s, in the middle of which the cell stands still for half a second.
fn through_a_standstill(cell: &LocalCell, workload: &mut Workload) -> anyhow::Result<Figures> {
    let pid = cell.pid(1).and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)).expect("it runs");
    let pause = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300));
        kill_process(pid, Signal::STOP).expect("it runs");
        std::thread::sleep(Duration::from_millis(500));
        kill_process(pid, Signal::CONT).expect("it is stopped");
    });
    let figures = workload.run(Duration::from_millis(1500), u64::MAX)?;
    pause.join().expect("it does not panic");
    Ok(figures)
}

/// So often a standstill is tried on a machine that has its own.
const TURNS_MAX: u32 = 10;

fn over_100_ms(figures: &Figures) -> u64 {
    figures.latencies.count_between(100_000_000, 60_000_000_000)
}

#[test]
fn an_open_loop_sees_a_standstill_that_a_closed_one_hides() -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut cell = cell(&dir)?;
    let mut closed = workload(&cell, 2)?;
    closed.run(Duration::from_millis(300), u64::MAX)?;
    let figures = through_a_standstill(&cell, &mut closed)?;
    closed.finish()?;
    assert!(figures.operations() > 10, "{figures:?}");
    assert!(over_100_ms(&figures) <= 20, "two workers have two operations in flight: {}", over_100_ms(&figures));

    // Where the disk or the machine stands still beside it, for longer than it is stopped, nothing is seen: then again.
    let mut turns = 0;
    let figures = loop {
        let mut open = workload(&cell, 2)?;
        open.run(Duration::from_millis(300), u64::MAX)?;
        open.pace(200);
        let figures = through_a_standstill(&cell, &mut open)?;
        open.finish()?;
        turns += 1;
        if (200..=310).contains(&figures.operations()) || turns == TURNS_MAX {
            break figures;
        }
    };
    // Half a second's arrivals, but for those of its last tenth.
    assert!(over_100_ms(&figures) >= 70, "of {} only {} were late", figures.operations(), over_100_ms(&figures));
    assert_eq!(figures.not_begun, 0);
    // Those that were in flight before, and the end of the last turn, are in it.
    assert!((200..=310).contains(&figures.operations()), "{} of 300", figures.operations());
    cell.stop()?;
    Ok(())
}

#[test]
fn an_open_loop_leaves_out_what_does_not_fit_and_says_so() -> anyhow::Result<()> {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let mut cell = cell(&dir)?;
    let mut open = workload(&cell, 1)?;
    open.run(Duration::from_millis(300), u64::MAX)?;
    // One at a time, each with its flush: far from so many.
    open.pace(1_000_000);
    let figures = open.run(Duration::from_millis(1500), u64::MAX)?;
    let waiting = open.waiting();
    open.finish()?;
    assert!(figures.not_begun > 100_000, "{figures:?}");
    assert!(
        (900_000..=1_300_000).contains(&waiting),
        "{waiting} wait: a second's, and what came since it was looked at"
    );
    cell.stop()?;
    Ok(())
}
