//! Bugs that are planted are caught, each by what it breaks.

use dogsled_simulation::planted::Planted;
use dogsled_simulation::{Options, run};

use crate::{USUAL, WITH_A_LOST_QUORUM, WITH_TRANSACTIONS};

/// Whether a life without a bug is judged by [`crate::seeds`] already.
fn is_judged_elsewhere(options: &Options) -> bool {
    let seeds = match (options.lost, options.transactions) {
        (true, _) => WITH_A_LOST_QUORUM,
        (false, true) => WITH_TRANSACTIONS,
        (false, false) => USUAL,
    };
    options.only.is_empty() && seeds.contains(&options.seed)
}

/// How many seeds are tried: a change anywhere makes other lives of the same seeds, so that those which showed a bug quickly
/// may not any more, but a bug that a life in forty does not show is one that the judges do not see.
const TRIED: u64 = 40;

/// Lives through seeds with the bug until one of them is found out; it has to be for one of these reasons. The seeds named
/// are those that are known to show it, and come first.
fn is_caught(planted: Planted, seeds: &[u64], reasons: &[&str]) {
    is_caught_among(planted, seeds, Options::new, reasons);
}

fn is_caught_among(planted: Planted, seeds: &[u64], life: fn(u64) -> Options, reasons: &[&str]) {
    let mut all = Vec::new();
    let others = (0..TRIED).filter(|seed| !seeds.contains(seed));
    for seed in seeds.iter().copied().chain(others) {
        let sound = life(seed);
        let violations = run(&Options { planted: Some(planted), ..sound.clone() }).violations;
        let is_right = |violation: &String| reasons.iter().any(|reason| violation.contains(reason));
        if violations.iter().any(is_right) {
            // It is the bug that was found.
            if !is_judged_elsewhere(&sound) {
                let without = run(&sound).violations;
                assert_eq!(without, Vec::<String>::new(), "seed {seed} without the bug");
            }
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

#[test]
fn a_lease_that_ends_by_the_wall_clock_of_a_leader_is_caught() {
    let reasons =
        ["left of its lease", "had ended without release", "within the lease of token", "too early"];
    is_caught(Planted::ExpireByWallClock, &[19, 21], &reasons);
}

#[test]
fn an_abort_that_home_forgets_is_caught() {
    let life = |seed| Options { transactions: true, ..Options::new(seed) };
    let reasons = ["the accounts hold", "seen accounts that hold"];
    is_caught_among(Planted::ForgetAborts, &[2, 1], life, &reasons);
}

#[test]
fn a_read_of_what_is_over_is_caught() {
    is_caught(Planted::StaleReads, &[0, 2], &["is not linearizable"]);
}

#[test]
fn a_lock_that_is_given_on_at_once_after_an_unclean_end_is_caught() {
    is_caught(Planted::DropDelays, &[0, 5], &["and asked for a delay of"]);
}

#[test]
fn what_outlives_whoever_owned_it_is_caught() {
    is_caught(Planted::RenewForever, &[3, 1], &["nobody owns anything any more, this is left"]);
}

#[test]
fn a_waiter_who_is_thrown_out_of_the_line_is_caught() {
    is_caught(Planted::ThrowOutTheFirst, &[0, 2], &["is gone from the line"]);
}

#[test]
fn a_recovery_from_less_than_what_is_left_is_caught() {
    let reasons = ["the best of those that are left had it"];
    is_caught_among(Planted::RecoverFromEarlier, &[0, 1], Options::with_a_lost_quorum, &reasons);
}

#[test]
fn a_change_that_is_not_told_to_who_watches_is_caught() {
    is_caught(Planted::DropChanges, &[0, 1, 2, 3], &["was told everything under"]);
}

#[test]
fn leases_that_no_leader_ends_are_caught() {
    is_caught(Planted::LookAfterNothing, &[1, 3, 5], &["after it was due, though node"]);
}

#[test]
fn what_is_acknowledged_before_it_is_synced_is_caught() {
    // The disk has lost more than a power cut takes of what was synced, and the node says so before anything else can.
    is_caught(Planted::AcknowledgeBeforeSync, &[0, 1], &["does not start again: damaged data"]);
}
