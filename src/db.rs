//! [`Db`]: an open database.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::counter::{CounterAddition, CounterReply, Sums};
use dogsled_storage::lock::READ_WRITE;
use dogsled_storage::{
    COUNTERS_TREE_NAME, Command, DEFAULT_TREE_NAME, Durability, EXPIRY_TREE_NAME, Engine, Fence,
    HASHES_TREE_NAME, LOCK_QUEUES_TREE_NAME, LOCKS_TREE_NAME, QUOTAS_TREE_NAME, Reply,
    Result as StorageResult, SEQUENCES_TREE_NAME, SESSIONS_TREE_NAME, SessionId, TreeId,
};
use parking_lot::Mutex;

use crate::flush::Flusher;
use crate::renewal::Renewer;
use crate::tree::TreeState;
use crate::{
    Config, Counter, Election, Error, IVec, Iter, Lock, Result, Session, SessionStatus, Snapshot, Tree,
    TreeQuota, TypedTree,
};

/// How many numbers [`Db::generate_id`] reserves at a time. Each reservation waits for a sync,
/// and what is left of it is lost when the database is closed.
const ID_BLOCK: u64 = 1 << 16;

/// How many names of dropped trees are remembered; numbers grow, so the oldest are forgotten.
const MOST_DROPPED_NAMES: usize = 10_000;

/// Opens the database in directory `path` with the defaults of [`Config`], creating it if it does
/// not exist.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let path = directory.path().join("my_db");
/// let db = dogsled::open(path)?;
/// db.insert("key", "value")?;
/// assert_eq!(db.get("key")?.unwrap(), "value");
/// # Ok(()) }
/// ```
///
/// # Errors
/// As [`Config::open`].
pub fn open<P: AsRef<Path>>(path: P) -> Result<Db> {
    Config::new().path(path).open()
}

/// An open database: a handle that is cheap to clone and to share between threads.
///
/// It derefs to its default [`Tree`]. The database is closed, synced and unlocked by the time the
/// drop of the last handle returns; trees, iterators and snapshots are handles too.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// let db = dogsled::Config::new().temporary(true).open()?;
/// db.insert("in", "the default tree")?;
/// let users = db.open_tree("users")?;
/// users.insert("in", "a tree of its own")?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Db {
    default: Tree,
}

/// What the handles of an open database share. Fields are dropped in this order: the flusher's
/// thread ends before the engine closes.
pub(crate) struct Database {
    pub(crate) renewer: Renewer,
    flusher: Flusher,
    pub(crate) engine: Arc<Engine>,
    /// What the handles of a tree share, while it is open; dropped trees are not in it for longer than
    /// [`Db::drop_tree`] takes. The mutex is not held while anything is written: what a write wakes is a
    /// stranger's code, which may open trees.
    trees: Mutex<HashMap<IVec, Arc<TreeState>>>,
    /// Names of trees that were dropped since the database was opened, for [`Db::changes_since`]:
    /// the history calls them by their numbers.
    dropped: Mutex<BTreeMap<TreeId, IVec>>,
    /// Numbers reserved and not yet given: next and end.
    ids: Mutex<(u64, u64)>,
}

/// Deleted on drop, which the engine sees to while it still has the lock.
pub(crate) struct TemporaryDirectory(pub(crate) PathBuf);

impl TemporaryDirectory {
    /// The lock file goes last, and the directory only if it is empty then: from the moment that the file is gone somebody
    /// else may make a database there.
    fn delete(&self) -> std::io::Result<()> {
        for entry in std::fs::read_dir(&self.0)? {
            let entry = entry?;
            match entry.file_type()?.is_dir() {
                true => std::fs::remove_dir_all(entry.path())?,
                false if entry.file_name() == "LOCK" => {}
                false => std::fs::remove_file(entry.path())?,
            }
        }
        std::fs::remove_file(self.0.join("LOCK"))?;
        std::fs::remove_dir(&self.0)
    }
}

impl Drop for TemporaryDirectory {
    fn drop(&mut self) {
        // A directory that cannot be deleted now is left to whoever cleans temporary files.
        let _ = self.delete();
    }
}

thread_local! {
    static WRITES_OF_THIS_THREAD: Cell<u64> = const { Cell::new(0) };
}

/// How many writes this thread has asked for, of whatever database.
pub(crate) fn writes_of_this_thread() -> u64 {
    WRITES_OF_THIS_THREAD.get()
}

impl Database {
    /// Carries out a command; the one way by which this crate writes.
    #[inline]
    pub(crate) fn execute(&self, command: Command, durability: Durability) -> StorageResult<Reply> {
        WRITES_OF_THIS_THREAD.set(WRITES_OF_THIS_THREAD.get().wrapping_add(1));
        self.engine.execute(command, durability)
    }

    /// As [`Database::execute`], but only while locks are held.
    pub(crate) fn execute_fenced(
        &self,
        fences: &[Fence],
        command: Command,
        durability: Durability,
    ) -> StorageResult<Reply> {
        WRITES_OF_THIS_THREAD.set(WRITES_OF_THIS_THREAD.get().wrapping_add(1));
        self.engine.execute_fenced(fences, command, durability)
    }

    /// Carries out an operation on sessions; counted as a write.
    pub(crate) fn on_sessions<T>(&self, operation: impl FnOnce(&Engine) -> T) -> T {
        WRITES_OF_THIS_THREAD.set(WRITES_OF_THIS_THREAD.get().wrapping_add(1));
        operation(&self.engine)
    }

    pub(crate) fn durability(&self) -> Durability {
        self.engine.durability()
    }

    pub(crate) fn flusher(&self) -> &Flusher {
        &self.flusher
    }

    /// A handle of a tree that was seen under that name and number.
    pub(crate) fn tree(self: &Arc<Database>, name: IVec, id: TreeId) -> Tree {
        let known = self.trees.lock().get(&name).filter(|state| state.id == id).cloned();
        let state = known.unwrap_or_else(|| Arc::new(TreeState::new(id, name)));
        Tree::new(state, Arc::clone(self))
    }

    /// What the handles of a tree share; `None` if there is no such tree, or no longer.
    fn state_of_tree(&self, name: &IVec, id: TreeId) -> Option<Arc<TreeState>> {
        let mut trees = self.trees.lock();
        // With the mutex: whoever drops the tree after this look takes away what is put there now.
        if self.engine.tree_id(name) != Some(id) {
            return None;
        }
        if let Some(state) = trees.get(name)
            && state.id == id
        {
            return Some(Arc::clone(state));
        }
        let state = Arc::new(TreeState::new(id, name.clone()));
        let of_dropped = trees.insert(name.clone(), Arc::clone(&state));
        drop(trees);
        // It may have a merge operator, a stranger's.
        drop(of_dropped);
        Some(state)
    }

    /// Forgets what handles of a dropped tree of this name share, unless it is that of a new one.
    fn forget_dropped(&self, name: &IVec) {
        let mut trees = self.trees.lock();
        let is_of_dropped = trees.get(name).is_some_and(|state| self.engine.tree_id(name) != Some(state.id));
        let of_dropped = if is_of_dropped { trees.remove(name) } else { None };
        drop(trees);
        drop(of_dropped);
    }

    fn remember_dropped(&self, id: TreeId, name: &IVec) {
        let mut dropped = self.dropped.lock();
        dropped.insert(id, name.clone());
        if dropped.len() > MOST_DROPPED_NAMES {
            dropped.pop_first();
        }
    }

    /// The names of all trees, and of those dropped since the database was opened.
    pub(crate) fn tree_names(&self) -> HashMap<TreeId, IVec> {
        // In this order: what is dropped in between is in the second.
        let mut names: HashMap<_, _> = self.engine.trees().into_iter().map(|(name, id)| (id, name)).collect();
        // Listed only while they hold something, but they have a history.
        names.insert(TreeId::COUNTERS, IVec::from(COUNTERS_TREE_NAME));
        names.insert(TreeId::LOCKS, IVec::from(LOCKS_TREE_NAME));
        names.insert(TreeId::EXPIRY, IVec::from(EXPIRY_TREE_NAME));
        names.insert(TreeId::LOCK_QUEUES, IVec::from(LOCK_QUEUES_TREE_NAME));
        names.insert(TreeId::SEQUENCES, IVec::from(SEQUENCES_TREE_NAME));
        names.insert(TreeId::HASHES, IVec::from(HASHES_TREE_NAME));
        names.insert(TreeId::QUOTAS, IVec::from(QUOTAS_TREE_NAME));
        names.insert(TreeId::SESSIONS, IVec::from(SESSIONS_TREE_NAME));
        let known = self.dropped.lock();
        names.extend(known.iter().map(|(id, name)| (*id, name.clone())));
        names
    }

    pub(crate) fn generate_id(&self) -> Result<u64> {
        let mut ids = self.ids.lock();
        if ids.0 == ids.1 {
            // Synced even in a buffered database: a number that was given, and perhaps sent
            // elsewhere, must not be given again after power loss.
            let reserve = Command::ReserveIds { count: ID_BLOCK };
            match self.execute(reserve, Durability::Synced)? {
                Reply::Ids { first } => *ids = (first, first + ID_BLOCK),
                other => unreachable!("reserving numbers was answered with {other:?}"),
            }
        }
        ids.0 += 1;
        Ok(ids.0 - 1)
    }
}

impl Deref for Db {
    type Target = Tree;

    #[inline]
    fn deref(&self) -> &Tree {
        &self.default
    }
}

impl IntoIterator for &'_ Db {
    type Item = Result<(IVec, IVec)>;
    type IntoIter = Iter;

    fn into_iter(self) -> Iter {
        self.iter()
    }
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut map = f.debug_map();
        for (name, id) in self.database().engine.trees() {
            let length = self.database().engine.len(id).unwrap_or(0);
            map.entry(&String::from_utf8_lossy(&name), &format_args!("{length} keys"));
        }
        map.finish()
    }
}

impl Db {
    pub(crate) fn start(engine: Arc<Engine>, temporary: Option<TemporaryDirectory>) -> Db {
        if let Some(temporary) = temporary {
            engine.drop_under_lock(temporary);
        }
        let state = Arc::new(TreeState::new(TreeId::DEFAULT, IVec::from(DEFAULT_TREE_NAME)));
        let database = Arc::new(Database {
            renewer: Renewer::default(),
            flusher: Flusher::default(),
            engine,
            trees: Mutex::new(HashMap::from([(state.name.clone(), Arc::clone(&state))])),
            dropped: Mutex::new(BTreeMap::new()),
            ids: Mutex::new((0, 0)),
        });
        Db { default: Tree::new(state, database) }
    }

    #[doc(hidden)]
    #[deprecated(note = "replaced by `dogsled::open`, in sled too")]
    pub fn open<P: AsRef<Path>>(path: P) -> Result<Db> {
        open(path)
    }

    pub(crate) fn database(&self) -> &Arc<Database> {
        &self.default.database
    }

    /// The engine below, for tools.
    #[doc(hidden)]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.database().engine
    }

    /// Opens the tree of that name, creating it if it does not exist.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let users = db.open_tree("users")?;
    /// users.insert("ann", "admin")?;
    /// assert_eq!(db.get("ann")?, None); // another keyspace
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a name that is too long, and those of writing.
    pub fn open_tree<V: AsRef<[u8]>>(&self, name: V) -> Result<Tree> {
        let name = IVec::from(name.as_ref());
        let database = self.database();
        loop {
            let command = Command::CreateTree { name: name.clone() };
            let id = match database.engine.tree_id(&name) {
                Some(id) => id,
                None => match database.execute(command, database.durability())? {
                    Reply::Tree { id, .. } => id,
                    other => unreachable!("opening a tree was answered with {other:?}"),
                },
            };
            if let Some(state) = database.state_of_tree(&name, id) {
                return Ok(Tree::new(state, Arc::clone(database)));
            }
            // It was dropped meanwhile.
        }
    }

    /// Drops the tree of that name with all its keys; whether there was one. Handles that are
    /// still open then return [`Error::CollectionNotFound`].
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use dogsled::Error;
    /// let users = db.open_tree("users")?;
    /// users.insert("ann", "admin")?;
    /// assert!(db.drop_tree("users")?);
    /// assert_eq!(users.get("ann"), Err(Error::CollectionNotFound("users".into())));
    /// assert!(db.open_tree("users")?.is_empty());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] for the default tree, and those of writing.
    pub fn drop_tree<V: AsRef<[u8]>>(&self, name: V) -> Result<bool> {
        let name = IVec::from(name.as_ref());
        if name == DEFAULT_TREE_NAME {
            return Err(Error::Unsupported("the default tree cannot be dropped".to_owned()));
        }
        let database = self.database();
        if let Some(id) = database.engine.tree_id(&name) {
            // Before it is dropped, so that nobody sees that without the name.
            database.remember_dropped(id, &name);
        }
        let command = Command::DropTree { name: name.clone() };
        match database.execute(command, database.durability())? {
            Reply::Dropped(existed) => {
                database.forget_dropped(&name);
                Ok(existed)
            }
            other => unreachable!("dropping a tree was answered with {other:?}"),
        }
    }

    /// The names of all trees, the default tree's among them.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.open_tree("users")?;
    /// assert_eq!(db.tree_names(), ["__sled__default", "users"]);
    /// # Ok(()) }
    /// ```
    pub fn tree_names(&self) -> Vec<IVec> {
        self.database().engine.trees().into_iter().map(|(name, _)| name).collect()
    }

    /// Whether the database existed before it was opened.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let path = directory.path().join("my_db");
    /// let db = dogsled::open(&path)?;
    /// assert!(!db.was_recovered());
    /// drop(db);
    /// assert!(dogsled::open(&path)?.was_recovered());
    /// # Ok(()) }
    /// ```
    pub fn was_recovered(&self) -> bool {
        self.database().engine.was_recovered()
    }

    /// A number that this database has never given before, and larger than those given before;
    /// not without gaps.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// assert!(db.generate_id()? < db.generate_id()?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn generate_id(&self) -> Result<u64> {
        self.database().generate_id()
    }

    /// Bytes that the database's files take on disk.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// assert!(db.size_on_disk()? > 0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of asking the operating system.
    pub fn size_on_disk(&self) -> Result<u64> {
        Ok(self.database().engine.size_on_disk()?)
    }

    /// The whole database as it is now, across all trees, unmoved by later writes.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let users = db.open_tree("users")?;
    /// db.insert("count", "1")?;
    /// users.insert("ann", "admin")?;
    ///
    /// let snapshot = db.snapshot();
    /// users.clear()?;
    /// db.remove("count")?;
    ///
    /// assert_eq!(snapshot.get(&db, "count")?.unwrap(), "1");
    /// assert_eq!(snapshot.iter(&users).count(), 1);
    /// # Ok(()) }
    /// ```
    pub fn snapshot(&self) -> Snapshot {
        Snapshot::new(self.database().engine.snapshot(), Arc::clone(self.database()))
    }

    /// A read-only transaction: gives `reader` a [`Snapshot`], so that everything it reads, of
    /// whatever tree, belongs together. Never conflicts, never waits, never retries.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let (from, to) = (db.open_tree("from")?, db.open_tree("to")?);
    /// from.insert("item", "1")?;
    /// let total = db.read(|snapshot| Ok(snapshot.len(&from)? + snapshot.len(&to)?))?;
    /// assert_eq!(total, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of `reader`.
    pub fn read<T>(&self, reader: impl FnOnce(&Snapshot) -> Result<T>) -> Result<T> {
        reader(&self.snapshot())
    }

    /// A tree whose keys and values are Rust types; see [`TypedTree`].
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &42)?;
    /// assert_eq!(ages.get("ann")?, Some(42));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Db::open_tree`].
    pub fn open_typed_tree<K, V>(&self, name: impl AsRef<[u8]>) -> Result<TypedTree<K, V>> {
        Ok(TypedTree::new(self.open_tree(name)?))
    }

    /// The atomic counter of that name; see [`Counter`].
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let visits = db.counter("visits");
    /// assert_eq!(visits.add(1)?, 1);
    /// assert_eq!(visits.add(2)?, 3);
    /// # Ok(()) }
    /// ```
    pub fn counter(&self, name: impl AsRef<[u8]>) -> Counter {
        Counter::new(IVec::from(name.as_ref()), Arc::clone(self.database()))
    }

    /// The lock of that name; see [`Lock`].
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let lock = db.lock("nightly job");
    /// let guard = lock.try_acquire(Duration::from_secs(10))?.expect("nobody else holds it");
    /// assert!(lock.try_acquire(Duration::from_secs(10))?.is_none());
    /// # drop(guard);
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, name: impl AsRef<[u8]>) -> Lock {
        Lock::new(IVec::from(name.as_ref()), 1, 1, Arc::clone(self.database()))
    }

    /// A read/write lock, for reading: any number of readers hold it at a time, and no writer.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let lease = Duration::from_secs(10);
    /// let (first, second) = (db.read_lock("book").acquire(lease)?, db.read_lock("book").acquire(lease)?);
    /// assert!(db.write_lock("book").try_acquire(lease)?.is_none());
    /// drop((first, second));
    /// assert!(db.write_lock("book").try_acquire(lease)?.is_some());
    /// # Ok(()) }
    /// ```
    pub fn read_lock(&self, name: impl AsRef<[u8]>) -> Lock {
        Lock::new(IVec::from(name.as_ref()), 1, READ_WRITE, Arc::clone(self.database()))
    }

    /// The same read/write lock, for writing: one writer holds it, and nobody else.
    pub fn write_lock(&self, name: impl AsRef<[u8]>) -> Lock {
        Lock::new(IVec::from(name.as_ref()), READ_WRITE, READ_WRITE, Arc::clone(self.database()))
    }

    /// A semaphore: so many hold it at a time. All who use it must say the same number.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let (seats, lease) = (db.semaphore("seats", 2), Duration::from_secs(10));
    /// let (one, two) = (seats.acquire(lease)?, seats.acquire(lease)?);
    /// assert!(seats.try_acquire(lease)?.is_none());
    /// # drop((one, two));
    /// # Ok(()) }
    /// ```
    pub fn semaphore(&self, name: impl AsRef<[u8]>, capacity: u32) -> Lock {
        Lock::new(IVec::from(name.as_ref()), 1, capacity, Arc::clone(self.database()))
    }

    /// Opens a session of the application's: what it owns dies with it. It lives while it is renewed, which happens in
    /// the background; see [`Session`].
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let session = db.session(Duration::from_secs(10))?;
    /// session.insert(&db, "worker 7", "idle")?;
    /// session.close()?;
    /// assert_eq!(db.get("worker 7")?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn session(&self, lease: Duration) -> Result<Session> {
        Session::open(Arc::clone(self.database()), lease)
    }

    /// Takes up a session that an earlier life of this process has opened, and [kept](Session::keep) or not closed;
    /// `None` if it has ended. Its lease starts anew, and is renewed from here on.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let session = db.session(Duration::from_secs(10))?;
    /// session.insert(&db, "worker 7", "idle")?;
    /// let id = session.id();
    /// session.keep(); // as if the process ended here
    /// let session = db.resume_session(id)?.expect("it lives");
    /// assert!(db.contains_key("worker 7")?);
    /// # drop(session);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn resume_session(&self, id: SessionId) -> Result<Option<Session>> {
        Session::resume(Arc::clone(self.database()), id)
    }

    /// The trees that have [quotas](Tree::set_quota), and how much of them is used.
    ///
    /// # Errors
    /// Those of reading.
    pub fn tree_quotas(&self) -> Result<Vec<TreeQuota>> {
        Ok(self.database().engine.quotas()?)
    }

    /// The sessions that are open, in the order of their numbers, and what each of them owns.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let session = db.session(Duration::from_secs(10))?;
    /// session.insert(&db, "worker 7", "idle")?;
    /// let found = &db.sessions()?[0];
    /// assert_eq!((found.id, found.owned.len()), (session.id(), 1));
    /// assert!(found.left > Duration::from_secs(5));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn sessions(&self) -> Result<Vec<SessionStatus>> {
        crate::session::list(self.database())
    }

    /// An election: one leader among many, and everybody knows who; see [`Election`].
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let leadership = db.election("scheduler").campaign("thread 7", Duration::from_secs(10))?;
    /// assert_eq!(db.election("scheduler").leader()?.unwrap().value, "thread 7");
    /// # drop(leadership);
    /// # Ok(()) }
    /// ```
    pub fn election(&self, name: impl AsRef<[u8]>) -> Election {
        Election::new(self.clone(), IVec::from(name.as_ref()))
    }

    /// Adds to several counters at once, or to none if one sum does not fit; what they stand at then, in
    /// the order of their names.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let sums = db.add_to_counters([("sold", 1), ("in stock", -1)])?;
    /// assert_eq!(sums, [("in stock".into(), -1), ("sold".into(), 1)]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a sum does not fit 64 bits, and those of writing.
    pub fn add_to_counters<N: AsRef<[u8]>>(
        &self,
        additions: impl IntoIterator<Item = (N, i64)>,
    ) -> Result<Vec<(IVec, i64)>> {
        let additions = additions
            .into_iter()
            .map(|(name, delta)| CounterAddition { name: IVec::from(name.as_ref()), delta })
            .collect();
        let database = self.database();
        match database.execute(Command::CountMany { additions }, database.durability())? {
            Reply::Counted(Sums(sums)) => Ok(sums.into_iter().map(|sum| (sum.name, sum.delta)).collect()),
            Reply::Counter(CounterReply::Overflow { current }) => Err(Error::Unsupported(format!(
                "a sum does not fit the 64 bits of a counter that stands at {current}"
            ))),
            other => unreachable!("adding was answered with {other:?}"),
        }
    }
}
