//! The state that readers load: one pointer, one consistent view of everything.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::base::Base;
use crate::evaluate::{Entry, Versioned, View};
use crate::leaf_cache::Lookup;
use crate::meta::Catalog;
use crate::overlay::{Found, Length, Overlay, Readers};
use crate::snapshot::RangeIter;
use crate::transaction::Transactions;
use crate::{Error, IVec, Result, TreeId, expiry};

/// Active overlay, frozen overlay, held B-tree and catalog. Replaced as a whole by freezing, by
/// each slice of a checkpoint, and by making or dropping a tree.
#[derive(Clone, Debug)]
pub(crate) struct State {
    pub(crate) active: Arc<Overlay>,
    pub(crate) frozen: Option<Arc<Overlay>>,
    pub(crate) base: Arc<Base>,
    pub(crate) catalog: Arc<Catalog>,
}

impl State {
    /// The newest value of a key in a tree that exists.
    #[inline]
    pub(crate) fn get_latest(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        match self.overlays_latest(tree, key) {
            Found::Value(found) => Ok(Some(found)),
            Found::Absent => Ok(None),
            Found::Unknown => match self.base.tree(tree) {
                Some(base) => base.get(key),
                None => Ok(None),
            },
        }
    }

    #[inline]
    fn overlays_latest(&self, tree: TreeId, key: &[u8]) -> Found<Versioned> {
        match self.active.get_latest(tree, key) {
            Found::Unknown => {}
            found => return found,
        }
        match &self.frozen {
            Some(frozen) => frozen.get_latest(tree, key),
            None => Found::Unknown,
        }
    }

    /// The value of a key as of `sequence`.
    pub(crate) fn get_at(&self, tree: TreeId, key: &[u8], sequence: u64) -> Result<Option<Versioned>> {
        for overlay in std::iter::once(&self.active).chain(&self.frozen) {
            match overlay.get_at(tree, key, sequence) {
                Found::Value(found) => return Ok(Some(found)),
                Found::Absent => return Ok(None),
                Found::Unknown => {}
            }
        }
        match self.base.tree(tree) {
            Some(base) => base.get(key),
            None => Ok(None),
        }
    }

    /// The number of keys of a tree as of `sequence`, at which a reader is registered.
    pub(crate) fn length_at(&self, readers: &Readers, tree: TreeId, sequence: u64) -> Result<u64> {
        if let Some(frozen) = &self.frozen {
            self.count_frozen(readers, frozen)?;
        }
        self.active.count(readers, |tree, key| {
            match self.frozen.as_ref().map_or(Found::Unknown, |frozen| frozen.get_latest(tree, key)) {
                Found::Value(_) => Ok(true),
                Found::Absent => Ok(false),
                Found::Unknown => self.base.contains(tree, key),
            }
        })?;
        Ok(self
            .sum_lengths(tree, |overlay| Some(overlay.length_at(tree, sequence)))
            .expect("none is unknown"))
    }

    /// The number of keys of a tree as of the newest commit, if that is known without looking
    /// anything up.
    pub(crate) fn latest_length(&self, tree: TreeId) -> Option<u64> {
        self.sum_lengths(tree, |overlay| overlay.latest_length(tree))
    }

    /// About how many keys a tree has as of `sequence`; see [`Overlay::about_length_at`].
    pub(crate) fn about_length_at(&self, tree: TreeId, sequence: u64) -> u64 {
        let mut more = 0i64;
        for overlay in std::iter::once(&self.active).chain(&self.frozen) {
            match overlay.about_length_at(tree, sequence) {
                Length::More(some) => more = more.saturating_add(some),
                Length::All(all) => return all.saturating_add_signed(more),
            }
        }
        self.base.length(tree).saturating_add_signed(more)
    }

    /// Whether the layers below the active overlay are known to hold no key of a tree.
    pub(crate) fn is_empty_below_active(&self, tree: TreeId) -> bool {
        let of_frozen =
            self.frozen.as_ref().map_or(Some(Length::More(0)), |frozen| frozen.latest_length(tree));
        match of_frozen {
            Some(Length::All(0)) => true,
            Some(Length::More(0)) => self.base.length(tree) == 0,
            _ => false,
        }
    }

    /// Makes the lengths of the frozen overlay's trees known.
    pub(crate) fn count_frozen(&self, readers: &Readers, frozen: &Overlay) -> Result<()> {
        frozen.count(readers, |tree, key| self.base.contains(tree, key))
    }

    fn sum_lengths(&self, tree: TreeId, length: impl Fn(&Overlay) -> Option<Length>) -> Option<u64> {
        let mut more = 0;
        for overlay in std::iter::once(&self.active).chain(&self.frozen) {
            match length(overlay)? {
                Length::More(some) => more += some,
                Length::All(all) => return all.checked_add_signed(more),
            }
        }
        self.base.length(tree).checked_add_signed(more)
    }

    /// Whether a version of a key has expired, as of `sequence`.
    pub(crate) fn is_over_at(
        &self,
        sequence: u64,
        tree: TreeId,
        key: &[u8],
        version: u64,
        time_ms: u64,
    ) -> Result<bool> {
        if !expiry::can_expire(tree) {
            return Ok(false);
        }
        let record = self.get_at(TreeId::EXPIRY, &expiry::record_key(tree, key), sequence)?;
        expiry::is_over(record.as_ref(), version, time_ms)
    }

    pub(crate) fn require_tree(&self, tree: TreeId) -> Result<()> {
        if self.catalog.ids.contains_key(&tree) {
            return Ok(());
        }
        Err(Error::TreeNotFound(IVec::from(format!("#{}", tree.0))))
    }
}

/// Keys of the B-tree that were read before the commit mutex was taken.
#[derive(Debug, Default)]
pub(crate) struct Prefetched {
    base: Option<Arc<Base>>,
    found: HashMap<(TreeId, IVec), Option<Versioned>>,
    /// Of what was found.
    bytes: usize,
}

/// With so many bytes no more is read ahead: one command may remove more than there is memory for. The rest is read where
/// it is looked at, with the commit mutex taken, and is gone again at once.
const MOST_PREFETCHED: usize = 64 << 20;

impl Prefetched {
    /// Nothing yet, of the B-tree of this state.
    pub(crate) fn of(state: &State) -> Prefetched {
        Prefetched { base: Some(Arc::clone(&state.base)), ..Prefetched::default() }
    }

    /// Reads a key, if there is such a tree.
    pub(crate) fn read(&mut self, state: &State, tree: TreeId, key: &IVec) -> Result<()> {
        if self.bytes > MOST_PREFETCHED {
            return Ok(());
        }
        if let Some(base) = state.base.tree(tree) {
            let found = base.get(key)?;
            self.bytes += key.len() + found.as_ref().map_or(0, |found| found.value.len());
            self.found.insert((tree, key.clone()), found);
        }
        Ok(())
    }
}

/// Where the keys of some trees begin and end, as far as is known.
///
/// A tree used as a queue leaves a removed key behind for each that was popped, until the next
/// checkpoint; without this, each pop would walk over all of them.
#[derive(Debug, Default)]
pub(crate) struct Ends(HashMap<TreeId, (Bound<IVec>, Bound<IVec>)>);

impl Ends {
    /// No key of the tree is outside of this range.
    pub(crate) fn range(&self, tree: TreeId) -> (Bound<IVec>, Bound<IVec>) {
        self.0.get(&tree).cloned().unwrap_or((Bound::Unbounded, Bound::Unbounded))
    }

    /// The tree is no more.
    pub(crate) fn forget(&mut self, tree: TreeId) {
        self.0.remove(&tree);
    }

    /// `key` is the first (or last) one.
    pub(crate) fn found(&mut self, tree: TreeId, last: bool, key: IVec) {
        let ends = self.0.entry(tree).or_insert((Bound::Unbounded, Bound::Unbounded));
        if last {
            ends.1 = Bound::Included(key);
        } else {
            ends.0 = Bound::Included(key);
        }
    }

    /// `key` is put.
    #[inline]
    pub(crate) fn put(&mut self, tree: TreeId, key: &IVec) {
        if self.0.is_empty() {
            return;
        }
        if let Some((first, last)) = self.0.get_mut(&tree) {
            if matches!(first, Bound::Included(first) if key < first) {
                *first = Bound::Included(key.clone());
            }
            if matches!(last, Bound::Included(last) if key > last) {
                *last = Bound::Included(key.clone());
            }
        }
    }
}

/// The newest state, as commands are evaluated against it under the commit mutex; or that of a
/// [snapshot](LatestView::is_snapshot), as reads are.
///
/// The first attempt may not read from disk: if the leaf cache does not know a key, evaluation
/// stops with [`LatestView::needs_disk`] set, the engine releases the mutex, reads, and tries
/// again with what it read. So nobody waits for somebody else's read of a key. (The ranges of a
/// transaction and the ends of a tree are read under the mutex; the scan or the pop before left
/// them in the cache.)
pub(crate) struct LatestView<'a> {
    pub(crate) state: &'a Arc<State>,
    pub(crate) sequence: u64,
    /// Nobody keeps the commit mutex meanwhile: newer entries may come to the overlays, and are not to be seen.
    pub(crate) is_snapshot: bool,
    pub(crate) next_id: u64,
    pub(crate) ends: &'a Ends,
    /// Of a replica.
    pub(crate) transactions: Option<&'a Transactions>,
    /// What [`View::end`] found, to be remembered.
    pub(crate) found_end: RefCell<Option<(TreeId, bool, IVec)>>,
    pub(crate) prefetched: Option<&'a Prefetched>,
    pub(crate) may_read_disk: bool,
    pub(crate) needs_disk: Cell<bool>,
    /// See [`View::earliest_due`].
    pub(crate) earliest_due: u64,
    /// See [`View::has_quotas`].
    pub(crate) has_quotas: bool,
}

impl LatestView<'_> {
    fn prefetched(&self, tree: TreeId, key: &[u8]) -> Option<&Option<Versioned>> {
        let prefetched = self.prefetched?;
        if !prefetched.base.as_ref().is_some_and(|base| Arc::ptr_eq(base, &self.state.base)) {
            return None;
        }
        prefetched.found.get(&(tree, IVec::from(key)))
    }

    /// Called when the cache does not know; an error if the disk may not be read.
    fn read_through(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        if let Some(found) = self.prefetched(tree, key) {
            return Ok(found.clone());
        }
        if !self.may_read_disk {
            self.needs_disk.set(true);
            return Err(Error::InvalidRequest("a key must be read from disk first".to_owned()));
        }
        match self.state.base.tree(tree) {
            Some(base) => base.get(key),
            None => Ok(None),
        }
    }
}

impl View for LatestView<'_> {
    #[inline]
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        if self.is_snapshot {
            return self.state.get_at(tree, key, self.sequence);
        }
        match self.state.overlays_latest(tree, key) {
            Found::Value(found) => return Ok(Some(found)),
            Found::Absent => return Ok(None),
            Found::Unknown => {}
        }
        let Some(base) = self.state.base.tree(tree) else { return Ok(None) };
        match base.cache.get(key) {
            Lookup::Found { version, value } => Ok(Some(Versioned { version, value })),
            Lookup::Absent => Ok(None),
            Lookup::Unknown => self.read_through(tree, key),
        }
    }

    #[inline]
    fn version(&self, tree: TreeId, key: &[u8]) -> Result<Option<u64>> {
        if self.is_snapshot {
            return Ok(self.get(tree, key)?.map(|found| found.version));
        }
        match self.state.overlays_latest(tree, key) {
            Found::Value(found) => return Ok(Some(found.version)),
            Found::Absent => return Ok(None),
            Found::Unknown => {}
        }
        let Some(base) = self.state.base.tree(tree) else { return Ok(None) };
        match base.cache.get_version(key) {
            Lookup::Found { version, .. } => Ok(Some(version)),
            Lookup::Absent => Ok(None),
            Lookup::Unknown => Ok(self.read_through(tree, key)?.map(|found| found.version)),
        }
    }

    fn end(&self, tree: TreeId, last: bool) -> Result<Option<Entry>> {
        let range = self.ends.range(tree);
        let mut all = RangeIter::over(Arc::clone(self.state), self.sequence, tree, range);
        let found = if last { all.next_back() } else { all.next() }.transpose()?;
        if let Some((key, _)) = &found {
            self.found_end.replace(Some((tree, last, key.clone())));
        }
        Ok(found)
    }

    fn scan(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<()> {
        let range = (low.map(IVec::from), high.map(IVec::from));
        for entry in RangeIter::over(Arc::clone(self.state), self.sequence, tree, range) {
            let (key, found) = entry?;
            if !each(&key, found.version) {
                break;
            }
        }
        Ok(())
    }

    fn scan_values(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], Versioned) -> bool,
    ) -> Result<()> {
        let range = (low.map(IVec::from), high.map(IVec::from));
        for entry in RangeIter::over(Arc::clone(self.state), self.sequence, tree, range) {
            let (key, found) = entry?;
            if !each(&key, found) {
                break;
            }
        }
        Ok(())
    }

    fn tree_id(&self, name: &[u8]) -> Option<TreeId> {
        self.state.catalog.names.get(name).copied()
    }

    fn has_tree(&self, tree: TreeId) -> bool {
        self.state.catalog.ids.contains_key(&tree)
    }

    fn next_tree_id(&self) -> TreeId {
        self.state.catalog.next
    }

    fn tree_names_weight(&self) -> usize {
        self.state.catalog.weight()
    }

    fn next_id(&self) -> u64 {
        self.next_id
    }

    fn next_to(&self, tree: TreeId, key: &[u8], before: bool) -> Result<Option<Entry>> {
        let key = Bound::Excluded(IVec::from(key));
        let range = if before { (Bound::Unbounded, key) } else { (key, Bound::Unbounded) };
        let mut all = RangeIter::over(Arc::clone(self.state), self.sequence, tree, range);
        if before { all.next_back() } else { all.next() }.transpose()
    }

    #[inline]
    fn earliest_due(&self) -> Result<u64> {
        Ok(self.earliest_due)
    }

    fn transactions(&self) -> Option<&Transactions> {
        self.transactions
    }

    #[inline]
    fn has_quotas(&self) -> Result<bool> {
        Ok(self.has_quotas)
    }
}
