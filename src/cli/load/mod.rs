//! `dogsled load`: other programs' data into a tree.
//!
//! Promise: what is loaded is a prefix of the input. Records are written in batches of bounded
//! size, in the order of the file; at the first wrong record everything before it is written and
//! synced, nothing after it is, and the error names the file, the line and both facts. With
//! `--skip-bad` wrong records are counted and left out instead, as long as the reader can tell
//! where the next one begins.
//!
//! One module per format, each an iterator of [`Record`]s that touches neither database nor
//! terminal: [`delimited`] (TSV, CSV), [`json_lines`], [`redis`]. [`lines`] counts lines for all; [`pieces`]
//! has what is said of hashes in records of bounded size.

pub(crate) mod delimited;
pub(crate) mod json_lines;
pub(crate) mod lines;
pub(crate) mod pieces;
pub(crate) mod redis;

use std::fmt;
use std::io;
use std::path::Path;

use clap::ValueEnum;
use dogsled_storage::command::{MAX_KEY_LENGTH, MAX_VALUE_LENGTH};

/// One change that an input asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    /// The tree, where the input names one.
    pub(crate) tree: Option<Vec<u8>>,
    /// Which key.
    pub(crate) key: Vec<u8>,
    /// What becomes of it.
    pub(crate) change: Change,
    /// When it expires, in milliseconds since 1970.
    pub(crate) expires_ms: Option<u64>,
}

/// What becomes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// It has this value.
    Put(Vec<u8>),
    /// It is removed.
    Remove,
    /// It stays, and has the time to live that the record says.
    Expire,
    /// It is a hash of Redis, with these fields and their values.
    Hash {
        /// In no particular order.
        fields: Vec<(Vec<u8>, Vec<u8>)>,
        /// Whether they are added to those of the record before, instead of being all that it has so far.
        continued: bool,
    },
}

impl Record {
    fn put(key: Vec<u8>, value: Vec<u8>) -> Record {
        Record { tree: None, key, change: Change::Put(value), expires_ms: None }
    }

    /// The record, or why the database would refuse it: only here is its line still known.
    fn checked(self, place: Place) -> Parsed {
        let over = |what: &str, length: usize, limit: usize| {
            Err(Problem::record(place, format!("a {what} of {length} bytes is over the limit of {limit}")))
        };
        if self.key.len() > MAX_KEY_LENGTH {
            return over("key", self.key.len(), MAX_KEY_LENGTH);
        }
        if let Some((field, _)) = self.fields().iter().find(|(field, _)| field.len() > MAX_KEY_LENGTH) {
            return over("field", field.len(), MAX_KEY_LENGTH);
        }
        if let Some(length) = self.values().map(Vec::len).find(|length| *length > MAX_VALUE_LENGTH) {
            return over("value", length, MAX_VALUE_LENGTH);
        }
        Ok(self)
    }

    /// The fields that it sets, of a hash.
    pub(crate) fn fields(&self) -> &[(Vec<u8>, Vec<u8>)] {
        match &self.change {
            Change::Hash { fields, .. } => fields,
            _ => &[],
        }
    }

    fn values(&self) -> impl Iterator<Item = &Vec<u8>> {
        let value = match &self.change {
            Change::Put(value) => Some(value),
            _ => None,
        };
        value.into_iter().chain(self.fields().iter().map(|(_, value)| value))
    }

    /// What the record weighs in a batch.
    pub(crate) fn size(&self) -> usize {
        let fields = self.fields().iter().map(|(field, _)| field);
        self.key.len() + self.values().chain(fields).map(Vec::len).sum::<usize>()
    }

    /// Whether a key begins to be with it, so that it is to be counted.
    pub(crate) fn makes_key(&self) -> bool {
        matches!(self.change, Change::Put(_) | Change::Hash { continued: false, .. })
    }
}

/// Something wrong with the input.
#[derive(Debug)]
pub(crate) struct Problem {
    /// Where it begins.
    pub(crate) place: Place,
    /// What it is.
    pub(crate) what: String,
    /// Whether the next record can still be found.
    pub(crate) skippable: bool,
    /// Whether reading failed, as opposed to what was read being wrong.
    pub(crate) unreadable: bool,
}

/// Where in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line, counted from 1.
    Line(u64),
    /// A byte, counted from 0: for formats that have no lines.
    Offset(u64),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line(line) => write!(f, "line {line}"),
            Place::Offset(offset) => write!(f, "offset {offset}"),
        }
    }
}

impl Problem {
    /// A wrong record; the one after it can be read.
    fn record(place: Place, what: impl Into<String>) -> Problem {
        Problem { place, what: what.into(), skippable: true, unreadable: false }
    }

    /// After this the rest of the input means nothing.
    fn fatal(place: Place, what: impl Into<String>) -> Problem {
        Problem { place, what: what.into(), skippable: false, unreadable: false }
    }

    /// Reading failed.
    fn io(place: Place, error: &io::Error) -> Problem {
        Problem { place, what: format!("cannot read: {error}"), skippable: false, unreadable: true }
    }
}

/// The formats of `load`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LoadFormat {
    /// Key, tab, value on each line, written as --key-format and --value-format say
    Tsv,
    /// RFC 4180, with a header line unless --no-header
    Csv,
    /// One JSON object per line: {"key":…, "value":…}, or any object with --key FIELD
    #[value(name = "jsonl", alias = "ndjson", alias = "json-lines")]
    JsonLines,
    /// What redis-cli takes: lines such as SET k v, or the Redis protocol (--pipe)
    Redis,
}

impl LoadFormat {
    /// The format that a file's name promises.
    pub(crate) fn of_file(path: &Path) -> Option<LoadFormat> {
        match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
            "tsv" | "tab" => Some(LoadFormat::Tsv),
            "csv" => Some(LoadFormat::Csv),
            "jsonl" | "ndjson" => Some(LoadFormat::JsonLines),
            "redis" | "resp" => Some(LoadFormat::Redis),
            _ => None,
        }
    }
}

/// What a parser makes of its input.
pub(crate) type Parsed = Result<Record, Problem>;
