//! Ten thousand watchers of one key, and one writer.
//!
//! The writer puts the next value as soon as all watchers together have been told of all but the last few, so
//! the rate is that at which events are delivered, and nobody falls behind. A watcher must be told of every
//! value, in order.
//!
//! Unlike for other rows the clients have a runtime of as many threads as there are cores: they do much of the work.
//!
//! Watchers are spread over connections, [`CONNECTIONS`] of each system, as they would be over processes. etcd's
//! share one stream of each connection, as its own client has it. dogsled's have a stream each, and are of two
//! kinds: watchers that ask for the same key; and watchers of which no two on a connection ask for the same, by
//! prefixes of different length.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use dogsled::cluster::{Client, Event};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{OperationsPlan, Systems};
use crate::cluster::{etcd, nodes, processes};
use crate::rows::Row;

/// Clients, with connections of their own.
const CONNECTIONS: usize = 25;
/// Values of which not everybody has been told.
const WINDOW: u64 = 8;
/// Without an event for so long something is wrong.
const STUCK: Duration = Duration::from_secs(20);

/// How far the watchers are, all together.
#[derive(Default)]
struct Delivered {
    events: AtomicU64,
    more: Notify,
}

impl Delivered {
    fn one(&self, watchers: u64) {
        // Waking the writer at each would cost more than the delivery.
        if (self.events.fetch_add(1, Relaxed) + 1).is_multiple_of(watchers / 4) {
            self.more.notify_one();
        }
    }

    async fn reach(&self, events: u64) -> Result<()> {
        let mut last = (0, Instant::now());
        loop {
            let now = self.events.load(Relaxed);
            if now >= events {
                return Ok(());
            }
            if now != last.0 {
                last = (now, Instant::now());
            }
            ensure!(last.1.elapsed() < STUCK, "{now} of {events} events were delivered, and no more come");
            let _ = tokio::time::timeout(Duration::from_millis(5), self.more.notified()).await;
        }
    }
}

/// Values are numbers from 1 on; each is told once, in order.
fn check(last: &mut u64, value: &[u8]) -> Result<()> {
    let number = value.first_chunk().context("a value that nobody has written")?;
    let number = u64::from_be_bytes(*number);
    ensure!(number == *last + 1, "a watcher was told of {number} after {last}");
    *last = number;
    Ok(())
}

/// As small as a setting that others follow.
fn value(number: u64) -> Vec<u8> {
    let mut value = vec![b'v'; 64];
    value[..8].copy_from_slice(&number.to_be_bytes());
    value
}

/// What one system came to in one repeat.
struct Told {
    /// Events a second.
    rate: f64,
    /// MiB of all nodes with the watchers, and without.
    resident: (f64, f64),
    /// Microseconds of the nodes' processors for one event.
    nodes_us: f64,
}

fn resident(processes: &[u32]) -> Result<f64> {
    processes.iter().map(|process| processes::resident_mib(*process)).sum()
}

/// Writes for a time; `put` writes one value.
async fn write<F: Future<Output = Result<()>>>(
    time: Duration,
    nodes: &[u32],
    before: f64,
    (delivered, watchers): (&Delivered, u64),
    tasks: &mut JoinSet<Result<()>>,
    mut put: impl FnMut(u64) -> F,
) -> Result<Told> {
    let mut run = async |time: Duration, mut number: u64| {
        let begun = Instant::now();
        while begun.elapsed() < time {
            number += 1;
            put(number).await?;
            delivered.reach((number * watchers).saturating_sub(WINDOW * watchers)).await?;
        }
        anyhow::Ok(number)
    };
    let measured = async {
        let number = run(time.mul_f64(0.25), 0).await?; // warms up
        let (begun, events) = (Instant::now(), delivered.events.load(Relaxed));
        let processor = processes::processor_us(nodes)?;
        let number = run(time, number).await?;
        let events = (delivered.events.load(Relaxed) - events) as f64;
        let rate = events / begun.elapsed().as_secs_f64();
        let nodes_us = (processes::processor_us(nodes)? - processor) / events;
        let resident = (resident(nodes)?, before);
        delivered.reach(number * watchers).await?;
        anyhow::Ok(Told { rate, resident, nodes_us })
    };
    tokio::select! {
        biased;
        Some(ended) = tasks.join_next() => match ended.context("a watcher panicked")? {
            Ok(()) => bail!("a watcher has ended"),
            Err(error) => Err(error),
        },
        told = measured => told,
    }
}

/// Whether watchers of a connection ask for the same.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ask {
    Same,
    Different,
}

async fn dogsled(plan: &OperationsPlan, cluster: &nodes::Cluster, ask: Ask, round: usize) -> Result<Told> {
    let nodes = cluster.processes();
    let before = resident(&nodes)?;
    let each = plan.watchers.div_ceil(CONNECTIONS);
    let delivered = Arc::new(Delivered::default());
    let watchers = (each * CONNECTIONS) as u64;
    // Long enough for as many prefixes as a connection has watchers.
    let key = format!("{{hot-{round}}}{}", "x".repeat(each));
    let tag = key.find('}').expect("there is one") + 1;
    let mut clients: Vec<Client> = Vec::new();
    let mut tasks = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let client = cluster.client().await?.with_deadline(Duration::from_secs(30));
        let tree = client.tree("watched");
        if clients.is_empty() {
            tree.put(format!("{{hot-{round}}}"), "1").await?; // the tree is there
        }
        for n in 0..each {
            let mut watcher = match ask {
                Ask::Same => tree.watch_prefix(&key).await?,
                Ask::Different => tree.watch_prefix(&key[..tag + 1 + n]).await?,
            };
            let delivered = Arc::clone(&delivered);
            tasks.spawn(async move {
                let mut last = 0;
                while let Some(event) = watcher.next().await {
                    match event? {
                        Event::Insert { value, .. } => check(&mut last, &value)?,
                        other => bail!("a watcher was told {other:?}"),
                    }
                    delivered.one(watchers);
                }
                Ok(())
            });
        }
        clients.push(client);
    }
    let tree = clients[0].tree("watched");
    let time = Duration::from_secs_f64(plan.seconds);
    let told = write(time, &nodes, before, (&delivered, watchers), &mut tasks, |number| {
        let (tree, key) = (tree.clone(), key.clone());
        async move {
            tree.put(key, value(number)).await?;
            Ok(())
        }
    });
    let told = told.await?;
    tasks.shutdown().await;
    for client in clients {
        client.close().await;
    }
    Ok(told)
}

async fn etcd(plan: &OperationsPlan, cluster: &etcd::Cluster, round: usize) -> Result<Told> {
    let nodes = cluster.processes();
    let before = resident(&nodes)?;
    let each = plan.watchers.div_ceil(CONNECTIONS);
    let delivered = Arc::new(Delivered::default());
    let watchers = (each * CONNECTIONS) as u64;
    let key = format!("hot-{round}");
    let mut tasks = JoinSet::new();
    let clients = cluster.clients(CONNECTIONS).await?;
    for client in &clients {
        let mut stream = client.watch_client().watch(key.clone(), None).await?;
        for _ in 1..each {
            stream.watch(key.clone(), None).await?;
        }
        let mut created = 0;
        while created < each {
            let message = stream.message().await?.context("etcd has ended a stream")?;
            created += usize::from(message.created());
        }
        let delivered = Arc::clone(&delivered);
        tasks.spawn(async move {
            let mut last = vec![0; each];
            while let Some(message) = stream.message().await? {
                let watcher = usize::try_from(message.watch_id())?;
                for event in message.events() {
                    check(&mut last[watcher], event.kv().context("an event without a key")?.value())?;
                    delivered.one(watchers);
                }
            }
            Ok(())
        });
    }
    let time = Duration::from_secs_f64(plan.seconds);
    let kv = clients[0].kv_client();
    let told = write(time, &nodes, before, (&delivered, watchers), &mut tasks, |number| {
        let (mut kv, key) = (kv.clone(), key.clone());
        async move {
            kv.put(key, value(number), None).await?;
            Ok(())
        }
    });
    let told = told.await?;
    tasks.shutdown().await;
    Ok(told)
}

pub(super) async fn measure(plan: &OperationsPlan, systems: &Systems) -> Result<Vec<Row>> {
    let _awake = systems.cores.keep_awake();
    let (mut same, mut different, mut theirs) = (Vec::new(), Vec::new(), Vec::new());
    for repeat in 0..plan.repeats {
        same.push(dogsled(plan, &systems.dogsled, Ask::Same, 2 * repeat).await?);
        if let Some(cluster) = &systems.etcd {
            theirs.push(etcd(plan, cluster, repeat).await?);
        }
        different.push(dogsled(plan, &systems.dogsled, Ask::Different, 2 * repeat + 1).await?);
    }
    let title = format!("watch, {} watchers of a key on {CONNECTIONS} connections", plan.watchers);
    let apart = "dogsled, none alike";
    let row = |id: &str, what: &str, unit: &str, number: &dyn Fn(&Told) -> f64| {
        let of = |all: &[Told]| all.iter().map(number).collect::<Vec<_>>();
        Row::new(id, &format!("{title}{what}"), unit)
            .with("dogsled", of(&same))
            .with(apart, of(&different))
            .with("etcd", of(&theirs))
    };
    Ok(vec![
        row("watch", ", one writer", "events per second", &|told| told.rate).at_least(5.0, "etcd"),
        row("watch-cpu", ", processor time of the nodes per event", "us", &|told| told.nodes_us),
        row("watch-memory", ", resident memory of all nodes", "MiB", &|told| told.resident.0),
        row("watch-memory-before", ", the same before they came", "MiB", &|told| told.resident.1),
    ])
}
