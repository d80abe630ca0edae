//! sled 0.34: the API that dogsled follows.
//!
//! A durable write is `insert` and then `flush`, the only way it offers. On Linux that calls `sync_file_range`,
//! which flushes neither the drive's cache nor file metadata: a weaker promise than `fdatasync`, so its durable
//! rows are marked and never count as the best peer. Buffered writes are flushed every 500 ms by its own thread, its default. Transactions ask for
//! `flush` inside.

use std::path::Path;

use anyhow::Result;
use sled::transaction::{ConflictableTransactionError, TransactionError};

use crate::contestant::{
    Contestant, Database, Durability, ReadWork, Reader, Settings, WriteWork, Writer, both,
};
use crate::data::{Entry, Key, Touched, Value, balance, with_balance};

pub(crate) struct Sled;

impl Contestant for Sled {
    fn name(&self) -> &'static str {
        "sled"
    }

    fn version(&self) -> &'static str {
        "0.34.7"
    }

    fn tuning(&self) -> &'static str {
        "Mode::HighThroughput; durable = insert + flush, which calls sync_file_range only; buffered = flush_every_ms 500; load in batches of 1,000"
    }

    fn is_b_tree(&self) -> bool {
        true
    }

    fn syncs(&self) -> bool {
        false
    }

    fn open(&self, dir: &Path, settings: Settings) -> Result<Box<dyn Database>> {
        let db = sled::Config::new()
            .path(dir)
            .cache_capacity(settings.cache_bytes)
            .mode(sled::Mode::HighThroughput)
            .open()?;
        Ok(Box::new(Open { db, durability: settings.durability }))
    }
}

struct Open {
    db: sled::Db,
    durability: Durability,
}

impl Open {
    fn after_write(&self) -> Result<()> {
        if self.durability == Durability::Synced {
            self.db.flush()?;
        }
        Ok(())
    }
}

impl Database for Open {
    fn read(&self, work: ReadWork<'_>) -> Result<()> {
        work(&mut Session(self))
    }

    fn write(&self, work: WriteWork<'_>) -> Result<()> {
        work(&mut Session(self))
    }

    fn sync(&self) -> Result<()> {
        self.db.flush()?;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.sync()
    }
}

struct Session<'a>(&'a Open);

impl Reader for Session<'_> {
    fn get(&mut self, key: &Key, touched: &mut Touched) -> Result<bool> {
        let Some(value) = self.0.db.get(key)? else { return Ok(false) };
        touched.value(&value);
        Ok(true)
    }

    fn scan(&mut self, from: &Key, limit: usize, touched: &mut Touched) -> Result<()> {
        for entry in self.0.db.range(&from[..]..).take(limit) {
            let (key, value) = entry?;
            touched.entry(&key, &value);
        }
        Ok(())
    }

    fn fetch(&mut self, key: &Key) -> Result<Option<Vec<u8>>> {
        Ok(self.0.db.get(key)?.map(|value| value.to_vec()))
    }
}

impl Writer for Session<'_> {
    fn put(&mut self, key: &Key, value: &Value) -> Result<()> {
        self.0.db.insert(key, &value[..])?;
        self.0.after_write()
    }

    fn put_batch(&mut self, entries: &[Entry]) -> Result<()> {
        let mut batch = sled::Batch::default();
        for (key, value) in entries {
            batch.insert(&key[..], &value[..]);
        }
        self.0.db.apply_batch(batch)?;
        self.0.after_write()
    }

    fn transfer(&mut self, from: &Key, to: &Key, amount: u64) -> Result<u64> {
        let tries = std::cell::Cell::new(0);
        let synced = self.0.durability == Durability::Synced;
        let done = self.0.db.transaction(|tx| {
            tries.set(tries.get() + 1);
            let (source, target) =
                both(tx.get(from)?, tx.get(to)?).map_err(ConflictableTransactionError::Abort)?;
            let source = with_balance(&source, balance(&source).wrapping_sub(amount));
            let target = with_balance(&target, balance(&target).wrapping_add(amount));
            tx.insert(&from[..], &source[..])?;
            tx.insert(&to[..], &target[..])?;
            if synced {
                tx.flush();
            }
            Ok(())
        });
        match done {
            Ok(()) => Ok(tries.get() - 1),
            Err(TransactionError::Abort(error)) => Err(error),
            Err(TransactionError::Storage(error)) => Err(error.into()),
        }
    }
}
