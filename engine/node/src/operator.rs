//! What an operator asks of a running cell, and what becomes of it: the JSON behind `synod transfer` and `synod member`.

use std::net::SocketAddr;

use crate::stages::{StageSettings, Traces};
use serde::{Deserialize, Serialize};
use synod_paxos::{Change, ChangeError, ReplicaId, TransferError};

/// A wish. Only the master grants it, and any replica says who that is; but of a snapshot each replica makes its own, and copies
/// it itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum OperatorRequest {
    /// Make another replica the master.
    Transfer {
        /// Which.
        to: u16,
    },
    /// Add a member: a learner at once, a voter once it has caught up.
    AddMember {
        /// Its number, never used before in this cell.
        id: u16,
        /// Where the other replicas reach it.
        peer: SocketAddr,
        /// Where clients reach it.
        client: SocketAddr,
    },
    /// Remove a member.
    RemoveMember {
        /// Which.
        id: u16,
        /// Even if the cell survives no failure afterwards.
        force: bool,
    },
    /// Make a snapshot of the database now, whatever the log's length.
    Snapshot,
    /// Take these stage times from now on. Any replica does, for itself.
    Stages {
        /// What to take.
        settings: StageSettings,
    },
    /// Give what was traced, the oldest first. Any replica does.
    TakeTraces,
    /// Copy this replica's database to a remote place. Any replica does.
    SaveSnapshot {
        /// The place: see [`crate::remote::Remote::open`]. None: where its schedule puts them.
        to: Option<String>,
    },
}

/// What became of a wish.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorAnswer {
    /// It is under way: for certain when the status shows it.
    Accepted,
    /// Ask the master: nothing was done here.
    NotMaster {
        /// Its client address, if this replica knows of one.
        master: Option<String>,
    },
    /// What was traced.
    Traces(Traces),
    /// Nothing was done, and this is why.
    Refused {
        /// Why.
        reason: String,
        /// Whether it may well be granted a little later.
        retry: bool,
    },
}

impl OperatorRequest {
    /// The change of the members that it asks for, if it asks for one. The new member's addresses go into the log with it.
    pub fn change(&self) -> Option<Change> {
        match self {
            OperatorRequest::Transfer { .. }
            | OperatorRequest::Snapshot
            | OperatorRequest::Stages { .. }
            | OperatorRequest::TakeTraces
            | OperatorRequest::SaveSnapshot { .. } => None,
            OperatorRequest::AddMember { id, peer, client } => {
                Some(Change::Add { id: ReplicaId(*id), address: format!("{peer},{client}") })
            }
            OperatorRequest::RemoveMember { id, force } => Some(Change::Remove { id: ReplicaId(*id), force: *force }),
        }
    }
}

/// Why these cannot be a new member's addresses, if so. Each member needs two of its own, or the others would take one for
/// the other; `taken` are those in use, and by whom.
pub fn refuse_addresses(
    peer: SocketAddr,
    client: SocketAddr,
    is_insecure: bool,
    taken: impl IntoIterator<Item = (u16, SocketAddr)>,
) -> Option<String> {
    if peer == client {
        return Some(format!("{peer} cannot be both the peer and the client address"));
    }
    for address in [peer, client] {
        if address.port() == 0 {
            return Some(format!("the address {address} has port 0; a member needs a port that the others can know"));
        }
        if !address.ip().is_loopback() && !is_insecure {
            return Some(format!("the address {address} is not on loopback, and the cell runs without --insecure"));
        }
    }
    let same = taken.into_iter().find(|(_, address)| [peer, client].contains(address));
    same.map(|(id, address)| format!("member {id} has the address {address} already"))
}

impl OperatorAnswer {
    /// What became of a transfer.
    pub fn of_transfer(outcome: Result<(), TransferError>, master: Option<&str>) -> Self {
        match outcome {
            Ok(()) => OperatorAnswer::Accepted,
            Err(TransferError::NotMaster) => OperatorAnswer::NotMaster { master: master.map(str::to_owned) },
            Err(error) => {
                let retry = matches!(error, TransferError::Beginning);
                OperatorAnswer::Refused { reason: error.to_string(), retry }
            }
        }
    }

    /// What became of a change.
    pub fn of_change(outcome: Result<(), ChangeError>, master: Option<&str>) -> Self {
        match outcome {
            Ok(()) => OperatorAnswer::Accepted,
            Err(ChangeError::NotMaster) => OperatorAnswer::NotMaster { master: master.map(str::to_owned) },
            Err(error) => {
                let retry = matches!(error, ChangeError::UnderWay | ChangeError::Busy);
                OperatorAnswer::Refused { reason: error.to_string(), retry }
            }
        }
    }
}
