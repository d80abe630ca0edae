//! [`Changes`]: the history of commits, read back from the WAL.
//!
//! Together with [`Engine::snapshot`] it is how a copy is made and kept: take a snapshot, copy it,
//! then apply the commits after [`Snapshot::sequence`](crate::Snapshot::sequence), again and again.
//! Commits that a checkpoint has folded into the B-tree leave the WAL, except for the last
//! [`Options::retain_changes_bytes`](crate::Options::retain_changes_bytes); who comes too late is
//! told so.
//!
//! **Only what is durable is handed out.** After a power cut the sequences of commits that were lost are given to others:
//! a copy that had one of them would take what came instead for what it has, and differ for ever without anybody's
//! noticing. A snapshot holds what is not durable yet, as every reader sees it; so whoever copies one calls
//! [`Engine::sync`] after taking it, and keeps the copy only if that succeeds.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::codec::decode_effects;
use crate::engine::{EMBEDDED_STREAM, Shared};
use crate::{Effects, Engine, Error, Result};

/// Bytes of the WAL that are read at a time.
const BATCH_BYTES: usize = 1 << 20;

/// One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Its place in the history.
    pub sequence: u64,
    /// The log's time at which it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// What it changed.
    pub effects: Effects,
}

/// Commits in order; see [`Engine::changes_since`]. Ends at the newest commit, and continues if
/// asked again after more were made.
#[derive(Debug)]
pub struct Changes {
    shared: Arc<Shared>,
    next: u64,
    fetched: VecDeque<Commit>,
}

impl Engine {
    /// The commits after `sequence`. Each is durable before it is handed out, which may take a sync. What a copy begins
    /// with may not be: whoever copies a snapshot calls [`Engine::sync`] after taking it, and goes on from there only if
    /// that succeeds.
    ///
    /// # Errors
    /// [`Error::Compacted`] if some of them are no longer in the WAL, [`Error::InvalidRequest`] if
    /// `sequence` is in the future.
    pub fn changes_since(&self, sequence: u64) -> Result<Changes> {
        if self.shared.replica.is_some() {
            return Err(Error::InvalidRequest("a replica's history is in the log of its entries".to_owned()));
        }
        let newest = self.sequence();
        if sequence > newest {
            return Err(Error::InvalidRequest(format!(
                "sequence {sequence} is not reached yet; the newest commit is {newest}"
            )));
        }
        let changes =
            Changes { shared: Arc::clone(&self.shared), next: sequence + 1, fetched: VecDeque::new() };
        changes.check_kept(newest)?;
        Ok(changes)
    }
}

impl Changes {
    /// The sequence of the last commit that was handed out, or the one that was asked for: where to
    /// go on later.
    pub fn sequence(&self) -> u64 {
        self.fetched.front().map_or(self.next, |commit| commit.sequence) - 1
    }

    fn check_kept(&self, newest: u64) -> Result<()> {
        let oldest = self.shared.wal.first_index(EMBEDDED_STREAM).unwrap_or(newest + 1);
        if self.next <= newest && self.next < oldest {
            return Err(Error::Compacted { oldest });
        }
        Ok(())
    }

    fn fetch(&mut self) -> Result<()> {
        let newest = self.shared.commit.lock().sequence;
        if self.next > newest {
            return Ok(());
        }
        self.check_kept(newest)?;
        // Before anything is read: what is handed out must not be lost, or its sequence will be another commit's.
        self.shared.wal.sync()?;
        let wal_path = self.shared.directory.wal_path();
        let records = self.shared.wal.read(EMBEDDED_STREAM, self.next, newest + 1, BATCH_BYTES)?;
        if records.is_empty() {
            // Purged between the check and the read.
            self.check_kept(newest)?;
        }
        for (sequence, record) in records {
            let malformed = |error: crate::codec::Malformed| error.in_file(&wal_path, 0);
            let (time_ms, effects) = decode_effects(&record).map_err(malformed)?;
            let effects = effects.to_owned().map_err(malformed)?;
            self.next = sequence + 1;
            self.fetched.push_back(Commit { sequence, time_ms, effects });
        }
        Ok(())
    }
}

impl Iterator for Changes {
    type Item = Result<Commit>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.fetched.is_empty()
            && let Err(error) = self.fetch()
        {
            return Some(Err(error));
        }
        self.fetched.pop_front().map(Ok)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::SimulatedDisk;
    use crate::{Command, Durability, Options, TreeId};

    fn open(disk: &SimulatedDisk) -> Arc<Engine> {
        let options = Options {
            disk: Arc::new(disk.clone()),
            background_threads: false,
            flush_every_ms: None,
            cache_capacity: 8 << 20,
            segment_size: 32 << 10,
            ..Options::new("db")
        };
        Engine::open(options).expect("a sound disk")
    }

    #[test]
    fn what_was_handed_out_is_there_after_a_power_cut() {
        for seed in 0..20 {
            let disk = SimulatedDisk::new(seed);
            let engine = open(&disk);
            let insert = |key: &str| {
                let command =
                    Command::Insert { tree: TreeId::DEFAULT, key: key.into(), value: "value".into() };
                engine.execute(command, Durability::Buffered).expect("a sound disk");
            };
            insert("one");
            insert("two");
            let mut changes = engine.changes_since(0).expect("all is kept");
            let handed_out: Vec<_> = changes.by_ref().collect::<Result<_>>().expect("a sound disk");
            // Asked again after more was written, it hands out that as well.
            insert("three");
            let more: Vec<_> = changes.collect::<Result<_>>().expect("a sound disk");
            assert_eq!(more.len(), 1);
            insert("not handed out");
            let disk = disk.power_cut(seed);
            drop(engine);

            let engine = open(&disk);
            let found = engine.changes_since(0).expect("all is kept").collect::<Result<Vec<_>>>();
            let found = found.expect("a sound disk");
            assert!(found.starts_with(&[handed_out, more].concat()), "seed {seed}: {found:?}");
        }
    }
}
