//! dogsled, through the interface its users have.
//!
//! `Durability::Synced` or `Buffered` for the whole database, one cache budget, nothing else set. The bulk load
//! applies buffered batches and ends in `flush`; settling asks for a checkpoint, which folds what is in memory
//! into the B-tree.

use std::path::Path;

use anyhow::Result;
use dogsled::transaction::{ConflictableTransactionError, TransactionError};

use crate::contestant::{
    Contestant, Database, Durability, ReadWork, Reader, Settings, WriteWork, Writer, both, for_each_chunk,
};
use crate::data::{Entry, Key, Touched, Value, balance, with_balance};

pub(crate) struct Dogsled;

impl Contestant for Dogsled {
    fn name(&self) -> &'static str {
        "dogsled"
    }

    fn version(&self) -> &'static str {
        env!("CARGO_PKG_VERSION")
    }

    fn tuning(&self) -> &'static str {
        "Durability::Synced or Buffered for the database; load in buffered batches of 50,000, then flush"
    }

    fn is_b_tree(&self) -> bool {
        true
    }

    fn open(&self, dir: &Path, settings: Settings) -> Result<Box<dyn Database>> {
        let durability = match settings.durability {
            Durability::Synced => dogsled::Durability::Synced,
            Durability::Buffered => dogsled::Durability::Buffered,
        };
        let db = dogsled::Config::new()
            .path(dir)
            .cache_capacity(settings.cache_bytes)
            .durability(durability)
            .open()?;
        Ok(Box::new(Open(db)))
    }
}

struct Open(dogsled::Db);

impl Database for Open {
    fn read(&self, work: ReadWork<'_>) -> Result<()> {
        work(&mut Session(&self.0))
    }

    fn write(&self, work: WriteWork<'_>) -> Result<()> {
        work(&mut Session(&self.0))
    }

    fn bulk_load(&self, entries: &mut dyn Iterator<Item = Entry>) -> Result<()> {
        // As its docs advise: a large batch is sorted once and applied in order.
        self.write(&mut |writer| {
            for_each_chunk(entries, 50_000, &mut |chunk| writer.put_batch(chunk))?;
            Ok(())
        })?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        self.0.flush()?;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.0.checkpoint()?;
        Ok(())
    }
}

struct Session<'a>(&'a dogsled::Db);

impl Reader for Session<'_> {
    fn get(&mut self, key: &Key, touched: &mut Touched) -> Result<bool> {
        let Some(value) = self.0.get(key)? else { return Ok(false) };
        touched.value(&value);
        Ok(true)
    }

    fn scan(&mut self, from: &Key, limit: usize, touched: &mut Touched) -> Result<()> {
        for entry in self.0.range(&from[..]..).take(limit) {
            let (key, value) = entry?;
            touched.entry(&key, &value);
        }
        Ok(())
    }

    fn fetch(&mut self, key: &Key) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get(key)?.map(|value| value.to_vec()))
    }
}

impl Writer for Session<'_> {
    fn put(&mut self, key: &Key, value: &Value) -> Result<()> {
        // As what is compared: a put that does not return the old value.
        self.0.put(key, &value[..])?;
        Ok(())
    }

    fn put_batch(&mut self, entries: &[Entry]) -> Result<()> {
        let mut batch = dogsled::Batch::default();
        for (key, value) in entries {
            batch.insert(&key[..], &value[..]);
        }
        self.0.apply_batch(batch)?;
        Ok(())
    }

    fn transfer(&mut self, from: &Key, to: &Key, amount: u64) -> Result<u64> {
        let tries = std::cell::Cell::new(0);
        let done = self.0.transaction(|tx| {
            tries.set(tries.get() + 1);
            let (source, target) =
                both(tx.get(from)?, tx.get(to)?).map_err(ConflictableTransactionError::Abort)?;
            let source = with_balance(&source, balance(&source).wrapping_sub(amount));
            let target = with_balance(&target, balance(&target).wrapping_add(amount));
            tx.insert(&from[..], &source[..])?;
            tx.insert(&to[..], &target[..])?;
            Ok(())
        });
        match done {
            Ok(()) => Ok(tries.get() - 1),
            Err(TransactionError::Abort(error)) => Err(error),
            Err(TransactionError::Storage(error)) => Err(error.into()),
        }
    }
}
