//! `CLUSTER`, `READONLY` and `MOVED`: a client of a Redis cluster finds the node that leads a key's partition.
//!
//! # Idea
//!
//! A database's tree is hashed by [Redis's slots](dogsled_replication::ring::slots), so each slot is of one partition, and
//! *the node of a slot* is who leads that. Where Redis clients reach a node it says itself, in its status
//! ([`NodeStatus::redis`](crate::cluster::NodeStatus)); a node asks the others for that once in a second while any of its
//! clients wants to know, and forgets what is not said again. So nothing of it is stored: no address outlives its node,
//! comes back with a backup, or is somebody else's. Who leads a partition that this node has a replica of it knows itself, of
//! others the statuses tell it.
//!
//! # Promises
//!
//! - **Any node serves any key, always.** What a node does not lead it has carried out by who does. The map makes
//!   that rare, no command depends on it.
//! - **Who does not ask for the map is never sent elsewhere.** `MOVED` is an error to a plain client. By default a connection
//!   is sent it only after `CLUSTER SLOTS`, `SHARDS` or `NODES`, `READONLY`, `READWRITE` or `ASKING` came over it
//!   ([`Redirects::Aware`]). Many libraries ask for the map over one connection and use others: those are served where they
//!   come, and go to a new leader as soon as the library asks again. [`Redirects::Always`] sends everybody elsewhere, as
//!   Redis does: for a port that only clients of clusters use.
//! - **Nobody is sent in a circle**: only to a node that has just said where it is, only for a command whose keys are all of
//!   one slot, and for one partition at most once in a second over a connection. Two nodes that take each other for the leader
//!   serve the client at the second try. What a client had sent already when it was told `MOVED` goes the same way, until
//!   nothing more of it is there to be read: its commands keep their order.
//!
//! # Omissions
//!
//! There are no replicas in the map, but for connections that have said `READONLY`: other reads are linearizable, whichever node
//! is asked, so asking a follower gains nothing. Nodes answer
//! for the whole database: a library that adds up `DBSIZE` or joins `SCAN` of all nodes counts each key once per node.
//! Nothing is migrated by slots, so there is no `ASK`; what changes the cluster is told by its name in `dogsled`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_replication::ring::slots::{SLOTS, group_of_slot, slot_of, slots_of};
use dogsled_replication::{self as replication, NodeId, Role};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::database::{Data, Database};
use super::link::Link;
use super::table::{Asked, Planned, Step, is_word, syntax_error};
use crate::cluster::Client;
use crate::cluster::core::Reach;

/// How often other nodes are asked where they are, and how long one may take.
const LOOK: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_millis(800);
/// What was not said again for so long does not count any more.
const FRESH: Duration = Duration::from_millis(2500);
/// They are asked for so long after somebody wanted to know.
const WANTED: Duration = Duration::from_secs(30);
/// How soon a connection is sent elsewhere again for a partition.
const AGAIN: Duration = Duration::from_secs(1);

/// Which clients are sent to the node that leads a key's partition; see the module `slots` of this one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Redirects {
    /// None, and nothing is told of a cluster: the node looks like a Redis that stands alone.
    Off,
    /// Those that have asked where the slots are.
    #[default]
    Aware,
    /// All, as Redis does.
    Always,
}

/// Where a node is, for Redis clients.
type Address = (String, u16);

/// Splits `host:port`; the host of an IPv6 address is in brackets.
fn split(address: &str) -> Option<Address> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some((host.to_owned(), port.parse().ok()?)).filter(|(host, _)| !host.is_empty())
}

/// What another node has said.
struct Said {
    at: Instant,
    address: Address,
    /// The groups that it leads.
    leads: Vec<u32>,
}

/// What a node knows of where keys are.
pub(super) struct Topology {
    redirects: Redirects,
    own: Address,
    node: Option<replication::Node>,
    others: Mutex<BTreeMap<NodeId, Said>>,
    /// When all others had been asked.
    asked_at: watch::Sender<Option<Instant>>,
    wanted: Notify,
    wanted_at: Mutex<Option<Instant>>,
    moved: AtomicU64,
}

/// Who has which slots.
struct Shard {
    node: NodeId,
    address: Address,
    slots: Vec<Range<u16>>,
}

impl Topology {
    /// Of a server that is reached at `own`. One that is not within a node knows of no cluster.
    pub(super) fn new(client: &Client, own: &str, redirects: Redirects) -> Option<Arc<Topology>> {
        let node = match &client.core().reach {
            Reach::Here { node, .. } if redirects != Redirects::Off => Some(node.clone()),
            _ => None,
        };
        let own_address = split(own)?;
        if let Some(node) = &node {
            node.announce_redis(own);
        }
        Some(Arc::new(Topology {
            redirects,
            own: own_address,
            node,
            others: Mutex::default(),
            asked_at: watch::Sender::new(None),
            wanted: Notify::new(),
            wanted_at: Mutex::default(),
            moved: AtomicU64::new(0),
        }))
    }

    /// Whether clients are told of a cluster.
    pub(super) fn is_known(&self) -> bool {
        self.node.is_some()
    }

    /// What `INFO` tells of it.
    pub(super) fn info(&self) -> String {
        let forwarded = self.node.as_ref().map_or(0, replication::Node::forwarded);
        format!(
            "# Cluster\r\ncluster_enabled:{}\r\ndogsled_moved:{}\r\ndogsled_forwarded:{forwarded}\r\n",
            u8::from(self.is_known()),
            self.moved.load(Ordering::Relaxed),
        )
    }

    /// How many replies have sent clients elsewhere.
    pub(super) fn told_to_move(&self) -> u64 {
        self.moved.load(Ordering::Relaxed)
    }

    /// Nobody is to be sent here any more.
    pub(super) fn withdraw(&self) {
        if let Some(node) = &self.node {
            node.announce_redis("");
        }
    }

    /// Asks the others where they are, while somebody wants to know.
    pub(super) async fn keep(self: Arc<Self>) {
        let Some(node) = self.node.clone() else { return };
        loop {
            let is_wanted = self.redirects == Redirects::Always
                || self.wanted_at.lock().is_some_and(|at| at.elapsed() < WANTED);
            if !is_wanted {
                self.wanted.notified().await;
            }
            let begun = Instant::now();
            let members = node.map().members.into_iter().map(|(member, _)| member);
            let others = members.filter(|member| *member != node.id());
            join_all(others.map(|other| self.ask(&node, other))).await;
            self.others.lock().retain(|_, said| said.at.elapsed() < FRESH);
            self.asked_at.send_replace(Some(Instant::now()));
            tokio::time::sleep_until(begun + LOOK).await;
        }
    }

    async fn ask(&self, node: &replication::Node, other: NodeId) {
        let at = Instant::now();
        // What is not heard now is heard in a second.
        let Ok(status) = node.member_status(other, ANSWER).await else { return };
        let Some(address) = split(&status.redis) else {
            self.others.lock().remove(&other);
            return;
        };
        let led = status.groups.iter().filter(|group| group.role == Role::Leader);
        let leads = led.map(|group| group.group).collect();
        self.others.lock().insert(other, Said { at, address, leads });
    }

    /// Has the others asked, and waits until they were, if that is long ago.
    async fn want(&self) {
        *self.wanted_at.lock() = Some(Instant::now());
        self.wanted.notify_one();
        let mut asked_at = self.asked_at.subscribe();
        let is_known = |at: &Option<Instant>| at.is_some_and(|at| at.elapsed() < LOOK * 2);
        // One that does not answer has had its time by then.
        let _ = tokio::time::timeout(LOOK * 2, asked_at.wait_for(is_known)).await;
    }

    /// Who leads a group, and where that is, if that is another node and certain.
    fn elsewhere(&self, node: &replication::Node, group: u32) -> Option<(NodeId, Address)> {
        let others = self.others.lock();
        let leader = match node.hosts(group) {
            true => node.leader(group)?,
            // Two may say so; who is asked passes it on.
            false => *others.iter().find(|(_, said)| said.leads.contains(&group))?.0,
        };
        let said = others.get(&leader).filter(|said| said.at.elapsed() < FRESH)?;
        Some((leader, said.address.clone()))
    }

    /// All nodes that clients can be sent to, this one first. What none of the others has is here: any node serves it.
    fn shards(&self, node: &replication::Node) -> Vec<Shard> {
        let shard = |node, address| Shard { node, address, slots: Vec::new() };
        let mut shards = vec![shard(node.id(), self.own.clone())];
        let known = self.others.lock();
        let fresh = known.iter().filter(|(_, said)| said.at.elapsed() < FRESH);
        shards.extend(fresh.map(|(other, said)| shard(*other, said.address.clone())));
        drop(known);
        let partitions = node.map().partitions;
        if partitions == 0 {
            shards[0].slots.push(0..SLOTS);
            return shards;
        }
        for group in 1..=partitions {
            let slots = slots_of(group, partitions);
            let of = self.elsewhere(node, group).map_or(node.id(), |(leader, _)| leader);
            let place = shards.iter().position(|shard| shard.node == of).unwrap_or(0);
            match shards[place].slots.last_mut() {
                _ if slots.is_empty() => {}
                Some(last) if last.end == slots.start => last.end = slots.end,
                _ => shards[place].slots.push(slots),
            }
        }
        shards
    }

    /// What a connection is told instead of being served, if it is to go elsewhere with a command.
    pub(super) fn moved(&self, link: &mut Redirected, database: &Database, data: &Data) -> Option<Value> {
        let node = self.node.as_ref()?;
        if self.redirects != Redirects::Always && !link.is_aware {
            return None;
        }
        if let Some(moved) = self.moved_before(link, database, data) {
            return Some(moved);
        }
        let partitions = database.known_partitions()?;
        let slot = slot_of_all(data)?;
        let group = group_of_slot(slot, partitions);
        let (_, (host, port)) = self.elsewhere(node, group)?;
        let now = Instant::now();
        link.sent.retain(|(_, at)| now.duration_since(*at) < AGAIN);
        if link.sent.iter().any(|(sent, _)| *sent == group) {
            return None;
        }
        let address = format!("{host}:{port}");
        self.moved.fetch_add(1, Ordering::Relaxed);
        let moved = Value::error(format!("MOVED {slot} {address}"));
        link.sent.push((group, now));
        link.sent_now.push((group, address));
        Some(moved)
    }

    /// What is told of a command that comes behind one that was sent elsewhere and is of the same partition: it goes
    /// the same way, wherever that leads by now, and if it is within `MULTI`, or of several partitions, too.
    pub(super) fn moved_before(&self, link: &Redirected, database: &Database, data: &Data) -> Option<Value> {
        if !link.is_being_sent() {
            return None;
        }
        let partitions = database.known_partitions()?;
        let keys = data.operations.iter().flat_map(|operation| operation.keys());
        for slot in keys.filter(|(tree, _)| tree.0 == 0).map(|(_, key)| slot_of(key)) {
            let group = group_of_slot(slot, partitions);
            if let Some((_, address)) = link.sent_now.iter().find(|(sent, _)| *sent == group) {
                self.moved.fetch_add(1, Ordering::Relaxed);
                return Some(Value::error(format!("MOVED {slot} {address}")));
            }
        }
        None
    }

    /// A node's name, as long as those of Redis: the cluster's id, but for what does not fit, and the node's.
    fn name(node: &replication::Node, of: NodeId) -> String {
        format!("{:024x}{:016x}", node.cluster().unwrap_or_default() >> 32, of.0)
    }

    /// With replicas behind the leaders, where those can be read.
    fn slots(&self, node: &replication::Node, with_replicas: bool) -> Value {
        let shards = self.shards(node);
        let partitions = if with_replicas { node.map().partitions } else { 0 };
        let mut rows: Vec<(u16, Vec<&Shard>, Range<u16>)> = Vec::new();
        for shard in &shards {
            for slots in &shard.slots {
                if partitions == 0 {
                    rows.push((slots.start, vec![shard], slots.clone()));
                    continue;
                }
                // Each partition has replicas of its own.
                for group in group_of_slot(slots.start, partitions)..=group_of_slot(slots.end - 1, partitions)
                {
                    let replicas = node.map().replicas_of(group).to_vec();
                    let others = shards
                        .iter()
                        .filter(|other| other.node != shard.node && replicas.contains(&other.node));
                    let slots = slots_of(group, partitions);
                    rows.push((slots.start, std::iter::once(shard).chain(others).collect(), slots));
                }
            }
        }
        rows.sort_by_key(|(first, ..)| *first);
        let place = |shard: &&Shard| {
            Value::Array(vec![
                Value::text(shard.address.0.clone()),
                Value::Integer(i64::from(shard.address.1)),
                Value::text(Topology::name(node, shard.node)),
                Value::Array(Vec::new()),
            ])
        };
        let row = |(first, places, slots): (u16, Vec<&Shard>, Range<u16>)| {
            let bounds = [first, slots.end - 1].map(|slot| Value::Integer(i64::from(slot)));
            Value::Array(bounds.into_iter().chain(places.iter().map(place)).collect())
        };
        Value::Array(rows.into_iter().map(row).collect())
    }

    fn shards_of(&self, node: &replication::Node) -> Value {
        let pair = |key: &str, value: Value| (Value::text(key), value);
        let told = self.shards(node).into_iter().map(|shard| {
            let bounds = shard.slots.iter().flat_map(|slots| [slots.start, slots.end - 1]);
            let (host, port) = shard.address;
            let place = Value::Map(vec![
                pair("id", Value::text(Topology::name(node, shard.node))),
                pair("port", Value::Integer(i64::from(port))),
                pair("ip", Value::text(host.clone())),
                pair("endpoint", Value::text(host)),
                pair("role", Value::text("master")),
                pair("replication-offset", Value::Integer(0)),
                pair("health", Value::text("online")),
            ]);
            Value::Map(vec![
                pair("slots", Value::Array(bounds.map(|slot| Value::Integer(i64::from(slot))).collect())),
                pair("nodes", Value::Array(vec![place])),
            ])
        });
        Value::Array(told.collect())
    }

    fn nodes(&self, node: &replication::Node) -> Value {
        let mut text = String::new();
        for shard in self.shards(node) {
            let own = if shard.node == node.id() { "myself," } else { "" };
            let (host, port) = &shard.address;
            let name = Topology::name(node, shard.node);
            // There is no second port of a bus; some clients want to read one.
            text += &format!("{name} {host}:{port}@{port} {own}master - 0 0 1 connected");
            for slots in &shard.slots {
                match slots.end - slots.start {
                    1 => text += &format!(" {}", slots.start),
                    _ => text += &format!(" {}-{}", slots.start, slots.end - 1),
                }
            }
            text.push('\n');
        }
        Value::Verbatim(text)
    }

    fn state(&self, node: &replication::Node) -> Value {
        let shards = self.shards(node);
        let size = shards.iter().filter(|shard| !shard.slots.is_empty()).count();
        Value::Verbatim(format!(
            "cluster_state:ok\r\ncluster_slots_assigned:{SLOTS}\r\ncluster_slots_ok:{SLOTS}\r\n\
             cluster_slots_pfail:0\r\ncluster_slots_fail:0\r\ncluster_known_nodes:{}\r\ncluster_size:{size}\r\n\
             cluster_current_epoch:1\r\ncluster_my_epoch:1\r\n",
            shards.len(),
        ))
    }
}

/// What of a connection decides whether it is sent elsewhere.
#[derive(Default)]
pub(super) struct Redirected {
    /// It knows of slots.
    pub(super) is_aware: bool,
    /// For which groups it was sent elsewhere lately.
    sent: Vec<(u32, Instant)>,
    /// And of them those for which it may not have read so yet. What it has sent meanwhile goes the same way: if the
    /// second of two commands on a key were carried out here, the first would be carried out behind it.
    sent_now: Vec<(u32, String)>,
}

impl Redirected {
    /// Whether it has just been sent elsewhere.
    pub(super) fn is_being_sent(&self) -> bool {
        !self.sent_now.is_empty()
    }

    /// The client has its replies, and nothing was there that it had sent before.
    pub(super) fn has_been_told(&mut self) {
        self.sent_now.clear();
    }
}

/// The one slot of all keys; `None`: there are several or none, or something else decides where it is carried out.
fn slot_of_all(data: &Data) -> Option<u16> {
    if data.fence.is_some() {
        return None;
    }
    // A connection to another node is of database 0, as in Redis's clusters.
    if data.operations.iter().flat_map(|operation| operation.keys()).any(|(tree, _)| tree.0 != 0) {
        return None;
    }
    let mut slots =
        data.operations.iter().flat_map(|operation| operation.keys()).map(|(_, key)| slot_of(key));
    let first = slots.next()?;
    slots.all(|slot| slot == first).then_some(first)
}

pub(super) fn plan(asked: &Asked<'_>) -> Planned {
    Ok(Step::Slots(asked.arguments.to_vec()))
}

/// `READONLY`: what only reads is answered here.
pub(super) fn read_only(link: &mut Link, arguments: &[Bytes]) -> Value {
    link.reads_here = link.server.topology.is_known();
    knows(link, arguments)
}

/// `READWRITE`: as at the beginning.
pub(super) fn read_write(link: &mut Link, arguments: &[Bytes]) -> Value {
    link.reads_here = false;
    knows(link, arguments)
}

/// `ASKING`: any node serves any key anyway, but who says so knows of slots.
pub(super) fn knows(link: &mut Link, _: &[Bytes]) -> Value {
    if !link.server.topology.is_known() {
        return disabled();
    }
    link.redirected.is_aware = true;
    Value::OK
}

fn disabled() -> Value {
    Value::error("ERR This instance has cluster support disabled")
}

/// What changes a Redis cluster, and what does that here.
const CHANGES: &[(&str, &str)] = &[
    ("ADDSLOTS", "slots follow who leads their partitions, which `dogsled member weight` shifts"),
    ("ADDSLOTSRANGE", "slots follow who leads their partitions, which `dogsled member weight` shifts"),
    ("BUMPEPOCH", "epochs count by themselves"),
    ("DELSLOTS", "slots follow who leads their partitions; `dogsled drain` empties a node"),
    ("DELSLOTSRANGE", "slots follow who leads their partitions; `dogsled drain` empties a node"),
    ("FAILOVER", "leaders are elected by themselves; `dogsled drain` has a node give up what it leads"),
    ("FLUSHSLOTS", "slots follow who leads their partitions; `dogsled drain` empties a node"),
    ("FORGET", "`dogsled member remove` takes a node out"),
    ("MEET", "a node joins by `dogsled serve --join`, or is taken in by `dogsled member add`"),
    ("REPLICATE", "`dogsled replicas` says how many replicas every partition has"),
    ("RESET", "`dogsled member remove` takes a node out"),
    ("SAVECONFIG", "what is decided of the cluster is replicated and synced already"),
    ("SET-CONFIG-EPOCH", "epochs count by themselves"),
    ("SETSLOT", "slots follow who leads their partitions, which `dogsled member weight` shifts"),
];

const SUBCOMMANDS: [&str; 7] = ["SLOTS", "SHARDS", "NODES", "INFO", "MYID", "KEYSLOT", "HELP"];

/// Answers `CLUSTER`.
pub(super) async fn cluster(link: &mut Link, arguments: &[Bytes]) -> Value {
    let topology = Arc::clone(&link.server.topology);
    let is = |word: &str| is_word(&arguments[1], word);
    let Some(node) = &topology.node else { return disabled() };
    if let Some((name, instead)) = CHANGES.iter().find(|(name, _)| is(name)) {
        return Value::error(format!("ERR CLUSTER {name} is not how this cluster is changed: {instead}"));
    }
    match &arguments[2..] {
        [] if is("HELP") => {
            let lines = SUBCOMMANDS.iter().map(|name| Value::Simple(format!("CLUSTER {name}").into()));
            Value::Array(lines.collect())
        }
        [] if is("MYID") => Value::text(Topology::name(node, node.id())),
        [key] if is("KEYSLOT") => Value::Integer(i64::from(slot_of(key))),
        [] if is("INFO") => {
            topology.want().await;
            topology.state(node)
        }
        [] if is("SLOTS") || is("SHARDS") || is("NODES") => {
            link.redirected.is_aware = true;
            topology.want().await;
            match () {
                () if is("SLOTS") => topology.slots(node, link.reads_here),
                () if is("SHARDS") => topology.shards_of(node),
                () => topology.nodes(node),
            }
        }
        _ => syntax_error(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_split_and_those_that_lead_nowhere_refused() {
        let told = |address: &str| split(address).map(|(host, port)| format!("{host} {port}"));
        assert_eq!(told("127.0.0.1:6379").as_deref(), Some("127.0.0.1 6379"));
        assert_eq!(told("[::1]:6379").as_deref(), Some("::1 6379"));
        assert_eq!(told("cache.example:80").as_deref(), Some("cache.example 80"));
        for nowhere in ["", "localhost", ":6379", "a:b", "a:70000"] {
            assert_eq!(told(nowhere), None, "{nowhere}");
        }
    }
}
