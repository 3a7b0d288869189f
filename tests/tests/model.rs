//! The model check in small: a whole scope, what it leans on, and planted bugs found.

use synod_tests::model::{self, Planted, Scope};

#[test]
fn a_small_scope_holds_to_the_end() {
    let outcome = model::check(Scope::SMALL, 2, |_, _| ());
    for finding in outcome.findings.iter().filter(|finding| !finding.held) {
        println!("{}\n{}", finding.name, finding.path.join("\n"));
    }
    assert!(outcome.is_sound());
    // Fewer: something can no longer happen that could. Far more: replicas that should be equal are not, see the module.
    assert!((5_000..2_000_000).contains(&outcome.unique), "{} states", outcome.unique);
}

#[test]
fn what_is_taken_for_dead_has_no_effect() {
    for scope in [
        Scope { campaigners: &[1], ..Scope::SMALL },
        Scope { candidacies: 1, campaigners: &[1], ..Scope::ONE_SLOT },
        Scope { candidacies: 1, campaigners: &[1], ..Scope::ONE_SLOT_CRASH },
    ] {
        let (combinations, same) = model::reached_without_dead_messages(&scope);
        assert!(same, "of {combinations} combinations of nodes in {scope:?} some are reached in one way alone");
        assert!(combinations > 100, "{combinations} in {scope:?}");
    }
}

#[test]
fn planted_bugs_are_caught() {
    for planted in Planted::all() {
        let outcome = model::catch(planted, |_, _| ());
        let caught = outcome.findings.iter().any(|finding| model::DISASTERS.contains(&finding.name) && !finding.held);
        assert!(caught, "{} was missed in {} states", planted.name(), outcome.unique);
    }
}
