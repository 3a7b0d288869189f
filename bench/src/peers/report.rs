//! What came out: medians, ratios with their spread, and whether the bars are held.

use std::fmt::Write as _;

use serde::Serialize;

use super::turn::Measured;
use super::{Peer, RowSpec, Side};

/// What Synod must be at least, over ZooKeeper and over etcd.
struct Bar {
    row: RowSpec,
    zookeeper: f64,
    etcd: f64,
}

const fn bar(workers: usize, bytes: usize, zookeeper: f64, etcd: f64) -> Bar {
    Bar { row: RowSpec { workers, bytes }, zookeeper, etcd }
}

/// With three replicas.
const BARS_OF_3: [Bar; 7] = [
    bar(1, 5, 1.7, 2.5),
    bar(10, 5, 2.6, 6.0),
    bar(20, 5, 2.8, 7.0),
    bar(100, 5, 3.4, 11.0),
    bar(1000, 5, 10.0, 30.0),
    bar(4, 8 << 10, 2.4, 4.0),
    bar(1, 32 << 10, 2.4, 4.0),
];

/// With five: the rows of Table 1.
const BARS_OF_5: [Bar; 6] = [
    bar(1, 5, 1.9, 3.0),
    bar(10, 5, 1.9, 3.0),
    bar(20, 5, 1.9, 3.0),
    bar(1, 8 << 10, 1.9, 3.0),
    bar(4, 8 << 10, 1.9, 3.0),
    bar(1, 32 << 10, 1.9, 3.0),
];

fn bar_of(replicas: u16, row: RowSpec, peer: Peer) -> Option<f64> {
    let bars: &[Bar] = match replicas {
        3 => &BARS_OF_3,
        5 => &BARS_OF_5,
        _ => &[],
    };
    let bar = bars.iter().find(|bar| bar.row == row)?;
    Some(match peer {
        Peer::Zookeeper => bar.zookeeper,
        Peer::Etcd => bar.etcd,
    })
}

/// The whole result, as written by `--json`.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How many replicas each side had.
    pub replicas: u16,
    /// Seconds a row and round.
    pub seconds: u32,
    /// The sides and their versions, in their order.
    pub sides: Vec<(Side, String)>,
    /// One for each row.
    pub rows: Vec<RowReport>,
}

/// One row.
#[derive(Debug, Serialize)]
pub struct RowReport {
    /// Which.
    #[serde(flatten)]
    pub row: RowSpec,
    /// What each side did in each round, in the order of the sides.
    pub rounds: Vec<Vec<Measured>>,
    /// Synod beside each peer.
    pub ratios: Vec<Ratio>,
}

/// Synod's writes a second over a peer's in the same round.
#[derive(Debug, Serialize)]
pub struct Ratio {
    /// Whose.
    pub peer: Peer,
    /// Of the rounds in which neither is void.
    pub median: f64,
    /// The lowest and the highest of them.
    pub lowest: f64,
    /// See there.
    pub highest: f64,
    /// How many rounds those were.
    pub rounds: usize,
    /// The least that the median is to be, where something is asked.
    pub bar: Option<f64>,
    /// "held", "MISSED", "no bar", or "void": more than a round in five was.
    pub verdict: &'static str,
}

impl RowReport {
    /// Of what each of the sides did in each round.
    pub fn new(replicas: u16, row: RowSpec, sides: &[Side], rounds: Vec<Vec<Measured>>) -> Self {
        let mut ratios = Vec::new();
        for (index, side) in sides.iter().enumerate() {
            let Side::Peer(peer) = side else { continue };
            let pair = |round: &Vec<Measured>| {
                let [synod, peer] = [&round[0], &round[index]];
                (synod.void.is_none() && peer.void.is_none()).then(|| synod.ops_per_s / peer.ops_per_s)
            };
            let found: Vec<f64> = rounds.iter().filter_map(pair).collect();
            let bar = bar_of(replicas, row, *peer);
            let median = median(&found);
            let verdict = match bar {
                _ if rounds.len() - found.len() > rounds.len() / 5 => "void",
                None => "no bar",
                Some(bar) if median >= bar => "held",
                Some(_) => "MISSED",
            };
            ratios.push(Ratio {
                peer: *peer,
                median,
                lowest: found.iter().copied().fold(f64::NAN, f64::min),
                highest: found.iter().copied().fold(f64::NAN, f64::max),
                rounds: found.len(),
                bar,
                verdict,
            });
        }
        Self { row, rounds, ratios }
    }

    /// The median of a side's figure over its rounds that are not void.
    fn median(&self, side: usize, figure: impl Fn(&Measured) -> f64) -> f64 {
        let good = self.rounds.iter().map(|round| &round[side]).filter(|measured| measured.void.is_none());
        median(&good.map(figure).collect::<Vec<_>>())
    }
}

/// The one in the middle, or what is between the two there; not a number, if there is none.
fn median(figures: &[f64]) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        count => (sorted[(count - 1) / 2] + sorted[count / 2]) / 2.0,
    }
}

impl Report {
    /// Whether every bar is held and nothing is void.
    pub fn holds(&self) -> bool {
        let mut ratios = self.rows.iter().flat_map(|row| &row.ratios);
        ratios.all(|ratio| ratio.verdict == "held" || ratio.verdict == "no bar")
    }

    /// The table.
    pub fn describe(&self) -> String {
        let mut out = String::new();
        self.write(&mut out).expect("a string takes everything");
        out
    }

    fn write(&self, out: &mut String) -> std::fmt::Result {
        let sides: Vec<_> = self.sides.iter().map(|(side, version)| format!("{} {version}", side.name())).collect();
        let rounds = self.rows.first().map_or(0, |row| row.rounds.len());
        writeln!(
            out,
            "\n{}: {} replicas each, in turn, {rounds} rounds of {} s a row; medians\n",
            sides.join(", "),
            self.replicas,
            self.seconds,
        )?;
        writeln!(
            out,
            "{:>7}{:>7}  {:<10}{:>10}{:>9}{:>9}{:>10}{:>10}  Synod's rate over it",
            "workers", "bytes", "", "ops/s", "p50 us", "p99 us", "servers'", "client's"
        )?;
        writeln!(out, "{:>64}{:>10}  median (lowest to highest), bar", "CPU us", "CPU us")?;
        writeln!(out, "{}", "-".repeat(120))?;
        for row in &self.rows {
            for (index, (side, _)) in self.sides.iter().enumerate() {
                match side {
                    Side::Synod => write!(out, "{:>7}{:>7}", row.row.workers, row.row.bytes)?,
                    Side::Peer(_) => write!(out, "{:>14}", "")?,
                }
                write!(
                    out,
                    "  {:<10}{:>10.0}{:>9.0}{:>9.0}{:>10.1}{:>10.1}",
                    side.name(),
                    row.median(index, |it| it.ops_per_s),
                    row.median(index, |it| it.p50_us),
                    row.median(index, |it| it.p99_us),
                    row.median(index, |it| it.servers_cpu_us),
                    row.median(index, |it| it.client_cpu_us),
                )?;
                if let Side::Peer(peer) = side
                    && let Some(ratio) = row.ratios.iter().find(|ratio| ratio.peer == *peer)
                {
                    let bar = ratio.bar.map(|bar| format!(", at least {bar:.1}x")).unwrap_or_default();
                    let Ratio { median, lowest, highest, verdict, .. } = ratio;
                    write!(out, "  {median:.2}x ({lowest:.2} to {highest:.2}){bar}: {verdict}")?;
                }
                writeln!(out)?;
            }
        }
        for row in &self.rows {
            for (round, sides) in row.rounds.iter().enumerate() {
                for ((side, _), measured) in self.sides.iter().zip(sides) {
                    if let Some(reason) = &measured.void {
                        writeln!(out, "void: {}, {}, round {}: {reason}", side.name(), row.row, round + 1)?;
                    }
                }
            }
        }
        writeln!(out, "{}", if self.holds() { "all bars held" } else { "NOT all bars held" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROW: RowSpec = RowSpec { workers: 1, bytes: 5 };

    fn measured(ops_per_s: f64) -> Measured {
        Measured { ops_per_s, ..Measured::default() }
    }

    /// Synod does so many times 100 writes a second in each round, ZooKeeper 100; nothing: it is void.
    fn report(times: &[Option<f64>]) -> RowReport {
        let round = |times: &Option<f64>| match times {
            Some(times) => vec![measured(times * 100.0), measured(100.0)],
            None => vec![Measured { void: Some("stalled".to_owned()), ..measured(1.0) }, measured(100.0)],
        };
        let sides = [Side::Synod, Side::Peer(Peer::Zookeeper)];
        RowReport::new(3, ROW, &sides, times.iter().map(round).collect())
    }

    #[test]
    fn the_median_of_the_rounds_is_held_against_the_bar() {
        let row = report(&[Some(1.0), Some(1.8), Some(3.0)]);
        let [ratio] = &row.ratios[..] else { panic!("{row:?}") };
        assert_eq!((ratio.lowest, ratio.median, ratio.highest, ratio.bar), (1.0, 1.8, 3.0, Some(1.7)));
        assert_eq!(ratio.verdict, "held");
        assert_eq!(report(&[Some(1.6)]).ratios[0].verdict, "MISSED");
        let none = RowReport::new(4, ROW, &[Side::Synod, Side::Peer(Peer::Etcd)], vec![vec![measured(1.0); 2]]);
        assert_eq!(none.ratios[0].verdict, "no bar");
    }

    #[test]
    fn one_void_round_in_five_is_left_out_and_more_make_it_void() {
        let row = report(&[Some(1.8), None, Some(1.8), Some(1.8), Some(1.8)]);
        assert_eq!((row.ratios[0].verdict, row.ratios[0].rounds), ("held", 4));
        let row = report(&[Some(1.8), None, Some(1.8), None, Some(1.8)]);
        assert_eq!(row.ratios[0].verdict, "void");
        let row = report(&[None]);
        assert_eq!(row.ratios[0].verdict, "void");
        let sides = vec![(Side::Synod, "1".to_owned()), (Side::Peer(Peer::Zookeeper), "2".to_owned())];
        let report = Report { replicas: 3, seconds: 1, sides, rows: vec![row] };
        assert!(!report.holds());
        assert!(report.describe().contains("void: Synod, 1x5, round 1: stalled\nNOT all bars held"));
    }
}
