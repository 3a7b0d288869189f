//! Which messages arrive, when, and how often.

use std::collections::BTreeMap;

use fastrand::Rng;

use super::faults::{Cut, What};
use super::swarm::{Swarm, around};

/// A fault of the network that lasts.
struct Active {
    what: What,
    /// Its own, so that one fault less changes nothing about the others.
    random: Rng,
    /// Of one that comes and goes: whether it is there now.
    on: bool,
}

/// The links between replicas, and those of clients to replicas.
pub(crate) struct Network {
    replicas: usize,
    /// By the fault's number.
    active: BTreeMap<usize, Active>,
    /// By sender and receiver: nothing passes.
    cut: Vec<bool>,
    /// By replica: no client reaches it.
    clients_cut: Vec<bool>,
    /// By sender and receiver: when the last message arrives, for links that keep the order.
    last: Vec<u64>,
}

/// What becomes of one message.
#[derive(Default)]
pub(crate) struct Fate {
    /// When it arrives; not at all, once or twice.
    pub(crate) arrivals: Vec<u64>,
    pub(crate) lost: bool,
    pub(crate) duplicated: bool,
}

impl Network {
    pub(crate) fn new(replicas: u16) -> Network {
        let replicas = usize::from(replicas);
        Network {
            replicas,
            active: BTreeMap::new(),
            cut: vec![false; replicas * replicas],
            clients_cut: vec![false; replicas],
            last: vec![0; replicas * replicas],
        }
    }

    /// A message leaves now. Replicas are counted from 0 here.
    pub(crate) fn send(&mut self, now: u64, from: usize, to: usize, swarm: &Swarm, random: &mut Rng) -> Fate {
        let mut fate = Fate::default();
        let link = from * self.replicas + to;
        // Drawn even if it is lost: then what becomes of the next one does not depend on it.
        let mut arrival = now + delay(swarm, random);
        let mut in_order = swarm.fifo;
        let mut again = None;
        fate.lost = self.cut[link];
        for Active { what, random, .. } in self.active.values_mut() {
            match *what {
                What::Loss { chance } => fate.lost |= random.f64() < chance,
                What::Duplication { chance } if random.f64() < chance => {
                    again = Some(around(random, 4 * swarm.delay_mean));
                }
                What::Delay { chance, upto } if random.f64() < chance => arrival += random.u64(..upto),
                What::Reordering { spread } => {
                    arrival += around(random, spread);
                    in_order = false;
                }
                _ => {}
            }
        }
        if fate.lost {
            return fate;
        }
        if in_order {
            arrival = arrival.max(self.last[link]);
            self.last[link] = arrival;
        }
        fate.arrivals.push(arrival);
        if let Some(later) = again {
            fate.duplicated = true;
            fate.arrivals.push(arrival + later);
        }
        fate
    }

    pub(crate) fn reaches_clients(&self, replica: usize) -> bool {
        !self.clients_cut[replica]
    }

    /// Bytes of a client's connection leave: whether they reset it, and how much later than usual they arrive.
    pub(crate) fn client_bytes(&mut self) -> (bool, u64) {
        let (mut reset, mut later) = (false, 0);
        for Active { what, random, .. } in self.active.values_mut() {
            match *what {
                What::Reset { chance } => reset |= random.f64() < chance,
                What::Delay { chance, upto } if random.f64() < chance => later += random.u64(..upto),
                _ => {}
            }
        }
        (reset, later)
    }

    /// A fault begins.
    pub(crate) fn begin(&mut self, number: usize, what: &What, seed: u64) {
        self.active.insert(number, Active { what: what.clone(), random: Rng::with_seed(seed), on: true });
        self.redraw();
    }

    /// A fault ends, if it has not ended yet.
    pub(crate) fn end(&mut self, number: usize) {
        self.active.remove(&number);
        self.redraw();
    }

    /// A flapping fault goes on or off. Says how long it stays so; `None`: it is over.
    pub(crate) fn flap(&mut self, number: usize) -> Option<u64> {
        let Active { what, random, on } = self.active.get_mut(&number)?;
        let What::Flapping { period, .. } = what else { unreachable!("only what flaps is asked to") };
        *on = !*on;
        let stays = *period / 2 + random.u64(..*period / 2);
        self.redraw();
        Some(stays)
    }

    /// Which links are down follows from the faults that last.
    fn redraw(&mut self) {
        self.cut.fill(false);
        self.clients_cut.fill(false);
        for active in self.active.values().filter(|active| active.on) {
            let (What::Cut(cut) | What::Flapping { cut, .. }) = &active.what else { continue };
            let n = self.replicas;
            for from in 0..n {
                for to in (0..n).filter(|to| *to != from) {
                    self.cut[from * n + to] |= match *cut {
                        Cut::Apart { side } => (side >> from) & 1 != (side >> to) & 1,
                        Cut::Bridge { one, other } => (from, to) == (one, other) || (from, to) == (other, one),
                        Cut::SendOnly { replica } => to == replica,
                        Cut::ReceiveOnly { replica } => from == replica,
                        Cut::Links { links } => (links >> (from * n + to)) & 1 == 1,
                        Cut::Clients { .. } => false,
                    };
                }
                if let Cut::Clients { replicas } = *cut {
                    self.clients_cut[from] |= (replicas >> from) & 1 == 1;
                }
            }
        }
    }
}

/// How long one message is under way, if no fault holds it up.
pub(crate) fn delay(swarm: &Swarm, random: &mut Rng) -> u64 {
    swarm.delay_min + around(random, swarm.delay_mean)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The links that are up, as "from>to".
    fn up(network: &Network) -> String {
        let n = network.replicas;
        let links = (0..n * n).filter(|link| link / n != link % n && !network.cut[*link]);
        let words: Vec<String> = links.map(|link| format!("{}>{}", link / n, link % n)).collect();
        words.join(" ")
    }

    #[test]
    fn links_are_down_as_long_as_a_fault_says_so() {
        let mut network = Network::new(3);
        let all = "0>1 0>2 1>0 1>2 2>0 2>1";
        for (cut, left) in [
            (Cut::Apart { side: 0b001 }, "1>2 2>1"),
            (Cut::Bridge { one: 0, other: 2 }, "0>1 1>0 1>2 2>1"),
            (Cut::SendOnly { replica: 1 }, "0>2 1>0 1>2 2>0"),
            (Cut::ReceiveOnly { replica: 1 }, "0>1 0>2 2>0 2>1"),
            (Cut::Links { links: 0b0000_0010 }, "0>2 1>0 1>2 2>0 2>1"),
        ] {
            network.begin(1, &What::Cut(cut.clone()), 1);
            assert_eq!(up(&network), left, "{cut:?}");
            network.end(1);
            assert_eq!(up(&network), all, "{cut:?}");
        }
        network.begin(1, &What::Cut(Cut::SendOnly { replica: 1 }), 1);
        network.begin(2, &What::Flapping { cut: Cut::ReceiveOnly { replica: 1 }, period: 10 }, 2);
        assert_eq!(up(&network), "0>2 2>0");
        assert!(network.flap(2).is_some());
        assert_eq!(up(&network), "0>2 1>0 1>2 2>0");
        network.end(1);
        network.begin(3, &What::Cut(Cut::Clients { replicas: 0b100 }), 3);
        assert_eq!(up(&network), all);
        assert!(network.reaches_clients(0) && !network.reaches_clients(2));
        network.end(2);
        assert!(network.flap(2).is_none());
    }
}
