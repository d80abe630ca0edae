//! The same seed is the same life.

use std::time::Duration;

use dogsled_simulation::{Options, run};

#[test]
fn a_seed_lived_twice_leaves_one_trace_and_another_seed_another() {
    let live = |seed| run(&Options { duration: Duration::from_secs(5), ..Options::new(seed) }).trace;
    let traces: Vec<(u64, u64)> = (0..6).map(live).collect();
    for (seed, trace) in traces.iter().enumerate() {
        assert_eq!(live(seed as u64), *trace, "seed {seed}");
    }
    let mut hashes: Vec<u64> = traces.iter().map(|(hash, _)| *hash).collect();
    hashes.sort_unstable();
    hashes.dedup();
    assert_eq!(hashes.len(), traces.len());
}
