//! [`Batches`]: a chain of backups as a stream of batches, read by a thread of its own, so that nobody waits for a disk
//! where others wait for the network.
//!
//! The thread is ahead by a few batches at most, and ends when nobody takes them any more.

use std::sync::Arc;

use dogsled_storage::HASHES_TREE_NAME;
use dogsled_storage::pin::{HashPart, hash_owner};
use dogsled_storage::strings::notices::EVENTS_TREE;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::BackupError;
use super::chain::Chain;
use super::format::{self, Record, Section};
use crate::IVec;
use crate::cluster::{Client, Error};

/// A batch is full when it has so many bytes, or as many records as are wanted.
const BATCH_BYTES: usize = 2 << 20;
/// Batches that are read ahead.
const AHEAD: usize = 2;

/// Whose a hash is, and when it expires.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Hash {
    /// The stored name of its tree.
    pub(super) stored: IVec,
    pub(super) key: IVec,
    pub(super) expires_ms: Option<u64>,
}

/// Some fields of a hash that follow each other.
#[derive(Debug)]
pub(super) struct Stretch {
    pub(super) hash: Arc<Hash>,
    /// Whether these are the first.
    pub(super) begins: bool,
    pub(super) fields: Vec<(IVec, IVec)>,
}

/// Some records of one section that follow each other.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) section: Section,
    /// What is there: none of them is removed.
    pub(super) records: Vec<Record>,
    /// The number of the last of them, from 1 on, in the whole chain.
    pub(super) end: u64,
    /// How much of the files was read until then.
    pub(super) bytes_read: u64,
    bytes: usize,
    /// The hash whose fields come first.
    hash: Option<Arc<Hash>>,
}

pub(super) fn is_of_hashes(section: &Section) -> bool {
    section.0 == HASHES_TREE_NAME && section.1 == format::KEYS
}

/// Whether it says which events of keys Redis clients are told: not as keys, which depend on the number of partitions.
pub(super) fn is_of_events(section: &Section) -> bool {
    section.0 == EVENTS_TREE
}

impl Batch {
    /// Whether it is to be sent before a record of so many bytes comes to it: together with what is there already a long one
    /// would be more than one command may carry.
    fn is_full_for(&self, section: &Section, bytes: usize, records: usize) -> bool {
        self.records.len() >= records || self.bytes + bytes > BATCH_BYTES || self.section != *section
    }

    /// Records of hashes by the hash.
    pub(super) fn stretches(&self) -> Result<Vec<Stretch>, &'static str> {
        let mut stretches: Vec<Stretch> = Vec::new();
        if let Some(hash) = &self.hash {
            stretches.push(Stretch { hash: Arc::clone(hash), begins: false, fields: Vec::new() });
        }
        for record in &self.records {
            match part(record)? {
                HashPart::Head => {
                    let hash = Arc::new(hash(record)?);
                    stretches.push(Stretch { hash, begins: true, fields: Vec::new() });
                }
                HashPart::Field(field) => {
                    let stretch = stretches.last_mut().ok_or("a field of no hash")?;
                    stretch.fields.push((field, record.value.clone().unwrap_or_default()));
                }
            }
        }
        Ok(stretches)
    }
}

fn part(record: &Record) -> Result<HashPart, &'static str> {
    HashPart::of(&record.key).ok_or("a key that is none of a hash")
}

fn hash(record: &Record) -> Result<Hash, &'static str> {
    let owner = record.value.as_ref().and_then(hash_owner);
    let (stored, key) = owner.ok_or("a hash that does not say whose it is")?;
    Ok(Hash { stored, key, expires_ms: record.expires_ms })
}

/// See the [module](self).
pub(super) struct Batches {
    batches: mpsc::Receiver<Batch>,
    thread: JoinHandle<Result<u64, BackupError>>,
}

impl Batches {
    /// Begins to read what comes behind the record of this number, in batches of at most so many records.
    pub(super) fn read(client: &Client, chain: &Arc<Chain>, after: u64, records: usize) -> Batches {
        let (sender, batches) = mpsc::channel(AHEAD);
        let chain = Arc::clone(chain);
        let thread = client.runtime().spawn_blocking(move || read(&chain, after, records, &sender));
        Batches { batches, thread }
    }

    /// The next; `None`: see [`Batches::end`] for why.
    pub(super) async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// How many records there are, once there is no next batch.
    pub(super) async fn end(self) -> Result<u64, BackupError> {
        super::joined(self.thread.await)
    }
}

fn read(chain: &Chain, after: u64, limit: usize, batches: &mpsc::Sender<Batch>) -> Result<u64, BackupError> {
    // Whoever asked is gone.
    let send = |batch: Option<Batch>| match batch {
        Some(batch) => batches.blocking_send(batch).map_err(|_| BackupError::Cluster(Error::Closed)),
        None => Ok(()),
    };
    let (mut number, mut read_before) = (0, 0);
    for partition in 1..=chain.partitions() {
        let damaged = |what: &str| chain.damaged(partition, what);
        let mut merged = chain.partition(partition)?;
        let mut gathered: Option<Batch> = None;
        let mut current: Option<Arc<Hash>> = None;
        while let Some((section, record)) = merged.next()? {
            number += 1;
            let before = current.clone();
            if is_of_hashes(&section) {
                match part(&record).map_err(damaged)? {
                    HashPart::Head => current = Some(Arc::new(hash(&record).map_err(damaged)?)),
                    HashPart::Field(_) if current.is_none() => return Err(damaged("a field of no hash")),
                    HashPart::Field(_) => {}
                }
            } else {
                current = None;
            }
            if number <= after {
                continue;
            }
            let bytes = record.key.len() + record.value.as_ref().map_or(0, |value| value.len());
            let full = gathered.take_if(|batch| batch.is_full_for(&section, bytes, limit));
            send(full)?;
            let batch = gathered.get_or_insert_with(|| Batch {
                hash: before.filter(|_| is_of_hashes(&section)),
                section,
                records: Vec::new(),
                end: 0,
                bytes_read: 0,
                bytes: 0,
            });
            batch.bytes += bytes;
            batch.records.push(record);
            (batch.end, batch.bytes_read) = (number, read_before + merged.bytes_read());
        }
        read_before += merged.bytes_read();
        send(gathered)?;
    }
    Ok(number)
}
