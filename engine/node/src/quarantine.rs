//! What a replica's directory says of a database that is not to be trusted (rule P14).
//!
//! | file | what |
//! |---|---|
//! | `quarantine.toml` | the database is in quarantine, and why: there until another replica's has taken its place |
//! | `quarantine-<slot>.toml` | the same, to keep: the evidence, for whoever looks for the cause |
//! | `database.damaged` | the last process met a damaged page, and ended (`synod_store::DAMAGED_EXIT_STATUS`) |

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use synod_paxos::{ReplicaId, Slot};

use crate::engine::Evidence;

const NOTE_FILE: &str = "quarantine.toml";
const DAMAGED_FILE: &str = "database.damaged";

/// The evidence of a quarantine at this slot.
pub fn evidence_file(slot: u64) -> String {
    format!("quarantine-{slot}.toml")
}

/// Why the database that this directory holds is not to be used, if it is not.
///
/// # Errors
///
/// If that cannot be read.
pub fn noted(dir: &Path, replica: ReplicaId) -> io::Result<Option<Evidence>> {
    if let Some(text) = read(&dir.join(NOTE_FILE))? {
        // Whatever is in it, it is there.
        let garbled = || Evidence::of_damage(replica, Slot::NONE, "the last run noted so".to_owned());
        return Ok(Some(toml::from_str(&text).unwrap_or_else(|_| garbled())));
    }
    let damaged = read(&dir.join(DAMAGED_FILE))?;
    Ok(damaged.map(|found| Evidence::of_damage(replica, Slot::NONE, found)))
}

fn read(path: &Path) -> io::Result<Option<String>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes it, durably.
///
/// # Errors
///
/// If it is not.
pub fn note(dir: &Path, evidence: &Evidence) -> io::Result<()> {
    let text = toml::to_string(evidence).map_err(io::Error::other)?;
    for name in [evidence_file(evidence.slot), NOTE_FILE.to_owned()] {
        let temporary = dir.join("quarantine.new");
        let mut file = File::create(&temporary)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, dir.join(name))?;
    }
    remove(&dir.join(DAMAGED_FILE))?;
    File::open(dir)?.sync_all()
}

/// Takes the note back, durably. The evidence stays.
///
/// # Errors
///
/// If it is still there.
pub fn end(dir: &Path) -> io::Result<()> {
    remove(&dir.join(NOTE_FILE))?;
    File::open(dir)?.sync_all()
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
