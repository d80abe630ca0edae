//! Looking after a database: statistics, checkpoints, backup, verification and repair.
//!
//! These are the engine's own, by names of this crate; the `dogsled` command does the same from
//! outside.

use std::path::Path;
use std::sync::Arc;

use dogsled_storage::Damage;
use dogsled_storage::disk::{Disk, RealDisk};
pub use dogsled_storage::{BackupReport, RepairReport, Stats, VerifyReport};

use crate::{Corruption, Db, Error, Result, Tree};

impl Db {
    /// Figures for operators.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// assert_eq!(db.stats()?.keys, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of asking the operating system.
    pub fn stats(&self) -> Result<Stats> {
        Ok(self.database().engine.stats()?)
    }

    /// Folds all that was written so far into the B-tree, which happens by itself from time to
    /// time. Afterwards the write-ahead log is as short as it can be, and opening as fast.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// db.checkpoint()?;
    /// assert_eq!(db.get("key")?.unwrap(), "value");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading and writing. Nothing is lost by them.
    pub fn checkpoint(&self) -> Result<()> {
        Ok(self.database().engine.checkpoint()?)
    }

    /// Writes everything committed so far to a new database in directory `target`, while reads
    /// and writes go on. It opens like any other.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let directory = tempfile::tempdir().unwrap();
    /// # let target = directory.path().join("copy");
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// db.backup(&target)?;
    /// db.insert("key", "another")?;
    /// assert_eq!(dogsled::open(&target)?.get("key")?.unwrap(), "value");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// If `target` holds a database or other files, or cannot be written.
    pub fn backup(&self, target: impl AsRef<Path>) -> Result<BackupReport> {
        Ok(self.database().engine.backup(target.as_ref())?)
    }

    /// As [`Db::backup`]; `progress` is told now and then how many keys of how many are done.
    ///
    /// # Errors
    /// As [`Db::backup`].
    pub fn backup_with(
        &self,
        target: impl AsRef<Path>,
        progress: impl FnMut(u64, u64),
    ) -> Result<BackupReport> {
        Ok(self.database().engine.backup_with(target.as_ref(), progress)?)
    }

    /// Reads everything that is kept, in the B-tree and the write-ahead log, and compares it with
    /// its checksums, while reads and writes go on.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("key", "value")?;
    /// db.checkpoint()?;
    /// let report = db.verify()?;
    /// assert!(report.is_sound(), "{:?}", report.damage);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// If the directory cannot be read. Damage is no error but in the report.
    pub fn verify(&self) -> Result<VerifyReport> {
        Ok(self.database().engine.verify()?)
    }
}

/// As [`Db::verify`], of a database that is not open, and need not be fit to be opened.
///
/// # Errors
/// If the directory cannot be read, is in use, or holds no database.
pub fn verify(directory: impl AsRef<Path>) -> Result<VerifyReport> {
    Ok(dogsled_storage::verify_directory(&RealDisk, directory.as_ref())?)
}

/// Saves what is sound of a damaged database into a new one, and says what was lost. The damaged
/// one is only read.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let directory = tempfile::tempdir().unwrap();
/// # let (damaged, target) = (directory.path().join("damaged"), directory.path().join("saved"));
/// # dogsled::open(&damaged)?.insert("key", "value")?;
/// let report = dogsled::repair(&damaged, &target)?;
/// for loss in &report.losses {
///     println!("{loss:?}");
/// }
/// assert_eq!(dogsled::open(&target)?.get("key")?.unwrap(), "value");
/// # Ok(()) }
/// ```
///
/// # Errors
/// If nothing can be read, or `target` cannot be written or holds something.
pub fn repair(directory: impl AsRef<Path>, target: impl AsRef<Path>) -> Result<RepairReport> {
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    Ok(dogsled_storage::repair(&disk, directory.as_ref(), target.as_ref(), &mut |_| {})?)
}

impl Tree {
    /// Reads the whole database as [`Db::verify`] does, and reports damage as an error. For more
    /// than the first damage, use that.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("key", "value")?;
    /// tree.verify_integrity()?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Corruption`] with the place, [`Error::CollectionNotFound`] if the tree was dropped,
    /// and those of reading.
    pub fn verify_integrity(&self) -> Result<()> {
        let engine = &self.database.engine;
        engine.len(self.id).map_err(|error| self.explain(error))?;
        match engine.verify()?.damage.into_iter().next() {
            None => Ok(()),
            Some(Damage { file, offset, what, .. }) => {
                Err(Error::Corruption { at: Some(Corruption { file, offset, what }), bt: () })
            }
        }
    }
}
