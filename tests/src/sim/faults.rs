//! The faults of one seed: all drawn before anything runs, each with a number.
//!
//! A fault is drawn whole (when, whom, how long, and a seed for whatever it needs later) from randomness of its own kind,
//! so leaving one out moves none of the others: that is what lets the minimiser drop those that a violation does not
//! need. What is noise on single messages elsewhere is a spell here, with a beginning and an end.

use std::collections::BTreeSet;

use fastrand::Rng;

use super::clocks::DRIFT_PPM_MAX;
use super::disk::Astray;
use super::divergence::Apart;
use super::operators::Operation;
use super::swarm::{MILLISECOND, SECOND, Swarm, Tearing, around, scale};

/// Which of a seed's faults happen.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum Mask {
    /// All of them.
    #[default]
    All,
    /// Only those with these numbers.
    Only(BTreeSet<usize>),
}

impl Mask {
    pub(crate) fn lets(&self, number: usize) -> bool {
        match self {
            Mask::All => true,
            Mask::Only(numbers) => numbers.contains(&number),
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $name:literal $chance:literal $least:literal..$most:literal,)*) => {
        /// The kinds of faults.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Kind {
            $($(#[$doc])* $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Kind] = &[$(Kind::$kind,)*];

            /// Its name in reports.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }

            /// In how many of a hundred seeds there are such faults, and the mean time between two of them there, in ms.
            fn habit(self) -> (u64, u64, u64) {
                match self { $(Kind::$kind => ($chance, $least, $most),)* }
            }
        }
    };
}

kinds! {
    /// Messages between replicas are lost.
    Loss "loss" 40 1_500..8_000,
    /// Messages arrive twice.
    Duplication "duplication" 40 1_500..8_000,
    /// Some messages take long.
    Delay "delay" 35 1_500..8_000,
    /// Messages overtake each other.
    Reordering "reordering" 40 1_500..8_000,
    /// Connections of clients are reset.
    Reset "client resets" 35 1_500..8_000,
    /// The replicas fall into two parts.
    Partition "partition, full" 30 1_500..8_000,
    /// Two replicas cannot speak to each other, a third can with both.
    Bridge "partition, bridge" 30 1_500..8_000,
    /// Others hear a replica, and it hears nobody.
    SendOnly "one-way, send only" 25 1_500..8_000,
    /// A replica hears others, and nobody hears it.
    ReceiveOnly "one-way, receive only" 25 1_500..8_000,
    /// Any links, one way or both.
    Ragged "partition, any links" 20 1_500..8_000,
    /// One of the above, on and off.
    Flapping "flapping" 25 2_000..10_000,
    /// Clients cannot reach some replicas.
    ClientsCut "clients cut off" 25 1_500..8_000,
    /// A disk is slow.
    SlowDisk "slow disk" 35 2_000..10_000,
    /// A disk does nothing for a while.
    Stall "disk stall" 35 1_000..8_000,
    /// The log's bound is near.
    FullDisk "log full" 6 1..2,
    /// A process ends.
    Crash "crash" 50 600..8_000,
    /// A machine loses power.
    PowerCut "power cut" 50 600..8_000,
    /// All of them at once.
    WholeCell "whole-cell crash" 25 2_000..15_000,
    /// A process stands still, wherever it is.
    Pause "pause" 45 1_000..10_000,
    /// A machine is suspended: its process, disk and network stand still, its clock goes on.
    Suspension "suspension" 25 2_000..15_000,
    /// A clock runs fast or slow from now on.
    Drift "clock drift" 60 1_000..10_000,
    /// Parts of a log that is not being written turn into something else.
    Rot "bit rot" 30 2_000..10_000,
    /// A directory is emptied.
    Wiped "wiped directory" 16 5_000..30_000,
    /// A directory is put back to an older copy.
    RolledBack "older copy" 20 4_000..20_000,
    /// Two replicas are started on each other's directories.
    Swapped "wrong directory" 12 5_000..30_000,
    /// An operator makes another replica the master.
    Transfer "transfer" 40 1_000..8_000,
    /// An operator adds a new replica.
    Added "member added" 100 2_000..10_000,
    /// An operator removes a replica.
    Removed "member removed" 80 3_000..15_000,
    /// Some disks have no room for another file.
    NoRoom "disk full" 20 3_000..15_000,
    /// A flush fails, and what it wrote may be gone.
    FailedFlush "failed flush" 25 1_500..12_000,
    /// A write that was acknowledged is not there.
    LostWrite "lost write" 20 2_000..10_000,
    /// A write that was acknowledged is in another's place.
    Misdirected "misdirected write" 20 2_000..10_000,
    /// A log cannot be read for a while: not at a start, and not for others.
    ReadErrors "read errors" 25 2_000..10_000,
    /// No flush of a disk succeeds for a while, and what it wrote may be gone.
    FailingDisk "failing disk" 15 4_000..15_000,
    /// A database has a row that no command has written.
    Diverged "diverged database" 20 2_000..12_000,
    /// A row of a database rots in memory.
    RottenRow "rotten row" 20 2_000..12_000,
}

/// Which links are down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Cut {
    /// Those with a bit here are apart from the others.
    Apart {
        side: u64,
    },
    Bridge {
        one: usize,
        other: usize,
    },
    SendOnly {
        replica: usize,
    },
    ReceiveOnly {
        replica: usize,
    },
    /// By sender and receiver.
    Links {
        links: u64,
    },
    Clients {
        replicas: u64,
    },
}

/// When something comes to stand still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum When {
    AtOnce,
    /// In the middle of a turn, between reading the clock and telling others.
    InTurn,
    /// Once it has begun to ask for promises, or to hand over.
    InRound,
}

/// What a fault does.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum What {
    Loss {
        chance: f64,
    },
    Duplication {
        chance: f64,
    },
    Delay {
        chance: f64,
        upto: u64,
    },
    Reordering {
        spread: u64,
    },
    Reset {
        chance: f64,
    },
    Cut(Cut),
    Flapping {
        cut: Cut,
        period: u64,
    },
    SlowDisk {
        replica: usize,
        factor: u64,
    },
    Stall {
        replica: usize,
        when: When,
    },
    FullDisk {
        segments: u64,
    },
    NoRoom {
        replicas: u64,
    },
    FailedFlush {
        replica: usize,
    },
    Crash {
        replicas: u64,
        power: bool,
        tearing: Tearing,
    },
    Pause {
        replica: usize,
        when: When,
    },
    Suspension {
        replica: usize,
        when: When,
    },
    Drift {
        replica: usize,
        ppm: i64,
    },
    /// As many frames of its log, `late`: of the last ones.
    Rot {
        replica: usize,
        frames: usize,
        late: bool,
    },
    Astray {
        replica: usize,
        how: Astray,
    },
    ReadErrors {
        replica: usize,
        ends: bool,
    },
    FailingDisk {
        replica: usize,
    },
    /// A replica's database becomes another one.
    Apart {
        replica: usize,
        how: Apart,
    },
    Operation(Operation),
}

/// One fault.
#[derive(Clone, Debug)]
pub(crate) struct Fault {
    pub(crate) kind: Kind,
    pub(crate) at: u64,
    /// For a crash: how long the replica stays down.
    pub(crate) length: u64,
    /// For whatever is drawn while it lasts.
    pub(crate) seed: u64,
    pub(crate) what: What,
}

/// A world with fewer faults than this to come, on average, would prove little: its faults are drawn closer together.
const FAULTS_EXPECTED_MIN: u64 = 24;
/// No seed has more; what is further on would only make a long run longer.
const FAULTS_MAX: usize = 1_000;

/// Draws all faults up to `until`, in the order of time; its place is a fault's number.
pub(crate) fn draw(swarm: &Swarm, until: u64, random: &mut Rng) -> Vec<Fault> {
    let mut kinds: Vec<(Kind, u64, Rng)> = Vec::new();
    for kind in Kind::ALL {
        let mut own = random.fork();
        let (chance, least, most) = kind.habit();
        let haste = if is_wish(*kind) { swarm.haste } else { 1 };
        let every = scale(&mut own, least * MILLISECOND, most * MILLISECOND) / haste;
        let is_drawn = swarm.kinds.map_or(own.u64(..100) < chance, |kinds| kinds.contains(kind));
        if (is_drawn || swarm.also.contains(kind)) && suits(*kind, swarm) {
            kinds.push((*kind, every, own));
        }
    }
    // Whoever has lost everything and whoever has lost a part may be a majority together: one kind at a time (the atlas).
    if kinds.iter().any(|(kind, ..)| matches!(kind, Kind::Wiped | Kind::RolledBack)) {
        let alone = [Kind::Rot, Kind::LostWrite, Kind::Misdirected, Kind::Diverged, Kind::RottenRow];
        kinds.retain(|(kind, ..)| !alone.contains(kind));
    }
    // A log that a write has hit may be lost as a whole, and its database with it: then all the others' must be sound.
    if kinds.iter().any(|(kind, ..)| *kind == Kind::Misdirected) {
        kinds.retain(|(kind, ..)| !matches!(kind, Kind::Diverged | Kind::RottenRow));
    }
    let expected: u64 = kinds.iter().filter(|(kind, ..)| !once(*kind)).map(|(_, every, _)| swarm.safety / every).sum();
    let closer = FAULTS_EXPECTED_MIN.div_ceil(expected.max(1)).clamp(1, 8);
    let mut faults = Vec::new();
    for (kind, every, mut own) in kinds {
        let first_begins = around(&mut own, every / closer);
        let mut at = if kind == Kind::FullDisk { 0 } else { first_begins };
        let mut left = match kind {
            Kind::Wiped | Kind::RolledBack => 2 * usize::from(swarm.replicas),
            kind if once(kind) => 1,
            _ => FAULTS_MAX,
        };
        while at < until && left > 0 {
            left -= 1;
            let (length, what) = one(kind, swarm, left, &mut own);
            faults.push(Fault { kind, at, length, seed: own.u64(..), what });
            at += MILLISECOND + around(&mut own, every / closer);
        }
    }
    faults.sort_by_key(|fault| (fault.at, fault.kind));
    faults.truncate(FAULTS_MAX);
    faults
}

/// Whether such faults may come in this world. Who wipes a directory and removes another member loses more than a cell
/// can, and should: a wiped replica counts as a member until it is replaced.
fn suits(kind: Kind, swarm: &Swarm) -> bool {
    let has_spares = swarm.machines > swarm.replicas;
    match kind {
        Kind::Added | Kind::Removed => has_spares,
        // A full log takes no state that is to be learned again, and its process may end.
        Kind::Wiped | Kind::RolledBack => !has_spares && swarm.replicas > 1,
        // Of what one replica has lost the others keep a copy as long as they are the members.
        Kind::Rot | Kind::LostWrite | Kind::Misdirected | Kind::Diverged | Kind::RottenRow => {
            !has_spares && swarm.replicas >= 3
        }
        _ => true,
    }
}

/// Whether a master is asked for it.
fn is_wish(kind: Kind) -> bool {
    matches!(kind, Kind::Transfer | Kind::Added | Kind::Removed)
}

/// Whether a seed has such a fault only once or twice.
fn once(kind: Kind) -> bool {
    matches!(kind, Kind::FullDisk | Kind::Wiped | Kind::RolledBack | Kind::Swapped)
}

/// One fault of this kind, and how long it lasts. `left`: how many more of it there will be, at the most.
fn one(kind: Kind, swarm: &Swarm, left: usize, random: &mut Rng) -> (u64, What) {
    let n = usize::from(swarm.machines);
    let replica = random.usize(..n);
    let other = (replica + 1 + random.usize(..n - 1)) % n;
    // A cell that is cut apart longer than a client waits does nothing that a shorter cut does not.
    let spell = scale(random, 200 * MILLISECOND, 4 * SECOND);
    let stand_still = scale(random, 100 * MILLISECOND, 10 * SECOND);
    let what = match kind {
        Kind::Loss => What::Loss { chance: random.f64() * random.f64() * 0.5 },
        Kind::Duplication => What::Duplication { chance: random.f64() * 0.5 },
        Kind::Delay => What::Delay { chance: random.f64() * 0.1, upto: scale(random, 50 * MILLISECOND, 3 * SECOND) },
        Kind::Reordering => What::Reordering { spread: scale(random, MILLISECOND, 100 * MILLISECOND) },
        Kind::Reset => What::Reset { chance: random.f64() * 0.05 },
        Kind::Partition | Kind::Bridge | Kind::SendOnly | Kind::ReceiveOnly | Kind::Ragged | Kind::ClientsCut => {
            What::Cut(cut(kind, n, replica, other, random))
        }
        Kind::Flapping => {
            let kinds = [Kind::Partition, Kind::Bridge, Kind::SendOnly, Kind::ReceiveOnly, Kind::Ragged];
            let kind = *random.choice(&kinds).expect("there are five");
            let period = scale(random, 200 * MILLISECOND, 2 * SECOND);
            return (2 * spell + 2 * period, What::Flapping { cut: cut(kind, n, replica, other, random), period });
        }
        Kind::SlowDisk => What::SlowDisk { replica, factor: scale(random, 4, 100) },
        Kind::Stall => return (stand_still / 2, What::Stall { replica, when: aimed(random) }),
        Kind::FullDisk => {
            // So that the bound is reached late in the run, or shortly before its end. Most flushes are one block.
            let blocks = random.u64(700..1_000);
            What::FullDisk { segments: blocks * 4096 / swarm.segment_bytes + 3 }
        }
        Kind::Crash | Kind::PowerCut | Kind::WholeCell => {
            let power = kind == Kind::PowerCut || kind == Kind::WholeCell && random.bool();
            let replicas = if kind == Kind::WholeCell { (1 << n) - 1 } else { 1 << replica };
            let all = [Tearing::Whole, Tearing::Prefix, Tearing::Sectors];
            let tearing = *random.choice(&all).expect("there are three");
            let down = scale(random, MILLISECOND, 3 * SECOND);
            return (down, What::Crash { replicas, power, tearing });
        }
        Kind::Pause => {
            let when = *random.choice(&[When::AtOnce, When::InTurn, When::InRound]).expect("there are three");
            return (stand_still, What::Pause { replica, when });
        }
        Kind::Suspension => return (stand_still, What::Suspension { replica, when: aimed(random) }),
        Kind::Drift => What::Drift { replica, ppm: random.i64(-DRIFT_PPM_MAX..=DRIFT_PPM_MAX) },
        Kind::LostWrite => What::Astray { replica: rotten(swarm), how: Astray::Lost },
        Kind::Misdirected => What::Astray { replica: rotten(swarm), how: Astray::Misdirected },
        Kind::ReadErrors => What::ReadErrors { replica, ends: random.bool() },
        Kind::FailingDisk => What::FailingDisk { replica },
        Kind::Rot => {
            let replica = rotten(swarm);
            return (
                scale(random, MILLISECOND, 3 * SECOND),
                What::Rot { replica, frames: random.usize(1..=4), late: random.bool() },
            );
        }
        // Another replica each time.
        Kind::Wiped => What::Operation(Operation::Wipe { replica: (swarm.spared + 1 + left) % n }),
        Kind::RolledBack => {
            return (scale(random, SECOND, 8 * SECOND), What::Operation(Operation::RollBack { replica: left % n }));
        }
        Kind::Swapped => What::Operation(Operation::SwapDirectories { one: replica, other }),
        Kind::Transfer => What::Operation(Operation::Transfer { to: replica }),
        Kind::Added => What::Operation(Operation::Add),
        Kind::Removed => What::Operation(Operation::Remove { replica }),
        // One, some, or all.
        Kind::NoRoom => {
            let replicas = if random.bool() { 1 << replica } else { random.u64(1..1 << n) };
            return (spell, What::NoRoom { replicas });
        }
        Kind::Diverged => What::Apart { replica, how: Apart::Row },
        Kind::RottenRow => What::Apart { replica, how: Apart::Rot },
        Kind::FailedFlush => return (scale(random, MILLISECOND, 3 * SECOND), What::FailedFlush { replica }),
    };
    (spell, what)
}

/// Whose log loses what was durable: always the same one's, so that of each slot the others' copies stay good.
pub(crate) fn rotten(swarm: &Swarm) -> usize {
    (swarm.spared + 1) % usize::from(swarm.replicas)
}

/// Half of what can stand still at any moment waits for a bad one.
fn aimed(random: &mut Rng) -> When {
    if random.bool() { When::AtOnce } else { When::InRound }
}

fn cut(kind: Kind, n: usize, replica: usize, other: usize, random: &mut Rng) -> Cut {
    match kind {
        // Each side may or may not have a majority; often one replica is alone.
        Kind::Partition if random.bool() => Cut::Apart { side: 1 << replica },
        Kind::Partition => Cut::Apart { side: random.u64(1..(1 << n) - 1) },
        Kind::Bridge => Cut::Bridge { one: replica, other },
        Kind::SendOnly => Cut::SendOnly { replica },
        Kind::ReceiveOnly => Cut::ReceiveOnly { replica },
        Kind::ClientsCut => Cut::Clients { replicas: random.u64(1..1 << n) },
        _ => Cut::Links { links: random.u64(..) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_has_faults_enough() {
        for seed in 0..200 {
            let mut random = Rng::with_seed(seed);
            let swarm = Swarm::draw(&mut random);
            let faults = draw(&swarm, swarm.safety, &mut random);
            assert!(faults.is_sorted_by_key(|fault| fault.at), "seed {seed}");
            assert!(faults.len() >= 10, "seed {seed} has {} faults", faults.len());
            for fault in faults {
                assert!(fault.kind != Kind::FullDisk || fault.at == 0, "logs are as long as they are from the start");
            }
        }
    }
}
