//! [`Node`]: all groups of one machine, on one WAL.
//!
//! # Directory
//!
//! ```text
//! LOCK          held while the node runs
//! node          whose directory this is; see crate::node_file
//! wal/          the WAL: stream g is the log of group g
//! given-up      whom the node has given up for ever, if anybody; see crate::given_up
//! groups/<g>/   the replica of group g, if the node has one; see hosting
//! wal.new/      empty, but while an embedded database is made a node; see crate::convert
//! ```
//!
//! # A cluster's beginning
//!
//! A new node belongs to no cluster: it answers nothing but being taken into one. There are two ways:
//!
//! - [`Node::initialize_cluster`] on one of the first members draws the cluster's id, writes it down,
//!   makes the other members *adopt* it, gives group 0 its first membership, and writes the cluster's
//!   [record](crate::meta) there. By that, whoever leads group 0 begins all other groups. Interrupted
//!   anywhere, it can be called again, and goes on.
//! - [`Node::join`] asks a member for the cluster's id, adopts it, and asks to be taken into the record.
//!   Then it is made to follow group 0, and is given its share of the partitions.
//!
//! A cluster's id never changes, and every message between nodes carries it.
//!
//! # Who has what
//!
//! Every member follows group 0, and with it the record: who is to have which partition. What a node has
//! is told in [`hosting`], how it comes to be what is wanted in [`crate::reconcile`], who sees to it in
//! [`drive`].
//!
//! # Answering
//!
//! The node is a [`Service`](crate::Service). Requests of peers go to openraft in the order of their
//! arrival; requests of clients are served here if they can be, and passed on otherwise: to the group's
//! leader, or to whoever is to have the group, until one says who leads it.
//!
//! # Losing too much
//!
//! What is done when a group has lost its quorum for ever is told in [`crate::recovery`].

mod at_once;
mod drive;
mod hash_tree;
pub(crate) mod hosting;
mod load;
mod maintenance;
mod members;
mod peer;
mod pins;
mod reads;
pub(crate) mod record;
mod recover;
mod report;
mod room;
mod serve;
mod transactions;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use dogsled_storage::codec::{
    decode_group_read_reply, decode_group_reply, encode_group_command, encode_group_read,
};
use dogsled_storage::disk::DiskLock;
use dogsled_storage::group::{GroupCommand, GroupRead, GroupReadReply, GroupReply};
use dogsled_storage::wal::{Wal, WalOptions};
use dogsled_storage::{Error, IVec, Result, TransactionId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::blocking::Blocking;
use crate::client::{ClientReply, ClientRequest, ClusterMap, Consistency};
use crate::config::NodeConfig;
use crate::convert;
use crate::durability::Durability;
use crate::error::ClusterError;
use crate::fence::Fence;
use crate::given_up::GivenUp;
use crate::group::Group;
use crate::log_store::SharedLog;
use crate::message::Adoption;
use crate::meta::{HashedTree, Record};
use crate::node_file::NodeFile;
use crate::reconcile::View;
use crate::ring::TreeHash;
use crate::room::Room;
use crate::runtime;
use crate::snapshot::Snapshots;
use crate::status::{EntryIdentity, GroupStatus, NodeStatus};
use crate::transport::{NodeId, Transport};

pub use self::report::GroupLock;

/// A node; clones are the same node.
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

/// A node's groups, once it belongs to a cluster.
struct Cluster {
    id: u128,
    partitions: u32,
    /// Those that the node hosts. Group 0 is always among them.
    groups: ArcSwap<Groups>,
    /// What is known of the record.
    record: ArcSwapOption<Record>,
    /// Who was said to lead groups that are not here.
    leaders: Mutex<HashMap<u32, NodeId>>,
}

type Groups = BTreeMap<u32, Arc<Group>>;

impl Cluster {
    fn new(id: u128, partitions: u32, groups: Groups) -> Cluster {
        Cluster {
            id,
            partitions,
            groups: ArcSwap::from_pointee(groups),
            record: ArcSwapOption::empty(),
            leaders: Mutex::default(),
        }
    }

    /// What messages carry of the id.
    fn number(&self) -> u64 {
        self.id as u64
    }

    fn group(&self, group: u32) -> Option<Arc<Group>> {
        self.groups.load().get(&group).cloned()
    }

    fn groups(&self) -> Arc<Groups> {
        self.groups.load_full()
    }

    fn insert(&self, group: Arc<Group>) {
        self.groups.rcu(|groups| {
            let mut groups = Groups::clone(groups);
            groups.insert(group.id, Arc::clone(&group));
            groups
        });
    }

    fn remove(&self, group: u32) {
        self.groups.rcu(|groups| {
            let mut groups = Groups::clone(groups);
            groups.remove(&group);
            groups
        });
    }

    fn record(&self) -> Option<Arc<Record>> {
        self.record.load_full()
    }

    /// The epoch that clients are told; 0 as long as the cluster is being made.
    fn epoch(&self) -> u64 {
        self.record.load().as_ref().filter(|record| !record.forming).map_or(0, |record| record.epoch)
    }

    fn set_record(&self, record: Record) {
        self.record.store(Some(Arc::new(record)));
    }

    /// Who is to have a group, as far as is known.
    fn replicas_of(&self, group: u32) -> Vec<NodeId> {
        self.record.load().as_ref().map_or_else(Vec::new, |record| record.replicas_of(group).to_vec())
    }

    /// Who leads a group that is not here: who was last said to, or who is to.
    fn leader_elsewhere(&self, group: u32) -> Option<NodeId> {
        let replicas = self.replicas_of(group);
        let said = self.leaders.lock().get(&group).copied();
        said.filter(|leader| replicas.contains(leader)).or_else(|| replicas.first().copied())
    }
}

struct Inner {
    config: NodeConfig,
    transport: Arc<dyn Transport>,
    blocking: Blocking,
    shared_log: Arc<SharedLog>,
    file: Mutex<NodeFile>,
    cluster: OnceLock<Cluster>,
    /// Only one at a time opens the groups.
    adopting: tokio::sync::Mutex<()>,
    /// Only one at a time gives the node a group, or takes one from it.
    hosting: tokio::sync::Mutex<()>,
    /// Something that was begun under it stopped half-way.
    unfinished: AtomicBool,
    /// Wakes the [driver](drive).
    wake_driver: tokio::sync::Notify,
    /// What the driver has found last, while this node leads group 0.
    progress: runtime::watch::Sender<Option<Arc<(Record, View)>>>,
    snapshots: Arc<Snapshots>,
    fence: Arc<Fence>,
    /// What the file says of that: whoever changes it does so one after the other.
    given_up: tokio::sync::Mutex<GivenUp>,
    /// Whose disks are nearly full.
    room: Arc<Room>,
    /// What the transport was told.
    addresses: Mutex<HashMap<NodeId, Vec<String>>>,
    stop: runtime::watch::Sender<bool>,
    /// Grows whenever a leader or a membership changes.
    changes: watch::Sender<u64>,
    tasks: Mutex<Vec<JoinHandle<()>>>,
    /// Parts of transactions that are being settled, by group.
    settling: Mutex<HashSet<(u32, TransactionId)>>,
    /// How far transactions were looked after, by group.
    looked_after: Mutex<HashMap<u32, transactions::LookedAfter>>,
    /// Groups whose old decisions are being looked after.
    forgetting: Mutex<HashSet<u32>>,
    /// How busy its groups are.
    loads: Mutex<load::Loads>,
    /// Where Redis clients reach this node, as others are told.
    redis: Mutex<String>,
    /// Requests that were passed on to who leads.
    forwarded: AtomicU64,
    is_stopping: AtomicBool,
    /// Until the node is stopped.
    lock: Mutex<Option<Box<dyn DiskLock>>>,
}

/// What was read, and how much it knew.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ReadAnswer {
    /// The answer.
    pub reply: GroupReadReply,
    /// Position of the last entry that it includes.
    pub position: u64,
    /// See [`ClientReply::Read`].
    pub age: Option<Duration>,
}

fn random_u128(seed: Option<u64>) -> u128 {
    match seed {
        // Numbers of one simulation need to differ from each other, not to be random.
        Some(seed) => {
            let part = |salt: u64| u128::from((seed ^ salt).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            (part(0x5bd1_e995) << 64) | part(0x2545_f491)
        }
        None => {
            // The standard library's hasher is keyed by the operating system's random numbers.
            let part = || u128::from(std::hash::RandomState::new().build_hasher().finish());
            (part() << 64) | part()
        }
    }
}

impl Node {
    /// Opens a node's directory, or makes one, and runs it until [`Node::shutdown`]. To be called
    /// in the tokio runtime that the node is to run in, which needs its timer.
    ///
    /// # Errors
    /// The directory is in use, is another node's or another cluster's, is damaged; the disk.
    pub async fn start(mut config: NodeConfig, transport: Arc<dyn Transport>) -> Result<Node> {
        if config.node.0 == 0 {
            return Err(Error::InvalidRequest("0 is no node id".to_owned()));
        }
        // Wherever the process works later.
        config.directory = config.disk.absolute(&config.directory).map_err(|error| {
            Error::io(format!("finding out where {} is", config.directory.display()), error)
        })?;
        let blocking = if config.threads { Blocking::Threads } else { Blocking::Inline };
        let open = {
            let config = config.clone();
            move || open_directory(&config)
        };
        let (lock, file, shared_log) =
            blocking.run(open).await.map_err(|error| Error::io("starting the node", error))??;
        let shared_log = Arc::new(shared_log);
        let inner = Arc::new(Inner {
            snapshots: Arc::new(Snapshots::new(Arc::clone(&shared_log), blocking)),
            fence: Arc::new(Fence::new(file.taken_out)),
            given_up: tokio::sync::Mutex::default(),
            room: Arc::new(Room::new(config.node, config.low_disk_bytes)),
            transport,
            blocking,
            shared_log,
            file: Mutex::new(file),
            cluster: OnceLock::new(),
            adopting: tokio::sync::Mutex::new(()),
            hosting: tokio::sync::Mutex::new(()),
            unfinished: AtomicBool::new(false),
            wake_driver: tokio::sync::Notify::new(),
            progress: runtime::watch::Sender::new(None),
            addresses: Mutex::default(),
            stop: runtime::watch::Sender::new(false),
            changes: watch::Sender::new(0),
            tasks: Mutex::default(),
            settling: Mutex::default(),
            looked_after: Mutex::default(),
            forgetting: Mutex::default(),
            loads: Mutex::default(),
            redis: Mutex::default(),
            forwarded: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            lock: Mutex::new(Some(lock)),
            config,
        });
        if file.taken_out {
            tracing::error!(
                node = inner.config.node.0,
                "this node was taken out of the cluster, and serves nobody any more: give it a new id and an empty \
                 directory"
            );
        }
        // Before anything is served.
        inner.look_at_disk().await;
        if file.cluster != 0 {
            inner.open_cluster().await?;
        }
        Ok(Node { inner })
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.inner.config.node
    }

    /// How it was started.
    pub fn config(&self) -> &NodeConfig {
        &self.inner.config
    }

    /// The cluster's id; `None` as long as the node belongs to none.
    pub fn cluster(&self) -> Option<u128> {
        self.inner.cluster.get().map(|cluster| cluster.id)
    }

    /// Where everything is, as far as is known here.
    pub fn map(&self) -> ClusterMap {
        self.inner.map()
    }

    /// What is hashed of the keys of a tree, as far as is known here.
    pub fn tree_hash(&self, tree: &[u8]) -> TreeHash {
        let record = self.inner.cluster.get().and_then(Cluster::record);
        record.and_then(|record| record.tree_hash(tree)).unwrap_or_else(|| TreeHash::by_name(tree))
    }

    /// Who leads a group, as far as is known here.
    pub fn leader(&self, group: u32) -> Option<NodeId> {
        self.inner.cluster.get()?.group(group)?.leader()
    }

    /// Tells of every change of a leader or a membership that this node hears of.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }

    /// How the node is.
    pub fn status(&self) -> NodeStatus {
        self.inner.status()
    }

    /// Tells others who ask where Redis clients reach this node, `host:port`; empty: nowhere.
    pub fn announce_redis(&self, address: &str) {
        address.clone_into(&mut self.inner.redis.lock());
    }

    /// How many requests of clients this node has passed on to another, which leads the group.
    pub fn forwarded(&self) -> u64 {
        self.inner.forwarded.load(Ordering::Relaxed)
    }

    /// Has a command carried out by a group, wherever it is led, within the node's own deadline.
    ///
    /// # Errors
    /// See [`ClusterError`]. A refusal by the group is in the reply.
    pub async fn submit(
        &self,
        group: u32,
        command: &GroupCommand,
    ) -> std::result::Result<GroupReply, ClusterError> {
        let command =
            encode_group_command(command).map_err(|error| ClusterError::Invalid(error.to_string()))?;
        let request = ClientRequest::Submit { group, deadline: Duration::ZERO, command: command.into() };
        match self.request(request).await? {
            ClientReply::Applied(reply) => {
                decode_group_reply(&reply).map_err(|error| ClusterError::OutcomeUnknown(error.to_string()))
            }
            other => Err(ClusterError::OutcomeUnknown(format!("an answer to something else: {other:?}"))),
        }
    }

    /// Reads from this node's replica of a group.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn read(
        &self,
        group: u32,
        read: &GroupRead,
        consistency: Consistency,
    ) -> std::result::Result<ReadAnswer, ClusterError> {
        let read = encode_group_read(read).map_err(|error| ClusterError::Invalid(error.to_string()))?;
        let request = ClientRequest::Read { group, deadline: Duration::ZERO, consistency, read: read.into() };
        match self.request(request).await? {
            ClientReply::Read { position, age, reply } => {
                let reply = decode_group_read_reply(&reply)
                    .map_err(|error| ClusterError::Unavailable(error.to_string()))?;
                Ok(ReadAnswer { reply, position, age })
            }
            other => Err(ClusterError::Unavailable(format!("an answer to something else: {other:?}"))),
        }
    }

    /// Serves a request as if a client had sent it.
    ///
    /// # Errors
    /// What the answer would be if it is an error.
    pub async fn request(&self, request: ClientRequest) -> std::result::Result<ClientReply, ClusterError> {
        let body = request.encode();
        let is_administrative = request.is_administrative();
        let reply = Arc::clone(&self.inner).serve(request, body, serve::Asker::Client);
        // What is done in several steps goes on if the caller does not wait for it.
        let reply = match is_administrative {
            true => serve::goes_on(reply).await,
            false => reply.await,
        };
        match ClientReply::decode(reply) {
            Ok(ClientReply::Error(error)) => Err(error),
            Ok(reply) => Ok(reply),
            Err(error) => Err(ClusterError::OutcomeUnknown(format!("the answer is malformed: {error}"))),
        }
    }

    /// What identifies the entries `from..=to` of a group's log on this node, as far as they are
    /// there. For checking that nodes agree.
    ///
    /// # Errors
    /// What reading them met.
    pub fn entries(&self, group: u32, from: u64, to: u64) -> std::io::Result<Vec<EntryIdentity>> {
        let group = self.inner.cluster.get().and_then(|cluster| cluster.group(group));
        group.map_or_else(|| Ok(Vec::new()), |group| group.log.identities(from, to))
    }

    /// The replica of a group on this node, for what is read without asking the cluster. Not to be
    /// kept: a snapshot can only take its place when nobody has it.
    pub fn replica(&self, group: u32) -> Option<Arc<dogsled_storage::replica::Replica>> {
        self.inner.cluster.get()?.group(group)?.slot.replica()
    }

    /// Whether this node has a replica of a group.
    pub fn hosts(&self, group: u32) -> bool {
        self.inner.cluster.get().is_some_and(|cluster| cluster.group(group).is_some())
    }

    /// What is wanted of the cluster, as far as is known here; `None` as long as it is being made.
    pub fn record(&self) -> Option<Arc<Record>> {
        self.inner.cluster.get()?.record()
    }

    /// Stops the node: gives up leadership to others first, then ends the groups and closes what is
    /// open. The directory can be opened again on return.
    ///
    /// # Errors
    /// What was found on closing the WAL.
    pub async fn shutdown(&self) -> Result<()> {
        self.inner.is_stopping.store(true, Ordering::Relaxed);
        self.inner.give_up_leadership().await;
        self.inner.stop(true).await
    }

    /// Stops the node at once, as if the process had died, but for what is in the operating system's
    /// hands. For tests.
    ///
    /// # Errors
    /// As [`Node::shutdown`].
    pub async fn halt(&self) -> Result<()> {
        self.inner.stop(false).await
    }
}

pub(crate) type Opened = (Box<dyn DiskLock>, NodeFile, SharedLog);

/// Locks a node's directory, or makes one, and opens its WAL.
pub(crate) fn open_directory(config: &NodeConfig) -> Result<Opened> {
    let (disk, directory) = (&config.disk, &config.directory);
    if config.convert_embedded {
        convert::convert(config, config.cluster.unwrap_or_else(|| random_u128(config.seed)))?;
    }
    let doing = |what: &str| format!("{what} {}", directory.display());
    disk.create_directories(directory).map_err(|error| Error::io(doing("making"), error))?;
    let lock = disk.lock(&directory.join("LOCK")).map_err(|error| Error::io(doing("locking"), error))?;
    let Some(lock) = lock else { return Err(Error::InUse(directory.clone())) };
    let refuse = |what: String| Err(Error::NotADatabase { path: directory.clone(), what });
    let mut file = match NodeFile::read(&**disk, directory)? {
        Some(file) => file,
        None => {
            for name in ["wal", "groups", "MANIFEST"] {
                let found = disk.exists(&directory.join(name));
                if found.map_err(|error| Error::io(doing("looking into"), error))? {
                    return refuse(format!(
                        "it has `{name}` but no file `node`: it is not a node's, or that file was lost"
                    ));
                }
            }
            let file = NodeFile {
                node: config.node.0,
                database_id: random_u128(config.seed),
                cluster: 0,
                partitions: 0,
                converting: false,
                taken_out: false,
            };
            file.write(&**disk, directory)?;
            file
        }
    };
    if file.node != config.node.0 {
        return refuse(format!(
            "it belongs to node {}, not to node {}: an id is never given to another node",
            file.node, config.node
        ));
    }
    if let Some(expected) = config.cluster
        && file.cluster != 0
        && file.cluster != expected
    {
        return refuse(format!("it belongs to the cluster {:032x}, not to {expected:032x}", file.cluster));
    }
    convert::finish(&**disk, directory, &mut file)?;
    let options = WalOptions {
        segment_size: config.wal_segment_bytes,
        threads: config.threads,
        seed: config.seed,
        // Whoever belongs to a cluster has voted, and said what it has: without its WAL it would vote again, and otherwise.
        // The WAL may be a file system of its own, and not be mounted.
        must_exist: file.cluster != 0,
        ..WalOptions::new(directory.join("wal"), file.database_id)
    };
    let wal = Arc::new(Wal::open(Arc::clone(disk), options)?);
    // A process that was ended just when it had made `wal` may have left a name that is not durable yet.
    disk.sync_directory(directory).map_err(|error| Error::io(doing("syncing"), error))?;
    let durability = match config.threads {
        true => Durability::threaded(Arc::clone(&wal))
            .map_err(|error| Error::io("starting the thread that waits for the disk", error))?,
        false => Durability::inline(Arc::clone(&wal), config.sync_time),
    };
    let blocking = if config.threads { Blocking::Threads } else { Blocking::Inline };
    Ok((lock, file, SharedLog::new(wal, durability, blocking, config.snapshot_bytes_per_second)))
}

impl Inner {
    fn cluster(&self) -> std::result::Result<&Cluster, ClusterError> {
        self.cluster
            .get()
            .ok_or_else(|| ClusterError::Unavailable("this node belongs to no cluster yet".to_owned()))
    }

    /// A group that is here. For one that is not, the error says who may have it.
    fn group(&self, group: u32) -> std::result::Result<Arc<Group>, ClusterError> {
        let cluster = self.cluster()?;
        if let Some(found) = cluster.group(group) {
            return Ok(found);
        }
        if group > cluster.partitions {
            return Err(ClusterError::Invalid(format!(
                "there is no group {group}, only 0 to {}",
                cluster.partitions
            )));
        }
        let leader = cluster.leader_elsewhere(group).filter(|leader| *leader != self.config.node);
        let addresses = match (leader, cluster.record()) {
            (Some(leader), Some(record)) => record.members.get(&leader).map(|m| m.addresses.clone()),
            _ => None,
        };
        Err(ClusterError::NotLeader { group, leader, addresses: addresses.unwrap_or_default() })
    }

    fn group_changed(&self, group: &Group) {
        if group.id == crate::ring::META_GROUP {
            // Whoever leads it now has something to do.
            self.wake_driver.notify_one();
        }
        // The record knows better, once there is one.
        if self.cluster.get().is_none_or(|cluster| cluster.record.load().is_none()) {
            let (_, members) = group.members();
            for (node, member) in members {
                self.set_addresses(NodeId(node), member.addresses);
            }
        }
        self.changes.send_modify(|changes| *changes += 1);
    }

    fn set_addresses(&self, node: NodeId, addresses: Vec<String>) {
        if node == self.config.node || addresses.is_empty() {
            return;
        }
        let mut known = self.addresses.lock();
        if known.get(&node) != Some(&addresses) {
            known.insert(node, addresses.clone());
            self.transport.set_addresses(node, addresses);
        }
    }

    /// Makes the node a member of a cluster's nodes, for ever; again if it is one already.
    async fn adopt(self: &Arc<Self>, adoption: Adoption) -> std::result::Result<(), String> {
        if adoption.cluster_id == 0 || adoption.partitions == 0 || adoption.partitions > 4096 {
            return Err("a cluster has an id and 1 to 4096 partitions".to_owned());
        }
        let _one_at_a_time = self.adopting.lock().await;
        if *self.stop.borrow() {
            return Err("the node is stopping".to_owned());
        }
        if let Some(expected) = self.config.cluster.filter(|expected| *expected != adoption.cluster_id) {
            return Err(format!(
                "node {} expects the cluster {expected:032x}, not {:032x}",
                self.config.node, adoption.cluster_id
            ));
        }
        let mut file = *self.file.lock();
        if file.cluster != 0 && (file.cluster, file.partitions) != (adoption.cluster_id, adoption.partitions)
        {
            return Err(format!(
                "node {} belongs to the cluster {:032x} already",
                self.config.node, file.cluster
            ));
        }
        for (node, addresses) in adoption.members {
            self.set_addresses(NodeId(node), addresses);
        }
        if file.cluster == 0 {
            file.cluster = adoption.cluster_id;
            file.partitions = adoption.partitions;
            let (disk, directory) = (Arc::clone(&self.config.disk), self.config.directory.clone());
            let written = self.blocking.run(move || file.write(&*disk, &directory)).await;
            match written {
                Ok(Ok(())) => *self.file.lock() = file,
                Ok(Err(error)) => return Err(error.to_string()),
                Err(error) => return Err(error.to_string()),
            }
        }
        if self.cluster.get().is_none() {
            self.open_cluster().await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    fn map(&self) -> ClusterMap {
        let Some(cluster) = self.cluster.get() else { return ClusterMap::default() };
        let (groups, record) = (cluster.groups(), cluster.record());
        let leader = |group: u32| match groups.get(&group) {
            Some(group) => group.leader(),
            None => cluster.leaders.lock().get(&group).copied(),
        };
        let mut map = ClusterMap {
            cluster: cluster.id,
            partitions: cluster.partitions,
            leaders: (0..=cluster.partitions).map(leader).collect(),
            ..ClusterMap::default()
        };
        match record {
            Some(record) => {
                map.epoch = if record.forming { 0 } else { record.epoch };
                map.replicas =
                    (0..=cluster.partitions).map(|group| record.replicas_of(group).to_vec()).collect();
                let members = record.members.iter();
                map.members = members.map(|(node, member)| (*node, member.addresses.clone())).collect();
                map.zones = record.members.values().map(|member| member.zone.clone()).collect();
                let in_force =
                    |(name, tree): (&IVec, &HashedTree)| tree.in_force.then(|| (name.clone(), tree.hash));
                map.trees = record.trees.iter().filter_map(in_force).collect();
            }
            None => {
                let (_, members) = groups.get(&0).map(|group| group.members()).unwrap_or_default();
                map.members =
                    members.into_iter().map(|(node, member)| (NodeId(node), member.addresses)).collect();
            }
        }
        map
    }

    fn status(&self) -> NodeStatus {
        let wal = self.shared_log.wal.stats();
        let groups = self.cluster.get().map(|cluster| cluster.groups()).unwrap_or_default();
        let groups = || groups.values();
        let replicas = groups().filter_map(|group| group.slot.replica());
        // A report that lacks a figure is better than none.
        let space = self.config.disk.space(&self.config.directory).ok();
        NodeStatus {
            node: self.config.node,
            cluster: self.cluster.get().map_or(0, |cluster| cluster.id),
            members: self.map().members,
            groups: groups()
                .map(|group| GroupStatus { load: self.load_of(group.id), ..group.status() })
                .collect(),
            wal_live_bytes: wal.live_bytes,
            wal_file_bytes: wal.file_bytes,
            wal_syncs: wal.syncs,
            tree_bytes: replicas.map(|replica| replica.engine().tree_bytes()).sum(),
            disk_total_bytes: space.map_or(0, |space| space.total),
            disk_free_bytes: space.map_or(0, |space| space.free),
            disk_low_mark_bytes: self.room.mark(),
            disk_is_low: self.room.is_low(),
            redis: self.redis.lock().clone(),
            failure: self.shared_log.wal.poisoned().map(|error| error.to_string()),
        }
    }

    async fn stop(&self, orderly: bool) -> Result<()> {
        self.stop.send_replace(true);
        // Whoever is making the node part of a cluster is through, and nobody begins to.
        let _adopting = self.adopting.lock().await;
        let tasks = std::mem::take(&mut *self.tasks.lock());
        for task in tasks {
            // A task that panicked has ended, too.
            let _ = task.await;
        }
        // Whoever is giving the node a group is through, and nobody begins to.
        let _hosting = self.hosting.lock().await;
        let groups = self.cluster.get().map(|cluster| cluster.groups()).unwrap_or_default();
        for group in groups.values() {
            group.closing.send_replace(true);
        }
        for group in groups.values() {
            group.close().await;
        }
        let slots: Vec<_> = groups.values().map(|group| Arc::clone(&group.slot)).collect();
        let shared_log = Arc::clone(&self.shared_log);
        let closed = self.blocking.run(move || {
            for slot in slots {
                if orderly && let Some(replica) = slot.replica() {
                    // Makes the next start quicker; what fails is still in the WAL.
                    let _ = replica.checkpoint();
                }
                slot.close();
            }
            shared_log.durability.stop();
            shared_log.wal.close()
        });
        let closed = closed.await.map_err(|error| Error::io("closing the node", error))?;
        drop(self.lock.lock().take());
        closed
    }
}
