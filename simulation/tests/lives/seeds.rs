//! Some dozens of lives, each under other faults.

use std::collections::BTreeMap;

use dogsled_simulation::faults::Kind;
use dogsled_simulation::{Options, Report, run};

use crate::{USUAL, WITH_A_LOST_QUORUM, WITH_TRANSACTIONS};

fn judge(options: &Options) -> Report {
    let seed = options.seed;
    let names: Vec<String> = options.only.iter().map(|kind| format!("{kind:?}")).collect();
    let mut only = if names.is_empty() { String::new() } else { format!(" --faults {}", names.join(",")) };
    if options.transactions {
        only.push_str(" --transactions");
    }
    if options.lost {
        only.push_str(" --lost");
    }
    let report = run(options);
    assert!(
        report.violations.is_empty(),
        "seed {seed}: {}\nagain: cargo run --release -p dogsled-simulation -- --from {seed} --seeds 1{only} --trace",
        report.violations.join("\n")
    );
    assert!(report.operations.0 > 0, "seed {seed}: nothing was done in it");
    assert_eq!(report.undecided, 0, "seed {seed}: a history that is too hard to judge");
    report
}

/// Lives through all of them, and sees that there was enough of everything together: where nothing happens, nothing
/// goes wrong.
fn judge_all(lives: impl IntoIterator<Item = Options>, least: &[(&str, u64)]) {
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for options in lives {
        let report = judge(&options);
        let (heard, _, unknown) = report.operations;
        for (what, count) in [("heard", heard as u64), ("not heard of", unknown as u64)] {
            *counts.entry(what).or_default() += count;
        }
        for (what, count) in report.counts {
            *counts.entry(what).or_default() += count;
        }
    }
    println!("{counts:?}");
    for (what, least) in least {
        let count = counts.get(what).copied().unwrap_or(0);
        assert!(count >= *least, "only {count} {what}: {counts:?}");
    }
}

fn live(seeds: std::ops::Range<u64>) {
    let least = [
        ("heard", 3_500),
        ("grants", 25),
        ("fenced writes", 25),
        ("sessions", 14),
        ("keys of sessions", 15),
        ("looks at what has died", 15),
        ("numbered keys", 10),
        ("stretches watched", 130),
        ("changes watched", 500),
        ("due and gone", 25),
        ("transfers", 2),
    ];
    judge_all(seeds.map(Options::new), &least);
}

#[test]
fn clusters_keep_their_promises_through_faults_one() {
    live(USUAL.start..USUAL.end / 2);
}

#[test]
fn clusters_keep_their_promises_through_faults_two() {
    live(USUAL.end / 2..USUAL.end);
}

/// These once left a replica behind for ever: its leader had purged the entry behind the snapshot that
/// it held for it, and sent the same snapshot again and again.
#[test]
fn a_follower_gets_on_after_a_held_snapshot() {
    for seed in [1008, 1050, 1080] {
        let only = vec![Kind::DiskError, Kind::PowerCut, Kind::Kill];
        judge(&Options { only, ..Options::new(seed) });
    }
}

/// These once damaged a B-tree: a repeated checkpoint wrote the same bytes as the one whose sync had
/// failed, so the checksums of its blocks were taken for written, and were only in the page cache.
#[test]
fn a_checkpoint_repeated_after_a_failed_sync_survives_a_power_cut() {
    for seed in [2554, 2882, 3002] {
        let only = vec![Kind::DiskError, Kind::PowerCut, Kind::Kill];
        judge(&Options { only, ..Options::new(seed) });
    }
}

/// Seeds that catch an entry of an old term that is committed by counting replicas, if that is built in.
#[test]
fn entries_of_old_terms_are_not_committed_by_counting() {
    let lives = (0..3).map(|seed| Options { only: vec![Kind::Figure8], ..Options::new(seed) });
    judge_all(lives, &[("figure 8 played to its end", 2)]);
}

#[test]
fn members_come_and_go_while_clients_work() {
    for seed in 0..3 {
        let only = vec![Kind::Join, Kind::Leave, Kind::Wipe, Kind::PowerCut, Kind::Isolate];
        judge(&Options { only, ..Options::new(seed) });
    }
}

/// With five and six machines most have not all partitions: they move through whatever happens.
#[test]
fn partitions_move_while_machines_die_and_networks_are_cut() {
    let lives = [3, 5, 8, 13, 21, 34, 55, 89].map(|seed| {
        let only = vec![
            Kind::Join,
            Kind::Leave,
            Kind::Drain,
            Kind::PowerCut,
            Kind::Kill,
            Kind::Isolate,
            Kind::OneWay,
            Kind::Pause,
            Kind::Wipe,
        ];
        Options { only, ..Options::new(seed) }
    });
    judge_all(lives, &[("drains", 1)]);
}

#[test]
fn transactions_over_partitions_are_strictly_serializable_through_faults() {
    let least = [
        ("committed", 300),
        ("aborted", 100),
        ("unknown", 3),
        ("audits", 30),
        ("audits disturbed", 10),
        ("died before the decision", 10),
        ("died after the decision", 10),
    ];
    judge_all(WITH_TRANSACTIONS.map(Options::with_transactions), &least);
}

/// Seeds that catch a vote that is given before the new replica has everything, if that is built in.
#[test]
fn nobody_votes_before_he_has_everything() {
    for seed in [1003, 1009] {
        let only =
            vec![Kind::Join, Kind::Leave, Kind::Drain, Kind::Isolate, Kind::Pause, Kind::OneWay, Kind::Kill];
        judge(&Options { only, ..Options::new(seed) });
    }
}

#[test]
fn what_is_left_of_a_lost_quorum_is_recovered_and_the_lost_stay_out() {
    let least = [
        ("heard", 2_000),
        ("written after the recovery", 900),
        ("left of what was written before", 800),
        ("lost of what was written before", 3),
    ];
    judge_all(WITH_A_LOST_QUORUM.map(Options::with_a_lost_quorum), &least);
}
