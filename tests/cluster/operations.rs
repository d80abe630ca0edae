//! Every operation does what it says, from another process's point of view and from the node's own.

use std::time::{Duration, Instant};

use dogsled::Batch;
use dogsled::cluster::{Client, Error, ring};

use crate::support::{Cluster, eventually};

const PARTITIONS: u32 = 4;

async fn every_operation(client: &Client) {
    single_keys(client).await;
    many_keys(client).await;
    batches(client).await;
    counters(client).await;
    locks(client).await;
}

async fn single_keys(client: &Client) {
    let tree = client.tree("single");
    assert_eq!(tree.get("a").await.unwrap(), None);
    assert_eq!(tree.insert("a", "1").await.unwrap(), None);
    assert_eq!(tree.insert("a", "2").await.unwrap().unwrap(), "1");
    tree.put("b", "3").await.unwrap();
    assert_eq!(tree.get("b").await.unwrap().unwrap(), "3");
    assert!(tree.contains_key("a").await.unwrap() && !tree.contains_key("c").await.unwrap());
    assert_eq!(tree.remove("b").await.unwrap().unwrap(), "3");
    assert_eq!(tree.remove("b").await.unwrap(), None);

    let refused = tree.compare_and_swap("a", None::<&[u8]>, Some("9")).await.unwrap().unwrap_err();
    assert_eq!((refused.current.unwrap(), refused.proposed.unwrap()), ("2".into(), "9".into()));
    tree.compare_and_swap("a", Some("2"), Some("5")).await.unwrap().unwrap();
    tree.compare_and_swap("new", None::<&[u8]>, Some("x")).await.unwrap().unwrap();
    tree.compare_and_swap("new", Some("x"), None::<&str>).await.unwrap().unwrap();
    assert!(!tree.contains_key("new").await.unwrap());

    let double = |old: Option<&[u8]>| {
        let number: i64 = std::str::from_utf8(old?).ok()?.parse().ok()?;
        Some((number * 2).to_string())
    };
    assert_eq!(tree.update_and_fetch("a", double).await.unwrap().unwrap(), "10");
    assert_eq!(tree.fetch_and_update("a", double).await.unwrap().unwrap(), "10");
    assert_eq!(tree.get("a").await.unwrap().unwrap(), "20");

    let too_long = tree.insert(vec![0u8; 70_000], "1").await.unwrap_err();
    assert!(matches!(&too_long, Error::Invalid(what) if what.contains("70000")), "{too_long}");
}

async fn many_keys(client: &Client) {
    let tree = client.tree("many");
    let key = |i: u32| format!("key {i:05}");
    let writes = (0..2_000).map(|i| tree.put(key(i), vec![b'v'; (i % 200) as usize]));
    futures(writes).await;
    assert_eq!(tree.len().await.unwrap(), 2_000);
    assert!(!tree.is_empty().await.unwrap());
    assert_eq!(tree.first().await.unwrap().unwrap().0, key(0).as_bytes());
    assert_eq!(tree.last().await.unwrap().unwrap().0, key(1_999).as_bytes());

    let all = tree.iter().into_vec().await.unwrap();
    let expected: Vec<String> = (0..2_000).map(key).collect();
    assert!(all.iter().map(|(key, _)| &key[..]).eq(expected.iter().map(|key| key.as_bytes())));
    assert!(all.iter().enumerate().all(|(i, (_, value))| value.len() == i % 200));
    let mut backwards = tree.iter().rev().keys_only().into_vec().await.unwrap();
    backwards.reverse();
    assert!(backwards.iter().all(|(_, value)| value.is_empty()));
    assert!(backwards.iter().map(|(key, _)| key).eq(all.iter().map(|(key, _)| key)));
    let some = tree.range(key(10)..key(20)).into_vec().await.unwrap();
    assert_eq!(some[..], all[10..20]);
    let some = tree.range(key(10)..=key(20)).rev().into_vec().await.unwrap();
    assert!(some.iter().eq(all[10..=20].iter().rev()));
    assert_eq!(tree.scan_prefix("key 0012").into_vec().await.unwrap()[..], all[120..130]);
    assert!(tree.range("x".."a").next().await.is_none());

    let wanted = [key(7), "nothing".to_owned(), key(1_234), key(7)];
    let values = tree.get_many(&wanted).await.unwrap();
    assert_eq!(values, [Some(all[7].1.clone()), None, Some(all[1_234].1.clone()), Some(all[7].1.clone())]);
    assert_eq!(tree.get_many((0..2_000).map(key)).await.unwrap().iter().flatten().count(), 2_000);

    let stale = tree.stale();
    eventually("a replica has everything", || async { stale.len().await.unwrap().value == 2_000 }).await;
    assert_eq!(stale.get(key(7)).await.unwrap().value.unwrap(), all[7].1);
    assert_eq!(stale.iter().into_vec().await.unwrap(), all);

    assert!(client.tree_names().await.unwrap().contains(&"many".into()));
    tree.clear().await.unwrap();
    assert!(tree.is_empty().await.unwrap() && tree.first().await.unwrap().is_none());
    assert!(client.drop_tree("many").await.unwrap());
    assert!(!client.drop_tree("many").await.unwrap());
    assert!(!client.tree_names().await.unwrap().contains(&"many".into()));
}

async fn futures<T>(calls: impl Iterator<Item = impl Future<Output = dogsled::cluster::Result<T>>>) {
    for result in futures_util::future::join_all(calls).await {
        result.unwrap();
    }
}

async fn batches(client: &Client) {
    let tree = client.tree("batches");
    tree.put("{ann}:old", "1").await.unwrap();
    let mut batch = Batch::default();
    batch.insert("{ann}:role", "admin");
    batch.insert("{ann}:mail", "ann@example.org");
    batch.remove("{ann}:old");
    tree.apply_batch(batch).await.unwrap();
    assert_eq!(tree.len().await.unwrap(), 2);
    tree.apply_batch(Batch::default()).await.unwrap();

    let far = (0..).map(|i| format!("far {i}"));
    let mut far =
        far.filter(|key| ring::group_of(key.as_bytes(), PARTITIONS) != ring::group_of(b"ann", PARTITIONS));
    let mut batch = Batch::default();
    batch.insert("ann", "1");
    batch.insert(far.next().unwrap(), "1");
    let refused = tree.apply_batch(batch.clone()).await.unwrap_err();
    assert!(matches!(&refused, Error::Invalid(what) if what.contains("2 partitions")), "{refused}");
    assert_eq!(tree.len().await.unwrap(), 2);
    tree.apply_batch_by_partition(batch).await.unwrap();
    assert_eq!(tree.len().await.unwrap(), 4);
}

async fn counters(client: &Client) {
    let counter = client.counter("stock");
    assert_eq!(counter.get().await.unwrap(), 0);
    assert_eq!(counter.add(5).await.unwrap(), 5);
    assert_eq!(counter.add(-2).await.unwrap(), 3);
    assert_eq!(counter.add_within(-3, 0..=9).await.unwrap(), Ok(0));
    assert_eq!(counter.add_within(-1, 0..=9).await.unwrap().unwrap_err().current, 0);
    assert_eq!(counter.set(i64::MAX).await.unwrap(), 0);
    assert!(matches!(counter.add(1).await, Err(Error::Invalid(_))));
    assert_eq!(counter.reset().await.unwrap(), i64::MAX);
    assert_eq!(counter.get().await.unwrap(), 0);
    #[expect(clippy::reversed_empty_ranges, reason = "that is the mistake")]
    let empty = counter.add_within(1, 3..=2).await;
    assert!(matches!(empty, Err(Error::Invalid(_))), "{empty:?}");
}

async fn locks(client: &Client) {
    let lease = Duration::from_secs(30);
    let (ann, ben) = (client.lock("job").owner("ann"), client.lock("job").owner("ben"));
    let guard = ann.try_acquire(lease).await.unwrap().unwrap();
    assert!(ben.try_acquire(lease).await.unwrap().is_none());
    assert!(ann.try_acquire(lease).await.unwrap().is_none(), "re-entry is refused");
    assert_eq!(ben.holder().await.unwrap().unwrap().owner, "ann");
    assert!(guard.remaining() > Duration::from_secs(20));
    let token = guard.token();
    guard.keep();
    let guard = ann.resume().await.unwrap().unwrap();
    assert_eq!(guard.token(), token);
    guard.renew(lease).await.unwrap().unwrap();
    assert!(ben.acquire_timeout(lease, Duration::from_millis(50)).await.unwrap().is_none());
    guard.release().await.unwrap().unwrap();

    // Dropping gives it back as well, and whoever waits gets it.
    drop(ann.acquire(lease).await.unwrap());
    let guard = ben.acquire(lease).await.unwrap();
    assert!(guard.token() > token);
    guard.release().await.unwrap().unwrap();

    // A holder that is gone: nobody writes, so the log's time stands still until it is asked for.
    ann.try_acquire(Duration::from_millis(300)).await.unwrap().unwrap().keep();
    let began = Instant::now();
    let guard = ben.acquire(lease).await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    guard.release().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_works_over_the_network() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(2).await;
    every_operation(&client).await;

    let members = client.status().await.unwrap();
    assert_eq!(members.len(), 3);
    for member in members {
        let status = member.status.unwrap();
        assert_eq!((status.node, status.groups.len()), (member.node, PARTITIONS as usize + 1));
    }
    client.close().await;
    assert_eq!(client.tree("a").get("b").await, Err(Error::Closed));
    assert_eq!(client.counter("a").add(1).await, Err(Error::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_operation_works_by_the_short_way() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.nodes[&3].client();
    every_operation(&client).await;
    cluster.nodes[&3].shutdown().await.unwrap();
    assert_eq!(client.tree("a").get("b").await, Err(Error::Closed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_renewed_while_used_and_closed_when_idle_or_dropped() {
    let cluster = Cluster::made(1, 1).await;
    let mut options = cluster.options();
    options.session_lease = Duration::from_secs(4);
    let client = Client::connect([cluster.address(1)], options.clone()).await.unwrap();
    let replica = cluster.nodes[&1].replication().replica(1).unwrap();
    let expiry = || match replica.read(&dogsled::storage::GroupRead::EarliestSessionExpiry).unwrap() {
        dogsled::storage::GroupReadReply::Time(time) => time,
        other => panic!("{other:?}"),
    };
    for i in 1..=12 {
        assert_eq!(client.counter("c").add(1).await.unwrap(), i);
        // Also of the last, for longer than the lease.
        assert!(expiry().is_some());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    eventually("an idle session is closed", || std::future::ready(expiry().is_none())).await;
    drop(client);
    options.session_lease = Duration::from_secs(60);
    let client = Client::connect([cluster.address(1)], options).await.unwrap();
    assert_eq!(client.counter("c").add(1).await.unwrap(), 13);
    assert!(expiry().is_some());
    drop(client);
    let dropped = Instant::now();
    eventually("a dropped client's session is closed", || std::future::ready(expiry().is_none())).await;
    assert!(dropped.elapsed() < Duration::from_secs(20), "it was not the lease that ended it");
}
