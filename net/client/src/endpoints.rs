//! Where the cell may be reached, and how that went.
//!
//! The caller's list comes first and never changes. Addresses that only a redirect named are kept behind it, up to a
//! bound: a cell whose members moved is still found, and a confused replica cannot make the list grow.
//!
//! An endpoint that fell silent is *suspected* for a while. A paused process keeps its connections and its kernel takes
//! new ones, so nothing but time tells it from a slow one; and the others go on naming it as the master until they have
//! elected another. So a suspect is only asked when it is named, and then listened to only briefly. It may also be
//! well and slow: when the suspicion is over it is listened to for longer than before.

use std::sync::Arc;
use std::time::Duration;

use synod_net::Moment;

/// Addresses learned from redirects, besides those the caller gave.
const LEARNED_MAX: usize = 8;
/// A suspicion lasts so many times as long as the silence that raised it: at the defaults, longer than an election.
const SUSPICION_FACTOR: u32 = 4;

/// A place in the list of endpoints.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct EndpointIndex(usize);

#[derive(Debug)]
struct Endpoint {
    address: Arc<str>,
    last_failure: Option<String>,
    /// How often in a row it was left because it was silent.
    silences: u32,
    suspect_until: Option<Moment>,
}

impl Endpoint {
    fn new(address: &str) -> Endpoint {
        Endpoint { address: Arc::from(address), last_failure: None, silences: 0, suspect_until: None }
    }

    fn is_suspect(&self, now: Moment) -> bool {
        self.suspect_until.is_some_and(|until| now < until)
    }
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
        let list: Vec<Endpoint> = addresses.iter().map(|&address| Endpoint::new(address)).collect();
        Endpoints { given: list.len(), cursor: first % list.len(), list, learned_next: 0, master: None }
    }

    /// How many moves make a round of them all.
    pub(crate) fn count(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn address(&self, index: EndpointIndex) -> &Arc<str> {
        &self.list[index.0].address
    }

    /// The believed master, else the next in turn that is not suspected; if all are, the next.
    pub(crate) fn choose(&mut self, now: Moment) -> EndpointIndex {
        self.master.unwrap_or_else(|| {
            let count = self.list.len();
            let turn = || (self.cursor..self.cursor + count).map(|at| at % count);
            let index = turn().find(|&at| !self.list[at].is_suspect(now)).unwrap_or(self.cursor % count);
            self.cursor = index + 1;
            EndpointIndex(index)
        })
    }

    pub(crate) fn is_suspect(&self, index: EndpointIndex, now: Moment) -> bool {
        self.list[index.0].is_suspect(now)
    }

    /// How often in a row it was left because it was silent.
    pub(crate) fn silences(&self, index: EndpointIndex) -> u32 {
        self.list[index.0].silences
    }

    /// It said nothing for so long, though it was not suspected.
    pub(crate) fn silent(&mut self, index: EndpointIndex, now: Moment, lasted: Duration) {
        let endpoint = &mut self.list[index.0];
        endpoint.silences = endpoint.silences.saturating_add(1);
        endpoint.suspect_until = Some(now.after(lasted * SUSPICION_FACTOR));
    }

    /// Something came from it. That it was slow is remembered until it is `prompt`.
    pub(crate) fn spoke(&mut self, index: EndpointIndex, prompt: bool) {
        let endpoint = &mut self.list[index.0];
        endpoint.suspect_until = None;
        if prompt {
            endpoint.silences = 0;
        }
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
            let learned = Endpoint::new(address);
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

    pub(crate) fn last_failure(&self, index: EndpointIndex) -> Option<&str> {
        self.list[index.0].last_failure.as_deref()
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

    const NOW: Moment = Moment(0);
    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_silent_one_is_passed_over_for_a_while_unless_all_are_silent() {
        let mut endpoints = Endpoints::new(&["a", "b"], 0);
        let [a, b] = [EndpointIndex(0), EndpointIndex(1)];
        endpoints.silent(a, NOW, SECOND);
        assert_eq!((endpoints.choose(NOW), endpoints.choose(NOW)), (b, b));
        // Named, it is asked.
        assert_eq!(endpoints.redirected("a"), a);
        assert_eq!(endpoints.choose(NOW), a);
        endpoints.failed(a, "silent".into());
        assert_eq!((endpoints.silences(a), endpoints.is_suspect(a, NOW.after(4 * SECOND))), (1, false));
        endpoints.silent(b, NOW, SECOND);
        assert_eq!((endpoints.choose(NOW), endpoints.choose(NOW)), (a, b));
        endpoints.spoke(a, false);
        assert_eq!((endpoints.silences(a), endpoints.is_suspect(a, NOW)), (1, false));
        endpoints.spoke(a, true);
        assert_eq!(endpoints.silences(a), 0);
    }

    #[test]
    fn without_a_master_all_are_tried_in_turn() {
        let mut endpoints = Endpoints::new(&["a", "b", "c"], 1);
        let turn: Vec<usize> = (0..5).map(|_| endpoints.choose(NOW).0).collect();
        assert_eq!(turn, [1, 2, 0, 1, 2]);
        endpoints.is_master(EndpointIndex(0));
        assert_eq!(endpoints.choose(NOW), EndpointIndex(0));
        endpoints.failed(EndpointIndex(0), "reset".into());
        assert_eq!(endpoints.choose(NOW), EndpointIndex(1));
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
