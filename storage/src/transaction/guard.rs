//! [`Guarded`]: a view that notices when something is read that is locked for writing.

use std::cell::Cell;
use std::ops::Bound;

use super::{LockedBy, Transactions};
use crate::Result;
use crate::command::TreeId;
use crate::evaluate::{Effect, Entry, Versioned, View};

/// What a command that is evaluated beside prepared transactions sees. It reads as the view below does;
/// afterwards [`Guarded::stopped_by`] tells whether that was allowed.
pub(crate) struct Guarded<'a, V> {
    view: &'a V,
    transactions: &'a Transactions,
    met: Cell<Option<LockedBy>>,
}

impl<'a, V> Guarded<'a, V> {
    pub(crate) fn new(view: &'a V, transactions: &'a Transactions) -> Guarded<'a, V> {
        Guarded { view, transactions, met: Cell::new(None) }
    }

    /// The lock that what was read, or these effects, would have to wait for.
    pub(crate) fn stopped_by(&self, effects: &[Effect]) -> Option<LockedBy> {
        self.met.get().or_else(|| self.transactions.against_effects(effects))
    }

    fn note(&self, lock: Option<LockedBy>) {
        if lock.is_some() {
            self.met.set(lock);
        }
    }
}

impl<V: View> View for Guarded<'_, V> {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        self.note(self.transactions.against_read(tree, key));
        self.view.get(tree, key)
    }

    fn version(&self, tree: TreeId, key: &[u8]) -> Result<Option<u64>> {
        self.note(self.transactions.against_read(tree, key));
        self.view.version(tree, key)
    }

    fn end(&self, tree: TreeId, last: bool) -> Result<Option<Entry>> {
        // Whatever is written to the tree may be the end of it.
        self.note(self.transactions.against_scan(tree, Bound::Unbounded, Bound::Unbounded));
        self.view.end(tree, last)
    }

    fn scan(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<()> {
        self.note(self.transactions.against_scan(tree, low, high));
        self.view.scan(tree, low, high, each)
    }

    fn scan_values(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], Versioned) -> bool,
    ) -> Result<()> {
        self.note(self.transactions.against_scan(tree, low, high));
        self.view.scan_values(tree, low, high, each)
    }

    fn next_to(&self, tree: TreeId, key: &[u8], before: bool) -> Result<Option<Entry>> {
        let found = self.view.next_to(tree, key, before)?;
        let end = found.as_ref().map_or(Bound::Unbounded, |(found, _)| Bound::Included(&found[..]));
        let (low, high) = if before { (end, Bound::Excluded(key)) } else { (Bound::Excluded(key), end) };
        self.note(self.transactions.against_scan(tree, low, high));
        Ok(found)
    }

    fn note_end(&self, tree: TreeId, key: &[u8], expires_ms: u64) {
        self.note(self.transactions.against_end(tree, key, expires_ms));
    }

    // A transaction that makes the first hash has locked its key.
    fn has_hashes(&self) -> Result<bool> {
        self.view.has_hashes()
    }

    #[inline]
    fn has_quotas(&self) -> Result<bool> {
        self.view.has_quotas()
    }

    fn tree_id(&self, name: &[u8]) -> Option<TreeId> {
        self.view.tree_id(name)
    }

    fn has_tree(&self, tree: TreeId) -> bool {
        self.view.has_tree(tree)
    }

    fn next_tree_id(&self) -> TreeId {
        self.view.next_tree_id()
    }

    fn tree_names_weight(&self) -> usize {
        self.view.tree_names_weight()
    }

    fn next_id(&self) -> u64 {
        self.view.next_id()
    }

    fn is_locked(&self, tree: TreeId, key: &[u8]) -> bool {
        self.transactions.against_write(tree, key).is_some()
    }
}
