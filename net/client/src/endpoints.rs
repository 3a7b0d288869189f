//! Where the cell may be reached, and how that went.
//!
//! The caller's list comes first and never changes. Addresses that only a redirect named are kept behind it, up to a
//! bound: a cell whose members moved is still found, and a confused replica cannot make the list grow.

use std::sync::Arc;

/// Addresses learned from redirects, besides those the caller gave.
const LEARNED_MAX: usize = 8;

/// A place in the list of endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EndpointIndex(usize);

#[derive(Debug)]
struct Endpoint {
    address: Arc<str>,
    last_failure: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Endpoints {
    list: Vec<Endpoint>,
    /// How many of the list the caller gave.
    given: usize,
    /// Where the next learned address goes, once all places for them are taken.
    learned_next: usize,
    /// Who answered last, or was named by a redirect.
    master: Option<EndpointIndex>,
    /// Whose turn it is when the master is unknown.
    cursor: usize,
}

impl Endpoints {
    pub(crate) fn new(addresses: &[&str], first: usize) -> Endpoints {
        assert!(!addresses.is_empty(), "a cell has at least one endpoint");
        let list: Vec<Endpoint> =
            addresses.iter().map(|&address| Endpoint { address: Arc::from(address), last_failure: None }).collect();
        Endpoints { given: list.len(), cursor: first % list.len(), list, learned_next: 0, master: None }
    }

    /// How many moves make a round of them all.
    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn address(&self, index: EndpointIndex) -> &Arc<str> {
        &self.list[index.0].address
    }

    /// The believed master, else the next in turn.
    pub(crate) fn choose(&mut self) -> EndpointIndex {
        self.master.unwrap_or_else(|| {
            let index = EndpointIndex(self.cursor % self.list.len());
            self.cursor = index.0 + 1;
            index
        })
    }

    pub(crate) fn is_master(&mut self, index: EndpointIndex) {
        self.master = Some(index);
        // If it is lost later, the others come first.
        self.cursor = index.0 + 1;
        self.list[index.0].last_failure = None;
    }

    pub(crate) fn failed(&mut self, index: EndpointIndex, why: String) {
        self.list[index.0].last_failure = Some(why);
        if self.master == Some(index) {
            self.master = None;
        }
    }

    /// A replica says that the master is at this address.
    pub(crate) fn redirected(&mut self, address: &str) -> EndpointIndex {
        let index = self.list.iter().position(|known| &*known.address == address).unwrap_or_else(|| {
            let learned = Endpoint { address: Arc::from(address), last_failure: None };
            if self.list.len() < self.given + LEARNED_MAX {
                self.list.push(learned);
                self.list.len() - 1
            } else {
                let at = self.given + self.learned_next;
                self.learned_next = (self.learned_next + 1) % LEARNED_MAX;
                self.list[at] = learned;
                at
            }
        });
        self.master = Some(EndpointIndex(index));
        EndpointIndex(index)
    }

    pub(crate) fn failures(&self) -> Vec<(String, String)> {
        self.list
            .iter()
            .filter_map(|endpoint| Some((endpoint.address.to_string(), endpoint.last_failure.clone()?)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_master_all_are_tried_in_turn() {
        let mut endpoints = Endpoints::new(&["a", "b", "c"], 1);
        let turn: Vec<usize> = (0..5).map(|_| endpoints.choose().0).collect();
        assert_eq!(turn, [1, 2, 0, 1, 2]);
        endpoints.is_master(EndpointIndex(0));
        assert_eq!(endpoints.choose(), EndpointIndex(0));
        endpoints.failed(EndpointIndex(0), "reset".into());
        assert_eq!(endpoints.choose(), EndpointIndex(1));
        assert_eq!(endpoints.failures(), [("a".to_owned(), "reset".to_owned())]);
    }

    #[test]
    fn redirects_cannot_make_the_list_grow_without_end() {
        let mut endpoints = Endpoints::new(&["a", "b"], 0);
        assert_eq!(endpoints.redirected("b"), EndpointIndex(1));
        for n in 0..100 {
            let index = endpoints.redirected(&format!("x{n}"));
            assert_eq!(&**endpoints.address(index), format!("x{n}"));
        }
        assert_eq!(endpoints.count(), 2 + LEARNED_MAX);
        assert_eq!(&*endpoints.list[0].address, "a");
    }
}
