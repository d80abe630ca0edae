//! Merging the changes of a checkpoint into the blocks they touch.

use std::iter::Peekable;
use std::sync::Arc;

use super::CacheBudget;
use super::block::{Block, Entries, MAX_BYTES, MAX_ENTRIES, TARGET_BYTES, TARGET_ENTRIES, ValueRef};
use super::index::{Index, IndexBuilder};
use crate::IVec;

/// The index with `changes` merged in. Chunks without changes are shared, and so are blocks without
/// changes in the other chunks. Changes where no block is are dropped.
///
/// # Panics
/// If the changes are not in ascending order of their keys.
pub(super) fn merge<'a, V: Into<ValueRef<'a>>>(
    index: &Index,
    budget: &Arc<CacheBudget>,
    changes: impl Iterator<Item = (&'a [u8], Option<(u64, V)>)>,
) -> Index {
    let mut changes = Changes { inner: changes.peekable(), last: None };
    let mut merged = Merger {
        budget,
        builder: IndexBuilder::with_capacity(index.chunks().len()),
        scratch: Entries::default(),
        open: None,
    };
    let mut at = 0;
    while let Some(key) = changes.peek() {
        let chunk = index.chunk_of(key);
        let Some(chunk) = index.chunks().get(chunk).filter(|_| chunk >= at).map(|_| chunk) else {
            // Nothing is cached at all, or this lies in the gap behind the chunk just merged.
            changes.next();
            continue;
        };
        merged.share(&index.chunks()[at..chunk]);
        for block in index.chunks()[chunk].blocks() {
            while changes.peek().is_some_and(|key| key < &block.low()[..]) {
                changes.next();
            }
            match changes.peek() {
                Some(key) if block.ends_above(key) => merged.change(block, &mut changes),
                _ => merged.keep(block),
            }
        }
        at = chunk + 1;
    }
    merged.close();
    merged.share(&index.chunks()[at..]);
    merged.builder.finish()
}

/// The changes to come, checked to be in order.
struct Changes<'a, I: Iterator> {
    inner: Peekable<I>,
    last: Option<&'a [u8]>,
}

impl<'a, V, I: Iterator<Item = (&'a [u8], Option<(u64, V)>)>> Changes<'a, I> {
    fn peek(&mut self) -> Option<&'a [u8]> {
        self.inner.peek().map(|(key, _)| *key)
    }

    fn next(&mut self) -> Option<I::Item> {
        let next = self.inner.next()?;
        if let Some(last) = self.last.replace(next.0) {
            assert!(last < next.0, "change of {:?} does not follow that of {last:?}", next.0);
        }
        Some(next)
    }
}

/// The block being put together in [`Merger::scratch`].
struct Open {
    low: IVec,
    high: Option<IVec>,
    referenced: bool,
    /// The block that this is so far; it need not be built again.
    original: Option<Block>,
}

struct Merger<'b> {
    budget: &'b Arc<CacheBudget>,
    builder: IndexBuilder,
    scratch: Entries,
    open: Option<Open>,
}

impl Merger<'_> {
    fn share(&mut self, chunks: &[Arc<super::index::Chunk>]) {
        if !chunks.is_empty() {
            self.close();
            self.builder.share_all(chunks);
        }
    }

    /// A block without changes: taken as it is, unless it or the one before is tiny and both fit
    /// into one.
    fn keep(&mut self, block: &Block) {
        let tiny = block.is_tiny();
        if let Some(open) = &self.open
            && open.high.as_ref() == Some(block.low())
            && (tiny || self.scratch.is_tiny())
            && self.scratch.len() + block.len() <= TARGET_ENTRIES
            && self.scratch.weight() + block.weight() <= TARGET_BYTES
        {
            self.extend(block);
            self.scratch.append(block, 0..block.len());
        } else if tiny {
            self.begin(block);
            self.scratch.append(block, 0..block.len());
            self.open.as_mut().expect("just begun").original = Some(block.clone());
        } else {
            self.close();
            self.builder.push(block.clone());
        }
    }

    /// A block with changes: at least the next one is in its interval.
    fn change<'a, V: Into<ValueRef<'a>>>(
        &mut self,
        block: &Block,
        changes: &mut Changes<'a, impl Iterator<Item = (&'a [u8], Option<(u64, V)>)>>,
    ) {
        match &self.open {
            Some(open) if open.high.as_ref() == Some(block.low()) && self.scratch.is_tiny() => {
                self.extend(block);
            }
            _ => self.begin(block),
        }
        let mut done = 0;
        while changes.peek().is_some_and(|key| block.ends_above(key)) {
            let Some((key, change)) = changes.next() else { break };
            let (position, exists) = block.search(key);
            self.scratch.append(block, done..position);
            if let Some((version, value)) = change {
                self.scratch.push(key, version, value.into());
            }
            done = position + usize::from(exists);
        }
        self.scratch.append(block, done..block.len());
    }

    fn begin(&mut self, block: &Block) {
        self.close();
        self.open = Some(Open {
            low: block.low().clone(),
            high: block.high().cloned(),
            referenced: block.is_referenced(),
            original: None,
        });
    }

    fn extend(&mut self, block: &Block) {
        let open = self.open.as_mut().expect("a block is open");
        open.high = block.high().cloned();
        open.referenced |= block.is_referenced();
        open.original = None;
    }

    /// Builds the open block, in parts if it has become too large.
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        if let Some(original) = open.original {
            self.builder.push(original);
        } else {
            let mut low = open.low;
            let mut start = 0;
            for cut in self.scratch.cuts() {
                let high = if cut < self.scratch.len() {
                    Some(IVec::from(self.scratch.key(cut)))
                } else {
                    open.high.clone()
                };
                let next_low = high.clone().unwrap_or_default();
                let block = self.scratch.block(start..cut, low, high);
                if open.referenced {
                    block.touch();
                }
                block.charge(self.budget);
                self.builder.push(block);
                (low, start) = (next_low, cut);
            }
        }
        self.scratch.clear();
    }
}

const _: () = assert!(TARGET_ENTRIES < MAX_ENTRIES && TARGET_BYTES < MAX_BYTES);
