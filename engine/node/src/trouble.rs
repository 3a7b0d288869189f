//! Something that does not work for a while and is tried again: said once when it begins and once when it ends, not with each
//! try, and shown in the status meanwhile.

use serde::{Deserialize, Serialize};
use synod_paxos::Instant;

/// What does not work at present.
#[derive(Debug)]
pub struct Trouble {
    what: &'static str,
    now: Option<(Instant, String)>,
}

/// The same, for the status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleStatus {
    /// For so many seconds.
    pub for_s: u64,
    /// Why, with the file.
    pub why: String,
}

impl Trouble {
    /// None yet, of this kind: "making a segment of the log".
    pub fn new(what: &'static str) -> Self {
        Self { what, now: None }
    }

    /// It failed, perhaps not for the first time.
    pub fn failed(&mut self, now: Instant, why: String) {
        let Self { what, now: trouble } = self;
        match trouble {
            Some((_, last)) => *last = why,
            None => {
                eprintln!("synod: {what} failed, and is tried again until it works: {why}");
                *trouble = Some((now, why));
            }
        }
    }

    /// It worked.
    pub fn worked(&mut self, now: Instant) {
        if let Some((since, _)) = self.now.take() {
            eprintln!("synod: {} works again, after {:?}", self.what, now.since(since));
        }
    }

    /// What to show.
    pub fn status(&self, now: Instant) -> Option<TroubleStatus> {
        let (since, why) = self.now.as_ref()?;
        Some(TroubleStatus { for_s: now.since(*since).as_secs(), why: why.clone() })
    }
}
