//! The thread that makes log segments ahead of need, or gives those that were cut off their next name: zero-filling 64 MiB
//! is not the hot core's work, and neither is waiting for a directory.
//!
//! One request at a time goes in, one finished piece of work comes out, and the hot core is woken. A plain thread and not a
//! glommio executor: it is one blocking loop over one file (decision 0002).

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

use synod_ring::Waker;
use synod_wal::{Upkeep, directory};

/// The maker's two ends as the hot core sees them. Dropping it ends the thread after the segment at hand.
pub struct SegmentMaker {
    requests: Option<mpsc::SyncSender<Upkeep>>,
    finished: mpsc::Receiver<(Upkeep, io::Result<Option<File>>)>,
    thread: Option<JoinHandle<()>>,
    under_way: Option<Upkeep>,
}

impl SegmentMaker {
    /// Starts the thread.
    pub fn start(dir: PathBuf, segment_bytes: u64, waker: Waker) -> io::Result<Self> {
        // One request at a time, so neither channel ever holds more than one item.
        let (requests, to_make) = mpsc::sync_channel::<Upkeep>(1);
        let (done, finished) = mpsc::sync_channel(1);
        let make = move || {
            while let Ok(upkeep) = to_make.recv() {
                let file = directory::carry_out(&dir, upkeep, segment_bytes).map_err(io::Error::from);
                if done.send((upkeep, file)).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        let thread = std::thread::Builder::new().name("segments".to_owned()).spawn(make)?;
        Ok(Self { requests: Some(requests), finished, thread: Some(thread), under_way: None })
    }

    /// Asks for it, unless something is under way.
    pub fn request(&mut self, upkeep: Upkeep) {
        if self.under_way.is_none() {
            let requests = self.requests.as_ref().expect("it is there until drop");
            requests.send(upkeep).expect("the segment thread ends only after its channel");
            self.under_way = Some(upkeep);
        }
    }

    /// What is finished, if something is, with the segment that is ready by it.
    pub fn take_finished(&mut self) -> Option<(Upkeep, io::Result<Option<File>>)> {
        let finished = self.finished.try_recv().ok()?;
        self.under_way = None;
        Some(finished)
    }
}

impl Drop for SegmentMaker {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already ended the process (`serve::abort_on_panics`).
            let _ = thread.join();
        }
    }
}
