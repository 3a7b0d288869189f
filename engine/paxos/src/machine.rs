//! What the machines have in common: the rows of their tables, and how often each was taken.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::{acceptor, coordinator, grant, index, learner, lease, membership, standing};

/// One row of a machine's table, as `synod-spec` generates it.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The machine.
    pub machine: &'static str,
    /// What happened.
    pub event: &'static str,
    /// In which state.
    pub state: &'static str,
    /// Under which condition, a function's name; empty: whenever no row above holds.
    pub guard: &'static str,
    /// What is done, a function's name; empty: nothing.
    pub action: &'static str,
    /// The state afterwards, the same one if it stays.
    pub next: &'static str,
    /// Why nothing is done, if so; empty otherwise.
    pub refusal: &'static str,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} in {}", self.machine, self.event, self.state)?;
        if !self.guard.is_empty() {
            write!(f, ", {}", self.guard)?;
        }
        if self.refusal.is_empty() { write!(f, " -> {}", self.next) } else { write!(f, " ({})", self.refusal) }
    }
}

/// Gives a machine's table its place to count: the method that the table calls with the row it takes.
macro_rules! counted {
    ($machine:ident) => {
        trait Taken {
            fn taken(&mut self, row: usize);
        }

        impl Taken for World<'_> {
            #[inline]
            fn taken(&mut self, row: usize) {
                self.core.counts.$machine[row] += 1;
            }
        }
    };
}

pub(crate) use counted;

/// Declares the counters: one array per machine, as long as its table.
macro_rules! counts {
    ($($machine:ident),*) => {
        /// How often each row of each machine was taken since the start.
        #[derive(Clone)]
        pub struct Counts {
            $(pub(crate) $machine: [u64; $machine::ROWS.len()],)*
        }

        impl Counts {
            pub(crate) fn new() -> Self {
                Self { $($machine: [0; $machine::ROWS.len()],)* }
            }

            /// Every row, and how often it was taken.
            pub fn rows(&self) -> impl Iterator<Item = (&'static Row, u64)> {
                std::iter::empty()$(.chain($machine::ROWS.iter().zip(self.$machine)))*
            }
        }

        /// The tables of all machines, as markdown: what the docs show.
        pub const TABLES: &[&str] = &[$($machine::TABLE),*];
    };
}

counts!(coordinator, acceptor, learner, lease, grant, membership, standing, index);

// What was counted is not part of what a replica is: two replicas that will do the same from here on are equal.
impl PartialEq for Counts {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Counts {}

impl Hash for Counts {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl fmt::Debug for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counts({})", self.rows().map(|(_, count)| count).sum::<u64>())
    }
}
