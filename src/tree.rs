//! [`Tree`]: a named ordered keyspace.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;

use dogsled_storage::Durability;
use dogsled_storage::{Command, Error as StorageError, Reply, TreeId};
use parking_lot::RwLock;

use crate::db::Database;
use crate::transaction::{
    ConflictableTransactionResult, TransactionOptions, TransactionResult, Transactional, TransactionalTree,
};
use crate::{Batch, Error, FlushFuture, IVec, Iter, Result, Snapshot, Subscriber};

/// The result of [`Tree::compare_and_swap`].
pub type CompareAndSwapResult = Result<std::result::Result<(), CompareAndSwapError>>;

/// The value was another than expected; nothing was changed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CompareAndSwapError {
    /// The value that is there.
    pub current: Option<IVec>,
    /// The value that was to be set.
    pub proposed: Option<IVec>,
}

impl fmt::Display for CompareAndSwapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("compare and swap conflict")
    }
}

impl std::error::Error for CompareAndSwapError {}

/// A function that combines a value with what [`Tree::merge`] brings: from the key, the value
/// that is there if any, and the new bytes, to the new value, or `None` to remove the key.
///
/// It may be called more than once for one merge, when other writers come between.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let tree = dogsled::Config::new().temporary(true).open()?;
/// fn concatenate(_key: &[u8], old: Option<&[u8]>, new: &[u8]) -> Option<Vec<u8>> {
///     let mut value = old.unwrap_or_default().to_vec();
///     value.extend_from_slice(new);
///     Some(value)
/// }
/// tree.set_merge_operator(concatenate);
/// tree.merge("k", [1])?;
/// tree.merge("k", [2])?;
/// assert_eq!(tree.get("k")?.unwrap(), &[1, 2]);
/// # Ok(()) }
/// ```
pub trait MergeOperator: Fn(&[u8], Option<&[u8]>, &[u8]) -> Option<Vec<u8>> {}

impl<F> MergeOperator for F where F: Fn(&[u8], Option<&[u8]>, &[u8]) -> Option<Vec<u8>> {}

/// What all handles of one tree share.
pub(crate) struct TreeState {
    pub(crate) id: TreeId,
    pub(crate) name: IVec,
    merge_operator: RwLock<Option<Arc<dyn MergeOperator + Send + Sync>>>,
}

impl TreeState {
    pub(crate) fn new(id: TreeId, name: IVec) -> TreeState {
        TreeState { id, name, merge_operator: RwLock::new(None) }
    }
}

/// A named ordered keyspace within a [`Db`](crate::Db): a handle that is cheap to clone and to
/// share between threads.
///
/// Every method that changes something is atomic, and seen by readers when it returns; when it is
/// durable is up to the [`Durability`] of the database.
#[derive(Clone)]
pub struct Tree {
    pub(crate) id: TreeId,
    pub(crate) state: Arc<TreeState>,
    pub(crate) database: Arc<Database>,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("name", &String::from_utf8_lossy(&self.state.name))
            .field("len", &self.len())
            .finish()
    }
}

impl IntoIterator for &'_ Tree {
    type Item = Result<(IVec, IVec)>;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

/// Reading and writing single keys.
impl Tree {
    pub(crate) fn new(state: Arc<TreeState>, database: Arc<Database>) -> Tree {
        Tree { id: state.id, state, database }
    }

    #[cold]
    pub(crate) fn explain(&self, error: StorageError) -> Error {
        Error::in_tree(error, &self.state.name)
    }

    #[inline]
    fn execute(&self, command: Command, durability: Durability) -> Result<Reply> {
        self.database.execute(command, durability).map_err(|error| self.explain(error))
    }

    /// Sets a key; the value that was there before.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// assert_eq!(tree.insert("key", "a")?, None);
    /// assert_eq!(tree.insert("key", "b")?.unwrap(), "a");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if key or value is over the limit, and those of writing.
    #[inline]
    pub fn insert<K, V>(&self, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.insert_with(key, value, self.database.durability())
    }

    /// As [`Tree::insert`], with a durability of its own.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// use dogsled::Durability;
    /// tree.insert_with("key", "value", Durability::Synced)?; // survives power loss from here on
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Tree::insert`].
    #[inline]
    pub fn insert_with<K, V>(&self, key: K, value: V, durability: Durability) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let key = IVec::from(key.as_ref());
        match self.execute(Command::Insert { tree: self.id, key, value: value.into() }, durability)? {
            Reply::Previous(previous) => Ok(previous),
            other => unreachable!("an insert was answered with {other:?}"),
        }
    }

    #[doc(hidden)]
    #[deprecated(note = "replaced by `Tree::insert`, in sled too")]
    pub fn set<K, V>(&self, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.insert(key, value)
    }

    /// The value of a key.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("key", "value")?;
    /// assert_eq!(tree.get("key")?.unwrap(), "value");
    /// assert_eq!(tree.get("another")?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    #[inline]
    pub fn get<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        self.database.engine.get(self.id, key.as_ref()).map_err(|error| self.explain(error))
    }

    /// Whether a key is there.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("key", "value")?;
    /// assert!(tree.contains_key("key")?);
    /// assert!(!tree.contains_key("another")?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    #[inline]
    pub fn contains_key<K: AsRef<[u8]>>(&self, key: K) -> Result<bool> {
        self.database.engine.contains_key(self.id, key.as_ref()).map_err(|error| self.explain(error))
    }

    /// Removes a key; the value that was there.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("key", "value")?;
    /// assert_eq!(tree.remove("key")?.unwrap(), "value");
    /// assert_eq!(tree.remove("key")?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn remove<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        let command = Command::Remove { tree: self.id, key: IVec::from(key.as_ref()) };
        match self.execute(command, self.database.durability())? {
            Reply::Previous(previous) => Ok(previous),
            other => unreachable!("a remove was answered with {other:?}"),
        }
    }

    #[doc(hidden)]
    #[deprecated(note = "replaced by `Tree::remove`, in sled too")]
    pub fn del<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        self.remove(key)
    }

    /// Sets a key to `new` (or removes it, for `None`) only if its value is `old` (or it is
    /// absent, for `None`).
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// // Create, update and delete.
    /// assert!(tree.compare_and_swap("k", None as Option<&str>, Some("1"))?.is_ok());
    /// assert!(tree.compare_and_swap("k", Some("1"), Some("2"))?.is_ok());
    /// let refused = tree.compare_and_swap("k", Some("1"), Some("3"))?.unwrap_err();
    /// assert_eq!(refused.current.unwrap(), "2");
    /// assert_eq!(refused.proposed.unwrap(), "3");
    /// assert!(tree.compare_and_swap::<_, _, &[u8]>("k", Some("2"), None)?.is_ok());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Outer: those of writing. Inner: [`CompareAndSwapError`].
    pub fn compare_and_swap<K, OV, NV>(
        &self,
        key: K,
        old: Option<OV>,
        new: Option<NV>,
    ) -> CompareAndSwapResult
    where
        K: AsRef<[u8]>,
        OV: AsRef<[u8]>,
        NV: Into<IVec>,
    {
        let proposed: Option<IVec> = new.map(Into::into);
        let command = Command::CompareAndSwap {
            tree: self.id,
            key: IVec::from(key.as_ref()),
            old: old.map(|old| IVec::from(old.as_ref())),
            new: proposed.clone(),
        };
        match self.execute(command, self.database.durability())? {
            Reply::Swapped(Ok(())) => Ok(Ok(())),
            Reply::Swapped(Err(current)) => Ok(Err(CompareAndSwapError { current, proposed })),
            other => unreachable!("a compare and swap was answered with {other:?}"),
        }
    }

    /// Replaces a value by a function of it, until no other writer comes between; the new value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// fn increment(old: Option<&[u8]>) -> Option<Vec<u8>> {
    ///     let old = old.map_or(0, |bytes| u64::from_be_bytes(bytes.try_into().unwrap()));
    ///     Some((old + 1).to_be_bytes().to_vec())
    /// }
    /// assert_eq!(tree.update_and_fetch("k", increment)?.unwrap(), 1u64.to_be_bytes());
    /// assert_eq!(tree.update_and_fetch("k", increment)?.unwrap(), 2u64.to_be_bytes());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn update_and_fetch<K, V, F>(&self, key: K, f: F) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        F: FnMut(Option<&[u8]>) -> Option<V>,
        V: Into<IVec>,
    {
        self.update(key.as_ref(), f).map(|(_, new)| new)
    }

    /// Replaces a value by a function of it, until no other writer comes between; the old value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("k", "1")?;
    /// assert_eq!(tree.fetch_and_update("k", |_| Some("2"))?.unwrap(), "1");
    /// assert_eq!(tree.fetch_and_update("k", |_| None::<&str>)?.unwrap(), "2");
    /// assert_eq!(tree.get("k")?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading and writing.
    pub fn fetch_and_update<K, V, F>(&self, key: K, f: F) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        F: FnMut(Option<&[u8]>) -> Option<V>,
        V: Into<IVec>,
    {
        self.update(key.as_ref(), f).map(|(old, _)| old)
    }

    fn update<V, F>(&self, key: &[u8], mut f: F) -> Result<(Option<IVec>, Option<IVec>)>
    where
        F: FnMut(Option<&[u8]>) -> Option<V>,
        V: Into<IVec>,
    {
        let mut current = self.get(key)?;
        loop {
            let next: Option<IVec> = f(current.as_deref()).map(Into::into);
            match self.compare_and_swap::<_, _, IVec>(key, current.as_deref(), next.clone())? {
                Ok(()) => return Ok((current, next)),
                Err(refused) => current = refused.current,
            }
        }
    }

    /// Combines `value` with what is there, by the [`MergeOperator`]; the new value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.set_merge_operator(|_key: &[u8], old: Option<&[u8]>, new: &[u8]| {
    ///     Some([old.unwrap_or_default(), new].concat())
    /// });
    /// tree.merge("k", "ab")?;
    /// assert_eq!(tree.merge("k", "cd")?.unwrap(), "abcd");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if no merge operator is set, and those of writing.
    pub fn merge<K, V>(&self, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: AsRef<[u8]>,
    {
        // Cloned, so that an operator may itself use the tree.
        let operator = self.state.merge_operator.read().clone().ok_or_else(|| {
            Error::Unsupported(
                "set a merge operator on this tree by set_merge_operator before merging".to_owned(),
            )
        })?;
        let (key, value) = (key.as_ref(), value.as_ref());
        self.update_and_fetch(key, |old| operator(key, old, value))
    }

    /// Sets the function that [`Tree::merge`] combines by, for all handles of this tree until the
    /// database is closed. See [`MergeOperator`].
    pub fn set_merge_operator(&self, merge_operator: impl MergeOperator + Send + Sync + 'static) {
        *self.state.merge_operator.write() = Some(Arc::new(merge_operator));
    }
}

/// Reading in key order.
impl Tree {
    /// All keys and values, in key order, as they are now.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// tree.insert("b", "2")?;
    /// let mut iter = tree.iter();
    /// tree.insert("c", "3")?; // comes too late
    /// assert_eq!(iter.next().unwrap()?, ("a".into(), "1".into()));
    /// assert_eq!(iter.next_back().unwrap()?, ("b".into(), "2".into()));
    /// assert_eq!(iter.next(), None);
    /// # Ok(()) }
    /// ```
    pub fn iter(&self) -> Iter {
        self.range::<&[u8], _>(..)
    }

    /// The keys in a range and their values, in key order, as they are now.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// for key in ["a", "b", "c", "d"] {
    ///     tree.insert(key, key)?;
    /// }
    /// let keys: Vec<_> = tree.range("b".."d").keys().collect::<Result<_, _>>()?;
    /// assert_eq!(keys, ["b", "c"]);
    /// assert_eq!(tree.range("b"..="d").rev().next().unwrap()?.0, "d");
    /// # Ok(()) }
    /// ```
    pub fn range<K, R>(&self, range: R) -> Iter
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        let (low, high) = owned_bounds(&range);
        Iter::new(self.database.engine.snapshot().range(self.id, low, high), self.clone())
    }

    /// The keys that begin with `prefix` and their values, in key order, as they are now.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("user/ann", "1")?;
    /// tree.insert("user/bob", "2")?;
    /// tree.insert("view/ann", "3")?;
    /// assert_eq!(tree.scan_prefix("user/").count(), 2);
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix<P>(&self, prefix: P) -> Iter
    where
        P: AsRef<[u8]>,
    {
        let (low, high) = prefix_bounds(prefix.as_ref());
        Iter::new(self.database.engine.snapshot().range(self.id, low, high), self.clone())
    }

    /// The first key and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// assert_eq!(tree.first()?, None);
    /// tree.insert("a", "1")?;
    /// tree.insert("b", "2")?;
    /// assert_eq!(tree.first()?.unwrap().0, "a");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn first(&self) -> Result<Option<(IVec, IVec)>> {
        self.iter().next().transpose()
    }

    /// The last key and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// tree.insert("b", "2")?;
    /// assert_eq!(tree.last()?.unwrap().0, "b");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn last(&self) -> Result<Option<(IVec, IVec)>> {
        self.iter().next_back().transpose()
    }

    /// The last key before `key`, and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert([1], "a")?;
    /// tree.insert([3], "b")?;
    /// assert_eq!(tree.get_lt([3])?.unwrap().0, &[1]);
    /// assert_eq!(tree.get_lt([1])?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get_lt<K>(&self, key: K) -> Result<Option<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
    {
        self.range(..key).next_back().transpose()
    }

    /// The first key after `key`, and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert([1], "a")?;
    /// tree.insert([3], "b")?;
    /// assert_eq!(tree.get_gt([1])?.unwrap().0, &[3]);
    /// assert_eq!(tree.get_gt([3])?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get_gt<K>(&self, key: K) -> Result<Option<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
    {
        self.range((Bound::Excluded(key), Bound::Unbounded)).next().transpose()
    }

    /// Removes the last key; it and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert([1], "a")?;
    /// tree.insert([2], "b")?;
    /// assert_eq!(tree.pop_max()?.unwrap().0, &[2]);
    /// assert_eq!(tree.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn pop_max(&self) -> Result<Option<(IVec, IVec)>> {
        self.pop(true)
    }

    /// Removes the first key; it and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert([1], "a")?;
    /// tree.insert([2], "b")?;
    /// assert_eq!(tree.pop_min()?.unwrap().0, &[1]);
    /// assert_eq!(tree.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn pop_min(&self) -> Result<Option<(IVec, IVec)>> {
        self.pop(false)
    }

    fn pop(&self, last: bool) -> Result<Option<(IVec, IVec)>> {
        match self.execute(Command::Pop { tree: self.id, last }, self.database.durability())? {
            Reply::Popped(found) => Ok(found),
            other => unreachable!("a pop was answered with {other:?}"),
        }
    }

    /// How many keys there are, without counting them; 0 if the tree was dropped.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// tree.insert("b", "2")?;
    /// tree.remove("a")?;
    /// assert_eq!(tree.len(), 1);
    /// # Ok(()) }
    /// ```
    pub fn len(&self) -> usize {
        // Being dropped is the only way in which this fails.
        self.database.engine.len(self.id).unwrap_or(0) as usize
    }

    /// Whether there are no keys.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// assert!(tree.is_empty());
    /// # Ok(()) }
    /// ```
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Many keys at once.
impl Tree {
    /// Applies all writes of a batch, or none.
    ///
    /// A batch writes blindly: nothing is read, so there is nothing to conflict with.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// let mut batch = dogsled::Batch::default();
    /// batch.insert("a", "1");
    /// batch.remove("b");
    /// tree.apply_batch(batch)?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if it is over a limit, and those of writing.
    pub fn apply_batch(&self, batch: Batch) -> Result<()> {
        self.apply_batch_with(batch, self.database.durability())
    }

    /// As [`Tree::apply_batch`], with a durability of its own.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// use dogsled::{Batch, Durability};
    /// let mut batch = Batch::default();
    /// batch.insert("a", "1");
    /// tree.apply_batch_with(batch, Durability::Synced)?; // survives power loss from here on
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Tree::apply_batch`].
    pub fn apply_batch_with(&self, batch: Batch, durability: Durability) -> Result<()> {
        let command = Command::Batch { writes: batch.into_writes(self.id) };
        match self.execute(command, durability)? {
            Reply::Done => Ok(()),
            other => unreachable!("a batch was answered with {other:?}"),
        }
    }

    /// Removes all keys, at once and whatever their number.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// tree.clear()?;
    /// assert!(tree.is_empty());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn clear(&self) -> Result<()> {
        match self.execute(Command::ClearTree { tree: self.id }, self.database.durability())? {
            Reply::Done => Ok(()),
            other => unreachable!("clearing was answered with {other:?}"),
        }
    }

    /// Runs a serializable transaction over this tree; see [`crate::transaction`].
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.transaction(|tree| {
    ///     tree.insert("k1", "cats")?;
    ///     tree.insert("k2", "dogs")?;
    ///     Ok(())
    /// })?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the closure aborts with, and those of reading and writing.
    pub fn transaction<F, A, E>(&self, f: F) -> TransactionResult<A, E>
    where
        F: Fn(&TransactionalTree) -> ConflictableTransactionResult<A, E>,
    {
        Transactional::transaction(&self, f)
    }

    /// As [`Tree::transaction`], with options of its own.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// use dogsled::{Durability, transaction::TransactionOptions};
    /// let options = TransactionOptions::new().durability(Durability::Synced);
    /// tree.transaction_with(options, |tree| Ok(tree.insert("k1", "cats")?))?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Tree::transaction`].
    pub fn transaction_with<F, A, E>(&self, options: TransactionOptions, f: F) -> TransactionResult<A, E>
    where
        F: Fn(&TransactionalTree) -> ConflictableTransactionResult<A, E>,
    {
        Transactional::transaction_with(&self, options, f)
    }

    /// Watches the keys that begin with `prefix`; see [`Subscriber`].
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// let mut subscriber = tree.watch_prefix("user/");
    /// tree.insert("user/ann", "1")?;
    /// assert_eq!(*subscriber.next().unwrap().key(), "user/ann");
    /// # Ok(()) }
    /// ```
    pub fn watch_prefix<P: AsRef<[u8]>>(&self, prefix: P) -> Subscriber {
        self.watch_prefix_with(prefix, dogsled_storage::watch::DEFAULT_CAPACITY)
    }

    /// As [`Tree::watch_prefix`], holding at most `capacity` events that were not yet taken.
    pub fn watch_prefix_with<P: AsRef<[u8]>>(&self, prefix: P, capacity: usize) -> Subscriber {
        Subscriber::new(self.database.engine.watch(self.id, prefix.as_ref(), capacity))
    }

    /// A snapshot, and a subscriber that begins exactly where it ends: what is not in the one
    /// comes in the other, and nothing in both.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("user/ann", "1")?;
    /// let (snapshot, mut subscriber) = tree.snapshot_and_watch("user/");
    /// tree.insert("user/bob", "2")?;
    /// let known: Vec<_> = snapshot.scan_prefix(&tree, "user/").keys().collect::<Result<_, _>>()?;
    /// assert_eq!(known, ["user/ann"]);
    /// assert_eq!(*subscriber.next().unwrap().key(), "user/bob");
    /// # Ok(()) }
    /// ```
    pub fn snapshot_and_watch<P: AsRef<[u8]>>(&self, prefix: P) -> (Snapshot, Subscriber) {
        let capacity = dogsled_storage::watch::DEFAULT_CAPACITY;
        let (snapshot, subscription) =
            self.database.engine.snapshot_and_watch(self.id, prefix.as_ref(), capacity);
        (Snapshot::new(snapshot, Arc::clone(&self.database)), Subscriber::new(subscription))
    }

    /// Returns when all that was written before, to any tree, survives power loss; how many
    /// commits that took. (sled returns a number of bytes; both are 0 when there was nothing to do.)
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// tree.flush()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Poisoned`] if it could not be synced: what is not durable now never will be.
    pub fn flush(&self) -> Result<usize> {
        crate::flush::sync(&self.database.engine)
    }

    /// As [`Tree::flush`], as a future that works under any executor.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// async fn save(tree: &dogsled::Tree) -> dogsled::Result<()> {
    ///     tree.insert("a", "1")?;
    ///     tree.flush_async().await?;
    ///     Ok(())
    /// }
    /// # Ok(()) }
    /// ```
    pub fn flush_async(&self) -> FlushFuture {
        self.database.flusher().request(&self.database.engine)
    }

    /// The tree's name.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// assert_eq!(db.open_tree("users")?.name(), "users");
    /// assert_eq!(db.name(), "__sled__default");
    /// # Ok(()) }
    /// ```
    pub fn name(&self) -> IVec {
        self.state.name.clone()
    }
}

/// The bounds of a range, owned.
pub(crate) fn owned_bounds<K: AsRef<[u8]>>(range: &impl RangeBounds<K>) -> (Bound<IVec>, Bound<IVec>) {
    let own = |bound: Bound<&K>| bound.map(|key| IVec::from(key.as_ref()));
    let bounds = (own(range.start_bound()), own(range.end_bound()));
    let is_inverted = match &bounds {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
            low >= high
        }
        _ => false,
    };
    if is_inverted {
        // An empty range, as in sled, and of a form that no map panics about.
        return (Bound::Included(IVec::new()), Bound::Excluded(IVec::new()));
    }
    bounds
}

/// The range of the keys that begin with `prefix`.
pub(crate) fn prefix_bounds(prefix: &[u8]) -> (Bound<IVec>, Bound<IVec>) {
    // The first key after all of them: the prefix without trailing 0xff, its last byte one up.
    let high = match prefix.iter().rposition(|&byte| byte != u8::MAX) {
        Some(last) => {
            let mut high = prefix[..=last].to_vec();
            high[last] += 1;
            Bound::Excluded(IVec::from(high))
        }
        None => Bound::Unbounded,
    };
    (Bound::Included(IVec::from(prefix)), high)
}
