//! Makes an embedded database the first node of a cluster with one partition.
//!
//! # What becomes of it
//!
//! Everything that the embedded database holds becomes the state of group 1: trees, counters, locks
//! with their fencing tokens, the versions of keys, the log's time. It is taken as a snapshot is taken
//! from another node, and is of one position behind the last commit. There stands, as if it had been
//! an entry, the membership of this node alone; the group's Raft log begins behind it, like one whose
//! older entries were purged. Versions and fencing tokens are positions, so they go on growing. The
//! meta group gets the first entry that every new group has, and the cluster's record as the second.
//!
//! Nothing is changed in the embedded database until all of the node is there: it needs room for two.
//! Afterwards the way back is an export.
//!
//! # Crashes
//!
//! ```text
//! convert   groups/1     filled and installed, as any snapshot is
//!           wal.new/     a WAL with what the two groups' logs begin with
//!           node         says whose directory it is, and that it is being converted: from here on
//!                        the embedded database is refused to whoever opens it
//! finish    wal/         emptied; tree.redb removed; then MANIFEST: the embedded database is gone
//!           wal.new/* ─► wal/
//!           node         the same without being converted
//! ```
//!
//! A crash before `node` is there leaves an embedded database and what the next attempt begins by
//! removing. One after it leaves what [`finish`], which runs at every start, completes: each of its
//! steps can be done again. The steps are told apart by `MANIFEST`: while it is there, what lies in
//! `wal/` is the embedded database's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use dogsled_storage::codec::encode_group_command;
use dogsled_storage::disk::Disk;
use dogsled_storage::replica::ReplicaOptions;
use dogsled_storage::wal::{StreamId, Wal, WalOptions};
use dogsled_storage::{Engine, Error, Options, ReplicaInstaller, ReplicaSnapshot, Result};
use openraft::vote::RaftLeaderId;

use crate::config::NodeConfig;
use crate::meta::{DEFAULT_REPLICAS, MemberRecord, MemberState, Record};
use crate::node::record::swap;
use crate::node_file::NodeFile;
use crate::state_machine::encode_note;
use crate::types::{
    Entry, Hosting, LeaderId, LogId, Member, Membership, Payload, Proposal, Register, StoredMembership, Vote,
    entry_body, entry_header, position,
};

/// The only partition.
const GROUP: u32 = 1;
/// Bytes of the snapshot that are copied at a time.
const CHUNK_BYTES: usize = 4 << 20;
/// The embedded database's caches while it is read.
const CACHE_BYTES: u64 = 64 << 20;

/// Makes a node of the embedded database in the node's directory, of the cluster `cluster`; does
/// nothing if the directory is a node's already.
///
/// # Errors
/// [`Error::NotADatabase`] if there is nothing to convert; what opening the embedded database gives:
/// [`Error::InUse`], [`Error::Corrupt`]; the disk. The embedded database is then as it was.
pub(crate) fn convert(config: &NodeConfig, cluster: u128) -> Result<()> {
    let (disk, directory) = (&config.disk, &config.directory);
    if NodeFile::read(&**disk, directory)?.is_some() {
        return Ok(());
    }
    if !exists(&**disk, &directory.join("MANIFEST"))? {
        let what = "there is no embedded database to make a node of".to_owned();
        return Err(Error::NotADatabase { path: directory.clone(), what });
    }
    let engine = Engine::open(Options {
        cache_capacity: CACHE_BYTES,
        // Nothing else may commit: the last position is that of the state that is taken over.
        background_threads: false,
        disk: Arc::clone(disk),
        ..Options::new(directory)
    })?;
    let me = config.node.0;
    let leader = LeaderId::new(1, me);
    let at = LogId::new(leader, engine.sequence());
    let member = Member { addresses: config.addresses.clone() };
    let membership = Membership::new(vec![BTreeSet::from([me])], BTreeMap::from([(me, member)]))
        .map_err(|error| Error::InvalidRequest(format!("a membership of node {me}: {error}")))?;
    let note = encode_note(&leader, &StoredMembership::new(Some(at), membership.clone()));
    let database_id = engine.database_id();
    install(config, database_id, &ReplicaSnapshot::of_embedded(&engine, note))?;
    make_wal(config, database_id, at, membership)?;
    let file = NodeFile { node: me, database_id, cluster, partitions: 1, converting: true, taken_out: false };
    file.write(&**disk, directory)?;
    // Whoever opens the directory from here on finds the file.
    engine.close()
}

/// Fills the replica of the group.
fn install(config: &NodeConfig, database_id: u128, snapshot: &ReplicaSnapshot) -> Result<()> {
    let directory = config.directory.join("groups").join(GROUP.to_string());
    let options =
        ReplicaOptions { disk: Arc::clone(&config.disk), ..ReplicaOptions::new(directory, database_id) };
    let mut installer = ReplicaInstaller::begin(&options)?;
    while !installer.is_complete() {
        let chunk = snapshot.chunk(installer.position(), CHUNK_BYTES)?;
        installer.chunk(&chunk.bytes)?;
    }
    installer.finish().map(drop)
}

/// Makes the WAL that the node will have.
fn make_wal(config: &NodeConfig, database_id: u128, at: LogId, membership: Membership) -> Result<()> {
    let path = wal_aside(&config.directory);
    empty(&*config.disk, &path)?;
    let options = WalOptions {
        segment_size: config.wal_segment_bytes,
        threads: config.threads,
        seed: config.seed,
        ..WalOptions::new(path, database_id)
    };
    let wal = Wal::open(Arc::clone(&config.disk), options)?;
    let register = |vote: &LeaderId, purged: Option<LogId>| Register {
        vote: Some(Vote::new_committed(vote.term, vote.node_id)),
        committed: purged,
        purged,
        hosting: Hosting::Yes,
        hosted: 0,
    };
    // As openraft makes a group's first entry: in term 0, whose leader is whoever makes it.
    let maker = LeaderId::new(0, at.leader_id.node_id);
    let first = Entry { log_id: LogId::new(maker, 0), payload: Payload::Membership(membership) };
    wal.set_state(StreamId(0), &register(&maker, None).encode())?;
    wal.append(StreamId(0), position(first.log_id.index), &[&entry_header(&first), &entry_body(&first)])?;
    let command = encode_group_command(&swap(None, &record(config)?))?;
    let second = Entry { log_id: LogId::new(maker, 1), payload: Payload::Normal(Proposal(command.into())) };
    wal.append(StreamId(0), position(second.log_id.index), &[&entry_header(&second), &entry_body(&second)])?;
    wal.set_state(StreamId(GROUP), &register(&at.leader_id, Some(at)).encode())?;
    wal.sync()?;
    wal.close()
}

/// The record of a cluster of this node alone.
fn record(config: &NodeConfig) -> Result<Record> {
    let member = MemberRecord {
        state: MemberState::Active,
        weight: config.weight,
        zone: config.zone.clone(),
        addresses: config.addresses.clone(),
    };
    let members = BTreeMap::from([(config.node, member)]);
    Record::new(1, DEFAULT_REPLICAS, members).map_err(Error::InvalidRequest)
}

/// Completes what [`convert`] has begun, if it has; the directory is locked.
pub(crate) fn finish(disk: &dyn Disk, directory: &Path, file: &mut NodeFile) -> Result<()> {
    if !file.converting {
        return Ok(());
    }
    let failed = |error| Error::io(format!("making {} a node's directory", directory.display()), error);
    let (wal, aside, manifest) = (directory.join("wal"), wal_aside(directory), directory.join("MANIFEST"));
    if exists(disk, &manifest)? {
        empty(disk, &wal)?;
        let tree = directory.join("tree.redb");
        if exists(disk, &tree)? {
            disk.remove(&tree).map_err(failed)?;
        }
        disk.sync_directory(directory).map_err(failed)?;
        disk.remove(&manifest).map_err(failed)?;
        disk.sync_directory(directory).map_err(failed)?;
    }
    for name in disk.list(&aside).map_err(failed)? {
        disk.rename(&aside.join(&name), &wal.join(&name)).map_err(failed)?;
    }
    disk.sync_directory(&wal).map_err(failed)?;
    disk.sync_directory(&aside).map_err(failed)?;
    file.converting = false;
    file.write(disk, directory)
}

fn wal_aside(directory: &Path) -> std::path::PathBuf {
    directory.join("wal.new")
}

fn exists(disk: &dyn Disk, path: &Path) -> Result<bool> {
    disk.exists(path).map_err(|error| Error::io(format!("looking for {}", path.display()), error))
}

/// Removes the files in a directory, if there is one; durable on return.
fn empty(disk: &dyn Disk, path: &Path) -> Result<()> {
    if !exists(disk, path)? {
        return Ok(());
    }
    let remove = || -> std::io::Result<()> {
        for name in disk.list(path)? {
            disk.remove(&path.join(name))?;
        }
        disk.sync_directory(path)
    };
    remove().map_err(|error| Error::io(format!("emptying {}", path.display()), error))
}

#[cfg(test)]
mod tests;
