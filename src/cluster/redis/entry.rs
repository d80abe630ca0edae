//! How commands become entries of the log: which group they are of, how many of them one entry takes, and by which names
//! it calls their databases.

use dogsled_replication::ring::{self, slots};
use dogsled_storage::command::KeyRead;
use dogsled_storage::strings::{StringAction, StringsOperation};
use dogsled_storage::{Fence, TreeId};

use super::database::{Data, Watched};
use super::gather::may_share;
use super::tree_name;
use crate::IVec;

/// The most operations, and about the most bytes, of one entry that a pipeline becomes.
pub(super) const ENTRY_OPERATIONS: usize = 1024;
const ENTRY_BYTES: usize = 4 << 20;

/// The most operations of one entry that write anew what is there: so many values of any length are not too much for a list
/// ([`Work`](dogsled_storage::strings::Work)), so that nothing is refused for what is done with it.
const ENTRY_REWRITES: usize = 64;

/// What goes into one entry, in this order.
#[derive(Default)]
pub(super) struct Filling {
    operations: usize,
    bytes: usize,
    rewrites: usize,
    is_full: bool,
}

impl Filling {
    /// Whether these operations, of so many bytes, still fit. What comes first does.
    pub(super) fn fits(&mut self, operations: &[StringsOperation], bytes: usize) -> bool {
        let is_copy = |operation: &StringsOperation| {
            matches!(operation.action, StringAction::Transfer { copy: true, .. })
        };
        // How much that comes to nobody knows.
        let is_alone = operations.iter().any(is_copy);
        let rewrites = operations.iter().filter(|operation| operation.action.rewrites()).count();
        let first = self.operations == 0;
        let after = Filling {
            operations: self.operations + operations.len(),
            bytes: self.bytes + bytes,
            rewrites: self.rewrites + rewrites,
            is_full: is_alone,
        };
        let is_too_much = self.is_full
            || is_alone
            || after.operations > ENTRY_OPERATIONS
            || after.bytes > ENTRY_BYTES
            || after.rewrites > ENTRY_REWRITES;
        if is_too_much && !first {
            return false;
        }
        *self = after;
        true
    }
}

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
    let mut filling = Filling::default();
    let count = commands.iter().take_while(|(_, data)| filling.fits(&data.operations, data.bytes())).count();
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
