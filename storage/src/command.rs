//! [`Command`]: everything a caller can ask to be changed, and [`Reply`]: what it is told.
//!
//! A command is data. The same value is evaluated at once by the embedded database and, on a
//! cluster, carried in a Raft entry and evaluated by every replica; see [`crate::evaluate`].

use bincode::{Decode, Encode};

use crate::compare::Comparison;
use crate::counter::{CounterAddition, CounterCommand, CounterReply};
use crate::expiry::{ExpiryCommand, ExpiryReply};
use crate::lock::{LockCommand, LockReply};
use crate::owned::OwnedCommand;
use crate::quota::{QuotaLimit, TreeQuota};
use crate::strings::{StringsOperation, StringsReplies};
use crate::{Error, IVec, Result};

/// The longest key in bytes.
pub const MAX_KEY_LENGTH: usize = 64 << 10;
/// The same of the database's own trees, which put what they need before a key of somebody else.
pub(crate) const MAX_OWN_KEY_LENGTH: usize = MAX_KEY_LENGTH + 64;
/// The longest value in bytes (512 MiB).
pub const MAX_VALUE_LENGTH: usize = 512 << 20;
/// The most bytes of keys and values that one command may carry (1 GiB).
pub const MAX_COMMAND_LENGTH: usize = 1 << 30;
/// The longest name of a tree, counter or lock in bytes.
pub const MAX_NAME_LENGTH: usize = 4 << 10;

/// What a tree counts beside its name, in bytes, against [`MAX_TREES_WEIGHT`].
pub const TREE_WEIGHT: usize = 64;

/// The most that the trees of a group may come to, each of them the length of its name and [`TREE_WEIGHT`]: a hundred
/// thousand trees with names of 20 bytes. All names of a group stand in the first chunk of its snapshot and in one
/// answer to whoever asks for them, and both have to fit into a message. [Seals](crate::seal) may come to as much again.
pub const MAX_TREES_WEIGHT: usize = 8 << 20;

/// The number of a tree, never reused within a database.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Encode, Decode)]
pub struct TreeId(pub u32);

impl TreeId {
    /// The tree that a database derefs to, `__sled__default`.
    pub const DEFAULT: TreeId = TreeId(0);
    /// Holds the counters; see [`crate::counter`].
    pub const COUNTERS: TreeId = TreeId(1);
    /// Holds the locks; see [`crate::lock`].
    pub const LOCKS: TreeId = TreeId(2);
    /// Holds the sessions; see [`crate::session`].
    pub const SESSIONS: TreeId = TreeId(3);
    /// Holds when keys expire; see [`crate::expiry`].
    pub const EXPIRY: TreeId = TreeId(4);
    /// Holds those who wait for locks; see [`crate::lock::queue`].
    pub const LOCK_QUEUES: TreeId = TreeId(5);
    /// Holds the numbers that come next; see [`crate::owned`].
    pub const SEQUENCES: TreeId = TreeId(6);
    /// Holds the fields of hashes; see [`crate::hashes`].
    pub const HASHES: TreeId = TreeId(9);
    /// Holds the quotas of trees; see [`crate::quota`].
    pub const QUOTAS: TreeId = TreeId(10);
    /// Holds what a replica knows of transactions over several groups; see [`crate::transaction`]. An
    /// embedded database has no such tree.
    pub const TRANSACTIONS: TreeId = TreeId(8);
    /// Numbers below this are the database's own trees.
    pub const FIRST_USER: TreeId = TreeId(16);

    /// Whether the tree is one of the database's own, not made by `open_tree`.
    pub fn is_system(self) -> bool {
        TreeId::DEFAULT < self && self < TreeId::FIRST_USER
    }
}

/// One put (`Some`) or remove (`None`) within a batch or transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct Write {
    /// Where.
    pub tree: TreeId,
    /// Which key.
    pub key: IVec,
    /// The new value, or `None` to remove the key.
    pub value: Option<IVec>,
}

/// A key that a transaction read, and what it saw there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct KeyRead {
    /// Where.
    pub tree: TreeId,
    /// Which key.
    pub key: IVec,
    /// The version seen (the sequence of the commit that wrote it); 0: the key was absent.
    pub version: u64,
}

/// A range that a transaction read, and what it saw there.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct RangeRead {
    /// Where.
    pub tree: TreeId,
    /// The first key that was looked at, inclusive.
    pub low: IVec,
    /// Where the look ended, exclusive; `None`: the end of the tree.
    pub high: Option<IVec>,
    /// How many keys were seen.
    pub count: u64,
    /// [`RangeFingerprint`] of the keys and versions seen.
    pub fingerprint: u64,
}

/// Digest of the (key, version) pairs of a range, in key order.
///
/// Versions never repeat, so two equal sets of versions are the same state of the range; the
/// digest is an FNV-style fold of the versions, and [`RangeRead::count`] guards it.
#[derive(Clone, Copy, Debug)]
pub struct RangeFingerprint(u64);

impl Default for RangeFingerprint {
    fn default() -> Self {
        RangeFingerprint(0xcbf2_9ce4_8422_2325)
    }
}

impl RangeFingerprint {
    /// Adds the next key's version.
    pub fn add(&mut self, version: u64) {
        // Multiply-rotate keeps order and mixes all bits; a version is a whole u64, so unlike
        // FNV on bytes one round per word suffices.
        self.0 = (self.0 ^ version).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    /// The digest.
    pub fn finish(self) -> u64 {
        self.0
    }
}

/// What a caller asks for.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Command {
    /// Opens a tree by name, creating it if missing. Reply: [`Reply::Tree`].
    CreateTree {
        /// Its name.
        name: IVec,
    },
    /// Drops a tree with all its keys. Reply: [`Reply::Dropped`].
    DropTree {
        /// Its name.
        name: IVec,
    },
    /// Removes all keys of a tree. Reply: [`Reply::Done`].
    ClearTree {
        /// Which.
        tree: TreeId,
    },
    /// Sets a key. Reply: [`Reply::Previous`].
    Insert {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// Its new value.
        value: IVec,
    },
    /// Removes a key. Reply: [`Reply::Previous`].
    Remove {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
    },
    /// Sets or removes a key only if its value is `old`. Reply: [`Reply::Swapped`].
    CompareAndSwap {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// What must be there; `None`: nothing.
        old: Option<IVec>,
        /// What shall be there; `None`: nothing.
        new: Option<IVec>,
    },
    /// Applies all writes, or none; a later write to a key overrules an earlier one. Reply:
    /// [`Reply::Done`].
    Batch {
        /// In order.
        writes: Vec<Write>,
    },
    /// Removes the first or last key of a tree. Reply: [`Reply::Popped`].
    Pop {
        /// Where.
        tree: TreeId,
        /// Whether the last key instead of the first.
        last: bool,
    },
    /// Applies `writes` and `expiries` only if all that was read is still so. Reply: [`Reply::Done`] or
    /// [`Reply::Conflict`].
    Transact {
        /// Keys that were read.
        reads: Vec<KeyRead>,
        /// Ranges that were read.
        ranges: Vec<RangeRead>,
        /// What to write.
        writes: Vec<Write>,
        /// What to write with a time to live, and whose time to live to change: [`ExpiryCommand::Insert`],
        /// [`ExpiryCommand::Set`] and [`ExpiryCommand::Clear`], each of another key, none of which is among the
        /// writes.
        expiries: Vec<ExpiryCommand>,
    },
    /// Reserves numbers that are never given again. Reply: [`Reply::Ids`].
    ReserveIds {
        /// How many.
        count: u64,
    },
    /// An operation of a counter. Reply: [`Reply::Counter`].
    Counter(CounterCommand),
    /// An operation of a lock. Reply: [`Reply::Lock`].
    Lock(LockCommand),
    /// Puts a value without looking at what was there: cheaper than [`Command::Insert`]. Reply:
    /// [`Reply::Done`].
    Put {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// The new value.
        value: IVec,
    },
    /// Adds to several counters, or to none if one sum does not fit. Reply: [`Reply::Counted`], or
    /// [`Reply::Counter`] with the overflow.
    CountMany {
        /// A counter that is named more than once is added to more than once.
        additions: Vec<CounterAddition>,
    },
    /// An operation on the time that a key has to live. Reply: [`Reply::Expiry`], [`Reply::Previous`] or
    /// [`Reply::Swapped`].
    Expiry(ExpiryCommand),
    /// Removes keys that have expired, and lets locks go on whose leases have ended while others wait: a
    /// bounded number of each. Reply: [`Reply::Settled`].
    SettleDue {
        /// The most keys, and the most locks; at most [`MOST_DUE`](crate::expiry::MOST_DUE).
        limit: u32,
    },
    /// An operation on keys of sessions or with numbers. Reply: [`Reply::Previous`] or [`Reply::Named`].
    Owned(OwnedCommand),
    /// Writes one thing or another, as conditions hold or not. Reply: [`Reply::Compared`].
    Compare {
        /// What must hold, all of it.
        comparisons: Vec<Comparison>,
        /// What to write then.
        then: Vec<Write>,
        /// What to write otherwise.
        otherwise: Vec<Write>,
    },
    /// Operations on strings as Redis has them, one after the other, if all that was watched is still so. Reply:
    /// [`Reply::Strings`] or [`Reply::Conflict`].
    Strings {
        /// Keys that were read, and what was seen there.
        watched: Vec<KeyRead>,
        /// What to do, in this order.
        operations: Vec<StringsOperation>,
    },
    /// Limits how much a tree may hold, which is made if there is none of that name; see [`crate::quota`]. Reply:
    /// [`Reply::Quota`].
    SetQuota {
        /// The tree's name.
        name: IVec,
        /// The most that it may hold; `None`: as much as it likes.
        limit: Option<QuotaLimit>,
    },
}

/// What the caller of a [`Command`] is told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// It is done.
    Done,
    /// The tree.
    Tree {
        /// Its number.
        id: TreeId,
        /// Whether it was made by this command.
        created: bool,
    },
    /// Whether there was such a tree.
    Dropped(bool),
    /// The value that was there before.
    Previous(Option<IVec>),
    /// Whether it was swapped; if not, what is there.
    Swapped(Result<(), Option<IVec>>),
    /// What was removed.
    Popped(Option<(IVec, IVec)>),
    /// Something that was read has changed since; read again.
    Conflict,
    /// The first of the reserved numbers.
    Ids {
        /// It and the `count - 1` after it are the caller's.
        first: u64,
    },
    /// Of a counter.
    Counter(CounterReply),
    /// Of a lock.
    Lock(LockReply),
    /// The sum of the last addition to each counter, in the order of the names.
    Counted(crate::counter::Sums),
    /// Of the time that a key has to live.
    Expiry(ExpiryReply),
    /// What was due is done.
    Settled {
        /// How many keys had expired and are gone, or had been written anew.
        keys: u64,
        /// How many locks went on.
        locks: u64,
        /// Whether there is more to do: ask again.
        more: bool,
    },
    /// The key that was made.
    Named {
        /// With its number.
        key: IVec,
    },
    /// Whether all conditions held; if not, the number of the first that did not, and the value that its
    /// key had.
    Compared(Result<(), (u32, Option<IVec>)>),
    /// Of operations on strings.
    Strings(StringsReplies),
    /// A tree's quota as it is now.
    Quota(Option<TreeQuota>),
}

impl Command {
    /// Refuses what is over a limit, before anything is looked up or written.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] with the limit and the size found.
    pub fn check_limits(&self) -> Result<()> {
        match self {
            Command::CreateTree { name } | Command::DropTree { name } | Command::SetQuota { name, .. } => {
                check_name("tree", name)
            }
            Command::Insert { key, value, .. } | Command::Put { key, value, .. } => {
                check_key(key)?;
                check_value(value)
            }
            Command::Remove { key, .. } => check_key(key),
            Command::CompareAndSwap { key, new, .. } => {
                check_key(key)?;
                new.as_ref().map_or(Ok(()), |value| check_value(value))
            }
            Command::Batch { writes } => check_writes(writes.iter()),
            Command::Transact { writes, expiries, .. } => {
                let mut total = 0;
                for operation in expiries.iter().flat_map(ExpiryCommand::operations) {
                    total += check_operation(&operation)?;
                }
                for expiry in expiries {
                    if let ExpiryCommand::Lock { .. } | ExpiryCommand::Held { .. } = expiry {
                        check_name("lock", expiry.key())?;
                    }
                }
                let with_ttl = expiries.iter().map(|expiry| (expiry.key(), expiry.value()));
                let entries = writes.iter().map(|write| (&write.key, write.value.as_ref()));
                check_total(total + check_entries(entries.chain(with_ttl))?)
            }
            Command::Compare { comparisons, then, otherwise } => {
                comparisons.iter().try_for_each(|comparison| check_key(&comparison.key))?;
                check_writes(then.iter().chain(otherwise))
            }
            Command::Counter(counter) => check_name("counter", counter.name()),
            Command::Lock(lock) => check_name("lock", lock.name()),
            Command::CountMany { additions } => {
                additions.iter().try_for_each(|addition| check_name("counter", &addition.name))
            }
            Command::Expiry(expiry) => {
                check_key(expiry.key())?;
                expiry.value().map_or(Ok(()), |value| check_value(value))
            }
            Command::Owned(owned) => {
                check_key(owned.prefix())?;
                check_value(owned.value())
            }
            Command::Strings { watched, operations } => {
                watched.iter().try_for_each(|read| check_key(&read.key))?;
                let mut total = 0;
                for operation in operations {
                    total += check_operation(operation)?;
                }
                check_total(total)
            }
            Command::SettleDue { .. }
            | Command::ClearTree { .. }
            | Command::Pop { .. }
            | Command::ReserveIds { .. } => Ok(()),
        }
    }
}

fn check_writes<'a>(writes: impl Iterator<Item = &'a Write>) -> Result<()> {
    check_total(check_entries(writes.map(|write| (&write.key, write.value.as_ref())))?)
}

/// How many bytes it brings, each part of which is within its limit.
fn check_operation(operation: &StringsOperation) -> Result<usize> {
    let mut total = 0;
    for (_, key) in operation.keys() {
        check_key(key)?;
        total += key.len();
    }
    for field in operation.fields() {
        check_length("a field", field.len(), MAX_KEY_LENGTH)?;
        total += field.len();
    }
    for value in operation.values() {
        check_value(value)?;
        total += value.len();
    }
    Ok(total + operation.filled())
}

/// How many bytes they are, each part of which is within its limit.
fn check_entries<'a>(entries: impl Iterator<Item = (&'a IVec, Option<&'a IVec>)>) -> Result<usize> {
    let mut total = 0;
    for (key, value) in entries {
        check_key(key)?;
        total += key.len();
        if let Some(value) = value {
            check_value(value)?;
            total += value.len();
        }
    }
    Ok(total)
}

fn check_total(total: usize) -> Result<()> {
    if total > MAX_COMMAND_LENGTH {
        return Err(Error::InvalidRequest(format!(
            "a batch or transaction of {total} bytes is over the limit of {MAX_COMMAND_LENGTH}; split it"
        )));
    }
    Ok(())
}

fn check_key(key: &[u8]) -> Result<()> {
    check_length("a key", key.len(), MAX_KEY_LENGTH)
}

fn check_value(value: &[u8]) -> Result<()> {
    check_length("a value", value.len(), MAX_VALUE_LENGTH)
}

fn check_name(of: &str, name: &[u8]) -> Result<()> {
    check_length(&format!("the name of a {of}"), name.len(), MAX_NAME_LENGTH)
}

fn check_length(what: &str, found: usize, limit: usize) -> Result<()> {
    if found > limit {
        return Err(Error::InvalidRequest(format!("{what} of {found} bytes is over the limit of {limit}")));
    }
    Ok(())
}
