//! [`Config`]: how a database is opened.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use dogsled_storage::Durability;
use dogsled_storage::{Clock, Engine, Options};

use crate::db::TemporaryDirectory;
use crate::{Db, Error, Result};

const DEFAULT_PATH: &str = "default.sled";

/// Whether to favour space or speed. Kept for sled's sake: dogsled has one mode, and it is both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// No effect.
    LowSpace,
    /// No effect.
    HighThroughput,
}

/// How a database is opened: a builder, as in sled.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// let config = dogsled::Config::new()
///     .temporary(true)
///     .cache_capacity(256 << 20)
///     .flush_every_ms(Some(100));
/// let db = config.open()?;
/// db.insert("key", "value")?;
/// # Ok(()) }
/// ```
///
/// Options that mean nothing here are accepted, so that programs written for sled compile, and
/// say so: [`Config::mode`], [`Config::use_compression`], [`Config::compression_factor`],
/// [`Config::print_profile_on_drop`] and the hidden ones.
#[derive(Clone, Debug)]
pub struct Config {
    path: Option<PathBuf>,
    temporary: bool,
    cache_capacity: u64,
    durability: Durability,
    flush_every_ms: Option<u64>,
    segment_size: u64,
    create_new: bool,
    retain_changes_bytes: u64,
    low_disk_bytes: u64,
    clock: Option<Arc<dyn Clock>>,
}

impl Default for Config {
    fn default() -> Config {
        let options = Options::new(DEFAULT_PATH);
        Config {
            path: None,
            temporary: false,
            cache_capacity: options.cache_capacity,
            durability: options.durability,
            flush_every_ms: options.flush_every_ms,
            segment_size: options.segment_size,
            create_new: options.create_new,
            retain_changes_bytes: options.retain_changes_bytes,
            low_disk_bytes: options.low_disk_bytes,
            clock: None,
        }
    }
}

impl Config {
    /// The defaults: path `default.sled`, 1 GiB of cache, [`Durability::Buffered`] with a sync
    /// every 500 ms.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// let config = dogsled::Config::new();
    /// assert_eq!(config.get_path().to_str(), Some("default.sled"));
    /// # Ok(()) }
    /// ```
    pub fn new() -> Config {
        Config::default()
    }

    /// The directory that holds the database; created if it does not exist.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let parent = std::env::temp_dir().join(format!("dogsled-doc-path-{}", std::process::id()));
    /// # let path = parent.join("data.db");
    /// let db = dogsled::Config::new().path(&path).open()?;
    /// db.insert("key", "value")?;
    /// drop(db);
    /// let db = dogsled::Config::new().path(&path).open()?;
    /// assert_eq!(db.get("key")?.unwrap(), "value");
    /// # drop(db); std::fs::remove_dir_all(parent)?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn path<P: AsRef<Path>>(mut self, path: P) -> Config {
        self.path = Some(path.as_ref().to_path_buf());
        self
    }

    /// Whether the directory is deleted when the last handle is dropped. Without a path it is
    /// made in shared memory on Linux, and among the temporary files elsewhere.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("key", "gone when the database is closed")?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn temporary(mut self, to: bool) -> Config {
        self.temporary = to;
        self
    }

    /// How many bytes of memory the caches and the buffered writes may take together.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// // For a small machine.
    /// let db = dogsled::Config::new().temporary(true).cache_capacity(16 << 20).open()?;
    /// db.insert("key", "value")?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn cache_capacity(mut self, to: u64) -> Config {
        self.cache_capacity = to;
        self
    }

    /// Whether to fail if the database exists already.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let parent = std::env::temp_dir().join(format!("dogsled-doc-create-{}", std::process::id()));
    /// # let path = parent.join("data.db");
    /// drop(dogsled::Config::new().path(&path).create_new(true).open()?);
    /// assert!(dogsled::Config::new().path(&path).create_new(true).open().is_err(), "it is there");
    /// # std::fs::remove_dir_all(parent)?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn create_new(mut self, to: bool) -> Config {
        self.create_new = to;
        self
    }

    /// What a write that returned promises; the default is [`Durability::Buffered`], as in sled.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// use dogsled::{Config, Durability};
    /// let db = Config::new().temporary(true).durability(Durability::Synced).open()?;
    /// db.insert("key", "value")?; // survives power loss from here on
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn durability(mut self, to: Durability) -> Config {
        self.durability = to;
        self
    }

    /// How often buffered writes are synced, in milliseconds; `None`: only by
    /// [`flush`](crate::Tree::flush), and when the database is closed.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// // A power cut costs at most the last tenth of a second.
    /// let db = dogsled::Config::new().temporary(true).flush_every_ms(Some(100)).open()?;
    /// db.insert("key", "value")?;
    /// db.flush()?; // and from here on not even that
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn flush_every_ms(mut self, every_ms: Option<u64>) -> Config {
        self.flush_every_ms = every_ms;
        self
    }

    /// How many bytes of write-ahead log are kept, beyond what recovery needs, for
    /// [`changes_since`](Db::changes_since). The default is 0: what a checkpoint has folded into
    /// the B-tree can no longer be read as changes.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// let db = dogsled::Config::new().temporary(true).retain_changes_bytes(64 << 20).open()?;
    /// let before = db.snapshot().sequence();
    /// db.insert("key", "value")?;
    /// assert_eq!(db.changes_since(before)?.count(), 1);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn retain_changes_bytes(mut self, to: u64) -> Config {
        self.retain_changes_bytes = to;
        self
    }

    /// Refuses what stores something while fewer bytes of the file system are free, before it is logged, with an
    /// [`Error::Io`] of the kind [`StorageFull`](std::io::ErrorKind::StorageFull). Reads, removes and checkpoints go on, and
    /// so do writes by themselves when a quarter more is free. The default is 0: never. Then a full disk stops the
    /// database ([`Error::Poisoned`]) until it is reopened.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// let db = dogsled::Config::new().temporary(true).low_disk_bytes(u64::MAX).open()?;
    /// let refused = db.insert("key", "value");
    /// assert!(matches!(refused, Err(dogsled::Error::Io(why)) if why.kind() == std::io::ErrorKind::StorageFull));
    /// assert_eq!(db.remove("key")?, None);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn low_disk_bytes(mut self, to: u64) -> Config {
        self.low_disk_bytes = to;
        self
    }

    /// Size of a file of the write-ahead log in bytes, rounded up to a sensible power of two.
    /// (sled's segments are another thing, and smaller.)
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// let db = dogsled::Config::new().temporary(true).segment_size(2 << 20).open()?;
    /// db.insert("key", "value")?;
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn segment_size(mut self, segment_size: usize) -> Config {
        const SMALLEST: u64 = 1 << 20;
        const LARGEST: u64 = 1 << 30;
        self.segment_size = (segment_size as u64).clamp(SMALLEST, LARGEST).next_power_of_two();
        self
    }

    /// Where leases and times to live get the time from; the default goes by the time that passes, see
    /// [`SteadyClock`](dogsled_storage::SteadyClock). For tests.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Config {
        self.clock = Some(clock);
        self
    }

    /// No effect; see [`Mode`].
    #[must_use]
    pub fn mode(self, _to: Mode) -> Config {
        self
    }

    /// No effect: values are stored as they are. (sled refuses to open with `true` unless it was
    /// built for it.)
    #[must_use]
    pub fn use_compression(self, _to: bool) -> Config {
        self
    }

    /// No effect; see [`Config::use_compression`].
    #[must_use]
    pub fn compression_factor(self, _to: i32) -> Config {
        self
    }

    /// No effect.
    #[must_use]
    pub fn print_profile_on_drop(self, _to: bool) -> Config {
        self
    }

    /// No effect: numbers are reserved in blocks of a fixed size.
    #[doc(hidden)]
    #[must_use]
    pub fn idgen_persist_interval(self, _interval: u64) -> Config {
        self
    }

    #[doc(hidden)]
    #[must_use]
    #[deprecated(note = "this does nothing, in sled as here")]
    pub fn segment_cleanup_skew(self, _: usize) -> Config {
        self
    }

    #[doc(hidden)]
    #[must_use]
    #[deprecated(note = "this does nothing, in sled as here")]
    pub fn segment_cleanup_threshold(self, _: u8) -> Config {
        self
    }

    #[doc(hidden)]
    #[must_use]
    #[deprecated(note = "this does nothing, in sled as here")]
    pub fn snapshot_after_ops(self, _: u64) -> Config {
        self
    }

    #[doc(hidden)]
    #[must_use]
    #[deprecated(note = "this does nothing, in sled as here")]
    pub fn snapshot_path<P>(self, _: P) -> Config {
        self
    }

    /// The directory that would be opened, or `None` for one that is made up at each
    /// [`Config::open`].
    #[doc(hidden)]
    pub fn get_path(&self) -> PathBuf {
        self.path.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH))
    }

    /// Opens the database, creating it if need be and recovering it if it was not closed.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// let db = dogsled::Config::new().temporary(true).open()?;
    /// assert!(db.is_empty());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::InUse`] if it is open elsewhere, [`Error::NotADatabase`] if the directory holds
    /// something else, [`Error::Corruption`] if damage was found, [`Error::Unsupported`] if it
    /// exists and [`Config::create_new`] was asked for.
    pub fn open(&self) -> Result<Db> {
        let directory = match (&self.path, self.temporary) {
            (Some(path), _) => path.clone(),
            (None, true) => temporary_path(),
            (None, false) => PathBuf::from(DEFAULT_PATH),
        };
        // What is deleted at the end is what was opened, wherever the process works by then.
        let directory = std::path::absolute(&directory).map_err(|error| {
            Error::Io(std::io::Error::new(
                error.kind(),
                format!("finding out where {} is: {error}", directory.display()),
            ))
        })?;
        let mut options = Options {
            cache_capacity: self.cache_capacity,
            durability: self.durability,
            flush_every_ms: self.flush_every_ms,
            segment_size: self.segment_size,
            create_new: self.create_new,
            retain_changes_bytes: self.retain_changes_bytes,
            low_disk_bytes: self.low_disk_bytes,
            ..Options::new(&directory)
        };
        if let Some(clock) = &self.clock {
            options.clock = Arc::clone(clock);
        }
        let engine = Engine::open(options).map_err(Error::from)?;
        // Only now: what could not be opened is not ours to delete.
        let temporary = self.temporary.then(|| TemporaryDirectory(directory));
        Ok(Db::start(engine, temporary))
    }
}

fn temporary_path() -> PathBuf {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let shared_memory = Path::new("/dev/shm");
    let base = if cfg!(target_os = "linux") && shared_memory.is_dir() {
        shared_memory.to_path_buf()
    } else {
        std::env::temp_dir()
    };
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    base.join(format!("dogsled.tmp.{}.{nanoseconds}.{number}", std::process::id()))
}
