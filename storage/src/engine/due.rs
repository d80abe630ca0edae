//! [`DueTimes`]: whether anything has expired, as one number in memory; and the thread of an embedded
//! database that removes it.
//!
//! The number is the first time in the index of [`TreeId::EXPIRY`] (and another the same of
//! [`TreeId::LOCK_QUEUES`]). It follows the effects: a put into the index lowers it *before* the put is
//! visible, a removal of the first entry has it looked up anew *after*. So it may be too early for a moment,
//! and then a reader looks for nothing; it is never too late.
//!
//! The same thread ends the sessions of an embedded database whose leases are over ([`super::sessions`]).

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
    /// Before this time no session of an embedded database ends. It is lowered with the commit mutex held, like the
    /// others, and raised only by the look at the index that [`Shared::expire_sessions`] takes.
    sessions: AtomicU64,
    /// The monotonic time at which the database was opened.
    opened_ms: u64,
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
    pub(crate) fn of(state: &Arc<State>, sequence: u64, opened_ms: u64) -> Result<DueTimes> {
        let first = |tree| {
            let all = (Bound::Unbounded, Bound::Unbounded);
            let mut entries = RangeIter::over(Arc::clone(state), sequence, tree, all);
            let first = entries.next().transpose()?;
            Ok::<_, crate::Error>(first.and_then(|(key, _)| expiry::due_time(&key)).unwrap_or(u64::MAX))
        };
        // Whether there are any, and when the first ends, the thread finds out.
        let sessions = if state.catalog.ids.contains_key(&TreeId::SESSIONS) { 0 } else { u64::MAX };
        Ok(DueTimes {
            sessions: AtomicU64::new(sessions),
            opened_ms,
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

    /// The monotonic time at which the database was opened.
    pub(super) fn opened_ms(&self) -> u64 {
        self.opened_ms
    }

    /// No session ends before that. Call with the commit mutex held.
    pub(super) fn next_session(&self, at_ms: u64) {
        self.sessions.store(at_ms, Ordering::SeqCst);
    }

    /// A session ends then. Call with the commit mutex held, before that is visible.
    pub(super) fn session_ends(&self, at_ms: u64) {
        if self.sessions.fetch_min(at_ms, Ordering::SeqCst) > at_ms {
            drop(self.sleeper.lock());
            self.earlier.notify_all();
        }
    }

    /// The latest time that readers were shown.
    #[inline]
    pub(crate) fn seen_ms(&self) -> u64 {
        self.seen_ms.load(Ordering::SeqCst)
    }

    /// Something was hidden, or found to be over, by this time.
    pub(super) fn saw(&self, time_ms: u64) {
        self.seen_ms.fetch_max(time_ms, Ordering::SeqCst);
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
        self.due.saw(now_ms);
        Some(now_ms)
    }
}

/// The thread of an embedded database.
pub(super) fn run(shared: &Shared) {
    loop {
        let (keys_are_due, sessions_are_due) = {
            let mut sleeper = shared.due.sleeper.lock();
            loop {
                if sleeper.closing {
                    return;
                }
                let (keys_ms, sessions_ms) = (shared.due.keys(), shared.due.sessions.load(Ordering::SeqCst));
                let first_ms = keys_ms.min(sessions_ms);
                if first_ms == u64::MAX {
                    shared.due.earlier.wait(&mut sleeper);
                    continue;
                }
                let now_ms = shared.options.clock.now_ms().max(shared.due.seen_ms());
                if first_ms <= now_ms {
                    break (keys_ms <= now_ms, sessions_ms <= now_ms);
                }
                // The clock shows no more than every few milliseconds.
                let left = Duration::from_millis(first_ms - now_ms).min(LONGEST_SLEEP);
                shared.due.earlier.wait_for(&mut sleeper, left);
            }
        };
        let (mut is_idle, mut has_failed) = (true, false);
        if keys_are_due {
            let step = shared.execute(Command::SettleDue { limit: MOST_DUE }, &[], Durability::Buffered);
            is_idle &= !matches!(step, Ok(Reply::Settled { keys: 1.., .. }));
            has_failed |= step.is_err();
        }
        if sessions_are_due {
            let step = shared.expire_sessions();
            is_idle &= !matches!(step, Ok((1.., _) | (_, true)));
            has_failed |= step.is_err();
        }
        let mut sleeper = shared.due.sleeper.lock();
        if is_idle && !sleeper.closing {
            // The disk fails, or the commit's clock is behind this one: no use in hurrying.
            let wait = if has_failed { AFTER_FAILURE } else { Duration::from_millis(5) };
            shared.due.earlier.wait_for(&mut sleeper, wait);
        }
    }
}
