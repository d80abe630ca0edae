//! [`Tree`]: a named keyspace, spread over the partitions by the hash of the key.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use dogsled_replication::ReadAnswer;
use dogsled_storage::{
    Command, Fence, GroupRead, GroupReadReply, GroupReply, Reply, TreeId, Versioned, Write,
};
use futures_util::future::{join_all, try_join_all};
use tokio::time::Instant;

use super::core::unexpected;
use super::error::of_parts;
use super::{Client, Entries, Error, ReadFrom, Result, StaleTree, Subscriber, WatchPosition};
use crate::tree::{owned_bounds, prefix_bounds};
use crate::{Batch, CompareAndSwapError, IVec};

/// The result of [`Tree::compare_and_swap`].
pub type CompareAndSwapResult = Result<std::result::Result<(), CompareAndSwapError>>;

/// Keys that one request asks for.
const READ_AT_ONCE: usize = 256;

/// A named keyspace of a cluster; made by [`Client::tree`]. Cheap to clone.
///
/// The methods are those of the embedded [`Tree`](crate::Tree), and mean the same, with what a cluster
/// adds: each key lives in one partition, found by the hash of the key or of its
/// [tag](super#routing), and what is atomic is atomic within a partition.
#[derive(Clone)]
pub struct Tree {
    client: Client,
    name: IVec,
    fences: Vec<Fence>,
    from: ReadFrom,
}

/// What was read, and how old it may be.
pub(super) type Aged<T> = (T, Option<Duration>);

impl Tree {
    pub(super) fn new(client: Client, name: IVec) -> Tree {
        Tree { client, name, fences: Vec::new(), from: ReadFrom::default() }
    }

    /// The same tree, written to only while a lock is held: every write through it is carried out by the
    /// partition's log if the lock is held under that token then, and fails with
    /// [`Error::LockNotHeld`] otherwise. Several can be demanded one after the other. Reading is not
    /// changed.
    ///
    /// The lock and the keys must be of one partition, which a common [tag](super#routing) ensures. Within a
    /// [transaction](super::Client::transaction) they may be of any: what such a tree is written there is written with all
    /// the rest if the lock is held, or nothing is.
    ///
    /// ```no_run
    /// # async fn work(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let guard = client.lock("{printer}").acquire(Duration::from_secs(10)).await?;
    /// let jobs = client.tree("jobs").under(&guard);
    /// jobs.insert("{printer}:last", "42").await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn under(&self, fence: impl Into<Fence>) -> Tree {
        let mut fenced = self.clone();
        fenced.fences.push(fence.into());
        fenced
    }

    /// What has to hold for whoever writes through it.
    pub(super) fn fences(&self) -> &[Fence] {
        &self.fences
    }

    /// The tree's name.
    pub fn name(&self) -> &IVec {
        &self.name
    }

    /// The client that it belongs to.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The same tree, whose calls may take so long.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Tree {
        Tree { client: self.client.with_deadline(deadline), ..self.clone() }
    }

    /// The same tree, whose reads are answered by these replicas. What must not be old to mean anything, such
    /// as what [`Tree::update_and_fetch`] begins with, or a transaction reads, is read from the leader all
    /// the same.
    ///
    /// ```no_run
    /// # async fn read(users: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// use dogsled::cluster::ReadFrom;
    /// use std::time::Duration;
    ///
    /// let near = users.read_from(ReadFrom::Nearest); // linearizable, from a replica in the client's zone
    /// let ann = near.get("ann").await?;
    /// let cheap = users.read_from(ReadFrom::AtMostOld(Duration::from_secs(5)));
    /// let ann = cheap.get("ann").await?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn read_from(&self, from: ReadFrom) -> Tree {
        Tree { from, ..self.clone() }
    }

    /// The same tree, read without asking the leader: what is read may be old, and tells its age.
    ///
    /// ```no_run
    /// # async fn read(users: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// let found = users.stale().get("ann").await?;
    /// println!("{:?} as of {:?} ago", found.value, found.age);
    /// # Ok(()) }
    /// ```
    pub fn stale(&self) -> StaleTree {
        StaleTree::new(self.clone())
    }

    /// The name under which partitions keep it: every request names it so, and where its keys are hangs
    /// on it. See [`dogsled_replication::ring::tree_hash`].
    pub(super) fn stored_name(&self) -> IVec {
        self.client.core().stored_name(&self.name)
    }

    /// Has something done that names the tree as partitions keep it. If what is hashed of its keys was chosen since
    /// this client was told of the map, they have refused that name and done nothing: then it is done under the other.
    /// So an old map costs a round trip, and no error.
    pub(super) async fn by_stored_name<T, F>(&self, until: Instant, work: impl Fn(IVec) -> F) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        loop {
            let stored = self.stored_name();
            match work(stored.clone()).await {
                Err(Error::Conflict(_)) if self.client.core().is_renamed([&stored], until).await => {}
                done => return done,
            }
        }
    }

    /// Before something is refused because of how the tree's keys are hashed, as this client knows: whether a node
    /// knows better.
    pub(super) async fn is_hashed_by_now(&self, stored: &IVec) -> bool {
        *stored == self.name && self.client.map().await.is_ok() && self.stored_name() != *stored
    }

    /// What makes [`Tree::by_stored_name`] begin again.
    pub(super) fn renamed(&self) -> Error {
        let sealed = dogsled_storage::Error::TreeSealed(self.name.clone());
        Error::Conflict(sealed.to_string())
    }

    pub(super) async fn execute(&self, key: &IVec, command: Command) -> Result<Reply> {
        self.execute_until(key, command, self.client.until()).await
    }

    async fn execute_until(&self, key: &IVec, command: Command, until: Instant) -> Result<Reply> {
        let command = &command;
        self.by_stored_name(until, |stored| async move {
            let group = self.client.core().group_in(&stored, key, until).await?;
            self.execute_in(group, stored, command.clone(), until).await
        })
        .await
    }

    pub(super) async fn execute_in(
        &self,
        group: u32,
        stored: IVec,
        command: Command,
        until: Instant,
    ) -> Result<Reply> {
        self.client.core().execute_fenced(group, vec![stored], &self.fences, command, until).await
    }

    /// As [`Tree::execute`], with the place in the partition's log.
    pub(super) async fn submit(&self, key: &IVec, command: Command) -> Result<GroupReply> {
        let (core, until, command) = (self.client.core(), self.client.until(), &command);
        self.by_stored_name(until, |stored| async move {
            let group = core.group_in(&stored, key, until).await?;
            core.submit_fenced(group, vec![stored], &self.fences, command.clone(), until).await
        })
        .await
    }

    /// Reads what is in the partition of a key, where it is by the tree's stored name.
    pub(super) async fn read_at(
        &self,
        key: &IVec,
        from: ReadFrom,
        until: Instant,
        make: impl Fn(IVec) -> GroupRead,
    ) -> Result<ReadAnswer> {
        let (core, make) = (self.client.core(), &make);
        self.by_stored_name(until, |stored| async move {
            let group = core.group_in(&stored, key, until).await?;
            core.read(group, &make(stored), from, until).await
        })
        .await
    }

    /// Sets a key; the value before.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn insert<K, V>(&self, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let key = IVec::from(key.as_ref());
        let command = Command::Insert { tree: TreeId(0), key: key.clone(), value: value.into() };
        match self.execute(&key, command).await? {
            Reply::Previous(previous) => Ok(previous),
            other => Err(unexpected(&other)),
        }
    }

    /// Sets a key without looking at the value before, which is cheaper.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn put<K, V>(&self, key: K, value: V) -> Result<()>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let key = IVec::from(key.as_ref());
        let write = Write { tree: TreeId(0), key: key.clone(), value: Some(value.into()) };
        match self.execute(&key, Command::Batch { writes: vec![write] }).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// Removes a key; the value before.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn remove<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        let key = IVec::from(key.as_ref());
        match self.execute(&key, Command::Remove { tree: TreeId(0), key: key.clone() }).await? {
            Reply::Previous(previous) => Ok(previous),
            other => Err(unexpected(&other)),
        }
    }

    /// Sets or removes a key only if its value is `old`. Inner error: it was another; nothing was
    /// changed.
    ///
    /// ```no_run
    /// # async fn swap(users: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// // Only if there is none yet.
    /// match users.compare_and_swap("ann", None::<&[u8]>, Some("admin")).await? {
    ///     Ok(()) => println!("ann is new"),
    ///     Err(refused) => println!("ann is {:?} already", refused.current),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn compare_and_swap<K, OV, NV>(
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
        let key = IVec::from(key.as_ref());
        let old = old.map(|old| IVec::from(old.as_ref()));
        let new: Option<IVec> = new.map(Into::into);
        self.swap(&key, old, new, self.client.until()).await
    }

    async fn swap(
        &self,
        key: &IVec,
        old: Option<IVec>,
        new: Option<IVec>,
        until: Instant,
    ) -> CompareAndSwapResult {
        let command = Command::CompareAndSwap { tree: TreeId(0), key: key.clone(), old, new: new.clone() };
        match self.execute_until(key, command, until).await? {
            Reply::Swapped(Ok(())) => Ok(Ok(())),
            Reply::Swapped(Err(current)) => Ok(Err(CompareAndSwapError { current, proposed: new })),
            other => Err(unexpected(&other)),
        }
    }

    /// Replaces a value by what `f` makes of it (`None`: no value), and returns the new one. `f` is
    /// called again whenever another writer came between.
    ///
    /// # Errors
    /// Those of [writing](super#writes). The deadline is for all tries together.
    pub async fn update_and_fetch<K, V, F>(&self, key: K, f: F) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        F: FnMut(Option<&[u8]>) -> Option<V>,
        V: Into<IVec>,
    {
        Ok(self.update(key.as_ref(), f).await?.1)
    }

    /// As [`Tree::update_and_fetch`], but returns the old value.
    ///
    /// # Errors
    /// As there.
    pub async fn fetch_and_update<K, V, F>(&self, key: K, f: F) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        F: FnMut(Option<&[u8]>) -> Option<V>,
        V: Into<IVec>,
    {
        Ok(self.update(key.as_ref(), f).await?.0)
    }

    async fn update<V, F>(&self, key: &[u8], mut f: F) -> Result<(Option<IVec>, Option<IVec>)>
    where
        F: FnMut(Option<&[u8]>) -> Option<V>,
        V: Into<IVec>,
    {
        let until = self.client.until();
        let key = IVec::from(key);
        // What is newest, wherever else is read: an old value would only be refused.
        let mut current = self.read_key(key.clone(), ReadFrom::Leader, until).await?.0;
        loop {
            let next: Option<IVec> = f(current.as_deref()).map(Into::into);
            match self.swap(&key, current.clone(), next.clone(), until).await? {
                Ok(()) => return Ok((current, next)),
                // Nothing was changed by this try, nor by those before.
                Err(_) if Instant::now() >= until => {
                    let why = "other writers came between until the deadline";
                    return Err(Error::Unavailable(why.to_owned()));
                }
                Err(refused) => current = refused.current,
            }
        }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn get<K: AsRef<[u8]>>(&self, key: K) -> Result<Option<IVec>> {
        let key = IVec::from(key.as_ref());
        Ok(self.read_key(key, self.from, self.client.until()).await?.0)
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn contains_key<K: AsRef<[u8]>>(&self, key: K) -> Result<bool> {
        Ok(self.get(key).await?.is_some())
    }

    /// The values of keys, in the order of the keys, asking each partition once or a few times. Each
    /// is linearizable for itself; they need not be of one moment.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn get_many<I>(&self, keys: I) -> Result<Vec<Option<IVec>>>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        Ok(self.read_keys(keys, self.from).await?.0)
    }

    pub(super) async fn read_key(
        &self,
        key: IVec,
        from: ReadFrom,
        until: Instant,
    ) -> Result<Aged<Option<IVec>>> {
        let get = |tree| GroupRead::Get { tree, key: key.clone() };
        let ReadAnswer { reply, age, .. } = self.read_at(&key, from, until, get).await?;
        match reply {
            GroupReadReply::Value(found) => Ok((found.map(|found| found.value), age)),
            other => Err(unexpected(&other)),
        }
    }

    pub(super) async fn read_keys<I>(&self, keys: I, from: ReadFrom) -> Result<Aged<Vec<Option<IVec>>>>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let until = self.client.until();
        let keys: &Vec<IVec> = &keys.into_iter().map(|key| IVec::from(key.as_ref())).collect();
        self.by_stored_name(
            until,
            |stored| async move { self.read_keys_of(&stored, keys, from, until).await },
        )
        .await
    }

    async fn read_keys_of(
        &self,
        stored: &IVec,
        keys: &[IVec],
        from: ReadFrom,
        until: Instant,
    ) -> Result<Aged<Vec<Option<IVec>>>> {
        let mut by_group: BTreeMap<u32, Vec<(usize, IVec)>> = BTreeMap::new();
        for (index, key) in keys.iter().enumerate() {
            let group = self.client.core().group_in(stored, key, until).await?;
            by_group.entry(group).or_default().push((index, key.clone()));
        }
        let parts = by_group.iter().flat_map(|(group, wanted)| {
            wanted.chunks(READ_AT_ONCE).map(|part| self.read_part(*group, stored, part, from, until))
        });
        let parts: Vec<_> = parts.collect();
        let mut values = vec![None; keys.len()];
        let mut oldest = None;
        for (part, age) in try_join_all(parts).await? {
            oldest = oldest.max(age);
            for (index, found) in part {
                values[index] = found.map(|found| found.value);
            }
        }
        Ok((values, oldest))
    }

    async fn read_part(
        &self,
        group: u32,
        stored: &IVec,
        wanted: &[(usize, IVec)],
        from: ReadFrom,
        until: Instant,
    ) -> Result<Aged<Vec<(usize, Option<Versioned>)>>> {
        let mut found = Vec::with_capacity(wanted.len());
        let mut oldest = None;
        let mut left = vec![wanted];
        while let Some(part) = left.pop() {
            let keys = part.iter().map(|(_, key)| key.clone()).collect();
            let read = GroupRead::GetMany { tree: stored.clone(), keys };
            match self.client.core().read(group, &read, from, until).await {
                Ok(ReadAnswer { reply: GroupReadReply::Values(values), age, .. })
                    if values.len() == part.len() =>
                {
                    oldest = oldest.max(age);
                    found.extend(part.iter().map(|(index, _)| *index).zip(values));
                }
                Ok(other) => return Err(unexpected(&other)),
                // The values may be more than one answer carries.
                Err(Error::Invalid(_)) if part.len() > 1 => {
                    let (first, second) = part.split_at(part.len() / 2);
                    left.extend([first, second]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok((found, oldest))
    }

    /// Applies all writes of a batch, or none. They must be of one partition, which a common
    /// [tag](super#routing) ensures, or a common prefix that [is hashed](Client::set_tree_hash): what spans partitions is refused rather than torn apart. See
    /// [`Tree::apply_batch_by_partition`] for that.
    ///
    /// ```no_run
    /// # async fn write(users: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// let mut batch = dogsled::Batch::default();
    /// batch.insert("{ann}:role", "admin");
    /// batch.insert("{ann}:mail", "ann@example.org");
    /// batch.remove("{ann}:invitation");
    /// users.apply_batch(batch).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] if the keys are of several partitions; those of [writing](super#writes).
    pub async fn apply_batch(&self, batch: Batch) -> Result<()> {
        let (until, writes) = (self.client.until(), &batch.into_writes(TreeId(0)));
        self.by_stored_name(until, |stored| async move {
            let mut parts = self.split(&stored, writes, until).await?;
            let Some((group, writes)) = parts.pop_first() else { return Ok(()) };
            if !parts.is_empty() {
                if self.is_hashed_by_now(&stored).await {
                    return Err(self.renamed());
                }
                return Err(Error::Invalid(format!(
                    "the batch's keys are of {} partitions, and a batch is atomic within one: give the keys a common \
                     {{tag}}, or use apply_batch_by_partition",
                    parts.len() + 1
                )));
            }
            self.apply_part(group, stored, writes, until).await
        })
        .await
    }

    /// Applies a batch in as many parts as it has partitions, each atomically, all at the same time.
    /// **Not atomic as a whole**: others may see some parts and not yet the rest, and when it fails,
    /// some may have been applied.
    ///
    /// # Errors
    /// The error of a part, if nothing of any was applied; otherwise [`Error::OutcomeUnknown`], and the
    /// whole batch may be applied again.
    pub async fn apply_batch_by_partition(&self, batch: Batch) -> Result<()> {
        let (until, writes) = (self.client.until(), &batch.into_writes(TreeId(0)));
        self.by_stored_name(until, |stored| async move {
            let parts = self.split(&stored, writes, until).await?.into_iter();
            let applied = parts.map(|(group, writes)| self.apply_part(group, stored.clone(), writes, until));
            of_parts(join_all(applied).await).map(drop)
        })
        .await
    }

    async fn split(
        &self,
        stored: &IVec,
        writes: &[Write],
        until: Instant,
    ) -> Result<BTreeMap<u32, Vec<Write>>> {
        let mut parts: BTreeMap<u32, Vec<Write>> = BTreeMap::new();
        for write in writes {
            let group = self.client.core().group_in(stored, &write.key, until).await?;
            parts.entry(group).or_default().push(write.clone());
        }
        Ok(parts)
    }

    async fn apply_part(&self, group: u32, stored: IVec, writes: Vec<Write>, until: Instant) -> Result<()> {
        match self.execute_in(group, stored, Command::Batch { writes }, until).await? {
            Reply::Done => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    /// How many keys there are: the sum over the partitions, each of which is asked once and does not
    /// count. Exact if nobody writes; while keys come and go it is a number that lies between what
    /// there was when the call began and when it ended, give or take those that came and went.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn len(&self) -> Result<u64> {
        Ok(self.length(self.from).await?.0)
    }

    /// Whether there is no key.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn is_empty(&self) -> Result<bool> {
        Ok(self.len().await? == 0)
    }

    pub(super) async fn length(&self, from: ReadFrom) -> Result<Aged<u64>> {
        let (core, until) = (self.client.core(), self.client.until());
        let groups = &(1..=core.partitions(until).await?);
        let answers = self.by_stored_name(until, |tree| async move {
            let read = &GroupRead::Len { tree };
            try_join_all(groups.clone().map(|group| core.read(group, read, from, until))).await
        });
        let answers = answers.await?;
        let (mut sum, mut oldest) = (0, None);
        for answer in answers {
            let GroupReadReply::Length(length) = answer.reply else { return Err(unexpected(&answer)) };
            sum += length;
            oldest = oldest.max(answer.age);
        }
        Ok((sum, oldest))
    }

    /// Removes all keys, in each partition atomically, but not in all at the same moment.
    ///
    /// # Errors
    /// Those of [writing](super#writes); then some partitions may be empty and others not. It can be
    /// called again.
    pub async fn clear(&self) -> Result<()> {
        let until = self.client.until();
        let groups = &(1..=self.client.core().partitions(until).await?);
        self.by_stored_name(until, |stored| async move {
            let stored = &stored;
            let cleared = groups.clone().map(|group| async move {
                let command = Command::ClearTree { tree: TreeId(0) };
                match self.execute_in(group, stored.clone(), command, until).await? {
                    Reply::Done => Ok(()),
                    other => Err(unexpected(&other)),
                }
            });
            // All of them, whatever happens to one.
            of_parts(join_all(cleared).await).map(drop)
        })
        .await
    }

    /// All keys and values in the order of the keys.
    pub fn iter(&self) -> Entries {
        self.entries((Bound::Unbounded, Bound::Unbounded), self.from)
    }

    /// Keys of a range, and their values, in the order of the keys. Every partition is asked, unless all keys
    /// of the range must be of one: if they have a [tag](super#routing) in common, or the prefix that
    /// [is hashed](Client::set_tree_hash).
    ///
    /// ```no_run
    /// # async fn read(users: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// let mut entries = users.range("a".."c");
    /// while let Some(entry) = entries.next().await {
    ///     let (name, role) = entry?;
    ///     println!("{name:?} is {role:?}");
    /// }
    /// # Ok(()) }
    /// ```
    pub fn range<K, R>(&self, range: R) -> Entries
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        self.entries(owned_bounds(&range), self.from)
    }

    /// Keys that begin with a prefix, and their values, in the order of the keys. As [`Tree::range`], it asks one
    /// partition only if that must have all of them.
    pub fn scan_prefix<P: AsRef<[u8]>>(&self, prefix: P) -> Entries {
        self.entries(prefix_bounds(prefix.as_ref()), self.from)
    }

    /// Follows what happens to keys that begin with a prefix, from now on: every write that begins after
    /// this has returned is told, in the order in which it was committed in its key's partition.
    ///
    /// ```no_run
    /// # async fn follow(users: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// use dogsled::cluster::Event;
    ///
    /// let mut changes = users.watch_prefix("ann").await?;
    /// while let Some(event) = changes.next().await {
    ///     match event? {
    ///         Event::Insert { key, value } => println!("{key:?} is {value:?}"),
    ///         Event::Remove { key } => println!("{key:?} is gone"),
    ///         // The tree was cleared, or something was missed: what is true now can be read.
    ///         Event::Clear { .. } | Event::Lost { .. } => println!("{:?}", users.get("ann").await?),
    ///         _ => {}
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unavailable`] if not every partition was reached before the deadline.
    pub async fn watch_prefix<P: AsRef<[u8]>>(&self, prefix: P) -> Result<Subscriber> {
        self.watch_prefix_from(prefix, &WatchPosition::default()).await
    }

    /// As [`Tree::watch_prefix`], from where another subscriber was told to ([`Subscriber::position`]): nothing is
    /// missing in between, and nothing comes twice. Partitions of which the position says nothing are followed
    /// from now on.
    ///
    /// The cluster keeps the newest changes only ([`NodeConfig::watch_bytes`](super::ReplicationConfig::watch_bytes),
    /// in memory). If what happened since is more, the first event of that part is an
    /// [`Event::Lost`](super::Event::Lost), with the position after which everything is told.
    ///
    /// # Errors
    /// As [`Tree::watch_prefix`].
    pub async fn watch_prefix_from<P: AsRef<[u8]>>(
        &self,
        prefix: P,
        position: &WatchPosition,
    ) -> Result<Subscriber> {
        let (prefix, until) = (&IVec::from(prefix.as_ref()), self.client.until());
        self.by_stored_name(until, |stored| {
            Subscriber::begin(self.client.clone(), stored, prefix.clone(), position, None, until)
        })
        .await
    }

    /// [`Tree::watch_prefix_from`], by the name that the embedded
    /// [`Tree::watch_prefix_after`](crate::Tree::watch_prefix_after) has.
    ///
    /// # Errors
    /// As [`Tree::watch_prefix`].
    pub async fn watch_prefix_after<P: AsRef<[u8]>>(
        &self,
        prefix: P,
        position: &WatchPosition,
    ) -> Result<Subscriber> {
        self.watch_prefix_from(prefix, position).await
    }

    pub(super) fn entries(&self, bounds: (Bound<IVec>, Bound<IVec>), from: ReadFrom) -> Entries {
        Entries::new(self.client.clone(), self.name.clone(), bounds, from)
    }

    /// The first key and its value.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn first(&self) -> Result<Option<(IVec, IVec)>> {
        self.iter().only_first().next().await.transpose()
    }

    /// The last key and its value.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn last(&self) -> Result<Option<(IVec, IVec)>> {
        self.iter().rev().only_first().next().await.transpose()
    }
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("name", &self.name).finish_non_exhaustive()
    }
}
