//! [`NearCache`]: values that are read often, kept in the client and coherent by a watch.
//!
//! What it promises is said at [`NearCache`].
//!
//! # How
//!
//! ```text
//! get ─► here? ─► yes ─► return it
//!          └─ no ─► read, at position p of the partition's log ─► told of a later write meanwhile? ─► keep the newer
//! event at position q ─► of a key that is here as of p < q: take the new value; else pass
//! ```
//!
//! A read and the event of a write overtake each other. What is kept is therefore kept *as of* the position that the
//! read took into account: events of earlier ones tell nothing new. And events that come while the key is being
//! read are remembered for it. If it is not known what happened meanwhile (own writes, a gap in the stream), it is
//! read once more.
//!
//! That a key has no value is kept as well.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::task::AbortHandle;

use super::subscriber::{Event, Subscriber};
use super::{Result, Tree};
use crate::IVec;

/// What an entry costs beside its key and value.
const OVERHEAD: usize = 128;

/// A tree whose values are kept here once they were read; made by [`Tree::near_cache`].
///
/// It holds the keys that begin with its prefix, the most recently used ones, up to a number of bytes.
///
/// # What it promises
///
/// For each key by itself:
///
/// - **Reads never go back**: once this cache has returned a value, no read that is called after that returns an
///   older one.
/// - **Own writes are seen**: what was written through this cache, before the read was called, is seen, or
///   something newer.
/// - **Others' writes are seen soon**: a value that is returned is one that the key had when the read was called,
///   or up to the *lag* before. The lag is the time in which the event of a write comes here: milliseconds while
///   the network is well. When the stream of events breaks, reads go to the cluster until another node goes on
///   with it. A node that is lost without a word is missed after some seconds, when its connection is idle for
///   too long ([`NetOptions::idle_timeout`](super::NetOptions)), or when it finds itself out of touch
///   with the others and ends the stream; until then values are returned that may be as old as that.
/// - A key with a time to live may be returned until its removal is told, some tenths of a second after its end.
///
/// That is weaker than a [read](super#reads), which is linearizable, and there is no order between keys: one may be
/// newer here and the other older. Whoever needs more reads past the cache, with [`NearCache::tree`].
///
/// ```no_run
/// # async fn run(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
/// let users = client.tree("users").near_cache("", 64 << 20).await?;
/// let ann = users.get("ann").await?; // asks the cluster
/// let ann = users.get("ann").await?; // does not, until somebody writes it
/// users.insert("ann", "admin").await?;
/// assert_eq!(users.get("ann").await?.unwrap(), "admin");
/// # Ok(()) }
/// ```
pub struct NearCache {
    tree: Tree,
    prefix: IVec,
    shared: Arc<Shared>,
    task: AbortHandle,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Partitions whose stream is broken.
    broken: Arc<AtomicUsize>,
    hits: AtomicU64,
    misses: AtomicU64,
}

#[derive(Default)]
struct State {
    /// Whether changes are told.
    is_live: bool,
    capacity: usize,
    bytes: usize,
    entries: HashMap<IVec, Kept>,
    /// By when they were used last.
    used: BTreeMap<u64, IVec>,
    /// Counts what happens here.
    clock: u64,
    /// Keys that are being read.
    reading: HashMap<IVec, Reading>,
}

struct Kept {
    value: Option<IVec>,
    /// Nothing that happened up to this position is news.
    as_of: u64,
    used: u64,
}

#[derive(Default)]
struct Reading {
    readers: usize,
    /// The last that was told of the key, and at which position; 0: nothing was.
    told: (u64, Option<IVec>),
    /// When something happened to it that is not known, by the clock; 0: nothing did.
    doubted: u64,
}

fn cost(key: &IVec, value: Option<&IVec>) -> usize {
    OVERHEAD + key.len() + value.map_or(0, |value| value.len())
}

impl State {
    fn get(&mut self, key: &IVec) -> Option<Option<IVec>> {
        if !self.is_live {
            return None;
        }
        let kept = self.entries.get_mut(key)?;
        self.clock += 1;
        if let Some(key) = self.used.remove(&std::mem::replace(&mut kept.used, self.clock)) {
            self.used.insert(self.clock, key);
        }
        Some(kept.value.clone())
    }

    fn forget(&mut self, key: &IVec) {
        if let Some(kept) = self.entries.remove(key) {
            self.bytes -= cost(key, kept.value.as_ref());
            self.used.remove(&kept.used);
        }
    }

    /// By the clock.
    fn begin_reading(&mut self, key: &IVec) -> u64 {
        self.reading.entry(key.clone()).or_default().readers += 1;
        self.clock += 1;
        self.clock
    }

    fn leave_reading(&mut self, key: &IVec) -> Reading {
        let Some(reading) = self.reading.get_mut(key) else { return Reading::default() };
        reading.readers -= 1;
        if reading.readers == 0 {
            return self.reading.remove(key).unwrap_or_default();
        }
        Reading { readers: 0, told: reading.told.clone(), doubted: reading.doubted }
    }

    /// Ends a reading that has begun then, and keeps what is the newest; that, unless it is not known.
    fn end_reading(
        &mut self,
        key: &IVec,
        began: u64,
        value: Option<IVec>,
        as_of: u64,
    ) -> Option<Option<IVec>> {
        let reading = self.leave_reading(key);
        if reading.doubted > began {
            return None;
        }
        let (as_of, value) = if reading.told.0 > as_of { reading.told } else { (as_of, value) };
        // Those who still read must not go back behind this, though it may not be kept, nor for long.
        if let Some(reading) = self.reading.get_mut(key)
            && reading.told.0 < as_of
        {
            reading.told = (as_of, value.clone());
        }
        if let Some(kept) = self.entries.get(key).filter(|kept| kept.as_of > as_of) {
            return Some(kept.value.clone());
        }
        if self.is_live {
            self.keep(key, value.clone(), as_of);
        }
        Some(value)
    }

    fn keep(&mut self, key: &IVec, value: Option<IVec>, as_of: u64) {
        self.forget(key);
        let cost = cost(key, value.as_ref());
        if cost > self.capacity {
            return;
        }
        while self.bytes + cost > self.capacity {
            let Some(oldest) = self.used.first_key_value().map(|(_, key)| key.clone()) else { break };
            self.forget(&oldest);
        }
        self.clock += 1;
        self.bytes += cost;
        self.used.insert(self.clock, key.clone());
        self.entries.insert(key.clone(), Kept { value, as_of, used: self.clock });
    }

    /// Something happened to a key.
    fn told(&mut self, key: IVec, value: Option<IVec>, position: u64) {
        if let Some(reading) = self.reading.get_mut(&key)
            && reading.told.0 < position
        {
            reading.told = (position, value.clone());
        }
        let Some(kept) = self.entries.get_mut(&key) else { return };
        if kept.as_of >= position {
            return;
        }
        kept.as_of = position;
        let before = cost(&key, std::mem::replace(&mut kept.value, value.clone()).as_ref());
        self.bytes = self.bytes - before + cost(&key, value.as_ref());
        if self.bytes > self.capacity {
            self.forget(&key);
        }
    }

    /// Something may have happened to any of these keys, and nobody says what.
    fn doubt(&mut self, is_meant: impl Fn(&IVec) -> bool) {
        let doubtful: Vec<IVec> = self.entries.keys().filter(|key| is_meant(key)).cloned().collect();
        for key in doubtful {
            self.forget(&key);
        }
        self.clock += 1;
        for (key, reading) in &mut self.reading {
            if is_meant(key) {
                reading.doubted = self.clock;
                // It may be what was lost.
                reading.told = (0, None);
            }
        }
    }
}

impl Tree {
    /// Keeps the values of keys that begin with a prefix once they were read, up to so many bytes; how coherent that
    /// is, [`NearCache`] says.
    ///
    /// # Errors
    /// As [`Tree::watch_prefix`].
    pub async fn near_cache<P: AsRef<[u8]>>(&self, prefix: P, capacity_bytes: usize) -> Result<NearCache> {
        let prefix = IVec::from(prefix.as_ref());
        let changes = self.watch_prefix(&prefix).await?;
        let state = State { is_live: true, capacity: capacity_bytes, ..State::default() };
        let (state, broken) = (Mutex::new(state), changes.broken());
        let shared = Arc::new(Shared { state, broken, ..Shared::default() });
        let task = self.client().runtime().spawn(follow(changes, Arc::clone(&shared))).abort_handle();
        Ok(NearCache { tree: self.clone(), prefix, shared, task })
    }
}

/// Has the cache know of what happens, until nobody tells any more.
async fn follow(mut changes: Subscriber, shared: Arc<Shared>) {
    while let Some(Ok((position, event))) = changes.next_at().await {
        let mut state = shared.state.lock();
        match event {
            Event::Insert { key, value } => state.told(key, Some(value), position),
            Event::Remove { key } => state.told(key, None, position),
            Event::Clear { part } | Event::Lost { part, .. } => {
                state.doubt(|key| part.contains(key));
            }
        }
    }
    let mut state = shared.state.lock();
    state.is_live = false;
    state.doubt(|_| true);
}

/// A key that is being read, until that is given up.
struct Read<'a> {
    shared: &'a Shared,
    key: &'a IVec,
    began: u64,
    is_over: bool,
}

impl Read<'_> {
    fn finish(mut self, found: Option<IVec>, position: u64) -> Option<Option<IVec>> {
        self.is_over = true;
        self.shared.state.lock().end_reading(self.key, self.began, found, position)
    }
}

impl Drop for Read<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.state.lock().leave_reading(self.key);
        }
    }
}

impl NearCache {
    /// The value of a key, from here if it is here.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn get<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        let key = IVec::from(key.as_ref());
        if !key.starts_with(&self.prefix) {
            return self.tree.get(key).await;
        }
        loop {
            let began = {
                let mut state = self.shared.state.lock();
                let is_whole = self.shared.broken.load(Ordering::Acquire) == 0;
                if let Some(found) = state.get(&key).filter(|_| is_whole) {
                    self.shared.hits.fetch_add(1, Ordering::Relaxed);
                    return Ok(found);
                }
                state.begin_reading(&key)
            };
            self.shared.misses.fetch_add(1, Ordering::Relaxed);
            let read = Read { shared: &self.shared, key: &key, began, is_over: false };
            let (found, position) = self.tree.read_versioned(key.clone()).await?;
            if let Some(found) = read.finish(found.map(|found| found.value), position) {
                return Ok(found);
            }
        }
    }

    /// Sets a key; the value before.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn insert<K, V>(&self, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let key = IVec::from(key.as_ref());
        let _written = Written { shared: &self.shared, key: &key };
        self.tree.insert(&key, value).await
    }

    /// Removes a key; the value before.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn remove<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        let key = IVec::from(key.as_ref());
        let _written = Written { shared: &self.shared, key: &key };
        self.tree.remove(&key).await
    }

    /// The tree, to be read and written past the cache.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// How many reads were answered here, and how many were not.
    pub fn hits_and_misses(&self) -> (u64, u64) {
        (self.shared.hits.load(Ordering::Relaxed), self.shared.misses.load(Ordering::Relaxed))
    }
}

/// Takes a key out when it was written, whatever came of it, and whoever reads it meanwhile does not keep it.
struct Written<'a> {
    shared: &'a Shared,
    key: &'a IVec,
}

impl Drop for Written<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().doubt(|key| key == self.key);
    }
}

impl Drop for NearCache {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl fmt::Debug for NearCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("NearCache")
            .field("tree", self.tree.name())
            .field("prefix", &self.prefix)
            .field("entries", &state.entries.len())
            .field("bytes", &state.bytes)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(capacity: usize) -> State {
        State { is_live: true, capacity, ..State::default() }
    }

    fn value(text: &str) -> Option<IVec> {
        Some(IVec::from(text))
    }

    fn check(state: &State) {
        let bytes: usize = state.entries.iter().map(|(key, kept)| cost(key, kept.value.as_ref())).sum();
        assert_eq!(state.bytes, bytes);
        assert!(bytes <= state.capacity, "{bytes} of {}", state.capacity);
        assert_eq!(state.used.len(), state.entries.len());
        assert!(state.used.iter().all(|(used, key)| state.entries[key].used == *used));
    }

    #[test]
    fn what_was_told_while_a_key_was_read_is_not_forgotten() {
        let mut state = state(10_000);
        let key = IVec::from("k");
        // The event overtakes the answer.
        let began = state.begin_reading(&key);
        state.told(key.clone(), value("new"), 8);
        assert_eq!(state.end_reading(&key, began, value("old"), 7), Some(value("new")));
        assert_eq!(state.get(&key), Some(value("new")));
        // The answer overtakes the event, which then tells nothing new, and one after that does.
        let began = state.begin_reading(&key);
        assert_eq!(state.end_reading(&key, began, value("newer"), 12), Some(value("newer")));
        state.told(key.clone(), value("between"), 11);
        assert_eq!(state.get(&key), Some(value("newer")));
        state.told(key.clone(), None, 13);
        assert_eq!(state.get(&key), Some(None));
        // One reader is slow: it does not return what is older than what others were given.
        let slow = state.begin_reading(&key);
        state.told(key.clone(), value("newest"), 20);
        assert_eq!(state.end_reading(&key, slow, value("ancient"), 1), Some(value("newest")));
        check(&state);
        assert!(state.reading.is_empty());
    }

    #[test]
    fn a_slow_reader_does_not_go_back_behind_what_a_quick_one_was_given_though_it_was_not_kept() {
        // Nothing has room.
        let mut state = state(1);
        let key = IVec::from("k");
        let (slow, quick) = (state.begin_reading(&key), state.begin_reading(&key));
        assert_eq!(state.end_reading(&key, quick, value("new"), 9), Some(value("new")));
        assert_eq!(state.end_reading(&key, slow, value("old"), 5), Some(value("new")));
        assert!(state.reading.is_empty());
    }

    #[test]
    fn what_is_in_doubt_is_read_again() {
        let mut state = state(10_000);
        let (key, other) = (IVec::from("k"), IVec::from("other"));
        let early = state.begin_reading(&key);
        let elsewhere = state.begin_reading(&other);
        state.doubt(|doubtful| *doubtful == key);
        // Who begins after that is not concerned.
        let late = state.begin_reading(&key);
        assert_eq!(state.end_reading(&key, early, value("1"), 5), None);
        assert_eq!(state.end_reading(&key, late, value("2"), 6), Some(value("2")));
        assert_eq!(state.end_reading(&other, elsewhere, None, 5), Some(None));
        assert_eq!((state.get(&key), state.get(&other)), (Some(value("2")), Some(None)));
        state.doubt(|_| true);
        assert_eq!(state.get(&key), None);
        state.is_live = false;
        let began = state.begin_reading(&key);
        assert_eq!(state.end_reading(&key, began, value("3"), 7), Some(value("3")));
        assert_eq!(state.get(&key), None, "nobody would tell of what happens to it");
        check(&state);
    }

    #[test]
    fn the_least_recently_used_go_and_the_bytes_are_counted() {
        let mut state = state(5 * (OVERHEAD + 2 + 10));
        let key = |i: u32| IVec::from(format!("{i:02}").as_str());
        let put = |state: &mut State, i: u32, length: usize| {
            let began = state.begin_reading(&key(i));
            state.end_reading(&key(i), began, value(&"x".repeat(length)), u64::from(i));
            check(state);
        };
        for i in 0..5 {
            put(&mut state, i, 10);
        }
        assert!(state.get(&key(0)).is_some());
        put(&mut state, 5, 10);
        assert_eq!(state.get(&key(1)), None, "the one that was used longest ago");
        assert!(state.get(&key(0)).is_some());
        // A value that has grown too large goes; one that is larger than all is never kept.
        state.told(key(5), value(&"x".repeat(100_000)), 50);
        check(&state);
        assert_eq!(state.get(&key(5)), None);
        put(&mut state, 6, 100_000);
        assert_eq!(state.get(&key(6)), None);
        assert!(state.get(&key(0)).is_some());
    }
}
