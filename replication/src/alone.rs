//! Knowing that one's own word is a majority's: what lets a node that has a group alone answer reads at once.
//!
//! A read asks a majority whether its leader still leads, see [`read_index`](crate::read_index). Where a node is the
//! only voter there is nobody to ask, and no other node can have acknowledged anything: whoever leads next
//! needs this node's vote. So every acknowledged write was applied here before it was acknowledged, and what
//! is applied is the answer. That saves the question's way through openraft, several times what the read costs.
//!
//! This is no lease: it trusts no clock, only that **no other voter exists**. A voter comes into being by an
//! entry that the leader, so this node, puts into its log, and nothing but [`Group::change`](crate::group::Group)
//! has it do so. Hence:
//!
//! - Before a change of the members is handed to openraft, the knowledge is [given up](Alone::changing).
//! - It is gained anew only by a read that asked in the usual way, while this node leads, and found, in openraft's own
//!   state and not in the metrics that follow it, that the newest members in the log are this node alone, if no change
//!   was under way when it began or has begun meanwhile. A change that was handed over before and given up by its
//!   caller comes before the question in openraft's queue, and is in that state.
//! - A group that is opened again, maybe with less applied than was acknowledged, has to gain it anew.

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

#[derive(Default)]
struct Changes {
    begun: u64,
    under_way: u32,
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Alone {
    changes: Mutex<Changes>,
    /// Written only under the lock.
    is_certain: AtomicBool,
}

/// A change of the members that may be under way; ended when dropped.
pub(crate) struct Changing<'a>(&'a Alone);

impl Alone {
    /// Whether nobody but this node has a vote, and everything that was acknowledged is applied.
    pub(crate) fn is_certain(&self) -> bool {
        self.is_certain.load(Ordering::SeqCst)
    }

    /// To be called before others may be given a vote, and kept until that has been handed over.
    pub(crate) fn changing(&self) -> Changing<'_> {
        let mut changes = self.changes.lock();
        changes.begun += 1;
        changes.under_way += 1;
        self.is_certain.store(false, Ordering::SeqCst);
        Changing(self)
    }

    /// What was known may not hold any more.
    pub(crate) fn forget(&self) {
        drop(self.changing());
    }

    /// To be called before asking: what [`Alone::conclude`] wants; `None` while a change is under way.
    pub(crate) fn begin(&self) -> Option<u64> {
        let changes = self.changes.lock();
        (changes.under_way == 0).then_some(changes.begun)
    }

    /// After asking: this node is the only voter, unless a change has begun since `begun`.
    pub(crate) fn conclude(&self, begun: u64) {
        let changes = self.changes.lock();
        if changes.under_way == 0 && changes.begun == begun {
            self.is_certain.store(true, Ordering::SeqCst);
        }
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.0.changes.lock().under_way -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_knows_it_only_while_no_change_begins() {
        let alone = Alone::default();
        assert!(!alone.is_certain());
        let begun = alone.begin().unwrap();
        alone.conclude(begun);
        assert!(alone.is_certain());

        let changing = alone.changing();
        assert!(!alone.is_certain());
        assert_eq!(alone.begin(), None, "nothing that is asked now says what will be");
        alone.conclude(begun);
        assert!(!alone.is_certain());
        drop(changing);
        alone.conclude(begun);
        assert!(!alone.is_certain(), "what was asked before the change");

        let begun = alone.begin().unwrap();
        alone.forget();
        alone.conclude(begun);
        assert!(!alone.is_certain());
        alone.conclude(alone.begin().unwrap());
        assert!(alone.is_certain());
    }
}
