//! Watching a tree: every change under a prefix, in the order of commits.
//!
//! Promise: a subscription sees each change committed after it was made exactly once and in commit
//! order, or is told how many it missed ([`Event::Overflowed`]) at the place where they are
//! missing. A writer never waits for a subscriber.
//!
//! How: the engine calls [`Watchers::publish`] under its commit mutex, which is what gives events
//! the order of commits. When nobody watches, that is one atomic load. Otherwise the events are
//! pushed into a bounded queue per subscription; the only thing a subscriber does under the same
//! mutex is to take one event out. Waking is left to the [`Wakeups`] that `publish` returns, so
//! that the engine can do it after it has released the commit mutex: a waker is a stranger's
//! code, and may do anything, even write to this database, or panic: which is neither the writer's affair nor that
//! of the subscribers to be woken after it, and ends with the waker.
//!
//! A commit costs what it tells, not what there is to tell: subscriptions are found by the prefixes of the key,
//! of as many lengths as there are. Ten thousand that follow a key each cost a commit one look-up.
//!
//! A full queue drops new events and counts them in one marker, which stands in the queue where
//! they would have been. When the subscriber catches up, later events follow the marker. What
//! was lost can be read again from a snapshot or from the engine's changes.
//!
//! A commit puts or removes a key once at most, and that is what is told of it. What is merely told ([`Effect::Tell`]) comes as
//! puts do, several times for one key if need be, and is in no tree.
//!
//! `Clear` is one event however many keys it removes, and dropping the tree ends its
//! subscriptions.
//!
//! **Coming back.** A replica keeps its newest changes ([`Watchers::with_history`]), so that a subscriber that
//! was elsewhere goes on where it was ([`Watchers::subscribe_after`]), or is told that too much has happened
//! ([`Compacted`]). Such a subscription is *behind* at first: it takes events from the history, a bounded
//! number at a time, and has none in its queue. One that has come to the end of the history is like any
//! other. One that is so slow that the history leaves it behind is told as those are whose queue is full.

mod history;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use self::history::History;
use crate::{Effect, IVec, TreeId};

/// How many events a subscription holds unless told otherwise.
pub const DEFAULT_CAPACITY: usize = 64 << 10;
/// How many bytes of keys and values a subscription holds at most. A single event may be larger:
/// an empty queue takes any.
pub const MAX_QUEUED_BYTES: usize = 64 << 20;
/// How many events of the history a subscription that is behind looks at in one go.
const CATCH_UP: usize = 1024;

/// What was asked for is not kept any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compacted {
    /// Everything after this position can be asked for.
    pub position: u64,
}

/// What happened to a key that is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It got a value.
    Put {
        /// Of the commit.
        sequence: u64,
        /// The key.
        key: IVec,
        /// Its new value.
        value: IVec,
    },
    /// It was removed.
    Remove {
        /// Of the commit.
        sequence: u64,
        /// The key.
        key: IVec,
    },
    /// All keys of the tree were removed.
    Cleared {
        /// Of the commit.
        sequence: u64,
    },
    /// The subscriber was too slow, and events are missing here.
    Overflowed {
        /// Of the commit of the last one that is missing.
        sequence: u64,
        /// How many; of a subscription that was behind the history, at most so many.
        lost: u64,
    },
}

impl Event {
    /// The sequence of the commit it belongs to; for [`Event::Overflowed`], of the last one lost.
    pub fn sequence(&self) -> u64 {
        match self {
            Event::Put { sequence, .. }
            | Event::Remove { sequence, .. }
            | Event::Cleared { sequence }
            | Event::Overflowed { sequence, .. } => *sequence,
        }
    }

    fn size(&self) -> usize {
        match self {
            Event::Put { key, value, .. } => key.len() + value.len(),
            Event::Remove { key, .. } => key.len(),
            Event::Cleared { .. } | Event::Overflowed { .. } => 0,
        }
    }
}

/// All subscriptions of a database. Dropping it closes them.
#[derive(Debug, Default)]
pub struct Watchers {
    registry: Arc<Registry>,
}

#[derive(Debug, Default)]
struct Registry {
    /// How many queues there are, readable without the mutex; one more if there is a history.
    count: AtomicUsize,
    /// All events of commits up to this one are queued.
    position: AtomicU64,
    state: Mutex<RegistryState>,
}

#[derive(Debug, Default)]
struct RegistryState {
    trees: BTreeMap<TreeId, TreeQueues>,
    history: History,
    closed: bool,
}

/// The queues of one tree.
#[derive(Debug, Default)]
struct TreeQueues {
    by_prefix: BTreeMap<IVec, Vec<Arc<Queue>>>,
    /// How many prefixes there are of each length.
    lengths: BTreeMap<usize, usize>,
}

impl TreeQueues {
    fn add(&mut self, queue: Arc<Queue>) {
        let prefix = queue.prefix.clone();
        let length = prefix.len();
        let alike = self.by_prefix.entry(prefix).or_default();
        if alike.is_empty() {
            *self.lengths.entry(length).or_default() += 1;
        }
        alike.push(queue);
    }

    /// Whether it was there.
    fn remove(&mut self, queue: &Arc<Queue>) -> bool {
        let Some(alike) = self.by_prefix.get_mut(&queue.prefix) else { return false };
        let Some(position) = alike.iter().position(|other| Arc::ptr_eq(other, queue)) else { return false };
        alike.swap_remove(position);
        if alike.is_empty() {
            self.by_prefix.remove(&queue.prefix);
            let length = queue.prefix.len();
            let count = self.lengths.get_mut(&length).expect("a prefix is counted under its length");
            *count -= 1;
            if *count == 0 {
                self.lengths.remove(&length);
            }
        }
        true
    }

    /// Those that follow a key.
    fn of_key<'a>(&'a self, key: &'a [u8]) -> impl Iterator<Item = &'a Arc<Queue>> {
        let prefixes = self.lengths.range(..=key.len()).map(|(length, _)| &key[..*length]);
        prefixes.filter_map(|prefix| self.by_prefix.get(prefix)).flatten()
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.by_prefix.values().flatten()
    }
}

/// Subscribers to be woken, on drop. Keep it until the commit mutex is released.
#[derive(Debug, Default)]
#[must_use = "drop it after the commit mutex is released"]
pub struct Wakeups(Vec<Arc<Queue>>);

impl Drop for Wakeups {
    fn drop(&mut self) {
        for queue in &self.0 {
            queue.wake();
        }
    }
}

impl Watchers {
    /// Without subscriptions.
    pub fn new() -> Watchers {
        Watchers::default()
    }

    /// Without subscriptions, keeping the changes after `position` for those who come back, up to so many
    /// bytes; 0: none.
    pub fn with_history(bytes: usize, position: u64) -> Watchers {
        let watchers = Watchers::default();
        watchers.registry.state.lock().history = History::new(bytes, position);
        watchers.registry.count.store(usize::from(bytes > 0), Ordering::Release);
        watchers.advanced(position);
        watchers
    }

    /// Watches the keys of `tree` that begin with `prefix`, holding up to `capacity` events.
    /// Call it under the commit mutex to know which commit is the first to be seen.
    pub fn subscribe(&self, tree: TreeId, prefix: &[u8], capacity: usize) -> Subscription {
        let queue = Queue::new(tree, prefix, capacity, 0);
        self.enter(queue, &mut self.registry.state.lock())
    }

    /// As [`Watchers::subscribe`], beginning with the first commit after a position, which may not have come
    /// yet.
    ///
    /// # Errors
    /// [`Compacted`] if not all of that is kept.
    pub fn subscribe_after(
        &self,
        tree: TreeId,
        prefix: &[u8],
        capacity: usize,
        after: u64,
    ) -> Result<Subscription, Compacted> {
        let mut state = self.registry.state.lock();
        let kept_after = self.kept_after_of(&state, history::is_kept(tree));
        if after < kept_after {
            return Err(Compacted { position: kept_after });
        }
        let queue = Queue::new(tree, prefix, capacity, after);
        let behind = state.history.after(after);
        if behind < state.history.next() {
            queue.state.lock().behind = Some(behind);
        }
        Ok(self.enter(queue, &mut state))
    }

    /// How many subscriptions there are.
    pub fn subscriptions(&self) -> usize {
        let state = self.registry.state.lock();
        self.registry.count.load(Ordering::Acquire).saturating_sub(usize::from(state.history.is_on()))
    }

    /// Everything after this position is kept of trees that are there.
    pub fn kept_after(&self) -> u64 {
        self.kept_after_of(&self.registry.state.lock(), true)
    }

    fn kept_after_of(&self, state: &RegistryState, is_kept: bool) -> u64 {
        match is_kept && state.history.is_on() {
            true => state.history.floor(),
            false => self.registry.position.load(Ordering::Acquire),
        }
    }

    fn enter(&self, queue: Queue, state: &mut RegistryState) -> Subscription {
        let queue = Arc::new(queue);
        if state.closed {
            queue.state.lock().closed = true;
        } else {
            state.trees.entry(queue.tree).or_default().add(Arc::clone(&queue));
            self.registry.count.fetch_add(1, Ordering::Release);
        }
        Subscription { queue, registry: Arc::clone(&self.registry) }
    }

    /// Everything up to this position was [published](Watchers::publish).
    #[inline]
    pub fn advanced(&self, position: u64) {
        self.registry.position.store(position, Ordering::Release);
    }

    /// A subscription of a tree that is gone already: it has ended.
    pub fn subscribe_to_nothing(&self, tree: TreeId) -> Subscription {
        let queue = Queue::new(tree, b"", 1, 0);
        queue.state.lock().closed = true;
        Subscription { queue: Arc::new(queue), registry: Arc::clone(&self.registry) }
    }

    /// Tells subscribers of a commit. Call it under the commit mutex, in commit order, and drop
    /// what it returns after that mutex is released.
    #[inline]
    pub fn publish(&self, sequence: u64, effects: &[Effect]) -> Wakeups {
        // Whoever subscribed before this commit did so in this thread, under the commit mutex, or
        // before some synchronisation with this thread: each makes the count visible here.
        if self.registry.count.load(Ordering::Acquire) == 0 {
            return Wakeups(Vec::new());
        }
        self.publish_to_queues(sequence, effects)
    }

    // Often without need in an embedded database, and with every commit of a replica.
    #[inline(never)]
    fn publish_to_queues(&self, sequence: u64, effects: &[Effect]) -> Wakeups {
        let mut wakeups = Vec::new();
        let mut state = self.registry.state.lock();
        state.history.record(sequence, effects);
        for effect in effects {
            let mut tell = |queue: &Arc<Queue>| {
                if queue.offer(sequence, effect) {
                    wakeups.push(Arc::clone(queue));
                }
            };
            match effect {
                Effect::Put { tree, key, .. }
                | Effect::Remove { tree, key }
                | Effect::Tell { tree, key, .. } => {
                    if let Some(queues) = state.trees.get(tree) {
                        queues.of_key(key).for_each(tell);
                    }
                }
                Effect::Clear { tree } => {
                    if let Some(queues) = state.trees.get(tree) {
                        queues.all().for_each(&mut tell);
                    }
                }
                Effect::DropTree { id } => {
                    for queue in state.trees.remove(id).unwrap_or_default().all() {
                        self.registry.count.fetch_sub(1, Ordering::Release);
                        queue.state.lock().closed = true;
                        wakeups.push(Arc::clone(queue));
                    }
                }
                Effect::CreateTree { .. } | Effect::SetNextId { .. } => {}
            }
        }
        Wakeups(wakeups)
    }

    /// Ends all subscriptions, once they have delivered what they hold, and those to come.
    pub fn close(&self) {
        let mut state = self.registry.state.lock();
        state.closed = true;
        let trees = std::mem::take(&mut state.trees);
        self.registry.count.store(0, Ordering::Release);
        drop(state);
        for queue in trees.values().flat_map(TreeQueues::all) {
            queue.state.lock().closed = true;
            queue.wake();
        }
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.close();
    }
}

struct Queue {
    tree: TreeId,
    prefix: IVec,
    capacity: usize,
    /// What a commit up to this one did is not wanted.
    after: u64,
    state: Mutex<QueueState>,
    arrived: Condvar,
}

#[derive(Default)]
struct QueueState {
    events: VecDeque<Event>,
    /// Of keys and values in `events`.
    bytes: usize,
    /// The number of the event of the history that comes next; new ones are not queued meanwhile.
    behind: Option<u64>,
    waker: Option<Waker>,
    /// Threads in a blocking call.
    waiting: usize,
    /// Some [`Wakeups`] has it, so no other need.
    to_be_woken: bool,
    closed: bool,
}

impl Queue {
    fn new(tree: TreeId, prefix: &[u8], capacity: usize, after: u64) -> Queue {
        Queue {
            tree,
            prefix: IVec::from(prefix),
            capacity: capacity.max(1),
            after,
            state: Mutex::new(QueueState::default()),
            arrived: Condvar::new(),
        }
    }

    /// Takes events from the history until there is one to be delivered, or no more of them.
    fn catch_up(&self, registry: &Registry) {
        loop {
            {
                let state = self.state.lock();
                if state.behind.is_none() || !state.events.is_empty() {
                    return;
                }
            }
            // The registry's mutex first, as everywhere.
            let registry = registry.state.lock();
            let mut state = self.state.lock();
            let Some(mut next) = state.behind else { return };
            let history = &registry.history;
            let lost = history.lost_from(next);
            if lost > 0 {
                state.events.push_back(Event::Overflowed { sequence: history.left(), lost });
                next += lost;
            }
            for (tree, event) in history.from(next).take(CATCH_UP) {
                next += 1;
                let key = match event {
                    Event::Put { key, .. } | Event::Remove { key, .. } => &key[..],
                    Event::Cleared { .. } | Event::Overflowed { .. } => &self.prefix[..],
                };
                if *tree == self.tree && key.starts_with(&self.prefix) {
                    state.bytes += event.size();
                    state.events.push_back(event.clone());
                }
            }
            state.behind = (next < history.next()).then_some(next);
        }
    }

    /// Queues the event of an effect that is watched; whether somebody has to be woken, and nobody else
    /// is about to do it.
    fn offer(&self, sequence: u64, effect: &Effect) -> bool {
        let event = match effect {
            Effect::Put { key, value, .. } | Effect::Tell { key, value, .. } => {
                Event::Put { sequence, key: key.clone(), value: value.clone() }
            }
            Effect::Remove { key, .. } => Event::Remove { sequence, key: key.clone() },
            Effect::Clear { .. } => Event::Cleared { sequence },
            _ => return false,
        };
        let mut state = self.state.lock();
        if sequence <= self.after || state.behind.is_some() {
            return false;
        }
        let size = event.size();
        let is_full = state.events.len() >= self.capacity || state.bytes + size > MAX_QUEUED_BYTES;
        if is_full && !state.events.is_empty() {
            if let Some(Event::Overflowed { sequence: last, lost }) = state.events.back_mut() {
                *last = sequence;
                *lost += 1;
            } else {
                state.events.push_back(Event::Overflowed { sequence, lost: 1 });
            }
        } else {
            state.bytes += size;
            state.events.push_back(event);
        }
        let wake = !state.to_be_woken && (state.waiting > 0 || state.waker.is_some());
        state.to_be_woken |= wake;
        wake
    }

    fn wake(&self) {
        let waker = {
            let mut state = self.state.lock();
            state.to_be_woken = false;
            state.waker.take()
        };
        self.arrived.notify_all();
        if let Some(waker) = waker {
            // Its panic was printed.
            let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
        }
    }
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("tree", &self.tree)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl QueueState {
    fn take(&mut self) -> Option<Event> {
        let event = self.events.pop_front()?;
        self.bytes -= event.size();
        Some(event)
    }
}

/// One subscriber's end of [`Watchers`]; dropping it ends the watching.
#[derive(Debug)]
pub struct Subscription {
    queue: Arc<Queue>,
    registry: Arc<Registry>,
}

impl Subscription {
    /// Waits for the next event; `None` once the database or the tree is gone and all that was
    /// queued was delivered.
    ///
    /// Not [`Iterator::next`], because it takes `&self`, so that threads can share a subscription.
    pub fn next(&self) -> Option<Event> {
        self.wait_until(None).ok()
    }

    /// As [`Subscription::next`], for at most `timeout`.
    ///
    /// # Errors
    /// `Timeout` when nothing came in time, `Disconnected` when nothing can come any more.
    pub fn next_timeout(&self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        // A timeout beyond what the clock can express is for ever.
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<Event, RecvTimeoutError> {
        self.queue.catch_up(&self.registry);
        let mut state = self.queue.state.lock();
        loop {
            if let Some(event) = state.take() {
                return Ok(event);
            }
            if state.closed {
                return Err(RecvTimeoutError::Disconnected);
            }
            state.waiting += 1;
            let timed_out = match deadline {
                Some(deadline) => self.queue.arrived.wait_until(&mut state, deadline).timed_out(),
                None => {
                    self.queue.arrived.wait(&mut state);
                    false
                }
            };
            state.waiting -= 1;
            if timed_out && state.events.is_empty() {
                return Err(RecvTimeoutError::Timeout);
            }
        }
    }

    /// The next event if one is queued.
    pub fn try_next(&self) -> Option<Event> {
        self.queue.catch_up(&self.registry);
        self.queue.state.lock().take()
    }

    /// The commit up to which every event was taken, if all are that are there, and it is a tree whose changes
    /// are kept.
    pub fn caught_up(&self) -> Option<u64> {
        // Before looking into the queue, where everything up to there is by now.
        let position = self.registry.position.load(Ordering::Acquire);
        let state = self.queue.state.lock();
        let has_all = state.events.is_empty() && state.behind.is_none() && !state.closed;
        (has_all && history::is_kept(self.queue.tree)).then_some(position)
    }

    /// The next event, or `Pending` and the task will be woken when there is one.
    pub fn poll_next(&self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.queue.catch_up(&self.registry);
        let mut state = self.queue.state.lock();
        if let Some(event) = state.take() {
            return Poll::Ready(Some(event));
        }
        if state.closed {
            return Poll::Ready(None);
        }
        match &mut state.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.registry.state.lock();
        let Some(queues) = state.trees.get_mut(&self.queue.tree) else { return };
        if !queues.remove(&self.queue) {
            return;
        }
        if queues.by_prefix.is_empty() {
            state.trees.remove(&self.queue.tree);
        }
        self.registry.count.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests;
