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

mod faults;
mod surviving;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;

use super::{BLOCK_SIZE, Disk, DiskDirectory, DiskFile, DiskLock, DiskMap, OpenMode, Space};

use faults::{Entered, crash_error, input_output_error};
pub use faults::{Fault, Operation};
use surviving::{FileState, NameChange};

const BLOCK: u64 = BLOCK_SIZE as u64;

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

    /// Sum of the lengths of the files.
    pub fn used(&self) -> u64 {
        self.0.lock().used()
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

    /// Lets reading the blocks that a range of a file touches fail with `EIO`, until they are written
    /// anew; what they hold is still there for [`SimulatedDisk::content`].
    ///
    /// # Panics
    /// If there is no such file.
    pub fn make_unreadable(&self, path: &Path, range: Range<u64>) {
        let mut inner = self.0.lock();
        let file = *inner.names.get(path).expect("a file to be unreadable");
        let state = inner.files.get_mut(&file).expect("a named file exists");
        state.unreadable.extend(range.start / BLOCK..range.end.div_ceil(BLOCK));
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

    /// An independent copy of what a reader sees, all of it durable.
    pub fn duplicate(&self) -> SimulatedDisk {
        let inner = self.0.lock();
        let files = inner
            .files
            .iter()
            .map(|(number, file)| {
                let unreadable = file.unreadable.clone();
                (*number, FileState { unreadable, ..FileState::durable(file.bytes.clone()) })
            })
            .collect();
        let (names, directories) = (inner.names.clone(), inner.directories.clone());
        SimulatedDisk::from_parts(inner.random.0, files, names, directories, inner.next_file)
    }
}

impl Inner {
    fn used(&self) -> u64 {
        self.names.values().map(|file| self.files[file].bytes.len() as u64).sum()
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

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        let mut inner = self.0.lock();
        let crashing = inner.enter_whole(Operation::Remove)?;
        let inner = &mut *inner;
        let mut names = inner.names.keys().chain(&inner.directories);
        if names.any(|name| name.parent() == Some(path)) {
            return Err(io::Error::from(io::ErrorKind::DirectoryNotEmpty));
        }
        if !inner.directories.remove(path) {
            return Err(not_found(path));
        }
        // What was removed in it before is gone as well.
        let (durable, changes) = (&mut inner.durable_names, std::mem::take(&mut inner.log));
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            changes.into_iter().partition(|change| change.directory() == path);
        for change in here {
            change.apply(durable);
        }
        inner.log = elsewhere;
        if crashing { Err(crash_error()) } else { Ok(()) }
    }

    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn DiskDirectory>> {
        self.0.lock().enter_whole(Operation::Open)?;
        Ok(Arc::new(SimulatedDirectory { disk: self.clone(), path: path.to_owned() }))
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

    /// Neither counted as an operation nor failing: it changes nothing, and is for reports only.
    fn space(&self, _: &Path) -> io::Result<Space> {
        let inner = self.0.lock();
        let total = inner.capacity.unwrap_or(u64::MAX);
        Ok(Space { total, free: total.saturating_sub(inner.used()) })
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
struct SimulatedDirectory {
    disk: SimulatedDisk,
    path: PathBuf,
}

impl DiskDirectory for SimulatedDirectory {
    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock();
        if inner.enter_whole(Operation::SyncDirectory)? {
            return Err(crash_error());
        }
        let inner = &mut *inner;
        let (durable, names) = (&mut inner.durable_names, &mut inner.log);
        names.retain(|change| {
            let synced = change.directory() == self.path;
            if synced {
                change.apply(durable);
            }
            !synced
        });
        inner.drop_unreachable();
        Ok(())
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
        let state = &inner.files[&self.file];
        if !state.is_readable(offset..offset.saturating_add(buffer.len() as u64)) {
            return Err(input_output_error());
        }
        let bytes = &state.bytes;
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
        let state = &inner.files[&self.file];
        // As whoever touches such a page of a real map.
        assert!(state.is_readable(0..state.bytes.len() as u64), "SIGBUS: a page of the map cannot be read");
        Ok(DiskMap::new(state.bytes.clone()))
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
