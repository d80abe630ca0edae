//! Waiting for a lock without polling, in the embedded database.
//!
//! Promise: whoever waits sleeps until the lock may be free, is woken by its release or by the end
//! of the holder's lease, and gets its turn in the order of arrival. A thousand waiters cost a
//! thousand sleeping threads and no work.
//!
//! The idea: one queue per name, and only the head of a queue tries. A waiter has its turn when it
//! becomes the head, and again whenever the lock's record changes while it is the head. Between
//! turns the head sleeps until the lease that refused it ends; the others sleep until they move up.
//!
//! ```text
//!  commit touches TreeId::LOCKS ─► effects_applied ─► head of that lock's queue: its turn
//!  head leaves (has the lock, gave up, panicked) ───► the next is head: its turn
//!  lease of the holder ends ────────────────────────► the head's sleep ends
//! ```
//!
//! **No wake-up is lost.** A turn is remembered until it is taken, and a waiter stands in the queue
//! before it first tries. Let its try be refused because of a grant G, and let R be the commit that
//! ends G. Commits and tries take the engine's commit mutex, so the try came before R; the waiter
//! was in the queue then, and `effects_applied` after R finds it, be it asleep or not yet.
//! If the waiter moved up only after R, moving up gave it its turn.
//!
//! **What is not promised.** A caller that does not wait (a plain
//! [`TryAcquire`](crate::lock::LockCommand::TryAcquire)) may come between a release and the head's
//! try; the head then goes on waiting at the head. The queue lives in this process and is gone
//! when it ends.
//! If the log's time is quicker than the clock of the head's sleep (it approaches a wall clock that was set, see
//! [`SteadyClock`](crate::SteadyClock); and the machine may have been suspended), it has passed the end of a lease before the
//! sleep is over; the head notices when it ends.
//!
//! **A session's end** ends the waiting of those who ask for it ([`LockWaiters::acquire_of_session`]), wherever they
//! stand in the queue: the commit that removes its record wakes them as the record of a lock wakes the head. Whoever
//! came after that commit finds it before the first sleep: the waiter stands in the queue before it looks whether the
//! session is open, and the look takes the commit mutex.
//!
//! [`LockWaiters::acquire`] is the whole protocol; its parts are public for callers that
//! want to wait in another manner.
//!
//! ```
//! use std::sync::Mutex;
//! use dogsled_storage::lock::{LockCommand, LockReply};
//! use dogsled_storage::lock_wait::LockWaiters;
//! use dogsled_storage::model::ModelState;
//! use dogsled_storage::{Command, Reply};
//!
//! // In the engine: the state behind the commit mutex, and `effects_applied` after each commit.
//! let state = Mutex::new(ModelState::new());
//! let waiters = LockWaiters::new();
//!
//! let granted = waiters.acquire(b"printer", None, || 1_000, || {
//!     let (name, owner) = ("printer".into(), "ann".into());
//!     let command = Command::Lock(LockCommand::TryAcquire { name, owner, lease_ms: 500 });
//!     match state.lock().unwrap().execute(1_000, &command)? {
//!         Reply::Lock(reply) => Ok(reply),
//!         other => panic!("{other:?} is no reply of a lock"),
//!     }
//! })?;
//! assert_eq!(granted.unwrap().expires_ms, 1_500);
//! # Ok::<(), dogsled_storage::Error>(())
//! ```

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::command::TreeId;
use crate::evaluate::Effect;
use crate::group::SessionId;
use crate::lock::{FencingToken, LockReply};
use crate::{IVec, Result, session};

/// The queues of all who wait for locks of one database; clones are the same queues.
#[derive(Clone, Default)]
pub struct LockWaiters {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// How many waiters there are in all queues, so that a commit with nobody waiting pays for
    /// one load only. Changed under the mutex of `queues`.
    waiting: AtomicUsize,
    queues: Mutex<Queues>,
}

#[derive(Default)]
struct Queues {
    /// A queue is removed with its last waiter.
    by_name: HashMap<IVec, BTreeMap<Ticket, Arc<Turn>>>,
    /// Those of them that wait for a session, by it.
    by_session: BTreeMap<(SessionId, Ticket), Arc<Turn>>,
    next_ticket: Ticket,
}

/// Order of arrival.
type Ticket = u64;

/// A waiter's turn to try, remembered until it is taken.
#[derive(Default)]
struct Turn {
    state: Mutex<TurnState>,
    came: Condvar,
}

#[derive(Default)]
struct TurnState {
    is_due: bool,
    /// The session has ended, and with it the wait.
    is_over: bool,
}

impl Turn {
    fn give(&self) {
        self.state.lock().is_due = true;
        self.came.notify_one();
    }

    fn end(&self) {
        self.state.lock().is_over = true;
        self.came.notify_one();
    }
}

/// What a wait ended with; see [`Waiter::wait`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Woken {
    /// It is the waiter's turn to try.
    Turn,
    /// The time is up.
    TimeUp,
    /// The session that it waits for has ended.
    SessionEnded,
}

/// A grant that was waited for; see [`LockWaiters::acquire`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// The fencing token.
    pub token: FencingToken,
    /// The log's time at which the lease ends.
    pub expires_ms: u64,
}

impl LockWaiters {
    /// No queues.
    pub fn new() -> LockWaiters {
        LockWaiters::default()
    }

    /// Waits for the lock until it is granted or `deadline` has passed (`None`: for ever).
    ///
    /// `attempt` executes a [`TryAcquire`](crate::lock::LockCommand::TryAcquire) of this lock and
    /// returns the reply; it is called only when it may succeed: once at the head of the queue,
    /// and then when the lock's record changed or the lease that refused it has ended. `now_ms` is
    /// the log's time. The first caller of an empty queue tries at once, even with a
    /// deadline in the past.
    ///
    /// Returns `None` if the deadline passed.
    ///
    /// # Errors
    /// Those of `attempt`. The caller has left the queue then, and the next has its turn.
    ///
    /// # Panics
    /// If `attempt` returns what is no reply to `TryAcquire`.
    pub fn acquire(
        &self,
        name: &[u8],
        deadline: Option<Instant>,
        now_ms: impl FnMut() -> u64,
        attempt: impl FnMut() -> Result<LockReply>,
    ) -> Result<Option<Granted>> {
        let granted = self.enqueue(name).acquire(deadline, now_ms, attempt);
        granted.map(|granted| granted.expect("no session ends this wait"))
    }

    /// As [`LockWaiters::acquire`], of what is to live with a session: when that ends, so does the wait.
    /// `is_open` says whether it is open, as of no earlier than the call.
    ///
    /// # Errors
    /// Outer: those of `attempt` and `is_open`. Inner: the session has ended.
    ///
    /// # Panics
    /// As [`LockWaiters::acquire`].
    pub fn acquire_of_session(
        &self,
        name: &[u8],
        session: SessionId,
        is_open: impl FnOnce() -> Result<bool>,
        deadline: Option<Instant>,
        now_ms: impl FnMut() -> u64,
        attempt: impl FnMut() -> Result<LockReply>,
    ) -> Result<Result<Option<Granted>, SessionEnded>> {
        let waiter = self.enqueue_of(name, Some(session));
        // In this order: whoever ends it from here on finds the waiter.
        if !is_open()? {
            return Ok(Err(SessionEnded));
        }
        waiter.acquire(deadline, now_ms, attempt)
    }

    /// Stands at the end of the queue for a lock. The head of the queue has its turn at once.
    pub fn enqueue(&self, name: &[u8]) -> Waiter {
        self.enqueue_of(name, None)
    }

    fn enqueue_of(&self, name: &[u8], session: Option<SessionId>) -> Waiter {
        let name = IVec::from(name);
        let turn = Arc::new(Turn::default());
        let mut queues = self.shared.queues.lock();
        let ticket = queues.next_ticket;
        queues.next_ticket += 1;
        let queue = queues.by_name.entry(name.clone()).or_default();
        if queue.is_empty() {
            turn.give();
        }
        queue.insert(ticket, Arc::clone(&turn));
        if let Some(session) = session {
            queues.by_session.insert((session, ticket), Arc::clone(&turn));
        }
        self.shared.waiting.fetch_add(1, Ordering::SeqCst);
        drop(queues);
        Waiter { shared: Arc::clone(&self.shared), name, session, ticket, turn }
    }

    /// Tells the heads of the queues about changes of their locks. The engine calls this after
    /// the effects of a commit are visible, in or out of its commit mutex.
    pub fn effects_applied(&self, effects: &[Effect]) {
        if self.shared.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        for effect in effects {
            match effect {
                // A put as well: a renewal may have made the lease shorter.
                Effect::Put { tree: TreeId::LOCKS, key, .. }
                | Effect::Remove { tree: TreeId::LOCKS, key } => {
                    self.notify(key);
                }
                Effect::Clear { tree: TreeId::LOCKS } => self.notify_all(),
                Effect::Remove { tree: TreeId::SESSIONS, key } => {
                    if let Some(session) = session::in_record_key(key) {
                        self.session_ended(session);
                    }
                }
                _ => {}
            }
        }
    }

    fn session_ended(&self, session: SessionId) {
        let queues = self.shared.queues.lock();
        for (_, turn) in queues.by_session.range((session, 0)..=(session, Ticket::MAX)) {
            turn.end();
        }
    }

    /// Gives the head of a lock's queue its turn.
    pub fn notify(&self, name: &[u8]) {
        let queues = self.shared.queues.lock();
        if let Some((_, head)) = queues.by_name.get(name).and_then(BTreeMap::first_key_value) {
            head.give();
        }
    }

    /// Gives the heads of all queues their turn, for instance to find that the database is closed.
    /// As each leaves with an error the next has its turn.
    pub fn notify_all(&self) {
        let queues = self.shared.queues.lock();
        for queue in queues.by_name.values() {
            if let Some((_, head)) = queue.first_key_value() {
                head.give();
            }
        }
    }

    /// How many wait, for all locks together.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for LockWaiters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockWaiters").field("waiting", &self.waiting()).finish_non_exhaustive()
    }
}

/// A place in the queue for a lock. Dropping it gives the place up, and the turn to the next.
#[must_use = "dropping it leaves the queue"]
pub struct Waiter {
    shared: Arc<Shared>,
    name: IVec,
    session: Option<SessionId>,
    ticket: Ticket,
    turn: Arc<Turn>,
}

/// The session that a lock was to live with has ended while it was waited for; see
/// [`LockWaiters::acquire_of_session`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionEnded;

impl Waiter {
    fn acquire(
        self,
        deadline: Option<Instant>,
        mut now_ms: impl FnMut() -> u64,
        mut attempt: impl FnMut() -> Result<LockReply>,
    ) -> Result<Result<Option<Granted>, SessionEnded>> {
        let mut lease_end: Option<Instant> = None;
        loop {
            match self.wait(earlier(deadline, lease_end)) {
                Woken::SessionEnded => return Ok(Err(SessionEnded)),
                Woken::TimeUp if !is_past(lease_end) => return Ok(Ok(None)),
                Woken::TimeUp | Woken::Turn => {}
            }
            match attempt()? {
                LockReply::Acquired { token, expires_ms } => {
                    return Ok(Ok(Some(Granted { token, expires_ms })));
                }
                LockReply::Held { .. } if is_past(deadline) => return Ok(Ok(None)),
                LockReply::Held { expires_ms, .. } => lease_end = sleep_until(expires_ms, now_ms()),
                other => panic!("{other:?} is no reply to TryAcquire"),
            }
        }
    }

    /// Sleeps until it is this waiter's turn, or until a time (`None`: only the turn ends it).
    /// A turn that came earlier, and was not taken, ends it at once.
    ///
    /// A waiter that was given its turn once is the head and stays so until it is dropped; its
    /// next turns are changes of the lock.
    pub fn wait(&self, until: Option<Instant>) -> Woken {
        let mut state = self.turn.state.lock();
        loop {
            if state.is_over {
                return Woken::SessionEnded;
            }
            if std::mem::take(&mut state.is_due) {
                return Woken::Turn;
            }
            match until {
                None => self.turn.came.wait(&mut state),
                Some(until) => {
                    let is_late = self.turn.came.wait_until(&mut state, until).timed_out();
                    if is_late && !state.is_due && !state.is_over {
                        return Woken::TimeUp;
                    }
                }
            }
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut queues = self.shared.queues.lock();
        if let Some(session) = self.session {
            queues.by_session.remove(&(session, self.ticket));
        }
        let queue =
            queues.by_name.get_mut(&self.name[..]).expect("a waiter's queue lasts as long as it does");
        let was_head = queue.first_key_value().is_some_and(|(first, _)| *first == self.ticket);
        queue.remove(&self.ticket);
        match queue.first_key_value() {
            // Always, not only if a turn of ours was left: the next one has never tried, so it
            // knows neither whether the lock is free nor when the lease ends.
            Some((_, next)) if was_head => next.give(),
            Some(_) => {}
            None => {
                queues.by_name.remove(&self.name[..]);
            }
        }
        self.shared.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl fmt::Debug for Waiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiter")
            .field("name", &self.name)
            .field("ticket", &self.ticket)
            .finish_non_exhaustive()
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

fn is_past(time: Option<Instant>) -> bool {
    time.is_some_and(|time| time <= Instant::now())
}

/// When to try again after a lease that ends at `expires_ms`; `None`: it never ends.
fn sleep_until(expires_ms: u64, now_ms: u64) -> Option<Instant> {
    if expires_ms == u64::MAX {
        return None;
    }
    // At least a millisecond, so that a clock that stands still cannot make this a busy loop. What
    // is too far away for an `Instant` is as good as never.
    let left = Duration::from_millis(expires_ms.saturating_sub(now_ms).max(1));
    Instant::now().checked_add(left)
}
