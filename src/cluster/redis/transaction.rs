//! Operations on keys of several partitions, as one [transaction](crate::cluster::transaction).
//!
//! The same function as in the log says what they mean ([`apply`]), on slots that are read here.
//!
//! **Times to live.** A transaction reads and writes values; a time to live it can only take away. So keys are given
//! none here: what would, is refused, as it is told in [`NO_TIME`]. Whether a key has one is read beside the
//! transaction: one that is given to a key while a transaction rewrites that key may be lost.
//!
//! **Hashes.** They are removed and overwritten as keys are, but their fields are not reached from here: what would, is
//! refused ([`NO_FIELDS`]). What keeps fields without a key from staying for ever is told to the partitions *before* the
//! commit: that these hashes are to be looked at in a minute.

use std::collections::BTreeMap;

use dogsled_net::resp::Value;
use dogsled_storage::TreeId;
use dogsled_storage::hashes::HashId;
use dogsled_storage::strings::{Carried, Slot, StringAction, StringsOperation, StringsReply, apply};
use futures_util::future::try_join_all;

use super::database::{Database, Watched, failed};
use super::tree_name;
use crate::IVec;
use crate::cluster::Error;
use crate::cluster::transaction::{ConflictableTransactionError, Transaction, TransactionError, abort};

/// See the [module](self).
const NO_TIME: &str =
    "CROSSSLOT keys of several partitions, and a time to live among them: give the keys a common {tag}";

const NO_FIELDS: &str =
    "CROSSSLOT keys of several partitions, and fields of hashes among them: give the keys a common {tag}";

/// Why nothing was done.
enum Refused {
    Changed,
    NoTime,
    NoFields,
    Failed(Error),
}

type Key = (TreeId, IVec);

/// Carries out all of it at one moment; `None`: what is watched has changed.
pub(super) async fn carry_out(
    database: &Database,
    watched: &[Watched],
    operations: &[StringsOperation],
) -> Result<Option<Vec<StringsReply>>, Value> {
    let client = &database.client;
    let done = client.transaction(|tx| run(database, tx, watched, operations)).await;
    match done {
        Ok(replies) => Ok(Some(replies)),
        Err(TransactionError::Abort(Refused::Changed)) => Ok(None),
        Err(TransactionError::Abort(Refused::NoFields)) => Err(Value::error(NO_FIELDS)),
        Err(TransactionError::Abort(Refused::Failed(error))) => Err(failed(&error)),
        Err(TransactionError::Abort(Refused::NoTime)) => Err(Value::error(NO_TIME)),
        Err(TransactionError::Conflict { attempts }) => {
            let why = format!("other writers came between, {attempts} times");
            Err(failed(&Error::Unavailable(why)))
        }
        Err(TransactionError::OutcomeUnknown { why, .. }) => Err(failed(&Error::OutcomeUnknown(why))),
        Err(TransactionError::Cluster(error)) => Err(failed(&error)),
    }
}

async fn run(
    database: &Database,
    tx: Transaction,
    watched: &[Watched],
    operations: &[StringsOperation],
) -> Result<Vec<StringsReply>, ConflictableTransactionError<Refused>> {
    let client = &database.client;
    if operations.iter().any(|operation| matches!(operation.action, StringAction::Hash(_))) {
        return abort(Refused::NoFields);
    }
    for watched in watched {
        let tree = client.tree(tree_name(watched.database.0));
        if tx.version(&tree, &watched.key).await? != watched.version {
            return abort(Refused::Changed);
        }
    }
    // Keys that are overwritten unseen are not read.
    let mut slots: BTreeMap<Key, Slot> = BTreeMap::new();
    let mut wanted: BTreeMap<TreeId, Vec<IVec>> = BTreeMap::new();
    for operation in operations {
        for (tree, key) in operation.keys() {
            // Also what is overwritten: it may be a hash.
            let slot = Slot::default();
            slots.entry((tree, key.clone())).or_insert_with(|| {
                if !slot.is_blind {
                    wanted.entry(tree).or_default().push(key.clone());
                }
                slot
            });
        }
    }
    let mut now_ms = 0;
    for (number, keys) in wanted {
        let tree = client.tree(tree_name(number.0));
        let values = tx.get_many(&tree, &keys).await?;
        let times = try_join_all(keys.iter().map(|key| database.expires(number.0, key))).await?;
        for ((key, value), (at_ms, now)) in keys.into_iter().zip(values).zip(times) {
            now_ms = now_ms.max(now);
            slots.insert((number, key), Slot::stored(value, at_ms.flatten()));
        }
    }
    let before = slots.clone();
    let mut carried = Carried::default();
    let mut replies = Vec::with_capacity(operations.len());
    for operation in operations {
        let place = (operation.tree, operation.key.clone());
        let mut slot = slots.remove(&place).expect("every key has a slot");
        let other = match &operation.action {
            StringAction::Transfer { tree, key, .. } => slots.get_mut(&(*tree, key.clone())),
            _ => None,
        };
        if matches!(operation.action, StringAction::Transfer { .. }) && slot.hash.is_some() {
            return abort(Refused::NoFields);
        }
        replies.push(apply(&operation.action, now_ms, &mut carried, &mut slot, other));
        slots.insert(place, slot);
    }
    let mut suspected: Vec<(Key, HashId)> = Vec::new();
    for ((number, key), slot) in slots {
        let was = &before[&(number, key.clone())];
        if let Some(hash) = &was.hash
            && slot.hash.is_none()
        {
            suspected.push(((number, key.clone()), hash.id));
        }
        if slot.is_there()
            && slot.expires_ms.is_some()
            && (slot.is_written || slot.expires_ms != was.expires_ms)
        {
            return abort(Refused::NoTime);
        }
        let tree = client.tree(tree_name(number.0));
        match slot.encode() {
            Some(value) if slot.is_written || slot.expires_ms != was.expires_ms => {
                tx.put(&tree, key, value)?
            }
            None if slot.is_written && was.is_there() => tx.delete(&tree, key)?,
            _ => {}
        }
    }
    if let Err(error) = try_join_all(suspected.into_iter().map(|(key, id)| suspect(database, key, id))).await
    {
        return abort(Refused::Failed(error));
    }
    Ok(replies)
}

/// Has it looked at in a minute whether a hash can still be reached.
async fn suspect(database: &Database, (tree, key): Key, id: HashId) -> Result<(), Error> {
    let group = database.client.core().group_of(&key, database.client.until()).await?;
    let operation = StringsOperation { tree, key, action: StringAction::Suspect { id } };
    database.submit(group, Vec::new(), &[], vec![operation]).await.map(drop)
}
