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

use std::collections::HashMap;
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
pub(crate) fn owned_key(session: SessionId, tree: TreeId, key: &[u8]) -> IVec {
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
            owned.insert((tree, IVec::from(key)), version_owned(&stored)?);
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

fn own(view: &impl View, session: SessionId, tree: TreeId, key: &[u8], effects: &mut Effects) -> Result<()> {
    if !session::is_live(view, session)? {
        return Err(Error::InvalidRequest(format!(
            "session {session}, which is to own a key, is not open here"
        )));
    }
    let listed = owned_key(session, tree, key);
    let fresh = Some(view.version(TreeId::SESSIONS, &listed)?.is_none());
    let value = IVec::from(0u64.to_be_bytes());
    effects.push(Effect::Put { tree: TreeId::SESSIONS, key: listed, value, fresh });
    Ok(())
}

fn numbered(prefix: &[u8], number: u64) -> IVec {
    IVec::from([prefix, format!("{number:0DIGITS$}").as_bytes()].concat())
}

/// The number to begin with where none is written down. There may be keys already: they came from elsewhere, with an import,
/// and none of them is to be overwritten.
fn unused(view: &impl View, tree: TreeId, prefix: &[u8]) -> Result<u64> {
    // Behind all digits.
    let end = [prefix, b":"].concat();
    let last = view.next_to(tree, &end, true)?;
    let number = last.as_ref().and_then(|(key, _)| {
        let digits = key.strip_prefix(prefix).filter(|digits| digits.len() == DIGITS)?;
        std::str::from_utf8(digits).ok()?.parse::<u64>().ok()
    });
    // Of those that were not the last, for something else comes behind them, none is overwritten either.
    let mut next = number.map_or(0, |number| number.saturating_add(1));
    while next < u64::MAX && view.version(tree, &numbered(prefix, next))?.is_some() {
        next += 1;
    }
    Ok(next)
}

/// Evaluates an operation on a session's or a numbered key.
pub(crate) fn evaluate(view: &impl View, command: &OwnedCommand) -> Result<Outcome> {
    let mut effects = Effects::new();
    match command {
        OwnedCommand::Insert { tree, key, value, session } => {
            require_tree(view, *tree)?;
            let previous = view.get(*tree, key)?;
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
            let counted = IVec::from([&tree.0.to_be_bytes()[..], &prefix[..]].concat());
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
            if prefix.len() > MAX_KEY_LENGTH - DIGITS {
                let limit = MAX_KEY_LENGTH - DIGITS;
                let what = format!("a prefix of {} bytes is over the limit of {limit}", prefix.len());
                return Err(Error::InvalidRequest(what));
            }
            let counted = IVec::from([&tree.0.to_be_bytes()[..], &prefix[..]].concat());
            let stored = view.get(TreeId::SEQUENCES, &counted)?;
            let next = match &stored {
                Some(stored) => u64::from_be_bytes(stored.value[..].try_into().map_err(|_| {
                    Error::corrupt("the tree of sequences", None, "a number that is not of 8 bytes")
                })?),
                None => unused(view, *tree, prefix)?,
            };
            let key = numbered(prefix, next);
            let after = next.checked_add(1).ok_or_else(|| {
                Error::InvalidRequest("all 64 bits of numbers of this prefix are used up".to_owned())
            })?;
            let (put, fresh) = (IVec::from(after.to_be_bytes()), Some(stored.is_none()));
            effects.push(Effect::Put { tree: TreeId::SEQUENCES, key: counted, value: put, fresh });
            if let Some(session) = session {
                own(view, *session, *tree, &key, &mut effects)?;
            }
            // Somebody may have written it as a plain key.
            let fresh = Some(view.version(*tree, &key)?.is_none());
            effects.push(Effect::Put { tree: *tree, key: key.clone(), value: value.clone(), fresh });
            Ok(Outcome { effects, reply: Reply::Named { key } })
        }
    }
}
