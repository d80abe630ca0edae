//! Opening the database that a command works on, and saying what went wrong in the binary's words.

use std::ffi::OsStr;
use std::io;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use dogsled::{Config, Db, Error};
use dogsled_storage::disk::{Disk, DiskLock, RealDisk};

use super::args::Global;
use super::bytes::ByteFormat;
use super::exit::{Code, Failure, Result};

/// Memory for caches if nothing is said.
const DEFAULT_CACHE_MIB: u64 = 256;

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        let code = match &error {
            Error::CollectionNotFound(_) | Error::Compacted { .. } => Code::NotFound,
            Error::Unsupported(_) => Code::Usage,
            Error::InUse(_) => Code::InUse,
            Error::NotADatabase { .. } => Code::NotADatabase,
            Error::Corruption { .. } | Error::Decode(_) => Code::Corrupt,
            Error::QuotaExceeded(_) => Code::QuotaExceeded,
            Error::LockNotHeld { .. } => Code::Refused,
            Error::Io(error) if error.kind() == io::ErrorKind::AlreadyExists => Code::Refused,
            // Whatever comes, the operating system or a bug is behind it.
            _ => Code::Io,
        };
        let message = match &error {
            Error::Io(inner) => inner.to_string(),
            _ => error.to_string(),
        };
        Failure::new(code, message)
    }
}

impl Global {
    /// The database directory: `own` of the command, or `--dir`.
    pub(crate) fn directory<'a>(&'a self, own: Option<&'a PathBuf>) -> Result<&'a Path> {
        if let Some(own) = own {
            return Ok(own);
        }
        if self.wants_cluster()? {
            return Err(Failure::usage(
                "this command works on a database directory (--dir), not with --connect",
            ));
        }
        self.dir.as_deref().ok_or_else(|| {
            Failure::usage(
                "which database? Give its directory with --dir DIR (or in DOGSLED_DIR), or the nodes of a cluster \
                 with --connect HOST:PORT",
            )
        })
    }

    /// Opens a database that must exist: a command that reads never makes one.
    pub(crate) fn open_existing(&self, own: Option<&PathBuf>) -> Result<Db> {
        let directory = self.directory(own)?;
        require_database(directory)?;
        self.open(directory)
    }

    /// Opens the database, making it if there is none.
    pub(crate) fn open_or_create(&self) -> Result<Db> {
        self.open(self.directory(None)?)
    }

    fn open(&self, directory: &Path) -> Result<Db> {
        Ok(Config::new().path(directory).cache_capacity(self.cache_bytes()).open()?)
    }

    /// Memory for caches.
    pub(crate) fn cache_bytes(&self) -> u64 {
        self.cache.unwrap_or(DEFAULT_CACHE_MIB) << 20
    }

    /// The name given with `--tree`: escaped text, as `dogsled trees` prints names.
    pub(crate) fn tree_name(&self) -> Result<Option<Vec<u8>>> {
        self.tree.as_deref().map(|name| name_argument("tree name", name)).transpose()
    }

    /// How keys are written on the command line.
    pub(crate) fn key_form(&self) -> ByteFormat {
        self.key_format.unwrap_or(ByteFormat::Text)
    }

    /// How values are written on the command line.
    pub(crate) fn value_form(&self) -> ByteFormat {
        self.value_format.unwrap_or(ByteFormat::Text)
    }

    /// The bytes of a key given as an argument.
    pub(crate) fn key_argument(&self, key: &OsStr) -> Result<Vec<u8>> {
        argument("key", self.key_form(), key)
    }

    /// The bytes of a value given as an argument.
    pub(crate) fn value_argument(&self, value: &OsStr) -> Result<Vec<u8>> {
        argument("value", self.value_form(), value)
    }
}

/// The bytes of the name of a tree, counter or lock.
pub(crate) fn name_argument(what: &str, name: &OsStr) -> Result<Vec<u8>> {
    argument(what, ByteFormat::Text, name)
}

fn argument(what: &str, form: ByteFormat, written: &OsStr) -> Result<Vec<u8>> {
    form.decode(written.as_bytes()).map_err(|why| Failure::usage(format!("{what} {written:?}: {why}")))
}

/// Refuses a directory that is missing, empty, or was never finished. One that holds something
/// else is left to the database to name.
pub(crate) fn require_database(directory: &Path) -> Result<()> {
    if directory.join("MANIFEST").exists() {
        return Ok(());
    }
    let none = |why: &str| {
        Err(Failure::new(Code::NotADatabase, format!("{}: no database there ({why})", directory.display())))
    };
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            let mut names = Vec::new();
            for entry in entries {
                names.push(entry.map_err(|error| Failure::io(directory.display(), &error))?.file_name());
            }
            if names.iter().any(|name| name == "CREATING") {
                return none("its creation was not finished");
            }
            if names.iter().all(|name| name == "LOCK") {
                return none("the directory is empty");
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => none("the directory does not exist"),
        // A plain file; the database says what it is.
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
        Err(error) => Err(Failure::io(directory.display(), &error)),
    }
}

/// For commands that read files instead of opening the database: refuses, as opening would, a
/// directory that holds none of ours.
pub(crate) fn require_files(directory: &Path) -> Result<()> {
    require_database(directory)?;
    if ["MANIFEST", "tree.redb", "wal"].iter().any(|name| directory.join(name).exists()) {
        return Ok(());
    }
    // It is somebody else's, and the database knows best whose; it refuses before it writes.
    match Config::new().path(directory).open() {
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Keeps other processes out of a database whose files are read directly.
pub(crate) fn hold(directory: &Path) -> Result<Option<Box<dyn DiskLock>>> {
    let path = directory.join("LOCK");
    match RealDisk.lock(&path) {
        Ok(Some(lock)) => Ok(Some(lock)),
        Ok(None) => Err(Error::InUse(directory.to_owned()).into()),
        // Nobody else can write there either.
        Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => Ok(None),
        // Nobody has it open: whoever has makes the file.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !path.exists() => Ok(None),
        Err(error) => Err(Failure::io(path.display(), &error)),
    }
}

/// What `Tree::range` takes.
pub(crate) type Bounds<'a> = (Bound<&'a [u8]>, Bound<&'a [u8]>);

/// A range of keys: at or after the first, before the second.
#[derive(Clone, Debug, Default)]
pub(crate) struct KeyRange {
    low: Vec<u8>,
    high: Option<Vec<u8>>,
}

impl KeyRange {
    /// The keys that are in all of the three.
    pub(crate) fn new(prefix: Option<Vec<u8>>, from: Option<Vec<u8>>, to: Option<Vec<u8>>) -> KeyRange {
        let prefix = prefix.unwrap_or_default();
        let end = after_prefix(&prefix);
        let high = match (end, to) {
            (Some(end), Some(to)) => Some(end.min(to)),
            (end, to) => end.or(to),
        };
        KeyRange { low: prefix.max(from.unwrap_or_default()), high }
    }

    /// Whether it is every key.
    pub(crate) fn is_everything(&self) -> bool {
        self.low.is_empty() && self.high.is_none()
    }

    /// Its bounds; `None` if it ends before it begins.
    pub(crate) fn bounds(&self) -> Option<Bounds<'_>> {
        let low = &self.low[..];
        match self.high.as_deref() {
            Some(high) if high <= low => None,
            Some(high) => Some((Bound::Included(low), Bound::Excluded(high))),
            None => Some((Bound::Included(low), Bound::Unbounded)),
        }
    }
}

/// The first key after all that begin with `prefix`; `None` if there is none.
fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|byte| *byte != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(after_prefix(b"a"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"a\xff\xff"), Some(b"b".to_vec()));
        assert_eq!(after_prefix(b"\xff"), None);
        assert_eq!(after_prefix(b""), None);
    }

    #[test]
    fn bounds_and_prefix_narrow_one_another() {
        let bytes = |text: &str| Some(text.as_bytes().to_vec());
        let range = KeyRange::new(bytes("b"), bytes("a"), bytes("z"));
        assert_eq!((range.low, range.high), (b"b".to_vec(), bytes("c")));
        let range = KeyRange::new(bytes("b"), bytes("bc"), bytes("bd"));
        assert_eq!((range.low, range.high), (b"bc".to_vec(), bytes("bd")));
        assert!(KeyRange::new(None, None, None).is_everything());
    }
}
