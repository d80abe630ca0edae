//! The replicated database: [`Node`], a node within an application, and [`Client`], the way into a
//! cluster of nodes.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use dogsled::cluster::{Client, ClientOptions};
//!
//! let options = ClientOptions::development("data")?;
//! let client = Client::connect(["127.0.0.1:7400"], options).await?;
//!
//! let users = client.tree("users");
//! users.insert("ann", "admin").await?;
//! assert_eq!(users.get("ann").await?.unwrap(), "admin");
//!
//! let visits = client.counter("visits").add(1).await?; // once, whatever fails on the way
//! # Ok(()) }
//! ```
//!
//! Trees, counters and locks have the names that they have in the embedded database, and mean the
//! same; the methods are `async`. Errors are grouped by what the caller can do: see [`Error`].
//!
//! # Routing
//!
//! A cluster is made with a fixed number of partitions, each a group of replicas with a leader of its
//! own. A key belongs to the partition that its hash says, the same in every tree. If it has a **tag**, that
//! alone is hashed: the text between the first `{` and the first `}` behind it. `{ann}:role` and
//! `{ann}:mail` share a partition, and can be written together.
//!
//! For each tree something else can be hashed than the whole key, chosen once, before anything is written to it:
//! the first bytes, or what is before a delimiter ([`Client::set_tree_hash`]). Then all keys with such a prefix lie
//! in one partition: scanning them asks that one alone, and batches of them are atomic.
//!
//! ```no_run
//! # async fn chat(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use dogsled::cluster::ring::TreeHash;
//!
//! // When the application starts, each time: the first makes it so.
//! client.set_tree_hash("messages", TreeHash::Before { delimiter: b'/', occurrence: 1 }).await?;
//!
//! let messages = client.tree("messages");
//! messages.put("room-7/0001", "hello").await?;
//! messages.put("room-7/0002", "hello yourself").await?;
//! let room = messages.scan_prefix("room-7/").into_vec().await?; // one partition is asked
//! # Ok(()) }
//! ```
//!
//! | in one partition | over partitions |
//! |---|---|
//! | `insert`, `put`, `get`, `remove`, `compare_and_swap`, `update_and_fetch` | `get_many`, `len`, `first`, `last` |
//! | `apply_batch`: atomic | `apply_batch_by_partition`: atomic in each, not as a whole |
//! | a counter, a lock: where its name belongs | `iter`, `range`, `scan_prefix`: merged, in order |
//! | `watch_prefix`: in the order of commits | `watch_prefix`: as it comes |
//! | `transaction`, `compare`: one round | `transaction`, `compare`: atomic, and serializable, in two |
//!
//! A client connects to one node and learns from it of all others and of who leads what. It has one
//! connection to each node that it needs; any number of calls share it, none waiting for another.
//! When a leader has moved, the node that is asked passes the call on, and the client hears of it
//! within a second; when a leader is gone, the client asks the others who leads now as soon as it
//! has waited for a moment.
//!
//! # Writes
//!
//! A write that returned is synced to disk on a majority of the replicas. One that fails has an
//! [`Error`] that says whether it may have happened.
//!
//! Between the two, the client repeats: until its deadline ([`Client::with_deadline`]) it sends the write
//! again, to whoever leads by then, when an answer does not come. That it happens **once** all the same is
//! the work of **sessions**. With its first write to a partition a client opens one there, and numbers
//! its writes; the partition remembers, in its log and its snapshots, what it has answered to each
//! number, until the client says that it has heard. A number that comes again gets the remembered
//! answer. So a counter that is incremented while its leader dies counts once.
//!
//! A session lives as long as its client is heard of: renewed in the background while it is used, closed
//! when it was idle for a lease ([`ClientOptions::session_lease`]) or the client is dropped. If a client is
//! cut off, or suspended, for longer, a write whose first attempt went unanswered ends in
//! [`Error::OutcomeUnknown`]; writes after it have a new session, and nobody notices.
//!
//! A call that is dropped before it has returned, as by a timeout of the application's own, may or may
//! not happen, once.
//!
//! # Reads
//!
//! Reads are **linearizable**: they see every write that had returned, to anybody, when they were
//! called. For that the replica that answers has asked its leader, and the leader a majority.
//! [`Tree::stale`] does without: the answer is what one replica happens to have, with
//! [its age](Stale::age). [`Tree::read_from`] chooses who answers: the leader, any replica in turn, the
//! nearest, or one that is at most so old. Reads change nothing, so the client repeats them as it likes.
//!
//! What spans partitions is several reads, each linearizable, not of one moment: a sum
//! ([`Tree::len`]) or a range can show a state that never was, if somebody writes meanwhile. A
//! [transaction](Client::transaction) that only reads shows one that was.
//!
//! # Locks, and writes under them
//!
//! A [`Lock`] is held for the time of a lease, under a token that is larger at each grant. It belongs to the
//! partition of its name. A write can demand that it be held ([`Tree::under`], [`Counter::under`]): the
//! partition's log carries it out only while that is so, and it fails with [`Error::LockNotHeld`] otherwise.
//! Lock and keys must be of one partition, so give them a common tag, as in `{printer}` and `{printer}:queue`.
//!
//! # Times to live
//!
//! [`Tree::insert_with_ttl`] sets a key that expires; every plain write of it takes the time to live from it
//! again. A key that has expired is not read any more by the first entry of the log after its end, and at the
//! latest about a tenth of a second after it. Within a [`transaction`] it is
//! [`put_with_ttl`](transaction::Transaction::put_with_ttl).
//!
//! # Quotas
//!
//! [`Client::set_tree_quota`] limits how much a tree may hold. Each partition keeps an equal share of the limit, by its own
//! log: so a tree never holds more than its limit (beyond that only what transactions over several partitions add that are
//! prepared at one time), and a write may be refused, with [`Error::QuotaExceeded`], before the tree as a whole is full,
//! because its partition is. Keys that are hashed whole spread evenly; all keys with one tag have one partition's share.
//! Removing and shrinking are never refused.
//!
//! # Following what happens
//!
//! [`Tree::watch_prefix`] tells every change once, in the order of each partition's log, through the loss of nodes:
//! a stream that breaks goes on at another replica after the very event that was told last. How far a subscriber
//! was told ([`Subscriber::position`]) can be kept, and another goes on from there
//! ([`Tree::watch_prefix_from`]). Replicas keep the newest changes in memory for that, 64 MiB a node unless
//! it is told otherwise ([`ReplicationConfig::watch_bytes`]); who comes later than that is told where they
//! begin ([`Event::Lost`]), and reads.
//!
//! Keys have versions, for configuration: [`Tree::get_versioned`], [`Tree::put_if_version`],
//! [`Tree::watch_key_after`]. A [`NearCache`] keeps what was read here, and says how coherent that is. A
//! [`Registry`] knows which instances of a service live, by their [sessions](Session).
//!
//! # The node as a library
//!
//! [`Node::start`] runs a node in the application's own process, and [`Node::client`] is a client that
//! reaches it without a network. Everything else is the same: what the application writes is
//! replicated to the other nodes, which may be other instances of the application or the `dogsled`
//! binary. An application that has outgrown one machine makes the first node of its embedded database:
//! see [`ReplicationConfig::convert_embedded`].
//!
//! # Redis's protocol
//!
//! A [`redis::RedisServer`] serves any Redis client from a node's own client, on the same data.
//!
//! # Who has what
//!
//! Each partition has three replicas ([`Client::change`] with [`Change::Replicas`] makes it more or
//! fewer), on some of the members. When members come or go, partitions move, while the cluster serves;
//! any node answers for all of them, and clients go straight to who leads. What a client knows of that
//! has an epoch: with the answer to a request that was asked with an old one comes the new map.
//!
//! A partition that has lost most of its replicas refuses writes ([`Error::Unavailable`]) while the others
//! serve. If they are lost for ever, [`Client::recover`] brings it back from what is left.
//!
//! # Looking after a node
//!
//! With the feature `http`, `http::HttpServer` serves what a node counts and measures, whether it is well, and a page
//! that shows the cluster; `report` has the parts of `dogsled status`. What there is to be told is
//! [`Node::status`] and, for programs, `families` of [`Node::replication`].
//!
//! [`Client::backup`] copies all partitions as of one moment, while writes go on, and [`Client::restore`] writes that into
//! a cluster of any size: see [`backup`].
//!
//! # Who may
//!
//! Nodes and clients know each other by certificates of the cluster's own authority, both ways, always:
//! see [`certs`]. For trying things out a node makes its own ([`NodeCertificates::Development`]).
//!
//! # What is not here
//!
//! Merge operators, typed trees and snapshots of the embedded database are not offered over a cluster.

pub mod backup;
mod client;
mod computed;
mod connections;
mod core;
mod counter;
mod election;
mod entries;
mod error;
mod finishing;
#[cfg(feature = "http")]
pub mod http;
mod lock;
mod near_cache;
mod node;
mod options;
mod pool;
mod quota;
mod read_from;
pub mod redis;
mod registry;
#[cfg(feature = "http")]
pub mod report;
mod routes;
mod session;
mod sharded_counter;
mod stale;
mod strings;
mod subscriber;
pub mod transaction;
mod tree;
mod ttl;
mod until;
mod user_session;
mod versions;

pub use crate::{Instance, Leader, Pick, Picked};
pub use dogsled_net::certs::{self, CertificateError, CertificateFiles, Certificates};
pub use dogsled_net::{CertificateSource, NetOptions, OpenError};
pub use dogsled_replication::meta::{DEFAULT_REPLICAS, DEFAULT_WEIGHT, MAX_REPLICAS, MAX_WEIGHT};
pub use dogsled_replication::status::FollowerStatus;
pub use dogsled_replication::{
    Change, ClusterMap, GroupRecovery, GroupStatus, MemberRecord, MemberState, MoveSettings,
    NodeConfig as ReplicationConfig, NodeId, NodeStatus, Record, Recovery, Role, Timing, ring,
};

pub use self::client::{Client, MemberStatus};
pub use self::counter::Counter;
pub use self::election::{Election, Leadership, Observer};
pub use self::entries::Entries;
pub use self::error::{Error, Result};
pub use self::lock::{Lock, LockGuard, SessionLock};
pub use self::near_cache::NearCache;
pub use self::node::{Node, NodeCertificates, NodeConfig, StartError, default_partitions};
pub use self::options::ClientOptions;
pub use self::quota::SharedQuota;
pub use self::read_from::ReadFrom;
pub use self::registry::{InstanceChanges, Registry, Resolver};
pub use self::sharded_counter::ShardedCounter;
pub use self::stale::{Stale, StaleTree};
pub use self::subscriber::{Event, Part, Subscriber, WatchPosition};
pub use self::tree::{CompareAndSwapResult, Tree};
pub use self::user_session::Session;
pub use self::versions::{KeyChange, KeyWatcher};
