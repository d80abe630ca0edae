//! Queues of locks, fenced writes, times to live and counters, over QUIC on loopback.

use std::sync::Arc;
use std::time::{Duration, Instant};

use dogsled::cluster::{Error, Event, LockGuard};
use dogsled::{Fence, Ttl};
use dogsled_replication::metrics::SampleValue;
use parking_lot::Mutex;

use crate::support::{Cluster, eventually};

const LEASE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_are_served_in_the_order_in_which_they_came() {
    let cluster = Cluster::made(3, 2).await;
    let client = cluster.client(1).await;
    let first = client.lock("job").acquire(LEASE).await.unwrap();
    let order = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..20 {
        // By way of all nodes.
        let (client, order) = (cluster.client(1 + number % 3).await, Arc::clone(&order));
        let waiting = tokio::spawn(async move {
            let guard = client.lock("job").acquire(LEASE).await.unwrap();
            order.lock().push((number, guard.token()));
            guard.release().await.unwrap().unwrap();
        });
        tasks.push(waiting);
        // It stands in the queue before the next one comes.
        let replica = cluster.nodes[&1].replication().replica(dogsled::cluster::ring::group_of(b"job", 2));
        let engine = Arc::clone(replica.unwrap().engine());
        eventually("it waits", || {
            let waiting = engine.len(dogsled::storage::TreeId::LOCK_QUEUES).unwrap();
            // The lock stands in the index as well.
            std::future::ready(waiting == number + 2)
        })
        .await;
    }
    let token = first.token();
    first.release().await.unwrap().unwrap();
    for task in tasks {
        task.await.unwrap();
    }
    let order = order.lock();
    assert!(order.iter().map(|(number, _)| *number).eq(0..20), "{order:?}");
    assert!(order.windows(2).all(|pair| pair[0].1 < pair[1].1) && order[0].1 > token, "{order:?}");
}

/// Commands and reads that the nodes have answered.
async fn requests(cluster: &Cluster) -> u64 {
    let mut sum = 0;
    for node in cluster.nodes.values() {
        for family in node.replication().families().await {
            if ["dogsled_command_duration_seconds", "dogsled_read_duration_seconds"].contains(&family.name) {
                let of_each = family.samples.iter().map(|sample| match &sample.value {
                    SampleValue::Distribution(answered) => answered.count(),
                    other => panic!("{other:?}"),
                });
                sum += of_each.sum::<u64>();
            }
        }
    }
    sum
}

/// Each of a thousand costs the nodes a word every ten seconds, that it still waits, and nothing in between; and
/// they have the lock in the order in which they came.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_wait_without_asking_and_are_served_in_order() {
    const WAITERS: usize = 1_000;
    let cluster = Cluster::made(3, 1).await;
    let clients = [cluster.client(1).await, cluster.client(2).await, cluster.client(3).await];
    let lease = Duration::from_secs(120);
    let first = clients[0].lock("job").acquire(lease).await.unwrap();
    let leader = cluster.leader(1).await;
    let replica = cluster.nodes[&leader].replication().replica(1).unwrap();
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for number in 0..WAITERS {
        let (lock, served) = (clients[number % 3].lock("job"), Arc::clone(&served));
        tasks.push(tokio::spawn(async move {
            let guard = lock.acquire(lease).await.unwrap();
            served.lock().push((number, guard.token()));
            guard.release().await.unwrap().unwrap();
        }));
        // It stands in the queue before the next one comes, as the lock itself does.
        let until = Instant::now() + Duration::from_secs(30);
        while replica.engine().len(dogsled::storage::TreeId::LOCK_QUEUES).unwrap() < number as u64 + 2 {
            assert!(Instant::now() < until, "waiter {number} does not stand in the queue");
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    }
    let terms = || -> Vec<u64> {
        let groups = cluster.nodes.values().flat_map(|node| node.replication().status().groups);
        groups.filter(|group| group.group == 1).map(|group| group.term).collect()
    };
    for left in (0..5).rev() {
        let (term, before, began) = (terms(), requests(&cluster).await, Instant::now());
        tokio::time::sleep(Duration::from_secs(4)).await;
        let (asked, waited) = (requests(&cluster).await - before, began.elapsed().as_secs_f64());
        // Twice what they say, and what sessions and the holder's lease take.
        let most = WAITERS as f64 * (waited / 10.0 * 2.0) + 100.0;
        if (asked as f64) < most {
            break;
        }
        // All of them ask a new leader anew, which says nothing.
        assert!(left > 0 && terms() != term, "{asked} requests in {waited} s");
        tokio::time::sleep(Duration::from_secs(5)).await;
    }

    first.release().await.unwrap().unwrap();
    for task in tasks {
        tokio::time::timeout(Duration::from_secs(60), task).await.expect("it is served").unwrap();
    }
    let served = std::mem::take(&mut *served.lock());
    assert!(served.iter().map(|(number, _)| *number).eq(0..WAITERS), "out of order: {served:?}");
    assert!(served.windows(2).all(|pair| pair[0].1 < pair[1].1), "{served:?}");
    assert_eq!(clients[0].lock("job").holder().await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waiter_survives_the_loss_of_the_leader_and_one_that_gives_up_is_passed_over() {
    let mut cluster = Cluster::made(3, 1).await;
    let (one, two, three) = (cluster.client(1).await, cluster.client(2).await, cluster.client(3).await);
    let guard = one.lock("job").acquire(LEASE).await.unwrap();
    let wait = |client: dogsled::cluster::Client| {
        tokio::spawn(async move { client.lock("job").acquire(LEASE).await.unwrap() })
    };
    let gone = wait(two.clone());
    tokio::time::sleep(Duration::from_millis(300)).await;
    let waiting = wait(three.clone());
    tokio::time::sleep(Duration::from_millis(300)).await;
    // Its future is dropped: it leaves the queue.
    gone.abort();
    assert!(two.lock("job").acquire_timeout(LEASE, Duration::from_millis(50)).await.unwrap().is_none());
    let leader = cluster.leader(1).await;
    cluster.halt(leader).await;
    let survivor = [1, 2, 3].into_iter().find(|node| *node != leader).unwrap();
    let token = guard.token();
    drop(guard);
    let granted = tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap().unwrap();
    assert!(granted.token() > token && granted.is_valid());
    let holder = cluster.client(survivor).await.lock("job").holder().await.unwrap().unwrap();
    assert_eq!(holder.token, granted.token());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guard_renews_its_lease_and_tells_when_the_lock_is_lost() {
    let cluster = Cluster::made(3, 1).await;
    let (ann, ben) = (cluster.client(1).await, cluster.client(2).await);
    // Renewed at a third of it, so that a machine may stand still for some seconds.
    let lease = Duration::from_secs(7);
    let guard = ann.lock("job").owner("ann").acquire(lease).await.unwrap();
    let began = Instant::now();
    while began.elapsed() < lease * 3 / 2 {
        assert!(guard.is_valid(), "after {:?}", began.elapsed());
        assert!(ben.lock("job").try_acquire(lease).await.unwrap().is_none(), "after {:?}", began.elapsed());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Somebody with its name gives it away.
    let stolen = ben.lock("job").owner("ann").resume().await.unwrap().unwrap();
    stolen.release().await.unwrap().unwrap();
    let told = tokio::time::timeout(Duration::from_secs(30), guard.lost()).await;
    told.expect("it hears of it at the next renewal");
    assert!(!guard.is_valid());

    // Without renewal it is told before the lease ends; once more if this thread was not woken in time.
    let lease = Duration::from_secs(3);
    let mut tries = 0;
    let guard = loop {
        let asked = Instant::now();
        let guard = ann.lock("job").without_renewal().acquire(lease).await.unwrap();
        guard.lost().await;
        if asked.elapsed() < lease * 9 / 10 {
            let left = guard.remaining();
            assert!(left < lease / 4, "{left:?}");
            assert!(guard.is_valid() || asked.elapsed() >= lease, "{left:?}");
            break guard;
        }
        tries += 1;
        assert!(tries < 5, "told too late each time");
        guard.release().await.ok();
    };
    eventually("the lease ends", || std::future::ready(!guard.is_valid())).await;
    let next = ben.lock("job").acquire(lease).await.unwrap();
    assert!(next.token() > guard.token());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_dead_holders_lease_wakes_who_waits() {
    let cluster = Cluster::made(3, 1).await;
    let client = cluster.client(1).await;
    let began = Instant::now();
    client.lock("job").try_acquire(Duration::from_millis(500)).await.unwrap().unwrap().keep();
    let guard = client.lock("job").acquire(LEASE).await.unwrap();
    let waited = began.elapsed();
    assert!(waited > Duration::from_millis(450) && waited < Duration::from_secs(20), "{waited:?}");
    assert!(guard.is_valid());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_share_writers_do_not_and_semaphores_count() {
    let cluster = Cluster::made(3, 2).await;
    let client = cluster.client(2).await;
    let readers: Vec<LockGuard> = futures_util::future::try_join_all((0..3).map(|_| {
        let lock = client.read_lock("book");
        async move { lock.acquire(LEASE).await }
    }))
    .await
    .unwrap();
    assert!(client.write_lock("book").try_acquire(LEASE).await.unwrap().is_none());
    let writer = tokio::spawn({
        let lock = client.write_lock("book");
        async move { lock.acquire(LEASE).await.unwrap() }
    });
    eventually("readers wait behind the writer", || async {
        client.read_lock("book").try_acquire(LEASE).await.unwrap().is_none()
    })
    .await;
    for reader in readers {
        reader.release().await.unwrap().unwrap();
    }
    let writer = writer.await.unwrap();
    assert!(client.read_lock("book").try_acquire(LEASE).await.unwrap().is_none());
    writer.release().await.unwrap().unwrap();

    let seats = client.semaphore("seats", 3);
    let two = seats.clone().permits(2).acquire(LEASE).await.unwrap();
    let one = seats.acquire(LEASE).await.unwrap();
    assert!(seats.try_acquire(LEASE).await.unwrap().is_none());
    let other = client.semaphore("seats", 4).try_acquire(LEASE).await;
    assert!(matches!(other, Err(Error::Invalid(_))), "{other:?}");
    drop((one, two));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_under_a_lock_are_refused_by_the_log_when_it_is_lost() {
    let cluster = Cluster::made(3, 4).await;
    let client = cluster.client(1).await;
    let guard = client.lock("{printer}").acquire(LEASE).await.unwrap();
    let fence: Fence = guard.fence();
    let (jobs, count) = (client.tree("jobs").under(&guard), client.counter("{printer}:done").under(&guard));
    assert_eq!(jobs.insert("{printer}:last", "1").await.unwrap(), None);
    jobs.compare_and_swap("{printer}:last", Some("1"), Some("2")).await.unwrap().unwrap();
    let mut batch = dogsled::Batch::default();
    batch.insert("{printer}:a", "3");
    jobs.apply_batch(batch).await.unwrap();
    jobs.insert_with_ttl("{printer}:b", "4", LEASE).await.unwrap();
    assert_eq!(count.add(2).await.unwrap(), 2);
    // What lies elsewhere is refused before it is sent.
    let group = |key: &str| dogsled::cluster::ring::group_of(key.as_bytes(), 4);
    let other = (0..).map(|number| format!("key {number}")).find(|key| group(key) != group("{printer}"));
    let elsewhere = jobs.insert(other.unwrap(), "x").await;
    assert!(matches!(&elsewhere, Err(Error::Invalid(what)) if what.contains("{tag}")), "{elsewhere:?}");

    guard.release().await.unwrap().unwrap();
    let next = client.lock("{printer}").acquire(LEASE).await.unwrap();
    let expected =
        Error::LockNotHeld { lock: "{printer}".into(), token: fence.token, current: Some(next.token()) };
    assert!(expected.is_definite() && !expected.is_temporary());
    assert_eq!(jobs.insert("{printer}:last", "5").await, Err(expected.clone()));
    assert_eq!(jobs.remove("{printer}:last").await, Err(expected.clone()));
    assert_eq!(count.add(1).await, Err(expected));
    assert_eq!(jobs.get("{printer}:last").await.unwrap().unwrap(), "2");
    assert_eq!(count.get().await.unwrap(), 2);
    client.tree("jobs").under(&next).insert("{printer}:last", "6").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_expire_although_nobody_writes() {
    let cluster = Cluster::made(3, 2).await;
    let client = cluster.client(1).await;
    let pages = client.tree("pages");
    pages.insert("stays", "1").await.unwrap();
    let mut events = pages.watch_prefix("").await.unwrap();
    let ttl = Duration::from_secs(6);
    let began = Instant::now();
    assert_eq!(pages.insert_with_ttl("goes", "1", ttl).await.unwrap(), None);
    pages.insert_with_ttl("kept", "1", ttl).await.unwrap();
    pages.insert_with_ttl("written", "1", ttl).await.unwrap();
    assert!(matches!(pages.ttl("goes").await.unwrap(), Ttl::In(left) if left <= ttl));
    assert!(pages.persist("kept").await.unwrap() && !pages.persist("stays").await.unwrap());
    pages.put("written", "2").await.unwrap();
    assert!(pages.compare_and_swap_with_ttl("stays", Some("2"), "3", ttl).await.unwrap().is_err());
    assert_eq!(pages.ttl("kept").await.unwrap(), Ttl::Forever);
    eventually("the key expires", || async { pages.get("goes").await.unwrap().is_none() }).await;
    let took = began.elapsed();
    assert!(took > ttl - ttl / 32 && took < ttl + Duration::from_secs(20), "{took:?}");
    assert_eq!(pages.ttl("goes").await.unwrap(), Ttl::NoKey);
    for key in ["stays", "kept", "written"] {
        assert!(pages.get(key).await.unwrap().is_some(), "{key}");
    }
    let mut removed = Vec::new();
    while removed.is_empty() {
        if let Event::Remove { key } = events.next().await.unwrap().unwrap() {
            removed.push(key);
        }
    }
    assert_eq!(removed, ["goes"]);
    assert!(pages.expire("kept", Duration::from_millis(200)).await.unwrap());
    eventually("it expires as well", || async { pages.len().await.unwrap() == 2 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counters_are_set_if_added_together_and_spread() {
    let cluster = Cluster::made(3, 4).await;
    let client = cluster.client(3).await;
    let version = client.counter("version");
    assert_eq!(version.set_if(0, 5).await.unwrap(), Ok(()));
    assert_eq!(version.set_if(0, 6).await.unwrap(), Err(5));
    let sums =
        client.add_to_counters([("{shop}sold", 1), ("{shop}left", -1), ("{shop}sold", 2)]).await.unwrap();
    assert_eq!(sums, [("{shop}left".into(), -1), ("{shop}sold".into(), 3)]);
    client.counter("{shop}full").set(i64::MAX).await.unwrap();
    let refused = client.add_to_counters([("{shop}sold", 1), ("{shop}full", 1)]).await;
    assert!(matches!(refused, Err(Error::Invalid(_))), "{refused:?}");
    assert_eq!(client.counter("{shop}sold").get().await.unwrap(), 3);
    let apart = client.add_to_counters((0..9).map(|number| (format!("apart {number}"), 1))).await;
    assert!(matches!(apart, Err(Error::Invalid(_))), "{apart:?}");

    let visits = client.sharded_counter("visits {of a tag}", 8);
    let adds = (0..200).map(|_| {
        let visits = visits.clone();
        async move { visits.add(1).await }
    });
    futures_util::future::try_join_all(adds).await.unwrap();
    assert_eq!(visits.get().await.unwrap(), 200);
    assert_eq!(client.sharded_counter("visits {of a tag}", 8).reset().await.unwrap(), 200);
    assert_eq!(visits.get().await.unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_follow_one_another_and_everybody_knows_who() {
    let cluster = Cluster::made(3, 2).await;
    let (ann, ben) = (cluster.client(1).await, cluster.client(2).await);
    let election = cluster.client(3).await.election("scheduler");
    assert_eq!(election.leader().await.unwrap(), None);
    // The first election of all makes the tree; who observes before that is told to look.
    election.campaign("before", LEASE).await.unwrap().resign().await.unwrap().unwrap();
    let mut observer = election.observe().await.unwrap();
    let first = ann.election("scheduler").campaign("ann", LEASE).await.unwrap();
    let leader = election.leader().await.unwrap().unwrap();
    assert_eq!((leader.value.as_ref(), leader.token), (&b"ann"[..], first.guard().token()));
    let next = tokio::spawn(async move { ben.election("scheduler").campaign("ben", LEASE).await.unwrap() });
    first.proclaim("ann at work").await.unwrap();
    assert_eq!(election.leader().await.unwrap().unwrap().value, "ann at work");
    let words = ann.tree("of leaders").under(first.guard());
    // Whatever is of the election's partition can be written under it.
    let written = words.put("scheduler", "1").await;
    assert_eq!(written, Ok(()));
    first.resign().await.unwrap().unwrap();
    let second = next.await.unwrap();
    assert!(second.guard().token() > leader.token);
    assert!(matches!(words.put("scheduler", "2").await, Err(Error::LockNotHeld { .. })));
    let mut seen = Vec::new();
    while seen.last() != Some(&"ben".to_owned()) {
        let leader = observer.next().await.unwrap().unwrap();
        seen.push(
            leader.map_or("nobody".to_owned(), |leader| String::from_utf8_lossy(&leader.value).into_owned()),
        );
    }
    assert_eq!(seen, ["ann", "ann at work", "nobody", "ben"]);
    drop(second);
    eventually("nobody leads", || async { election.leader().await.unwrap().is_none() }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_all_who_ask_for_a_value_one_computes_it() {
    let cluster = Cluster::made(3, 2).await;
    let computed = Arc::new(Mutex::new(0));
    let ask = |client: dogsled::cluster::Client| {
        let computed = Arc::clone(&computed);
        async move {
            let compute = || async {
                *computed.lock() += 1;
                tokio::time::sleep(Duration::from_millis(100)).await;
                Ok::<_, Error>("made")
            };
            client.tree("pages").get_or_compute("/index", LEASE, LEASE, compute).await
        }
    };
    let mut asked = Vec::new();
    for node in [1, 2, 3, 1, 2, 3] {
        asked.push(ask(cluster.client(node).await));
    }
    let values = futures_util::future::try_join_all(asked).await.unwrap();
    assert!(values.iter().all(|value| *value == "made"), "{values:?}");
    assert_eq!(*computed.lock(), 1);
    // One that fails leaves it to the next.
    let client = cluster.client(1).await;
    let tree = client.tree("pages");
    let failed = tree
        .get_or_compute("/other", LEASE, LEASE, || async { Err::<&str, _>(Error::Invalid("no".to_owned())) })
        .await;
    assert_eq!(failed, Err(Error::Invalid("no".to_owned())));
    let made = tree.get_or_compute("/other", LEASE, LEASE, || async { Ok::<_, Error>("made") }).await;
    assert_eq!(made.unwrap(), "made");
    assert!(matches!(tree.ttl("/other").await.unwrap(), Ttl::In(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_computes_a_value_may_ask_for_the_same_key_of_another_tree_but_not_wait_for_itself() {
    let cluster = Cluster::made(1, 2).await;
    let client = cluster.client(1).await;
    let (pages, parts) = (client.tree("pages"), client.tree("parts"));
    for key in ["/index", "{site}/index"] {
        let part = || async { Ok::<_, Error>("part") };
        let page = || async {
            let part = parts.get_or_compute(key, LEASE, LEASE, part).await?;
            Ok::<_, Error>([&part[..], b" of a page"].concat())
        };
        let asked = tokio::time::timeout(LEASE / 2, pages.get_or_compute(key, LEASE, LEASE, page));
        assert_eq!(asked.await.expect("it waits for nobody").unwrap(), "part of a page");
    }
    // Of the very key it is told in the end that somebody computes it.
    let hasty = pages.with_deadline(Duration::from_millis(300));
    let other = || async { Ok::<_, Error>("other") };
    let itself = || async { hasty.get_or_compute("/again", LEASE, LEASE, other).await };
    let asked = tokio::time::timeout(LEASE / 2, pages.get_or_compute("/again", LEASE, LEASE, itself));
    let told = asked.await.expect("it waits until the deadline");
    assert!(matches!(told, Err(Error::Unavailable(_))), "{told:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_session_owns_dies_with_it_and_numbers_are_given_once() {
    let cluster = Cluster::made(3, 2).await;
    let client = cluster.client(1).await;
    let workers = client.tree("workers");
    workers.insert("stays", "1").await.unwrap();
    let lease = Duration::from_secs(7);
    let session = client.session(lease);
    for number in 0..6 {
        session.insert(&workers, format!("worker {number}"), "alive").await.unwrap();
    }
    assert_eq!(session.insert_next(&workers, "{jobs}:", "a").await.unwrap(), "{jobs}:00000000000000000000");
    assert_eq!(workers.insert_next("{jobs}:", "b").await.unwrap(), "{jobs}:00000000000000000001");
    assert!(matches!(workers.insert_next("jobs:", "b").await, Err(Error::Invalid(_))));
    // For longer than its lease, because it is renewed.
    tokio::time::sleep(lease * 3 / 2).await;
    assert_eq!(workers.len().await.unwrap(), 9);
    session.close().await.unwrap();
    assert_eq!(workers.len().await.unwrap(), 2);
    assert!(session.insert(&workers, "x", "y").await.is_err());
    session.lost().await;

    // One whose client is gone without a word: its runtime has ended.
    let (address, options) = (cluster.address(2), cluster.options());
    let (lease, began) = (Duration::from_secs(3), Instant::now());
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let client = dogsled::cluster::Client::connect([address], options).await.unwrap();
            let session = client.session(lease);
            session.insert(&client.tree("workers"), "worker 9", "alive").await.unwrap();
            std::mem::forget((client, session));
        });
        runtime.shutdown_background();
    })
    .join()
    .unwrap();
    let is_there = workers.contains_key("worker 9").await.unwrap();
    assert!(is_there || began.elapsed() >= lease, "its key went before its lease");
    eventually("its key is gone", || async { !workers.contains_key("worker 9").await.unwrap() }).await;
    assert_eq!(workers.len().await.unwrap(), 2);
}
