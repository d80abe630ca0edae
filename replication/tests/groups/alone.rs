//! A node that has its groups alone answers reads within the call, and stops to as soon as others have a vote.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Cluster, addresses, get, in_session, insert, open_session};
use dogsled_replication::{Consistency, Node, NodeConfig, NodeId};
use dogsled_storage::group::{GroupRead, GroupReadReply};

const GROUP: u32 = 1;

fn quick(config: &mut NodeConfig) {
    config.maintenance_every = Duration::from_millis(50);
}

fn number(reply: GroupReadReply) -> u64 {
    let GroupReadReply::Value(Some(found)) = reply else { panic!("{reply:?}") };
    std::str::from_utf8(&found.value).unwrap().parse().unwrap()
}

/// Reads at once what there is, and sees that it is no older than what was acknowledged before. How often it could.
fn look(node: &Node, acknowledged: &AtomicU64) -> u64 {
    let read: GroupRead = get("n");
    let mut answered = 0;
    for _ in 0..100 {
        let before = acknowledged.load(Ordering::SeqCst);
        if let Some((reply, position)) = node.read_at_once(GROUP, &read) {
            let found = number(reply);
            assert!(
                found >= before,
                "{found} was read at position {position}, after {before} was acknowledged"
            );
            answered += 1;
        }
    }
    answered
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_answers_at_once_while_it_is_alone_and_never_with_something_old() {
    let mut cluster = Cluster::made(1, 1, quick).await;
    cluster.put(GROUP, "n", "0").await;
    cluster.submit(GROUP, &open_session(9, 600_000)).await.result.unwrap();
    let alone = cluster.nodes[&1].clone();
    let acknowledged = Arc::new(AtomicU64::new(0));
    // The first read asks, and finds out.
    alone.read(GROUP, &get("n"), Consistency::Linearizable).await.unwrap();
    assert_eq!(look(&alone, &acknowledged), 100);

    for node in [2, 3] {
        cluster.start(node).await;
        cluster.nodes[&node].join(vec![(NodeId(1), addresses(1))]).await.unwrap();
    }
    // Somebody counts up through whichever node does it. What was given up may be done later: by the session it is
    // done once, and not after what follows it.
    let counting = {
        let (nodes, acknowledged) = (cluster.nodes.clone(), Arc::clone(&acknowledged));
        tokio::spawn(async move {
            let mut n = 1;
            loop {
                for node in nodes.values() {
                    let command = in_session(9, n, insert("n", &n.to_string()));
                    let submitted =
                        tokio::time::timeout(Duration::from_millis(300), node.submit(GROUP, &command));
                    if submitted.await.is_ok_and(|outcome| outcome.is_ok_and(|reply| reply.result.is_ok())) {
                        acknowledged.fetch_max(n, Ordering::SeqCst);
                        n += 1;
                    }
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
    };
    let until = Instant::now() + Duration::from_secs(30);
    let has_others = || alone.map().replicas_of(GROUP).len() == 3;
    while !has_others() || look(&alone, &acknowledged) > 0 {
        assert!(Instant::now() < until, "node 1 is not known to be alone no more");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;

    // The others go on without it; it still believes for a while that it leads.
    let before = acknowledged.load(Ordering::SeqCst);
    cluster.network.isolate(NodeId(1));
    let until = Instant::now() + Duration::from_secs(120);
    while acknowledged.load(Ordering::SeqCst) < before + 50 {
        assert!(Instant::now() < until, "the others do not go on");
        assert_eq!(look(&alone, &acknowledged), 0, "it cannot know what the others have done");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cluster.network.heal();

    // Alone again, it knows that again.
    for node in [2, 3] {
        cluster.remove_member(1, node).await.unwrap();
    }
    let until = Instant::now() + Duration::from_secs(30);
    loop {
        let read = alone.read(GROUP, &get("n"), Consistency::Linearizable).await;
        if read.is_ok() && look(&alone, &acknowledged) == 100 {
            break;
        }
        assert!(Instant::now() < until, "node 1 does not know that it is alone");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    counting.abort();
}
