//! Some dozens of lives, each under other faults.

use dogsled_simulation::{Options, run};

fn live(seeds: std::ops::Range<u64>) {
    for seed in seeds {
        let report = run(&Options::new(seed));
        assert!(
            report.violations.is_empty(),
            "seed {seed}: {}\nagain: cargo run --release -p dogsled-simulation -- --from {seed} --seeds 1 --trace",
            report.violations.join("\n")
        );
        assert_eq!(report.undecided, 0, "seed {seed}: a history that is too hard to judge");
    }
}

#[test]
fn clusters_keep_their_promises_through_faults_one() {
    live(0..25);
}

#[test]
fn clusters_keep_their_promises_through_faults_two() {
    live(25..50);
}
