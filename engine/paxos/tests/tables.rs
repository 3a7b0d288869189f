//! The tables of the machines, as the docs show them: a new row or another guard shows up as a diff.
//!
//! `UPDATE_EXPECT=1 cargo test -p synod-paxos --test tables` rewrites the page.

use std::collections::BTreeMap;

use expect_test::{expect, expect_file};
use synod_paxos::machine::TABLES;
use synod_paxos::{Configuration, Incarnation, Instant, Recovered, Replica, ReplicaId, Settings};

const INTRODUCTION: &str = "\
# The machines

The whole of the protocol's control flow: what each machine does with each event in each of its states. The tables are
the code (`synod_spec::machine!` in the module of each machine), printed by its compiler; a test keeps this page equal.

Read a table by the event. The rows of one event and one state are tried from the top: the first whose guard, in the
column *when*, holds is taken, and the last has none. *does* is a function beside the table: it changes the state's data
and asks for effects. *next* is the state afterwards. A row that does nothing says why: *refuse* means that this may
happen and is dropped on purpose, *never* that it would be our bug, and stops the process. Names of guards and actions
are the functions' own: to know what one says exactly, read it there.

Each row is counted while a replica runs (`Replica::counts`); `tests/testdata/rows_never_taken.txt` names those that no
script takes. One message may be an event of several machines: `receive` in `replica.rs` says which, in which order.

| machine | module | one sentence |
|---|---|---|
| coordinator | `coordinator` | who proposes: probing, campaigning, leading, handing over |
| acceptor | `acceptor` | what this replica promised and accepted |
| learner | `learner` | what is chosen, applying it in order, catching up |
| lease | `lease` | until when this replica alone can be the master |
| grant | `grant` | to whom this replica has bound itself |
| membership | `membership` | the configuration in force, and the one to come |
| standing | `standing` | whether this replica may promise anything to anyone |
| index | `index` | up to which slot this replica has to have applied before it answers the reads that wait |

";

#[test]
fn the_page_shows_the_tables() {
    let page =
        format!("{INTRODUCTION}{}", TABLES.join("\n").replace("\n# ", "\n## ").replacen("# coord", "## coord", 1));
    expect_file!["../docs/machines.md"].assert_eq(&page);
}

#[test]
fn so_many_rows() {
    let settings = Settings::new(ReplicaId(1), Incarnation(1), 1);
    let replica = Replica::new(settings, &Recovered::nothing(Configuration::of(&[1])), Instant(0));
    let mut rows: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for (row, _) in replica.counts().rows() {
        let (all, refused) = rows.entry(row.machine).or_default();
        *all += 1;
        *refused += usize::from(!row.refusal.is_empty());
    }
    let mut told = String::new();
    for (machine, (all, refused)) in rows {
        told += &format!("{machine}: {all} rows, {refused} of them refusals\n");
    }
    expect![[r#"
        acceptor: 20 rows, 9 of them refusals
        coordinator: 182 rows, 79 of them refusals
        grant: 10 rows, 2 of them refusals
        index: 10 rows, 3 of them refusals
        learner: 16 rows, 1 of them refusals
        lease: 6 rows, 3 of them refusals
        membership: 10 rows, 2 of them refusals
        standing: 42 rows, 15 of them refusals
    "#]]
    .assert_eq(&told);
}
