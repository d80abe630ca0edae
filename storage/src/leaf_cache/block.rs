//! [`Block`]: the complete content of one key interval, laid out for searching.

use std::cmp::Ordering;
use std::hint::black_box;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use super::CacheBudget;
use crate::IVec;

/// Values longer than this live in allocations of their own, shared by all versions of a block.
pub(super) const LARGE_VALUE: usize = 2048;

/// Splitting aims at blocks of this many entries…
pub(super) const TARGET_ENTRIES: usize = 48;
/// …or of this many bytes, whichever comes first.
pub(super) const TARGET_BYTES: usize = 6 << 10;
/// A block beyond these limits is split when next changed.
pub(super) const MAX_ENTRIES: usize = 88;
pub(super) const MAX_BYTES: usize = 11 << 10;
/// A block below both is joined with an adjacent one when next changed.
pub(super) const TINY_ENTRIES: usize = 12;
pub(super) const TINY_BYTES: usize = 1536;

/// What an allocator keeps beside what it was asked for, rounding included.
const ALLOCATION: usize = 16;
/// The two reference counts of an `Arc`.
const COUNTS: usize = 16;
/// A block's share of the index: its handle and a key prefix.
const INDEX_SHARE: usize = size_of::<Block>() + 8;

/// The length of a slot.
const SLOT: usize = 8;
/// The length of the header of an entry.
const HEADER: usize = 4;
/// Set in an entry's header if its value is kept apart.
const LARGE_FLAG: u32 = 1 << 31;

/// A value to be stored: copied if it is short, shared if it is long and can be.
#[derive(Clone, Copy, Debug)]
pub enum ValueRef<'a> {
    /// To be copied.
    Bytes(&'a [u8]),
    /// To be shared if it is long.
    Shared(&'a IVec),
}

impl<'a> ValueRef<'a> {
    fn bytes(self) -> &'a [u8] {
        match self {
            ValueRef::Bytes(bytes) => bytes,
            ValueRef::Shared(value) => value,
        }
    }

    fn large(self) -> IVec {
        match self {
            ValueRef::Bytes(bytes) => IVec::from(bytes),
            // Not a slice of something longer: the budget counts only what it can see.
            ValueRef::Shared(value) => value.compact(),
        }
    }
}

impl<'a> From<&'a [u8]> for ValueRef<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        ValueRef::Bytes(bytes)
    }
}

impl<'a> From<&'a IVec> for ValueRef<'a> {
    fn from(value: &'a IVec) -> Self {
        ValueRef::Shared(value)
    }
}

/// All entries whose keys are in `[low, high)`, at one version of the tree. Cheap to clone.
///
/// `bytes` begins with one word (little-endian) for each entry, its *slot*: four bytes of the key
/// (big-endian, zero-padded, from position `skip` on) above the offset of the entry in `bytes`.
/// Then come the entries, in key order, without gaps:
///
/// ```text
/// key length u32 LE (bit 31: large) | key | version u64 LE | value, unless large
/// ```
///
/// `skip` is the length of what `low` and `high` begin with in common, and so all keys between.
/// Comparing slots as integers compares keys up to the four bytes; only equal ones are compared in
/// full. Slots and entries share an allocation for the sake of the processor's page tables: having
/// waited for the one, a reader rarely waits for the page of the other.
#[derive(Clone)]
pub struct Block {
    bytes: Arc<[u8]>,
    count: u32,
    skip: u32,
    meta: Arc<Meta>,
}

/// What a point get seldom needs.
struct Meta {
    referenced: AtomicBool,
    low: IVec,
    high: Option<IVec>,
    /// Values longer than [`LARGE_VALUE`], with the position of their entries, in order.
    large: Box<[(u32, IVec)]>,
    charge: OnceLock<Charge>,
}

/// Bytes counted in a budget, given back on drop.
struct Charge {
    budget: Arc<CacheBudget>,
    bytes: usize,
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.release(self.bytes);
    }
}

impl Block {
    /// The first key of the interval; empty for the beginning of the key space.
    pub fn low(&self) -> &IVec {
        &self.meta.low
    }

    /// The first key beyond the interval; `None` for the end of the key space.
    pub fn high(&self) -> Option<&IVec> {
        self.meta.high.as_ref()
    }

    /// How many entries there are.
    #[inline]
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it is known that no key of the interval exists.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Whether `key` is below the end of the interval.
    #[inline]
    pub(super) fn ends_above(&self, key: &[u8]) -> bool {
        self.meta.high.as_ref().is_none_or(|high| key < &high[..])
    }

    /// Whether `key` is in the interval.
    pub fn covers(&self, key: &[u8]) -> bool {
        &self.meta.low[..] <= key && self.ends_above(key)
    }

    /// The position of the first entry whose key is not below `key`; [`Block::len`] if there is none.
    #[inline]
    pub fn seek(&self, key: &[u8]) -> usize {
        if key < &self.meta.low[..] {
            0
        } else if self.ends_above(key) {
            self.search(key).0
        } else {
            self.len()
        }
    }

    #[inline]
    fn slots(&self) -> &[[u8; SLOT]] {
        self.bytes[..self.len() * SLOT].as_chunks().0
    }

    #[inline]
    fn slot(&self, position: usize) -> u64 {
        u64::from_le_bytes(self.slots()[position])
    }

    #[inline]
    fn slot_prefix(&self, position: usize) -> u32 {
        (self.slot(position) >> 32) as u32
    }

    /// As [`Block::seek`], and whether that entry's key is `key`. If the key is not in the interval,
    /// the position means nothing.
    #[inline]
    pub(super) fn search(&self, key: &[u8]) -> (usize, bool) {
        let wanted = prefix(key.get(self.skip as usize..).unwrap_or_default());
        let least = u64::from(wanted) << 32;
        let slots = self.slots();

        // Halve until few are left, then count: all cache lines of the rest are fetched at once,
        // where halving on would wait for one after the other.
        let mut base = 0;
        let mut window = slots;
        while window.len() > 2 * TARGET_ENTRIES {
            let half = window.len() / 2;
            if u64::from_le_bytes(window[half]) < least {
                base += half + 1;
                window = &window[half + 1..];
            } else {
                window = &window[..half];
            }
        }
        let below = |slot: &[u8; SLOT]| usize::from(u64::from_le_bytes(*slot) < least);
        let position = base + window.iter().map(below).sum::<usize>();
        if position == slots.len() || self.slot_prefix(position) != wanted {
            return (position, false);
        }
        self.fetch(position);
        match self.key(position).cmp(key) {
            Ordering::Less => self.search_ties(position + 1, wanted, key),
            Ordering::Equal => (position, true),
            Ordering::Greater => (position, false),
        }
    }

    /// Has the processor fetch the cache lines of an entry all at once. Otherwise it would ask for
    /// the value only when the key has come, whose length says where the value is.
    #[inline]
    fn fetch(&self, position: usize) {
        let (start, end) = (self.offset(position), self.end(position));
        black_box(self.bytes[end - 1]);
        black_box(self.bytes[(start + 64).min(end - 1)]);
    }

    /// Goes on at `from` among the keys that do not differ in their slots.
    #[cold]
    fn search_ties(&self, mut from: usize, wanted: u32, key: &[u8]) -> (usize, bool) {
        let mut to = from;
        while to < self.len() && self.slot_prefix(to) == wanted {
            to += 1;
        }
        while from < to {
            let middle = from.midpoint(to);
            match self.key(middle).cmp(key) {
                Ordering::Less => from = middle + 1,
                Ordering::Equal => return (middle, true),
                Ordering::Greater => to = middle,
            }
        }
        (from, false)
    }

    #[inline]
    fn offset(&self, position: usize) -> usize {
        self.slot(position) as u32 as usize
    }

    #[inline]
    fn end(&self, position: usize) -> usize {
        if position + 1 < self.len() { self.offset(position + 1) } else { self.bytes.len() }
    }

    /// The header's content: where the key is, and whether the value is kept apart.
    #[inline]
    fn header(&self, position: usize) -> (Range<usize>, bool) {
        let start = self.offset(position) + HEADER;
        let (length, large) = decode_header(&self.bytes[start - HEADER..]);
        (start..start + length, large)
    }

    /// The key of an entry.
    #[inline]
    pub fn key(&self, position: usize) -> &[u8] {
        &self.bytes[self.header(position).0]
    }

    /// The sequence of the commit that wrote an entry.
    #[inline]
    pub fn version(&self, position: usize) -> u64 {
        self.version_at(self.header(position).0.end)
    }

    #[inline]
    fn version_at(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    /// The value of an entry, without its version.
    #[inline]
    pub fn value(&self, position: usize) -> &[u8] {
        self.version_and_value(position).1
    }

    /// The length of the value of an entry.
    pub fn value_len(&self, position: usize) -> usize {
        self.value(position).len()
    }

    #[inline]
    pub(super) fn version_and_value(&self, position: usize) -> (u64, &[u8]) {
        let (key, large) = self.header(position);
        let value = if large {
            &self.large_value(position)[..]
        } else {
            &self.bytes[key.end + 8..self.end(position)]
        };
        (self.version_at(key.end), value)
    }

    #[cold]
    fn large_value(&self, position: usize) -> &IVec {
        let at = self.meta.large.binary_search_by_key(&(position as u32), |(at, _)| *at);
        &self.meta.large[at.expect("an entry marked as large has its value kept apart")].1
    }

    /// Key, version and value of an entry. Long ones share this block's memory, which stays
    /// allocated as long as they do.
    #[inline]
    pub fn entry(&self, position: usize) -> (IVec, u64, IVec) {
        let (key, large) = self.header(position);
        let version = self.version_at(key.end);
        let value = if large {
            self.large_value(position).clone()
        } else {
            let start = key.end + 8;
            IVec::from_shared(&self.bytes, start, self.end(position) - start)
        };
        (IVec::from_shared(&self.bytes, key.start, key.len()), version, value)
    }

    /// The value of an entry: copied if it is short, so that it holds no block; else shared.
    #[inline]
    pub(super) fn detached_value(&self, position: usize, copy_up_to: usize) -> (u64, IVec) {
        let (version, value) = self.version_and_value(position);
        if value.len() <= copy_up_to { (version, IVec::from(value)) } else { self.shared_value(position) }
    }

    #[cold]
    fn shared_value(&self, position: usize) -> (u64, IVec) {
        let (_, version, value) = self.entry(position);
        (version, value)
    }

    /// Notes that the block was of use. Does not write to it if that is noted already, so that
    /// threads do not take the cache line from each other.
    #[inline]
    pub(super) fn touch(&self) {
        if !self.meta.referenced.load(Relaxed) {
            self.meta.referenced.store(true, Relaxed);
        }
    }

    pub(super) fn is_referenced(&self) -> bool {
        self.meta.referenced.load(Relaxed)
    }

    /// Whether the block was of use since the last call.
    pub(super) fn take_referenced(&self) -> bool {
        self.meta.referenced.load(Relaxed) && self.meta.referenced.swap(false, Relaxed)
    }

    fn entries_len(&self) -> usize {
        self.bytes.len() - self.len() * SLOT
    }

    /// The size that matters for splitting and joining.
    pub(super) fn weight(&self) -> usize {
        self.entries_len() + self.meta.large.iter().map(|(_, value)| large_weight(value)).sum::<usize>()
    }

    pub(super) fn is_tiny(&self) -> bool {
        self.len() < TINY_ENTRIES && self.weight() < TINY_BYTES
    }

    /// Bytes allocated for this block, index and allocator included. A large value is counted in
    /// each version of the block that shares it.
    pub fn memory(&self) -> usize {
        let Meta { low, high, large, .. } = &*self.meta;
        let values: usize =
            large.iter().map(|(_, value)| size_of_val(value) + SLOT + value.heap_size()).sum();
        let bytes = ALLOCATION + COUNTS + self.bytes.len();
        let meta = ALLOCATION + COUNTS + size_of::<Meta>();
        let ends = low.heap_size() + high.as_ref().map_or(0, IVec::heap_size);
        bytes + meta + ends + if large.is_empty() { 0 } else { ALLOCATION + values } + INDEX_SHARE
    }

    /// Counts the block in `budget` until the last of its clones is dropped.
    pub(super) fn charge(&self, budget: &Arc<CacheBudget>) {
        let charge = self.meta.charge.get_or_init(|| {
            let bytes = self.memory();
            budget.take(bytes);
            Charge { budget: Arc::clone(budget), bytes }
        });
        assert!(Arc::ptr_eq(&charge.budget, budget), "a block is counted in one budget");
    }

    /// The bytes counted in the budget.
    pub(super) fn charged(&self) -> usize {
        self.meta.charge.get().map_or(0, |charge| charge.bytes)
    }

    /// # Panics
    /// If the block does not hold what its documentation says.
    pub fn check_invariants(&self) {
        let Meta { low, high, large, charge, .. } = &*self.meta;
        if let Some(high) = high {
            assert!(low < high, "interval [{low:?}, {high:?}) is empty");
        }
        assert_eq!(self.charged(), if charge.get().is_some() { self.memory() } else { 0 });
        let mut end = self.len() * SLOT;
        let mut large_values = 0;
        for position in 0..self.len() {
            let key = self.key(position);
            assert!(self.covers(key), "key {key:?} is outside of [{low:?}, {high:?})");
            assert!(position == 0 || self.key(position - 1) < key, "key {key:?} is out of order");
            assert_eq!(self.offset(position), end, "entries lie side by side");
            assert_eq!(self.slot_prefix(position), prefix(&key[self.skip as usize..]));
            assert_eq!(self.search(key), (position, true));
            end = self.end(position);
            let (_, value) = self.version_and_value(position);
            let is_large = self.header(position).1;
            assert_eq!(is_large, value.len() > LARGE_VALUE, "a value of {} bytes", value.len());
            large_values += usize::from(is_large);
        }
        assert_eq!(end, self.bytes.len());
        assert_eq!(large_values, large.len());
    }
}

impl std::fmt::Debug for Block {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Block {{ [{:?}, {:?}), {} entries }}", self.low(), self.high(), self.len())
    }
}

/// The first four bytes as a number that compares as they do.
#[inline]
fn prefix(bytes: &[u8]) -> u32 {
    if let Some(head) = bytes.first_chunk::<4>() {
        return u32::from_be_bytes(*head);
    }
    let mut padded = [0; 4];
    padded[..bytes.len()].copy_from_slice(bytes);
    u32::from_be_bytes(padded)
}

#[inline]
fn decode_header(bytes: &[u8]) -> (usize, bool) {
    let word = u32::from_le_bytes(*bytes.first_chunk::<HEADER>().expect("a header"));
    ((word & !LARGE_FLAG) as usize, word & LARGE_FLAG != 0)
}

/// Large values count less: they are not copied when a block changes. They do count, for a block is
/// read from the B-tree, and evicted, as a whole.
fn large_weight(value: &IVec) -> usize {
    value.len() / 8
}

/// How many bytes `a` and `b` begin with in common.
pub(super) fn common_prefix_len(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Collects entries in key order; the whole of them, or parts, become blocks.
#[derive(Default)]
pub(super) struct Entries {
    data: Vec<u8>,
    offsets: Vec<u32>,
    large: Vec<(u32, IVec)>,
    large_weight: usize,
    /// Where blocks are laid out, kept for its allocation.
    block: Vec<u8>,
}

impl Entries {
    pub(super) fn len(&self) -> usize {
        self.offsets.len()
    }

    pub(super) fn weight(&self) -> usize {
        self.data.len() + self.large_weight
    }

    pub(super) fn clear(&mut self) {
        self.large_weight = 0;
        self.data.clear();
        self.offsets.clear();
        self.large.clear();
    }

    pub(super) fn is_tiny(&self) -> bool {
        self.len() < TINY_ENTRIES && self.weight() < TINY_BYTES
    }

    pub(super) fn key(&self, position: usize) -> &[u8] {
        let start = self.offsets[position] as usize + HEADER;
        &self.data[start..start + decode_header(&self.data[start - HEADER..]).0]
    }

    pub(super) fn push(&mut self, key: &[u8], version: u64, value: ValueRef<'_>) {
        let length = u32::try_from(key.len()).ok().filter(|length| length & LARGE_FLAG == 0);
        let length = length.expect("a key is shorter than 2 GiB");
        self.offsets.push(u32::try_from(self.data.len()).expect("a block is smaller than 4 GiB"));
        let bytes = value.bytes();
        let large = bytes.len() > LARGE_VALUE;
        self.data.extend_from_slice(&(length | if large { LARGE_FLAG } else { 0 }).to_le_bytes());
        self.data.extend_from_slice(key);
        self.data.extend_from_slice(&version.to_le_bytes());
        if large {
            let value = value.large();
            self.large_weight += large_weight(&value);
            self.large.push((self.offsets.len() as u32 - 1, value));
        } else {
            self.data.extend_from_slice(bytes);
        }
    }

    /// Appends some entries of a block as they are.
    pub(super) fn append(&mut self, block: &Block, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let (start, end) = (block.offset(range.start), block.end(range.end - 1));
        let (first, base) = (self.len(), self.data.len());
        u32::try_from(base + (end - start)).expect("a block is smaller than 4 GiB");
        self.data.extend_from_slice(&block.bytes[start..end]);
        self.offsets.extend(range.clone().map(|position| (block.offset(position) - start + base) as u32));
        for (at, value) in &block.meta.large {
            if range.contains(&(*at as usize)) {
                self.large_weight += large_weight(value);
                self.large.push(((*at as usize - range.start + first) as u32, value.clone()));
            }
        }
    }

    fn offset(&self, position: usize) -> usize {
        self.offsets.get(position).map_or(self.data.len(), |offset| *offset as usize)
    }

    /// A block of some of the entries.
    pub(super) fn block(&mut self, range: Range<usize>, low: IVec, high: Option<IVec>) -> Block {
        let (start, end) = (self.offset(range.start), self.offset(range.end));
        let skip = high.as_ref().map_or(0, |high| common_prefix_len(&low, high));
        let base = range.len() * SLOT;
        let mut bytes = std::mem::take(&mut self.block);
        bytes.clear();
        for position in range.clone() {
            let offset = (self.offset(position) - start + base) as u64;
            let slot = u64::from(prefix(&self.key(position)[skip..])) << 32 | offset;
            bytes.extend_from_slice(&slot.to_le_bytes());
        }
        bytes.extend_from_slice(&self.data[start..end]);
        u32::try_from(bytes.len()).expect("a block is smaller than 4 GiB");
        let large = self.large.iter().filter(|(at, _)| range.contains(&(*at as usize)));
        let meta = Meta {
            referenced: AtomicBool::new(false),
            low,
            high,
            large: large.map(|(at, value)| (at - range.start as u32, value.clone())).collect(),
            charge: OnceLock::new(),
        };
        let block = Block {
            count: range.len() as u32,
            skip: skip as u32,
            meta: Arc::new(meta),
            bytes: Arc::from(&bytes[..]),
        };
        self.block = bytes;
        block
    }

    /// The positions at which to cut the entries into parts of about the target size: one past the
    /// end of each part. Only one part if the whole is not over the limits.
    pub(super) fn cuts(&self) -> Vec<usize> {
        let count = self.len();
        if count <= MAX_ENTRIES && self.weight() <= MAX_BYTES {
            return vec![count];
        }
        let parts = count.div_ceil(TARGET_ENTRIES).max(self.weight().div_ceil(TARGET_BYTES));
        let (entries, bytes) = (count.div_ceil(parts), self.weight().div_ceil(parts));
        let mut cuts = Vec::with_capacity(parts);
        let mut large = self.large.iter().peekable();
        let (mut start, mut weight) = (0, 0);
        for position in 0..count {
            if position > start && (position - start >= entries || weight >= bytes) {
                cuts.push(position);
                (start, weight) = (position, 0);
            }
            weight += self.offset(position + 1) - self.offset(position);
            weight +=
                large.next_if(|(at, _)| *at as usize == position).map_or(0, |(_, value)| large_weight(value));
        }
        cuts.push(count);
        cuts
    }
}

/// Builds a [`Block`] from entries as the B-tree holds them.
pub struct BlockBuilder {
    entries: Entries,
    low: IVec,
}

impl BlockBuilder {
    /// A block that begins at `low`, inclusive; the empty key is the beginning of the key space.
    pub fn new(low: impl Into<IVec>) -> BlockBuilder {
        BlockBuilder { entries: Entries::default(), low: low.into() }
    }

    /// The next entry, as stored in the B-tree: eight bytes of version (little-endian), then the
    /// value.
    ///
    /// # Panics
    /// If `stored` is shorter than a version, or the key does not follow the one before and `low`.
    pub fn push(&mut self, key: &[u8], stored: &[u8]) {
        let (version, value) = stored.split_first_chunk().expect("a stored value begins with its version");
        self.push_value(key, u64::from_le_bytes(*version), value);
    }

    /// The next entry.
    ///
    /// # Panics
    /// If the key does not follow the one before and `low`.
    pub fn push_value<'a>(&mut self, key: &[u8], version: u64, value: impl Into<ValueRef<'a>>) {
        match self.last_key() {
            Some(last) => assert!(last < key, "key {key:?} does not follow {last:?}"),
            None => assert!(&self.low[..] <= key, "key {key:?} is below {:?}", self.low),
        }
        self.entries.push(key, version, value.into());
    }

    /// The last key pushed.
    pub fn last_key(&self) -> Option<&[u8]> {
        self.len().checked_sub(1).map(|last| self.entries.key(last))
    }

    /// How many entries were pushed.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no entry was pushed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the block has the size that serves best. More entries may be pushed.
    pub fn is_full(&self) -> bool {
        self.len() >= TARGET_ENTRIES || self.entries.weight() >= TARGET_BYTES
    }

    /// The block: it holds all there is from `low` up to `high`, exclusive; `None` is the end of
    /// the key space.
    ///
    /// # Panics
    /// If `high` is not above `low` and all keys.
    pub fn finish(mut self, high: Option<IVec>) -> Block {
        if let Some(high) = &high {
            assert!(self.low < *high, "interval [{:?}, {high:?}) is empty", self.low);
            if let Some(last) = self.last_key() {
                assert!(last < &high[..], "key {last:?} is not below the end {high:?}");
            }
        }
        self.entries.block(0..self.entries.len(), self.low, high)
    }
}
