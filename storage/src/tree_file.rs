//! The file under redb: its blocks, each with a checksum that every read verifies.
//!
//! **Promise.** A byte that the disk changed behind our back is never returned as data. Reading
//! it is an [`io::Error`] of kind `InvalidData` that carries a [`Corruption`] with file and
//! offset (see [`damage_in`] and [`TreeFile::last_damage`]). redb alone cannot promise that: it
//! keeps checksums of its pages but compares them only when it repairs, so a flipped bit would
//! be served as a value, misroute a search or panic.
//!
//! **Idea.** [`TreeFile`] is a [`redb::StorageBackend`] over a [`DiskFile`]. It keeps a CRC-32
//! for each 4 KiB block, all of them in memory (0.1 % of the file) and, in the file, in
//! checksum blocks that each cover the 1024 blocks behind them. redb's block 0, the only one
//! that it ever overwrites in place, lives in two alternating slots instead.
//!
//! # Layout
//!
//! The file is a sequence of 4096-byte blocks; all numbers are little-endian.
//!
//! ```text
//! block 0                identity
//! block 1, block 2       header slots: redb's block 0
//! block 3                checksum block of group 0
//! blocks 4..1028         group 0: redb's blocks 1..1025
//! block 1028             checksum block of group 1
//! blocks 1029..2053      group 1: redb's blocks 1025..2049
//! …                      the last group may be shorter
//! ```
//!
//! Identity, written once:
//!
//! ```text
//!  0  12  magic "dogsled\0tree"        these three and the checksum stay where they are in
//! 12   4  format version, 1            every future version, so that a newer file can always
//! 16  16  database id                  be told from a damaged one
//! 32   4  block size, 4096
//! 36   4  blocks per group, 1024
//! 40   4  CRC-32 of bytes 0..40
//! 44      zeros
//! ```
//!
//! Header slot:
//!
//! ```text
//!    0     8  sequence, from 1: the slot with the greater one counts
//!    8  4084  the first bytes of redb's block 0 (it uses 320)
//! 4092     4  CRC-32 of the slot's block number as u64 and bytes 0..4092; 0, 1 stored as 2
//! ```
//!
//! Checksum block: 1024 entries of 4 bytes, one for each data block of the group in order. An
//! entry is the CRC-32 of the block's number in this file as u64 and its 4096 bytes; a CRC of 0
//! or 1 is stored as 2. An entry of 1 says that the block was never written and reads as zeros.
//! An entry of 0 says nothing, and the block cannot be read: were 0 to mean zeros, a part of the
//! file that a file system lost and shows as a hole would read as sound. The number is covered
//! so that a block which the disk wrote to the wrong place is not accepted there.
//!
//! The length of redb's file is a function of the length of this one; nothing else records it.
//!
//! # Crashes
//!
//! Between two syncs any subset of the 4 KiB writes may reach the disk, each possibly torn.
//! What saves us is that redb never overwrites a page that its last durable commit can reach.
//!
//! * *Data blocks and checksum blocks of different age.* Checksum blocks are written in
//!   [`sync_data`](redb::StorageBackend::sync_data), just before the sync that makes them and
//!   their data blocks durable. After a crash they may disagree, but only for blocks written
//!   since the last sync, and these nobody reaches. The entry of a block that the last durable
//!   commit reaches is the same in the old and the new contents of its checksum block, so a
//!   torn checksum block is right there too.
//! * *Header.* All changes since the last sync go to the slot that does not hold the last
//!   synced header; if the crash tears it, its checksum shows, and the other slot counts. After
//!   each sync the synced header is copied to the other slot, without waiting for it: when the
//!   file is at rest both are equal and losing one to damage costs nothing. The window until
//!   that copy reaches the disk is a header old by one sync: redb's previous commit, which the
//!   engine notices because the WAL then starts behind what the tree holds.
//! * *Which commits.* Reopening must never need a page of an unfinished commit. redb's
//!   one-phase commits do (they try the newer header slot and fall back), so every transaction on this
//!   file must use `set_quick_repair(true)`, which implies two phases.
//! * *A failed sync* is not tried again: what it should have written is in doubt, so the file
//!   takes no more writes until it is reopened.
//! * *Opening after a killed process or a failed sync* finds bytes in the page cache that are not
//!   on the disk, and after a failed sync never will be. [`TreeFile::open`] therefore writes the
//!   header slot that it goes by once more, and syncs, before anything else may be overwritten.
//!
//! # Not here
//!
//! Telling damage from what a crash leaves: blocks that no page reaches may disagree with their
//! checksum after one, and only a walk of the tree knows which these are.

mod checksums;
pub(crate) mod layout;
mod open;
pub(crate) mod pages;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use self::checksums::Checksums;
use self::layout::{
    Block, GROUP_BLOCKS, HEADER_CAPACITY, HeaderBytes, Identity, NEVER_WRITTEN, NO_CHECKSUM, Slot,
};
use crate::disk::{BLOCK_SIZE, DiskFile};
use crate::{Corruption, Error, Result};

pub use self::open::{map_redb_error, open_redb, open_redb_and_file};

const BLOCK: u64 = BLOCK_SIZE as u64;
const SLOT_BLOCKS: [u64; 2] = [1, 2];

/// redb's file; see the [module](self). Clones are handles of the same file.
#[derive(Clone)]
pub struct TreeFile(Arc<Shared>);

struct Shared {
    file: Arc<dyn DiskFile>,
    path: PathBuf,
    database_id: u128,
    /// The length redb sees.
    length: AtomicU64,
    checksums: Checksums,
    header: Mutex<Header>,
    last_damage: Mutex<Option<Corruption>>,
    sync_failed: AtomicBool,
}

/// redb's block 0 and the slots that keep it.
struct Header {
    /// What redb reads; after a write, not yet what a slot holds.
    current: HeaderBytes,
    changed: bool,
    /// Of the last header written to a slot.
    sequence: u64,
    /// Which slot holds the last synced header and must not be written.
    synced_slot: usize,
}

/// The error inside an [`io::Error`] for damaged bytes.
#[derive(Debug)]
struct Damage(Corruption);

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "damaged data in {}", self.0)
    }
}

impl std::error::Error for Damage {}

/// The place of the damage that caused `error`, if damage did.
pub fn damage_in(error: &io::Error) -> Option<&Corruption> {
    error.get_ref()?.downcast_ref::<Damage>().map(|damage| &damage.0)
}

impl TreeFile {
    /// Writes the beginnings of a new file for `database_id` to `file`, which is empty.
    ///
    /// Durable only after redb has made its database in it and synced.
    ///
    /// # Errors
    /// Of the disk.
    pub fn create(file: Arc<dyn DiskFile>, path: &Path, database_id: u128) -> Result<TreeFile> {
        let start = || {
            file.set_length(layout::file_blocks(0) * BLOCK)?;
            file.write_at(0, &layout::encode_identity(database_id))
        };
        start().map_err(|error| Error::io(format!("creating {}", path.display()), error))?;
        let header = Header { current: [0; HEADER_CAPACITY], changed: false, sequence: 0, synced_slot: 1 };
        Ok(TreeFile::new(file, path, database_id, 0, Checksums::default(), header))
    }

    /// Opens an existing file of the database `database_id` for reading and writing.
    ///
    /// # Errors
    /// [`Error::NotADatabase`] for a file of a newer format, of another database or of plain redb;
    /// [`Error::Corrupt`] when the identity or both copies of redb's header are damaged, or nothing
    /// of ours is left in the file.
    pub fn open(file: Arc<dyn DiskFile>, path: &Path, database_id: u128) -> Result<TreeFile> {
        let opened = TreeFile::open_read_only(file, path, database_id)?;
        opened
            .make_header_durable()
            .map_err(|error| Error::io(format!("syncing {}", path.display()), error))?;
        Ok(opened)
    }

    /// Makes sure that the header that was read, and with it the pages that it reaches, is on the disk
    /// before the other slot is overwritten or a page that only an older header reaches.
    ///
    /// A sync alone does that after a process was killed, but not after a sync has failed: what that
    /// one should have written is still in the page cache, no longer dirty, and no later sync writes
    /// it. So the slot is written again. What it reaches needs no such care: redb flips its header
    /// only after the sync of the new pages has succeeded. If the write is torn, the other slot counts,
    /// as nothing has changed that it reaches.
    fn make_header_durable(&self) -> io::Result<()> {
        let header = self.0.header.lock();
        let slot = Slot { sequence: header.sequence, header: header.current };
        let block = SLOT_BLOCKS[header.synced_slot];
        self.0.file.write_at(block * BLOCK, &slot.encode(block))?;
        self.0.file.sync()
    }

    /// Like [`TreeFile::open`], for a handle that will only be read.
    ///
    /// # Errors
    /// Like [`TreeFile::open`].
    pub fn open_read_only(file: Arc<dyn DiskFile>, path: &Path, database_id: u128) -> Result<TreeFile> {
        let reading = |error| Error::io(format!("reading {}", path.display()), error);
        let length = file.length().map_err(reading)?;
        let mut identity = vec![0; length.min(BLOCK) as usize];
        file.read_at(0, &mut identity).map_err(reading)?;
        check_identity(layout::decode_identity(&identity), path, database_id)?;

        let data = layout::data_blocks(length / BLOCK);
        if length < layout::file_blocks(0) * BLOCK {
            return Err(Error::corrupt(
                path,
                length,
                "the B-tree file ends within its first blocks: it was truncated",
            ));
        }
        let header = read_header(&*file).map_err(reading)?.ok_or_else(|| {
            Error::corrupt(
                path,
                SLOT_BLOCKS[0] * BLOCK,
                format!(
                    "neither copy of the B-tree's header (here and at offset {}) matches its checksum",
                    SLOT_BLOCKS[1] * BLOCK
                ),
            )
        })?;
        let checksums = Checksums::load(&*file, data).map_err(reading)?;
        Ok(TreeFile::new(file, path, database_id, (data + 1) * BLOCK, checksums, header))
    }

    /// Opens a file for reading that may be damaged anywhere, as far as that goes. What is wrong
    /// with its identity, its header and its length is added to `damage`. `None` if nothing of ours is
    /// left in it.
    ///
    /// # Errors
    /// [`Error::NotADatabase`] if this is a newer or redb's own file, or if the file cannot be read at all.
    pub(crate) fn open_damaged(
        file: Arc<dyn DiskFile>,
        path: &Path,
        damage: &mut Vec<Corruption>,
    ) -> Result<Option<TreeFile>> {
        let reading = |error| Error::io(format!("reading {}", path.display()), error);
        let length = file.length().map_err(reading)?;
        let mut add = |offset: u64, what: String| {
            damage.push(Corruption { file: path.to_owned(), offset: Some(offset), what });
        };
        let mut bytes = vec![0; length.min(BLOCK) as usize];
        let identity = match file.read_at(0, &mut bytes) {
            Ok(()) => layout::decode_identity(&bytes),
            Err(_) => Identity::Damaged,
        };
        let slots = SLOT_BLOCKS.map(|block| {
            let mut bytes: Block = [0; BLOCK_SIZE];
            let read = file.read_at(block * BLOCK, &mut bytes);
            read.ok().and_then(|()| Slot::decode(block, &bytes))
        });
        let database_id = match identity {
            Identity::Ours(id) => id,
            Identity::Damaged => {
                add(0, "the B-tree file's first block does not match its checksum".to_owned());
                0
            }
            // Our headers behind a first block that is gone altogether: ours.
            Identity::Unknown if slots.iter().any(Option::is_some) => {
                add(0, "the B-tree file's first block is lost".to_owned());
                0
            }
            Identity::Unknown => {
                add(0, "the file is empty or was overwritten: nothing of a B-tree is left in it".to_owned());
                return Ok(None);
            }
            other => {
                check_identity(other, path, 0)?;
                0
            }
        };
        if length < layout::file_blocks(0) * BLOCK {
            add(length, "the file ends within its first blocks".to_owned());
        } else if !length.is_multiple_of(BLOCK) {
            add(length, "the file ends within a block".to_owned());
        }
        for (block, slot) in SLOT_BLOCKS.iter().zip(&slots) {
            if slot.is_none() {
                add(block * BLOCK, "a copy of the B-tree's header does not match its checksum".to_owned());
            }
        }
        let header = slots.into_iter().flatten().max_by_key(|slot| slot.sequence);
        let header = Header {
            sequence: header.as_ref().map_or(0, |slot| slot.sequence),
            current: header.map_or([0; HEADER_CAPACITY], |slot| slot.header),
            changed: false,
            synced_slot: 0,
        };
        let data = layout::data_blocks(length / BLOCK);
        let checksums = Checksums::load_damaged(&*file, path, data, damage);
        Ok(Some(TreeFile::new(file, path, database_id, (data + 1) * BLOCK, checksums, header)))
    }

    /// What the two header slots hold, whether they match their checksums or not.
    pub(crate) fn header_slots(&self) -> Vec<HeaderBytes> {
        let mut found = Vec::new();
        for block in SLOT_BLOCKS {
            let mut bytes: Block = [0; BLOCK_SIZE];
            if self.0.file.read_at(block * BLOCK, &mut bytes).is_ok() {
                found.push(bytes[8..8 + HEADER_CAPACITY].try_into().expect("the slot's capacity"));
            }
        }
        found
    }

    fn new(
        file: Arc<dyn DiskFile>,
        path: &Path,
        database_id: u128,
        length: u64,
        checksums: Checksums,
        header: Header,
    ) -> TreeFile {
        TreeFile(Arc::new(Shared {
            file,
            path: path.to_owned(),
            database_id,
            length: AtomicU64::new(length),
            checksums,
            header: Mutex::new(header),
            last_damage: Mutex::new(None),
            sync_failed: AtomicBool::new(false),
        }))
    }

    /// The file's path.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// The database that the file belongs to.
    pub fn database_id(&self) -> u128 {
        self.0.database_id
    }

    /// The damage that a read met last, if any did.
    ///
    /// redb answers everything after the first failed read with a bare "previous I/O error";
    /// here is what it was.
    pub fn last_damage(&self) -> Option<Corruption> {
        self.0.last_damage.lock().clone()
    }

    /// Translates an error of redb on this file, with the place where the disk was damaged even
    /// if redb only says that something failed before.
    pub fn map_error(&self, doing: &str, error: impl Into<redb::Error>) -> Error {
        match (error.into(), self.last_damage()) {
            (redb::Error::PreviousIo, Some(damage)) => Error::Corrupt(damage),
            (error, _) => map_redb_error(self.path(), doing, error),
        }
    }

    /// The length that redb sees, in bytes.
    pub fn length(&self) -> u64 {
        self.0.length.load(Ordering::Acquire)
    }

    /// redb's block 0.
    pub(crate) fn header_bytes(&self) -> HeaderBytes {
        self.0.header.lock().current
    }

    /// Where in the file redb's byte `offset` lies; its block 0 is in two places.
    pub(crate) fn place_of(&self, offset: u64) -> Option<u64> {
        let data = (offset / BLOCK).checked_sub(1)?;
        Some(layout::data_block(data) * BLOCK + offset % BLOCK)
    }

    /// Reads whole blocks, and returns what is wrong with the first that does not match its
    /// checksum, beside the bytes.
    pub(crate) fn read_unverified(&self, offset: u64, out: &mut [u8]) -> io::Result<Option<Corruption>> {
        self.check_range(offset, out.len())?;
        let mut found = None;
        self.for_each_run(offset, out.len(), |run, range| {
            let Run::Blocks { first } = run else {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not whole blocks of data"));
            };
            let place = layout::data_block(first);
            self.0.file.read_at(place * BLOCK, &mut out[range.clone()])?;
            for (index, bytes) in out[range].chunks_exact(BLOCK_SIZE).enumerate() {
                let index = index as u64;
                let wrong = verify_block(place + index, bytes, self.0.checksums.get(first + index)).err();
                if let (None, Some(what)) = (&found, wrong) {
                    let offset = Some((place + index) * BLOCK);
                    found = Some(Corruption { file: self.0.path.clone(), offset, what });
                }
            }
            Ok(())
        })?;
        Ok(found)
    }

    fn read_bytes(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, out.len())?;
        self.for_each_run(offset, out.len(), |run, range| match run {
            Run::Header { at } => {
                read_header_bytes(&self.0.header.lock().current, at, &mut out[range]);
                Ok(())
            }
            Run::Blocks { first } => self.read_blocks(first, &mut out[range]),
            Run::Part { data, at } => {
                let mut block = [0; BLOCK_SIZE];
                self.read_blocks(data, &mut block)?;
                let length = range.len();
                out[range].copy_from_slice(&block[at..at + length]);
                Ok(())
            }
        })
    }

    fn write_bytes(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check_range(offset, bytes.len())?;
        self.check_sync_failed()?;
        self.for_each_run(offset, bytes.len(), |run, range| match run {
            Run::Header { at } => {
                let mut header = self.0.header.lock();
                let target = header.current.get_mut(at..at + range.len()).ok_or_else(|| {
                    io::Error::new(
                        io::ErrorKind::InvalidInput,
                        format!("redb's header has outgrown the {HEADER_CAPACITY} bytes kept for it"),
                    )
                })?;
                target.copy_from_slice(&bytes[range]);
                header.changed = true;
                Ok(())
            }
            Run::Blocks { first } => self.write_blocks(first, &bytes[range]),
            Run::Part { data, at } => {
                let mut block = [0; BLOCK_SIZE];
                self.read_blocks(data, &mut block)?;
                block[at..at + range.len()].copy_from_slice(&bytes[range]);
                self.write_blocks(data, &block)
            }
        })
    }

    /// Reads and verifies whole data blocks of one group.
    fn read_blocks(&self, first: u64, out: &mut [u8]) -> io::Result<()> {
        let place = layout::data_block(first);
        self.0.file.read_at(place * BLOCK, out)?;
        for (index, bytes) in out.chunks_exact(BLOCK_SIZE).enumerate() {
            let index = index as u64;
            let expected = self.0.checksums.get(first + index);
            if let Err(what) = verify_block(place + index, bytes, expected) {
                // The caller may look at the buffer of a failed read; leave nothing there.
                let error = self.damage((place + index) * BLOCK, what);
                out.fill(0);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Writes whole data blocks of one group and notes their checksums.
    fn write_blocks(&self, first: u64, bytes: &[u8]) -> io::Result<()> {
        let place = layout::data_block(first);
        self.0.file.write_at(place * BLOCK, bytes)?;
        for (index, bytes) in bytes.chunks_exact(BLOCK_SIZE).enumerate() {
            let index = index as u64;
            self.0.checksums.set(first + index, layout::checksum(place + index, bytes));
        }
        Ok(())
    }

    fn damage(&self, offset: u64, what: String) -> io::Error {
        let corruption = Corruption { file: self.0.path.clone(), offset: Some(offset), what };
        *self.0.last_damage.lock() = Some(corruption.clone());
        io::Error::new(io::ErrorKind::InvalidData, Damage(corruption))
    }

    fn check_range(&self, offset: u64, length: usize) -> io::Result<()> {
        let end = offset.checked_add(length as u64);
        if end.is_none_or(|end| end > self.length()) {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!(
                    "{length} bytes at {offset} are beyond the {} bytes of the B-tree in {}",
                    self.length(),
                    self.0.path.display()
                ),
            ));
        }
        Ok(())
    }

    /// Nothing is written any more: as if a sync had failed.
    pub(crate) fn refuse_writes(&self) {
        self.0.sync_failed.store(true, Ordering::Release);
    }

    fn check_sync_failed(&self) -> io::Result<()> {
        if self.0.sync_failed.load(Ordering::Acquire) {
            return Err(io::Error::other(format!(
                "an earlier sync of {} failed; reopen the database",
                self.0.path.display()
            )));
        }
        Ok(())
    }

    /// Cuts a range of redb's bytes where its parts have to be handled differently.
    fn for_each_run(
        &self,
        offset: u64,
        length: usize,
        mut handle: impl FnMut(Run, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let position = offset + done as u64;
            let left = length - done;
            let at = (position % BLOCK) as usize;
            let (run, taken) = if position < BLOCK {
                (Run::Header { at }, left.min(BLOCK_SIZE - at))
            } else {
                let data = position / BLOCK - 1;
                if at == 0 && left >= BLOCK_SIZE {
                    let until_group_ends = (GROUP_BLOCKS - data % GROUP_BLOCKS) as usize;
                    let blocks = (left / BLOCK_SIZE).min(until_group_ends);
                    (Run::Blocks { first: data }, blocks * BLOCK_SIZE)
                } else {
                    (Run::Part { data, at }, left.min(BLOCK_SIZE - at))
                }
            };
            handle(run, done..done + taken)?;
            done += taken;
        }
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.check_sync_failed()?;
        // Held throughout: two syncs at once would write the same slot.
        let mut header = self.0.header.lock();
        let result = self.sync_under(&mut header);
        if result.is_err() {
            self.0.sync_failed.store(true, Ordering::Release);
        }
        result
    }

    fn sync_under(&self, header: &mut Header) -> io::Result<()> {
        let file = &*self.0.file;
        self.0.checksums.write_dirty(file)?;
        if !header.changed {
            return file.sync();
        }
        let target = 1 - header.synced_slot;
        let slot = Slot { sequence: header.sequence + 1, header: header.current };
        file.write_at(SLOT_BLOCKS[target] * BLOCK, &slot.encode(SLOT_BLOCKS[target]))?;
        file.sync()?;
        header.sequence = slot.sequence;
        header.changed = false;
        let other = header.synced_slot;
        header.synced_slot = target;
        // Nobody waits for this copy: it is there for damage, not for crashes.
        file.write_at(SLOT_BLOCKS[other] * BLOCK, &slot.encode(SLOT_BLOCKS[other]))
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.check_sync_failed()?;
        if !length.is_multiple_of(BLOCK) || length == 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("a B-tree file of {length} bytes is not made of whole blocks"),
            ));
        }
        let data = length / BLOCK - 1;
        let old = self.length();
        let old_data = (old / BLOCK).saturating_sub(1);
        // Bytes are readable only while the file and the checksums have them.
        self.0.length.store(old.min(length), Ordering::Release);
        self.0.file.set_length(layout::file_blocks(data) * BLOCK)?;
        self.0.checksums.resize(old_data, data);
        self.0.length.store(length, Ordering::Release);
        Ok(())
    }
}

/// A part of a range of redb's bytes.
enum Run {
    /// Within redb's block 0, from byte `at`.
    Header { at: usize },
    /// Whole data blocks of one group, from `first`.
    Blocks { first: u64 },
    /// Part of data block `data`, from byte `at`.
    Part { data: u64, at: usize },
}

/// Compares a block with its entry; the error says what is wrong.
pub(crate) fn verify_block(place: u64, bytes: &[u8], expected: u32) -> Result<(), String> {
    if expected == NO_CHECKSUM {
        return Err("the file keeps no checksum for this block".to_owned());
    }
    if expected == NEVER_WRITTEN {
        return match bytes.iter().position(|byte| *byte != 0) {
            None => Ok(()),
            Some(at) => Err(format!("a block that was never written is not zero at its byte {at}")),
        };
    }
    let found = layout::checksum(place, bytes);
    if found != expected {
        return Err(format!("the block's checksum is {found:08x}, expected {expected:08x}"));
    }
    Ok(())
}

fn check_identity(identity: Identity, path: &Path, database_id: u128) -> Result<()> {
    let what = match identity {
        Identity::Ours(found) if found == database_id => return Ok(()),
        Identity::Ours(found) => format!(
            "this B-tree file belongs to another database (id {found:032x}, expected {database_id:032x}); \
             put back the file that belongs here"
        ),
        Identity::Newer(version) => format!(
            "this B-tree file has format version {version}, and this program knows versions up to {}; \
             use a newer dogsled",
            layout::FORMAT_VERSION
        ),
        Identity::PlainRedb => {
            "this is a plain redb file, which dogsled does not open; export its data with redb and load that"
                .to_owned()
        }
        // It lies where ours was, so it took its place.
        Identity::Unknown => {
            return Err(Error::corrupt(path, 0, "the file is empty or was overwritten: this is no B-tree"));
        }
        Identity::Damaged => {
            return Err(Error::corrupt(path, 0, "the B-tree file's first block does not match its checksum"));
        }
    };
    Err(Error::NotADatabase { path: path.to_owned(), what })
}

/// Whether the first three blocks of a file, or as many as it has, are of a file of ours, sound or not.
pub(crate) fn is_ours(bytes: &[u8]) -> bool {
    let identity = layout::decode_identity(&bytes[..bytes.len().min(BLOCK_SIZE)]);
    let mut slots = SLOT_BLOCKS.into_iter().filter_map(|block| {
        let bytes = bytes.get(block as usize * BLOCK_SIZE..)?.first_chunk::<BLOCK_SIZE>()?;
        Slot::decode(block, bytes)
    });
    matches!(identity, Identity::Ours(_) | Identity::Newer(_) | Identity::Damaged) || slots.next().is_some()
}

/// The newest sound header, or `None`.
fn read_header(file: &dyn DiskFile) -> io::Result<Option<Header>> {
    let mut newest: Option<(Slot, usize)> = None;
    for (number, block) in SLOT_BLOCKS.into_iter().enumerate() {
        let mut bytes: Block = [0; BLOCK_SIZE];
        file.read_at(block * BLOCK, &mut bytes)?;
        if let Some(slot) = Slot::decode(block, &bytes)
            && newest.as_ref().is_none_or(|(other, _)| other.sequence < slot.sequence)
        {
            newest = Some((slot, number));
        }
    }
    Ok(newest.map(|(slot, number)| Header {
        current: slot.header,
        changed: false,
        sequence: slot.sequence,
        synced_slot: number,
    }))
}

/// Copies from redb's block 0; what no slot has room for was never written and is zero.
fn read_header_bytes(header: &HeaderBytes, at: usize, out: &mut [u8]) {
    out.fill(0);
    let end = HEADER_CAPACITY.min(at + out.len());
    if at < end {
        out[..end - at].copy_from_slice(&header[at..end]);
    }
}

impl fmt::Debug for TreeFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TreeFile").field("path", &self.0.path).field("length", &self.length()).finish()
    }
}

impl redb::StorageBackend for TreeFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.read_bytes(offset, out)
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.set_length(length)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync_all()
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_bytes(offset, bytes)
    }
}
