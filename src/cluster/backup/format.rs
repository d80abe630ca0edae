//! The files of a backup, byte by byte.
//!
//! A backup is a directory: a file for each partition, `partition-00001` and so on, and `MANIFEST`, which is written last,
//! under another name, synced, and renamed. So a directory without one is a backup that was not finished. While it is made
//! there is an empty file `LOCK` as well, which is locked, and [more](super::unfinished).
//!
//! Promise: a file that was cut short, changed in any bit, had a part taken out, doubled or moved, or belongs to another
//! backup, is refused, and the place is named.
//!
//! Integers are little-endian.
//!
//! ```text
//! partition file
//! header   "DGSLDBAK" | version u32 (1) | backup u128 | partition u32 | crc32 of these 32 bytes u32
//! block    kind u8 | length u32 | payload (length bytes) | check u32
//! check    crc32 of: the check before it (the header's, for the first) u32 | kind | length | payload
//!
//! kind 'T' a tree begins    payload: part u8 (0 keys, 1 the numbers that come next) | stored name (the rest)
//! kind 'R' its records      payload: one or more of:
//!                             key length u32 | version u64 | expires, in ms since 1970, u64 (0: never)
//!                             | value length u32 (all ones: the key is not there any more) | key | value
//! kind 'E' the tree ends    payload: records in it u64
//! kind 'Z' the file ends    payload: trees u64 | records u64; no byte follows
//!
//! manifest
//! "DGSLDBKM" | version u32 (1) | backup u128 | backup that it adds to u128 (0: none, it is complete)
//! | cluster u128 | made, in ms since 1970, u64
//! | partitions u32, of each: position u64 | log's time in ms u64 | file length u64 | records u64 | last check u32
//! | trees u32, of each: length u32, stored name
//! | members that were ever removed u32, of each: u64
//! | crc32 of all before u32
//! ```
//!
//! The stored name of a tree says what is hashed of its keys; see [`TreeHash`](crate::cluster::ring::TreeHash). Hashes are
//! a tree of their own, with keys and values as [`dogsled_storage::pin`] says. Trees of a
//! file ascend by (name, part), keys of a tree ascend, strictly. Blocks hold about [`BLOCK_LENGTH`] bytes, or one record
//! that is larger. A reader takes lengths as claims: it allocates what it has read, not what it was told. A newer
//! version is refused by name.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use dogsled_storage::command::{MAX_KEY_LENGTH, MAX_VALUE_LENGTH};

use super::BackupError;
use crate::IVec;

pub(super) const MANIFEST: &str = "MANIFEST";
const MAGIC: &[u8; 8] = b"DGSLDBAK";
const MANIFEST_MAGIC: &[u8; 8] = b"DGSLDBKM";

/// Whether a file begins as one of a partition does, as far as it goes: what was cut off was begun by us, too.
pub(super) fn is_ours_or_empty(path: &std::path::Path) -> std::io::Result<bool> {
    let mut begin = Vec::new();
    std::io::Read::read_to_end(
        &mut std::io::Read::take(std::fs::File::open(path)?, MAGIC.len() as u64),
        &mut begin,
    )?;
    Ok(MAGIC.starts_with(&begin))
}
const VERSION: u32 = 1;
const HEADER: usize = 36;
/// Records are gathered until a block has this many bytes.
const BLOCK_LENGTH: usize = 64 << 10;
/// A block with one record of the longest key and value.
const LARGEST_BLOCK: usize = MAX_VALUE_LENGTH + MAX_KEY_LENGTH + BLOCK_LENGTH;
/// Of a record, beside key and value.
const RECORD_HEADER: usize = 24;
const REMOVED: u32 = u32::MAX;
/// A manifest is read as a whole.
const MAX_MANIFEST: u64 = 256 << 20;

pub(super) const KEYS: u8 = 0;
pub(super) const NUMBERS: u8 = 1;

pub(super) fn partition_path(directory: &Path, partition: u32) -> PathBuf {
    directory.join(format!("partition-{partition:05}"))
}

/// A tree of a file, and what of it.
pub(super) type Section = (IVec, u8);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: IVec,
    pub(super) version: u64,
    pub(super) expires_ms: Option<u64>,
    /// `None`: it was removed since the backup before.
    pub(super) value: Option<IVec>,
}

/// What a partition's file came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub(super) struct Sum {
    pub(super) length: u64,
    pub(super) records: u64,
    pub(super) check: u32,
}

fn io(path: &Path, error: std::io::Error) -> BackupError {
    BackupError::Io { path: path.to_owned(), error: error.to_string() }
}

fn header(backup: u128, partition: u32) -> ([u8; HEADER], u32) {
    let mut bytes = [0; HEADER];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..28].copy_from_slice(&backup.to_le_bytes());
    bytes[28..32].copy_from_slice(&partition.to_le_bytes());
    let check = crc32fast::hash(&bytes[..32]);
    bytes[32..].copy_from_slice(&check.to_le_bytes());
    (bytes, check)
}

fn check_of(before: u32, kind: u8, length: [u8; 4], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&before.to_le_bytes());
    hasher.update(&[kind]);
    hasher.update(&length);
    hasher.update(payload);
    hasher.finalize()
}

/// Writes a partition's file.
pub(super) struct Writer {
    path: PathBuf,
    out: BufWriter<File>,
    sum: Sum,
    block: Vec<u8>,
    in_section: u64,
    sections: u64,
}

impl Writer {
    pub(super) fn create(directory: &Path, backup: u128, partition: u32) -> Result<Writer, BackupError> {
        let path = partition_path(directory, partition);
        // What was there was removed: whoever else writes there now is in the way of it.
        let file = File::create_new(&path).map_err(|error| io(&path, error))?;
        let (header, check) = header(backup, partition);
        let mut out = BufWriter::with_capacity(256 << 10, file);
        out.write_all(&header).map_err(|error| io(&path, error))?;
        let sum = Sum { length: HEADER as u64, records: 0, check };
        Ok(Writer { path, out, sum, block: Vec::new(), in_section: 0, sections: 0 })
    }

    pub(super) fn begin(&mut self, (tree, part): &Section) -> Result<(), BackupError> {
        self.sections += 1;
        self.in_section = 0;
        let payload = [&[*part][..], tree].concat();
        self.write(b'T', &payload)
    }

    pub(super) fn record(&mut self, record: &Record) -> Result<(), BackupError> {
        let Record { key, version, expires_ms, value } = record;
        let value_length = value.as_ref().map_or(0, |value| value.len());
        let length = RECORD_HEADER + key.len() + value_length;
        if !self.block.is_empty() && self.block.len() + length > BLOCK_LENGTH {
            self.flush()?;
        }
        let block = &mut self.block;
        block.extend_from_slice(&(key.len() as u32).to_le_bytes());
        block.extend_from_slice(&version.to_le_bytes());
        block.extend_from_slice(&expires_ms.unwrap_or(0).to_le_bytes());
        let claimed = if value.is_some() { value_length as u32 } else { REMOVED };
        block.extend_from_slice(&claimed.to_le_bytes());
        block.extend_from_slice(key);
        block.extend_from_slice(value.as_deref().unwrap_or_default());
        self.in_section += 1;
        self.sum.records += 1;
        Ok(())
    }

    pub(super) fn end(&mut self) -> Result<(), BackupError> {
        self.flush()?;
        self.write(b'E', &self.in_section.to_le_bytes())
    }

    /// Ends the file, and has it on disk.
    pub(super) fn finish(mut self) -> Result<Sum, BackupError> {
        let payload = [self.sections.to_le_bytes(), self.sum.records.to_le_bytes()].concat();
        self.write(b'Z', &payload)?;
        let file = self.out.into_inner().map_err(|error| io(&self.path, error.into_error()))?;
        file.sync_all().map_err(|error| io(&self.path, error))?;
        Ok(self.sum)
    }

    fn flush(&mut self) -> Result<(), BackupError> {
        if self.block.is_empty() {
            return Ok(());
        }
        let mut block = std::mem::take(&mut self.block);
        self.write(b'R', &block)?;
        block.clear();
        self.block = block;
        Ok(())
    }

    fn write(&mut self, kind: u8, payload: &[u8]) -> Result<(), BackupError> {
        let length = u32::try_from(payload.len()).expect("keys and values are far smaller than 4 GiB");
        let length = length.to_le_bytes();
        self.sum.check = check_of(self.sum.check, kind, length, payload);
        self.sum.length += payload.len() as u64 + 9;
        let parts = [&[kind][..], &length, payload, &self.sum.check.to_le_bytes()];
        let written = parts.into_iter().try_for_each(|part| self.out.write_all(part));
        written.map_err(|error| io(&self.path, error))
    }
}

/// Reads a partition's file, record by record.
pub(super) struct Reader {
    path: PathBuf,
    input: BufReader<File>,
    sum: Sum,
    block: std::vec::IntoIter<Record>,
    section: Option<Section>,
    last_section: Option<Section>,
    last_key: Option<IVec>,
    in_section: u64,
    sections: u64,
    ended: bool,
    /// `None`: nobody has said, because the file was not finished.
    expected: Option<Sum>,
}

impl Reader {
    /// Opens the file that a manifest speaks of.
    pub(super) fn open(manifest: &Manifest, directory: &Path, partition: u32) -> Result<Reader, BackupError> {
        let path = partition_path(directory, partition);
        let expected = manifest.partitions[partition as usize - 1].sum;
        Reader::begin(path, partition, Some((manifest.backup, expected)))
    }

    /// Opens a file of a backup that was not finished, whichever that was. Where it was cut short an error comes.
    pub(super) fn of_unfinished(path: &Path, partition: u32) -> Result<Reader, BackupError> {
        Reader::begin(path.to_owned(), partition, None)
    }

    fn begin(path: PathBuf, partition: u32, expected: Option<(u128, Sum)>) -> Result<Reader, BackupError> {
        let file = File::open(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => damaged(&path, 0, "the file is missing"),
            _ => io(&path, error),
        })?;
        let mut reader = Reader {
            input: BufReader::with_capacity(256 << 10, file),
            sum: Sum::default(),
            block: Vec::new().into_iter(),
            section: None,
            last_section: None,
            last_key: None,
            in_section: 0,
            sections: 0,
            ended: false,
            expected: expected.map(|(_, sum)| sum),
            path,
        };
        let found = reader.read(HEADER as u64)?;
        if found.len() < HEADER {
            return Err(reader.damaged(0, "cut short within the header"));
        }
        let backup = u128::from_le_bytes(found[12..28].try_into().expect("16 bytes"));
        let (expected, check) = header(expected.map_or(backup, |(backup, _)| backup), partition);
        if &found[..8] == MAGIC
            && u32_at(&found, 8) > VERSION
            && crc32fast::hash(&found[..32]) == u32_at(&found, 32)
        {
            return Err(reader.damaged(0, "it has a newer format: use a newer dogsled"));
        }
        if found != expected {
            return Err(reader.damaged(0, "a damaged header, or a file of another backup"));
        }
        reader.sum = Sum { length: HEADER as u64, records: 0, check };
        Ok(reader)
    }

    fn damaged(&self, offset: u64, what: &str) -> BackupError {
        damaged(&self.path, offset, what)
    }

    fn read(&mut self, length: u64) -> Result<Vec<u8>, BackupError> {
        let mut bytes = Vec::new();
        match (&mut self.input).take(length).read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(io(&self.path, error)),
        }
    }

    /// How much of the file was read.
    pub(super) fn offset(&self) -> u64 {
        self.sum.length
    }

    /// The next record, and the section that it is of; nothing after the end, which is checked.
    pub(super) fn next(&mut self) -> Result<Option<(Section, Record)>, BackupError> {
        loop {
            if let Some(record) = self.block.next() {
                let section = self.section.clone().expect("records are read within a section");
                return Ok(Some((section, record)));
            }
            if self.ended {
                return Ok(None);
            }
            self.next_block()?;
        }
    }

    fn next_block(&mut self) -> Result<(), BackupError> {
        let start = self.sum.length;
        let head = self.read(5)?;
        let Some(length) = head.get(1..5) else {
            return Err(self.damaged(start, "cut short: the end of the file is missing"));
        };
        let (kind, length): (u8, [u8; 4]) = (head[0], length.try_into().expect("four bytes"));
        let size = u32::from_le_bytes(length) as usize;
        // No more is made room for than a block can be.
        let mut payload = if size <= LARGEST_BLOCK { self.read(size as u64 + 4)? } else { Vec::new() };
        if payload.len() < size + 4 {
            return Err(self.damaged(start, "cut short within a block, or a damaged length"));
        }
        let found = u32_at(&payload, size);
        payload.truncate(size);
        self.sum.check = check_of(self.sum.check, kind, length, &payload);
        if found != self.sum.check {
            return Err(self.damaged(start, "a damaged block: its checksum does not match"));
        }
        self.sum.length += size as u64 + 9;
        // From here on the writer, not the medium, would be at fault; still nothing is assumed.
        match kind {
            b'T' if self.section.is_none() && payload.first().is_some_and(|part| *part <= NUMBERS) => {
                let section = (IVec::from(&payload[1..]), payload[0]);
                if self.last_section.as_ref().is_some_and(|last| *last >= section) {
                    return Err(self.damaged(start, "trees that do not ascend"));
                }
                self.last_section = Some(section.clone());
                self.section = Some(section);
                (self.in_section, self.last_key) = (0, None);
                self.sections += 1;
            }
            b'R' if self.section.is_some() => self.block = self.split(&payload, start)?.into_iter(),
            b'E' if self.section.is_some() => {
                if payload != self.in_section.to_le_bytes() {
                    return Err(self.damaged(start, "the count of a tree's records does not match"));
                }
                self.section = None;
            }
            b'Z' if self.section.is_none() => {
                if payload != [self.sections.to_le_bytes(), self.sum.records.to_le_bytes()].concat() {
                    return Err(self.damaged(start, "the count of trees or records does not match"));
                }
                if !self.read(1)?.is_empty() {
                    return Err(self.damaged(self.sum.length, "bytes after the end"));
                }
                if self.expected.is_some_and(|expected| self.sum != expected) {
                    return Err(self.damaged(start, "it is not the file that the manifest speaks of"));
                }
                self.ended = true;
            }
            _ => return Err(self.damaged(start, "a block of unknown kind or in the wrong place")),
        }
        Ok(())
    }

    fn split(&mut self, payload: &[u8], start: u64) -> Result<Vec<Record>, BackupError> {
        let mut records = Vec::new();
        let mut rest = payload;
        while !rest.is_empty() {
            if rest.len() < RECORD_HEADER {
                return Err(self.damaged(start, "a record without its lengths"));
            }
            let (key_length, value_length) = (u32_at(rest, 0) as usize, u32_at(rest, 20));
            let (version, expires_ms) = (u64_at(rest, 4), u64_at(rest, 12));
            let is_there = value_length != REMOVED;
            let key_end = RECORD_HEADER.checked_add(key_length);
            let end =
                key_end.and_then(|end| end.checked_add(if is_there { value_length as usize } else { 0 }));
            let (Some(key_end), Some(end)) = (key_end, end.filter(|end| *end <= rest.len())) else {
                return Err(self.damaged(start, "a record that is longer than its block"));
            };
            let key = IVec::from(&rest[RECORD_HEADER..key_end]);
            if self.last_key.as_ref().is_some_and(|last| *last >= key) {
                return Err(self.damaged(start, "keys that do not ascend"));
            }
            self.last_key = Some(key.clone());
            let value = is_there.then(|| IVec::from(&rest[key_end..end]));
            let expires_ms = (expires_ms > 0).then_some(expires_ms);
            records.push(Record { key, version, expires_ms, value });
            self.in_section += 1;
            self.sum.records += 1;
            rest = &rest[end..];
        }
        Ok(records)
    }
}

/// What a manifest says of a partition.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct PartitionEntry {
    pub(super) position: u64,
    pub(super) time_ms: u64,
    pub(super) sum: Sum,
}

#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Manifest {
    pub(super) backup: u128,
    pub(super) parent: u128,
    pub(super) cluster: u128,
    pub(super) made_ms: u64,
    pub(super) partitions: Vec<PartitionEntry>,
    pub(super) trees: Vec<IVec>,
    pub(super) removed_members: Vec<u64>,
}

impl Manifest {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = MANIFEST_MAGIC.to_vec();
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        for number in [self.backup, self.parent, self.cluster] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&self.made_ms.to_le_bytes());
        bytes.extend_from_slice(&(self.partitions.len() as u32).to_le_bytes());
        for PartitionEntry { position, time_ms, sum } in &self.partitions {
            for number in [*position, *time_ms, sum.length, sum.records] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
            bytes.extend_from_slice(&sum.check.to_le_bytes());
        }
        bytes.extend_from_slice(&(self.trees.len() as u32).to_le_bytes());
        for tree in &self.trees {
            bytes.extend_from_slice(&(tree.len() as u32).to_le_bytes());
            bytes.extend_from_slice(tree);
        }
        bytes.extend_from_slice(&(self.removed_members.len() as u32).to_le_bytes());
        for member in &self.removed_members {
            bytes.extend_from_slice(&member.to_le_bytes());
        }
        let check = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&check.to_le_bytes());
        bytes
    }

    /// Writes it, last, so that the backup is one.
    pub(super) fn write(&self, directory: &Path) -> Result<(), BackupError> {
        self.write_as(directory, "MANIFEST.partial", MANIFEST)
    }

    /// Writes it under this name, as soon as it is whole.
    pub(super) fn write_as(&self, directory: &Path, aside: &str, name: &str) -> Result<(), BackupError> {
        let (aside, path) = (directory.join(aside), directory.join(name));
        let write = || {
            let mut file = File::create(&aside)?;
            file.write_all(&self.encode())?;
            file.sync_all()?;
            // The files' names first: a manifest speaks of what is there.
            File::open(directory)?.sync_all()?;
            std::fs::rename(&aside, &path)?;
            File::open(directory)?.sync_all()
        };
        write().map_err(|error| io(&path, error))
    }

    pub(super) fn read(directory: &Path) -> Result<Manifest, BackupError> {
        let path = directory.join(MANIFEST);
        let mut bytes = Vec::new();
        match File::open(&path) {
            Ok(file) => file.take(MAX_MANIFEST).read_to_end(&mut bytes).map_err(|error| io(&path, error))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let why = "there is no MANIFEST: it is no backup of a cluster, or one that was not finished: then make it again";
                return Err(BackupError::Refused(format!("{}: {why}", directory.display())));
            }
            Err(error) => return Err(io(&path, error)),
        };
        Manifest::decode(&bytes).map_err(|(offset, what)| damaged(&path, offset, what))
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Manifest, (u64, &'static str)> {
        if bytes.len() < 16 || &bytes[..8] != MANIFEST_MAGIC {
            return Err((0, "it is no manifest of a backup, or its beginning is damaged"));
        }
        let body = bytes.len() - 4;
        if crc32fast::hash(&bytes[..body]) != u32_at(bytes, body) {
            return Err((0, "it is damaged or cut short: its checksum does not match"));
        }
        if u32_at(bytes, 8) != VERSION {
            return Err((8, "it has another format: use another version of dogsled"));
        }
        let mut fields = Fields { bytes: &bytes[..body], at: 12 };
        let mut manifest = Manifest {
            backup: fields.u128()?,
            parent: fields.u128()?,
            cluster: fields.u128()?,
            made_ms: fields.u64()?,
            ..Manifest::default()
        };
        for _ in 0..fields.u32()? {
            manifest.partitions.push(PartitionEntry {
                position: fields.u64()?,
                time_ms: fields.u64()?,
                sum: Sum { length: fields.u64()?, records: fields.u64()?, check: fields.u32()? },
            });
        }
        for _ in 0..fields.u32()? {
            let length = fields.u32()? as usize;
            manifest.trees.push(IVec::from(fields.take(length)?));
        }
        for _ in 0..fields.u32()? {
            manifest.removed_members.push(fields.u64()?);
        }
        match fields.at == body {
            true => Ok(manifest),
            false => Err((fields.at as u64, "bytes left over")),
        }
    }
}

struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], (u64, &'static str)> {
        let end = self.at.checked_add(length);
        let taken =
            end.and_then(|end| self.bytes.get(self.at..end)).ok_or((self.at as u64, "an end too early"))?;
        self.at += length;
        Ok(taken)
    }

    fn u32(&mut self) -> Result<u32, (u64, &'static str)> {
        Ok(u32_at(self.take(4)?, 0))
    }

    fn u64(&mut self) -> Result<u64, (u64, &'static str)> {
        Ok(u64_at(self.take(8)?, 0))
    }

    fn u128(&mut self) -> Result<u128, (u64, &'static str)> {
        Ok(u128::from_le_bytes(self.take(16)?.try_into().expect("16 bytes")))
    }
}

fn damaged(path: &Path, offset: u64, what: &str) -> BackupError {
    BackupError::Damaged { path: path.to_owned(), offset, what: what.to_owned() }
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from_le_bytes(bytes[offset..offset + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], offset: usize) -> u64 {
    u64::from_le_bytes(bytes[offset..offset + 8].try_into().expect("eight bytes"))
}
