//! Opening redb on a [`TreeFile`], and what its errors mean to our callers.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::{Builder, Database};

use super::{TreeFile, damage_in};
use crate::disk::{Disk, OpenMode};
use crate::{Error, Result};

/// Opens the B-tree at `path`, or makes an empty one if there is no such file.
///
/// A caller who knows that the file must exist checks that first: a database whose B-tree is
/// missing is damaged, not new.
///
/// # Errors
/// [`Error::NotADatabase`], [`Error::Corrupt`] with the place, [`Error::InUse`], or
/// [`Error::Io`].
pub fn open_redb(disk: &dyn Disk, path: &Path, database_id: u128, cache_bytes: u64) -> Result<Database> {
    open_redb_and_file(disk, path, database_id, cache_bytes).map(|(database, _)| database)
}

/// Like [`open_redb`], and gives the file too, which knows more about errors than redb tells;
/// see [`TreeFile::map_error`].
///
/// # Errors
/// Like [`open_redb`].
pub fn open_redb_and_file(
    disk: &dyn Disk,
    path: &Path,
    database_id: u128,
    cache_bytes: u64,
) -> Result<(Database, TreeFile)> {
    let opening = |error| Error::io(format!("opening {}", path.display()), error);
    if disk.exists(path).map_err(opening)? {
        let file = disk.open(path, OpenMode::ReadWrite).map_err(opening)?;
        let file = TreeFile::open(file, path, database_id)?;
        let database = start_redb(&file, cache_bytes)?;
        return Ok((database, file));
    }
    create(disk, path, database_id, cache_bytes)
}

/// Makes a new file under another name first: redb needs several syncs before a crash leaves
/// something it can open, and the name appears only after them.
fn create(disk: &dyn Disk, path: &Path, database_id: u128, cache_bytes: u64) -> Result<(Database, TreeFile)> {
    let creating = |error| Error::io(format!("creating {}", path.display()), error);
    let unfinished = unfinished_path(path);
    if disk.exists(&unfinished).map_err(creating)? {
        disk.remove(&unfinished).map_err(creating)?;
    }
    let file = disk.open(&unfinished, OpenMode::CreateNew).map_err(creating)?;
    let file = TreeFile::create(file, path, database_id)?;
    let database = start_redb(&file, cache_bytes)?;
    disk.rename(&unfinished, path).map_err(creating)?;
    // Without this a power cut can take the name, and the whole tree with it.
    disk.sync_directory(path.parent().unwrap_or(Path::new("."))).map_err(creating)?;
    Ok((database, file))
}

fn unfinished_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    PathBuf::from(name)
}

fn start_redb(file: &TreeFile, cache_bytes: u64) -> Result<Database> {
    // redb asserts what our checksums do not cover, such as that no page it has allocated lies behind
    // the end of a file that was cut. Nothing but `file`, which goes, sees what it left half done.
    let start = || {
        Builder::new()
            .set_cache_size(usize::try_from(cache_bytes).unwrap_or(usize::MAX))
            .create_with_backend(file.clone())
    };
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(start)) {
        Ok(started) => started.map_err(|error| file.map_error("opening", error)),
        Err(_) => Err(Error::corrupt(
            file.path(),
            None,
            "redb cannot make sense of the file, although every block matches its checksum: was it cut?",
        )),
    }
}

/// What an error of redb on the file at `path` means to our callers; `doing` is a verb for the
/// message: "reading", "checkpointing".
///
/// Takes any of redb's errors. [`TreeFile::map_error`] says more where the file is at hand.
pub fn map_redb_error(path: &Path, doing: &str, error: impl Into<redb::Error>) -> Error {
    let doing = || format!("{doing} {}", path.display());
    match error.into() {
        redb::Error::Io(error) => match damage_in(&error) {
            Some(damage) => Error::Corrupt(damage.clone()),
            None => Error::Io { doing: doing(), source: Arc::new(error) },
        },
        redb::Error::Corrupted(what) => Error::corrupt(path, None, format!("redb: {what}")),
        redb::Error::DatabaseAlreadyOpen => Error::InUse(path.to_owned()),
        redb::Error::UpgradeRequired(version) => Error::NotADatabase {
            path: path.to_owned(),
            what: format!("its B-tree has redb's file format {version}, which is no longer supported"),
        },
        error @ redb::Error::PreviousIo => Error::Poisoned(format!("{}: {error}", doing()).into()),
        error @ (redb::Error::ValueTooLarge(_) | redb::Error::DatabaseClosed) => {
            Error::InvalidRequest(format!("{}: {error}", doing()))
        }
        // A table that is missing or has other types: the engine makes its tables before it
        // opens them, so the file does not hold what it should.
        error => Error::corrupt(path, None, format!("{}: {error}", doing())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn errors_are_sorted_by_what_the_caller_can_do() {
        let path = Path::new("x/tree.redb");
        let map = |error: redb::Error| map_redb_error(path, "reading", error);
        assert!(matches!(map(redb::StorageError::PreviousIo.into()), Error::Poisoned(_)));
        assert!(matches!(map(redb::DatabaseError::DatabaseAlreadyOpen.into()), Error::InUse(_)));
        assert!(matches!(map(redb::DatabaseError::UpgradeRequired(1).into()), Error::NotADatabase { .. }));
        assert!(matches!(map(redb::StorageError::Corrupted("x".into()).into()), Error::Corrupt(_)));
        let io = map(redb::StorageError::Io(io::Error::other("unplugged")).into());
        assert_eq!(io.to_string(), "reading x/tree.redb: unplugged");
    }
}
