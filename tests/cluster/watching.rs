//! Who follows keys is told of every change, or that something is missing.

use std::collections::BTreeMap;
use std::time::Duration;

use dogsled::IVec;
use dogsled::cluster::{Client, Event, Subscriber, Tree, WatchPosition, ring};

use crate::support::{Cluster, eventually};

const PARTITIONS: u32 = 4;

async fn next(subscriber: &mut Subscriber) -> Event {
    let event = tokio::time::timeout(Duration::from_secs(20), subscriber.next()).await;
    event.expect("an event in time").expect("no end").expect("no error")
}

/// A copy of a tree that is kept by following it.
#[derive(Default)]
struct Copy {
    keys: BTreeMap<IVec, IVec>,
    lost: usize,
}

impl Copy {
    async fn apply(&mut self, tree: &Tree, event: Event) {
        match event {
            Event::Insert { key, value } => drop(self.keys.insert(key, value)),
            Event::Remove { key } => drop(self.keys.remove(&key)),
            Event::Clear { part } => self.keys.retain(|key, _| !part.contains(key)),
            Event::Lost { part, .. } => {
                self.lost += 1;
                let now = tree.scan_prefix("k").into_vec().await.unwrap();
                self.keys.retain(|key, _| !part.contains(key));
                self.keys.extend(now.into_iter().filter(|(key, _)| part.contains(key)));
            }
            other => panic!("{other:?}"),
        }
    }

    async fn until_some(&mut self, tree: &Tree, subscriber: &mut Subscriber) {
        let event = next(subscriber).await;
        self.apply(tree, event).await;
    }

    async fn until_level(&mut self, tree: &Tree, subscriber: &mut Subscriber) {
        let truth: BTreeMap<_, _> = tree.scan_prefix("k").into_vec().await.unwrap().into_iter().collect();
        while self.keys != truth {
            let event = next(subscriber).await;
            self.apply(tree, event).await;
        }
    }
}

async fn tells_everything(client: &Client, writer: &Client) {
    let tree = client.tree("followed");
    tree.put("k", "before").await.unwrap();
    for i in 0..PARTITIONS {
        // So that every partition has the tree.
        let other = (0..)
            .map(|n| format!("other {i} {n}"))
            .find(|key| ring::group_of(key.as_bytes(), PARTITIONS) == i + 1);
        tree.put(other.unwrap(), "").await.unwrap();
    }
    // A replica that has not heard of the tree would say later that something may be missing.
    assert_eq!(tree.len().await.unwrap(), 1 + u64::from(PARTITIONS));
    let mut subscriber = tree.watch_prefix("k").await.unwrap();
    let mut copy = Copy::default();
    let mut told: BTreeMap<IVec, Vec<IVec>> = BTreeMap::new();
    let written = writer.tree("followed");
    for round in 0..50 {
        for key in 0..10 {
            written.put(format!("k{key}"), round.to_string()).await.unwrap();
        }
        written.put("other", "not followed").await.unwrap();
    }
    for _ in 0..500 {
        let event = next(&mut subscriber).await;
        let Event::Insert { key, value } = event.clone() else { panic!("{event:?}") };
        told.entry(key).or_default().push(value);
        copy.apply(&tree, event).await;
    }
    let rounds: Vec<IVec> = (0..50).map(|round| IVec::from(round.to_string().as_str())).collect();
    assert_eq!(told.len(), 10);
    assert!(told.values().all(|values| *values == rounds), "every value of a key, in order: {told:?}");

    written.remove("k3").await.unwrap();
    assert_eq!(next(&mut subscriber).await, Event::Remove { key: "k3".into() });
    written.clear().await.unwrap();
    let mut cleared = Vec::new();
    while cleared.len() < PARTITIONS as usize {
        match next(&mut subscriber).await {
            Event::Clear { part } => cleared.push(part),
            other => panic!("{other:?}"),
        }
    }
    for key in ["a", "b", "c", "d"] {
        assert_eq!(cleared.iter().filter(|part| part.contains(key)).count(), 1);
    }
    assert!(subscriber.try_next().is_none(), "nothing of what was before or beside it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_under_the_prefix_is_told_in_order() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await;
    tells_everything(&client, &cluster.client(2).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_told_to_the_node_s_own_client() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let own = cluster.nodes[&3].client();
    tells_everything(&own, &cluster.client(1).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_that_does_not_exist_yet_can_be_followed() {
    let cluster = Cluster::made(1, 2).await;
    let client = cluster.client(1).await;
    let tree = client.tree("later");
    let mut subscriber = tree.watch_prefix("k").await.unwrap();
    let mut copy = Copy::default();
    for i in 0..20 {
        tree.put(format!("k{i}"), "1").await.unwrap();
    }
    copy.until_level(&tree, &mut subscriber).await;
}

/// What is told of each key.
type Histories = BTreeMap<IVec, Vec<IVec>>;

fn value(text: impl ToString) -> IVec {
    IVec::from(text.to_string().as_str())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_die_and_who_follows_is_told_everything_once() {
    let mut cluster = Cluster::made(3, 2).await;
    let client = cluster.client(1).await;
    let tree = client.tree("followed");
    tree.put("k", "0").await.unwrap();
    let mut subscriber = tree.watch_prefix("k").await.unwrap();
    // These share their streams, and stay.
    let mut others = [tree.watch_prefix("k").await.unwrap(), tree.watch_prefix("k").await.unwrap()];
    let (mut told, mut written) = (Histories::new(), Histories::new());
    for round in 0..3 {
        let leader = cluster.leader(1).await;
        cluster.halt(leader).await;
        for i in 0..60 {
            let (key, value) = (format!("k{}", i % 7), value(format!("{round} {i}")));
            tree.put(&key, value.clone()).await.unwrap();
            written.entry(IVec::from(key.as_str())).or_default().push(value);
            if i == 30 {
                cluster.start(leader).await;
            }
        }
        // Another one goes on where this one was, in the middle of things.
        for _ in 0..30 {
            let Event::Insert { key, value } = next(&mut subscriber).await else { panic!("a gap") };
            told.entry(key).or_default().push(value);
        }
        let position = subscriber.position().to_bytes();
        subscriber =
            tree.watch_prefix_from("k", &WatchPosition::from_bytes(&position).unwrap()).await.unwrap();
    }
    while told != written {
        let Event::Insert { key, value } = next(&mut subscriber).await else { panic!("a gap") };
        let (told, written) = (told.entry(key.clone()).or_default(), &written[&key]);
        told.push(value);
        assert_eq!(told[..], written[..told.len()], "what was told of {key:?}");
    }
    for other in &mut others {
        let mut told = Histories::new();
        while told != written {
            let Event::Insert { key, value } = next(other).await else { panic!("a gap") };
            told.entry(key.clone()).or_default().push(value);
            assert!(written[&key].starts_with(&told[&key]), "what was told of {key:?}");
        }
    }
    let quick = client.with_deadline(Duration::from_millis(200));
    drop(subscriber);
    eventually("the cluster goes on", || async { quick.tree("followed").put("k", "1").await.is_ok() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_back_too_late_hears_it_and_then_misses_nothing() {
    let cluster = Cluster::made_with(3, 2, |config| config.replication.watch_bytes = 100 << 10).await;
    let client = cluster.client(1).await;
    let tree = client.tree("followed");
    tree.put("k", "0").await.unwrap();
    let mut subscriber = tree.watch_prefix("k").await.unwrap();
    let mut copy = Copy::default();
    tree.put("k0", "0").await.unwrap();
    copy.until_some(&tree, &mut subscriber).await;
    let position = subscriber.position().clone();
    drop(subscriber);
    for i in 0..40 {
        tree.put(format!("k{i}"), "x".repeat(10_000)).await.unwrap();
    }
    // The same by the name that the embedded database has for it.
    let mut subscriber = tree.watch_prefix_after("k", &position).await.unwrap();
    copy.until_level(&tree, &mut subscriber).await;
    assert_eq!(copy.lost, 2, "in both partitions more has happened than is kept");
    tree.put("k", "last").await.unwrap();
    copy.until_level(&tree, &mut subscriber).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_by_a_node_in_this_process_is_told_when_it_stops() {
    let mut cluster = Cluster::made(3, 1).await;
    let leader = cluster.leader(1).await;
    // A node's own client cannot go elsewhere.
    let own = cluster.nodes[&leader].client();
    let mut subscriber = own.tree("t").watch_prefix("").await.unwrap();
    for node in (1..=3).filter(|node| *node != leader) {
        cluster.halt(node).await;
    }
    cluster.halt(leader).await;
    loop {
        match tokio::time::timeout(Duration::from_secs(20), subscriber.next()).await.expect("an end") {
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                assert_eq!(error, dogsled::cluster::Error::Closed);
                assert!(subscriber.next().await.is_none());
                break;
            }
            None => panic!("the reason comes before the end"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nodes_own_client_follows_partitions_that_are_elsewhere_too() {
    let mut cluster = Cluster::made(4, PARTITIONS).await;
    let missing = |cluster: &Cluster, node: u64| {
        let has = cluster.nodes[&node].replication().clone();
        (1..=PARTITIONS).filter(move |group| !has.hosts(*group)).count()
    };
    eventually("the replicas are spread", || {
        std::future::ready((1..=4).all(|node| missing(&cluster, node) > 0))
    })
    .await;
    let writer = cluster.client(1).await;
    let mut followers: Vec<(u64, Tree, Subscriber, Copy)> = Vec::new();
    for node in 1..=4 {
        let tree = cluster.nodes[&node].client().tree("followed");
        let subscriber = tree.watch_prefix("k").await.unwrap();
        followers.push((node, tree, subscriber, Copy::default()));
    }
    let tree = writer.tree("followed");
    for i in 0..100 {
        tree.put(format!("k {i}"), "1").await.unwrap();
    }
    for (_, tree, subscriber, copy) in &mut followers {
        copy.until_level(tree, subscriber).await;
        assert_eq!(copy.keys.len(), 100);
    }
    // And when whoever it is that tells it is gone, another one does.
    cluster.halt(4).await;
    followers.retain(|(node, ..)| *node != 4);
    for i in 0..100 {
        tree.put(format!("k {i}"), "2").await.unwrap();
    }
    for (_, tree, subscriber, copy) in &mut followers {
        copy.until_level(tree, subscriber).await;
    }
}

/// MiB of this process.
fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or(0) / 256
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_that_come_and_go_leave_nothing_behind_on_the_node() {
    const ROUNDS: usize = 6;
    const WATCHERS: usize = 800;
    let cluster = Cluster::made(1, 2).await;
    let node = cluster.nodes[&1].replication().clone();
    let watchers = || (1..=2).map(|group| node.replica(group).unwrap().engine().watchers()).sum::<usize>();
    let writer = cluster.client(1).await;
    let tree = writer.tree("followed");
    // In both partitions: a tree that is not there is not followed yet.
    for number in 0..32 {
        tree.put(format!("{{{number}}}"), "0").await.unwrap();
    }
    for round in 0..ROUNDS {
        let client = cluster.client(1).await;
        let own = cluster.nodes[&1].client();
        let (far, near) = (&client.tree("followed"), &own.tree("followed"));
        let begun = (0..WATCHERS).map(|number| async move {
            // Of one partition each.
            let prefix = format!("{{{number}}}");
            if number % 4 == 0 { near.watch_prefix(prefix).await } else { far.watch_prefix(prefix).await }
        });
        let mut live = futures_util::future::try_join_all(begun).await.unwrap();
        // Some are given up before they have begun.
        for number in 0..50 {
            let begin = far.watch_prefix(format!("{{early {number}}}"));
            let _ = tokio::time::timeout(Duration::from_micros(100 * number), begin).await;
        }
        eventually("all follow", || std::future::ready(watchers() >= WATCHERS)).await;
        for number in 0..WATCHERS {
            tree.put(format!("{{{number}}}"), round.to_string()).await.unwrap();
        }
        // Some have heard of it, and some have not when they go.
        for subscriber in live.iter_mut().step_by(2) {
            assert!(matches!(next(subscriber).await, Event::Insert { .. }));
        }
        match round % 3 {
            0 => drop(live),
            // The client is gone first.
            1 => {
                client.close().await;
                drop(live);
            }
            _ => {
                live.truncate(WATCHERS / 2);
                eventually("half of them follow", || std::future::ready(watchers() <= WATCHERS / 2)).await;
                assert_eq!(watchers(), WATCHERS / 2);
                drop(live);
            }
        }
        eventually("nobody follows any more", || std::future::ready(watchers() == 0)).await;
        println!("after round {round}: {} MiB", resident());
    }
}
