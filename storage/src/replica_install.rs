//! [`ReplicaInstaller`]: takes the chunks of another replica's snapshot and puts it in place of what
//! is there.
//!
//! ```text
//! groups/7/             the replica, open and serving until just before `finish`
//! groups/7.incoming/    LOCK, CREATING, tree.redb: filled chunk by chunk
//! ```
//!
//! All that a replica keeps is the file of its B-tree, and a checkpoint record in it. So a snapshot
//! is written into such a file aside, with its record last, and one rename makes it the
//! replica's: a crash at any moment leaves the old file or the new one, whole. Where there was no
//! replica, its manifest is written behind the rename, and a crash before leaves none.
//!
//! What comes in is not believed: checksums, order of the chunks and of the keys, versions, limits,
//! the catalog, and at the end the number of keys of each tree are checked. A chunk that is
//! refused changes nothing: ask again from [`ReplicaInstaller::position`].
//!
//! A transfer outlives a broken connection, not the end of the process: what is left of one is
//! removed by the next [`ReplicaInstaller::begin`] or [`Replica::open`](crate::Replica::open). (The
//! empty directory stays.)

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::bulk::BulkBuilder;
use crate::codec::MAX_ENCODED_GROUP_COMMAND_LENGTH;
use crate::command::{MAX_KEY_LENGTH, MAX_NAME_LENGTH, MAX_OWN_KEY_LENGTH, MAX_TREES_WEIGHT};
use crate::directory::{Directory, read_manifest, tree_path};
use crate::disk::Disk;
use crate::evaluate::Versioned;
use crate::meta::{Catalog, Checkpoint, MAX_NOTE_LENGTH};
use crate::replica::{Applied, ReplicaOptions};
use crate::replica_snapshot::{ChunkPosition, Frame, Piece, Place, extend_digest};
use crate::{Error, IVec, Result, TreeId};

/// What is prepared of a transaction is kept as it came, and a session remembers answers.
const MAX_STORED_LENGTH: usize = MAX_ENCODED_GROUP_COMMAND_LENGTH + (1 << 20);

/// No database has made so many trees; one that says so would soon have no number for another.
const MAX_NEXT_TREE: TreeId = TreeId(u32::MAX / 2);

/// Takes a snapshot chunk by chunk; see the [module](self). Dropping it gives up.
#[derive(Debug)]
pub struct ReplicaInstaller {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    database_id: u128,
    position: ChunkPosition,
    /// From the first chunk on.
    record: Option<Checkpoint>,
    /// Keys received, by tree.
    counts: BTreeMap<TreeId, u64>,
    last: Option<(TreeId, IVec)>,
    /// A value that has not arrived whole.
    partial: Option<Partial>,
    stage: Stage,
}

#[derive(Debug)]
struct Partial {
    tree: TreeId,
    key: IVec,
    version: u64,
    length: usize,
    value: Vec<u8>,
}

enum Stage {
    Filling(BulkBuilder),
    /// The file is complete and durable; the directory keeps its lock.
    Complete(Directory),
    Failed,
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Stage::Filling(_) => "Filling",
            Stage::Complete(_) => "Complete",
            Stage::Failed => "Failed",
        })
    }
}

/// Where a snapshot for the replica in `directory` is built.
fn incoming_path(directory: &Path) -> PathBuf {
    let mut path = directory.as_os_str().to_owned();
    path.push(".incoming");
    PathBuf::from(path)
}

/// Empties what was left of a snapshot that was not installed.
pub(crate) fn remove_stale(disk: &dyn Disk, directory: &Path) -> Result<()> {
    let path = incoming_path(directory);
    let failed = |error| Error::io(format!("emptying {}", path.display()), error);
    if !disk.exists(&path).map_err(failed)? {
        return Ok(());
    }
    let names = disk.list(&path).map_err(failed)?;
    if names.iter().all(|name| name == "LOCK") {
        return Ok(());
    }
    let Some(_lock) = disk.lock(&path.join("LOCK")).map_err(failed)? else {
        // One is being built.
        return Ok(());
    };
    for name in names.iter().filter(|name| *name != "LOCK") {
        disk.remove(&path.join(name)).map_err(failed)?;
    }
    Ok(())
}

impl ReplicaInstaller {
    /// Begins to receive a snapshot for the replica in `options.directory`, which may be open, or not
    /// be there.
    ///
    /// # Errors
    /// [`Error::InUse`] if another one is being received, [`Error::NotADatabase`] if the directory is
    /// another node's, [`Error::Io`].
    pub fn begin(options: &ReplicaOptions) -> Result<ReplicaInstaller> {
        let disk = &options.disk;
        let looking = |error| Error::io(format!("looking for {}", options.directory.display()), error);
        if disk.exists(&options.directory.join("MANIFEST")).map_err(looking)? {
            check_id(read_manifest(&**disk, &options.directory)?, options.database_id, &options.directory)?;
        }
        remove_stale(&**disk, &options.directory)?;
        let incoming = incoming_path(&options.directory);
        // It gets no WAL.
        let segment_size = 0;
        let builder = BulkBuilder::new(disk, &incoming, options.database_id, segment_size)?;
        Ok(ReplicaInstaller {
            disk: Arc::clone(disk),
            directory: options.directory.clone(),
            database_id: options.database_id,
            position: ChunkPosition::default(),
            record: None,
            counts: BTreeMap::new(),
            last: None,
            partial: None,
            stage: Stage::Filling(builder),
        })
    }

    /// From where on the next chunk is wanted.
    pub fn position(&self) -> &ChunkPosition {
        &self.position
    }

    /// What the snapshot is of; `None` before its first chunk.
    pub fn applied(&self) -> Option<Applied> {
        let record = self.record.as_ref()?;
        Some(Applied { position: record.applied, note: record.note.clone().unwrap_or_default() })
    }

    /// Whether everything is there and sound, and only [`ReplicaInstaller::finish`] is left.
    pub fn is_complete(&self) -> bool {
        matches!(self.stage, Stage::Complete(_))
    }

    /// Whether it takes no more, because of what it was given or of its disk: begin again.
    pub fn has_failed(&self) -> bool {
        matches!(self.stage, Stage::Failed)
    }

    /// Takes the next chunk. The last one is complete and durable on return.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for a chunk that is damaged, of another snapshot, or not the one
    /// that is wanted; then nothing was changed. For one whose contents cannot be right, and for
    /// [`Error::Io`] and others: then this installer [takes no more](ReplicaInstaller::has_failed).
    pub fn chunk(&mut self, bytes: &[u8]) -> Result<()> {
        let refuse = |what: String| Error::InvalidRequest(format!("a chunk of a snapshot: {what}"));
        if !matches!(self.stage, Stage::Filling(_)) {
            return Err(refuse("no more is taken".to_owned()));
        }
        let frame = Frame::decode(bytes).map_err(refuse)?;
        if frame.from != self.position {
            return Err(refuse("it is not the one that is wanted".to_owned()));
        }
        if self.record.as_ref().is_some_and(|record| record.applied != frame.position) {
            return Err(refuse("it is of another snapshot".to_owned()));
        }
        let Stage::Filling(mut builder) = std::mem::replace(&mut self.stage, Stage::Failed) else {
            unreachable!("checked above")
        };
        match self.take(&frame, &mut builder)? {
            Ok(()) => {}
            Err(what) => return Err(refuse(what)),
        }
        self.position = frame.next;
        self.stage = if self.position.is_end() {
            let record = self.record.as_ref().expect("the first chunk was taken");
            Stage::Complete(builder.finish_tree(record)?)
        } else {
            Stage::Filling(builder)
        };
        Ok(())
    }

    /// Takes what is in a chunk. The inner error is about its contents.
    fn take(&mut self, frame: &Frame<'_>, builder: &mut BulkBuilder) -> Result<Result<(), String>> {
        let mut keys = self.position.keys;
        if self.record.is_none() {
            let record = match Checkpoint::decode(frame.body, Path::new("a snapshot")) {
                Ok(record) => record,
                Err(error) => return Ok(Err(error.to_string())),
            };
            if record.applied != frame.position {
                return Ok(Err("its record is of another position".to_owned()));
            }
            if let Err(what) = check_record(&record) {
                return Ok(Err(what));
            }
            self.record = Some(record);
        } else {
            let mut body = frame.body;
            while !body.is_empty() {
                match Piece::take(&mut body).and_then(|piece| self.add(&piece)) {
                    Ok(Some((tree, key, value))) => {
                        keys += 1;
                        builder.add(tree, key, value)?;
                    }
                    Ok(None) => {}
                    Err(what) => return Ok(Err(what)),
                }
            }
        }
        Ok(self.check_next(frame, keys))
    }

    /// Checks a piece; the entry, if it is whole with it.
    fn add(&mut self, piece: &Piece<'_>) -> Result<Option<(TreeId, IVec, Versioned)>, String> {
        let record = self.record.as_ref().expect("the first chunk was taken");
        if !record.catalog.ids.contains_key(&piece.tree) {
            return Err(format!("there is no tree {}", piece.tree.0));
        }
        let longest = if piece.tree.is_system() { MAX_OWN_KEY_LENGTH } else { MAX_KEY_LENGTH };
        if piece.key.len() > longest || piece.value_length > MAX_STORED_LENGTH {
            return Err("an entry is over the limits".to_owned());
        }
        if piece.version == 0 || piece.version > record.applied {
            return Err(format!("version {} in a snapshot of {}", piece.version, record.applied));
        }
        let mut partial = match self.partial.take() {
            Some(partial) => partial,
            None => {
                let is_behind =
                    self.last.as_ref().is_none_or(|(tree, key)| (*tree, &key[..]) < (piece.tree, piece.key));
                if !is_behind {
                    return Err("its keys are not in order".to_owned());
                }
                let (key, value) = (IVec::from(piece.key), Vec::new());
                let length = piece.value_length;
                Partial { tree: piece.tree, key, version: piece.version, length, value }
            }
        };
        let is_same = partial.tree == piece.tree
            && partial.key[..] == *piece.key
            && (partial.version, partial.length) == (piece.version, piece.value_length);
        if !is_same || piece.offset != partial.value.len() {
            return Err("a piece of a value is not the next one".to_owned());
        }
        partial.value.extend_from_slice(piece.bytes);
        if partial.value.len() > partial.length || (piece.bytes.is_empty() && partial.length > 0) {
            return Err("a piece of a value has the wrong length".to_owned());
        }
        if partial.value.len() < partial.length {
            self.partial = Some(partial);
            return Ok(None);
        }
        *self.counts.entry(partial.tree).or_insert(0) += 1;
        self.last = Some((partial.tree, partial.key.clone()));
        let value = Versioned { version: partial.version, value: IVec::from(partial.value) };
        Ok(Some((partial.tree, partial.key, value)))
    }

    /// Whether a chunk says of the next one what follows from its contents.
    fn check_next(&self, frame: &Frame<'_>, keys: u64) -> Result<(), String> {
        if (frame.next.keys, frame.next.digest) != (keys, extend_digest(self.position.digest, frame.body)) {
            return Err("what was received is not what was sent".to_owned());
        }
        match (&frame.next.place, &self.partial) {
            (Place::Record, _) => Err("it leads back to the beginning".to_owned()),
            (Place::Entry { tree, key, offset }, Some(partial)) => {
                if (*tree, key, *offset as usize) == (partial.tree, &partial.key, partial.value.len()) {
                    return Ok(());
                }
                Err("it ends in a value that does not go on".to_owned())
            }
            (Place::Entry { tree, key, offset }, None) => {
                let is_behind =
                    self.last.as_ref().is_none_or(|last| (last.0, &last.1) < (*tree, key)) && *offset == 0;
                // The first chunk alone may add no entry.
                if is_behind && (self.last.is_none() || keys > self.position.keys) {
                    return Ok(());
                }
                Err("it does not lead on".to_owned())
            }
            (Place::End, Some(_)) => Err("it ends in the middle of a value".to_owned()),
            (Place::End, None) => self.check_counts(),
        }
    }

    fn check_counts(&self) -> Result<(), String> {
        let record = self.record.as_ref().expect("the first chunk was taken");
        for (tree, name) in &record.catalog.ids {
            let (expected, found) = (record.length(*tree), self.counts.get(tree).copied().unwrap_or(0));
            if expected != found {
                return Err(format!(
                    "tree \"{}\" has {expected} keys, and {found} were received",
                    name.escape_ascii()
                ));
            }
        }
        Ok(())
    }

    /// Gives it up, and removes what has come.
    ///
    /// # Errors
    /// [`Error::Io`]. What is left then goes when the next one begins, or the replica is opened.
    pub fn abandon(self) -> Result<()> {
        let ReplicaInstaller { disk, directory, stage, .. } = self;
        // Which holds the lock.
        drop(stage);
        remove_stale(&*disk, &directory)
    }

    /// Puts the snapshot in place of what the replica was. The replica must be closed, and dropped,
    /// with all its snapshots; open it again afterwards.
    ///
    /// # Errors
    /// [`Error::InUse`] if the replica is open, [`Error::InvalidRequest`] if something is still to
    /// come: then try again. [`Error::Io`]: whether the old or the new state is there is in doubt, and
    /// one of them is; open to see.
    pub fn finish(&mut self) -> Result<Applied> {
        let Stage::Complete(incoming) = &self.stage else {
            return Err(Error::InvalidRequest("the snapshot is not complete".to_owned()));
        };
        let disk = &*self.disk;
        let target = Directory::open(Arc::clone(&self.disk), &self.directory, false, || self.database_id)?;
        check_id(target.database_id, self.database_id, &self.directory)?;
        let (from, to) = (incoming.tree_path(), tree_path(&self.directory));
        let install = || {
            // Its name there must be durable before the rename: a disk may order each directory's
            // changes by themselves.
            disk.sync_directory(&incoming.path)?;
            // Before the rename, after which it is in doubt which of the two is there.
            let directory = disk.open_directory(&self.directory)?;
            disk.rename(&from, &to)?;
            directory.sync()
        };
        install().map_err(|error| Error::io(format!("installing {}", to.display()), error))?;
        target.finish_creation()?;
        let applied = self.applied().expect("it is complete");
        self.stage = Stage::Failed;
        drop(target);
        // What is left is in nobody's way; the next open tries again.
        let _ = remove_stale(disk, &self.directory);
        Ok(applied)
    }
}

/// Refuses the directory of another node.
pub(crate) fn check_id(found: u128, expected: u128, directory: &Path) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::NotADatabase {
        path: directory.to_owned(),
        what: format!("it belongs to the node {found:032x}, not to {expected:032x} as the rest"),
    })
}

/// Whether a record can be that of a replica.
fn check_record(record: &Checkpoint) -> Result<(), String> {
    let fail = |what: &str| Err(format!("its record {what}"));
    match &record.note {
        None => return fail("is that of an embedded database"),
        Some(note) if note.len() > MAX_NOTE_LENGTH => return fail("has a note over the limit"),
        Some(_) => {}
    }
    let catalog = &record.catalog;
    let mut own = Catalog::default();
    own.insert_of_replica();
    if !catalog.ids.range(..TreeId::FIRST_USER).eq(own.ids.range(..TreeId::FIRST_USER)) {
        return fail("has not the trees that every replica has");
    }
    let is_one_to_one = catalog.ids.len() == catalog.names.len()
        && catalog.ids.iter().all(|(id, name)| catalog.names.get(name) == Some(id));
    let last = catalog.ids.keys().next_back().expect("it has the trees of its own");
    let is_next = catalog.next > *last && (TreeId::FIRST_USER..MAX_NEXT_TREE).contains(&catalog.next);
    if !is_one_to_one || !is_next {
        return fail("has a catalog that cannot be");
    }
    if catalog.names.keys().any(|name| name.len() > MAX_NAME_LENGTH) {
        return fail("has a name over the limit");
    }
    if catalog.weight() > 2 * MAX_TREES_WEIGHT {
        return fail("has more trees than a group can have; drop those that are not needed");
    }
    Ok(())
}
