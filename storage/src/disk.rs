//! The one narrow door to the disk, so that a misbehaving one can be put behind it.
//!
//! Everything that dogsled keeps goes through [`Disk`] and [`DiskFile`]: the WAL, redb (by
//! [`redb::StorageBackend`]), the manifest. [`RealDisk`] is the operating system's;
//! [`SimulatedDisk`] loses, tears and refuses writes on command and
//! stands under the whole database in tests.
//!
//! What is assumed of hardware: a write that was followed by a successful sync survives power
//! loss; without one, any subset of the 4 KiB blocks written since the last sync may be there
//! afterwards, and each may be torn. A name survives only when its directory was synced.

use std::fmt::Debug;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub mod real;
pub mod simulated;

pub use real::RealDisk;
pub use simulated::{Fault, Operation, SimulatedDisk};

/// Size in bytes of the unit in which disks are assumed to write without harming neighbours.
pub const BLOCK_SIZE: usize = 4096;

/// A directory tree in which files can be made, renamed, removed and synced.
pub trait Disk: Debug + Send + Sync + 'static {
    /// `path` as it is to be kept by what stays open: the same place whatever directory the process works in later.
    fn absolute(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.to_owned())
    }
    /// Opens `path`, as `mode` says.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn DiskFile>>;
    /// Creates `path` and its parents; no error if it exists. Names are durable on return.
    fn create_directories(&self, path: &Path) -> io::Result<()>;
    /// File names (not paths) in `path`, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<String>>;
    /// Whether a file or directory of that name exists.
    fn exists(&self, path: &Path) -> io::Result<bool>;
    /// Renames a file, replacing `to`. Durable only after [`Disk::sync_directory`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file. Durable only after [`Disk::sync_directory`].
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Removes an empty directory; an error if it is not. Durable on return.
    fn remove_directory(&self, path: &Path) -> io::Result<()>;
    /// Opens the directory `path`, for whoever changes names in it again and again and must not fail
    /// to sync them because the process has no descriptor left just then.
    fn open_directory(&self, path: &Path) -> io::Result<Arc<dyn DiskDirectory>>;
    /// Makes the names in `path` durable.
    fn sync_directory(&self, path: &Path) -> io::Result<()> {
        self.open_directory(path)?.sync()
    }
    /// Takes the exclusive lock file `path`, creating it; `None` if another process (or another
    /// handle of this one) holds it. Dropping the guard releases it before drop returns.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn DiskLock>>>;
    /// How much room there is where the directory `path` is.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// See [`Disk::space`]; in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What the file system holds when it is full.
    pub total: u64,
    /// What can still be written to it by this process.
    pub free: u64,
}

/// An open directory; see [`Disk::open_directory`].
pub trait DiskDirectory: Debug + Send + Sync {
    /// Makes the names in it durable.
    fn sync(&self) -> io::Result<()>;
}

/// Proof of holding a directory; see [`Disk::lock`].
pub trait DiskLock: Debug + Send + Sync {}

/// How [`Disk::open`] opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// Existing file, reading only.
    Read,
    /// Existing file, reading and writing.
    ReadWrite,
    /// Reading and writing; created empty if missing.
    Create,
    /// Reading and writing; an error (`AlreadyExists`) if present.
    CreateNew,
    /// Existing file of a length that is a multiple of [`BLOCK_SIZE`], for the WAL's appends:
    /// buffers, offsets and lengths given to it are aligned to [`BLOCK_SIZE`], so that the page
    /// cache may be bypassed where the file system allows it.
    Aligned,
}

/// An open file. Positions and lengths are in bytes.
pub trait DiskFile: Debug + Send + Sync {
    /// Fills `buffer` from `offset`; `UnexpectedEof` if the file ends before.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset`, growing the file if need be. Not durable.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Writes all of `bytes` at `offset` and returns when these bytes are durable. Earlier
    /// unsynced writes need not become durable by it.
    fn write_at_synced(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes all earlier writes and the length durable.
    fn sync(&self) -> io::Result<()>;
    /// Current length.
    fn length(&self) -> io::Result<u64>;
    /// Sets the length; new bytes are zero.
    fn set_length(&self, length: u64) -> io::Result<()>;
    /// Says that nothing more is written to it, though it may still be synced: what is open for writing
    /// only may be closed.
    fn no_more_writes(&self) {}
    /// The whole file for reading. It must not be shortened while the map lives. Touching what the
    /// disk cannot read may end the process: read it with [`DiskFile::read_at`] before.
    fn map(&self) -> io::Result<DiskMap>;
}

/// A file's bytes, mapped or copied; see [`DiskFile::map`].
#[derive(Clone)]
pub struct DiskMap(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl DiskMap {
    /// Wraps what holds the bytes.
    pub fn new(bytes: impl AsRef<[u8]> + Send + Sync + 'static) -> DiskMap {
        DiskMap(Arc::new(bytes))
    }
}

impl std::ops::Deref for DiskMap {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl Debug for DiskMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "DiskMap({} bytes)", self.len())
    }
}
