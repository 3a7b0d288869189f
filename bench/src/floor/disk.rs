//! One block made durable, in each of the forms that are safe on any device (rules L2, L3).

use std::fmt;
use std::fs::File;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use hdrhistogram::Histogram;
use rustix::fs::OFlags;
use serde::Serialize;
use synod_ring::{AlignedBuffer, BLOCK_BYTES, Completion, Handle, Outcome, Ring};

use super::{histogram, nanoseconds};

/// How a block is made durable. The asynchronous RWF_DSYNC is not among them: without FUA it collapses when a core is
/// busy (rule L3), and a floor that a busy core changes tenfold is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Form {
    /// On the ring: a write and, linked to it, an fdatasync.
    Linked,
    /// Blocking calls: a write, then an fdatasync.
    Blocking,
    /// A blocking write to a file opened with O_DSYNC.
    BlockingDsync,
}

impl Form {
    /// All of them.
    pub const ALL: [Form; 3] = [Form::Linked, Form::Blocking, Form::BlockingDsync];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Linked => "linked",
            Self::Blocking => "blocking",
            Self::BlockingDsync => "blocking-dsync",
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linked => "linked write and fdatasync on the ring",
            Self::Blocking => "blocking write and fdatasync",
            Self::BlockingDsync => "blocking write with O_DSYNC",
        })
    }
}

/// A file of a fixed size, written block by block around and around, as a log's segments are.
pub(crate) struct Log {
    form: Form,
    file: File,
    handle: Handle,
    next: u64,
    /// Away while the ring has it: one block is under way at a time.
    buffer: Option<AlignedBuffer>,
}

impl Log {
    /// Every block of it written and synced, so that a write changes no metadata.
    pub(crate) fn create(path: &Path, form: Form) -> anyhow::Result<Self> {
        let flags = match form {
            Form::Linked | Form::Blocking => OFlags::DIRECT,
            Form::BlockingDsync => OFlags::DIRECT | OFlags::DSYNC,
        };
        let mut options = File::options();
        options.write(true).create(true).truncate(false);
        let zeros = AlignedBuffer::zeroed(LOG_BYTES as usize);
        let plain = options.custom_flags(OFlags::DIRECT.bits() as i32).open(path);
        let plain = plain.with_context(|| format!("opening {} with O_DIRECT", path.display()))?;
        // The files of the last window are as good as new ones, and spare the disk a burst before this one.
        if plain.metadata()?.len() != LOG_BYTES {
            plain.write_all_at(&zeros, 0)?;
        }
        plain.sync_all()?;
        let file = options.custom_flags(flags.bits() as i32).open(path)?;
        let handle = Handle::from(file.try_clone()?);
        let mut buffer = AlignedBuffer::zeroed(BLOCK_BYTES);
        buffer.fill(0xa5);
        Ok(Self { form, file, handle, next: 0, buffer: Some(buffer) })
    }

    /// Starts making a block durable. True if it is, already; otherwise the ring completes it, and [`Log::flushed`]
    /// takes the outcome. A blocking form blocks, so whatever is to leave first must have been submitted.
    pub(crate) fn flush<T>(&mut self, ring: &mut Ring<T>, token: T) -> anyhow::Result<bool> {
        let buffer = self.buffer.take().context("one flush at a time")?;
        let offset = self.next;
        self.next = (self.next + BLOCK_BYTES as u64) % LOG_BYTES;
        match self.form {
            Form::Linked => {
                ring.write_durably(token, &self.handle, offset, buffer, BLOCK_BYTES);
                return Ok(false);
            }
            Form::Blocking => {
                self.file.write_all_at(&buffer, offset)?;
                self.file.sync_data()?;
            }
            Form::BlockingDsync => self.file.write_all_at(&buffer, offset)?,
        }
        self.buffer = Some(buffer);
        Ok(true)
    }

    /// Whether [`Log::flush`] blocks.
    pub(crate) fn blocks(&self) -> bool {
        self.form != Form::Linked
    }

    /// The ring has made the block durable, or not.
    pub(crate) fn flushed(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        let Outcome::Flushed { buffer, result } = outcome else { unreachable!("only flushes have a flush's token") };
        self.buffer = Some(buffer);
        Ok(result?)
    }

    /// Makes a block durable and waits for it, on a ring with nothing else to do.
    pub(crate) fn flush_and_wait(
        &mut self,
        ring: &mut Ring<()>,
        completions: &mut Vec<Completion<()>>,
    ) -> anyhow::Result<()> {
        if self.flush(ring, ())? {
            return Ok(());
        }
        while completions.is_empty() {
            ring.enter(None, completions)?;
        }
        ensure!(completions.len() == 1, "one block, one completion");
        for Completion { outcome, .. } in completions.drain(..) {
            self.flushed(outcome)?;
        }
        Ok(())
    }

    /// One block after the other for some time.
    pub(crate) fn flush_for(&mut self, ring: &mut Ring<()>, window: Duration) -> anyhow::Result<Histogram<u64>> {
        let mut completions = Vec::new();
        let mut latencies = histogram();
        let end = Instant::now() + window;
        loop {
            let start = Instant::now();
            self.flush_and_wait(ring, &mut completions)?;
            let now = Instant::now();
            latencies.record(nanoseconds(now - start))?;
            if now >= end {
                return Ok(latencies);
            }
        }
    }
}

/// Small enough to prepare in no time, and beyond what a device might coalesce.
const LOG_BYTES: u64 = 8 << 20;
