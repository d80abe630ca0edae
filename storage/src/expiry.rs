//! Keys that have a time to live.
//!
//! # Promise
//!
//! From the moment on at which a key's time is over it is never read: not by a get, a range, a
//! transaction, nor by a command that looks at it. That moment is a time of the log and nothing
//! else ([`Context::time_ms`]), so all replicas agree at which position a key was there and at which it was
//! not. Keys without a time to live cost nothing, neither bytes nor lookups.
//!
//! # Idea
//!
//! Two things happen to a key whose time is over. First it is *hidden*: whoever finds it looks whether its time is over. Then it is *removed*, by
//! [`Command::SettleDue`], of which every run does a bounded amount of work: the leader of a group proposes it, an embedded
//! database runs it in the background. Watchers are told of the removal.
//!
//! When keys expire is kept in a tree of its own, [`TreeId::EXPIRY`]. A record there is *about* one
//! version of its key. Versions never repeat; so whatever writes the key anew, be it a blind put that
//! looks at nothing, has thereby taken the time to live from it, without knowing of it:
//!
//! | operation | the key's time to live |
//! |---|---|
//! | insert, put, batch, transaction, compare and swap | is gone: the key stays for good |
//! | [`ExpiryCommand::Insert`], [`ExpiryCommand::Swap`] | is the one that comes with it |
//! | the same with [`When::Keep`] | stays |
//! | [`ExpiryCommand::Set`], [`ExpiryCommand::Clear`] | is changed, is gone |
//! | remove, and inserting it again | is gone |
//!
//! The record that is about a former version stays until its time comes, and goes then. Whether anything at
//! all may have expired is one number in memory, the earliest time in the index
//! ([`View::earliest_due`]); while it is in the future, reads and commands take their usual way. So lookups cost
//! more only between a key's end and its removal.
//!
//! **How many keys there are** (`len`) counts those that are hidden and not yet removed, as Redis does.
//!
//! # Layout
//!
//! In [`TreeId::EXPIRY`]; numbers are big-endian:
//!
//! | key | value |
//! |---|---|
//! | 1, `expires_ms` (8), tree (4), key | nothing: it is the order in which keys expire |
//! | 2, tree (4), key | version 1, `expires_ms` (8), the version of the key that this is about (8); 0: the one that was written with this record |
//!
//! **Inside an embedded transaction** the same commands are evaluated over what the transaction has written so
//! far. A key that it writes has version 0 until the commit, and so has the record that is about that.
//! Whoever keeps the transaction's writes takes the record out when the key is written plainly after that
//! ([`ExpiryCommand::Clear`]): both would have the commit's version.
//!
//! **Inside a transaction of a cluster** they are a list of its own beside the writes, evaluated where the
//! transaction is committed, by the time of the log there. Where it was prepared before, that is the time at which it was
//! prepared: what it was valid at, and no later than the commit. So a time to live that is counted from the commit does not
//! grow when a participant hears of it late. Operations on strings and hashes are in that list as well
//! ([`ExpiryCommand::Strings`]), what is done to locks ([`ExpiryCommand::Lock`], [`ExpiryCommand::Held`]), and keys of
//! sessions and with numbers ([`ExpiryCommand::Owned`]). A time to live that was read is in it, too, to be the same still
//! ([`ExpiryCommand::Lives`]): a change of it alone leaves the key's version as it is.
//!
//! The database's own trees have no times to live. Of [`TreeId::HASHES`] there are entries in the index that have no record: marks
//! of [hashes](crate::hashes) whose fields are to be removed.

mod list;
mod live;

use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::codec::Listed;
use crate::command::{Command, Reply, TreeId};
use crate::evaluate::{self, Context, Effect, Effects, Outcome, Versioned, View};
use crate::group::SessionId;
use crate::hashes::sweep::{self, Sweep};
use crate::hashes::{HashId, decode_owner, head};
use crate::lock::{FencingToken, LockCommand};
use crate::strings::notices::Notices;
use crate::strings::{StringAction, StringsOperation};
use crate::{Error, IVec, Result, lock};

pub(crate) use self::list::{check_list, demands_hold, extend, extend_live};
pub(crate) use self::live::LiveView;

/// The most keys that one [`Command::SettleDue`] removes, and the most locks that it lets go on.
pub const MOST_DUE: u32 = 1024;
/// With so many changes one run ends, however many hashes are due.
const MOST_EFFECTS: usize = 16 << 10;

/// The last time at which anything expires: the one after it says, of all keys together, that none does.
pub(crate) const LATEST_MS: u64 = u64::MAX - 1;

const OVER_BEFORE_IT_BEGINS: &str = "a key with a time to live of 0 ms would end before it begins";

const DUE: u8 = 1;
const RECORD: u8 = 2;
const RECORD_VERSION: u8 = 1;

/// When a key expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum When {
    /// So many milliseconds of the log's time after the command; at least one.
    After(u64),
    /// At this time of the log, in milliseconds since 1970. If that is over, the key goes at once.
    At(u64),
    /// When it did before; never, if it had no time to live.
    Keep,
}

/// Which times to live [`ExpiryCommand::Set`] changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum SetIf {
    /// Any.
    Always,
    /// Only of a key that has none.
    None,
    /// Only of a key that has one.
    Some,
    /// Only to a later time. Having none is the latest.
    Later,
    /// Only to an earlier time. Having none is the latest.
    Earlier,
}

/// An operation on the time that a key has to live; see the [module](self).
///
/// New variants are added at the end: the position of a variant is part of its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum ExpiryCommand {
    /// Sets a key. Reply: [`Reply::Previous`].
    Insert {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// Its new value.
        value: IVec,
        /// When it expires.
        when: When,
    },
    /// Sets a key only if its value is `old`. Reply: [`Reply::Swapped`].
    Swap {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// What must be there; `None`: nothing.
        old: Option<IVec>,
        /// Its new value.
        new: IVec,
        /// When it expires.
        when: When,
    },
    /// Changes when a key expires. Reply: [`ExpiryReply::Changed`] or [`ExpiryReply::Unchanged`].
    Set {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// When it expires.
        when: When,
        /// Whether it is changed.
        only: SetIf,
    },
    /// Takes the time to live from a key. Reply: [`ExpiryReply::Changed`] or [`ExpiryReply::Unchanged`].
    Clear {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
    },
    /// Reads when a key expires. Reply: [`ExpiryReply::Expires`] or [`ExpiryReply::Absent`].
    Get {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
    },
    /// Operations of [`crate::strings`] on one key, each of which sees those before it; none of them
    /// may be about a second key, or a tree. Only as a part of a [transaction](Command::Transact), which knows what they
    /// come to: it has read the key.
    Strings {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// What is done.
        actions: Listed<StringAction>,
    },
    /// Takes, renews or gives back a lock: [`LockCommand::TryAcquire`], [`LockCommand::Renew`] or
    /// [`LockCommand::Release`]. Only as a part of a [transaction](Command::Transact), which is a conflict if it comes to
    /// anything else than that.
    Lock {
        /// That of locks.
        tree: TreeId,
        /// What is done.
        command: LockCommand,
    },
    /// Does nothing, and is a conflict unless a lock is held under this token. Only as a part of a
    /// [transaction](Command::Transact).
    Held {
        /// That of locks.
        tree: TreeId,
        /// The lock's name.
        key: IVec,
        /// The token of a grant.
        token: FencingToken,
    },
    /// Does nothing, and is a conflict unless the key is there and expires then. Only as a part of a
    /// [transaction](Command::Transact), which has read the key as well.
    Lives {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// When it expires; `None`: never.
        at_ms: Option<u64>,
    },
    /// Sets a key that dies with a session, or is numbered, or both; see [`crate::owned`]. Only as a part of a
    /// [transaction](Command::Transact), which is a conflict if somebody has had the number by then.
    Owned {
        /// Where.
        tree: TreeId,
        /// Which key; of one that is numbered, the prefix and the number in twenty digits.
        key: IVec,
        /// Its new value.
        value: IVec,
        /// Whose it is.
        session: Option<SessionId>,
        /// Whether the key ends with a number that its prefix has not given yet.
        is_numbered: bool,
    },
}

/// What the caller of an [`ExpiryCommand`] is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ExpiryReply {
    /// It is changed.
    Changed,
    /// Nothing was changed: no such key, or its time to live is not of the kind asked for.
    Unchanged,
    /// When the key expires, by the log's time; `None`: never.
    Expires(Option<u64>),
    /// There is no such key.
    Absent,
}

impl ExpiryCommand {
    /// The key.
    pub fn key(&self) -> &IVec {
        match self {
            ExpiryCommand::Insert { key, .. }
            | ExpiryCommand::Swap { key, .. }
            | ExpiryCommand::Set { key, .. }
            | ExpiryCommand::Clear { key, .. }
            | ExpiryCommand::Get { key, .. }
            | ExpiryCommand::Strings { key, .. }
            | ExpiryCommand::Held { key, .. }
            | ExpiryCommand::Lives { key, .. }
            | ExpiryCommand::Owned { key, .. } => key,
            ExpiryCommand::Lock { command, .. } => command.name(),
        }
    }

    /// The tree.
    pub fn tree(&self) -> TreeId {
        match self {
            ExpiryCommand::Insert { tree, .. }
            | ExpiryCommand::Swap { tree, .. }
            | ExpiryCommand::Set { tree, .. }
            | ExpiryCommand::Clear { tree, .. }
            | ExpiryCommand::Get { tree, .. }
            | ExpiryCommand::Strings { tree, .. }
            | ExpiryCommand::Lock { tree, .. }
            | ExpiryCommand::Held { tree, .. }
            | ExpiryCommand::Lives { tree, .. }
            | ExpiryCommand::Owned { tree, .. } => *tree,
        }
    }

    /// The tree, to be replaced.
    pub fn tree_mut(&mut self) -> &mut TreeId {
        match self {
            ExpiryCommand::Insert { tree, .. }
            | ExpiryCommand::Swap { tree, .. }
            | ExpiryCommand::Set { tree, .. }
            | ExpiryCommand::Clear { tree, .. }
            | ExpiryCommand::Get { tree, .. }
            | ExpiryCommand::Strings { tree, .. }
            | ExpiryCommand::Lock { tree, .. }
            | ExpiryCommand::Held { tree, .. }
            | ExpiryCommand::Lives { tree, .. }
            | ExpiryCommand::Owned { tree, .. } => tree,
        }
    }

    /// Whether it only demands something of what is there.
    pub(crate) fn only_asks(&self) -> bool {
        matches!(self, ExpiryCommand::Held { .. } | ExpiryCommand::Lives { .. })
    }

    /// What [`ExpiryCommand::Strings`] does to its key.
    pub(crate) fn operations(&self) -> impl Iterator<Item = StringsOperation> {
        let found = match self {
            ExpiryCommand::Strings { tree, key, actions } => Some((*tree, key, &actions.0)),
            _ => None,
        };
        found.into_iter().flat_map(|(tree, key, actions)| {
            actions.iter().map(move |action| StringsOperation {
                tree,
                key: key.clone(),
                action: action.clone(),
            })
        })
    }

    /// The value to be set, if one is.
    pub fn value(&self) -> Option<&IVec> {
        match self {
            ExpiryCommand::Insert { value, .. }
            | ExpiryCommand::Swap { new: value, .. }
            | ExpiryCommand::Owned { value, .. } => Some(value),
            _ => None,
        }
    }
}

/// What is stored of a key's time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Record {
    expires_ms: u64,
    /// Of the key that this is about.
    version: u64,
}

pub(crate) fn due_key(expires_ms: u64, tree: TreeId, key: &[u8]) -> IVec {
    let mut bytes = Vec::with_capacity(13 + key.len());
    bytes.push(DUE);
    bytes.extend_from_slice(&expires_ms.to_be_bytes());
    bytes.extend_from_slice(&tree.0.to_be_bytes());
    bytes.extend_from_slice(key);
    IVec::from(bytes)
}

/// The key of the record that says when a key expires.
pub fn record_key(tree: TreeId, key: &[u8]) -> IVec {
    let mut bytes = Vec::with_capacity(5 + key.len());
    bytes.push(RECORD);
    bytes.extend_from_slice(&tree.0.to_be_bytes());
    bytes.extend_from_slice(key);
    IVec::from(bytes)
}

/// Where the records are.
pub(crate) fn all_records() -> (Bound<IVec>, Bound<IVec>) {
    (Bound::Included(IVec::from([RECORD])), Bound::Excluded(IVec::from([RECORD + 1])))
}

/// Where the records are of a tree's keys that come after this one.
pub(crate) fn records_after(tree: TreeId, key: Option<&[u8]>) -> (Bound<IVec>, Bound<IVec>) {
    let first = record_key(tree, key.unwrap_or_default());
    let first = if key.is_some() { Bound::Excluded(first) } else { Bound::Included(first) };
    let end = match tree.0.checked_add(1) {
        Some(next) => Bound::Excluded(record_key(TreeId(next), &[])),
        None => all_records().1,
    };
    (first, end)
}

/// The tree and the key that a record is about.
pub(crate) fn key_of_record(record: &[u8]) -> Result<(TreeId, &[u8])> {
    let tree = record.get(1..).and_then(|rest| rest.split_first_chunk());
    let (tree, key) = tree.ok_or_else(|| damaged("a record with a key that is too short"))?;
    Ok((TreeId(u32::from_be_bytes(*tree)), key))
}

fn damaged(what: impl Into<String>) -> Error {
    Error::corrupt("the tree of times to live", None, what.into())
}

fn encode(expires_ms: u64, version: u64) -> IVec {
    let mut bytes = [RECORD_VERSION; 17];
    bytes[1..9].copy_from_slice(&expires_ms.to_be_bytes());
    bytes[9..].copy_from_slice(&version.to_be_bytes());
    IVec::from(bytes)
}

fn decode(stored: &Versioned) -> Result<Record> {
    let bytes: &[u8; 17] = stored.value[..]
        .try_into()
        .map_err(|_| damaged(format!("a record of {} bytes instead of 17", stored.value.len())))?;
    if bytes[0] != RECORD_VERSION {
        return Err(damaged(format!("a record of version {} is not known, only {RECORD_VERSION}", bytes[0])));
    }
    let number = |at: usize| u64::from_be_bytes(*bytes[at..].first_chunk().expect("17 bytes"));
    let version = match number(9) {
        0 => stored.version,
        version => version,
    };
    Ok(Record { expires_ms: number(1), version })
}

/// The time under which an entry of an index of due times stands; `None`: this is another entry.
#[inline]
pub(crate) fn due_time(key: &[u8]) -> Option<u64> {
    let (&DUE, rest) = key.split_first()? else { return None };
    Some(u64::from_be_bytes(*rest.first_chunk()?))
}

/// The trees that begin with an index of due times.
#[inline]
pub(crate) fn has_due_times(tree: TreeId) -> bool {
    tree == TreeId::EXPIRY || tree == TreeId::LOCK_QUEUES
}

/// The first time in such a tree; `u64::MAX`: there is none.
pub(crate) fn first_due(view: &impl View, tree: TreeId) -> Result<u64> {
    // Not by a scan: where the tree begins is known.
    let first = view.end(tree, false)?;
    Ok(first.and_then(|(key, _)| due_time(&key)).unwrap_or(u64::MAX))
}

/// The first entries of the index that are due, at most `limit`; and whether there are more.
pub(crate) fn due_keys(
    view: &impl View,
    tree: TreeId,
    time_ms: u64,
    limit: usize,
) -> Result<(Vec<IVec>, bool)> {
    let Some((first, _)) = view.end(tree, false)? else { return Ok((Vec::new(), false)) };
    due_keys_from(view, tree, &first, time_ms, limit)
}

/// As [`due_keys`], of those that have become due after some time.
pub(crate) fn due_keys_after(
    view: &impl View,
    tree: TreeId,
    after_ms: u64,
    time_ms: u64,
    limit: usize,
) -> Result<(Vec<IVec>, bool)> {
    let Some(first_ms) = after_ms.checked_add(1) else { return Ok((Vec::new(), false)) };
    due_keys_from(view, tree, &due_key(first_ms, TreeId(0), b""), time_ms, limit)
}

fn due_keys_from(
    view: &impl View,
    tree: TreeId,
    first: &IVec,
    time_ms: u64,
    limit: usize,
) -> Result<(Vec<IVec>, bool)> {
    let (mut found, mut more) = (Vec::new(), false);
    view.scan(tree, Bound::Included(first), Bound::Unbounded, &mut |key, _| {
        if due_time(key).is_none_or(|due_ms| due_ms > time_ms) {
            return false;
        }
        more = found.len() == limit;
        if !more {
            found.push(IVec::from(key));
        }
        !more
    })?;
    Ok((found, more))
}

/// Whether this version of a key has expired. Read the record before the key: then what comes between
/// can only make the two not fit.
pub(crate) fn is_over(record: Option<&Versioned>, version: u64, time_ms: u64) -> Result<bool> {
    let Some(stored) = record else { return Ok(false) };
    let record = decode(stored)?;
    Ok(record.version == version && record.expires_ms <= time_ms)
}

/// When a key of that version expires; `None`: never.
pub(crate) fn expires(record: Option<&Versioned>, version: u64) -> Result<Option<u64>> {
    let record = record.map(decode).transpose()?;
    Ok(record.filter(|record| record.version == version).map(|record| record.expires_ms))
}

/// Evaluates a command over what has not expired.
pub(crate) fn evaluate_live(view: &impl View, context: &Context, command: &Command) -> Result<Outcome> {
    let live = LiveView::new(view, context.time_ms);
    let mut outcome = evaluate::evaluate_unhidden(&live, context, command)?;
    count_hidden(view, context, &mut outcome.effects)?;
    Ok(outcome)
}

/// To what is evaluated over what has not expired, a key that has is absent. It is still there, and is counted; and if it
/// is a hash, its fields go.
fn count_hidden(view: &impl View, context: &Context, effects: &mut Effects) -> Result<()> {
    let mut hashes = Vec::new();
    for effect in effects.iter_mut() {
        if let Effect::Put { tree, key, fresh, .. } = effect
            && *fresh == Some(true)
            && can_expire(*tree)
            && let Some(found) = view.get(*tree, key)?
        {
            *fresh = Some(false);
            hashes.extend(held(view, *tree, key, &found.value)?);
        }
    }
    for (id, count) in hashes {
        sweep::discard(view, context.time_ms, id, count, effects)?;
    }
    Ok(())
}

/// The hash that is a key's, if its value says so, and how many fields it says that this has. Bytes that were copied from
/// another key are nobody's hash: what they name stays with the key that it belongs to.
fn held(view: &impl View, tree: TreeId, key: &[u8], value: &[u8]) -> Result<Option<(HashId, u64)>> {
    let Some((id, count)) = head(value) else { return Ok(None) };
    let owner = view.get(TreeId::HASHES, &id.owner_key())?;
    let is_own = owner.is_some_and(|owner| decode_owner(&owner.value) == Some((tree.0, key)));
    Ok(is_own.then_some((id, count)))
}

/// Whether a tree's keys can have a time to live.
pub(crate) fn can_expire(tree: TreeId) -> bool {
    !tree.is_system()
}

pub(crate) fn check_tree(view: &impl View, tree: TreeId) -> Result<()> {
    if !can_expire(tree) {
        let what = "keys of the database's own trees have no time to live".to_owned();
        return Err(Error::InvalidRequest(what));
    }
    evaluate::require_tree(view, tree)
}

/// What a [`When`] comes to.
pub(crate) enum Ends {
    Never,
    At(u64),
    /// It is over.
    Now,
}

fn ends(context: &Context, when: When, before: Option<u64>) -> Result<Ends> {
    let at = match when {
        When::After(0) => return Err(Error::InvalidRequest(OVER_BEFORE_IT_BEGINS.to_owned())),
        When::After(after) => context.time_ms.saturating_add(after),
        When::At(at) => at,
        When::Keep => return Ok(before.map_or(Ends::Never, Ends::At)),
    };
    let at = at.min(LATEST_MS);
    Ok(if at <= context.time_ms { Ends::Now } else { Ends::At(at) })
}

/// Evaluates an operation on a time to live.
pub(crate) fn evaluate(view: &impl View, context: &Context, command: &ExpiryCommand) -> Result<Outcome> {
    let (tree, key) = (command.tree(), command.key());
    check_tree(view, tree)?;
    let record = view.get(TreeId::EXPIRY, &record_key(tree, key))?;
    let record = record.as_ref();
    let mut effects = Effects::new();
    let reply = match command {
        ExpiryCommand::Insert { value, when, .. } => {
            let previous = view.get(tree, key)?;
            write(context, tree, key, value, *when, previous.as_ref(), record, &mut effects)?;
            Reply::Previous(previous.map(|found| found.value))
        }
        ExpiryCommand::Swap { old, new, when, .. } => {
            let previous = view.get(tree, key)?;
            let current = previous.as_ref().map(|found| &found.value);
            if current != old.as_ref() {
                return Ok(Outcome::reply(Reply::Swapped(Err(current.cloned()))));
            }
            write(context, tree, key, new, *when, previous.as_ref(), record, &mut effects)?;
            Reply::Swapped(Ok(()))
        }
        ExpiryCommand::Set { when, only, .. } => {
            let Some(version) = view.version(tree, key)? else {
                return Ok(Outcome::reply(Reply::Expiry(ExpiryReply::Unchanged)));
            };
            let before = expires(record, version)?;
            let ends = ends(context, *when, before)?;
            let after = match ends {
                Ends::Never => u64::MAX,
                Ends::At(at) => at,
                Ends::Now => context.time_ms,
            };
            let is_wanted = match only {
                SetIf::Always => true,
                SetIf::None => before.is_none(),
                SetIf::Some => before.is_some(),
                SetIf::Later => before.is_some_and(|before| after > before),
                SetIf::Earlier => before.is_none_or(|before| after < before),
            };
            if !is_wanted {
                return Ok(Outcome::reply(Reply::Expiry(ExpiryReply::Unchanged)));
            }
            if let Ends::Now = ends {
                effects.push(Effect::Remove { tree, key: key.clone() });
            }
            put_record(tree, key, &ends, version, record, &mut effects)?;
            Reply::Expiry(ExpiryReply::Changed)
        }
        ExpiryCommand::Clear { .. } => {
            let version = view.version(tree, key)?;
            let had = version.map(|version| expires(record, version)).transpose()?.flatten().is_some();
            if had {
                put_record(tree, key, &Ends::Never, 0, record, &mut effects)?;
            }
            Reply::Expiry(if had { ExpiryReply::Changed } else { ExpiryReply::Unchanged })
        }
        ExpiryCommand::Get { .. } => Reply::Expiry(match view.version(tree, key)? {
            Some(version) => ExpiryReply::Expires(expires(record, version)?),
            None => ExpiryReply::Absent,
        }),
        ExpiryCommand::Strings { .. }
        | ExpiryCommand::Lock { .. }
        | ExpiryCommand::Held { .. }
        | ExpiryCommand::Lives { .. }
        | ExpiryCommand::Owned { .. } => {
            let what =
                "operations on one key are a part of a transaction, or a command of their own".to_owned();
            return Err(Error::InvalidRequest(what));
        }
    };
    Ok(Outcome { effects, reply })
}

/// Puts a value that expires.
#[allow(clippy::too_many_arguments, reason = "all of it belongs to one key")]
fn write(
    context: &Context,
    tree: TreeId,
    key: &IVec,
    value: &IVec,
    when: When,
    previous: Option<&Versioned>,
    record: Option<&Versioned>,
    effects: &mut Effects,
) -> Result<()> {
    let before = previous.map(|found| expires(record, found.version)).transpose()?.flatten();
    let ends = ends(context, when, before)?;
    match ends {
        Ends::Now if previous.is_some() => effects.push(Effect::Remove { tree, key: key.clone() }),
        // What hides a key that has expired must stay for as long as the key.
        Ends::Now => return Ok(()),
        Ends::Never | Ends::At(_) => effects.push(Effect::Put {
            tree,
            key: key.clone(),
            value: value.clone(),
            fresh: Some(previous.is_none()),
        }),
    }
    put_record(tree, key, &ends, 0, record, effects)
}

/// Writes when a key expires, in place of what was written before.
pub(crate) fn put_record(
    tree: TreeId,
    key: &IVec,
    ends: &Ends,
    version: u64,
    before: Option<&Versioned>,
    effects: &mut Effects,
) -> Result<()> {
    let own = TreeId::EXPIRY;
    let after = if let Ends::At(at) = ends { Some(*at) } else { None };
    let old = before.map(decode).transpose()?.map(|record| record.expires_ms);
    if let Some(old) = old.filter(|old| after != Some(*old)) {
        effects.push(Effect::Remove { tree: own, key: due_key(old, tree, key) });
    }
    let record = record_key(tree, key);
    match after {
        Some(at) => {
            if old != Some(at) {
                let (key, value) = (due_key(at, tree, key), IVec::new());
                effects.push(Effect::Put { tree: own, key, value, fresh: Some(true) });
            }
            let (value, fresh) = (encode(at, version), Some(old.is_none()));
            effects.push(Effect::Put { tree: own, key: record, value, fresh });
        }
        None if old.is_some() => effects.push(Effect::Remove { tree: own, key: record }),
        None => {}
    }
    Ok(())
}

/// Evaluates [`Command::SettleDue`]. `view` hides nothing.
pub(crate) fn settle_due(view: &impl View, context: &Context, limit: u32) -> Result<Outcome> {
    let limit = limit.clamp(1, MOST_DUE) as usize;
    let (due, more_keys) = due_keys(view, TreeId::EXPIRY, context.time_ms, limit)?;
    let mut keys = 0;
    let mut effects = Effects::new();
    let mut notices = Notices::of(view)?;
    let (mut gone, mut marks) = (Vec::new(), Vec::new());
    for entry in due {
        if sweep::is_mark(&entry) {
            marks.push(entry);
            continue;
        }
        let (Some(tree), Some(key)) = (entry.get(9..13), entry.get(13..)) else {
            return Err(damaged("an entry of the index that is too short"));
        };
        let tree = TreeId(u32::from_be_bytes(tree.try_into().expect("four bytes")));
        if view.is_locked(tree, key) {
            // Its time is over, which everybody can see; it is removed when the transaction is resolved.
            continue;
        }
        keys += 1;
        let record = record_key(tree, key);
        let stored = view.get(TreeId::EXPIRY, &record)?;
        let stored = stored.ok_or_else(|| damaged("an entry of the index without its record"))?;
        let found = if view.has_tree(tree) { view.get(tree, key)? } else { None };
        if let Some(found) = found
            && found.version == decode(&stored)?.version
        {
            gone.extend(held(view, tree, key, &found.value)?);
            effects.push(Effect::Remove { tree, key: IVec::from(key) });
            if let Some(notices) = &mut notices {
                notices.expired(tree, key);
            }
        }
        effects.push(Effect::Remove { tree: TreeId::EXPIRY, key: entry });
        effects.push(Effect::Remove { tree: TreeId::EXPIRY, key: record });
    }
    for (id, count) in gone {
        sweep::discard(view, context.time_ms, id, count, &mut effects)?;
    }
    let (mut swept, mut more_marks) = (Sweep::default(), false);
    for mark in marks {
        if effects.len() > MOST_EFFECTS {
            more_marks = true;
            break;
        }
        let step = swept.step(view, context.time_ms, mark, limit, &mut effects)?;
        keys += u64::from(step.is_some());
        more_marks |= step == Some(false);
    }
    let (of_locks, locks, more_locks) = lock::settle_due(view, context, limit)?;
    effects.extend(of_locks);
    effects.extend(notices.map(Notices::into_effects).unwrap_or_default());
    // Whoever only met what is locked need not come again at once.
    let more = keys + locks > 0 && (more_keys || more_locks || more_marks);
    Ok(Outcome { effects, reply: Reply::Settled { keys, locks, more } })
}
