//! What is still there after the power went: of names a prefix of the changes, of blocks some version
//! since the last sync.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::{BLOCK, BLOCK_SIZE, Random, SimulatedDisk};

/// Versions of one block kept between syncs; middle ones beyond it are forgotten.
const VERSIONS_KEPT: usize = 4;

#[derive(Clone, Debug)]
pub(super) enum NameChange {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
}

impl NameChange {
    pub(super) fn directory(&self) -> &Path {
        match self {
            NameChange::Create(path, _) | NameChange::Remove(path) | NameChange::Rename(_, path, _) => {
                path.parent().unwrap_or(Path::new(""))
            }
        }
    }

    pub(super) fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
        match self {
            NameChange::Create(path, file) => {
                names.insert(path.clone(), *file);
            }
            NameChange::Rename(from, to, file) => {
                names.remove(from);
                names.insert(to.clone(), *file);
            }
            NameChange::Remove(path) => {
                names.remove(path);
            }
        }
    }
}

#[derive(Clone, Default)]
pub(super) struct FileState {
    pub(super) bytes: Vec<u8>,
    pub(super) durable_length: u64,
    /// Blocks written since the last sync, with their older contents, durable one first. An
    /// absent content is all zero.
    pub(super) dirty: BTreeMap<u64, Dirty>,
    /// Blocks that cannot be read until they are written as a whole.
    pub(super) unreadable: BTreeSet<u64>,
    pub(super) open: u64,
}

#[derive(Clone, Default)]
pub(super) struct Dirty {
    pub(super) versions: Vec<Option<Box<[u8]>>>,
    /// A sync of it failed: later ones do nothing for it until it is written again.
    pub(super) lost: bool,
}

impl SimulatedDisk {
    /// A disk as another process finds it after this one was killed: everything written is there,
    /// synced or not. This one has crashed from now on.
    pub fn process_kill(&self) -> SimulatedDisk {
        let mut inner = self.0.lock();
        inner.crashed = true;
        let seed = inner.random.next();
        let mut files = inner.files.clone();
        files.values_mut().for_each(|file| file.open = 0);
        let killed = SimulatedDisk::from_parts(
            seed,
            files,
            inner.names.clone(),
            inner.directories.clone(),
            inner.next_file,
        );
        {
            let mut new = killed.0.lock();
            new.durable_names = inner.durable_names.clone();
            new.log = inner.log.clone();
            new.last_write = inner.last_write;
        }
        killed
    }

    /// Cuts the power: this disk has crashed from now on, and the one returned holds what `seed`
    /// lets survive.
    pub fn power_cut(&self, seed: u64) -> SimulatedDisk {
        let mut inner = self.0.lock();
        inner.crashed = true;
        let mut random = Random(seed ^ 0x5eed_0fd1_5c00_5eed);
        // Extremes come up often: nothing, everything, half, few and most of what is unsynced.
        let survive = [0, 1000, 500, 100, 900][random.below(5) as usize];
        let mut names = inner.durable_names.clone();
        let directories: BTreeSet<&Path> = inner.log.iter().map(NameChange::directory).collect();
        for directory in directories {
            let changes: Vec<_> = inner.log.iter().filter(|change| change.directory() == directory).collect();
            let kept = match survive {
                0 => 0,
                1000 => changes.len(),
                _ => random.below(changes.len() as u64 + 1) as usize,
            };
            changes[..kept].iter().for_each(|change| change.apply(&mut names));
        }
        let linked: BTreeSet<u64> = names.values().copied().collect();
        let mut files = BTreeMap::new();
        for number in linked {
            let file = &inner.files[&number];
            let torn_block = inner.last_write.filter(|(last, _)| *last == number).map(|(_, block)| block);
            let bytes = file.surviving(&mut random, survive, torn_block);
            files.insert(
                number,
                FileState { unreadable: file.unreadable.clone(), ..FileState::durable(bytes) },
            );
        }
        SimulatedDisk::from_parts(random.next(), files, names, inner.directories.clone(), inner.next_file)
    }
}

impl FileState {
    pub(super) fn durable(bytes: Vec<u8>) -> FileState {
        FileState { durable_length: bytes.len() as u64, bytes, ..FileState::default() }
    }

    /// Whether the disk can read all of `range`.
    pub(super) fn is_readable(&self, range: Range<u64>) -> bool {
        self.unreadable.range(range.start / BLOCK..range.end.div_ceil(BLOCK)).next().is_none()
    }

    /// Remembers the blocks of `range` as they are before they change.
    fn touch(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        for block in offset / BLOCK..=(offset + length - 1) / BLOCK {
            let old = self.block(block);
            let dirty = self.dirty.entry(block).or_default();
            dirty.lost = false;
            if dirty.versions.len() == VERSIONS_KEPT {
                dirty.versions.remove(1);
            }
            dirty.versions.push(old);
        }
    }

    /// The current content of a block, `None` if it is beyond the end.
    fn block(&self, block: u64) -> Option<Box<[u8]>> {
        let start = (block * BLOCK) as usize;
        if start >= self.bytes.len() {
            return None;
        }
        let end = self.bytes.len().min(start + BLOCK_SIZE);
        let mut content = vec![0; BLOCK_SIZE].into_boxed_slice();
        content[..end - start].copy_from_slice(&self.bytes[start..end]);
        Some(content)
    }

    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.touch(offset, bytes.len() as u64);
        let end = offset as usize + bytes.len();
        // Disks put another sector in the place of one that they cannot read.
        let whole = offset.div_ceil(BLOCK)..end as u64 / BLOCK;
        self.unreadable.retain(|block| !whole.contains(block));
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset as usize..end].copy_from_slice(bytes);
    }

    pub(super) fn set_length(&mut self, length: u64) {
        let old = self.bytes.len() as u64;
        if length < old {
            self.touch(length, old - length);
        }
        self.bytes.resize(length as usize, 0);
    }

    pub(super) fn sync(&mut self) {
        self.dirty.retain(|_, dirty| dirty.lost);
        self.durable_length = self.bytes.len() as u64;
    }

    pub(super) fn sync_blocks(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        for block in offset / BLOCK..=(offset + length - 1) / BLOCK {
            self.dirty.remove(&block);
        }
        self.durable_length = self.durable_length.max(offset + length);
    }

    fn surviving(&self, random: &mut Random, survive: u64, torn_block: Option<u64>) -> Vec<u8> {
        let latest = self.bytes.len() as u64;
        let length = if random.below(1000) < survive { latest } else { self.durable_length };
        let mut bytes = self.bytes.clone();
        bytes.resize(length as usize, 0);
        for (block, dirty) in &self.dirty {
            let start = (block * BLOCK) as usize;
            if start >= bytes.len() {
                continue;
            }
            let mut versions: Vec<Option<Box<[u8]>>> = dirty.versions.clone();
            versions.push(self.block(*block));
            let chosen = if random.below(1000) < survive && !dirty.lost {
                versions.len() - 1
            } else if random.below(4) == 0 {
                random.below(versions.len() as u64) as usize
            } else {
                0
            };
            let zeros = || vec![0; BLOCK_SIZE].into_boxed_slice();
            let mut content = versions[chosen].clone().unwrap_or_else(zeros);
            let torn = if torn_block == Some(*block) { 2 } else { 16 };
            if random.below(torn) == 0 {
                let other = random.below(versions.len() as u64) as usize;
                let other = versions[other].clone().unwrap_or_else(zeros);
                tear(&mut content, &other, random);
            }
            let end = bytes.len().min(start + BLOCK_SIZE);
            bytes[start..end].copy_from_slice(&content[..end - start]);
        }
        bytes
    }
}

/// Replaces parts of `content` by those of `other`: what follows an arbitrary byte, or some of the
/// 512-byte sectors.
fn tear(content: &mut [u8], other: &[u8], random: &mut Random) {
    if random.below(2) == 0 {
        let at = random.below(content.len() as u64) as usize;
        content[at..].copy_from_slice(&other[at..]);
    } else {
        let chosen = random.next();
        for (sector, part) in content.chunks_mut(512).enumerate() {
            if chosen >> sector & 1 == 1 {
                part.copy_from_slice(&other[sector * 512..][..part.len()]);
            }
        }
    }
}
