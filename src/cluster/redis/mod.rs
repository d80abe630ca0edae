//! [`RedisServer`]: any Redis client talks to a node.
//!
//! # Promises
//!
//! - **Commands mean what they mean in Redis 7.0**, with its replies and its texts of errors, as far as
//!   [`support`] says that they are there. What is not there is answered as an unknown command.
//! - **A write that was answered is synced on a quorum**; Redis answers from memory. **Reads are linearizable.** Whichever
//!   node is asked.
//! - A command on one key, and a transaction of keys of one partition (`{tag}`), is one entry of the partition's
//!   log. What spans partitions is a [transaction](super::transaction): serializable, or not at all.
//! - Commands of one connection are begun in order and answered in order. Each sees all that came before it.
//!   What comes as a pipeline is carried out together where that changes nothing for whoever sent it: writes that follow
//!   each other become one entry per partition, reads one request. Others may see one of them before one of another
//!   partition that was sent earlier; but what removes a key or a field, or tells of something, waits for those before it.
//! - Whatever a client sends or does not read, what it makes the node hold is bounded; see [`RedisOptions`].
//!
//! # The same data
//!
//! Database 0 is the tree `redis`, database `n` the tree `redis:n`, hashed by [Redis's slots](super::ring::slots); keys and values are the bytes themselves, and times
//! to live are those of the [cluster](super#times-to-live). So [`Tree`](super::Tree) and the command line see what
//! a Redis client wrote, and the other way round.
//!
//! # Idea
//!
//! ```text
//! bytes ─► net::resp ─► request ─► table ─► Step ─┬─ Data: operations on keys ─► database ─► one entry, or a transaction
//!                                                 ├─ Whole: KEYS, SCAN, …     ─► whole
//!                                                 ├─ Slots: CLUSTER           ─► slots
//!                                                 ├─ Info: INFO               ─► describe
//!                                                 ├─ Script: EVAL, EVALSHA    ─► scripts
//!                                                         ├─ Lock: DOGSLED.LOCK, …    ─► locks
//!                                                         ├─ Listen: SUBSCRIBE, …     ─► pubsub
//!                                                 └─ Link: PING, SELECT, MULTI… ─► connection
//! ```
//!
//! What an operation does to a key is not decided here, but in [`dogsled_storage::strings`], where the log is applied.
//!
//! # Clients of clusters
//!
//! `CLUSTER SLOTS` and its like tell which node leads the partition of a key, and `MOVED` sends those there who know of
//! slots; all others are served wherever they come. See `slots.rs`, and [`Redirects`].
//!
//! # Locks
//!
//! `DOGSLED.LOCK`, `DOGSLED.UNLOCK` and `DOGSLED.FENCED` give fencing tokens, and carry out a command only while a lock is
//! held: see `locks.rs`, where their syntax is.
//!
//! # Messages
//!
//! `PUBLISH` reaches whoever is subscribed at any node, through the log, and nothing is kept of it. See `pubsub`, which has the
//! promises and why they are these. What `notify-keyspace-events` asks for is told by the commands themselves, where the log is
//! applied ([`notices`](dogsled_storage::strings::notices)), and for the whole cluster.
//!
//! # Who may connect
//!
//! On loopback whoever is on the machine, in clear, with a password if there is one. Elsewhere only within TLS, with the node's
//! own certificate, and with a password: see [`RedisOptions`].
//!
//! # What differs from Redis
//!
//! [`support`] says it command by command, and which limits there are. Beyond that: a write that is not answered
//! before the deadline is an error `UNKNOWN`, which says that it may have happened, and one that was certainly not done is
//! `CLUSTERDOWN`; a key is read for up to a tenth of a second after its time to live is over, if nobody writes
//! to its partition, while for writes it is gone at once.

mod arguments;
mod config;
mod connection;
mod database;
mod describe;
mod entry;
mod figures;
mod gather;
mod glob;
mod hashes;
mod held;
mod keys;
mod link;
mod locks;
mod multi;
mod pubsub;
mod scripts;
mod server;
mod slots;
mod strings;
mod subcommands;
mod syntax;
mod table;
mod transaction;
mod whole;

use std::time::{SystemTime, UNIX_EPOCH};

pub use dogsled_net::resp::RequestLimits;
use dogsled_storage::strings::notices::EVENTS_TREE;

pub(in crate::cluster) use self::config::notify;
pub use self::server::{LEAST_PACE, RedisOptions, RedisServer};
pub use self::slots::Redirects;
pub use self::table::support;

/// What a client takes the server for, which decides on what it asks: the commands and replies are those of this
/// version.
const REDIS_VERSION: &str = "7.0.15";
/// How many databases `SELECT` knows.
const DATABASES: u32 = 16;

/// In place of the number of a database: the tree of the channels that messages are published on.
const CHANNELS: u32 = u32::MAX;

/// The tree of what is told of keys.
const EVENTS: u32 = u32::MAX - 1;

/// About the time it is.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The tree of a database.
fn tree_name(database: u32) -> crate::IVec {
    match database {
        0 => crate::IVec::from("redis"),
        CHANNELS => crate::IVec::from("redis:channels"),
        EVENTS => crate::IVec::from(EVENTS_TREE),
        other => crate::IVec::from(format!("redis:{other}")),
    }
}
