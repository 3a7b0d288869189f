//! Synod's side of the comparison: a cell as `table1` measures it, with the load of `synod-bench load`.

use std::net::SocketAddr;
use std::path::Path;

use synod_node::local_cell::{LocalCell, LocalCellOptions};

use super::RowSpec;
use super::turn::{Servers, Workers};
use crate::load::connections_for;
use crate::workload::{Plan, Work, Workload};

/// A running cell, with its defaults.
pub(super) struct Synod(LocalCell);

impl Synod {
    /// Starts so many replicas of this very program.
    pub(super) fn start(replicas: u16, dir: &Path) -> anyhow::Result<Self> {
        let dir = dir.to_owned();
        let options = LocalCellOptions { replicas, dir, first_port: None, serve_flags: Vec::new(), program: None };
        Ok(Self(LocalCell::start(options)?))
    }
}

impl Servers for Synod {
    fn version(&self) -> anyhow::Result<String> {
        Ok(env!("CARGO_PKG_VERSION").to_owned())
    }

    fn processes(&self) -> Vec<u32> {
        self.0.ids().into_iter().filter_map(|id| self.0.pid(id)).collect()
    }

    fn leader(&mut self) -> anyhow::Result<Option<SocketAddr>> {
        self.0.check()?;
        let coordinates = |id: &u16| self.0.status(*id).is_some_and(|status| status.role == "coordinating");
        let master = self.0.ids().into_iter().find(coordinates);
        Ok(master.map(|id| self.0.endpoint(id).parse()).transpose()?)
    }

    /// The client library finds the master by itself.
    fn workers(&self, _leader: SocketAddr, RowSpec { workers, bytes }: RowSpec) -> anyhow::Result<Box<dyn Workers>> {
        Ok(Box::new(Workload::new(Plan {
            endpoints: self.0.endpoints(),
            workers,
            connections: connections_for(workers),
            value_bytes: bytes,
            work: Work::OwnKey { reads_percent: 0, anywhere: None },
        })?))
    }
}

impl Workers for Workload {
    fn finish(self: Box<Self>) -> anyhow::Result<()> {
        Workload::finish(*self)
    }
}
