//! Bugs put in on purpose, to prove that the simulator sees them. Each breaks one rule, whose number begins its name.
//!
//! They exist under the feature `planted` alone, which only the simulator's crate turns on, and only when asked to;
//! without it the macro below is the constant `false`, and nothing here is compiled.

/// Whether this planted bug is to bite, here, now.
#[cfg(feature = "planted")]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        $crate::planted::is_planted($crate::planted::Bug::$bug)
    };
}

/// Never: this build has no planted bugs.
#[cfg(not(feature = "planted"))]
#[macro_export]
macro_rules! planted {
    ($bug:ident) => {
        false
    };
}

/// Declares the bugs: a name each, and what is wrong.
#[cfg(feature = "planted")]
macro_rules! bugs {
    ($($name:ident: $what:literal,)*) => {
        /// A planted bug.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Bug {
            $(#[doc = $what] $name,)*
        }

        /// All of them, with their names and what is wrong.
        pub const ALL: &[(Bug, &str, &str)] = &[$((Bug::$name, stringify!($name), $what)),*];
    };
}

#[cfg(feature = "planted")]
bugs! {
    L7NeverTriesAgain: "a segment that found no room on the disk is never made",
    P1PromisesToOlder: "a ballot below the promised one gets a promise",
    P1AcceptsFromOlder: "a ballot below the promised one gets an acknowledgement",
    P1ReusesBallot: "a restarted replica campaigns under its ballot from before the restart",
    P1ProposesBeforeOwnPromise: "the propose leaves before the candidate's own promise is durable",
    P2ForgetsPromise: "a promise is told and never persisted",
    P2InstallForgetsPromise: "an installed snapshot brings its maker's promise instead of the own one",
    P3LeadsBehind: "a candidate leads without what its quorum knows to be chosen",
    P3AdoptsNothing: "a candidate ignores what the promises report",
    P3AdoptsLatestReport: "a candidate adopts the last report instead of the highest ballot's",
    P4CommitsOtherBallots: "a commit slot is believed for what was accepted under another ballot",
    P5AppliesOutOfOrder: "a slot is applied before one below it",
    P6GovernsAtOnce: "a change of the members governs from the next slot on, not a horizon later",
    P6MinorityDecides: "half of the voters choose a slot",
    P6CountsLearners: "a learner's acknowledgement is counted",
    P6InstallKeepsMembers: "an installed snapshot leaves the members as they were here",
    P6OldMajorityLeads: "the old members' promises are enough for the new members' slots",
    L5CountsLostAsNothing: "a candidate counts a promise whose sender has lost what it accepted",
    L5NoOpOverLost: "an acceptor does not tell what its log has lost",
    L5ServesWhatIsThere: "what is read back for a laggard is served without a look at which record it is",
    P7NeverGivesUp: "a master that reaches no majority, or whose disk is silent, stays",
    P8NoWaitAfterStart: "a replica promises right after its start, whatever it granted before",
    P8PromisesAgainstGrant: "a replica promises although it granted a lease to another",
    P8HolderLongerThanGranters: "the holder counts on the lease for longer than it was granted",
    P8CountsFromAcknowledgement: "the holder counts from the acknowledgement, not from before the accept",
    P8ReadsBeforeOwnSlot: "a new master reads before it has applied what was acknowledged before it",
    P8TellsIndexWithoutLease: "a coordinator tells the read index whether or not its lease runs",
    P9KeepsEpoch: "a new mastership goes on under the epoch of the one before",
    P10ForgetsResults: "a retried command is applied again",
    P11VotesAfterOneInstance: "who lost state votes again once it has seen one whole instance, as the paper has it",
    P11KeepsOldIncarnation: "who lost state votes again as if it were the life that lost it",
    P11ForgetsLives: "who rejoins does not learn which lives the others have ended",
    P11CountsSuperseded: "votes of a life that is known to be over count, if they were counted before",
    P11HoleEndsRejoin: "a hole in the log of who rejoins passes for the end of that, and the lost life votes",
    P13VotesAtOnce: "a replica votes after a start without asking whether its log is an older one",
    P14AppliesDifferently: "a replica puts its own number into its database",
    P14SubtractsWhatItShouldHold: "the digest takes away what a rotten row was to hold, not what it holds",
    P14OddOneOutGoesOn: "a replica that differs from a majority goes on",
    P14SeedsFromQuarantine: "a database in quarantine is offered to others",
    P14InstallsUnasked: "another replica's database is taken over without asking the others what they had",
    P15TellsBeforeDurable: "what waits for a record leaves before the record is durable",
    P16ReadsWithoutLease: "any replica answers reads from what it has applied",
    P16AnswersBeforeIndex: "a replica answers a linearizable read before it has applied what the read index names",
    P16SharesOlderRound: "a linearizable read is answered by a round that was begun before it came",
    P16ServesOlderThanAsked: "a replica answers a read from before the revision that it names",
    S1CutsAtTheNewer: "the log is cut at the newer of the two snapshots that are kept",
}

#[cfg(feature = "planted")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in every replica that this thread runs, or takes it out again.
#[cfg(feature = "planted")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted in what this thread runs.
#[cfg(feature = "planted")]
pub fn is_planted(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// What is planted, if anything.
#[cfg(feature = "planted")]
pub fn planted() -> Option<Bug> {
    PLANTED.get()
}
