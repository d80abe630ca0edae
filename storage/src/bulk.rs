//! Making a whole database directory from sorted entries: what backup and repair end in.
//!
//! The directory becomes a database only when [`BulkBuilder::finish`] writes its manifest; until
//! then a crash leaves something that the next opener starts over.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::TableDefinition;

use crate::directory::Directory;
use crate::disk::Disk;
use crate::evaluate::Versioned;
use crate::meta::{CHECKPOINT_ROW, Checkpoint, META_TABLE, table_name};
use crate::tree_file::{map_redb_error, open_redb};
use crate::wal::{Wal, WalOptions};
use crate::{IVec, Result, TreeId};

/// Keys and bytes of one redb transaction.
const TRANSACTION_KEYS: usize = 64 << 10;
const TRANSACTION_BYTES: usize = 32 << 20;

/// See the [module](self).
pub(crate) struct BulkBuilder {
    directory: Directory,
    path: PathBuf,
    database: redb::Database,
    segment_size: u64,
    pending: Vec<(TreeId, IVec, Versioned)>,
    pending_bytes: usize,
}

impl BulkBuilder {
    /// Begins a new database in `target`, which must not hold one.
    pub(crate) fn new(
        disk: &Arc<dyn Disk>,
        target: &Path,
        database_id: u128,
        segment_size: u64,
    ) -> Result<BulkBuilder> {
        let directory = Directory::open(Arc::clone(disk), target, true, || database_id)?;
        let path = directory.tree_path();
        let database = open_redb(&*directory.disk, &path, directory.database_id, 32 << 20)?;
        Ok(BulkBuilder { directory, path, database, segment_size, pending: Vec::new(), pending_bytes: 0 })
    }

    /// Adds an entry. In order of tree and key it is fastest and the file smallest.
    pub(crate) fn add(&mut self, tree: TreeId, key: IVec, value: Versioned) -> Result<()> {
        self.pending_bytes += key.len() + value.value.len();
        self.pending.push((tree, key, value));
        if self.pending.len() >= TRANSACTION_KEYS || self.pending_bytes >= TRANSACTION_BYTES {
            self.write(None)?;
        }
        Ok(())
    }

    /// Makes it a database with this checkpoint record; durable on return.
    pub(crate) fn finish(self, checkpoint: &Checkpoint) -> Result<()> {
        let segment_size = self.segment_size;
        let directory = self.finish_tree(checkpoint)?;
        let wal = Wal::open(
            Arc::clone(&directory.disk),
            WalOptions {
                segment_size,
                threads: false,
                ..WalOptions::new(directory.wal_path(), directory.database_id)
            },
        )?;
        wal.close()?;
        drop(wal);
        directory.finish_creation()
    }

    /// Completes the B-tree's file with this checkpoint record and closes it. It is durable on return;
    /// the directory is no database yet.
    pub(crate) fn finish_tree(mut self, checkpoint: &Checkpoint) -> Result<Directory> {
        self.write(Some(checkpoint))?;
        drop(self.database);
        Ok(self.directory)
    }

    fn write(&mut self, checkpoint: Option<&Checkpoint>) -> Result<()> {
        let path = &self.path;
        let failed = |error: redb::Error| map_redb_error(path, "writing", error);
        let mut transaction = self.database.begin_write().map_err(|error| failed(error.into()))?;
        transaction.set_quick_repair(true);
        let mut stored = Vec::new();
        for entries in self.pending.chunk_by(|one, next| one.0 == next.0) {
            let name = table_name(entries[0].0);
            let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(&name);
            let mut table = transaction.open_table(definition).map_err(|error| failed(error.into()))?;
            for (_, key, found) in entries {
                stored.clear();
                stored.extend_from_slice(&found.version.to_le_bytes());
                stored.extend_from_slice(&found.value);
                table.insert(&key[..], &stored[..]).map_err(|error| failed(error.into()))?;
            }
        }
        if let Some(checkpoint) = checkpoint {
            let mut meta = transaction.open_table(META_TABLE).map_err(|error| failed(error.into()))?;
            let row = checkpoint.encode();
            meta.insert(CHECKPOINT_ROW, &row[..]).map_err(|error| failed(error.into()))?;
        }
        transaction.commit().map_err(|error| failed(error.into()))?;
        self.pending.clear();
        self.pending_bytes = 0;
        Ok(())
    }
}
