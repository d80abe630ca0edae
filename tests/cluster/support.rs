//! Nodes of a cluster in the test's process, over QUIC on loopback.
#![allow(unreachable_pub, reason = "its modules are those of one test")]

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use dogsled::cluster::{
    Client, ClientOptions, Error, Node, NodeCertificates, NodeConfig, NodeId, StartError,
};
use tempfile::TempDir;

pub struct Cluster {
    pub directory: TempDir,
    pub nodes: BTreeMap<u64, Node>,
    ports: BTreeMap<u64, SocketAddr>,
    adjust: fn(&mut NodeConfig),
}

/// An address below those that the system gives away by itself: while a node is down, no client of
/// another test takes its port.
pub fn free_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = 16_000 + (std::process::id() % 8_000) as u16;
    loop {
        let port = first + NEXT.fetch_add(1, Ordering::Relaxed) % 8_000;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if std::net::UdpSocket::bind(address).is_ok() && std::net::TcpListener::bind(address).is_ok() {
            return address;
        }
    }
}

impl Cluster {
    pub fn new() -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        Cluster { directory, nodes: BTreeMap::new(), ports: BTreeMap::new(), adjust: |_| {} }
    }

    pub fn config(&self, node: u64) -> NodeConfig {
        let listen = self.ports.get(&node).copied().unwrap_or_else(free_address);
        let directory = self.directory.path().join(format!("node-{node}"));
        let mut config = NodeConfig::new(directory, node, listen);
        config.certificates = NodeCertificates::Development(self.directory.path().to_owned());
        config.replication.maintenance_every = Duration::from_millis(200);
        (self.adjust)(&mut config);
        config
    }

    /// Starts a node; again under the port that it had.
    pub async fn start(&mut self, node: u64) -> &Node {
        self.start_with(node, self.config(node)).await
    }

    pub async fn start_with(&mut self, node: u64, config: NodeConfig) -> &Node {
        let began = Instant::now();
        let started = loop {
            match Node::start(config.clone()).await {
                // A connection that was being made when the node was halted holds the port for a while:
                // within one process only.
                Err(StartError::Listen(_)) if began.elapsed() < Duration::from_secs(10) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                started => break started.unwrap(),
            }
        };
        self.ports.insert(node, started.local_address());
        self.nodes.insert(node, started);
        &self.nodes[&node]
    }

    /// Members 1 to `count`.
    pub async fn made(count: u64, partitions: u32) -> Cluster {
        Cluster::made_with(count, partitions, |_| {}).await
    }

    pub async fn made_with(count: u64, partitions: u32, adjust: fn(&mut NodeConfig)) -> Cluster {
        let mut cluster = Cluster { adjust, ..Cluster::new() };
        for node in 1..=count {
            cluster.start(node).await;
        }
        let members = cluster.nodes.values().map(|node| (node.id(), node.addresses().to_vec())).collect();
        cluster.nodes[&1].create_cluster(partitions, members).await.unwrap();
        cluster
    }

    pub async fn halt(&mut self, node: u64) {
        self.nodes.remove(&node).unwrap().halt().await.unwrap();
    }

    pub async fn shutdown(&mut self, node: u64) {
        self.nodes.remove(&node).unwrap().shutdown().await.unwrap();
    }

    pub fn address(&self, node: u64) -> String {
        self.ports[&node].to_string()
    }

    pub fn options(&self) -> ClientOptions {
        ClientOptions::development(self.directory.path()).unwrap()
    }

    /// A client that was told the address of one node.
    pub async fn client(&self, node: u64) -> Client {
        Client::connect([self.address(node)], self.options()).await.unwrap()
    }

    /// Who leads a group, once those that run agree.
    pub async fn leader(&self, group: u32) -> u64 {
        let mut found = 0;
        eventually(&format!("group {group} has a leader"), || {
            let leaders = self.nodes.values().map(|node| node.map().leaders[group as usize]);
            let leaders: Vec<Option<NodeId>> = leaders.collect();
            found = leaders[0].map_or(0, |leader| leader.0);
            let agree = leaders.iter().all(|leader| *leader == leaders[0]) && self.nodes.contains_key(&found);
            std::future::ready(agree)
        })
        .await;
        found
    }
}

pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < Duration::from_secs(30), "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a run of additions came to.
#[derive(Default, Debug)]
pub struct Tally {
    pub acknowledged: i64,
    pub unknown: Vec<Error>,
    pub refused: Vec<Error>,
    pub longest: Duration,
}

/// Adds 1 to the counters in turn until told to stop.
pub async fn add_until(
    client: Client,
    counters: Vec<String>,
    stop: tokio::sync::watch::Receiver<bool>,
) -> Tally {
    let mut tally = Tally::default();
    for name in counters.iter().cycle() {
        if *stop.borrow() {
            break;
        }
        let began = Instant::now();
        match client.counter(name).add(1).await {
            Ok(_) => tally.acknowledged += 1,
            Err(error) if error.is_definite() => tally.refused.push(error),
            Err(error) => tally.unknown.push(error),
        }
        tally.longest = tally.longest.max(began.elapsed());
    }
    tally
}

pub async fn sum(client: &Client, counters: &[String]) -> i64 {
    let mut sum = 0;
    for name in counters {
        sum += client.counter(name).get().await.unwrap();
    }
    sum
}
