//! `redis`: redis-benchmark, unmodified, on one node, on a cluster of three, and on Redis.
//!
//! Redis runs with `appendfsync always`: both answer a write only when it is on the disk, a cluster when it is
//! on two of three. All run all the time, only one is asked at a time, and they take turns within each
//! repeat. redis-benchmark has the same two cores as what it measures, and takes most of one for short
//! commands: that is the same for all, and brings their numbers nearer to each other.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use dogsled::cluster::default_partitions;

use super::cores::Cores;
use super::{etcd, nodes, redis};
use crate::machine::Machine;
use crate::rows::{Row, Table};

/// What to run.
#[derive(Debug, Clone)]
pub struct RedisClientsPlan {
    /// Repeats of each measurement.
    pub repeats: usize,
    /// Seconds of each measurement, about.
    pub seconds: f64,
    /// Beginnings of names of workloads (get, set, incr, three); empty for all.
    pub only: Vec<String>,
    /// Where the servers' directories go.
    pub dir: PathBuf,
    /// Where `redis.json` goes.
    pub out: PathBuf,
    /// Whether rows of the file that this run has not measured stay.
    pub keep: bool,
}

struct Work {
    id: &'static str,
    /// As redis-benchmark calls it.
    test: &'static str,
    pipeline: u64,
    nodes: usize,
    at_least: f64,
}

const WORKS: [Work; 8] = [
    Work { id: "set-1", test: "set", pipeline: 1, nodes: 1, at_least: 1.5 },
    Work { id: "set-16", test: "set", pipeline: 16, nodes: 1, at_least: 1.5 },
    Work { id: "get-1", test: "get", pipeline: 1, nodes: 1, at_least: 0.9 },
    Work { id: "get-16", test: "get", pipeline: 16, nodes: 1, at_least: 0.9 },
    Work { id: "incr-1", test: "incr", pipeline: 1, nodes: 1, at_least: 1.5 },
    Work { id: "incr-16", test: "incr", pipeline: 16, nodes: 1, at_least: 1.5 },
    Work { id: "three-set-1", test: "set", pipeline: 1, nodes: 3, at_least: 0.8 },
    Work { id: "three-set-16", test: "set", pipeline: 16, nodes: 3, at_least: 0.8 },
];

/// Different keys.
const KEYS: u32 = 100_000;
/// Bytes of a value.
const VALUE: u32 = 256;
/// Connections.
const CLIENTS: u32 = 50;

/// Runs `plan`, printing as it goes.
///
/// # Errors
/// A server that does not come up; no redis-server or redis-benchmark.
pub fn redis_clients(plan: &RedisClientsPlan) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(plan))
}

async fn measure(plan: &RedisClientsPlan) -> Result<()> {
    let scratch = crate::compare::scratch(&plan.dir)?;
    let machine = Machine::describe(scratch.path());
    println!("{}", machine.in_words());
    let cores = Cores::examine(scratch.path())?;
    let conditions = vec![
        format!(
            "redis-benchmark with {CLIENTS} connections, {KEYS} keys and values of {VALUE} bytes, {} interleaved repeats of \
             about {} s, beside Redis with appendfsync always; nodes of {} partitions on loopback.",
            plan.repeats,
            plan.seconds,
            default_partitions()
        ),
        cores.in_words(),
    ];
    println!("{}\n", conditions.join("\n"));
    let wanted =
        |id: &str| plan.only.is_empty() || plan.only.iter().any(|only| id.starts_with(only.as_str()));
    let _awake = cores.keep_awake();
    let beside = redis::Server::start(&scratch.path().join("redis")).await?;
    let mut rows = Vec::new();
    for count in [1, 3] {
        let works: Vec<&Work> = WORKS.iter().filter(|work| work.nodes == count && wanted(work.id)).collect();
        if works.is_empty() {
            continue;
        }
        let port = etcd::free_port()?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let dir = scratch.path().join(format!("nodes-{count}"));
        let cluster = nodes::Cluster::start_with(&dir, default_partitions(), count, Some(address))?;
        drop(cluster.client().await?);
        // Every key is there, so that each GET finds one.
        for port in [port, beside.port()] {
            benchmark(port, "set", 16, u64::from(KEYS) * 3)?;
        }
        for work in works {
            rows.push(row(plan, work, port, beside.port())?);
            println!("{}", rows[rows.len() - 1].in_words());
        }
    }
    let path = plan.out.join("redis.json");
    Table { machine, conditions, rows }.write(&path, plan.keep)?;
    println!("wrote {}", path.display());
    Ok(())
}

fn row(plan: &RedisClientsPlan, work: &Work, dogsled: u16, redis: u16) -> Result<Row> {
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    // As many as take about the time that was asked for.
    let count = |port: u16| -> Result<u64> {
        let rate = benchmark(port, work.test, work.pipeline, 2_000 * work.pipeline)?;
        Ok((rate * plan.seconds) as u64)
    };
    let counts = (count(dogsled)?, count(redis)?);
    for repeat in 0..plan.repeats {
        let mut dogsled = || -> Result<()> {
            ours.push(benchmark(dogsled, work.test, work.pipeline, counts.0)?);
            Ok(())
        };
        let mut redis = || -> Result<()> {
            theirs.push(benchmark(redis, work.test, work.pipeline, counts.1)?);
            Ok(())
        };
        // Each time the other one is the first.
        if repeat % 2 == 0 {
            dogsled()?;
            redis()?;
        } else {
            redis()?;
            dogsled()?;
        }
    }
    let (name, pipeline) = (work.test.to_uppercase(), work.pipeline);
    let title = match work.nodes {
        1 => format!("{name}, -P {pipeline}"),
        _ => format!("{name}, -P {pipeline}, on a quorum of three nodes"),
    };
    let row = Row::new(work.id, &title, "per second").with("dogsled", ours).with("Redis", theirs);
    Ok(row.at_least(work.at_least, "Redis"))
}

/// Commands per second.
fn benchmark(port: u16, test: &str, pipeline: u64, commands: u64) -> Result<f64> {
    let output = Command::new("redis-benchmark")
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-c", &CLIENTS.to_string(), "-t", test])
        .args(["-P", &pipeline.to_string(), "-n", &commands.to_string(), "-r", &KEYS.to_string()])
        .args(["-d", &VALUE.to_string(), "--csv"])
        .output()
        .context("running redis-benchmark (Debian: apt-get install redis-tools)")?;
    let text = String::from_utf8_lossy(&output.stdout);
    // A headline, then: "SET","12345.67",…
    let rate = text.lines().find(|line| line.starts_with(&format!("\"{}\"", test.to_uppercase())));
    let rate = rate.and_then(|line| line.split('"').nth(3)).and_then(|rate| rate.parse().ok());
    match rate {
        Some(rate) if output.status.success() => Ok(rate),
        _ => bail!("redis-benchmark says: {text}{}", String::from_utf8_lossy(&output.stderr)),
    }
}
