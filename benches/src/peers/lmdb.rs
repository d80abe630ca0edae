//! LMDB through heed: a copy-on-write B-tree in a memory map.
//!
//! Reads share one read transaction per session. Durable writes use its defaults; buffered ones `MDB_NOSYNC`,
//! which leaves all writing back to the operating system (a weaker promise than the other contestants give,
//! since nothing bounds the delay). The map has room for any workload here; the file grows only as it is used.
//! The bulk load is one transaction without syncs and then one sync.

// LMDB trusts that no one else changes the mapped file, which no type can express: hence heed's `unsafe`.
#![allow(unsafe_code)]

use std::ops::Bound;
use std::path::Path;

use anyhow::{Result, anyhow};
use heed::types::Bytes;
use heed::{CommitOrAbort, EnvFlags, EnvOpenOptions, FlagSetMode, RoTxn, WithTls};

use crate::contestant::{
    Contestant, Database, Durability, ReadWork, Reader, Settings, WriteWork, Writer, both,
};
use crate::data::{Entry, Key, Touched, Value, balance, with_balance};

const MAP_BYTES: usize = 64 << 30;

type Table<'e> = heed::Database<'e, Bytes, Bytes>;

pub(crate) struct Lmdb;

impl Contestant for Lmdb {
    fn name(&self) -> &'static str {
        "lmdb"
    }

    fn version(&self) -> &'static str {
        "heed 0.23"
    }

    fn tuning(&self) -> &'static str {
        "held read transaction; durable = default flags; buffered = MDB_NOSYNC; load in one transaction"
    }

    fn is_b_tree(&self) -> bool {
        true
    }

    fn open(&self, dir: &Path, settings: Settings) -> Result<Box<dyn Database>> {
        let mut options = EnvOpenOptions::new();
        options.map_size(MAP_BYTES).max_readers(256);
        if settings.durability == Durability::Buffered {
            // SAFETY: without syncs a power loss may corrupt the file; these are throw-away databases.
            unsafe { options.flags(EnvFlags::NO_SYNC) };
        }
        // SAFETY: the directory is this process's own and no one else writes to it.
        let env = unsafe { options.open(dir)? };
        Ok(Box::new(Open { env, durability: settings.durability }))
    }
}

struct Open {
    env: heed::Env<WithTls>,
    durability: Durability,
}

impl Open {
    /// A handle is tied to the environment by a lifetime, so each session gets its own.
    fn table(&self) -> Result<Table<'_>> {
        self.env
            .create_databases_and_commit(self.env.write_txn()?, |opener, txn| {
                Ok::<_, heed::Error>(CommitOrAbort::<_, ()>::Commit(opener.create_database(txn, None)?))
            })?
            .commit()
            .ok_or_else(|| anyhow!("LMDB did not open its table"))
    }
}

impl Database for Open {
    fn read(&self, work: ReadWork<'_>) -> Result<()> {
        let table = self.table()?;
        work(&mut Reading { table, txn: self.env.read_txn()? })
    }

    fn write(&self, work: WriteWork<'_>) -> Result<()> {
        let table = self.table()?;
        work(&mut Writing { open: self, table })
    }

    fn bulk_load(&self, entries: &mut dyn Iterator<Item = Entry>) -> Result<()> {
        let table = self.table()?;
        // SAFETY: as in `Contestant::open`.
        unsafe { self.env.set_flags(EnvFlags::NO_SYNC, FlagSetMode::Enable)? };
        let mut txn = self.env.write_txn()?;
        for (key, value) in entries {
            table.put(&mut txn, &key[..], &value[..])?;
        }
        txn.commit()?;
        self.sync()?;
        if self.durability == Durability::Synced {
            // SAFETY: this restores the safe default.
            unsafe { self.env.set_flags(EnvFlags::NO_SYNC, FlagSetMode::Disable)? };
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        self.env.force_sync()?;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.sync()
    }
}

struct Reading<'e> {
    table: Table<'e>,
    txn: RoTxn<'e, WithTls>,
}

impl Reader for Reading<'_> {
    fn get(&mut self, key: &Key, touched: &mut Touched) -> Result<bool> {
        let Some(value) = self.table.get(&self.txn, &key[..])? else { return Ok(false) };
        touched.value(value);
        Ok(true)
    }

    fn scan(&mut self, from: &Key, limit: usize, touched: &mut Touched) -> Result<()> {
        let range = (Bound::Included(&from[..]), Bound::Unbounded);
        for entry in self.table.range(&self.txn, &range)?.take(limit) {
            let (key, value) = entry?;
            touched.entry(key, value);
        }
        Ok(())
    }

    fn fetch(&mut self, key: &Key) -> Result<Option<Vec<u8>>> {
        Ok(self.table.get(&self.txn, &key[..])?.map(<[u8]>::to_vec))
    }
}

struct Writing<'e> {
    open: &'e Open,
    table: Table<'e>,
}

impl Writer for Writing<'_> {
    fn put(&mut self, key: &Key, value: &Value) -> Result<()> {
        let mut txn = self.open.env.write_txn()?;
        self.table.put(&mut txn, &key[..], &value[..])?;
        txn.commit()?;
        Ok(())
    }

    fn put_batch(&mut self, entries: &[Entry]) -> Result<()> {
        let mut txn = self.open.env.write_txn()?;
        for (key, value) in entries {
            self.table.put(&mut txn, &key[..], &value[..])?;
        }
        txn.commit()?;
        Ok(())
    }

    fn transfer(&mut self, from: &Key, to: &Key, amount: u64) -> Result<u64> {
        let mut txn = self.open.env.write_txn()?;
        let (source, target) = both(self.table.get(&txn, &from[..])?, self.table.get(&txn, &to[..])?)?;
        let source = with_balance(source, balance(source).wrapping_sub(amount));
        let target = with_balance(target, balance(target).wrapping_add(amount));
        self.table.put(&mut txn, &from[..], &source[..])?;
        self.table.put(&mut txn, &to[..], &target[..])?;
        txn.commit()?;
        Ok(0)
    }
}
