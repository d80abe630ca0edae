//! Groups that have lost their quorum for ever are brought back from what is left, and what was given up
//! stays out.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::common::{Cluster, addresses, get, insert};
use bytes::Bytes;
use dogsled_replication::watch::{Told, WatchEvent, history, position_in_log};
use dogsled_replication::{
    ClientIdentity, ClientReply, ClientRequest, ClusterError, Consistency, Node, NodeConfig, NodeId,
    Recovery, Service,
};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;

const PARTITIONS: u32 = 6;

fn quick(config: &mut NodeConfig) {
    config.maintenance_every = Duration::from_millis(50);
    config.request_deadline = Duration::from_secs(3);
}

fn nodes(ids: &[u64]) -> Vec<NodeId> {
    ids.iter().copied().map(NodeId).collect()
}

async fn recover(node: &Node, lost: &[u64], accept: bool) -> Result<Recovery, ClusterError> {
    let request = ClientRequest::Recover { lost: nodes(lost), accept_data_loss: accept };
    match node.request(request).await? {
        ClientReply::Recovery(recovery) => Ok(*recovery),
        other => panic!("{other:?}"),
    }
}

/// A recovery is refused as long as those who are gone were heard a moment ago.
async fn recovers(node: &Node, lost: &[u64]) -> Recovery {
    let began = Instant::now();
    loop {
        match recover(node, lost, true).await {
            Ok(recovery) => return recovery,
            Err(error) if began.elapsed() > Duration::from_secs(20) => panic!("{error}"),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn fill(cluster: &Cluster, name: &str, groups: impl IntoIterator<Item = u32>) {
    for group in groups {
        for number in 0..10 {
            cluster.put(group, &format!("{name} {number}"), name).await;
        }
    }
}

async fn check(cluster: &Cluster, node: u64, name: &str, groups: impl IntoIterator<Item = u32>) {
    for group in groups {
        for number in 0..10 {
            let found = cluster.get(node, group, &format!("{name} {number}")).await;
            assert_eq!(found.as_deref(), Some(name), "node {node}, group {group}, {number}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_goes_on_and_new_members_join_it() {
    let mut cluster = Cluster::made(3, PARTITIONS, quick).await;
    fill(&cluster, "before", 1..=PARTITIONS).await;
    // All three have it.
    for node in 1..=3 {
        check(&cluster, node, "before", 1..=PARTITIONS).await;
    }
    let with_quorum = recover(&cluster.nodes[&1], &[2], true).await.unwrap_err();
    assert!(with_quorum.to_string().contains("node 2 answers"), "{with_quorum}");
    cluster.kill(2).await;
    let with_quorum = recover(&cluster.nodes[&1], &[2], true).await.unwrap_err();
    assert!(with_quorum.to_string().contains("every group has its quorum"), "{with_quorum}");
    cluster.kill(3).await;

    let planned = recover(&cluster.nodes[&1], &[], false).await.unwrap();
    assert_eq!((planned.done, &planned.lost), (false, &nodes(&[2, 3])));
    assert_eq!(planned.groups.len(), PARTITIONS as usize + 1);
    assert!(planned.groups.iter().all(|group| group.survivor == Some(NodeId(1)) && group.last.position > 0));
    let unnamed = recover(&cluster.nodes[&1], &[], true).await.unwrap_err();
    assert!(unnamed.to_string().contains("say which"), "{unnamed}");
    let one_named = recover(&cluster.nodes[&1], &[2], true).await.unwrap_err();
    assert!(one_named.to_string().contains("node 3 does not answer"), "{one_named}");
    // Looking has changed nothing: there is still no quorum.
    let refused = cluster.nodes[&1].submit(1, &insert("x", "y")).await.unwrap_err();
    assert!(!matches!(refused, ClusterError::Invalid(_)), "{refused}");

    let recovery = recovers(&cluster.nodes[&1], &[2, 3]).await;
    assert!(recovery.done);
    check(&cluster, 1, "before", 1..=PARTITIONS).await;
    fill(&cluster, "alone", 1..=PARTITIONS).await;
    let record = cluster.nodes[&1].record().unwrap();
    assert_eq!(record.removed, BTreeSet::from([NodeId(2), NodeId(3)]));
    let again = recover(&cluster.nodes[&1], &[2, 3], true).await.unwrap_err();
    assert!(again.to_string().contains("every group has its quorum"), "{again}");

    // It is as durable as ever, and grows.
    cluster.kill(1).await;
    cluster.start(1).await;
    check(&cluster, 1, "alone", 1..=PARTITIONS).await;
    for node in [4, 5] {
        cluster.start(node).await;
        cluster.nodes[&node].join(vec![(NodeId(1), addresses(1))]).await.unwrap();
    }
    cluster.kill(1).await;
    fill(&cluster, "after", 1..=PARTITIONS).await;
    for name in ["before", "alone", "after"] {
        check(&cluster, 4, name, 1..=PARTITIONS).await;
    }
}

fn watch(node: &Node, told: Option<Told>) -> BoxStream<'static, Bytes> {
    let request = ClientRequest::Watch { group: 1, tree: "tree".into(), prefix: "".into(), told };
    node.client_stream(&ClientIdentity::default(), request.encode())
}

async fn next(stream: &mut BoxStream<'static, Bytes>) -> Vec<WatchEvent> {
    let message = tokio::time::timeout(Duration::from_secs(20), stream.next()).await;
    WatchEvent::decode(message.expect("a message in time").expect("no end")).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_was_told_of_what_is_lost_is_not_taken_for_another_one() {
    let mut cluster = Cluster::made(3, 1, quick).await;
    fill(&cluster, "before", [1]).await;
    check(&cluster, 1, "before", [1]).await;
    cluster.network.isolate(NodeId(1));
    let one = cluster.nodes.remove(&1).unwrap();
    fill(&cluster, "only 2 and 3", [1]).await;
    let mut stream = watch(&cluster.nodes[&2], None);
    let [WatchEvent::Began { position: told }] = next(&mut stream).await[..] else { panic!("no beginning") };
    assert_eq!((history(told), position_in_log(told)), (0, told));
    cluster.nodes.insert(1, one);
    cluster.kill(2).await;
    cluster.kill(3).await;
    cluster.network.heal();
    let mut ends = watch(&cluster.nodes[&1], None);
    next(&mut ends).await;
    recovers(&cluster.nodes[&1], &[2, 3]).await;
    let ended = async { while ends.next().await.is_some() {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("an end");

    // Past what was told, by entries that are others.
    for number in 0..50 {
        cluster.put(1, &format!("after {number}"), "v").await;
    }
    for restarted in [false, true] {
        let position = loop {
            let mut late = watch(&cluster.nodes[&1], Some(Told::all_to(told)));
            match next(&mut late).await[..] {
                [WatchEvent::Compacted { position }] => {
                    assert!(late.next().await.is_none());
                    break position;
                }
                // One that was started just now has not come to the new history yet; then it ends there.
                [WatchEvent::Began { .. }] if restarted => {
                    let ended = async { while late.next().await.is_some() {} };
                    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("an end");
                }
                ref other => panic!("taken for new: {other:?}"),
            }
        };
        assert!(history(position) == 1 && position_in_log(position) > told, "{position:x}");
        let mut goes_on = watch(&cluster.nodes[&1], Some(Told::all_to(position)));
        assert_eq!(next(&mut goes_on).await, [WatchEvent::Began { position }]);
        // Of a history that this node does not know: it says nothing, so that another one is asked.
        let mut unknown = watch(&cluster.nodes[&1], Some(Told::all_to(position + (1 << 48))));
        assert!(unknown.next().await.is_none());
        if !restarted {
            cluster.kill(1).await;
            cluster.start(1).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_members_that_come_back_are_refused_and_serve_nobody() {
    let mut cluster = Cluster::made(3, 2, |config| {
        quick(config);
        config.balance_leaders = false;
    })
    .await;
    fill(&cluster, "before", [1, 2]).await;
    // Node 1 misses what the two others acknowledge: this is what will be lost.
    cluster.network.isolate(NodeId(1));
    let one = cluster.nodes.remove(&1).unwrap();
    fill(&cluster, "only 2 and 3", [1, 2]).await;
    cluster.nodes.insert(1, one);
    cluster.kill(2).await;
    cluster.kill(3).await;
    cluster.network.heal();
    recovers(&cluster.nodes[&1], &[2, 3]).await;
    fill(&cluster, "after", [1, 2]).await;
    assert_eq!(cluster.get(1, 1, "only 2 and 3 0").await, None, "nobody was left who had it");

    // Both come back, with a majority among themselves, longer logs, and terms of their own.
    cluster.start(2).await;
    cluster.start(3).await;
    let began = Instant::now();
    for node in [2, 3] {
        // Its own replica, which it asks nobody about: so this is itself that refuses.
        loop {
            let read = cluster.nodes[&node].read(1, &get("before 0"), Consistency::Stale).await;
            match read {
                Err(ClusterError::Unavailable(why)) if why.contains("taken out") => break,
                _ if began.elapsed() > Duration::from_secs(20) => panic!("node {node}: {read:?}"),
                _ => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        let written = cluster.nodes[&node].submit(1, &insert("x", "old")).await.unwrap_err();
        assert!(written.to_string().contains("taken out"), "node {node}: {written}");
        let read =
            cluster.nodes[&node].read(1, &get("before 0"), Consistency::Linearizable).await.unwrap_err();
        assert!(read.to_string().contains("taken out"), "node {node}: {read}");
    }
    // Node 1 has not followed them, and they are not taken in again.
    let only_one = |cluster: &Cluster| {
        let status = cluster.nodes[&1].status();
        assert!(status.groups.iter().all(|group| group.voters == [NodeId(1)]), "{status:?}");
        assert!(status.groups.iter().all(|group| group.term >= 1 << 32), "{status:?}");
    };
    only_one(&cluster);
    for node in [2, 3] {
        let refused = cluster.nodes[&1].add_member(NodeId(node), addresses(node)).await.unwrap_err();
        assert!(refused.to_string().contains("never"), "{refused}");
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    only_one(&cluster);
    check(&cluster, 1, "after", [1, 2]).await;
    assert_eq!(cluster.get(1, 1, "only 2 and 3 0").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_five_two_are_lost_and_only_what_they_took_with_them_is_given_up() {
    let mut cluster = Cluster::made(5, PARTITIONS, quick).await;
    let began = Instant::now();
    let formed = |cluster: &Cluster| {
        cluster.nodes.values().all(|node| {
            let hosted = node.status().groups.len();
            let wanted = node.record().map_or(0, |record| {
                (1..=PARTITIONS).filter(|group| record.replicas_of(*group).contains(&node.id())).count() + 1
            });
            hosted == wanted
        })
    };
    while !formed(&cluster) {
        let statuses = || cluster.nodes.values().map(Node::status).collect::<Vec<_>>();
        assert!(began.elapsed() < Duration::from_secs(20), "not formed: {:?}", statuses());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    fill(&cluster, "before", 1..=PARTITIONS).await;
    let record = cluster.nodes[&1].record().unwrap();
    // Two that have a partition together; one of the three that are left has its third replica.
    let lost = record.replicas_of(1)[..2].to_vec();
    let alive: Vec<u64> = (1..=5).filter(|node| !lost.contains(&NodeId(*node))).collect();
    let dead = |group: &u32| {
        let replicas = record.replicas_of(*group);
        replicas.iter().filter(|node| lost.contains(node)).count() == 2
    };
    let (without, with): (Vec<u32>, Vec<u32>) = (1..=PARTITIONS).partition(dead);
    assert!(!without.is_empty() && !with.is_empty(), "{record:?}");
    // So that every survivor has all that was acknowledged.
    for node in &alive {
        check(&cluster, *node, "before", 1..=PARTITIONS).await;
    }
    for node in &lost {
        cluster.kill(node.0).await;
    }
    fill(&cluster, "meanwhile", with.iter().copied()).await;
    let before: Vec<u64> = with.iter().map(|group| term(&cluster, *group)).collect();
    let recovery = recovers(&cluster.nodes[&alive[0]], &[lost[0].0, lost[1].0]).await;
    let recovered: Vec<u32> = recovery.groups.iter().map(|group| group.group).collect();
    assert_eq!(recovered, without, "the meta group and the others keep their quorum");
    fill(&cluster, "after", 1..=PARTITIONS).await;
    for node in alive {
        check(&cluster, node, "before", 1..=PARTITIONS).await;
        check(&cluster, node, "meanwhile", with.iter().copied()).await;
        check(&cluster, node, "after", 1..=PARTITIONS).await;
    }
    for (group, before) in with.iter().zip(before) {
        assert!(term(&cluster, *group) < before + (1 << 31), "group {group} was left alone");
    }
    // Every partition has three replicas again, on those who are left.
    let began = Instant::now();
    loop {
        let whole = (1..=PARTITIONS).all(|group| {
            let statuses = cluster.nodes.values().map(Node::status);
            let seen = statuses
                .filter(|status| status.groups.iter().any(|g| g.group == group && g.voters.len() == 3));
            seen.count() == 3
        });
        if whole {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "not whole again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn term(cluster: &Cluster, group: u32) -> u64 {
    let statuses = cluster.nodes.values().flat_map(|node| node.status().groups);
    statuses.filter(|seen| seen.group == group).map(|seen| seen.term).max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_was_told_that_it_is_out_knows_it_when_it_is_started_again_and_hears_of_nobody() {
    let mut cluster = Cluster::made(3, 2, quick).await;
    fill(&cluster, "before", [1, 2]).await;
    cluster.kill(2).await;
    cluster.kill(3).await;
    recovers(&cluster.nodes[&1], &[2, 3]).await;
    cluster.start(2).await;
    cluster.start(3).await;
    let is_out = async |node: &Node| match node.read(1, &get("before 0"), Consistency::Stale).await {
        Err(ClusterError::Unavailable(why)) => why.contains("taken out"),
        _ => false,
    };
    for node in [2, 3] {
        let began = Instant::now();
        while !is_out(&cluster.nodes[&node]).await {
            assert!(began.elapsed() < Duration::from_secs(20), "node {node} is not told");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    // It is written down in a moment: a flag, see `node_file`.
    let began = Instant::now();
    for node in [2, 3] {
        let file = cluster.config(node).directory.join("node");
        while std::fs::read(&file).unwrap()[56] & 2 == 0 {
            assert!(began.elapsed() < Duration::from_secs(30), "node {node} does not write it down");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    cluster.kill(2).await;
    cluster.kill(3).await;
    cluster.network.isolate(NodeId(1));
    cluster.start(2).await;
    cluster.start(3).await;
    // Two of three, who hear each other: they would be a quorum of the old history.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        for node in [2, 3] {
            assert!(is_out(&cluster.nodes[&node]).await, "node {node}");
            let status = cluster.nodes[&node].status();
            let leads = status.groups.iter().any(|group| group.role == dogsled_replication::Role::Leader);
            assert!(!leads, "{status:?}");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    check(&cluster, 1, "before", [1, 2]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_operators_at_once_one_recovers_and_the_other_hears_of_it() {
    // Of three replicas on four members one at least is left when two are lost.
    let mut cluster = Cluster::made(4, PARTITIONS, quick).await;
    fill(&cluster, "before", 1..=PARTITIONS).await;
    for node in [1, 2] {
        check(&cluster, node, "before", 1..=PARTITIONS).await;
    }
    for node in [3, 4] {
        cluster.kill(node).await;
    }
    let began = Instant::now();
    // Each by way of another survivor, and both again at once if neither was let in: as long as those who are gone
    // were heard a moment ago, neither is.
    loop {
        let (one, other) = tokio::join!(
            recover(&cluster.nodes[&1], &[3, 4], true),
            recover(&cluster.nodes[&2], &[3, 4], true)
        );
        let (recovered, refused) = match (one, other) {
            (Ok(recovered), Err(refused)) | (Err(refused), Ok(recovered)) => (recovered, refused),
            (Ok(one), Ok(other)) => panic!("both have recovered: {one:?}, {other:?}"),
            (Err(one), Err(other)) => {
                assert!(began.elapsed() < Duration::from_secs(30), "{one}, {other}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        assert!(recovered.done);
        let is_told = match &refused {
            ClusterError::Conflict(why) => why.contains("another recovery"),
            // The first was quick.
            ClusterError::Invalid(why) => why.contains("every group has its quorum"),
            _ => false,
        };
        assert!(is_told, "{refused}");
        break;
    }
    fill(&cluster, "after", 1..=PARTITIONS).await;
    for node in [1, 2] {
        check(&cluster, node, "before", 1..=PARTITIONS).await;
        check(&cluster, node, "after", 1..=PARTITIONS).await;
    }
}

/// As one leaves it who dies between writing down whom it is about to give up and the entry that gives them up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_only_about_to_be_given_up_is_not_when_the_log_comes_to_that_term() {
    let mut cluster = Cluster::made(3, 1, |_| {}).await;
    cluster.put(1, "k", "1").await;
    cluster.stop(1).await;
    let words = |words: &[u64]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    let of_node = |node: u64| {
        // Version 1, one node, nobody held; the node, and the term from which on it counts.
        let mut bytes = [&b"doglost\0"[..], &words(&[1 | 1 << 32, 0, 0, 0, 0, node, 1 << 40])].concat();
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    };
    let path = cluster.config(1).directory.join("given-up");
    std::fs::write(&path, of_node(2)).unwrap();
    cluster.start(1).await;
    let left = std::fs::read(&path).unwrap();
    assert!(left.len() < of_node(2).len(), "node 2 is still written down: {left:?}");
    cluster.put(1, "k", "2").await;
    assert_eq!(cluster.get(1, 1, "k").await.as_deref(), Some("2"));
}
