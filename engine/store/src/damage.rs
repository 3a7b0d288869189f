//! What a page that is not what was written looks like, and what then happens.
//!
//! A damaged page is found when it is first touched, deep within a read or a change that has no road for "the disk
//! lied": the process ends, with an exit status of its own, and the next start repairs. Wrong data is never returned
//! (rule S3).

use std::path::{Path, PathBuf};

use crate::overflow;
use crate::page::{Kind, Page, PageNumber};

/// The exit status of a process that met a damaged page: EX_DATAERR of sysexits.h.
pub const DAMAGED_EXIT_STATUS: i32 = 65;

/// A page of the file is not what was written there.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("page {page} of {} is damaged: its checksum is {found:08x?}, and {expected:08x?} is what its bytes have", file.display())]
pub struct Damage {
    /// Which.
    pub page: PageNumber,
    /// In which file.
    pub file: PathBuf,
    /// The checksum that its bytes have; none if they do not say how many they are.
    pub expected: Option<u32>,
    /// The checksum that is in it.
    pub found: Option<u32>,
}

/// How many pages belong to the one that begins here. `None` if it is no page that could be there.
pub(crate) fn pages_of(page: &Page) -> Option<u32> {
    if page.is(Kind::Overflow) { overflow::checked_pages(page.link()) } else { Some(1) }
}

/// Whether these bytes were written to this place.
pub(crate) fn check(number: PageNumber, bytes: &[u8]) -> Result<(), (Option<u32>, Option<u32>)> {
    let found = u32::from_le_bytes(bytes[..4].try_into().expect("four bytes"));
    let expected = Page::checksum(number, bytes);
    if found == expected { Ok(()) } else { Err((Some(expected), Some(found))) }
}

/// Notes beside the file why, for the next start, and ends the process.
pub(crate) fn end(damage: &Damage) -> ! {
    end_noting(&damage.file, &damage.to_string())
}

fn end_noting(file: &Path, why: &str) -> ! {
    eprintln!("synod-store: {why}");
    if let Err(error) = std::fs::write(file.with_extension("damaged"), why) {
        eprintln!("synod-store: cannot note that: {error}");
    }
    std::process::exit(DAMAGED_EXIT_STATUS);
}

/// From here on a panic within this crate ends the process as a damaged page does. Pages that are sound one by one and do not fit
/// together show so: one whose last write was lost is as it was before, checksum and all, and what it then says of others is not
/// true. Without this each start would end at the same place, for ever. `file` says which database it is.
pub fn end_on_own_panics(file: impl Fn() -> PathBuf + Send + Sync + 'static) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        let sources = Path::new(file!()).parent();
        if let Some(at) = panic.location().filter(|at| sources.is_some_and(|own| Path::new(at.file()).starts_with(own)))
        {
            end_noting(&file(), &format!("the pages of {} do not fit together ({at})", file().display()));
        }
    }));
}
