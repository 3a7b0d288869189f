//! Histories by hand, one for each thing that can be wrong; and random ones, against a search that tries every order.

use super::*;

const fn id(number: u64) -> WriteId {
    WriteId { client: 1, number }
}

fn operation(begin: u64, end: u64, asked: Asked, told: Told) -> Operation {
    Operation { client: 1, key: 0, asked, begin, end, told }
}

fn put(begin: u64, end: u64, number: u64, revision: u64) -> Operation {
    operation(begin, end, Asked::Put(id(number)), Told::Done(revision))
}

fn lost_put(begin: u64, end: u64, number: u64) -> Operation {
    operation(begin, end, Asked::Put(id(number)), Told::Unknown)
}

/// A read of a key that was created by revision 10.
fn get(begin: u64, end: u64, number: u64, modified: u64, version: u64) -> Operation {
    operation(begin, end, Asked::Get, Told::Found { write: id(number), created: 10, modified, version })
}

fn nothing(begin: u64, end: u64) -> Operation {
    operation(begin, end, Asked::Get, Told::Absent)
}

fn swap(begin: u64, end: u64, from: Option<u64>, to: u64, told: Told) -> Operation {
    operation(begin, end, Asked::Swap(from.map(id), id(to)), told)
}

fn delete(begin: u64, end: u64, told: Told) -> Operation {
    operation(begin, end, Asked::Delete, told)
}

fn create(begin: u64, end: u64, number: u64, told: Told) -> Operation {
    operation(begin, end, Asked::Create(id(number)), told)
}

fn verdict(history: &[Operation]) -> Verdict {
    check(history, |key| format!("key/{key}"))
}

#[track_caller]
fn right(history: &[Operation]) {
    let verdict = verdict(history);
    assert!(matches!(verdict, Verdict::Linearizable(_)), "{verdict:?}");
}

#[track_caller]
fn wrong(history: &[Operation], why: &str) {
    match verdict(history) {
        Verdict::Violation(text) => assert!(text.contains(why), "{text}"),
        other => panic!("{other:?}"),
    }
}

const NO_ORDER: &str = "no order of the writes explains it";

#[test]
fn what_is_right() {
    right(&[]);
    right(&[nothing(1, 2), put(3, 4, 1, 10), get(5, 6, 1, 10, 1), put(7, 8, 2, 11), get(9, 10, 2, 11, 2)]);
    // During a write both the old and the new may be seen, and one after the other.
    let writes = [put(1, 2, 1, 10), put(10, 20, 2, 11)];
    right(&[&writes[..], &[get(11, 12, 1, 10, 1), get(13, 14, 2, 11, 2)]].concat());
    // Writes that overlap have the order of their revisions.
    right(&[put(1, 10, 1, 11), put(2, 9, 2, 10), get(11, 12, 1, 11, 2)]);
    right(&[
        put(1, 2, 1, 10),
        swap(3, 4, Some(1), 2, Told::Done(12)),
        swap(5, 6, Some(1), 3, Told::Unequal(Some(id(2)))),
        delete(7, 8, Told::Done(13)),
        delete(9, 10, Told::Absent),
        swap(11, 12, Some(2), 4, Told::Unequal(None)),
    ]);
    right(&[create(1, 9, 1, Told::Done(10)), create(2, 8, 2, Told::Exists(10)), get(3, 9, 1, 10, 1)]);
}

#[test]
fn a_stale_read() {
    let writes = [put(1, 2, 1, 10), put(3, 4, 2, 11)];
    wrong(&[&writes[..], &[get(5, 6, 1, 10, 1)]].concat(), NO_ORDER);
    wrong(&[&writes[..], &[nothing(5, 6)]].concat(), NO_ORDER);
    // The new one was seen by somebody already, though its writer does not know yet.
    wrong(&[put(1, 2, 1, 10), put(3, 20, 2, 11), get(5, 6, 2, 11, 2), get(7, 8, 1, 10, 1)], NO_ORDER);
    // The same, told to a compare-and-swap.
    wrong(&[&writes[..], &[swap(5, 6, Some(9), 3, Told::Unequal(Some(id(1)))), put(7, 8, 9, 14)]].concat(), NO_ORDER);
    wrong(&[create(1, 2, 1, Told::Done(10)), nothing(3, 4)], NO_ORDER);
}

#[test]
fn a_read_from_the_future() {
    wrong(&[get(1, 2, 1, 10, 1), lost_put(3, 4, 1)], "was asked for only later");
    wrong(&[get(1, 2, 1, 10, 1), put(3, 4, 1, 10)], "out of order");
    wrong(&[get(1, 2, 7, 10, 1)], "nobody wrote");
    wrong(&[operation(1, 2, Asked::Put(id(1)), Told::DidNotHappen), get(3, 4, 1, 10, 1)], "did not happen");
    wrong(&[swap(1, 2, None, 1, Told::Unequal(None))], "found what it expected");
}

#[test]
fn a_lost_write() {
    // Two swaps of one value: only one of them can have found it.
    wrong(
        &[put(1, 2, 1, 10), swap(3, 6, Some(1), 2, Told::Done(11)), swap(3, 6, Some(1), 3, Told::Done(12))],
        NO_ORDER,
    );
    // An acknowledged write is there no more.
    wrong(&[put(1, 2, 1, 10), delete(3, 4, Told::Absent)], NO_ORDER);
    wrong(&[put(1, 2, 1, 10), put(3, 4, 2, 11), get(5, 6, 2, 11, 1)], "written 2 times");
    wrong(&[create(1, 2, 1, Told::Done(10)), create(3, 4, 2, Told::Done(11))], NO_ORDER);
}

#[test]
fn a_write_that_was_done_twice() {
    let write = put(1, 2, 1, 10);
    wrong(&[write, get(3, 4, 1, 12, 2)], "was done at revision 10");
    // Over another's write, which is gone by that.
    wrong(&[write, put(3, 4, 2, 11), get(5, 6, 1, 12, 3)], "was done at revision 10");
    wrong(&[write, get(3, 4, 1, 10, 2)], "written 1 times");
    // One of unknown outcome may happen once.
    wrong(&[put(1, 2, 1, 10), lost_put(3, 4, 2), get(5, 6, 2, 11, 2), get(7, 8, 2, 13, 3)], "was done at revision 11");
    wrong(&[put(1, 2, 1, 10), lost_put(3, 4, 2), get(5, 6, 1, 10, 3)], "at most 1 unknown");
}

#[test]
fn revisions() {
    wrong(&[put(1, 2, 1, 10), put(3, 4, 2, 10)], "given twice");
    wrong(&[put(1, 2, 1, 11), put(3, 4, 2, 10)], "out of order");
    // Over different keys, too.
    let mut other = put(3, 4, 2, 10);
    other.key = 1;
    wrong(&[put(1, 2, 1, 11), other], "out of order");
    let seen = operation(2, 3, Asked::Get, Told::Found { write: id(1), created: 11, modified: 11, version: 1 });
    wrong(&[put(1, 20, 1, 11), seen, Operation { begin: 4, end: 5, ..other }], "out of order");
}

#[test]
fn an_unknown_write_that_happened_or_did_not() {
    let before = [put(1, 2, 1, 10), lost_put(3, 4, 2)];
    let with = |more: &[Operation]| [&before[..], more].concat();
    right(&with(&[get(5, 6, 1, 10, 1), get(7, 8, 1, 10, 1)]));
    right(&with(&[get(5, 6, 2, 11, 2), get(7, 8, 2, 11, 2)]));
    // It may happen long after its client gave up.
    right(&with(&[get(5, 6, 1, 10, 1), get(7, 8, 2, 11, 2)]));
    wrong(&with(&[get(5, 6, 2, 11, 2), get(7, 8, 1, 10, 1)]), NO_ORDER);
    // Seen by a swap only, so its revision stays unknown.
    let swap_that_saw_it = |at| swap(at, at + 1, Some(9), 3, Told::Unequal(Some(id(2))));
    let late = put(90, 91, 9, 50);
    right(&with(&[get(5, 6, 1, 10, 1), swap_that_saw_it(7), late]));
    wrong(&with(&[swap_that_saw_it(5), get(7, 8, 1, 10, 1), late]), NO_ORDER);
    wrong(&with(&[swap_that_saw_it(5), put(7, 8, 4, 12), swap_that_saw_it_again(9), late]), NO_ORDER);
    // Nobody saw it, but it counts.
    right(&with(&[put(5, 6, 4, 12), get(7, 8, 4, 12, 3)]));
    right(&with(&[put(5, 6, 4, 12), get(7, 8, 4, 12, 2)]));
    // It cannot happen before it is asked.
    wrong(
        &[put(1, 2, 1, 10), swap(3, 4, Some(9), 3, Told::Unequal(Some(id(2)))), lost_put(5, 6, 2), late],
        "only later",
    );
}

fn swap_that_saw_it_again(at: u64) -> Operation {
    swap(at, at + 1, Some(9), 5, Told::Unequal(Some(id(2))))
}

#[test]
fn an_unknown_delete_that_happened_or_did_not() {
    let before = [put(1, 2, 1, 10), delete(3, 4, Told::Unknown)];
    let with = |more: &[Operation]| [&before[..], more].concat();
    right(&with(&[nothing(5, 6), nothing(7, 8)]));
    right(&with(&[get(5, 6, 1, 10, 1), nothing(7, 8)]));
    wrong(&with(&[nothing(5, 6), get(7, 8, 1, 10, 1)]), NO_ORDER);
    right(&with(&[delete(5, 6, Told::Absent)]));
    right(&with(&[swap(5, 6, None, 2, Told::Done(13))]));
    // One delete is one deletion.
    wrong(&with(&[nothing(5, 6), put(7, 8, 2, 13), nothing(9, 10)]), NO_ORDER);
}

#[test]
fn an_unknown_write_that_only_a_deletion_shows() {
    right(&[lost_put(1, 2, 1), delete(3, 4, Told::Done(11))]);
    right(&[swap(1, 2, None, 1, Told::Unknown), delete(3, 4, Told::Done(11))]);
    wrong(&[lost_put(1, 2, 1), delete(3, 4, Told::Done(11)), delete(5, 6, Told::Done(12))], NO_ORDER);
    wrong(&[delete(3, 4, Told::Done(11)), lost_put(5, 6, 1)], NO_ORDER);
    // A swap from something else cannot have made it.
    wrong(&[swap(1, 2, Some(9), 1, Told::Unknown), delete(3, 4, Told::Done(11)), put(5, 6, 9, 20)], NO_ORDER);
}

#[test]
fn an_unknown_creation() {
    let unknown = create(1, 2, 1, Told::Unknown);
    right(&[unknown, create(3, 4, 2, Told::Exists(10)), get(5, 6, 1, 10, 1)]);
    right(&[unknown, create(3, 4, 2, Told::Exists(10))]);
    right(&[unknown, create(3, 4, 2, Told::Done(10)), get(5, 6, 2, 10, 1)]);
    wrong(&[unknown, create(3, 4, 2, Told::Exists(10)), nothing(5, 6)], NO_ORDER);
    wrong(&[create(3, 4, 2, Told::Exists(10))], "nobody made");
}

/// Many unknown writes to one key, none of them seen, cost nothing.
#[test]
fn a_hot_key_with_many_unknown_writes() {
    let mut history = Vec::new();
    let mut random = fastrand::Rng::with_seed(1);
    let mut last = None;
    for number in 1..20_000_u64 {
        let at = number * 100;
        // Up to twenty overlap.
        let end = at + random.u64(1..2_000);
        history.push(match random.u32(..20) {
            0 => lost_put(at, end, number),
            1 => delete(at, end, Told::Unknown),
            2..12 => {
                last = Some((number, 10 + number));
                put(at, at + 50, number, 10 + number)
            }
            _ => match last {
                Some((write, modified)) => operation(
                    at,
                    at + 60,
                    Asked::Get,
                    Told::Found { write: id(write), created: modified, modified, version: 1 },
                ),
                None => nothing(at, at + 60),
            },
        });
    }
    right(&history);
}

/// A history as a cell might have given it: each operation has its moment.
fn true_history(random: &mut fastrand::Rng) -> Vec<Operation> {
    let count = random.usize(3..8);
    let mut moments: Vec<(u64, usize)> = Vec::new();
    let mut history: Vec<Operation> = Vec::new();
    for at in 0..count {
        let begin = random.u64(0..60);
        let end = begin + random.u64(1..30);
        let number = 1 + at as u64;
        let some = (random.usize(1..=count)) as u64;
        let asked = match random.u32(..10) {
            0..3 => Asked::Put(id(number)),
            3..5 => Asked::Swap(random.bool().then_some(id(some)).filter(|_| some != number), id(number)),
            5..6 => Asked::Delete,
            _ => Asked::Get,
        };
        history.push(operation(begin, end, asked, Told::DidNotHappen));
        let unknown = asked != Asked::Get && random.u32(..4) == 0;
        if unknown {
            history[at].told = Told::Unknown;
        }
        match random.u32(..4) {
            0 if unknown => {}
            1 if unknown => moments.push((random.u64(begin..100), at)),
            _ => moments.push((random.u64(begin..=end), at)),
        }
    }
    // Values that are expected must be somebody's.
    let writes: HashSet<WriteId> = history.iter().filter_map(|operation| operation.asked.write()).collect();
    for operation in &mut history {
        if let Asked::Swap(Some(expected), write) = operation.asked
            && !writes.contains(&expected)
        {
            operation.asked = Asked::Swap(None, write);
        }
    }
    moments.sort_unstable();
    let mut content: Option<(WriteId, u64)> = None;
    let mut revision = 10;
    for (_, at) in moments {
        let current = content.map(|(write, _)| write);
        revision += 10;
        let told = match history[at].asked {
            Asked::Get => content.map_or(Told::Absent, |(write, modified)| Told::Found {
                write,
                created: 1,
                modified,
                version: 1,
            }),
            Asked::Put(write) => {
                content = Some((write, revision));
                Told::Done(revision)
            }
            Asked::Swap(expected, write) if expected == current => {
                content = Some((write, revision));
                Told::Done(revision)
            }
            Asked::Swap(..) => Told::Unequal(current),
            Asked::Delete if content.is_some() => {
                content = None;
                Told::Done(revision)
            }
            Asked::Delete => Told::Absent,
            Asked::Create(_) => unreachable!("none is made here"),
        };
        if history[at].told != Told::Unknown {
            history[at].told = told;
        }
    }
    history
}

/// One answer, or one moment, is not as it was.
fn corrupt(random: &mut fastrand::Rng, history: &mut [Operation]) {
    let (at, other) = (random.usize(..history.len()), random.usize(..history.len()));
    match random.u32(..4) {
        0 => {
            let told = history[other].told;
            let fits = match history[at].asked {
                Asked::Get => matches!(told, Told::Found { .. } | Told::Absent),
                Asked::Put(_) => matches!(told, Told::Done(_)),
                Asked::Swap(..) => matches!(told, Told::Done(_) | Told::Unequal(_)),
                Asked::Delete => matches!(told, Told::Done(_) | Told::Absent),
                Asked::Create(_) => false,
            };
            if fits && history[at].told != Told::Unknown {
                history[at].told = told;
            }
        }
        1 => match (history[at].asked, history[at].told) {
            (Asked::Get | Asked::Delete, told) if told != Told::Unknown => history[at].told = Told::Absent,
            (Asked::Swap(..), Told::Unequal(_)) => history[at].told = Told::Unequal(None),
            _ => {}
        },
        2 => {
            let length = history[at].end - history[at].begin;
            history[at].begin = random.u64(0..60);
            history[at].end = history[at].begin + length;
        }
        _ => {
            if let Told::Found { modified, .. } = &mut history[at].told {
                *modified += 10 * random.u64(0..2);
            }
        }
    }
}

/// Whether some order explains it: all are tried.
struct Search<'a> {
    history: &'a [Operation],
    revision_of: HashMap<WriteId, u64>,
}

impl Search<'_> {
    fn any(history: &[Operation]) -> bool {
        let mut revision_of: HashMap<WriteId, u64> = HashMap::new();
        let mut writers: HashMap<u64, usize> = HashMap::new();
        for (at, operation) in history.iter().enumerate() {
            if let Told::Done(revision) = operation.told {
                if writers.insert(revision, at).is_some() {
                    return false;
                }
                if let Some(write) = operation.asked.write() {
                    revision_of.insert(write, revision);
                }
            }
        }
        for operation in history {
            if let Told::Found { write, modified, .. } = operation.told {
                if *revision_of.entry(write).or_insert(modified) != modified {
                    return false;
                }
                let Some(writer) = history.iter().position(|other| other.asked.write() == Some(write)) else {
                    return false;
                };
                if *writers.entry(modified).or_insert(writer) != writer {
                    return false;
                }
            }
        }
        Search { history, revision_of }.from(0, None, 0)
    }

    fn from(&self, done: u32, content: Option<WriteId>, revision: u64) -> bool {
        let left = |at: usize| done & (1 << at) == 0;
        let must = |at: usize| left(at) && self.history[at].told != Told::Unknown;
        let all = 0..self.history.len();
        if !all.clone().any(must) {
            return true;
        }
        all.clone().filter(|&at| left(at)).any(|at| {
            let operation = &self.history[at];
            if all.clone().any(|other| must(other) && self.history[other].end < operation.begin) {
                return false;
            }
            let unknown = operation.told == Told::Unknown;
            let (changed, fits) = match (operation.asked, operation.told) {
                (Asked::Get, Told::Found { write, .. }) => (None, content == Some(write)),
                (Asked::Get | Asked::Delete, Told::Absent) => (None, content.is_none()),
                (Asked::Swap(expected, _), Told::Unequal(found)) => (None, content == found && found != expected),
                (Asked::Put(write), _) => (Some(Some(write)), true),
                (Asked::Swap(expected, write), _) => (Some(Some(write)), content == expected),
                (Asked::Delete, _) => (Some(None), content.is_some()),
                other => panic!("{other:?}"),
            };
            if !fits {
                return false;
            }
            let Some(after) = changed else { return self.from(done | 1 << at, content, revision) };
            let own = match operation.told {
                Told::Done(own) => Some(own),
                _ if unknown => after.and_then(|write| self.revision_of.get(&write).copied()),
                _ => None,
            };
            if own.is_some_and(|own| own <= revision) {
                return false;
            }
            self.from(done | 1 << at, after, own.unwrap_or(revision))
        })
    }
}

#[test]
fn as_a_search_of_every_order_says() {
    let mut random = fastrand::Rng::with_seed(7);
    let (mut rights, mut wrongs) = (0, 0);
    for case in 0..150_000 {
        let mut history = true_history(&mut random);
        let corrupted = random.bool();
        if corrupted {
            corrupt(&mut random, &mut history);
        }
        let expected = Search::any(&history);
        assert!(expected || corrupted, "case {case}: what happened can have happened");
        // Without the counts, which these histories do not keep.
        let mut sorted = history.clone();
        sorted.sort_by_key(|operation| (operation.begin, operation.end));
        let found = check_revisions(&history, &|_| String::new()).is_ok()
            && Known::read(&sorted).is_ok_and(|known| Walk::new(&sorted, &known).all("key").is_ok());
        let shown: Vec<String> = sorted.iter().map(Operation::to_string).collect();
        assert_eq!(found, expected, "case {case}:\n{}", shown.join("\n"));
        if expected { rights += 1 } else { wrongs += 1 }
    }
    assert!(rights > 50_000, "{rights}");
    assert!(wrongs > 10_000, "{wrongs}");
}
