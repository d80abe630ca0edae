//! The comparison: which measurements run, in which order.
//!
//! Workloads that need the same kind of open database form a stage. A stage opens the warm databases of all
//! contestants, then takes one workload after the other; within a workload repeat r visits every contestant
//! before repeat r+1 begins, each time starting with another one, so that noise and drift meet all alike. After
//! each measurement the contestant settles and the system writes its caches back: no one works in the shadow
//! of another's postponed writes.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::contestant::{Contestant, Database, Durability, Settings, open};
use crate::data::{self, Touched};
use crate::machine::Machine;
use crate::results::{Effort, Participant, Recorder, Report};
use crate::spinners::Spinners;
use crate::workloads::operations::{self as ops, Warm};
use crate::workloads::raw::RawFile;
use crate::workloads::threads::Limit;
use crate::workloads::{ALL, Workload, admits, by_id, lifecycle};
use crate::{child, report};

/// Cache of each contestant in the memory workload, in MiB.
const MEMORY_CACHE: u64 = 256;

/// What to run.
pub struct Plan {
    /// Entries, repeats, seconds.
    pub effort: Effort,
    /// Beginnings of workload ids; empty for all.
    pub only: Vec<String>,
    /// Who takes part.
    pub contestants: Vec<&'static dyn Contestant>,
    /// Who takes part in the workloads that take many minutes for each: memory and disk growth.
    pub heavy: Vec<&'static dyn Contestant>,
    /// Where the databases go: an empty directory.
    pub dir: PathBuf,
}

/// Runs `plan`, printing each table as soon as it is complete.
pub fn run(plan: &Plan) -> Result<Report> {
    let participants = plan
        .contestants
        .iter()
        .map(|contestant| Participant {
            name: contestant.name().to_owned(),
            version: contestant.version().to_owned(),
            tuning: contestant.tuning().to_owned(),
            b_tree: contestant.is_b_tree(),
            syncs: contestant.syncs(),
        })
        .collect();
    let mut report = Report {
        machine: Machine::describe(&plan.dir),
        effort: plan.effort.clone(),
        contestants: participants,
        workloads: Vec::new(),
    };
    println!("{}", report::preamble(&report));
    let mut run = Run { plan, recorder: Recorder::default(), participants: report.contestants.clone() };
    run.load_stage()?;
    run.reading_stage()?;
    run.buffered_stage()?;
    run.durable_stage()?;
    run.transaction_stage(Durability::Buffered)?;
    run.transaction_stage(Durability::Synced)?;
    run.reopen_stage()?;
    run.heavy_stage()?;
    report.workloads =
        ALL.iter().filter_map(|workload| run.recorder.result(workload, &run.participants)).collect();
    let measured = format!("{}, commit {}", report.machine.date, report.machine.commit);
    report.workloads.iter_mut().for_each(|result| result.measured.clone_from(&measured));
    if report.workloads.is_empty() {
        bail!("no workload matches {:?}", plan.only);
    }
    Ok(report)
}

/// Refuses an `--only` that names nothing.
pub fn check_only(only: &[String]) -> Result<()> {
    for prefix in only {
        if !ALL.iter().any(|workload| workload.id.starts_with(prefix.as_str())) {
            let known: Vec<&str> = ALL.iter().map(|workload| workload.id).collect();
            bail!("no workload begins with '{prefix}'; there are {}", known.join(", "));
        }
    }
    Ok(())
}

/// Databases of a stage, in the order of the contestants.
type Opened = Vec<(&'static str, Box<dyn Database>)>;

struct Run<'a> {
    plan: &'a Plan,
    recorder: Recorder,
    participants: Vec<Participant>,
}

impl Run<'_> {
    fn wanted(&self, id: &str) -> bool {
        admits(&self.plan.only, id)
    }

    fn any_wanted(&self, prefix: &str) -> bool {
        ALL.iter().any(|workload| workload.id.starts_with(prefix) && self.wanted(workload.id))
    }

    fn cache_bytes(&self) -> u64 {
        self.plan.effort.cache_mebibytes << 20
    }

    fn warm(&self, repeat: usize) -> Warm {
        Warm {
            keys: self.plan.effort.keys,
            seed: repeat as u64 + 1,
            budget: Duration::from_secs_f64(self.plan.effort.seconds),
        }
    }

    fn warm_dir(&self, name: &str) -> PathBuf {
        self.plan.dir.join(format!("{name}-warm"))
    }

    fn print(&self, workload: &Workload) {
        if let Some(result) = self.recorder.result(workload, &self.participants) {
            println!("{}", report::workload(&result).trim_end());
        }
    }

    /// Visits every contestant once per repeat, starting with another one each time.
    fn visits(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (repeats, count) = (self.plan.effort.repeats, self.plan.contestants.len());
        (0..repeats).flat_map(move |repeat| (0..count).map(move |i| (repeat, (repeat + i) % count)))
    }

    /// Loads new databases; the last of each contestant becomes its warm one.
    fn load_stage(&mut self) -> Result<()> {
        let measured = self.any_wanted("load");
        let needs_warm = self.plan.only.is_empty()
            || ALL.iter().any(|workload| {
                self.wanted(workload.id)
                    && !["load", "memory", "disk"].iter().any(|p| workload.id.starts_with(p))
            });
        if !measured && !needs_warm {
            return Ok(());
        }
        let repeats = if measured { self.plan.effort.repeats } else { 1 };
        for (repeat, i) in self.visits().take(repeats * self.plan.contestants.len()) {
            let contestant = self.plan.contestants[i];
            let dir = self.plan.dir.join(format!("{}-load", contestant.name()));
            let loaded = lifecycle::load(contestant, &dir, self.plan.effort.keys, self.cache_bytes())
                .with_context(|| format!("loading {}", contestant.name()))?;
            if measured {
                let name = contestant.name();
                self.recorder.record(by_id("load"), name, loaded.keys_per_second);
                self.recorder.record(by_id("load-settled"), name, loaded.settled_keys_per_second);
                self.recorder.record(by_id("load-size"), name, loaded.mebibytes);
            }
            if repeat + 1 == repeats {
                fs::rename(&dir, self.warm_dir(contestant.name()))?;
            } else {
                fs::remove_dir_all(&dir)?;
            }
            write_back();
        }
        for id in ["load", "load-settled", "load-size"] {
            self.print(by_id(id));
        }
        Ok(())
    }

    fn open_all(&self, durability: Durability, transactions: bool) -> Result<Opened> {
        let settings = Settings { durability, cache_bytes: self.cache_bytes(), transactions };
        self.plan
            .contestants
            .iter()
            .map(|contestant| {
                Ok((contestant.name(), open(*contestant, &self.warm_dir(contestant.name()), settings)?))
            })
            .collect()
    }

    /// Measures one workload on the open databases.
    fn measure(
        &mut self,
        id: &'static str,
        opened: &Opened,
        settle: bool,
        mut one: impl FnMut(&dyn Database, Warm) -> Result<f64>,
    ) -> Result<()> {
        if !self.wanted(id) {
            return Ok(());
        }
        let workload = by_id(id);
        for (repeat, i) in self.visits() {
            let (name, db) = &opened[i];
            let value = one(db.as_ref(), self.warm(repeat))
                .with_context(|| format!("{} of {name}", workload.title))?;
            self.recorder.record(workload, name, value);
            if settle {
                let start = Instant::now();
                db.settle().with_context(|| format!("settling {name}"))?;
                self.recorder.record_settling(workload, name, start.elapsed().as_secs_f64());
                write_back();
            }
        }
        Ok(())
    }

    fn reading_stage(&mut self) -> Result<()> {
        if !["get", "scan"].iter().any(|prefix| self.any_wanted(prefix)) {
            return Ok(());
        }
        let opened = self.open_all(Durability::Buffered, false)?;
        let keys = self.plan.effort.keys;
        let mut expected = Touched::default();
        (0..keys).for_each(|i| expected.entry(&data::key(i), &data::value(i, 0)));
        let once = Warm { budget: Duration::ZERO, ..self.warm(0) };
        for (name, db) in &opened {
            // Fills the caches, and checks that all contestants hold the same.
            let (_, touched) = ops::full_scans(db.as_ref(), once)?;
            ensure!(touched == expected, "{name} holds other entries than were loaded");
            let unlimited = Warm { budget: Duration::MAX, ..self.warm(0) };
            ops::gets(db.as_ref(), unlimited, 1, keys)?;
        }
        for (id, threads) in [("get-1", 1), ("get-2", 2)] {
            self.measure(id, &opened, false, |db, warm| {
                Ok(ops::gets(db, warm, threads, u64::MAX)?.per_second())
            })?;
            self.print(by_id(id));
        }
        self.measure("scan-100", &opened, false, |db, warm| Ok(ops::short_scans(db, warm)?.per_second()))?;
        self.print(by_id("scan-100"));
        self.measure("scan-full", &opened, false, |db, warm| Ok(ops::full_scans(db, warm)?.0.per_second()))?;
        self.print(by_id("scan-full"));
        Ok(())
    }

    fn buffered_stage(&mut self) -> Result<()> {
        if !self.any_wanted("buffered") {
            return Ok(());
        }
        let opened = self.open_all(Durability::Buffered, false)?;
        let max_operations = self.plan.effort.keys;
        for (id, threads) in [("buffered-put-1", 1), ("buffered-put-2", 2)] {
            self.measure(id, &opened, true, |db, warm| {
                // Enough puts that logs rotate and memtables fill, rather than a sprint into empty buffers.
                let limit = Limit { budget: warm.budget * 5, max_operations, chunk: 64 };
                Ok(ops::puts(db, warm, threads, limit)?.per_second())
            })?;
            self.print(by_id(id));
        }
        self.check_count(&opened)
    }

    fn durable_stage(&mut self) -> Result<()> {
        if !self.any_wanted("durable") {
            return Ok(());
        }
        let opened = self.open_all(Durability::Synced, false)?;
        let raw = RawFile::create(&self.plan.dir)?;
        write_back();
        let _spinners = Spinners::start();
        let limit = |warm: Warm| Limit { budget: warm.budget, max_operations: u64::MAX, chunk: 1 };
        for (id, threads) in [("durable-put-1", 1), ("durable-put-16", 16), ("durable-put-64", 64)] {
            if !self.wanted(id) {
                continue;
            }
            let workload = by_id(id);
            self.recorder.with_spinners(workload);
            for (repeat, i) in self.visits() {
                let first_of_repeat = i == repeat % self.plan.contestants.len();
                if threads == 1 && first_of_repeat {
                    for kind in raw.kinds() {
                        let rate = raw.measure(kind, limit(self.warm(repeat)))?.per_second();
                        self.recorder.record_baseline(workload, kind, rate);
                    }
                }
                let (name, db) = &opened[i];
                let warm = self.warm(repeat);
                let done = ops::puts(db.as_ref(), warm, threads, limit(warm))
                    .with_context(|| format!("{} of {name}", workload.title))?;
                self.recorder.record(workload, name, done.per_second());
                let start = Instant::now();
                db.settle()?;
                self.recorder.record_settling(workload, name, start.elapsed().as_secs_f64());
                write_back();
            }
            self.print(workload);
        }
        self.recorder.with_spinners(by_id("durable-batch"));
        self.measure("durable-batch", &opened, true, |db, warm| Ok(ops::batches(db, warm)?.per_second()))?;
        self.print(by_id("durable-batch"));
        self.check_count(&opened)
    }

    fn transaction_stage(&mut self, durability: Durability) -> Result<()> {
        let synced = durability == Durability::Synced;
        let ids = if synced {
            ["tx-durable-1", "tx-durable-4", "tx-durable-16"]
        } else {
            ["tx-buffered-1", "tx-buffered-4", "tx-buffered-16"]
        };
        if !ids.iter().any(|id| self.wanted(id)) {
            return Ok(());
        }
        let opened = self.open_all(durability, true)?;
        let _spinners = synced.then(Spinners::start);
        for (id, threads) in ids.into_iter().zip([1, 4, 16]) {
            if synced {
                self.recorder.with_spinners(by_id(id));
            }
            let chunk = if synced { 1 } else { 16 };
            self.measure(id, &opened, true, |db, warm| {
                Ok(ops::transfers(db, warm, threads, chunk)?.per_second())
            })?;
            self.print(by_id(id));
        }
        self.check_count(&opened)
    }

    fn reopen_stage(&mut self) -> Result<()> {
        if !self.wanted("reopen") {
            return Ok(());
        }
        let workload = by_id("reopen");
        for (_, i) in self.visits() {
            let contestant = self.plan.contestants[i];
            let bytes = if self.plan.effort.quick { lifecycle::WAL_BYTES / 8 } else { lifecycle::WAL_BYTES };
            let milliseconds = lifecycle::reopen(
                contestant,
                &self.warm_dir(contestant.name()),
                self.plan.effort.keys,
                self.cache_bytes(),
                bytes,
            )
            .with_context(|| format!("reopening {}", contestant.name()))?;
            self.recorder.record(workload, contestant.name(), milliseconds);
            write_back();
        }
        self.print(workload);
        Ok(())
    }

    fn heavy_stage(&mut self) -> Result<()> {
        let dir = self.plan.dir.join("heavy");
        for contestant in &self.plan.heavy {
            if self.wanted("disk-growth") {
                let growth = lifecycle::growth(*contestant, &dir, self.plan.effort.keys, self.cache_bytes())
                    .with_context(|| format!("overwriting {}", contestant.name()))?;
                self.recorder.record(by_id("disk-growth"), contestant.name(), growth);
                fs::remove_dir_all(&dir)?;
                write_back();
            }
            if self.any_wanted("memory") {
                let gets = self.plan.effort.memory_keys / 10;
                let memory =
                    child::memory(*contestant, &dir, self.plan.effort.memory_keys, MEMORY_CACHE << 20, gets)?;
                let name = contestant.name();
                self.recorder.record(by_id("memory-load"), name, memory.after_load);
                self.recorder.record(by_id("memory-gets"), name, memory.after_gets);
                self.recorder.record(by_id("memory-peak"), name, memory.peak);
                println!(
                    "\n{name}: of {:.0} MiB resident after the gets, {:.0} are pages of mapped files",
                    memory.after_gets, memory.file_pages
                );
                fs::remove_dir_all(&dir)?;
                write_back();
            }
        }
        for id in ["disk-growth", "memory-load", "memory-gets", "memory-peak"] {
            self.print(by_id(id));
        }
        Ok(())
    }

    /// Overwrites must not have changed the number of entries.
    fn check_count(&self, opened: &Opened) -> Result<()> {
        let once = Warm { budget: Duration::ZERO, ..self.warm(0) };
        for (name, db) in opened {
            ops::full_scans(db.as_ref(), once).with_context(|| format!("checking {name}"))?;
        }
        Ok(())
    }
}

/// Lets the system write back what contestants left in its caches.
fn write_back() {
    rustix::fs::sync();
}

/// An empty directory in `parent` that goes away with the value.
pub fn scratch(parent: &Path) -> Result<tempfile::TempDir> {
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
    Ok(tempfile::Builder::new().prefix("dogsled-compare-").tempdir_in(parent)?)
}
