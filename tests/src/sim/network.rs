//! Which messages arrive, when, and how often.

use fastrand::Rng;

use super::swarm::{Swarm, around};

/// The links between replicas, and those of clients to replicas.
pub(crate) struct Network {
    replicas: usize,
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
            cut: vec![false; replicas * replicas],
            clients_cut: vec![false; replicas],
            last: vec![0; replicas * replicas],
        }
    }

    /// A message leaves now. Replicas are counted from 0 here.
    pub(crate) fn send(&mut self, now: u64, from: usize, to: usize, swarm: &Swarm, random: &mut Rng) -> Fate {
        let mut fate = Fate::default();
        let link = from * self.replicas + to;
        if self.cut[link] || random.f64() < swarm.loss {
            fate.lost = true;
            return fate;
        }
        let mut arrival = now + delay(swarm, random);
        if swarm.fifo {
            arrival = arrival.max(self.last[link]);
            self.last[link] = arrival;
        }
        fate.arrivals.push(arrival);
        if random.f64() < swarm.duplication {
            fate.duplicated = true;
            fate.arrivals.push(arrival + around(random, 4 * swarm.delay_mean));
        }
        fate
    }

    pub(crate) fn reaches_clients(&self, replica: usize) -> bool {
        !self.clients_cut[replica]
    }

    /// Some links go down, in one of the ways that networks break. Says which way.
    pub(crate) fn cut(&mut self, random: &mut Rng) -> String {
        self.heal();
        let n = self.replicas;
        let one = random.usize(..n);
        let mut set = |from: usize, to: usize| self.cut[from * n + to] = from != to;
        match random.u8(..6) {
            0 => {
                (0..n).for_each(|other| {
                    set(one, other);
                    set(other, one);
                });
                self.clients_cut[one] = random.bool();
                format!("replica {} is alone", one + 1)
            }
            1 => {
                (0..n).for_each(|other| set(one, other));
                format!("replica {} is not heard", one + 1)
            }
            2 => {
                (0..n).for_each(|other| set(other, one));
                format!("replica {} hears nobody", one + 1)
            }
            3 => {
                // Each side may or may not have a majority.
                let side: Vec<bool> = (0..n).map(|_| random.bool()).collect();
                for from in 0..n {
                    for to in (0..n).filter(|to| side[*to] != side[from]) {
                        set(from, to);
                    }
                }
                let side: Vec<usize> = (0..n).filter(|replica| side[*replica]).map(|replica| replica + 1).collect();
                format!("replicas {side:?} are apart from the others")
            }
            4 => {
                // One pair cannot speak to each other, a third can with both.
                let other = (one + 1 + random.usize(..n - 1)) % n;
                set(one, other);
                set(other, one);
                format!("replicas {} and {} are apart", one + 1, other + 1)
            }
            _ => {
                let cut: Vec<usize> = (0..n * n).filter(|_| random.bool()).collect();
                cut.iter().for_each(|link| set(link / n, link % n));
                format!("{} links of {} are down", cut.len(), n * n)
            }
        }
    }

    pub(crate) fn heal(&mut self) {
        self.cut.fill(false);
        self.clients_cut.fill(false);
    }
}

/// How long one message is under way.
pub(crate) fn delay(swarm: &Swarm, random: &mut Rng) -> u64 {
    let long = if random.f64() < swarm.delay_long_chance { random.u64(..swarm.delay_long) } else { 0 };
    swarm.delay_min + around(random, swarm.delay_mean) + long
}
