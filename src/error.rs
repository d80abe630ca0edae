//! [`Error`]: sled's variants where sled has one, and ours for what it has none for.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

pub use dogsled_storage::Corruption;
use dogsled_storage::Error as StorageError;

use crate::IVec;

/// The result of everything that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by what can be done about it.
///
/// The first five variants are sled's, so that code which matches on them compiles unchanged; a
/// `match` needs a `_` arm, because more may be added.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The tree was dropped; open it again.
    CollectionNotFound(IVec),
    /// The request cannot be carried out as it stands (key too long, trees of two databases in
    /// one transaction…). Change it.
    Unsupported(String),
    /// A bug of this library. Please report it.
    ReportableBug(String),
    /// An operation of the disk failed before anything was changed. Try again when its cause is
    /// gone.
    Io(io::Error),
    /// Damaged bytes on disk; [`repair`](crate::repair()) saves what is sound.
    Corruption {
        /// The file and the place in it.
        at: Option<Corruption>,
        /// Empty; kept because sled has it.
        bt: (),
    },
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
    /// A write or sync failed and what is on disk is in doubt. Nothing more is acknowledged:
    /// reopen the database, which recovers all that was acknowledged.
    Poisoned(String),
    /// The write demanded that a lock be held under a token ([`Tree::under`](crate::Tree::under)), and it is
    /// not. Nothing was changed; stop what is done under the lock.
    LockNotHeld {
        /// The lock.
        lock: IVec,
        /// The token that was presented.
        token: crate::FencingToken,
        /// The largest token of those who hold it now.
        current: Option<crate::FencingToken>,
    },
    /// The tree would be larger than its quota allows; see [`Tree::set_quota`](crate::Tree::set_quota). Nothing was
    /// changed; remove something from it, or raise the quota.
    QuotaExceeded(crate::QuotaExceeded),
    /// The changes asked for are no longer kept. Take a snapshot and go on from its sequence.
    Compacted {
        /// The oldest sequence that can still be read.
        oldest: u64,
    },
    /// Bytes that are sound on disk are not what a typed tree or counter expects.
    Decode(String),
}

impl Error {
    /// As the storage crate's error, but with the tree's name in place of its number.
    pub(crate) fn in_tree(error: StorageError, name: &IVec) -> Error {
        match error {
            StorageError::TreeNotFound(_) => Error::CollectionNotFound(name.clone()),
            other => other.into(),
        }
    }
}

/// An I/O error with what was being done; what [`Error::Io`] holds, so that cloning loses nothing.
#[derive(Clone, Debug)]
struct IoContext {
    doing: String,
    source: Arc<io::Error>,
}

impl IoContext {
    fn into_error(self) -> io::Error {
        io::Error::new(self.source.kind(), self)
    }
}

impl fmt::Display for IoContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.doing.is_empty() {
            return self.source.fmt(f);
        }
        write!(f, "{}: {}", self.doing, self.source)
    }
}

impl std::error::Error for IoContext {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(self.source.as_ref())
    }
}

impl From<StorageError> for Error {
    fn from(error: StorageError) -> Error {
        match error {
            StorageError::InvalidRequest(what) => Error::Unsupported(what),
            StorageError::TreeNotFound(name) => Error::CollectionNotFound(name),
            StorageError::InUse(path) => Error::InUse(path),
            StorageError::NotADatabase { path, what } => Error::NotADatabase { path, what },
            StorageError::Corrupt(corruption) => Error::Corruption { at: Some(corruption), bt: () },
            StorageError::Io { doing, source } => Error::Io(IoContext { doing, source }.into_error()),
            StorageError::Poisoned(why) => Error::Poisoned(why.to_string()),
            StorageError::Compacted { oldest } => Error::Compacted { oldest },
            StorageError::LockNotHeld { lock, token, current } => Error::LockNotHeld { lock, token, current },
            StorageError::QuotaExceeded(exceeded) => Error::QuotaExceeded(exceeded),
            // The storage crate may learn new ones before this crate does.
            other => Error::ReportableBug(other.to_string()),
        }
    }
}

impl Clone for Error {
    fn clone(&self) -> Error {
        match self {
            Error::CollectionNotFound(name) => Error::CollectionNotFound(name.clone()),
            Error::Unsupported(what) => Error::Unsupported(what.clone()),
            Error::ReportableBug(what) => Error::ReportableBug(what.clone()),
            Error::Io(error) => {
                let context = error.get_ref().and_then(|inner| inner.downcast_ref::<IoContext>());
                Error::Io(match (context, error.raw_os_error()) {
                    (Some(context), _) => context.clone().into_error(),
                    (None, Some(code)) => io::Error::from_raw_os_error(code),
                    (None, None) => io::Error::new(error.kind(), error.to_string()),
                })
            }
            Error::Corruption { at, bt: () } => Error::Corruption { at: at.clone(), bt: () },
            Error::InUse(path) => Error::InUse(path.clone()),
            Error::NotADatabase { path, what } => {
                Error::NotADatabase { path: path.clone(), what: what.clone() }
            }
            Error::Poisoned(why) => Error::Poisoned(why.clone()),
            Error::Compacted { oldest } => Error::Compacted { oldest: *oldest },
            Error::LockNotHeld { lock, token, current } => {
                Error::LockNotHeld { lock: lock.clone(), token: *token, current: *current }
            }
            Error::QuotaExceeded(exceeded) => Error::QuotaExceeded(exceeded.clone()),
            Error::Decode(what) => Error::Decode(what.clone()),
        }
    }
}

/// As in sled: two I/O errors are never equal.
impl PartialEq for Error {
    fn eq(&self, other: &Error) -> bool {
        match (self, other) {
            (Error::CollectionNotFound(a), Error::CollectionNotFound(b)) => a == b,
            (Error::Unsupported(a), Error::Unsupported(b))
            | (Error::ReportableBug(a), Error::ReportableBug(b))
            | (Error::Poisoned(a), Error::Poisoned(b))
            | (Error::Decode(a), Error::Decode(b)) => a == b,
            (Error::Corruption { at: a, .. }, Error::Corruption { at: b, .. }) => a == b,
            (Error::InUse(a), Error::InUse(b)) => a == b,
            (Error::QuotaExceeded(a), Error::QuotaExceeded(b)) => a == b,
            (Error::NotADatabase { path: a, what: c }, Error::NotADatabase { path: b, what: d }) => {
                (a, c) == (b, d)
            }
            (Error::Compacted { oldest: a }, Error::Compacted { oldest: b }) => a == b,
            (
                Error::LockNotHeld { lock: a, token: c, current: e },
                Error::LockNotHeld { lock: b, token: d, current: f },
            ) => (a, c, e) == (b, d, f),
            _ => false,
        }
    }
}

impl Eq for Error {}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::CollectionNotFound(name) => {
                write!(f, "the tree {:?} does not exist; it was dropped", String::from_utf8_lossy(name))
            }
            Error::Unsupported(what) => write!(f, "unsupported: {what}"),
            Error::ReportableBug(what) => write!(f, "a bug in dogsled, please report it: {what}"),
            Error::Io(error) => write!(f, "I/O error: {error}"),
            Error::Corruption { at: Some(corruption), .. } => {
                write!(f, "damaged data in {corruption}; `dogsled repair` saves what is sound")
            }
            Error::Corruption { at: None, .. } => f.write_str("damaged data"),
            Error::InUse(path) => {
                write!(f, "{} is in use by another process or handle", path.display())
            }
            Error::NotADatabase { path, what } => write!(f, "{}: {what}", path.display()),
            Error::Poisoned(why) => {
                write!(f, "a write failed and the database accepts no more; reopen it to recover: {why}")
            }
            Error::Compacted { oldest } => {
                write!(f, "these changes are no longer kept; the oldest is sequence {oldest}")
            }
            Error::LockNotHeld { lock, token, current } => {
                let (lock, token, current) = (lock.clone(), *token, *current);
                StorageError::LockNotHeld { lock, token, current }.fmt(f)
            }
            Error::QuotaExceeded(exceeded) => write!(f, "{exceeded}"),
            Error::Decode(what) => write!(f, "not what was expected: {what}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::Io(error)
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> io::Error {
        let kind = match error {
            Error::Io(error) => return error,
            Error::CollectionNotFound(_) | Error::Compacted { .. } => io::ErrorKind::NotFound,
            Error::Unsupported(_) => io::ErrorKind::InvalidInput,
            Error::Corruption { .. } | Error::NotADatabase { .. } | Error::Decode(_) => {
                io::ErrorKind::InvalidData
            }
            Error::InUse(_) => io::ErrorKind::WouldBlock,
            Error::LockNotHeld { .. } => io::ErrorKind::PermissionDenied,
            Error::QuotaExceeded(_) => io::ErrorKind::QuotaExceeded,
            Error::ReportableBug(_) | Error::Poisoned(_) => io::ErrorKind::Other,
        };
        io::Error::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cloning_an_io_error_keeps_its_kind_text_and_cause() {
        let cause = io::Error::from_raw_os_error(28);
        let error = Error::from(StorageError::io("writing wal/1.wal", cause));
        let clone = error.clone();
        assert_eq!(clone.to_string(), error.to_string());
        assert!(clone.to_string().contains("writing wal/1.wal"), "{clone}");
        let Error::Io(inner) = clone else { panic!("not an I/O error") };
        assert_eq!(inner.kind(), io::ErrorKind::StorageFull);
        let Error::Io(raw) = Error::Io(io::Error::from_raw_os_error(28)).clone() else { panic!() };
        assert_eq!(raw.raw_os_error(), Some(28));
    }

    #[test]
    fn becomes_an_io_error_that_still_knows_what_it_was() {
        let error = io::Error::from(Error::InUse("/data".into()));
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(error.to_string().contains("/data"));
    }
}
