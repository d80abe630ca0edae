//! [`RealDisk`]: the operating system's disk.
//!
//! Positioned reads and writes only, so that one open file serves many threads. A file opened with
//! [`OpenMode::Aligned`] has up to three descriptors: an ordinary one for reading and syncing, one
//! with `O_DIRECT` for [`DiskFile::write_at`] and one with `O_DIRECT | O_DSYNC` for
//! [`DiskFile::write_at_synced`], which is a durable write in a single system call. The two are closed by
//! [`DiskFile::no_more_writes`]. Where the file
//! system refuses `O_DIRECT` (`EINVAL`, at opening or at the first write), plain writes and
//! `fdatasync` take its place, with the same promise.
//!
//! The kernel keeps the page cache coherent with direct writes by dropping the pages that they
//! touch, mapped ones included, before and after the write (`kiocb_invalidate_pages`). Reading a
//! block while it is being written is still a race; the WAL never does: it reads what is written
//! for good.
//!
//! A page of a map that the disk cannot read is no error but a signal that ends the process. Whoever
//! maps reads first with [`DiskFile::read_at`], and does not keep the map.

// `memmap2` cannot know that nobody shortens or changes the file behind the map; see the one
// `unsafe` block below for why that holds here.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use super::{BLOCK_SIZE, Disk, DiskDirectory, DiskFile, DiskLock, DiskMap, OpenMode, Space};

/// The operating system's disk; see the [module](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

/// How often a lock file is opened that seems to be another one each time.
const LOCK_TRIES: u32 = 20;

#[cfg(target_os = "linux")]
mod flags {
    use rustix::fs::OFlags;

    pub(super) const DIRECT: Option<i32> = Some(OFlags::DIRECT.bits() as i32);

    // rustix's `OFlags::DSYNC` is `O_SYNC` on its Linux back end, which also writes the inode's
    // time stamps and is several times slower; hence the number, which these architectures share.
    pub(super) const DSYNC: i32 = if cfg!(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm",
        target_arch = "riscv64",
        target_arch = "powerpc64",
        target_arch = "s390x",
        target_arch = "loongarch64"
    )) {
        0o10000
    } else {
        OFlags::SYNC.bits() as i32
    };
}

#[cfg(not(target_os = "linux"))]
mod flags {
    pub(super) const DIRECT: Option<i32> = None;
    pub(super) const DSYNC: i32 = 0;
}

impl Disk for RealDisk {
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        std::path::absolute(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>> {
        let mut options = OpenOptions::new();
        options.read(true);
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::ReadWrite | OpenMode::Aligned => options.write(true),
            OpenMode::Create => options.write(true).create(true).truncate(false),
            OpenMode::CreateNew => options.write(true).create_new(true),
        };
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let direct = match mode {
            OpenMode::Aligned => Direct::open(path)?,
            _ => None,
        };
        Ok(Arc::new(RealFile { file, direct: RwLock::new(direct) }))
    }

    fn create_directories(&self, path: &Path) -> io::Result<()> {
        if path.as_os_str().is_empty() || path.is_dir() {
            return Ok(());
        }
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        self.create_directories(parent)?;
        match std::fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
            other => other?,
        }
        self.sync_directory(parent)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            // A name that is not UTF-8 is not ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        path.try_exists()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn remove_directory(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_dir(path)?;
        match path.parent() {
            Some(parent) => self.sync_directory(parent),
            None => Ok(()),
        }
    }

    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn DiskDirectory>> {
        Ok(Arc::new(RealDirectory(File::open(path)?)))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>> {
        let mut tries = 0;
        loop {
            tries += 1;
            let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
            let file = match opened {
                // Somebody else's, who may have it open: what may only be read can be locked all the same.
                Err(denied) if denied.kind() == io::ErrorKind::PermissionDenied => {
                    File::open(path).map_err(|_| denied)?
                }
                opened => opened?,
            };
            match file.try_lock() {
                // Whoever had it may have deleted it with its directory: such a lock keeps nobody out. But
                // there are file systems that number files anew whenever they are asked.
                Ok(()) if tries < LOCK_TRIES && !is_named(&file, path)? => {}
                Ok(()) => return Ok(Some(Box::new(RealLock(file)))),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let found = rustix::fs::statvfs(path)?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Space { total: bytes(found.f_blocks), free: bytes(found.f_bavail) })
    }
}

/// Whether the name is that of the file, and not of another or of none.
fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let here = file.metadata()?;
    match std::fs::metadata(path) {
        Ok(there) => Ok((here.dev(), here.ino()) == (there.dev(), there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

#[derive(Debug)]
struct RealDirectory(File);

impl DiskDirectory for RealDirectory {
    fn sync(&self) -> io::Result<()> {
        self.0.sync_all()
    }
}

#[derive(Debug)]
struct RealLock(File);

impl DiskLock for RealLock {}

impl Drop for RealLock {
    fn drop(&mut self) {
        // Explicitly, because a child process that inherited the descriptor would keep it locked
        // after the close. An error leaves what closing does.
        let _ = self.0.unlock();
    }
}

#[derive(Debug)]
struct RealFile {
    file: File,
    /// Held for reading during a write, which takes a thousand times as long as taking it.
    direct: RwLock<Option<Direct>>,
}

/// The descriptors that bypass the page cache.
#[derive(Debug)]
struct Direct {
    plain: File,
    synced: File,
    /// Cleared when the file system turns out to refuse direct writes.
    usable: AtomicBool,
}

impl Direct {
    fn open(path: &Path) -> io::Result<Option<Direct>> {
        use std::os::unix::fs::OpenOptionsExt;
        let Some(direct) = flags::DIRECT else { return Ok(None) };
        let open = |flags: i32| OpenOptions::new().write(true).custom_flags(flags).open(path);
        let refused = |error: &io::Error| error.kind() == io::ErrorKind::InvalidInput;
        match (open(direct), open(direct | flags::DSYNC)) {
            (Ok(plain), Ok(synced)) => Ok(Some(Direct { plain, synced, usable: AtomicBool::new(true) })),
            (Err(error), _) | (_, Err(error)) if refused(&error) => Ok(None),
            (Err(error), _) | (_, Err(error)) => Err(error),
        }
    }

    /// `None` when the file system refuses and nothing was written.
    fn write(&self, file: &File, offset: u64, bytes: &[u8]) -> Option<io::Result<()>> {
        let aligned = offset.is_multiple_of(BLOCK_SIZE as u64)
            && bytes.len().is_multiple_of(BLOCK_SIZE)
            && (bytes.as_ptr() as usize).is_multiple_of(BLOCK_SIZE);
        debug_assert!(aligned, "an aligned file was given an unaligned write at {offset}");
        if !aligned || !self.usable.load(Ordering::Relaxed) {
            return None;
        }
        match file.write_all_at(bytes, offset) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                self.usable.store(false, Ordering::Relaxed);
                None
            }
            done => Some(done),
        }
    }
}

impl DiskFile for RealFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(direct) = &*self.direct.read()
            && let Some(done) = direct.write(&direct.plain, offset, bytes)
        {
            return done;
        }
        self.file.write_all_at(bytes, offset)
    }

    fn write_at_synced(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(direct) = &*self.direct.read()
            && let Some(done) = direct.write(&direct.synced, offset, bytes)
        {
            return done;
        }
        self.file.write_all_at(bytes, offset)?;
        self.file.sync_data()
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_length(&self, length: u64) -> io::Result<()> {
        self.file.set_len(length)
    }

    fn no_more_writes(&self) {
        *self.direct.write() = None;
    }

    fn map(&self) -> io::Result<DiskMap> {
        if self.length()? == 0 {
            return Ok(DiskMap::new(Vec::new()));
        }
        // SAFETY: the bytes must not change or go away while the map lives. The directory is
        // locked against other processes of ours and segments are never shortened. Only opening and
        // verifying map them: before anything is written to them, or, where a database in use is
        // verified, taking what was read for bytes that checksums have to prove.
        let map = unsafe { memmap2::Mmap::map(&self.file)? };
        // Maps are read from front to back, by recovery above all, and cold: direct writes leave
        // nothing in the page cache. It is a hint; an error changes nothing.
        #[cfg(target_os = "linux")]
        {
            let _ = map.advise(memmap2::Advice::Sequential);
            let _ = map.advise(memmap2::Advice::WillNeed);
        }
        Ok(DiskMap::new(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aligned(fill: u8, blocks: usize) -> (Vec<u8>, usize) {
        let bytes = vec![fill; (blocks + 1) * BLOCK_SIZE];
        let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
        (bytes, start)
    }

    fn block_file(directory: &Path) -> Arc<dyn DiskFile> {
        let path = directory.join("blocks");
        let file = RealDisk.open(&path, OpenMode::CreateNew).unwrap();
        file.write_at(0, &vec![0; 64 * BLOCK_SIZE]).unwrap();
        file.sync().unwrap();
        RealDisk.open(&path, OpenMode::Aligned).unwrap()
    }

    #[test]
    fn direct_writes_show_in_reads_and_in_maps_that_were_faulted_before() {
        let directory = tempfile::tempdir().unwrap();
        let file = block_file(directory.path());
        let map = file.map().unwrap();
        assert!(map.iter().all(|byte| *byte == 0), "faults every page in");
        for round in 1..=20u8 {
            for block in 0..64u64 {
                let (bytes, start) = aligned(round, 1);
                let bytes = &bytes[start..start + BLOCK_SIZE];
                if block % 2 == 0 {
                    file.write_at_synced(block * BLOCK_SIZE as u64, bytes).unwrap();
                } else {
                    file.write_at(block * BLOCK_SIZE as u64, bytes).unwrap();
                }
                let mut read = [0; BLOCK_SIZE];
                file.read_at(block * BLOCK_SIZE as u64, &mut read).unwrap();
                assert_eq!(read, *bytes);
                assert_eq!(map[block as usize * BLOCK_SIZE..][..BLOCK_SIZE], *bytes);
            }
        }
    }

    #[test]
    fn a_lock_is_exclusive_and_gone_when_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("LOCK");
        let held = RealDisk.lock(&path).unwrap().expect("free");
        assert!(RealDisk.lock(&path).unwrap().is_none());
        drop(held);
        assert!(RealDisk.lock(&path).unwrap().is_some());
    }

    #[test]
    fn a_lock_file_that_was_deleted_meanwhile_is_told_from_the_one_that_is_there() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("LOCK");
        let deleted = File::create(&path).unwrap();
        assert!(is_named(&deleted, &path).unwrap());
        std::fs::remove_file(&path).unwrap();
        assert!(!is_named(&deleted, &path).unwrap());
        let held = RealDisk.lock(&path).unwrap().expect("free");
        assert!(!is_named(&deleted, &path).unwrap());
        assert!(RealDisk.lock(&path).unwrap().is_none());
        drop(held);
    }

    #[test]
    fn opening_modes_do_what_they_say() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("a/b/c");
        RealDisk.create_directories(&deep).unwrap();
        RealDisk.create_directories(&deep).unwrap();
        let path = deep.join("file");
        let kind = |mode| RealDisk.open(&path, mode).err().map(|error| error.kind());
        assert_eq!(kind(OpenMode::Read), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(OpenMode::ReadWrite), Some(io::ErrorKind::NotFound));
        assert_eq!(kind(OpenMode::CreateNew), None);
        assert_eq!(kind(OpenMode::CreateNew), Some(io::ErrorKind::AlreadyExists));
        let file = RealDisk.open(&path, OpenMode::Create).unwrap();
        assert_eq!(file.map().unwrap().len(), 0);
        file.write_at(3, b"abc").unwrap();
        assert_eq!(file.length().unwrap(), 6);
        assert_eq!(&file.map().unwrap()[..], b"\0\0\0abc");
        let mut beyond = [0; 4];
        assert_eq!(file.read_at(3, &mut beyond).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(RealDisk.list(&deep).unwrap(), ["file"]);
        assert!(RealDisk.open(&deep, OpenMode::Read).is_err());
    }
}
