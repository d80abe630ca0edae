//! Work on whole databases: load, overwrite again and again, kill and reopen, watch the memory.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use crate::child;
use crate::contestant::{Contestant, Durability, Settings, for_each_chunk, open};
use crate::data::{self, ENTRY_BYTES, Touched};

/// Bytes of keys and values that a process writes before it is killed.
pub const WAL_BYTES: u64 = 64 << 20;
/// Overwrites of every key in [`growth`].
pub const OVERWRITES: u64 = 10;

/// What a load showed.
#[derive(Debug, Clone, Copy)]
pub struct Loaded {
    /// Keys per second until all was durable.
    pub keys_per_second: f64,
    /// Keys per second until postponed work was done, too.
    pub settled_keys_per_second: f64,
    /// Files after closing.
    pub mebibytes: f64,
}

/// Loads `keys` random keys into a new database in `dir`.
pub fn load(contestant: &dyn Contestant, dir: &Path, keys: u64, cache_bytes: u64) -> Result<Loaded> {
    let settings = Settings { durability: Durability::Buffered, cache_bytes, transactions: false };
    let db = open(contestant, dir, settings)?;
    let start = Instant::now();
    db.bulk_load(&mut (0..keys).map(|i| data::entry(i, 0)))?;
    let durable = start.elapsed();
    db.settle()?;
    let settled = start.elapsed();
    let mut found = Touched::default();
    db.read(&mut |reader| {
        for i in (0..keys).step_by(usize::try_from(keys / 1_000)?.max(1)) {
            let value = reader.fetch(&data::key(i))?;
            ensure!(value.as_deref() == Some(&data::value(i, 0)[..]), "entry {i} is not as it was loaded");
            found.value(value.as_deref().unwrap_or_default());
        }
        Ok(())
    })?;
    ensure!(found.entries > 0, "nothing was checked");
    drop(db);
    let rate = |elapsed: Duration| keys as f64 / elapsed.as_secs_f64();
    Ok(Loaded {
        keys_per_second: rate(durable),
        settled_keys_per_second: rate(settled),
        mebibytes: mebibytes(allocated(dir)?),
    })
}

/// Loads a new database in `dir`, overwrites every key ten times, and returns the files' final size as a
/// multiple of their size after the load.
pub fn growth(contestant: &dyn Contestant, dir: &Path, keys: u64, cache_bytes: u64) -> Result<f64> {
    let loaded = load(contestant, dir, keys, cache_bytes)?;
    let settings = Settings { durability: Durability::Buffered, cache_bytes, transactions: false };
    let db = open(contestant, dir, settings)?;
    db.write(&mut |writer| {
        for round in 1..=OVERWRITES {
            // Another order each round. The step is a prime beyond any key count here, so each key comes once.
            let step = 2_147_483_647_u64;
            let order = (0..keys).map(|i| (i * step + round * 7_919) % keys);
            for_each_chunk(&mut order.map(|i| data::entry(i, round)), 1_000, &mut |chunk| {
                writer.put_batch(chunk)
            })?;
        }
        Ok(())
    })?;
    db.settle()?;
    db.read(&mut |reader| {
        for i in (0..keys).step_by(usize::try_from(keys / 100)?.max(1)) {
            let value = reader.fetch(&data::key(i))?;
            ensure!(
                value.as_deref() == Some(&data::value(i, OVERWRITES)[..]),
                "entry {i} is not the last one"
            );
        }
        Ok(())
    })?;
    drop(db);
    Ok(mebibytes(allocated(dir)?) / loaded.mebibytes)
}

/// Lets a child process write [`WAL_BYTES`] to the warm database in `dir`, kills it, and returns how many
/// milliseconds it takes to open the database and read a key.
pub fn reopen(
    contestant: &dyn Contestant,
    dir: &Path,
    keys: u64,
    cache_bytes: u64,
    wal_bytes: u64,
) -> Result<f64> {
    child::write_and_be_killed(contestant, dir, keys, cache_bytes, wal_bytes / ENTRY_BYTES)?;
    let settings = Settings { durability: Durability::Buffered, cache_bytes, transactions: false };
    let start = Instant::now();
    let db = open(contestant, dir, settings)?;
    let mut elapsed = Duration::ZERO;
    db.read(&mut |reader| {
        let mut touched = Touched::default();
        ensure!(reader.get(&data::key(keys / 2), &mut touched)?, "a key is missing after the reopening");
        elapsed = start.elapsed();
        Ok(())
    })?;
    db.settle()?;
    Ok(elapsed.as_secs_f64() * 1e3)
}

/// Bytes that the files in `dir` occupy, holes not counted.
pub fn allocated(dir: &Path) -> Result<u64> {
    let mut total = 0;
    for entry in fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        total += if metadata.is_dir() { allocated(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(total)
}

fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
