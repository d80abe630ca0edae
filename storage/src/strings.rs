//! Strings with Redis's semantics, as commands.
//!
//! # Promise
//!
//! A list of operations is one command: it happens at one position of the log, all of it or nothing, and
//! nothing comes in between. So `INCR` never loses an update, `SET … NX PX` is granted to one, and a
//! transaction whose keys share a partition is one entry.
//!
//! # Idea
//!
//! What an operation means is a function of its key alone, [`apply`]: it takes a [`Slot`] (the value, and
//! when it ends) and changes it. It knows neither trees nor views. `evaluate` fills slots from the view, applies
//! the operations in turn, and compares what the slots have become with what they were. Whoever has the
//! same operations carried out by other means, as a transaction over several partitions does, applies the same function to slots
//! of its own, and has what they have become written by the operations that [`difference`] finds.
//!
//! Values are the bytes themselves, in the caller's tree: a number is its decimal text. Other commands see
//! and change the same data. (But for strings that look like the head of a hash; [`crate::hashes`] has its layout, and
//! the operations on the fields of one.) Times to live are those of [`crate::expiry`]. Fractions are added decimally; see
//! `number.rs`.
//!
//! A `SET` that asks for nothing of what was there ([`Slot::is_blind`]) is not looked up, as a
//! [`Command::Put`](crate::Command::Put) is not.
//!
//! | operation | Redis's commands |
//! |---|---|
//! | [`StringAction::Get`], [`Length`](StringAction::Length), [`Range`](StringAction::Range) | GET, MGET, STRLEN, GETRANGE |
//! | [`StringAction::Exists`], [`Expires`](StringAction::Expires) | EXISTS, TYPE, TTL, PTTL, EXPIRETIME, PEXPIRETIME |
//! | [`StringAction::Set`] | SET, SETNX, SETEX, PSETEX, GETSET, MSET |
//! | [`StringAction::RequireAbsent`], then [`SetOnly::AsRequired`] | MSETNX |
//! | [`StringAction::Delete`], [`Take`](StringAction::Take) | DEL, UNLINK, GETDEL |
//! | [`StringAction::GetAndExpire`], [`Expire`](StringAction::Expire), [`Persist`](StringAction::Persist) | GETEX, EXPIRE and its kin, PERSIST |
//! | [`StringAction::Append`], [`Overwrite`](StringAction::Overwrite) | APPEND, SETRANGE |
//! | [`StringAction::Add`], [`AddFloat`](StringAction::AddFloat) | INCR, DECR, INCRBY, DECRBY, INCRBYFLOAT |
//! | [`StringAction::Transfer`] | RENAME, RENAMENX, COPY |
//! | [`StringAction::Kind`], [`Clear`](StringAction::Clear) | TYPE, FLUSHDB |
//! | [`StringAction::Tell`] | PUBLISH, and what keyspace notifications tell |
//! | [`StringAction::Hash`] | HSET, HGET and their kin: [`HashAction`] |

mod evaluate;
pub mod notices;
mod number;
mod slot;

use bincode::{Decode, Encode};

use crate::IVec;
use crate::codec::Listed;
use crate::command::{MAX_VALUE_LENGTH, TreeId};
use crate::expiry::{SetIf, When};
use crate::hashes::{self, HashAction, HashId};

pub use self::evaluate::Work;
pub(crate) use self::evaluate::{effects_of_part, evaluate, of_nothing, read};
use self::number::Number;
pub use self::number::{is_number, parse_integer};
pub use self::slot::{Slot, difference};

/// One operation on one key (two, for [`StringAction::Transfer`]).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StringsOperation {
    /// Where.
    pub tree: TreeId,
    /// Which key.
    pub key: IVec,
    /// What is done.
    pub action: StringAction,
}

/// What is done to a key.
///
/// New variants are added at the end: the position of a variant is part of its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum StringAction {
    /// Reads it. Reply: [`StringsReply::Value`].
    Get,
    /// How long the value is; 0 if there is none. Reply: [`StringsReply::Integer`].
    Length,
    /// A part of the value, empty if there is none. Negative numbers count from the end, -1 is the last byte. Reply:
    /// [`StringsReply::Value`].
    Range {
        /// The first byte.
        start: i64,
        /// The last one.
        end: i64,
    },
    /// Whether it is there. Reply: [`StringsReply::Integer`].
    Exists,
    /// When it ends. Reply: [`StringsReply::Expires`].
    Expires,
    /// Sets it. Reply: [`StringsReply::Done`] or [`StringsReply::Unchanged`]; with `get`,
    /// [`StringsReply::Value`] with what was there.
    Set {
        /// The new value.
        value: IVec,
        /// Whether it is set.
        only: SetOnly,
        /// When it expires; `None`: never.
        when: Option<When>,
        /// Whether the value before is wanted.
        get: bool,
    },
    /// Whether it is absent: sets what [`SetOnly::AsRequired`] asks for later in the list. Reply:
    /// [`StringsReply::Integer`].
    RequireAbsent {
        /// Begins anew, instead of asking for this as well.
        first: bool,
    },
    /// Removes it. Reply: [`StringsReply::Integer`], 1 if it was there.
    Delete,
    /// Removes it. Reply: [`StringsReply::Value`] with what was there.
    Take,
    /// Reads it, and changes when it ends. Reply: [`StringsReply::Value`].
    GetAndExpire {
        /// When it ends; `None`: never.
        when: Option<When>,
    },
    /// Appends to it. Reply: [`StringsReply::Integer`], the length.
    Append {
        /// What is added.
        value: IVec,
    },
    /// Writes into it, behind zeros if it is not so long. Reply: [`StringsReply::Integer`], the length.
    Overwrite {
        /// From which byte on.
        offset: u64,
        /// What.
        value: IVec,
    },
    /// Adds to the integer that it is as decimal text. Reply: [`StringsReply::Integer`], the sum.
    Add {
        /// How much.
        delta: i64,
    },
    /// Adds to the number that it is as decimal text. Reply: [`StringsReply::Value`], the sum.
    AddFloat {
        /// How much, as decimal text.
        delta: IVec,
    },
    /// Changes when it ends. Reply: [`StringsReply::Integer`], 1 if it was changed.
    Expire {
        /// When it ends. A time that is over removes it.
        when: When,
        /// Whether it is changed.
        only: SetIf,
        /// Only if it has a time to live already.
        only_some: bool,
    },
    /// Has it stay. Reply: [`StringsReply::Integer`], 1 if it had a time to live.
    Persist,
    /// Puts its value and its time to live to another key. Reply: [`StringsReply::Integer`], 1 if it was done, or
    /// [`StringsFailure::NoSuchKey`] where it is moved and there is nothing.
    Transfer {
        /// Where to.
        tree: TreeId,
        /// To which key.
        key: IVec,
        /// Whether it stays where it is, too.
        copy: bool,
        /// Whether what is there already is replaced.
        replace: bool,
    },
    /// What kind of value it has. Reply: [`StringsReply::Integer`], 0: none, [`KIND_STRING`] or [`KIND_HASH`].
    Kind,
    /// Something with its fields.
    Hash(HashAction),
    /// Says that the fields of a hash may be about to be out of reach: in a minute it is looked at whether they are.
    /// Reply: [`StringsReply::Done`].
    Suspect {
        /// Which.
        id: HashId,
    },
    /// Removes all keys of the tree; the key named means nothing. The only operation of its list. Reply:
    /// [`StringsReply::Done`].
    Clear,
    /// Tells whoever watches the key of a value as if it got that, while the key stays as it is. Of every one of a list, also of
    /// several on one key, in their order. Reply: [`StringsReply::Done`].
    Tell {
        /// What is told.
        value: IVec,
    },
}

/// What [`StringAction::Kind`] answers of a string.
pub const KIND_STRING: i64 = 1;
/// What [`StringAction::Kind`] answers of a hash.
pub const KIND_HASH: i64 = 2;

/// When a key is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum SetOnly {
    /// Always.
    Always,
    /// If it is not there.
    Absent,
    /// If it is.
    Present,
    /// If all was absent that was to be ([`StringAction::RequireAbsent`]).
    AsRequired,
}

/// What came of one [`StringsOperation`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StringsReply {
    /// It is done.
    Done,
    /// It was not to be done as things are.
    Unchanged,
    /// A value.
    Value(Option<IVec>),
    /// A number.
    Integer(i64),
    /// When a key ends.
    Expires {
        /// `None`: there is no such key; else when it ends, `None`: never.
        at_ms: Option<Option<u64>>,
        /// The log's time.
        now_ms: u64,
    },
    /// It cannot be done, and was not; what comes before and after it in the list was.
    Failed(StringsFailure),
    /// Values in the order in which they were asked for.
    Values(Listed<Option<IVec>>),
    /// Fields and their values.
    Pairs {
        /// In the order of the fields.
        pairs: Listed<(IVec, IVec)>,
        /// Where it goes on behind; `None`: that was all.
        more: Option<IVec>,
    },
}

impl StringsReply {
    pub(crate) fn tells_time(&self) -> bool {
        matches!(self, StringsReply::Expires { .. })
    }

    /// Puts a later time of the log into an answer that tells it. A key whose time is over by that is still there, with
    /// nothing left, until an entry says so: whoever reads it next finds it.
    pub(crate) fn set_time(&mut self, time_ms: u64) {
        if let StringsReply::Expires { now_ms, .. } = self {
            *now_ms = time_ms.max(*now_ms);
        }
    }

    /// About how many bytes it takes to tell it, and no fewer.
    pub fn encoded_bytes(&self) -> usize {
        // The kind, a number, and what says how long each value is.
        const KIND: usize = 24;
        const LENGTH: usize = 10;
        let values = match self {
            StringsReply::Values(values) => values.0.len(),
            StringsReply::Pairs { pairs, .. } => 2 * pairs.0.len() + 1,
            _ => 1,
        };
        let more = match self {
            StringsReply::Pairs { more: Some(more), .. } => more.len(),
            _ => 0,
        };
        KIND + LENGTH * values + self.bytes() + more
    }

    /// About how many bytes it tells.
    pub fn bytes(&self) -> usize {
        let of = |value: &Option<IVec>| value.as_ref().map_or(0, |value| value.len());
        match self {
            StringsReply::Value(value) => of(value),
            StringsReply::Values(values) => values.0.iter().map(of).sum(),
            StringsReply::Pairs { pairs, .. } => {
                pairs.0.iter().map(|(field, value)| field.len() + value.len()).sum()
            }
            _ => 0,
        }
    }
}

/// The longest string, and value of a field, in bytes, that an operation makes.
///
/// A node's command has 16 MiB by default, and so has about an answer between nodes. A value that is larger could be made
/// (by `APPEND`, piece by piece) and then neither be read through another node nor moved to another partition, nor
/// restored from a backup. So what is made always fits one command, with what that names besides: two keys, a field and a
/// lock of 64 KiB each, and what encodes them.
///
/// It is no setting: replicas that carry out the same entry have to agree.
pub const MAX_STRING_LENGTH: usize = (16 << 20) - (512 << 10);

/// The most bytes of values that an operation is answered with.
pub const MAX_TOLD: usize = MAX_VALUE_LENGTH;

/// The most bytes of values that operations which are carried out together are answered with: what fits into a message.
pub const MAX_TOLD_TOGETHER: usize = 16 << 20;

/// Why an operation cannot be carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StringsFailure {
    /// The value is not the text of a 64-bit integer.
    NotAnInteger,
    /// The sum does not fit 64 bits.
    Overflow,
    /// The value, or what is added, is not the text of a number.
    NotAFloat,
    /// The sum is not a number that is finite.
    NotFinite,
    /// The value would be longer than [`MAX_STRING_LENGTH`].
    TooLong,
    /// There is no such key.
    NoSuchKey,
    /// The key holds another kind of value.
    WrongKind,
    /// The field is not the text of a 64-bit integer.
    FieldNotAnInteger,
    /// The field is not the text of a number.
    FieldNotAFloat,
    /// One reply cannot tell all of it.
    TooMuch,
    /// The tree would be larger than its quota allows; see [`crate::quota`].
    OverQuota,
    /// Together with what comes before it in its list it copies, or writes anew, more than one list may.
    TooMuchWork,
}

/// The replies to a list of operations, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode)]
pub struct StringsReplies(pub Vec<StringsReply>);

impl StringAction {
    /// Whether the value that is there is written anew, however short the operation is: what follows it, moves it, or has
    /// another time to live.
    pub fn rewrites(&self) -> bool {
        use StringAction::{Append, Expire, GetAndExpire, Overwrite, Persist, Transfer};
        matches!(
            self,
            Append { .. }
                | Overwrite { .. }
                | Expire { .. }
                | Persist
                | GetAndExpire { .. }
                | Transfer { .. }
        )
    }
}

impl StringsOperation {
    /// Whether it only reads.
    pub fn is_read(&self) -> bool {
        use StringAction::{Exists, Expires, Get, Hash, Kind, Length, Range};
        match &self.action {
            Get | Length | Range { .. } | Exists | Expires | Kind => true,
            Hash(action) => action.is_read(),
            _ => false,
        }
    }

    /// Whether it does the same whatever was there.
    pub fn is_blind(&self) -> bool {
        match &self.action {
            StringAction::Set { only: SetOnly::Always, when, get: false, .. } => *when != Some(When::Keep),
            _ => false,
        }
    }

    /// Whether the bytes of its key's value have a part in what it does or tells, not only of what kind that is.
    pub fn needs_value(&self) -> bool {
        use StringAction::{
            Add, AddFloat, Append, Clear, Delete, Exists, Expire, Expires, Get, GetAndExpire, Hash, Kind,
            Length, Overwrite, Persist, Range, RequireAbsent, Set, Suspect, Take, Tell, Transfer,
        };
        match &self.action {
            Get | Length | Range { .. } | Take | GetAndExpire { .. } => true,
            Append { .. } | Overwrite { .. } | Add { .. } | AddFloat { .. } | Transfer { .. } => true,
            Set { get, .. } => *get,
            Exists
            | Expires
            | Kind
            | RequireAbsent { .. }
            | Delete
            | Expire { .. }
            | Persist
            | Tell { .. } => false,
            // Of hashes the head is known, and what else they need is asked for.
            Hash(_) | Clear | Suspect { .. } => false,
        }
    }

    /// The trees that it names, to be replaced.
    pub fn trees_mut(&mut self) -> impl Iterator<Item = &mut TreeId> {
        let other = match &mut self.action {
            StringAction::Transfer { tree, .. } => Some(tree),
            _ => None,
        };
        std::iter::once(&mut self.tree).chain(other)
    }

    /// The keys that it looks at or changes.
    pub fn keys(&self) -> impl Iterator<Item = (TreeId, &IVec)> {
        let other = match &self.action {
            StringAction::Transfer { tree, key, .. } => Some((*tree, key)),
            _ => None,
        };
        std::iter::once((self.tree, &self.key)).chain(other)
    }

    /// The values that it brings, to be held to a limit.
    pub(crate) fn values(&self) -> impl Iterator<Item = &IVec> {
        let (own, hash) = match &self.action {
            StringAction::Set { value, .. }
            | StringAction::Append { value }
            | StringAction::Overwrite { value, .. }
            | StringAction::Tell { value }
            | StringAction::AddFloat { delta: value } => (Some(value), None),
            StringAction::Hash(action) => (None, Some(action.values())),
            _ => (None, None),
        };
        own.into_iter().chain(hash.into_iter().flatten())
    }

    /// The fields that it names, to be held to a limit.
    pub(crate) fn fields(&self) -> Vec<&IVec> {
        match &self.action {
            StringAction::Hash(action) => action.fields(),
            _ => Vec::new(),
        }
    }

    /// Whether it brings a value of more than [`MAX_STRING_LENGTH`]. Whoever asks for it has to be refused before it gets into
    /// a log: where it is applied it may be what becomes of a longer value that other clients made.
    pub fn brings_too_long(&self) -> bool {
        self.values().any(|value| value.len() > MAX_STRING_LENGTH)
    }

    /// How many bytes it makes without bringing them.
    pub(crate) fn filled(&self) -> usize {
        match &self.action {
            StringAction::Overwrite { offset, value } if !value.is_empty() => {
                usize::try_from(*offset).unwrap_or(usize::MAX).min(MAX_STRING_LENGTH)
            }
            _ => 0,
        }
    }

    /// About how many bytes it brings or makes.
    pub fn bytes(&self) -> usize {
        let values: usize = self.values().map(|value| value.len()).sum();
        self.key.len() + self.filled() + values + self.fields().iter().map(|field| field.len()).sum::<usize>()
    }
}

/// What a list of operations carries from one to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Carried {
    required: bool,
    next: HashId,
}

impl Carried {
    /// At the beginning of a list. Hashes that it makes get ids with this base.
    pub fn new(base: u64) -> Carried {
        Carried { required: false, next: HashId { base, ordinal: 0 } }
    }

    /// The id that the next hash gets that is made.
    pub(crate) fn next_id(&self) -> HashId {
        self.next
    }

    pub(crate) fn take_id(&mut self) -> HashId {
        let id = self.next;
        // As many do not fit into a command.
        self.next.ordinal = id.ordinal.wrapping_add(1);
        id
    }
}

/// What an operation means: changes `slot`, and `other` if it is about a second key. Nothing is changed when it
/// fails.
pub fn apply(
    action: &StringAction,
    time_ms: u64,
    carried: &mut Carried,
    slot: &mut Slot,
    other: Option<&mut Slot>,
) -> StringsReply {
    use StringsReply::{Done, Expires, Failed, Integer, Unchanged, Value};
    let is_there = slot.is_there();
    if slot.hash.is_some() && is_of_strings(action) || slot.value.is_some() && is_of_hashes(action) {
        return Failed(StringsFailure::WrongKind);
    }
    let length = |slot: &Slot| Integer(slot.bytes().len() as i64);
    match action {
        StringAction::Get => Value(slot.value.clone()),
        StringAction::Length => length(slot),
        StringAction::Range { start, end } => Value(Some(range(slot.value.as_ref(), *start, *end))),
        StringAction::Exists => Integer(i64::from(is_there)),
        StringAction::Expires => Expires { at_ms: is_there.then_some(slot.expires_ms), now_ms: time_ms },
        StringAction::Set { value, only, when, get } => {
            let before = if *get { slot.value.clone() } else { None };
            let is_wanted = match only {
                SetOnly::Always => true,
                SetOnly::Absent => !is_there,
                SetOnly::Present => is_there,
                SetOnly::AsRequired => carried.required,
            };
            if is_wanted {
                slot.write(value.clone());
                slot.expire(*when, time_ms);
            }
            match (get, is_wanted) {
                (true, _) => Value(before),
                (false, true) => Done,
                (false, false) => Unchanged,
            }
        }
        StringAction::RequireAbsent { first } => {
            carried.required = !is_there && (*first || carried.required);
            Integer(i64::from(carried.required))
        }
        StringAction::Delete if !is_there => Integer(0),
        StringAction::Delete => {
            slot.remove();
            Integer(1)
        }
        StringAction::Take if !is_there => Value(None),
        StringAction::Take => Value(slot.remove()),
        StringAction::GetAndExpire { when } => {
            let value = slot.value.clone();
            if is_there {
                slot.expire(*when, time_ms);
            }
            Value(value)
        }
        StringAction::Append { value } => {
            if slot.bytes().len() + value.len() > MAX_STRING_LENGTH {
                return Failed(StringsFailure::TooLong);
            }
            slot.write(IVec::from([slot.bytes(), value].concat()));
            length(slot)
        }
        StringAction::Overwrite { value, .. } if value.is_empty() => length(slot),
        StringAction::Overwrite { offset, value } => {
            let end = usize::try_from(*offset).ok().and_then(|offset| offset.checked_add(value.len()));
            let Some(end) = end.filter(|end| *end <= MAX_STRING_LENGTH) else {
                return Failed(StringsFailure::TooLong);
            };
            let mut bytes = slot.bytes().to_vec();
            if bytes.len() < end {
                bytes.resize(end, 0);
            }
            bytes[end - value.len()..end].copy_from_slice(value);
            slot.write(IVec::from(bytes));
            length(slot)
        }
        StringAction::Add { delta } => {
            let current = match &slot.value {
                Some(text) => parse_integer(text),
                None => Some(0),
            };
            let Some(current) = current else { return Failed(StringsFailure::NotAnInteger) };
            let Some(sum) = current.checked_add(*delta) else { return Failed(StringsFailure::Overflow) };
            slot.write(IVec::from(sum.to_string()));
            Integer(sum)
        }
        StringAction::AddFloat { delta } => match sum_of_floats(slot.value.as_ref(), delta) {
            Ok(sum) => {
                slot.write(sum.clone());
                Value(Some(sum))
            }
            Err(failure) => Failed(failure),
        },
        StringAction::Expire { .. } if !is_there => Integer(0),
        StringAction::Expire { when, only, only_some } => {
            let before = slot.expires_ms;
            let after = match when {
                When::After(after) => time_ms.saturating_add(*after),
                When::At(at) => *at,
                When::Keep => before.unwrap_or(u64::MAX),
            };
            let is_wanted = (!only_some || before.is_some())
                && match only {
                    SetIf::Always => true,
                    SetIf::None => before.is_none(),
                    SetIf::Some => before.is_some(),
                    SetIf::Later => before.is_some_and(|before| after > before),
                    SetIf::Earlier => before.is_none_or(|before| after < before),
                };
            if is_wanted {
                slot.expire(Some(*when), time_ms);
            }
            Integer(i64::from(is_wanted))
        }
        StringAction::Persist => Integer(i64::from(slot.expires_ms.take().is_some())),
        StringAction::Transfer { copy, replace, .. } => {
            if !is_there {
                return if *copy { Integer(0) } else { Failed(StringsFailure::NoSuchKey) };
            }
            // A key that is moved to itself stays as it is.
            let Some(other) = other else { return Integer(i64::from(*replace)) };
            if other.is_there() && !replace {
                return Integer(0);
            }
            // It is too large to be known as a whole.
            if *copy && slot.hash.as_ref().is_some_and(|hash| !hash.is_whole) {
                return Failed(StringsFailure::TooMuchWork);
            }
            other.value.clone_from(&slot.value);
            other.hash = match &slot.hash {
                Some(hash) if *copy => Some(hash.copied(carried.take_id())),
                hash => hash.clone(),
            };
            other.is_written = true;
            other.expires_ms = slot.expires_ms;
            if !copy {
                slot.remove();
            }
            Integer(1)
        }
        StringAction::Kind if slot.hash.is_some() => Integer(KIND_HASH),
        StringAction::Kind => Integer(if is_there { KIND_STRING } else { 0 }),
        StringAction::Hash(action) => {
            let (reply, is_written) = hashes::apply(action, &mut slot.hash, || carried.take_id());
            if is_written {
                slot.is_written = true;
                if slot.hash.is_none() {
                    slot.expires_ms = None;
                }
            }
            reply
        }
        StringAction::Tell { value } => {
            slot.told.push(value.clone());
            Done
        }
        // These are not about the key.
        StringAction::Suspect { .. } | StringAction::Clear => Done,
    }
}

fn is_of_strings(action: &StringAction) -> bool {
    matches!(
        action,
        StringAction::Get
            | StringAction::Length
            | StringAction::Range { .. }
            | StringAction::Set { get: true, .. }
            | StringAction::Take
            | StringAction::GetAndExpire { .. }
            | StringAction::Append { .. }
            | StringAction::Overwrite { .. }
            | StringAction::Add { .. }
            | StringAction::AddFloat { .. }
    )
}

fn is_of_hashes(action: &StringAction) -> bool {
    matches!(action, StringAction::Hash(_))
}

/// The sum of two numbers in text, as text.
pub(crate) fn sum_of_floats(current: Option<&IVec>, delta: &IVec) -> Result<IVec, StringsFailure> {
    let current = match current {
        Some(text) => Number::parse(text),
        None => Some(Number::Decimal(0)),
    };
    let (Some(current), Some(delta)) = (current, Number::parse(delta)) else {
        return Err(StringsFailure::NotAFloat);
    };
    let sum = current.plus(delta).ok_or(StringsFailure::NotFinite)?;
    Ok(IVec::from(sum.text()))
}

fn range(value: Option<&IVec>, start: i64, end: i64) -> IVec {
    let Some(value) = value else { return IVec::new() };
    let length = value.len() as i64;
    let place = |at: i64| if at < 0 { at.saturating_add(length) } else { at };
    if start < 0 && end < 0 && start > end {
        return IVec::new();
    }
    let (start, end) = (place(start).max(0), place(end).max(0).min(length - 1));
    if start > end || length == 0 {
        return IVec::new();
    }
    value.subslice(start as usize, (end - start + 1) as usize)
}

#[cfg(test)]
mod tests;
