//! Clients that do one thing in a loop, and how long each call took.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use etcd_client::{Txn, TxnOp};

use crate::data::Rng;

/// Keys that puts and gets choose from.
const KEYS: u64 = 10_000;
/// Puts of a batch.
const BATCH: u64 = 100;
const VALUE: usize = 256;

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    Put,
    Get,
    /// A hundred puts that happen together; counts keys.
    Batch,
}

/// A cluster's client.
#[derive(Clone)]
pub(super) enum Store {
    Dogsled(dogsled::cluster::Tree),
    Etcd(Vec<etcd_client::Client>),
}

/// Of one measurement.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    /// Operations (keys for batches) per second.
    pub(super) rate: f64,
    /// The middle latency of a call in microseconds.
    pub(super) p50_us: f64,
    /// The latency that one call of a hundred exceeds, in microseconds.
    pub(super) p99_us: f64,
    /// Microseconds that all nodes together spent on processors for one operation.
    pub(super) nodes_us: f64,
}

impl Store {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Store::Dogsled(_) => "dogsled",
            Store::Etcd(_) => "etcd",
        }
    }

    async fn call(&mut self, work: Work, client: usize, rng: &mut Rng) -> Result<u64> {
        let key = |n: u64| format!("key-{n:08}").into_bytes();
        let value = || {
            let mut value = vec![b'v'; VALUE];
            value[..8].copy_from_slice(&7u64.to_le_bytes());
            value
        };
        match self {
            Store::Dogsled(tree) => match work {
                Work::Put => {
                    tree.put(key(rng.below(KEYS)), value()).await?;
                    Ok(1)
                }
                Work::Get => {
                    tree.get(key(rng.below(KEYS))).await?;
                    Ok(1)
                }
                Work::Batch => {
                    let mut batch = dogsled::Batch::default();
                    // One partition, as a batch that happens together needs.
                    let tag = rng.below(1_000);
                    for n in 0..BATCH {
                        batch.insert(format!("{{{tag:04}}}-{n:04}").into_bytes(), value());
                    }
                    tree.apply_batch(batch).await?;
                    Ok(BATCH)
                }
            },
            Store::Etcd(clients) => {
                let at = client % clients.len();
                let kv = &mut clients[at];
                match work {
                    Work::Put => {
                        kv.put(key(rng.below(KEYS)), value(), None).await?;
                        Ok(1)
                    }
                    Work::Get => {
                        kv.get(key(rng.below(KEYS)), None).await?;
                        Ok(1)
                    }
                    Work::Batch => {
                        let tag = rng.below(1_000);
                        let puts: Vec<TxnOp> = (0..BATCH)
                            .map(|n| TxnOp::put(format!("{tag:04}-{n:04}").into_bytes(), value(), None))
                            .collect();
                        kv.txn(Txn::new().and_then(puts)).await?;
                        Ok(BATCH)
                    }
                }
            }
        }
    }
}

/// Lets `clients` clients work for `time`.
pub(super) async fn run(store: &Store, work: Work, clients: usize, time: Duration) -> Result<Measured> {
    let stop = Arc::new(AtomicBool::new(false));
    let ends = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            tokio::time::sleep(time).await;
            stop.store(true, Relaxed);
        }
    });
    let measured = run_until(store, work, clients, stop).await;
    ends.abort();
    measured
}

/// Lets `clients` clients work until `stop`.
pub(super) async fn run_until(
    store: &Store,
    work: Work,
    clients: usize,
    stop: Arc<AtomicBool>,
) -> Result<Measured> {
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(clients);
    for client in 0..clients {
        let (mut store, stop) = (store.clone(), Arc::clone(&stop));
        tasks.push(tokio::spawn(async move {
            let mut rng = Rng::new(client as u64 + 1);
            let (mut done, mut latencies) = (0, Vec::new());
            while !stop.load(Relaxed) {
                let begun = Instant::now();
                done += store.call(work, client, &mut rng).await?;
                latencies.push(begun.elapsed().as_nanos() as f64 / 1000.0);
            }
            anyhow::Ok((done, latencies))
        }));
    }
    let (mut done, mut latencies) = (0, Vec::new());
    for task in tasks {
        let (some, times) = task.await.context("a client panicked")??;
        done += some;
        latencies.extend(times);
    }
    if latencies.is_empty() {
        bail!("no call was made");
    }
    let rate = done as f64 / start.elapsed().as_secs_f64();
    let count = latencies.len();
    let mut nth = |at: usize| *latencies.select_nth_unstable_by(at, f64::total_cmp).1;
    Ok(Measured { rate, p50_us: nth(count / 2), p99_us: nth(count * 99 / 100), nodes_us: 0.0 })
}

/// The median of overwriting 4 KiB of a zero-filled file and syncing it.
pub(super) fn fdatasync_microseconds(dir: &Path) -> Result<f64> {
    let path = dir.join("fdatasync");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    file.write_all_at(&vec![0; 16 << 20], 0)?;
    file.sync_all()?;
    let mut times = Vec::new();
    for at in 0..1_000u64 {
        let begun = Instant::now();
        file.write_all_at(&[7; 4096], at * 4096)?;
        file.sync_data()?;
        times.push(begun.elapsed().as_nanos() as f64 / 1000.0);
    }
    std::fs::remove_file(path)?;
    let middle = times.len() / 2;
    Ok(*times.select_nth_unstable_by(middle, f64::total_cmp).1)
}
