//! How a database is opened.

use std::path::PathBuf;
use std::sync::Arc;

use crate::clock::{Clock, SteadyClock};
use crate::disk::{Disk, RealDisk};

/// When a write counts as done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// When it would survive power loss.
    Synced,
    /// When it is visible; it survives power loss after the next sync, which begins within
    /// `flush_every_ms`.
    #[default]
    Buffered,
}

/// How to open an [`Engine`](crate::Engine).
#[derive(Clone, Debug)]
pub struct Options {
    /// Where; made if missing.
    pub directory: PathBuf,
    /// Bytes of memory for redb's cache, overlays and leaf cache together. At least 8 MiB are used.
    pub cache_capacity: u64,
    /// What writes get that do not say otherwise.
    pub durability: Durability,
    /// How long a buffered write may stay unsynced, in milliseconds; `None`: until
    /// [`Engine::sync`](crate::Engine::sync).
    pub flush_every_ms: Option<u64>,
    /// Bytes of a WAL segment; a multiple of 4096.
    pub segment_size: u64,
    /// Refuse to open a database that exists.
    pub create_new: bool,
    /// Commits whose WAL bytes together stay below this are kept for [`Engine::changes_since`](crate::Engine::changes_since)
    /// after they were folded into the B-tree.
    pub retain_changes_bytes: u64,
    /// Below so many free bytes of the file system what stores something is refused, before it is logged; see
    /// [`crate::space`]. 0, the default: never. A replica is not asked: whoever logs its entries is.
    pub low_disk_bytes: u64,
    /// Run the threads that write out, sync and fold into the B-tree. Without them only calls do:
    /// for tests that need to know when the disk is written, and for simulation.
    pub background_threads: bool,
    /// The most keys that one of a checkpoint's transactions writes.
    pub checkpoint_slice_keys: usize,
    /// What tells the time.
    pub clock: Arc<dyn Clock>,
    /// What stores the bytes.
    pub disk: Arc<dyn Disk>,
    /// The id of a database that is made, and the seed of all else that is random; `None`: drawn
    /// from the system's entropy.
    pub database_id: Option<u128>,
}

impl Options {
    /// The defaults, for `directory` on the operating system's disk.
    pub fn new(directory: impl Into<PathBuf>) -> Options {
        Options {
            directory: directory.into(),
            cache_capacity: 1 << 30,
            durability: Durability::Buffered,
            flush_every_ms: Some(500),
            segment_size: 8 << 20,
            create_new: false,
            retain_changes_bytes: 0,
            low_disk_bytes: 0,
            background_threads: true,
            checkpoint_slice_keys: 8 << 10,
            clock: Arc::new(SteadyClock::new()),
            disk: Arc::new(RealDisk),
            database_id: None,
        }
    }
}
