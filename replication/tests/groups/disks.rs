//! What a node does when its directory is not what it was.

use std::path::Path;

use dogsled_replication::{GroupStatus, Node, NodeId, Role};

use super::cluster::wait_for;
use crate::common::Cluster;

fn status_of(node: &Node, group: u32) -> GroupStatus {
    node.status().groups.into_iter().find(|status| status.group == group).unwrap()
}

fn copy_directory(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_directory(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_directory_is_an_older_copy_is_noticed_and_is_filled_by_the_next_leader() {
    let mut cluster = Cluster::made(3, 1, |config| config.balance_leaders = false).await;
    cluster.put(1, "early", "1").await;
    let of_group = |cluster: &Cluster, node: u64| status_of(&cluster.nodes[&node], 1);
    // Another leader knows nothing of what was acknowledged: if one is elected meanwhile, it is tried again.
    let (mut said, mut old) = (None, 0);
    for attempt in 0..10 {
        let leader = cluster.leader(1).await;
        let term = of_group(&cluster, leader).term;
        old = (1..=3).find(|node| *node != leader).unwrap();
        let directory = cluster.config(old).directory;
        let copy = cluster.directory.path().join(format!("copy-{attempt}"));
        cluster.kill(old).await;
        copy_directory(&directory, &copy);
        cluster.start(old).await;
        for number in 0..20 {
            cluster.put(1, &format!("late {number}"), &attempt.to_string()).await;
        }
        let last = of_group(&cluster, leader).last;
        wait_for("the follower has everything", || of_group(&cluster, old).last >= last).await;
        cluster.kill(old).await;
        std::fs::remove_dir_all(&directory).unwrap();
        copy_directory(&copy, &directory);
        cluster.start(old).await;
        wait_for("it is told, or filled by another leader", || {
            said = of_group(&cluster, old).failure.filter(|why| why.contains("acknowledged"));
            said.is_some() || of_group(&cluster, old).last >= last
        })
        .await;
        if said.is_some() {
            break;
        }
        assert_ne!(
            of_group(&cluster, cluster.leader(1).await).term,
            term,
            "it was filled as if nothing had happened"
        );
    }
    assert!(said.is_some(), "never noticed");
    // The others go on.
    cluster.put(1, "after", "2").await;
    // It gets everything from a leader that it has acknowledged nothing to.
    let leader = cluster.leader(1).await;
    let third = (1..=3).find(|node| ![leader, old].contains(node)).unwrap();
    let last = of_group(&cluster, leader).last;
    wait_for("it was filled", || {
        let nodes = cluster.nodes.clone();
        tokio::spawn(async move { nodes[&leader].transfer_leader(1, NodeId(third)).await });
        of_group(&cluster, old).last >= last && of_group(&cluster, old).failure.is_none()
    })
    .await;
    assert_eq!(cluster.get(old, 1, "after").await.as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_cannot_be_read_is_down_alone_and_is_made_anew_when_its_files_are_moved_away() {
    let mut cluster = Cluster::made(3, 2, |_| {}).await;
    for group in [1, 2] {
        cluster.put(group, "k", "1").await;
    }
    for (name, damage) in
        [("MANIFEST", "damaged"), ("tree.redb", "damaged"), ("MANIFEST", "gone"), ("tree.redb", "gone")]
    {
        cluster.stop(2).await;
        let directory = cluster.config(2).directory.join("groups/1");
        let file = directory.join(name);
        match damage {
            "gone" => std::fs::remove_file(&file).unwrap(),
            _ => {
                let mut bytes = std::fs::read(&file).unwrap();
                bytes[..32].fill(0xa5);
                std::fs::write(&file, bytes).unwrap();
            }
        }
        cluster.start(2).await;
        let context = format!("{name} is {damage}");
        let why = status_of(&cluster.nodes[&2], 1)
            .failure
            .unwrap_or_else(|| panic!("{context}, and nothing is said"));
        assert!(why.contains(name), "{context}: {why}");
        assert!(cluster.nodes[&2].unready().iter().any(|complaint| complaint.contains(name)), "{context}");
        // The group goes on with the others, and this node with its other group.
        cluster.put(1, "k", &context).await;
        assert_eq!(cluster.get(2, 2, "k").await.as_deref(), Some("1"));
        assert_eq!(status_of(&cluster.nodes[&2], 1).role, Role::Down, "{context}");
        std::fs::rename(&directory, cluster.directory.path().join(&context)).unwrap();
        wait_for("it is made anew, without a restart", || {
            status_of(&cluster.nodes[&2], 1).role != Role::Down
        })
        .await;
        assert_eq!(cluster.get(2, 1, "k").await.as_deref(), Some(&context[..]));
    }
}
