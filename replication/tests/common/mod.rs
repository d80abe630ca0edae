//! A cluster within the test's process.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogsled_replication::memory::MemoryNetwork;
use dogsled_replication::{Change, ClusterError, Consistency, Node, NodeConfig, NodeId, Timing};
use dogsled_storage::group::{
    Answer, GroupCommand, GroupRead, GroupReadReply, GroupReply, Operation, SessionId, SessionTag,
};
use dogsled_storage::{Command, IVec, Reply, TreeId};
use tempfile::TempDir;

pub struct Cluster {
    pub network: MemoryNetwork,
    pub nodes: BTreeMap<u64, Node>,
    pub directory: TempDir,
    pub adjust: fn(&mut NodeConfig),
}

pub fn addresses(node: u64) -> Vec<String> {
    vec![format!("node-{node}:1")]
}

impl Cluster {
    pub fn new(adjust: fn(&mut NodeConfig)) -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        Cluster { network: MemoryNetwork::default(), nodes: BTreeMap::new(), directory, adjust }
    }

    pub fn config(&self, node: u64) -> NodeConfig {
        let directory = self.directory.path().join(format!("node-{node}"));
        let mut config = NodeConfig::new(directory, NodeId(node), addresses(node));
        config.timing = Timing::LAN;
        (self.adjust)(&mut config);
        config
    }

    pub async fn start(&mut self, node: u64) {
        let started = Node::start(self.config(node), self.network.transport(NodeId(node))).await.unwrap();
        self.network.attach(NodeId(node), Arc::new(started.clone()));
        self.nodes.insert(node, started);
    }

    /// Members 1 to `count`, `partitions` partitions.
    pub async fn made(count: u64, partitions: u32, adjust: fn(&mut NodeConfig)) -> Cluster {
        let mut cluster = Cluster::new(adjust);
        for node in 1..=count {
            cluster.start(node).await;
        }
        let members = (1..=count).map(|node| (NodeId(node), addresses(node))).collect();
        cluster.nodes[&1].initialize_cluster(partitions, members).await.unwrap();
        cluster
    }

    /// As if the process had died.
    pub async fn kill(&mut self, node: u64) {
        self.network.detach(NodeId(node));
        self.nodes.remove(&node).unwrap().halt().await.unwrap();
    }

    pub async fn stop(&mut self, node: u64) {
        let stopped = self.nodes.remove(&node).unwrap();
        stopped.shutdown().await.unwrap();
        self.network.detach(NodeId(node));
    }

    pub fn any(&self) -> &Node {
        self.nodes.values().next().unwrap()
    }

    /// The leader that most of the others follow.
    pub async fn leader(&self, group: u32) -> u64 {
        for _ in 0..1000 {
            let mut votes: BTreeMap<u64, usize> = BTreeMap::new();
            for node in self.nodes.values() {
                if let Some(Some(leader)) = node.map().leaders.get(group as usize) {
                    *votes.entry(leader.0).or_default() += 1;
                }
            }
            if let Some((leader, _)) = votes
                .iter()
                .find(|(leader, votes)| **votes * 2 > self.nodes.len() && self.nodes.contains_key(leader))
            {
                return *leader;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("group {group} has no leader: {:#?}", self.any().status());
    }

    /// Tries at every node until the outcome is known, which is safe for what has a session.
    pub async fn submit(&self, group: u32, command: &GroupCommand) -> GroupReply {
        let mut last = None;
        for round in 0..300 {
            let node = self.nodes.values().nth(round % self.nodes.len()).unwrap();
            match node.submit(group, command).await {
                Ok(reply) => return reply,
                Err(error @ (ClusterError::Invalid(_) | ClusterError::Storage(_))) => panic!("{error}"),
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never carried out: {last:?}");
    }

    /// Changes the cluster by way of a node, which may be asked twice for the same.
    pub async fn change(&self, node: u64, wait: bool, change: Change) -> Result<(), ClusterError> {
        done(async || self.nodes[&node].change(0, wait, change.clone()).await).await
    }

    /// Takes out a member by way of a node.
    pub async fn remove_member(&self, node: u64, member: u64) -> Result<(), ClusterError> {
        done(async || self.nodes[&node].remove_member(NodeId(member)).await).await
    }

    pub async fn put(&self, group: u32, key: &str, value: &str) {
        let reply = self.submit(group, &insert(key, value)).await;
        reply.result.unwrap();
    }

    pub async fn get(&self, node: u64, group: u32, key: &str) -> Option<String> {
        let read = get(key);
        let mut last = None;
        for _ in 0..300 {
            match self.nodes[&node].read(group, &read, Consistency::Linearizable).await {
                Ok(answer) => match answer.reply {
                    GroupReadReply::Value(value) => {
                        return value.map(|found| String::from_utf8(found.value.to_vec()).unwrap());
                    }
                    other => panic!("{other:?}"),
                },
                Err(error) => last = Some(error),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("never read: {last:?}");
    }
}

/// Asks again as long as the answer depends on who leads just now.
pub async fn done(attempt: impl AsyncFn() -> Result<(), ClusterError>) -> Result<(), ClusterError> {
    let until = Instant::now() + Duration::from_secs(120);
    loop {
        match attempt().await {
            Ok(()) => return Ok(()),
            Err(error @ (ClusterError::Invalid(_) | ClusterError::Conflict(_))) => return Err(error),
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

pub fn command(operation: Command, trees: &[&str]) -> GroupCommand {
    GroupCommand {
        session: None,
        time_ms: 0,
        trees: trees.iter().map(|tree| IVec::from(*tree)).collect(),
        operation: Operation::Command(operation),
    }
}

pub fn insert(key: &str, value: &str) -> GroupCommand {
    command(Command::Insert { tree: TreeId(0), key: key.into(), value: value.into() }, &["tree"])
}

pub fn get(key: &str) -> GroupRead {
    GroupRead::Get { tree: "tree".into(), key: key.into() }
}

pub fn in_session(session: u128, sequence: u64, command: GroupCommand) -> GroupCommand {
    let tag = SessionTag { session: SessionId(session), slot: 0, sequence };
    GroupCommand { session: Some(tag), ..command }
}

pub fn open_session(session: u128, lease_ms: u64) -> GroupCommand {
    GroupCommand {
        session: None,
        time_ms: 0,
        trees: Vec::new(),
        operation: Operation::OpenSession { session: SessionId(session), lease_ms },
    }
}

pub fn reply_of(reply: GroupReply) -> Reply {
    match reply.result.unwrap() {
        Answer::Reply(reply) => reply,
        other => panic!("{other:?}"),
    }
}
