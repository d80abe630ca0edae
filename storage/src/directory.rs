//! The database directory: who holds it, what it is, and how one is made without halves.
//!
//! ```text
//! LOCK        held by the process that has the directory open
//! MANIFEST    what the directory is: 64 bytes, below
//! tree.redb   the B-tree, as of the last checkpoint
//! wal/        the write-ahead log
//! CREATING    only while the directory is being made: the 16 bytes `dogsled\0creating`
//! ```
//!
//! `MANIFEST`, all numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `dogsled\0` |
//! | 8 | 4 | format version, 1 |
//! | 12 | 4 | zero |
//! | 16 | 16 | database id, drawn at random when the directory is made |
//! | 32 | 28 | zero |
//! | 60 | 4 | CRC-32 of the 60 bytes before |
//!
//! Making a directory: `CREATING` first, then the B-tree and the WAL, then `MANIFEST` (written
//! aside and renamed), then `CREATING` goes; names are synced between. A crash before `MANIFEST`
//! leaves a directory that held nothing yet, and the next open starts over. A directory without
//! both `MANIFEST` and `CREATING` that holds our files has lost its `MANIFEST`, and is refused.
//!
//! # Other programs' directories
//!
//! Names prove nothing: etcd has a folder `wal`, too. A directory is ours if one of these files has
//! what only we write: the magic of `MANIFEST`, `CREATING`, `tree.redb` or a segment of the WAL. Any
//! other that is not empty is refused before so much as a lock file is put into it, and what starting
//! over removes bears our names and our magic.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{BLOCK_SIZE, Disk, DiskLock, OpenMode};
use crate::tree_file::{self, layout::REDB_MAGIC};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"dogsled\0";
/// The newest directory format that this version reads and the one it writes.
pub const FORMAT_VERSION: u32 = 1;
const MANIFEST_LENGTH: usize = 64;

const LOCK: &str = "LOCK";
const MANIFEST: &str = "MANIFEST";
const MANIFEST_ASIDE: &str = "MANIFEST.new";
const CREATING: &str = "CREATING";
const CREATING_MAGIC: &[u8; 16] = b"dogsled\0creating";
const TREE: &str = "tree.redb";
const WAL: &str = "wal";
/// In the directory of a node, by the crate `dogsled-replication`.
const NODE: &str = "node";

/// An opened, locked directory.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) path: PathBuf,
    pub(crate) database_id: u128,
    /// Whether there was a database before.
    pub(crate) existed: bool,
    pub(crate) disk: Arc<dyn Disk>,
    _lock: Box<dyn DiskLock>,
}

impl Directory {
    /// Locks and identifies `path`. A new directory is only begun: [`Directory::finish_creation`]
    /// makes it one.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        path: &Path,
        create_new: bool,
        new_id: impl FnOnce() -> u128,
    ) -> Result<Directory> {
        refuse_plain_file(&*disk, path)?;
        let refuse_database = || match create_new && exists(&*disk, &path.join(MANIFEST))? {
            true => Err(Error::io(
                format!("creating {}", path.display()),
                io::Error::new(io::ErrorKind::AlreadyExists, "there is a database already"),
            )),
            false => Ok(()),
        };
        refuse_database()?;
        let had_place = exists(&*disk, path)?;
        if had_place {
            refuse_foreign(&*disk, path)?;
        } else {
            disk.create_directories(path)
                .map_err(|error| Error::io(format!("creating {}", path.display()), error))?;
        }
        let lock_path = path.join(LOCK);
        let lock = disk
            .lock(&lock_path)
            .map_err(|error| Error::io(format!("locking {}", lock_path.display()), error))?
            .ok_or_else(|| Error::InUse(path.to_owned()))?;
        // Somebody else may have made one, and closed it, since that was looked at.
        refuse_database()?;
        if exists(&*disk, &path.join(MANIFEST))? {
            let database_id = read_manifest(&*disk, path)?;
            if exists(&*disk, &path.join(CREATING))? {
                // Whoever made it may have been killed before the manifest's name was durable.
                // Without `CREATING` it is; with both, losing the name later would start over.
                disk.sync_directory(path)
                    .map_err(|error| Error::io(format!("syncing {}", path.display()), error))?;
                remove(&*disk, &path.join(CREATING))?;
            }
            let directory =
                Directory { path: path.to_owned(), database_id, existed: true, disk, _lock: lock };
            if !exists(&*directory.disk, &directory.tree_path())? {
                return Err(Error::corrupt(
                    directory.tree_path(),
                    None,
                    "the B-tree's file is missing; put it back if you can",
                ));
            }
            return Ok(directory);
        }
        if had_place {
            sync_name(&*disk, path)?;
        }
        begin_creation(&*disk, path)?;
        Ok(Directory { path: path.to_owned(), database_id: new_id(), existed: false, disk, _lock: lock })
    }

    /// Refuses the directory of a node. [`Directory::open`] does so, too; but whoever had the lock
    /// before may have made a node of an embedded database.
    pub(crate) fn refuse_node(&self) -> Result<()> {
        match exists(&*self.disk, &self.path.join(NODE))? {
            true => Err(node_directory(&self.path)),
            false => Ok(()),
        }
    }

    pub(crate) fn tree_path(&self) -> PathBuf {
        tree_path(&self.path)
    }

    pub(crate) fn wal_path(&self) -> PathBuf {
        wal_path(&self.path)
    }

    /// Makes a begun directory a database; everything in it must be durable.
    pub(crate) fn finish_creation(&self) -> Result<()> {
        if self.existed {
            return Ok(());
        }
        write_manifest(&*self.disk, &self.path, self.database_id)?;
        remove(&*self.disk, &self.path.join(CREATING))
    }
}

/// Makes the name of a directory durable that was there before a database is made in it: whoever made it may not have
/// done so, and without the name all that will be acknowledged in it is lost with the power.
fn sync_name(disk: &dyn Disk, directory: &Path) -> Result<()> {
    let parent = match directory.parent() {
        // The root has no name.
        None => return Ok(()),
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
    };
    match disk.sync_directory(parent) {
        // Whoever may not open it has not made the directory, but was given it.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced.map_err(|error| Error::io(format!("syncing {}", parent.display()), error)),
    }
}

/// Where the B-tree of the database in `directory` is.
pub(crate) fn tree_path(directory: &Path) -> PathBuf {
    directory.join(TREE)
}

/// Where the WAL of the database in `directory` is.
pub(crate) fn wal_path(directory: &Path) -> PathBuf {
    directory.join(WAL)
}

/// Reads and checks the manifest; the database id.
pub(crate) fn read_manifest(disk: &dyn Disk, directory: &Path) -> Result<u128> {
    let path = directory.join(MANIFEST);
    let doing = || format!("reading {}", path.display());
    let file = disk.open(&path, OpenMode::Read).map_err(|error| Error::io(doing(), error))?;
    let length = file.length().map_err(|error| Error::io(doing(), error))?;
    if length != MANIFEST_LENGTH as u64 {
        return Err(Error::corrupt(&path, 0, format!("{length} bytes long instead of {MANIFEST_LENGTH}")));
    }
    let mut bytes = [0; MANIFEST_LENGTH];
    file.read_at(0, &mut bytes).map_err(|error| Error::io(doing(), error))?;
    let crc = u32::from_le_bytes(bytes[60..].try_into().expect("four bytes"));
    if crc32fast::hash(&bytes[..60]) != crc {
        return Err(Error::corrupt(&path, 0, "the checksum of the manifest does not match its bytes"));
    }
    if &bytes[..8] != MAGIC {
        return Err(Error::NotADatabase {
            path: directory.to_owned(),
            what: "MANIFEST does not start with dogsled's magic; this is not a dogsled database".to_owned(),
        });
    }
    let version = u32::from_le_bytes(bytes[8..12].try_into().expect("four bytes"));
    if version != FORMAT_VERSION {
        return Err(Error::NotADatabase {
            path: directory.to_owned(),
            what: format!(
                "the database has format {version} and this program reads format {FORMAT_VERSION}; \
                 use a newer dogsled"
            ),
        });
    }
    Ok(u128::from_le_bytes(bytes[16..32].try_into().expect("sixteen bytes")))
}

fn write_manifest(disk: &dyn Disk, directory: &Path, database_id: u128) -> Result<()> {
    let mut bytes = [0; MANIFEST_LENGTH];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&database_id.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..60]);
    bytes[60..].copy_from_slice(&crc.to_le_bytes());
    let aside = directory.join(MANIFEST_ASIDE);
    let write = || -> io::Result<()> {
        let file = disk.open(&aside, OpenMode::Create)?;
        file.set_length(0)?;
        file.write_at(0, &bytes)?;
        file.sync()?;
        // The B-tree's and the WAL's names, before the name that says they are complete.
        disk.sync_directory(directory)?;
        disk.rename(&aside, &directory.join(MANIFEST))?;
        disk.sync_directory(directory)
    };
    write().map_err(|error| Error::io(format!("writing the manifest of {}", directory.display()), error))
}

fn begin_creation(disk: &dyn Disk, directory: &Path) -> Result<()> {
    let (tree, wal) = (directory.join(TREE), directory.join(WAL));
    match find_marker(disk, directory)? {
        Marker::Ours => start_over(disk, directory),
        Marker::Foreign => Err(foreign(directory, "CREATING was not made by dogsled")),
        Marker::Missing | Marker::Unwritten => {
            for path in [tree, wal] {
                if exists(disk, &path)? {
                    return Err(Error::corrupt(
                        directory.join(MANIFEST),
                        None,
                        format!(
                            "MANIFEST is missing but {} is there; put it back if you can",
                            path.display()
                        ),
                    ));
                }
            }
            let marker = directory.join(CREATING);
            let make = || -> io::Result<()> {
                let file = disk.open(&marker, OpenMode::Create)?;
                file.write_at(0, CREATING_MAGIC)?;
                // What it says before its name, and its name before any other.
                file.sync()?;
                disk.sync_directory(directory)
            };
            make().map_err(|error| Error::io(format!("writing {}", marker.display()), error))
        }
    }
}

/// After a crash while it was being made: nothing was ever acknowledged from it.
fn start_over(disk: &dyn Disk, directory: &Path) -> Result<()> {
    let mut gone = Vec::new();
    let tree = directory.join(TREE);
    if exists(disk, &tree)? {
        if begins_with(disk, &tree, &REDB_MAGIC)? {
            return Err(foreign(directory, "tree.redb is a plain redb file"));
        }
        gone.push(tree);
    }
    let wal = directory.join(WAL);
    if exists(disk, &wal)? {
        for (path, is_ours) in crate::wal::files(disk, &wal)? {
            if !is_ours {
                return Err(foreign(&path, "this is not a segment of dogsled's log"));
            }
            gone.push(path);
        }
    }
    gone.iter().try_for_each(|path| remove(disk, path))
}

/// What `CREATING` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    Missing,
    /// Ours, or anybody's: not all of it was written, and nothing else was made yet.
    Unwritten,
    Ours,
    Foreign,
}

fn find_marker(disk: &dyn Disk, directory: &Path) -> Result<Marker> {
    let path = directory.join(CREATING);
    if !exists(disk, &path)? {
        return Ok(Marker::Missing);
    }
    let Some(bytes) = read_start(disk, &path, CREATING_MAGIC.len() + 1)? else { return Ok(Marker::Foreign) };
    let is_part = bytes.iter().zip(CREATING_MAGIC).all(|(found, ours)| *found == 0 || found == ours);
    Ok(match bytes.len() {
        _ if bytes == CREATING_MAGIC => Marker::Ours,
        0..=16 if is_part => Marker::Unwritten,
        _ => Marker::Foreign,
    })
}

/// Whether a directory is a database of ours, damaged or not: something in it was made by us. Changes
/// nothing, so that it can be asked before a lock is taken.
///
/// # Errors
/// [`Error::Io`].
pub fn is_own_directory(disk: &dyn Disk, directory: &Path) -> Result<bool> {
    let manifest = read_start(disk, &directory.join(MANIFEST), MANIFEST_LENGTH)?;
    if manifest.is_some_and(|bytes| is_manifest(&bytes)) || find_marker(disk, directory)? == Marker::Ours {
        return Ok(true);
    }
    let tree = read_start(disk, &directory.join(TREE), 3 * BLOCK_SIZE)?;
    if tree.is_some_and(|bytes| tree_file::is_ours(&bytes)) {
        return Ok(true);
    }
    let wal = directory.join(WAL);
    Ok(is_directory(disk, &wal)?
        && crate::wal::files(disk, &wal)?
            .iter()
            .any(|(path, is_ours)| *is_ours && path.extension().is_some_and(|extension| extension == "wal")))
}

/// Ours, although perhaps not sound: in the magic at most one byte is wrong, or the checksum is right.
fn is_manifest(bytes: &[u8]) -> bool {
    let wrong = bytes.iter().zip(MAGIC).filter(|(found, ours)| found != ours).count();
    let crc = bytes.get(60..64).map(|crc| u32::from_le_bytes(crc.try_into().expect("four bytes")));
    (bytes.len() >= MAGIC.len() && wrong <= 1) || crc.is_some_and(|crc| crc32fast::hash(&bytes[..60]) == crc)
}

/// The first bytes of a file, fewer if it is shorter; `None` if there is no such file.
fn read_start(disk: &dyn Disk, path: &Path, length: usize) -> Result<Option<Vec<u8>>> {
    if !exists(disk, path)? || is_directory(disk, path)? {
        return Ok(None);
    }
    let read = || -> io::Result<Vec<u8>> {
        let file = disk.open(path, OpenMode::Read)?;
        let mut bytes = vec![0; length.min(usize::try_from(file.length()?).unwrap_or(usize::MAX))];
        file.read_at(0, &mut bytes)?;
        Ok(bytes)
    };
    read().map(Some).map_err(|error| Error::io(format!("reading {}", path.display()), error))
}

fn begins_with(disk: &dyn Disk, path: &Path, magic: &[u8]) -> Result<bool> {
    Ok(read_start(disk, path, magic.len())?.is_some_and(|bytes| bytes == magic))
}

fn is_directory(disk: &dyn Disk, path: &Path) -> Result<bool> {
    match disk.list(path) {
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(false)
        }
        Err(error) => Err(Error::io(format!("listing {}", path.display()), error)),
    }
}

fn foreign(path: &Path, what: &str) -> Error {
    let what = format!("{what}; give dogsled a directory of its own");
    Error::NotADatabase { path: path.to_owned(), what }
}

fn remove(disk: &dyn Disk, path: &Path) -> Result<()> {
    disk.remove(path).map_err(|error| Error::io(format!("removing {}", path.display()), error))
}

fn exists(disk: &dyn Disk, path: &Path) -> Result<bool> {
    disk.exists(path).map_err(|error| Error::io(format!("looking for {}", path.display()), error))
}

fn refuse_plain_file(disk: &dyn Disk, path: &Path) -> Result<()> {
    if !exists(disk, path)? || disk.list(path).is_ok() {
        return Ok(());
    }
    let mut start = [0; 4];
    let redb = disk.open(path, OpenMode::Read).and_then(|file| file.read_at(0, &mut start)).is_ok()
        && &start == b"redb";
    let what = if redb {
        "this is a redb file, not a dogsled directory; open it with redb and import its contents"
    } else {
        "this is a file, not a directory"
    };
    Err(Error::NotADatabase { path: path.to_owned(), what: what.to_owned() })
}

/// Refuses a node's directory, before what belongs to it is taken for damage.
pub(crate) fn refuse_node_at(disk: &dyn Disk, path: &Path) -> Result<()> {
    if exists(disk, &path.join(NODE))? { Err(node_directory(path)) } else { Ok(()) }
}

fn node_directory(path: &Path) -> Error {
    let what = "this is the directory of a node, not an embedded database; start it with `dogsled serve`";
    Error::NotADatabase { path: path.to_owned(), what: what.to_owned() }
}

/// Refuses a directory that is somebody else's, before a lock file is put into it.
fn refuse_foreign(disk: &dyn Disk, path: &Path) -> Result<()> {
    let names = disk.list(path).map_err(|error| Error::io(format!("listing {}", path.display()), error))?;
    let has = |name: &str| names.iter().any(|found| found == name);
    let refuse = |what: &str| Err(Error::NotADatabase { path: path.to_owned(), what: what.to_owned() });
    if has(NODE) {
        return Err(node_directory(path));
    }
    if is_own_directory(disk, path)? {
        return Ok(());
    }
    if has("conf") && (has("db") || names.iter().any(|name| name.starts_with("snap."))) {
        return refuse(
            "this is a sled database; export it with sled and `Db::import` it here \
             (see the example migrate_from_sled)",
        );
    }
    for name in &names {
        if name.ends_with(".redb") && begins_with(disk, &path.join(name), b"redb")? {
            return refuse("this directory holds a redb database; give dogsled a directory of its own");
        }
    }
    // A lock file alone is left by an opening of ours that came no further, one that had only begun to
    // write `CREATING` beside it; RocksDB and LevelDB have a lock file of that name among others.
    let unwritten = has(CREATING) && find_marker(disk, path)? == Marker::Unwritten;
    if names.iter().any(|name| name != LOCK && (name != CREATING || !unwritten)) {
        return refuse(
            "the directory holds other files and no dogsled database; give dogsled a directory of its own",
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::{Operation, SimulatedDisk};

    #[test]
    fn a_database_that_is_made_in_a_directory_that_was_there_has_its_name_synced_once() {
        let synced = |place_is_there: bool| {
            let disk = SimulatedDisk::new(1);
            let path = Path::new("data/db");
            if place_is_there {
                disk.create_directories(path).expect("a sound disk");
            }
            let open = || Directory::open(Arc::new(disk.clone()), path, false, || 7).expect("a sound disk");
            let directory = open();
            directory.finish_creation().expect("a sound disk");
            drop(directory);
            let made = disk.count(Operation::SyncDirectory);
            // Not once more when it is opened again: there is a database, so its name was durable before.
            disk.set_content(&tree_path(path), Vec::new());
            drop(open());
            assert_eq!(disk.count(Operation::SyncDirectory), made);
            made
        };
        // Making the directory has made its name durable.
        assert_eq!(synced(true), synced(false) + 1);
    }
}
