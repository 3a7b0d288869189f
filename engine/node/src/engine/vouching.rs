//! Whether another replica's database may take the place of the own one: the others are asked first (rule P14).
//!
//! Whoever takes over a database that nobody has compared yet may double a wrong one, and two wrong ones outvote the sound one. So a
//! laggard asks the voters, from the offer on until the database is in its place, what digest they had at that slot. Its own
//! opinion does not count: it has none.
//!
//! | what the voters say of the slot, the sender among them | then |
//! |---|---|
//! | the sender does not know the slot any more: it began again, or is in quarantine itself | it is dropped; the next offer begins another |
//! | a majority had the digest that was offered | it is taken |
//! | a majority had another one | it is dropped |
//! | neither, for less than [`PATIENCE`] | they are asked again |
//! | neither, and one of them had another one | it is dropped |
//! | neither, and nobody had another one | it is taken: who could tell is not there, and a cell of which two are left goes on |
//!
//! The last row is what is left of the hole: the atlas names it. A voter remembers what it was asked for, so that it can tell again
//! when the slot has left its ring; it forgets that with its process.

use super::*;
use crate::codec::DigestMessage;
use synod_paxos::ReplicaSet;
use synod_store::Digest;

/// Those who could tell are waited for so long. Meanwhile the laggard votes as before.
const PATIENCE: Duration = Duration::from_secs(5);
/// They are asked again after this.
const AGAIN: Duration = Duration::from_millis(500);

/// What is to be done with the database that is on its way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Vouched {
    /// Nobody knows yet.
    Open,
    /// It may take the own one's place.
    Sound,
    /// It must not.
    Refused,
}

/// Who said what of the database that is on its way.
pub(super) struct Vouching {
    slot: Slot,
    offered: Digest,
    by: ReplicaId,
    /// Of the offered state: the laggard's own may be an older one.
    configuration: Configuration,
    said: BTreeMap<ReplicaId, Digest>,
    since: Instant,
    ask_at: Instant,
}

impl Vouching {
    pub(super) fn new(handle: &SnapshotHandle, (by, offered): (ReplicaId, Digest), now: Instant) -> Self {
        let configuration = handle.configurations.current.clone();
        let said = BTreeMap::from([(by, offered)]);
        Self { slot: handle.slot, offered, by, configuration, said, since: now, ask_at: now }
    }

    /// The digest that its sender told.
    pub(super) fn offered(&self) -> Digest {
        self.offered
    }

    pub(super) fn deadline(&self) -> Instant {
        self.ask_at
    }

    /// Who is to be asked now.
    pub(super) fn tend(&mut self, now: Instant) -> Option<ReplicaSet> {
        if now < self.ask_at {
            return None;
        }
        self.ask_at = now.after(AGAIN);
        Some(self.configuration.voters())
    }

    /// Another one's word; it takes the place of what it said before.
    pub(super) fn take(&mut self, from: ReplicaId, slot: Slot, digest: Option<Digest>) {
        if slot != self.slot || !self.configuration.voters().contains(from) && from != self.by {
            return;
        }
        match digest {
            Some(digest) => drop(self.said.insert(from, digest)),
            None => drop(self.said.remove(&from)),
        }
    }

    pub(super) fn verdict(&self, now: Instant) -> Vouched {
        if synod_paxos::planted!(P14InstallsUnasked) {
            return Vouched::Sound;
        }
        let who = |is_meant: &dyn Fn(Digest) -> bool| -> ReplicaSet {
            self.said.iter().filter(|(_, digest)| is_meant(**digest)).map(|(replica, _)| *replica).collect()
        };
        let has_majority = |digest: Digest| self.configuration.is_majority(who(&|said| said == digest));
        if self.said.get(&self.by) != Some(&self.offered) {
            return Vouched::Refused;
        }
        if has_majority(self.offered) {
            return Vouched::Sound;
        }
        if self.said.values().any(|digest| has_majority(*digest)) {
            return Vouched::Refused;
        }
        if now.since(self.since) < PATIENCE {
            return Vouched::Open;
        }
        let is_contradicted = self.said.values().any(|digest| *digest != self.offered);
        if is_contradicted { Vouched::Refused } else { Vouched::Sound }
    }
}

impl Engine {
    /// Asks the voters again, if it is time.
    pub(super) fn ask_to_vouch(&mut self, now: Instant, outlet: &mut impl Outlet) {
        let Some(vouching) = self.catch_up.vouching() else { return };
        let slot = vouching.slot;
        let Some(voters) = vouching.tend(now) else { return };
        for to in voters.iter().filter(|id| *id != self.me && self.members.contains(id)) {
            outlet.send_snapshot(to, SnapshotMessage::Digest(DigestMessage::Vouch { slot }));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Vouched::{Open, Refused, Sound};

    const RIGHT: Digest = Digest(1);
    const WRONG: Digest = Digest(2);

    /// Who said what.
    type Told<'a> = &'a [(u16, Option<Digest>)];

    /// What a laggard among so many voters does with what replica 1 offers, told this, in the beginning and when its patience is over.
    fn verdicts(voters: u16, said: Told<'_>) -> (Vouched, Vouched) {
        let members = (1..=voters).map(ReplicaId);
        let current = Configuration::of_voters(members, 8, Duration::from_secs(1)).expect("a sound configuration");
        let configurations = Configurations::first(current);
        let handle = SnapshotHandle { slot: Slot(7), ballot: Ballot::NONE, configurations };
        let began = Instant(0);
        let mut vouching = Vouching::new(&handle, (ReplicaId(1), RIGHT), began);
        for (replica, digest) in said {
            vouching.take(ReplicaId(*replica), Slot(7), *digest);
            vouching.take(ReplicaId(*replica), Slot(8), Some(Digest(9)));
        }
        (vouching.verdict(began), vouching.verdict(began.after(PATIENCE)))
    }

    #[test]
    fn a_database_is_taken_over_as_the_table_says() {
        let (right, wrong) = (Some(RIGHT), Some(WRONG));
        let cases: &[(u16, Told<'_>, (Vouched, Vouched))] = &[
            (3, &[], (Open, Sound)),
            (3, &[(2, None)], (Open, Sound)),
            (3, &[(2, right)], (Sound, Sound)),
            (3, &[(2, wrong)], (Open, Refused)),
            (3, &[(2, wrong), (2, None)], (Open, Sound)),
            (3, &[(1, None)], (Refused, Refused)),
            (3, &[(1, wrong)], (Refused, Refused)),
            (3, &[(4, right), (4, wrong)], (Open, Sound)),
            (5, &[(2, right)], (Open, Sound)),
            (5, &[(2, right), (3, right)], (Sound, Sound)),
            (5, &[(2, right), (3, wrong)], (Open, Refused)),
            (5, &[(2, right), (3, wrong), (4, right)], (Sound, Sound)),
            (5, &[(2, wrong), (3, wrong), (4, wrong)], (Refused, Refused)),
        ];
        for (voters, said, expected) in cases {
            assert_eq!(verdicts(*voters, said), *expected, "{voters} voters, {said:?}");
        }
    }
}
