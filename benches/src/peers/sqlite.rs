//! SQLite through rusqlite: a B-tree with a write-ahead log, under SQL.
//!
//! WAL mode, a `WITHOUT ROWID` table, prepared statements. `synchronous=FULL` syncs the log at each commit;
//! `NORMAL` syncs at checkpoints only, which is the buffered promise. SQLite has one writer at a time and makes
//! the others poll for its lock, so, as its documentation advises, threads share one writing connection. Each
//! reading session has a connection of its own inside one read transaction. The bulk load runs in transactions
//! of 100,000 with syncs off and ends in a synced checkpoint.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Result;
use rusqlite::{Connection, OptionalExtension as _, Statement};

use crate::contestant::{
    Contestant, Database, Durability, ReadWork, Reader, Settings, WriteWork, Writer, both, for_each_chunk,
};
use crate::data::{Entry, Key, Touched, Value, balance, with_balance};

const PUT: &str =
    "INSERT INTO entries (key, value) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET value = excluded.value";
const GET: &str = "SELECT value FROM entries WHERE key = ?1";
const SCAN: &str = "SELECT key, value FROM entries WHERE key >= ?1 ORDER BY key LIMIT ?2";

pub(crate) struct Sqlite;

impl Contestant for Sqlite {
    fn name(&self) -> &'static str {
        "sqlite"
    }

    fn version(&self) -> &'static str {
        "rusqlite 0.41, bundled"
    }

    fn tuning(&self) -> &'static str {
        "WAL mode, WITHOUT ROWID, prepared statements, mmap; durable = synchronous FULL; buffered = NORMAL; one writing connection; transactions IMMEDIATE"
    }

    fn is_b_tree(&self) -> bool {
        true
    }

    fn open(&self, dir: &Path, settings: Settings) -> Result<Box<dyn Database>> {
        let path = dir.join("data.sqlite");
        let writer = connect(&path, settings)?;
        writer.execute_batch(
            "CREATE TABLE IF NOT EXISTS entries (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID, STRICT",
        )?;
        Ok(Box::new(Open { path, settings, writer: Mutex::new(writer) }))
    }
}

fn connect(path: &Path, settings: Settings) -> Result<Connection> {
    let connection = Connection::open(path)?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", level(settings.durability))?;
    // Negative: in KiB.
    connection.pragma_update(None, "cache_size", -i64::try_from(settings.cache_bytes / 1024)?)?;
    connection.pragma_update(None, "mmap_size", 4_i64 << 30)?;
    Ok(connection)
}

fn level(durability: Durability) -> &'static str {
    match durability {
        Durability::Synced => "FULL",
        Durability::Buffered => "NORMAL",
    }
}

struct Open {
    path: PathBuf,
    settings: Settings,
    writer: Mutex<Connection>,
}

impl Open {
    fn writer(&self) -> std::sync::MutexGuard<'_, Connection> {
        self.writer.lock().expect("no holder panics")
    }
}

impl Database for Open {
    fn read(&self, work: ReadWork<'_>) -> Result<()> {
        let connection = connect(&self.path, self.settings)?;
        connection.execute_batch("BEGIN")?;
        let (get, scan) = (connection.prepare(GET)?, connection.prepare(SCAN)?);
        work(&mut Reading { get, scan })
    }

    fn write(&self, work: WriteWork<'_>) -> Result<()> {
        work(&mut Writing(self))
    }

    fn bulk_load(&self, entries: &mut dyn Iterator<Item = Entry>) -> Result<()> {
        self.writer().pragma_update(None, "synchronous", "OFF")?;
        let mut writing = Writing(self);
        for_each_chunk(entries, 100_000, &mut |chunk| writing.put_batch(chunk))?;
        self.sync()
    }

    fn sync(&self) -> Result<()> {
        let writer = self.writer();
        // A checkpoint syncs the log, copies it into the database and syncs that.
        writer.pragma_update(None, "synchronous", "FULL")?;
        writer.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
        writer.pragma_update(None, "synchronous", level(self.settings.durability))?;
        Ok(())
    }

    fn settle(&self) -> Result<()> {
        self.sync()
    }
}

struct Reading<'c> {
    get: Statement<'c>,
    scan: Statement<'c>,
}

impl Reader for Reading<'_> {
    fn get(&mut self, key: &Key, touched: &mut Touched) -> Result<bool> {
        let mut rows = self.get.query([&key[..]])?;
        let Some(row) = rows.next()? else { return Ok(false) };
        touched.value(row.get_ref(0)?.as_blob()?);
        Ok(true)
    }

    fn scan(&mut self, from: &Key, limit: usize, touched: &mut Touched) -> Result<()> {
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = self.scan.query((&from[..], limit))?;
        while let Some(row) = rows.next()? {
            touched.entry(row.get_ref(0)?.as_blob()?, row.get_ref(1)?.as_blob()?);
        }
        Ok(())
    }

    fn fetch(&mut self, key: &Key) -> Result<Option<Vec<u8>>> {
        Ok(self.get.query_row([&key[..]], |row| row.get(0)).optional()?)
    }
}

struct Writing<'a>(&'a Open);

impl Writer for Writing<'_> {
    fn put(&mut self, key: &Key, value: &Value) -> Result<()> {
        self.0.writer().prepare_cached(PUT)?.execute([&key[..], &value[..]])?;
        Ok(())
    }

    fn put_batch(&mut self, entries: &[Entry]) -> Result<()> {
        let mut connection = self.0.writer();
        let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        {
            let mut put = tx.prepare_cached(PUT)?;
            for (key, value) in entries {
                put.execute([&key[..], &value[..]])?;
            }
        }
        tx.commit()?;
        Ok(())
    }

    fn transfer(&mut self, from: &Key, to: &Key, amount: u64) -> Result<u64> {
        let mut connection = self.0.writer();
        let tx = connection.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        {
            let mut get = tx.prepare_cached(GET)?;
            let mut read = |key: &Key| -> Result<Option<Vec<u8>>> {
                Ok(get.query_row([&key[..]], |row| row.get(0)).optional()?)
            };
            let (source, target) = both(read(from)?, read(to)?)?;
            let source = with_balance(&source, balance(&source).wrapping_sub(amount));
            let target = with_balance(&target, balance(&target).wrapping_add(amount));
            let mut put = tx.prepare_cached(PUT)?;
            put.execute([&from[..], &source[..]])?;
            put.execute([&to[..], &target[..]])?;
        }
        tx.commit()?;
        Ok(0)
    }
}
