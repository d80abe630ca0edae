//! [`Transaction`]: one run of a transaction's closure, with what it has read and wants to write.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::ReadAnswer;
use dogsled_storage::command::RangeFingerprint;
use dogsled_storage::counter::decode_value;
use dogsled_storage::strings::StringAction;
use dogsled_storage::{COUNTERS_TREE_NAME, GroupRead, GroupReadReply, TreeId, Versioned};
use futures_util::future::try_join_all;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::sets::{Access, RangeSeen, Scan, Seen, Sets, Time};
use crate::cluster::core::unexpected;
use crate::cluster::{Client, Error, ReadFrom, Result, Tree};
use crate::lock::milliseconds;
use crate::tree::{owned_bounds, prefix_bounds};
use crate::ttl::left;
use crate::{Batch, IVec, OutOfBounds, Ttl};

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
    pub(super) client: Client,
    pub(super) until: Instant,
    /// `None` when it is over.
    state: Arc<Mutex<Option<Sets>>>,
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
    /// Begins with what is known already.
    pub(super) fn start(client: Client, until: Instant, known: Sets) -> Transaction {
        Transaction { client, until, state: Arc::new(Mutex::new(Some(known))) }
    }

    /// Ends it; what it has read and wants to write.
    pub(super) fn end(&self) -> Sets {
        self.state.lock().take().unwrap_or_default()
    }

    pub(super) fn with<T>(&self, work: impl FnOnce(&mut Sets) -> T) -> Result<T> {
        self.state.lock().as_mut().map(work).ok_or_else(over)
    }

    /// The value of a key.
    ///
    /// # Errors
    /// Those of [reading](crate::cluster#reads).
    pub async fn get<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<Option<IVec>> {
        self.read(&tree.stored_name(), IVec::from(key.as_ref())).await
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn contains_key<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<bool> {
        Ok(self.get(tree, key).await?.is_some())
    }

    /// The version of a key that this run has read, and not written; 0: it is absent.
    pub(in crate::cluster) fn version_read(&self, tree: &Tree, key: &IVec) -> Result<u64> {
        let stored = &tree.stored_name();
        self.with(|sets| {
            let found = sets.trees.get(stored).and_then(|access| access.reads.get(key)?.as_ref());
            found.map_or(0, |found| found.version)
        })
    }

    pub(super) async fn read(&self, tree: &IVec, key: IVec) -> Result<Option<IVec>> {
        if let Some(known) = self.with(|sets| sets.named(tree).known(tree, &key))? {
            return Ok(known);
        }
        let core = self.client.core();
        let group = core.group_in(tree, &key, self.until).await?;
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
        self.read_many(&tree.stored_name(), keys).await
    }

    /// Of what kind the values of keys are: a [hash](dogsled_storage::hashes)'s head, or an empty value in place of
    /// anything else. That the values stay as they are is a part of what was read. What of them is asked for beside this is
    /// asked for before: what this run knows already is told as it is, and what this tells is all that it knows then.
    pub(in crate::cluster) async fn kinds<I>(&self, tree: &Tree, keys: I) -> Result<Vec<Option<IVec>>>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let keys: Vec<IVec> = keys.into_iter().map(|key| IVec::from(key.as_ref())).collect();
        let read = |tree, keys| GroupRead::GetKinds { tree, keys };
        self.read_by(&tree.stored_name(), keys, read).await
    }

    pub(super) async fn read_many(&self, name: &IVec, keys: Vec<IVec>) -> Result<Vec<Option<IVec>>> {
        self.read_by(name, keys, |tree, keys| GroupRead::GetMany { tree, keys }).await
    }

    async fn read_by(
        &self,
        name: &IVec,
        keys: Vec<IVec>,
        read: fn(IVec, Vec<IVec>) -> GroupRead,
    ) -> Result<Vec<Option<IVec>>> {
        let core = self.client.core();
        let unknown = self.with(|sets| {
            let sets = sets.named(name);
            keys.iter().filter(|key| sets.known(name, key).is_none()).cloned().collect::<Vec<_>>()
        })?;
        let mut by_group: BTreeMap<u32, Vec<IVec>> = BTreeMap::new();
        for key in unknown {
            by_group.entry(core.group_in(name, &key, self.until).await?).or_default().push(key);
        }
        let parts = by_group.iter().flat_map(|(group, keys)| {
            keys.chunks(READ_AT_ONCE).map(|keys| self.read_part(name, *group, keys, read))
        });
        try_join_all(parts.collect::<Vec<_>>()).await?;
        self.with(|sets| {
            let value = |key: &IVec| sets.known(name, key).expect("it was written, or read just now");
            keys.iter().map(value).collect()
        })
    }

    async fn read_part(
        &self,
        tree: &IVec,
        group: u32,
        keys: &[IVec],
        read: fn(IVec, Vec<IVec>) -> GroupRead,
    ) -> Result<()> {
        let mut left = vec![keys];
        while let Some(part) = left.pop() {
            let read = read(tree.clone(), part.to_vec());
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
        self.with(|sets| access(sets, tree).write(IVec::from(key.as_ref()), Some(value.into())))
    }

    /// Removes a key without looking at what was there.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the transaction is over, and for a key that this transaction has given a number.
    pub fn delete<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<()> {
        let key = IVec::from(key.as_ref());
        self.with(|sets| {
            let access = access(sets, tree);
            check_kept(access, &key).map(|()| access.write(key, None))
        })?
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

    /// Has operations carried out on a key that this run has read, and writes in no other way.
    pub(in crate::cluster) fn apply_actions(
        &self,
        tree: &Tree,
        key: IVec,
        actions: Vec<StringAction>,
    ) -> Result<()> {
        self.with(|sets| drop(access(sets, tree).actions.insert(key, actions)))
    }

    /// Something was read by other means that changes only together with the version of a key that this run read
    /// before: it counts as read once that is so at the end as well.
    pub(in crate::cluster) fn has_read_beside(&self) -> Result<()> {
        self.with(Sets::note_read_beside)
    }

    /// Writes all of a batch, without looking at what was there.
    ///
    /// # Errors
    /// As [`Transaction::delete`].
    pub fn apply_batch(&self, tree: &Tree, batch: Batch) -> Result<()> {
        self.with(|sets| {
            let (access, writes) = (access(sets, tree), batch.into_writes(TreeId(0)));
            let mut removed = writes.iter().filter(|write| write.value.is_none());
            removed.try_for_each(|write| check_kept(access, &write.key))?;
            for write in writes {
                access.write(write.key, write.value);
            }
            Ok(())
        })?
    }

    /// All keys of a range, and their values, in the order of the keys. That nobody else adds one
    /// is a part of what was read.
    ///
    /// Every partition has a part of a range, so every partition takes part in the transaction; unless one must
    /// have it all, see [`Tree::range`].
    ///
    /// # Errors
    /// Those of [reading](crate::cluster#reads).
    pub async fn range<K, R>(&self, tree: &Tree, range: R) -> Result<Vec<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        self.scan(&tree.stored_name(), half_open(owned_bounds(&range)), usize::MAX).await
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
        self.scan(&tree.stored_name(), half_open(owned_bounds(&range)), limit).await
    }

    /// Keys that begin with a prefix, and their values.
    ///
    /// # Errors
    /// As [`Transaction::range`].
    pub async fn scan_prefix<P: AsRef<[u8]>>(&self, tree: &Tree, prefix: P) -> Result<Vec<(IVec, IVec)>> {
        self.scan(&tree.stored_name(), half_open(prefix_bounds(prefix.as_ref())), usize::MAX).await
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
        let seen = self.look_at(&Scan { tree: tree.clone(), low: low.clone(), high, want }).await?;
        self.with(|sets| {
            let found = seen.entries.iter();
            let mut merged: BTreeMap<IVec, IVec> =
                found.map(|(key, found)| (key.clone(), found.value.clone())).collect();
            let access = sets.access(tree);
            for (key, value) in access.writes.range((Bound::Included(low), Bound::Unbounded)) {
                if seen.end.as_ref().is_some_and(|end| key >= end) {
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

    /// What the cluster has of a range; noted as read.
    pub(super) async fn look_at(&self, scan: &Scan) -> Result<Arc<Seen>> {
        if let Some(seen) = self.with(|sets| sets.kept.get(scan).cloned())? {
            return Ok(seen);
        }
        let Scan { tree, low, high, want } = scan;
        let want = *want;
        let partitions = self.client.core().partitions(self.until).await?;
        let groups = scan.groups(partitions);
        let parts = groups.clone().map(|group| self.scan_part(tree, group, low, high.as_ref(), want));
        let parts = try_join_all(parts).await?;

        let mut all: Vec<(IVec, Versioned)> =
            parts.iter().flat_map(|part| part.entries.iter().cloned()).collect();
        all.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        let more = all.len() > want || parts.iter().any(|part| part.more);
        all.truncate(want);
        // What was looked at ends behind the last that is wanted, if there is more.
        let end = match all.last() {
            Some((last, _)) if more => Some(successor(last)),
            _ => high.clone(),
        };
        let seen = Arc::new(Seen { entries: all, end });
        self.with(|sets| {
            for (group, part) in groups.zip(&parts) {
                let mut part_seen = RangeSeen {
                    group,
                    low: low.clone(),
                    high: seen.end.clone(),
                    count: 0,
                    fingerprint: RangeFingerprint::default(),
                };
                let within = |key: &IVec| seen.end.as_ref().is_none_or(|end| key < end);
                for (_, found) in part.entries.iter().take_while(|(key, _)| within(key)) {
                    part_seen.count += 1;
                    part_seen.fingerprint.add(found.version);
                }
                part.positions.iter().for_each(|position| sets.note_position(group, *position));
                sets.access(tree).ranges.push(part_seen);
            }
            sets.scans.insert(scan.clone());
            if sets.keeps {
                sets.kept.insert(scan.clone(), Arc::clone(&seen));
            }
            seen
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
        let (tree, stored) = (IVec::from(COUNTERS_TREE_NAME), IVec::from(value.to_be_bytes()));
        self.with(|sets| sets.access(&tree).write(IVec::from(name.as_ref()), Some(stored)))?;
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

/// Keys that expire; see [times to live](crate::cluster#times-to-live). The time counts from the commit. Any other
/// write of the key takes its time to live from it, in the transaction too.
///
/// ```no_run
/// # async fn run(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
/// use dogsled::cluster::transaction::TransactionResult;
/// use std::time::Duration;
/// let (carts, reserved) = (&client.tree("carts"), &client.tree("reserved"));
/// let moved: TransactionResult<()> = client
///     .transaction(|tx| async move {
///         let cart = tx.remove(carts, "7").await?.unwrap_or_default();
///         tx.insert_with_ttl(reserved, "7", cart, Duration::from_secs(600)).await?;
///         Ok(())
///     })
///     .await;
/// moved?;
/// # Ok(()) }
/// ```
///
/// A key that [dies with a session](Transaction::insert_with_session), or [has a number](Transaction::insert_next), by this
/// very transaction has no time to live.
impl Transaction {
    /// Sets a key that expires after so long, without looking at what was there.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a time of nothing, and if the transaction is over.
    pub fn put_with_ttl<K, V>(&self, tree: &Tree, key: K, value: V, ttl: Duration) -> Result<()>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let (key, value, ttl_ms) = (IVec::from(key.as_ref()), value.into(), some_time(ttl)?);
        self.with(|sets| {
            let access = access(sets, tree);
            check_free(access, &key).map(|()| access.write_for(key, value, ttl_ms))
        })?
    }

    /// Sets a key that expires after so long; the value before, which is read for that.
    ///
    /// # Errors
    /// As [`Transaction::put_with_ttl`] and [`Transaction::get`].
    pub async fn insert_with_ttl<K, V>(
        &self,
        tree: &Tree,
        key: K,
        value: V,
        ttl: Duration,
    ) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let before = self.get(tree, key.as_ref()).await?;
        self.put_with_ttl(tree, key, value, ttl)?;
        Ok(before)
    }

    /// Has a key that is there expire after so long; whether it is there, which is read for that.
    ///
    /// # Errors
    /// As [`Transaction::insert_with_ttl`].
    pub async fn expire<K: AsRef<[u8]>>(&self, tree: &Tree, key: K, ttl: Duration) -> Result<bool> {
        let ttl_ms = some_time(ttl)?;
        let is_there = self.contains_key(tree, key.as_ref()).await?;
        if is_there {
            let key = IVec::from(key.as_ref());
            self.with(|sets| {
                let access = access(sets, tree);
                check_free(access, &key).map(|()| access.live_for(key, Time::After(ttl_ms)))
            })??;
        }
        Ok(is_there)
    }

    /// How long a key has to live, which counts as read: somebody who changes that, and not the key, is noticed as well.
    /// A transaction that asks this is committed by an entry of its own, though it writes nothing; and so beside writers who
    /// never rest it may have to give up, as one that writes.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn ttl<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<Ttl> {
        let (stored, key) = (tree.stored_name(), IVec::from(key.as_ref()));
        if let Some(own) = self.with(|sets| sets.access(&stored).own_ttl(&key))? {
            return Ok(own);
        }
        if self.read(&stored, key.clone()).await?.is_none() {
            return Ok(Ttl::NoKey);
        }
        let core = self.client.core();
        let group = core.group_in(&stored, &key, self.until).await?;
        let read = GroupRead::Expires { tree: stored.clone(), key: key.clone() };
        let answer = core.read(group, &read, ReadFrom::Leader, self.until).await?;
        let GroupReadReply::Expires { at_ms, now_ms } = answer.reply else { return Err(unexpected(&answer)) };
        self.with(|sets| {
            sets.note_position(group, answer.position);
            let access = sets.access(&stored);
            // It is gone by now, which is found out when this is committed.
            let Some(at_ms) = at_ms else { return Ttl::NoKey };
            let at_ms = access.note_lives(&key, at_ms);
            if access.persists(&key) { Ttl::Forever } else { left(Some(at_ms), now_ms) }
        })
    }

    /// Takes the time to live from a key, if it is there and has one, so that it stays. Nothing is read for that.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the transaction is over.
    pub fn persist<K: AsRef<[u8]>>(&self, tree: &Tree, key: K) -> Result<()> {
        let key = IVec::from(key.as_ref());
        self.with(|sets| access(sets, tree).live_for(key, Time::Forever))
    }
}

/// What is to be written in a tree, under its locks.
pub(super) fn access<'a>(sets: &'a mut Sets, tree: &Tree) -> &'a mut Access {
    sets.writing(&tree.stored_name(), tree.fences())
}

/// A number that was given and is not kept would be given again.
fn check_kept(access: &Access, key: &IVec) -> Result<()> {
    match access.is_numbered(key) {
        false => Ok(()),
        true => Err(Error::Invalid(format!(
            "the transaction has given the key \"{}\" its number, and does not remove it",
            key.escape_ascii()
        ))),
    }
}

fn check_free(access: &Access, key: &IVec) -> Result<()> {
    match access.is_owned(key) {
        false => Ok(()),
        true => Err(Error::Invalid(format!(
            "the transaction gives the key \"{}\" a session or a number, and so no time to live",
            key.escape_ascii()
        ))),
    }
}

fn some_time(ttl: Duration) -> Result<u64> {
    match milliseconds(ttl) {
        0 => {
            Err(Error::Invalid("a key with a time to live of nothing would end before it begins".to_owned()))
        }
        ttl_ms => Ok(ttl_ms),
    }
}

/// What one group has of a range.
#[derive(Default)]
struct Scanned {
    entries: Vec<(IVec, Versioned)>,
    more: bool,
    positions: Vec<u64>,
}

impl fmt::Debug for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transaction").finish_non_exhaustive()
    }
}
