//! Who answers a read is the caller's choice, and each choice keeps what it promises.

use std::time::{Duration, Instant};

use dogsled::cluster::{Client, ReadFrom};

use crate::support::{Cluster, eventually};

const KEYS: u64 = 40;

async fn zoned() -> Cluster {
    let mut cluster = Cluster::new();
    for node in 1..=3 {
        let mut config = cluster.config(node);
        config.replication.zone = format!("zone {node}");
        cluster.start_with(node, config).await;
    }
    let members = cluster.nodes.values().map(|node| (node.id(), node.addresses().to_vec())).collect();
    cluster.nodes[&1].create_cluster(4, members).await.unwrap();
    cluster
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_answers_has_seen_every_write_that_had_returned() {
    let cluster = zoned().await;
    let mut options = cluster.options();
    options.zone = "zone 3".to_owned();
    let clients = [Client::connect([cluster.address(1)], options).await.unwrap(), cluster.nodes[&2].client()];
    for (number, client) in clients.iter().enumerate() {
        let tree = client.tree("reads");
        let key = |i: u64| format!("{number} {i:03}");
        for from in [ReadFrom::Leader, ReadFrom::Any, ReadFrom::Nearest, ReadFrom::AtMostOld(Duration::ZERO)]
        {
            let read = tree.read_from(from);
            for i in 0..KEYS {
                let value = format!("{from:?} {i}");
                tree.put(key(i), &*value).await.unwrap();
                assert_eq!(read.get(key(i)).await.unwrap().as_deref(), Some(value.as_bytes()), "{from:?}");
            }
            assert_eq!(read.len().await.unwrap(), KEYS * (number as u64 + 1), "{from:?}");
            let all = read.scan_prefix(format!("{number} ")).into_vec().await.unwrap();
            let expected: Vec<_> = (0..KEYS).map(|i| (key(i), format!("{from:?} {i}"))).collect();
            let same = all.iter().zip(&expected).all(|(found, (key, value))| {
                (&found.0[..], &found.1[..]) == (key.as_bytes(), value.as_bytes())
            });
            assert!(same && all.len() == expected.len(), "{from:?}: {all:?}");
            let keys: Vec<String> = (0..KEYS).map(key).collect();
            assert!(read.get_many(&keys).await.unwrap().iter().all(Option::is_some), "{from:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_nearest_replica_answers_alone_what_may_be_old_and_nothing_else() {
    let mut cluster = zoned().await;
    let mut options = cluster.options();
    options.zone = "zone 3".to_owned();
    options.deadline = Duration::from_secs(3);
    let client = Client::connect([cluster.address(1)], options).await.unwrap();
    let (tree, began) = (client.tree("reads"), Instant::now());
    tree.put("a", "1").await.unwrap();
    let old = |seconds| tree.read_from(ReadFrom::AtMostOld(Duration::from_secs(seconds)));
    // Confirms the replica that answers, which is that of node 3.
    old(0).get("a").await.unwrap();
    cluster.halt(1).await;
    cluster.halt(2).await;
    assert_eq!(old(600).get("a").await.unwrap().unwrap(), "1", "node 3 knows that it was level");
    eventually("that is too long ago", || std::future::ready(began.elapsed() > Duration::from_secs(3))).await;
    for refused in [ReadFrom::AtMostOld(Duration::from_secs(1)), ReadFrom::Nearest, ReadFrom::Any] {
        let error = tree.read_from(refused).get("a").await.unwrap_err();
        assert!(error.is_definite(), "{refused:?}: {error}");
    }
    assert_eq!(tree.read_from(ReadFrom::Stale).get("a").await.unwrap().unwrap(), "1");
}
