//! A quorum is lost for ever, and the cluster goes on without what only those had who are gone: whoever has seen that is
//! told, and keeps none of it.

use std::time::{Duration, Instant};

use dogsled::cluster::{Event, NodeId, Subscriber, WatchPosition};

use crate::support::{Cluster, eventually};

async fn until_lost(subscriber: &mut Subscriber) {
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), subscriber.next()).await;
        if let Event::Lost { .. } = event.expect("in time").expect("no end").expect("no error") {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_seen_what_is_lost_is_told_and_keeps_none_of_it() {
    let mut cluster = Cluster::made(3, 1).await;
    let client = cluster.client(2).await;
    let tree = client.tree("t");
    tree.put("k", "before").await.unwrap();
    cluster.halt(1).await;

    // Only nodes 2 and 3 have this, and node 1 will reach the same positions again.
    for number in 0..50 {
        tree.put("other", format!("{number}")).await.unwrap();
    }
    tree.put("k", "lost").await.unwrap();
    let cache = tree.near_cache("k", 1 << 20).await.unwrap();
    assert_eq!(cache.get("k").await.unwrap().as_deref(), Some(&b"lost"[..]));
    let mut watcher = tree.watch_key_after("k", 0).await.unwrap();
    assert_eq!(watcher.next().await.unwrap().unwrap().value.as_deref(), Some(&b"lost"[..]));
    let mut subscriber = tree.watch_prefix("").await.unwrap();
    let position = subscriber.position().to_bytes();

    cluster.halt(2).await;
    cluster.halt(3).await;
    cluster.start(1).await;
    let address = [cluster.address(1)];
    let others = dogsled::cluster::Client::connect(address, cluster.options()).await.unwrap();
    let began = Instant::now();
    while let Err(error) = others.recover(&[NodeId(2), NodeId(3)], true).await {
        assert!(began.elapsed() < Duration::from_secs(30), "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // Not as much as is lost, so that what comes now has positions that were told before.
    let again = others.tree("t");
    again.put("k", "after").await.unwrap();

    eventually("the near cache has what is there", || async {
        cache.get("k").await.is_ok_and(|found| found.as_deref() == Some(&b"after"[..]))
    })
    .await;
    let told = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await;
    let told = told.expect("in time").unwrap().unwrap();
    assert_eq!((told.value.as_deref(), told.is_after_gap), (Some(&b"after"[..]), true));
    until_lost(&mut subscriber).await;
    // Also one that was kept elsewhere.
    let position = WatchPosition::from_bytes(&position).unwrap();
    until_lost(&mut again.watch_prefix_from("", &position).await.unwrap()).await;

    // From then on nothing is missing.
    let position = subscriber.position().clone();
    again.put("k", "later").await.unwrap();
    let mut subscriber = again.watch_prefix_from("k", &position).await.unwrap();
    loop {
        let event = tokio::time::timeout(Duration::from_secs(20), subscriber.next()).await;
        match event.expect("in time").expect("no end").expect("no error") {
            Event::Insert { value, .. } if value == b"later" => break,
            Event::Insert { .. } => {}
            other => panic!("{other:?}"),
        }
    }
    assert!(watcher.next().await.unwrap().unwrap().value.is_some_and(|value| value == b"later"));
}
