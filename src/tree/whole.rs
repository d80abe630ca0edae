//! What concerns many keys of a [`Tree`], or all: batches, transactions, watching, flushing.

use std::sync::Arc;

use dogsled_storage::watch::DEFAULT_CAPACITY;
use dogsled_storage::{Command, Durability, Reply};

use crate::transaction::{
    ConflictableTransactionResult, TransactionOptions, TransactionResult, Transactional, TransactionalTree,
};
use crate::{Batch, FlushFuture, IVec, QuotaLimit, Result, Snapshot, Subscriber, Tree, TreeQuota};

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
    /// [`Error::Unsupported`](crate::Error::Unsupported) if it is over a limit, and those of writing.
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

    /// Limits how much this tree may hold, in bytes of keys and values or in keys, or (`None`) does so no
    /// more; what the tree holds. From then on whatever would make it larger than that is refused, with
    /// [`Error::QuotaExceeded`](crate::Error::QuotaExceeded), and nothing of it is done; what removes something, or makes it
    /// smaller, never is. The limit may be below what is there. See [`quota`](crate::storage::quota) for what counts.
    ///
    /// The first time all of the tree is looked at. From then on every write looks up what it replaces.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use dogsled::{Error, QuotaLimit};
    /// let cache = db.open_tree("cache")?;
    /// cache.insert("a", "12345")?;
    /// cache.set_quota(Some(QuotaLimit { bytes: Some(10), entries: None }))?;
    /// assert!(matches!(cache.insert("b", "12345"), Err(Error::QuotaExceeded(_))));
    /// cache.insert("a", "123")?;
    /// cache.insert("b", "12345")?;
    /// assert_eq!(cache.quota()?.unwrap().bytes, 10);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a tree of the database's own, and those of writing.
    pub fn set_quota(&self, limit: Option<QuotaLimit>) -> Result<Option<TreeQuota>> {
        let name = self.name();
        // One that was dropped must not come to be again.
        self.contains_key([])?;
        match self.execute(Command::SetQuota { name, limit }, self.database.durability())? {
            Reply::Quota(quota) => Ok(quota),
            other => unreachable!("setting a quota was answered with {other:?}"),
        }
    }

    /// The tree's quota, and how much of it is used; `None`: it has none.
    ///
    /// # Errors
    /// Those of reading.
    pub fn quota(&self) -> Result<Option<TreeQuota>> {
        let (name, quotas) = (self.name(), self.database.engine.quotas()?);
        Ok(quotas.into_iter().find(|quota| quota.tree == name))
    }

    /// Runs a serializable transaction over this tree; see [`crate::transaction`].
    ///
    /// The closure runs again whenever another writer has changed what it read: for ever, if it takes longer than
    /// others take to write there. The [module](crate::transaction) says what helps.
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
        self.watch_prefix_with(prefix, DEFAULT_CAPACITY)
    }

    /// As [`Tree::watch_prefix`], holding at most `capacity` events that were not yet taken.
    pub fn watch_prefix_with<P: AsRef<[u8]>>(&self, prefix: P, capacity: usize) -> Subscriber {
        Subscriber::new(self.database.engine.watch(self.id, prefix.as_ref(), capacity))
    }

    /// As [`Tree::watch_prefix`], beginning with the first commit after `sequence`: nothing of what happened
    /// since is missed, nor told twice.
    ///
    /// What happened before this call is read from the write-ahead log, a little at a time, as the subscriber
    /// gets to it; until it is through, it keeps the database's directory in use. How far back that reaches, see
    /// [`Db::changes_since`](crate::Db::changes_since).
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use dogsled::Event;
    /// db.insert("user/ann", "1")?;
    /// let seen = db.sequence();
    /// db.remove("user/ann")?;
    /// let mut subscriber = db.watch_prefix_after("user/", seen)?;
    /// db.insert("user/bob", "2")?;
    /// assert_eq!(subscriber.next().unwrap(), Event::Remove { key: "user/ann".into() });
    /// assert_eq!(*subscriber.next().unwrap().key(), "user/bob");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Compacted`](crate::Error::Compacted) if some of it is no longer kept,
    /// [`Error::Unsupported`](crate::Error::Unsupported) if `sequence` is in the future.
    pub fn watch_prefix_after<P: AsRef<[u8]>>(&self, prefix: P, sequence: u64) -> Result<Subscriber> {
        let (engine, prefix) = (&self.database.engine, IVec::from(prefix.as_ref()));
        let (now, subscription) = engine.snapshot_and_watch(self.id, &prefix, DEFAULT_CAPACITY);
        let commits = engine.changes_since(sequence)?;
        Ok(Subscriber::after(commits, (self.id, prefix), now.sequence(), subscription))
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
        let (snapshot, subscription) =
            self.database.engine.snapshot_and_watch(self.id, prefix.as_ref(), DEFAULT_CAPACITY);
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
    /// [`Error::Poisoned`](crate::Error::Poisoned) if it could not be synced: what is not durable now never will be.
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
