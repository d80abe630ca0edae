//! How commands become entries of the log: which group they are of, how many of them one entry takes, and by which names
//! it calls their databases.

use dogsled_replication::ring::{self, slots};
use dogsled_storage::command::KeyRead;
use dogsled_storage::strings::StringsOperation;
use dogsled_storage::{Fence, TreeId};

use super::database::{Data, Watched};
use super::gather::may_share;
use super::tree_name;
use crate::IVec;

/// The most operations, and about the most bytes, of one entry that a pipeline becomes.
pub(super) const ENTRY_OPERATIONS: usize = 1024;
pub(super) const ENTRY_BYTES: usize = 4 << 20;

/// The group of a key, in whichever database.
pub(super) fn group_of_key(key: &[u8], partitions: u32) -> u32 {
    slots::group_of_slot(slots::slot_of(key), partitions)
}

/// The group that has all these keys and locks; `None`: there are several.
pub(super) fn group_of_all(
    partitions: u32,
    operations: &[StringsOperation],
    watched: &[Watched],
    fences: &[Fence],
) -> Option<u32> {
    let keys = operations.iter().flat_map(|operation| operation.keys()).map(|(_, key)| key);
    let keys = keys.chain(watched.iter().map(|watched| &watched.key));
    let groups = keys.map(|key| group_of_key(key, partitions));
    // Locks are no keys of Redis, and lie elsewhere.
    let groups = groups.chain(fences.iter().map(|fence| ring::group_of(&fence.lock, partitions)));
    let mut found = None;
    for group in groups {
        if found.is_some_and(|found| found != group) {
            return None;
        }
        found = Some(group);
    }
    // What has no keys may be anywhere.
    Some(found.unwrap_or(1))
}

/// How many of these commands, of one group, fit into one entry; and their operations, if others may share it.
pub(super) fn entry(commands: &[(usize, Data)]) -> (usize, Option<Vec<StringsOperation>>) {
    let (mut operations, mut bytes, mut count) = (0, 0, 0);
    for (_, data) in commands {
        let (more, larger) = (data.operations.len(), data.bytes());
        if count > 0 && (operations + more > ENTRY_OPERATIONS || bytes + larger > ENTRY_BYTES) {
            break;
        }
        (operations, bytes, count) = (operations + more, bytes + larger, count + 1);
    }
    let commands = &commands[..count];
    let is_shared = commands.iter().all(|(_, data)| data.operations.iter().all(may_share));
    (count, is_shared.then(|| operations_of(commands)))
}

pub(super) fn operations_of(commands: &[(usize, Data)]) -> Vec<StringsOperation> {
    commands.iter().flat_map(|(_, data)| data.operations.iter().cloned()).collect()
}

/// Has numbers of databases replaced by their places in a list of names, which is returned.
pub(super) fn name_trees(operations: &mut [StringsOperation], watched: &mut [KeyRead]) -> Vec<IVec> {
    let mut databases: Vec<TreeId> = Vec::new();
    let mut number = |database: &mut TreeId| {
        let known = databases.iter().position(|known| known == database);
        let place = known.unwrap_or_else(|| {
            databases.push(*database);
            databases.len() - 1
        });
        *database = TreeId(place as u32);
    };
    operations.iter_mut().flat_map(StringsOperation::trees_mut).for_each(&mut number);
    watched.iter_mut().for_each(|read| number(&mut read.tree));
    databases.iter().map(|database| tree_name(database.0)).collect()
}
