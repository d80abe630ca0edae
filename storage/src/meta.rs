//! What a checkpoint records beside the trees: how far it goes, and the catalog.
//!
//! One row, `checkpoint`, of redb's table `meta`, written in the transaction that completes a
//! checkpoint; and one, `folding`, with the same contents, in the one that begins it. All numbers little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | record version: 1, or 2 of a [replica](crate::replica) |
//! | 8 | applied sequence: every commit up to it is in the trees |
//! | 8 | the log's time in milliseconds at that commit |
//! | 8 | next id of `generate_id` |
//! | 4 | number of the next new tree |
//! | 4 | count of trees, and for each: |
//! | 4, 8, 4, n | number, length in keys, length of the name, the name |
//! | 4, n | version 2 only: length of the note, the note |
//! | 4 | CRC-32 of all before |
//!
//! The note is what came with the last entry that was applied (a Raft log id and membership): bytes
//! that mean nothing here, [`MAX_NOTE_LENGTH`] at most.

use std::collections::BTreeMap;
use std::path::Path;

use crate::command::TREE_WEIGHT;
use crate::{Error, IVec, Result, TreeId};

/// redb's table of the checkpoint record.
pub(crate) const META_TABLE: redb::TableDefinition<'static, &'static str, &'static [u8]> =
    redb::TableDefinition::new("meta");
/// Its row of the last checkpoint.
pub(crate) const CHECKPOINT_ROW: &str = "checkpoint";

/// The row of a checkpoint that is being written, as [`CHECKPOINT_ROW`] will have it: written with
/// the first slice. See [`crate::checkpoint`].
pub(crate) const FOLDING_ROW: &str = "folding";

/// redb's name for a tree.
pub(crate) fn table_name(tree: TreeId) -> String {
    format!("t{:08x}", tree.0)
}

/// Which trees there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Catalog {
    pub(crate) names: BTreeMap<IVec, TreeId>,
    pub(crate) ids: BTreeMap<TreeId, IVec>,
    pub(crate) next: TreeId,
}

/// The name of the tree that a database derefs to; sled's, so that exports agree.
pub const DEFAULT_TREE_NAME: &[u8] = b"__sled__default";
/// The name of the tree that holds the counters.
pub const COUNTERS_TREE_NAME: &[u8] = b"__dogsled__counters";
/// The name of the tree that holds the locks.
pub const LOCKS_TREE_NAME: &[u8] = b"__dogsled__locks";
/// The name of the tree that holds the sessions.
pub const SESSIONS_TREE_NAME: &[u8] = b"__dogsled__sessions";
/// The name of the tree that holds a replica's transactions over several groups.
pub const TRANSACTIONS_TREE_NAME: &[u8] = b"__dogsled__transactions";

/// The name of the tree that holds when keys expire.
pub const EXPIRY_TREE_NAME: &[u8] = b"__dogsled__expiry";
/// The name of the tree that holds those who wait for locks.
pub const LOCK_QUEUES_TREE_NAME: &[u8] = b"__dogsled__lock_queues";

/// The name of the tree that holds the numbers that come next.
pub const SEQUENCES_TREE_NAME: &[u8] = b"__dogsled__sequences";

/// The name of the tree that holds the fields of hashes.
pub const HASHES_TREE_NAME: &[u8] = b"__dogsled__hashes";

/// The name of the tree that holds the quotas of trees.
pub const QUOTAS_TREE_NAME: &[u8] = b"__dogsled__quotas";

/// The longest note of a checkpoint in bytes.
pub const MAX_NOTE_LENGTH: usize = 64 << 10;

impl Default for Catalog {
    fn default() -> Self {
        let mut catalog = Catalog { names: BTreeMap::new(), ids: BTreeMap::new(), next: TreeId::FIRST_USER };
        catalog.insert(TreeId::DEFAULT, IVec::from(DEFAULT_TREE_NAME));
        catalog.insert(TreeId::COUNTERS, IVec::from(COUNTERS_TREE_NAME));
        catalog.insert(TreeId::LOCKS, IVec::from(LOCKS_TREE_NAME));
        catalog.insert(TreeId::EXPIRY, IVec::from(EXPIRY_TREE_NAME));
        catalog.insert(TreeId::LOCK_QUEUES, IVec::from(LOCK_QUEUES_TREE_NAME));
        catalog.insert(TreeId::SEQUENCES, IVec::from(SEQUENCES_TREE_NAME));
        catalog.insert(TreeId::HASHES, IVec::from(HASHES_TREE_NAME));
        catalog.insert(TreeId::QUOTAS, IVec::from(QUOTAS_TREE_NAME));
        catalog
    }
}

impl Catalog {
    /// The trees that every replica has, and an embedded database no such or no such at first.
    pub(crate) fn insert_of_replica(&mut self) {
        self.insert(TreeId::SESSIONS, IVec::from(SESSIONS_TREE_NAME));
        self.insert(TreeId::TRANSACTIONS, IVec::from(TRANSACTIONS_TREE_NAME));
    }

    pub(crate) fn insert(&mut self, id: TreeId, name: IVec) {
        self.names.insert(name.clone(), id);
        self.ids.insert(id, name);
        // A record that another machine has sent may name the last number there is; it is refused
        // for having no next one.
        self.next = self.next.max(TreeId(id.0.saturating_add(1)));
    }

    /// See [`View::tree_names_weight`](crate::evaluate::View::tree_names_weight).
    pub(crate) fn weight(&self) -> usize {
        self.names.keys().map(|name| name.len() + TREE_WEIGHT).sum()
    }

    pub(crate) fn remove(&mut self, id: TreeId) {
        if let Some(name) = self.ids.remove(&id) {
            self.names.remove(&name);
        }
    }
}

/// What a checkpoint records; see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(crate) struct Checkpoint {
    pub(crate) applied: u64,
    pub(crate) time_ms: u64,
    pub(crate) next_id: u64,
    pub(crate) catalog: Catalog,
    pub(crate) lengths: BTreeMap<TreeId, u64>,
    /// `Some` makes it the record of a replica.
    pub(crate) note: Option<Vec<u8>>,
}

impl Checkpoint {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![if self.note.is_some() { 2 } else { 1 }];
        out.extend_from_slice(&self.applied.to_le_bytes());
        out.extend_from_slice(&self.time_ms.to_le_bytes());
        out.extend_from_slice(&self.next_id.to_le_bytes());
        out.extend_from_slice(&self.catalog.next.0.to_le_bytes());
        out.extend_from_slice(&(self.catalog.ids.len() as u32).to_le_bytes());
        for (id, name) in &self.catalog.ids {
            out.extend_from_slice(&id.0.to_le_bytes());
            out.extend_from_slice(&self.length(*id).to_le_bytes());
            out.extend_from_slice(&(name.len() as u32).to_le_bytes());
            out.extend_from_slice(name);
        }
        if let Some(note) = &self.note {
            out.extend_from_slice(&(note.len() as u32).to_le_bytes());
            out.extend_from_slice(note);
        }
        let crc = crc32fast::hash(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8], file: &Path) -> Result<Checkpoint> {
        let damaged = |what: &str| Error::corrupt(file, None, format!("the checkpoint record {what}"));
        let Some((body, crc)) = bytes.split_last_chunk::<4>() else {
            return Err(damaged("is too short"));
        };
        if crc32fast::hash(body) != u32::from_le_bytes(*crc) {
            return Err(damaged("does not match its checksum"));
        }
        let mut reader = Reader(body);
        let mut read = || -> Option<Result<Checkpoint, u8>> {
            let version = reader.take::<1>()?[0];
            if version != 1 && version != 2 {
                return Some(Err(version));
            }
            let applied = u64::from_le_bytes(reader.take()?);
            let time_ms = u64::from_le_bytes(reader.take()?);
            let next_id = u64::from_le_bytes(reader.take()?);
            let next = TreeId(u32::from_le_bytes(reader.take()?));
            let count = u32::from_le_bytes(reader.take()?);
            let mut catalog = Catalog { names: BTreeMap::new(), ids: BTreeMap::new(), next };
            let mut lengths = BTreeMap::new();
            for _ in 0..count {
                let id = TreeId(u32::from_le_bytes(reader.take()?));
                lengths.insert(id, u64::from_le_bytes(reader.take()?));
                let length = u32::from_le_bytes(reader.take()?) as usize;
                catalog.insert(id, IVec::from(reader.bytes(length)?));
            }
            catalog.next = next;
            let note = if version == 2 {
                let length = u32::from_le_bytes(reader.take()?) as usize;
                Some(reader.bytes(length)?.to_vec())
            } else {
                None
            };
            let checkpoint = Checkpoint { applied, time_ms, next_id, catalog, lengths, note };
            reader.0.is_empty().then_some(Ok(checkpoint))
        };
        match read() {
            Some(Ok(checkpoint)) => Ok(checkpoint),
            Some(Err(version)) => {
                Err(damaged(&format!("has version {version}, newer than this program reads")))
            }
            None => Err(damaged("ends in the middle")),
        }
    }

    pub(crate) fn length(&self, tree: TreeId) -> u64 {
        self.lengths.get(&tree).copied().unwrap_or(0)
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (head, tail) = self.0.split_at_checked(length)?;
        self.0 = tail;
        Some(head)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.bytes(N)?.try_into().ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_record_round_trips_and_every_flip_of_it_is_seen() {
        let mut checkpoint = Checkpoint { applied: 77, time_ms: 5, next_id: 9, ..Checkpoint::default() };
        checkpoint.catalog.insert(TreeId(20), IVec::from("users"));
        checkpoint.lengths = checkpoint.catalog.ids.keys().map(|id| (*id, u64::from(id.0) * 3)).collect();
        let file = Path::new("tree.redb");
        for (version, note) in [(1, None), (2, Some(Vec::new())), (2, Some(b"log id".to_vec()))] {
            checkpoint.note = note;
            let bytes = checkpoint.encode();
            assert_eq!(bytes[0], version);
            assert_eq!(Checkpoint::decode(&bytes, file).expect("sound"), checkpoint);
            for bit in 0..bytes.len() * 8 {
                let mut flipped = bytes.clone();
                flipped[bit / 8] ^= 1 << (bit % 8);
                assert!(Checkpoint::decode(&flipped, file).is_err(), "bit {bit}");
            }
            for length in 0..bytes.len() {
                assert!(Checkpoint::decode(&bytes[..length], file).is_err());
            }
        }
    }

    #[test]
    fn a_record_may_name_the_last_tree_number_there_is() {
        let mut checkpoint = Checkpoint::default();
        checkpoint.catalog.insert(TreeId(u32::MAX), IVec::from("last"));
        let found = Checkpoint::decode(&checkpoint.encode(), Path::new("tree.redb"));
        assert_eq!(found.expect("sound").catalog.next, TreeId(u32::MAX));
    }
}
