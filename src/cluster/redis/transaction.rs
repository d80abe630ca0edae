//! Operations on keys of several partitions, as one [transaction](crate::cluster::transaction).
//!
//! The same function as in the log says what they mean ([`apply`]), on slots that are read here: the value, or where nobody
//! needs that only of what kind it is, the time to live, and of a hash the fields that the operations need. What the slots have become is then written by operations on
//! one key each ([`difference`]), which the partitions carry out where the transaction is committed.
//!
//! **What was read is so at the commit**, as the version of every key is looked at again there. Times to live and fields are
//! read *after* the version was, and whoever changes them writes the key anew: `EXPIRE` and `PERSIST` do, and so does
//! everything on fields. Only a time to live that another client than Redis's gives to a key while a transaction rewrites that
//! key ([`Tree::expire`](crate::cluster::Tree::expire)) may be lost.
//!
//! **Locks** are looked at in the same way, and theirs may be any partitions.

use std::collections::{BTreeMap, BTreeSet};

use dogsled_net::resp::Value;
use dogsled_storage::codec::Listed;
use dogsled_storage::command::MAX_COMMAND_LENGTH;
use dogsled_storage::hashes::{HashAction, HashId, Needs};
use dogsled_storage::strings::{
    Carried, KIND_HASH, Slot, StringAction, StringsFailure, StringsOperation, StringsReply, Work, apply,
    difference,
};
use dogsled_storage::{Fence, TreeId};

use super::database::{Database, MOST_IN_REPLY, Watched, failed, too_much};
use super::tree_name;
use crate::cluster::Error;
use crate::cluster::transaction::{ConflictableTransactionError, Transaction, TransactionError, abort};
use crate::{FencingToken, IVec};

/// Why nothing was done.
enum Refused {
    Changed,
    NotHeld { lock: IVec, token: FencingToken },
}

type Key = (TreeId, IVec);

/// So many keys are read at a time, so that it is seen in time when they are too much.
const READ_TOGETHER: usize = 1024;
const READ_FIRST: usize = 16;
/// More are read together as long as those before had no more bytes than this.
const READ_BYTES: usize = 4 << 20;

/// What is written of one key is written by one command of its partition, which has 16 MiB by default.
const LARGEST_PART: usize = 16 << 20;
const TOO_LARGE_TO_CARRY: &str =
    "a hash of more than 16 MiB is not carried to another partition; a common {tag} keeps both keys in one";

/// What ids of hashes that were found begin with here. Those of hashes that are made begin with nought.
const FOUND: u64 = 1;

/// Carries out all of it at one moment, under locks; `None`: what is watched has changed.
pub(super) async fn carry_out(
    database: &Database,
    watched: &[Watched],
    fences: &[Fence],
    operations: &[StringsOperation],
) -> Result<Option<Vec<StringsReply>>, Value> {
    let client = &database.client;
    let done = client.transaction(|tx| run(database, tx, watched, fences, operations)).await;
    match done {
        Ok(replies) => Ok(Some(replies)),
        Err(TransactionError::Abort(Refused::Changed)) => Ok(None),
        Err(TransactionError::Abort(Refused::NotHeld { lock, token })) => {
            Err(failed(&Error::LockNotHeld { lock, token, current: None }))
        }
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
    fences: &[Fence],
    operations: &[StringsOperation],
) -> Result<Vec<StringsReply>, ConflictableTransactionError<Refused>> {
    let client = &database.client;
    for Fence { lock, token } in fences {
        if !tx.holds_lock(lock, *token).await? {
            return abort(Refused::NotHeld { lock: lock.clone(), token: *token });
        }
    }
    let mut slots: BTreeMap<Key, Slot> = BTreeMap::new();
    let (mut read, collected) = (0, database.held.collect());
    let (needed, mut seen) = (keys_needed(operations), keys_seen(operations));
    for watched in watched {
        seen.entry(watched.database).or_default().insert(watched.key.clone());
    }
    for (number, keys) in &needed {
        let tree = client.tree(tree_name(number.0));
        let keys: Vec<IVec> = keys.iter().cloned().collect();
        let (mut rest, mut together) = (&keys[..], READ_FIRST);
        while !rest.is_empty() {
            let (keys, later) = rest.split_at(together.min(rest.len()));
            rest = later;
            let values = tx.get_many(&tree, keys).await?;
            let bytes = values.iter().flatten().map(|value| value.len()).sum::<usize>();
            // Nobody knows before how long they are.
            together =
                if bytes < READ_BYTES { (together * 2).min(READ_TOGETHER) } else { (together / 4).max(1) };
            read += bytes;
            if !collected.add(bytes) || read > MOST_IN_REPLY {
                let why =
                    "the keys have more than 512 MiB together, or than there is room for now; name fewer";
                return Err(Error::Invalid(why.to_owned()).into());
            }
            let found = keys.iter().cloned().zip(values);
            slots.extend(found.map(|(key, value)| ((*number, key), Slot::stored(value, None))));
        }
    }
    for (number, keys) in seen {
        let tree = client.tree(tree_name(number.0));
        let is_needed = |key: &IVec| needed.get(&number).is_some_and(|needed| needed.contains(key));
        let keys: Vec<IVec> = keys.into_iter().filter(|key| !is_needed(key)).collect();
        for keys in keys.chunks(READ_TOGETHER) {
            let found = keys.iter().cloned().zip(tx.kinds(&tree, keys).await?);
            slots.extend(found.map(|(key, kind)| ((number, key), Slot::stored(kind, None))));
        }
    }
    for watched in watched {
        let tree = client.tree(tree_name(watched.database.0));
        if tx.version_read(&tree, &watched.key)? != watched.version {
            return abort(Refused::Changed);
        }
    }
    let now_ms = learn(database, &tx, operations, &mut slots).await?;
    name_hashes(&mut slots);
    let before = slots.clone();
    let mut carried = Carried::default();
    let mut replies = Vec::with_capacity(operations.len());
    let (mut told, mut work) = (0, Work::default());
    for operation in operations {
        let place = (operation.tree, operation.key.clone());
        let mut slot = slots.remove(&place).expect("every key has a slot");
        let other = match &operation.action {
            StringAction::Transfer { tree, key, .. } => slots.get_mut(&(*tree, key.clone())),
            _ => None,
        };
        let reply = match work.is_too_much(&operation.action, &slot) {
            true => StringsReply::Failed(StringsFailure::TooMuchWork),
            false => apply(&operation.action, now_ms, &mut carried, &mut slot, other),
        };
        // What was long is copied here, of many that were queued.
        tokio::task::consume_budget().await;
        // Until they are written down they share what was read, however often it is told.
        told += reply.bytes();
        if told > MOST_IN_REPLY {
            return Err(too_much().into());
        }
        replies.push(reply);
        slots.insert(place, slot);
    }
    let mut made = 0;
    for ((number, key), slot) in slots {
        let actions = difference(&before[&(number, key.clone())], &slot);
        let operation = |action: &StringAction| StringsOperation {
            tree: number,
            key: key.clone(),
            action: action.clone(),
        };
        let own = actions.iter().map(|action| operation(action).bytes()).sum::<usize>();
        made += own;
        if own > LARGEST_PART {
            return Err(Error::Invalid(TOO_LARGE_TO_CARRY.to_owned()).into());
        }
        if made > MAX_COMMAND_LENGTH {
            return Err(
                Error::Invalid("a transaction brings or makes at most 1 GiB; split it".to_owned()).into()
            );
        }
        if !actions.is_empty() {
            tx.apply_actions(&client.tree(tree_name(number.0)), key, actions)?;
        }
    }
    Ok(replies)
}

/// The keys of whose values the operations need the bytes.
fn keys_needed(operations: &[StringsOperation]) -> BTreeMap<TreeId, BTreeSet<IVec>> {
    let mut needed: BTreeMap<TreeId, BTreeSet<IVec>> = BTreeMap::new();
    for operation in operations.iter().filter(|operation| operation.needs_value()) {
        needed.entry(operation.tree).or_default().insert(operation.key.clone());
    }
    needed
}

/// All their keys, also those that are overwritten: there may be a hash.
fn keys_seen(operations: &[StringsOperation]) -> BTreeMap<TreeId, BTreeSet<IVec>> {
    let mut seen: BTreeMap<TreeId, BTreeSet<IVec>> = BTreeMap::new();
    for (tree, key) in operations.iter().flat_map(StringsOperation::keys) {
        seen.entry(tree).or_default().insert(key.clone());
    }
    seen
}

/// Gives every hash an id that no other has here, nor any that is made or copied: those that it has in its group may be those
/// of hashes of other groups, and one that was moved would be taken for what is there already.
fn name_hashes(slots: &mut BTreeMap<Key, Slot>) {
    let hashes = slots.values_mut().filter_map(|slot| slot.hash.as_mut());
    for (ordinal, hash) in (0..).zip(hashes) {
        hash.id = HashId { base: FOUND, ordinal };
    }
}

/// What operations need to know of a key beside its value.
#[derive(Default)]
struct Wanted<'a> {
    /// When it ends.
    time: bool,
    /// Of the hash that it may be.
    fields: BTreeSet<&'a IVec>,
    whole: bool,
    is_hash: bool,
}

/// Whether an operation does the same, and has the same replied, whatever time it is and whenever the key ends.
fn is_timeless(action: &StringAction) -> bool {
    use StringAction::{Delete, Exists, Get, Hash, Kind, Length, Range, RequireAbsent, Set, Take, Tell};
    match action {
        Get | Length | Range { .. } | Exists | Kind | RequireAbsent { .. } | Delete | Take | Tell { .. } => {
            true
        }
        // Of one that is overwritten for good it does not matter when it would have ended.
        Set { when, .. } => when.is_none(),
        Hash(action) => action.is_read(),
        _ => false,
    }
}

/// Learns when the keys end, and what the operations need of hashes, after the versions of the keys were read; and the time
/// of the log.
async fn learn(
    database: &Database,
    tx: &Transaction,
    operations: &[StringsOperation],
    slots: &mut BTreeMap<Key, Slot>,
) -> Result<u64, Error> {
    let mut wanted: BTreeMap<Key, Wanted<'_>> = BTreeMap::new();
    for operation in operations {
        if !is_timeless(&operation.action) {
            for (tree, key) in operation.keys() {
                wanted.entry((tree, key.clone())).or_default().time = true;
            }
        }
        let needs = match &operation.action {
            StringAction::Hash(action) => action.needs(),
            // Where it goes to it is made anew.
            StringAction::Transfer { .. } => Needs::Whole,
            _ => continue,
        };
        let wanted = wanted.entry((operation.tree, operation.key.clone())).or_default();
        wanted.is_hash = true;
        match needs {
            Needs::Head => {}
            Needs::Fields(fields) => wanted.fields.extend(fields),
            Needs::Page(..) | Needs::Whole => wanted.whole = true,
        }
    }
    let mut asked: Vec<StringsOperation> = Vec::new();
    for (place, wanted) in &wanted {
        let ((tree, key), slot) = (place.clone(), &slots[place]);
        if wanted.time {
            asked.push(StringsOperation { tree, key: key.clone(), action: StringAction::Expires });
        }
        if slot.hash.is_none() || !wanted.is_hash {
            continue;
        }
        // Bytes that somebody has copied here are none.
        asked.push(StringsOperation { tree, key: key.clone(), action: StringAction::Kind });
        if wanted.whole {
            asked.push(StringsOperation { tree, key, action: StringAction::Hash(HashAction::All) });
        } else if !wanted.fields.is_empty() {
            let fields = Listed(wanted.fields.iter().map(|field| (*field).clone()).collect());
            let action = StringAction::Hash(HashAction::GetMany { fields });
            asked.push(StringsOperation { tree, key, action });
        }
    }
    if asked.is_empty() {
        // Nothing needs to know what time it is.
        return Ok(0);
    }
    let replies =
        database.look_at_all(database.partitions().await?, &asked.iter().collect::<Vec<_>>()).await?;
    // So that it is looked at again whether all is still of the version that was read.
    tx.has_read_beside()?;
    let mut latest_ms = 0;
    for (operation, reply) in asked.into_iter().zip(replies) {
        let slot = slots.get_mut(&(operation.tree, operation.key)).expect("asked for a slot");
        match (reply, operation.action, &mut slot.hash) {
            (StringsReply::Expires { at_ms, now_ms }, ..) => {
                latest_ms = latest_ms.max(now_ms);
                match at_ms {
                    // It has ended by the leader's clock, by which the log has not come so far: nobody sees it any more.
                    None => *slot = Slot::found(None, None),
                    // Of a key that is there by now and was not the version tells.
                    Some(at_ms) => slot.expires_ms = at_ms.filter(|_| slot.is_there()),
                }
            }
            (StringsReply::Integer(KIND_HASH), StringAction::Kind, _) => {}
            (_, StringAction::Kind, _) => *slot = Slot::found(None, None),
            (StringsReply::Pairs { pairs, more: None }, _, Some(hash)) => hash.learn_whole(pairs.0),
            (
                StringsReply::Values(values),
                StringAction::Hash(HashAction::GetMany { fields }),
                Some(hash),
            ) => {
                fields.0.into_iter().zip(values.0).for_each(|(field, value)| hash.learn(field, value));
            }
            (
                StringsReply::Failed(StringsFailure::TooMuch) | StringsReply::Pairs { more: Some(_), .. },
                ..,
            ) => {
                let what = "a hash is too large for a transaction over several partitions".to_owned();
                return Err(Error::Invalid(what));
            }
            // It is no hash any more, and the version tells.
            (_, _, hash) => {
                if let Some(hash) = hash {
                    hash.learn_whole([]);
                }
            }
        }
    }
    Ok(latest_ms)
}
