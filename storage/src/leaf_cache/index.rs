//! The two-level index over the blocks of a [`LeafCache`](super::LeafCache).

use std::cmp::Ordering;
use std::sync::Arc;

use super::block::{Block, common_prefix_len};
use crate::IVec;

/// A chunk with more blocks than this is split.
pub(super) const MAX_CHUNK: usize = 128;
/// The size of chunks made in bulk: leaves room for fills.
const TARGET_CHUNK: usize = 96;
/// Smaller chunks are joined with their neighbours when blocks next to them change.
const TINY_CHUNK: usize = 24;

/// Finds the last of several sorted keys that is not above a given one, by prefixes: the first key
/// is taken for granted (its owner knows it to be small enough), so that the empty key at the
/// beginning of the key space does not spoil the common prefix of the others.
pub(super) struct Fences {
    common: IVec,
    prefixes: Box<[u64]>,
}

impl Fences {
    /// `fence(i)` is the i-th of `count` keys, ascending.
    fn new<'a>(count: usize, fence: impl Fn(usize) -> &'a [u8]) -> Fences {
        if count < 2 {
            return Fences { common: IVec::new(), prefixes: Box::default() };
        }
        let first = fence(1);
        let common = &first[..common_prefix_len(first, fence(count - 1))];
        Fences {
            common: IVec::from(common),
            prefixes: (1..count).map(|at| prefix(&fence(at)[common.len()..])).collect(),
        }
    }

    /// The position of the last fence that is not above `key`; 0 also if the first one is above.
    #[inline]
    fn find<'a>(&self, key: &[u8], fence: impl Fn(usize) -> &'a [u8]) -> usize {
        let common = &self.common[..];
        let shared = common.len().min(key.len());
        match key[..shared].cmp(&common[..shared]) {
            Ordering::Less => return 0,
            Ordering::Greater => return self.prefixes.len(),
            Ordering::Equal if shared < common.len() => return 0,
            Ordering::Equal => {}
        }
        let wanted = prefix(&key[shared..]);
        let below = self.prefixes.partition_point(|prefix| *prefix < wanted);
        if self.prefixes.get(below) != Some(&wanted) {
            return below;
        }
        let ties = self.prefixes[below..].partition_point(|prefix| *prefix == wanted);
        let (mut from, mut to) = (below, below + ties);
        while from < to {
            let middle = from.midpoint(to);
            if fence(middle + 1) <= key {
                from = middle + 1;
            } else {
                to = middle;
            }
        }
        from
    }
}

#[inline]
fn prefix(bytes: &[u8]) -> u64 {
    if let Some(head) = bytes.first_chunk::<8>() {
        return u64::from_be_bytes(*head);
    }
    let mut padded = [0; 8];
    padded[..bytes.len()].copy_from_slice(bytes);
    u64::from_be_bytes(padded)
}

/// Some blocks that follow each other, with or without gaps. Immutable, shared by versions. Never
/// empty.
pub(super) struct Chunk {
    fences: Fences,
    blocks: Box<[Block]>,
    low: IVec,
    bytes: usize,
}

impl Chunk {
    fn new(blocks: Box<[Block]>) -> Chunk {
        let low = blocks.first().expect("a chunk has a block").low().clone();
        let fences = Fences::new(blocks.len(), |at| &blocks[at].low()[..]);
        let bytes = blocks.iter().map(|block| block.charged()).sum();
        Chunk { fences, blocks, low, bytes }
    }

    pub(super) fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    pub(super) fn low(&self) -> &[u8] {
        &self.low
    }

    pub(super) fn last(&self) -> &Block {
        self.blocks.last().expect("a chunk has a block")
    }
}

/// The place of a block: its chunk, and its position there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) chunk: usize,
    pub(super) block: usize,
}

/// All blocks of a cache. Immutable: changes make a new one that shares the chunks they leave alone.
pub(super) struct Index {
    fences: Fences,
    chunks: Box<[Arc<Chunk>]>,
    bytes: usize,
}

impl Index {
    pub(super) fn new(chunks: Vec<Arc<Chunk>>) -> Index {
        let fences = Fences::new(chunks.len(), |at| chunks[at].low());
        let bytes = chunks.iter().map(|chunk| chunk.bytes).sum();
        Index { fences, chunks: chunks.into_boxed_slice(), bytes }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn chunks(&self) -> &[Arc<Chunk>] {
        &self.chunks
    }

    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.chunks.iter().flat_map(|chunk| chunk.blocks.iter())
    }

    /// The chunk that holds the last block with `low <= key`, if there is one; else the first.
    #[inline]
    pub(super) fn chunk_of(&self, key: &[u8]) -> usize {
        self.fences.find(key, |at| self.chunks[at].low())
    }

    /// The last block with `low <= key`. It covers `key` if it ends above it.
    #[inline]
    pub(super) fn candidate(&self, key: &[u8]) -> Option<&Block> {
        let at = self.chunk_of(key);
        let chunk = self.chunks.get(at)?;
        let position = chunk.fences.find(key, |at| &chunk.blocks[at].low()[..]);
        if at == 0 && position == 0 && key < &chunk.low[..] {
            return None;
        }
        Some(&chunk.blocks[position])
    }

    /// The place of the last block with `low <= key`.
    pub(super) fn place(&self, key: &[u8]) -> Option<Place> {
        let at = self.chunk_of(key);
        let chunk = self.chunks.get(at)?;
        let position = chunk.fences.find(key, |at| &chunk.blocks[at].low()[..]);
        (at > 0 || position > 0 || &chunk.low[..] <= key).then_some(Place { chunk: at, block: position })
    }

    /// The place after `place`, or the first one.
    pub(super) fn next(&self, place: Option<Place>) -> Option<Place> {
        let next = match place {
            None => Place { chunk: 0, block: 0 },
            Some(Place { chunk, block }) if block + 1 < self.chunks[chunk].blocks.len() => {
                Place { chunk, block: block + 1 }
            }
            Some(Place { chunk, .. }) => Place { chunk: chunk + 1, block: 0 },
        };
        (next.chunk < self.chunks.len()).then_some(next)
    }

    /// The place before `place`.
    pub(super) fn previous(&self, place: Place) -> Option<Place> {
        match place {
            Place { chunk: 0, block: 0 } => None,
            Place { chunk, block: 0 } => {
                Some(Place { chunk: chunk - 1, block: self.chunks[chunk - 1].blocks.len() - 1 })
            }
            Place { chunk, block } => Some(Place { chunk, block: block - 1 }),
        }
    }

    pub(super) fn at(&self, place: Place) -> &Block {
        &self.chunks[place.chunk].blocks[place.block]
    }

    /// This index with a block more, after `predecessor`.
    pub(super) fn with(&self, predecessor: Option<Place>, block: Block) -> Index {
        let Some(first) = self.chunks.first() else {
            return Index::new(vec![Arc::new(Chunk::new(Box::new([block])))]);
        };
        let (at, position) = predecessor.map_or((0, 0), |place| (place.chunk, place.block + 1));
        let old = if at == 0 { first } else { &self.chunks[at] };
        let mut blocks = Vec::with_capacity(old.blocks.len() + 1);
        blocks.extend_from_slice(&old.blocks[..position]);
        blocks.push(block);
        blocks.extend_from_slice(&old.blocks[position..]);
        let mut builder = IndexBuilder::with_capacity(self.chunks.len() + 1);
        builder.share_all(&self.chunks[..at]);
        if blocks.len() > MAX_CHUNK {
            // In the middle, or, for blocks that come in ascending order, at the end.
            let cut = if position + 1 == blocks.len() { TARGET_CHUNK } else { blocks.len() / 2 };
            let rest = blocks.split_off(cut);
            builder.chunks.push(Arc::new(Chunk::new(blocks.into_boxed_slice())));
            blocks = rest;
        }
        builder.chunks.push(Arc::new(Chunk::new(blocks.into_boxed_slice())));
        builder.share_all(&self.chunks[at + 1..]);
        builder.finish()
    }

    /// # Panics
    /// If the blocks are not sorted and disjoint, or a number kept does not agree.
    pub(super) fn check_invariants(&self) {
        assert_eq!(self.bytes, self.chunks.iter().map(|chunk| chunk.bytes).sum::<usize>());
        let mut end: Option<Option<IVec>> = None;
        for (at, chunk) in self.chunks.iter().enumerate() {
            assert!(!chunk.blocks.is_empty(), "chunk {at} is empty");
            assert!(chunk.blocks.len() <= MAX_CHUNK, "chunk {at} has {} blocks", chunk.blocks.len());
            assert_eq!(chunk.bytes, chunk.blocks.iter().map(|block| block.charged()).sum::<usize>());
            assert_eq!(chunk.low, chunk.blocks[0].low());
            for (position, block) in chunk.blocks.iter().enumerate() {
                match &end {
                    None => {}
                    Some(None) => panic!("{block:?} follows the end of the key space"),
                    Some(Some(end)) => assert!(end <= block.low(), "{block:?} begins before {end:?}"),
                }
                end = Some(block.high().cloned());
                block.check_invariants();
                assert_eq!(self.place(block.low()), Some(Place { chunk: at, block: position }));
            }
        }
    }
}

/// Puts an index together from chunks to be shared and blocks between them.
#[derive(Default)]
pub(super) struct IndexBuilder {
    chunks: Vec<Arc<Chunk>>,
    /// Blocks not yet in a chunk.
    blocks: Vec<Block>,
}

impl IndexBuilder {
    pub(super) fn with_capacity(chunks: usize) -> IndexBuilder {
        IndexBuilder { chunks: Vec::with_capacity(chunks), blocks: Vec::new() }
    }

    pub(super) fn share(&mut self, chunk: &Arc<Chunk>) {
        self.flush();
        self.chunks.push(Arc::clone(chunk));
    }

    pub(super) fn share_all(&mut self, chunks: &[Arc<Chunk>]) {
        self.flush();
        self.chunks.extend_from_slice(chunks);
    }

    pub(super) fn push(&mut self, block: Block) {
        self.blocks.push(block);
    }

    fn flush(&mut self) {
        if self.blocks.is_empty() {
            return;
        }
        if self.blocks.len() < TINY_CHUNK
            && let Some(last) = self.chunks.pop_if(|last| last.blocks.len() + self.blocks.len() <= MAX_CHUNK)
        {
            self.blocks.splice(0..0, last.blocks.iter().cloned());
        }
        let parts = if self.blocks.len() <= MAX_CHUNK { 1 } else { self.blocks.len().div_ceil(TARGET_CHUNK) };
        let size = self.blocks.len().div_ceil(parts);
        for part in self.blocks.chunks(size) {
            self.chunks.push(Arc::new(Chunk::new(part.into())));
        }
        self.blocks.clear();
    }

    pub(super) fn finish(mut self) -> Index {
        self.flush();
        Index::new(self.chunks)
    }
}
