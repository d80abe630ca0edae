//! What dogsled set out to reach, and whether it did.

use serde::{Deserialize, Serialize};

use crate::results::{Participant, Row, WorkloadResult};
use crate::stats::human;

/// The contestant whose benchmarks these are.
pub const SUBJECT: &str = "dogsled";

/// Whom dogsled is measured against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    /// The best of all other databases.
    All,
    /// The best of the other B-trees.
    BTrees,
    /// This one.
    One(&'static str),
    /// The better raw rate of the disk.
    Raw,
}

/// A bound on a result.
#[derive(Debug, Clone, Copy)]
pub enum Target {
    /// On dogsled's number as a multiple of another's: at least, or at most where lower is better.
    Ratio {
        /// The multiple.
        bound: f64,
        /// Of whose number.
        among: Among,
    },
    /// On the number itself; lower is better.
    Value {
        /// The most allowed.
        bound: f64,
    },
}

/// dogsled against its target.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// The target in words.
    pub target: String,
    /// Whom it was measured against, unless the target is a plain number.
    pub against: Option<String>,
    /// dogsled's median as a multiple of the other's, or the median itself.
    pub reached: f64,
    /// The same for the single repeats: the smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
    /// Whether the target is met.
    pub met: bool,
}

impl Target {
    /// Judges dogsled's row, if it and the row to compare with are there.
    pub fn judge(self, result: &WorkloadResult, participants: &[Participant]) -> Option<Verdict> {
        let subject = result.row(SUBJECT)?;
        match self {
            Target::Value { bound } => {
                let summary = subject.summary;
                Some(Verdict {
                    target: format!("≤ {} {}", human(bound), result.unit),
                    against: None,
                    reached: summary.median,
                    min: summary.min,
                    max: summary.max,
                    met: summary.median <= bound,
                })
            }
            Target::Ratio { bound, among } => {
                let other = result.best(|row| row.name != SUBJECT && among.admits(row, participants))?;
                let reached = subject.summary.median / other.summary.median;
                // Repeats are interleaved: the same repeat met the same noise.
                let pairs = || subject.values.iter().zip(&other.values).map(|(a, b)| a / b);
                let sign = if result.lower_is_better { "≤" } else { "≥" };
                Some(Verdict {
                    target: format!("{sign} {bound} × {}", among.words()),
                    against: Some(other.name.clone()),
                    reached,
                    min: pairs().fold(f64::INFINITY, f64::min),
                    max: pairs().fold(0.0, f64::max),
                    met: if result.lower_is_better { reached <= bound } else { reached >= bound },
                })
            }
        }
    }
}

impl Among {
    fn admits(self, row: &Row, participants: &[Participant]) -> bool {
        match self {
            Among::All => row.comparable(),
            Among::BTrees => participants.iter().any(|one| one.name == row.name && one.b_tree),
            Among::One(name) => row.name == name,
            Among::Raw => row.baseline,
        }
    }

    fn words(self) -> &'static str {
        match self {
            Among::All => "best peer",
            Among::BTrees => "best B-tree peer",
            Among::One(name) => name,
            Among::Raw => "better raw rate",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::Recorder;
    use crate::workloads::by_id;

    #[test]
    fn a_ratio_is_taken_against_the_best_admitted() {
        let workload = by_id("durable-put-16");
        let mut recorder = Recorder::default();
        recorder.record(workload, SUBJECT, 30.0).record(workload, "redb", 10.0);
        recorder.record(workload, "sled", 20.0);
        recorder.record_baseline(workload, "raw", 100.0);
        let verdict = recorder.result(workload, &[]).unwrap().verdict.unwrap();
        assert_eq!(verdict.against.as_deref(), Some("sled"));
        assert_eq!(verdict.reached, 1.5);
        assert!(!verdict.met);
    }

    #[test]
    fn who_does_not_sync_is_not_the_best_of_durable_rows() {
        let workload = by_id("durable-put-16");
        let mut recorder = Recorder::default();
        recorder.record(workload, SUBJECT, 30.0).record(workload, "redb", 10.0);
        recorder.record(workload, "sled", 20.0);
        let sled = Participant {
            name: "sled".to_owned(),
            version: String::new(),
            tuning: String::new(),
            b_tree: true,
            syncs: false,
        };
        let verdict = recorder.result(workload, &[sled]).unwrap().verdict.unwrap();
        assert_eq!(verdict.against.as_deref(), Some("redb"));
        assert!(verdict.met);
    }

    #[test]
    fn sizes_are_better_when_lower() {
        let workload = by_id("load-size");
        let mut recorder = Recorder::default();
        recorder.record(workload, SUBJECT, 110.0).record(workload, "redb", 100.0);
        assert!(recorder.result(workload, &[]).unwrap().verdict.unwrap().met);
    }
}
