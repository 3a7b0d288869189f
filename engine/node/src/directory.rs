//! A replica's directory: whose it is, that nobody else uses it, and that it can hold a durable log.
//!
//! | file | what |
//! |---|---|
//! | `identity.toml` | cell, replica, incarnation, format: written last on the first start, so it stands for a finished one |
//! | `lock` | held (flock) while a process uses the directory |
//! | `wal-*.log` | the log's segments (`synod-wal`) |
//! | `database*` | see [`crate::databases`] |
//! | `lost-N` | what was left of a log that was no whole: the replica rejoined without it (rule P11). For a person, who may remove it |

use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::databases::DATABASE_FILE;

/// The version of the directory's layout that this build writes and reads.
const FORMAT: u32 = 1;
const IDENTITY_FILE: &str = "identity.toml";
const LOCK_FILE: &str = "lock";
/// Of so many losses the remains are kept.
const LOST_MAX: u32 = 4;
/// `statfs` names of file systems that need a word of their own.
const TMPFS_MAGIC: u64 = 0x0102_1994;
const RAMFS_MAGIC: u64 = 0x8584_58f6;

/// Whose directory this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cell's random id, made at its first start.
    pub cell: u128,
    /// Which member.
    pub replica: u16,
    /// Which life of its durable state.
    pub incarnation: u64,
    /// Members that were told the cell's id by this one: each is told once, so that a member that lost its directory
    /// cannot be bootstrapped into the cell again as if it had promised nothing (rules P11, P12).
    pub introduced: Vec<u16>,
}

/// The identity as it stands in its file.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IdentityFile {
    format: u32,
    cell: String,
    replica: u16,
    incarnation: u64,
    introduced: Vec<u16>,
    /// crc32c of the line that [`checked_text`] makes of all the above.
    checksum: u32,
}

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryError {
    /// An operation on it failed.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To what.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another process holds the lock.
    #[error("{0} is in use by another process: two replicas never share a directory")]
    InUse(PathBuf),
    /// A file system that forgets.
    #[error(
        "{path} is on tmpfs, which is memory and not durable: everything acknowledged is lost when the machine stops. \
         Use a disk, or say --volatile if that is meant"
    )]
    Tmpfs {
        /// The directory.
        path: PathBuf,
    },
    /// A file system without O_DIRECT.
    #[error(
        "{path} is on {kind}, which does not support O_DIRECT: the log could not know what is on stable storage. \
         Use ext4 or xfs on a disk"
    )]
    NoDirectIo {
        /// The directory.
        path: PathBuf,
        /// The file system's name, where known.
        kind: &'static str,
    },
    /// The log is there, its owner is not.
    #[error(
        "{0} holds log segments but no {IDENTITY_FILE}: the directory was damaged, or the very first start was cut \
         short. Only in the second case is it safe to empty it and bootstrap again"
    )]
    NoIdentity(PathBuf),
    /// Somebody has to look.
    #[error("{dir} holds {LOST_MAX} {what} already: its disk loses them again and again. See to it, and remove them")]
    LostTooOften {
        /// The directory.
        dir: PathBuf,
        /// What was set aside.
        what: &'static str,
    },
    /// The identity file is damaged.
    #[error("{path} is damaged ({reason}); nothing in this directory can be trusted without it")]
    Damaged {
        /// The identity file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A newer build's directory.
    #[error("{path} has format {theirs}, this build knows {FORMAT}: use the build that wrote it, or a newer one")]
    Format {
        /// The identity file.
        path: PathBuf,
        /// Its format.
        theirs: u32,
    },
    /// Another replica's directory.
    #[error(
        "{path} belongs to replica {theirs} of cell {cell:032x}, but this is replica {ours}: wrong directory, or wrong id"
    )]
    OtherReplica {
        /// The directory.
        path: PathBuf,
        /// Whose it is.
        theirs: u16,
        /// Who we are.
        ours: u16,
        /// Its cell.
        cell: u128,
    },
}

/// A directory that this process owns until it is dropped.
pub struct Directory {
    path: PathBuf,
    /// None where nobody ever made one, and we only look.
    _lock: Option<File>,
}

impl Directory {
    /// Locks the directory, made if it is missing, and checks that its file system can hold a durable log.
    pub fn open(path: &Path, volatile: bool) -> Result<Self, DirectoryError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| DirectoryError::Io { doing, path, source }
        };
        fs::create_dir_all(path).map_err(io("cannot make the directory", path))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = File::create(&lock_path).map_err(io("cannot make the lock file", &lock_path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DirectoryError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => return Err(io("cannot lock", &lock_path)(source)),
        }
        let kind =
            rustix::fs::statfs(path).map_err(|e| io("cannot ask for the file system of", path)(e.into()))?.f_type;
        match kind as u64 & 0xffff_ffff {
            TMPFS_MAGIC if !volatile => return Err(DirectoryError::Tmpfs { path: path.to_owned() }),
            RAMFS_MAGIC => return Err(DirectoryError::NoDirectIo { path: path.to_owned(), kind: "ramfs" }),
            _ => {}
        }
        let directory = Self { path: path.to_owned(), _lock: Some(lock) };
        directory.check_direct_io()?;
        Ok(directory)
    }

    /// Locks a directory that exists for others that only look, too. Nothing is made or changed.
    pub fn open_to_look(path: &Path) -> Result<Self, DirectoryError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| DirectoryError::Io { doing, path, source }
        };
        fs::read_dir(path).map_err(io("cannot look into", path))?;
        let lock_path = path.join(LOCK_FILE);
        let lock = match File::open(&lock_path) {
            Ok(lock) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { path: path.to_owned(), _lock: None });
            }
            Err(source) => return Err(io("cannot open", &lock_path)(source)),
        };
        match lock.try_lock_shared() {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: Some(lock) }),
            Err(TryLockError::WouldBlock) => Err(DirectoryError::InUse(path.to_owned())),
            Err(TryLockError::Error(source)) => Err(io("cannot lock", &lock_path)(source)),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn check_direct_io(&self) -> Result<(), DirectoryError> {
        use std::os::unix::fs::OpenOptionsExt;
        let path = self.path.join("direct-io.probe");
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).expect("open flags fit an i32");
        let opened = File::options().write(true).create(true).truncate(true).custom_flags(flags).open(&path);
        // A refused open with O_CREAT may leave the empty file behind; a missing one is what we want.
        let removed = fs::remove_file(&path);
        match opened {
            Ok(_) => removed.map_err(|source| DirectoryError::Io { doing: "cannot remove", path, source }),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INVAL.raw_os_error()) => {
                Err(DirectoryError::NoDirectIo { path: self.path.clone(), kind: "a file system" })
            }
            Err(source) => Err(DirectoryError::Io { doing: "cannot write to", path: self.path.clone(), source }),
        }
    }

    /// The identity, or `None` in an empty directory.
    pub fn identity(&self) -> Result<Option<Identity>, DirectoryError> {
        let path = self.path.join(IDENTITY_FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return if self.has_segments()? {
                    Err(DirectoryError::NoIdentity(self.path.clone()))
                } else {
                    Ok(None)
                };
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                return Err(DirectoryError::Damaged { path, reason: "it is not text".to_owned() });
            }
            Err(source) => return Err(DirectoryError::Io { doing: "cannot read", path, source }),
        };
        parse_identity(&text, &path).map(Some)
    }

    /// Whether there is anything of a log.
    pub fn has_segments(&self) -> Result<bool, DirectoryError> {
        let error = |source| DirectoryError::Io { doing: "cannot list", path: self.path.clone(), source };
        for entry in fs::read_dir(&self.path).map_err(error)? {
            if entry.map_err(error)?.file_name().to_string_lossy().starts_with("wal-") {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Moves what is left of a log and a database that are no whole into a directory `lost-N`, for a person to look at. Says where.
    pub fn set_aside(&self) -> Result<PathBuf, DirectoryError> {
        let io = |doing, path: &Path| {
            let path = path.to_owned();
            move |source| DirectoryError::Io { doing, path, source }
        };
        let aside = self.free_name("lost-", "lost logs (directories lost-N)")?;
        fs::create_dir(&aside).map_err(io("cannot make", &aside))?;
        for entry in fs::read_dir(&self.path).map_err(io("cannot list", &self.path))? {
            let entry = entry.map_err(io("cannot list", &self.path))?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            if text.starts_with("wal-") || text.starts_with("database") || text == IDENTITY_FILE {
                fs::rename(entry.path(), aside.join(&name)).map_err(io("cannot move away", &entry.path()))?;
            }
        }
        for path in [&aside, &self.path] {
            File::open(path).and_then(|dir| dir.sync_all()).map_err(io("cannot sync", path))?;
        }
        Ok(aside)
    }

    /// Moves a database that does not open out of the way, for a person to look at. Says where.
    pub fn set_database_aside(&self) -> Result<PathBuf, DirectoryError> {
        let aside = self.free_name("database.lost-", "lost databases (files database.lost-N)")?;
        let rename = || -> io::Result<()> {
            fs::rename(self.path.join(DATABASE_FILE), &aside)?;
            File::open(&self.path)?.sync_all()
        };
        rename().map_err(|source| DirectoryError::Io { doing: "cannot set aside as", path: aside.clone(), source })?;
        Ok(aside)
    }

    /// The first name with this beginning that is not taken.
    fn free_name(&self, beginning: &str, what: &'static str) -> Result<PathBuf, DirectoryError> {
        let names = (1..=LOST_MAX).map(|number| self.path.join(format!("{beginning}{number}")));
        let dir = || self.path.clone();
        names.into_iter().find(|path| !path.exists()).ok_or_else(|| DirectoryError::LostTooOften { dir: dir(), what })
    }

    /// Writes the identity: under another name first, so that a crash leaves the old one or the new one, never half.
    pub fn write_identity(&self, identity: &Identity) -> Result<(), DirectoryError> {
        let path = self.path.join(IDENTITY_FILE);
        let replace = || -> io::Result<()> {
            let temporary = self.path.join("identity.new");
            let mut file = File::create(&temporary)?;
            file.write_all(format_identity(identity).as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, &path)?;
            File::open(&self.path)?.sync_all()
        };
        replace().map_err(|source| DirectoryError::Io { doing: "cannot write", path: path.clone(), source })
    }

    /// Checks that the identity is this replica's.
    pub fn expect_replica(&self, identity: &Identity, ours: u16) -> Result<(), DirectoryError> {
        if identity.replica == ours {
            return Ok(());
        }
        Err(DirectoryError::OtherReplica {
            path: self.path.clone(),
            theirs: identity.replica,
            ours,
            cell: identity.cell,
        })
    }
}

fn checked_text(identity: &Identity) -> String {
    format!("{FORMAT} {:032x} {} {} {:?}", identity.cell, identity.replica, identity.incarnation, identity.introduced)
}

fn format_identity(identity: &Identity) -> String {
    let file = IdentityFile {
        format: FORMAT,
        cell: format!("{:032x}", identity.cell),
        replica: identity.replica,
        incarnation: identity.incarnation,
        introduced: identity.introduced.clone(),
        checksum: crc32c::crc32c(checked_text(identity).as_bytes()),
    };
    let body = toml::to_string(&file).expect("numbers and strings are valid TOML");
    format!("# Written by synod. Do not edit: the log beside it belongs to this very identity.\n{body}")
}

fn parse_identity(text: &str, path: &Path) -> Result<Identity, DirectoryError> {
    let damaged = |reason: String| DirectoryError::Damaged { path: path.to_owned(), reason };
    /// Read first: a newer format may have keys that this build does not know.
    #[derive(Deserialize)]
    struct JustFormat {
        format: u32,
    }
    let JustFormat { format } = toml::from_str(text).map_err(|e| damaged(e.message().to_owned()))?;
    if format != FORMAT {
        return Err(DirectoryError::Format { path: path.to_owned(), theirs: format });
    }
    let file: IdentityFile = toml::from_str(text).map_err(|e| damaged(e.message().to_owned()))?;
    let cell = u128::from_str_radix(&file.cell, 16).map_err(|e| damaged(format!("the cell id: {e}")))?;
    let identity = Identity { cell, replica: file.replica, incarnation: file.incarnation, introduced: file.introduced };
    if crc32c::crc32c(checked_text(&identity).as_bytes()) != file.checksum {
        return Err(damaged("its checksum does not match".to_owned()));
    }
    Ok(identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { cell: 0xabc, replica: 2, incarnation: 1, introduced: vec![3] }
    }

    #[test]
    fn an_identity_comes_back_and_an_empty_directory_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), false).unwrap();
        assert_eq!(directory.identity().unwrap(), None);
        directory.write_identity(&identity()).unwrap();
        assert_eq!(directory.identity().unwrap(), Some(identity()));
        directory.expect_replica(&identity(), 2).unwrap();
        let message = directory.expect_replica(&identity(), 1).unwrap_err().to_string();
        assert!(message.contains("belongs to replica 2"), "{message}");
    }

    #[test]
    fn a_changed_identity_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), false).unwrap();
        directory.write_identity(&identity()).unwrap();
        let path = dir.path().join(IDENTITY_FILE);
        let text = fs::read_to_string(&path).unwrap();
        for (from, to, expect) in [
            ("replica = 2", "replica = 1", "checksum"),
            ("format = 1", "format = 9", "format 9"),
            ("replica = 2", "", "replica"),
        ] {
            fs::write(&path, text.replace(from, to)).unwrap();
            let message = directory.identity().unwrap_err().to_string();
            assert!(message.contains(expect), "{message}");
        }
    }

    #[test]
    fn segments_without_identity_are_no_empty_directory() {
        let dir = tempfile::tempdir().unwrap();
        let directory = Directory::open(dir.path(), false).unwrap();
        fs::write(dir.path().join("wal-0000000001.log"), "x").unwrap();
        assert!(matches!(directory.identity(), Err(DirectoryError::NoIdentity(_))));
    }

    #[test]
    fn a_directory_has_one_owner() {
        let dir = tempfile::tempdir().unwrap();
        let first = Directory::open(dir.path(), false).unwrap();
        assert!(matches!(Directory::open(dir.path(), false), Err(DirectoryError::InUse(_))));
        drop(first);
        Directory::open(dir.path(), false).unwrap();
    }
}
