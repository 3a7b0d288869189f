//! A replica's log: one file to which records are appended, and what a restart makes of it.
//!
//! A record is its length (`u32`), its checksum (`u64`) and its bytes. What does not add up is the end of the log: a write
//! that a crash cut short, which nobody was told of. (That it could also be damage in the middle is more than this format
//! can see; `wal` in this repository has one that can.)

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use synod_paxos::{
    Ballot, Batch, Configuration, Configurations, CrashVector, HardState, PersistId, Record, Recovered, Recovery, Slot,
};

use super::replica::INCARNATION;
use super::wire::Wire;

pub(crate) struct Log {
    file: File,
    unwritten: Vec<u8>,
    last: PersistId,
}

impl Log {
    /// Opens the file, which is empty at the very first start. One that is not there is an error: a replica that has lost
    /// its promises must not vote as if it had made none.
    ///
    /// Beside the log: what the protocol starts from, and the batches chosen, from slot 1 on, for the application to apply
    /// again and for replicas that lack them.
    pub(crate) fn open(path: &Path, first: Configuration) -> io::Result<(Self, Recovered, Vec<Batch>)> {
        let mut file = File::options().read(true).write(true).open(path)?;
        // Two processes on one log would be two voters of one name.
        file.try_lock()?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        let mut recovery = Recovery::new(None);
        let mut chosen = Vec::new();
        // The launcher made the file for the very first start: what a log begins with is the same everywhere.
        let configurations = Configurations::first(first);
        let (incarnation, vector) = (INCARNATION, CrashVector::default());
        let begins = HardState { promised: Ballot::NONE, incarnation, vector, configurations, cut: Slot::NONE };
        recovery.take(Record::HardState(begins), |_, _| {}).map_err(invalid)?;
        let mut rest = &bytes[..];
        while let Some((record, behind)) = split_record(rest) {
            let record = Record::from_bytes(record).ok_or_else(|| invalid("a record that is none"))?;
            recovery.take(record, |_, batch| chosen.push(batch.clone())).map_err(invalid)?;
            rest = behind;
        }
        let end = (bytes.len() - rest.len()) as u64;
        file.set_len(end)?;
        file.seek(SeekFrom::Start(end))?;
        // A process that was killed may have written this and not synced it. From here on we act as if it were durable.
        file.sync_all()?;
        let (_, recovered) = recovery.finish().expect("it began above");
        Ok((Self { file, unwritten: Vec::new(), last: PersistId(0) }, recovered, chosen))
    }

    pub(crate) fn append(&mut self, id: PersistId, record: &Record) {
        let mut bytes = Vec::new();
        record.put(&mut bytes);
        u32::try_from(bytes.len()).expect("far below 4 GiB").put(&mut self.unwritten);
        checksum(&bytes).put(&mut self.unwritten);
        self.unwritten.extend(bytes);
        self.last = id;
    }

    /// Makes durable all that was appended. `None`: nothing was. An error is final, for nobody knows what a failed sync
    /// left on the disk: the replica stops, and reads when it starts again.
    pub(crate) fn sync(&mut self) -> io::Result<Option<PersistId>> {
        if self.unwritten.is_empty() {
            return Ok(None);
        }
        self.file.write_all(&self.unwritten)?;
        self.file.sync_data()?;
        self.unwritten.clear();
        Ok(Some(self.last))
    }
}

/// The first record, and what comes behind it.
fn split_record(mut bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let length = usize::try_from(u32::take(&mut bytes)?).ok()?;
    let sum = u64::take(&mut bytes)?;
    bytes.split_at_checked(length).filter(|(record, _)| checksum(record) == sum)
}

/// FNV-1a.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

fn invalid(what: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the log: {what}"))
}
