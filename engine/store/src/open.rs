//! Opening a database: from a snapshot, in a time that does not grow with it.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bitmap::{Bitmap, CHUNK_PAGES, Chunk};
use crate::damage;
use crate::device::{Device, DirectFile};
use crate::image::Image;
use crate::mapping::{AlignedBuffer, Pages};
use crate::meta::{FORMAT, Found, IDENTITY_BYTES_MAX, Meta, Slot};
use crate::page::{HEADER_BYTES, Kind, PAGE_BYTES, Page, PageNumber};
use crate::self_test::{self, SelfTestError};
use crate::space::Space;
use crate::{Digest, Options, Revision, Store};

/// Why a database would not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file, or its directory, would not do what was asked.
    #[error("{doing} {}", path.display())]
    File {
        /// What that was.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has it, or this one.
    #[error("{} is in use", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
    },
    /// It is something else.
    #[error("{} is not a database", path.display())]
    NotADatabase {
        /// Which file.
        path: PathBuf,
    },
    /// It belongs to another cell, or another replica.
    #[error("{} is another one's: its identity is {found:02x?}, not {expected:02x?}", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is to be.
        expected: Vec<u8>,
        /// Whose it is.
        found: Vec<u8>,
    },
    /// A newer program wrote it.
    #[error("{} has format {found}, and this program knows formats up to {FORMAT}", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: u32,
    },
    /// Neither of the two meta blocks is what was written.
    #[error("both meta blocks of {} are damaged", path.display())]
    BothDamaged {
        /// Which file.
        path: PathBuf,
    },
    /// The older snapshot was asked for, but there is one only.
    #[error("{} has no older snapshot: its other meta block is damaged", path.display())]
    NoOlder {
        /// Which file.
        path: PathBuf,
    },
    /// The file ends before the snapshot does.
    #[error("{} has {found} pages, and its snapshot needs {needed}", path.display())]
    Truncated {
        /// Which file.
        path: PathBuf,
        /// One past the last page of the snapshot.
        needed: PageNumber,
        /// One past the last page of the file.
        found: PageNumber,
    },
    /// The set of a snapshot's pages is not what was written.
    #[error(transparent)]
    Damaged(#[from] damage::Damage),
    /// It is larger than the options allow.
    #[error("{} has {pages} pages, more than database_bytes_max ({bytes_max}) allows", path.display())]
    TooLarge {
        /// Which file.
        path: PathBuf,
        /// One past its last page.
        pages: PageNumber,
        /// The setting.
        bytes_max: usize,
    },
    /// The file system does not do what a mapped snapshot leans on.
    #[error(transparent)]
    SelfTest(#[from] SelfTestError),
}

/// How to open.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// What it is to do.
    pub store: Options,
    /// Whose it is: at most [`IDENTITY_BYTES_MAX`]. Must be what it was created with.
    pub identity: Vec<u8>,
    /// Take the older of the two snapshots: when the newer one was found to be damaged.
    pub older: bool,
}

/// What was opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Opened {
    /// The snapshot's number. Later ones have higher numbers.
    pub generation: u64,
    /// The revision of the last change in it.
    pub revision: Revision,
    /// What its caller gave with it.
    pub handle: Vec<u8>,
    /// The digest of what is in it.
    pub digest: Digest,
    /// The other snapshot's number; none if its meta block is damaged, as after a crash while it was written.
    pub other: Option<u64>,
}

impl Store {
    /// Makes an empty database in a file that does not exist yet.
    ///
    /// It appears at once, complete, under its name, or not at all.
    ///
    /// # Errors
    ///
    /// If there is such a file, or it cannot be made.
    ///
    /// # Panics
    ///
    /// If the identity is longer than [`IDENTITY_BYTES_MAX`].
    pub fn create(path: &Path, identity: &[u8]) -> Result<(), OpenError> {
        assert!(identity.len() <= IDENTITY_BYTES_MAX, "an identity of {} bytes", identity.len());
        let error = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::File { doing, path, source }
        };
        if fs::exists(path).map_err(error("looking for", path))? {
            return Err(error("creating", path)(io::ErrorKind::AlreadyExists.into()));
        }
        let new = path.with_extension("new");
        match fs::remove_file(&new) {
            Err(found) if found.kind() != io::ErrorKind::NotFound => return Err(error("removing", &new)(found)),
            Ok(()) | Err(_) => {}
        }
        let file = DirectFile::open(&new, true).map_err(error("creating, with O_DIRECT,", &new))?;
        let mut buffer = AlignedBuffer::zeroed(2 * PAGE_BYTES);
        for (slot, page) in [Slot::First, Slot::Second].into_iter().zip(buffer.chunks_mut(PAGE_BYTES)) {
            let meta = Meta {
                generation: u64::from(slot.page().0) + 1,
                image: Image::EMPTY,
                end: PageNumber::FIRST,
                bitmap: (PageNumber::NONE, 0),
                identity: identity.to_vec(),
                handle: Vec::new(),
            };
            page.copy_from_slice(&meta.encode(slot).0);
        }
        file.write_at(&buffer, 0).and_then(|()| file.file.sync_all()).map_err(error("writing", &new))?;
        fs::rename(&new, path).map_err(error("renaming", &new))?;
        let directory = directory_of(path);
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(error("syncing", directory))
    }

    /// Opens a database as its newest snapshot has it: what was changed afterwards is in the caller's log.
    ///
    /// Pages are read, and checked, when they are first needed. One that is damaged ends the process then, with
    /// [`DAMAGED_EXIT_STATUS`](crate::DAMAGED_EXIT_STATUS).
    ///
    /// # Errors
    ///
    /// If there is no such file, if it is not a database or another one's, if no snapshot can be found in it, if
    /// another process has it, or if its file system is none that this works on.
    pub fn open(path: &Path, options: &OpenOptions) -> Result<(Store, Opened), OpenError> {
        let error = |doing| move |source| OpenError::File { doing, path: path.to_owned(), source };
        let file = DirectFile::open(path, false).map_err(error("opening, with O_DIRECT,"))?;
        match file.file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(OpenError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(error("locking")(source)),
        }
        self_test::run(directory_of(path))?;
        let (slot, meta, other) = choose(&file, options)?;
        let bytes_max = options.store.database_bytes_max;
        if file.end().offset() > bytes_max {
            return Err(OpenError::TooLarge { path: path.to_owned(), pages: file.end(), bytes_max });
        }
        let used = load_bitmap(&file, &meta)?;
        let other_used = other.as_deref().map(|other| load_bitmap(&file, other)).transpose();
        // Of a snapshot that is not the one to be used it is enough to know that it is not whole.
        let (other, other_used) = match other_used {
            Ok(used) => (other, used.unwrap_or_default()),
            Err(OpenError::Damaged(_) | OpenError::Truncated { .. }) => (None, Bitmap::default()),
            Err(error) => return Err(error),
        };
        let newest = other.as_deref().map_or(0, |other| other.generation).max(meta.generation);
        let backed = other.as_deref().map_or(meta.end, |other| meta.end.max(other.end));
        let mut pages = Pages::of_file(&file.file, path, bytes_max, newest + 1, backed).map_err(error("mapping"))?;
        pages.distrust(&used);
        let space = Space::of_file(pages, used, other_used, meta.bitmap, Arc::new(file));
        let opened = Opened {
            generation: meta.generation,
            revision: meta.image.revision,
            handle: meta.handle,
            digest: meta.image.digest(),
            other: other.map(|other| other.generation),
        };
        let (image, identity) = (meta.image, meta.identity);
        let store = Store { space, image, options: options.store, removed: None, identity, slot, in_flight: None };
        Ok((store, opened))
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The snapshot to open, and the other one if its meta block is sound.
fn choose(file: &DirectFile, options: &OpenOptions) -> Result<(Slot, Meta, Option<Box<Meta>>), OpenError> {
    let path = || file.path.clone();
    if file.end() < PageNumber::FIRST {
        return Err(OpenError::NotADatabase { path: path() });
    }
    let mut buffer = AlignedBuffer::zeroed(2 * PAGE_BYTES);
    file.read_at(&mut buffer, 0).map_err(|source| OpenError::File { doing: "reading", path: path(), source })?;
    let (first, second) = buffer.split_at(PAGE_BYTES);
    let found = (Meta::decode(Slot::First, first), Meta::decode(Slot::Second, second));
    let (newer, older) = match found {
        (Found::Newer(found), _) | (_, Found::Newer(found)) => return Err(OpenError::Newer { path: path(), found }),
        (Found::Sound(first), Found::Sound(second)) if first.generation > second.generation => {
            ((Slot::First, first), Some((Slot::Second, second)))
        }
        (Found::Sound(first), Found::Sound(second)) => ((Slot::Second, second), Some((Slot::First, first))),
        (Found::Sound(first), _) => ((Slot::First, first), None),
        (_, Found::Sound(second)) => ((Slot::Second, second), None),
        (Found::Foreign, Found::Foreign) => return Err(OpenError::NotADatabase { path: path() }),
        (_, _) => return Err(OpenError::BothDamaged { path: path() }),
    };
    let ((slot, meta), other) = match (options.older, older) {
        (false, older) => (newer, older),
        (true, Some(older)) => (older, Some(newer)),
        (true, None) => return Err(OpenError::NoOlder { path: path() }),
    };
    if meta.identity != options.identity {
        return Err(OpenError::Foreign { path: path(), expected: options.identity.clone(), found: meta.identity });
    }
    Ok((slot, *meta, other.map(|(_, meta)| meta)))
}

/// The set of a snapshot's pages.
fn load_bitmap(file: &DirectFile, meta: &Meta) -> Result<Bitmap, OpenError> {
    if file.end() < meta.end {
        return Err(OpenError::Truncated { path: file.path.clone(), needed: meta.end, found: file.end() });
    }
    let (first, count) = meta.bitmap;
    let mut chunks: Vec<Chunk> = Vec::with_capacity(count as usize);
    let mut buffer = AlignedBuffer::zeroed(PAGE_BYTES * count as usize);
    if count > 0 {
        file.read_at(&mut buffer, first.offset() as u64).map_err(|source| OpenError::File {
            doing: "reading",
            path: file.path.clone(),
            source,
        })?;
    }
    for (index, bytes) in buffer.chunks(PAGE_BYTES).take(count as usize).enumerate() {
        let number = PageNumber(first.0 + index as u32);
        let page = Page(bytes.try_into().expect("a whole page"));
        let damaged = |(expected, found)| damage::Damage { page: number, file: file.path.clone(), expected, found };
        damage::check(number, bytes).map_err(damaged)?;
        // Sound, but of another structure, or another snapshot.
        if !page.is(Kind::Bitmap) || page.link() != index as u32 || page.generation() != meta.generation {
            return Err(damaged((None, None)).into());
        }
        let mut chunk = [0; CHUNK_PAGES / 64];
        let words = page.0[HEADER_BYTES..].as_chunks::<8>().0;
        chunk.iter_mut().zip(words).for_each(|(to, word)| *to = u64::from_le_bytes(*word));
        chunks.push(chunk);
    }
    Ok(Bitmap::from_chunks(chunks))
}
