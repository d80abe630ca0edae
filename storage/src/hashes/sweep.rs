//! Removing the fields that nobody can reach any more; see [`crate::hashes`].
//!
//! Whatever makes a hash unreachable removes its fields with it if they are few. Else it leaves a *mark* in the index of
//! due times ([`crate::expiry`]), and [`Command::SettleDue`](crate::Command::SettleDue) removes a bounded number
//! of fields each time. A mark is only a reason to look: what is swept is what no key holds. So a transaction
//! over several groups, which writes keys without looking, marks before it commits what it may be about to remove.
//!
//! | mark, in [`TreeId::EXPIRY`] | about |
//! |---|---|
//! | 1, due time (8), [`TreeId::HASHES`] (4), 1, id (12) | one hash |
//! | 1, due time (8), [`TreeId::HASHES`] (4), 2, tree (4), id (12) | all hashes of a tree from this id on |
//!
//! **Not swept**: what another client has made unreachable, which removed or overwrote the key as bytes, without
//! Redis's commands. It takes room until the database is flushed, and is never seen.

use std::collections::BTreeSet;
use std::ops::Bound;

use super::{HashId, OWNER, SMALL, decode_owner, head, id_of_key};
use crate::command::TreeId;
use crate::evaluate::{Effect, Effects, View};
use crate::expiry::due_key;
use crate::{IVec, Result};

const ONE: u8 = 1;
const ALL: u8 = 2;
/// With so many effects no more fields are removed at once.
const AT_ONCE: usize = 4096;
/// How many hashes of a tree are looked at in one step.
const LOOKED_AT: usize = 256;

fn mark_one(at_ms: u64, id: HashId) -> IVec {
    due_key(at_ms, TreeId::HASHES, &[&[ONE], &id.bytes()[..]].concat())
}

fn mark_all(at_ms: u64, tree: TreeId, from: HashId) -> IVec {
    due_key(at_ms, TreeId::HASHES, &[&[ALL], &tree.0.to_be_bytes()[..], &from.bytes()].concat())
}

fn put_mark(view: &impl View, key: IVec, effects: &mut Effects) -> Result<()> {
    let known = |effect: &Effect| matches!(effect, Effect::Put { tree: TreeId::EXPIRY, key: known, .. } if *known == key);
    if effects.iter().any(known) {
        return Ok(());
    }
    put_new_mark(view, key, effects)
}

/// One that none of `effects` is.
fn put_new_mark(view: &impl View, key: IVec, effects: &mut Effects) -> Result<()> {
    if view.version(TreeId::EXPIRY, &key)?.is_none() {
        effects.push(Effect::Put { tree: TreeId::EXPIRY, key, value: IVec::new(), fresh: Some(true) });
    }
    Ok(())
}

/// Has it looked at then whether a hash can still be reached.
pub(crate) fn suspect(view: &impl View, at_ms: u64, id: HashId, effects: &mut Effects) -> Result<()> {
    put_mark(view, mark_one(at_ms, id), effects)
}

/// Has all hashes of a tree looked at.
pub(crate) fn suspect_all(view: &impl View, at_ms: u64, tree: TreeId, effects: &mut Effects) -> Result<()> {
    put_mark(view, mark_all(at_ms, tree, HashId::default()), effects)
}

/// Removes a hash that its key does not hold any more, or has that done if it is large, or if there is much to be done
/// already. `count` is how many fields its head told. It is not among those that `effects` are about yet.
pub(crate) fn discard(
    view: &impl View,
    time_ms: u64,
    id: HashId,
    count: u64,
    effects: &mut Effects,
) -> Result<()> {
    // Otherwise it has more than it said.
    if count > SMALL || effects.len() > AT_ONCE || !remove(view, id, SMALL as usize, effects)? {
        put_new_mark(view, mark_one(time_ms, id), effects)?;
    }
    Ok(())
}

/// Removes at most so many fields, and with the last of them what is known of the hash; whether that was all.
fn remove(view: &impl View, id: HashId, limit: usize, effects: &mut Effects) -> Result<bool> {
    let (low, high) = id.fields_after(None);
    let mut keys = Vec::new();
    view.scan(TreeId::HASHES, as_ref(&low), as_ref(&high), &mut |key, _| {
        keys.push(IVec::from(key));
        keys.len() <= limit
    })?;
    let is_all = keys.len() <= limit;
    keys.truncate(limit);
    effects.extend(keys.into_iter().map(|key| Effect::Remove { tree: TreeId::HASHES, key }));
    let owner = id.owner_key();
    if is_all && view.version(TreeId::HASHES, &owner)?.is_some() {
        effects.push(Effect::Remove { tree: TreeId::HASHES, key: owner });
    }
    Ok(is_all)
}

pub(crate) fn as_ref(bound: &Bound<IVec>) -> Bound<&[u8]> {
    bound.as_ref().map(|key| &key[..])
}

/// Whether an entry of the index of due times is a mark.
pub(crate) fn is_mark(entry: &[u8]) -> bool {
    entry.get(9..13) == Some(&TreeId::HASHES.0.to_be_bytes())
}

/// What one step has met.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    swept: BTreeSet<HashId>,
}

impl Sweep {
    /// Does what a mark that is due asks for; whether that is all of it, and `None` if nothing can be done now. `view` hides
    /// nothing.
    pub(crate) fn step(
        &mut self,
        view: &impl View,
        time_ms: u64,
        mark: IVec,
        limit: usize,
        effects: &mut Effects,
    ) -> Result<Option<bool>> {
        // Somebody has everything locked; what else is due goes on.
        if view.is_locked(TreeId::EXPIRY, &mark) {
            return Ok(None);
        }
        let payload = &mark[13..];
        let is_over = match payload.split_first() {
            Some((&ONE, id)) => match HashId::from_bytes(id) {
                Some(id) => match self.one(view, id, limit, effects)? {
                    Some(is_over) => is_over,
                    None => return Ok(None),
                },
                None => true,
            },
            Some((&ALL, rest)) => {
                let tree = rest.first_chunk().map(|tree| TreeId(u32::from_be_bytes(*tree)));
                match (tree, HashId::from_bytes(rest.get(4..).unwrap_or_default())) {
                    (Some(tree), Some(from)) => {
                        self.all(view, time_ms, tree, from, effects)?;
                        true
                    }
                    _ => true,
                }
            }
            // Nobody writes others.
            _ => true,
        };
        if is_over {
            effects.push(Effect::Remove { tree: TreeId::EXPIRY, key: mark });
        }
        Ok(Some(is_over))
    }

    /// Whether that was all; `None`: not now.
    fn one(
        &mut self,
        view: &impl View,
        id: HashId,
        limit: usize,
        effects: &mut Effects,
    ) -> Result<Option<bool>> {
        // What comes twice in one step is looked at again in the next.
        if !self.swept.insert(id) {
            return Ok(None);
        }
        match is_held(view, id)? {
            Held::Yes => Ok(Some(true)),
            Held::Locked => Ok(None),
            Held::No => remove(view, id, limit, effects).map(Some),
        }
    }

    fn all(
        &mut self,
        view: &impl View,
        time_ms: u64,
        tree: TreeId,
        from: HashId,
        effects: &mut Effects,
    ) -> Result<()> {
        let (low, mut ids) = (from.owner_key(), Vec::new());
        view.scan(TreeId::HASHES, Bound::Included(&low), Bound::Excluded(&[OWNER + 1]), &mut |key, _| {
            ids.extend(id_of_key(key));
            ids.len() <= LOOKED_AT
        })?;
        let next = if ids.len() > LOOKED_AT { ids.pop() } else { None };
        for id in ids {
            let owner = view.get(TreeId::HASHES, &id.owner_key())?;
            let is_of_tree =
                owner.and_then(|owner| decode_owner(&owner.value).map(|(of, _)| of)) == Some(tree.0);
            // Of one that a transaction has locked it is looked again.
            if is_of_tree && !matches!(is_held(view, id)?, Held::Yes) {
                suspect(view, time_ms, id, effects)?;
            }
        }
        if let Some(next) = next {
            put_mark(view, mark_all(time_ms, tree, next), effects)?;
        }
        Ok(())
    }
}

enum Held {
    Yes,
    No,
    /// A transaction that is prepared may be about to change it.
    Locked,
}

/// Whether a hash can be reached.
fn is_held(view: &impl View, id: HashId) -> Result<Held> {
    let Some(owner) = view.get(TreeId::HASHES, &id.owner_key())? else { return Ok(Held::No) };
    let Some((tree, name)) = decode_owner(&owner.value) else { return Ok(Held::No) };
    let tree = TreeId(tree);
    if !view.has_tree(tree) {
        return Ok(Held::No);
    }
    if view.is_locked(tree, name) {
        return Ok(Held::Locked);
    }
    let found = view.get(tree, name)?;
    let is_held = found.and_then(|found| head(&found.value)).is_some_and(|(held, _)| held == id);
    Ok(if is_held { Held::Yes } else { Held::No })
}
