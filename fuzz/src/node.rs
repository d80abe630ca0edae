//! A node that serves, always the same one, and requests that it could get.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_replication::hostile::peer_requests;
use dogsled_replication::memory::MemoryNetwork;
use dogsled_replication::ring::TreeHash;
use dogsled_replication::runtime::seed_random_numbers;
use dogsled_replication::{
    Change, ClientRequest, Consistency, GroupChange, MembershipId, Node, NodeConfig, NodeId,
};
use dogsled_storage::codec::{encode_group_command, encode_group_read};
use dogsled_storage::counter::CounterCommand;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::group::{GroupCommand, GroupRead, Operation, SessionId, SessionTag};
use dogsled_storage::lock::{FencingToken, LockCommand, LockRequest};
use dogsled_storage::{Clock, Command, ExpiryCommand, Fence, IVec, OwnedCommand, TreeId, When, Write};
use std::ops::Bound;
use tokio::time::Instant;

/// The tree and the key that no request touches unless it has this name in it, and its value.
pub const MARKER: &str = "marker";
/// Groups of the node: the meta group and one partition.
pub const GROUPS: u32 = 2;

/// Goes with tokio's time.
#[derive(Debug)]
struct TimerClock(Instant);

impl Clock for TimerClock {
    fn now_ms(&self) -> u64 {
        1_767_225_600_000 + self.0.elapsed().as_millis() as u64
    }
}

/// A runtime in whose time nobody waits.
pub fn runtime() -> tokio::runtime::Runtime {
    seed_random_numbers(Some(1));
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads needs nothing")
}

/// Node 1 on its disk.
pub async fn start(disk: &SimulatedDisk) -> Node {
    let address = vec!["node-1:1".to_owned()];
    let mut config = NodeConfig::new("node", NodeId(1), address);
    config.disk = Arc::new(disk.clone());
    config.clock = Arc::new(TimerClock(Instant::now()));
    config.threads = false;
    config.wal_segment_bytes = 64 << 10;
    config.seed = Some(1);
    config.cache_bytes = 4 << 20;
    config.log_cache_bytes = 1 << 20;
    config.request_deadline = Duration::from_secs(2);
    // Nobody else is there. (Nor is the node attached: it would hold itself.)
    let network = MemoryNetwork::default();
    Node::start(config, network.transport(NodeId(1))).await.expect("a sound disk")
}

fn in_trees(trees: &[&str], operation: Operation) -> GroupCommand {
    let trees = trees.iter().map(|tree| IVec::from(*tree)).collect();
    GroupCommand { session: None, time_ms: 0, trees, operation }
}

/// A command that puts one key.
pub fn put(tree: &str, key: &str, value: &str) -> GroupCommand {
    let (key, value) = (IVec::from(key), IVec::from(value));
    in_trees(&[tree], Operation::Command(Command::Put { tree: TreeId(0), key, value }))
}

/// Tries until the node serves; false if it does not within two minutes of its time.
pub async fn submit(node: &Node, group: u32, command: &GroupCommand) -> bool {
    let until = Instant::now() + Duration::from_secs(120);
    while Instant::now() < until {
        if node.submit(group, command).await.is_ok_and(|reply| reply.result.is_ok()) {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    false
}

/// Where a request goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum To {
    Peer,
    Client,
    Stream,
}

/// A node's disk, and sound requests to it.
pub struct World {
    pub disk: SimulatedDisk,
    pub cluster: u128,
    pub requests: Vec<(To, Bytes)>,
}

impl World {
    pub fn new() -> World {
        runtime().block_on(async {
            let disk = SimulatedDisk::new(1);
            let node = start(&disk).await;
            let members = vec![(NodeId(1), vec!["node-1:1".to_owned()])];
            node.initialize_cluster(GROUPS - 1, members).await.expect("a cluster of one");
            for group in 0..GROUPS {
                assert!(submit(&node, group, &put(MARKER, MARKER, MARKER)).await, "a node serves");
                assert!(submit(&node, group, &put("tree", "key", "before")).await, "a node serves");
            }
            node.halt().await.expect("a sound disk");
            // One that has gone on from there: the leader whose requests are sent.
            let donor_disk = disk.duplicate();
            let (node, donor) = (start(&disk.duplicate()).await, start(&donor_disk).await);
            for number in 0..12 {
                for group in 0..GROUPS {
                    let key = format!("key {number}");
                    assert!(submit(&donor, group, &put("tree", &key, &"v".repeat(500))).await);
                }
            }
            let peers = (0..GROUPS).flat_map(|group| peer_requests(&node, &donor, group));
            let mut requests: Vec<_> = peers.map(|body| (To::Peer, body)).collect();
            for request in client_requests() {
                let to = if matches!(request, ClientRequest::Watch { .. }) { To::Stream } else { To::Client };
                requests.push((to, request.encode()));
            }
            let cluster = node.cluster().expect("it was made");
            node.halt().await.expect("a sound disk");
            donor.halt().await.expect("a sound disk");
            World { disk: disk.duplicate(), cluster, requests }
        })
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

fn client_requests() -> Vec<ClientRequest> {
    let mut requests = vec![ClientRequest::Map, ClientRequest::Status];
    let tree = TreeId(0);
    let key = || IVec::from("key");
    let write = |value: Option<&str>| Write { tree, key: key(), value: value.map(IVec::from) };
    let session = SessionId(7);
    let tag = |sequence| Some(SessionTag { session, slot: 1, sequence });
    let command = |command| in_trees(&["tree"], Operation::Command(command));
    let commands = [
        put("tree", "key", "value"),
        command(Command::CreateTree { name: "users".into() }),
        command(Command::DropTree { name: "tree".into() }),
        command(Command::ClearTree { tree }),
        command(Command::CompareAndSwap { tree, key: key(), old: None, new: Some("value".into()) }),
        command(Command::Batch { writes: vec![write(Some("one")), write(None)] }),
        command(Command::Pop { tree, last: true }),
        command(Command::ReserveIds { count: 300 }),
        command(Command::Counter(CounterCommand::Add { name: "n".into(), delta: 2 })),
        command(Command::Lock(LockCommand::TryAcquire { name: "l".into(), owner: "me".into(), lease_ms: 5 })),
        command(Command::Lock(LockCommand::Acquire {
            name: "l".into(),
            owner: "you".into(),
            request: LockRequest { permits: 1, capacity: 1, lease_ms: 5, delay_ms: 5 },
            wait_ms: 5,
        })),
        command(Command::Expiry(ExpiryCommand::Insert {
            tree,
            key: key(),
            value: "value".into(),
            when: When::After(1),
        })),
        command(Command::SettleDue { limit: 9 }),
        command(Command::Owned(OwnedCommand::InsertNext {
            tree,
            prefix: key(),
            value: "value".into(),
            session: Some(session),
        })),
        in_trees(
            &["tree"],
            Operation::Fenced {
                fences: vec![Fence { lock: "l".into(), token: FencingToken(1) }],
                command: Command::Put { tree, key: key(), value: "fenced".into() },
            },
        ),
        in_trees(&[], Operation::Nothing),
        in_trees(&[], Operation::OpenSession { session, lease_ms: 500 }),
        GroupCommand { session: tag(1), ..put("tree", "key", "in a session") },
        in_trees(&[], Operation::RenewSession { session }),
        in_trees(&[], Operation::CloseSession { session }),
        in_trees(&[], Operation::ExpireSessions { led_ms: u64::MAX }),
    ];
    for command in commands {
        let command = encode_group_command(&command).expect("within the limit").into();
        requests.push(ClientRequest::Submit { group: 1, deadline: Duration::from_millis(500), command });
    }
    let reads = [
        GroupRead::Get { tree: "tree".into(), key: key() },
        GroupRead::GetMany { tree: "tree".into(), keys: vec![key(), "other".into()] },
        GroupRead::Range {
            tree: "tree".into(),
            low: Bound::Included(key()),
            high: Bound::Unbounded,
            reverse: true,
            limit: 5,
            limit_bytes: 1_000,
            values: true,
        },
        GroupRead::Len { tree: "tree".into() },
        GroupRead::Counter { name: "n".into() },
        GroupRead::LockHolder { name: "l".into() },
        GroupRead::Trees,
        GroupRead::EarliestSessionExpiry,
        GroupRead::LockHolders { name: "l".into() },
        GroupRead::Sessions { after: None, limit: 9 },
        GroupRead::Quotas,
        GroupRead::GetKinds { tree: "tree".into(), keys: vec![key(), "other".into()] },
    ];
    for (number, read) in reads.iter().enumerate() {
        let aged = Consistency::AtMostOld(Duration::from_millis(number as u64));
        let consistency = [Consistency::Linearizable, Consistency::Stale, aged][number % 3];
        let read = encode_group_read(read).expect("within the limit").into();
        requests.push(ClientRequest::Read { group: 1, deadline: Duration::ZERO, consistency, read });
    }
    let (node, addresses) = (NodeId(2), vec!["node-2:1".to_owned()]);
    let members = vec![(node, addresses.clone())];
    requests.push(ClientRequest::Initialize { partitions: 1, replicas: 1, members: members.clone() });
    requests.push(ClientRequest::AddMember { node, addresses: addresses.clone() });
    requests.push(ClientRequest::RemoveMember { node });
    requests.push(ClientRequest::TransferLeader { group: 1, to: NodeId(1) });
    for change in [
        GroupChange::Begin { members: members.clone() },
        GroupChange::Learners { nodes: members },
        GroupChange::Voters { voters: vec![node], keep: true },
        GroupChange::Remove { nodes: vec![node] },
        GroupChange::Settle,
    ] {
        requests.push(ClientRequest::ChangeGroup { group: 1, based_on: MembershipId::default(), change });
    }
    let lost = Change::Lost { nodes: vec![node] };
    let hash = TreeHash::Before { delimiter: b'/', occurrence: 1 };
    let hash = Change::HashTree { tree: "chat".into(), hash };
    let leaders = Change::Leaders { leaders: vec![(1, node)] };
    for change in
        [Change::Drain { node, on: true }, Change::Replicas(2), Change::Gone { node }, lost, hash, leaders]
    {
        requests.push(ClientRequest::Change { epoch: 1, wait: false, change });
    }
    requests.extend([ClientRequest::Record, ClientRequest::Membership { group: 1 }]);
    let under = dogsled_storage::TransactionId(5);
    let read = dogsled_replication::pin::PinnedRead {
        tree: Bytes::from_static(b"tree"),
        part: dogsled_storage::pin::PinnedPart::Keys,
        after: Some(Bytes::from_static(b"k")),
        since: 1,
        limit_bytes: 100,
    };
    let lease = std::time::Duration::from_millis(1);
    let deadline = std::time::Duration::from_millis(1);
    requests.push(ClientRequest::Pin { group: 1, deadline, under, lease });
    requests.push(ClientRequest::ReadPinned { node: NodeId(1), group: 1, under, read });
    requests.push(ClientRequest::KeepPins { node: NodeId(1), under, keep: true, groups: vec![1] });
    let (group, prefix) = (1, Bytes::from_static(b"k"));
    let told = Some(dogsled_replication::watch::Told { position: 1, events: 1 });
    requests.push(ClientRequest::Watch { group, tree: Bytes::from_static(b"tree"), prefix, told });
    requests
}
