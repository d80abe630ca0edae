//! What can go wrong, grouped by what the caller can do about it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Damaged bytes, with their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Corruption {
    /// The file that holds them.
    pub file: PathBuf,
    /// Where in the file, in bytes, as near as is known.
    pub offset: Option<u64>,
    /// What was expected and what was found.
    pub what: String,
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file.display())?;
        if let Some(offset) = self.offset {
            write!(f, " at offset {offset}")?;
        }
        write!(f, ": {}", self.what)
    }
}

/// An error of the storage engine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Error {
    /// The request cannot be carried out as it stands (key too long, bad name…). Change it.
    InvalidRequest(String),
    /// The tree was dropped; open it again.
    TreeNotFound(crate::IVec),
    /// A tree of this name is never made here: it lives under another one. Find out which; see
    /// [`crate::seal`]. Nothing was changed.
    TreeSealed(crate::IVec),
    /// Another process, or another handle of this one, has the directory open.
    InUse(PathBuf),
    /// The directory holds something else (a sled or redb database, a newer format). Nothing was
    /// touched.
    NotADatabase {
        /// The directory.
        path: PathBuf,
        /// What was found, and what to do about it.
        what: String,
    },
    /// Damaged bytes on disk. `dogsled repair` saves what is sound.
    Corrupt(Corruption),
    /// An operation of the disk failed before anything was changed; try again when its cause is
    /// gone.
    Io {
        /// What was being done, with the path.
        doing: String,
        /// The operating system's error.
        source: Arc<io::Error>,
    },
    /// A write or sync failed and what is on disk is in doubt. Nothing more is acknowledged:
    /// reopen the database to recover all that was acknowledged.
    Poisoned(Arc<str>),
    /// The write demanded that a lock be held under a token, and it is not: somebody else holds it by
    /// now, or nobody. Nothing was changed; stop what is done under the lock.
    LockNotHeld {
        /// The lock.
        lock: crate::IVec,
        /// The token that was presented.
        token: crate::lock::FencingToken,
        /// The token of whoever holds it now.
        current: Option<crate::lock::FencingToken>,
    },
    /// A tree would be larger than its quota allows. Nothing was changed; remove something, or raise the quota.
    QuotaExceeded(crate::quota::QuotaExceeded),
    /// The changes asked for were folded into the B-tree and are no longer in the WAL. Take a
    /// snapshot and continue from its sequence.
    Compacted {
        /// The oldest sequence that can still be read.
        oldest: u64,
    },
}

impl Error {
    /// Wraps an I/O error with what was being done.
    pub fn io(doing: impl Into<String>, source: io::Error) -> Error {
        Error::Io { doing: doing.into(), source: Arc::new(source) }
    }

    /// Damage in `file` at `offset`.
    pub fn corrupt(
        file: impl Into<PathBuf>,
        offset: impl Into<Option<u64>>,
        what: impl Into<String>,
    ) -> Error {
        Error::Corrupt(Corruption { file: file.into(), offset: offset.into(), what: what.into() })
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::InvalidRequest(what) => write!(f, "invalid request: {what}"),
            Error::TreeNotFound(name) => {
                write!(f, "tree {:?} was dropped", String::from_utf8_lossy(name))
            }
            Error::TreeSealed(name) => {
                write!(f, "tree \"{}\" lives under another name here", name.escape_ascii())
            }
            Error::InUse(path) => {
                write!(f, "{} is in use by another process or handle", path.display())
            }
            Error::NotADatabase { path, what } => write!(f, "{}: {what}", path.display()),
            Error::Corrupt(corruption) => {
                write!(f, "damaged data in {corruption}; `dogsled repair` saves what is sound")
            }
            Error::Io { doing, source } => write!(f, "{doing}: {source}"),
            Error::Poisoned(why) => {
                write!(f, "a write failed and the database accepts no more; reopen it to recover: {why}")
            }
            Error::LockNotHeld { lock, token, current } => crate::fence::explain(f, lock, *token, *current),
            Error::QuotaExceeded(exceeded) => write!(f, "{exceeded}"),
            Error::Compacted { oldest } => {
                write!(f, "these changes are no longer kept; the oldest is sequence {oldest}")
            }
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source.as_ref()),
            _ => None,
        }
    }
}
