//! redb: a copy-on-write B-tree in Rust.
//!
//! Reads go through a held `ReadOnlyTable`, which spares `begin_read` and `open_table` for each. A durable
//! write is a transaction with `Durability::Immediate`, one-phase (its default). A buffered write is one with
//! `Durability::None`; every half second one writer commits with `Immediate`, which bounds what power loss may
//! take just as the other contestants bound it and lets redb reuse freed pages. (Without those commits puts
//! measure two to three times faster, but the end of the process loses them all, and the next durable commit
//! takes seconds.) The bulk load is one
//! transaction.

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::Result;
use redb::{ReadOnlyTable, ReadableDatabase as _, ReadableTable as _, TableDefinition};

use crate::contestant::{
    Contestant, Database, Durability, ReadWork, Reader, Settings, WriteWork, Writer, both,
};
use crate::data::{Entry, Key, Touched, Value, balance, with_balance};

const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entries");
const SYNC_INTERVAL: Duration = Duration::from_millis(500);

pub(crate) struct Redb;

impl Contestant for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn version(&self) -> &'static str {
        "4.4"
    }

    fn tuning(&self) -> &'static str {
        "held ReadOnlyTable; one-phase commits; buffered = Durability::None with an Immediate commit every 500 ms; load in one transaction"
    }

    fn is_b_tree(&self) -> bool {
        true
    }

    fn open(&self, dir: &Path, settings: Settings) -> Result<Box<dyn Database>> {
        let db = redb::Database::builder()
            .set_cache_size(usize::try_from(settings.cache_bytes)?)
            .create(dir.join("data.redb"))?;
        let transaction = db.begin_write()?;
        transaction.open_table(TABLE)?;
        transaction.commit()?;
        Ok(Box::new(Open { db, durability: settings.durability, last_sync: Mutex::new(Instant::now()) }))
    }
}

struct Open {
    db: redb::Database,
    durability: Durability,
    last_sync: Mutex<Instant>,
}

impl Open {
    fn begin(&self) -> Result<redb::WriteTransaction> {
        let mut transaction = self.db.begin_write()?;
        if self.durability == Durability::Buffered {
            let mut last_sync = self.last_sync.lock().expect("no holder panics");
            if last_sync.elapsed() < SYNC_INTERVAL {
                transaction.set_durability(redb::Durability::None)?;
            } else {
                *last_sync = Instant::now();
            }
        }
        Ok(transaction)
    }
}

impl Database for Open {
    fn read(&self, work: ReadWork<'_>) -> Result<()> {
        let table = self.db.begin_read()?.open_table(TABLE)?;
        work(&mut Reading(table))
    }

    fn write(&self, work: WriteWork<'_>) -> Result<()> {
        work(&mut Writing(self))
    }

    fn bulk_load(&self, entries: &mut dyn Iterator<Item = Entry>) -> Result<()> {
        let transaction = self.db.begin_write()?;
        let mut table = transaction.open_table(TABLE)?;
        for (key, value) in entries {
            table.insert(&key[..], &value[..])?;
        }
        drop(table);
        transaction.commit()?;
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        // An empty commit with the default durability makes all earlier ones durable.
        self.db.begin_write()?.commit()?;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.sync()
    }
}

struct Reading(ReadOnlyTable<&'static [u8], &'static [u8]>);

impl Reader for Reading {
    fn get(&mut self, key: &Key, touched: &mut Touched) -> Result<bool> {
        let Some(value) = self.0.get_owned(&key[..])? else { return Ok(false) };
        touched.value(value.value());
        Ok(true)
    }

    fn scan(&mut self, from: &Key, limit: usize, touched: &mut Touched) -> Result<()> {
        for entry in self.0.range_owned(&from[..]..)?.take(limit) {
            let (key, value) = entry?;
            touched.entry(key.value(), value.value());
        }
        Ok(())
    }

    fn fetch(&mut self, key: &Key) -> Result<Option<Vec<u8>>> {
        Ok(self.0.get_owned(&key[..])?.map(|value| value.value().to_vec()))
    }
}

struct Writing<'a>(&'a Open);

impl Writer for Writing<'_> {
    fn put(&mut self, key: &Key, value: &Value) -> Result<()> {
        let transaction = self.0.begin()?;
        transaction.open_table(TABLE)?.insert(&key[..], &value[..])?;
        transaction.commit()?;
        Ok(())
    }

    fn put_batch(&mut self, entries: &[Entry]) -> Result<()> {
        let transaction = self.0.begin()?;
        let mut table = transaction.open_table(TABLE)?;
        for (key, value) in entries {
            table.insert(&key[..], &value[..])?;
        }
        drop(table);
        transaction.commit()?;
        Ok(())
    }

    fn transfer(&mut self, from: &Key, to: &Key, amount: u64) -> Result<u64> {
        let transaction = self.0.begin()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            let read = |key: &Key| -> Result<Option<Value>> {
                let value = table.get(&key[..])?;
                Ok(value.map(|value| with_balance(value.value(), balance(value.value()))))
            };
            let (source, target) = both(read(from)?, read(to)?)?;
            let source = with_balance(&source, balance(&source).wrapping_sub(amount));
            let target = with_balance(&target, balance(&target).wrapping_add(amount));
            table.insert(&from[..], &source[..])?;
            table.insert(&to[..], &target[..])?;
        }
        transaction.commit()?;
        Ok(0)
    }
}
