//! [`Tree`]: a named ordered keyspace.

mod order;
mod whole;

use std::fmt;
use std::sync::Arc;

use dogsled_storage::{Command, Durability, Error as StorageError, Fence, OwnedCommand, Reply, TreeId};
use parking_lot::RwLock;

pub(crate) use self::order::{owned_bounds, prefix_bounds};
use crate::db::Database;
use crate::{Error, IVec, Iter, Result};

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
    /// Locks that must be held for every write; `None`: none, as nearly always.
    pub(crate) fences: Option<Arc<[Fence]>>,
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
        Tree { id: state.id, state, database, fences: None }
    }

    /// The same tree, written to only while a lock is held: every write through it takes place if the lock
    /// is held under that token then, and fails with [`Error::LockNotHeld`] otherwise. Several can be
    /// demanded one after the other. Within a transaction it is the commit that fails. Reading is not
    /// changed.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let guard = db.lock("printer").acquire(Duration::from_secs(10))?;
    /// let jobs = db.open_tree("jobs")?.under(&guard);
    /// jobs.insert("last", "42")?;
    ///
    /// guard.release()?.expect("it was held");
    /// assert!(matches!(jobs.insert("last", "43"), Err(dogsled::Error::LockNotHeld { .. })));
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn under(&self, fence: impl Into<Fence>) -> Tree {
        let mut fences = self.fences.as_deref().unwrap_or_default().to_vec();
        fences.push(fence.into());
        Tree { fences: Some(fences.into()), ..self.clone() }
    }

    #[cold]
    pub(crate) fn explain(&self, error: StorageError) -> Error {
        Error::in_tree(error, &self.state.name)
    }

    /// Grants are only given and taken by locks; see there. (Counters may be imported.)
    #[inline]
    pub(crate) fn check_writable(&self) -> Result<()> {
        if self.id.is_system() && self.id != TreeId::COUNTERS {
            return Err(self.not_writable());
        }
        Ok(())
    }

    #[cold]
    fn not_writable(&self) -> Error {
        Error::Unsupported(match self.id {
            TreeId::LOCKS => "the tree of locks is not written to directly; use `Db::lock`".to_owned(),
            _ => "this tree of the database's own is not written to directly".to_owned(),
        })
    }

    #[inline]
    pub(crate) fn execute(&self, command: Command, durability: Durability) -> Result<Reply> {
        self.check_writable()?;
        let reply = match &self.fences {
            None => self.database.execute(command, durability),
            Some(fences) => self.database.execute_fenced(fences, command, durability),
        };
        reply.map_err(|error| self.explain(error))
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

    /// Sets a key without looking at what was there before: about twice as fast as
    /// [`Tree::insert`], and it never reads from disk. Not in sled.
    ///
    /// What it saves is looked up once when somebody asks for [`Tree::len`], at the latest by the
    /// next checkpoint in the background.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.put("key", "a")?;
    /// tree.put("key", "b")?;
    /// assert_eq!(tree.get("key")?.unwrap(), "b");
    /// assert_eq!(tree.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Tree::insert`].
    #[inline]
    pub fn put<K, V>(&self, key: K, value: V) -> Result<()>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.put_with(key, value, self.database.durability())
    }

    /// As [`Tree::put`], with a durability of its own.
    ///
    /// # Errors
    /// As [`Tree::insert`].
    #[inline]
    pub fn put_with<K, V>(&self, key: K, value: V, durability: Durability) -> Result<()>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let key = IVec::from(key.as_ref());
        self.execute(Command::Put { tree: self.id, key, value: value.into() }, durability).map(drop)
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

    /// Sets a new key: the prefix and its next number in twenty digits, which no key had before; the key.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// assert_eq!(tree.insert_next("job-", "resize 7")?, "job-00000000000000000000");
    /// assert_eq!(tree.insert_next("job-", "resize 8")?, "job-00000000000000000001");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Tree::insert`].
    pub fn insert_next<P, V>(&self, prefix: P, value: V) -> Result<IVec>
    where
        P: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let (prefix, value) = (IVec::from(prefix.as_ref()), value.into());
        let next = OwnedCommand::InsertNext { tree: self.id, prefix, value, session: None };
        match self.execute(Command::Owned(next), self.database.durability())? {
            Reply::Named { key } => Ok(key),
            other => unreachable!("a numbered insert was answered with {other:?}"),
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
