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

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::machine::Machine;
use crate::stats::{Summary, human};

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
}

/// One row of the table.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    title: String,
    unit: &'static str,
    dogsled: Vec<f64>,
    etcd: Vec<f64>,
    /// dogsled's median over etcd's.
    ratio: Option<f64>,
    target: &'static str,
    met: Option<bool>,
}

#[derive(Debug, Serialize)]
struct Report {
    machine: Machine,
    repeats: usize,
    seconds: f64,
    /// Microseconds of a bare 4 KiB overwrite and `fdatasync`, median.
    fdatasync_us: f64,
    rows: Vec<Row>,
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
    let mut dogsled = nodes::Cluster::start(&scratch.path().join("dogsled"), nodes::PARTITIONS).await?;
    let etcd = match etcd::Cluster::start(&scratch.path().join("etcd")).await {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            println!("without etcd: {error:#}");
            None
        }
    };
    let mut rows = Vec::new();
    let wanted =
        |id: &str| plan.only.is_empty() || plan.only.iter().any(|only| id.starts_with(only.as_str()));
    if wanted("idle") {
        let (percent, mebibytes) = disturb::idle(&dogsled).await?;
        let mut row =
            Row::alone("idle-cpu", "idle, new: a core, highest of the nodes", "%", percent, "< 2 %");
        row.met = Some(percent < 2.0);
        row.print();
        rows.push(row);
        let title = "idle, new: resident, highest of the nodes";
        let mut row = Row::alone("idle-memory", title, "MiB", mebibytes, "< 80 MiB");
        row.met = Some(mebibytes < 80.0);
        row.print();
        rows.push(row);
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
        let rates =
            |at: usize| all.get(at).map_or(Vec::new(), |all| all.iter().map(|one| one.rate).collect());
        let target = match case.id {
            "put-256" => "≥ 8 × etcd",
            "put-64" | "get-256" => "≥ 5 × etcd",
            "batch-100" => "≥ 150,000 keys/s",
            _ => "",
        };
        let mut row = Row::new(case.id, case.title, "per second", rates(0), rates(1), target);
        row.met = match (case.least, row.ratio) {
            (Some(least), Some(ratio)) => Some(ratio >= least),
            _ if case.work == Work::Batch => Some(median(&row.dogsled) >= 150_000.0),
            _ => None,
        };
        row.print();
        rows.push(row);
        let latencies =
            |at: usize| all.get(at).map_or(Vec::new(), |all| all.iter().map(|one| one.p50_us).collect());
        let mut latency = Row::new(
            &format!("{}-p50", case.id),
            &format!("{}, p50", case.title),
            "us",
            latencies(0),
            latencies(1),
            "",
        );
        if case.id == "put-1" {
            latency.target = "≤ 0.6 × etcd and ≤ 2.5 × fdatasync";
            let own = median(&latency.dogsled);
            latency.met = latency.ratio.map(|ratio| ratio <= 0.6 && own <= 2.5 * fdatasync_us);
            println!("    {:.2} x the bare fdatasync", own / fdatasync_us);
        }
        latency.print();
        rows.push(latency);
        let processor =
            |at: usize| all.get(at).map_or(Vec::new(), |all| all.iter().map(|one| one.nodes_us).collect());
        let title = format!("{}, processor time of the nodes", case.title);
        let row = Row::new(&format!("{}-cpu", case.id), &title, "us", processor(0), processor(1), "");
        row.print();
        rows.push(row);
    }
    drop(stores);
    drop(etcd);
    if wanted("idle") {
        // No target: caches of 256 MiB a node keep what the load has brought.
        let (percent, mebibytes) = disturb::idle(&dogsled).await?;
        for row in [
            Row::alone(
                "idle-after-cpu",
                "idle after the load: a core, highest of the nodes",
                "%",
                percent,
                "",
            ),
            Row::alone("idle-after-memory", "idle after the load: resident, highest", "MiB", mebibytes, ""),
        ] {
            row.print();
            rows.push(row);
        }
    }
    if wanted("failover") {
        let _awake = keep_awake();
        let stops = disturb::failovers(&mut dogsled, plan.kills).await?;
        let worst = stops.iter().copied().fold(0.0, f64::max);
        let mut row = Row::new(
            "failover",
            "writes stop after kill -9 of a leader",
            "ms",
            stops,
            Vec::new(),
            "p99 < 1,000 ms",
        );
        row.met = Some(worst < 1000.0);
        row.print();
        println!("    the longest of {}: {worst:.0} ms", row.dogsled.len());
        rows.push(row);
    }
    if wanted("rolling") {
        let _awake = keep_awake();
        let (stall, failed) = disturb::rolling_restart(&mut dogsled).await?;
        let title = "rolling restart: longest stall";
        let mut row = Row::alone("rolling", title, "ms", stall, "< 300 ms, no failed call");
        row.met = Some(stall < 300.0 && failed == 0);
        row.print();
        println!("    {failed} failed calls");
        rows.push(row);
    }
    if wanted("snapshot") {
        let _awake = keep_awake();
        let moved = disturb::snapshot(&dogsled, SNAPSHOT_MIB).await?;
        let rate = SNAPSHOT_MIB as f64 / moved.took.as_secs_f64();
        let title = "1 GiB to an empty node, under load";
        let mut row = Row::alone("snapshot", title, "MiB/s", rate, "≥ 100 MiB/s");
        row.met = Some(rate >= 100.0);
        row.print();
        rows.push(row);
        let title = "p99 of 16 clients meanwhile, over before";
        let ratio = moved.during.p99_us / moved.before.p99_us;
        let mut row = Row::alone("snapshot-p99", title, "x", ratio, "≤ 2");
        row.met = Some(ratio <= 2.0);
        row.print();
        rows.push(row);
    }
    let report = Report { machine, repeats: plan.repeats, seconds: plan.seconds, fdatasync_us, rows };
    std::fs::create_dir_all(&plan.out)?;
    let path = plan.out.join("cluster.json");
    std::fs::write(&path, serde_json::to_string_pretty(&report)? + "\n")?;
    println!("\nwrote {}", path.display());
    Ok(())
}

fn median(values: &[f64]) -> f64 {
    Summary::of(values).map_or(0.0, |summary| summary.median)
}

impl Row {
    fn new(
        id: &str,
        title: &str,
        unit: &'static str,
        dogsled: Vec<f64>,
        etcd: Vec<f64>,
        target: &'static str,
    ) -> Row {
        let ratio = (!etcd.is_empty()).then(|| median(&dogsled) / median(&etcd));
        Row { id: id.to_owned(), title: title.to_owned(), unit, dogsled, etcd, ratio, target, met: None }
    }

    /// Of what etcd has no part in.
    fn alone(id: &str, title: &str, unit: &'static str, value: f64, target: &'static str) -> Row {
        Row::new(id, title, unit, vec![value], Vec::new(), target)
    }

    fn print(&self) {
        let mut line = format!("{:44} {:>10} {}", self.title, human(median(&self.dogsled)), self.unit);
        if let Some(ratio) = self.ratio {
            let _ = write!(line, "   etcd {:>8}   {ratio:.2} x", human(median(&self.etcd)));
        }
        match self.met {
            Some(true) => {
                let _ = write!(line, "   {}: met", self.target);
            }
            Some(false) => {
                let _ = write!(line, "   {}: MISSED", self.target);
            }
            None => {}
        }
        println!("{line}");
    }
}
