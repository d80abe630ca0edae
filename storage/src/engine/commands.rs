//! What the engine has to know of commands before and after they are evaluated.

use std::sync::Arc;

use crate::command::{KeyRead, Write};
use crate::evaluate::Effect;
use crate::expiry::{ExpiryCommand, record_key};
use crate::owned::OwnedCommand;
use crate::state::{Prefetched, State};
use crate::{Command, IVec, Reply, Result, TreeId};

/// Whether a command without effects was answered that what it asks for is so already. A commit
/// that is not yet durable may have made it so: a key that was found removed must not come back
/// after a synced remove of it has returned.
pub(super) fn says_it_is_so(command: &Command, reply: &Reply) -> bool {
    match command {
        Command::Transact { writes, expiries, .. } => {
            *reply == Reply::Done && !(writes.is_empty() && expiries.is_empty())
        }
        Command::Compare { then, .. } => *reply == Reply::Compared(Ok(())) && !then.is_empty(),
        Command::CompareAndSwap { .. } => *reply == Reply::Swapped(Ok(())),
        Command::Remove { .. }
        | Command::Batch { .. }
        | Command::ClearTree { .. }
        | Command::CreateTree { .. }
        | Command::DropTree { .. }
        | Command::SetQuota { .. }
        | Command::Counter(crate::counter::CounterCommand::Remove { .. }) => true,
        Command::Counter(crate::counter::CounterCommand::SetIf { .. }) => {
            *reply == Reply::Counter(crate::counter::CounterReply::Swapped(Ok(())))
        }
        // A counter that has this value, a number that was reached, a time that is set.
        Command::Counter(crate::counter::CounterCommand::Set { .. })
        | Command::CountMany { .. }
        | Command::Owned(OwnedCommand::SetNext { .. }) => true,
        Command::Expiry(command) => !matches!(command, ExpiryCommand::Get { .. }),
        Command::Strings { operations, .. } => operations.iter().any(|operation| !operation.is_read()),
        _ => false,
    }
}

/// Whether those who wait for locks are to be told: of changes of locks, and of sessions that end.
pub(crate) fn touches_locks(effects: &[Effect]) -> bool {
    effects.iter().any(|effect| match effect {
        Effect::Put { tree, .. } | Effect::Clear { tree } => *tree == TreeId::LOCKS,
        Effect::Remove { tree, .. } => *tree == TreeId::LOCKS || *tree == TreeId::SESSIONS,
        _ => false,
    })
}

/// Reads from the B-tree what a command will look at, without the commit mutex. Where trees have quotas, that is also
/// what it overwrites.
pub(crate) fn prefetch(state: &Arc<State>, has_quotas: bool, command: &Command) -> Result<Prefetched> {
    let mut prefetched = Prefetched::of(state);
    let mut read = |tree: TreeId, key: &IVec| prefetched.read(state, tree, key);
    match command {
        Command::Insert { tree, key, .. }
        | Command::Remove { tree, key }
        | Command::CompareAndSwap { tree, key, .. } => read(*tree, key)?,
        Command::Put { tree, key, .. } => {
            // Only of a tree with a quota is it looked at.
            read(*tree, key)?;
        }
        Command::Batch { writes } => {
            for write in writes.iter().filter(|write| write.value.is_none() || has_quotas) {
                read(write.tree, &write.key)?;
            }
        }
        Command::Transact { reads, writes, expiries, .. } => {
            return prefetch_part(state, has_quotas, reads, writes, expiries);
        }
        Command::Compare { comparisons, then, otherwise } => {
            comparisons.iter().try_for_each(|comparison| read(comparison.tree, &comparison.key))?;
            let writes = then.iter().chain(otherwise);
            let removed = writes.filter(|write| write.value.is_none() || has_quotas);
            removed.into_iter().try_for_each(|write| read(write.tree, &write.key))?;
        }
        Command::Counter(counter) => read(TreeId::COUNTERS, counter.name())?,
        Command::Lock(lock) => read(TreeId::LOCKS, lock.name())?,
        Command::CountMany { additions } => {
            for addition in additions {
                read(TreeId::COUNTERS, &addition.name)?;
            }
        }
        Command::Expiry(expiry) => {
            read(expiry.tree(), expiry.key())?;
            read(TreeId::EXPIRY, &record_key(expiry.tree(), expiry.key()))?;
        }
        Command::Owned(OwnedCommand::Insert { tree, key, .. }) => read(*tree, key)?,
        Command::Strings { watched, operations } => {
            watched.iter().try_for_each(|watched| read(watched.tree, &watched.key))?;
            for (tree, key) in operations.iter().flat_map(|operation| operation.keys()) {
                read(tree, key)?;
                read(TreeId::EXPIRY, &record_key(tree, key))?;
            }
        }
        Command::Owned(OwnedCommand::InsertNext { .. } | OwnedCommand::SetNext { .. })
        | Command::SettleDue { .. }
        | Command::SetQuota { .. }
        | Command::CreateTree { .. }
        | Command::DropTree { .. }
        | Command::ClearTree { .. }
        | Command::Pop { .. }
        | Command::ReserveIds { .. } => {}
    }
    Ok(prefetched)
}

/// As [`prefetch`], for what a transaction read and writes.
pub(crate) fn prefetch_part(
    state: &Arc<State>,
    has_quotas: bool,
    reads: &[KeyRead],
    writes: &[Write],
    expiries: &[ExpiryCommand],
) -> Result<Prefetched> {
    let mut prefetched = Prefetched::of(state);
    let looked_at = writes.iter().filter(|write| write.value.is_none() || has_quotas);
    let removed = looked_at.map(|write| (write.tree, &write.key));
    for (tree, key) in reads.iter().map(|read| (read.tree, &read.key)).chain(removed) {
        prefetched.read(state, tree, key)?;
    }
    for expiry in expiries {
        let (tree, key) = (expiry.tree(), expiry.key());
        prefetched.read(state, tree, key)?;
        prefetched.read(state, TreeId::EXPIRY, &record_key(tree, key))?;
    }
    Ok(prefetched)
}
