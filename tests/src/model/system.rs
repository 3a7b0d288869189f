//! The whole cell: nodes, the messages between them, and what may happen next.

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use stateright::{Model, Property};
use synod_paxos::{Batch, ReplicaId, Role, Slot};

use super::atlas::{Atlas, Inbox, Kind, Known};
use super::node::{Breach, Disk, Node, value};

/// A scope has three replicas: one, five or seven would differ in the majority alone, and not end.
pub(crate) const REPLICAS: usize = 3;
const MAJORITY: usize = 2;

/// A state of the cell.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(crate) nodes: [&'static Known; REPLICAS],
    /// Every message that was ever sent, by who gets it.
    pub(crate) network: [Inbox; REPLICAS],
    candidacies: u8,
    crashes: u8,
    /// From the start: no part of what the state is, see [`super::check`].
    steps: usize,
    /// How many moments have begun.
    moments: u8,
}

impl State {
    fn ids(&self) -> [u32; REPLICAS] {
        self.nodes.map(|known| known.id)
    }

    fn has(&self, breach: Breach) -> bool {
        self.nodes.iter().any(|known| known.node.facts.breach == Some(breach))
    }

    /// Values that are chosen: a majority accepted each durably under one ballot.
    fn chosen(&self) -> impl Iterator<Item = (Slot, &'static Batch)> {
        let nodes = self.nodes;
        (0..=REPLICAS - MAJORITY).flat_map(move |place| {
            nodes[place].votes.iter().filter_map(move |vote| {
                let agreeing = nodes[place + 1..].iter().filter(|other| other.votes.contains(vote)).count();
                (1 + agreeing >= MAJORITY).then_some((vote.0, &vote.2))
            })
        })
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.ids() == other.ids()
            && self.network == other.network
            && (self.candidacies, self.crashes, self.moments) == (other.candidacies, other.crashes, other.moments)
    }
}

impl Hash for State {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (self.ids(), self.network, self.candidacies, self.crashes, self.moments).hash(hasher);
    }
}

/// Something that happens to one replica, by its place from 0.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Action {
    pub(crate) at: usize,
    pub(crate) kind: Kind,
}

/// What is checked: the scope's cell, with what was found out so far.
#[derive(Clone)]
pub(crate) struct System {
    pub(crate) atlas: Arc<Atlas>,
    /// Whether dead messages are taken out: a state less for each.
    pub(crate) prunes: bool,
    /// Which nodes were reached together, if anybody asks.
    pub(crate) reached: Option<Arc<Mutex<Reached>>>,
    /// Which of the examples have been found: they need not be looked for any more.
    found: Arc<[AtomicBool; EXAMPLES]>,
}

/// Combinations of what can be seen of nodes.
pub(crate) type Reached = HashSet<[u64; REPLICAS]>;

pub(crate) const AGREEMENT: &str = "no two replicas apply different values at a slot";
pub(crate) const ASSERTION: &str = "no assertion fails";
pub(crate) const ONE_VALUE: &str = "no two values are chosen at a slot";
pub(crate) const LEASE: &str = "nobody leads above a lease that is held";
const EXAMPLES: usize = 9;

impl System {
    pub(crate) fn new(atlas: Arc<Atlas>, prunes: bool) -> System {
        System { atlas, prunes, reached: None, found: Arc::default() }
    }

    /// Whether the first example of something is found now.
    fn first(&self, example: usize, there: impl FnOnce() -> bool) -> bool {
        !self.found[example].load(Ordering::Relaxed) && there() && !self.found[example].swap(true, Ordering::Relaxed)
    }
}

impl Model for System {
    type State = State;
    type Action = Action;

    /// Nobody has ever run. If there is a crash, it may be any replica's: one initial state for each.
    fn init_states(&self) -> Vec<State> {
        let scope = &self.atlas.scope;
        let start = |disk: &dyn Fn(usize) -> Disk| State {
            nodes: std::array::from_fn(|place| {
                self.atlas.know(Node::new(ReplicaId(place as u16 + 1), disk(place), scope))
            }),
            network: [Inbox::default(); REPLICAS],
            candidacies: 0,
            crashes: 0,
            steps: 0,
            moments: 1,
        };
        if scope.crashes == 0 {
            return vec![start(&|_| scope.disk)];
        }
        (0..REPLICAS)
            .filter(|place| scope.crashers.contains(&(*place as u16 + 1)))
            .map(|crasher| start(&|place| if place == crasher { Disk::AnyTime } else { scope.disk }))
            .collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let scope = &self.atlas.scope;
        if let Some(reached) = &self.reached {
            reached.lock().expect("no panic").insert(state.nodes.map(|known| known.seen));
        }
        if state.moments < scope.moments {
            actions.push(Action { at: 0, kind: Kind::Pass });
        }
        for (at, known) in state.nodes.iter().enumerate() {
            let replica = &known.node.replica;
            let mut add = |kind| actions.push(Action { at, kind });
            if replica.role() == Role::Coordinating
                || scope.campaigners.contains(&(at as u16 + 1)) && state.candidacies < scope.candidacies
            {
                add(Kind::Tick);
            }
            if !known.node.facts.volatile.is_empty() {
                add(Kind::Flush);
            }
            if replica.can_submit() {
                add(Kind::Submit);
            }
            if state.crashes < scope.crashes && known.node.facts.disk == Disk::AnyTime {
                add(Kind::Crash);
            }
            state.network[at].places().for_each(|place| add(Kind::Message(place)));
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let Action { at, kind } = action;
        let known = last.nodes[at];
        let scope = &self.atlas.scope;
        if scope.steps.is_some_and(|most| last.steps >= most) {
            return None;
        }
        NOW_TRYING.set(Some((*last, action)));
        let step = self.atlas.step(at, known, kind)?;
        let mut next = *last;
        if kind == Kind::Pass {
            for (at, known) in next.nodes.iter_mut().enumerate() {
                *known = self.atlas.step(at, known, kind)?.node;
            }
            next.moments += 1;
            next.steps += 1;
            return Some(next);
        }
        next.nodes[at] = step.node;
        for (to, place) in &step.sends {
            next.network[*to].add(*place);
        }
        if self.prunes {
            for (place, known) in next.nodes.iter().enumerate() {
                self.atlas.prune(place, known, &mut next.network[place]);
            }
        }
        next.candidacies += u8::from(step.candidacy);
        next.crashes += u8::from(kind == Kind::Crash);
        next.steps += 1;
        let within =
            next.candidacies <= scope.candidacies && (!step.candidacy || scope.campaigners.contains(&(at as u16 + 1)));
        (within && next != *last).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(ONE_VALUE, |_, state: &State| {
                let one = |(slot, batch): (Slot, &Batch)| {
                    state.chosen().all(|(other, another)| other != slot || *another == *batch)
                };
                state.chosen().all(one)
            }),
            Property::always(AGREEMENT, |_, state: &State| {
                let [a, b, c] = state.nodes.map(|known| &known.node.facts.ever_applied);
                let agree = |a: &[Batch], b: &[Batch]| a.iter().zip(b).all(|(a, b)| a == b);
                agree(a, b) && agree(a, c) && agree(b, c) && !state.has(Breach::AppliedOtherwise)
            }),
            Property::always("what is applied is chosen", |_, state: &State| {
                state.nodes.iter().all(|known| {
                    (1..).map(Slot).zip(&known.node.facts.applied).all(|(slot, batch)| {
                        state.chosen().any(|(chosen_at, chosen)| (chosen_at, chosen) == (slot, batch))
                    })
                })
            }),
            Property::always("what is applied was submitted, or is a no-op", |_, state: &State| {
                let submitted = |batch: &Batch| {
                    let by = |known: &&Known| {
                        known.node.facts.submitted.iter().any(|(ballot, number)| value(*ballot, *number) == *batch)
                    };
                    batch.is_empty() || state.nodes.iter().any(by)
                };
                state.nodes.iter().all(|known| known.node.facts.ever_applied.iter().all(submitted))
            }),
            Property::always("nothing is told before it is durable", |_, state: &State| {
                !state.has(Breach::ToldBeforeDurable)
            }),
            Property::always("promises are kept", |_, state: &State| !state.has(Breach::PromiseBroken)),
            Property::always("one ballot asks for one value", |_, state: &State| {
                !state.has(Breach::TwoValuesUnderOneBallot)
            }),
            Property::always("the log has what is applied", |_, state: &State| !state.has(Breach::LogWithoutChosen)),
            Property::always("what is taken ends once", |_, state: &State| !state.has(Breach::TicketEndedTwice)),
            Property::always("a replica starts from its log", |_, state: &State| !state.has(Breach::NoRecovery)),
            Property::always(ASSERTION, |_, state: &State| !state.has(Breach::Assertion)),
            Property::sometimes("every slot is applied everywhere", |model: &System, state: &State| {
                let slots = model.atlas.scope.slots as usize;
                model.first(0, || state.nodes.iter().all(|known| known.node.facts.applied.len() == slots))
            }),
            Property::sometimes("a slot is learned by catch-up", |model: &System, state: &State| {
                model.first(1, || state.nodes.iter().any(|known| known.has_learned))
            }),
        ];
        let scope = &self.atlas.scope;
        if scope.candidacies > 1 {
            properties.push(Property::sometimes("a ballot adopts another's value", |model: &System, state: &State| {
                model.first(2, || state.nodes.iter().any(|known| known.has_adopted))
            }));
            properties.push(Property::sometimes(
                "a value is accepted and another chosen",
                |model: &System, state: &State| {
                    let lost = |(slot, batch): (Slot, &Batch)| {
                        state
                            .nodes
                            .iter()
                            .any(|known| known.votes.iter().any(|vote| vote.0 == slot && vote.2 != *batch))
                    };
                    model.first(3, || state.chosen().any(lost))
                },
            ));
        }
        if scope.candidacies > 1 && scope.campaigners.len() > 1 {
            properties.push(Property::sometimes("two replicas coordinate at once", |model: &System, state: &State| {
                model.first(4, || state.nodes.iter().filter(|known| known.coordinates()).count() > 1)
            }));
        }
        if scope.candidacies > 1 && scope.slots > 1 {
            properties.push(Property::sometimes("a gap is filled with a no-op", |model: &System, state: &State| {
                model.first(5, || state.nodes.iter().any(|known| known.has_filled))
            }));
        }
        if scope.moments > 1 {
            properties.push(Property::always("no two replicas hold a lease at once", |_, state: &State| {
                state.nodes.iter().filter(|known| known.node.holds_lease()).count() <= 1
            }));
            properties.push(Property::always(LEASE, |_, state: &State| {
                state.nodes.iter().filter(|known| known.node.holds_lease()).all(|holder| {
                    let is_above = |known: &&Known| known.node.replica.promised() > holder.node.replica.promised();
                    !state.nodes.iter().any(|known| known.coordinates() && is_above(known))
                })
            }));
            properties.push(Property::always("no promise is made against a grant", |_, state: &State| {
                !state.has(Breach::PromisedAgainstGrant)
            }));
            properties.push(Property::sometimes("a lease is held", |model: &System, state: &State| {
                model.first(7, || state.nodes.iter().any(|known| known.node.holds_lease()))
            }));
            properties.push(Property::sometimes(
                "a lease runs out, and another leads",
                |model: &System, state: &State| {
                    model.first(8, || {
                        let has_held =
                            |known: &&Known| !known.node.facts.ever_applied.is_empty() && known.has_proposed();
                        let leads = |known: &&Known| known.coordinates() && !known.node.holds_lease();
                        state.nodes.iter().any(|one| {
                            has_held(one) && state.nodes.iter().any(|other| other.id != one.id && leads(other))
                        })
                    })
                },
            ));
        }
        if scope.crashes > 0 {
            properties.push(Property::sometimes(
                "after a crash, a slot is applied everywhere",
                |model: &System, state: &State| {
                    model.first(6, || {
                        state.crashes > 0 && state.nodes.iter().all(|known| !known.node.facts.applied.is_empty())
                    })
                },
            ));
        }
        properties
    }
}

thread_local! {
    /// For a panic hook: a broken assertion ends the process.
    static NOW_TRYING: std::cell::Cell<Option<(State, Action)>> = const { std::cell::Cell::new(None) };
}

/// What was being tried on this thread.
pub(crate) fn now_trying() -> Option<(State, Action)> {
    NOW_TRYING.get()
}
