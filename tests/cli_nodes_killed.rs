//! Three processes of `dogsled serve`, each killed with `SIGKILL` in turn while clients write: what was
//! acknowledged is there afterwards, and what was counted was counted once.
#![cfg(feature = "cli")]

mod cli_support;

use std::collections::BTreeMap;

use cli_support::Sandbox;
use cli_support::load::{Load, eventually, is_whole};
use cli_support::nodes::{Served, free_address};
use dogsled::cluster::{CertificateFiles, Client, ClientOptions, NodeId};

const WRITERS: usize = 8;

struct Cluster {
    sandbox: Sandbox,
    addresses: BTreeMap<u64, String>,
    nodes: BTreeMap<u64, Served>,
}

impl Cluster {
    fn start() -> Cluster {
        let sandbox = Sandbox::new();
        sandbox.certificates(&[1, 2, 3]);
        let addresses = (1..=3).map(|node| (node, free_address())).collect();
        let mut cluster = Cluster { sandbox, addresses, nodes: BTreeMap::new() };
        for node in [2, 3, 1] {
            let served = cluster.launch(node, if node == 1 { &["--init"] } else { &[] });
            cluster.nodes.insert(node, served);
        }
        for served in cluster.nodes.values_mut() {
            served.says("\"serving\"");
        }
        cluster
    }

    fn launch(&self, node: u64, more: &[&str]) -> Served {
        let members: Vec<String> =
            self.addresses.iter().map(|(node, address)| format!("{node}={address}")).collect();
        let (id, data) = (node.to_string(), format!("data-{node}"));
        let members = members.join(",");
        let mut arguments = vec!["--certs", "certs", "--node", &id, "--data", &data];
        arguments.extend(["--listen", &self.addresses[&node], "--members", &members]);
        arguments.extend(more);
        self.sandbox.serve(&arguments)
    }

    fn options(&self) -> ClientOptions {
        let files = CertificateFiles::of_client(&self.sandbox.path("certs"), "admin");
        ClientOptions::from_files(&files).expect("certificates of a client")
    }
}

async fn busiest(client: &Client) -> u64 {
    let leaders = client.map().await.expect("a node answers").leaders;
    let led = |node: &u64| leaders.iter().filter(|leader| **leader == Some(NodeId(*node))).count();
    (1..=3).max_by_key(led).expect("there are three")
}

#[test]
fn killing_one_leader_after_another_loses_nothing_that_was_acknowledged() {
    let mut cluster = Cluster::start();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let client =
            Client::connect(cluster.addresses.values().cloned(), cluster.options()).await.expect("a client");
        let load = Load::start(&client, "killed", WRITERS);
        for _ in 0..3 {
            eventually("all three are level", || is_whole(&client, 100)).await;
            load.goes_on(100).await;
            let victim = busiest(&client).await;
            cluster.nodes.remove(&victim).expect("it runs").kill_nine();
            load.goes_on(100).await;
            cluster.nodes.insert(victim, cluster.launch(victim, &[]));
        }
        eventually("all three are level", || is_whole(&client, 100)).await;
        let all = load.stop().await;

        // A client of its own: it remembers nothing.
        let reader =
            Client::connect(cluster.addresses.values().cloned(), cluster.options()).await.expect("a client");
        all.check(&reader).await;
        assert!(all.keys.len() > 500, "only {} keys were written", all.keys.len());
        reader.close().await;
        client.close().await;
    });
    for (node, served) in std::mem::take(&mut cluster.nodes) {
        assert_eq!(served.terminate(), 0, "node {node}");
    }
}

#[test]
fn a_fourth_node_joins_and_the_first_leaves() {
    let cluster = Cluster::start();
    let sandbox = &cluster.sandbox;
    let connect = cluster.addresses.values().cloned().collect::<Vec<_>>().join(",");
    let run = |arguments: &[&str]| {
        let mut all = vec!["--connect", &connect, "--certs", "certs"];
        all.extend(arguments);
        sandbox.run_bare(&all)
    };
    run(&["put", "key", "value"]).ok();
    sandbox.run_bare(&["certs", "node", "4"]).ok();
    let fourth = free_address();
    let arguments =
        ["--certs", "certs", "--node", "4", "--data", "data-4", "--listen", &fourth, "--join", &connect];
    let joined = sandbox.serving(&arguments);
    assert_eq!(run(&["member", "list"]).ok().lines().count(), 4);
    assert_eq!(
        run(&["member", "remove", "1"]).ok(),
        "node 1 is no member any more; its id must never be used again\n"
    );
    let listed = run(&["member", "list"]).ok();
    assert!(listed.contains(&format!("4\t{fourth}\tactive")) && !listed.contains("1\t127"), "{listed}");
    let alone = ["--connect", &fourth, "--certs", "certs", "get", "key"];
    assert_eq!(sandbox.run_bare(&alone).ok(), "value\n");
    // With the same option it goes on as the member that it is.
    assert_eq!(joined.terminate(), 0);
    let joined = sandbox.serving(&arguments);
    assert_eq!(sandbox.run_bare(&alone).ok(), "value\n");
    assert_eq!(joined.terminate(), 0);
}
