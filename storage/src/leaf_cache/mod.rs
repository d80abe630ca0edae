//! The leaf cache: clean contents of one tree, answered from memory.
//!
//! Promise: whatever a [`LeafCache`] answers with [`Lookup::Found`] or [`Lookup::Absent`], and
//! whatever a [`Block`] of it holds, is what the B-tree holds at the cache's version. It may always
//! answer [`Lookup::Unknown`]; then the B-tree must be asked.
//!
//! # Idea
//!
//! A cache of single entries cannot say that a key does not exist, and cannot serve a scan. So the
//! cache holds *blocks*: intervals of keys `[low, high)` of which everything is known. Intervals
//! are disjoint; between them are *gaps*. A reader that meets a gap ([`LeafCache::gap`]) reads the
//! B-tree, and may hand the interval it has read to [`LeafCache::insert`].
//!
//! ```text
//! index      -- fences: 8 bytes of each chunk's low --        chunk chunk chunk …
//! chunk      -- fences: 8 bytes of each block's low --        block block block … (up to 128)
//! block      [low, high)   slots: 4 bytes of each key | offset      entries, side by side
//! ```
//!
//! A point get loads one atomic pointer, searches two sorted arrays of integers that stay in the
//! processor's caches, counts the slots of one block that are smaller, and compares one key. That is
//! about two cache misses in main memory: slots and entry. Prefixes are taken after what all
//! keys of the array have in common, so that keys like `user:0000017` do not collide.
//!
//! # Versions
//!
//! A cache belongs to one version of one tree. [`LeafCache::apply`] derives the cache of the next
//! version by merging a checkpoint's changes into the blocks they touch; it shares all others, and
//! whole chunks of them, with the cache it came from, which stays valid for readers of the old
//! version. A change of a key in a gap is dropped: nothing was known there, nothing is known now.
//! Blocks that grew are split, tiny neighbours are joined.
//!
//! # Memory
//!
//! All caches that share a [`CacheBudget`] count every block there, allocator overhead included,
//! from its creation until the last version that holds it is dropped. [`CacheBudget::should_admit`]
//! tells a reader whether to build a block from what it has read: always while there is room, then
//! one time in eight, so that a scan of everything does not replace what is in use. `insert` evicts
//! from its own cache what exceeds the budget, by CLOCK: a hand walks the blocks, spares those that
//! were of use since its last visit, and evicts the others. A cache that is not inserted to keeps
//! its blocks: whoever owns several calls [`LeafCache::evict_to_budget`] on the largest now and then.
//!
//! Values handed out share a block's memory only where that is said; they keep it allocated, and
//! not counted, for as long as they live.
//!
//! # Invariants
//!
//! Blocks are sorted and disjoint; a block's keys are sorted and in its interval; charges equal
//! memory. See [`LeafCache::check_invariants`].
//!
//! # Not here
//!
//! Reading the B-tree, and knowing whether a block read from it belongs to this version: an
//! `insert` into a cache must come from the B-tree at that cache's version, never a newer one. A
//! block inserted into a cache after `apply` began deriving its successor is not in the successor;
//! it is read again when missed.

mod block;
mod index;
mod merge;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

pub use block::{Block, BlockBuilder, ValueRef};
use index::{Index, IndexBuilder, Place};

use crate::IVec;

/// [`LeafCache::get`] copies values up to this length, so that a reader who keeps a value does not
/// keep a block.
const COPY_UP_TO: usize = 1024;

/// How many bytes the blocks of several caches may take together.
pub struct CacheBudget {
    limit: AtomicUsize,
    used: AtomicUsize,
    refusals: AtomicUsize,
}

impl CacheBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<CacheBudget> {
        let (used, refusals) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Arc::new(CacheBudget { limit: AtomicUsize::new(limit), used, refusals })
    }

    /// Bytes taken by blocks now.
    pub fn used(&self) -> usize {
        self.used.load(Relaxed)
    }

    /// Bytes that may be taken.
    pub fn limit(&self) -> usize {
        self.limit.load(Relaxed)
    }

    /// Changes the limit. A lower one takes effect with the next evictions.
    pub fn set_limit(&self, limit: usize) {
        self.limit.store(limit, Relaxed);
    }

    /// Whether it is worth building a block from what was just read from the B-tree.
    pub fn should_admit(&self) -> bool {
        let limit = self.limit();
        // The last sixteenth fills slowly: evictions stop at the limit, so that a cache that is
        // full is most often found just below it.
        self.used() < limit - limit / 16 || (limit > 0 && self.refusals.fetch_add(1, Relaxed) % 8 == 7)
    }

    /// Bytes taken beyond the limit.
    pub fn excess(&self) -> usize {
        self.used().saturating_sub(self.limit())
    }

    fn take(&self, bytes: usize) {
        self.used.fetch_add(bytes, Relaxed);
    }

    fn release(&self, bytes: usize) {
        let before = self.used.fetch_sub(bytes, Relaxed);
        assert!(before >= bytes, "{bytes} bytes given back of {before} taken");
    }
}

impl fmt::Debug for CacheBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CacheBudget {{ {} of {} bytes }}", self.used(), self.limit())
    }
}

/// What a cache knows of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup<T = IVec> {
    /// The key exists.
    Found {
        /// The sequence of the commit that wrote it.
        version: u64,
        /// Its value, or what was asked of it.
        value: T,
    },
    /// The key does not exist.
    Absent,
    /// The key may exist: ask the B-tree.
    Unknown,
}

/// Where nothing is cached: keys from `low` (inclusive; empty for the beginning of the key space) up
/// to `high` (exclusive; `None` for its end).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gap {
    /// The first key.
    pub low: IVec,
    /// The first key beyond.
    pub high: Option<IVec>,
}

/// The clean contents of one tree at one version, as far as they are cached. See the
/// [module](self).
pub struct LeafCache {
    budget: Arc<CacheBudget>,
    index: ArcSwap<Index>,
    /// Held by whoever replaces the index. Holds where the CLOCK hand is: the next block to look at
    /// is the first one from this key on.
    hand: Mutex<IVec>,
}

impl LeafCache {
    /// A cache that knows nothing.
    pub fn new(budget: Arc<CacheBudget>) -> LeafCache {
        LeafCache::with_index(budget, Index::new(Vec::new()), IVec::new())
    }

    /// The cache of a tree that is known to be empty.
    pub fn new_empty_tree(budget: Arc<CacheBudget>) -> LeafCache {
        let cache = LeafCache::new(budget);
        cache.insert(BlockBuilder::new(IVec::new()).finish(None));
        cache
    }

    fn with_index(budget: Arc<CacheBudget>, index: Index, hand: IVec) -> LeafCache {
        LeafCache { budget, index: ArcSwap::from_pointee(index), hand: Mutex::new(hand) }
    }

    #[inline]
    fn find<T>(&self, key: &[u8], found: impl FnOnce(&Block, usize) -> (u64, T)) -> Lookup<T> {
        let index = self.index.load();
        let Some(block) = index.candidate(key) else { return Lookup::Unknown };
        let (position, exists) = block.search(key);
        if !exists && !block.ends_above(key) {
            return Lookup::Unknown;
        }
        block.touch();
        if !exists {
            return Lookup::Absent;
        }
        let (version, value) = found(block, position);
        Lookup::Found { version, value }
    }

    /// A key's version and value. A value longer than 1 KiB shares the cache's memory.
    #[inline]
    pub fn get(&self, key: &[u8]) -> Lookup {
        self.find(key, |block, position| block.detached_value(position, COPY_UP_TO))
    }

    /// A key's version.
    pub fn get_version(&self, key: &[u8]) -> Lookup<()> {
        self.find(key, |block, position| (block.version(position), ()))
    }

    /// Whether a key exists, if that is known.
    pub fn contains(&self, key: &[u8]) -> Option<bool> {
        match self.get_version(key) {
            Lookup::Found { .. } => Some(true),
            Lookup::Absent => Some(false),
            Lookup::Unknown => None,
        }
    }

    /// What `read` makes of a key's value, without a copy.
    pub fn read<T>(&self, key: &[u8], read: impl FnOnce(&[u8]) -> T) -> Lookup<T> {
        self.find(key, |block, position| {
            let (version, value) = block.version_and_value(position);
            (version, read(value))
        })
    }

    /// The block whose interval `key` is in. A scan goes on at the block's end.
    pub fn block_at(&self, key: &[u8]) -> Option<Block> {
        let index = self.index.load();
        let block = index.candidate(key).filter(|block| block.ends_above(key))?;
        block.touch();
        Some(block.clone())
    }

    /// The block whose interval the keys just below `key` are in; `None` stands for the end of the
    /// key space. A reverse scan goes on at the block's beginning; it ends at the empty key.
    pub fn block_before(&self, key: Option<&[u8]>) -> Option<Block> {
        let index = self.index.load();
        let block = match key {
            None => index.chunks().last()?.last(),
            Some(key) => {
                let place = index.place(key)?;
                // The block that begins at the key has nothing below it.
                let place = if index.at(place).low() == key { index.previous(place)? } else { place };
                index.at(place)
            }
        };
        let reaches = match (block.high(), key) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(high), Some(key)) => key <= &high[..],
        };
        reaches.then(|| {
            block.touch();
            block.clone()
        })
    }

    /// The gap that `key` is in, or `None` if a block covers it.
    pub fn gap(&self, key: &[u8]) -> Option<Gap> {
        let index = self.index.load();
        let place = index.place(key);
        let low = match place.map(|place| index.at(place)) {
            None => IVec::new(),
            Some(block) if block.ends_above(key) => return None,
            Some(block) => block.high().expect("it ends below a key").clone(),
        };
        let high = index.next(place).map(|place| index.at(place).low().clone());
        Some(Gap { low, high })
    }

    /// Adds a block read from the B-tree at this cache's version. If any of its interval is
    /// covered already (another reader was faster), it is dropped and the answer is `false`.
    /// Then evicts, if the budget is exceeded, a few blocks.
    pub fn insert(&self, block: Block) -> bool {
        let mut hand = self.hand.lock();
        let index = self.index.load_full();
        let predecessor = index.place(block.low());
        if predecessor.is_some_and(|place| index.at(place).ends_above(block.low())) {
            return false;
        }
        let successor = index.next(predecessor).map(|place| index.at(place).low());
        if successor.is_some_and(|low| block.ends_above(low)) {
            return false;
        }
        block.charge(&self.budget);
        let bytes = block.charged();
        self.index.store(Arc::new(index.with(predecessor, block)));
        // Not all of the excess: some of it may be held by versions about to be dropped, while a
        // checkpoint replaces them.
        let excess = self.budget.excess().min(bytes.saturating_mul(2));
        if excess > 0 {
            self.evict(excess, &mut hand);
        }
        true
    }

    /// The cache of the next version: this one's blocks with `changes` merged in, which are sorted
    /// by key, each key once; `Some` puts a version and a value, `None` removes. Takes time in
    /// proportion to the blocks that change, and copies one pointer for every 100 other blocks.
    ///
    /// # Panics
    /// If the changes are not sorted.
    pub fn apply<'a, V: Into<ValueRef<'a>>>(
        &self,
        changes: impl Iterator<Item = (&'a [u8], Option<(u64, V)>)>,
    ) -> LeafCache {
        let index = self.index.load_full();
        let merged = merge::merge(&index, &self.budget, changes);
        LeafCache::with_index(Arc::clone(&self.budget), merged, self.hand.lock().clone())
    }

    /// Bytes taken by this cache's blocks, including those it shares with other versions.
    pub fn bytes(&self) -> usize {
        self.index.load().bytes()
    }

    /// The budget that the cache's blocks are counted in.
    pub fn budget(&self) -> &Arc<CacheBudget> {
        &self.budget
    }

    /// Evicts as many bytes as the budget is exceeded by, if this cache has as many. That need not
    /// free them at once: other versions and readers may hold the same blocks.
    pub fn evict_to_budget(&self) {
        let mut hand = self.hand.lock();
        self.evict(self.budget.excess(), &mut hand);
    }

    /// Evicts blocks of `wanted` bytes together, or all.
    fn evict(&self, wanted: usize, hand: &mut IVec) {
        let index = self.index.load_full();
        let wanted = wanted.min(index.bytes());
        if wanted == 0 {
            return;
        }
        let mut victims = BTreeSet::new();
        let mut freed = 0;
        let mut place = index.place(hand);
        // The hand may be where its block was joined to one before: begin behind that one.
        if place.is_none_or(|at| index.at(at).low() != hand) {
            place = index.next(place);
        }
        // The first round may do no more than clear the marks; readers may set some again
        // meanwhile, but a third round takes what it meets.
        let blocks: usize = index.chunks().iter().map(|chunk| chunk.blocks().len()).sum();
        for step in 0..3 * blocks {
            let Some(at) = place.or_else(|| index.next(None)) else { break };
            let block = index.at(at);
            let spared = block.take_referenced() && step < 2 * blocks;
            if !spared && victims.insert(at) {
                freed += block.charged();
            }
            place = index.next(Some(at));
            if freed >= wanted || victims.len() == blocks {
                break;
            }
        }
        *hand = place.map_or_else(IVec::new, |at| index.at(at).low().clone());

        let mut builder = IndexBuilder::with_capacity(index.chunks().len());
        let mut victims = victims.into_iter().peekable();
        for (at, chunk) in index.chunks().iter().enumerate() {
            if victims.peek().is_none_or(|victim| victim.chunk != at) {
                builder.share(chunk);
                continue;
            }
            for (position, block) in chunk.blocks().iter().enumerate() {
                let place = Place { chunk: at, block: position };
                if victims.next_if_eq(&place).is_none() {
                    builder.push(block.clone());
                }
            }
        }
        self.index.store(Arc::new(builder.finish()));
    }

    /// # Panics
    /// If the cache is not what its documentation says.
    pub fn check_invariants(&self) {
        let index = self.index.load_full();
        index.check_invariants();
        assert!(index.blocks().all(|block| block.charged() > 0), "every block is counted");
        assert!(self.budget.used() >= index.bytes(), "{:?} with {} here", self.budget, index.bytes());
    }
}

impl fmt::Debug for LeafCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let index = self.index.load();
        let blocks = index.blocks().count();
        write!(f, "LeafCache {{ {blocks} blocks, {} bytes }}", index.bytes())
    }
}
