//! The load of a command that breaks a cell: its clients, and what all of them were told.

use std::time::Duration;

use synod_client::Options;

use super::cell::TortureCell;
use super::client::{LoadClient, Shared, Tally, read_back_counters, under_load};
use super::history::Revisions;

/// Old files that are read back after each round, besides the new ones.
const OLD_FILES: usize = 200;
/// Every other client gives up early, so that there are outcomes that nobody knows.
const IMPATIENT_DEADLINE: Duration = Duration::from_millis(400);

/// All clients of a run.
pub struct Load {
    clients: Vec<LoadClient>,
    shared: Shared,
    revisions: Revisions,
    read_backs: u64,
}

impl Load {
    /// So many clients of this cell, whose own keys are given so many bytes at most; 0: small ones.
    pub fn connect(cell: &TortureCell, clients: u32, bulk_bytes_max: usize, seed: u64) -> anyhow::Result<Self> {
        let endpoints = cell.endpoints();
        let client = |id: u32| {
            let patient = Options::default();
            let deadline = if id.is_multiple_of(2) { IMPATIENT_DEADLINE } else { patient.deadline };
            let client = LoadClient::connect(id, &endpoints, Options { deadline, ..patient }, seed)?;
            Ok(client.with_bulk(bulk_bytes_max))
        };
        Ok(Self {
            clients: (1..=clients).map(client).collect::<anyhow::Result<_>>()?,
            shared: Shared::default(),
            revisions: Revisions::default(),
            read_backs: 0,
        })
    }

    /// Does something while all clients put load on the cell.
    pub fn run<T>(&mut self, act: impl FnOnce(&Shared) -> anyhow::Result<T>) -> anyhow::Result<T> {
        let (acted, ran) = under_load(&mut self.clients, &self.shared, || act(&self.shared));
        // What a client found says more than that the round was cut short.
        ran?;
        acted
    }

    /// For a read-back: of each client the files that it makes from now on, and some old ones.
    #[must_use]
    pub fn recent_files(&self) -> Vec<usize> {
        self.clients.iter().map(|client| client.files().saturating_sub(OLD_FILES)).collect()
    }

    /// For a read-back: all files of each client.
    #[must_use]
    pub fn all_files(&self) -> Vec<usize> {
        vec![0; self.clients.len()]
    }

    /// Reads back what clients were told, each its files from these on, and waits until all replicas are alike; says how
    /// many slots are chosen. Nothing may be written meanwhile.
    pub fn read_back(&mut self, cell: &mut TortureCell, files_from: &[usize]) -> anyhow::Result<u64> {
        for client in &mut self.clients {
            client.take_revisions().into_iter().try_for_each(|revision| self.revisions.take(revision))?;
        }
        let endpoints = cell.endpoints();
        let endpoints = &endpoints;
        let read: anyhow::Result<Vec<u64>> = std::thread::scope(|scope| {
            let reading: Vec<_> = self
                .clients
                .iter_mut()
                .zip(files_from)
                .map(|(client, &files)| scope.spawn(move || client.read_back(endpoints, files)))
                .collect();
            reading.into_iter().map(|reading| reading.join().expect("a client returns its violation")).collect()
        });
        self.read_backs += read?.iter().sum::<u64>() + read_back_counters(endpoints, &self.clients)?;
        let status = cell.wait_until_alike()?;
        Ok(status.chosen)
    }

    /// What was read back so far, each checked.
    #[must_use]
    pub fn read_backs(&self) -> u64 {
        self.read_backs
    }

    /// What all clients did.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let mut tally = Tally::default();
        self.clients.iter().for_each(|client| tally.add(client.tally()));
        tally
    }
}
