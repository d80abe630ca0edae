//! dogsled: an embedded key-value store in the style of sled.
//!
//! ```
//! # fn main() -> dogsled::Result<()> {
//! # let directory = tempfile::tempdir().unwrap();
//! # let path = directory.path().join("my_db");
//! let db = dogsled::open(path)?;
//! db.insert("key", "value")?;
//! assert_eq!(db.get("key")?.unwrap(), "value");
//!
//! let users = db.open_tree("users")?;
//! users.insert("ann", "admin")?;
//! for entry in users.scan_prefix("a") {
//!     let (name, role) = entry?;
//!     println!("{name:?} is {role:?}");
//! }
//! db.flush()?; // survives power loss from here on
//! # Ok(()) }
//! ```
//!
//! # What is here
//!
//! | for | see |
//! |---|---|
//! | opening, and what a write promises | [`open`], [`Config`], [`Durability`] |
//! | named ordered keyspaces | [`Db`], [`Tree`], [`Batch`], [`Iter`] |
//! | several keys or trees at once, serializably | [`transaction`] |
//! | reading everything as of one moment | [`Snapshot`], [`Db::read`] |
//! | what happens from now on, and what happened since | [`Subscriber`], [`Tree::snapshot_and_watch`], [`Db::changes_since`] |
//! | Rust types as keys and values | [`TypedTree`], [`typed`] |
//! | counting, and excluding each other | [`Counter`], [`Lock`] |
//! | what dies with whoever made it, and who leads | [`Session`], [`Election`], [`Registry`] |
//! | looking after it | [`Db::backup`], [`Db::verify`], [`repair`], [`Db::stats`] |
//! | moving data from sled, and back | [`Db::import`], [`Db::export`], [`Db::checksum`] |
//!
//! With the feature `cluster` there is one thing more, the module `cluster`: the same database
//! replicated over several machines, its nodes as a library and its client.
//!
//! # Coming from sled 0.34
//!
//! Replace the dependency, and say `use dogsled as sled;`. Names, generic parameters, errors,
//! iterators and subscribers are sled's. Move the data by [`Db::import`]. These differ:
//!
//! - [`Tree::flush`] really syncs. Between flushes, writes are synced every
//!   [`flush_every_ms`](Config::flush_every_ms), or at once with [`Durability::Synced`].
//! - The directory is free again when the drop of the last handle returns. Iterators and
//!   snapshots are handles, too.
//! - Iterators show the tree as it was when they were made.
//! - A transaction's closure runs without locks and may use any tree in any way.
//! - [`Event`] has variants that sled's lacks: a subscriber that is too slow is told so, where
//!   sled would stop the writers; and clearing a tree is one event. A `match` needs a `_` arm.
//!   [`Error`] as well.
//! - A merge operator has to be `Send + Sync`, which sled assumes without asking.
//! - [`Tree::len`] does not count, [`Tree::clear`] and [`Tree::apply_batch`] are atomic.
//! - [`Config::use_compression`] has no effect.
//!
//! # How it works
//!
//! The engine is the crate [`storage`]: one write-ahead log, an overlay of the newest writes in
//! memory, and a B-tree below. This crate gives it sled's names and keeps nothing of its own on disk.

mod batch;
mod changes;
#[cfg(feature = "cluster")]
pub mod cluster;
mod compare;
mod computed;
mod config;
mod counter;
mod db;
mod election;
mod error;
mod flush;
mod iter;
mod lock;
mod maintenance;
mod registry;
mod renewal;
mod session;
mod snapshot;
mod subscriber;
pub mod transaction;
mod transfer;
mod tree;
mod ttl;
pub mod typed;
mod versions;

pub use dogsled_storage as storage;
pub use dogsled_storage::{Fence, IVec, Measure, Owned, QuotaExceeded, QuotaLimit, SessionId, TreeQuota};

pub use batch::Batch;
pub use changes::{Change, Changes, Commit};
pub use compare::{Compare, Compared};
pub use config::{Config, Durability, Mode};
pub use counter::{Counter, OutOfBounds};
pub use db::{Db, open};
pub use election::{Election, Leader, Leadership, Observer};
pub use error::{Corruption, Error, Result};
pub use flush::FlushFuture;
pub use iter::Iter;
pub use lock::{FencingToken, Holder, Lock, LockGuard, LockHolders, NotHeld, Permit, SessionLock};
pub use maintenance::{BackupReport, RepairReport, Stats, VerifyReport, repair, verify};
pub use registry::{Instance, InstanceChanges, Pick, Picked, Registry, Resolver};
pub use session::{Session, SessionStatus};
pub use snapshot::Snapshot;
pub use subscriber::{Event, Subscriber};
pub use transaction::Transactional;
pub use transfer::{CollectionName, CollectionType};
pub use tree::{CompareAndSwapError, CompareAndSwapResult, MergeOperator, Tree};
pub use ttl::Ttl;
pub use typed::{TypedIter, TypedTree};
pub use versions::{VersionConflict, Versioned};

/// The README's program, compiled and run with the doctests; and those of the pages.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
#[doc = include_str!("../docs/moving-from-sled.md")]
struct Documents;
