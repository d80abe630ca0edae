//! [`ReplicaSnapshot`]: the state of a replica at one position, cut into chunks for another.
//!
//! # Idea
//!
//! A snapshot is a held state, so it costs nothing to take and nothing is copied before it is sent.
//! It is a sequence of chunks: first the checkpoint record (position, note, time, trees with their
//! lengths), then every entry of every tree in order, with its version. Whoever receives
//! ([`ReplicaInstaller`](crate::ReplicaInstaller)) says from where on it wants to have the next
//! chunk ([`ChunkPosition`]), so a transfer that broke off goes on where it was, and neither side
//! keeps anything for the other. A position carries the checksum of all that was sent before it:
//! the two ends compare it with every chunk.
//!
//! # A chunk
//!
//! All numbers little-endian:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 4 | magic `dgsc` |
//! | 4 | 1 | version, 1 |
//! | 5 | 3 | zero |
//! | 8 | 8 | position in the log that the snapshot is of |
//! | 16 | 4 | length of the places |
//! | 20 | 4 | length of the body |
//! | 24 | | places: where this chunk begins and where the next one does, in bincode |
//! | | | body |
//! | | 4 | CRC-32 of all before |
//!
//! The body of the first chunk is a checkpoint record (see `meta.rs`), of all others a run of pieces:
//!
//! | bytes | what |
//! |---|---|
//! | 4, 8 | tree, version |
//! | 4, 4 | length of the key, of the whole value |
//! | 4, 4 | offset in the value, length of the piece |
//! | | the key, the piece of the value |
//!
//! Most entries are one piece. Only a value that does not fit into a chunk is cut.
//!
//! A snapshot keeps memory and pages of the B-tree alive as any [`Snapshot`] does: drop it when it is
//! sent.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::{Arc, OnceLock};

use bincode::{Decode, Encode};
use twox_hash::XxHash3_128;

use crate::codec;
use crate::engine::{Committer, Engine};
use crate::meta::Checkpoint;
use crate::replica::Applied;
use crate::snapshot::Snapshot;
use crate::{Error, IVec, Result, TreeId};

/// No chunk is longer, whatever is asked for.
pub const MAX_CHUNK_BYTES: usize = 64 << 20;

/// The least of a value that is worth a piece.
const LEAST_PIECE: usize = 1024;

const MAGIC: &[u8; 4] = b"dgsc";
const VERSION: u8 = 1;
const HEADER_LENGTH: usize = 24;
const PIECE_HEADER_LENGTH: usize = 28;
const PLACES_VERSION: u8 = 1;

/// Where in a snapshot a chunk begins. The default is its beginning.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ChunkPosition {
    pub(crate) place: Place,
    /// Entries that are complete before it.
    pub(crate) keys: u64,
    /// CRC-32 of all bodies before it.
    pub(crate) digest: u32,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub(crate) enum Place {
    #[default]
    Record,
    /// At the first entry that is not before this one, this far into its value.
    Entry {
        tree: TreeId,
        key: IVec,
        offset: u32,
    },
    End,
}

impl ChunkPosition {
    /// Whether there is nothing left to send.
    pub fn is_end(&self) -> bool {
        self.place == Place::End
    }

    /// How many entries are complete before it.
    pub fn keys(&self) -> u64 {
        self.keys
    }

    /// As bytes, for a request.
    pub fn encode(&self) -> Vec<u8> {
        codec::encode_record(PLACES_VERSION, self)
    }

    /// From bytes that may be anything.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] saying what is wrong.
    pub fn decode(bytes: &[u8]) -> Result<ChunkPosition> {
        codec::decode_record(PLACES_VERSION, bytes)
            .map_err(|what| Error::InvalidRequest(format!("not a position in a snapshot: {what}")))
    }
}

/// A piece of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// What to send.
    pub bytes: Vec<u8>,
    /// Where the next one begins.
    pub next: ChunkPosition,
}

/// The state of a replica at one position; see the [module](self). Cloning shares it.
#[derive(Clone, Debug)]
pub struct ReplicaSnapshot {
    snapshot: Snapshot,
    /// Without the lengths.
    record: Checkpoint,
    /// Asked for when the first chunk is: keys may have to be looked up to know them.
    lengths: Arc<OnceLock<BTreeMap<TreeId, u64>>>,
    applied: Applied,
}

impl ReplicaSnapshot {
    /// `snapshot` was taken with `committer` locked.
    pub(crate) fn new(snapshot: Snapshot, committer: &Committer) -> ReplicaSnapshot {
        let snapshot = snapshot.with_expired();
        let applied = Applied { position: committer.sequence, note: committer.note.clone() };
        let catalog = (*snapshot.state().catalog).clone();
        let record = Checkpoint {
            applied: applied.position,
            time_ms: committer.time_ms,
            next_id: committer.next_id,
            lengths: BTreeMap::new(),
            catalog,
            note: Some(applied.note.clone()),
        };
        ReplicaSnapshot { snapshot, record, lengths: Arc::default(), applied }
    }

    /// The state of an embedded database as if it were a replica's, one position behind the newest
    /// commit, where `note` came: for whoever makes a node of it.
    pub fn of_embedded(engine: &Engine, note: Vec<u8>) -> ReplicaSnapshot {
        let committer = engine.shared.commit.lock();
        let mut snapshot = ReplicaSnapshot::new(engine.snapshot_between(&committer), &committer);
        drop(committer);
        snapshot.applied = Applied { position: snapshot.applied.position + 1, note };
        snapshot.record.applied = snapshot.applied.position;
        snapshot.record.note = Some(snapshot.applied.note.clone());
        snapshot.record.catalog.insert_of_replica();
        snapshot
    }

    /// Position and note that it is of.
    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// How many entries it holds.
    ///
    /// # Errors
    /// Damage found while looking keys up; see [`Snapshot::len`].
    pub fn keys(&self) -> Result<u64> {
        Ok(self.lengths()?.values().sum())
    }

    fn lengths(&self) -> Result<&BTreeMap<TreeId, u64>> {
        if let Some(lengths) = self.lengths.get() {
            return Ok(lengths);
        }
        let length = |id: &TreeId| Ok((*id, if self.has(*id) { self.snapshot.len(*id)? } else { 0 }));
        let lengths = self.record.catalog.ids.keys().map(length).collect::<Result<_>>()?;
        Ok(self.lengths.get_or_init(|| lengths))
    }

    /// Whether the state has a tree that the record names: an embedded database has no sessions.
    fn has(&self, tree: TreeId) -> bool {
        self.snapshot.state().catalog.ids.contains_key(&tree)
    }

    fn record(&self) -> Result<Checkpoint> {
        Ok(Checkpoint { lengths: self.lengths()?.clone(), ..self.record.clone() })
    }

    /// The chunk that begins at `from`, of about `max_bytes`; only keys make it longer.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if `from` is no position of this snapshot or its end; damage and I/O
    /// errors met while reading.
    pub fn chunk(&self, from: &ChunkPosition, max_bytes: usize) -> Result<Chunk> {
        let max_bytes = max_bytes.min(MAX_CHUNK_BYTES / 2);
        let mut body = Vec::new();
        let mut keys = from.keys;
        let place = match &from.place {
            Place::Record => {
                body = self.record()?.encode();
                Place::Entry { tree: TreeId(0), key: IVec::new(), offset: 0 }
            }
            Place::Entry { tree, key, offset } => {
                self.entries(*tree, key, *offset, max_bytes, &mut body, &mut keys)?
            }
            Place::End => return Err(Error::InvalidRequest("the snapshot ends here".to_owned())),
        };
        let next = ChunkPosition { place, keys, digest: extend_digest(from.digest, &body) };
        let bytes = frame(self.applied.position, from, &next, &body)?;
        Ok(Chunk { bytes, next })
    }

    /// Appends pieces from a place on; where the next ones begin.
    fn entries(
        &self,
        from_tree: TreeId,
        from_key: &IVec,
        from_offset: u32,
        max_bytes: usize,
        body: &mut Vec<u8>,
        keys: &mut u64,
    ) -> Result<Place> {
        let not_here = || Error::InvalidRequest("no entry of the snapshot is there".to_owned());
        let mut offset = from_offset as usize;
        for tree in self.record.catalog.ids.range(from_tree..).map(|(id, _)| *id).filter(|id| self.has(*id)) {
            let low = if tree == from_tree { Bound::Included(from_key.clone()) } else { Bound::Unbounded };
            for entry in self.snapshot.range(tree, low, Bound::Unbounded) {
                let (key, found) = entry?;
                let value = &found.value[..];
                if offset > 0 && (key != *from_key || tree != from_tree || offset >= value.len()) {
                    return Err(not_here());
                }
                let rest = &value[offset..];
                let room = max_bytes.saturating_sub(body.len() + PIECE_HEADER_LENGTH + key.len());
                if !body.is_empty() && rest.len() > room {
                    return Ok(Place::Entry { tree, key, offset: offset as u32 });
                }
                let piece = &rest[..rest.len().min(room.max(LEAST_PIECE))];
                body.extend_from_slice(&tree.0.to_le_bytes());
                body.extend_from_slice(&found.version.to_le_bytes());
                for number in [key.len(), value.len(), offset, piece.len()] {
                    body.extend_from_slice(&(number as u32).to_le_bytes());
                }
                body.extend_from_slice(&key);
                body.extend_from_slice(piece);
                if piece.len() < rest.len() {
                    return Ok(Place::Entry { tree, key, offset: (offset + piece.len()) as u32 });
                }
                offset = 0;
                *keys += 1;
            }
            if offset > 0 {
                return Err(not_here());
            }
        }
        Ok(Place::End)
    }

    /// A number that equal states have in common, versions, lengths and the log's time included, and
    /// different states have not, but by chance. The note is left out. Reads everything.
    ///
    /// # Errors
    /// Damage and I/O errors met while reading.
    pub fn fingerprint(&self) -> Result<u64> {
        let mut buffer = Checkpoint { note: None, ..self.record()? }.encode();
        let mut digest = 0;
        let mut add = |buffer: &mut Vec<u8>, least: usize| {
            if buffer.len() >= least {
                digest = XxHash3_128::oneshot_with_seed(digest, buffer) as u64;
                buffer.clear();
            }
            digest
        };
        for tree in self.record.catalog.ids.keys().filter(|id| self.has(**id)) {
            for entry in self.snapshot.range(*tree, Bound::Unbounded, Bound::Unbounded) {
                let (key, found) = entry?;
                for number in [u64::from(tree.0), found.version, key.len() as u64, found.value.len() as u64] {
                    buffer.extend_from_slice(&number.to_le_bytes());
                }
                buffer.extend_from_slice(&key);
                buffer.extend_from_slice(&found.value);
                add(&mut buffer, 64 << 10);
            }
        }
        Ok(add(&mut buffer, 0))
    }
}

pub(crate) fn extend_digest(digest: u32, body: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(digest);
    hasher.update(body);
    hasher.finalize()
}

fn frame(position: u64, from: &ChunkPosition, next: &ChunkPosition, body: &[u8]) -> Result<Vec<u8>> {
    let places = codec::encode_record(PLACES_VERSION, &(from, next));
    let length = HEADER_LENGTH + places.len() + body.len() + 4;
    if length > MAX_CHUNK_BYTES {
        // The record of a replica with a hundred thousand trees of long names.
        return Err(Error::InvalidRequest(format!(
            "a chunk of {length} bytes is over the limit of {MAX_CHUNK_BYTES}"
        )));
    }
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&[VERSION, 0, 0, 0]);
    bytes.extend_from_slice(&position.to_le_bytes());
    bytes.extend_from_slice(&(places.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&places);
    bytes.extend_from_slice(body);
    let crc = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    Ok(bytes)
}

/// A chunk as it was received, its checksum compared.
#[derive(Debug)]
pub(crate) struct Frame<'a> {
    pub(crate) position: u64,
    pub(crate) from: ChunkPosition,
    pub(crate) next: ChunkPosition,
    pub(crate) body: &'a [u8],
}

impl<'a> Frame<'a> {
    /// From bytes that may be anything; an error says what is wrong with them.
    pub(crate) fn decode(bytes: &'a [u8]) -> Result<Frame<'a>, String> {
        if bytes.len() > MAX_CHUNK_BYTES {
            return Err(format!("{} bytes are over the limit of {MAX_CHUNK_BYTES}", bytes.len()));
        }
        let Some((checked, crc)) = bytes.split_last_chunk::<4>() else {
            return Err("it is too short".to_owned());
        };
        let mut reader = Reader(checked);
        if reader.take::<4>()? != *MAGIC {
            return Err("it does not begin with the magic of one".to_owned());
        }
        let [version, ..] = reader.take::<4>()?;
        if version != VERSION {
            return Err(format!("version {version} is not known, only {VERSION}"));
        }
        if crc32fast::hash(checked) != u32::from_le_bytes(*crc) {
            return Err("its checksum does not match".to_owned());
        }
        let position = u64::from_le_bytes(reader.take()?);
        let places_length = reader.number()?;
        let body_length = reader.number()?;
        let places = reader.bytes(places_length)?;
        let body = reader.bytes(body_length)?;
        reader.end()?;
        let (from, next) = codec::decode_record(PLACES_VERSION, places)?;
        Ok(Frame { position, from, next, body })
    }
}

/// A part of an entry.
#[derive(Debug)]
pub(crate) struct Piece<'a> {
    pub(crate) tree: TreeId,
    pub(crate) version: u64,
    pub(crate) value_length: usize,
    pub(crate) offset: usize,
    pub(crate) key: &'a [u8],
    pub(crate) bytes: &'a [u8],
}

impl<'a> Piece<'a> {
    /// Takes the first piece off a body.
    pub(crate) fn take(body: &mut &'a [u8]) -> Result<Piece<'a>, String> {
        let mut reader = Reader(body);
        let tree = TreeId(u32::from_le_bytes(reader.take()?));
        let version = u64::from_le_bytes(reader.take()?);
        let key_length = reader.number()?;
        let value_length = reader.number()?;
        let offset = reader.number()?;
        let length = reader.number()?;
        let key = reader.bytes(key_length)?;
        let bytes = reader.bytes(length)?;
        *body = reader.0;
        Ok(Piece { tree, version, value_length, offset, key, bytes })
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn bytes(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (head, tail) = self.0.split_at_checked(length).ok_or("it ends in the middle")?;
        self.0 = tail;
        Ok(head)
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let bytes = self.bytes(N)?;
        Ok(bytes.try_into().expect("as many bytes as were asked for"))
    }

    fn number(&mut self) -> Result<usize, String> {
        Ok(u32::from_le_bytes(self.take()?) as usize)
    }

    fn end(&self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err(format!("{} bytes are left over", self.0.len())) }
    }
}

/// For the fuzz targets: decodes `bytes` as a chunk and as what one holds, none of which may panic;
/// and lays them down as a body, which must come back as it was.
#[doc(hidden)]
pub fn fuzz_chunk(bytes: &[u8]) {
    if let Ok(found) = Frame::decode(bytes) {
        let again = frame(found.position, &found.from, &found.next, found.body).expect("within the limit");
        let again = Frame::decode(&again).expect("just laid down");
        assert_eq!((again.position, again.body), (found.position, found.body));
        assert_eq!((again.from, again.next), (found.from, found.next));
    }
    let mut sealed = bytes.to_vec();
    sealed.extend_from_slice(&crc32fast::hash(bytes).to_le_bytes());
    // Behind the checksums, which a fuzzer does not get past.
    let _ = Frame::decode(&sealed);
    if let Ok(record) = Checkpoint::decode(&sealed, std::path::Path::new("a snapshot")) {
        let again = Checkpoint::decode(&record.encode(), std::path::Path::new("a snapshot"));
        assert_eq!(again.expect("just encoded").encode(), record.encode());
    }
    let mut body = bytes;
    while !body.is_empty() && Piece::take(&mut body).is_ok() {}
    let from = ChunkPosition::default();
    let next = ChunkPosition { digest: extend_digest(0, bytes), ..ChunkPosition::default() };
    if let Ok(laid) = frame(1, &from, &next, bytes) {
        let found = Frame::decode(&laid).expect("just laid down");
        assert_eq!((found.from, found.next, found.body), (from, next, bytes));
    }
}
