//! [`Shared`]: what the engine, its snapshots and its checkpoint thread have in common: how a commit
//! is published, and how writers wait for memory.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::{Condvar, Mutex};

use super::due::DueTimes;
use super::room::Room;
use super::{Committer, EMBEDDED_STREAM, Options};
use crate::codec::encode_effects;
use crate::directory::Directory;
use crate::evaluate::{Context, Effect, Versioned};
use crate::expiry::{self, has_due_times};
use crate::lock_wait::LockWaiters;
use crate::meta::{Catalog, Checkpoint};
use crate::overlay::Readers;
use crate::replica::ReplicaState;
use crate::state::State;
use crate::wal::{Ticket, Wal};
use crate::watch::{Wakeups, Watchers};
use crate::{Error, Result, TreeId};

/// How far checkpoints have come; guarded by its own mutex, signalled on every change.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Somebody wants one, or the overlay is large.
    pub(crate) wanted: u64,
    pub(crate) finished: u64,
    pub(crate) closing: bool,
    pub(crate) failed: Option<Error>,
}

pub(crate) struct Shared {
    pub(crate) options: Options,
    pub(crate) state: ArcSwap<State>,
    pub(crate) commit: Mutex<Committer>,
    /// Of an embedded database its own, of a replica the node's, which outlives it.
    pub(crate) wal: Arc<Wal>,
    /// What only a replica has; `None`: an embedded database.
    pub(crate) replica: Option<ReplicaState>,
    pub(crate) database: redb::Database,
    pub(crate) readers: Arc<Readers>,
    pub(crate) watchers: Watchers,
    pub(crate) lock_waiters: LockWaiters,
    pub(crate) due: DueTimes,
    /// Whether a tree has, or had since opening, a quota. Changed with the commit mutex held.
    pub(crate) has_quotas: AtomicBool,
    pub(crate) progress: Mutex<Progress>,
    pub(crate) progressed: Condvar,
    /// The checkpoint record of the frozen overlay.
    pub(crate) freezing: Mutex<Option<Checkpoint>>,
    pub(crate) overlay_limit: usize,
    pub(super) durable_sequence: AtomicU64,
    pub(super) checkpointed: AtomicU64,
    pub(crate) checkpoints: AtomicU64,
    pub(crate) stalls: AtomicUsize,
    pub(super) room: Room,
    pub(super) closed: AtomicBool,
    /// Held while it is being closed; the error that it ended with.
    pub(super) closing: Mutex<Option<Error>>,
    /// The thread that is closing it.
    pub(super) closer: Mutex<Option<std::thread::ThreadId>>,
    pub(crate) redb_cache: usize,
    /// See [`Engine::drop_under_lock`](crate::Engine::drop_under_lock).
    pub(super) dropped_under_lock: Mutex<Vec<Box<dyn Any + Send>>>,
    /// Last: the lock on the directory is released when all else is gone.
    pub(crate) directory: Directory,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("directory", &self.directory.path).finish_non_exhaustive()
    }
}

impl Shared {
    /// Logs, applies and publishes effects. On an error nothing was changed.
    pub(super) fn commit(
        &self,
        committer: &mut Committer,
        state: &Arc<State>,
        context: &Context,
        effects: &[Effect],
    ) -> Result<(Ticket, Wakeups)> {
        self.check_open()?;
        committer.scratch.clear();
        encode_effects(context.time_ms, effects, &mut committer.scratch);
        let ticket = self.wal.append(EMBEDDED_STREAM, context.sequence, &[&committer.scratch])?;
        let bytes = committer.scratch.len();
        // A commit of many megabytes must not stay allocated for ever.
        committer.scratch.shrink_to(1 << 20);
        committer.mark(context.sequence, bytes);
        Ok((ticket, self.publish(committer, state, context, effects)))
    }

    /// Applies and publishes effects that are logged.
    pub(crate) fn publish(
        &self,
        committer: &mut Committer,
        state: &Arc<State>,
        context: &Context,
        effects: &[Effect],
    ) -> Wakeups {
        committer.sequence = context.sequence;
        committer.time_ms = context.time_ms;
        let has_due_times = effects.iter().any(|effect| {
            matches!(effect, Effect::Put { tree, .. } | Effect::Remove { tree, .. } if has_due_times(*tree))
        });
        if has_due_times {
            self.due.before(effects);
        }
        if self.replica.is_none() {
            let end_ms = super::sessions::first_end(effects);
            if end_ms != u64::MAX {
                self.due.session_ends(end_ms);
            }
        }
        // A snapshot of this commit must know its trees: they are published with it.
        state.active.apply(
            context.sequence,
            effects,
            &self.readers,
            |tree| state.is_empty_below_active(tree),
            || {
                for effect in effects {
                    match effect {
                        Effect::CreateTree { id, name } => {
                            self.change_catalog(|catalog| catalog.insert(*id, name.clone()))
                        }
                        Effect::DropTree { id } => self.change_catalog(|catalog| catalog.remove(*id)),
                        _ => {}
                    }
                }
            },
        );
        for effect in effects {
            match effect {
                Effect::SetNextId { next } => committer.next_id = *next,
                Effect::Put { tree, key, .. } => {
                    committer.ends.put(*tree, key);
                    if *tree == TreeId::QUOTAS {
                        self.has_quotas.store(true, Ordering::Relaxed);
                    }
                }
                Effect::DropTree { id } => committer.ends.forget(*id),
                _ => {}
            }
        }
        if has_due_times {
            self.due.after(committer, state, effects);
        }
        let wakeups = self.watchers.publish(context.sequence, effects);
        if state.active.bytes() > self.freeze_at() {
            self.want_checkpoint();
        }
        wakeups
    }

    /// The newest value of a key, unless it has expired.
    #[cold]
    pub(crate) fn get_live(&self, tree: TreeId, key: &[u8], time_ms: u64) -> Result<Option<Versioned>> {
        let (found, is_over) = self.get_live_now(tree, key, time_ms)?;
        if !is_over || self.replica.is_some() {
            return Ok(found);
        }
        // A commit that has begun before the key's end, and is being written, may prolong it: a reader who was told that the
        // key is gone would find it again. One that begins later goes by the time that this reader has seen.
        let _no_commit = self.commit.lock();
        self.get_live_now(tree, key, time_ms).map(|(found, _)| found)
    }

    /// The value; and whether there is one that has expired.
    fn get_live_now(&self, tree: TreeId, key: &[u8], time_ms: u64) -> Result<(Option<Versioned>, bool)> {
        let state = self.state.load();
        state.require_tree(tree)?;
        // The record first: see `expiry::is_over`.
        let record = match expiry::can_expire(tree) {
            true => state.get_latest(TreeId::EXPIRY, &expiry::record_key(tree, key))?,
            false => None,
        };
        let found = state.get_latest(tree, key)?;
        match &found {
            Some(entry) if expiry::is_over(record.as_ref(), entry.version, time_ms)? => Ok((None, true)),
            _ => Ok((found, false)),
        }
    }

    /// The newest value of a key.
    pub(crate) fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        match self.hide_at() {
            Some(time_ms) => self.get_live(tree, key, time_ms),
            None => self.state.load().get_latest(tree, key),
        }
    }

    /// When a key expires; see [`Engine::expires`](crate::Engine::expires).
    pub(crate) fn expires(&self, tree: TreeId, key: &[u8]) -> Result<Option<Option<u64>>> {
        let hide_ms = self.hide_at();
        let (found, is_over) = self.expires_now(tree, key, hide_ms)?;
        if !is_over || self.replica.is_some() {
            return Ok(found);
        }
        // As for a value.
        let _no_commit = self.commit.lock();
        self.expires_now(tree, key, hide_ms).map(|(found, _)| found)
    }

    fn expires_now(
        &self,
        tree: TreeId,
        key: &[u8],
        hide_ms: Option<u64>,
    ) -> Result<(Option<Option<u64>>, bool)> {
        loop {
            let state = self.state.load();
            state.require_tree(tree)?;
            let record = state.get_latest(TreeId::EXPIRY, &expiry::record_key(tree, key))?;
            let Some(found) = state.get_latest(tree, key)? else { return Ok((None, false)) };
            if record != state.get_latest(TreeId::EXPIRY, &expiry::record_key(tree, key))? {
                // Written between the two.
                continue;
            }
            if let Some(time_ms) = hide_ms
                && expiry::is_over(record.as_ref(), found.version, time_ms)?
            {
                return Ok((None, true));
            }
            return Ok((Some(expiry::expires(record.as_ref(), found.version)?), false));
        }
    }

    pub(crate) fn check_open(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::InvalidRequest("the database is closed".to_owned()));
        }
        let failed = self.replica.as_ref().and_then(ReplicaState::failed);
        match failed.or_else(|| self.wal.poisoned()) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Nothing is acknowledged from here on; whoever waits is told. Not to be called with the commit mutex held, or that of
    /// the progress, which a commit takes within it.
    pub(crate) fn poison(&self, why: &str) {
        match &self.replica {
            // The other replicas of the node go on.
            Some(replica) => replica.fail(why),
            None => {
                // What was acknowledged without a sync may be in memory only. The WAL is sound as far as anybody knows, so it is
                // to have that before nothing is taken any more; and no commit comes in between.
                let _no_commit = self.commit.lock();
                // If it fails, it is poisoned already.
                let _ = self.wal.sync();
                self.wal.poison(why);
            }
        }
        self.lock_waiters.notify_all();
    }

    /// Call with the commit mutex held.
    fn change_catalog(&self, change: impl FnOnce(&mut Catalog)) {
        let mut state = State::clone(&self.state.load());
        change(Arc::make_mut(&mut state.catalog));
        self.state.store(Arc::new(state));
    }

    /// The commit up to which the B-tree on disk is complete.
    pub(crate) fn checkpointed(&self) -> u64 {
        self.checkpointed.load(Ordering::Acquire)
    }

    pub(crate) fn set_checkpointed(&self, sequence: u64) {
        self.checkpointed.store(sequence, Ordering::Release);
    }

    pub(crate) fn freeze_at(&self) -> usize {
        let limit = self.overlay_limit / 16 * 7;
        if self.replica.is_some() { limit.min(crate::replica::FREEZE_BYTES) } else { limit }
    }

    fn want_checkpoint(&self) {
        // Only the first to cross the line takes the mutex: `frozen` is set soon after.
        let mut progress = self.progress.lock();
        if progress.wanted == progress.finished {
            progress.wanted += 1;
            self.progressed.notify_all();
        }
    }

    fn overlay_bytes(&self) -> usize {
        let state = self.state.load();
        state.active.bytes() + state.frozen.as_ref().map_or(0, |frozen| frozen.bytes())
    }

    /// Whether the overlays are over their share of memory, and somebody is there who makes room.
    pub(crate) fn is_full(&self) -> bool {
        self.overlay_bytes() >= self.overlay_limit && self.options.background_threads
    }

    /// Back-pressure: waits while the overlays are over their share of memory.
    pub(crate) fn wait_for_room(&self) -> Result<()> {
        if !self.is_full() {
            return Ok(());
        }
        self.stalls.fetch_add(1, Ordering::Relaxed);
        let mut progress = self.progress.lock();
        while self.overlay_bytes() >= self.overlay_limit {
            if let Some(error) = &progress.failed {
                return Err(error.clone());
            }
            if progress.closing {
                return Err(Error::InvalidRequest("the database is closed".to_owned()));
            }
            if progress.wanted == progress.finished {
                progress.wanted += 1;
                self.progressed.notify_all();
            }
            self.progressed.wait_for(&mut progress, Duration::from_millis(100));
        }
        Ok(())
    }
}
