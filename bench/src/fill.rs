//! Filling a cell's database before something is measured, by the same road as everything else.

use std::time::{Duration, Instant};

use crate::progress;
use crate::workload::{Plan, Work, Workload};

/// The size of the files: most of Chubby's were up to 1 KB.
const FILE_BYTES: usize = 1024;
const WORKERS: usize = 256;
const CONNECTIONS: usize = 8;
const TIME_MAX: Duration = Duration::from_secs(600);

/// Creates files until so many MB (1024 * 1024 bytes) of contents are there. Their names are new with every call.
pub fn fill(endpoints: &[String], mb: u64) -> anyhow::Result<()> {
    let files = (mb << 20).div_ceil(FILE_BYTES as u64);
    if files == 0 {
        return Ok(());
    }
    let call = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_nanos();
    let mut workload = Workload::new(Plan {
        endpoints: endpoints.to_vec(),
        workers: WORKERS.min(usize::try_from(files)?),
        connections: CONNECTIONS,
        value_bytes: FILE_BYTES,
        work: Work::CreateFiles { prefix: format!("/fill-{call}") },
    })?;
    let bar = progress::bar(files, "database");
    let began = Instant::now();
    let mut done = 0;
    while done < files {
        let figures = workload.run(Duration::from_millis(200), files - done)?;
        anyhow::ensure!(
            figures.failures == 0,
            "filling the database failed: {}",
            figures.last_failure.as_deref().unwrap_or("?")
        );
        anyhow::ensure!(began.elapsed() < TIME_MAX, "filling the database took over {TIME_MAX:?}");
        done += figures.operations();
        bar.set_position(done);
    }
    workload.finish()?;
    bar.finish_and_clear();
    eprintln!("the database has {mb} MB more, in {done} files");
    Ok(())
}
