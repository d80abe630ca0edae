//! fjall 3: a log-structured merge tree in Rust.
//!
//! A durable write is a write and then `persist(SyncData)`, or a batch or transaction with that durability. The
//! journal is handed to the operating system at each write (its default), as for the other contestants.
//! Block cache as large as the others' caches; bloom filters and LZ4 as by default. Settling rotates the memtable
//! and waits for compactions.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use fjall::{
    Keyspace, KeyspaceCreateOptions, OptimisticTxDatabase, OptimisticTxKeyspace, PersistMode, Readable as _,
};

use crate::contestant::{
    Contestant, Database, Durability, ReadWork, Reader, Settings, WriteWork, Writer, both,
};
use crate::data::{Entry, Key, Touched, Value, balance, with_balance};

pub(crate) struct Fjall;

impl Contestant for Fjall {
    fn name(&self) -> &'static str {
        "fjall"
    }

    fn version(&self) -> &'static str {
        "3.1"
    }

    fn tuning(&self) -> &'static str {
        "block cache, default bloom filters, LZ4; durable = PersistMode::SyncData; transactions by OptimisticTxDatabase; load in batches of 1,000"
    }

    fn is_b_tree(&self) -> bool {
        false
    }

    fn open(&self, dir: &Path, settings: Settings) -> Result<Box<dyn Database>> {
        let persist = match settings.durability {
            Durability::Synced => PersistMode::SyncData,
            Durability::Buffered => PersistMode::Buffer,
        };
        let name = "entries";
        let (transactional, db, keyspace) = if settings.transactions {
            let db = OptimisticTxDatabase::builder(dir).cache_size(settings.cache_bytes).open()?;
            let keyspace = db.keyspace(name, KeyspaceCreateOptions::default)?;
            let plain = (db.inner().clone(), keyspace.inner().clone());
            (Some((db, keyspace)), plain.0, plain.1)
        } else {
            let db = fjall::Database::builder(dir).cache_size(settings.cache_bytes).open()?;
            let keyspace = db.keyspace(name, KeyspaceCreateOptions::default)?;
            (None, db, keyspace)
        };
        Ok(Box::new(Open { db, keyspace, transactional, persist }))
    }
}

struct Open {
    db: fjall::Database,
    keyspace: Keyspace,
    transactional: Option<(OptimisticTxDatabase, OptimisticTxKeyspace)>,
    persist: PersistMode,
}

impl Database for Open {
    fn read(&self, work: ReadWork<'_>) -> Result<()> {
        work(&mut Session(self))
    }

    fn write(&self, work: WriteWork<'_>) -> Result<()> {
        work(&mut Session(self))
    }

    fn sync(&self) -> Result<()> {
        self.db.persist(PersistMode::SyncAll)?;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.sync()?;
        self.keyspace.rotate_memtable_and_wait()?;
        // Compactions follow one another with short pauses: wait for a longer one.
        let mut quiet = 0;
        while quiet < 5 {
            thread::sleep(Duration::from_millis(10));
            let busy = self.db.outstanding_flushes() > 0 || self.db.active_compactions() > 0;
            quiet = if busy { 0 } else { quiet + 1 };
        }
        Ok(())
    }
}

struct Session<'a>(&'a Open);

impl Reader for Session<'_> {
    fn get(&mut self, key: &Key, touched: &mut Touched) -> Result<bool> {
        let Some(value) = self.0.keyspace.get(key)? else { return Ok(false) };
        touched.value(&value);
        Ok(true)
    }

    fn scan(&mut self, from: &Key, limit: usize, touched: &mut Touched) -> Result<()> {
        for guard in self.0.keyspace.range(&from[..]..).take(limit) {
            let (key, value) = guard.into_inner()?;
            touched.entry(&key, &value);
        }
        Ok(())
    }

    fn fetch(&mut self, key: &Key) -> Result<Option<Vec<u8>>> {
        Ok(self.0.keyspace.get(key)?.map(|value| value.to_vec()))
    }
}

impl Writer for Session<'_> {
    fn put(&mut self, key: &Key, value: &Value) -> Result<()> {
        self.0.keyspace.insert(key, value)?;
        if self.0.persist == PersistMode::SyncData {
            self.0.db.persist(PersistMode::SyncData)?;
        }
        Ok(())
    }

    fn put_batch(&mut self, entries: &[Entry]) -> Result<()> {
        let mut batch = self.0.db.batch().durability(Some(self.0.persist));
        for (key, value) in entries {
            batch.insert(&self.0.keyspace, key, value);
        }
        batch.commit()?;
        Ok(())
    }

    fn transfer(&mut self, from: &Key, to: &Key, amount: u64) -> Result<u64> {
        let (db, keyspace) = self.0.transactional.as_ref().expect("opened for transactions");
        let mut conflicts = 0;
        loop {
            let mut tx = db.write_tx()?.durability(Some(self.0.persist));
            let (source, target) = both(tx.get(keyspace, from)?, tx.get(keyspace, to)?)?;
            tx.insert(keyspace, from, with_balance(&source, balance(&source).wrapping_sub(amount)));
            tx.insert(keyspace, to, with_balance(&target, balance(&target).wrapping_add(amount)));
            if tx.commit()?.is_ok() {
                return Ok(conflicts);
            }
            conflicts += 1;
        }
    }
}
