//! The results of a run, as the JSON file holds them.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::stats::Summary;
use crate::targets::Verdict;
use crate::workloads::{ALL, Workload};

/// Everything about one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Where and when.
    pub machine: Machine,
    /// How much was asked for.
    pub effort: Effort,
    /// Who took part and how each was tuned.
    pub contestants: Vec<Participant>,
    /// What came out.
    pub workloads: Vec<WorkloadResult>,
}

/// How much was asked for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Effort {
    /// Entries in a warm database.
    pub keys: u64,
    /// Entries in the memory workload.
    pub memory_keys: u64,
    /// Repeats of each measurement.
    pub repeats: usize,
    /// Seconds for each timed measurement.
    pub seconds: f64,
    /// Cache of each contestant.
    pub cache_mebibytes: u64,
    /// Whether corners were cut: such numbers are for trying things out.
    pub quick: bool,
}

/// A contestant of this run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Participant {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its tuning.
    pub tuning: String,
    /// Whether it counts among the B-trees.
    pub b_tree: bool,
    /// Whether its durable writes are synced when they return.
    pub syncs: bool,
}

/// All rows of one workload.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct WorkloadResult {
    /// See [`Workload::id`].
    pub id: String,
    /// See [`Workload::title`].
    pub title: String,
    /// See [`Workload::unit`].
    pub unit: String,
    /// Day, time and commit of its run.
    #[serde(default)]
    pub measured: String,
    /// See [`Workload::lower_is_better`].
    pub lower_is_better: bool,
    /// Whether spinner threads kept the cores awake.
    pub spinners: bool,
    /// One per contestant and baseline.
    pub rows: Vec<Row>,
    /// dogsled against its target, when both are there.
    pub verdict: Option<Verdict>,
}

/// One contestant's numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Row {
    /// Contestant or baseline.
    pub name: String,
    /// Whether it is a baseline rather than a database.
    pub baseline: bool,
    /// Whether it promises less than the others here: shown, but never the best.
    pub weaker: bool,
    /// One per repeat, in order.
    pub values: Vec<f64>,
    /// Of `values`.
    pub summary: Summary,
    /// Median seconds that postponed work took after the measurement, where it was asked for.
    pub settle_seconds: Option<f64>,
}

impl Row {
    /// Whether it is a database that keeps the same promise as the others.
    pub fn comparable(&self) -> bool {
        !self.baseline && !self.weaker
    }
}

impl Report {
    /// Adds the workloads of an earlier run that this one did not measure.
    ///
    /// # Errors
    /// When the two do not belong together: another machine, other contestants, another effort.
    pub fn keep(&mut self, earlier: Report) -> Result<()> {
        let conditions = |report: &Report| {
            let names: Vec<String> =
                report.contestants.iter().map(|one| format!("{} {}", one.name, one.version)).collect();
            let Effort { keys, memory_keys, repeats, seconds, cache_mebibytes, quick } = report.effort;
            let effort = format!("{keys} {memory_keys} {repeats} {seconds} {cache_mebibytes} {quick}");
            (report.machine.processor.clone(), report.machine.cores, names, effort)
        };
        let (now, before) = (conditions(self), conditions(&earlier));
        ensure!(now == before, "the earlier run was under other conditions: {before:?}, this one {now:?}");
        let kept =
            earlier.workloads.into_iter().filter(|old| self.workloads.iter().all(|new| new.id != old.id));
        self.workloads.extend(kept.collect::<Vec<_>>());
        let place = |result: &WorkloadResult| ALL.iter().position(|workload| workload.id == result.id);
        self.workloads.sort_by_key(place);
        Ok(())
    }
}

impl WorkloadResult {
    /// The row called `name`.
    pub fn row(&self, name: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.name == name)
    }

    /// The row with the best median among those that `eligible` admits.
    pub fn best(&self, eligible: impl Fn(&Row) -> bool) -> Option<&Row> {
        let rows = self.rows.iter().filter(|row| eligible(row));
        let by_median = |a: &&Row, b: &&Row| a.summary.median.total_cmp(&b.summary.median);
        if self.lower_is_better { rows.min_by(by_median) } else { rows.max_by(by_median) }
    }

    /// The best database other than dogsled.
    pub fn best_peer(&self) -> Option<&Row> {
        self.best(|row| row.comparable() && row.name != crate::targets::SUBJECT)
    }
}

/// Collects measurements as they come.
#[derive(Debug, Default)]
pub struct Recorder {
    cells: BTreeMap<(&'static str, String), Cell>,
    spinners: BTreeMap<&'static str, bool>,
    order: Vec<String>,
}

#[derive(Debug, Default)]
struct Cell {
    baseline: bool,
    values: Vec<f64>,
    settles: Vec<f64>,
}

impl Recorder {
    /// Notes a measurement.
    pub fn record(&mut self, workload: &Workload, contestant: &str, value: f64) -> &mut Self {
        self.cell(workload, contestant).values.push(value);
        self
    }

    /// Notes a measurement of a baseline.
    pub fn record_baseline(&mut self, workload: &Workload, name: &str, value: f64) {
        let cell = self.cell(workload, name);
        cell.baseline = true;
        cell.values.push(value);
    }

    /// Notes how long postponed work took after the last measurement.
    pub fn record_settling(&mut self, workload: &Workload, contestant: &str, seconds: f64) {
        self.cell(workload, contestant).settles.push(seconds);
    }

    /// Notes that spinner threads ran.
    pub fn with_spinners(&mut self, workload: &Workload) {
        self.spinners.insert(workload.id, true);
    }

    fn cell(&mut self, workload: &Workload, name: &str) -> &mut Cell {
        if !self.order.iter().any(|known| known == name) {
            self.order.push(name.to_owned());
        }
        self.cells.entry((workload.id, name.to_owned())).or_default()
    }

    /// The rows of one workload, contestants in order of appearance; `None` if nothing was measured.
    pub fn result(&self, workload: &Workload, participants: &[Participant]) -> Option<WorkloadResult> {
        let rows: Vec<Row> = self
            .order
            .iter()
            .filter_map(|name| {
                let cell = self.cells.get(&(workload.id, name.clone()))?;
                Some(Row {
                    name: name.clone(),
                    baseline: cell.baseline,
                    weaker: workload.is_durable()
                        && participants.iter().any(|one| one.name == *name && !one.syncs),
                    summary: Summary::of(&cell.values)?,
                    values: cell.values.clone(),
                    settle_seconds: Summary::of(&cell.settles).map(|summary| summary.median),
                })
            })
            .collect();
        if rows.is_empty() {
            return None;
        }
        let mut result = WorkloadResult {
            id: workload.id.to_owned(),
            title: workload.title.to_owned(),
            unit: workload.unit.to_owned(),
            measured: String::new(),
            lower_is_better: workload.lower_is_better,
            spinners: self.spinners.contains_key(workload.id),
            rows,
            verdict: None,
        };
        result.verdict = workload.target.and_then(|target| target.judge(&result, participants));
        Some(result)
    }
}
