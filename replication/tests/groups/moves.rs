//! Partitions lie on some members only, and move when members come and go.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::common::{Cluster, addresses, done, get, insert};
use dogsled_replication::{
    Change, ClientReply, ClientRequest, ClusterError, Consistency, GroupStatus, MemberState, NodeConfig,
    NodeId, Role,
};

fn quick(config: &mut NodeConfig) {
    config.maintenance_every = Duration::from_millis(50);
    config.request_deadline = Duration::from_secs(5);
}

/// So few entries are kept that whoever is new gets a snapshot.
fn quick_with_snapshots(config: &mut NodeConfig) {
    quick(config);
    config.keep_entries = 10;
}

const PARTITIONS: u32 = 8;

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(60), "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Every group is where the record wants it, nobody has anything else, on disk neither.
fn is_as_wanted(cluster: &Cluster) -> Result<(), String> {
    let records: Vec<_> = cluster.nodes.values().filter_map(|node| node.record()).collect();
    let Some(record) = records.iter().max_by_key(|record| record.epoch) else {
        return Err("no record".to_owned());
    };
    for (id, node) in &cluster.nodes {
        let id = NodeId(*id);
        if !record.members.contains_key(&id) {
            continue;
        }
        let status = node.status();
        let has: BTreeSet<u32> = status.groups.iter().map(|group| group.group).collect();
        let wanted: BTreeSet<u32> = (0..=PARTITIONS)
            .filter(|group| *group == 0 || record.replicas_of(*group).contains(&id))
            .collect();
        if has != wanted {
            return Err(format!("node {id} has {has:?}, wanted are {wanted:?}"));
        }
        for group in &status.groups {
            let wanted: BTreeSet<NodeId> = record.replicas_of(group.group).iter().copied().collect();
            let voters: BTreeSet<NodeId> = group.voters.iter().copied().collect();
            if voters != wanted || group.joint {
                return Err(format!("node {id}, group {}: {voters:?}, wanted {wanted:?}", group.group));
            }
            if group.group > 0 && !group.learners.is_empty() {
                return Err(format!("node {id}, group {}: learners {:?}", group.group, group.learners));
            }
        }
        let directory = cluster.directory.path().join(format!("node-{id}/groups"));
        for group in 1..=PARTITIONS {
            if !wanted_on_disk(&has, group) && directory.join(group.to_string()).exists() {
                return Err(format!("node {id} still has a directory of group {group}"));
            }
        }
    }
    Ok(())
}

fn wanted_on_disk(has: &BTreeSet<u32>, group: u32) -> bool {
    has.contains(&group)
}

async fn settles(cluster: &Cluster) {
    let began = Instant::now();
    while let Err(why) = is_as_wanted(cluster) {
        assert!(began.elapsed() < Duration::from_secs(60), "{why}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn fill(cluster: &Cluster, name: &str) {
    for group in 1..=PARTITIONS {
        for number in 0..20 {
            cluster.put(group, &format!("{name} {number}"), &"v".repeat(200)).await;
        }
    }
}

async fn check(cluster: &Cluster, name: &str) {
    for node in cluster.nodes.keys() {
        for group in 1..=PARTITIONS {
            for number in [0, 19] {
                let found = cluster.get(*node, group, &format!("{name} {number}")).await;
                assert!(found.is_some(), "node {node}, group {group}, {name} {number}");
            }
        }
    }
}

fn seeds(nodes: impl IntoIterator<Item = u64>) -> Vec<(NodeId, Vec<String>)> {
    nodes.into_iter().map(|node| (NodeId(node), addresses(node))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn four_nodes_have_three_replicas_of_each_partition_and_each_answers_for_all() {
    let mut cluster = Cluster::made(4, PARTITIONS, quick).await;
    settles(&cluster).await;
    let record = cluster.nodes[&1].record().unwrap();
    assert_eq!((record.replicas, record.meta_voters.len()), (3, 3));
    for (node, loads) in record.placement.loads() {
        assert!((5..=7).contains(&loads.0), "node {node} has {loads:?}");
    }
    fill(&cluster, "a").await;
    check(&cluster, "a").await;

    // Stale reads, too, are answered by whoever has the partition.
    let elsewhere = (1..=PARTITIONS).find(|group| !record.replicas_of(*group).contains(&NodeId(1))).unwrap();
    let stale = cluster.nodes[&1].read(elsewhere, &get("a 0"), Consistency::Stale).await.unwrap();
    assert!(stale.position > 0);

    // One of them dies: everything is still served by the others.
    cluster.kill(4).await;
    fill(&cluster, "b").await;
    check(&cluster, "b").await;
    cluster.start(4).await;
    settles(&cluster).await;
    check(&cluster, "b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_move_to_who_joins_and_away_from_who_leaves() {
    let mut cluster = Cluster::made(1, PARTITIONS, quick_with_snapshots).await;
    fill(&cluster, "one").await;
    for node in 2..=5 {
        cluster.start(node).await;
        cluster.nodes[&node].join(seeds([1])).await.unwrap();
        settles(&cluster).await;
        fill(&cluster, &format!("with {node}")).await;
    }
    check(&cluster, "one").await;
    check(&cluster, "with 3").await;
    for node in [1, 2] {
        cluster.remove_member(5, node).await.unwrap();
        cluster.stop(node).await;
        settles(&cluster).await;
        check(&cluster, "with 5").await;
    }
    check(&cluster, "one").await;
    eventually("it is known who was taken out", || {
        let record = cluster.nodes[&5].record().unwrap();
        record.members.len() == 3 && record.removed == BTreeSet::from([NodeId(1), NodeId(2)])
    })
    .await;

    // An id that was removed is never taken in again, not with what it remembers, and not without.
    let again = done(async || cluster.nodes[&5].add_member(NodeId(1), addresses(1)).await).await.unwrap_err();
    assert!(matches!(&again, ClusterError::Invalid(why) if why.contains("never")), "{again}");
    cluster.start(1).await;
    let again = cluster.nodes[&1].join(seeds([5])).await.unwrap_err();
    let refused = |why: &String| why.contains("never") || why.contains("was taken out of the cluster");
    assert!(matches!(&again, ClusterError::Invalid(why) if refused(why)), "{again}");
    tokio::time::sleep(Duration::from_millis(300)).await;
    settles(&cluster).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_comes_back_to_who_had_it() {
    let mut cluster = Cluster::made(4, PARTITIONS, quick_with_snapshots).await;
    fill(&cluster, "a").await;
    for round in 0..3 {
        for on in [true, false] {
            let change = Change::Drain { node: NodeId(2), on };
            cluster.change(1, true, change).await.unwrap();
            settles(&cluster).await;
            eventually(&format!("round {round}, draining {on}"), || {
                let record = cluster.nodes[&1].record().unwrap();
                (1..=PARTITIONS).any(|group| record.replicas_of(group).contains(&NodeId(2))) != on
            })
            .await;
            fill(&cluster, &format!("round {round} {on}")).await;
        }
        if round == 1 {
            cluster.kill(2).await;
            cluster.start(2).await;
        }
    }
    check(&cluster, "a").await;
    check(&cluster, "round 2 true").await;
}

/// All entries are kept, and come slowly and in pieces, the first with the membership of the node alone that made the cluster.
fn quick_with_whole_logs(config: &mut NodeConfig) {
    quick(config);
    config.balance_leaders = false;
    config.log_cache_bytes = 64 << 10;
    config.snapshot_bytes_per_second = Some(4 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_gets_its_log_again_does_not_lead_by_a_membership_of_long_ago() {
    let mut cluster = Cluster::made(1, PARTITIONS, quick_with_whole_logs).await;
    for group in 1..=PARTITIONS {
        for number in 0..20 {
            cluster.put(group, &format!("a {number}"), &"v".repeat(30_000)).await;
        }
    }
    for node in 2..=4 {
        cluster.start(node).await;
        cluster.nodes[&node].join(seeds([1])).await.unwrap();
    }
    settles(&cluster).await;
    let drain = |on| Change::Drain { node: NodeId(1), on };
    cluster.change(2, true, drain(true)).await.unwrap();
    settles(&cluster).await;
    let leads = |cluster: &Cluster| {
        let groups = cluster.nodes[&1].status().groups;
        groups.iter().any(|group| group.group > 0 && group.role == Role::Leader)
    };
    assert!(!leads(&cluster));
    cluster.change(2, false, drain(false)).await.unwrap();
    let began = Instant::now();
    while cluster.nodes[&1].status().groups.len() == 1 || is_as_wanted(&cluster).is_err() {
        // With others it may lead.
        let groups = cluster.nodes[&1].status().groups;
        let mut led = groups.iter().filter(|group| group.group > 0 && group.role == Role::Leader);
        assert!(led.all(|group| group.voters != [NodeId(1)]), "it has made itself the leader");
        assert!(began.elapsed() < Duration::from_secs(60), "{:?}", is_as_wanted(&cluster));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    check(&cluster, "a").await;
    // From here on it can be elected as everybody else.
    let group = cluster.nodes[&1].status().groups[1].group;
    let began = Instant::now();
    while !leads(&cluster) {
        assert!(began.elapsed() < Duration::from_secs(30), "nobody can make it the leader");
        let leader = cluster.leader(group).await;
        let _ = cluster.nodes[&leader].transfer_leader(group, NodeId(1)).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_operator_gets_wrong_is_refused_with_the_reason() {
    let cluster = Cluster::made(3, PARTITIONS, quick).await;
    let node = &cluster.nodes[&1];
    let epoch = node.record().unwrap().epoch;
    let refused = async |change: Change| match cluster.change(1, false, change.clone()).await {
        Err(ClusterError::Invalid(why)) => why,
        other => panic!("{change:?}: {other:?}"),
    };
    assert!(refused(Change::Remove { node: NodeId(9) }).await.contains("no member"));
    assert!(refused(Change::Drain { node: NodeId(9), on: true }).await.contains("no member"));
    assert!(refused(Change::Weight { node: NodeId(9), weight: 5 }).await.contains("no member"));
    assert!(refused(Change::Weight { node: NodeId(2), weight: 0 }).await.contains("weight"));
    assert!(refused(Change::Replicas(4)).await.contains("there are 3"));
    assert!(refused(Change::Replicas(0)).await.contains("1 to"));
    assert!(refused(Change::Drain { node: NodeId(2), on: true }).await.contains("2 members for 3 replicas"));
    let nothing =
        Change::Moves { paused: None, moves: Some(0), bytes_per_second: None, replace_after_ms: None };
    assert!(refused(nothing).await.contains("pause"));
    assert_eq!(node.record().unwrap().epoch, epoch, "nothing of it was done");

    // What only the cluster itself does, no client asks for; nor does one write the record.
    let administrator =
        dogsled_replication::ClientIdentity { name: "operator".to_owned(), administrator: true };
    use dogsled_replication::Service;
    let gone = ClientRequest::Change { epoch: 0, wait: false, change: Change::Gone { node: NodeId(2) } };
    let mut forged = insert("record", "nonsense");
    forged.trees = vec!["__dogsled__cluster".into()];
    let command = dogsled_storage::codec::encode_group_command(&forged).unwrap().into();
    let forged = ClientRequest::Submit { group: 0, deadline: Duration::ZERO, command };
    let mut requests = vec![gone, forged];
    // Here the tree is named by the operation and not among the trees.
    let drop_record = || dogsled_storage::Command::DropTree { name: "__dogsled__cluster".into() };
    let fences =
        vec![dogsled_storage::Fence { lock: "any".into(), token: dogsled_storage::lock::FencingToken(1) }];
    for operation in [
        dogsled_storage::group::Operation::Command(drop_record()),
        dogsled_storage::group::Operation::Fenced { fences, command: drop_record() },
    ] {
        let mut dropping = insert("record", "nonsense");
        (dropping.trees, dropping.operation) = (Vec::new(), operation);
        let command = dogsled_storage::codec::encode_group_command(&dropping).unwrap().into();
        requests.push(ClientRequest::Submit { group: 0, deadline: Duration::ZERO, command });
    }
    for request in requests {
        let reply = node.client_request(&administrator, request.encode()).await;
        match ClientReply::decode(reply).unwrap() {
            ClientReply::Error(ClusterError::Invalid(why)) => assert!(why.contains("itself"), "{why}"),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_has_lost_its_disk_is_not_let_in_under_its_old_id() {
    let mut cluster = Cluster::made(3, PARTITIONS, quick).await;
    settles(&cluster).await;
    cluster.kill(3).await;
    std::fs::remove_dir_all(cluster.config(3).directory).unwrap();
    cluster.start(3).await;
    // It would vote as if it had promised nothing.
    match cluster.nodes[&3].join(seeds([1, 2])).await {
        Err(ClusterError::Invalid(why)) => assert!(why.contains("is a member already"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert!(cluster.nodes[&3].record().is_none(), "it has nothing of the cluster");
    // Nor by who made the cluster and makes it again, as an application does at every start, also without the others.
    let members = || (1..=3).map(|node| (NodeId(node), addresses(node))).collect();
    cluster.nodes[&1].initialize_cluster(PARTITIONS, members()).await.unwrap();
    assert!(cluster.nodes[&3].record().is_none() && cluster.nodes[&3].map().cluster == 0);
    cluster.stop(1).await;
    cluster.start(1).await;
    cluster.nodes[&1].initialize_cluster(PARTITIONS, members()).await.unwrap();
    assert!(cluster.nodes[&3].record().is_none() && cluster.nodes[&3].map().cluster == 0);
    // Under a new one it is.
    cluster.start(4).await;
    cluster.nodes[&4].join(seeds([1, 2])).await.unwrap();
    // Asked for again, as by somebody who has not heard the answer, it is the same.
    cluster.nodes[&4].join(seeds([1, 2])).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_operators_at_once_the_second_is_told_of_the_first() {
    // Without a leader for a moment one of them may hear that it is not known what became of it, which says nothing.
    let mut attempts = 0;
    let (cluster, seen, one, two) = loop {
        let cluster = Cluster::made(3, PARTITIONS, quick).await;
        let seen = cluster.nodes[&1].record().unwrap().epoch;
        let weigh = async |node: u64, weight| {
            let change = Change::Weight { node: NodeId(node), weight };
            let until = Instant::now() + Duration::from_secs(60);
            loop {
                match cluster.nodes[&node].change(seen, true, change.clone()).await {
                    Err(ClusterError::NotLeader { .. } | ClusterError::Unavailable(_))
                        if Instant::now() < until =>
                    {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    decided => break decided,
                }
            }
        };
        let (one, two) = tokio::join!(weigh(1, 50), weigh(2, 60));
        let is_unknown = |done: &Result<(), _>| matches!(done, Err(ClusterError::OutcomeUnknown(_)));
        attempts += 1;
        if attempts == 5 || ![&one, &two].into_iter().any(is_unknown) {
            break (cluster, seen, one, two);
        }
    };
    let (won, lost) = if one.is_ok() { (one, two) } else { (two, one) };
    won.unwrap();
    match lost.unwrap_err() {
        ClusterError::Conflict(why) => assert!(why.contains("look again"), "{why}"),
        other => panic!("{other:?}"),
    }
    eventually("all know the new record", || {
        cluster.nodes.values().all(|node| node.record().is_some_and(|record| record.epoch > seen))
    })
    .await;
    let record = cluster.nodes[&3].record().unwrap();
    let weights: Vec<u32> = record.members.values().map(|member| member.weight).collect();
    assert!([vec![50, 100, 100], vec![100, 60, 100]].contains(&weights), "{weights:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_member_stays() {
    let cluster = Cluster::made(1, 1, quick).await;
    let last = cluster.remove_member(1, 1).await.unwrap_err();
    assert!(matches!(&last, ClusterError::Invalid(why) if why.contains("last")), "{last}");
    cluster.put(1, "a", "1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_member_is_replaced_and_has_its_share_again_when_it_is_back() {
    let mut cluster = Cluster::made(4, PARTITIONS, quick).await;
    let replaced_after =
        |ms| Change::Moves { paused: None, moves: None, bytes_per_second: None, replace_after_ms: Some(ms) };
    cluster.change(1, false, replaced_after(8_000)).await.unwrap();
    fill(&cluster, "a").await;
    let state = |cluster: &Cluster| cluster.nodes[&1].record().unwrap().members[&NodeId(4)].state;

    // One that comes back early is not replaced.
    let mut attempts = 0;
    loop {
        let down = Instant::now();
        cluster.kill(4).await;
        tokio::time::sleep(Duration::from_millis(400)).await;
        cluster.start(4).await;
        let was_early = down.elapsed() < Duration::from_secs(4);
        tokio::time::sleep_until((down + Duration::from_secs(9)).into()).await;
        if was_early {
            assert_eq!(state(&cluster), MemberState::Active);
            break;
        }
        attempts += 1;
        assert!(attempts < 3, "it is never back early");
        eventually("it is back", || state(&cluster) == MemberState::Active).await;
    }

    cluster.change(1, false, replaced_after(1_500)).await.unwrap();
    cluster.kill(4).await;
    eventually("it is away", || state(&cluster) == MemberState::Away).await;
    settles(&cluster).await;
    fill(&cluster, "without").await;
    cluster.start(4).await;
    eventually("it is back", || state(&cluster) == MemberState::Active).await;
    settles(&cluster).await;
    check(&cluster, "without").await;

    // With three left of three replicas nobody can take over: nothing is given up.
    cluster.kill(4).await;
    cluster.kill(3).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let record = cluster.nodes[&1].record();
    let active = record.unwrap().members.values().filter(|m| m.state == MemberState::Active).count();
    assert!(active >= 3, "{active}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_moves_while_movement_is_paused_and_replicas_can_be_more_or_fewer() {
    let mut cluster = Cluster::made(3, PARTITIONS, quick).await;
    let paused = |paused| Change::Moves {
        paused: Some(paused),
        moves: Some(1),
        bytes_per_second: Some(64 << 20),
        replace_after_ms: None,
    };
    cluster.change(1, false, paused(true)).await.unwrap();
    cluster.start(4).await;
    cluster.nodes[&4].join(seeds([2])).await.unwrap();
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(cluster.nodes[&4].status().groups.len(), 1, "only group 0");
    cluster.change(1, true, paused(false)).await.unwrap();
    settles(&cluster).await;
    eventually("it has its share", || cluster.nodes[&4].status().groups.len() > 4).await;

    for replicas in [4, 1, 3] {
        cluster.change(2, true, Change::Replicas(replicas)).await.unwrap();
        settles(&cluster).await;
        eventually("all have so many replicas", || {
            let records = cluster.nodes.values().map(|node| node.record().unwrap());
            records.into_iter().all(|record| record.placement.replica_count() == replicas)
        })
        .await;
        settles(&cluster).await;
        fill(&cluster, &format!("with {replicas}")).await;
        check(&cluster, &format!("with {replicas}")).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn movement_stays_paused_when_who_drives_it_dies_and_is_carried_through_afterwards() {
    let mut cluster = Cluster::made(4, PARTITIONS, quick_with_snapshots).await;
    settles(&cluster).await;
    fill(&cluster, "a").await;
    let paused = |paused| Change::Moves {
        paused: Some(paused),
        moves: Some(1),
        bytes_per_second: None,
        replace_after_ms: None,
    };
    let holds = |cluster: &Cluster, node: u64| {
        let groups = cluster.nodes[&node].status().groups;
        groups.iter().filter(|group| group.group > 0).count()
    };
    // Amid movement, one partition after the other.
    let full = holds(&cluster, 4);
    cluster.change(1, false, Change::Drain { node: NodeId(4), on: true }).await.unwrap();
    eventually("something has moved", || holds(&cluster, 4) < full).await;
    cluster.change(1, false, paused(true)).await.unwrap();
    eventually("all know that it is paused", || {
        cluster.nodes.values().all(|node| node.record().is_some_and(|record| record.settings.paused))
    })
    .await;
    // What was a half change is completed, and then nothing happens.
    let (began, mut looks, mut left) = (Instant::now(), 0, full);
    while looks < 10 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let statuses = cluster.nodes.values().flat_map(|node| node.status().groups);
        let groups: Vec<GroupStatus> = statuses.filter(|group| group.group > 0).collect();
        let votes = groups.iter().filter(|group| group.voters.contains(&NodeId(4)));
        let votes = votes.map(|group| group.group).collect::<BTreeSet<_>>().len();
        let now = holds(&cluster, 4);
        let is_whole = now == votes && !groups.iter().any(|group| group.joint);
        looks = if is_whole && now == left { looks + 1 } else { 0 };
        left = now;
        assert!(began.elapsed() < Duration::from_secs(60), "something moves all the time");
    }

    let driver = cluster.leader(0).await;
    cluster.kill(driver).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let other = (1..=4).find(|node| *node != driver).unwrap();
    assert!(cluster.nodes[&other].record().unwrap().settings.paused);
    if driver != 4 {
        assert_eq!(holds(&cluster, 4), left, "it is paused for whoever drives it now");
    }
    fill(&cluster, "while it is paused").await;
    cluster.start(driver).await;
    cluster.change(other, true, paused(false)).await.unwrap();
    settles(&cluster).await;
    eventually("it is drained", || holds(&cluster, 4) == 0).await;
    check(&cluster, "a").await;
    check(&cluster, "while it is paused").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_without_a_quorum_refuse_writes_and_the_others_serve() {
    let mut cluster = Cluster::made(5, PARTITIONS, quick).await;
    settles(&cluster).await;
    fill(&cluster, "a").await;
    let record = cluster.nodes[&1].record().unwrap();
    // Two of five: some partitions lose two of three replicas, the meta group keeps three of five.
    cluster.kill(4).await;
    cluster.kill(5).await;
    let lost = |group: &u32| {
        let dead = [NodeId(4), NodeId(5)];
        record.replicas_of(*group).iter().filter(|node| dead.contains(node)).count() >= 2
    };
    let (dead, alive): (Vec<u32>, Vec<u32>) = (1..=PARTITIONS).partition(lost);
    assert!(!dead.is_empty() && !alive.is_empty(), "{dead:?} {alive:?}");
    for group in alive {
        cluster.put(group, "b", "1").await;
    }
    for group in dead {
        let began = Instant::now();
        loop {
            let refused = cluster.nodes[&1].submit(group, &insert("b", "1")).await.unwrap_err();
            // At first a leader that has just lost the others may have taken it in.
            if refused.is_definite() {
                break;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "{refused}");
        }
    }
    let leads = cluster.nodes.values().flat_map(|node| node.status().groups).any(|g| g.role == Role::Leader);
    assert!(leads);
}
