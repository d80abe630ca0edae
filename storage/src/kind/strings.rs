//! The kinds of lists of operations of Redis clients: what all of a list do, or that it does several things.
//!
//! A list is what a command came to (`MSET` is several of one kind), what a transaction did, or what many connections
//! asked for at once. What only tells of what was done beside it ([`StringAction::Tell`], [`StringAction::Suspect`])
//! is not counted as another thing.

use super::{OperationKind, Peek, ReadKind};
use crate::hashes::HashAction;
use crate::strings::{StringAction, StringsOperation};

use OperationKind::{
    Flush, HashAdd, HashDelete, HashGet, HashSet, HashSuspect, KeyDelete, KeyExpire, KeyLook, KeyMove,
    Publish, Several, StringsAdd, StringsEdit, StringsGet, StringsSet,
};

/// By the positions of the variants of [`StringAction`], which are part of its encoding; [`HASH`] has kinds of its own.
const ACTIONS: [OperationKind; 22] = [
    StringsGet,
    StringsGet,
    StringsGet,
    KeyLook,
    KeyLook,
    StringsSet,
    StringsSet,
    KeyDelete,
    KeyDelete,
    KeyExpire,
    StringsEdit,
    StringsEdit,
    StringsAdd,
    StringsAdd,
    KeyExpire,
    KeyExpire,
    KeyMove,
    KeyLook,
    HashSet,
    HashSuspect,
    Flush,
    Publish,
];
/// Position of [`StringAction::Hash`].
const HASH: u64 = 18;
/// By the positions of the variants of [`HashAction`].
const HASH_ACTIONS: [OperationKind; 12] = [
    HashSet, HashSet, HashGet, HashGet, HashDelete, HashGet, HashGet, HashGet, HashGet, HashGet, HashAdd,
    HashAdd,
];

impl OperationKind {
    /// That of a list of operations.
    pub(super) fn of_actions<'a>(actions: impl IntoIterator<Item = &'a StringAction>) -> OperationKind {
        let kinds = actions.into_iter().map(OperationKind::of_action);
        kinds.reduce(OperationKind::with).unwrap_or(Several)
    }

    fn of_action(action: &StringAction) -> OperationKind {
        match action {
            StringAction::Get | StringAction::Length | StringAction::Range { .. } => StringsGet,
            StringAction::Exists | StringAction::Expires | StringAction::Kind => KeyLook,
            StringAction::Set { .. } | StringAction::RequireAbsent { .. } => StringsSet,
            StringAction::Delete | StringAction::Take => KeyDelete,
            StringAction::GetAndExpire { .. } | StringAction::Expire { .. } | StringAction::Persist => {
                KeyExpire
            }
            StringAction::Append { .. } | StringAction::Overwrite { .. } => StringsEdit,
            StringAction::Add { .. } | StringAction::AddFloat { .. } => StringsAdd,
            StringAction::Transfer { .. } => KeyMove,
            StringAction::Suspect { .. } => HashSuspect,
            StringAction::Clear => Flush,
            StringAction::Tell { .. } => Publish,
            StringAction::Hash(HashAction::Set { .. } | HashAction::SetAbsent { .. }) => HashSet,
            StringAction::Hash(HashAction::Delete { .. }) => HashDelete,
            StringAction::Hash(HashAction::Add { .. } | HashAction::AddFloat { .. }) => HashAdd,
            StringAction::Hash(
                HashAction::Get { .. }
                | HashAction::GetMany { .. }
                | HashAction::Exists { .. }
                | HashAction::Length
                | HashAction::ValueLength { .. }
                | HashAction::All
                | HashAction::Page { .. },
            ) => HashGet,
        }
    }

    /// What a list is called of which one part is called so and the other so.
    fn with(self, other: OperationKind) -> OperationKind {
        let only_tells = |kind| matches!(kind, Publish | HashSuspect);
        match (self, other) {
            (kind, other) if kind == other || only_tells(other) => kind,
            (kind, other) if only_tells(kind) => other,
            _ => Several,
        }
    }
}

impl ReadKind {
    /// That of operations that only read.
    pub(super) fn of_operations(operations: &[StringsOperation]) -> ReadKind {
        match OperationKind::of_actions(operations.iter().map(|operation| &operation.action)) {
            StringsGet => ReadKind::StringsGet,
            KeyLook => ReadKind::KeyLook,
            HashGet => ReadKind::HashGet,
            _ => ReadKind::Several,
        }
    }
}

impl Peek<'_> {
    /// A whole [`Command::Strings`](crate::Command::Strings), behind its position.
    pub(super) fn strings(&mut self) -> Option<OperationKind> {
        for _ in 0..self.number()? {
            // Whoever watches a key says which, and what version of it was seen.
            self.number()?;
            self.bytes()?;
            self.number()?;
        }
        self.list(|peek| {
            peek.number()?;
            peek.bytes()?;
            peek.action()
        })
    }

    /// A whole [`ExpiryCommand::Strings`](crate::ExpiryCommand::Strings), behind its position.
    pub(super) fn strings_of_one_key(&mut self) -> Option<OperationKind> {
        self.number()?;
        self.bytes()?;
        self.list(Peek::action)
    }

    /// It is passed over to its end, unless what it does is known before.
    fn list(&mut self, mut next: impl FnMut(&mut Self) -> Option<OperationKind>) -> Option<OperationKind> {
        let mut kind: Option<OperationKind> = None;
        for _ in 0..self.number()? {
            let other = next(self)?;
            let both = kind.map_or(other, |kind| kind.with(other));
            if both == Several {
                return Some(Several);
            }
            kind = Some(both);
        }
        Some(kind.unwrap_or(Several))
    }

    /// Passes over one [`StringAction`].
    fn action(&mut self) -> Option<OperationKind> {
        let position = self.number()?;
        match position {
            HASH => return self.hash_action(),
            // Where to, and two flags.
            16 => {
                self.number()?;
                self.bytes()?;
                self.flags(2)?;
            }
            // A value, when it is set, when it ends, and a flag.
            5 => {
                self.bytes()?;
                self.number()?;
                self.optional_when()?;
                self.flags(1)?;
            }
            2 => {
                self.number()?;
                self.number()?;
            }
            6 => self.flags(1)?,
            9 => self.optional_when()?,
            10 | 13 | 21 => drop(self.bytes()?),
            11 => {
                self.number()?;
                self.bytes()?;
            }
            12 => drop(self.number()?),
            14 => {
                self.when()?;
                self.number()?;
                self.flags(1)?;
            }
            // The number of a hash has two parts.
            19 => {
                self.number()?;
                self.number()?;
            }
            0 | 1 | 3 | 4 | 7 | 8 | 15 | 17 | 20 => {}
            _ => return None,
        }
        ACTIONS.get(usize::try_from(position).ok()?).copied()
    }

    fn hash_action(&mut self) -> Option<OperationKind> {
        let position = self.number()?;
        match position {
            0 => {
                for _ in 0..self.number()? {
                    self.bytes()?;
                    self.bytes()?;
                }
            }
            1 | 11 => {
                self.bytes()?;
                self.bytes()?;
            }
            2 | 5 | 7 => drop(self.bytes()?),
            3 | 4 => {
                for _ in 0..self.number()? {
                    self.bytes()?;
                }
            }
            9 => {
                if self.byte()? != 0 {
                    self.bytes()?;
                }
                self.number()?;
            }
            10 => {
                self.bytes()?;
                self.number()?;
            }
            6 | 8 => {}
            _ => return None,
        }
        HASH_ACTIONS.get(usize::try_from(position).ok()?).copied()
    }

    fn when(&mut self) -> Option<()> {
        // `Keep` says no time.
        if self.number()? < 2 {
            self.number()?;
        }
        Some(())
    }

    fn optional_when(&mut self) -> Option<()> {
        if self.byte()? != 0 { self.when() } else { Some(()) }
    }

    fn flags(&mut self, count: usize) -> Option<()> {
        for _ in 0..count {
            self.byte()?;
        }
        Some(())
    }
}
