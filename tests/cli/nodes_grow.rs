//! Real processes: a cluster grows from one node to three and five and shrinks to three, under constant
//! load, and no call fails.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::cli_support::Sandbox;
use crate::cli_support::nodes::{Served, free_address};
use dogsled::cluster::{Client, ClientOptions};
use serde_json::Value;

/// Groups of which a node has a directory.
fn replicas_on_disk(data: &Path) -> Vec<u32> {
    let mut groups = Vec::new();
    for entry in std::fs::read_dir(data.join("groups")).expect("a node's directory") {
        let entry = entry.expect("an entry");
        let name = entry.file_name().to_string_lossy().into_owned();
        groups.extend(name.parse::<u32>());
    }
    groups.sort_unstable();
    groups
}

struct Cluster {
    sandbox: Sandbox,
    addresses: Vec<String>,
    nodes: Vec<Option<Served>>,
}

impl Cluster {
    fn start(&mut self, node: usize) {
        let (id, address) = (node.to_string(), self.addresses[node - 1].clone());
        let data = format!("data-{node}");
        let mut arguments =
            vec!["--certs", "certs", "--node", &id, "--listen", &address, "--data", &data, "--cache", "16"];
        let seed = self.addresses[0].clone();
        match node {
            1 => arguments.extend(["--partitions", "8"]),
            _ => arguments.extend(["--join", &seed]),
        }
        self.nodes[node - 1] = Some(self.sandbox.serving(&arguments));
    }

    fn run(&self, by: usize, arguments: &[&str]) -> crate::cli_support::Run {
        let mut all = vec!["--certs", "certs", "--connect", &self.addresses[by - 1]];
        all.extend(arguments);
        self.sandbox.run_bare(&all)
    }

    /// Until every partition is where it is to be.
    fn settles(&self, by: usize) -> Value {
        let began = Instant::now();
        loop {
            let status = self.run(by, &["--json", "status"]).ok();
            let status: Value = serde_json::from_str(&status).expect("JSON");
            if status["movement"]["settled"] == true {
                return status;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "{status:#}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What each node has on disk is what it is to hold, and not more.
    fn nobody_has_more(&self, status: &Value, nodes: &[usize]) {
        let placement = status["ring"]["replicas_of_partitions"].as_array().expect("a list");
        for node in nodes {
            let wanted = |group: &u32| {
                let replicas = placement[*group as usize - 1].as_array().expect("a list");
                replicas.iter().any(|replica| replica.as_u64() == Some(*node as u64))
            };
            let mut wanted: Vec<u32> = (1..=placement.len() as u32).filter(wanted).collect();
            wanted.insert(0, 0);
            let began = Instant::now();
            loop {
                let has = replicas_on_disk(&self.sandbox.path(&format!("data-{node}")));
                if has == wanted {
                    break;
                }
                let waited = began.elapsed() < Duration::from_secs(20);
                assert!(waited, "node {node} has {has:?}, and is to have {wanted:?}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Writes and reads until it is told to stop; how many calls there were. All must succeed.
async fn load(client: Client, writer: usize, stop: tokio::sync::watch::Receiver<bool>) -> usize {
    let tree = client.tree("load");
    let mut calls = 0;
    while !*stop.borrow() {
        let key = format!("{writer}/{calls:06}");
        tree.put(&key, &*key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        let found = tree.get(&key).await.unwrap_or_else(|error| panic!("{key}: {error}"));
        assert_eq!(found.as_deref(), Some(key.as_bytes()), "acknowledged and lost");
        calls += 1;
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    calls
}

#[test]
fn one_node_becomes_three_and_five_and_three_again_and_no_call_fails() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2, 3, 4, 5]);
    let addresses: Vec<String> = (0..5).map(|_| free_address()).collect();
    let mut cluster = Cluster { sandbox, addresses, nodes: (0..5).map(|_| None).collect() };
    cluster.start(1);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let runtime = runtime.expect("threads");
    let certificates = dogsled::cluster::CertificateFiles::of_client(&cluster.sandbox.path("certs"), "admin");
    let certificates = dogsled::cluster::Certificates::load(&certificates).expect("certificates");
    let client = runtime.block_on(async {
        let seeds = [cluster.addresses[0].clone()];
        Client::connect(seeds, ClientOptions::new(certificates)).await.expect("a client")
    });
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let writers: Vec<_> =
        (0..3).map(|writer| runtime.spawn(load(client.clone(), writer, stopped.clone()))).collect();

    for node in 2..=3 {
        cluster.start(node);
    }
    let status = cluster.settles(1);
    cluster.nobody_has_more(&status, &[1, 2, 3]);
    for node in 4..=5 {
        cluster.start(node);
    }
    let status = cluster.settles(5);
    cluster.nobody_has_more(&status, &[1, 2, 3, 4, 5]);
    let held: Vec<u64> = status["ring"]["members"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|member| member["replicas"].as_u64().expect("a number"))
        .collect();
    assert_eq!(held.iter().sum::<u64>(), 24, "{held:?}");
    assert!(held.iter().all(|held| (3..=6).contains(held)), "{held:?}");

    // Two that have been there from the beginning go.
    for node in [1, 2] {
        let removed = cluster.run(5, &["member", "remove", &node.to_string()]).ok();
        assert!(removed.contains("no member any more"), "{removed}");
        let has = replicas_on_disk(&cluster.sandbox.path(&format!("data-{node}")));
        assert!(has.len() <= 9, "{has:?}");
        assert_eq!(cluster.nodes[node - 1].take().expect("it runs").terminate(), 0);
    }
    let status = cluster.settles(4);
    cluster.nobody_has_more(&status, &[3, 4, 5]);
    assert_eq!(status["ring"]["removed"], serde_json::json!([1, 2]));
    // One of the three that are left is emptied only if there were enough others.
    cluster.run(3, &["drain", "4"]).fails_saying(2, &["2 members for 3 replicas"]);
    cluster.run(3, &["replicas", "4"]).fails_saying(2, &["there are 3"]);
    cluster.run(3, &["member", "weight", "9", "50"]).fails_saying(2, &["no member"]);
    let paused = cluster.run(3, &["rebalance", "--pause", "--moves", "2"]).ok();
    assert!(paused.contains("PAUSED") && paused.contains("2 moves"), "{paused}");
    cluster.run(4, &["rebalance", "--resume"]).ok();
    let listed = cluster.run(3, &["member", "list"]).ok();
    assert!(listed.lines().count() == 3 && listed.contains("active\t100"), "{listed}");
    let shown = cluster.run(3, &["status"]).ok();
    assert!(shown.contains("every partition is where it is to be"), "{shown}");

    stop.send_replace(true);
    let calls: usize = runtime.block_on(async {
        let mut calls = 0;
        for writer in writers {
            calls += writer.await.expect("no call fails");
        }
        calls
    });
    assert!(calls > 300, "{calls} calls are no load");
    // Whoever was removed is not taken in again, however it tries.
    let again = cluster.run(3, &["member", "add", "1", &cluster.addresses[0].clone()]);
    again.fails_saying(2, &["never"]);
}
