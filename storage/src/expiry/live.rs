//! [`LiveView`]: what is there to whoever looks at a time, which is without what has expired by then.
//!
//! A key that has expired stays where it is until it is [removed](super::settle_due); its record says what it is.

use std::cell::RefCell;
use std::ops::Bound;

use super::{can_expire, expires, record_key};
use crate::command::TreeId;
use crate::evaluate::{Entry, Versioned, View};
use crate::{Error, Result};

/// A view without what has expired.
pub(crate) struct LiveView<'a, V> {
    view: &'a V,
    time_ms: u64,
    /// What went wrong within a scan.
    failure: RefCell<Option<Error>>,
}

impl<'a, V: View> LiveView<'a, V> {
    pub(crate) fn new(view: &'a V, time_ms: u64) -> LiveView<'a, V> {
        LiveView { view, time_ms, failure: RefCell::new(None) }
    }

    fn is_over(&self, tree: TreeId, key: &[u8], version: u64) -> Result<bool> {
        if !can_expire(tree) {
            return Ok(false);
        }
        let record = self.view.get(TreeId::EXPIRY, &record_key(tree, key))?;
        let ends_ms = expires(record.as_ref(), version)?.filter(|ends_ms| *ends_ms <= self.time_ms);
        if let Some(ends_ms) = ends_ms {
            self.view.note_end(tree, key, ends_ms);
        }
        Ok(ends_ms.is_some())
    }
}

impl<V: View> View for LiveView<'_, V> {
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        let found = self.view.get(tree, key)?;
        match &found {
            Some(found) if self.is_over(tree, key, found.version)? => Ok(None),
            _ => Ok(found),
        }
    }

    fn version(&self, tree: TreeId, key: &[u8]) -> Result<Option<u64>> {
        let found = self.view.version(tree, key)?;
        match found {
            Some(version) if self.is_over(tree, key, version)? => Ok(None),
            _ => Ok(found),
        }
    }

    fn end(&self, tree: TreeId, last: bool) -> Result<Option<Entry>> {
        let mut found = self.view.end(tree, last)?;
        while let Some((key, entry)) = &found
            && self.is_over(tree, key, entry.version)?
        {
            found = self.view.next_to(tree, key, last)?;
        }
        Ok(found)
    }

    fn next_to(&self, tree: TreeId, key: &[u8], before: bool) -> Result<Option<Entry>> {
        let mut found = self.view.next_to(tree, key, before)?;
        while let Some((key, entry)) = &found
            && self.is_over(tree, key, entry.version)?
        {
            found = self.view.next_to(tree, key, before)?;
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
        self.view.scan(tree, low, high, &mut |key, version| match self.is_over(tree, key, version) {
            Ok(true) => true,
            Ok(false) => each(key, version),
            Err(error) => {
                self.failure.replace(Some(error));
                false
            }
        })?;
        self.failure.take().map_or(Ok(()), Err)
    }

    fn scan_values(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], Versioned) -> bool,
    ) -> Result<()> {
        let mut failure = None;
        self.view.scan_values(
            tree,
            low,
            high,
            &mut |key, found| match self.is_over(tree, key, found.version) {
                Ok(true) => true,
                Ok(false) => each(key, found),
                Err(error) => {
                    failure = Some(error);
                    false
                }
            },
        )?;
        failure.map_or(Ok(()), Err)
    }

    fn hides(&self, tree: TreeId, key: &[u8]) -> Result<bool> {
        match self.view.version(tree, key)? {
            Some(version) => self.is_over(tree, key, version),
            None => Ok(false),
        }
    }

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

    fn tree_id_to_be(&self, name: &[u8]) -> Option<TreeId> {
        self.view.tree_id_to_be(name)
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

    fn earliest_due(&self) -> Result<u64> {
        self.view.earliest_due()
    }

    fn is_locked(&self, tree: TreeId, key: &[u8]) -> bool {
        self.view.is_locked(tree, key)
    }
}
