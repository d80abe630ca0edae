//! Installing a snapshot of another replica.

use std::path::{Path, PathBuf};

use crate::disk::Disk;
use crate::{Error, Result};

/// Where a snapshot for the replica in `directory` is built.
pub(crate) fn incoming_path(directory: &Path) -> PathBuf {
    let mut path = directory.as_os_str().to_owned();
    path.push(".incoming");
    PathBuf::from(path)
}

/// Empties what was left of a snapshot that was not installed.
pub(crate) fn remove_stale(disk: &dyn Disk, directory: &Path) -> Result<()> {
    let path = incoming_path(directory);
    let failed = |error| Error::io(format!("emptying {}", path.display()), error);
    if !disk.exists(&path).map_err(failed)? {
        return Ok(());
    }
    let lock_path = path.join("LOCK");
    let Some(_lock) = disk.lock(&lock_path).map_err(failed)? else {
        // One is being built.
        return Ok(());
    };
    for name in disk.list(&path).map_err(failed)? {
        if name != "LOCK" {
            disk.remove(&path.join(name)).map_err(failed)?;
        }
    }
    Ok(())
}
