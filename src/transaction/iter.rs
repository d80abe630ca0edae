//! Iterating within a transaction: the snapshot with the transaction's own writes merged in.

use std::fmt;
use std::ops::Bound;
use std::rc::Rc;

use dogsled_storage::RangeIter;
use dogsled_storage::evaluate::{Entry, Versioned};
use dogsled_storage::lock::PENDING_SEQUENCE;
use dogsled_storage::{Result as StorageResult, TreeId};

use super::attempt::{Attempt, successor};
use super::{TransactionalTree, UnabortableTransactionError, UnabortableTransactionResult};
use crate::IVec;

/// Merges a range of the snapshot with the own writes in it, from both ends, and notes what was
/// read. Own writes made while it runs are seen if they are ahead of it.
pub(super) struct MergedIter {
    attempt: Rc<Attempt>,
    tree: TreeId,
    snapshot: RangeIter,
    /// Entries taken from `snapshot` that were not next, by end.
    peeked: [Option<Entry>; 2],
    /// What is left: from `low`, inclusive, to `high`, exclusive.
    low: IVec,
    high: Option<IVec>,
    track: usize,
    /// That the transaction is over, once.
    is_told: bool,
}

impl MergedIter {
    pub(super) fn new(attempt: Rc<Attempt>, tree: TreeId, low: Bound<IVec>, high: Bound<IVec>) -> MergedIter {
        let low = match low {
            Bound::Unbounded => IVec::new(),
            Bound::Included(key) => key,
            Bound::Excluded(key) => successor(&key),
        };
        let high = match high {
            Bound::Unbounded => None,
            Bound::Included(key) => Some(successor(&key)),
            Bound::Excluded(key) => Some(key),
        };
        let end = match &high {
            // Of a form that no map panics about.
            Some(high) if *high < low => Bound::Excluded(low.clone()),
            Some(high) => Bound::Excluded(high.clone()),
            None => Bound::Unbounded,
        };
        let snapshot = attempt.snapshot.range(tree, Bound::Included(low.clone()), end);
        let track = attempt.track_range(tree, low.clone(), high.clone());
        MergedIter { attempt, tree, snapshot, peeked: [None, None], low, high, track, is_told: false }
    }

    /// The next entry from either end.
    pub(super) fn advance(&mut self, from_back: bool) -> Option<StorageResult<Entry>> {
        if let Err(error) = self.attempt.check_running() {
            return (!std::mem::replace(&mut self.is_told, true)).then_some(Err(error));
        }
        loop {
            let base = match self.next_of_snapshot(from_back).transpose() {
                Ok(base) => base,
                Err(error) => return Some(Err(error)),
            };
            let own = self.attempt.written_in(self.tree, &self.low, self.high.as_ref(), from_back);
            let own_is_next = match (&base, &own) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some((base, _)), Some((own, _))) => {
                    if from_back {
                        own >= base
                    } else {
                        own <= base
                    }
                }
            };
            let (key, value) = if own_is_next {
                let (key, value) = own.expect("compared above");
                match base {
                    Some((base, found)) if base == key => self.meet(found.version, from_back),
                    other => self.peeked[usize::from(from_back)] = other,
                }
                (key, value.map(|value| Versioned { version: PENDING_SEQUENCE, value }))
            } else if let Some((key, found)) = base {
                self.meet(found.version, from_back);
                (key, Some(found))
            } else {
                // From the front the end of what is left, from the back its beginning.
                let bound = if from_back { Some(self.low.clone()) } else { self.high.clone() };
                self.attempt.note_range(self.track, |track| track.exhaust(bound, from_back));
                return None;
            };
            self.attempt.note_range(self.track, |track| track.reach(&key, from_back));
            if from_back {
                self.high = Some(key.clone());
            } else {
                self.low = successor(&key);
            }
            if let Some(found) = value {
                return Some(Ok((key, found)));
            }
        }
    }

    fn meet(&self, version: u64, from_back: bool) {
        self.attempt.note_range(self.track, |track| track.meet(version, from_back));
    }

    fn next_of_snapshot(&mut self, from_back: bool) -> Option<StorageResult<Entry>> {
        if let Some(entry) = self.peeked[usize::from(from_back)].take() {
            return Some(Ok(entry));
        }
        let next = if from_back { self.snapshot.next_back() } else { self.snapshot.next() };
        // The last one may have been taken by the other end, and not been its next.
        next.or_else(|| self.peeked[usize::from(!from_back)].take().map(Ok))
    }
}

/// Keys and values of a [`TransactionalTree`] in key order, from both ends, the transaction's own
/// writes included.
///
/// The transaction then depends on the keys between the range's beginning and the last one that
/// was returned (or the range's end, if it went on to there), and on no others.
///
/// ```
/// # fn main() -> dogsled::transaction::TransactionResult<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// for key in ["a", "b", "c"] {
///     db.insert(key, key)?;
/// }
/// let keys = db.transaction(|tree| {
///     tree.insert("bb", "mine")?;
///     tree.remove("c")?;
///     let keys: Vec<_> = tree.range("b"..).keys().collect::<Result<_, _>>()?;
///     Ok(keys)
/// })?;
/// assert_eq!(keys, ["b", "bb"]);
/// # Ok(()) }
/// ```
pub struct TransactionalIter {
    merged: MergedIter,
    tree: TransactionalTree,
}

impl TransactionalIter {
    pub(super) fn new(merged: MergedIter, tree: TransactionalTree) -> TransactionalIter {
        TransactionalIter { merged, tree }
    }

    /// The keys alone.
    pub fn keys(self) -> impl DoubleEndedIterator<Item = UnabortableTransactionResult<IVec>> {
        self.map(|entry| entry.map(|(key, _)| key))
    }

    /// The values alone, in the order of their keys.
    pub fn values(self) -> impl DoubleEndedIterator<Item = UnabortableTransactionResult<IVec>> {
        self.map(|entry| entry.map(|(_, value)| value))
    }

    fn advance(&mut self, from_back: bool) -> Option<UnabortableTransactionResult<(IVec, IVec)>> {
        Some(match self.merged.advance(from_back)? {
            Ok((key, found)) => Ok((key, found.value)),
            Err(error) => Err(UnabortableTransactionError::Storage(self.tree.explain(error))),
        })
    }
}

impl Iterator for TransactionalIter {
    type Item = UnabortableTransactionResult<(IVec, IVec)>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance(false)
    }
}

impl DoubleEndedIterator for TransactionalIter {
    fn next_back(&mut self) -> Option<Self::Item> {
        self.advance(true)
    }
}

impl fmt::Debug for TransactionalIter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalIter").finish_non_exhaustive()
    }
}
