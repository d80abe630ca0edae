//! [`evaluate()`]: lists of operations on the state; see [`super`].

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::notices::{Before, Notices};
use super::{
    Carried, Slot, StringAction, StringsFailure, StringsOperation, StringsReplies, StringsReply, apply,
};
use super::{MAX_TOLD, MAX_TOLD_TOGETHER};
use crate::command::{KeyRead, Reply, TreeId};
use crate::evaluate::{self, Context, Effect, Effects, Outcome, Versioned, View};
use crate::expiry::{self, Ends};
use crate::hashes::sweep::{self, as_ref};
use crate::hashes::{self, HashSlot, Needs, SMALL, decode_owner, encode_owner};
use crate::quota::Growth;
use crate::{Error, IVec, Result};

/// After so long it is looked at whether a hash that was suspected can still be reached: no transaction takes as long.
const SUSPECTED_FOR_MS: u64 = 60_000;

/// How many bytes one list copies to other keys, at most. What it carries says nothing about how much that is, and all of
/// it goes to the disk at once.
const MOST_COPIED: i64 = 64 << 20;
/// How many bytes are written anew for what one list appends, overwrites, moves, or gives another time to live, at most: by that it
/// is bounded how long whoever applies it is busy with it alone.
const MOST_REWRITTEN: i64 = 1 << 30;
/// How many bytes of values one list looks at, at most: they are in memory together.
const MOST_SEEN: usize = 2 << 30;
/// Values up to this length are kept though only their kind matters.
const SHORT: usize = 64;

/// A key that operations have looked at.
struct Looked {
    slot: Slot,
    before: Slot,
    /// The version that was found.
    version: Option<u64>,
    record: Option<Versioned>,
    /// That its time was over before it is written anew.
    is_told_expired: bool,
}

impl Looked {
    /// Only of what kind it is matters.
    fn forget_value(&mut self) {
        for slot in [&mut self.slot, &mut self.before] {
            if slot.value.as_ref().is_some_and(|value| value.len() > SHORT) {
                slot.value = Some(IVec::new());
            }
        }
    }
}

type Place = (TreeId, IVec);

/// Evaluates [`Command::Strings`](crate::Command::Strings): what is over the quota of its tree is refused operation by
/// operation.
pub(crate) fn evaluate(
    view: &impl View,
    context: &Context,
    watched: &[KeyRead],
    operations: &[StringsOperation],
) -> Result<Outcome> {
    let growth = Growth::new(view)?;
    let outcome = evaluate_judged(view, context, watched, operations, growth, true)?;
    Ok(outcome)
}

/// What a list tells and looks at, which must not come to more than there is room for. Of a part nothing is told, and once it
/// is prepared it must not be refused any more.
struct Bounds {
    is_bounded: bool,
    told: usize,
    most_told: usize,
    seen: usize,
}

impl Bounds {
    fn new(operations: &[StringsOperation], is_bounded: bool) -> Bounds {
        // What several come to could not be told by another node: it would be done, and nobody would have what it has
        // taken.
        let most_told = if operations.len() > 1 { MAX_TOLD_TOGETHER } else { MAX_TOLD };
        Bounds { is_bounded, told: 0, most_told, seen: 0 }
    }

    /// Adds a reply, before there are more of them than there is room for.
    fn tell(&mut self, reply: StringsReply, replies: &mut Vec<StringsReply>) -> Result<()> {
        if !self.is_bounded {
            return Ok(());
        }
        self.told = self.told.saturating_add(reply.encoded_bytes());
        replies.push(reply);
        match self.told > self.most_told {
            true => Err(Error::InvalidRequest(format!(
                "what is asked for takes more than {} bytes; ask for less at a time",
                self.most_told
            ))),
            false => Ok(()),
        }
    }

    fn see(&mut self, slot: &Slot) -> Result<()> {
        self.seen = self.seen.saturating_add(slot.value.as_ref().map_or(0, |value| value.len()));
        match self.is_bounded && self.seen > MOST_SEEN {
            true => Err(Error::InvalidRequest(format!(
                "what is to be looked at takes more than {MOST_SEEN} bytes; ask for less at a time"
            ))),
            false => Ok(()),
        }
    }
}

/// The keys of which a list needs more than their kind, where that is not so of all.
fn wanted_values(operations: &[StringsOperation]) -> Option<HashSet<(TreeId, &IVec)>> {
    if !operations.iter().any(is_of_kind) {
        return None;
    }
    let others = operations.iter().filter(|operation| !is_of_kind(operation));
    Some(others.flat_map(StringsOperation::keys).collect())
}

/// Whether what a key holds has no part in what the operation does, tells, or leaves there: only its kind has. (Another time
/// to live is written together with the value.)
fn is_of_kind(operation: &StringsOperation) -> bool {
    use StringAction::{Delete, Exists, Expires, Kind, RequireAbsent, Set};
    match &operation.action {
        Exists | Expires | RequireAbsent { .. } | Delete | Kind => true,
        Set { get, .. } => !get,
        _ => false,
    }
}

/// What operations do that are a part of something larger, which is refused or carried out as a whole: whoever asks has
/// to judge by quotas what all of it comes to.
pub(crate) fn effects_of_part(
    view: &impl View,
    context: &Context,
    operations: &[StringsOperation],
) -> Result<Effects> {
    // It was told what they come to, and after the vote nothing of it may be left out.
    Ok(evaluate_judged(view, context, &[], operations, None, false)?.effects)
}

fn evaluate_judged<V: View>(
    view: &V,
    context: &Context,
    watched: &[KeyRead],
    operations: &[StringsOperation],
    growth: Option<Growth<'_, V>>,
    is_bounded: bool,
) -> Result<Outcome> {
    for read in watched {
        if !evaluate::is_current(view, read)? {
            return Ok(Outcome::reply(Reply::Conflict));
        }
    }
    if operations.iter().any(|operation| operation.action == StringAction::Clear) {
        return clear(view, context, operations);
    }
    let mut notices = Notices::of(view)?;
    let (replies, keys) = carry_out(view, context, operations, notices.as_mut(), growth, is_bounded)?;
    let may_expire = view.earliest_due()? != u64::MAX;
    let mut effects = Effects::new();
    changes_of_hashes(view, context, &keys, &mut effects)?;
    for operation in operations {
        if let StringAction::Suspect { id } = operation.action {
            let at_ms = context.time_ms.saturating_add(SUSPECTED_FOR_MS);
            sweep::suspect(view, at_ms, id, &mut effects)?;
        }
    }
    for ((tree, key), looked) in keys {
        changes(view, tree, key, looked, may_expire, &mut effects)?;
    }
    effects.extend(notices.map(Notices::into_effects).unwrap_or_default());
    Ok(Outcome { effects, reply: Reply::Strings(StringsReplies(replies)) })
}

/// What an operation that only reads is answered.
///
/// # Errors
/// [`Error::InvalidRequest`] for one that does not, and those of reading the view.
pub(crate) fn read(
    view: &impl View,
    context: &Context,
    operation: &StringsOperation,
) -> Result<StringsReply> {
    check_read(operation)?;
    expiry::check_tree(view, operation.tree)?;
    let may_expire = view.earliest_due()? != u64::MAX;
    let mut slot = look(view, operation.tree, &operation.key, false, may_expire)?.slot;
    learn(view, operation, &mut slot)?;
    Ok(apply(&operation.action, context.time_ms, &mut Carried::default(), &mut slot, None))
}

/// The same where there is no such tree.
pub(crate) fn of_nothing(operation: &StringsOperation, time_ms: u64) -> Result<StringsReply> {
    check_read(operation)?;
    Ok(apply(&operation.action, time_ms, &mut Carried::default(), &mut Slot::default(), None))
}

fn check_read(operation: &StringsOperation) -> Result<()> {
    match operation.is_read() {
        true => Ok(()),
        false => Err(Error::InvalidRequest("an operation that writes within a read".to_owned())),
    }
}

/// The replies, and what the keys have become.
fn carry_out<V: View>(
    view: &V,
    context: &Context,
    operations: &[StringsOperation],
    mut notices: Option<&mut Notices<'_, V>>,
    mut growth: Option<Growth<'_, V>>,
    is_bounded: bool,
) -> Result<(Vec<StringsReply>, BTreeMap<Place, Looked>)> {
    // Where nothing has a time to live no record need be looked for.
    let may_expire = view.earliest_due()? != u64::MAX;
    // What is overwritten may be a hash only where there are some.
    let may_be_blind = (!operations.iter().any(StringsOperation::is_blind) || !view.has_hashes()?)
        // Of a key that is new, or has expired, more is told.
        && notices.is_none();
    let mut keys: BTreeMap<Place, Looked> = BTreeMap::new();
    let mut carried = Carried::new(context.sequence);
    let (mut work, mut bounds) = (Work::default(), Bounds::new(operations, is_bounded));
    let wanted = wanted_values(operations);
    let mut replies = Vec::with_capacity(operations.len());
    for operation in operations {
        if let StringAction::Suspect { .. } = operation.action {
            bounds.tell(StringsReply::Done, &mut replies)?;
            continue;
        }
        for (tree, key) in operation.keys() {
            let place = (tree, key.clone());
            if let std::collections::btree_map::Entry::Vacant(entry) = keys.entry(place) {
                expiry::check_tree(view, tree)?;
                // Of a tree with a quota it has to be known how long that is.
                let is_limited = is_limited(&mut growth, tree)?;
                let is_blind = may_be_blind && operation.is_blind() && !is_limited;
                let mut looked = look(view, tree, key, is_blind, may_expire)?;
                if !is_limited && wanted.as_ref().is_some_and(|wanted| !wanted.contains(&(tree, key))) {
                    looked.forget_value();
                }
                bounds.see(&looked.slot)?;
                entry.insert(looked);
            }
        }
        let place = (operation.tree, operation.key.clone());
        // Taken out while a second one may be needed.
        let mut slot = std::mem::take(&mut keys.get_mut(&place).expect("looked at").slot);
        learn(view, operation, &mut slot)?;
        if makes_hash(operation, &slot) {
            // One that came from elsewhere, with a backup, may have the id that is next.
            while view.version(TreeId::HASHES, &carried.next_id().owner_key())?.is_some() {
                carried.take_id();
            }
        }
        let other = match &operation.action {
            StringAction::Transfer { tree, key, .. } => {
                let other = (*tree, key.clone());
                (other != place).then_some(other)
            }
            _ => None,
        };
        let told_before = Before::of(&slot);
        let slots = || (slot.clone(), other.as_ref().map(|other| keys[other].slot.clone()));
        let other_tree = other.as_ref().map_or(operation.tree, |(tree, _)| *tree);
        let is_judged = is_limited(&mut growth, operation.tree)? || is_limited(&mut growth, other_tree)?;
        let before = is_judged.then(slots);
        let other_slot = other.as_ref().map(|other| &mut keys.get_mut(other).expect("looked at").slot);
        let mut reply = match is_bounded && work.is_too_much(&operation.action, &slot) {
            true => StringsReply::Failed(StringsFailure::TooMuchWork),
            false => apply(&operation.action, context.time_ms, &mut carried, &mut slot, other_slot),
        };
        if let (Some(growth), Some((before, other_before))) = (&mut growth, before) {
            let mut changed = vec![(&place, &before, &slot)];
            if let (Some(other), Some(before)) = (&other, &other_before) {
                changed.push((other, before, &keys[other].slot));
            }
            if !may_grow(growth, &changed)? {
                reply = StringsReply::Failed(StringsFailure::OverQuota);
                slot = before;
                if let (Some(other), Some(before)) = (&other, other_before) {
                    keys.get_mut(other).expect("looked at").slot = before;
                }
            }
        }
        if let Some(notices) = &mut notices {
            for (tree, key) in operation.keys() {
                let looked = keys.get_mut(&(tree, key.clone())).expect("looked at");
                let slot = if (tree, key) == (place.0, &place.1) { &slot } else { &looked.slot };
                // Its record is why it was not found.
                let is_new = looked.version.is_none() && looked.record.is_some() && slot.is_there();
                if is_new && !looked.is_told_expired && view.hides(tree, key)? {
                    looked.is_told_expired = true;
                    notices.expired(tree, key);
                }
            }
            notices.operation((place.0, &place.1), &operation.action, &reply, told_before, &slot);
        }
        bounds.tell(reply, &mut replies)?;
        keys.get_mut(&place).expect("looked at").slot = slot;
    }
    Ok((replies, keys))
}

/// Whether a tree has a quota.
fn is_limited<V: View>(growth: &mut Option<Growth<'_, V>>, tree: TreeId) -> Result<bool> {
    growth.as_mut().map_or(Ok(false), |growth| growth.is_limited(tree))
}

/// Whether an operation may do what it has done to keys, as far as the quotas of their trees are concerned. What it frees
/// of fields of a hash that is gone is not known here, and not reckoned with.
fn may_grow<V: View>(growth: &mut Growth<'_, V>, changed: &[(&Place, &Slot, &Slot)]) -> Result<bool> {
    let mut sums = BTreeMap::<TreeId, (i64, i64)>::new();
    for ((tree, key), before, after) in changed {
        if !growth.is_limited(*tree)? {
            continue;
        }
        let size = |slot: &Slot| slot.encode().map(|value| (key.len() + value.len()) as i64);
        let (before_size, after_size) = (size(before), size(after));
        let sum = sums.entry(*tree).or_default();
        sum.0 += after_size.unwrap_or(0) - before_size.unwrap_or(0);
        sum.1 += i64::from(after_size.is_some()) - i64::from(before_size.is_some());
        if let Some(hash) = &after.hash {
            // Also of one that had another key of this tree before: its fields stay what they are.
            let befores = changed.iter().filter(|((of, _), ..)| of == tree);
            let known = befores.filter_map(|(_, before, _)| before.hash.as_ref());
            let known = known.filter(|known| known.id == hash.id).map(fields_known).max();
            sum.0 += fields_known(hash) - known.unwrap_or(0);
        }
    }
    growth.allows(&sums)
}

/// What operations that are carried out together make of what is there: some bytes of a command must not come to more than there
/// is room, or time, for where it is applied.
#[derive(Debug, Default)]
pub struct Work {
    copied: i64,
    rewritten: i64,
}

impl Work {
    /// Whether this one, of what is there, is more than those before have left. Only what copies or rewrites is refused:
    /// with [`StringsFailure::TooMuch`].
    pub fn is_too_much(&mut self, action: &StringAction, slot: &Slot) -> bool {
        let value = || slot.value.as_ref().map_or(0, |value| value.len() as i64);
        if let StringAction::Transfer { copy: true, .. } = action {
            self.copied += value() + slot.hash.as_ref().map_or(0, fields_known);
            return self.copied > MOST_COPIED;
        }
        if action.rewrites() {
            self.rewritten += value();
            return self.rewritten > MOST_REWRITTEN;
        }
        false
    }
}

/// The bytes of those fields of a hash that are known.
fn fields_known(hash: &HashSlot) -> i64 {
    let fields = hash.fields.iter();
    fields.filter_map(|(name, field)| Some((name.len() + field.now.as_ref()?.len()) as i64)).sum()
}

fn makes_hash(operation: &StringsOperation, slot: &Slot) -> bool {
    match &operation.action {
        StringAction::Hash(action) => !slot.is_there() && action.makes(),
        StringAction::Transfer { copy: true, .. } => slot.hash.is_some(),
        _ => false,
    }
}

fn look(view: &impl View, tree: TreeId, key: &IVec, is_blind: bool, may_expire: bool) -> Result<Looked> {
    if is_blind {
        let (slot, before) = (Slot::unseen(), Slot::unseen());
        return Ok(Looked { slot, before, version: None, record: None, is_told_expired: false });
    }
    let found = view.get(tree, key)?;
    // Also of a key that is absent: one that has expired is hidden by its record.
    let record = match may_expire {
        true => view.get(TreeId::EXPIRY, &expiry::record_key(tree, key))?,
        false => None,
    };
    let version = found.as_ref().map(|found| found.version);
    let expires_ms = version.map(|version| expiry::expires(record.as_ref(), version)).transpose()?.flatten();
    let mut slot = Slot::stored(found.map(|found| found.value), expires_ms);
    if let Some(hash) = &slot.hash {
        // A head that was copied here by other means than ours is nothing.
        let owner = view.get(TreeId::HASHES, &hash.id.owner_key())?;
        if owner.is_none_or(|owner| decode_owner(&owner.value) != Some((tree.0, &key[..]))) {
            slot = Slot::found(None, None);
        }
    }
    Ok(Looked { before: slot.clone(), slot, version, record, is_told_expired: false })
}

/// Learns what an operation needs to know of a hash.
fn learn(view: &impl View, operation: &StringsOperation, slot: &mut Slot) -> Result<()> {
    let Some(hash) = &mut slot.hash else { return Ok(()) };
    let needs = match &operation.action {
        StringAction::Hash(action) => action.needs(),
        StringAction::Transfer { copy: true, .. } => Needs::Whole,
        _ => return Ok(()),
    };
    let (after, limit, most_bytes) = match needs {
        Needs::Head => return Ok(()),
        Needs::Fields(fields) => {
            for field in fields {
                if !hash.knows(field) {
                    let found = view.get(TreeId::HASHES, &hash.id.field_key(field))?;
                    hash.learn(field.clone(), found.map(|found| found.value));
                }
            }
            return Ok(());
        }
        Needs::Page(after, limit) => {
            let limit = if hash.count > SMALL { limit.max(1) as usize } else { usize::MAX };
            (after, limit, hashes::PAGE_BYTES)
        }
        Needs::Whole => (None, usize::MAX, hashes::MAX_HASH_REPLY_BYTES),
    };
    hash.page_end = None;
    if hash.is_whole {
        return Ok(());
    }
    let (low, high) = hash.id.fields_after(after);
    let (mut count, mut last, mut more) = (0, None, false);
    let mut bytes = 0;
    view.scan_values(TreeId::HASHES, as_ref(&low), as_ref(&high), &mut |key, found| {
        if count >= limit || bytes > most_bytes {
            more = true;
            return false;
        }
        let field = IVec::from(hashes::field_of_key(key));
        // As they are counted when they are told: between two limits a part would be told as if it were all.
        bytes += field.len() + found.value.len();
        hash.learn(field.clone(), Some(found.value));
        (count, last) = (count + 1, Some(field));
        true
    })?;
    // What is more than can be told is refused when it is told.
    hash.is_whole = !more && after.is_none();
    if more {
        hash.page_end = last;
    }
    Ok(())
}

/// What becomes of the fields.
fn changes_of_hashes(
    view: &impl View,
    context: &Context,
    keys: &BTreeMap<Place, Looked>,
    effects: &mut Effects,
) -> Result<()> {
    let own = |slot: &Slot| slot.hash.as_ref().map(|hash| (hash.id, hash.count));
    let before: BTreeMap<_, _> = keys.values().filter_map(|looked| own(&looked.before)).collect();
    if before.is_empty() && keys.values().all(|looked| looked.slot.hash.is_none()) {
        return Ok(());
    }
    let mut after = BTreeSet::new();
    for ((tree, key), looked) in keys {
        let Some(hash) = &looked.slot.hash else { continue };
        after.insert(hash.id);
        if !looked.slot.is_written {
            continue;
        }
        let is_moved = own(&looked.before).is_none_or(|(id, _)| id != hash.id);
        if is_moved {
            let (value, fresh) = (encode_owner(tree.0, key), Some(!before.contains_key(&hash.id)));
            effects.push(Effect::Put { tree: TreeId::HASHES, key: hash.id.owner_key(), value, fresh });
        }
        for (name, field) in &hash.fields {
            let key = hash.id.field_key(name);
            match (&field.before, &field.now) {
                (before, Some(value)) if before.as_ref() != Some(value) => {
                    let (value, fresh) = (value.clone(), Some(before.is_none()));
                    effects.push(Effect::Put { tree: TreeId::HASHES, key, value, fresh });
                }
                (Some(_), None) => effects.push(Effect::Remove { tree: TreeId::HASHES, key }),
                _ => {}
            }
        }
    }
    for (id, count) in before.into_iter().filter(|(id, _)| !after.contains(id)) {
        sweep::discard(view, context.time_ms, id, count, effects)?;
    }
    Ok(())
}

/// What the database has to do for a slot to be what it has become.
fn changes(
    view: &impl View,
    tree: TreeId,
    key: IVec,
    looked: Looked,
    may_expire: bool,
    effects: &mut Effects,
) -> Result<()> {
    let Looked { mut slot, before, mut version, mut record, .. } = looked;
    for value in std::mem::take(&mut slot.told) {
        effects.push(Effect::Tell { tree, key: key.clone(), value });
    }
    if slot.is_blind && (!slot.is_there() || slot.expires_ms.is_some()) {
        // Now it has to be known after all.
        version = view.version(tree, &key)?;
        if may_expire {
            record = view.get(TreeId::EXPIRY, &expiry::record_key(tree, &key))?;
        }
    }
    let ends = slot.expires_ms.map_or(Ends::Never, Ends::At);
    match slot.encode() {
        // Also where only the time is another: whoever watches the key, or has read it in a transaction, is to see that.
        Some(value) if slot.is_written || slot.expires_ms != before.expires_ms => {
            let fresh = if slot.is_blind { None } else { Some(version.is_none()) };
            effects.push(Effect::Put { tree, key: key.clone(), value, fresh });
            expiry::put_record(tree, &key, &ends, 0, record.as_ref(), effects)
        }
        None if version.is_some() => {
            effects.push(Effect::Remove { tree, key: key.clone() });
            expiry::put_record(tree, &key, &Ends::Never, 0, record.as_ref(), effects)
        }
        // What hides a key that has expired must stay for as long as the key.
        Some(_) | None => Ok(()),
    }
}

/// [`StringAction::Clear`].
fn clear(view: &impl View, context: &Context, operations: &[StringsOperation]) -> Result<Outcome> {
    let [StringsOperation { tree, .. }] = operations else {
        return Err(Error::InvalidRequest("a tree is cleared by a list of its own".to_owned()));
    };
    expiry::check_tree(view, *tree)?;
    let mut effects = Effects::new();
    if view.has_hashes()? {
        sweep::suspect_all(view, context.time_ms, *tree, &mut effects)?;
    }
    if view.end(*tree, false)?.is_some() {
        effects.push(Effect::Clear { tree: *tree });
    }
    Ok(Outcome { effects, reply: Reply::Strings(StringsReplies(vec![StringsReply::Done])) })
}
