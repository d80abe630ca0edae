//! [`Sink`]: where `load` and `import` put records: batches of bounded size, written in order.

use std::collections::BTreeMap;
use std::time::Duration;

use dogsled::{Batch, Fence, IVec};
use dogsled_storage::DEFAULT_TREE_NAME;
use dogsled_storage::codec::Listed;
use dogsled_storage::expiry::{SetIf, When};
use dogsled_storage::hashes::HashAction;
use dogsled_storage::strings::StringAction;

use super::database::{Database, Keyspace};
use super::exit::{Failure, Result};
use super::load::{Change, Record};
use super::operations::{Operation, carry_out};
use super::output;

/// A batch is written when it holds this many records or bytes: enough that a commit costs
/// little per record, little enough that memory stays bounded whatever the file is.
const BATCH_RECORDS: usize = 4096;
const BATCH_BYTES: usize = 4 << 20;

/// Gathers records into batches and writes them in order.
pub(crate) struct Sink {
    target: Option<Target>,
    batch: Batch,
    batch_bytes: usize,
    /// Keys that expire, which are written behind the batch; without a value, that were written before.
    expires: BTreeMap<Vec<u8>, (Option<Vec<u8>>, u64)>,
    /// What makes hashes. Either this is empty, or the batch and what expires are, so that all is done in its order.
    actions: Vec<(IVec, StringAction)>,
    /// Fields that they set, and hashes that they begin.
    fields: usize,
    hashes: u64,
    /// A lock under which all is written, and what is to be written instead of the batch then: in one transaction.
    under: Option<(Fence, Vec<Operation>)>,
    /// Records written.
    pub(crate) done: u64,
    /// Bytes of their keys and values.
    pub(crate) done_bytes: u64,
}

struct Target {
    database: Database,
    chosen: Keyspace,
    /// Whether the database's own trees may be written to.
    system_trees: bool,
    /// Where the batch goes, and its name if the input named it.
    current: (Option<Vec<u8>>, Keyspace),
}

impl Target {
    /// What a record comes to in a transaction.
    fn operation(&self, key: Vec<u8>, value: Option<Vec<u8>>, expires_ms: Option<u64>) -> Operation {
        let (tree, key) = (self.current.1.clone(), IVec::from(key));
        let left_ms = expires_ms.map(|at_ms| at_ms.saturating_sub(self.database.now_ms()));
        match (value, left_ms.map(Duration::from_millis)) {
            (_, Some(Duration::ZERO)) | (None, None) => Operation::Remove { tree, key },
            (Some(value), ttl) => Operation::Put { tree, key, value: value.into(), ttl },
            (None, Some(ttl)) => Operation::Expire { tree, key, ttl },
        }
    }
}

impl Sink {
    /// Counts only.
    pub(crate) fn nothing() -> Sink {
        Sink {
            target: None,
            batch: Batch::default(),
            batch_bytes: 0,
            expires: BTreeMap::new(),
            actions: Vec::new(),
            fields: 0,
            hashes: 0,
            under: None,
            done: 0,
            done_bytes: 0,
        }
    }

    /// Writes to `tree`, and where a record names a tree, to that.
    pub(crate) fn into_tree(database: Database, tree: Keyspace) -> Sink {
        let target = Target { database, current: (None, tree.clone()), chosen: tree, system_trees: false };
        Sink { target: Some(target), ..Sink::nothing() }
    }

    /// The same, while a lock is held.
    pub(crate) fn under(mut self, fence: Option<Fence>) -> Sink {
        self.under = fence.map(|fence| (fence, Vec::new()));
        self
    }

    /// Writes to whatever trees the records name.
    pub(crate) fn into_any_tree(database: Database) -> Result<Sink> {
        let tree = database.tree(DEFAULT_TREE_NAME)?;
        let target = Target { database, current: (None, tree.clone()), chosen: tree, system_trees: true };
        Ok(Sink { target: Some(target), ..Sink::nothing() })
    }

    /// Whether records are written anywhere.
    pub(crate) fn writes(&self) -> bool {
        self.target.is_some()
    }

    /// Adds a record; after an error no more may be added.
    pub(crate) fn add(&mut self, record: Record) -> Result<()> {
        let size = record.size();
        let is_hash = matches!(record.change, Change::Hash { .. });
        if is_hash && self.under.is_some() {
            return Err(Failure::usage("hashes of Redis clients are not written under a lock"));
        }
        let under = self.under.as_ref().map_or(0, |(_, operations)| operations.len());
        let full = self.batch.len().max(self.expires.len()).max(self.fields).max(under) >= BATCH_RECORDS
            || self.batch_bytes + size > BATCH_BYTES
            || is_hash && !(self.batch.is_empty() && self.expires.is_empty())
            || !is_hash && !self.actions.is_empty();
        let moves = self.target.as_ref().is_some_and(|target| target.current.0 != record.tree);
        if full || moves {
            self.write()?;
        }
        if let Some(target) = self.target.as_mut().filter(|_| moves) {
            let tree = match &record.tree {
                Some(name) if target.system_trees => target.database.tree(name)?,
                Some(name) => target.database.tree_for_writing(name)?,
                None => target.chosen.clone(),
            };
            target.current = (record.tree, tree);
        }
        self.batch_bytes += size;
        if let (Some((_, operations)), Some(target)) = (self.under.as_mut(), self.target.as_ref()) {
            let value = match record.change {
                Change::Put(value) => Some(value),
                Change::Remove | Change::Expire | Change::Hash { .. } => None,
            };
            operations.push(target.operation(record.key, value, record.expires_ms));
            return Ok(());
        }
        if let Change::Hash { fields, continued } = record.change {
            self.add_hash(IVec::from(record.key), fields, continued, record.expires_ms);
            return Ok(());
        }
        // Each record says all of its key: of those before, for the same key, nothing is left, but the value of one that only
        // is to expire.
        let before = self.expires.remove(&record.key);
        match (record.change, record.expires_ms) {
            (Change::Put(value), Some(at_ms)) => {
                drop(self.expires.insert(record.key, (Some(value), at_ms)));
            }
            (Change::Put(value), None) => self.batch.insert(record.key, value),
            (Change::Remove, _) => self.batch.remove(record.key),
            (Change::Expire, Some(at_ms)) => {
                let value = before.and_then(|(value, _)| value);
                drop(self.expires.insert(record.key, (value, at_ms)));
            }
            (Change::Expire, None) | (Change::Hash { .. }, _) => {}
        }
        Ok(())
    }

    /// A hash is made by what Redis clients make it with: what a key holds of one means nothing elsewhere.
    fn add_hash(
        &mut self,
        key: IVec,
        fields: Vec<(Vec<u8>, Vec<u8>)>,
        continued: bool,
        expires_ms: Option<u64>,
    ) {
        if !continued {
            self.hashes += 1;
            self.actions.push((key.clone(), StringAction::Delete));
        }
        // Also where there is none, so that a batch is full some time.
        self.fields += fields.len().max(1);
        if fields.is_empty() {
            return;
        }
        let pairs = fields.into_iter().map(|(field, value)| (IVec::from(field), IVec::from(value)));
        let pairs = Listed(pairs.collect());
        self.actions.push((key.clone(), StringAction::Hash(HashAction::Set { pairs })));
        // With each part of it: so nobody finds one that stays.
        if let Some(at_ms) = expires_ms {
            let (when, only) = (When::At(at_ms), SetIf::Always);
            self.actions.push((key, StringAction::Expire { when, only, only_some: false }));
        }
    }

    fn write(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let expires = std::mem::take(&mut self.expires);
        let actions = std::mem::take(&mut self.actions);
        let mut count = batch.len() as u64 + std::mem::take(&mut self.hashes);
        count += expires.values().filter(|(value, _)| value.is_some()).count() as u64;
        self.fields = 0;
        if let (Some((fence, operations)), Some(target)) = (self.under.as_mut(), self.target.as_ref()) {
            let operations = std::mem::take(operations);
            count += operations.len() as u64;
            let done = carry_out(&target.database, Some(fence), &operations)?;
            done.expect("nothing was to be met");
        }
        if let Some(target) = self.target.as_ref() {
            if !batch.is_empty() {
                target.current.1.apply_batch(batch)?;
            }
            if !expires.is_empty() {
                let expires = expires
                    .into_iter()
                    .map(|(key, (value, at_ms))| (IVec::from(key), value.map(IVec::from), at_ms));
                target.current.1.put_until(&target.database, expires.collect())?;
            }
            if !actions.is_empty() {
                target.database.operate(&target.current.1.name(), &actions)?;
            }
        }
        self.done += count;
        self.done_bytes += std::mem::take(&mut self.batch_bytes) as u64;
        Ok(())
    }

    /// Writes what is left, and syncs.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.write()?;
        if let Some(target) = &self.target {
            target.database.flush()?;
        }
        Ok(())
    }

    /// Adds to an error of the database how far the load had come.
    pub(crate) fn stopped_by(&self, failure: Failure) -> Failure {
        failure
            .adding(format!(
                "{} {} written before this, but perhaps not all are on disk",
                output::count(self.done, "record"),
                were(self.done)
            ))
            .detail("loaded", self.done)
    }
}

/// `was` or `were`.
pub(crate) fn were(records: u64) -> &'static str {
    if records == 1 { "was" } else { "were" }
}
