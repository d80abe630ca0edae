//! [`Removals`]: when something was last removed from each tree, as far as this replica has seen.
//!
//! A key has a version of its own for each value that it ever had, so whoever finds the version that
//! was read before knows that nothing happened in between. A key that is absent has none: it may have
//! come and gone. Whoever validates an absent key, or a range, asks here whether anything has gone.
//!
//! This is no part of the state: each replica has it from what it applied since it was opened, and before
//! that everything may have been removed.

use std::collections::HashMap;

use crate::command::TreeId;
use crate::evaluate::Effect;

#[derive(Debug, Default)]
pub(crate) struct Removals {
    opened_at: u64,
    last: HashMap<TreeId, u64>,
    /// What was noted last: removals of one tree come one after the other.
    noted: Option<(TreeId, u64)>,
    /// When a tree was last dropped.
    dropped: u64,
}

impl Removals {
    pub(crate) fn since(position: u64) -> Removals {
        Removals { opened_at: position, ..Removals::default() }
    }

    pub(crate) fn follow(&mut self, position: u64, effect: &Effect) {
        if let Effect::Remove { tree, .. } | Effect::Clear { tree } | Effect::DropTree { id: tree } = effect
            && self.noted != Some((*tree, position))
        {
            self.noted = Some((*tree, position));
            self.last.insert(*tree, position);
        }
        if let Effect::DropTree { .. } = effect {
            self.dropped = position;
        }
    }

    /// Whether nothing was removed from a tree behind that position, nor from one that may have had its name then.
    pub(crate) fn none_after(&self, position: u64, tree: TreeId) -> bool {
        self.none_dropped_after(position) && self.last.get(&tree).is_none_or(|last| *last <= position)
    }

    /// As [`Removals::none_after`], of a tree that is not there: no tree may have been dropped.
    pub(crate) fn none_dropped_after(&self, position: u64) -> bool {
        position >= self.opened_at && self.dropped <= position
    }
}
