//! What an entry of a group's log means: pure, as [`crate::evaluate`] is.
//!
//! ```text
//! resolve: names of trees ─► numbers, limits   what is refused here is refused on every replica
//! evaluate: session? ─► the command ─► trees that its writes make
//! ```

use std::ops::Bound;

use smallvec::SmallVec;

use crate::command::{Command, MAX_NAME_LENGTH, MAX_TREES_WEIGHT, TREE_WEIGHT, TreeId};
use crate::evaluate::{self, Context, Effect, Effects, Entry, Versioned, View};
use crate::fence;
use crate::group::{Answer, GroupCommand, GroupReply, MAX_GROUP_TREES, Operation, Refusal};
use crate::meta::{
    COUNTERS_TREE_NAME, DEFAULT_TREE_NAME, EXPIRY_TREE_NAME, HASHES_TREE_NAME, LOCK_QUEUES_TREE_NAME,
    LOCKS_TREE_NAME, QUOTAS_TREE_NAME, SEQUENCES_TREE_NAME, SESSIONS_TREE_NAME, TRANSACTIONS_TREE_NAME,
};
use crate::seal::{seal_of, sealed_by};
use crate::session::{self, Done};
use crate::transaction::{self, Commit, Guarded, Part, Prepare, Transactions};
use crate::{IVec, Result, quota};

/// What an entry comes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOutcome {
    /// Applied together or not at all.
    pub effects: Effects,
    /// What the caller is told, once they are visible.
    pub reply: GroupReply,
}

/// Evaluates one entry. It is deterministic: every replica that does so at the same position of the
/// same log gets the same outcome.
///
/// # Errors
/// Those of reading the view. What the entry itself is refused for is in the reply.
pub fn evaluate_group(view: &impl View, context: &Context, command: GroupCommand) -> Result<GroupOutcome> {
    evaluate_resolved(view, context, &resolve(view, command))
}

/// A command whose trees are known by number.
#[derive(Debug)]
pub(crate) struct Resolved {
    pub(crate) command: GroupCommand,
    missing: Missing,
    refusal: Option<Refusal>,
}

/// Trees that are not there, and get the numbers from `first` on if something is written to them.
#[derive(Debug)]
struct Missing {
    first: TreeId,
    names: SmallVec<[IVec; 1]>,
}

impl Missing {
    fn number(&self, index: usize) -> TreeId {
        TreeId(self.first.0 + index as u32)
    }

    #[inline]
    fn index(&self, tree: TreeId) -> Option<usize> {
        let index = tree.0.checked_sub(self.first.0)? as usize;
        (index < self.names.len()).then_some(index)
    }
}

/// Turns the names of trees into numbers.
pub(crate) fn resolve(view: &impl View, mut command: GroupCommand) -> Resolved {
    let mut missing = Missing { first: view.next_tree_id(), names: SmallVec::new() };
    let refusal = match &mut command.operation {
        Operation::Command(inner) | Operation::Fenced { command: inner, .. } => {
            resolve_command(view, &command.trees, inner, &mut missing).err()
        }
        Operation::Prepare(Prepare { part, .. }) | Operation::Commit(Commit { part, .. }) => {
            resolve_part(view, &command.trees, part, &mut missing).err()
        }
        _ => None,
    };
    Resolved { command, missing, refusal }
}

fn resolve_command(
    view: &impl View,
    names: &[IVec],
    command: &mut Command,
    missing: &mut Missing,
) -> Result<(), Refusal> {
    // All limits are of lengths.
    command.check_limits().map_err(|error| match error {
        crate::Error::InvalidRequest(what) => Refusal::TooLarge(what),
        other => Refusal::Invalid(other.to_string()),
    })?;
    if names.len() > MAX_GROUP_TREES {
        let what = format!("{} trees in one command are over the limit of {MAX_GROUP_TREES}", names.len());
        return Err(Refusal::TooLarge(what));
    }
    let mut numbers = SmallVec::<[TreeId; 4]>::new();
    for name in names {
        if name.len() > MAX_NAME_LENGTH {
            let what =
                format!("the name of a tree of {} bytes is over the limit of {MAX_NAME_LENGTH}", name.len());
            return Err(Refusal::TooLarge(what));
        }
        numbers.push(match tree_number(view, name) {
            Some(number) => number,
            // A tree that is not there may live under another name, and must not be made beside that.
            None if is_sealed(view, name) => return Err(Refusal::TreeSealed(name.clone())),
            None => {
                let index = missing.names.iter().position(|other| other == name).unwrap_or_else(|| {
                    missing.names.push(name.clone());
                    missing.names.len() - 1
                });
                missing.number(index)
            }
        });
    }
    match &*command {
        Command::DropTree { name } | Command::SetQuota { name, .. } if sealed_by(name).is_some() => {
            return Err(Refusal::Invalid("a seal stays for ever, as it is".to_owned()));
        }
        Command::CreateTree { name } | Command::DropTree { name } | Command::SetQuota { name, .. }
            if tree_number(view, name).is_none() && is_sealed(view, name) =>
        {
            return Err(Refusal::TreeSealed(name.clone()));
        }
        _ => {}
    }
    replace_trees(command, &mut |tree, access| {
        let Some(number) = numbers.get(tree.0 as usize) else {
            let what = format!("tree {} of a command that names {}", tree.0, names.len());
            return Err(Refusal::Invalid(what));
        };
        *tree = *number;
        check_access(*number, access)
    })
}

/// A part of a transaction is held to the rules of a transaction of one group.
fn resolve_part(
    view: &impl View,
    names: &[IVec],
    part: &mut Part,
    missing: &mut Missing,
) -> Result<(), Refusal> {
    let Part { reads, ranges, writes, expiries } = std::mem::take(part);
    let mut command = Command::Transact { reads, ranges, writes, expiries };
    let resolved = resolve_command(view, names, &mut command, missing);
    if let Command::Transact { reads, ranges, writes, expiries } = command {
        *part = Part { reads, ranges, writes, expiries };
    }
    resolved
}

/// The number of a tree that is there.
pub(crate) fn tree_number(view: &impl View, name: &[u8]) -> Option<TreeId> {
    match name {
        DEFAULT_TREE_NAME => Some(TreeId::DEFAULT),
        COUNTERS_TREE_NAME => Some(TreeId::COUNTERS),
        LOCKS_TREE_NAME => Some(TreeId::LOCKS),
        SESSIONS_TREE_NAME => Some(TreeId::SESSIONS),
        EXPIRY_TREE_NAME => Some(TreeId::EXPIRY),
        LOCK_QUEUES_TREE_NAME => Some(TreeId::LOCK_QUEUES),
        SEQUENCES_TREE_NAME => Some(TreeId::SEQUENCES),
        HASHES_TREE_NAME => Some(TreeId::HASHES),
        QUOTAS_TREE_NAME => Some(TreeId::QUOTAS),
        TRANSACTIONS_TREE_NAME => Some(TreeId::TRANSACTIONS),
        _ => view.tree_id(name),
    }
}

/// Whether a tree that is not there is not to be made either.
fn is_sealed(view: &impl View, name: &[u8]) -> bool {
    view.tree_id(&seal_of(name)).is_some()
}

/// What a command does with a tree that it names.
enum Access<'a> {
    Read,
    Remove,
    Put(&'a IVec),
}

/// Refuses what would leave a record that its owner cannot read: one bad entry would stop all
/// replicas. Counters may be imported. The fields of hashes are written by the operations on hashes only.
fn check_access(tree: TreeId, access: Access<'_>) -> Result<(), Refusal> {
    match (tree, access) {
        (TreeId::SESSIONS, _) => {
            Err(Refusal::Invalid("the tree of sessions is closed to commands".to_owned()))
        }
        (TreeId::TRANSACTIONS, _) => {
            Err(Refusal::Invalid("the tree of transactions is closed to commands".to_owned()))
        }
        (TreeId::LOCKS | TreeId::LOCK_QUEUES, Access::Remove | Access::Put(_)) => {
            Err(Refusal::Invalid("the tree of locks is not written to directly".to_owned()))
        }
        (
            TreeId::EXPIRY | TreeId::SEQUENCES | TreeId::HASHES | TreeId::QUOTAS,
            Access::Remove | Access::Put(_),
        ) => Err(Refusal::Invalid("a tree of the database's own is not written to directly".to_owned())),
        (TreeId::COUNTERS, Access::Put(value)) if value.len() != 8 => {
            Err(Refusal::Invalid(format!("a counter of {} bytes instead of 8", value.len())))
        }
        _ => Ok(()),
    }
}

/// Calls `each` with every tree that a command names by number.
fn replace_trees(
    command: &mut Command,
    each: &mut dyn FnMut(&mut TreeId, Access<'_>) -> Result<(), Refusal>,
) -> Result<(), Refusal> {
    fn access(value: &Option<IVec>) -> Access<'_> {
        value.as_ref().map_or(Access::Remove, Access::Put)
    }
    match command {
        Command::Insert { tree, value, .. } | Command::Put { tree, value, .. } => {
            each(tree, Access::Put(value))
        }
        Command::Remove { tree, .. } | Command::Pop { tree, .. } | Command::ClearTree { tree } => {
            each(tree, Access::Remove)
        }
        Command::CompareAndSwap { tree, new, .. } => each(tree, access(new)),
        Command::Owned(owned) => {
            let (tree, value) = owned.tree_and_value();
            each(tree, Access::Put(value))
        }
        // What it may be done to is checked where it is done.
        Command::Expiry(expiry) => each(expiry.tree_mut(), Access::Read),
        Command::Batch { writes } => {
            writes.iter_mut().try_for_each(|write| each(&mut write.tree, access(&write.value)))
        }
        Command::Transact { reads, ranges, writes, expiries } => {
            reads.iter_mut().try_for_each(|read| each(&mut read.tree, Access::Read))?;
            ranges.iter_mut().try_for_each(|range| each(&mut range.tree, Access::Read))?;
            writes.iter_mut().try_for_each(|write| each(&mut write.tree, access(&write.value)))?;
            // As of one by itself.
            expiries.iter_mut().try_for_each(|expiry| each(expiry.tree_mut(), Access::Read))
        }
        Command::Compare { comparisons, then, otherwise } => {
            comparisons.iter_mut().try_for_each(|comparison| each(&mut comparison.tree, Access::Read))?;
            let mut writes = then.iter_mut().chain(otherwise);
            writes.try_for_each(|write| each(&mut write.tree, access(&write.value)))
        }
        Command::Strings { watched, operations } => {
            watched.iter_mut().try_for_each(|read| each(&mut read.tree, Access::Read))?;
            // What it may be done to is checked where it is done.
            let mut trees = operations.iter_mut().flat_map(|operation| operation.trees_mut());
            trees.try_for_each(|tree| each(tree, Access::Read))
        }
        Command::CreateTree { .. }
        | Command::DropTree { .. }
        | Command::SetQuota { .. }
        | Command::ReserveIds { .. }
        | Command::Counter(_)
        | Command::Lock(_)
        | Command::CountMany { .. }
        | Command::SettleDue { .. } => Ok(()),
    }
}

/// Evaluates an entry; see [`evaluate_group`].
pub(crate) fn evaluate_resolved(
    view: &impl View,
    context: &Context,
    resolved: &Resolved,
) -> Result<GroupOutcome> {
    let (effects, reply) = match (&resolved.command.session, &resolved.command.operation) {
        (
            Some(tag),
            Operation::Command(_)
            | Operation::Fenced { .. }
            | Operation::Nothing
            | Operation::Prepare(_)
            | Operation::Commit(_),
        ) => session::exactly_once(view, context, tag, || carry_out(view, context, resolved))?,
        (None, Operation::Prepare(_) | Operation::Commit(_)) => {
            let what = "a part of a transaction is to happen once: it needs a session".to_owned();
            in_reply(context, (Effects::new(), Err(Refusal::Invalid(what))))
        }
        (Some(_), _) => {
            let what = "an operation on a session is not itself a numbered command of one".to_owned();
            in_reply(context, (Effects::new(), Err(Refusal::Invalid(what))))
        }
        (None, _) => in_reply(context, carry_out(view, context, resolved)?),
    };
    Ok(GroupOutcome { effects, reply })
}

fn in_reply(context: &Context, (effects, result): Done) -> (Effects, GroupReply) {
    (effects, GroupReply { position: context.sequence, time_ms: context.time_ms, result })
}

fn carry_out(view: &impl View, context: &Context, resolved: &Resolved) -> Result<Done> {
    let (effects, result) = carry_out_whole(view, context, resolved)?;
    match too_many_trees(view, &effects) {
        Some(refusal) => Ok((Effects::new(), Err(refusal))),
        None => Ok((effects, result)),
    }
}

/// The refusal of effects that would make more trees than a group can have; see [`MAX_TREES_WEIGHT`].
fn too_many_trees(view: &impl View, effects: &Effects) -> Option<Refusal> {
    let made = effects.iter().filter_map(|effect| match effect {
        Effect::CreateTree { name, .. } => Some(name),
        _ => None,
    });
    let mut made = made.peekable();
    made.peek()?;
    let mut weight = view.tree_names_weight();
    for name in made {
        let limit = if sealed_by(name).is_some() { 2 * MAX_TREES_WEIGHT } else { MAX_TREES_WEIGHT };
        weight += name.len() + TREE_WEIGHT;
        if weight > limit {
            let what = format!(
                "the names of the group's trees come to {weight} bytes, {TREE_WEIGHT} more counted for each, over the \
                 limit of {limit}: drop trees that are not needed"
            );
            return Some(Refusal::Invalid(what));
        }
    }
    None
}

fn carry_out_whole(view: &impl View, context: &Context, resolved: &Resolved) -> Result<Done> {
    if let Some(refusal) = &resolved.refusal {
        return Ok((Effects::new(), Err(refusal.clone())));
    }
    let Some(transactions) = view.transactions() else {
        return carry_out_freely(view, context, resolved);
    };
    match &resolved.command.operation {
        Operation::Prepare(prepare) => {
            let trees = all_trees(&resolved.missing);
            let view = WithMissing { view, missing: &resolved.missing };
            transaction::prepare(&view, transactions, context, trees, prepare)
        }
        Operation::Commit(commit) => {
            let view = WithMissing { view, missing: &resolved.missing };
            let (effects, result) = transaction::commit(&view, transactions, context, commit)?;
            Ok((make_trees(&resolved.missing, effects), result))
        }
        Operation::Settle { transaction, decide_by_ms } => {
            transaction::settle(transactions, context, *transaction, *decide_by_ms)
        }
        Operation::Resolve { transaction, commit } => {
            counted(view, transaction::resolve(view, transactions, context, *transaction, *commit)?)
        }
        Operation::Forget { transactions: forgotten } => {
            transaction::forget(transactions, context, forgotten)
        }
        _ if transactions.is_idle() => carry_out_freely(view, context, resolved),
        _ => {
            let guarded = Guarded::new(view, transactions);
            let done = carry_out_freely(&guarded, context, resolved)?;
            match guarded.stopped_by(&done.0) {
                Some(lock) => Ok((Effects::new(), Err(Refusal::Locked(lock)))),
                None => Ok(done),
            }
        }
    }
}

/// As if there were no transactions over several groups.
fn carry_out_freely(view: &impl View, context: &Context, resolved: &Resolved) -> Result<Done> {
    match &resolved.command.operation {
        Operation::Nothing => Ok((Effects::new(), Ok(Answer::Done))),
        Operation::Command(command) | Operation::Fenced { command, .. } => {
            let view = WithMissing { view, missing: &resolved.missing };
            let fences = resolved.command.operation.fences();
            let checked = if fences.is_empty() { Ok(()) } else { fence::check(&view, context, fences) };
            match checked.and_then(|()| evaluate::evaluate(&view, context, command)) {
                Ok(outcome) => {
                    let effects = make_trees(&resolved.missing, outcome.effects);
                    Ok((effects, Ok(Answer::Reply(outcome.reply))))
                }
                Err(error) => Ok((Effects::new(), Err(Refusal::of(error)?))),
            }
        }
        Operation::OpenSession { session, lease_ms } => session::open(view, context, *session, *lease_ms),
        Operation::RenewSession { session } => session::renew(view, context, *session),
        Operation::CloseSession { session } => counted(view, session::close(view, context, *session)?),
        Operation::ExpireSessions { led_ms } => counted(view, session::expire(view, context, *led_ms)?),
        Operation::Prepare(_)
        | Operation::Commit(_)
        | Operation::Settle { .. }
        | Operation::Resolve { .. }
        | Operation::Forget { .. } => {
            let what = "only a replica takes part in transactions over several groups".to_owned();
            Ok((Effects::new(), Err(Refusal::Invalid(what))))
        }
    }
}

/// What was done, with what it does to trees that have quotas.
fn counted(view: &impl View, (mut effects, result): Done) -> Result<Done> {
    quota::count_only(view, &mut effects)?;
    Ok((effects, result))
}

/// The making of all trees that are missing, written to or not.
fn all_trees(missing: &Missing) -> Effects {
    let names = missing.names.iter().enumerate();
    names.map(|(index, name)| Effect::CreateTree { id: missing.number(index), name: name.clone() }).collect()
}

/// Puts before the effects the making of those trees that they write to.
fn make_trees(missing: &Missing, effects: Effects) -> Effects {
    if missing.names.is_empty() {
        return effects;
    }
    let mut written = SmallVec::<[bool; 4]>::from_elem(false, missing.names.len());
    for effect in &effects {
        let tree = match effect {
            // The record is about a tree, by its number.
            Effect::Put { tree: TreeId::SEQUENCES, key, .. } => {
                key.first_chunk().map(|number| TreeId(u32::from_be_bytes(*number)))
            }
            // Whoever watches a tree has to find it.
            Effect::Put { tree, .. } | Effect::Tell { tree, .. } => Some(*tree),
            _ => None,
        };
        if let Some(index) = tree.and_then(|tree| missing.index(tree)) {
            written[index] = true;
        }
    }
    let names = missing.names.iter().enumerate().filter(|(index, _)| written[*index]);
    let mut all: Effects = names
        .map(|(index, name)| Effect::CreateTree { id: missing.number(index), name: name.clone() })
        .collect();
    all.extend(effects);
    all
}

/// A view in which the trees that are not there are, and empty.
struct WithMissing<'a, V> {
    view: &'a V,
    missing: &'a Missing,
}

impl<V: View> WithMissing<'_, V> {
    fn is_missing(&self, tree: TreeId) -> bool {
        self.missing.index(tree).is_some()
    }
}

impl<V: View> View for WithMissing<'_, V> {
    #[inline]
    fn get(&self, tree: TreeId, key: &[u8]) -> Result<Option<Versioned>> {
        if self.is_missing(tree) { Ok(None) } else { self.view.get(tree, key) }
    }

    #[inline]
    fn version(&self, tree: TreeId, key: &[u8]) -> Result<Option<u64>> {
        if self.is_missing(tree) { Ok(None) } else { self.view.version(tree, key) }
    }

    fn end(&self, tree: TreeId, last: bool) -> Result<Option<Entry>> {
        if self.is_missing(tree) { Ok(None) } else { self.view.end(tree, last) }
    }

    fn scan(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> Result<()> {
        if self.is_missing(tree) { Ok(()) } else { self.view.scan(tree, low, high, each) }
    }

    fn scan_values(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], Versioned) -> bool,
    ) -> Result<()> {
        if self.is_missing(tree) { Ok(()) } else { self.view.scan_values(tree, low, high, each) }
    }

    fn note_end(&self, tree: TreeId, key: &[u8], expires_ms: u64) {
        self.view.note_end(tree, key, expires_ms);
    }

    fn has_hashes(&self) -> Result<bool> {
        self.view.has_hashes()
    }

    #[inline]
    fn has_quotas(&self) -> Result<bool> {
        self.view.has_quotas()
    }

    fn tree_id(&self, name: &[u8]) -> Option<TreeId> {
        self.view.tree_id(name)
    }

    fn tree_id_to_be(&self, name: &[u8]) -> Option<TreeId> {
        let missing = || self.missing.names.iter().position(|missing| &missing[..] == name);
        self.view.tree_id(name).or_else(|| missing().map(|index| self.missing.number(index)))
    }

    fn has_tree(&self, tree: TreeId) -> bool {
        self.is_missing(tree) || self.view.has_tree(tree)
    }

    fn next_tree_id(&self) -> TreeId {
        self.view.next_tree_id()
    }

    fn tree_names_weight(&self) -> usize {
        self.view.tree_names_weight()
    }

    fn next_id(&self) -> u64 {
        self.view.next_id()
    }

    fn next_to(&self, tree: TreeId, key: &[u8], before: bool) -> Result<Option<Entry>> {
        if self.is_missing(tree) { Ok(None) } else { self.view.next_to(tree, key, before) }
    }

    #[inline]
    fn earliest_due(&self) -> Result<u64> {
        self.view.earliest_due()
    }

    fn is_locked(&self, tree: TreeId, key: &[u8]) -> bool {
        self.view.is_locked(tree, key)
    }

    fn transactions(&self) -> Option<&Transactions> {
        self.view.transactions()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meta::Catalog;
    use crate::model::ModelState;

    /// The model has no names for the database's own trees, every replica's catalog has.
    #[test]
    fn the_names_of_the_trees_of_its_own_mean_what_the_catalog_says() {
        let model = ModelState::for_replica();
        for (name, id) in Catalog::default().names {
            assert_eq!(tree_number(&model, &name), Some(id));
        }
        assert_eq!(tree_number(&model, SESSIONS_TREE_NAME), Some(TreeId::SESSIONS));
        assert_eq!(tree_number(&model, TRANSACTIONS_TREE_NAME), Some(TreeId::TRANSACTIONS));
        assert_eq!(tree_number(&model, b"users"), None);
    }
}
