//! How new what a read sees must be, as a user says it.

use clap::{Args, ValueEnum};
use synod_api::{Consistency, Revision};
use synod_client::{Client, Seen, Value};

/// Without any of these the master is asked, and what it says is linearizable.
#[derive(Args)]
pub(crate) struct Freshness {
    /// Read at whichever of the endpoints is connected to first, not at the master
    ///
    /// Name one endpoint to choose the replica.
    #[arg(long, value_enum, value_name = "HOW")]
    consistency: Option<Named>,
    /// Read there, at this revision of the database or a later one; the replica waits a moment until it has come as far
    #[arg(long, value_name = "REVISION", conflicts_with = "consistency")]
    at_least: Option<u64>,
    /// Read there, as it was at exactly this revision: what has changed since is refused
    #[arg(long, value_name = "REVISION", conflicts_with_all = ["consistency", "at_least"])]
    at: Option<u64>,
}

/// As users of etcd know them.
#[derive(Clone, Copy, ValueEnum)]
enum Named {
    /// It sees all that was acknowledged before: the replica asks the master how far it must have come
    Linearizable,
    /// Whatever the replica has, which may be old
    Serializable,
}

impl Freshness {
    fn consistency(&self) -> Option<Consistency> {
        let revision = self.at.map(|at| Consistency::At(Revision(at)));
        let revision = revision.or(self.at_least.map(|least| Consistency::AtLeast(Revision(least))));
        revision.or(self.consistency.map(|named| match named {
            Named::Linearizable => Consistency::Linearizable,
            Named::Serializable => Consistency::AtLeast(Revision::NONE),
        }))
    }

    /// The key, and of which revision it is known to be, if a replica was asked that says it.
    pub(crate) fn get(
        &self,
        client: &mut Client,
        key: &[u8],
    ) -> Result<(Option<Revision>, Option<Value>), synod_client::Error> {
        let Some(consistency) = self.consistency() else { return Ok((None, client.get(key)?)) };
        let Seen { revision, found } = client.get_at(key, consistency)?;
        Ok((Some(revision), found))
    }
}
