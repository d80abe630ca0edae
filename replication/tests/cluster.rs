//! Whole clusters in one process, in real time.

mod common;

use common::Cluster;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_nodes_replicate_a_put_and_each_reads_it() {
    let cluster = Cluster::made(3, 2, |_| {}).await;
    for group in [1, 2] {
        cluster.put(group, "lead dog", "Balto").await;
        for node in [1, 2, 3] {
            assert_eq!(cluster.get(node, group, "lead dog").await.as_deref(), Some("Balto"));
            assert_eq!(cluster.get(node, group, "other").await, None);
        }
    }
    let mut cluster = cluster;
    for node in [1, 2, 3] {
        cluster.stop(node).await;
    }
}
