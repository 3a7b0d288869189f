//! The model check: every state that a small cell can get into, and the production code in each of them.
//!
//! The simulator walks long paths through large cells, at random. This walks *all* paths through a cell of three with few
//! ballots and slots. [`stateright`] does the search; what it searches is [`synod_paxos::Replica::step`] itself, the
//! [`DurableQueue`](synod_paxos::durable::DurableQueue) that holds what must be durable first, and the node's own reading
//! of a log at a restart. No part of the protocol is written down a second time.
//!
//! | module | owns |
//! |---|---|
//! | `node` | one replica with its disk and its past: input in, messages out |
//! | `atlas` | every node and message seen, each once; what is known of each step |
//! | `system` | the cell's states, what may happen next, what must hold |
//! | `story` | a path in words |
//!
//! # What is explored
//!
//! At each state, in any order: any message that was ever sent arrives; time passes at a replica; the next record of a
//! log becomes durable; a client submits a value wherever one would be taken; a replica crashes, forgets what is not
//! durable, and starts again. So messages are lost (they never arrive), late, out of order and doubled without a word
//! said about any of it. Time is one standing moment with all durations zero, so that every timeout may strike at any
//! time. Each value is named after the ballot that first proposes it, so any two coordinators disagree.
//!
//! # What is not
//!
//! Bounds, all of them in [`Scope`]: candidacies (each is a ballot), slots, crashes, and who may do either; steps, where a
//! scope says so. No disk is backed up and no log full, the members never change, and nobody is asked to hand over.
//! Where a scope says no duplication, what a replica durably answered does not arrive there again.
//!
//! *Probes* are answered by the past ([`Scope::probes`]): a replica that probes gets, in the same step, the answer that each
//! of the others gives in the beginning, "I would, I have promised nothing and know nothing". It may really come at any
//! time: all have probed once when the model begins. So whoever may campaign at all may do so whenever it likes, which is
//! more than probes ever allow. Left out is what an answer tells beside that: how far others are, for catch-up and for
//! standing back, and a higher round (rejects tell it, too).
//!
//! A master without a lease steps down whenever time passes and a slot is open: so it never sends an accept again.
//!
//! *Leases* are in the scopes that have more than one moment ([`Scope::moments`]). All clocks show the same, and a moment is
//! as long as a lease: it holds within the moment in which its slot was proposed, and a grant is over in the next.
//!
//! # Why fewer states are enough
//!
//! 1. *A message is never taken out of the network.* One that was sent and is lost, one that is late and one that will
//!    come twice are then the same: it may arrive. This is all of loss, delay, reordering and duplication.
//! 2. *A message that can have no effect any more is* (`Node::is_dead`): a promise to who is no candidate under its
//!    ballot, an acknowledgement to who does not coordinate under it or knows the slot chosen, a reject of no more than
//!    was durably promised here, entries that are all known where nothing crashes. Each stays so: ballots under which a
//!    replica was a candidate do not come again, not after a restart either, since their propose left durable (P1).
//!    A test holds this against the same scopes without it: all that can be seen of the three together (logs, what
//!    waits for the disk, what was applied, told and promised, who coordinates) must be the same. What such a message
//!    may still move is how far a learner has *heard* that others are, below what it knows itself.
//! 3. *A record that the log has is not kept twice.* Nothing in between changed what it says.
//! 4. *Where nothing crashes, disks may be instant* ([`Disk::AtOnce`]): what waits for a record is then a message that is
//!    late, which 1 has. Left out is a replica's own vote that comes late. In scopes with a crash the one that may crash
//!    has a slow disk until then, and which one it is is drawn in the initial state.
//! 5. *A crash and its restart are one step*: a replica that is down is one to which nothing arrives.
//! 6. *Equal replicas* leave out what they called their records and the random generator, and where there is no lease whom a
//!    follower obeys and what it granted: see [`synod_paxos::Replica::essence`], by which each step ends here. A commit's
//!    tolerance, for operators alone, is taken for zero.
//! 7. *Two of three campaign* in the scopes that say so: the third's number is compared with nobody's; it matters only for
//!    whom to fetch from next.
//!
//! A state is known by a hash of 64 bits. Of n states about n squared over 2^65 are taken for others: none of 10^8.
//!
//! # When the core changes
//!
//! Only its public face is used: `Replica::{new, step, essence, can_submit, role, voting_status, chosen, promised,
//! is_fetching, holds_lease}`, `Event`, `Effect`, `Record`, `Recovered`, `Settings`, and the fields of those messages whose
//! claims are checked. Needed of it:
//!
//! - `Clone`, `Eq` and `Hash` of `Replica` as in 6: if record numbers or the generator count, no scope ends. (The clones
//!   of `DurableQueue` too; `Hash` of `Message` and `Record`.)
//! - With every timeout zero, whatever waits for one may happen at the next tick.
//! - A candidacy, boosts included, shows as a new own ballot in `promised`: that is where candidacies are counted.
//! - New claims in messages go into `Turn::leave`, new durations into `Node::start`, new ways to be dead into
//!   `Node::is_dead` (or none: what is never dead costs states, not truth). Boosts happen with a lease alone: so promises to a
//!   coordinator are dead without one.

mod atlas;
mod node;
mod story;
mod system;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stateright::{Checker, CheckerBuilder, Expectation, HasDiscoveries, Model};

pub use node::Disk;

use atlas::Atlas;
use system::{AGREEMENT, ASSERTION, LEASE, ONE_VALUE, Reached, System};

/// How far a check goes: always with three replicas.
#[derive(Clone, Debug)]
pub struct Scope {
    /// What it is called.
    pub name: &'static str,
    /// How many slots get values.
    pub slots: u64,
    /// How many candidacies there are in all, and so ballots.
    pub candidacies: u8,
    /// Who may be a candidate.
    pub campaigners: &'static [u16],
    /// How many crashes there are in all (at most one), each with a restart.
    pub crashes: u8,
    /// Who may crash.
    pub crashers: &'static [u16],
    /// When records become durable, at replicas that do not crash.
    pub disk: Disk,
    /// Whether what a replica has durably answered arrives there again.
    pub duplication: bool,
    /// Whether probes are messages like any other; otherwise whoever probes may campaign at once.
    pub probes: bool,
    /// How many steps a path has at most. None: it ends where nothing new can happen.
    pub steps: Option<usize>,
    /// How many moments there are: one after another at any time, for all clocks alike. With more than one there are leases,
    /// as long as a moment.
    pub moments: u8,
}

const ALL: &[u16] = &[1, 2, 3];

impl Scope {
    /// Seconds: for the ordinary tests.
    pub const SMALL: Scope = Scope {
        name: "small",
        slots: 1,
        candidacies: 2,
        campaigners: &[1, 2],
        crashes: 0,
        crashers: &[],
        disk: Disk::AtOnce,
        duplication: true,
        probes: false,
        steps: None,
        moments: 1,
    };
    /// One slot, two ballots of anybody's, every disk as slow as can be.
    pub const ONE_SLOT: Scope = Scope { name: "one-slot", campaigners: ALL, disk: Disk::AnyTime, ..Scope::SMALL };
    /// One slot, two ballots, and a crash of anybody.
    pub const ONE_SLOT_CRASH: Scope = Scope { name: "one-slot-crash", crashes: 1, crashers: ALL, ..Scope::SMALL };
    /// Two slots, one ballot, and a crash of anybody.
    pub const TWO_SLOTS_ONE_BALLOT: Scope = Scope {
        name: "two-slots-one-ballot",
        slots: 2,
        candidacies: 1,
        campaigners: &[1],
        duplication: false,
        ..Scope::ONE_SLOT_CRASH
    };
    /// Two slots, two ballots, and a crash, as far as minutes and memory go: this one has bounded steps.
    pub const TWO_SLOTS: Scope = Scope {
        name: "two-slots",
        slots: 2,
        crashes: 1,
        crashers: &[1],
        duplication: false,
        steps: Some(21),
        ..Scope::SMALL
    };
    /// Leases: two ballots, and two moments.
    pub const LEASES: Scope = Scope { name: "leases", moments: 2, duplication: false, ..Scope::SMALL };
    /// Leases, and a crash.
    pub const LEASES_CRASH: Scope = Scope { name: "leases-crash", crashes: 1, crashers: &[3], ..Scope::LEASES };
    /// Those that are checked by default: each but the last ends where nothing new can happen.
    pub const DEFAULT: [Scope; 6] = [
        Scope::ONE_SLOT,
        Scope::ONE_SLOT_CRASH,
        Scope::TWO_SLOTS_ONE_BALLOT,
        Scope::LEASES,
        Scope::LEASES_CRASH,
        Scope::TWO_SLOTS,
    ];

    /// Its bounds in words.
    pub fn words(&self) -> String {
        let Scope {
            slots, candidacies, campaigners, crashes, crashers, disk, duplication, probes, steps, moments, ..
        } = self;
        let crash =
            if *crashes == 0 { "no crash".to_owned() } else { format!("{crashes} crash of one of {crashers:?}") };
        let disk = if *disk == Disk::AtOnce { "at once" } else { "at any time" };
        let probes = if *probes { "like any message" } else { "answered by the past" };
        let time = if *moments > 1 { format!("{moments} moments, leases of one") } else { "no lease".to_owned() };
        let steps =
            steps.map_or_else(String::new, |steps| format!("; every path of up to {steps} steps, and none beyond"));
        let again = if *duplication { "any number of times" } else { "until durably answered" };
        format!(
            "3 replicas, {slots} slot(s), {candidacies} ballot(s) of {campaigners:?}, {crash}; durable {disk}; messages \
             arrive in any order, never or {again}; probes {probes}; {time}{steps}"
        )
    }
}

/// A bug put in on purpose, named after the rule that it breaks: in what the model puts around a replica or, under the
/// feature `planted`, in the machines themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Planted {
    /// Promises and acknowledgements leave before they are durable.
    P15ToldBeforeDurable,
    /// A replica that restarts has forgotten what it promised, and remembers only what it accepted.
    P2ForgottenPromise,
    /// Promises do not tell what is chosen.
    P3ChosenNotTold,
    /// A replica that lost its log votes as if it were new.
    P11LostLogVotes,
    /// One of the machines'.
    #[cfg(feature = "planted")]
    Core(synod_paxos::planted::Bug),
}

impl Planted {
    const AROUND: [Planted; 4] = [
        Planted::P15ToldBeforeDurable,
        Planted::P2ForgottenPromise,
        Planted::P3ChosenNotTold,
        Planted::P11LostLogVotes,
    ];

    /// All that this build has. Of the machines', those that show within the scopes: with two ballots, no lease and no
    /// change of the members.
    #[cfg(feature = "planted")]
    pub fn all() -> Vec<Planted> {
        use synod_paxos::planted::Bug;
        let core = [
            Bug::P1PromisesToOlder,
            Bug::P1AcceptsFromOlder,
            Bug::P1ReusesBallot,
            Bug::P1ProposesBeforeOwnPromise,
            Bug::P2ForgetsPromise,
            Bug::P3LeadsBehind,
            Bug::P3AdoptsNothing,
            Bug::P4CommitsOtherBallots,
            Bug::P5AppliesOutOfOrder,
            Bug::P8PromisesAgainstGrant,
            Bug::P8HolderLongerThanGranters,
            Bug::P8CountsFromAcknowledgement,
            Bug::P8NoWaitAfterStart,
        ];
        Self::AROUND.into_iter().chain(core.map(Planted::Core)).collect()
    }

    /// All that this build has.
    #[cfg(not(feature = "planted"))]
    pub fn all() -> Vec<Planted> {
        Self::AROUND.into()
    }

    /// Where it is looked for.
    fn scope(self) -> Scope {
        match self {
            #[cfg(feature = "planted")]
            Planted::Core(synod_paxos::planted::Bug::P5AppliesOutOfOrder) => Scope::TWO_SLOTS_ONE_BALLOT,
            #[cfg(feature = "planted")]
            Planted::Core(synod_paxos::planted::Bug::P8NoWaitAfterStart) => Scope::LEASES_CRASH,
            #[cfg(feature = "planted")]
            Planted::Core(bug) if format!("{bug:?}").starts_with("P8") => Scope::LEASES,
            _ => Scope::ONE_SLOT_CRASH,
        }
    }

    /// Puts it into the machines that this thread runs, or takes out what was there.
    #[cfg(feature = "planted")]
    fn plant(planted: Option<Planted>) {
        let core = match planted {
            Some(Planted::Core(bug)) => Some(bug),
            _ => None,
        };
        synod_paxos::planted::plant(core);
    }

    #[cfg(not(feature = "planted"))]
    fn plant(_: Option<Planted>) {}

    /// The rule it breaks, and how.
    pub fn name(self) -> &'static str {
        match self {
            Planted::P15ToldBeforeDurable => "P15_told_before_durable",
            Planted::P2ForgottenPromise => "P2_forgotten_promise",
            Planted::P3ChosenNotTold => "P3_chosen_not_told",
            Planted::P11LostLogVotes => "P11_lost_log_votes",
            #[cfg(feature = "planted")]
            Planted::Core(bug) => {
                let all = synod_paxos::planted::ALL.iter();
                all.filter(|(known, ..)| *known == bug).map(|(_, name, _)| *name).next().expect("they are all there")
            }
        }
    }
}

/// What became of one property.
#[derive(Debug)]
pub struct Finding {
    /// What it says.
    pub name: &'static str,
    /// Whether it must hold always; otherwise at least once.
    pub always: bool,
    /// Whether it did.
    pub held: bool,
    /// How to get to where it does not, or to where it does for once.
    pub path: Vec<String>,
}

/// What came of a check.
#[derive(Debug)]
pub struct Outcome {
    /// States seen, the same one again included.
    pub generated: usize,
    /// Different states.
    pub unique: usize,
    /// The longest path.
    pub depth: usize,
    /// Different nodes and messages.
    pub parts: (usize, usize),
    /// How long it took.
    pub time: Duration,
    /// Each property.
    pub findings: Vec<Finding>,
}

impl Outcome {
    /// Whether all that must hold did.
    pub fn is_sound(&self) -> bool {
        self.findings.iter().all(|finding| finding.held)
    }
}

/// Checks a scope to its end, or to the first thing that must not be.
pub fn check(scope: Scope, threads: usize, progress: impl FnMut(usize, usize)) -> Outcome {
    let steps = scope.steps;
    let system = System::new(Arc::new(Atlas::new(scope, None)), true);
    let failures = HasDiscoveries::AnyFailures;
    match steps {
        None => run(system, threads, progress, |builder| builder.finish_when(failures).spawn_dfs()),
        // Breadth first, and on one thread: so each state is first reached by a shortest path, and none that can be reached
        // within the bound is left out. (Stateright's own bound leaves the last states unchecked.)
        Some(_) => run(system, 1, progress, |builder| builder.finish_when(failures).spawn_bfs()),
    }
}

/// What a planted bug must come to.
pub const DISASTERS: [&str; 4] = [ONE_VALUE, AGREEMENT, LEASE, ASSERTION];

/// Plants a bug, and looks for the shortest way to two values at one slot. (That something was told too early, or a
/// promise broken, is seen long before: here the point is what comes of it. A failing assertion will do, too.)
pub fn catch(planted: Planted, progress: impl FnMut(usize, usize)) -> Outcome {
    let atlas = Arc::new(Atlas::new(planted.scope(), Some(planted)));
    let disagreement = HasDiscoveries::AnyOf(BTreeSet::from(DISASTERS));
    // What is dead follows from the rules that are broken here.
    run(System::new(atlas, false), 1, progress, |builder| builder.finish_when(disagreement).spawn_bfs())
}

/// How many combinations of nodes are reached with dead messages taken out, and whether they are the same with them left in.
pub fn reached_without_dead_messages(scope: &Scope) -> (usize, bool) {
    let atlas = Arc::new(Atlas::new(scope.clone(), None));
    let reached = [true, false].map(|prunes| {
        let mut system = System::new(Arc::clone(&atlas), prunes);
        let reached = Arc::new(Mutex::new(Reached::new()));
        system.reached = Some(Arc::clone(&reached));
        let outcome = run(system, 2, |_, _| (), |builder| builder.finish_when(HasDiscoveries::AnyFailures).spawn_dfs());
        assert!(outcome.findings.iter().all(|finding| finding.held || !finding.always));
        std::mem::take(&mut *reached.lock().expect("no panic"))
    });
    (reached[0].len(), reached[0] == reached[1])
}

fn run<C: Checker<System>>(
    system: System,
    threads: usize,
    mut progress: impl FnMut(usize, usize),
    spawn: impl FnOnce(CheckerBuilder<System>) -> C,
) -> Outcome {
    let begun = Instant::now();
    let atlas = Arc::clone(&system.atlas);
    let properties = system.properties();
    let checker = spawn(system.checker().threads(threads));
    while !checker.is_done() {
        std::thread::sleep(Duration::from_millis(5));
        progress(checker.state_count(), checker.unique_state_count());
    }
    let checker = checker.join();
    let mut discoveries = checker.discoveries();
    let findings = properties.iter().map(|property| {
        let discovery = discoveries.remove(property.name);
        let always = property.expectation == Expectation::Always;
        let held = discovery.is_some() != always;
        let path = discovery.map(|path| story::tell(&atlas, &path.into_vec())).unwrap_or_default();
        Finding { name: property.name, always, held, path }
    });
    Outcome {
        findings: findings.collect(),
        generated: checker.state_count(),
        unique: checker.unique_state_count(),
        depth: checker.max_depth(),
        parts: atlas.size(),
        time: begun.elapsed(),
    }
}

/// A broken assertion ends the process, as in production: then at least say where it was. (Under `cargo test` it is a
/// property like any other, with the path that leads to it.)
pub fn tell_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        before(info);
        if let Some((state, system::Action { at, kind })) = system::now_trying() {
            println!("an assertion fails in this state, at replica {}, on {kind:?}:", at + 1);
            for (known, id) in state.nodes.iter().zip(1..) {
                println!("  {id}: {}", story::summary(known));
                println!("     log {:?}, not durable {:?}", known.node.facts.log, known.node.facts.volatile);
            }
        }
    }));
}
