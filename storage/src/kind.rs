//! [`OperationKind`] and [`ReadKind`]: the one name that an operation has, in figures and reports as in
//! the API.
//!
//! Whoever counts commands has them as bytes: a leader does not decode what its state machine will. So the
//! kind of an encoded command is looked up ([`OperationKind::peek`]) in the few bytes that say it, which
//! costs nanoseconds and allocates nothing. That it is the kind of what the bytes decode to is for the
//! tests to say, which know every kind.

mod strings;

use crate::codec::GROUP_COMMAND_VERSION;
use crate::command::Command;
use crate::counter::CounterCommand;
use crate::expiry::ExpiryCommand;
use crate::group::{GroupCommand, GroupRead, Operation};
use crate::lock::{LockCommand, READ_WRITE};
use crate::owned::OwnedCommand;

macro_rules! kinds {
    ($(#[$doc:meta])* $kind:ident { $($variant:ident = $name:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[allow(missing_docs, reason = "each is documented by what it is the kind of")]
        pub enum $kind { $($variant,)* }

        impl $kind {
            /// All of them, each at the place that its number says.
            pub const ALL: &[$kind] = &[$($kind::$variant,)*];

            /// As the API calls it.
            pub fn name(self) -> &'static str {
                match self { $($kind::$variant => $name,)* }
            }
        }
    };
}

kinds! {
    /// What an entry of a group's log does, without what it does it to.
    OperationKind {
        Nothing = "nothing",
        OpenTree = "open_tree",
        DropTree = "drop_tree",
        Clear = "clear",
        Insert = "insert",
        Remove = "remove",
        CompareAndSwap = "compare_and_swap",
        ApplyBatch = "apply_batch",
        Pop = "pop",
        Transaction = "transaction",
        GenerateId = "generate_id",
        Put = "put",
        AddToCounters = "add_to_counters",
        SettleDue = "settle_due",
        Compare = "compare",
        CounterAdd = "counter_add",
        CounterAddWithin = "counter_add_within",
        CounterGet = "counter_get",
        CounterSet = "counter_set",
        CounterRemove = "counter_remove",
        CounterSetIf = "counter_set_if",
        LockTryAcquire = "lock_try_acquire",
        LockRenew = "lock_renew",
        LockRelease = "lock_release",
        LockExpire = "lock_expire",
        LockAcquire = "lock_acquire",
        LockRenewWait = "lock_renew_wait",
        LockCancelWait = "lock_cancel_wait",
        LockAcquireOwned = "lock_acquire_owned",
        ReadLockAcquire = "read_lock_acquire",
        WriteLockAcquire = "write_lock_acquire",
        SemaphoreAcquire = "semaphore_acquire",
        InsertWithTtl = "insert_with_ttl",
        CompareAndSwapWithTtl = "compare_and_swap_with_ttl",
        Expire = "expire",
        Persist = "persist",
        Ttl = "ttl",
        SessionInsert = "session_insert",
        InsertNext = "insert_next",
        SetNext = "set_next",
        ElectionProclaim = "election_proclaim",
        ElectionResign = "election_resign",
        RegistryRegister = "registry_register",
        RegistryDeregister = "registry_deregister",
        StringsGet = "strings_get",
        StringsSet = "strings_set",
        StringsEdit = "strings_edit",
        StringsAdd = "strings_add",
        KeyLook = "key_look",
        KeyDelete = "key_delete",
        KeyExpire = "key_expire",
        KeyMove = "key_move",
        HashGet = "hash_get",
        HashSet = "hash_set",
        HashAdd = "hash_add",
        HashDelete = "hash_delete",
        HashSuspect = "hash_suspect",
        Publish = "publish",
        Flush = "flush",
        Several = "several",
        SessionOpen = "session_open",
        SessionRenew = "session_renew",
        SessionClose = "session_close",
        SessionsExpire = "sessions_expire",
        TransactionPrepare = "transaction_prepare",
        TransactionCommit = "transaction_commit",
        TransactionSettle = "transaction_settle",
        TransactionResolve = "transaction_resolve",
        TransactionForget = "transaction_forget",
        SetTreeQuota = "set_tree_quota",
    }
}

kinds! {
    /// What is asked of a replica, without what of.
    ReadKind {
        Get = "get",
        GetMany = "get_many",
        Range = "range",
        Len = "len",
        CounterGet = "counter_get",
        LockHolder = "lock_holder",
        TreeNames = "tree_names",
        SessionEarliestExpiry = "session_earliest_expiry",
        LockTicket = "lock_ticket",
        Ttl = "ttl",
        TransactionValidate = "transaction_validate",
        TransactionCounts = "transaction_counts",
        StringsGet = "strings_get",
        KeyLook = "key_look",
        HashGet = "hash_get",
        Several = "several",
        LockHolders = "lock_holders",
        SessionList = "session_list",
        QuotaList = "quota_list",
        NextNumber = "next_number",
        GetKinds = "get_kinds",
    }
}

/// The tree of what the leaders of elections say, as clients and embedded databases call it.
pub const ELECTIONS_TREE_NAME: &str = "dogsled elections";
/// The tree of the instances of services, as clients and embedded databases call it.
pub const SERVICES_TREE_NAME: &str = "dogsled services";

impl OperationKind {
    /// That of a command of a group.
    pub fn of(command: &GroupCommand) -> OperationKind {
        OperationKind::of_operation(&command.operation).in_tree(command.trees.first().map(|tree| &tree[..]))
    }

    /// Elections and the registry are made of commands that others use as well: their trees tell them apart.
    fn in_tree(self, tree: Option<&[u8]>) -> OperationKind {
        let is = |name: &str| tree == Some(name.as_bytes());
        match self {
            // The client's put is a batch of one.
            OperationKind::Put | OperationKind::ApplyBatch if is(ELECTIONS_TREE_NAME) => {
                OperationKind::ElectionProclaim
            }
            OperationKind::Remove if is(ELECTIONS_TREE_NAME) => OperationKind::ElectionResign,
            OperationKind::SessionInsert if is(SERVICES_TREE_NAME) => OperationKind::RegistryRegister,
            OperationKind::Remove if is(SERVICES_TREE_NAME) => OperationKind::RegistryDeregister,
            other => other,
        }
    }

    /// What a lock is called of which so many permits of so many are taken.
    fn of_acquire(permits: u64, capacity: u64) -> OperationKind {
        const ALL: u64 = READ_WRITE as u64;
        match (permits, capacity) {
            (_, 1) => OperationKind::LockAcquire,
            (ALL, ALL) => OperationKind::WriteLockAcquire,
            (_, ALL) => OperationKind::ReadLockAcquire,
            _ => OperationKind::SemaphoreAcquire,
        }
    }

    fn of_operation(operation: &Operation) -> OperationKind {
        match operation {
            Operation::Nothing => OperationKind::Nothing,
            Operation::Command(command) | Operation::Fenced { command, .. } => {
                OperationKind::of_command(command)
            }
            Operation::OpenSession { .. } => OperationKind::SessionOpen,
            Operation::RenewSession { .. } => OperationKind::SessionRenew,
            Operation::CloseSession { .. } => OperationKind::SessionClose,
            Operation::ExpireSessions { .. } => OperationKind::SessionsExpire,
            Operation::Prepare(_) => OperationKind::TransactionPrepare,
            Operation::Commit(_) => OperationKind::TransactionCommit,
            Operation::Settle { .. } => OperationKind::TransactionSettle,
            Operation::Resolve { .. } => OperationKind::TransactionResolve,
            Operation::Forget { .. } => OperationKind::TransactionForget,
        }
    }

    /// That of a command.
    pub fn of_command(command: &Command) -> OperationKind {
        match command {
            Command::CreateTree { .. } => OperationKind::OpenTree,
            Command::DropTree { .. } => OperationKind::DropTree,
            Command::ClearTree { .. } => OperationKind::Clear,
            Command::Insert { .. } => OperationKind::Insert,
            Command::Remove { .. } => OperationKind::Remove,
            Command::CompareAndSwap { .. } => OperationKind::CompareAndSwap,
            Command::Batch { .. } => OperationKind::ApplyBatch,
            Command::Pop { .. } => OperationKind::Pop,
            Command::Transact { .. } => OperationKind::Transaction,
            Command::ReserveIds { .. } => OperationKind::GenerateId,
            Command::Put { .. } => OperationKind::Put,
            Command::CountMany { .. } => OperationKind::AddToCounters,
            Command::SettleDue { .. } => OperationKind::SettleDue,
            Command::Compare { .. } => OperationKind::Compare,
            Command::SetQuota { .. } => OperationKind::SetTreeQuota,
            Command::Strings { operations, .. } => {
                OperationKind::of_actions(operations.iter().map(|operation| &operation.action))
            }
            Command::Expiry(ExpiryCommand::Strings { actions, .. }) => OperationKind::of_actions(&actions.0),
            Command::Counter(CounterCommand::Add { .. }) => OperationKind::CounterAdd,
            Command::Counter(CounterCommand::AddWithin { .. }) => OperationKind::CounterAddWithin,
            Command::Counter(CounterCommand::Get { .. }) => OperationKind::CounterGet,
            Command::Counter(CounterCommand::Set { .. }) => OperationKind::CounterSet,
            Command::Counter(CounterCommand::Remove { .. }) => OperationKind::CounterRemove,
            Command::Counter(CounterCommand::SetIf { .. }) => OperationKind::CounterSetIf,
            Command::Lock(LockCommand::TryAcquire { .. }) => OperationKind::LockTryAcquire,
            Command::Lock(LockCommand::Renew { .. }) => OperationKind::LockRenew,
            Command::Lock(LockCommand::Release { .. }) => OperationKind::LockRelease,
            Command::Lock(LockCommand::Expire { .. }) => OperationKind::LockExpire,
            Command::Lock(LockCommand::Acquire { request, .. }) => {
                OperationKind::of_acquire(request.permits.into(), request.capacity.into())
            }
            Command::Lock(LockCommand::RenewWait { .. }) => OperationKind::LockRenewWait,
            Command::Lock(LockCommand::CancelWait { .. }) => OperationKind::LockCancelWait,
            Command::Lock(LockCommand::AcquireOwned { .. }) => OperationKind::LockAcquireOwned,
            Command::Expiry(ExpiryCommand::Insert { .. }) => OperationKind::InsertWithTtl,
            Command::Expiry(ExpiryCommand::Swap { .. }) => OperationKind::CompareAndSwapWithTtl,
            Command::Expiry(ExpiryCommand::Set { .. }) => OperationKind::Expire,
            Command::Expiry(ExpiryCommand::Clear { .. }) => OperationKind::Persist,
            Command::Expiry(ExpiryCommand::Get { .. }) => OperationKind::Ttl,
            // Which are parts of transactions only.
            Command::Expiry(
                ExpiryCommand::Lock { .. }
                | ExpiryCommand::Held { .. }
                | ExpiryCommand::Lives { .. }
                | ExpiryCommand::Owned { .. },
            ) => OperationKind::Transaction,
            Command::Owned(OwnedCommand::Insert { .. }) => OperationKind::SessionInsert,
            Command::Owned(OwnedCommand::InsertNext { .. }) => OperationKind::InsertNext,
            Command::Owned(OwnedCommand::SetNext { .. }) => OperationKind::SetNext,
        }
    }

    /// That of an encoded [`GroupCommand`]; `None` if it is none, or a kind that this
    /// program does not know. Bytes that are malformed further on may have one.
    ///
    /// ```
    /// use dogsled_storage::codec::encode_group_command;
    /// use dogsled_storage::kind::OperationKind;
    /// use dogsled_storage::{Command, GroupCommand, Operation, TreeId};
    ///
    /// let operation = Operation::Command(Command::Remove { tree: TreeId(0), key: "a".into() });
    /// let command = GroupCommand { session: None, time_ms: 7, trees: vec!["t".into()], operation };
    /// let kind = OperationKind::peek(&encode_group_command(&command)?);
    /// assert_eq!(kind.map(OperationKind::name), Some("remove"));
    /// # Ok::<(), dogsled_storage::Error>(())
    /// ```
    pub fn peek(encoded: &[u8]) -> Option<OperationKind> {
        let mut peek = Peek(encoded);
        peek.pass_head()?;
        let mut tree = None;
        for _ in 0..peek.number()? {
            let name = peek.bytes()?;
            tree.get_or_insert(name);
        }
        peek.operation().map(|kind| kind.in_tree(tree))
    }
}

/// Whether this holds for the name of a tree that an encoded [`GroupCommand`] names: one of those that it is about, or one
/// that it makes or limits; not one that it drops. It costs as little as [`OperationKind::peek`]. What cannot be decoded
/// names none.
///
/// ```
/// use dogsled_storage::codec::encode_group_command;
/// use dogsled_storage::kind::names_tree;
/// use dogsled_storage::{Command, GroupCommand, Operation, TreeId};
///
/// let operation = Operation::Command(Command::Remove { tree: TreeId(0), key: "a".into() });
/// let command = GroupCommand { session: None, time_ms: 7, trees: vec!["t".into()], operation };
/// let command = encode_group_command(&command)?;
/// assert!(names_tree(&command, |name| name == b"t") && !names_tree(&command, |name| name == b"a"));
/// # Ok::<(), dogsled_storage::Error>(())
/// ```
pub fn names_tree(encoded: &[u8], holds: impl FnMut(&[u8]) -> bool) -> bool {
    Peek(encoded).names_tree(holds).unwrap_or(false)
}

/// Whether an encoded [`GroupCommand`] drops the tree of this name. It costs as little as [`OperationKind::peek`].
pub fn drops_tree(encoded: &[u8], name: &[u8]) -> bool {
    Peek(encoded).dropped_tree().is_some_and(|dropped| dropped == name)
}

/// What is left to look at.
struct Peek<'a>(&'a [u8]);

impl<'a> Peek<'a> {
    /// What comes before the names of the trees.
    fn pass_head(&mut self) -> Option<()> {
        if self.byte()? != GROUP_COMMAND_VERSION {
            return None;
        }
        // The session's tag has three numbers; then comes the time.
        let numbers = if self.byte()? == 0 { 1 } else { 4 };
        for _ in 0..numbers {
            self.number()?;
        }
        Some(())
    }

    fn names_tree(&mut self, mut holds: impl FnMut(&[u8]) -> bool) -> Option<bool> {
        self.pass_head()?;
        for _ in 0..self.number()? {
            if holds(self.bytes()?) {
                return Some(true);
            }
        }
        // Their names are not among the command's trees.
        match self.number_of_command()? {
            Some(0 | 19) => Some(holds(self.bytes()?)),
            _ => Some(false),
        }
    }

    fn dropped_tree(&mut self) -> Option<&'a [u8]> {
        self.pass_head()?;
        for _ in 0..self.number()? {
            self.bytes()?;
        }
        match self.number_of_command()? {
            Some(1) => self.bytes(),
            _ => None,
        }
    }

    /// Behind the names of the trees; inner `None`: it is no command.
    fn number_of_command(&mut self) -> Option<Option<u64>> {
        match self.number()? {
            1 => {}
            6 => self.pass_fences()?,
            _ => return Some(None),
        }
        self.number().map(Some)
    }

    fn pass_fences(&mut self) -> Option<()> {
        for _ in 0..self.number()? {
            self.bytes()?;
            self.number()?;
        }
        Some(())
    }

    fn operation(&mut self) -> Option<OperationKind> {
        Some(match self.number()? {
            0 => OperationKind::Nothing,
            1 => return self.command(),
            2 => OperationKind::SessionOpen,
            3 => OperationKind::SessionRenew,
            4 => OperationKind::SessionClose,
            5 => OperationKind::SessionsExpire,
            6 => {
                self.pass_fences()?;
                return self.command();
            }
            7 => OperationKind::TransactionPrepare,
            8 => OperationKind::TransactionCommit,
            9 => OperationKind::TransactionSettle,
            10 => OperationKind::TransactionResolve,
            11 => OperationKind::TransactionForget,
            _ => return None,
        })
    }

    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    /// bincode's variable-length number; one of 128 bits is only passed over.
    fn number(&mut self) -> Option<u64> {
        let length = match self.byte()? {
            small @ 0..=250 => return Some(u64::from(small)),
            251 => 2,
            252 => 4,
            253 => 8,
            254 => 16,
            255 => return None,
        };
        let (number, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        let mut bytes = [0; 8];
        bytes[..length.min(8)].copy_from_slice(&number[..length.min(8)]);
        Some(u64::from_le_bytes(bytes))
    }

    fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.number()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    /// The positions of the variants of [`Command`] are part of its encoding.
    fn command(&mut self) -> Option<OperationKind> {
        use OperationKind::*;
        let of = |kinds: &[OperationKind], number: u64| kinds.get(usize::try_from(number).ok()?).copied();
        Some(match self.number()? {
            0 => OpenTree,
            1 => DropTree,
            2 => Clear,
            3 => Insert,
            4 => Remove,
            5 => CompareAndSwap,
            6 => ApplyBatch,
            7 => Pop,
            8 => Transaction,
            9 => GenerateId,
            10 => {
                let counter =
                    [CounterAdd, CounterAddWithin, CounterGet, CounterSet, CounterRemove, CounterSetIf];
                return of(&counter, self.number()?);
            }
            11 => {
                let lock = [
                    LockTryAcquire,
                    LockRenew,
                    LockRelease,
                    LockExpire,
                    LockAcquire,
                    LockRenewWait,
                    LockCancelWait,
                    LockAcquireOwned,
                ];
                let kind = of(&lock, self.number()?)?;
                if kind == LockAcquire {
                    // Name and owner come before the request.
                    self.bytes()?;
                    self.bytes()?;
                    return Some(OperationKind::of_acquire(self.number()?, self.number()?));
                }
                return Some(kind);
            }
            12 => Put,
            13 => AddToCounters,
            14 => {
                let expiry = [InsertWithTtl, CompareAndSwapWithTtl, Expire, Persist, Ttl];
                return match self.number()? {
                    5 => self.strings_of_one_key(),
                    6..=9 => Some(Transaction),
                    other => of(&expiry, other),
                };
            }
            15 => SettleDue,
            16 => return of(&[SessionInsert, InsertNext, SetNext], self.number()?),
            17 => Compare,
            18 => return self.strings(),
            19 => SetTreeQuota,
            _ => return None,
        })
    }
}

impl ReadKind {
    /// That of a read.
    pub fn of(read: &GroupRead) -> ReadKind {
        match read {
            GroupRead::Get { .. } => ReadKind::Get,
            GroupRead::GetMany { .. } => ReadKind::GetMany,
            GroupRead::Range { .. } => ReadKind::Range,
            GroupRead::Len { .. } => ReadKind::Len,
            GroupRead::Counter { .. } => ReadKind::CounterGet,
            GroupRead::LockHolder { .. } => ReadKind::LockHolder,
            GroupRead::Trees => ReadKind::TreeNames,
            GroupRead::EarliestSessionExpiry => ReadKind::SessionEarliestExpiry,
            GroupRead::Ticket { .. } => ReadKind::LockTicket,
            GroupRead::Expires { .. } => ReadKind::Ttl,
            GroupRead::Validate { .. } => ReadKind::TransactionValidate,
            GroupRead::Transactions => ReadKind::TransactionCounts,
            GroupRead::Strings { operations, .. } => ReadKind::of_operations(operations),
            GroupRead::LockHolders { .. } => ReadKind::LockHolders,
            GroupRead::Sessions { .. } => ReadKind::SessionList,
            GroupRead::Quotas => ReadKind::QuotaList,
            GroupRead::NextNumber { .. } => ReadKind::NextNumber,
            GroupRead::GetKinds { .. } => ReadKind::GetKinds,
        }
    }
}

#[cfg(test)]
mod tests;
