//! RocksDB: the log-structured merge tree to measure oneself against.
//!
//! Options follow its tuning guide: ten-bit bloom filters, index and filter blocks in the block cache, blocks with
//! a hash index, dynamic level sizes, compaction by least overlap, background jobs for each core, writing back
//! every MiB, recycled log files (which keep a sync from changing file metadata). Blocks of 4 KiB (the default)
//! rather than the guide's 16 favour point gets from memory. A durable write has `WriteOptions::set_sync`. Only a
//! transaction by `OptimisticTransactionDB` with `get_for_update` is serializable.
//!
//! The bulk load skips the log and flushes the memtables at its end, as the guide advises.

use std::path::Path;

use anyhow::Result;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBPinnableSlice, DataBlockIndexType, OptimisticTransactionDB,
    OptimisticTransactionOptions, Options, ReadOptions, SingleThreaded, WaitForCompactOptions, WriteBatch,
    WriteBatchWithTransaction, WriteOptions,
};

use crate::contestant::{
    Contestant, Database, Durability, ReadWork, Reader, Settings, WriteWork, Writer, both, for_each_chunk,
};
use crate::data::{Entry, Key, Touched, Value, balance, with_balance};

pub(crate) struct RocksDb;

impl Contestant for RocksDb {
    fn name(&self) -> &'static str {
        "rocksdb"
    }

    fn version(&self) -> &'static str {
        "11.8 (crate 0.25)"
    }

    fn tuning(&self) -> &'static str {
        "10-bit bloom filters, LRU block cache, hash index in blocks, LZ4, recycled logs; durable = WriteOptions sync; transactions by OptimisticTransactionDB and get_for_update; load without the log, then flush"
    }

    fn is_b_tree(&self) -> bool {
        false
    }

    fn open(&self, dir: &Path, settings: Settings) -> Result<Box<dyn Database>> {
        let options = options(settings)?;
        let mut write_options = WriteOptions::default();
        write_options.set_sync(settings.durability == Durability::Synced);
        let db = if settings.transactions {
            Either::Transactional(OptimisticTransactionDB::open(&options, dir)?)
        } else {
            Either::Plain(DB::open(&options, dir)?)
        };
        Ok(Box::new(Open { db, write_options }))
    }
}

fn options(settings: Settings) -> Result<Options> {
    let cores = i32::try_from(std::thread::available_parallelism()?.get())?;
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(usize::try_from(settings.cache_bytes)?));
    blocks.set_bloom_filter(10.0, false);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    blocks.set_data_block_index_type(DataBlockIndexType::BinaryAndHash);
    blocks.set_format_version(6);
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_block_based_table_factory(&blocks);
    options.increase_parallelism(cores);
    options.set_max_background_jobs(cores.max(4));
    options.set_level_compaction_dynamic_level_bytes(true);
    options.set_compaction_pri(rocksdb::CompactionPri::MinOverlappingRatio);
    options.set_compression_type(rocksdb::DBCompressionType::Lz4);
    options.set_bytes_per_sync(1 << 20);
    if settings.durability == Durability::Synced {
        // Not for the others: it rules out the unlogged bulk load.
        options.set_recycle_log_file_num(4);
    }
    Ok(options)
}

enum Either {
    Plain(DB),
    Transactional(OptimisticTransactionDB<SingleThreaded>),
}

/// Calls a method that both types have.
macro_rules! on_either {
    ($db:expr, $inner:ident => $call:expr) => {
        match $db {
            Either::Plain($inner) => $call,
            Either::Transactional($inner) => $call,
        }
    };
}

struct Open {
    db: Either,
    write_options: WriteOptions,
}

impl Database for Open {
    fn read(&self, work: ReadWork<'_>) -> Result<()> {
        work(&mut Reading { db: &self.db, options: ReadOptions::default() })
    }

    fn write(&self, work: WriteWork<'_>) -> Result<()> {
        work(&mut Writing(self))
    }

    fn bulk_load(&self, entries: &mut dyn Iterator<Item = Entry>) -> Result<()> {
        let mut unlogged = WriteOptions::default();
        unlogged.disable_wal(true);
        for_each_chunk(entries, 1_000, &mut |chunk| write_batch(&self.db, chunk, &unlogged))?;
        on_either!(&self.db, db => db.flush()?);
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        on_either!(&self.db, db => db.flush_wal(true)?);
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        let mut options = WaitForCompactOptions::default();
        options.set_flush(true);
        on_either!(&self.db, db => db.wait_for_compact(&options)?);
        Ok(())
    }
}

fn write_batch(db: &Either, entries: &[Entry], options: &WriteOptions) -> Result<()> {
    match db {
        Either::Plain(db) => {
            let mut batch = WriteBatch::default();
            entries.iter().for_each(|(key, value)| batch.put(key, value));
            db.write_opt(batch, options)?;
        }
        Either::Transactional(db) => {
            let mut batch = WriteBatchWithTransaction::<true>::default();
            entries.iter().for_each(|(key, value)| batch.put(key, value));
            db.write_opt(batch, options)?;
        }
    }
    Ok(())
}

struct Reading<'a> {
    db: &'a Either,
    options: ReadOptions,
}

impl Reading<'_> {
    fn pinned(&self, key: &Key) -> Result<Option<DBPinnableSlice<'_>>> {
        Ok(on_either!(self.db, db => db.get_pinned_opt(key, &self.options)?))
    }
}

impl Reader for Reading<'_> {
    fn get(&mut self, key: &Key, touched: &mut Touched) -> Result<bool> {
        let Some(value) = self.pinned(key)? else { return Ok(false) };
        touched.value(&value);
        Ok(true)
    }

    fn scan(&mut self, from: &Key, limit: usize, touched: &mut Touched) -> Result<()> {
        on_either!(self.db, db => {
            let mut cursor = db.raw_iterator_opt(ReadOptions::default());
            cursor.seek(from);
            for _ in 0..limit {
                let Some((key, value)) = cursor.item() else { break };
                touched.entry(key, value);
                cursor.next();
            }
            Ok(cursor.status()?)
        })
    }

    fn fetch(&mut self, key: &Key) -> Result<Option<Vec<u8>>> {
        Ok(self.pinned(key)?.map(|value| value.to_vec()))
    }
}

struct Writing<'a>(&'a Open);

impl Writer for Writing<'_> {
    fn put(&mut self, key: &Key, value: &Value) -> Result<()> {
        on_either!(&self.0.db, db => db.put_opt(key, value, &self.0.write_options)?);
        Ok(())
    }

    fn put_batch(&mut self, entries: &[Entry]) -> Result<()> {
        write_batch(&self.0.db, entries, &self.0.write_options)
    }

    fn transfer(&mut self, from: &Key, to: &Key, amount: u64) -> Result<u64> {
        let Either::Transactional(db) = &self.0.db else { unreachable!("opened for transactions") };
        let mut conflicts = 0;
        loop {
            let tx = db.transaction_opt(&self.0.write_options, &OptimisticTransactionOptions::default());
            let (source, target) = both(tx.get_for_update(from, true)?, tx.get_for_update(to, true)?)?;
            tx.put(from, with_balance(&source, balance(&source).wrapping_sub(amount)))?;
            tx.put(to, with_balance(&target, balance(&target).wrapping_add(amount)))?;
            match tx.commit() {
                Ok(()) => return Ok(conflicts),
                Err(error)
                    if matches!(error.kind(), rocksdb::ErrorKind::Busy | rocksdb::ErrorKind::TryAgain) =>
                {
                    conflicts += 1;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}
