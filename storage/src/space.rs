//! Which commands may be carried out when a disk is [nearly full](GroupCommand::asks_for_space), and
//! [`LowDisk`]: when that is.
//!
//! # Where it is asked
//!
//! Before a command is logged, by whoever is about to log it; never when it is evaluated. How full a disk is
//! differs between replicas and from one moment to the next, and what they make of an entry must not. So an
//! entry that is in the log is always carried out, and the mark has to leave room for those under way.
//!
//! # What is let through
//!
//! What gives space back (removes, drops, clears), what ends something (sessions, leases, transactions that are
//! under way), and what keeps alive what is there already (renewals). A remove is an entry, too, and takes room
//! in the log until a checkpoint lets go of it: that is what the reserve below the mark is for. Whatever stores
//! something, or may, is refused; so is what would make a name, a number or a lock.

use crate::command::{Command, Write};
use crate::disk::Space;
use crate::expiry::ExpiryCommand;
use crate::group::{GroupCommand, Operation};
use crate::hashes::HashAction;
use crate::lock::LockCommand;
use crate::strings::StringAction;
use crate::transaction::Part;

/// The most that is kept free if nobody says how much.
pub const DEFAULT_LOW_MARK: u64 = 256 << 20;
/// The part of a small file system that is kept free instead.
const DEFAULT_SHARE: u64 = 20;
/// Writes go on once there is a quarter more than the mark, so that they do not stop and go with every segment
/// that comes and goes.
const CLEARS_ABOVE: u64 = 4;

/// Whether a file system has less free than it should; keeps to what it said until there is clearly more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct LowDisk {
    mark: Option<u64>,
    low: bool,
}

impl LowDisk {
    /// With a mark in bytes; 0: never low. `None`: 256 MiB, or a twentieth of a file system smaller than 5 GiB.
    pub fn new(mark: Option<u64>) -> LowDisk {
        LowDisk { mark, low: false }
    }

    /// The mark on a file system of that size.
    pub fn mark(&self, total: u64) -> u64 {
        self.mark.unwrap_or_else(|| DEFAULT_LOW_MARK.min(total / DEFAULT_SHARE))
    }

    /// Takes note of how it is now; whether that is low.
    pub fn see(&mut self, space: Space) -> bool {
        let mark = self.mark(space.total);
        let enough = if self.low { mark.saturating_add(mark / CLEARS_ABOVE) } else { mark };
        self.low = mark > 0 && space.free < enough;
        self.low
    }
}

impl GroupCommand {
    /// Whether it is refused when space is low; see the [module](self).
    pub fn asks_for_space(&self) -> bool {
        match &self.operation {
            Operation::Nothing
            | Operation::OpenSession { .. }
            | Operation::RenewSession { .. }
            | Operation::CloseSession { .. }
            | Operation::ExpireSessions { .. }
            // An abort is a decision that is remembered, but without it locks would stay.
            | Operation::Settle { .. }
            | Operation::Resolve { .. }
            | Operation::Forget { .. } => false,
            Operation::Command(command) | Operation::Fenced { command, .. } => command.asks_for_space(),
            Operation::Prepare(prepare) => part_stores(&prepare.part),
            // Refused, the transaction is not committed, and is settled as aborted.
            Operation::Commit(commit) => part_stores(&commit.part),
        }
    }
}

impl Command {
    /// As [`GroupCommand::asks_for_space`].
    pub fn asks_for_space(&self) -> bool {
        match self {
            Command::DropTree { .. }
            // Which limits what is stored.
            | Command::SetQuota { .. }
            | Command::ClearTree { .. }
            | Command::Remove { .. }
            | Command::Pop { .. }
            | Command::SettleDue { .. } => false,
            Command::CompareAndSwap { new, .. } => new.is_some(),
            Command::Batch { writes } => store(writes),
            Command::Transact { writes, expiries, .. } => store(writes) || prolong(expiries),
            Command::Compare { then, otherwise, .. } => store(then) || store(otherwise),
            Command::Expiry(expiry) => prolong(std::slice::from_ref(expiry)),
            Command::Lock(lock) => takes_lock(lock),
            Command::Strings { operations, .. } => {
                operations.iter().any(|operation| action_stores(&operation.action))
            }
            Command::CreateTree { .. }
            | Command::Insert { .. }
            | Command::Put { .. }
            | Command::ReserveIds { .. }
            | Command::Counter(_)
            | Command::CountMany { .. }
            | Command::Owned(_) => true,
        }
    }
}

fn takes_lock(lock: &LockCommand) -> bool {
    match lock {
        LockCommand::TryAcquire { .. } | LockCommand::Acquire { .. } | LockCommand::AcquireOwned { .. } => {
            true
        }
        LockCommand::Renew { .. }
        | LockCommand::Release { .. }
        | LockCommand::Expire { .. }
        | LockCommand::RenewWait { .. }
        | LockCommand::CancelWait { .. } => false,
    }
}

fn store(writes: &[Write]) -> bool {
    writes.iter().any(|write| write.value.is_some())
}

fn prolong(expiries: &[ExpiryCommand]) -> bool {
    expiries.iter().any(|expiry| match expiry {
        ExpiryCommand::Insert { .. } | ExpiryCommand::Swap { .. } | ExpiryCommand::Owned { .. } => true,
        // A time to live is how many give space back, and a key has only one.
        ExpiryCommand::Set { .. } | ExpiryCommand::Clear { .. } | ExpiryCommand::Get { .. } => false,
        ExpiryCommand::Strings { actions, .. } => actions.0.iter().any(action_stores),
        ExpiryCommand::Lock { command, .. } => takes_lock(command),
        ExpiryCommand::Held { .. } | ExpiryCommand::Lives { .. } => false,
    })
}

fn part_stores(part: &Part) -> bool {
    store(&part.writes) || prolong(&part.expiries)
}

fn action_stores(action: &StringAction) -> bool {
    match action {
        StringAction::Get
        | StringAction::Length
        | StringAction::Range { .. }
        | StringAction::Exists
        | StringAction::Expires
        | StringAction::RequireAbsent { .. }
        | StringAction::Delete
        | StringAction::Take
        | StringAction::GetAndExpire { .. }
        | StringAction::Expire { .. }
        | StringAction::Persist
        | StringAction::Kind
        | StringAction::Suspect { .. }
        | StringAction::Clear => false,
        StringAction::Hash(action) => match action {
            HashAction::Set { .. }
            | HashAction::SetAbsent { .. }
            | HashAction::Add { .. }
            | HashAction::AddFloat { .. } => true,
            HashAction::Get { .. }
            | HashAction::GetMany { .. }
            | HashAction::Delete { .. }
            | HashAction::Exists { .. }
            | HashAction::Length
            | HashAction::ValueLength { .. }
            | HashAction::All
            | HashAction::Page { .. } => false,
        },
        StringAction::Set { .. }
        | StringAction::Append { .. }
        | StringAction::Overwrite { .. }
        | StringAction::Add { .. }
        | StringAction::AddFloat { .. }
        | StringAction::Transfer { .. }
        // It is kept for as long as the entry of the log.
        | StringAction::Tell { .. } => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::TreeId;
    use crate::{IVec, SessionId};

    fn at(free: u64) -> Space {
        Space { total: 1 << 40, free }
    }

    #[test]
    fn it_is_low_below_the_mark_and_until_there_is_a_quarter_more() {
        let mut disk = LowDisk::new(Some(1_000));
        let seen: Vec<bool> =
            [1_000, 999, 1_000, 1_249, 1_250, 1_000, 0].map(|free| disk.see(at(free))).into();
        assert_eq!(seen, [false, true, true, true, false, false, true]);
    }

    #[test]
    fn nobody_has_to_say_a_mark_and_zero_is_none() {
        assert_eq!(LowDisk::new(None).mark(1 << 40), DEFAULT_LOW_MARK);
        assert_eq!(LowDisk::new(None).mark(200 << 20), 10 << 20);
        assert!(!LowDisk::new(Some(0)).see(at(0)));
        // What does not tell its size is not low either.
        assert!(!LowDisk::new(None).see(Space { total: 0, free: 0 }));
    }

    #[test]
    fn what_removes_goes_through_and_what_stores_does_not() {
        let (tree, key, value) = (TreeId(0), IVec::from("k"), IVec::from("v"));
        let write = |value: Option<&IVec>| Write { tree, key: key.clone(), value: value.cloned() };
        let stores = [
            Command::Insert { tree, key: key.clone(), value: value.clone() },
            Command::Batch { writes: vec![write(None), write(Some(&value))] },
            Command::CompareAndSwap { tree, key: key.clone(), old: None, new: Some(value.clone()) },
            Command::CreateTree { name: key.clone() },
        ];
        let frees = [
            Command::Remove { tree, key: key.clone() },
            Command::Batch { writes: vec![write(None)] },
            Command::CompareAndSwap { tree, key: key.clone(), old: Some(value.clone()), new: None },
            Command::ClearTree { tree },
            Command::Lock(LockCommand::Expire { name: key.clone() }),
        ];
        let in_a_group = |operation| GroupCommand { session: None, time_ms: 0, trees: vec![], operation };
        for command in stores {
            assert!(command.asks_for_space(), "{command:?}");
            let fenced = Operation::Fenced { fences: vec![], command: command.clone() };
            assert!(in_a_group(fenced).asks_for_space());
            assert!(in_a_group(Operation::Command(command)).asks_for_space());
        }
        for command in frees {
            assert!(!command.asks_for_space(), "{command:?}");
            assert!(!in_a_group(Operation::Command(command)).asks_for_space());
        }
        assert!(!in_a_group(Operation::RenewSession { session: SessionId(1) }).asks_for_space());
    }
}
