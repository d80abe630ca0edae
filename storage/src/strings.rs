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
//! of its own.
//!
//! Values are the bytes themselves, in the caller's tree: a number is its decimal text. Other commands see
//! and change the same data. Times to live are those of [`crate::expiry`]. Fractions are added decimally; see
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

mod number;

use std::collections::BTreeMap;

use bincode::{Decode, Encode};

use crate::command::{KeyRead, MAX_VALUE_LENGTH, Reply, TreeId};
use crate::evaluate::{self, Context, Effect, Effects, Outcome, Versioned, View};
use crate::expiry::{self, Ends, SetIf, When};
use crate::{IVec, Result};

use self::number::Number;
pub use self::number::{is_number, parse_integer};

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
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
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
}

/// When a key is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
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
}

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
    /// The value would be longer than [`MAX_VALUE_LENGTH`].
    TooLong,
    /// There is no such key.
    NoSuchKey,
}

/// The replies to a list of operations, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode)]
pub struct StringsReplies(pub Vec<StringsReply>);

impl StringsOperation {
    /// Whether it only reads.
    pub fn is_read(&self) -> bool {
        use StringAction::{Exists, Expires, Get, Length, Range};
        matches!(self.action, Get | Length | Range { .. } | Exists | Expires)
    }

    /// Whether it does the same whatever was there.
    pub fn is_blind(&self) -> bool {
        match &self.action {
            StringAction::Set { only: SetOnly::Always, when, get: false, .. } => *when != Some(When::Keep),
            _ => false,
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

    /// The bytes that it brings, to be held to a limit.
    pub(crate) fn value(&self) -> Option<&IVec> {
        match &self.action {
            StringAction::Set { value, .. }
            | StringAction::Append { value }
            | StringAction::Overwrite { value, .. }
            | StringAction::AddFloat { delta: value } => Some(value),
            _ => None,
        }
    }
}

/// What an operation changes: the value of a key, and when it ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The value; `None`: there is none.
    pub value: Option<IVec>,
    /// When it ends, in milliseconds of the log's time; `None`: never.
    pub expires_ms: Option<u64>,
    /// Whether the value was written, be it to what it was.
    pub is_written: bool,
    /// Nobody looked what was there: it was overwritten unseen.
    pub is_blind: bool,
}

impl Slot {
    /// A key as it was found.
    pub fn found(value: Option<IVec>, expires_ms: Option<u64>) -> Slot {
        Slot { value, expires_ms, is_written: false, is_blind: false }
    }

    /// A key that nobody looks at before it is [overwritten](StringsOperation::is_blind).
    pub fn unseen() -> Slot {
        Slot { is_blind: true, ..Slot::default() }
    }

    fn write(&mut self, value: IVec) {
        self.value = Some(value);
        self.is_written = true;
    }

    fn remove(&mut self) -> Option<IVec> {
        self.expires_ms = None;
        self.is_written = true;
        self.value.take()
    }

    /// Sets when it ends; a time that is over removes it.
    fn expire(&mut self, when: Option<When>, time_ms: u64) {
        let at = match when {
            None => None,
            Some(When::Keep) => return,
            Some(When::After(after)) => Some(time_ms.saturating_add(after)),
            Some(When::At(at)) => Some(at),
        };
        self.expires_ms = at;
        if at.is_some_and(|at| at <= time_ms) {
            self.remove();
        }
    }

    fn bytes(&self) -> &[u8] {
        self.value.as_deref().unwrap_or_default()
    }
}

/// What a list of operations carries from one to the next.
#[derive(Clone, Copy, Debug, Default)]
pub struct Required(bool);

/// What an operation means: changes `slot`, and `other` if it is about a second key. Nothing is changed when it
/// fails.
pub fn apply(
    action: &StringAction,
    time_ms: u64,
    required: &mut Required,
    slot: &mut Slot,
    other: Option<&mut Slot>,
) -> StringsReply {
    use StringsReply::{Done, Expires, Failed, Integer, Unchanged, Value};
    let is_there = slot.value.is_some();
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
                SetOnly::AsRequired => required.0,
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
            required.0 = !is_there && (*first || required.0);
            Integer(i64::from(required.0))
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
            if slot.bytes().len() + value.len() > MAX_VALUE_LENGTH {
                return Failed(StringsFailure::TooLong);
            }
            slot.write(IVec::from([slot.bytes(), value].concat()));
            length(slot)
        }
        StringAction::Overwrite { value, .. } if value.is_empty() => length(slot),
        StringAction::Overwrite { offset, value } => {
            let end = usize::try_from(*offset).ok().and_then(|offset| offset.checked_add(value.len()));
            let Some(end) = end.filter(|end| *end <= MAX_VALUE_LENGTH) else {
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
        StringAction::AddFloat { delta } => {
            let current = match &slot.value {
                Some(text) => Number::parse(text),
                None => Some(Number::Decimal(0)),
            };
            let (Some(current), Some(delta)) = (current, Number::parse(delta)) else {
                return Failed(StringsFailure::NotAFloat);
            };
            let Some(sum) = current.plus(delta) else { return Failed(StringsFailure::NotFinite) };
            let sum = IVec::from(sum.text());
            slot.write(sum.clone());
            Value(Some(sum))
        }
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
            let Some(value) = slot.value.clone() else {
                return if *copy { Integer(0) } else { Failed(StringsFailure::NoSuchKey) };
            };
            // A key that is moved to itself stays as it is.
            let Some(other) = other else { return Integer(i64::from(*replace)) };
            if other.value.is_some() && !replace {
                return Integer(0);
            }
            other.write(value);
            other.expires_ms = slot.expires_ms;
            if !copy {
                slot.remove();
            }
            Integer(1)
        }
    }
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

/// A key that operations have looked at.
struct Looked {
    slot: Slot,
    before: Slot,
    /// The version that was found.
    version: Option<u64>,
    record: Option<Versioned>,
}

/// Evaluates [`Command::Strings`](crate::Command::Strings); see the [module](self).
pub(crate) fn evaluate(
    view: &impl View,
    context: &Context,
    watched: &[KeyRead],
    operations: &[StringsOperation],
) -> Result<Outcome> {
    for read in watched {
        if !evaluate::is_current(view, read)? {
            return Ok(Outcome::reply(Reply::Conflict));
        }
    }
    // Where nothing has a time to live no record need be looked for.
    let may_expire = view.earliest_due()? != u64::MAX;
    let mut keys: BTreeMap<(TreeId, IVec), Looked> = BTreeMap::new();
    let mut required = Required::default();
    let mut replies = Vec::with_capacity(operations.len());
    for operation in operations {
        for (tree, key) in operation.keys() {
            let place = (tree, key.clone());
            if let std::collections::btree_map::Entry::Vacant(entry) = keys.entry(place) {
                expiry::check_tree(view, tree)?;
                entry.insert(look(view, tree, key, operation.is_blind(), may_expire)?);
            }
        }
        let place = (operation.tree, operation.key.clone());
        // Taken out while a second one may be needed.
        let mut slot = std::mem::take(&mut keys.get_mut(&place).expect("looked at").slot);
        let other = match &operation.action {
            StringAction::Transfer { tree, key, .. } => {
                let other = (*tree, key.clone());
                (other != place).then(|| &mut keys.get_mut(&other).expect("looked at").slot)
            }
            _ => None,
        };
        replies.push(apply(&operation.action, context.time_ms, &mut required, &mut slot, other));
        keys.get_mut(&place).expect("looked at").slot = slot;
    }
    let mut effects = Effects::new();
    for ((tree, key), looked) in keys {
        changes(view, tree, key, looked, may_expire, &mut effects)?;
    }
    Ok(Outcome { effects, reply: Reply::Strings(StringsReplies(replies)) })
}

fn look(view: &impl View, tree: TreeId, key: &IVec, is_blind: bool, may_expire: bool) -> Result<Looked> {
    if is_blind {
        return Ok(Looked { slot: Slot::unseen(), before: Slot::unseen(), version: None, record: None });
    }
    let found = view.get(tree, key)?;
    // Also of a key that is absent: one that has expired is hidden by its record.
    let record = match may_expire {
        true => view.get(TreeId::EXPIRY, &expiry::record_key(tree, key))?,
        false => None,
    };
    let version = found.as_ref().map(|found| found.version);
    let expires_ms = version.map(|version| expiry::expires(record.as_ref(), version)).transpose()?.flatten();
    let slot = Slot::found(found.map(|found| found.value), expires_ms);
    Ok(Looked { before: slot.clone(), slot, version, record })
}

/// What the database has to do for a slot to be what it has become.
fn changes(
    view: &impl View,
    tree: TreeId,
    key: IVec,
    looked: Looked,
    may_expire: bool,
    effects: &mut Effects,
) -> Result<()> {
    let Looked { slot, before, mut version, mut record } = looked;
    if slot.is_blind && (slot.value.is_none() || slot.expires_ms.is_some()) {
        // Now it has to be known after all.
        version = view.version(tree, &key)?;
        if may_expire {
            record = view.get(TreeId::EXPIRY, &expiry::record_key(tree, &key))?;
        }
    }
    let ends = slot.expires_ms.map_or(Ends::Never, Ends::At);
    match slot.value {
        Some(value) if slot.is_written => {
            let fresh = if slot.is_blind { None } else { Some(version.is_none()) };
            effects.push(Effect::Put { tree, key: key.clone(), value, fresh });
            expiry::put_record(tree, &key, &ends, 0, record.as_ref(), effects)
        }
        Some(_) if slot.expires_ms != before.expires_ms => {
            let version = version.expect("a value that was not written was found");
            expiry::put_record(tree, &key, &ends, version, record.as_ref(), effects)
        }
        None if version.is_some() => {
            effects.push(Effect::Remove { tree, key: key.clone() });
            expiry::put_record(tree, &key, &Ends::Never, 0, record.as_ref(), effects)
        }
        // What hides a key that has expired must stay for as long as the key.
        Some(_) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(value: Option<&str>, action: StringAction) -> (StringsReply, Slot) {
        let mut slot = Slot::found(value.map(IVec::from), None);
        let reply = apply(&action, 1_000, &mut Required::default(), &mut slot, None);
        (reply, slot)
    }

    #[test]
    fn only_the_canonical_text_of_an_integer_is_one() {
        for number in [0, 1, -1, 10, i64::MAX, i64::MIN] {
            assert_eq!(parse_integer(number.to_string().as_bytes()), Some(number));
        }
        for text in [
            "",
            "-",
            "+1",
            " 1",
            "1 ",
            "01",
            "-0",
            "00",
            "1a",
            "0x1",
            "1.0",
            "9223372036854775808",
            "-9223372036854775809",
        ] {
            assert_eq!(parse_integer(text.as_bytes()), None, "{text:?}");
        }
    }

    #[test]
    fn fractions_are_added_decimally() {
        for (one, other, sum) in [
            ("10.50", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("0.1", "0.2", "0.3"),
            ("-5", "5", "0"),
            ("-0.5", "0.25", "-0.25"),
            ("3", "1.0000000000000001", "4.0000000000000001"),
            ("0", "1e-17", "0.00000000000000001"),
            ("0", "4e-18", "0"),
            ("0", "1e-400", "0"),
            ("1e25", "1e25", "20000000000000001811939328"),
            ("99999999999999999999", "1", "100000000000000000000"),
            (".5", "5.", "5.5"),
        ] {
            let (reply, slot) = set(Some(one), StringAction::AddFloat { delta: other.into() });
            assert_eq!(reply, StringsReply::Value(Some(sum.into())), "{one} + {other}");
            assert_eq!(slot.value, Some(sum.into()));
        }
        for (one, other, failure) in [
            ("a", "1", StringsFailure::NotAFloat),
            ("", "1", StringsFailure::NotAFloat),
            (" 1", "1", StringsFailure::NotAFloat),
            ("1", "nan", StringsFailure::NotAFloat),
            ("1", "inf", StringsFailure::NotFinite),
            ("1.7e308", "1.7e308", StringsFailure::NotFinite),
        ] {
            let (reply, slot) = set(Some(one), StringAction::AddFloat { delta: other.into() });
            assert_eq!(reply, StringsReply::Failed(failure), "{one} + {other}");
            assert_eq!(slot, Slot::found(Some(one.into()), None));
        }
    }

    #[test]
    fn a_part_of_a_value_is_counted_from_either_end() {
        for (start, end, part) in [
            (0, 3, "This"),
            (-3, -1, "ing"),
            (0, -1, "This is a string"),
            (10, 100, "string"),
            (5, 2, ""),
            (-1, -5, ""),
            (-100, 1, "Th"),
            (-100, -50, "T"),
            (16, 20, ""),
            (i64::MIN, i64::MAX, "This is a string"),
        ] {
            let (reply, _) = set(Some("This is a string"), StringAction::Range { start, end });
            assert_eq!(reply, StringsReply::Value(Some(part.into())), "{start} to {end}");
        }
        assert_eq!(
            set(None, StringAction::Range { start: 0, end: -1 }).0,
            StringsReply::Value(Some("".into()))
        );
    }

    #[test]
    fn writing_behind_the_end_puts_zeros_between() {
        let over = |offset, value: &str| StringAction::Overwrite { offset, value: value.into() };
        let (reply, slot) = set(Some("ab"), over(4, "cd"));
        assert_eq!((reply, slot.value), (StringsReply::Integer(6), Some("ab\0\0cd".into())));
        assert_eq!(set(Some("hello"), over(1, "ipp")).1.value, Some("hippo".into()));
        let (reply, slot) = set(None, over(7, ""));
        assert_eq!((reply, slot), (StringsReply::Integer(0), Slot::default()));
        for offset in [MAX_VALUE_LENGTH as u64, u64::MAX] {
            assert_eq!(set(None, over(offset, "a")).0, StringsReply::Failed(StringsFailure::TooLong));
        }
    }
}
