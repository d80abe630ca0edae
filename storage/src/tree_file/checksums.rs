//! The checksums of all data blocks, in memory: 4 bytes for each 4 KiB of the file.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::RwLock;

use super::layout::{self, Block, GROUP_BLOCKS, NEVER_WRITTEN, NO_CHECKSUM};
use crate::Corruption;
use crate::disk::{BLOCK_SIZE, DiskFile};

/// See the [module](self).
///
/// Entries are atomics, so that readers share the lock and only a change of the file's length
/// excludes them. redb never reads a block while it writes it, so an entry and its block need
/// not change together.
#[derive(Debug, Default)]
pub(crate) struct Checksums {
    groups: RwLock<Vec<Arc<Group>>>,
}

#[derive(Debug)]
struct Group {
    entries: Box<[AtomicU32]>,
    /// Whether an entry has been set since the entries were last written to the file.
    dirty: AtomicBool,
}

impl Group {
    fn new() -> Arc<Group> {
        let entries = (0..GROUP_BLOCKS).map(|_| AtomicU32::new(NO_CHECKSUM)).collect();
        Arc::new(Group { entries, dirty: AtomicBool::new(false) })
    }

    fn set(&self, index: usize, value: u32) {
        // Release on `dirty` after the entry: whoever clears `dirty` sees the entry. Dirty even if the
        // entry is the same as before: it may have been read from a page cache that holds what a failed
        // sync did not write, and the disk another (a repeated commit writes the same bytes again).
        self.entries[index].store(value, Ordering::Release);
        self.dirty.store(true, Ordering::Release);
    }
}

impl Checksums {
    /// Reads the checksum blocks of a file with `data` data blocks.
    ///
    /// Entries for blocks beyond the end are a shrunken file's leftovers, and are cleared.
    pub(crate) fn load(file: &dyn DiskFile, data: u64) -> io::Result<Checksums> {
        let mut groups = Vec::new();
        for number in 0..data.div_ceil(GROUP_BLOCKS) {
            let mut block = [0; BLOCK_SIZE];
            file.read_at(layout::checksum_block(number) * BLOCK_SIZE as u64, &mut block)?;
            groups.push(Group::decode(&block, number, data));
        }
        Ok(Checksums { groups: RwLock::new(groups) })
    }

    /// Like [`Checksums::load`]; a block that the disk cannot read is added to `damage`, and what
    /// it covers has no checksums.
    pub(crate) fn load_damaged(
        file: &dyn DiskFile,
        path: &Path,
        data: u64,
        damage: &mut Vec<Corruption>,
    ) -> Checksums {
        let mut groups = Vec::new();
        for number in 0..data.div_ceil(GROUP_BLOCKS) {
            let mut block = [0; BLOCK_SIZE];
            let offset = layout::checksum_block(number) * BLOCK_SIZE as u64;
            if let Err(error) = file.read_at(offset, &mut block) {
                let what = format!("a block of checksums cannot be read: {error}");
                damage.push(Corruption { file: path.to_owned(), offset: Some(offset), what });
            }
            groups.push(Group::decode(&block, number, data));
        }
        Checksums { groups: RwLock::new(groups) }
    }

    /// The checksum of data block `data`.
    pub(crate) fn get(&self, data: u64) -> u32 {
        let (group, index) = split(data);
        self.groups.read()[group].entries[index].load(Ordering::Acquire)
    }

    /// Notes what data block `data` now holds.
    pub(crate) fn set(&self, data: u64, checksum: u32) {
        let (group, index) = split(data);
        self.groups.read()[group].set(index, checksum);
    }

    /// Follows a change of the file's length from `old` to `new` data blocks.
    pub(crate) fn resize(&self, old: u64, new: u64) {
        let mut groups = self.groups.write();
        groups.resize_with(new.div_ceil(GROUP_BLOCKS) as usize, Group::new);
        // What comes back when the file grows again is zero, not what it was before.
        let kept = groups.len() as u64 * GROUP_BLOCKS;
        for data in new..old.min(kept) {
            let (group, index) = split(data);
            groups[group].set(index, NO_CHECKSUM);
        }
        for data in old..new {
            let (group, index) = split(data);
            groups[group].set(index, NEVER_WRITTEN);
        }
    }

    /// Writes the checksum blocks that have changed. Not durable.
    pub(crate) fn write_dirty(&self, file: &dyn DiskFile) -> io::Result<()> {
        let groups = self.groups.read().clone();
        for (number, group) in groups.iter().enumerate() {
            // Cleared before the entries are read: a change that comes later sets it again.
            if !group.dirty.swap(false, Ordering::AcqRel) {
                continue;
            }
            let offset = layout::checksum_block(number as u64) * BLOCK_SIZE as u64;
            if let Err(error) = file.write_at(offset, &group.encode()) {
                group.dirty.store(true, Ordering::Release);
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Group {
    fn decode(block: &Block, number: u64, data: u64) -> Arc<Group> {
        let group = Group::new();
        for (index, entry) in block.chunks_exact(4).enumerate() {
            let value = u32::from_le_bytes(entry.try_into().expect("4 bytes"));
            if number * GROUP_BLOCKS + (index as u64) < data {
                group.entries[index].store(value, Ordering::Relaxed);
            } else if value != NO_CHECKSUM {
                group.dirty.store(true, Ordering::Relaxed);
            }
        }
        group
    }

    fn encode(&self) -> Block {
        let mut block = [0; BLOCK_SIZE];
        for (bytes, entry) in block.chunks_exact_mut(4).zip(&self.entries) {
            bytes.copy_from_slice(&entry.load(Ordering::Acquire).to_le_bytes());
        }
        block
    }
}

fn split(data: u64) -> (usize, usize) {
    ((data / GROUP_BLOCKS) as usize, (data % GROUP_BLOCKS) as usize)
}
