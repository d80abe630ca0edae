//! [`Pinned`]: the state of a group at one moment that it has in common with other groups, held to be copied.
//!
//! # Promise
//!
//! If somebody has locked [everything](crate::transaction#looking-while-others-write) in several groups, and then,
//! knowing that, has each of them [pinned](Replica::pin) under that transaction, then what is pinned is the state of all of
//! them at one moment. Whatever was acknowledged before the first lock was asked for is in it, of every transaction
//! over several groups all or nothing, and of two writes one after the other not the second without the first.
//!
//! # Why
//!
//! Let T be a moment after the last group was locked and before the first was pinned. A group is pinned only if it is
//! locked *at that position of the log*, and it is locked once; so it was locked at T, and until it was pinned. All that
//! can have changed what is there, from T on, is a transaction that was prepared there before. So such are waited for
//! ([`Pinning::Locked`]): none is pinned half. And whoever is committed after T writes only where it was prepared
//! before T, because its other parts would be refused now: so all of it is waited for.
//!
//! When the last group is pinned the locks are given back, whatever follows: a pinned state does not change. So
//! writers are kept off for a few rounds of messages, however much there is to be copied. That is why pinning looks at
//! nothing but what is in memory: how many keys there are is estimated, and what sessions own is looked for when the first
//! page is read.
//!
//! # What is in it
//!
//! All trees with their keys, values, versions, and when they expire; the counters; the numbers that come next
//! ([`crate::owned`]); [hashes]. **Not**: what has expired by the log's time; sessions, what
//! dies with them, locks, those who wait for them, transactions: they mean something only to those who hold them, where
//! they hold them.
//!
//! **Hashes** are no keys of their trees here: what is stored there is a *head* that means nothing elsewhere. Instead
//! they are keys of the tree [`HASHES_TREE_NAME`], one after the other, each with its fields behind it
//! ([`HashPart`]). Numbers are big-endian:
//!
//! | key | value |
//! |---|---|
//! | id of the hash (12), 0 | length of the tree's stored name (4), that name, the key |
//! | id of the hash (12), 1, field | the field's value |
//!
//! The first tells when the hash expires. Fields that no key holds any more are left out.
//!
//! A pinned state costs what a [`Snapshot`] costs. Whoever keeps it has to see that it is let go.
//!
//! An embedded database is in one piece: its state is [as of now](Pinned::of), and is read in the same way.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::evaluate::Versioned;
use crate::expiry;
use crate::hashes::{self, HashId, ID_LENGTH, OWNER};
use crate::meta::HASHES_TREE_NAME;
use crate::owned;
use crate::replica::Replica;
use crate::seal::sealed_by;
use crate::snapshot::Snapshot;
use crate::transaction::{LockedBy, TransactionId};
use crate::{Engine, Error, IVec, Result, TreeId};

/// The most that is looked at for a page, be it in the page then or not. Whoever reads waits for a page only so long, and
/// what is left out (heads of hashes; hashes that no key holds any more) may be all that a tree has.
const MAX_LOOKED_AT: usize = 16 << 10;
/// What an entry counts for that is looked up elsewhere.
const LOOKED_UP: usize = 3;
/// What an entry counts for beside its key and value.
const ENTRY_BYTES: u64 = 32;

/// What came of [`Replica::pin`].
#[derive(Debug)]
pub enum Pinning {
    /// The state.
    Pinned(Pinned),
    /// Somebody who was prepared before is going to write: wait until that is resolved, and ask again.
    Locked(LockedBy),
    /// The transaction has not locked everything here, or not any more.
    NotLocked,
}

/// What of a tree is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinnedPart {
    /// Its keys.
    Keys,
    /// The prefixes of its [numbered keys](crate::owned), and as values the numbers that come next, big-endian.
    Numbers,
}

/// A key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PinnedEntry {
    /// The key.
    pub key: IVec,
    /// Position of the entry that wrote the value.
    pub version: u64,
    /// When it expires, by the log's time in milliseconds since 1970; `None`: never.
    pub expires_ms: Option<u64>,
    /// The value, if it is wanted.
    pub value: Option<IVec>,
}

/// What a key of [`HASHES_TREE_NAME`] in a pinned state is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashPart {
    /// A hash begins. Its value says whose it is: see [`hash_owner`].
    Head,
    /// A field of the hash that has begun before.
    Field(IVec),
}

impl HashPart {
    /// Understands a key; `None`: it is none.
    pub fn of(key: &IVec) -> Option<HashPart> {
        match (key.get(ID_LENGTH)?, key.len() - ID_LENGTH - 1) {
            (&HEAD, 0) => Some(HashPart::Head),
            (&FIELD, length) => Some(HashPart::Field(key.subslice(ID_LENGTH + 1, length))),
            _ => None,
        }
    }
}

/// Whose a hash is: the tree's stored name, and the key; `None`: the value is none.
pub fn hash_owner(value: &IVec) -> Option<(IVec, IVec)> {
    let (length, rest) = value.split_first_chunk()?;
    let length = u32::from_be_bytes(*length) as usize;
    let name = rest.len().checked_sub(length)?;
    Some((value.subslice(4, length), value.subslice(4 + length, name)))
}

/// Whether what is in a tree is in a pinned state.
fn is_open(tree: TreeId) -> bool {
    !tree.is_system() || [TreeId::DEFAULT, TreeId::COUNTERS, TreeId::HASHES].contains(&tree)
}

/// What comes behind the id of a hash.
const HEAD: u8 = 0;
const FIELD: u8 = 1;

fn hash_key(id: HashId, kind: u8, field: &[u8]) -> IVec {
    IVec::from([&id.owner_key()[1..], &[kind], field].concat())
}

/// A state that is held; see the [module](self). Cloning shares it.
#[derive(Clone, Debug)]
pub struct Pinned {
    snapshot: Snapshot,
    time_ms: u64,
    /// Once somebody has looked.
    owned: Arc<Mutex<Option<Arc<Owned>>>>,
}

/// Keys that die with a session, by the version that it owns.
type Owned = HashMap<(TreeId, IVec), u64>;

impl Replica {
    /// The state as of now, if this transaction has locked everything, and all that was prepared before is resolved.
    ///
    /// # Errors
    /// Damage and I/O errors met while reading.
    pub fn pin(&self, under: TransactionId) -> Result<Pinning> {
        let committer = self.engine().shared.commit.lock();
        let locked = committer.transactions.prepared(under).is_some_and(|own| own.part.locks_everything());
        if !locked {
            return Ok(Pinning::NotLocked);
        }
        if let Some(writer) = committer.transactions.any_writer() {
            return Ok(Pinning::Locked(writer));
        }
        Ok(Pinning::Pinned(Pinned::new(self.engine().snapshot(), committer.time_ms)))
    }
}

impl Pinned {
    fn new(snapshot: Snapshot, time_ms: u64) -> Pinned {
        Pinned { snapshot, time_ms, owned: Arc::default() }
    }

    /// The state of an embedded database as of now.
    pub fn of(engine: &Engine) -> Pinned {
        let snapshot = engine.snapshot();
        Pinned::new(snapshot, engine.now_ms())
    }

    fn owned(&self) -> Result<Arc<Owned>> {
        let mut owned = self.owned.lock();
        if let Some(known) = &*owned {
            return Ok(Arc::clone(known));
        }
        let known = Arc::new(owned::all_owned(&self.snapshot)?);
        *owned = Some(Arc::clone(&known));
        Ok(known)
    }

    /// Position of the last entry that has changed something in it.
    pub fn position(&self) -> u64 {
        self.snapshot.sequence()
    }

    /// The log's time there, in milliseconds since 1970.
    pub fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The trees by their stored names, sorted, and about how many keys each has. The database's own only if they hold
    /// something, or cannot be read, which is for whoever reads them to meet.
    pub fn trees(&self) -> Vec<(IVec, u64)> {
        let holds_something =
            |id| self.snapshot.range(id, Bound::Unbounded, Bound::Unbounded).next().is_some();
        let is_there = |id: TreeId| !id.is_system() || holds_something(id);
        let names = &self.snapshot.state().catalog.names;
        let named = names.iter().filter(|(name, _)| sealed_by(name).is_none() && *name != HASHES_TREE_NAME);
        let trees = named.map(|(name, id)| (name.clone(), *id));
        let hashes = std::iter::once((IVec::from(HASHES_TREE_NAME), TreeId::HASHES));
        let trees = trees.chain(hashes).filter(|(_, id)| is_open(*id) && is_there(*id));
        let mut trees: Vec<_> = trees.map(|(name, id)| (name, self.snapshot.about_len(id))).collect();
        trees.sort_unstable();
        trees
    }

    /// A page of about `limit_bytes`, of what comes after the key `after`; and after which key the next page begins, if
    /// there is more. That need not be the last of the page, which can be empty. Values only of what was written after
    /// position `since`.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a tree that is none of [these](Pinned::trees); damage found while reading.
    pub fn page(
        &self,
        tree: &[u8],
        part: PinnedPart,
        after: Option<&IVec>,
        since: u64,
        limit_bytes: u64,
    ) -> Result<(Vec<PinnedEntry>, Option<IVec>)> {
        let id = self.snapshot.tree_id(tree);
        let Some(id) = id.filter(|id| is_open(*id)) else {
            return Err(Error::InvalidRequest(format!("no tree \"{}\" is pinned", tree.escape_ascii())));
        };
        let mut page =
            Page { entries: Vec::new(), looked_at: 0, bytes: 0, since, limit_bytes: limit_bytes.max(1) };
        let next = match part {
            PinnedPart::Keys if id == TreeId::HASHES => self.hashes(after, &mut page)?,
            PinnedPart::Keys => self.keys(id, after, &mut page)?,
            PinnedPart::Numbers => self.numbers(id, after, &mut page)?,
        };
        Ok((page.entries, next))
    }

    fn keys(&self, tree: TreeId, after: Option<&IVec>, page: &mut Page) -> Result<Option<IVec>> {
        let owned = self.owned()?;
        let low = |key: &IVec| Bound::Excluded(key.clone());
        let entries = self.snapshot.range(tree, after.map_or(Bound::Unbounded, low), Bound::Unbounded);
        // In the same order: the two are walked side by side.
        let (first, end) = expiry::records_after(tree, after.map(|key| &key[..]));
        let mut records = self.snapshot.range(TreeId::EXPIRY, first, end);
        let mut record = records.next().transpose()?;
        let mut last = None;
        for entry in entries {
            if page.is_full() {
                return Ok(last);
            }
            let (key, found) = entry?;
            page.looked_at += 1;
            last = Some(key.clone());
            let expires_ms = loop {
                let Some((about, stored)) = &record else { break None };
                let (_, about) = expiry::key_of_record(about)?;
                if about < &key[..] {
                    record = records.next().transpose()?;
                    continue;
                }
                break if about == &key[..] { expiry::expires(Some(stored), found.version)? } else { None };
            };
            if hashes::head(&found.value).is_some() {
                page.looked_at += LOOKED_UP;
            }
            if owned.get(&(tree, key.clone())) == Some(&found.version)
                || self.hash_held(tree, &key, &found)?.is_some()
            {
                continue;
            }
            page.add(key, found, expires_ms);
        }
        Ok(None)
    }

    /// The hash that a key is: bytes that look like a head count only if the hash says that it is this key's.
    fn hash_held(&self, tree: TreeId, key: &[u8], found: &Versioned) -> Result<Option<HashId>> {
        let Some((id, _)) = hashes::head(&found.value) else { return Ok(None) };
        let owner = self.snapshot.get(TreeId::HASHES, &id.owner_key())?;
        let is_own = owner.is_some_and(|owner| hashes::decode_owner(&owner.value) == Some((tree.0, key)));
        Ok(is_own.then_some(id))
    }

    fn hashes(&self, after: Option<&IVec>, page: &mut Page) -> Result<Option<IVec>> {
        let owned = self.owned()?;
        let refused = || Error::InvalidRequest("no key of a hash in a pinned state".to_owned());
        // Where it goes on: behind the beginning of a hash, or behind a field of it.
        let mut begun = match after {
            None => None,
            Some(after) => {
                let id = hashes::id_of_bytes(after).ok_or_else(refused)?;
                Some((id, HashPart::of(after).ok_or_else(refused)?))
            }
        };
        let from = begun.as_ref().map_or(HashId::default(), |(id, _)| *id);
        let (low, high) = (Bound::Included(from.owner_key()), Bound::Excluded(IVec::from([OWNER + 1])));
        let mut last = None;
        for entry in self.snapshot.range(TreeId::HASHES, low, high) {
            if page.is_full() {
                return Ok(last);
            }
            let (key, owner) = entry?;
            page.looked_at += 1 + LOOKED_UP;
            let damaged = || owned::damaged("a hash that does not say whose it is");
            let id = hashes::id_of_key(&key).ok_or_else(damaged)?;
            let (tree, name) = hashes::decode_owner(&owner.value).ok_or_else(damaged)?;
            let tree = TreeId(tree);
            if begun.as_ref().is_none_or(|(begun, _)| *begun != id) {
                // As if it had begun there: who comes back leaves it out again.
                last = Some(hash_key(id, HEAD, &[]));
            }
            // The tree was dropped, or something else was put there.
            let Some(stored) = self.snapshot.state().catalog.ids.get(&tree) else { continue };
            let Some(found) = self.snapshot.get(tree, name)? else { continue };
            let is_owned = owned.get(&(tree, IVec::from(name))) == Some(&found.version);
            if is_owned || self.hash_held(tree, name, &found)? != Some(id) {
                continue;
            }
            let from = match begun.take().filter(|(begun, _)| *begun == id) {
                Some((_, HashPart::Field(field))) => Some(field),
                Some((_, HashPart::Head)) => None,
                None => {
                    let record = self.snapshot.get(TreeId::EXPIRY, &expiry::record_key(tree, name))?;
                    let expires_ms = expiry::expires(record.as_ref(), found.version)?;
                    let whose = [&(stored.len() as u32).to_be_bytes(), &stored[..], name].concat();
                    let head = Versioned { version: owner.version, value: IVec::from(whose) };
                    page.add(hash_key(id, HEAD, &[]), head, expires_ms);
                    None
                }
            };
            let (low, high) = id.fields_after(from.as_ref());
            for entry in self.snapshot.range(TreeId::HASHES, low, high) {
                if page.is_full() {
                    return Ok(last);
                }
                let (key, found) = entry?;
                page.looked_at += 1;
                let key = hash_key(id, FIELD, hashes::field_of_key(&key));
                last = Some(key.clone());
                page.add(key, found, None);
            }
        }
        Ok(None)
    }

    fn numbers(&self, tree: TreeId, after: Option<&IVec>, page: &mut Page) -> Result<Option<IVec>> {
        let of_tree = tree.0.to_be_bytes();
        let low = match after {
            Some(prefix) => Bound::Excluded(IVec::from([&of_tree[..], prefix].concat())),
            None => Bound::Included(IVec::from(of_tree)),
        };
        let mut last = None;
        for entry in self.snapshot.range(TreeId::SEQUENCES, low, Bound::Unbounded) {
            let (key, found) = entry?;
            let Some(prefix) = key.strip_prefix(&of_tree) else { break };
            if page.is_full() {
                return Ok(last);
            }
            page.looked_at += 1;
            last = Some(IVec::from(prefix));
            page.add(IVec::from(prefix), found, None);
        }
        Ok(None)
    }
}

/// A page that is being filled.
struct Page {
    entries: Vec<PinnedEntry>,
    /// What was looked at for it, as [`MAX_LOOKED_AT`] limits it.
    looked_at: usize,
    bytes: u64,
    since: u64,
    limit_bytes: u64,
}

impl Page {
    /// Not before something was looked at: the next page has to begin elsewhere.
    fn is_full(&self) -> bool {
        let over = self.bytes >= self.limit_bytes || self.looked_at >= MAX_LOOKED_AT;
        over && self.looked_at > 0
    }

    fn add(&mut self, key: IVec, found: Versioned, expires_ms: Option<u64>) {
        let Versioned { version, value } = found;
        let value = (version > self.since).then_some(value);
        self.bytes += ENTRY_BYTES + (key.len() + value.as_ref().map_or(0, |value| value.len())) as u64;
        self.entries.push(PinnedEntry { key, version, expires_ms, value });
    }
}
