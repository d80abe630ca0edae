//! Commands on a whole database: `KEYS`, `SCAN`, `RANDOMKEY`, `DBSIZE`, `FLUSHDB`, `FLUSHALL`.
//!
//! A cursor of `SCAN` is a number, and a place in an ordered tree is a key; so the server keeps the keys behind the numbers that
//! it gave, the latest of them, and another node does not know them.

use std::collections::VecDeque;
use std::ops::Bound;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::TreeId;
use dogsled_storage::hashes::head;
use dogsled_storage::strings::notices;
use dogsled_storage::strings::{StringAction, StringsOperation, parse_integer};
use futures_util::future::join_all;
use parking_lot::Mutex;

use super::database::{Database, MOST_IN_REPLY, bulk, failed, too_much};
use super::glob;
use super::held::Collected;
use super::table::{Asked, Planned, Step, integer, is_word, syntax_error};
use super::tree_name;
use crate::IVec;
use crate::cluster::session::random_u64;
use crate::cluster::{Entries, Error, Tree};

/// The most places that are kept for `SCAN`, and their bytes.
const MOST_CURSORS: usize = 16 << 10;
const MOST_CURSOR_BYTES: usize = 8 << 20;
/// About the bytes of keys that one part of `SCAN` tells.
const MOST_SCANNED_BYTES: usize = 1 << 20;
/// The most keys that one `SCAN` looks at.
const MOST_SCANNED: i64 = 10_000;

/// What is asked of a whole database.
#[derive(Clone, Debug)]
pub(super) enum Whole {
    Keys(Bytes),
    Scan {
        cursor: u64,
        pattern: Option<Bytes>,
        count: i64,
        kind: Wanted,
    },
    Size,
    RandomKey,
    /// Of `CONFIG GET`, by patterns.
    Parameters(Vec<Bytes>),
    /// Which events are told of keys.
    Notify(notices::Wanted),
    Flush,
    FlushAll,
}

impl Whole {
    /// Whether it changes something.
    pub(super) fn writes(&self) -> bool {
        matches!(self, Whole::Notify(_) | Whole::Flush | Whole::FlushAll)
    }
}

/// What kind of values the keys have that a scan is to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    Any,
    Strings,
    Hashes,
    Nothing,
}

/// The longest pattern of a scan: what comparing takes is the product of its length and that of a key.
const MOST_PATTERN: usize = 1024;

pub(super) fn checked_pattern(pattern: &Bytes) -> Result<Bytes, Value> {
    match pattern.len() > MOST_PATTERN {
        true => Err(Value::error(format!("ERR a pattern is longer than {MOST_PATTERN} bytes"))),
        false => Ok(pattern.clone()),
    }
}

pub(super) fn keys(asked: &Asked<'_>) -> Planned {
    Ok(Step::Whole(Whole::Keys(checked_pattern(&asked.arguments[1])?)))
}

pub(super) fn size(_: &Asked<'_>) -> Planned {
    Ok(Step::Whole(Whole::Size))
}

pub(super) fn random_key(_: &Asked<'_>) -> Planned {
    Ok(Step::Whole(Whole::RandomKey))
}

fn check_flush(asked: &Asked<'_>) -> Result<(), Value> {
    match &asked.arguments[1..] {
        [] => Ok(()),
        [how] if is_word(how, "ASYNC") || is_word(how, "SYNC") => Ok(()),
        _ => Err(syntax_error()),
    }
}

pub(super) fn flush(asked: &Asked<'_>) -> Planned {
    check_flush(asked)?;
    Ok(Step::Whole(Whole::Flush))
}

pub(super) fn flush_all(asked: &Asked<'_>) -> Planned {
    check_flush(asked)?;
    Ok(Step::Whole(Whole::FlushAll))
}

/// The cursor that a scan goes on from, be it over keys or fields.
pub(super) fn cursor_of(argument: &[u8]) -> Result<u64, Value> {
    // As C reads a number: nothing is 0, and a sign may be before it.
    let (is_negative, digits) = match argument {
        [b'+', digits @ ..] => (false, digits),
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    let cursor = match digits.is_empty() {
        true if digits.len() == argument.len() => Some(0),
        true => None,
        false if digits.iter().all(u8::is_ascii_digit) => {
            std::str::from_utf8(digits).ok().and_then(|cursor| cursor.parse::<u64>().ok())
        }
        false => None,
    };
    let cursor = cursor.map(|cursor| if is_negative { cursor.wrapping_neg() } else { cursor });
    cursor.ok_or_else(|| Value::error("ERR invalid cursor"))
}

pub(super) fn scan(asked: &Asked<'_>) -> Planned {
    let cursor = cursor_of(&asked.arguments[1])?;
    let (mut pattern, mut count, mut kind) = (None, 10, Wanted::Any);
    let mut options = asked.arguments[2..].iter();
    while let Some(option) = options.next() {
        let argument = options.next().ok_or_else(syntax_error)?;
        if is_word(option, "COUNT") {
            count = integer(argument)?;
            if count < 1 {
                return Err(syntax_error());
            }
        } else if is_word(option, "MATCH") {
            pattern = Some(checked_pattern(argument)?);
        } else if is_word(option, "TYPE") {
            kind = match () {
                () if is_word(argument, "string") => Wanted::Strings,
                () if is_word(argument, "hash") => Wanted::Hashes,
                () => Wanted::Nothing,
            };
        } else {
            return Err(syntax_error());
        }
    }
    Ok(Step::Whole(Whole::Scan { cursor, pattern, count, kind }))
}

/// Where scans go on.
#[derive(Default)]
pub(super) struct Cursors(Mutex<Places>);

#[derive(Default)]
struct Places {
    latest: VecDeque<(u64, IVec)>,
    bytes: usize,
}

impl Cursors {
    pub(super) fn keep(&self, behind: IVec) -> u64 {
        // Never 0, which is the beginning; and what JavaScript can count.
        let cursor = (random_u64() >> 12).max(1);
        let places = &mut *self.0.lock();
        places.bytes += behind.len();
        places.latest.push_back((cursor, behind));
        while places.latest.len() > MOST_CURSORS || places.bytes > MOST_CURSOR_BYTES {
            let Some((_, key)) = places.latest.pop_front() else { break };
            places.bytes -= key.len();
        }
        cursor
    }

    /// Not forgotten with that: an answer that was lost is asked for again.
    pub(super) fn find(&self, cursor: u64) -> Option<IVec> {
        let places = self.0.lock();
        places.latest.iter().rev().find(|(known, _)| *known == cursor).map(|(_, key)| key.clone())
    }
}

impl Database {
    /// Answers what is asked of a whole database.
    pub(super) async fn whole(&self, database: u32, asked: &Whole) -> Value {
        let tree = self.client.tree(tree_name(database));
        let answer = match asked {
            Whole::Keys(pattern) => keys_of(&tree, pattern, &self.held.collect()).await,
            Whole::Size => tree.len().await.map(|size| Value::Integer(size as i64)),
            Whole::RandomKey => random(&tree).await.map(|key| key.map_or(Value::Null, bulk)),
            Whole::Parameters(patterns) => self.parameters_of_all(patterns).await,
            Whole::Notify(wanted) => self.notify(*wanted).await,
            Whole::Flush => self.clear(database).await.map(|()| Value::OK),
            Whole::FlushAll => self.flush_all().await.map(|()| Value::OK),
            Whole::Scan { cursor, pattern, count, kind } => {
                let from = match cursor {
                    0 => Bound::Unbounded,
                    known => match self.cursors.find(*known) {
                        Some(key) => Bound::Excluded(key),
                        // Where there is nothing, nothing is left out.
                        None => return self.nothing_or(&tree, "ERR invalid cursor").await,
                    },
                };
                self.scan(&tree, from, pattern.as_deref(), *count, *kind).await
            }
        };
        answer.unwrap_or_else(|error| failed(&error))
    }

    /// The end of a scan, if there are no keys; otherwise an error.
    async fn nothing_or(&self, tree: &Tree, otherwise: &'static str) -> Value {
        match first_key(tree, false).await {
            Ok(None) => Value::Array(vec![Value::text("0"), Value::Array(Vec::new())]),
            Ok(Some(_)) => Value::error(otherwise),
            Err(error) => failed(&error),
        }
    }

    async fn scan(
        &self,
        tree: &Tree,
        from: Bound<IVec>,
        pattern: Option<&[u8]>,
        count: i64,
        kind: Wanted,
    ) -> Result<Value, Error> {
        let entries = tree.range::<IVec, _>((from, Bound::Unbounded));
        // The value tells what kind it is.
        let mut entries = match kind {
            Wanted::Any | Wanted::Nothing => entries.keys_only(),
            Wanted::Strings | Wanted::Hashes => entries,
        };
        let (mut found, mut last, mut bytes) = (Vec::new(), None, 0);
        for _ in 0..count.min(MOST_SCANNED) {
            // It may tell fewer than it was asked for: long ones are told some at a time.
            if bytes > MOST_SCANNED_BYTES {
                break;
            }
            let Some(entry) = entries.next().await else {
                last = None;
                break;
            };
            let (key, value) = entry?;
            last = Some(key.clone());
            let is_of_kind = match kind {
                Wanted::Any => true,
                Wanted::Nothing => false,
                Wanted::Strings => head(&value).is_none(),
                Wanted::Hashes => head(&value).is_some(),
            };
            if is_of_kind && pattern.is_none_or(|pattern| glob::selects(pattern, &key)) {
                bytes += key.len();
                found.push(bulk(key));
            }
        }
        // Only the look at the one behind tells whether there is more.
        let more = last.is_some() && entries.next().await.transpose()?.is_some();
        let cursor = last.filter(|_| more).map_or(0, |last| self.cursors.keep(last));
        Ok(Value::Array(vec![Value::text(cursor.to_string()), Value::Array(found)]))
    }

    /// In each partition at one moment, but not in all at the same.
    async fn clear(&self, database: u32) -> Result<(), Error> {
        let groups = 1..=self.client.core().partitions(self.client.until()).await?;
        let cleared = groups.map(|group| {
            let (tree, key, action) = (TreeId(database), IVec::new(), StringAction::Clear);
            self.submit(group, Vec::new(), &[], vec![StringsOperation { tree, key, action }])
        });
        // All of them, whatever happens to one.
        join_all(cleared).await.into_iter().try_for_each(|cleared| cleared.map(drop))
    }

    /// All that are databases: other trees are not Redis's.
    async fn flush_all(&self) -> Result<(), Error> {
        for name in self.client.tree_names().await? {
            let number = name.strip_prefix(b"redis:").and_then(parse_integer);
            let number = if &name[..] == b"redis" { Some(0) } else { number.filter(|number| *number > 0) };
            let number = number.and_then(|number| u32::try_from(number).ok());
            // Of a greater number it is somebody's tree, and no database.
            if let Some(number) = number.filter(|number| *number < super::DATABASES) {
                self.clear(number).await?;
            }
        }
        Ok(())
    }
}

async fn keys_of(tree: &Tree, pattern: &[u8], collected: &Collected) -> Result<Value, Error> {
    let prefix = glob::prefix(pattern);
    let mut entries: Entries = tree.scan_prefix(prefix).keys_only();
    let mut keys = Vec::new();
    while let Some(entry) = entries.next().await {
        let (key, _) = entry?;
        if glob::selects(pattern, &key) {
            let has_room = collected.add(key.len() + size_of::<Value>());
            if !has_room || collected.bytes() > MOST_IN_REPLY {
                return Err(too_much());
            }
            keys.push(bulk(key));
        }
        // Others are to be served meanwhile, however long this takes.
        tokio::task::consume_budget().await;
    }
    Ok(Value::Array(keys))
}

/// So many keys are looked at for a random one.
const LOOKED_AT: usize = 16;

/// One of some keys behind a place by chance between the first and the last; behind the last comes the first. Keys behind gaps,
/// and those shortly after them, come more often.
async fn random(tree: &Tree) -> Result<Option<IVec>, Error> {
    let (Some((first, _)), Some((last, _))) = (first_key(tree, false).await?, first_key(tree, true).await?)
    else {
        return Ok(None);
    };
    let common = first.iter().zip(last.iter()).take_while(|(one, other)| one == other).count();
    let number = |key: &IVec| {
        let mut bytes = [0; 8];
        let rest = &key[common..];
        let length = rest.len().min(8);
        bytes[..length].copy_from_slice(&rest[..length]);
        u64::from_be_bytes(bytes)
    };
    // They were read one after the other: by the second time what was first may be gone.
    let (low, high) = (number(&first).min(number(&last)), number(&first).max(number(&last)));
    let place =
        IVec::from([&first[..common], &(low + below((high - low).wrapping_add(1))).to_be_bytes()].concat());
    let behind = (Bound::Included(place.clone()), Bound::Unbounded);
    let mut some = Vec::with_capacity(LOOKED_AT);
    for range in [behind, (Bound::Unbounded, Bound::Excluded(place))] {
        let mut keys = tree.range::<IVec, _>(range).keys_only();
        while some.len() < LOOKED_AT
            && let Some((key, _)) = keys.next().await.transpose()?
        {
            some.push(key);
        }
    }
    let one = below(some.len() as u64) as usize;
    Ok(some.into_iter().nth(one))
}

/// A random number below a limit, of which 0 means 2^64.
fn below(limit: u64) -> u64 {
    match limit {
        0 => random_u64(),
        _ => ((u128::from(random_u64()) * u128::from(limit)) >> 64) as u64,
    }
}

async fn first_key(tree: &Tree, last: bool) -> Result<Option<(IVec, IVec)>, Error> {
    let entries = tree.iter().keys_only();
    let mut entries = if last { entries.rev() } else { entries };
    entries.next().await.transpose()
}
