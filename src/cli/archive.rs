//! The stream that `dogsled export` writes and `dogsled import` reads.
//!
//! Promise: a stream that was cut short, changed in any bit, or had a part taken out, doubled or
//! moved is refused. `import` reads a stream to its end before it applies any of it, so a refused
//! one leaves the database as it was.
//!
//! Layout, version 1, integers little-endian:
//!
//! ```text
//! header   "DGSLDEXP" 8 bytes | version u32 | crc32 of these 12 bytes u32
//! block    kind u8 | length u32 | payload (length bytes) | check u32
//! check    crc32 of: the check before it (the header's, for the first) u32 | kind | length | payload
//!
//! kind 'T' a tree begins     payload: length of the type u32 | type | name (the rest)
//! kind 'R' its records       payload: one or more of: key length u32 | value length u32 | key | value
//! kind 'E' the tree ends     payload: records in it u64
//! kind 'Z' the stream ends   payload: trees u64 | records u64; no byte follows
//! ```
//!
//! Each check covers the one before it, so blocks cannot change places. Types and names are what
//! `Db::export` calls them, and there are other types for times to live (`commands/transfer.rs`) and for
//! [`hashes`]; keys of a tree ascend strictly. Blocks hold about [`BLOCK_LENGTH`] bytes, or one record that is larger. A reader takes lengths as claims: it allocates what it has
//! read, not what it was told. A version that it does not know is refused by name.
//!
//! Omitted: compression (pipe through zstd) and versions of keys (an import is new writes).

pub(crate) mod hashes;

use std::fmt;
use std::io::{self, Read, Write};

const MAGIC: &[u8; 8] = b"DGSLDEXP";
const VERSION: u32 = 1;

/// Records are gathered until a block has this many bytes.
const BLOCK_LENGTH: usize = 64 << 10;

const TREE: u8 = b'T';
const RECORDS: u8 = b'R';
const TREE_END: u8 = b'E';
const STREAM_END: u8 = b'Z';

/// Whether `start`, the first bytes of a file, begin such a stream.
pub(crate) fn is_archive(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Writes a stream: trees one after the other, each with its records in key order.
pub(crate) struct Writer<W: Write> {
    out: W,
    check: u32,
    block: Vec<u8>,
    in_tree: bool,
    tree_records: u64,
    trees: u64,
    records: u64,
}

impl<W: Write> Writer<W> {
    pub(crate) fn new(mut out: W) -> io::Result<Writer<W>> {
        let (header, check) = header(VERSION);
        out.write_all(&header)?;
        Ok(Writer { out, check, block: Vec::new(), in_tree: false, tree_records: 0, trees: 0, records: 0 })
    }

    /// Begins a tree.
    pub(crate) fn tree(&mut self, kind: &[u8], name: &[u8]) -> io::Result<()> {
        assert!(!self.in_tree, "the tree before was not ended");
        self.in_tree = true;
        self.trees += 1;
        self.tree_records = 0;
        let mut payload = length_field(kind.len())?.to_vec();
        payload.extend_from_slice(kind);
        payload.extend_from_slice(name);
        self.write_block(TREE, &payload)
    }

    /// Adds a record to the tree.
    pub(crate) fn record(&mut self, key: &[u8], value: &[u8]) -> io::Result<()> {
        assert!(self.in_tree, "records belong to a tree");
        if !self.block.is_empty() && self.block.len() + key.len() + value.len() > BLOCK_LENGTH {
            self.flush_records()?;
        }
        self.block.extend_from_slice(&length_field(key.len())?);
        self.block.extend_from_slice(&length_field(value.len())?);
        self.block.extend_from_slice(key);
        self.block.extend_from_slice(value);
        self.tree_records += 1;
        self.records += 1;
        Ok(())
    }

    /// Ends the tree.
    pub(crate) fn end_tree(&mut self) -> io::Result<()> {
        assert!(self.in_tree, "there is no tree to end");
        self.in_tree = false;
        self.flush_records()?;
        self.write_block(TREE_END, &self.tree_records.to_le_bytes())
    }

    /// Ends the stream; without this it will be refused as cut short.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        assert!(!self.in_tree, "the last tree was not ended");
        let payload = [self.trees.to_le_bytes(), self.records.to_le_bytes()].concat();
        self.write_block(STREAM_END, &payload)?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn flush_records(&mut self) -> io::Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let block = std::mem::take(&mut self.block);
        self.write_block(RECORDS, &block)?;
        self.block = block;
        self.block.clear();
        Ok(())
    }

    fn write_block(&mut self, kind: u8, payload: &[u8]) -> io::Result<()> {
        let length = length_field(payload.len())?;
        self.check = check_of(self.check, kind, length, payload);
        self.out.write_all(&[kind])?;
        self.out.write_all(&length)?;
        self.out.write_all(payload)?;
        self.out.write_all(&self.check.to_le_bytes())
    }
}

fn length_field(length: usize) -> io::Result<[u8; 4]> {
    u32::try_from(length)
        .map(u32::to_le_bytes)
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a record of 4 GiB or more"))
}

fn header(version: u32) -> ([u8; 16], u32) {
    let mut header = [0; 16];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&version.to_le_bytes());
    let check = crc32fast::hash(&header[..12]);
    header[12..].copy_from_slice(&check.to_le_bytes());
    (header, check)
}

fn check_of(before: u32, kind: u8, length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_le_bytes());
    hasher.update(&[kind]);
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

/// What a stream says, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// A tree begins.
    Tree {
        /// `tree`, or one of the other types.
        kind: Vec<u8>,
        /// Its name.
        name: Vec<u8>,
    },
    /// A record of it.
    Record {
        /// The key.
        key: Vec<u8>,
        /// The value.
        value: Vec<u8>,
    },
    /// The tree ends.
    TreeEnd,
    /// The stream ends, whole.
    End {
        /// How many trees it had.
        trees: u64,
        /// How many records, all trees together.
        records: u64,
    },
}

/// What is wrong with a stream.
#[derive(Debug)]
pub(crate) struct Damage {
    /// The byte at which the damaged part begins.
    pub(crate) offset: u64,
    /// What it is.
    pub(crate) what: String,
    /// Whether reading failed, as opposed to what was read being wrong.
    pub(crate) unreadable: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "offset {}: {}", self.offset, self.what)
    }
}

/// Reads a stream.
pub(crate) struct Reader<R> {
    input: R,
    offset: u64,
    check: u32,
    /// The rest of the block of records being read.
    records: std::vec::IntoIter<Event>,
    in_tree: bool,
    last_key: Option<Vec<u8>>,
    tree_records: u64,
    trees: u64,
    total: u64,
    ended: bool,
}

impl<R: Read> Reader<R> {
    pub(crate) fn new(mut input: R) -> Result<Reader<R>, Damage> {
        let mut found = Vec::new();
        read_up_to(&mut input, 16, &mut found, 0)?;
        let refuse = |what: String| Err(Damage { offset: 0, what, unreadable: false });
        if !found.starts_with(MAGIC) {
            return refuse("not an export of dogsled".into());
        }
        if found.len() < 16 {
            return refuse("cut short within the header".into());
        }
        let version = u32_at(&found, 8);
        let (expected, check) = header(version);
        if found != expected {
            return refuse("damaged header".into());
        }
        if version != VERSION {
            return refuse(format!(
                "version {version} of the export format; this dogsled reads version {VERSION}: use a newer one"
            ));
        }
        Ok(Reader {
            input,
            offset: 16,
            check,
            records: Vec::new().into_iter(),
            in_tree: false,
            last_key: None,
            tree_records: 0,
            trees: 0,
            total: 0,
            ended: false,
        })
    }

    /// How many bytes were read.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// The next thing the stream says; nothing after [`Event::End`] or an error.
    pub(crate) fn next_event(&mut self) -> Result<Option<Event>, Damage> {
        if let Some(record) = self.records.next() {
            return Ok(Some(record));
        }
        if self.ended {
            return Ok(None);
        }
        let event = self.next_block();
        self.ended |= event.is_err();
        event.map(Some)
    }

    fn next_block(&mut self) -> Result<Event, Damage> {
        let start = self.offset;
        let damage = |what: &str| Damage { offset: start, what: what.to_owned(), unreadable: false };
        let mut head = Vec::new();
        self.read(5, &mut head)?;
        let length: [u8; 4] = match head.get(1..5) {
            Some(length) => length.try_into().expect("four bytes"),
            None => return Err(damage("cut short: the end of the stream is missing")),
        };
        let kind = head[0];
        let size = u32::from_le_bytes(length) as usize;
        let mut payload = Vec::new();
        self.read(size as u64 + 4, &mut payload)?;
        if payload.len() < size + 4 {
            return Err(damage("cut short within a block"));
        }
        let found = u32_at(&payload, size);
        payload.truncate(size);
        self.check = check_of(self.check, kind, length, &payload);
        if found != self.check {
            return Err(damage("damaged block (its checksum does not match)"));
        }
        // From here on the writer, not the medium, would be at fault; still nothing is assumed.
        match kind {
            TREE if !self.in_tree => {
                let kind_length = payload.get(..4).map(|_| u32_at(&payload, 0) as usize);
                let kind_end =
                    kind_length.and_then(|length| length.checked_add(4)).filter(|end| *end <= payload.len());
                let Some(kind_end) = kind_end else { return Err(damage("a tree without a name")) };
                self.in_tree = true;
                self.trees += 1;
                self.tree_records = 0;
                self.last_key = None;
                Ok(Event::Tree { kind: payload[4..kind_end].to_vec(), name: payload[kind_end..].to_vec() })
            }
            RECORDS if self.in_tree => {
                let records = self.split_records(&payload).map_err(damage)?;
                self.records = records.into_iter();
                self.records.next().ok_or_else(|| damage("a block of records without any"))
            }
            TREE_END if self.in_tree => {
                if payload != self.tree_records.to_le_bytes() {
                    return Err(damage("the count of a tree's records does not match"));
                }
                self.in_tree = false;
                Ok(Event::TreeEnd)
            }
            STREAM_END if !self.in_tree => {
                if payload != [self.trees.to_le_bytes(), self.total.to_le_bytes()].concat() {
                    return Err(damage("the count of trees or records does not match"));
                }
                let mut more = Vec::new();
                self.read(1, &mut more)?;
                if !more.is_empty() {
                    return Err(Damage {
                        offset: self.offset - 1,
                        what: "bytes after the end of the stream".into(),
                        unreadable: false,
                    });
                }
                self.ended = true;
                Ok(Event::End { trees: self.trees, records: self.total })
            }
            _ => Err(damage("a block of unknown kind or in the wrong place")),
        }
    }

    fn split_records(&mut self, payload: &[u8]) -> Result<Vec<Event>, &'static str> {
        let mut records = Vec::new();
        let mut rest = payload;
        while !rest.is_empty() {
            if rest.len() < 8 {
                return Err("a record without its lengths");
            }
            let (key_length, value_length) = (u32_at(rest, 0) as usize, u32_at(rest, 4) as usize);
            let end = key_length.checked_add(value_length).and_then(|length| length.checked_add(8));
            let Some(end) = end.filter(|end| *end <= rest.len()) else {
                return Err("a record that is longer than its block");
            };
            let key = rest[8..8 + key_length].to_vec();
            if self.last_key.as_ref().is_some_and(|last| *last >= key) {
                return Err("keys that do not ascend");
            }
            let value = rest[8 + key_length..end].to_vec();
            self.last_key = Some(key.clone());
            self.tree_records += 1;
            self.total += 1;
            records.push(Event::Record { key, value });
            rest = &rest[end..];
        }
        Ok(records)
    }

    fn read(&mut self, length: u64, into: &mut Vec<u8>) -> Result<(), Damage> {
        let read = read_up_to(&mut self.input, length, into, self.offset)?;
        self.offset += read;
        Ok(())
    }
}

fn read_up_to(input: &mut impl Read, length: u64, into: &mut Vec<u8>, offset: u64) -> Result<u64, Damage> {
    match input.take(length).read_to_end(into) {
        Ok(read) => Ok(read as u64),
        Err(error) => Err(Damage { offset, what: format!("cannot read: {error}"), unreadable: true }),
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Vec<u8> {
        let mut writer = Writer::new(Vec::new()).expect("in memory");
        writer.tree(b"tree", b"default").expect("in memory");
        writer.record(b"", b"empty key").expect("in memory");
        writer.record(b"k\xff", b"").expect("in memory");
        writer.end_tree().expect("in memory");
        writer.tree(b"tree", b"\x00").expect("in memory");
        writer.end_tree().expect("in memory");
        writer.finish().expect("in memory")
    }

    fn read(bytes: &[u8]) -> Result<Vec<Event>, Damage> {
        let mut reader = Reader::new(bytes)?;
        let mut events = Vec::new();
        while let Some(event) = reader.next_event()? {
            events.push(event);
        }
        Ok(events)
    }

    #[test]
    fn reads_back_what_it_wrote() {
        let record = |key: &[u8], value: &[u8]| Event::Record { key: key.to_vec(), value: value.to_vec() };
        assert_eq!(
            read(&sample()).expect("sound"),
            [
                Event::Tree { kind: b"tree".to_vec(), name: b"default".to_vec() },
                record(b"", b"empty key"),
                record(b"k\xff", b""),
                Event::TreeEnd,
                Event::Tree { kind: b"tree".to_vec(), name: b"\x00".to_vec() },
                Event::TreeEnd,
                Event::End { trees: 2, records: 2 },
            ]
        );
    }

    #[test]
    fn version_1_is_these_bytes() {
        let mut writer = Writer::new(Vec::new()).expect("in memory");
        writer.tree(b"tree", b"t").expect("in memory");
        writer.record(b"k", b"v").expect("in memory");
        writer.end_tree().expect("in memory");
        let bytes = writer.finish().expect("in memory");
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "4447534c4445585001000000293fd006\
        5409000000040000007472656574d61434a3\
        520a00000001000000010000006b76e5b9ad61\
        45080000000100000000000000b0a12cc5\
        5a1000000001000000000000000100000000000000602e8bae";

    #[test]
    fn many_records_make_many_blocks() {
        let mut writer = Writer::new(Vec::new()).expect("in memory");
        writer.tree(b"tree", b"t").expect("in memory");
        for number in 0..1_000_u32 {
            writer.record(&number.to_be_bytes(), &vec![7; number as usize]).expect("in memory");
        }
        writer.record(b"\xff", &vec![8; 3 * BLOCK_LENGTH]).expect("in memory");
        writer.end_tree().expect("in memory");
        let events = read(&writer.finish().expect("in memory")).expect("sound");
        assert_eq!(events.len(), 1_001 + 3);
        assert_eq!(events.last(), Some(&Event::End { trees: 1, records: 1_001 }));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_refused() {
        let sound = sample();
        for length in 0..sound.len() {
            assert!(read(&sound[..length]).is_err(), "cut to {length} bytes");
        }
        for bit in 0..sound.len() * 8 {
            let mut damaged = sound.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit} flipped");
        }
        assert!(read(&[&sound[..], b"x"].concat()).is_err());
        assert!(read(&[&sound[..], &sound[..]].concat()).is_err());
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let error = read(&header(2).0).expect_err("from the future");
        assert!(error.what.contains("version 2"), "{error}");
        let error = read(b"key\tvalue\n").expect_err("something else");
        assert!(error.what.contains("not an export"), "{error}");
    }

    #[test]
    fn keys_out_of_order_are_refused() {
        let mut writer = Writer::new(Vec::new()).expect("in memory");
        writer.tree(b"tree", b"t").expect("in memory");
        writer.record(b"b", b"").expect("in memory");
        writer.record(b"a", b"").expect("in memory");
        writer.end_tree().expect("in memory");
        let error = read(&writer.finish().expect("in memory")).expect_err("not sorted");
        assert!(error.what.contains("ascend"), "{error}");
    }
}
