//! Whole clusters in one process, in real time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::common::{Cluster, command, get, in_session, insert, open_session, reply_of};
use bytes::Bytes;
use dogsled_replication::watch::{Told, WatchEvent};
use dogsled_replication::{
    Change, ClientIdentity, ClientRequest, ClusterError, Consistency, Lane, Node, NodeId, Role, Service,
    Timing, Transport, TransportError,
};
use dogsled_storage::counter::{CounterCommand, CounterReply};
use dogsled_storage::group::{Answer, GroupRead, GroupReadReply, Refusal, SessionId};
use dogsled_storage::{Command, IVec, Reply, TreeId, Write};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;

fn add_one(name: &str) -> Command {
    Command::Counter(CounterCommand::Add { name: name.into(), delta: 1 })
}

fn added(value: i64) -> Reply {
    Reply::Counter(CounterReply::Added { value })
}

pub(crate) async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_replicate_a_put_and_each_reads_it() {
    let mut cluster = Cluster::made(3, 2, |_| {}).await;
    for group in [1, 2] {
        cluster.put(group, "lead dog", "Balto").await;
        for node in [1, 2, 3] {
            assert_eq!(cluster.get(node, group, "lead dog").await.as_deref(), Some("Balto"));
            assert_eq!(cluster.get(node, group, "other").await, None);
        }
    }
    for node in [1, 2, 3] {
        cluster.stop(node).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_is_replaced_and_comes_back_with_what_it_missed() {
    let mut cluster = Cluster::made(3, 1, |config| config.balance_leaders = false).await;
    cluster.put(1, "before", "1").await;
    let leader = cluster.leader(1).await;
    cluster.kill(leader).await;
    let began = Instant::now();
    cluster.put(1, "after", "2").await;
    let stopped = began.elapsed();
    assert!(stopped < Duration::from_secs(30), "writes stopped for {stopped:?}");
    assert_ne!(cluster.leader(1).await, leader);
    cluster.start(leader).await;
    assert_eq!(cluster.get(leader, 1, "before").await.as_deref(), Some("1"));
    assert_eq!(cluster.get(leader, 1, "after").await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_restarted_have_everything_that_was_acknowledged() {
    let mut cluster = Cluster::made(3, 2, |_| {}).await;
    for n in 0..50 {
        cluster.put(1 + n % 2, &format!("key-{n}"), "value").await;
    }
    for node in [1, 2, 3] {
        cluster.kill(node).await;
    }
    for node in [1, 2, 3] {
        cluster.start(node).await;
    }
    for n in 0..50 {
        let node = 1 + u64::from(n % 3);
        assert_eq!(cluster.get(node, 1 + n % 2, &format!("key-{n}")).await.as_deref(), Some("value"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_missed_what_was_purged_gets_a_snapshot() {
    let mut cluster = Cluster::made(3, 1, |config| {
        config.keep_entries = 10;
        config.maintenance_every = Duration::from_millis(50);
        config.balance_leaders = false;
    })
    .await;
    let away = 1 + cluster.leader(1).await % 3;
    cluster.put(1, "key-0", "old").await;
    cluster.kill(away).await;
    let value = "x".repeat(2000);
    for n in 0..1500 {
        cluster.put(1, &format!("key-{n}"), &value).await;
    }
    for node in cluster.nodes.values() {
        node.replica(1).unwrap().checkpoint().unwrap();
    }
    let first = |node: &Node| node.status().groups[1].first;
    let nodes: Vec<Node> = cluster.nodes.values().cloned().collect();
    wait_for("the log to be purged", || nodes.iter().all(|node| first(node) > 1000)).await;
    cluster.start(away).await;
    assert_eq!(cluster.get(away, 1, "key-0").await.as_deref(), Some(value.as_str()));
    assert_eq!(cluster.get(away, 1, "key-1499").await.as_deref(), Some(value.as_str()));
    assert!(first(&cluster.nodes[&away]) > 1000, "the log would have been replayed");
    // And on from there, by entries; and once more from its own disk.
    cluster.put(1, "later", "entry").await;
    assert_eq!(cluster.get(away, 1, "later").await.as_deref(), Some("entry"));
    cluster.kill(away).await;
    cluster.start(away).await;
    assert_eq!(cluster.get(away, 1, "later").await.as_deref(), Some("entry"));
    assert_eq!(cluster.get(away, 1, "key-7").await.as_deref(), Some(value.as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_counter_incremented_through_failovers_counts_each_once() {
    let mut cluster = Cluster::made(3, 1, |_| {}).await;
    cluster.submit(1, &open_session(7, 600_000)).await.result.unwrap();
    let mut sequence = 0;
    for round in 0..4 {
        for _ in 0..25 {
            sequence += 1;
            let add = in_session(7, sequence, command(add_one("hits"), &[]));
            if sequence % 25 == 10 {
                // The leader dies with the command in its hands.
                let leader = cluster.leader(1).await;
                let node = cluster.nodes[&leader].clone();
                let doomed = {
                    let add = add.clone();
                    tokio::spawn(async move { node.submit(1, &add).await })
                };
                tokio::time::sleep(Duration::from_micros(300 * round)).await;
                cluster.kill(leader).await;
                let _ = doomed.await;
                let retried = reply_of(cluster.submit(1, &add).await);
                assert_eq!(retried, added(sequence as i64));
                cluster.start(leader).await;
            } else {
                assert_eq!(reply_of(cluster.submit(1, &add).await), added(sequence as i64));
            }
        }
    }
    for node in [1, 2, 3] {
        let read = GroupRead::Counter { name: "hits".into() };
        let answer = loop {
            match cluster.nodes[&node].read(1, &read, Consistency::Linearizable).await {
                Ok(answer) => break answer,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        assert_eq!(answer.reply, GroupReadReply::Counter(Some(100)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_gets_everything_and_another_leaves() {
    let mut cluster = Cluster::made(3, 2, |_| {}).await;
    cluster.put(1, "a", "1").await;
    cluster.put(2, "b", "2").await;
    cluster.start(4).await;
    let seeds = vec![(NodeId(2), crate::common::addresses(2))];
    cluster.nodes[&4].join(seeds).await.unwrap();
    assert_eq!(cluster.get(4, 1, "a").await.as_deref(), Some("1"));
    assert_eq!(cluster.get(4, 2, "b").await.as_deref(), Some("2"));
    // A fourth voter of the meta group would not help it survive.
    let joined = cluster.nodes[&4].clone();
    wait_for("the new one to know that it has three replicas each with four members", || {
        let status = joined.status();
        status.members.len() == 4 && status.groups[1..].iter().all(|group| group.voters.len() == 3)
    })
    .await;

    cluster.remove_member(2, 1).await.unwrap();
    cluster.kill(1).await;
    cluster.put(1, "a", "3").await;
    let nodes: Vec<Node> = cluster.nodes.values().cloned().collect();
    wait_for("all to know that it is gone", || {
        nodes.iter().all(|node| node.status().groups.iter().all(|group| group.voters.len() == 3))
    })
    .await;
    // One of the three that are left may die now.
    cluster.kill(2).await;
    cluster.put(2, "b", "4").await;
    assert_eq!(cluster.get(4, 2, "b").await.as_deref(), Some("4"));
    assert_eq!(cluster.get(4, 1, "a").await.as_deref(), Some("3"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_answers_nothing_but_stale_reads_and_says_how_old_they_are() {
    let cluster = Cluster::made(3, 1, |config| {
        config.balance_leaders = false;
        config.request_deadline = Duration::from_secs(1);
    })
    .await;
    cluster.put(1, "a", "old").await;
    let alone = cluster.leader(1).await;
    assert_eq!(cluster.get(alone, 1, "a").await.as_deref(), Some("old"));
    cluster.network.isolate(NodeId(alone));
    let isolated = Instant::now();
    let node = &cluster.nodes[&alone];
    let write = node.submit(1, &insert("a", "lost")).await.unwrap_err();
    assert!(matches!(&write, ClusterError::OutcomeUnknown(_) | ClusterError::Unavailable(_)), "{write:?}");
    let other = 1 + alone % 3;
    let mut put = None;
    for _ in 0..200 {
        put = Some(cluster.nodes[&other].submit(1, &insert("a", "new")).await);
        if matches!(put, Some(Ok(_))) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    put.unwrap().unwrap();
    let read = node.read(1, &get("a"), Consistency::Linearizable).await.unwrap_err();
    assert!(matches!(&read, ClusterError::Unavailable(_) | ClusterError::NotLeader { .. }), "{read:?}");
    // It takes itself for the leader still, or does not: what it says must be as old as it is, all the same.
    let least = isolated.elapsed();
    let stale = node.read(1, &get("a"), Consistency::Stale).await.unwrap();
    let most = isolated.elapsed() + Duration::from_secs(5);
    assert!(
        stale.age.is_some_and(|age| age + Duration::from_millis(500) >= least && age <= most),
        "{stale:?}, cut off for {least:?}"
    );

    let follower = (1..=3).find(|node| *node != alone && *node != other).unwrap();
    let began = Instant::now();
    loop {
        let stale = cluster.nodes[&follower].read(1, &get("a"), Consistency::Stale).await.unwrap();
        if stale.age.is_none_or(|age| age < Duration::from_secs(1)) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{stale:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    cluster.network.heal();
    // What the minority's leader had appended by itself is gone.
    assert_eq!(cluster.get(alone, 1, "a").await.as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_cut_off_does_not_unseat_the_leader_when_it_is_back() {
    let cluster = Cluster::made(3, 1, |config| config.balance_leaders = false).await;
    cluster.put(1, "a", "1").await;
    let term = |node: u64| {
        let status = cluster.nodes[&node].status();
        status.groups.into_iter().find(|group| group.group == 1).unwrap().term
    };
    // A leader can also lose its place by being late itself, but not each time.
    for _ in 0..10 {
        let leader = cluster.leader(1).await;
        let before = term(leader);
        let follower = 1 + leader % 3;
        cluster.network.isolate(NodeId(follower));
        let cut = term(follower);
        // For several of its election timeouts. It asks whether it would be elected, and nobody hears it.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(term(follower), cut, "it stands for election although nobody would vote");
        let meanwhile = term(leader);
        cluster.network.heal();
        if meanwhile != before {
            continue;
        }
        for n in 0..50 {
            cluster.put(1, "a", &n.to_string()).await;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if (cluster.leader(1).await, term(leader)) == (leader, before) {
            return;
        }
    }
    panic!("the leader was unseated every time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_that_may_be_so_old_is_never_older() {
    let cluster = Cluster::made(5, 1, |config| {
        config.balance_leaders = false;
        config.request_deadline = Duration::from_secs(2);
    })
    .await;
    cluster.change(1, true, Change::Replicas(5)).await.unwrap();
    cluster.put(1, "a", "old").await;
    let leader = cluster.leader(1).await;
    let follower = 1 + leader % 5;
    let old = |age| Consistency::AtMostOld(age);
    let value = |reply: GroupReadReply| match reply {
        GroupReadReply::Value(found) => found.map(|found| String::from_utf8(found.value.to_vec()).unwrap()),
        other => panic!("{other:?}"),
    };
    for node in [leader, follower] {
        let read = cluster.nodes[&node].read(1, &get("a"), old(Duration::ZERO)).await.unwrap();
        assert_eq!(value(read.reply).as_deref(), Some("old"));
    }
    let confirmed = Instant::now();
    // The leader keeps one follower, and knows nothing of having lost the others: by what it says, that
    // follower is level all the time.
    for node in [leader, follower] {
        for other in (1..=5).filter(|other| ![leader, follower].contains(other)) {
            cluster.network.cut(NodeId(node), NodeId(other));
            cluster.network.cut(NodeId(other), NodeId(node));
        }
    }
    for node in [leader, follower] {
        let read = cluster.nodes[&node].read(1, &get("a"), old(Duration::from_secs(600))).await.unwrap();
        assert_eq!(value(read.reply).as_deref(), Some("old"), "it asks nobody");
        let age = read.age.unwrap();
        assert!(age <= confirmed.elapsed() + Duration::from_secs(1), "{age:?}");
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    for node in [leader, follower] {
        let read = cluster.nodes[&node].read(1, &get("a"), old(Duration::from_millis(250))).await;
        assert!(matches!(&read, Err(error) if error.is_definite()), "node {node} knows of nobody: {read:?}");
        cluster.nodes[&node].read(1, &get("a"), Consistency::Stale).await.unwrap();
    }
    cluster.network.heal();
    cluster.put(1, "a", "new").await;
    for node in 1..=5 {
        let began = Instant::now();
        let read = loop {
            match cluster.nodes[&node].read(1, &get("a"), old(Duration::ZERO)).await {
                Ok(read) => break read,
                Err(error) => assert!(began.elapsed() < Duration::from_secs(20), "{error}"),
            }
        };
        assert_eq!(value(read.reply).as_deref(), Some("new"), "node {node}");
        let read = cluster.nodes[&node].read(1, &get("a"), old(Duration::from_secs(5))).await.unwrap();
        assert!(read.age.is_some_and(|age| age <= Duration::from_secs(5)), "{read:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_end_by_an_entry_when_their_lease_has_passed() {
    let cluster = Cluster::made(3, 1, |config| config.maintenance_every = Duration::from_millis(50)).await;
    let mut used = None;
    for session in 9..19 {
        let opened = cluster.submit(1, &open_session(session, 2_000)).await;
        assert!(matches!(opened.result, Ok(Answer::Session { .. })));
        let first = cluster.submit(1, &in_session(session, 1, insert("a", "1"))).await;
        if first.result.is_ok() {
            used = Some(session);
            break;
        }
        // It came too late already.
        assert_eq!(first.result, Err(Refusal::SessionUnknown(SessionId(session))));
    }
    let session = used.expect("a command in time");
    let began = Instant::now();
    loop {
        let read = &GroupRead::EarliestSessionExpiry;
        let earliest = cluster.nodes[&1].read(1, read, Consistency::Linearizable).await;
        if earliest.as_ref().is_ok_and(|earliest| earliest.reply == GroupReadReply::Time(None)) {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{earliest:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let late = cluster.submit(1, &in_session(session, 2, insert("a", "2"))).await;
    assert_eq!(late.result, Err(Refusal::SessionUnknown(SessionId(session))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_shared_and_handed_over_on_shutdown() {
    // So long that whoever waits for an election shows.
    const ELECTION: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(40));
    let mut cluster = Cluster::made(3, 8, |config| {
        config.maintenance_every = Duration::from_millis(100);
        config.timing = Timing { heartbeat: Duration::from_millis(400), election: ELECTION };
    })
    .await;
    let nodes: Vec<Node> = cluster.nodes.values().cloned().collect();
    let led = |node: &Node| node.status().groups.iter().filter(|group| group.role == Role::Leader).count();
    wait_for("leaders to be spread", || nodes.iter().all(|node| led(node) == 3)).await;
    drop(nodes);
    // An orderly stop: no group waits for an election.
    let began = Instant::now();
    cluster.stop(2).await;
    for group in 0..=8 {
        cluster.put(group, "a", "1").await;
    }
    let elapsed = began.elapsed();
    assert!(elapsed < Duration::from_secs(15), "{elapsed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_tells_what_happens_after_it_began() {
    let cluster = Cluster::made(3, 1, |_| {}).await;
    let request = ClientRequest::Watch { group: 1, tree: "tree".into(), prefix: "dog/".into(), told: None };
    let mut stream = cluster.nodes[&2].client_stream(&ClientIdentity::default(), request.encode());
    assert!(matches!(told(&mut stream).await[..], [WatchEvent::Began { .. }]));
    // The tree comes into being with this.
    cluster.put(1, "dog/1", "Balto").await;
    cluster.put(1, "cat/1", "Tom").await;
    cluster.put(1, "dog/2", "Togo").await;
    let mut keys = Vec::new();
    while keys.len() < 2 {
        for event in told(&mut stream).await {
            match event {
                WatchEvent::Put { key, value, .. } => keys.push((key, value)),
                WatchEvent::Progress { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(keys, [("dog/1".into(), "Balto".into()), ("dog/2".into(), "Togo".into())]);
}

async fn told(stream: &mut BoxStream<'static, Bytes>) -> Vec<WatchEvent> {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
    WatchEvent::decode(message.expect("a message in time").expect("no end")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_goes_on_at_any_node_to_the_event_or_is_told_that_it_comes_too_late() {
    let cluster = Cluster::made(3, 1, |config| config.watch_bytes = 200 << 10).await;
    let watch = |node: u64, told| {
        let request = ClientRequest::Watch { group: 1, tree: "tree".into(), prefix: "".into(), told };
        cluster.nodes[&node].client_stream(&ClientIdentity::default(), request.encode())
    };
    // Entries of three keys each.
    let batch = |i: u64| {
        let write = |n: u64| Write {
            tree: TreeId(0),
            key: IVec::from(format!("{i} {n}").as_str()),
            value: Some(IVec::from("v")),
        };
        command(Command::Batch { writes: (0..3).map(write).collect() }, &["tree"])
    };
    cluster.put(1, "first", "1").await;
    let mut at = Vec::new();
    for i in 0..20 {
        at.push(cluster.submit(1, &batch(i)).await.position);
    }
    // As if it had been told all but the last two keys of the sixth, be the node's replica behind or not.
    for node in 1..=3 {
        let mut stream = watch(node, Some(Told { position: at[5] - 1, events: 1 }));
        let mut keys = Vec::new();
        while keys.len() < 2 + 14 * 3 {
            for event in told(&mut stream).await {
                match event {
                    WatchEvent::Began { position } => assert_eq!((position, keys.len()), (at[5] - 1, 0)),
                    WatchEvent::Put { key, position, .. } => {
                        let number = keys.len() + 1;
                        assert_eq!(key, format!("{} {}", 5 + number / 3, number % 3));
                        assert_eq!(position, at[5 + number / 3]);
                        keys.push(key);
                    }
                    WatchEvent::Progress { .. } => {}
                    other => panic!("{other:?}"),
                }
            }
        }
    }
    // More than is kept.
    for i in 0..40 {
        cluster.put(1, &format!("large {i}"), &"x".repeat(10_000)).await;
    }
    let mut late = watch(1, Some(Told::all_to(at[5])));
    let [WatchEvent::Compacted { position }] = told(&mut late).await[..] else { panic!("it comes too late") };
    assert!(position > at[19]);
    assert!(late.next().await.is_none());
    let mut in_time = watch(1, Some(Told::all_to(position)));
    assert_eq!(told(&mut in_time).await, [WatchEvent::Began { position }]);
    assert!(
        matches!(told(&mut in_time).await[0], WatchEvent::Put { position: first, .. } if first > position)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_lasts_while_nothing_happens_and_ends_when_its_node_is_cut_off() {
    let request = ClientRequest::Watch { group: 1, tree: "tree".into(), prefix: "".into(), told: None };
    let is_progress = |message: &Bytes| {
        let events = WatchEvent::decode(message.clone()).unwrap();
        events.iter().all(|event| matches!(event, WatchEvent::Progress { .. }))
    };
    let watch = |node: &Node| {
        let stream = node.client_stream(&ClientIdentity::default(), request.encode());
        stream.filter(move |message| std::future::ready(!is_progress(message))).boxed()
    };
    let alone = Cluster::made(1, 1, |_| {}).await;
    // One leader all the time: a watch may end with another.
    let mut cluster = Cluster::made(3, 1, |config| {
        config.balance_leaders = false;
        config.timing = Timing::WAN;
    })
    .await;
    let mut alone_quiet = watch(&alone.nodes[&1]);
    let mut quiet: Vec<_> = cluster.nodes.values().map(watch).collect();
    for stream in quiet.iter_mut().chain([&mut alone_quiet]) {
        assert!(stream.next().await.is_some(), "it begins");
    }
    {
        let all = quiet.iter_mut().chain([&mut alone_quiet]);
        let any = futures_util::future::select_all(all.map(|stream| stream.next()));
        let heard = tokio::time::timeout(Duration::from_secs(12), any).await;
        assert!(heard.is_err(), "nothing happens, but one of them says something, or ends");
    }
    cluster.kill(2).await;
    cluster.kill(3).await;
    let ended = async { while quiet[0].next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("an end");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_of_another_node_or_cluster_is_refused() {
    let mut cluster = Cluster::made(1, 1, |_| {}).await;
    let config = cluster.config(1);
    let start = |config| Node::start(config, cluster.network.transport(NodeId(1)));
    let in_use = start(config.clone()).await.err().unwrap();
    assert!(in_use.to_string().contains("in use"), "{in_use}");
    let running = cluster.nodes[&1].clone();
    running.shutdown().await.unwrap();
    let mut other_node = config.clone();
    other_node.node = NodeId(2);
    let refused = start(other_node).await.err().unwrap().to_string();
    assert!(refused.contains("it belongs to node 1, not to node 2"), "{refused}");
    let mut other_cluster = config.clone();
    other_cluster.cluster = Some(5);
    let refused = start(other_cluster).await.err().unwrap().to_string();
    assert!(refused.contains("it belongs to the cluster"), "{refused}");
    let again = start(config).await.unwrap();
    assert_eq!(again.cluster(), running.cluster());
    cluster.nodes.insert(1, again);
    assert_eq!(cluster.get(1, 1, "a").await, None);
}

/// The WAL may be a file system of its own, which is not mounted. A node that began a new one would vote again in terms in
/// which it has voted, and would not have what it has said that it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_does_not_start_without_the_log_that_it_had() {
    let mut cluster = Cluster::made(1, 1, |_| {}).await;
    cluster.put(1, "a", "1").await;
    let config = cluster.config(1);
    cluster.stop(1).await;
    let (wal, aside) = (config.directory.join("wal"), config.directory.join("aside"));
    std::fs::rename(&wal, &aside).unwrap();
    // The second time there is a directory, and nothing in it.
    for _ in 0..2 {
        let refused = Node::start(config.clone(), cluster.network.transport(NodeId(1))).await.err().unwrap();
        assert!(refused.to_string().contains("wal"), "{refused}");
    }
    std::fs::remove_dir_all(&wal).unwrap();
    std::fs::rename(&aside, &wal).unwrap();
    cluster.start(1).await;
    assert_eq!(cluster.get(1, 1, "a").await.as_deref(), Some("1"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_that_goes_to_who_has_it_changes_nothing() {
    let mut cluster = Cluster::made(1, 1, |_| {}).await;
    cluster.put(1, "before", "1").await;
    cluster.any().transfer_leader(1, NodeId(1)).await.unwrap();
    cluster.put(1, "after", "2").await;
    assert_eq!(cluster.get(1, 1, "after").await.as_deref(), Some("2"));
    cluster.stop(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_of_another_version_does_not_get_into_the_log() {
    let mut cluster = Cluster::made(1, 1, |_| {}).await;
    cluster.put(1, "before", "1").await;
    let mut command = dogsled_storage::codec::encode_group_command(&insert("key", "value")).unwrap();
    command[0] += 1;
    let request = ClientRequest::Submit { group: 1, deadline: Duration::ZERO, command: command.into() };
    let refused = cluster.any().request(request).await.unwrap_err();
    assert!(matches!(&refused, ClusterError::Invalid(why) if why.contains("version 4")), "{refused:?}");
    cluster.put(1, "after", "2").await;
    cluster.stop(1).await;
}

/// A way to other nodes on which nothing arrives at one that stands still, nor comes from it, and that keeps what it
/// was given for as long as it may try to deliver it.
struct StandingStill {
    from: NodeId,
    way: Arc<dyn Transport>,
    /// Which node stands still; 0: none.
    still: Arc<AtomicU64>,
    /// Bytes that are kept for it, and the most that there ever were.
    kept: Arc<Mutex<(usize, usize)>>,
}

impl Transport for StandingStill {
    fn request(
        &self,
        to: NodeId,
        lane: Lane,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let still = NodeId(self.still.load(Ordering::SeqCst));
        if to != still && self.from != still {
            return self.way.request(to, lane, body, deadline);
        }
        {
            let (now, most) = &mut *self.kept.lock();
            *now += body.len();
            *most = (*most).max(*now);
        }
        // Even if nobody waits for the answer any more, as a connection does.
        let kept = Arc::clone(&self.kept);
        let delivering = tokio::spawn(async move {
            tokio::time::sleep(deadline).await;
            kept.lock().0 -= body.len();
        });
        async move {
            delivering.await.unwrap();
            Err(TransportError::TimedOut)
        }
        .boxed()
    }

    fn set_addresses(&self, peer: NodeId, addresses: Vec<String>) {
        self.way.set_addresses(peer, addresses);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_a_follower_that_stands_still_is_bounded_and_it_catches_up() {
    let mut cluster = Cluster::new(|config| {
        config.balance_leaders = false;
        config.timing = Timing::WAN;
    });
    let (still, kept) = (Arc::new(AtomicU64::new(0)), Arc::new(Mutex::new((0, 0))));
    for node in [1, 2, 3].map(NodeId) {
        let way = cluster.network.transport(node);
        let transport = StandingStill { from: node, way, still: Arc::clone(&still), kept: Arc::clone(&kept) };
        let started = Node::start(cluster.config(node.0), Arc::new(transport)).await.unwrap();
        cluster.network.attach(node, Arc::new(started.clone()));
        cluster.nodes.insert(node.0, started);
    }
    let members = (1..=3).map(|node| (NodeId(node), crate::common::addresses(node))).collect();
    cluster.nodes[&1].initialize_cluster(1, members).await.unwrap();
    cluster.put(1, "before", "1").await;

    let (meta, leader) = (cluster.leader(0).await, cluster.leader(1).await);
    let away = (1..=3).find(|node| ![meta, leader].contains(node)).unwrap();
    still.store(away, Ordering::SeqCst);
    let value = "x".repeat(128 << 10);
    let writers = (0..16).map(|writer| {
        let (node, value) = (cluster.nodes[&leader].clone(), value.clone());
        async move {
            for number in 0..100 {
                let command = insert(&format!("{writer}/{number}"), &value);
                let began = Instant::now();
                // Twice is as good as once.
                loop {
                    match node.submit(1, &command).await {
                        Ok(reply) => break drop(reply.result.unwrap()),
                        Err(error @ ClusterError::Invalid(_)) => panic!("{error}"),
                        Err(error) => assert!(began.elapsed() < Duration::from_secs(120), "{error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    });
    futures_util::future::join_all(writers).await;
    let most = kept.lock().1;
    // Some MiB in each of two groups: see `MAX_IN_FLIGHT_BYTES`, and what may follow it at once.
    assert!((1 << 20..16 << 20).contains(&most), "{most} bytes were kept of about 200 MiB");

    still.store(0, Ordering::SeqCst);
    let leader = cluster.leader(1).await;
    let position = cluster.nodes[&leader].status().groups[1].applied;
    let nodes = cluster.nodes.clone();
    wait_for("it to catch up", || nodes[&away].status().groups[1].applied >= position).await;
    assert_eq!(cluster.get(away, 1, "15/99").await.map(|value| value.len()), Some(value.len()));
}
