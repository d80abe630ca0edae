//! `operations`: counters, locks, transactions and watches, beside what has them too.
//!
//! Three nodes of dogsled, three of etcd and one of Redis run all the time, each a process of its own on
//! loopback; one at a time is asked for something, by clients in this process, and they take turns within each
//! repeat. dogsled and etcd acknowledge what is synced on a quorum; Redis runs with `appendfsync always`, and
//! what it acknowledges is synced on one disk.
//!
//! Every workload checks what it did: sums, who held a lock, what was told to a watcher and in which order.

mod counter;
mod lock;
mod transaction;
mod watch;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use dogsled::cluster::default_partitions;

use super::cores::Cores;
use super::load::{self, Call, Measured};
use super::{etcd, nodes, processes, redis};
use crate::machine::Machine;
use crate::rows::{Row, Table};

/// What to run.
#[derive(Debug, Clone)]
pub struct OperationsPlan {
    /// Repeats of each measurement.
    pub repeats: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// Watchers in all.
    pub watchers: usize,
    /// Beginnings of names of workloads; empty for all.
    pub only: Vec<String>,
    /// Where the nodes' directories go.
    pub dir: PathBuf,
    /// Where `operations.json` goes.
    pub out: PathBuf,
    /// Whether rows of the file that this run has not measured stay.
    pub keep: bool,
}

/// What runs.
struct Systems {
    cores: Cores,
    dogsled: nodes::Cluster,
    etcd: Option<etcd::Cluster>,
    redis: Option<redis::Server>,
}

impl Systems {
    async fn start(dir: &Path, cores: Cores, notes: &mut Vec<String>) -> Result<Systems> {
        let dogsled = nodes::Cluster::start(&dir.join("dogsled"), default_partitions()).await?;
        let mut or_not = |name: &str, error: anyhow::Error| {
            println!("without {name}: {error:#}");
            notes.push(format!("{name} was not installed."));
        };
        let etcd = etcd::Cluster::start(&dir.join("etcd")).await.map_err(|error| or_not("etcd", error)).ok();
        let redis =
            redis::Server::start(&dir.join("redis")).await.map_err(|error| or_not("Redis", error)).ok();
        Ok(Systems { cores, dogsled, etcd, redis })
    }
}

/// Something to be measured beside others.
struct Contestant {
    name: &'static str,
    /// Of its nodes.
    processes: Vec<u32>,
    /// What each of its clients calls.
    clients: Box<dyn Fn(usize) -> Call>,
}

impl Contestant {
    fn new(name: &'static str, processes: Vec<u32>, clients: impl Fn(usize) -> Call + 'static) -> Contestant {
        Contestant { name, processes, clients: Box::new(clients) }
    }

    async fn run(&self, clients: usize, time: Duration) -> Result<Measured> {
        let callers: Vec<Call> = (0..clients).map(|client| (self.clients)(client)).collect();
        let before = processes::processor_us(&self.processes)?;
        let mut measured = load::for_a_time(callers, time).await.with_context(|| self.name.to_owned())?;
        let took = processes::processor_us(&self.processes)? - before;
        measured.nodes_us = took / measured.done as f64;
        Ok(measured)
    }
}

/// What contestants came to, each in each repeat.
struct Results(Vec<(&'static str, Vec<Measured>)>);

impl Results {
    /// A row of one of the numbers.
    fn row(&self, id: &str, title: &str, unit: &str, number: impl Fn(&Measured) -> f64) -> Row {
        let row = Row::new(id, title, unit);
        self.0.iter().fold(row, |row, (name, all)| row.with(name, all.iter().map(&number).collect()))
    }

    /// As [`Results::row`], without some.
    fn row_of(
        &self,
        names: &[&str],
        (id, title, unit): (&str, &str, &str),
        number: impl Fn(&Measured) -> f64,
    ) -> Row {
        let row = Row::new(id, title, unit);
        names.iter().fold(row, |row, wanted| match self.0.iter().find(|(name, _)| name == wanted) {
            Some((name, all)) => row.with(name, all.iter().map(&number).collect()),
            None => row,
        })
    }
}

/// Lets contestants take turns.
async fn take_turns(
    plan: &OperationsPlan,
    cores: &Cores,
    contestants: &[Contestant],
    clients: usize,
) -> Result<Results> {
    let _awake = cores.keep_awake();
    let time = Duration::from_secs_f64(plan.seconds);
    let mut all: Vec<_> = contestants.iter().map(|one| (one.name, Vec::new())).collect();
    for contestant in contestants {
        contestant.run(clients, time.mul_f64(0.25)).await?; // warms up
    }
    for repeat in 0..plan.repeats {
        for turn in 0..contestants.len() {
            let at = (turn + repeat) % contestants.len();
            all[at].1.push(contestants[at].run(clients, time).await?);
        }
    }
    Ok(Results(all))
}

/// Runs `plan`, printing as it goes.
///
/// # Errors
/// A system that does not come up, a call that fails, a wrong result.
pub fn operations(plan: &OperationsPlan) -> Result<()> {
    use tokio::runtime::Builder;
    let single = Builder::new_current_thread().enable_all().build()?;
    let scratch = crate::compare::scratch(&plan.dir)?;
    let machine = Machine::describe(scratch.path());
    println!("{}", machine.in_words());
    let cores = Cores::examine(scratch.path())?;
    let mut conditions = vec![
        format!(
            "Three nodes each on loopback, of {} partitions, {} interleaved repeats of {} s; what is acknowledged is synced \
             on a quorum (Redis: one server, appendfsync always).",
            default_partitions(),
            plan.repeats,
            plan.seconds
        ),
        cores.in_words(),
    ];
    println!("{}\n", conditions.join("\n"));
    let systems = single.block_on(Systems::start(scratch.path(), cores, &mut conditions))?;
    let wanted =
        |id: &str| plan.only.is_empty() || plan.only.iter().any(|only| id.starts_with(only.as_str()));
    let mut rows = Vec::new();
    let mut add = |more: Vec<Row>| {
        for row in more {
            println!("{}", row.in_words());
            rows.push(row);
        }
    };
    if wanted("counter") {
        add(single.block_on(counter::measure(plan, &systems))?);
    }
    if wanted("lock") {
        add(single.block_on(lock::uncontended(plan, &systems))?);
    }
    if wanted("handover") {
        add(single.block_on(lock::handover(plan, &systems))?);
    }
    if wanted("transaction") {
        add(single.block_on(transaction::measure(plan, &systems))?);
    }
    if wanted("watch") {
        let several = Builder::new_multi_thread().enable_all().build()?;
        add(several.block_on(watch::measure(plan, &systems))?);
    }
    drop(systems);
    let path = plan.out.join("operations.json");
    Table { machine, conditions, rows }.write(&path, plan.keep)?;
    println!("wrote {}", path.display());
    Ok(())
}
