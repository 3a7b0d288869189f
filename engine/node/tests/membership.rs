//! Members that come, go and are replaced in a running cell (rules P5, P6): real processes, and the verbs of an operator.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;

use common::{REFUSED, Running, SMALL, command, contents, run, synod, taken, temp_dir, wait_for};
use synod_node::operator::OperatorAnswer;

#[track_caller]
fn wait_until_listed(cell: &Running, expected: &[(u16, bool, bool)]) {
    wait_for("the members to be as they should", || (cell.list() == expected).then_some(()));
}

#[test]
fn a_new_member_catches_up_votes_and_outlives_the_first_ones() {
    let mut cell = Running::start(3, 4, &[]);
    cell.serves(&["a", "b", "c"]);
    cell.survives(1);

    let ended = cell.add(4, &["--no-wait"]);
    assert!(ended.output().contains("member 4 is a learner; start it now"), "{ended:?}");
    assert!(ended.output().contains("synod serve --join --id 4"), "{ended:?}");
    wait_until_listed(&cell, &[(1, true, true), (2, true, true), (3, true, true), (4, false, false)]);
    cell.survives(1);
    cell.join(4);
    cell.wait_until(4, "the new member to vote", |status| status.voting == "voting");
    wait_until_listed(&cell, &[(1, true, true), (2, true, true), (3, true, true), (4, true, true)]);
    // Four of which three are a majority.
    cell.survives(1);
    let list = cell.member(&["list"]);
    let lines: Vec<&str> = list.output().lines().collect();
    assert!(lines[0].contains("takes part") && lines[5] == "survives 1 more failure", "{lines:?}");
    assert!(lines[4].contains("4  voter") && lines[4].contains(&cell.members.peer(4).to_string()), "{lines:?}");
    cell.add(4, &[]).says(2, &["member 4 exists already"]);

    // It comes back, as anybody does: by its own log.
    cell.serves(&["d"]);
    cell.kill(4);
    cell.launch(4, &[]);
    cell.wait_until(4, "the new member to vote again", |status| status.voting == "voting");
    // So does an old one, whose flags know nothing of the new one.
    let old = (1..=3).find(|id| *id != cell.master()).unwrap();
    cell.stop(old);
    cell.launch(old, &[]);
    let address = cell.members.peer(4).to_string();
    cell.wait_until(old, "a link to the new member", |status| {
        status.peers.iter().any(|peer| peer.replica == 4 && peer.address == address && peer.connected)
    });
    wait_until_listed(&cell, &[(1, true, true), (2, true, true), (3, true, true), (4, true, true)]);

    // Without one of the first three, the new one's vote is needed; and without a second, once the first is removed.
    let gone = (1..=3).find(|id| *id != old && *id != cell.master()).unwrap();
    cell.kill(gone);
    cell.survives(0);
    cell.serves(&["e"]);
    // Whoever is the master now: the new one must be, for the old one to lead clients to it.
    cell.transfer(4);
    let endpoint = cell.members.client(old).to_string();
    assert_eq!(synod(["get", "a", "--endpoints", &endpoint, "--deadline-ms", "30000"]).output(), "a\n");
    let ended = cell.member(&["remove", &gone.to_string()]);
    assert!(ended.output().contains(&format!("member {gone} is removed")), "{ended:?}");
    cell.survives(1);
    let second = (1..=3).find(|id| *id != old && *id != gone).unwrap();
    cell.kill(second);
    cell.members.has(&["a", "b", "c", "d", "e"]);
    cell.serves(&["f"]);
    cell.survives(0);
    for id in cell.running() {
        cell.stop(id);
    }
}

#[test]
fn a_removed_member_knows_it_and_disturbs_nobody() {
    let mut cell = Running::start(3, 3, &[]);
    cell.serves(&["a"]);
    let removed = (1..=3).rev().find(|id| *id != cell.master()).unwrap();
    let id = removed.to_string();
    wait_for("the refusal", || {
        let ended = cell.member(&["remove", &id]);
        assert!(!ended.status.success(), "{ended:?}");
        // Before all three are seen to take part it would not only lack tolerance.
        ended.stderr.contains(&format!("without member {id} the cell survives no failure")).then_some(())
    });
    let ended = cell.member(&["remove", &id, "--force"]);
    assert!(ended.output().contains("survives NO more failure"), "{ended:?}");

    let knows = cell.wait_until(removed, "the removed one to know it", |status| status.voting == "outside");
    assert!(knows.members.iter().all(|member| usize::from(member.replica) != removed), "{:?}", knows.members);
    let text = "is not a member of my configuration";
    let before = cell.wait_until(removed, "everybody's refusal", |status| {
        status.peers.iter().all(|peer| peer.last_failure.as_ref().is_some_and(|why| why.contains(text)))
    });
    let other = cell.running().into_iter().find(|other| *other != removed).unwrap();
    let refused = cell.status(other).unwrap().counters.refused_hellos;
    cell.serves(&["b", "c"]);
    cell.wait_until(other, "more refusals", |status| status.counters.refused_hellos > refused + 1);
    assert!(cell.said(other).contains(&format!("replica {removed} {text}")), "{}", cell.said(other));
    // It does not even ask whether it should campaign.
    let after = cell.status(removed).unwrap();
    assert_eq!(taken(&after, "-> Probing"), taken(&before, "-> Probing"));
    assert_eq!((after.promised, after.role.as_str()), (before.promised, "following"));

    // It remembers, and the name of the others' master is not needed for that.
    cell.kill(removed);
    cell.launch(removed, &[]);
    cell.wait_until(removed, "the removed one to come back outside", |status| status.voting == "outside");
    cell.serves(&["d"]);
}

/// It was away when it was removed, and comes back with the configuration of before.
#[test]
fn a_member_with_an_old_configuration_is_told_and_not_let_in() {
    let mut cell = Running::start(3, 4, &[]);
    cell.serves(&["a"]);
    let old = (1..=3).rev().find(|id| *id != cell.master()).unwrap();
    cell.kill(old);
    let add = cell.add(4, &["--no-wait"]);
    assert!(add.output().contains("learner"), "{add:?}");
    cell.join(4);
    cell.wait_until(4, "the new member to vote", |status| status.voting == "voting");
    wait_for("the removal", || cell.member(&["remove", &old.to_string()]).status.success().then_some(()));
    cell.survives(1);
    cell.serves(&["b"]);

    cell.launch(old, &[]);
    let text = format!("replica {old} is not a member of my configuration (yours differs from mine)");
    let told = cell.wait_until(old, "the refusals", |status| {
        let connected = status.peers.iter().filter(|peer| peer.connected).count();
        let refused = |why: &String| why.contains(&text);
        connected == 0
            && status.peers.iter().filter(|peer| peer.last_failure.as_ref().is_some_and(refused)).count() == 2
    });
    assert_eq!(told.role, "following");
    // The new one it does not even know.
    for id in (1..=3).filter(|id| *id != old) {
        let status = cell.wait_until(id, "the count", |status| status.counters.refused_hellos > 0);
        assert!(status.peers.iter().all(|peer| usize::from(peer.replica) != old), "{:?}", status.peers);
        assert!(cell.said(id).contains(&text), "{}", cell.said(id));
    }
    cell.serves(&["c"]);
    cell.members.has(&["a", "b"]);
    // `synod status` of the old one says so, too.
    let endpoint = cell.members.client(old).to_string();
    let ended = synod(["status", "--endpoints", &endpoint]);
    assert!(ended.output().contains("is not a member of my configuration"), "{ended:?}");
}

#[test]
fn a_dead_member_is_replaced() {
    let mut cell = Running::start(3, 4, &[]);
    cell.serves(&["a"]);
    let dead = (1..=3).rev().find(|id| *id != cell.master()).unwrap();
    let (_, peer, client) = cell.place(4);
    let replace = |cell: &Running, id: usize, with: &str| {
        cell.member(&["replace", &id.to_string(), "--with", with, "--peer", &peer, "--client", &client])
    };
    // Nothing is changed by what cannot be.
    replace(&cell, 9, "4").says(2, &["there is no member 9"]);
    replace(&cell, dead, &dead.to_string()).says(2, &[&format!("{dead} cannot replace itself")]);
    let other = (1..=3).find(|id| *id != dead && *id != cell.master()).unwrap();
    replace(&cell, dead, &other.to_string()).says(2, &[&format!("member {other} exists already")]);
    replace(&cell, cell.master(), "4").says(2, &["the master does not remove itself", "transfer mastership first"]);
    assert_eq!(cell.list().len(), 3);

    cell.kill(dead);
    cell.survives(0);
    // Before `replace`, so that it need not be run beside it: it waits until the cell knows it.
    cell.join(4);
    let ended = replace(&cell, dead, "4");
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    let text = String::from_utf8(ended.stdout.clone()).unwrap();
    assert!(text.contains("member 4 votes") && text.contains(&format!("member {dead} is removed")), "{ended:?}");
    let expected: Vec<_> = (1..=4).filter(|id| usize::from(*id) != dead).map(|id| (id, true, true)).collect();
    wait_until_listed(&cell, &expected);
    cell.survives(1);
    cell.members.has(&["a"]);
    cell.serves(&["b"]);
}

#[test]
fn a_member_that_never_answers_costs_nothing_and_can_be_removed() {
    let cell = Running::start(3, 4, &[]);
    cell.serves(&["a"]);
    cell.survives(1);
    let ended = cell.add(4, &["--no-wait"]);
    assert!(ended.output().contains("member 4 is a learner"), "{ended:?}");
    let line = wait_for("the line of member 4", || {
        let ended = cell.member(&["list"]);
        let text = String::from_utf8(ended.stdout).unwrap();
        text.contains("survives 1 more failure").then(|| text.lines().nth(4).unwrap().to_owned())
    });
    assert!(line.contains("learner") && line.contains("NO"), "{line}");
    cell.serves(&["b"]);
    assert_eq!(cell.list()[3], (4, false, false));
    cell.survives(1);
    // It is nobody's vote, so nothing need be forced.
    let ended = cell.member(&["remove", "4"]);
    assert!(ended.output().contains("member 4 is removed"), "{ended:?}");
    assert_eq!(cell.list().len(), 3);
    cell.survives(1);
    cell.member(&["remove", "4"]).says(2, &["there is no member 4"]);
    cell.add(4, &["--no-wait"]).says(2, &["id 4 was a member's before"]);
}

/// The paper's story: one of the members was misspelled, nobody noticed, and the cell survived less than was thought.
#[test]
fn a_member_that_was_never_there_shows() {
    let mut cell = Running::start_some(&[1, 2, 3], 3, &[1, 2], &[]);
    cell.serves(&["a"]);
    cell.survives(0);
    let endpoints = [1, 2].map(|id| cell.members.client(id).to_string()).join(",");
    let text = wait_for("both to say so", || {
        let ended = synod(["status", "--endpoints", &endpoints]);
        let text = ended.output().to_owned();
        (text.matches("survives NO more failure").count() == 2).then_some(text)
    });
    let missing = format!("cannot reach replica 3 at {}", cell.members.peer(3));
    assert!(text.contains(&missing), "{text}");
    let list = cell.member(&["list"]);
    let line = list.output().lines().nth(3).unwrap();
    assert!(line.contains("voter") && line.contains("NO"), "{line}");
    // It comes, and all is as was thought.
    cell.launch(3, &["--bootstrap"]);
    cell.survives(1);
}

#[test]
fn changes_that_cannot_be_are_refused_and_nothing_is_lost() {
    let cell = Running::start(3, 4, &[]);
    cell.serves(&["a"]);
    let master = cell.master();
    let other = (1..=3).find(|id| *id != master).unwrap();
    cell.member(&["remove", "9"]).says(2, &["there is no member 9"]);
    let itself = &cell.master().to_string();
    cell.member(&["remove", itself]).says(2, &["the master does not remove itself", "transfer"]);
    cell.member(&["remove", itself, "--force"]).says(2, &["the master does not remove itself"]);
    let (id, peer, client) = cell.place(4);
    let add =
        |id: &str, peer: &str, client: &str| cell.member(&["add", id, "--peer", peer, "--client", client, "--no-wait"]);
    add("0", &peer, &client).says(2, &["member 0: ids go from 1 to 63"]);
    add("64", &peer, &client).says(2, &["member 64: ids go from 1 to 63"]);
    add(&other.to_string(), &peer, &client).says(2, &[&format!("member {other} exists already")]);
    add(&master.to_string(), &peer, &client).says(2, &[&format!("member {master} exists already")]);
    // The first members' addresses are in no log: in the flags alone.
    for taken in [other, master] {
        let (_, taken_peer, taken_client) = cell.place(taken);
        let has = |address: &str| format!("member {taken} has the address {address} already");
        add(&id, &taken_peer, &client).says(2, &[&has(&taken_peer)]);
        add(&id, &peer, &taken_client).says(2, &[&has(&taken_client)]);
        add(&id, &taken_client, &client).says(2, &[&has(&taken_client)]);
    }
    add(&id, &peer, &peer).says(2, &["cannot be both the peer and the client address"]);
    add(&id, "127.0.0.1:0", &client).says(2, &["127.0.0.1:0 has port 0"]);
    add(&id, "192.0.2.1:7000", &client).says(2, &["192.0.2.1:7000 is not on loopback", "--insecure"]);
    add(&id, "nowhere", &client).says(2, &["--peer", "nowhere"]);
    add("none", &peer, &client).says(2, &["none"]);
    assert_eq!(cell.list().len(), 3, "nothing was changed");

    // A learner's address, once it is in the log.
    assert!(add(&id, &peer, &client).status.success());
    add("5", &peer, "127.0.0.1:15001").says(2, &[&format!("member 4 has the address {peer} already")]);
    add("5", "127.0.0.1:15001", &client).says(2, &[&format!("member 4 has the address {client} already")]);
    assert!(cell.member(&["remove", &id]).status.success());
    cell.serves(&["b"]);
    cell.members.has(&["a"]);
}

#[test]
fn two_changes_at_once_are_one() {
    let cell = Running::start(3, 5, &[]);
    cell.serves(&["a"]);
    let request = |id: usize| {
        let (id, peer, client) = cell.place(id);
        format!(r#"{{"add_member": {{"id": {id}, "peer": "{peer}", "client": "{client}"}}}}"#)
    };
    // The second comes before the first can have come into force: a horizon of slots lies between. Again, should there have
    // been another master meanwhile.
    let reason = wait_for("one granted and one refused", || {
        let master = cell.master();
        match (cell.operate(master, &request(4)), cell.operate(master, &request(5))) {
            (OperatorAnswer::Accepted, OperatorAnswer::Refused { reason, retry: true }) => Some(reason),
            (_, OperatorAnswer::NotMaster { .. }) => None,
            (OperatorAnswer::NotMaster { .. } | OperatorAnswer::Refused { .. }, OperatorAnswer::Refused { .. }) => None,
            answers => panic!("{answers:?}"),
        }
    });
    assert!(reason.contains("another change of the members is under way"), "{reason}");
    wait_for("the one", || (cell.list().len() == 4).then_some(()));
    // An operator's tool asks again: then both are done, one after the other.
    let ended = cell.add(5, &["--no-wait"]);
    assert!(ended.output().contains("member 5 is a learner"), "{ended:?}");
    assert_eq!(cell.list().len(), 5);
    cell.serves(&["b"]);
}

#[test]
fn what_is_no_operators_request_is_refused_with_the_reason() {
    let cell = Running::start(3, 3, &[]);
    cell.serves(&["a"]);
    let before = cell.list();
    for request in [
        "",
        "{",
        "null",
        "7",
        "\u{0}",
        r#"{"add_member": {"id": 4}}"#,
        r#"{"remove_member": {"id": 70000, "force": false}}"#,
        r#"{"remove_member": {"id": 3, "force": true, "really": true}}"#,
        r#"{"remove_everybody": {}}"#,
        r#"{"add_member": {"id": 4, "peer": "here", "client": "there"}}"#,
    ] {
        for id in cell.running() {
            match cell.operate(id, request) {
                OperatorAnswer::Refused { reason, retry: false } => {
                    assert!(reason.contains("not a request: "), "{request}: {reason}");
                }
                answer => panic!("{request}: {answer:?}"),
            }
        }
    }
    assert!(cell.list().iter().map(|member| member.0).eq(before.iter().map(|member| member.0)));
    cell.serves(&["b"]);
}

#[test]
fn who_joins_too_early_waits() {
    let mut cell = Running::start(3, 4, &[]);
    cell.serves(&["a"]);
    cell.join(4);
    wait_for("a word about the waiting", || {
        cell.said(4).contains("waiting for the cell to know this replica").then_some(())
    });
    assert!(cell.said(4).contains("replica 4 is no member of this cell yet"), "{}", cell.said(4));
    assert!(contents(&cell.members.dir(4)).keys().eq(["lock"]), "{:?}", contents(&cell.members.dir(4)).keys());
    let ended = cell.add(4, &[]);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stdout).contains("member 4 votes"), "{ended:?}");
    cell.members.has(&["a"]);

    // Its directory is lost: it may have forgotten what it promised, whatever its flags say.
    cell.kill(4);
    fs::remove_dir_all(cell.members.dir(4)).unwrap();
    // A member that has not heard yet that it votes says that it has begun to join before.
    let lost = ["its state"];
    synod(cell.members.arguments(4, &["--join"])).says(REFUSED, &lost);
    // The first ones too, and who would bootstrap.
    let first = (1..=3).rev().find(|id| *id != cell.master()).unwrap();
    synod(cell.members.arguments_in(first, &cell.members.dir(4), &["--join"])).says(REFUSED, &lost);
    // Without a word it rejoins: the cell knows it.
    cell.launch(4, &[]);
    cell.wait_until(4, "the lost one to vote again", |status| status.voting == "voting" && status.life == 2);
    cell.serves(&["b"]);
}

/// A member's address leads out of the cell: into another that is also about to be joined by a replica of this number, or
/// that knows nobody of it.
#[test]
fn an_address_that_leads_to_another_cell_is_noticed() {
    let cell = Running::start(3, 4, &[]);
    cell.serves(&["a"]);
    let mut others = Running::start(1, 4, &[]);
    others.serves(&["b"]);
    assert!(cell.add(4, &["--no-wait"]).status.success());
    wait_for("everybody to know it", || {
        (1..=3).all(|id| cell.status(id).is_some_and(|status| status.members.len() == 4)).then_some(())
    });
    let misled = |dir: &std::path::Path, others: &Running| {
        let mut arguments = vec!["serve".to_owned(), "--join".to_owned(), "--id".to_owned(), "4".to_owned()];
        arguments.extend(["--dir".to_owned(), dir.to_str().unwrap().to_owned()]);
        for id in 1..=4 {
            let peer = if id == 3 { others.members.peer(1) } else { cell.members.peer(id) };
            arguments.extend(["--member".to_owned(), format!("{id}={peer},{}", cell.members.client(id))]);
        }
        arguments.extend(SMALL.map(str::to_owned));
        arguments
    };
    // The other cell has a new member of this number, too, and tells its id: nobody can say which cell is meant.
    let two = temp_dir();
    let add = others.add(4, &["--no-wait"]);
    assert!(add.status.success(), "{add:?}");
    synod(misled(&two.path().join("replica"), &others))
        .says(REFUSED, &["are of different cells", "check the addresses"]);
    // It has been told the cell's id, and may have promised something by it.
    let burnt = ["replica 4 has begun to join this cell before", "under an id never used before"];
    run(command(cell.members.arguments(4, &["--join"])), b"").says(REFUSED, &burnt);
    assert!(cell.member(&["remove", "4"]).status.success());
    for id in others.running() {
        others.stop(id);
    }

    // Another cell that knows nothing of it: the majority tells, and the wrong address shows.
    let mut cell = Running::start(3, 4, &[]);
    let others = Running::start(1, 1, &[]);
    assert!(cell.add(4, &["--no-wait"]).status.success());
    let mut arguments = cell.members.arguments(4, &["--join", "--stop-with-parent"]);
    let wrong = format!("3={},{}", others.members.peer(1), cell.members.client(3));
    let at = arguments.iter().position(|argument| argument.starts_with("3=")).unwrap();
    arguments[at] = wrong;
    cell.launch_with(4, command(arguments));
    let status = cell.wait_until(4, "the other cell's refusal", |status| {
        let refused = |why: &String| why.contains("you are of cell");
        status.peers.iter().any(|peer| peer.replica == 3 && peer.last_failure.as_ref().is_some_and(refused))
    });
    assert_eq!(status.cell, cell.status(1).unwrap().cell);
    others.serves(&["b"]);
    cell.serves(&["a"]);
    let other = others.status(1).unwrap();
    assert!(other.counters.refused_hellos > 0, "{:?}", other.counters);
    assert!(others.said(1).contains("refused a hello on the replicas' port: you are of cell"), "{}", others.said(1));
}

/// A cell of one grows: nothing of it is different.
#[test]
fn a_cell_of_one_grows_to_three() {
    let mut cell = Running::start(1, 3, &[]);
    cell.serves(&["a"]);
    for id in [2, 3] {
        cell.join(id);
        let ended = cell.add(id, &[]);
        assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    }
    cell.survives(1);
    // The first one may go once the others know, too, that the last change has come into force: before that, they cannot do
    // without a majority of the two that were there before it.
    for id in cell.running() {
        cell.wait_until(id, "everybody to know it", |status| {
            status.members.len() == 3 && status.members.iter().all(|member| member.votes)
        });
    }
    cell.kill(1);
    cell.members.has(&["a"]);
    cell.serves(&["b"]);
    cell.survives(0);
    cell.launch(1, &["--bootstrap"]);
    cell.survives(1);
    for id in cell.running() {
        cell.stop(id);
    }
}
