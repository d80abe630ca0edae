//! What a cluster does when it is left alone, and when its nodes go.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::load::{self, Measured, Store, Work};
use super::nodes::{self, Cluster};
use super::processes;
use crate::data::Rng;

/// Clients that write while nodes go and come.
const CLIENTS: u64 = 16;
/// Without a write for so long a cluster is taken to have stopped.
const STOPPED: Duration = Duration::from_secs(30);

/// Percent of a core and MiB resident of the node that takes most of each, over ten seconds of rest.
pub(super) async fn idle(cluster: &Cluster) -> Result<(f64, f64)> {
    // Replicas fold what they have, and then sleep.
    tokio::time::sleep(Duration::from_secs(15)).await;
    let processes = cluster.processes();
    let ticks = || processes.iter().map(|id| processes::ticks(*id)).collect::<Result<Vec<_>>>();
    let before = ticks()?;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let after = ticks()?;
    // A hundred ticks a second, over ten seconds: a tick is a tenth of a percent.
    let most = before.iter().zip(&after).map(|(before, after)| (after - before) as f64 / 10.0);
    let memory = processes.iter().map(|id| processes::resident_mib(*id)).collect::<Result<Vec<_>>>()?;
    Ok((most.fold(0.0, f64::max), memory.into_iter().fold(0.0, f64::max)))
}

/// Clients that count: each adds to its own counter, and knows how far it must have come.
struct Writers {
    stop: Arc<AtomicBool>,
    /// By client.
    acknowledged: Arc<[AtomicU64]>,
    failed: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Result<()>>>,
}

impl Writers {
    async fn start(cluster: &Cluster) -> Result<Writers> {
        let client = cluster.client().await?.with_deadline(STOPPED);
        let writers = Writers {
            stop: Arc::default(),
            acknowledged: (0..CLIENTS).map(|_| AtomicU64::new(0)).collect(),
            failed: Arc::default(),
            tasks: Vec::new(),
        };
        let tasks = (0..CLIENTS).map(|n| {
            let (client, stop) = (client.clone(), Arc::clone(&writers.stop));
            let (acknowledged, failed) = (Arc::clone(&writers.acknowledged), Arc::clone(&writers.failed));
            tokio::spawn(async move {
                let counters: Vec<_> = (0..4).map(|at| client.counter(format!("writer-{n}-{at}"))).collect();
                let mut counts = Vec::new();
                for counter in &counters {
                    counts.push(counter.get().await?);
                }
                let mut rng = Rng::new(n);
                while !stop.load(Relaxed) {
                    let at = rng.below(4) as usize;
                    match counters[at].add(1).await {
                        Ok(now) => {
                            counts[at] += 1;
                            // Counted once each, whatever was repeated on the way.
                            anyhow::ensure!(
                                now == counts[at],
                                "counter {n}/{at}: {now} after {} adds",
                                counts[at]
                            );
                            acknowledged[n as usize].fetch_add(1, Relaxed);
                        }
                        Err(error) => {
                            eprintln!("    a call failed: {error}");
                            failed.fetch_add(1, Relaxed);
                            counts[at] = counters[at].get().await?;
                        }
                    }
                }
                Ok(())
            })
        });
        let tasks = tasks.collect();
        Ok(Writers { tasks, ..writers })
    }

    /// Milliseconds of the longest time that any client was without an acknowledged write, from now until all have
    /// gone on for `calm`. Each does one write after the other, in partitions by chance: so one that
    /// meets the partition that is longest without leader waits for it.
    async fn longest_stop(&self, calm: Duration) -> f64 {
        let begun = Instant::now();
        let count = |at: usize| self.acknowledged[at].load(Relaxed);
        let mut last: Vec<(u64, Instant)> =
            (0..self.acknowledged.len()).map(|at| (count(at), Instant::now())).collect();
        let mut longest = Duration::ZERO;
        let mut since = Instant::now();
        while since.elapsed() < calm && begun.elapsed() < STOPPED {
            tokio::time::sleep(Duration::from_millis(1)).await;
            for (at, (last_count, last_change)) in last.iter_mut().enumerate() {
                let stopped = last_change.elapsed();
                if stopped > Duration::from_millis(50) {
                    since = Instant::now();
                }
                longest = longest.max(stopped);
                if count(at) != *last_count {
                    (*last_count, *last_change) = (count(at), Instant::now());
                }
            }
        }
        longest.as_secs_f64() * 1000.0
    }

    async fn finish(self) -> Result<u64> {
        self.stop.store(true, Relaxed);
        for task in self.tasks {
            task.await.context("a writer panicked")??;
        }
        Ok(self.failed.load(Relaxed))
    }
}

/// The node, by index, that leads most partitions.
async fn busiest(cluster: &Cluster) -> Result<usize> {
    let map = cluster.client().await?.map().await?;
    let mut led = [0; 3];
    for leader in map.leaders.iter().flatten() {
        if let Some(count) = (leader.0 as usize).checked_sub(1).and_then(|at| led.get_mut(at)) {
            *count += 1;
        }
    }
    Ok((0..3).max_by_key(|at| led[*at]).unwrap_or(0))
}

/// Milliseconds for which some client's writes stop after each of `kills` kills of the busiest leader.
///
/// A write to a partition whose leader lives goes on; what is measured is the longest wait of any of the sixteen
/// clients.
pub(super) async fn failovers(cluster: &mut Cluster, kills: usize) -> Result<Vec<f64>> {
    let mut stops = Vec::new();
    for _ in 0..kills {
        let writers = Writers::start(cluster).await?;
        tokio::time::sleep(Duration::from_millis(500)).await;
        let victim = busiest(cluster).await?;
        cluster.kill(victim)?;
        stops.push(writers.longest_stop(Duration::from_secs(1)).await);
        cluster.spawn(victim, false)?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        writers.finish().await?;
    }
    Ok(stops)
}

/// The longest stall in milliseconds, and calls that failed, while each node in turn is shut down
/// and started again under load.
pub(super) async fn rolling_restart(cluster: &mut Cluster) -> Result<(f64, u64)> {
    let writers = Writers::start(cluster).await?;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let mut longest = 0f64;
    for n in 0..3 {
        let stall = async {
            let mut child = cluster.nodes[n].take().context("the node runs")?;
            drop(child.stdin.take());
            let watched = writers.longest_stop(Duration::from_secs(1));
            let ended = tokio::task::spawn_blocking(move || child.wait());
            let (stall, ended) = tokio::join!(watched, ended);
            let status = ended.context("waiting for a node")??;
            anyhow::ensure!(status.success(), "node {} ended with {status}", n + 1);
            Ok(stall)
        };
        longest = longest.max(stall.await?);
        cluster.spawn(n, false)?;
        longest = longest.max(writers.longest_stop(Duration::from_secs(2)).await);
    }
    let failed = writers.finish().await?;
    Ok((longest, failed))
}

/// What moving data to a new node came to.
pub(super) struct Moved {
    /// From the start of the new node's process until it has what it is to have.
    pub(super) took: Duration,
    /// What clients did before.
    pub(super) before: Measured,
    /// What they did meanwhile.
    pub(super) during: Measured,
}

/// A fourth node joins while sixteen clients write; it gets everything as snapshots.
pub(super) async fn snapshot(cluster: &Cluster, mebibytes: u64) -> Result<Moved> {
    const VALUE: usize = 16 << 10;
    let tree = cluster.client().await?.with_deadline(STOPPED).tree("large");
    let values = mebibytes * (1 << 20) / VALUE as u64;
    // What compresses or repeats would be cheap to move.
    let mut rng = Rng::new(7);
    let mut next = 0;
    while next < values {
        let mut puts = tokio::task::JoinSet::new();
        for n in next..values.min(next + 64) {
            let value: Vec<u8> = (0..VALUE / 8).flat_map(|_| rng.next_u64().to_le_bytes()).collect();
            let tree = tree.clone();
            puts.spawn(async move { tree.put(format!("large-{n:08}").into_bytes(), value).await });
        }
        while let Some(put) = puts.join_next().await {
            put.context("a writer panicked")??;
        }
        next += 64;
    }
    // Until the nodes have folded it, and let the log go: a new node cannot be brought up to date by that.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let store = Store::Dogsled(cluster.client().await?.tree("bench"));
    let before = load::run(&store, Work::Put, CLIENTS as usize, Duration::from_secs(5)).await?;
    let stop = Arc::new(AtomicBool::new(false));
    let meanwhile = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move { load::run_until(&store, Work::Put, CLIENTS as usize, stop).await }
    });
    let command = cluster.joining()?;
    let begun = Instant::now();
    let joined = tokio::task::spawn_blocking(move || nodes::start(command, 4)).await;
    let took = begun.elapsed();
    stop.store(true, Relaxed);
    let during = meanwhile.await.context("the clients panicked")??;
    let mut child = joined.context("waiting for the new node")??;
    child.kill()?;
    child.wait()?;
    Ok(Moved { took, before, during })
}
