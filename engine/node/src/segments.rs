//! The thread that makes log segments ahead of need: zero-filling 64 MiB is not the hot core's work.
//!
//! One request at a time goes in, one finished segment comes out, and the hot core is woken. A plain thread and not a
//! glommio executor: it is one blocking loop over one file (decision 0002).

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;

use synod_ring::Waker;
use synod_wal::{SegmentId, directory};

/// The maker's two ends as the hot core sees them. Dropping it ends the thread after the segment at hand.
pub struct SegmentMaker {
    requests: Option<mpsc::SyncSender<SegmentId>>,
    finished: mpsc::Receiver<(SegmentId, io::Result<File>)>,
    thread: Option<JoinHandle<()>>,
    under_way: Option<SegmentId>,
}

impl SegmentMaker {
    /// Starts the thread.
    pub fn start(dir: PathBuf, segment_bytes: u64, waker: Waker) -> io::Result<Self> {
        // One request at a time, so neither channel ever holds more than one item.
        let (requests, to_make) = mpsc::sync_channel::<SegmentId>(1);
        let (done, finished) = mpsc::sync_channel(1);
        let make = move || {
            while let Ok(segment) = to_make.recv() {
                let file = directory::prepare_segment(&dir, segment, segment_bytes)
                    .and_then(|()| directory::open_segment(&dir, segment))
                    .map_err(io::Error::from);
                if done.send((segment, file)).is_err() {
                    return;
                }
                waker.wake();
            }
        };
        let thread = std::thread::Builder::new().name("segments".to_owned()).spawn(make)?;
        Ok(Self { requests: Some(requests), finished, thread: Some(thread), under_way: None })
    }

    /// Asks for a segment, unless one is being made.
    pub fn request(&mut self, segment: SegmentId) {
        if self.under_way.is_none() {
            let requests = self.requests.as_ref().expect("it is there until drop");
            requests.send(segment).expect("the segment thread ends only after its channel");
            self.under_way = Some(segment);
        }
    }

    /// The finished segment, if there is one.
    pub fn take_finished(&mut self) -> Option<(SegmentId, io::Result<File>)> {
        let finished = self.finished.try_recv().ok()?;
        self.under_way = None;
        Some(finished)
    }
}

impl Drop for SegmentMaker {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already ended the process (panic = "abort").
            let _ = thread.join();
        }
    }
}
