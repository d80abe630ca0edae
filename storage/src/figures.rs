//! [`Figures`] and [`Population`]: what an engine holds and does, for those who look every few seconds.
//!
//! [`Stats`](crate::Stats) counts trees and keys and measures files, which may look up what was put without
//! looking. These figures cost no more than reading some counters, or, of what is counted, a bounded scan of the
//! database's own trees.

use std::sync::atomic::Ordering;

use crate::lock::queue::{all_waiters, decode_entry, waiters_of};
use crate::lock::{LockState, Permit, decode_state};
use crate::snapshot::Snapshot;
use crate::{Engine, IVec, Replica, Result, TreeId, session};

/// Figures of an open engine, all as of about now. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Figures {
    /// Checkpoints since opening.
    pub checkpoints: u64,
    /// How often a writer had to wait for a checkpoint.
    pub write_stalls: u64,
    /// Memory of the writes that are not in the B-tree yet.
    pub overlay_bytes: u64,
    /// Memory of the leaf cache.
    pub leaf_cache_bytes: u64,
    /// What redb's cache may use.
    pub redb_cache_bytes: u64,
    /// What all three together may use.
    pub cache_capacity: u64,
    /// The B-tree as of the last checkpoint.
    pub tree_bytes: u64,
    /// Snapshots and scans that are open.
    pub open_snapshots: u64,
    /// Subscriptions that are open.
    pub watchers: u64,
}

impl Engine {
    /// Figures that are cheap to have.
    pub fn figures(&self) -> Figures {
        let shared = &*self.shared;
        let state = shared.state.load();
        let frozen = state.frozen.as_ref();
        Figures {
            checkpoints: shared.checkpoints.load(Ordering::Relaxed),
            write_stalls: shared.stalls.load(Ordering::Relaxed) as u64,
            overlay_bytes: (state.active.bytes() + frozen.map_or(0, |frozen| frozen.bytes())) as u64,
            leaf_cache_bytes: state.base.budget().used() as u64,
            redb_cache_bytes: shared.redb_cache as u64,
            cache_capacity: shared.options.cache_capacity,
            tree_bytes: state.base.file().length(),
            open_snapshots: shared.readers.summary().0 as u64,
            watchers: shared.watchers.subscriptions() as u64,
        }
    }
}

/// How many live in a replica, each counted up to a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Population {
    /// Sessions that have not ended.
    pub sessions: u64,
    /// Locks that are held, or waited for, or held back.
    pub locks: u64,
    /// Those who wait for a lock.
    pub waiting: u64,
}

/// A lock that is held or waited for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct LockQueue {
    /// Its name.
    pub name: IVec,
    /// How many permits there are.
    pub capacity: u32,
    /// Who holds it, in the order of the grants; not all, if they are many.
    pub holders: Vec<Permit>,
    /// Those who wait, in their order; not all, if they are many.
    pub waiters: Vec<Waiting>,
    /// How many wait.
    pub waiting: u64,
}

/// Somebody who waits.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Waiting {
    /// Who.
    pub owner: IVec,
    /// The number under which it waits.
    pub ticket: u64,
    /// How many permits it wants.
    pub permits: u32,
}

impl Replica {
    /// Counts those who live in the newest state, each kind up to `limit`.
    ///
    /// # Errors
    /// Damage and I/O errors met while counting.
    pub fn population(&self, limit: usize) -> Result<Population> {
        let snapshot = self.engine().snapshot();
        let count = |tree, (low, high)| {
            let mut count = 0;
            for entry in snapshot.range(tree, low, high).take(limit) {
                entry?;
                count += 1;
            }
            Ok::<u64, crate::Error>(count)
        };
        let all = (std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        Ok(Population {
            sessions: count(TreeId::SESSIONS, session::alive())?,
            locks: count(TreeId::LOCKS, all)?,
            waiting: count(TreeId::LOCK_QUEUES, all_waiters())?,
        })
    }

    /// The first locks by name, at most `limit`, with so many holders and waiters of each; and whether there
    /// are more. What the log's time has ended is left out.
    ///
    /// # Errors
    /// Damage and I/O errors met while reading.
    pub fn locks(&self, limit: usize, people: usize) -> Result<(Vec<LockQueue>, bool)> {
        let time_ms = self.time_ms();
        let snapshot = self.engine().snapshot();
        let mut found = Vec::new();
        let entries = snapshot.range(TreeId::LOCKS, std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        for (looked_at, entry) in entries.enumerate() {
            // Those whose leases have ended are soon removed; many of them must not make this long.
            if found.len() == limit || looked_at == limit.saturating_mul(8) {
                return Ok((found, true));
            }
            let (name, stored) = entry?;
            let state = decode_state(&name, &stored)?;
            if let Some(queue) = queue_of(&snapshot, name, &state, time_ms, people)? {
                found.push(queue);
            }
        }
        Ok((found, false))
    }
}

fn queue_of(
    snapshot: &Snapshot,
    name: IVec,
    state: &LockState,
    time_ms: u64,
    people: usize,
) -> Result<Option<LockQueue>> {
    let holders: Vec<Permit> = state.live(time_ms).take(people).cloned().collect();
    let mut waiters = Vec::new();
    if state.waiting > 0 {
        let (low, high) = waiters_of(&name);
        for entry in snapshot.range(TreeId::LOCK_QUEUES, low, high).take(people) {
            let (key, stored) = entry?;
            let (ticket, waiter) = decode_entry(&name, &key, &stored.value)?;
            if !waiter.has_gone(time_ms) {
                waiters.push(Waiting { owner: waiter.owner, ticket, permits: waiter.permits });
            }
        }
    }
    if holders.is_empty() && waiters.is_empty() {
        return Ok(None);
    }
    Ok(Some(LockQueue { name, capacity: state.capacity, holders, waiters, waiting: state.waiting }))
}
