//! What a [`Replica`] has to do with [transactions over several groups](crate::transaction), beside
//! applying entries: reads that heed their locks, and what the node asks that looks after them.
//!
//! # Reads that nobody pays for
//!
//! Whether a read meets a lock must be judged as of the very position that it reads at, and the locks are
//! under the commit mutex. Reads do not take that while nothing is prepared: [`PreparedCount`] tells them
//! so, before and after. If it was zero before, and nothing was begun until after, nothing was prepared
//! at any moment between, so not at the position that was read.

use std::ops::{Bound, RangeBounds};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::command::{KeyRead, RangeFingerprint, RangeRead};
use crate::engine::Committer;
use crate::group::{GroupRead, GroupReadReply};
use crate::replica::Replica;
use crate::replica_read::{Moment, view};
use crate::snapshot::Snapshot;
use crate::state::Ends;
use crate::transaction::{Decided, LockedBy, TransactionId, Transactions};
use crate::{Engine, IVec, Result, TreeId, expiry};

/// With so many keys that are being written in its range, a page is not looked at.
const MAX_KEYS_BESIDE: usize = 4096;

/// Keys that have ended, and who keeps that from being seen.
type Ended = Vec<(TreeId, IVec, LockedBy)>;

/// How many transactions are prepared; see the [module](self).
#[derive(Debug, Default)]
pub(crate) struct PreparedCount {
    count: AtomicUsize,
    begun: AtomicU64,
}

impl PreparedCount {
    /// Before an entry is to be seen that changes what is prepared.
    pub(crate) fn begin(&self) {
        // In this order: whoever finds that nothing is prepared has seen a number that is an earlier one.
        self.count.fetch_max(1, Ordering::SeqCst);
        self.begun.fetch_add(1, Ordering::SeqCst);
    }

    /// After it is to be seen.
    pub(crate) fn set(&self, count: usize) {
        self.count.store(count, Ordering::SeqCst);
    }

    /// `Some`, if nothing is prepared; to be handed to [`PreparedCount::still`].
    fn none(&self) -> Option<u64> {
        let begun = self.begun.load(Ordering::SeqCst);
        (self.count.load(Ordering::SeqCst) == 0).then_some(begun)
    }

    /// Whether nothing has begun since.
    fn still(&self, begun: u64) -> bool {
        self.begun.load(Ordering::SeqCst) == begun
    }
}

/// What came of a read that heeds locks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The answer.
    Answer(GroupReadReply),
    /// The answer depends on a transaction that is prepared here: wait until it is not, and ask again.
    Locked(LockedBy),
}

impl Engine {
    /// Reads the rows of a replica's transactions.
    pub(crate) fn load_transactions(&self) -> Result<()> {
        let rows = self.snapshot().range(TreeId::TRANSACTIONS, Bound::Unbounded, Bound::Unbounded);
        let mut transactions = Transactions::default();
        for row in rows {
            let (key, found) = row?;
            transactions.load(&key, &found.value)?;
        }
        let replica = self.shared.replica.as_ref().expect("only replicas have transactions");
        replica.prepared.set(transactions.counts().0);
        self.shared.commit.lock().transactions = transactions;
        Ok(())
    }
}

impl Replica {
    /// What [`GroupRead::Strings`] tells of one key that is only [got](crate::strings::StringAction::Get); `None` if it is
    /// no string, or has to be read by [`Replica::read_settled`] because transactions are prepared.
    ///
    /// # Errors
    /// As [`Replica::read`].
    pub fn text_settled(&self, tree: &IVec, key: &IVec) -> Result<Option<Option<IVec>>> {
        let prepared = &self.state().prepared;
        let Some(begun) = prepared.none() else { return Ok(None) };
        let text = self.text_of(tree, key)?;
        Ok(text.filter(|_| prepared.still(begun)))
    }

    /// As [`Replica::read`], unless the answer would show a key that a transaction has locked for
    /// writing: it may have been committed already, and its writes are not there yet.
    ///
    /// # Errors
    /// As [`Replica::read`].
    pub fn read_settled(&self, read: &GroupRead) -> Result<Settled> {
        let prepared = &self.state().prepared;
        if let Some(begun) = prepared.none() {
            let answer = self.read(read)?;
            if prepared.still(begun) {
                return Ok(Settled::Answer(answer));
            }
        }
        if let GroupRead::Get { .. }
        | GroupRead::Expires { .. }
        | GroupRead::Counter { .. }
        | GroupRead::LockHolder { .. }
        | GroupRead::LockHolders { .. }
        | GroupRead::Ticket { .. } = read
        {
            let locked = || {
                let committer = self.engine().shared.commit.lock();
                Ok::<_, crate::Error>(match self.ended_beside(&committer)? {
                    Ok(ended) => self.lock_against(&committer, None, &ended, read),
                    Err(lock) => Some(lock),
                })
            };
            if let Some(lock) = locked()? {
                return Ok(Settled::Locked(lock));
            }
            // The value of one key: at this moment no transaction that is not resolved has decided on it. What is
            // read now is that of a moment between then and now, whatever was prepared meanwhile.
            let answer = self.read(read)?;
            // But that it was over by then may not be told while who saw it there has not decided.
            return Ok(match locked()? {
                Some(lock) => Settled::Locked(lock),
                None => Settled::Answer(answer),
            });
        }
        let committer = self.engine().shared.commit.lock();
        let moment = self.moment_of(&committer);
        let snapshot = &moment.snapshot;
        if let GroupRead::Range { tree, low, high, reverse, .. } = read {
            let tree = snapshot.state().catalog.names.get(tree).copied();
            let bounds = (low.as_ref().map(|low| &low[..]), high.as_ref().map(|high| &high[..]));
            let written = |tree| committer.transactions.written_in(tree, bounds.0, bounds.1, MAX_KEYS_BESIDE);
            let mut locked = tree.map_or(Vec::new(), written);
            let is_full = locked.len() == MAX_KEYS_BESIDE;
            let ended = match self.ended_beside(&committer)? {
                Ok(ended) => ended,
                Err(lock) => return Ok(Settled::Locked(lock)),
            };
            drop(committer);
            if let Some((_, lock)) = locked.last().filter(|_| is_full) {
                return Ok(Settled::Locked(*lock));
            }
            let ended = ended.into_iter().filter(|(of, key, _)| {
                let within = RangeBounds::<[u8]>::contains(&bounds, &key[..]);
                Some(*of) == tree && within
            });
            locked.extend(ended.map(|(_, key, lock)| (key, lock)));
            return self.page_beside(&moment, read, *reverse, &locked);
        }
        let ended = match self.ended_beside(&committer)? {
            Ok(ended) => ended,
            Err(lock) => return Ok(Settled::Locked(lock)),
        };
        if let Some(lock) = self.lock_against(&committer, Some(snapshot), &ended, read) {
            return Ok(Settled::Locked(lock));
        }
        let answer = match read {
            GroupRead::Validate { trees, reads, ranges, since, under } => {
                return Ok(Settled::Answer(GroupReadReply::Valid(validate(
                    snapshot,
                    &committer,
                    (trees, reads, ranges),
                    (*since, *under),
                )?)));
            }
            _ => {
                drop(committer);
                self.read_from(&moment, read)?
            }
        };
        Ok(Settled::Answer(answer))
    }

    /// A page of a range, unless one of the keys that are being written lies within what the page shows: not
    /// every lock in a tree is to hold up whoever walks through it.
    fn page_beside(
        &self,
        moment: &Moment,
        read: &GroupRead,
        reverse: bool,
        locked: &[(IVec, LockedBy)],
    ) -> Result<Settled> {
        let answer = self.read_from(moment, read)?;
        let GroupReadReply::Page { entries, more } = &answer else {
            unreachable!("a range was answered by {answer:?}");
        };
        let end = entries.last().filter(|_| *more).map(|(key, _)| key);
        let shown = |key: &IVec| end.is_none_or(|end| if reverse { key >= end } else { key <= end });
        Ok(match locked.iter().find(|(key, _)| shown(key)) {
            Some((_, lock)) => Settled::Locked(*lock),
            None => Settled::Answer(answer),
        })
    }

    /// Keys whose time is over as of the newest commit, and that a prepared transaction has read when it was not: as long
    /// as these are locked nobody removes them. See [`Transactions::against_end`]. An error: there are too many to be looked
    /// at while everybody waits; then it is as if this transaction had read what is asked for.
    fn ended_beside(&self, committer: &Committer) -> Result<std::result::Result<Ended, LockedBy>> {
        let (transactions, time_ms) = (&committer.transactions, committer.time_ms);
        if !transactions.has_readers() || self.engine().shared.due.keys() > time_ms {
            return Ok(Ok(Vec::new()));
        }
        let Some((after_ms, first)) = transactions.ends_are_kept_after() else { return Ok(Ok(Vec::new())) };
        let (snapshot, ends) = (self.engine().snapshot(), Ends::default());
        let view = view(&snapshot, &ends);
        let due = expiry::due_keys_after(&view, TreeId::EXPIRY, after_ms, time_ms, MAX_KEYS_BESIDE)?;
        let (due, false) = due else { return Ok(Err(first)) };
        let ended = due.into_iter().filter_map(|due| {
            let (ends_ms, tree) = (expiry::due_time(&due)?, due.get(9..13)?.first_chunk()?);
            let (tree, key) = (TreeId(u32::from_be_bytes(*tree)), due.subslice(13, due.len() - 13));
            let lock = transactions.against_end(tree, &key, ends_ms)?;
            Some((tree, key, lock))
        });
        Ok(Ok(ended.collect()))
    }

    /// What keeps a read from being answered, as of the newest commit.
    fn lock_against(
        &self,
        committer: &Committer,
        snapshot: Option<&Snapshot>,
        ended: &[(TreeId, IVec, LockedBy)],
        read: &GroupRead,
    ) -> Option<LockedBy> {
        let transactions = &committer.transactions;
        if transactions.is_idle() {
            return None;
        }
        let catalog = match snapshot {
            Some(snapshot) => std::sync::Arc::clone(&snapshot.state().catalog),
            None => std::sync::Arc::clone(&self.engine().shared.state.load().catalog),
        };
        let tree_id = |name: &IVec| catalog.names.get(name).copied();
        let against_scan = |tree, low: Bound<&[u8]>, high: Bound<&[u8]>| {
            let has_ended = || {
                let within = |key: &IVec| RangeBounds::<[u8]>::contains(&(low, high), &key[..]);
                ended.iter().find(|(of, key, _)| *of == tree && within(key)).map(|(.., lock)| *lock)
            };
            transactions.against_scan(tree, low, high).or_else(has_ended)
        };
        let against_read = |tree, key: &IVec| {
            let has_ended =
                || ended.iter().find(|(of, ended, _)| *of == tree && ended == key).map(|(.., lock)| *lock);
            transactions.against_read(tree, key).or_else(has_ended)
        };
        match read {
            GroupRead::Get { tree, key } | GroupRead::Expires { tree, key } => {
                against_read(tree_id(tree)?, key)
            }
            GroupRead::GetMany { tree, keys } | GroupRead::GetKinds { tree, keys } => {
                let tree = tree_id(tree)?;
                keys.iter().find_map(|key| against_read(tree, key))
            }
            // It counts what is over and not removed.
            GroupRead::Len { tree } => {
                transactions.against_scan(tree_id(tree)?, Bound::Unbounded, Bound::Unbounded)
            }
            // Whoever writes a field writes the key.
            GroupRead::Strings { trees, operations } => operations.iter().find_map(|operation| {
                let tree = trees.get(operation.tree.0 as usize).and_then(tree_id)?;
                against_read(tree, &operation.key)
            }),
            GroupRead::Counter { name } => transactions.against_read(TreeId::COUNTERS, name),
            // Also by a transaction that only wants the lock to be held. If its lease were told to be over, that the
            // transaction has come before this would be seen after it.
            GroupRead::LockHolder { name } | GroupRead::LockHolders { name } => {
                transactions.against_write(TreeId::LOCKS, name)
            }
            GroupRead::Validate { trees, reads, ranges, .. } => {
                let tree_id = |index: TreeId| trees.get(index.0 as usize).and_then(tree_id);
                let key = |read: &KeyRead| against_read(tree_id(read.tree)?, &read.key);
                let range = |range: &RangeRead| {
                    let (low, high) = bounds(range);
                    against_scan(tree_id(range.tree)?, low, high)
                };
                reads.iter().find_map(key).or_else(|| ranges.iter().find_map(range))
            }
            // Of a range, it depends on what the page shows. A transaction does not wait in line for a lock.
            GroupRead::Range { .. }
            | GroupRead::Ticket { .. }
            | GroupRead::Trees
            | GroupRead::Sessions { .. }
            | GroupRead::Quotas
            | GroupRead::NextNumber { .. }
            | GroupRead::EarliestSessionExpiry
            | GroupRead::Transactions => None,
        }
    }

    /// Validates what was read; see [`GroupRead::Validate`].
    pub(crate) fn validate(
        &self,
        read: (&[IVec], &[KeyRead], &[RangeRead]),
        held: (Option<u64>, Option<TransactionId>),
    ) -> Result<bool> {
        let committer = self.engine().shared.commit.lock();
        let snapshot = self.engine().snapshot();
        validate(&snapshot, &committer, read, held)
    }

    /// How many parts are prepared, and how many decisions are remembered.
    pub fn transaction_counts(&self) -> (usize, usize) {
        self.engine().shared.commit.lock().transactions.counts()
    }

    /// Whether a transaction is prepared here.
    pub fn is_prepared(&self, transaction: TransactionId) -> bool {
        self.state().prepared.none().is_none()
            && self.engine().shared.commit.lock().transactions.is_prepared(transaction)
    }

    /// Transactions that are prepared now and would write to a tree. A read of something that is not of one moment
    /// anyway, as of the number of keys, waits for these, and not for those that come meanwhile.
    pub fn writers(&self, tree: &IVec) -> Vec<LockedBy> {
        if self.state().prepared.none().is_some() {
            return Vec::new();
        }
        let committer = self.engine().shared.commit.lock();
        let tree = self.engine().shared.state.load().catalog.names.get(tree).copied();
        tree.map_or(Vec::new(), |tree| committer.transactions.writers(tree))
    }

    /// Prepared transactions whose lease was over at that time of the log, in the order of their numbers, those behind
    /// `after`, at most so many.
    pub fn expired_transactions(
        &self,
        time_ms: u64,
        after: Option<TransactionId>,
        limit: usize,
    ) -> Vec<LockedBy> {
        if self.state().prepared.none().is_some() {
            return Vec::new();
        }
        let committer = self.engine().shared.commit.lock();
        committer.transactions.expired(time_ms, after).take(limit).collect()
    }

    /// Decisions that could be made only before that time of the log, oldest first, those behind `after` (until when one
    /// could be made, and whose it is), at most so many.
    pub fn decisions_before(
        &self,
        time_ms: u64,
        after: Option<(u64, TransactionId)>,
        limit: usize,
    ) -> Vec<(TransactionId, Decided)> {
        let committer = self.engine().shared.commit.lock();
        let due = committer.transactions.decided_before(time_ms, after).take(limit);
        due.map(|(transaction, decided)| (transaction, decided.clone())).collect()
    }
}

fn bounds(range: &RangeRead) -> (Bound<&[u8]>, Bound<&[u8]>) {
    let high = range.high.as_ref().map_or(Bound::Unbounded, |high| Bound::Excluded(&high[..]));
    (Bound::Included(&range.low), high)
}

fn validate(
    snapshot: &Snapshot,
    committer: &Committer,
    (trees, reads, ranges): (&[IVec], &[KeyRead], &[RangeRead]),
    (since, under): (Option<u64>, Option<TransactionId>),
) -> Result<bool> {
    if under.is_some_and(|transaction| !committer.transactions.is_prepared(transaction)) {
        return Ok(false);
    }
    let mut numbers = Vec::with_capacity(trees.len());
    for name in trees {
        numbers.push(crate::replica_read::find(snapshot.state(), name)?);
    }
    let tree_id = |index: TreeId| {
        numbers.get(index.0 as usize).copied().ok_or_else(|| {
            let what = format!("tree {} of a read that names {}", index.0, numbers.len());
            crate::Error::InvalidRequest(what)
        })
    };
    // Nothing has come and gone unseen.
    let steady = |tree: Option<TreeId>| match (since, tree) {
        (None, _) => true,
        (Some(since), Some(tree)) => committer.removals.none_after(since, tree),
        (Some(since), None) => committer.removals.none_dropped_after(since),
    };
    // What is over, and not removed yet, is hidden, and has left no trace.
    let beneath = since.filter(|_| snapshot.hides()).map(|since| (snapshot.with_expired(), since));
    let came_and_ended = |tree: TreeId, key: &IVec, version: u64| -> Result<bool> {
        let is_new = beneath.as_ref().is_some_and(|(_, since)| version > *since);
        Ok(is_new && snapshot.get(tree, key)?.is_none())
    };
    for read in reads {
        let tree = tree_id(read.tree)?;
        if let (0, Some((beneath, _)), Some(tree)) = (read.version, &beneath, tree)
            && let Some(found) = beneath.get(tree, &read.key)?
            && came_and_ended(tree, &read.key, found.version)?
        {
            return Ok(false);
        }
        let version = match tree {
            Some(tree) => snapshot.get(tree, &read.key)?.map_or(0, |found| found.version),
            None => 0,
        };
        if version != read.version || (version == 0 && !steady(tree)) {
            return Ok(false);
        }
    }
    for range in ranges {
        let tree = tree_id(range.tree)?;
        let (mut count, mut fingerprint) = (0, RangeFingerprint::default());
        if let Some(tree) = tree {
            let (low, high) = bounds(range);
            for entry in snapshot.range(tree, low.map(IVec::from), high.map(IVec::from)) {
                count += 1;
                fingerprint.add(entry?.1.version);
                if count > range.count {
                    break;
                }
            }
        }
        if count != range.count || fingerprint.finish() != range.fingerprint || !steady(tree) {
            return Ok(false);
        }
        if let (Some((beneath, _)), Some(tree)) = (&beneath, tree) {
            let (low, high) = bounds(range);
            for entry in beneath.range(tree, low.map(IVec::from), high.map(IVec::from)) {
                let (key, found) = entry?;
                if came_and_ended(tree, &key, found.version)? {
                    return Ok(false);
                }
            }
        }
    }
    Ok(true)
}
