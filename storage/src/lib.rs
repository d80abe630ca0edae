//! The storage engine of dogsled: synchronous, embedded, without a network.
//!
//! Most programs want the crate `dogsled`, which has sled's names on top of this one. Here is what
//! a cluster node and the facade share.
//!
//! # Map
//!
//! ```text
//! engine ──── commits, reads, opening, closing; one commit mutex, one state pointer
//!   ├─ command, evaluate ── what is asked, and what it means: pure, deterministic
//!   │    └─ counter, lock, expiry   commands of their own; fence: writes under a lock
//!   │                               lock_wait: waiting without polling
//!   ├─ wal ──────────────── the only durable copy of a commit until a checkpoint
//!   ├─ overlay ──────────── commits since then, in memory, in several versions (sorted_map)
//!   ├─ base ─────────────── the B-tree, held open; leaf_cache before it, tree_file below it
//!   ├─ state, snapshot ──── the three layers as one; ordered scans
//!   ├─ checkpoint ───────── folds the overlay into the B-tree, in the background
//!   ├─ watch, changes ───── events as they happen; the history, read back from the WAL
//!   ├─ replica ──────────── the same engine, changed by the entries of a replicated log instead
//!   │    ├─ group, session     what an entry asks for, and how a retried one happens once
//!   │    ├─ transaction        over several groups: what is prepared, locked, decided
//!   │    ├─ replica_read       reads without an entry
//!   │    └─ replica_snapshot, replica_install   one replica's state on its way to another
//!   ├─ recovery ─────────── what an opened database begins with
//!   ├─ backup, verify, repair (bulk: making a whole database from entries)
//!   └─ directory, meta ──── what is on disk beside the WAL and the trees
//! disk ────── the one narrow door to the disk; a real one and one that misbehaves on command
//! codec ───── bytes of commands and effects; model: the same state as plain maps, for tests
//! ```
//!
//! # One write
//!
//! [`Engine::execute`] takes the commit mutex, evaluates the command against the newest state,
//! appends its effects to the WAL's pending group, applies them to the overlay and tells watchers.
//! With [`Durability::Synced`] it then waits until the group is on disk, together with everybody
//! else's. Later a checkpoint writes the overlay into the B-tree and lets the WAL go.
//!
//! # Example
//!
//! ```
//! use dogsled_storage::{Command, Durability, Engine, Options, TreeId};
//!
//! # let directory = tempfile::tempdir().unwrap();
//! # let directory = directory.path().join("db");
//! let engine = Engine::open(Options::new(&directory))?;
//! let (tree, key, value) = (TreeId::DEFAULT, "lead dog".into(), "Balto".into());
//! engine.execute(Command::Insert { tree, key, value }, Durability::Synced)?;
//! assert_eq!(engine.get(tree, b"lead dog")?.unwrap(), "Balto");
//!
//! drop(engine);
//! let engine = Engine::open(Options::new(&directory))?;
//! assert_eq!(engine.get(tree, b"lead dog")?.unwrap(), "Balto");
//! # Ok::<(), dogsled_storage::Error>(())
//! ```

mod backup;
mod base;
mod bulk;
mod changes;
mod checkpoint;
pub mod clock;
pub mod codec;
pub mod command;
pub mod compare;
pub mod counter;
mod directory;
pub mod disk;
mod engine;
mod error;
pub mod evaluate;
pub mod expiry;
pub mod fence;
mod figures;
pub mod group;
mod group_evaluate;
pub mod hashes;
mod ivec;
pub mod kind;
pub mod leaf_cache;
pub mod lock;
pub mod lock_wait;
mod meta;
pub mod model;
pub mod open_sessions;
mod overlay;
pub mod owned;
pub mod pin;
pub mod quota;
mod recovery;
pub mod repair;
pub mod replica;
pub mod replica_install;
mod replica_read;
pub mod replica_snapshot;
mod replica_transactions;
pub mod seal;
pub mod session;
mod snapshot;
mod sorted_map;
pub mod space;
mod state;
mod stats;
pub mod strings;
pub mod transaction;
pub mod tree_file;
pub mod verify;
pub mod wal;
pub mod watch;

pub use backup::BackupReport;
pub use changes::{Changes, Commit};
pub use clock::{Clock, SteadyClock, SystemClock};
pub use command::{Command, Reply, TreeId, Write};
pub use directory::{FORMAT_VERSION, is_own_directory};
pub use engine::{Durability, EMBEDDED_STREAM, Engine, Options};
pub use error::{Corruption, Error, Result};
pub use evaluate::{Context, Effect, Effects, Outcome, Versioned, View};
pub use expiry::{ExpiryCommand, ExpiryReply, SetIf, When};
pub use fence::Fence;
pub use figures::{Figures, LockQueue, Population, Waiting};
pub use group::{
    Answer, GroupCommand, GroupRead, GroupReadReply, GroupReply, Operation, Refusal, SessionId, SessionTag,
};
pub use group_evaluate::{GroupOutcome, evaluate_group};
pub use ivec::IVec;
pub use meta::{
    COUNTERS_TREE_NAME, DEFAULT_TREE_NAME, EXPIRY_TREE_NAME, HASHES_TREE_NAME, LOCK_QUEUES_TREE_NAME,
    LOCKS_TREE_NAME, MAX_NOTE_LENGTH, QUOTAS_TREE_NAME, SEQUENCES_TREE_NAME, SESSIONS_TREE_NAME,
    TRANSACTIONS_TREE_NAME,
};
pub use open_sessions::{OpenSession, Owned};
pub use owned::OwnedCommand;
pub use quota::{Measure, QuotaExceeded, QuotaLimit, TreeQuota};
pub use repair::{Loss, LossKind, RepairOptions, RepairProgress, RepairReport, repair, repair_with};
pub use replica::{Applied, Replica, ReplicaOptions};
pub use replica_install::ReplicaInstaller;
pub use replica_snapshot::{Chunk, ChunkPosition, MAX_CHUNK_BYTES, ReplicaSnapshot};
pub use replica_transactions::Settled;
pub use snapshot::{RangeIter, Snapshot};
pub use stats::Stats;
pub use transaction::{Decision, LockedBy, Part, TransactionId, Vote};
pub use verify::{Damage, KeyRange, VerifyReport, verify_directory};
