//! Bugs put in on purpose: checkers that do not see them see nothing.
//!
//! Each breaks one rule and is named after it. These live in what the simulator puts around a replica: its disks, its
//! wires, its start, its clients' door. Bugs inside the other crates are theirs to hold, behind their own feature
//! `planted`, which this crate's feature of that name turns on; [`Bug`] is where they get their name here.

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
        }

        impl Bug {
            /// All of them.
            pub const ALL: &[Bug] = &[$(Bug::$bug,)*];

            /// The number of the rule that it breaks, and how.
            pub fn name(self) -> &'static str {
                match self { $(Bug::$bug => $name,)* }
            }

            /// What is wrong, in a line.
            pub fn breaks(self) -> &'static str {
                match self { $(Bug::$bug => $breaks,)* }
            }

            /// The checker that is there for this: another may come first, but this one must see it some time.
            pub fn checker(self) -> Checker {
                match self { $(Bug::$bug => Checker::$checker,)* }
            }
        }
    };
}

bugs! {
    I7UncheckedBytes "I7_UncheckedBytes" "a value changes on the wire, and nobody checks" Agreement,
    L1WrongDirectoryVotes "L1_WrongDirectoryVotes" "a replica starts on another's directory" Recovery,
    L2ShortWrite "L2_ShortWrite" "a short write passes for a whole one" DurableBeforeTold,
    L2SyncLies "L2_SyncLies" "a sync that did nothing passes for one that did" Recovery,
    L5CutsDamagedMiddle "L5_CutsDamagedMiddle" "damage to what was durable is cut off like a torn tail" Recovery,
    P2ForgetsPromise "P2_ForgetsPromise" "a restart forgets what was promised, and keeps what was accepted" Promises,
    P2ForgetsAcceptances "P2_ForgetsAcceptances" "a restart forgets what was accepted" Promises,
    P3PromiseOmitsChosen "P3_PromiseOmitsChosen" "promises do not tell what is chosen: no-ops fill such slots" Agreement,
    P3PromiseOmitsAccepted "P3_PromiseOmitsAccepted" "promises do not tell what was accepted" Agreement,
    P4CommitSlotTooHigh "P4_CommitSlotTooHigh" "a commit slot covers what is only proposed" Agreement,
    P6CountsAVoteTwice "P6_CountsAVoteTwice" "one acknowledgement counts as two" Agreement,
    P10AnswersSwapped "P10_AnswersSwapped" "two callers get each other's answers" Answers,
    P10RetryIsNew "P10_RetryIsNew" "a retry gets a stamp of its own, and is applied again" AtMostOnce,
    P10UnknownToldAsCertain "P10_UnknownToldAsCertain" "an unknown outcome is told as a refusal" AcknowledgedWrites,
    P12WipedReplicaVotes "P12_WipedReplicaVotes" "an empty directory passes for a new replica's" Recovery,
    P14RottenRow "P14_RottenRow" "a restart changes a row that no command has changed" InOrderApply,
    P15AcknowledgesBeforeDurable "P15_AcknowledgesBeforeDurable" "a flush passes for durable as it begins" DurableBeforeTold,
    P16ReadsLocally "P16_ReadsLocally" "any replica answers a read from its own copy" Linearizability,
    R3LostCompletion "R3_LostCompletion" "a flush ends, and its completion is dropped" Liveness,
    RunReadsOutsideTime "Run_ReadsOutsideTime" "a run depends on something that its seed does not" Determinism,
}

impl Bug {
    /// In how many seeds it must be found.
    pub const SEEDS_MAX: u64 = 2_000;

    /// The one with this name.
    pub fn named(name: &str) -> Option<Bug> {
        Bug::ALL.iter().copied().find(|bug| bug.name() == name)
    }

    /// What a world must be like for the bug to have a chance.
    pub(crate) fn arrange(self, swarm: &mut Swarm) {
        match self {
            Bug::L1WrongDirectoryVotes => swarm.kinds = Some(&[Kind::Swapped, Kind::Crash]),
            Bug::P12WipedReplicaVotes => swarm.kinds = Some(&[Kind::Wiped, Kind::Crash]),
            Bug::L2SyncLies => swarm.kinds = Some(&[Kind::PowerCut, Kind::Loss]),
            _ => {}
        }
    }

    /// Whether only a second run of the same seed can show it.
    pub(crate) fn needs_a_second_run(self) -> bool {
        self == Bug::RunReadsOutsideTime
    }
}
