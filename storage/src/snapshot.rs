//! [`Snapshot`]: everything as of one commit, for as long as it is held; and ordered scans of it.
//!
//! A scan merges three sorted layers (active overlay, frozen overlay, B-tree) chunk by chunk: the
//! block of the B-tree at the scan's position says how far its knowledge goes, the overlays give
//! what they have in that stretch, newer layers win. Where the overlays are empty the block itself
//! is walked, without a copy. Both ends of a scan take chunks from the same middle, so a scan can
//! be consumed from both.
//!
//! A snapshot costs a registration; it keeps memory alive (older versions of keys overwritten
//! since) and, beyond the next checkpoint, pages of the B-tree's file. Do not hold one for ever.

use std::collections::VecDeque;
use std::ops::Bound;
use std::sync::Arc;

use crate::base::BaseTree;
use crate::engine::Shared;
use crate::evaluate::{Entry, Versioned};
use crate::leaf_cache::Block;
use crate::overlay::{Overlay, Readers, is_empty_range};
use crate::state::State;
use crate::{IVec, Result, TreeId, expiry, owned};

/// A consistent state of all trees, as of one commit, for as long as it is held. Cloning shares it.
///
/// It keeps memory alive (older versions of keys overwritten since) and, beyond the next
/// checkpoint, pages of the B-tree's file. Do not hold one for ever.
#[derive(Clone, Debug)]
pub struct Snapshot {
    registration: Arc<Registration>,
    /// Keys whose time is over at this time of the log are not shown.
    hide_ms: Option<u64>,
}

#[derive(Debug)]
struct Registration {
    state: Arc<State>,
    sequence: u64,
    readers: Arc<Readers>,
    /// Keeps the directory locked: the B-tree's pages must not be reused by the next opener.
    _keep: Arc<Shared>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.readers.unregister(self.sequence);
    }
}

impl Snapshot {
    /// A snapshot of `state`, whose active overlay's reader was registered at `sequence`.
    pub(crate) fn registered(
        state: Arc<State>,
        sequence: u64,
        readers: Arc<Readers>,
        keep: Arc<Shared>,
        hide_ms: Option<u64>,
    ) -> Snapshot {
        let registration = Arc::new(Registration { state, sequence, readers, _keep: keep });
        Snapshot { registration, hide_ms }
    }

    /// The same state with the keys that have expired and are not removed yet, as a copy needs it.
    #[must_use]
    pub fn with_expired(&self) -> Snapshot {
        Snapshot { registration: Arc::clone(&self.registration), hide_ms: None }
    }

    /// Whether there may be keys that have expired, are not removed yet, and are not shown.
    pub(crate) fn hides(&self) -> bool {
        self.hide_ms.is_some()
    }

    /// The last commit that it sees.
    pub fn sequence(&self) -> u64 {
        self.registration.sequence
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`Error::TreeNotFound`](crate::Error::TreeNotFound) if there was no such tree; damage found while reading.
    pub fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        let Registration { state, sequence, .. } = &*self.registration;
        state.require_tree(tree)?;
        let found = state.get_at(tree, key, *sequence)?;
        match (self.hide_ms, &found) {
            (Some(time_ms), Some(entry))
                if state.is_over_at(*sequence, tree, key, entry.version, time_ms)? =>
            {
                Ok(None)
            }
            _ => Ok(found),
        }
    }

    /// When a key expires, by the log's time in milliseconds since 1970; `Some(None)`: never; `None`: there
    /// is no such key.
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn expires(&self, tree: TreeId, key: &[u8]) -> Result<Option<Option<u64>>> {
        let Some(found) = self.get(tree, key)? else { return Ok(None) };
        let Registration { state, sequence, .. } = &*self.registration;
        let record = state.get_at(TreeId::EXPIRY, &expiry::record_key(tree, key), *sequence)?;
        expiry::expires(record.as_ref(), found.version).map(Some)
    }

    /// The entries of a range in key order, from both ends. Of a tree that there was not, the scan yields
    /// [`Error::TreeNotFound`](crate::Error::TreeNotFound), once; the database's own trees are there even before they are.
    pub fn range(&self, tree: TreeId, low: Bound<IVec>, high: Bound<IVec>) -> RangeIter {
        let mut iter = RangeIter::over(
            Arc::clone(&self.registration.state),
            self.registration.sequence,
            tree,
            (low, high),
        );
        iter.snapshot = Some(self.clone());
        iter.hide_ms = self.hide_ms.filter(|_| expiry::can_expire(tree));
        if !tree.is_system() && !iter.state.catalog.ids.contains_key(&tree) {
            iter.is_missing = true;
            // Of an empty range, too.
            iter.middle = Some((Bound::Unbounded, Bound::Unbounded));
        }
        iter
    }

    /// How many keys a tree has. O(1), but for the puts of batches, transactions and
    /// [`Command::Put`](crate::Command::Put): each of those is looked up once, by the first who asks
    /// after it or by the next checkpoint.
    ///
    /// # Errors
    /// [`Error::TreeNotFound`](crate::Error::TreeNotFound) if there was no such tree; damage found while looking up.
    pub fn len(&self, tree: TreeId) -> Result<u64> {
        self.registration.state.require_tree(tree)?;
        self.registration.state.length_at(&self.registration.readers, tree, self.registration.sequence)
    }

    /// About how many keys a tree has, without looking anything up: each put that nobody has looked at yet is taken for
    /// that of a new key.
    pub(crate) fn about_len(&self, tree: TreeId) -> u64 {
        self.registration.state.about_length_at(tree, self.registration.sequence)
    }

    /// The keys that die with a [session](crate::owned), and their trees.
    ///
    /// # Errors
    /// Damage or I/O errors met while reading.
    pub fn keys_of_sessions(&self) -> Result<Vec<(TreeId, IVec)>> {
        let mut keys = Vec::new();
        for ((tree, key), version) in owned::all_owned(self)? {
            // Who writes a key anew takes it from the session.
            let is_there = self.registration.state.catalog.ids.contains_key(&tree);
            if is_there && self.get(tree, &key)?.is_some_and(|found| found.version == version) {
                keys.push((tree, key));
            }
        }
        Ok(keys)
    }

    /// The keys that expire, and when, by the log's time in milliseconds since 1970.
    pub fn times_to_live(&self) -> impl Iterator<Item = Result<(TreeId, IVec, u64)>> + use<> {
        let snapshot = self.clone();
        let (low, high) = expiry::all_records();
        self.range(TreeId::EXPIRY, low, high).filter_map(move |entry| {
            let read = || {
                let (record, stored) = entry?;
                let (tree, key) = expiry::key_of_record(&record)?;
                let key = IVec::from(key);
                // Of a tree that was dropped something may be left here.
                if snapshot.state().require_tree(tree).is_err() {
                    return Ok(None);
                }
                let Some(found) = snapshot.get(tree, &key)? else { return Ok(None) };
                Ok(expiry::expires(Some(&stored), found.version)?.map(|at_ms| (tree, key, at_ms)))
            };
            read().transpose()
        })
    }

    /// The trees, sorted by name; the database's own ones only if they hold something, or cannot be read, which is for
    /// whoever reads them to meet; and never those of
    /// times to live, of waiters, of numbers, of hashes, of quotas and of sessions.
    pub fn trees(&self) -> Vec<(IVec, TreeId)> {
        let state = &self.registration.state;
        let is_inner = |id| {
            let inner = [
                TreeId::EXPIRY,
                TreeId::LOCK_QUEUES,
                TreeId::SEQUENCES,
                TreeId::HASHES,
                TreeId::QUOTAS,
                TreeId::SESSIONS,
            ];
            inner.contains(&id)
        };
        // Not counted: of what was put unseen that looks up each key.
        let is_empty = |id| self.range(id, Bound::Unbounded, Bound::Unbounded).next().is_none();
        let shown = |id: TreeId| !id.is_system() || (!is_inner(id) && !is_empty(id));
        let names = &state.catalog.names;
        names.iter().filter(|(_, id)| shown(**id)).map(|(name, id)| (name.clone(), *id)).collect()
    }

    /// Whether there is a tree of this number.
    pub fn has_tree(&self, tree: TreeId) -> bool {
        self.registration.state.catalog.ids.contains_key(&tree)
    }

    /// The number of a tree.
    pub fn tree_id(&self, name: &[u8]) -> Option<TreeId> {
        self.registration.state.catalog.names.get(name).copied()
    }

    pub(crate) fn state(&self) -> &Arc<State> {
        &self.registration.state
    }
}

/// An ordered scan; see [`Snapshot::range`].
///
/// Yields an error once, and nothing after it.
#[derive(Debug)]
pub struct RangeIter {
    state: Arc<State>,
    sequence: u64,
    tree: TreeId,
    /// What neither end has fetched yet; `None`: nothing.
    middle: Option<(Bound<IVec>, Bound<IVec>)>,
    front: Chunk,
    back: Chunk,
    /// Most keys that the next chunk may take from an overlay.
    front_limit: usize,
    back_limit: usize,
    /// Keeps the registration.
    snapshot: Option<Snapshot>,
    /// As that of a [`Snapshot`].
    hide_ms: Option<u64>,
    /// There is no such tree, which is yet to be told.
    is_missing: bool,
}

const FIRST_CHUNK: usize = 8;
const LARGEST_CHUNK: usize = 512;

/// Entries that were fetched and not yet handed out.
#[derive(Debug)]
enum Chunk {
    Block { block: Block, from: usize, to: usize },
    Merged(VecDeque<Entry>),
}

impl Chunk {
    #[inline]
    fn pop_front(&mut self) -> Option<Entry> {
        match self {
            Chunk::Block { block, from, to } => {
                if from == to {
                    return None;
                }
                *from += 1;
                Some(block_entry(block, *from - 1))
            }
            Chunk::Merged(entries) => entries.pop_front(),
        }
    }

    #[inline]
    fn pop_back(&mut self) -> Option<Entry> {
        match self {
            Chunk::Block { block, from, to } => {
                if from == to {
                    return None;
                }
                *to -= 1;
                Some(block_entry(block, *to))
            }
            Chunk::Merged(entries) => entries.pop_back(),
        }
    }
}

#[inline]
fn block_entry(block: &Block, position: usize) -> Entry {
    let (key, version, value) = block.entry(position);
    (key, Versioned { version, value })
}

impl RangeIter {
    pub(crate) fn over(
        state: Arc<State>,
        sequence: u64,
        tree: TreeId,
        range: (Bound<IVec>, Bound<IVec>),
    ) -> RangeIter {
        let borrowed = (as_slice(&range.0), as_slice(&range.1));
        let middle = (!is_empty_range(borrowed)).then_some(range);
        RangeIter {
            state,
            sequence,
            tree,
            middle,
            front: Chunk::Merged(VecDeque::new()),
            back: Chunk::Merged(VecDeque::new()),
            front_limit: FIRST_CHUNK,
            back_limit: FIRST_CHUNK,
            snapshot: None,
            hide_ms: None,
            is_missing: false,
        }
    }

    fn base(&self) -> Option<Arc<BaseTree>> {
        let base = self.state.base.tree(self.tree)?;
        let hidden = self.overlays().any(|overlay| overlay.hides_below(self.tree, self.sequence));
        (!hidden).then(|| Arc::clone(base))
    }

    fn overlays(&self) -> impl Iterator<Item = &Arc<Overlay>> {
        std::iter::once(&self.state.active).chain(&self.state.frozen)
    }

    /// Fetches the next chunk of the middle from one end.
    fn fetch(&mut self, reverse: bool) -> Result<()> {
        let Some((low, high)) = self.middle.take() else { return Ok(()) };
        if self.is_missing {
            self.state.require_tree(self.tree)?;
        }
        let limit = if reverse { self.back_limit } else { self.front_limit };
        let block = match self.base() {
            Some(base) if reverse => Some(base.block_before(upper_edge(&high).as_deref())?),
            Some(base) => Some(base.block_at(&lower_edge(&low))?),
            None => None,
        };
        // As far as the block's knowledge goes…
        let mut edge = match &block {
            Some(block) if reverse && !block.low().is_empty() => Some(Bound::Included(block.low().clone())),
            Some(block) if !reverse => block.high().map(|high| Bound::Excluded(high.clone())),
            _ => None,
        };
        edge = edge.filter(|edge| if reverse { later_start(edge, &low) } else { earlier_end(edge, &high) });
        // …and no overlay has more than `limit` keys.
        let mut layers = Vec::new();
        for overlay in [Some(&self.state.active), self.state.frozen.as_ref()].into_iter().flatten() {
            let mut found = Vec::new();
            let range = if reverse {
                (as_slice(edge.as_ref().unwrap_or(&low)), as_slice(&high))
            } else {
                (as_slice(&low), as_slice(edge.as_ref().unwrap_or(&high)))
            };
            let hidden = overlay.hides_below(self.tree, self.sequence);
            if let Some(last) = overlay.collect(self.tree, range, self.sequence, reverse, limit, &mut found) {
                edge = Some(Bound::Included(last));
            }
            layers.push(found);
            if hidden {
                break;
            }
        }
        let chunk = if reverse {
            (edge.clone().unwrap_or_else(|| low.clone()), high.clone())
        } else {
            (low.clone(), edge.clone().unwrap_or_else(|| high.clone()))
        };
        let positions = block.as_ref().map(|block| block_positions(block, &chunk));
        let fetched = if layers.iter().all(Vec::is_empty) {
            match (block, positions) {
                (Some(block), Some((from, to))) => Chunk::Block { block, from, to },
                _ => Chunk::Merged(VecDeque::new()),
            }
        } else {
            for layer in &mut layers {
                layer.retain(|(key, _)| within(key, &chunk));
                if reverse {
                    layer.reverse();
                }
            }
            Chunk::Merged(merge(layers, block.as_ref().zip(positions)))
        };
        // What is left is on the other side of the edge.
        self.middle = edge.and_then(|edge| {
            let beyond = match edge {
                Bound::Included(key) => Bound::Excluded(key),
                Bound::Excluded(key) => Bound::Included(key),
                Bound::Unbounded => return None,
            };
            let left = if reverse { (low, beyond) } else { (beyond, high) };
            (!is_empty_range((as_slice(&left.0), as_slice(&left.1)))).then_some(left)
        });
        let fetched = match self.hide_ms {
            Some(time_ms) => self.hide(fetched, time_ms)?,
            None => fetched,
        };
        let grown = (limit * 2).min(LARGEST_CHUNK);
        if reverse {
            self.back = fetched;
            self.back_limit = grown;
        } else {
            self.front = fetched;
            self.front_limit = grown;
        }
        Ok(())
    }

    /// The chunk without what has expired.
    #[cold]
    fn hide(&self, mut chunk: Chunk, time_ms: u64) -> Result<Chunk> {
        let mut live = VecDeque::new();
        while let Some((key, found)) = chunk.pop_front() {
            if !self.state.is_over_at(self.sequence, self.tree, &key, found.version, time_ms)? {
                live.push_back((key, found));
            }
        }
        Ok(Chunk::Merged(live))
    }

    fn stop(&mut self) {
        self.middle = None;
        self.front = Chunk::Merged(VecDeque::new());
        self.back = Chunk::Merged(VecDeque::new());
    }
}

impl Iterator for RangeIter {
    type Item = Result<Entry>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.front.pop_front() {
                return Some(Ok(entry));
            }
            if self.middle.is_none() {
                return self.back.pop_front().map(Ok);
            }
            if let Err(error) = self.fetch(false) {
                self.stop();
                return Some(Err(error));
            }
        }
    }
}

impl DoubleEndedIterator for RangeIter {
    #[inline]
    fn next_back(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(entry) = self.back.pop_back() {
                return Some(Ok(entry));
            }
            if self.middle.is_none() {
                return self.front.pop_back().map(Ok);
            }
            if let Err(error) = self.fetch(true) {
                self.stop();
                return Some(Err(error));
            }
        }
    }
}

/// Merges layers, newest first, each in key order, with the part of a block below them.
fn merge(
    layers: Vec<Vec<(IVec, Option<Versioned>)>>,
    below: Option<(&Block, (usize, usize))>,
) -> VecDeque<Entry> {
    let mut layers = layers.into_iter().map(|layer| layer.into_iter().peekable()).collect::<Vec<_>>();
    let (block, (mut from, to)) = match below {
        Some((block, positions)) => (Some(block), positions),
        None => (None, (0, 0)),
    };
    let mut merged = VecDeque::new();
    loop {
        // The smallest key of all layers; of equal ones the newest layer's.
        let mut smallest: Option<(usize, &IVec)> = None;
        for (index, layer) in layers.iter_mut().enumerate() {
            if let Some((key, _)) = layer.peek()
                && smallest.is_none_or(|(_, least)| key < least)
            {
                smallest = Some((index, key));
            }
        }
        let Some((index, key)) = smallest else { break };
        let key = key.clone();
        if let Some(block) = block {
            while from < to && block.key(from) < &key[..] {
                merged.push_back(block_entry(block, from));
                from += 1;
            }
            if from < to && block.key(from) == &key[..] {
                from += 1;
            }
        }
        for (other, layer) in layers.iter_mut().enumerate() {
            if layer.peek().is_some_and(|(found, _)| *found == key) {
                let (key, value) = layer.next().expect("peeked");
                if other == index
                    && let Some(value) = value
                {
                    merged.push_back((key, value));
                }
            }
        }
    }
    if let Some(block) = block {
        merged.extend((from..to).map(|position| block_entry(block, position)));
    }
    merged
}

fn as_slice(bound: &Bound<IVec>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}

/// The first key that can be in a range that begins so.
fn lower_edge(low: &Bound<IVec>) -> IVec {
    match low {
        Bound::Included(key) => key.clone(),
        Bound::Excluded(key) => successor(key),
        Bound::Unbounded => IVec::new(),
    }
}

/// The first key beyond a range that ends so; `None`: the end of the key space.
fn upper_edge(high: &Bound<IVec>) -> Option<IVec> {
    match high {
        Bound::Included(key) => Some(successor(key)),
        Bound::Excluded(key) => Some(key.clone()),
        Bound::Unbounded => None,
    }
}

/// The next key in byte order.
fn successor(key: &[u8]) -> IVec {
    let mut next = Vec::with_capacity(key.len() + 1);
    next.extend_from_slice(key);
    next.push(0);
    IVec::from(next)
}

/// Whether a range that ends at `edge` ends before one that ends at `high`.
fn earlier_end(edge: &Bound<IVec>, high: &Bound<IVec>) -> bool {
    match (upper_edge(edge), upper_edge(high)) {
        (Some(edge), Some(high)) => edge < high,
        (Some(_), None) => true,
        (None, _) => false,
    }
}

/// Whether a range that begins at `edge` begins after one that begins at `low`.
fn later_start(edge: &Bound<IVec>, low: &Bound<IVec>) -> bool {
    lower_edge(edge) > lower_edge(low)
}

fn within(key: &IVec, (low, high): &(Bound<IVec>, Bound<IVec>)) -> bool {
    let after = match low {
        Bound::Included(low) => key >= low,
        Bound::Excluded(low) => key > low,
        Bound::Unbounded => true,
    };
    let before = match high {
        Bound::Included(high) => key <= high,
        Bound::Excluded(high) => key < high,
        Bound::Unbounded => true,
    };
    after && before
}

/// Which of a block's entries are in a range.
fn block_positions(block: &Block, (low, high): &(Bound<IVec>, Bound<IVec>)) -> (usize, usize) {
    let past = |key: &IVec| {
        let position = block.seek(key);
        position + usize::from(position < block.len() && block.key(position) == &key[..])
    };
    let from = match low {
        Bound::Included(key) => block.seek(key),
        Bound::Excluded(key) => past(key),
        Bound::Unbounded => 0,
    };
    let to = match high {
        Bound::Included(key) => past(key),
        Bound::Excluded(key) => block.seek(key),
        Bound::Unbounded => block.len(),
    };
    (from, to.max(from))
}
