//! What clients see when nodes fail, move leadership, or come back.

use std::time::{Duration, Instant};

use dogsled::cluster::certs::Authority;
use dogsled::cluster::{Client, ClientOptions, Error};
use tokio::sync::watch;

use crate::support::{Cluster, add_until, eventually, sum};

fn names() -> Vec<String> {
    (0..8).map(|i| format!("counter {i}")).collect()
}

/// Many writers while `disturb` runs; then every acknowledged addition counts once, and none was
/// refused or left unknown.
async fn nothing_is_lost_or_doubled<F>(
    clients: Vec<Client>,
    reader: &Client,
    disturb: impl FnOnce() -> F,
) -> Duration
where
    F: Future<Output = ()>,
{
    let (stop, stopped) = watch::channel(false);
    let writers: Vec<_> = clients
        .iter()
        .flat_map(|client| (0..4).map(move |_| client.clone()))
        .map(|client| tokio::spawn(add_until(client, names(), stopped.clone())))
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    disturb().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.send_replace(true);
    let (mut acknowledged, mut longest) = (0, Duration::ZERO);
    for writer in writers {
        let tally = writer.await.unwrap();
        assert!(tally.unknown.is_empty() && tally.refused.is_empty(), "{tally:?}");
        acknowledged += tally.acknowledged;
        longest = longest.max(tally.longest);
    }
    assert!(acknowledged > 100, "{acknowledged} additions are no load");
    assert_eq!(sum(reader, &names()).await, acknowledged);
    println!("{acknowledged} additions, the longest took {longest:?}");
    longest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_halted_under_load_loses_and_doubles_nothing() {
    let mut cluster = Cluster::made(3, 4).await;
    let clients = vec![cluster.client(1).await, cluster.client(2).await, cluster.client(3).await];
    let reader = clients[0].clone();
    let leader = cluster.leader(1).await;
    nothing_is_lost_or_doubled(clients, &reader, || async {
        cluster.halt(leader).await;
        // Long enough for those that wait to notice.
        tokio::time::sleep(Duration::from_secs(2)).await;
        cluster.start(leader).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
    })
    .await;
    // It is whole again: each of them answers for all.
    for (node, running) in &cluster.nodes {
        let client = running.client();
        assert!(sum(&client, &names()).await > 0, "node {node}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sharded_counter_counts_each_addition_once_through_the_loss_of_a_leader() {
    const SHARDS: u16 = 8;
    let mut cluster = Cluster::made(3, 4).await;
    let clients = [cluster.client(1).await, cluster.client(2).await, cluster.client(3).await];
    let (stop, stopped) = watch::channel(false);
    let add = |client: &Client| {
        let (visits, stopped) = (client.sharded_counter("visits", SHARDS), stopped.clone());
        tokio::spawn(async move {
            let mut added = 0;
            while !*stopped.borrow() {
                visits.add(1).await.expect("it is carried out, if not at once");
                added += 1;
            }
            added
        })
    };
    let adding: Vec<_> = clients.iter().chain(&clients).map(add).collect();
    let reading = {
        let (visits, stopped) = (clients[0].sharded_counter("visits", SHARDS), stopped.clone());
        tokio::spawn(async move {
            let mut sums = vec![0];
            while !*stopped.borrow() {
                sums.push(visits.get().await.expect("it is read, if not at once"));
            }
            sums
        })
    };
    tokio::time::sleep(Duration::from_millis(500)).await;
    let leader = cluster.leader(1).await;
    cluster.halt(leader).await;
    // Long enough for those that wait to notice.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.start(leader).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.send_replace(true);
    let mut added = 0;
    for adding in adding {
        added += adding.await.unwrap();
    }
    let sums = reading.await.unwrap();
    assert!(sums.is_sorted(), "what only grows was seen to shrink: {sums:?}");
    assert!(added > 100 && sums.len() > 10, "{added} additions and {} sums are no load", sums.len());
    for client in &clients {
        assert_eq!(client.sharded_counter("visits", SHARDS).get().await.unwrap(), added);
    }
    // All parts were added to.
    for shard in 0..SHARDS {
        let name = format!("{{{shard}:visits}}");
        assert!(clients[0].counter(&name).get().await.unwrap() > 0, "nothing was added to {name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_fails_no_call() {
    let mut cluster = Cluster::made(3, 4).await;
    let client = cluster.client(1).await;
    nothing_is_lost_or_doubled(vec![client.clone()], &client, || async {
        for node in 1..=3 {
            cluster.shutdown(node).await;
            cluster.start(node).await;
            for group in 0..=4 {
                cluster.leader(group).await;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_short_way_survives_the_loss_of_another_leader() {
    let mut cluster = Cluster::made(3, 4).await;
    let leader = cluster.leader(1).await;
    let own = *cluster.nodes.keys().find(|node| **node != leader).unwrap();
    let client = cluster.nodes[&own].client();
    nothing_is_lost_or_doubled(vec![client.clone()], &client, || async {
        cluster.halt(leader).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_with_an_old_map_is_served_and_learns() {
    let cluster = Cluster::made(3, 2).await;
    let client = cluster.client(1).await;
    client.tree("t").put("a", "1").await.unwrap();
    for round in 0..6 {
        for group in 1..=2 {
            let leader = cluster.leader(group).await;
            let next = cluster.nodes[&(leader % 3 + 1)].id();
            eventually("another leads", || async {
                client.transfer_leader(group, next).await.is_ok() || cluster.leader(group).await == next.0
            })
            .await;
        }
        // At once, while leadership is on its way.
        let began = Instant::now();
        for i in 0..20 {
            client.tree("t").put(format!("key {i}"), round.to_string()).await.unwrap();
        }
        assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
    }
    assert_eq!(client.tree("t").len().await.unwrap(), 21);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_was_told_one_follower_alone_finds_its_way() {
    let mut cluster = Cluster::made(3, 1).await;
    let leader = cluster.leader(1).await;
    let follower = leader % 3 + 1;
    let client = cluster.client(follower).await;
    client.tree("t").insert("a", "1").await.unwrap();
    // Of the others it has learned, so the one it was told is not needed.
    cluster.halt(follower).await;
    let began = Instant::now();
    client.tree("t").insert("b", "2").await.unwrap();
    assert_eq!(client.tree("t").get("a").await.unwrap().unwrap(), "1");
    assert!(began.elapsed() < Duration::from_secs(9), "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_calls_end_at_their_deadline_and_stale_reads_go_on() {
    let mut cluster = Cluster::made(3, 1).await;
    let client = cluster.client(1).await;
    let tree = client.tree("t");
    tree.insert("a", "1").await.unwrap();
    let last = cluster.leader(1).await;
    let own = cluster.nodes[&last].client();
    for node in 1..=3 {
        if node != last {
            cluster.halt(node).await;
        }
    }
    let hurried = client.with_deadline(Duration::from_secs(2)).tree("t");
    let began = Instant::now();
    let read = hurried.get("a").await.unwrap_err();
    let write = hurried.insert("a", "2").await.unwrap_err();
    assert!(matches!(read, Error::Unavailable(_)), "{read}");
    assert!(matches!(write, Error::Unavailable(_) | Error::OutcomeUnknown(_)), "{write}");
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    let stale = tree.stale().get("a").await.unwrap();
    assert_eq!(stale.value.unwrap(), "1");
    assert_eq!(own.tree("t").stale().get("a").await.unwrap().value.unwrap(), "1");

    // With a second node, it goes on.
    let other = last % 3 + 1;
    cluster.start(other).await;
    eventually("there is a quorum again", || async { hurried.get("a").await.is_ok() }).await;
    tree.insert("b", "3").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_whose_certificate_was_renewed_while_it_ran_is_let_in_again() {
    let mut cluster = Cluster::made(1, 2).await;
    let authority = Authority::load(&cluster.directory.path().join("dev-certs")).unwrap();
    let directory = cluster.directory.path().join("web");
    let files = authority.client("web", Duration::from_secs(6)).unwrap().save(&directory).unwrap();
    let issued = Instant::now();
    let client =
        Client::connect([cluster.address(1)], ClientOptions::from_files(&files).unwrap()).await.unwrap();
    client.tree("t").insert("a", "1").await.unwrap();
    // Certificates end at whole seconds.
    tokio::time::sleep(Duration::from_millis(7_100).saturating_sub(issued.elapsed())).await;
    cluster.halt(1).await;
    cluster.start(1).await;
    let hasty = client.with_deadline(Duration::from_millis(1500));
    let refused = hasty.tree("t").get("a").await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable(_)), "{refused:?}");
    let year = Duration::from_secs(365 * 86_400);
    authority.client("web", year).unwrap().replace(&directory).unwrap();
    assert_eq!(client.tree("t").get("a").await.unwrap().as_deref(), Some(&b"1"[..]));
    client.tree("t").insert("b", "2").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_all_partitions_go_on_in_order_when_leaders_die_amid_them() {
    let mut cluster = Cluster::made(3, 4).await;
    let client = cluster.client(1).await;
    let tree = client.tree("t");
    let key = |number: usize| format!("key {number:05}");
    const KEYS: usize = 6_000;
    for start in (0..KEYS).step_by(500) {
        let mut batch = dogsled::Batch::default();
        for number in start..start + 500 {
            // Many pages of each partition.
            batch.insert(key(number), "v".repeat(200));
        }
        tree.apply_batch_by_partition(batch).await.unwrap();
    }
    let (low, high) = (key(1_000), key(5_000));
    let mut streams = [
        (tree.iter(), (0..KEYS).collect::<Vec<_>>()),
        (tree.iter().rev(), (0..KEYS).rev().collect()),
        (tree.range(low..high), (1_000..5_000).collect()),
        (tree.scan_prefix("key 02"), (2_000..3_000).collect()),
        (tree.scan_prefix("key 02").keys_only(), (2_000..3_000).collect()),
    ];
    let mut at = [0; 5];
    // A third of each, then a leader dies; it is back, and another one dies.
    for third in 1..=3 {
        for (number, (stream, wanted)) in streams.iter_mut().enumerate() {
            while at[number] < wanted.len() * third / 3 {
                let (found, _) = stream.next().await.expect("there is more").unwrap();
                assert_eq!(found, key(wanted[at[number]]).as_str(), "stream {number}");
                at[number] += 1;
            }
        }
        if third < 3 {
            let leader = cluster.leader(third as u32).await;
            cluster.halt(leader).await;
            // What is not read yet may change meanwhile, and is there once in the end.
            tree.put("zzz", third.to_string()).await.unwrap();
            if third == 1 {
                cluster.start(leader).await;
                for group in 0..=4 {
                    cluster.leader(group).await;
                }
            }
        }
    }
    for (number, (mut stream, _)) in streams.into_iter().enumerate() {
        // Nothing but what was written behind where it was.
        if let Some(entry) = stream.next().await {
            assert_eq!((number, entry.unwrap().0), (0, "zzz".into()));
            assert!(stream.next().await.is_none());
        }
    }
}
