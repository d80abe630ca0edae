//! [`TransactionalTree`]: a tree as seen by one run of a transaction.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::rc::Rc;
use std::sync::Arc;

use dogsled_storage::{Command, Error as StorageError, OwnedCommand, Reply, SessionId, TreeId};

use super::attempt::Attempt;
use super::iter::MergedIter;
use super::{
    TransactionalCounter, TransactionalIter, TransactionalLock, UnabortableTransactionError,
    UnabortableTransactionResult,
};
use crate::tree::{CompareAndSwapError, owned_bounds, prefix_bounds};
use crate::{Batch, Error, IVec, Result, Session, Tree};

/// A tree as seen by one run of a transaction: the state at its beginning, and its own writes.
///
/// It is of use within the closure only; afterwards all its methods return an error.
#[derive(Clone)]
pub struct TransactionalTree {
    tree: Tree,
    attempt: Rc<Attempt>,
}

impl TransactionalTree {
    pub(super) fn new(tree: &Tree, attempt: &Rc<Attempt>) -> TransactionalTree {
        if let Some(fences) = &tree.fences {
            attempt.fence(fences);
        }
        TransactionalTree { tree: tree.clone(), attempt: Rc::clone(attempt) }
    }

    pub(super) fn id(&self) -> TreeId {
        self.tree.id
    }

    pub(super) fn explain(&self, error: StorageError) -> Error {
        self.tree.explain(error)
    }

    /// Evaluates a command that writes to this tree.
    pub(super) fn evaluate_on_tree(&self, command: &Command) -> UnabortableTransactionResult<Reply> {
        self.tree.check_writable().map_err(UnabortableTransactionError::Storage)?;
        self.attempt.evaluate(command)
    }

    /// Sets a key of this tree that dies with a session, or has a number.
    pub(super) fn owned(&self, command: OwnedCommand) -> UnabortableTransactionResult<Reply> {
        self.tree.check_writable().map_err(UnabortableTransactionError::Storage)?;
        self.attempt.write_owned(command)
    }

    /// The id of a session that can own keys of this tree.
    pub(super) fn check_session(&self, session: &Session) -> UnabortableTransactionResult<SessionId> {
        session.check(&self.tree).map_err(UnabortableTransactionError::Storage)?;
        Ok(session.id())
    }

    /// Takes from a key what this transaction has said of its session.
    pub(super) fn make_plain(&self, tree: TreeId, key: &IVec) -> UnabortableTransactionResult<()> {
        self.check(self.attempt.make_plain(tree, key))
    }

    /// The time at which the run began.
    pub(super) fn began_ms(&self) -> u64 {
        self.attempt.time_ms()
    }

    fn check<T>(&self, result: Result<T, StorageError>) -> UnabortableTransactionResult<T> {
        result.map_err(|error| UnabortableTransactionError::Storage(self.explain(error)))
    }

    fn write(&self, key: IVec, value: Option<IVec>) -> UnabortableTransactionResult<()> {
        self.tree.check_writable().map_err(UnabortableTransactionError::Storage)?;
        self.check(self.attempt.write(self.tree.id, key, value))
    }

    /// Sets a key; the value that was there before, which counts as read.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("k", "old")?;
    /// let before = db.transaction(|tree| Ok(tree.insert("k", "new")?))?;
    /// assert_eq!(before.unwrap(), "old");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn insert<K, V>(&self, key: K, value: V) -> UnabortableTransactionResult<Option<IVec>>
    where
        K: AsRef<[u8]> + Into<IVec>,
        V: Into<IVec>,
    {
        let previous = self.get(key.as_ref())?;
        self.write(key.into(), Some(value.into()))?;
        Ok(previous)
    }

    /// Removes a key; the value that was there, which counts as read.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("k", "v")?;
    /// let removed = db.transaction(|tree| Ok(tree.remove("k")?))?;
    /// assert_eq!(removed.unwrap(), "v");
    /// assert_eq!(db.get("k")?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn remove<K>(&self, key: K) -> UnabortableTransactionResult<Option<IVec>>
    where
        K: AsRef<[u8]> + Into<IVec>,
    {
        let previous = self.get(key.as_ref())?;
        self.write(key.into(), None)?;
        Ok(previous)
    }

    /// The value of a key.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.transaction(|tree| {
    ///     tree.insert("k", "v")?;
    ///     assert_eq!(tree.get("k")?.unwrap(), "v"); // its own writes
    ///     Ok(())
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get<K: AsRef<[u8]>>(&self, key: K) -> UnabortableTransactionResult<Option<IVec>> {
        let found = self.check(self.attempt.get(self.tree.id, key.as_ref()))?;
        Ok(found.map(|found| found.value))
    }

    /// Whether a key is there.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let new = db.transaction(|tree| {
    ///     let new = !tree.contains_key("ann")?;
    ///     tree.insert("ann", "here")?;
    ///     Ok(new)
    /// })?;
    /// assert!(new);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn contains_key<K: AsRef<[u8]>>(&self, key: K) -> UnabortableTransactionResult<bool> {
        Ok(self.get(key)?.is_some())
    }

    /// Sets a key to `new` (or removes it, for `None`) if its value is `old` (or it is absent, for
    /// `None`). The value counts as read either way.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.transaction(|tree| {
    ///     assert!(tree.compare_and_swap("k", None as Option<&str>, Some("1"))?.is_ok());
    ///     assert!(tree.compare_and_swap("k", Some("2"), Some("3"))?.is_err());
    ///     Ok(())
    /// })?;
    /// assert_eq!(db.get("k")?.unwrap(), "1");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Outer: those of reading. Inner: [`CompareAndSwapError`].
    pub fn compare_and_swap<K, OV, NV>(
        &self,
        key: K,
        old: Option<OV>,
        new: Option<NV>,
    ) -> UnabortableTransactionResult<std::result::Result<(), CompareAndSwapError>>
    where
        K: AsRef<[u8]>,
        OV: AsRef<[u8]>,
        NV: Into<IVec>,
    {
        let current = self.get(key.as_ref())?;
        let proposed = new.map(Into::into);
        if current.as_deref() != old.as_ref().map(AsRef::as_ref) {
            return Ok(Err(CompareAndSwapError { current, proposed }));
        }
        self.write(IVec::from(key.as_ref()), proposed)?;
        Ok(Ok(()))
    }

    /// Applies all writes of a batch, without reading: no write of others to these keys makes
    /// this transaction run again.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let mut batch = dogsled::Batch::default();
    /// batch.insert("a", "1");
    /// batch.remove("b");
    /// db.transaction(|tree| Ok(tree.apply_batch(&batch)?))?;
    /// assert_eq!(db.get("a")?.unwrap(), "1");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] once the transaction is over.
    pub fn apply_batch(&self, batch: &Batch) -> UnabortableTransactionResult<()> {
        for (key, value) in batch.writes() {
            self.write(key.clone(), value.clone())?;
        }
        Ok(())
    }

    /// All keys and values, in key order; see [`TransactionalIter`].
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// for (key, value) in [("a", "1"), ("b", "2")] {
    ///     db.insert(key, value)?;
    /// }
    /// // Nobody adds or removes an account before this commits.
    /// db.transaction(|accounts| {
    ///     let count = accounts.iter().count();
    ///     accounts.insert("count", count.to_string().as_str())?;
    ///     Ok(())
    /// })?;
    /// assert_eq!(db.get("count")?.unwrap(), "2");
    /// # Ok(()) }
    /// ```
    pub fn iter(&self) -> TransactionalIter {
        self.range::<&[u8], _>(..)
    }

    /// The keys in a range and their values, in key order; see [`TransactionalIter`].
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// for key in ["a", "b", "c", "d"] {
    ///     db.insert(key, "")?;
    /// }
    /// let found = db.transaction(|tree| {
    ///     let mut keys = Vec::new();
    ///     for entry in tree.range("b".."d") {
    ///         keys.push(entry?.0);
    ///     }
    ///     Ok(keys)
    /// })?;
    /// assert_eq!(found, ["b", "c"]);
    /// # Ok(()) }
    /// ```
    pub fn range<K, R>(&self, range: R) -> TransactionalIter
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        self.range_of(owned_bounds(&range))
    }

    /// The keys that begin with `prefix` and their values, in key order; see
    /// [`TransactionalIter`].
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("user/1", "ann")?;
    /// db.insert("users", "no")?;
    /// let users = db.transaction(|tree| Ok(tree.scan_prefix("user/").count()))?;
    /// assert_eq!(users, 1);
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix<P: AsRef<[u8]>>(&self, prefix: P) -> TransactionalIter {
        self.range_of(prefix_bounds(prefix.as_ref()))
    }

    fn range_of(&self, (low, high): (Bound<IVec>, Bound<IVec>)) -> TransactionalIter {
        let merged = MergedIter::new(Rc::clone(&self.attempt), self.tree.id, low, high);
        TransactionalIter::new(merged, self.clone())
    }

    /// The first key and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("b", "2")?;
    /// db.insert("a", "1")?;
    /// let first = db.transaction(|tree| Ok(tree.first()?))?;
    /// assert_eq!(first.unwrap().0, "a");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn first(&self) -> UnabortableTransactionResult<Option<(IVec, IVec)>> {
        self.iter().next().transpose()
    }

    /// The last key and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("b", "2")?;
    /// db.insert("a", "1")?;
    /// let last = db.transaction(|tree| Ok(tree.last()?))?;
    /// assert_eq!(last.unwrap().0, "b");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn last(&self) -> UnabortableTransactionResult<Option<(IVec, IVec)>> {
        self.iter().next_back().transpose()
    }

    /// The last key before `key`, and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("2026-01", "winter")?;
    /// db.insert("2026-06", "summer")?;
    /// let before = db.transaction(|tree| Ok(tree.get_lt("2026-06")?))?;
    /// assert_eq!(before.unwrap().1, "winter");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get_lt<K: AsRef<[u8]>>(&self, key: K) -> UnabortableTransactionResult<Option<(IVec, IVec)>> {
        self.range(..key).next_back().transpose()
    }

    /// The first key after `key`, and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("2026-01", "winter")?;
    /// db.insert("2026-06", "summer")?;
    /// let after = db.transaction(|tree| Ok(tree.get_gt("2026-01")?))?;
    /// assert_eq!(after.unwrap().1, "summer");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get_gt<K: AsRef<[u8]>>(&self, key: K) -> UnabortableTransactionResult<Option<(IVec, IVec)>> {
        self.range((Bound::Excluded(key), Bound::Unbounded)).next().transpose()
    }

    /// Removes the first key; it and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("job 1", "sweep")?;
    /// let job = db.transaction(|queue| Ok(queue.pop_min()?))?;
    /// assert_eq!(job.unwrap().1, "sweep");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn pop_min(&self) -> UnabortableTransactionResult<Option<(IVec, IVec)>> {
        self.pop(false)
    }

    /// Removes the last key; it and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("job 1", "sweep")?;
    /// db.insert("job 2", "paint")?;
    /// let job = db.transaction(|stack| Ok(stack.pop_max()?))?;
    /// assert_eq!(job.unwrap().1, "paint");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn pop_max(&self) -> UnabortableTransactionResult<Option<(IVec, IVec)>> {
        self.pop(true)
    }

    fn pop(&self, last: bool) -> UnabortableTransactionResult<Option<(IVec, IVec)>> {
        self.tree.check_writable().map_err(UnabortableTransactionError::Storage)?;
        self.check(self.attempt.pop(self.tree.id, last))
    }

    /// How many keys there are. They are counted, and the transaction depends on all of them:
    /// any insert or remove by others makes it run again.
    ///
    /// # Errors
    /// Those of reading.
    pub fn len(&self) -> UnabortableTransactionResult<usize> {
        let mut count = 0;
        for entry in self.iter() {
            entry?;
            count += 1;
        }
        Ok(count)
    }

    /// Whether there are no keys. The transaction then depends on the first key only.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// assert!(db.transaction(|tree| Ok(tree.is_empty()?))?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn is_empty(&self) -> UnabortableTransactionResult<bool> {
        Ok(self.first()?.is_none())
    }

    /// The atomic counter of that name, as a part of this transaction.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.transaction(|orders| {
    ///     let number = orders.counter("orders").add(1)?;
    ///     orders.insert(&number.to_be_bytes(), "one sled")?;
    ///     Ok(())
    /// })?;
    /// assert_eq!(db.counter("orders").get()?, 1);
    /// # Ok(()) }
    /// ```
    pub fn counter(&self, name: impl AsRef<[u8]>) -> TransactionalCounter {
        TransactionalCounter::new(IVec::from(name.as_ref()), Rc::clone(&self.attempt))
    }

    /// The lock of that name, as a part of this transaction; see [`TransactionalLock`].
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let got = db.transaction(|tree| Ok(tree.lock("door").try_acquire("ann", Duration::from_secs(9))?))?;
    /// assert!(got);
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, name: impl AsRef<[u8]>) -> TransactionalLock {
        TransactionalLock::new(IVec::from(name.as_ref()), Rc::clone(&self.attempt))
    }

    /// Another tree of the same database, as a part of this transaction.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let index = db.open_tree("index")?;
    /// db.transaction(|tree| {
    ///     tree.insert("ann", "42")?;
    ///     tree.tree(&index)?.insert("42", "ann")?;
    ///     Ok(())
    /// })?;
    /// assert_eq!(index.get("42")?.unwrap(), "ann");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is of another database.
    pub fn tree(&self, tree: &Tree) -> UnabortableTransactionResult<TransactionalTree> {
        if !Arc::ptr_eq(&tree.database, &self.tree.database) {
            return Err(super::transactional::different_databases().into());
        }
        Ok(TransactionalTree::new(tree, &self.attempt))
    }

    /// Makes the transaction survive power loss from the moment it returns, as
    /// [`Durability::Synced`](crate::Durability::Synced) does.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.transaction(|tree| {
    ///     tree.insert("k", "v")?;
    ///     tree.flush();
    ///     Ok(())
    /// })?; // on disk
    /// # Ok(()) }
    /// ```
    pub fn flush(&self) {
        self.attempt.require_sync();
    }

    /// As [`Db::generate_id`](crate::Db::generate_id): each run of the closure is given another.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let id = db.transaction(|tree| {
    ///     let id = tree.generate_id()?;
    ///     tree.insert(&id.to_be_bytes(), "event")?;
    ///     Ok(id)
    /// })?;
    /// assert!(db.contains_key(id.to_be_bytes())?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn generate_id(&self) -> Result<u64> {
        self.tree.database.generate_id()
    }

    /// The tree's name.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let users = db.open_tree("users")?;
    /// let name = users.transaction(|tree| Ok(tree.name()))?;
    /// assert_eq!(name, "users");
    /// # Ok(()) }
    /// ```
    pub fn name(&self) -> IVec {
        self.tree.name()
    }
}

impl fmt::Debug for TransactionalTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TransactionalTree").field("tree", &self.tree).finish_non_exhaustive()
    }
}
