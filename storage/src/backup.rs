//! Backup while writing: a snapshot, written as a database of its own.
//!
//! The target is a directory that opens like any other, as of one commit. Writers go on; what the
//! snapshot needs is kept for it. The copy is made from entries, not pages, so it is as compact as
//! a fresh load, and every block of the source is checked against its checksum on the way.

use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::bulk::BulkBuilder;
use crate::disk::Disk;
use crate::meta::Checkpoint;
use crate::{Engine, Error, Result, TreeId};

/// What a backup holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct BackupReport {
    /// The last commit in it.
    pub sequence: u64,
    /// Trees, the database's own ones that are empty not counted.
    pub trees: u64,
    /// Keys in all of them.
    pub keys: u64,
    /// Bytes of keys and values.
    pub bytes: u64,
}

impl Engine {
    /// Writes everything committed so far to a new database in `target`, while reads and writes go
    /// on. The copy has the id of the original. `progress` is told now and then how many keys of
    /// how many are done.
    ///
    /// # Errors
    /// If `target` holds a database or other files, or cannot be written. A backup that failed is
    /// no database: it does not open, and can be removed.
    pub fn backup_with(&self, target: &Path, mut progress: impl FnMut(u64, u64)) -> Result<BackupReport> {
        let shared = &*self.shared;
        let (snapshot, time_ms, next_id) = {
            let committer = shared.commit.lock();
            (self.snapshot_between(&committer).with_expired(), committer.time_ms, committer.next_id)
        };
        // What follows this backup, by its sequence, must not be numbered anew after a power cut.
        shared.wal.sync()?;
        let state = snapshot.state();
        let disk: &Arc<dyn Disk> = &shared.options.disk;
        let mut builder =
            BulkBuilder::new(disk, target, shared.directory.database_id, shared.options.segment_size)?;
        let mut checkpoint = Checkpoint {
            applied: snapshot.sequence(),
            time_ms,
            next_id,
            catalog: (*state.catalog).clone(),
            lengths: Default::default(),
            // Of a replica too: the copy is a database of its own.
            note: None,
        };
        for id in state.catalog.ids.keys() {
            checkpoint.lengths.insert(*id, snapshot.len(*id)?);
        }
        let total = checkpoint.lengths.values().sum();
        let counts = |(id, length): &(&TreeId, &u64)| !id.is_system() || **length > 0;
        let mut report = BackupReport {
            sequence: snapshot.sequence(),
            trees: checkpoint.lengths.iter().filter(counts).count() as u64,
            keys: 0,
            bytes: 0,
        };
        for id in state.catalog.ids.keys() {
            for entry in snapshot.range(*id, Bound::Unbounded, Bound::Unbounded) {
                let (key, value) = entry?;
                report.keys += 1;
                report.bytes += (key.len() + value.value.len()) as u64;
                builder.add(*id, key, value)?;
                if report.keys.is_multiple_of(4096) {
                    progress(report.keys, total);
                }
            }
        }
        if report.keys != total {
            let what = format!("the trees hold {} keys and say that they hold {total}", report.keys);
            return Err(Error::corrupt("the lengths of the trees", None, what));
        }
        builder.finish(&checkpoint)?;
        progress(report.keys, total);
        Ok(report)
    }

    /// [`Engine::backup_with`] without progress.
    ///
    /// # Errors
    /// As [`Engine::backup_with`].
    pub fn backup(&self, target: &Path) -> Result<BackupReport> {
        self.backup_with(target, |_, _| ())
    }
}
