//! What a command means: the only way that state changes.
//!
//! [`evaluate`] takes a [`View`] of the state, the [`Context`] (position and time in the log) and
//! a [`Command`], and returns the [`Outcome`]: effects to apply together or not at all, and the
//! reply. It owns no clock, randomness, file or thread, so every replica that evaluates the same
//! command at the same position computes the same effects. The embedded database logs the
//! effects; a cluster logs the command and evaluates on every replica.
//!
//! Effects are absolute (what a key becomes, never by how much it changes), so that replaying a WAL
//! over a B-tree that already holds a part of it gives the same contents. A put says whether its
//! key is new where the command had to look anyway. Puts of batches and transactions do not look:
//! a lookup costs more than all else of such a put, and a read from disk where the key is not
//! cached. How many keys there are is then found out when somebody asks; see `overlay.rs`.

use std::ops::Bound;

use bincode::{Decode, Encode};
use smallvec::SmallVec;

use crate::command::{Command, KeyRead, RangeFingerprint, RangeRead, Reply, TreeId, Write};
use crate::transaction::Transactions;
use crate::{Error, IVec, Result, compare, counter, expiry, lock, owned, quota, strings};

/// Position and time in the log of the command that is evaluated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The sequence its effects get.
    pub sequence: u64,
    /// Milliseconds since 1970 by the log's clock, which never runs backwards.
    pub time_ms: u64,
}

/// A value with the sequence of the commit that wrote it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Versioned {
    /// The sequence of the commit that wrote it; never 0.
    pub version: u64,
    /// The bytes.
    pub value: IVec,
}

/// A key and its [`Versioned`] value.
pub type Entry = (IVec, Versioned);

/// A consistent state that commands are evaluated against.
pub trait View {
    /// The value of a key.
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>>;
    /// Whether a key is there, and by which commit; cheaper than [`View::get`] for large values.
    fn version(&self, tree: TreeId, key: &[u8]) -> Result<Option<u64>> {
        Ok(self.get(tree, key)?.map(|found| found.version))
    }
    /// The first (or last) entry of a tree.
    fn end(&self, tree: TreeId, last: bool) -> Result<Option<Entry>>;
    /// Calls `each` with the keys and versions in `low..high` in order until it returns false.
    fn scan(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<()>;
    /// The number of a tree.
    fn tree_id(&self, name: &[u8]) -> Option<TreeId>;
    /// The number of a tree, also of one that is made by the command if that writes to it.
    fn tree_id_to_be(&self, name: &[u8]) -> Option<TreeId> {
        self.tree_id(name)
    }
    /// Whether a tree of this number is there.
    fn has_tree(&self, tree: TreeId) -> bool;
    /// The number that the next tree gets.
    fn next_tree_id(&self) -> TreeId;
    /// What the names of all trees come to, [`TREE_WEIGHT`](crate::command::TREE_WEIGHT) bytes more for each.
    fn tree_names_weight(&self) -> usize;
    /// The first number that was never reserved by [`Command::ReserveIds`].
    fn next_id(&self) -> u64;
    /// The entry after (or before) a key.
    fn next_to(&self, tree: TreeId, key: &[u8], before: bool) -> Result<Option<Entry>> {
        let bounds = match before {
            true => (Bound::Unbounded, Bound::Excluded(key)),
            false => (Bound::Excluded(key), Bound::Unbounded),
        };
        let mut found = None;
        self.scan(tree, bounds.0, bounds.1, &mut |key, _| {
            found = Some(IVec::from(key));
            before
        })?;
        let Some(key) = found else { return Ok(None) };
        Ok(self.get(tree, &key)?.map(|entry| (key, entry)))
    }
    /// A time of the log before which no key expires; `u64::MAX`: none ever does.
    fn earliest_due(&self) -> Result<u64>
    where
        Self: Sized,
    {
        expiry::first_due(self, TreeId::EXPIRY)
    }
    /// The transactions over several groups that are prepared or decided here; `None`: there can be
    /// none, as in an embedded database.
    fn transactions(&self) -> Option<&Transactions> {
        None
    }
    /// As [`View::scan`], with the values.
    fn scan_values(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], Versioned) -> bool,
    ) -> Result<()> {
        let mut failure = None;
        self.scan(tree, low, high, &mut |key, _| match self.get(tree, key) {
            Ok(Some(found)) => each(key, found),
            Ok(None) => true,
            Err(error) => {
                failure = Some(error);
                false
            }
        })?;
        failure.map_or(Ok(()), Err)
    }
    /// Whether a key is there whose time is over, and which this view hides for that.
    fn hides(&self, _tree: TreeId, _key: &[u8]) -> Result<bool> {
        Ok(false)
    }
    /// Is told of each key that a view above this one hides for its time is over.
    fn note_end(&self, _tree: TreeId, _key: &[u8], _expires_ms: u64) {}
    /// Whether there are any hashes; see [`crate::hashes`].
    fn has_hashes(&self) -> Result<bool> {
        Ok(self.end(TreeId::HASHES, false)?.is_some())
    }
    /// Whether any tree may have a quota; see [`crate::quota`]. Wrong only where none has.
    fn has_quotas(&self) -> Result<bool> {
        Ok(self.end(TreeId::QUOTAS, false)?.is_some())
    }
    /// Whether a transaction over several groups, prepared here, keeps a key from being written. For work on many
    /// keys that goes on beside those that have to wait; whoever does not ask is refused whole if one is locked.
    fn is_locked(&self, _tree: TreeId, _key: &[u8]) -> bool {
        false
    }
}

/// One change of the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A key gets a value.
    Put {
        /// Where.
        tree: TreeId,
        /// Which.
        key: IVec,
        /// The new value.
        value: IVec,
        /// Whether the key was absent; `None`: nobody looked, and the number of keys is settled
        /// when somebody asks for it.
        fresh: Option<bool>,
    },
    /// A key that was there goes.
    Remove {
        /// Where.
        tree: TreeId,
        /// Which.
        key: IVec,
    },
    /// Nothing changes, and whoever watches the key is told of a value as if it got that: a message. The only effect of
    /// which a commit may have several on one key.
    Tell {
        /// Where.
        tree: TreeId,
        /// Which.
        key: IVec,
        /// What is told.
        value: IVec,
    },
    /// All keys of a tree go.
    Clear {
        /// Which.
        tree: TreeId,
    },
    /// A tree comes to be.
    CreateTree {
        /// Its number.
        id: TreeId,
        /// Its name.
        name: IVec,
    },
    /// A tree goes, with all keys.
    DropTree {
        /// Its number.
        id: TreeId,
    },
    /// Numbers below this one are given away.
    SetNextId {
        /// The first that is free.
        next: u64,
    },
}

/// Changes that are applied together or not at all, in order.
pub type Effects = SmallVec<[Effect; 1]>;

/// What a command comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Applied together or not at all; empty if nothing changes.
    pub effects: Effects,
    /// What the caller is told, once the effects are visible.
    pub reply: Reply,
}

impl Outcome {
    /// A reply without effects.
    pub fn reply(reply: Reply) -> Outcome {
        Outcome { effects: Effects::new(), reply }
    }
}

/// Evaluates one command; see the [module](self).
///
/// # Errors
/// [`Error::TreeNotFound`] for a tree that was dropped, [`Error::InvalidRequest`] for what no
/// state allows, [`Error::QuotaExceeded`], and errors of reading the view. No error leaves anything half done.
pub fn evaluate(view: &impl View, context: &Context, command: &Command) -> Result<Outcome> {
    let mut outcome = match command {
        Command::SettleDue { limit } => expiry::settle_due(view, context, *limit)?,
        Command::SetQuota { name, limit } => quota::set(view, name, limit.as_ref())?,
        _ if view.earliest_due()? <= context.time_ms => expiry::evaluate_live(view, context, command)?,
        _ => evaluate_unhidden(view, context, command)?,
    };
    quota::charge(view, &mut outcome.effects)?;
    Ok(outcome)
}

/// Evaluates a command over all that is there.
pub(crate) fn evaluate_unhidden(view: &impl View, context: &Context, command: &Command) -> Result<Outcome> {
    match command {
        Command::Insert { tree, key, value } => {
            require_tree(view, *tree)?;
            let previous = view.get(*tree, key)?;
            let mut effects = Effects::new();
            effects.push(Effect::Put {
                tree: *tree,
                key: key.clone(),
                value: value.clone(),
                fresh: Some(previous.is_none()),
            });
            Ok(Outcome { effects, reply: Reply::Previous(previous.map(|found| found.value)) })
        }
        Command::Remove { tree, key } => {
            require_tree(view, *tree)?;
            let previous = view.get(*tree, key)?;
            let mut effects = Effects::new();
            if previous.is_some() {
                effects.push(Effect::Remove { tree: *tree, key: key.clone() });
            }
            Ok(Outcome { effects, reply: Reply::Previous(previous.map(|found| found.value)) })
        }
        Command::CompareAndSwap { tree, key, old, new } => {
            require_tree(view, *tree)?;
            let current = view.get(*tree, key)?.map(|found| found.value);
            if current != *old {
                return Ok(Outcome::reply(Reply::Swapped(Err(current))));
            }
            let mut effects = Effects::new();
            match new {
                Some(value) => effects.push(Effect::Put {
                    tree: *tree,
                    key: key.clone(),
                    value: value.clone(),
                    fresh: Some(current.is_none()),
                }),
                None if current.is_some() => effects.push(Effect::Remove { tree: *tree, key: key.clone() }),
                None => {}
            }
            Ok(Outcome { effects, reply: Reply::Swapped(Ok(())) })
        }
        Command::Batch { writes } => {
            Ok(Outcome { effects: effects_of_writes(view, writes)?, reply: Reply::Done })
        }
        Command::Pop { tree, last } => {
            require_tree(view, *tree)?;
            let mut effects = Effects::new();
            let found = view.end(*tree, *last)?;
            if let Some((key, _)) = &found {
                effects.push(Effect::Remove { tree: *tree, key: key.clone() });
            }
            Ok(Outcome { effects, reply: Reply::Popped(found.map(|(key, entry)| (key, entry.value))) })
        }
        Command::Transact { reads, ranges, writes, expiries } => {
            for read in reads {
                if !is_current(view, read)? {
                    return Ok(Outcome::reply(Reply::Conflict));
                }
            }
            for range in ranges {
                if !is_range_current(view, range)? {
                    return Ok(Outcome::reply(Reply::Conflict));
                }
            }
            let mut effects = effects_of_writes(view, writes)?;
            expiry::check_list(view, writes, expiries)?;
            if !expiry::demands_hold(view, context, expiries)? {
                return Ok(Outcome::reply(Reply::Conflict));
            }
            expiry::extend(view, context, writes, expiries, &mut effects)?;
            Ok(Outcome { effects, reply: Reply::Done })
        }
        Command::CreateTree { name } => {
            if let Some(id) = view.tree_id(name) {
                return Ok(Outcome::reply(Reply::Tree { id, created: false }));
            }
            let id = view.next_tree_id();
            let mut effects = Effects::new();
            effects.push(Effect::CreateTree { id, name: name.clone() });
            Ok(Outcome { effects, reply: Reply::Tree { id, created: true } })
        }
        Command::DropTree { name } => {
            let Some(id) = view.tree_id(name) else {
                return Ok(Outcome::reply(Reply::Dropped(false)));
            };
            if id < TreeId::FIRST_USER {
                return Err(Error::InvalidRequest(
                    "the default tree and the database's own cannot be dropped".to_owned(),
                ));
            }
            let mut effects = Effects::new();
            owned::forget_numbers(view, id, &mut effects)?;
            effects.push(Effect::DropTree { id });
            Ok(Outcome { effects, reply: Reply::Dropped(true) })
        }
        Command::ClearTree { tree } => {
            require_tree(view, *tree)?;
            let mut effects = Effects::new();
            if view.end(*tree, false)?.is_some() {
                effects.push(Effect::Clear { tree: *tree });
            }
            Ok(Outcome { effects, reply: Reply::Done })
        }
        Command::ReserveIds { count } => {
            let first = view.next_id();
            let next = first.checked_add(*count).ok_or_else(|| {
                Error::InvalidRequest(format!("{count} more numbers after {first} do not fit 64 bits"))
            })?;
            let mut effects = Effects::new();
            effects.push(Effect::SetNextId { next });
            Ok(Outcome { effects, reply: Reply::Ids { first } })
        }
        Command::Put { tree, key, value } => {
            require_tree(view, *tree)?;
            let mut effects = Effects::new();
            effects.push(Effect::Put { tree: *tree, key: key.clone(), value: value.clone(), fresh: None });
            Ok(Outcome { effects, reply: Reply::Done })
        }
        Command::Compare { comparisons, then, otherwise } => {
            compare::evaluate(view, comparisons, then, otherwise)
        }
        Command::Counter(command) => counter::evaluate(view, context, command),
        Command::Lock(command) => lock::evaluate(view, context, command),
        Command::CountMany { additions } => counter::evaluate_many(view, additions),
        Command::Expiry(command) => expiry::evaluate(view, context, command),
        Command::SettleDue { limit } => expiry::settle_due(view, context, *limit),
        Command::Owned(command) => owned::evaluate(view, command),
        Command::Strings { watched, operations } => strings::evaluate(view, context, watched, operations),
        Command::SetQuota { name, limit } => quota::set(view, name, limit.as_ref()),
    }
}

pub(crate) fn require_tree(view: &impl View, tree: TreeId) -> Result<()> {
    if view.has_tree(tree) {
        return Ok(());
    }
    Err(Error::TreeNotFound(IVec::from(format!("#{}", tree.0))))
}

pub(crate) fn is_current(view: &impl View, read: &KeyRead) -> Result<bool> {
    require_tree(view, read.tree)?;
    Ok(view.version(read.tree, &read.key)?.unwrap_or(0) == read.version)
}

pub(crate) fn is_range_current(view: &impl View, range: &RangeRead) -> Result<bool> {
    require_tree(view, range.tree)?;
    let mut count = 0;
    let mut fingerprint = RangeFingerprint::default();
    let high = range.high.as_ref().map_or(Bound::Unbounded, |high| Bound::Excluded(&high[..]));
    view.scan(range.tree, Bound::Included(&range.low), high, &mut |_, version| {
        count += 1;
        fingerprint.add(version);
        count <= range.count
    })?;
    Ok(count == range.count && fingerprint.finish() == range.fingerprint)
}

/// The first eight bytes as a number that is ordered as they are.
fn first_bytes(key: &[u8]) -> u64 {
    let mut bytes = [0; 8];
    let length = key.len().min(8);
    bytes[..length].copy_from_slice(&key[..length]);
    u64::from_be_bytes(bytes)
}

/// Turns writes into effects: the last write to a key wins.
pub(crate) fn effects_of_writes(view: &impl View, writes: &[Write]) -> Result<Effects> {
    // Indices in (tree, key) order with the last write of each key last. Most comparisons are
    // settled by the first eight bytes of the keys, which lie beside the indices.
    let mut order: Vec<(TreeId, u64, u32)> = writes
        .iter()
        .enumerate()
        .map(|(index, write)| (write.tree, first_bytes(&write.key), index as u32))
        .collect();
    order.sort_unstable_by(|a, b| {
        (a.0, a.1)
            .cmp(&(b.0, b.1))
            .then_with(|| writes[a.2 as usize].key.cmp(&writes[b.2 as usize].key))
            .then(a.2.cmp(&b.2))
    });
    let mut effects = Effects::with_capacity(writes.len());
    let mut known_tree = None;
    for (position, &(_, _, index)) in order.iter().enumerate() {
        let write = &writes[index as usize];
        if let Some(&(_, _, next)) = order.get(position + 1)
            && writes[next as usize].tree == write.tree
            && writes[next as usize].key == write.key
        {
            continue;
        }
        if known_tree != Some(write.tree) {
            require_tree(view, write.tree)?;
            known_tree = Some(write.tree);
        }
        match &write.value {
            Some(value) => effects.push(Effect::Put {
                tree: write.tree,
                key: write.key.clone(),
                value: value.clone(),
                fresh: None,
            }),
            None if view.version(write.tree, &write.key)?.is_some() => {
                effects.push(Effect::Remove { tree: write.tree, key: write.key.clone() })
            }
            None => {}
        }
    }
    Ok(effects)
}
