//! [`Transaction`]: one run of a transaction's closure, with what it has read and wants to write.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;

use dogsled_replication::ReadAnswer;
use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead};
use dogsled_storage::counter::decode_value;
use dogsled_storage::lock::{FencingToken, decode_state};
use dogsled_storage::transaction::coordinator::Share;
use dogsled_storage::{
    COUNTERS_TREE_NAME, GroupRead, GroupReadReply, LOCKS_TREE_NAME, TreeId, Versioned, Write,
};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::cluster::core::unexpected;
use crate::cluster::{Client, Error, ReadFrom, Result, Tree};
use crate::tree::{owned_bounds, prefix_bounds};
use crate::{Batch, IVec, OutOfBounds};

/// The most entries of a page of a range.
const PAGE_ENTRIES: u32 = 4096;
/// Keys that one request asks for.
const READ_AT_ONCE: usize = 256;

/// What the closure of a transaction works with; see [`Client::transaction`]. Clones are the same.
///
/// What it writes is kept aside until the closure has ended, and what it reads shows that. When the
/// closure has ended, it is over: a clone that was kept reads and writes nothing any more.
#[derive(Clone)]
pub struct Transaction {
    client: Client,
    until: Instant,
    /// `None` when it is over.
    state: Arc<Mutex<Option<Sets>>>,
}

/// What was read and is to be written.
#[derive(Default)]
pub(super) struct Sets {
    trees: BTreeMap<IVec, Access>,
    /// The position at which something was first read, by group.
    positions: BTreeMap<u32, u64>,
    /// How many requests have read something: what came with one is of one moment.
    requests: u64,
}

#[derive(Default)]
struct Access {
    reads: BTreeMap<IVec, Option<Versioned>>,
    ranges: Vec<RangeSeen>,
    writes: BTreeMap<IVec, Option<IVec>>,
}

/// A part of a range that one group has.
struct RangeSeen {
    group: u32,
    low: IVec,
    /// Exclusive.
    high: Option<IVec>,
    count: u64,
    fingerprint: RangeFingerprint,
}

impl Sets {
    fn access(&mut self, tree: &IVec) -> &mut Access {
        if !self.trees.contains_key(tree) {
            self.trees.insert(tree.clone(), Access::default());
        }
        self.trees.get_mut(tree).expect("just inserted")
    }

    fn note_position(&mut self, group: u32, position: u64) {
        let first = self.positions.entry(group).or_insert(position);
        *first = (*first).min(position);
        self.requests += 1;
    }

    /// Whether nothing is to be written.
    pub(super) fn only_reads(&self) -> bool {
        self.trees.values().all(|access| access.writes.is_empty())
    }

    /// Whether all that was read came in one answer.
    pub(super) fn is_one_read(&self) -> bool {
        self.requests <= 1
    }

    /// The position at which something was first read in a group.
    pub(super) fn first_read(&self, group: u32) -> Option<u64> {
        self.positions.get(&group).copied()
    }

    /// What each group is to validate and write.
    pub(super) fn shares(&self, group_of: impl Fn(&[u8]) -> u32) -> BTreeMap<u32, Share> {
        let mut shares: BTreeMap<u32, Share> = BTreeMap::new();
        for (name, access) in &self.trees {
            let mut numbers: BTreeMap<u32, TreeId> = BTreeMap::new();
            let mut within = |group: u32, each: &mut dyn FnMut(&mut Share, TreeId)| {
                let share = shares.entry(group).or_default();
                let number = *numbers.entry(group).or_insert_with(|| {
                    share.trees.push(name.clone());
                    TreeId(share.trees.len() as u32 - 1)
                });
                each(share, number);
            };
            for (key, found) in &access.reads {
                let version = found.as_ref().map_or(0, |found| found.version);
                within(group_of(key), &mut |share, tree| {
                    share.part.reads.push(KeyRead { tree, key: key.clone(), version });
                });
            }
            for RangeSeen { group, low, high, count, fingerprint } in &access.ranges {
                within(*group, &mut |share, tree| {
                    share.part.ranges.push(RangeRead {
                        tree,
                        low: low.clone(),
                        high: high.clone(),
                        count: *count,
                        fingerprint: fingerprint.finish(),
                    });
                });
            }
            for (key, value) in &access.writes {
                within(group_of(key), &mut |share, tree| {
                    share.part.writes.push(Write { tree, key: key.clone(), value: value.clone() });
                });
            }
        }
        shares
    }
}

fn over() -> Error {
    Error::Invalid("the transaction is over".to_owned())
}

/// The least key after `key`.
fn successor(key: &[u8]) -> IVec {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.extend_from_slice(key);
    bytes.push(0);
    IVec::from(bytes)
}

/// Bounds as a first key that is within, and one that is not any more.
fn half_open((low, high): (Bound<IVec>, Bound<IVec>)) -> (IVec, Option<IVec>) {
    let low = match low {
        Bound::Included(low) => low,
        Bound::Excluded(low) => successor(&low),
        Bound::Unbounded => IVec::new(),
    };
    let high = match high {
        Bound::Included(high) => Some(successor(&high)),
        Bound::Excluded(high) => Some(high),
        Bound::Unbounded => None,
    };
    (low, high)
}

impl Transaction {
    pub(super) fn start(client: Client, until: Instant) -> Transaction {
        Transaction { client, until, state: Arc::new(Mutex::new(Some(Sets::default()))) }
    }

    /// Ends it; what it has read and wants to write.
    pub(super) fn end(&self) -> Sets {
        self.state.lock().take().unwrap_or_default()
    }

    fn with<T>(&self, work: impl FnOnce(&mut Sets) -> T) -> Result<T> {
        self.state.lock().as_mut().map(work).ok_or_else(over)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Those of [reading](crate::cluster#reads).
    pub async fn get<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<Option<IVec>> {
        self.read(tree.name(), IVec::from(key.as_ref())).await
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn contains_key<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<bool> {
        Ok(self.get(tree, key).await?.is_some())
    }

    /// The version of a key that this run has not written, which is read for that; 0: it is absent.
    pub(in crate::cluster) async fn version(&self, tree: &Tree, key: &IVec) -> Result<u64> {
        self.read(tree.name(), key.clone()).await?;
        self.with(|sets| {
            let found = sets.trees.get(tree.name()).and_then(|access| access.reads.get(key)?.as_ref());
            found.map_or(0, |found| found.version)
        })
    }

    async fn read(&self, tree: &IVec, key: IVec) -> Result<Option<IVec>> {
        if let Some(known) = self.with(|sets| sets.known(tree, &key))? {
            return Ok(known);
        }
        let core = self.client.core();
        let group = core.group_of(&key, self.until).await?;
        let read = GroupRead::Get { tree: tree.clone(), key: key.clone() };
        let answer = core.read(group, &read, ReadFrom::Leader, self.until).await?;
        let GroupReadReply::Value(found) = answer.reply else { return Err(unexpected(&answer)) };
        self.with(|sets| {
            sets.note_position(group, answer.position);
            // The first answer counts, if it was asked for twice at a time: a transaction that reads a key
            // twice sees the same.
            let found = sets.access(tree).reads.entry(key.clone()).or_insert(found);
            let value = found.as_ref().map(|found| found.value.clone());
            sets.written(tree, &key).unwrap_or(value)
        })
    }

    /// The values of keys, in the order of the keys, asking each partition once or a few times.
    ///
    /// # Errors
    /// Those of [reading](crate::cluster#reads).
    pub async fn get_many<I>(&self, tree: &Tree, keys: I) -> Result<Vec<Option<IVec>>>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let keys: Vec<IVec> = keys.into_iter().map(|key| IVec::from(key.as_ref())).collect();
        let core = self.client.core();
        let name = tree.name();
        let unknown = self.with(|sets| {
            keys.iter().filter(|key| sets.known(name, key).is_none()).cloned().collect::<Vec<_>>()
        })?;
        let mut by_group: BTreeMap<u32, Vec<IVec>> = BTreeMap::new();
        for key in unknown {
            by_group.entry(core.group_of(&key, self.until).await?).or_default().push(key);
        }
        let parts = by_group.iter().flat_map(|(group, keys)| {
            keys.chunks(READ_AT_ONCE).map(|keys| self.read_part(name, *group, keys))
        });
        try_join_all(parts.collect::<Vec<_>>()).await?;
        self.with(|sets| {
            let value = |key: &IVec| sets.known(name, key).expect("it was written, or read just now");
            keys.iter().map(value).collect()
        })
    }

    async fn read_part(&self, tree: &IVec, group: u32, keys: &[IVec]) -> Result<()> {
        let mut left = vec![keys];
        while let Some(part) = left.pop() {
            let read = GroupRead::GetMany { tree: tree.clone(), keys: part.to_vec() };
            match self.client.core().read(group, &read, ReadFrom::Leader, self.until).await {
                Ok(ReadAnswer { reply: GroupReadReply::Values(values), position, .. })
                    if values.len() == part.len() =>
                {
                    self.with(|sets| {
                        sets.note_position(group, position);
                        let reads = &mut sets.access(tree).reads;
                        for (key, found) in part.iter().zip(values) {
                            reads.entry(key.clone()).or_insert(found);
                        }
                    })?;
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
        Ok(())
    }

    /// Sets a key without looking at what was there.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the transaction is over.
    pub fn put<K, V>(&self, tree: &Tree, key: K, value: V) -> Result<()>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.write(tree.name(), IVec::from(key.as_ref()), Some(value.into()))
    }

    /// Removes a key without looking at what was there.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the transaction is over.
    pub fn delete<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<()> {
        self.write(tree.name(), IVec::from(key.as_ref()), None)
    }

    fn write(&self, tree: &IVec, key: IVec, value: Option<IVec>) -> Result<()> {
        self.with(|sets| drop(sets.access(tree).writes.insert(key, value)))
    }

    /// Sets a key; the value before, which is read for that. [`Transaction::put`] does not.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn insert<K, V>(&self, tree: &Tree, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let before = self.get(tree, key.as_ref()).await?;
        self.put(tree, key, value)?;
        Ok(before)
    }

    /// Removes a key; the value before, which is read for that. [`Transaction::delete`] does not.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn remove<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<Option<IVec>> {
        let before = self.get(tree, key.as_ref()).await?;
        self.delete(tree, key)?;
        Ok(before)
    }

    /// Writes all of a batch, without looking at what was there.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the transaction is over.
    pub fn apply_batch(&self, tree: &Tree, batch: Batch) -> Result<()> {
        self.with(|sets| {
            let writes = &mut sets.access(tree.name()).writes;
            writes.extend(batch.into_writes(TreeId(0)).into_iter().map(|write| (write.key, write.value)));
        })
    }

    /// All keys of a range, and their values, in the order of the keys. That nobody else adds one
    /// is a part of what was read.
    ///
    /// Every partition has a part of a range, so every partition takes part in the transaction.
    ///
    /// # Errors
    /// Those of [reading](crate::cluster#reads).
    pub async fn range<K, R>(&self, tree: &Tree, range: R) -> Result<Vec<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        self.scan(tree.name(), half_open(owned_bounds(&range)), usize::MAX).await
    }

    /// The first keys of a range, at most so many. What comes behind them is no part of what was read.
    ///
    /// # Errors
    /// Those of [reading](crate::cluster#reads).
    pub async fn range_limited<K, R>(&self, tree: &Tree, range: R, limit: usize) -> Result<Vec<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        self.scan(tree.name(), half_open(owned_bounds(&range)), limit).await
    }

    /// Keys that begin with a prefix, and their values.
    ///
    /// # Errors
    /// As [`Transaction::range`].
    pub async fn scan_prefix<P: AsRef<[u8]>>(&self, tree: &Tree, prefix: P) -> Result<Vec<(IVec, IVec)>> {
        self.scan(tree.name(), half_open(prefix_bounds(prefix.as_ref())), usize::MAX).await
    }

    async fn scan(
        &self,
        tree: &IVec,
        (low, high): (IVec, Option<IVec>),
        limit: usize,
    ) -> Result<Vec<(IVec, IVec)>> {
        let bounds = (Bound::Included(low.clone()), high.clone().map_or(Bound::Unbounded, Bound::Excluded));
        if limit == 0 || high.as_ref().is_some_and(|high| *high <= low) {
            return self.with(|_| Vec::new());
        }
        // What is removed here takes the place of what others see there.
        let removed = self.with(|sets| {
            let writes = sets.access(tree).writes.range(bounds.clone());
            writes.filter(|(_, value)| value.is_none()).count()
        })?;
        let want = limit.saturating_add(removed);
        let partitions = self.client.core().partitions(self.until).await?;
        let parts = (1..=partitions).map(|group| self.scan_part(tree, group, &low, high.as_ref(), want));
        let parts = try_join_all(parts).await?;

        let mut all: Vec<(IVec, Versioned)> =
            parts.iter().flat_map(|part| part.entries.iter().cloned()).collect();
        all.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let more = all.len() > want || parts.iter().any(|part| part.more);
        all.truncate(want);
        // What was looked at ends behind the last that is wanted, if there is more.
        let end = match all.last() {
            Some((last, _)) if more => Some(successor(last)),
            _ => high,
        };
        self.with(|sets| {
            for (group, part) in (1..).zip(&parts) {
                let mut seen = RangeSeen {
                    group,
                    low: low.clone(),
                    high: end.clone(),
                    count: 0,
                    fingerprint: RangeFingerprint::default(),
                };
                let within = |key: &IVec| end.as_ref().is_none_or(|end| key < end);
                for (_, found) in part.entries.iter().take_while(|(key, _)| within(key)) {
                    seen.count += 1;
                    seen.fingerprint.add(found.version);
                }
                part.positions.iter().for_each(|position| sets.note_position(group, *position));
                sets.access(tree).ranges.push(seen);
            }
            let mut merged: BTreeMap<IVec, IVec> =
                all.into_iter().map(|(key, found)| (key, found.value)).collect();
            let access = sets.access(tree);
            for (key, value) in access.writes.range((Bound::Included(low.clone()), Bound::Unbounded)) {
                if end.as_ref().is_some_and(|end| key >= end) {
                    break;
                }
                match value {
                    Some(value) => merged.insert(key.clone(), value.clone()),
                    None => merged.remove(key),
                };
            }
            merged.into_iter().take(limit).collect()
        })
    }

    async fn scan_part(
        &self,
        tree: &IVec,
        group: u32,
        low: &IVec,
        high: Option<&IVec>,
        want: usize,
    ) -> Result<Scanned> {
        let core = self.client.core();
        let high = high.map_or(Bound::Unbounded, |high| Bound::Excluded(high.clone()));
        let mut scanned = Scanned::default();
        let mut from = Bound::Included(low.clone());
        loop {
            let left = want - scanned.entries.len();
            let read = GroupRead::Range {
                tree: tree.clone(),
                low: from,
                high: high.clone(),
                reverse: false,
                limit: u32::try_from(left).unwrap_or(u32::MAX).min(PAGE_ENTRIES),
                limit_bytes: core.page_bytes.max(1 << 20),
                values: true,
            };
            let answer = core.read(group, &read, ReadFrom::Leader, self.until).await?;
            let GroupReadReply::Page { entries, more } = answer.reply else {
                return Err(unexpected(&answer));
            };
            scanned.positions.push(answer.position);
            scanned.entries.extend(entries);
            scanned.more = more;
            match scanned.entries.last() {
                Some((last, _)) if more && scanned.entries.len() < want => {
                    from = Bound::Excluded(last.clone())
                }
                _ => return Ok(scanned),
            }
        }
    }

    /// What a counter stands at; 0 if it was never set.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn counter_get(&self, name: impl AsRef<[u8]>) -> Result<i64> {
        let name = IVec::from(name.as_ref());
        let found = self.read(&IVec::from(COUNTERS_TREE_NAME), name.clone()).await?;
        let value = found.map_or(Ok(0), |stored| decode_value(&name, &stored));
        value.map_err(|error| Error::Incompatible(error.to_string()))
    }

    /// Sets a counter; what it stood at before.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn counter_set(&self, name: impl AsRef<[u8]>, value: i64) -> Result<i64> {
        let before = self.counter_get(name.as_ref()).await?;
        self.write(
            &IVec::from(COUNTERS_TREE_NAME),
            IVec::from(name.as_ref()),
            Some(IVec::from(value.to_be_bytes())),
        )?;
        Ok(before)
    }

    /// Adds to a counter; the sum.
    ///
    /// The counter is read for that: of two transactions that add to it, one has to run again. Where many add
    /// to a counter, [`Counter::add`](crate::cluster::Counter::add) does so without.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the sum does not fit 64 bits; as [`Transaction::get`].
    pub async fn counter_add(&self, name: impl AsRef<[u8]>, delta: i64) -> Result<i64> {
        let before = self.counter_get(name.as_ref()).await?;
        let Some(sum) = before.checked_add(delta) else {
            return Err(Error::Invalid(format!(
                "{delta} more than {before} does not fit the 64 bits of a counter"
            )));
        };
        self.counter_set(name, sum).await?;
        Ok(sum)
    }

    /// Adds to a counter if the sum is within `bounds`; the sum.
    ///
    /// # Errors
    /// Outer: as [`Transaction::get`]. Inner: [`OutOfBounds`].
    pub async fn counter_add_within(
        &self,
        name: impl AsRef<[u8]>,
        delta: i64,
        bounds: RangeInclusive<i64>,
    ) -> Result<std::result::Result<i64, OutOfBounds>> {
        let current = self.counter_get(name.as_ref()).await?;
        match current.checked_add(delta).filter(|sum| bounds.contains(sum)) {
            Some(sum) => {
                self.counter_set(name, sum).await?;
                Ok(Ok(sum))
            }
            None => Ok(Err(OutOfBounds { current })),
        }
    }
}

impl Transaction {
    /// Whether a lock is held under this token. That nobody else takes it is a part of what was read: what
    /// the transaction writes is written under that token or not at all. So a holder that was paused for longer
    /// than its lease can do no harm.
    ///
    /// A lease that has ended counts as held until somebody else takes the lock, or it is expired.
    ///
    /// ```no_run
    /// # async fn run(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use dogsled::cluster::transaction::abort;
    /// let guard = client.lock("nightly job").acquire(std::time::Duration::from_secs(10)).await?;
    /// let (state, token) = (&client.tree("state"), guard.token());
    /// client
    ///     .transaction(|tx| async move {
    ///         if !tx.holds_lock("nightly job", token).await? {
    ///             return abort("the lock is lost");
    ///         }
    ///         tx.put(state, "step", "2")?;
    ///         Ok(())
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn holds_lock(&self, name: impl AsRef<[u8]>, token: FencingToken) -> Result<bool> {
        let (tree, name) = (IVec::from(LOCKS_TREE_NAME), IVec::from(name.as_ref()));
        self.read(&tree, name.clone()).await?;
        let found = self.with(|sets| sets.trees.get(&tree)?.reads.get(&name)?.clone())?;
        let Some(stored) = found else { return Ok(false) };
        let state = decode_state(&name, &stored).map_err(|error| Error::Incompatible(error.to_string()))?;
        // At the beginning of time no lease has ended: all that hold it, or did and have no successor.
        Ok(state.live(0).any(|permit| permit.token == token))
    }
}

/// What one group has of a range.
#[derive(Default)]
struct Scanned {
    entries: Vec<(IVec, Versioned)>,
    more: bool,
    positions: Vec<u64>,
}

impl Sets {
    /// The value that was written, if one was.
    fn written(&self, tree: &IVec, key: &IVec) -> Option<Option<IVec>> {
        self.trees.get(tree)?.writes.get(key).cloned()
    }

    /// The value that was written or read before.
    fn known(&self, tree: &IVec, key: &IVec) -> Option<Option<IVec>> {
        let read = || {
            self.trees.get(tree)?.reads.get(key).map(|found| found.as_ref().map(|found| found.value.clone()))
        };
        self.written(tree, key).or_else(read)
    }
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}
