//! Keys that belong to a session, and keys that are numbered.
//!
//! **Ephemeral keys** ([`OwnedCommand::Insert`]) die with their session: when it is closed, or ended because
//! nobody has renewed it ([`crate::session`]), they are removed, in the same bounded steps and at the same
//! positions of the log on every replica. As with times to live ([`crate::expiry`]), what is kept of it is about
//! one *version* of the key. So a plain write of it makes it a key like any other, and nothing that another writes
//! is ever removed.
//!
//! **Numbered keys** ([`OwnedCommand::InsertNext`]) get the next number of their prefix, which nobody has
//! had before: `job-00000000000000000007`. Twenty digits keep them in order. Numbers of keys that are removed are not
//! given again.
//!
//! # Layout
//!
//! A session's keys are listed with the session, in [`TreeId::SESSIONS`]; the numbers are in
//! [`TreeId::SEQUENCES`]:
//!
//! | tree | key | value |
//! |---|---|---|
//! | sessions | 4, session (16), the tree of locks (4), … | nothing; see `lock/owned.rs` |
//! | sessions | 4, session (16), tree (4), key | the version that the session owns (8); 0: the one written with this record |
//! | sequences | tree (4), prefix | the number that comes next (8) |

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::command::{MAX_KEY_LENGTH, Reply, TreeId};
use crate::evaluate::{Effect, Effects, Outcome, Versioned, View, require_tree};
use crate::group::SessionId;
use crate::snapshot::Snapshot;
use crate::{Error, IVec, Result, session};

/// The digits of a number.
const DIGITS: usize = 20;
/// The first byte of the records of a session's keys.
pub(crate) const OWNED: u8 = 4;

/// An operation on keys of sessions or with numbers; see the [module](self).
///
/// New variants are added at the end: the position of a variant is part of its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum OwnedCommand {
    /// Sets a key that dies with a session. Reply: [`Reply::Previous`].
    Insert {
        /// Where.
        tree: TreeId,
        /// Which key.
        key: IVec,
        /// Its new value.
        value: IVec,
        /// Whose it is.
        session: SessionId,
    },
    /// Sets a new key: a prefix and its next number. Reply: [`Reply::Named`].
    InsertNext {
        /// Where.
        tree: TreeId,
        /// What the key begins with.
        prefix: IVec,
        /// Its value.
        value: IVec,
        /// Whose it is, if it dies with a session.
        session: Option<SessionId>,
    },
    /// Has numbers of a prefix go on from here, if they are not that far already: what a restored backup does.
    /// Reply: [`Reply::Done`].
    SetNext {
        /// Where.
        tree: TreeId,
        /// What the keys begin with.
        prefix: IVec,
        /// The number that comes next, big-endian in 8 bytes.
        next: IVec,
    },
}

impl OwnedCommand {
    /// The tree, to be replaced, and the value.
    pub(crate) fn tree_and_value(&mut self) -> (&mut TreeId, &IVec) {
        match self {
            OwnedCommand::Insert { tree, value, .. }
            | OwnedCommand::InsertNext { tree, value, .. }
            | OwnedCommand::SetNext { tree, next: value, .. } => (tree, value),
        }
    }

    /// The value.
    pub fn value(&self) -> &IVec {
        match self {
            OwnedCommand::Insert { value, .. }
            | OwnedCommand::InsertNext { value, .. }
            | OwnedCommand::SetNext { next: value, .. } => value,
        }
    }

    /// The key, or what it begins with.
    pub fn prefix(&self) -> &IVec {
        match self {
            OwnedCommand::Insert { key, .. } => key,
            OwnedCommand::InsertNext { prefix, .. } | OwnedCommand::SetNext { prefix, .. } => prefix,
        }
    }
}

pub(crate) fn damaged(what: &str) -> Error {
    Error::corrupt("the tree of sessions", None, what)
}

/// The key under which a session's key is listed.
pub fn owned_key(session: SessionId, tree: TreeId, key: &[u8]) -> IVec {
    let mut bytes = Vec::with_capacity(21 + key.len());
    bytes.push(OWNED);
    bytes.extend_from_slice(&session.0.to_be_bytes());
    bytes.extend_from_slice(&tree.0.to_be_bytes());
    bytes.extend_from_slice(key);
    IVec::from(bytes)
}

/// All keys that die with some session, by the version that it owns.
pub(crate) fn all_owned(snapshot: &Snapshot) -> Result<HashMap<(TreeId, IVec), u64>> {
    let (low, high) = (Bound::Included(IVec::from([OWNED])), Bound::Excluded(IVec::from([OWNED + 1])));
    let mut owned = HashMap::new();
    for entry in snapshot.range(TreeId::SESSIONS, low, high) {
        let (listed, stored) = entry?;
        let (Some(tree), Some(key)) = (listed.get(17..21), listed.get(21..)) else {
            return Err(damaged("a session's key that is too short"));
        };
        let tree = TreeId(u32::from_be_bytes(tree.try_into().expect("four bytes")));
        if tree != TreeId::LOCKS {
            // Of two sessions that list it, the later one has it.
            let version = version_owned(&stored)?;
            let latest = owned.entry((tree, IVec::from(key))).or_insert(version);
            *latest = version.max(*latest);
        }
    }
    Ok(owned)
}

/// The tree, the key, and the version that the session owns, of an entry that lists a key.
pub(crate) fn listed_key(listed: &[u8], stored: &Versioned) -> Result<(TreeId, IVec, u64)> {
    let (Some(tree), Some(key)) = (listed.get(17..21), listed.get(21..)) else {
        return Err(damaged("a session's key that is too short"));
    };
    let tree = TreeId(u32::from_be_bytes(tree.try_into().expect("four bytes")));
    Ok((tree, IVec::from(key), version_owned(stored)?))
}

/// The version of a key that the session owns which lists it.
fn version_owned(stored: &Versioned) -> Result<u64> {
    let owned: [u8; 8] =
        stored.value[..].try_into().map_err(|_| damaged("a session's key without its version"))?;
    Ok(match u64::from_be_bytes(owned) {
        0 => stored.version,
        version => version,
    })
}

/// The effects of removing what is listed under `listed`: the key, if the session owns it still, and the
/// entry. Whether that was done: a transaction may keep the key as it is.
pub(crate) fn remove_owned(view: &impl View, listed: IVec, effects: &mut Effects) -> Result<bool> {
    let (Some(tree), Some(key)) = (listed.get(17..21), listed.get(21..)) else {
        return Err(damaged("a session's key that is too short"));
    };
    let tree = TreeId(u32::from_be_bytes(tree.try_into().expect("four bytes")));
    if view.is_locked(tree, key) {
        return Ok(false);
    }
    let stored =
        view.get(TreeId::SESSIONS, &listed)?.ok_or_else(|| damaged("a session's key without entry"))?;
    let owned = version_owned(&stored)?;
    if view.has_tree(tree) && view.version(tree, key)? == Some(owned) {
        effects.push(Effect::Remove { tree, key: IVec::from(key) });
    }
    effects.push(Effect::Remove { tree: TreeId::SESSIONS, key: listed });
    Ok(true)
}

/// Refuses a session that is to own a key and has ended.
pub(crate) fn check_open(view: &impl View, session: SessionId) -> Result<()> {
    match session::is_live(view, session)? {
        true => Ok(()),
        false => {
            let what = format!("session {session}, which is to own a key, is not open here");
            Err(Error::InvalidRequest(what))
        }
    }
}

/// What lists the key with the session that is to own it, in the same commit.
fn own(view: &impl View, session: SessionId, tree: TreeId, key: &[u8], effects: &mut Effects) -> Result<()> {
    let listed = owned_key(session, tree, key);
    let fresh = Some(view.version(TreeId::SESSIONS, &listed)?.is_none());
    let value = IVec::from(0u64.to_be_bytes());
    effects.push(Effect::Put { tree: TreeId::SESSIONS, key: listed, value, fresh });
    Ok(())
}

/// The key that a prefix and a number make.
pub fn numbered_key(prefix: &[u8], number: u64) -> IVec {
    IVec::from([prefix, format!("{number:0DIGITS$}").as_bytes()].concat())
}

/// The first number from this one on that no key has, nor one behind it, as far as that is easily found out. Keys that are
/// there already came from elsewhere, with an import or as plain keys, and none of them is to be overwritten.
fn unused(view: &impl View, tree: TreeId, prefix: &[u8], from: u64) -> Result<u64> {
    // Behind all digits.
    let end = [prefix, b":"].concat();
    let last = view.next_to(tree, &end, true)?;
    let number = last.as_ref().and_then(|(key, _)| {
        let digits = key.strip_prefix(prefix).filter(|digits| digits.len() == DIGITS)?;
        std::str::from_utf8(digits).ok()?.parse::<u64>().ok()
    });
    // Of those that were not the last, for something else comes behind them, none is overwritten either.
    let mut next = number.map_or(0, |number| number.saturating_add(1)).max(from);
    while next < u64::MAX && view.version(tree, &numbered_key(prefix, next))?.is_some() {
        next += 1;
    }
    Ok(next)
}

/// Refuses a prefix that leaves no room for a number.
pub(crate) fn check_prefix(prefix: &[u8]) -> Result<()> {
    let limit = MAX_KEY_LENGTH - DIGITS;
    if prefix.len() > limit {
        let what = format!("a prefix of {} bytes is over the limit of {limit}", prefix.len());
        return Err(Error::InvalidRequest(what));
    }
    Ok(())
}

fn sequence_key(tree: TreeId, prefix: &[u8]) -> IVec {
    IVec::from([&tree.0.to_be_bytes()[..], prefix].concat())
}

/// How many prefixes of a tree that is dropped are forgotten: all work of a command is bounded. Of others a number stays
/// written down that nobody reads.
const MOST_FORGOTTEN: usize = 10_000;

/// What is written down of the numbers of a tree goes with it.
pub(crate) fn forget_numbers(view: &impl View, tree: TreeId, effects: &mut Effects) -> Result<()> {
    let low = tree.0.to_be_bytes();
    let high = (tree.0 + 1).to_be_bytes();
    let (low, high) = (Bound::Included(&low[..]), Bound::Excluded(&high[..]));
    let mut count = 0;
    view.scan_values(TreeId::SEQUENCES, low, high, &mut |key, _| {
        effects.push(Effect::Remove { tree: TreeId::SEQUENCES, key: IVec::from(key) });
        count += 1;
        count < MOST_FORGOTTEN
    })?;
    Ok(())
}

/// The number that the next key of a prefix gets, and whether one is written down.
pub(crate) fn next_number(view: &impl View, tree: TreeId, prefix: &[u8]) -> Result<(u64, bool)> {
    match view.get(TreeId::SEQUENCES, &sequence_key(tree, prefix))? {
        Some(stored) => {
            let next = stored.value[..].try_into().map_err(|_| {
                Error::corrupt("the tree of sequences", None, "a number that is not of 8 bytes")
            })?;
            let next = u64::from_be_bytes(next);
            // It is not written down of keys that came after it.
            match view.version(tree, &numbered_key(prefix, next))? {
                Some(_) => Ok((unused(view, tree, prefix, next)?, true)),
                None => Ok((next, true)),
            }
        }
        None => Ok((unused(view, tree, prefix, 0)?, false)),
    }
}

fn put_next(tree: TreeId, prefix: &[u8], next: u64, is_stored: bool) -> Effect {
    let (key, value) = (sequence_key(tree, prefix), IVec::from(next.to_be_bytes()));
    Effect::Put { tree: TreeId::SEQUENCES, key, value, fresh: Some(!is_stored) }
}

/// The prefix and the number of a numbered key; `None` if it is none, or has the last number there is.
pub fn number_of(key: &[u8]) -> Option<(&[u8], u64)> {
    let (prefix, digits) = key.split_at_checked(key.len().checked_sub(DIGITS)?)?;
    let number =
        std::str::from_utf8(digits).ok().filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    let number = number.parse().ok().filter(|number| *number < u64::MAX)?;
    Some((prefix, number))
}

/// Whether nobody has had the number of this key.
pub(crate) fn is_to_be_had(view: &impl View, tree: TreeId, key: &[u8]) -> Result<bool> {
    let Some((prefix, number)) = number_of(key) else { return Ok(false) };
    Ok(number >= next_number(view, tree, prefix)?.0)
}

/// A key of a session or with a number that a transaction sets.
pub(crate) struct OwnedPart<'a> {
    pub(crate) tree: TreeId,
    pub(crate) key: &'a IVec,
    pub(crate) value: &'a IVec,
    pub(crate) session: Option<SessionId>,
    pub(crate) is_numbered: bool,
}

/// What such keys come to, of which it was [found](crate::expiry::demands_hold) that they can be set. If that was some time
/// ago, the session of one may have ended since: then the key was there before, and has died with it.
pub(crate) fn effects_of_parts(
    view: &impl View,
    parts: &[OwnedPart<'_>],
    effects: &mut Effects,
) -> Result<()> {
    let mut numbers = BTreeMap::new();
    for OwnedPart { tree, key, .. } in parts.iter().filter(|part| part.is_numbered) {
        let (prefix, number) = number_of(key).expect("it was looked at before");
        let after = numbers.entry((*tree, prefix)).or_insert(0);
        *after = number.saturating_add(1).max(*after);
    }
    for ((tree, prefix), after) in numbers {
        let (next, is_stored) = next_number(view, tree, prefix)?;
        effects.push(put_next(tree, prefix, after.max(next), is_stored));
    }
    for OwnedPart { tree, key, value, session, .. } in parts {
        let is_there = view.version(*tree, key)?.is_some();
        if let Some(session) = *session {
            if !session::is_live(view, session)? {
                if is_there {
                    effects.push(Effect::Remove { tree: *tree, key: (*key).clone() });
                }
                continue;
            }
            own(view, session, *tree, key, effects)?;
        }
        let (key, value) = ((*key).clone(), (*value).clone());
        effects.push(Effect::Put { tree: *tree, key, value, fresh: Some(!is_there) });
    }
    Ok(())
}

/// Evaluates an operation on a session's or a numbered key.
pub(crate) fn evaluate(view: &impl View, command: &OwnedCommand) -> Result<Outcome> {
    let mut effects = Effects::new();
    match command {
        OwnedCommand::Insert { tree, key, value, session } => {
            require_tree(view, *tree)?;
            let previous = view.get(*tree, key)?;
            check_open(view, *session)?;
            own(view, *session, *tree, key, &mut effects)?;
            let fresh = Some(previous.is_none());
            effects.push(Effect::Put { tree: *tree, key: key.clone(), value: value.clone(), fresh });
            Ok(Outcome { effects, reply: Reply::Previous(previous.map(|found| found.value)) })
        }
        OwnedCommand::SetNext { tree, prefix, next } => {
            require_tree(view, *tree)?;
            if prefix.len() > MAX_KEY_LENGTH - DIGITS || next.len() != 8 {
                return Err(Error::InvalidRequest("no prefix or no number of 8 bytes".to_owned()));
            }
            let counted = sequence_key(*tree, prefix);
            let stored = view.get(TreeId::SEQUENCES, &counted)?;
            // Big-endian numbers are ordered as their bytes are.
            if stored.as_ref().is_none_or(|stored| stored.value < *next) {
                let fresh = Some(stored.is_none());
                effects.push(Effect::Put {
                    tree: TreeId::SEQUENCES,
                    key: counted,
                    value: next.clone(),
                    fresh,
                });
            }
            Ok(Outcome { effects, reply: Reply::Done })
        }
        OwnedCommand::InsertNext { tree, prefix, value, session } => {
            require_tree(view, *tree)?;
            check_prefix(prefix)?;
            let (next, is_stored) = next_number(view, *tree, prefix)?;
            let key = numbered_key(prefix, next);
            let after = next.checked_add(1).ok_or_else(|| {
                Error::InvalidRequest("all 64 bits of numbers of this prefix are used up".to_owned())
            })?;
            effects.push(put_next(*tree, prefix, after, is_stored));
            if let Some(session) = session {
                check_open(view, *session)?;
                own(view, *session, *tree, &key, &mut effects)?;
            }
            let (value, fresh) = (value.clone(), Some(true));
            effects.push(Effect::Put { tree: *tree, key: key.clone(), value, fresh });
            Ok(Outcome { effects, reply: Reply::Named { key } })
        }
    }
}
