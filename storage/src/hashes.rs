//! Hashes with Redis's semantics: keys whose value is a set of fields, each with a value of its own.
//!
//! # Promise
//!
//! A hash of a hundred thousand fields is changed, field by field, at the cost of the field. How many fields there are
//! is known without counting. A key is a string or a hash, never both; whatever changes one field changes the
//! key's version, so that whoever [watches](crate::command::KeyRead) the key sees it. The hash as a whole has one time to
//! live. All of a hash is of the group that its name is of, and all operations on it are those of
//! [`crate::strings`]: evaluated at one position of the log, by every replica alike.
//!
//! # Layout
//!
//! The key itself stays where all keys are, in the caller's tree, with a *head* as its value: so `EXISTS`, `SCAN`, times to
//! live and watches need not know of hashes. The fields are in [`TreeId::HASHES`](crate::TreeId::HASHES), under the *id* of
//! the hash, which no other hash of the group ever had. Numbers are big-endian:
//!
//! | tree | key | value |
//! |---|---|---|
//! | the caller's | the name | head: `\0dogsled:hash`, version 1, id (12), number of fields (8) |
//! | the caller's | the name of a string that begins with `\0dogsled:` | `\0dogsled:text`, the string |
//! | [`TreeId::HASHES`](crate::TreeId::HASHES) | 1, id (12) | whose it is: tree (4), name |
//! | [`TreeId::HASHES`](crate::TreeId::HASHES) | 2, id (12), field | the field's value |
//!
//! An id is the position of the entry that made the hash (8), and a number among those that the entry made (4): hashes of two
//! groups may have the same. A head counts only where its id says that it belongs: bytes that somebody has copied
//! elsewhere are an empty hash.
//!
//! **Why the id.** Whatever removes or overwrites the key (an expiry, `DEL`, `SET`, another client's put) has thereby
//! removed the hash: its fields cannot be reached any more, and a hash that is made anew under that name has
//! another id. `RENAME` moves the head. What cannot be reached is removed by and by: the module `sweep`.
//!
//! # Not here
//!
//! Fields have no times to live of their own. Their order is that of their bytes, and nothing Redis promises.

pub(crate) mod sweep;

use std::collections::BTreeMap;
use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::IVec;
use crate::codec::Listed;
use crate::strings::{StringsFailure, StringsReply, parse_integer, sum_of_floats};

const MARK: &[u8] = b"\0dogsled:";
const HASH: &[u8] = b"\0dogsled:hash";
const TEXT: &[u8] = b"\0dogsled:text";
const HEAD_VERSION: u8 = 1;
const HEAD_LENGTH: usize = HASH.len() + 1 + ID_LENGTH + 8;
pub(crate) const ID_LENGTH: usize = 12;

/// What a key of [`TreeId::HASHES`](crate::TreeId::HASHES) begins with that says whose a hash is.
pub(crate) const OWNER: u8 = 1;
const FIELD: u8 = 2;

/// The most bytes of fields and values that one reply tells.
pub const MAX_HASH_REPLY_BYTES: usize = 512 << 20;

/// The number of a hash, never used twice in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct HashId {
    /// The position of the entry that made it.
    pub base: u64,
    /// Which of those that the entry made.
    pub ordinal: u32,
}

impl HashId {
    fn bytes(self) -> [u8; ID_LENGTH] {
        let mut bytes = [0; ID_LENGTH];
        bytes[..8].copy_from_slice(&self.base.to_be_bytes());
        bytes[8..].copy_from_slice(&self.ordinal.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<HashId> {
        let (base, ordinal) = bytes.split_first_chunk::<8>()?;
        let ordinal: [u8; 4] = ordinal.try_into().ok()?;
        Some(HashId { base: u64::from_be_bytes(*base), ordinal: u32::from_be_bytes(ordinal) })
    }

    fn key(self, kind: u8, field: &[u8]) -> IVec {
        let mut bytes = Vec::with_capacity(1 + ID_LENGTH + field.len());
        bytes.push(kind);
        bytes.extend_from_slice(&self.bytes());
        bytes.extend_from_slice(field);
        IVec::from(bytes)
    }

    /// The key of a field.
    pub fn field_key(self, field: &[u8]) -> IVec {
        self.key(FIELD, field)
    }

    /// The key that says whose the hash is.
    pub fn owner_key(self) -> IVec {
        self.key(OWNER, &[])
    }

    /// Where the fields are that come behind one, or all.
    pub(crate) fn fields_after(self, field: Option<&IVec>) -> (Bound<IVec>, Bound<IVec>) {
        let low = match field {
            Some(field) => Bound::Excluded(self.field_key(field)),
            None => Bound::Included(self.field_key(&[])),
        };
        let high = match self.bytes().iter().rposition(|byte| *byte < u8::MAX) {
            Some(last) => {
                let mut bytes = [&[FIELD], &self.bytes()[..=last]].concat();
                bytes[last + 1] += 1;
                Bound::Excluded(IVec::from(bytes))
            }
            None => Bound::Excluded(IVec::from([FIELD + 1])),
        };
        (low, high)
    }
}

/// The id that bytes begin with.
pub(crate) fn id_of_bytes(bytes: &[u8]) -> Option<HashId> {
    HashId::from_bytes(bytes.get(..ID_LENGTH)?)
}

/// The id in a key of [`TreeId::HASHES`](crate::TreeId::HASHES).
pub(crate) fn id_of_key(key: &[u8]) -> Option<HashId> {
    HashId::from_bytes(key.get(1..1 + ID_LENGTH)?)
}

/// Whether a key says whose a hash is, instead of being a field's.
pub(crate) fn is_owner(key: &[u8]) -> bool {
    key.first() == Some(&OWNER)
}

/// Where it is said whose the hashes are.
pub(crate) fn owners() -> (Bound<IVec>, Bound<IVec>) {
    (Bound::Included(IVec::from([OWNER])), Bound::Excluded(IVec::from([OWNER + 1])))
}

/// The field in a key of one.
pub(crate) fn field_of_key(key: &[u8]) -> &[u8] {
    key.get(1 + ID_LENGTH..).unwrap_or_default()
}

/// What is stored of whose a hash is.
pub fn encode_owner(tree: u32, name: &[u8]) -> IVec {
    IVec::from([&tree.to_be_bytes(), name].concat())
}

/// Whose a hash is: a tree and a name.
pub(crate) fn decode_owner(stored: &[u8]) -> Option<(u32, &[u8])> {
    let (tree, name) = stored.split_first_chunk()?;
    Some((u32::from_be_bytes(*tree), name))
}

/// What the value of a key says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// A string.
    Text(IVec),
    /// A hash, with so many fields.
    Hash(HashId, u64),
}

impl Content {
    /// Understands the value of a key.
    pub fn of(value: IVec) -> Content {
        if !value.starts_with(MARK) {
            return Content::Text(value);
        }
        if value.starts_with(TEXT) {
            return Content::Text(value.subslice(TEXT.len(), value.len() - TEXT.len()));
        }
        match head(&value) {
            Some((id, count)) => Content::Hash(id, count),
            // Another client's own.
            None => Content::Text(value),
        }
    }

    /// The value of a key with this string.
    pub fn encode_text(text: &IVec) -> IVec {
        if text.starts_with(MARK) { IVec::from([TEXT, text].concat()) } else { text.clone() }
    }

    /// The value of a key with this hash.
    pub fn encode_hash(id: HashId, count: u64) -> IVec {
        let mut bytes = Vec::with_capacity(HEAD_LENGTH);
        bytes.extend_from_slice(HASH);
        bytes.push(HEAD_VERSION);
        bytes.extend_from_slice(&id.bytes());
        bytes.extend_from_slice(&count.to_be_bytes());
        IVec::from(bytes)
    }
}

/// The id and the number of fields in a head; `None`: it is none.
pub fn head(value: &[u8]) -> Option<(HashId, u64)> {
    let rest = value.strip_prefix(HASH)?;
    if value.len() != HEAD_LENGTH || rest[0] != HEAD_VERSION {
        return None;
    }
    let (id, count) = rest[1..].split_at(ID_LENGTH);
    Some((HashId::from_bytes(id)?, u64::from_be_bytes(count.try_into().ok()?)))
}

/// What is done to a hash.
///
/// New variants are added at the end: the position of a variant is part of its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum HashAction {
    /// Sets fields. Reply: [`StringsReply::Integer`], how many are new.
    Set {
        /// Fields and values; the last of a field counts.
        pairs: Listed<(IVec, IVec)>,
    },
    /// Sets a field that is not there. Reply: [`StringsReply::Integer`], 1 if it was set.
    SetAbsent {
        /// Which.
        field: IVec,
        /// Its value.
        value: IVec,
    },
    /// Reads a field. Reply: [`StringsReply::Value`].
    Get {
        /// Which.
        field: IVec,
    },
    /// Reads fields. Reply: [`StringsReply::Values`].
    GetMany {
        /// Which.
        fields: Listed<IVec>,
    },
    /// Removes fields, and with the last one the key. Reply: [`StringsReply::Integer`], how many were there.
    Delete {
        /// Which.
        fields: Listed<IVec>,
    },
    /// Whether a field is there. Reply: [`StringsReply::Integer`].
    Exists {
        /// Which.
        field: IVec,
    },
    /// How many fields there are. Reply: [`StringsReply::Integer`].
    Length,
    /// How long a field's value is. Reply: [`StringsReply::Integer`].
    ValueLength {
        /// Which.
        field: IVec,
    },
    /// All fields and values. Reply: [`StringsReply::Pairs`].
    All,
    /// Fields and values behind one. Reply: [`StringsReply::Pairs`].
    Page {
        /// `None`: from the first on.
        after: Option<IVec>,
        /// About how many; of a hash that has no more than [`SMALL`], all. Fewer if they are long: no more are
        /// told than the one with which they come to more than a mebibyte.
        limit: u32,
    },
    /// Adds to the integer that a field is as decimal text. Reply: [`StringsReply::Integer`], the sum.
    Add {
        /// Which.
        field: IVec,
        /// How much.
        delta: i64,
    },
    /// Adds to the number that a field is as decimal text. Reply: [`StringsReply::Value`], the sum.
    AddFloat {
        /// Which.
        field: IVec,
        /// How much, as decimal text.
        delta: IVec,
    },
}

/// What a page comes to at most, in bytes, its last field not counted: a page has to fit into one message.
pub(crate) const PAGE_BYTES: usize = 1 << 20;

/// A hash of no more fields is told as a whole, and removed at once.
pub const SMALL: u64 = 128;

/// What has to be known of a hash before something is done to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needs<'a> {
    /// Nothing but how many fields it has.
    Head,
    /// These fields.
    Fields(Vec<&'a IVec>),
    /// About so many fields behind one.
    Page(Option<&'a IVec>, u32),
    /// All of it.
    Whole,
}

impl HashAction {
    /// Whether it only reads.
    pub fn is_read(&self) -> bool {
        use HashAction::{All, Exists, Get, GetMany, Length, Page, ValueLength};
        matches!(
            self,
            Get { .. } | GetMany { .. } | Exists { .. } | Length | ValueLength { .. } | All | Page { .. }
        )
    }

    /// Whether it may make a hash.
    pub fn makes(&self) -> bool {
        use HashAction::{Add, AddFloat, Set, SetAbsent};
        matches!(self, Set { .. } | SetAbsent { .. } | Add { .. } | AddFloat { .. })
    }

    /// What has to be known.
    pub fn needs(&self) -> Needs<'_> {
        match self {
            HashAction::Set { pairs } => Needs::Fields(pairs.0.iter().map(|(field, _)| field).collect()),
            HashAction::GetMany { fields } | HashAction::Delete { fields } => {
                Needs::Fields(fields.0.iter().collect())
            }
            HashAction::SetAbsent { field, .. }
            | HashAction::Get { field }
            | HashAction::Exists { field }
            | HashAction::ValueLength { field }
            | HashAction::Add { field, .. }
            | HashAction::AddFloat { field, .. } => Needs::Fields(vec![field]),
            HashAction::Length => Needs::Head,
            HashAction::All => Needs::Whole,
            HashAction::Page { after, limit } => Needs::Page(after.as_ref(), *limit),
        }
    }

    /// The values that it brings.
    pub(crate) fn values(&self) -> impl Iterator<Item = &IVec> {
        let (pairs, one) = match self {
            HashAction::Set { pairs } => (&pairs.0[..], None),
            HashAction::SetAbsent { value, .. } | HashAction::AddFloat { delta: value, .. } => {
                (&[][..], Some(value))
            }
            _ => (&[][..], None),
        };
        pairs.iter().map(|(_, value)| value).chain(one)
    }

    /// The fields that it names.
    pub(crate) fn fields(&self) -> Vec<&IVec> {
        match self.needs() {
            Needs::Fields(fields) => fields,
            Needs::Page(Some(after), _) => vec![after],
            _ => Vec::new(),
        }
    }
}

/// A field, as it was found and as it has become.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Field {
    /// In the tree.
    pub before: Option<IVec>,
    /// Now.
    pub now: Option<IVec>,
}

/// A hash as far as it is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashSlot {
    /// Which.
    pub id: HashId,
    /// How many fields it has.
    pub count: u64,
    /// Those that are known, there or not.
    pub fields: BTreeMap<IVec, Field>,
    /// Whether all that are there are known.
    pub is_whole: bool,
    /// Up to where all are known that come behind where a page begins; `None`: to the end.
    pub page_end: Option<IVec>,
}

impl HashSlot {
    /// A hash of so many fields, none of which is known.
    pub fn found(id: HashId, count: u64) -> HashSlot {
        HashSlot { id, count, fields: BTreeMap::new(), is_whole: false, page_end: None }
    }

    /// One that is made anew.
    pub fn made(id: HashId) -> HashSlot {
        HashSlot { is_whole: true, ..HashSlot::found(id, 0) }
    }

    /// Learns what a field is in the tree.
    pub fn learn(&mut self, field: IVec, value: Option<IVec>) {
        self.fields.entry(field).or_insert(Field { before: value.clone(), now: value });
    }

    /// Learns that there is nothing else in the tree.
    pub fn learn_whole(&mut self, pairs: impl IntoIterator<Item = (IVec, IVec)>) {
        pairs.into_iter().for_each(|(field, value)| self.learn(field, Some(value)));
        self.is_whole = true;
    }

    /// Whether a field is known already.
    pub fn knows(&self, field: &IVec) -> bool {
        self.is_whole || self.fields.contains_key(field)
    }

    /// The same with another id, as something that is in no tree yet. All of it must be known.
    pub fn copied(&self, id: HashId) -> HashSlot {
        assert!(self.is_whole, "a part of a hash is copied");
        let there = self.fields.iter().filter(|(_, field)| field.now.is_some());
        let fields =
            there.map(|(name, field)| (name.clone(), Field { before: None, now: field.now.clone() }));
        HashSlot { id, fields: fields.collect(), page_end: None, ..*self }
    }

    fn get(&self, field: &IVec) -> Option<&IVec> {
        self.fields.get(field)?.now.as_ref()
    }

    /// Whether it was not there.
    fn set(&mut self, field: &IVec, value: Option<IVec>) -> bool {
        let (adds, known) = (value.is_some(), self.fields.entry(field.clone()).or_default());
        let was_there = known.now.is_some();
        known.now = value;
        match (was_there, adds) {
            (false, true) => self.count += 1,
            // It may be less than what is there if somebody has tampered with it.
            (true, false) => self.count = self.count.saturating_sub(1),
            _ => {}
        }
        !was_there
    }

    fn pairs(&self, after: Option<&IVec>) -> StringsReply {
        let low = after.map_or(Bound::Unbounded, Bound::Excluded);
        let high = self.page_end.as_ref().map_or(Bound::Unbounded, Bound::Included);
        let is_empty = matches!((low, high), (Bound::Excluded(low), Bound::Included(high)) if low >= high);
        let (mut pairs, mut bytes) = (Vec::new(), 0usize);
        if !is_empty {
            for (field, value) in self.fields.range::<IVec, _>((low, high)) {
                let Some(value) = &value.now else { continue };
                bytes += field.len() + value.len();
                if bytes > MAX_HASH_REPLY_BYTES {
                    return StringsReply::Failed(StringsFailure::TooMuch);
                }
                pairs.push((field.clone(), value.clone()));
            }
        }
        let more = self.page_end.clone();
        StringsReply::Pairs { pairs: Listed(pairs), more }
    }
}

/// What an action means to a hash that is there or not; `make` gives the id of one that is made. What it
/// [needs](HashAction::needs) must be known. Whether something was written.
pub fn apply(
    action: &HashAction,
    slot: &mut Option<HashSlot>,
    make: impl FnOnce() -> HashId,
) -> (StringsReply, bool) {
    use StringsReply::{Failed, Integer, Pairs, Value, Values};
    let found = slot.as_ref();
    let field = |field: &IVec| found.and_then(|hash| hash.get(field));
    let reply = match action {
        HashAction::Get { field: name } => Value(field(name).cloned()),
        HashAction::GetMany { fields } => {
            Values(Listed(fields.0.iter().map(|name| field(name).cloned()).collect()))
        }
        HashAction::Exists { field: name } => Integer(i64::from(field(name).is_some())),
        HashAction::Length => Integer(found.map_or(0, |hash| hash.count) as i64),
        HashAction::ValueLength { field: name } => Integer(field(name).map_or(0, |value| value.len()) as i64),
        // What is known of it is not all.
        HashAction::All if found.is_some_and(|hash| hash.page_end.is_some()) => {
            Failed(StringsFailure::TooMuch)
        }
        HashAction::All => {
            found.map_or(Pairs { pairs: Listed::default(), more: None }, |hash| hash.pairs(None))
        }
        HashAction::Page { after, .. } => {
            found.map_or(Pairs { pairs: Listed::default(), more: None }, |hash| hash.pairs(after.as_ref()))
        }
        HashAction::Delete { fields } => {
            let Some(hash) = slot else { return (Integer(0), false) };
            let gone =
                fields.0.iter().filter(|name| hash.get(name).is_some() && !hash.set(name, None)).count();
            if hash.count == 0 {
                *slot = None;
            }
            return (Integer(gone as i64), gone > 0);
        }
        HashAction::SetAbsent { field: name, .. } if field(name).is_some() => Integer(0),
        HashAction::SetAbsent { field: name, value } => {
            slot.get_or_insert_with(|| HashSlot::made(make())).set(name, Some(value.clone()));
            return (Integer(1), true);
        }
        HashAction::Set { pairs } => {
            let hash = slot.get_or_insert_with(|| HashSlot::made(make()));
            let new = pairs.0.iter().filter(|(name, value)| hash.set(name, Some(value.clone()))).count();
            return (Integer(new as i64), true);
        }
        HashAction::Add { field: name, delta } => {
            let current = field(name).map_or(Some(0), |text| parse_integer(text));
            let Some(current) = current else { return (Failed(StringsFailure::FieldNotAnInteger), false) };
            let Some(sum) = current.checked_add(*delta) else {
                return (Failed(StringsFailure::Overflow), false);
            };
            let hash = slot.get_or_insert_with(|| HashSlot::made(make()));
            hash.set(name, Some(IVec::from(sum.to_string())));
            return (Integer(sum), true);
        }
        HashAction::AddFloat { field: name, delta } => {
            let sum = match sum_of_floats(field(name), delta) {
                Ok(sum) => sum,
                Err(StringsFailure::NotAFloat) => return (Failed(StringsFailure::FieldNotAFloat), false),
                Err(failure) => return (Failed(failure), false),
            };
            let hash = slot.get_or_insert_with(|| HashSlot::made(make()));
            hash.set(name, Some(sum.clone()));
            return (Value(Some(sum)), true);
        }
    };
    (reply, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_and_escaped_strings_have_these_bytes() {
        let id = HashId { base: 0x0102, ordinal: 3 };
        let head = Content::encode_hash(id, 4);
        assert_eq!(head, b"\0dogsled:hash\x01\0\0\0\0\0\0\x01\x02\0\0\0\x03\0\0\0\0\0\0\0\x04");
        assert_eq!(Content::of(head.clone()), Content::Hash(id, 4));
        assert_eq!(id.field_key(b"f"), b"\x02\0\0\0\0\0\0\x01\x02\0\0\0\x03f");
        assert_eq!(id.owner_key(), b"\x01\0\0\0\0\0\0\x01\x02\0\0\0\x03");
        assert_eq!(decode_owner(&encode_owner(7, b"name")), Some((7, &b"name"[..])));
        // A string is never taken for a hash, and always what it was.
        for text in
            [IVec::from("a"), IVec::from("\0dogsled:"), head, IVec::from("\0dogsled:textx"), IVec::new()]
        {
            assert_eq!(Content::of(Content::encode_text(&text)), Content::Text(text));
        }
        for other in ["\0dogsled:hash", "\0dogsled:hash\x02", "\0dogsled:list"] {
            assert_eq!(Content::of(IVec::from(other)), Content::Text(IVec::from(other)));
        }
    }

    #[test]
    fn a_part_of_a_hash_is_never_told_as_if_it_were_all() {
        let mut slot = Some(HashSlot::found(HashId::default(), 2));
        let hash = slot.as_mut().unwrap();
        hash.learn("a".into(), Some("1".into()));
        hash.page_end = Some("a".into());
        let reply = apply(&HashAction::All, &mut slot, HashId::default).0;
        assert_eq!(reply, StringsReply::Failed(StringsFailure::TooMuch));
        let page = HashAction::Page { after: None, limit: 1 };
        assert!(matches!(
            apply(&page, &mut slot, HashId::default).0,
            StringsReply::Pairs { more: Some(_), .. }
        ));
    }

    #[test]
    fn the_fields_of_a_hash_are_a_range_of_their_own() {
        let within = |(low, high): (Bound<IVec>, Bound<IVec>), key: &IVec| {
            std::ops::RangeBounds::contains(&(low, high), key)
        };
        let ids = [(0, 0), (0, 1), (1, 0), (1, u32::MAX), (2, 0), (u64::MAX, u32::MAX)];
        let ids = ids.map(|(base, ordinal)| HashId { base, ordinal });
        for id in ids {
            for other in ids {
                for field in ["", "a", "\u{ff}"] {
                    let key = other.field_key(field.as_bytes());
                    assert_eq!(within(id.fields_after(None), &key), id == other, "{id:?} {other:?}");
                }
                assert!(!within(id.fields_after(None), &other.owner_key()));
            }
            let after = id.fields_after(Some(&"a".into()));
            assert!(!within(after.clone(), &id.field_key(b"a")) && within(after, &id.field_key(b"a\0")));
        }
    }
}
