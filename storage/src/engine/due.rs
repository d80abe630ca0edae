//! [`DueTimes`]: whether anything has expired, as one number in memory; and the thread of an embedded
//! database that removes it.
//!
//! The number is the first time in the index of [`TreeId::EXPIRY`] (and another the same of
//! [`TreeId::LOCK_QUEUES`]). It follows the effects: a put into the index lowers it *before* the put is
//! visible, a removal of the first entry has it looked up anew *after*. So it may be too early for a moment,
//! and then a reader looks for nothing; it is never too late.

use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::{Committer, Durability, Shared};
use crate::evaluate::Effect;
use crate::expiry::{self, MOST_DUE};
use crate::snapshot::RangeIter;
use crate::state::State;
use crate::{Command, Reply, Result, TreeId};

/// The longest that the thread sleeps: its clock may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(5);
/// The wait after a step that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct DueTimes {
    keys: AtomicU64,
    locks: AtomicU64,
    /// The latest time by which a key was hidden from a reader: the log's time does not stay behind it.
    seen_ms: AtomicU64,
    sleeper: Mutex<Sleeper>,
    earlier: Condvar,
}

#[derive(Debug, Default)]
struct Sleeper {
    closing: bool,
}

impl DueTimes {
    /// Of a database that is being opened.
    pub(crate) fn of(state: &Arc<State>, sequence: u64) -> Result<DueTimes> {
        let first = |tree| {
            let all = (Bound::Unbounded, Bound::Unbounded);
            let mut entries = RangeIter::over(Arc::clone(state), sequence, tree, all);
            let first = entries.next().transpose()?;
            Ok::<_, crate::Error>(first.and_then(|(key, _)| expiry::due_time(&key)).unwrap_or(u64::MAX))
        };
        Ok(DueTimes {
            keys: AtomicU64::new(first(TreeId::EXPIRY)?),
            locks: AtomicU64::new(first(TreeId::LOCK_QUEUES)?),
            seen_ms: AtomicU64::new(0),
            sleeper: Mutex::default(),
            earlier: Condvar::new(),
        })
    }

    fn of_tree(&self, tree: TreeId) -> &AtomicU64 {
        if tree == TreeId::EXPIRY { &self.keys } else { &self.locks }
    }

    /// Before this time no key expires.
    #[inline]
    pub(crate) fn keys(&self) -> u64 {
        self.keys.load(Ordering::SeqCst)
    }

    /// Before this time no lock is due.
    pub(crate) fn locks(&self) -> u64 {
        self.locks.load(Ordering::SeqCst)
    }

    /// The latest time that readers were shown.
    #[inline]
    pub(crate) fn seen_ms(&self) -> u64 {
        self.seen_ms.load(Ordering::SeqCst)
    }

    /// Call before the effects are visible.
    pub(crate) fn before(&self, effects: &[Effect]) {
        for effect in effects {
            if let Effect::Put { tree, key, .. } = effect
                && expiry::has_due_times(*tree)
                && let Some(due_ms) = expiry::due_time(key)
                && self.of_tree(*tree).fetch_min(due_ms, Ordering::SeqCst) > due_ms
            {
                // Through the mutex: the thread is either before its look, or asleep.
                drop(self.sleeper.lock());
                self.earlier.notify_all();
            }
        }
    }

    /// Call when the effects are visible, with the commit mutex held.
    pub(crate) fn after(&self, committer: &mut Committer, state: &Arc<State>, effects: &[Effect]) {
        for tree in [TreeId::EXPIRY, TreeId::LOCK_QUEUES] {
            let first = self.of_tree(tree);
            let first_ms = first.load(Ordering::SeqCst);
            let removes_first = |effect: &Effect| {
                matches!(effect, Effect::Remove { tree: removed, key }
                    if *removed == tree && expiry::due_time(key).is_some_and(|due_ms| due_ms <= first_ms))
            };
            if first_ms == u64::MAX || !effects.iter().any(removes_first) {
                continue;
            }
            let range = committer.ends.range(tree);
            let found = RangeIter::over(Arc::clone(state), committer.sequence, tree, range).next();
            match found {
                Some(Ok((key, _))) => {
                    first.store(expiry::due_time(&key).unwrap_or(u64::MAX), Ordering::SeqCst);
                    committer.ends.found(tree, false, key);
                }
                None => first.store(u64::MAX, Ordering::SeqCst),
                // It stays too early, and whoever looks at the index meets the error.
                Some(Err(_)) => {}
            }
        }
    }

    /// Ends the thread.
    pub(crate) fn close(&self) {
        self.sleeper.lock().closing = true;
        self.earlier.notify_all();
    }
}

impl Shared {
    /// If keys may have expired that are not removed yet, the time that readers are to go by. Call
    /// before loading the state that is read.
    #[inline]
    pub(crate) fn hide_at(&self) -> Option<u64> {
        let first_ms = self.due.keys();
        if first_ms == u64::MAX { None } else { self.hide_after(first_ms) }
    }

    #[cold]
    fn hide_after(&self, first_ms: u64) -> Option<u64> {
        let now_ms = match &self.replica {
            Some(replica) => replica.time_ms(),
            None => self.options.clock.now_ms().max(self.due.seen_ms()),
        };
        if first_ms > now_ms {
            return None;
        }
        // What was hidden once stays so, though the clock be set back.
        self.due.seen_ms.fetch_max(now_ms, Ordering::SeqCst);
        Some(now_ms)
    }
}

/// The thread of an embedded database.
pub(super) fn run(shared: &Shared) {
    loop {
        {
            let mut sleeper = shared.due.sleeper.lock();
            loop {
                if sleeper.closing {
                    return;
                }
                let first_ms = shared.due.keys();
                if first_ms == u64::MAX {
                    shared.due.earlier.wait(&mut sleeper);
                    continue;
                }
                let now_ms = shared.options.clock.now_ms().max(shared.due.seen_ms());
                if first_ms <= now_ms {
                    break;
                }
                // The clock shows no more than every few milliseconds.
                let left = Duration::from_millis(first_ms - now_ms).min(LONGEST_SLEEP);
                shared.due.earlier.wait_for(&mut sleeper, left);
            }
        }
        let step = shared.execute(Command::SettleDue { limit: MOST_DUE }, &[], Durability::Buffered);
        let is_idle = !matches!(step, Ok(Reply::Settled { keys: 1.., .. }));
        let mut sleeper = shared.due.sleeper.lock();
        if is_idle && !sleeper.closing {
            // The disk fails, or the commit's clock is behind this one: no use in hurrying.
            let wait = if step.is_err() { AFTER_FAILURE } else { Duration::from_millis(5) };
            shared.due.earlier.wait_for(&mut sleeper, wait);
        }
    }
}
