//! Looking after a database: statistics, checkpoints, backup, verification.

use std::path::Path;
use std::sync::Arc;

pub use dogsled_storage::{BackupReport, Stats};

use crate::{Db, Error, IVec, Result, Snapshot, Tree};

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
}

impl Tree {
    /// Reads the whole tree and checks that it holds together: every block it touches against its
    /// checksum, the order of the keys, and their number.
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
    /// [`Error::Corruption`] with the place if bytes are damaged, and [`Error::ReportableBug`] if
    /// they are sound but do not belong together.
    pub fn verify_integrity(&self) -> Result<()> {
        let snapshot = Snapshot::new(self.database.engine.snapshot(), Arc::clone(&self.database));
        let wrong =
            |what: String| Error::ReportableBug(format!("tree \"{}\": {what}", self.name().escape_ascii()));
        let mut count = 0;
        let mut previous: Option<IVec> = None;
        for key in snapshot.iter(self).keys() {
            let key = key?;
            if let Some(previous) = previous.filter(|previous| *previous >= key) {
                return Err(wrong(format!(
                    "key \"{}\" comes after key \"{}\"",
                    key.escape_ascii(),
                    previous.escape_ascii()
                )));
            }
            previous = Some(key);
            count += 1;
        }
        let length = snapshot.len(self)?;
        if count != length {
            return Err(wrong(format!("it has {count} keys and counts {length}")));
        }
        Ok(())
    }
}
