//! The base: the B-tree as of one redb transaction, held open, with a leaf cache before it.
//!
//! Opening a redb table costs half as much as a read from it, so each tree's table is opened once
//! per base and kept. A base never changes; a checkpoint publishes the next one after each of its
//! slices. Holding one keeps redb from reusing the pages it can see, so only snapshots hold old
//! ones.
//!
//! What the cache does not know is read from redb, and offered to the cache as a whole block of
//! neighbours while the budget lasts. Beyond it only one miss in eight is, so that a workload
//! larger than memory pays for single keys, not for blocks that are evicted unused.

use std::collections::HashMap;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use redb::{ReadOnlyTable, ReadTransaction, ReadableDatabase, TableDefinition, TableError};

use crate::evaluate::Versioned;
use crate::leaf_cache::{Block, BlockBuilder, CacheBudget, Gap, LeafCache, Lookup};
use crate::meta::table_name;
use crate::tree_file::TreeFile;
use crate::{Error, IVec, Result, TreeId};

pub(crate) type Table = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// How many entries, and about how many bytes, before a missed key are taken into its block; the
/// rest follow it.
const ENTRIES_BEFORE: usize = 16;
const BYTES_BEFORE: usize = 2 << 10;

/// The B-tree at one version; see the [module](self).
pub(crate) struct Base {
    file: TreeFile,
    trees: HashMap<TreeId, Arc<BaseTree>>,
    budget: Arc<CacheBudget>,
}

/// One tree of a [`Base`].
pub(crate) struct BaseTree {
    transaction: Arc<ReadTransaction>,
    file: TreeFile,
    id: TreeId,
    table: OnceLock<Option<Table>>,
    pub(crate) cache: Arc<LeafCache>,
    /// Keys as of the last complete checkpoint.
    pub(crate) length: u64,
}

impl Base {
    /// Holds the newest committed state of `database`, which has these trees and lengths. Caches
    /// come from `caches` where it has one; other trees start with nothing known.
    pub(crate) fn hold(
        database: &redb::Database,
        file: &TreeFile,
        lengths: impl Iterator<Item = (TreeId, u64)>,
        mut caches: HashMap<TreeId, Arc<LeafCache>>,
        budget: &Arc<CacheBudget>,
    ) -> Result<Base> {
        let transaction = Arc::new(database.begin_read().map_err(|error| file.map_error("reading", error))?);
        let mut trees = HashMap::new();
        for (id, length) in lengths {
            let cache = match caches.remove(&id) {
                Some(cache) => cache,
                None if length == 0 => Arc::new(LeafCache::new_empty_tree(Arc::clone(budget))),
                None => Arc::new(LeafCache::new(Arc::clone(budget))),
            };
            let tree = BaseTree {
                transaction: Arc::clone(&transaction),
                file: file.clone(),
                id,
                table: OnceLock::new(),
                cache,
                length,
            };
            trees.insert(id, Arc::new(tree));
        }
        Ok(Base { file: file.clone(), trees, budget: Arc::clone(budget) })
    }

    #[inline]
    pub(crate) fn tree(&self, id: TreeId) -> Option<&Arc<BaseTree>> {
        self.trees.get(&id)
    }

    pub(crate) fn trees(&self) -> impl Iterator<Item = (TreeId, &Arc<BaseTree>)> {
        self.trees.iter().map(|(id, tree)| (*id, tree))
    }

    /// Whether a tree holds a key.
    pub(crate) fn contains(&self, id: TreeId, key: &[u8]) -> Result<bool> {
        match self.trees.get(&id) {
            Some(tree) => Ok(tree.get(key)?.is_some()),
            None => Ok(false),
        }
    }

    pub(crate) fn length(&self, id: TreeId) -> u64 {
        self.trees.get(&id).map_or(0, |tree| tree.length)
    }

    pub(crate) fn file(&self) -> &TreeFile {
        &self.file
    }

    pub(crate) fn budget(&self) -> &Arc<CacheBudget> {
        &self.budget
    }
}

impl std::fmt::Debug for Base {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Base").field("trees", &self.trees.len()).finish_non_exhaustive()
    }
}

impl BaseTree {
    /// The table, or `None` if nothing was ever checkpointed into this tree.
    pub(crate) fn table(&self) -> Result<Option<&Table>> {
        if let Some(table) = self.table.get() {
            return Ok(table.as_ref());
        }
        let name = table_name(self.id);
        let table = match self.transaction.open_table(TableDefinition::new(&name)) {
            Ok(table) => Some(table),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(self.file.map_error("reading", error)),
        };
        Ok(self.table.get_or_init(|| table).as_ref())
    }

    /// The value of a key.
    #[inline]
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Versioned>> {
        match self.cache.get(key) {
            Lookup::Found { version, value } => Ok(Some(Versioned { version, value })),
            Lookup::Absent => Ok(None),
            Lookup::Unknown => self.get_uncached(key),
        }
    }

    #[cold]
    fn get_uncached(&self, key: &[u8]) -> Result<Option<Versioned>> {
        let Some(table) = self.table()? else { return Ok(None) };
        if self.cache.budget().should_admit()
            && let Some(gap) = self.cache.gap(key)
        {
            let block = self.load_around(table, key, &gap)?;
            let position = block.seek(key);
            let found = (position < block.len() && block.key(position) == key).then(|| Versioned {
                version: block.version(position),
                value: IVec::from(block.value(position)),
            });
            self.cache.insert(block);
            return Ok(found);
        }
        let Some(found) = table.get(key).map_err(|error| self.file.map_error("reading", error))? else {
            return Ok(None);
        };
        let (version, value) = self.split(found.value())?;
        Ok(Some(Versioned { version, value: IVec::from(value) }))
    }

    /// The block that tells of `key` and what follows it, for scans.
    pub(crate) fn block_at(&self, key: &[u8]) -> Result<Block> {
        loop {
            if let Some(block) = self.cache.block_at(key) {
                return Ok(block);
            }
            // `None`: another reader has just filled the gap.
            let Some(gap) = self.cache.gap(key) else { continue };
            let block = match self.table()? {
                Some(table) => self.load_forward(table, IVec::from(key), gap.high)?,
                None => BlockBuilder::new(IVec::new()).finish(None),
            };
            return Ok(self.offer(block));
        }
    }

    /// The block that tells of the keys just below `key` (`None`: the end of the key space).
    pub(crate) fn block_before(&self, key: Option<&[u8]>) -> Result<Block> {
        if let Some(block) = self.cache.block_before(key) {
            return Ok(block);
        }
        let Some(table) = self.table()? else {
            return Ok(BlockBuilder::new(IVec::new()).finish(None));
        };
        let block = self.load_backward(table, key)?;
        // If it reaches over what another block tells, the cache refuses it and it is used once.
        Ok(self.offer(block))
    }

    fn offer(&self, block: Block) -> Block {
        if self.cache.budget().should_admit() {
            self.cache.insert(block.clone());
        }
        block
    }

    fn load_around(&self, table: &Table, key: &[u8], gap: &Gap) -> Result<Block> {
        let before = table
            .range::<&[u8]>((Bound::Included(&gap.low[..]), Bound::Excluded(key)))
            .map_err(|error| self.file.map_error("reading", error))?;
        let mut entries = Vec::with_capacity(ENTRIES_BEFORE);
        let mut low = gap.low.clone();
        let mut bytes = 0;
        for entry in before.rev() {
            let entry = entry.map_err(|error| self.file.map_error("reading", error))?;
            bytes += entry.0.value().len() + entry.1.value().len();
            let full = entries.len() + 1 >= ENTRIES_BEFORE || bytes >= BYTES_BEFORE;
            if full {
                low = IVec::from(entry.0.value());
            }
            entries.push(entry);
            if full {
                break;
            }
        }
        let mut builder = BlockBuilder::new(low);
        for (key, stored) in entries.iter().rev() {
            let (version, value) = self.split(stored.value())?;
            builder.push_value(key.value(), version, value);
        }
        self.push_forward(table, builder, key, gap.high.clone())
    }

    fn load_forward(&self, table: &Table, low: IVec, high: Option<IVec>) -> Result<Block> {
        self.push_forward(table, BlockBuilder::new(low.clone()), &low, high)
    }

    /// Adds the entries from `from` on until the block is full or `high` is reached.
    fn push_forward(
        &self,
        table: &Table,
        mut builder: BlockBuilder,
        from: &[u8],
        high: Option<IVec>,
    ) -> Result<Block> {
        let end = high.as_ref().map_or(Bound::Unbounded, |high| Bound::Excluded(&high[..]));
        let entries = table
            .range::<&[u8]>((Bound::Included(from), end))
            .map_err(|error| self.file.map_error("reading", error))?;
        for entry in entries {
            let (key, stored) = entry.map_err(|error| self.file.map_error("reading", error))?;
            let key = key.value();
            // The block must tell of `from` itself, even if what is before it has filled it.
            if builder.is_full() && key != from {
                return Ok(builder.finish(Some(IVec::from(key))));
            }
            let (version, value) = self.split(stored.value())?;
            builder.push_value(key, version, value);
        }
        Ok(builder.finish(high))
    }

    fn load_backward(&self, table: &Table, high: Option<&[u8]>) -> Result<Block> {
        let end = high.map_or(Bound::Unbounded, Bound::Excluded);
        let range = table
            .range::<&[u8]>((Bound::Unbounded, end))
            .map_err(|error| self.file.map_error("reading", error))?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        let mut low = IVec::new();
        for entry in range.rev() {
            let entry = entry.map_err(|error| self.file.map_error("reading", error))?;
            bytes += entry.0.value().len() + entry.1.value().len();
            let full = entries.len() >= 47 || bytes >= 6 << 10;
            if full {
                low = IVec::from(entry.0.value());
            }
            entries.push(entry);
            if full {
                break;
            }
        }
        let mut builder = BlockBuilder::new(low);
        for (key, stored) in entries.iter().rev() {
            let (version, value) = self.split(stored.value())?;
            builder.push_value(key.value(), version, value);
        }
        Ok(builder.finish(high.map(IVec::from)))
    }

    /// A stored value's version and bytes.
    fn split<'a>(&self, stored: &'a [u8]) -> Result<(u64, &'a [u8])> {
        match stored.split_first_chunk() {
            Some((version, value)) => Ok((u64::from_le_bytes(*version), value)),
            None => Err(Error::corrupt(
                self.file.path(),
                None,
                format!(
                    "a value of {} bytes in table {} is shorter than its version",
                    stored.len(),
                    table_name(self.id)
                ),
            )),
        }
    }
}
