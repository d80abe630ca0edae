//! The overlay: writes since the last checkpoint, in memory, in several versions.
//!
//! # Promise
//! A reader at sequence `S` sees exactly the commits up to `S`, however many follow while it
//! reads. Readers that do not care for a fixed sequence see the newest commit.
//!
//! # Idea
//! One ordered map per tree, all behind one reader-writer lock: a commit takes the lock once and
//! applies all its effects, so no reader meets half a commit, across trees either. Each key has
//! its newest version in the map; an older one is kept in a chain behind it only while some
//! registered snapshot needs it ([`Readers`]), so without snapshots a key overwritten a million
//! times costs what one costs.
//!
//! An overlay is *active* (the newest, changed by commits) or *frozen* (immutable, being written
//! into the B-tree by a checkpoint). Both are this type; a frozen one is no longer written.
//!
//! # Why not a persistent map, or a skip list
//! `imbl::OrdMap` makes snapshots free and each insert 3.5 times as dear; skip lists scan an
//! order of magnitude slower. Snapshots are rarer than writes here, so they pay (a registration
//! under a mutex), not the writes.
//!
//! # How many keys a tree has
//! is kept as a difference to the layers below, for each sequence at which a snapshot may ask. A put
//! that did not look whether its key is new ([`Effect::Put`]) is counted at once if this overlay
//! knows the key, or there is nothing below, as in a first load. If not, the key is remembered as *uncounted*, and looked up below
//! when somebody asks for a length ([`Overlay::count`]): the first who asks, at the latest the
//! checkpoint. Each such put is looked up at most once, outside of all locks that writers take.
//!
//! What is below must then still be what it was under that put. It is: nothing is changed below an
//! overlay but by folding the one under it, which changes no answer; and a checkpoint counts an
//! overlay before it folds the first slice of it. Recovery finds a B-tree with slices of an
//! unfinished checkpoint in it; [`Overlay::set_lengths`] says how it counts.
//!
//! # Clearing a tree
//! is O(1) for what lies below: the tree's overlay remembers the sequence of its first clear, and
//! readers at or after it do not look further down. A tree made in this overlay starts cleared.

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use crate::evaluate::{Effect, Versioned};
use crate::sorted_map::SortedMap;
use crate::{IVec, TreeId};

/// What an entry costs beyond its bytes: its 90-byte place in a three-quarters full leaf of the map,
/// and its share of inner nodes.
const ENTRY_OVERHEAD: usize = 124;

/// What a layer knows of a key.
#[derive(Debug)]
pub(crate) enum Found<T> {
    /// It has this value.
    Value(T),
    /// It is absent, whatever lower layers hold.
    Absent,
    /// Nothing: ask the layer below.
    Unknown,
}

/// One version of one key, newest first in a chain.
#[derive(Debug)]
struct Version {
    sequence: u64,
    /// `None`: removed.
    value: Option<IVec>,
    older: Option<Box<Version>>,
}

/// What an overlay knows of the number of keys of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Length {
    /// So many more than the layers below have.
    More(i64),
    /// So many, whatever is below.
    All(u64),
}

/// A key that was put when nobody looked whether it is new: before the first clear of its tree, for
/// after it this overlay knows.
#[derive(Debug)]
struct Uncounted {
    /// The commit that put it.
    from: u64,
    key: IVec,
}

/// The number of keys of a tree, for each sequence at which a snapshot may ask: up to the first
/// clear as a difference to what is below.
#[derive(Debug)]
struct Lengths(Vec<(u64, i64)>);

impl Lengths {
    fn current(&self) -> i64 {
        self.0.last().expect("a tree's length is set when its overlay is made").1
    }

    fn at(&self, sequence: u64) -> Option<i64> {
        self.0.iter().rev().find(|(from, _)| *from <= sequence).map(|(_, length)| *length)
    }

    fn set(&mut self, sequence: u64, length: i64, bounds: &ReaderBounds<'_>) {
        let last = self.0.last_mut().expect("a tree's length is set when its overlay is made");
        if last.0 == sequence || !bounds.need(last.0, sequence) {
            *last = (sequence, length);
        } else {
            self.0.push((sequence, length));
            if self.0.len() >= 16 && self.0.len().is_power_of_two() {
                self.prune(bounds);
            }
        }
        if self.0.len() > 1 && bounds.newest == 0 {
            let last = self.0.len() - 1;
            self.0.drain(..last);
        }
    }
}

impl Lengths {
    /// Counts a key that was put by commit `from` and, at the latest, cleared away by commit `until`.
    fn count(&mut self, from: u64, until: u64, bounds: &ReaderBounds<'_>) {
        let mut first = self.0.partition_point(|(sequence, _)| *sequence < from);
        if self.0.get(first).is_none_or(|(sequence, _)| *sequence > from) && first > 0 {
            // Readers before `from` go on seeing what they saw.
            let before = self.0[first - 1];
            if bounds.newest == 0 && first == self.0.len() {
                first -= 1;
                self.0[first].0 = from;
            } else {
                self.0.insert(first, (from, before.1));
            }
        }
        for (_, length) in self.0[first..].iter_mut().take_while(|(sequence, _)| *sequence < until) {
            *length += 1;
        }
        if self.0.len() >= 16 && self.0.len().is_power_of_two() {
            self.prune(bounds);
        }
    }

    /// Drops what no reader needs any more.
    #[cold]
    fn prune(&mut self, bounds: &ReaderBounds<'_>) {
        let mut kept: Vec<_> =
            self.0.windows(2).filter(|pair| bounds.need(pair[0].0, pair[1].0)).map(|pair| pair[0]).collect();
        kept.extend(self.0.last());
        self.0 = kept;
    }
}

#[derive(Debug)]
struct TreeOverlay {
    /// The first sequence at which all that is below was cleared away.
    cleared: Option<u64>,
    lengths: Lengths,
    /// The layers below hold no key of the tree: what this overlay does not know is not there.
    alone: bool,
    uncounted: Vec<Uncounted>,
    /// Somebody is looking up what was uncounted.
    is_counting: bool,
    entries: SortedMap<Version>,
}

/// Registered readers: which sequences must stay readable.
///
/// The newest and oldest are kept in atomics, which a commit reads under the overlay's write
/// lock; registration happens under its read lock, so a commit never misses one.
#[derive(Debug, Default)]
pub(crate) struct Readers {
    open: Mutex<BTreeMap<u64, usize>>,
    newest: AtomicU64,
    oldest: AtomicU64,
}

/// The oldest and newest registered sequence; 0: none.
struct ReaderBounds<'a> {
    readers: &'a Readers,
    oldest: u64,
    newest: u64,
    /// All registered sequences in order, once they are needed.
    all: OnceCell<SmallVec<[u64; 8]>>,
}

impl ReaderBounds<'_> {
    /// Whether a reader may need a version of `sequence` that `superseded_by` replaced.
    ///
    /// Exact, or each of many transactions beside one long reader would leave a version behind.
    fn need(&self, sequence: u64, superseded_by: u64) -> bool {
        if self.newest < sequence || self.oldest >= superseded_by {
            return false;
        }
        if self.oldest == self.newest {
            return self.newest != 0;
        }
        // Readers may leave meanwhile, but none comes: the overlay is locked.
        let all = self.all.get_or_init(|| self.readers.open.lock().keys().copied().collect());
        let first = all.partition_point(|reader| *reader < sequence);
        all.get(first).is_some_and(|reader| *reader < superseded_by)
    }
}

impl Readers {
    fn bounds(&self) -> ReaderBounds<'_> {
        ReaderBounds {
            readers: self,
            all: OnceCell::new(),
            oldest: self.oldest.load(Ordering::Acquire),
            newest: self.newest.load(Ordering::Acquire),
        }
    }

    /// Registers a reader; call with the active overlay's lock held for reading.
    ///
    /// Sequence 0 (nothing committed) needs no older versions: everything is newer, and reading
    /// at 0 is answered by the sequence on each version, so it is registered as 1.
    fn register(&self, sequence: u64) {
        let mut open = self.open.lock();
        *open.entry(sequence.max(1)).or_insert(0) += 1;
        self.publish(&open);
    }

    /// Takes back one registration.
    pub(crate) fn unregister(&self, sequence: u64) {
        let sequence = sequence.max(1);
        let mut open = self.open.lock();
        let count = open.get_mut(&sequence).expect("a reader that leaves was registered");
        *count -= 1;
        if *count == 0 {
            open.remove(&sequence);
        }
        self.publish(&open);
    }

    /// How many readers are registered, and the oldest sequence among them.
    pub(crate) fn summary(&self) -> (usize, Option<u64>) {
        let open = self.open.lock();
        (open.values().sum(), open.keys().next().copied())
    }

    fn publish(&self, open: &BTreeMap<u64, usize>) {
        let oldest = open.first_key_value().map_or(0, |(sequence, _)| *sequence);
        let newest = open.last_key_value().map_or(0, |(sequence, _)| *sequence);
        self.oldest.store(oldest, Ordering::Release);
        self.newest.store(newest, Ordering::Release);
    }
}

/// Writes since a checkpoint; see the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    trees: RwLock<BTreeMap<TreeId, TreeOverlay>>,
    bytes: AtomicUsize,
    /// The last sequence applied.
    sequence: AtomicU64,
    /// How many keys are uncounted, those included that somebody is looking up.
    uncounted: AtomicUsize,
    /// Held by who looks them up.
    counting: Mutex<()>,
}

impl Overlay {
    /// An empty overlay on top of all commits up to `sequence`.
    pub(crate) fn new(sequence: u64) -> Overlay {
        Overlay { sequence: AtomicU64::new(sequence), ..Overlay::default() }
    }

    /// Estimated memory.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Whether nothing was ever applied.
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes() == 0
    }

    /// The last sequence applied.
    pub(crate) fn sequence(&self) -> u64 {
        self.sequence.load(Ordering::Acquire)
    }

    /// Registers a reader of the newest commit and returns its sequence.
    ///
    /// `load` gets what else the reader needs as of that commit; see [`Overlay::apply`].
    pub(crate) fn register_reader<T>(&self, readers: &Readers, load: impl FnOnce() -> T) -> (u64, T) {
        let _guard = self.trees.read();
        let sequence = self.sequence();
        readers.register(sequence);
        (sequence, load())
    }

    /// Applies the effects of one commit, visible at once and together.
    ///
    /// `is_empty_below` tells of a tree whether the layers below are known to hold no key of it. `publish` is called while no reader can register: what it stores belongs to this commit, and whoever
    /// sees the one sees the other.
    pub(crate) fn apply(
        &self,
        sequence: u64,
        effects: &[Effect],
        readers: &Readers,
        is_empty_below: impl Fn(TreeId) -> bool,
        publish: impl FnOnce(),
    ) {
        let mut trees = self.trees.write();
        let bounds = readers.bounds();
        let (mut bytes, mut uncounted) = (0isize, 0isize);
        let mut current: Option<(TreeId, &mut TreeOverlay)> = None;
        for effect in effects {
            let (Effect::Put { tree, .. }
            | Effect::Remove { tree, .. }
            | Effect::Clear { tree }
            | Effect::CreateTree { id: tree, .. }
            | Effect::DropTree { id: tree }) = effect
            else {
                continue;
            };
            if current.as_ref().is_none_or(|(id, _)| id != tree) {
                let overlay = trees.entry(*tree).or_insert_with(|| {
                    bytes += 256;
                    TreeOverlay {
                        cleared: None,
                        lengths: Lengths(vec![(0, 0)]),
                        alone: is_empty_below(*tree),
                        uncounted: Vec::new(),
                        is_counting: false,
                        entries: SortedMap::new(),
                    }
                });
                current = Some((*tree, overlay));
            }
            let (_, tree) = current.as_mut().expect("set above");
            let before = tree.uncounted.len();
            bytes += tree.apply(sequence, effect, &bounds);
            uncounted += tree.uncounted.len() as isize - before as isize;
        }
        // Never reported empty once something was applied.
        let before = self.bytes.load(Ordering::Relaxed) as isize;
        self.bytes.store((before + bytes).max(1) as usize, Ordering::Relaxed);
        if uncounted != 0 {
            self.uncounted.fetch_add(uncounted as usize, Ordering::Relaxed);
        }
        self.sequence.store(sequence, Ordering::Release);
        publish();
    }

    /// The newest value of a key.
    #[inline]
    pub(crate) fn get_latest(&self, tree: TreeId, key: &[u8]) -> Found<Versioned> {
        if self.is_empty() {
            return Found::Unknown;
        }
        let trees = self.trees.read();
        let Some(tree) = trees.get(&tree) else { return Found::Unknown };
        match tree.entries.get(key) {
            Some(Version { sequence, value: Some(value), .. }) => {
                Found::Value(Versioned { version: *sequence, value: value.clone() })
            }
            Some(_) => Found::Absent,
            None if tree.cleared.is_some() => Found::Absent,
            None => Found::Unknown,
        }
    }

    /// The value of a key as of `sequence`.
    pub(crate) fn get_at(&self, tree: TreeId, key: &[u8], sequence: u64) -> Found<Versioned> {
        if self.is_empty() {
            return Found::Unknown;
        }
        let trees = self.trees.read();
        let Some(tree) = trees.get(&tree) else { return Found::Unknown };
        match tree.entries.get(key).and_then(|version| version.at(sequence)) {
            Some(Version { sequence, value: Some(value), .. }) => {
                Found::Value(Versioned { version: *sequence, value: value.clone() })
            }
            Some(_) => Found::Absent,
            None if tree.cleared_at(sequence) => Found::Absent,
            None => Found::Unknown,
        }
    }

    /// The number of keys of a tree as of `sequence`. What is uncounted is left out; see
    /// [`Overlay::count`].
    pub(crate) fn length_at(&self, tree: TreeId, sequence: u64) -> Length {
        if self.is_empty() {
            return Length::More(0);
        }
        self.trees.read().get(&tree).map_or(Length::More(0), |tree| tree.length_at(sequence))
    }

    /// As [`Overlay::length_at`]; but what is uncounted is taken for new keys, all of it.
    pub(crate) fn about_length_at(&self, tree: TreeId, sequence: u64) -> Length {
        if self.is_empty() {
            return Length::More(0);
        }
        let trees = self.trees.read();
        let Some(tree) = trees.get(&tree) else { return Length::More(0) };
        match tree.length_at(sequence) {
            Length::More(some) => Length::More(some + tree.uncounted.len() as i64),
            all @ Length::All(_) => all,
        }
    }

    /// The number of keys of a tree as of the newest commit; `None` if some of its own are uncounted.
    pub(crate) fn latest_length(&self, tree: TreeId) -> Option<Length> {
        if self.is_empty() {
            return Some(Length::More(0));
        }
        let trees = self.trees.read();
        let Some(tree) = trees.get(&tree) else { return Some(Length::More(0)) };
        let is_counted = tree.uncounted.is_empty() && !tree.is_counting;
        is_counted.then(|| tree.length_at(u64::MAX))
    }

    /// Looks up all uncounted keys of commits that a reader registered before this call can see.
    ///
    /// `exists_below` tells whether the layers below hold a key. On an error the keys stay
    /// uncounted.
    pub(crate) fn count(
        &self,
        readers: &Readers,
        exists_below: impl Fn(TreeId, &[u8]) -> crate::Result<bool>,
    ) -> crate::Result<()> {
        if self.uncounted.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        let _counting = self.counting.lock();
        let mut taken: Vec<(TreeId, Vec<Uncounted>)> = Vec::new();
        for (id, tree) in &mut *self.trees.write() {
            if !tree.uncounted.is_empty() {
                taken.push((*id, std::mem::take(&mut tree.uncounted)));
                tree.is_counting = true;
            }
        }
        let mut fresh: Vec<(TreeId, Vec<u64>)> = Vec::new();
        let looked_up = taken.iter_mut().try_for_each(|(id, keys)| {
            // In order, neighbours are found in the same place.
            keys.sort_unstable_by(|one, other| one.key.cmp(&other.key));
            let mut new = Vec::new();
            for Uncounted { from, key } in keys.iter() {
                if !exists_below(*id, key)? {
                    new.push(*from);
                }
            }
            fresh.push((*id, new));
            Ok(())
        });
        let mut trees = self.trees.write();
        if let Err(error) = looked_up {
            for (id, keys) in taken {
                let tree = trees.get_mut(&id).expect("no tree leaves an overlay");
                tree.uncounted.extend(keys);
                tree.is_counting = false;
            }
            return Err(error);
        }
        let bounds = readers.bounds();
        for (id, new) in fresh {
            let tree = trees.get_mut(&id).expect("no tree leaves an overlay");
            let until = tree.cleared.unwrap_or(u64::MAX);
            for from in new {
                tree.lengths.count(from, until, &bounds);
            }
            tree.is_counting = false;
        }
        let counted: usize = taken.iter().map(|(_, keys)| keys.len()).sum();
        self.uncounted.fetch_sub(counted, Ordering::Release);
        Ok(())
    }

    /// Makes the number of keys of each tree as of the last commit known: the layers below have
    /// `length(tree).0` keys of it, and all of them together `length(tree).1`.
    ///
    /// For recovery, which replays commits over a B-tree that holds some of them already, so that
    /// looking there whether a key is new would tell nothing. The unfinished checkpoint that put
    /// them there had recorded the lengths before.
    pub(crate) fn set_lengths(&self, length: impl Fn(TreeId) -> (u64, u64)) {
        for (id, tree) in &mut *self.trees.write() {
            let (below, all) = length(*id);
            let below = if tree.cleared.is_some() { 0 } else { below as i64 };
            tree.lengths = Lengths(vec![(0, all as i64 - below)]);
            self.uncounted.fetch_sub(tree.uncounted.len(), Ordering::Relaxed);
            tree.uncounted.clear();
        }
    }

    /// Whether the layers below hold nothing for `tree` that a reader at `sequence` may see.
    pub(crate) fn hides_below(&self, tree: TreeId, sequence: u64) -> bool {
        !self.is_empty() && self.trees.read().get(&tree).is_some_and(|tree| tree.cleared_at(sequence))
    }

    /// Looks at up to `limit` keys of the range in order (or in reverse) and appends those that a
    /// reader at `sequence` can see to `out` (`None`: removed). Returns the last key looked at, or
    /// `None` if the range is exhausted.
    ///
    /// The limit is on keys looked at, not on keys found: a long run of versions that are too new
    /// must not hold the lock for ever either.
    pub(crate) fn collect(
        &self,
        tree: TreeId,
        range: (Bound<&[u8]>, Bound<&[u8]>),
        sequence: u64,
        reverse: bool,
        limit: usize,
        out: &mut Vec<(IVec, Option<Versioned>)>,
    ) -> Option<IVec> {
        if self.is_empty() || is_empty_range(range) {
            return None;
        }
        let trees = self.trees.read();
        let mut entries = trees.get(&tree)?.entries.range(range);
        let mut last = None;
        for _ in 0..limit {
            let next = if reverse { entries.next_back() } else { entries.next() };
            let (key, version) = next?;
            if let Some(version) = version.at(sequence) {
                let value = version
                    .value
                    .as_ref()
                    .map(|value| Versioned { version: version.sequence, value: value.clone() });
                out.push((key.clone(), value));
            }
            last = Some(key);
        }
        last.cloned()
    }

    /// Calls `each` with every tree that was touched: its number, whether what is below it was
    /// cleared away, and its newest length without what is uncounted.
    pub(crate) fn for_each_tree(&self, mut each: impl FnMut(TreeId, bool, Length)) {
        for (id, tree) in &*self.trees.read() {
            each(*id, tree.cleared.is_some(), tree.length_at(u64::MAX));
        }
    }

    /// The newest state of up to `limit` keys of `tree` after `after`, in order. For a frozen
    /// overlay, whose newest state is its only future.
    pub(crate) fn slice(
        &self,
        tree: TreeId,
        after: Option<&IVec>,
        limit: usize,
        out: &mut Vec<(IVec, Option<Versioned>)>,
    ) {
        let low = after.map_or(Bound::Unbounded, |key| Bound::Excluded(&key[..]));
        self.collect(tree, (low, Bound::Unbounded), u64::MAX, false, limit, out);
    }

    /// Panics if something that always holds does not.
    pub(crate) fn check_invariants(&self) {
        let sequence = self.sequence();
        let _counting = self.counting.lock();
        let trees = self.trees.read();
        let uncounted: usize = trees.values().map(|tree| tree.uncounted.len()).sum();
        assert_eq!(uncounted, self.uncounted.load(Ordering::Relaxed), "uncounted keys");
        for (id, tree) in &*trees {
            assert!(!tree.is_counting, "nobody is counting the keys of {id:?}");
            for (key, version) in tree.entries.iter() {
                let mut newer = sequence + 1;
                let mut next = Some(version);
                while let Some(version) = next {
                    assert!(
                        version.sequence < newer,
                        "versions of {key:?} in tree {id:?} are out of order: {} before {newer}",
                        version.sequence
                    );
                    newer = version.sequence;
                    next = version.older.as_deref();
                }
            }
            assert!(tree.lengths.0.is_sorted_by_key(|(from, _)| *from), "lengths of {id:?} are out of order");
        }
    }
}

/// Whether no key can be in the range.
pub(crate) fn is_empty_range(range: (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    match range {
        // No key is below the empty one.
        (_, Bound::Excluded([])) => true,
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
            low >= high
        }
    }
}

impl Version {
    /// The newest version that a reader at `sequence` sees.
    fn at(&self, sequence: u64) -> Option<&Version> {
        let mut version = self;
        while version.sequence > sequence {
            version = version.older.as_deref()?;
        }
        Some(version)
    }

    fn heap_size(&self) -> usize {
        self.value.as_ref().map_or(0, IVec::heap_size)
    }

    /// Drops the versions of the chain that no reader needs; returns the bytes freed.
    fn prune(&mut self, bounds: &ReaderBounds<'_>) -> usize {
        let mut freed = 0;
        let mut newer = self.sequence;
        let mut slot = &mut self.older;
        while slot.is_some() {
            let version = slot.as_ref().expect("checked by the loop");
            if bounds.need(version.sequence, newer) {
                let version = slot.as_mut().expect("checked by the loop");
                newer = version.sequence;
                slot = &mut version.older;
            } else {
                let mut gone = slot.take().expect("checked by the loop");
                freed += gone.heap_size() + std::mem::size_of::<Version>();
                *slot = gone.older.take();
            }
        }
        freed
    }
}

impl Drop for Version {
    fn drop(&mut self) {
        // One by one: dropping a long chain recursively would overflow the stack.
        let mut next = self.older.take();
        while let Some(mut version) = next {
            next = version.older.take();
        }
    }
}

impl TreeOverlay {
    fn cleared_at(&self, sequence: u64) -> bool {
        self.cleared.is_some_and(|cleared| cleared <= sequence)
    }

    fn length_at(&self, sequence: u64) -> Length {
        // Before the first record nothing was done here.
        let length = self.lengths.at(sequence).unwrap_or(0);
        if self.cleared_at(sequence) {
            Length::All(u64::try_from(length).expect("no tree has less than no keys"))
        } else {
            Length::More(length)
        }
    }

    /// Applies one effect and returns by how much the memory grew.
    fn apply(&mut self, sequence: u64, effect: &Effect, bounds: &ReaderBounds<'_>) -> isize {
        match effect {
            Effect::Put { key, value, fresh, .. } => {
                if *fresh == Some(true) {
                    let length = self.lengths.current() + 1;
                    self.lengths.set(sequence, length, bounds);
                }
                // What is part of a block of the leaf cache would keep all of it, uncounted.
                self.set(sequence, key, Some(value.compact()), bounds, fresh.is_none())
            }
            Effect::Remove { key, .. } => {
                let length = self.lengths.current() - 1;
                assert!(
                    length >= 0 || self.cleared.is_none(),
                    "key {key:?} is removed from a tree of length 0"
                );
                self.lengths.set(sequence, length, bounds);
                self.set(sequence, key, None, bounds, false)
            }
            Effect::Clear { .. } | Effect::CreateTree { .. } | Effect::DropTree { .. } => {
                self.lengths.set(sequence, 0, bounds);
                self.cleared.get_or_insert(sequence);
                if bounds.newest == 0 {
                    self.uncounted.clear();
                    let bytes: usize =
                        self.entries.iter().map(|(key, version)| entry_size(key, version)).sum();
                    self.entries = SortedMap::new();
                    return -(bytes as isize);
                }
                let mut bytes = 0;
                for version in self.entries.values_mut() {
                    bytes += version.replace(sequence, None, bounds);
                }
                bytes
            }
            Effect::SetNextId { .. } | Effect::Tell { .. } => 0,
        }
    }

    /// `counts`: the number of keys changes, too, if the key was absent.
    #[inline]
    fn set(
        &mut self,
        sequence: u64,
        key: &IVec,
        value: Option<IVec>,
        bounds: &ReaderBounds<'_>,
        counts: bool,
    ) -> isize {
        // The closures share the value: only one of them runs.
        let value = std::cell::Cell::new(value);
        let (bytes, fresh) = self.entries.upsert(
            key,
            |version| {
                let fresh = version.value.is_none();
                (version.replace(sequence, value.take(), bounds), Some(fresh))
            },
            || {
                let version = Version { sequence, value: value.take(), older: None };
                let bytes = entry_size(key, &version);
                (version, (bytes as isize, None))
            },
        );
        if !counts {
            return bytes;
        }
        let knows_all = self.alone || self.cleared.is_some();
        match fresh.or(knows_all.then_some(true)) {
            Some(true) => {
                let length = self.lengths.current() + 1;
                self.lengths.set(sequence, length, bounds);
                bytes
            }
            Some(false) => bytes,
            None => {
                let key = key.compact();
                let more = std::mem::size_of::<Uncounted>() + key.heap_size();
                self.uncounted.push(Uncounted { from: sequence, key });
                bytes + more as isize
            }
        }
    }
}

impl Version {
    /// Puts a newer version in front; returns by how much the memory grew.
    fn replace(&mut self, sequence: u64, value: Option<IVec>, bounds: &ReaderBounds<'_>) -> isize {
        let before = self.heap_size() as isize;
        let mut grown = 0;
        if self.sequence != sequence && bounds.need(self.sequence, sequence) {
            let older =
                Version { sequence: self.sequence, value: self.value.take(), older: self.older.take() };
            grown += before + std::mem::size_of::<Version>() as isize;
            self.older = Some(Box::new(older));
        }
        self.sequence = sequence;
        self.value = value;
        grown += self.heap_size() as isize - before;
        if self.older.is_some() {
            grown -= self.prune(bounds) as isize;
        }
        grown
    }
}

fn entry_size(key: &IVec, version: &Version) -> usize {
    ENTRY_OVERHEAD + key.heap_size() + version.heap_size()
}
