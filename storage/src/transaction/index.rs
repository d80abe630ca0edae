//! [`Transactions`]: which transactions a replica knows, and the locks that they hold.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{DECISION, Decided, LockedBy, PREPARED, Part, Prepared, TransactionId};
use crate::codec::{decode_decided, decode_prepared};
use crate::command::{RangeRead, TreeId};
use crate::evaluate::Effect;
use crate::{Error, IVec, Result};

/// All that is prepared or decided in one group, derived from the rows of
/// [`TreeId::TRANSACTIONS`]; see the [module](super).
///
/// Invariant: every key that a prepared part writes has exactly one lock in `writes`, and no key is in
/// both `writes` and `reads` for the same transaction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transactions {
    prepared: BTreeMap<TransactionId, Arc<Prepared>>,
    trees: BTreeMap<TreeId, Locks>,
    /// Those that have locked everything.
    everything: BTreeSet<TransactionId>,
    decided: BTreeMap<TransactionId, Arc<Decided>>,
    /// Decisions in the order in which they may be looked after.
    by_deadline: BTreeSet<(u64, TransactionId)>,
}

/// The locks in one tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Locks {
    writes: BTreeMap<IVec, TransactionId>,
    reads: BTreeMap<IVec, SmallVec<[TransactionId; 1]>>,
    /// By transaction: intervals in order that do not touch each other. `None`: to the end.
    ranges: BTreeMap<TransactionId, Vec<(IVec, Option<IVec>)>>,
}

/// Of several that have read a key, the one that is told to whoever it keeps off. Not the first to come: the answer is
/// part of the state, and a replica that was opened again has read its transactions in the order of their numbers.
fn first(readers: &SmallVec<[TransactionId; 1]>) -> Option<TransactionId> {
    readers.iter().min().copied()
}

impl Locks {
    fn is_empty(&self) -> bool {
        self.writes.is_empty() && self.reads.is_empty() && self.ranges.is_empty()
    }

    fn in_range(&self, key: &[u8]) -> Option<TransactionId> {
        let mut ranges = self.ranges.iter();
        ranges.find(|(_, intervals)| holds(intervals, key)).map(|(transaction, _)| *transaction)
    }
}

/// Whether one of these intervals, in order, holds a key.
fn holds(intervals: &[(IVec, Option<IVec>)], key: &[u8]) -> bool {
    let after = intervals.partition_point(|(low, _)| &low[..] <= key);
    let last = intervals[..after].last();
    last.is_some_and(|(_, high)| high.as_ref().is_none_or(|high| key < &high[..]))
}

/// Intervals in order, those that meet made one.
fn disjoint(mut intervals: Vec<(IVec, Option<IVec>)>) -> Vec<(IVec, Option<IVec>)> {
    intervals.sort_unstable();
    let mut merged: Vec<(IVec, Option<IVec>)> = Vec::with_capacity(intervals.len());
    for (low, high) in intervals {
        if high.as_ref().is_some_and(|high| *high <= low) {
            continue;
        }
        match merged.last_mut() {
            Some((_, None)) => break,
            Some((_, Some(end))) if low <= *end => match high {
                None => merged.last_mut().expect("just seen").1 = None,
                Some(high) if high > *end => *end = high,
                Some(_) => {}
            },
            _ => merged.push((low, high)),
        }
    }
    merged
}

impl Transactions {
    /// Whether nothing is prepared, so that there are no locks.
    pub fn is_idle(&self) -> bool {
        self.prepared.is_empty()
    }

    /// How many parts are prepared, and how many decisions are remembered.
    pub fn counts(&self) -> (usize, usize) {
        (self.prepared.len(), self.decided.len())
    }

    /// Whether a transaction is prepared.
    pub fn is_prepared(&self, transaction: TransactionId) -> bool {
        self.prepared.contains_key(&transaction)
    }

    pub(crate) fn prepared(&self, transaction: TransactionId) -> Option<&Arc<Prepared>> {
        self.prepared.get(&transaction)
    }

    pub(crate) fn decided(&self, transaction: TransactionId) -> Option<&Arc<Decided>> {
        self.decided.get(&transaction)
    }

    /// Those that are prepared and whose lease is over.
    pub fn expired(&self, time_ms: u64, after: Option<TransactionId>) -> impl Iterator<Item = LockedBy> + '_ {
        let behind = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Unbounded);
        let all = self.prepared.range(behind).map(|(transaction, _)| self.locked_by(*transaction));
        all.filter(move |lock| lock.expires_ms <= time_ms)
    }

    /// Decisions whose `decide_by_ms` was before that time, oldest first.
    pub fn decided_before(
        &self,
        time_ms: u64,
        after: Option<(u64, TransactionId)>,
    ) -> impl Iterator<Item = (TransactionId, &Decided)> + '_ {
        let end = (time_ms, TransactionId(0));
        let after = after.filter(|after| *after < end);
        let due = (after.map_or(Bound::Unbounded, Bound::Excluded), Bound::Excluded(end));
        let due = self.by_deadline.range(due);
        due.map(|(_, transaction)| (*transaction, &*self.decided[transaction]))
    }

    fn locked_by(&self, transaction: TransactionId) -> LockedBy {
        let Prepared { home, decide_by_ms, expires_ms, .. } = *self.prepared[&transaction];
        LockedBy { transaction, home, decide_by_ms, expires_ms }
    }

    /// What keeps a key from being read.
    pub(crate) fn against_read(&self, tree: TreeId, key: &[u8]) -> Option<LockedBy> {
        let writer = self.trees.get(&tree)?.writes.get(key)?;
        Some(self.locked_by(*writer))
    }

    /// What keeps a range from being read.
    pub(crate) fn against_scan(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
    ) -> Option<LockedBy> {
        let writes = &self.trees.get(&tree)?.writes;
        // `BTreeMap::range` panics at bounds that hold nothing.
        let mut from_low = writes.range::<[u8], _>((low, Bound::Unbounded));
        let (key, writer) = from_low.next()?;
        let within = match high {
            Bound::Included(high) => &key[..] <= high,
            Bound::Excluded(high) => &key[..] < high,
            Bound::Unbounded => true,
        };
        within.then(|| self.locked_by(*writer))
    }

    /// The keys of a range that are locked for writing, in order, and by whom; at most so many.
    pub(crate) fn written_in(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        limit: usize,
    ) -> Vec<(IVec, LockedBy)> {
        let Some(locks) = self.trees.get(&tree) else { return Vec::new() };
        let within = |key: &IVec| match high {
            Bound::Included(high) => &key[..] <= high,
            Bound::Excluded(high) => &key[..] < high,
            Bound::Unbounded => true,
        };
        let from_low = locks.writes.range::<[u8], _>((low, Bound::Unbounded));
        let written = from_low.take_while(|(key, _)| within(key)).take(limit);
        written.map(|(key, writer)| (key.clone(), self.locked_by(*writer))).collect()
    }

    /// All that would write to a tree.
    pub(crate) fn writers(&self, tree: TreeId) -> Vec<LockedBy> {
        let Some(locks) = self.trees.get(&tree) else { return Vec::new() };
        let writers: BTreeSet<TransactionId> = locks.writes.values().copied().collect();
        writers.into_iter().map(|writer| self.locked_by(writer)).collect()
    }

    /// What keeps a key from being written.
    pub(crate) fn against_write(&self, tree: TreeId, key: &[u8]) -> Option<LockedBy> {
        let in_tree = self.trees.get(&tree).and_then(|locks| {
            let holder = locks.writes.get(key).copied();
            let holder = holder.or_else(|| locks.reads.get(key).and_then(first));
            holder.or_else(|| locks.in_range(key))
        });
        Some(self.locked_by(in_tree.or_else(|| self.has_all_of(tree))?))
    }

    /// What keeps a key that has ended at `expires_ms` from being seen as absent: a transaction that has read it when it was
    /// there, and that comes before whoever sees that it is not any more. If it has not decided yet, what it writes elsewhere
    /// may not be seen yet either, by somebody who has seen the end of this key already.
    pub(crate) fn against_end(&self, tree: TreeId, key: &[u8], expires_ms: u64) -> Option<LockedBy> {
        let locks = self.trees.get(&tree)?;
        let of_key = locks.reads.get(key).into_iter().flatten();
        let of_ranges = locks.ranges.iter().filter(|(_, intervals)| holds(intervals, key));
        let readers = of_key.chain(of_ranges.map(|(transaction, _)| transaction));
        let first = readers.filter(|reader| self.prepared[reader].prepared_ms < expires_ms).min();
        first.map(|reader| self.locked_by(*reader))
    }

    /// Keys that have ended by this time or before it are [kept](Transactions::against_end) by nobody; and by whom the next
    /// ones may be. `None`: by nobody either.
    pub(crate) fn ends_are_kept_after(&self) -> Option<(u64, LockedBy)> {
        let prepared =
            self.prepared.iter().map(|(transaction, prepared)| (prepared.prepared_ms, *transaction));
        let (first_ms, first) = prepared.min()?;
        (first_ms < u64::MAX).then(|| (first_ms, self.locked_by(first)))
    }

    /// Whether anything is locked only for having been read.
    pub(crate) fn has_readers(&self) -> bool {
        self.trees.values().any(|locks| !locks.reads.is_empty() || !locks.ranges.is_empty())
    }

    /// What keeps a tree from being cleared or dropped.
    fn against_clear(&self, tree: TreeId) -> Option<LockedBy> {
        let in_tree = self.trees.get(&tree).and_then(|locks| {
            let holder = locks.writes.values().next().copied();
            let holder = holder.or_else(|| locks.reads.values().next().and_then(first));
            holder.or_else(|| locks.ranges.keys().next().copied())
        });
        Some(self.locked_by(in_tree.or_else(|| self.has_all_of(tree))?))
    }

    /// Who has locked everything, if the tree is a part of that: sessions are renewed, and locks taken and given
    /// back, all the same.
    fn has_all_of(&self, tree: TreeId) -> Option<TransactionId> {
        let apart = [TreeId::SESSIONS, TreeId::TRANSACTIONS, TreeId::LOCKS, TreeId::LOCK_QUEUES];
        self.everything.first().copied().filter(|_| !apart.contains(&tree))
    }

    /// One that is going to write something, perhaps.
    pub(crate) fn any_writer(&self) -> Option<LockedBy> {
        let mut prepared = self.prepared.iter();
        let writer = prepared.find(|(_, prepared)| !prepared.part.only_reads());
        writer.map(|(transaction, _)| self.locked_by(*transaction))
    }

    /// What keeps effects from being applied.
    pub(crate) fn against_effects(&self, effects: &[Effect]) -> Option<LockedBy> {
        effects.iter().find_map(|effect| match effect {
            Effect::Put { tree, key, .. } | Effect::Remove { tree, key } | Effect::Tell { tree, key, .. } => {
                self.against_write(*tree, key)
            }
            Effect::Clear { tree } | Effect::DropTree { id: tree } => self.against_clear(*tree),
            Effect::CreateTree { .. } | Effect::SetNextId { .. } => None,
        })
    }

    /// Follows an effect on [`TreeId::TRANSACTIONS`]; others mean nothing here.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for a row that cannot be read.
    pub(crate) fn follow(&mut self, effect: &Effect) -> Result<()> {
        match effect {
            Effect::Put { tree: TreeId::TRANSACTIONS, key, value, .. } => self.load(key, value),
            Effect::Remove { tree: TreeId::TRANSACTIONS, key } => {
                match split(key)? {
                    (PREPARED, transaction) => self.release(transaction),
                    (_, transaction) => {
                        if let Some(decided) = self.decided.remove(&transaction) {
                            self.by_deadline.remove(&(decided.decide_by_ms, transaction));
                        }
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Takes in a row.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it cannot be read.
    pub(crate) fn load(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let damaged_value =
            |transaction, what: String| damaged(&format!("transaction {transaction}: {what}"));
        match split(key)? {
            (PREPARED, transaction) => {
                let prepared = decode_prepared(value).map_err(|what| damaged_value(transaction, what))?;
                // Rows may come from another machine.
                let taken = |(tree, key): &(TreeId, &IVec)| {
                    let locks = self.trees.get(tree);
                    locks.and_then(|locks| locks.writes.get(*key)).is_some_and(|by| *by != transaction)
                };
                if let Some((_, key)) = prepared.part.written().find(taken) {
                    let what = format!("it writes {key:?}, as another does that is prepared");
                    return Err(damaged_value(transaction, what));
                }
                self.lock(transaction, &prepared.part);
                self.prepared.insert(transaction, Arc::new(prepared));
            }
            (_, transaction) => {
                let decided = decode_decided(value).map_err(|what| damaged_value(transaction, what))?;
                self.by_deadline.insert((decided.decide_by_ms, transaction));
                self.decided.insert(transaction, Arc::new(decided));
            }
        }
        Ok(())
    }

    fn lock(&mut self, transaction: TransactionId, part: &Part) {
        if part.locks_everything() {
            self.everything.insert(transaction);
            return;
        }
        for (tree, key) in part.written() {
            let writes = &mut self.trees.entry(tree).or_default().writes;
            let before = writes.insert(key.clone(), transaction);
            assert!(
                before.is_none_or(|before| before == transaction),
                "{transaction} locks {key:?}, which {before:?} has locked"
            );
        }
        for (tree, key) in part.read() {
            let locks = self.trees.entry(tree).or_default();
            if locks.writes.get(&key) != Some(&transaction) {
                let readers = locks.reads.entry(key).or_default();
                if !readers.contains(&transaction) {
                    readers.push(transaction);
                }
            }
        }
        let mut by_tree: BTreeMap<TreeId, Vec<(IVec, Option<IVec>)>> = BTreeMap::new();
        for RangeRead { tree, low, high, .. } in &part.ranges {
            by_tree.entry(*tree).or_default().push((low.clone(), high.clone()));
        }
        for (tree, intervals) in by_tree {
            let intervals = disjoint(intervals);
            if !intervals.is_empty() {
                self.trees.entry(tree).or_default().ranges.insert(transaction, intervals);
            }
        }
    }

    fn release(&mut self, transaction: TransactionId) {
        let Some(prepared) = self.prepared.remove(&transaction) else { return };
        self.everything.remove(&transaction);
        let ranges = &prepared.part.ranges;
        for (tree, key) in prepared.part.written() {
            if let Some(locks) = self.trees.get_mut(&tree) {
                locks.writes.remove(key);
            }
        }
        for (tree, key) in prepared.part.read() {
            if let Some(locks) = self.trees.get_mut(&tree)
                && let Some(readers) = locks.reads.get_mut(&key)
            {
                readers.retain(|reader| *reader != transaction);
                if readers.is_empty() {
                    locks.reads.remove(&key);
                }
            }
        }
        for range in ranges {
            if let Some(locks) = self.trees.get_mut(&range.tree) {
                locks.ranges.remove(&transaction);
            }
        }
        self.trees.retain(|_, locks| !locks.is_empty());
    }
}

fn split(key: &[u8]) -> Result<(u8, TransactionId)> {
    let whole: &[u8; 17] = key.try_into().map_err(|_| damaged("a key of another length"))?;
    let [kind, id @ ..] = *whole;
    match kind {
        PREPARED | DECISION => Ok((kind, TransactionId(u128::from_be_bytes(id)))),
        _ => Err(damaged("a key of no known kind")),
    }
}

fn damaged(what: &str) -> Error {
    Error::corrupt("the tree of transactions", None, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::encode_prepared;
    use crate::command::{KeyRead, Write};
    use crate::expiry::{ExpiryCommand, SetIf, When};

    fn prepared(reads: &[&str], ranges: &[(&str, Option<&str>)], writes: &[&str]) -> Prepared {
        let tree = TreeId(20);
        Prepared {
            home: 1,
            decide_by_ms: 5,
            expires_ms: 6,
            prepared_ms: 5,
            part: Part {
                reads: reads.iter().map(|key| KeyRead { tree, key: (*key).into(), version: 0 }).collect(),
                ranges: ranges
                    .iter()
                    .map(|(low, high)| RangeRead {
                        tree,
                        low: (*low).into(),
                        high: high.map(IVec::from),
                        count: 0,
                        fingerprint: 0,
                    })
                    .collect(),
                writes: writes.iter().map(|key| Write { tree, key: (*key).into(), value: None }).collect(),
                expiries: Vec::new(),
            },
        }
    }

    fn put(transaction: u128, prepared: &Prepared) -> Effect {
        let key = super::super::key(PREPARED, TransactionId(transaction));
        let value = IVec::from(encode_prepared(prepared));
        Effect::Put { tree: TreeId::TRANSACTIONS, key, value, fresh: Some(true) }
    }

    #[test]
    fn locks_stand_against_what_they_should_and_go_as_they_came() {
        let tree = TreeId(20);
        let mut all = Transactions::default();
        let first = prepared(&["a", "c"], &[("m", Some("p")), ("o", Some("r")), ("x", None)], &["c", "d"]);
        let mut second = prepared(&["a"], &[("n", Some("n5"))], &["e"]);
        let (when, only) = (When::After(9), SetIf::Always);
        second.part.expiries = vec![
            ExpiryCommand::Set { tree, key: "f".into(), when, only },
            ExpiryCommand::Clear { tree, key: "g".into() },
        ];
        all.follow(&put(1, &first)).unwrap();
        all.follow(&put(2, &second)).unwrap();
        let by = |lock: Option<LockedBy>| lock.map(|lock| lock.transaction.0);
        let write = |key: &str| by(all.against_write(tree, key.as_bytes()));
        let read = |key: &str| by(all.against_read(tree, key.as_bytes()));
        for (key, writing, reading) in [
            ("a", Some(1), None),
            ("b", None, None),
            ("c", Some(1), Some(1)),
            ("d", Some(1), Some(1)),
            ("e", Some(2), Some(2)),
            ("f", Some(2), Some(2)),
            ("g", Some(2), Some(2)),
            ("l", None, None),
            ("m", Some(1), None),
            ("q9", Some(1), None),
            ("r", None, None),
            ("zzz", Some(1), None),
        ] {
            assert_eq!((write(key), read(key)), (writing, reading), "{key}");
            assert_eq!(by(all.against_write(TreeId(21), key.as_bytes())), None, "{key}");
        }
        let scan = |low: &str, high: &str| {
            by(all.against_scan(tree, Bound::Included(low.as_bytes()), Bound::Excluded(high.as_bytes())))
        };
        assert_eq!(
            [scan("a", "c"), scan("a", "c0"), scan("d0", "z"), scan("g0", "z")],
            [None, Some(1), Some(2), None]
        );
        assert_eq!(scan("z", "a"), None);
        assert_eq!(by(all.against_effects(&[Effect::Clear { tree }])), Some(1));
        assert_eq!(all.expired(5, None).count(), 0);
        assert_eq!(all.expired(6, None).count(), 2);

        assert!(all.follow(&put(3, &prepared(&[], &[], &["c"]))).is_err(), "two cannot write one key");
        for transaction in [2, 1] {
            let key = super::super::key(PREPARED, TransactionId(transaction));
            all.follow(&Effect::Remove { tree: TreeId::TRANSACTIONS, key }).unwrap();
            assert!([b"e", b"f", b"g"].into_iter().all(|key| all.against_write(tree, key).is_none()));
            assert_eq!(by(all.against_write(tree, b"a")), (transaction == 2).then_some(1));
        }
        assert_eq!(all, Transactions::default());
    }

    /// A replica that is opened again loads the rows in the order of their keys, and must answer as the others do: the
    /// simulation found the two apart (seed 17 of transactions).
    #[test]
    fn which_of_several_readers_is_told_does_not_depend_on_who_came_first() {
        let tree = TreeId(20);
        let told = |order: [u128; 3]| {
            let mut all = Transactions::default();
            for transaction in order {
                all.follow(&put(transaction, &prepared(&["a"], &[], &[]))).unwrap();
            }
            let of_write = all.against_write(tree, b"a").unwrap().transaction;
            let of_clear = all.against_effects(&[Effect::Clear { tree }]).unwrap().transaction;
            (of_write.0, of_clear.0)
        };
        for order in [[1, 2, 3], [3, 1, 2], [2, 3, 1], [3, 2, 1]] {
            assert_eq!(told(order), (1, 1), "{order:?}");
        }
    }

    #[test]
    fn intervals_that_meet_become_one() {
        let of = |intervals: &[(&str, Option<&str>)]| {
            disjoint(intervals.iter().map(|(low, high)| ((*low).into(), high.map(IVec::from))).collect())
        };
        assert_eq!(of(&[("c", Some("d")), ("a", Some("b")), ("b", Some("c"))]), of(&[("a", Some("d"))]));
        assert_eq!(of(&[("a", None), ("b", Some("c"))]), of(&[("a", None)]));
        assert_eq!(of(&[("a", Some("m")), ("b", Some("c")), ("d", Some("z"))]), of(&[("a", Some("z"))]));
        assert_eq!(of(&[("b", Some("a")), ("c", Some("c"))]), []);
        assert_eq!(of(&[("a", Some("b")), ("c", Some("d"))]).len(), 2);
    }
}
