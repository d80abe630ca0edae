//! The database directory: who holds it, what it is, and how one is made without halves.
//!
//! ```text
//! LOCK        held by the process that has the directory open
//! MANIFEST    what the directory is: 64 bytes, below
//! tree.redb   the B-tree, as of the last checkpoint
//! wal/        the write-ahead log
//! CREATING    only while the directory is being made
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

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, DiskLock, OpenMode};
use crate::{Error, Result};

const MAGIC: &[u8; 8] = b"dogsled\0";
/// The newest directory format that this version reads and the one it writes.
pub const FORMAT_VERSION: u32 = 1;
const MANIFEST_LENGTH: usize = 64;

const LOCK: &str = "LOCK";
const MANIFEST: &str = "MANIFEST";
const MANIFEST_ASIDE: &str = "MANIFEST.new";
const CREATING: &str = "CREATING";
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
        if create_new && exists(&*disk, &path.join(MANIFEST))? {
            return Err(Error::io(
                format!("creating {}", path.display()),
                io::Error::new(io::ErrorKind::AlreadyExists, "there is a database already"),
            ));
        }
        if exists(&*disk, path)? {
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
                    "the B-tree's file is missing; put it back, or use `dogsled repair` to save what the WAL holds",
                ));
            }
            return Ok(directory);
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
    let marker = directory.join(CREATING);
    let ours = [directory.join(TREE), directory.join(WAL)];
    if !exists(disk, &marker)? {
        for path in &ours {
            if exists(disk, path)? {
                return Err(Error::corrupt(
                    directory.join(MANIFEST),
                    None,
                    format!(
                        "MANIFEST is missing but {} is there; put it back, or use `dogsled repair`",
                        path.display()
                    ),
                ));
            }
        }
        let make = || -> io::Result<()> {
            disk.open(&marker, OpenMode::Create)?.sync()?;
            disk.sync_directory(directory)
        };
        return make().map_err(|error| Error::io(format!("writing {}", marker.display()), error));
    }
    // A crash while it was being made: nothing was ever acknowledged from it.
    if exists(disk, &ours[0])? {
        remove(disk, &ours[0])?;
    }
    if exists(disk, &ours[1])? {
        for name in disk.list(&ours[1]).map_err(|error| Error::io("listing the unfinished WAL", error))? {
            remove(disk, &ours[1].join(name))?;
        }
    }
    Ok(())
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
    if has(MANIFEST) || has(CREATING) {
        return Ok(());
    }
    if has("conf") && (has("db") || names.iter().any(|name| name.starts_with("snap."))) {
        return refuse(
            "this is a sled database; export it with sled and `Db::import` it here \
             (see the example migrate_from_sled)",
        );
    }
    for name in &names {
        let mut start = [0; 4];
        let file = path.join(name);
        if name.ends_with(".redb")
            && name != TREE
            && disk.open(&file, OpenMode::Read).and_then(|file| file.read_at(0, &mut start)).is_ok()
            && &start == b"redb"
        {
            return refuse("this directory holds a redb database; give dogsled a directory of its own");
        }
    }
    // A lock file alone is left by an opening of ours that came no further; RocksDB and LevelDB
    // have one of that name among others.
    if names.iter().any(|name| name != LOCK) && !has(TREE) && !has(WAL) {
        return refuse(
            "the directory holds other files and no dogsled database; give dogsled a directory of its own",
        );
    }
    Ok(())
}
