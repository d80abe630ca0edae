//! The same seed is the same life.

use std::time::Duration;

use dogsled_simulation::{Options, run};

fn lived_twice_is_the_same(seeds: std::ops::Range<u64>, options: impl Fn(u64) -> Options) {
    let live = |seed| run(&Options { duration: Duration::from_secs(5), ..options(seed) }).trace;
    let traces: Vec<(u64, u64)> = seeds.clone().map(live).collect();
    for (seed, trace) in seeds.zip(&traces) {
        assert_eq!(live(seed), *trace, "seed {seed}");
    }
    let mut hashes: Vec<u64> = traces.iter().map(|(hash, _)| *hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), traces.len());
}

#[test]
fn a_seed_lived_twice_leaves_one_trace_and_another_seed_another() {
    lived_twice_is_the_same(0..6, Options::new);
}

#[test]
fn so_it_is_with_transactions() {
    lived_twice_is_the_same(0..4, Options::with_transactions);
}

#[test]
fn so_it_is_when_a_quorum_is_lost() {
    lived_twice_is_the_same(0..3, Options::with_a_lost_quorum);
}
