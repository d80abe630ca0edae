//! Measures a three-node cluster in one process, without sockets: what the WAL, Raft and the state
//! machines cost.
//!
//! `cargo run --release -p dogsled-replication --example throughput -- [clients] [seconds] [partitions]`

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled_replication::memory::MemoryNetwork;
use dogsled_replication::ring::group_of;
use dogsled_replication::{ClientReply, ClientRequest, Node, NodeConfig, NodeId};
use dogsled_storage::codec::{encode_group_command, encode_group_read};
use dogsled_storage::group::{GroupCommand, GroupRead, Operation};
use dogsled_storage::{Command, TreeId};

fn main() {
    let number = |n: usize, default: u64| std::env::args().nth(n).map_or(default, |arg| arg.parse().unwrap());
    let (clients, seconds, partitions) = (number(1, 256), number(2, 5), number(3, 16) as u32);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let directory =
            tempfile::tempdir_in(std::env::var("DOGSLED_DIR").unwrap_or_else(|_| "/tmp".into())).unwrap();
        let network = MemoryNetwork::default();
        let mut nodes = Vec::new();
        for node in 1..=3 {
            let config =
                NodeConfig::new(directory.path().join(node.to_string()), NodeId(node), vec!["x".into()]);
            let node_started = Node::start(config, network.transport(NodeId(node))).await.unwrap();
            network.attach(NodeId(node), Arc::new(node_started.clone()));
            nodes.push(node_started);
        }
        let members = (1..=3).map(|node| (NodeId(node), vec!["x".to_owned()])).collect();
        nodes[0].initialize_cluster(partitions, members).await.unwrap();
        tokio::time::sleep(Duration::from_secs(6)).await;
        println!("leaders: {:?}", nodes[0].map().leaders.iter().map(|l| l.unwrap().0).collect::<Vec<_>>());
        for (what, reading) in [("put", false), ("linearizable get", true)] {
            measure(&nodes, clients, seconds, partitions, what, reading).await;
        }
        for node in &nodes {
            node.shutdown().await.unwrap();
        }
    });
}

async fn measure(nodes: &[Node], clients: u64, seconds: u64, partitions: u32, what: &str, reading: bool) {
    let end = Instant::now() + Duration::from_secs(seconds);
    let done = Arc::new(AtomicU64::new(0));
    let syncs = |nodes: &[Node]| nodes.iter().map(|node| node.status().wal_syncs).sum::<u64>();
    let (syncs_before, began, cpu) = (syncs(nodes), Instant::now(), cpu_seconds());
    let mut tasks = Vec::new();
    for client in 0..clients {
        let nodes: Vec<Node> = nodes.to_vec();
        let done = Arc::clone(&done);
        tasks.push(tokio::spawn(async move {
            let mut latencies = Vec::new();
            let mut n = client;
            while Instant::now() < end {
                n = n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(client * 2 + 1);
                let key = format!("key-{:016x}", n >> 44);
                let group = group_of(key.as_bytes(), partitions);
                let request = if reading {
                    let read = GroupRead::Get { tree: "t".into(), key: key.as_str().into() };
                    ClientRequest::Read {
                        group,
                        deadline: Duration::ZERO,
                        consistency: Default::default(),
                        read: encode_group_read(&read).unwrap().into(),
                    }
                } else {
                    let command = GroupCommand {
                        session: None,
                        time_ms: 0,
                        trees: vec!["t".into()],
                        operation: Operation::Command(Command::Insert {
                            tree: TreeId(0),
                            key: key.as_str().into(),
                            value: vec![n as u8; 256].into(),
                        }),
                    };
                    ClientRequest::Submit {
                        group,
                        deadline: Duration::ZERO,
                        command: encode_group_command(&command).unwrap().into(),
                    }
                };
                // As a client that knows who leads.
                let Some(leader) = nodes[0].leader(group) else { continue };
                let begin = Instant::now();
                match nodes[leader.0 as usize - 1].request(request).await {
                    Ok(ClientReply::Applied(_) | ClientReply::Read { .. }) => {}
                    other => {
                        println!("{other:?}");
                        continue;
                    }
                }
                latencies.push(begin.elapsed().as_nanos() as u64);
                done.fetch_add(1, Ordering::Relaxed);
            }
            latencies
        }));
    }
    let mut latencies = Vec::new();
    for task in tasks {
        latencies.extend(task.await.unwrap());
    }
    latencies.sort_unstable();
    let elapsed = began.elapsed().as_secs_f64();
    let count = done.load(Ordering::Relaxed);
    let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1e3;
    println!(
        "{what}, {clients} clients: {:.0}/s, p50 {:.0} µs, p99 {:.0} µs, {:.1} µs of CPU each, {:.0} syncs/s",
        count as f64 / elapsed,
        at(0.5),
        at(0.99),
        (cpu_seconds() - cpu) * 1e6 / count as f64,
        (syncs(nodes) - syncs_before) as f64 / elapsed,
    );
}

/// Of this process, from /proc.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |n: usize| fields.get(n).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}
