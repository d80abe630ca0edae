//! redb's pages, read without redb.
//!
//! redb stops at the first damaged page, and for good: it latches the error. To tell all that is
//! damaged ([`crate::verify`]) and to save all that is not ([`crate::repair`]) one has to go on
//! behind it, so this module reads the trees itself. It trusts nothing: every page must match the
//! checksum that its parent keeps of it (XXH3-128, redb's own, beside ours of the blocks), every
//! length is checked before it is used, and no page is read twice.
//!
//! Two checksums are better than one. A page that matches its parent's checksum is sound even if
//! our checksum of its block is what was damaged; and a page that matches ours but not its
//! parent's is an older one, whose successor the disk lost.
//!
//! # redb's format, as far as it is used here (its version 3)
//!
//! The first 320 bytes: magic (9), flags (bit 0 of byte 9: which commit slot is the newer, bit 1: not
//! closed), page size (u32 at 12), region header pages (u32 at 16), pages per region (u32 at 20), full
//! regions (u32 at 24) and pages of the last one (u32 at 28) unless it is full, two commit slots of 128
//! bytes at 64 and 192. A slot: version 3, whether there is a user root (byte 1) and a
//! system root (byte 2), user root at 8, system root at 40, transaction id at 104, XXH3-128 of its
//! first 112 bytes at 112. A root: page number (8), checksum (16), count of entries (8).
//!
//! A page number: index in bits 0..20, region in 20..40, order in 59..64. A page of order n is
//! 2^n blocks long and lies `index` times its length into its region; regions follow page 0.
//!
//! Leaf: byte 0 is 1, u16 at 2 the count; from 4 the ends of the keys (u32 each, unless all have
//! one width), the ends of the values (likewise), keys, values. Branch: byte 0 is 2, u16 at 2 the
//! count of separators; from 8 the children's checksums (16 each), their page numbers (8 each),
//! the ends of the separators (u32, unless of one width), the separators. Child i holds the keys
//! above separator i-1 up to and including separator i.
//!
//! A root leads to a tree of tables: name to definition, which has at 0 the kind (3: ordinary), at
//! 1 the count (u64), at 9 whether there is a root, the root at 10, at 42 whether keys have one
//! width, which (u32), and the same for values.

use std::collections::HashSet;
use std::ops::Range;

use twox_hash::XxHash3_128;

use super::layout::HeaderBytes;
use super::{BLOCK, TreeFile};
use crate::disk::BLOCK_SIZE;
use crate::{Corruption, IVec, Result};

/// redb's trees are tens of levels deep at the very most.
const MAX_DEPTH: usize = 64;
const MAX_ORDER: u8 = 20;
const SLOTS: [usize; 2] = [64, 192];
const SLOT_LENGTH: usize = 128;
const ROOT_LENGTH: usize = 32;
const LEAF: u8 = 1;
const BRANCH: u8 = 2;

/// Where a tree begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Root {
    page: u64,
    checksum: u128,
    /// How many entries the tree has, by redb's count.
    pub(crate) length: u64,
}

/// One of redb's commits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CommitSlot {
    pub(crate) transaction: u64,
    pub(crate) user: Option<Root>,
    pub(crate) system: Option<Root>,
}

/// Widths of keys and values; `None`: each has its own length.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Widths {
    key: Option<usize>,
    value: Option<usize>,
}

/// A table's entry in redb's tree of tables.
#[derive(Clone, Debug)]
pub(crate) struct TableEntry {
    pub(crate) name: String,
    pub(crate) root: Option<Root>,
    pub(crate) length: u64,
    pub(crate) widths: Widths,
}

/// A part of a tree that cannot be read.
#[derive(Clone, Debug)]
pub(crate) struct LostPage {
    pub(crate) corruption: Corruption,
    /// The keys in it are above this one; `None`: it may hold the first.
    pub(crate) above: Option<IVec>,
    /// The keys in it are up to and including this one; `None`: it may hold the last.
    pub(crate) up_to: Option<IVec>,
}

/// What a walk meets, in the order of keys.
pub(crate) trait Visitor {
    /// A sound entry.
    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<()>;
    /// A part that cannot be read.
    fn lost(&mut self, page: LostPage) -> Result<()>;
    /// A page whose bytes are sound although our checksum of a block of it does not match.
    fn checksum_damaged(&mut self, corruption: Corruption);
}

/// Reads pages; see the [module](self).
pub(crate) struct PageReader<'a> {
    file: &'a TreeFile,
    commits: [Option<CommitSlot>; 2],
    region_pages: u64,
    region_header_pages: u64,
    /// Blocks of the file that the header counts; `None`: it was not closed, and they may be outdated.
    counted_blocks: Option<u64>,
    seen: HashSet<u64>,
    pub(crate) blocks_read: u64,
}

impl<'a> PageReader<'a> {
    /// Reads redb's header, as `file` has it.
    pub(crate) fn new(file: &'a TreeFile) -> Result<PageReader<'a>, Corruption> {
        PageReader::with_header(file, &file.header_bytes())
    }

    /// Takes redb's header from `header`.
    pub(crate) fn with_header(
        file: &'a TreeFile,
        header: &HeaderBytes,
    ) -> Result<PageReader<'a>, Corruption> {
        let damaged = |what: &str| Corruption {
            file: file.path().to_owned(),
            offset: Some(BLOCK),
            what: format!("redb's header {what}"),
        };
        if header[..9] != super::layout::REDB_MAGIC {
            return Err(damaged("does not begin with its magic"));
        }
        if u32_at(header, 12) as usize != BLOCK_SIZE {
            return Err(damaged("has another page size"));
        }
        let newer = usize::from(header[9] & 1 != 0);
        let slot = |number: usize| decode_slot(&header[SLOTS[number]..SLOTS[number] + SLOT_LENGTH]);
        let (region_header_pages, region_pages) = (u32_at(header, 16).into(), u32_at(header, 20).into());
        if region_pages == 0 || region_pages > 1 << 20 || region_header_pages > 1 << 20 {
            return Err(damaged("has impossible regions"));
        }
        let trailing_pages = u64::from(u32_at(header, 28));
        let trailing_blocks = if trailing_pages > 0 { region_header_pages + trailing_pages } else { 0 };
        let full_regions = u64::from(u32_at(header, 24));
        let counted = 1 + full_regions * (region_header_pages + region_pages) + trailing_blocks;
        Ok(PageReader {
            file,
            commits: [slot(newer), slot(1 - newer)],
            region_pages,
            region_header_pages,
            counted_blocks: (header[9] & 2 == 0).then_some(counted),
            seen: HashSet::new(),
            blocks_read: 0,
        })
    }

    /// What is wrong with the length of the file: redb refuses one that was cut, even if nothing lay
    /// in the blocks that are gone.
    pub(crate) fn check_length(&self) -> Result<(), Corruption> {
        let blocks = self.file.length() / BLOCK;
        let within_region = blocks.saturating_sub(1) % (self.region_header_pages + self.region_pages);
        let what = match self.counted_blocks {
            Some(counted) if blocks < counted => {
                format!("the file is {} blocks shorter than redb's header says: it was cut", counted - blocks)
            }
            Some(counted) if blocks == counted => return Ok(()),
            _ if blocks < self.region_header_pages + 2
                || (1..=self.region_header_pages).contains(&within_region) =>
            {
                "the file has a length that redb gives none".to_owned()
            }
            _ => return Ok(()),
        };
        Err(Corruption { file: self.file.path().to_owned(), offset: Some(self.file.length()), what })
    }

    /// The commit that redb would open.
    pub(crate) fn commit(&self) -> Result<CommitSlot, Corruption> {
        self.commits[0].ok_or_else(|| Corruption {
            file: self.file.path().to_owned(),
            offset: Some(BLOCK),
            what: "redb's newest commit slot does not match its checksum".to_owned(),
        })
    }

    /// The commit before it, if it is sound; its pages may have been written over since.
    pub(crate) fn commit_before(&self) -> Option<CommitSlot> {
        self.commits[1]
    }

    /// Forgets which pages were seen, for another walk over the same ones.
    pub(crate) fn forget_seen(&mut self) {
        self.seen.clear();
    }

    /// The tables under `root`, and what is wrong with the tree of tables.
    pub(crate) fn tables(&mut self, root: Option<Root>) -> Result<Tables> {
        let mut tables = Tables { path: self.file.path().to_owned(), ..Tables::default() };
        if let Some(root) = root {
            self.walk(root, Widths::default(), &mut tables)?;
        }
        Ok(tables)
    }

    /// Visits all of a tree in order. Damage is the visitor's business; an error is its own, or
    /// the disk's.
    pub(crate) fn walk(&mut self, root: Root, widths: Widths, visitor: &mut dyn Visitor) -> Result<()> {
        self.walk_range(root, widths, (None, None), visitor)
    }

    /// Like [`PageReader::walk`], but only pages that may hold keys above the first and up to the
    /// second key of `range` are read. They may hold others as well.
    pub(crate) fn walk_range(
        &mut self,
        root: Root,
        widths: Widths,
        range: (Option<&[u8]>, Option<&[u8]>),
        visitor: &mut dyn Visitor,
    ) -> Result<()> {
        let walk = Walk { widths, above: range.0, up_to: range.1 };
        self.visit(root.page, root.checksum, &walk, (None, None), 0, visitor)
    }

    fn visit(
        &mut self,
        number: u64,
        checksum: u128,
        walk: &Walk<'_>,
        bounds: (Option<&[u8]>, Option<&[u8]>),
        depth: usize,
        visitor: &mut dyn Visitor,
    ) -> Result<()> {
        let page = match self.page(number, checksum, walk.widths, depth, visitor)? {
            Ok(page) => page,
            Err(corruption) => {
                let (above, up_to) = (bounds.0.map(IVec::from), bounds.1.map(IVec::from));
                return visitor.lost(LostPage { corruption, above, up_to });
            }
        };
        match &page.node {
            Node::Leaf { entries } => {
                for (key, value) in entries {
                    visitor.entry(&page.bytes[key.clone()], &page.bytes[value.clone()])?;
                }
            }
            Node::Branch { children, separators } => {
                for (index, (child, checksum)) in children.iter().enumerate() {
                    let separator = |index: usize| &page.bytes[separators[index].clone()];
                    let above = if index == 0 { bounds.0 } else { Some(separator(index - 1)) };
                    let up_to = if index == separators.len() { bounds.1 } else { Some(separator(index)) };
                    if walk.wants(above, up_to) {
                        self.visit(*child, *checksum, walk, (above, up_to), depth + 1, visitor)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Reads and checks one page. The outer error is the disk's, the inner one damage.
    fn page(
        &mut self,
        number: u64,
        checksum: u128,
        widths: Widths,
        depth: usize,
        visitor: &mut dyn Visitor,
    ) -> Result<Result<Page, Corruption>> {
        let Some((offset, length)) = self.place(number) else {
            return Ok(Err(self.damaged(None, format!("a page number, {number:#018x}, is beyond the file"))));
        };
        let at = self.file.place_of(offset);
        if depth > MAX_DEPTH || !self.seen.insert(number) {
            return Ok(Err(self.damaged(at, "a page is reached in two ways".to_owned())));
        }
        let mut bytes = vec![0; length];
        let mismatch = match self.file.read_unverified(offset, &mut bytes) {
            Ok(mismatch) => mismatch,
            // The disk cannot read it: as lost as if it read wrong.
            Err(error) => return Ok(Err(self.damaged(at, format!("cannot be read: {error}")))),
        };
        self.blocks_read += (length / BLOCK_SIZE) as u64;
        let parsed = Page::parse(bytes, widths);
        Ok(match parsed {
            Some((page, end)) if XxHash3_128::oneshot(&page.bytes[..end]) == checksum => {
                if let Some(corruption) = mismatch {
                    visitor.checksum_damaged(corruption);
                }
                Ok(page)
            }
            _ => Err(mismatch.unwrap_or_else(|| {
                self.damaged(at, "the page is not the one that its parent names".to_owned())
            })),
        })
    }

    /// A page's place in redb's file, if it is within.
    fn place(&self, number: u64) -> Option<(u64, usize)> {
        let order = (number >> 59) as u8;
        if order > MAX_ORDER {
            return None;
        }
        let index = number & (0x000f_ffff >> order);
        let region = (number >> 20) & 0x000f_ffff;
        let blocks = 1_u64 << order;
        let region_blocks = self.region_header_pages + self.region_pages;
        let first = 1 + region * region_blocks + self.region_header_pages + index * blocks;
        let end = (first + blocks).checked_mul(BLOCK)?;
        (end <= self.file.length()).then_some((first * BLOCK, (blocks * BLOCK) as usize))
    }

    fn damaged(&self, offset: Option<u64>, what: String) -> Corruption {
        Corruption { file: self.file.path().to_owned(), offset, what }
    }
}

/// What a walk is after.
struct Walk<'a> {
    widths: Widths,
    above: Option<&'a [u8]>,
    up_to: Option<&'a [u8]>,
}

impl Walk<'_> {
    /// Whether a page with keys in these bounds may hold some that are wanted.
    fn wants(&self, above: Option<&[u8]>, up_to: Option<&[u8]>) -> bool {
        let all_before = matches!((up_to, self.above), (Some(last), Some(above)) if last <= above);
        let all_behind = matches!((above, self.up_to), (Some(above), Some(last)) if above >= last);
        !all_before && !all_behind
    }
}

struct Page {
    bytes: Vec<u8>,
    node: Node,
}

enum Node {
    Leaf { entries: Vec<(Range<usize>, Range<usize>)> },
    Branch { children: Vec<(u64, u128)>, separators: Vec<Range<usize>> },
}

impl Page {
    /// The page, and where what its checksum covers ends; `None` if it is no page.
    fn parse(bytes: Vec<u8>, widths: Widths) -> Option<(Page, usize)> {
        let count = usize::from(u16::from_le_bytes(bytes.get(2..4)?.try_into().ok()?));
        if count == 0 {
            return None;
        }
        let (node, end) = match bytes[0] {
            LEAF => {
                let mut table = 4;
                let key_ends = take_ends(&bytes, &mut table, count, widths.key)?;
                let value_ends = take_ends(&bytes, &mut table, count, widths.value)?;
                let keys = ranges(&bytes, table, count, widths.key, key_ends)?;
                let values_start = keys.last()?.end;
                let values = ranges(&bytes, values_start, count, widths.value, value_ends)?;
                let end = values.last()?.end;
                (Node::Leaf { entries: keys.into_iter().zip(values).collect() }, end)
            }
            BRANCH => {
                let children = count + 1;
                let numbers = 8 + 16 * children;
                let mut table = numbers + 8 * children;
                let ends = take_ends(&bytes, &mut table, count, widths.key)?;
                let separators = ranges(&bytes, table, count, widths.key, ends)?;
                let end = separators.last()?.end;
                let checksums = bytes.get(8..numbers)?.chunks_exact(16);
                let numbers = bytes.get(numbers..numbers + 8 * children)?.chunks_exact(8);
                let children = numbers
                    .zip(checksums)
                    .map(|(number, checksum)| {
                        let number = u64::from_le_bytes(number.try_into().expect("8 bytes"));
                        (number, u128::from_le_bytes(checksum.try_into().expect("16 bytes")))
                    })
                    .collect();
                (Node::Branch { children, separators }, end)
            }
            _ => return None,
        };
        Some((Page { bytes, node }, end))
    }
}

/// The place of a table of ends, if there is one; moves `table` behind it.
fn take_ends(bytes: &[u8], table: &mut usize, count: usize, width: Option<usize>) -> Option<Range<usize>> {
    if width.is_some() {
        return Some(0..0);
    }
    let range = *table..*table + 4 * count;
    *table = range.end;
    (range.end <= bytes.len()).then_some(range)
}

/// Where `count` items lie that begin at `start`, each within `bytes` and none before the other.
fn ranges(
    bytes: &[u8],
    start: usize,
    count: usize,
    width: Option<usize>,
    ends: Range<usize>,
) -> Option<Vec<Range<usize>>> {
    let mut items = Vec::with_capacity(count);
    let mut from = start;
    for index in 0..count {
        let end = match width {
            Some(width) => from.checked_add(width)?,
            None => u32_at(bytes, ends.start + 4 * index) as usize,
        };
        if end < from || end > bytes.len() {
            return None;
        }
        items.push(from..end);
        from = end;
    }
    Some(items)
}

fn decode_slot(bytes: &[u8]) -> Option<CommitSlot> {
    let checksum = u128::from_le_bytes(bytes[112..128].try_into().expect("16 bytes"));
    if bytes[0] != 3 || XxHash3_128::oneshot(&bytes[..112]) != checksum {
        return None;
    }
    let root = |present: u8, at: usize| (present != 0).then(|| decode_root(&bytes[at..at + ROOT_LENGTH]));
    Some(CommitSlot {
        transaction: u64::from_le_bytes(bytes[104..112].try_into().expect("8 bytes")),
        user: root(bytes[1], 8),
        system: root(bytes[2], 40),
    })
}

fn decode_root(bytes: &[u8]) -> Root {
    Root {
        page: u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")),
        checksum: u128::from_le_bytes(bytes[8..24].try_into().expect("16 bytes")),
        length: u64::from_le_bytes(bytes[24..32].try_into().expect("8 bytes")),
    }
}

fn decode_table(name: &[u8], bytes: &[u8]) -> Option<TableEntry> {
    let name = String::from_utf8(name.to_vec()).ok()?;
    if bytes.len() < 52 || bytes[0] != 3 {
        return None;
    }
    let width = |at: usize| (bytes[at] != 0).then(|| u32_at(bytes, at + 1) as usize);
    Some(TableEntry {
        name,
        length: u64::from_le_bytes(bytes[1..9].try_into().expect("8 bytes")),
        root: (bytes[9] != 0).then(|| decode_root(&bytes[10..42])),
        widths: Widths { key: width(42), value: width(47) },
    })
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

/// redb's tree of tables.
#[derive(Default)]
pub(crate) struct Tables {
    path: std::path::PathBuf,
    pub(crate) found: Vec<TableEntry>,
    pub(crate) lost: Vec<LostPage>,
    /// Where our checksums are damaged and the pages are not.
    pub(crate) checksums: Vec<Corruption>,
}

impl Visitor for Tables {
    fn entry(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        match decode_table(key, value) {
            Some(table) => self.found.push(table),
            None => {
                let name = String::from_utf8_lossy(key);
                let what = format!("what defines redb's table {name:?} is no definition");
                let corruption = Corruption { file: self.path.clone(), offset: None, what };
                let name = Some(IVec::from(key));
                self.lost.push(LostPage { corruption, above: name.clone(), up_to: name });
            }
        }
        Ok(())
    }

    fn lost(&mut self, page: LostPage) -> Result<()> {
        self.lost.push(page);
        Ok(())
    }

    fn checksum_damaged(&mut self, corruption: Corruption) {
        self.checksums.push(corruption);
    }
}
