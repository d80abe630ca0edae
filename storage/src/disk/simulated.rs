//! [`SimulatedDisk`]: a disk in memory that loses, tears and refuses writes on command.
//!
//! It keeps, beside what a reader sees, what would still be there after the power went: for every
//! 4 KiB block written since its last sync the older versions, and for every directory the names
//! made, moved and removed since it was synced. [`SimulatedDisk::power_cut`] makes a new disk from
//! that, the seed choosing what survives:
//!
//! - of each unsynced block any version written since the sync, or two of them torn together, at
//!   an arbitrary byte or by sectors;
//! - of the length, the synced or the latest one;
//! - of each directory's unsynced changes a prefix (file systems journal them in order, but make
//!   no promise between directories).
//!
//! A sync that fails leaves its blocks neither dirty nor durable, as Linux does: a later sync that
//! succeeds does not save them, and a writer that retries loses data.
//!
//! Everything is deterministic from the seeds and the order of calls. Clones are the same disk.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{BLOCK_SIZE, Disk, DiskFile, DiskLock, DiskMap, OpenMode};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Versions of one block kept between syncs; middle ones beyond it are forgotten.
const VERSIONS_KEPT: usize = 4;

/// What a caller can ask of a disk, for counting and for [`Fault`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`Disk::open`]
    Open,
    /// [`DiskFile::read_at`]
    Read,
    /// [`DiskFile::map`]
    Map,
    /// [`DiskFile::length`]
    Length,
    /// [`Disk::list`]
    List,
    /// [`Disk::exists`]
    Exists,
    /// [`Disk::lock`]
    Lock,
    /// [`Disk::create_directories`]
    CreateDirectories,
    /// A [`Disk::open`] that makes a file.
    Create,
    /// [`DiskFile::write_at`]
    Write,
    /// [`DiskFile::write_at_synced`]
    WriteSynced,
    /// [`DiskFile::sync`]
    Sync,
    /// [`DiskFile::set_length`]
    SetLength,
    /// [`Disk::rename`]
    Rename,
    /// [`Disk::remove`]
    Remove,
    /// [`Disk::sync_directory`]
    SyncDirectory,
}

impl Operation {
    /// Whether it changes what is on the disk, or makes a change durable.
    pub fn is_change(self) -> bool {
        self >= Operation::CreateDirectories
    }
}

/// An error to come; see [`SimulatedDisk::inject`].
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operation is to fail; `None` counts and fails any.
    pub operation: Option<Operation>,
    /// How many matching calls still succeed.
    pub after: u64,
    /// Whether every later one fails too.
    pub from_then_on: bool,
}

/// A misbehaving disk in memory; see the [module](self).
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<Inner>>);

struct Inner {
    random: Random,
    files: BTreeMap<u64, FileState>,
    next_file: u64,
    directories: BTreeSet<PathBuf>,
    /// Names as a reader sees them, and as they would be after a power cut that lost all of `log`.
    names: BTreeMap<PathBuf, u64>,
    durable_names: BTreeMap<PathBuf, u64>,
    log: Vec<NameChange>,
    locks: BTreeSet<PathBuf>,
    calls: u64,
    changes: u64,
    counts: BTreeMap<Operation, u64>,
    crash_at: Option<u64>,
    crashed: bool,
    faults: Vec<Fault>,
    capacity: Option<u64>,
    read_only: bool,
    last_write: Option<(u64, u64)>,
}

#[derive(Clone, Debug)]
enum NameChange {
    Create(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Remove(PathBuf),
}

impl NameChange {
    fn directory(&self) -> &Path {
        match self {
            NameChange::Create(path, _) | NameChange::Remove(path) | NameChange::Rename(_, path, _) => {
                path.parent().unwrap_or(Path::new(""))
            }
        }
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>) {
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
struct FileState {
    bytes: Vec<u8>,
    durable_length: u64,
    /// Blocks written since the last sync, with their older contents, durable one first. An
    /// absent content is all zero.
    dirty: BTreeMap<u64, Dirty>,
    open: u64,
}

#[derive(Clone, Default)]
struct Dirty {
    versions: Vec<Option<Box<[u8]>>>,
    /// A sync of it failed: later ones do nothing for it until it is written again.
    lost: bool,
}

/// splitmix64: small, and good enough to choose what to break.
#[derive(Clone)]
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

fn input_output_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

fn crash_error() -> io::Error {
    io::Error::other("the simulated machine has crashed")
}

impl SimulatedDisk {
    /// An empty disk.
    pub fn new(seed: u64) -> SimulatedDisk {
        SimulatedDisk::from_parts(seed, BTreeMap::new(), BTreeMap::new(), BTreeSet::new(), 1)
    }

    fn from_parts(
        seed: u64,
        files: BTreeMap<u64, FileState>,
        names: BTreeMap<PathBuf, u64>,
        directories: BTreeSet<PathBuf>,
        next_file: u64,
    ) -> SimulatedDisk {
        SimulatedDisk(Arc::new(Mutex::new(Inner {
            random: Random(seed),
            files,
            next_file,
            directories,
            durable_names: names.clone(),
            names,
            log: Vec::new(),
            locks: BTreeSet::new(),
            calls: 0,
            changes: 0,
            counts: BTreeMap::new(),
            crash_at: None,
            crashed: false,
            faults: Vec::new(),
            capacity: None,
            read_only: false,
            last_write: None,
        })))
    }

    /// Calls so far, of any kind.
    pub fn calls(&self) -> u64 {
        self.0.lock().calls
    }

    /// Calls so far that changed something or made it durable.
    pub fn changes(&self) -> u64 {
        self.0.lock().changes
    }

    /// Calls so far of one kind.
    pub fn count(&self, operation: Operation) -> u64 {
        self.0.lock().counts.get(&operation).copied().unwrap_or(0)
    }

    /// Lets the machine crash in its `change`th changing call, counted as [`SimulatedDisk::changes`]
    /// does: that call and all later ones fail, and it may or may not have taken effect.
    pub fn crash_at_change(&self, change: u64) {
        self.0.lock().crash_at = Some(change);
    }

    /// Whether it has crashed.
    pub fn crashed(&self) -> bool {
        self.0.lock().crashed
    }

    /// Adds an error to come.
    pub fn inject(&self, fault: Fault) {
        self.0.lock().faults.push(fault);
    }

    /// Errors still to come.
    pub fn pending_faults(&self) -> usize {
        self.0.lock().faults.len()
    }

    /// Forgets the errors to come.
    pub fn clear_faults(&self) {
        self.0.lock().faults.clear();
    }

    /// Bytes that fit on the disk, counting the lengths of its files; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Sum of the lengths of the files.
    pub fn used(&self) -> u64 {
        self.0.lock().used()
    }

    /// Refuses every change with `EROFS`, or stops refusing.
    pub fn set_read_only(&self, read_only: bool) {
        self.0.lock().read_only = read_only;
    }

    /// Flips one bit of a file, durably.
    ///
    /// # Panics
    /// If there is no such file or byte.
    pub fn flip_bit(&self, path: &Path, offset: u64, bit: u8) {
        let mut inner = self.0.lock();
        let file = *inner.names.get(path).expect("a file to flip a bit of");
        let state = inner.files.get_mut(&file).expect("a named file exists");
        state.bytes[offset as usize] ^= 1 << bit;
    }

    /// The files' paths, sorted.
    pub fn files(&self) -> Vec<PathBuf> {
        self.0.lock().names.keys().cloned().collect()
    }

    /// What a file holds; `None` if there is none.
    pub fn content(&self, path: &Path) -> Option<Vec<u8>> {
        let inner = self.0.lock();
        inner.names.get(path).map(|file| inner.files[file].bytes.clone())
    }

    /// Makes or replaces a file, durably, with its directories.
    pub fn set_content(&self, path: &Path, bytes: Vec<u8>) {
        let mut inner = self.0.lock();
        let file = inner.next_file;
        inner.next_file += 1;
        let state = FileState { durable_length: bytes.len() as u64, bytes, ..FileState::default() };
        inner.files.insert(file, state);
        inner.names.insert(path.to_owned(), file);
        inner.durable_names.insert(path.to_owned(), file);
        inner.add_directories(path.parent().unwrap_or(Path::new("")));
    }

    /// Removes a file, durably.
    pub fn remove_content(&self, path: &Path) {
        let mut inner = self.0.lock();
        inner.names.remove(path);
        inner.durable_names.remove(path);
    }

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

    /// An independent copy of what a reader sees, all of it durable.
    pub fn duplicate(&self) -> SimulatedDisk {
        let inner = self.0.lock();
        let files = inner
            .files
            .iter()
            .map(|(number, file)| (*number, FileState::durable(file.bytes.clone())))
            .collect();
        let (names, directories) = (inner.names.clone(), inner.directories.clone());
        SimulatedDisk::from_parts(inner.random.0, files, names, directories, inner.next_file)
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
            files.insert(number, FileState::durable(file.surviving(&mut random, survive, torn_block)));
        }
        SimulatedDisk::from_parts(random.next(), files, names, inner.directories.clone(), inner.next_file)
    }
}

impl FileState {
    fn durable(bytes: Vec<u8>) -> FileState {
        FileState { durable_length: bytes.len() as u64, bytes, ..FileState::default() }
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

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.touch(offset, bytes.len() as u64);
        let end = offset as usize + bytes.len();
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[offset as usize..end].copy_from_slice(bytes);
    }

    fn set_length(&mut self, length: u64) {
        let old = self.bytes.len() as u64;
        if length < old {
            self.touch(length, old - length);
        }
        self.bytes.resize(length as usize, 0);
    }

    fn sync(&mut self) {
        self.dirty.retain(|_, dirty| dirty.lost);
        self.durable_length = self.bytes.len() as u64;
    }

    fn sync_blocks(&mut self, offset: u64, length: u64) {
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

/// How a call that was let in goes on.
enum Entered {
    Normally,
    /// Take effect if you like, then fail with [`crash_error`].
    Crashing,
    /// Fail with `EIO`.
    Failing,
}

impl Inner {
    fn enter(&mut self, operation: Operation) -> io::Result<Entered> {
        if self.crashed {
            return Err(crash_error());
        }
        self.calls += 1;
        *self.counts.entry(operation).or_default() += 1;
        if operation.is_change() {
            self.changes += 1;
            if self.read_only {
                return Err(io::Error::from_raw_os_error(30));
            }
            if self.crash_at.is_some_and(|change| self.changes >= change) {
                self.crashed = true;
                return Ok(Entered::Crashing);
            }
        }
        let mut failing = false;
        self.faults.retain_mut(|fault| {
            if fault.operation.is_some_and(|wanted| wanted != operation) {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            failing = true;
            fault.from_then_on
        });
        Ok(if failing { Entered::Failing } else { Entered::Normally })
    }

    /// [`Inner::enter`] for calls that have no halves.
    fn enter_whole(&mut self, operation: Operation) -> io::Result<bool> {
        match self.enter(operation)? {
            Entered::Normally => Ok(false),
            Entered::Crashing => Ok(true),
            Entered::Failing => Err(input_output_error()),
        }
    }

    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[file].bytes.len() as u64).sum()
    }

    fn check_space(&self, file: u64, end: u64) -> io::Result<()> {
        let length = self.files[&file].bytes.len() as u64;
        match self.capacity {
            Some(capacity) if end > length && self.used() + (end - length) > capacity => {
                Err(io::Error::from_raw_os_error(28))
            }
            _ => Ok(()),
        }
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.log.push(change);
    }

    fn add_directories(&mut self, path: &Path) {
        for ancestor in path.ancestors() {
            self.directories.insert(ancestor.to_owned());
        }
    }

    /// Drops files that no name, no possible name and no handle leads to.
    fn drop_unreachable(&mut self) {
        let mut reachable: BTreeSet<u64> = self.names.values().copied().collect();
        reachable.extend(self.durable_names.values());
        for change in &self.log {
            if let NameChange::Create(_, file) | NameChange::Rename(_, _, file) = change {
                reachable.insert(*file);
            }
        }
        self.files.retain(|number, file| file.open > 0 || reachable.contains(number));
    }
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} is not there", path.display()))
}

impl Disk for SimulatedDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut inner = self.0.lock();
        let existing = inner.names.get(path).copied();
        let creating = existing.is_none() && matches!(mode, OpenMode::Create | OpenMode::CreateNew);
        let operation = if creating { Operation::Create } else { Operation::Open };
        let crashing = inner.enter_whole(operation)?;
        let file = match existing {
            Some(_) if mode == OpenMode::CreateNew => {
                return Err(io::Error::from(io::ErrorKind::AlreadyExists));
            }
            Some(file) => file,
            None if !creating => return Err(not_found(path)),
            None => {
                let parent = path.parent().unwrap_or(Path::new(""));
                if !inner.directories.contains(parent) && !parent.as_os_str().is_empty() {
                    return Err(not_found(parent));
                }
                let file = inner.next_file;
                inner.next_file += 1;
                inner.files.insert(file, FileState::default());
                inner.change_name(NameChange::Create(path.to_owned(), file));
                file
            }
        };
        if crashing {
            return Err(crash_error());
        }
        if inner.read_only && mode != OpenMode::Read {
            return Err(io::Error::from_raw_os_error(30));
        }
        inner.files.get_mut(&file).expect("a named file exists").open += 1;
        let aligned = mode == OpenMode::Aligned;
        Ok(Arc::new(SimulatedFile { disk: self.clone(), file, aligned, writable: mode != OpenMode::Read }))
    }

    fn create_directories(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        let crashing = inner.enter_whole(Operation::CreateDirectories)?;
        inner.add_directories(path);
        if crashing { Err(crash_error()) } else { Ok(()) }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut inner = self.0.lock();
        inner.enter_whole(Operation::List)?;
        if !inner.directories.contains(path) {
            return Err(not_found(path));
        }
        let here = |found: &&PathBuf| found.parent() == Some(path) && *found != path;
        let names: BTreeSet<String> = inner
            .names
            .keys()
            .chain(&inner.directories)
            .filter(here)
            .filter_map(|found| Some(found.file_name()?.to_str()?.to_owned()))
            .collect();
        Ok(names.into_iter().collect())
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let mut inner = self.0.lock();
        inner.enter_whole(Operation::Exists)?;
        Ok(inner.names.contains_key(path) || inner.directories.contains(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        let crashing = inner.enter_whole(Operation::Rename)?;
        let file = *inner.names.get(from).ok_or_else(|| not_found(from))?;
        inner.change_name(NameChange::Rename(from.to_owned(), to.to_owned(), file));
        if crashing { Err(crash_error()) } else { Ok(()) }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        let crashing = inner.enter_whole(Operation::Remove)?;
        if !inner.names.contains_key(path) {
            return Err(not_found(path));
        }
        inner.change_name(NameChange::Remove(path.to_owned()));
        if crashing { Err(crash_error()) } else { Ok(()) }
    }

    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        if inner.enter_whole(Operation::SyncDirectory)? {
            return Err(crash_error());
        }
        let inner = &mut *inner;
        let (durable, names) = (&mut inner.durable_names, &mut inner.log);
        names.retain(|change| {
            let synced = change.directory() == path;
            if synced {
                change.apply(durable);
            }
            !synced
        });
        inner.drop_unreachable();
        Ok(())
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let mut inner = self.0.lock();
        inner.enter_whole(Operation::Lock)?;
        if inner.read_only {
            return Err(io::Error::from_raw_os_error(30));
        }
        if !inner.locks.insert(path.to_owned()) {
            return Ok(None);
        }
        if !inner.names.contains_key(path) {
            let file = inner.next_file;
            inner.next_file += 1;
            inner.files.insert(file, FileState::default());
            inner.change_name(NameChange::Create(path.to_owned(), file));
        }
        Ok(Some(Box::new(SimulatedLock { disk: self.clone(), path: path.to_owned() })))
    }
}

impl std::fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let inner = self.0.lock();
        write!(
            f,
            "SimulatedDisk({} files, {} calls, crashed: {})",
            inner.names.len(),
            inner.calls,
            inner.crashed
        )
    }
}

#[derive(Debug)]
struct SimulatedLock {
    disk: SimulatedDisk,
    path: PathBuf,
}

impl DiskLock for SimulatedLock {}

impl Drop for SimulatedLock {
    fn drop(&mut self) {
        self.disk.0.lock().locks.remove(&self.path);
    }
}

#[derive(Debug)]
struct SimulatedFile {
    disk: SimulatedDisk,
    file: u64,
    aligned: bool,
    writable: bool,
}

impl Drop for SimulatedFile {
    fn drop(&mut self) {
        if let Some(state) = self.disk.0.lock().files.get_mut(&self.file) {
            state.open -= 1;
        }
    }
}

impl SimulatedFile {
    fn write(&self, operation: Operation, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.aligned {
            let fits = offset.is_multiple_of(BLOCK)
                && bytes.len().is_multiple_of(BLOCK_SIZE)
                && (bytes.as_ptr() as usize).is_multiple_of(BLOCK_SIZE);
            assert!(fits, "an aligned file was given an unaligned write of {} at {offset}", bytes.len());
        }
        if !self.writable {
            return Err(io::Error::from_raw_os_error(9));
        }
        let mut inner = self.disk.0.lock();
        let entered = inner.enter(operation)?;
        inner.check_space(self.file, offset + bytes.len() as u64)?;
        let written = match entered {
            // What a failing write leaves is anybody's guess: a part of it, here.
            Entered::Failing => inner.random.below(bytes.len() as u64 + 1) as usize,
            Entered::Normally | Entered::Crashing => bytes.len(),
        };
        inner.last_write = Some((self.file, (offset + bytes.len().saturating_sub(1) as u64) / BLOCK));
        let state = inner.files.get_mut(&self.file).expect("an open file exists");
        state.write(offset, &bytes[..written]);
        match entered {
            Entered::Crashing => Err(crash_error()),
            Entered::Failing => Err(input_output_error()),
            Entered::Normally => {
                if operation == Operation::WriteSynced {
                    state.sync_blocks(offset, bytes.len() as u64);
                }
                Ok(())
            }
        }
    }
}

impl DiskFile for SimulatedFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        inner.enter_whole(Operation::Read)?;
        let bytes = &inner.files[&self.file].bytes;
        let range = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)?.get(..buffer.len()));
        match range {
            Some(found) => {
                buffer.copy_from_slice(found);
                Ok(())
            }
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(Operation::Write, offset, bytes)
    }

    fn write_at_synced(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write(Operation::WriteSynced, offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        let entered = inner.enter(Operation::Sync)?;
        let state = inner.files.get_mut(&self.file).expect("an open file exists");
        match entered {
            Entered::Normally => {
                state.sync();
                Ok(())
            }
            Entered::Crashing => Err(crash_error()),
            Entered::Failing => {
                state.dirty.values_mut().for_each(|dirty| dirty.lost = true);
                Err(input_output_error())
            }
        }
    }

    fn length(&self) -> io::Result<u64> {
        let mut inner = self.disk.0.lock();
        inner.enter_whole(Operation::Length)?;
        Ok(inner.files[&self.file].bytes.len() as u64)
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        let crashing = inner.enter_whole(Operation::SetLength)?;
        inner.check_space(self.file, length)?;
        inner.files.get_mut(&self.file).expect("an open file exists").set_length(length);
        if crashing { Err(crash_error()) } else { Ok(()) }
    }

    fn map(&self) -> io::Result<DiskMap> {
        let mut inner = self.disk.0.lock();
        inner.enter_whole(Operation::Map)?;
        Ok(DiskMap::new(inner.files[&self.file].bytes.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk_with_synced_file(content: &[u8]) -> (SimulatedDisk, Arc<dyn DiskFile>) {
        let disk = SimulatedDisk::new(1);
        disk.create_directories(Path::new("d")).unwrap();
        let file = disk.open(Path::new("d/f"), OpenMode::Create).unwrap();
        file.write_at(0, content).unwrap();
        file.sync().unwrap();
        disk.sync_directory(Path::new("d")).unwrap();
        (disk, file)
    }

    #[test]
    fn synced_content_survives_every_power_cut() {
        for seed in 0..200 {
            let (disk, file) = disk_with_synced_file(&[7; 10_000]);
            file.write_at(4096, &[8; 4096]).unwrap();
            file.write_at_synced(8192, &[9; 4096]).unwrap();
            let after = disk.power_cut(seed).content(Path::new("d/f")).unwrap();
            assert_eq!(after[..4096], [7; 4096]);
            assert_eq!(after[8192..12_288], [9; 4096]);
            assert!(after[4096..8192].iter().all(|byte| *byte == 7 || *byte == 8));
            assert!(file.sync().is_err(), "the old machine is off");
        }
    }

    #[test]
    fn unsynced_content_is_lost_kept_and_torn_by_turns() {
        let (mut lost, mut kept, mut torn) = (0, 0, 0);
        for seed in 0..300 {
            let (disk, file) = disk_with_synced_file(&[7; 4096]);
            file.write_at(0, &[8; 4096]).unwrap();
            let after = disk.power_cut(seed).content(Path::new("d/f")).unwrap();
            match (after.contains(&7), after.contains(&8)) {
                (true, false) => lost += 1,
                (false, true) => kept += 1,
                (true, true) => torn += 1,
                (false, false) => panic!("neither old nor new"),
            }
        }
        assert!(lost > 30 && kept > 30 && torn > 10, "lost {lost}, kept {kept}, torn {torn}");
    }

    #[test]
    fn a_name_is_durable_only_when_its_directory_was_synced() {
        let (mut lost, mut kept) = (0, 0);
        for seed in 0..100 {
            let (disk, _file) = disk_with_synced_file(b"x");
            disk.rename(Path::new("d/f"), Path::new("d/g")).unwrap();
            let after = disk.power_cut(seed);
            match after.files().as_slice() {
                [one] if one == Path::new("d/f") => lost += 1,
                [one] if one == Path::new("d/g") => kept += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(lost > 10 && kept > 10, "lost {lost}, kept {kept}");
    }

    #[test]
    fn a_failed_sync_is_not_healed_by_a_later_one() {
        let (disk, file) = disk_with_synced_file(&[7; 4096]);
        file.write_at(0, &[8; 4096]).unwrap();
        disk.inject(Fault { operation: Some(Operation::Sync), after: 0, from_then_on: false });
        assert!(file.sync().is_err());
        file.sync().unwrap();
        let lost =
            (0..100).any(|seed| disk.power_cut(seed).content(Path::new("d/f")).unwrap()[..4096] == [7; 4096]);
        assert!(lost);
    }

    #[test]
    fn a_crash_fails_that_call_and_all_later_ones() {
        let (disk, file) = disk_with_synced_file(b"x");
        disk.crash_at_change(disk.changes() + 2);
        file.write_at(0, b"y").unwrap();
        assert!(file.write_at(0, b"z").is_err());
        assert!(file.read_at(0, &mut [0]).is_err());
        assert!(disk.crashed());
        assert!(!disk.power_cut(3).crashed());
    }

    #[test]
    fn a_full_disk_and_a_read_only_one_refuse_as_real_ones_do() {
        let (disk, file) = disk_with_synced_file(&[1; 100]);
        disk.set_capacity(Some(150));
        file.write_at(100, &[2; 50]).unwrap();
        assert_eq!(file.write_at(150, &[3]).unwrap_err().kind(), io::ErrorKind::StorageFull);
        file.write_at(0, &[4; 150]).unwrap();
        disk.set_read_only(true);
        assert_eq!(file.write_at(0, &[5]).unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert_eq!(file.length().unwrap(), 150);
    }

    #[test]
    fn locks_die_with_the_process_that_held_them() {
        let disk = SimulatedDisk::new(5);
        let held = disk.lock(Path::new("LOCK")).unwrap().unwrap();
        assert!(disk.lock(Path::new("LOCK")).unwrap().is_none());
        assert!(disk.process_kill().lock(Path::new("LOCK")).unwrap().is_some());
        drop(held);
    }
}
