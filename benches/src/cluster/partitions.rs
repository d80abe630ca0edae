//! `partitions`: what clients notice while a node joins, and what partitions cost.
//!
//! Each repeat has new clusters, one at a time, so that all are of the same age and nothing else runs
//! meanwhile: first one to which a node comes that must be filled, then one with each number of partitions.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use dogsled::cluster::default_partitions;

use super::cores::Cores;
use super::load::{self, Store, Work};
use super::{disturb, nodes, processes};
use crate::machine::Machine;
use crate::rows::{Row, Table};

/// What to run.
#[derive(Debug, Clone)]
pub struct PartitionsPlan {
    /// Repeats of each measurement.
    pub repeats: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// MiB that are there when a node joins.
    pub mebibytes: u64,
    /// Beginnings of names of workloads (join, partitions); empty for all.
    pub only: Vec<String>,
    /// Where the nodes' directories go.
    pub dir: PathBuf,
    /// Where `partitions.json` goes.
    pub out: PathBuf,
    /// Whether rows of the file that this run has not measured stay.
    pub keep: bool,
}

const COUNTS: [u32; 5] = [1, 4, 16, 64, 256];
const CLIENTS: [usize; 2] = [64, 256];

/// Runs `plan`, printing as it goes.
///
/// # Errors
/// A cluster that does not come up, a call that fails.
pub fn partitions(plan: &PartitionsPlan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(plan))
}

async fn measure(plan: &PartitionsPlan) -> Result<()> {
    let scratch = crate::compare::scratch(&plan.dir)?;
    let machine = Machine::describe(scratch.path());
    println!("{}", machine.in_words());
    let cores = Cores::examine(scratch.path())?;
    let conditions = vec![
        format!(
            "Three nodes on loopback, new ones for each of {} interleaved repeats of {} s; values of 256 bytes, synced \
             on a quorum.",
            plan.repeats, plan.seconds
        ),
        cores.in_words(),
    ];
    println!("{}\n", conditions.join("\n"));
    let wanted =
        |id: &str| plan.only.is_empty() || plan.only.iter().any(|only| id.starts_with(only.as_str()));
    let (mut joins, mut counts) = (Vec::new(), Vec::new());
    let _awake = cores.keep_awake();
    for repeat in 0..plan.repeats {
        let dir = scratch.path().join(format!("repeat-{repeat}"));
        if wanted("join") {
            let cluster = nodes::Cluster::start(&dir.join("join"), default_partitions()).await?;
            joins.push(disturb::snapshot(&cluster, plan.mebibytes).await?);
        }
        if wanted("partitions") {
            // Each time another one is the first.
            for turn in 0..COUNTS.len() {
                let at = (turn + repeat) % COUNTS.len();
                for (clients, measured) in CLIENTS.iter().zip(with(plan, &dir, COUNTS[at]).await?) {
                    counts.push((*clients, COUNTS[at], measured));
                }
            }
        }
        std::fs::remove_dir_all(&dir)?;
    }
    let mut rows = Vec::new();
    if wanted("join") {
        let title = format!("16 clients put while a node joins and gets its share of {} MiB", plan.mebibytes);
        let of = |number: &dyn Fn(&disturb::Moved) -> f64| joins.iter().map(number).collect::<Vec<_>>();
        let p99 = Row::new("join-p99", &format!("{title}, p99"), "us")
            .with("dogsled", of(&|moved| moved.during.p99_us))
            .with("before", of(&|moved| moved.before.p99_us));
        rows.push(p99.at_most(2.0, "before"));
        let rate = Row::new("join-rate", &title, "puts per second")
            .with("dogsled", of(&|moved| moved.during.rate))
            .with("before", of(&|moved| moved.before.rate));
        rows.push(rate);
        let seconds = Row::new("join-seconds", "until the new node has what it is to have", "s");
        rows.push(seconds.with("dogsled", of(&|moved| moved.took.as_secs_f64())));
    }
    if wanted("partitions") {
        for clients in CLIENTS {
            let of = |partitions: u32, number: &dyn Fn(&load::Measured) -> f64| {
                let all = counts.iter().filter(|(with, count, _)| (*with, *count) == (clients, partitions));
                all.map(|(_, _, measured)| number(measured)).collect::<Vec<_>>()
            };
            let row = |id: &str, title: &str, unit: &str, number: &dyn Fn(&load::Measured) -> f64| {
                // What the target speaks of comes first.
                [16, 1, 4, 64, 256].into_iter().fold(Row::new(id, title, unit), |row, count| {
                    let name = if count == 16 { "16 partitions".to_owned() } else { count.to_string() };
                    row.with(&name, of(count, number))
                })
            };
            let title = format!("puts, {clients} clients, by partitions");
            let rate = row(&format!("partitions-{clients}"), &title, "per second", &|one| one.rate);
            rows.push(rate.at_least(0.95, "1"));
            let title = format!("puts, {clients} clients, by partitions, processor time of the nodes");
            rows.push(row(&format!("partitions-{clients}-cpu"), &title, "us", &|one| one.nodes_us));
            let title = format!("puts, {clients} clients, by partitions, p99");
            rows.push(row(&format!("partitions-{clients}-p99"), &title, "us", &|one| one.p99_us));
        }
    }
    for row in &rows {
        println!("{}", row.in_words());
    }
    let path = plan.out.join("partitions.json");
    Table { machine, conditions, rows }.write(&path, plan.keep)?;
    println!("wrote {}", path.display());
    Ok(())
}

/// A new cluster of so many partitions, with each number of clients.
async fn with(plan: &PartitionsPlan, dir: &std::path::Path, partitions: u32) -> Result<Vec<load::Measured>> {
    let cluster = nodes::Cluster::start(&dir.join(format!("p{partitions}")), partitions).await?;
    let store = Store::Dogsled(cluster.client().await?.tree("bench"));
    // Sessions are opened, leaders find their places, the first segments of the log are written.
    load::run(&store, Work::Put, CLIENTS[1], Duration::from_secs(2)).await?;
    let mut all = Vec::new();
    for clients in CLIENTS {
        let before = processes::processor_us(&cluster.processes())?;
        let time = Duration::from_secs_f64(plan.seconds);
        let mut measured = load::run(&store, Work::Put, clients, time).await?;
        measured.nodes_us = (processes::processor_us(&cluster.processes())? - before) / measured.done as f64;
        println!(
            "{partitions} partitions, {clients} clients: {:.0} puts/s, {:.1} us of the nodes' processors each",
            measured.rate, measured.nodes_us
        );
        all.push(measured);
    }
    Ok(all)
}
