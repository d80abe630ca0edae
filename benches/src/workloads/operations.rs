//! Operations on an open, warm database, each checked while it is measured.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::threads::{Done, Limit, run};
use crate::contestant::Database;
use crate::data::{self, ENTRY_BYTES, Entry, Rng, Touched, VALUE_BYTES};

/// Entries in a durable batch.
pub const BATCH: u64 = 1_000;
/// Entries of a short scan.
pub const SCAN: usize = 100;
/// Accounts that transactions move amounts between.
pub const ACCOUNTS: u64 = 10_000;

/// What all measurements of a stage share.
#[derive(Debug, Clone, Copy)]
pub struct Warm {
    /// Entries in the database.
    pub keys: u64,
    /// Seed of this repeat: the same operations for every contestant.
    pub seed: u64,
    /// Time for one measurement.
    pub budget: Duration,
}

impl Warm {
    fn rng(&self, thread: usize) -> Rng {
        Rng::new(self.seed.wrapping_mul(1_000).wrapping_add(thread as u64))
    }
}

/// Overwrites of random keys, one at a time.
pub fn puts(db: &dyn Database, warm: Warm, threads: usize, limit: Limit) -> Result<Done> {
    let last: Mutex<Option<Entry>> = Mutex::new(None);
    let done = run(threads, limit, &|worker| {
        let mut rng = warm.rng(worker.index);
        db.write(&mut |writer| {
            let mut entry = data::entry(0, 0);
            worker.start();
            loop {
                let chunk = worker.claim();
                if chunk == 0 {
                    break;
                }
                for _ in 0..chunk {
                    entry = data::entry(rng.below(warm.keys), rng.next_u64());
                    writer.put(&entry.0, &entry.1)?;
                }
            }
            *last.lock().expect("no holder panics") = Some(entry);
            Ok(())
        })
    })?;
    // With one thread nobody can have overwritten the last put.
    if let (1, Some((key, value))) = (threads, last.into_inner().expect("no holder panics")) {
        db.read(&mut |reader| {
            ensure!(reader.fetch(&key)?.as_deref() == Some(&value[..]), "the last put is not there");
            Ok(())
        })?;
    }
    Ok(done)
}

/// Overwrites of random keys in batches of [`BATCH`]; counts keys.
pub fn batches(db: &dyn Database, warm: Warm) -> Result<Done> {
    let limit = Limit { budget: warm.budget, max_operations: u64::MAX, chunk: BATCH };
    run(1, limit, &|worker| {
        let mut rng = warm.rng(worker.index);
        db.write(&mut |writer| {
            worker.start();
            while worker.claim() > 0 {
                let batch: Vec<Entry> =
                    (0..BATCH).map(|_| data::entry(rng.below(warm.keys), rng.next_u64())).collect();
                writer.put_batch(&batch)?;
            }
            Ok(())
        })
    })
}

/// Gets of random keys that exist.
pub fn gets(db: &dyn Database, warm: Warm, threads: usize, max_operations: u64) -> Result<Done> {
    let limit = Limit { budget: warm.budget, max_operations, chunk: 512 };
    run(threads, limit, &|worker| {
        let mut rng = warm.rng(worker.index);
        let (mut touched, mut asked) = (Touched::default(), 0);
        db.read(&mut |reader| {
            worker.start();
            loop {
                let chunk = worker.claim();
                if chunk == 0 {
                    break;
                }
                for _ in 0..chunk {
                    reader.get(&data::key(rng.below(warm.keys)), &mut touched)?;
                }
                asked += chunk;
            }
            Ok(())
        })?;
        ensure!(touched.entries == asked, "asked for {asked} keys, found {}", touched.entries);
        ensure!(touched.bytes == asked * VALUE_BYTES as u64, "values have the wrong size");
        Ok(())
    })
}

/// Scans of [`SCAN`] entries from the position of a random key.
pub fn short_scans(db: &dyn Database, warm: Warm) -> Result<Done> {
    let limit = Limit { budget: warm.budget, max_operations: u64::MAX, chunk: 16 };
    run(1, limit, &|worker| {
        let mut rng = warm.rng(worker.index);
        let (mut touched, mut scans) = (Touched::default(), 0);
        db.read(&mut |reader| {
            worker.start();
            loop {
                let chunk = worker.claim();
                if chunk == 0 {
                    break;
                }
                for _ in 0..chunk {
                    reader.scan(&data::key(rng.below(warm.keys)), SCAN, &mut touched)?;
                }
                scans += chunk;
            }
            Ok(())
        })?;
        // A start near the end of the tree finds fewer entries, but that is rare.
        let least = scans * SCAN as u64 * 9 / 10;
        ensure!(touched.entries >= least, "{scans} scans saw only {} entries", touched.entries);
        ensure!(touched.bytes == touched.entries * ENTRY_BYTES, "entries have the wrong size");
        Ok(())
    })
}

/// Scans of everything for the time given, at least one; counts entries. Also returns what one scan touched.
pub fn full_scans(db: &dyn Database, warm: Warm) -> Result<(Done, Touched)> {
    let mut touched = Touched::default();
    let mut done = Done { operations: 0, elapsed: Duration::ZERO };
    db.read(&mut |reader| {
        let start = Instant::now();
        while done.operations == 0 || done.elapsed < warm.budget {
            touched = Touched::default();
            reader.scan(&[0; data::KEY_BYTES], usize::MAX, &mut touched)?;
            ensure!(touched.entries == warm.keys, "{} entries instead of {}", touched.entries, warm.keys);
            ensure!(touched.bytes == warm.keys * ENTRY_BYTES, "entries have the wrong size");
            done = Done { operations: done.operations + touched.entries, elapsed: start.elapsed() };
        }
        Ok(())
    })?;
    Ok((done, touched))
}

/// Transfers between random accounts, each reading two values and writing two. What all accounts hold
/// together must be the same afterwards, or the contestant is not serializable.
pub fn transfers(db: &dyn Database, warm: Warm, threads: usize, chunk: u64) -> Result<Done> {
    let accounts = ACCOUNTS.min(warm.keys);
    let limit = Limit { budget: warm.budget, max_operations: u64::MAX, chunk };
    let before = total(db, accounts)?;
    let done = run(threads, limit, &|worker| {
        let mut rng = warm.rng(worker.index);
        db.write(&mut |writer| {
            worker.start();
            loop {
                let chunk = worker.claim();
                if chunk == 0 {
                    return Ok(());
                }
                for _ in 0..chunk {
                    let from = rng.below(accounts);
                    let to = (from + 1 + rng.below(accounts - 1)) % accounts;
                    writer.transfer(&data::key(from), &data::key(to), rng.below(1_000))?;
                }
            }
        })
    })?;
    let after = total(db, accounts)?;
    ensure!(before == after, "transfers changed the total of all accounts from {before} to {after}");
    Ok(done)
}

fn total(db: &dyn Database, accounts: u64) -> Result<u64> {
    let mut total = 0_u64;
    db.read(&mut |reader| {
        for i in 0..accounts {
            let value = reader.fetch(&data::key(i))?;
            ensure!(value.is_some(), "account {i} is missing");
            total = total.wrapping_add(value.as_deref().map_or(0, data::balance));
        }
        Ok(())
    })?;
    Ok(total)
}
