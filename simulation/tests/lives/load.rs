//! Leaders follow load, and stay then.

use std::time::Duration;

use dogsled_replication::runtime::seed_random_numbers;
use dogsled_replication::{ClientReply, ClientRequest, NodeId};
use dogsled_simulation::cluster::{Cluster, Setup};
use dogsled_simulation::network::SimulatedNetwork;
use dogsled_simulation::random::Random;
use dogsled_simulation::trace::Trace;
use dogsled_storage::codec::encode_group_command;
use dogsled_storage::{Command, GroupCommand, Operation, TreeId, Write};
use tokio::time::Instant;

const PARTITIONS: u32 = 6;

/// Writes into a group about 25 times in a second, for ever.
async fn write(network: SimulatedNetwork, group: u32) {
    let write = Write { tree: TreeId(0), key: "key".into(), value: Some("value".into()) };
    let operation = Operation::Command(Command::Batch { writes: vec![write] });
    let command = GroupCommand { session: None, time_ms: 0, trees: vec!["tree".into()], operation };
    let command = encode_group_command(&command).unwrap();
    let request = ClientRequest::Submit { group, deadline: Duration::from_secs(2), command: command.into() };
    let mut last = 1;
    loop {
        let reply = network.ask(1, NodeId(last), request.encode(), Duration::from_secs(3)).await;
        if !matches!(reply.map(ClientReply::decode), Ok(Ok(ClientReply::Applied(_)))) {
            last = last % 3 + 1;
        }
        tokio::time::sleep(Duration::from_millis(40)).await;
    }
}

async fn live(seed: u64) {
    let setup = Setup {
        nodes: 3,
        partitions: PARTITIONS,
        keep_entries: 1_000,
        log_cache_bytes: 1 << 20,
        sync_time: (Duration::ZERO, Duration::from_millis(2)),
        balance_leaders: true,
        maintenance_every: Duration::from_millis(500),
    };
    let trace = Trace::new(false);
    let network = SimulatedNetwork::new(Random::new(seed, 3), trace.clone());
    let mut cluster = Cluster::new(seed, setup, &[0, 0, 0], network, trace);
    cluster.make().await.unwrap();
    let record = |cluster: &Cluster| {
        cluster.nodes().filter_map(|(_, node)| node.record()).max_by_key(|record| record.epoch)
    };
    let first = record(&cluster).unwrap();
    let busy: Vec<u32> =
        (1..=PARTITIONS).filter(|group| first.preferred_leader(*group) == Some(NodeId(2))).collect();
    assert_eq!(busy.len(), 2, "seed {seed}: {first:?}");
    let writers: Vec<_> =
        busy.iter().map(|group| tokio::spawn(write(cluster.network.clone(), *group))).collect();
    let leads = |cluster: &Cluster, group: u32| cluster.nodes().find_map(|(_, node)| node.leader(group));
    let began = Instant::now();
    while leads(&cluster, busy[0]) == leads(&cluster, busy[1]) || leads(&cluster, busy[0]).is_none() {
        assert!(
            began.elapsed() < Duration::from_secs(120),
            "seed {seed}: one node leads both busy partitions"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    // Each still leads two, and nothing changes any more.
    let shared = record(&cluster).unwrap();
    assert_eq!(shared.epoch, first.epoch + 1, "seed {seed}: one change");
    for node in 1..=3 {
        let led = (1..=PARTITIONS).filter(|group| shared.preferred_leader(*group) == Some(NodeId(node)));
        assert_eq!(led.count(), 2, "seed {seed}: node {node}");
    }
    tokio::time::sleep(Duration::from_secs(90)).await;
    assert_eq!(record(&cluster).unwrap().epoch, shared.epoch, "seed {seed}: leaders go back and forth");
    for group in 1..=PARTITIONS {
        assert_eq!(leads(&cluster, group), shared.preferred_leader(group), "seed {seed}: group {group}");
    }
    writers.iter().for_each(|writer| writer.abort());
    for id in cluster.ids() {
        cluster.network.detach(id);
    }
}

#[test]
fn busy_partitions_come_to_be_led_by_different_nodes_once() {
    for seed in 0..3 {
        seed_random_numbers(Some(seed));
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(live(seed));
        drop(runtime);
        seed_random_numbers(None);
    }
}
