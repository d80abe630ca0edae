//! Bugs that are planted are caught, each by what it breaks.

use dogsled_simulation::planted::Planted;
use dogsled_simulation::{Options, run};

/// Lives through seeds with the bug until one of them is found out; it has to be for one of these reasons.
fn is_caught(planted: Planted, seeds: &[u64], reasons: &[&str]) {
    let mut all = Vec::new();
    for &seed in seeds {
        let sound = Options::new(seed);
        let violations = run(&Options { planted: Some(planted), ..sound.clone() }).violations;
        let is_right = |violation: &String| reasons.iter().any(|reason| violation.contains(reason));
        if violations.iter().any(is_right) {
            // It is the bug that was found.
            let without = run(&sound).violations;
            assert_eq!(without, Vec::<String>::new(), "seed {seed} without the bug");
            return;
        }
        all.push((seed, violations));
    }
    panic!("{planted:?} was not found out for any of {reasons:?}: {all:#?}");
}

#[test]
fn a_fence_that_is_not_looked_at_is_caught() {
    is_caught(Planted::DropFences, &[0, 1], &["something was done under token"]);
}

#[test]
fn a_command_that_is_done_again_when_it_is_sent_again_is_caught() {
    is_caught(Planted::DropNumbers, &[0, 2], &["is not linearizable"]);
}

#[test]
fn a_holder_too_many_is_caught() {
    let reasons = ["within the lease of token", "it is held under the tokens"];
    is_caught(Planted::OnePermitMore, &[5, 0], &reasons);
}

#[test]
fn a_key_that_outlives_its_session_is_caught() {
    is_caught(Planted::DropOwners, &[1, 5], &["which had ended at"]);
}

#[test]
fn a_key_that_is_read_after_its_time_is_caught() {
    is_caught(Planted::DropTimes, &[1, 5], &["was over at"]);
}

#[test]
fn an_addition_to_some_counters_only_is_caught() {
    is_caught(Planted::AddToOne, &[0], &["counters that are added to together stand at"]);
}

#[test]
fn bounds_that_are_not_kept_are_caught() {
    is_caught(Planted::DropBounds, &[0, 1], &["is not linearizable"]);
}
