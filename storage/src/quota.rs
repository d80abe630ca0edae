//! Quotas: how much a tree may hold, and how it is known without counting.
//!
//! # Promise
//!
//! A tree with a quota is never made larger than its limit: the command that would do so is refused as a whole, with
//! [`QuotaExceeded`], by [`evaluate`](crate::evaluate::evaluate), and so at the same position of the log on every
//! replica. What does not make it larger is never refused: removing keys, clearing the tree, writing shorter values, a
//! transaction that in sum adds nothing. So a tree that is full, or whose limit was set below what it holds,
//! can always be made smaller. Each measure, bytes and entries, is judged by itself.
//!
//! **What counts.** Bytes are those of keys and values as they are stored, with the fields of hashes; entries
//! are keys, a hash being one. Nothing of the database's own counts: versions, times to live, what a session owns, what
//! the B-tree needs beside. A key that has expired counts until it is removed, and so do the fields of a large hash that
//! was removed; both happen soon, in the background.
//!
//! # How
//!
//! What a tree holds is written beside its limit, in one record of [`TreeId::QUOTAS`], by the commit that changes it: an
//! effect like any other. The WAL, the overlay, checkpoints, snapshots and recovery carry it without knowing of it, and it
//! cannot disagree with the tree that it is about. A tree without a quota has no record: its commands pay for looking at one
//! flag, or, where another tree has a quota, for finding that it has none, and go on putting values without looking at
//! what was there. Of one with a quota each write looks up the
//! length of what it replaces, which costs what [`Command::Insert`](crate::Command::Insert) costs anyway.
//!
//! Setting a quota for the first time counts the tree, in the command itself: a scan of all of it, while which
//! nothing else is written. Changing the limit counts nothing.
//!
//! | tree | key | value |
//! |---|---|---|
//! | quotas | the tree's number (4, big-endian) | version 1, then in bincode: the tree's name, limit in bytes, limit in entries (options), bytes, entries, bytes of fields of hashes |
//!
//! # Transactions over several groups
//!
//! A part is judged when it is prepared, as if it were carried out there and then. When it is resolved it is counted, and not
//! judged again: what was promised is kept. So what is prepared at one time may together go beyond the limit, by no
//! more than it adds.
//!
//! # Not here
//!
//! [Repair](crate::repair()) keeps no quotas: what is left of a damaged tree is not what was counted.
//!
//! How the limit of a tree that is spread over the groups of a cluster is divided among them: each group knows and keeps
//! its own share only.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::command::{Reply, TreeId};
use crate::evaluate::{Effect, Effects, Outcome, View};
use crate::hashes::sweep::as_ref;
use crate::hashes::{self, HashId, decode_owner};
use crate::{Error, IVec, Result, codec};

const RECORD_VERSION: u8 = 1;

/// The most that a tree may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Encode, Decode)]
pub struct QuotaLimit {
    /// Bytes of keys and values; `None`: any number.
    pub bytes: Option<u64>,
    /// Keys; `None`: any number.
    pub entries: Option<u64>,
}

/// A tree's quota, and what of it is used; see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct TreeQuota {
    /// The tree's name.
    pub tree: IVec,
    /// The most that it may hold.
    pub limit: QuotaLimit,
    /// How many bytes it holds.
    pub bytes: u64,
    /// How many keys it holds.
    pub entries: u64,
}

/// What a quota limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Measure {
    /// Bytes of keys and values.
    Bytes,
    /// Keys.
    Entries,
}

/// A tree would be larger than its quota allows. Nothing was changed; remove something from the tree, or raise its quota.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct QuotaExceeded {
    /// The tree's name.
    pub tree: IVec,
    /// Of what it would have too much.
    pub measure: Measure,
    /// How much it may have; in a cluster, in the partition that was written to.
    pub limit: u64,
    /// How much it has.
    pub used: u64,
    /// How much it would have.
    pub wanted: u64,
}

impl fmt::Display for QuotaExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let QuotaExceeded { tree, limit, used, wanted, .. } = self;
        let measure = match self.measure {
            Measure::Bytes => "bytes",
            Measure::Entries => "entries",
        };
        write!(
            f,
            "tree \"{}\" is full: it may have {limit} {measure}, has {used} and would have {wanted}; remove something \
             from it, or raise its quota",
            tree.escape_ascii()
        )
    }
}

impl std::error::Error for QuotaExceeded {}

/// What is stored of a tree with a quota.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub(crate) struct Record {
    name: IVec,
    limit_bytes: Option<u64>,
    limit_entries: Option<u64>,
    bytes: u64,
    entries: u64,
    /// What the fields of its hashes have beside.
    field_bytes: u64,
}

impl Record {
    fn decode(tree: TreeId, stored: &[u8]) -> Result<Record> {
        codec::decode_record(RECORD_VERSION, stored).map_err(|what| damaged(tree, &what))
    }

    fn put(&self, tree: TreeId, fresh: bool) -> Effect {
        let value = IVec::from(codec::encode_record(RECORD_VERSION, self));
        Effect::Put { tree: TreeId::QUOTAS, key: record_key(tree), value, fresh: Some(fresh) }
    }

    /// For those who look.
    pub(crate) fn status(&self) -> TreeQuota {
        TreeQuota {
            tree: self.name.clone(),
            limit: QuotaLimit { bytes: self.limit_bytes, entries: self.limit_entries },
            bytes: self.all_bytes(),
            entries: self.entries,
        }
    }

    fn all_bytes(&self) -> u64 {
        self.bytes.saturating_add(self.field_bytes)
    }

    /// Refuses `wanted`, if it is more than this and more than is allowed.
    fn allows(&self, wanted: (u64, u64)) -> Result<(), QuotaExceeded> {
        let bytes = (Measure::Bytes, self.limit_bytes, self.all_bytes(), wanted.0);
        let entries = (Measure::Entries, self.limit_entries, self.entries, wanted.1);
        for (measure, limit, used, wanted) in [bytes, entries] {
            if let Some(limit) = limit
                && wanted > limit
                && wanted > used
            {
                return Err(QuotaExceeded { tree: self.name.clone(), measure, limit, used, wanted });
            }
        }
        Ok(())
    }
}

fn damaged(tree: TreeId, what: &str) -> Error {
    Error::corrupt("the tree of quotas", None, format!("the quota of tree {}: {what}", tree.0))
}

fn record_key(tree: TreeId) -> IVec {
    IVec::from(tree.0.to_be_bytes())
}

/// The record of a tree; `None`: it has no quota.
pub(crate) fn read(view: &impl View, tree: TreeId) -> Result<Option<Record>> {
    // The database's own have none.
    if tree.is_system() {
        return Ok(None);
    }
    let stored = view.get(TreeId::QUOTAS, &record_key(tree))?;
    stored.map(|stored| Record::decode(tree, &stored.value)).transpose()
}

/// What a record that was read from [`TreeId::QUOTAS`] says.
pub(crate) fn status_of(key: &[u8], stored: &[u8]) -> Result<TreeQuota> {
    let tree = key.try_into().map_or(TreeId(u32::MAX), |number| TreeId(u32::from_be_bytes(number)));
    Ok(Record::decode(tree, stored)?.status())
}

/// [`Command::SetQuota`](crate::Command::SetQuota). `view` shows what has expired, too.
pub(crate) fn set(view: &impl View, name: &IVec, limit: Option<&QuotaLimit>) -> Result<Outcome> {
    let mut effects = Effects::new();
    let known = view.tree_id(name);
    if known.is_some_and(TreeId::is_system) {
        return Err(Error::InvalidRequest("the database's own trees have no quotas".to_owned()));
    }
    let Some(limit) = limit else {
        if let Some(tree) = known
            && read(view, tree)?.is_some()
        {
            effects.push(Effect::Remove { tree: TreeId::QUOTAS, key: record_key(tree) });
        }
        return Ok(Outcome { effects, reply: Reply::Quota(None) });
    };
    let (tree, found) = match known {
        Some(tree) => (tree, read(view, tree)?),
        None => {
            let id = view.next_tree_id();
            effects.push(Effect::CreateTree { id, name: name.clone() });
            (id, None)
        }
    };
    let (is_new, counted) = (found.is_none(), known.is_some());
    let record = match found {
        Some(found) => found,
        None if counted => count(view, tree, name)?,
        None => Record::empty(name),
    };
    let record = Record { limit_bytes: limit.bytes, limit_entries: limit.entries, ..record };
    effects.push(record.put(tree, is_new));
    let reply = Reply::Quota(Some(record.status()));
    Ok(Outcome { effects, reply })
}

impl Record {
    fn empty(name: &IVec) -> Record {
        let name = name.clone();
        Record { name, limit_bytes: None, limit_entries: None, bytes: 0, entries: 0, field_bytes: 0 }
    }
}

/// What a tree holds, found by looking at all of it.
fn count(view: &impl View, tree: TreeId, name: &IVec) -> Result<Record> {
    let mut record = Record::empty(name);
    view.scan_values(tree, Bound::Unbounded, Bound::Unbounded, &mut |key, found| {
        record.entries += 1;
        record.bytes += (key.len() + found.value.len()) as u64;
        true
    })?;
    let mut owned = Vec::new();
    let (low, high) = hashes::owners();
    view.scan_values(TreeId::HASHES, as_ref(&low), as_ref(&high), &mut |key, found| {
        if decode_owner(&found.value).is_some_and(|(owner, _)| owner == tree.0) {
            owned.extend(hashes::id_of_key(key));
        }
        true
    })?;
    for id in owned {
        record.field_bytes += fields(view, id)?.values().sum::<u64>();
    }
    Ok(record)
}

/// The fields of a hash by their stored keys, and how much each counts.
fn fields(view: &impl View, id: HashId) -> Result<BTreeMap<IVec, u64>> {
    let (low, high) = id.fields_after(None);
    let mut found = BTreeMap::new();
    view.scan_values(TreeId::HASHES, as_ref(&low), as_ref(&high), &mut |key, field| {
        found.insert(IVec::from(key), (hashes::field_of_key(key).len() + field.value.len()) as u64);
        true
    })?;
    Ok(found)
}

/// Whether the record of each tree says what the tree holds, or why not: for tests.
///
/// # Errors
/// What does not agree, and those of reading.
pub fn check_invariants(view: &impl View) -> Result<()> {
    let mut records = Vec::new();
    view.scan_values(TreeId::QUOTAS, Bound::Unbounded, Bound::Unbounded, &mut |key, found| {
        records.push((IVec::from(key), found.value));
        true
    })?;
    for (key, stored) in records {
        let tree = TreeId(u32::from_be_bytes(key[..].try_into().expect("the number of a tree")));
        let record = Record::decode(tree, &stored)?;
        let (name, limit_bytes, limit_entries) =
            (record.name.clone(), record.limit_bytes, record.limit_entries);
        let counted = Record { name, limit_bytes, limit_entries, ..count(view, tree, &record.name)? };
        if counted != record {
            return Err(damaged(tree, &format!("it says {record:?}, and there is {counted:?}")));
        }
        if view.tree_id(&record.name) != Some(tree) {
            return Err(damaged(tree, "the tree is not there"));
        }
    }
    Ok(())
}

/// Counts what effects come to, and adds that to them; refuses those that make a tree larger than its quota allows.
///
/// # Errors
/// [`Error::QuotaExceeded`], and those of reading the view, which shows what has expired, too.
pub(crate) fn charge(view: &impl View, effects: &mut Effects) -> Result<()> {
    apply(view, effects, true)
}

/// As [`charge`], of what was allowed before.
pub(crate) fn count_only(view: &impl View, effects: &mut Effects) -> Result<()> {
    apply(view, effects, false)
}

fn apply(view: &impl View, effects: &mut Effects, judge: bool) -> Result<()> {
    if effects.is_empty() || !view.has_quotas()? {
        return Ok(());
    }
    let mut tally = Tally::new(view, effects.len() > 1);
    for effect in effects.iter() {
        tally.add(effect)?;
    }
    let mut records = Vec::new();
    for (tree, known) in tally.trees {
        let Some(Known { before, now }) = known else { continue };
        let Some(now) = now else {
            records.push(Effect::Remove { tree: TreeId::QUOTAS, key: record_key(tree) });
            continue;
        };
        if judge {
            before.allows((now.all_bytes(), now.entries)).map_err(Error::QuotaExceeded)?;
        }
        if now != before {
            records.push(now.put(tree, false));
        }
    }
    // In front: of what a replica knows of transactions the last effects tell.
    effects.insert_many(0, records);
    Ok(())
}

/// What was `before` of a sum becomes `now`. Saturating: a sum that is wrong, in a database that was put together from
/// what was left of another, must not stop a replica.
fn shift(sum: &mut u64, before: u64, now: u64) {
    *sum = sum.saturating_add(now).saturating_sub(before);
}

struct Known {
    before: Record,
    /// `None`: the tree is dropped.
    now: Option<Record>,
}

/// What a list of effects does to the trees that have quotas.
struct Tally<'a, V> {
    view: &'a V,
    trees: BTreeMap<TreeId, Option<Known>>,
    /// What effects so far have written, by the stored length; `None`: removed.
    written: Option<HashMap<(TreeId, IVec), Option<u64>>>,
    cleared: BTreeSet<TreeId>,
    /// Whose hashes are, as far as effects so far have changed it.
    owners: HashMap<HashId, TreeId>,
}

impl<'a, V: View> Tally<'a, V> {
    fn new(view: &'a V, are_many: bool) -> Tally<'a, V> {
        Tally {
            view,
            trees: BTreeMap::new(),
            written: are_many.then(HashMap::new),
            cleared: BTreeSet::new(),
            owners: HashMap::new(),
        }
    }

    fn record(&mut self, tree: TreeId) -> Result<Option<&mut Record>> {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.trees.entry(tree) {
            let found = read(self.view, tree)?;
            entry.insert(found.map(|before| Known { now: Some(before.clone()), before }));
        }
        let known = self.trees.get_mut(&tree).and_then(Option::as_mut);
        Ok(known.and_then(|known| known.now.as_mut()))
    }

    fn add(&mut self, effect: &Effect) -> Result<()> {
        match effect {
            Effect::Put { tree: TreeId::HASHES, key, value, .. } => match hashes::is_owner(key) {
                true => self.own(key, value),
                false => self.field(key, Some(value)),
            },
            Effect::Remove { tree: TreeId::HASHES, key } => match hashes::is_owner(key) {
                true => Ok(()),
                false => self.field(key, None),
            },
            Effect::Put { tree, key, value, .. } => self.entry(*tree, key, Some(value)),
            Effect::Remove { tree, key } => self.entry(*tree, key, None),
            Effect::Clear { tree } => {
                if let Some(record) = self.record(*tree)? {
                    (record.bytes, record.entries) = (0, 0);
                    self.cleared.insert(*tree);
                    if let Some(written) = &mut self.written {
                        written.retain(|(written, _), _| written != tree);
                    }
                }
                Ok(())
            }
            Effect::DropTree { id } => {
                self.record(*id)?;
                if let Some(Some(known)) = self.trees.get_mut(id) {
                    known.now = None;
                }
                Ok(())
            }
            // What is told is kept nowhere.
            Effect::CreateTree { .. } | Effect::SetNextId { .. } | Effect::Tell { .. } => Ok(()),
        }
    }

    /// The length of the value that a key had, with the effects so far; and writes the new one down.
    fn replace(&mut self, tree: TreeId, key: &IVec, length: Option<u64>) -> Result<Option<u64>> {
        let written = match &mut self.written {
            Some(written) => written.insert((tree, key.clone()), length),
            None => None,
        };
        match written {
            Some(before) => Ok(before),
            None if self.cleared.contains(&tree) => Ok(None),
            None => Ok(self.view.get(tree, key)?.map(|found| found.value.len() as u64)),
        }
    }

    fn entry(&mut self, tree: TreeId, key: &IVec, value: Option<&IVec>) -> Result<()> {
        if self.record(tree)?.is_none() {
            return Ok(());
        }
        let length = value.map(|value| value.len() as u64);
        let before = self.replace(tree, key, length)?;
        let record = self.record(tree)?.expect("it was there");
        let size = |length: Option<u64>| length.map_or(0, |length| key.len() as u64 + length);
        shift(&mut record.entries, before.is_some().into(), length.is_some().into());
        shift(&mut record.bytes, size(before), size(length));
        Ok(())
    }

    fn owner(&mut self, id: HashId) -> Result<Option<TreeId>> {
        if let Some(owner) = self.owners.get(&id) {
            return Ok(Some(*owner));
        }
        let stored = self.view.get(TreeId::HASHES, &id.owner_key())?;
        Ok(stored.and_then(|stored| Some(TreeId(decode_owner(&stored.value)?.0))))
    }

    fn field(&mut self, key: &IVec, value: Option<&IVec>) -> Result<()> {
        let Some(id) = hashes::id_of_key(key) else { return Ok(()) };
        let tree = self.owner(id)?;
        let is_counted = match tree {
            Some(tree) => self.record(tree)?.is_some(),
            None => false,
        };
        // Also of one that is not counted yet: its hash may be moved.
        let length = value.map(|value| value.len() as u64);
        let before = self.replace(TreeId::HASHES, key, length)?;
        if let Some(tree) = tree.filter(|_| is_counted) {
            let name = hashes::field_of_key(key).len() as u64;
            let size = |length: Option<u64>| length.map_or(0, |length| name + length);
            let record = self.record(tree)?.expect("it was there");
            shift(&mut record.field_bytes, size(before), size(length));
        }
        Ok(())
    }

    /// A hash is made, or comes to be another tree's.
    fn own(&mut self, key: &IVec, value: &IVec) -> Result<()> {
        let (Some(id), Some((tree, _))) = (hashes::id_of_key(key), decode_owner(value)) else {
            return Ok(());
        };
        let (before, now) = (self.owner(id)?, TreeId(tree));
        self.owners.insert(id, now);
        let Some(before) = before.filter(|before| *before != now) else { return Ok(()) };
        if self.record(before)?.is_none() && self.record(now)?.is_none() {
            return Ok(());
        }
        let mut moved = fields(self.view, id)?;
        for ((tree, key), length) in self.written.iter().flatten() {
            if *tree == TreeId::HASHES && !hashes::is_owner(key) && hashes::id_of_key(key) == Some(id) {
                match length {
                    Some(length) => {
                        moved.insert(key.clone(), hashes::field_of_key(key).len() as u64 + length)
                    }
                    None => moved.remove(key),
                };
            }
        }
        let moved: u64 = moved.values().sum();
        if let Some(record) = self.record(before)? {
            shift(&mut record.field_bytes, moved, 0);
        }
        if let Some(record) = self.record(now)? {
            shift(&mut record.field_bytes, 0, moved);
        }
        Ok(())
    }
}

/// How much operations in a list have made trees with quotas larger so far: each of them is judged by itself, where a
/// command is otherwise refused as a whole.
pub(crate) struct Growth<'a, V> {
    view: &'a V,
    trees: BTreeMap<TreeId, Option<(Record, i64, i64)>>,
}

impl<'a, V: View> Growth<'a, V> {
    /// `None`: no tree has a quota.
    pub(crate) fn new(view: &'a V) -> Result<Option<Growth<'a, V>>> {
        Ok(view.has_quotas()?.then(|| Growth { view, trees: BTreeMap::new() }))
    }

    /// Whether a tree has a quota.
    pub(crate) fn is_limited(&mut self, tree: TreeId) -> Result<bool> {
        if let std::collections::btree_map::Entry::Vacant(entry) = self.trees.entry(tree) {
            entry.insert(read(self.view, tree)?.map(|record| (record, 0, 0)));
        }
        Ok(self.trees[&tree].is_some())
    }

    /// Whether trees may become larger by so many bytes and entries, which may be less than none; if so, they are.
    pub(crate) fn allows(&mut self, added: &BTreeMap<TreeId, (i64, i64)>) -> Result<bool> {
        let is_over = |limit: Option<u64>, used: u64, more: i64, added: i64| {
            limit.is_some_and(|limit| added > 0 && used.saturating_add_signed(more + added) > limit)
        };
        for (tree, (bytes, entries)) in added {
            self.is_limited(*tree)?;
            if let Some(Some((record, more_bytes, more_entries))) = self.trees.get(tree)
                && (is_over(record.limit_bytes, record.all_bytes(), *more_bytes, *bytes)
                    || is_over(record.limit_entries, record.entries, *more_entries, *entries))
            {
                return Ok(false);
            }
        }
        for (tree, (bytes, entries)) in added {
            if let Some(Some((_, more_bytes, more_entries))) = self.trees.get_mut(tree) {
                *more_bytes += bytes;
                *more_entries += entries;
            }
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A test that fails here has broken every database with a quota out there: give the record a new version instead.
    #[test]
    fn a_record_has_the_bytes_it_always_had() {
        let record = Record {
            name: "t".into(),
            limit_bytes: Some(300),
            limit_entries: None,
            bytes: 7,
            entries: 2,
            field_bytes: 1,
        };
        let Effect::Put { key, value, .. } = record.put(TreeId(0x0102), true) else { panic!("no put") };
        assert_eq!(key, [0, 0, 1, 2]);
        assert_eq!(value, b"\x01\x01t\x01\xfb\x2c\x01\x00\x07\x02\x01");
        assert_eq!(Record::decode(TreeId(0x0102), &value).unwrap(), record);
        let mut newer = value.to_vec();
        newer[0] = 2;
        let error = Record::decode(TreeId(0x0102), &newer).unwrap_err().to_string();
        assert!(error.contains("tree 258") && error.contains("version 2"), "{error}");
    }
}
