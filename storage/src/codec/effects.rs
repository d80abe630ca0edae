//! The effects of one commit as the payload of a WAL record, laid out by hand.
//!
//! # Format, version 1
//!
//! One record holds one commit:
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | format version, 1 |
//! | varint | `time_ms`, the log's time of the commit |
//! | varint | how many effects follow |
//! | … | the effects, one after the other, to the end of the record |
//!
//! Each effect begins with its kind. The lengths stand before the first bytes of key or value, so
//! that all small parts are written in one go:
//!
//! | kind | effect | then |
//! |---|---|---|
//! | `0x01` | put, the key was there before | tree, length of key, length of value, key, value |
//! | `0x81` | put, the key is fresh | the same |
//! | `0x02` | remove | tree, length of key, key |
//! | `0x03` | clear | tree |
//! | `0x04` | create tree | its number, length of name, name |
//! | `0x05` | drop tree | its number |
//! | `0x06` | set next id | the number |
//! | `0x07` | put, whether the key was there is not known | as `0x01` |
//! | `0x08` | tell, nothing changes | as `0x01` |
//!
//! All numbers and lengths are varints in LEB128: seven bits per byte, the lowest first, the high
//! bit set on all but the last byte. Each number has one encoding only: a varint that ends in a
//! zero byte, has more than ten bytes, or is above 64 bits (32 for the number of a tree) is
//! malformed. So decoding and encoding again gives the same bytes.
//!
//! A put of 16 + 100 bytes into the default tree is 128 bytes: 1 + 6 + 1 around the commit, 4 for
//! kind, tree and lengths, and the bytes themselves.
//!
//! # Not here
//!
//! Length and checksum of the record and the sequence of the commit: the WAL's frame has them. The
//! lengths of keys and values are limited where commands come in
//! ([`Command::check_limits`](crate::Command::check_limits)); here the record's length limits them.

use std::fmt;
use std::iter::FusedIterator;
use std::path::PathBuf;

use crate::command::TreeId;
use crate::evaluate::{Effect, Effects};
use crate::{Error, IVec};

const EFFECTS_VERSION: u8 = 1;

const PUT: u8 = 0x01;
const REMOVE: u8 = 0x02;
const CLEAR: u8 = 0x03;
const CREATE_TREE: u8 = 0x04;
const DROP_TREE: u8 = 0x05;
const SET_NEXT_ID: u8 = 0x06;
const BLIND_PUT: u8 = 0x07;
const TELL: u8 = 0x08;
/// Set in the kind of a [`PUT`] whose key was absent.
const FRESH: u8 = 0x80;

/// The most bytes of a varint of 64 bits.
const MAX_VARINT: usize = 10;
/// The fewest bytes of an effect: a kind and a one-byte number.
const MIN_EFFECT: usize = 2;

/// Appends one commit's effects to `out`; what `out` holds already is left alone.
///
/// ```
/// use dogsled_storage::codec::{decode_effects, encode_effects};
/// use dogsled_storage::{Effect, TreeId};
///
/// let effects = [Effect::Put {
///     tree: TreeId::DEFAULT,
///     key: "key".into(),
///     value: "value".into(),
///     fresh: Some(true),
/// }];
/// let mut record = Vec::new();
/// encode_effects(300, &effects, &mut record);
/// assert_eq!(record, b"\x01\xac\x02\x01\x81\x00\x03\x05keyvalue");
///
/// let (time_ms, decoded) = decode_effects(&record)?;
/// assert_eq!(time_ms, 300);
/// for (effect, expected) in decoded.zip(&effects) {
///     assert_eq!(effect?.to_owned(), *expected);
/// }
/// # Ok::<(), dogsled_storage::codec::Malformed>(())
/// ```
#[inline]
pub fn encode_effects(time_ms: u64, effects: &[Effect], out: &mut Vec<u8>) {
    let mut head = Head::<{ 1 + 2 * MAX_VARINT }>::new(EFFECTS_VERSION);
    head.varint(time_ms);
    head.varint(effects.len() as u64);
    out.extend_from_slice(head.bytes());
    for effect in effects {
        encode_effect(effect, out);
    }
}

#[inline]
fn encode_effect(effect: &Effect, out: &mut Vec<u8>) {
    match effect {
        Effect::Put { tree, key, value, fresh } => {
            let kind = match fresh {
                Some(true) => PUT | FRESH,
                Some(false) => PUT,
                None => BLIND_PUT,
            };
            pair(kind, *tree, key, value, out);
        }
        Effect::Tell { tree, key, value } => pair(TELL, *tree, key, value, out),
        Effect::Remove { tree, key } => named(REMOVE, *tree, key, out),
        Effect::CreateTree { id, name } => named(CREATE_TREE, *id, name, out),
        Effect::Clear { tree } => number(CLEAR, tree.0.into(), out),
        Effect::DropTree { id } => number(DROP_TREE, id.0.into(), out),
        Effect::SetNextId { next } => number(SET_NEXT_ID, *next, out),
    }
}

#[inline(always)]
fn pair(kind: u8, tree: TreeId, key: &[u8], value: &[u8], out: &mut Vec<u8>) {
    let mut head = Head::<{ 1 + 3 * MAX_VARINT }>::new(kind);
    head.varint(tree.0.into());
    head.varint(key.len() as u64);
    head.varint(value.len() as u64);
    let head = head.bytes();
    out.reserve(head.len() + key.len() + value.len());
    out.extend_from_slice(head);
    out.extend_from_slice(key);
    out.extend_from_slice(value);
}

fn named(kind: u8, tree: TreeId, name: &[u8], out: &mut Vec<u8>) {
    let mut head = Head::<{ 1 + 2 * MAX_VARINT }>::new(kind);
    head.varint(tree.0.into());
    head.varint(name.len() as u64);
    out.extend_from_slice(head.bytes());
    out.extend_from_slice(name);
}

fn number(kind: u8, number: u64, out: &mut Vec<u8>) {
    let mut head = Head::<{ 1 + MAX_VARINT }>::new(kind);
    head.varint(number);
    out.extend_from_slice(head.bytes());
}

/// Small parts gathered on the stack, so that they reach the output in one copy.
struct Head<const CAPACITY: usize> {
    bytes: [u8; CAPACITY],
    length: usize,
}

impl<const CAPACITY: usize> Head<CAPACITY> {
    #[inline(always)]
    fn new(first: u8) -> Self {
        let mut bytes = [0; CAPACITY];
        bytes[0] = first;
        Head { bytes, length: 1 }
    }

    #[inline(always)]
    fn varint(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.bytes[self.length] = number as u8 | 0x80;
            self.length += 1;
            number >>= 7;
        }
        self.bytes[self.length] = number as u8;
        self.length += 1;
    }

    #[inline(always)]
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What is wrong with a record, and where in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed {
    /// The first byte that is wrong, counted from the start of the record.
    pub offset: usize,
    /// What was expected and what was found.
    pub what: String,
}

impl Malformed {
    #[cold]
    fn new(offset: usize, what: impl Into<String>) -> Malformed {
        Malformed { offset, what: what.into() }
    }

    /// The error that says where the damage is in the file that holds the record from
    /// `record_offset` on.
    pub fn in_file(self, file: impl Into<PathBuf>, record_offset: u64) -> Error {
        Error::corrupt(file, record_offset + self.offset as u64, self.what)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "malformed at byte {} of the record: {}", self.offset, self.what)
    }
}

impl std::error::Error for Malformed {}

/// An [`Effect`] that borrows from the record it was decoded from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EffectRef<'a> {
    /// See [`Effect::Put`].
    Put {
        /// Where.
        tree: TreeId,
        /// Which.
        key: &'a [u8],
        /// The new value.
        value: &'a [u8],
        /// Whether the key was absent, if that is known.
        fresh: Option<bool>,
    },
    /// See [`Effect::Remove`].
    Remove {
        /// Where.
        tree: TreeId,
        /// Which.
        key: &'a [u8],
    },
    /// See [`Effect::Tell`].
    Tell {
        /// Where.
        tree: TreeId,
        /// Which.
        key: &'a [u8],
        /// What is told.
        value: &'a [u8],
    },
    /// See [`Effect::Clear`].
    Clear {
        /// Which.
        tree: TreeId,
    },
    /// See [`Effect::CreateTree`].
    CreateTree {
        /// Its number.
        id: TreeId,
        /// Its name.
        name: &'a [u8],
    },
    /// See [`Effect::DropTree`].
    DropTree {
        /// Its number.
        id: TreeId,
    },
    /// See [`Effect::SetNextId`].
    SetNextId {
        /// The first that is free.
        next: u64,
    },
}

impl EffectRef<'_> {
    /// The same effect with its own bytes.
    #[inline]
    pub fn to_owned(&self) -> Effect {
        match *self {
            EffectRef::Put { tree, key, value, fresh } => {
                Effect::Put { tree, key: IVec::from(key), value: IVec::from(value), fresh }
            }
            EffectRef::Remove { tree, key } => Effect::Remove { tree, key: IVec::from(key) },
            EffectRef::Tell { tree, key, value } => {
                Effect::Tell { tree, key: IVec::from(key), value: IVec::from(value) }
            }
            EffectRef::Clear { tree } => Effect::Clear { tree },
            EffectRef::CreateTree { id, name } => Effect::CreateTree { id, name: IVec::from(name) },
            EffectRef::DropTree { id } => Effect::DropTree { id },
            EffectRef::SetNextId { next } => Effect::SetNextId { next },
        }
    }
}

/// Reads the head of a record: the log's time, and an iterator over the effects.
///
/// Nothing is allocated. An effect is checked when the iterator reaches it: a caller that must
/// apply all or nothing (every caller that recovers) iterates to the end first, or uses
/// [`EffectRefs::to_owned`].
///
/// # Errors
/// [`Malformed`] if the head is: an unknown version, no time, or more effects announced than the
/// record has room for.
pub fn decode_effects(record: &[u8]) -> Result<(u64, EffectRefs<'_>), Malformed> {
    let mut reader = Reader { record, position: 0 };
    let version = reader.byte("the format version")?;
    if version != EFFECTS_VERSION {
        return Err(Malformed::new(
            0,
            format!("effects of format version {version}; this build reads {EFFECTS_VERSION}"),
        ));
    }
    let time_ms = reader.varint("the time")?;
    let count_offset = reader.position;
    let count = reader.varint("the number of effects")?;
    let room = (reader.left() / MIN_EFFECT) as u64;
    if count > room {
        return Err(Malformed::new(
            count_offset,
            format!("{count} effects announced, with room for {room} at most"),
        ));
    }
    Ok((time_ms, EffectRefs { reader, remaining: count, is_done: false }))
}

/// Iterates over the effects of a record; made by [`decode_effects`].
///
/// After the last effect it yields one more item, an error, if bytes are left over; after an
/// error, nothing.
#[derive(Clone, Debug)]
pub struct EffectRefs<'a> {
    reader: Reader<'a>,
    remaining: u64,
    is_done: bool,
}

impl<'a> EffectRefs<'a> {
    /// How many effects are still to come, as the record announces.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// All effects that are left, with their own bytes.
    ///
    /// # Errors
    /// [`Malformed`] at the first that is.
    pub fn to_owned(self) -> Result<Effects, Malformed> {
        // The count is no more than half of the bytes that are there, but an effect in memory is
        // forty times the smallest encoded one: let a long list grow as it proves real.
        let mut effects = Effects::with_capacity(self.remaining.min(64) as usize);
        for effect in self {
            effects.push(effect?.to_owned());
        }
        Ok(effects)
    }

    fn decode_next(&mut self) -> Result<Option<EffectRef<'a>>, Malformed> {
        let reader = &mut self.reader;
        if self.remaining == 0 {
            return match reader.left() {
                0 => Ok(None),
                left => Err(Malformed::new(reader.position, format!("{left} bytes after the last effect"))),
            };
        }
        self.remaining -= 1;
        let kind_offset = reader.position;
        let kind = reader.byte("the kind of an effect")?;
        let effect = match kind & !FRESH {
            PUT | BLIND_PUT if kind != BLIND_PUT | FRESH => {
                let tree = reader.tree()?;
                let key_length = reader.length("the length of a key")?;
                let value_length = reader.length("the length of a value")?;
                let key = reader.bytes(key_length, "a key")?;
                let value = reader.bytes(value_length, "a value")?;
                let fresh = (kind != BLIND_PUT).then_some(kind & FRESH != 0);
                EffectRef::Put { tree, key, value, fresh }
            }
            _ if kind & FRESH != 0 => return Err(unknown_kind(kind_offset, kind)),
            REMOVE => {
                let tree = reader.tree()?;
                let length = reader.length("the length of a key")?;
                EffectRef::Remove { tree, key: reader.bytes(length, "a key")? }
            }
            TELL => {
                let tree = reader.tree()?;
                let key_length = reader.length("the length of a key")?;
                let value_length = reader.length("the length of a value")?;
                let key = reader.bytes(key_length, "a key")?;
                EffectRef::Tell { tree, key, value: reader.bytes(value_length, "a value")? }
            }
            CLEAR => EffectRef::Clear { tree: reader.tree()? },
            CREATE_TREE => {
                let id = reader.tree()?;
                let length = reader.length("the length of a name")?;
                EffectRef::CreateTree { id, name: reader.bytes(length, "a name")? }
            }
            DROP_TREE => EffectRef::DropTree { id: reader.tree()? },
            SET_NEXT_ID => EffectRef::SetNextId { next: reader.varint("the next id")? },
            _ => return Err(unknown_kind(kind_offset, kind)),
        };
        Ok(Some(effect))
    }
}

fn unknown_kind(offset: usize, kind: u8) -> Malformed {
    Malformed::new(offset, format!("no effect is of kind {kind:#04x}"))
}

impl<'a> Iterator for EffectRefs<'a> {
    type Item = Result<EffectRef<'a>, Malformed>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.is_done {
            return None;
        }
        let item = self.decode_next().transpose();
        self.is_done = !matches!(item, Some(Ok(_)));
        item
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        // Only a claim until it is decoded, so nobody shall make room for it.
        (0, usize::try_from(self.remaining).ok().and_then(|remaining| remaining.checked_add(1)))
    }
}

impl FusedIterator for EffectRefs<'_> {}

#[derive(Clone, Debug)]
struct Reader<'a> {
    record: &'a [u8],
    position: usize,
}

impl<'a> Reader<'a> {
    fn left(&self) -> usize {
        self.record.len() - self.position
    }

    #[inline]
    fn byte(&mut self, what: &str) -> Result<u8, Malformed> {
        match self.record.get(self.position) {
            Some(&byte) => {
                self.position += 1;
                Ok(byte)
            }
            None => Err(self.ends_before(what)),
        }
    }

    #[cold]
    fn ends_before(&self, what: &str) -> Malformed {
        Malformed::new(self.position, format!("the record ends before {what}"))
    }

    #[inline]
    fn varint(&mut self, what: &str) -> Result<u64, Malformed> {
        // Most are one byte: trees and lengths.
        match self.record.get(self.position) {
            Some(&byte) if byte < 0x80 => {
                self.position += 1;
                Ok(byte.into())
            }
            _ => self.long_varint(what),
        }
    }

    fn long_varint(&mut self, what: &str) -> Result<u64, Malformed> {
        let start = self.position;
        let mut number = 0;
        for index in 0..MAX_VARINT {
            let byte = self.byte(what)?;
            // The tenth byte has room for the highest bit of 64 only.
            if index == MAX_VARINT - 1 && byte > 1 {
                break;
            }
            number |= u64::from(byte & 0x7f) << (7 * index);
            if byte & 0x80 == 0 {
                if byte == 0 && index > 0 {
                    return Err(Malformed::new(start, format!("{what} is not in its shortest form")));
                }
                return Ok(number);
            }
        }
        Err(Malformed::new(start, format!("{what} is above 64 bits")))
    }

    #[inline]
    fn tree(&mut self) -> Result<TreeId, Malformed> {
        let start = self.position;
        let number = self.varint("the number of a tree")?;
        match u32::try_from(number) {
            Ok(number) => Ok(TreeId(number)),
            Err(_) => Err(Malformed::new(start, format!("{number} is above any number of a tree"))),
        }
    }

    #[inline]
    fn length(&mut self, what: &str) -> Result<usize, Malformed> {
        let start = self.position;
        let length = self.varint(what)?;
        match usize::try_from(length) {
            Ok(length) if length <= self.left() => Ok(length),
            _ => Err(Malformed::new(start, format!("{what} is {length}, with {} bytes left", self.left()))),
        }
    }

    #[inline]
    fn bytes(&mut self, length: usize, what: &str) -> Result<&'a [u8], Malformed> {
        if length > self.left() {
            return Err(Malformed::new(
                self.position,
                format!("the record ends within {what}: {length} bytes, {} left", self.left()),
            ));
        }
        let bytes = &self.record[self.position..self.position + length];
        self.position += length;
        Ok(bytes)
    }
}
