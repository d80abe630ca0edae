//! [`Stats`]: what a database holds and does.

use serde::Serialize;

use crate::disk::OpenMode;
use crate::engine::Shared;
use crate::{Engine, Error, Result};

/// Figures of an open database, all as of about now. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Stats {
    /// Trees, the database's own ones that are empty not counted.
    pub trees: u64,
    /// Keys in all of these.
    pub keys: u64,
    /// The newest commit.
    pub sequence: u64,
    /// The commit up to which the B-tree on disk is complete.
    pub checkpointed_sequence: u64,
    /// Checkpoints since opening.
    pub checkpoints: u64,
    /// How often a writer had to wait for a checkpoint.
    pub write_stalls: u64,
    /// Memory of the writes that are not in the B-tree yet.
    pub overlay_bytes: u64,
    /// Memory of the leaf cache.
    pub leaf_cache_bytes: u64,
    /// What redb's cache may use.
    pub redb_cache_bytes: u64,
    /// What all three together may use.
    pub cache_capacity: u64,
    /// The B-tree's file.
    pub tree_file_bytes: u64,
    /// The WAL's segments, spare ones included.
    pub wal_file_bytes: u64,
    /// Snapshots and scans that are open.
    pub open_snapshots: u64,
    /// The commit that the oldest of them sees.
    pub oldest_snapshot: Option<u64>,
}

impl Engine {
    /// Figures for operators and tests.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be listed.
    pub fn stats(&self) -> Result<Stats> {
        let shared = &*self.shared;
        let sequence = self.sequence();
        let (open_snapshots, oldest_snapshot) = shared.readers.summary();
        let snapshot = self.snapshot();
        let state = snapshot.state();
        let frozen = state.frozen.as_ref();
        let mut trees = Vec::new();
        for id in state.catalog.ids.keys() {
            let length = snapshot.len(*id)?;
            if !id.is_system() || length > 0 {
                trees.push((*id, length));
            }
        }
        let (tree_file_bytes, wal_file_bytes) = file_sizes(shared)?;
        Ok(Stats {
            trees: trees.len() as u64,
            keys: trees.iter().map(|(_, length)| length).sum(),
            sequence,
            checkpointed_sequence: shared.checkpointed(),
            checkpoints: shared.checkpoints.load(std::sync::atomic::Ordering::Relaxed),
            write_stalls: shared.stalls.load(std::sync::atomic::Ordering::Relaxed) as u64,
            overlay_bytes: (state.active.bytes() + frozen.map_or(0, |frozen| frozen.bytes())) as u64,
            leaf_cache_bytes: state.base.budget().used() as u64,
            redb_cache_bytes: shared.redb_cache as u64,
            cache_capacity: shared.options.cache_capacity,
            tree_file_bytes,
            wal_file_bytes,
            open_snapshots: open_snapshots as u64,
            oldest_snapshot,
        })
    }
}

/// Bytes of all files of the directory that grow.
pub(crate) fn size_on_disk(shared: &Shared) -> Result<u64> {
    let (tree, wal) = file_sizes(shared)?;
    Ok(tree + wal)
}

fn file_sizes(shared: &Shared) -> Result<(u64, u64)> {
    let disk = &shared.directory.disk;
    let length = |path: &std::path::Path| {
        disk.open(path, OpenMode::Read)
            .and_then(|file| file.length())
            .map_err(|error| Error::io(format!("measuring {}", path.display()), error))
    };
    let tree = length(&shared.directory.tree_path())?;
    if shared.replica.is_some() {
        // Its node's WAL is not in its directory, and not its alone.
        return Ok((tree, 0));
    }
    let directory = shared.directory.wal_path();
    let names = disk
        .list(&directory)
        .map_err(|error| Error::io(format!("listing {}", directory.display()), error))?;
    let mut wal = 0;
    for name in names {
        // A segment may be recycled between the listing and the look.
        wal += length(&directory.join(name)).unwrap_or(0);
    }
    Ok((tree, wal))
}
