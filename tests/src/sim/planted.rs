//! Bugs put in on purpose: checkers that do not see them see nothing.
//!
//! Each breaks one rule and is named after it. These live in what the simulator puts around a replica: its disks, its
//! wires, its start, its clients' door. Those inside the protocol are its own to hold, behind its feature `planted`, which
//! this crate's feature of that name turns on: [`Bug::Core`] is one of them.

#[cfg(feature = "planted")]
use synod_paxos::planted as core;

use super::faults::Kind;
use super::swarm::Swarm;
use super::verdict::Checker;

macro_rules! bugs {
    ($($bug:ident $name:literal $breaks:literal $checker:ident,)*) => {
        /// A bug that can be planted.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[expect(missing_docs, reason = "`breaks` says what each of them is")]
        pub enum Bug {
            $($bug,)*
            /// One inside the protocol.
            #[cfg(feature = "planted")]
            Core(core::Bug),
        }

        /// Those that the simulator holds.
        const HERE: &[Bug] = &[$(Bug::$bug,)*];

        impl Bug {
            /// The number of the rule that it breaks, and how.
            pub fn name(self) -> &'static str {
                match self {
                    $(Bug::$bug => $name,)*
                    #[cfg(feature = "planted")]
                    Bug::Core(bug) => core::ALL[bug as usize].1,
                }
            }

            /// What is wrong, in a line.
            pub fn breaks(self) -> &'static str {
                match self {
                    $(Bug::$bug => $breaks,)*
                    #[cfg(feature = "planted")]
                    Bug::Core(bug) => core::ALL[bug as usize].2,
                }
            }

            /// The checker that is there for this: another may come first, but this one must see it some time.
            pub fn checker(self) -> Checker {
                match self {
                    $(Bug::$bug => Checker::$checker,)*
                    #[cfg(feature = "planted")]
                    Bug::Core(bug) => checker_of(bug),
                }
            }
        }
    };
}

bugs! {
    I7UncheckedBytes "I7UncheckedBytes" "a value changes on the wire, and nobody checks" Agreement,
    L1WrongDirectoryVotes "L1WrongDirectoryVotes" "a replica starts on another's directory" Recovery,
    L2ShortWrite "L2ShortWrite" "a short write passes for a whole one" DurableBeforeTold,
    L2SyncLies "L2SyncLies" "a sync that did nothing passes for one that did" Recovery,
    L2RetriesFailedFlush "L2RetriesFailedFlush" "a sync that failed is tried again, and the second one believed" DurableBeforeTold,
    L2VotesAfterFailedFlush "L2VotesAfterFailedFlush" "a flush that failed passes for durable" DurableBeforeTold,
    L4CutsTheMiddle "L4CutsTheMiddle" "a hole in the log passes for its end" Recovery,
    L4UnreadableIsEmpty "L4UnreadableIsEmpty" "a block that cannot be read passes for one that was never written" Recovery,
    L5CutsDamagedMiddle "L5CutsDamagedMiddle" "damage to what was durable is cut off like a torn tail" Recovery,
    P2RestartForgetsPromise "P2RestartForgetsPromise" "a restart forgets what was promised, and keeps what was accepted" Promises,
    P2ForgetsAcceptances "P2ForgetsAcceptances" "a restart forgets what was accepted" Promises,
    P3PromiseOmitsChosen "P3PromiseOmitsChosen" "promises do not tell what is chosen: no-ops fill such slots" Agreement,
    P3PromiseOmitsAccepted "P3PromiseOmitsAccepted" "promises do not tell what was accepted" Agreement,
    P4CommitSlotTooHigh "P4CommitSlotTooHigh" "a commit slot covers what is only proposed" Agreement,
    P6CountsAVoteTwice "P6CountsAVoteTwice" "one acknowledgement counts as two" Agreement,
    P10AnswersSwapped "P10AnswersSwapped" "two callers get each other's answers" Answers,
    P10RetryIsNew "P10RetryIsNew" "a retry gets a stamp of its own, and is applied again" AtMostOnce,
    P10UnknownToldAsCertain "P10UnknownToldAsCertain" "an unknown outcome is told as a refusal" AcknowledgedWrites,
    P12WipedReplicaVotes "P12WipedReplicaVotes" "an empty directory passes for a new replica's" Promises,
    P14RottenRow "P14RottenRow" "a restart changes a row that no command has changed" InOrderApply,
    P15AcknowledgesBeforeDurable "P15AcknowledgesBeforeDurable" "a flush passes for durable as it begins" DurableBeforeTold,
    P16ReadsLocally "P16ReadsLocally" "any replica answers a read from its own copy" Linearizability,
    R3LostCompletion "R3LostCompletion" "a flush ends, and its completion is dropped" Liveness,
    S2KeptBeforeDurable "S2KeptBeforeDurable" "a snapshot passes for durable as it begins" Recovery,
    RunReadsOutsideTime "RunReadsOutsideTime" "a run depends on something that its seed does not" Determinism,
}

/// What must see which of the protocol's own.
#[cfg(feature = "planted")]
fn checker_of(bug: core::Bug) -> Checker {
    use core::Bug as B;
    match bug {
        B::P1PromisesToOlder | B::P1AcceptsFromOlder => Checker::Promises,
        B::P1ReusesBallot | B::P3LeadsBehind | B::P3AdoptsNothing | B::P3AdoptsLatestReport => Checker::Agreement,
        B::P1ProposesBeforeOwnPromise | B::P2ForgetsPromise | B::P15TellsBeforeDurable => Checker::DurableBeforeTold,
        B::P4CommitsOtherBallots => Checker::InOrderApply,
        B::P5AppliesOutOfOrder => Checker::Assertion,
        B::P6GovernsAtOnce | B::P6MinorityDecides | B::P6CountsLearners | B::P6OldMajorityLeads => Checker::Agreement,
        B::P7NeverGivesUp => Checker::GivesUp,
        B::P8NoWaitAfterStart
        | B::P8PromisesAgainstGrant
        | B::P8HolderLongerThanGranters
        | B::P8CountsFromAcknowledgement => Checker::DisjointLeases,
        B::P8ReadsBeforeOwnSlot | B::P16ReadsWithoutLease => Checker::Linearizability,
        B::P8TellsIndexWithoutLease | B::P16AnswersBeforeIndex | B::P16SharesOlderRound => Checker::Linearizability,
        B::P16ServesOlderThanAsked => Checker::BoundedReads,
        B::P2InstallForgetsPromise | B::L5NoOpOverLost => Checker::Promises,
        B::L5CountsLostAsNothing | B::L5ServesWhatIsThere => Checker::Agreement,
        B::P6InstallKeepsMembers => Checker::Agreement,
        B::S1CutsAtTheNewer => Checker::Recovery,
        B::L7NeverTriesAgain => Checker::Liveness,
        B::P11KeepsOldIncarnation | B::P11ForgetsLives | B::P13VotesAtOnce => Checker::Promises,
        B::P11VotesAfterOneInstance | B::P11HoleEndsRejoin => Checker::Promises,
        B::P11CountsSuperseded => Checker::Agreement,
        B::P14AppliesDifferently | B::P14SeedsFromQuarantine => Checker::Divergence,
        B::P14SubtractsWhatItShouldHold | B::P14OddOneOutGoesOn => Checker::Liveness,
        B::P14InstallsUnasked => Checker::InOrderApply,
        B::P9KeepsEpoch | B::P10ForgetsResults => Checker::InOrderApply,
    }
}

impl Bug {
    /// In how many seeds it must be found.
    pub const SEEDS_MAX: u64 = 2_000;

    /// All of them that this build has.
    pub fn all() -> Vec<Bug> {
        #[cfg(feature = "planted")]
        let inside = core::ALL.iter().map(|(bug, ..)| Bug::Core(*bug));
        #[cfg(not(feature = "planted"))]
        let inside = [];
        HERE.iter().copied().chain(inside).collect()
    }

    /// The one with this name.
    pub fn named(name: &str) -> Option<Bug> {
        Bug::all().into_iter().find(|bug| bug.name() == name)
    }

    /// The number of the rule that it breaks.
    pub fn rule(self) -> &'static str {
        let name = self.name();
        let digits = name.bytes().skip(1).take_while(u8::is_ascii_digit).count();
        if digits == 0 { "-" } else { &name[..=digits] }
    }

    /// What a world must be like for the bug to have a chance.
    pub(crate) fn arrange(self, swarm: &mut Swarm) {
        match self {
            Bug::L1WrongDirectoryVotes => swarm.kinds = Some(&[Kind::Swapped, Kind::Crash]),
            Bug::P12WipedReplicaVotes => swarm.lose_often(&[Kind::Wiped, Kind::Crash]),
            Bug::L4CutsTheMiddle => {
                swarm.replicas = swarm.replicas.max(3);
                swarm.machines = swarm.replicas;
                swarm.kinds = Some(&[Kind::Rot, Kind::Crash]);
            }
            Bug::L4UnreadableIsEmpty => swarm.kinds = Some(&[Kind::ReadErrors, Kind::Crash]),
            Bug::S2KeptBeforeDurable => swarm.keep_often(),
            Bug::L2RetriesFailedFlush | Bug::L2VotesAfterFailedFlush => {
                swarm.kinds = Some(&[Kind::FailedFlush, Kind::Loss])
            }
            Bug::L2SyncLies => swarm.kinds = Some(&[Kind::PowerCut, Kind::Loss]),
            #[cfg(feature = "planted")]
            Bug::Core(bug) => arrange_for(bug, swarm),
            _ => {}
        }
    }

    /// Whether only a second run of the same seed can show it.
    pub(crate) fn needs_a_second_run(self) -> bool {
        self == Bug::RunReadsOutsideTime
    }

    /// Plants it in the protocol, if that is its place, until the guard is dropped.
    pub(crate) fn plant(bug: Option<Bug>) -> Planted {
        #[cfg(feature = "planted")]
        synod_store::plant_forgiving_digest(bug == Some(Bug::Core(core::Bug::P14SubtractsWhatItShouldHold)));
        #[cfg(feature = "planted")]
        core::plant(bug.and_then(|bug| if let Bug::Core(bug) = bug { Some(bug) } else { None }));
        let _ = bug;
        Planted(())
    }
}

/// A bug is planted in what this thread runs.
pub(crate) struct Planted(());

impl Drop for Planted {
    fn drop(&mut self) {
        #[cfg(feature = "planted")]
        {
            synod_store::plant_forgiving_digest(false);
            core::plant(None);
        }
    }
}

/// Does something as it is right, whatever is planted in what this thread runs: judges must not err with the judged.
pub(crate) fn soundly<T>(what: impl FnOnce() -> T) -> T {
    #[cfg(feature = "planted")]
    {
        let before = core::planted();
        core::plant(None);
        let done = what();
        core::plant(before);
        done
    }
    #[cfg(not(feature = "planted"))]
    what()
}

/// A world in which a bug inside the protocol has a chance.
#[cfg(feature = "planted")]
fn arrange_for(bug: core::Bug, swarm: &mut Swarm) {
    use super::swarm::MILLISECOND;
    use core::Bug as B;
    let lost_masters: &[Kind] =
        &[Kind::Partition, Kind::Bridge, Kind::SendOnly, Kind::ReceiveOnly, Kind::Pause, Kind::Crash, Kind::Drift];
    let members: &[Kind] = &[Kind::Added, Kind::Removed, Kind::Loss, Kind::Delay, Kind::Partition, Kind::Transfer];
    match bug {
        B::P8NoWaitAfterStart | B::P8PromisesAgainstGrant | B::P8HolderLongerThanGranters => {
            swarm.kinds = Some(lost_masters);
            // So that the lease, and not the patience of the others, is what keeps them from campaigning.
            swarm.lease = swarm.election_timeout * 4;
        }
        B::P8CountsFromAcknowledgement => {
            swarm.kinds = Some(&[Kind::Partition, Kind::Bridge, Kind::Delay, Kind::SlowDisk, Kind::Stall, Kind::Drift]);
            swarm.lease = swarm.election_timeout * 2;
        }
        B::P8ReadsBeforeOwnSlot | B::P8TellsIndexWithoutLease | B::P5AppliesOutOfOrder | B::P3AdoptsLatestReport => {
            swarm.horizon = swarm.horizon.max(8);
            swarm.window = 8;
            swarm.kinds =
                Some(&[Kind::Loss, Kind::Reordering, Kind::Crash, Kind::Pause, Kind::Partition, Kind::Transfer]);
        }
        B::P6GovernsAtOnce | B::P6MinorityDecides | B::P6CountsLearners | B::P6OldMajorityLeads => {
            (swarm.replicas, swarm.machines) = (3, 5);
            swarm.kinds = Some(members);
        }
        B::L5CountsLostAsNothing | B::L5NoOpOverLost => {
            swarm.replicas = swarm.replicas.max(3);
            swarm.machines = swarm.replicas;
            swarm.kinds = Some(&[Kind::Rot, Kind::Loss, Kind::Partition, Kind::Bridge, Kind::Crash, Kind::PowerCut]);
        }
        B::L5ServesWhatIsThere => {
            swarm.lose_often(&[Kind::LostWrite, Kind::Misdirected, Kind::Loss, Kind::Partition, Kind::Bridge]);
            swarm.recent_bytes_max = 2_000;
        }
        B::P1ReusesBallot | B::P2ForgetsPromise => swarm.kinds = Some(&[Kind::Crash, Kind::PowerCut, Kind::Partition]),
        B::S1CutsAtTheNewer | B::P2InstallForgetsPromise => swarm.keep_often(),
        B::P6InstallKeepsMembers => {
            swarm.keep_often();
            (swarm.replicas, swarm.machines, swarm.kinds) = (3, 5, Some(members));
        }
        B::L7NeverTriesAgain => swarm.kinds = Some(&[Kind::NoRoom]),
        B::P7NeverGivesUp => swarm.kinds = Some(lost_masters),
        B::P11VotesAfterOneInstance | B::P11KeepsOldIncarnation | B::P11ForgetsLives => {
            swarm.lose_often(&[Kind::Wiped, Kind::Crash])
        }
        B::P11HoleEndsRejoin => {
            swarm.lose_often(&[Kind::Misdirected, Kind::LostWrite, Kind::Rot, Kind::Crash, Kind::Loss, Kind::Pause]);
        }
        B::P11CountsSuperseded => {
            // Three of five disks have to take a slot, slowly: whoever was first is wiped, and back, before the third.
            swarm.replicas = 5;
            swarm.lose_often(&[Kind::Wiped, Kind::Loss]);
            swarm.be_slow(60 * MILLISECOND);
        }
        B::P14OddOneOutGoesOn => swarm.lose_often(&[Kind::Diverged, Kind::Loss]),
        B::P14SubtractsWhatItShouldHold => swarm.lose_often(&[Kind::RottenRow, Kind::Loss]),
        B::P14SeedsFromQuarantine | B::P14InstallsUnasked => {
            swarm.keep_often();
            swarm.lose_often(&[Kind::Diverged, Kind::Crash, Kind::Partition, Kind::Pause, Kind::PowerCut]);
        }
        B::P13VotesAtOnce => swarm.lose_often(&[Kind::RolledBack, Kind::Loss]),
        _ => {}
    }
}
