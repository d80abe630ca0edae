//! `demo`: a cluster of three nodes in this process that loses its leader, and nothing else.
//!
//! What is shown is what happens: real nodes on loopback with real disks, a client that writes all the
//! while, and in the end a reading of every write that was acknowledged. The node is halted, not
//! killed; for `kill -9` start three of `dogsled serve`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled::cluster::{Client, ClientOptions, Error, Node, NodeCertificates, NodeConfig, NodeId, ring};
use serde_json::json;
use tokio::task::JoinSet;

use super::args::{DemoArgs, LogFormat};
use super::exit::{Code, Failure, Result};
use super::output::{self, Output};
use super::serve::logging;

const NODES: u64 = 3;
const PARTITIONS: u32 = 16;
const WRITERS: usize = 8;
/// How long is written before the leader goes, without it, and after it is back.
const SPELL: Duration = Duration::from_millis(1500);
/// Nothing here takes long; if it does, something is wrong, and the demo says so.
const PATIENCE: Duration = Duration::from_secs(10);
const TREE: &str = "demo";

pub(crate) fn demo(out: &mut Output, args: &DemoArgs) -> Result<()> {
    if let Some(level) = &args.log_level {
        logging::start(level, LogFormat::Text)?;
    }
    let directory = tempfile::tempdir().map_err(|error| Failure::io("a temporary directory", &error))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("starting threads", &error))?;
    let outcome = runtime.block_on(run(&mut Story { began: Instant::now(), out }, directory.path()));
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// What is told, with the time since the beginning.
struct Story<'a> {
    began: Instant,
    out: &'a mut Output,
}

impl Story<'_> {
    fn tell(&mut self, text: impl std::fmt::Display) -> Result<()> {
        let seconds = self.began.elapsed().as_secs_f64();
        let document = json!({ "seconds": (seconds * 1000.0).round() / 1000.0, "text": text.to_string() });
        self.out.summary(format_args!("{seconds:7.3} s  {text}"), document)?;
        self.out.finish()
    }
}

async fn run(story: &mut Story<'_>, directory: &Path) -> Result<()> {
    story.tell(format_args!(
        "{NODES} nodes start in this process, on loopback, data in {}",
        directory.display()
    ))?;
    let mut nodes = Vec::new();
    for id in 1..=NODES {
        nodes.push(start(directory, id, "127.0.0.1:0").await?);
    }
    let addresses: Vec<String> = nodes.iter().map(|node| node.local_address().to_string()).collect();
    let members = nodes.iter().map(|node| (node.id(), node.addresses().to_vec())).collect();
    nodes[0].create_cluster(PARTITIONS, members).await?;
    let client = Client::connect(addresses.clone(), ClientOptions::development(directory)?).await?;
    let victim = until("every group has a leader", || busiest(&nodes)).await?;
    story.tell(format_args!(
        "they are a cluster of {PARTITIONS} partitions, each replicated on all {NODES}; node {victim} leads {} of {} groups",
        led_by(&nodes[0], victim),
        PARTITIONS + 1
    ))?;

    let ledger = Arc::new(Ledger::default());
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(client.clone(), writer, Arc::clone(&ledger)));
    }
    tokio::time::sleep(SPELL).await;
    let before = ledger.acknowledged();
    story.tell(format_args!(
        "{WRITERS} writers, each waiting for every answer: {} writes acknowledged, {} per second, each synced on 2 of {NODES} disks",
        output::number(before),
        output::number((before as f64 / SPELL.as_secs_f64()) as u64)
    ))?;

    let gone = nodes.remove(nodes.iter().position(|node| node.id() == victim).expect("it is one of them"));
    let orphan = (1..=PARTITIONS).find(|group| leader(&nodes[0], *group) == Some(victim)).unwrap_or(1);
    story.tell(format_args!("node {victim} is stopped at once, in the middle of it"))?;
    let halted = Instant::now();
    let halt = gone.halt();
    let (halted_well, shown) =
        tokio::join!(halt, show_failover(story, &nodes[0], &client, victim, orphan, halted));
    halted_well?;
    shown?;
    tokio::time::sleep(SPELL).await;
    let without = ledger.acknowledged();
    story.tell(format_args!(
        "the writers went on: {} writes acknowledged by now, the longest wait for an answer was {} ms",
        output::number(without),
        ledger.longest_ms.load(Ordering::Relaxed)
    ))?;

    let address = gone.local_address().to_string();
    drop(gone);
    nodes.push(start(directory, victim.0, &address).await?);
    story.tell(format_args!("node {victim} starts again with what its disk has"))?;
    tokio::time::sleep(SPELL / 2).await;
    ledger.enough.store(true, Ordering::Relaxed);
    while let Some(written) = writers.join_next().await {
        written.map_err(|error| Failure::new(Code::Io, error.to_string()))??;
    }
    until("the node has caught up", || level(&nodes).then_some(())).await?;
    story.tell(format_args!("node {victim} has caught up with everything that was written without it"))?;
    check(story, &client, &nodes, victim, &ledger).await?;
    client.close().await;
    // All at once, and without handing over: there is nobody left to hand over to.
    let mut halted: JoinSet<_> = nodes.into_iter().map(|node| async move { node.halt().await }).collect();
    while let Some(halted) = halted.join_next().await {
        halted.map_err(|error| Failure::new(Code::Io, error.to_string()))??;
    }
    Ok(())
}

async fn start(directory: &Path, id: u64, listen: &str) -> Result<Node> {
    let listen = listen.parse().expect("an address of this program's making");
    let mut config = NodeConfig::new(directory.join(format!("node-{id}")), id, listen);
    config.certificates = NodeCertificates::Development(directory.to_owned());
    config.replication.cache_bytes = 32 << 20;
    Ok(Node::start(config).await?)
}

fn leader(node: &Node, group: u32) -> Option<NodeId> {
    node.map().leaders.get(group as usize).copied().flatten()
}

fn led_by(node: &Node, leader: NodeId) -> usize {
    node.map().leaders.iter().filter(|known| **known == Some(leader)).count()
}

/// Who leads most; `None` as long as a group has no leader that all agree on.
fn busiest(nodes: &[Node]) -> Option<NodeId> {
    let leaders = nodes[0].map().leaders;
    let agree = nodes.iter().all(|node| node.map().leaders == leaders);
    if !agree || leaders.is_empty() || leaders.contains(&None) {
        return None;
    }
    nodes.iter().map(Node::id).max_by_key(|id| led_by(&nodes[0], *id))
}

/// Whether all nodes have applied the same.
fn level(nodes: &[Node]) -> bool {
    let applied =
        |node: &Node| -> Vec<u64> { node.status().groups.iter().map(|group| group.applied).collect() };
    let first = applied(&nodes[0]);
    !first.is_empty() && nodes.iter().all(|node| applied(node) == first)
}

async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    loop {
        if let Some(found) = found() {
            return Ok(found);
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::not_found(format!("still not after {} s: {what}", PATIENCE.as_secs())));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Tells as the groups of the node that is gone find new leaders, until a write to one of them is
/// acknowledged and all have one.
async fn show_failover(
    story: &mut Story<'_>,
    survivor: &Node,
    client: &Client,
    victim: NodeId,
    orphan: u32,
    halted: Instant,
) -> Result<()> {
    // A name whose partition has just lost its leader.
    let name = (0..)
        .map(|number| format!("probe {number}"))
        .find(|name| ring::group_of(name.as_bytes(), PARTITIONS) == orphan);
    let probe = client.counter(name.expect("names never end"));
    let probe = tokio::spawn(async move { probe.add(1).await.map(|_| halted.elapsed()) });
    let mut changes = survivor.changes();
    let groups = survivor.map().leaders.len();
    let (mut told, mut last) = (0, Instant::now());
    while told < groups {
        let led = survivor.map().leaders.iter().flatten().filter(|leader| **leader != victim).count();
        // Several at a time make one line.
        if led == groups || (led > told && (told == 0 || last.elapsed() > Duration::from_millis(100))) {
            (told, last) = (led, Instant::now());
            story.tell(format_args!(
                "  +{:3} ms: {led} of {groups} groups are led by other nodes",
                halted.elapsed().as_millis()
            ))?;
        }
        if halted.elapsed() > PATIENCE {
            return Err(Failure::not_found(format!(
                "groups without a leader after {} s",
                PATIENCE.as_secs()
            )));
        }
        // Whether something has changed is seen above.
        let _ = tokio::time::timeout(Duration::from_millis(20), changes.changed()).await;
    }
    let served = probe.await.map_err(|error| Failure::new(Code::Io, error.to_string()))??;
    story.tell(format_args!(
        "  a write to a partition that node {victim} had led, sent when it was gone, was acknowledged after {} ms",
        served.as_millis()
    ))
}

/// What the writers were told.
#[derive(Default)]
struct Ledger {
    enough: AtomicBool,
    /// By writer: keys numbered from 0 to before this are acknowledged.
    keys: [AtomicU64; WRITERS],
    /// Additions to the counter that were acknowledged, and those of unknown outcome.
    added: AtomicI64,
    perhaps_added: AtomicI64,
    longest_ms: AtomicU64,
}

impl Ledger {
    fn acknowledged(&self) -> u64 {
        let keys: u64 = self.keys.iter().map(|keys| keys.load(Ordering::Relaxed)).sum();
        keys + u64::try_from(self.added.load(Ordering::Relaxed)).unwrap_or(0)
    }

    fn took(&self, call: Instant) {
        let took = u64::try_from(call.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.longest_ms.fetch_max(took, Ordering::Relaxed);
    }
}

fn key(writer: usize, number: u64) -> String {
    format!("{writer}/{number:06}")
}

/// Puts keys and adds to one counter in turn, until it is enough.
async fn write(client: Client, writer: usize, ledger: Arc<Ledger>) -> Result<()> {
    let (tree, counter) = (client.tree(TREE), client.counter(TREE));
    let mut number = 0;
    while !ledger.enough.load(Ordering::Relaxed) {
        let call = Instant::now();
        match tree.put(key(writer, number), number.to_string().into_bytes()).await {
            Ok(()) => {
                number += 1;
                ledger.keys[writer].store(number, Ordering::Relaxed);
            }
            // To put the same again does no harm.
            Err(error) if error.is_temporary() || !error.is_definite() => {}
            Err(error) => return Err(error.into()),
        }
        ledger.took(call);
        let call = Instant::now();
        match counter.add(1).await {
            Ok(_) => _ = ledger.added.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.is_temporary() => {}
            Err(Error::OutcomeUnknown(_)) => _ = ledger.perhaps_added.fetch_add(1, Ordering::Relaxed),
            Err(error) => return Err(error.into()),
        }
        ledger.took(call);
    }
    Ok(())
}

/// Reads everything that was acknowledged, from the leaders and from the disk that was away.
async fn check(
    story: &mut Story<'_>,
    client: &Client,
    nodes: &[Node],
    victim: NodeId,
    ledger: &Ledger,
) -> Result<()> {
    let returned = nodes.iter().find(|node| node.id() == victim).expect("it was started again");
    let (tree, stale) = (client.tree(TREE), returned.client().tree(TREE).stale());
    let (mut missing, mut missing_there, mut total) = (0, 0, 0_u64);
    for writer in 0..WRITERS {
        let count = ledger.keys[writer].load(Ordering::Relaxed);
        total += count;
        let numbers: Vec<u64> = (0..count).collect();
        for part in numbers.chunks(2048) {
            let keys: Vec<String> = part.iter().map(|number| key(writer, *number)).collect();
            let lost = |values: &[Option<dogsled::IVec>]| {
                let pairs = part.iter().zip(values);
                pairs
                    .filter(|(number, value)| value.as_deref() != Some(number.to_string().as_bytes()))
                    .count()
            };
            missing += lost(&tree.get_many(&keys).await?);
            missing_there += lost(&stale.get_many(&keys).await?.value);
        }
    }
    let (added, perhaps) =
        (ledger.added.load(Ordering::Relaxed), ledger.perhaps_added.load(Ordering::Relaxed));
    let counted = client.counter(TREE).get().await?;
    let right = (added..=added + perhaps).contains(&counted);
    if missing > 0 || missing_there > 0 || !right {
        return Err(Failure::not_found(format!(
            "acknowledged and lost: {missing} of {total} keys in the cluster, {missing_there} on node {victim}; the \
             counter stands at {counted} after {added} acknowledged additions (and {perhaps} of unknown outcome)"
        )));
    }
    story.tell(format_args!(
        "checked: all {} acknowledged keys are there, and on node {victim}'s own disk; {} acknowledged additions, and \
         the counter stands at {}",
        output::number(total),
        output::number(u64::try_from(added).unwrap_or(0)),
        output::number(u64::try_from(counted).unwrap_or(0))
    ))?;
    story.tell("nothing that was acknowledged was lost, nothing was counted twice")
}
