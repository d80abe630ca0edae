//! [`Snapshot`]: the whole database as it was at one moment.

use std::fmt;
use std::ops::RangeBounds;
use std::sync::Arc;

use dogsled_storage as engine;
use dogsled_storage::TreeId;

use crate::db::Database;
use crate::tree::{owned_bounds, prefix_bounds};
use crate::{Error, IVec, Iter, Result, Tree};

/// The whole database as it was at one moment, across all trees; made by
/// [`Db::snapshot`](crate::Db::snapshot).
///
/// Cheap to make and to clone, and readable from any thread. It is a handle: the database stays
/// open, and memory keeps what was overwritten since, until it is dropped.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// db.insert("key", "old")?;
/// let snapshot = db.snapshot();
/// db.insert("key", "new")?;
/// assert_eq!(snapshot.get(&db, "key")?.unwrap(), "old");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Snapshot {
    // Before the handle, so that it is gone before the database closes.
    inner: engine::Snapshot,
    database: Arc<Database>,
}

impl Snapshot {
    pub(crate) fn new(inner: engine::Snapshot, database: Arc<Database>) -> Snapshot {
        Snapshot { inner, database }
    }

    /// Trees of another database are a bug of the caller that must not read as "absent".
    fn check(&self, tree: &Tree) -> Result<()> {
        if !Arc::ptr_eq(&self.database, &tree.database) {
            return Err(Error::Unsupported("the snapshot is of another database than the tree".to_owned()));
        }
        Ok(())
    }

    /// The value of a key.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// let snapshot = db.snapshot();
    /// db.remove("key")?;
    /// assert_eq!(snapshot.get(&db, "key")?.unwrap(), "value");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::CollectionNotFound`] if the tree was not there then, [`Error::Unsupported`] if it
    /// is of another database, and those of reading.
    pub fn get<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<Option<IVec>> {
        self.check(tree)?;
        let found = self.inner.get(tree.id, key.as_ref()).map_err(|error| tree.explain(error))?;
        Ok(found.map(|found| found.value))
    }

    /// Whether a key is there.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let snapshot = db.snapshot();
    /// db.insert("key", "value")?;
    /// assert!(!snapshot.contains_key(&db, "key")?);
    /// assert!(db.snapshot().contains_key(&db, "key")?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn contains_key<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<bool> {
        Ok(self.get(tree, key)?.is_some())
    }

    /// How many keys a tree has, without counting them; see [`Tree::len`] for what that costs.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// let snapshot = db.snapshot();
    /// db.insert("another", "value")?;
    /// assert_eq!(snapshot.len(&db)?, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn len(&self, tree: &Tree) -> Result<usize> {
        self.check(tree)?;
        Ok(self.inner.len(tree.id).map_err(|error| tree.explain(error))? as usize)
    }

    /// Whether a tree has no keys.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let snapshot = db.snapshot();
    /// db.insert("key", "value")?;
    /// assert!(snapshot.is_empty(&db)?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Snapshot::get`].
    pub fn is_empty(&self, tree: &Tree) -> Result<bool> {
        // What has expired counts in a length, and is not there.
        Ok(self.iter(tree).next().transpose()?.is_none())
    }

    /// All keys and values of a tree, in key order.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// let snapshot = db.snapshot();
    /// db.clear()?;
    /// let entries = snapshot.iter(&db).collect::<dogsled::Result<Vec<_>>>()?;
    /// assert_eq!(entries.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Panics
    /// If the tree is of another database.
    pub fn iter(&self, tree: &Tree) -> Iter {
        self.range::<&[u8], _>(tree, ..)
    }

    /// The keys of a tree in a range and their values, in key order.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// for key in ["a", "b", "c"] {
    ///     db.insert(key, key)?;
    /// }
    /// let snapshot = db.snapshot();
    /// db.clear()?;
    /// assert_eq!(snapshot.range(&db, "b"..).count(), 2);
    /// # Ok(()) }
    /// ```
    ///
    /// # Panics
    /// If the tree is of another database.
    pub fn range<K, R>(&self, tree: &Tree, range: R) -> Iter
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        self.check(tree).expect("a snapshot reads trees of its own database");
        let (low, high) = owned_bounds(&range);
        Iter::new(self.inner.range(tree.id, low, high), tree.clone())
    }

    /// The keys of a tree that begin with `prefix` and their values, in key order.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("user/1", "ann")?;
    /// db.insert("group/1", "staff")?;
    /// let snapshot = db.snapshot();
    /// db.insert("user/2", "bob")?;
    /// assert_eq!(snapshot.scan_prefix(&db, "user/").count(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Panics
    /// If the tree is of another database.
    pub fn scan_prefix<P: AsRef<[u8]>>(&self, tree: &Tree, prefix: P) -> Iter {
        self.check(tree).expect("a snapshot reads trees of its own database");
        let (low, high) = prefix_bounds(prefix.as_ref());
        Iter::new(self.inner.range(tree.id, low, high), tree.clone())
    }

    /// The keys that die with a session.
    pub(crate) fn keys_of_sessions(&self) -> engine::Result<Vec<(TreeId, IVec)>> {
        self.inner.keys_of_sessions()
    }

    /// The keys that expire, and when.
    pub(crate) fn times_to_live(&self) -> impl Iterator<Item = engine::Result<(TreeId, IVec, u64)>> + use<> {
        self.inner.times_to_live()
    }

    /// The names of the trees that were there.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.open_tree("users")?;
    /// let snapshot = db.snapshot();
    /// db.drop_tree("users")?;
    /// assert!(snapshot.tree_names().contains(&"users".into()));
    /// # Ok(()) }
    /// ```
    pub fn tree_names(&self) -> Vec<IVec> {
        self.inner.trees().into_iter().map(|(name, _)| name).collect()
    }

    /// Handles of the trees that were there, sorted by name; of those that were dropped since,
    /// only the snapshot can be read.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.open_tree("users")?.insert("ann", "admin")?;
    /// let snapshot = db.snapshot();
    /// db.drop_tree("users")?;
    /// let users = snapshot.trees().pop().unwrap();
    /// assert_eq!(snapshot.get(&users, "ann")?.unwrap(), "admin");
    /// # Ok(()) }
    /// ```
    pub fn trees(&self) -> Vec<Tree> {
        let handle = |(name, id)| Database::tree(&self.database, name, id);
        self.inner.trees().into_iter().map(handle).collect()
    }

    /// The sequence of the last commit in it; [`Db::changes_since`](crate::Db::changes_since) goes
    /// on from there.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let snapshot = db.snapshot();
    /// db.insert("key", "value")?;
    /// // What happened since this snapshot.
    /// assert_eq!(db.changes_since(snapshot.sequence())?.count(), 1);
    /// # Ok(()) }
    /// ```
    pub fn sequence(&self) -> u64 {
        self.inner.sequence()
    }
}

impl fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Snapshot").field("sequence", &self.sequence()).finish_non_exhaustive()
    }
}
