//! [`Engine`]: the database. Commits, reads, opening and closing.
//!
//! # One write
//! ```text
//! execute ─► evaluate(newest view) ─► encode effects ─► WAL's pending group ─► overlay ─► watchers
//!            └──────────────────── under the commit mutex, no I/O ──────────────────────┘
//!         ─► Synced: wait until the group is durable ─► reply
//! ```
//! The commit mutex orders commits: the order of sequences is the order of the WAL, of the
//! overlay, and of the events that watchers see. Nothing is written to disk under it. A commit is
//! visible to readers before it is durable; what depends on it is behind it in the WAL, so no
//! acknowledged commit can survive without those it built on.
//!
//! # Reads
//! load one pointer ([`State`](crate::state::State)) and take no mutex that a writer holds for
//! longer than applying one commit.
//!
//! # Memory
//! `cache_capacity` is divided: one eighth to redb's page cache, one half to the overlays, the rest
//! to the leaf cache. The active overlay is frozen at seven sixteenths of the overlays' share;
//! writers wait when both together reach it.

mod commands;
mod committer;
mod due;
mod execute;
mod options;
mod room;
mod sessions;
mod shared;

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};

use crate::base::Base;
use crate::clock::Ahead;
use crate::directory::Directory;
use crate::evaluate::Outcome;
use crate::fence::Fence;
use crate::leaf_cache::CacheBudget;
use crate::lock_wait::LockWaiters;
use crate::overlay::Readers;
use crate::recovery::{at_checkpoint, read_checkpoint, recover, require_wal};
use crate::replica::{Applied, ReplicaState};
use crate::snapshot::{RangeIter, Snapshot};
use crate::tree_file::open_redb_and_file;
use crate::wal::{StreamId, Wal, WalOptions};
use crate::watch::{Compacted, Subscription, Watchers};
use crate::{Command, Error, IVec, Reply, Result, TreeId, TreeQuota, quota};

pub(crate) use commands::{prefetch, prefetch_part, touches_locks};
pub(crate) use committer::Committer;
pub(crate) use due::DueTimes;
pub use options::{Durability, Options};
pub(crate) use shared::{Progress, Shared};

/// The WAL stream of an embedded database.
pub const EMBEDDED_STREAM: StreamId = StreamId(0);

/// An open database. Use it through an [`Arc`]; dropping it closes it, and the directory's lock is
/// released before the drop returns unless a [`Snapshot`] still lives.
pub struct Engine {
    pub(crate) shared: Arc<Shared>,
    checkpointer: Mutex<Option<JoinHandle<()>>>,
    /// Of an embedded database only.
    expirer: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("directory", &self.shared.directory.path).finish_non_exhaustive()
    }
}

const EXPIRY_THREAD: &str = "dogsled-expiry";

/// Keeps redb from tidying up when what it has opened turns out not to be opened: it would commit anew, and take the place
/// of the commit before the last, which is what [repair](crate::repair()) falls back on.
struct Unchanged(Option<crate::tree_file::TreeFile>);

impl Unchanged {
    fn opened(mut self) {
        self.0 = None;
    }
}

impl Drop for Unchanged {
    fn drop(&mut self) {
        if let Some(file) = &self.0 {
            file.refuse_writes();
        }
    }
}

impl Engine {
    /// Opens the database in a directory, making one if there is none, and recovers what was
    /// acknowledged.
    ///
    /// # Errors
    /// [`Error::InUse`], [`Error::NotADatabase`] (another program's directory, a newer format),
    /// [`Error::Corrupt`] with the place, [`Error::Io`]. None of them changes anything that was
    /// there.
    pub fn open(options: Options) -> Result<Arc<Engine>> {
        Engine::open_with(options, None)
    }

    /// Opens an embedded database, or with the WAL of a node a replica.
    pub(crate) fn open_with(mut options: Options, shared_wal: Option<Arc<Wal>>) -> Result<Arc<Engine>> {
        let is_replica = shared_wal.is_some();
        let capacity = usize::try_from(options.cache_capacity).unwrap_or(usize::MAX).max(8 << 20);
        let redb_cache = capacity / 8;
        let overlay_limit = capacity / 2;
        let budget = CacheBudget::new(capacity - redb_cache - overlay_limit);

        let id = options.database_id;
        // Segments and checkpoints are made for as long as it is open, wherever the process works by then: where another
        // database may be, whose segments have the same names.
        let path = options.disk.absolute(&options.directory).map_err(|error| {
            Error::io(format!("finding out where {} is", options.directory.display()), error)
        })?;
        let directory = Directory::open(Arc::clone(&options.disk), &path, options.create_new, || {
            id.unwrap_or_else(random_id)
        })?;
        if !is_replica {
            directory.refuse_node()?;
        }
        let tree_path = directory.tree_path();
        let (database, file) =
            open_redb_and_file(&*directory.disk, &tree_path, directory.database_id, redb_cache as u64)?;
        let unchanged = Unchanged(Some(file.clone()));
        let (mut checkpoint, folding) = read_checkpoint(&database, &tree_path)?;
        crate::replica::check_kind(&directory, &mut checkpoint, is_replica)?;
        let wal = match shared_wal {
            Some(wal) => wal,
            None => {
                if directory.existed {
                    require_wal(&*directory.disk, &directory.wal_path())?;
                }
                Arc::new(Wal::open(
                    Arc::clone(&directory.disk),
                    WalOptions {
                        segment_size: options.segment_size,
                        flush_every: options.flush_every_ms.map(Duration::from_millis),
                        threads: options.background_threads,
                        seed: id.map(|id| id as u64),
                        must_exist: directory.existed,
                        ..WalOptions::new(directory.wal_path(), directory.database_id)
                    },
                )?)
            }
        };
        directory.finish_creation()?;

        let lengths = checkpoint.lengths.iter().map(|(id, length)| (*id, *length));
        let base = Base::hold(&database, &file, lengths, Default::default(), &budget)?;
        let checkpointed = checkpoint.applied;
        let recovered = if is_replica {
            at_checkpoint(checkpoint, base)
        } else {
            let retains = options.retain_changes_bytes > 0;
            recover(&wal, checkpoint, folding, base, &directory.wal_path(), retains)?
        };
        if !is_replica {
            options.clock = Ahead::of(options.clock, recovered.committer.time_ms);
        }
        let sequence = recovered.committer.sequence;
        let state = Arc::new(recovered.state);
        let due = DueTimes::of(&state, sequence, options.clock.elapsed_ms())?;
        let all = (Bound::Unbounded, Bound::Unbounded);
        let quotas = RangeIter::over(Arc::clone(&state), sequence, TreeId::QUOTAS, all).next().transpose()?;
        let replica = is_replica.then(|| {
            let applied = Applied { position: sequence, note: recovered.committer.note.clone() };
            ReplicaState::new(applied, recovered.committer.time_ms)
        });
        // An embedded database's changes are in its WAL.
        let history_bytes = if is_replica { options.retain_changes_bytes } else { 0 };
        let history_bytes = usize::try_from(history_bytes).unwrap_or(usize::MAX);
        let watchers = Watchers::with_history(history_bytes, sequence);
        let shared = Arc::new(Shared {
            state: ArcSwap::new(state),
            commit: Mutex::new(recovered.committer),
            wal,
            replica,
            database,
            readers: Arc::new(Readers::default()),
            watchers,
            lock_waiters: LockWaiters::new(),
            due,
            has_quotas: AtomicBool::new(quotas.is_some()),
            progress: Mutex::new(Progress::default()),
            progressed: Condvar::new(),
            freezing: Mutex::new(None),
            overlay_limit,
            durable_sequence: AtomicU64::new(sequence),
            checkpointed: AtomicU64::new(checkpointed),
            checkpoints: AtomicU64::new(0),
            stalls: AtomicUsize::new(0),
            room: room::Room::default(),
            closed: AtomicBool::new(false),
            closing: Mutex::default(),
            closer: Mutex::default(),
            redb_cache,
            dropped_under_lock: Mutex::default(),
            directory,
            options,
        });
        unchanged.opened();
        let engine =
            Engine { shared: Arc::clone(&shared), checkpointer: Mutex::new(None), expirer: Mutex::new(None) };
        if shared.options.background_threads && !is_replica {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(EXPIRY_THREAD.to_owned())
                .spawn(move || due::run(&shared))
                .map_err(|error| Error::io("starting the thread that removes expired keys", error))?;
            *engine.expirer.lock() = Some(thread);
        }
        if shared.options.background_threads {
            let thread = std::thread::Builder::new()
                .name("dogsled-checkpoint".to_owned())
                .spawn(move || crate::checkpoint::run(&shared))
                .map_err(|error| Error::io("starting the checkpoint thread", error))?;
            *engine.checkpointer.lock() = Some(thread);
        }
        Ok(Arc::new(engine))
    }

    /// Whether the directory held a database before it was opened.
    pub fn was_recovered(&self) -> bool {
        self.shared.directory.existed
    }

    /// The number that was drawn when the directory was made.
    pub fn database_id(&self) -> u128 {
        self.shared.directory.database_id
    }

    /// Where the database is.
    pub fn directory(&self) -> &Path {
        &self.shared.directory.path
    }

    /// Drops `this` when all files are closed and the directory is still locked: what deletes the directory must not
    /// meet files of whoever opens it next.
    pub fn drop_under_lock(&self, this: impl Send + 'static) {
        self.shared.dropped_under_lock.lock().push(Box::new(this));
    }

    /// What writes get that do not say otherwise.
    pub fn durability(&self) -> Durability {
        self.shared.options.durability
    }

    /// Puts a value without looking at what was there, which [`Command::Insert`] does.
    ///
    /// # Errors
    /// As [`Engine::execute`].
    pub fn put(&self, tree: TreeId, key: IVec, value: IVec, durability: Durability) -> Result<()> {
        self.execute(Command::Put { tree, key, value }, durability).map(drop)
    }

    /// Carries out a command: all of its effects or none.
    ///
    /// # Errors
    /// Errors of [`evaluate`](crate::evaluate::evaluate) and [`Error::Io`] mean that nothing was changed. [`Error::Poisoned`]
    /// means that the disk is in doubt; whether this command survives is known after reopening.
    pub fn execute(&self, command: Command, durability: Durability) -> Result<Reply> {
        self.shared.execute(command, &[], durability)
    }

    /// As [`Engine::execute`], but only while every lock is held under its token; see [`crate::fence`].
    ///
    /// # Errors
    /// [`Error::LockNotHeld`], and nothing was changed; those of [`Engine::execute`].
    pub fn execute_fenced(
        &self,
        fences: &[Fence],
        command: Command,
        durability: Durability,
    ) -> Result<Reply> {
        self.shared.execute(command, fences, durability)
    }

    /// The newest value of a key.
    ///
    /// # Errors
    /// [`Error::TreeNotFound`], and damage or I/O errors met while reading.
    #[inline]
    pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<IVec>> {
        if let Some(time_ms) = self.shared.hide_at() {
            return Ok(self.shared.get_live(tree, key, time_ms)?.map(|found| found.value));
        }
        let state = self.shared.state.load();
        state.require_tree(tree)?;
        Ok(state.get_latest(tree, key)?.map(|found| found.value))
    }

    /// The trees that have quotas, in the order of their numbers, and how much they hold; see [`crate::quota`].
    ///
    /// # Errors
    /// Damage or I/O errors met while reading.
    pub fn quotas(&self) -> Result<Vec<TreeQuota>> {
        let snapshot = self.snapshot();
        let stored = snapshot.range(TreeId::QUOTAS, Bound::Unbounded, Bound::Unbounded);
        stored.map(|entry| entry.and_then(|(key, found)| quota::status_of(&key, &found.value))).collect()
    }

    /// When a key expires, by the log's time in milliseconds since 1970; `Some(None)`: never; `None`: there
    /// is no such key.
    ///
    /// # Errors
    /// As [`Engine::get`].
    pub fn expires(&self, tree: TreeId, key: &[u8]) -> Result<Option<Option<u64>>> {
        self.shared.expires(tree, key)
    }

    /// Before this time of the log no key expires, and before the other no lock is due; `u64::MAX`: none
    /// ever does. [`Command::SettleDue`] sees to both.
    pub fn due(&self) -> (u64, u64) {
        (self.shared.due.keys(), self.shared.due.locks())
    }

    /// Whether a key is there.
    ///
    /// # Errors
    /// As [`Engine::get`].
    pub fn contains_key(&self, tree: TreeId, key: &[u8]) -> Result<bool> {
        Ok(self.get(tree, key)?.is_some())
    }

    /// How many keys a tree has; see [`Snapshot::len`] for the cost.
    ///
    /// # Errors
    /// [`Error::TreeNotFound`].
    pub fn len(&self, tree: TreeId) -> Result<u64> {
        let state = self.shared.state.load();
        state.require_tree(tree)?;
        match state.latest_length(tree) {
            Some(length) => Ok(length),
            None => self.snapshot().len(tree),
        }
    }

    /// The number of a tree.
    pub fn tree_id(&self, name: &[u8]) -> Option<TreeId> {
        self.shared.state.load().catalog.names.get(name).copied()
    }

    /// The trees, sorted by name; the database's own ones only if they hold something.
    pub fn trees(&self) -> Vec<(IVec, TreeId)> {
        self.snapshot().trees()
    }

    /// A consistent state of all trees, as of the newest commit.
    pub fn snapshot(&self) -> Snapshot {
        if self.shared.replica.is_none() {
            let never_expires = || self.shared.due.keys() == u64::MAX;
            if never_expires() {
                let snapshot = self.register_snapshot(None);
                if never_expires() {
                    return snapshot;
                }
            }
            // Between two commits: a commit that came after the time was taken may have found a key over that this
            // snapshot would show, beside what the commit wrote.
            return self.snapshot_between(&self.shared.commit.lock());
        }
        self.register_snapshot(self.shared.hide_at())
    }

    /// As [`Engine::snapshot`], with the commit mutex held.
    pub(crate) fn snapshot_between(&self, _: &Committer) -> Snapshot {
        self.register_snapshot(self.shared.hide_at())
    }

    fn register_snapshot(&self, hide_ms: Option<u64>) -> Snapshot {
        loop {
            let active = Arc::clone(&self.shared.state.load().active);
            let (sequence, state) =
                active.register_reader(&self.shared.readers, || self.shared.state.load_full());
            // Frozen in between: commits may have gone to the next overlay already.
            if Arc::ptr_eq(&active, &state.active) {
                let keep: Arc<Shared> = Arc::clone(&self.shared);
                let readers = Arc::clone(&self.shared.readers);
                return Snapshot::registered(state, sequence, readers, keep, hide_ms);
            }
            self.shared.readers.unregister(sequence);
        }
    }

    /// Makes everything committed so far durable.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if the disk fails.
    pub fn sync(&self) -> Result<()> {
        let sequence = self.sequence();
        self.shared.wal.sync()?;
        self.shared.durable_sequence.fetch_max(sequence, Ordering::Relaxed);
        Ok(())
    }

    /// The sequence of the newest commit; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.shared.commit.lock().sequence
    }

    /// A sequence up to which everything is known to be durable. Syncs that the background makes
    /// are not counted before the next [`Engine::sync`] or synced write.
    pub fn durable_sequence(&self) -> u64 {
        self.shared.durable_sequence.load(Ordering::Relaxed)
    }

    /// The log's time in milliseconds since 1970: the clock's, but never running backwards.
    pub fn now_ms(&self) -> u64 {
        let now_ms = self.shared.commit.lock().now_ms(&*self.shared.options.clock);
        now_ms.max(self.shared.due.seen_ms())
    }

    /// What the log's time will be when the system's clock shows this, in milliseconds since 1970.
    pub fn log_time_at(&self, wall_ms: u64) -> u64 {
        let (now, wall_now) = (self.now_ms(), self.shared.options.clock.wall_ms());
        match wall_ms.checked_sub(wall_now) {
            Some(left) => now.saturating_add(left),
            None => now.saturating_sub(wall_now - wall_ms),
        }
    }

    /// Events of the keys of `tree` that begin with `prefix`, from now on. A subscriber that falls
    /// `capacity` events behind is told how many it missed; it never slows a writer.
    pub fn watch(&self, tree: TreeId, prefix: &[u8], capacity: usize) -> Subscription {
        let _committer = self.shared.commit.lock();
        self.subscribe(tree, prefix, capacity)
    }

    /// Begins to watch a tree of a replica by its name, after a position that the watcher has seen, or from
    /// now on: the position after which everything is told, and the subscription, unless there is no such
    /// tree.
    ///
    /// # Errors
    /// [`Compacted`] if not everything after that position is kept; see
    /// [`ReplicaOptions::retain_changes_bytes`](crate::replica::ReplicaOptions::retain_changes_bytes).
    pub fn watch_after(
        &self,
        name: &[u8],
        prefix: &[u8],
        capacity: usize,
        after: Option<u64>,
    ) -> Result<(u64, Option<Subscription>), Compacted> {
        let committer = self.shared.commit.lock();
        let (tree, watchers) = (self.tree_id(name), &self.shared.watchers);
        let Some(after) = after else {
            let subscription = tree.map(|tree| watchers.subscribe(tree, prefix, capacity));
            return Ok((committer.sequence, subscription));
        };
        match tree {
            Some(tree) => Ok((after, Some(watchers.subscribe_after(tree, prefix, capacity, after)?))),
            // There may have been one, and then the place where it was dropped says so.
            None if after < watchers.kept_after() => Err(Compacted { position: watchers.kept_after() }),
            // Nothing has happened to it so far.
            None => Ok((after.max(committer.sequence), None)),
        }
    }

    /// How many watch it.
    pub fn watchers(&self) -> usize {
        self.shared.watchers.subscriptions()
    }

    /// A snapshot, and the events of exactly the commits after it.
    pub fn snapshot_and_watch(
        &self,
        tree: TreeId,
        prefix: &[u8],
        capacity: usize,
    ) -> (Snapshot, Subscription) {
        let committer = self.shared.commit.lock();
        (self.snapshot_between(&committer), self.subscribe(tree, prefix, capacity))
    }

    /// Call with the commit mutex held.
    fn subscribe(&self, tree: TreeId, prefix: &[u8], capacity: usize) -> Subscription {
        if self.shared.state.load().catalog.ids.contains_key(&tree) {
            self.shared.watchers.subscribe(tree, prefix, capacity)
        } else {
            self.shared.watchers.subscribe_to_nothing(tree)
        }
    }

    /// Where to wait for locks.
    pub fn lock_waiters(&self) -> &LockWaiters {
        &self.shared.lock_waiters
    }

    /// Folds everything committed so far into the B-tree, and gives the WAL's spare segments back.
    ///
    /// # Errors
    /// What stopped it; the commits stay in the WAL.
    pub fn checkpoint(&self) -> Result<()> {
        crate::checkpoint::request_and_wait(&self.shared)?;
        // The node's WAL is not this replica's to tidy.
        if self.shared.replica.is_some() { Ok(()) } else { self.shared.wal.trim() }
    }

    /// Panics if something does not hold that always does. For tests; takes time in proportion to
    /// what is in memory.
    #[doc(hidden)]
    pub fn check_invariants(&self) {
        let state = self.shared.state.load_full();
        for overlay in std::iter::once(&state.active).chain(&state.frozen) {
            overlay.check_invariants();
        }
        for (_, tree) in state.base.trees() {
            tree.cache.check_invariants();
        }
    }

    /// Bytes that the directory takes: B-tree, live WAL and spare segments.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn size_on_disk(&self) -> Result<u64> {
        crate::stats::size_on_disk(&self.shared)
    }

    /// Bytes of the B-tree as of the last checkpoint, without asking the disk.
    pub fn tree_bytes(&self) -> u64 {
        self.shared.state.load().base.file().length()
    }

    /// Stops the background, folds the commits if that frees much more of the disk than it writes, and
    /// syncs the WAL. Called by drop, which cannot report an error.
    ///
    /// # Errors
    /// [`Error::Poisoned`] if the last sync failed.
    pub fn close(&self) -> Result<()> {
        // Under the commit mutex: no commit is between its check and its append to the WAL.
        let committer = self.shared.commit.lock();
        if self.shared.closed.swap(true, Ordering::AcqRel) {
            drop(committer);
            // By another, perhaps only just. That may be waiting for this thread, if it is one of the database's own, or be this
            // very thread, in somebody's code that it has woken.
            let this = std::thread::current();
            let is_own = this.name().is_some_and(|name| name == EXPIRY_THREAD);
            if is_own || *self.shared.closer.lock() == Some(this.id()) {
                return Ok(());
            }
            return self.shared.closing.lock().clone().map_or(Ok(()), Err);
        }
        let mut closing = self.shared.closing.lock();
        *self.shared.closer.lock() = Some(std::thread::current().id());
        drop(committer);
        let closed = self.close_once();
        *closing = closed.as_ref().err().cloned();
        *self.shared.closer.lock() = None;
        closed
    }

    fn close_once(&self) -> Result<()> {
        {
            let mut progress = self.shared.progress.lock();
            progress.closing = true;
            self.shared.progressed.notify_all();
        }
        self.shared.due.close();
        // What it wakes when a key ends is a stranger's, and may have had the last handle of the database: then it is this
        // thread, and ends when it is through.
        let expirer = self.expirer.lock().take();
        if let Some(thread) = expirer.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
        if let Some(thread) = self.checkpointer.lock().take() {
            // Its panic, if any, was printed by the runtime; the WAL holds everything.
            let _ = thread.join();
        }
        self.shared.watchers.close();
        self.shared.lock_waiters.notify_all();
        if self.shared.replica.is_some() {
            return Ok(());
        }
        crate::checkpoint::at_close(&self.shared);
        self.shared.wal.close()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Drop cannot report; whoever needs to know calls `close` or `sync` before.
        let _ = self.close();
    }
}

/// 128 bits that differ between any two databases.
fn random_id() -> u128 {
    use std::hash::{BuildHasher, RandomState};
    // `RandomState` is keyed from the system's entropy, anew for each value.
    let draw = || u128::from(RandomState::new().hash_one(std::process::id()));
    (draw() << 64) | draw()
}

impl Outcome {
    /// Whether nothing changes.
    pub fn is_read_only(&self) -> bool {
        self.effects.is_empty()
    }
}
