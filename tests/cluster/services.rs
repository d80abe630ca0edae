//! What stands on sessions, versions and watches: locks of sessions, keys with versions, the registry, and
//! the near cache.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dogsled::IVec;
use dogsled::cluster::{Client, Error, Instance, NearCache, Pick, Tree};

use crate::support::{Cluster, eventually};

/// Renewed at a third of it, so that a machine may stand still for some seconds.
const LEASE: Duration = Duration::from_secs(7);

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(30), future).await.expect("it takes too long")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_of_a_session_live_and_die_with_it_in_the_queue_too() {
    let cluster = Cluster::made(3, 2).await;
    let (ann, ben) = (cluster.client(1).await, cluster.client(2).await);
    let (of_ann, of_ben, of_cat) = (ann.session(LEASE), ben.session(LEASE), ben.session(LEASE));
    let lock = |client: &Client| client.lock("{door}");
    let guard = lock(&ann).of_session(&of_ann).acquire().await.unwrap();
    let waits = tokio::spawn({
        let lock = lock(&ben).of_session(&of_ben);
        async move { lock.acquire().await }
    });
    let gives_up = tokio::spawn({
        let lock = lock(&ben).of_session(&of_cat);
        async move { lock.acquire().await }
    });
    // For longer than the lease, because the session is renewed.
    tokio::time::sleep(LEASE * 3 / 2).await;
    assert!(guard.is_valid() && !waits.is_finished() && !gives_up.is_finished());
    assert!(lock(&ben).try_acquire(LEASE).await.unwrap().is_none());
    ann.tree("t").under(&guard).insert("{door}:1", "ann").await.unwrap();
    of_cat.close().await.unwrap();
    assert!(matches!(soon(gives_up).await.unwrap(), Err(Error::Invalid(_))));
    of_ann.close().await.unwrap();
    soon(guard.lost()).await;
    assert!(!guard.is_valid());
    let next = soon(waits).await.unwrap().unwrap();
    assert!(next.token() > guard.token());
    let refused = ann.tree("t").under(&guard).insert("{door}:1", "ann").await;
    assert!(matches!(refused, Err(Error::LockNotHeld { .. })), "{refused:?}");
    let refused = ann.tree("t").under(&guard).put_if_version("{door}:2", "ann", 0).await;
    assert!(matches!(refused, Err(Error::LockNotHeld { .. })), "{refused:?}");
    ben.tree("t").under(&next).insert("{door}:1", "ben").await.unwrap();
    assert!(next.release().await.unwrap().is_ok());
    assert!(matches!(lock(&ann).of_session(&of_ann).try_acquire().await, Err(Error::Invalid(_))));

    // One whose client is gone without a word: its runtime has ended.
    let (address, options) = (cluster.address(2), cluster.options());
    let (lease, delay) = (Duration::from_secs(4), Duration::from_millis(700));
    let began = Instant::now();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let client = Client::connect([address], options).await.unwrap();
            let lock = client.lock("{door}").delay(delay);
            std::mem::forget(lock.of_session(&client.session(lease)).acquire().await.unwrap());
            std::mem::forget(client);
        });
        runtime.shutdown_background();
    })
    .join()
    .unwrap();
    let last = soon(lock(&ann).acquire(LEASE)).await.unwrap();
    // The session was opened later than `began`: its lease was not over before, and then comes the delay.
    assert!(began.elapsed() > lease - lease / 32 + delay, "{:?}", began.elapsed());
    drop(last);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_overwrites_a_version_that_was_not_seen_and_a_watcher_hears_of_each() {
    let mut cluster = Cluster::made(3, 2).await;
    let tree = cluster.client(1).await.tree("settings");
    let first = tree.put_if_version("{count}", "0", 0).await.unwrap().unwrap();
    let conflict = tree.put_if_version("{count}", "x", 0).await.unwrap().unwrap_err();
    assert_eq!(conflict.current.map(|current| (current.value, current.version)), Some(("0".into(), first)));
    let mut watcher = tree.watch_key_after("{count}", first).await.unwrap();
    let mut early = tree.watch_key_after("{count}", 0).await.unwrap();
    assert_eq!(soon(early.next()).await.unwrap().unwrap().version, first, "what is there");
    // Others' keys with the same beginning are nobody's business.
    tree.put("{count}er", "x").await.unwrap();
    let mut writers = Vec::new();
    for node in [2, 3] {
        let tree = cluster.client(node).await.tree("settings");
        writers.push(tokio::spawn(async move {
            let mut done = 0;
            while done < 40 {
                let found = tree.get_versioned("{count}").await.unwrap().unwrap();
                let number: u32 = std::str::from_utf8(&found.value).unwrap().parse().unwrap();
                let next = (number + 1).to_string();
                let written = tree.put_if_version("{count}", next.as_str(), found.version).await.unwrap();
                done += u32::from(written.is_ok());
            }
        }));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let leader = cluster.leader(dogsled::cluster::ring::group_of(b"{count}", 2)).await;
    cluster.halt(leader).await;
    for writer in writers {
        soon(writer).await.unwrap();
    }
    cluster.start(leader).await;
    let found = tree.get_versioned("{count}").await.unwrap().unwrap();
    assert_eq!(found.value, "80", "each added one");
    let mut version = first;
    for number in 1..=80u32 {
        let change = soon(watcher.next()).await.unwrap().unwrap();
        assert_eq!(change.value, Some(IVec::from(number.to_string().as_str())));
        assert!(change.version > version && !change.is_after_gap);
        version = change.version;
    }
    assert_eq!(version, found.version);
    let gone = tree.remove_if_version("{count}", version).await.unwrap().unwrap();
    let change = soon(watcher.next()).await.unwrap().unwrap();
    assert_eq!((change.value, change.version), (None, gone));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_follows_a_key_from_too_long_ago_gets_what_is_there() {
    let cluster = Cluster::made_with(3, 1, |config| config.replication.watch_bytes = 20 << 10).await;
    let tree = cluster.client(1).await.tree("settings");
    let first = tree.put_if_version("k", "old", 0).await.unwrap().unwrap();
    for _ in 0..10 {
        tree.put("other", "x".repeat(10_000)).await.unwrap();
    }
    tree.put("k", "new").await.unwrap();
    for _ in 0..10 {
        tree.put("other", "x".repeat(10_000)).await.unwrap();
    }
    let mut watcher = tree.watch_key_after("k", first).await.unwrap();
    let change = soon(watcher.next()).await.unwrap().unwrap();
    assert_eq!((change.value, change.is_after_gap), (Some("new".into()), true));
    tree.put("k", "newer").await.unwrap();
    let change = soon(watcher.next()).await.unwrap().unwrap();
    assert_eq!((change.value, change.is_after_gap), (Some("newer".into()), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_are_there_as_long_as_their_sessions_and_resolvers_follow() {
    let mut cluster = Cluster::made(3, 2).await;
    let (serving, asking) = (cluster.client(1).await, cluster.client(2).await);
    let billing = serving.registry("billing").unwrap();
    assert!(serving.registry("{x}").is_err());
    let (first, second) = (serving.session(LEASE), serving.session(LEASE));
    billing.register(&first, &Instance::new("a", "10.0.0.1:80").tag("east")).await.unwrap();
    let other = serving.registry("billing2").unwrap();
    other.register(&first, &Instance::new("x", "10.0.0.9:80")).await.unwrap();
    let resolver = asking.registry("billing").unwrap().follow().await.unwrap();
    let mut changes = resolver.changes();
    assert_eq!(resolver.pick(Pick::RoundRobin).unwrap().address, "10.0.0.1:80");
    billing.register(&second, &Instance::new("b", "10.0.0.2:80").tag("west")).await.unwrap();
    let now = soon(changes.next()).await.unwrap();
    assert_eq!(now.iter().map(|instance| &instance.id[..]).collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(billing.instances().await.unwrap(), now);
    assert_eq!(resolver.pick_tagged(Pick::Key(b"any"), "west").unwrap().id, "b");
    // What it says of itself changes, and it stays in use.
    let used = resolver.pick_tagged(Pick::Random, "west").unwrap();
    billing.register(&second, &Instance::new("b", "10.0.0.2:81").tag("west")).await.unwrap();
    assert_eq!(soon(changes.next()).await.unwrap()[1].address, "10.0.0.2:81");
    assert_eq!(resolver.pick(Pick::LeastOutstanding).unwrap().id, "a");
    drop(used);
    // Through the loss of whoever tells of it; sessions go on as well.
    let leader = cluster.leader(dogsled::cluster::ring::group_of(b"{billing}/", 2)).await;
    cluster.halt(leader).await;
    let third = asking.session(LEASE);
    let registry = asking.registry("billing").unwrap();
    registry.register(&third, &Instance::new("c", "10.0.0.3:80")).await.unwrap();
    eventually("it is known", || async { resolver.instances().len() == 3 }).await;
    cluster.start(leader).await;
    second.close().await.unwrap();
    eventually("it is gone", || async { resolver.instances().len() == 2 }).await;
    assert!(resolver.pick_tagged(Pick::RoundRobin, "west").is_none());
    assert!(billing.deregister("a").await.unwrap() && !billing.deregister("a").await.unwrap());
    eventually("it is gone", || async { resolver.instances().len() == 1 }).await;
    assert_eq!(other.instances().await.unwrap().len(), 1);
}

/// Writes growing numbers to its keys.
async fn write(tree: Tree, keys: Vec<String>, stop: Arc<AtomicBool>) -> BTreeMap<String, u64> {
    let mut last = BTreeMap::new();
    for number in 1.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = &keys[number as usize % keys.len()];
        tree.put(key, number.to_string().as_str()).await.unwrap();
        last.insert(key.clone(), number);
    }
    last
}

async fn number(cache: &NearCache, key: &str) -> u64 {
    let found = cache.get(key).await.unwrap();
    found.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_near_cache_never_goes_back_sees_its_own_writes_and_soon_all_others() {
    let mut cluster = Cluster::made(3, 2).await;
    let stop = Arc::new(AtomicBool::new(false));
    let keys: Vec<String> = (0..20).map(|i| format!("k{i}")).collect();
    let writer = tokio::spawn(write(cluster.client(1).await.tree("t"), keys.clone(), Arc::clone(&stop)));
    let client = cluster.client(2).await;
    // Room for most of them.
    let cache = Arc::new(client.tree("t").near_cache("k", 15 * 140).await.unwrap());
    let mut readers = Vec::new();
    for reader in 0..4u64 {
        let (cache, keys, stop) = (Arc::clone(&cache), keys.clone(), Arc::clone(&stop));
        readers.push(tokio::spawn(async move {
            let mut seen = BTreeMap::<String, u64>::new();
            let (mut own, mut reads) = (0, 0u64);
            while !stop.load(Ordering::Relaxed) {
                reads += 1;
                let key = &keys[(reads * 7 + reader) as usize % keys.len()];
                let found = number(&cache, key).await;
                let before = seen.insert(key.clone(), found).unwrap_or(0);
                assert!(found >= before, "{key} went back from {before} to {found}");
                if reads % 16 == 0 {
                    own += 1;
                    let key = format!("k own {reader}");
                    cache.insert(&key, own.to_string().as_str()).await.unwrap();
                    assert_eq!(number(&cache, &key).await, own);
                }
                tokio::task::yield_now().await;
            }
            reads
        }));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let leader = cluster.leader(1).await;
    cluster.halt(leader).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.start(leader).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Relaxed);
    let last = soon(writer).await.unwrap();
    for reader in readers {
        soon(reader).await.unwrap();
    }
    for (key, last) in last {
        let began = Instant::now();
        while number(&cache, &key).await != last {
            assert!(began.elapsed() < Duration::from_secs(20), "{key} stays old");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    let (before, _) = cache.hits_and_misses();
    number(&cache, "k0").await;
    number(&cache, "k0").await;
    assert!(cache.hits_and_misses().0 > before, "{:?}", cache.hits_and_misses());
    assert_eq!(cache.get("not under the prefix").await.unwrap(), None);
    // When nobody tells any more what happens, nothing is taken from here.
    client.close().await;
    eventually("it is closed", || async { cache.get("k0").await == Err(Error::Closed) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_of_a_session_that_nobody_waits_for_any_more_is_not_held_by_it() {
    let cluster = Cluster::made(1, 1).await;
    let client = cluster.client(1).await;
    let session = client.session(LEASE);
    let lock = || client.lock("shard").of_session(&session);
    // The session is open, and the command is quick from here on.
    lock().acquire().await.unwrap().release().await.unwrap().unwrap();
    // The futures are dropped before, while and after the command is carried out.
    for micros in (0..6_000).step_by(150) {
        let _ = tokio::time::timeout(Duration::from_micros(micros), lock().acquire()).await;
    }
    // The session lives on, and yet it holds nothing, and nothing of it waits.
    let other = client.session(LEASE);
    let held =
        tokio::time::timeout(Duration::from_secs(10), client.lock("shard").of_session(&other).acquire())
            .await;
    held.expect("nobody holds it").unwrap().release().await.unwrap().unwrap();
    let replica = cluster.nodes[&1].replication().replica(1).unwrap();
    eventually("the queue is empty", || {
        std::future::ready(replica.engine().len(dogsled::storage::TreeId::LOCK_QUEUES).unwrap() == 0)
    })
    .await;
}
