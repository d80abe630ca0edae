//! dogsled: an embedded key-value store in the style of sled.

mod batch;
mod changes;
mod config;
mod counter;
mod db;
mod error;
mod flush;
mod iter;
mod lock;
mod maintenance;
mod snapshot;
mod subscriber;
pub mod transaction;
mod transfer;
mod tree;
pub mod typed;

pub use dogsled_storage as storage;
pub use dogsled_storage::IVec;

pub use batch::Batch;
pub use changes::{Change, Changes, Commit};
pub use config::{Config, Durability, Mode};
pub use counter::{Counter, OutOfBounds};
pub use db::{Db, open};
pub use error::{Corruption, Error, Result};
pub use flush::FlushFuture;
pub use iter::Iter;
pub use lock::{FencingToken, Holder, Lock, LockGuard, NotHeld};
pub use maintenance::{BackupReport, Stats};
pub use snapshot::Snapshot;
pub use subscriber::{Event, Subscriber};
pub use transaction::Transactional;
pub use transfer::{CollectionName, CollectionType};
pub use tree::{CompareAndSwapError, CompareAndSwapResult, MergeOperator, Tree};
pub use typed::TypedTree;

/// The README's program, compiled and run with the doctests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
