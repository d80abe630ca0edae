//! Clients that do one thing in a loop, and how long each call took.

use std::fs::OpenOptions;
use std::future::Future;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::pin::Pin;
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
    /// How many there were.
    pub(super) done: u64,
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

/// What a client does again and again.
pub(super) trait Caller: Send + 'static {
    /// Does it once; how many operations it was.
    fn call(&mut self) -> impl Future<Output = Result<u64>> + Send;
}

/// What a call under way is.
type Called = Pin<Box<dyn Future<Output = Result<u64>> + Send>>;
/// Any caller.
pub(super) type Call = Box<dyn FnMut() -> Called + Send>;

impl Caller for Call {
    async fn call(&mut self) -> Result<u64> {
        self().await
    }
}

/// Boxes what a client does.
pub(super) fn call<F, C>(mut make: C) -> Call
where
    C: FnMut() -> F + Send + 'static,
    F: Future<Output = Result<u64>> + Send + 'static,
{
    Box::new(move || Box::pin(make()))
}

/// A client of a store.
struct StoreCaller {
    store: Store,
    work: Work,
    client: usize,
    rng: Rng,
}

impl Caller for StoreCaller {
    async fn call(&mut self) -> Result<u64> {
        self.store.call(self.work, self.client, &mut self.rng).await
    }
}

fn callers(store: &Store, work: Work, clients: usize) -> Vec<StoreCaller> {
    let caller =
        |client| StoreCaller { store: store.clone(), work, client, rng: Rng::new(client as u64 + 1) };
    (0..clients).map(caller).collect()
}

/// Lets `clients` clients work for `time`.
pub(super) async fn run(store: &Store, work: Work, clients: usize, time: Duration) -> Result<Measured> {
    for_a_time(callers(store, work, clients), time).await
}

/// Lets `clients` clients work until `stop`.
pub(super) async fn run_until(
    store: &Store,
    work: Work,
    clients: usize,
    stop: Arc<AtomicBool>,
) -> Result<Measured> {
    until_stopped(callers(store, work, clients), stop).await
}

/// Lets each of `callers` call for `time`.
pub(super) async fn for_a_time(callers: Vec<impl Caller>, time: Duration) -> Result<Measured> {
    let stop = Arc::new(AtomicBool::new(false));
    let ends = tokio::spawn({
        let stop = Arc::clone(&stop);
        async move {
            tokio::time::sleep(time).await;
            stop.store(true, Relaxed);
        }
    });
    let measured = until_stopped(callers, stop).await;
    ends.abort();
    measured
}

/// Lets each of `callers` call until `stop`.
async fn until_stopped(callers: Vec<impl Caller>, stop: Arc<AtomicBool>) -> Result<Measured> {
    let start = Instant::now();
    let mut tasks = Vec::with_capacity(callers.len());
    for mut caller in callers {
        let stop = Arc::clone(&stop);
        tasks.push(tokio::spawn(async move {
            let (mut done, mut latencies) = (0, Vec::new());
            while !stop.load(Relaxed) {
                let begun = Instant::now();
                done += caller.call().await?;
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
    let rate = done as f64 / start.elapsed().as_secs_f64();
    let (p50_us, p99_us) = (percentile(&mut latencies, 50)?, percentile(&mut latencies, 99)?);
    Ok(Measured { rate, done, p50_us, p99_us, nodes_us: 0.0 })
}

/// What so many of a hundred do not exceed.
pub(super) fn percentile(values: &mut [f64], percent: usize) -> Result<f64> {
    if values.is_empty() {
        bail!("no call was made");
    }
    let at = values.len() * percent / 100;
    Ok(*values.select_nth_unstable_by(at, f64::total_cmp).1)
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
