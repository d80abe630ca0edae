//! What a database must offer to be compared.
//!
//! A [`Contestant`] opens a [`Database`]; threads work through sessions of it. A session is a closure rather
//! than a value because several peers keep borrowed things for the length of one: LMDB a read transaction,
//! SQLite its prepared statements, redb a held table. Each contestant thus runs the way its own documentation
//! advises and none pays per operation for a preparation that its users would do once.
//!
//! One dynamic call is made per operation (about 2 ns), none per scanned entry.

use std::path::Path;

use anyhow::{Result, bail};

use crate::data::{Entry, Key, Touched, Value};

/// What a write that returned promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It survives power loss.
    Synced,
    /// It survives the end of the process; power loss may take the last moments.
    Buffered,
}

/// How to open a database.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Promise of each write.
    pub durability: Durability,
    /// Memory for caches of every kind.
    pub cache_bytes: u64,
    /// Open for serializable transactions, where that is another type of database.
    pub transactions: bool,
}

/// One database library.
pub trait Contestant: Sync {
    /// Short name, used in tables, options and file names.
    fn name(&self) -> &'static str;

    /// Version of the library.
    fn version(&self) -> &'static str;

    /// How it is tuned, in a line: printed beside its results.
    fn tuning(&self) -> &'static str;

    /// Whether it updates a B-tree in place (or by copying pages) instead of merging sorted runs.
    fn is_b_tree(&self) -> bool;

    /// Whether a durable write has been synced when it returns (`fdatasync` or its like).
    fn syncs(&self) -> bool {
        true
    }

    /// Opens or creates the database in `dir`.
    fn open(&self, dir: &Path, settings: Settings) -> Result<Box<dyn Database>>;
}

/// What a thread does in a reading session.
pub type ReadWork<'a> = &'a mut dyn FnMut(&mut dyn Reader) -> Result<()>;
/// What a thread does in a writing session.
pub type WriteWork<'a> = &'a mut dyn FnMut(&mut dyn Writer) -> Result<()>;

/// An open database, shared by threads.
pub trait Database: Send + Sync {
    /// Runs `work` on a consistent, prepared way of reading.
    fn read(&self, work: ReadWork<'_>) -> Result<()>;

    /// Runs `work` on a prepared way of writing.
    fn write(&self, work: WriteWork<'_>) -> Result<()>;

    /// Fills the empty database; when it returns, all of it survives power loss.
    fn bulk_load(&self, entries: &mut dyn Iterator<Item = Entry>) -> Result<()> {
        self.write(&mut |writer| {
            for_each_chunk(entries, 1_000, &mut |chunk| writer.put_batch(chunk))?;
            Ok(())
        })?;
        self.sync()
    }

    /// When it returns, every earlier write survives power loss.
    fn sync(&self) -> Result<()>;

    /// Syncs and lets postponed work (checkpoint, compaction) finish, so that nobody runs in its shadow.
    fn settle(&self) -> Result<()>;
}

/// Reads.
pub trait Reader {
    /// Looks up `key` and touches its value; whether it was there.
    fn get(&mut self, key: &Key, touched: &mut Touched) -> Result<bool>;

    /// Touches up to `limit` entries from `from` on, in order.
    fn scan(&mut self, from: &Key, limit: usize, touched: &mut Touched) -> Result<()>;

    /// A copy of the value at `key`, for checks.
    fn fetch(&mut self, key: &Key) -> Result<Option<Vec<u8>>>;
}

/// Writes, each with the durability that the database was opened with.
pub trait Writer {
    /// Stores one entry.
    fn put(&mut self, key: &Key, value: &Value) -> Result<()>;

    /// Stores all entries, atomically.
    fn put_batch(&mut self, entries: &[Entry]) -> Result<()>;

    /// In one serializable transaction: reads both accounts, moves `amount` from one to the other (balances
    /// wrap around). Retries conflicts itself and returns how many there were.
    fn transfer(&mut self, from: &Key, to: &Key, amount: u64) -> Result<u64>;
}

/// Hands `entries` on in chunks of `size`; how many there were.
pub fn for_each_chunk(
    mut entries: &mut dyn Iterator<Item = Entry>,
    size: usize,
    chunk_work: &mut dyn FnMut(&[Entry]) -> Result<()>,
) -> Result<u64> {
    let mut chunk = Vec::with_capacity(size);
    let mut total = 0;
    loop {
        chunk.clear();
        chunk.extend((&mut entries).take(size));
        if chunk.is_empty() {
            return Ok(total);
        }
        chunk_work(&chunk)?;
        total += chunk.len() as u64;
    }
}

/// Opens `contestant` in `dir`, which is created if need be.
pub fn open(contestant: &dyn Contestant, dir: &Path, settings: Settings) -> Result<Box<dyn Database>> {
    use anyhow::Context as _;
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    contestant
        .open(dir, settings)
        .with_context(|| format!("opening {} in {}", contestant.name(), dir.display()))
}

/// Checks that a read of both accounts of a transfer found them.
pub fn both<T>(from: Option<T>, to: Option<T>) -> Result<(T, T)> {
    match (from, to) {
        (Some(from), Some(to)) => Ok((from, to)),
        _ => bail!("an account is missing: the database is not the warm one"),
    }
}
