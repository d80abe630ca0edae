//! What a node does when its directory is not what it was.

use std::path::Path;
use std::time::Duration;

use dogsled_replication::metrics::SampleValue;
use dogsled_replication::{GroupStatus, Node, Role};

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

/// How often the node has found that it lacks what it had acknowledged.
async fn losses(node: &Node) -> u64 {
    let families = node.families().await;
    let family = families.iter().find(|family| family.name == "dogsled_acknowledged_lost_total").unwrap();
    match family.samples[0].value {
        SampleValue::Whole(count) => count,
        ref other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_directory_is_an_older_copy_is_noticed_and_filled_again() {
    let mut cluster = Cluster::made(3, 1, |config| config.balance_leaders = false).await;
    cluster.put(1, "early", "1").await;
    // A leader that is elected meanwhile knows nothing of what was acknowledged: then it is tried again.
    for attempt in 0..10 {
        let leader = cluster.leader(1).await;
        let term = status_of(&cluster.nodes[&leader], 1).term;
        let old = (1..=3).find(|node| *node != leader).unwrap();
        let directory = cluster.config(old).directory;
        let copy = cluster.directory.path().join(format!("copy-{attempt}"));
        cluster.kill(old).await;
        copy_directory(&directory, &copy);
        cluster.start(old).await;
        for number in 0..20 {
            cluster.put(1, &format!("late {number}"), &attempt.to_string()).await;
        }
        let last = status_of(&cluster.nodes[&leader], 1).last;
        let has_all = |cluster: &Cluster| status_of(&cluster.nodes[&old], 1).last >= last;
        wait_for("the follower has everything", || has_all(&cluster)).await;
        cluster.kill(old).await;
        std::fs::remove_dir_all(&directory).unwrap();
        copy_directory(&copy, &directory);
        cluster.start(old).await;
        wait_for("it has everything again", || has_all(&cluster)).await;
        cluster.put(1, "after", "2").await;
        assert_eq!(cluster.get(old, 1, "after").await.as_deref(), Some("2"));
        assert_eq!(status_of(&cluster.nodes[&old], 1).failure, None);
        if losses(&cluster.nodes[&old]).await > 0 {
            return;
        }
        let now = cluster.leader(1).await;
        assert_ne!(status_of(&cluster.nodes[&now], 1).term, term, "it was filled as if nothing had happened");
    }
    panic!("another leader each time");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_cannot_be_read_is_down_alone_and_is_made_anew_when_its_files_are_moved_away() {
    let mut cluster = Cluster::made(3, 2, |config| {
        config.keep_entries = 10;
        config.maintenance_every = Duration::from_millis(50);
    })
    .await;
    for group in [1, 2] {
        cluster.put(group, "k", "1").await;
    }
    for (name, damage) in
        [("MANIFEST", "damaged"), ("tree.redb", "damaged"), ("MANIFEST", "gone"), ("tree.redb", "gone")]
    {
        let context = format!("{name} is {damage}");
        cluster.put(1, &context, "1").await;
        // Once with all of the log there, then with its beginning gone.
        if (name, damage) != ("MANIFEST", "damaged") {
            for number in 0..100 {
                cluster.put(1, "k", &number.to_string()).await;
            }
            // Which a checkpoint comes before.
            wait_for("the log has lost its beginning", || {
                let replica = cluster.nodes[&2].replica(1);
                replica.is_none_or(|replica| replica.checkpoint().is_ok())
                    && status_of(&cluster.nodes[&2], 1).first > 1
            })
            .await;
        }
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
        assert_eq!(cluster.get(2, 1, &context).await.as_deref(), Some("1"), "{context}");
        assert_eq!(losses(&cluster.nodes[&2]).await, 0, "{context}: nothing is lost, as it knows");
    }
}
