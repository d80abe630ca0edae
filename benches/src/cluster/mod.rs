//! Three nodes of dogsled beside three of etcd, on loopback, in one run.
//!
//! Both clusters run all the time, each node a process of its own; only one is asked for something at a
//! time, and the two take turns within each repeat, so that noise meets both alike. Both keep their data on
//! the same file system and sync every acknowledged write on a quorum. The clients live in this process and
//! have the same two cores as the six nodes: what is measured is the cost of a replicated write with all
//! that belongs to it. dogsled speaks QUIC with mutual TLS, as it always does; etcd plain HTTP/2.
//!
//! Without an `etcd` on the PATH (Debian's `etcd-server`) dogsled is measured alone, and the table says so.

mod cores;
mod disturb;
mod etcd;
mod load;
mod nodes;
mod operations;
mod partitions;
mod processes;
mod redis;
mod redis_clients;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use dogsled::cluster::default_partitions;

use crate::machine::Machine;
use crate::rows::{Row, Table};

use cores::Cores;
use load::{Measured, Store, Work};
pub use nodes::{NodeTask, run_node};
pub use operations::{OperationsPlan, operations};
pub use partitions::{PartitionsPlan, partitions};
pub use redis_clients::{RedisClientsPlan, redis_clients};

/// What to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Repeats of each measurement.
    pub repeats: usize,
    /// Seconds of each measurement.
    pub seconds: f64,
    /// How often the leader is killed.
    pub kills: usize,
    /// Beginnings of names of workloads; empty for all.
    pub only: Vec<String>,
    /// Where the nodes' directories go.
    pub dir: PathBuf,
    /// Where `cluster.json` goes.
    pub out: PathBuf,
    /// Rows that this run does not measure stay there.
    pub keep: bool,
}

/// What a new node is sent.
const SNAPSHOT_MIB: u64 = 1024;

struct Case {
    id: &'static str,
    title: &'static str,
    work: Work,
    clients: usize,
    /// Least ratio to etcd.
    least: Option<f64>,
}

const CASES: [Case; 5] = [
    Case { id: "put-256", title: "puts, 256 clients", work: Work::Put, clients: 256, least: Some(8.0) },
    Case { id: "put-64", title: "puts, 64 clients", work: Work::Put, clients: 64, least: Some(5.0) },
    Case { id: "put-1", title: "put, 1 client", work: Work::Put, clients: 1, least: None },
    Case {
        id: "get-256",
        title: "linearizable gets, 256 clients",
        work: Work::Get,
        clients: 256,
        least: Some(5.0),
    },
    Case {
        id: "batch-100",
        title: "batches of 100 puts, 16 clients, keys",
        work: Work::Batch,
        clients: 16,
        least: None,
    },
];

/// Runs `plan`, printing as it goes.
///
/// # Errors
/// A cluster that does not come up, a call that fails.
pub fn run(plan: &Plan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(plan))
}

async fn measure(plan: &Plan) -> Result<()> {
    let scratch = crate::compare::scratch(&plan.dir)?;
    let machine = Machine::describe(scratch.path());
    println!("{}", machine.in_words());
    let cores = Cores::examine(scratch.path())?;
    let (fdatasync_us, keep_awake) = (cores.fdatasync_us, || cores.keep_awake());
    println!(
        "three nodes each on loopback, values of 256 bytes, every acknowledged write synced on a quorum\n{}\n",
        cores.in_words()
    );
    let mut dogsled = nodes::Cluster::start(&scratch.path().join("dogsled"), default_partitions()).await?;
    let etcd = match etcd::Cluster::start(&scratch.path().join("etcd")).await {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            println!("without etcd: {error:#}");
            None
        }
    };
    let mut rows = Vec::new();
    let mut add = |row: Row| {
        println!("{}", row.in_words());
        rows.push(row);
    };
    // Of what etcd has no part in.
    let alone = |id: &str, title: &str, unit: &str, value: f64| {
        Row::new(id, title, unit).with("dogsled", vec![value])
    };
    let wanted =
        |id: &str| plan.only.is_empty() || plan.only.iter().any(|only| id.starts_with(only.as_str()));
    if wanted("idle") {
        let (percent, mebibytes) = disturb::idle(&dogsled).await?;
        add(alone("idle-cpu", "idle, new: a core, highest of the nodes", "%", percent).no_more(2.0));
        let title = "idle, new: resident, highest of the nodes";
        add(alone("idle-memory", title, "MiB", mebibytes).no_more(80.0));
    }
    let mut stores = vec![Store::Dogsled(dogsled.client().await?.tree("bench"))];
    let mut processes = vec![dogsled.processes()];
    if let Some(etcd) = &etcd {
        stores.push(Store::Etcd(etcd.client().await?));
        processes.push(etcd.processes());
    }
    for case in CASES.iter().filter(|case| wanted(case.id)) {
        let _awake = keep_awake();
        let mut all: Vec<Vec<Measured>> = vec![Vec::new(); stores.len()];
        for store in &stores {
            load::run(store, case.work, case.clients, Duration::from_millis(500)).await?; // warms up
        }
        for repeat in 0..plan.repeats {
            for turn in 0..stores.len() {
                let at = (turn + repeat) % stores.len();
                let before = processes::processor_us(&processes[at])?;
                let measured =
                    load::run(&stores[at], case.work, case.clients, Duration::from_secs_f64(plan.seconds))
                        .await;
                let mut measured =
                    measured.with_context(|| format!("{} of {}", case.title, stores[at].name()))?;
                let took = processes::processor_us(&processes[at])? - before;
                measured.nodes_us = took / (measured.rate * plan.seconds);
                all[at].push(measured);
            }
        }
        let row = |id: &str, title: &str, unit: &str, number: fn(&Measured) -> f64| {
            let series = ["dogsled", "etcd"].into_iter().zip(&all);
            series.fold(Row::new(id, title, unit), |row, (name, all)| {
                row.with(name, all.iter().map(number).collect())
            })
        };
        let Case { id, title, .. } = *case;
        let rate = row(id, title, "per second", |one| one.rate);
        add(match (case.least, case.work) {
            (Some(least), _) => rate.at_least(least, "etcd"),
            (None, Work::Batch) => rate.no_less(150_000.0),
            _ => rate,
        });
        let latency = row(&format!("{id}-p50"), &format!("{title}, p50"), "us", |one| one.p50_us);
        if id == "put-1" {
            add(latency.at_most(0.6, "etcd"));
            let own = all[0].iter().map(|one| one.p50_us).collect();
            let row = Row::new("put-1-sync", &format!("{title}, p50 beside a bare fdatasync"), "us");
            add(row.with("dogsled", own).with("fdatasync", vec![fdatasync_us]).at_most(2.5, "fdatasync"));
        } else {
            add(latency);
        }
        let title = format!("{title}, processor time of the nodes");
        add(row(&format!("{id}-cpu"), &title, "us", |one| one.nodes_us));
    }
    drop(stores);
    drop(etcd);
    if wanted("idle") {
        // No target: caches of 256 MiB a node keep what the load has brought.
        let (percent, mebibytes) = disturb::idle(&dogsled).await?;
        add(alone("idle-after-cpu", "idle after the load: a core, highest of the nodes", "%", percent));
        add(alone("idle-after-memory", "idle after the load: resident, highest", "MiB", mebibytes));
    }
    if wanted("failover") {
        let _awake = keep_awake();
        let stops = disturb::failovers(&mut dogsled, plan.kills).await?;
        let worst = stops.iter().copied().fold(0.0, f64::max);
        let (id, title) = ("failover", "kill -9 of a leader: longest wait of any of 16 clients");
        let row = alone(id, &format!("{title}, longest of {}", stops.len()), "ms", worst);
        add(row.with("median", stops).no_more(1000.0));
    }
    if wanted("rolling") {
        let _awake = keep_awake();
        let (stall, failed) = disturb::rolling_restart(&mut dogsled).await?;
        let title = "rolling restart under load: longest wait of any of 16 clients";
        add(alone("rolling", title, "ms", stall).no_more(300.0));
        add(alone("rolling-failed", "failed calls meanwhile", "calls", failed as f64).no_more(0.0));
    }
    if wanted("snapshot") {
        let _awake = keep_awake();
        let moved = disturb::snapshot(&dogsled, SNAPSHOT_MIB).await?;
        let rate = SNAPSHOT_MIB as f64 / moved.took.as_secs_f64();
        let title = "1 GiB to an empty node, under load";
        add(alone("snapshot", title, "MiB/s", rate).no_less(100.0));
        let title = "p99 of 16 clients meanwhile, over before";
        add(alone("snapshot-p99", title, "x", moved.during.p99_us / moved.before.p99_us).no_more(2.0));
    }
    let conditions = vec![
        format!(
            "Three nodes each on loopback, of {} partitions, they and the clients on the same cores; values of 256 bytes, \
             every acknowledged write synced on a quorum.",
            default_partitions()
        ),
        format!("{} interleaved repeats of {} s.", plan.repeats, plan.seconds),
        cores.in_words(),
    ];
    let path = plan.out.join("cluster.json");
    Table { machine, conditions, rows }.write(&path, plan.keep)?;
    println!("\nwrote {}", path.display());
    Ok(())
}
