//! A lock that nobody else wants, and one that a thousand wait for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use etcd_client::{LeaseClient, LockClient, LockOptions};
use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::{Contestant, OperationsPlan, Systems, take_turns};
use crate::cluster::load::{Store, Work, call, percentile, run};
use crate::cluster::redis::Answer;
use crate::cluster::{etcd, nodes};
use crate::rows::Row;

const LEASE: Duration = Duration::from_secs(30);
/// Redis' own advice: give back only what is still one's own.
const COMPARE_AND_DELETE: &[u8] =
    b"if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end";

/// Lock and unlock, by one client, of a lock that is free.
pub(super) async fn uncontended(plan: &OperationsPlan, systems: &Systems) -> Result<Vec<Row>> {
    let lock = systems.dogsled.client().await?.lock("free");
    let mut contestants = vec![Contestant::new("dogsled", systems.dogsled.processes(), move |_| {
        let lock = lock.clone();
        call(move || {
            let lock = lock.clone();
            async move {
                let guard = lock.acquire(LEASE).await?;
                guard.release().await?.context("the lock was lost")?;
                Ok(1)
            }
        })
    })];
    let mut keeping = None;
    if let Some(etcd) = &systems.etcd {
        let client = etcd.client().await?.swap_remove(0);
        let lease = keep(client.lease_client()).await?;
        let (lock, id) = (client.lock_client(), lease.id);
        keeping = Some(lease);
        contestants.push(Contestant::new("etcd", etcd.processes(), move |_| {
            let lock = lock.clone();
            call(move || {
                let mut lock = lock.clone();
                async move {
                    let held = lock.lock("free", Some(LockOptions::new().with_lease(id))).await?;
                    lock.unlock(held.key()).await?;
                    Ok(1)
                }
            })
        }));
    }
    if let Some(redis) = &systems.redis {
        let connection = Arc::new(tokio::sync::Mutex::new(redis.connection().await?));
        contestants.push(Contestant::new("redis", redis.processes(), move |_| {
            let connection = Arc::clone(&connection);
            let mut token = 0u64;
            call(move || {
                let connection = Arc::clone(&connection);
                token += 1;
                async move {
                    let (mut redis, token) = (connection.lock().await, token.to_string());
                    let lease = LEASE.as_millis().to_string();
                    let set: [&[u8]; 6] = [b"SET", b"free", token.as_bytes(), b"NX", b"PX", lease.as_bytes()];
                    ensure!(redis.call(&set).await? == Answer::Text(b"OK".to_vec()), "the lock was not free");
                    let delete: [&[u8]; 5] = [b"EVAL", COMPARE_AND_DELETE, b"1", b"free", token.as_bytes()];
                    ensure!(redis.call(&delete).await? == Answer::Integer(1), "the lock was lost");
                    Ok(1)
                }
            })
        }));
    }
    let results = take_turns(plan, &systems.cores, &contestants, 1).await?;
    drop(keeping);
    let title = "uncontended lock + unlock, 1 client";
    Ok(vec![
        results.row("lock", &format!("{title}, p50"), "us", |one| one.p50_us).at_most(0.6, "etcd"),
        results.row("lock-p99", &format!("{title}, p99"), "us", |one| one.p99_us),
        results.row("lock-cpu", &format!("{title}, processor time of the nodes"), "us", |one| one.nodes_us),
    ])
}

/// A lease of etcd's that is kept alive in the background.
struct Kept {
    id: i64,
    _keeping: JoinSet<()>,
}

async fn keep(mut client: LeaseClient) -> Result<Kept> {
    let id = client.grant(LEASE.as_secs() as i64, None).await?.id();
    let (mut keeper, mut answers) = client.keep_alive(id).await?;
    let mut keeping = JoinSet::new();
    keeping.spawn(async move {
        while keeper.keep_alive().await.is_ok() && matches!(answers.message().await, Ok(Some(_))) {
            tokio::time::sleep(LEASE / 3).await;
        }
    });
    Ok(Kept { id, _keeping: keeping })
}

/// Who wait.
const WAITERS: usize = 1_000;
/// How often the lock is handed over in a repeat.
const HANDOVERS: usize = 300;
/// How long it is held: long enough that the one before is back in the queue.
const HELD: Duration = Duration::from_millis(6);
/// When the one before goes back.
const AWAY: Duration = Duration::from_millis(2);
/// For etcd's leases, which nobody renews.
const LONG_SECONDS: i64 = 600;

/// What waiters share.
#[derive(Default)]
struct Shared {
    released: Mutex<Option<Instant>>,
    took_us: Mutex<Vec<f64>>,
    holders: AtomicUsize,
    begun: AtomicBool,
}

impl Shared {
    /// Somebody holds the lock now, and gives it back when this returns.
    async fn hold(&self) -> Result<()> {
        if let Some(released) = self.released.lock().take() {
            self.took_us.lock().push(released.elapsed().as_nanos() as f64 / 1000.0);
        }
        ensure!(self.holders.fetch_add(1, SeqCst) == 0, "two hold the lock");
        while !self.begun.load(SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(HELD).await;
        self.holders.fetch_sub(1, SeqCst);
        // From before the call: what it takes to send it counts.
        *self.released.lock() = Some(Instant::now());
        Ok(())
    }
}

/// Microseconds that each of some hundred hand-overs took.
async fn hand_over(shared: Arc<Shared>, mut waiters: JoinSet<Result<()>>) -> Result<Vec<f64>> {
    // The first holds the lock until all others wait.
    tokio::time::sleep(Duration::from_secs(4)).await;
    shared.begun.store(true, SeqCst);
    let begun = Instant::now();
    while shared.took_us.lock().len() < HANDOVERS {
        if let Some(ended) = waiters.try_join_next() {
            ended.context("a waiter panicked")??;
        }
        if begun.elapsed() > Duration::from_secs(60) {
            bail!("{} of {HANDOVERS} hand-overs after a minute", shared.took_us.lock().len());
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    waiters.shutdown().await;
    let took = shared.took_us.lock().clone();
    Ok(took)
}

/// Waiters of one client share its connections; several clients, as there would be.
async fn dogsled_waiters(cluster: &nodes::Cluster, name: &str) -> Result<Vec<f64>> {
    let (shared, mut waiters) = (Arc::new(Shared::default()), JoinSet::new());
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(cluster.client().await?.with_deadline(Duration::from_secs(30)));
    }
    for n in 0..=WAITERS {
        let (lock, shared) = (clients[n % clients.len()].lock(name), Arc::clone(&shared));
        waiters.spawn(async move {
            loop {
                let guard = lock.acquire(LEASE).await?;
                shared.hold().await?;
                guard.release().await?.context("the lock was lost")?;
                tokio::time::sleep(AWAY).await;
            }
        });
    }
    let took = hand_over(shared, waiters).await?;
    // They leave the queue in the background.
    tokio::time::sleep(Duration::from_secs(1)).await;
    for client in clients {
        client.close().await;
    }
    Ok(took)
}

async fn etcd_waiters(cluster: &etcd::Cluster, name: &str) -> Result<Vec<f64>> {
    let (shared, mut waiters) = (Arc::new(Shared::default()), JoinSet::new());
    let clients = cluster.client().await?;
    let mut leases = Vec::new();
    for n in 0..=WAITERS {
        let client = &clients[n % clients.len()];
        let mut lock: LockClient = client.lock_client();
        // Of one lease there is one place in the queue.
        let lease = client.lease_client().grant(LONG_SECONDS, None).await?.id();
        leases.push(lease);
        let (name, shared) = (name.to_owned(), Arc::clone(&shared));
        waiters.spawn(async move {
            loop {
                let held = lock.lock(name.clone(), Some(LockOptions::new().with_lease(lease))).await?;
                shared.hold().await?;
                lock.unlock(held.key()).await?;
                tokio::time::sleep(AWAY).await;
            }
        });
    }
    let took = hand_over(shared, waiters).await?;
    for (n, lease) in leases.into_iter().enumerate() {
        clients[n % clients.len()].lease_client().revoke(lease).await?;
    }
    Ok(took)
}

/// From the release, as it is called, until the next of a thousand waiters knows that it holds the lock.
pub(super) async fn handover(plan: &OperationsPlan, systems: &Systems) -> Result<Vec<Row>> {
    let _awake = systems.cores.keep_awake();
    let store = Store::Dogsled(systems.dogsled.client().await?.tree("bench"));
    let (mut put, mut own, mut own_p50, mut theirs) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for repeat in 0..plan.repeats {
        let puts = run(&store, Work::Put, 1, Duration::from_secs_f64(plan.seconds / 2.0)).await?;
        put.push(puts.p50_us);
        let mut took = dogsled_waiters(&systems.dogsled, &format!("contended-{repeat}")).await?;
        own.push(percentile(&mut took, 99)?);
        own_p50.push(percentile(&mut took, 50)?);
        if let Some(etcd) = &systems.etcd {
            // With a thousand waiters it does not always come to hand the lock over at all.
            match etcd_waiters(etcd, &format!("contended-{repeat}")).await {
                Ok(mut took) => theirs.push(percentile(&mut took, 99)?),
                Err(error) => println!("etcd, hand-over: {error:#}"),
            }
        }
    }
    let title = "hand-over of a lock to the next of 1,000 waiters";
    let row = Row::new("handover", &format!("{title}, p99 of {HANDOVERS}"), "us")
        .with("dogsled", own)
        .with("put, p50", put.clone());
    let row = if theirs.is_empty() { row } else { row.with("etcd", theirs) };
    Ok(vec![
        row.at_most(2.0, "put, p50"),
        Row::new("handover-p50", &format!("{title}, p50"), "us")
            .with("dogsled", own_p50)
            .with("put, p50", put),
    ])
}
