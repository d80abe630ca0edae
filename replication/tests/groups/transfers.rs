//! Snapshots whose way is cut in the middle.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::Cluster;
use bytes::Bytes;
use dogsled_replication::memory::MemoryNetwork;
use dogsled_replication::{ClientIdentity, Lane, Node, NodeId, Service, Timing};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;

/// The second byte of a request that begins a snapshot, or carries a piece of one; both are part of the format.
const BEGIN: u8 = 6;
const PIECE: u8 = 7;
/// More pieces than this are never on their way.
const WINDOW: usize = 16;
const GROUP: u32 = 1;

#[derive(Default)]
struct Heard {
    begun: usize,
    /// Of the group's data.
    pieces: usize,
    different: HashSet<Bytes>,
    /// The way to the node is cut with the piece of this number.
    cut_at: usize,
}

/// A node, and what comes to it of snapshots.
struct Tap {
    node: Node,
    network: MemoryNetwork,
    heard: Arc<Mutex<Heard>>,
}

impl Service for Tap {
    fn peer_request(&self, from: NodeId, lane: Lane, body: Bytes) -> BoxFuture<'static, Bytes> {
        let of_group = body.get(10..14) == Some(&GROUP.to_le_bytes()[..]);
        if lane == Lane::Bulk && of_group {
            let mut heard = self.heard.lock();
            match body[1] {
                BEGIN => heard.begun += 1,
                PIECE => {
                    heard.pieces += 1;
                    heard.different.insert(body.clone());
                    if heard.pieces == heard.cut_at {
                        // What is under way is not answered, and nothing else gets through.
                        self.network.cut(from, self.node.id());
                        self.network.cut(self.node.id(), from);
                    }
                }
                _ => {}
            }
        }
        self.node.peer_request(from, lane, body)
    }

    fn client_request(&self, client: &ClientIdentity, body: Bytes) -> BoxFuture<'static, Bytes> {
        self.node.client_request(client, body)
    }

    fn client_stream(&self, client: &ClientIdentity, body: Bytes) -> BoxStream<'static, Bytes> {
        self.node.client_stream(client, body)
    }
}

async fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn term(cluster: &Cluster) -> u64 {
    let terms = cluster.nodes.values().map(|node| node.status().groups[GROUP as usize].term);
    terms.max().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_broke_off_goes_on_where_it_was() {
    for _ in 0..5 {
        if attempt().await.is_some() {
            return;
        }
    }
    panic!("another leader each time");
}

/// `None` if there was another leader, who sends another snapshot, so that this shows nothing.
async fn attempt() -> Option<()> {
    const CUTS: usize = 3;
    let mut cluster = Cluster::made(3, 1, |config| {
        config.timing = Timing::WAN;
        config.keep_entries = 10;
        config.maintenance_every = Duration::from_millis(50);
        config.balance_leaders = false;
    })
    .await;
    let leader = cluster.leader(GROUP).await;
    let away = 1 + leader % 3;
    cluster.kill(away).await;
    // Values that differ, so that pieces do.
    for number in 0_u32..400 {
        let value = format!("{number:08}").repeat(8 << 10);
        cluster.put(GROUP, &format!("key-{number}"), &value).await;
    }
    for node in cluster.nodes.values() {
        node.replica(GROUP).unwrap().checkpoint().unwrap();
    }
    let nodes: Vec<Node> = cluster.nodes.values().cloned().collect();
    wait_for("the log is purged", || {
        nodes.iter().all(|node| node.status().groups[GROUP as usize].first > 300)
    })
    .await;

    let before = term(&cluster);
    let heard = Arc::new(Mutex::new(Heard { cut_at: 25, ..Heard::default() }));
    let network = cluster.network.clone();
    let node = Node::start(cluster.config(away), network.transport(NodeId(away))).await.unwrap();
    let tap = Tap { node: node.clone(), network: network.clone(), heard: Arc::clone(&heard) };
    network.attach(NodeId(away), Arc::new(tap));
    cluster.nodes.insert(away, node);
    for cut in 1..=CUTS {
        let is_cut = || {
            let heard = heard.lock();
            heard.pieces >= heard.cut_at
        };
        wait_for("it is cut", is_cut).await;
        // What had arrived is written meanwhile.
        tokio::time::sleep(Duration::from_millis(300)).await;
        {
            let mut heard = heard.lock();
            assert!(heard.begun >= cut, "begun {} times before cut {cut}", heard.begun);
            heard.cut_at = if cut == CUTS { usize::MAX } else { heard.pieces + 25 };
        }
        network.heal();
    }
    let value = format!("{:08}", 399).repeat(8 << 10);
    assert_eq!(cluster.get(away, GROUP, "key-399").await, Some(value));
    assert!(
        cluster.nodes[&away].status().groups[GROUP as usize].first > 300,
        "the log would have been replayed"
    );
    if term(&cluster) != before {
        return None;
    }
    let heard = heard.lock();
    let (different, again) = (heard.different.len(), heard.pieces - heard.different.len());
    println!("begun {} times; {different} pieces, {again} of them sent again", heard.begun);
    assert!(heard.begun > CUTS, "begun {} times", heard.begun);
    assert!(different > (CUTS + 1) * 20, "{different} pieces are too few to tell");
    // Only what was on its way when it was cut may come twice.
    assert!(again <= CUTS * WINDOW, "{again} of {different} pieces were sent again");
    Some(())
}
