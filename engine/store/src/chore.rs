//! What a helper thread does ahead of need, so that the owner does not wait for the kernel (rule S4).
//!
//! A place that is written for the first time since the database was opened costs a page fault; one that was used
//! before a restart even reads the disk, for bytes that are about to be overwritten. And the file has to grow. The
//! owner asks for a chore now and then, which costs it nothing, and a helper runs it. Without a helper all goes on,
//! only slower.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::Store;
use crate::device::DirectFile;
use crate::mapping::Mapping;
use crate::page::PageNumber;

/// Something to be done in another thread.
#[derive(Debug)]
pub struct Chore {
    mapping: Arc<Mapping>,
    /// To this length.
    grow: Option<(Arc<DirectFile>, PageNumber)>,
    /// Free places that will be taken next.
    prefault: Vec<Range<u32>>,
}

impl Store {
    /// What a helper should do next, if anything. Ask every few hundred changes.
    pub fn chore(&mut self) -> Option<Chore> {
        let (grow, prefault) = self.space.chore()?;
        Some(Chore { mapping: self.space.share(), grow, prefault })
    }
}

impl Chore {
    /// Does it. Blocks.
    ///
    /// # Errors
    ///
    /// As the kernel has it. Nothing is lost by that: what was not done ahead is done when it is needed.
    pub fn run(self) -> io::Result<()> {
        if let Some((file, end)) = self.grow {
            file.grow(end)?;
        }
        self.prefault.into_iter().try_for_each(|pages| self.mapping.prefault(pages))
    }
}
