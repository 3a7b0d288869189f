//! A watch on the disk while something is measured (rule M2): this machine's disk stalls now and then, and a window in
//! which it did says nothing of the software.

use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use synod_ring::{AlignedBuffer, BLOCK_BYTES};

/// A probe write that takes longer makes its window void.
pub const STALL: Duration = Duration::from_millis(50);
/// How often the probe writes.
const PERIOD: Duration = Duration::from_millis(20);
const O_DIRECT: i32 = 0o40000;

struct Shared {
    stop: AtomicBool,
    /// The slowest write since it was last asked for, in nanoseconds.
    slowest_ns: AtomicU64,
    /// When the write under way began, in nanoseconds since `start`; 0 if none is.
    since_ns: AtomicU64,
    start: Instant,
}

impl Shared {
    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
    }
}

/// Writes one block now and then, on a thread of its own, until it is dropped.
pub struct DiskProbe {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl DiskProbe {
    /// Probes the file system of `dir`, in a file of its own.
    pub fn start(dir: &Path) -> anyhow::Result<Self> {
        let path = dir.join("disk.probe");
        let file = File::options().write(true).create(true).truncate(true).custom_flags(O_DIRECT).open(&path);
        let file = file.with_context(|| format!("cannot make the disk probe {}", path.display()))?;
        let block = AlignedBuffer::zeroed(BLOCK_BYTES);
        file.write_all_at(&block, 0)?;
        file.sync_all()?;
        let shared = Arc::new(Shared {
            stop: AtomicBool::new(false),
            slowest_ns: AtomicU64::new(0),
            since_ns: AtomicU64::new(0),
            start: Instant::now(),
        });
        let own = Arc::clone(&shared);
        let watch = move || {
            while !own.stop.load(Ordering::Relaxed) {
                let began = own.now_ns();
                own.since_ns.store(began, Ordering::Relaxed);
                let written = file.write_all_at(&block, 0).and_then(|()| file.sync_data());
                own.since_ns.store(0, Ordering::Relaxed);
                // A failure is as good a reason to distrust the window as a stall.
                let took = if written.is_ok() { own.now_ns() - began } else { u64::MAX };
                own.slowest_ns.fetch_max(took, Ordering::Relaxed);
                std::thread::sleep(PERIOD);
            }
        };
        let thread = std::thread::Builder::new().name("disk-probe".to_owned()).spawn(watch)?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// The slowest write since this was last asked, one that is still under way included.
    pub fn slowest(&self) -> Duration {
        let finished = self.shared.slowest_ns.swap(0, Ordering::Relaxed);
        let since = self.shared.since_ns.load(Ordering::Relaxed);
        let under_way = if since == 0 { 0 } else { self.shared.now_ns().saturating_sub(since) };
        Duration::from_nanos(finished.max(under_way))
    }
}

impl Drop for DiskProbe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
